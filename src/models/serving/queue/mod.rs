//! The queue of one worker. The runtime puts requests in; the worker's threads take batches out.
//!
//! The queue holds the waiting requests and the measured throughput. From both it computes when a
//! rejected client should retry. [`fair_queue`] decides the order of the requests, and [`reply`]
//! detects the clients that cancelled. The lock is held only for moves in memory, never while a
//! batch is computed or a future is awaited.
//!
//! Invariants:
//! 1. The queue does not grow beyond its bounds, except that an owner without a waiting request may
//!    always enqueue one. A rejected request gets a time after which to retry.
//! 2. The queue ends when every [`QueueSender`] is dropped and every waiting request has been
//!    taken.
//! 3. When the last [`QueueReceiver`] is dropped, or any of them by a panic, all waiting and all
//!    later requests fail at once.
//! 4. At most one batch of bulk requests is computed at a time, so that an interactive request
//!    never waits for several.
//! 5. There are as many receivers as [`QueueLimits::batches`], as soon as the running batches have
//!    ended. A changed limit applies to the requests that arrive after it.

mod fair_queue;
mod reply;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::Output;
use crate::models::{Owner, Priority, Ticket};
pub(in crate::models) use fair_queue::QueuedRequest;
use fair_queue::{Backlog, FairQueue, LaneKey, LaneLimits, RequestMeta};
pub(in crate::models) use reply::ReplyFuture;
#[cfg(test)]
pub(in crate::models) use reply::tests::wait;
use reply::{CancelFlag, JobReply};

/// Most tokens of a request that is interactive if it does not name its class: one or two long
/// texts, or a page of short ones.
const INTERACTIVE_TOKENS: usize = 1024;
/// Longest retry time that a rejected client gets. OpenAI's clients give up instead of waiting
/// longer.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Estimated wait before the first batch was computed, while the throughput is unknown.
const UNKNOWN_RETRY_AFTER: Duration = Duration::from_millis(50);
/// Weight of the last batch in the moving average of the throughput: about ten batches count.
const RATE_WEIGHT: f64 = 0.2;

/// Bounds of a queue, its gathering time, and the number of concurrent batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) struct QueueLimits {
    /// Most requests that may wait in a lane.
    pub(in crate::models) requests: usize,
    /// Most tokens that may wait in a lane.
    pub(in crate::models) tokens: usize,
    /// Time after a batch of several requests during which the next one may be gathered.
    pub(in crate::models) wait: Duration,
    /// Batches taken at a time: computed, or ready for the first free thread.
    pub(in crate::models) batches: usize,
}

/// A request while it waits and while it is computed.
#[derive(Debug)]
pub(in crate::models) struct EmbedJob {
    /// Token ids of the texts that are not computed yet.
    pub(in crate::models) texts: Vec<Vec<u32>>,
    /// Kind of result for each text.
    pub(in crate::models) output: Output,
    /// Results of the finished texts, one after the other.
    pub(in crate::models) vectors: Vec<f32>,
    /// Time at which the request was enqueued.
    pub(in crate::models) queued: Instant,
    /// Time at which its first batch began.
    pub(in crate::models) began: Option<Instant>,
    /// Time after which the client no longer waits.
    pub(in crate::models) deadline: Instant,
    /// Channel for the results; closed when the client has cancelled.
    pub(in crate::models) reply: oneshot::Sender<JobReply>,
}

impl EmbedJob {
    fn is_wanted(&self, now: Instant) -> bool {
        !self.reply.is_closed() && now < self.deadline
    }
}

/// Reason why a request cannot be enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum PushError {
    /// The queue is full.
    Full {
        /// Number of waiting requests.
        waiting: usize,
        /// Estimated time until there is space.
        retry_after: Duration,
    },
    /// The worker has ended.
    Closed,
}

/// Next work of a worker.
#[derive(Debug)]
pub(in crate::models) enum WorkItem {
    /// A batch to compute.
    Batch(Vec<QueuedRequest<EmbedJob>>),
    /// A command to free the scratch memory of passes; the next pass allocates it again.
    ReleaseScratch(Vec<oneshot::Sender<()>>),
    /// A command to compute a pass for the liveness check.
    Probe(oneshot::Sender<()>),
    /// A receiver for another thread: more batches may be computed concurrently than there are
    /// receivers.
    AddReceiver(QueueReceiver),
}

