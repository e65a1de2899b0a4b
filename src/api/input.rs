//! Reads requests: bodies within their limit, JSON with errors that name the field, the four forms
//! of `input`, and names in paths.
//!
//! Clients are not trusted. The length of a body is checked before memory is allocated. A list is
//! cut one item past its limit, which is enough to refuse it. So the values that are parsed from a
//! body take at most about three times its length.

use std::fmt;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use http_body_util::BodyExt as _;
use serde::de::{
    self, Deserialize, DeserializeOwned, Deserializer, IgnoredAny, SeqAccess, Visitor,
};

use super::App;
use super::budget::{BODY_FACTOR, BudgetCharge};
use super::error::ApiError;
use super::request_context::RequestContext;
use super::wire::Input;
use super::wire::ollama::Texts;
use crate::base::units::Bytes;

/// Most texts, or lists of token ids, of a request: the same limit as OpenAI's.
pub(super) const MAX_INPUTS: usize = 2048;
/// Length in bytes above which a body is parsed on the blocking pool: parsing takes about a
/// millisecond.
const INLINE_JSON: usize = 64 << 10;
/// Timeout for receiving a body, so that a client which stops sending does not keep its connection.
/// The number of connections is limited.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the JSON body of a request, of at most `socket.max_body`. A large body is parsed on the
/// blocking pool, scheduled fairly among users.
///
/// # Errors
/// 413 when the body is too long, 408 when it does not arrive in time, 503 when it exceeds the
/// bytes that the user's requests may hold, 429 and 504 when too many other requests are queued,
/// 400 when it is not JSON or a field has the wrong type. The error names the field.
pub(super) async fn read_json<T: DeserializeOwned + Send + 'static>(
    app: &App,
    caller: &RequestContext,
    body: Body,
) -> Result<T, ApiError> {
    let limit = app.settings.borrow().socket.max_body;
    let bytes = receive(body, limit, Some(&caller.charge)).await?;
    if bytes.len() <= INLINE_JSON {
        return parse(&bytes);
    }
    let parse = move || parse(&bytes);
    app.permits.parsing.run(caller.uid, caller.deadline, parse).await?
}

/// Reads a JSON body of at most `limit`, which must be small because it is not charged to the
/// budget.
///
/// # Errors
/// 413, 408 and 400 as [`read_json`].
pub(super) async fn read_small_json<T: DeserializeOwned>(
    body: Body,
    limit: Bytes,
) -> Result<T, ApiError> {
    parse(&receive(body, limit, None).await?)
}

/// Reads a JSON body of at most `limit`, which must be small; `None` when there is no body.
///
/// # Errors
/// As [`read_small_json`].
pub(super) async fn read_optional_json<T: DeserializeOwned>(
    body: Body,
    limit: Bytes,
) -> Result<Option<T>, ApiError> {
    if body.is_end_stream() { Ok(None) } else { read_small_json(body, limit).await.map(Some) }
}

/// Reads a body of at most `limit`. Charges its bytes before it reads them: all at once when the
/// client declares the length, otherwise as they arrive.
async fn receive(
    mut body: Body,
    limit: Bytes,
    charge: Option<&BudgetCharge>,
) -> Result<Vec<u8>, ApiError> {
    let grow = |length: u64| charge.map_or(Ok(()), |charge| charge.grow(length * BODY_FACTOR));
    let declared = body.size_hint().exact();
    let length = declared.unwrap_or(0);
    if length > limit.0 {
        return Err(ApiError::body_too_large(limit));
    }
    grow(length)?;
    let receive = async {
        // The declared length is at most `limit`. If it does not fit into a usize, reserve nothing:
        // such a body cannot arrive.
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_broken| {
                let message = "the request body did not arrive completely";
                ApiError::invalid(None, message.to_owned())
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > limit.0 {
                return Err(ApiError::body_too_large(limit));
            }
            if declared.is_none() {
                grow(data.len() as u64)?;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let received = tokio::time::timeout(BODY_TIMEOUT, receive).await;
    received.map_err(|_elapsed| ApiError::body_timeout(BODY_TIMEOUT))?
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would accept a list as the fields of a struct in their order: refuse it.
    if bytes.trim_ascii_start().starts_with(b"[") {
        let message = "the request body is a list; expected an object with its fields".to_owned();
        return Err(ApiError::invalid(None, message));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // The path is "." when a field is missing or duplicated. The message then contains its
        // name.
        let field = match path.as_str() {
            "." | "?" => {
                let named =
                    message.split_once("field `").and_then(|(_, rest)| rest.split_once('`'));
                named.map(|(name, _)| name.to_owned())
            }
            _ => Some(path),
        };
        ApiError::invalid(field, message)
    })?;
    json.end().map_err(|error| ApiError::invalid(None, error.to_string()))?;
    Ok(value)
}

/// The single name in a path, unescaped. Axum's own rejection is plain text; this one is JSON.
pub(super) struct PathName(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = Path::from_request_parts(parts, state).await;
        let Path(name) = name.map_err(|error: PathRejection| {
            ApiError::invalid(Some("name".to_owned()), error.body_text())
        })?;
        Ok(Self(name))
    }
}

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
            E::custom(format!("{id} is no token id: expected 0 to {}", u32::MAX))
        })
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<InputItem, E> {
        Err(E::custom(format!("{id} is no token id: expected 0 to {}", u32::MAX)))
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
            ("[-1]", "-1 is no token id"),
            ("[4294967296]", "4294967296 is no token id"),
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

    #[tokio::test(start_paused = true)]
    async fn stalled_body_returns_408() {
        let stalled = futures_util::stream::pending::<Result<&[u8], std::io::Error>>();
        let read = receive(Body::from_stream(stalled), Bytes::mib(1), None).await;
        assert_eq!(read.unwrap_err(), ApiError::body_timeout(BODY_TIMEOUT));
    }

    proptest! {
        #[test]
        fn arbitrary_body_never_panics(json in r#"[\[\]{}",:a0-9.eE+-]{0,40}"#) {
            drop(read(&json));
        }
    }
}
