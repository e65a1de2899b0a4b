//! Defines the wire types: requests and answers contain only these types.
//!
//! OpenAI's fields and their meaning: <https://platform.openai.com/docs/api-reference/embeddings>.

pub mod approval;
pub mod cohere;
pub mod configuration;
pub mod events;
mod input;
pub mod intake;
pub mod memory;
pub mod ollama;
pub mod rank;
pub mod rollback;
pub mod sandbox;
pub mod tei;
pub mod tenants;
pub mod truncate;
pub mod validation;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::service::Input;

/// Body of `POST /v1/embeddings`.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    /// Texts or token ids to embed. A missing field is refused like an empty list, so that the
    /// error names the field.
    #[serde(default)]
    pub input: Input,
    /// Name of the model; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// Format of the vectors: `float` (the default) or `base64`.
    #[serde(default)]
    pub encoding_format: Option<String>,
    /// Length to which vectors are cut; they are scaled to length 1 again.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// Name of `dimensions` in the APIs of Voyage and Mistral.
    #[serde(default)]
    pub output_dimension: Option<usize>,
    /// Type of the vectors' numbers: `float` (the default), `int8`, `uint8`, `binary` or `ubinary`,
    /// as in the APIs of Voyage and Mistral.
    #[serde(default)]
    pub output_dtype: Option<String>,
    /// Identifier of the client's own user; accepted and ignored.
    #[serde(default)]
    pub user: Option<String>,
    /// Name of the model's prompt to put before each text; not in OpenAI's API.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// `query` or `passage`: selects the model's prompt for it if `prompt_name` is absent; not in
    /// OpenAI's API.
    #[serde(default)]
    pub input_type: Option<String>,
    /// `false` or `"NONE"` refuses texts that are too long, `"START"` cuts off their beginning.
    /// Otherwise their end is cut off. Not in OpenAI's API.
    #[serde(default)]
    pub truncate: Option<truncate::Truncate>,
    /// Whether a fallback may answer when the model is not available; not in OpenAI's API.
    #[serde(default)]
    pub allow_fallback: Option<bool>,
    /// Models that embed the same texts in addition; not in OpenAI's API.
    #[serde(default)]
    pub additional_models: Option<Vec<String>>,
}

/// Answer of `POST /v1/embeddings`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EmbeddingsResponse {
    /// Constant `list`.
    pub object: String,
    /// One vector for each input, in the same order.
    pub data: Vec<Embedding>,
    /// Id of the model that answered.
    pub model: String,
    /// Token counts.
    pub usage: Usage,
    /// Form of the vectors, unless they are `float`; not in OpenAI's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector_form: Option<VectorForm>,
    /// Vectors of `additional_models`, in the same order; not in OpenAI's API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<AdditionalEmbeddings>,
}

/// Vectors of the same texts by another model.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdditionalEmbeddings {
    /// Id of the model that answered.
    pub model: String,
    /// Version of the model.
    pub version: String,
    /// First digits of the digest of the manifest.
    pub revision: String,
    /// Identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Length of one vector.
    pub dimensions: usize,
    /// One vector for each input, in the same order.
    pub data: Vec<Embedding>,
    /// Token counts.
    pub usage: Usage,
}

/// One vector.
#[derive(Debug, Serialize, Deserialize)]
pub struct Embedding {
    /// Constant `embedding`.
    pub object: String,
    /// Index of the input.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
    /// Tokens of the text, special tokens included; not in OpenAI's API.
    pub tokens_provided: usize,
    /// Tokens from which the vector is computed, at most `tokens_provided`; not in OpenAI's API.
    pub tokens_used: usize,
}

/// A vector in the requested format.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers, `[dimensions]`.
    Float(Vec<f32>),
    /// Signed bytes of `int8`, `[dimensions]`, or of `binary`, `[dimensions / 8]`.
    Signed(Vec<i8>),
    /// Unsigned bytes of `uint8`, `[dimensions]`, or of `ubinary`, `[dimensions / 8]`.
    Unsigned(Vec<u8>),
    /// Bytes in base64: numbers as little-endian f32, or the bytes of the other types.
    Base64(String),
}

