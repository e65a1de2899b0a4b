//! Compares the names of models in the configuration with the installed models.
//!
//! Pure. `caxton check` and `caxton doctor` print the result.

use crate::api::wire::Package;
use crate::config::{FallbackStrategy, KeyValue, Settings, ValueOrigin};

/// Least number of digits of a revision in a name.
const LEAST_DIGITS: usize = 6;

/// A name of a model in the configuration that leads to no usable model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NameProblem {
    /// Finding, with the key and its place.
    pub(super) found: String,
    /// Repair.
    pub(super) action: String,
}

/// A name of a model, and the key that has it.
#[derive(Debug)]
struct UsedName<'a> {
    key: String,
    /// `None` when the default applies.
    origin: Option<&'a ValueOrigin>,
    name: String,
}

impl UsedName<'_> {
    fn problem(&self, settings: &Settings, packages: &[Package]) -> Option<NameProblem> {
        let (name, place) = (&self.name, place(&self.key, self.origin));
        let Some(package) = find(packages, name) else {
            return Some(NameProblem {
                found: format!("{name} is not installed ({place})"),
                action: format!(
                    "install its package: sudo caxton model install PACKAGE.model.tar.zst; or \
                     correct {place}"
                ),
            });
        };
        if settings.memory.model_cache.bundled_only && package.origin != "bundled" {
            return Some(NameProblem {
                found: format!(
                    "{name} is not served, because memory.model_cache.bundled_only is true ({place})"
                ),
                action: format!("set memory.model_cache.bundled_only to false, or correct {place}"),
            });
        }
        let why = match (package.status.as_str(), &package.problem) {
            ("available", None) => return None,
            ("available", Some(why)) => format!("cannot be loaded: {why}"),
            ("untested", _) => "has not passed its self-test yet".to_owned(),
            (status, Some(why)) => format!("is {status}: {why}"),
            (status, None) => format!("is {status}"),
        };
        Some(NameProblem {
            found: format!("{name} {why} ({place})"),
            action: format!(
                "see the checks \"models\" and \"store\"; or name another model in {place}"
            ),
        })
    }
}

/// Returns the number of names that were checked, and the problems of those that mean no usable
/// model. A name that means an alias is not checked: the alias is. Names in a default list are not
/// checked, because no operator chose them.
pub(super) fn problems(
    settings: &Settings,
    values: &[KeyValue],
    packages: &[Package],
) -> (usize, Vec<NameProblem>) {
    let used = used_names(settings, values);
    let problems = used.iter().filter_map(|used| used.problem(settings, packages)).collect();
    (used.len(), problems)
}

/// Returns a note for each of `memory.fallback_models` that can answer for no other model, because
/// the configuration does not allow vectors of another embedding space or length.
pub(super) fn fallback_notes(
    settings: &Settings,
    values: &[KeyValue],
    packages: &[Package],
) -> Vec<String> {
    const KEY: &str = "memory.fallback_models";
    let memory = &settings.memory;
    let Some(origin) = origin(values, KEY) else { return Vec::new() };
    if memory.fallback_strategy == FallbackStrategy::Strict {
        return Vec::new();
    }
    let place = place(KEY, Some(origin));
    let note = |name: &String| {
        let fallback = find(packages, &without_alias(settings, name))?;
        let others = || packages.iter().filter(|other| other.current && other.id != fallback.id);
        let same_space = |other: &Package| other.embedding_space == fallback.embedding_space;
        if others().next().is_none() || others().any(same_space) {
            return None;
        }
        let other_length = others().all(|other| other.dimensions != fallback.dimensions)
            && !memory.allow_dimension_mismatch;
        match (memory.allow_fallback, other_length) {
            (true, false) => None,
            (false, false) => Some(format!(
                "{place}: {name} has another embedding space than all other models, and \
                 memory.allow_fallback is false, so it gives vectors only to requests that allow a \
                 fallback"
            )),
            (_, true) => Some(format!(
                "{place}: the vectors of {name} have another length than those of all other \
                 models, and memory.allow_dimension_mismatch is false, so it gives vectors to no \
                 request for another model"
            )),
        }
    };
    memory.fallback_models.iter().filter_map(note).collect()
}

