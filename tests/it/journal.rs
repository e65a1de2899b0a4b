//! Tests of the journal: the records and their fields, and the data that they must never contain.
//!
//! The daemon is started in a mount namespace of its own, in which the test's socket lies at
//! journald's path.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::catalog::{catalog, in_journal};
use crate::support::packages::{entry, flip_a_bit_of};
use crate::support::{BOUND, Daemon, Root, skipped};

/// Fields of a record as journald receives them.
type Record = BTreeMap<String, String>;

/// Parses a datagram as journald does.
fn parse(mut bytes: &[u8]) -> Record {
    let mut fields = Record::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                bytes = rest;
                (&line[..at], &line[at + 1..])
            }
            None => {
                let (length, rest) = rest.split_at(8);
                let length = u64::from_le_bytes(length.try_into().unwrap());
                let (value, rest) = rest.split_at(length.try_into().unwrap());
                bytes = rest.strip_prefix(b"\n").unwrap();
                (line, value)
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let before = fields.insert(text(name), text(value));
        assert_eq!(before, None, "a field that is there twice");
    }
    fields
}

/// Test double for journald. It receives a record only when the test requests one.
struct Journald {
    directory: TempDir,
    socket: Option<UnixDatagram>,
}

impl Journald {
    /// Creates the socket; returns `None` where a mount namespace cannot be created, and prints
    /// that `test` is skipped.
    fn new(test: &str) -> Option<Self> {
        let unshared = Command::new("unshare").args(["--mount", "true"]).output();
        if !unshared.is_ok_and(|output| output.status.success()) {
            skipped(test, "root and unshare");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        Some(Self { directory, socket: Some(socket) })
    }

    /// Removes the socket, so that no receiver and no file is left at the path.
    fn remove(&mut self) {
        self.socket = None;
        fs::remove_file(self.directory.path().join("socket")).unwrap();
    }

    /// Starts a daemon that takes its stderr for a stream to the journal.
    fn start(&self, root: Root) -> Daemon {
        // journald's path is the same for every service and cannot be configured, so the test's
        // socket is mounted there.
        let script = r#"
            mount -t tmpfs tmpfs /run
            mkdir -p /run/systemd/journal
            mount --bind "$PLACE" /run/systemd/journal
            JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
            export JOURNAL_STREAM
            exec "$0" "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", script]);
        command.arg(env!("CARGO_BIN_EXE_caxtond")).env("PLACE", self.directory.path());
        let daemon = Daemon::spawn(root, command);
        daemon.wait_notified("READY=1");
        daemon
    }

    fn next(&self) -> Record {
        let mut bytes = vec![0; 1 << 18];
        let length = self.socket.as_ref().unwrap().recv(&mut bytes).unwrap();
        parse(&bytes[..length])
    }

    /// Returns the next record of this kind, and appends it and the records before it to `seen`.
    fn wait(&self, message: Message, seen: &mut Vec<Record>) -> Record {
        loop {
            let record = self.next();
            seen.push(record.clone());
            if record.get("MESSAGE_ID").is_some_and(|id| id == message.id()) {
                return record;
            }
        }
    }
}

fn assert_shown(record: &Record) {
    for (name, value) in record {
        let may = |c: char| !c.is_control() || name == "MESSAGE" && "\n\t".contains(c);
        assert!(value.chars().all(may), "{name} is {value:?}");
    }
}

