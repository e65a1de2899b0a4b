//! Tests of `/v1/embeddings` through the socket of a real daemon: the forms of a request and the
//! properties of its vectors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::support::{Answer, Root, TINY_DIMENSIONS, cosine, refused};

/// Code of a request for vectors of a length that the model was not trained for.
const UNTRAINED: &str = "dimensions_not_trained";

fn length(vector: &[f32]) -> f32 {
    cosine(vector, vector).sqrt()
}

#[test]
fn all_four_forms_of_input_agree() {
    let daemon = Root::new().start();
    let text = "hello world";
    let single = daemon.embed(json!(text));
    assert_eq!(single.len(), 1);
    assert_eq!(single[0].len(), TINY_DIMENSIONS);
    assert!((length(&single[0]) - 1.0).abs() < 1e-5);
    assert_eq!(daemon.embed(json!([text])), single);

    let ids = ids_of(text);
    assert!(ids.len() > 2, "{ids:?}");
    assert_eq!(daemon.embed(json!(ids)), single, "special tokens sent along");
    let bare = &ids[1..ids.len() - 1];
    assert_eq!(daemon.embed(json!(bare)), single, "without special tokens");
    let two = daemon.embed(json!([bare, ids]));
    assert_eq!(two.len(), 2);
    for vector in &two {
        assert!((cosine(vector, &single[0]) - 1.0).abs() < 1e-5);
    }
    daemon.stop();
}

