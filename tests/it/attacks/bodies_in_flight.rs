//! Attack: one user sends the largest bodies over many connections, so that the daemon exceeds its
//! memory limit and evicts models of other users.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::{Root, STRANGER, skipped};

const MIB: u64 = 1 << 20;
const EMBED: &[u8] =
    b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{\"input\":\"a\"}";

#[test]
fn request_bodies_are_limited_per_user() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("request_bodies_are_limited_per_user", "root");
    }
    let root = Root::with_other()
        .with("socket.mode", json!("0666"))
        .with("memory.memory_limit", json!("512MiB"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    let with_other = json!({ "input": "a", "model": "other" });
    assert_eq!(daemon.embeddings(&with_other).status, 200);
    let resident = || daemon.status()["resident_memory_bytes"].as_u64().unwrap();
    let before = resident();

    // Send everything but the end of the body, over each of 60 connections.
    let mut body = format!("POST /v1/embeddings HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 16 * MIB);
    body.push_str("{\"input\":\"");
    body.push_str(&"a word ".repeat(2 << 20));
    let attack = Attacker::hold(&daemon, STRANGER, 60, body.as_bytes());
    let logged = daemon.wait_log("was refused a request");
    assert!(logged.contains("uid=65534"), "{logged}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 80 * MIB, "{} MiB more", grown / MIB);
    // Other users notice nothing: their models stay and their requests are answered.
    assert_eq!(Attacker::status(&daemon, 65_533, EMBED), 200);
    assert_eq!(daemon.embeddings(&with_other).status, 200);
    assert_eq!(daemon.package("other")["residency"], "resident");
    let evicted = daemon.log().iter().any(|line| line.contains("evicted"));
    assert!(!evicted, "a model was evicted");
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let held = metrics.lines().find_map(|line| line.strip_prefix("caxton_request_held_bytes "));
    let held: f64 = held.unwrap().parse().unwrap();
    assert!(held > 0.0 && held <= (33 * MIB) as f64, "{held}");

    drop(attack);
    daemon.until("the bytes to be given back", || {
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        metrics.contains("caxton_request_held_bytes 0\n").then_some(())
    });
    daemon.stop();
}
