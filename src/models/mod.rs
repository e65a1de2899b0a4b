//! Models: the residency of models, the right to send them requests, and the installation of
//! packages.
//!
//! This module holds the workers, the manager's table of models, and the rules of installation.
//! Other modules use a [`ManagerHandle`] (to ask the manager) or a [`Lease`] (to send requests to
//! one resident model). Only the manager changes the state of a model. [`catalog`] decides what a
//! model name means.

pub mod catalog;
mod error;
mod fallback;
mod handle;
pub mod ingest;
pub mod install;
mod liveness;
pub mod load;
mod manager;
mod memory_view;
mod model_state;
mod queue;
mod retention;
pub mod selftest;
mod serving;
pub mod trust;
pub mod usage;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use error::{MemoryRefusal, ModelError};
pub use fallback::{Fallback, FallbackFor};
pub use handle::ManagerHandle;
pub use liveness::{LivenessProbe, WorkerStall};
pub use manager::ManagerParts;
pub use memory_view::{ActionRecord, FlushResult, MemoryView, ModelView, thresholds};
pub use queue::MAX_RETRY_AFTER;
pub use retention::{KeepAlive, KeepAliveRequest, ModelUser};
pub use worker::WorkerError;

use crate::engine::{
    EngineError, Output, PrecisionReport, TokenSpan, Tokenizer, Tokens, Truncation,
};
use crate::memory::level::PressureLevel;
use crate::package::{EntryKey, Manifest};
use catalog::Alias;
use queue::{PushError, QueueSender};
use retention::LastUses;
use usage::{RequestOutcome, Usage};

/// Longest duration of a request, including the load of the model.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

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

/// State of the default model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DefaultModelState {
    /// Not installed, or not served because of `bundled_only`.
    #[default]
    NotInstalled,
    /// The files changed after the installation.
    Corrupt,
    /// The configured keys do not allow its use.
    Disabled,
    /// Installed and not in memory.
    Absent,
    /// Being loaded.
    Loading,
    /// In memory.
    Ready,
    /// Unloaded on request or because it was idle; the next request loads it.
    Unloaded,
    /// Evicted because memory is short.
    Evicted,
    /// Too large for the memory; holds the reason with numbers.
    DoesNotFit(String),
    /// The last load failed.
    Failed,
}

/// Summary of all models in one line, for systemd's `STATUS=` and for readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Name of the model that answers requests without a model name.
    pub default_model: String,
    /// State of this model.
    pub state: DefaultModelState,
    /// Number of installed models.
    pub installed: usize,
    /// Current pressure level.
    pub level: PressureLevel,
    /// Source of the pressure events.
    pub source: String,
    /// Degraded parts of the daemon, one sentence each.
    pub degraded: Vec<String>,
}

impl Overview {
    /// Returns whether the default model can answer, possibly after a load.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, DefaultModelState::Ready | DefaultModelState::Unloaded)
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default_model, state, installed, level, source, degraded } = self;
        let state = match state {
            DefaultModelState::NotInstalled => "not installed",
            DefaultModelState::Corrupt => "corrupt",
            DefaultModelState::Disabled => "disabled",
            DefaultModelState::Absent => "not loaded",
            DefaultModelState::Loading => "loading",
            DefaultModelState::Ready => "ready",
            DefaultModelState::Unloaded => "ready to be loaded",
            DefaultModelState::Evicted => "evicted because memory is short",
            DefaultModelState::DoesNotFit(numbers) => {
                &format!("does not fit into memory ({numbers})")
            }
            DefaultModelState::Failed => "cannot be loaded",
        };
        let models = if *installed == 1 { "model" } else { "models" };
        write!(
            f,
            "{default_model} {state}, {installed} {models} installed, memory {level} (reported by {source})"
        )?;
        if !degraded.is_empty() {
            write!(f, "; degraded: {}", degraded.join("; "))?;
        }
        Ok(())
    }
}

/// Facts about a model that clients may know.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Manifest of the model.
    pub manifest: Arc<Manifest>,
    /// The identity under which two vectors may be compared.
    pub embedding_space: Arc<str>,
    /// The revision: the shortened digest of the manifest.
    pub revision: Arc<str>,
    /// Alias in the request that resolved to this model.
    pub alias: Option<Alias>,
}

impl ModelInfo {
    /// Returns the facts about the model `key` with this manifest.
    fn new(key: &EntryKey, manifest: Arc<Manifest>) -> Self {
        let (_id, _version, revision) = key.parts();
        let embedding_space = manifest.embedding_space().into();
        Self { manifest, embedding_space, revision: revision.into(), alias: None }
    }
}

/// Class of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits for the answer.
    Interactive,
    /// The client accepts a longer delay.
    Bulk,
}

/// Flow of a request for fair scheduling: owners share the queue fairly, and so do the connections
/// of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The user or the tenant.
    pub owner: Owner,
    /// The connection, as a number.
    pub connection: u64,
}

/// Owner of requests for fair scheduling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A user, by uid.
    User(u32),
    /// A tenant, by a number of its own.
    Tenant(u64),
}

