//! Attack: the key of one vendor signs a package under the id of another vendor.

use std::fs;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{ask, install, until_answers, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

/// Keys that a daemon trusts.
struct Keys {
    /// Key for every id.
    site: Signer,
    /// Key for ids that begin with `acme-`.
    vendor: Signer,
}

fn with_keys() -> (Daemon, Keys) {
    let root = Root::new();
    let (site, vendor) = (Signer::new(), Signer::new());
    site.trust(&root, "site.pub", "");
    vendor.trust(&root, "vendor.pub", "prefix: acme-\n");
    (root.start(), Keys { site, vendor })
}

#[test]
fn key_signs_only_ids_with_its_prefix() {
    let (daemon, Keys { site, vendor }) = with_keys();
    vendor.drop(&daemon, "acme-one", &pack("tiny-bert-mean", "acme-one", "1"));
    until_answers(&daemon, "acme-one");
    site.drop(&daemon, "own", &pack("tiny-bert-mean", "own", "1"));
    until_answers(&daemon, "own");
    // The id in the manifest counts, not the name of the file.
    vendor.drop(&daemon, "acme-two", &pack("tiny-bert-mean", "own", "2"));
    let reason = until_quarantined(&daemon, "acme-two");
    assert!(reason.contains("may not sign \"own\"") && reason.contains("vendor.pub"), "{reason}");
    assert_eq!(ask(&daemon, "own").header("x-caxton-model"), Some("own@1"));
    daemon.stop();
}

#[test]
fn command_line_checks_prefix_without_daemon() {
    let (daemon, Keys { vendor, .. }) = with_keys();
    let root = daemon.stop();
    let package = pack("tiny-bert-mean", "own", "2");
    let file = root.path().join("own.model.tar.zst");
    fs::write(&file, &package).unwrap();
    fs::write(root.path().join("own.model.tar.zst.minisig"), vendor.sign(&package)).unwrap();
    let (code, stderr) = install(&root, &file, &[]);
    assert_eq!(code, Some(65), "{stderr}");
    assert!(stderr.contains("may not sign \"own\""), "{stderr}");
}

#[test]
fn narrower_prefix_disables_models() {
    let (daemon, Keys { vendor, .. }) = with_keys();
    vendor.drop(&daemon, "acme-one", &pack("tiny-bert-mean", "acme-one", "1"));
    until_answers(&daemon, "acme-one");
    vendor.trust(&daemon, "vendor.pub", "prefix: acme-x\n");
    daemon.until("acme-one to be disabled", || {
        (daemon.package("acme-one")["status"] == "disabled").then_some(())
    });
    daemon.stop();
}

#[test]
fn unknown_line_in_key_file_prevents_installs() {
    let (daemon, Keys { site, vendor }) = with_keys();
    site.drop(&daemon, "own", &pack("tiny-bert-mean", "own", "1"));
    until_answers(&daemon, "own");
    vendor.trust(&daemon, "vendor.pub", "prefixes: acme-\n");
    daemon.wait_event(Message::KeyUnusable);
    let package = pack("tiny-bert-mean", "acme-three", "1");
    let answer = daemon.connect().request("POST", "/api/packages", &[], &package);
    assert_eq!((answer.status, &answer.error()["code"]), (500, &json!("keys_unusable")));
    assert_eq!(ask(&daemon, "own").status, 200);
    daemon.stop();
}
