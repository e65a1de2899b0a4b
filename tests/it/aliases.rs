//! Tests of aliases, through the socket of a real daemon.

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, Root, refused};

fn ask(daemon: &Daemon, model: Option<&str>, input: Value) -> Answer {
    daemon.embeddings(&json!({ "input": input, "model": model }))
}

/// Returns the model that answered, and the alias that the answer names.
fn served_by(answer: &Answer) -> (Option<&str>, Option<&str>) {
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer.header("x-caxton-model"), answer.header("x-caxton-alias"))
}

#[test]
fn alias_resolves_to_its_model_and_is_reported() {
    let aliases = json!({
        "fast": { "model": "bundled-mini" },
        "held": { "model": "other", "revision": "2" },
    });
    let daemon = Root::with_other().with("aliases", aliases).start();
    let model = ask(&daemon, Some("other"), json!("a text"));
    assert_eq!(served_by(&model), (Some("other@2"), None));
    let held = ask(&daemon, Some("held"), json!("a text"));
    assert_eq!(served_by(&held), (Some("other@2"), Some("held")));
    assert_eq!(held.vectors(), model.vectors());
    assert_eq!(held.json()["model"], "other");
    assert_eq!(
        served_by(&ask(&daemon, Some("fast"), json!("a"))),
        (Some("bundled-mini@1"), Some("fast"))
    );
    assert_eq!(served_by(&ask(&daemon, None, json!("a"))), (Some("bundled-mini@1"), None));
    daemon.stop();
}

#[test]
fn revision_may_be_shortened_to_six_digits() {
    let daemon = Root::with_other().start();
    let revision = daemon.package("other")["revision"].as_str().unwrap().to_owned();
    for name in [format!("other@{revision}"), format!("other@{}", &revision[..6])] {
        assert_eq!(served_by(&ask(&daemon, Some(&name), json!("a"))), (Some("other@2"), None));
    }
    let short = ask(&daemon, Some(&format!("other@{}", &revision[..5])), json!("a"));
    refused(&short, 404, "model_not_found", Some("model"), &[&revision[..5]]);
    daemon.stop();
}

/// Sets the aliases of a running daemon and waits until they are applied.
fn set_aliases(daemon: &mut Daemon, aliases: Value) {
    let count = daemon.log().len();
    daemon.root_mut().set("aliases", aliases);
    daemon.wait_event_after(count, Message::ConfigurationApplied, &[]);
}

#[test]
fn default_alias_serves_unnamed_requests_after_reload() {
    let mut daemon = Root::with_other().start();
    assert_eq!(served_by(&ask(&daemon, None, json!("a"))), (Some("bundled-mini@1"), None));
    set_aliases(&mut daemon, json!({ "default": { "model": "other" } }));
    assert_eq!(served_by(&ask(&daemon, None, json!("a"))), (Some("other@2"), Some("default")));
    daemon.until("the new default to be ready", || {
        (daemon.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(daemon.status()["default_model"], "other");
    daemon.stop();
}

#[test]
fn alias_of_missing_model_gets_404() {
    let mut daemon = Root::with_other().start();
    set_aliases(&mut daemon, json!({ "default": { "model": "none-such", "revision": "v" } }));
    let answer = ask(&daemon, None, json!("a"));
    refused(&answer, 404, "model_not_found", Some("model"), &["\"default\"", "\"none-such@v\""]);
    assert_eq!(served_by(&ask(&daemon, Some("other"), json!("a"))), (Some("other@2"), None));
    daemon.stop();
}

#[test]
fn canary_gets_its_share_and_is_deterministic() {
    let canary = json!({ "model": "other", "percent": 50 });
    let alias = json!({ "a": { "model": "bundled-mini", "canary": canary } });
    let daemon = Root::with_other().with("aliases", alias).start();
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    let sides: Vec<bool> = texts
        .iter()
        .map(|text| {
            let answer = ask(&daemon, Some("a"), json!(text));
            let again = ask(&daemon, Some("a"), json!([text]));
            assert_eq!(served_by(&answer), served_by(&again));
            match served_by(&answer) {
                (Some("bundled-mini@1"), Some("a")) => false,
                (Some("other@2"), Some("a; canary")) => true,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    let canaries = sides.iter().filter(|canary| **canary).count();
    assert!((8..=32).contains(&canaries), "{canaries} of {}", sides.len());
    // The texts of one request get vectors of one embedding space, even if their single requests go
    // to both sides.
    let together = ask(&daemon, Some("a"), json!(texts));
    assert_eq!(together.vectors().len(), texts.len());
    assert!(served_by(&together).1.is_some());
    daemon.stop();
}