/// Form of vectors that are not `float`.
#[derive(Debug, Serialize, Deserialize)]
pub struct VectorForm {
    /// Type of the numbers: `int8`, `uint8`, `binary` or `ubinary`.
    pub output_dtype: String,
    /// Factor from the components of the vector of length 1 to the numbers; absent for bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Number that is added to each scaled component, or to each byte of bits.
    pub offset: i16,
    /// Order of the bits in a byte, `msb_first`; absent for `int8` and `uint8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bit_order: Option<String>,
}

/// Token counts of an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens computed, special tokens included.
    pub prompt_tokens: usize,
    /// Same number as `prompt_tokens`.
    pub total_tokens: usize,
}

/// Answer of `GET /v1/models`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// Constant `list`.
    pub object: String,
    /// All models that can be requested.
    pub data: Vec<Model>,
}

/// One model.
#[derive(Debug, Serialize, Deserialize)]
pub struct Model {
    /// Name for requests: the id, or `id@version` or `id@revision` if the id alone means another
    /// model.
    pub id: String,
    /// Constant `model`.
    pub object: String,
    /// Time of the installation, in seconds since 1970.
    pub created: u64,
    /// Constant `caxton`.
    pub owned_by: String,
    /// Version of the model.
    pub version: String,
    /// First digits of the digest of the manifest.
    pub revision: String,
    /// Whether the id alone means this model.
    pub current: bool,
    /// Whether the model is an update that waits for approval: the id alone does not mean it yet.
    #[serde(default)]
    pub awaits_approval: bool,
    /// Aliases that mean this model.
    pub aliases: Vec<String>,
    /// Aliases for which this model is the canary and answers a part of the requests.
    pub canary_of: Vec<String>,
    /// Task: `embedding`, or `rerank` for a model that scores pairs of texts and computes no
    /// vectors.
    #[serde(default)]
    pub task: String,
    /// Heads for tokens: `sparse` and `multi-vector`; absent if the model has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_heads: Vec<String>,
    /// Length of the vectors; in a reranker, of the vector of its self-test.
    pub dimensions: usize,
    /// Smaller lengths for which the model was trained, ascending.
    #[serde(default)]
    pub matryoshka_dimensions: Vec<usize>,
    /// Longest input in tokens.
    pub max_sequence_length: usize,
    /// Identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Text with its vector, by which a client checks that new vectors belong to its index.
    pub self_test: ModelSelfTest,
    /// Other models whose vectors have the same length, so that they fit into the same index.
    pub compatible_dimensions: Vec<String>,
    /// Other models of the same embedding space, so that their vectors may be compared.
    pub compatible_vectors: Vec<String>,
    /// Names of the prompts.
    pub prompts: Vec<String>,
}

/// The text of a model's self-test with its vector: a canary for the vectors in an index.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelSelfTest {
    /// Text, which is embedded without a prompt.
    pub text: String,
    /// Vector of the text that the package declares, `[dimensions]`, rounded to three digits.
    pub vector: Vec<f32>,
    /// Lowest cosine to `vector` with which a model of this build serves, in any precision.
    pub min_cosine: f64,
}

