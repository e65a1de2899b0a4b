//! Tests of rejected requests: each gets a status, a code, the field and a remedy, always as JSON.

use serde_json::{Value, json};

use crate::support::{EMBEDDINGS, Root, refused};

/// Size of the vocabulary of the tiny models.
const VOCABULARY: u32 = 540;

#[test]
fn bad_requests_name_the_field_and_load_nothing() {
    let daemon = Root::with_other().start();
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
        (input(many(2049)), 413, "too_many_inputs", Some("input"), "more than the 2048 inputs"),
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
        ("\u{feff}{}".to_owned(), 400, bad, Some("input"), "input is missing"),
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
    refused(&answer, 400, bad, None, &["is not UTF-8 at byte 11"]);
    assert_eq!(daemon.package("other")["residency"], "absent");
    // The same model answers a valid request.
    assert_eq!(daemon.embeddings(&json!({ "input": "a", "model": "other" })).status, 200);
    assert_eq!(daemon.package("other")["residency"], "resident");
    daemon.stop();
}

#[test]
fn unknown_model_is_404_with_installed_names() {
    let daemon = Root::with_other().start();
    for name in ["nope", "bundled-mini@9", "../other", "bundled-mini@"] {
        let answer = daemon.embeddings(&json!({ "input": "a", "model": name }));
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
fn unsupported_options_are_rejected_with_valid_values() {
    let daemon = Root::with_other().start();
    for (field, value, message) in [
        ("dimensions", json!(0), "of this model have 64"),
        ("dimensions", json!(65), "of this model have 64"),
        ("output_dtype", json!("int4"), "float, int8, uint8, binary, ubinary"),
        ("output_dtype", json!("Binary"), "float, int8, uint8, binary, ubinary"),
        ("prompt_name", json!("nope"), "it has: passage, query"),
    ] {
        let mut body = json!({ "input": "a text", "model": "other" });
        body[field] = value;
        refused(&daemon.embeddings(&body), 400, "invalid_request", Some(field), &[message]);
    }
    daemon.stop();
}

#[test]
fn out_of_range_tokens_are_rejected_with_hint() {
    let daemon = Root::new().start();
    for (input, param) in [
        (json!([[1, 2], [VOCABULARY]]), "input[1]"),
        (json!([3, VOCABULARY]), "input[0]"),
        (json!([u32::MAX]), "input[0]"),
    ] {
        let answer = daemon.embeddings(&json!({ "input": input }));
        let messages = ["check_embedding_ctx_length=False", "540"];
        refused(&answer, 400, "token_out_of_range", Some(param), &messages);
    }
    let last = daemon.embeddings(&json!({ "input": [VOCABULARY - 1] }));
    assert_eq!(last.status, 200, "{last:?}");
    let no_token = daemon.embeddings(&json!({ "input": [1_u64 << 32] }));
    refused(&no_token, 400, "invalid_request", Some("input[0]"), &["is not a token id"]);
    daemon.stop();
}

#[test]
fn body_over_the_limit_is_413() {
    let daemon = Root::new().with("socket.max_body", json!("2KiB")).start();
    let body = |length: usize| {
        let frame = json!({ "input": "" }).to_string().len();
        json!({ "input": "a".repeat(length - frame) }).to_string()
    };
    let send = |body: &str| daemon.connect().request("POST", EMBEDDINGS, &[], body.as_bytes());
    assert_eq!(send(&body(2048)).status, 200);
    refused(&send(&body(2049)), 413, "body_too_large", None, &["2.0 KiB", "socket.max_body"]);

    // The chunked body has no announced length, and is much larger than any buffer.
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
fn unknown_routes_and_methods_get_json_errors() {
    let daemon = Root::new().start();
    for (method, path, status, code, message) in [
        ("GET", "/nowhere", 404, "route_not_found", "GET /nowhere"),
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
