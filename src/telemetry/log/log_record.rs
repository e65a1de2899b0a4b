//! Log record, and its encodings for journald and for stderr.
//!
//! Invariant: a value cannot begin another field, another record or a terminal escape sequence.
//! Control characters are escaped, except for tabs and line breaks in a text of several lines.

use std::fmt;

use tracing::field::{Field, Visit};

use super::message::{Message, Priority};
use crate::base::printable;

/// Value of `SYSLOG_IDENTIFIER`, which journalctl prints before the text.
const IDENTIFIER: &str = "caxtond";

/// Content of one log event.
#[derive(Debug)]
pub(super) struct LogRecord {
    priority: Priority,
    message: Option<Message>,
    /// Name of the kind, or the target of an event that has no kind.
    name: &'static str,
    text: String,
    errno: Option<i64>,
    thread: i32,
    file: Option<&'static str>,
    line: Option<u32>,
    module: Option<&'static str>,
    /// Other fields, by their names in the event.
    fields: Vec<(&'static str, String)>,
}

impl LogRecord {
    /// Creates the record of `event`. Must run on the thread that logs the event, because it stores
    /// the thread id.
    pub(super) fn of(event: &tracing::Event<'_>) -> Self {
        let metadata = event.metadata();
        let message = Message::named(metadata.name());
        let mut record = Self {
            priority: message.map_or_else(|| metadata.level().into(), Message::priority),
            message,
            name: message.map_or(metadata.target(), Message::name),
            text: String::new(),
            errno: None,
            thread: nix::unistd::gettid().as_raw(),
            file: metadata.file(),
            line: metadata.line(),
            module: metadata.module_path(),
            fields: Vec::new(),
        };
        event.record(&mut record);
        record
    }

    /// Creates the record that reports the number of lost records.
    pub(super) fn of_dropped_count(lost: u64) -> Self {
        let message = Message::RecordsLost;
        Self {
            priority: message.priority(),
            message: Some(message),
            name: message.name(),
            text: "records were lost because journald did not accept them".to_owned(),
            errno: None,
            thread: nix::unistd::gettid().as_raw(),
            file: Some(file!()),
            line: Some(line!()),
            module: Some(module_path!()),
            fields: vec![("lost", lost.to_string())],
        }
    }

    /// Encodes the record in journald's native format
    /// (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
    ///
    /// The result has no `CODE_FUNC`, because `tracing` does not know the function.
    pub(super) fn native(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + self.text.len());
        put(&mut out, "PRIORITY", &(self.priority as u8).to_string());
        put(&mut out, "SYSLOG_IDENTIFIER", IDENTIFIER);
        put(&mut out, "TID", &self.thread.to_string());
        put(&mut out, "MESSAGE", &printable::lines(&self.text));
        if let Some(message) = self.message {
            put(&mut out, "MESSAGE_ID", message.id());
            put(&mut out, "CAXTON_EVENT", message.name());
        }
        if let Some(errno) = self.errno {
            put(&mut out, "ERRNO", &errno.to_string());
        }
        if let Some(file) = self.file {
            put(&mut out, "CODE_FILE", file);
        }
        if let Some(line) = self.line {
            put(&mut out, "CODE_LINE", &line.to_string());
        }
        if let Some(module) = self.module {
            put(&mut out, "CODE_MODULE", module);
        }
        for (name, value) in &self.fields {
            put(&mut out, &field_name(name), &printable::line(value));
        }
        out
    }

    /// Encodes the record as a line for stderr, with the priority prefix of sd-daemon(3):
    /// `<6>event-name: text field=value …`.
    pub(super) fn line(&self) -> Vec<u8> {
        let text = printable::line(&self.text);
        let mut out = format!("<{}>{}: {text}", self.priority as u8, self.name);
        for (name, value) in &self.fields {
            out.push_str(&format!(" {name}={}", printable::line(value)));
        }
        out.push('\n');
        out.into_bytes()
    }