#[derive(Debug)]
struct QueueState {
    limits: QueueLimits,
    /// Whether no further receiver is created, because a thread for it cannot be started. Changed
    /// limits reset it.
    has_all_receivers: bool,
    /// Whether the waiting requests were dropped for good, so that no request is accepted.
    is_aborted: bool,
    requests: FairQueue<EmbedJob>,
    /// Set when a client has cancelled since the last sweep of the waiting requests.
    cancelled: Arc<CancelFlag>,
    /// Callers that wait until scratch memory is freed.
    release_requests: Vec<oneshot::Sender<()>>,
    /// Caller that waits for a liveness pass. A later caller replaces it.
    probe: Option<oneshot::Sender<()>>,
    senders: usize,
    receivers: usize,
    /// Receivers that sleep until there is work.
    idle: usize,
    /// Goal of the gathering receivers: they wake when so many requests or so many tokens wait.
    wake_threshold: Option<Backlog>,
    /// Batches that were taken and are not finished.
    batches: usize,
    /// Whether one of these batches is of bulk requests.
    has_bulk: bool,
    /// Throughput in tokens per second: a moving average in which the last batches count most.
    rate: Option<f64>,
}

#[derive(Debug)]
struct SharedQueue {
    state: Mutex<QueueState>,
    arrived: Condvar,
}

impl SharedQueue {
    /// Locks the state. A poisoned lock is used as it is: the code under the lock does not panic
    /// between two related changes, so that the state is consistent.
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the queue of one worker.
pub(in crate::models) fn channel(limits: QueueLimits) -> (QueueSender, QueueReceiver) {
    let state = QueueState {
        limits,
        has_all_receivers: false,
        is_aborted: false,
        requests: FairQueue::default(),
        cancelled: Arc::default(),
        release_requests: Vec::new(),
        probe: None,
        senders: 1,
        receivers: 1,
        idle: 0,
        wake_threshold: None,
        batches: 0,
        has_bulk: false,
        rate: None,
    };
    let shared = Arc::new(SharedQueue { state: Mutex::new(state), arrived: Condvar::new() });
    let receiver = QueueReceiver::new(&shared);
    (QueueSender { shared }, receiver)
}

/// Input side of the queue. The queue ends when the last sender is dropped.
#[derive(Debug)]
pub(in crate::models) struct QueueSender {
    shared: Arc<SharedQueue>,
}

impl Clone for QueueSender {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for QueueSender {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.shared.arrived.notify_all();
        }
    }
}

/// Reference to a queue that does not keep it open.
#[derive(Clone, Debug)]
pub(in crate::models) struct WeakQueueSender {
    shared: Weak<SharedQueue>,
}

impl WeakQueueSender {
    /// Returns another sender of the queue; `None` if the queue or its worker has ended.
    pub(in crate::models) fn upgrade(&self) -> Option<QueueSender> {
        let shared = self.shared.upgrade()?;
        let mut state = shared.lock();
        // The receivers keep the shared part alive after the last sender. A sender that follows
        // would open a queue whose worker may have ended already.
        if state.senders == 0 || state.receivers == 0 {
            return None;
        }
        state.senders += 1;
        drop(state);
        Some(QueueSender { shared })
    }

    /// Drops all waiting requests, which fail at once, and rejects later ones. Running passes end;
    /// a request that is computed in parts is not continued.
    pub(in crate::models) fn abort(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        state.is_aborted = true;
        // Drop the requests outside the lock, since each dropped reply channel wakes a client.
        let dropped = std::mem::take(&mut state.requests);
        shared.arrived.notify_all();
        drop(state);
        drop(dropped);
    }
}

impl QueueSender {
    /// Returns a reference to the queue that is not a sender.
    pub(in crate::models) fn downgrade(&self) -> WeakQueueSender {
        WeakQueueSender { shared: Arc::downgrade(&self.shared) }
    }

