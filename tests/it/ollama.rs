//! Tests of Ollama's dialect through the socket of a real daemon: vectors, names, listings, errors,
//! and how long models stay loaded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, EMBEDDINGS, Root, TINY_DIMENSIONS};

const EMBED: &str = "/api/embed";

fn embed(daemon: &Daemon, body: Value) -> Value {
    let answer = daemon.post(EMBED, &body);
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    answer.json()
}

fn rows(answer: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(answer["embeddings"].clone()).unwrap()
}

/// Checks that an error has exactly Ollama's shape, and returns its message.
fn failed(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let body = answer.json();
    let fields = body.as_object().unwrap();
    assert_eq!(fields.len(), 1, "{body}");
    fields["error"].as_str().unwrap().to_owned()
}

/// Returns the model `id` in `/api/ps` and in `/api/memory/status`, if it is in memory.
fn in_memory(daemon: &Daemon, id: &str) -> Option<(Value, Value)> {
    let find = |path: &str, key: &str, name: &dyn Fn(&str) -> bool| {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        let models = answer.json()["models"].as_array().unwrap().clone();
        models.into_iter().find(|model| name(model[key].as_str().unwrap()))
    };
    let memory = find("/api/memory/status", "id", &|name| name == id)?;
    let running = find("/api/ps", "name", &|name| name.split(':').next() == Some(id))?;
    Some((running, memory))
}

/// Returns the number of seconds after which `id` is unloaded if it is not used; `None` when it is
/// not.
fn expires_in(daemon: &Daemon, id: &str) -> Option<u64> {
    in_memory(daemon, id).unwrap().1["expires_in_seconds"].as_u64()
}

/// Waits for the record, after the first `count` lines of the log, that `other` was unloaded at the
/// end of its keep_alive of `time`.
fn wait_unloaded(daemon: &Daemon, count: usize, time: &str) {
    let time = format!(" {time}");
    let fragments = ["model=other@2+", &time, "keep_alive"];
    daemon.wait_event_after(count, Message::ModelUnloaded, &fragments);
}

/// Returns the `details` of a model from its package in `/status`.
fn details(package: &Value) -> Value {
    json!({
        "parent_model": "", "format": "safetensors", "family": "bert", "families": ["bert"],
        "parameter_size": "", "quantization_level": package["precision"],
    })
}

/// Returns the models of `/api/tags`.
fn tags(daemon: &Daemon) -> Vec<Value> {
    daemon.get("/api/tags").json()["models"].as_array().unwrap().clone()
}

#[test]
fn vectors_match_the_openai_route() {
    let daemon = Root::new().start();
    let texts = json!(["hello world", "日本語 and ünïcödé"]);
    let expected = daemon.embed(texts.clone());
    let answer = embed(&daemon, json!({ "model": "bundled-mini", "input": texts }));
    assert_eq!(rows(&answer), expected);
    assert_eq!(answer["model"], "bundled-mini");
    let usage = daemon.embeddings(&json!({ "input": texts })).json()["usage"].clone();
    assert_eq!(answer["prompt_eval_count"], usage["prompt_tokens"]);
    let (total, load) = (&answer["total_duration"], &answer["load_duration"]);
    assert!(0 < load.as_u64().unwrap() && load.as_u64() < total.as_u64(), "{answer}");

    let single = daemon.embed(json!("hello world"));
    let one = embed(&daemon, json!({ "model": "bundled-mini", "input": "hello world" }));
    assert_eq!(rows(&one), single);
    let old = json!({ "model": "bundled-mini", "prompt": "hello world", "options": { "a": 1 } });
    let old = daemon.post("/api/embeddings", &old);
    assert_eq!(old.status, 200, "{old:?}");
    assert_eq!(
        serde_json::from_value::<Vec<f32>>(old.json()["embedding"].clone()).unwrap(),
        single[0]
    );
    let package = daemon.package("bundled-mini");
    for answer in [old, daemon.post(EMBED, &json!({ "input": "a" }))] {
        assert_eq!(answer.header("x-caxton-model"), Some("bundled-mini@1"));
        assert_eq!(answer.header("x-caxton-embedding-space"), package["embedding_space"].as_str());
    }
    daemon.stop();
}