    fn put(&mut self, field: &Field, value: impl fmt::Display) {
        match field.name() {
            "message" => self.text = value.to_string(),
            name => self.fields.push((name, value.to_string())),
        }
    }
}

impl Visit for LogRecord {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "errno" => self.errno = Some(value),
            _ => self.put(field, value),
        }
    }
}

/// Returns the journal's name of a field: upper case, with a prefix that avoids collisions with
/// other fields.
fn field_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    "CAXTON_".chars().chain(name.chars().map(letter)).collect()
}

/// Appends a field. A value of several lines is preceded by its length instead of `=`.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses the fields of `bytes` like journald.
    fn parse(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
            let (line, rest) = bytes.split_at(end);
            let rest = &rest[1..];
            let (name, value) = match line.iter().position(|byte| *byte == b'=') {
                Some(at) => {
                    bytes = rest;
                    (&line[..at], line[at + 1..].to_vec())
                }
                None => {
                    let (length, rest) = rest.split_at(8);
                    let length = u64::from_le_bytes(length.try_into().unwrap());
                    let length = usize::try_from(length).unwrap();
                    let (value, rest) = rest.split_at(length);
                    assert_eq!(rest[0], b'\n');
                    bytes = &rest[1..];
                    (line, value.to_vec())
                }
            };
            fields.push((String::from_utf8(name.to_vec()).unwrap(), value));
        }
        fields
    }

    fn record(text: &str, value: &str) -> LogRecord {
        LogRecord {
            text: text.to_owned(),
            fields: vec![("model", value.to_owned())],
            ..LogRecord::of_dropped_count(0)
        }
    }

    #[test]
    fn record_has_source_and_message_fields() {
        let fields = parse(&LogRecord::of_dropped_count(3).native());
        let value = |wanted: &str| {
            let (_, value) = fields.iter().find(|(name, _)| name == wanted).unwrap();
            String::from_utf8(value.clone()).unwrap()
        };
        assert_eq!(value("PRIORITY"), "4");
        assert_eq!(value("MESSAGE_ID"), Message::RecordsLost.id());
        assert_eq!(value("CAXTON_EVENT"), "records-lost");
        assert_eq!(value("CAXTON_LOST"), "3");
        assert_eq!(value("TID"), nix::unistd::gettid().to_string());
        assert_eq!(value("CODE_MODULE"), "caxton::telemetry::log::log_record");
        assert!(value("CODE_FILE").ends_with("record.rs"));
    }

    #[test]
    fn line_has_priority_name_and_escaped_newlines() {
        let line = |record: &LogRecord| String::from_utf8(record.line()).unwrap();
        let named = record("a\nb", "c\nd");
        assert_eq!(line(&named), "<4>records-lost: a\\nb model=c\\nd\n");
        // An event without a kind has its target in the place of the name.
        let unnamed = LogRecord { priority: Priority::Debug, name: "caxton::api", ..named };
        assert_eq!(line(&unnamed), "<7>caxton::api: a\\nb model=c\\nd\n");
    }

    #[test]
    fn field_names_are_valid_for_journald() {
        assert_eq!(field_name("duration_ms"), "CAXTON_DURATION_MS");
        assert_eq!(field_name("http.path"), "CAXTON_HTTP_PATH");
    }

    proptest! {
        #[test]
        fn values_cannot_add_fields_or_control_characters(text in any::<String>(), value in any::<String>()) {
            let hostile = record(&text, &value);
            let names = |record: &LogRecord| {
                parse(&record.native()).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
            };
            prop_assert_eq!(names(&hostile), names(&record("a", "b")));
            for (name, value) in parse(&hostile.native()) {
                let value = String::from_utf8(value).unwrap();
                let shown = |c: char| !c.is_control() || name == "MESSAGE" && "\n\t".contains(c);
                prop_assert!(value.chars().all(shown), "{name}: {value:?}");
            }
            let line = String::from_utf8(hostile.line()).unwrap();
            prop_assert_eq!(line.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
        }
    }
}