/// An installed package, as `/status` and `/api/packages` show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Package {
    /// Id of the model, for requests.
    pub id: String,
    /// Version of the model.
    pub version: String,
    /// First digits of the digest of the manifest.
    pub revision: String,
    /// Whether the id alone means this model.
    pub current: bool,
    /// Whether the model is an update that waits for approval: the id alone does not mean it yet.
    #[serde(default)]
    pub awaits_approval: bool,
    /// Version for which this model answers under the id alone, because that version is corrupt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers_for: Option<String>,
    /// Origin: `bundled`, `dropped` or `installed`.
    pub origin: String,
    /// State in the store: `untested`, `available`, `disabled`, `corrupt` or `quarantined`.
    pub status: String,
    /// Reason why the package is corrupt, disabled or quarantined, or why the model could not be
    /// loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// State in memory: `absent`, `loading`, `resident`, `leaving` (it drains), `unloaded`,
    /// `evicted` or `failed`; `null` when no daemon runs.
    pub residency: Option<String>,
    /// Memory of the weights in bytes, without the word embeddings, which are read in place from
    /// the store.
    pub resident_bytes: u64,
    /// Arithmetic of the resident model; `null` when the model is not in memory.
    pub arithmetic: Option<Arithmetic>,
    /// Requests in the queue of the model.
    pub waiting: usize,
    /// Task: `embedding`, or `rerank` for a model that scores pairs of texts and computes no
    /// vectors.
    #[serde(default)]
    pub task: String,
    /// Heads for tokens: `sparse` and `multi-vector`; absent if the model has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_heads: Vec<String>,
    /// Length of the vectors; in a reranker, of the vector of its self-test.
    pub dimensions: usize,
    /// Smaller lengths for which the model was trained, ascending.
    #[serde(default)]
    pub matryoshka_dimensions: Vec<usize>,
    /// Longest input in tokens.
    pub max_sequence_length: usize,
    /// Type of the stored weights: `f32`, `f16`, `int8` or `int4-table`.
    pub precision: String,
    /// `model_type` of the encoder.
    pub architecture: String,
    /// Identity under which two vectors may be compared.
    pub embedding_space: String,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// Languages as BCP 47 tags.
    pub languages: Vec<String>,
    /// Licence of the model.
    pub license: String,
    /// Origin of the model before it was packed, from the manifest.
    pub source: Option<String>,
    /// Revision of `source`, from the manifest.
    #[serde(default)]
    pub source_revision: Option<String>,
    /// Files of the package; only in the description of a single package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PackageFile>,
    /// Sum of the sizes of the package's files.
    pub size_bytes: u64,
    /// SHA-256 of the installed package.
    pub package_sha256: String,
    /// SHA-256 of the manifest, which identifies the contents: the revision with all digits.
    #[serde(default)]
    pub manifest_sha256: String,
    /// Key that signed the package, with the file of that key, as `KEY (FILE)`. `null` if no key
    /// was configured at the installation, or if the package is bundled.
    #[serde(default)]
    pub signed_by: Option<String>,
    /// Time of the installation, in seconds since 1970.
    pub installed_at: u64,
    /// Time of the last successful verification of the files, in seconds since 1970.
    pub last_validated_at: u64,
    /// Number of requests that used the model.
    pub access_count: u64,
    /// Time of the last request that used the model, in seconds since 1970.
    pub last_access_at: Option<u64>,
}

/// A file of an installed package, from its manifest.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackageFile {
    /// Name of the file.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Arithmetic of a resident model.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arithmetic {
    /// Precision: `f32`, `int8` or `bf16`.
    pub precision: String,
    /// Instruction set of the products, such as `avx2`.
    pub isa: String,
    /// Reason for the precision.
    pub reason: String,
}

/// Answer of `POST /api/packages`.
#[derive(Debug, Serialize, Deserialize)]
pub struct InstalledPackage {
    /// The installed package.
    pub package: Package,
    /// Whether the same contents were already installed.
    pub existed: bool,
    /// Packages that were removed, as `id@version`: to make space in the store, or because they
    /// have the same id and version.
    pub removed: Vec<String>,
    /// `none`, `unchecked` (no key is configured), or the key that signed the package.
    pub signature: String,
}

/// Answer of `GET /api/packages`.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackageList {
    /// All installed packages.
    pub packages: Vec<Package>,
}

