//! Errors of requests to a model.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::base::units::{Bytes, milliseconds};
use crate::engine::EngineError;
use crate::models::serving::worker::WorkerError;
use crate::package::{DisabledReason, Entries};

/// Reason why a model was not loaded, with numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRefusal {
    /// Most memory that the model takes.
    pub needed: Bytes,
    /// Memory that is available without an eviction.
    pub headroom: Bytes,
    /// Memory that would be available if every evictable model were evicted.
    pub max_headroom: Bytes,
    /// Tightest limit on the memory, as text.
    pub limit: String,
    /// Time after which to retry; `None` when the model will not fit then either.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for MemoryRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, headroom, max_headroom, limit, .. } = self;
        write!(
            f,
            "it needs {needed}; {headroom} are free now and at most {max_headroom}, because of {limit}"
        )
    }
}

/// Reason why a request got no vectors. The variants differ in what the caller can do; causes are
/// in `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No model is installed under this name.
    #[error("the model \"{name}\" is not installed; installed: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Unknown {
        /// Name in the request.
        name: String,
        /// Ids of the installed models.
        known: Vec<String>,
    },
    /// The model is installed, but the configuration allows only bundled models.
    #[error(
        "the model \"{0}\" did not come with the appliance, and memory.model_cache.bundled_only is set"
    )]
    BundledOnly(String),
    /// The model's files changed after the installation.
    #[error(
        "the model \"{name}\" is corrupt and will not be used: {reason}; install its package again"
    )]
    Corrupt {
        /// Name in the request.
        name: String,
        /// The changed file, and the kind of the change.
        reason: String,
    },
    /// The model's files are intact, but it may not be used.
    #[error("the model \"{name}\" is disabled: {reason}")]
    Disabled {
        /// Name in the request.
        name: String,
        /// Reason why it may not be used.
        reason: DisabledReason,
    },
    /// No version of the model may answer for its id yet.
    #[error(
        "no version of the model \"{0}\" is approved; name a version, or ask an administrator to \
         run `caxton model approve {0}`"
    )]
    NotApproved(String),
    /// The model could not be loaded; the load is retried after a while.
    #[error("the model \"{name}\" cannot be loaded")]
    Failed {
        /// Name in the request.
        name: String,
        /// Time after which a request may start another load.
        retry_after: Duration,
        /// Cause of the failure.
        #[source]
        source: Arc<WorkerError>,
    },
    /// The model does not fit into memory beside the models that must stay.
    #[error("the model \"{name}\" does not fit into memory: {refusal}")]
    MemoryLimit {
        /// Name in the request.
        name: String,
        /// Bytes needed and available.
        refusal: Arc<MemoryRefusal>,
    },
    /// The model was evicted and is cooling down.
    #[error("the model \"{name}\" was evicted because memory is short")]
    Evicted {
        /// Name in the request.
        name: String,
        /// Time after which it may be loaded again.
        retry_after: Duration,
    },
    /// Memory is short; only the fallback models and pinned models answer.
    #[error("memory is short: the model \"{name}\" accepts no requests")]
    Pressure {
        /// Name in the request.
        name: String,
        /// Time after which the shortage may be over.
        retry_after: Duration,
    },
    /// The model is loading, and this takes longer than requests wait for it.
    #[error("the model \"{name}\" has been loading for {} ms{}; retry, because the load continues", milliseconds(*elapsed), match expected {
        Some(expected) => format!("; a load takes about {} ms", milliseconds(*expected)),
        None => String::new(),
    })]
    Loading {
        /// Name in the request.
        name: String,
        /// Time since the load was requested.
        elapsed: Duration,
        /// Average load time; `None` if the model was never loaded.
        expected: Option<Duration>,
    },
    /// The model is pinned and cannot be unloaded.
    #[error(
        "the model \"{0}\" is pinned and stays in memory; unpin it first with `caxton memory load \
         {0} --unpin`, or by a load with \"pinned\": false"
    )]
    Pinned(String),
    /// Models did not finish their requests in the time that a caller waits. They are unloaded when
    /// the requests have ended.
    #[error(
        "still draining after {} s: {}; each is unloaded when its requests have ended, and \
         GET /api/memory/status shows it as \"leaving\" until then; an unload with force=true drops \
         the waiting requests",
        .waited.as_secs(),
        .models.join(", ")
    )]
    StillDraining {
        /// The models, each as `id@version`.
        models: Vec<String>,
        /// Time that the caller waited.
        waited: Duration,
    },
    /// Too many requests wait for the model.
    #[error("{waiting} requests are waiting for the model \"{name}\" already")]
    Overloaded {
        /// Name in the request.
        name: String,
        /// Number of waiting requests.
        waiting: usize,
        /// Estimated time until there is space in the queue.
        retry_after: Duration,
    },
    /// The request took longer than its timeout.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The worker ended before it answered; the cause is in the log.
    #[error("the model \"{0}\" ended before it answered")]
    Ended(String),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Draining,
    /// The texts or token ids cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ModelError {
    /// Returns the error for `name`, which is not in `entries`; the error lists their ids.
    pub(crate) fn unknown(name: String, entries: &Entries) -> Self {
        let known: BTreeSet<_> =
            entries.iter().map(|entry| entry.manifest.id.to_string()).collect();
        Self::Unknown { name, known: known.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disabled_model_error_names_the_state_once() {
        let error = ModelError::Disabled { name: "m".to_owned(), reason: DisabledReason::Reserved };
        assert_eq!(error.to_string().matches("disabled").count(), 1, "{error}");
    }
}
