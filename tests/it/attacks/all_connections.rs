//! Attack: one user opens as many connections as are permitted and holds them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::{Daemon, Root, STRANGER, cli, skipped};

/// A user without earlier requests.
const VICTIM: u32 = 65_533;
const EMBED: &[u8] =
    b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{\"input\":\"a\"}";
const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n";

fn open_to_all() -> Daemon {
    let root = Root::new().with("socket.mode", json!("0666"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    root.start()
}

/// Checks that root and another user are served while one user holds many connections.
fn others_are_served(daemon: &Daemon) {
    assert_eq!(daemon.embed(json!("a")).len(), 1);
    let status = cli().arg("status").arg("--socket").arg(daemon.socket()).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    for _ in 0..3 {
        assert_eq!(Attacker::status(daemon, VICTIM, EMBED), 200);
    }
    assert_eq!(Attacker::status(daemon, STRANGER, LIVEZ), 200, "health routes have room");
}

#[test]
fn event_streams_are_limited_per_user() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("event_streams_are_limited_per_user", "root");
    }
    let daemon = open_to_all();
    let stream = b"GET /v1/events HTTP/1.1\r\nhost: a\r\n\r\n";
    let _streams = Attacker::hold(&daemon, STRANGER, 256, stream);
    others_are_served(&daemon);
    let line = daemon.wait_event(Message::StreamsRefused);
    assert!(line.contains("uid=65534") && line.contains("held=2"), "{line}");
    assert_eq!(Attacker::status(&daemon, STRANGER, stream), 429);
    assert_eq!(Attacker::status(&daemon, VICTIM, stream), 200);
    daemon.stop();
}

#[test]
fn idle_connections_yield_to_others() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("idle_connections_yield_to_others", "root");
    }
    let daemon = open_to_all();
    let _idle = Attacker::hold(&daemon, STRANGER, 300, b"");
    others_are_served(&daemon);
    let line = daemon.wait_event(Message::ConnectionLimit);
    assert!(line.contains("holder=65534") && line.contains("held=248"), "{line}");
    daemon.stop();
}

#[test]
fn unfinished_bodies_yield_to_others() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("unfinished_bodies_yield_to_others", "root");
    }
    let daemon = open_to_all();
    let slow = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{";
    let _slow = Attacker::hold(&daemon, STRANGER, 260, slow);
    others_are_served(&daemon);
    daemon.stop();
}

/// Checks that a connection that the daemon closes for another user still gets its answer.
#[test]
fn connection_closed_for_others_gets_its_answer() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("connection_closed_for_others_gets_its_answer", "root");
    }
    let root =
        Root::new().with("socket.mode", json!("0666")).with("socket.max_connections", json!(3));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    let body = json!({ "input": vec![vec![5; 48]; 64] }).to_string();
    let mut busy: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for connection in &mut busy {
        connection.ask("POST", "/v1/embeddings", &[], body.as_bytes());
    }
    daemon.until("all connections to be in use", || {
        let answer = daemon.connect().request("GET", "/v1/models", &[], b"");
        (answer.status == 503).then_some(())
    });
    assert_eq!(Attacker::status(&daemon, VICTIM, EMBED), 200);
    for connection in &mut busy {
        assert_eq!(connection.answer().status, 200);
    }
    daemon.stop();
}
