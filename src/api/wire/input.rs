//! Deserializes the texts and token ids of requests: the four forms of `input`, and lists of texts.
//!
//! A list is cut one item past [`MAX_INPUTS`], which is enough to reject it. The remaining items
//! take no memory.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ollama::Texts;
use crate::service::{Input, MAX_INPUTS};

const EXPECTED: &str =
    "a string, a list of strings, a list of token ids, or a list of lists of token ids";

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut texts = Vec::new();
        let mut ids = Vec::new();
        let mut lists = Vec::new();
        while texts.len().max(lists.len()) <= MAX_INPUTS {
            let Some(item) = items.next_element()? else { break };
            match item {
                InputItem::Text(text) => texts.push(text),
                InputItem::Id(id) => ids.push(id),
                InputItem::Ids(list) => lists.push(list),
            }
            if [texts.is_empty(), ids.is_empty(), lists.is_empty()].iter().filter(|e| !**e).count()
                > 1
            {
                return Err(de::Error::custom(format!("expected {EXPECTED}, not a mixture")));
            }
        }
        skip(items)?;
        if !ids.is_empty() {
            lists.push(ids);
        }
        Ok(if lists.is_empty() { Input::Texts(texts) } else { Input::Ids(lists) })
    }
}

/// Parses the remaining items of a list without keeping them.
fn skip<'de, A: SeqAccess<'de>>(mut items: A) -> Result<(), A::Error> {
    while items.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// Deserializes a list of texts and cuts it after [`MAX_INPUTS`] + 1 texts.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(TextsVisitor)
}

/// A document to rank: a text, or an object with a field `text`. Other fields are ignored.
#[derive(Debug, PartialEq, Eq)]
pub struct Document(pub String);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with a string as its field `text`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Document, E> {
        Ok(Document(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Document, E> {
        Ok(Document(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Document, A::Error> {
        let mut text = None;
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "text" => text = Some(fields.next_value()?),
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        text.map(Document).ok_or_else(|| de::Error::missing_field("text"))
    }
}

/// Deserializes a list of documents and cuts it after [`MAX_INPUTS`] + 1; `None` for `null`.
pub(super) fn documents<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    deserializer.deserialize_any(DocumentsVisitor)
}

struct DocumentsVisitor;

impl<'de> Visitor<'de> for DocumentsVisitor {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings or of objects with a field `text`")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while texts.len() <= MAX_INPUTS {
            let Some(Document(text)) = items.next_element()? else { break };
            texts.push(text);
        }
        skip(items)?;
        Ok(Some(texts))
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMore).map(Self)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while texts.len() <= MAX_INPUTS {
            let Some(text) = items.next_element()? else { break };
            texts.push(text);
        }
        skip(items)?;
        Ok(texts)
    }
}

struct OneOrMore;

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(Vec::from_iter((!text.is_empty()).then(|| text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<String>, A::Error> {
        TextsVisitor.visit_seq(items)
    }
}

enum InputItem {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for InputItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = InputItem;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<InputItem, E> {
        Ok(InputItem::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<InputItem, E> {
        Ok(InputItem::Text(text))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<InputItem, E> {
        u32::try_from(id).map(InputItem::Id).map_err(|_out_of_range| {
            E::custom(format!("{id} is not a token id; expected 0 to {}", u32::MAX))
        })
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<InputItem, E> {
        Err(E::custom(format!("{id} is not a token id; expected 0 to {}", u32::MAX)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<InputItem, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = items.next_element()? {
            ids.push(id);
        }
        Ok(InputItem::Ids(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Input, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn four_input_forms_are_parsed() {
        let texts = |texts: &[&str]| Input::Texts(texts.iter().map(ToString::to_string).collect());
        assert_eq!(read(r#""a""#), Ok(texts(&["a"])));
        assert_eq!(read(r#"["a","b"]"#), Ok(texts(&["a", "b"])));
        assert_eq!(read("[]"), Ok(texts(&[])));
        assert_eq!(read("[1,2]"), Ok(Input::Ids(vec![vec![1, 2]])));
        assert_eq!(read("[[1],[2,3]]"), Ok(Input::Ids(vec![vec![1], vec![2, 3]])));
        assert_eq!(read("[[]]"), Ok(Input::Ids(vec![vec![]])));
    }

    #[test]
    fn invalid_input_error_names_the_expectation() {
        for (json, expected) in [
            ("1", "invalid type: integer `1`, expected a string, a list"),
            ("null", "invalid type: null, expected a string, a list"),
            (r#"["a",1]"#, "not a mixture"),
            (r#"[1,"a"]"#, "not a mixture"),
            ("[[1],2]", "not a mixture"),
            ("[-1]", "-1 is not a token id"),
            ("[4294967296]", "4294967296 is not a token id"),
            ("[1.5]", "invalid type: floating point `1.5`"),
            (r#"[["a"]]"#, r#"invalid type: string "a", expected u32"#),
            ("[null]", "invalid type: null"),
            (r#"{"a":1}"#, "invalid type: map"),
        ] {
            let message = read(json).unwrap_err();
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn overlong_list_keeps_one_item_over_limit() {
        let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
        for count in [MAX_INPUTS, MAX_INPUTS + 1, 3 * MAX_INPUTS] {
            let kept = count.min(MAX_INPUTS + 1);
            assert_eq!(read(&list("[7]", count)), Ok(Input::Ids(vec![vec![7]; kept])));
            assert_eq!(read(&list("\"a\"", count)), Ok(Input::Texts(vec!["a".to_owned(); kept])));
            let Texts(texts) = serde_json::from_str(&list("\"a\"", count)).unwrap();
            assert_eq!(texts.len(), kept);
            // All ids of a single text are kept.
            assert_eq!(read(&list("7", count)), Ok(Input::Ids(vec![vec![7; count]])));
        }
        let Texts(none) = serde_json::from_str("\"\"").unwrap();
        assert_eq!(none, Vec::<String>::new());
        // The items that are dropped must be valid JSON, too.
        let broken = list("[7]", MAX_INPUTS + 2).replace("[7]]", "[7}]");
        assert!(read(&broken).is_err());
    }

    #[test]
    fn documents_are_texts_or_objects_with_a_text() {
        let read = |json: &str| documents(&mut serde_json::Deserializer::from_str(json));
        let expected = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(read(r#"["a", {"id": [1], "text": "b", "title": null}]"#).unwrap(), expected);
        assert_eq!(read("null").unwrap(), None);
        for (json, expected) in [
            ("1", "a list of strings or of objects"),
            ("[1]", "a string, or an object"),
            (r#"[{"image": "b"}]"#, "missing field `text`"),
            (r#"[{"text": ["b"]}]"#, "expected a string"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(expected), "{json}: {message}");
        }
        let list = |count: usize| format!("[{}]", vec!["\"a\""; count].join(","));
        for count in [MAX_INPUTS, MAX_INPUTS + 1, 3 * MAX_INPUTS] {
            let kept = read(&list(count)).unwrap().unwrap().len();
            assert_eq!(kept, count.min(MAX_INPUTS + 1));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_body_never_panics(json in r#"[\[\]{}",:a0-9.eE+-]{0,40}"#) {
            drop(read(&json));
        }
    }
}