    /// Checks whether a request with this ticket could be enqueued if it had one token, so that a
    /// caller does not do work for a request that will be rejected.
    ///
    /// # Errors
    /// Same as [`QueueSender::push`].
    pub(in crate::models) fn check(&self, ticket: &Ticket) -> Result<(), PushError> {
        let (owner, now) = (ticket.flow.owner, Instant::now());
        self.shared.lock().check_space(&ticket.tenant, owner, 1, ticket.deadline, now)
    }

    /// Replaces the limits. Requests that wait already keep their places.
    pub(in crate::models) fn set_limits(&self, limits: QueueLimits) {
        let mut state = self.shared.lock();
        if state.limits != limits {
            state.limits = limits;
            state.has_all_receivers = false;
            // Wake the receivers: some may have to end, and one may have to start another.
            self.shared.arrived.notify_all();
        }
    }

    /// Enqueues `texts` and returns a future for the results. Dropping the future cancels the
    /// request; the caller must drop it by the ticket's deadline.
    ///
    /// # Errors
    /// When the queue is full, when the request would not be computed by the ticket's deadline, or
    /// when the worker has ended.
    pub(in crate::models) fn push(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: &Ticket,
    ) -> Result<ReplyFuture, PushError> {
        let tokens = texts.iter().map(Vec::len).sum();
        let by_size = match tokens <= INTERACTIVE_TOKENS {
            true => Priority::Interactive,
            false => Priority::Bulk,
        };
        let terms = RequestMeta {
            tokens,
            output,
            priority: ticket.priority.unwrap_or(by_size),
            flow: ticket.flow,
            weight: u32::from(ticket.weight),
            lane: ticket.tenant.clone(),
        };
        let (now, deadline) = (Instant::now(), ticket.deadline);
        let mut state = self.shared.lock();
        let owner = terms.flow.owner;
        state.check_space(&terms.lane, owner, terms.tokens, deadline, now)?;
        let (reply, answer) = ReplyFuture::channel(&state.cancelled);
        let vectors = Vec::new();
        let job = EmbedJob { texts, output, vectors, queued: now, began: None, deadline, reply };
        state.requests.push(terms, job);
        // Avoid spurious wake-ups: each costs a system call, and two context switches while a
        // receiver gathers a batch.
        let (is_enough, is_idle) = (state.has_enough(), state.idle > 0);
        drop(state);
        if is_enough {
            // Wake all receivers: `notify_one` could wake one that is idle instead of the one that
            // gathers.
            self.shared.arrived.notify_all();
        } else if is_idle {
            self.shared.arrived.notify_one();
        }
        Ok(answer)
    }

    /// Requests that the worker frees its scratch memory after its current pass. The returned
    /// channel gets a value when this is done, and is closed if the worker has ended.
    pub(in crate::models) fn release_scratch(&self) -> oneshot::Receiver<()> {
        let (done, released) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.receivers > 0 {
            state.release_requests.push(done);
            self.shared.arrived.notify_one();
        }
        released
    }

    /// Requests that the worker computes a liveness pass after its current pass, before all waiting
    /// requests. The returned channel gets a value when this is done, and is closed if the worker
    /// has ended.
    pub(in crate::models) fn probe(&self) -> oneshot::Receiver<()> {
        let (done, proof) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.receivers > 0 {
            state.probe = Some(done);
            self.shared.arrived.notify_one();
        }
        proof
    }

    /// Returns the number of waiting requests and of their tokens.
    pub(in crate::models) fn backlog(&self) -> Backlog {
        self.shared.lock().requests.total_backlog()
    }

    /// Returns whether there is another sender.
    pub(in crate::models) fn is_shared(&self) -> bool {
        self.shared.lock().senders > 1
    }

    /// Returns whether the worker has ended.
    pub(in crate::models) fn is_closed(&self) -> bool {
        self.shared.lock().receivers == 0
    }
}

