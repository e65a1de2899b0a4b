//! Tests of the drop directory as an operator sees it: a package serves soon after its last byte,
//! and its model is removed together with its file.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints the time that it measured"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, file_name, stored, until_answers, until_gone, until_looked,
};
use crate::support::{Daemon, Root, is_event, pack, tiny_package};

/// Longest time from the last byte of a dropped package to its first answer.
const PROMISED: Duration = Duration::from_secs(2);

/// Way to bring a package into a directory. Returns when the last byte is written.
type Way = fn(&Daemon, &Path, &[u8]);

const WAYS: [(&str, Way); 4] = [
    ("cp", |_, path, package| fs::write(path, package).unwrap()),
    ("mv", |daemon, path, package| {
        let elsewhere = daemon.path().join("elsewhere");
        fs::write(&elsewhere, package).unwrap();
        fs::rename(elsewhere, path).unwrap();
    }),
    ("rsync", |_, path, package| {
        // rsync uses such a name while it copies.
        let name = format!(".{}.Xa3b9Q", path.file_name().unwrap().to_str().unwrap());
        let temporary = path.with_file_name(name);
        let mut file = File::create(&temporary).unwrap();
        for piece in package.chunks(64 << 10) {
            file.write_all(piece).unwrap();
        }
        fs::rename(temporary, path).unwrap();
    }),
    ("slow pieces", |daemon, path, package| {
        let mut file = File::create(path).unwrap();
        for piece in package.chunks(package.len() / 3 + 1) {
            if file.metadata().unwrap().len() > 0 {
                let name = path.file_name().unwrap().to_str().unwrap();
                let count = daemon.log().len();
                daemon.wait_event_after(count, Message::PackageIncomplete, &[name]);
            }
            file.write_all(piece).unwrap();
        }
    }),
];

#[test]
fn dropped_package_answers_within_two_seconds() {
    let daemon = Root::new().start();
    for (way, put) in WAYS {
        // A busy machine can be slow once. A daemon that is itself too slow fails every try.
        let mut tries = (0..3).map(|attempt| {
            let id = format!("{}-{attempt}", way.replace(' ', "-"));
            let package = pack("tiny-bert-mean", &id, "1");
            put(&daemon, &dropped(&daemon, &id), &package);
            let start = Instant::now();
            until_answers(&daemon, &id);
            let took = start.elapsed();
            assert_eq!(daemon.package(&id)["origin"], "dropped");
            eprintln!("{way}: answers {} ms after its last byte", took.as_millis());
            took
        });
        assert!(tries.any(|took| took <= PROMISED), "{way}: three times over {PROMISED:?}");
    }
}

/// Starts a daemon, drops version 1 of the model `m` with the weights `model`, and waits until it
/// answers.
fn start_with_dropped(model: &str) -> Daemon {
    let daemon = Root::new().with("packages.replace_embedding_space", json!(true)).start();
    fs::write(dropped(&daemon, "m"), pack(model, "m", "1")).unwrap();
    until_answers(&daemon, "m");
    daemon
}

#[test]
fn new_content_of_a_file_replaces_its_model() {
    let daemon = start_with_dropped("tiny-bert-mean");
    let (first, mean) = (daemon.package("m"), ask(&daemon, "m").vectors());
    // The package has the same id and version, but other content.
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-cls", "m", "1")).unwrap();
    daemon.until("the new content", || (ask(&daemon, "m").vectors() != mean).then_some(()));
    daemon.until("the old content to leave", || (stored(&daemon).len() == 2).then_some(()));
    let second = daemon.package("m");
    assert_eq!((&second["version"], &second["status"]), (&json!("1"), &json!("available")));
    assert_ne!(first["revision"], second["revision"]);
    assert_eq!(stored(&daemon).len(), 2);
    daemon.stop();
}

#[test]
fn lower_version_in_a_file_replaces_its_model() {
    let daemon = start_with_dropped("tiny-bert-cls");
    let cls = ask(&daemon, "m").vectors();
    // The old version has no file any more, so it does not stay although it is higher.
    fs::write(dropped(&daemon, "m"), pack("tiny-bert-mean", "m", "0.9")).unwrap();
    daemon.until("the old version to leave", || {
        (daemon.package("m")["version"] == "0.9" && stored(&daemon).len() == 2).then_some(())
    });
    let mean = ask(&daemon, "bundled-mini").vectors();
    assert_ne!(cls, mean);
    assert_eq!(ask(&daemon, "m").vectors(), mean);
    daemon.stop();
}

