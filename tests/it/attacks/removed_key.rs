//! Attack: a key is stolen, and its file is removed. The packages that the thief has signed and
//! installed still answer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{ask, dropped, until_answers};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

fn status(daemon: &Daemon) -> String {
    daemon.package("m")["status"].as_str().unwrap_or_default().to_owned()
}

fn until_disabled(daemon: &Daemon) {
    daemon.until("m to be disabled", || (status(daemon) == "disabled").then_some(()));
}

/// Starts a daemon with the model `old`, which was installed before there was a key, and the model
/// `m`, which the key in `stolen.pub` has signed. A second key is trusted, too.
fn with_signed_model() -> Daemon {
    let daemon = Root::new().with("memory.fallback_strategy", json!("strict")).start();
    fs::write(dropped(&daemon, "old"), pack("tiny-bert-mean", "old", "1")).unwrap();
    until_answers(&daemon, "old");
    let (stolen, other) = (Signer::new(), Signer::new());
    stolen.trust(&daemon, "stolen.pub", "");
    other.trust(&daemon, "other.pub", "");
    stolen.drop(&daemon, "m", &pack("tiny-bert-mean", "m", "1"));
    until_answers(&daemon, "m");
    daemon
}

/// Moves the key file away and waits until `m` is disabled. Returns the new path of the key file.
fn remove_key(daemon: &Daemon) -> PathBuf {
    let aside = daemon.path().join("aside");
    fs::rename(stolen_key(daemon), &aside).unwrap();
    until_disabled(daemon);
    aside
}

fn stolen_key(root: &Root) -> PathBuf {
    root.keys().join("stolen.pub")
}

#[test]
fn status_shows_signer_and_unsigned_models() {
    let daemon = with_signed_model();
    let signer = daemon.package("m")["signed_by"].as_str().unwrap().to_owned();
    assert!(signer.ends_with("(stolen.pub)") && signer.len() > 16, "{signer}");
    daemon.until("the unsigned model to be named", || {
        (daemon.status()["unsigned"] == json!(["old@1"])).then_some(())
    });
    daemon.stop();
}

#[test]
fn unsigned_model_is_disabled_at_start_until_signed() {
    let root = with_signed_model().stop().with("packages.disable_unsigned", json!(true));
    let daemon = root.start();
    let answer = ask(&daemon, "old");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_disabled")));
    let message = answer.error()["message"].to_string();
    assert!(message.contains("packages.disable_unsigned is true"), "{message}");
    assert_eq!((ask(&daemon, "m").status, ask(&daemon, "bundled-mini").status), (200, 200));
    assert_eq!(daemon.status()["unsigned"], json!(["old@1"]));
    // A signature for the same contents enables the model.
    let signer = Signer::new();
    signer.trust(&daemon, "site.pub", "");
    signer.drop(&daemon, "signed", &pack("tiny-bert-mean", "old", "1"));
    until_answers(&daemon, "old");
    assert_eq!(daemon.status()["unsigned"], json!([]));
    daemon.stop();
}

#[test]
fn removed_key_disables_its_models() {
    let daemon = with_signed_model();
    assert_eq!(daemon.package("m")["residency"], "resident");
    remove_key(&daemon);
    let answer = ask(&daemon, "m");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_disabled")));
    let message = answer.error()["message"].to_string();
    assert!(message.contains("its key was removed") && message.contains("stolen.pub"), "{message}");
    assert_ne!(daemon.package("m")["residency"], "resident");
    assert!(daemon.wait_event(Message::PackageDisabled).contains("model=m@1+"));
    assert_eq!(ask(&daemon, "old").status, 200);
    let models = daemon.get("/v1/models").json()["data"].to_string();
    assert!(!models.contains("\"m\""), "{models}");
    daemon.stop();
}

#[test]
fn other_key_of_same_name_enables_no_model() {
    let daemon = with_signed_model();
    remove_key(&daemon);
    Signer::new().trust(&daemon, "stolen.pub", "");
    let root = daemon.stop();
    let listed = root.cli().args(["model", "list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("disabled") && listed.contains("its key was removed"), "{listed}");
    let daemon = root.start();
    assert_eq!((status(&daemon).as_str(), ask(&daemon, "m").status), ("disabled", 503));
    daemon.stop();
}

#[test]
fn restored_key_enables_its_models() {
    let daemon = with_signed_model();
    let aside = remove_key(&daemon);
    // An unreadable key file enables no model.
    fs::write(stolen_key(&daemon), "no key").unwrap();
    daemon.wait_event(Message::KeyUnusable);
    assert_eq!(status(&daemon), "disabled");
    fs::rename(&aside, stolen_key(&daemon)).unwrap();
    until_answers(&daemon, "m");
    assert_eq!(status(&daemon), "available");
    daemon.stop();
}

#[test]
fn removal_of_all_keys_disables_signed_models() {
    let daemon = with_signed_model();
    fs::remove_file(daemon.keys().join("other.pub")).unwrap();
    fs::remove_file(stolen_key(&daemon)).unwrap();
    until_disabled(&daemon);
    assert_eq!(ask(&daemon, "m").status, 503);
    daemon.stop();
}
