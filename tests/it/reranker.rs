//! Tests of rerankers: their scores compared with those of sentence-transformers, packages, and
//! the routes through the socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::process::Stdio;

use caxton::engine::{
    self, Architecture, EngineError, EngineOptions, LoadedModel, ModelFiles, ModelSpec, Output,
    Pooling, Precision,
};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::{Daemon, Root, golden, pack, pack_with};

/// Largest difference of a raw score in f32, for scores up to 1; relative above.
const MAX_DIFFERENCE: f32 = 2e-5;
/// Distance between the texts of a pair in the file of texts.
const DISTANCE: usize = 7;
/// Bit of a token id that holds its token type.
const TYPE: u32 = 1 << 31;
const OPTIONS: EngineOptions =
    EngineOptions { threads: 2, batch_tokens: 256, precision: Precision::F32 };

struct Case {
    name: &'static str,
    architecture: Architecture,
    max_sequence_length: usize,
    pooling: Pooling,
}

const BERT: Case = Case {
    name: "tiny-bert-cross-encoder",
    architecture: Architecture::Bert,
    max_sequence_length: 64,
    pooling: Pooling::Cls,
};

const XLM_ROBERTA: Case =
    Case { name: "tiny-xlm-roberta-cross-encoder", architecture: Architecture::XlmRoberta, ..BERT };

const CASES: [Case; 5] = [
    BERT,
    XLM_ROBERTA,
    Case {
        name: "tiny-modernbert-cross-encoder",
        architecture: Architecture::ModernBert,
        max_sequence_length: 96,
        pooling: Pooling::Mean,
    },
    Case {
        name: "tiny-modernbert-cross-encoder-cls",
        architecture: Architecture::ModernBert,
        max_sequence_length: 96,
        pooling: Pooling::Cls,
    },
    Case {
        name: "tiny-deberta-v2-cross-encoder",
        architecture: Architecture::DebertaV2,
        max_sequence_length: 80,
        pooling: Pooling::Cls,
    },
];

/// Raw scores of [`BERT`] if the second text of each pair has token type 1. The tokenizer of the
/// reference gives no token types, so these come from the formulas of the model in f64, which also
/// give the reference within 4e-7.
const WITH_TOKEN_TYPES: [f32; 30] = [
    0.600_037, 0.377_499, 0.428_862, 0.488_823, 0.618_209, 0.503_810, 0.501_754, 0.750_437,
    0.738_787, 0.625_721, 0.639_615, 0.649_034, 0.230_549, 0.761_160, 0.348_983, 0.612_265,
    0.536_108, 0.593_013, 0.418_704, 0.608_209, 0.590_998, 0.305_951, 0.337_623, 0.428_010,
    0.269_045, 0.449_903, 0.612_770, 0.567_861, 0.083_236, 0.713_424,
];

fn load(case: &Case) -> LoadedModel {
    load_with(case, false)
}

/// Loads a model whose pairs have token types or not.
fn load_with(case: &Case, token_types: bool) -> LoadedModel {
    let read = |file: &str| fs::read(golden(case.name).join(file)).unwrap();
    let spec = ModelSpec {
        architecture: case.architecture,
        dimensions: 64,
        max_sequence_length: case.max_sequence_length,
        pooling: case.pooling,
        dense: Vec::new(),
        normalize: false,
        labels: Some(1),
        token_types,
        token_heads: engine::TokenHeads::default(),
    };
    let files: ModelFiles = ModelFiles {
        config: read("config.json"),
        tokenizer: read("tokenizer.json"),
        weights: Box::new(read("model.safetensors")),
        dense: Vec::new(),
    };
    engine::load(&spec, files, OPTIONS).unwrap()
}