/// Answer of `GET /status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time since the start of the daemon, in seconds.
    pub uptime_seconds: u64,
    /// Whether the default model can answer, at once or after it is loaded again.
    pub ready: bool,
    /// Name of the model that answers requests without a model name.
    pub default_model: String,
    /// Threads that compute one model.
    pub threads: usize,
    /// Resident memory of the daemon.
    pub resident_memory_bytes: Option<u64>,
    /// Pressure level: `normal`, `moderate`, `high` or `critical`.
    pub memory_level: String,
    /// Source of notifications about memory pressure.
    pub memory_pressure_source: String,
    /// Longest queue of one model, in requests.
    pub queue_size: usize,
    /// Memory of the machine.
    pub machine_memory_bytes: Option<u64>,
    /// Memory of the machine that is available to programs.
    pub machine_memory_available_bytes: Option<u64>,
    /// Degraded parts of the daemon, one sentence each. Models are served nevertheless.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// Condition of the store's disk.
    #[serde(default)]
    pub store: StoreCondition,
    /// Restrictions that the daemon put on itself.
    #[serde(default)]
    pub sandbox: sandbox::Sandbox,
    /// State of the configuration.
    pub configuration: Configuration,
    /// All tenants.
    pub tenants: Vec<tenants::Tenant>,
    /// Rejected packages in the quarantine, newest first; `null` when the drop directory cannot be
    /// read.
    #[serde(default)]
    pub quarantine: Option<Vec<QuarantinedPackage>>,
    /// Files that are not installed: packages on their way, failed and refused ones, and files that
    /// are not packages. At most 64, those that need an operator first. Only administrators see
    /// them.
    #[serde(default)]
    pub intake: Vec<intake::IncomingPackage>,
    /// Number of further files that are not installed.
    #[serde(default)]
    pub intake_omitted: usize,
    /// Drop directories in the order of their scans, and the bundled directory. Only administrators
    /// see them.
    #[serde(default)]
    pub package_directories: Vec<intake::PackageDirectory>,
    /// Packages that were installed without a signature although keys are configured now, as
    /// `id@version`.
    #[serde(default)]
    pub unsigned: Vec<String>,
    /// All installed packages.
    pub packages: Vec<Package>,
}

/// Condition of the store's disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct StoreCondition {
    /// Type of the file system.
    pub file_system: String,
    /// Whether the file system can be written.
    pub writable: bool,
    /// Whether the kernel verifies the files of models with fs-verity.
    pub verity: bool,
    /// Reason why the kernel does not verify them.
    pub verity_reason: Option<String>,
    /// Time at which the files of all models are hashed next, in seconds since 1970; `null` until
    /// the first packages were examined.
    #[serde(default)]
    pub next_validation_at: Option<u64>,
}

/// A rejected package.
#[derive(Debug, Serialize, Deserialize)]
pub struct QuarantinedPackage {
    /// Name of the package file.
    pub file: String,
    /// Reason for the rejection.
    pub reason: String,
}

/// State of the configuration that is applied.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// Files of the configuration, in the order in which they were applied.
    pub files: Vec<String>,
    /// Whether the daemon uses the saved last good configuration, because the files were wrong at
    /// its start.
    #[serde(default)]
    pub last_good: bool,
    /// Number of times that a configuration was applied.
    pub generation: u64,
    /// Problems of the files when they were last read. If there are any, the last good
    /// configuration stays applied.
    pub problems: Vec<String>,
    /// Keys with a new value that needs a restart.
    pub restart_needed: Vec<String>,
}

/// Answer of `GET /api/models/stats`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelStatsList {
    /// All installed models, and models that were used and were removed in the last 30 days, in the
    /// order of the parameter `sort`.
    pub models: Vec<ModelStats>,
}

