//! Tests that every key which applies without a restart has an effect on a running daemon.
//!
//! The list of keys comes from the daemon. A key without a row here fails the test, and so does a
//! row without a key. Each row changes its key on the running daemon and observes the effect: in
//! answers, in `/status`, in `/metrics` or in the journal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::reranker::root_with_reranker;
use crate::support::packages::{
    ask, dropped, entry, set_record, until_answers, until_gone, until_looked, until_quarantined,
};
use crate::support::signing::Signer;
use crate::support::{Answer, Daemon, EMBEDDINGS, Root, STRANGER, pack, skipped};

/// A key, and the function that changes it and observes the effect.
type Row = (&'static str, fn(&mut Daemon));

/// Keys whose effects one daemon shows.
struct Group {
    /// Creates the root of the daemon.
    root: fn() -> Root,
    /// Brings the daemon into the state that the rows expect.
    prepare: fn(&mut Daemon),
    /// The rows, in this order.
    rows: &'static [Row],
}

const GROUPS: &[Group] = &[
    NAMES, FALLBACKS, MEMORY, EXPECTED, PRESSURE, QUEUE, STORE, ADMINS, UNSIGNED, STOP, FIXED,
    RANKS, RERANKS,
];

#[test]
fn every_live_key_takes_effect() {
    let rows: Vec<_> = GROUPS.iter().flat_map(|group| group.rows).map(|(key, _)| *key).collect();
    let keys: BTreeSet<_> = rows.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(keys.len(), rows.len(), "a key has two rows: {rows:?}");
    assert_eq!(keys, live_keys(), "left: keys with a row; right: live keys");
    thread::scope(|scope| {
        for group in GROUPS {
            scope.spawn(|| {
                let mut daemon = (group.root)().start();
                (group.prepare)(&mut daemon);
                for (_key, observe) in group.rows {
                    observe(&mut daemon);
                }
            });
        }
    });
}

/// Returns the keys that a daemon reports as live, with placeholders for the operator's names.
fn live_keys() -> BTreeSet<String> {
    let daemon = Root::new()
        .with("models.other.pinned", json!(false))
        .with("aliases.short.model", json!("other"))
        .start();
    let values = daemon.get("/api/configuration").json()["values"].clone();
    let live = values.as_array().unwrap().iter().filter(|value| value["restart"] == false);
    let name = |value: &Value| {
        let key = value["key"].as_str().unwrap();
        key.replace("models.other.", "models.<model>.")
            .replace("aliases.short.", "aliases.<alias>.")
    };
    let live = live.map(name).collect();
    daemon.stop();
    live
}

fn generation(daemon: &Daemon) -> u64 {
    daemon.status()["configuration"]["generation"].as_u64().unwrap()
}

/// Changes `key` on the running daemon, and waits until the change is applied.
fn change(daemon: &mut Daemon, key: &str, value: Value) {
    let before = generation(daemon);
    daemon.root_mut().set(key, value);
    daemon.until(&format!("the change of {key}"), || (generation(daemon) > before).then_some(()));
}

fn nothing(_daemon: &mut Daemon) {}

fn call(daemon: &Daemon, method: &str, path: &str, body: &Value) -> Answer {
    daemon.connect().request(method, path, &[], body.to_string().as_bytes())
}

/// Returns the model that answers a request for `model`; `None` for an error.
fn answered_by(daemon: &Daemon, model: Option<&str>) -> Option<String> {
    let answer = daemon.embeddings(&json!({ "input": "a text", "model": model }));
    let model = answer.header("x-caxton-model").filter(|_| answer.status == 200);
    model.map(str::to_owned)
}

fn memory(daemon: &Daemon) -> Value {
    let answer = daemon.get("/api/memory/status");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Returns the state of `other` in memory.
fn other(daemon: &Daemon) -> Value {
    let status = memory(daemon);
    let models = status["models"].as_array().unwrap();
    models.iter().find(|model| model["id"] == "other").cloned().unwrap_or(Value::Null)
}

fn until_other(daemon: &Daemon, residency: &str) {
    let what = format!("other to be {residency}");
    daemon.until(&what, || (other(daemon)["residency"] == residency).then_some(()));
}

fn unload_other(daemon: &Daemon) {
    let unloaded = call(daemon, "DELETE", "/api/memory/models/other", &Value::Null);
    assert_eq!(unloaded.status, 200, "{unloaded:?}");
}

fn set_limit(daemon: &Daemon, limit: &str) {
    let answer = call(daemon, "PUT", "/api/memory/limit", &json!({ "limit": limit }));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Names, aliases, tenants and limits on requests.
const NAMES: Group = Group {
    root: || {
        Root::with_other()
            .with("aliases.short.model", json!("bundled-mini"))
            .with("models.other.pinned", json!(false))
    },
    prepare: nothing,
    rows: &[
        ("socket.max_body", |daemon| {
            let body = json!({ "input": "long ".repeat(400) });
            assert_eq!(daemon.embeddings(&body).status, 200);
            change(daemon, "socket.max_body", json!("1KiB"));
            assert_eq!(daemon.embeddings(&body).status, 413);
            change(daemon, "socket.max_body", json!("16MiB"));
        }),
        ("memory.embedding_model", |daemon| {
            assert_eq!(answered_by(daemon, None).as_deref(), Some("bundled-mini@1"));
            change(daemon, "memory.embedding_model", json!("other"));
            assert_eq!(answered_by(daemon, None).as_deref(), Some("other@2"));
            change(daemon, "memory.embedding_model", json!("bundled-mini"));
        }),
        ("aliases.<alias>.model", |daemon| {
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("bundled-mini@1"));
            change(daemon, "aliases.short.model", json!("other"));
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("other@2"));
        }),
        ("aliases.<alias>.revision", |daemon| {
            change(daemon, "aliases.short.revision", json!("9.9"));
            assert_eq!(answered_by(daemon, Some("short")), None);
            change(daemon, "aliases.short.revision", json!("2"));
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("other@2"));
        }),
        ("aliases.<alias>.canary.model", |daemon| {
            let canary = json!({ "model": "bundled-mini", "percent": 100 });
            change(daemon, "aliases.short.canary", canary);
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("bundled-mini@1"));
        }),
        ("aliases.<alias>.canary.percent", |daemon| {
            change(daemon, "aliases.short.canary.percent", json!(0));
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("other@2"));
            change(daemon, "aliases.short.canary.percent", json!(100));
        }),
        ("aliases.<alias>.canary.revision", |daemon| {
            change(daemon, "aliases.short.canary.revision", json!("9.9"));
            assert_eq!(answered_by(daemon, Some("short")), None);
            change(daemon, "aliases.short.canary.revision", json!("1"));
            assert_eq!(answered_by(daemon, Some("short")).as_deref(), Some("bundled-mini@1"));
        }),
        ("tenants", |daemon| {
            let as_tenant = |daemon: &Daemon| {
                let (headers, body) = ([("x-caxton-tenant", "t")], br#"{"input":"a text"}"#);
                daemon.connect().request("POST", EMBEDDINGS, &headers, body).status
            };
            assert_eq!(as_tenant(daemon), 400);
            change(daemon, "tenants", json!([{ "name": "t" }]));
            assert_eq!(as_tenant(daemon), 200);
        }),
        ("embedding.allow_any_dimensions", |daemon| {
            let body = json!({ "input": "a text", "dimensions": 7 });
            assert_eq!(daemon.embeddings(&body).status, 400);
            change(daemon, "embedding.allow_any_dimensions", json!(true));
            assert_eq!(daemon.embeddings(&body).vectors()[0].len(), 7);
        }),
        ("models.<model>.max_sequence_length", |daemon| {
            // The texts differ at their ends only.
            let input = ["one", "two"].map(|end| "oil ".repeat(4) + end);
            let are_equal = |daemon: &Daemon| {
                let answer = daemon.embeddings(&json!({ "input": input, "model": "other" }));
                let vectors = answer.vectors();
                vectors[0] == vectors[1]
            };
            let length = |daemon: &Daemon| {
                daemon.get("/v1/models/other").json()["max_sequence_length"].as_u64().unwrap()
            };
            let own = length(daemon);
            assert!(!are_equal(daemon));
            change(daemon, "models.other.max_sequence_length", json!(8));
            daemon.until("truncated texts", || are_equal(daemon).then_some(()));
            assert_eq!(length(daemon), 8);
            change(daemon, "models.other.max_sequence_length", json!("model"));
            daemon.until("whole texts", || (!are_equal(daemon)).then_some(()));
            assert_eq!(length(daemon), own);
        }),
    ],
};

