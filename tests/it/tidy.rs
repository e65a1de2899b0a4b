//! Checks the structure of the source: which module may use which, and the first line of files.
//!
//! The source is read as lines. A test proves for each rule that it rejects a line that breaks it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that each module of `src` may name with `crate::`. The binaries may name
/// `caxton::daemon` and `caxton::cli`.
const DIRECTIONS: &[(&str, &[&str])] = &[
    (
        "daemon",
        &["api", "service", "models", "memory", "package", "config", "telemetry", "files", "base"],
    ),
    ("cli", &["api", "models", "engine", "package", "config", "files", "base"]),
    ("api", &["service", "models", "memory", "engine", "package", "config", "telemetry", "base"]),
    ("service", &["models", "memory", "engine", "package", "config", "telemetry", "base"]),
    ("models", &["engine", "memory", "package", "config", "telemetry", "files", "base"]),
    ("engine", &["base"]),
    ("memory", &["telemetry", "files", "base"]),
    ("package", &["telemetry", "files", "base"]),
    ("config", &["base"]),
    // The tests of `files::watch` use the loader of the configuration.
    ("files", &["config", "telemetry"]),
    ("telemetry", &["base"]),
    // The test of `errors` constructs a file error.
    ("base", &["files"]),
];

/// Crates that only these files or modules may name.
const KEEPERS: &[(&str, &[&str])] = &[
    ("serde_saphyr", &["config/file.rs"]),
    ("figment", &["config/"]),
    ("zstd", &["package/", "api/content_encoding.rs"]),
    ("flate2", &["api/content_encoding.rs"]),
    ("sha2", &["package/"]),
    ("minisign_verify", &["package/"]),
    ("memmap2", &["package/mapping.rs"]),
    ("zip", &["package/"]),
    ("candle_core", &["engine/reference/"]),
    ("candle_nn", &["engine/reference/"]),
    ("candle_transformers", &["engine/reference/"]),
    ("tokenizers", &["engine/"]),
    ("rayon", &["engine/"]),
    ("axum", &["api/", "daemon/", "cli/"]),
    ("form_urlencoded", &["api/"]),
    ("hyper", &["daemon/", "cli/"]),
    ("clap", &["daemon/", "cli/"]),
    ("sd_notify", &["daemon/"]),
    ("landlock", &["daemon/sandbox/", "models/ingest/selftest/"]),
    ("seccompiler", &["daemon/sandbox/", "models/ingest/selftest/"]),
    ("listenfd", &["daemon/"]),
    ("indicatif", &["cli/"]),
    ("anyhow", &["cli/"]),
    ("sysinfo", &["api/"]),
    ("notify", &["files/watch/"]),
    ("prometheus_client", &["telemetry/metrics/"]),
    ("ratatui", &["cli/"]),
    ("crossterm", &["cli/"]),
    (
        "tokio",
        &[
            "models/",
            "memory/",
            "service/",
            "api/",
            "daemon/",
            "cli/",
            "files/watch/",
            "telemetry/events.rs",
        ],
    ),
];

struct Source {
    /// Path relative to `src`, with `/`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for child in fs::read_dir(directory).unwrap() {
            let path: PathBuf = child.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 30, "the source was not found");
    found
}

/// Returns the top-level module of a file: its folder, or the file's own name.
fn room(path: &str) -> &str {
    path.split_once('/').map_or_else(|| path.trim_end_matches(".rs"), |(folder, _)| folder)
}

/// Returns the names that follow `prefix` in `line`, outside of comments; `prefix{a::b, c}`
/// contains two.
fn named<'a>(line: &'a str, prefix: &str) -> Vec<&'a str> {
    let code = line.split("//").next().unwrap_or_default();
    let name = |text: &'a str| {
        text.trim_start()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
    };
    code.match_indices(prefix)
        .flat_map(|(at, _)| {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => list.split(',').map(name).collect(),
                None => vec![name(rest)],
            }
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Returns the number of `super` that lead from a file to the crate root.
fn depth(path: &str) -> usize {
    path.trim_end_matches("/mod.rs").split('/').count()
}

fn wrong_directions(source: &Source) -> Vec<String> {
    let room = room(&source.path);
    if ["lib", "bin"].contains(&room) {
        return Vec::new();
    }
    let Some((_, allowed)) = DIRECTIONS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: the room {room} is not in the plan", source.path)];
    };
    let mut wrong = Vec::new();
    let mut in_tests = false;
    for (index, line) in source.text.lines().enumerate() {
        in_tests |= line == "#[cfg(test)]";
        // Names on the following lines would be missed.
        if line.trim_end().ends_with("crate::{") {
            wrong.push(format!("src/{}:{}: write one `use` a room", source.path, index + 1));
        }
        let above = "super::".repeat(depth(&source.path) + usize::from(in_tests));
        let climbing = named(line, &above);
        for name in named(line, "crate::").into_iter().chain(climbing) {
            // The module's own path and macros are not dependencies.
            if name != room && !allowed.contains(&name) {
                wrong.push(format!("src/{}:{}: {room} may not use {name}", source.path, index + 1));
            }
        }
    }
    wrong
}

