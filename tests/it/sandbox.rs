//! Tests of a running daemon's sandbox, as the kernel and the daemon report it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::{Root, skipped};

/// Returns the value of `key` in the kernel's status of each thread of the process `pid`.
fn of_threads(pid: u32, key: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let values = threads.filter_map(|thread| {
        // The thread may have ended meanwhile.
        let status = fs::read_to_string(thread.unwrap().path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(value.trim().to_owned())
    });
    values.collect()
}

#[test]
fn every_thread_has_seccomp_and_no_new_privileges() {
    let daemon = Root::new().start();
    for key in ["Seccomp:", "NoNewPrivs:"] {
        let values = of_threads(daemon.pid(), key);
        let expected = if key == "Seccomp:" { "2" } else { "1" };
        assert!(values.len() > 3 && values.iter().all(|value| value == expected), "{values:?}");
    }
    daemon.stop();
}

#[test]
fn sandbox_state_is_reported_and_can_be_required() {
    let root = Root::new().start();
    let sandbox = root.status()["sandbox"].clone();
    assert_eq!(sandbox["seccomp"], json!({ "state": "on" }));
    if !root.has_landlock() {
        root.wait_event_with(Message::SandboxDegraded, &["Landlock"]);
        return skipped("sandbox_state_is_reported_and_can_be_required", "Landlock");
    }
    assert!(sandbox["landlock"]["abi"].as_u64().unwrap() >= 2, "{sandbox}");
    root.wait_event(Message::SandboxEntered);
    let shown = root.cli().arg("status").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("sandbox        Landlock ") && shown.contains(", seccomp"), "{shown}");
    let required = root.stop().with("require_sandbox", json!(true)).start();
    required.stop();
}

#[test]
fn unlisted_paths_cannot_be_read() {
    let daemon = Root::new().start();
    if !daemon.has_landlock() {
        return skipped("unlisted_paths_cannot_be_read", "Landlock");
    }
    // The tests run as root here, so only the sandbox prevents the read.
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    let config = outside.path().join("caxton.yaml");
    fs::write(&config, "log: { level: warn }\n").unwrap();
    fs::remove_file(daemon.config()).unwrap();
    std::os::unix::fs::symlink(&config, daemon.config()).unwrap();
    let fragments = ["caxton.yaml", "Permission denied"];
    daemon.wait_event_with(Message::ConfigurationProblem, &fragments);
    daemon.wait_event(Message::ConfigurationRefused);
    daemon.wait_notified("the last good one is used");
    daemon.stop();
}
