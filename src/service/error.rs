//! Errors of the service, and the code of each error of a model.
//!
//! An error of one text has the index of the text. Only the dialect knows the name of the field
//! with the texts.
//!
//! Invariant: no match over an error of this crate has a `_` arm, so that a new error cannot get a
//! code by accident.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use crate::base::units::Bytes;
use crate::engine::EngineError;
use crate::models::ModelError;
use crate::models::catalog::Alias;
use crate::telemetry::log::Message;

/// Code of a daemon that is stopping.
pub const DRAINING: &str = "draining";

/// Reason why a request got no vectors.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The request has no text.
    #[error("the input has no text")]
    NoInput,
    /// The request has more texts than are accepted.
    #[error("the input has more than {most} texts")]
    TooManyInputs {
        /// Most texts of a request.
        most: usize,
    },
    /// A text is empty.
    #[error("text {index} is empty")]
    EmptyText {
        /// Index of the first empty text.
        index: usize,
    },
    /// The tenant of the caller may not request the model.
    #[error("the tenant \"{tenant}\" may not request the model \"{model}\"")]
    ModelNotAllowed {
        /// Name of the tenant.
        tenant: String,
        /// Name of the model.
        model: String,
    },
    /// The model is a reranker, and the request wants vectors.
    #[error("the model \"{model}\" is a reranker and computes no vectors")]
    Reranker {
        /// Id of the model.
        model: String,
    },
    /// The model does not have the head that the request needs.
    #[error("the model \"{model}\" has no {head} head")]
    NoHead {
        /// Id of the model.
        model: String,
        /// Name of the head.
        head: &'static str,
    },
    /// The model has no prompt with the requested name.
    #[error("the model \"{model}\" has no prompt \"{prompt}\"")]
    UnknownPrompt {
        /// Id of the model.
        model: String,
        /// Requested name.
        prompt: String,
        /// Names of the model's prompts.
        known: Vec<String>,
    },
    /// The requested length of vectors is 0, or larger than the length of the model's vectors.
    #[error("vectors of length {requested} are not available; those of the model have {available}")]
    WrongDimensions {
        /// Requested length.
        requested: usize,
        /// Length of the model's vectors.
        available: usize,
    },
    /// The model was not trained for vectors of the requested length.
    #[error("the model \"{model}\" was not trained for vectors of length {requested}")]
    DimensionsNotTrained {
        /// Id of the model.
        model: String,
        /// Requested length.
        requested: usize,
        /// Lengths that the model was trained for, ascending. The last one is that of its vectors.
        trained: Vec<usize>,
    },
    /// The components of a vector do not fill the bytes of a packed output type.
    #[error("{output_type} packs 8 numbers into a byte, and the vectors have {dimensions}")]
    UnevenBits {
        /// Name of the output type.
        output_type: &'static str,
        /// Length of the vectors.
        dimensions: usize,
    },
    /// The vectors would be of another embedding space than the caller expects.
    #[error("the vectors of the model \"{model}\" are of the embedding space {actual}")]
    SpaceMismatch {
        /// Id of the model.
        model: String,
        /// Expected embedding space.
        expected: Arc<str>,
        /// Embedding space of the vectors that the request would get.
        actual: Arc<str>,
    },
    /// A text has more tokens than the model accepts, and the caller forbids truncation.
    #[error("text {index} has more than {most} tokens")]
    TooLong {
        /// Index of the text.
        index: usize,
        /// Number of its tokens; `None` if it is unknown.
        found: Option<usize>,
        /// Most tokens that the model accepts.
        most: usize,
    },
    /// The texts have more tokens than states may be requested for.
    #[error("the texts have {found} tokens, and states of at most {most} tokens are given")]
    TooManyTokens {
        /// Number of the tokens.
        found: usize,
        /// Most tokens of a request.
        most: usize,
    },
    /// A text, or its token ids, cannot be converted to tokens of the model.
    #[error("text {index} cannot be tokenized")]
    Text {
        /// Index of the text.
        index: usize,
        /// Cause of the failure.
        #[source]
        source: EngineError,
    },
    /// The model cannot be leased.
    #[error("the model cannot serve the request")]
    Lease {
        /// Alias by which the model was requested.
        alias: Option<Alias>,
        /// Cause of the failure.
        #[source]
        source: Box<ModelError>,
    },
    /// The model is not among those that the tenant may request, it failed, or its queue is full.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The request exceeds the bytes that the requests of its user may hold.
    #[error(transparent)]
    Budget(#[from] BudgetExceeded),
    /// The work of the request did not get a permit, or did not finish.
    #[error(transparent)]
    Work(#[from] WorkError),
}

impl From<JoinError> for EmbedError {
    fn from(error: JoinError) -> Self {
        Self::Work(error.into())
    }
}

/// Error of a request that exceeds the budget of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the requests in flight of this user hold {held} of the {size} for all users")]
pub struct BudgetExceeded {
    /// Bytes that the user's requests in flight hold.
    pub held: Bytes,
    /// Size of the budget.
    pub size: Bytes,
}

/// Reason why work on the processors was not done.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Too many requests of the user wait for a permit.
    #[error("{waiting} requests of this user are queued for a processor already")]
    TooManyWaiting {
        /// Number of waiting requests.
        waiting: usize,
    },
    /// The deadline passed before a permit was free.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The work panicked, or was cancelled because the daemon is stopping.
    #[error("the work did not finish")]
    Lost,
}

