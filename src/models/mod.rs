//! Models: which are in memory, who may send them requests, and how packages become models.
//!
//! Owns the workers, the manager's table and the rules of installation. Others hold a [`Handle`] (to ask) or a
//! [`Lease`] (to send requests to one resident model); neither can change a model's state.

pub mod alias;
mod error;
mod fallback;
mod handle;
pub mod install;
pub mod intake;
pub mod load;
mod manager;
mod memory;
mod needs;
mod pulse;
mod queue;
pub mod selftest;
mod slot;
pub mod trust;
pub mod usage;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use error::ModelError;
pub use fallback::{Fallback, StandIn};
pub use handle::{Handle, Parts};
pub use memory::{ActionRecord, Flushed, MemoryView, ModelView, thresholds};
pub use needs::{User, Wish};
pub use pulse::{Beat, Stuck};
pub use slot::{KeepAlive, Refusal};
pub use worker::WorkerError;

use crate::engine::{EngineError, Output, Piece, Report, Tokenizer, Tokens, Truncation};
use crate::memory::level::Level;
use crate::package::{Key, Manifest};
use alias::Alias;
use needs::Uses;
use queue::{PushError, Sender};
use usage::{Served, Usage};

/// The longest that a request may take, loading the model included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Residency {
    /// On its way into memory.
    Loading,
    /// In memory.
    Resident {
        /// Bytes of weights.
        weight_bytes: u64,
        /// What it is computed in.
        report: Report,
        /// Requests waiting.
        waiting: usize,
        /// Tokens of these.
        waiting_tokens: usize,
    },
    /// Finishing what it has, then letting its memory go.
    Leaving,
    /// It left for want of use or because somebody said so; it is loaded when it is asked for.
    Unloaded,
    /// It had to leave because memory is short, and stays away for a while.
    Away,
    /// The last load failed, with this cause.
    Failed(String),
}

impl Residency {
    /// In one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Resident { .. } => "resident",
            Self::Leaving => "leaving",
            Self::Unloaded => "unloaded",
            Self::Away => "evicted",
            Self::Failed(_) => "failed",
        }
    }
}

/// Where the default model is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DefaultState {
    /// Not installed, or not served because of `bundled_only`.
    #[default]
    NotInstalled,
    /// Its files changed after they were installed.
    Corrupt,
    /// It may not be used, because of the keys.
    Disabled,
    /// Installed and not in memory.
    Absent,
    /// On its way into memory.
    Loading,
    /// In memory.
    Ready,
    /// It left for want of use or because somebody said so; it is loaded when it is asked for.
    Unloaded,
    /// It had to leave because memory is short.
    Evicted,
    /// It does not fit into memory, with the numbers.
    DoesNotFit(String),
    /// The last load failed.
    Failed,
}

/// The models in one line, for `STATUS=` and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// The model that answers when a request names none.
    pub default_model: String,
    /// Where it is.
    pub state: DefaultState,
    /// How many models are installed.
    pub installed: usize,
    /// How short memory is.
    pub level: Level,
    /// Where pressure is heard.
    pub source: String,
    /// What does not work as it should while models are served, a sentence each.
    pub degraded: Vec<String>,
}

impl Overview {
    /// Whether the default model answers, after loading at most.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, DefaultState::Ready | DefaultState::Unloaded)
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default_model, state, installed, level, source, degraded } = self;
        let state = match state {
            DefaultState::NotInstalled => "not installed",
            DefaultState::Corrupt => "corrupt",
            DefaultState::Disabled => "disabled",
            DefaultState::Absent => "not loaded",
            DefaultState::Loading => "loading",
            DefaultState::Ready => "ready",
            DefaultState::Unloaded => "ready to be loaded",
            DefaultState::Evicted => "evicted because memory is short",
            DefaultState::DoesNotFit(numbers) => &format!("does not fit into memory ({numbers})"),
            DefaultState::Failed => "cannot be loaded",
        };
        let models = if *installed == 1 { "model" } else { "models" };
        write!(
            f,
            "{default_model} {state}, {installed} {models} installed, memory {level} (heard from {source})"
        )?;
        if !degraded.is_empty() {
            write!(f, "; degraded: {}", degraded.join("; "))?;
        }
        Ok(())
    }
}

/// What a client may know of a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// The identity under which two vectors may be compared.
    pub embedding_space: Arc<str>,
    /// The revision: the digest of its manifest, shortened.
    pub revision: Arc<str>,
    /// The alias that it was asked for by.
    pub alias: Option<Alias>,
}

impl ModelInfo {
    /// What a client may know of the model `key` with this manifest.
    fn new(key: &Key, manifest: Arc<Manifest>) -> Self {
        let (_id, _version, revision) = key.parts();
        let embedding_space = manifest.embedding_space().into();
        Self { manifest, embedding_space, revision: revision.into(), alias: None }
    }
}

/// Before or after others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    Interactive,
    /// It may take its time.
    Bulk,
}