/// The choice of a fallback for a model that does not fit.
const FALLBACKS: Group = Group {
    root: || {
        let root = Root::with_other()
            .with("memory.min_free", json!("0B"))
            .with("memory.fallback_strategy", json!("manual"))
            .with("memory.fallback_models", json!([]))
            .with("models.bundled-mini.pinned", json!(true));
        let odd = pack("tiny-bert-odd", "odd", "1");
        fs::write(root.bundled().join("odd-1.model.tar.zst"), odd).unwrap();
        root
    },
    prepare: |daemon| set_limit(daemon, "1MiB"),
    rows: &[
        ("memory.fallback_models", |daemon| {
            assert_eq!(fallback_for(daemon, "other", Some(true)), None);
            change(daemon, "memory.fallback_models", json!(["bundled-mini"]));
            until_fallback(daemon, "other", Some(true));
        }),
        ("memory.fallback_strategy", |daemon| {
            change(daemon, "memory.fallback_strategy", json!("strict"));
            assert_eq!(fallback_for(daemon, "other", Some(true)), None);
            change(daemon, "memory.fallback_strategy", json!("auto"));
            until_fallback(daemon, "other", Some(true));
        }),
        ("memory.allow_fallback", |daemon| {
            assert_eq!(fallback_for(daemon, "other", None), None);
            change(daemon, "memory.allow_fallback", json!(true));
            until_fallback(daemon, "other", None);
        }),
        ("memory.allow_dimension_mismatch", |daemon| {
            assert_eq!(fallback_for(daemon, "odd", Some(true)), None);
            change(daemon, "memory.allow_dimension_mismatch", json!(true));
            until_fallback(daemon, "odd", Some(true));
        }),
    ],
};

