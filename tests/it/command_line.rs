//! Tests of the command line as a user and a script see it: answers, errors, exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::packages::{entry, set_record};
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

/// Runs `command` with `input` as its standard input.
fn run_with(command: &mut Command, input: &str) -> (i32, String, String) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn embed_streams_lines_and_continues_after_skipped_ones() {
    let daemon = Root::new().start();
    // The texts fill several requests, and every tenth line is empty.
    let line = |number: u64| match number % 10 {
        0 => "\n".to_owned(),
        _ => format!("text {number}\n"),
    };
    let input: String = (1..=300).map(line).collect();
    let embed = |options: &[&str]| -> Vec<(u64, Value)> {
        let (code, stdout, stderr) =
            run_with(daemon.cli().args(["embed", "--json-lines"]).args(options), &input);
        assert_eq!(code, 0, "{stderr}");
        let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        stdout.lines().map(parse).map(|item| (item["line"].as_u64().unwrap(), item)).collect()
    };
    let all = embed(&[]);
    let numbers = Vec::from_iter(all.iter().map(|(number, _)| *number));
    assert_eq!(numbers, Vec::from_iter((1..=300).filter(|number| number % 10 != 0)));
    assert_eq!(all[0].1["embedding"].as_array().unwrap().len(), TINY_DIMENSIONS);
    let rest = embed(&["--skip", "285"]);
    let numbers = Vec::from_iter(rest.iter().map(|(number, _)| *number));
    assert_eq!(numbers, [286, 287, 288, 289, 291, 292, 293, 294, 295, 296, 297, 298, 299]);
    let (code, _, stderr) = run_with(daemon.cli().arg("embed"), "ok\n\u{fffd}");
    assert_eq!(code, 0, "{stderr}");
    daemon.stop();
}

#[test]
fn embed_prints_vectors_of_additional_models() {
    let daemon = Root::with_other().start();
    let embed = |options: &[&str]| {
        let mut command = daemon.cli();
        command.args(["embed", "--model", "bundled-mini", "--additional-model", "other"]);
        let (code, stdout, stderr) = run(command.args(options).args(["one", "two"]));
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    let plain = embed(&[]);
    let lines = Vec::from_iter(plain.lines());
    assert_eq!(lines.len(), 4, "{plain}");
    let (_, alone, _) = run(daemon.cli().args(["embed", "--model", "other", "two"]));
    assert_eq!(lines[3].split(' ').count(), alone.trim().split(' ').count());
    let text = embed(&["--json-lines"]);
    let second: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&second["line"], &second["model"]), (&2.into(), &"bundled-mini".into()));
    assert_eq!(second["additional"][0]["model"], "other", "{second}");
    assert!(second["additional"][0]["embedding"].is_array(), "{second}");
    let whole: Value = serde_json::from_str(&embed(&["--json"])).unwrap();
    assert_eq!(whole["additional"][0]["data"][1]["index"], 1, "{whole}");
    daemon.stop();
}

