//! Tests of updates: an update that waits for approval, the version that answers for a corrupt one,
//! and models that leave the store.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{
    ask, dropped, entry, flip_a_bit_of, set_record, stored, until_answers, until_gone,
};
use crate::support::{Answer, Daemon, Root, pack, refused};

/// Installs a version of `m` from the model in `tests/golden/{name}`. Returns its description.
fn install(daemon: &Daemon, name: &str, version: &str) -> Value {
    install_as(daemon, name, "m", version)
}

fn install_as(daemon: &Daemon, name: &str, id: &str, version: &str) -> Value {
    let package = pack(name, id, version);
    let answer = daemon.connect().request("POST", "/api/packages?replace=true", &[], &package);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["package"].clone()
}

/// Returns the version that answers for `m`.
fn answering(daemon: &Daemon) -> String {
    let answer = ask(daemon, "m");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("x-caxton-model").unwrap().to_owned()
}

fn approve(daemon: &Daemon, name: &str) -> Answer {
    daemon.connect().request("POST", &format!("/api/packages/{name}/approve"), &[], b"")
}

/// Returns the description of the installed model `name`.
fn package(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/api/packages/{name}")).json()
}

/// Returns the events of the type `kind` until now.
fn events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let answer = daemon.get("/v1/events?follow=false&since=0");
    let text = String::from_utf8(answer.body).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.map(|json| serde_json::from_str::<Value>(json).unwrap());
    events.filter(|event| event["type"] == kind).collect()
}

