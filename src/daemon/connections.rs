//! Shares the slots for connections fairly between users.
//!
//! Holds the list of open connections with the user and the phase of each, and decides which
//! connections get a slot. This module does not open or close connections: it cancels a token to
//! ask a connection to close, and `serve` does the rest.
//!
//! Invariants:
//! 1. The number of served connections does not exceed the limit, plus at most [`MAX_CLOSING`]
//!    connections that were asked to close and are still open.
//! 2. Root and the daemon's own user have a reserve of slots that other users cannot take.
//! 3. A user loses a connection only to a user with fewer connections, and keeps at least as many
//!    as that user then has. Or the user loses its own longest idle connection to its new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Slots that only root and the daemon's own user can take. A quarter of the limit if that is less.
const RESERVE: usize = 8;
/// Largest number of connections that were asked to close and are still open. They close when they
/// are idle, when their answer is written, or after [`CLOSE_TIMEOUT`].
const MAX_CLOSING: usize = 64;
/// Shortest time for which a connection is idle before it is closed for a new one of the same user.
/// A shorter time would close connections of a burst whose request is on its way.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Timeout for a connection that was asked to close. The client must have read its answer by then.
/// Time for computing the answer does not count.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest number of simultaneous refusals for one user. A refusal serves a connection beyond the
/// limit.
const MAX_REFUSALS: usize = 64;
/// Largest number of simultaneous refusals for all users.
const MAX_ALL_REFUSALS: usize = 256;

/// Phase of a connection. When a user must give up a connection, phases that come first are chosen
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionPhase {
    /// No request: a new connection, one between two requests, or one whose request head is
    /// incomplete.
    Idle,
    /// The answer is an endless stream of events.
    Streaming,
    /// The body of the request is arriving.
    Receiving,
    /// The answer is being written.
    Writing,
    /// The answer is being computed.
    Computing,
}

#[derive(Debug)]
struct OpenConnection {
    uid: u32,
    phase: ConnectionPhase,
    since: Instant,
    /// Cancelled to ask the connection to close.
    close: CancellationToken,
    is_closing: bool,
}

/// User that holds the most connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopUser {
    /// User id.
    pub(super) uid: u32,
    /// Number of its connections, without those that were asked to close.
    pub(super) held: usize,
}

/// Decision on a new connection.
#[derive(Debug)]
pub(super) enum AcceptDecision {
    /// The connection is served. If all slots were taken, the holder gives one up.
    Served(ConnectionSlot, Option<TopUser>),
    /// The connection is answered with a refusal.
    Refused(RefusalSlot, TopUser),
    /// The connection is closed without an answer: too many refusals are in progress already.
    Dropped(TopUser),
}

#[derive(Debug)]
struct ConnectionTable {
    max: usize,
    reserve: usize,
    /// User of the daemon, which shares the reserve with root.
    daemon_uid: u32,
    next: u64,
    open: BTreeMap<u64, OpenConnection>,
    /// Number of connections of each user, without those that were asked to close.
    held: HashMap<u32, usize>,
    /// Sum of `held`.
    total: usize,
    refusals: HashMap<u32, usize>,
}

impl ConnectionTable {
    fn new(most: usize, own: u32) -> Self {
        Self {
            max: most,
            reserve: RESERVE.min(most / 4),
            daemon_uid: own,
            next: 0,
            open: BTreeMap::new(),
            held: HashMap::new(),
            total: 0,
            refusals: HashMap::new(),
        }
    }

    fn is_owner(&self, uid: u32) -> bool {
        uid == 0 || uid == self.daemon_uid
    }

    fn held(&self, uid: u32) -> usize {
        self.held.get(&uid).copied().unwrap_or(0)
    }

    fn owners(&self) -> usize {
        self.held(0) + if self.daemon_uid == 0 { 0 } else { self.held(self.daemon_uid) }
    }

    /// Returns the number of connections for comparisons between users. For root and the daemon's
    /// own user, connections within the reserve do not count.
    fn weighted_count(&self, uid: u32) -> usize {
        let reserve = if self.is_owner(uid) { self.reserve } else { 0 };
        self.held(uid).saturating_sub(reserve)
    }

    fn has_slot(&self, uid: u32) -> bool {
        match self.is_owner(uid) {
            true => self.total < self.max,
            false => self.total - self.owners().min(self.reserve) < self.max - self.reserve,
        }
    }

    fn top_user(&self) -> TopUser {
        let most = self.held.keys().max_by_key(|uid| (self.weighted_count(**uid), **uid));
        let uid = most.copied().unwrap_or(0);
        TopUser { uid, held: self.held(uid) }
    }

