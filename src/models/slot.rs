//! The state of one model between the store and memory, as the manager knows it.
//!
//! Pure: this module starts no threads and does not wait.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::ModelError;
use super::needs::{Need, Needs, Wish};
use super::queue::Sender;
use super::worker::{Ready, WorkerError};
use super::{Lease, Residency};
use crate::engine::{EngineOptions, Footprint};
use crate::errors::chain;
use crate::units::Bytes;

pub(super) type LeaseReply = oneshot::Sender<Result<Lease, ModelError>>;
/// Waiting requests for a model, each with the name in the request.
pub(super) type Waiting = Vec<(String, LeaseReply)>;

/// State of a model. A model without a slot is only in the store.
pub(super) enum Slot {
    /// The footprint is being estimated, or the model waits for memory.
    Admitting(Admitting),
    /// The worker verifies and packs the weights.
    Loading {
        /// Start of the admission.
        since: Instant,
        waiting: Waiting,
        worker: Running,
        footprint: Footprint,
    },
    /// An installation runs the self-test of the model, outside of the manager.
    Reserved {
        since: Instant,
        /// Requests that arrived before the self-test was reported as finished.
        waiting: Waiting,
        footprint: Footprint,
    },
    Resident(Resident),
    /// The worker finishes its requests, and frees the weights afterwards.
    Leaving(Leaving),
    /// The model was unloaded on request or because it was idle. The next request loads it, or a
    /// preload.
    Unloaded,
    /// The model was evicted because memory was short, and is cooling down.
    Away {
        until: Instant,
    },
    /// The model did not fit into memory at the last request.
    Refused {
        refusal: Arc<Refusal>,
        at: std::time::Instant,
    },
    Failed {
        until: Instant,
        error: Arc<WorkerError>,
    },
}

/// The right to hold one model in memory outside of the manager, until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    /// Dropping it closes the channel, which notifies the manager.
    _held: oneshot::Sender<()>,
}

impl Reservation {
    /// Creates a reservation, and the receiver that ends when the reservation is dropped.
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (held, dropped) = oneshot::channel();
        (Self { _held: held }, dropped)
    }
}

pub(super) type ReserveReply = oneshot::Sender<Result<Reservation, ModelError>>;

/// A model that is being admitted.
pub(super) struct Admitting {
    /// Start of the admission; orders the claims of several models.
    pub(super) since: Instant,
    pub(super) waiting: Waiting,
    /// Options of the load.
    pub(super) options: EngineOptions,
    /// The installation that wants to test the model. In this case the manager does not load it.
    pub(super) reserve: Option<ReserveReply>,
    /// Whether this is a preload, without a request. Nothing is evicted for a preload.
    pub(super) ahead: bool,
    /// Whether the model waits until others are unloaded.
    pub(super) blocked: bool,
    /// Memory that evicted models free for this one. Later requests cannot take it.
    pub(super) claim: Bytes,
    /// Whether it was refused before; the refusal is then already in the journal.
    pub(super) refused: bool,
}

/// Thread of a worker, and the queue of its requests.
pub(super) struct Running {
    pub(super) queue: Sender,
    pub(super) thread: JoinHandle<()>,
}

impl Running {
    /// Returns whether there are leases, so that requests can arrive.
    fn is_leased(&self) -> bool {
        self.queue.is_shared()
    }
}

/// Time for which a client wants a model to stay after each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This time; zero unloads the model at once.
    For(Duration),
    /// No limit: the model stays until its memory is needed.
    Forever,
}

/// A resident model.
pub(super) struct Resident {
    pub(super) ready: Ready,
    pub(super) worker: Running,
    /// Estimated footprint.
    pub(super) footprint: Footprint,
    since: Instant,
    /// Time of the last use that was seen.
    used: Instant,
    /// Needs of its users; dropped when the model is unloaded.
    pub(super) needs: Box<Needs>,
}

impl Resident {
    pub(super) fn new(ready: Ready, worker: Running, footprint: Footprint, now: Instant) -> Self {
        Self { ready, worker, footprint, since: now, used: now, needs: Box::default() }
    }

    /// Returns the need that ends last. The settings give `max_idle_time`; the `keep_alive` of a
    /// user overrides it for that user. Returns `None` if the need has no end.
    pub(super) fn need(&self, max_idle_time: Option<Duration>) -> Option<Need> {
        self.needs.last(self.used, max_idle_time)
    }

    pub(super) fn wish(&mut self, wish: Wish) {
        self.needs.wish(wish);
    }

    /// Returns whether the worker still accepts work; false after a panic.
    pub(super) fn is_alive(&self) -> bool {
        !self.worker.queue.is_closed()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.worker.is_leased()
    }

    /// Returns the time since the last use. A request in progress is a use.
    pub(super) fn idle(&mut self, now: Instant) -> Duration {
        if self.is_busy() {
            self.used = now;
        }
        now.saturating_duration_since(self.used)
    }

    pub(super) fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    pub(super) fn resident_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Returns the memory that is freed with the model, as far as the engine knows.
    pub(super) fn bytes(&self) -> Bytes {
        let Ready { weight_bytes, mapped_bytes, .. } = self.ready;
        Bytes(weight_bytes.saturating_add(mapped_bytes).max(self.footprint.weight_bytes))
    }
}

/// Reason for an unload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// An administrator requested it.
    Asked,
    /// The model was not used for its `max_idle_time`.
    Idle,
    /// Memory is short.
    Pressure,
    /// Another model needs the memory.
    Room,
}

impl Why {
    /// Returns whether the model cools down afterwards.
    pub(super) fn is_eviction(self) -> bool {
        matches!(self, Self::Pressure | Self::Room)
    }
}

/// A model that is draining.
pub(super) struct Leaving {
    pub(super) why: Why,
    /// Requests that arrived in the meantime.
    pub(super) waiting: Waiting,
    /// Callers that wait until the model is unloaded.
    pub(super) done: Vec<oneshot::Sender<()>>,
}

/// Reason why a model was not loaded, with numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Most memory that the model takes.
    pub needed: Bytes,
    /// Memory that is available without an eviction.
    pub room: Bytes,
    /// Memory that would be available if every evictable model were evicted.
    pub most: Bytes,
    /// Tightest limit on the memory, as text.
    pub limit: String,
    /// Time after which to retry; `None` when the model will not fit then either.
    pub retry_after: Option<Duration>,
}

impl Slot {
    /// Returns the state that is shown to clients.
    pub(super) fn residency(&self) -> Residency {
        match self {
            Self::Admitting(_) | Self::Loading { .. } | Self::Reserved { .. } => Residency::Loading,
            Self::Resident(resident) => Residency::Resident {
                weight_bytes: resident.ready.weight_bytes,
                report: resident.ready.report.clone(),
                waiting: resident.worker.queue.waiting().requests,
                waiting_tokens: resident.worker.queue.waiting().tokens,
            },
            Self::Leaving(_) => Residency::Leaving,
            Self::Unloaded => Residency::Unloaded,
            Self::Away { .. } => Residency::Away,
            Self::Refused { refusal, .. } => Residency::Failed(refusal.to_string()),
            Self::Failed { error, .. } => Residency::Failed(chain(&**error)),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { needed, room, most, limit, .. } = self;
        write!(f, "it needs {needed}; {room} are free now and at most {most}, because of {limit}")
    }
}
