//! Fair order of the waiting requests, and the bounds on their number. Pure: without threads and
//! clock.
//!
//! Within a class requests are taken by start-time fair queueing (Goyal, Vin and Cheng 1996,
//! <https://doi.org/10.1145/248156.248171>) on two levels. Each owner, a user or a tenant, gets
//! tokens in proportion to its weight, however many connections it has. Within an owner each
//! connection gets an equal share, however many requests it has waiting. Interactive requests go
//! before bulk ones, which get one pass in [`BULK_INTERVAL`] while both wait.
//!
//! Invariants:
//! 1. A batch has at least one request, all of one class and one kind, and no more tokens than its
//!    budget unless it is a single request.
//! 2. The requests waiting in a lane are within its bounds, except that an owner without a waiting
//!    request may enqueue one.
//! 3. Every request is taken after finitely many passes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::engine::Output;
use crate::models::{Flow, Owner, Priority};

/// One pass in this many is for bulk requests while interactive ones wait.
const BULK_INTERVAL: usize = 4;
/// Number of ends in the past that may be kept in addition to those of active flows, so that the
/// clean-up runs rarely.
const MAX_PAST_ENDS: usize = 64;
/// Virtual time of one token at weight 1. Divisible by every weight from 1 to 10, so that shares
/// are exact.
const TOKEN_TIME: u64 = 2520;

/// Key of a bound on waiting requests: a tenant with a queue of its own, or `None` for all others.
pub(super) type LaneKey = Option<Arc<str>>;

/// Scheduling metadata of a waiting request.
#[derive(Clone, Debug)]
pub(super) struct RequestMeta {
    /// Tokens that are not computed yet.
    pub(super) tokens: usize,
    /// Kind of result. A pass computes one kind.
    pub(super) output: Output,
    /// Class of the request.
    pub(super) priority: Priority,
    /// Owner and connection, for fair scheduling.
    pub(super) flow: Flow,
    /// Share of the owner relative to other owners; 0 is taken as 1.
    pub(super) weight: u32,
    /// Lane whose bound the request counts for.
    pub(super) lane: LaneKey,
}

impl RequestMeta {
    fn virtual_time(&self, tokens: usize) -> u64 {
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        tokens.saturating_mul(TOKEN_TIME / u64::from(self.weight.clamp(1, 10)))
    }
}

/// Most requests and tokens that may wait in one lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneLimits {
    /// Most requests.
    pub(super) requests: usize,
    /// Most tokens of all of them.
    pub(super) tokens: usize,
}

/// A waiting request with its scheduling metadata.
#[derive(Debug)]
pub(in crate::models) struct QueuedRequest<J> {
    pub(super) meta: RequestMeta,
    pub(in crate::models) job: J,
    /// Virtual time at which the request starts.
    start: u64,
}

/// Number of waiting requests and of their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::models) struct Backlog {
    pub(in crate::models) requests: usize,
    pub(in crate::models) tokens: usize,
}

/// Waiting requests of one owner in one class.
#[derive(Debug)]
struct OwnerQueue<J> {
    /// Key of the owner in [`ClassQueue::owners`].
    owner_key: (u64, u64),
    /// Requests by virtual start time, then by arrival.
    requests: BTreeMap<(u64, u64), QueuedRequest<J>>,
    /// Virtual end of the last request of each connection. Ends in the past are dropped, since they
    /// do not affect a start.
    ends: HashMap<u64, u64>,
    now: u64,
}

/// Waiting requests of one class.
#[derive(Debug)]
struct ClassQueue<J> {
    /// Owners with waiting requests, by the virtual start time of their next one, then by arrival.
    owners: BTreeMap<(u64, u64), Owner>,
    queues: HashMap<Owner, OwnerQueue<J>>,
    /// Virtual end of the last request of each owner without waiting requests. Ends in the past are
    /// dropped, since they do not affect a start.
    ends: HashMap<Owner, u64>,
    now: u64,
    /// Number of insertions into `owners` so far; breaks ties.
    arrivals: u64,
}

impl<J> Default for ClassQueue<J> {
    fn default() -> Self {
        let (owners, own, ends) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { owners, queues: own, ends, now: 0, arrivals: 0 }
    }
}

impl<J> ClassQueue<J> {
    fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Returns the next request.
    fn first(&self) -> Option<&QueuedRequest<J>> {
        let (_, owner) = self.owners.first_key_value()?;
        self.queues.get(owner)?.requests.first_key_value().map(|(_, turn)| turn)
    }

