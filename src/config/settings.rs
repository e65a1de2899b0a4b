//! Settings: the checked configuration for the rest of the daemon.
//!
//! Only [`super::load`] uses serde here: it merges checked values and deserializes the settings
//! from the result. No other code makes settings from text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::{Bytes, Percent};

/// The alias that answers requests without a model name.
const DEFAULT: &str = "default";

/// The checked configuration. Every value is within its range.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The socket for clients.
    pub socket: SocketSettings,
    /// Served models, and their use of memory.
    pub memory: MemorySettings,
    /// Sources of packages.
    pub packages: PackageSettings,
    /// Computation of texts.
    pub embedding: EmbeddingSettings,
    /// Settings of single models, by `id` or `id@version`; [`Settings::model`] finds them.
    pub models: BTreeMap<String, ModelSettings>,
    /// Aliases of models, by name. An alias never names another alias.
    pub aliases: BTreeMap<String, AliasSettings>,
    /// Tenants and their permissions. The first one that matches a caller applies.
    pub tenants: Vec<TenantSettings>,
    /// Whether the daemon refuses to start without its complete sandbox. Needs a restart.
    pub require_sandbox: bool,
    /// Logging.
    pub log: LogSettings,
}

impl Settings {
    /// Returns the name that answers a request without a model name: the alias called `default` if
    /// it exists, else [`MemorySettings::embedding_model`], which is the name of a model or of an
    /// alias.
    pub fn default_model(&self) -> &str {
        if self.aliases.contains_key(DEFAULT) { DEFAULT } else { &self.memory.embedding_model }
    }

    /// Returns the settings of one version of a model: those of the version, else those of the
    /// model, else the defaults. Does not merge them: keys that the version lacks do not come from
    /// the model. The idle time of the result is never [`IdleTime::Default`].
    pub fn model(&self, id: &str, version: &str) -> ModelSettings {
        let of_version = self.models.get(&format!("{id}@{version}"));
        let settings = of_version.or_else(|| self.models.get(id)).copied().unwrap_or_default();
        let max_idle_time = match (settings.max_idle_time, self.memory.max_idle_time) {
            (IdleTime::Default, None) => IdleTime::Never,
            (IdleTime::Default, Some(time)) => IdleTime::After(time),
            (own, _) => own,
        };
        ModelSettings { max_idle_time, ..settings }
    }
}

/// The Unix socket.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SocketSettings {
    /// Path of the socket, if systemd does not pass one. Needs a restart.
    pub path: PathBuf,
    /// Permission bits. Needs a restart.
    pub mode: u32,
    /// Group of the socket; `None` leaves that of the daemon. Needs a restart.
    pub group: Option<String>,
    /// Users who may administer the device, besides root and the daemon's own user.
    pub admins: Admins,
    /// Maximum number of connections. A further one takes the slot of a user with more connections,
    /// or is refused with 503. Needs a restart.
    pub max_connections: usize,
    /// Largest request body, except for installing a package.
    pub max_body: Bytes,
    /// Time for requests in progress to finish after SIGTERM.
    pub drain_timeout: Duration,
    /// Status of the answers that refuse a request because of overload, 429 or 503.
    pub overload_status: u16,
}

/// User and group names or numeric ids.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Admins {
    /// Users.
    pub users: Vec<String>,
    /// Groups.
    pub groups: Vec<String>,
}

/// Served models, and their use of memory.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemorySettings {
    /// The model, or an alias of one, that answers when a request names no model and no alias is
    /// called `default`.
    pub embedding_model: String,
    /// The reranker, or an alias of one, that answers when a request to rank documents names no
    /// model. `None` means the model of all other requests.
    pub rerank_model: Option<String>,
    /// Models, or aliases of models, that are the first choice as fallback. The smallest stays in
    /// memory when all others are evicted.
    pub fallback_models: Vec<String>,
    /// Models that may serve as fallback.
    pub fallback_strategy: FallbackStrategy,
    /// Whether a fallback may return vectors of another embedding space to a request that neither
    /// permits nor forbids it.
    pub allow_fallback: bool,
    /// Whether such vectors may also have another length.
    pub allow_dimension_mismatch: bool,
    /// Whether requests to rank or compare texts that name no model use the model that is
    /// recommended for them.
    pub dynamic_selection: bool,
    /// Models loaded at start.
    pub preload_models: Vec<String>,
    /// Whether models are loaded before the hours in which they are usually used.
    pub preload_expected: bool,
    /// Maximum number of models in memory.
    pub max_loaded_models: usize,
    /// Time without a request after which a model is unloaded, unless
    /// [`ModelSettings::max_idle_time`] sets another; `None` means that it stays until its memory
    /// is needed.
    pub max_idle_time: Option<Duration>,
    /// Memory that this daemon may use; `None` means as much as the machine and the limits of its
    /// control group and of those above it permit.
    pub memory_limit: Option<Bytes>,
    /// Memory that stays free below every limit and in the machine. Counts for at most a quarter of
    /// a limit.
    pub min_free: Bytes,
    /// Choice of the model that is evicted first.
    pub eviction_policy: EvictionPolicy,
    /// Thresholds of memory pressure.
    pub pressure: PressureSettings,
    /// The store of verified packages.
    pub model_cache: ModelCacheSettings,
}

