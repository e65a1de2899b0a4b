//! Tests of the text-embeddings-inference dialect through the socket: its vectors equal those of
//! `/v1/embeddings`, and its other outputs are consistent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::{Value, json};

use crate::support::packages::file_name;
use crate::support::{Answer, Daemon, Root, TINY_DIMENSIONS, cosine, pack};

const SPACE: &str = "x-caxton-embedding-space";

fn ask(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    let answer = daemon.post(path, body);
    assert_eq!(answer.status, 200, "{path} {answer:?}");
    answer
}

fn vectors(answer: &Answer) -> Vec<Vec<f32>> {
    serde_json::from_value(answer.json()).unwrap()
}

fn embed(daemon: &Daemon, body: &Value) -> Vec<Vec<f32>> {
    vectors(&ask(daemon, "/embed", body))
}

fn openai(daemon: &Daemon, body: &Value) -> Vec<Vec<f32>> {
    ask(daemon, "/v1/embeddings", body).vectors()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn length(vector: &[f32]) -> f32 {
    cosine(vector, vector).sqrt()
}

/// Creates a root with a second model, `raw`, whose vectors are not normalised.
fn with_raw() -> Root {
    let root = Root::new().with("embedding.allow_any_dimensions", json!(true));
    fs::write(root.bundled().join(file_name("raw")), pack("tiny-distilbert", "raw", "1")).unwrap();
    root
}

#[test]
fn vectors_match_the_openai_route() {
    let daemon = with_raw().start();
    let texts = json!(["one", "another text", "日本語 and ünïcödé", "word ".repeat(200)]);
    for model in ["bundled-mini", "raw"] {
        let expected = openai(&daemon, &json!({ "input": texts, "model": model }));
        assert_eq!(embed(&daemon, &json!({ "inputs": texts, "model": model })), expected);
        let expected = openai(&daemon, &json!({ "input": texts, "model": model, "dimensions": 9 }));
        let body = json!({ "inputs": texts, "model": model, "dimensions": 9 });
        assert_eq!(embed(&daemon, &body), expected);
    }
    daemon.stop();
}

#[test]
fn root_and_invocations_are_the_embed_route() {
    let daemon = Root::new().start();
    let body = json!({ "inputs": ["one", "two"], "normalize": false });
    let expected = embed(&daemon, &body);
    for path in ["/", "/invocations"] {
        assert_eq!(vectors(&ask(&daemon, path, &body)), expected, "{path}");
        let empty = daemon.post(path, &json!({ "inputs": [] }));
        assert_eq!((empty.status, &empty.json()["error_type"]), (400, &json!("Empty")), "{path}");
    }
    let greeting = daemon.get("/");
    assert!(greeting.body.starts_with(b"Caxton"), "{greeting:?}");
    let wrong = daemon.connect().request("DELETE", "/", &[], b"");
    assert_eq!(wrong.error()["code"], "method_not_allowed");
    daemon.stop();
}

#[test]
fn embeddings_route_is_the_one_of_openai() {
    let daemon = Root::new().start();
    let body = json!({ "input": ["one", "two"], "model": "bundled-mini:latest" });
    let answer = ask(&daemon, "/embeddings", &body);
    assert_eq!(answer.vectors(), openai(&daemon, &body));
    let missing = daemon.post("/embeddings", &json!({ "input": "a", "model": "none-such" }));
    assert_eq!((missing.status, &missing.error()["code"]), (404, &json!("model_not_found")));
    daemon.stop();
}

#[test]
fn unnormalised_vectors_have_another_embedding_space() {
    let daemon = with_raw().start();
    for (model, normalizes) in [("bundled-mini", true), ("raw", false)] {
        let ask = |normalize: Value| {
            let body = json!({ "inputs": "a text", "model": model, "normalize": normalize });
            ask(&daemon, "/embed", &body)
        };
        let (own, unit, raw) = (ask(Value::Null), ask(json!(true)), ask(json!(false)));
        let as_it_is = if normalizes { &unit } else { &raw };
        assert_eq!(vectors(&own), vectors(as_it_is), "{model}");
        assert_eq!(own.header(SPACE), as_it_is.header(SPACE), "{model}");
        assert_ne!(unit.header(SPACE), raw.header(SPACE), "{model}");
        let (unit, raw) = (vectors(&unit).remove(0), vectors(&raw).remove(0));
        assert!((length(&unit) - 1.0).abs() < 1e-5, "{model}");
        assert!((length(&raw) - 1.0).abs() > 1e-2, "{model}");
        let scaled: Vec<f32> = raw.iter().map(|value| value / length(&raw)).collect();
        assert!(largest_difference(&scaled, &unit) < 1e-6, "{model}");
    }
    daemon.stop();
}

#[test]
fn shortened_vectors_are_normalised_as_asked() {
    let daemon = with_raw().start();
    for model in ["bundled-mini", "raw"] {
        let ask = |normalize: bool, dimensions: usize| {
            let body = json!({
                "inputs": "a text", "model": model, "normalize": normalize, "dimensions": dimensions,
            });
            embed(&daemon, &body).remove(0)
        };
        assert_eq!(ask(false, 7), ask(false, TINY_DIMENSIONS)[..7], "{model}");
        assert!((length(&ask(true, 7)) - 1.0).abs() < 1e-5, "{model}");
    }
    daemon.stop();
}

#[test]
fn vector_is_mean_of_token_states() {
    let daemon = Root::new().start();
    let texts = json!(["a text", "another text that is longer"]);
    let answer = ask(&daemon, "/embed_all", &json!({ "inputs": texts }));
    let states: Vec<Vec<Vec<f32>>> = serde_json::from_value(answer.json()).unwrap();
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    assert_eq!(answer.header(SPACE), None);
    let tokens: usize = states.iter().map(Vec::len).sum();
    assert_eq!(answer.header("x-compute-tokens"), Some(tokens.to_string().as_str()));
    let raw = embed(&daemon, &json!({ "inputs": texts, "normalize": false }));
    assert_eq!(states.len(), raw.len());
    for (states, raw) in states.iter().zip(&raw) {
        let sum = |at: usize| states.iter().map(|state| state[at]).sum::<f32>();
        #[expect(clippy::cast_precision_loss, reason = "a few tokens")]
        let count = states.len() as f32;
        let mean: Vec<f32> = (0..TINY_DIMENSIONS).map(|at| sum(at) / count).collect();
        assert!(largest_difference(&mean, raw) < 1e-5);
    }
    // Token states include those of special tokens, as `/tokenize` returns them.
    let tokenized = ask(&daemon, "/tokenize", &json!({ "inputs": texts })).json();
    for (states, tokens) in states.iter().zip(tokenized.as_array().unwrap()) {
        assert_eq!(states.len(), tokens.as_array().unwrap().len());
    }
    daemon.stop();
}

#[test]
fn token_states_are_independent_of_concurrent_requests() {
    let daemon = Root::new().start();
    let body = json!({ "inputs": ["a text", "another one"] });
    let alone = ask(&daemon, "/embed_all", &body).json();
    let mut connections: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    for (index, connection) in connections.iter_mut().enumerate() {
        let path = if index % 2 == 0 { "/embed_all" } else { "/embed" };
        connection.ask("POST", path, &[], body.to_string().as_bytes());
    }
    let vectors = embed(&daemon, &body);
    for (index, connection) in connections.iter_mut().enumerate() {
        let answer = connection.answer();
        if index % 2 == 0 {
            let (found, expected) = (answer.json().to_string(), alone.to_string());
            assert_eq!(found, expected);
        } else {
            assert_eq!(self::vectors(&answer), vectors);
        }
    }
    daemon.stop();
}

#[test]
fn left_truncation_keeps_the_end() {
    let daemon = Root::new().start();
    let long = (0..4000).map(|index| format!("fox {} ", index % 7)).collect::<String>();
    let tokens = ask(&daemon, "/tokenize", &json!({ "inputs": long, "add_special_tokens": false }));
    let tokens = tokens.json();
    let ids: Vec<&Value> = tokens[0].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    // Two of the 48 tokens are special.
    let (first, last) = (&ids[..46], &ids[ids.len() - 46..]);
    let answer = ask(&daemon, "/embed", &json!({ "inputs": long, "truncation_direction": "left" }));
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"));
    assert_eq!(vectors(&answer), openai(&daemon, &json!({ "input": last })));
    let right = embed(&daemon, &json!({ "inputs": long, "truncation_direction": "right" }));
    assert_eq!(right, openai(&daemon, &json!({ "input": first })));
    assert_ne!(vectors(&answer), right);
    // Token ids from the client are cut in the same way.
    let of_ids = embed(&daemon, &json!({ "inputs": ids, "truncation_direction": "left" }));
    assert_eq!(of_ids, vectors(&answer));
    daemon.stop();
}

#[test]
fn similarities_are_the_cosines_of_the_vectors() {
    let daemon = with_raw().start();
    let sentences = ["The pump is hot.", "A quick fox.", "The pump runs hot."];
    for model in ["bundled-mini", "raw"] {
        let inputs = json!({ "source_sentence": "The pump runs hot.", "sentences": sentences });
        let found = ask(&daemon, "/similarity", &json!({ "inputs": inputs, "model": model }));
        let cosines: Vec<f32> = serde_json::from_value(found.json()).unwrap();
        let vectors = openai(&daemon, &json!({ "input": sentences, "model": model }));
        let expected = vectors
            .iter()
            .map(|vector| cosine(vector, &vectors[2]) / length(vector) / length(&vectors[2]));
        assert!(largest_difference(&cosines, &Vec::from_iter(expected)) < 1e-5, "{model}");
        assert!(cosines[0] > cosines[1], "{cosines:?}");
    }
    daemon.stop();
}

#[test]
fn tokens_decode_to_text_and_same_vector() {
    let daemon = Root::new().start();
    let text = "the quick fox";
    let tokens = ask(&daemon, "/tokenize", &json!({ "inputs": text })).json();
    let ids: Vec<&Value> = tokens[0].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    let decoded = ask(&daemon, "/decode", &json!({ "ids": ids })).json();
    assert_eq!(decoded, json!([text]));
    let of_ids = embed(&daemon, &json!({ "inputs": ids }));
    assert_eq!(of_ids, embed(&daemon, &json!({ "inputs": text })));
    daemon.stop();
}

#[test]
fn oversized_requests_are_rejected() {
    let daemon = Root::new().start();
    for (path, body, message) in [
        ("/tokenize", json!({ "inputs": "a ".repeat(200 << 10) }), "400.0 KiB of text"),
        ("/decode", json!({ "ids": vec![vec![1; 1 << 17]; 3] }), "393216 tokens"),
        ("/embed_all", json!({ "inputs": vec!["word ".repeat(100); 200] }), "9600 tokens"),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(answer.status, 422, "{path}: {answer:?}");
        let error = answer.json();
        assert_eq!(error["error_type"], "Validation", "{path}: {error}");
        assert!(error["error"].as_str().unwrap().contains(message), "{path}: {error}");
    }
    daemon.stop();
}

#[test]
fn info_reports_default_model_and_limits() {
    let daemon = Root::with_other()
        .with("memory.embedding_model", json!("other"))
        .with("embedding", json!({ "batch_tokens": 1024, "queue_size": 17 }))
        .start();
    let info = daemon.get("/info").json();
    let package = daemon.package("other");
    assert_eq!(info["model_id"], "other");
    assert_eq!(info["model_sha"], package["revision"]);
    assert_eq!(info["max_input_length"], package["max_sequence_length"]);
    assert_eq!(
        (&info["max_batch_tokens"], &info["max_concurrent_requests"]),
        (&json!(1024), &json!(17))
    );
    assert_eq!(daemon.get("/health").status, 200);
    assert!(daemon.get("/health").body.is_empty());
    assert_eq!(daemon.get("/ping").status, 200);
    daemon.stop();
}

#[test]
fn info_spells_last_token_like_tei() {
    let root = Root::without_bundled().with("memory.embedding_model", json!("decoder"));
    let package = pack("tiny-qwen3", "decoder", "1");
    fs::write(root.bundled().join("decoder-1.model.tar.zst"), package).unwrap();
    let daemon = root.start();
    let info = daemon.get("/info").json();
    assert_eq!(info["model_type"], json!({ "embedding": { "pooling": "last_token" } }));
    let vector = &embed(&daemon, &json!({ "inputs": "a text", "prompt_name": "query" }))[0];
    assert!((length(vector) - 1.0).abs() < 1e-5);
    daemon.stop();
}
