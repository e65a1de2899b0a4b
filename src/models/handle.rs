//! Handle of the manager: the requests that other modules may send to it.
//!
//! Apart from the log of fallbacks, a handle has no state of its own. Every wait is bounded:
//! the manager replies within microseconds, and the work that it starts is awaited no longer than a
//! request may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::fallback::{self, Fallback, FallbackFor, FallbackLog};
use super::manager::{Command, Manager};
use super::model_state::Reservation;
use super::retention::KeepAliveRequest;
use super::usage::Usage;
use super::{
    FlushResult, Lease, LivenessProbe, MemoryView, ModelError, Overview, REQUEST_TIMEOUT,
    ReleasedLease, Residency, alias,
};
use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::engine::{EngineOptions, Footprint};
use crate::memory::monitor::{MemorySampler, Reading};
use crate::package::{EntryKey, Store, StoreEntry};
use crate::telemetry::events::{Event, Events};
use crate::telemetry::metrics::Metrics;

/// Commands that wait for the manager. It replies within microseconds, so that only bursts fill the
/// channel.
const MAX_COMMANDS: usize = 256;
/// Longest time that a request waits for a model that is loading before the client is asked to
/// retry.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Parts that a [`ManagerHandle`] and its manager need.
#[derive(Debug)]
pub struct ManagerParts {
    /// The verified packages.
    pub store: Arc<Store>,
    /// Options of the engine.
    pub options: EngineOptions,
    /// Current settings.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Sampler of the memory counters.
    pub sampler: MemorySampler,
    /// Last reading of the memory counters.
    pub readings: watch::Receiver<Reading>,
    /// Usage statistics of the models.
    pub usage: Arc<Usage>,
    /// Metrics.
    pub metrics: Metrics,
    /// Event stream.
    pub events: Events,
}

/// Handle of the manager.
#[derive(Clone, Debug)]
pub struct ManagerHandle {
    commands: mpsc::Sender<Command>,
    store: Arc<Store>,
    settings: watch::Receiver<Arc<Settings>>,
    overview: watch::Receiver<Overview>,
    sampler: MemorySampler,
    readings: watch::Receiver<Reading>,
    usage: Arc<Usage>,
    fallback_log: Arc<FallbackLog>,
    metrics: Metrics,
    events: Events,
}

impl ManagerHandle {
    /// Creates a manager: its handle, and the future that runs it. The future ends after `cancel`,
    /// when every worker has finished.
    pub fn new(
        parts: ManagerParts,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let (announce, overview) = watch::channel(Overview::default());
        let handle = Self {
            commands,
            store: Arc::clone(&parts.store),
            settings: parts.settings.clone(),
            overview,
            sampler: parts.sampler.clone(),
            readings: parts.readings.clone(),
            usage: Arc::clone(&parts.usage),
            fallback_log: Arc::default(),
            metrics: parts.metrics.clone(),
            events: parts.events.clone(),
        };
        let task = Manager::new(parts, announce).run(receiver, cancel);
        (handle, task)
    }

