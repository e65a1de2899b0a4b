//! Why a model does not answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::slot::Refusal;
use super::worker::WorkerError;
use crate::engine::EngineError;
use crate::package::{Disabled, Entry};
use crate::units::milliseconds;

/// Why a request got no vectors. Small, and by what the caller can do about it; causes are in `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No such model is installed.
    #[error("the model \"{name}\" is not installed; installed: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// It is installed, but the configuration allows bundled models only.
    #[error(
        "the model \"{0}\" did not come with the appliance, and memory.model_cache.bundled_only is set"
    )]
    BundledOnly(String),
    /// Its files changed after they were installed.
    #[error(
        "the model \"{name}\" is corrupt and will not be used: {reason}; install its package again"
    )]
    Corrupt {
        /// What was asked for.
        name: String,
        /// Which file, and how.
        reason: String,
    },
    /// Its files are right, and it may not be used.
    #[error("the model \"{name}\" may not be used: {reason}")]
    Disabled {
        /// What was asked for.
        name: String,
        /// Why.
        reason: Disabled,
    },
    /// It could not be loaded; it is tried again after a while.
    #[error("the model \"{name}\" cannot be loaded")]
    Failed {
        /// What was asked for.
        name: String,
        /// When the next request may make it try again.
        retry_after: Duration,
        /// Why.
        #[source]
        source: Arc<WorkerError>,
    },
    /// It does not fit into memory beside what has to stay.
    #[error("the model \"{name}\" does not fit into memory: {refusal}")]
    MemoryLimit {
        /// What was asked for.
        name: String,
        /// The numbers.
        refusal: Arc<Refusal>,
    },
    /// It had to leave memory, and stays away for a while.
    #[error("the model \"{name}\" had to leave memory because it is short")]
    Evicted {
        /// What was asked for.
        name: String,
        /// When it may come back.
        retry_after: Duration,
    },
    /// Memory is short; only the last fallback and pinned models answer.
    #[error("memory is short: the model \"{name}\" takes no requests")]
    Pressure {
        /// What was asked for.
        name: String,
        /// When it may be over.
        retry_after: Duration,
    },
    /// It is on its way into memory, and takes longer than requests wait for that.
    #[error("the model \"{name}\" is loading, for {} ms now{}", milliseconds(*elapsed), match expected {
        Some(expected) => format!(" of {} as usual", milliseconds(*expected)),
        None => String::new(),
    })]
    Loading {
        /// What was asked for.
        name: String,
        /// For how long it has been loading.
        elapsed: Duration,
        /// How long that usually takes; `None` when it was never loaded.
        expected: Option<Duration>,
    },
    /// It is pinned.
    #[error("the model \"{0}\" is pinned and stays in memory")]
    Pinned(String),
    /// Too many requests are waiting for it.
    #[error("{waiting} requests are waiting for the model \"{name}\" already")]
    Overloaded {
        /// What was asked for.
        name: String,
        /// How many wait.
        waiting: usize,
        /// When there is probably room.
        retry_after: Duration,
    },
    /// The request took longer than a request may.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Its worker ended before it answered; the cause is in the log.
    #[error("the model \"{0}\" ended before it answered")]
    Ended(String),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Draining,
    /// The texts or ids cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ModelError {
    /// `name` is none of `entries`, whose ids are told.
    pub(crate) fn unknown(name: String, entries: &[Entry]) -> Self {
        let known: BTreeSet<_> =
            entries.iter().map(|entry| entry.manifest.id.to_string()).collect();
        Self::Unknown { name, known: known.into_iter().collect() }
    }
}
