//! Tests that the log records of the source and the entries of the journal catalog are the same
//! list.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use caxton::telemetry::log::{Message, Priority};

use crate::readme::pages;
use crate::support::skipped;

/// Fields of journald itself that the catalog may use.
const OWN: &[&str] = &["MESSAGE", "CODE_FILE", "CODE_LINE", "CODE_MODULE"];

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// One `tracing` event in the source.
#[derive(Debug, PartialEq, Eq)]
struct LogEvent {
    level: &'static str,
    kind: Option<String>,
    fields: BTreeSet<String>,
}

/// Returns the arguments of a macro call; `text` begins after its opening parenthesis.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut in_text, mut escaped) = (0, 0, false, false);
    let mut found = Vec::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'(' | b'[' | b'{' => depth += 1,
            b')' if depth == 0 => {
                found.push(text[start..at].trim());
                return found;
            }
            b')' | b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    panic!("a macro does not end: {text}");
}

/// Returns the events in `text` at info and above, outside of tests.
fn log_events(text: &str) -> Vec<LogEvent> {
    let code = text.split("\n#[cfg(test)]").next().unwrap();
    let levels =
        [("error", "tracing::error!("), ("warn", "tracing::warn!("), ("info", "tracing::info!(")];
    let mut found = Vec::new();
    for (level, begin) in levels {
        for (at, _) in code.match_indices(begin) {
            let arguments = arguments(&code[at + begin.len()..]);
            let named =
                |argument: &&str| argument.strip_prefix("name: Message::").map(str::to_owned);
            let kind = arguments.first().and_then(named);
            let kind = kind.map(|kind| kind.trim_end_matches(".name()").to_owned());
            let fields = arguments.iter().take_while(|argument| !argument.starts_with('"'));
            let fields = fields.filter(|argument| !argument.starts_with("name:"));
            let name = |argument: &&str| {
                let name = argument.trim_start_matches(['%', '?']);
                name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .next()
                    .unwrap()
                    .to_owned()
            };
            found.push(LogEvent { level, kind, fields: fields.map(name).collect() });
        }
    }
    found
}

fn level(priority: Priority) -> &'static str {
    match priority {
        Priority::Critical | Priority::Error => "error",
        Priority::Warning => "warn",
        Priority::Informational => "info",
        Priority::Debug => "debug",
    }
}

/// Returns the problem of an event, if it has one.
fn problem(event: &LogEvent) -> Option<String> {
    let of = |kind: &String| Message::ALL.iter().find(|message| format!("{message:?}") == *kind);
    let Some(message) = event.kind.as_ref().and_then(of) else {
        return Some("has no kind".to_owned());
    };
    if level(message.priority()) != event.level {
        return Some(format!("is at {}, its kind at {:?}", event.level, message.priority()));
    }
    let missing: Vec<_> =
        message.fields().iter().filter(|field| !event.fields.contains(**field)).collect();
    (!missing.is_empty()).then(|| format!("lacks {missing:?}"))
}

/// Returns every event of the source with its file.
fn all_log_events() -> Vec<(PathBuf, LogEvent)> {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for child in fs::read_dir(directory).unwrap() {
            let path = child.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.extend(log_events(&text).into_iter().map(|event| (path.clone(), event)));
            }
        }
    }
    assert!(found.len() > 70, "the source was not found");
    found
}

#[test]
fn every_event_has_kind_level_and_fields() {
    let problems = all_log_events().into_iter().filter_map(|(path, event)| {
        let problem = problem(&event)?;
        Some(format!("{}: {event:?} {problem}", path.display()))
    });
    let problems: Vec<String> = problems.collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_kind_has_an_event() {
    let events = all_log_events();
    let kinds: BTreeSet<&str> =
        events.iter().filter_map(|(_, event)| event.kind.as_deref()).collect();
    let unused = Message::ALL.iter().filter(|message| {
        // The writer thread of the log builds this record itself, because it cannot log.
        **message != Message::RecordsLost && !kinds.contains(format!("{message:?}").as_str())
    });
    assert_eq!(Vec::from_iter(unused), [] as [&Message; 0], "kinds without an event");
}

#[test]
fn malformed_events_are_detected() {
    let read = |text: &str| log_events(text).remove(0);
    let right =
        "tracing::error!(\n  name: Message::StoreFailed.name(),\n  error = f(a, \"x, )\"), \"b\");";
    assert_eq!(problem(&read(right)), None);
    for text in [
        "tracing::info!(model, \"no kind\");",
        "tracing::info!(name: Message::None.name(), \"unknown kind\");",
        "tracing::warn!(name: Message::Stopped.name(), \"wrong level\");",
        "tracing::info!(name: Message::Stopping.name(), \"{signal} is no field\");",
    ] {
        assert!(problem(&read(text)).is_some(), "{text}");
    }
    assert!(log_events("a\n#[cfg(test)]\ntracing::info!(\"a\");").is_empty());
}

/// Entry of the catalog.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) id: String,
    headers: BTreeMap<String, String>,
    body: String,
}

