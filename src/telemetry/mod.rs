//! Telemetry: the log, the counters and the stream of state changes.
//!
//! Every other module reports through these three. None of them blocks its caller.

pub mod events;
pub mod log;
pub mod metrics;
