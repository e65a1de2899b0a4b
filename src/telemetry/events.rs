//! Distributes events about models, memory, packages and the configuration to listeners.
//!
//! Keeps the order of the events and remembers the last [`HISTORY_LENGTH`] of them. Sending never
//! waits: a listener that reads too slowly loses events and receives their number. Events are not
//! persistent; the journal has every fact that must be kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast::{self, error::RecvError};

/// Number of events that can be requested after they happened, and by which a listener may lag
/// behind.
pub const HISTORY_LENGTH: usize = 256;
/// Shift of the start second in the first id of a run. Ids grow from one run to the next as long as
/// the clock does not go back and there are fewer than 2^20 events a second. Until 2242 an id is
/// exact in a JSON number (below 2^53).
const RUN_SHIFT: u32 = 20;

/// An event. A model is named `id@version`, as a request may name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model was loaded.
    ModelLoaded {
        /// The model, `id@version`.
        model: String,
        /// Bytes of its weights.
        bytes: u64,
        /// Time that loading took.
        duration: Duration,
    },
    /// A model was unloaded because it was idle or because an operator asked for it.
    ModelUnloaded {
        /// The model, `id@version`.
        model: String,
        /// Reason, for people.
        reason: String,
        /// Bytes by which the memory of the process shrank; `None` when it was not measured.
        bytes: Option<u64>,
    },
    /// A model was evicted because memory is short or because another model needs the memory.
    ModelEvicted {
        /// The model, `id@version`.
        model: String,
        /// Reason with numbers, for people.
        reason: String,
        /// Bytes by which the memory of the process shrank; `None` when it was not measured.
        bytes: Option<u64>,
    },
    /// A model could not be loaded.
    ModelFailed {
        /// The model, `id@version`.
        model: String,
        /// Reason, for people.
        reason: String,
    },
    /// The pressure level changed.
    PressureChanged {
        /// New level: `normal`, `moderate`, `high` or `critical`.
        level: &'static str,
        /// Previous level.
        before: &'static str,
        /// Cause of the level; `None` when it is `normal`.
        reason: Option<String>,
    },
    /// A package was installed.
    PackageAccepted {
        /// The model, `id@version`.
        model: String,
        /// Name of the package file; `None` when the package did not come as a file.
        file: Option<String>,
    },
    /// A package was rejected.
    PackageRefused {
        /// Name of the package file; `None` when the package did not come as a file.
        file: Option<String>,
        /// Reason, for people.
        reason: String,
    },
    /// A package on its way was found, or waits in another state than before.
    PackageWaiting {
        /// Name of the package file.
        file: String,
        /// State of the file, as `/status` names it.
        state: &'static str,
        /// Reason, for people; `None` when the state needs none.
        reason: Option<String>,
    },
    /// A package could not be installed now. It stays in its directory.
    PackageFailed {
        /// Name of the package file.
        file: String,
        /// Reason, for people.
        reason: String,
        /// Time until the next attempt; `None` when the time is not known.
        retry_in: Option<Duration>,
    },
    /// A model was removed from the store, because its file was removed or an operator asked for
    /// it.
    PackageRemoved {
        /// The model, `id@version`.
        model: String,
        /// Reason, for people.
        reason: String,
    },
    /// A model was removed from the store because a limit was reached.
    StoreLimit {
        /// The model, `id@version`.
        model: String,
        /// Reason, for people.
        reason: String,
    },
    /// Files of an installed model differ from the installed ones.
    ModelCorrupt {
        /// The model, `id@version`.
        model: String,
        /// Reason, for people.
        reason: String,
    },
    /// An id resolves to another version than before, because an operator asked for it or because
    /// the newer version is corrupt.
    ModelRolledBack {
        /// The id.
        model: String,
        /// The version before.
        from: String,
        /// The version now.
        to: String,
    },
    /// A version was installed and waits for the approval of an operator.
    UpdateWaiting {
        /// The model, `id@version`.
        model: String,
    },
    /// An operator approved a version: its id resolves to it.
    ModelApproved {
        /// The model, `id@version`.
        model: String,
    },
    /// Models were unloaded on request.
    MemoryFlushed {
        /// The models, `id@version`.
        models: Vec<String>,
        /// Bytes by which the memory of the process shrank.
        freed_bytes: u64,
    },
    /// New settings were applied.
    ConfigurationApplied {
        /// Number of times that settings were applied since the start.
        generation: u64,
    },
    /// The configuration files are wrong; the last good settings stay active.
    ConfigurationRefused {
        /// Problems, one sentence each.
        problems: Vec<String>,
    },
    /// A fallback begins to answer for a model that is not available. The event is sent once, at
    /// the beginning, and not for every request. Otherwise a burst of requests would push all other
    /// events out of the memory.
    Fallback {
        /// The model that was requested.
        model: String,
        /// The model that answers.
        answered_by: String,
        /// Reason, for people.
        reason: String,
    },
}

/// An event with its id and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Id, larger than the ids of all earlier events.
    pub id: u64,
    /// Time of the event.
    pub at: SystemTime,
    /// The event.
    pub event: Event,
}

/// An item that a [`Subscription`] receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventItem {
    /// An event.
    Record(Arc<EventRecord>),
    /// Number of events that this listener lost at this point: it was too slow, or it asked for
    /// events that are no longer remembered.
    Lagged(u64),
}

/// The event channel, for senders and listeners. Clones share it.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    first: u64,
    remembered: Mutex<VecDeque<Arc<EventRecord>>>,
    sender: broadcast::Sender<Arc<EventRecord>>,
}

