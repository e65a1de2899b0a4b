//! Tests of socket activation: requests that arrived while no daemon ran are answered by the next
//! one, under the credentials of the callers.
//!
//! The test holds the listening socket as systemd would, and passes it as the first descriptor
//! after the standard ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Connection, Daemon, EMBEDDINGS, Root, STRANGER, cli, skipped};

/// Name of the socket in the unit file.
const NAME: &str = "caxton.socket";

/// Creates a listening socket in `root` at another path than the configured one, where no daemon
/// creates a socket.
fn held(root: &Root) -> (UnixListener, PathBuf) {
    let path = root.path().join("held.sock");
    (UnixListener::bind(&path).unwrap(), path)
}

/// Starts the daemon in `root` and passes `socket` to it under `name`.
fn activate(root: Root, socket: impl Into<OwnedFd>, name: &str) -> Daemon {
    let mut program = Command::new("bash");
    // LISTEN_PID must be the id of the daemon. `exec` keeps the id of the shell.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=$0 exec \"$@\"";
    program.args(["-c", script, name, env!("CARGO_BIN_EXE_caxtond")]);
    Daemon::spawn_with(root, program, socket.into())
}

#[test]
fn queued_connections_are_answered_by_next_daemon() {
    let root = Root::new();
    let (socket, path) = held(&root);
    let body = json!({ "input": "a text" }).to_string();
    let ask = || {
        let mut connection = Connection::open(&path);
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
        connection
    };
    // Send requests before the first start, then between two starts, after a stop and after a kill.
    let mut waiting = [ask(), ask()];
    let daemon = activate(root, socket.try_clone().unwrap(), NAME);
    for connection in &mut waiting {
        assert_eq!(connection.answer().status, 200);
    }
    let root = daemon.stop();
    let mut waiting = ask();
    let daemon = activate(root, socket.try_clone().unwrap(), NAME);
    assert_eq!(waiting.answer().status, 200);
    daemon.signal(Signal::SIGKILL);
    let (code, root) = daemon.wait_exit();
    assert_eq!(code, 128 + 9);
    let mut waiting = ask();
    let daemon = activate(root, socket, NAME);
    assert_eq!(waiting.answer().status, 200);
    assert!(!daemon.socket().exists(), "the daemon bound a second socket");
    let root = daemon.stop();
    assert!(path.exists(), "the daemon removed the passed socket");
    drop(root);
}

#[test]
fn passed_socket_reports_peer_credentials() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("passed_socket_reports_peer_credentials", "root");
    }
    let root = Root::new();
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    let (socket, path) = held(&root);
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let daemon = activate(root, socket, NAME);
    daemon.wait_notified("READY=1");
    let unload = |user: u32| {
        let mut command = cli();
        command.args(["memory", "unload", "bundled-mini", "--socket"]).arg(&path);
        command.current_dir("/").uid(user).gid(user).status().unwrap().code()
    };
    assert_eq!((unload(STRANGER), unload(0)), (Some(77), Some(0)));
    daemon.wait_event_with(Message::AccessRefused, &["uid=65534"]);
    daemon.stop();
}

#[test]
fn passed_socket_of_other_name_fails_startup() {
    let root = Root::new();
    let (socket, _path) = held(&root);
    let daemon = activate(root, socket, "http");
    let expected = ["http", "FileDescriptorName=caxton.socket"];
    daemon.wait_event_with(Message::StartFailed, &expected);
    assert_eq!(daemon.wait_exit().0, 71);
}

#[test]
fn passed_datagram_socket_fails_startup() {
    let root = Root::new();
    let datagrams = UnixDatagram::bind(root.path().join("datagrams.sock")).unwrap();
    let daemon = activate(root, datagrams, NAME);
    daemon.wait_event_with(Message::StartFailed, &["ListenStream="]);
    assert_eq!(daemon.wait_exit().0, 71);
}
