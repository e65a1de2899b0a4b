//! Models: which are in memory, who may send them requests, and how packages become models.
//!
//! Owns the workers, the manager's table and the rules of installation. Others hold a [`Handle`] (to ask) or a
//! [`Lease`] (to send requests to one resident model); neither can change a model's state.

mod error;
pub mod install;
pub mod intake;
pub mod load;
mod manager;
pub mod usage;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use error::ModelError;
pub use worker::WorkerError;

use crate::config::Settings;
use crate::engine::{EngineError, Options, Report, Tokenizer, Tokens};
use crate::package::{Entry, Key, Manifest, Store};
use manager::{Command, Manager};
use usage::{Served, Usage};
use worker::Job;

/// Requests that wait for the manager; it answers within microseconds, so that this is never reached but in bursts.
const COMMANDS: usize = 256;
/// The longest that a request may take, loading the model included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// The part of the settings that the manager follows while it runs.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The model that answers when a request names none.
    pub default_model: String,
    /// Whether only models that came with the appliance are served.
    pub bundled_only: bool,
    /// Requests that may wait for one model; for models loaded from now on.
    pub queue_size: usize,
}

impl From<&Settings> for Serving {
    fn from(settings: &Settings) -> Self {
        Self {
            default_model: settings.memory.embedding_model.clone(),
            bundled_only: settings.memory.model_cache.bundled_only,
            queue_size: settings.embedding.queue_size,
        }
    }
}

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
    /// The last load failed, with this cause.
    Failed(String),
}

/// Where the default model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
}

impl Overview {
    /// Whether the default model can answer at once.
    pub fn is_ready(&self) -> bool {
        self.state == DefaultState::Ready
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default_model, state, installed } = self;
        let state = match state {
            DefaultState::NotInstalled => "not installed",
            DefaultState::Corrupt => "corrupt",
            DefaultState::Absent => "not loaded",
            DefaultState::Loading => "loading",
            DefaultState::Ready => "ready",
            DefaultState::Failed => "cannot be loaded",
        };
        let models = if *installed == 1 { "model" } else { "models" };
        write!(f, "{default_model} {state}, {installed} {models} installed")
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
}

impl ModelInfo {
    /// What a client may know of `entry`.
    pub fn new(entry: &Entry) -> Self {
        Self {
            manifest: Arc::clone(&entry.manifest),
            embedding_space: entry.manifest.embedding_space(),
            revision: entry.record.manifest_digest.short(),
        }
    }
}

/// The right to send requests to one resident model. While it lives the model stays in memory.
#[derive(Clone, Debug)]
pub struct Lease {
    name: String,
    key: Key,
    /// The model.
    pub info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    queue: mpsc::Sender<Job>,
    usage: Arc<Usage>,
}

impl Lease {
    /// Turns a text into token ids. Takes up to milliseconds of processor time: not for the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(&self, prompt: &str, text: &str) -> Result<Tokens, EngineError> {
        self.tokenizer.encode(prompt, text)
    }

    /// Checks token ids that a client made itself, and puts the model's special tokens around them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_ids(ids)
    }

    /// The vectors of `texts`, `[texts.len(), dimensions]` row-major; counted in [`Usage`].
    ///
    /// Cancelling drops the request: it is not begun, or stops after the pass that is being computed. It is not
    /// counted then, since it is nobody's success or failure.
    ///
    /// # Errors
    /// When too many requests wait already, or the model does not answer.
    pub async fn embed(&self, texts: Vec<Vec<u32>>) -> Result<Vec<f32>, ModelError> {
        let (count, tokens) = (texts.len(), texts.iter().map(Vec::len).sum());
        let began = Instant::now();
        let answer = self.ask(texts).await;
        let latency = began.elapsed();
        let outcome = Served { texts: count, tokens, latency, ok: answer.is_ok() };
        self.usage.record(&self.key, outcome, SystemTime::now());
        answer
    }

    async fn ask(&self, texts: Vec<Vec<u32>>) -> Result<Vec<f32>, ModelError> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Job { texts, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ModelError::Overloaded {
                name: self.name.clone(),
                waiting: self.queue.max_capacity(),
            },
            mpsc::error::TrySendError::Closed(_) => ModelError::Ended(self.name.clone()),
        })?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?;
        Ok(answer.map_err(|_closed| ModelError::Ended(self.name.clone()))??)
    }
}

/// The way to the manager.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    store: Arc<Store>,
    serving: watch::Receiver<Serving>,
    overview: watch::Receiver<Overview>,
    usage: Arc<Usage>,
}

impl Handle {
    /// Makes a manager over `store`, which counts in `usage`: the handle, and the future that is its task and ends after `cancel` when every
    /// worker has finished.
    pub fn new(
        store: Arc<Store>,
        options: Options,
        serving: watch::Receiver<Serving>,
        usage: Arc<Usage>,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (announce, overview) = watch::channel(Overview::default());
        let manager = Manager::new(
            Arc::clone(&store),
            options,
            serving.clone(),
            announce,
            Arc::clone(&usage),
        );
        let task = manager.run(receiver, cancel);
        (Self { commands, store, serving, overview, usage }, task)
    }

    /// The right to send requests to `name` (`id` or `id@version`), or to the default model; loads it first if need
    /// be. Cancelling gives up waiting; the load goes on.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be loaded.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ModelError> {
        let name = name.map_or_else(|| self.serving.borrow().default_model.clone(), str::to_owned);
        let (reply, answer) = oneshot::channel();
        let command = Command::Lease { name, reply };
        self.commands.send(command).await.map_err(|_closed| ModelError::Draining)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?;
        answer.map_err(|_closed| ModelError::Draining)?
    }

    /// Which models are in memory.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn residency(&self) -> Result<BTreeMap<Key, Residency>, ModelError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Residency { reply };
        self.commands.send(command).await.map_err(|_closed| ModelError::Draining)?;
        answer.await.map_err(|_closed| ModelError::Draining)
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

    /// The name of the model that answers when a request names none.
    pub fn default_model(&self) -> String {
        self.serving.borrow().default_model.clone()
    }

    /// The models in one line, and changes of that.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.clone()
    }
}
