//! Tenants as `/status` shows them.

use serde::{Deserialize, Serialize};

/// Who asks, what it may, and what it does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// The model, or the alias of one, that answers when a request of it names none.
    pub model: String,
    /// What it may ask for beside that; `null` means everything.
    pub allowed_models: Option<Vec<String>>,
    /// Its share of the turns when requests wait, from 1 to 9.
    pub priority: u8,
    /// Whether it waits in a queue of its own.
    pub dedicated_queue: bool,
    /// Most requests at a time; `null` means as many as there are connections.
    pub max_concurrent: Option<usize>,
    /// Requests since the daemon started, those refused included.
    pub requests: u64,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Requests refused because too many were in flight or the model is not allowed.
    pub refused: u64,
}