/// Returns the model that answers for `model`, which does not fit.
fn fallback_for(daemon: &Daemon, model: &str, allow: Option<bool>) -> Option<String> {
    let mut body = json!({ "input": "a text", "model": model });
    if let Some(allow) = allow {
        body["allow_fallback"] = json!(allow);
    }
    let answer = daemon.embeddings(&body);
    if answer.status != 200 {
        assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("memory_limit")));
        return None;
    }
    assert!(answer.header("x-caxton-fallback-for").is_some(), "{answer:?}");
    answer.header("x-caxton-model").map(str::to_owned)
}

fn until_fallback(daemon: &Daemon, model: &str, allow: Option<bool>) {
    let answer = daemon.until("a fallback", || fallback_for(daemon, model, allow));
    assert_eq!(answer, "bundled-mini@1");
}

/// Models in memory, and limits on it.
const MEMORY: Group = Group {
    root: || {
        Root::with_other()
            .with("memory.min_free", json!("0B"))
            .with("models.other.pinned", json!(false))
    },
    prepare: nothing,
    rows: &[
        ("memory.max_loaded_models", |daemon| {
            change(daemon, "memory.max_loaded_models", json!(1));
            assert_eq!(ask(daemon, "other").status, 503);
            change(daemon, "memory.max_loaded_models", json!(3));
            until_answers(daemon, "other");
            unload_other(daemon);
        }),
        ("memory.preload_models", |daemon| {
            change(daemon, "memory.preload_models", json!(["bundled-mini", "other"]));
            until_other(daemon, "resident");
            unload_other(daemon);
            change(daemon, "memory.preload_models", json!([]));
        }),
        ("models.<model>.preload", |daemon| {
            change(daemon, "models.other.preload", json!(true));
            until_other(daemon, "resident");
        }),
        ("models.<model>.memory_priority", |daemon| {
            assert_eq!(other(daemon)["priority"], 3);
            change(daemon, "models.other.memory_priority", json!(5));
            assert_eq!(other(daemon)["priority"], 5);
        }),
        ("models.<model>.pinned", |daemon| {
            change(daemon, "models.other.pinned", json!(true));
            let refused = call(daemon, "DELETE", "/api/memory/models/other", &Value::Null);
            assert_eq!(refused.status, 409, "{refused:?}");
            change(daemon, "models.other.pinned", json!(false));
            unload_other(daemon);
        }),
        ("models.<model>.max_idle_time", |daemon| {
            until_answers(daemon, "other");
            assert_eq!(other(daemon)["expires_in_seconds"], Value::Null);
            let count = daemon.log().len();
            change(daemon, "models.other.max_idle_time", json!("1s"));
            daemon.wait_event_after(count, Message::ModelUnloaded, &["model=other@2+", " 1s"]);
            change(daemon, "models.other.max_idle_time", json!("never"));
        }),
        ("memory.max_idle_time", |daemon| {
            until_answers(daemon, "other");
            let count = daemon.log().len();
            change(daemon, "memory.max_idle_time", json!("1s"));
            daemon.wait_event_after(count, Message::ModelUnloaded, &["model=bundled-mini@1+"]);
            // The key of the model overrides the default, until it refers to it.
            assert_eq!(other(daemon)["residency"], "resident");
            change(daemon, "models.other.max_idle_time", json!("default"));
            daemon.wait_event_after(count, Message::ModelUnloaded, &["model=other@2+", " 1s"]);
            change(daemon, "memory.max_idle_time", json!("never"));
        }),
        ("memory.memory_limit", |daemon| {
            let limit = |daemon: &Daemon| memory(daemon)["configured_limit_bytes"].as_u64();
            change(daemon, "memory.memory_limit", json!("1MiB"));
            assert_eq!(limit(daemon), Some(1 << 20));
            let refusal = daemon.until("a refusal", || {
                let answer = ask(daemon, "other");
                (answer.status == 503).then_some(answer)
            });
            let message = refusal.error()["message"].to_string();
            assert!(message.contains("of memory.memory_limit"), "{message}");
            // A limit that an administrator sets stays until the key changes.
            set_limit(daemon, "auto");
            change(daemon, "memory.max_loaded_models", json!(4));
            assert_eq!(limit(daemon), None);
            let values = daemon.get("/api/configuration").json()["values"].clone();
            let rows = values.as_array().unwrap();
            let row = rows.iter().find(|row| row["key"] == "memory.memory_limit").unwrap();
            assert_eq!(row["value"], "auto", "the value in use");
            until_answers(daemon, "other");
            change(daemon, "memory.memory_limit", json!("64GiB"));
            assert_eq!(limit(daemon), Some(64 << 30));
        }),
    ],
};

