//! The manager: the one owner of which models are in memory.
//!
//! A task that takes commands one at a time; loading happens on the models' own threads, so that it never waits for
//! one. Nobody else starts or ends a worker.
//!
//! Invariants:
//! 1. One load at a time for a model, however many requests ask for it.
//! 2. A model that failed to load is not tried again before [`LOAD_BACKOFF`] has passed.
//! 3. A worker whose entry left the store gets no more requests; what it has is finished.
//! 4. The default model is in memory or on its way there whenever it is installed and did not fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::ModelError;
use super::usage::Usage;
use super::worker::{self, Job, Ready, Worker, WorkerError};
use super::{DefaultState, Lease, ModelInfo, Overview, Residency, Serving};
use crate::engine::{Options, Report, Tokenizer};
use crate::errors::chain;
use crate::package::{Entry, Key, Status, Store, StoreError, choose};

/// A load that failed once fails again at once; this keeps a client's retries from being a loop of loads.
const LOAD_BACKOFF: Duration = Duration::from_secs(30);
/// How often the counts of accesses and [`Usage`] are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);

type LeaseReply = oneshot::Sender<Result<Lease, ModelError>>;

/// What the manager is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Give the right to send requests to a model, loading it first if need be.
    Lease { name: String, reply: LeaseReply },
    /// Say which models are in memory.
    Residency { reply: oneshot::Sender<BTreeMap<Key, Residency>> },
    /// Look at the store again, and let go of the models that are in it no more.
    StoreChanged { gone: Vec<Key> },
}

enum Slot {
    Loading { waiting: Vec<(String, LeaseReply)>, worker: Running },
    Resident { ready: Ready, worker: Running },
    Failed { until: Instant, error: Arc<WorkerError> },
}

struct Running {
    queue: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

/// The manager's own state; see the module.
pub(super) struct Manager {
    store: Arc<Store>,
    options: Options,
    serving: watch::Receiver<Serving>,
    overview: watch::Sender<Overview>,
    usage: Arc<Usage>,
    slots: BTreeMap<Key, Slot>,
    loads: JoinSet<(Key, Result<Ready, WorkerError>)>,
    ending: JoinSet<()>,
    accessed: BTreeSet<Key>,
}

impl Manager {
    pub(super) fn new(
        store: Arc<Store>,
        options: Options,
        serving: watch::Receiver<Serving>,
        overview: watch::Sender<Overview>,
        usage: Arc<Usage>,
    ) -> Self {
        Self {
            store,
            options,
            serving,
            overview,
            usage,
            slots: BTreeMap::new(),
            loads: JoinSet::new(),
            ending: JoinSet::new(),
            accessed: BTreeSet::new(),
        }
    }

