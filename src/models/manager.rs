//! The manager: the only task that decides which models are in memory.
//!
//! It handles one command at a time. Measurements, loads and unloads run on other threads, so that
//! the manager never waits for one. No other code starts or ends a worker. The decisions are in the
//! files beside this one: [`admission`] loads models, [`pressure`] evicts them when memory is
//! short, [`lifecycle`] unloads them when they are idle or on request.
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

mod admission;
mod lifecycle;
mod pressure;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::alias;
use super::error::ModelError;
use super::needs::Wish;
use super::slot::{Admitting, LeaseReply, Refusal, ReserveReply, Slot, Waiting};
use super::usage::Kept;
use super::worker::{Ready, WorkerError};
use super::{
    ActionRecord, Beat, DefaultState, Flushed, Lease, MemoryView, Overview, Parts, Residency,
};
use crate::engine::{EngineOptions, Footprint};
use crate::errors::{chain, errno};
use crate::log::Message;
use crate::memory::level::Level;
use crate::memory::sample::Sample;
use crate::metrics::LeaseOutcome;
use crate::package::{EntryKey, InstallStatus, StoreEntry, resolve};
use admission::{Estimate, Wanted};
use lifecycle::{Flush, Left};
use pressure::Episode;

/// Time after a failed load before the next one. A load that failed usually fails again, and
/// without this time the retries of a client would become a loop of loads.
const LOAD_BACKOFF: Duration = Duration::from_secs(30);
/// Interval at which the access and usage counts are written, and models are preloaded.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// Number of actions that are kept for `/api/memory/status`.
const ACTIONS: usize = 32;

/// Command to the manager.
#[derive(Debug)]
pub(super) enum Command {
    /// Returns the right to send requests to a model, and loads the model first if need be.
    Lease { name: String, reply: LeaseReply },
    /// Reserves memory for a model that an installation tests with these options.
    Reserve { key: EntryKey, options: EngineOptions, reply: ReserveReply },
    /// Reports whether a model of this footprint could ever be admitted; nothing else is known of
    /// it.
    CouldFit { footprint: Footprint, sample: Sample, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Reports why a model did not answer in time.
    Loading { name: String, reply: oneshot::Sender<ModelError> },
    /// Returns the state of every model.
    Residency { reply: oneshot::Sender<BTreeMap<EntryKey, Residency>> },
    /// Starts liveness passes.
    Beats { reply: oneshot::Sender<Vec<Beat>> },
    /// Reports the state of memory.
    Memory { reply: oneshot::Sender<MemoryView> },
    /// Handles a change of the store: drops the models that were removed, and loads the default
    /// model if it was installed.
    StoreChanged { gone: Vec<EntryKey> },
    /// Announces the degraded parts of the daemon.
    Degraded { degraded: Vec<String> },
    /// Pins or unpins a model, until the next start of the daemon.
    Pin { name: String, pinned: bool, reply: oneshot::Sender<Result<(), ModelError>> },
    /// Sets how long a resident model stays after each use.
    KeepAlive { name: String, wish: Wish, reply: oneshot::Sender<Result<(), ModelError>> },
    /// Unloads a model. The inner receiver ends when it is unloaded.
    Unload { name: String, reply: oneshot::Sender<Result<Unloading, ModelError>> },
    /// Unloads all models that are not pinned. Replies when they are unloaded.
    Flush { reply: oneshot::Sender<Flushed> },
}

/// End of an unload; `None` when the model was not in memory.
pub(super) type Unloading = Option<oneshot::Receiver<()>>;

/// State of the manager; see the module.
pub(super) struct Manager {
    parts: Parts,
    overview: watch::Sender<Overview>,
    slots: BTreeMap<EntryKey, Slot>,
    /// Pins that administrators set; they override the settings.
    pins: BTreeMap<EntryKey, bool>,
    /// Time at which a user's `keep_alive` unloaded a model early; kept for a minute.
    cut_short: BTreeMap<EntryKey, Instant>,
    /// Models whose self-test failed in the precision that `auto` chose.
    f32_only: BTreeSet<EntryKey>,
    estimates: JoinSet<Estimate>,
    /// Each ends when an installation has finished the self-test of a model.
    reserved: JoinSet<EntryKey>,
    loads: JoinSet<(EntryKey, ThreadId, Result<Ready, WorkerError>)>,
    ending: JoinSet<Left>,
    /// Releases of memory without an unload.
    releasing: JoinSet<()>,
    /// Writes of the counts, which may wait for the disk.
    writing: JoinSet<()>,
    /// Pressure level of the last reading.
    level: Level,
    episode: Option<Episode>,
    flushes: Vec<Flush>,
    actions: VecDeque<ActionRecord>,
    accessed: BTreeSet<EntryKey>,
    /// Degraded parts of the daemon, one sentence each.
    degraded: Vec<String>,
    uses_kept: Arc<Kept>,
    accesses_kept: Arc<Kept>,
}

impl Manager {
    pub(super) fn new(parts: Parts, overview: watch::Sender<Overview>) -> Self {
        Self {
            parts,
            overview,
            slots: BTreeMap::new(),
            pins: BTreeMap::new(),
            cut_short: BTreeMap::new(),
            f32_only: BTreeSet::new(),
            estimates: JoinSet::new(),
            reserved: JoinSet::new(),
            loads: JoinSet::new(),
            ending: JoinSet::new(),
            releasing: JoinSet::new(),
            writing: JoinSet::new(),
            level: Level::Normal,
            episode: None,
            flushes: Vec::new(),
            actions: VecDeque::new(),
            accessed: BTreeSet::new(),
            degraded: Vec::new(),
            uses_kept: Arc::default(),
            accesses_kept: Arc::default(),
        }
    }

