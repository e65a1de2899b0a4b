//! Tests of retries after overload: their times spread, so that clients with few retries succeed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Connection, EMBEDDINGS, Root, refused};

/// Clients that send a request at the same time.
const BURST: usize = 48;
/// Retries of OpenAI's clients.
const RETRIES: usize = 2;

/// Waits for `time`, as a client does before a retry.
fn back_off(time: Duration) {
    let (_sender, never) = mpsc::channel::<()>();
    // The channel is open, so this ends at the timeout.
    never.recv_timeout(time).unwrap_err();
}

/// Sends a request and obeys the retry times exactly. Returns them, and whether the request
/// succeeded.
fn with_retries(connection: &mut Connection, body: &str) -> (Vec<Duration>, bool) {
    let mut delays = Vec::new();
    loop {
        let answer = connection.request("POST", EMBEDDINGS, &[], body.as_bytes());
        if answer.status == 200 {
            return (delays, true);
        }
        refused(&answer, 429, "overloaded", None, &["bundled-mini"]);
        let number = |name| answer.header(name).unwrap().parse::<u64>().unwrap();
        let (millis, seconds) = (number("retry-after-ms"), number("retry-after"));
        assert_eq!(seconds, millis / 1000 + 1, "{millis} ms, rounded up");
        if delays.len() == RETRIES {
            return (delays, false);
        }
        delays.push(Duration::from_millis(millis));
        back_off(Duration::from_millis(millis));
    }
}

#[test]
fn burst_on_queue_of_one_succeeds_after_retries() {
    let daemon = Root::new().with("embedding.queue_size", json!(1)).start();
    // Token ids need no tokenizing, so the model is the slowest part and requests wait for it.
    let body = json!({ "input": vec![vec![5; 48]; 32] }).to_string();
    // The daemon measures its throughput.
    for _ in 0..10 {
        let answer = daemon.connect().request("POST", EMBEDDINGS, &[], body.as_bytes());
        assert_eq!(answer.status, 200);
    }
    let together = Barrier::new(BURST);
    let outcomes: Vec<(Vec<Duration>, bool)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..BURST)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = daemon.connect();
                    together.wait();
                    with_retries(&mut connection, &body)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let delays: Vec<_> = outcomes.iter().flat_map(|(delays, _)| delays).copied().collect();
    assert!(delays.len() > BURST / 4, "few requests were refused: {delays:?}");
    assert!(delays.iter().all(|delay| *delay >= Duration::from_millis(250)), "{delays:?}");
    let distinct: BTreeSet<_> = delays.iter().collect();
    assert!(distinct.len() > delays.len() / 2, "{delays:?}");
    let failed = outcomes.iter().filter(|(_, succeeded)| !succeeded).count();
    assert_eq!(failed, 0, "of {BURST}: {outcomes:?}");
    daemon.stop();
}

#[test]
fn overload_status_is_configured_except_for_ollama() {
    let daemon = Root::new()
        .with("embedding.queue_size", json!(1))
        .with("socket.overload_status", json!(503))
        .start();
    let long = json!({ "input": vec![vec![5; 48]; 2048] }).to_string();
    let mut crowd: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for connection in &mut crowd {
        connection.ask("POST", EMBEDDINGS, &[], long.as_bytes());
    }
    let answers: Vec<_> = crowd.iter_mut().map(Connection::answer).collect();
    let others: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!others.is_empty(), "no request was refused");
    for answer in others {
        refused(answer, 503, "overloaded", None, &["bundled-mini"]);
        assert!(answer.header("retry-after-ms").is_some(), "{answer:?}");
        assert_eq!(answer.header("x-should-retry"), None);
    }
    daemon.stop();
}