impl MemorySettings {
    /// Smallest value of [`Self::memory_limit`].
    pub const LEAST_LIMIT: Bytes = Bytes::mib(1);
    /// Largest value of [`Self::memory_limit`].
    pub const MOST_LIMIT: Bytes = Bytes::mib(1 << 20);
}

/// Models that may serve as fallback for one that is not available.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FallbackStrategy {
    /// Any model of the same embedding space, then of the same length, then those of the list.
    Auto,
    /// The models of [`MemorySettings::fallback_models`] alone.
    Manual,
    /// No model.
    Strict,
}

/// Choice of the model that is evicted first. Pinned models are never evicted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictionPolicy {
    /// The model of the least value: by priority, then by expected use and cost of loading it
    /// again, for its size.
    MemoryPressure,
    /// The least recently used model.
    Lru,
    /// The model that was loaded first.
    Fifo,
    /// No model is ever evicted: loads are refused instead.
    Manual,
}

/// Thresholds of memory pressure. The percentages are shares of the tightest limit less
/// [`MemorySettings::min_free`], and rise strictly.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PressureSettings {
    /// Share of used memory from which idle models are evicted.
    pub moderate: Percent,
    /// Share of used memory from which models in use are evicted, too. If no model may be evicted,
    /// requests are shed, except those to the fallback and to pinned models.
    pub high: Percent,
    /// Share of used memory from which only the smallest fallback and the pinned models stay.
    pub critical: Percent,
    /// Time of lower pressure after which the level falls by one step.
    pub recovery_time: Duration,
    /// Time for which an evicted model cools down, so that it must not be loaded again.
    pub reload_cooldown: Duration,
}

/// Use of memory by one model.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Priority from 1, evicted last, to 5, evicted first.
    pub memory_priority: u8,
    /// Time without a request after which the model is unloaded.
    pub max_idle_time: IdleTime,
    /// Whether the model is loaded at start.
    pub preload: bool,
    /// Whether the model is excluded from eviction.
    pub pinned: bool,
    /// Maximum number of tokens of a text; longer texts are truncated. `None` means as many as the
    /// model permits.
    pub max_sequence_length: Option<usize>,
}

/// Settings of a model that no file names.
impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            memory_priority: 3,
            max_idle_time: IdleTime::Default,
            preload: false,
            pinned: false,
            max_sequence_length: None,
        }
    }
}

/// Time without a request after which a model is unloaded.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleTime {
    /// The time of [`MemorySettings::max_idle_time`], by which [`Settings::model`] replaces this.
    Default,
    /// The model stays until its memory is needed.
    Never,
    /// After this time.
    After(Duration),
}

impl IdleTime {
    /// Returns the time; `None` when the model stays until its memory is needed.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Default | Self::Never => None,
            Self::After(time) => Some(time),
        }
    }
}

/// Meaning of an alias.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AliasSettings {
    /// The id of the model. Never empty.
    pub model: String,
    /// The version, or the beginning of the revision; `None` means the one to which the id
    /// resolves.
    pub revision: Option<String>,
    /// The model that answers some of the requests instead.
    pub canary: CanarySettings,
}

/// Canary of an alias: a model that answers some of its requests. Without a model it answers none.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CanarySettings {
    /// The id of the model.
    pub model: Option<String>,
    /// The version or revision, as in [`AliasSettings::revision`].
    pub revision: Option<String>,
    /// The percentage of the requests, from 0 to 100.
    pub percent: u8,
}

