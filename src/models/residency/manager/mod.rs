//! The manager: the only task that decides which models are in memory.
//!
//! It handles one command at a time. Measurements, loads and unloads run on other threads, so that
//! the manager never waits for one. No other code starts or ends a worker. The decisions are in the
//! files beside this one: [`admission`] loads models, [`pressure`] evicts them when memory is
//! short, [`lifecycle`] unloads them when they are idle or on request, and [`live_settings`] applies
//! changed settings to models that are resident already.
//!
//! Requests for resident models do not pass through the manager: see [`ServingTable`], which the
//! manager keeps up to date.
//!
//! Invariants:
//! 1. There is at most one load at a time for a model, however many requests wait for it, and it
//!    begins only after the model is known to fit.
//! 2. A model that failed to load is not loaded again within [`LOAD_BACKOFF`], an evicted one not
//!    within `memory.pressure.reload_cooldown`.
//! 3. A worker whose entry was removed from the store gets no further requests; it finishes the
//!    ones that it has.
//! 4. The default model is in memory or being loaded while it is installed, unless its load failed,
//!    or it was unloaded or evicted.
//! 5. A model is in the serving table only while its state is [`ModelState::Resident`].

mod admission;
mod lifecycle;
mod live_settings;
mod pressure;
mod release;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::errors::{chain, errno};
use crate::config::Settings;
use crate::engine::{EngineOptions, Footprint};
use crate::memory::level::PressureLevel;
use crate::memory::monitor::{MemorySampler, Reading};
use crate::memory::sample::Sample;
use crate::models::catalog::{Catalog, CatalogSource};
use crate::models::error::{MemoryRefusal, ModelError};
use crate::models::residency::model_state::{
    LeaseRequest, ModelState, PendingAdmission, ReserveReply, WaitingLeases,
};
use crate::models::residency::retention::KeepAliveRequest;
use crate::models::serving::table::ServingTable;
use crate::models::serving::worker::{ReadyModel, WorkerError};
use crate::models::usage::{Usage, WriteFailures};
use crate::models::{
    ActionRecord, DefaultModelState, FlushResult, FlushScope, LivenessProbe, MemoryView, Overview,
    Residency,
};
use crate::package::{EntryKey, Store};
use crate::telemetry::events::Events;
use crate::telemetry::log::Message;
use crate::telemetry::metrics::{LeaseOutcome, Metrics};
use admission::{FootprintEstimate, LoadReason};
use lifecycle::{PendingFlush, UnloadedModel};
use pressure::{Episode, ReleaseReason};

/// Time after a failed load before the next one. A load that failed usually fails again, and
/// without this time the retries of a client would become a loop of loads.
const LOAD_BACKOFF: Duration = Duration::from_secs(30);
/// Interval at which the access and usage counts are written, and models are preloaded.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// Number of actions that are kept for `/api/memory/status`.
const MAX_ACTIONS: usize = 32;

/// Parts that the manager and its [`ManagerHandle`](crate::models::ManagerHandle) need.
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

/// Command to the manager.
#[derive(Debug)]
pub(in crate::models) enum Command {
    /// Returns the right to send requests to a model, and loads the model first if need be.
    Lease(LeaseRequest),
    /// Reserves memory for a model that an installation tests with these options.
    Reserve { key: EntryKey, options: EngineOptions, reply: ReserveReply },
    /// Reports whether a model of this footprint could ever be admitted; nothing else is known of
    /// it.
    CouldFit {
        footprint: Footprint,
        sample: Sample,
        reply: oneshot::Sender<Result<(), MemoryRefusal>>,
    },
    /// Reports why a model did not answer in time.
    ExplainTimeout { name: String, reply: oneshot::Sender<ModelError> },
    /// Returns the state of every model.
    Residency { reply: oneshot::Sender<BTreeMap<EntryKey, Residency>> },
    /// Starts liveness passes.
    StartProbes { reply: oneshot::Sender<Vec<LivenessProbe>> },
    /// Reports the state of memory.
    Memory { reply: oneshot::Sender<MemoryView> },
    /// Handles a change of the store: drops the models that were removed, and loads the default
    /// model if it was installed.
    StoreChanged { removed: Vec<EntryKey> },
    /// Announces the degraded parts of the daemon.
    ReportDegraded { degraded: Vec<String> },
    /// Pins or unpins a model, until the next start of the daemon.
    Pin { name: String, pinned: bool, reply: oneshot::Sender<Result<(), ModelError>> },
    /// Sets how long a resident model stays after each use.
    KeepAlive {
        name: String,
        wish: KeepAliveRequest,
        reply: oneshot::Sender<Result<(), ModelError>>,
    },
    /// Unloads a model; `is_forced` drops its waiting requests. The inner receiver ends when it is
    /// unloaded.
    Unload {
        name: String,
        is_forced: bool,
        reply: oneshot::Sender<Result<(EntryKey, UnloadEnd), ModelError>>,
    },
    /// Frees memory. Replies when it is freed.
    Flush { scope: FlushScope, reply: oneshot::Sender<FlushResult> },
}

