//! Tests of several versions and contents of one model in the store: which one an id resolves to,
//! and how to change that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{ask, stored};
use crate::support::{Answer, Daemon, Root, pack, refused};

/// Installs a package of the model in `tests/golden/{name}` and returns its revision.
fn install(daemon: &Daemon, name: &str, id: &str, version: &str) -> String {
    let package = pack(name, id, version);
    let answer = daemon.connect().request("POST", "/api/packages?replace=true", &[], &package);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["removed"], json!([]));
    answer.json()["package"]["revision"].as_str().unwrap().to_owned()
}

/// Returns the version and the revision that answered.
fn who(answer: &Answer) -> (&str, &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer.header("x-caxton-model").unwrap(), answer.header("x-caxton-revision").unwrap())
}

fn roll_back(daemon: &Daemon, id: &str, body: &Value) -> Answer {
    daemon.post(&format!("/api/packages/{id}/rollback"), body)
}

/// Runs `caxton model rollback m` with `arguments` and returns its output.
fn roll_back_with_cli(root: &Root, arguments: &[&str]) -> String {
    let output = root.cli().args(["model", "rollback", "m"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a daemon and installs the versions 1, 2 and 3 of the model `m`.
fn with_three_versions() -> Daemon {
    let daemon = Root::new().start();
    for (version, name) in [("1", "tiny-bert-mean"), ("2", "tiny-bert-cls"), ("3", "tiny-e5")] {
        install(&daemon, name, "m", version);
    }
    assert_eq!(who(&ask(&daemon, "m")).0, "m@3");
    daemon
}

/// Returns the ids of `/v1/models`, each with whether it is current.
fn listed(daemon: &Daemon) -> Vec<(String, bool)> {
    let models = daemon.get("/v1/models").json();
    let models = models["data"].as_array().unwrap().iter();
    models
        .map(|model| {
            (model["id"].as_str().unwrap().to_owned(), model["current"].as_bool().unwrap())
        })
        .collect()
}

#[test]
fn same_version_resolves_to_latest_install() {
    let daemon = Root::new().start();
    let first = install(&daemon, "tiny-bert-mean", "m", "1");
    let second = install(&daemon, "tiny-bert-cls", "m", "1");
    let by = |name: &str| ask(&daemon, name);
    let (mean, cls) = (by(&format!("m@{first}")), by(&format!("m@{second}")));
    assert_eq!((who(&mean), who(&cls)), (("m@1", first.as_str()), ("m@1", second.as_str())));
    assert_ne!(mean.vectors(), cls.vectors());
    for name in ["m", "m@1"] {
        assert_eq!(who(&by(name)).1, second, "{name}");
    }
    let expected =
        [("bundled-mini".to_owned(), true), (format!("m@{first}"), false), ("m".to_owned(), true)];
    let mut listed = listed(&daemon);
    listed.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(stored(&daemon).len(), 3);
    daemon.stop();
}

#[test]
fn rollback_resolves_to_earlier_version_until_cleared() {
    let daemon = with_three_versions();
    let answer = roll_back(&daemon, "m", &json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["from"]["version"], &body["from"]["current"]), (&json!("3"), &json!(false)));
    assert_eq!((&body["to"]["version"], &body["to"]["current"]), (&json!("2"), &json!(true)));
    daemon.wait_event_with(Message::ModelRolledBack, &["from=m@3+", "to=m@2+"]);
    assert_eq!(who(&ask(&daemon, "m")).0, "m@2");
    assert_eq!(who(&ask(&daemon, "m@3")).0, "m@3");
    assert_eq!(roll_back(&daemon, "m", &json!({ "clear": true })).status, 200);
    assert_eq!(who(&ask(&daemon, "m")).0, "m@3");
    daemon.stop();
}

#[test]
fn rollback_stops_at_the_first_version() {
    let daemon = with_three_versions();
    assert_eq!(roll_back(&daemon, "m", &json!({})).status, 200);
    let said = roll_back_with_cli(&daemon, &[]);
    assert!(said.starts_with("m resolves to version 1, revision "), "{said}");
    let first = roll_back(&daemon, "m", &json!({}));
    refused(&first, 409, "no_earlier_version", None, &["no version before m@1+"]);

    daemon.stop();
}

#[test]
fn rollback_without_daemon_persists() {
    let daemon = with_three_versions();
    assert_eq!(roll_back(&daemon, "m", &json!({ "to": "1" })).status, 200);
    // Without a daemon, the command line rolls back the store itself.
    let root = daemon.stop();
    let said = roll_back_with_cli(&root, &["--to", "2"]);
    let (after, before) = ("m resolves to version 2, ", "before: version 1, ");
    assert!(said.contains(after) && said.contains(before), "{said}");
    let daemon = root.start();
    assert_eq!(who(&ask(&daemon, "m")).0, "m@2");
    let mut ids = listed(&daemon);
    ids.retain(|(id, _)| id.starts_with('m'));
    assert_eq!(ids, [("m@1".to_owned(), false), ("m".to_owned(), true), ("m@3".to_owned(), false)]);
    assert_eq!(roll_back(&daemon, "m", &json!({ "clear": true })).status, 200);
    assert_eq!(who(&ask(&daemon, "m")).0, "m@3");
    daemon.stop();
}

#[test]
fn invalid_rollback_requests_are_rejected() {
    let daemon = with_three_versions();
    for (id, body, status, code) in [
        ("m", json!({ "to": "9" }), 404, "version_not_found"),
        ("none-such", json!({}), 404, "model_not_found"),
        ("m@2", json!({}), 400, "invalid_request"),
        ("m", json!({ "to": "1", "clear": true }), 400, "invalid_request"),
        ("m", json!({ "too": "1" }), 400, "invalid_request"),
    ] {
        let answer = roll_back(&daemon, id, &body);
        assert_eq!(
            (answer.status, answer.error()["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
    }
    assert_eq!(who(&ask(&daemon, "m")).0, "m@3");
    daemon.stop();
}

#[test]
fn newer_package_ends_rollback_of_default_model() {
    let root = Root::new().with("memory.embedding_model", json!("m"));
    let daemon = root.with("packages.replace_embedding_space", json!(true)).start();
    install(&daemon, "tiny-bert-mean", "m", "1");
    install(&daemon, "tiny-e5", "m", "2");
    let answered = || {
        let answer = daemon.embeddings(&json!({ "input": "a" }));
        (answer.status == 200).then(|| who(&answer).0.to_owned())
    };
    assert_eq!(answered().unwrap(), "m@2");
    assert_eq!(roll_back(&daemon, "m", &json!({})).status, 200);
    daemon.until("the default to be ready", || (daemon.get("/readyz").status == 200).then_some(()));
    assert_eq!(answered().unwrap(), "m@1");
    let newer = pack("tiny-bert-cls", "m", "3");
    fs::write(daemon.drop_directory().join("newer.model.tar.zst"), newer).unwrap();
    daemon.until("the newer one", || (answered().as_deref() == Some("m@3")).then_some(()));
    daemon.stop();
}

#[test]
fn one_request_gets_the_vectors_of_several_models() {
    let daemon =
        Root::with_other().with("aliases", json!({ "next": { "model": "other" } })).start();
    let body = |additional: Value| json!({ "input": ["one", "another text"], "model": "bundled-mini", "additional_models": additional });
    let answer = daemon.embeddings(&body(json!(["next", "bundled-mini"])));
    assert_eq!(who(&answer).0, "bundled-mini@1");
    let json = answer.json();
    let additional = json["additional"].as_array().unwrap();
    assert_eq!(additional.len(), 2);
    assert_eq!(additional[1]["data"], json["data"]);
    assert_eq!(
        (&additional[0]["model"], &additional[0]["version"]),
        (&json!("other"), &json!("2"))
    );
    let alone = daemon.embeddings(&json!({ "input": ["one", "another text"], "model": "other" }));
    assert_eq!(additional[0]["data"], alone.json()["data"]);
    assert_eq!(additional[0]["usage"], alone.json()["usage"]);
    assert_eq!(additional[0]["revision"].as_str(), alone.header("x-caxton-revision"));
    assert_eq!(additional[0]["embedding_space"].as_str(), alone.header("x-caxton-embedding-space"));
    assert_eq!(additional[0]["dimensions"], json!(crate::support::TINY_DIMENSIONS));
    assert!(alone.json().get("additional").is_none());

    let unknown = daemon.embeddings(&body(json!(["next", "none-such"])));
    let param = Some("additional_models[1]");
    refused(&unknown, 404, "model_not_found", param, &["the additional model \"none-such\""]);
    let many = daemon.embeddings(&body(json!(["other", "other", "other", "other"])));
    refused(&many, 400, "invalid_request", Some("additional_models"), &["at most 3"]);
    daemon.stop();
}

#[test]
fn model_list_reports_compatible_models() {
    let aliases = json!({
        "a": { "model": "other", "canary": { "model": "bundled-mini", "percent": 5 } },
    });
    let daemon = Root::with_other().with("aliases", aliases).start();
    install(&daemon, "tiny-e5", "copy", "7");
    let model = |name: &str| daemon.get(&format!("/v1/models/{name}")).json();
    let other = model("other");
    assert_eq!(other["version"], "2");
    assert_eq!(other["revision"], daemon.package("other")["revision"]);
    assert_eq!((&other["aliases"], &other["canary_of"]), (&json!(["a"]), &json!([])));
    assert_eq!(other["compatible_dimensions"], json!(["bundled-mini", "copy"]));
    assert_eq!(other["compatible_vectors"], json!(["copy"]));
    assert_eq!(model("a"), other);
    let mini = model("bundled-mini");
    assert_eq!((&mini["aliases"], &mini["canary_of"]), (&json!([]), &json!(["a"])));
    assert_eq!(mini["compatible_vectors"], json!([]));
    daemon.stop();
}