/// A model that was used in every hour of the past weeks.
const EXPECTED: Group = Group {
    root: || {
        let daemon = Root::with_other().start();
        until_answers(&daemon, "other");
        let root = daemon.stop();
        let path = root.state().join("usage.json");
        let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for counts in file["models"].as_object_mut().unwrap().values_mut() {
            // Each bit is a week. The last one is this week: the model was not used in it yet.
            let hours = vec![0xfffe_u16; 168];
            let profile = &mut counts["habit"];
            if profile.is_object() {
                profile["used"] = json!(hours);
                profile["first"] = json!(0);
            }
        }
        fs::write(path, file.to_string()).unwrap();
        root.with("memory.preload_expected", json!(false))
    },
    prepare: nothing,
    rows: &[("memory.preload_expected", |daemon| {
        // Expected models are also loaded when a change is applied.
        change(daemon, "memory.max_loaded_models", json!(3));
        assert_ne!(other(daemon)["residency"], "resident");
        let count = daemon.log().len();
        change(daemon, "memory.preload_expected", json!(true));
        until_other(daemon, "resident");
        daemon.wait_event_after(count, Message::ModelLoading, &["model=other@2+", "probability"]);
    })],
};

/// Memory pressure: the limit is four times the memory in use.
const PRESSURE: Group = Group {
    root: || {
        Root::with_other()
            .with("memory.min_free", json!("0B"))
            .with("memory.fallback_models", json!([]))
            .with("memory.eviction_policy", json!("manual"))
            .with("memory.pressure", json!({ "recovery_time": "1h", "reload_cooldown": "1h" }))
            .with("models.bundled-mini.pinned", json!(true))
    },
    prepare: |daemon| {
        until_answers(daemon, "other");
        let process = memory(daemon)["process_bytes"].as_u64().unwrap();
        set_limit(daemon, &format!("{}B", 4 * process));
    },
    rows: &[
        ("memory.min_free", |daemon| {
            let headroom = |daemon: &Daemon| memory(daemon)["headroom_bytes"].as_u64().unwrap();
            let before = headroom(daemon);
            change(daemon, "memory.min_free", json!("1GiB"));
            daemon.until("less headroom", || (headroom(daemon) < before / 5 * 4).then_some(()));
            change(daemon, "memory.min_free", json!("0B"));
        }),
        ("memory.pressure.moderate", |daemon| {
            assert_eq!(memory(daemon)["level"], "normal");
            change(daemon, "memory.pressure.moderate", json!("5%"));
            until_level(daemon, "moderate");
        }),
        ("memory.pressure.high", |daemon| {
            change(daemon, "memory.pressure.high", json!("8%"));
            until_level(daemon, "high");
        }),
        ("memory.pressure.critical", |daemon| {
            change(daemon, "memory.pressure.critical", json!("10%"));
            until_level(daemon, "critical");
        }),
        ("memory.eviction_policy", |daemon| {
            daemon
                .until("rejected requests", || (memory(daemon)["shedding"] == true).then_some(()));
            assert_eq!(other(daemon)["residency"], "resident");
            change(daemon, "memory.eviction_policy", json!("memory_pressure"));
            until_other(daemon, "evicted");
        }),
        ("memory.pressure.recovery_time", |daemon| {
            let usual = json!({
                "moderate": "75%", "high": "85%", "critical": "95%",
                "recovery_time": "1h", "reload_cooldown": "1h",
            });
            change(daemon, "memory.pressure", usual);
            assert_eq!(memory(daemon)["level"], "critical");
            change(daemon, "memory.pressure.recovery_time", json!("1s"));
            until_level(daemon, "normal");
        }),
        ("memory.pressure.reload_cooldown", |daemon| {
            let refused = ask(daemon, "other");
            assert_eq!(refused.error()["code"], "memory_pressure");
            change(daemon, "memory.pressure.reload_cooldown", json!("0s"));
            until_answers(daemon, "other");
        }),
    ],
};