impl QueueState {
    /// Checks whether a request of `owner` with `tokens` tokens may wait in `lane`, and can be
    /// computed by `deadline`. An owner without a waiting request may always enqueue one: however
    /// many requests others have, fair scheduling takes it after one of each owner.
    fn check_space(
        &mut self,
        lane: &LaneKey,
        owner: Owner,
        tokens: usize,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), PushError> {
        if self.receivers == 0 || self.is_aborted {
            return Err(PushError::Closed);
        }
        if !self.requests.has_owner(owner) && now < deadline {
            return Ok(());
        }
        let bounds = LaneLimits { requests: self.limits.requests, tokens: self.limits.tokens };
        // A sweep visits every waiting request. So it runs only when the lane is full and a client
        // has cancelled since the last one.
        if !self.requests.has_space(lane, tokens, bounds) && self.cancelled.take() {
            self.requests.drop_unwanted(|job| job.is_wanted(now));
        }
        let wait = self.estimate_wait(lane);
        // A request that would expire in the queue is rejected at once. Before the first batch
        // the wait is unknown, and only the bounds count.
        if self.requests.has_space(lane, tokens, bounds)
            && wait.is_none_or(|wait| now + wait < deadline)
        {
            return Ok(());
        }
        let retry_after = wait.unwrap_or(UNKNOWN_RETRY_AFTER).min(MAX_RETRY_AFTER);
        Err(PushError::Full { waiting: self.requests.backlog(lane).requests, retry_after })
    }

    /// Returns whether the backlog is large enough for a gathering receiver; returns true once for
    /// each goal.
    fn has_enough(&mut self) -> bool {
        let load = self.requests.total_backlog();
        let is_met =
            |enough: &mut Backlog| load.requests >= enough.requests || load.tokens >= enough.tokens;
        self.wake_threshold.take_if(is_met).is_some()
    }

    /// Records the end of a batch of this class. Returns whether a bulk batch may begin that had to
    /// wait for it.
    fn end_batch(&mut self, batch: Option<Priority>) -> bool {
        let Some(priority) = batch else { return false };
        self.batches = self.batches.saturating_sub(1);
        let bulk = priority == Priority::Bulk;
        self.has_bulk &= !bulk;
        bulk && self.requests.is_ready(true)
    }

    /// Estimates the time until all waiting requests of `lane` are computed.
    fn estimate_wait(&self, lane: &LaneKey) -> Option<Duration> {
        // Token counts are below 2^53, so the cast is exact. The quotient is clamped because the
        // conversion to `Duration` panics on values that are too large or not finite.
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let tokens = self.requests.backlog(lane).tokens as f64;
        let seconds = (tokens / self.rate?).clamp(0.0, MAX_RETRY_AFTER.as_secs_f64());
        Some(Duration::from_secs_f64(seconds))
    }
}

/// Last batch of a receiver.
#[derive(Debug, Default)]
struct LastBatch {
    requests: usize,
    ended: Option<Instant>,
}

/// Output side of the queue. Each clone takes one batch at a time, concurrently with the others.
/// When the last receiver is dropped, or any of them by a panic, all waiting requests fail.
#[derive(Debug)]
pub(in crate::models) struct QueueReceiver {
    shared: Arc<SharedQueue>,
    last_batch: LastBatch,
    /// Class of the batch that this receiver has taken and not finished.
    computes: Option<Priority>,
    /// Whether it is no longer counted, because fewer batches may be computed concurrently.
    is_retired: bool,
}

impl QueueReceiver {
    /// Returns a receiver that is counted already.
    fn new(shared: &Arc<SharedQueue>) -> Self {
        let (shared, last_batch) = (Arc::clone(shared), LastBatch::default());
        Self { shared, last_batch, computes: None, is_retired: false }
    }
}

impl Drop for QueueReceiver {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end_batch(self.computes.take());
        if self.is_retired {
            return;
        }
        state.receivers = state.receivers.saturating_sub(1);
        if thread::panicking() {
            // A panic ends the whole worker: the other receivers see the closed queue in `next`.
            state.receivers = 0;
            self.shared.arrived.notify_all();
        }
        if state.receivers > 0 {
            return;
        }
        state.release_requests.clear();
        state.probe = None;
        // Drop the requests outside the lock, since each dropped reply channel wakes a client.
        let order = std::mem::take(&mut state.requests);
        drop(state);
        drop(order);
    }
}

