//! Attack: a package that cannot be installed lies in the drop directory. It must not be written to
//! the disk again and again.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and what was measured is printed"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use caxton::package::drop_dir::{FIRST_RETRY, LAST_RETRY};
use serde_json::json;

use crate::support::packages::{
    dropped, repacked, stored, until_answers, until_gone, until_looked, until_staging_is_empty,
};
use crate::support::{Daemon, Root, skipped};

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
    let said = daemon.log().len();
    fs::write(dropped(daemon, "large"), large()).unwrap();
    let line = daemon.wait_log_after(said, "cannot be installed now");
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

fn times_told(daemon: &Daemon) -> usize {
    daemon.log().iter().filter(|line| line.contains("cannot be installed now")).count()
}

#[test]
fn package_is_not_written_when_store_is_full() {
    let daemon = Root::new()
        .with("memory.model_cache.max_models", json!(1))
        .with("memory.model_cache.cleanup_policy", json!("manual"))
        .start();
    until_looked(&daemon, "first");
    refuse(&daemon, "quota", "the store is full");
    // A new scan of the directory changes nothing for the package.
    fs::write(dropped(&daemon, "bad"), "no package").unwrap();
    daemon.wait_log("package refused");
    assert_eq!(times_told(&daemon), 1);
    // An upload is answered with the reason, too, although the daemon does not read the rest of it.
    let upload = crate::support::cli()
        .args(["model", "install", "--socket"])
        .args([daemon.socket(), dropped(&daemon, "large")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&upload.stderr);
    assert!(!upload.status.success() && said.contains("the store is full"), "{said}");
    // The store has space again.
    fs::remove_file(dropped(&daemon, "first")).unwrap();
    until_gone(&daemon, "first");
    until_answers(&daemon, "large");
    assert_eq!(times_told(&daemon), 1);
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
    assert_eq!(times_told(&daemon), 1);
}

/// A tmpfs, unmounted when this is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn on(place: &'a Path) -> Option<Self> {
        let this = Self(place);
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=80m", "tmpfs"])
            .arg(place)
            .output();
        if mount.is_ok_and(|done| done.status.success()) {
            return Some(this);
        }
        std::mem::forget(this);
        None
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=400m"]).arg(self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // The daemon may still use the file system, so unmount it lazily.
        drop(Command::new("umount").args(["--lazy"]).arg(self.0).status());
    }
}

#[test]
fn package_is_not_written_without_disk_space() {
    let root = Root::without_bundled();
    let state = root.state();
    fs::create_dir(&state).unwrap();
    let Some(disk) = Mounted::on(&state) else {
        return skipped("a disk that is too small for a package", "the right to mount");
    };
    let daemon = root.start();
    // The disk has 80 MiB, of which 64 stay free.
    refuse(&daemon, "disk", "64.0 MiB stay free");
    disk.grow();
    fs::write(dropped(&daemon, "bad"), "no package").unwrap();
    until_answers(&daemon, "large");
    assert_eq!(times_told(&daemon), 1);
    let root = daemon.kill();
    drop(disk);
    drop(root);
}
