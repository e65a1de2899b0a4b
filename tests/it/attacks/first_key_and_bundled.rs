//! Attack: the first key disables the bundled model. An administrator who follows the manual gets a
//! daemon that never becomes ready.

use std::fs;

use serde_json::json;

use crate::support::packages::{dropped, entry, flip_a_bit_of, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

fn with_key() -> Daemon {
    let root = Root::new();
    Signer::new().trust(&root, "site.pub", "");
    root.start()
}

#[test]
fn bundled_packages_need_no_signature() {
    let daemon = with_key();
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.embed(json!("a text"));
    assert_eq!(daemon.package("bundled-mini")["signed_by"], json!(null));
    assert_eq!(daemon.status()["unsigned"], json!([]));
    daemon.stop();
}

#[test]
fn other_packages_need_a_trusted_signature() {
    let daemon = with_key();
    let package = pack("tiny-bert-mean", "m", "1");
    let answer = daemon.connect().request("POST", "/api/packages", &[], &package);
    assert_eq!((answer.status, &answer.error()["code"]), (400, &json!("signature_refused")));
    Signer::new().drop(&daemon, "strange", &package);
    assert!(until_quarantined(&daemon, "strange").contains("not one of the configured keys"));
    assert!(!dropped(&daemon, "strange").exists());
    daemon.stop();
}

#[test]
fn upgraded_bundled_package_needs_no_signature() {
    let root = with_key().stop();
    let newer = pack("tiny-bert-mean", "bundled-mini", "2");
    fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), newer).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["version"], "2");
    daemon.stop();
}

#[test]
fn damaged_bundled_model_is_repaired_without_signature() {
    let root = with_key().stop();
    flip_a_bit_of(&entry(&root, "bundled-mini").join("model.safetensors"));
    let daemon = root.start();
    daemon.until("the bundled model to be repaired", || {
        let answer = daemon.embeddings(&json!({ "input": "a text" }));
        (answer.status == 200).then_some(())
    });
    daemon.stop();
}
