//! Attack: large invalid files are dropped one after the other. The quarantine is bounded in bytes,
//! too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{dropped, file_name, names, until_quarantined};
use crate::support::{Daemon, Root};

fn with_small_packages() -> Daemon {
    Root::new().with("packages.max_package_size", json!("64MiB")).start()
}

/// Drops a file without content. It uses no blocks on the disk, but the quarantine counts the size
/// that it may grow to.
fn drop_file(daemon: &Daemon, id: &str, mib: u64) {
    File::create(dropped(daemon, id)).unwrap().set_len(mib << 20).unwrap();
}

#[test]
fn quarantine_size_is_bounded() {
    let daemon = with_small_packages();
    let quarantine = daemon.drop_directory().join("quarantine");
    drop_file(&daemon, "a", 600);
    until_quarantined(&daemon, "a");
    drop_file(&daemon, "b", 600);
    until_quarantined(&daemon, "b");
    let [package, reason] = [file_name("b"), format!("{}.reason", file_name("b"))];
    daemon.until("the oldest file to be deleted", || (names(&quarantine).len() == 2).then_some(()));
    assert_eq!(names(&quarantine), [package, reason]);
}

/// Checks that a file that is larger than the whole quarantine stays in the drop directory, and
/// that no other file is deleted for it.
#[test]
fn file_larger_than_quarantine_stays() {
    let daemon = with_small_packages();
    let quarantine = daemon.drop_directory().join("quarantine");
    drop_file(&daemon, "b", 600);
    until_quarantined(&daemon, "b");
    drop_file(&daemon, "c", 1025);
    let line = daemon.wait_event_with(Message::PackageRefused, &[&file_name("c")]);
    assert!(!line.contains("quarantined=") && line.contains("remove it manually"), "{line}");
    assert!(dropped(&daemon, "c").exists());
    assert_eq!(names(&quarantine).len(), 2);
}
