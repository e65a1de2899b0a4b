//! Tests of the types in which `/v1/embeddings` returns vectors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::packages::file_name;
use crate::support::{Answer, Daemon, Root, TINY_DIMENSIONS, pack, refused};

const SPACE: &str = "x-caxton-embedding-space";
const SCALE: &str = "x-caxton-vector-scale";

/// Returns the answer to `text` in the type `output_dtype`, with further fields.
fn ask(daemon: &Daemon, output_dtype: &str, fields: &Value) -> Answer {
    let mut body = json!({ "input": "The pump runs hot.", "output_dtype": output_dtype });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    let answer = daemon.embeddings(&body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn numbers(answer: &Answer) -> Vec<i64> {
    serde_json::from_value(answer.json()["data"][0]["embedding"].clone()).unwrap()
}

/// Returns the bytes that the documentation defines for a vector.
fn expected(output_dtype: &str, vector: &[f32]) -> Vec<i64> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers of at most 127")]
    let scaled = vector.iter().map(|value| (f64::from(*value) / length * 127.0).round() as i64);
    let bytes = vector
        .chunks(8)
        .map(|part| part.iter().fold(0, |byte, value| (byte << 1) | i64::from(*value > 0.0)));
    match output_dtype {
        "int8" => scaled.collect(),
        "uint8" => scaled.map(|value| value + 128).collect(),
        "ubinary" => bytes.collect(),
        "binary" => bytes.map(|byte| byte - 128).collect(),
        other => unreachable!("{other}"),
    }
}

#[test]
fn types_quantise_the_float_vector() {
    let root = Root::with_other();
    // The vectors of this model are not normalised.
    fs::write(root.bundled().join(file_name("raw")), pack("tiny-distilbert", "raw", "1")).unwrap();
    let daemon = root.start();
    for fields in [
        json!({}),
        json!({ "model": "raw" }),
        json!({ "model": "other", "dimensions": 32 }),
        json!({ "model": "other", "output_dimension": 16 }),
    ] {
        let float = ask(&daemon, "float", &fields);
        let vector = float.vectors().remove(0);
        assert_eq!((float.header(SCALE), &float.json()["vector_form"]), (None, &Value::Null));
        for (name, scale, offset, bit_order) in [
            ("int8", Some("127"), 0, Value::Null),
            ("uint8", Some("127"), 128, Value::Null),
            ("binary", None, -128, json!("msb_first")),
            ("ubinary", None, 0, json!("msb_first")),
        ] {
            let answer = ask(&daemon, name, &fields);
            assert_eq!(numbers(&answer), expected(name, &vector), "{name} {fields}");
            let space = format!("{};{name}", float.header(SPACE).unwrap());
            assert_eq!(answer.header(SPACE), Some(space.as_str()));
            assert_eq!(answer.header(SCALE), scale, "{name}");
            let form = &answer.json()["vector_form"];
            assert_eq!(form["output_dtype"], name);
            assert_eq!(form["scale"].as_f64(), scale.map(|scale| scale.parse().unwrap()));
            assert_eq!((&form["offset"], &form["bit_order"]), (&json!(offset), &bit_order));
        }
    }
    daemon.stop();
}

#[test]
fn base64_has_the_same_bytes() {
    let daemon = Root::new().start();
    for name in ["int8", "uint8", "binary", "ubinary"] {
        let numbers = numbers(&ask(&daemon, name, &json!({})));
        let answer = ask(&daemon, name, &json!({ "encoding_format": "base64" }));
        let text = answer.json()["data"][0]["embedding"].clone();
        let bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
        let is_signed = ["int8", "binary"].contains(&name);
        let found = bytes.into_iter().map(|byte| match is_signed {
            true => i64::from(byte.cast_signed()),
            false => i64::from(byte),
        });
        assert_eq!(Vec::from_iter(found), numbers, "{name}");
    }
    daemon.stop();
}

#[test]
fn additional_models_have_the_same_type() {
    let daemon = Root::with_other().start();
    let answer = ask(&daemon, "ubinary", &json!({ "additional_models": ["other"] })).json();
    let other = ask(&daemon, "ubinary", &json!({ "model": "other" }));
    let additional = &answer["additional"][0];
    assert_eq!(additional["data"][0]["embedding"], other.json()["data"][0]["embedding"]);
    assert_eq!(additional["embedding_space"].as_str(), other.header(SPACE));
    assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), TINY_DIMENSIONS / 8);
    daemon.stop();
}

#[test]
fn bits_that_fill_no_byte_are_refused() {
    let daemon = Root::new().with("embedding.allow_any_dimensions", json!(true)).start();
    for name in ["binary", "ubinary"] {
        let body = json!({ "input": "a", "output_dtype": name, "dimensions": 12 });
        let messages = [name, "the vectors have 12", "multiple of 8"];
        let answer = daemon.embeddings(&body);
        refused(&answer, 400, "invalid_request", Some("output_dtype"), &messages);
    }
    assert_eq!(numbers(&ask(&daemon, "int8", &json!({ "dimensions": 12 }))).len(), 12);
    daemon.stop();
}
