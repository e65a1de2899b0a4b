//! Events: what happened to models, memory, packages and the configuration, for whoever listens.
//!
//! Owns the order of events and the last [`REMEMBERED`] of them. Sending never waits: who reads too slowly misses some
//! and is told how many. Nothing here decides anything; what has to be kept is in the journal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast::{self, error::RecvError};

/// So many events can be asked for after they happened, and a reader may be so many behind.
pub const REMEMBERED: usize = 256;
/// Ids of a run begin at the second of its start, shifted by this: they grow from one run to the next as long as the
/// clock does not go back and there are less than 2^20 events a second, and are exact in a JSON number until 2242.
const RUN_SHIFT: u32 = 20;

/// Something that happened. Models are named as a request may name them, `id@version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model is in memory.
    ModelLoaded {
        /// Which.
        model: String,
        /// Bytes of its weights.
        bytes: u64,
        /// How long loading took.
        duration: Duration,
    },
    /// A model left memory because nobody used it, or somebody said so.
    ModelUnloaded {
        /// Which.
        model: String,
        /// Why.
        reason: String,
        /// Bytes that the process holds less; `None` when it was not measured.
        bytes: Option<u64>,
    },
    /// A model had to leave because memory is short or another needed its place.
    ModelEvicted {
        /// Which.
        model: String,
        /// Why, with numbers.
        reason: String,
        /// Bytes that the process holds less.
        bytes: Option<u64>,
    },
    /// A model could not be loaded.
    ModelFailed {
        /// Which.
        model: String,
        /// Why.
        reason: String,
    },
    /// Memory is shorter than before, or less short.
    PressureChanged {
        /// How short it is: `normal`, `moderate`, `high` or `critical`.
        level: &'static str,
        /// How short it was.
        before: &'static str,
        /// What is a reason for it; `None` when it is normal.
        reason: Option<String>,
    },
    /// A package became a model.
    PackageAccepted {
        /// Which model.
        model: String,
        /// Its file, when it came in one.
        file: Option<String>,
    },
    /// A package was refused.
    PackageRefused {
        /// Its file, when it came in one.
        file: Option<String>,
        /// Why.
        reason: String,
    },
    /// Other settings are in force.
    ConfigurationApplied {
        /// How often settings have been put in force.
        generation: u64,
    },
    /// The files of the configuration are wrong; the last good settings stay in force.
    ConfigurationRefused {
        /// What is wrong, a sentence each.
        problems: Vec<String>,
    },
    /// Another model begins to answer for one that cannot; told when it begins, not for every request, so that a storm
    /// of them does not drive out everything else.
    Fallback {
        /// The one that is asked for.
        model: String,
        /// The one that answers.
        answered_by: String,
        /// Why.
        reason: String,
    },
}

/// An event, when it happened, and its place among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Larger than that of every event before.
    pub id: u64,
    /// When it happened.
    pub at: SystemTime,
    /// What happened.
    pub event: Event,
}

/// What a reader hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An event.
    Record(Arc<Record>),
    /// So many events between the last one and the next are not told any more.
    Lagged(u64),
}

/// The way to tell and to hear. Clones share everything.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    first: u64,
    remembered: Mutex<VecDeque<Arc<Record>>>,
    sender: broadcast::Sender<Arc<Record>>,
}

impl Events {
    /// Nothing has happened yet; ids begin with this start.
    pub fn new(started: SystemTime) -> Self {
        let seconds = started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Anything is greater than 0, which asks for everything.
        let first = (seconds << RUN_SHIFT).max(1);
        let remembered = Mutex::new(VecDeque::with_capacity(REMEMBERED));
        Self(Arc::new(Inner { first, remembered, sender: broadcast::Sender::new(REMEMBERED) }))
    }

