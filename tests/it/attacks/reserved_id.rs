//! Attack: a dropped package declares the id of the bundled model and a higher version. Requests
//! without a model name would be answered from another embedding space.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::json;

use crate::support::packages::{dropped, install, stored, until_quarantined};
use crate::support::{Root, pack, tiny_package};

/// Checks that the command line does not install a package with the id of the bundled model.
fn check_install_is_refused(root: &Root) {
    let file = root.path().join("own.model.tar.zst");
    fs::write(&file, pack("tiny-bert-cls", "bundled-mini", "2")).unwrap();
    let (code, stderr) = install(root, &file, &["--replace", "--allow-downgrade"]);
    assert_eq!(code, Some(65), "{stderr}");
    assert!(stderr.contains("is that of a bundled package"), "{stderr}");
}

#[test]
fn dropped_package_cannot_take_a_bundled_id() {
    let daemon = Root::new().start();
    let vectors = daemon.embed(json!("a text"));
    // Neither another model nor the same one may take the id.
    for (file, model) in [("weather-tiny", "tiny-bert-cls"), ("weather-same", "tiny-bert-mean")] {
        fs::write(dropped(&daemon, file), pack(model, "bundled-mini", "999")).unwrap();
        let reason = until_quarantined(&daemon, file);
        assert!(reason.contains("\"bundled-mini\" is that of a bundled package"), "{reason}");
        assert_eq!(daemon.embed(json!("a text")), vectors);
    }
    daemon.stop();
}

#[test]
fn installed_package_cannot_take_a_bundled_id() {
    let daemon = Root::new().start();
    check_install_is_refused(&daemon);
    let root = daemon.stop();
    check_install_is_refused(&root);
    assert_eq!(stored(&root).len(), 1);
}

#[test]
fn bundled_id_is_reserved_before_its_first_install() {
    let daemon = Root::new().start();
    let vectors = daemon.embed(json!("a text"));
    let root = daemon.stop();
    fs::remove_dir_all(root.state()).unwrap();
    check_install_is_refused(&root);
    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")), vectors);
    daemon.stop();
}

#[test]
fn bundled_package_may_be_installed_again() {
    let daemon = Root::new().start();
    let file = daemon.path().join("own.model.tar.zst");
    fs::write(&file, tiny_package()).unwrap();
    let again = daemon.cli().args(["model", "install"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("already installed"));
    daemon.stop();
}

#[test]
fn model_is_disabled_when_its_id_becomes_bundled() {
    let root = Root::without_bundled().with("memory.embedding_model", json!("bundled-mini"));
    let daemon = root.start();
    fs::write(dropped(&daemon, "own"), pack("tiny-bert-cls", "bundled-mini", "999")).unwrap();
    daemon.until("the dropped model", || (daemon.get("/readyz").status == 200).then_some(()));
    let root = daemon.stop();
    fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), tiny_package()).unwrap();
    let daemon = root.start();
    let answer = daemon.embeddings(&json!({ "input": "a text" }));
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"), "{answer:?}");
    let packages = daemon.status()["packages"].as_array().unwrap().clone();
    let own = packages.iter().find(|package| package["version"] == "999").unwrap();
    assert_eq!(own["status"], "disabled");
    assert!(own["problem"].as_str().unwrap().contains("bundled package"), "{own}");
    daemon.stop();
}
