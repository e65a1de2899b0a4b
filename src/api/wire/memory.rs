//! Memory as clients see it.

use serde::{Deserialize, Serialize};

/// Answer of `GET /api/memory/status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// `normal`, `moderate`, `high` or `critical`.
    pub level: String,
    /// What last was a reason for the level; `null` when it is normal.
    pub cause: Option<String>,
    /// Where pressure is heard.
    pub source: String,
    /// Whether requests are refused because memory is short.
    pub shedding: bool,
    /// What a model may take without any other leaving.
    pub room_bytes: u64,
    /// What is used, and what may be.
    #[serde(flatten)]
    pub measured: MeasuredMemory,
    /// The limit of the configuration or of `PUT /api/memory/limit`; `null` when only the kernel limits.
    pub configured_limit_bytes: Option<u64>,
    /// The limits of the control group and of those above it, and the configured one.
    pub limits: Vec<MemoryLimit>,
    /// The machine.
    pub system: SystemMemory,
    /// Models that are in memory, on their way there or away from it, or were refused.
    pub models: Vec<ModelMemory>,
    /// What was done last, newest first.
    pub actions: Vec<MemoryAction>,
}

/// Memory of this process and its control group, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasuredMemory {
    /// Of the control group: what the kernel cannot take back.
    pub unreclaimable_bytes: u64,
    /// Of this process: anonymous and shared memory.
    pub process_bytes: u64,
    /// Of the control group: pages of mapped files, such as weights.
    pub mapped_bytes: u64,
    /// Of the control group: in swap.
    pub swap_bytes: u64,
    /// Of the control group: time lost to memory.
    pub pressure: Option<Pressure>,
}

/// A limit.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// Where it lies.
    pub bytes: u64,
    /// What counts towards it.
    pub unreclaimable_bytes: u64,
    /// The file or the key that says so.
    pub file: String,
}

/// Share of the time in which tasks waited for memory, in percent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task, over the last 10 s.
    pub some_avg10_percent: f32,
    /// Some task, over the last 60 s.
    pub some_avg60_percent: f32,
    /// All tasks, over the last 10 s.
    pub full_avg10_percent: f32,
}

/// Memory of the machine, in bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct SystemMemory {
    /// All of it; `null` where the system does not tell.
    pub total_bytes: Option<u64>,
    /// What programs can have without swapping.
    pub available_bytes: Option<u64>,
    /// All swap.
    pub swap_total_bytes: u64,
    /// Free swap.
    pub swap_free_bytes: u64,
    /// Time lost to memory.
    pub pressure: Option<Pressure>,
}

/// A model and its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelMemory {
    /// The name to ask for it.
    pub id: String,
    /// Its version.
    pub version: String,
    /// `loading`, `resident`, `leaving`, `unloaded`, `evicted` or `failed`.
    pub residency: String,
    /// Why it is not in memory, if it failed or did not fit.
    pub problem: Option<String>,
    /// What its weights take.
    pub weight_bytes: u64,
    /// What it was estimated to take at most, with the memory of its longest passes.
    pub peak_bytes: u64,
    /// From 1, kept longest, to 5, leaves first.
    pub priority: u8,
    /// Whether it stays whatever happens.
    pub pinned: bool,
    /// How long it was not used; `null` when it is not in memory.
    pub idle_seconds: Option<u64>,
    /// In how long it leaves for want of use; `null` when it does not.
    pub expires_in_seconds: Option<u64>,
}

/// Something that was done for memory's sake.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryAction {
    /// When it was finished, in seconds since 1970.
    pub at: u64,
    /// `evict`, `unload`, `idle`, `release_caches`, `shrink_batches` or `shed`.
    pub action: String,
    /// The model that left.
    pub model: Option<String>,
    /// How short memory was.
    pub level: String,
    /// Why.
    pub reason: String,
    /// What this process held less afterwards.
    pub freed_bytes: Option<u64>,
    /// From the order to the release.
    pub duration_ms: u64,
}

/// Answer of `POST /api/memory/flush`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Models that left.
    pub unloaded: Vec<String>,
    /// Measured before the first left.
    pub before: MeasuredMemory,
    /// Measured after the last had left.
    pub after: MeasuredMemory,
    /// What this process holds less.
    pub freed_bytes: u64,
    /// From the order to the last release.
    pub duration_ms: u64,
}

/// Body of `POST /api/memory/models/{id}/load`; may be left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadModel {
    /// Whether it stays whatever happens, from now until the next start; left out, the configuration decides.
    pub pinned: Option<bool>,
}

/// Answer of `POST` and `DELETE` on `/api/memory/models/{id}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelMoved {
    /// The model.
    pub model: String,
    /// Whether it was in memory before.
    pub was_resident: bool,
    /// How long it took.
    pub duration_ms: u64,
}

/// Body and answer of `PUT /api/memory/limit`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// A size with its unit, such as `"512MiB"`, or `"auto"` to have only the kernel's limits.
    pub limit: String,
}
