//! Writes answers: their JSON, and the headers that describe vectors and their model. Keeps the
//! bytes of an answer charged until they are written.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde::Serialize;

use super::App;
use super::error::ApiError;
use super::request_context::RequestContext;
use crate::base::units::milliseconds;
use crate::models::{FallbackFor, ModelInfo};
use crate::service::{BudgetCharge, Embeddings, Timings, model_error_code};
use crate::telemetry::log::Message;

/// Header with the embedding space, the identity under which the vectors of an answer may be
/// compared with others.
pub(super) const EMBEDDING_SPACE: &str = "x-caxton-embedding-space";
/// Header with the factor from the components of vectors of length 1 to the numbers of an answer.
const VECTOR_SCALE: &str = "x-caxton-vector-scale";
/// Number of values up to which an answer is written on the runtime's own thread. This takes about
/// 0.1 ms.
const INLINE_VALUES: usize = 2048;
/// Estimated bytes of a number as text, enough in most answers: a sign, nine digits after "0.0", a
/// comma.
const NUMBER_BYTES: usize = 14;
/// Estimated bytes of an answer besides its numbers, enough in most answers.
const ANSWER_BYTES: usize = 512;

/// Writes an answer with `values` numbers. A large answer is written on the blocking pool,
/// scheduled fairly among users.
pub(super) async fn write(
    app: &App,
    caller: &RequestContext,
    values: usize,
    write: impl FnOnce(&RequestContext) -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    if values <= INLINE_VALUES {
        return Ok(write(caller));
    }
    let (uid, deadline, caller) = (caller.call.uid, caller.call.deadline, caller.clone());
    Ok(app.service.permits().work.run(uid, deadline, move || write(&caller)).await?)
}

/// Returns an answer as JSON. `values` is the approximate count of its numbers, for the initial
/// size of the buffer.
pub(super) fn json(values: usize, answer: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(ANSWER_BYTES + values * NUMBER_BYTES);
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(
                name: Message::InternalFault.name(),
                %error,
                "an answer could not be serialized"
            );
            ApiError::lost_work().into_response()
        }
    }
}

/// Sets the headers that describe an answer with vectors, on every route.
pub(super) fn set_embedding_headers(
    embedded: &Embeddings,
    caller: &RequestContext,
    response: &mut Response,
) {
    set_model_headers(&embedded.info, response);
    if let Some(scale) = embedded.output_type.scale() {
        insert(response.headers_mut(), VECTOR_SCALE, &scale.to_string());
    }
    let truncated = embedded.tokens.iter().filter(|tokens| tokens.used < tokens.provided).count();
    let Timings { tokenization, queue, inference } = embedded.timings;
    // The metrics read the timings, and the charge must be held until the answer is written.
    response.extensions_mut().insert(embedded.timings);
    response.extensions_mut().insert(Arc::clone(&caller.call.charge));
    let headers = response.headers_mut();
    let count = |number: usize| HeaderValue::from(number);
    let time = |duration| HeaderValue::from(milliseconds(duration));
    for (name, value) in [
        ("x-caxton-truncated-inputs", count(truncated)),
        ("x-compute-characters", count(embedded.characters)),
        ("x-compute-tokens", count(embedded.used())),
        ("x-tokenization-time", time(tokenization)),
        ("x-queue-time", time(queue)),
        ("x-inference-time", time(inference)),
        ("x-total-time", time(caller.began.elapsed())),
    ] {
        headers.insert(HeaderName::from_static(name), value);
    }
    if let Some(fallback_for) = embedded.fallback_for.as_deref() {
        let FallbackFor { requested, error } = fallback_for;
        let value = format!("{requested}; reason={}", model_error_code(error));
        insert(headers, "x-caxton-fallback-for", &value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Sets the headers that name the model of an answer.
pub(super) fn set_model_headers(info: &ModelInfo, response: &mut Response) {
    let ModelInfo { manifest, embedding_space, revision, alias } = info;
    let headers = response.headers_mut();
    insert(headers, "x-caxton-model", &format!("{}@{}", manifest.id, manifest.version));
    insert(headers, "x-caxton-revision", revision);
    insert(headers, EMBEDDING_SPACE, embedding_space);
    if let Some(alias) = alias {
        insert(headers, "x-caxton-alias", &alias.to_string());
    }
}

/// Sets a header. Ids, versions, digests and numbers are visible ASCII; any other value is omitted
/// instead of causing a panic.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Bytes of an answer with the charge of its request, which they hold until they are written.
struct ChargedBytes {
    bytes: Bytes,
    _charge: Arc<BudgetCharge>,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Keeps the charge of an answer until all bytes of its body are dropped. Until then they wait for
/// the client in the buffer of the connection.
pub(super) fn hold_until_written(mut response: Response) -> Response {
    let Some(charge) = response.extensions_mut().remove::<Arc<BudgetCharge>>() else {
        return response;
    };
    let length = response.body().size_hint().exact();
    if let Some(length) = length {
        // Set the length here, because the wrapped body does not report it.
        let headers = response.headers_mut();
        headers.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let of =
                |bytes| Bytes::from_owner(ChargedBytes { bytes, _charge: Arc::clone(&charge) });
            frame.map_data(of)
        }))
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::base::units;
    use crate::config::Settings;
    use crate::memory::monitor::Reading;
    use crate::service::Budget;

    #[tokio::test]
    async fn response_keeps_charge_until_last_byte_is_dropped() {
        let readings = watch::channel(Reading::default()).1;
        let mut settings = Settings::default();
        settings.socket.max_body = units::Bytes(1 << 20);
        let budget = Budget::new(readings, watch::channel(Arc::new(settings)).1);
        let charge = Arc::new(budget.request(1));
        charge.grow(100).unwrap();
        let mut response = Response::new(Body::from("an answer"));
        response.extensions_mut().insert(charge);
        let response = hold_until_written(response);
        assert_eq!(response.headers()["content-length"], "9");
        let mut body = response.into_body();
        let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!((&bytes[..], budget.held()), (&b"an answer"[..], 100));
        drop(bytes);
        assert_eq!(budget.held(), 0);
    }
}
