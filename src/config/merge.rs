//! Merges all files: each one overrides the earlier ones, key by key. Then checks the constraints
//! between keys, also between keys of different files.
//!
//! Invariant: a violated constraint is reported at the key that was set last. Without this key, the
//! rest was in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;
use figment::value::{Dict, Value as Checked};

use super::check::Assignment;
use super::settings::AliasSettings;
use super::{Position, Problem, Settings};
use crate::base::units::Percent;

/// Merged values of the files applied so far.
pub(super) struct MergedConfig {
    values: Figment,
    /// Origin of each setting, by the names on the path to it.
    origins: BTreeMap<Vec<String>, KeyOrigin>,
    assigned: usize,
}

/// Place where a key was set last.
struct KeyOrigin {
    /// The key's name in the table.
    key: &'static str,
    /// Number of this assignment, counted over all files.
    order: usize,
    file: PathBuf,
    position: Position,
}

impl MergedConfig {
    /// Creates the default values, without any file.
    pub(super) fn new() -> Self {
        let values = Figment::from(Serialized::defaults(Settings::default()));
        Self { values, origins: BTreeMap::new(), assigned: 0 }
    }

    /// Overrides the merged values with the assignments of `file`.
    pub(super) fn apply(&mut self, file: &Path, assignments: Vec<Assignment>) {
        let mut changes = Dict::new();
        for Assignment { key, setting, position, value } in assignments {
            self.assigned += 1;
            insert(&mut changes, &setting, value);
            let origin = KeyOrigin { key, order: self.assigned, file: file.to_owned(), position };
            self.origins.insert(setting, origin);
        }
        // Clone the values, because figment's `merge` consumes them.
        self.values = self.values.clone().merge(Serialized::defaults(changes));
    }

