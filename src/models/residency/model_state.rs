//! The state of one model between the store and memory, as the manager knows it.
//!
//! Pure: this module starts no threads and does not wait.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::engine::{EngineOptions, Footprint};
use crate::models::error::{MemoryRefusal, ModelError};
use crate::models::residency::retention::{KeepAliveRequest, Retention, RetentionTracker};
use crate::models::serving::queue::{QueueSender, WeakQueueSender};
use crate::models::serving::table::ServedModel;
use crate::models::serving::worker::{ReadyModel, WorkerError};
use crate::models::{Lease, Priority, Residency};

pub(in crate::models) type LeaseReply = oneshot::Sender<Result<Lease, ModelError>>;

/// A request for a lease.
#[derive(Debug)]
pub(in crate::models) struct LeaseRequest {
    /// Name of the model in the request.
    pub(in crate::models) name: String,
    /// Class of the request. Preloads are bulk.
    pub(in crate::models) priority: Priority,
    pub(in crate::models) reply: LeaseReply,
}

/// Waiting requests for a model.
pub(in crate::models) type WaitingLeases = Vec<LeaseRequest>;

/// State of a model. A model for which the manager has no state is only in the store.
pub(in crate::models) enum ModelState {
    /// The footprint is being estimated, or the model waits for memory.
    Admitting(PendingAdmission),
    /// The worker verifies and packs the weights.
    Loading {
        /// Start of the admission.
        since: Instant,
        waiting: WaitingLeases,
        worker: WorkerHandle,
        footprint: Footprint,
    },
    /// An installation runs the self-test of the model, outside of the manager.
    Reserved {
        since: Instant,
        /// Requests that arrived before the self-test was reported as finished.
        waiting: WaitingLeases,
        footprint: Footprint,
    },
    Resident(ResidentModel),
    /// The worker finishes its requests, and frees the weights afterwards.
    Draining(DrainingModel),
    /// The model was unloaded on request or because it was idle. The next request loads it, or a
    /// preload.
    Unloaded,
    /// The model was evicted at this time because memory was short, and is cooling down.
    CoolingDown {
        since: Instant,
    },
    /// The model did not fit into memory at the last request.
    Refused {
        refusal: Arc<MemoryRefusal>,
        at: std::time::Instant,
    },
    Failed {
        until: Instant,
        error: Arc<WorkerError>,
    },
}

/// The right to hold one model in memory outside of the manager, until it is dropped.
#[derive(Debug)]
pub(in crate::models) struct Reservation {
    /// Dropping it closes the channel, which notifies the manager.
    _held: oneshot::Sender<()>,
}

impl Reservation {
    /// Creates a reservation, and the receiver that ends when the reservation is dropped.
    pub(in crate::models) fn new() -> (Self, oneshot::Receiver<()>) {
        let (held, dropped) = oneshot::channel();
        (Self { _held: held }, dropped)
    }
}

pub(in crate::models) type ReserveReply = oneshot::Sender<Result<Reservation, ModelError>>;

/// A model that is being admitted.
pub(in crate::models) struct PendingAdmission {
    /// Start of the admission; orders the claims of several models of one priority.
    pub(in crate::models) since: Instant,
    pub(in crate::models) waiting: WaitingLeases,
    /// Options of the load.
    pub(in crate::models) options: EngineOptions,
    /// The installation that wants to test the model. In this case the manager does not load it.
    pub(in crate::models) reserve: Option<ReserveReply>,
    /// Whether this is a preload, without a request. Nothing is evicted for a preload.
    pub(in crate::models) is_preload: bool,
    /// Whether the model waits until others are unloaded.
    pub(in crate::models) is_blocked: bool,
    /// Whether the load waits until more urgent ones have started.
    pub(in crate::models) is_yielding: bool,
    /// Memory that evicted models free for this one. Later requests cannot take it, unless they are
    /// more urgent.
    pub(in crate::models) claim: Bytes,
    /// Whether it was refused before; the refusal is then already in the journal.
    pub(in crate::models) was_refused: bool,
}

impl PendingAdmission {
    /// Returns the priority of the load: bulk if only bulk requests or preloads wait for it.
    pub(in crate::models) fn priority(&self) -> Priority {
        let is_urgent = |request: &LeaseRequest| {
            request.priority == Priority::Interactive && !request.reply.is_closed()
        };
        match self.reserve.is_some() || self.waiting.iter().any(is_urgent) {
            true => Priority::Interactive,
            false => Priority::Bulk,
        }
    }

    /// Returns whether this model gets memory before `other`.
    pub(in crate::models) fn is_ahead_of(&self, other: &Self) -> bool {
        (self.priority(), self.since) < (other.priority(), other.since)
    }
}

/// Thread of a worker, and the queue of its requests.
pub(in crate::models) struct WorkerHandle {
    pub(in crate::models) queue: QueueSender,
    pub(in crate::models) thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Returns whether there are leases, so that requests can arrive.
    fn is_leased(&self) -> bool {
        self.queue.is_shared()
    }
}

