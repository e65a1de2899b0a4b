//! What is known of memory and of the models in it, for administrators.

use std::time::{Duration, SystemTime};

use super::Residency;
use crate::config::Settings;
use crate::engine::Footprint;
use crate::memory::level::{Level, Thresholds};
use crate::memory::monitor::Reading;
use crate::memory::sample::Sample;
use crate::package::Key;
use crate::units::Bytes;

/// Memory and the models in it.
#[derive(Clone, Debug)]
pub struct MemoryView {
    /// What was measured last.
    pub reading: Reading,
    /// The limit on this process beside those of the kernel.
    pub configured_limit: Option<Bytes>,
    /// What a model may take without any other leaving.
    pub room: Bytes,
    /// Whether requests are refused because memory is short.
    pub shedding: bool,
    /// Models that are in memory, on their way there or away from it, or were refused.
    pub models: Vec<ModelView>,
    /// What was done last, newest first.
    pub actions: Vec<ActionRecord>,
}

/// A model and its memory.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// The model.
    pub key: Key,
    /// Where it is.
    pub residency: Residency,
    /// What it was estimated to take; `None` when it is not in memory.
    pub footprint: Option<Footprint>,
    /// From 1, kept longest, to 5, leaves first.
    pub priority: u8,
    /// Whether it stays whatever happens.
    pub pinned: bool,
    /// How long it was not used; `None` when it is not in memory.
    pub idle: Option<Duration>,
    /// When it leaves for want of use; `None` when it does not.
    pub expires: Option<Duration>,
}

/// Something that was done for memory's sake.
#[derive(Clone, Debug)]
pub struct ActionRecord {
    /// When it was finished.
    pub at: SystemTime,
    /// `evict`, `unload`, `idle`, `release_caches`, `shrink_batches` or `shed`.
    pub action: &'static str,
    /// The model that left.
    pub model: Option<Key>,
    /// How short memory was.
    pub level: Level,
    /// Why, with numbers.
    pub reason: String,
    /// What this process holds less than before; `None` when it was not measured by itself.
    pub freed: Option<Bytes>,
    /// From the order to the release.
    pub duration: Duration,
}

/// What a flush did.
#[derive(Clone, Debug)]
pub struct Flushed {
    /// Models that left.
    pub unloaded: Vec<Key>,
    /// Measured before the first left.
    pub before: Sample,
    /// Measured after the last had left.
    pub after: Sample,
    /// From the order to the last release.
    pub duration: Duration,
}

/// Where the levels begin with these settings.
pub fn thresholds(settings: &Settings) -> Thresholds {
    let memory = &settings.memory;
    Thresholds {
        moderate: memory.pressure.moderate,
        high: memory.pressure.high,
        critical: memory.pressure.critical,
        min_free: memory.min_free,
        quiet: memory.pressure.quiet,
    }
}
