//! Attack: a hostile package, and a hostile daemon, write to the administrator's terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;
use std::thread;

use serde_json::{Value, json};

use crate::support::packages::{dropped, until_quarantined};
use crate::support::{Root, cli, golden, pack, tiny_package};

/// Text that clears the screen, begins a line that looks like a success, and reverses the direction
/// of the text after it.
const HOSTILE: &str = "\u{1b}[2J\u{9b}2J\nok: signed with key\u{202e}\u{200b}";

/// Returns a package whose `config.json` names the architecture `HOSTILE`.
fn hostile_package(place: &Path) -> Vec<u8> {
    let good = pack("tiny-bert-mean", "m", "1");
    let archive = zstd::decode_all(&good[..]).unwrap();
    let unpacked = place.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    // Write the archive again by hand: the manifest, then its files, each after a header.
    let mut members = members(&archive);
    let (_, manifest) = members.remove(0);
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for (name, content) in &mut members {
        if name == "config.json" {
            let mut config: Value = serde_json::from_slice(content).unwrap();
            config["model_type"] = json!(HOSTILE);
            *content = serde_json::to_vec(&config).unwrap();
        }
    }
    for file in manifest["files"].as_array_mut().unwrap() {
        let name = file["path"].as_str().unwrap().to_owned();
        let (_, content) = members.iter().find(|(member, _)| *member == name).unwrap();
        file["size"] = json!(content.len());
        file["sha256"] = json!(format!("{}", caxton::package::Digest::of(content)));
    }
    members.insert(0, ("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
    let mut made = Vec::new();
    for (name, content) in members {
        // Copy a header of the packer, with another name and size.
        let mut header = archive[..512].to_vec();
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        // Fields of the ustar header: the size at 124, and at 148 the checksum, which is computed
        // with spaces in its own field.
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        made.extend(header);
        made.extend(&content);
        made.resize(made.len().next_multiple_of(512), 0);
    }
    made.extend([0; 1024]);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&made).unwrap();
    encoder.finish().unwrap()
}

/// Returns name and content of each member of an archive.
fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = archive;
    while rest[0] != 0 {
        let text = |range: std::ops::Range<usize>| {
            let field = rest[range].split(|byte| *byte == 0).next().unwrap();
            String::from_utf8(field.to_vec()).unwrap()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        found.push((text(0..100), rest[512..512 + size].to_vec()));
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    found
}

/// Checks that the output has no characters that control a terminal. Returns the text.
fn assert_harmless(what: &str, Output { stdout, stderr, .. }: Output) -> String {
    let text = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_harmless_text(what, &text);
    text
}

fn assert_harmless_text(what: &str, text: &str) {
    let obeyed = |c: char| {
        c.is_control() && !"\n\t".contains(c) || "\u{202e}\u{200b}\u{2066}\u{feff}".contains(c)
    };
    assert!(!text.contains(obeyed), "{what}: {text:?}");
    // None of these commands prints that it succeeded.
    assert!(!text.lines().any(|line| line.starts_with("ok")), "{what}: {text:?}");
}

#[test]
fn package_contents_are_escaped_without_daemon() {
    let root = Root::new();
    let file = root.path().join("hostile.model.tar.zst");
    fs::write(&file, hostile_package(root.path())).unwrap();
    for command in ["verify", "install"] {
        let output = root.cli().args(["model", command]).arg(&file).output().unwrap();
        assert!(!output.status.success());
        let text = assert_harmless(command, output);
        assert!(text.contains("signed with key"), "{command}: {text}");
    }
}

#[test]
fn package_contents_are_escaped_with_daemon() {
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "m"), hostile_package(daemon.path())).unwrap();
    let reason = until_quarantined(&daemon, "m");
    assert_harmless_text("the reason in the quarantine", &reason);
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["status"],
        &["status", "--json"],
        &["events", "--no-follow"],
        &["events", "--no-follow", "--json"],
        &["top"],
    ] {
        let output = daemon.cli().args(arguments).env("TERM", "dumb").output().unwrap();
        let text = assert_harmless(&arguments.join(" "), output);
        if arguments[0] == "doctor" {
            assert!(text.contains("signed with key"), "{text}");
        }
    }
    daemon.stop();
}

#[test]
fn arguments_are_escaped_on_the_terminal() {
    let root = Root::new();
    let path = root.path().join(HOSTILE.replace('\n', ""));
    fs::write(&path, tiny_package()).unwrap();
    for arguments in [&["model", "install"][..], &["check"], &["no-such"]] {
        let output = root.cli().args(arguments).arg(&path).output().unwrap();
        assert_harmless(&arguments.join(" "), output);
    }
    let packed = root
        .cli()
        .args(["model", "pack", "--model-id", "m", "--source"])
        .arg(golden("tiny-bert-mean"))
        .arg("--output")
        .arg(&path)
        .output()
        .unwrap();
    assert!(packed.status.success());
    assert_harmless("model pack", packed);
}

#[test]
fn daemon_answers_are_escaped_on_the_terminal() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let answering = thread::spawn(move || {
        // One answer for each command below.
        for error in [true, false, false] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            let (status, body) = match error {
                true => (
                    "404 Not Found",
                    json!({ "error": { "message": HOSTILE, "type": "x", "param": null, "code": "x" } }),
                ),
                false => ("200 OK", json!({ "packages": [package()] })),
            };
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    for arguments in [&["model", "show", "m"][..], &["model", "list"], &["model", "list", "--json"]]
    {
        let output = cli().args(arguments).arg("--socket").arg(&socket).output().unwrap();
        let text = assert_harmless(&arguments.join(" "), output);
        assert!(text.contains("signed with key"), "{arguments:?}: {text}");
    }
    answering.join().unwrap();
}

/// Returns a package as the daemon describes it, with a hostile value for every text.
fn package() -> Value {
    let daemon = Root::new().start();
    let mut package = daemon.package("bundled-mini");
    daemon.stop();
    for value in package.as_object_mut().unwrap().values_mut() {
        if value.is_string() {
            *value = json!(HOSTILE);
        }
    }
    package
}
