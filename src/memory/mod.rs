//! Memory: what this process may use, what it uses, when the kernel runs short, and what to give up then.
//!
//! Owns the sources of pressure, the measuring, the levels and the plan. It knows no models, no requests and no configuration: whoever
//! decides what to give up is told numbers and moments. Nothing here fails for what a kernel file says or does not say:
//! what is not known is left out, told once in the journal, and limits nothing.

mod cgroup;
#[cfg(test)]
mod fixture;
mod handles;
mod keyed;
pub mod level;
pub mod monitor;
pub mod plan;
mod psi;
pub mod release;
pub mod resident;
pub mod sample;
pub mod source;
