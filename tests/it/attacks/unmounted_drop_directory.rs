//! Attack: the volume of the drop directory is unmounted, and an empty directory takes its path.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::json;

use crate::support::mounts::Mount;
use crate::support::packages::{dropped, until_answers, until_gone, until_looked};
use crate::support::{Daemon, Root, pack, skipped};

/// Makes the daemon scan the drop directory, because the kernel does not notify it of mounts.
fn has_to_look(daemon: &mut Daemon, seconds: u32) {
    let said = daemon.log().len();
    daemon.root_mut().set("packages.incomplete_timeout", json!(format!("{seconds}s")));
    daemon.wait_log_after(said, "configuration");
}

/// Returns whether `m` resolves to version 1, to which an administrator rolled it back from version
/// 2.
fn is_rolled_back(daemon: &Daemon) -> bool {
    let status = daemon.status();
    let packages = status["packages"].as_array().unwrap();
    let current = |version: &str| {
        let package = packages.iter().find(|it| it["id"] == "m" && it["version"] == version);
        package.map(|package| package["current"] == true)
    };
    current("1") == Some(true) && current("2") == Some(false)
}

#[test]
fn unmounted_drop_directory_keeps_models_and_rollback() {
    let root = Root::new().with("memory.fallback_strategy", json!("strict"));
    let volume = root.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let Some(mount) = Mount::bind(&volume, &root.drop_directory()) else {
        return skipped("an unmounted drop directory", "the right to mount");
    };
    let mut daemon = root.start();
    for version in ["1", "2"] {
        let file = daemon.drop_directory().join(format!("m-{version}.model.tar.zst"));
        fs::write(file, pack("tiny-bert-mean", "m", version)).unwrap();
    }
    until_answers(&daemon, "m@1");
    until_answers(&daemon, "m@2");
    let rolled_back = daemon.cli().args(["model", "rollback", "m"]).output().unwrap();
    assert!(rolled_back.status.success(), "{}", String::from_utf8_lossy(&rolled_back.stderr));
    assert!(is_rolled_back(&daemon));

    // The models stay while the daemon runs, and after a restart. A package that is dropped into
    // the other directory is installed.
    drop(mount);
    has_to_look(&mut daemon, 601);
    until_looked(&daemon, "n");
    daemon.wait_log("stays without its file");
    assert!(is_rolled_back(&daemon));
    assert_eq!(daemon.get("/readyz").status, 200);
    let mut daemon = daemon.stop().start();
    until_looked(&daemon, "o");
    assert!(is_rolled_back(&daemon));
    // The files of that directory count.
    fs::remove_file(dropped(&daemon, "n")).unwrap();
    until_gone(&daemon, "n");

    // The volume is mounted again: a file that is missing there was removed.
    let _mount = Mount::bind(&volume, &daemon.drop_directory()).unwrap();
    fs::remove_file(volume.join("m-2.model.tar.zst")).unwrap();
    has_to_look(&mut daemon, 602);
    daemon.until("version 2 to leave", || {
        (daemon.embeddings(&json!({ "input": "a", "model": "m@2" })).status == 404).then_some(())
    });
    until_answers(&daemon, "m@1");
    drop(daemon.stop());
}