/// Stops the daemon. Checks that each of its records has the priority of its kind, and the fields
/// that the kind and the catalog require.
fn stop_and_check_records(journald: &Journald, daemon: Daemon, mut seen: Vec<Record>) {
    daemon.signal(Signal::SIGTERM);
    journald.wait(Message::Stopped, &mut seen);
    assert_eq!(daemon.wait_exit().0, 0);
    let catalog = catalog();
    for record in &seen {
        assert_shown(record);
        let Some(id) = record.get("MESSAGE_ID") else {
            assert_eq!(record["PRIORITY"], "7", "{record:?}");
            continue;
        };
        let explained = catalog.iter().find(|explained| explained.id == *id).unwrap();
        let message = explained.message();
        assert_eq!(record["PRIORITY"], (message.priority() as u8).to_string(), "{record:?}");
        assert_eq!(record["CAXTON_EVENT"], message.name());
        for field in message.fields() {
            assert!(record.contains_key(&in_journal(field)), "{message:?} lacks {field}");
        }
        for used in explained.used() {
            assert!(record.contains_key(&used), "{message:?} lacks {used}");
        }
    }
}

#[test]
fn start_is_logged_with_source_and_model() {
    let Some(journald) = Journald::new("start_is_logged_with_source_and_model") else { return };
    let daemon = journald.start(Root::new());
    let mut seen = Vec::new();
    let starting = journald.wait(Message::Starting, &mut seen);
    assert_eq!(starting["SYSLOG_IDENTIFIER"], "caxtond");
    assert_eq!(starting["CODE_FILE"], "src/daemon/mod.rs");
    assert_eq!(starting["CODE_MODULE"], "caxton::daemon");
    assert_eq!(starting["TID"], daemon.pid().to_string(), "the first thread has the process's id");
    let loaded = journald.wait(Message::ModelLoaded, &mut seen);
    assert!(loaded["CAXTON_MODEL"].starts_with("bundled-mini@1"), "{loaded:?}");
    assert!(loaded["CAXTON_BYTES"].parse::<u64>().unwrap() > 0, "{loaded:?}");
    loaded["CAXTON_DURATION_MS"].parse::<u64>().unwrap();
    journald.wait(Message::Ready, &mut seen);
    stop_and_check_records(&journald, daemon, seen);
}

#[test]
fn rejected_package_is_logged_as_error() {
    let Some(journald) = Journald::new("rejected_package_is_logged_as_error") else { return };
    let daemon = journald.start(Root::new());
    let name = "bad-1.model.tar.zst";
    fs::write(daemon.drop_directory().join(name), b"not a package").unwrap();
    let mut seen = Vec::new();
    let refused = journald.wait(Message::PackageRefused, &mut seen);
    assert_eq!((refused["PRIORITY"].as_str(), refused["CAXTON_FILE"].as_str()), ("3", name));
    stop_and_check_records(&journald, daemon, seen);
}

#[test]
fn changed_weights_are_logged_as_critical() {
    let Some(journald) = Journald::new("changed_weights_are_logged_as_critical") else { return };
    // The check at the start would find the change first and repair the model.
    let root = Root::new().with("memory.model_cache.validation_on_startup", json!(false));
    let daemon = journald.start(root);
    let weights = entry(&daemon, "bundled-mini").join("model.safetensors");
    flip_a_bit_of(&weights);
    let verified = daemon.post("/api/packages/bundled-mini/verify", &Value::Null);
    assert_ne!(verified.status, 200, "{verified:?}");
    let mut seen = Vec::new();
    let failed = journald.wait(Message::IntegrityFailure, &mut seen);
    assert_eq!(failed["PRIORITY"], "2");
    stop_and_check_records(&journald, daemon, seen);
}

#[test]
fn invalid_configuration_is_logged() {
    let Some(journald) = Journald::new("invalid_configuration_is_logged") else { return };
    let daemon = journald.start(Root::new());
    daemon.write_config("no_such_key: 1\n");
    let mut seen = Vec::new();
    journald.wait(Message::ConfigurationProblem, &mut seen);
    journald.wait(Message::ConfigurationRefused, &mut seen);
    stop_and_check_records(&journald, daemon, seen);
}

