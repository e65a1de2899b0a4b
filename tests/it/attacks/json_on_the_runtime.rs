//! Attack: one user sends large JSON over many connections. If it is parsed on the runtime, the
//! health routes do not answer, and the watchdog kills the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::{Root, STRANGER, skipped};

#[test]
fn large_json_does_not_block_health_routes() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("large_json_does_not_block_health_routes", "root");
    }
    let root = Root::new().with("socket.mode", json!("0666"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    // The body is wrong at its very end, so that no vector is computed.
    let ids = "1,".repeat(4 << 20);
    let length = ids.len() + 14;
    let body = format!(
        "POST /v1/embeddings HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{{\"input\":[{ids}-1]}}"
    );
    let flood = Attacker::flood(&daemon, STRANGER, 24, body.as_bytes());
    let mut connection = daemon.connect();
    let mut took: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(connection.request("GET", "/livez", &[], b"").status, 200);
            began.elapsed()
        })
        .collect();
    drop(flood);
    took.sort();
    // One body takes a tenth of a second here, and 24 connections repeat it.
    assert!(took[10] < Duration::from_millis(250), "{took:?}");
    daemon.stop();
}