fn texts() -> Vec<String> {
    let lines = fs::read_to_string(golden("texts.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the pairs of the reference.
fn pairs() -> Vec<(String, String)> {
    let texts = texts();
    let other = |index: usize| texts[(index + DISTANCE) % texts.len()].clone();
    texts.iter().enumerate().map(|(index, text)| (text.clone(), other(index))).collect()
}

fn reference(case: &Case, tensor: &str) -> Vec<f32> {
    let bytes = fs::read(golden(case.name).join("reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (words, _) = tensors.tensor(tensor).unwrap().data().as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn reference_ids(case: &Case) -> Vec<Vec<u32>> {
    let ids = fs::read(golden(case.name).join("reference_ids.json")).unwrap();
    serde_json::from_slice(&ids).unwrap()
}

/// Returns the raw scores of the pairs of the reference.
fn logits(model: &LoadedModel) -> Result<Vec<f32>, EngineError> {
    let tokens: Vec<_> = pairs()
        .iter()
        .map(|(first, second)| Ok(model.tokenizer.encode_pair(first, second)?.ids))
        .collect::<Result<_, EngineError>>()?;
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    model.embedder.compute(&tokens, Output::Logits)
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

#[test]
fn scores_equal_those_of_sentence_transformers() {
    let mut failures = Vec::new();
    for case in &CASES {
        let model = load(case);
        for (index, ((first, second), expected)) in
            pairs().iter().zip(reference_ids(case)).enumerate()
        {
            let found = model.tokenizer.encode_pair(first, second).unwrap().ids;
            let found: Vec<u32> = found.into_iter().map(|id| id & !TYPE).collect();
            if found != expected {
                failures.push(format!("{} pair {index}: {found:?} not {expected:?}", case.name));
            }
        }
        let (found, expected) = (logits(&model).unwrap(), reference(case, "logits"));
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (found - expected).abs() / expected.abs().max(1.0);
            // NaN fails, too.
            if difference.is_nan() || difference > MAX_DIFFERENCE {
                failures.push(format!("{} pair {index}: {found} not {expected}", case.name));
            }
        }
        for (logit, score) in expected.iter().zip(reference(case, "scores")) {
            assert!((sigmoid(*logit) - score).abs() < 1e-6, "{}", case.name);
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn second_text_has_its_token_type() {
    let found = logits(&load_with(&BERT, true)).unwrap();
    for (index, (found, expected)) in found.iter().zip(WITH_TOKEN_TYPES).enumerate() {
        assert!((found - expected).abs() <= MAX_DIFFERENCE, "pair {index}: {found} not {expected}");
    }
}

#[test]
fn score_does_not_depend_on_other_pairs() {
    for case in &CASES {
        let model = load(case);
        let together = logits(&model).unwrap();
        for (index, (first, second)) in pairs().iter().enumerate() {
            let pair = model.tokenizer.encode_pair(first, second).unwrap();
            let alone = model.embedder.compute(&[&pair.ids], Output::Logits).unwrap();
            assert_eq!(alone, [together[index]], "{} pair {index}", case.name);
        }
    }
}

#[test]
fn token_types_belong_to_models_that_have_them() {
    let embed = |model: &LoadedModel, ids: &[u32]| model.embedder.embed(&[ids]);
    let bert = load(&BERT);
    let (first, second) = ([2, 5, 3], [2, 5 | TYPE, 3]);
    assert!(embed(&bert, &first).unwrap() != embed(&bert, &second).unwrap());
    let error = embed(&bert, &[2, 1200 | TYPE, 3]).unwrap_err();
    assert!(matches!(error, EngineError::TokenOutOfRange { id: 1200, .. }), "{error}");
    let error = embed(&load(&XLM_ROBERTA), &second).unwrap_err();
    assert!(matches!(error, EngineError::TokenOutOfRange { .. }), "{error}");
    // A client cannot give a token a type.
    let own = bert.tokenizer.encode_ids(&[5 | TYPE], engine::Truncation::Right).unwrap_err();
    assert!(matches!(own, EngineError::TokenOutOfRange { .. }), "{own}");
}

/// Largest difference of a score, for each stored precision. The random weights of the tiny models
/// make attention sharp, which enlarges the errors of int8.
const PACKED: [(package::Precision, f32); 3] = [
    (package::Precision::F32, 1e-5),
    (package::Precision::F16, 0.01),
    (package::Precision::Int8, 0.15),
];

#[test]
fn packing_in_any_precision_keeps_scores() {
    for case in &CASES {
        let expected = reference(case, "scores");
        for (stored, bound) in PACKED {
            let request = PackRequest {
                source: golden(case.name),
                precision: Some(stored),
                ..PackRequest::default()
            };
            let found = RefCell::new(Vec::new());
            let run = |manifest: &Manifest, contents: &PackageContents| {
                let model = load::load(manifest, contents.clone(), OPTIONS)?;
                *found.borrow_mut() = logits(&model)?;
                Ok(load::self_test_vector(manifest, &model)?)
            };
            let packed = package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
            assert!(packed.manifest.is_reranker() && !packed.manifest.normalize);
            for (index, (logit, score)) in found.into_inner().iter().zip(&expected).enumerate() {
                let difference = (sigmoid(*logit) - score).abs();
                assert!(difference <= bound, "{} {stored:?} {index}: {difference}", case.name);
            }
        }
    }
}

/// Returns the root of a daemon that has a reranker beside its bundled model, and computes in f32.
pub(crate) fn root_with_reranker() -> Root {
    let root = Root::new()
        .with("memory.preload_models", json!([]))
        .with("embedding.precision", json!("f32"));
    let package = pack(BERT.name, "reranker", "1");
    fs::write(root.bundled().join("reranker-1.model.tar.zst"), package).unwrap();
    root
}

fn ask(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let answer = daemon.post(path, body);
    assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
    answer.json()
}

/// Returns the index of the first pair of the reference whose texts clients may send.
fn usable_pair() -> usize {
    pairs().iter().position(|(first, second)| first.len() > 3 && second.len() > 3).unwrap()
}

#[test]
fn every_dialect_ranks_by_the_reranker() {
    let daemon = root_with_reranker().start();
    let at = usable_pair();
    let (query, document) = pairs()[at].clone();
    let (logit, score) = (reference(&BERT, "logits")[at], reference(&BERT, "scores")[at]);
    let close =
        |value: &Value, expected: f32| (value.as_f64().unwrap() - f64::from(expected)).abs() < 1e-4;
    let tokens = reference_ids(&BERT)[at].len();
    let tei = |raw: bool| {
        let body = json!({
            "model": "reranker", "query": query, "texts": [document], "raw_scores": raw,
        });
        ask(&daemon, "/rerank", &body)[0]["score"].clone()
    };
    assert!(close(&tei(false), score) && close(&tei(true), logit), "{} {score}", tei(false));
    let body = json!({ "model": "reranker", "query": query, "documents": [document, "b"] });
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let answer = ask(&daemon, path, &body);
        let results = answer["results"].as_array().unwrap();
        let own = results.iter().find(|result| result["index"] == 0).unwrap();
        assert!(close(&own["relevance_score"], score), "{path}: {answer}");
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > tokens as u64, "{answer}");
        assert_eq!(answer["model"], "reranker");
    }
    let answer = daemon.post("/v1/rank", &body);
    assert_eq!(answer.header("x-caxton-mode"), Some("cross-encoder"), "{answer:?}");
    assert_eq!(answer.header("x-caxton-model"), Some("reranker@1"), "{answer:?}");
    assert_eq!(answer.header("x-caxton-embedding-space"), None, "{answer:?}");
    let ranked = answer.json();
    assert_eq!((&ranked["mode"], &ranked["model"]), (&json!("cross-encoder"), &json!("reranker")));
    let scores: Vec<f64> = ranked["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{ranked}");
    let hybrid = json!({
        "model": "reranker", "query": query, "documents": [document, "b"], "mode": "hybrid",
    });
    assert_eq!(ask(&daemon, "/v1/rank", &hybrid)["mode"], "hybrid");
    // Without a name, the default model compares vectors as before.
    let unnamed = daemon.post("/v1/rank", &json!({ "query": query, "documents": [document] }));
    assert_eq!(unnamed.header("x-caxton-mode"), Some("semantic"), "{unnamed:?}");
    daemon.stop();
}

#[test]
fn reranker_computes_no_vectors() {
    let daemon = root_with_reranker().start();
    let refused = daemon.embeddings(&json!({ "input": "a text", "model": "reranker" }));
    assert_eq!(refused.status, 400, "{refused:?}");
    let error = refused.error();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("not_an_embedding_model"), &json!("model"))
    );
    for (path, body) in [
        ("/embed", json!({ "inputs": "a text", "model": "reranker" })),
        ("/api/embed", json!({ "input": "a text", "model": "reranker" })),
        ("/v2/embed", json!({ "texts": ["a text"], "model": "reranker" })),
        (
            "/similarity",
            json!({ "model": "reranker", "inputs": { "source_sentence": "a", "sentences": ["b"] } }),
        ),
    ] {
        let refused = daemon.post(path, &body);
        assert!((400..500).contains(&refused.status), "{path}: {refused:?}");
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(text.contains("is a reranker"), "{path}: {text}");
    }
    let models = daemon.get("/v1/models").json();
    let model = |id: &str| {
        let models = models["data"].as_array().unwrap();
        models.iter().find(|model| model["id"] == id).unwrap().clone()
    };
    assert_eq!(model("reranker")["task"], "rerank");
    assert_eq!(model("bundled-mini")["task"], "embedding");
    assert_eq!(model("bundled-mini")["compatible_dimensions"], json!([]));
    assert_eq!(daemon.package("reranker")["task"], "rerank");
    let recommended = daemon.get("/api/models/recommendations?task_type=rerank").json();
    let first = &recommended["recommendations"][0];
    assert_eq!((&first["id"], &first["suitability"]), (&json!("reranker"), &json!("made_for_it")));
    daemon.stop();
}

#[test]
fn packages_of_rerankers_are_verified() {
    let daemon = root_with_reranker().start();
    let directory = tempfile::tempdir().unwrap();
    let verify = |what: &OsStr| -> Value {
        let output = daemon.cli().args(["model", "verify", "--json"]).arg(what).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let file = directory.path().join("package.model.tar.zst");
    for case in &CASES {
        fs::write(&file, pack_with(case.name, "package", "1", &["--precision", "int8"])).unwrap();
        let report = verify(file.as_os_str());
        for fact in ["valid", "can_load"] {
            assert_eq!(report[fact], true, "{fact}: {report}");
        }
        assert!(report["self_test_cosine"].is_number(), "{report}");
    }
    let report = verify(OsStr::new("reranker"));
    assert_eq!((&report["valid"], &report["id"]), (&json!(true), &json!("reranker")), "{report}");
    daemon.stop();
}

#[test]
fn default_reranker_is_described_to_clients_of_tei() {
    let daemon = root_with_reranker().with("memory.embedding_model", json!("reranker")).start();
    let info = daemon.get("/info").json();
    let expected = json!({
        "reranker": { "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 } },
    });
    assert_eq!(info["model_type"], expected, "{info}");
    let answer = daemon.post("/rerank", &json!({ "query": "a", "texts": ["b"] }));
    assert_eq!(answer.header("x-caxton-mode"), Some("cross-encoder"), "{answer:?}");
    daemon.stop();
}

#[test]
fn long_pairs_are_truncated_or_refused() {
    let daemon = root_with_reranker().start();
    let long = "The pump runs hot. ".repeat(2_000);
    let body = |truncate: bool| {
        json!({
            "model": "reranker", "query": "Is the pump hot?", "documents": ["No.", long],
            "truncate": truncate,
        })
    };
    let answer = daemon.post("/v1/rerank", &body(true));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"), "{answer:?}");
    let used: usize = answer.header("x-compute-tokens").unwrap().parse().unwrap();
    assert!(used > BERT.max_sequence_length && used < 2 * BERT.max_sequence_length, "{used}");
    let refused = daemon.post("/v1/rerank", &body(false));
    assert_eq!(refused.status, 400, "{refused:?}");
    let error = refused.json()["error"].clone();
    assert_eq!(error["code"], "context_length_exceeded", "{error}");
    assert_eq!(error["param"], "documents[1]", "{error}");
    // A query that fills the model leaves half of it to the document.
    let answer = daemon
        .post("/rerank", &json!({ "model": "reranker", "query": long, "texts": [long, "b"] }));
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("2"), "{answer:?}");
    daemon.stop();
}

#[test]
fn command_line_ranks_lines_by_the_reranker() {
    let daemon = root_with_reranker().start();
    let mut command = daemon.cli();
    command.args(["rank", "--model", "reranker", "a query"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"first line\nsecond line\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.is_empty(), "{out}{err}");
    assert_eq!(out.lines().count(), 2, "{out}");
    let list = daemon.cli().args(["model", "list"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let row = list.lines().find(|line| line.starts_with("reranker")).unwrap();
    assert!(row.contains(" rerank "), "{list}");
    daemon.stop();
}
