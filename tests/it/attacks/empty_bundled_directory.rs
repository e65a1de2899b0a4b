//! Attack: the file system of the bundled packages is not mounted when the daemon starts. Every
//! bundled model was removed from the store.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use caxton::telemetry::log::Message;

use crate::support::packages::{ask, file_name, flip_a_bit_of, until_gone};
use crate::support::{Daemon, Root, is_event, pack};

/// Checks that both bundled models answer.
fn both_answer(daemon: &Daemon) {
    for id in ["bundled-mini", "two"] {
        assert_eq!(ask(daemon, id).status, 200, "{id}");
        assert_eq!(daemon.package(id)["origin"], "bundled");
    }
}

/// Installs the two models of the bundled directory, stops the daemon and moves the directory to
/// the returned path.
fn root_without_bundled_directory() -> (Root, PathBuf) {
    let root = Root::new();
    fs::write(two(&root.bundled()), pack("tiny-e5", "two", "1")).unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    let root = daemon.stop();
    let aside = root.path().join("aside");
    fs::rename(root.bundled(), &aside).unwrap();
    (root, aside)
}

/// Returns the path of the package of the model `two` in `directory`.
fn two(directory: &Path) -> PathBuf {
    directory.join(file_name("two-1"))
}

#[test]
fn empty_bundled_directory_removes_nothing() {
    let (root, _aside) = root_without_bundled_directory();
    fs::create_dir(root.bundled()).unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    let is_kept =
        |line: &&String| is_event(line, Message::DirectoryUnreadable) && line.contains("models=2");
    assert_eq!(daemon.log().iter().filter(is_kept).count(), 1);
    daemon.stop();
}

#[test]
fn missing_bundled_directory_removes_nothing() {
    let (root, _aside) = root_without_bundled_directory();
    let daemon = root.start();
    both_answer(&daemon);
    let directory = daemon.bundled().display().to_string();
    daemon.wait_event_with(Message::DirectoryUnreadable, &[&directory, "os error 2"]);
    daemon.stop();
}

#[test]
fn file_instead_of_bundled_directory_removes_nothing() {
    let (root, _aside) = root_without_bundled_directory();
    fs::write(root.bundled(), "").unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    daemon.stop();
}

#[test]
fn invalid_package_alone_removes_no_bundled_model() {
    let (root, aside) = root_without_bundled_directory();
    fs::create_dir(root.bundled()).unwrap();
    let bad = root.bundled().join(file_name("bad"));
    fs::copy(two(&aside), &bad).unwrap();
    flip_a_bit_of(&bad);
    let daemon = root.start();
    both_answer(&daemon);
    daemon.stop();
}

/// Checks an upgrade of the appliance while the directory was not mounted.
#[test]
fn bundled_model_without_package_is_removed_after_remount() {
    let (root, aside) = root_without_bundled_directory();
    fs::create_dir(root.bundled()).unwrap();
    let daemon = root.start();
    both_answer(&daemon);
    let root = daemon.stop();
    fs::remove_dir(root.bundled()).unwrap();
    fs::rename(&aside, root.bundled()).unwrap();
    fs::remove_file(two(&root.bundled())).unwrap();
    let daemon = root.start();
    assert_eq!(ask(&daemon, "bundled-mini").status, 200);
    until_gone(&daemon, "two");
    daemon.stop();
}
