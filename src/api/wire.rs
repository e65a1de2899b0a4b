//! What clients see: the only types that are read from and written to requests and answers.
//!
//! OpenAI's fields and their meaning: <https://platform.openai.com/docs/api-reference/embeddings>.

pub mod configuration;
pub mod events;
pub mod memory;
pub mod ollama;
pub mod rank;
pub mod rollback;
pub mod sandbox;
pub mod tei;
pub mod tenants;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/embeddings`.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    /// What to embed. Nothing at all is refused as an empty list is, so that the error names the field.
    #[serde(default)]
    pub input: Input,
    /// Which model; the default one when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// `float` (the default) or `base64`.
    #[serde(default)]
    pub encoding_format: Option<String>,
    /// Cut vectors to this length and scale them to length 1 again.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// An identifier of the client's own user; accepted and not used.
    #[serde(default)]
    pub user: Option<String>,
    /// Which of the model's prompts to put before each text; beyond OpenAI.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// `query` or `passage`: the model's prompt for it, when no name is given; beyond OpenAI.
    #[serde(default)]
    pub input_type: Option<String>,
    /// `false` refuses texts that are too long, whose end is left out otherwise; beyond OpenAI.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Whether another model may answer when this one cannot; beyond OpenAI.
    #[serde(default)]
    pub allow_fallback: Option<bool>,
    /// Models whose vectors of the same texts are wanted as well; beyond OpenAI.
    #[serde(default)]
    pub additional_models: Option<Vec<String>>,
}

/// One text or several, as texts or as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Texts.
    Texts(Vec<String>),
    /// Token ids of each text.
    Ids(Vec<Vec<u32>>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Texts(Vec::new())
    }
}

/// Answer of `POST /v1/embeddings`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One for each input, in its order.
    pub data: Vec<Embedding>,
    /// The model that answered.
    pub model: String,
    /// What was counted.
    pub usage: Usage,
    /// What `additional_models` gave, in their order; beyond OpenAI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<AdditionalEmbeddings>,
}

/// The vectors of the same texts by another model.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdditionalEmbeddings {
    /// The model that answered.
    pub model: String,
    /// Its version.
    pub version: String,
    /// The beginning of the digest of its manifest.
    pub revision: String,
    /// The identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Length of one vector.
    pub dimensions: usize,
    /// One for each input, in its order.
    pub data: Vec<Embedding>,
    /// What was counted.
    pub usage: Usage,
}

/// One vector.
#[derive(Debug, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// The position of its input.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
    /// Tokens of the text, special tokens included; beyond OpenAI.
    pub tokens_provided: usize,
    /// Of these, those that the vector is made of; beyond OpenAI.
    pub tokens_used: usize,
}

/// A vector in the form that was asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers, `[dimensions]`.
    Float(Vec<f32>),
    /// The same as little-endian f32 in base64.
    Base64(String),
}

/// What was counted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens computed, special tokens included.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// Answer of `GET /v1/models`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// Every model that can be asked for.
    pub data: Vec<Model>,
}

/// One model.
#[derive(Debug, Serialize, Deserialize)]
pub struct Model {
    /// The name to ask for it: its id, or `id@version` or `id@revision` where the id means another.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When it was installed, in seconds since 1970.
    pub created: u64,
    /// `caxton`.
    pub owned_by: String,
    /// Its version.
    pub version: String,
    /// The beginning of the digest of its manifest.
    pub revision: String,
    /// Whether it is what the id alone means.
    pub current: bool,
    /// Aliases that mean it.
    pub aliases: Vec<String>,
    /// Aliases some of whose requests it answers.
    pub canary_of: Vec<String>,
    /// Length of its vectors.
    pub dimensions: usize,
    /// Longest input in tokens.
    pub max_sequence_length: usize,
    /// The identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Other models whose vectors have the same length: they fit into the same index.
    pub compatible_dimensions: Vec<String>,
    /// Of these, those of the same embedding space: their vectors may be compared.
    pub compatible_vectors: Vec<String>,
    /// Names of its prompts.
    pub prompts: Vec<String>,
}

/// An installed package, as `/status` and `/api/packages` show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Package {
    /// The name to ask for it.
    pub id: String,
    /// Its version.
    pub version: String,
    /// The beginning of the digest of its manifest.
    pub revision: String,
    /// Whether it is what the id alone means.
    pub current: bool,
    /// `bundled`, `dropped` or `installed`.
    pub origin: String,
    /// `untested`, `available`, `disabled`, `corrupt` or `quarantined`.
    pub status: String,
    /// Why it is corrupt, disabled or quarantined, or could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// `absent`, `loading`, `resident`, `leaving`, `unloaded`, `evicted` or `failed`; `null` when no daemon runs.
    pub residency: Option<String>,
    /// Memory that its weights take, in bytes; without the table of words, which is read in place from the store.
    pub resident_bytes: u64,
    /// What it is computed in, while it is in memory.
    pub arithmetic: Option<Arithmetic>,
    /// Requests waiting.
    pub waiting: usize,
    /// Length of its vectors.
    pub dimensions: usize,
    /// Longest input in tokens.
    pub max_sequence_length: usize,
    /// How its weights are stored.
    pub precision: String,
    /// `model_type` of the encoder.
    pub architecture: String,
    /// The identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Its prompts.
    pub prompts: BTreeMap<String, String>,
    /// Languages, as BCP 47 tags.
    pub languages: Vec<String>,
    /// Licence of the model.
    pub license: String,
    /// Where the model comes from.
    pub source: Option<String>,
    /// Sum of the sizes of its files.
    pub size_bytes: u64,
    /// SHA-256 of the package it was installed from.
    pub package_sha256: String,
    /// SHA-256 of its manifest, which names its content: the revision with all digits.
    #[serde(default)]
    pub manifest_sha256: String,
    /// The key that vouched for it and the file of that key, as `KEY (FILE)`; `null` when no key was configured then, or
    /// it came with the appliance.
    #[serde(default)]
    pub signed_by: Option<String>,
    /// When it was installed, in seconds since 1970.
    pub installed_at: u64,
    /// When its files were last found to be right, in seconds since 1970.
    pub last_validated_at: u64,
    /// How many requests have used it.
    pub access_count: u64,
    /// When a request last used it, in seconds since 1970.
    pub last_access_at: Option<u64>,
}

/// What a model is computed in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arithmetic {
    /// `f32`, `int8` or `bf16`.
    pub precision: String,
    /// The instructions that multiply, such as `avx2`.
    pub isa: String,
    /// Why this precision.
    pub reason: String,
}

/// Answer of `POST /api/packages`.
#[derive(Debug, Serialize, Deserialize)]
pub struct InstalledPackage {
    /// What is installed now.
    pub package: Package,
    /// Whether exactly this was installed already.
    pub existed: bool,
    /// What left the store for it, as `id@version`.
    pub removed: Vec<String>,
    /// `none`, `unchecked`, or the key that signed it.
    pub signature: String,
}

/// Answer of `GET /api/packages`.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackageList {
    /// Every installed package.
    pub packages: Vec<Package>,
}

/// Answer of `GET /status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Whether the default model can answer: at once, or once it is loaded again.
    pub ready: bool,
    /// The model that answers when a request names none.
    pub default_model: String,
    /// Threads that compute one model.
    pub threads: usize,
    /// Resident memory of the daemon.
    pub resident_memory_bytes: Option<u64>,
    /// How short memory is: `normal`, `moderate`, `high` or `critical`.
    pub memory_level: String,
    /// Where memory pressure is heard.
    pub memory_pressure_source: String,
    /// Requests that may wait for one model.
    pub queue_size: usize,
    /// Memory of the machine.
    pub machine_memory_bytes: Option<u64>,
    /// Memory of the machine that programs may still get.
    pub machine_memory_available_bytes: Option<u64>,
    /// What does not work as it should while models are served, a sentence each.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// The disk of the store.
    #[serde(default)]
    pub store: StoreCondition,
    /// What the daemon has taken from itself.
    #[serde(default)]
    pub sandbox: sandbox::Sandbox,
    /// The configuration.
    pub configuration: Configuration,
    /// Every tenant.
    pub tenants: Vec<tenants::Tenant>,
    /// Packages that were refused and are kept, the last one first; `null` when the drop directory cannot be read.
    #[serde(default)]
    pub quarantine: Option<Vec<Quarantined>>,
    /// Packages that were installed without a signature, though keys are configured now, as `id@version`.
    #[serde(default)]
    pub unsigned: Vec<String>,
    /// Every installed package.
    pub packages: Vec<Package>,
}

