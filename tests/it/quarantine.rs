//! Tests of packages that are not accepted: some go to quarantine, others are waited for, and
//! neither kind disturbs the service.

#![expect(clippy::print_stderr, reason = "the reasons are printed")]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use caxton::telemetry::log::Message;
use minisign::KeyPair;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, file_name, flip_a_bit, stored, until_answers, until_gone, until_looked,
    until_quarantined, until_staging_is_empty,
};
use crate::support::{Root, is_event, pack, skipped};

#[test]
fn invalid_packages_are_quarantined_with_their_reason() {
    let daemon = Root::new().with("packages.incomplete_timeout", json!("2s")).start();
    let good = pack("tiny-bert-mean", "m", "1");
    let mut flipped = good.clone();
    flip_a_bit(&mut flipped);
    let other_sum = format!("{}  {}\n", "0".repeat(64), file_name("other-sum"));
    fs::write(daemon.drop_directory().join("other-sum.model.tar.zst.sha256"), other_sum).unwrap();
    let cases: [(&str, &[u8], &str); 6] = [
        ("flipped", &flipped, ""),
        ("other-sum", &good, "its .sha256 file says 0000"),
        ("half", &good[..good.len() / 2], "did not arrive within 2s"),
        ("empty", b"", "did not arrive within 2s"),
        ("text", b"not a package at all", "zstd"),
        ("longer", &[good.as_slice(), b"more"].concat(), ""),
    ];
    for (id, content, _) in cases {
        fs::write(dropped(&daemon, id), content).unwrap();
    }
    for (id, _, word) in cases {
        let reason = until_quarantined(&daemon, id);
        assert!(reason.len() > 10 && reason.contains(word), "{id}: {reason}");
        eprintln!("{id}: {}", reason.trim());
    }
    let quarantine = daemon.drop_directory().join("quarantine");
    assert!(quarantine.join("other-sum.model.tar.zst.sha256").exists());
    assert_eq!(stored(&daemon).len(), 1);
    until_staging_is_empty(&daemon);
    daemon.embed(json!("a text"));
    // The rejected files are not read again, and the same bytes are accepted under another name.
    let count = daemon.log().len();
    fs::write(dropped(&daemon, "m"), &good).unwrap();
    until_answers(&daemon, "m");
    let log = daemon.log();
    let mut later = log.iter().skip(count);
    assert!(!later.any(|line| is_event(line, Message::PackageRefused)), "{log:#?}");
    daemon.stop();
}

#[test]
fn rejected_successor_does_not_remove_the_model() {
    let daemon = Root::new().start();
    let good = pack("tiny-bert-mean", "m", "1");
    fs::write(dropped(&daemon, "m"), &good).unwrap();
    until_answers(&daemon, "m");
    let mut flipped = good.clone();
    flip_a_bit(&mut flipped);
    fs::write(dropped(&daemon, "m"), &flipped).unwrap();
    until_quarantined(&daemon, "m");
    assert_eq!(ask(&daemon, "m").status, 200);
    let daemon = daemon.stop().start();
    until_looked(&daemon, "n");
    assert_eq!(ask(&daemon, "m").status, 200);

    // The package itself, not a successor, is found to be wrong later.
    let quarantine = |id: &str| {
        let sum = daemon.drop_directory().join(format!("{}.sha256", file_name(id)));
        fs::write(sum, format!("{}  {}\n", "0".repeat(64), file_name(id))).unwrap();
        until_quarantined(&daemon, id);
    };
    fs::copy(dropped(&daemon, "n"), dropped(&daemon, "copy")).unwrap();
    let copy = file_name("copy");
    daemon.wait_event_with(Message::PackageAccepted, &[&copy, "existed=true"]);
    quarantine("copy");
    daemon.wait_event_with(Message::PackageStays, &[&copy, "model=n@1"]);
    assert_eq!(ask(&daemon, "n").status, 200);
    quarantine("n");
    until_gone(&daemon, "n");
}

#[test]
fn irregular_drop_files_do_not_disturb_service() {
    let root = Root::new();
    let package = root.path().join("package");
    fs::write(&package, pack("tiny-bert-mean", "link", "1")).unwrap();
    let at = |id: &str| dropped(&root, id);
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(&package, at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let mut odd = vec!["fifo", "directory", "link", "dangling", "socket"];
    let device = Command::new("mknod").arg(at("device")).args(["c", "1", "5"]).output();
    match device {
        Ok(made) if made.status.success() => odd.push("device"),
        _ => skipped("a device in the drop directory", "the right to make one"),
    }
    // The file name is not UTF-8, and the sidecar is not a regular file.
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff.model.tar.zst");
    fs::write(root.drop_directory().join(name), "").unwrap();
    mkfifo(&root.drop_directory().join("late.model.tar.zst.sha256"), Mode::S_IRWXU).unwrap();
    let daemon = root.start();
    for id in &odd {
        daemon.wait_event_with(Message::PackageRefused, &["ERROR", &file_name(id)]);
    }
    until_looked(&daemon, "m");
    daemon.embed(json!("a text"));
    assert_eq!(stored(&daemon).len(), 2);
    for id in odd {
        // A directory stays in place: it may contain anything, and the quarantine deletes its
        // oldest entries.
        let stays = id == "directory";
        let moved = daemon.drop_directory().join("quarantine").join(file_name(id));
        let there = [dropped(&daemon, id), moved].map(|path| fs::symlink_metadata(path).is_ok());
        assert_eq!(there, [stays, !stays], "{id}");
    }
    daemon.stop();
}

#[test]
fn packages_need_signature_of_configured_key() {
    // A package with a wrong signature may still be incomplete, so the daemon waits for this time.
    let root = Root::without_bundled().with("packages.incomplete_timeout", json!("5s"));
    let generate = || KeyPair::generate_unencrypted_keypair().unwrap();
    let (ours, theirs) = (generate(), generate());
    fs::write(root.keys().join("ours.pub"), ours.pk.to_box().unwrap().to_string()).unwrap();
    let daemon = root.start();
    let sign = |key: &KeyPair, package: &[u8]| {
        minisign::sign(None, &key.sk, package, None, None).unwrap().into_string()
    };
    let signature = |id: &str| daemon.drop_directory().join(format!("{}.minisig", file_name(id)));
    let package = pack("tiny-bert-mean", "ours", "1");
    fs::write(dropped(&daemon, "ours"), &package).unwrap();
    let waiting = daemon.wait_event_with(Message::PackageIncomplete, &[&file_name("ours")]);
    assert!(waiting.contains("a signature is required"), "{waiting}");
    assert_eq!(ask(&daemon, "ours").status, 404);
    fs::write(signature("ours"), sign(&ours, &package)).unwrap();
    until_answers(&daemon, "ours");
    let accepted = daemon.wait_event_with(Message::PackageAccepted, &[&file_name("ours")]);
    assert!(accepted.contains("valid, key"), "{accepted}");

    let package = pack("tiny-bert-mean", "theirs", "1");
    fs::write(signature("theirs"), sign(&theirs, &package)).unwrap();
    fs::write(dropped(&daemon, "theirs"), &package).unwrap();
    let reason = until_quarantined(&daemon, "theirs");
    assert!(reason.contains("not one of the configured keys"), "{reason}");

    let other = pack("tiny-bert-mean", "other", "1");
    fs::write(signature("other"), sign(&ours, &package)).unwrap();
    fs::write(dropped(&daemon, "other"), other).unwrap();
    let reason = until_quarantined(&daemon, "other");
    assert!(reason.contains("does not match"), "{reason}");
    assert_eq!(stored(&daemon).len(), 1);
}
