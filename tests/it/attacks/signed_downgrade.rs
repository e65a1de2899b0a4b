//! Attack: an old signed package with a known fault is dropped again after the newer one was
//! removed. Its signature is still valid.

use std::fs;

use crate::support::packages::{
    dropped, file_name, install, until_answers, until_gone, until_quarantined,
};
use crate::support::signing::Signer;
use crate::support::{Root, pack};

#[test]
fn signed_downgrade_is_rejected_even_after_removal() {
    let root = Root::new();
    let signer = Signer::new();
    signer.trust(&root, "site.pub", "");
    let daemon = root.start();
    let (old, new) = (pack("tiny-bert-mean", "m", "1.9"), pack("tiny-bert-mean", "m", "1.10"));
    signer.drop(&daemon, "m", &new);
    until_answers(&daemon, "m");
    signer.drop(&daemon, "beside", &old);
    let reason = until_quarantined(&daemon, "beside");
    assert!(reason.contains("version 1.9 of \"m\" is older than 1.10"), "{reason}");

    fs::remove_file(dropped(&daemon, "m")).unwrap();
    until_gone(&daemon, "m");
    let daemon = daemon.stop().start();
    signer.drop(&daemon, "after", &old);
    let reason = until_quarantined(&daemon, "after");
    assert!(reason.contains("is older than 1.10"), "{reason}");
    assert!(daemon.package("m").is_null());

    // The administrator may permit it, with the daemon and without.
    let file = daemon.path().join(file_name("m"));
    fs::write(&file, &old).unwrap();
    fs::write(daemon.path().join(format!("{}.minisig", file_name("m"))), signer.sign(&old))
        .unwrap();
    let install = |root: &Root, arguments: &[&str]| install(root, &file, arguments);
    let (code, said) = install(&daemon, &[]);
    assert!(code == Some(65) && said.contains("--allow-downgrade"), "{code:?} {said}");
    let root = daemon.stop();
    let (code, said) = install(&root, &[]);
    assert!(code == Some(65) && said.contains("--allow-downgrade"), "{code:?} {said}");
    assert_eq!(install(&root, &["--allow-downgrade"]), (Some(0), String::new()));
    let daemon = root.start();
    until_answers(&daemon, "m");
    // The same package once more is not a downgrade; an older one is.
    assert_eq!(install(&daemon, &[]), (Some(0), String::new()));
    signer.drop(&daemon, "between", &pack("tiny-bert-mean", "m", "1.9.1"));
    until_quarantined(&daemon, "between");
    signer.drop(&daemon, "higher", &pack("tiny-bert-mean", "m", "1.11"));
    until_answers(&daemon, "m@1.11");
    daemon.stop();
}
