//! Tests of request bodies: refused before they arrive, too long, compressed, and in other
//! encodings of text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{io, thread};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::{Answer, BOUND, Connection, Daemon, EMBEDDINGS, Root, refused};

const GOOD: &[u8] = br#"{"input":"a text"}"#;

/// Requests that are refused without a look at their body, with the status of the answer.
const REFUSED: &[(&str, &str, &str, u16)] = &[
    ("POST", "/nope", "", 404),
    ("PUT", EMBEDDINGS, "", 405),
    ("POST", "/livez", "", 405),
    ("POST", "/v1/models", "", 405),
    ("DELETE", "/embed", "", 405),
    ("POST", "/api/tags", "", 405),
    ("POST", "/predict", "", 424),
    ("POST", EMBEDDINGS, "x-caxton-timeout-ms: soon\r\n", 400),
    ("POST", "/api/embed", "x-caxton-tenant: unknown\r\n", 400),
    // The body is longer than the limit, and short enough to be dropped.
    ("POST", EMBEDDINGS, "", 413),
    ("POST", "/api/show", "", 413),
    ("POST", "/embed_sparse", "", 413),
    ("POST", "/rerank", "", 413),
];

fn root() -> Root {
    Root::new().with("socket.max_body", json!("16KiB"))
}

/// Sends the head of a request, then its body in pieces. Between them, another connection gets an
/// answer, so that the daemon has seen each piece.
fn send_slowly(daemon: &Daemon, connection: &mut Connection, head: &str, pieces: &[&[u8]]) {
    let mut other = daemon.connect();
    connection.send(head.as_bytes());
    for piece in pieces {
        assert_eq!(other.request("GET", "/livez", &[], b"").status, 200);
        connection.send(piece);
    }
}

#[test]
fn refused_body_leaves_connection_usable() {
    let daemon = root().start();
    let mut connection = daemon.connect();
    let body = vec![b'a'; 20 << 10];
    let (first, second) = body.split_at(body.len() / 2);
    for (method, path, header, status) in REFUSED {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{header}");
        let declared = format!("{head}content-length: {}\r\n\r\n", body.len());
        send_slowly(&daemon, &mut connection, &declared, &[first, second]);
        let answer = connection.answer();
        assert_eq!(answer.status, *status, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("connection"), None, "{method} {path}");
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
        let size = format!("{:x}\r\n", body.len());
        send_slowly(
            &daemon,
            &mut connection,
            &chunked,
            &[size.as_bytes(), first, second, b"\r\n0\r\n\r\n"],
        );
        let answer = connection.answer();
        assert_eq!(answer.status, *status, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("connection"), None, "{method} {path}");
        let good = connection.request("POST", EMBEDDINGS, &[], GOOD);
        assert_eq!(good.status, 200, "after {method} {path}: {good:?}");
    }
    daemon.stop();
}

