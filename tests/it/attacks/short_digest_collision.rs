//! Attack: two packages have digests with the same first digits. The harmless one is signed and
//! "was installed already", but the other one answers.
//!
//! The manifests in the directory of this test are of one model, and their SHA-256 values begin
//! with the same 48 bits. They differ in a prompt and in the spaces at their end. One processor
//! found them in 15 seconds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;

use caxton::package::Digest;
use serde_json::json;

use crate::support::packages::{ask, dropped, install, until_answers, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

const GOOD: &[u8] = include_bytes!("short_digest_collision/good.json");
const EVIL: &[u8] = include_bytes!("short_digest_collision/evil.json");

/// Returns the package of the model with this manifest.
fn package(manifest: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let archive = zstd::decode_all(&pack("tiny-bert-mean", "m", "1")[..]).unwrap();
    let size = |header: &[u8]| {
        let digits = std::str::from_utf8(&header[124..135]).unwrap();
        usize::from_str_radix(digits, 8).unwrap()
    };
    let rest = BLOCK + size(&archive).next_multiple_of(BLOCK);
    let mut header = archive[..BLOCK].to_vec();
    // Fields of the ustar header: the size at 124, and at 148 the checksum, which is computed with
    // spaces in its own field.
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

/// Returns the digests of the good and of the evil manifest.
fn digests() -> [Digest; 2] {
    let [good, evil] = [GOOD, EVIL].map(Digest::of);
    assert!(good != evil && good.short() == evil.short(), "{good} {evil}");
    [good, evil]
}

/// Starts a daemon in which the evil package was installed before there was a key. Returns it with
/// the key that it trusts since then.
fn with_evil_package() -> (Daemon, Signer) {
    let [_good, evil] = digests();
    let daemon = Root::new().start();
    fs::write(dropped(&daemon, "evil"), package(EVIL)).unwrap();
    until_answers(&daemon, "m");
    assert_eq!(daemon.package("m")["manifest_sha256"], json!(evil.to_string()));
    let signer = Signer::new();
    signer.trust(&daemon, "site.pub", "");
    (daemon, signer)
}

/// Installs the good package with a valid signature and every option that permits more.
fn install_good(daemon: &Daemon, signer: &Signer) -> (Option<i32>, String) {
    let file = daemon.path().join("good.model.tar.zst");
    let good = package(GOOD);
    fs::write(&file, &good).unwrap();
    fs::write(daemon.path().join("good.model.tar.zst.minisig"), signer.sign(&good)).unwrap();
    install(daemon, &file, &["--replace", "--allow-downgrade"])
}

#[test]
fn dropped_package_with_colliding_digest_is_rejected() {
    let (daemon, signer) = with_evil_package();
    signer.drop(&daemon, "good", &package(GOOD));
    until_quarantined(&daemon, "good");
    assert!(!daemon.log().iter().any(|line| line.contains("existed=true")));
    daemon.stop();
}

/// Checks that no option permits the package, because the two packages cannot be distinguished.
#[test]
fn options_do_not_permit_colliding_digest() {
    let (daemon, signer) = with_evil_package();
    let (code, stderr) = install_good(&daemon, &signer);
    assert_eq!(code, Some(65), "{stderr}");
    let expected = "another package of the same short name is installed: m@1+";
    assert!(stderr.contains(expected), "{stderr}");
    assert_eq!(ask(&daemon, "m").status, 200);
    assert_eq!(daemon.package("m")["signed_by"], json!(null));
    daemon.stop();
}

#[test]
fn good_package_is_installed_after_evil_was_removed() {
    let [good, evil] = digests();
    let (daemon, signer) = with_evil_package();
    fs::remove_file(dropped(&daemon, "evil")).unwrap();
    daemon.until("the evil package to be removed", || daemon.package("m").is_null().then_some(()));
    assert_eq!(install_good(&daemon, &signer), (Some(0), String::new()));
    assert_eq!(daemon.package("m")["manifest_sha256"], json!(good.to_string()));
    // A name with all digits never resolves to the other contents.
    assert_eq!(ask(&daemon, &format!("m@{good}")).status, 200);
    assert_eq!(ask(&daemon, &format!("m@{evil}")).status, 404);
    daemon.stop();
}
