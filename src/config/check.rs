//! Checks one file against the table of keys: returns every problem with its position, or every
//! setting of the file.
//!
//! Pure: takes a tree, returns values or problems. Other files and their values do not matter here.

use std::fmt;
use std::path::Path;

use figment::value::Value as Checked;

use super::file::{Node, Value};
use super::keys::{self, ConfigKey, KEYS};
use super::kind::ValueKind;
use super::kind::sections::{self, SectionProblem};
use super::{Position, Problem, refused};

/// Most characters of an unknown key that are compared with the known ones, which have at most 24.
const LONGEST_COMPARED: usize = 64;

/// A setting that a file assigns.
#[derive(Debug)]
pub(super) struct Assignment {
    /// The key's name in the table.
    pub(super) key: &'static str,
    /// The field of [`super::Settings`]: the names on the path to it.
    pub(super) setting: Vec<String>,
    /// Place of the value in the file.
    pub(super) position: Position,
    /// The new value.
    pub(super) value: Checked,
}

/// Returns the settings in `root`, the tree of `file`.
///
/// # Errors
/// All problems, in the order of the file.
pub(super) fn check(file: &Path, root: &Node) -> Result<Vec<Assignment>, Vec<Problem>> {
    let mut walk = Checker { file, assignments: Vec::new(), problems: Vec::new() };
    walk.section(&KeyPath::default(), root);
    if walk.problems.is_empty() { Ok(walk.assignments) } else { Err(walk.problems) }
}

/// A key or a section; the whole file by default.
#[derive(Clone, Default)]
struct KeyPath {
    /// Dotted name in the table.
    known: String,
    /// Dotted name as written, with the operator's name where the table has a placeholder.
    written: String,
    /// The operator's name for the placeholder on this path; empty if the path has none.
    given: String,
}

impl KeyPath {
    /// Returns the name and the location of `key` in this section.
    fn child<'a>(&self, key: &'a Node) -> Result<(&'a str, Self), WrongKey> {
        let Value::Text(name) = &key.value else {
            let message = format!("expected the name of a key, found {}", key.value);
            return Err(WrongKey::Unknown(message));
        };
        let mut children = children(&self.known);
        let found = children.find(|known| *known == name || keys::placeholder(known).is_some());
        let Some(known) = found else {
            return Err(self.unknown(&key.value, name));
        };
        let kind = keys::placeholder(known);
        if let Some(kind) = kind.filter(|kind| kind.check(&key.value).is_none()) {
            return Err(WrongKey::Unknown(format!("expected {kind}, found {}", key.value)));
        }
        let child = Self {
            known: join(&self.known, known),
            written: join(&self.written, name),
            given: if kind.is_some() { name.clone() } else { self.given.clone() },
        };
        Ok((name, child))
    }

    /// Returns the problem that this section has no key `name`.
    fn unknown(&self, quoted: &Value, name: &str) -> WrongKey {
        // A refused name is short; a longer one is not worth joining.
        let reason = |name: &str| refused::reason(&join(&self.known, name));
        if let Some(reason) = (name.len() <= LONGEST_COMPARED).then(|| reason(name)).flatten() {
            let known = join(&self.known, name);
            let written = join(&self.written, name);
            return WrongKey::Refused { known, written, reason };
        }
        WrongKey::Unknown(unknown(&self.known, quoted, name))
    }
}

