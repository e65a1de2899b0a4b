//! Foundations: units, printable text, error chains, exit codes and the rounding of weights.
//!
//! These modules use no other module of the program, except in tests.

pub mod errors;
pub mod exit;
pub(crate) mod int4;
pub mod printable;
pub(crate) mod quantization;
pub mod units;
