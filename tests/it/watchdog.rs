//! Tests of the watchdog notifications and of the start and stop timeouts, as systemd receives
//! them.

use std::path::Path;
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Daemon, Root};

/// Starts a daemon under a systemd watchdog. `$WATCHDOG_PID` is `pid`, or the daemon's own id for
/// `None`.
fn watched(root: Root, pid: Option<u32>) -> Daemon {
    let mut program = Command::new("bash");
    let script = "WATCHDOG_USEC=300000 WATCHDOG_PID=${0/own/$$} exec \"$@\"";
    let pid = pid.map_or_else(|| "own".to_owned(), |pid| pid.to_string());
    program.args(["-c", script, &pid, env!("CARGO_BIN_EXE_caxtond")]);
    let daemon = Daemon::spawn(root, program);
    daemon.wait_notified("READY=1");
    daemon
}

#[test]
fn watchdog_is_notified_with_and_without_resident_model() {
    let daemon = watched(Root::new(), None);
    let wait = || daemon.wait_notified_after(daemon.notifications().len(), "WATCHDOG=1");
    wait();
    wait();
    // Many requests do not delay a watchdog notification.
    let body = json!({ "input": vec![vec![5; 48]; 512] }).to_string();
    let mut connections: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.ask("POST", "/v1/embeddings", &[], body.as_bytes());
    }
    wait();
    for connection in &mut connections {
        assert_eq!(connection.answer().status, 200);
    }
    let unloaded = daemon.connect().request("DELETE", "/api/memory/models/bundled-mini", &[], b"");
    assert_eq!(unloaded.status, 200, "{unloaded:?}");
    wait();
    wait();
    // The liveness probe does not count as a request, so it does not load the model.
    assert_eq!(daemon.package("bundled-mini")["residency"], "unloaded");
    daemon.stop();
}

#[test]
fn liveness_probe_does_not_keep_model_loaded() {
    let root = Root::new().with("models", json!({ "bundled-mini": { "max_idle_time": "1s" } }));
    let daemon = watched(root, None);
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_event_with(Message::ModelUnloaded, &["model=bundled-mini@", " 1s"]);
    daemon.stop();
}

#[test]
fn unwatched_daemon_sends_no_watchdog_notification() {
    for daemon in [Root::new().start(), watched(Root::new(), Some(1))] {
        assert_eq!(daemon.embed(json!(vec!["a text"; 64])).len(), 64);
        daemon.signal(Signal::SIGTERM);
        daemon.wait_notified("STOPPING=1");
        let told = daemon.notifications();
        assert!(told.iter().all(|message| !message.contains("WATCHDOG")), "{told:#?}");
        assert_eq!(daemon.wait_exit().0, 0);
    }
}

#[test]
fn unpacking_extends_the_start_timeout() {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundled-models");
    let root = Root::without_bundled().with("packages.bundled_directory", json!(bundled));
    let daemon = root.start();
    let told = daemon.notifications();
    let place = |text: &str| told.iter().position(|message| message.contains(text));
    let (asked, ready) = (place("EXTEND_TIMEOUT_USEC=120000000"), place("READY=1"));
    assert!(asked.is_some() && asked < ready, "{told:#?}");
    daemon.stop();
}

#[test]
fn stop_timeout_is_extended_by_drain_timeout() {
    let daemon = Root::new().with("socket.drain_timeout", json!("5m")).start();
    daemon.signal(Signal::SIGTERM);
    // The drain takes at most 300 s, the models ten, and the rest five.
    let stopping = daemon.wait_notified("STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=315000000"), "{stopping}");
    assert_eq!(daemon.wait_exit().0, 0);
}
