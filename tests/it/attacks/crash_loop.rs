//! Attack: the self-test of a package kills the daemon. The next starts must not repeat the test
//! without end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::{Value, json};

use crate::support::packages::{
    ask, dropped, entry, set_record, stored, until_answers, until_looked, until_quarantined,
};
use crate::support::{Daemon, Root, pack};

/// Returns a root in the state after `crashes` during the self-test of the dropped package `m`.
fn root_after_crashes(crashes: u32) -> Root {
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let root = daemon.stop();
    set_record(&entry(&root, "m"), json!({ "status": "untested", "attempts": crashes }));
    root
}

/// Returns a root in the state after two crashes during the self-test of the bundled package
/// `other`.
fn root_after_bundled_crashes() -> Root {
    let daemon = Root::with_other().start();
    until_answers(&daemon, "other");
    let root = daemon.stop();
    set_record(&entry(&root, "other"), json!({ "status": "untested", "attempts": 2 }));
    root
}

/// Waits until the bundled package `other` is in quarantine, and returns its status.
fn until_other_is_quarantined(daemon: &Daemon) -> Value {
    daemon.until("the quarantine", || {
        let package = daemon.package("other");
        (package["status"] == "quarantined").then_some(package)
    })
}

#[test]
fn dropped_package_is_quarantined_after_two_crashes() {
    let daemon = root_after_crashes(2).start();
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    let reason = until_quarantined(&daemon, "m");
    assert_eq!(reason, "the daemon ended repeatedly during the self-test of the model\n");
    assert_eq!(ask(&daemon, "m").status, 404);
    daemon.until("the entry to be removed", || (stored(&daemon).len() == 1).then_some(()));
}

#[test]
fn quarantined_package_returns_only_when_dropped_again() {
    let daemon = root_after_crashes(2).start();
    until_quarantined(&daemon, "m");
    daemon.until("the entry to be removed", || (stored(&daemon).len() == 1).then_some(()));
    let daemon = daemon.stop().start();
    until_looked(&daemon, "n");
    assert_eq!(ask(&daemon, "m").status, 404);
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
}

/// Checks that the second attempt is made: a power cut may have ended the first.
#[test]
fn self_test_interrupted_once_is_retried() {
    let daemon = root_after_crashes(1).start();
    until_answers(&daemon, "m");
    let record = fs::read_to_string(entry(&daemon, "m").join("record.json")).unwrap();
    assert!(!record.contains("attempts"), "{record}");
}

/// Checks that a bundled package, which cannot be moved away, keeps its entry, is listed, and is
/// not tested again.
#[test]
fn bundled_package_is_quarantined_after_two_crashes() {
    let mut root = root_after_bundled_crashes();
    for _start in 0..2 {
        let daemon = root.start();
        let package = until_other_is_quarantined(&daemon);
        assert_eq!(
            package["problem"],
            "the daemon ended repeatedly during the self-test of the model"
        );
        until_looked(&daemon, "n");
        assert_eq!(ask(&daemon, "other").status, 404);
        assert_eq!(daemon.embed(json!("a text")).len(), 1);
        root = daemon.stop();
    }
}

#[test]
fn new_bundled_file_gets_a_new_attempt() {
    let daemon = root_after_bundled_crashes().start();
    until_other_is_quarantined(&daemon);
    let root = daemon.stop();
    let path = root.bundled().join("other-2.model.tar.zst");
    let package = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, package).unwrap();
    let daemon = root.start();
    until_answers(&daemon, "other");
}