#[test]
fn renamed_file_removes_and_installs_its_model() {
    let daemon = start_with_dropped("tiny-bert-mean");
    fs::rename(dropped(&daemon, "m"), dropped(&daemon, "n")).unwrap();
    daemon.wait_event_with(Message::PackageRemoved, &[&file_name("m")]);
    until_answers(&daemon, "m");
    daemon.stop();
}

#[test]
fn removed_file_removes_its_model_only() {
    let daemon = start_with_dropped("tiny-bert-mean");
    fs::remove_file(dropped(&daemon, "m")).unwrap();
    until_gone(&daemon, "m");
    assert_eq!(stored(&daemon).len(), 1);
    daemon.embed(json!("the bundled model is still there"));
    daemon.stop();
}

#[test]
fn model_outlives_its_file_when_configured() {
    let daemon = Root::new().with("packages.remove_with_file", json!(false)).start();
    until_looked(&daemon, "m");
    fs::remove_file(dropped(&daemon, "m")).unwrap();
    until_looked(&daemon, "n");
    assert_eq!(ask(&daemon, "m").status, 200);
    let daemon = daemon.stop().start();
    until_looked(&daemon, "o");
    assert_eq!(ask(&daemon, "m").status, 200);
}

#[test]
fn model_is_removed_with_its_last_file() {
    // The result must not depend on which file was read last, nor on a restart in between.
    for (first, then) in [("a", "b"), ("b", "a")] {
        let mut daemon = Root::new().start();
        let package = pack("tiny-bert-mean", "m", "1");
        for id in ["a", "b"] {
            fs::write(dropped(&daemon, id), &package).unwrap();
            daemon.wait_event_with(Message::PackageAccepted, &[&file_name(id)]);
        }
        if first == "a" {
            daemon = daemon.stop().start();
        }
        fs::remove_file(dropped(&daemon, first)).unwrap();
        daemon.wait_event_with(Message::PackageStays, &[&file_name(first), "m@1"]);
        assert_eq!(ask(&daemon, "m").status, 200);
        assert_eq!(daemon.package("m")["origin"], "dropped");
        fs::remove_file(dropped(&daemon, then)).unwrap();
        until_gone(&daemon, "m");
        assert_eq!(stored(&daemon).len(), 1);
        daemon.stop();
    }
}

#[test]
fn removed_copy_of_bundled_package_removes_nothing() {
    let daemon = Root::new().start();
    let path = dropped(&daemon, "copy");
    fs::write(&path, tiny_package()).unwrap();
    daemon.wait_event_with(Message::PackageAccepted, &[&file_name("copy"), "existed=true"]);
    fs::remove_file(&path).unwrap();
    until_looked(&daemon, "m");
    assert_eq!(daemon.package("bundled-mini")["origin"], "bundled");
    daemon.embed(json!("a text"));
}

#[test]
fn restart_reads_only_changed_files() {
    let daemon = Root::new().with("packages.replace_embedding_space", json!(true)).start();
    for id in ["same", "replaced", "removed"] {
        until_looked(&daemon, id);
    }
    let installed_at = daemon.package("same")["installed_at"].clone();
    let root = daemon.stop();
    fs::write(dropped(&root, "replaced"), pack("tiny-bert-cls", "replaced", "1")).unwrap();
    fs::remove_file(dropped(&root, "removed")).unwrap();
    let daemon = root.start();
    until_gone(&daemon, "removed");
    daemon.wait_event(Message::PackageAccepted);
    until_looked(&daemon, "new");
    let mut accepted = daemon.log();
    accepted.retain(|line| is_event(line, Message::PackageAccepted));
    assert!(!accepted.iter().any(|line| line.contains("same")), "{accepted:#?}");
    // A file that was read while it was being written is read again; the second read logs
    // existed=true.
    accepted.retain(|line| line.contains("existed=false"));
    assert!(
        accepted.len() == 2 && accepted[0].contains("replaced") && accepted[1].contains("new"),
        "{accepted:#?}"
    );
    assert_eq!(daemon.package("same")["installed_at"], installed_at);
    let vectors = |id: &str| ask(&daemon, id).vectors();
    assert_ne!(vectors("replaced"), vectors("same"));
}
