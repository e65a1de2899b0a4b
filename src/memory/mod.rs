//! Memory: what this process may use, what it uses, and when the kernel runs short.
//!
//! Owns the sources of pressure and the measuring. It knows no models, no requests and no configuration: whoever
//! decides what to give up is told numbers and moments. Nothing here fails for what a kernel file says or does not say:
//! what is not known is left out, told once in the journal, and limits nothing.

mod cgroup;
#[cfg(test)]
mod fixture;
mod keyed;
pub mod level;
pub mod plan;
mod psi;
pub mod release;
pub mod sample;
pub mod source;
