//! The configuration as the rest of the daemon sees it.
//!
//! Serde is here for [`super::load`] alone, which merges checked values and takes the settings out of the merged ones.
//! Nothing else makes settings from text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Percent};

/// The alias that answers requests which name no model.
const DEFAULT: &str = "default";

/// The configuration, checked. Every value is within its range.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where clients connect.
    pub socket: Socket,
    /// Which models are served and how they are kept.
    pub memory: Memory,
    /// Where packages come from.
    pub packages: Packages,
    /// How texts are computed.
    pub embedding: Embedding,
    /// What holds for a model of this name, `id` or `id@version`; [`Settings::model`] finds it.
    pub models: BTreeMap<String, ModelSettings>,
    /// Other names of models, by that name. None of them means another alias.
    pub aliases: BTreeMap<String, AliasSettings>,
    /// Who asks, and what they may; of several that fit a caller the first holds.
    pub tenants: Vec<TenantSettings>,
    /// Whether the daemon refuses to start without all of its sandbox. Needs a restart.
    pub require_sandbox: bool,
    /// What is logged.
    pub log: Log,
}

impl Settings {
    /// What answers a request that names no model: the alias called `default` if there is one, else
    /// [`Memory::embedding_model`]. The name of a model or of an alias.
    pub fn default_model(&self) -> &str {
        if self.aliases.contains_key(DEFAULT) { DEFAULT } else { &self.memory.embedding_model }
    }

    /// What holds for this version of a model: what is set for the version, else what is set for the model, else the
    /// default. The whole of it: keys missing for the version do not come from the model.
    pub fn model(&self, id: &str, version: &str) -> ModelSettings {
        let of_version = self.models.get(&format!("{id}@{version}"));
        of_version.or_else(|| self.models.get(id)).copied().unwrap_or_default()
    }
}

/// The Unix socket.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    /// Where it is bound when systemd does not pass it. Needs a restart.
    pub path: PathBuf,
    /// Its permission bits. Needs a restart.
    pub mode: u32,
    /// Its group; `None` leaves that of the daemon. Needs a restart.
    pub group: Option<String>,
    /// Who, beside root and the daemon's own user, may change the appliance.
    pub admins: Admins,
    /// Connections served at a time; more wait in the kernel's queue. Needs a restart.
    pub max_connections: usize,
    /// Largest request body, except for installing a package.
    pub max_body: Bytes,
    /// How long requests in flight may take after SIGTERM.
    pub drain_timeout: Duration,
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

/// Which models are served and how they are kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The model, or the alias of one, that answers when a request names none and no alias is called `default`.
    pub embedding_model: String,
    /// Models, or aliases of models, that answer for others first; the smallest stays in memory when all others have to leave.
    pub fallback_models: Vec<String>,
    /// Which models may answer for one that cannot.
    pub fallback_strategy: FallbackStrategy,
    /// Whether vectors of another embedding space may be given to a request that does not say.
    pub allow_fallback: bool,
    /// Whether vectors of another length may be given where those of another embedding space may.
    pub allow_dimension_mismatch: bool,
    /// Models loaded at start.
    pub preload_models: Vec<String>,
    /// Most models in memory.
    pub max_loaded_models: usize,
    /// What this daemon may take; `None` means what the limits of its control group and of those above leave.
    pub memory_limit: Option<Bytes>,
    /// What stays free of every limit and of the machine's memory.
    pub min_free: Bytes,
    /// Which model leaves memory first.
    pub eviction_policy: EvictionPolicy,
    /// When memory is short.
    pub pressure: Pressure,
    /// The store of verified packages.
    pub model_cache: ModelCache,
}

/// Which models may answer for one that cannot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FallbackStrategy {
    /// Any of the same embedding space, then of the same length, then those of the list.
    Auto,
    /// Those of [`Memory::fallback_models`] alone.
    Manual,
    /// None.
    Strict,
}

/// Which model leaves memory first. Pinned ones never leave.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictionPolicy {
    /// The one worth least: by priority, then by expected use and by what loading it again takes, for its size.
    MemoryPressure,
    /// The one whose last use is longest ago.
    Lru,
    /// The one loaded first.
    Fifo,
    /// None, whatever happens: loads are refused instead.
    Manual,
}

