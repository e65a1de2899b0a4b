//! Attack: large invalid files are dropped one after the other. The quarantine is bounded in bytes,
//! too.

use std::fs::File;

use serde_json::json;

use crate::support::Root;
use crate::support::packages::{dropped, file_name, names, until_quarantined};

#[test]
fn quarantine_size_is_bounded() {
    let daemon = Root::new().with("packages.max_package_size", json!("64MiB")).start();
    // The files use no blocks on the disk, but the quarantine counts the size that they may grow
    // to.
    let drop_file = |id: &str, mib: u64| {
        File::create(dropped(&daemon, id)).unwrap().set_len(mib << 20).unwrap();
    };
    let quarantine = daemon.drop_directory().join("quarantine");
    drop_file("a", 600);
    until_quarantined(&daemon, "a");
    drop_file("b", 600);
    until_quarantined(&daemon, "b");
    let [package, reason] = [file_name("b"), format!("{}.reason", file_name("b"))];
    daemon.until("the oldest to leave", || (names(&quarantine).len() == 2).then_some(()));
    assert_eq!(names(&quarantine), [package, reason]);
    // The file is larger than the whole quarantine: it stays in the drop directory, and no other
    // file is deleted for it.
    drop_file("c", 1025);
    let line = daemon.wait_log("left where it is");
    assert!(line.contains(&file_name("c")) && line.contains("remove it by hand"), "{line}");
    assert!(dropped(&daemon, "c").exists());
    assert_eq!(names(&quarantine).len(), 2);
}
