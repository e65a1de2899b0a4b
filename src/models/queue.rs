//! The queue of one worker: requests go in from the runtime, batches come out on the worker's threads.
//!
//! Owns what waits, how fast it is computed, and from both when a client that is refused should come back. The order
//! is decided in [`order`], and whether a client has left is known in [`answer`]. The lock is held for moves in memory
//! only, never while something is computed or awaited.
//!
//! Invariants:
//! 1. It never grows beyond its bounds; what is refused learns when to come again.
//! 2. It ends when every [`Sender`] is gone and everything that waited has been taken.
//! 3. When the last [`Receiver`] is gone, or one of them in a panic, whoever waits or comes is told at once.
//! 4. One batch of bulk requests at most is taken at a time, so that interactive ones never wait for several.

mod answer;
mod order;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Owner, Priority, Ticket};
use crate::engine::Output;
pub(super) use answer::Answer;
#[cfg(test)]
pub(super) use answer::tests::wait;
use answer::{Departures, Reply};
pub(super) use order::Turn;
use order::{Bounds, Lane, Load, Order, Terms};

/// A request of at most so many tokens is interactive unless it says otherwise: no more than a long text or two, or a
/// page of short ones.
const INTERACTIVE_TOKENS: usize = 1024;
/// The longest that a refused client is told to wait: OpenAI's clients do not wait for longer, but give up.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// The least that a refused client is told to wait.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(50);
/// What a refused client is told before a batch was ever computed.
const UNKNOWN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The weight of the last batch in the mean of the rates: some ten batches count.
const RATE_WEIGHT: f64 = 0.2;

/// How a queue is bounded, how long it gathers, and how many batches are taken from it at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests that may wait in a lane.
    pub(super) requests: usize,
    /// Tokens that may wait in a lane.
    pub(super) tokens: usize,
    /// How long after a batch of several requests the next one may be gathered.
    pub(super) wait: Duration,
    /// Batches that are taken at a time: computed, or ready for the first free thread.
    pub(super) batches: usize,
}

/// One request while it waits and is computed.
#[derive(Debug)]
pub(super) struct Job {
    /// Token ids of the texts that are still to be computed.
    pub(super) texts: Vec<Vec<u32>>,
    /// What is wanted of each.
    pub(super) output: Output,
    /// Of the texts that are done, one behind the other.
    pub(super) vectors: Vec<f32>,
    /// When it was put into the queue.
    pub(super) queued: Instant,
    /// When its first batch was begun.
    pub(super) began: Option<Instant>,
    /// When nobody waits for it any more.
    pub(super) deadline: Instant,
    /// Where the vectors go; closed when the client has left.
    pub(super) reply: oneshot::Sender<Reply>,
}

impl Job {
    fn is_wanted(&self, now: Instant) -> bool {
        !self.reply.is_closed() && now < self.deadline
    }
}

/// Why a request cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushError {
    /// There is no room for it.
    Full {
        /// Requests that wait.
        waiting: usize,
        /// When there probably is.
        retry_after: Duration,
    },
    /// The worker is gone.
    Closed,
}

/// What the worker does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Computes these.
    Batch(Vec<Turn<Job>>),
    /// Lets the memory go that passes need; the next pass takes it again.
    ReleaseScratch(Vec<oneshot::Sender<()>>),
    /// Makes a pass of its own, to show that it can.
    Prove(oneshot::Sender<()>),
}

#[derive(Debug)]
struct State {
    order: Order<Job>,
    /// Whether a client has left since all that waits was looked through.
    departures: Arc<Departures>,
    /// Who waits for scratch memory to be released.
    scratch: Vec<oneshot::Sender<()>>,
    /// Who wants to see a pass. Whoever comes later takes the place of one that still waits.
    proof: Option<oneshot::Sender<()>>,
    senders: usize,
    receivers: usize,
    /// Receivers that wait for anything to do.
    idle: usize,
    /// When those that gather go on: at so many requests, or so many tokens.
    enough: Option<Load>,
    /// Batches that are taken and not done.
    batches: usize,
    /// Whether one of them is of bulk requests.
    has_bulk: bool,
    /// Tokens a second, a mean in which the last batches count most.
    rate: Option<f64>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    arrived: Condvar,
}