/// Scheduling metadata that a request passes to the queue.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Owner and connection, for fair scheduling.
    pub flow: Flow,
    /// Class of the request; `None` derives it from the number of tokens.
    pub priority: Option<Priority>,
    /// Time after which the client no longer waits for the answer.
    pub deadline: Instant,
    /// Tenant in whose own lane the request waits; `None` uses the lane shared by all others.
    pub tenant: Option<Arc<str>>,
    /// Share of the owner relative to other owners, from 1 to 9.
    pub weight: u8,
}

/// Answer to a request.
#[derive(Debug)]
pub struct JobOutput {
    /// Vectors `[texts, dimensions]`, or token states `[tokens of all texts, hidden]`; row-major.
    pub vectors: Vec<f32>,
    /// Time in the queue.
    pub queue: Duration,
    /// Time of the computation.
    pub inference: Duration,
}

/// A lease that was given back for a while. The model may be unloaded in the meantime.
#[derive(Clone, Debug)]
pub struct ReleasedLease {
    name: String,
    key: EntryKey,
    info: ModelInfo,
    fallback_for: Option<Arc<FallbackFor>>,
}

/// The right to send requests to one resident model. The model stays in memory while the lease
/// lives.
#[derive(Clone, Debug)]
pub struct Lease {
    name: String,
    key: EntryKey,
    /// Facts about the model.
    pub info: ModelInfo,
    /// Set when this model is the fallback for another one.
    pub fallback_for: Option<Arc<FallbackFor>>,
    tokenizer: Arc<Tokenizer>,
    queue: QueueSender,
    usage: Arc<Usage>,
    last_uses: Arc<LastUses>,
}

impl Lease {
    /// Records that `user` uses the model now. The model is not unloaded as idle while that user
    /// needs it.
    pub fn record_use(&self, user: ModelUser) {
        self.last_uses.record(user, tokio::time::Instant::now());
    }

    /// Converts a text into token ids. Takes up to milliseconds of processor time, so it must not
    /// run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(
        &self,
        prompt: &str,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_truncated(prompt, text, truncation)
    }

    /// Returns all tokens of a text with their positions in it; with `special`, also the special
    /// tokens around it. Takes a hundred times the memory of the text, and milliseconds, so it must
    /// not run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenSpan>, EngineError> {
        self.tokenizer.pieces(prompt, text, special)
    }

    /// Converts token ids into text. Must not run on the runtime's threads.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Counts the first piece of a text that is not empty: its tokens, without special ones, and
    /// its length in bytes. Takes milliseconds, so it must not run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn count_piece(&self, text: &str) -> Result<(usize, usize), EngineError> {
        self.tokenizer.count_piece(text)
    }

    /// Returns the number of special tokens around a text.
    pub fn special_tokens(&self) -> usize {
        self.tokenizer.around()
    }

    /// Gives the lease back. [`ManagerHandle::renew`] acquires it again.
    pub fn release(self) -> ReleasedLease {
        ReleasedLease {
            name: self.name,
            key: self.key,
            info: self.info,
            fallback_for: self.fallback_for,
        }
    }

    /// Checks token ids that a client sent, and adds the model's special tokens around them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_ids(ids, truncation)
    }

    /// Checks whether a request with this ticket could be enqueued now if it were short, so that
    /// texts are not tokenized for a request that will be rejected. A rejection is counted in
    /// [`Usage`].
    ///
    /// # Errors
    /// When too many requests wait already, or the model has ended.
    pub fn check_queue(&self, ticket: &Ticket) -> Result<(), ModelError> {
        let began = Instant::now();
        self.queue.check(ticket).map_err(|error| {
            let latency = began.elapsed();
            let outcome = RequestOutcome { texts: 0, tokens: 0, latency, is_ok: false };
            self.usage.record(&self.key, outcome, SystemTime::now());
            self.push_error(error)
        })
    }

    fn push_error(&self, error: PushError) -> ModelError {
        let name = self.name.clone();
        match error {
            PushError::Full { waiting, retry_after } => {
                ModelError::Overloaded { name, waiting, retry_after }
            }
            PushError::Closed => ModelError::Ended(name),
        }
    }

    /// Computes `texts` and returns the results. The request is counted in [`Usage`].
    ///
    /// Cancelling drops the request: it is not begun, or it stops after the current pass. A
    /// cancelled request is not counted, since it neither succeeded nor failed.
    ///
    /// # Errors
    /// When too many requests wait already, or the model does not answer by the ticket's deadline.
    pub async fn embed(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<JobOutput, ModelError> {
        let (count, tokens) = (texts.len(), texts.iter().map(Vec::len).sum());
        let began = Instant::now();
        let answer = self.push_and_wait(texts, output, ticket).await;
        let latency = began.elapsed();
        let outcome = RequestOutcome { texts: count, tokens, latency, is_ok: answer.is_ok() };
        self.usage.record(&self.key, outcome, SystemTime::now());
        answer
    }

    async fn push_and_wait(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<JobOutput, ModelError> {
        let pushed = self.queue.push(texts, output, &ticket);
        let answer = pushed.map_err(|error| self.push_error(error))?;
        let patience = ticket.deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(patience, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(patience))?;
        Ok(answer.map_err(|_closed| ModelError::Ended(self.name.clone()))??)
    }
}
