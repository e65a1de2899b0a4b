//! Attack: the self-test of a package kills the daemon. The next starts must not repeat the test
//! without end.

use std::fs;

use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, set_record, stored, until_answers, until_looked, until_quarantined,
};
use crate::support::{Root, pack};

/// Checks a store in the state after two crashes during the self-test of a dropped package.
#[test]
fn dropped_package_is_quarantined_after_two_crashes() {
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let root = daemon.stop();
    set_record(&entry(&root, "m"), json!({ "status": "untested", "attempts": 2 }));

    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    let reason = until_quarantined(&daemon, "m");
    assert_eq!(reason, "the daemon ended while testing it\n");
    assert_eq!(ask(&daemon, "m").status, 404);
    daemon.until("the entry to leave", || (stored(&daemon).len() == 1).then_some(()));

    // The package does not return by itself, but it does when it is dropped again.
    let daemon = daemon.stop().start();
    until_looked(&daemon, "n");
    assert_eq!(ask(&daemon, "m").status, 404);
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
}

/// Checks that the second attempt is made: a power cut may have ended the first.
#[test]
fn self_test_interrupted_once_is_retried() {
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let root = daemon.stop();
    set_record(&entry(&root, "m"), json!({ "status": "untested", "attempts": 1 }));
    let daemon = root.start();
    until_answers(&daemon, "m");
    let record = fs::read_to_string(entry(&daemon, "m").join("record.json")).unwrap();
    assert!(!record.contains("attempts"), "{record}");
}

/// Checks that a bundled package, which cannot be moved away, keeps its entry, is listed, and is
/// not tested again.
#[test]
fn bundled_package_is_quarantined_after_two_crashes() {
    let daemon = Root::with_other().start();
    until_answers(&daemon, "other");
    let root = daemon.stop();
    set_record(&entry(&root, "other"), json!({ "status": "untested", "attempts": 2 }));
    let mut root = Some(root);
    for _start in 0..2 {
        let daemon = root.take().unwrap().start();
        let package = daemon.until("the quarantine", || {
            let package = daemon.package("other");
            (package["status"] == "quarantined").then_some(package)
        });
        assert_eq!(package["problem"], "the daemon ended while testing it");
        until_looked(&daemon, "n");
        assert_eq!(ask(&daemon, "other").status, 404);
        assert_eq!(daemon.embed(json!("a text")).len(), 1);
        root = Some(daemon.stop());
    }
    // A new file gets a new attempt.
    let root = root.unwrap();
    let path = root.bundled().join("other-2.model.tar.zst");
    let package = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, package).unwrap();
    let daemon = root.start();
    until_answers(&daemon, "other");
}
