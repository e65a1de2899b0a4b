//! Attack: a bit of a stored model flips while the model is not in memory.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, file_name, flip_a_bit_of, until_answers, until_looked,
};
use crate::support::{Root, pack};

/// Longest time for which a corrupt model may be unavailable while its package exists.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn model_corrupt_at_load_is_repaired_from_package() {
    let root = Root::new()
        .with("memory.fallback_strategy", json!("strict"))
        .with("memory.model_cache.validation_on_startup", json!(false));
    let package = |id| pack("tiny-bert-mean", id, "1");
    fs::write(root.bundled().join(file_name("bundled")), package("bundled")).unwrap();
    fs::write(root.drop_directory().join(file_name("dropped")), package("dropped")).unwrap();
    let daemon = root.start();
    // An administrator installed this model, and its package does not exist any more.
    let alone = daemon.path().join(file_name("alone"));
    fs::write(&alone, package("alone")).unwrap();
    let installed = daemon.cli().args(["model", "install"]).arg(&alone).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    fs::remove_file(&alone).unwrap();
    // Do not send requests to these models: a model in memory is not read again.
    for id in ["bundled", "dropped"] {
        daemon.until(id, || (daemon.package(id)["status"] == "available").then_some(()));
    }
    assert!(dropped(&daemon, "dropped").exists());

    for id in ["bundled", "dropped", "alone"] {
        flip_a_bit_of(&entry(&daemon, id).join("model.safetensors"));
        let answer = ask(&daemon, id);
        assert_eq!(
            (answer.status, &answer.error()["code"]),
            (503, &json!("model_corrupt")),
            "{id}"
        );
    }
    for id in ["bundled", "dropped"] {
        let began = Instant::now();
        until_answers(&daemon, id);
        assert!(began.elapsed() < HEALED_WITHIN, "{id}: {:?}", began.elapsed());
        assert_eq!(daemon.package(id)["status"], "available");
    }
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
