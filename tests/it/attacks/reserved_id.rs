//! Attack: a dropped package declares the id of the bundled model and a higher version. Requests
//! without a model name would be answered from another embedding space.

use std::fs;

use serde_json::json;

use crate::support::packages::{dropped, install, stored, until_quarantined};
use crate::support::{Root, pack, tiny_package};

#[test]
fn bundled_id_cannot_be_taken_by_other_packages() {
    let daemon = Root::new().start();
    let vectors = daemon.embed(json!("a text"));
    // Neither another model nor the same one may take the id.
    for (file, model) in [("weather-tiny", "tiny-bert-cls"), ("weather-same", "tiny-bert-mean")] {
        fs::write(dropped(&daemon, file), pack(model, "bundled-mini", "999")).unwrap();
        let reason = until_quarantined(&daemon, file);
        assert!(reason.contains("\"bundled-mini\" is that of a bundled package"), "{reason}");
        assert_eq!(daemon.embed(json!("a text")), vectors);
    }
    let file = daemon.path().join("own.model.tar.zst");
    fs::write(&file, pack("tiny-bert-cls", "bundled-mini", "2")).unwrap();
    let refused = |root: &Root| {
        let (code, said) = install(root, &file, &["--replace", "--allow-downgrade"]);
        assert_eq!(code, Some(65), "{said}");
        assert!(said.contains("is that of a bundled package"), "{said}");
    };
    refused(&daemon);
    let root = daemon.stop();
    refused(&root);
    assert_eq!(stored(&root).len(), 1);

    // The id is reserved even before the bundled package is installed for the first time.
    fs::remove_dir_all(root.state()).unwrap();
    refused(&root);
    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")), vectors);
    // The bundled package itself may be installed once more.
    fs::write(&file, tiny_package()).unwrap();
    let again = daemon.cli().args(["model", "install"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("was installed already"));
    daemon.stop();
}

#[test]
fn model_is_disabled_when_its_id_becomes_bundled() {
    let root = Root::without_bundled().with("memory.embedding_model", json!("bundled-mini"));
    let daemon = root.start();
    fs::write(dropped(&daemon, "own"), pack("tiny-bert-cls", "bundled-mini", "999")).unwrap();
    daemon.until("the dropped one", || (daemon.get("/readyz").status == 200).then_some(()));
    let root = daemon.stop();
    fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), tiny_package()).unwrap();
    let daemon = root.start();
    let answer = daemon.embeddings(&json!({ "input": "a text" }));
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"), "{answer:?}");
    let packages = daemon.status()["packages"].as_array().unwrap().clone();
    let own = packages.iter().find(|package| package["version"] == "999").unwrap();
    assert_eq!(own["status"], "disabled");
    assert!(own["problem"].as_str().unwrap().contains("bundled package"), "{own}");
    daemon.stop();
}
