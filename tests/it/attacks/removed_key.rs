//! Attack: a key is stolen, and its file is removed. The packages that the thief has signed and
//! installed still answer.

use std::fs;

use serde_json::json;

use crate::support::packages::{ask, dropped, until_answers};
use crate::support::signing::Signer;
use crate::support::{Daemon, Root, pack};

fn status(daemon: &Daemon) -> String {
    daemon.package("m")["status"].as_str().unwrap_or_default().to_owned()
}

fn until_disabled(daemon: &Daemon) {
    daemon.until("m to be disabled", || (status(daemon) == "disabled").then_some(()));
}

#[test]
fn removed_key_disables_its_models_until_restored() {
    // This model is installed before there is a key.
    let daemon = Root::new().with("memory.fallback_strategy", json!("strict")).start();
    fs::write(dropped(&daemon, "old"), pack("tiny-bert-mean", "old", "1")).unwrap();
    until_answers(&daemon, "old");
    let (stolen, other) = (Signer::new(), Signer::new());
    stolen.trust(&daemon, "stolen.pub", "");
    other.trust(&daemon, "other.pub", "");
    stolen.drop(&daemon, "m", &pack("tiny-bert-mean", "m", "1"));
    until_answers(&daemon, "m");
    let signer = daemon.package("m")["signed_by"].as_str().unwrap().to_owned();
    assert!(signer.ends_with("(stolen.pub)") && signer.len() > 16, "{signer}");
    assert_eq!(daemon.package("m")["residency"], "resident");
    daemon.until("the unsigned model to be named", || {
        (daemon.status()["unsigned"] == json!(["old@1"])).then_some(())
    });

    let key = daemon.keys().join("stolen.pub");
    let aside = daemon.path().join("aside");
    fs::rename(&key, &aside).unwrap();
    until_disabled(&daemon);
    let answer = ask(&daemon, "m");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_disabled")));
    let message = answer.error()["message"].to_string();
    assert!(message.contains("its key was removed") && message.contains("stolen.pub"), "{message}");
    assert_ne!(daemon.package("m")["residency"], "resident");
    assert!(daemon.wait_log("may not be used any more").contains("m@1+"));
    assert_eq!(ask(&daemon, "old").status, 200);
    let models = daemon.get("/v1/models").json()["data"].to_string();
    assert!(!models.contains("\"m\""), "{models}");

    // A different key in a file of the same name is not trusted for the model, and a restart keeps
    // the model disabled.
    Signer::new().trust(&daemon, "stolen.pub", "");
    let root = daemon.stop();
    let listed = root.cli().args(["model", "list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("disabled") && listed.contains("its key was removed"), "{listed}");
    let daemon = root.start();
    assert_eq!((status(&daemon).as_str(), ask(&daemon, "m").status), ("disabled", 503));

    // An unreadable key file neither disables nor enables a model.
    fs::write(&key, "no key").unwrap();
    daemon.wait_log("no package is installed before this is mended");
    // The key returns.
    fs::rename(&aside, &key).unwrap();
    until_answers(&daemon, "m");
    assert_eq!(status(&daemon), "available");

    // The last key is removed: without any key, signed packages are still not trusted.
    fs::remove_file(&key).unwrap();
    fs::remove_file(daemon.keys().join("other.pub")).unwrap();
    until_disabled(&daemon);
    assert_eq!(ask(&daemon, "m").status, 503);
    daemon.stop();
}
