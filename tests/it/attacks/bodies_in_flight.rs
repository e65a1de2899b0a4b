//! Attack: one user sends the largest bodies over many connections, so that the daemon exceeds its
//! memory limit and evicts models of other users.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::packages::ask;
use crate::support::{Daemon, Root, STRANGER, is_event, skipped};

const MIB: u64 = 1 << 20;
const EMBED: &[u8] =
    b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{\"input\":\"a\"}";

/// Daemon with the resident model `other`, and a user who holds large bodies without their end.
struct Attacked {
    daemon: Daemon,
    attack: Attacker,
    /// Resident memory of the daemon before the attack.
    resident_before: u64,
}

/// Starts the attack and waits until the daemon refuses one of its requests.
fn attacked() -> Attacked {
    let root = Root::with_other()
        .with("socket.mode", json!("0666"))
        .with("memory.memory_limit", json!("512MiB"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    assert_eq!(ask(&daemon, "other").status, 200);
    let resident_before = resident_bytes(&daemon);

    // Send everything but the end of the body, over each of 60 connections.
    let mut body = format!("POST /v1/embeddings HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 16 * MIB);
    body.push_str("{\"input\":\"");
    body.push_str(&"a word ".repeat(2 << 20));
    let attack = Attacker::hold(&daemon, STRANGER, 60, body.as_bytes());
    let line = daemon.wait_event(Message::BytesRefused);
    assert!(line.contains("uid=65534"), "{line}");
    Attacked { daemon, attack, resident_before }
}

fn resident_bytes(daemon: &Daemon) -> u64 {
    daemon.status()["resident_memory_bytes"].as_u64().unwrap()
}

fn metrics(daemon: &Daemon) -> String {
    String::from_utf8(daemon.get("/metrics").body).unwrap()
}

#[test]
fn request_bodies_are_limited_per_user() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("request_bodies_are_limited_per_user", "root");
    }
    let Attacked { daemon, attack, resident_before } = attacked();
    let grown = resident_bytes(&daemon).saturating_sub(resident_before);
    assert!(grown < 80 * MIB, "{} MiB more", grown / MIB);
    let metrics_now = metrics(&daemon);
    let held = metrics_now.lines().find_map(|line| line.strip_prefix("caxton_request_held_bytes "));
    let held: f64 = held.unwrap().parse().unwrap();
    assert!(held > 0.0 && held <= (33 * MIB) as f64, "{held}");

    drop(attack);
    daemon.until("the held bytes to be released", || {
        metrics(&daemon).contains("caxton_request_held_bytes 0\n").then_some(())
    });
    daemon.stop();
}

#[test]
fn request_bodies_do_not_disturb_other_users() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("request_bodies_do_not_disturb_other_users", "root");
    }
    let Attacked { daemon, attack, .. } = attacked();
    assert_eq!(Attacker::status(&daemon, 65_533, EMBED), 200);
    assert_eq!(ask(&daemon, "other").status, 200);
    assert_eq!(daemon.package("other")["residency"], "resident");
    let evicted = daemon.log().iter().any(|line| is_event(line, Message::ModelEvicted));
    assert!(!evicted, "a model was evicted");
    drop(attack);
    daemon.stop();
}
