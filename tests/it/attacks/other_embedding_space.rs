//! Attack: a package gives an id another embedding space. The vectors that clients have stored
//! become useless, without any warning.

use std::fs;

use serde_json::json;

use crate::support::packages::{ask, dropped, install, until_answers, until_quarantined};
use crate::support::{Daemon, Root, pack};

fn version(daemon: &Daemon) -> String {
    ask(daemon, "m").header("x-caxton-model").unwrap_or_default().to_owned()
}

fn until_version(daemon: &Daemon, expected: &str) {
    daemon.until(expected, || (version(daemon) == expected).then_some(()));
}

#[test]
fn embedding_space_change_needs_administrator_consent() {
    let mut daemon = Root::new().start();
    fs::write(dropped(&daemon, "m-1"), pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let space = ask(&daemon, "m").header("x-caxton-embedding-space").unwrap().to_owned();

    // Neither a higher nor a lower version may do this, nor other contents of the same version.
    for (file, number) in [("m-2", "2"), ("m-0", "0.1"), ("m-same", "1")] {
        fs::write(dropped(&daemon, file), pack("tiny-bert-cls", "m", number)).unwrap();
        let reason = until_quarantined(&daemon, file);
        assert!(reason.contains("another embedding space") && reason.contains(&space), "{reason}");
        assert!(reason.contains("--replace"), "{reason}");
        assert_eq!(version(&daemon), "m@1");
    }
    // A new version of the same embedding space is installed.
    fs::write(dropped(&daemon, "m-1.1"), pack("tiny-bert-mean", "m", "1.1")).unwrap();
    until_version(&daemon, "m@1.1");

    // An administrator may permit it for one package.
    let file = daemon.path().join("new.model.tar.zst");
    fs::write(&file, pack("tiny-bert-cls", "m", "2")).unwrap();
    let install = |root: &Root, arguments: &[&str]| install(root, &file, arguments);
    let (code, said) = install(&daemon, &[]);
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("another embedding space"), "{said}");
    assert_eq!(install(&daemon, &["--replace"]), (Some(0), String::new()));
    assert_eq!(version(&daemon), "m@2");
    assert_ne!(ask(&daemon, "m").header("x-caxton-embedding-space"), Some(&*space));
    let answer = daemon.connect().request("POST", "/api/packages?replace=yes", &[], b"");
    assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("replace")));

    // The configuration may permit it for all packages.
    daemon.root_mut().set("packages.replace_embedding_space", json!(true));
    daemon.wait_log("configuration applied");
    fs::write(dropped(&daemon, "m-3"), pack("tiny-e5", "m", "3")).unwrap();
    until_version(&daemon, "m@3");

    // The command line checks the same without a daemon.
    daemon.root_mut().set("packages.replace_embedding_space", json!(false));
    let root = daemon.stop();
    fs::write(&file, pack("tiny-bert-cls", "m", "4")).unwrap();
    let (code, said) = install(&root, &[]);
    assert!(code == Some(65) && said.contains("another embedding space"), "{code:?} {said}");
    assert_eq!(install(&root, &["--replace"]), (Some(0), String::new()));
}