#[test]
fn dimensions_and_truncate_options_apply() {
    let daemon = Root::new().with("embedding.allow_any_dimensions", json!(true)).start();
    let short = daemon.embeddings(&json!({ "input": "a text", "dimensions": 16 })).vectors();
    for (dimensions, length) in [(16, 16), (0, TINY_DIMENSIONS)] {
        let body = json!({ "input": "a text", "dimensions": dimensions, "options": null });
        let answer = rows(&embed(&daemon, body));
        assert_eq!(answer[0].len(), length, "{dimensions}");
        assert!(length != 16 || answer == short);
    }
    let long = "word ".repeat(500);
    for truncate in [json!(null), json!(true)] {
        let answer = embed(&daemon, json!({ "input": [long], "truncate": truncate }));
        assert_eq!(answer["prompt_eval_count"], 48);
    }
    let refused = daemon.post(EMBED, &json!({ "input": ["a", long], "truncate": false }));
    assert_eq!(refused.status, 400);
    assert!(failed(&refused).contains("input[1] has "), "{refused:?}");
    daemon.stop();
}

#[test]
fn empty_input_only_loads_the_model() {
    let daemon = Root::with_other().start();
    for body in
        [json!({}), json!({ "input": "" }), json!({ "input": [] }), json!({ "input": null })]
    {
        let mut body = body;
        body["model"] = json!("other");
        assert!(in_memory(&daemon, "other").is_none(), "{body}");
        let answer = embed(&daemon, body);
        assert_eq!((&answer["embeddings"], &answer["prompt_eval_count"]), (&json!([]), &json!(0)));
        assert!(in_memory(&daemon, "other").is_some());
        let unload = daemon.connect().request("DELETE", "/api/memory/models/other", &[], b"");
        assert_eq!(unload.status, 200, "{unload:?}");
    }
    for body in [json!({ "model": "other" }), json!({ "model": "other", "prompt": "" })] {
        let answer = daemon.post("/api/embeddings", &body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "embedding": [] })), "{body}");
        assert!(in_memory(&daemon, "other").is_some());
    }
    daemon.stop();
}

#[test]
fn tag_resolves_to_version() {
    let daemon = Root::with_other().start();
    for (name, answers) in [
        (json!(null), "bundled-mini@1"),
        (json!("bundled-mini:latest"), "bundled-mini@1"),
        (json!("other"), "other@2"),
        (json!("other:latest"), "other@2"),
        (json!("other:2"), "other@2"),
        (json!("other@2"), "other@2"),
    ] {
        let answer = daemon.post(EMBED, &json!({ "model": name, "input": "a" }));
        assert_eq!(answer.header("x-caxton-model"), Some(answers), "{name}");
        let expected = if name.is_null() { json!("bundled-mini:1") } else { name };
        assert_eq!(answer.json()["model"], expected);
    }
    for (name, answers) in [
        ("", "bundled-mini@1"),
        ("Other", "other@2"),
        ("OTHER:latest", "other@2"),
        ("library/other", "other@2"),
        ("library/Bundled-Mini:1", "bundled-mini@1"),
    ] {
        let answer = daemon.post(EMBED, &json!({ "model": name, "input": "a" }));
        assert_eq!(answer.header("x-caxton-model"), Some(answers), "{name}");
        let expected = if name.is_empty() { "bundled-mini:1" } else { name };
        assert_eq!(answer.json()["model"], expected);
    }
    for name in [":", "other:", "other:3", "other:2:1", "latest", "other:latest:latest"] {
        for (path, field) in [(EMBED, "input"), ("/api/embeddings", "prompt"), ("/api/show", "x")] {
            let mut body = json!({ "model": name });
            body[field] = json!("a");
            let answer = daemon.post(path, &body);
            assert_eq!(answer.status, 404, "{path} {name}: {answer:?}");
            assert!(failed(&answer).contains("bundled-mini, other"), "{path} {name}: {answer:?}");
        }
    }
    daemon.stop();
}