/// When memory is short. The shares are of the tightest limit less [`Memory::min_free`], and rise strictly.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pressure {
    /// From where on idle models leave.
    pub moderate: Percent,
    /// From where on models in use leave too.
    pub high: Percent,
    /// From where on only the smallest fallback and the pinned ones stay.
    pub critical: Percent,
    /// How long it has to be better before it counts as one step better.
    pub quiet: Duration,
    /// How long a model that was evicted stays away.
    pub reload_cooldown: Duration,
}

/// How one model is kept in memory.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// From 1, kept longest, to 5, leaves first.
    pub memory_priority: u8,
    /// How long it stays without a request; `None` means until its memory is needed.
    pub max_idle_time: Option<Duration>,
    /// Whether it is loaded at start.
    pub preload: bool,
    /// Whether it stays whatever happens.
    pub pinned: bool,
}

/// What holds for a model that no file names.
impl Default for ModelSettings {
    fn default() -> Self {
        Self { memory_priority: 3, max_idle_time: None, preload: false, pinned: false }
    }
}

/// What another name of a model means.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AliasSettings {
    /// The id of the model. Never empty.
    pub model: String,
    /// Its version, or the beginning of its revision; `None` means what the id means.
    pub revision: Option<String>,
    /// What answers some of the requests instead.
    pub canary: Canary,
}

/// What answers some of the requests for an alias. Without a model it answers none.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Canary {
    /// The id of the model.
    pub model: Option<String>,
    /// As [`AliasSettings::revision`].
    pub revision: Option<String>,
    /// The share of the requests, from 0 to 100.
    pub percent: u8,
}

/// Who asks, and what they may.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// Its name, which no other tenant has.
    pub name: String,
    /// Its users, and [`TenantSettings::groups`] their groups: names or numeric ids.
    pub users: Vec<String>,
    /// Its groups.
    pub groups: Vec<String>,
    /// The model, or the alias of one, that answers when a request of it names none.
    pub model: Option<String>,
    /// What it may ask for beside that: names as in a request. `None` means everything.
    pub allowed_models: Option<Vec<String>>,
    /// From 1 to 9: its share of the turns when requests wait, against those of others.
    pub priority: u8,
    /// Most requests at a time; `None` is as many as there are connections.
    pub max_concurrent: Option<usize>,
    /// Whether all its connections wait in one queue of its own.
    pub dedicated_queue: bool,
}

impl TenantSettings {
    /// The share of whoever is no tenant, and of a tenant that is given none.
    pub const PRIORITY: u8 = 5;
}

/// What holds for what is not said of a tenant.
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
pub struct ModelCache {
    /// The directory that holds it. Needs a restart.
    pub directory: PathBuf,
    /// Its largest size on disk.
    pub max_size: Bytes,
    /// Its largest number of models.
    pub max_models: usize,
    /// Which model leaves when a limit is reached.
    pub cleanup_policy: CleanupPolicy,
    /// How often every installed file is hashed again.
    pub validation_interval: Duration,
    /// Whether every installed file is hashed at start.
    pub validation_on_startup: bool,
    /// Whether only packages of the bundled directory are served.
    pub bundled_only: bool,
}

/// Which model leaves the store when it is full.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CleanupPolicy {
    /// The one whose last use is longest ago.
    Lru,
    /// The one installed first.
    Fifo,
    /// None: the installation is refused.
    Manual,
}

/// Where packages come from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// Where operators put packages. Needs a restart.
    pub drop_directory: PathBuf,
    /// Packages that came with the appliance; never written to. Needs a restart.
    pub bundled_directory: PathBuf,
    /// minisign public keys (`*.pub`); when there is one, every package needs a signature by one of them, but for those
    /// of the bundled directory. Needs a restart.
    pub keys_directory: PathBuf,
    /// Whether a package may give a model id another embedding space without an administrator's word.
    pub replace_embedding_space: bool,
    /// Whether a model leaves the store when its file leaves the drop directory.
    pub remove_with_file: bool,
    /// How long a half-copied package may stay without growing before it is quarantined.
    pub incomplete_timeout: Duration,
    /// Largest uncompressed size of a package.
    pub max_package_size: Bytes,
}