impl Shared {
    /// What is done under the lock does not panic half way; should it ever, the state is whole all the same.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue for one worker.
pub(super) fn channel(limits: Limits) -> (Sender, Receiver) {
    let state = State {
        order: Order::default(),
        departures: Arc::default(),
        scratch: Vec::new(),
        proof: None,
        senders: 1,
        receivers: 1,
        idle: 0,
        enough: None,
        batches: 0,
        has_bulk: false,
        rate: None,
    };
    let shared = Arc::new(Shared { limits, state: Mutex::new(state), arrived: Condvar::new() });
    let receiver = Receiver { shared: Arc::clone(&shared), last: Last::default(), computes: None };
    (Sender { shared }, receiver)
}

/// Puts requests in. When the last one is dropped, the queue ends.
#[derive(Debug)]
pub(super) struct Sender {
    shared: Arc<Shared>,
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.shared.arrived.notify_all();
        }
    }
}

impl Sender {
    /// Whether a request with this ticket could wait, were it a token long: for who has work to do before it is put in.
    ///
    /// # Errors
    /// As [`Sender::push`].
    pub(super) fn check(&self, ticket: &Ticket) -> Result<(), PushError> {
        let limits = self.shared.limits;
        self.shared.lock().admit(
            &ticket.tenant,
            ticket.flow.owner,
            1,
            limits,
            ticket.deadline,
            Instant::now(),
        )
    }

    /// Lets `texts` wait. Who waits for the answer drops it at the ticket's deadline at the latest.
    ///
    /// # Errors
    /// When too much waits already, or more than can be computed by the ticket's deadline; or the worker is gone.
    pub(super) fn push(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: &Ticket,
    ) -> Result<Answer, PushError> {
        let tokens = texts.iter().map(Vec::len).sum();
        let by_size = match tokens <= INTERACTIVE_TOKENS {
            true => Priority::Interactive,
            false => Priority::Bulk,
        };
        let terms = Terms {
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
        state.admit(&terms.lane, owner, terms.tokens, self.shared.limits, deadline, now)?;
        let (reply, answer) = Answer::channel(&state.departures);
        let vectors = Vec::new();
        let job = Job { texts, output, vectors, queued: now, began: None, deadline, reply };
        state.order.push(terms, job);
        // Nobody is woken for nothing: that is a system call, and two changes of threads while one gathers.
        let (is_enough, is_idle) = (state.has_enough(), state.idle > 0);
        drop(state);
        if is_enough {
            // Others may have waited for longer.
            self.shared.arrived.notify_all();
        } else if is_idle {
            self.shared.arrived.notify_one();
        }
        Ok(answer)
    }

    /// Has the worker let its scratch memory go, after the pass that it is in. Answers when it has; closed when the
    /// worker is gone.
    pub(super) fn release_scratch(&self) -> oneshot::Receiver<()> {
        let (done, released) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.receivers > 0 {
            state.scratch.push(done);
            self.shared.arrived.notify_one();
        }
        released
    }

    /// Has the worker make a pass of its own after the one that it is in, before everything that waits. Answers when it
    /// has; closed when the worker is gone.
    pub(super) fn prove(&self) -> oneshot::Receiver<()> {
        let (done, proof) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.receivers > 0 {
            state.proof = Some(done);
            self.shared.arrived.notify_one();
        }
        proof
    }

    /// What waits.
    pub(super) fn waiting(&self) -> Load {
        self.shared.lock().order.total()
    }

    /// Whether anybody else can put requests in.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.lock().senders > 1
    }

    /// Whether the worker is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.lock().receivers == 0
    }
}