#[test]
fn tags_list_installed_models() {
    let daemon = Root::with_other().start();
    let package = daemon.package("other");
    let tags = tags(&daemon);
    let names: Vec<_> = tags.iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bundled-mini:latest", "bundled-mini:1", "other:latest", "other:2"]);
    let mut latest = tags[2].clone();
    for field in ["name", "model"] {
        assert_eq!(latest[field], "other:latest");
        latest[field] = json!("other:2");
    }
    assert_eq!(latest, tags[3]);
    let mut other = tags[3].clone();
    let modified = other["modified_at"].take();
    assert!(modified.as_str().unwrap().ends_with('Z') && modified.as_str().unwrap().len() == 20);
    let expected = json!({
        "name": "other:2", "model": "other:2", "modified_at": null, "size": package["size_bytes"],
        "digest": package["package_sha256"], "details": details(&package),
        "capabilities": ["embedding"],
    });
    assert_eq!(other, expected);
    daemon.stop();
}

#[test]
fn ps_lists_resident_models() {
    let daemon = Root::with_other().start();
    let package = daemon.package("other");
    assert!(in_memory(&daemon, "other").is_none());
    embed(&daemon, json!({ "model": "other" }));
    let (mut running, memory) = in_memory(&daemon, "other").unwrap();
    // The model is never unloaded for being idle. Ollama's own command line prints a date so far
    // away as "Forever".
    let expires = running["expires_at"].take();
    assert!(expires.as_str().unwrap() > "2300" && expires.as_str().unwrap().ends_with('Z'));
    let expected = json!({
        "name": "other:latest", "model": "other:latest", "size": memory["weight_bytes"],
        "size_vram": 0,
        "digest": package["package_sha256"], "details": details(&package), "expires_at": null,
        "context_length": package["max_sequence_length"],
    });
    assert_eq!(running, expected);
    let models = daemon.get("/api/ps").json()["models"].clone();
    let names: Vec<_> =
        models.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bundled-mini:latest", "bundled-mini:1", "other:latest", "other:2"]);
    daemon.stop();
}

#[test]
fn tags_are_accepted_on_every_route() {
    let daemon =
        Root::with_other().with("aliases", json!({ "fast": { "model": "other" } })).start();
    let ask = |method: &str, path: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        daemon.connect().request(method, path, &[], body.as_bytes())
    };
    for name in ["other:latest", "other:2", "fast:latest"] {
        let texts = json!({ "query": "a", "documents": ["b"], "model": name });
        for (path, body) in [
            (EMBEDDINGS, json!({ "input": "a", "model": name })),
            (EMBED, json!({ "input": "a", "model": name })),
            ("/embed", json!({ "inputs": "a", "model": name })),
            ("/v1/rank", texts.clone()),
            ("/v2/rerank", texts),
            ("/v2/embed", json!({ "texts": ["a"], "model": name })),
        ] {
            let answer = ask("POST", path, &body);
            assert_eq!(answer.header("x-caxton-model"), Some("other@2"), "{path}: {answer:?}");
        }
        for (method, path, body) in [
            ("GET", format!("/v1/models/{name}"), json!(null)),
            ("POST", "/api/show".to_owned(), json!({ "model": name })),
            ("POST", format!("/api/memory/models/{name}/load"), json!(null)),
            ("DELETE", format!("/api/memory/models/{name}"), json!(null)),
        ] {
            let answer = ask(method, &path, &body);
            assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        }
    }
    // Names of packages are not aliases.
    for (method, path) in [
        ("GET", "/api/packages/other:latest"),
        ("POST", "/api/packages/other:2/verify"),
        ("GET", "/api/packages/other:2/export"),
    ] {
        let answer = ask(method, path, &json!(null));
        assert_eq!(answer.status, 200, "{method} {path}: {:?}", answer.status);
    }
    daemon.stop();
}

