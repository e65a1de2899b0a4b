//! Models: the meaning of their names, their packages, their place in memory and their answers.
//!
//! | module | job |
//! | --- | --- |
//! | [`catalog`] | routing: decides which model a name means, and which fallback answers |
//! | `serving` | leases, queues and workers of the models in memory |
//! | [`residency`] | the manager: loads, evicts and unloads models |
//! | [`ingest`] | installation: packages become models, by one state machine |
//! | [`usage`] | counts of requests, predictions and recommendations |
//!
//! Other modules use a [`ManagerHandle`] (to ask the manager) or a [`Lease`] (to send requests to
//! one resident model). Only the manager changes the state of a model.

pub mod catalog;
mod error;
mod handle;
pub mod ingest;
mod model_info;
mod overview;
pub mod residency;
mod serving;
pub mod usage;

use std::time::Duration;

pub use catalog::fallback::{Fallback, FallbackFor};
pub use error::{MemoryRefusal, ModelError};
pub use handle::ManagerHandle;
pub use model_info::ModelInfo;
pub use overview::{DefaultModelState, Overview};
pub use residency::Residency;
pub use residency::manager::ManagerParts;
pub use residency::memory_view::{
    ActionRecord, FlushResult, FlushScope, MemoryView, ModelView, thresholds,
};
pub use residency::retention::{KeepAlive, KeepAliveRequest, ModelUser};
pub use serving::lease::{Lease, ReleasedLease};
pub use serving::liveness::{LivenessProbe, WorkerStall};
pub use serving::queue::MAX_RETRY_AFTER;
pub use serving::ticket::{Flow, JobOutput, Owner, Priority, Ticket, Urgency};
pub use serving::worker::WorkerError;

/// Longest duration of a request, including the load of the model.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
