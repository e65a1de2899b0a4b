//! The manager: the one owner of which models are in memory.
//!
//! A task that takes commands one at a time; measuring, loading and leaving happen elsewhere, so that it never waits
//! for one. Nobody else starts or ends a worker. What it decides is in the files beside it: [`admission`] lets models
//! in, [`pressure`] makes them leave when memory is short, [`lifecycle`] when they are idle or somebody says so.
//!
//! Invariants:
//! 1. One load at a time for a model, however many requests ask for it, and none before it is known to fit.
//! 2. A model that failed to load is not tried again before [`LOAD_BACKOFF`] has passed, one that had to leave not
//!    before `memory.pressure.reload_cooldown` has.
//! 3. A worker whose entry left the store gets no more requests; what it has is finished.
//! 4. The default model is in memory or on its way there whenever it is installed, and did not fail or leave.

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
use crate::engine::{Footprint, Options};
use crate::errors::{chain, errno};
use crate::log::Message;
use crate::memory::level::Level;
use crate::memory::sample::Sample;
use crate::metrics::Sought;
use crate::package::{Entry, Key, Status, choose};
use admission::{Estimate, Wanted};
use lifecycle::{Flush, Left};
use pressure::Episode;

/// A load that failed once fails again at once; this keeps a client's retries from being a loop of loads.
const LOAD_BACKOFF: Duration = Duration::from_secs(30);
/// How often the counts of accesses and of use are written, and models looked for that will be used soon.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// Actions that are remembered for `/api/memory/status`.
const ACTIONS: usize = 32;

/// What the manager is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Give the right to send requests to a model, loading it first if need be.
    Lease { name: String, reply: LeaseReply },
    /// Keep memory for a model that an installation tries with these options.
    Reserve { key: Key, options: Options, reply: ReserveReply },
    /// Say whether a model could be let in at best, of which nothing but this is known.
    CouldFit { footprint: Footprint, sample: Sample, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Say why a model did not answer in time.
    Loading { name: String, reply: oneshot::Sender<ModelError> },
    /// Say which models are in memory.
    Residency { reply: oneshot::Sender<BTreeMap<Key, Residency>> },
    /// Ask models for a pass that shows life.
    Beats { reply: oneshot::Sender<Vec<Beat>> },
    /// Say what is known of memory.
    Memory { reply: oneshot::Sender<MemoryView> },
    /// Look at the store again, and let go of the models that are in it no more.
    StoreChanged { gone: Vec<Key> },
    /// Announce what does not work as it should.
    Degraded { degraded: Vec<String> },
    /// Keep a model in memory whatever happens, or no longer; until the next start.
    Pin { name: String, pinned: bool, reply: oneshot::Sender<Result<(), ModelError>> },
    /// Keep a model that is in memory for so long after each use.
    KeepAlive { name: String, wish: Wish, reply: oneshot::Sender<Result<(), ModelError>> },
    /// Let a model go. Answers when it has gone.
    Unload { name: String, reply: oneshot::Sender<Result<Unloading, ModelError>> },
    /// Let all models go that are not pinned. Answers when they have gone.
    Flush { reply: oneshot::Sender<Flushed> },
}

/// Ends when a model has left memory; `None` when it was not there.
pub(super) type Unloading = Option<oneshot::Receiver<()>>;

/// The manager's own state; see the module.
pub(super) struct Manager {
    parts: Parts,
    overview: watch::Sender<Overview>,
    slots: BTreeMap<Key, Slot>,
    /// What administrators said, over the settings.
    pins: BTreeMap<Key, bool>,
    /// When a user had a model leave before its time; for a minute.
    cut_short: BTreeMap<Key, Instant>,
    /// Models whose self-test failed in what `auto` picks.
    f32_only: BTreeSet<Key>,
    estimates: JoinSet<Estimate>,
    /// Each ends with an installation's trial of a model.
    reserved: JoinSet<Key>,
    loads: JoinSet<(Key, ThreadId, Result<Ready, WorkerError>)>,
    ending: JoinSet<Left>,
    /// Memory being released without a model leaving.
    releasing: JoinSet<()>,
    /// The counts being written, which may wait for the disk.
    writing: JoinSet<()>,
    /// Of the last reading.
    level: Level,
    episode: Option<Episode>,
    flushes: Vec<Flush>,
    actions: VecDeque<ActionRecord>,
    accessed: BTreeSet<Key>,
    /// What does not work as it should, a sentence each.
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

