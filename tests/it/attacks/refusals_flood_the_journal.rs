//! Attack: one user sends requests that are refused as fast as it can, so that journald limits the
//! daemon and other records are lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::attacker::Attacker;
use crate::support::{Root, STRANGER, is_event, skipped};

#[test]
fn refusals_are_logged_once_for_each_user() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("refusals_are_logged_once_for_each_user", "root");
    }
    let root = Root::new().with("socket.mode", json!("0666"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = root.start();
    let flush = b"POST /api/memory/flush HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let _flood = Attacker::flood(&daemon, STRANGER, 50, flush);
    assert_eq!(Attacker::status(&daemon, 65_533, flush), 403);
    daemon.wait_event_with(Message::AccessRefused, &["uid=65533"]);
    for uid in ["uid=65534", "uid=65533"] {
        let records = daemon.log();
        let is_of_user =
            |line: &&String| is_event(line, Message::AccessRefused) && line.contains(uid);
        assert_eq!(records.iter().filter(is_of_user).count(), 1, "{uid}");
    }
    daemon.stop();
}