/// The disk of the store.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct StoreCondition {
    /// The kind of its file system.
    pub file_system: String,
    /// Whether it takes writes.
    pub writable: bool,
    /// Whether the kernel checks the files of models by fs-verity.
    pub verity: bool,
    /// Why it does not.
    pub verity_reason: Option<String>,
}

/// A package that was refused.
#[derive(Debug, Serialize, Deserialize)]
pub struct Quarantined {
    /// The name of its file.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// The configuration that is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// The files it was read from, in the order in which they were applied.
    pub files: Vec<String>,
    /// Whether it is the one that was kept on disk, because the files were wrong when the daemon started.
    #[serde(default)]
    pub last_good: bool,
    /// How often it has been applied.
    pub generation: u64,
    /// What was wrong with the files when they were last read; the last good configuration is in force then.
    pub problems: Vec<String>,
    /// Keys whose new value waits for a restart.
    pub restart_needed: Vec<String>,
}

/// Answer of `GET /api/models/stats`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelStatsList {
    /// Every installed model, and those that left in the last 30 days and were used.
    pub models: Vec<ModelStats>,
}

/// How much a model is used, how fast it is, and when it will be used next.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelStats {
    /// The name to ask for it.
    pub id: String,
    /// Its version.
    pub version: String,
    /// The beginning of the digest of its manifest.
    pub revision: String,
    /// Whether it is installed now.
    pub installed: bool,
    /// Requests that reached it, except those whose client left.
    pub requests: u64,
    /// Of these, those that got no vectors.
    pub failures: u64,
    /// Share of those that got vectors; `null` before the first.
    pub success_rate: Option<f64>,
    /// Texts of those that got vectors.
    pub texts: u64,
    /// Tokens of those that got vectors.
    pub tokens: u64,
    /// Of all that got vectors, from the queue to the vectors.
    pub latency_ms: Option<Percentiles>,
    /// Of the last 128 to 256 of them, the last counting more.
    pub recent_latency_ms: Option<Percentiles>,
    /// How often it was loaded.
    pub loads: u64,
    /// What loading takes, later loads counting more.
    pub load_ms: Option<f64>,
    /// Requests an hour: of late, or as usual in this hour of the week and the next, whichever is more.
    pub uses_per_hour: f64,
    /// For each hour of the week, from Monday 00:00 UTC on, the share of the past weeks in which it was used, later
    /// weeks counting more; `null` before there are three weeks.
    pub use_by_hour: Option<Vec<f64>>,
    /// When it will probably be used next, within a day.
    pub next_use: Option<NextUse>,
    /// When it was used first, in seconds since 1970.
    pub first_used_at: Option<u64>,
    /// When it was used last, in seconds since 1970.
    pub last_used_at: Option<u64>,
}

