//! `caxton events`: prints events, one line each.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Request;
use clap::Args;
use http_body_util::BodyExt;

use super::client::broken;
use super::{Connection, terminal};
use crate::api::wire::events::Event;
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::Bytes;

/// Longest line of an answer. Those of the daemon are under 64 KiB, but another program may listen
/// on the socket.
const MAX_LINE: usize = 1 << 20;

/// Show the events of models, memory, packages and the configuration.
///
/// The command prints the last 256 events, which the daemon keeps, and then each new event until
/// the daemon stops.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Print each event as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Event id after which to begin; 0 prints all events that the daemon keeps.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    since: u64,
    /// Stop after the last event that the daemon keeps.
    #[arg(long)]
    no_follow: bool,
}

impl Events {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut client = connection.connect().await?;
        let path = format!("/v1/events?since={}&follow={}", self.since, !self.no_follow);
        let request = Request::get(path).header("accept", "text/event-stream");
        let mut body = client.send(request, Body::empty()).await?.into_body();
        let mut lines = LineSplitter::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            for line in lines.feed(&data)? {
                if let Some(json) = line.strip_prefix("data:") {
                    self.print(json.trim_start())?;
                }
            }
        }
        Ok(Exit::Ok)
    }

    fn print(&self, json: &str) -> anyhow::Result<()> {
        let event: Event = serde_json::from_str(json).map_err(broken)?;
        // Flush after each event, since the reader of a pipe waits for it.
        if self.json {
            let mut out = terminal::json();
            writeln!(out, "{json}")?;
            Ok(out.flush()?)
        } else {
            let mut out = terminal::out();
            writeln!(out, "{}", line(&event))?;
            Ok(out.flush()?)
        }
    }
}

/// Splitter of a streamed answer into lines.
#[derive(Default)]
struct LineSplitter(Vec<u8>);

impl LineSplitter {
    /// Appends `data` and returns the lines that are complete.
    fn feed(&mut self, data: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(piece);
            if self.0.len() > MAX_LINE {
                anyhow::bail!("the daemon sent a line of more than {}", Bytes(MAX_LINE as u64));
            }
            if piece.ends_with(b"\n") {
                let line = String::from_utf8(std::mem::take(&mut self.0)).map_err(broken)?;
                lines.push(line.trim_end().to_owned());
            }
        }
        Ok(lines)
    }
}

/// Formats an event for a terminal: time, kind, model or file, reason.
fn line(event: &Event) -> String {
    format!("{}  {}", format_time(event), describe(event))
}

/// Formats the time of an event in UTC, to the second.
fn format_time(event: &Event) -> String {
    match event.at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at))) {
        Some(at) => humantime::format_rfc3339_seconds(at).to_string(),
        None => "-".to_owned(),
    }
}

/// Formats a time such as `9m 59s`.
pub(super) fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Formats an event in one line, without its time.
pub(super) fn describe(event: &Event) -> String {
    let mut words = vec![event.kind.replace('_', " ")];
    words.extend(
        event.model.iter().chain(&event.file).map(|name| printable::line(name).into_owned()),
    );
    words.extend(event.answered_by.as_ref().map(|model| format!("answered by {model}")));
    if let Some(level) = &event.level {
        words.push(level.clone());
        words.extend(event.level_before.as_ref().map(|before| format!("(was {before})")));
    }
    words.extend(event.state.as_ref().map(|state| state.replace('_', " ")));
    if let (Some(version), Some(before)) = (&event.version, &event.version_before) {
        words.push(format!("to {version} (was {before})"));
    }
    words.extend((!event.models.is_empty()).then(|| event.models.join(", ")));
    words.extend(event.retry_in_seconds.map(|seconds| format!("(retried in {})", time(seconds))));
    words.extend(event.generation.map(|generation| format!("(applied {generation} times)")));
    words.extend(event.bytes.filter(|bytes| *bytes > 0).map(|bytes| Bytes(bytes).to_string()));
    words.extend(event.duration_ms.map(|millis| format!("in {millis} ms")));
    words.extend(event.missed.map(|missed| format!("{missed} events were missed")));
    let mut line = words.join(" ");
    let reasons = event.reason.iter().chain(&event.problems);
    let reasons = Vec::from_iter(reasons.map(|reason| printable::line(reason))).join("; ");
    if !reasons.is_empty() {
        line = format!("{line}: {reasons}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(kind: &str) -> Event {
        Event { at: Some(1_795_271_473), kind: kind.to_owned(), ..Event::default() }
    }

    #[test]
    fn event_is_one_line_of_known_fields() {
        for (event, expected) in [
            (
                Event {
                    model: Some("mini@1".to_owned()),
                    bytes: Some(23 << 20),
                    duration_ms: Some(31),
                    ..event("model_loaded")
                },
                "2026-11-21T14:31:13Z  model loaded mini@1 23.0 MiB in 31 ms",
            ),
            (
                Event {
                    level: Some("high".to_owned()),
                    level_before: Some("normal".to_owned()),
                    reason: Some("it is".to_owned()),
                    ..event("pressure_changed")
                },
                "2026-11-21T14:31:13Z  pressure changed high (was normal): it is",
            ),
            (
                Event {
                    file: Some("a\u{1b}[31m\n".to_owned()),
                    problems: vec!["one".to_owned(), "two\nlines".to_owned()],
                    ..event("package_refused")
                },
                "2026-11-21T14:31:13Z  package refused a\\u{1b}[31m\\n: one; two\\nlines",
            ),
            (
                Event {
                    file: Some("a".to_owned()),
                    retry_in_seconds: Some(600),
                    reason: Some("full".to_owned()),
                    ..event("package_failed")
                },
                "2026-11-21T14:31:13Z  package failed a (retried in 10m): full",
            ),
            (
                Event {
                    file: Some("a".to_owned()),
                    state: Some("kept_out".to_owned()),
                    ..event("package_waiting")
                },
                "2026-11-21T14:31:13Z  package waiting a kept out",
            ),
            (
                Event {
                    model: Some("m".to_owned()),
                    version_before: Some("2".to_owned()),
                    version: Some("1".to_owned()),
                    ..event("model_rolled_back")
                },
                "2026-11-21T14:31:13Z  model rolled back m to 1 (was 2)",
            ),
            (
                Event {
                    models: vec!["a@1".to_owned(), "b@2".to_owned()],
                    bytes: Some(23 << 20),
                    ..event("memory_flushed")
                },
                "2026-11-21T14:31:13Z  memory flushed a@1, b@2 23.0 MiB",
            ),
            (
                Event { at: None, missed: Some(7), ..event("lagged") },
                "-  lagged 7 events were missed",
            ),
        ] {
            assert_eq!(line(&event), expected);
        }
    }

    #[test]
    fn endless_line_is_refused() {
        let mut lines = LineSplitter::default();
        assert!(lines.feed(&vec![b'a'; MAX_LINE]).unwrap().is_empty());
        assert!(lines.feed(b"a").is_err());
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_chunks(
            text in "([a-z: ]{0,8}\n){0,6}", cuts in proptest::collection::vec(0_usize..60, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut lines = LineSplitter::default();
            let mut found = Vec::new();
            for piece in cuts.windows(2) {
                found.extend(lines.feed(&text.as_bytes()[piece[0]..piece[1]]).unwrap());
            }
            let expected: Vec<&str> = text.lines().map(str::trim_end).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
