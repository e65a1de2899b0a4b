//! Reads requests: bodies within their limit, JSON with errors that name the field, names in paths,
//! and parameters.
//!
//! Clients are not trusted. The length of a body is checked before memory is allocated. The types
//! of [`super::wire`] bound the lists that they keep. So the values that are parsed from a body
//! take at most about three times its length.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::content_encoding::{ACCEPTED, EncodingError};
use super::error::ApiError;
use super::request_context::RequestContext;
use super::{App, text_encoding};
use crate::base::units::Bytes;
use crate::service::{BODY_FACTOR, BudgetCharge};

/// Length in bytes above which a body is parsed on the blocking pool: parsing takes about a
/// millisecond.
const INLINE_JSON: usize = 64 << 10;
/// Timeout for receiving a body, so that a client which stops sending does not keep its connection.
/// The number of connections is limited.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest body that is accepted, with the origin of the limit for the error.
#[derive(Clone, Copy, Debug)]
pub(super) enum BodyLimit {
    /// Fixed limit of the route.
    Route(Bytes),
    /// Value of the setting `socket.max_body`.
    Setting(Bytes),
}

impl BodyLimit {
    /// Returns the smaller one of the setting `socket.max_body` and the fixed limit of a route.
    pub(super) fn smaller(setting: Bytes, route: Bytes) -> Self {
        if setting < route { Self::Setting(setting) } else { Self::Route(route) }
    }

    fn is_exceeded_by(self, length: u64) -> bool {
        let (Self::Route(limit) | Self::Setting(limit)) = self;
        length > limit.0
    }

    fn error(self) -> ApiError {
        match self {
            Self::Route(limit) => ApiError::body_too_large(limit, None),
            Self::Setting(limit) => ApiError::body_too_large(limit, Some("socket.max_body")),
        }
    }
}

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
    let limit = BodyLimit::Setting(app.settings.borrow().socket.max_body);
    let bytes = receive(body, limit, Some(&caller.call.charge)).await?;
    if bytes.len() <= INLINE_JSON {
        return parse(bytes);
    }
    let parse = move || parse(bytes);
    app.service.permits().parsing.run(caller.call.uid, caller.call.deadline, parse).await?
}

/// Reads a JSON body of at most `limit`, which must be small because it is not charged to the
/// budget.
///
/// # Errors
/// 413, 408 and 400 as [`read_json`].
pub(super) async fn read_small_json<T: DeserializeOwned>(
    body: Body,
    limit: BodyLimit,
) -> Result<T, ApiError> {
    parse(receive(body, limit, None).await?)
}

/// Reads a JSON body of at most `limit`, which must be small; `None` when there is no body.
///
/// # Errors
/// As [`read_small_json`].
pub(super) async fn read_optional_json<T: DeserializeOwned>(
    body: Body,
    limit: BodyLimit,
) -> Result<Option<T>, ApiError> {
    if body.is_end_stream() { Ok(None) } else { read_small_json(body, limit).await.map(Some) }
}

/// Reads a body of at most `limit`. Charges its bytes before it reads them: all at once when the
/// client declares the length, otherwise as they arrive.
async fn receive(
    mut body: Body,
    limit: BodyLimit,
    charge: Option<&BudgetCharge>,
) -> Result<Vec<u8>, ApiError> {
    let grow = |length: u64| charge.map_or(Ok(()), |charge| charge.grow(length * BODY_FACTOR));
    let declared = body.size_hint().exact();
    let length = declared.unwrap_or(0);
    if limit.is_exceeded_by(length) {
        return Err(limit.error());
    }
    grow(length)?;
    let receive = async {
        // The declared length is at most `limit`. If it does not fit into a usize, reserve nothing:
        // such a body cannot arrive.
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| body_error(&error, limit))?;
            let Ok(data) = frame.into_data() else { continue };
            if limit.is_exceeded_by((bytes.len() + data.len()) as u64) {
                return Err(limit.error());
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

/// Returns the error of a body whose bytes cannot be read or decoded.
fn body_error(error: &axum::Error, limit: BodyLimit) -> ApiError {
    match EncodingError::find(error) {
        Some(EncodingError::NotAccepted(coding)) => ApiError::coding_not_accepted(coding, ACCEPTED),
        Some(EncodingError::Invalid(coding)) => {
            let message =
                format!("the request body is not valid {coding}, its content-encoding; encode it");
            ApiError::invalid(None, message)
        }
        Some(EncodingError::TooLong) => limit.error(),
        Some(EncodingError::Budget(error)) => ApiError::from(*error),
        Some(EncodingError::Incomplete) | None => {
            let message = "the request body is incomplete; send the request again".to_owned();
            ApiError::invalid(None, message)
        }
    }
}

/// Parses a JSON body. A byte order mark is skipped, and every half of a surrogate pair without the
/// other half is replaced by U+FFFD, as Go's and Python's parsers do. Only a body that cannot be
/// parsed otherwise is searched for them.
fn parse<T: DeserializeOwned>(mut bytes: Vec<u8>) -> Result<T, ApiError> {
    match parse_json(&bytes) {
        Err(_surrogate) if text_encoding::replace_lone_surrogates(&mut bytes) => parse_json(&bytes),
        Err(error) => Err(text_encoding::diagnose(&bytes).map_or(error, |described| {
            ApiError::invalid(None, format!("the request body is {described}; send UTF-8"))
        })),
        parsed => parsed,
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = bytes.strip_prefix(text_encoding::BYTE_ORDER_MARK).unwrap_or(bytes);
    // Reject a list: serde would accept it as the fields of a struct in their order.
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
            let message = format!("the name in the path is not valid: {}", error.body_text());
            ApiError::invalid(Some("name".to_owned()), message)
        })?;
        Ok(Self(name))
    }
}

