//! Attack: the volume of the drop directory is unmounted, and an empty directory takes its path.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::mounts::Mount;
use crate::support::packages::{dropped, file_name, until_answers, until_gone, until_looked};
use crate::support::{Daemon, Root, pack, skipped};

/// Makes the daemon scan the drop directory, because the kernel does not notify it of mounts. Each
/// call needs another number of `seconds`.
fn scan(daemon: &mut Daemon, seconds: u32) {
    let lines = daemon.log().len();
    daemon.root_mut().set("packages.incomplete_timeout", json!(format!("{seconds}s")));
    daemon.wait_event_after(lines, Message::ConfigurationApplied, &[]);
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

fn version_file(directory: &Path, version: &str) -> PathBuf {
    directory.join(file_name(&format!("m-{version}")))
}

/// Drops two versions of `m` into a mounted drop directory, rolls back to the first and unmounts
/// the directory. Returns the daemon and the volume, or `None` where this process may not mount.
fn with_unmounted_directory(test: &str) -> Option<(Daemon, PathBuf)> {
    let root = Root::new().with("memory.fallback_strategy", json!("strict"));
    let volume = root.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let Some(mount) = Mount::bind(&volume, &root.drop_directory()) else {
        skipped(test, "the right to mount");
        return None;
    };
    let mut daemon = root.start();
    for version in ["1", "2"] {
        let file = version_file(&daemon.drop_directory(), version);
        fs::write(file, pack("tiny-bert-mean", "m", version)).unwrap();
    }
    until_answers(&daemon, "m@1");
    until_answers(&daemon, "m@2");
    let rolled_back = daemon.cli().args(["model", "rollback", "m"]).output().unwrap();
    assert!(rolled_back.status.success(), "{}", String::from_utf8_lossy(&rolled_back.stderr));
    assert!(is_rolled_back(&daemon));
    drop(mount);
    scan(&mut daemon, 601);
    daemon.wait_event(Message::DropDirectoryReplaced);
    Some((daemon, volume))
}

/// Checks that the models stay while the daemon runs, and after a restart, and that packages that
/// are dropped into the other directory are installed.
#[test]
fn unmounted_drop_directory_keeps_models_and_rollback() {
    let test = "unmounted_drop_directory_keeps_models_and_rollback";
    let Some((daemon, _volume)) = with_unmounted_directory(test) else { return };
    until_looked(&daemon, "n");
    assert!(is_rolled_back(&daemon));
    assert_eq!(daemon.get("/readyz").status, 200);
    let daemon = daemon.stop().start();
    until_looked(&daemon, "o");
    assert!(is_rolled_back(&daemon));
    drop(daemon.stop());
}

/// Checks that an unmounted directory is scanned when something happens, and not without pause.
#[test]
fn unmounted_drop_directory_is_scanned_with_pauses() {
    let test = "unmounted_drop_directory_is_scanned_with_pauses";
    let Some((daemon, _volume)) = with_unmounted_directory(test) else { return };
    let scans = || daemon.log().iter().filter(|line| line.contains("is scanned")).count();
    let before = scans();
    assert!(before > 0);
    // A package causes a few events, each of which causes a few scans.
    until_looked(&daemon, "n");
    let after = scans() - before;
    assert!(after < 50, "{after} scans");
    drop(daemon.stop());
}

#[test]
fn degraded_state_ends_when_models_without_files_are_removed() {
    let test = "degraded_state_ends_when_models_without_files_are_removed";
    let Some((mut daemon, _volume)) = with_unmounted_directory(test) else { return };
    let readiness = |daemon: &Daemon| String::from_utf8(daemon.get("/readyz").body).unwrap();
    daemon.until("the degraded state", || {
        readiness(&daemon).contains("the drop directory was replaced").then_some(())
    });
    for name in ["m@1", "m@2"] {
        let removed = daemon.cli().args(["model", "remove", name]).output().unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    }
    scan(&mut daemon, 603);
    daemon.until("the end of the degraded state", || (readiness(&daemon) == "ok\n").then_some(()));
    drop(daemon.stop());
}

#[test]
fn files_of_replacing_drop_directory_count() {
    let test = "files_of_replacing_drop_directory_count";
    let Some((daemon, _volume)) = with_unmounted_directory(test) else { return };
    until_looked(&daemon, "n");
    let daemon = daemon.stop().start();
    until_looked(&daemon, "o");
    fs::remove_file(dropped(&daemon, "n")).unwrap();
    until_gone(&daemon, "n");
    drop(daemon.stop());
}

#[test]
fn file_missing_after_remount_removes_its_model() {
    let test = "file_missing_after_remount_removes_its_model";
    let Some((daemon, volume)) = with_unmounted_directory(test) else { return };
    let mut daemon = daemon.stop().start();
    until_looked(&daemon, "n");
    let _mount = Mount::bind(&volume, &daemon.drop_directory()).unwrap();
    fs::remove_file(version_file(&volume, "2")).unwrap();
    scan(&mut daemon, 602);
    daemon.until("version 2 to be removed", || {
        (daemon.embeddings(&json!({ "input": "a", "model": "m@2" })).status == 404).then_some(())
    });
    until_answers(&daemon, "m@1");
    drop(daemon.stop());
}
