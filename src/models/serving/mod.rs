//! Serving: resident models answer requests.
//!
//! A request takes a [`lease::Lease`] from the [`table`] and waits in the [`queue`] of its model. The [`worker`] of the model computes it; [`liveness`] observes the worker.

pub(super) mod lease;
pub(super) mod liveness;
pub(super) mod queue;
pub(super) mod table;
pub(super) mod ticket;
pub(super) mod worker;
