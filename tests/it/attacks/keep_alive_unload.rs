//! Attack: a user repeats requests with `keep_alive: 0`, so that another user's model is unloaded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Daemon, Root, is_event};

fn with_two_tenants() -> Daemon {
    let tenants = json!([{ "name": "victim" }, { "name": "attacker" }]);
    Root::with_other().with("tenants", tenants).start()
}

fn embed_as(daemon: &Daemon, tenant: &str, keep_alive: Value) {
    let body = json!({ "model": "other", "input": "a", "keep_alive": keep_alive }).to_string();
    let headers = [("x-caxton-tenant", tenant)];
    let answer = daemon.connect().request("POST", "/api/embed", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Returns the status of the model `other`, if it is in memory.
fn in_memory(daemon: &Daemon) -> Option<Value> {
    let status = daemon.get("/api/memory/status").json();
    let models = status["models"].as_array().unwrap().clone();
    models.into_iter().find(|model| model["id"] == "other" && model["residency"] == "resident")
}

/// Returns how often the model `other` was unloaded.
fn unloads(daemon: &Daemon) -> usize {
    let is_unload =
        |line: &&String| is_event(line, Message::ModelUnloaded) && line.contains("model=other@2");
    daemon.log().iter().filter(is_unload).count()
}

#[test]
fn tenant_keep_alive_cannot_unload_models_of_others() {
    let daemon = with_two_tenants();
    embed_as(&daemon, "victim", json!(null));
    for _ in 0..20 {
        embed_as(&daemon, "attacker", json!(0));
        let other = in_memory(&daemon).expect("it stays for the victim");
        assert_eq!(other["expires_in_seconds"], json!(null));
    }
    assert_eq!(unloads(&daemon), 0);
    daemon.stop();
}

/// Checks that a model that no tenant needs is unloaded, and that the next time it stays for the
/// rest of a minute.
#[test]
fn keep_alive_unloads_a_model_once_a_minute() {
    let daemon = with_two_tenants();
    embed_as(&daemon, "victim", json!(null));
    embed_as(&daemon, "attacker", json!(0));
    embed_as(&daemon, "victim", json!(0));
    daemon.wait_event_with(Message::ModelUnloaded, &["model=other@2", "0s", "keep_alive"]);
    let once = unloads(&daemon);
    embed_as(&daemon, "attacker", json!(0));
    let stays = in_memory(&daemon).unwrap()["expires_in_seconds"].as_u64();
    assert!(stays.is_some_and(|stays| (30..=60).contains(&stays)), "{stays:?}");
    assert_eq!(unloads(&daemon), once, "it was unloaded again");
    daemon.stop();
}

#[test]
fn endless_keep_alive_is_limited_to_a_day() {
    let daemon = with_two_tenants();
    embed_as(&daemon, "attacker", json!(-1));
    let stays = in_memory(&daemon).unwrap()["expires_in_seconds"].as_u64();
    assert!(stays.is_some_and(|stays| (86_000..=86_400).contains(&stays)), "{stays:?}");
    daemon.stop();
}
