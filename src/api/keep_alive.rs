//! Reads `keep_alive`: the time for which a client of Ollama's API wants a model to stay in memory.
//!
//! Ollama accepts a duration in Go's syntax or a number of seconds. A negative value has no time
//! limit (<https://github.com/ollama/ollama/blob/v0.12.6/api/types.go>, `Duration.UnmarshalJSON`).
//! Here a number in quotes is a number of seconds, too, because configuration files and environment
//! variables turn numbers into texts.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};

use crate::base::units::parse_duration;
use crate::models::KeepAlive;

const EXPECTED: &str = "a duration such as \"10m\" or \"1h30m\", or a number of seconds";
/// Longest duration that Go can represent in nanoseconds, about 292 years. A longer one has no time
/// limit.
const LONGEST: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// Reads the field; `None` for `null`, and for an empty text, which some clients send instead of
/// leaving the field out.
pub(super) fn read<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<KeepAlive>, D::Error> {
    deserializer.deserialize_any(KeepAliveVisitor)
}

struct KeepAliveVisitor;

impl Visitor<'_> for KeepAliveVisitor {
    type Value = Option<KeepAlive>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
        Ok(Some(at_most_longest(Duration::from_secs(seconds))))
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Self::Value, E> {
        match u64::try_from(seconds) {
            Ok(seconds) => self.visit_u64(seconds),
            Err(_negative) => Ok(Some(KeepAlive::Forever)),
        }
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
        Ok(Some(of_seconds(seconds)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text.is_empty() {
            return Ok(None);
        }
        let error = || E::invalid_value(de::Unexpected::Str(text), &self);
        parse(text).map(Some).ok_or_else(error)
    }
}

fn parse(text: &str) -> Option<KeepAlive> {
    // "inf" and "nan" parse as numbers but are not durations.
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    if let Some(seconds) = number {
        return Some(of_seconds(seconds));
    }
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let duration = parse_duration(text).ok()?;
    if negative && !duration.is_zero() {
        return Some(KeepAlive::Forever);
    }
    Some(at_most_longest(duration))
}

fn of_seconds(seconds: f64) -> KeepAlive {
    // Negative zero is converted to zero. Other negative values and values out of range are errors.
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) => at_most_longest(duration),
        Err(_negative_or_too_long) => KeepAlive::Forever,
    }
}

fn at_most_longest(duration: Duration) -> KeepAlive {
    if duration > LONGEST { KeepAlive::Forever } else { KeepAlive::For(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_json(json: &str) -> Result<Option<KeepAlive>, String> {
        read(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())
    }

    #[test]
    fn all_keep_alive_notations_are_parsed() {
        let seconds = |seconds| Some(KeepAlive::For(Duration::from_secs(seconds)));
        for (json, expected) in [
            ("null", None),
            (r#""""#, None),
            (r#""10m""#, seconds(600)),
            (r#""1h30m""#, seconds(5_400)),
            (r#""1.5h""#, seconds(5_400)),
            ("300", seconds(300)),
            ("300.0", seconds(300)),
            (r#""300""#, seconds(300)),
            (r#""1500ms""#, Some(KeepAlive::For(Duration::from_millis(1_500)))),
            ("0.25", Some(KeepAlive::For(Duration::from_millis(250)))),
            ("0", seconds(0)),
            ("-0.0", seconds(0)),
            (r#""0""#, seconds(0)),
            (r#""0s""#, seconds(0)),
            (r#""-0s""#, seconds(0)),
            ("-1", Some(KeepAlive::Forever)),
            ("-1.0", Some(KeepAlive::Forever)),
            (r#""-1""#, Some(KeepAlive::Forever)),
            (r#""-5m""#, Some(KeepAlive::Forever)),
            ("18446744073709551615", Some(KeepAlive::Forever)),
            ("1e300", Some(KeepAlive::Forever)),
            (r#""1000years""#, Some(KeepAlive::Forever)),
        ] {
            assert_eq!(read_json(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn invalid_value_error_names_the_expectation() {
        for json in [
            r#""soon""#,
            r#""--1""#,
            r#""- 1x""#,
            r#""inf""#,
            r#""-inf""#,
            r#""nan""#,
            "true",
            "[1]",
            r#"{"m":1}"#,
        ] {
            let message = read_json(json).unwrap_err();
            assert!(message.contains(EXPECTED), "{json}: {message}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[-+.0-9a-zµ ]{0,24}") {
            drop(read_json(&serde_json::Value::from(text).to_string()));
        }

        #[test]
        fn arbitrary_number_never_panics(number: f64) {
            drop(read_json(&serde_json::Value::from(number).to_string()));
        }
    }
}