/// Percentiles of a time, in milliseconds; off by a factor of √2 at most.
#[derive(Debug, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
}

/// An hour in which a model will probably be used.
#[derive(Debug, Serialize, Deserialize)]
pub struct NextUse {
    /// When it begins, in seconds since 1970; now if it has begun.
    pub at: u64,
    /// The share of the past weeks in which the model was used in it.
    pub probability: f64,
}

/// Answer of `GET /api/models/recommendations`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recommendations {
    /// Models that can be asked for, the best first.
    pub recommendations: Vec<Recommendation>,
}

/// A model, and why.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recommendation {
    /// The name to ask for it.
    pub id: String,
    /// Its version.
    pub version: String,
    /// `made_for_it`, `unknown` or `made_for_another`.
    pub suitability: String,
    /// `fast`, `balanced` or `quality`.
    pub tier: String,
    /// Whether its latency was measured on this device; if not it may be slower than was asked.
    pub measured: bool,
    /// The 95th percentile of its latest latencies.
    pub p95_ms: Option<f64>,
    /// `resident`, `fits` or `does_not_fit`.
    pub memory: String,
    /// All that in a sentence.
    pub reason: String,
}

/// Every failure.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong, in OpenAI's shape.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// `invalid_request_error`, `permission_error`, `not_found_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: String,
    /// How far the load is that keeps the model from answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<Loading>,
}

/// A model on its way into memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// The name that was asked for.
    pub model: String,
    /// For how long it has been loading.
    pub elapsed_ms: u64,
    /// How long that usually takes; `null` when it was never loaded.
    pub expected_ms: Option<u64>,
}