fn until_level(daemon: &Daemon, level: &str) {
    daemon
        .until(&format!("the level {level}"), || (memory(daemon)["level"] == level).then_some(()));
}

/// The queue and the passes of a resident model.
const QUEUE: Group = Group {
    root: || {
        let embedding = json!({
            "parallel_batches": 1, "max_batch_wait_ms": 0, "batch_tokens": 65_536,
        });
        Root::new().with("embedding", embedding)
    },
    prepare: nothing,
    rows: &[
        ("embedding.queue_size", |daemon| {
            assert!(refusals(daemon).is_empty(), "{CROWD} requests fit");
            change(daemon, "embedding.queue_size", json!(1));
            let refused = daemon.until("refused requests", || some(refusals(daemon)));
            assert!(refused.iter().all(|status| *status == 429), "{refused:?}");
        }),
        ("socket.overload_status", |daemon| {
            change(daemon, "socket.overload_status", json!(503));
            let refused = daemon.until("refused requests", || some(refusals(daemon)));
            assert!(refused.iter().all(|status| *status == 503), "{refused:?}");
            change(daemon, "embedding.queue_size", json!(1000));
        }),
        ("embedding.queue_tokens", |daemon| {
            daemon.until("a longer queue", || refusals(daemon).is_empty().then_some(()));
            change(daemon, "embedding.queue_tokens", json!(512));
            daemon.until("refused requests", || some(refusals(daemon)));
            change(daemon, "embedding.queue_tokens", json!(1_048_576));
        }),
        ("embedding.max_batch_wait_ms", |daemon| {
            let long = Duration::from_millis(400);
            daemon.until("an answer at once", || (gathering_time(daemon) < long).then_some(()));
            change(daemon, "embedding.max_batch_wait_ms", json!(1000));
            daemon.until("a gathered batch", || (gathering_time(daemon) >= long).then_some(()));
            change(daemon, "embedding.max_batch_wait_ms", json!(0));
        }),
        ("embedding.parallel_batches", |daemon| {
            for batches in [3, 4, 1] {
                change(daemon, "embedding.parallel_batches", json!(batches));
                // The worker's own thread may have ended its receiver, too.
                daemon.until("the threads of the batches", || {
                    [batches - 1, batches].contains(&batch_threads(daemon)).then_some(())
                });
            }
        }),
        ("embedding.batch_tokens", |daemon| {
            assert_eq!(batches(daemon), 1);
            change(daemon, "embedding.batch_tokens", json!(512));
            daemon.until("several batches", || (batches(daemon) > 5).then_some(()));
        }),
    ],
};

