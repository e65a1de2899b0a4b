//! Schedules work on the processors fairly among users: tokenizing, large JSON, large answers,
//! ranking by keyword.
//!
//! Each kind of work has a number of permits. When all are taken, requests are queued for each
//! user. A free permit goes to the users in round-robin order, and to the oldest request of that
//! user. Long work releases its permit after a [`SLICE`] if others wait, and queues again.
//!
//! Invariants:
//! 1. No more work runs at the same time than there are permits.
//! 2. While a user waits, each other user gets at most one permit before it.
//! 3. A user has at most [`MAX_WAITING`] queued requests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::WorkError;

/// Time after which work yields to queued requests.
const SLICE: Duration = Duration::from_millis(5);
/// Most queued requests of one user.
const MAX_WAITING: usize = 1024;

/// The permits of all kinds of work. Clones share them.
#[derive(Clone, Debug)]
pub struct Permits {
    /// Permits for tokenizing and for writing large answers, one for each processor.
    pub work: PermitPool,
    /// Permits for parsing large JSON.
    pub parsing: PermitPool,
    /// Permits for tokenizing large texts: the tokenizer allocates a hundred times the size of one
    /// input.
    pub large: PermitPool,
    /// Permits for ranking by keyword, which allocates fifty times the size of the documents.
    pub keywords: PermitPool,
}

impl Permits {
    /// Creates the permits for a machine with `processors` processors.
    pub fn new(processors: usize) -> Self {
        Self {
            work: PermitPool::new(processors),
            parsing: PermitPool::new(2),
            large: PermitPool::new(1),
            keywords: PermitPool::new(1),
        }
    }
}

/// Permits of one kind, with the queue for them. Clones share them.
#[derive(Clone, Debug)]
pub struct PermitPool(Arc<Mutex<PoolState>>);

#[derive(Debug)]
struct PoolState {
    free: usize,
    /// Users with queued requests; the first one gets the next permit.
    users: VecDeque<u32>,
    waiting: HashMap<u32, VecDeque<PermitRequest>>,
    next: u64,
}

#[derive(Debug)]
struct PermitRequest {
    id: u64,
    reply: oneshot::Sender<Permit>,
}

impl PoolState {
    /// Removes and returns the next queued request. A user with more requests moves to the end.
    fn pop(&mut self) -> Option<PermitRequest> {
        let uid = self.users.pop_front()?;
        let own = self.waiting.get_mut(&uid)?;
        let waiting = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&uid);
        } else {
            self.users.push_back(uid);
        }
        waiting
    }

    fn remove(&mut self, uid: u32, id: u64) {
        let Some(own) = self.waiting.get_mut(&uid) else { return };
        own.retain(|waiting| waiting.id != id);
        if own.is_empty() {
            self.waiting.remove(&uid);
            self.users.retain(|user| *user != uid);
        }
    }
}

impl PermitPool {
    fn new(permits: usize) -> Self {
        let free = permits.max(1);
        let state = PoolState { free, users: VecDeque::new(), waiting: HashMap::new(), next: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // Each change under the lock is complete or cannot panic: the state of a poisoned lock is
        // valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a permit if one is free now.
    pub fn try_acquire(&self) -> Option<Permit> {
        let mut state = self.lock();
        state.free = state.free.checked_sub(1)?;
        Some(Permit { pool: self.clone() })
    }

    /// Waits for a permit for a request of `uid`. Dropping the future removes the request from the
    /// queue.
    ///
    /// # Errors
    /// When too many requests of the user are queued, or `deadline` passes first.
    pub async fn acquire_by(&self, uid: u32, deadline: Instant) -> Result<Permit, WorkError> {
        let (mut reply, id) = {
            let mut state = self.lock();
            if let Some(free) = state.free.checked_sub(1) {
                state.free = free;
                return Ok(Permit { pool: self.clone() });
            }
            let waiting = state.waiting.get(&uid).map_or(0, VecDeque::len);
            if waiting >= MAX_WAITING {
                return Err(WorkError::TooManyWaiting { waiting });
            }
            let id = state.next;
            state.next += 1;
            let (sender, reply) = oneshot::channel();
            state.waiting.entry(uid).or_default().push_back(PermitRequest { id, reply: sender });
            if waiting == 0 {
                state.users.push_back(uid);
            }
            (reply, id)
        };
        // Dropping this future removes the request from the queue. After a grant, the removal has
        // no effect.
        let _given_up = CancelGuard { pool: self, uid, id };
        let patience = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(patience, &mut reply).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(WorkError::Lost),
            Err(_elapsed) => Err(WorkError::Timeout(patience)),
        }
    }

    /// Runs `work` on the blocking pool with a permit for `uid`. The work holds the permit until it
    /// ends, even if the client disconnects first.
    ///
    /// # Errors
    /// As [`Self::acquire_by`], and when the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: u32,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let permit = self.acquire_by(uid, deadline).await?;
        let work = move || {
            let _permit = permit;
            work()
        };
        Ok(tokio::task::spawn_blocking(work).await?)
    }
}

