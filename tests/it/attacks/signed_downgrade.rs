//! Attack: an old signed package with a known fault is dropped again after the newer one was
//! removed. Its signature is still valid.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use crate::support::packages::{
    dropped, file_name, install, until_answers, until_gone, until_quarantined,
};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

fn version(number: &str) -> Vec<u8> {
    pack("tiny-bert-mean", "m", number)
}

/// Starts a daemon with version 1.10 of `m`. Returns it with the key that signed the package.
fn with_new_version() -> (Daemon, Signer) {
    let root = Root::new();
    let signer = Signer::new();
    signer.trust(&root, "site.pub", "");
    let daemon = root.start();
    signer.drop(&daemon, "m", &version("1.10"));
    until_answers(&daemon, "m");
    (daemon, signer)
}

/// Starts a daemon after version 1.10 of `m` was removed.
fn with_removed_version() -> (Daemon, Signer) {
    let (daemon, signer) = with_new_version();
    fs::remove_file(dropped(&daemon, "m")).unwrap();
    until_gone(&daemon, "m");
    (daemon.stop().start(), signer)
}

/// Writes version 1.9 of `m` and its signature outside the drop directory.
fn signed_old_version(root: &Root, signer: &Signer) -> PathBuf {
    let old = version("1.9");
    let file = root.path().join(file_name("m"));
    fs::write(&file, &old).unwrap();
    fs::write(root.path().join(format!("{}.minisig", file_name("m"))), signer.sign(&old)).unwrap();
    file
}

#[test]
fn signed_downgrade_is_rejected() {
    let (daemon, signer) = with_new_version();
    signer.drop(&daemon, "beside", &version("1.9"));
    let reason = until_quarantined(&daemon, "beside");
    assert!(reason.contains("version 1.9 of \"m\" is older than 1.10"), "{reason}");
    daemon.stop();
}

#[test]
fn downgrade_is_rejected_after_removal_and_restart() {
    let (daemon, signer) = with_removed_version();
    signer.drop(&daemon, "after", &version("1.9"));
    let reason = until_quarantined(&daemon, "after");
    assert!(reason.contains("is older than 1.10"), "{reason}");
    assert!(daemon.package("m").is_null());
    daemon.stop();
}

/// Checks that an administrator may permit the downgrade, and that nothing else permits it, with a
/// daemon and without.
#[test]
fn administrator_may_permit_a_downgrade() {
    let (daemon, signer) = with_removed_version();
    let file = signed_old_version(&daemon, &signer);
    let (code, stderr) = install(&daemon, &file, &[]);
    assert!(code == Some(65) && stderr.contains("--allow-downgrade"), "{code:?} {stderr}");
    let root = daemon.stop();
    let (code, stderr) = install(&root, &file, &[]);
    assert!(code == Some(65) && stderr.contains("--allow-downgrade"), "{code:?} {stderr}");
    assert_eq!(install(&root, &file, &["--allow-downgrade"]), (Some(0), String::new()));
    let daemon = root.start();
    until_answers(&daemon, "m");
    daemon.stop();
}

#[test]
fn permitted_downgrade_permits_no_further_one() {
    let (daemon, signer) = with_removed_version();
    let file = signed_old_version(&daemon, &signer);
    let root = daemon.stop();
    assert_eq!(install(&root, &file, &["--allow-downgrade"]), (Some(0), String::new()));
    let daemon = root.start();
    until_answers(&daemon, "m");
    // The same package once more is not a downgrade; an older one is.
    assert_eq!(install(&daemon, &file, &[]), (Some(0), String::new()));
    signer.drop(&daemon, "between", &version("1.9.1"));
    until_quarantined(&daemon, "between");
    signer.drop(&daemon, "higher", &version("1.11"));
    until_answers(&daemon, "m@1.11");
    daemon.stop();
}
