//! Where each model is on its way into memory and out of it.
//!
//! Owns what the manager knows of one model. Pure: it starts nothing and waits for nothing.

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
use crate::engine::{Footprint, Options};
use crate::errors::chain;
use crate::units::Bytes;

pub(super) type LeaseReply = oneshot::Sender<Result<Lease, ModelError>>;
/// Requests for a model, by the name that each asked for.
pub(super) type Waiting = Vec<(String, LeaseReply)>;

/// Where a model is; one that has no slot is in the store alone.
pub(super) enum Slot {
    /// It is being found out what it takes, or waited for room.
    Admitting(Admitting),
    /// Its worker verifies and packs it.
    Loading {
        /// When it was asked for.
        since: Instant,
        waiting: Waiting,
        worker: Running,
        footprint: Footprint,
    },
    /// An installation tries it, outside of the manager.
    Reserved {
        since: Instant,
        /// Those that asked for it before the manager heard that it was tried.
        waiting: Waiting,
        footprint: Footprint,
    },
    Resident(Resident),
    /// Its worker finishes what it has, then lets the weights go.
    Leaving(Leaving),
    /// It left because nobody used it, or somebody said so; it comes back when it is asked for, or soon will be.
    Unloaded,
    /// It left because memory was short, and stays away for a while.
    Away {
        until: Instant,
    },
    /// It did not fit when it was last asked for.
    Refused {
        refusal: Arc<Refusal>,
        at: std::time::Instant,
    },
    Failed {
        until: Instant,
        error: Arc<WorkerError>,
    },
}

/// The right to hold one model outside of the manager, until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    /// Closing it is what the manager waits for.
    _held: oneshot::Sender<()>,
}

impl Reservation {
    /// A reservation, and what ends when it is dropped.
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (held, dropped) = oneshot::channel();
        (Self { _held: held }, dropped)
    }
}

pub(super) type ReserveReply = oneshot::Sender<Result<Reservation, ModelError>>;

/// A model that somebody wants.
pub(super) struct Admitting {
    /// When it was asked for.
    pub(super) since: Instant,
    pub(super) waiting: Waiting,
    /// What it will be loaded with.
    pub(super) options: Options,
    /// The installation that wants to try it; nothing is loaded by the manager then.
    pub(super) reserve: Option<ReserveReply>,
    /// Whether nobody has asked for it yet: then nothing leaves for it.
    pub(super) ahead: bool,
    /// Whether others are leaving to make room for it.
    pub(super) blocked: bool,
    /// What others left for: whoever asks later does not get it.
    pub(super) claim: Bytes,
    /// Whether it was refused before, which is in the journal.
    pub(super) refused: bool,
}

/// A worker and the way to it.
pub(super) struct Running {
    pub(super) queue: Sender,
    pub(super) thread: JoinHandle<()>,
}

impl Running {
    /// Whether anybody but the manager can send it work.
    fn is_leased(&self) -> bool {
        self.queue.is_shared()
    }
}

/// How long a client wants a model to stay after each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// For so long; not at all when it is zero.
    For(Duration),
    /// Until its memory is needed.
    Forever,
}

/// A model in memory.
pub(super) struct Resident {
    pub(super) ready: Ready,
    pub(super) worker: Running,
    /// What it was estimated to take.
    pub(super) footprint: Footprint,
    since: Instant,
    /// When it was last seen in use.
    used: Instant,
    /// What its users need; forgotten with the rest when the model leaves.
    pub(super) needs: Box<Needs>,
}

impl Resident {
    pub(super) fn new(ready: Ready, worker: Running, footprint: Footprint, now: Instant) -> Self {
        Self { ready, worker, footprint, since: now, used: now, needs: Box::default() }
    }

    /// Returns the need that ends last. The settings give `max_idle_time`; the `keep_alive` of a user overrides it for
    /// that user. `None` means without end.
    pub(super) fn need(&self, max_idle_time: Option<Duration>) -> Option<Need> {
        self.needs.last(self.used, max_idle_time)
    }

    pub(super) fn wish(&mut self, wish: Wish) {
        self.needs.wish(wish);
    }

    /// Whether its worker still takes work: it may have panicked.
    pub(super) fn is_alive(&self) -> bool {
        !self.worker.queue.is_closed()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.worker.is_leased()
    }

    /// How long it was not used. Requests in flight are use.
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

    /// What comes back when it leaves, as far as the engine knows.
    pub(super) fn bytes(&self) -> Bytes {
        let Ready { weight_bytes, mapped_bytes, .. } = self.ready;
        Bytes(weight_bytes.saturating_add(mapped_bytes).max(self.footprint.weight_bytes))
    }
}

/// Why a model leaves memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody said so.
    Asked,
    /// Nobody used it for its `max_idle_time`.
    Idle,
    /// Memory is short.
    Pressure,
    /// Another model needs its place.
    Room,
}

impl Why {
    /// Whether it stays away for a while.
    pub(super) fn is_eviction(self) -> bool {
        matches!(self, Self::Pressure | Self::Room)
    }
}

/// A model on its way out of memory.
pub(super) struct Leaving {
    pub(super) why: Why,
    /// Those that asked for it meanwhile.
    pub(super) waiting: Waiting,
    /// Those that wait until it has left.
    pub(super) done: Vec<oneshot::Sender<()>>,
}

/// Why a model was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it takes at most.
    pub needed: Bytes,
    /// What could be had when nothing else leaves.
    pub room: Bytes,
    /// What could be had if everything that may leave did.
    pub most: Bytes,
    /// What bounds that.
    pub limit: String,
    /// When to ask again; `None` when it will not fit then either.
    pub retry_after: Option<Duration>,
}

impl Slot {
    /// What is shown of it.
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
