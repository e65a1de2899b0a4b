//! Attack: a tenant that may use one model reads every route, to learn about the others.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;

use caxton::api::ROUTES;
use serde_json::json;

use crate::support::{Daemon, EMBEDDINGS, Root};

/// Words that the tenant must not read: the other model, the other tenant, and a refused package.
const SECRETS: [&str; 3] = ["bundled-mini", "rival", "refused-secret"];

/// Returns the tenant's request to a route: its method, its path with a value for `{name}`, and its
/// body. Returns `None` for a route that shows nothing of models or users, with the reason in a
/// comment. A new route needs a decision here.
fn request(route: &str) -> Option<(&'static str, String, String)> {
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
        "/embed" | "/embed_all" | "/tokenize" => post(route, json!({ "inputs": "a" })),
        "/embed_sparse" | "/predict" | "/rerank" => post(route, json!({ "inputs": "a" })),
        "/similarity" => {
            post(route, json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } }))
        }
        "/decode" => post(route, json!({ "ids": [[5]] })),
        // The answer names the machine's default model, whose health it reports.
        "/readyz" => None,
        // These routes are only for administrators: tests/it/admin.rs.
        "/api/configuration"
        | "/api/memory/flush"
        | "/api/memory/limit"
        | "/api/memory/models/{name}/load"
        | "/api/memory/models/{name}"
        | "/api/packages/{name}/verify"
        | "/api/packages/{name}/export"
        | "/api/packages/{name}/rollback" => None,
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
    daemon.wait_log("refused");
    daemon.until("the refused package in the status", || {
        daemon.status()["quarantine"].to_string().contains("refused-secret").then_some(())
    });
    daemon
}

#[test]
fn no_route_leaks_data_of_other_tenants() {
    let daemon = with_two_tenants();
    let routes = BTreeSet::from_iter(ROUTES);
    let read = |headers: &[(&str, &str)], (method, path, body): &(&str, String, String)| {
        let mut connection = daemon.connect();
        connection.ask(method, path, headers, body.as_bytes());
        let answer = connection.answer();
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status, body)
    };
    let mut seen_by_root = BTreeSet::new();
    for route in routes {
        let Some(request) = request(route) else { continue };
        let (_, said) = read(&[("x-caxton-tenant", "spy")], &request);
        for secret in SECRETS {
            assert!(!said.contains(secret), "{route} tells {secret}: {said}");
        }
        // An administrator must see the same words, or the test would prove nothing.
        let (_, said) = read(&[], &request);
        seen_by_root.extend(SECRETS.into_iter().filter(|secret| said.contains(*secret)));
    }
    assert_eq!(seen_by_root, BTreeSet::from(SECRETS));

    let as_spy = [("x-caxton-tenant", "spy")];
    let (_, status) = read(&as_spy, &request("/status").unwrap());
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["tenants"].as_array().unwrap().len(), 1);
    assert_eq!(status["tenants"][0]["name"], "spy");
    assert_eq!(status["default_model"], "other");
    assert_eq!(status["packages"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&status["quarantine"], &status["configuration"]["files"]),
        (&json!(null), &json!([]))
    );
    let (_, metrics) = read(&as_spy, &request("/metrics").unwrap());
    assert!(metrics.contains("model_id=\"other\""), "its own series are there: {metrics}");
    let (_, events) = read(&as_spy, &request("/v1/events").unwrap());
    assert!(events.contains("model_loaded") && events.contains("other@2"), "{events}");
    daemon.stop();
}
