//! Models: which are in memory, who may send them requests, and how packages become models.
//!
//! Owns the workers, the manager's table and the rules of installation. Others hold a [`Handle`] (to ask) or a
//! [`Lease`] (to send requests to one resident model); neither can change a model's state.

pub mod alias;
mod error;
mod fallback;
pub mod install;
pub mod intake;
pub mod load;
mod manager;
mod memory;
mod queue;
mod slot;
pub mod usage;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use error::ModelError;
pub use fallback::{Fallback, StandIn};
pub use memory::{ActionRecord, Flushed, MemoryView, ModelView, thresholds};
pub use slot::{KeepAlive, Refusal};
pub use worker::WorkerError;

use crate::config::Settings;
use crate::engine::{EngineError, Options, Output, Piece, Report, Tokenizer, Tokens, Truncation};
use crate::errors::chain;
use crate::memory::level::Level;
use crate::memory::monitor::{Gauge, Reading};
use crate::package::{Entry, Key, Manifest, Store};
use crate::units::Bytes;
use alias::Alias;
use fallback::Told;
use manager::{Command, Manager};
use queue::{PushError, Sender};
use usage::{Served, Usage};

/// Requests that wait for the manager; it answers within microseconds, so that this is never reached but in bursts.
const COMMANDS: usize = 256;
/// The longest that a request waits for a model that is loading, before it is told to come again.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);
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
}

impl Overview {
    /// Whether the default model answers, after loading at most.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, DefaultState::Ready | DefaultState::Unloaded)
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default_model, state, installed, level, source } = self;
        let state = match state {
            DefaultState::NotInstalled => "not installed",
            DefaultState::Corrupt => "corrupt",
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
        )
    }
}

/// What a client may know of a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// The identity under which two vectors may be compared.
    pub embedding_space: String,
    /// The revision: the digest of its manifest, shortened.
    pub revision: String,
    /// The alias that it was asked for by.
    pub alias: Option<Alias>,
}

impl ModelInfo {
    /// What a client may know of `entry`.
    pub fn new(entry: &Entry) -> Self {
        Self {
            manifest: Arc::clone(&entry.manifest),
            embedding_space: entry.manifest.embedding_space(),
            revision: entry.record.manifest_digest.short(),
            alias: None,
        }
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

/// What a request brings along to the queue.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The connection that it came over: no connection takes the turns of others.
    pub connection: u64,
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
}

impl Lease {
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

    /// How many tokens a text has, special tokens included, however long it is. Takes the more processor time the longer
    /// the text: not for the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn count_tokens(&self, prompt: &str, text: &str) -> Result<usize, EngineError> {
        self.tokenizer.count(prompt, text)
    }

    /// Checks token ids that a client made itself, and puts the model's special tokens around them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_ids(ids, truncation)
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
        let (reply, answer) = oneshot::channel();
        self.queue.push(texts, output, &ticket, reply).map_err(|error| match error {
            PushError::Full { waiting, retry_after } => {
                ModelError::Overloaded { name: self.name.clone(), waiting, retry_after }
            }
            PushError::Closed => ModelError::Ended(self.name.clone()),
        })?;
        let patience = ticket.deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(patience, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(patience))?;
        Ok(answer.map_err(|_closed| ModelError::Ended(self.name.clone()))??)
    }
}

/// What a [`Handle`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The verified packages.
    pub store: Arc<Store>,
    /// How models are computed.
    pub options: Options,
    /// The settings that hold now.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Measures memory.
    pub gauge: Gauge,
    /// What was measured last.
    pub readings: watch::Receiver<Reading>,
    /// What models are used for how much.
    pub usage: Arc<Usage>,
}

/// The way to the manager.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    store: Arc<Store>,
    settings: watch::Receiver<Arc<Settings>>,
    overview: watch::Receiver<Overview>,
    gauge: Gauge,
    readings: watch::Receiver<Reading>,
    usage: Arc<Usage>,
    told: Arc<Told>,
}

impl Handle {
    /// Makes a manager: the handle, and the future that is its task and ends after `cancel` when every worker has
    /// finished.
    pub fn new(
        parts: Parts,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (announce, overview) = watch::channel(Overview::default());
        let handle = Self {
            commands,
            store: Arc::clone(&parts.store),
            settings: parts.settings.clone(),
            overview,
            gauge: parts.gauge.clone(),
            readings: parts.readings.clone(),
            usage: Arc::clone(&parts.usage),
            told: Arc::default(),
        };
        let task = Manager::new(parts, announce).run(receiver, cancel);
        (handle, task)
    }

