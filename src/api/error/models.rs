//! Maps errors of models and of the engine to statuses and retry times.

use std::time::Duration;

use axum::http::StatusCode;

use super::ApiError;
use crate::api::wire::LoadProgress;
use crate::base::errors::chain;
use crate::base::units::milliseconds;
use crate::engine::EngineError;
use crate::models::ModelError;
use crate::service::{engine_error_code, model_error_code};

/// Retry time for a model that is being loaded for the first time.
const UNKNOWN_RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        Self::from(&error)
    }
}

impl From<&ModelError> for ApiError {
    fn from(error: &ModelError) -> Self {
        let code = model_error_code(error);
        match error {
            ModelError::Unknown { .. } | ModelError::BundledOnly(_) => Self {
                param: Some("model".to_owned()),
                ..Self::of(StatusCode::NOT_FOUND, code, error)
            },
            ModelError::Corrupt { .. }
            | ModelError::Disabled { .. }
            | ModelError::NotApproved(_) => Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error),
            ModelError::Failed { retry_after, .. } => {
                let wait = *retry_after;
                Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error).with_retry_after(wait)
            }
            ModelError::MemoryLimit { refusal, .. } => {
                let error = Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error);
                match refusal.retry_after {
                    Some(wait) => error.with_retry_after(wait),
                    None => error,
                }
            }
            ModelError::Evicted { retry_after, .. } | ModelError::Pressure { retry_after, .. } => {
                let wait = *retry_after;
                Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error).with_retry_after(wait)
            }
            ModelError::Loading { name, elapsed, expected } => {
                let left = expected.map(|expected| expected.saturating_sub(*elapsed));
                let wait = left.unwrap_or(UNKNOWN_RETRY_AFTER);
                let loading = LoadProgress {
                    model: name.clone(),
                    elapsed_ms: milliseconds(*elapsed),
                    expected_ms: expected.map(milliseconds),
                };
                let error = Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error);
                Self { loading: Some(Box::new(loading)), ..error.with_retry_after(wait) }
            }
            ModelError::Pinned(_) => Self::of(StatusCode::CONFLICT, code, error),
            ModelError::StillDraining { .. } => Self::of(StatusCode::GATEWAY_TIMEOUT, code, error),
            ModelError::Overloaded { name, waiting, retry_after } => {
                let in_queue = u32::try_from(*waiting).unwrap_or(u32::MAX).max(1);
                Self::of(StatusCode::TOO_MANY_REQUESTS, code, error)
                    .with_retry_after(*retry_after)
                    .with_overload(&format!("model {name}"), *retry_after / in_queue, *waiting)
            }
            ModelError::Timeout(_) => Self::of(StatusCode::GATEWAY_TIMEOUT, code, error),
            ModelError::Ended(_) => {
                let wait = Duration::from_secs(1);
                Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error).with_retry_after(wait)
            }
            ModelError::Draining => {
                let wait = Duration::from_secs(5);
                Self::of(StatusCode::SERVICE_UNAVAILABLE, code, error).with_retry_after(wait)
            }
            ModelError::Engine(error) => error.into(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::from(&error)
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        let internal = StatusCode::INTERNAL_SERVER_ERROR;
        let code = engine_error_code(error);
        match error {
            EngineError::TokenOutOfRange { .. } => {
                let message = format!(
                    "{}: the client tokenizes with another model's vocabulary. Send texts instead; \
                     LangChain does with check_embedding_ctx_length=False",
                    chain(error)
                );
                let error = Self::new(StatusCode::BAD_REQUEST, code, message);
                Self { param: Some("input".to_owned()), ..error }
            }
            EngineError::Length { .. } => {
                let error = Self::of(StatusCode::BAD_REQUEST, code, error);
                Self { param: Some("input".to_owned()), ..error }
            }
            EngineError::Endless { .. } => {
                let error = Self::of(StatusCode::PAYLOAD_TOO_LARGE, code, error);
                Self { param: Some("input".to_owned()), ..error }
            }
            EngineError::NoTokenStates
            | EngineError::NoScores
            | EngineError::NoTokenHead { .. } => {
                Self::of(StatusCode::FAILED_DEPENDENCY, code, error)
            }
            EngineError::Tokenize(_)
            | EngineError::File { .. }
            | EngineError::Mismatch(_)
            | EngineError::Threads { .. }
            | EngineError::Forward(_)
            | EngineError::NotFinite { .. } => Self::of(internal, code, error),
        }
    }
}