#[test]
fn pull_succeeds_for_installed_models_only() {
    let daemon = Root::with_other().start();
    for body in [
        json!({ "model": "other", "stream": false }),
        json!({ "name": "Other:latest", "stream": false, "insecure": true }),
    ] {
        let answer = daemon.post("/api/pull", &body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "status": "success" })), "{body}");
    }
    let answer = daemon.post("/api/pull", &json!({ "model": "other:2" }));
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = String::from_utf8(answer.body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let package = daemon.package("other");
    assert_eq!(lines.first().unwrap()["status"], "pulling manifest");
    assert_eq!(lines[1]["total"], package["size_bytes"]);
    assert_eq!(lines[1]["completed"], lines[1]["total"]);
    assert_eq!(lines.last().unwrap(), &json!({ "status": "success" }));
    for (body, status, message) in [
        (json!({ "model": "nomic-embed-text" }), 404, "file does not exist"),
        (json!({ "model": "other:3", "stream": false }), 404, "never downloads"),
        (json!({ "model": "" }), 400, "model is missing"),
        (json!({}), 400, "model is missing"),
    ] {
        let answer = daemon.post("/api/pull", &body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(failed(&answer).contains(message), "{body}: {answer:?}");
    }
    daemon.stop();
}

#[test]
fn empty_generate_loads_and_unloads() {
    let daemon = Root::with_other().start();
    for (path, empty, field, content) in [
        ("/api/generate", json!({ "prompt": "" }), "response", json!("")),
        (
            "/api/chat",
            json!({ "messages": [] }),
            "message",
            json!({ "role": "assistant", "content": "" }),
        ),
    ] {
        let ask = |body: &Value, keep_alive: Value| {
            let mut body = body.clone();
            body["model"] = json!("other");
            body["keep_alive"] = keep_alive;
            let answer = daemon.post(path, &body);
            assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
            answer.json()
        };
        for body in [&empty, &json!({ "options": { "num_ctx": 1 } })] {
            assert!(in_memory(&daemon, "other").is_none());
            // An absent model is not loaded to be unloaded.
            assert_eq!(ask(body, json!(0))["done_reason"], "unload");
            assert!(in_memory(&daemon, "other").is_none());
            let mut loaded = ask(body, json!("10m"));
            assert!(loaded["created_at"].take().as_str().unwrap().ends_with('Z'));
            let mut expected = json!({
                "model": "other", "created_at": null, "done": true, "done_reason": "load",
            });
            expected[field] = content.clone();
            assert_eq!(loaded, expected);
            assert!(expires_in(&daemon, "other").is_some_and(|left| left <= 600));
            let count = daemon.log().len();
            assert_eq!(ask(body, json!("0s"))["done_reason"], "unload");
            wait_unloaded(&daemon, count, "0s");
        }
        let unknown = daemon.post(path, &json!({ "model": "other:3", "keep_alive": 0 }));
        assert_eq!(unknown.status, 404);
        assert!(failed(&unknown).contains("bundled-mini, other"), "{unknown:?}");
    }
    for (path, body) in [
        ("/api/generate", json!({ "model": "other", "prompt": "Why?" })),
        ("/api/chat", json!({ "model": "other", "messages": [{ "role": "user" }] })),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert!(failed(&answer).contains("generates text"), "{path}: {answer:?}");
    }
    daemon.stop();
}

#[test]
fn text_in_the_field_of_the_other_route_is_embedded() {
    let daemon = Root::with_other().start();
    let expected = rows(&embed(&daemon, json!({ "input": "a text" })));
    for body in [
        json!({ "prompt": "a text" }),
        json!({ "prompt": "a text", "input": "" }),
        json!({ "prompt": "another text", "input": ["a text"] }),
    ] {
        assert_eq!(rows(&embed(&daemon, body.clone())), expected, "{body}");
    }
    for body in [json!({ "input": "a text" }), json!({ "input": ["a text"], "prompt": "" })] {
        let answer = daemon.post("/api/embeddings", &body);
        let vector: Vec<f32> = serde_json::from_value(answer.json()["embedding"].clone()).unwrap();
        assert_eq!(vector, expected[0], "{body}");
    }
    let several = daemon.post("/api/embeddings", &json!({ "input": ["a", "b"] }));
    assert_eq!(several.status, 400);
    assert!(failed(&several).contains("/api/embed"), "{several:?}");
    daemon.stop();
}

#[test]
fn normalize_and_large_dimensions_are_like_ollama() {
    let daemon = Root::new().start();
    let unit = rows(&embed(&daemon, json!({ "input": "a text" }))).remove(0);
    let raw = daemon.post(EMBED, &json!({ "input": "a text", "normalize": false }));
    let of_tei = daemon.post("/embed", &json!({ "inputs": "a text", "normalize": false }));
    assert_eq!(raw.header("x-caxton-embedding-space"), of_tei.header("x-caxton-embedding-space"));
    let raw = rows(&raw.json()).remove(0);
    let of_tei: Vec<Vec<f32>> = serde_json::from_value(of_tei.json()).unwrap();
    assert_eq!(of_tei, std::slice::from_ref(&raw));
    assert_ne!(raw, unit);
    let same = embed(&daemon, json!({ "input": "a text", "normalize": true, "dimensions": 4096 }));
    assert_eq!(rows(&same), [unit]);
    daemon.stop();
}

#[test]
fn show_describes_the_model() {
    let daemon = Root::with_other().start();
    let package = daemon.package("other");
    let modified = tags(&daemon)[3]["modified_at"].clone();
    for body in [json!({ "model": "other:2" }), json!({ "name": "other", "verbose": true })] {
        let mut shown = daemon.post("/api/show", &body).json();
        assert_eq!(shown["modified_at"].take(), modified);
        let expected = json!({
            "license": package["license"], "details": details(&package),
            "capabilities": ["embedding"],
            "model_info": {
                "general.architecture": "bert",
                "bert.context_length": package["max_sequence_length"],
                "bert.embedding_length": package["dimensions"],
                "caxton.embedding_space": package["embedding_space"],
                "caxton.revision": package["revision"],
            },
            "modified_at": null,
        });
        assert_eq!(shown, expected, "{body}");
    }
    daemon.stop();
}

#[test]
fn version_and_greeting_are_served() {
    let daemon = Root::new().start();
    let version = daemon.get("/api/version").json();
    assert_eq!(version, json!({ "version": env!("CARGO_PKG_VERSION") }));
    let greeting = daemon.get("/");
    assert_eq!(greeting.status, 200);
    assert!(greeting.body.starts_with(b"Caxton"), "{greeting:?}");
    daemon.stop();
}

#[test]
fn error_is_a_single_string() {
    let daemon = Root::with_other().with("socket.max_body", json!("32KiB")).start();
    let many = json!({ "input": vec!["a"; 2049] }).to_string();
    let large = json!({ "input": "a".repeat(40_000) }).to_string();
    for (method, path, body, status, message) in [
        ("POST", EMBED, r#"{"input": 5}"#, 400, "input: invalid type: integer `5`"),
        ("POST", EMBED, r#"{"input": [1, 2]}"#, 400, "input[0]: invalid type: integer `1`"),
        ("POST", EMBED, r#"{"input": ["a", ""]}"#, 400, "input 1 is empty"),
        ("POST", EMBED, r#"{"input": [""]}"#, 400, "input 0 is empty"),
        ("POST", EMBED, r#"{"input": "a", "model": 5}"#, 400, "model: invalid type"),
        ("POST", EMBED, r#"{"input": "a", "dimensions": 63}"#, 400, "trained for 64 only"),
        (
            "POST",
            EMBED,
            r#"{"input": "a", "keep_alive": "soon"}"#,
            400,
            "keep_alive: invalid value",
        ),
        ("POST", EMBED, r#"{"input": "a", "keep_alive": true}"#, 400, "a duration such as"),
        ("POST", EMBED, r#"{"input": "a""#, 400, "EOF"),
        ("POST", EMBED, "", 400, "EOF"),
        ("POST", EMBED, r#"["a"]"#, 400, "is a list"),
        ("POST", EMBED, &many, 413, "more than the 2048 inputs"),
        ("POST", EMBED, &large, 413, "socket.max_body"),
        ("POST", "/api/embeddings", r#"{"prompt": ["a"]}"#, 400, "prompt: invalid type"),
        ("POST", "/api/show", "{}", 400, "model is missing"),
        ("GET", EMBED, "", 405, "/api/embed does not take GET"),
        ("POST", "/api/tags", "{}", 405, "/api/tags does not take POST"),
        ("DELETE", "/api/ps", "", 405, "/api/ps does not take DELETE"),
        ("GET", "/api/pull", "", 405, "/api/pull does not take GET"),
        ("POST", "/api/push", r#"{"model": "a"}"#, 400, "never uploads"),
        ("POST", "/api/create", r#"{"model": "a"}"#, 400, "caxton model pack"),
        ("POST", "/api/copy", "{}", 400, "aliases"),
        ("DELETE", "/api/delete", r#"{"model": "other"}"#, 400, "caxton model remove"),
        ("HEAD", "/api/blobs/sha256-0", "", 404, ""),
    ] {
        let mut connection = daemon.connect();
        let last = [("connection", "close")];
        let headers: &[_] = if method == "HEAD" { &last } else { &[] };
        connection.ask(method, path, headers, body.as_bytes());
        if method == "HEAD" {
            // The length in an answer to HEAD belongs to a body that is not sent.
            let answer = String::from_utf8(connection.until_closed()).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            continue;
        }
        let answer = connection.answer();
        let said = failed(&answer);
        assert_eq!(answer.status, status, "{method} {path}: {said}");
        assert!(said.contains(message), "{method} {path}: {said}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{answer:?}");
    }
    let headers = [("x-caxton-timeout-ms", "soon")];
    let answer = daemon.connect().request("POST", EMBED, &headers, br#"{"input": "a"}"#);
    assert_eq!(answer.status, 400);
    assert!(failed(&answer).contains("x-caxton-timeout-ms"));
    assert!(in_memory(&daemon, "other").is_none());
    daemon.stop();
}

#[test]
fn full_queue_is_503_with_retry_after() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Token ids need no tokenizing, so the model is the slowest part and requests wait for it.
    let body = json!({ "input": vec![vec![5; 48]; 512] }).to_string();
    let refusal = daemon.until("a refusal", || {
        // The connections close at the end of this closure, which cancels their requests.
        let mut busy: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
        for connection in &mut busy {
            connection.ask("POST", EMBEDDINGS, &[], body.as_bytes());
        }
        let answer = daemon.post(EMBED, &json!({ "input": "a" }));
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refusal.status, 503);
    assert!(failed(&refusal).contains("bundled-mini"), "{refusal:?}");
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    daemon.stop();
}

#[test]
fn keep_alive_lasts_until_replaced_or_unloaded() {
    let daemon =
        Root::with_other().with("models", json!({ "other": { "max_idle_time": "2h" } })).start();
    let ask = |keep_alive: Value| {
        embed(&daemon, json!({ "model": "other", "input": "a", "keep_alive": keep_alive }));
        expires_in(&daemon, "other")
    };
    let near = |found: Option<u64>, expected: u64| {
        assert!(
            found.is_some_and(|found| (expected - 60..=expected).contains(&found)),
            "{found:?}"
        );
    };
    near(ask(json!(null)), 7_200);
    near(ask(json!("10m")), 600);
    near(ask(json!(null)), 600);
    daemon.embeddings(&json!({ "model": "other", "input": "a" }));
    near(expires_in(&daemon, "other"), 600);
    near(ask(json!(3_000.0)), 3_000);
    let left = in_memory(&daemon, "other").unwrap().0["expires_at"].clone();
    assert!(left.as_str().unwrap() < "2200", "{left}");
    for forever in [json!(-1), json!("-1"), json!("-1m")] {
        assert_eq!(ask(forever), None);
        assert_eq!(ask(json!(null)), None);
        near(ask(json!("1h")), 3_600);
    }
    let legacy = json!({ "model": "other", "prompt": "a", "keep_alive": "5m" });
    assert_eq!(daemon.post("/api/embeddings", &legacy).status, 200);
    near(expires_in(&daemon, "other"), 300);

    let count = daemon.log().len();
    embed(&daemon, json!({ "model": "other", "keep_alive": "1s" }));
    wait_unloaded(&daemon, count, "1s");
    // The keep_alive of the client is forgotten when the model is unloaded.
    near(ask(json!(null)), 7_200);
    daemon.stop();
}

#[test]
fn zero_keep_alive_unloads_after_answer() {
    let daemon = Root::with_other().start();
    for nothing in [json!(0), json!("0"), json!("0s")] {
        let count = daemon.log().len();
        let answer =
            embed(&daemon, json!({ "model": "other", "input": "a", "keep_alive": nothing }));
        assert_eq!(rows(&answer).len(), 1);
        wait_unloaded(&daemon, count, "0s");
        assert!(in_memory(&daemon, "other").is_none());
    }
    // An absent model is loaded, as the request asks, and then unloaded.
    let count = daemon.log().len();
    embed(&daemon, json!({ "model": "other", "keep_alive": 0 }));
    wait_unloaded(&daemon, count, "0s");
    assert!(in_memory(&daemon, "bundled-mini").is_some(), "the others stay");
    daemon.stop();
}

#[test]
fn zero_keep_alive_waits_for_running_requests() {
    let daemon = Root::with_other().start();
    let body = json!({ "model": "other", "input": vec!["word ".repeat(46); 2_000] }).to_string();
    embed(&daemon, json!({ "model": "other" }));
    let mut other = daemon.connect();
    let count = daemon.log().len();
    other.ask("POST", EMBEDDINGS, &[], body.as_bytes());
    daemon.until("the long request to have its lease", || {
        (daemon.package("other")["access_count"] == 2).then_some(())
    });
    embed(&daemon, json!({ "model": "other", "keep_alive": 0 }));
    assert!(in_memory(&daemon, "other").is_some(), "it stays for the long request");
    assert!(!other.has_answer(), "the request was not long enough to prove anything");
    assert_eq!(other.answer().status, 200);
    wait_unloaded(&daemon, count, "0s");
    daemon.stop();
}

#[test]
fn zero_keep_alive_spares_pinned_model() {
    let daemon = Root::with_other().start();
    let path = "/api/memory/models/other/load";
    let pin = |body: &str| daemon.connect().request("POST", path, &[], body.as_bytes()).status;
    assert_eq!(pin(r#"{"pinned": true}"#), 200);
    embed(&daemon, json!({ "model": "other", "input": "a", "keep_alive": 0 }));
    // A pinned model is not unloaded, so it does not expire.
    assert_eq!(expires_in(&daemon, "other"), None);
    let count = daemon.log().len();
    assert_eq!(pin(r#"{"pinned": false}"#), 200);
    wait_unloaded(&daemon, count, "0s");
    daemon.stop();
}