    /// Returns the virtual start time of a connection's next request within its owner, and charges
    /// the request to the connection.
    fn start(&mut self, terms: &RequestMeta) -> u64 {
        let Some(own) = self.queues.get_mut(&terms.flow.owner) else { return 0 };
        let end = own.ends.entry(terms.flow.connection).or_default();
        // A connection that was idle starts at the current virtual time: it does not save up a
        // share.
        let start = own.now.max(*end);
        *end = start.saturating_add(terms.virtual_time(terms.tokens));
        start
    }

    /// Returns the waiting requests of `owner`, after adding the owner if it had none.
    fn owner_queue(&mut self, owner: Owner) -> &mut OwnerQueue<J> {
        // An owner that was idle starts at the current virtual time. One that was served a moment
        // ago continues at its last end, so that an empty queue in between does not give it a new
        // share.
        let start = self.now.max(self.ends.remove(&owner).unwrap_or(0));
        let Self { owners, queues: own, arrivals, .. } = self;
        own.entry(owner).or_insert_with(|| {
            *arrivals += 1;
            let place = (start, *arrivals);
            owners.insert(place, owner);
            OwnerQueue { owner_key: place, requests: BTreeMap::new(), ends: HashMap::new(), now: 0 }
        })
    }

    fn insert(&mut self, arrival: u64, turn: QueuedRequest<J>) {
        let own = self.owner_queue(turn.meta.flow.owner);
        own.requests.insert((turn.start, arrival), turn);
    }

    /// Refunds virtual time to an owner, for tokens that were charged and not computed.
    fn refund(&mut self, owner: Owner, time: u64) {
        if let Some(end) = self.ends.get_mut(&owner) {
            *end = end.saturating_sub(time);
        } else if let Some(own) = self.queues.get_mut(&owner) {
            self.owners.remove(&own.owner_key);
            own.owner_key.0 = own.owner_key.0.saturating_sub(time);
            self.owners.insert(own.owner_key, owner);
        }
    }

    fn pop(&mut self) -> Option<QueuedRequest<J>> {
        let (place, owner) = self.owners.pop_first()?;
        let own = self.queues.get_mut(&owner)?;
        let ((start, _), turn) = own.requests.pop_first()?;
        // In start-time fair queueing the virtual time is the start time of the request in service.
        own.now = own.now.max(start);
        // Connections come and go while an owner has requests waiting, so that old ends would pile
        // up.
        if own.ends.len() > 2 * own.requests.len() + MAX_PAST_ENDS {
            own.ends.retain(|_, end| *end > own.now);
        }
        self.now = self.now.max(place.0);
        // Charge the whole request to the owner. `put_back` refunds the part that was not computed.
        let end = place.0.saturating_add(turn.meta.virtual_time(turn.meta.tokens));
        if own.requests.is_empty() {
            self.queues.remove(&owner);
            self.ends.insert(owner, end);
            if self.ends.len() > 2 * self.queues.len() + MAX_PAST_ENDS {
                self.ends.retain(|_, end| *end > self.now);
            }
        } else {
            self.arrivals += 1;
            own.owner_key = (end, self.arrivals);
            self.owners.insert(own.owner_key, owner);
        }
        Some(turn)
    }

    fn retain(&mut self, mut kept: impl FnMut(&QueuedRequest<J>) -> bool) {
        let Self { owners, queues: own, .. } = self;
        own.retain(|_, own| {
            own.requests.retain(|_, turn| kept(turn));
            let has_more = !own.requests.is_empty();
            if !has_more {
                owners.remove(&own.owner_key);
            }
            has_more
        });
    }
}

/// All waiting requests of one worker.
#[derive(Debug)]
pub(super) struct FairQueue<J> {
    interactive: ClassQueue<J>,
    bulk: ClassQueue<J>,
    backlogs: BTreeMap<LaneKey, Backlog>,
    arrivals: u64,
    /// Passes since the last one for bulk requests.
    passes: usize,
}

impl<J> Default for FairQueue<J> {
    fn default() -> Self {
        Self {
            interactive: ClassQueue::default(),
            bulk: ClassQueue::default(),
            backlogs: BTreeMap::new(),
            arrivals: 0,
            passes: 0,
        }
    }
}

impl<J> FairQueue<J> {
    /// Returns whether a request with so many tokens may wait in this lane.
    pub(super) fn has_space(&self, lane: &LaneKey, tokens: usize, bounds: LaneLimits) -> bool {
        self.backlogs.get(lane).is_none_or(|load| {
            load.requests < bounds.requests && load.tokens.saturating_add(tokens) <= bounds.tokens
        })
    }

