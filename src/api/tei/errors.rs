//! Converts failures to TEI's format and status codes.
//!
//! Contains the only mapping from Caxton's codes to TEI's. Headers stay, so that a client sees the
//! retry time.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::api::rerank::FailureWritten;
use crate::api::wire::tei::{ErrorResponse, ErrorType};

/// Rewrites an answer that is a failure. All other answers stay unchanged, also failures that
/// another dialect has written.
pub(super) async fn flatten(response: Response) -> Response {
    if response.extensions().get::<FailureWritten>().is_some() {
        return response;
    }
    let Some(error) = response.extensions().get::<ApiError>().cloned() else { return response };
    let (status, error_type) = status_and_type(error.status(), error.code());
    let body = ErrorResponse { error: error.message().to_owned(), error_type };
    let (mut parts, _nested) = response.into_parts();
    parts.status = status;
    // Remove the length of the old body.
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Json(body).into_response().into_body())
}

/// Returns TEI's status and type of a failure. TEI answers 422 where others answer 400, and 424
/// where others answer 500:
/// <https://github.com/huggingface/text-embeddings-inference/blob/009f0677559979c106efe30347ae99cb911a2f66/router/src/http/server.rs>
fn status_and_type(status: StatusCode, code: &str) -> (StatusCode, ErrorType) {
    match (status, code) {
        (_, "empty_input") => (StatusCode::BAD_REQUEST, ErrorType::Empty),
        (_, "tokenizer_failed") => (StatusCode::UNPROCESSABLE_ENTITY, ErrorType::Tokenizer),
        (StatusCode::BAD_REQUEST, _)
        | (
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_many_inputs" | "too_many_tokens" | "too_much_text",
        ) => (StatusCode::UNPROCESSABLE_ENTITY, ErrorType::Validation),
        (StatusCode::TOO_MANY_REQUESTS, _) => (status, ErrorType::Overloaded),
        (StatusCode::SERVICE_UNAVAILABLE, _) => (status, ErrorType::Unhealthy),
        (StatusCode::INTERNAL_SERVER_ERROR | StatusCode::FAILED_DEPENDENCY, _) => {
            (StatusCode::FAILED_DEPENDENCY, ErrorType::Backend)
        }
        _ if status.is_server_error() => (status, ErrorType::Backend),
        _ => (status, ErrorType::Validation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_map_to_tei_status_and_type() {
        for (status, code, expected) in [
            (400, "invalid_request", (422, ErrorType::Validation)),
            (400, "empty_input", (400, ErrorType::Empty)),
            (400, "context_length_exceeded", (422, ErrorType::Validation)),
            (400, "token_out_of_range", (422, ErrorType::Validation)),
            (404, "model_not_found", (404, ErrorType::Validation)),
            (405, "method_not_allowed", (405, ErrorType::Validation)),
            (408, "body_timeout", (408, ErrorType::Validation)),
            (413, "body_too_large", (413, ErrorType::Validation)),
            (413, "too_many_inputs", (422, ErrorType::Validation)),
            (413, "too_many_tokens", (422, ErrorType::Validation)),
            (413, "too_much_text", (422, ErrorType::Validation)),
            (424, "wrong_task", (424, ErrorType::Backend)),
            (429, "overloaded", (429, ErrorType::Overloaded)),
            (500, "tokenizer_failed", (422, ErrorType::Tokenizer)),
            (500, "inference_failed", (424, ErrorType::Backend)),
            (503, "memory_limit", (503, ErrorType::Unhealthy)),
            (504, "timeout", (504, ErrorType::Backend)),
        ] {
            let (found, kind) = status_and_type(StatusCode::from_u16(status).unwrap(), code);
            assert_eq!((found.as_u16(), kind), expected, "{status} {code}");
        }
    }

    #[tokio::test]
    async fn error_keeps_headers_and_success_is_unchanged() {
        let refused = flatten(ApiError::not_ready("m").into_response()).await;
        assert_eq!(refused.headers()["retry-after-ms"], "1000");
        assert_eq!(refused.headers()["content-type"], "application/json");
        let success = flatten((StatusCode::OK, "ok").into_response()).await;
        assert_eq!(
            (success.status(), &success.headers()["content-type"]),
            (StatusCode::OK, &"text/plain; charset=utf-8".parse().unwrap())
        );
    }
}
