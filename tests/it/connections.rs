//! Tests of connections: the accepted HTTP, many connections at once, slow ones, broken ones, and
//! more than allowed.

use std::sync::Barrier;
use std::thread;

use serde_json::json;

use crate::support::{Connection, EMBEDDINGS, Root, cosine, refused};

#[test]
fn host_and_content_type_are_ignored() {
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
        let request = format!("POST {EMBEDDINGS} HTTP/1.1\r\n{head}{length}\r\n{body}");
        let answer = daemon.send(request.as_bytes());
        assert_eq!(answer.status, 200, "{head}: {answer:?}");
        assert_eq!(answer.vectors(), expected, "{head}");
    }
    let old = format!("POST {EMBEDDINGS} HTTP/1.0\r\n{length}\r\n{body}");
    assert_eq!(daemon.send(old.as_bytes()).vectors(), expected);
    let absolute = daemon.send(b"GET http://localhost/livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(absolute.status, 200);
    daemon.stop();
}

#[test]
fn connection_carries_many_requests() {
    let daemon = Root::new().start();
    let mut connection = daemon.connect();
    let body = json!({ "input": "a" }).to_string();
    for _ in 0..20 {
        assert_eq!(connection.request("POST", EMBEDDINGS, &[], body.as_bytes()).status, 200);
        // A rejected request does not close the connection.
        assert_eq!(connection.request("POST", EMBEDDINGS, &[], b"{").status, 400);
        assert_eq!(connection.request("GET", "/nope", &[], b"").status, 404);
    }
    // Pipelined requests are answered in their order.
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
fn requests_over_queue_limit_get_429() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Token ids need no tokenizing, so the model is the slowest part and requests wait for it.
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
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    daemon.stop();
}

#[test]
fn disconnecting_clients_do_not_affect_others() {
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
    // The daemon cancels or finishes the requests of closed connections; none stays in the queue.
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
fn slow_headers_do_not_block_others() {
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
fn expect_header_gets_100_continue() {
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

/// Begins a request whose body is not complete, so that the connection is not idle.
fn begin(connection: &mut Connection) {
    connection.send(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
          content-length: 13\r\n\r\n",
    );
    assert_eq!(connection.answer().status, 100);
}

#[test]
fn idle_connection_yields_to_one_of_its_user() {
    let daemon = Root::new().with("socket.max_connections", json!(2)).start();
    let (mut idle, mut busy) = (daemon.connect(), daemon.connect());
    assert_eq!(idle.request("GET", "/livez", &[], b"").status, 200);
    begin(&mut busy);
    daemon.until("the connection to be idle for long enough", || {
        (daemon.get("/v1/models").status == 200).then_some(())
    });
    assert!(idle.until_closed().is_empty());
    busy.send(b"{\"input\":\"a\"}");
    assert_eq!(busy.answer().status, 200);
    daemon.stop();
}

#[test]
fn connections_over_the_limit_get_503() {
    let daemon = Root::new().with("socket.max_connections", json!(2)).start();
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    begin(&mut first);
    begin(&mut second);
    for _ in 0..20 {
        let mut third = daemon.connect();
        let answer = third.request("GET", "/v1/models", &[], b"");
        refused(&answer, 503, "too_many_connections", None, &["socket.max_connections"]);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(third.until_closed().is_empty());
    }
    // A connection over the limit can still use the health routes.
    for path in ["/livez", "/readyz", "/health"] {
        let mut third = daemon.connect();
        assert_eq!(third.request("GET", path, &[], b"").status, 200, "{path}");
        assert!(third.until_closed().is_empty());
    }
    first.send(b"{\"input\":\"a\"}");
    assert_eq!(first.answer().status, 200);
    drop(first);
    daemon.until("a free place", || (daemon.get("/v1/models").status == 200).then_some(()));
    drop(second);
    daemon.stop();
}
