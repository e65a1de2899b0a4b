//! Attack: one user has long texts tokenized over many connections, and all other users wait.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::packages::until_answers;
use crate::support::{Daemon, Root, STRANGER, skipped};

/// Starts a daemon and a user whose texts the model `other` tokenizes, over a hundred connections.
fn attacked() -> (Daemon, Attacker) {
    let root = Root::with_other().with("socket.mode", json!("0666"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    until_answers(&daemon, "other");
    let body = json!({ "inputs": "a few words ".repeat(5 << 10), "model": "other" }).to_string();
    let length = body.len();
    let request = format!("POST /tokenize HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{body}");
    let flood = Attacker::flood(&daemon, STRANGER, 100, request.as_bytes());
    (daemon, flood)
}

#[test]
fn tokenizing_is_scheduled_fairly_between_users() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("tokenizing_is_scheduled_fairly_between_users", "root");
    }
    let (daemon, flood) = attacked();
    // The text is long enough to need a permit.
    let text = "a few words ".repeat(100);
    let mut took: Vec<Duration> = (0..10)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(daemon.embed(json!(text)).len(), 1);
            began.elapsed()
        })
        .collect();
    drop(flood);
    took.sort();
    // Without fair scheduling it would be the time of a hundred texts of 60 KiB.
    assert!(took[5] < Duration::from_millis(1000), "{took:?}");
    daemon.stop();
}

#[test]
fn request_waiting_to_tokenize_does_not_block_unload() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("request_waiting_to_tokenize_does_not_block_unload", "root");
    }
    let (daemon, flood) = attacked();
    let began = Instant::now();
    let unload = daemon.connect().request("DELETE", "/api/memory/models/other", &[], b"");
    assert_eq!(unload.status, 200, "{unload:?}");
    let took = began.elapsed();
    drop(flood);
    // The bound is the time of the two texts in progress, not of the hundred that wait.
    assert!(took < Duration::from_secs(2), "{took:?}");
    daemon.stop();
}
