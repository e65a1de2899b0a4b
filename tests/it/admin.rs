//! Tests of administration rights: only root, the daemon's own user and the configured
//! administrators may change the appliance.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::{Root, STRANGER, skipped, tiny_package};

/// Creates a root whose socket every user may open, in directories that every user may enter.
fn open_root() -> Root {
    let root = Root::new().with("socket.mode", json!("0666"));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let package = root.path().join("tiny.model.tar.zst");
    fs::write(package, tiny_package()).unwrap();
    root
}

#[test]
fn unprivileged_user_can_read() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("unprivileged_user_can_read", "root");
    }
    let daemon = open_root().start();
    for allowed in [
        &["embed", "a"][..],
        &["status"],
        &["memory", "status"],
        &["model", "list"],
        &["model", "show", "bundled-mini"],
    ] {
        let output = daemon.cli_as_stranger(allowed);
        assert!(
            output.status.success(),
            "{allowed:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    daemon.stop();
}

#[test]
fn unprivileged_user_cannot_change_anything() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("unprivileged_user_cannot_change_anything", "root");
    }
    let daemon = open_root().start();
    let package = daemon.path().join("tiny.model.tar.zst");
    let package = package.to_str().unwrap();
    for refused in [
        &["memory", "flush"][..],
        &["memory", "load", "bundled-mini"],
        &["memory", "unload", "bundled-mini"],
        &["memory", "limit", "1GiB"],
        &["model", "install", package],
        &["model", "remove", "bundled-mini"],
        &["model", "verify", "bundled-mini"],
        &["check", "--diff", "/dev/null"],
        &["model", "export", "bundled-mini", "--output", "/dev/shm/never"],
    ] {
        let output = daemon.cli_as_stranger(refused);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{refused:?}: {said}");
        assert!(said.contains("user 65534 is not an administrator"), "{said}");
    }
    // The daemon logs the rejections of one user once a minute.
    daemon.wait_event_with(Message::AccessRefused, &["uid=65534", "pid="]);
    assert_eq!(daemon.package("bundled-mini")["origin"], "bundled");
    daemon.stop();
}

#[test]
fn configured_administrator_can_verify_package() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("configured_administrator_can_verify_package", "root");
    }
    for admins in [json!({ "users": [STRANGER] }), json!({ "groups": [STRANGER.to_string()] })] {
        let daemon = open_root().with("socket.admins", admins.clone()).start();
        let output = daemon.cli_as_stranger(&["model", "verify", "bundled-mini"]);
        assert!(output.status.success(), "{admins}: {}", String::from_utf8_lossy(&output.stderr));
        daemon.stop();
    }
}

#[test]
fn daemon_owner_passes_admin_checks() {
    let daemon = Root::new().start();
    let answer = daemon.connect().request("POST", "/api/packages/bundled-mini/verify", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    let garbage = daemon.connect().request("POST", "/api/packages", &[], b"garbage");
    assert_eq!((garbage.status, &garbage.error()["code"]), (400, &json!("package_refused")));
    daemon.stop();
}