impl State {
    /// Whether `tokens` more of `owner` may wait in `lane`, and be computed by `deadline`. One request of an owner that
    /// has none may always wait: however many others have, it has its turn after one of each.
    fn admit(
        &mut self,
        lane: &Lane,
        owner: Owner,
        tokens: usize,
        limits: Limits,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), PushError> {
        if self.receivers == 0 {
            return Err(PushError::Closed);
        }
        if !self.order.has(owner) && now < deadline {
            return Ok(());
        }
        let bounds = Bounds { requests: limits.requests, tokens: limits.tokens };
        if !self.order.has_room(lane, tokens, bounds) && self.departures.take() {
            self.order.sweep(|job| job.is_wanted(now));
        }
        let wait = self.wait(lane);
        if self.order.has_room(lane, tokens, bounds)
            && wait.is_none_or(|wait| now + wait < deadline)
        {
            return Ok(());
        }
        let retry_after = wait.unwrap_or(UNKNOWN_RETRY_AFTER);
        let retry_after = retry_after.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER);
        Err(PushError::Full { waiting: self.order.load(lane).requests, retry_after })
    }

    /// Whether somebody who gathers can go on; says so once.
    fn has_enough(&mut self) -> bool {
        let load = self.order.total();
        let is_met =
            |enough: &mut Load| load.requests >= enough.requests || load.tokens >= enough.tokens;
        self.enough.take_if(is_met).is_some()
    }

    /// A batch of this class is over. Whether another may be begun that could not before.
    fn end_batch(&mut self, batch: Option<Priority>) -> bool {
        let Some(priority) = batch else { return false };
        self.batches = self.batches.saturating_sub(1);
        let bulk = priority == Priority::Bulk;
        self.has_bulk &= !bulk;
        bulk && self.order.is_ready(true)
    }

    /// How long what waits in `lane` probably takes.
    fn wait(&self, lane: &Lane) -> Option<Duration> {
        // Below 2^53, and a quotient that is clamped before it becomes a duration.
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let tokens = self.order.load(lane).tokens as f64;
        let seconds = (tokens / self.rate?).clamp(0.0, MAX_RETRY_AFTER.as_secs_f64());
        Some(Duration::from_secs_f64(seconds))
    }
}

/// The last batch of a receiver.
#[derive(Debug, Default)]
struct Last {
    requests: usize,
    ended: Option<Instant>,
}

/// Takes batches out, one after the other; clones take others at the same time. When the last is dropped, or one by a
/// panic, whoever waits learns that nobody will answer.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    last: Last,
    /// The class of the batch that it took and has not come back from.
    computes: Option<Priority>,
}

impl Clone for Receiver {
    fn clone(&self) -> Self {
        self.shared.lock().receivers += 1;
        Self { shared: Arc::clone(&self.shared), last: Last::default(), computes: None }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end_batch(self.computes.take());
        state.receivers = state.receivers.saturating_sub(1);
        if thread::panicking() {
            // The others end with it.
            state.receivers = 0;
            self.shared.arrived.notify_all();
        }
        if state.receivers > 0 {
            return;
        }
        state.scratch.clear();
        state.proof = None;
        let order = std::mem::take(&mut state.order);
        drop(state);
        drop(order);
    }
}

