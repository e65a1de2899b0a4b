//! Attack: the daemon's user rewrites the configuration that is kept for a start with wrong files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use caxton::package::Digest;
use caxton::telemetry::log::Message;
use nix::unistd::geteuid;
use serde_json::json;

use crate::support::{Daemon, Root, STRANGER, skipped};

/// Starts a daemon with an invalid configuration, after its last good configuration was forged so
/// that the stranger is an administrator.
fn started_with_forged_configuration() -> Daemon {
    let root = Root::new().with("socket.mode", json!("0666"));
    let kept = root.path().join("kept");
    fs::create_dir(&kept).unwrap();
    // Open the directory: a user without access to it has no access to its socket.
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let start = |root: Root| {
        let daemon = root.spawn_with(|program| {
            program.env("STATE_DIRECTORY", &kept);
        });
        daemon.wait_notified("READY=1");
        daemon
    };
    let daemon = start(root.with("socket.admins", json!({ "users": [0], "groups": [] })));
    let file = kept.join("last-good.yaml");
    daemon.until("the last good configuration", || file.exists().then_some(()));
    let root = daemon.stop();

    let good = fs::read_to_string(&file).unwrap();
    let (_, body) = good.split_once('\n').unwrap();
    let forged = body.replace("users: [\"0\"]", &format!("users: [\"0\", \"{STRANGER}\"]"));
    assert_ne!(forged, body, "{body}");
    let digest = Digest::of(forged.as_bytes()).to_string();
    fs::write(&file, format!("# caxton-last-good 1 sha256:{digest}\n{forged}")).unwrap();

    root.write_config("no_such_key: 1\n");
    let daemon = start(root);
    daemon.wait_event(Message::LastGoodUsed);
    daemon
}

#[test]
fn forged_last_good_configuration_grants_no_rights() {
    if !geteuid().is_root() {
        return skipped("forged_last_good_configuration_grants_no_rights", "root");
    }
    let daemon = started_with_forged_configuration();
    let output = daemon.cli_as_stranger(&["memory", "flush"]);
    assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stderr));
    // Root still may, and every user is answered.
    assert_eq!(daemon.connect().request("POST", "/api/memory/flush", &[], b"").status, 200);
    daemon.embed(json!("a text"));
    daemon.stop();
}

#[test]
fn corrected_configuration_replaces_the_last_good_one() {
    if !geteuid().is_root() {
        return skipped("corrected_configuration_replaces_the_last_good_one", "root");
    }
    let daemon = started_with_forged_configuration();
    daemon.write_settings();
    daemon.until("the corrected configuration", || {
        (daemon.status()["configuration"]["last_good"] == false).then_some(())
    });
    daemon.stop();
}