    /// Tells everybody who listens, and remembers. Takes about a microsecond.
    pub fn send(&self, event: Event) {
        let mut remembered = self.remembered();
        let id = remembered.back().map_or(self.0.first, |last| last.id + 1);
        let record = Arc::new(Record { id, at: SystemTime::now(), event });
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(Arc::clone(&record));
        // Sent before the lock is given back, so that all hear the same order. Nobody may be listening.
        drop(self.0.sender.send(record));
    }

    /// Listens from now on, and first to what is remembered of what came after the event with this id.
    pub fn listen(&self, after: Option<u64>) -> Listener {
        let remembered = self.remembered();
        let receiver = self.0.sender.subscribe();
        let mut pending = VecDeque::new();
        if let Some(after) = after {
            let oldest = remembered.front().map_or(self.0.first, |record| record.id);
            // Of another run nobody knows how many there were.
            let missed = oldest.saturating_sub(after.max(self.0.first - 1).saturating_add(1));
            if missed > 0 {
                pending.push_back(Heard::Lagged(missed));
            }
            let later = remembered.iter().filter(|record| record.id > after);
            pending.extend(later.cloned().map(Heard::Record));
        }
        Listener { pending, receiver }
    }

    fn remembered(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        // A panic while it was held leaves a queue that is whole.
        self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who listens.
#[derive(Debug)]
pub struct Listener {
    pending: VecDeque<Heard>,
    receiver: broadcast::Receiver<Arc<Record>>,
}

impl Listener {
    /// What is left of what was remembered when this listener began; does not wait.
    pub fn remembered(&mut self) -> Option<Heard> {
        self.pending.pop_front()
    }

    /// Waits for what comes next; `None` when nobody is left who could tell anything. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(heard) = self.remembered() {
            return Some(heard);
        }
        match self.receiver.recv().await {
            Ok(record) => Some(Heard::Record(record)),
            Err(RecvError::Lagged(missed)) => Some(Heard::Lagged(missed)),
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

    fn generation(heard: Option<Heard>) -> u64 {
        match heard {
            Some(Heard::Record(record)) => match record.event {
                Event::ConfigurationApplied { generation } => generation,
                _ => panic!("{record:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_listener_hears_what_comes_and_if_it_asks_what_was() {
        let events = Events::new(UNIX_EPOCH + Duration::from_secs(7));
        events.send(applied(1));
        let (mut from_now, mut from_start) = (events.listen(None), events.listen(Some(0)));
        events.send(applied(2));
        assert_eq!(generation(from_now.next().await), 2);
        assert_eq!(from_now.remembered(), None);
        assert_eq!(generation(from_start.remembered()), 1);
        assert_eq!(generation(from_start.next().await), 2);

        let mut again = events.listen(Some(7 << RUN_SHIFT));
        assert_eq!(generation(again.remembered()), 2);
        assert_eq!(again.remembered(), None);
        // A later run than this one, or a client that makes ids up.
        assert_eq!(events.listen(Some(u64::MAX)).remembered(), None);
        drop(events);
        assert_eq!(from_now.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_it_missed_and_holds_nobody_up() {
        let events = Events::new(SystemTime::now());
        let mut slow = events.listen(None);
        let first = events.listen(Some(0));
        assert_eq!(first.pending.len(), 0);
        for generation in 0..1000 {
            events.send(applied(generation));
        }
        assert_eq!(slow.next().await, Some(Heard::Lagged(744)));
        assert_eq!(generation(slow.next().await), 744);

        let mut late = events.listen(Some(0));
        assert_eq!(late.remembered(), Some(Heard::Lagged(744)));
        assert_eq!(generation(late.remembered()), 744);
        assert_eq!(late.pending.len(), REMEMBERED - 1);
    }

    #[test]
    fn ids_grow_across_runs_and_fit_a_json_number() {
        let year_2200 = UNIX_EPOCH + Duration::from_secs(7_258_118_400);
        let (before, after) =
            (Events::new(year_2200 - Duration::from_secs(1)), Events::new(year_2200));
        assert!(before.0.first < after.0.first && after.0.first < 1 << 53);
    }
}