    /// Returns the connection to give up for a new one of `uid`. Returns `None` if that would not
    /// be fair, or if too many connections are closing already.
    fn connection_to_close(&self, uid: u32) -> Option<u64> {
        let leaving = self.open.len() - self.total;
        let holder = self.top_user().uid;
        // The holder must have at least two connections more than `uid`: then it keeps at least as
        // many as `uid` has with the new one.
        if leaving >= MAX_CLOSING || self.weighted_count(holder) <= self.weighted_count(uid) + 1 {
            return None;
        }
        let theirs = self.open.iter().filter(|(_, open)| open.uid == holder && !open.is_closing);
        theirs.min_by_key(|(id, open)| (open.phase, open.since, **id)).map(|(id, _)| *id)
    }

    /// Returns the longest idle connection of `uid`, to be closed for its new one: clients keep
    /// connections open for later requests. Returns `None` if none was idle for [`MIN_IDLE`], or if
    /// too many connections are closing already.
    fn own_idle_connection(&self, uid: u32, now: Instant) -> Option<u64> {
        let leaving = self.open.len() - self.total;
        let is_idle = |open: &OpenConnection| {
            open.uid == uid && !open.is_closing && open.phase == ConnectionPhase::Idle
        };
        let idle = self.open.iter().filter(|(_, open)| is_idle(open));
        let (id, longest) = idle.min_by_key(|(id, open)| (open.since, **id))?;
        let is_long = now.saturating_duration_since(longest.since) >= MIN_IDLE;
        (leaving < MAX_CLOSING && is_long).then_some(*id)
    }

    /// Takes a slot for a connection of `uid`. Also returns the user that gives up a connection for
    /// it, if any.
    ///
    /// # Errors
    /// Returns the user that holds the most connections if a slot cannot be given.
    fn admit(
        &mut self,
        uid: u32,
        now: Instant,
    ) -> Result<(u64, CancellationToken, Option<TopUser>), TopUser> {
        let holder = self.top_user();
        let mut gives = None;
        if !self.has_slot(uid) {
            let of_holder = self.connection_to_close(uid).map(|id| (id, holder));
            let own = TopUser { uid, held: self.held(uid) };
            let of_user = || self.own_idle_connection(uid, now).map(|id| (id, own));
            let (id, loser) = of_holder.or_else(of_user).ok_or(holder)?;
            if let Some(open) = self.open.get_mut(&id) {
                open.is_closing = true;
                open.close.cancel();
                let uid = open.uid;
                self.uncount(uid);
            }
            gives = Some(loser);
        }
        let id = self.next;
        self.next += 1;
        let leave = CancellationToken::new();
        let open = OpenConnection {
            uid,
            phase: ConnectionPhase::Idle,
            since: now,
            close: leave.clone(),
            is_closing: false,
        };
        self.open.insert(id, open);
        *self.held.entry(uid).or_default() += 1;
        self.total += 1;
        Ok((id, leave, gives))
    }

    fn uncount(&mut self, uid: u32) {
        self.total -= 1;
        decrement(&mut self.held, uid);
    }

    fn remove(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id)
            && !open.is_closing
        {
            self.uncount(open.uid);
        }
    }

    fn refuse(&mut self, uid: u32) -> bool {
        let all: usize = self.refusals.values().sum();
        let own = self.refusals.entry(uid).or_default();
        if *own >= MAX_REFUSALS || all >= MAX_ALL_REFUSALS {
            return false;
        }
        *own += 1;
        true
    }
}

fn decrement(counts: &mut HashMap<u32, usize>, uid: u32) {
    if let Some(count) = counts.get_mut(&uid) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&uid);
        }
    }
}

/// Table of the open connections. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Mutex<ConnectionTable>>);

impl Connections {
    /// Creates a table for at most `most` connections. `own` is the user id of the daemon.
    pub(super) fn new(most: usize, own: u32) -> Self {
        Self(Arc::new(Mutex::new(ConnectionTable::new(most, own))))
    }