/// Reason for refusing a key.
enum WrongKey {
    /// The key is unknown; the message is a sentence for the operator.
    Unknown(String),
    /// The key is unknown, and a reason is known. The names are as in [`KeyPath`].
    Refused { known: String, written: String, reason: &'static str },
}

struct Checker<'a> {
    file: &'a Path,
    assignments: Vec<Assignment>,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    /// Walks the keys and sections in `section`.
    fn section(&mut self, section: &KeyPath, node: &Node) {
        let entries = match &node.value {
            Value::Section(entries) => entries.as_slice(),
            // All keys of this section are commented out.
            Value::Null => return,
            other => {
                let instead = refused::instead_of_section(&section.known, other);
                let message = with_instead("a section of keys", other, instead);
                return self.problem(node.position, &section.written, message);
            }
        };
        let mut seen: Vec<(&str, Position)> = Vec::new();
        for (key, value) in entries {
            let (name, location) = match section.child(key) {
                Ok(child) => child,
                Err(WrongKey::Unknown(message)) => {
                    self.problem(key.position, &section.written, message);
                    continue;
                }
                Err(WrongKey::Refused { known, written, reason }) => {
                    self.refuse(key.position, &known, &written, reason, value);
                    continue;
                }
            };
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == name) {
                let message =
                    format!("duplicate key: line {} has the same key; remove one", first.line);
                self.problem(key.position, &location.written, message);
                continue;
            }
            seen.push((name, key.position));
            match KEYS.iter().find(|known| known.name == location.known) {
                Some(known) => self.key(known, &location, key.position, value),
                None => self.section(&location, value),
            }
        }
    }

    /// Adds the problem of a key that is refused with `reason`; for a section, one for each of its
    /// keys.
    fn refuse(
        &mut self,
        position: Position,
        known: &str,
        written: &str,
        reason: &'static str,
        node: &Node,
    ) {
        let entries = match &node.value {
            Value::Section(entries) if !entries.is_empty() => entries,
            _ => return self.problem(position, written, reason.to_owned()),
        };
        for (key, _) in entries {
            let name = match &key.value {
                Value::Text(name) if name.len() <= LONGEST_COMPARED => name.as_str(),
                _ => {
                    self.problem(key.position, written, reason.to_owned());
                    continue;
                }
            };
            let own = refused::reason(&join(known, name)).unwrap_or(reason);
            self.problem(key.position, &join(written, name), own.to_owned());
        }
    }

    fn key(
        &mut self,
        key: &'static ConfigKey,
        location: &KeyPath,
        position: Position,
        node: &Node,
    ) {
        let Some(value) = key.kind.check(&node.value) else {
            return self.reject(&location.written, &key.kind, node);
        };
        let Some(setting) = key.setting else { return };
        let path: Vec<_> = keys::path(setting, &location.given).map(str::to_owned).collect();
        if self.assignments.iter().any(|other| other.setting == path) {
            let names = KEYS.iter().filter(|other| other.setting == Some(setting));
            let names: Vec<_> = names.map(|key| key.name).collect();
            let message = format!("{} are two names of one key; remove one", names.join(" and "));
            return self.problem(position, key.name, message);
        }
        let (key, setting, position) = (key.name, path, node.position);
        self.assignments.push(Assignment { key, setting, position, value });
    }

    /// Adds a problem for each wrong value in `node`: for a list, at each wrong item, and at each
    /// wrong key of an item.
    fn reject(&mut self, key: &str, kind: &ValueKind, node: &Node) {
        match (kind, &node.value) {
            (ValueKind::List(inner), Value::List(items)) => {
                for item in items.iter().filter(|item| inner.check(&item.value).is_none()) {
                    self.reject(key, inner, item);
                }
            }
            // Report the wrong items of the list, and do not mention the word that may replace the
            // list.
            (ValueKind::Or(_, inner), Value::List(_)) => self.reject(key, inner, node),
            (ValueKind::Records(fields), Value::List(items)) => {
                for wrong in sections::problems(fields, key, items) {
                    match wrong {
                        SectionProblem::Section(position, key, message) => {
                            self.problem(position, &key, message)
                        }
                        SectionProblem::Value(kind, node, key) => self.reject(&key, kind, node),
                    }
                }
            }
            (ValueKind::NoDownload, Value::Bool(true)) => self.problem(
                node.position,
                key,
                "this appliance never downloads; write false, and copy packages into \
                 packages.drop_directory"
                    .to_owned(),
            ),
            (kind, value) => {
                let instead = refused::instead(key, kind, value);
                self.problem(node.position, key, with_instead(kind, value, instead));
            }
        }
    }

    fn problem(&mut self, position: Position, key: &str, message: String) {
        let file = self.file.to_owned();
        self.problems.push(Problem {
            file,
            position: Some(position),
            key: key.to_owned(),
            message,
        });
    }
}

/// Returns the message that `value` is wrong, with a sentence about what to write instead.
fn with_instead(expected: impl fmt::Display, value: &Value, instead: Option<&str>) -> String {
    let instead = instead.map(|instead| format!("; {instead}")).unwrap_or_default();
    format!("expected {expected}, found {value}{instead}")
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Returns the names directly below `section` of the table. Repeats a name for each key below it.
fn children(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |key| {
        let below = match section {
            "" => key.name,
            section => key.name.strip_prefix(section)?.strip_prefix('.')?,
        };
        below.split('.').next()
    })
}

