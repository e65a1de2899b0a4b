//! Attack: a bit of a stored model flips while the model is not in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, file_name, flip_a_bit_of, install, until_answers, until_looked,
};
use crate::support::{Daemon, Root, pack};

/// Longest time for which a corrupt model may be unavailable while its package exists.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

/// Returns a root with the dropped package `dropped`, whose models are verified only when they are
/// loaded.
fn root_with_dropped() -> Root {
    let root = Root::new()
        .with("memory.fallback_strategy", json!("strict"))
        .with("memory.model_cache.validation_on_startup", json!(false));
    fs::write(dropped(&root, "dropped"), pack("tiny-bert-mean", "dropped", "1")).unwrap();
    root
}

/// Waits until `id` is available. Sends it no request, because a model in memory is not read again.
fn until_available(daemon: &Daemon, id: &str) {
    daemon.until(id, || (daemon.package(id)["status"] == "available").then_some(()));
}

/// Flips a bit of the stored weights of `id`, and checks that a request for it fails.
fn corrupt(daemon: &Daemon, id: &str) {
    flip_a_bit_of(&entry(daemon, id).join("model.safetensors"));
    let answer = ask(daemon, id);
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_corrupt")), "{id}");
}

#[test]
fn model_corrupt_at_load_is_repaired_from_package() {
    let root = root_with_dropped();
    let package = pack("tiny-bert-mean", "bundled", "1");
    fs::write(root.bundled().join(file_name("bundled")), package).unwrap();
    let daemon = root.start();
    for id in ["bundled", "dropped"] {
        until_available(&daemon, id);
    }
    assert!(dropped(&daemon, "dropped").exists());
    for id in ["bundled", "dropped"] {
        corrupt(&daemon, id);
    }
    for id in ["bundled", "dropped"] {
        let began = Instant::now();
        until_answers(&daemon, id);
        assert!(began.elapsed() < HEALED_WITHIN, "{id}: {:?}", began.elapsed());
        assert_eq!(daemon.package(id)["status"], "available");
    }
}

#[test]
fn corrupt_model_without_package_stays_corrupt() {
    let daemon = root_with_dropped().start();
    let file = daemon.path().join(file_name("alone"));
    fs::write(&file, pack("tiny-bert-mean", "alone", "1")).unwrap();
    let (code, stderr) = install(&daemon, &file, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    fs::remove_file(&file).unwrap();
    until_available(&daemon, "dropped");
    for id in ["alone", "dropped"] {
        corrupt(&daemon, id);
    }
    // Wait until the daemon has repaired a model that it can repair.
    until_answers(&daemon, "dropped");
    let answer = ask(&daemon, "alone");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_corrupt")));
    assert_eq!(daemon.package("alone")["status"], "corrupt");
}

#[test]
fn model_corrupt_at_verify_is_repaired_from_package() {
    let daemon = Root::new().start();
    until_looked(&daemon, "m");
    flip_a_bit_of(&entry(&daemon, "m").join("model.safetensors"));
    let verified = daemon.connect().request("POST", "/api/packages/m/verify", &[], b"");
    assert_eq!((verified.status, &verified.error()["code"]), (409, &json!("model_corrupt")));
    let began = Instant::now();
    until_answers(&daemon, "m");
    assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());
}