#[test]
fn system_error_is_logged_with_errno() {
    let Some(journald) = Journald::new("system_error_is_logged_with_errno") else { return };
    let daemon = journald.start(Root::new());
    fs::remove_dir_all(daemon.drop_directory()).unwrap();
    let mut seen = Vec::new();
    let unreadable = journald.wait(Message::DirectoryUnreadable, &mut seen);
    assert_eq!((unreadable["PRIORITY"].as_str(), unreadable["ERRNO"].as_str()), ("4", "2"));
    stop_and_check_records(&journald, daemon, seen);
}

#[test]
fn blocked_journald_stalls_nothing_and_losses_are_logged() {
    let test = "blocked_journald_stalls_nothing_and_losses_are_logged";
    let Some(journald) = Journald::new(test) else { return };
    let daemon = journald.start(Root::new());
    let lost = || {
        let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = text.lines().find(|line| line.starts_with("caxton_log_records_lost_total "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(lost(), 0);
    // Each request writes a record; together they overflow the queue of records.
    let mut connection = daemon.connect();
    let flushes = (0..40).take_while(|_| {
        for _ in 0..50 {
            let flushed = connection.request("POST", "/api/memory/flush", &[], b"");
            assert_eq!(flushed.status, 200, "{flushed:?}");
        }
        lost() == 0
    });
    assert!(flushes.count() < 40, "nothing was lost");
    assert_eq!(daemon.embed(json!(["the pump runs hot"])).len(), 1);

    let mut seen = Vec::new();
    let told = journald.wait(Message::RecordsLost, &mut seen);
    assert_eq!(told["PRIORITY"], "4");
    assert_eq!(told["CAXTON_LOST"].parse::<u64>().unwrap(), lost());
    let is_flush = |record: &Record| {
        record.get("CAXTON_EVENT").is_some_and(|name| name == Message::MemoryFlushed.name())
    };
    assert!(seen.iter().any(is_flush));
    daemon.signal(Signal::SIGTERM);
    journald.wait(Message::Stopped, &mut seen);
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn without_journald_socket_stderr_lines_have_priorities() {
    let test = "without_journald_socket_stderr_lines_have_priorities";
    let Some(mut journald) = Journald::new(test) else { return };
    journald.remove();
    let daemon = journald.start(Root::new());
    let first = daemon.wait_event(Message::JournalUnreachable);
    assert!(first.starts_with("<4>journal-unreachable: "), "{first}");
    let loaded = daemon.wait_event_with(Message::ModelLoaded, &["model=bundled-mini@1"]);
    assert!(loaded.starts_with("<6>model-loaded: "), "{loaded}");
    let ready = daemon.wait_event_with(Message::Ready, &["status="]);
    assert!(ready.starts_with("<6>ready: "), "{ready}");
}

/// File name that contains a line break, field assignments, and control characters for the
/// terminal.
const HOSTILE: &str = "bad\nMESSAGE_ID=0\nPRIORITY=0\n\u{1b}[31m\r\u{202e}-1.model.tar.zst";

#[test]
fn hostile_file_name_cannot_add_record_fields() {
    let test = "hostile_file_name_cannot_add_record_fields";
    let Some(journald) = Journald::new(test) else { return };
    let daemon = journald.start(Root::new());
    fs::write(daemon.drop_directory().join(HOSTILE), b"not a package").unwrap();
    let mut seen = Vec::new();
    let refused = journald.wait(Message::PackageRefused, &mut seen);
    assert_eq!((refused["PRIORITY"].as_str(), refused.contains_key("CAXTON_FILE")), ("3", true));
    assert!(refused["CAXTON_FILE"].contains("MESSAGE_ID=0"), "{refused:?}");
    seen.iter().for_each(assert_shown);
}

#[test]
fn hostile_names_cannot_add_log_lines() {
    let daemon = Root::new().start();
    fs::write(daemon.drop_directory().join(HOSTILE), b"not a package").unwrap();
    daemon.wait_event(Message::PackageRefused);
    let body = json!({ "model": HOSTILE, "input": "a" });
    assert_eq!(daemon.embeddings(&body).status, 404);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event(Message::Stopped);
    for line in daemon.log() {
        let is_whole = line.starts_with(|c: char| c.is_ascii_digit());
        assert!(is_whole && !line.chars().any(char::is_control), "{line:?}");
    }
    assert_eq!(daemon.wait_exit().0, 0);
}

/// Part of the text of requests, which no record may contain.
const SECRET: &str = "zanzibar-marker";

/// Returns requests with `text` for every route that accepts texts. Ten of them are valid.
fn requests_with(text: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("/v1/embeddings", json!({ "input": text })),
        ("/v1/embeddings", json!({ "input": [text, text], "user": SECRET })),
        ("/v1/embeddings", json!({ "input": text, "model": "unknown" })),
        ("/v1/embeddings", json!({ "input": { "text": text } })),
        ("/v1/embeddings", json!({ "input": text, "dimensions": 100_000 })),
        ("/v1/embeddings", json!({ "input": vec![text; 3000] })),
        ("/v1/embeddings", json!({ "input": [text.repeat(2000)], "truncate": false })),
        ("/v1/rank", json!({ "query": text, "documents": [text, "other"], "mode": "hybrid" })),
        ("/v1/rank", json!({ "query": [text], "documents": text })),
        ("/api/embed", json!({ "model": "bundled-mini", "input": text })),
        ("/api/embed", json!({ "model": "bundled-mini", "input": 7, "options": text })),
        ("/api/embeddings", json!({ "model": "bundled-mini", "prompt": text })),
        ("/embed", json!({ "inputs": text })),
        ("/embed", json!({ "inputs": [text, 1] })),
        ("/embed_all", json!({ "inputs": text })),
        ("/embed_sparse", json!({ "inputs": text })),
        ("/predict", json!({ "inputs": text })),
        ("/tokenize", json!({ "inputs": text })),
        ("/rerank", json!({ "query": text, "texts": [text] })),
        (
            "/similarity",
            json!({ "inputs": { "source_sentence": text, "sentences": [text, text] } }),
        ),
    ]
}

#[test]
fn texts_and_vectors_of_requests_are_never_logged() {
    let daemon = Root::new().with("log.level", json!("trace")).start();
    let text = format!("{SECRET} runs hot");
    let mut succeeded = 0;
    for (path, body) in &requests_with(&text) {
        succeeded += usize::from(daemon.post(path, body).status == 200);
        let whole = body.to_string();
        // The JSON is malformed, because its end is missing, but it still contains the text.
        let cut = &whole.as_bytes()[..whole.len() - 1];
        let answer = daemon.connect().request("POST", path, &[], cut);
        assert!(answer.status >= 400, "{path}: {answer:?}");
    }
    assert_eq!(succeeded, 10, "requests that were answered");
    let mut gone = daemon.connect();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n";
    gone.send(format!("{head}{{\"input\": \"{text}").as_bytes());
    drop(gone);
    // A debug record has no kind. This one has the caller and the error of the connection.
    daemon.until("the record of the closed connection", || {
        let is_meant = |line: &String| {
            ["DEBUG", "uid=", "pid=", "error="].iter().all(|fragment| line.contains(fragment))
        };
        daemon.log().iter().any(is_meant).then_some(())
    });
    let vector = &daemon.embed(json!([text]))[0];
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event(Message::Stopped);
    let log = daemon.log();
    assert!(log.iter().any(|line| line.contains("DEBUG")), "the log is at its lowest level");
    // A short number could be a part of any other number.
    let numbers = vector.iter().map(f32::to_string).filter(|number| number.len() > 8);
    let numbers: Vec<String> = numbers.collect();
    assert!(numbers.len() > vector.len() / 2, "{numbers:?}");
    for line in &log {
        assert!(!line.contains(SECRET), "{line}");
        assert!(!numbers.iter().any(|number| line.contains(number)), "{line}");
    }
    assert_eq!(daemon.wait_exit().0, 0);
}
