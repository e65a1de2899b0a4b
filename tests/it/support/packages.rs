//! Helpers for packages: files of the drop directory, entries of the store, and the states that the
//! daemon reports.

use std::fs;
use std::path::{Path, PathBuf};

use caxton::base::units::Bytes;
use caxton::package::{
    CONFIG, Durability, PackageContents, TOKENIZER, UnpackLimits, WEIGHTS, Weights, unpack,
    write_package,
};
use caxton::telemetry::log::Message;
use serde_json::{Value, json};

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

/// Packs `package`, which has no dense layers, again under another id.
pub(crate) fn repacked(package: &[u8], id: &str) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let limits = UnpackLimits::for_size(Bytes::mib(64));
    let unpacked = unpack(package, &limits, place.path(), Durability::Volatile).unwrap();
    let read = |name: &str| fs::read(place.path().join(name)).unwrap();
    let contents = PackageContents {
        config: read(CONFIG),
        tokenizer: read(TOKENIZER),
        weights: Weights::from(read(WEIGHTS)),
        dense: Vec::new(),
    };
    let mut manifest = unpacked.manifest;
    manifest.id = id.parse().unwrap();
    let mut out = Vec::new();
    write_package(&manifest, &contents, &|_, _| {}, &mut out).unwrap();
    out
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

/// Drops another package and waits until it answers. By then the daemon has scanned every file that
/// was dropped before while it ran.
pub(crate) fn until_looked(daemon: &Daemon, id: &str) {
    fs::write(dropped(daemon, id), pack("tiny-bert-mean", id, "1")).unwrap();
    until_answers(daemon, id);
}

/// Waits until the package `id` is in quarantine, and returns the reason beside it.
pub(crate) fn until_quarantined(daemon: &Daemon, id: &str) -> String {
    let quarantine = daemon.drop_directory().join("quarantine");
    let reason = quarantine.join(format!("{}.reason", file_name(id)));
    let reason = daemon.until(&format!("{id} in quarantine"), || fs::read_to_string(&reason).ok());
    assert!(quarantine.join(file_name(id)).exists() && !dropped(daemon, id).exists(), "{id}");
    daemon.wait_event_with(Message::PackageRefused, &[&file_name(id)]);
    reason
}

/// Runs `caxton model install` on `file` and returns its exit code and its stderr.
pub(crate) fn install(root: &Root, file: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = root.cli();
    command.args(["model", "install"]).args(arguments).arg(file);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Returns the names of the entries in the store.
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

/// Waits until staging is empty. One look is not enough: the daemon creates an empty file there for
/// a moment, to find out whether the file system supports fs-verity.
pub(crate) fn until_staging_is_empty(daemon: &Daemon) {
    let staging = daemon.state().join("staging");
    daemon.until("an empty staging directory", || names(&staging).is_empty().then_some(()));
}

/// Returns the directory of the only version of `id` in the store.
pub(crate) fn entry(root: &Root, id: &str) -> PathBuf {
    let models = root.state().join("models");
    let found = stored(root).into_iter().find(|name| name.starts_with(&format!("{id}@")));
    models.join(found.expect(id))
}

/// Changes `fields` of the record of the entry in `directory`, to imitate a daemon that ended
/// early.
pub(crate) fn set_record(directory: &Path, fields: Value) {
    let path = directory.join("record.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        record[name] = value.clone();
    }
    fs::write(path, record.to_string()).unwrap();
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