/// Returns every name of a model in the configuration, in the order of the shipped file.
fn used_names<'a>(settings: &Settings, values: &'a [KeyValue]) -> Vec<UsedName<'a>> {
    let memory = &settings.memory;
    let mut used = Vec::new();
    let mut add = |key: String, origin: Option<&'a ValueOrigin>, name: &str| {
        if !settings.aliases.contains_key(name) {
            used.push(UsedName { key, origin, name: name.to_owned() });
        }
    };
    let key = "memory.embedding_model";
    add(key.to_owned(), origin(values, key), &memory.embedding_model);
    if let Some(name) = &memory.rerank_model {
        let key = "memory.rerank_model";
        add(key.to_owned(), origin(values, key), name);
    }
    for (key, names) in [
        ("memory.fallback_models", &memory.fallback_models),
        ("memory.preload_models", &memory.preload_models),
    ] {
        let Some(origin) = origin(values, key) else { continue };
        names.iter().for_each(|name| add(key.to_owned(), Some(origin), name));
    }
    for (index, tenant) in settings.tenants.iter().enumerate() {
        let origin = origin(values, "tenants");
        let here = format!("tenants[{index}]");
        if let Some(name) = &tenant.model {
            add(format!("{here}.model"), origin, name);
        }
        for name in tenant.allowed_models.iter().flatten() {
            add(format!("{here}.allowed_models"), origin, name);
        }
    }
    // These never name an alias.
    for name in settings.models.keys() {
        let origin = origin_below(values, &["models", name]);
        used.push(UsedName { key: format!("models.{name}"), origin, name: name.clone() });
    }
    for (alias, target) in &settings.aliases {
        let targets = [
            (&["model"][..], Some(&target.model), &target.revision),
            (&["canary", "model"], target.canary.model.as_ref(), &target.canary.revision),
        ];
        for (keys, model, revision) in targets {
            let Some(model) = model else { continue };
            let path = [&["aliases", alias.as_str()], keys].concat();
            used.push(UsedName {
                key: path.join("."),
                origin: origin_below(values, &path),
                name: with_revision(model, revision.as_deref()),
            });
        }
    }
    used
}

/// Returns the name of the model that `name`, of a model or an alias, means. Canaries are ignored.
fn without_alias(settings: &Settings, name: &str) -> String {
    match settings.aliases.get(name) {
        Some(alias) => with_revision(&alias.model, alias.revision.as_deref()),
        None => name.to_owned(),
    }
}

fn with_revision(model: &str, revision: Option<&str>) -> String {
    revision.map_or_else(|| model.to_owned(), |revision| format!("{model}@{revision}"))
}

fn origin<'a>(values: &'a [KeyValue], key: &str) -> Option<&'a ValueOrigin> {
    values.iter().find(|value| value.key() == key)?.origin.as_ref()
}

/// Returns the place of the first key at or below `path` that a file sets.
fn origin_below<'a>(values: &'a [KeyValue], path: &[&str]) -> Option<&'a ValueOrigin> {
    let is_below = |value: &&KeyValue| {
        value.path.len() >= path.len() && path.iter().zip(&value.path).all(|(a, b)| a == b)
    };
    values.iter().filter(is_below).find_map(|value| value.origin.as_ref())
}

/// Returns the key and the place where it was written: `log.level in /etc/caxton/a.yaml:3:5`.
fn place(key: &str, origin: Option<&ValueOrigin>) -> String {
    match origin {
        Some(ValueOrigin { file, position }) => {
            format!("{key} in {}:{}:{}", file.display(), position.line, position.column)
        }
        None => format!("{key}, which has its default"),
    }
}