#[test]
fn rank_sorts_lines_by_similarity() {
    let daemon = Root::new().start();
    let input = "bread is baked\n\nthe pump runs hot\nrain tomorrow\n";
    let mut command = daemon.cli();
    let (code, stdout, stderr) = run_with(command.args(["rank", "the pump runs hot"]), input);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines = Vec::from_iter(stdout.lines().map(|line| line.split_once('\t').unwrap()));
    assert_eq!((lines.len(), lines[0]), (3, ("1.0000", "the pump runs hot")), "{stdout}");
    let mut command = daemon.cli();
    command.args(["rank", "baked bread", "--mode", "keyword", "--top", "1", "--json"]);
    let (_, stdout, _) = run_with(&mut command, input);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["results"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!((&answer["mode"], &answer["results"][0]["index"]), (&"keyword".into(), &0.into()));
    let many = "a\n".repeat(2049);
    let (code, _, stderr) = run_with(daemon.cli().args(["rank", "a"]), &many);
    assert!(code == 1 && stderr.contains("more than 2048 lines"), "{stderr}");
    daemon.stop();
}

#[test]
fn recommend_shows_and_loads_the_best_model() {
    let daemon = Root::with_other().start();
    let recommend = |options: &[&str]| {
        let (code, stdout, stderr) = run(daemon.cli().args(["model", "recommend"]).args(options));
        (code, stdout + &stderr)
    };
    let (code, text) = recommend(&["--task", "search", "--complexity", "0.2", "--json"]);
    assert_eq!(code, 0, "{text}");
    let found: Value = serde_json::from_str(&text).unwrap();
    // The prompts of this model show that it was made for search.
    assert_eq!(found["recommendations"][0]["id"], "other", "{found}");
    let (code, text) = recommend(&["--task", "search", "--load"]);
    assert!(code == 0 && text.ends_with("loaded: other@2\n"), "{text}");
    assert_eq!(daemon.package("other")["residency"], "resident");
    for wrong in [["--complexity", "1.5"], ["--task", "nothing"], ["--max-latency", "50"]] {
        assert_eq!(recommend(&wrong).0, 64, "{wrong:?}");
    }
    daemon.stop();
}

#[test]
fn unused_models_are_listed_with_and_without_daemon() {
    let daemon = Root::with_other().start();
    let listed = |root: &Root, time: &str| -> Value {
        let (code, stdout, stderr) =
            run(root.cli().args(["model", "unused", "--json", "--for", time]));
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    assert_eq!(listed(&daemon, "30d")["models"], Value::Array(Vec::new()));
    let root = daemon.stop();
    assert_eq!(listed(&root, "1h")["unused_for_seconds"], 3600);
    let (code, stdout, _) = run(root.cli().args(["model", "unused"]));
    assert!(code == 0 && stdout.contains("\n0 models, "), "{stdout}");
    set_record(&entry(&root, "other"), json!({ "installed_at": 1_600_000_000 }));
    let unused = listed(&root, "30d");
    assert_eq!(unused["models"][0]["id"], "other", "{unused}");
    assert_eq!(unused["models"][0]["last_used_at"], Value::Null, "{unused}");
}

#[test]
fn known_models_are_listed_with_their_facts() {
    let (code, stdout, _) = run(cli().args(["model", "known", "--json"]));
    assert_eq!(code, 0);
    let known: Value = serde_json::from_str(&stdout).unwrap();
    let models = known["models"].as_array().unwrap();
    let mini = models.iter().find(|model| model["id"] == "all-MiniLM-L6-v2").unwrap();
    assert_eq!((&mini["dimensions"], &mini["max_sequence_length"]), (&384.into(), &256.into()));
    assert_eq!((&mini["languages"][0], &mini["tasks"][0]), (&"en".into(), &"similarity".into()));
    assert!(mini["f32_bytes"].as_u64() > mini["int8_bytes"].as_u64(), "{mini}");
    assert!(mini["int8_memory_bytes"].as_u64() > mini["int8_bytes"].as_u64(), "{mini}");
    assert!(mini["int8_bytes"].as_u64() > mini["int4_table_bytes"].as_u64(), "{mini}");
    let potion = models.iter().find(|model| model["id"] == "potion-base-8M").unwrap();
    assert_eq!(potion["int4_table_bytes"], Value::Null);
    assert_eq!((&mini["runs"], &mini["family"]), (&true.into(), &"sentence-transformers".into()));
    let (_, table, _) = run(cli().args(["model", "known"]));
    let heading = table.lines().next().unwrap();
    for column in ["MODEL", "TASK", "LANG", "DIMS", "TOKENS", "INT8"] {
        assert!(heading.contains(column), "{heading}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn known_models_are_filtered_and_shown_by_name() {
    let filtered = ["--task", "rerank", "--license", "MIT", "--sort", "size", "--json"];
    let (code, stdout, _) = run(cli().args(["model", "known"]).args(filtered));
    assert_eq!(code, 0);
    let known: Value = serde_json::from_str(&stdout).unwrap();
    let ids = Vec::from_iter(known["models"].as_array().unwrap().iter().map(|model| &model["id"]));
    assert_eq!(ids, ["bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3"]);
    let (code, stdout, stderr) = run(cli().args(["model", "known", "--max-size", "1MB"]));
    assert!(code == 1 && stdout.is_empty() && stderr.contains("no known model"), "{stderr}");
    assert_eq!(run(cli().args(["model", "known", "--max-size", "1"])).0, 64);
    let (code, stdout, _) = run(cli().args(["model", "known", "nomic-embed-text:latest"]));
    assert!(code == 0 && stdout.contains("search_query: "), "{stdout}");
    let (code, stdout, _) = run(cli().args(["model", "known", "gte-base", "--json"]));
    let facts: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &facts["successor"]), (0, &"gte-base-en-v1.5".into()));
    let (code, _, stderr) = run(cli().args(["model", "known", "nothing"]));
    assert!(code != 0 && stderr.contains("nothing is not a known model"), "{stderr}");
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