/// Number of clients that send requests at the same time.
const CROWD: usize = 8;

fn some(refused: Vec<u16>) -> Option<Vec<u16>> {
    (!refused.is_empty()).then_some(refused)
}

/// Returns a request of `texts` lists of token ids. Token ids need no tokenizing, so the model is
/// the slowest part and requests wait for it.
fn long_request(texts: usize) -> String {
    json!({ "input": vec![vec![5; 48]; texts] }).to_string()
}

/// Sends long requests at the same time, and returns the statuses of the refusals.
fn refusals(daemon: &Daemon) -> Vec<u16> {
    let body = long_request(1024);
    let mut connections: Vec<_> = (0..CROWD).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    }
    let statuses = connections.iter_mut().map(|connection| connection.answer().status);
    statuses.filter(|status| *status != 200).collect()
}

/// Returns the time in the queue of a request that follows requests that were sent together, so
/// that several of them are usually in the last batch.
fn gathering_time(daemon: &Daemon) -> Duration {
    let short = br#"{"input":"a text"}"#;
    let mut crowd: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for connection in &mut crowd {
        connection.ask("POST", EMBEDDINGS, &[], short);
    }
    for connection in &mut crowd {
        assert_eq!(connection.answer().status, 200);
    }
    let answer = crowd[0].request("POST", EMBEDDINGS, &[], short);
    assert_eq!(answer.status, 200);
    Duration::from_millis(answer.header("x-queue-time").unwrap().parse().unwrap())
}

/// Returns the number of the daemon's threads that compute further batches.
fn batch_threads(daemon: &Daemon) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    // A thread may end in the meantime.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "worker-batch").count()
}

