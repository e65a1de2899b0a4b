//! Maps errors of the embedding service to statuses and codes, and to the fields of a dialect.

use axum::http::StatusCode;
use tokio::task::JoinError;

use super::ApiError;
use crate::service::{BudgetExceeded, EmbedError, TenantOverloaded, WorkError};

/// Header with the embedding space that the vectors of the answer must have.
pub(in crate::api) const EXPECTED_SPACE: &str = "x-caxton-expect-embedding-space";

impl ApiError {
    /// Returns the error of a request for vectors. `param` is the name of the dialect's field with
    /// the texts.
    pub(in crate::api) fn of_embed(error: EmbedError, param: &str) -> Self {
        let text = |index: usize| format!("{param}[{index}]");
        match error {
            EmbedError::NoInput => {
                let message =
                    format!("{param} is missing or an empty list; expected at least one text");
                Self::invalid(Some(param.to_owned()), message)
            }
            EmbedError::TooManyInputs { most } => {
                Self::too_many_inputs(most).with_param(param.to_owned())
            }
            EmbedError::EmptyText { index } => {
                Self::invalid(Some(text(index)), format!("{param} {index} is empty"))
            }
            EmbedError::ModelNotAllowed { tenant, model } => {
                Self::model_not_allowed(&tenant, &model)
            }
            EmbedError::Reranker { model } => {
                let message = format!(
                    "the model \"{model}\" is a reranker: it scores pairs of texts and computes no \
                     vectors; send a query and documents to /rerank, or choose another model"
                );
                Self::new(StatusCode::BAD_REQUEST, "not_an_embedding_model", message)
                    .with_param("model".to_owned())
            }
            EmbedError::NoHead { model, head } => {
                let message = format!(
                    "the model \"{model}\" has no {head} head, which this request needs; choose a \
                     model that has one, such as bge-m3"
                );
                Self::wrong_task(message).with_param("model".to_owned())
            }
            EmbedError::UnknownPrompt { model, prompt, known } => {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message =
                    format!("the model \"{model}\" has no prompt \"{prompt}\"; it has: {known}");
                Self::invalid(Some("prompt_name".to_owned()), message)
            }
            EmbedError::WrongDimensions { requested, available } => {
                let message = format!(
                    "dimensions is {requested}; the vectors of this model have {available}"
                );
                Self::invalid(Some("dimensions".to_owned()), message)
            }
            EmbedError::DimensionsNotTrained { model, requested, trained } => {
                let trained: Vec<_> = trained.iter().map(ToString::to_string).collect();
                let message = format!(
                    "dimensions is {requested}, but the model \"{model}\" was trained for {} only; \
                     an administrator can permit other lengths with \
                     embedding.allow_any_dimensions",
                    trained.join(", ")
                );
                Self::new(StatusCode::BAD_REQUEST, "dimensions_not_trained", message)
                    .with_param("dimensions".to_owned())
            }
            EmbedError::UnevenBits { output_type, dimensions } => {
                let message = format!(
                    "output_dtype {output_type} packs 8 numbers into a byte, and the vectors have \
                     {dimensions}; choose dimensions that are a multiple of 8"
                );
                Self::invalid(Some("output_dtype".to_owned()), message)
            }
            EmbedError::SpaceMismatch { model, expected, actual } => {
                let message = format!(
                    "the request expects vectors of the embedding space \"{expected}\", but those \
                     of the model \"{model}\" are of \"{actual}\", and cannot be compared with \
                     them; request the model with the expected space, or compute all vectors again"
                );
                Self::new(StatusCode::PRECONDITION_FAILED, "embedding_space_mismatch", message)
                    .with_param(EXPECTED_SPACE.to_owned())
            }
            EmbedError::TooLong { index, found, most } => Self::too_long(text(index), found, most),
            EmbedError::TooManyTokens { found, most } => Self::too_many_tokens(param, found, most),
            EmbedError::Text { index, source } => Self::from(source).with_param(text(index)),
            EmbedError::Lease { alias, source } => Self::from(*source).with_alias(alias.as_ref()),
            EmbedError::Model(error) => error.into(),
            EmbedError::Budget(error) => error.into(),
            EmbedError::Work(error) => error.into(),
        }
    }
}

impl From<BudgetExceeded> for ApiError {
    fn from(BudgetExceeded { held, size }: BudgetExceeded) -> Self {
        Self::too_many_bytes(held, size)
    }
}

impl From<TenantOverloaded> for ApiError {
    fn from(TenantOverloaded { tenant, most, retry_after }: TenantOverloaded) -> Self {
        Self::tenant_overloaded(&tenant, most, retry_after)
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::TooManyWaiting { waiting } => Self::too_much_work(waiting),
            WorkError::Timeout(_) => Self::of(StatusCode::GATEWAY_TIMEOUT, "timeout", &error),
            WorkError::Lost => Self::lost_work(),
        }
    }
}

