//! Scheduling data of a request, and its result.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Class of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits for the answer.
    Interactive,
    /// The client accepts a longer delay.
    Bulk,
}

/// Urgency of a request that may have to wait for a load.
#[derive(Clone, Copy, Debug)]
pub struct Urgency {
    /// Class of the request, which decides which load starts first.
    pub priority: Priority,
    /// Instant after which the client no longer waits.
    pub deadline: Instant,
}

/// Flow of a request for fair scheduling: owners share the queue fairly, and so do the connections
/// of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The user or the tenant.
    pub owner: Owner,
    /// The connection, as a number.
    pub connection: u64,
}

/// Owner of requests for fair scheduling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A user, by uid.
    User(u32),
    /// A tenant, by a number of its own.
    Tenant(u64),
}

/// Scheduling metadata that a request passes to the queue.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Owner and connection, for fair scheduling.
    pub flow: Flow,
    /// Class of the request; `None` derives it from the number of tokens.
    pub priority: Option<Priority>,
    /// Time after which the client no longer waits for the answer.
    pub deadline: Instant,
    /// Tenant in whose own lane the request waits; `None` uses the lane shared by all others.
    pub tenant: Option<Arc<str>>,
    /// Share of the owner relative to other owners, from 1 to 9.
    pub weight: u8,
}

/// Answer to a request.
#[derive(Debug)]
pub struct JobOutput {
    /// Rows of the requested output, row-major: one for each text, or one for each token of all
    /// texts.
    pub vectors: Vec<f32>,
    /// Time in the queue.
    pub queue: Duration,
    /// Time of the computation.
    pub inference: Duration,
}
