//! Replays recorded pairs of requests and answers, `tests/contract/<dialect>/<name>.json`, so that
//! a change that would break clients of a dialect is noticed.
//!
//! A file is `{"request": REQUEST, "answer": ANSWER}`. The fields of REQUEST are `method`, `path`,
//! `headers` and `body`; those of ANSWER are `status`, `headers` and `body`. Headers and bodies are
//! optional. A body that is a string is sent as it is, so it need not be JSON. In a request, the
//! object `{"<repeat>": [VALUE, TIMES]}` means a list of so many equal values. The files of a
//! dialect are sent to one daemon, in the order of their names.
//!
//! Everything in an answer is compared, except headers that the file does not name (`null`: the
//! header must be absent) and these values:
//!
//! | written | matches |
//! | --- | --- |
//! | `"<vector>"` | the next text's vector in `/v1/embeddings`, as numbers or base64 |
//! | `"<numbers N>"` | a list of N finite numbers |
//! | `"<any>"` | anything but `null` |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::{Daemon, Root};

/// Largest difference of one value of a unit vector between two routes, which compute the same text
/// in different passes.
const MAX_DIFFERENCE: f64 = 1e-6;
/// Configured limit of a body. It is low so that a body that is too large is still small.
const MAX_BODY: &str = "16KiB";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    request: Request,
    answer: Recorded,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    #[serde(default)]
    body: Value,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract")
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|child| child.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn every_recorded_request_is_answered_as_recorded() {
    let dialects = children(&directory());
    assert!(dialects.len() >= 2, "{dialects:?}");
    let mut wrong = Vec::new();
    for dialect in dialects {
        let daemon = Root::with_other()
            // Answers name the precision, which would otherwise depend on the processor.
            .with("embedding.precision", json!("f32"))
            .with("memory.preload_models", json!(["bundled-mini"]))
            .with("socket.max_body", json!(MAX_BODY))
            .start();
        let files = children(&dialect);
        assert!(!files.is_empty(), "{}", dialect.display());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let pair: Pair = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let found = differences(&daemon, &pair);
            let name = file.strip_prefix(directory()).unwrap().display().to_string();
            wrong.extend(found.into_iter().map(|found| format!("{name}: {found}")));
        }
        daemon.stop();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns all differences between the answer and the recorded one.
fn differences(daemon: &Daemon, pair: &Pair) -> Vec<String> {
    let Request { method, path, headers, body } = &pair.request;
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let body = repeated(body);
    let sent = match &body {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        body => body.to_string(),
    };
    let answer = daemon.connect().request(method, path, &headers, sent.as_bytes());
    let mut wrong = Vec::new();
    let Recorded { status, headers, body: recorded } = &pair.answer;
    if answer.status != *status {
        wrong.push(format!("status {}, recorded {status}", answer.status));
    }
    for (name, recorded) in headers {
        let found = answer.header(&name.to_ascii_lowercase());
        let same = match (found, recorded.as_deref()) {
            (Some(_), Some("<any>")) => true,
            (found, recorded) => found == recorded,
        };
        if !same {
            wrong.push(format!("header {name}: {found:?}, recorded {recorded:?}"));
        }
    }
    let text = String::from_utf8_lossy(&answer.body);
    let found = match text.as_ref() {
        "" => Value::Null,
        // A body that is not JSON was recorded as a string.
        text => serde_json::from_str(text).unwrap_or_else(|_no_json| json!(text)),
    };
    let mut vectors = if recorded.to_string().contains("\"<vector>\"") {
        vectors(daemon, &body)
    } else {
        Vec::new()
    };
    vectors.reverse();
    compare(&found, recorded, "", &mut vectors, &mut wrong);
    if !vectors.is_empty() {
        wrong.push(format!("{} texts have no vector in the answer: {found}", vectors.len()));
    }
    wrong
}

/// Replaces every `{"<repeat>": [VALUE, TIMES]}` in `value` by the list that it means.
fn repeated(value: &Value) -> Value {
    match value {
        Value::Object(fields) => match fields.get("<repeat>") {
            Some(Value::Array(what)) => {
                let times = what[1].as_u64().unwrap();
                (0..times).map(|_| what[0].clone()).collect()
            }
            _ => Value::Object(
                fields.iter().map(|(name, value)| (name.clone(), repeated(value))).collect(),
            ),
        },
        Value::Array(items) => items.iter().map(repeated).collect(),
        other => other.clone(),
    }
}

/// Returns the vectors of `/v1/embeddings` for the texts in `body`, in any dialect.
fn vectors(daemon: &Daemon, body: &Value) -> Vec<Vec<f32>> {
    let mut request = Map::new();
    for (name, as_openai) in [
        ("input", "input"),
        ("inputs", "input"),
        ("texts", "input"),
        ("prompt", "input"),
        ("dimensions", "dimensions"),
        ("output_dimension", "dimensions"),
        ("prompt_name", "prompt_name"),
    ] {
        if let Some(value) = body.get(name) {
            request.insert(as_openai.to_owned(), value.clone());
        }
    }
    // A model name of Ollama may have a tag.
    if let Some(model) = body["model"].as_str() {
        let model = model.strip_suffix(":latest").unwrap_or(model);
        request.insert("model".to_owned(), json!(model));
    }
    let answer = daemon.embeddings(&Value::Object(request));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.vectors()
}

/// Compares `found` at `path` with the recorded value, and pops the expected vectors from
/// `vectors`.
fn compare(
    found: &Value,
    recorded: &Value,
    path: &str,
    vectors: &mut Vec<Vec<f32>>,
    wrong: &mut Vec<String>,
) {
    let mut differs = |why: String| wrong.push(format!("{path}: {why}"));
    match (found, recorded) {
        (_, Value::String(mark)) if mark == "<any>" => {
            if found.is_null() {
                differs("null".to_owned());
            }
        }
        (_, Value::String(mark)) if mark == "<vector>" => {
            let Some(expected) = vectors.pop() else {
                return differs("a vector more than there are texts".to_owned());
            };
            if !is_vector(found, &expected) {
                differs(format!("{found} is not the vector of /v1/embeddings: {expected:?}"));
            }
        }
        (_, Value::String(mark)) if mark.starts_with("<numbers ") => {
            let count: usize = mark["<numbers ".len()..mark.len() - 1].parse().unwrap();
            let numbers = numbers(found);
            if numbers.as_ref().map(Vec::len) != Some(count) {
                differs(format!("{found} is no list of {count} numbers"));
            }
        }
        (Value::Object(found), Value::Object(recorded)) => {
            for name in
                found.keys().chain(recorded.keys().filter(|name| !found.contains_key(*name)))
            {
                let path = format!("{path}.{name}");
                match (found.get(name), recorded.get(name)) {
                    (Some(found), Some(recorded)) => {
                        compare(found, recorded, &path, vectors, wrong);
                    }
                    (found, recorded) => {
                        wrong.push(format!("{path}: {found:?}, recorded {recorded:?}"));
                    }
                }
            }
        }
        (Value::Array(found), Value::Array(recorded)) if found.len() == recorded.len() => {
            for (index, (found, recorded)) in found.iter().zip(recorded).enumerate() {
                compare(found, recorded, &format!("{path}[{index}]"), vectors, wrong);
            }
        }
        _ if found == recorded => {}
        _ => differs(format!("{found}, recorded {recorded}")),
    }
}

/// Returns the numbers of a list; `None` unless all are finite numbers.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    let numbers = value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?;
    numbers.iter().all(|number| number.is_finite()).then_some(numbers)
}

