//! Attack: a tenant that may use one model reads every route, to learn about the others.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;

use caxton::api::ROUTES;
use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::{Daemon, EMBEDDINGS, Root};

/// Words that the tenant must not read: the other model, the other tenant, and a refused package.
const SECRETS: [&str; 3] = ["bundled-mini", "rival", "refused-secret"];

/// Header of the tenant's requests.
const AS_SPY: [(&str, &str); 1] = [("x-caxton-tenant", "spy")];

/// Method, path and body of a request.
type Request = (&'static str, String, String);

/// Returns the tenant's request to a route, whose path has a value for `{name}`. Returns `None` for
/// a route that shows nothing of models or users, with the reason in a comment. A new route needs a
/// decision here.
fn request(route: &str) -> Option<Request> {
    let get = |path: &str| Some(("GET", path.to_owned(), String::new()));
    let post =
        |path: &str, body: serde_json::Value| Some(("POST", path.to_owned(), body.to_string()));
    match route {
        "/v1/models" | "/status" | "/metrics" | "/api/memory/status" | "/api/packages"
        | "/api/models/stats" | "/api/tags" | "/api/ps" | "/api/version" | "/" | "/health"
        | "/livez" => get(route),
        "/v1/events" => get("/v1/events?since=0&follow=false"),
        "/api/models/recommendations" => get("/api/models/recommendations?task_type=search"),
        "/v1/models/{name}" => get("/v1/models/none-such"),
        "/api/packages/{name}" => get("/api/packages/none-such"),
        "/info" => get(route),
        "/v1/embeddings" | "/api/embed" => post(route, json!({ "input": "a", "model": "other@9" })),
        "/api/embeddings" => post(route, json!({ "prompt": "a", "model": "other@9" })),
        "/api/show" => post(route, json!({ "model": "none-such" })),
        "/v1/rank" => post(route, json!({ "query": "a", "documents": ["b"], "model": "other@9" })),
        "/v1/rerank" | "/v2/rerank" => {
            post(route, json!({ "query": "a", "documents": ["b"], "model": "bundled" }))
        }
        "/v1/embed" | "/v2/embed" => post(route, json!({ "texts": ["a"], "model": "other@9" })),
        "/embeddings" => post(route, json!({ "input": "a", "model": "other:9" })),
        // A different case must not find the model of the other tenant.
        "/api/pull" => post(route, json!({ "model": "Bundled-mini" })),
        "/api/generate" => post(route, json!({ "model": "other:9", "keep_alive": 0 })),
        "/api/chat" => post(route, json!({ "model": "other:9" })),
        "/api/push" | "/api/create" | "/api/copy" => post(route, json!({ "model": "none-such" })),
        "/api/delete" => Some(("DELETE", route.to_owned(), "{}".to_owned())),
        "/ping" => get(route),
        "/embed" | "/invocations" | "/embed_all" | "/tokenize" => {
            post(route, json!({ "inputs": "a" }))
        }
        "/embed_sparse" | "/predict" | "/rerank" => post(route, json!({ "inputs": "a" })),
        "/similarity" => {
            post(route, json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } }))
        }
        "/decode" => post(route, json!({ "ids": [[5]] })),
        "/api/blobs/{digest}" => get("/api/blobs/sha256:0"),
        // The answer names the machine's default model, whose health it reports.
        "/readyz" => None,
        // These routes are only for administrators: tests/it/admin.rs.
        "/api/configuration"
        | "/api/memory/flush"
        | "/api/memory/limit"
        | "/api/memory/load"
        | "/api/memory/models/{name}/load"
        | "/api/memory/models/{name}"
        | "/api/packages/{name}/verify"
        | "/api/packages/{name}/validate"
        | "/api/packages/{name}/export"
        | "/api/packages/{name}/rollback"
        | "/api/packages/{name}/approve" => None,
        _ => panic!("{route}: decide what a tenant may see there"),
    }
}

fn with_two_tenants() -> Daemon {
    let daemon = Root::with_other()
        .with(
            "tenants",
            json!([
                { "name": "rival", "allowed_models": ["bundled-mini"] },
                { "name": "spy", "model": "other", "allowed_models": ["other"] },
            ]),
        )
        .start();
    let headers = [("x-caxton-tenant", "rival")];
    let body = json!({ "input": "a" }).to_string();
    for _ in 0..3 {
        let answer = daemon.connect().request("POST", EMBEDDINGS, &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    daemon.embeddings(&json!({ "input": "a", "model": "other" }));
    fs::write(daemon.drop_directory().join("refused-secret.model.tar.zst"), "no package").unwrap();
    fs::write(daemon.drop_directory().join("refused-secret.gguf"), "no package").unwrap();
    daemon.wait_event_with(Message::NotAPackage, &["refused-secret"]);
    daemon.wait_event_with(Message::PackageRefused, &["refused-secret"]);
    daemon.until("the refused package in the status", || {
        let status = daemon.status();
        let is_shown = |part: &str| status[part].to_string().contains("refused-secret");
        (is_shown("quarantine") && is_shown("intake")).then_some(())
    });
    daemon
}

/// Sends the request to `route` and returns the body of the answer. Returns `None` for a route
/// without a request.
fn read(daemon: &Daemon, headers: &[(&str, &str)], route: &str) -> Option<String> {
    let (method, path, body) = request(route)?;
    let answer = daemon.connect().request(method, &path, headers, body.as_bytes());
    Some(String::from_utf8_lossy(&answer.body).into_owned())
}

#[test]
fn no_route_leaks_data_of_other_tenants() {
    let daemon = with_two_tenants();
    let routes = BTreeSet::from_iter(ROUTES);
    let mut seen_by_root = BTreeSet::new();
    for route in routes {
        let Some(body) = read(&daemon, &AS_SPY, route) else { continue };
        for secret in SECRETS {
            assert!(!body.contains(secret), "{route} contains {secret}: {body}");
        }
        // An administrator must see the same words, or the test would prove nothing.
        let body = read(&daemon, &[], route).unwrap();
        seen_by_root.extend(SECRETS.into_iter().filter(|secret| body.contains(*secret)));
    }
    assert_eq!(seen_by_root, BTreeSet::from(SECRETS));
    daemon.stop();
}

#[test]
fn tenant_sees_its_own_data() {
    let daemon = with_two_tenants();
    let status = read(&daemon, &AS_SPY, "/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["tenants"].as_array().unwrap().len(), 1);
    assert_eq!(status["tenants"][0]["name"], "spy");
    assert_eq!(status["default_model"], "other");
    assert_eq!(status["packages"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&status["quarantine"], &status["configuration"]["files"]),
        (&json!(null), &json!([]))
    );
    let metrics = read(&daemon, &AS_SPY, "/metrics").unwrap();
    assert!(metrics.contains("model_id=\"other\""), "its own series are there: {metrics}");
    let events = read(&daemon, &AS_SPY, "/v1/events").unwrap();
    assert!(events.contains("model_loaded") && events.contains("other@2"), "{events}");
    daemon.stop();
}
