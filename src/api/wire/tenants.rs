//! Defines the wire type of tenants, as `/status` shows them.

use serde::{Deserialize, Serialize};

/// A tenant with its limits and counters.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// Name of the tenant.
    pub name: String,
    /// Name or alias of the model that answers the tenant's requests without a model name.
    pub model: String,
    /// Models that the tenant may request in addition; `null` means all.
    pub allowed_models: Option<Vec<String>>,
    /// Share of the queue from 1 to 9, compared with other tenants.
    pub priority: u8,
    /// Whether the tenant has a queue of its own.
    pub dedicated_queue: bool,
    /// Most requests in flight at the same time; `null` means that only the number of connections
    /// limits them.
    pub max_concurrent: Option<usize>,
    /// Requests since the daemon started, including refused ones.
    pub requests: u64,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Requests refused because too many were in flight or the model is not allowed.
    pub refused: u64,
}
