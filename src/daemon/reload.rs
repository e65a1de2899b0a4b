//! Reloads the configuration, on SIGHUP or when the watcher reports a change.
//!
//! Invariant: all settings change together or none does. If there is any problem, the last good
//! settings stay in effect, and the problems are in the log and in `/status` until they are fixed.
//! This includes problems at start. In this case the last good settings are those that were kept on
//! disk.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

use super::last_good::{LastGood, LastGoodError};
use crate::api::wire::Configuration;
use crate::base::errors::chain;
use crate::config::{self, ConfigError, ConfigSource, LoadedConfig, LogLevel, Settings};
use crate::memory::level::Thresholds;
use crate::memory::monitor::MemorySampler;
use crate::models;
use crate::models::ingest::IngestSettings;
use crate::models::ingest::install::{InstallRules, further_directories};
use crate::telemetry::events::{Event, Events};
use crate::telemetry::log::{self, Message};

/// Channels from which the parts of the daemon receive the settings.
pub(super) struct SettingsReceivers {
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) configuration: watch::Receiver<Configuration>,
    pub(super) thresholds: watch::Receiver<Thresholds>,
    pub(super) rules: watch::Receiver<InstallRules>,
    pub(super) schedule: watch::Receiver<IngestSettings>,
}

/// Configuration with which the daemon starts.
pub(super) struct InitialConfig {
    pub(super) loaded: LoadedConfig,
    /// Problems of the files. If there are any, `loaded` is the last good configuration.
    pub(super) problems: Vec<String>,
}

impl InitialConfig {
    /// Reads the files of `source`. If they have problems, logs the problems, and reads the
    /// configuration that was kept by `last_good` instead.
    ///
    /// # Errors
    /// Fails if neither configuration can be used. The reason is logged.
    pub(super) fn read(
        source: &ConfigSource,
        last_good: &LastGood,
    ) -> Result<Self, NoUsableConfig> {
        let error = match config::load(source) {
            Ok(loaded) => return Ok(Self { loaded, problems: Vec::new() }),
            Err(error) => error,
        };
        let problems = log_problems(&error);
        match last_good.load() {
            Ok(Some(mut loaded)) => {
                // The file is in the daemon's own directory. A user who managed to write to it must
                // not become an administrator.
                loaded.settings.socket.admins = Settings::default().socket.admins;
                tracing::error!(
                    name: Message::LastGoodUsed.name(),
                    files = ?loaded.files,
                    "the configuration files have errors; started with the last good configuration"
                );
                Ok(Self { loaded, problems })
            }
            Ok(None) => {
                tracing::error!(
                    name: Message::ConfigurationRefused.name(),
                    "the configuration files have errors, and there is no last good configuration"
                );
                Err(NoUsableConfig)
            }
            Err(error) => {
                tracing::error!(
                    name: Message::ConfigurationRefused.name(),
                    error = chain(&error),
                    "the configuration files have errors, and the last good configuration is unusable"
                );
                Err(NoUsableConfig)
            }
        }
    }
}

/// Error of a start with wrong files and without a usable last good configuration. The reason is in
/// the log.
#[derive(Debug)]
pub(super) struct NoUsableConfig;

/// Owner of the current settings. All changes are sent from here.
pub(super) struct Reloader {
    source: ConfigSource,
    level: log::LevelHandle,
    /// Settings with which the daemon started. A key that needs a restart is compared with them.
    at_start: Arc<Settings>,
    last_good: LastGood,
    settings: watch::Sender<Arc<Settings>>,
    configuration: watch::Sender<Configuration>,
    thresholds: watch::Sender<Thresholds>,
    rules: watch::Sender<InstallRules>,
    schedule: watch::Sender<IngestSettings>,
    /// Sampler with the memory limit. `PUT /api/memory/limit` changes its limit, too.
    sampler: MemorySampler,
    events: Events,
}

impl Reloader {
    /// Applies the configuration that was read at start. Returns the channels to follow. `sampler`
    /// has the memory limit of this configuration.
    pub(super) fn new(
        source: ConfigSource,
        InitialConfig { loaded, problems }: InitialConfig,
        last_good: LastGood,
        level: log::LevelHandle,
        sampler: MemorySampler,
        events: Events,
    ) -> (Self, SettingsReceivers) {
        let LoadedConfig { settings, files } = loaded;
        let configuration = Configuration {
            files: names(&files),
            last_good: !problems.is_empty(),
            generation: 1,
            problems,
            restart_needed: Vec::new(),
        };
        let reloader = Self {
            source,
            level,
            at_start: Arc::new(settings.clone()),
            last_good,
            configuration: watch::Sender::new(configuration),
            thresholds: watch::Sender::new(models::thresholds(&settings)),
            rules: watch::Sender::new(InstallRules::from(&settings)),
            schedule: watch::Sender::new(IngestSettings::from(&settings)),
            settings: watch::Sender::new(Arc::new(settings)),
            sampler,
            events,
        };
        reloader.events.publish(Event::ConfigurationApplied { generation: 1 });
        let problems = reloader.configuration.borrow().problems.clone();
        if !problems.is_empty() {
            reloader.events.publish(Event::ConfigurationRefused { problems });
        }
        let follow = SettingsReceivers {
            settings: reloader.settings.subscribe(),
            configuration: reloader.configuration.subscribe(),
            thresholds: reloader.thresholds.subscribe(),
            rules: reloader.rules.subscribe(),
            schedule: reloader.schedule.subscribe(),
        };
        (reloader, follow)
    }

