//! Measures and judges the memory of this process and of the machine, and plans the response to a
//! shortage.
//!
//! The submodules read the kernel's counters ([`sample`]), wait for signals of pressure
//! ([`source`]), judge the samples ([`level`], [`monitor`]) and choose the next action ([`plan`]).
//! They know nothing of models, requests or the configuration; the model manager passes numbers and
//! instants in, and performs the steps.
//!
//! An absent, unreadable or malformed kernel file never causes an error here. The missing figure is
//! left out and limits nothing. A file that exists but is unusable is logged once.

mod cached_files;
mod cgroup;
#[cfg(test)]
mod fixture;
mod flat_keyed;
pub mod level;
pub mod malloc_trim;
pub mod mlock;
pub mod monitor;
pub mod plan;
mod psi;
pub mod sample;
pub mod source;
