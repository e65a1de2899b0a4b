//! Tests of the header with the embedding space that a request expects.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, EMBEDDINGS, Root, refused};

const HEADER: &str = "x-caxton-expect-embedding-space";

fn ask(daemon: &Daemon, path: &str, space: &str, body: &Value) -> Answer {
    daemon.connect().request("POST", path, &[(HEADER, space)], body.to_string().as_bytes())
}

/// Returns the embedding space of `model`.
fn space(daemon: &Daemon, model: &str) -> String {
    let models = daemon.get("/v1/models").json();
    let mut models = models["data"].as_array().unwrap().iter();
    let model = models.find(|found| found["id"] == model).unwrap();
    model["embedding_space"].as_str().unwrap().to_owned()
}

#[test]
fn other_embedding_space_is_412_on_every_route() {
    let daemon = Root::with_other().start();
    let (own, other) = (space(&daemon, "bundled-mini"), space(&daemon, "other"));
    assert_ne!(own, other);
    let search = json!({ "query": "a", "documents": ["b"] });
    for (path, body) in [
        (EMBEDDINGS, json!({ "input": "a" })),
        ("/embeddings", json!({ "input": "a" })),
        ("/embed", json!({ "inputs": "a" })),
        ("/embed_all", json!({ "inputs": "a" })),
        ("/similarity", json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } })),
        ("/rerank", json!({ "query": "a", "texts": ["b"] })),
        ("/v1/rerank", search.clone()),
        ("/v2/embed", json!({ "texts": ["a"], "input_type": "search_document" })),
        ("/v1/rank", search),
        ("/api/embed", json!({ "input": "a" })),
        ("/api/embeddings", json!({ "prompt": "a" })),
    ] {
        assert_eq!(ask(&daemon, path, &own, &body).status, 200, "{path}");
        let answer = ask(&daemon, path, &other, &body);
        assert_eq!(answer.status, 412, "{path}: {answer:?}");
        let text = answer.json().to_string();
        assert!(text.contains(&own) && text.contains(&other), "{path}: {text}");
    }
    let answer = ask(&daemon, EMBEDDINGS, &other, &json!({ "input": "a" }));
    refused(&answer, 412, "embedding_space_mismatch", Some(HEADER), &[&own, &other]);
    let empty = ask(&daemon, EMBEDDINGS, "", &json!({ "input": "a" }));
    refused(&empty, 400, "invalid_request", Some(HEADER), &["the name of an embedding space"]);
    daemon.stop();
}

#[test]
fn expected_space_concerns_the_requested_model_only() {
    let daemon = Root::with_other().start();
    let (own, other) = (space(&daemon, "bundled-mini"), space(&daemon, "other"));
    let both = json!({ "input": "a", "additional_models": ["other"] });
    assert_eq!(ask(&daemon, EMBEDDINGS, &own, &both).status, 200);
    let named = json!({ "input": "a", "model": "other" });
    assert_eq!(ask(&daemon, EMBEDDINGS, &other, &named).status, 200);
    // Vectors of another type are of another space, whose name begins with the model's.
    let bits = json!({ "input": "a", "output_dtype": "ubinary" });
    let (same, another) = (format!("{own};ubinary"), format!("{own};int8"));
    for (expected, status) in [(own, 200), (same, 200), (another, 412)] {
        assert_eq!(ask(&daemon, EMBEDDINGS, &expected, &bits).status, status, "{expected}");
    }
    daemon.stop();
}
