//! Tests of the packages on their way as an operator sees them: what was found, what is waited for,
//! what failed, and when it is tried again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::io::Write;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{dropped, file_name, until_answers, until_looked};
use crate::support::{Daemon, Root, is_event, pack};

/// Waits until `/status` shows `file` in `state`, and returns what it shows.
fn until_state(daemon: &Daemon, file: &str, state: &str) -> Value {
    daemon.until(&format!("{file} in the state {state}"), || {
        let status = daemon.status();
        let intake = status["intake"].as_array().unwrap();
        intake.iter().find(|it| it["file"] == file && it["state"] == state).cloned()
    })
}

/// Waits until nothing is on its way.
fn until_empty(daemon: &Daemon) {
    daemon
        .until("no package on its way", || (daemon.status()["intake"] == json!([])).then_some(()));
}

/// Returns the events of `file` with this type.
fn events(daemon: &Daemon, kind: &str, file: &str) -> Vec<Value> {
    let answer = daemon.get("/v1/events?follow=false&since=0");
    let text = String::from_utf8(answer.body).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.map(|json| serde_json::from_str::<Value>(json).unwrap());
    events.filter(|event| event["type"] == kind && event["file"] == file).collect()
}

/// Returns the output of a command.
fn output(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = daemon.cli().args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn count(daemon: &Daemon, kind: Message) -> usize {
    daemon.log().iter().filter(|line| is_event(line, kind)).count()
}

#[test]
fn incomplete_package_is_shown_until_its_rest_arrives() {
    let daemon = Root::new().start();
    until_empty(&daemon);
    let (package, path) = (pack("tiny-bert-mean", "m", "1"), dropped(&daemon, "m"));
    let (first, rest) = package.split_at(package.len() / 2);
    fs::write(&path, first).unwrap();
    let file = file_name("m");
    let shown = until_state(&daemon, &file, "incomplete");
    assert_eq!(shown["bytes"], first.len());
    assert!(shown["expected_bytes"].is_null() && shown["retry_in_seconds"].is_null(), "{shown}");
    assert_eq!(shown["directory"], daemon.drop_directory().to_str().unwrap());
    assert!(!shown["reason"].as_str().unwrap().is_empty(), "{shown}");
    for command in ["status", "top"] {
        let text = output(&daemon, &[command]);
        assert!(text.contains(&file) && text.contains("incomplete"), "{text}");
    }
    let doctor = output(&daemon, &["doctor"]);
    assert!(doctor.contains("incoming") && doctor.contains(&file), "{doctor}");
    let waiting = events(&daemon, "package_waiting", &file);
    assert_eq!(waiting.last().unwrap()["state"], "incomplete", "{waiting:?}");

    OpenOptions::new().append(true).open(&path).unwrap().write_all(rest).unwrap();
    until_answers(&daemon, "m");
    until_empty(&daemon);
    daemon.stop();
}

#[test]
fn failed_package_is_shown_with_its_next_attempt() {
    let mut daemon = Root::new()
        .with("memory.model_cache.cleanup_policy", json!("manual"))
        .with("memory.model_cache.max_models", json!(1))
        .start();
    until_looked(&daemon, "a");
    fs::write(dropped(&daemon, "b"), pack("tiny-bert-mean", "b", "1")).unwrap();
    let file = file_name("b");
    let shown = until_state(&daemon, &file, "failed");
    let retry = shown["retry_in_seconds"].as_u64().unwrap();
    assert!((1..=600).contains(&retry), "{shown}");
    assert!(shown["reason"].as_str().unwrap().contains("the store is full"), "{shown}");
    let failed = events(&daemon, "package_failed", &file);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["retry_in_seconds"].as_u64().unwrap() <= 600, "{failed:?}");
    assert!(output(&daemon, &["status"]).contains("retried in"), "the status names the time");
    let doctor = output(&daemon, &["doctor", "--json"]);
    let doctor: Value = serde_json::from_str(&doctor).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let incoming = checks.iter().find(|check| check["name"] == "incoming").unwrap();
    assert_eq!(incoming["verdict"], "warn", "{incoming}");

    // Another scan is no event.
    fs::write(dropped(&daemon, "c"), "not a package").unwrap();
    daemon.wait_event_with(Message::PackageRefused, &[&file_name("c")]);
    assert_eq!(events(&daemon, "package_failed", &file).len(), 1);
    daemon.root_mut().set("memory.model_cache.max_models", json!(3));
    until_answers(&daemon, "b");
    until_empty(&daemon);
    daemon.stop();
}

#[test]
fn file_of_another_kind_is_mentioned_once() {
    let daemon = Root::new().start();
    let files = [
        ("m.tar.gz", "unpack it"),
        ("m.gguf", "another format"),
        ("model.safetensors", "tokenizer"),
        ("m.MODEL.TAR.ZST", "lower case"),
    ];
    for (file, _) in files {
        fs::write(daemon.drop_directory().join(file), "").unwrap();
    }
    fs::create_dir(daemon.drop_directory().join("model")).unwrap();
    fs::write(daemon.drop_directory().join("m.model.tar.zst.part"), "").unwrap();
    for (file, advice) in files.iter().chain([&("model", "directory")]) {
        daemon.wait_event_with(Message::NotAPackage, &[file, advice]);
        let shown = until_state(&daemon, file, "not_a_package");
        assert!(shown["reason"].as_str().unwrap().contains(advice), "{shown}");
    }
    until_looked(&daemon, "n");
    assert_eq!(count(&daemon, Message::NotAPackage), 5);
    daemon.until("only the other files in the status", || {
        (daemon.status()["intake"].as_array().unwrap().len() == 5).then_some(())
    });
    assert!(output(&daemon, &["status"]).contains("not a package"));
    // The file is not touched.
    assert!(daemon.drop_directory().join("m.gguf").exists());
    daemon.stop();
}

#[test]
fn many_other_files_do_not_flood_log_and_status() {
    let root = Root::new();
    for number in 0..500 {
        fs::write(root.drop_directory().join(format!("junk-{number}.txt")), "").unwrap();
    }
    let daemon = root.start();
    daemon.wait_event_with(Message::NotAPackage, &["484 files"]);
    until_looked(&daemon, "n");
    assert_eq!(count(&daemon, Message::NotAPackage), 17);
    daemon.until("the number of all files", || {
        let status = daemon.status();
        let shown = status["intake"].as_array().unwrap().len();
        ((shown, &status["intake_omitted"]) == (16, &json!(484))).then_some(())
    });
    daemon.stop();
}

#[test]
fn excluded_package_is_shown_as_kept_out() {
    let daemon = Root::new().with("memory.model_cache.bundled_only", json!(true)).start();
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    let shown = until_state(&daemon, &file_name("m"), "kept_out");
    assert!(shown["reason"].as_str().unwrap().contains("bundled_only"), "{shown}");
    assert_eq!(events(&daemon, "package_waiting", &file_name("m")).len(), 1);
    daemon.stop();
}

#[test]
fn removed_file_is_an_event_of_its_model() {
    let daemon = Root::new().start();
    until_looked(&daemon, "m");
    fs::remove_file(dropped(&daemon, "m")).unwrap();
    let removed = daemon.until("the event of the removal", || {
        let answer = daemon.get("/v1/events?follow=false&since=0");
        let text = String::from_utf8(answer.body).unwrap();
        text.split("\n\n").find(|event| event.contains("package_removed")).map(str::to_owned)
    });
    assert!(removed.contains("m@1") && removed.contains(&file_name("m")), "{removed}");
    daemon.stop();
}