/// Returns the token ids of a text from the reference tokenizer of the tiny model.
fn ids_of(text: &str) -> Vec<u32> {
    let path = crate::support::golden("tiny-bert-mean").join("tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(path).unwrap();
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn float_and_base64_are_the_same_bits() {
    let daemon = Root::new().start();
    let input = json!(["one", "another text", "日本語 and ünïcödé"]);
    let ask = |format: Value| {
        let answer = daemon.embeddings(&json!({ "input": input, "encoding_format": format }));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let (float, base64, unset) = (ask(json!("float")), ask(json!("base64")), ask(Value::Null));
    assert!(float.json()["data"][0]["embedding"].is_array());
    assert!(base64.json()["data"][0]["embedding"].is_string());
    assert!(unset.json()["data"][0]["embedding"].is_array());
    let bits = |answer: &Answer| -> Vec<Vec<u32>> {
        let vectors = answer.vectors();
        vectors.iter().map(|vector| vector.iter().map(|value| value.to_bits()).collect()).collect()
    };
    assert_eq!(bits(&float), bits(&base64));
    assert_eq!(bits(&float), bits(&unset));
    daemon.stop();
}

#[test]
fn shortened_vectors_have_unit_length() {
    let daemon = Root::new().with("embedding.allow_any_dimensions", json!(true)).start();
    let full = daemon.embed(json!("a text")).remove(0);
    for dimensions in [1, 7, 16, 63, TINY_DIMENSIONS] {
        for format in ["float", "base64"] {
            let answer = daemon.embeddings(
                &json!({ "input": "a text", "dimensions": dimensions, "encoding_format": format }),
            );
            let short = answer.vectors().remove(0);
            assert_eq!(short.len(), dimensions);
            assert!((length(&short) - 1.0).abs() < 1e-6, "{dimensions}");
            let scale = length(&full[..dimensions]);
            for (short, full) in short.iter().zip(&full) {
                assert!((short * scale - full).abs() < 1e-6, "{dimensions}");
            }
        }
    }
    daemon.stop();
}

#[test]
fn untrained_dimensions_are_refused() {
    let daemon = Root::with_other().start();
    let ask = |model: &str, name: &str, length: usize| {
        daemon.embeddings(&json!({ "input": "a text", "model": model, name: length }))
    };
    for name in ["dimensions", "output_dimension"] {
        for length in [16, 32, TINY_DIMENSIONS] {
            assert_eq!(ask("other", name, length).vectors()[0].len(), length);
        }
        let known = ["dimensions is 17", "\"other\" was trained for 16, 32, 64 only"];
        refused(&ask("other", name, 17), 400, UNTRAINED, Some("dimensions"), &known);
        let known = ["\"bundled-mini\" was trained for 64 only", "embedding.allow_any_dimensions"];
        refused(&ask("bundled-mini", name, 16), 400, UNTRAINED, Some("dimensions"), &known);
        assert_eq!(ask("bundled-mini", name, TINY_DIMENSIONS).status, 200);
    }
    for (model, trained) in [("bundled-mini", json!([])), ("other", json!([16, 32]))] {
        let listed = daemon.get(&format!("/v1/models/{model}")).json();
        assert_eq!(listed["matryoshka_dimensions"], trained, "{model}");
        assert_eq!(daemon.package(model)["matryoshka_dimensions"], trained, "{model}");
    }
    let both = json!({ "input": "a", "model": "other", "dimensions": 16, "output_dimension": 32 });
    let differ = ["output_dimension is 32, and dimensions is 16"];
    let answer = daemon.embeddings(&both);
    refused(&answer, 400, "invalid_request", Some("output_dimension"), &differ);
    daemon.stop();
}

#[test]
fn published_self_test_matches_computed_vector() {
    let daemon = Root::with_other().start();
    for model in daemon.get("/v1/models").json()["data"].as_array().unwrap() {
        let name = model["id"].as_str().unwrap();
        assert_eq!(daemon.get(&format!("/v1/models/{name}")).json(), *model);
        let test = &model["self_test"];
        let answer = daemon.embeddings(&json!({ "input": test["text"], "model": name }));
        let space = answer.header("x-caxton-embedding-space");
        assert_eq!(space, model["embedding_space"].as_str());
        let declared: Vec<f32> = serde_json::from_value(test["vector"].clone()).unwrap();
        assert_eq!(declared.len(), TINY_DIMENSIONS);
        let computed = answer.vectors().remove(0);
        let lowest = test["min_cosine"].as_f64().unwrap();
        assert!((0.99..1.0).contains(&lowest), "{lowest}");
        let found = f64::from(cosine(&computed, &declared) / length(&declared));
        assert!(found >= lowest, "{name}: {found}");
    }
    daemon.stop();
}

#[test]
fn prompt_is_prepended_to_text() {
    let daemon = Root::with_other().start();
    let ask = |body: Value| {
        let answer = daemon.embeddings(&body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.vectors().remove(0)
    };
    let named = ask(json!({ "input": "pumps", "model": "other", "prompt_name": "query" }));
    let written = ask(json!({ "input": "query: pumps", "model": "other" }));
    let without = ask(json!({ "input": "pumps", "model": "other" }));
    assert_eq!(named, written);
    assert!(cosine(&named, &without) < 0.9999);
    daemon.stop();
}

#[test]
fn answer_names_model_and_embedding_space() {
    let daemon = Root::with_other().start();
    let long = "word ".repeat(500);
    let answer = daemon.embeddings(&json!({ "input": ["a", long], "user": "someone" }));
    let body = answer.json();
    assert_eq!(body["object"], "list");
    assert_eq!(body["model"], "bundled-mini");
    assert_eq!(body["data"][1]["object"], "embedding");
    // The short text has its tokens and two special ones; the long text is cut to the 48 tokens
    // that the model reads.
    let short = ids_of("a").len();
    assert_eq!(body["usage"], json!({ "prompt_tokens": short + 48, "total_tokens": short + 48 }));
    let package = daemon.package("bundled-mini");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    assert_eq!(answer.header("x-caxton-revision"), package["revision"].as_str());
    assert_eq!(answer.header("x-caxton-embedding-space"), package["embedding_space"].as_str());
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"));
    let other = daemon.embeddings(&json!({ "input": "a", "model": "other@2" }));
    assert_eq!(other.header("x-caxton-model"), Some("other@2"));
    assert_eq!(other.json()["model"], "other");
    let (other, mini) =
        (other.header("x-caxton-embedding-space"), answer.header("x-caxton-embedding-space"));
    assert!(other.is_some() && other != mini, "{other:?} {mini:?}");
    daemon.stop();
}

#[test]
fn vector_is_independent_of_batch() {
    let daemon = Root::new().start();
    let texts: Vec<String> =
        (0..64).map(|index| format!("text {index} {}", "more words ".repeat(index % 17))).collect();
    let batch = daemon.embed(json!(texts));
    let worst = texts
        .iter()
        .zip(&batch)
        .flat_map(|(text, together)| {
            let alone = daemon.embed(json!(text)).remove(0);
            Vec::from_iter(alone.iter().zip(together).map(|(a, b)| (a - b).abs()))
        })
        .fold(0.0, f32::max);
    assert!(worst <= 1e-6, "{worst:e}");
    daemon.stop();
}

#[test]
fn maximum_inputs_are_answered_in_order() {
    let daemon = Root::new().start();
    let texts: Vec<String> = (0..2048).map(|index| format!("text {}", index % 5)).collect();
    let vectors = daemon.embed(json!(texts));
    assert_eq!(vectors.len(), 2048);
    for (index, vector) in vectors.iter().enumerate() {
        assert!(cosine(vector, &vectors[index % 5]) > 0.999_99, "{index}");
    }
    assert!(cosine(&vectors[0], &vectors[1]) < 0.999_99);
    daemon.stop();
}
