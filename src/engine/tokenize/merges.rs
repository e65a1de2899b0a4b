//! Reads the merges of a BPE model: the pairs of words that become one word.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::quote::{escape, quote};

/// Reader of the pairs of words that are merged, in the order of their ranks.
pub(super) struct Merges {
    /// Length of the longest word in bytes. A longer pair cannot merge into a word.
    pub(super) longest: usize,
    /// Maximum number of pairs.
    pub(super) most: usize,
}

impl<'de> DeserializeSeed<'de> for Merges {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Merges {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pairs of words")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut merges = Vec::new();
        while let Some(Merge(pair)) = list.next_element()? {
            // A comment line, which comes from the first line of a merges file.
            let Some((left, right)) = pair else { continue };
            if merges.len() == self.most {
                return Err(A::Error::custom(format!("there are more than {} merges", self.most)));
            }
            // The library copies both words into a buffer of the length of the longest word, and
            // would panic on a longer pair.
            if left.len() + right.len() > self.longest {
                let (left, right) = (quote(&left), quote(&right));
                return Err(A::Error::custom(format!(
                    "the merge of {left} and {right} is longer than every word"
                )));
            }
            merges.push((left, right));
        }
        Ok(merges)
    }
}

/// A merge, written as two words or as one text with a space between them; `None` for a comment.
struct Merge(Option<(String, String)>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of words")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                if text.starts_with("#version") {
                    return Ok(Merge(None));
                }
                let pair = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
                let not_a_pair = || E::custom(format!("the merge {} is not a pair", quote(text)));
                let (left, right) = pair.ok_or_else(not_a_pair)?;
                Ok(Merge(Some((left.to_owned(), right.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
                let short = || A::Error::custom("a merge is not a pair");
                let left = pair.next_element()?.ok_or_else(short)?;
                let right = pair.next_element()?.ok_or_else(short)?;
                match pair.next_element::<String>()? {
                    None => Ok(Merge(Some((left, right)))),
                    Some(third) => {
                        let third = escape(third);
                        Err(A::Error::custom(format!("a merge has a third word: {third}")))
                    }
                }
            }
        }

        reader.deserialize_any(Pair)
    }
}