    /// Serves commands until `cancel`; then drops every queue and waits until the workers have finished.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        // The first tick is at once, when there is nothing to write.
        flush.tick().await;
        self.announce();
        loop {
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
                    // A disk that takes longer than a minute is not asked again before it answers.
                    if self.writing.is_empty() {
                        self.write_counts();
                    }
                    self.load_ahead();
                }
                Ok(()) = self.parts.settings.changed() => self.load_default(),
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    // Most commands ask for a model that is there.
                    if !self.obey(command) {
                        continue;
                    }
                }
            }
            self.announce();
        }
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

    /// Says whether what others see of the manager may be other than before.
    fn obey(&mut self, command: Command) -> bool {
        // A client that left hears no answer.
        match command {
            Command::Lease { name, reply } => {
                let Some((key, sought)) = self.lease(name, reply) else { return false };
                self.parts.metrics.lease(key.id(), sought);
                return sought != Sought::Hit;
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
                // Files that could not be read may have been written anew.
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

    /// Answers now, or when the model is there. Says which model it is, and how it was; `None` when there is none.
    fn lease(&mut self, name: String, reply: LeaseReply) -> Option<(Key, Sought)> {
        let now = Instant::now();
        let entry = match self.find(&name) {
            Ok(entry) => entry,
            Err(error) => {
                drop(reply.send(Err(error)));
                return None;
            }
        };
        let key = entry.key.clone();
        if self.sheds(&key) {
            let retry_after = self.parts.settings.borrow().memory.pressure.quiet;
            drop(reply.send(Err(ModelError::Pressure { name, retry_after })));
            return Some((key, Sought::Refused));
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
                Sought::Hit
            }
            Some(
                Slot::Admitting(Admitting { waiting, .. })
                | Slot::Loading { waiting, .. }
                | Slot::Reserved { waiting, .. },
            ) if waiting.len() >= most_waiting => {
                // Those that stopped waiting make room.
                waiting.retain(|(_, reply)| !reply.is_closed());
                if waiting.len() >= most_waiting {
                    drop(reply.send(Err(self.loading(name))));
                    return Some((key, Sought::Refused));
                }
                waiting.push((name, reply));
                Sought::Load
            }
            Some(Slot::Admitting(admitting)) => {
                admitting.ahead = false;
                admitting.waiting.push((name, reply));
                Sought::Load
            }
            Some(Slot::Loading { waiting, .. } | Slot::Reserved { waiting, .. }) => {
                waiting.push((name, reply));
                Sought::Load
            }
            Some(Slot::Leaving(leaving)) if !leaving.why.is_eviction() => {
                leaving.waiting.push((name, reply));
                Sought::Load
            }
            Some(Slot::Leaving(_)) => {
                let retry_after = self.parts.settings.borrow().memory.pressure.reload_cooldown;
                drop(reply.send(Err(ModelError::Evicted { name, retry_after })));
                Sought::Refused
            }
            Some(Slot::Away { until }) if now < *until => {
                let retry_after = until.duration_since(now);
                drop(reply.send(Err(ModelError::Evicted { name, retry_after })));
                Sought::Refused
            }
            // Nothing was measured since: nothing else would come out.
            Some(Slot::Refused { refusal, at }) if *at >= self.parts.readings.borrow().at => {
                let refusal = Arc::clone(refusal);
                drop(reply.send(Err(ModelError::MemoryLimit { name, refusal })));
                Sought::Refused
            }
            Some(Slot::Failed { until, error }) if now < *until => {
                let retry_after = until.duration_since(now);
                let source = Arc::clone(error);
                drop(reply.send(Err(ModelError::Failed { name, retry_after, source })));
                Sought::Refused
            }
            // Absent, kept away or failed for long enough, asked for again, or its worker died.
            _ => {
                self.admit(key.clone(), Wanted::Now(vec![(name, reply)]));
                Sought::Load
            }
        };
        Some((key, sought))
    }

    fn find(&self, name: &str) -> Result<Entry, ModelError> {
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
        let Some(entry) = choose(&entries, name) else {
            if choose(&hidden, name).is_some() {
                return Err(ModelError::BundledOnly(name.to_owned()));
            }
            let mut named = entries.iter().filter(|entry| entry.is_named(name));
            if let Some(reason) = named.find_map(|entry| entry.disabled.clone()) {
                return Err(ModelError::Disabled { name: name.to_owned(), reason });
            }
            return Err(ModelError::unknown(name.to_owned(), &entries));
        };
        match &entry.record.status {
            Status::Corrupt(reason) => {
                Err(ModelError::Corrupt { name: name.to_owned(), reason: reason.clone() })
            }
            // `choose` gives no other.
            Status::Untested | Status::Quarantined(_) | Status::Available => Ok(entry.clone()),
        }
    }

    /// Loads the default model unless it is there, on its way, failed, or had to leave.
    fn load_default(&mut self) {
        let name = self.parts.settings.borrow().default_model().to_owned();
        let Ok(entry) = self.find(&name) else { return };
        let refused = matches!(self.slots.get(&entry.key), Some(Slot::Refused { .. }));
        if refused || self.default_state(&entry) == DefaultState::Absent {
            self.admit(entry.key, Wanted::Now(Vec::new()));
        }
    }

    /// Answers those that wait for a model, as those that ask now are answered.
    fn answer(&mut self, waiting: Waiting) {
        for (name, reply) in waiting {
            // It was counted when it asked.
            self.lease(name, reply);
        }
    }

    fn remember(&mut self, record: ActionRecord) {
        self.actions.truncate(ACTIONS - 1);
        self.actions.push_front(record);
    }

    /// Begins to write how often and when models were used.
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

/// Ends at `moment`; never without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
