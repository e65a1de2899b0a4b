//! Tests of the heads of bge-m3 for tokens: sparse vectors, vectors of tokens, and ranking by them.
//!
//! The expected values are computed here from the token states of the same model without heads, in
//! 64 bits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::{fs, io};

use caxton::engine::{self, EngineOptions, FileSizes, Output, WeightsFormat};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::packages::file_name;
use crate::support::{Answer, Daemon, Root, cli, golden};

/// Number of values of a token state.
const STATE: usize = 64;
/// Number of values of a vector of a token.
const VECTOR: usize = 48;
/// Ids of the tokens without a weight.
const IGNORED: [u64; 4] = [0, 1, 2, 3];
const QUERY: &str = "The pump runs hot.";
const DOCUMENTS: [&str; 3] = ["A quick fox.", "The pump runs hot.", "The pump is hot; the pump!"];
const OPTIONS: EngineOptions =
    EngineOptions { threads: 2, batch_tokens: 256, precision: engine::Precision::F32 };

fn small(value: usize) -> f64 {
    f64::from(u32::try_from(value).unwrap())
}

/// Returns the weight of the sparse head for channel `column` in `tests/golden/torch`.
fn sparse_weight(column: usize) -> f64 {
    (small(5 * column % 13) - 6.0) / 8.0
}

/// Returns a weight of the multi-vector head in `tests/golden/torch`.
fn vector_weight(row: usize, column: usize) -> f64 {
    (small((7 * row + 3 * column) % 17) - 8.0) / 32.0
}

/// Computes the weight of a token from its state.
fn expected_weight(state: &[f64]) -> f64 {
    let sum: f64 = state.iter().enumerate().map(|(at, value)| value * sparse_weight(at)).sum();
    (sum + 0.25).max(0.0)
}

