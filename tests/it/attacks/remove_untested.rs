//! An entry that no self-test has passed: `caxton model remove` removes it, with a daemon and
//! without.

use std::fs;

use serde_json::json;

use crate::support::packages::{
    dropped, entry, set_record, stored, until_answers, until_gone, until_looked,
};
use crate::support::{Root, pack};

#[test]
fn remove_without_daemon_deletes_untested_entry_and_file() {
    let mut root = Root::new();
    let package = pack("tiny-bert-mean", "innocent", "1");
    for name in ["innocent", "innocent@1", "innocent@REVISION"] {
        let daemon = root.start();
        fs::write(dropped(&daemon, "innocent"), &package).unwrap();
        until_answers(&daemon, "innocent");
        let revision = daemon.package("innocent")["revision"].as_str().unwrap().to_owned();
        root = daemon.stop();
        set_record(&entry(&root, "innocent"), json!({ "status": "untested", "attempts": 1 }));
        let listed = root.cli().args(["model", "list"]).output().unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("untested"), "{listed:?}");
        let name = name.replace("REVISION", &revision);
        let removed = root.cli().args(["model", "remove", &name]).output().unwrap();
        assert!(removed.status.success(), "{name}: {removed:?}");
        assert!(!dropped(&root, "innocent").exists());
        assert_eq!(stored(&root).len(), 1);
    }
}

#[test]
fn remove_with_daemon_deletes_quarantined_entry() {
    let daemon = Root::with_other().start();
    until_answers(&daemon, "other");
    let root = daemon.stop();
    let quarantined = json!({ "status": { "quarantined": "why" }, "attempts": 2 });
    set_record(&entry(&root, "other"), quarantined);
    let daemon = root.start();
    until_looked(&daemon, "n");
    let package = daemon.package("other");
    assert_eq!((&package["status"], &package["problem"]), (&json!("quarantined"), &json!("why")));
    let removed = daemon.cli().args(["model", "remove", "other"]).output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
    until_gone(&daemon, "other");
    // The package is bundled, so the next start tests it again.
    let daemon = daemon.stop().start();
    until_answers(&daemon, "other");
}