impl Events {
    /// Creates a channel without events. `started`, the start of the daemon, determines the first
    /// id.
    pub fn new(started: SystemTime) -> Self {
        let seconds = started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // At least 1: clients pass 0 as the last known id to request all events.
        let first = (seconds << RUN_SHIFT).max(1);
        let remembered = Mutex::new(VecDeque::with_capacity(HISTORY_LENGTH));
        Self(Arc::new(Inner { first, remembered, sender: broadcast::Sender::new(HISTORY_LENGTH) }))
    }

    /// Sends `event` to all listeners and remembers it. Takes about a microsecond and never waits.
    pub fn publish(&self, event: Event) {
        let mut remembered = self.history();
        let id = remembered.back().map_or(self.0.first, |last| last.id + 1);
        let record = Arc::new(EventRecord { id, at: SystemTime::now(), event });
        if remembered.len() == HISTORY_LENGTH {
            remembered.pop_front();
        }
        remembered.push_back(Arc::clone(&record));
        // Send before the lock is released, so that all listeners see the events in the order of
        // their ids. An error means that the event has no listener.
        drop(self.0.sender.send(record));
    }

    /// Returns a listener for new events. With `after`, the listener first receives the remembered
    /// events whose ids are larger than `after`.
    pub fn subscribe(&self, after: Option<u64>) -> Subscription {
        // The subscription is made under the lock: no event is lost or duplicated between the
        // remembered events and the new ones.
        let remembered = self.history();
        let receiver = self.0.sender.subscribe();
        let mut pending = VecDeque::new();
        if let Some(after) = after {
            let oldest = remembered.front().map_or(self.0.first, |record| record.id);
            // Count only events of this run. For an id of an earlier run, the number of events
            // since then is unknown.
            let missed = oldest.saturating_sub(after.max(self.0.first - 1).saturating_add(1));
            if missed > 0 {
                pending.push_back(EventItem::Lagged(missed));
            }
            let later = remembered.iter().filter(|record| record.id > after);
            pending.extend(later.cloned().map(EventItem::Record));
        }
        Subscription { pending, receiver }
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<Arc<EventRecord>>> {
        // A panic under the lock cannot leave a damaged queue: use it nevertheless.
        self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription to events.
#[derive(Debug)]
pub struct Subscription {
    pending: VecDeque<EventItem>,
    receiver: broadcast::Receiver<Arc<EventRecord>>,
}

impl Subscription {
    /// Returns the next remembered event without waiting; `None` when all were returned.
    pub fn next_from_history(&mut self) -> Option<EventItem> {
        self.pending.pop_front()
    }

    /// Waits for the next event; `None` when all senders were dropped. Cancelling loses no event.
    pub async fn next(&mut self) -> Option<EventItem> {
        if let Some(heard) = self.next_from_history() {
            return Some(heard);
        }
        match self.receiver.recv().await {
            Ok(record) => Some(EventItem::Record(record)),
            Err(RecvError::Lagged(missed)) => Some(EventItem::Lagged(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(generation: u64) -> Event {
        Event::ConfigurationApplied { generation }
    }

    fn generation(heard: Option<EventItem>) -> u64 {
        match heard {
            Some(EventItem::Record(record)) => match record.event {
                Event::ConfigurationApplied { generation } => generation,
                _ => panic!("{record:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn listener_gets_new_and_requested_past_events() {
        let events = Events::new(UNIX_EPOCH + Duration::from_secs(7));
        events.publish(applied(1));
        let (mut from_now, mut from_start) = (events.subscribe(None), events.subscribe(Some(0)));
        events.publish(applied(2));
        assert_eq!(generation(from_now.next().await), 2);
        assert_eq!(from_now.next_from_history(), None);
        assert_eq!(generation(from_start.next_from_history()), 1);
        assert_eq!(generation(from_start.next().await), 2);

        let mut again = events.subscribe(Some(7 << RUN_SHIFT));
        assert_eq!(generation(again.next_from_history()), 2);
        assert_eq!(again.next_from_history(), None);
        // An id that is too large comes from a later run or is invented by the client.
        assert_eq!(events.subscribe(Some(u64::MAX)).next_from_history(), None);
        drop(events);
        assert_eq!(from_now.next().await, None);
    }

    #[tokio::test]
    async fn slow_listener_learns_number_of_missed_events() {
        let events = Events::new(SystemTime::now());
        let mut slow = events.subscribe(None);
        let first = events.subscribe(Some(0));
        assert_eq!(first.pending.len(), 0);
        for generation in 0..1000 {
            events.publish(applied(generation));
        }
        assert_eq!(slow.next().await, Some(EventItem::Lagged(744)));
        assert_eq!(generation(slow.next().await), 744);

        let mut late = events.subscribe(Some(0));
        assert_eq!(late.next_from_history(), Some(EventItem::Lagged(744)));
        assert_eq!(generation(late.next_from_history()), 744);
        assert_eq!(late.pending.len(), HISTORY_LENGTH - 1);
    }

    #[test]
    fn event_ids_grow_and_fit_json_numbers() {
        let year_2200 = UNIX_EPOCH + Duration::from_secs(7_258_118_400);
        let (before, after) =
            (Events::new(year_2200 - Duration::from_secs(1)), Events::new(year_2200));
        assert!(before.0.first < after.0.first && after.0.first < 1 << 53);
    }
}
