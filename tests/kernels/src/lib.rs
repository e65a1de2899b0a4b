//! The engine's kernels and their property tests without the rest of the engine.
//!
//! The sources are those of the root package. The module `engine` defines the two types of the
//! engine that they name.

pub mod engine;