    /// Returns the settings with which the daemon started.
    pub(super) fn at_start(&self) -> Arc<Settings> {
        Arc::clone(&self.at_start)
    }

    /// Keeps the current settings on disk, unless the files have problems.
    pub(super) async fn keep(&self) {
        if !self.configuration.borrow().problems.is_empty() {
            return;
        }
        let (last_good, settings) = (self.last_good.clone(), Arc::clone(&self.settings.borrow()));
        let kept = tokio::task::spawn_blocking(move || last_good.keep(&settings)).await;
        let kept = kept
            .map_err(|error| error.to_string())
            .and_then(|kept: Result<(), LastGoodError>| kept.map_err(|error| chain(&error)));
        match (kept, self.last_good.path()) {
            (Err(error), _) => tracing::warn!(
                name: Message::LastGoodNotKept.name(),
                error,
                "cannot store the last good configuration"
            ),
            (Ok(()), Some(path)) => {
                tracing::debug!(path = %path.display(), "stored the last good configuration")
            }
            (Ok(()), None) => {}
        }
    }

    /// Reads the files again. Returns `None` if settings, files and problems are all unchanged.
    pub(super) async fn read(&self) -> Option<Result<LoadedConfig, ConfigError>> {
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&source)).await;
        let read = read
            .inspect_err(|error| {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "the task that reads the configuration failed"
                )
            })
            .ok()?;
        let configuration = self.configuration.borrow();
        let same = match &read {
            Ok(loaded) => {
                loaded.settings == **self.settings.borrow()
                    && configuration.problems.is_empty()
                    && names(&loaded.files) == configuration.files
            }
            Err(error) => texts(error) == configuration.problems,
        };
        (!same).then_some(read)
    }

    /// Applies the configuration that was read, or logs its problems.
    pub(super) fn apply(&self, read: Result<LoadedConfig, ConfigError>) {
        match read {
            Ok(loaded) => self.accept(loaded),
            Err(error) => {
                let problems = log_problems(&error);
                tracing::error!(
                    name: Message::ConfigurationRefused.name(),
                    "configuration rejected; the previous one stays in use"
                );
                self.events.publish(Event::ConfigurationRefused { problems: problems.clone() });
                self.configuration.send_modify(|seen| seen.problems = problems);
            }
        }
    }

    fn accept(&self, LoadedConfig { settings, files }: LoadedConfig) {
        let waiting = config::diff(&self.at_start, &settings).restart;
        for key in &waiting {
            tracing::warn!(
                name: Message::ConfigurationRestartNeeded.name(),
                key,
                "a changed key needs a restart"
            );
        }
        self.level.set(level(&settings));
        self.thresholds.send_replace(models::thresholds(&settings));
        // These directories need a restart: the sandbox grants access to the directories of the
        // start only.
        let packages = self.at_start.packages.clone();
        let rules = InstallRules {
            keys_directory: packages.keys_directory,
            bundled_directory: packages.bundled_directory,
            drop_directory: packages.drop_directory,
            more_directories: further_directories(&self.at_start),
            ..InstallRules::from(&settings)
        };
        // Send the rules before the schedule: the ingester wakes up on the schedule and reads the
        // rules.
        self.rules.send_replace(rules);
        self.schedule.send_replace(IngestSettings::from(&settings));
        // A limit that an administrator has set stays until the key itself changes.
        let limit = settings.memory.memory_limit;
        if limit != self.settings.borrow().memory.memory_limit {
            self.sampler.set_limit(limit);
        }
        self.settings.send_replace(Arc::new(settings));
        self.configuration.send_modify(|seen| {
            seen.files = names(&files);
            seen.generation += 1;
            seen.last_good = false;
            seen.problems.clear();
            seen.restart_needed = waiting.iter().map(ToString::to_string).collect();
            let generation = seen.generation;
            tracing::info!(
                name: Message::ConfigurationApplied.name(),
                generation, files = ?seen.files,
                "configuration applied"
            );
            self.events.publish(Event::ConfigurationApplied { generation });
        });
    }
}

fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.display().to_string()).collect()
}

/// Logs each problem, and returns all of them.
fn log_problems(error: &ConfigError) -> Vec<String> {
    let problems = texts(error);
    for problem in &problems {
        tracing::error!(name: Message::ConfigurationProblem.name(), "{problem}");
    }
    problems
}

fn texts(error: &ConfigError) -> Vec<String> {
    error.problems.iter().map(ToString::to_string).collect()
}

/// Returns the log filter for `settings.log.level`.
pub(super) fn level(settings: &Settings) -> LevelFilter {
    match settings.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
