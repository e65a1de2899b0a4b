//! Attack: the key of one vendor signs a package under the id of another vendor.

use std::fs;

use serde_json::json;

use crate::support::packages::{ask, until_answers, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Root, pack};

#[test]
fn key_signs_only_ids_with_its_prefix() {
    let root = Root::new();
    let (site, vendor) = (Signer::new(), Signer::new());
    site.trust(&root, "site.pub", "");
    vendor.trust(&root, "vendor.pub", "prefix: acme-\n");
    let daemon = root.start();
    vendor.drop(&daemon, "acme-one", &pack("tiny-bert-mean", "acme-one", "1"));
    until_answers(&daemon, "acme-one");
    site.drop(&daemon, "own", &pack("tiny-bert-mean", "own", "1"));
    until_answers(&daemon, "own");

    // The id in the manifest counts, not the name of the file.
    let package = pack("tiny-bert-mean", "own", "2");
    vendor.drop(&daemon, "acme-two", &package);
    let reason = until_quarantined(&daemon, "acme-two");
    assert!(reason.contains("may not sign \"own\"") && reason.contains("vendor.pub"), "{reason}");
    assert_eq!(ask(&daemon, "own").header("x-caxton-model"), Some("own@1"));

    // The command line checks the same without a daemon.
    let root = daemon.stop();
    let file = root.path().join("own.model.tar.zst");
    fs::write(&file, &package).unwrap();
    fs::write(root.path().join("own.model.tar.zst.minisig"), vendor.sign(&package)).unwrap();
    let refused = root.cli().args(["model", "install"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(said.contains("may not sign \"own\""), "{said}");

    // The vendor's key gets a narrower prefix: models that it may not sign any more are disabled.
    let daemon = root.start();
    until_answers(&daemon, "acme-one");
    vendor.trust(&daemon, "vendor.pub", "prefix: acme-x\n");
    daemon.until("acme-one to be disabled", || {
        (daemon.package("acme-one")["status"] == "disabled").then_some(())
    });
    // An unknown line in the key file neither grants nor revokes a permission: no package is
    // installed.
    vendor.trust(&daemon, "vendor.pub", "prefixes: acme-\n");
    daemon.wait_log("no package is installed before this is mended");
    let package = pack("tiny-bert-mean", "acme-three", "1");
    let answer = daemon.connect().request("POST", "/api/packages", &[], &package);
    assert_eq!((answer.status, &answer.error()["code"]), (500, &json!("keys_unusable")));
    assert_eq!(ask(&daemon, "own").status, 200);
    daemon.stop();
}