    /// Returns the settings.
    ///
    /// # Errors
    /// When keys contradict each other.
    pub(super) fn settings(&self) -> Result<Settings, Vec<Problem>> {
        // Every value was checked against the kind of its key, and a test extracts each key of the
        // table.
        let settings: Settings = self.values.extract().map_err(|error| {
            let (file, message) = (PathBuf::from("caxton.yaml"), error.to_string());
            vec![Problem { file, position: None, key: String::new(), message }]
        })?;
        let mut problems = self.order_problems(&settings);
        problems.extend(self.alias_problems(&settings));
        problems.extend(self.directory_problems(&settings));
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    /// Returns the position where the setting at `path` was written last; `None` when the default
    /// applies.
    pub(super) fn origin(&self, path: &[String]) -> Option<(&Path, Position)> {
        self.origins.get(path).map(|origin| (origin.file.as_path(), origin.position))
    }

    /// Returns a problem for each pressure threshold that is not above the one before. A level
    /// between equal thresholds would be empty, so the daemon could not leave it one step at a
    /// time.
    fn order_problems(&self, settings: &Settings) -> Vec<Problem> {
        let pressure = settings.memory.pressure;
        let rising = [
            ("memory.pressure.moderate", pressure.moderate),
            ("memory.pressure.high", pressure.high),
            ("memory.pressure.critical", pressure.critical),
        ];
        let pairs = rising.windows(2).filter_map(|pair| match pair {
            [lower, upper] if lower.1 >= upper.1 => self.contradiction(*lower, *upper),
            _ => None,
        });
        pairs.collect()
    }

    /// Returns the problem that `lower` is not below `upper`; `None` when neither was set, because
    /// the defaults rise.
    fn contradiction(
        &self,
        lower: (&'static str, Percent),
        upper: (&'static str, Percent),
    ) -> Option<Problem> {
        let origin = |key| self.origins.values().find(|origin| origin.key == key);
        let order = |key| origin(key).map(|origin| origin.order);
        let (relation, (key, found), (other, bound)) = if order(lower.0) > order(upper.0) {
            ("below", lower, upper)
        } else {
            ("above", upper, lower)
        };
        let at = origin(key)?;
        let source = origin(other).map_or_else(
            || "by default".to_owned(),
            |KeyOrigin { file, position, .. }| {
                format!("in {}:{}:{}", file.display(), position.line, position.column)
            },
        );
        Some(Problem {
            file: at.file.clone(),
            position: Some(at.position),
            key: key.to_owned(),
            message: format!(
                "expected a value {relation} {other}, which is {bound} {source}, found {found}"
            ),
        })
    }

    /// Returns a problem for each further drop directory that has another use. Two scans of one
    /// directory, or a scan of the store, would remove models whose packages are there.
    fn directory_problems(&self, settings: &Settings) -> Vec<Problem> {
        let used = [
            ("packages.drop_directory", &settings.packages.drop_directory),
            ("packages.bundled_directory", &settings.packages.bundled_directory),
            ("packages.keys_directory", &settings.packages.keys_directory),
            ("memory.model_cache.directory", &settings.memory.model_cache.directory),
        ];
        let more = settings.packages.more_directories.iter().flat_map(|more| {
            let same = used.iter().filter(move |(_, path)| **path == more.path);
            same.map(move |(key, path)| (*key, path.display()))
        });
        let problems = more.filter_map(|(key, path)| {
            let message = format!("{path} is also {key}; use another directory");
            self.problem_at(vec!["packages".to_owned(), "more_directories".to_owned()], message)
        });
        problems.collect()
    }

    /// Returns a problem for each alias without a model, and for each that names another alias:
    /// such aliases could form a cycle.
    fn alias_problems(&self, settings: &Settings) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, AliasSettings { model, revision, canary }) in &settings.aliases {
            let mut problem = |keys: &[&str], message: String| {
                let path = ["aliases", name].into_iter().chain(keys.iter().copied());
                problems.extend(self.problem_at(path.map(str::to_owned).collect(), message));
            };
            if model.is_empty() {
                problem(
                    &["model"],
                    "missing: expected the id of the model that the alias names".to_owned(),
                );
            }
            if canary.model.is_none() && canary.percent > 0 {
                let message =
                    "missing: canary.percent is above 0; add the id of the canary's model";
                problem(&["canary", "model"], message.to_owned());
            }
            let targets = [
                (&["model"][..], Some(model), revision),
                (&["canary", "model"], canary.model.as_ref(), &canary.revision),
            ];
            for (keys, model, revision) in targets {
                // An alias cannot be named with a revision, so this is the id of a model.
                if let (Some(model), None) = (model, revision)
                    && settings.aliases.contains_key(model)
                {
                    let message = format!("\"{model}\" is an alias; expected the id of a model");
                    problem(keys, message);
                }
            }
        }
        problems
    }

    /// Returns a problem of the setting at `path`. Reports it at the setting, or, if that was not
    /// set, at the key of the same section that was set last.
    fn problem_at(&self, path: Vec<String>, message: String) -> Option<Problem> {
        let beside = || {
            let section = &path[..path.len().min(2)];
            let set = self.origins.iter().filter(|(other, _)| other.starts_with(section));
            set.map(|(_, origin)| origin).max_by_key(|origin| origin.order)
        };
        let origin = self.origins.get(&path).or_else(beside)?;
        let (file, position) = (origin.file.clone(), Some(origin.position));
        Some(Problem { file, position, key: path.join("."), message })
    }
}

/// Inserts `value` at `path` into `dict`. Passes the names separately: figment would split a dotted
/// path at the dots in names of models, too.
fn insert(dict: &mut Dict, path: &[String], value: Checked) {
    match path {
        [] => {}
        [name] => drop(dict.insert(name.clone(), value)),
        [name, rest @ ..] => {
            let below = dict.entry(name.clone()).or_insert_with(|| Checked::from(Dict::new()));
            if let Checked::Dict(_, below) = below {
                insert(below, rest, value);
            }
        }
    }
}