/// Returns the package that `name`, of a model, means: the current one of the id, or the one with
/// the version or revision. Prefers packages that are available.
fn find<'a>(packages: &'a [Package], name: &str) -> Option<&'a Package> {
    let (id, rest) = name.split_once('@').map_or((name, None), |(id, rest)| (id, Some(rest)));
    let is_revision = |package: &Package, rest: &str| {
        rest.len() >= LEAST_DIGITS
            && (package.manifest_sha256.starts_with(rest) || package.revision.starts_with(rest))
    };
    let named = packages.iter().filter(|package| {
        package.id == id
            && rest.is_none_or(|rest| package.version == rest || is_revision(package, rest))
    });
    named.max_by_key(|package| (package.current, package.status == "available"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::{ConfigSource, explain};

    /// Returns the settings of `yaml` and its values, with the file `FILE`.
    fn explained(yaml: &str) -> (Settings, Vec<KeyValue>) {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("f");
        std::fs::write(&file, yaml).unwrap();
        let mut explained = explain(&ConfigSource::File(file)).unwrap();
        for origin in explained.values.iter_mut().filter_map(|value| value.origin.as_mut()) {
            origin.file = Path::new("FILE").to_owned();
        }
        (explained.loaded.settings, explained.values)
    }

    fn package(id: &str, version: &str, space: &str, dimensions: usize) -> Package {
        let package = json!({
            "id": id, "version": version, "revision": "0123456789ab", "current": true,
            "origin": "dropped", "status": "available", "residency": "absent",
            "resident_bytes": 0, "arithmetic": null, "waiting": 0, "dimensions": dimensions,
            "max_sequence_length": 1, "precision": "f32", "architecture": "",
            "embedding_space": space, "prompts": {}, "languages": [], "license": "",
            "source": null, "size_bytes": 1, "package_sha256": "", "installed_at": 0,
            "last_validated_at": 0, "access_count": 0, "last_access_at": null,
        });
        serde_json::from_value(package).unwrap()
    }

    fn found(yaml: &str, packages: &[Package]) -> Vec<String> {
        let (settings, values) = explained(yaml);
        problems(&settings, &values, packages).1.into_iter().map(|it| it.found).collect()
    }

    #[test]
    fn every_key_that_names_a_model_is_checked() {
        let yaml = "memory:\n  embedding_model: a\n  preload_models: [a, b]\n  fallback_models: [c]\n\
                    models:\n  d@1:\n    pinned: true\n\
                    aliases:\n  e: { model: f, canary: { model: g, revision: v2 } }\n\
                    tenants: [{ name: t, model: h, allowed_models: [e, i] }]\n";
        assert_eq!(
            found(yaml, &[package("a", "1", "s", 4)]),
            [
                "c is not installed (memory.fallback_models in FILE:4:20)",
                "b is not installed (memory.preload_models in FILE:3:19)",
                "h is not installed (tenants[0].model in FILE:10:10)",
                "i is not installed (tenants[0].allowed_models in FILE:10:10)",
                "d@1 is not installed (models.d@1 in FILE:7:13)",
                "f is not installed (aliases.e.model in FILE:9:15)",
                "g@v2 is not installed (aliases.e.canary.model in FILE:9:35)",
            ]
        );
        let reranker = "memory: { embedding_model: a, rerank_model: r }";
        let expected = "r is not installed (memory.rerank_model in FILE:1:45)";
        assert_eq!(found(reranker, &[package("a", "1", "s", 4)]), [expected]);
        let default =
            "bundled-mini is not installed (memory.embedding_model, which has its default)";
        assert_eq!(found("", &[]), [default]);
        assert_eq!(found("", &[package("bundled-mini", "1", "s", 4)]), [""; 0]);
    }

    #[test]
    fn versions_and_revisions_are_found() {
        let mut old = package("a", "1", "s", 4);
        old.current = false;
        let packages = [old, package("a", "2", "s", 4)];
        let names = |names: &str| {
            let aliases = format!("aliases: {{ x: {{ model: a, revision: {names} }} }}");
            found(&format!("memory: {{ embedding_model: a }}\n{aliases}"), &packages).len()
        };
        let cases = [("\"1\"", 0), ("\"2\"", 0), ("\"3\"", 1), ("\"012345\"", 0), ("\"01234\"", 1)];
        for (revision, problems) in cases {
            assert_eq!(names(revision), problems, "{revision}");
        }
    }

    #[test]
    fn unusable_models_are_named_with_reason() {
        let mut model = package("a", "1", "s", 4);
        let yaml = "memory: { embedding_model: a }";
        let place = "(memory.embedding_model in FILE:1:28)";
        for (status, problem, expected) in [
            ("corrupt", None, "a is corrupt"),
            ("disabled", Some("its key was removed"), "a is disabled: its key was removed"),
            ("available", Some("no memory"), "a cannot be loaded: no memory"),
            ("untested", None, "a has not passed its self-test yet"),
        ] {
            model.status = status.to_owned();
            model.problem = problem.map(str::to_owned);
            let found = found(yaml, std::slice::from_ref(&model));
            assert_eq!(found, [format!("{expected} {place}")]);
        }
        let only = "memory: { embedding_model: a, model_cache: { bundled_only: true } }";
        let found = found(only, &[package("a", "1", "s", 4)]);
        let expected = "a is not served, because memory.model_cache.bundled_only is true";
        assert_eq!(found, [format!("{expected} {place}")]);
    }

    #[test]
    fn fallback_that_nobody_gets_is_noted() {
        let packages =
            [package("a", "1", "s", 4), package("b", "1", "t", 4), package("c", "1", "u", 8)];
        let notes = |rest: &str| {
            let (settings, values) = explained(&format!("memory: {{ {rest} }}"));
            fallback_notes(&settings, &values, &packages)
        };
        let notes_of = |rest: &str| notes(rest).join("\n");
        assert_eq!(notes_of("allow_fallback: false"), "");
        let space = notes_of("fallback_models: [b, missing]");
        let expected = "memory.fallback_models in FILE:1:28: b has another embedding space";
        assert!(
            space.starts_with(expected) && space.contains("allow_fallback is false"),
            "{space}"
        );
        assert_eq!(notes_of("fallback_models: [b], allow_fallback: true"), "");
        assert_eq!(notes_of("fallback_models: [b], fallback_strategy: strict"), "");
        let length = notes_of("fallback_models: [c], allow_fallback: true");
        assert!(length.contains("allow_dimension_mismatch is false"), "{length}");
        let allowed = "fallback_models: [c], allow_fallback: true, allow_dimension_mismatch: true";
        assert_eq!(notes_of(allowed), "");
    }
}
