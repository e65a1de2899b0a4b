//! Attack: a package gives an id another embedding space. The vectors that clients have stored
//! become useless, without any warning.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{ask, dropped, install, until_answers, until_quarantined};
use crate::support::{Daemon, Root, pack};

fn version(daemon: &Daemon) -> String {
    ask(daemon, "m").header("x-caxton-model").unwrap_or_default().to_owned()
}

fn until_version(daemon: &Daemon, expected: &str) {
    daemon.until(expected, || (version(daemon) == expected).then_some(()));
}

fn space(daemon: &Daemon) -> String {
    ask(daemon, "m").header("x-caxton-embedding-space").unwrap().to_owned()
}

/// Starts a daemon with version 1 of the model `m`.
fn with_model() -> Daemon {
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "m-1"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    daemon
}

/// Writes a package of version 2 of `m` with another embedding space, outside the drop directory.
fn package_of_other_space(root: &Root) -> PathBuf {
    let file = root.path().join("new.model.tar.zst");
    fs::write(&file, pack("tiny-bert-cls", "m", "2")).unwrap();
    file
}

#[test]
fn embedding_space_change_needs_administrator_consent() {
    let daemon = with_model();
    let space = space(&daemon);
    // Neither a higher nor a lower version may do this, nor other contents of the same version.
    for (file, number) in [("m-2", "2"), ("m-0", "0.1"), ("m-same", "1")] {
        fs::write(dropped(&daemon, file), pack("tiny-bert-cls", "m", number)).unwrap();
        let reason = until_quarantined(&daemon, file);
        assert!(
            reason.contains("would change the embedding space") && reason.contains(&space),
            "{reason}"
        );
        assert!(reason.contains("--replace"), "{reason}");
        assert_eq!(version(&daemon), "m@1");
    }
}

#[test]
fn new_version_of_same_space_is_installed() {
    let daemon = with_model();
    fs::write(dropped(&daemon, "m-1.1"), pack("tiny-bert-mean", "m", "1.1")).unwrap();
    until_version(&daemon, "m@1.1");
}

#[test]
fn administrator_may_replace_the_embedding_space() {
    let daemon = with_model();
    let before = space(&daemon);
    let file = package_of_other_space(&daemon);
    let (code, stderr) = install(&daemon, &file, &[]);
    assert_eq!(code, Some(65), "{stderr}");
    assert!(stderr.contains("would change the embedding space"), "{stderr}");
    assert_eq!(install(&daemon, &file, &["--replace"]), (Some(0), String::new()));
    assert_eq!(version(&daemon), "m@2");
    assert_ne!(space(&daemon), before);
}

#[test]
fn invalid_replace_parameter_is_rejected() {
    let daemon = Root::new().start();
    let answer = daemon.connect().request("POST", "/api/packages?replace=yes", &[], b"");
    assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("replace")));
}

#[test]
fn configuration_may_permit_other_embedding_spaces() {
    let mut daemon = with_model();
    daemon.root_mut().set("packages.replace_embedding_space", json!(true));
    daemon.wait_event(Message::ConfigurationApplied);
    fs::write(dropped(&daemon, "m-3"), pack("tiny-e5", "m", "3")).unwrap();
    until_version(&daemon, "m@3");
}

#[test]
fn embedding_space_is_checked_without_daemon() {
    let root = with_model().stop();
    let file = package_of_other_space(&root);
    let (code, stderr) = install(&root, &file, &[]);
    assert!(
        code == Some(65) && stderr.contains("would change the embedding space"),
        "{code:?} {stderr}"
    );
    assert_eq!(install(&root, &file, &["--replace"]), (Some(0), String::new()));
}
