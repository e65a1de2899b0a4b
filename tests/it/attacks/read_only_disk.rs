//! Attack: the file system of the store accepts no writes, because it was remounted read-only after
//! an error, or is full.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::doctor::{assert_check, report};
use crate::support::mounts::Mount;
use crate::support::packages::{ask, dropped, file_name, until_answers, until_looked};
use crate::support::{Daemon, Root, pack, skipped};

/// Size of the file system, more than the store leaves free for others.
const SIZE: &str = "size=256m";

/// Returns a root whose store is on a file system of its own, with the dropped model `m` in it.
fn root_with_disk(test: &str) -> Option<(Root, Mount)> {
    let root = Root::new().with("memory.fallback_strategy", json!("strict"));
    fs::create_dir(root.state()).unwrap();
    let Some(disk) = Mount::tmpfs(&root.state(), SIZE) else {
        skipped(test, "the right to mount");
        return None;
    };
    let daemon = root.start();
    until_looked(&daemon, "m");
    Some((daemon.stop(), disk))
}

/// Waits until `/readyz` answers 200 and reports the store as degraded, with `word` in the reason.
fn until_degraded(daemon: &Daemon, word: &str) {
    daemon.until("a degraded store", || {
        let answer = daemon.get("/readyz");
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = String::from_utf8(answer.body).unwrap();
        text.lines().any(|line| line.starts_with("degraded:") && line.contains(word)).then_some(())
    });
    daemon.wait_notified("degraded: ");
    let status = daemon.status();
    assert_eq!(status["store"]["writable"], false, "{status}");
    assert!(status["degraded"][0].as_str().unwrap().contains(word), "{status}");
}

fn serves(daemon: &Daemon) {
    daemon.embed(json!("the default model"));
    assert_eq!(ask(daemon, "m").status, 200);
    let verified = daemon.connect().request("POST", "/api/packages/m/verify", &[], b"");
    assert_eq!(verified.status, 200, "{verified:?}");
}

/// Checks that `caxton doctor` reports the state of the disk and fails because of it, with the
/// daemon and without.
fn doctor_says(root: &Root, daemon: &str, found: &str) {
    let (code, report) = report(&mut root.cli());
    assert_eq!(code, 1, "{report:#}");
    assert_check(&report, "condition", daemon, if daemon == "warn" { found } else { "answer" });
    assert_check(&report, "disk", "fail", found);
    assert_check(&report, "store", "pass", "entries, all readable");
}

/// Installs a package with the command line, and waits until no component is degraded.
fn until_whole(daemon: &Daemon) {
    let file = daemon.path().join(file_name("late"));
    fs::write(&file, pack("tiny-bert-mean", "late", "1")).unwrap();
    let installed = daemon.cli().args(["model", "install"]).arg(file).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    until_answers(daemon, "late");
    daemon.wait_event(Message::StoreRecovered);
    daemon.until("a store that is whole", || (daemon.get("/readyz").body == b"ok\n").then_some(()));
    assert_eq!(daemon.status()["store"]["writable"], true);
    let (_, report) = report(&mut daemon.cli());
    assert_check(&report, "condition", "pass", "nothing is degraded");
}

#[test]
fn read_only_disk_serves_and_recovers_when_writable() {
    let Some((root, disk)) = root_with_disk("a read-only disk") else { return };
    disk.remount("ro");
    doctor_says(&root, "skipped", "read-only");
    let daemon = root.start();
    until_degraded(&daemon, "read-only");
    doctor_says(&daemon, "warn", "read-only");
    serves(&daemon);
    fs::write(dropped(&daemon, "n"), pack("tiny-bert-mean", "n", "1")).unwrap();
    let line = daemon.wait_event_with(Message::PackageNotInstalled, &[&file_name("n")]);
    assert!(line.contains("Read-only file system"), "{line}");
    let removed = daemon.cli().args(["model", "remove", "m"]).output().unwrap();
    assert!(!removed.status.success());
    serves(&daemon);

    disk.remount("rw");
    until_whole(&daemon);
    drop(daemon.stop());
}

#[test]
fn daemon_starts_and_serves_from_full_disk() {
    let Some((root, _disk)) = root_with_disk("a full disk") else { return };
    let filler = root.state().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    doctor_says(&root, "skipped", "full");
    let daemon = root.start();
    until_degraded(&daemon, "full");
    doctor_says(&daemon, "warn", "full");
    serves(&daemon);
    fs::remove_file(filler).unwrap();
    until_whole(&daemon);
    drop(daemon.stop());
}