/// Settings of the passes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) struct PassSettings {
    /// Most tokens of a pass.
    pub(in crate::models) batch_tokens: usize,
    /// Most tokens of a text; `None` means as many as the model reads.
    pub(in crate::models) max_sequence_length: Option<usize>,
}

/// A resident model.
pub(in crate::models) struct ResidentModel {
    pub(in crate::models) ready: ReadyModel,
    pub(in crate::models) worker: WorkerHandle,
    /// Estimated footprint.
    pub(in crate::models) footprint: Footprint,
    /// Settings that the estimate depends on and that may change while the model is resident.
    pub(in crate::models) pass_settings: PassSettings,
    since: Instant,
    /// Needs of its users, and the time of the last use; dropped when the model is unloaded.
    pub(in crate::models) retention: Box<RetentionTracker>,
}

impl ResidentModel {
    pub(in crate::models) fn new(
        ready: ReadyModel,
        worker: WorkerHandle,
        footprint: Footprint,
        pass_settings: PassSettings,
        now: Instant,
    ) -> Self {
        Self { ready, worker, footprint, pass_settings, since: now, retention: Box::default() }
    }

    /// Returns the parts that leases on the model share.
    pub(in crate::models) fn served(&self) -> ServedModel {
        let ReadyModel { info, tokenizer, .. } = &self.ready;
        ServedModel::new(info, tokenizer, &self.worker.queue, self.retention.uses())
    }

    /// Returns the time of the last use that was recorded, or of the load if there was none.
    pub(in crate::models) fn last_used(&self) -> Instant {
        self.retention.uses().last_use().unwrap_or(self.since)
    }

    /// Returns the need that ends last. The settings give `max_idle_time`; the `keep_alive` of a
    /// user overrides it for that user. Returns `None` if the need has no end.
    pub(in crate::models) fn retention(
        &self,
        max_idle_time: Option<Duration>,
    ) -> Option<Retention> {
        self.retention.latest(self.last_used(), max_idle_time)
    }

    pub(in crate::models) fn set_keep_alive(&mut self, request: KeepAliveRequest) {
        self.retention.set_keep_alive(request);
    }

    /// Returns whether the worker still accepts work; false after a panic.
    pub(in crate::models) fn is_alive(&self) -> bool {
        !self.worker.queue.is_closed()
    }

    pub(in crate::models) fn is_busy(&self) -> bool {
        self.worker.is_leased()
    }

    /// Returns the time since the last use. A request in progress is a use.
    pub(in crate::models) fn idle(&self, now: Instant) -> Duration {
        if self.is_busy() {
            self.retention.uses().touch(now);
        }
        now.saturating_duration_since(self.last_used())
    }

    pub(in crate::models) fn resident_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Returns the memory that is freed with the model, as far as the engine knows.
    pub(in crate::models) fn bytes(&self) -> Bytes {
        let ReadyModel { weight_bytes, mapped_bytes, .. } = self.ready;
        Bytes(weight_bytes.saturating_add(mapped_bytes).max(self.footprint.weight_bytes))
    }
}

/// Reason for an unload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum UnloadReason {
    /// An administrator requested it.
    Requested,
    /// The model was not used for its `max_idle_time`.
    Idle,
    /// Memory is short.
    Pressure,
    /// Another model needs the memory.
    Displaced,
}

impl UnloadReason {
    /// Returns whether the model cools down afterwards.
    pub(in crate::models) fn is_eviction(self) -> bool {
        matches!(self, Self::Pressure | Self::Displaced)
    }
}

/// A model that is draining.
pub(in crate::models) struct DrainingModel {
    pub(in crate::models) reason: UnloadReason,
    /// Requests that arrived in the meantime.
    pub(in crate::models) waiting: WaitingLeases,
    /// Callers that wait until the model is unloaded.
    pub(in crate::models) waiters: Vec<oneshot::Sender<()>>,
    /// Queue of the requests that it still finishes.
    pub(in crate::models) queue: WeakQueueSender,
}

impl ModelState {
    /// Returns the state that is shown to clients.
    pub(in crate::models) fn residency(&self) -> Residency {
        match self {
            Self::Admitting(_) | Self::Loading { .. } | Self::Reserved { .. } => Residency::Loading,
            Self::Resident(resident) => Residency::Resident {
                weight_bytes: resident.ready.weight_bytes,
                report: resident.ready.report.clone(),
                waiting: resident.worker.queue.backlog().requests,
                waiting_tokens: resident.worker.queue.backlog().tokens,
            },
            Self::Draining(_) => Residency::Draining,
            Self::Unloaded => Residency::Unloaded,
            Self::CoolingDown { .. } => Residency::CoolingDown,
            Self::Refused { refusal, .. } => Residency::Failed(refusal.to_string()),
            Self::Failed { error, .. } => Residency::Failed(chain(&**error)),
        }
    }
}