impl From<JoinError> for ApiError {
    /// Logs that a blocking task of a request panicked, or was cancelled because the daemon is
    /// stopping, and returns the error of the request.
    fn from(error: JoinError) -> Self {
        WorkError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;
    use crate::base::units::Bytes;
    use crate::engine::EngineError;
    use crate::models::ModelError;
    use crate::models::catalog::Alias;

    fn overloaded() -> ModelError {
        let retry_after = Duration::from_millis(300);
        ModelError::Overloaded { name: "m".to_owned(), waiting: 3, retry_after }
    }

    #[test]
    fn embed_errors_name_the_field_of_the_dialect() {
        let (tenant, model) = ("t".to_owned(), "m".to_owned());
        let prompt = |known: &[&str]| EmbedError::UnknownPrompt {
            model: "m@1".to_owned(),
            prompt: "p".to_owned(),
            known: known.iter().map(ToString::to_string).collect(),
        };
        let alias = Alias { name: "a".to_owned(), canary: true };
        let source = EngineError::TokenOutOfRange { id: 9, vocabulary: 5 };
        let full = "3 requests are waiting for the model \"m\" already";
        let full_of_alias = format!("the alias \"a; canary\": {full}");
        for (error, status, code, param, message) in [
            (
                EmbedError::NoInput,
                400,
                "invalid_request",
                Some("x"),
                "x is missing or an empty list; expected at least one text",
            ),
            (
                EmbedError::TooManyInputs { most: 9 },
                413,
                "too_many_inputs",
                Some("x"),
                "more than the 9 inputs that a request may have",
            ),
            (
                EmbedError::EmptyText { index: 3 },
                400,
                "invalid_request",
                Some("x[3]"),
                "x 3 is empty",
            ),
            (
                EmbedError::ModelNotAllowed { tenant, model },
                403,
                "model_not_allowed",
                Some("model"),
                "the tenant \"t\" may not request the model \"m\"; ",
            ),
            (
                prompt(&["q", "r"]),
                400,
                "invalid_request",
                Some("prompt_name"),
                "the model \"m@1\" has no prompt \"p\"; it has: q, r",
            ),
            (prompt(&[]), 400, "invalid_request", Some("prompt_name"), "it has: none"),
            (
                EmbedError::WrongDimensions { requested: 9, available: 4 },
                400,
                "invalid_request",
                Some("dimensions"),
                "dimensions is 9; the vectors of this model have 4",
            ),
            (
                EmbedError::DimensionsNotTrained {
                    model: "m@1".to_owned(),
                    requested: 3,
                    trained: vec![2, 4],
                },
                400,
                "dimensions_not_trained",
                Some("dimensions"),
                "dimensions is 3, but the model \"m@1\" was trained for 2, 4 only; ",
            ),
            (
                EmbedError::UnevenBits { output_type: "binary", dimensions: 12 },
                400,
                "invalid_request",
                Some("output_dtype"),
                "output_dtype binary packs 8 numbers into a byte, and the vectors have 12; ",
            ),
            (
                EmbedError::SpaceMismatch {
                    model: "m".to_owned(),
                    expected: "e5-64-ab".into(),
                    actual: "e5-64-cd".into(),
                },
                412,
                "embedding_space_mismatch",
                Some("x-caxton-expect-embedding-space"),
                "space \"e5-64-ab\", but those of the model \"m\" are of \"e5-64-cd\"",
            ),
            (
                EmbedError::TooLong { index: 2, found: None, most: 48 },
                400,
                "context_length_exceeded",
                Some("x[2]"),
                "x[2] has more than 48 tokens, and the model takes 48",
            ),
            (
                EmbedError::TooManyTokens { found: 9, most: 4 },
                413,
                "too_many_tokens",
                Some("x"),
                "x has 9 tokens; this route takes at most 4 a request",
            ),
            (
                EmbedError::Text { index: 1, source },
                400,
                "token_out_of_range",
                Some("x[1]"),
                "token id 9 is outside the model's vocabulary of 5 tokens: ",
            ),
            (
                EmbedError::Lease { alias: Some(alias), source: Box::new(overloaded()) },
                429,
                "overloaded",
                None,
                full_of_alias.as_str(),
            ),
            (EmbedError::Model(overloaded()), 429, "overloaded", None, full),
            (
                EmbedError::Budget(BudgetExceeded { held: Bytes(4), size: Bytes(8) }),
                503,
                "too_many_bytes",
                None,
                "the requests in flight of this user hold ",
            ),
            (
                EmbedError::Work(WorkError::TooManyWaiting { waiting: 7 }),
                429,
                "overloaded",
                None,
                "7 requests of this user are queued for a processor already; ",
            ),
            (
                EmbedError::Work(WorkError::Timeout(Duration::from_secs(2))),
                504,
                "timeout",
                None,
                "no answer within 2 s",
            ),
        ] {
            let error = ApiError::of_embed(error, "x");
            assert!(error.message().contains(message), "{message}: {}", error.message());
            let found = (error.status().as_u16(), error.code(), error.param.as_deref());
            assert_eq!(found, (status, code, param), "{message}");
        }
    }

    #[tokio::test]
    async fn failed_blocking_task_is_internal_error() {
        let task: JoinHandle<()> = tokio::task::spawn_blocking(|| panic!("this test panics here"));
        let error = ApiError::from(task.await.unwrap_err());
        assert_eq!(error, ApiError::lost_work());
        assert_eq!((error.status().as_u16(), error.code()), (500, "internal"));
    }
}
