//! Loads the configuration: reads files, checks them, and returns [`Settings`].
//!
//! [`load`] uses these modules. No other code sees an unchecked value.
//!
//! - *layers* finds the files, in their order, and reads their bytes.
//! - *file* parses YAML into a tree with places. Only this module names the YAML crate.
//! - *kind* defines kinds of values, and checks single values and lists of sections.
//! - *keys* is the table of all keys, each with its kind.
//! - *check* compares a tree with the keys and finds every problem at once.
//! - *merge* merges all files and checks constraints between keys.
//! - *settings* holds the result.
//!
//! In the other direction, *values* lists settings key by key, as *key_value* defines them, and
//! *yaml* formats one value or all of them as a file.
//!
//! Invariant: a reload replaces all settings or none; on any problem the last good ones stay.

mod check;
mod file;
mod key_value;
mod keys;
mod kind;
mod layers;
mod merge;
mod refused;
mod settings;
mod values;
mod yaml;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::value::Value as Checked;

pub use key_value::{KeyValue, ValueOrigin};
use keys::{ALIAS, KEYS, MODEL};
pub use layers::directories;
pub use settings::{
    Admins, AliasSettings, CanarySettings, CleanupPolicy, DropDirectorySettings, EmbeddingSettings,
    EvictionPolicy, FallbackStrategy, IdleTime, LogLevel, LogSettings, MemorySettings,
    ModelCacheSettings, ModelSettings, PackageSettings, Precision, PressureSettings, Settings,
    SocketSettings, TenantSettings, UpdatePolicy,
};
pub use values::{running_values, values};
pub use yaml::document;

/// Source of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// This one file.
    File(PathBuf),
    /// `caxton.yaml` and `conf.d/*.yaml` of `etc/caxton`, which overrides `run/caxton`, which
    /// overrides `usr/lib/caxton`.
    Layers {
        /// Directory that contains these three: `/`, except in tests.
        root: PathBuf,
    },
}

/// A configuration without problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedConfig {
    /// The settings.
    pub settings: Settings,
    /// The files with these settings; each overrides the earlier ones. Masked files are not listed.
    pub files: Vec<PathBuf>,
}

/// A configuration without problems, and its origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The configuration.
    pub loaded: LoadedConfig,
    /// Every key with its value and the position where that was written, in the order of the
    /// shipped file.
    pub values: Vec<KeyValue>,
    /// Every file that was found; each overrides the earlier ones. A file follows the files that it
    /// replaces.
    pub found: Vec<SourceFile>,
}

/// A file of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Status of the file.
    pub status: FileStatus,
}

/// Status of a file: applied, empty or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStatus {
    /// The file was applied.
    Applied,
    /// The file is empty or a link to `/dev/null`: it masks the files that it replaces.
    Empty,
    /// The file was not read, because this file of a higher directory has the same name.
    ReplacedBy(PathBuf),
}

/// A position in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1, in characters.
    pub column: u64,
}

/// A problem that an operator has to correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory with the problem.
    pub file: PathBuf,
    /// The position in the file; `None` when the problem is the whole file.
    pub position: Option<Position>,
    /// The dotted name of the key or section; empty when the problem is not one of a key.
    pub key: String,
    /// The problem, the expected value, and the cause if the system reported one. A problem is
    /// printed without changes.
    pub message: String,
}

/// Text such as `caxton.yaml:14:9: memory.model_cache.max_models: expected 1 to 1000, found 0`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Error of a configuration: every problem of every file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one problem; files in the order in which they are applied, each from its top.
    pub problems: Vec<Problem>,
}

/// Reads and checks the whole configuration. Blocks while it reads a few small files.
///
/// # Errors
/// When anything in any file is wrong, with all problems.
pub fn load(source: &ConfigSource) -> Result<LoadedConfig, ConfigError> {
    let mut problems = Vec::new();
    let layers = layers::read(source, &mut problems);
    let (settings, _) = combine(&layers, problems)?;
    Ok(LoadedConfig { settings, files: applied(layers) })
}

