//! Kinds of values: the values that a key permits, their form in the settings, and their
//! description in messages.
//!
//! Pure. The table of keys gives each key its kind; [`sections`] checks lists of sections.

pub(super) mod sections;

use std::fmt;
use std::time::Duration;

use figment::value::{Dict, Empty, Tag, Value as Checked};

use super::file::Value;
use crate::base::units::{Bytes, Percent, parse_duration};
use sections::SectionField;

/// Permitted values of a key. Bounds are inclusive.
#[derive(Debug)]
pub(super) enum ValueKind {
    /// `true` or `false`.
    Flag,
    /// Only `false`; `true` would promise a download, which an offline device cannot do.
    NoDownload,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One of these numbers.
    OneNumberOf(&'static [u64]),
    /// A whole number.
    Count(u64, u64),
    /// A size with its unit.
    Size(Bytes, Bytes),
    /// A share in percent with its sign, above 0%.
    Percent,
    /// A number of 10⁹ bytes above zero; the key's name states the unit.
    Gigabytes,
    /// A duration with its unit.
    Time(Duration, Duration),
    /// `default`, `never`, or a duration with its unit: [`super::IdleTime`].
    IdleTime(Duration, Duration),
    /// Permission bits.
    Mode,
    /// An absolute path.
    Path,
    /// An absolute path that fits into a socket address.
    SocketPath,
    /// The name of a model, or of an alias.
    Model,
    /// A name without a version, of a model, an alias or a tenant. Also a version or the beginning
    /// of a revision.
    Name,
    /// The name or number of a user or a group.
    Account,
    /// An account, or null.
    AccountOrNone,
    /// This word, which the settings store as `None`, or a value of the other kind.
    Or(&'static str, &'static Self),
    /// A list of values of this kind.
    List(&'static Self),
    /// A list of sections with these keys.
    Records(&'static [SectionField]),
}

/// Largest `max_size_gb`: a petabyte. Its number of bytes fits into 64 bits.
const MOST_GIGABYTES: f64 = 1e6;

/// Words for [`super::IdleTime`] that are not durations.
pub(super) const IDLE_WORDS: [&str; 2] = ["default", "never"];
/// Name of the duration of [`super::IdleTime`] in the settings.
pub(super) const IDLE_AFTER: &str = "after";

/// Length of `sun_path`, 108 bytes, without the final zero: unix(7).
const LONGEST_SOCKET_PATH: usize = 107;

const LONGEST_MODEL: usize = 96;

/// `LOGIN_NAME_MAX` of Linux, 256, without the final zero.
const LONGEST_ACCOUNT: usize = 255;

impl ValueKind {
    /// Converts `value` to the form in which the settings store it. Returns `None` when the value
    /// is not permitted.
    pub(super) fn check(&self, value: &Value) -> Option<Checked> {
        match (self, value) {
            (Self::Flag, Value::Bool(flag)) => Some(Checked::from(*flag)),
            (Self::NoDownload, Value::Bool(false)) => Some(Checked::from(false)),
            (Self::OneOf(words), Value::Text(text)) => {
                words.contains(&text.as_str()).then(|| Checked::from(text.as_str()))
            }
            (Self::OneNumberOf(numbers), Value::Integer(number)) => {
                let number = u64::try_from(*number).ok()?;
                numbers.contains(&number).then(|| Checked::from(number))
            }
            (Self::Count(least, most), Value::Integer(count)) => {
                let count = u64::try_from(*count).ok()?;
                (*least..=*most).contains(&count).then(|| Checked::from(count))
            }
            (Self::Size(least, most), Value::Text(text)) => {
                let size = text.parse().ok()?;
                (*least..=*most).contains(&size).then(|| Checked::from(size.0))
            }
            (Self::Gigabytes, Value::Integer(size)) => gigabytes(&size.to_string()),
            (Self::Gigabytes, Value::Float(size)) => gigabytes(&size.to_string()),
            (Self::Percent, Value::Text(text)) => {
                let share: Percent = text.parse().ok()?;
                (share > Percent::new(0)).then(|| Checked::from(u8::from(share)))
            }
            (Self::Time(least, most), Value::Text(text)) => {
                let time = parse_duration(text).ok()?;
                (*least..=*most).contains(&time).then(|| duration(time))
            }
            (Self::IdleTime(..), Value::Text(word)) if IDLE_WORDS.contains(&word.as_str()) => {
                Some(Checked::from(word.as_str()))
            }
            (Self::IdleTime(least, most), value) => {
                let time = Self::Time(*least, *most).check(value)?;
                Some(Checked::from(Dict::from([(IDLE_AFTER.to_owned(), time)])))
            }
            (Self::Mode, Value::Text(text)) => mode(text),
            (Self::Path, Value::Text(path)) => absolute(path),
            (Self::SocketPath, Value::Text(path)) if path.len() <= LONGEST_SOCKET_PATH => {
                absolute(path)
            }
            (Self::Model, Value::Text(name)) => {
                is_model(name).then(|| Checked::from(name.as_str()))
            }
            (Self::Name, Value::Text(name)) => is_name(name).then(|| Checked::from(name.as_str())),
            (Self::Records(fields), value) => sections::check(fields, value),
            (Self::AccountOrNone, Value::Null) => Some(none()),
            (Self::Account | Self::AccountOrNone, Value::Text(name)) => {
                is_account(name).then(|| Checked::from(name.as_str()))
            }
            (Self::Account | Self::AccountOrNone, Value::Integer(id)) => {
                u32::try_from(*id).ok().map(|id| Checked::from(id.to_string()))
            }
            (Self::Or(word, _), Value::Text(text)) if text == word => Some(none()),
            (Self::Or(_, kind), value) => kind.check(value),
            (Self::List(kind), Value::List(nodes)) => {
                let values = nodes.iter().map(|node| kind.check(&node.value));
                values.collect::<Option<Vec<_>>>().map(Checked::from)
            }
            _ => None,
        }
    }
}

impl ValueKind {
    /// Returns the only value of a key that has no setting; `None` when there are several.
    pub(super) fn only(&self) -> Option<&'static str> {
        match self {
            Self::OneOf([only]) => Some(only),
            Self::NoDownload => Some("false"),
            _ => None,
        }
    }
}

/// Returns figment's form of `Option::None`.
fn none() -> Checked {
    Checked::Empty(Tag::Default, Empty::None)
}

/// Returns figment's form of a [`Duration`], with the fields that serde gives it.
fn duration(time: Duration) -> Checked {
    let secs = ("secs".to_owned(), Checked::from(time.as_secs()));
    let nanos = ("nanos".to_owned(), Checked::from(time.subsec_nanos()));
    Checked::from(Dict::from([secs, nanos]))
}

/// Converts gigabytes to the nearest byte, so that a size that was printed in gigabytes is read
/// back unchanged.
fn gigabytes(number: &str) -> Option<Checked> {
    let number: f64 = number.parse().ok()?;
    let size: u64 = format!("{:.0}", number * 1e9).parse().ok()?;
    (size > 0 && number <= MOST_GIGABYTES).then(|| Checked::from(size))
}

fn mode(text: &str) -> Option<Checked> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| (0o600..=0o777).contains(bits))?;
    digits.then(|| Checked::from(bits))
}