/// Usage and latency of a model, and its expected next use.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelStats {
    /// Id of the model, for requests.
    pub id: String,
    /// Version of the model.
    pub version: String,
    /// First digits of the digest of the manifest.
    pub revision: String,
    /// Whether the model is installed now.
    pub installed: bool,
    /// Requests that reached the model, without those that their client cancelled.
    pub requests: u64,
    /// Requests among `requests` that got no vectors.
    pub failures: u64,
    /// Share of `requests` that got vectors; `null` before the first request.
    pub success_rate: Option<f64>,
    /// Texts of the successful requests.
    pub texts: u64,
    /// Tokens of the successful requests.
    pub tokens: u64,
    /// Latency of all successful requests, from the queue to the vectors.
    pub latency_ms: Option<Percentiles>,
    /// Latency of the last 128 to 256 successful requests, with more weight on later ones.
    pub recent_latency_ms: Option<Percentiles>,
    /// Number of times that the model was loaded.
    pub loads: u64,
    /// Smoothed duration of a load, with more weight on later loads.
    pub load_ms: Option<f64>,
    /// Requests an hour: the recent rate, or the usual rate in this or the next hour of the week if
    /// that is higher.
    pub uses_per_hour: f64,
    /// Share of the past weeks in which the model was used, for each hour of the week from Monday
    /// 00:00 UTC. Later weeks have more weight. `null` for the first three weeks.
    pub use_by_hour: Option<Vec<f64>>,
    /// Hours with at least one use; `null` before the first use.
    pub hours_used: Option<HoursUsed>,
    /// Requests of each of the last 14 days (UTC), the oldest day first and today last; `null`
    /// before the first use.
    pub daily_requests: Option<Vec<u64>>,
    /// Expected next use within a day.
    pub next_use: Option<NextUse>,
    /// Time of the first use, in seconds since 1970.
    pub first_used_at: Option<u64>,
    /// Time of the last use, in seconds since 1970.
    pub last_used_at: Option<u64>,
}

/// Numbers of hours in which a model was used.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoursUsed {
    /// Hours of the last seven days.
    pub last_7_days: usize,
    /// Hours of the seven days before.
    pub previous_7_days: usize,
}

/// Percentiles of a duration in milliseconds, exact to a factor of √2.
#[derive(Debug, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// An hour in which a model will probably be used.
#[derive(Debug, Serialize, Deserialize)]
pub struct NextUse {
    /// Start of the hour in seconds since 1970; the current time if it has begun.
    pub at: u64,
    /// Share of the past weeks in which the model was used in this hour.
    pub probability: f64,
}

/// Answer of `GET /api/models/recommendations`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recommendations {
    /// Models that can be requested, the best one first.
    pub recommendations: Vec<Recommendation>,
}

/// A recommended model, with reasons.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recommendation {
    /// Id of the model, for requests.
    pub id: String,
    /// Version of the model.
    pub version: String,
    /// `made_for_it`, `unknown` or `made_for_another`.
    pub suitability: String,
    /// `fast`, `balanced` or `quality`.
    pub tier: String,
    /// Whether the latency was measured on this device. Otherwise it may be longer than requested.
    pub measured: bool,
    /// 95th percentile of the recent latency, in milliseconds.
    pub p95_ms: Option<f64>,
    /// `resident`, `fits` or `does_not_fit`.
    pub memory: String,
    /// All facts in one sentence.
    pub reason: String,
}

/// Body of every failure.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorBody,
}

/// An error in OpenAI's format.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Message for people.
    pub message: String,
    /// `invalid_request_error`, `permission_error`, `not_found_error`, `rate_limit_error` or
    /// `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the wrong field.
    pub param: Option<String>,
    /// Code for programs.
    pub code: String,
    /// Progress of the load, if the model cannot answer because it is being loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadProgress>,
}

/// Progress of a load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Requested name of the model.
    pub model: String,
    /// Time since the load began.
    pub elapsed_ms: u64,
    /// Usual duration of the load; `null` when the model was never loaded.
    pub expected_ms: Option<u64>,
}
