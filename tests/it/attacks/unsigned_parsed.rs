//! Attack: a package without a valid signature tries to reach the decompressor or a parser while a
//! key is configured.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Output;

use caxton::telemetry::log::Message;
use minisign::KeyPair;
use serde_json::json;

use crate::support::packages::{
    dropped, file_name, stored, until_answers, until_quarantined, until_staging_is_empty,
};
use crate::support::{Daemon, Root, pack};

fn sign(key: &KeyPair, package: &[u8]) -> String {
    minisign::sign(None, &key.sk, package, None, None).unwrap().into_string()
}

fn with_key() -> (KeyPair, Daemon) {
    let key = KeyPair::generate_unencrypted_keypair().unwrap();
    let root = Root::without_bundled().with("packages.incomplete_timeout", json!("4s"));
    fs::write(root.keys().join("ours.pub"), key.pk.to_box().unwrap().to_string()).unwrap();
    (key, root.start())
}

/// Bytes that the first parser refuses.
const NOT_ZSTD: &[u8] = b"not a package at all";

#[test]
fn dropped_package_signature_is_verified_before_parsing() {
    let (key, daemon) = with_key();
    let signature = |id: &str| daemon.drop_directory().join(format!("{}.minisig", file_name(id)));
    fs::write(signature("m"), sign(&key, b"something else")).unwrap();
    fs::write(dropped(&daemon, "m"), NOT_ZSTD).unwrap();
    let reason = until_quarantined(&daemon, "m");
    assert!(reason.contains("does not match") && !reason.contains("zstd"), "{reason}");
    // The same bytes are parsed when their signature is valid.
    fs::write(signature("n"), sign(&key, NOT_ZSTD)).unwrap();
    fs::write(dropped(&daemon, "n"), NOT_ZSTD).unwrap();
    let reason = until_quarantined(&daemon, "n");
    assert!(reason.contains("zstd"), "{reason}");
}

#[test]
fn incomplete_signed_package_is_waited_for() {
    let (key, daemon) = with_key();
    let package = pack("tiny-bert-mean", "m", "1");
    let sidecar = daemon.drop_directory().join(format!("{}.minisig", file_name("m")));
    fs::write(sidecar, sign(&key, &package)).unwrap();
    fs::write(dropped(&daemon, "m"), &package[..package.len() / 2]).unwrap();
    daemon.wait_event_with(Message::PackageIncomplete, &[&file_name("m")]);
    fs::write(dropped(&daemon, "m"), &package).unwrap();
    until_answers(&daemon, "m");
}

fn install(daemon: &Daemon, path: &Path) -> Output {
    let socket = daemon.socket();
    let mut command = crate::support::cli();
    command.args(["model", "install", "--socket"]).arg(socket).arg(path).output().unwrap()
}

#[test]
fn uploaded_package_signature_is_verified_before_parsing() {
    let (key, daemon) = with_key();
    let place = |id: &str, content: &[u8], signed: &[u8]| {
        let path = daemon.path().join(file_name(id));
        fs::write(&path, content).unwrap();
        fs::write(path.with_file_name(format!("{}.minisig", file_name(id))), sign(&key, signed))
            .unwrap();
        path
    };
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let package = pack("tiny-bert-mean", "m", "1");

    let refused = install(&daemon, &place("bad", NOT_ZSTD, &package));
    let text = said(&refused);
    assert!(!refused.status.success() && text.contains("does not match"), "{text}");
    let refused = install(&daemon, &place("signed", NOT_ZSTD, NOT_ZSTD));
    let text = said(&refused);
    assert!(!refused.status.success() && text.contains("zstd"), "{text}");
    assert_eq!(stored(&daemon), Vec::<String>::new());
    until_staging_is_empty(&daemon);

    let installed = install(&daemon, &place("m", &package, &package));
    assert!(installed.status.success(), "{}", said(&installed));
    until_answers(&daemon, "m");
    until_staging_is_empty(&daemon);
}