    /// Returns whether a request of this owner waits.
    pub(super) fn has_owner(&self, owner: Owner) -> bool {
        [&self.interactive, &self.bulk].iter().any(|class| class.queues.contains_key(&owner))
    }

    /// Enqueues a request.
    pub(super) fn push(&mut self, terms: RequestMeta, job: J) {
        let class = self.class(terms.priority);
        class.owner_queue(terms.flow.owner);
        let start = class.start(&terms);
        self.insert(QueuedRequest { meta: terms, job, start });
    }

    /// Enqueues the rest of a request of which `computed` tokens are done. Its virtual start time
    /// moves by these tokens, so that the requests of others go first.
    pub(super) fn requeue(&mut self, mut turn: QueuedRequest<J>, computed: usize) {
        turn.start = turn.start.saturating_add(turn.meta.virtual_time(computed));
        turn.meta.tokens = turn.meta.tokens.saturating_sub(computed);
        let (owner, left) = (turn.meta.flow.owner, turn.meta.virtual_time(turn.meta.tokens));
        self.class(turn.meta.priority).refund(owner, left);
        self.insert(turn);
    }

    fn insert(&mut self, turn: QueuedRequest<J>) {
        let load = self.backlogs.entry(turn.meta.lane.clone()).or_default();
        load.requests += 1;
        load.tokens += turn.meta.tokens;
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.class(turn.meta.priority).insert(arrival, turn);
    }

    fn class(&mut self, priority: Priority) -> &mut ClassQueue<J> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }

    /// Returns whether there is a request that may be taken.
    pub(super) fn is_ready(&self, may_be_bulk: bool) -> bool {
        !self.interactive.is_empty() || may_be_bulk && !self.bulk.is_empty()
    }

    /// Takes the requests of the next pass: as many as fit into `budget` tokens, or a single larger
    /// one. Drops the requests that are no longer `wanted`. The result is empty when no wanted
    /// request waits, or only requests that may not be taken now.
    pub(super) fn take(
        &mut self,
        budget: usize,
        may_be_bulk: bool,
        wanted: impl Fn(&J) -> bool,
    ) -> Vec<QueuedRequest<J>> {
        let mut taken = Vec::new();
        let mut rest = budget;
        // Bulk requests go when no interactive one waits, and in every fourth pass otherwise, so
        // that they do not starve.
        let bulk = may_be_bulk
            && !self.bulk.is_empty()
            && (self.interactive.is_empty() || self.passes + 1 >= BULK_INTERVAL);
        let priority = if bulk { Priority::Bulk } else { Priority::Interactive };
        while let Some(first) = self.class(priority).first() {
            // The first request always joins, even one above the budget: the worker computes a part
            // of it.
            let joins = taken.first().is_none_or(|head: &QueuedRequest<J>| {
                first.meta.tokens <= rest && first.meta.output == head.meta.output
            });
            // A request that is no longer wanted is popped and dropped, whether it fits or not.
            if wanted(&first.job) && !joins {
                break;
            }
            let Some(turn) = self.class(priority).pop() else { break };
            subtract(&mut self.backlogs, &turn.meta);
            if wanted(&turn.job) {
                rest = rest.saturating_sub(turn.meta.tokens);
                taken.push(turn);
            }
        }
        self.passes = if bulk { 0 } else { self.passes + 1 };
        taken
    }

    /// Drops the requests that are no longer `wanted`.
    pub(super) fn drop_unwanted(&mut self, wanted: impl Fn(&J) -> bool) {
        let Self { interactive, bulk, backlogs: loads, .. } = self;
        for class in [interactive, bulk] {
            class.retain(|turn| {
                let kept = wanted(&turn.job);
                if !kept {
                    subtract(loads, &turn.meta);
                }
                kept
            });
        }
    }

    /// Returns the load of a lane.
    pub(super) fn backlog(&self, lane: &LaneKey) -> Backlog {
        self.backlogs.get(lane).copied().unwrap_or_default()
    }

    /// Returns the load of all lanes together.
    pub(super) fn total_backlog(&self) -> Backlog {
        self.backlogs.values().fold(Backlog::default(), |sum, load| Backlog {
            requests: sum.requests + load.requests,
            tokens: sum.tokens + load.tokens,
        })
    }
}

