//! Attack: a user repeats requests with `keep_alive: 0`, so that another user's model is unloaded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::support::{Daemon, Root};

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

#[test]
fn tenant_keep_alive_cannot_unload_models_of_others() {
    let daemon = Root::with_other()
        .with("tenants", json!([{ "name": "victim" }, { "name": "attacker" }]))
        .start();
    embed_as(&daemon, "victim", json!(null));
    for _ in 0..20 {
        embed_as(&daemon, "attacker", json!(0));
        let other = in_memory(&daemon).expect("it stays for the victim");
        assert_eq!(other["expires_in_seconds"], json!(null));
    }
    let left = |daemon: &Daemon| {
        daemon.log().iter().filter(|line| line.contains("its keep_alive")).count()
    };
    assert_eq!(left(&daemon), 0);

    // Neither tenant needs the model any more, so it is unloaded. The next time it stays for the
    // rest of a minute.
    embed_as(&daemon, "victim", json!(0));
    daemon.wait_log("not used for 0s, its keep_alive");
    let once = left(&daemon);
    embed_as(&daemon, "attacker", json!(0));
    let stays = in_memory(&daemon).unwrap()["expires_in_seconds"].as_u64();
    assert!(stays.is_some_and(|stays| (30..=60).contains(&stays)), "{stays:?}");
    assert_eq!(left(&daemon), once, "it did not leave again");

    // A keep_alive without end is limited to a day.
    embed_as(&daemon, "attacker", json!(-1));
    let stays = in_memory(&daemon).unwrap()["expires_in_seconds"].as_u64();
    assert!(stays.is_some_and(|stays| (86_000..=86_400).contains(&stays)), "{stays:?}");
    daemon.stop();
}