/// End of an unload; `None` when the model was not in memory.
pub(in crate::models) type UnloadEnd = Option<oneshot::Receiver<()>>;

/// State of the manager; see the module.
pub(in crate::models) struct Manager {
    parts: ManagerParts,
    catalog: Arc<CatalogSource>,
    serving: Arc<ServingTable>,
    overview: watch::Sender<Overview>,
    states: BTreeMap<EntryKey, ModelState>,
    /// Pins that administrators set; they override the settings.
    pins: BTreeMap<EntryKey, bool>,
    /// Time at which a user's `keep_alive` unloaded a model early; kept for a minute.
    unloaded_early: BTreeMap<EntryKey, Instant>,
    /// Models whose self-test failed in the precision that `auto` chose.
    f32_only: BTreeSet<EntryKey>,
    estimates: JoinSet<FootprintEstimate>,
    /// Each ends when an installation has finished the self-test of a model.
    reserved: JoinSet<EntryKey>,
    loads: JoinSet<(EntryKey, ThreadId, Result<ReadyModel, WorkerError>)>,
    unloads: JoinSet<UnloadedModel>,
    /// Releases of memory without an unload.
    releasing: JoinSet<ReleaseReason>,
    /// Writes of the counts, which may wait for the disk.
    writing: JoinSet<()>,
    /// Pressure level of the last reading.
    level: PressureLevel,
    episode: Option<Episode>,
    flushes: Vec<PendingFlush>,
    actions: VecDeque<ActionRecord>,
    /// Degraded parts of the daemon, one sentence each.
    degraded: Vec<String>,
    usage_write_failures: Arc<WriteFailures>,
    access_write_failures: Arc<WriteFailures>,
}

impl Manager {
    pub(in crate::models) fn new(
        parts: ManagerParts,
        catalog: Arc<CatalogSource>,
        serving: Arc<ServingTable>,
        overview: watch::Sender<Overview>,
    ) -> Self {
        Self {
            parts,
            catalog,
            serving,
            overview,
            states: BTreeMap::new(),
            pins: BTreeMap::new(),
            unloaded_early: BTreeMap::new(),
            f32_only: BTreeSet::new(),
            estimates: JoinSet::new(),
            reserved: JoinSet::new(),
            loads: JoinSet::new(),
            unloads: JoinSet::new(),
            releasing: JoinSet::new(),
            writing: JoinSet::new(),
            level: PressureLevel::Normal,
            episode: None,
            flushes: Vec::new(),
            actions: VecDeque::new(),
            degraded: Vec::new(),
            usage_write_failures: Arc::default(),
            access_write_failures: Arc::default(),
        }
    }