/// Loads the configuration as [`load`] does, and returns the origin of every value.
///
/// # Errors
/// Those of [`load`].
pub fn explain(source: &ConfigSource) -> Result<Provenance, ConfigError> {
    let mut problems = Vec::new();
    let layers = layers::read(source, &mut problems);
    let (settings, merged) = combine(&layers, problems)?;
    let values = values::with_origins(&settings, &merged);
    let found = layers.iter().flat_map(found).collect();
    Ok(Provenance { loaded: LoadedConfig { settings, files: applied(layers) }, values, found })
}

/// Checks `content` as the only file. Problems name it `file`.
///
/// # Errors
/// Those of [`load`].
pub fn parse(file: &Path, content: Vec<u8>) -> Result<Settings, ConfigError> {
    let layer = layers::ConfigFile { path: file.to_owned(), content, replaced: Vec::new() };
    Ok(combine(&[layer], Vec::new())?.0)
}

/// Checks all of `layers` and merges them. `problems` are those found already.
fn combine(
    layers: &[layers::ConfigFile],
    mut problems: Vec<Problem>,
) -> Result<(Settings, merge::MergedConfig), ConfigError> {
    let mut merged = merge::MergedConfig::new();
    for layers::ConfigFile { path, content, .. } in layers {
        let checked = file::parse(content)
            .map_err(|file::SyntaxError { position, message }| {
                vec![Problem { file: path.clone(), position, key: String::new(), message }]
            })
            .and_then(|root| check::check(path, &root));
        match checked {
            Ok(assignments) => merged.apply(path, assignments),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    match merged.settings() {
        Ok(settings) => Ok((settings, merged)),
        Err(problems) => Err(ConfigError { problems }),
    }
}

/// Returns the files that are not empty.
fn applied(layers: Vec<layers::ConfigFile>) -> Vec<PathBuf> {
    layers.into_iter().filter(|layer| !layer.content.is_empty()).map(|layer| layer.path).collect()
}

/// Returns the files that `layer` replaces, then its own file, each with its status.
fn found(layer: &layers::ConfigFile) -> impl Iterator<Item = SourceFile> {
    let replaced = layer.replaced.iter();
    let replaced = replaced.map(|path| SourceFile {
        path: path.clone(),
        status: FileStatus::ReplacedBy(layer.path.clone()),
    });
    let status = if layer.content.is_empty() { FileStatus::Empty } else { FileStatus::Applied };
    replaced.chain([SourceFile { path: layer.path.clone(), status }])
}

/// The keys that a reload changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// Keys whose new value takes effect only after a restart.
    pub restart: Vec<String>,
    /// Keys whose new value takes effect at once.
    pub live: Vec<String>,
}

/// Returns the keys that differ between `old` and `new`, in the order of the shipped file and,
/// within a key, of the models or aliases.
pub fn diff(old: &Settings, new: &Settings) -> ConfigChange {
    let mut change = ConfigChange::default();
    let models: BTreeSet<&String> = old.models.keys().chain(new.models.keys()).collect();
    let aliases: BTreeSet<&String> = old.aliases.keys().chain(new.aliases.keys()).collect();
    // A model or alias that only one of the two names has the defaults in the other.
    let values = |settings: &Settings| {
        let mut settings = settings.clone();
        for model in &models {
            settings.models.entry((*model).clone()).or_default();
        }
        for alias in &aliases {
            settings.aliases.entry((*alias).clone()).or_default();
        }
        Checked::serialize(settings).ok()
    };
    let (old, new) = (values(old), values(new));
    for key in KEYS.iter().filter(|key| !key.alias) {
        let Some(setting) = key.setting else { continue };
        let given: Vec<&str> = if setting.contains(MODEL) {
            models.iter().map(|model| model.as_str()).collect()
        } else if setting.contains(ALIAS) {
            aliases.iter().map(|alias| alias.as_str()).collect()
        } else {
            vec![""]
        };
        for given in given {
            if find(&old, setting, given) != find(&new, setting, given) {
                let name = keys::path(key.name, given).collect::<Vec<_>>().join(".");
                if key.restart { &mut change.restart } else { &mut change.live }.push(name);
            }
        }
    }
    change
}

/// Returns the value of `setting`, with `given` for its placeholder.
fn find<'a>(settings: &'a Option<Checked>, setting: &str, given: &str) -> Option<&'a Checked> {
    keys::path(setting, given)
        .try_fold(settings.as_ref()?, |value, name| value.as_dict()?.get(name))
}

#[cfg(test)]
mod tests;
