//! Defines the wire types of memory.

use serde::{Deserialize, Serialize};

use super::ErrorBody;

/// Answer of `GET /api/memory/status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Pressure level: `normal`, `moderate`, `high` or `critical`.
    pub level: String,
    /// Last cause of the level; `null` when it is `normal`.
    pub cause: Option<String>,
    /// Source of notifications about memory pressure.
    pub source: String,
    /// Whether requests are shed because memory is short.
    pub shedding: bool,
    /// Headroom: memory that a model may take without an eviction.
    pub headroom_bytes: u64,
    /// Used share of the tightest limit in percent, or of the machine's memory without a limit;
    /// `null` where the system does not report it.
    pub used_percent: Option<f64>,
    /// Memory of the weights of all models in `models`.
    #[serde(default)]
    pub total_loaded_bytes: u64,
    /// Numbers of the models in `models` by their state.
    #[serde(default)]
    pub model_counts: ModelCounts,
    /// Memory in use.
    #[serde(flatten)]
    pub measured: MeasuredMemory,
    /// Limit of the configuration or of `PUT /api/memory/limit`; `null` when only the kernel's
    /// limits apply.
    pub configured_limit_bytes: Option<u64>,
    /// Limits of the control group and of its parents, and the configured limit.
    pub limits: Vec<MemoryLimit>,
    /// Memory of the machine.
    pub system: SystemMemory,
    /// Models that are resident, are being loaded or unloaded, or were refused: by name, or in the
    /// order of the parameter `sort`.
    pub models: Vec<ModelMemory>,
    /// Last actions against pressure, newest first.
    pub actions: Vec<MemoryAction>,
}

/// Numbers of models by their state. Models that were unloaded or evicted are in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCounts {
    /// Models in memory (`resident`).
    pub loaded: usize,
    /// Models that are being loaded.
    pub loading: usize,
    /// Models that drain before they are unloaded (`leaving`).
    pub unloading: usize,
    /// Models whose last load failed (`failed`).
    pub error: usize,
}

/// Memory of this process and its control group, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasuredMemory {
    /// Memory of the control group that the kernel cannot reclaim.
    pub unreclaimable_bytes: u64,
    /// Anonymous and shared memory of this process.
    pub process_bytes: u64,
    /// Pages of mapped files in the control group, such as weights.
    pub mapped_bytes: u64,
    /// Swap used by the control group.
    pub swap_bytes: u64,
    /// Time that the control group lost waiting for memory.
    pub pressure: Option<Pressure>,
}

/// A limit.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// Size of the limit.
    pub bytes: u64,
    /// Memory that counts towards the limit.
    pub unreclaimable_bytes: u64,
    /// File or configuration key that sets the limit.
    pub file: String,
}

/// Share of time in which tasks waited for memory, in percent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pressure {
    /// Share for at least one task, over the last 10 s.
    pub some_avg10_percent: f32,
    /// Share for at least one task, over the last 60 s.
    pub some_avg60_percent: f32,
    /// Share for all tasks at once, over the last 10 s.
    pub full_avg10_percent: f32,
}

/// Memory of the machine, in bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct SystemMemory {
    /// Total memory; `null` where the system does not report it.
    pub total_bytes: Option<u64>,
    /// Memory that programs can get without swapping.
    pub available_bytes: Option<u64>,
    /// Total swap.
    pub swap_total_bytes: u64,
    /// Free swap.
    pub swap_free_bytes: u64,
    /// Time that the machine lost waiting for memory.
    pub pressure: Option<Pressure>,
}

/// Memory of one model.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelMemory {
    /// Id of the model, for requests.
    pub id: String,
    /// Version of the model.
    pub version: String,
    /// `loading`, `resident`, `leaving` (it drains), `unloaded`, `evicted` or `failed`.
    pub residency: String,
    /// Reason why the model is not in memory, if it failed or did not fit.
    pub problem: Option<String>,
    /// Memory of the weights.
    pub weight_bytes: u64,
    /// Estimated maximum of its memory, including the longest passes.
    pub peak_bytes: u64,
    /// Priority from 1 (evicted last) to 5 (evicted first).
    pub priority: u8,
    /// Whether the model is excluded from eviction.
    pub pinned: bool,
    /// Time since the last use; `null` when the model is not in memory.
    pub idle_seconds: Option<u64>,
    /// Time until the model is unloaded because it is idle; `null` when it is not unloaded for that
    /// reason.
    pub expires_in_seconds: Option<u64>,
}

/// An action against memory pressure.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryAction {
    /// Time of its end, in seconds since 1970.
    pub at: u64,
    /// `evict`, `unload`, `idle`, `release_caches`, `shrink_batches` or `shed`.
    pub action: String,
    /// Model that was unloaded.
    pub model: Option<String>,
    /// Pressure level at that time.
    pub level: String,
    /// Reason, for people.
    pub reason: String,
    /// Bytes by which the memory of this process shrank.
    pub freed_bytes: Option<u64>,
    /// Time from the decision to the release of the memory.
    pub duration_ms: u64,
}

/// Body of `POST /api/memory/flush`; optional. Without one, all models are unloaded that are not
/// pinned.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlushRequest {
    /// Duration such as `10m`: only models without a request for so long are unloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_for: Option<String>,
    /// Whether only caches are cleared: the scratch memory of the models, and the free memory that
    /// the allocator keeps. No model is unloaded.
    pub caches_only: bool,
}

/// Answer of `POST /api/memory/flush`.
#[derive(Debug, Serialize, Deserialize)]
pub struct FlushResponse {
    /// Models that were unloaded.
    pub unloaded: Vec<String>,
    /// Memory before the first model was unloaded.
    pub before: MeasuredMemory,
    /// Memory after the last model was unloaded.
    pub after: MeasuredMemory,
    /// Bytes by which the memory of this process shrank.
    pub freed_bytes: u64,
    /// Time from the request to the last release.
    pub duration_ms: u64,
}

/// Body of `POST /api/memory/models/{id}/load`; optional.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadModelRequest {
    /// Whether the model is excluded from eviction until the next start. If absent, the
    /// configuration decides.
    pub pinned: Option<bool>,
    /// Longest wait for the load, such as `2m`; 30 s if absent, and at most 5 min. The load
    /// continues afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// Answer of `POST` and `DELETE` on `/api/memory/models/{id}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ResidencyChange {
    /// The model, as `id@version`.
    pub model: String,
    /// Whether the model was in memory before.
    pub was_resident: bool,
    /// Memory of the weights; absent after an unload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Arithmetic of the model: `f32`, `bf16` or `int8`; absent after an unload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Duration in milliseconds.
    pub duration_ms: u64,
}

/// Body of `POST /api/memory/load`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadModelsRequest {
    /// Names of the models, at most 32. They are loaded in this order.
    pub models: Vec<String>,
    /// Whether the models are excluded from eviction until the next start. If absent, the
    /// configuration decides.
    #[serde(default)]
    pub pinned: Option<bool>,
    /// Longest wait for all loads together, as in [`LoadModelRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// Answer of `POST /api/memory/load`.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoadedModels {
    /// Number of models that are in memory now.
    pub loaded: usize,
    /// Result for each name, in the order of the request.
    pub results: Vec<LoadResult>,
}

/// Result of one load. Exactly one of its two optional fields is present.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoadResult {
    /// Name in the request.
    pub name: String,
    /// The load, if it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<ResidencyChange>,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Body and answer of `PUT /api/memory/limit`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryLimitSetting {
    /// Size with a unit, such as `"512MiB"`, or `"auto"` for only the kernel's limits.
    pub limit: String,
}