pub(super) fn catalog() -> Vec<Explained> {
    let text = source("packaging/journal/caxton.catalog");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = lines.join("\n");
    let entries = text.split("\n-- ").skip(1).map(|entry| {
        let (head, body) = entry.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let id = lines.next().unwrap().to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        Explained { id, headers: lines.map(header).collect(), body: body.trim().to_owned() }
    });
    entries.collect()
}

impl Explained {
    /// Returns the record fields that the entry uses.
    pub(super) fn used(&self) -> BTreeSet<String> {
        let text = format!("{}\n{}", self.headers["Subject"], self.body);
        text.split('@').skip(1).step_by(2).map(str::to_owned).collect()
    }

    pub(super) fn message(&self) -> Message {
        let found = Message::ALL.iter().find(|message| message.id() == self.id);
        *found.unwrap_or_else(|| panic!("no kind has the id {}", self.id))
    }
}

pub(super) fn in_journal(field: &str) -> String {
    format!("CAXTON_{}", field.to_uppercase())
}

#[test]
fn every_kind_has_a_valid_catalog_entry() {
    let catalog = catalog();
    let ids: Vec<&str> = catalog.iter().map(|explained| explained.id.as_str()).collect();
    let all: Vec<&str> = Message::ALL.iter().map(|message| message.id()).collect();
    assert_eq!(ids, all);
    for explained in &catalog {
        let message = explained.message();
        let fields: BTreeSet<String> =
            message.fields().iter().map(|field| in_journal(field)).collect();
        for used in explained.used() {
            let is_there = OWN.contains(&used.as_str()) || fields.contains(&used);
            assert!(is_there, "{message:?} has no {used}");
        }
        assert_eq!(explained.headers["Defined-By"], "Caxton");
        for pointer in ["Support", "Documentation"] {
            assert!(explained.headers[pointer].starts_with("man:"), "{message:?}");
        }
        assert!(!explained.body.is_empty() && !explained.body.contains("://"), "{message:?}");
    }
}

#[test]
fn catalog_describes_every_field_and_no_other() {
    let text = source("packaging/journal/caxton.catalog");
    let described = text.lines().filter_map(|line| {
        line.strip_prefix("#   CAXTON_")?.split_whitespace().next().map(str::to_lowercase)
    });
    let described: BTreeSet<String> = described.collect();
    let logged = all_log_events().into_iter().flat_map(|(_, event)| event.fields);
    let mut fields: BTreeSet<String> = logged.filter(|field| field != "errno").collect();
    let declared = Message::ALL.iter().flat_map(|message| message.fields());
    fields.extend(declared.chain(&["event"]).map(ToString::to_string));
    let missing: Vec<_> = fields.difference(&described).collect();
    let unknown: Vec<_> = described.difference(&fields).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn systemd_reads_the_catalog() {
    let test = "systemd_reads_the_catalog";
    let Ok(version) = Command::new("journalctl").arg("--version").output() else {
        return skipped(test, "journalctl");
    };
    assert!(version.status.success());
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("usr/lib/systemd/catalog");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("caxton.catalog"), source("packaging/journal/caxton.catalog")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("journalctl");
        let output = command.arg("--root").arg(root.path()).args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["--update-catalog"]);
    let list = run(&["--list-catalog"]);
    assert_eq!(list.lines().count(), Message::ALL.len(), "{list}");
    for explained in catalog() {
        let dumped = run(&["--dump-catalog", &explained.id]);
        assert!(dumped.contains(&explained.headers["Subject"]), "{dumped}");
        assert!(dumped.contains(explained.body.lines().last().unwrap()), "{dumped}");
    }
}

#[test]
fn documented_message_ids_exist() {
    let pages = pages();
    let after = pages.iter().flat_map(|page| page.text.split("MESSAGE_ID=").skip(1));
    let ids: Vec<&str> = after.map(|rest| &rest[..32]).collect();
    assert!(!ids.is_empty());
    for id in ids {
        assert!(Message::ALL.iter().any(|message| message.id() == id), "{id}");
    }
}
