//! Tests of tenants: which tenant a request belongs to, and the consequences.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Answer, Connection, Daemon, EMBEDDINGS, Root, STRANGER, refused, skipped};

fn body(model: Option<&str>) -> Vec<u8> {
    json!({ "input": "a text", "model": model }).to_string().into_bytes()
}

/// Sends a request in the name of `tenant` and returns the answer.
fn ask_as(daemon: &Daemon, tenant: &str, model: Option<&str>) -> Answer {
    let headers = [("x-caxton-tenant", tenant)];
    daemon.connect().request("POST", EMBEDDINGS, &headers, &body(model))
}

fn model_of(answer: &Answer) -> Option<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("x-caxton-model")
}

/// Returns the entry of `tenant` in `/status`.
fn seen(daemon: &Daemon, tenant: &str) -> Value {
    let status = daemon.status();
    let tenants = status["tenants"].as_array().unwrap();
    tenants.iter().find(|seen| seen["name"] == tenant).cloned().unwrap()
}

/// Starts a daemon with two models and three tenants: one unrestricted, one restricted by an alias,
/// one by a version.
fn with_tenants() -> Daemon {
    let tenants = json!([
        { "name": "free", "priority": 8, "dedicated_queue": true },
        { "name": "bound", "model": "other", "allowed_models": ["short"] },
        { "name": "versions", "allowed_models": ["other@2"] },
    ]);
    Root::with_other()
        .with("tenants", tenants)
        .with("aliases", json!({ "short": { "model": "bundled-mini" } }))
        .start()
}

#[test]
fn tenant_gets_own_default_and_allowed_models_only() {
    let daemon = with_tenants();
    assert_eq!(model_of(&ask_as(&daemon, "free", None)), Some("bundled-mini@1"));
    assert_eq!(model_of(&ask_as(&daemon, "bound", None)), Some("other@2"));
    assert_eq!(model_of(&ask_as(&daemon, "bound", Some("other"))), Some("other@2"));
    assert_eq!(model_of(&ask_as(&daemon, "bound", Some("short"))), Some("bundled-mini@1"));
    assert_eq!(model_of(&ask_as(&daemon, "versions", Some("other"))), Some("other@2"));
    for (tenant, model) in [
        ("bound", Some("bundled-mini")),
        ("bound", Some("none-such")),
        ("versions", None),
        ("versions", Some("bundled-mini@1")),
    ] {
        let answer = ask_as(&daemon, tenant, model);
        let named = model.unwrap_or("bundled-mini");
        refused(&answer, 403, "model_not_allowed", Some("model"), &[tenant, named]);
    }
    let seen = daemon.status()["tenants"].clone();
    let expected = json!([
        { "name": "free", "model": "bundled-mini", "allowed_models": null, "priority": 8,
          "dedicated_queue": true, "max_concurrent": null, "requests": 1, "in_flight": 0, "refused": 0 },
        { "name": "bound", "model": "other", "allowed_models": ["short"], "priority": 5,
          "dedicated_queue": false, "max_concurrent": null, "requests": 5, "in_flight": 0, "refused": 2 },
        { "name": "versions", "model": "bundled-mini", "allowed_models": ["other@2"], "priority": 5,
          "dedicated_queue": false, "max_concurrent": null, "requests": 3, "in_flight": 0, "refused": 2 },
    ]);
    assert_eq!(seen, expected);
    let output = daemon.cli().arg("status").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let row =
        table.lines().find(|line| line.starts_with("bound ")).unwrap_or_else(|| panic!("{table}"));
    let columns: Vec<_> = row.split_whitespace().collect();
    assert_eq!(columns, ["bound", "other", "5", "5", "0", "-", "2"]);
    let unknown = ask_as(&daemon, "none-such", None);
    refused(&unknown, 400, "invalid_request", Some("x-caxton-tenant"), &["free, bound, versions"]);
    daemon.stop();
}

