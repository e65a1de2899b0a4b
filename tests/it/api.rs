//! The endpoint, through the socket of a real daemon: what it answers, and what bad input gets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};

use crate::support::{Answer, Connection, Daemon, Root, TINY_DIMENSIONS, pack};

const EMBEDDINGS: &str = "/v1/embeddings";
/// Tokens of the vocabulary of the tiny models.
const VOCABULARY: u32 = 540;

/// A root with a second model, `other`, that nobody loads before it is asked for.
fn root_with_other() -> Root {
    let root = Root::new().with("memory.preload_models", json!([]));
    let package = pack("tiny-e5", "other", "2");
    std::fs::write(root.bundled().join("other-2.model.tar.zst"), package).unwrap();
    root
}

fn embeddings(daemon: &Daemon, body: &Value) -> Answer {
    daemon.post(EMBEDDINGS, body)
}

/// `body` answered with `status` and `code`; `message` and `param` are parts of the error's.
fn refused(answer: &Answer, status: u16, code: &str, param: Option<&str>, messages: &[&str]) {
    let error = answer.error();
    assert_eq!(answer.status, status, "{error}");
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["param"].as_str(), param, "{error}");
    for message in messages {
        assert!(error["message"].as_str().unwrap().contains(message), "{message}: {error}");
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(vector: &[f32]) -> f32 {
    cosine(vector, vector).sqrt()
}

#[test]
fn bad_requests_name_the_field_and_load_nothing() {
    let daemon = root_with_other().start();
    let with = |field: &str, value: Value| {
        let mut body = json!({ "input": "a text", "model": "other" });
        body[field] = value;
        body.to_string()
    };
    let input = |value: Value| with("input", value);
    let many = |count: usize| Value::from(vec!["a"; count]);
    let bad = "invalid_request";
    for (body, status, code, param, message) in [
        (input(json!([])), 400, bad, Some("input"), "empty list"),
        (input(json!("")), 400, bad, Some("input[0]"), "input 0 is empty"),
        (input(json!(["a", "", "b"])), 400, bad, Some("input[1]"), "input 1 is empty"),
        (input(json!([[1], []])), 400, bad, Some("input[1]"), "input 1 is empty"),
        (input(many(2049)), 413, "too_many_inputs", Some("input"), "2049 inputs"),
        (input(json!(5)), 400, bad, Some("input"), "expected a string, a list"),
        (input(Value::Null), 400, bad, Some("input"), "expected a string, a list"),
        (input(json!({ "text": "a" })), 400, bad, Some("input"), "expected a string, a list"),
        (input(json!(["a", 1])), 400, bad, Some("input"), "not a mixture"),
        (input(json!([1, [1]])), 400, bad, Some("input"), "not a mixture"),
        (input(json!(["a", 1.5])), 400, bad, Some("input[1]"), "floating point"),
        (input(json!([[1, -1]])), 400, bad, Some("input[0][1]"), "-1"),
        (with("model", json!(5)), 400, bad, Some("model"), "expected a string"),
        (with("dimensions", json!("8")), 400, bad, Some("dimensions"), "expected usize"),
        (with("dimensions", json!(-1)), 400, bad, Some("dimensions"), "-1"),
        (with("encoding_format", json!("hex")), 400, bad, Some("encoding_format"), "\"hex\""),
        (with("prompt_name", json!(1)), 400, bad, Some("prompt_name"), "expected a string"),
        ("{}".to_owned(), 400, bad, Some("input"), "input is missing"),
        (String::new(), 400, bad, None, "EOF"),
        (r#"{"input": "a""#.to_owned(), 400, bad, None, "EOF"),
        (r#"{"input": "a"} x"#.to_owned(), 400, bad, None, "trailing characters"),
        (r#"{"input": "a", "input": "b"}"#.to_owned(), 400, bad, Some("input"), "duplicate"),
        (r#" ["a"]"#.to_owned(), 400, bad, None, "is a list"),
        (r#""a""#.to_owned(), 400, bad, None, "invalid type: string"),
        ("\u{feff}{}".to_owned(), 400, bad, None, ""),
        ("[".repeat(100_000), 400, bad, None, ""),
        (format!(r#"{{"input": {}"#, "[".repeat(100_000)), 400, bad, None, ""),
    ] {
        let shown: String = body.chars().take(80).collect();
        let answer = daemon.connect().request("POST", EMBEDDINGS, &[], body.as_bytes());
        let error = answer.error();
        assert_eq!((answer.status, &error["code"]), (status, &json!(code)), "{shown}: {error}");
        if !shown.contains("[[[[") {
            assert_eq!(error["param"].as_str(), param, "{shown}: {error}");
        }
        assert!(error["message"].as_str().unwrap().contains(message), "{shown}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{shown}");
    }
    let invalid_utf8 = b"{\"input\": \"\xff\"}";
    let answer = daemon.connect().request("POST", EMBEDDINGS, &[], invalid_utf8);
    refused(&answer, 400, bad, Some("input"), &[]);
    assert_eq!(daemon.package("other")["residency"], "absent");
    // The same model answers when it is asked rightly.
    assert_eq!(embeddings(&daemon, &json!({ "input": "a", "model": "other" })).status, 200);
    assert_eq!(daemon.package("other")["residency"], "resident");
    daemon.stop();
}

#[test]
fn an_unknown_model_is_404_with_the_names_there_are() {
    let daemon = root_with_other().start();
    for name in ["nope", "bundled-mini@9", "", "../other", "bundled-mini@"] {
        let answer = embeddings(&daemon, &json!({ "input": "a", "model": name }));
        let messages = [&format!("\"{name}\""), "bundled-mini, other"];
        refused(&answer, 404, "model_not_found", Some("model"), &messages);
        assert_eq!(answer.error()["type"], "not_found_error");
    }
    for route in ["/v1/models/nope", "/api/packages/nope"] {
        let answer = daemon.get(route);
        let messages = ["\"nope\"", "bundled-mini, other"];
        refused(&answer, 404, "model_not_found", Some("model"), &messages);
    }
    daemon.stop();
}

#[test]
fn what_a_model_cannot_do_is_said_with_what_it_can() {
    let daemon = root_with_other().start();
    for (field, value, message) in [
        ("dimensions", json!(0), "gives 1 to 64"),
        ("dimensions", json!(65), "gives 1 to 64"),
        ("prompt_name", json!("nope"), "it has: passage, query"),
    ] {
        let mut body = json!({ "input": "a text", "model": "other" });
        body[field] = value;
        refused(&embeddings(&daemon, &body), 400, "invalid_request", Some(field), &[message]);
    }
    daemon.stop();
}

#[test]
fn ids_of_another_vocabulary_are_refused_with_the_way_out() {
    let daemon = Root::new().start();
    for (input, param) in [
        (json!([[1, 2], [VOCABULARY]]), "input[1]"),
        (json!([3, VOCABULARY]), "input[0]"),
        (json!([u32::MAX]), "input[0]"),
    ] {
        let answer = embeddings(&daemon, &json!({ "input": input }));
        let messages = ["check_embedding_ctx_length=False", "540"];
        refused(&answer, 400, "token_out_of_range", Some(param), &messages);
    }
    let last = embeddings(&daemon, &json!({ "input": [VOCABULARY - 1] }));
    assert_eq!(last.status, 200, "{last:?}");
    let no_token = embeddings(&daemon, &json!({ "input": [1_u64 << 32] }));
    refused(&no_token, 400, "invalid_request", Some("input[0]"), &["no token id"]);
    daemon.stop();
}

#[test]
fn a_body_over_the_limit_is_413_and_the_limit_itself_is_not() {
    let daemon = Root::new().with("socket.max_body", json!("2KiB")).start();
    let body = |length: usize| {
        let frame = json!({ "input": "" }).to_string().len();
        json!({ "input": "a".repeat(length - frame) }).to_string()
    };
    let send = |body: &str| daemon.connect().request("POST", EMBEDDINGS, &[], body.as_bytes());
    assert_eq!(send(&body(2048)).status, 200);
    refused(&send(&body(2049)), 413, "body_too_large", None, &["2.0 KiB", "socket.max_body"]);

    // Without an announced length, and much more than any buffer holds.
    let mut connection = daemon.connect();
    connection
        .send(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    for _ in 0..64 {
        connection.send(&chunk);
    }
    refused(&connection.answer(), 413, "body_too_large", None, &["2.0 KiB"]);
    daemon.stop();
}

#[test]
fn unknown_routes_and_wrong_methods_are_json_too() {
    let daemon = Root::new().start();
    for (method, path, status, code, message) in [
        ("GET", "/", 404, "route_not_found", "GET /"),
        ("POST", "/v1/completions", 404, "route_not_found", "POST /v1/completions"),
        ("GET", "/v1/models/a/b", 404, "route_not_found", "/v1/models/a/b"),
        ("GET", "/v1/embeddings/", 404, "route_not_found", "/v1/embeddings/"),
        ("GET", "/%00%ff", 404, "route_not_found", "/%00%ff"),
        ("GET", "/v1/models/%ff", 400, "invalid_request", "name"),
        ("GET", "/api/packages/%ff", 400, "invalid_request", "name"),
        ("DELETE", "/api/packages/%ff", 400, "invalid_request", "name"),
        ("GET", EMBEDDINGS, 405, "method_not_allowed", "/v1/embeddings does not take GET"),
        ("POST", "/v1/models", 405, "method_not_allowed", "POST"),
        ("DELETE", "/v1/models/bundled-mini", 405, "method_not_allowed", "DELETE"),
        ("PUT", "/livez", 405, "method_not_allowed", "PUT"),
        ("PATCH", "/api/packages", 405, "method_not_allowed", "PATCH"),
        ("GET", "/api/packages/bundled-mini/verify", 405, "method_not_allowed", "GET"),
        ("BREW", "/readyz", 405, "method_not_allowed", "BREW"),
    ] {
        let answer = daemon.connect().request(method, path, &[], b"");
        let error = answer.error();
        assert_eq!((answer.status, &error["code"]), (status, &json!(code)), "{method} {path}");
        assert!(error["message"].as_str().unwrap().contains(message), "{method} {path}: {error}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}: {answer:?}");
    }
    daemon.stop();
}

#[test]
fn any_host_and_no_content_type_will_do() {
    let daemon = Root::new().start();
    let expected = daemon.embed(json!("a text"));
    let body = r#"{"input":"a text"}"#;
    let length = format!("content-length: {}\r\n", body.len());
    for head in [
        "host: localhost\r\n",
        "host: evil.example:1234\r\n",
        "host:\r\n",
        "host: a\r\ncontent-type: text/plain\r\n",
        "host: a\r\ncontent-type: application/json; charset=utf-8\r\n",
        "host: a\r\nauthorization: Bearer x\r\nx-stainless-lang: python\r\n",
    ] {
        let mut connection = daemon.connect();
        let request = format!("POST {EMBEDDINGS} HTTP/1.1\r\n{head}{length}\r\n{body}");
        connection.send(request.as_bytes());
        let answer = connection.answer();
        assert_eq!(answer.status, 200, "{head}: {answer:?}");
        assert_eq!(answer.vectors(), expected, "{head}");
    }
    let mut old = daemon.connect();
    old.send(format!("POST {EMBEDDINGS} HTTP/1.0\r\n{length}\r\n{body}").as_bytes());
    assert_eq!(old.answer().vectors(), expected);
    let mut absolute = daemon.connect();
    absolute.send(b"GET http://localhost/livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(absolute.answer().status, 200);
    daemon.stop();
}

#[test]
fn the_four_forms_of_input_agree() {
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

/// Ids of a text as the reference tokenizer of the tiny model makes them.
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
        let answer = embeddings(&daemon, &json!({ "input": input, "encoding_format": format }));
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
fn shortened_vectors_have_length_one_again() {
    let daemon = Root::new().start();
    let full = daemon.embed(json!("a text")).remove(0);
    for dimensions in [1, 7, 16, 63, TINY_DIMENSIONS] {
        for format in ["float", "base64"] {
            let answer = embeddings(
                &daemon,
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
fn a_prompt_goes_before_the_text() {
    let daemon = root_with_other().start();
    let ask = |body: Value| {
        let answer = embeddings(&daemon, &body);
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
fn an_answer_says_which_model_and_space_it_is_of() {
    let daemon = root_with_other().start();
    let long = "word ".repeat(500);
    let answer = embeddings(&daemon, &json!({ "input": ["a", long], "user": "someone" }));
    let body = answer.json();
    assert_eq!(body["object"], "list");
    assert_eq!(body["model"], "bundled-mini");
    assert_eq!(body["data"][1]["object"], "embedding");
    // The short text and its two special tokens, and as many as the model takes.
    let short = ids_of("a").len();
    assert_eq!(body["usage"], json!({ "prompt_tokens": short + 48, "total_tokens": short + 48 }));
    let package = daemon.package("bundled-mini");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
    assert_eq!(answer.header("x-caxton-revision"), package["revision"].as_str());
    assert_eq!(answer.header("x-caxton-embedding-space"), package["embedding_space"].as_str());
    assert_eq!(answer.header("x-caxton-truncated-inputs"), Some("1"));
    let other = embeddings(&daemon, &json!({ "input": "a", "model": "other@2" }));
    assert_eq!(other.header("x-caxton-model"), Some("other@2"));
    assert_eq!(other.json()["model"], "other");
    let (other, mini) =
        (other.header("x-caxton-embedding-space"), answer.header("x-caxton-embedding-space"));
    assert!(other.is_some() && other != mini, "{other:?} {mini:?}");
    daemon.stop();
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
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
fn the_most_inputs_of_a_request_are_answered_in_order() {
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

#[test]
fn models_health_and_status_are_shown() {
    let daemon = root_with_other().start();
    let models = daemon.get("/v1/models").json();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["bundled-mini", "other"]);
    let model = daemon.get("/v1/models/other").json();
    assert_eq!(model, models["data"][1]);
    assert_eq!(daemon.get("/v1/models/other@2").json(), model);
    assert_eq!(daemon.get("/v1/models/%6fther").json(), model);
    assert_eq!(model["object"], "model");
    assert_eq!(model["dimensions"], TINY_DIMENSIONS);
    assert_eq!(model["prompts"], json!(["passage", "query"]));
    assert!(model["created"].as_u64().unwrap() > 1_600_000_000);

    for path in ["/livez", "/readyz"] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok\n".as_slice()), "{path}");
    }

    let status = daemon.status();
    assert_eq!(status["ready"], true);
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["default_model"], "bundled-mini");
    assert_eq!(status["configuration"]["files"], json!([daemon.config()]));
    assert_eq!(status["configuration"]["problems"], json!([]));
    let residencies: Vec<_> =
        status["packages"].as_array().unwrap().iter().map(|p| &p["residency"]).collect();
    assert_eq!(residencies, ["resident", "absent"]);
    assert!(status["resident_memory_bytes"].as_u64().unwrap() > 1 << 20);
    daemon.stop();
}

#[test]
fn a_connection_carries_many_requests() {
    let daemon = Root::new().start();
    let mut connection = daemon.connect();
    let body = json!({ "input": "a" }).to_string();
    for _ in 0..20 {
        assert_eq!(connection.request("POST", EMBEDDINGS, &[], body.as_bytes()).status, 200);
        // A refused request does not cost the connection.
        assert_eq!(connection.request("POST", EMBEDDINGS, &[], b"{").status, 400);
        assert_eq!(connection.request("GET", "/nope", &[], b"").status, 404);
    }
    // Sent at once, answered in order.
    connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    connection.ask("GET", "/nope", &[], b"");
    assert_eq!(connection.answer().status, 200);
    assert_eq!(connection.answer().status, 404);
    daemon.stop();
}

#[test]
fn fifty_clients_at_once_are_all_answered() {
    let daemon = Root::new().start();
    let expected: Vec<_> =
        (0..50).map(|client| daemon.embed(json!(format!("client {client}"))).remove(0)).collect();
    let together = Barrier::new(50);
    thread::scope(|scope| {
        for (client, expected) in expected.iter().enumerate() {
            let (daemon, together) = (&daemon, &together);
            scope.spawn(move || {
                together.wait();
                for _ in 0..4 {
                    let vector = daemon.embed(json!(format!("client {client}"))).remove(0);
                    assert!(cosine(&vector, expected) > 0.999_99, "client {client}");
                }
            });
        }
    });
    daemon.stop();
}

#[test]
fn more_requests_than_may_wait_are_told_to_come_again() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Ids need no tokenizing: the model is the slowest part, so that requests wait for it.
    let body = json!({ "input": vec![vec![5; 48]; 2048] }).to_string();
    let mut connections: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    }
    let answers: Vec<_> = connections.iter_mut().map(Connection::answer).collect();
    let (fine, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert!(!fine.is_empty() && !others.is_empty(), "{} of 8 answered", fine.len());
    for answer in others {
        refused(&answer, 429, "overloaded", None, &["bundled-mini"]);
        assert_eq!(answer.error()["type"], "rate_limit_error");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    daemon.stop();
}

#[test]
fn clients_that_leave_in_the_middle_hurt_nobody() {
    let daemon = Root::new().start();
    let body = json!({ "input": vec![vec![5; 48]; 512] }).to_string();
    let half = &body[..body.len() / 2];
    for _ in 0..10 {
        let mut connection = daemon.connect();
        connection.send(b"POST /v1/embeddings HTT");
        drop(connection);
        let mut connection = daemon.connect();
        let head =
            format!("POST /v1/embeddings HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.send(head.as_bytes());
        connection.send(half.as_bytes());
        drop(connection);
        let mut connection = daemon.connect();
        connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
        drop(connection);
    }
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    // What was begun for them is given up or finished: nothing waits for ever.
    daemon
        .until("an empty queue", || (daemon.package("bundled-mini")["waiting"] == 0).then_some(()));
    daemon.stop();
}

#[test]
fn malformed_http_ends_its_own_connection_only() {
    let daemon = Root::new().start();
    let long_header = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let many_headers = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(1 << 20));
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let bad: [&[u8]; 13] = [
        b"\r\n\r\n\r\n",
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
        long_path.as_bytes(),
        &bytes,
    ];
    for bytes in bad {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        let mut connection = daemon.connect();
        connection.send(bytes);
        connection.finish();
        let said = connection.until_closed();
        let answer = String::from_utf8_lossy(&said);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown}: {answer}");
        assert_eq!(daemon.get("/livez").status, 200, "{shown}");
    }
    daemon.stop();
}

#[test]
fn a_slow_head_does_not_hold_up_others() {
    let daemon = Root::new().start();
    let mut slow: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
    for connection in &mut slow {
        connection.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-len");
    }
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    for connection in &mut slow {
        connection.send(b"gth: 13\r\n\r\n{\"input\":\"a\"}");
        assert_eq!(connection.answer().status, 200);
    }
    daemon.stop();
}

#[test]
fn a_large_body_is_asked_for_when_the_client_offers_it() {
    let daemon = Root::new().start();
    let mut connection = daemon.connect();
    connection.send(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
          content-length: 13\r\n\r\n",
    );
    assert_eq!(connection.answer().status, 100);
    connection.send(b"{\"input\":\"a\"}");
    assert_eq!(connection.answer().status, 200);
    daemon.stop();
}

#[test]
fn connections_over_the_limit_wait_and_are_served_then() {
    let daemon = Root::new().with("socket.max_connections", json!(2)).start();
    let mut first = daemon.connect();
    let mut second = daemon.connect();
    assert_eq!(first.request("GET", "/livez", &[], b"").status, 200);
    assert_eq!(second.request("GET", "/livez", &[], b"").status, 200);
    let mut third = daemon.connect();
    let mut fourth = daemon.connect();
    third.ask("GET", "/livez", &[], b"");
    fourth.ask("GET", "/livez", &[], b"");
    for _ in 0..50 {
        assert_eq!(first.request("GET", "/livez", &[], b"").status, 200);
    }
    assert!(!third.has_answer() && !fourth.has_answer());
    drop(first);
    assert_eq!(third.answer().status, 200);
    assert!(!fourth.has_answer());
    drop(second);
    assert_eq!(fourth.answer().status, 200);
    daemon.stop();
}
