//! Attack: the file system of the bundled packages is not mounted when the daemon starts. Every
//! bundled model was removed from the store.

use std::fs;

use crate::support::packages::{ask, flip_a_bit_of, until_gone};
use crate::support::{Daemon, Root, pack};

fn both_answer(daemon: &Daemon) {
    for id in ["bundled-mini", "two"] {
        assert_eq!(ask(daemon, id).status, 200, "{id}");
        assert_eq!(daemon.package(id)["origin"], "bundled");
    }
}

#[test]
fn empty_or_unreadable_bundled_directory_removes_nothing() {
    let root = Root::new();
    let two = root.bundled().join("two-1.model.tar.zst");
    fs::write(&two, pack("tiny-e5", "two", "1")).unwrap();
    let daemon = root.start();
    both_answer(&daemon);

    let root = daemon.stop();
    let aside = root.path().join("aside");
    fs::rename(root.bundled(), &aside).unwrap();
    fs::create_dir(root.bundled()).unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    let said = |text: &str| daemon.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!(said("bundled models stay without their files"), 1);

    // A directory that is missing, or is a file, removes nothing either.
    let root = daemon.stop();
    fs::remove_dir(root.bundled()).unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    daemon.wait_log("there are no bundled models");
    let root = daemon.stop();
    fs::write(root.bundled(), "").unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    let root = daemon.stop();
    fs::remove_file(root.bundled()).unwrap();

    // A directory with only an invalid package removes nothing either.
    fs::create_dir(root.bundled()).unwrap();
    let bad = root.bundled().join("bad.model.tar.zst");
    fs::copy(aside.join("two-1.model.tar.zst"), &bad).unwrap();
    flip_a_bit_of(&bad);
    let daemon = root.start();
    both_answer(&daemon);

    // The file system is mounted again, and an upgrade has removed a package.
    let root = daemon.stop();
    fs::remove_dir_all(root.bundled()).unwrap();
    fs::rename(&aside, root.bundled()).unwrap();
    fs::remove_file(&two).unwrap();
    let daemon = root.start();
    assert_eq!(ask(&daemon, "bundled-mini").status, 200);
    until_gone(&daemon, "two");
    daemon.stop();
}