#[test]
fn tenant_sees_only_allowed_models() {
    let daemon = with_tenants();
    let ask = |tenant: &str, method: &str, path: &str, body: &Value| {
        let headers = [("x-caxton-tenant", tenant)];
        daemon.connect().request(method, path, &headers, body.to_string().as_bytes())
    };
    let get = |tenant: &str, path: &str| ask(tenant, "GET", path, &Value::Null);
    let named = |list: &Value, name: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|row| row[name].as_str().unwrap().to_owned()).collect()
    };
    let all = ["bundled-mini:latest", "bundled-mini:1", "other:latest", "other:2"];
    for (tenant, ids, tags) in [
        ("free", &["bundled-mini", "other"][..], &all[..]),
        ("bound", &["bundled-mini", "other"], &all),
        ("versions", &["other"], &["other:latest", "other:2"]),
    ] {
        assert_eq!(named(&get(tenant, "/v1/models").json()["data"], "id"), ids, "{tenant}");
        assert_eq!(named(&get(tenant, "/api/tags").json()["models"], "name"), tags, "{tenant}");
    }
    for (tenant, model, status) in [
        ("free", "bundled-mini", 200),
        ("versions", "other", 200),
        ("versions", "bundled-mini", 404),
    ] {
        let one = get(tenant, &format!("/v1/models/{model}"));
        let shown = ask(tenant, "POST", "/api/show", &json!({ "model": model }));
        assert_eq!((one.status, shown.status), (status, status), "{tenant} {model}");
        // The error lists only models that the tenant may see.
        let said = shown.json().to_string();
        assert!(status == 200 || !said.contains("bundled-mini, other"), "{said}");
    }
    for (tenant, model) in [("free", "bundled-mini"), ("bound", "other")] {
        assert_eq!(get(tenant, "/info").json()["model_id"], model, "{tenant}");
    }
    let hidden = get("versions", "/info");
    assert_eq!(hidden.status, 403, "{hidden:?}");
    let said = hidden.json()["error"].to_string();
    assert!(said.contains("versions") && said.contains("bundled-mini"), "{said}");
    // Listing models counts neither as a request nor as a rejected one.
    for tenant in ["free", "bound", "versions"] {
        assert_eq!(
            (&seen(&daemon, tenant)["requests"], &seen(&daemon, tenant)["refused"]),
            (&0.into(), &0.into())
        );
    }
    daemon.stop();
}

