//! Reports about memory and the models in it, for administrators.

use std::time::{Duration, SystemTime};

use crate::base::units::Bytes;
use crate::config::Settings;
use crate::engine::Footprint;
use crate::memory::level::{PressureLevel, Thresholds};
use crate::memory::monitor::Reading;
use crate::memory::sample::Sample;
use crate::models::Residency;
use crate::package::EntryKey;

/// Memory and the models in it.
#[derive(Clone, Debug)]
pub struct MemoryView {
    /// Last measurement.
    pub reading: Reading,
    /// Limit on this process that was set at run time, in addition to those of the kernel.
    pub configured_limit: Option<Bytes>,
    /// Memory that a model may take without an eviction.
    pub headroom: Bytes,
    /// Whether requests are shed because memory is short.
    pub is_shedding: bool,
    /// Models that are in memory, loading or draining, or were refused.
    pub models: Vec<ModelView>,
    /// Last actions, newest first.
    pub actions: Vec<ActionRecord>,
}

/// A model and its memory.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// The model.
    pub key: EntryKey,
    /// State of the model.
    pub residency: Residency,
    /// Estimated footprint; `None` when the model is not in memory.
    pub footprint: Option<Footprint>,
    /// Eviction priority from 1, evicted last, to 5, evicted first.
    pub priority: u8,
    /// Whether it is excluded from eviction.
    pub pinned: bool,
    /// Time since the last use; `None` when the model is not in memory.
    pub idle: Option<Duration>,
    /// Time until it is unloaded as idle; `None` when it is not.
    pub expires: Option<Duration>,
}

/// An action that freed memory, or was meant to.
#[derive(Clone, Debug)]
pub struct ActionRecord {
    /// Time at which it was finished.
    pub at: SystemTime,
    /// One of `evict`, `unload`, `idle`, `release_caches`, `shrink_batches` and `shed`.
    pub action: &'static str,
    /// The model that was unloaded.
    pub model: Option<EntryKey>,
    /// Pressure level at that time.
    pub level: PressureLevel,
    /// Reason, with numbers.
    pub reason: String,
    /// Memory of this process that was freed; `None` when it was not measured separately.
    pub freed: Option<Bytes>,
    /// Time from the start of the action to the release of the memory.
    pub duration: Duration,
}

/// Memory that a flush frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// All models that are not pinned.
    All,
    /// The models that are not pinned and had no request for this time.
    Unused(Duration),
    /// The scratch memory of all models and the free memory that the allocator keeps. No model is
    /// unloaded.
    Caches,
}

/// Result of a flush.
#[derive(Clone, Debug)]
pub struct FlushResult {
    /// Models that were unloaded.
    pub unloaded: Vec<EntryKey>,
    /// Sample before the first unload.
    pub before: Sample,
    /// Sample after the last unload.
    pub after: Sample,
    /// Time from the request to the last release.
    pub duration: Duration,
}

/// Returns the thresholds of the pressure levels in these settings.
pub fn thresholds(settings: &Settings) -> Thresholds {
    let memory = &settings.memory;
    Thresholds {
        moderate: memory.pressure.moderate,
        high: memory.pressure.high,
        critical: memory.pressure.critical,
        min_free: memory.min_free,
        quiet: memory.pressure.recovery_time,
    }
}
