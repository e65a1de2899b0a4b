//! Deserializes the treatment of texts that are too long.
//!
//! TEI and Caxton's own dialect have a flag. NVIDIA's NIM and Cohere have the words `NONE`, `START`
//! and `END`: <https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html>.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::engine::Truncation;

/// Treatment of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// Refuse the text: `false` or `"NONE"`.
    Refuse,
    /// Cut off the end: `true`.
    Allow,
    /// Cut off the beginning: `"START"`.
    Start,
    /// Cut off the end: `"END"`.
    End,
}

impl Truncate {
    /// Returns whether a text that is too long is an error.
    pub fn refuses_long(self) -> bool {
        self == Self::Refuse
    }

    /// Returns the end that is cut off.
    pub fn truncation(self) -> Truncation {
        match self {
            Self::Start => Truncation::Left,
            Self::Refuse | Self::Allow | Self::End => Truncation::Right,
        }
    }
}

impl<'de> Deserialize<'de> for Truncate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TruncateVisitor)
    }
}

struct TruncateVisitor;

impl Visitor<'_> for TruncateVisitor {
    type Value = Truncate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a boolean, \"NONE\", \"START\" or \"END\"")
    }

    fn visit_bool<E: de::Error>(self, allow: bool) -> Result<Truncate, E> {
        Ok(if allow { Truncate::Allow } else { Truncate::Refuse })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Truncate, E> {
        let words =
            [("none", Truncate::Refuse), ("start", Truncate::Start), ("end", Truncate::End)];
        let found = words.into_iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
        found
            .map(|(_, truncate)| truncate)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_words_are_parsed() {
        for (json, refuses_long, truncation) in [
            ("true", false, Truncation::Right),
            ("false", true, Truncation::Right),
            (r#""NONE""#, true, Truncation::Right),
            (r#""END""#, false, Truncation::Right),
            (r#""START""#, false, Truncation::Left),
            (r#""start""#, false, Truncation::Left),
        ] {
            let read: Truncate = serde_json::from_str(json).unwrap();
            let found = (read.refuses_long(), read.truncation());
            assert_eq!(found, (refuses_long, truncation), "{json}");
        }
        for json in ["1", r#""""#, r#""LEFT""#, "[]"] {
            let message = serde_json::from_str::<Truncate>(json).unwrap_err().to_string();
            assert!(
                message.contains(r#"expected a boolean, "NONE", "START" or "END""#),
                "{message}"
            );
        }
    }
}