/// A tenant and its permissions.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// The name, which is unique among tenants.
    pub name: String,
    /// Users of the tenant: names or numeric ids, or `*` for all users except administrators.
    pub users: Vec<String>,
    /// Groups of the tenant: names or numeric ids.
    pub groups: Vec<String>,
    /// The model, or an alias of one, that answers when a request of the tenant names none.
    pub model: Option<String>,
    /// Other models that the tenant may request, by names as in a request. `None` means all.
    pub allowed_models: Option<Vec<String>>,
    /// Weight in fair scheduling, from 1 to 9, compared with other tenants.
    pub priority: u8,
    /// Maximum number of concurrent requests; `None` means as many as there are connections.
    pub max_concurrent: Option<usize>,
    /// Whether all connections of the tenant wait in one queue of its own.
    pub dedicated_queue: bool,
}

impl TenantSettings {
    /// Weight of a caller without a tenant, and of a tenant without a priority.
    pub const PRIORITY: u8 = 5;
}

/// Defaults for the keys that a tenant does not have.
impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            users: Vec::new(),
            groups: Vec::new(),
            model: None,
            allowed_models: None,
            priority: Self::PRIORITY,
            max_concurrent: None,
            dedicated_queue: false,
        }
    }
}

/// The store of verified packages.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCacheSettings {
    /// The directory of the store. Needs a restart.
    pub directory: PathBuf,
    /// Maximum size of the models on disk.
    pub max_size: Bytes,
    /// Maximum number of models.
    pub max_models: usize,
    /// Choice of the model that is removed when a limit is reached.
    pub cleanup_policy: CleanupPolicy,
    /// Time without a use after which a model is removed; `None` means never.
    pub unused_for: Option<Duration>,
    /// Interval at which every installed file is hashed again.
    pub validation_interval: Duration,
    /// Whether every installed file is hashed at start. Needs a restart.
    pub validation_on_startup: bool,
    /// Whether only packages of the bundled directory are served.
    pub bundled_only: bool,
}

/// Choice of the model that is removed from the store when it is full.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CleanupPolicy {
    /// The least recently used model.
    Lru,
    /// The model that was installed first.
    Fifo,
    /// No model is removed: the installation is refused.
    Manual,
}

/// Sources of packages.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PackageSettings {
    /// The drop directory, into which operators copy packages. Needs a restart.
    pub drop_directory: PathBuf,
    /// Further drop directories, such as a removable disk. Caxton may be unable to write to them,
    /// and they may be absent. Needs a restart.
    pub more_directories: Vec<DropDirectorySettings>,
    /// Directory of the packages that were shipped with the device. Caxton never writes to it.
    /// Needs a restart.
    pub bundled_directory: PathBuf,
    /// Directory of minisign public keys (`*.pub`). If there is a key, every package needs a
    /// signature by one of the keys, except for bundled packages. Needs a restart.
    pub keys_directory: PathBuf,
    /// Whether keys disable the models that were installed without a signature.
    pub disable_unsigned: bool,
    /// Time at which the id of a model begins to mean a higher version.
    pub updates: UpdatePolicy,
    /// Whether a package may change the embedding space of a model id without an administrator's
    /// consent.
    pub replace_embedding_space: bool,
    /// Whether a model is removed from the store when its file is removed from the drop directory.
    pub remove_with_file: bool,
    /// Time after which an incomplete package that does not grow is quarantined.
    pub incomplete_timeout: Duration,
    /// Largest uncompressed size of a package.
    pub max_package_size: Bytes,
}

/// A further drop directory.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DropDirectorySettings {
    /// The directory.
    pub path: PathBuf,
    /// Whether a model is removed from the store when its file is removed from this directory.
    pub remove_with_file: bool,
}

/// Time at which the id of a model begins to mean a higher version.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdatePolicy {
    /// When the higher version is installed.
    Automatic,
    /// When an administrator approves the higher version.
    Manual,
}

/// Computation of texts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingSettings {
    /// The precision of the products. Needs a restart.
    pub precision: Precision,
    /// Number of threads; `None` means as many as the processors that this process may use. Needs a
    /// restart.
    pub threads: Option<usize>,
    /// Tokens computed in one pass.
    pub batch_tokens: usize,
    /// Requests that may wait for one model.
    pub queue_size: usize,
    /// Tokens that may wait for one model.
    pub queue_tokens: usize,
    /// Milliseconds for which a worker may gather requests for the next batch, after a batch of
    /// several requests.
    pub max_batch_wait_ms: usize,
    /// Maximum number of batches of one model that are computed concurrently; `None` means one more
    /// than threads, but at most 5.
    pub parallel_batches: Option<usize>,
    /// Whether a request may ask for `dimensions` that its model was not trained for.
    pub allow_any_dimensions: bool,
}

