//! The configuration as the rest of the daemon sees it.
//!
//! Serde is here for [`super::load`] alone, which merges checked values and takes the settings out of the merged ones.
//! Nothing else makes settings from text.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

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
    /// What is logged.
    pub log: Log,
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
    /// The model that answers when a request names none.
    pub embedding_model: String,
    /// Models loaded at start.
    pub preload_models: Vec<String>,
    /// The store of verified packages.
    pub model_cache: ModelCache,
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
    /// minisign public keys (`*.pub`); when there is one, every package needs a signature by one of them.
    pub keys_directory: PathBuf,
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
                preload_models: vec!["bundled-mini".to_owned()],
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
                remove_with_file: true,
                incomplete_timeout: Duration::from_secs(600),
                max_package_size: Bytes::mib(4096),
            },
            embedding: Embedding {
                precision: Precision::Auto,
                threads: None,
                batch_tokens: 4096,
                queue_size: 1000,
            },
            log: Log { level: LogLevel::Info },
        }
    }
}
