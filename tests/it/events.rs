//! Tests of events as clients receive them: their content and order, where a stream starts, and
//! when it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{dropped, until_answers, until_quarantined};
use crate::support::{Answer, Connection, Daemon, Root, pack, refused};

/// Returns the data of the events in an answer.
fn events_of(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|json| serde_json::from_str(json).unwrap()).collect()
}

/// Returns the events that the daemon remembers after the id `since`.
fn remembered(daemon: &Daemon, since: u64) -> Vec<Value> {
    events_of(&daemon.get(&format!("/v1/events?follow=false&since={since}")))
}

/// Waits for an event of the type `kind`, and of `model` unless it is empty.
fn wait(daemon: &Daemon, kind: &str, model: &str) -> Value {
    daemon.until(&format!("{kind} {model}"), || {
        let of =
            |event: &&Value| event["type"] == kind && (model.is_empty() || event["model"] == model);
        remembered(daemon, 0).iter().find(of).cloned()
    })
}

fn call(daemon: &Daemon, method: &str, path: &str, body: &str) {
    let answer = daemon.connect().request(method, path, &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Creates a root with a second model, in which memory is short only at a limit that a test sets.
fn root() -> Root {
    Root::with_other()
        .with("memory.min_free", json!("0B"))
        .with("memory.pressure", json!({ "recovery_time": "1s", "reload_cooldown": "1h" }))
}

/// Opens a stream of all events since the start.
fn listen(daemon: &Daemon) -> Connection {
    let mut listening = daemon.connect();
    listening.ask("GET", "/v1/events?since=0", &[], b"");
    listening
}

/// Stops the daemon, which ends the stream. Checks that the ids of the streamed events are
/// consecutive, and that `kinds` are among their types in this order.
fn assert_streamed(daemon: Daemon, mut listening: Connection, kinds: &[&str]) {
    daemon.stop();
    let events = events_of(&listening.answer());
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a + 1 == *b), "{ids:?}");
    assert!(events.iter().all(|event| event["at"].as_u64().unwrap() > 1_600_000_000));
    let mut found = events.iter().map(|event| event["type"].as_str().unwrap());
    for kind in ["configuration_applied", "package_accepted", "model_loaded"].iter().chain(kinds) {
        assert!(found.any(|next| next == *kind), "{kind}: {events:#?}");
    }
}

#[test]
fn load_and_unload_are_streamed_in_order() {
    let daemon = root().start();
    let listening = listen(&daemon);
    until_answers(&daemon, "other");
    let loaded = wait(&daemon, "model_loaded", "other@2");
    assert!(loaded["bytes"].as_u64().unwrap() > 0 && loaded["duration_ms"].is_u64(), "{loaded}");
    call(&daemon, "DELETE", "/api/memory/models/other", "");
    let unloaded = wait(&daemon, "model_unloaded", "other@2");
    assert_eq!(unloaded["reason"], "an administrator requested it");
    until_answers(&daemon, "other");
    let kinds = ["model_loaded", "model_unloaded", "model_loaded"];
    assert_streamed(daemon, listening, &kinds);
}

#[test]
fn memory_pressure_and_eviction_are_streamed() {
    let daemon = root().start();
    let listening = listen(&daemon);
    until_answers(&daemon, "other");
    let process = daemon.get("/api/memory/status").json()["process_bytes"].as_u64().unwrap();
    // Half of the present memory: releasing caches is not enough.
    let limit = json!({ "limit": format!("{}B", process / 2) }).to_string();
    call(&daemon, "PUT", "/api/memory/limit", &limit);
    let pressure = wait(&daemon, "pressure_changed", "");
    assert_eq!(pressure["level_before"], "normal");
    assert!(pressure["reason"].as_str().unwrap().contains("memory.memory_limit"), "{pressure}");
    wait(&daemon, "model_evicted", "other@2");
    call(&daemon, "PUT", "/api/memory/limit", r#"{"limit":"auto"}"#);
    let kinds = ["model_loaded", "pressure_changed", "model_evicted"];
    assert_streamed(daemon, listening, &kinds);
}

#[test]
fn package_events_name_their_file() {
    let daemon = root().start();
    let listening = listen(&daemon);
    fs::write(dropped(&daemon, "third"), pack("tiny-bert-mean", "third", "1")).unwrap();
    until_answers(&daemon, "third");
    assert_eq!(wait(&daemon, "package_accepted", "third@1")["file"], "third.model.tar.zst");
    fs::write(dropped(&daemon, "bad"), "this is no package").unwrap();
    until_quarantined(&daemon, "bad");
    assert_eq!(wait(&daemon, "package_refused", "")["file"], "bad.model.tar.zst");
    assert_streamed(daemon, listening, &["package_accepted", "package_refused"]);
}

#[test]
fn configuration_events_list_the_problems() {
    let mut daemon = root().start();
    let listening = listen(&daemon);
    daemon.root_mut().set("embedding.queue_size", json!(500));
    daemon.wait_event(Message::ConfigurationApplied);
    daemon.write_config("nonsense: true\n");
    let wrong = wait(&daemon, "configuration_refused", "");
    assert!(wrong["problems"][0].as_str().unwrap().contains("nonsense"), "{wrong}");
    daemon.write_settings();
    let kinds = ["configuration_applied", "configuration_refused"];
    assert_streamed(daemon, listening, &kinds);
}

#[test]
fn event_stream_resumes_after_last_id() {
    let daemon = Root::with_other().start();
    let first = remembered(&daemon, 0);
    let last = first.last().unwrap()["id"].as_u64().unwrap();
    assert_eq!(remembered(&daemon, last), [] as [Value; 0]);
    until_answers(&daemon, "other");
    let id = last.to_string();
    let mut connection = daemon.connect();
    // The header overrides the parameter, because a browser repeats the parameter unchanged when it
    // reconnects.
    let path = "/v1/events?follow=false&since=0";
    let later = events_of(&connection.request("GET", path, &[("last-event-id", &id)], b""));
    assert_eq!((later.len(), &later[0]["model"]), (1, &json!("other@2")));

    let wrong = [("/v1/events?since=yesterday", "since"), ("/v1/events?until=1", "until")];
    for (path, param) in wrong {
        refused(&daemon.get(path), 400, "invalid_request", Some(param), &[]);
    }
    let answer = connection.request("GET", "/v1/events", &[("last-event-id", "x")], b"");
    refused(&answer, 400, "invalid_request", Some("last-event-id"), &[]);
    daemon.stop();
}

#[test]
fn command_line_follows_events() {
    let daemon = Root::with_other().start();
    let output = daemon.cli().args(["events", "--no-follow"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && shown.contains("Z  model loaded bundled-mini@1 "),
        "{shown}"
    );

    let mut following = daemon.cli();
    let mut following =
        following.args(["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut until = |model: &str| {
        let mut events = lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let found =
            events.find(|event: &Value| event["type"] == "model_loaded" && event["model"] == model);
        assert!(found.is_some(), "{model}");
    };
    // The stream has the events from before the connection, followed by later ones.
    until("bundled-mini@1");
    until_answers(&daemon, "other");
    until("other@2");
    daemon.stop();
    assert!(following.wait().unwrap().success());
}