#[test]
fn ollama_lists_and_unloads_models_of_the_tenant() {
    let daemon = with_tenants();
    assert_eq!(model_of(&ask_as(&daemon, "bound", None)), Some("other@2"));
    let running = |tenant: &str| -> Vec<String> {
        let headers = [("x-caxton-tenant", tenant)];
        let answer = daemon.connect().request("GET", "/api/ps", &headers, &[]).json();
        let models = answer["models"].as_array().unwrap().iter();
        models.map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    };
    let both = ["bundled-mini:latest", "bundled-mini:1", "other:latest", "other:2"];
    assert_eq!(running("free"), both);
    assert_eq!(running("versions"), both[2..]);

    // Without a model name, the tenant gets its own default. The daemon's default is not even
    // allowed for it.
    let count = daemon.log().len();
    let headers = [("x-caxton-tenant", "bound")];
    let body = json!({ "keep_alive": 0 }).to_string();
    let answer = daemon.connect().request("POST", "/api/embed", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let fragments = ["model=other@2+", " 0s", "keep_alive"];
    daemon.wait_event_after(count, Message::ModelUnloaded, &fragments);
    assert_eq!(running("free"), both[..2]);
    daemon.stop();
}

/// Returns a tenant `t` that may have `most` requests in progress.
fn limited(most: u64) -> Value {
    json!([{ "name": "t", "max_concurrent": most }])
}

/// Sends the head of a request of tenant `t` and waits until `count` of its requests are in
/// progress. A request is in progress from its head on; the test may send the body later.
fn begin(daemon: &Daemon, count: u64) -> Connection {
    let mut connection = daemon.connect();
    let length = body(None).len();
    let head = format!(
        "POST {EMBEDDINGS} HTTP/1.1\r\nhost: caxton\r\nx-caxton-tenant: t\r\n\
         content-length: {length}\r\n\r\n"
    );
    connection.send(head.as_bytes());
    until_in_flight(daemon, count);
    connection
}

/// Waits until tenant `t` has `count` requests in progress.
fn until_in_flight(daemon: &Daemon, count: u64) {
    daemon.until("the requests to be in flight", || {
        (seen(daemon, "t")["in_flight"] == count).then_some(())
    });
}

#[test]
fn tenant_over_concurrency_limit_gets_429() {
    let daemon = Root::new().with("tenants", limited(1)).start();
    let mut first = begin(&daemon, 1);
    let many = ask_as(&daemon, "t", None);
    refused(&many, 429, "overloaded", None, &["1 requests of the tenant \"t\""]);
    assert!(many.header("retry-after").is_some() && many.header("retry-after-ms").is_some());
    // A caller without a tenant is not affected by the limit of one.
    assert_eq!(daemon.embeddings(&json!({ "input": "a" })).status, 200);
    first.send(&body(None));
    assert_eq!(model_of(&first.answer()), Some("bundled-mini@1"));
    until_in_flight(&daemon, 0);
    assert_eq!(seen(&daemon, "t")["refused"], 1);
    daemon.stop();
}

#[test]
fn tenant_concurrency_limit_follows_reload() {
    let mut daemon = Root::new().with("tenants", limited(1)).start();
    let mut first = begin(&daemon, 1);
    assert_eq!(ask_as(&daemon, "t", None).status, 429);
    let count = daemon.log().len();
    daemon.root_mut().set("tenants", limited(2));
    daemon.wait_event_after(count, Message::ConfigurationApplied, &[]);
    let mut second = begin(&daemon, 2);
    assert_eq!(ask_as(&daemon, "t", None).status, 429);
    for connection in [&mut first, &mut second] {
        connection.send(&body(None));
        assert_eq!(model_of(&connection.answer()), Some("bundled-mini@1"));
    }
    until_in_flight(&daemon, 0);
    assert_eq!(ask_as(&daemon, "t", None).status, 200);
    assert_eq!(seen(&daemon, "t")["refused"], 2);
    daemon.stop();
}

#[test]
fn disconnected_client_frees_its_request() {
    let daemon = Root::new().with("tenants", limited(1)).start();
    drop(begin(&daemon, 1));
    until_in_flight(&daemon, 0);
    assert_eq!(ask_as(&daemon, "t", None).status, 200);
    daemon.stop();
}

#[test]
fn user_is_bound_to_its_tenant() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("user_is_bound_to_its_tenant", "root");
    }
    for members in [json!({ "users": [STRANGER] }), json!({ "groups": [STRANGER.to_string()] })] {
        let mut tenant = json!({ "name": "theirs", "model": "other", "allowed_models": [] });
        tenant.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let tenants = json!([{ "name": "nobody-is" }, tenant]);
        let daemon =
            Root::with_other().with("socket.mode", json!("0666")).with("tenants", tenants).start();
        fs::set_permissions(daemon.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let allowed = daemon.cli_as_stranger(&["embed", "a text"]);
        assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
        assert_eq!(seen(&daemon, "theirs")["requests"], 1);
        let refused = daemon.cli_as_stranger(&["embed", "--model", "bundled-mini", "a text"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(77), "{said}");
        assert!(said.contains("the tenant \"theirs\" may not request"), "{said}");
        assert_eq!(seen(&daemon, "theirs")["refused"], 1);
        assert_eq!(seen(&daemon, "nobody-is")["requests"], 0);
        // The test itself runs as root, which is trusted and belongs to no tenant.
        assert_eq!(model_of(&daemon.embeddings(&json!({ "input": "a" }))), Some("bundled-mini@1"));
        daemon.stop();
    }
}
