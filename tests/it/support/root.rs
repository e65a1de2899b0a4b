//! Temporary root of a daemon: its directories and its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Daemon, cli, pack_with, tiny_package};

/// Directories of one daemon at a time, in which it may be started repeatedly.
#[derive(Debug)]
pub(crate) struct Root {
    directory: TempDir,
    /// Path of the configuration below the root.
    config: PathBuf,
    settings: Value,
}

impl Root {
    /// Creates a root whose bundled directory holds [`tiny_package`], and whose daemon logs debug
    /// records.
    pub(crate) fn new() -> Self {
        let root = Self::without_bundled();
        fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), tiny_package()).unwrap();
        root
    }

    /// Creates a root with a second model, `other`, which is not loaded before a request for it. Its
    /// package states that it was trained for vectors of 16 and 32 numbers too.
    pub(crate) fn with_other() -> Self {
        let root = Self::new().with("memory.preload_models", json!([]));
        let trained = ["--matryoshka-dimensions", "32,16"];
        let package = pack_with("tiny-e5", "other", "2", &trained);
        fs::write(root.bundled().join("other-2.model.tar.zst"), package).unwrap();
        root
    }

    /// Creates a root without any model.
    pub(crate) fn without_bundled() -> Self {
        let directory = tempfile::Builder::new().prefix("caxton-it-").tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let settings = json!({
            "socket": { "path": at("caxton.sock") },
            "memory": { "model_cache": { "directory": at("state") } },
            "packages": {
                "drop_directory": at("drop"),
                "bundled_directory": at("bundled"),
                "keys_directory": at("keys.d"),
            },
            "log": { "level": "debug" },
        });
        let root = Self { settings, config: "caxton.yaml".into(), directory };
        for directory in [root.bundled(), root.drop_directory(), root.keys()] {
            fs::create_dir(directory).unwrap();
        }
        root.write_settings();
        root
    }

    /// Sets the key `name`, with dots as in the documentation. A running daemon notices the change.
    pub(crate) fn set(&mut self, name: &str, value: Value) {
        let mut at = &mut self.settings;
        for part in name.split('.') {
            at = &mut at[part];
        }
        *at = value;
        self.write_settings();
    }

    /// Moves the configuration to a directory of its own.
    pub(crate) fn with_config_directory(mut self) -> Self {
        fs::remove_file(self.config()).unwrap();
        self.config = "etc/caxton.yaml".into();
        fs::create_dir(self.path().join("etc")).unwrap();
        self.write_settings();
        self
    }

    /// Sets a key as [`Self::set`] does and returns the root.
    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        self.set(name, value);
        self
    }

    /// Writes the configuration with all keys that were set. Overwrites a text of
    /// [`Self::write_config`].
    pub(crate) fn write_settings(&self) {
        // JSON is valid YAML.
        self.write_config(&serde_json::to_string_pretty(&self.settings).unwrap());
    }

    /// Writes `text` as the configuration in one step, with a rename as editors do.
    pub(crate) fn write_config(&self, text: &str) {
        let new = self.path().join("caxton.yaml.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.config()).unwrap();
    }

    /// Starts the daemon and waits for READY=1. If it logs debug records, also waits until it has
    /// scanned the bundled packages.
    pub(crate) fn start(self) -> Daemon {
        let logs_debug = self.settings["log"]["level"] == "debug";
        let daemon = self.spawn();
        daemon.wait_notified("READY=1");
        if logs_debug {
            daemon.wait_line("every bundled package");
        }
        daemon
    }

    /// Starts the daemon without waiting; its start may fail.
    pub(crate) fn spawn(self) -> Daemon {
        self.spawn_with(|_| {})
    }

    /// Starts the daemon with a command line or an environment that `change` sets.
    pub(crate) fn spawn_with(self, change: impl FnOnce(&mut Command)) -> Daemon {
        let mut program = Command::new(env!("CARGO_BIN_EXE_caxtond"));
        program.env_remove("STATE_DIRECTORY");
        change(&mut program);
        Daemon::spawn(self, program)
    }

    /// Returns the command line with the configuration of this root.
    pub(crate) fn cli(&self) -> Command {
        let mut command = cli();
        command.arg("--config").arg(self.config());
        command
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join(&self.config)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("caxton.sock")
    }

    /// Returns `memory.model_cache.directory`.
    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub(crate) fn drop_directory(&self) -> PathBuf {
        self.path().join("drop")
    }

    pub(crate) fn bundled(&self) -> PathBuf {
        self.path().join("bundled")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.path().join("keys.d")
    }
}