    /// Serves commands until `cancel`; then drops every queue and waits until the workers have finished.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        self.announce();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(loaded) = self.loads.join_next() => match loaded {
                    Ok((key, outcome)) => self.loaded(key, outcome),
                    Err(error) => tracing::error!(%error, "a load was lost"),
                },
                Some(_) = self.ending.join_next() => {}
                _ = flush.tick() => self.flush().await,
                Ok(()) = self.serving.changed() => self.load_default(),
                command = commands.recv() => match command {
                    Some(Command::Lease { name, reply }) => self.lease(name, reply),
                    Some(Command::Residency { reply }) => drop(reply.send(self.residency())),
                    Some(Command::StoreChanged { gone }) => {
                        gone.iter().for_each(|key| self.forget(key));
                        self.load_default();
                    }
                    None => break,
                },
            }
            self.announce();
        }
        drop(commands);
        for key in Vec::from_iter(self.slots.keys().cloned()) {
            self.forget(&key);
        }
        while self.ending.join_next().await.is_some() {}
        self.flush().await;
    }

    fn lease(&mut self, name: String, reply: LeaseReply) {
        let entry = match self.find(&name) {
            Ok(entry) => entry,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let key = entry.key.clone();
        match self.slots.get_mut(&key) {
            Some(Slot::Resident { ready, worker }) if !worker.queue.is_closed() => {
                self.store.count_access(&key);
                self.accessed.insert(key);
                let usage = Arc::clone(&self.usage);
                drop(reply.send(Ok(lease(name, &entry, ready, &worker.queue, usage))));
            }
            Some(Slot::Loading { waiting, .. }) => waiting.push((name, reply)),
            Some(Slot::Failed { until, error }) if Instant::now() < *until => {
                let retry_after = until.duration_since(Instant::now());
                let source = Arc::clone(error);
                drop(reply.send(Err(ModelError::Failed { name, retry_after, source })));
            }
            // Absent, failed long enough ago, or its worker died.
            Some(Slot::Resident { .. } | Slot::Failed { .. }) | None => {
                self.load(key, vec![(name, reply)]);
            }
        }
    }

    fn find(&self, name: &str) -> Result<Entry, ModelError> {
        let bundled_only = self.serving.borrow().bundled_only;
        let (entries, hidden): (Vec<_>, Vec<_>) = self
            .store
            .entries()
            .into_iter()
            .partition(|entry| !bundled_only || entry.record.origin.is_bundled());
        let Some(entry) = choose(&entries, name) else {
            if choose(&hidden, name).is_some() {
                return Err(ModelError::BundledOnly(name.to_owned()));
            }
            return Err(ModelError::unknown(name.to_owned(), &entries));
        };
        match &entry.record.status {
            Status::Corrupt(reason) => {
                Err(ModelError::Corrupt { name: name.to_owned(), reason: reason.clone() })
            }
            Status::Untested | Status::Available => Ok(entry.clone()),
        }
    }

    /// Loads the default model unless it is there, on its way, or failed.
    fn load_default(&mut self) {
        let name = self.serving.borrow().default_model.clone();
        let Ok(entry) = self.find(&name) else { return };
        if self.default_state(&entry) == DefaultState::Absent {
            self.load(entry.key, Vec::new());
        }
    }

    fn load(&mut self, key: Key, waiting: Vec<(String, LeaseReply)>) {
        self.forget(&key);
        let queue_size = self.serving.borrow().queue_size;
        let spawned = worker::spawn(Arc::clone(&self.store), key.clone(), self.options, queue_size);
        match spawned {
            Ok(Worker { queue, ready, thread }) => {
                tracing::info!(model = %key, "loading");
                let worker = Running { queue, thread };
                self.slots.insert(key.clone(), Slot::Loading { waiting, worker });
                self.loads
                    .spawn(async move { (key, ready.await.unwrap_or(Err(WorkerError::Ended))) });
            }
            Err(error) => self.fail(key, error, waiting),
        }
    }

    fn loaded(&mut self, key: Key, outcome: Result<Ready, WorkerError>) {
        // A model that was forgotten while it was loading has no slot any more.
        let Some(Slot::Loading { waiting, worker }) = self.slots.remove(&key) else { return };
        let ready = match outcome {
            Ok(ready) => ready,
            Err(error) => {
                self.end(worker);
                return self.fail(key, error, waiting);
            }
        };
        let Ready { weight_bytes, mapped_bytes, report, took, .. } = &ready;
        let Report { precision, isa, reason } = report;
        tracing::info!(
            model = %key,
            bytes = weight_bytes,
            mapped_bytes,
            %precision,
            isa,
            reason,
            "loaded"
        );
        self.usage.record_load(&key, *took, SystemTime::now());
        self.slots.insert(key, Slot::Resident { ready, worker });
        // Before anybody hears of it by an answer.
        self.announce();
        for (name, reply) in waiting {
            self.lease(name, reply);
        }
    }

    fn fail(&mut self, key: Key, error: WorkerError, waiting: Vec<(String, LeaseReply)>) {
        tracing::error!(model = %key, error = chain(&error), "the model cannot be loaded");
        // The store remembers what is corrupt, until its package is installed again: then it is loaded at once.
        if !matches!(error, WorkerError::Store(StoreError::Corrupt { .. })) {
            let error = Arc::new(error);
            self.slots.insert(key, Slot::Failed { until: Instant::now() + LOAD_BACKOFF, error });
        }
        self.announce();
        for (name, reply) in waiting {
            self.lease(name, reply);
        }
    }

    fn forget(&mut self, key: &Key) {
        match self.slots.remove(key) {
            Some(Slot::Loading { waiting, worker }) => {
                for (name, reply) in waiting {
                    drop(reply.send(Err(ModelError::Ended(name))));
                }
                self.end(worker);
            }
            Some(Slot::Resident { worker, .. }) => {
                tracing::info!(model = %key, "unloading");
                self.end(worker);
            }
            Some(Slot::Failed { .. }) | None => {}
        }
    }

    /// Lets a worker finish what it has, and waits for its thread off the runtime.
    fn end(&mut self, Running { queue, thread }: Running) {
        drop(queue);
        self.ending.spawn_blocking(move || {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        });
    }

    fn residency(&self) -> BTreeMap<Key, Residency> {
        let view = |slot: &Slot| match slot {
            Slot::Loading { .. } => Residency::Loading,
            Slot::Resident { ready, worker } => Residency::Resident {
                weight_bytes: ready.weight_bytes,
                report: ready.report.clone(),
                waiting: worker.queue.max_capacity() - worker.queue.capacity(),
            },
            Slot::Failed { error, .. } => Residency::Failed(chain(&**error)),
        };
        self.slots.iter().map(|(key, slot)| (key.clone(), view(slot))).collect()
    }

    fn default_state(&self, entry: &Entry) -> DefaultState {
        match self.slots.get(&entry.key) {
            None => DefaultState::Absent,
            Some(Slot::Loading { .. }) => DefaultState::Loading,
            // Its worker died.
            Some(Slot::Resident { worker, .. }) if worker.queue.is_closed() => DefaultState::Absent,
            Some(Slot::Resident { .. }) => DefaultState::Ready,
            Some(Slot::Failed { .. }) => DefaultState::Failed,
        }
    }

    fn announce(&self) {
        let default_model = self.serving.borrow().default_model.clone();
        let state = match self.find(&default_model) {
            Ok(entry) => self.default_state(&entry),
            Err(ModelError::Corrupt { .. }) => DefaultState::Corrupt,
            Err(_not_served) => DefaultState::NotInstalled,
        };
        let entries = self.store.entries();
        let tested = entries.iter().filter(|entry| entry.record.status != Status::Untested);
        let overview = Overview { default_model, state, installed: tested.count() };
        self.overview.send_if_modified(|was| {
            let changed = *was != overview;
            *was = overview;
            changed
        });
    }

    async fn flush(&mut self) {
        self.save_usage().await;
        let accessed = std::mem::take(&mut self.accessed);
        if accessed.is_empty() {
            return;
        }
        let store = Arc::clone(&self.store);
        let flushed = tokio::task::spawn_blocking(move || store.flush(accessed)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "the counts of accesses are not written");
            }
            Err(error) => tracing::error!(%error, "the counts of accesses are not written"),
        }
    }

    async fn save_usage(&self) {
        let installed = self.store.entries().into_iter().map(|entry| entry.key).collect();
        self.usage.keep_installed(&installed, SystemTime::now());
        let usage = Arc::clone(&self.usage);
        match tokio::task::spawn_blocking(move || usage.save()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "usage is not written"),
            Err(error) => tracing::error!(%error, "usage is not written"),
        }
    }
}

fn lease(
    name: String,
    entry: &Entry,
    ready: &Ready,
    queue: &mpsc::Sender<Job>,
    usage: Arc<Usage>,
) -> Lease {
    Lease {
        name,
        key: entry.key.clone(),
        info: ModelInfo::new(entry),
        tokenizer: Arc::<Tokenizer>::clone(&ready.tokenizer),
        queue: queue.clone(),
        usage,
    }
}
