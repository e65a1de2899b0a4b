//! Residency: which models are in memory.
//!
//! The [`manager`] decides it and is the only one that changes the state of a model. [`load`] reads
//! a model and computes its memory beforehand.

pub mod load;
pub(super) mod manager;
pub(super) mod memory_view;
pub(super) mod model_state;
pub(super) mod retention;

use crate::engine::PrecisionReport;

/// State of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Residency {
    /// The model is being loaded.
    Loading,
    /// The model is in memory.
    Resident {
        /// Bytes of the weights.
        weight_bytes: u64,
        /// Arithmetic of the model.
        report: PrecisionReport,
        /// Number of waiting requests.
        waiting: usize,
        /// Tokens of the waiting requests.
        waiting_tokens: usize,
    },
    /// The model is draining, and its memory is freed afterwards.
    Draining,
    /// The model was unloaded on request or because it was idle; the next request loads it.
    Unloaded,
    /// The model was evicted because memory is short, and is cooling down.
    CoolingDown,
    /// The last load failed with this cause.
    Failed(String),
}

impl Residency {
    /// Returns the state as one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Resident { .. } => "resident",
            Self::Draining => "leaving",
            Self::Unloaded => "unloaded",
            Self::CoolingDown => "evicted",
            Self::Failed(_) => "failed",
        }
    }
}
