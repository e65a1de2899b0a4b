//! Table of the resident models, from which requests take leases without asking the manager.
//!
//! Most requests are for a resident model. They need the model's queue and tokenizer, and nothing
//! else of the manager's state. The table holds these, and the manager keeps it up to date. A
//! request for any other model goes to the manager, and so does a request in every state in which
//! the manager may refuse a resident model.
//!
//! Invariants:
//! 1. Only the manager changes the table. It adds a model that became resident, and removes it
//!    before it drains the worker.
//! 2. A lease is created while the table is locked. So a lease precedes the removal of its model,
//!    and then the drain waits for it, or it is not created. No lease follows the start of a drain.
//! 3. The table has no [`QueueSender`] of its own, because the worker ends with the last one, and
//!    because a model with two of them counts as busy.
//! 4. While requests are shed, the table gives no lease: the manager decides which models answer.
//!
//! The lock is held for a few moves in memory, never across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::time::Instant;

use crate::engine::Tokenizer;
use crate::models::residency::retention::LastUses;
use crate::models::serving::queue::{QueueSender, WeakQueueSender};
use crate::models::usage::Usage;
use crate::models::{Lease, ModelInfo};
use crate::package::EntryKey;

/// Parts of a resident model that its leases share.
#[derive(Clone, Debug)]
pub(in crate::models) struct ServedModel {
    pub(in crate::models) info: ModelInfo,
    pub(in crate::models) tokenizer: Arc<Tokenizer>,
    pub(in crate::models) queue: WeakQueueSender,
    pub(in crate::models) last_uses: Arc<LastUses>,
}

impl ServedModel {
    /// Returns the shared parts of a model whose worker has this queue.
    pub(in crate::models) fn new(
        info: &ModelInfo,
        tokenizer: &Arc<Tokenizer>,
        queue: &QueueSender,
        last_uses: &Arc<LastUses>,
    ) -> Self {
        Self {
            info: info.clone(),
            tokenizer: Arc::clone(tokenizer),
            queue: queue.downgrade(),
            last_uses: Arc::clone(last_uses),
        }
    }

    /// Creates a lease on this model, which is `key`, for a request that called it `name`. Counts
    /// as a use at `now`. Returns `None` if the worker has ended.
    pub(in crate::models) fn lease(
        &self,
        key: &EntryKey,
        name: &str,
        usage: &Arc<Usage>,
        now: Instant,
    ) -> Option<Lease> {
        let queue = self.queue.upgrade()?;
        self.last_uses.touch(now);
        Some(Lease {
            name: name.to_owned(),
            key: key.clone(),
            info: self.info.clone(),
            fallback_for: None,
            tokenizer: Arc::clone(&self.tokenizer),
            queue,
            usage: Arc::clone(usage),
            last_uses: Arc::clone(&self.last_uses),
        })
    }
}

/// Table of the models that can be leased without the manager.
#[derive(Debug, Default)]
pub(in crate::models) struct ServingTable(RwLock<TableState>);

#[derive(Debug, Default)]
struct TableState {
    models: BTreeMap<EntryKey, ServedModel>,
    is_shedding: bool,
}

impl ServingTable {
    /// Creates a lease on `key` for a request that called it `name`. Returns `None` if only the
    /// manager can answer the request: the model is not resident, its worker has ended, or requests
    /// are shed.
    pub(in crate::models) fn lease(
        &self,
        key: &EntryKey,
        name: &str,
        usage: &Arc<Usage>,
        now: Instant,
    ) -> Option<Lease> {
        let state = self.read();
        if state.is_shedding {
            return None;
        }
        state.models.get(key)?.lease(key, name, usage, now)
    }

    /// Adds a resident model, or replaces it.
    pub(in crate::models) fn insert(&self, key: EntryKey, model: ServedModel) {
        self.write().models.insert(key, model);
    }

    /// Removes `key`. After this the table gives no lease on it.
    pub(in crate::models) fn remove(&self, key: &EntryKey) {
        self.write().models.remove(key);
    }

    /// Removes `key` if `is_idle` returns true, and returns that. No lease on the model is created
    /// between the call of `is_idle` and the removal.
    pub(in crate::models) fn remove_if(
        &self,
        key: &EntryKey,
        is_idle: impl FnOnce() -> bool,
    ) -> bool {
        let mut state = self.write();
        let is_idle = is_idle();
        if is_idle {
            state.models.remove(key);
        }
        is_idle
    }