    /// Decides on a new connection of `uid`. When no slot is free, the cost is linear in the number
    /// of connections.
    pub(super) fn admit(&self, uid: u32, now: Instant) -> AcceptDecision {
        let mut table = self.lock();
        match table.admit(uid, now) {
            Ok((id, leave, gives)) => AcceptDecision::Served(
                ConnectionSlot { connections: self.clone(), id, close: leave },
                gives,
            ),
            Err(holder) if table.refuse(uid) => {
                AcceptDecision::Refused(RefusalSlot { connections: self.clone(), uid }, holder)
            }
            Err(holder) => AcceptDecision::Dropped(holder),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        // Changes of the table do not panic half-way, so it is consistent even after a panic
        // elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connections: Connections,
    id: u64,
    close: CancellationToken,
}

impl ConnectionSlot {
    /// Sets the phase of the connection.
    pub(super) fn set_phase(&self, phase: ConnectionPhase) {
        if let Some(open) = self.connections.lock().open.get_mut(&self.id) {
            open.phase = phase;
            open.since = Instant::now();
        }
    }

    /// Changes the phase of the connection to `to` if it is `from`.
    pub(super) fn change_phase(&self, from: ConnectionPhase, to: ConnectionPhase) {
        if let Some(open) = self.connections.lock().open.get_mut(&self.id)
            && open.phase == from
        {
            open.phase = to;
            open.since = Instant::now();
        }
    }

    /// Returns the phase of the connection and the time at which it began.
    pub(super) fn phase(&self) -> (ConnectionPhase, Instant) {
        let table = self.connections.lock();
        let open = table.open.get(&self.id);
        open.map_or((ConnectionPhase::Idle, Instant::now()), |open| (open.phase, open.since))
    }

    /// Waits until the connection is asked to close.
    pub(super) async fn close_requested(&self) {
        self.close.cancelled().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
    }
}

/// Slot of one refusal. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct RefusalSlot {
    connections: Connections,
    uid: u32,
}

impl Drop for RefusalSlot {
    fn drop(&mut self) {
        decrement(&mut self.connections.lock().refusals, self.uid);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const OWN: u32 = 7;

    struct Fixture {
        connections: Connections,
        start: Instant,
        age: u64,
    }

    impl Fixture {
        fn new(most: usize) -> Self {
            Self { connections: Connections::new(most, OWN), start: Instant::now(), age: 0 }
        }

        /// Admits a connection that is a second younger than the previous one.
        fn admit(&mut self, uid: u32) -> AcceptDecision {
            self.age += 1;
            self.connections.admit(uid, self.start + Duration::from_secs(self.age))
        }

        fn served(&mut self, uid: u32) -> ConnectionSlot {
            match self.admit(uid) {
                AcceptDecision::Served(entry, None) => entry,
                other => panic!("{other:?}"),
            }
        }

        fn many(&mut self, uid: u32, count: usize) -> Vec<ConnectionSlot> {
            (0..count).map(|_| self.served(uid)).collect()
        }

        /// Admits connections that compute an answer.
        fn busy(&mut self, uid: u32, count: usize) -> Vec<ConnectionSlot> {
            let slots = self.many(uid, count);
            slots.iter().for_each(|slot| slot.set_phase(ConnectionPhase::Computing));
            slots
        }

        fn refused(&mut self, uid: u32) -> TopUser {
            match self.admit(uid) {
                AcceptDecision::Refused(_, holder) => holder,
                other => panic!("{other:?}"),
            }
        }
    }

    fn left(entries: &[ConnectionSlot]) -> Vec<usize> {
        let left = entries.iter().enumerate().filter(|(_, entry)| entry.close.is_cancelled());
        left.map(|(index, _)| index).collect()
    }

    #[test]
    fn one_user_takes_all_but_the_reserve() {
        let mut places = Fixture::new(256);
        let hog = places.busy(65_534, 248);
        assert_eq!(places.refused(65_534), TopUser { uid: 65_534, held: 248 });
        let owners = [places.many(0, 4), places.many(OWN, 4)];
        assert_eq!(left(&hog), [0_usize; 0]);
        drop(owners);
        // The reserve of a small limit is small.
        for (most, reserve) in [(1, 0), (2, 0), (4, 1), (32, 8)] {
            assert_eq!(ConnectionTable::new(most, OWN).reserve, reserve, "{most}");
        }
    }

    #[test]
    fn longest_idle_connection_of_largest_holder_is_closed() {
        let mut places = Fixture::new(16);
        let hog = places.many(1, 10);
        let _other = places.many(2, 2);
        for (entry, phase) in hog.iter().zip([
            ConnectionPhase::Computing,
            ConnectionPhase::Writing,
            ConnectionPhase::Receiving,
        ]) {
            entry.set_phase(phase);
        }
        hog[3].set_phase(ConnectionPhase::Streaming);
        let holder = TopUser { uid: 1, held: 10 };
        let AcceptDecision::Served(_third, Some(gives)) = places.admit(3) else { panic!() };
        assert_eq!((gives, left(&hog)), (holder, vec![4]));
        // Next come the other idle connections, the stream, the slow body and the slow answer. A
        // connection that computes is last.
        let mut newcomers = Vec::new();
        for uid in 10..17 {
            newcomers.push(places.admit(uid));
        }
        assert_eq!(left(&hog), [2, 3, 4, 5, 6, 7, 8, 9]);
        newcomers.extend([places.admit(18), places.admit(19)]);
        assert_eq!(left(&hog), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        // Every user has one connection now.
        assert_eq!(places.refused(20).held, 1);
    }

    #[test]
    fn similar_holder_loses_no_connection() {
        let mut places = Fixture::new(4);
        let first = places.busy(1, 2);
        let _second = places.busy(2, 1);
        assert_eq!(places.refused(2), TopUser { uid: 1, held: 2 });
        assert_eq!(places.refused(1).uid, 1);
        assert_eq!(left(&first), [0_usize; 0]);
        // Root uses its reserve.
        drop(places.served(0));
        let AcceptDecision::Served(_, Some(_)) = places.admit(3) else { panic!() };
        assert_eq!(left(&first), [0]);
    }

    #[test]
    fn own_longest_idle_connection_is_closed() {
        let mut places = Fixture::new(4);
        let busy = places.busy(1, 1);
        let idle = places.many(1, 2);
        let first = TopUser { uid: 1, held: 3 };
        let AcceptDecision::Served(newest, Some(loser)) = places.admit(1) else { panic!() };
        assert_eq!((loser, left(&idle)), (first, vec![0]));
        // The second one is idle, too, but was opened a moment ago.
        idle[1].set_phase(ConnectionPhase::Computing);
        newest.set_phase(ConnectionPhase::Idle);
        let now = newest.phase().1;
        let decision = places.connections.admit(1, now + MIN_IDLE / 2);
        assert!(matches!(decision, AcceptDecision::Refused(_, holder) if holder == first));
        let decision = places.connections.admit(1, now + MIN_IDLE);
        assert!(matches!(decision, AcceptDecision::Served(_, Some(loser)) if loser == first));
        assert_eq!((left(&busy), left(&[newest])), (vec![], vec![0]));
    }

    #[test]
    fn closing_and_refused_connections_are_bounded() {
        let mut places = Fixture::new(1024);
        let hog = places.many(1, 1016);
        let mut newcomers = Vec::new();
        for uid in 100..100 + u32::try_from(MAX_CLOSING).unwrap() {
            newcomers.push(places.admit(uid));
        }
        assert_eq!(left(&hog).len(), MAX_CLOSING);
        assert_eq!(places.refused(99).uid, 1);
        let refusals: Vec<_> = (0..MAX_REFUSALS).map(|_| places.admit(1)).collect();
        assert!(matches!(places.admit(1), AcceptDecision::Dropped(TopUser { uid: 1, .. })));
        places.refused(2);
        drop(refusals);
        places.refused(1);
    }

    proptest! {
        #[test]
        fn limits_hold_and_only_larger_holders_lose(
            most in 1_usize..40,
            steps in prop::collection::vec((0_u32..6, 0_u8..8), 0..200),
        ) {
            let mut places = Fixture::new(most);
            let mut entries: Vec<(u32, ConnectionSlot)> = Vec::new();
            for (uid, what) in steps {
                let before = places.connections.lock().held.clone();
                let counted = |uid: u32| places.connections.lock().weighted_count(uid);
                match what {
                    0 if !entries.is_empty() => drop(entries.swap_remove(uid as usize % entries.len())),
                    _ => {
                        let own = counted(uid);
                        match places.admit(uid) {
                            AcceptDecision::Served(entry, gives) => {
                                if let Some(holder) = gives.filter(|holder| holder.uid == uid) {
                                    prop_assert_eq!(holder.held, before[&uid]);
                                } else if let Some(holder) = gives {
                                    let after = places.connections.lock().weighted_count(holder.uid);
                                    prop_assert!(after > own, "{} {}", after, own);
                                    prop_assert_eq!(holder.held, before[&holder.uid]);
                                }
                                entries.push((uid, entry));
                            }
                            AcceptDecision::Refused(_, holder) | AcceptDecision::Dropped(holder) => {
                                prop_assert_eq!(holder.held, before[&holder.uid]);
                            }
                        }
                    }
                }
                let table = places.connections.lock();
                prop_assert!(table.total <= most);
                prop_assert!(table.open.len() - table.total <= MAX_CLOSING);
                prop_assert_eq!(table.held.values().sum::<usize>(), table.total);
                let others = table.total - table.owners();
                prop_assert!(others <= most - table.reserve);
                let uids: BTreeSet<u32> = table.held.keys().copied().collect();
                prop_assert!(uids.iter().all(|uid| table.held(*uid) > 0));
            }
            entries.clear();
            prop_assert_eq!(places.connections.lock().open.len(), 0);
            prop_assert!(places.connections.lock().held.is_empty());
        }
    }
}
