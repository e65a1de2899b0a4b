//! Tests of the usage counts of models, the recommendations from them, and their persistence over a
//! restart.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Daemon, EMBEDDINGS, Root, refused};

fn stats(daemon: &Daemon, id: &str) -> Value {
    let answer = daemon.get("/api/models/stats");
    assert_eq!(answer.status, 200, "{answer:?}");
    let models = answer.json()["models"].as_array().unwrap().clone();
    models.into_iter().find(|model| model["id"] == id).unwrap()
}

fn file(root: &Root) -> PathBuf {
    root.state().join("usage.json")
}

/// Sends three requests with two texts to `other`.
fn use_other(daemon: &Daemon) {
    for _ in 0..3 {
        let input = json!({ "input": ["a text", "another text"], "model": "other" });
        assert_eq!(daemon.embeddings(&input).status, 200);
    }
}

#[test]
fn requests_to_a_model_are_counted() {
    let daemon = Root::with_other().start();
    let before = stats(&daemon, "other");
    assert_eq!((&before["requests"], &before["installed"]), (&json!(0), &json!(true)));
    assert_eq!(
        (&before["success_rate"], &before["recent_latency_ms"]),
        (&json!(null), &json!(null))
    );
    use_other(&daemon);
    // The request is rejected before it reaches the model.
    assert_eq!(daemon.embeddings(&json!({ "input": [1 << 20], "model": "other" })).status, 400);
    let after = stats(&daemon, "other");
    for (field, expected) in [("requests", 3), ("failures", 0), ("texts", 6), ("loads", 1)] {
        assert_eq!(after[field], expected, "{field}: {after}");
    }
    assert_eq!(after["success_rate"], 1.0);
    assert!(after["tokens"].as_u64().unwrap() >= 6 * 3, "{after}");
    for field in ["load_ms", "uses_per_hour"] {
        assert!(after[field].as_f64().unwrap() > 0.0, "{field}: {after}");
    }
    let latency = &after["recent_latency_ms"];
    assert!(
        0.0 < latency["p50"].as_f64().unwrap()
            && latency["p50"].as_f64() <= latency["p95"].as_f64()
    );
    daemon.stop();
}

#[test]
fn stats_are_sorted_by_use_on_request() {
    let daemon = Root::with_other().start();
    use_other(&daemon);
    let ids = |path: &str| {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        let models = answer.json()["models"].as_array().unwrap().clone();
        Vec::from_iter(models.iter().map(|model| model["id"].as_str().unwrap().to_owned()))
    };
    assert_eq!(ids("/api/models/stats"), ["bundled-mini", "other"]);
    assert_eq!(ids("/api/models/stats?sort=use"), ["other", "bundled-mini"]);
    let wrong = daemon.get("/api/models/stats?sort=size");
    refused(&wrong, 400, "invalid_request", Some("sort"), &["size"]);
    let used = stats(&daemon, "other")["hours_used"].clone();
    // The uses may be in two hours.
    let hours = used["last_7_days"].as_u64().unwrap();
    assert!((1..=2).contains(&hours), "{used}");
    assert_eq!(used["previous_7_days"], 0);
    assert_eq!(stats(&daemon, "bundled-mini")["hours_used"], json!(null));
    // Midnight may lie between the uses.
    let daily = stats(&daemon, "other")["daily_requests"].clone();
    let daily = Vec::from_iter(daily.as_array().unwrap().iter().map(|day| day.as_u64().unwrap()));
    assert_eq!((daily.len(), daily[12] + daily[13]), (14, 3));
    assert_eq!(stats(&daemon, "bundled-mini")["daily_requests"], json!(null));
    daemon.stop();
}

#[test]
fn usage_counts_survive_a_restart() {
    let daemon = Root::with_other().start();
    use_other(&daemon);
    let before = stats(&daemon, "other");
    assert_eq!(before["requests"], 3);
    let daemon = daemon.stop().start();
    let again = stats(&daemon, "other");
    for field in ["requests", "texts", "tokens", "loads", "load_ms", "latency_ms", "first_used_at"]
    {
        assert_eq!(again[field], before[field], "{field}");
    }
    daemon.stop();
}