/// Returns the number of batches in which a request is computed.
fn batches(daemon: &Daemon) -> u64 {
    let count = || {
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("caxton_batch_tokens_count "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = count();
    let answer = daemon.connect().request("POST", EMBEDDINGS, &[], long_request(100).as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    count() - before
}

/// The store and the packages.
const STORE: Group = Group {
    root: || {
        let root = Root::new()
            .with("memory.model_cache.cleanup_policy", json!("manual"))
            .with("packages.remove_with_file", json!(false));
        let daemon = root.start();
        assert!(installs(&daemon, "old", "1"));
        let root = daemon.stop();
        let used = json!({ "installed_at": 1_700_000_000, "last_access_at": 1_700_000_000 });
        set_record(&entry(&root, "old"), used);
        root.with("memory.model_cache.max_models", json!(1))
    },
    prepare: nothing,
    rows: &[
        ("memory.model_cache.unused_for", |daemon| {
            assert_eq!(daemon.package("old")["version"], "1");
            change(daemon, "memory.model_cache.unused_for", json!("1h"));
            until_gone(daemon, "old");
            change(daemon, "memory.model_cache.unused_for", json!("never"));
        }),
        ("packages.max_package_size", |daemon| {
            change(daemon, "packages.max_package_size", json!("1KiB"));
            assert!(!installs(daemon, "a", "1"));
            change(daemon, "packages.max_package_size", json!("64MiB"));
            assert!(installs(daemon, "a", "1"));
        }),
        ("memory.model_cache.max_models", |daemon| {
            assert!(!installs(daemon, "b", "1"));
            change(daemon, "memory.model_cache.max_models", json!(2));
            assert!(installs(daemon, "b", "1"));
        }),
        ("memory.model_cache.cleanup_policy", |daemon| {
            assert!(!installs(daemon, "c", "1"));
            change(daemon, "memory.model_cache.cleanup_policy", json!("fifo"));
            assert!(installs(daemon, "c", "1"));
            until_gone(daemon, "a");
            change(daemon, "memory.model_cache.cleanup_policy", json!("manual"));
            change(daemon, "memory.model_cache.max_models", json!(20));
        }),
        ("memory.model_cache.max_size_gb", |daemon| {
            change(daemon, "memory.model_cache.max_size_gb", json!(0.000_001));
            assert!(!installs(daemon, "d", "1"));
            change(daemon, "memory.model_cache.max_size_gb", json!(4));
            assert!(installs(daemon, "d", "1"));
        }),
        ("packages.updates", |daemon| {
            change(daemon, "packages.updates", json!("manual"));
            assert!(installs(daemon, "d", "2"));
            assert_eq!(answered_by(daemon, Some("d")).as_deref(), Some("d@1"));
            change(daemon, "packages.updates", json!("automatic"));
            assert!(installs(daemon, "d", "3"));
            assert_eq!(answered_by(daemon, Some("d")).as_deref(), Some("d@3"));
        }),
        ("packages.replace_embedding_space", |daemon| {
            let install = |daemon: &Daemon| {
                let package = pack("tiny-e5", "c", "2");
                daemon.connect().request("POST", "/api/packages", &[], &package).status
            };
            assert_ne!(install(daemon), 200);
            change(daemon, "packages.replace_embedding_space", json!(true));
            assert_eq!(install(daemon), 200);
        }),
        ("memory.model_cache.bundled_only", |daemon| {
            assert_eq!(answered_by(daemon, Some("b")).as_deref(), Some("b@1"));
            change(daemon, "memory.model_cache.bundled_only", json!(true));
            assert_eq!(answered_by(daemon, Some("b")), None);
            change(daemon, "memory.model_cache.bundled_only", json!(false));
            assert_eq!(answered_by(daemon, Some("b")).as_deref(), Some("b@1"));
        }),
        ("packages.remove_with_file", |daemon| {
            until_looked(daemon, "kept");
            fs::remove_file(dropped(daemon, "kept")).unwrap();
            until_looked(daemon, "left");
            change(daemon, "packages.remove_with_file", json!(true));
            fs::remove_file(dropped(daemon, "left")).unwrap();
            until_gone(daemon, "left");
            assert_eq!(ask(daemon, "kept").status, 200);
        }),
        ("packages.incomplete_timeout", |daemon| {
            let package = pack("tiny-bert-mean", "half", "1");
            fs::write(dropped(daemon, "half"), &package[..package.len() / 2]).unwrap();
            daemon.wait_event_with(Message::PackageIncomplete, &["half"]);
            change(daemon, "packages.incomplete_timeout", json!("1s"));
            until_quarantined(daemon, "half");
        }),
        ("memory.model_cache.validation_interval", |daemon| {
            let next = |daemon: &Daemon| daemon.status()["store"]["next_validation_at"].as_u64();
            let before = daemon.until("a scheduled validation", || next(daemon));
            change(daemon, "memory.model_cache.validation_interval", json!("1m"));
            // The interval counts from the last validation.
            daemon.until("an earlier validation", || {
                next(daemon).filter(|next| *next < before - 80_000)
            });
        }),
    ],
};

/// Installs a package. Returns whether it was accepted.
fn installs(daemon: &Daemon, id: &str, version: &str) -> bool {
    let package = pack("tiny-bert-mean", id, version);
    daemon.connect().request("POST", "/api/packages", &[], &package).status == 200
}

/// A model that was installed before there was a key.
const UNSIGNED: Group = Group {
    root: || {
        let daemon = Root::new().with("memory.fallback_strategy", json!("strict")).start();
        assert!(installs(&daemon, "old", "1"));
        let root = daemon.stop();
        Signer::new().trust(&root, "site.pub", "");
        root
    },
    prepare: nothing,
    rows: &[("packages.disable_unsigned", |daemon| {
        assert_eq!(ask(daemon, "old").status, 200);
        change(daemon, "packages.disable_unsigned", json!(true));
        daemon.until("a disabled model", || (ask(daemon, "old").status == 503).then_some(()));
        assert_eq!(daemon.package("old")["status"], "disabled");
        change(daemon, "packages.disable_unsigned", json!(false));
        until_answers(daemon, "old");
    })],
};

/// Administrators.
const ADMINS: Group = Group {
    root: || {
        let root = Root::new().with("socket.mode", json!("0666"));
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        root
    },
    prepare: nothing,
    rows: &[
        ("socket.admins.users", |daemon| {
            if !nix::unistd::geteuid().is_root() {
                return skipped("every_live_key_takes_effect: socket.admins.users", "root");
            }
            assert_eq!(flush_as_stranger(daemon), Some(77));
            change(daemon, "socket.admins.users", json!([STRANGER]));
            assert_eq!(flush_as_stranger(daemon), Some(0));
            change(daemon, "socket.admins.users", json!([]));
        }),
        ("socket.admins.groups", |daemon| {
            if !nix::unistd::geteuid().is_root() {
                return skipped("every_live_key_takes_effect: socket.admins.groups", "root");
            }
            assert_eq!(flush_as_stranger(daemon), Some(77));
            change(daemon, "socket.admins.groups", json!([STRANGER.to_string()]));
            assert_eq!(flush_as_stranger(daemon), Some(0));
        }),
    ],
};

/// Returns the exit code of a flush by a user without privileges.
fn flush_as_stranger(daemon: &Daemon) -> Option<i32> {
    daemon.cli_as_stranger(&["memory", "flush"]).status.code()
}

/// The log, and the stop of the daemon.
const STOP: Group = Group {
    root: || Root::new().with("log.level", json!("error")),
    prepare: nothing,
    rows: &[
        ("log.level", |daemon| {
            change(daemon, "memory.max_loaded_models", json!(3));
            let log = daemon.log();
            assert!(log.is_empty(), "{log:?}");
            change(daemon, "log.level", json!("info"));
            daemon.wait_event(Message::ConfigurationApplied);
        }),
        // The last row of a daemon: it stops.
        ("socket.drain_timeout", |daemon| {
            change(daemon, "socket.drain_timeout", json!("123s"));
            daemon.signal(Signal::SIGTERM);
            // The workers and the rest of the stop take 15 s in addition.
            daemon.wait_notified("EXTEND_TIMEOUT_USEC=138000000");
        }),
    ],
};

/// Keys with a single permitted value: any other one is refused while the daemon runs.
const FIXED: Group = Group {
    root: Root::new,
    prepare: nothing,
    rows: &[
        ("memory.backend", |daemon| {
            refuses(daemon, "memory.backend", json!("openai"), json!("embedded"));
        }),
        ("memory.model_cache.auto_download", |daemon| {
            let key = "memory.model_cache.auto_download";
            refuses(daemon, key, json!(true), json!(false));
        }),
        ("memory.download.enabled", |daemon| {
            refuses(daemon, "memory.download.enabled", json!(true), json!(false));
        }),
    ],
};

fn refuses(daemon: &mut Daemon, key: &str, other: Value, only: Value) {
    let before = generation(daemon);
    let problems = |daemon: &Daemon| daemon.status()["configuration"]["problems"].to_string();
    daemon.root_mut().set(key, other);
    daemon.until("a problem", || problems(daemon).contains(key).then_some(()));
    assert_eq!(generation(daemon), before);
    daemon.root_mut().set(key, only);
    daemon.until("no problem", || (problems(daemon) == "[]").then_some(()));
}

/// Requests that rank texts.
const RANKS: Group = Group {
    root: Root::with_other,
    prepare: nothing,
    rows: &[("memory.dynamic_selection", |daemon| {
        assert_eq!(ranks(daemon), "bundled-mini");
        change(daemon, "memory.dynamic_selection", json!(true));
        // `other` was made for questions and documents.
        assert_eq!(ranks(daemon), "other");
    })],
};

/// Requests that rank texts, with a reranker among the models.
const RERANKS: Group = Group {
    root: root_with_reranker,
    prepare: nothing,
    rows: &[("memory.rerank_model", |daemon| {
        assert_eq!(ranks(daemon), "bundled-mini");
        change(daemon, "memory.rerank_model", json!("reranker"));
        assert_eq!(ranks(daemon), "reranker");
        // The default model answers for a reranker that is not installed.
        change(daemon, "memory.rerank_model", json!("nowhere"));
        assert_eq!(ranks(daemon), "bundled-mini");
    })],
};

/// Returns the model that answers a request to rank texts without a model name.
fn ranks(daemon: &Daemon) -> Value {
    let answer = daemon.post("/v1/rank", &json!({ "query": "a", "documents": ["b", "c"] }));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["model"].clone()
}
