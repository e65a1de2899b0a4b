//! Writes settings as YAML: one value on one line, or all of them as a file with the same meaning.
//!
//! Pure, and the inverse of [`ValueKind::check`]. Writes only sections, plain and quoted words, and
//! lists on one line. Asks the parser whether a word needs quotes.

use std::fmt::Write;
use std::time::Duration;

use figment::value::{Dict, Value as Checked};

use super::file::{self, Value};
use super::key_value::KeyValue;
use super::kind::sections::SectionField;
use super::kind::{IDLE_AFTER, ValueKind};

/// Formats `value`, in the form of the settings, as a value of this kind in a file. Returns `None`
/// when the kind cannot express it.
pub(super) fn value(kind: &ValueKind, value: &Checked) -> Option<String> {
    match (kind, value) {
        (ValueKind::Or(word, _), Checked::Empty(..)) => Some((*word).to_owned()),
        (ValueKind::AccountOrNone, Checked::Empty(..)) => Some("null".to_owned()),
        (ValueKind::Or(_, inner), held) => self::value(inner, held),
        (ValueKind::Flag | ValueKind::NoDownload, held) => {
            held.to_bool().map(|flag| flag.to_string())
        }
        (ValueKind::Count(..) | ValueKind::OneNumberOf(_), held) => {
            Some(held.to_u128()?.to_string())
        }
        (ValueKind::Size(..), held) => Some(size(held.to_u128()?)),
        (ValueKind::Percent, held) => Some(format!("{}%", held.to_u128()?)),
        (ValueKind::Gigabytes, held) => Some(gigabytes(held.to_u128()?)),
        (ValueKind::Time(..), held) => duration(held.as_dict()?),
        (ValueKind::IdleTime(..), Checked::Dict(_, held)) => {
            duration(held.get(IDLE_AFTER)?.as_dict()?)
        }
        (ValueKind::Mode, held) => Some(format!("\"{:04o}\"", held.to_u128()?)),
        (
            ValueKind::OneOf(_)
            | ValueKind::IdleTime(..)
            | ValueKind::Path
            | ValueKind::SocketPath
            | ValueKind::Model
            | ValueKind::Name
            | ValueKind::Account
            | ValueKind::AccountOrNone,
            held,
        ) => Some(word(held.as_str()?)),
        (ValueKind::List(inner), held) => {
            let items = held.as_array()?.iter().map(|item| self::value(inner, item));
            Some(format!("[{}]", items.collect::<Option<Vec<_>>>()?.join(", ")))
        }
        (ValueKind::Records(fields), held) => {
            let records = held.as_array()?.iter().map(|item| record(fields, item.as_dict()?));
            Some(format!("[{}]", records.collect::<Option<Vec<_>>>()?.join(", ")))
        }
    }
}

/// Formats a section of a list. Leaves out an empty value if its kind has no word for it.
fn record(fields: &[SectionField], section: &Dict) -> Option<String> {
    let mut keys = Vec::new();
    for field in fields {
        let held = section.get(field.name)?;
        match (value(&field.kind, held), held) {
            (Some(said), _) => keys.push(format!("{}: {said}", field.name)),
            (None, Checked::Empty(..)) => {}
            (None, _) => return None,
        }
    }
    Some(format!("{{ {} }}", keys.join(", ")))
}

/// Formats a size in the largest unit of which it is a whole number.
fn size(bytes: u128) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(bits, _): &(u32, _)| bytes > 0 && bytes.trailing_zeros() >= *bits;
    match units.iter().find(|unit| whole(unit)) {
        Some((bits, unit)) => format!("{}{unit}", bytes >> bits),
        None => format!("{bytes}B"),
    }
}