/// Returns a message that `name` is not a key of `section`, with a guess of the intended key.
fn unknown(section: &str, quoted: &Value, name: &str) -> String {
    // Cut the name: the cost grows with its length, which the file chooses.
    let start: String = name.chars().take(LONGEST_COMPARED).collect();
    let distance = |known: &str| strsim::damerau_levenshtein(known, &start);
    let near = children(section)
        .min_by_key(|known| distance(known))
        // Suggest a key only if at most a third of its letters differ.
        .filter(|known| distance(known) * 3 <= known.len());
    let elsewhere = || {
        let last = |key: &&ConfigKey| key.name.rsplit('.').next() == Some(name);
        KEYS.iter().find(last).map(|key| key.name)
    };
    match (near.or_else(elsewhere), refused::reason_of_section(section)) {
        (Some(meant), _) => format!("unknown key {quoted}; did you mean \"{meant}\"?"),
        (None, Some(reason)) => format!("unknown key {quoted}; {reason}"),
        (None, None) => {
            let mut known: Vec<_> = children(section).collect();
            known.dedup();
            format!("unknown key {quoted}; known keys: {}", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    /// Returns the problems of `yaml`, one on each line, as an operator sees them.
    fn problems(yaml: &str) -> String {
        let root = parse(yaml.as_bytes()).expect(yaml);
        match check(Path::new("f"), &root) {
            Ok(_) => String::new(),
            Err(problems) => problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"),
        }
    }

    #[test]
    fn unknown_key_error_suggests_known_key() {
        let cases = [
            (
                "memory: { model_cache: { max_modles: 3 } }",
                "f:1:26: memory.model_cache: unknown key \"max_modles\"; did you mean \"max_models\"?",
            ),
            ("sockets: {}", "f:1:1: unknown key \"sockets\"; did you mean \"socket\"?"),
            (
                "memory:\n  max_models: 3",
                "f:2:3: memory: unknown key \"max_models\"; \
                 did you mean \"memory.model_cache.max_models\"?",
            ),
            ("log: { colour: 1 }", "f:1:8: log: unknown key \"colour\"; known keys: level"),
            (
                "clients: []",
                "f:1:1: unknown key \"clients\"; known keys: socket, memory, packages, embedding, models, aliases, \
                 tenants, require_sandbox, log",
            ),
            (
                "log.level: info",
                "f:1:1: unknown key \"log.level\"; known keys: socket, memory, packages, embedding, models, aliases, \
                 tenants, require_sandbox, log",
            ),
            (
                "log: &l { level: info }\nmemory: { <<: *l }",
                "f:2:11: memory: unknown key \"<<\"; known keys: backend, embedding_model, \
                 rerank_model, fallback_models, fallback_strategy, allow_fallback, \
                 allow_dimension_mismatch, dynamic_selection, preload_models, preload_expected, max_loaded_models, \
                 max_idle_time, memory_limit, min_free, \
                 eviction_policy, pressure, model_cache, download",
            ),
            (
                "memory: { download: { enabled: false, mirror: x } }",
                "f:1:39: memory.download: unknown key \"mirror\"; this appliance never downloads; \
                 remove this key, and copy packages into packages.drop_directory",
            ),
            (
                "models:\n  a.B-1@2.0:\n    memory_prioritty: 1",
                "f:3:5: models.a.B-1@2.0: unknown key \"memory_prioritty\"; \
                 did you mean \"memory_priority\"?",
            ),
            (
                "models: { a: { preload_models: true } }",
                "f:1:16: models.a: unknown key \"preload_models\"; \
                 did you mean \"memory.preload_models\"?",
            ),
            (
                "memory: { pinned: true }",
                "f:1:11: memory: unknown key \"pinned\"; did you mean \"models.<model>.pinned\"?",
            ),
            (
                "models: { a: { tier: 1 } }",
                "f:1:16: models.a: unknown key \"tier\"; \
                 known keys: memory_priority, max_idle_time, preload, pinned, max_sequence_length",
            ),
            (
                "models: { a/b: {} }",
                "f:1:11: models: expected the name of a model: 1 to 96 of the characters A-Z a-z 0-9 \
                 . _ - @, found \"a/b\"",
            ),
            ("models: { 3: {} }", "f:1:11: models: expected the name of a key, found 3"),
            ("3: {}", "f:1:1: expected the name of a key, found 3"),
            ("? [a]\n: b", "f:1:3: expected the name of a key, found a list"),
        ];
        for (yaml, expected) in cases {
            assert_eq!(problems(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn duplicate_key_is_refused() {
        let cases = [
            (
                "log:\n  level: info\n  level: warn\n",
                "f:3:3: log.level: duplicate key: line 2 has the same key; remove one",
            ),
            (
                "models: { a: { pinned: true }, b: { pinned: true }, a: {} }",
                "f:1:53: models.a: duplicate key: line 1 has the same key; remove one",
            ),
            (
                "log: {}\nlog: {}\n",
                "f:2:1: log: duplicate key: line 1 has the same key; remove one",
            ),
            (
                "memory: { model_cache: { bundled_only: true, bundled_models_only: true } }",
                "f:1:46: memory.model_cache.bundled_models_only: memory.model_cache.bundled_only \
                 and memory.model_cache.bundled_models_only are two names of one key; remove one",
            ),
        ];
        for (yaml, expected) in cases {
            assert_eq!(problems(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn section_is_mapping_or_empty() {
        for nothing in ["", "socket:", "socket: {}", "memory: { model_cache: ~ }", "models: { a: }"]
        {
            assert_eq!(problems(nothing), "", "{nothing}");
        }
        let cases = [
            ("[]", "f:1:1: expected a section of keys, found a list"),
            (
                "models: { pinned: true }",
                "f:1:19: models.pinned: expected a section of keys, found true",
            ),
            ("socket: 3", "f:1:9: socket: expected a section of keys, found 3"),
            (
                "memory: { model_cache: [x] }",
                "f:1:24: memory.model_cache: expected a section of keys, found a list",
            ),
        ];
        for (yaml, expected) in cases {
            assert_eq!(problems(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn tenant_and_alias_problems_are_located() {
        let name = "1 to 96 of the characters A-Z a-z 0-9 . _ -, a letter or digit first, in \
                    quotes if it looks like a number";
        let cases = [
            ("tenants: {}", "f:1:10: tenants: expected a list of sections, found a section".to_owned()),
            (
                "tenants:\n- { users: [a] }\n- b\n- { name: c, queue: 1, users: [~] }\n- { name: c }",
                "f:2:3: tenants[0]: the key \"name\" is missing; add it\n\
                 f:3:3: tenants[1]: expected a section of keys, found \"b\"\n\
                 f:4:14: tenants[2]: unknown key \"queue\"; known keys: name, users, groups, model, \
                 allowed_models, priority, max_concurrent, dedicated_queue\n\
                 f:4:32: tenants[2].users: expected a name or a numeric id, found nothing\n\
                 f:5:11: tenants[3]: line 4 has a section of the same name; use another name"
                    .to_owned(),
            ),
            (
                "tenants: [{ name: a, name: b, priority: 10, allowed_models: [m, a/b] }]",
                "f:1:22: tenants[0]: duplicate key \"name\"; remove one\n\
                 f:1:41: tenants[0].priority: expected 1 to 9, found 10\n\
                 f:1:65: tenants[0].allowed_models: expected the name of a model: 1 to 96 of the \
                 characters A-Z a-z 0-9 . _ - @, found \"a/b\""
                    .to_owned(),
            ),
            ("aliases: { a@1: {} }", format!("f:1:12: aliases: expected {name}, found \"a@1\"")),
            (
                "aliases: { a: { canary: { percent: 101 }, models: b } }",
                "f:1:36: aliases.a.canary.percent: expected 0 to 100, found 101\n\
                 f:1:43: aliases.a: unknown key \"models\"; did you mean \"model\"?"
                    .to_owned(),
            ),
        ];
        for (yaml, expected) in cases {
            assert_eq!(problems(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn download_settings_are_refused_with_alternative() {
        let instead = "this appliance never downloads; write false, and copy packages into packages.drop_directory";
        for (yaml, position, key) in [
            (
                "memory: { model_cache: { auto_download: true } }",
                "1:41",
                "model_cache.auto_download",
            ),
            ("memory: { download: { enabled: true } }", "1:32", "download.enabled"),
        ] {
            assert_eq!(problems(yaml), format!("f:{position}: memory.{key}: {instead}"));
            assert_eq!(problems(&yaml.replace("true", "false")), "");
        }
        let word = problems("memory: { download: { enabled: yes } }");
        assert_eq!(word, "f:1:32: memory.download.enabled: expected false, found \"yes\"");
    }

    #[test]
    fn file_problems_are_reported_in_order() {
        let yaml = "socket:\n  mode: 0660\n  paht: /x\nmemory:\n  preload_models: [ok, \"no way\", 3]\n\
                    embedding:\n  queue_size: 0\n  threads: many\n";
        assert_eq!(
            problems(yaml),
            "f:2:9: socket.mode: expected octal digits in quotes from \"0600\" to \"0777\" (without \
             quotes, programs disagree whether 0660 is octal), found 660\n\
             f:3:3: socket: unknown key \"paht\"; did you mean \"path\"?\n\
             f:5:24: memory.preload_models: expected the name of a model: 1 to 96 of the characters \
             A-Z a-z 0-9 . _ - @, found \"no way\"\n\
             f:5:34: memory.preload_models: expected the name of a model: 1 to 96 of the characters \
             A-Z a-z 0-9 . _ - @, found 3\n\
             f:7:15: embedding.queue_size: expected 1 to 100000, found 0\n\
             f:8:12: embedding.threads: expected auto or 1 to 256, found \"many\""
        );
    }
}
