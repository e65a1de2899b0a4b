//! Attack: two contents of one version are installed. A request that permits only one embedding
//! space names a model that is not available. The contents of the same space may serve as fallback;
//! the other contents must not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::json;

use crate::support::{Daemon, Root, pack};

fn bundle(root: &Root, file: &str, model: &str, id: &str) {
    let path = root.bundled().join(format!("{file}.model.tar.zst"));
    fs::write(path, pack(model, id, "1")).unwrap();
}

/// Returns the embedding space of each installed content of `id`, the current one first.
fn spaces(daemon: &Daemon, id: &str) -> Vec<String> {
    let list = daemon.get("/api/packages").json();
    let packages = list["packages"].as_array().unwrap().iter();
    let of_id = packages.filter(|package| package["id"] == id);
    let mut found: Vec<_> = of_id
        .map(|package| (package["current"] == true, package["embedding_space"].as_str().unwrap()))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, space)| space.to_owned()).collect()
}

#[test]
fn fallback_uses_content_of_same_embedding_space() {
    let root = Root::new()
        .with("memory.preload_models", json!([]))
        .with("packages.replace_embedding_space", json!(true));
    bundle(&root, "wanted-1", "tiny-bert-cls", "wanted");
    let daemon = root.start();
    fs::write(daemon.drop_directory().join("a-1.model.tar.zst"), pack("tiny-bert-cls", "a", "1"))
        .unwrap();
    daemon.until("the first content of a@1", || (spaces(&daemon, "a").len() == 1).then_some(()));
    // Other contents of a@1 are installed later, so `a@1` resolves to them.
    fs::write(daemon.drop_directory().join("a.model.tar.zst"), pack("tiny-bert-mean", "a", "1"))
        .unwrap();
    daemon.until("both contents of a@1", || (spaces(&daemon, "a").len() == 2).then_some(()));
    let wanted = spaces(&daemon, "wanted").remove(0);
    daemon.until("the later content to be the one that is meant", || {
        (spaces(&daemon, "a")[0] != wanted).then_some(())
    });
    assert_eq!(spaces(&daemon, "a")[1], wanted, "the first content has the space that is wanted");

    crate::support::packages::flip_a_bit_of(
        &crate::support::packages::entry(&daemon, "wanted").join("model.safetensors"),
    );
    let answer = daemon.embeddings(&json!({ "input": "a text", "model": "wanted" }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-caxton-embedding-space"), Some(wanted.as_str()));
    daemon.stop();
}