/// Returns the value of the parameter `name`, which is one of `values`; `None` without a query.
pub(super) fn parameter(
    query: Option<&str>,
    name: &str,
    values: &[&str],
) -> Result<Option<String>, ApiError> {
    let mut found = None;
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let invalid = |message| ApiError::invalid(Some(key.to_string()), message);
        if key != name {
            return Err(invalid(format!("the parameter {key:?} is unknown; expected {name}")));
        }
        if found.is_some() {
            return Err(invalid(format!("the parameter {name} is given twice; give it once")));
        }
        if !values.contains(&value.as_ref()) {
            let known = values.join(", ");
            return Err(invalid(format!("{name} is {value:?}; expected one of {known}")));
        }
        found = Some(value.into_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalled_body_returns_408() {
        let stalled = futures_util::stream::pending::<Result<&[u8], std::io::Error>>();
        let limit = BodyLimit::Setting(Bytes::mib(1));
        let read = receive(Body::from_stream(stalled), limit, None).await;
        assert_eq!(read.unwrap_err(), ApiError::body_timeout(BODY_TIMEOUT));
    }

    #[test]
    fn byte_order_mark_is_skipped_and_surrogate_replaced() {
        for (json, expected) in [
            ("\u{feff}[\"a\"]", "list"),
            ("\u{feff}\"a\"", "a"),
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""pair \ud83d\ude00 \\ud83d""#, "pair \u{1f600} \\ud83d"),
        ] {
            let found = parse::<String>(json.as_bytes().to_vec());
            let found = found.unwrap_or_else(|error| error.message().to_owned());
            assert!(found.contains(expected), "{json}: {found}");
        }
    }

    #[test]
    fn other_text_encoding_is_named_in_the_error() {
        let utf16 = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (bytes, expected) in [
            (utf16, "the request body is UTF-16; send UTF-8"),
            (b"\"gr\xf6\xdfe\"".to_vec(), "is not UTF-8 at byte 3; send UTF-8"),
            (b"\"".to_vec(), "EOF"),
        ] {
            let error = parse::<String>(bytes).unwrap_err();
            assert!(error.message().contains(expected), "{}", error.message());
        }
    }

    #[tokio::test]
    async fn overlong_body_error_names_the_exceeded_limit() {
        let (small, large) = (Bytes(4096), Bytes(64 << 10));
        for (limit, length, expected) in [
            (BodyLimit::Route(small), 4097, "the 4.0 KiB that this route accepts"),
            (BodyLimit::Setting(small), 4097, "the 4.0 KiB of socket.max_body"),
            (BodyLimit::smaller(small, large), 4097, "the 4.0 KiB of socket.max_body"),
            (BodyLimit::smaller(large, small), 4097, "the 4.0 KiB that this route accepts"),
            (BodyLimit::smaller(large, large), 65_537, "the 64.0 KiB that this route accepts"),
        ] {
            receive(Body::from(vec![b' '; length - 1]), limit, None).await.unwrap();
            let declared = Body::from(vec![b' '; length]);
            let chunk = Ok::<_, std::io::Error>(vec![b' '; length]);
            let chunked = Body::from_stream(futures_util::stream::iter([chunk]));
            for body in [declared, chunked] {
                let error = receive(body, limit, None).await.unwrap_err();
                assert_eq!(error.code(), "body_too_large");
                assert!(error.message().contains(expected), "{limit:?}: {}", error.message());
            }
        }
    }
}
