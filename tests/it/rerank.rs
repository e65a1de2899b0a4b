//! Tests of the dialects of Cohere, Jina, vLLM and NVIDIA's NIM through the socket: ranking of
//! documents, embeddings by type, and truncation by words.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, EMBEDDINGS, Root, TINY_DIMENSIONS};

const QUERY: &str = "The pump runs hot.";
const DOCUMENTS: [&str; 3] = ["A quick fox.", "The pump runs hot.", "The pump is hot."];

fn ask(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let answer = daemon.post(path, body);
    assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
    answer.json()
}

/// Returns the index and the score of each result.
fn ranked(results: &Value, score: &str) -> Vec<(u64, f64)> {
    let results = results.as_array().unwrap().iter();
    results
        .map(|result| (result["index"].as_u64().unwrap(), result[score].as_f64().unwrap()))
        .collect()
}

#[test]
fn documents_are_ranked_like_texts() {
    let daemon = Root::new().start();
    let tei = ask(&daemon, "/rerank", &json!({ "query": QUERY, "texts": DOCUMENTS }));
    let expected = ranked(&tei, "score");
    assert_eq!(expected[0].0, 1, "{tei}");
    assert!((expected[0].1 - 1.0).abs() < 1e-5, "{tei}");
    let objects = DOCUMENTS.map(|text| json!({ "text": text, "title": [text] }));
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        for documents in [json!(DOCUMENTS), json!(objects)] {
            let body = json!({ "query": QUERY, "documents": documents, "max_chunks_per_doc": 9 });
            let answer = ask(&daemon, path, &body);
            assert_eq!(ranked(&answer["results"], "relevance_score"), expected, "{path}");
            assert!(answer["results"][0].get("document").is_none(), "{answer}");
            assert_eq!(
                answer["usage"]["total_tokens"],
                answer["meta"]["billed_units"]["input_tokens"]
            );
        }
    }
    let body = json!({
        "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": true,
        "raw_scores": true,
    });
    let answer = ask(&daemon, "/v1/rerank", &body);
    let raw = ranked(&answer["results"], "relevance_score");
    assert_eq!(raw.len(), 2);
    for ((_, cosine), (_, score)) in raw.iter().zip(&expected) {
        assert!((f64::midpoint(1.0, *cosine) - score).abs() < 1e-6, "{answer}");
    }
    assert_eq!(answer["results"][0]["document"], json!({ "text": DOCUMENTS[1] }));
    // Clients of vLLM and of Infinity expect different forms of a document on this route.
    let answer = ask(&daemon, "/rerank", &body);
    assert!(answer["results"][0].get("document").is_none(), "{answer}");
    daemon.stop();
}

#[test]
fn answer_has_the_id_of_the_request() {
    let daemon = Root::new().start();
    let body = json!({ "query": QUERY, "documents": DOCUMENTS }).to_string();
    let own = [("x-request-id", "my-id")];
    for headers in [&own[..], &[]] {
        let answer = daemon.connect().request("POST", "/v2/rerank", headers, body.as_bytes());
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(answer.json()["id"], id);
        assert_eq!(id == "my-id", !headers.is_empty());
    }
    daemon.stop();
}

/// Checks that a failure has the message in the fields of all dialects, and returns it.
fn failed(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["detail"], body["message"], "{body}");
    assert!(body["error"]["code"].is_string(), "{body}");
    body["message"].as_str().unwrap().to_owned()
}

#[test]
fn failures_follow_the_dialect_of_the_request() {
    let daemon = Root::new().start();
    for (path, body, status, message) in [
        ("/rerank", json!({ "query": "a", "documents": [] }), 400, "documents"),
        ("/v1/rerank", json!({ "query": "", "documents": ["a"] }), 400, "query is empty"),
        ("/v1/rerank", json!({ "query": "a", "documents": ["a", ""] }), 400, "documents 1"),
        ("/v2/rerank", json!({ "query": "a", "documents": [5] }), 400, "documents[0]"),
        ("/v2/rerank", json!({ "documents": ["a"] }), 400, "query"),
        ("/v2/rerank", json!({ "query": "a", "documents": vec!["a"; 2049] }), 413, "2048"),
        ("/v2/embed", json!({ "texts": ["a"], "input_type": "image" }), 400, "input_type"),
        ("/v2/embed", json!({ "texts": ["a"], "model": "none-such" }), 404, "none-such"),
        ("/v2/embed", json!({ "texts": ["a"], "output_dimension": 9 }), 400, "output_dimension"),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        assert!(failed(&answer).contains(message), "{path} {body}: {answer:?}");
    }
    // A request with texts is one of TEI.
    let answer = daemon.post("/rerank", &json!({ "query": "a", "texts": [] }));
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.json()["error_type"], "Validation");
    daemon.stop();
}