impl Receiver {
    /// Waits for something to do; `None` when the queue has ended. A batch has whole requests of at most `budget`
    /// tokens together, or one of which a part is to be computed.
    pub(super) fn next(&mut self, budget: usize) -> Option<Next> {
        let mut state = self.shared.lock();
        if state.end_batch(self.computes.take()) {
            self.shared.arrived.notify_one();
        }
        loop {
            if state.receivers == 0 {
                return None;
            }
            if let Some(proof) = state.proof.take() {
                return Some(Next::Prove(proof));
            }
            if !state.scratch.is_empty() {
                return Some(Next::ReleaseScratch(std::mem::take(&mut state.scratch)));
            }
            let load = state.order.total();
            let may_be_bulk = !state.has_bulk;
            if !state.order.is_ready(may_be_bulk) {
                if state.senders == 0 && load.requests == 0 {
                    // Another receiver may wait for a turn that was the last.
                    self.shared.arrived.notify_all();
                    return None;
                }
                state.idle += 1;
                state = self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            }
            let now = Instant::now();
            if load.requests < self.last.requests
                && load.tokens < budget
                && state.senders > 1
                && let Some(ended) = self.last.ended
                && let Some(left) = self.shared.limits.wait.checked_sub(now - ended)
            {
                let own = Load { requests: self.last.requests, tokens: budget };
                let enough = state.enough.get_or_insert(own);
                enough.requests = enough.requests.min(own.requests);
                enough.tokens = enough.tokens.min(own.tokens);
                let waited = self.shared.arrived.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let batch = state.order.take(budget, may_be_bulk, |job| job.is_wanted(now));
            if let Some(first) = batch.first() {
                self.last.requests = batch.len();
                self.computes = Some(first.terms.priority);
                state.batches += 1;
                state.has_bulk |= first.terms.priority == Priority::Bulk;
                return Some(Next::Batch(batch));
            }
        }
    }

    /// A batch is done: `tokens` were computed in `took`, and `unfinished` goes on after others.
    pub(super) fn computed(
        &mut self,
        tokens: usize,
        took: Duration,
        unfinished: Option<(Turn<Job>, usize)>,
    ) {
        self.last.ended = Some(Instant::now());
        let mut state = self.shared.lock();
        if let Some((turn, computed)) = unfinished {
            state.order.put_back(turn, computed);
        }
        // Far below 2^53.
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
    use super::super::Flow;
    use super::*;

    const FLOW: Flow = Flow { owner: Owner::User(0), connection: 0 };
    const LIMITS: Limits = Limits { requests: 2, tokens: 100, wait: Duration::ZERO, batches: 1 };

    fn ticket(patience: Duration) -> Ticket {
        let deadline = Instant::now() + patience;
        Ticket { flow: FLOW, priority: None, deadline, tenant: None, weight: 1 }
    }

    fn push(sender: &Sender, tokens: usize, patience: Duration) -> Result<Answer, PushError> {
        sender.push(vec![vec![0; tokens]], Output::Vector, &ticket(patience))
    }

    const PATIENT: Duration = Duration::from_secs(1000);

    fn take(receiver: &mut Receiver, budget: usize) -> Vec<Turn<Job>> {
        match receiver.next(budget) {
            Some(Next::Batch(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_queue_says_when_to_come_again_by_the_rate_of_late() {
        let (sender, mut receiver) = channel(LIMITS);
        let kept = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 60, PATIENT).unwrap()];
        let unknown = PushError::Full { waiting: 2, retry_after: UNKNOWN_RETRY_AFTER };
        assert_eq!(push(&sender, 1, PATIENT).unwrap_err(), unknown);
        assert_eq!(sender.check(&ticket(PATIENT)).unwrap_err(), unknown);
        take(&mut receiver, 1);
        receiver.computed(20, Duration::from_secs(1), None);
        let by_rate = PushError::Full { waiting: 1, retry_after: Duration::from_secs(3) };
        assert_eq!(push(&sender, 41, PATIENT).unwrap_err(), by_rate);
        receiver.computed(0, Duration::ZERO, None);
        sender.check(&ticket(PATIENT)).unwrap();
        assert!(push(&sender, 1, PATIENT).is_ok());
        drop(kept);
    }

    #[test]
    fn what_cannot_be_computed_in_time_is_refused_at_once() {
        let (sender, mut receiver) = channel(LIMITS);
        receiver.computed(20, Duration::from_secs(1), None);
        let _kept = push(&sender, 60, PATIENT).unwrap();
        assert!(matches!(push(&sender, 1, Duration::from_secs(2)), Err(PushError::Full { .. })));
        assert!(push(&sender, 1, Duration::from_secs(4)).is_ok());
    }

    #[test]
    fn requests_whose_client_left_make_room() {
        let (sender, _receiver) = channel(LIMITS);
        let gone = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 1, PATIENT).unwrap()];
        assert!(push(&sender, 1, PATIENT).is_err());
        drop(gone);
        assert!(push(&sender, 1, PATIENT).is_ok());
        assert_eq!(sender.waiting(), Load { requests: 1, tokens: 1 });
    }

    #[test]
    fn when_the_worker_is_gone_whoever_waits_or_comes_is_told() {
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
    fn the_queue_ends_with_its_last_sender_when_all_is_taken() {
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
    fn after_a_batch_of_several_the_next_is_gathered_but_an_idle_worker_begins_at_once() {
        let wait = Duration::from_secs(1000);
        let (sender, mut receiver) = channel(Limits { wait, ..LIMITS });
        // With nobody else to send, nothing is gathered.
        let _other = sender.clone();
        let _first = [push(&sender, 1, PATIENT).unwrap(), push(&sender, 1, PATIENT).unwrap()];
        assert_eq!(take(&mut receiver, 10).len(), 2);
        receiver.computed(2, Duration::from_secs(1), None);
        let _second = push(&sender, 1, PATIENT).unwrap();
        // Would not come back within a thousand seconds if it did not see the other one arrive.
        thread::scope(|scope| {
            let gathered = scope.spawn(|| take(&mut receiver, 10).len());
            let _third = push(&sender, 1, PATIENT).unwrap();
            assert_eq!(gathered.join().unwrap(), 2);
        });
        receiver.last.requests = 1;
        let _fourth = push(&sender, 1, PATIENT).unwrap();
        assert_eq!(take(&mut receiver, 10).len(), 1);
    }

    /// Nothing but being woken ends the waiting of these within a thousand seconds.
    #[test]
    fn who_is_idle_is_woken_by_one_request_and_who_gathers_by_enough_of_them_or_of_tokens() {
        let wait = Duration::from_secs(1000);
        let (sender, mut receiver) = channel(Limits { wait, requests: 10, ..LIMITS });
        let _other = sender.clone();
        let until = |waits: fn(&State) -> bool| {
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
        // Three of five tokens are more than a batch of eleven takes.
        for (last, tokens, taken) in [(3, 1, 3), (9, 5, 2)] {
            receiver.last = Last { requests: last, ended: Some(Instant::now()) };
            let _first = push(&sender, tokens, PATIENT).unwrap();
            thread::scope(|scope| {
                let gathers = scope.spawn(|| take(&mut receiver, 11).len());
                until(|state| state.enough.is_some());
                let _second = push(&sender, tokens, PATIENT).unwrap();
                assert!(sender.shared.lock().enough.is_some());
                let _third = push(&sender, tokens, PATIENT).unwrap();
                assert_eq!(gathers.join().unwrap(), taken);
            });
        }
    }

    #[test]
    fn one_batch_of_bulk_requests_is_computed_at_a_time() {
        let (sender, mut first) = channel(Limits { requests: 10, ..LIMITS });
        let mut second = first.clone();
        let push = |priority| {
            let priority = Some(priority);
            let deadline = Instant::now() + PATIENT;
            let ticket = Ticket { flow: FLOW, priority, deadline, tenant: None, weight: 1 };
            sender.push(vec![vec![0; 10]], Output::Vector, &ticket).unwrap()
        };
        let class = |batch: Vec<Turn<Job>>| batch[0].terms.priority;
        let _bulk = [push(Priority::Bulk), push(Priority::Bulk)];
        assert_eq!(class(take(&mut first, 10)), Priority::Bulk);
        let ready = |receiver: &Receiver| {
            let state = receiver.shared.lock();
            state.order.is_ready(!state.has_bulk)
        };
        assert!(!ready(&second));
        let _interactive = push(Priority::Interactive);
        assert_eq!(class(take(&mut second, 10)), Priority::Interactive);
        assert!(!ready(&second));
        // Back from its batch, the first may take the other.
        assert_eq!(class(take(&mut first, 10)), Priority::Bulk);
        assert_eq!(first.shared.lock().batches, 2);
        drop((first, sender));
        assert!(second.next(10).is_none());
        assert_eq!(second.shared.lock().batches, 0);
    }

    #[test]
    fn the_rate_is_that_of_all_batches_at_a_time() {
        let (sender, mut first) = channel(LIMITS);
        let mut second = first.clone();
        let _kept = [push(&sender, 10, PATIENT).unwrap(), push(&sender, 10, PATIENT).unwrap()];
        for receiver in [&mut first, &mut second] {
            take(receiver, 10);
        }
        first.computed(10, Duration::from_secs(1), None);
        assert_eq!(first.shared.lock().rate, Some(20.0));
    }
}