#[test]
fn damaged_usage_file_is_moved_aside() {
    let daemon = Root::with_other().start();
    use_other(&daemon);
    let root = daemon.stop();
    let damaged = fs::read_to_string(file(&root)).unwrap().replace("requests", "request");
    fs::write(file(&root), &damaged).unwrap();
    let daemon = root.start();
    let aside = daemon.state().join("usage.json.unreadable");
    let record = daemon.wait_event(Message::UsageNotKept);
    let moved_to = format!("moved_to={}", aside.display());
    assert!(record.contains(&moved_to) && record.contains("request"), "{record}");
    assert_eq!(stats(&daemon, "other")["requests"], 0);
    let root = daemon.stop();
    assert_eq!(fs::read_to_string(aside).unwrap(), damaged);
    assert!(file(&root).exists());
}

#[test]
fn full_queue_counts_as_model_failure() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Token ids need no tokenizing, so the model is the slowest part and requests wait for it.
    let body = json!({ "input": vec![vec![5; 48]; 2048] }).to_string();
    let mut crowd = Vec::from_iter((0..8).map(|_| daemon.connect()));
    for connection in &mut crowd {
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    }
    let statuses = Vec::from_iter(crowd.iter_mut().map(|connection| connection.answer().status));
    let refused = statuses.iter().filter(|status| **status == 429).count();
    let stats = stats(&daemon, "bundled-mini");
    assert!(refused > 0, "{statuses:?}");
    assert_eq!(
        (&stats["requests"], &stats["failures"]),
        (&json!(8), &json!(refused)),
        "{statuses:?}"
    );
    assert_eq!(stats["texts"], 2048 * (8 - refused));
    daemon.stop();
}

#[test]
fn recommendations_depend_on_task_and_latency() {
    let daemon = Root::with_other().start();
    let ask = |query: &str| {
        let answer = daemon.get(&format!("/api/models/recommendations{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["recommendations"].as_array().unwrap().clone()
    };
    let ids = |query: &str| Vec::from_iter(ask(query).iter().map(|model| model["id"].clone()));
    assert_eq!(ids(""), ["bundled-mini", "other"]);
    let found = ask("?task_type=retrieval&complexity=low");
    assert_eq!(
        (&found[0]["id"], &found[0]["suitability"]),
        (&json!("other"), &json!("made_for_it"))
    );
    assert_eq!((&found[0]["memory"], &found[0]["measured"]), (&json!("fits"), &json!(false)));
    assert_eq!((&found[1]["memory"], &found[1]["tier"]), (&json!("resident"), &json!("fast")));
    let reason = found[0]["reason"].as_str().unwrap();
    assert!(reason.contains("suits search") && reason.contains("no measured latency"), "{reason}");

    daemon.embed(json!("a text"));
    let measured = ask("?task_type=search&max_latency_ms=60000");
    assert_eq!(
        (&measured[0]["id"], &measured[0]["measured"]),
        (&json!("bundled-mini"), &json!(true))
    );
    assert_eq!((&measured[1]["id"], &measured[1]["p95_ms"]), (&json!("other"), &json!(null)));

    for (query, param, message) in [
        ("task_type=chat", "task_type", "expected embedding, similarity, search, retrieval"),
        ("task_type=", "task_type", "expected embedding"),
        ("complexity=extreme", "complexity", "expected low, medium, high"),
        ("max_latency_ms=0", "max_latency_ms", "at least 1"),
        ("max_latency_ms=soon", "max_latency_ms", "whole number"),
        ("complexity=low&complexity=high", "complexity", "twice"),
        ("task=search", "task", "expected task_type, complexity, max_latency_ms"),
    ] {
        let answer = daemon.get(&format!("/api/models/recommendations?{query}"));
        refused(&answer, 400, "invalid_request", Some(param), &[message]);
    }
    daemon.stop();
}

#[test]
fn stats_command_prints_table_or_json() {
    let daemon = Root::with_other().start();
    daemon.embed(json!(["a text", "another"]));
    let run = |arguments: &[&str]| {
        let output = daemon.cli().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = run(&["model", "stats"]);
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["MODEL", "VERSION", "REQUESTS", "FAILED"], "{table}");
    assert_eq!(rows[1][..5], ["bundled-mini", "1", "1", "0", "2"], "{table}");
    assert_eq!(rows[2][..6], ["other", "2", "0", "0", "0", "0"], "{table}");
    let json: Value = serde_json::from_str(&run(&["model", "stats", "--json"])).unwrap();
    assert_eq!(json["models"][0]["requests"], 1);
    use_other(&daemon);
    let sorted: Value =
        serde_json::from_str(&run(&["model", "stats", "--sort", "use", "--json"])).unwrap();
    assert_eq!(sorted["models"][0]["id"], "other");
    daemon.stop();
}
