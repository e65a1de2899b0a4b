//! Tests of further drop directories, such as a removable disk: packages are installed from them,
//! models stay while they are absent, and nothing is written to them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{
    ask, dropped, file_name, names, until_answers, until_gone, until_looked,
};
use crate::support::{Daemon, Root, is_event, pack};

/// Returns a root with a further directory that does not exist yet, and its path.
fn root(remove_with_file: bool) -> (Root, PathBuf) {
    let root = Root::new();
    let stick = root.path().join("stick");
    let more = json!([{ "path": stick, "remove_with_file": remove_with_file }]);
    (root.with("packages.more_directories", more), stick)
}

fn write(stick: &Path, id: &str) -> PathBuf {
    let file = stick.join(file_name(id));
    fs::write(&file, pack("tiny-bert-mean", id, "1")).unwrap();
    file
}

/// Returns what `/status` shows of the directory `path`.
fn directory(daemon: &Daemon, path: &Path) -> Value {
    let status = daemon.status();
    let directories = status["package_directories"].as_array().unwrap();
    let found = directories.iter().find(|it| it["path"] == path.to_str().unwrap());
    found.cloned().unwrap_or(Value::Null)
}

fn count(daemon: &Daemon, kind: Message) -> usize {
    daemon.log().iter().filter(|line| is_event(line, kind)).count()
}

#[test]
fn absent_directory_is_noted_once_and_keeps_models() {
    let (root, stick) = root(true);
    let daemon = root.start();
    daemon.wait_event_with(Message::DropDirectoryAbsent, &["stick"]);
    assert_eq!(directory(&daemon, &stick)["state"], "absent");
    until_looked(&daemon, "n");
    assert_eq!(count(&daemon, Message::DropDirectoryAbsent), 1);

    fs::create_dir(&stick).unwrap();
    write(&stick, "m");
    until_answers(&daemon, "m");
    daemon.wait_event(Message::DropDirectoryPresent);
    assert_eq!(daemon.package("m")["origin"], "dropped");

    let (lines, away) = (daemon.log().len(), daemon.path().join("away"));
    fs::rename(&stick, &away).unwrap();
    daemon.wait_event_after(lines, Message::DropDirectoryAbsent, &["stick"]);
    assert_eq!(ask(&daemon, "m").status, 200);
    assert_eq!(daemon.get("/readyz").body, b"ok\n");
    // A start without the directory changes nothing.
    let daemon = daemon.stop().start();
    daemon.wait_event(Message::DropDirectoryAbsent);
    until_looked(&daemon, "o");
    assert_eq!(ask(&daemon, "m").status, 200);

    fs::rename(&away, &stick).unwrap();
    daemon.wait_event(Message::DropDirectoryPresent);
    daemon.until("the directory", || {
        (directory(&daemon, &stick)["state"] == "present").then_some(())
    });
    fs::remove_file(stick.join(file_name("m"))).unwrap();
    until_gone(&daemon, "m");
    daemon.stop();
}

#[test]
fn empty_directory_in_its_place_keeps_models() {
    let (root, stick) = root(true);
    fs::create_dir(&stick).unwrap();
    write(&stick, "m");
    let daemon = root.start();
    until_answers(&daemon, "m");
    // As when a disk is removed: its mount point is another directory.
    fs::rename(&stick, daemon.path().join("away")).unwrap();
    fs::create_dir(&stick).unwrap();
    daemon.until("another directory in its place", || {
        (directory(&daemon, &stick)["state"] == "replaced").then_some(())
    });
    until_looked(&daemon, "n");
    assert_eq!(ask(&daemon, "m").status, 200);
    assert_eq!(daemon.get("/readyz").body, b"ok\n");
    assert_eq!(count(&daemon, Message::DropDirectoryReplaced), 0);
    daemon.stop();
}