#[test]
fn cohere_gets_every_type_of_the_same_vectors() {
    let daemon = Root::new().start();
    let texts = json!(["a text", "another text"]);
    let expected = daemon.embeddings(&json!({ "input": texts })).vectors();
    let types = ["float", "int8", "uint8", "binary", "ubinary", "base64"];
    let answer = ask(&daemon, "/v2/embed", &json!({ "texts": texts, "embedding_types": types }));
    assert_eq!(
        (&answer["texts"], &answer["meta"]["api_version"]["version"]),
        (&texts, &json!("2"))
    );
    let by_type = &answer["embeddings"];
    let floats: Vec<Vec<f32>> = serde_json::from_value(by_type["float"].clone()).unwrap();
    assert_eq!(floats, expected);
    let int8: Vec<Vec<i8>> = serde_json::from_value(by_type["int8"].clone()).unwrap();
    let uint8: Vec<Vec<u8>> = serde_json::from_value(by_type["uint8"].clone()).unwrap();
    let ubinary: Vec<Vec<u8>> = serde_json::from_value(by_type["ubinary"].clone()).unwrap();
    for (((vector, signed), unsigned), bits) in expected.iter().zip(&int8).zip(&uint8).zip(&ubinary)
    {
        assert_eq!((signed.len(), bits.len()), (TINY_DIMENSIONS, TINY_DIMENSIONS / 8));
        for (at, value) in vector.iter().enumerate() {
            assert!((f32::from(signed[at]) - value * 127.0).abs() < 0.51, "{value}");
            assert_eq!(i16::from(unsigned[at]), i16::from(signed[at]) + 128);
            assert_eq!((bits[at / 8] >> (7 - at % 8)) & 1 == 1, *value > 0.0);
        }
    }
    assert_eq!(by_type["base64"].as_array().unwrap().len(), 2);
    let floats = ask(&daemon, "/v1/embed", &json!({ "texts": texts }));
    assert_eq!(floats["response_type"], "embeddings_floats");
    let floats: Vec<Vec<f32>> = serde_json::from_value(floats["embeddings"].clone()).unwrap();
    assert_eq!(floats, expected);
    daemon.stop();
}

#[test]
fn truncate_words_are_those_of_nim_and_cohere() {
    let daemon = Root::new().start();
    let long = (0..400).map(|index| format!("fox {} ", index % 7)).collect::<String>();
    let tei = |direction: &str| {
        ask(&daemon, "/embed", &json!({ "inputs": long, "truncation_direction": direction }))
    };
    for (word, direction) in [("END", "right"), ("START", "left")] {
        let expected: Vec<Vec<f32>> = serde_json::from_value(tei(direction)).unwrap();
        let answer = daemon.embeddings(&json!({ "input": long, "truncate": word }));
        assert_eq!(answer.vectors(), expected, "{word}");
        let answer = ask(&daemon, "/v1/embed", &json!({ "texts": [long], "truncate": word }));
        let found: Vec<Vec<f32>> = serde_json::from_value(answer["embeddings"].clone()).unwrap();
        assert_eq!(found, expected, "{word}");
    }
    let refused = daemon.post(EMBEDDINGS, &json!({ "input": long, "truncate": "NONE" }));
    assert_eq!(refused.error()["code"], "context_length_exceeded");
    let refused = daemon.post("/v2/embed", &json!({ "texts": [long], "truncate": "NONE" }));
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    daemon.stop();
}

#[test]
fn keywords_rank_when_no_model_can_answer() {
    let daemon = Root::with_other()
        .with("memory.min_free", json!("0B"))
        .with("memory.fallback_models", json!([]))
        .start();
    let request = |method: &str, path: &str, body: &[u8]| {
        let answer = daemon.connect().request(method, path, &[], body);
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    request("DELETE", "/api/memory/models/bundled-mini", b"");
    request("PUT", "/api/memory/limit", br#"{"limit":"1MiB"}"#);
    let body = json!({ "query": QUERY, "documents": DOCUMENTS });
    let answer = daemon.post("/v2/rerank", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-caxton-mode"), Some("keyword"), "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["model"], "keyword");
    let results = ranked(&answer["results"], "relevance_score");
    assert_eq!(results[0].0, 1, "{answer}");
    assert!(results.iter().all(|(_, score)| (0.0..=1.0).contains(score)), "{answer}");
    let forbidden = [("x-caxton-allow-fallback", "false")];
    let body = body.to_string();
    let answer = daemon.connect().request("POST", "/v2/rerank", &forbidden, body.as_bytes());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(failed(&answer).contains("bundled-mini"), "{answer:?}");
    daemon.stop();
}
