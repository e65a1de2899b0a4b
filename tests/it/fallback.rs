//! Tests of fallback: the model that answers for an unavailable one, the notice to the client, and
//! the cases without fallback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, EMBEDDINGS, Root, is_event, refused};

/// Creates a root whose second model does not fit any more once the limit is set.
fn root() -> Root {
    Root::with_other()
        .with("memory.min_free", json!("0B"))
        .with("memory.pressure", json!({ "recovery_time": "1s", "reload_cooldown": "1h" }))
}

fn leave_no_room(daemon: &Daemon) {
    let limit = br#"{"limit":"1MiB"}"#;
    let answer = daemon.connect().request("PUT", "/api/memory/limit", &[], limit);
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn embed_other(daemon: &Daemon, more: Value) -> Answer {
    let mut body = json!({ "input": "a text", "model": "other" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    daemon.embeddings(&body)
}

#[test]
fn fallback_needs_consent_and_is_reported() {
    let daemon = root().start();
    let own = daemon.embed(json!("a text"));
    leave_no_room(&daemon);
    refused(&embed_other(&daemon, json!({})), 503, "memory_limit", None, &["other"]);
    let forbidden = embed_other(&daemon, json!({ "allow_fallback": false }));
    refused(&forbidden, 503, "memory_limit", None, &["other"]);

    let answer = embed_other(&daemon, json!({ "allow_fallback": true }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.vectors(), own);
    assert_eq!(answer.json()["model"], "bundled-mini");
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    assert_eq!(answer.header("x-caxton-fallback-for"), Some("other; reason=memory_limit"));
    daemon.wait_event_with(Message::Fallback, &["other", "bundled-mini"]);
    let body = json!({ "input": "a text", "model": "other" }).to_string();
    let allowed = [("x-caxton-allow-fallback", "true")];
    let by_header = daemon.connect().request("POST", EMBEDDINGS, &allowed, body.as_bytes());
    assert_eq!(by_header.vectors(), own);
    let count = daemon.log().iter().filter(|line| is_event(line, Message::Fallback)).count();
    assert_eq!(count, 1, "once, not with each request");
    daemon.stop();
}

#[test]
fn strict_strategy_and_unknown_names_get_no_fallback() {
    let root = root().with("memory.fallback_strategy", json!("strict"));
    let daemon = root.with("memory.allow_fallback", json!(true)).start();
    let unknown = daemon.embeddings(&json!({ "input": "a", "model": "othre" }));
    refused(&unknown, 404, "model_not_found", Some("model"), &["othre"]);
    leave_no_room(&daemon);
    let answer = embed_other(&daemon, json!({ "allow_fallback": true }));
    refused(&answer, 503, "memory_limit", None, &["other"]);
    daemon.stop();
}

#[test]
fn configuration_sets_default_for_fallback() {
    let daemon = root().with("memory.allow_fallback", json!(true)).start();
    leave_no_room(&daemon);
    let answer = embed_other(&daemon, json!({}));
    assert_eq!(answer.header("x-caxton-fallback-for"), Some("other; reason=memory_limit"));
    let forbidden = embed_other(&daemon, json!({ "allow_fallback": false }));
    refused(&forbidden, 503, "memory_limit", None, &["other"]);
    daemon.stop();
}

#[test]
fn fallback_respects_allowed_models_of_tenant() {
    let tenant = |allowed: &[&str]| json!([{ "name": "t", "users": [nix::unistd::getuid().as_raw()], "allowed_models": allowed }]);
    let daemon = root().with("tenants", tenant(&["other"])).start();
    leave_no_room(&daemon);
    let answer = embed_other(&daemon, json!({ "allow_fallback": true }));
    refused(&answer, 503, "memory_limit", None, &["other"]);
    let mut root = daemon.stop();
    root.set("tenants", tenant(&["other", "bundled-mini"]));
    let daemon = root.start();
    leave_no_room(&daemon);
    let answer = embed_other(&daemon, json!({ "allow_fallback": true }));
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    daemon.stop();
}

fn rank(daemon: &Daemon, more: Value) -> Answer {
    let mut body = json!({
        "query": "oil leaks",
        "documents": ["a quiet evening", "the pump leaks oil", "oil"],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    daemon.post("/v1/rank", &body)
}

fn order(answer: &Answer) -> Vec<u64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].as_array().unwrap().clone();
    results.iter().map(|result| result["index"].as_u64().unwrap()).collect()
}

#[test]
fn keyword_text_over_limit_is_rejected() {
    let daemon = Root::new().start();
    let documents = json!(["oil ".repeat(1 << 19), "x"]);
    for mode in ["keyword", "hybrid"] {
        let answer = rank(&daemon, json!({ "mode": mode, "documents": documents }));
        refused(&answer, 413, "too_much_text", Some("documents"), &["at most 2.0 MiB"]);
    }
    let most = json!(["oil ".repeat((1 << 19) - 1), "oil"]);
    let answer = rank(&daemon, json!({ "mode": "keyword", "documents": most }));
    assert_eq!(order(&answer).len(), 2);
    daemon.stop();
}

#[test]
fn documents_are_ranked_by_cosine() {
    let daemon = Root::new().start();
    let vectors =
        daemon.embed(json!(["oil leaks", "a quiet evening", "the pump leaks oil", "oil"]));
    let cosines: Vec<f32> =
        vectors[1..].iter().map(|vector| crate::support::cosine(&vectors[0], vector)).collect();
    let answer = rank(&daemon, json!({ "return_documents": true }));
    let results = answer.json()["results"].clone();
    assert_eq!(answer.json()["mode"], "semantic");
    assert_eq!(answer.header("x-caxton-mode"), Some("semantic"));
    for result in results.as_array().unwrap() {
        let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        let score = result["score"].as_f64().unwrap();
        assert!((score - f64::from(cosines[index])).abs() < 1e-5, "{result} {cosines:?}");
    }
    let scores: Vec<f64> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(results[0]["document"].is_string());
    assert_eq!(order(&rank(&daemon, json!({ "top_n": 1 }))).len(), 1);

    let hybrid = rank(&daemon, json!({ "mode": "hybrid" }));
    assert_eq!(hybrid.json()["mode"], "hybrid");
    assert_eq!(order(&hybrid).len(), 3);
    assert_eq!(order(&rank(&daemon, json!({ "mode": "keyword" }))), [1, 2, 0]);
    refused(&rank(&daemon, json!({ "mode": "best" })), 400, "invalid_request", Some("mode"), &[]);
    refused(
        &rank(&daemon, json!({ "documents": [] })),
        400,
        "invalid_request",
        Some("documents"),
        &[],
    );
    daemon.stop();
}

#[test]
fn rerank_matches_rank_order_and_bounds_scores() {
    let daemon = Root::new().start();
    let texts = ["a quiet evening", "the pump leaks oil", "oil"];
    let body = json!({ "query": "oil leaks", "texts": texts, "return_text": true });
    let answer = daemon.post("/rerank", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let reranked = answer.json();
    let indices: Vec<u64> = reranked
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, order(&rank(&daemon, json!({}))));
    for result in reranked.as_array().unwrap() {
        assert!((0.0..=1.0).contains(&result["score"].as_f64().unwrap()), "{result}");
        let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        assert_eq!(result["text"], texts[index]);
    }
    daemon.stop();
}

#[test]
fn without_models_ranking_falls_back_to_keywords() {
    let daemon = root().with("memory.fallback_models", json!([])).start();
    let unload = |name: &str| {
        let path = format!("/api/memory/models/{name}");
        daemon.connect().request("DELETE", &path, &[], b"")
    };
    assert_eq!(unload("bundled-mini").status, 200);
    leave_no_room(&daemon);
    let answer = daemon.embeddings(&json!({ "input": "a text" }));
    refused(&answer, 503, "memory_limit", None, &["bundled-mini"]);
    let ranked = rank(&daemon, json!({}));
    assert_eq!(order(&ranked), [1, 2, 0]);
    assert_eq!(
        (&ranked.json()["mode"], &ranked.json()["model"]),
        (&json!("keyword"), &Value::Null)
    );
    assert_eq!(ranked.header("x-caxton-mode"), Some("keyword"));
    let forbidden = rank(&daemon, json!({ "allow_fallback": false }));
    refused(&forbidden, 503, "memory_limit", None, &["bundled-mini"]);
    daemon.stop();
}

#[test]
fn unnamed_comparisons_use_the_recommended_model() {
    let root = root().with("memory.dynamic_selection", json!(true));
    let daemon = root.start();
    let own = daemon.embed(json!("a text"));
    let ranked_by = |more: Value| {
        let answer = rank(&daemon, more);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("x-caxton-model").unwrap().to_owned()
    };
    // `other` was made for questions and documents.
    for unnamed in [json!({}), json!({ "model": "" }), json!({ "mode": "hybrid" })] {
        assert_eq!(ranked_by(unnamed), "other@2");
    }
    assert_eq!(ranked_by(json!({ "model": "bundled-mini" })), "bundled-mini@1");
    let reranks = json!({ "query": "oil", "texts": ["a pump", "oil"] });
    assert_eq!(daemon.post("/rerank", &reranks).header("x-caxton-model"), Some("other@2"));
    let similar = json!({ "inputs": { "source_sentence": "oil", "sentences": ["a pump"] } });
    let answer = daemon.post("/similarity", &similar);
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"), "{answer:?}");
    // Vectors that leave the daemon keep the embedding space of the default model.
    assert_eq!(daemon.embed(json!("a text")), own);

    let unload = daemon.connect().request("DELETE", "/api/memory/models/other", &[], b"");
    assert_eq!(unload.status, 200, "{unload:?}");
    leave_no_room(&daemon);
    assert_eq!(ranked_by(json!({})), "bundled-mini@1");
    daemon.stop();
}

#[test]
fn selection_respects_allowed_models_of_tenant() {
    let uid = nix::unistd::getuid().as_raw();
    let tenant = json!([{ "name": "t", "users": [uid], "allowed_models": ["bundled-mini"] }]);
    let root = root().with("memory.dynamic_selection", json!(true)).with("tenants", tenant);
    let daemon = root.start();
    let answer = rank(&daemon, json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    daemon.stop();
}

#[test]
fn model_loading_error_reports_progress() {
    let daemon = root().start();
    let body = json!({ "input": "a text", "model": "other" }).to_string();
    // The timeout of 0 expires before any load can finish.
    let at_once = [("x-caxton-timeout-ms", "0")];
    let answer = daemon.connect().request("POST", EMBEDDINGS, &at_once, body.as_bytes());
    refused(&answer, 503, "model_loading", None, &["other"]);
    let loading = answer.error()["loading"].clone();
    assert_eq!((&loading["model"], &loading["expected_ms"]), (&json!("other"), &Value::Null));
    assert!(loading["elapsed_ms"].is_u64(), "{loading}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.header("retry-after-ms").is_some());
    daemon.stop();
}