/// Whose turns requests take: owners take turns, and so do the connections of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The user or the tenant.
    pub owner: Owner,
    /// The connection, as a number.
    pub connection: u64,
}

/// Who takes turns with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A user, by its id.
    User(u32),
    /// A tenant, by a number of its own.
    Tenant(u64),
}

/// What a request brings along to the queue.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Whose turn it takes.
    pub flow: Flow,
    /// Before or after others; by the number of tokens when absent.
    pub priority: Option<Priority>,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// The tenant in whose own queue it waits; in that of its connection when absent.
    pub tenant: Option<Arc<str>>,
    /// From 1 to 9: the share of the turns of its queue against those of others.
    pub weight: u8,
}

/// What a request comes back with.
#[derive(Debug)]
pub struct Computed {
    /// `[texts, dimensions]`, or of token states `[tokens of all texts, hidden]`; row-major.
    pub vectors: Vec<f32>,
    /// How long it waited.
    pub queue: Duration,
    /// How long it was computed.
    pub inference: Duration,
}

/// A lease that was given back for a while. The model may leave memory meanwhile.
#[derive(Clone, Debug)]
pub struct Absent {
    name: String,
    key: Key,
    info: ModelInfo,
    stands_in: Option<Arc<StandIn>>,
}

/// The right to send requests to one resident model. While it lives the model stays in memory.
#[derive(Clone, Debug)]
pub struct Lease {
    name: String,
    key: Key,
    /// The model.
    pub info: ModelInfo,
    /// For whom it stands in, if it does.
    pub stands_in: Option<Arc<StandIn>>,
    tokenizer: Arc<Tokenizer>,
    queue: Sender,
    usage: Arc<Usage>,
    uses: Arc<Uses>,
}

impl Lease {
    /// Notes that `user` uses the model now: it does not leave for want of use while that user needs it.
    pub fn used_by(&self, user: User) {
        self.uses.note(user, tokio::time::Instant::now());
    }

    /// Turns a text into token ids. Takes up to milliseconds of processor time: not for the runtime's threads.
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

    /// All tokens of a text with where they come from; with `special`, the special tokens around it too. Takes a
    /// hundred times the memory of the text, and milliseconds: not for the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<Piece>, EngineError> {
        self.tokenizer.pieces(prompt, text, special)
    }

    /// The text that token ids stand for. Not for the runtime's threads.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Counts the first piece of a text that is not empty: its tokens, without special ones, and its length in bytes.
    /// Takes milliseconds: not for the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn count_piece(&self, text: &str) -> Result<(usize, usize), EngineError> {
        self.tokenizer.count_piece(text)
    }

    /// How many special tokens lie around a text.
    pub fn special_tokens(&self) -> usize {
        self.tokenizer.around()
    }

    /// Gives the lease back. [`Handle::renew`] takes it again.
    pub fn give_back(self) -> Absent {
        Absent { name: self.name, key: self.key, info: self.info, stands_in: self.stands_in }
    }

    /// Checks token ids that a client made itself, and puts the model's special tokens around them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_ids(ids, truncation)
    }

    /// Whether a request with this ticket could wait now, however short: before texts are tokenized for nothing. It is
    /// counted in [`Usage`] when it could not.
    ///
    /// # Errors
    /// When too many requests wait already, or the model has ended.
    pub fn check_queue(&self, ticket: &Ticket) -> Result<(), ModelError> {
        let began = Instant::now();
        self.queue.check(ticket).map_err(|error| {
            let latency = began.elapsed();
            let outcome = Served { texts: 0, tokens: 0, latency, ok: false };
            self.usage.record(&self.key, outcome, SystemTime::now());
            self.refused(error)
        })
    }

    fn refused(&self, error: PushError) -> ModelError {
        let name = self.name.clone();
        match error {
            PushError::Full { waiting, retry_after } => {
                ModelError::Overloaded { name, waiting, retry_after }
            }
            PushError::Closed => ModelError::Ended(name),
        }
    }

    /// What is wanted of `texts`; counted in [`Usage`].
    ///
    /// Cancelling drops the request: it is not begun, or stops after the pass that is being computed. It is not
    /// counted then, since it is nobody's success or failure.
    ///
    /// # Errors
    /// When too many requests wait already, or the model does not answer by the ticket's deadline.
    pub async fn embed(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<Computed, ModelError> {
        let (count, tokens) = (texts.len(), texts.iter().map(Vec::len).sum());
        let began = Instant::now();
        let answer = self.ask(texts, output, ticket).await;
        let latency = began.elapsed();
        let outcome = Served { texts: count, tokens, latency, ok: answer.is_ok() };
        self.usage.record(&self.key, outcome, SystemTime::now());
        answer
    }

    async fn ask(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<Computed, ModelError> {
        let pushed = self.queue.push(texts, output, &ticket);
        let answer = pushed.map_err(|error| self.refused(error))?;
        let patience = ticket.deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(patience, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(patience))?;
        Ok(answer.map_err(|_closed| ModelError::Ended(self.name.clone()))??)
    }
}