impl From<JoinError> for WorkError {
    /// Logs that a blocking task of a request panicked, or was cancelled because the daemon is
    /// stopping, and returns the error of the request.
    fn from(error: JoinError) -> Self {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "a blocking task of a request did not finish"
        );
        Self::Lost
    }
}

/// Error of a tenant that has as many requests in flight as its limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{most} requests of the tenant \"{tenant}\" are in flight already")]
pub struct TenantOverloaded {
    /// Name of the tenant.
    pub tenant: String,
    /// Its limit.
    pub most: usize,
    /// Estimated time until one of the requests is finished.
    pub retry_after: Duration,
}

/// Returns the code of an error of a model. It is the same for clients and in the metrics.
pub fn model_error_code(error: &ModelError) -> &'static str {
    match error {
        ModelError::Unknown { .. } | ModelError::BundledOnly(_) => "model_not_found",
        ModelError::Corrupt { .. } => "model_corrupt",
        ModelError::Disabled { .. } => "model_disabled",
        ModelError::NotApproved(_) => "model_not_approved",
        ModelError::Failed { .. } => "model_failed",
        ModelError::MemoryLimit { .. } => "memory_limit",
        ModelError::Evicted { .. } | ModelError::Pressure { .. } => "memory_pressure",
        ModelError::Loading { .. } => "model_loading",
        ModelError::Pinned(_) => "pinned",
        ModelError::StillDraining { .. } => "still_draining",
        ModelError::Overloaded { .. } => "overloaded",
        ModelError::Timeout(_) => "timeout",
        ModelError::Ended(_) => "model_ended",
        ModelError::Draining => DRAINING,
        ModelError::Engine(error) => engine_error_code(error),
    }
}

/// Returns the code of an error of the engine.
pub fn engine_error_code(error: &EngineError) -> &'static str {
    match error {
        EngineError::TokenOutOfRange { .. } => "token_out_of_range",
        EngineError::Length { .. } => "invalid_request",
        EngineError::Endless { .. } => "too_much_text",
        EngineError::NoTokenStates | EngineError::NoScores | EngineError::NoTokenHead { .. } => {
            "wrong_task"
        }
        EngineError::Tokenize(_) => "tokenizer_failed",
        EngineError::File { .. } | EngineError::Mismatch(_) => "model_failed",
        EngineError::Threads { .. } | EngineError::Forward(_) | EngineError::NotFinite { .. } => {
            "inference_failed"
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    #[tokio::test]
    async fn failed_blocking_task_is_lost_work() {
        let task: JoinHandle<()> = tokio::task::spawn_blocking(|| panic!("this test panics here"));
        let error = EmbedError::from(task.await.unwrap_err());
        assert!(matches!(error, EmbedError::Work(WorkError::Lost)));
    }
}