/// Subtracts a request from the load of its lane.
fn subtract(loads: &mut BTreeMap<LaneKey, Backlog>, terms: &RequestMeta) {
    let Some(load) = loads.get_mut(&terms.lane) else { return };
    load.requests = load.requests.saturating_sub(1);
    load.tokens = load.tokens.saturating_sub(terms.tokens);
    if load.requests == 0 {
        loads.remove(&terms.lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDE: LaneLimits = LaneLimits { requests: 1000, tokens: 1_000_000 };

    /// Returns the terms of a request on a connection and an owner of its own, both numbered
    /// `flow`.
    fn terms(tokens: usize, priority: Priority, flow: u64) -> RequestMeta {
        let flow = Flow { owner: Owner::Tenant(flow), connection: flow };
        RequestMeta { tokens, output: Output::Vector, priority, flow, weight: 1, lane: None }
    }

    /// Returns an order in which each job is its index in `requests`.
    fn order(requests: &[RequestMeta]) -> FairQueue<usize> {
        let mut order = FairQueue::default();
        for (number, terms) in requests.iter().enumerate() {
            order.push(terms.clone(), number);
        }
        order
    }

    fn take(order: &mut FairQueue<usize>, budget: usize) -> Vec<usize> {
        order.take(budget, true, |_| true).into_iter().map(|turn| turn.job).collect()
    }

    fn all(order: &mut FairQueue<usize>, budget: usize) -> Vec<Vec<usize>> {
        std::iter::from_fn(|| Some(take(order, budget)).filter(|taken| !taken.is_empty())).collect()
    }

    use Priority::{Bulk, Interactive};

    #[test]
    fn requests_fill_budget_and_long_one_is_alone() {
        let mut order = order(&[3, 3, 5, 20, 1, 1].map(|tokens| terms(tokens, Interactive, 0)));
        assert_eq!(all(&mut order, 8), [vec![0, 1], vec![2], vec![3], vec![4, 5]]);
        assert_eq!(order.total_backlog(), Backlog::default());
    }

    #[test]
    fn busy_connection_does_not_delay_others() {
        let many = (0..10).map(|_| terms(4, Interactive, 1));
        let few = (0..2).map(|_| terms(4, Interactive, 2));
        let mut order = order(&many.chain(few).collect::<Vec<_>>());
        assert_eq!(all(&mut order, 4)[..4], [vec![0], vec![10], vec![1], vec![11]]);
    }

    #[test]
    fn owner_with_many_connections_does_not_delay_others() {
        let of = |connection| Flow { owner: Owner::User(1), connection };
        let many =
            (0..10).map(|number| RequestMeta { flow: of(number % 5), ..terms(4, Interactive, 0) });
        let few = (0..2).map(|_| terms(4, Interactive, 2));
        let mut order = order(&many.chain(few).collect::<Vec<_>>());
        assert!(order.has_owner(Owner::User(1)) && order.has_owner(Owner::Tenant(2)));
        let taken = all(&mut order, 4);
        assert_eq!(taken[..4], [vec![0], vec![10], vec![1], vec![11]]);
        // Connections of one owner are served alternately.
        assert_eq!(taken[4..].concat(), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(!order.has_owner(Owner::User(1)));
    }

    #[test]
    fn connections_of_one_owner_alternate() {
        let of = |connection| Flow { owner: Owner::User(1), connection };
        let many = (0..10).map(|_| RequestMeta { flow: of(1), ..terms(4, Interactive, 0) });
        let few = (0..2).map(|_| RequestMeta { flow: of(2), ..terms(4, Interactive, 0) });
        let mut order = order(&many.chain(few).collect::<Vec<_>>());
        assert_eq!(all(&mut order, 4)[..4], [vec![0], vec![10], vec![1], vec![11]]);
    }

    #[test]
    fn heavier_flow_gets_its_share() {
        let light = (0..9).map(|_| terms(4, Interactive, 1));
        let heavy = (0..9).map(|_| RequestMeta { weight: 3, ..terms(4, Interactive, 2) });
        let mut order = order(&light.chain(heavy).collect::<Vec<_>>());
        let first = all(&mut order, 4)[..8].concat();
        let of_heavy = first.iter().filter(|number| **number >= 9).count();
        assert_eq!(of_heavy, 6, "{first:?}");
    }

    #[test]
    fn skipped_bulk_request_stays_queued() {
        let mut order = order(&[terms(4, Bulk, 1), terms(4, Interactive, 2)]);
        assert!(order.is_ready(false));
        let numbers = |taken: Vec<QueuedRequest<usize>>| {
            Vec::from_iter(taken.into_iter().map(|turn| turn.job))
        };
        assert_eq!(numbers(order.take(8, false, |_| true)), [1]);
        assert!(!order.is_ready(false) && order.is_ready(true));
        assert_eq!(numbers(order.take(8, false, |_| true)), Vec::<usize>::new());
        assert_eq!(numbers(order.take(8, true, |_| true)), [0]);
    }

    #[test]
    fn bulk_is_delayed_but_not_starved() {
        let bulk = (0..3).map(|_| terms(4, Bulk, 1));
        let interactive = (0..9).map(|_| terms(4, Interactive, 2));
        let mut order = order(&bulk.chain(interactive).collect::<Vec<_>>());
        let taken = all(&mut order, 4).concat();
        assert_eq!(taken, [3, 4, 5, 0, 6, 7, 8, 1, 9, 10, 11, 2]);
    }

    #[test]
    fn requeued_request_yields_to_others() {
        let mut order = order(&[terms(100, Bulk, 1), terms(100, Bulk, 2)]);
        let mut seen = Vec::new();
        while let Some(turn) = order.take(25, true, |_| true).pop() {
            seen.push(turn.job);
            if turn.meta.tokens > 25 {
                order.requeue(turn, 25);
            }
        }
        assert_eq!(seen, [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(order.total_backlog(), Backlog::default());
    }

    #[test]
    fn lanes_have_own_bounds_unless_empty() {
        let bounds = LaneLimits { requests: 2, tokens: 10 };
        let mut order = FairQueue::default();
        let own = RequestMeta { lane: Some("own".into()), ..terms(4, Interactive, 2) };
        assert!(order.has_space(&None, 1000, bounds));
        order.push(terms(8, Interactive, 1), 0);
        assert!(!order.has_space(&None, 3, bounds));
        assert!(order.has_space(&None, 2, bounds));
        order.push(terms(1, Interactive, 1), 1);
        assert!(!order.has_space(&None, 1, bounds));
        assert!(order.has_space(&own.lane, own.tokens, bounds));
        order.drop_unwanted(|number| *number != 0);
        assert_eq!(order.backlog(&None), Backlog { requests: 1, tokens: 1 });
        assert!(order.has_space(&None, 3, bounds));
    }

    #[test]
    fn cancelled_request_uses_no_batch_space() {
        let mut order = order(&[4, 400, 4].map(|tokens| terms(tokens, Interactive, 0)));
        let taken = order.take(8, true, |number| *number != 1);
        assert_eq!(taken.into_iter().map(|turn| turn.job).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(order.total_backlog(), Backlog::default());
    }

    proptest! {
        #[test]
        fn each_request_is_batched_once_within_budget(
            requests in prop::collection::vec(
                (1_usize..200, any::<bool>(), 0_u64..5, 1_u32..10), 0..80),
            budget in 1_usize..256,
        ) {
            let requests: Vec<RequestMeta> = requests
                .into_iter()
                .map(|(tokens, bulk, flow, weight)| RequestMeta {
                    weight,
                    ..terms(tokens, if bulk { Bulk } else { Interactive }, flow)
                })
                .collect();
            let mut order = FairQueue::default();
            for (number, terms) in requests.iter().enumerate() {
                prop_assert!(order.has_space(&terms.lane, terms.tokens, WIDE));
                order.push(terms.clone(), number);
            }
            let total: usize = requests.iter().map(|terms| terms.tokens).sum();
            prop_assert_eq!(order.total_backlog(), Backlog { requests: requests.len(), tokens: total });
            let mut seen = Vec::new();
            loop {
                let batch = order.take(budget, true, |_| true);
                if batch.is_empty() {
                    break;
                }
                let tokens: usize = batch.iter().map(|turn| turn.meta.tokens).sum();
                prop_assert!(tokens <= budget || batch.len() == 1);
                let class = batch[0].meta.priority;
                prop_assert!(batch.iter().all(|turn| turn.meta.priority == class));
                seen.extend(batch.into_iter().map(|turn| turn.job));
            }
            // Requests of one flow and class keep their order of arrival.
            for (at, number) in seen.iter().enumerate() {
                let of = |number: usize| (requests[number].flow, requests[number].priority);
                prop_assert!(seen[..at].iter().all(|earlier| of(*earlier) != of(*number) || earlier < number));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..requests.len()).collect::<Vec<_>>());
            prop_assert_eq!(order.total_backlog(), Backlog::default());
        }
    }
}
