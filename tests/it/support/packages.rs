//! Packages as an operator handles them: files of the drop directory, entries of the store, and what the daemon comes to
//! say of them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Answer, Daemon, Root, pack};

pub(crate) fn file_name(id: &str) -> String {
    format!("{id}.model.tar.zst")
}

pub(crate) fn dropped(daemon: &Root, id: &str) -> PathBuf {
    daemon.drop_directory().join(file_name(id))
}

pub(crate) fn ask(daemon: &Daemon, model: &str) -> Answer {
    daemon.embeddings(&json!({ "input": "a text", "model": model }))
}

/// Waits until `model` answers.
pub(crate) fn until_answers(daemon: &Daemon, model: &str) {
    daemon.until(&format!("an answer of {model}"), || {
        (ask(daemon, model).status == 200).then_some(())
    });
}

pub(crate) fn until_gone(daemon: &Daemon, model: &str) {
    daemon.until(&format!("{model} to leave"), || daemon.package(model).is_null().then_some(()));
    let answer = ask(daemon, model);
    assert_eq!((answer.status, answer.error()["code"].as_str()), (404, Some("model_not_found")));
}

/// Drops another package and waits until it answers: by then the daemon has looked at everything
/// that was there before.
pub(crate) fn until_looked(daemon: &Daemon, id: &str) {
    fs::write(dropped(daemon, id), pack("tiny-bert-mean", id, "1")).unwrap();
    until_answers(daemon, id);
}

/// Waits until the package `id` is in quarantine; the reason that is beside it.
pub(crate) fn until_quarantined(daemon: &Daemon, id: &str) -> String {
    let quarantine = daemon.drop_directory().join("quarantine");
    let reason = quarantine.join(format!("{}.reason", file_name(id)));
    let reason = daemon.until(&format!("{id} in quarantine"), || fs::read_to_string(&reason).ok());
    assert!(quarantine.join(file_name(id)).exists() && !dropped(daemon, id).exists(), "{id}");
    daemon.until("the log to say so", || {
        let said =
            |line: &String| line.contains("package refused") && line.contains(&file_name(id));
        daemon.log().iter().any(said).then_some(())
    });
    reason
}

/// The names of the entries in the store.
pub(crate) fn stored(root: &Root) -> Vec<String> {
    names(&root.state().join("models"))
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let children = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        children.map(|child| child.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The directory of the only version of `id` in the store.
pub(crate) fn entry(root: &Root, id: &str) -> PathBuf {
    let models = root.state().join("models");
    let found = stored(root).into_iter().find(|name| name.starts_with(&format!("{id}@")));
    models.join(found.expect(id))
}

pub(crate) fn flip_a_bit(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

pub(crate) fn flip_a_bit_of(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    flip_a_bit(&mut bytes);
    fs::write(path, bytes).unwrap();
}
