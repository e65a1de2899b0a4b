//! Tests of the table of errors: the answer to each on OpenAI's routes and on those of
//! text-embeddings-inference. Status and shape differ, but the message is the same.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::packages::{entry, file_name, flip_a_bit_of};
use crate::support::{Answer, Daemon, EMBEDDINGS, Root, pack};

/// Largest number of tokens that the tiny models read.
const MOST_TOKENS: usize = 48;

/// Status, and OpenAI's `code` or TEI's `error_type`.
type Failure = (u16, &'static str);

/// One case: the request's fields besides its texts, for both routes, and the expected errors.
struct Row {
    case: &'static str,
    texts: Value,
    fields: Value,
    openai: Failure,
    tei: Failure,
    /// Part of the message on both routes.
    message: &'static str,
}

fn body(texts_field: &str, row: &Row) -> Value {
    let mut body = row.fields.clone();
    body[texts_field] = row.texts.clone();
    body
}

/// Checks that an error has TEI's shape, flat, complete and JSON, and returns its message.
fn flat(answer: &Answer, (status, error_type): Failure, case: &str) -> String {
    let error = answer.json();
    assert_eq!(
        (answer.status, &error["error_type"]),
        (status, &json!(error_type)),
        "{case}: {error}"
    );
    assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
    assert_eq!(error.as_object().unwrap().len(), 2, "{case}: {error}");
    error["error"].as_str().unwrap_or_else(|| panic!("{case}: {error}")).to_owned()
}

fn nested(answer: &Answer, (status, code): Failure, case: &str) -> String {
    let error = answer.error();
    assert_eq!((answer.status, &error["code"]), (status, &json!(code)), "{case}: {error}");
    error["message"].as_str().unwrap().to_owned()
}

/// Sends the request of `row` to both routes and checks the errors.
fn assert_row(daemon: &Daemon, row: &Row) {
    let openai = daemon.post(EMBEDDINGS, &body("input", row));
    let tei = daemon.post("/embed", &body("inputs", row));
    for said in [nested(&openai, row.openai, row.case), flat(&tei, row.tei, row.case)] {
        assert!(said.contains(row.message), "{}: {said}", row.case);
    }
    for header in ["retry-after", "retry-after-ms", "x-should-retry"] {
        assert_eq!(openai.header(header), tei.header(header), "{}: {header}", row.case);
    }
}

/// Returns the cases of requests that are invalid in themselves.
fn invalid_requests() -> [Row; 10] {
    let none = || json!({});
    [
        Row {
            case: "too long input",
            texts: json!("word ".repeat(2 * MOST_TOKENS)),
            fields: json!({ "truncate": false }),
            openai: (400, "context_length_exceeded"),
            tei: (422, "Validation"),
            message: "the model takes 48",
        },
        Row {
            case: "batch too large",
            texts: Value::from(vec!["a"; 2049]),
            fields: none(),
            openai: (413, "too_many_inputs"),
            tei: (422, "Validation"),
            message: "more than the 2048 inputs",
        },
        Row {
            case: "body too large",
            texts: Value::from("a".repeat(17 << 10)),
            fields: none(),
            openai: (413, "body_too_large"),
            tei: (413, "Validation"),
            message: "16.0 KiB of socket.max_body",
        },
        Row {
            case: "wrong type",
            texts: json!(5),
            fields: none(),
            openai: (400, "invalid_request"),
            tei: (422, "Validation"),
            message: "expected a string, a list",
        },
        Row {
            case: "unknown model",
            texts: json!("a"),
            fields: json!({ "model": "nope" }),
            openai: (404, "model_not_found"),
            tei: (404, "Validation"),
            message: "\"nope\"",
        },
        Row {
            case: "unknown prompt",
            texts: json!("a"),
            fields: json!({ "prompt_name": "nope", "model": "other" }),
            openai: (400, "invalid_request"),
            tei: (422, "Validation"),
            message: "no prompt \"nope\"",
        },
        Row {
            case: "untrained dimensions",
            texts: json!("a"),
            fields: json!({ "dimensions": 17 }),
            openai: (400, "dimensions_not_trained"),
            tei: (422, "Validation"),
            message: "was trained for 64 only",
        },
        Row {
            case: "empty input",
            texts: json!([]),
            fields: none(),
            openai: (400, "invalid_request"),
            tei: (400, "Empty"),
            message: "empty",
        },
        Row {
            case: "empty text",
            texts: json!(["a", ""]),
            fields: none(),
            openai: (400, "invalid_request"),
            tei: (400, "Empty"),
            message: "empty",
        },
        Row {
            case: "token id of another vocabulary",
            texts: json!([[540]]),
            fields: none(),
            openai: (400, "token_out_of_range"),
            tei: (422, "Validation"),
            message: "check_embedding_ctx_length=False",
        },
    ]
}

#[test]
fn invalid_request_gets_status_of_its_dialect() {
    let daemon = Root::with_other().with("socket.max_body", json!("16KiB")).start();
    for row in &invalid_requests() {
        assert_row(&daemon, row);
    }
    daemon.stop();
}

#[test]
fn malformed_json_gets_status_of_its_dialect() {
    let daemon = Root::new().start();
    let send =
        |path: &str, text: &str| daemon.connect().request("POST", path, &[], text.as_bytes());
    nested(&send(EMBEDDINGS, "{\"input\": "), (400, "invalid_request"), "malformed JSON");
    flat(&send("/embed", "{\"inputs\": "), (422, "Validation"), "malformed JSON");
    daemon.stop();
}

#[test]
fn wrong_method_is_405_in_openai_and_tei() {
    let daemon = Root::new().start();
    nested(&daemon.get(EMBEDDINGS), (405, "method_not_allowed"), "wrong method");
    flat(&daemon.get("/embed"), (405, "Validation"), "wrong method");
    daemon.stop();
}

/// Checks that a text that is too long is cut at its end by default, and that the answer reports
/// it.
#[test]
fn long_text_is_truncated_and_reported() {
    let daemon = Root::new().start();
    let text = "word ".repeat(2 * MOST_TOKENS);
    let openai = daemon.embeddings(&json!({ "input": text }));
    let tei = daemon.post("/embed", &json!({ "inputs": text }));
    for answer in [&openai, &tei] {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"));
        assert_eq!(answer.header("x-compute-tokens"), Some("48"));
    }
    daemon.stop();
}

#[test]
fn unsupported_task_is_424() {
    let root = Root::new();
    fs::write(root.bundled().join(file_name("table")), pack("tiny-static", "table", "1")).unwrap();
    let daemon = root.start();
    let failure = (424, "Backend");
    for path in ["/embed_sparse", "/predict"] {
        flat(&daemon.post(path, &json!({ "inputs": "a" })), failure, path);
    }
    let answer = daemon.post("/embed_all", &json!({ "inputs": "a", "model": "table" }));
    let said = flat(&answer, failure, "static embeddings");
    assert!(said.contains("no token states"), "{said}");
    daemon.stop();
}

#[test]
fn corrupt_model_is_503_in_openai_and_tei() {
    // Without `strict`, another model of the same embedding space would answer.
    let root = Root::new().with("memory.fallback_strategy", json!("strict"));
    fs::write(root.bundled().join(file_name("broken")), pack("tiny-bert-mean", "broken", "1"))
        .unwrap();
    let daemon = root.with("memory.model_cache.validation_on_startup", json!(false)).start();
    flip_a_bit_of(&entry(&daemon, "broken").join("model.safetensors"));
    assert_row(
        &daemon,
        &Row {
            case: "corrupt",
            texts: json!("a"),
            fields: json!({ "model": "broken", "allow_fallback": false }),
            openai: (503, "model_corrupt"),
            tei: (503, "Unhealthy"),
            message: "model.safetensors",
        },
    );
    daemon.stop();
}

#[test]
fn model_over_memory_limit_is_503_without_retry() {
    let installed = Root::new().start().stop();
    let daemon = installed.with("memory.memory_limit", json!("1MiB")).start();
    daemon.wait_notified("does not fit into memory");
    let row = Row {
        case: "memory",
        texts: json!("a"),
        fields: json!({}),
        openai: (503, "memory_limit"),
        tei: (503, "Unhealthy"),
        message: "because of the 1.0 MiB of memory.memory_limit",
    };
    assert_row(&daemon, &row);
    let answer = daemon.post("/embed", &json!({ "inputs": "a" }));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    let health = daemon.get("/health");
    flat(&health, (503, "Unhealthy"), "not ready");
    assert_eq!(health.header("retry-after"), Some("1"));
    daemon.stop();
}

/// Checks the shape of an error of Ollama's routes, and returns its message.
fn ollamas(answer: &Answer, status: u16, case: &str) -> String {
    let error = answer.json();
    assert_eq!((answer.status, error.as_object().unwrap().len()), (status, 1), "{case}: {error}");
    error["error"].as_str().unwrap_or_else(|| panic!("{case}: {error}")).to_owned()
}

#[test]
fn full_queue_error_follows_the_dialect() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Token ids need no tokenizing, so the model is the slowest part and requests wait for it.
    let long = json!({ "input": vec![vec![5; 48]; 2048] }).to_string();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // The bound ends the thread even if the test has failed.
                for _ in 0..100 {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    daemon.connect().request("POST", EMBEDDINGS, &[], long.as_bytes());
                }
            });
        }
        let refused = |path, texts_field: &str| {
            daemon.until("a refusal", || {
                let answer = daemon.post(path, &json!({ texts_field: "a" }));
                (answer.status != 200).then_some(answer)
            })
        };
        let openai = refused(EMBEDDINGS, "input");
        let tei = refused("/embed", "inputs");
        let ollama = refused("/api/embed", "input");
        done.store(true, Ordering::Relaxed);
        for said in [
            nested(&openai, (429, "overloaded"), "overload"),
            flat(&tei, (429, "Overloaded"), "overload"),
            ollamas(&ollama, 503, "overload"),
        ] {
            assert!(said.contains("bundled-mini"), "{said}");
        }
        for answer in [openai, tei, ollama] {
            for header in ["retry-after", "retry-after-ms"] {
                assert!(answer.header(header).is_some(), "{header}: {answer:?}");
            }
        }
    });
    daemon.stop();
}

#[test]
fn loading_model_error_follows_the_dialect() {
    for (path, texts_field) in
        [(EMBEDDINGS, "input"), ("/embed", "inputs"), ("/api/embed", "input")]
    {
        let daemon = Root::with_other().start();
        let body = json!({ texts_field: "a", "model": "other" }).to_string();
        // The timeout of 0 expires before any load can finish.
        let at_once = [("x-caxton-timeout-ms", "0"), ("x-caxton-allow-fallback", "false")];
        let answer = daemon.connect().request("POST", path, &at_once, body.as_bytes());
        let said = match path {
            "/embed" => flat(&answer, (503, "Unhealthy"), "loading"),
            "/api/embed" => ollamas(&answer, 503, "loading"),
            _ => nested(&answer, (503, "model_loading"), "loading"),
        };
        assert!(said.contains("other"), "{said}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        daemon.stop();
    }
}