/// The requested precision of a model's products.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The fastest precision whose vectors are accurate enough.
    Auto,
    /// 32-bit floats, without loss.
    F32,
    /// 8-bit integers.
    Int8,
    /// bfloat16, where the processor multiplies it.
    Bf16,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// The least severe level that is logged.
    pub level: LogLevel,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Events that an operator should examine.
    Warn,
    /// Events.
    Info,
    /// Internal events.
    Debug,
    /// All records.
    Trace,
}

/// Defaults without any file.
impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: SocketSettings {
                path: "/run/caxton/caxton.sock".into(),
                mode: 0o660,
                group: None,
                admins: Admins { users: vec!["root".to_owned()], groups: Vec::new() },
                max_connections: 256,
                max_body: Bytes::mib(16),
                drain_timeout: Duration::from_secs(20),
                overload_status: 429,
            },
            memory: MemorySettings {
                embedding_model: "bundled-mini".to_owned(),
                rerank_model: None,
                fallback_models: vec!["bundled-mini".to_owned()],
                fallback_strategy: FallbackStrategy::Auto,
                allow_fallback: false,
                allow_dimension_mismatch: false,
                dynamic_selection: false,
                preload_models: vec!["bundled-mini".to_owned()],
                preload_expected: true,
                max_loaded_models: 4,
                max_idle_time: None,
                memory_limit: None,
                min_free: Bytes::mib(64),
                eviction_policy: EvictionPolicy::MemoryPressure,
                pressure: PressureSettings {
                    moderate: Percent::new(75),
                    high: Percent::new(85),
                    critical: Percent::new(95),
                    recovery_time: Duration::from_secs(10),
                    reload_cooldown: Duration::from_secs(30),
                },
                model_cache: ModelCacheSettings {
                    directory: "/var/lib/caxton".into(),
                    max_size: Bytes(5_000_000_000),
                    max_models: 10,
                    cleanup_policy: CleanupPolicy::Lru,
                    unused_for: None,
                    validation_interval: Duration::from_secs(86_400),
                    validation_on_startup: true,
                    bundled_only: false,
                },
            },
            packages: PackageSettings {
                drop_directory: "/var/lib/caxton/packages".into(),
                more_directories: Vec::new(),
                bundled_directory: "/usr/share/caxton/models".into(),
                keys_directory: "/etc/caxton/keys.d".into(),
                disable_unsigned: false,
                updates: UpdatePolicy::Automatic,
                replace_embedding_space: false,
                remove_with_file: true,
                incomplete_timeout: Duration::from_secs(600),
                max_package_size: Bytes::mib(4096),
            },
            embedding: EmbeddingSettings {
                precision: Precision::Auto,
                threads: None,
                batch_tokens: 4096,
                queue_size: 1000,
                queue_tokens: 1_048_576,
                max_batch_wait_ms: 2,
                parallel_batches: None,
                allow_any_dimensions: false,
            },
            models: BTreeMap::new(),
            aliases: BTreeMap::new(),
            tenants: Vec::new(),
            require_sandbox: false,
            log: LogSettings { level: LogLevel::Info },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_settings_override_model_settings() {
        let mut settings = Settings::default();
        let of = |memory_priority| ModelSettings { memory_priority, ..ModelSettings::default() };
        let stays = |settings| ModelSettings { max_idle_time: IdleTime::Never, ..settings };
        assert_eq!(settings.model("a", "1.0"), stays(ModelSettings::default()));
        settings.models.insert("a".to_owned(), ModelSettings { pinned: true, ..of(1) });
        settings.models.insert("a@1.0".to_owned(), of(5));
        assert_eq!(settings.model("a", "1.0"), stays(of(5)));
        assert_eq!(settings.model("a", "1.1"), stays(ModelSettings { pinned: true, ..of(1) }));
        assert_eq!(settings.model("a.1", "1.0"), stays(of(3)));
    }

    #[test]
    fn own_idle_time_overrides_that_of_memory() {
        let mut settings = Settings::default();
        let minute = Duration::from_secs(60);
        settings.memory.max_idle_time = Some(minute);
        let own =
            [("a", IdleTime::Default), ("b", IdleTime::Never), ("c", IdleTime::After(minute * 2))];
        for (id, max_idle_time) in own {
            let own = ModelSettings { max_idle_time, ..ModelSettings::default() };
            settings.models.insert(id.to_owned(), own);
        }
        let limit = |id| settings.model(id, "1").max_idle_time.limit();
        assert_eq!([limit("a"), limit("d")], [Some(minute); 2]);
        assert_eq!([limit("b"), limit("c")], [None, Some(minute * 2)]);
    }
}
