//! Tests of the command line as a user and a script see it: answers, errors, exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Root, TINY_DIMENSIONS, cli};

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn embed_reads_arguments_and_standard_input() {
    let daemon = Root::new().start();
    let (code, stdout, _) = run(daemon.cli().args(["embed", "one", "two"]));
    assert_eq!(code, 0);
    let lines: Vec<Vec<f32>> = stdout
        .lines()
        .map(|line| line.split(' ').map(|value| value.parse().unwrap()).collect())
        .collect();
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [TINY_DIMENSIONS; 2]);

    let mut child = daemon
        .cli()
        .args(["embed", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The input is more than one request can hold, and has an empty line, which is ignored.
    let texts: String = (0..300).map(|index| format!("text {index}\n")).collect();
    child.stdin.take().unwrap().write_all(format!("\n{texts}").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let indices: Vec<_> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, (0..300).collect::<Vec<u64>>());

    let (code, _, stderr) = run(daemon.cli().args(["embed", "--model", "nope", "x"]));
    assert_eq!(code, 65);
    assert!(stderr.contains("\"nope\" is not installed; installed: bundled-mini"), "{stderr}");
    daemon.stop();
}

#[test]
fn status_prints_text_or_json() {
    let daemon = Root::new().start();
    let (code, stdout, _) = run(daemon.cli().arg("status"));
    assert_eq!(code, 0);
    assert!(stdout.contains("default model  bundled-mini, ready"), "{stdout}");
    let (_, stdout, _) = run(daemon.cli().args(["status", "--json"]));
    let status: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status["ready"], true);
    daemon.stop();
}

#[test]
fn missing_daemon_is_reported_with_hint() {
    let root = Root::new();
    for arguments in [&["status"][..], &["embed", "a"]] {
        let (code, _, stderr) = run(root.cli().args(arguments));
        assert_eq!(code, 69, "{stderr}");
        assert!(stderr.contains("`caxton doctor` checks"), "{stderr}");
    }
    let (code, _, stderr) = run(cli().arg("nonsense"));
    assert_eq!(code, 64, "{stderr}");
}

#[test]
fn check_reports_valid_files_and_all_problems() {
    let root = Root::new();
    let config = root.config();
    let (code, stdout, _) = run(cli().arg("check").arg(&config));
    assert_eq!((code, stdout), (0, format!("ok: {}\n", config.display())));
    fs::write(&config, "socket: { path: 5 }\nmemry: {}\n").unwrap();
    let (code, _, stderr) = run(cli().arg("check").arg(&config));
    assert_eq!(code, 78);
    assert!(
        stderr.contains("caxton.yaml:1:17: socket.path")
            && stderr.contains("did you mean \"memory\"")
    );
    assert_eq!(run(cli().arg("check").arg(root.path().join("absent"))).0, 78);
}

#[test]
fn closed_output_pipe_is_not_an_error() {
    let daemon = Root::new().start();
    for arguments in
        [&["embed", "a"][..], &["embed", "--json", "a"], &["status"], &["model", "known"]]
    {
        // The pipe has no reader from the start, so the first write fails.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, _, stderr) = run(daemon.cli().args(arguments).stdout(writer));
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
    }
    daemon.stop();
}