impl QueueReceiver {
    /// Waits for the next work; returns `None` when the queue has ended. A batch holds whole
    /// requests with at most `budget` tokens together, or one larger request, of which the caller
    /// computes a part.
    pub(in crate::models) fn next(&mut self, budget: usize) -> Option<WorkItem> {
        let mut state = self.shared.lock();
        // The previous batch of this receiver ends here. If it was a bulk batch, another receiver
        // may sleep although bulk requests are waiting: wake one.
        if state.end_batch(self.computes.take()) {
            self.shared.arrived.notify_one();
        }
        loop {
            // Another receiver panicked and closed the queue.
            if state.receivers == 0 {
                return None;
            }
            if state.receivers > state.limits.batches.max(1) {
                // Leave the count at once, so that no other receiver ends for the same reason.
                state.receivers -= 1;
                self.is_retired = true;
                // This receiver may have been woken for a request.
                self.shared.arrived.notify_one();
                return None;
            }
            let has_work = state.senders > 0 || state.requests.total_backlog().requests > 0;
            let may_grow = has_work && !state.has_all_receivers;
            if may_grow && state.receivers < state.limits.batches {
                state.receivers += 1;
                return Some(WorkItem::AddReceiver(Self::new(&self.shared)));
            }
            // Liveness probes and releases of scratch memory go before all batches, so that they
            // wait for the running passes at most and not for the backlog.
            if let Some(proof) = state.probe.take() {
                return Some(WorkItem::Probe(proof));
            }
            if !state.release_requests.is_empty() {
                return Some(WorkItem::ReleaseScratch(std::mem::take(&mut state.release_requests)));
            }
            let load = state.requests.total_backlog();
            let may_be_bulk = !state.has_bulk;
            if !state.requests.is_ready(may_be_bulk) {
                if state.senders == 0 && load.requests == 0 {
                    // Another receiver may sleep because only bulk requests were left while a bulk
                    // batch was running. Wake it, so that it sees the end of the queue too.
                    self.shared.arrived.notify_all();
                    return None;
                }
                // `push` skips the system call for a wake-up while this counter is 0.
                state.idle += 1;
                state = self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            }
            let now = Instant::now();
            // Gather: the clients of the last batch have just got their answers, and many send the
            // next request at once. If fewer requests wait than the last batch had, wait for the
            // others, until `limits.wait` after the end of that batch. A fuller pass costs less per
            // text. Do not wait with a full budget, or if only the manager's own sender is left,
            // since then no request can arrive. An idle worker starts at once, because its last
            // batch ended too long ago.
            if load.requests < self.last_batch.requests
                && load.tokens < budget
                && state.senders > 1
                && let Some(ended) = self.last_batch.ended
                && let Some(left) = state.limits.wait.checked_sub(now - ended)
            {
                let own = Backlog { requests: self.last_batch.requests, tokens: budget };
                // Several receivers may gather at the same time. Keep the smallest goal, so that
                // `push` wakes them as soon as one of them has enough.
                let enough = state.wake_threshold.get_or_insert(own);
                enough.requests = enough.requests.min(own.requests);
                enough.tokens = enough.tokens.min(own.tokens);
                let waited = self.shared.arrived.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            // Cancelled and expired requests are dropped here. If only such requests were waiting,
            // the batch is empty, and the loop starts again.
            let batch = state.requests.take(budget, may_be_bulk, |job| job.is_wanted(now));
            if let Some(first) = batch.first() {
                self.last_batch.requests = batch.len();
                self.computes = Some(first.meta.priority);
                state.batches += 1;
                state.has_bulk |= first.meta.priority == Priority::Bulk;
                return Some(WorkItem::Batch(batch));
            }
        }
    }

    /// Records that no thread can be started for another receiver: none is created until the limits
    /// change. Returns the number of receivers.
    pub(in crate::models) fn stop_growing(&self) -> usize {
        let mut state = self.shared.lock();
        state.has_all_receivers = true;
        state.receivers
    }

    /// Records a finished batch: `tokens` were computed in `took`. Enqueues the `unfinished`
    /// request again, behind the requests of others.
    pub(in crate::models) fn finish_batch(
        &mut self,
        tokens: usize,
        took: Duration,
        unfinished: Option<(QueuedRequest<EmbedJob>, usize)>,
    ) {
        self.last_batch.ended = Some(Instant::now());
        let mut state = self.shared.lock();
        // An aborted queue drops the request, which fails then.
        if let Some((turn, computed)) = unfinished
            && !state.is_aborted
        {
            state.requests.requeue(turn, computed);
        }
        // Concurrent batches drain the queue together, so that the rate of one is multiplied by
        // their number. The product is far below 2^53, so the cast is exact.
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let rate = (state.batches.max(1) * tokens) as f64 / took.as_secs_f64().max(1e-6);
        if tokens > 0 {
            let mean = state.rate.map_or(rate, |mean| mean + RATE_WEIGHT * (rate - mean));
            state.rate = Some(mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Flow;

    const FLOW: Flow = Flow { owner: Owner::User(0), connection: 0 };
    const LIMITS: QueueLimits =
        QueueLimits { requests: 2, tokens: 100, wait: Duration::ZERO, batches: 1 };

    fn ticket(patience: Duration) -> Ticket {
        let deadline = Instant::now() + patience;
        Ticket { flow: FLOW, priority: None, deadline, tenant: None, weight: 1 }
    }

    fn push(
        sender: &QueueSender,
        tokens: usize,
        patience: Duration,
    ) -> Result<ReplyFuture, PushError> {
        sender.push(vec![vec![0; tokens]], Output::Vector, &ticket(patience))
    }

    const PATIENT: Duration = Duration::from_secs(1000);

    fn take(receiver: &mut QueueReceiver, budget: usize) -> Vec<QueuedRequest<EmbedJob>> {
        match receiver.next(budget) {
            Some(WorkItem::Batch(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn full_queue_computes_retry_after_from_rate() {
        let (sender, mut receiver) = channel(LIMITS);
        let kept = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 60, PATIENT).unwrap()];
        let unknown = PushError::Full { waiting: 2, retry_after: UNKNOWN_RETRY_AFTER };
        assert_eq!(push(&sender, 1, PATIENT).unwrap_err(), unknown);
        assert_eq!(sender.check(&ticket(PATIENT)).unwrap_err(), unknown);
        take(&mut receiver, 1);
        receiver.finish_batch(20, Duration::from_secs(1), None);
        let by_rate = PushError::Full { waiting: 1, retry_after: Duration::from_secs(3) };
        assert_eq!(push(&sender, 41, PATIENT).unwrap_err(), by_rate);
        receiver.finish_batch(0, Duration::ZERO, None);
        sender.check(&ticket(PATIENT)).unwrap();
        assert!(push(&sender, 1, PATIENT).is_ok());
        drop(kept);
    }

    #[test]
    fn request_beyond_deadline_is_refused_immediately() {
        let (sender, mut receiver) = channel(LIMITS);
        receiver.finish_batch(20, Duration::from_secs(1), None);
        let _kept = push(&sender, 60, PATIENT).unwrap();
        assert!(matches!(push(&sender, 1, Duration::from_secs(2)), Err(PushError::Full { .. })));
        assert!(push(&sender, 1, Duration::from_secs(4)).is_ok());
    }

    #[test]
    fn cancelled_requests_free_queue_space() {
        let (sender, _receiver) = channel(LIMITS);
        let gone = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 1, PATIENT).unwrap()];
        assert!(push(&sender, 1, PATIENT).is_err());
        drop(gone);
        assert!(push(&sender, 1, PATIENT).is_ok());
        assert_eq!(sender.backlog(), Backlog { requests: 1, tokens: 1 });
    }

    #[test]
    fn dropped_worker_fails_waiting_and_new_requests() {
        let (sender, receiver) = channel(LIMITS);
        let waiting = push(&sender, 1, PATIENT).unwrap();
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(wait(waiting).is_err());
        assert!(sender.is_closed());
        assert_eq!(push(&sender, 1, PATIENT).unwrap_err(), PushError::Closed);
        assert!(sender.release_scratch().blocking_recv().is_err());
    }

    #[test]
    fn queue_ends_after_last_sender_and_request() {
        let (sender, mut receiver) = channel(LIMITS);
        let other = sender.clone();
        assert!(sender.is_shared());
        let _kept = push(&other, 1, PATIENT).unwrap();
        drop(other);
        assert!(!sender.is_shared());
        drop(sender);
        assert_eq!(take(&mut receiver, 10).len(), 1);
        assert!(receiver.next(10).is_none());
    }

    #[test]
    fn weak_sender_does_not_keep_queue_open() {
        let (sender, mut receiver) = channel(LIMITS);
        let weak = sender.downgrade();
        assert!(!sender.is_shared());
        let other = weak.upgrade().unwrap();
        assert!(sender.is_shared());
        drop(sender);
        let third = weak.upgrade().unwrap();
        drop((other, third));
        assert!(weak.upgrade().is_none());
        assert!(receiver.next(10).is_none());
        let (sender, receiver) = channel(LIMITS);
        drop(receiver);
        assert!(sender.downgrade().upgrade().is_none());
    }

    #[test]
    fn worker_gathers_only_after_shared_batch() {
        let wait = Duration::from_secs(1000);
        let (sender, mut receiver) = channel(QueueLimits { wait, ..LIMITS });
        // A receiver gathers only while there is another sender.
        let _other = sender.clone();
        let _first = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 1, PATIENT).unwrap()];
        assert_eq!(take(&mut receiver, 10).len(), 2);
        receiver.finish_batch(2, Duration::from_secs(1), None);
        let _second = push(&sender, 1, PATIENT).unwrap();
        // Without a wake-up by the second request, this would block for a thousand seconds.
        thread::scope(|scope| {
            let gathered = scope.spawn(|| take(&mut receiver, 10).len());
            let _third = push(&sender, 1, PATIENT).unwrap();
            assert_eq!(gathered.join().unwrap(), 2);
        });
        receiver.last_batch.requests = 1;
        let _fourth = push(&sender, 1, PATIENT).unwrap();
        assert_eq!(take(&mut receiver, 10).len(), 1);
    }

    /// Checks the wake-ups: without them, each receiver would wait for a thousand seconds.
    #[test]
    fn workers_wake_when_enough_requests_wait() {
        let wait = Duration::from_secs(1000);
        let (sender, mut receiver) = channel(QueueLimits { wait, requests: 10, ..LIMITS });
        let _other = sender.clone();
        let until = |waits: fn(&QueueState) -> bool| {
            while !waits(&sender.shared.lock()) {
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            let idle = scope.spawn(|| take(&mut receiver, 10).len());
            until(|state| state.idle == 1);
            let _answer = push(&sender, 1, PATIENT).unwrap();
            assert_eq!(idle.join().unwrap(), 1);
        });
        // Three requests of five tokens exceed the budget of eleven, so that only two are taken.
        for (last, tokens, taken) in [(3, 1, 3), (9, 5, 2)] {
            receiver.last_batch = LastBatch { requests: last, ended: Some(Instant::now()) };
            let _first = push(&sender, tokens, PATIENT).unwrap();
            thread::scope(|scope| {
                let gathers = scope.spawn(|| take(&mut receiver, 11).len());
                until(|state| state.wake_threshold.is_some());
                let _second = push(&sender, tokens, PATIENT).unwrap();
                assert!(sender.shared.lock().wake_threshold.is_some());
                let _third = push(&sender, tokens, PATIENT).unwrap();
                assert_eq!(gathers.join().unwrap(), taken);
            });
        }
    }

    /// Returns the receiver that `first` creates because two batches may be computed concurrently.
    fn second_receiver(first: &mut QueueReceiver) -> QueueReceiver {
        match first.next(1) {
            Some(WorkItem::AddReceiver(second)) => second,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn receivers_follow_the_number_of_batches() {
        let (sender, mut first) = channel(QueueLimits { batches: 3, ..LIMITS });
        let (mut second, mut third) = (second_receiver(&mut first), second_receiver(&mut first));
        sender.set_limits(LIMITS);
        // Two receivers end, although no request waits, and the last one stays.
        assert!(third.next(1).is_none());
        assert!(first.next(1).is_none());
        drop((first, third));
        assert!(!sender.is_closed());
        let _kept = push(&sender, 1, PATIENT).unwrap();
        assert_eq!(take(&mut second, 1).len(), 1);
        sender.set_limits(QueueLimits { batches: 2, ..LIMITS });
        let fourth = second_receiver(&mut second);
        // No thread can be started for it.
        drop(fourth);
        assert_eq!(second.stop_growing(), 1);
        let _kept = push(&sender, 1, PATIENT).unwrap();
        assert_eq!(take(&mut second, 1).len(), 1);
        drop(second);
        assert!(sender.is_closed());
    }

    #[test]
    fn lower_limit_affects_new_requests_only() {
        let (sender, mut receiver) = channel(LIMITS);
        let kept = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 1, PATIENT).unwrap()];
        sender.set_limits(QueueLimits { requests: 1, ..LIMITS });
        assert!(push(&sender, 1, PATIENT).is_err());
        assert_eq!(take(&mut receiver, 10).len(), 2);
        drop(kept);
        sender.set_limits(QueueLimits { requests: 3, ..LIMITS });
        let kept: Vec<_> = (0..3).map(|_| push(&sender, 1, PATIENT).unwrap()).collect();
        assert!(push(&sender, 1, PATIENT).is_err());
        drop(kept);
    }

    #[test]
    fn aborted_queue_drops_waiting_and_unfinished_requests() {
        let (sender, mut receiver) = channel(LIMITS);
        let weak = sender.downgrade();
        let unfinished = push(&sender, 60, PATIENT).unwrap();
        let turn = take(&mut receiver, 10).pop().unwrap();
        let waiting = push(&sender, 1, PATIENT).unwrap();
        weak.abort();
        assert!(wait(waiting).is_err());
        assert_eq!(push(&sender, 1, PATIENT).unwrap_err(), PushError::Closed);
        receiver.finish_batch(10, Duration::from_secs(1), Some((turn, 10)));
        assert!(wait(unfinished).is_err());
        drop(sender);
        assert!(receiver.next(10).is_none());
        // The queue has ended, and there is nothing to abort.
        drop(receiver);
        weak.abort();
    }

    #[test]
    fn bulk_batches_run_one_at_a_time() {
        let (sender, mut first) = channel(QueueLimits { requests: 10, batches: 2, ..LIMITS });
        let mut second = second_receiver(&mut first);
        let push = |priority| {
            let priority = Some(priority);
            let deadline = Instant::now() + PATIENT;
            let ticket = Ticket { flow: FLOW, priority, deadline, tenant: None, weight: 1 };
            sender.push(vec![vec![0; 10]], Output::Vector, &ticket).unwrap()
        };
        let class = |batch: Vec<QueuedRequest<EmbedJob>>| batch[0].meta.priority;
        let _bulk = [push(Priority::Bulk), push(Priority::Bulk)];
        assert_eq!(class(take(&mut first, 10)), Priority::Bulk);
        let ready = |receiver: &QueueReceiver| {
            let state = receiver.shared.lock();
            state.requests.is_ready(!state.has_bulk)
        };
        assert!(!ready(&second));
        let _interactive = push(Priority::Interactive);
        assert_eq!(class(take(&mut second, 10)), Priority::Interactive);
        assert!(!ready(&second));
        // The first receiver has finished its bulk batch, and may take the other one.
        assert_eq!(class(take(&mut first, 10)), Priority::Bulk);
        assert_eq!(first.shared.lock().batches, 2);
        drop((first, sender));
        assert!(second.next(10).is_none());
        assert_eq!(second.shared.lock().batches, 0);
    }

    #[test]
    fn rate_covers_concurrent_batches() {
        let (sender, mut first) = channel(QueueLimits { batches: 2, ..LIMITS });
        let mut second = second_receiver(&mut first);
        let _kept = [push(&sender, 10, PATIENT).unwrap(), push(&sender, 10, PATIENT).unwrap()];
        for receiver in [&mut first, &mut second] {
            take(receiver, 10);
        }
        first.finish_batch(10, Duration::from_secs(1), None);
        assert_eq!(first.shared.lock().rate, Some(20.0));
    }
}