    /// Sends a command and waits for its reply.
    async fn send_command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ModelError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| ModelError::Draining)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?;
        answer.map_err(|_closed| ModelError::Draining)
    }

    /// Acquires a lease on `name` (`id`, `id@version`, `id@revision` or an alias), or on the
    /// default model; loads the model first if need be. Cancelling stops the wait, not the load.
    ///
    /// # Errors
    /// When there is no such model, it does not fit into memory, or it cannot be loaded.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ModelError> {
        let name = name.map_or_else(|| self.default_model(), str::to_owned);
        self.send_command(|reply| Command::Lease { name, reply }).await?
    }

    /// Acquires a lease on `wanted` by `deadline`, and waits no longer than [`LOAD_TIMEOUT`] while
    /// the model is loading. If the model cannot answer, the lease is on a fallback for which
    /// `is_allowed` returns true; [`Lease::fallback_for`] then describes the fallback. `named`
    /// means that the client itself named the model: in this case a model that is not installed is
    /// an error.
    ///
    /// # Errors
    /// Those of the wanted model, when no fallback may answer or can.
    pub async fn lease_for(
        &self,
        wanted: &str,
        named: bool,
        fallback: Fallback,
        is_allowed: impl Fn(&StoreEntry) -> bool,
        deadline: Instant,
    ) -> Result<Lease, ModelError> {
        let error = match self.lease_by(wanted, deadline).await {
            Ok(lease) => {
                self.fallback_log.record_recovery(wanted);
                return Ok(lease);
            }
            Err(error) if fallback::is_eligible(&error, named) => error,
            Err(error) => return Err(error),
        };
        let settings = Arc::clone(&self.settings.borrow());
        let (entries, aliases, memory) =
            (self.store.entries(), &settings.aliases, &settings.memory);
        let stand_ins =
            fallback::candidates(wanted, &entries, fallback, memory, aliases, is_allowed);
        for stand_in in stand_ins {
            // The deadline has passed: do not load a fallback that no client waits for.
            if Instant::now() >= deadline {
                break;
            }
            // Ask by revision: another content of the same version may have another embedding
            // space.
            let (id, _version, revision) = stand_in.parts();
            let name = stand_in.name();
            match self.lease_by(&format!("{id}@{revision}"), deadline).await {
                Ok(lease) if lease.key != stand_in => {
                    tracing::debug!(model = %stand_in, "cannot stand in: its revision is a version");
                }
                Ok(lease) => {
                    if self.fallback_log.record_fallback(wanted, name, &error) {
                        self.events.publish(Event::Fallback {
                            model: wanted.to_owned(),
                            answered_by: name.to_owned(),
                            reason: chain(&error),
                        });
                    }
                    let wanted = wanted.to_owned();
                    let stands_in = Some(Arc::new(FallbackFor { requested: wanted, error }));
                    return Ok(Lease { fallback_for: stands_in, ..lease });
                }
                Err(error) => {
                    tracing::debug!(model = %stand_in, error = chain(&error), "cannot stand in");
                }
            }
        }
        Err(error)
    }

    /// Reserves memory for `key` while it is loaded with `options` outside of the manager, until
    /// the reservation is dropped. Other models are evicted for it as for a request. Cancelling
    /// stops the wait.
    ///
    /// # Errors
    /// When it does not fit, with the numbers.
    pub(super) async fn reserve(
        &self,
        key: EntryKey,
        options: EngineOptions,
    ) -> Result<Reservation, ModelError> {
        self.send_command(|reply| Command::Reserve { key, options, reply }).await?
    }

    /// Checks whether a model of `footprint`, called `name`, would fit into memory if every
    /// evictable model were evicted. Blocks until the memory is measured and the manager has
    /// replied.
    ///
    /// # Errors
    /// When it does not fit, with the numbers, and when the daemon is stopping.
    pub(super) fn could_fit(&self, name: String, footprint: Footprint) -> Result<(), ModelError> {
        let sample = self.sampler.sample();
        let (reply, answer) = oneshot::channel();
        let command = Command::CouldFit { footprint, sample, reply };
        self.commands.blocking_send(command).map_err(|_closed| ModelError::Draining)?;
        let answer = answer.blocking_recv().map_err(|_closed| ModelError::Draining)?;
        answer.map_err(|refusal| ModelError::MemoryLimit { name, refusal: Arc::new(refusal) })
    }

    /// Returns a text of all limits on the memory of models, from the system and the settings. The
    /// text changes when any of them changes.
    pub(super) fn memory_limits(&self) -> String {
        let settings = self.settings.borrow();
        let sample = &self.readings.borrow().sample;
        let limits = Vec::from_iter(sample.limits.iter().map(|limit| limit.bytes));
        let total = sample.machine.total;
        format!("{total:?} {limits:?} {:?} {:?}", settings.memory, settings.models)
    }

    /// Acquires a lease on the same model as one that was given back, by `deadline`; loads the
    /// model first if need be.
    ///
    /// # Errors
    /// When the model is no longer installed, does not fit into memory, or cannot be loaded in
    /// time.
    pub async fn renew(
        &self,
        absent: &ReleasedLease,
        deadline: Instant,
    ) -> Result<Lease, ModelError> {
        let ReleasedLease { name, key, info, fallback_for: stands_in } = absent.clone();
        let lease =
            self.lease_by(&format!("{}@{}", info.manifest.id, info.revision), deadline).await?;
        // A revision is shortened, so that it may match another content by now.
        if lease.key != key {
            return Err(ModelError::Ended(name));
        }
        Ok(Lease { name, info, fallback_for: stands_in, ..lease })
    }

    async fn lease_by(&self, name: &str, deadline: Instant) -> Result<Lease, ModelError> {
        let patience = deadline.saturating_duration_since(Instant::now()).min(LOAD_TIMEOUT);
        match tokio::time::timeout(patience, self.lease(Some(name))).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let name = name.to_owned();
                Err(self.send_command(|reply| Command::ExplainTimeout { name, reply }).await?)
            }
        }
    }

    /// Returns the state of every model.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn residency(&self) -> Result<BTreeMap<EntryKey, Residency>, ModelError> {
        self.send_command(|reply| Command::Residency { reply }).await
    }

    /// Starts a liveness pass in the default model, if it is resident, and in every model with
    /// waiting requests; the passes go before those requests. Returns the probes. The reply itself
    /// shows that the manager is alive.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn start_probes(&self) -> Result<Vec<LivenessProbe>, ModelError> {
        self.send_command(|reply| Command::StartProbes { reply }).await
    }

    /// Returns the state of memory and of the models in it.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn memory(&self) -> Result<MemoryView, ModelError> {
        self.send_command(|reply| Command::Memory { reply }).await
    }

    /// Pins `name` once it is in memory, or unpins it. Overrides the settings until the next start
    /// of the daemon.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.send_command(|reply| Command::Pin { name, pinned, reply }).await?
    }

    /// Sets how long a user needs `name` after each use, until it is unloaded; does nothing if it
    /// is not in memory. The model stays until the needs of all its users are over. Pins and the
    /// memory plan override this.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn keep_alive(&self, name: &str, wish: KeepAliveRequest) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.send_command(|reply| Command::KeepAlive { name, wish, reply }).await?
    }

    /// Drains and unloads `name`, and waits until it is unloaded. Returns whether it was in memory.
    /// Cancelling stops the wait.
    ///
    /// # Errors
    /// When there is no such model, it is pinned, or it does not finish in time.
    pub async fn unload(&self, name: &str) -> Result<bool, ModelError> {
        let name = name.to_owned();
        let Some(gone) = self.send_command(|reply| Command::Unload { name, reply }).await?? else {
            return Ok(false);
        };
        let gone = tokio::time::timeout(REQUEST_TIMEOUT, gone).await;
        // The channel closes without a value if the model was removed from the store in the
        // meantime. It is unloaded as well.
        drop(gone.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?);
        Ok(true)
    }

    /// Unloads all models that are not pinned, and waits until they are unloaded. Cancelling stops
    /// the wait.
    ///
    /// # Errors
    /// When the daemon is stopping, or they do not finish in time.
    pub async fn flush(&self) -> Result<FlushResult, ModelError> {
        self.send_command(|reply| Command::Flush { reply }).await
    }

    /// Limits the memory of this process until the next start of the daemon; `None` leaves only the
    /// limits of the kernel. Waits until memory is measured against the new limit. Cancelling stops
    /// the wait.
    pub async fn set_memory_limit(&self, limit: Option<Bytes>) {
        let now = Instant::now();
        self.sampler.set_limit(limit);
        let mut readings = self.readings.clone();
        // An error means that the monitor has ended, which only happens when the daemon stops.
        drop(readings.wait_for(|reading| reading.at >= now).await);
    }

    /// Notifies the manager of a change of the store, and of the entries that were removed.
    pub async fn notify_store_changed(&self, gone: Vec<EntryKey>) {
        // A manager that has ended has dropped all models.
        drop(self.commands.send(Command::StoreChanged { removed: gone }).await);
    }

    /// Reports the degraded parts of the daemon to the manager, one sentence each.
    pub async fn report_degraded(&self, degraded: Vec<String>) {
        // A manager that has ended does not announce anything.
        drop(self.commands.send(Command::ReportDegraded { degraded }).await);
    }

    /// Returns the usage statistics of the models.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the event stream.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the name of the model that answers requests without a model name. An alias is
    /// resolved.
    pub fn default_model(&self) -> String {
        let settings = self.settings.borrow();
        alias::resolve_without_canary(&settings.aliases, settings.default_model())
    }

    /// Returns the summary of all models, and its changes.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.clone()
    }
}