/// How texts are computed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// The arithmetic of the products. Needs a restart.
    pub precision: Precision,
    /// Threads; `None` means as many as the processors this process may use. Needs a restart.
    pub threads: Option<usize>,
    /// Tokens computed in one pass.
    pub batch_tokens: usize,
    /// Requests that may wait for one model.
    pub queue_size: usize,
    /// Tokens that may wait for one model.
    pub queue_tokens: usize,
    /// How many milliseconds after a batch of several requests the next one may be gathered.
    pub max_batch_wait_ms: usize,
    /// Batches of one model that are taken at a time; `None` means one more than threads, but no more than 5.
    pub parallel_batches: Option<usize>,
}

/// The arithmetic of a model's products, as asked for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The fastest whose vectors are as good as they should be.
    Auto,
    /// Exact.
    F32,
    /// Integers of 8 bits.
    Int8,
    /// Where the processor multiplies it.
    Bf16,
}

/// What is logged.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// What an operator should look at.
    Warn,
    /// What happened.
    Info,
    /// What happened inside.
    Debug,
    /// Everything.
    Trace,
}

/// What holds without any file.
impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: Socket {
                path: "/run/caxton/caxton.sock".into(),
                mode: 0o660,
                group: None,
                admins: Admins { users: vec!["root".to_owned()], groups: Vec::new() },
                max_connections: 256,
                max_body: Bytes::mib(16),
                drain_timeout: Duration::from_secs(20),
            },
            memory: Memory {
                embedding_model: "bundled-mini".to_owned(),
                fallback_models: vec!["bundled-mini".to_owned()],
                fallback_strategy: FallbackStrategy::Auto,
                allow_fallback: false,
                allow_dimension_mismatch: false,
                preload_models: vec!["bundled-mini".to_owned()],
                max_loaded_models: 4,
                memory_limit: None,
                min_free: Bytes::mib(64),
                eviction_policy: EvictionPolicy::MemoryPressure,
                pressure: Pressure {
                    moderate: Percent::new(75),
                    high: Percent::new(85),
                    critical: Percent::new(95),
                    quiet: Duration::from_secs(10),
                    reload_cooldown: Duration::from_secs(30),
                },
                model_cache: ModelCache {
                    directory: "/var/lib/caxton".into(),
                    max_size: Bytes(5_000_000_000),
                    max_models: 10,
                    cleanup_policy: CleanupPolicy::Lru,
                    validation_interval: Duration::from_secs(86_400),
                    validation_on_startup: true,
                    bundled_only: false,
                },
            },
            packages: Packages {
                drop_directory: "/var/lib/caxton/packages".into(),
                bundled_directory: "/usr/share/caxton/models".into(),
                keys_directory: "/etc/caxton/keys.d".into(),
                replace_embedding_space: false,
                remove_with_file: true,
                incomplete_timeout: Duration::from_secs(600),
                max_package_size: Bytes::mib(4096),
            },
            embedding: Embedding {
                precision: Precision::Auto,
                threads: None,
                batch_tokens: 4096,
                queue_size: 1000,
                queue_tokens: 1_048_576,
                max_batch_wait_ms: 2,
                parallel_batches: None,
            },
            models: BTreeMap::new(),
            aliases: BTreeMap::new(),
            tenants: Vec::new(),
            require_sandbox: false,
            log: Log { level: LogLevel::Info },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_for_the_version_holds_before_what_is_set_for_the_model() {
        let mut settings = Settings::default();
        let of = |memory_priority| ModelSettings { memory_priority, ..ModelSettings::default() };
        assert_eq!(settings.model("a", "1.0"), ModelSettings::default());
        settings.models.insert("a".to_owned(), ModelSettings { pinned: true, ..of(1) });
        settings.models.insert("a@1.0".to_owned(), of(5));
        assert_eq!(settings.model("a", "1.0"), of(5));
        assert_eq!(settings.model("a", "1.1"), ModelSettings { pinned: true, ..of(1) });
        assert_eq!(settings.model("a.1", "1.0"), of(3));
    }
}