/// Guard that removes a cancelled request from the queue.
struct CancelGuard<'a> {
    pool: &'a PermitPool,
    uid: u32,
    id: u64,
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        self.pool.lock().remove(self.uid, self.id);
    }
}

/// A permit, released when this is dropped.
#[derive(Debug)]
pub struct Permit {
    pool: PermitPool,
}

impl Permit {
    /// Returns whether work that began at `since` should yield because others wait.
    pub fn is_expired(&self, since: Instant) -> bool {
        since.elapsed() >= SLICE && !self.pool.lock().users.is_empty()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match state.pop() {
            None => state.free += 1,
            Some(PermitRequest { reply, .. }) => {
                drop(state);
                // If the receiver was cancelled, `send` returns the permit. Dropping it passes the
                // permit to the next request. The lock must be released first, because that drop
                // locks again.
                drop(reply.send(Self { pool: self.pool.clone() }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// Queues `requests` and returns their users in the order of the permits.
    async fn order(pool: &PermitPool, requests: &[u32]) -> Vec<u32> {
        let held = pool.acquire_by(99, later()).await.unwrap();
        let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for uid in requests.iter().copied() {
            let (pool, sender) = (pool.clone(), sender.clone());
            tasks.spawn(async move {
                let permit = pool.acquire_by(uid, later()).await.unwrap();
                sender.send(uid).unwrap();
                drop(permit);
            });
            tokio::task::yield_now().await;
        }
        drop((held, sender));
        let mut order = Vec::new();
        while let Some(uid) = taken.recv().await {
            order.push(uid);
        }
        order
    }

    #[tokio::test]
    async fn permits_alternate_between_users() {
        let pool = PermitPool::new(1);
        assert_eq!(order(&pool, &[1, 1, 1, 1, 2, 3, 2]).await, [1, 2, 3, 1, 2, 1, 1]);
        let state = pool.lock();
        assert_eq!((state.free, state.users.len(), state.waiting.len()), (1, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_permit_times_out() {
        let pool = PermitPool::new(1);
        let held = pool.acquire_by(1, later()).await.unwrap();
        assert!(pool.try_acquire().is_none());
        let refused = pool.acquire_by(2, later()).await.unwrap_err();
        assert!(matches!(refused, WorkError::Timeout(_)), "{refused}");
        assert!(pool.lock().waiting.is_empty());
        drop(held);
        // A free permit is granted even when the deadline has passed.
        drop(pool.acquire_by(2, Instant::now()).await.unwrap());
        drop(pool.try_acquire().unwrap());
    }

    #[tokio::test]
    async fn waiting_is_bounded_and_cancelled_with_client() {
        let pool = PermitPool::new(1);
        let held = pool.acquire_by(1, later()).await.unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..MAX_WAITING {
            let pool = pool.clone();
            tasks.spawn(async move { drop(pool.acquire_by(1, later()).await) });
        }
        while pool.lock().waiting.get(&1).map_or(0, VecDeque::len) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        let refused = pool.acquire_by(1, later()).await.unwrap_err();
        assert!(matches!(refused, WorkError::TooManyWaiting { waiting: MAX_WAITING }), "{refused}");
        assert!(!held.is_expired(Instant::now()));
        assert!(held.is_expired(Instant::now().checked_sub(SLICE).unwrap()));
        tasks.shutdown().await;
        assert!(pool.lock().waiting.is_empty() && pool.lock().users.is_empty());
        assert!(!held.is_expired(Instant::now().checked_sub(SLICE).unwrap()));
    }

    proptest! {
        #[test]
        fn every_request_is_served_in_fair_order(
            requests in prop::collection::vec(0_u32..5, 0..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let taken = runtime.block_on(order(&PermitPool::new(1), &requests));
            let mut left: HashMap<u32, usize> = HashMap::new();
            for uid in &requests {
                *left.entry(*uid).or_default() += 1;
            }
            let mut since: HashMap<u32, usize> = HashMap::new();
            for (at, uid) in taken.iter().enumerate() {
                let users = left.values().filter(|count| **count > 0).count();
                if let Some(before) = since.insert(*uid, at) {
                    prop_assert!(at - before >= users, "{taken:?}");
                }
                *left.get_mut(uid).unwrap() -= 1;
            }
            prop_assert!(left.values().all(|count| *count == 0));
        }
    }
}