    /// Handles commands until `cancel`; then drops every queue and waits until the workers have
    /// finished.
    pub(in crate::models) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        // The first tick comes at once, when there is nothing to write.
        flush.tick().await;
        self.publish_overview();
        loop {
            // Every event may change how long models are needed, so the timer is computed again.
            let idle = self.next_idle();
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(estimate) = self.estimates.join_next() => match estimate {
                    Ok(estimate) => self.on_estimate(estimate),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "task that estimates a footprint was lost"
                    ),
                },
                Some(tested) = self.reserved.join_next() => match tested {
                    Ok(key) => self.on_self_test_done(&key),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "task that waits for a self-test was lost"
                    ),
                },
                Some(loaded) = self.loads.join_next() => match loaded {
                    Ok((key, thread, outcome)) => self.on_loaded(key, thread, outcome),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "task that waits for a load was lost"
                    ),
                },
                Some(unloaded) = self.unloads.join_next() => match unloaded {
                    Ok(unloaded) => self.on_unloaded(unloaded),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "task that waits for the end of a worker was lost"
                    ),
                },
                Some(released) = self.releasing.join_next() => {
                    if let Err(error) = &released {
                        tracing::error!(
                            name: Message::InternalFault.name(),
                            %error,
                            "task that releases memory was lost"
                        );
                    }
                    match released {
                        Ok(ReleaseReason::Request) => self.parts.sampler.wake(),
                        // A lost task may have been a step.
                        Ok(ReleaseReason::Pressure) | Err(_) => self.on_step_done(),
                    }
                }
                Some(written) = self.writing.join_next() => {
                    on_counts_written(written);
                    continue;
                }
                Ok(()) = self.parts.readings.changed() => self.on_pressure(),
                () = sleep_until(idle), if idle.is_some() => self.unload_idle(),
                _ = flush.tick() => {
                    // A slow disk gets no second write while one is in progress.
                    if self.writing.is_empty() {
                        self.write_counts();
                    }
                    self.preload_expected();
                }
                Ok(()) = self.parts.settings.changed() => {
                    self.apply_settings();
                    self.load_default();
                    self.preload_expected();
                }
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    // A command that only asks changes nothing that others see.
                    if !self.handle_command(command) {
                        continue;
                    }
                }
            }
            // The load that others waited for may have started, or failed.
            self.resume_yielding();
            self.publish_overview();
        }
        // Close the channel before waiting for the workers: commands in it fail at once with
        // "draining".
        drop(commands);
        for key in Vec::from_iter(self.states.keys().cloned()) {
            self.forget(&key);
        }
        while self.unloads.join_next().await.is_some() {}
        // Two writes at once could leave the older counts in the file.
        self.finish_writing().await;
        self.write_counts();
        self.finish_writing().await;
    }

    /// Waits until the writes of the counts in progress have ended.
    async fn finish_writing(&mut self) {
        while let Some(written) = self.writing.join_next().await {
            on_counts_written(written);
        }
    }

    /// Handles a command. Returns whether the overview may have changed.
    fn handle_command(&mut self, command: Command) -> bool {
        // Replies may fail, because a client may have cancelled.
        match command {
            Command::Lease(request) => {
                let Some((key, outcome)) = self.lease(request) else { return false };
                self.parts.metrics.count_lease(key.name(), outcome);
                return outcome != LeaseOutcome::Hit;
            }
            Command::ExplainTimeout { name, reply } => {
                drop(reply.send(self.explain_timeout(name)));
                return false;
            }
            Command::Residency { reply } => {
                drop(reply.send(self.residency()));
                return false;
            }
            Command::Memory { reply } => {
                drop(reply.send(self.memory_view()));
                return false;
            }
            Command::Reserve { key, options, reply } => {
                self.admit(key, LoadReason::SelfTest(options, reply));
            }
            Command::CouldFit { footprint, sample, reply } => {
                drop(reply.send(self.could_fit(&footprint, &sample)));
                return false;
            }
            Command::StartProbes { reply } => {
                drop(reply.send(self.start_probes()));
                return false;
            }
            Command::StoreChanged { removed } => {
                removed.iter().for_each(|key| self.forget(key));
                // Entries whose files could not be read may have been written again, so forget
                // their failures.
                self.states.retain(|_key, slot| !slot.failed_in_store());
                self.load_default();
            }
            Command::ReportDegraded { degraded } => self.degraded = degraded,
            Command::Pin { name, pinned, reply } => drop(reply.send(self.pin(&name, pinned))),
            Command::KeepAlive { name, wish, reply } => {
                drop(reply.send(self.keep_alive(&name, wish)));
            }
            Command::Unload { name, is_forced, reply } => {
                drop(reply.send(self.unload(&name, is_forced)));
            }
            Command::Flush { scope, reply } => self.flush(scope, reply),
        }
        true
    }

    /// Replies now, or when the model is loaded. Returns the model and the outcome of the lookup;
    /// `None` when there is no such model.
    fn lease(&mut self, request: LeaseRequest) -> Option<(EntryKey, LeaseOutcome)> {
        let now = Instant::now();
        let key = match self.find(&request.name) {
            Ok(key) => key,
            Err(error) => {
                drop(request.reply.send(Err(error)));
                return None;
            }
        };
        // Only resident models are shed here. For others, admission refuses with the numbers.
        if self.is_shed(&key) {
            let retry_after = self.parts.settings.borrow().memory.pressure.recovery_time;
            let name = request.name;
            drop(request.reply.send(Err(ModelError::Pressure { name, retry_after })));
            return Some((key, LeaseOutcome::Rejected));
        }
        let (most_waiting, cooldown) = {
            let settings = self.parts.settings.borrow();
            (settings.embedding.queue_size, settings.memory.pressure.reload_cooldown)
        };
        if let Some(ModelState::Resident(resident)) = self.states.get(&key)
            && let Some(lease) =
                resident.served().lease(&key, &request.name, &self.parts.usage, now)
        {
            self.parts.store.count_access(&key);
            drop(request.reply.send(Ok(lease)));
            return Some((key, LeaseOutcome::Hit));
        }
        let outcome = match self.states.get_mut(&key) {
            Some(
                ModelState::Admitting(PendingAdmission { waiting, .. })
                | ModelState::Loading { waiting, .. }
                | ModelState::Reserved { waiting, .. },
            ) if waiting.len() >= most_waiting => {
                // Requests that were cancelled in the meantime free their slots.
                waiting.retain(|waiting| !waiting.reply.is_closed());
                if waiting.len() >= most_waiting {
                    drop(request.reply.send(Err(self.explain_timeout(request.name))));
                    return Some((key, LeaseOutcome::Rejected));
                }
                waiting.push(request);
                LeaseOutcome::Miss
            }
            Some(ModelState::Admitting(admitting)) => {
                // A request waits now, so that other models may be evicted.
                admitting.is_preload = false;
                admitting.waiting.push(request);
                LeaseOutcome::Miss
            }
            Some(ModelState::Loading { waiting, .. } | ModelState::Reserved { waiting, .. }) => {
                waiting.push(request);
                LeaseOutcome::Miss
            }
            Some(ModelState::Draining(draining)) if !draining.reason.is_eviction() => {
                // The model was not unloaded for memory: load it again when its worker has ended.
                draining.waiting.push(request);
                LeaseOutcome::Miss
            }
            Some(ModelState::Draining(_)) => {
                let name = request.name;
                drop(request.reply.send(Err(ModelError::Evicted { name, retry_after: cooldown })));
                LeaseOutcome::Rejected
            }
            Some(ModelState::CoolingDown { since }) if now < *since + cooldown => {
                let retry_after = (*since + cooldown).duration_since(now);
                let name = request.name;
                drop(request.reply.send(Err(ModelError::Evicted { name, retry_after })));
                LeaseOutcome::Rejected
            }
            // Memory was not sampled again since the refusal, so the decision would be the same.
            Some(ModelState::Refused { refusal, at }) if *at >= self.parts.readings.borrow().at => {
                let refusal = Arc::clone(refusal);
                let name = request.name;
                drop(request.reply.send(Err(ModelError::MemoryLimit { name, refusal })));
                LeaseOutcome::Rejected
            }
            Some(ModelState::Failed { until, error }) if now < *until => {
                let retry_after = until.duration_since(now);
                let source = Arc::clone(error);
                let name = request.name;
                drop(request.reply.send(Err(ModelError::Failed { name, retry_after, source })));
                LeaseOutcome::Rejected
            }
            // The model is absent, its waiting time after an eviction or failure is over, or its
            // worker died.
            _ => {
                self.admit(key.clone(), LoadReason::Request(vec![request]));
                LeaseOutcome::Miss
            }
        };
        Some((key, outcome))
    }

    /// Returns the present catalog.
    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.current()
    }

    /// Returns the key of the model that serves `name`.
    fn find(&self, name: &str) -> Result<EntryKey, ModelError> {
        self.catalog().find(name).map(|entry| entry.key.clone())
    }

    /// Loads the default model unless it is in memory or loading, or failed, or was unloaded or
    /// evicted.
    fn load_default(&mut self) {
        let name = self.parts.settings.borrow().default_model().to_owned();
        let Ok(key) = self.find(&name) else { return };
        let refused = matches!(self.states.get(&key), Some(ModelState::Refused { .. }));
        if refused || self.default_state(&key) == DefaultModelState::Absent {
            self.admit(key, LoadReason::Request(Vec::new()));
        }
    }

    /// Replies to the requests that waited for a model in the same way as to new ones.
    fn answer_waiting(&mut self, waiting: WaitingLeases) {
        for request in waiting {
            // The metrics counted it when it arrived.
            self.lease(request);
        }
    }

    fn record_action(&mut self, record: ActionRecord) {
        self.actions.truncate(MAX_ACTIONS - 1);
        self.actions.push_front(record);
    }

    /// Starts to write the usage and access counts on the blocking pool.
    fn write_counts(&mut self) {
        let entries = self.parts.store.entries();
        let installed = entries.iter().map(|entry| entry.key.clone()).collect();
        self.parts.usage.keep_installed(&installed, SystemTime::now());
        let (store, usage) = (Arc::clone(&self.parts.store), Arc::clone(&self.parts.usage));
        let usage_failures = Arc::clone(&self.usage_write_failures);
        let access_failures = Arc::clone(&self.access_write_failures);
        self.writing.spawn_blocking(move || {
            if let Some(error) = usage_failures.record(usage.save()) {
                tracing::warn!(
                    name: Message::UsageNotKept.name(),
                    errno = errno(&error), error = chain(&error),
                    "usage statistics cannot be written"
                );
            }
            let accesses = match store.write_access_counts() {
                // Nothing was written, so nothing is known about the disk.
                Ok(0) => None,
                result => access_failures.record(result.map(drop)),
            };
            if let Some(error) = accesses {
                tracing::warn!(
                    name: Message::UsageNotKept.name(),
                    errno = errno(&error), error = chain(&error),
                    "access counts cannot be written"
                );
            }
        });
    }
}

fn on_counts_written(written: Result<(), JoinError>) {
    if let Err(error) = written {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "task that writes usage statistics and access counts was lost"
        );
    }
}

/// Sleeps until `moment`; forever if it is `None`.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