fn absolute(path: &str) -> Option<Checked> {
    (path.starts_with('/') && !path.contains(char::is_control)).then(|| Checked::from(path))
}

fn is_model(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    (1..=LONGEST_MODEL).contains(&name.len()) && name.bytes().all(allowed)
}

/// Returns whether `name` is valid as the id or the version of a package.
fn is_name(name: &str) -> bool {
    is_model(name) && !name.contains('@') && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Returns whether `name` can be an account. No name service accepts blanks, control characters, or
/// the separators of passwd(5) and group(5).
fn is_account(name: &str) -> bool {
    let refused = |c: char| c.is_whitespace() || c.is_control() || ":,/".contains(c);
    (1..=LONGEST_ACCOUNT).contains(&name.len()) && !name.contains(refused)
}

/// Text for messages of the form `expected …, found …`.
impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_duration;
        match self {
            Self::Flag => f.write_str("true or false"),
            Self::NoDownload => f.write_str("false"),
            Self::OneOf([only]) => f.write_str(only),
            Self::OneOf(words) => write!(f, "one of {}", words.join(", ")),
            Self::OneNumberOf(numbers) => {
                let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
                f.write_str(&numbers.join(" or "))
            }
            Self::Count(least, most) => write!(f, "{least} to {most}"),
            Self::Size(least, most) => {
                write!(f, "a size with its unit, such as \"512MiB\", from {least} to {most}")
            }
            Self::Percent => f.write_str("a whole number of percent, from \"1%\" to \"100%\""),
            Self::Gigabytes => {
                write!(f, "a number of gigabytes above 0 and up to {MOST_GIGABYTES}")
            }
            Self::Time(least, most) => write!(
                f,
                "a duration with its unit, such as \"10s\", from {} to {}",
                time(*least),
                time(*most)
            ),
            Self::IdleTime(least, most) => {
                write!(f, "{} or {}", IDLE_WORDS.join(", "), Self::Time(*least, *most))
            }
            Self::Mode => f.write_str(
                "octal digits in quotes from \"0600\" to \"0777\" (without quotes, programs \
                 disagree whether 0660 is octal)",
            ),
            Self::Path => f.write_str("an absolute path"),
            Self::SocketPath => {
                write!(f, "an absolute path of at most {LONGEST_SOCKET_PATH} bytes")
            }
            Self::Model => write!(
                f,
                "the name of a model: 1 to {LONGEST_MODEL} of the characters A-Z a-z 0-9 . _ - @"
            ),
            Self::Name => write!(
                f,
                "1 to {LONGEST_MODEL} of the characters A-Z a-z 0-9 . _ -, a letter or digit first, in quotes \
                 if it looks like a number"
            ),
            Self::Account => f.write_str("a name or a numeric id"),
            Self::AccountOrNone => f.write_str("a name, a numeric id or null"),
            Self::Or(word, kind) => write!(f, "{word} or {kind}"),
            Self::List(_) => f.write_str("a list"),
            Self::Records(_) => f.write_str("a list of sections"),
        }
    }
}
