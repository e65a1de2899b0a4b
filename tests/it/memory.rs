//! Tests of a memory limit: the figures shown, evictions, rejections, and that the daemon survives.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::support::packages::{until_answers, until_looked};
use crate::support::{Answer, Daemon, EMBEDDINGS, Root, is_event, pack, refused};

const MIB: u64 = 1 << 20;

/// Creates a root with a short recovery time, in which the machine's own memory does not count.
fn root() -> Root {
    Root::with_other()
        .with("memory.min_free", json!("0B"))
        .with("memory.pressure", json!({ "recovery_time": "1s", "reload_cooldown": "1h" }))
}

fn memory(daemon: &Daemon) -> Value {
    let answer = daemon.get("/api/memory/status");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn model<'a>(status: &'a Value, id: &str) -> &'a Value {
    let models = status["models"].as_array().unwrap();
    models.iter().find(|model| model["id"] == id).unwrap_or(&Value::Null)
}

fn call(daemon: &Daemon, method: &str, path: &str, body: &str) -> Answer {
    daemon.connect().request(method, path, &[], body.as_bytes())
}

fn set_limit(daemon: &Daemon, limit: &str) {
    let answer = call(daemon, "PUT", "/api/memory/limit", &json!({ "limit": limit }).to_string());
    assert_eq!((answer.status, answer.json()), (200, json!({ "limit": limit })));
}

fn embed(daemon: &Daemon, model: &str) -> Answer {
    daemon.embeddings(&json!({ "input": "a text", "model": model }))
}

/// Loads `other`, and pins or unpins it. Returns whether it was resident before.
fn load_other(daemon: &Daemon, is_pinned: bool) -> Value {
    let body = json!({ "pinned": is_pinned }).to_string();
    let loaded = call(daemon, "POST", "/api/memory/models/other/load", &body);
    assert_eq!(loaded.status, 200, "{loaded:?}");
    loaded.json()["was_resident"].clone()
}

#[test]
fn memory_status_reports_level_and_resident_models() {
    let daemon = root().start();
    let status = memory(&daemon);
    assert_eq!((&status["level"], &status["shedding"]), (&json!("normal"), &json!(false)));
    assert!(status["headroom_bytes"].as_u64().unwrap() > MIB, "{status}");
    assert!(status["process_bytes"].as_u64().unwrap() > MIB, "{status}");
    assert_eq!(model(&status, "bundled-mini")["residency"], "resident");
    assert_eq!(model(&status, "other"), &Value::Null);
    daemon.stop();
}

#[test]
fn pinned_model_is_unloaded_only_after_unpinning() {
    let daemon = root().start();
    assert_eq!(load_other(&daemon, true), false);
    let other = model(&memory(&daemon), "other").clone();
    assert_eq!((&other["residency"], &other["pinned"]), (&json!("resident"), &json!(true)));
    assert!(other["peak_bytes"].as_u64() > other["weight_bytes"].as_u64(), "{other}");
    assert_eq!((&other["priority"], &other["expires_in_seconds"]), (&json!(3), &Value::Null));

    let pinned = call(&daemon, "DELETE", "/api/memory/models/other", "");
    refused(&pinned, 409, "pinned", None, &["caxton memory load other --unpin"]);
    assert_eq!(load_other(&daemon, false), true);
    let unloaded = call(&daemon, "DELETE", "/api/memory/models/other", "").json();
    assert_eq!(unloaded["was_resident"], true);
    let again = call(&daemon, "DELETE", "/api/memory/models/other", "").json();
    assert_eq!(again["was_resident"], false);
    assert_eq!(embed(&daemon, "other").status, 200);
    daemon.stop();
}

#[test]
fn flush_unloads_all_but_pinned_models() {
    let daemon = root().start();
    assert_eq!(load_other(&daemon, true), false);
    let flushed = call(&daemon, "POST", "/api/memory/flush", "").json();
    let left = flushed["unloaded"].as_array().unwrap();
    assert!(left.len() == 1 && left[0].as_str().unwrap().starts_with("bundled-mini@1+"));
    let status = memory(&daemon);
    assert_eq!(model(&status, "bundled-mini")["residency"], "unloaded");
    assert_eq!(model(&status, "other")["residency"], "resident");
    assert_eq!(status["actions"][0]["action"], "unload");
    // An unloaded model is loaded on request, so the daemon is still ready.
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.stop();
}