fn wrong_crates(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (name, keepers) in KEEPERS {
            let names = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if names && !keepers.iter().any(|keeper| source.path.starts_with(keeper)) {
                wrong.push(format!("src/{}:{}: names {name}", source.path, index + 1));
            }
        }
    }
    wrong
}

fn wrong_shape(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    if !source.text.starts_with("//!") {
        wrong.push(format!("src/{}:1: does not begin with what lives there", source.path));
    }
    for (index, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with("#[ignore") {
            wrong.push(format!("src/{}:{}: an ignored test", source.path, index + 1));
        }
    }
    wrong
}

/// Returns the lines of the command line that write without the function that escapes control
/// characters.
fn other_writers(source: &Source) -> Vec<String> {
    let is_writer = source.path == "cli/terminal.rs";
    let mut wrong = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let names = ["io::stdout", "io::stderr"].iter().any(|name| code.contains(name));
        if names && room(&source.path) == "cli" && !is_writer {
            wrong.push(format!("src/{}:{}: writes past cli/terminal.rs", source.path, index + 1));
        }
    }
    wrong
}

fn assert_none(rule: fn(&Source) -> Vec<String>) {
    let wrong: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_use_only_lower_modules() {
    assert_none(wrong_directions);
}

#[test]
fn crates_are_used_only_in_their_modules() {
    assert_none(wrong_crates);
}

#[test]
fn files_begin_with_module_documentation() {
    assert_none(wrong_shape);
}

#[test]
fn command_line_writes_only_in_terminal_module() {
    assert_none(other_writers);
}

#[test]
fn binaries_have_at_most_twelve_lines() {
    for source in sources().iter().filter(|source| room(&source.path) == "bin") {
        assert!(source.text.lines().count() <= 12, "{} is more than a start", source.path);
    }
}

/// Returns the names after `attacks/` in a text, where they are marked as code.
fn attacks_named(text: &str) -> Vec<&str> {
    let name = |rest: &'_ str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        end.unwrap_or(rest.len())
    };
    let found = text.match_indices("`attacks/").map(|(at, prefix)| &text[at + prefix.len()..]);
    found.map(|rest| &rest[..name(rest)]).collect()
}

#[test]
fn every_attack_in_security_page_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named = attacks_named(&text);
    assert!(named.len() > 10, "the names were not found");
    let list = fs::read_to_string(root.join("tests/it/attacks/mod.rs")).unwrap();
    for name in named {
        assert!(list.lines().any(|line| line == format!("mod {name};")), "no test attacks/{name}");
    }
    assert_eq!(attacks_named("`attacks/a_b`, `attacks/c`; attacks/d"), ["a_b", "c"]);
}

#[test]
fn each_rule_can_fail() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    for (path, text) in [
        ("engine/mod.rs", "use crate::package::Digest;"),
        ("package/store/mod.rs", "let x = crate::models::spec();"),
        ("base/units.rs", "use crate::{files::FileError, models};"),
        ("cli/mod.rs", "use crate::daemon::run;"),
        ("service/mod.rs", "use crate::api::wire;"),
        ("models/mod.rs", "use crate::service::Input;"),
        ("attic/mod.rs", ""),
        ("engine/mod.rs", "use super::package::Digest;"),
        ("engine/reference/mod.rs", "let x = super::super::config::load();"),
        ("engine/pooling.rs", "    use super::super::package::Digest;"),
        ("engine/pooling.rs", "#[cfg(test)]\n    use super::super::super::package::Digest;"),
        ("engine/pooling.rs", "use crate::{"),
    ] {
        assert!(!wrong_directions(&source(path, text)).is_empty(), "{path}: {text}");
    }
    for (path, text) in [
        ("engine/mod.rs", "/// [`crate::package`] in a comment"),
        ("engine/mod.rs", "use crate::engine::Loaded;"),
        ("models/mod.rs", "use crate::engine::{Options, Tokens};"),
        ("config/keys.rs", "#[cfg(test)]\n    use super::super::file::parse;"),
        ("engine/pooling.rs", "use super::package::Digest;"),
    ] {
        assert_eq!(wrong_directions(&source(path, text)), [""; 0], "{path}: {text}");
    }
    assert!(!other_writers(&source("cli/mod.rs", "writeln!(io::stdout().lock())?;")).is_empty());
    assert!(!wrong_crates(&source("api/mod.rs", "use zstd::Decoder;")).is_empty());
    assert!(!wrong_crates(&source("service/mod.rs", "use axum::Json;")).is_empty());
    assert!(wrong_crates(&source("api/mod.rs", "use tokio_zstd::a; // zstd::b")).is_empty());
    for text in ["use x;", "//! x\n    #[ignore = \"later\"]\n"] {
        assert!(!wrong_shape(&source("a.rs", text)).is_empty());
    }
    assert!(wrong_shape(&source("a.rs", "//! x\n#[cfg(test)]\n")).is_empty());
}