    /// Starts or stops the shedding of requests.
    pub(in crate::models) fn set_shedding(&self, is_shedding: bool) {
        // Most calls change nothing. Do not stop the readers for them.
        if self.read().is_shedding != is_shedding {
            self.write().is_shedding = is_shedding;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, TableState> {
        // A panic while the lock is held leaves the table whole: each change is one step.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, TableState> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::models::serving::queue::{QueueLimits, QueueReceiver, channel};
    use crate::package::fixture::entry;

    const LIMITS: QueueLimits =
        QueueLimits { requests: 2, tokens: 100, wait: Duration::ZERO, batches: 1 };

    /// A resident model as the manager holds it.
    struct TestModel {
        key: EntryKey,
        served: ServedModel,
        queue: QueueSender,
        receiver: QueueReceiver,
    }

    impl TestModel {
        fn new() -> Self {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-bert-mean");
            let bytes = fs::read(golden.join("tokenizer.json")).unwrap();
            let tokenizer = Arc::new(Tokenizer::from_bytes(&bytes, 64).unwrap());
            let entry = entry("m", "1", 2, "a");
            let info = ModelInfo::new(&entry.key, entry.manifest);
            let (queue, receiver) = channel(LIMITS);
            let served = ServedModel::new(&info, &tokenizer, &queue, &Arc::default());
            Self { key: entry.key, served, queue, receiver }
        }

        /// Returns a table with this model.
        fn table(&self) -> ServingTable {
            let table = ServingTable::default();
            table.insert(self.key.clone(), self.served.clone());
            table
        }
    }

    fn usage() -> Arc<Usage> {
        Arc::new(Usage::open(Path::new("/nonexistent/usage.json")))
    }

    fn lease(table: &ServingTable, model: &TestModel) -> Option<Lease> {
        table.lease(&model.key, "alias", &usage(), Instant::now())
    }

    #[test]
    fn resident_model_is_leased_and_its_use_recorded() {
        let model = TestModel::new();
        let table = model.table();
        assert!(!model.queue.is_shared(), "the table is not a lease");
        assert_eq!(model.served.last_uses.last_use(), None);
        let now = Instant::now();
        let lease = table.lease(&model.key, "alias", &usage(), now).unwrap();
        assert_eq!((lease.name.as_str(), &lease.key), ("alias", &model.key));
        assert_eq!(model.served.last_uses.last_use(), Some(now));
        assert!(model.queue.is_shared(), "a leased model is busy");
        drop(lease);
        assert!(!model.queue.is_shared());
        let other = entry("other", "1", 2, "a").key;
        assert!(table.lease(&other, "other", &usage(), now).is_none());
    }

    #[test]
    fn removed_model_is_not_leased() {
        let model = TestModel::new();
        let table = model.table();
        let earlier = lease(&table, &model).unwrap();
        table.remove(&model.key);
        assert!(lease(&table, &model).is_none());
        // The lease from before the removal still holds the queue, so the worker waits for it.
        let TestModel { queue, mut receiver, .. } = model;
        drop(queue);
        drop(earlier);
        assert!(receiver.next(1).is_none());
    }

    #[test]
    fn ended_worker_is_not_leased() {
        let TestModel { key, served, queue, receiver } = TestModel::new();
        let table = ServingTable::default();
        table.insert(key.clone(), served);
        let lease = || table.lease(&key, "m", &usage(), Instant::now());
        assert!(lease().is_some());
        // The worker has panicked.
        drop(receiver);
        assert!(lease().is_none());
        drop(queue);
        assert!(lease().is_none());
    }

    #[test]
    fn shedding_leaves_requests_to_the_manager() {
        let model = TestModel::new();
        let table = model.table();
        table.set_shedding(true);
        assert!(lease(&table, &model).is_none());
        table.set_shedding(false);
        assert!(lease(&table, &model).is_some());
    }

    #[test]
    fn leased_model_is_not_removed_as_idle() {
        let model = TestModel::new();
        let table = model.table();
        let is_idle = || !model.queue.is_shared();
        let held = lease(&table, &model).unwrap();
        assert!(!table.remove_if(&model.key, is_idle));
        drop(held);
        assert!(table.remove_if(&model.key, is_idle));
        assert!(lease(&table, &model).is_none());
        // A model that is not in the table is removed by its condition alone.
        assert!(table.remove_if(&model.key, is_idle));
    }

    /// Takes leases on one thread while another removes the model when it is idle.
    #[test]
    fn concurrent_leases_and_removal_exclude_each_other() {
        let (usage, model) = (usage(), TestModel::new());
        for _round in 0..50 {
            let table = model.table();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                let leasing = scope.spawn(|| {
                    start.wait();
                    table.lease(&model.key, "m", &usage, Instant::now())
                });
                start.wait();
                let is_removed = table.remove_if(&model.key, || !model.queue.is_shared());
                let lease = leasing.join().unwrap();
                assert_eq!(lease.is_some(), !is_removed);
                assert_eq!(model.queue.is_shared(), !is_removed);
            });
        }
    }

    /// Simulates drains that begin while requests take leases: the queue ends after the last lease.
    #[test]
    fn worker_ends_although_requests_race_with_the_drain() {
        let usage = usage();
        let model = TestModel::new();
        let table = model.table();
        let TestModel { key, queue, mut receiver, .. } = model;
        thread::scope(|scope| {
            for _request in 0..4 {
                scope.spawn(|| while table.lease(&key, "m", &usage, Instant::now()).is_some() {});
            }
            let worker = scope.spawn(move || receiver.next(1).is_none());
            table.remove(&key);
            drop(queue);
            assert!(worker.join().unwrap());
        });
        assert!(table.lease(&key, "m", &usage, Instant::now()).is_none());
    }
}