#[test]
fn invalid_memory_requests_are_rejected() {
    let daemon = root().start();
    refused(
        &call(&daemon, "DELETE", "/api/memory/models/none", ""),
        404,
        "model_not_found",
        Some("model"),
        &["none"],
    );
    let limits =
        ["512", "1023KiB", "0B", "1025GiB"].map(|limit| json!({ "limit": limit }).to_string());
    let limits = limits.iter().map(|body| ("PUT", "/api/memory/limit", body.as_str(), "limit"));
    let many = json!({ "models": vec!["m"; 33] }).to_string();
    let others = [
        ("POST", "/api/memory/flush", r#"{"idle_for":"10"}"#, "idle_for"),
        ("POST", "/api/memory/flush", r#"{"idle_for":"1m","caches_only":true}"#, "idle_for"),
        ("POST", "/api/memory/load", r#"{"models":[]}"#, "models"),
        ("POST", "/api/memory/load", many.as_str(), "models"),
        ("POST", "/api/memory/load", r#"{"models":["m"],"wait":"2"}"#, "wait"),
        ("POST", "/api/memory/models/other/load", r#"{"wait":"301s"}"#, "wait"),
        ("DELETE", "/api/memory/models/other?force=yes", "", "force"),
        ("DELETE", "/api/memory/models/other?forced=true", "", "forced"),
        ("GET", "/api/memory/status?sort=age", "", "sort"),
        ("GET", "/api/memory/status?sort=use&sort=use", "", "sort"),
    ];
    for (method, path, body, param) in limits.chain(others) {
        let answer = call(&daemon, method, path, body);
        refused(&answer, 400, "invalid_request", Some(param), &[param]);
    }
    daemon.stop();
}

#[test]
fn list_of_models_is_loaded_with_each_result() {
    let daemon = root().start();
    let body = json!({ "models": ["other", "none", "bundled-mini@1"] }).to_string();
    let answer = call(&daemon, "POST", "/api/memory/load", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let loaded = answer.json();
    assert_eq!(loaded["loaded"], 2);
    let results = loaded["results"].as_array().unwrap();
    let change = |index: usize, model: &str, was_resident: bool| {
        let change = &results[index]["change"];
        assert_eq!(
            (&change["model"], &change["was_resident"]),
            (&json!(model), &json!(was_resident))
        );
        assert!(
            change["bytes"].as_u64().unwrap() > 0 && change["precision"].is_string(),
            "{change}"
        );
        assert_eq!(results[index].get("error"), None);
    };
    change(0, "other@2", false);
    change(2, "bundled-mini@1", true);
    assert_eq!(results[1]["error"]["code"], "model_not_found");
    assert_eq!((&results[1]["name"], results[1].get("change")), (&json!("none"), None));
    daemon.stop();
}

#[test]
fn load_beyond_its_wait_is_answered_and_continues() {
    let daemon = root().start();
    let path = "/api/memory/models/other/load";
    // No load ends within a wait of 0.
    let early = call(&daemon, "POST", path, r#"{"wait":"0s"}"#);
    refused(&early, 503, "model_loading", None, &["other"]);
    assert!(early.header("retry-after").is_some(), "{early:?}");
    daemon.until("the load to end", || {
        (model(&memory(&daemon), "other")["residency"] == "resident").then_some(())
    });
    let body = r#"{"models":["other","bundled-mini"],"wait":"0s"}"#;
    assert_eq!(call(&daemon, "POST", "/api/memory/load", body).json()["loaded"], 2);
    daemon.stop();
}

#[test]
fn status_sums_and_sorts_models() {
    let daemon = root().start();
    assert_eq!(embed(&daemon, "other").status, 200);
    let status = |sort: &str| {
        let answer = daemon.get(&format!("/api/memory/status?sort={sort}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let by_memory = status("memory");
    let bytes = |status: &Value| {
        let models = status["models"].as_array().unwrap().iter();
        Vec::from_iter(models.map(|model| model["weight_bytes"].as_u64().unwrap()))
    };
    assert!(bytes(&by_memory).is_sorted_by(|a, b| a >= b), "{by_memory}");
    assert_eq!(by_memory["total_loaded_bytes"], bytes(&by_memory).iter().sum::<u64>());
    let counts = json!({ "loaded": 2, "loading": 0, "unloading": 0, "error": 0 });
    assert_eq!(by_memory["model_counts"], counts);
    let percent = by_memory["used_percent"].as_f64().unwrap();
    assert!(percent > 0.0 && percent <= 100.0, "{percent}");
    let by_name = status("name");
    assert_eq!(by_name["models"][0]["id"], "bundled-mini");
    let idle = |status: &Value| {
        let models = status["models"].as_array().unwrap().iter();
        Vec::from_iter(models.map(|model| model["idle_seconds"].as_u64()))
    };
    assert!(idle(&status("use")).is_sorted());
    daemon.stop();
}

#[test]
fn flush_of_idle_models_and_caches_keeps_others() {
    let daemon = root().start();
    assert_eq!(embed(&daemon, "other").status, 200);
    for body in [r#"{"idle_for":"1h"}"#, r#"{"caches_only":true}"#] {
        let flushed = call(&daemon, "POST", "/api/memory/flush", body);
        assert_eq!((flushed.status, &flushed.json()["unloaded"]), (200, &json!([])), "{body}");
    }
    assert_eq!(model(&memory(&daemon), "other")["residency"], "resident");
    daemon.wait_event(Message::MemoryFlushed);
    let flushed = call(&daemon, "POST", "/api/memory/flush", r#"{"idle_for":"0s"}"#).json();
    assert_eq!(flushed["unloaded"].as_array().unwrap().len(), 2, "{flushed}");
    let events = daemon.get("/v1/events?follow=false&since=0");
    assert!(String::from_utf8_lossy(&events.body).contains("memory_flushed"), "{events:?}");
    daemon.stop();
}

/// Checks that a forced unload rejects the requests that wait, with a time to retry, and ends a
/// request that is computed in parts.
#[test]
fn forced_unload_drops_waiting_requests() {
    let embedding = json!({ "parallel_batches": 1, "batch_tokens": 512 });
    let daemon = root().with("embedding", embedding).start();
    let body = json!({ "input": vec![vec![5; 48]; 2048] }).to_string();
    let mut connections: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    }
    daemon.until("waiting requests", || {
        (daemon.package("bundled-mini")["waiting"].as_u64() >= Some(2)).then_some(())
    });
    let path = "/api/memory/models/bundled-mini?force=true";
    let unloaded = call(&daemon, "DELETE", path, "");
    assert_eq!((unloaded.status, &unloaded.json()["model"]), (200, &json!("bundled-mini@1")));
    let answers = Vec::from_iter(connections.iter_mut().map(|connection| connection.answer()));
    let dropped = answers.iter().filter(|answer| answer.status != 200);
    let dropped = Vec::from_iter(dropped);
    assert!(!dropped.is_empty(), "{answers:?}");
    for answer in dropped {
        refused(answer, 503, "model_ended", None, &["bundled-mini"]);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    daemon.stop();
}

#[test]
fn limit_below_smallest_model_is_reported_until_lifted() {
    let installed = root().start().stop();
    let daemon = installed.with("memory.memory_limit", json!("1MiB")).start();
    daemon.wait_notified("STATUS=bundled-mini does not fit into memory (it needs ");
    let refusal = embed(&daemon, "bundled-mini");
    let message = "because of the 1.0 MiB of memory.memory_limit";
    refused(&refusal, 503, "memory_limit", None, &["it needs ", message]);
    assert_eq!(refusal.header("x-should-retry"), Some("false"));
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(daemon.get("/livez").status, 200);
    let problem = model(&memory(&daemon), "bundled-mini")["problem"].clone();
    assert!(problem.as_str().unwrap().starts_with("it needs "), "{problem}");

    set_limit(&daemon, "auto");
    assert_eq!(embed(&daemon, "bundled-mini").status, 200);
    daemon.stop();
}

/// Checks that a package is not installed while its model does not fit: an installation requires a
/// self-test, and a self-test requires memory.
#[test]
fn package_is_installed_once_its_model_fits() {
    let daemon = Root::without_bundled()
        .with("memory.memory_limit", json!("1MiB"))
        .with("memory.fallback_models", json!(["small"]))
        .start();
    let package = pack("tiny-bert-mean", "small", "1");
    let install = || daemon.connect().request("POST", "/api/packages", &[], &package);
    let refusal = install();
    let numbers = ["small@1", "it needs ", "because of the 1.0 MiB of memory.memory_limit"];
    refused(&refusal, 503, "memory_limit", None, &numbers);
    assert_eq!(refusal.header("x-should-retry"), Some("false"));
    assert_eq!(daemon.get("/api/packages").json()["packages"], json!([]));

    let file = daemon.drop_directory().join("small-1.model.tar.zst");
    std::fs::write(&file, &package).unwrap();
    let record = daemon.wait_event_with(Message::PackageNotInstalled, &["small-1.model.tar.zst"]);
    assert!(record.contains("it needs "), "{record}");
    assert!(file.exists());

    set_limit(&daemon, "auto");
    let installed = install();
    assert_eq!(installed.status, 200, "{installed:?}");
    let answer = embed(&daemon, "small");
    assert_eq!(answer.status, 200, "{answer:?}");
    daemon.stop();
}

#[test]
fn bundled_package_is_installed_once_its_model_fits() {
    let daemon = Root::new().with("memory.memory_limit", json!("1MiB")).start();
    let record = daemon.wait_event(Message::PackageNotInstalled);
    assert!(record.contains("bundled-mini") && record.contains("it needs "), "{record}");
    assert_eq!(daemon.get("/api/packages").json()["packages"], json!([]));
    set_limit(&daemon, "auto");
    // The daemon scans both directories when a file is dropped.
    until_looked(&daemon, "dropped");
    until_answers(&daemon, "bundled-mini");
    assert_eq!(daemon.package("bundled-mini")["origin"], "bundled");
    let log = daemon.log();
    let records = log.iter().filter(|line| is_event(line, Message::PackageNotInstalled));
    assert_eq!(records.count(), 1, "{log:#?}");
    daemon.stop();
}

#[test]
fn idle_model_is_unloaded_and_reloaded() {
    let daemon = root().with("models", json!({ "other": { "max_idle_time": "1s" } })).start();
    assert_eq!(embed(&daemon, "other").status, 200);
    assert_eq!(model(&memory(&daemon), "other")["expires_in_seconds"], 0);
    daemon.wait_event_with(Message::ModelUnloaded, &["model=other@2+", " 1s"]);
    assert_eq!(embed(&daemon, "other").status, 200);
    daemon.stop();
}

/// Checks that a load beyond the limit of models does not evict a model that was just loaded.
#[test]
fn load_beyond_max_loaded_models_is_rejected() {
    let daemon = root().with("memory.max_loaded_models", json!(1)).start();
    let refusal = embed(&daemon, "other");
    refused(&refusal, 503, "memory_limit", None, &[]);
    // The model in memory may be evicted after this time.
    assert_eq!(refusal.header("retry-after"), Some("30"));
    assert_eq!(embed(&daemon, "bundled-mini").status, 200);
    daemon.stop();
}

/// Starts a daemon, loads `other`, lowers the memory limit to the memory in use, and signals
/// pressure through a FIFO. Returns when `other` is evicted.
fn start_under_pressure() -> Daemon {
    let root = root();
    let fifo = root.path().join("pressure");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_caxtond"));
    program.env("MEMORY_PRESSURE_WATCH", &fifo);
    let daemon = Daemon::spawn(root, program);
    let ready = daemon.wait_notified("READY=1");
    assert!(ready.contains(&format!("{}", fifo.display())), "{ready}");
    // `other` is the last bundled package that is installed.
    until_answers(&daemon, "other");
    let process = memory(&daemon)["process_bytes"].as_u64().unwrap();

    signal(&fifo);
    set_limit(&daemon, &format!("{process}B"));
    daemon.until("other was evicted", || {
        (model(&memory(&daemon), "other")["residency"] == "evicted").then_some(())
    });
    daemon
}

fn signal(fifo: &Path) {
    OpenOptions::new().write(true).open(fifo).unwrap().write_all(b"!").unwrap();
}

#[test]
fn pressure_takes_every_step_until_eviction() {
    let daemon = start_under_pressure();
    let record = daemon.wait_event(Message::PressureEntered);
    assert!(record.contains("of memory.memory_limit"), "{record}");
    let status = memory(&daemon);
    let actions: Vec<_> =
        status["actions"].as_array().unwrap().iter().map(|action| &action["action"]).collect();
    for action in ["release_caches", "shrink_batches", "evict"] {
        assert!(actions.contains(&&json!(action)), "{action}: {status}");
    }
    daemon.stop();
}

#[test]
fn last_fallback_answers_under_pressure() {
    let daemon = start_under_pressure();
    let refusal = embed(&daemon, "other");
    refused(&refusal, 503, "memory_pressure", None, &[]);
    assert!(refusal.header("retry-after").is_some());
    assert_eq!(embed(&daemon, "bundled-mini").status, 200, "the last fallback answers");
    daemon.stop();
}

#[test]
fn evicted_model_cools_down_after_pressure() {
    let daemon = start_under_pressure();
    set_limit(&daemon, "auto");
    daemon.wait_event(Message::PressureLeft);
    // The cool-down of the evicted model has not ended yet.
    refused(&embed(&daemon, "other"), 503, "memory_pressure", None, &[]);
    daemon.stop();
}

/// Checks that alternating requests for two models, of which only one may be loaded, do not make
/// them replace each other.
#[test]
fn alternating_requests_do_not_thrash() {
    let daemon = root()
        .with("memory.fallback_models", json!([]))
        .with("memory.pressure", json!({ "recovery_time": "1s", "reload_cooldown": "1s" }))
        .with("memory.max_loaded_models", json!(1))
        .start();
    let mut answered = 0;
    for turn in 0..60 {
        let answer = embed(&daemon, ["other", "bundled-mini"][turn % 2]);
        match answer.status {
            200 => answered += 1,
            _ => {
                refused(&answer, 503, "memory_limit", None, &[]);
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
            }
        }
    }
    assert_eq!(answered, 30, "the resident model answers every request");
    let stats = daemon.get("/api/models/stats").json();
    let loads = stats["models"].as_array().unwrap().iter().map(|model| model["loads"].as_u64());
    assert_eq!(loads.map(Option::unwrap).sum::<u64>(), 1);
    daemon.stop();
}

#[test]
fn memory_command_shows_loads_and_unloads_models() {
    let daemon = root().start();
    let run = |arguments: &[&str]| {
        let output = daemon.cli().arg("memory").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["load", "other", "--pin"]).contains("other@2  loaded"));
    let status = run(&["status"]);
    assert!(status.contains("level") && status.contains("normal"), "{status}");
    assert!(
        status.contains("other         2        resident") && status.contains("pinned"),
        "{status}"
    );
    assert!(run(&["flush"]).contains("bundled-mini@1+"));
    assert!(run(&["load", "other", "--unpin"]).contains("other@2  already loaded"));
    let unloaded = run(&["unload", "other"]);
    assert!(unloaded.contains("other@2  unloaded"), "{unloaded}");
    let several = run(&["load", "other", "bundled-mini"]);
    for model in ["other@2 ", "bundled-mini@1 "] {
        let row = several.lines().find(|line| line.starts_with(model)).unwrap();
        assert!(row.contains("loaded, ") && row.contains(" in "), "{several}");
    }
    let missing = daemon.cli().args(["memory", "load", "other", "none"]).output().unwrap();
    assert!(!missing.status.success());
    let shown = String::from_utf8(missing.stdout).unwrap();
    assert!(shown.contains("already loaded") && shown.contains("failed: "), "{shown}");
    assert!(run(&["flush", "--idle", "1h"]).contains("none"));
    assert!(run(&["flush", "--caches"]).contains("none"));
    let sorted = run(&["status", "--sort", "memory"]);
    assert!(sorted.contains("weights of models") && sorted.contains("used"), "{sorted}");
    assert!(run(&["unload", "other", "--force"]).contains("other@2  unloaded"));
    assert!(run(&["limit", "512MiB"]).contains("512MiB"));
    assert!(run(&["status"]).contains("512.0 MiB (memory.memory_limit)"));
    assert!(run(&["limit", "auto"]).contains("auto"));
    daemon.stop();
}