/// Computes the vector of a token from its state.
fn expected_vector(state: &[f64]) -> Vec<f64> {
    let output = |row: usize| {
        let products = state.iter().enumerate().map(|(at, value)| value * vector_weight(row, at));
        products.sum::<f64>() + (small(row % 5) - 2.0) / 16.0
    };
    let vector: Vec<f64> = (0..VECTOR).map(output).collect();
    let length = dot(&vector, &vector).sqrt();
    vector.into_iter().map(|value| value / length).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Computes the score of a document for a query from the vectors of their tokens.
fn expected_score(query: &[Vec<f64>], document: &[Vec<f64>]) -> f64 {
    let best =
        |query: &Vec<f64>| document.iter().map(|other| dot(query, other)).fold(-1.0, f64::max);
    query.iter().map(best).sum::<f64>() / small(query.len())
}

/// Copies the XLM-RoBERTa of `tests/golden`, with the heads of `tests/golden/torch`.
fn directory() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for folder in ["", "1_Pooling", "2_Normalize"] {
        fs::create_dir_all(copy.path().join(folder)).unwrap();
        for entry in fs::read_dir(golden("tiny-xlm-roberta").join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    for file in ["sparse_linear.pt", "colbert_linear.pt"] {
        fs::copy(golden("torch").join(file), copy.path().join(file)).unwrap();
    }
    copy
}

/// Returns the root of a daemon with the same model twice: `m3` with heads, and `plain` without.
fn root() -> Root {
    let root = Root::new().with("embedding.precision", json!("f32"));
    let with_heads = directory();
    for (id, source) in [("m3", with_heads.path()), ("plain", &golden("tiny-xlm-roberta"))] {
        let output = root.bundled().join(file_name(id));
        let packed = cli()
            .args(["model", "pack", "--model-id", id, "--model-version", "1", "--source"])
            .args([source, "--output".as_ref(), &output])
            .output()
            .unwrap();
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    }
    root
}

fn ask(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    let answer = daemon.post(path, body);
    assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
    answer
}

/// Returns the rows of the tokens of each text.
fn token_rows(daemon: &Daemon, model: &str, texts: &Value) -> Vec<Vec<Vec<f64>>> {
    let answer = ask(daemon, "/embed_all", &json!({ "inputs": texts, "model": model }));
    serde_json::from_value(answer.json()).unwrap()
}

#[test]
fn embed_all_returns_projected_vectors_of_tokens() {
    let daemon = root().start();
    let texts = json!([QUERY, DOCUMENTS[0], "word ".repeat(200)]);
    let body = |model: &str| json!({ "inputs": texts, "model": model });
    let [own, plain] = ["m3", "plain"].map(|model| ask(&daemon, "/embed", &body(model)).json());
    assert_eq!(own, plain, "heads do not change the vectors of texts");
    let models = daemon.get("/v1/models").json();
    for model in models["data"].as_array().unwrap() {
        let expected =
            if model["id"] == "m3" { json!(["sparse", "multi-vector"]) } else { Value::Null };
        assert_eq!(model["token_heads"], expected, "{model}");
    }
    assert_eq!(daemon.package("m3")["token_heads"], json!(["sparse", "multi-vector"]));
    let answer = ask(&daemon, "/embed_all", &body("m3"));
    assert_eq!(answer.header("x-caxton-embedding-space"), None);
    assert_eq!(answer.header("x-caxton-model"), Some("m3@1"));
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"));
    let states = token_rows(&daemon, "plain", &texts);
    let tokens: usize = states.iter().map(Vec::len).sum();
    assert_eq!(answer.header("x-compute-tokens"), Some(tokens.to_string().as_str()));
    let vectors: Vec<Vec<Vec<f64>>> = serde_json::from_value(answer.json()).unwrap();
    assert_eq!(vectors.len(), states.len());
    for (vectors, states) in vectors.iter().zip(&states) {
        assert_eq!(vectors.len(), states.len() - 1, "the first token has no vector");
        for (vector, state) in vectors.iter().zip(&states[1..]) {
            assert_eq!((vector.len(), state.len()), (VECTOR, STATE));
            let expected = expected_vector(state);
            let difference = vector.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            assert!(difference.fold(0.0, f64::max) < 1e-5, "{vector:?} instead of {expected:?}");
        }
    }
    daemon.stop();
}

#[test]
fn embed_sparse_returns_largest_weight_of_each_token() {
    let daemon = root().start();
    let texts = json!([DOCUMENTS[2], "the the the", "日本 \u{1f600}", QUERY]);
    let states = token_rows(&daemon, "plain", &texts);
    let tokens = ask(&daemon, "/tokenize", &json!({ "inputs": texts, "model": "m3" })).json();
    let answer = ask(&daemon, "/embed_sparse", &json!({ "inputs": texts, "model": "m3" }));
    assert_eq!(answer.header("x-caxton-embedding-space"), None);
    assert_eq!(answer.header("x-caxton-model"), Some("m3@1"));
    let found = answer.json();
    let mut values = 0;
    for (index, states) in states.iter().enumerate() {
        let mut expected: BTreeMap<u64, f64> = BTreeMap::new();
        for (token, state) in tokens[index].as_array().unwrap().iter().zip(states) {
            let (id, weight) = (token["id"].as_u64().unwrap(), expected_weight(state));
            if weight > 0.0 && !IGNORED.contains(&id) {
                let largest = expected.entry(id).or_insert(weight);
                *largest = largest.max(weight);
            }
        }
        let found = found[index].as_array().unwrap();
        let ids: Vec<u64> = found.iter().map(|it| it["index"].as_u64().unwrap()).collect();
        assert_eq!(ids, Vec::from_iter(expected.keys().copied()), "text {index}");
        for (found, expected) in found.iter().zip(expected.values()) {
            let value = found["value"].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-4, "text {index}: {value} not {expected}");
            values += 1;
        }
    }
    assert!(values > 3, "{found}");
    // One text is a list of one text.
    let alone = ask(&daemon, "/embed_sparse", &json!({ "inputs": QUERY, "model": "m3" }));
    assert_eq!(alone.json().as_array().unwrap().len(), 1);
    daemon.stop();
}

#[test]
fn model_without_heads_is_424() {
    let daemon = root().start();
    let sparse = daemon.post("/embed_sparse", &json!({ "inputs": "a", "model": "plain" }));
    assert_eq!((sparse.status, &sparse.json()["error_type"]), (424, &json!("Backend")));
    assert!(sparse.json()["error"].as_str().unwrap().contains("\"plain\" has no sparse head"));
    let body = json!({
        "query": QUERY, "documents": DOCUMENTS, "model": "plain", "mode": "multi-vector",
    });
    let ranked = daemon.post("/v1/rank", &body);
    assert_eq!(ranked.status, 424, "{ranked:?}");
    let error = ranked.error();
    assert_eq!((&error["code"], &error["param"]), (&json!("wrong_task"), &json!("model")));
    assert!(error["message"].as_str().unwrap().contains("no multi-vector head"), "{error}");
    for mode in ["keyword", "hybrid", "other"] {
        let body = json!({ "query": QUERY, "documents": ["b"], "model": "m3", "mode": mode });
        let refused = daemon.post("/v2/rerank", &body);
        assert_eq!(refused.status, 400, "{mode}: {refused:?}");
        assert!(refused.json()["message"].as_str().unwrap().contains(mode), "{refused:?}");
    }
    daemon.stop();
}

#[test]
fn documents_are_ranked_by_vectors_of_tokens() {
    let daemon = root().start();
    let query = token_rows(&daemon, "m3", &json!(QUERY)).remove(0);
    let documents = token_rows(&daemon, "m3", &json!(DOCUMENTS));
    let expected: Vec<f64> =
        documents.iter().map(|document| expected_score(&query, document)).collect();
    let body = json!({
        "query": QUERY, "documents": DOCUMENTS, "model": "m3", "mode": "multi-vector",
    });
    let answer = ask(&daemon, "/v1/rank", &body);
    assert_eq!(answer.header("x-caxton-mode"), Some("multi-vector"));
    assert_eq!(answer.header("x-caxton-embedding-space"), None);
    let ranked = answer.json();
    assert_eq!((&ranked["mode"], &ranked["model"]), (&json!("multi-vector"), &json!("m3")));
    // The first token of each text is computed, too.
    let tokens = query.len() + documents.iter().map(Vec::len).sum::<usize>() + 4;
    assert_eq!(ranked["usage"]["total_tokens"], tokens);
    assert_eq!(ranked["results"][0]["index"], 1, "{ranked}");
    for result in ranked["results"].as_array().unwrap() {
        let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        let score = result["score"].as_f64().unwrap();
        assert!((score - expected[index]).abs() < 1e-5, "{result} not {}", expected[index]);
    }
    let mut body = json!({
        "query": QUERY, "texts": DOCUMENTS, "model": "m3", "mode": "multi-vector",
    });
    for raw in [true, false] {
        body["raw_scores"] = json!(raw);
        for result in ask(&daemon, "/rerank", &body).json().as_array().unwrap() {
            let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
            let expected = if raw { expected[index] } else { f64::midpoint(1.0, expected[index]) };
            assert!((result["score"].as_f64().unwrap() - expected).abs() < 1e-5, "{raw}: {result}");
        }
    }
    // Without the field, the vectors of the texts are compared.
    body["mode"] = Value::Null;
    let answer = ask(&daemon, "/rerank", &body);
    assert_eq!(answer.header("x-caxton-mode"), Some("semantic"));
    daemon.stop();
}

#[test]
fn many_documents_get_the_scores_of_single_ones() {
    let daemon = root().start();
    let documents: Vec<String> =
        (0..120).map(|at| format!("{} fox {at} ", at % 7).repeat(1 + at % 30)).collect();
    let rank = |documents: &Value| {
        let body = json!({
            "query": QUERY, "documents": documents, "model": "m3", "mode": "multi-vector",
        });
        let answer = ask(&daemon, "/v1/rank", &body).json();
        let results = answer["results"].as_array().unwrap().iter();
        let scores: BTreeMap<u64, f64> = results
            .map(|it| (it["index"].as_u64().unwrap(), it["score"].as_f64().unwrap()))
            .collect();
        (scores, answer["usage"]["total_tokens"].as_u64().unwrap())
    };
    let (together, tokens) = rank(&json!(documents));
    assert!(tokens > 2 * 2048, "{tokens} tokens are several groups");
    assert_eq!(together.len(), documents.len());
    for index in [0, 1, 41, 77, 119] {
        let (alone, _) = rank(&json!([documents[index]]));
        let (alone, together) = (alone[&0], together[&(index as u64)]);
        assert!((alone - together).abs() < 1e-5, "document {index}: {together} not {alone}");
    }
    daemon.stop();
}

#[test]
fn packages_of_any_precision_keep_heads_and_count_their_memory() {
    let (with_heads, plain) = (directory(), golden("tiny-xlm-roberta"));
    let head_bytes = 4 * (STATE + 1 + VECTOR * STATE + VECTOR) as u64;
    for (precision, stored) in [
        (package::Precision::F32, WeightsFormat::F32),
        (package::Precision::F16, WeightsFormat::F16),
        (package::Precision::Int8, WeightsFormat::Int8),
    ] {
        // Returns the estimate and the measurement of the memory of the weights.
        let pack = |source: &std::path::Path, heads: usize| {
            let request = PackRequest {
                source: source.to_owned(),
                id: Some("m3".parse().unwrap()),
                precision: Some(precision),
                ..PackRequest::default()
            };
            let memory = RefCell::new((0, 0));
            let run = |manifest: &Manifest, contents: &PackageContents| {
                let bytes = contents.weights.bytes();
                let tensors = SafeTensors::deserialize(bytes)?;
                let own = tensors.iter().filter(|(name, _)| name.contains("_linear."));
                let own: Vec<_> = own.map(|(_, tensor)| tensor.dtype()).collect();
                assert_eq!(own, vec![Dtype::F32; heads], "{precision:?}");
                let model = load::load(manifest, contents.clone(), OPTIONS)?;
                let weights = model.embedder.compute(&[&[0, 9, 2]], Output::TokenWeights);
                assert_eq!(weights.map_or(0, |weights| weights.len()), 3 * heads / 4);
                let sizes = FileSizes {
                    tokenizer: contents.tokenizer.len() as u64,
                    weights: bytes.len() as u64,
                    dense: 0,
                    stored,
                };
                let spec = load::spec(manifest)?;
                // The estimate for a read tokenizer differs between two calls.
                let estimate = engine::footprint(&spec, &contents.config, None, sizes, OPTIONS)?;
                // Here the file is in memory, where a daemon maps it.
                let file = contents.weights.anonymous_bytes();
                let measured = model.embedder.weight_bytes() - file;
                *memory.borrow_mut() = (estimate.weight_bytes, measured);
                Ok(load::self_test_vector(manifest, &model)?)
            };
            let packed = package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
            assert_eq!(packed.manifest.sparse.is_some(), heads > 0);
            assert_eq!(packed.manifest.multi_vector.is_some(), heads > 0);
            memory.into_inner()
        };
        let (own, other) = (pack(with_heads.path(), 4), pack(&plain, 0));
        // The header of a larger file counts as possible outliers of integers.
        let estimate = own.0 - other.0;
        assert!((head_bytes..head_bytes + 2048).contains(&estimate), "{precision:?}: {estimate}");
        assert_eq!(own.1 - other.1, head_bytes, "{precision:?}: measurement");
    }
}
