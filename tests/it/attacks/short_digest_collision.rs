//! Two packages whose digests begin alike: the harmless one is signed and "was installed already", and the other one
//! answers.
//!
//! The manifests beside this file are of one model, and their SHA-256 begin with the same 48 bits: they differ in a prompt
//! and in the blanks at their end. It took 15 seconds of one processor to find them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;

use serde_json::json;

use crate::support::packages::{ask, dropped, install, until_answers, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Root, pack};

const GOOD: &[u8] = include_bytes!("short_digest_collision/good.json");
const EVIL: &[u8] = include_bytes!("short_digest_collision/evil.json");

/// The package of the model with this manifest.
fn package(manifest: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let archive = zstd::decode_all(&pack("tiny-bert-mean", "m", "1")[..]).unwrap();
    let size = |header: &[u8]| {
        let digits = std::str::from_utf8(&header[124..135]).unwrap();
        usize::from_str_radix(digits, 8).unwrap()
    };
    let rest = BLOCK + size(&archive).next_multiple_of(BLOCK);
    let mut header = archive[..BLOCK].to_vec();
    header[124..136].copy_from_slice(format!("{:011o}\0", manifest.len()).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut content = manifest.to_vec();
    content.resize(manifest.len().next_multiple_of(BLOCK), 0);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    for part in [&header, &content, &archive[rest..]] {
        encoder.write_all(part).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn a_package_that_is_shown_as_another_one_is_refused() {
    let digest = |bytes: &[u8]| caxton::package::Digest::of(bytes);
    let (good, evil) = (digest(GOOD), digest(EVIL));
    assert!(good != evil && good.short() == evil.short(), "{good} {evil}");

    // The evil one comes first, before there are keys; then the good one, which the administrator's key has signed.
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "evil"), package(EVIL)).unwrap();
    until_answers(&daemon, "m");
    assert_eq!(daemon.package("m")["manifest_sha256"], json!(evil.to_string()));
    let signer = Signer::new();
    signer.trust(&daemon, "site.pub", "");
    signer.drop(&daemon, "good", &package(GOOD));
    until_quarantined(&daemon, "good");
    assert!(!daemon.log().iter().any(|line| line.contains("existed=true")));

    // With every word of the administrator, too: the two cannot be told apart. The signature is good.
    let file = daemon.path().join("good.model.tar.zst");
    fs::write(&file, package(GOOD)).unwrap();
    fs::write(daemon.path().join("good.model.tar.zst.minisig"), signer.sign(&package(GOOD)))
        .unwrap();
    let install = |root: &Root| install(root, &file, &["--replace", "--allow-downgrade"]);
    let (code, said) = install(&daemon);
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("another package of the same short name is installed: m@1+"), "{said}");
    assert_eq!(ask(&daemon, "m").status, 200);
    assert_eq!(daemon.package("m")["signed_by"], json!(null));

    // Without the evil one the good one is what it is.
    fs::remove_file(dropped(&daemon, "evil")).unwrap();
    daemon.until("the evil one to leave", || daemon.package("m").is_null().then_some(()));
    assert_eq!(install(&daemon), (Some(0), String::new()));
    assert_eq!(daemon.package("m")["manifest_sha256"], json!(good.to_string()));

    // A name with all digits means no other content.
    assert_eq!(ask(&daemon, &format!("m@{good}")).status, 200);
    assert_eq!(ask(&daemon, &format!("m@{evil}")).status, 404);
    daemon.stop();
}
