//! Attack: a package that cannot be installed lies in the drop directory. It must not be written to
//! the disk again and again.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and what was measured is printed"
)]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use caxton::package::drop_dir::{FIRST_RETRY, LAST_RETRY};
use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::mounts::Mount;
use crate::support::packages::{
    dropped, file_name, install, repacked, stored, until_answers, until_gone, until_looked,
    until_staging_is_empty,
};
use crate::support::{Daemon, Root, is_event, skipped};

/// Bytes that may be written for such a package in a day.
const A_DAY: u64 = 1 << 20;

/// Returns all-MiniLM-L6-v2 under another id: a valid package of 23 MB.
fn large() -> &'static [u8] {
    static PACKAGE: OnceLock<Vec<u8>> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let bundled = "bundled-models/bundled-mini-1.0.0.model.tar.zst";
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join(bundled);
        repacked(&fs::read(bundled).unwrap(), "large")
    })
}

/// Returns the number of attempts to install a failing package within a day: one at once, then
/// after waits that double.
fn attempts_a_day() -> u64 {
    let (mut at, mut wait, mut attempts) = (0, FIRST_RETRY.as_secs(), 0);
    while at < 24 * 3600 {
        attempts += 1;
        at += wait;
        wait = (2 * wait).min(LAST_RETRY.as_secs());
    }
    attempts
}

/// Returns the number of bytes that the daemon has written so far, to disks, its log and its
/// socket.
fn written(daemon: &Daemon) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    let wchar = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    wchar.parse().unwrap()
}

/// Drops the large package, waits until it is rejected for `reason`, and checks the number of
/// written bytes.
fn refuse(daemon: &Daemon, what: &str, reason: &str) {
    let before = written(daemon);
    let lines = daemon.log().len();
    fs::write(dropped(daemon, "large"), large()).unwrap();
    let large_name = file_name("large");
    let line = daemon.wait_event_after(lines, Message::PackageNotInstalled, &[&large_name]);
    let bytes = written(daemon) - before;
    assert!(line.contains(reason), "{line}");
    let attempts = attempts_a_day();
    eprintln!(
        "{what}: a package of {} bytes: {bytes} bytes written in one attempt, {} in a day of {attempts}",
        large().len(),
        bytes * attempts
    );
    assert!(bytes * attempts < A_DAY, "{bytes} bytes in one of {attempts} attempts");
    until_staging_is_empty(daemon);
    assert!(dropped(daemon, "large").exists());
}

/// Returns the number of records about packages that could not be installed.
fn logged_failures(daemon: &Daemon) -> usize {
    daemon.log().iter().filter(|line| is_event(line, Message::PackageNotInstalled)).count()
}

/// Drops the large package into a daemon whose store is full with the dropped package `first`.
fn refused_by_full_store() -> Daemon {
    let daemon = Root::new()
        .with("memory.model_cache.max_models", json!(1))
        .with("memory.model_cache.cleanup_policy", json!("manual"))
        .start();
    until_looked(&daemon, "first");
    refuse(&daemon, "quota", "the store is full");
    daemon
}

#[test]
fn package_is_not_written_when_store_is_full() {
    let daemon = refused_by_full_store();
    // A new scan of the directory does not log the package again.
    fs::write(dropped(&daemon, "bad"), "no package").unwrap();
    daemon.wait_event_with(Message::PackageRefused, &[&file_name("bad")]);
    assert_eq!(logged_failures(&daemon), 1);
}

/// Checks that the client receives the reason although the daemon does not read its whole upload.
#[test]
fn upload_to_full_store_is_answered_with_reason() {
    let daemon = refused_by_full_store();
    let (code, stderr) = install(&daemon, &dropped(&daemon, "large"), &[]);
    assert!(code != Some(0) && stderr.contains("the store is full"), "{code:?} {stderr}");
}

#[test]
fn refused_package_is_installed_when_store_has_space() {
    let daemon = refused_by_full_store();
    fs::remove_file(dropped(&daemon, "first")).unwrap();
    until_gone(&daemon, "first");
    until_answers(&daemon, "large");
    assert_eq!(logged_failures(&daemon), 1);
}

#[test]
fn package_is_not_written_when_model_exceeds_memory() {
    let shares = |high| json!({ "moderate": "10%", "high": high, "critical": "90%" });
    // The daemon itself takes some of the 96 MiB that may be used, and the model needs 40.
    let mut daemon = Root::without_bundled()
        .with("memory.memory_limit", json!("128MiB"))
        .with("memory.pressure", shares("20%"))
        .start();
    refuse(&daemon, "memory", "does not fit into memory");
    assert_eq!(stored(&daemon), Vec::<String>::new());
    daemon.root_mut().set("memory.pressure", shares("80%"));
    until_answers(&daemon, "large");
    assert_eq!(logged_failures(&daemon), 1);
}

#[test]
fn package_is_not_written_without_disk_space() {
    let root = Root::without_bundled();
    let state = root.state();
    fs::create_dir(&state).unwrap();
    let Some(disk) = Mount::tmpfs(&state, "size=80m") else {
        return skipped("a disk that is too small for a package", "the right to mount");
    };
    let daemon = root.start();
    // The disk has 80 MiB, of which 64 stay free.
    refuse(&daemon, "disk", "64.0 MiB must stay free");
    disk.remount("size=400m");
    fs::write(dropped(&daemon, "bad"), "no package").unwrap();
    until_answers(&daemon, "large");
    assert_eq!(logged_failures(&daemon), 1);
    let root = daemon.kill();
    drop(disk);
    drop(root);
}