    /// Handles commands until `cancel`; then drops every queue and waits until the workers have
    /// finished.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        // The first tick comes at once, when there is nothing to write.
        flush.tick().await;
        self.announce();
        loop {
            // Every event may change how long models are needed, so the timer is computed again.
            let idle = self.next_idle();
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(estimate) = self.estimates.join_next() => match estimate {
                    Ok(estimate) => self.estimated(estimate),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "an estimate was lost"
                    ),
                },
                Some(tried) = self.reserved.join_next() => match tried {
                    Ok(key) => self.tried(&key),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "the end of a trial was lost"
                    ),
                },
                Some(loaded) = self.loads.join_next() => match loaded {
                    Ok((key, thread, outcome)) => self.loaded(key, thread, outcome),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "a load was lost"
                    ),
                },
                Some(left) = self.ending.join_next() => match left {
                    Ok(left) => self.left(left),
                    Err(error) => tracing::error!(
                        name: Message::InternalFault.name(),
                        %error,
                        "the end of a worker was lost"
                    ),
                },
                Some(released) = self.releasing.join_next() => {
                    if let Err(error) = released {
                        tracing::error!(
                            name: Message::InternalFault.name(),
                            %error,
                            "memory was not released"
                        );
                    }
                    self.acted();
                }
                Some(written) = self.writing.join_next() => {
                    counts_written(written);
                    continue;
                }
                Ok(()) = self.parts.readings.changed() => self.pressed(),
                () = at(idle), if idle.is_some() => self.unload_idle(),
                _ = flush.tick() => {
                    // A slow disk gets no second write while one is in progress.
                    if self.writing.is_empty() {
                        self.write_counts();
                    }
                    self.load_ahead();
                }
                Ok(()) = self.parts.settings.changed() => self.load_default(),
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    // Most commands ask for a resident model, and change nothing that others see.
                    if !self.obey(command) {
                        continue;
                    }
                }
            }
            self.announce();
        }
        // Close the channel before waiting for the workers: commands in it fail at once with
        // "draining".
        drop(commands);
        for key in Vec::from_iter(self.slots.keys().cloned()) {
            self.forget(&key);
        }
        while self.ending.join_next().await.is_some() {}
        self.write_counts();
        while let Some(written) = self.writing.join_next().await {
            counts_written(written);
        }
    }

    /// Handles a command. Returns whether the overview may have changed.
    fn obey(&mut self, command: Command) -> bool {
        // Replies may fail, because a client may have cancelled.
        match command {
            Command::Lease { name, reply } => {
                let Some((key, sought)) = self.lease(name, reply) else { return false };
                self.parts.metrics.count_lease(key.id(), sought);
                return sought != LeaseOutcome::Hit;
            }
            Command::Loading { name, reply } => {
                drop(reply.send(self.loading(name)));
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
                self.admit(key, Wanted::ByInstallation(options, reply));
            }
            Command::CouldFit { footprint, sample, reply } => {
                drop(reply.send(self.could_fit(&footprint, &sample)));
                return false;
            }
            Command::Beats { reply } => {
                drop(reply.send(self.beats()));
                return false;
            }
            Command::StoreChanged { gone } => {
                gone.iter().for_each(|key| self.forget(key));
                // Entries whose files could not be read may have been written again, so forget
                // their failures.
                self.slots.retain(|_key, slot| !slot.failed_in_store());
                self.load_default();
            }
            Command::Degraded { degraded } => self.degraded = degraded,
            Command::Pin { name, pinned, reply } => drop(reply.send(self.pin(&name, pinned))),
            Command::KeepAlive { name, wish, reply } => {
                drop(reply.send(self.keep_alive(&name, wish)));
            }
            Command::Unload { name, reply } => drop(reply.send(self.unload(&name))),
            Command::Flush { reply } => self.flush_models(reply),
        }
        true
    }

    /// Replies now, or when the model is loaded. Returns the model and the outcome of the lookup;
    /// `None` when there is no such model.
    fn lease(&mut self, name: String, reply: LeaseReply) -> Option<(EntryKey, LeaseOutcome)> {
        let now = Instant::now();
        let entry = match self.find(&name) {
            Ok(entry) => entry,
            Err(error) => {
                drop(reply.send(Err(error)));
                return None;
            }
        };
        let key = entry.key.clone();
        // Only resident models are shed here. For others, admission refuses with the numbers.
        if self.sheds(&key) {
            let retry_after = self.parts.settings.borrow().memory.pressure.quiet;
            drop(reply.send(Err(ModelError::Pressure { name, retry_after })));
            return Some((key, LeaseOutcome::Refused));
        }
        let most_waiting = self.parts.settings.borrow().embedding.queue_size;
        let sought = match self.slots.get_mut(&key) {
            Some(Slot::Resident(resident)) if resident.is_alive() => {
                resident.touch(now);
                let lease = Lease {
                    name,
                    key: key.clone(),
                    info: resident.ready.info.clone(),
                    stands_in: None,
                    tokenizer: Arc::clone(&resident.ready.tokenizer),
                    queue: resident.worker.queue.clone(),
                    usage: Arc::clone(&self.parts.usage),
                    uses: Arc::clone(resident.needs.uses()),
                };
                self.parts.store.count_access(&key);
                self.accessed.insert(key.clone());
                drop(reply.send(Ok(lease)));
                LeaseOutcome::Hit
            }
            Some(
                Slot::Admitting(Admitting { waiting, .. })
                | Slot::Loading { waiting, .. }
                | Slot::Reserved { waiting, .. },
            ) if waiting.len() >= most_waiting => {
                // Requests that were cancelled in the meantime free their slots.
                waiting.retain(|(_, reply)| !reply.is_closed());
                if waiting.len() >= most_waiting {
                    drop(reply.send(Err(self.loading(name))));
                    return Some((key, LeaseOutcome::Refused));
                }
                waiting.push((name, reply));
                LeaseOutcome::Load
            }
            Some(Slot::Admitting(admitting)) => {
                // A request waits now, so that other models may be evicted.
                admitting.ahead = false;
                admitting.waiting.push((name, reply));
                LeaseOutcome::Load
            }
            Some(Slot::Loading { waiting, .. } | Slot::Reserved { waiting, .. }) => {
                waiting.push((name, reply));
                LeaseOutcome::Load
            }
            Some(Slot::Leaving(leaving)) if !leaving.why.is_eviction() => {
                // The model was not unloaded for memory: load it again when its worker has ended.
                leaving.waiting.push((name, reply));
                LeaseOutcome::Load
            }
            Some(Slot::Leaving(_)) => {
                let retry_after = self.parts.settings.borrow().memory.pressure.reload_cooldown;
                drop(reply.send(Err(ModelError::Evicted { name, retry_after })));
                LeaseOutcome::Refused
            }
            Some(Slot::Away { until }) if now < *until => {
                let retry_after = until.duration_since(now);
                drop(reply.send(Err(ModelError::Evicted { name, retry_after })));
                LeaseOutcome::Refused
            }
            // Memory was not sampled again since the refusal, so the decision would be the same.
            Some(Slot::Refused { refusal, at }) if *at >= self.parts.readings.borrow().at => {
                let refusal = Arc::clone(refusal);
                drop(reply.send(Err(ModelError::MemoryLimit { name, refusal })));
                LeaseOutcome::Refused
            }
            Some(Slot::Failed { until, error }) if now < *until => {
                let retry_after = until.duration_since(now);
                let source = Arc::clone(error);
                drop(reply.send(Err(ModelError::Failed { name, retry_after, source })));
                LeaseOutcome::Refused
            }
            // The model is absent, its waiting time after an eviction or failure is over, or its
            // worker died.
            _ => {
                self.admit(key.clone(), Wanted::Now(vec![(name, reply)]));
                LeaseOutcome::Load
            }
        };
        Some((key, sought))
    }

    fn find(&self, name: &str) -> Result<StoreEntry, ModelError> {
        let settings = Arc::clone(&self.parts.settings.borrow());
        let bundled_only = settings.memory.model_cache.bundled_only;
        let name = alias::meant(&settings.aliases, name);
        let name = name.as_str();
        let (entries, hidden): (Vec<_>, Vec<_>) = self
            .parts
            .store
            .entries()
            .into_iter()
            .partition(|entry| !bundled_only || entry.record.origin.is_bundled());
        let Some(entry) = resolve(&entries, name) else {
            if resolve(&hidden, name).is_some() {
                return Err(ModelError::BundledOnly(name.to_owned()));
            }
            let mut named = entries.iter().filter(|entry| entry.is_named(name));
            if let Some(reason) = named.find_map(|entry| entry.disabled.clone()) {
                return Err(ModelError::Disabled { name: name.to_owned(), reason });
            }
            return Err(ModelError::unknown(name.to_owned(), &entries));
        };
        match &entry.record.status {
            InstallStatus::Corrupt(reason) => {
                Err(ModelError::Corrupt { name: name.to_owned(), reason: reason.clone() })
            }
            // `choose` returns only available entries besides corrupt ones.
            InstallStatus::Untested | InstallStatus::Quarantined(_) | InstallStatus::Available => {
                Ok(entry.clone())
            }
        }
    }

    /// Loads the default model unless it is in memory or loading, or failed, or was unloaded or
    /// evicted.
    fn load_default(&mut self) {
        let name = self.parts.settings.borrow().default_model().to_owned();
        let Ok(entry) = self.find(&name) else { return };
        let refused = matches!(self.slots.get(&entry.key), Some(Slot::Refused { .. }));
        if refused || self.default_state(&entry) == DefaultState::Absent {
            self.admit(entry.key, Wanted::Now(Vec::new()));
        }
    }

    /// Replies to the requests that waited for a model in the same way as to new ones.
    fn answer(&mut self, waiting: Waiting) {
        for (name, reply) in waiting {
            // The metrics counted it when it arrived.
            self.lease(name, reply);
        }
    }

    fn remember(&mut self, record: ActionRecord) {
        self.actions.truncate(ACTIONS - 1);
        self.actions.push_front(record);
    }

    /// Starts to write the usage and access counts on the blocking pool.
    fn write_counts(&mut self) {
        let installed = self.parts.store.entries().into_iter().map(|entry| entry.key).collect();
        self.parts.usage.keep_installed(&installed, SystemTime::now());
        let accessed = std::mem::take(&mut self.accessed);
        let (store, usage) = (Arc::clone(&self.parts.store), Arc::clone(&self.parts.usage));
        let uses_kept = Arc::clone(&self.uses_kept);
        let accesses_kept = Arc::clone(&self.accesses_kept);
        self.writing.spawn_blocking(move || {
            if let Some(error) = uses_kept.failure(usage.save()) {
                tracing::warn!(
                    name: Message::UsageNotKept.name(),
                    errno = errno(&error), error = chain(&error),
                    "the counts of use are not written"
                );
            }
            if !accessed.is_empty()
                && let Some(error) = accesses_kept.failure(store.flush(accessed))
            {
                tracing::warn!(
                    name: Message::UsageNotKept.name(),
                    errno = errno(&error), error = chain(&error),
                    "the counts of accesses are not written"
                );
            }
        });
    }
}

fn counts_written(written: Result<(), JoinError>) {
    if let Err(error) = written {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "the counts are not written"
        );
    }
}

/// Sleeps until `moment`; forever if it is `None`.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