    /// The answer to a command.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ModelError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| ModelError::Draining)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?;
        answer.map_err(|_closed| ModelError::Draining)
    }

    /// The right to send requests to `name` (`id`, `id@version`, `id@revision` or an alias), or to the default model;
    /// loads it first if need be. Cancelling gives up waiting; the load goes on.
    ///
    /// # Errors
    /// When there is no such model, it does not fit into memory, or it cannot be loaded.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ModelError> {
        let name = name.map_or_else(|| self.default_model(), str::to_owned);
        self.ask(|reply| Command::Lease { name, reply }).await?
    }

    /// The same by `deadline`, and for no longer than [`LOAD_PATIENCE`] while the model is loading; when it cannot
    /// answer, a model that may stand in for it, as [`Lease::stands_in`] says. `named` by the request itself, a model that is
    /// not installed is a mistake.
    ///
    /// # Errors
    /// Those of the model that was asked for, when no other may or can answer.
    pub async fn lease_for(
        &self,
        wanted: &str,
        named: bool,
        fallback: Fallback,
        deadline: Instant,
    ) -> Result<Lease, ModelError> {
        let error = match self.lease_by(wanted, deadline).await {
            Ok(lease) => {
                self.told.answers(wanted);
                return Ok(lease);
            }
            Err(error) if fallback::is_called_for(&error, named) => error,
            Err(error) => return Err(error),
        };
        let settings = Arc::clone(&self.settings.borrow());
        let stand_ins =
            fallback::stand_ins(wanted, &self.store.entries(), fallback, &settings.memory);
        for stand_in in stand_ins {
            match self.lease_by(&stand_in, deadline).await {
                Ok(lease) => {
                    self.told.stands_in(wanted, &stand_in, &error);
                    let wanted = wanted.to_owned();
                    let stands_in = Some(Arc::new(StandIn { wanted, error }));
                    return Ok(Lease { stands_in, ..lease });
                }
                Err(error) => {
                    tracing::debug!(model = stand_in, error = chain(&error), "cannot stand in");
                }
            }
        }
        Err(error)
    }

    async fn lease_by(&self, name: &str, deadline: Instant) -> Result<Lease, ModelError> {
        let patience = deadline.saturating_duration_since(Instant::now()).min(LOAD_PATIENCE);
        match tokio::time::timeout(patience, self.lease(Some(name))).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let name = name.to_owned();
                Err(self.ask(|reply| Command::Loading { name, reply }).await?)
            }
        }
    }

    /// Which models are in memory.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn residency(&self) -> Result<BTreeMap<Key, Residency>, ModelError> {
        self.ask(|reply| Command::Residency { reply }).await
    }

    /// What is known of memory and of the models in it.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn memory(&self) -> Result<MemoryView, ModelError> {
        self.ask(|reply| Command::Memory { reply }).await
    }

    /// Keeps `name` in memory whatever happens once it is there, or no longer; over the settings, until the next start.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.ask(|reply| Command::Pin { name, pinned, reply }).await?
    }

    /// Has `name` stay in memory for so long after each use, in place of its `max_idle_time`, until it leaves; nothing
    /// when it is not there. Pins and the memory plan go before it.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn keep_alive(&self, name: &str, keep_alive: KeepAlive) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.ask(|reply| Command::KeepAlive { name, keep_alive, reply }).await?
    }

    /// Lets `name` finish what it has and leave memory; waits until it has. Says whether it was there. Cancelling gives
    /// up waiting.
    ///
    /// # Errors
    /// When there is no such model, it is pinned, or it does not finish in time.
    pub async fn unload(&self, name: &str) -> Result<bool, ModelError> {
        let name = name.to_owned();
        let Some(gone) = self.ask(|reply| Command::Unload { name, reply }).await?? else {
            return Ok(false);
        };
        let gone = tokio::time::timeout(REQUEST_TIMEOUT, gone).await;
        // Closed without a word when it left the store meanwhile: it has gone as well.
        drop(gone.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?);
        Ok(true)
    }

    /// Lets all models leave that are not pinned; waits until they have. Cancelling gives up waiting.
    ///
    /// # Errors
    /// When the daemon is stopping, or they do not finish in time.
    pub async fn flush(&self) -> Result<Flushed, ModelError> {
        self.ask(|reply| Command::Flush { reply }).await
    }

    /// Limits the memory of this process from now until the next start; `None` leaves the limits of the kernel alone.
    /// Waits until memory was measured against it. Cancelling gives up waiting.
    pub async fn set_memory_limit(&self, limit: Option<Bytes>) {
        let now = Instant::now();
        self.gauge.set_limit(limit);
        let mut readings = self.readings.clone();
        // A monitor that has ended is that of a daemon that is stopping.
        drop(readings.wait_for(|reading| reading.at >= now).await);
    }

    /// Tells the manager that the store has changed, and which entries it holds no more.
    pub async fn store_changed(&self, gone: Vec<Key>) {
        // A manager that has ended has let go of everything.
        drop(self.commands.send(Command::StoreChanged { gone }).await);
    }

    /// What models are used for how much.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The name of the model that answers when a request names none: what an alias means, not its name.
    pub fn default_model(&self) -> String {
        let settings = self.settings.borrow();
        alias::meant(&settings.aliases, settings.default_model())
    }

    /// The models in one line, and changes of that.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.clone()
    }
}