fn is_vector(found: &Value, expected: &[f32]) -> bool {
    let found = match found.as_str() {
        Some(text) => STANDARD.decode(text).ok().map(|bytes| {
            let words = bytes.as_chunks::<4>().0;
            words.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect()
        }),
        None => numbers(found),
    };
    found.is_some_and(|found| {
        found.len() == expected.len()
            && found
                .iter()
                .zip(expected)
                .all(|(found, expected)| (found - f64::from(*expected)).abs() <= MAX_DIFFERENCE)
    })
}

#[test]
fn each_kind_of_difference_is_detected() {
    let wrong = |found: Value, recorded: Value| {
        let mut wrong = Vec::new();
        let mut vectors = vec![vec![0.5, 0.25]];
        compare(&found, &recorded, "", &mut vectors, &mut wrong);
        wrong.len()
    };
    for (found, recorded) in [
        (json!(1), json!(2)),
        (json!({ "a": 1 }), json!({})),
        (json!({}), json!({ "a": 1 })),
        (json!([1]), json!([1, 2])),
        (json!([[1]]), json!([["<numbers 1>"]])),
        (json!([1, "2"]), json!("<numbers 2>")),
        (json!(null), json!("<any>")),
        (json!([0.5, 0.5]), json!("<vector>")),
        (json!([0.5]), json!("<vector>")),
        (json!("AAAAPwAAAD8="), json!("<vector>")),
        (json!([[0.5, 0.25], [0.5, 0.25]]), json!(["<vector>", "<vector>"])),
    ] {
        assert_eq!(wrong(found.clone(), recorded.clone()), 1, "{found} {recorded}");
    }
    for (found, recorded) in [
        (json!({ "a": [1, null] }), json!({ "a": ["<any>", null] })),
        (json!([1, 2.5]), json!("<numbers 2>")),
        (json!([0.5, 0.25]), json!("<vector>")),
        (json!("AAAAPwAAgD4="), json!("<vector>")),
    ] {
        assert_eq!(wrong(found.clone(), recorded.clone()), 0, "{found} {recorded}");
    }
    assert_eq!(repeated(&json!({ "a": { "<repeat>": ["b", 2] } })), json!({ "a": ["b", "b"] }));
}
