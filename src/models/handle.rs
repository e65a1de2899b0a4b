//! The way to the manager: what the rest of the daemon may ask of models.
//!
//! Owns no state of its own but what the journal was told of models that stand in for others. Every question has a
//! bound: the manager answers within microseconds, and what it begins is waited for no longer than a request may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::fallback::{self, Fallback, StandIn, Told};
use super::manager::{Command, Manager};
use super::needs::Wish;
use super::slot::Reservation;
use super::usage::Usage;
use super::{
    Absent, Beat, Flushed, Lease, MemoryView, ModelError, Overview, REQUEST_TIMEOUT, Residency,
    alias,
};
use crate::config::Settings;
use crate::engine::{Footprint, Options};
use crate::errors::chain;
use crate::events::{Event, Events};
use crate::memory::monitor::{Gauge, Reading};
use crate::metrics::Metrics;
use crate::package::{Entry, Key, Store};
use crate::units::Bytes;

/// Requests that wait for the manager; it answers within microseconds, so that this is never reached but in bursts.
const COMMANDS: usize = 256;
/// The longest that a request waits for a model that is loading, before it is told to come again.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

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
    /// Where things are counted.
    pub metrics: Metrics,
    /// Where things are told.
    pub events: Events,
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
    metrics: Metrics,
    events: Events,
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
            metrics: parts.metrics.clone(),
            events: parts.events.clone(),
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
    /// answer, a model that may stand in for it, as [`Lease::stands_in`] says, of those that `is_allowed`. `named` by the
    /// request itself, a model that is not installed is a mistake.
    ///
    /// # Errors
    /// Those of the model that was asked for, when no other may or can answer.
    pub async fn lease_for(
        &self,
        wanted: &str,
        named: bool,
        fallback: Fallback,
        is_allowed: impl Fn(&Entry) -> bool,
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
        let (entries, aliases, memory) =
            (self.store.entries(), &settings.aliases, &settings.memory);
        let stand_ins =
            fallback::stand_ins(wanted, &entries, fallback, memory, aliases, is_allowed);
        for stand_in in stand_ins {
            // Nobody waits any more: nothing is loaded for nobody.
            if Instant::now() >= deadline {
                break;
            }
            // By its content: another of its version may be of another embedding space.
            let (id, _version, revision) = stand_in.parts();
            let name = stand_in.name();
            match self.lease_by(&format!("{id}@{revision}"), deadline).await {
                Ok(lease) if lease.key != stand_in => {
                    tracing::debug!(model = %stand_in, "cannot stand in: its revision is a version");
                }
                Ok(lease) => {
                    if self.told.stands_in(wanted, name, &error) {
                        self.events.send(Event::Fallback {
                            model: wanted.to_owned(),
                            answered_by: name.to_owned(),
                            reason: chain(&error),
                        });
                    }
                    let wanted = wanted.to_owned();
                    let stands_in = Some(Arc::new(StandIn { wanted, error }));
                    return Ok(Lease { stands_in, ..lease });
                }
                Err(error) => {
                    tracing::debug!(model = %stand_in, error = chain(&error), "cannot stand in");
                }
            }
        }
        Err(error)
    }

    /// Keeps memory for `key` while it is loaded with `options` outside of the manager, until the reservation is
    /// dropped; others leave for it as for a request. Cancelling gives up waiting.
    ///
    /// # Errors
    /// When it does not fit, with the numbers.
    pub(super) async fn reserve(
        &self,
        key: Key,
        options: Options,
    ) -> Result<Reservation, ModelError> {
        self.ask(|reply| Command::Reserve { key, options, reply }).await?
    }

    /// Returns an error when a model of `footprint`, called `name`, will not fit into memory however often it is tried,
    /// with everything gone that may leave. Blocks until memory was measured and the manager answered.
    ///
    /// # Errors
    /// When it does not fit, with the numbers, and when the daemon is stopping.
    pub(super) fn could_fit(&self, name: String, footprint: Footprint) -> Result<(), ModelError> {
        let sample = self.gauge.sample();
        let (reply, answer) = oneshot::channel();
        let command = Command::CouldFit { footprint, sample, reply };
        self.commands.blocking_send(command).map_err(|_closed| ModelError::Draining)?;
        let answer = answer.blocking_recv().map_err(|_closed| ModelError::Draining)?;
        answer.map_err(|refusal| ModelError::MemoryLimit { name, refusal: Arc::new(refusal) })
    }

    /// What bounds the memory of models: the limits of the system and the settings. Any change of them changes the text.
    pub(super) fn memory_limits(&self) -> String {
        let settings = self.settings.borrow();
        let sample = &self.readings.borrow().sample;
        let limits = Vec::from_iter(sample.limits.iter().map(|limit| limit.bytes));
        let total = sample.machine.total;
        format!("{total:?} {limits:?} {:?} {:?}", settings.memory, settings.models)
    }

    /// A lease of the same model as one that was given back, by `deadline`; loads the model first if need be.
    ///
    /// # Errors
    /// When the model is not installed any more, does not fit into memory, or cannot be loaded in time.
    pub async fn renew(&self, absent: &Absent, deadline: Instant) -> Result<Lease, ModelError> {
        let Absent { name, key, info, stands_in } = absent.clone();
        let lease =
            self.lease_by(&format!("{}@{}", info.manifest.id, info.revision), deadline).await?;
        // The revision is short: it may mean another content by now.
        if lease.key != key {
            return Err(ModelError::Ended(name));
        }
        Ok(Lease { name, info, stands_in, ..lease })
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

    /// Asks the default model, if it is in memory, and every model that has work for a forward pass before that work. Who
    /// was asked; the answer alone shows that the manager lives.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn beats(&self) -> Result<Vec<Beat>, ModelError> {
        self.ask(|reply| Command::Beats { reply }).await
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

    /// Tells for how long a user needs `name` after each use, until it leaves memory; nothing when it is not there. It
    /// stays until the need of every user who used it is over. Pins and the memory plan go before it.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn keep_alive(&self, name: &str, wish: Wish) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.ask(|reply| Command::KeepAlive { name, wish, reply }).await?
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

    /// Tells the manager what does not work as it should while models are served: a sentence each.
    pub async fn degraded(&self, degraded: Vec<String>) {
        // A manager that has ended announces nothing any more.
        drop(self.commands.send(Command::Degraded { degraded }).await);
    }

    /// What models are used for how much.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Where things are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where things are told.
    pub fn events(&self) -> &Events {
        &self.events
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