/// Formats a size in gigabytes, exactly: one gigabyte is 10⁹ bytes.
fn gigabytes(bytes: u128) -> String {
    let (whole, rest) = (bytes / 1_000_000_000, bytes % 1_000_000_000);
    format!("{whole}.{rest:09}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats a [`Duration`] from the fields that serde gives it.
fn duration(fields: &Dict) -> Option<String> {
    let field = |name| fields.get(name)?.to_u128();
    let time =
        Duration::new(u64::try_from(field("secs")?).ok()?, u32::try_from(field("nanos")?).ok()?);
    Some(humantime::format_duration(time).to_string())
}

/// Returns `text` as it is if the parser reads it back as the same text in any position, else in
/// quotes.
fn word(text: &str) -> String {
    let stands_alone = |text: &str| {
        !text.contains([',', '[', ']', '{', '}', ':', '#'])
            && file::parse(text.as_bytes())
                .is_ok_and(|node| matches!(&node.value, Value::Text(read) if read == text))
    };
    // A JSON string is a YAML string, except for some control characters, which no setting
    // contains.
    if stands_alone(text) { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// Formats `values` as a file. Appends the result of `comment` to the line of each value.
pub fn document(values: &[KeyValue], comment: impl Fn(&KeyValue) -> Option<String>) -> String {
    let mut root = Vec::new();
    for value in values {
        put(&mut root, &value.path, value);
    }
    let mut text = String::new();
    write(&mut text, &root, 0, &comment);
    text
}

/// A section or a key of the file.
enum YamlNode<'a> {
    Section(Vec<(&'a str, Self)>),
    Key(&'a KeyValue),
}

/// Inserts `value` at `path`. Sections keep the order in which they were created.
fn put<'a>(section: &mut Vec<(&'a str, YamlNode<'a>)>, path: &'a [String], value: &'a KeyValue) {
    let [name, rest @ ..] = path else { return };
    if rest.is_empty() {
        return section.push((name, YamlNode::Key(value)));
    }
    let begun = section.iter().position(|(begun, _)| begun == name);
    let index = begun.unwrap_or(section.len());
    if begun.is_none() {
        section.push((name, YamlNode::Section(Vec::new())));
    }
    if let Some((_, YamlNode::Section(below))) = section.get_mut(index) {
        put(below, rest, value);
    }
}

fn write(
    text: &mut String,
    section: &[(&str, YamlNode<'_>)],
    depth: usize,
    comment: &impl Fn(&KeyValue) -> Option<String>,
) {
    for (name, below) in section {
        let (indent, name) = ("  ".repeat(depth), word(name));
        // Writing to a `String` cannot fail.
        let written = match below {
            YamlNode::Section(_) => writeln!(text, "{indent}{name}:"),
            YamlNode::Key(key) => match comment(key) {
                None => writeln!(text, "{indent}{name}: {}", key.value),
                Some(comment) => {
                    // Replace control characters: a path may have any, and the rest after a line
                    // break would be read as a key.
                    let comment = comment.replace(char::is_control, "?");
                    writeln!(text, "{indent}{name}: {}  # {comment}", key.value)
                }
            },
        };
        written.unwrap_or(());
        if let YamlNode::Section(below) = below {
            write(text, below, depth + 1, comment);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{Settings, parse, values};
    use super::*;

    fn settings(yaml: &str) -> Settings {
        parse(Path::new("f"), yaml.as_bytes().to_vec()).expect(yaml)
    }

    /// Returns the settings of `yaml` after they were written and read again, and the written text.
    fn again(yaml: &str) -> (Settings, String) {
        let written = document(&values(&settings(yaml)), |key| Some(format!("of {}", key.key())));
        (settings(&written), written)
    }

    #[test]
    fn written_yaml_reads_back_unchanged() {
        for yaml in [
            "",
            "socket: { path: '/a b: c # d', mode: \"0777\", group: 7, admins: { users: [\"true\", '-', 1] } }",
            "socket: { group: ~, max_body: 1025KiB, drain_timeout: 1ms }",
            "socket: { path: '/ä \"q\" \\ […]' }",
            "memory: { memory_limit: 3MiB, min_free: 0B, model_cache: { max_size_gb: 0.000000001 } }",
            "memory: { model_cache: { max_size_gb: 1000000, validation_interval: 1year } }",
            "memory: { embedding_model: \"1\", fallback_models: [\"null\", \"1.0\", a@1], preload_models: [] }",
            "embedding: { threads: 3, precision: bf16 }",
            "socket: { overload_status: 503 }\nmemory: { max_idle_time: 90s, model_cache: { unused_for: 1year } }",
            "packages: { updates: manual, more_directories: [{ path: '/a, b', remove_with_file: true }, { path: /c }] }",
            "models: { a: { max_idle_time: never, max_sequence_length: 128 }, b: { max_idle_time: default } }",
            "models: { \"1\": { max_idle_time: 1h 30m }, a.b: { pinned: true }, a: { preload: true } }",
            "aliases: { a: { model: m, revision: \"1\", canary: { model: \"2\", percent: 9 } }, b: { model: m } }",
            "tenants: [{ name: a, users: [1, b] }, { name: c, model: m, allowed_models: [m], max_concurrent: 3 }]",
        ] {
            let (read, written) = again(yaml);
            assert_eq!(read, settings(yaml), "{yaml}\n{written}");
        }
    }

    #[test]
    fn document_has_one_commented_line_per_key() {
        let (_, written) = again("models: { a: { pinned: true } }\nsocket: { group: b }");
        let start = "socket:\n  path: /run/caxton/caxton.sock  # of socket.path\n  mode: \"0660\"  # of socket.mode\n  \
                     group: b  # of socket.group\n  admins:\n    users: [root]  # of socket.admins.users\n";
        assert!(written.starts_with(start), "{written}");
        let models = "\nmodels:\n  a:\n    memory_priority: 3  # of models.a.memory_priority\n    max_idle_time: default  ";
        assert!(written.contains(models), "{written}");
    }

    #[test]
    fn comment_cannot_end_its_line() {
        let values = values(&Settings::default());
        let written = document(&values, |_| Some("a\nsocket: {}\r\u{1b}".to_owned()));
        assert_eq!(settings(&written), Settings::default());
    }

    proptest! {
        #[test]
        fn sizes_and_durations_round_trip(
            bytes in 1_u64..=1_000_000_000_000_000,
            limit in (1_u64 << 20)..=(1 << 40),
            millis in 1_000_u64..=3_600_000,
        ) {
            let mut before = Settings::default();
            before.memory.model_cache.max_size.0 = bytes;
            before.memory.memory_limit = Some(crate::base::units::Bytes(limit));
            before.memory.pressure.recovery_time = Duration::from_millis(millis);
            let written = document(&values(&before), |_| None);
            prop_assert_eq!(settings(&written), before);
        }

        #[test]
        fn paths_and_names_round_trip(
            path in "/[^\\p{Cc}]{0,60}",
            account in "[^\\s\\p{Cc}:,/]{1,40}",
            model in "[A-Za-z0-9._@-]{1,40}",
        ) {
            let mut before = Settings::default();
            before.packages.keys_directory = path.into();
            before.socket.admins.users = vec![account.clone()];
            before.socket.group = Some(account);
            before.memory.embedding_model = model.clone();
            before.models.insert(model, super::super::ModelSettings { pinned: true, ..Default::default() });
            let written = document(&values(&before), |_| None);
            prop_assert_eq!(settings(&written), before);
        }
    }
}