#[test]
fn model_outlives_its_file_by_default() {
    let (root, stick) = root(false);
    fs::create_dir(&stick).unwrap();
    let file = write(&stick, "m");
    let daemon = root.start();
    until_answers(&daemon, "m");
    fs::remove_file(file).unwrap();
    until_looked(&daemon, "n");
    write(&stick, "o");
    until_answers(&daemon, "o");
    assert_eq!(ask(&daemon, "m").status, 200);
    daemon.stop();
}

#[test]
fn model_stays_while_one_directory_has_its_package() {
    // The result must not depend on the directory that loses the package first.
    for is_main_first in [true, false] {
        let (root, stick) = root(true);
        fs::create_dir(&stick).unwrap();
        let files = [dropped(&root, "m"), stick.join(file_name("m"))];
        let package = pack("tiny-bert-mean", "m", "1");
        files.iter().for_each(|file| fs::write(file, &package).unwrap());
        let mut daemon = root.start();
        daemon.wait_event_with(Message::PackageAccepted, &["stick/m.model.tar.zst"]);
        let accepted = Vec::from_iter(
            daemon.log().into_iter().filter(|line| is_event(line, Message::PackageAccepted)),
        );
        let of_m = accepted.iter().filter(|line| line.contains("m.model.tar.zst"));
        let order = Vec::from_iter(of_m.map(|line| line.contains("stick/")));
        assert_eq!(order, [false, true], "the main directory is first: {accepted:#?}");

        let [first, then] = if is_main_first { [0, 1] } else { [1, 0] };
        fs::remove_file(&files[first]).unwrap();
        daemon.wait_event_with(Message::PackageStays, &["m@1"]);
        daemon = daemon.stop().start();
        until_looked(&daemon, "n");
        assert_eq!(ask(&daemon, "m").status, 200);
        fs::remove_file(&files[then]).unwrap();
        until_gone(&daemon, "m");
        daemon.stop();
    }
}

#[test]
fn refused_package_stays_and_is_read_once() {
    let (root, stick) = root(true);
    fs::create_dir(&stick).unwrap();
    let bad = stick.join(file_name("bad"));
    fs::write(&bad, "not a package").unwrap();
    let daemon = root.start();
    daemon.wait_event_with(Message::PackageRefused, &["stick/bad.model.tar.zst"]);
    daemon.until("the refused package in the status", || {
        let status = daemon.status();
        let shown = status["intake"].as_array().unwrap().first().cloned()?;
        (shown["state"] == "refused" && shown["file"] == file_name("bad")).then_some(())
    });
    until_looked(&daemon, "n");
    write(&stick, "m");
    until_answers(&daemon, "m");
    assert_eq!(count(&daemon, Message::PackageRefused), 1);
    assert_eq!(names(&stick), [file_name("bad"), file_name("m")]);
    // Other contents are read.
    write(&stick, "bad");
    until_answers(&daemon, "bad");
    daemon.stop();
}

#[test]
fn model_of_present_file_is_not_removed_by_command() {
    let (root, stick) = root(true);
    fs::create_dir(&stick).unwrap();
    let file = write(&stick, "m");
    let daemon = root.start();
    until_answers(&daemon, "m");
    let remove = || daemon.cli().args(["model", "remove", "m"]).output().unwrap();
    let refused = remove();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && stderr.contains(file.to_str().unwrap()), "{stderr}");
    assert!(file.exists() && ask(&daemon, "m").status == 200);
    // The disk is removed: the model may be removed, too.
    fs::rename(&stick, daemon.path().join("away")).unwrap();
    let removed = remove();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    until_gone(&daemon, "m");
    daemon.stop();
}

#[test]
fn other_files_of_a_disk_are_not_mentioned() {
    let (root, stick) = root(false);
    fs::create_dir_all(stick.join("photos")).unwrap();
    fs::write(stick.join("holiday.zip"), "").unwrap();
    fs::write(stick.join("m.gguf"), "").unwrap();
    let daemon = root.start();
    daemon.wait_event_with(Message::NotAPackage, &["m.gguf", "stick"]);
    until_looked(&daemon, "n");
    assert_eq!(count(&daemon, Message::NotAPackage), 1);
    daemon.stop();
}
