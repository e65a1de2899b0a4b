//! Parses one YAML file into a tree whose keys and values have a line and a column.
//!
//! Only this file names the YAML crate. The result is a tree and not a struct, because serde stops
//! at the first problem and an operator wants all of them. The modules `keys` and `check` define
//! the permitted contents.
//!
//! Invariant: on any input, the parser does not panic, recurse deeper than [`DEPTH`] or create more
//! than [`NODES`] nodes, aliases included.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, MessageFormatter, Options, Spanned, UserMessageFormatter};

use super::Position;

/// Deepest nesting of lists and sections; the deepest key of the schema is at level four.
const DEPTH: usize = 16;

/// Most keys and values in one file, and most of them that aliases repeat.
const NODES: usize = 10_000;

/// Most characters of a text that a message repeats.
const LONGEST_QUOTE: usize = 60;

/// A value and its position in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Place of its first character.
    pub(super) position: Position,
    pub(super) value: Value,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// `true` or `false`; `yes`, `on` and the like are text.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction or an exponent, or one that is not finite.
    Float(f64),
    /// A text, quoted or not.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A section: keys and values in the order written, with repeated keys.
    Section(Vec<(Node, Node)>),
}

/// Text for the values that messages quote: on one line, cut when long, without control characters.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(text) if text.chars().nth(LONGEST_QUOTE).is_none() => write!(f, "{text:?}"),
            Self::Text(text) => {
                write!(f, "{:?}…", text.chars().take(LONGEST_QUOTE).collect::<String>())
            }
            Self::List(_) => f.write_str("a list"),
            Self::Section(_) => f.write_str("a section"),
        }
    }
}

/// Error of the parser.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Place of the error, when the parser knows it.
    pub(super) position: Option<Position>,
    /// The problem, on one line.
    pub(super) message: String,
}

/// Parses the content of a file; an empty one is [`Value::Null`].
///
/// # Errors
/// At the first position that is not UTF-8 or not YAML, begins a second document, or exceeds a
/// limit.
pub(super) fn parse(content: &[u8]) -> Result<Node, SyntaxError> {
    let text = std::str::from_utf8(content).map_err(|error| SyntaxError {
        position: Some(end_of(&content[..error.valid_up_to()])),
        message: "the file is not UTF-8 text; save it as UTF-8".to_owned(),
    })?;
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| SyntaxError {
        position: error.location().and_then(position),
        message: one_line(&UserMessageFormatter.format_message(error.without_snippet())),
    })
}

/// Returns the position after the last byte of `valid`.
fn end_of(valid: &[u8]) -> Position {
    let text = String::from_utf8_lossy(valid);
    let last = text.rsplit('\n').next().unwrap_or_default();
    Position {
        line: count(text.matches('\n').count()) + 1,
        column: count(last.chars().count()) + 1,
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Returns the parser's options. Words such as `yes` stay text, so that a path or a name never
/// becomes a boolean. Repeated and merge keys reach the tree, where `check` reports all of them at
/// once; the parser would stop at the first.
fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_nodes: NODES,
            max_events: 4 * NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES,
            max_replay_stack_depth: DEPTH,
        },
    }
}

/// Replaces control characters by spaces. The parser quotes its input, and a file must not write
/// control characters to the operator's terminal.
fn one_line(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn position(location: Location) -> Option<Position> {
    (location != Location::UNKNOWN)
        .then(|| Position { line: location.line(), column: location.column() })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            position: position(referenced).unwrap_or(Position { line: 1, column: 1 }),
            value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut section: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = section.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Section(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn entries(value: Value) -> Option<Vec<(Node, Node)>> {
        if let Value::Section(entries) = value { Some(entries) } else { None }
    }

    fn only_value(yaml: &str) -> Value {
        entries(parse(yaml.as_bytes()).expect(yaml).value).expect(yaml).remove(0).1.value
    }

    #[test]
    fn values_follow_yaml_1_2() {
        let cases = [
            ("k:", Value::Null),
            ("k: ~", Value::Null),
            ("k: true", Value::Bool(true)),
            ("k: yes", text("yes")),
            ("k: off", text("off")),
            ("k: 12", Value::Integer(12)),
            ("k: -12", Value::Integer(-12)),
            ("k: 5.5", Value::Float(5.5)),
            ("k: .inf", Value::Float(f64::INFINITY)),
            ("k: \"12\"", text("12")),
            ("k: 24h", text("24h")),
            ("k: []", Value::List(Vec::new())),
            ("k: {}", Value::Section(Vec::new())),
            ("\u{feff}k: 1\r\n", Value::Integer(1)),
        ];
        for (yaml, expected) in cases {
            assert_eq!(only_value(yaml), expected, "{yaml:?}");
        }
        for nothing in ["", "# only a comment\n", "---\n"] {
            assert_eq!(parse(nothing.as_bytes()).unwrap().value, Value::Null, "{nothing:?}");
        }
    }

    #[test]
    fn nodes_keep_positions_and_duplicate_keys() {
        let root = parse(b"a: &x 1\nb:\n  c: *x\na: 2\n").unwrap();
        let mut outer = entries(root.value).unwrap();
        let position = |line, column| Position { line, column };
        let seen: Vec<_> = outer.iter().map(|(k, _)| (k.value.clone(), k.position)).collect();
        assert_eq!(
            seen,
            [(text("a"), position(1, 1)), (text("b"), position(2, 1)), (text("a"), position(4, 1))]
        );
        let inner = entries(outer.remove(1).1.value).unwrap();
        assert_eq!(inner[0].1, Node { position: position(3, 6), value: Value::Integer(1) });
    }

    #[test]
    fn invalid_yaml_error_has_line() {
        let nested = "[".repeat(DEPTH + 2);
        let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n\
             c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n\
             e: [*d, *d, *d, *d, *d, *d, *d, *d]\n";
        let long = "- 1\n".repeat(NODES + 1);
        let cases: [(&[u8], u64, &str); 10] = [
            (b"a: [1\nb: 2", 2, "':'"),
            (b"a: 1\n  b: 2\n", 2, "mapping"),
            (b"a: *nowhere", 1, "unknown"),
            (b"&a [*a]", 1, "ecursive"),
            (b"a: 1\n---\nb: 2", 3, "single YAML document"),
            (b"a: !include /etc/shadow", 1, "tag"),
            (b"ok: 1\na: \xff", 2, "UTF-8"),
            (nested.as_bytes(), 1, "recursion limit"),
            (bomb.as_bytes(), 5, "too large"),
            (long.as_bytes(), count(NODES), "too large"),
        ];
        for (yaml, line, word) in cases {
            let start = String::from_utf8_lossy(yaml).chars().take(40).collect::<String>();
            let error = parse(yaml).expect_err(&start);
            assert_eq!(
                error.position.map(|position| position.line),
                Some(line),
                "{start:?} {error:?}"
            );
            assert!(error.message.contains(word), "{start:?} {error:?}");
        }
    }

    #[test]
    fn quoted_text_is_escaped_and_shortened() {
        assert_eq!(text("a\u{1b}[2J\n").to_string(), "\"a\\u{1b}[2J\\n\"");
        assert_eq!(text(&"x".repeat(1000)).to_string().chars().count(), LONGEST_QUOTE + 3);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).err().is_none_or(|e| e.message.lines().count() == 1));
        }

        #[test]
        fn yaml_like_text_never_panics_the_parser(yaml in "[-a-c:{}\\[\\]&*!|>'\"#%@?, \n\t0-9.~<]{0,120}") {
            prop_assert!(parse(yaml.as_bytes()).err().is_none_or(|e| e.message.lines().count() == 1));
        }
    }
}