/// Sends all of a request before it reads the answer, as Python's standard client does. Fails if a
/// write or a read fails.
fn answer_after_sending(socket: &Path, head: &str, body: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    for piece in body.chunks(64 << 10) {
        stream.write_all(piece).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn client_with_long_body_reads_the_answer() {
    let daemon = Root::new().start();
    let body = vec![b'a'; 20_000_000];
    for (path, status) in [("/nope", "404"), (EMBEDDINGS, "413"), ("/embed", "413")] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\n");
        let declared = format!("{head}content-length: {}\r\n\r\n", body.len());
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        for head in [declared, chunked] {
            let answer = answer_after_sending(&daemon.socket(), &head, &body);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{head}: {answer}");
        }
    }
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    daemon.stop();
}

/// Copies bytes from `from` to `to` until the end.
fn relay(mut from: UnixStream, mut to: UnixStream) {
    // A connection that breaks ends the copy. The client notices it.
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

/// Returns a connection to the daemon through a proxy, which delays the end of a connection.
fn through_proxy(daemon: &Daemon) -> Connection {
    let (client, near) = UnixStream::pair().unwrap();
    let far = UnixStream::connect(daemon.socket()).unwrap();
    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || relay(near, far));
    thread::spawn(move || relay(far_too, near_too));
    Connection::over(client).unwrap()
}

#[test]
fn good_requests_after_refused_posts_are_answered() {
    let daemon = root().start();
    let lost: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut connection = through_proxy(daemon);
                    let mut lost = 0;
                    for request in 0..250 {
                        let (method, path, header, status) =
                            REFUSED[(client + request) % REFUSED.len()];
                        let body = vec![b'a'; 20 << 10];
                        let head = format!(
                            "{method} {path} HTTP/1.1\r\nhost: a\r\n{header}\
                             content-length: {}\r\n\r\n",
                            body.len()
                        );
                        connection.send(head.as_bytes());
                        connection.send(&body);
                        assert_eq!(connection.answer().status, status, "{method} {path}");
                        connection.ask("POST", EMBEDDINGS, &[], GOOD);
                        match connection.try_answer() {
                            Ok(answer) if answer.status == 200 => {}
                            _ => {
                                lost += 1;
                                connection = through_proxy(daemon);
                            }
                        }
                    }
                    lost
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(lost, 0, "of 1,000");
    daemon.stop();
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn send_encoded(daemon: &Daemon, path: &str, coding: &str, body: &[u8]) -> Answer {
    daemon.connect().request("POST", path, &[("content-encoding", coding)], body)
}

#[test]
fn compressed_bodies_are_decoded() {
    let daemon = Root::new().start();
    let texts: Vec<_> = (0..200).map(|index| format!("text number {index}")).collect();
    for (path, texts_field, found) in [
        (EMBEDDINGS, "input", "/data/199/embedding"),
        ("/embed", "inputs", "/199"),
        ("/api/embed", "input", "/embeddings/199"),
    ] {
        let body = json!({ texts_field: texts }).to_string();
        let vector = |answer: &Answer| answer.json().pointer(found).unwrap().clone();
        let plain = vector(&daemon.connect().request("POST", path, &[], body.as_bytes()));
        assert!(plain.is_array(), "{path}: {plain}");
        for (coding, body) in [
            ("gzip", gzip(body.as_bytes())),
            ("zstd", zstd::encode_all(body.as_bytes(), 3).unwrap()),
            ("identity", body.clone().into_bytes()),
        ] {
            let answer = send_encoded(&daemon, path, coding, &body);
            assert_eq!(answer.status, 200, "{path} {coding}: {answer:?}");
            assert_eq!(vector(&answer), plain, "{path} {coding}");
        }
    }
    daemon.stop();
}

#[test]
fn decoded_bodies_have_the_same_limits() {
    let daemon = Root::new().with("socket.max_body", json!("1MiB")).start();
    let long = json!({ "input": "a".repeat(256 << 20) }).to_string();
    let zstd = zstd::encode_all(long.as_bytes(), 1).unwrap();
    let gzip = gzip(long.as_bytes());
    assert!(zstd.len() < 1 << 20 && gzip.len() < 1 << 20, "the encoded bodies are short");
    for (coding, body) in [("zstd", &zstd), ("gzip", &gzip)] {
        let answer = send_encoded(&daemon, EMBEDDINGS, coding, body);
        refused(&answer, 413, "body_too_large", None, &["1.0 MiB of socket.max_body"]);
        let cut = send_encoded(&daemon, EMBEDDINGS, coding, &body[..20]);
        refused(&cut, 400, "invalid_request", None, &["incomplete"]);
        let plain = send_encoded(&daemon, EMBEDDINGS, coding, GOOD);
        refused(&plain, 400, "invalid_request", None, &["not valid", coding]);
    }
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    daemon.stop();
}

#[test]
fn other_encodings_of_text_are_named() {
    let daemon = Root::new().start();
    let json = r#"{"input":"größer"}"#;
    let units = json.encode_utf16();
    let utf16: Vec<u8> = units.clone().flat_map(u16::to_le_bytes).collect();
    let marked: Vec<u8> = [0xfeff].into_iter().chain(units).flat_map(u16::to_be_bytes).collect();
    let utf32: Vec<u8> = json.chars().flat_map(|char| u32::from(char).to_le_bytes()).collect();
    let latin: Vec<u8> = json.chars().map(|char| u8::try_from(u32::from(char)).unwrap()).collect();
    for (body, name) in
        [(utf16, "UTF-16"), (marked, "UTF-16"), (utf32, "UTF-32"), (latin, "not UTF-8 at byte 12")]
    {
        let answer = daemon.connect().request("POST", EMBEDDINGS, &[], &body);
        refused(&answer, 400, "invalid_request", None, &[name, "send UTF-8"]);
    }
    let plain = daemon.connect().request("POST", EMBEDDINGS, &[], json.as_bytes());
    let marked = format!("\u{feff}{json}");
    let marked = daemon.connect().request("POST", EMBEDDINGS, &[], marked.as_bytes());
    assert_eq!(marked.vectors(), plain.vectors());
    daemon.stop();
}

#[test]
fn lone_surrogates_are_replaced_on_every_route() {
    let daemon = Root::new().start();
    for (path, cut, whole) in [
        (EMBEDDINGS, r#"{"input":"cut \ud83d"}"#, json!({ "input": "cut \u{fffd}" })),
        ("/embed", r#"{"inputs":["\ude00 cut"]}"#, json!({ "inputs": ["\u{fffd} cut"] })),
        ("/api/embed", r#"{"input":"a\ud83d\ud83d"}"#, json!({ "input": "a\u{fffd}\u{fffd}" })),
        (EMBEDDINGS, r#"{"input":"\\ud83d \ud83d"}"#, json!({ "input": "\\ud83d \u{fffd}" })),
    ] {
        let vectors = |body: &[u8]| -> Value {
            let answer = daemon.connect().request("POST", path, &[], body);
            assert_eq!(answer.status, 200, "{answer:?}");
            let body = answer.json();
            let found = ["/data/0/embedding", "/embeddings/0", "/0"];
            found.iter().find_map(|found| body.pointer(found)).unwrap().clone()
        };
        assert_eq!(vectors(cut.as_bytes()), vectors(whole.to_string().as_bytes()), "{path}");
    }
    daemon.stop();
}