/// Runs `caxton model` with `arguments`, and returns its output.
fn model(root: &Root, arguments: &[&str]) -> String {
    let output = root.cli().arg("model").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn with_manual_updates() -> Root {
    Root::new().with("packages.updates", json!("manual"))
}

#[test]
fn manual_update_waits_until_approval() {
    let daemon = with_manual_updates().start();
    assert_eq!(install(&daemon, "tiny-bert-mean", "1")["awaits_approval"], false);
    let update = install(&daemon, "tiny-bert-cls", "2");
    assert_eq!((&update["awaits_approval"], &update["current"]), (&json!(true), &json!(false)));
    daemon.wait_event_with(Message::UpdateWaiting, &["model=m@2+", "current=m@1+"]);
    assert_eq!(answering(&daemon), "m@1");
    assert_eq!(ask(&daemon, "m@2").header("x-caxton-model"), Some("m@2"));
    let listed = daemon.get("/v1/models/m@2").json();
    assert_eq!((&listed["awaits_approval"], &listed["current"]), (&json!(true), &json!(false)));
    let list = model(&daemon, &["list"]);
    assert!(list.contains("is waiting for approval: caxton model approve m@2"), "{list}");

    let approved = approve(&daemon, "m");
    assert_eq!(approved.status, 200, "{approved:?}");
    let approved = approved.json();
    let versions = ["from", "approved", "to"].map(|name| approved[name]["version"].clone());
    assert_eq!(versions, [json!("1"), json!("2"), json!("2")]);
    daemon.wait_event_with(Message::ModelApproved, &["model=m@2+"]);
    assert_eq!(answering(&daemon), "m@2");
    assert_eq!(package(&daemon, "m")["awaits_approval"], false);
    let models = |kind| Vec::from_iter(events(&daemon, kind).iter().map(|it| it["model"].clone()));
    assert_eq!(models("update_waiting"), [json!("m@2")]);
    assert_eq!(models("model_approved"), [json!("m@2")]);

    refused(&approve(&daemon, "m"), 409, "not_waiting", None, &["\"m\" waits for approval"]);
    refused(&approve(&daemon, "n"), 404, "model_not_found", None, &["\"n\" is not installed"]);
    daemon.stop();
}

#[test]
fn policy_change_does_not_move_the_id() {
    let mut daemon = with_manual_updates().start();
    install(&daemon, "tiny-bert-mean", "1");
    install(&daemon, "tiny-bert-cls", "2");
    daemon.root_mut().set("packages.updates", json!("automatic"));
    daemon.wait_event(Message::ConfigurationApplied);
    assert_eq!(answering(&daemon), "m@1");
    assert_eq!(package(&daemon, "m@2")["awaits_approval"], true);
    let later = install(&daemon, "tiny-e5", "3");
    assert_eq!((&later["awaits_approval"], &later["current"]), (&json!(false), &json!(true)));
    assert_eq!(answering(&daemon), "m@3");
    daemon.stop();
}

#[test]
fn replaced_file_keeps_the_version_until_approval() {
    let daemon = with_manual_updates().start();
    let file = dropped(&daemon, "m");
    fs::write(&file, pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    fs::write(&file, pack("tiny-bert-mean", "m", "2")).unwrap();
    daemon.wait_event_with(Message::UpdateWaiting, &["model=m@2+"]);
    daemon.wait_event_with(Message::PackageStays, &["model=m@1+", "waits for approval"]);
    assert_eq!(answering(&daemon), "m@1");
    assert_eq!(approve(&daemon, "m").status, 200);
    assert_eq!(answering(&daemon), "m@2");
    // The version before stays for a rollback.
    assert_eq!(ask(&daemon, "m@1").status, 200);
    daemon.stop();
}

#[test]
fn approval_without_daemon_persists() {
    let daemon = with_manual_updates().start();
    install(&daemon, "tiny-bert-mean", "1");
    install(&daemon, "tiny-bert-cls", "2");
    let root = daemon.stop();
    let said = model(&root, &["approve", "m"]);
    assert!(said.starts_with("approved: m@2; m resolves to version 2, revision "), "{said}");
    let again = root.cli().args(["model", "approve", "m"]).output().unwrap();
    assert_eq!(again.status.code(), Some(65), "{again:?}");
    let daemon = root.start();
    assert_eq!(answering(&daemon), "m@2");
    daemon.stop();
}

#[test]
fn id_without_approved_version_gets_503() {
    let daemon = with_manual_updates().with("memory.fallback_strategy", json!("strict")).start();
    install(&daemon, "tiny-bert-mean", "1");
    install(&daemon, "tiny-bert-cls", "2");
    let removed = daemon.connect().request("DELETE", "/api/packages/m@1", &[], b"");
    assert_eq!(removed.status, 200, "{removed:?}");
    let answer = ask(&daemon, "m");
    refused(&answer, 503, "model_not_approved", None, &["caxton model approve m"]);
    assert_eq!(ask(&daemon, "m@2").status, 200);
    let approved = approve(&daemon, "m").json();
    assert_eq!((&approved["from"], &approved["to"]["version"]), (&Value::Null, &json!("2")));
    assert_eq!(answering(&daemon), "m@2");
    daemon.stop();
}

/// Returns the weights of the version of `m` in the store.
fn weights(root: &Root, version: &str) -> PathBuf {
    let prefix = format!("m@{version}+");
    let name = stored(root).into_iter().find(|name| name.starts_with(&prefix)).unwrap();
    root.state().join("models").join(name).join("model.safetensors")
}

/// Starts a daemon without fallbacks that verifies models only when they are loaded.
fn with_corruptible_models() -> Daemon {
    Root::new()
        .with("memory.fallback_strategy", json!("strict"))
        .with("memory.model_cache.validation_on_startup", json!(false))
        .start()
}

#[test]
fn earlier_version_of_one_space_answers_for_corrupt_one() {
    let daemon = with_corruptible_models();
    for version in ["1", "2"] {
        install(&daemon, "tiny-bert-mean", version);
    }
    flip_a_bit_of(&weights(&daemon, "2"));
    let verified = daemon.connect().request("POST", "/api/packages/m@2/verify", &[], b"");
    assert_eq!((verified.status, &verified.error()["code"]), (409, &json!("model_corrupt")));
    let answer = ask(&daemon, "m");
    assert_eq!((answer.status, answer.header("x-caxton-model")), (200, Some("m@1")), "{answer:?}");
    assert_eq!(answer.header("x-caxton-fallback-for"), None);
    let one = package(&daemon, "m@1");
    assert_eq!((&one["current"], &one["answers_for"]), (&json!(true), &json!("2")));
    daemon.wait_event_with(Message::VersionSubstituted, &["from=m@2+", "to=m@1+"]);
    assert_eq!(ask(&daemon, "m@2").error()["code"], "model_corrupt");

    install(&daemon, "tiny-bert-mean", "2");
    daemon.wait_event_with(Message::VersionRestored, &["model=m@2+"]);
    assert_eq!(answering(&daemon), "m@2");
    let changes = events(&daemon, "model_rolled_back");
    let changes = changes.iter().map(|it| (it["version_before"].clone(), it["version"].clone()));
    let expected = [(json!("2"), json!("1")), (json!("1"), json!("2"))];
    assert_eq!(Vec::from_iter(changes), expected);
    assert_eq!(events(&daemon, "model_corrupt")[0]["model"], "m@2");
    daemon.stop();
}

#[test]
fn version_of_another_space_never_answers_for_corrupt_one() {
    let daemon = with_corruptible_models();
    install(&daemon, "tiny-bert-mean", "1");
    install(&daemon, "tiny-bert-cls", "2");
    flip_a_bit_of(&weights(&daemon, "2"));
    // The load of the model finds the corruption.
    for _ in 0..2 {
        let answer = ask(&daemon, "m");
        assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_corrupt")));
    }
    assert_eq!(package(&daemon, "m")["version"], "2");
    assert_eq!(daemon.post("/api/packages/m/rollback", &json!({})).status, 200);
    assert_eq!(answering(&daemon), "m@1");
    daemon.stop();
}

#[test]
fn lowered_limit_removes_models_at_once() {
    let daemon = Root::new().with("memory.model_cache.max_models", json!(3)).start();
    for id in ["a", "b", "c"] {
        install_as(&daemon, "tiny-bert-mean", id, "1");
    }
    let root = daemon.stop();
    for (id, used) in [("a", 1_700_000_300), ("b", 1_700_000_100), ("c", 1_700_000_200)] {
        set_record(&entry(&root, id), json!({ "last_access_at": used }));
    }
    let mut daemon = root.start();
    daemon.root_mut().set("memory.model_cache.max_models", json!(2));
    until_gone(&daemon, "b");
    daemon.wait_event_with(Message::StoreLimit, &["model=b@1+", "exceeded its limits"]);
    let removed = events(&daemon, "store_limit");
    let removed = removed.iter().map(|event| event["model"].clone());
    assert_eq!(Vec::from_iter(removed), [json!("b@1")]);
    assert!(!daemon.package("a").is_null() && !daemon.package("c").is_null());
    daemon.stop();
}

#[test]
fn unused_model_leaves_the_store() {
    let aliases = json!({ "named": { "model": "kept" } });
    let daemon = Root::new().with("aliases", aliases).start();
    for id in ["unused", "recent", "kept"] {
        install_as(&daemon, "tiny-bert-mean", id, "1");
    }
    let mut root = daemon.stop();
    for id in ["unused", "kept"] {
        let old = json!({ "installed_at": 1_600_000_000, "last_access_at": null });
        set_record(&entry(&root, id), old);
    }
    root.set("memory.model_cache.unused_for", json!("1h"));
    let daemon = root.start();
    until_gone(&daemon, "unused");
    daemon.wait_event_with(Message::StoreLimit, &["model=unused@1+", "was not used for 1h"]);
    assert!(!daemon.package("recent").is_null() && !daemon.package("kept").is_null());
    daemon.stop();
}

#[test]
fn description_has_files_revision_and_licence() {
    let daemon = Root::new().start();
    let arguments = ["--revision", "0123abc"];
    let packed = crate::support::pack_with("tiny-bert-mean", "m", "1", &arguments);
    let answer = daemon.connect().request("POST", "/api/packages", &[], &packed);
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown: Value = serde_json::from_str(&model(&daemon, &["show", "m", "--json"])).unwrap();
    assert_eq!(shown, package(&daemon, "m"));
    assert_eq!(shown["source_revision"], "0123abc");
    let files = shown["files"].as_array().unwrap();
    let weights = files.iter().find(|file| file["name"] == "model.safetensors").unwrap();
    let size = entry(&daemon, "m").join("model.safetensors").metadata().unwrap().len();
    assert_eq!(weights["size"], size);
    assert_eq!(weights["sha256"].as_str().unwrap().len(), 64);
    assert!(shown["last_validated_at"].as_u64().unwrap() > 1_600_000_000);
    assert!(daemon.package("m").get("files").is_none(), "the list of packages has no files");
    let licenses = model(&daemon, &["list", "--licenses"]);
    assert!(licenses.contains("LICENCE") && licenses.contains("0123abc"), "{licenses}");
    let text = model(&daemon, &["show", "m"]);
    assert!(text.lines().any(|line| line.starts_with("file ") && line.contains(".safetensors")));
    daemon.stop();
}
