//! Runs every `caxton` and `curl` line in the shell blocks of the README and of `docs/`, with a
//! daemon of the test's own. Checks the links between these pages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::{env, fs, iter};

use crate::support::{Root, skipped};

/// Socket in the pages; it is replaced by that of the test's daemon.
const SOCKET: &str = "/run/caxton/caxton.sock";
/// Models of commands that cannot run, because `CAXTON_MODELS` has no directory of them.
const ABSENT: [&str; 2] = ["ms-marco-MiniLM-L6-v2", "nomic-embed-text-v1.5"];

/// One page of the documentation for operators.
pub(crate) struct Page {
    /// Path relative to the repository.
    pub(crate) path: String,
    /// Contents of the file.
    pub(crate) text: String,
}

/// Returns the README and the pages in `docs/`, in the order of their names.
pub(crate) fn pages() -> Vec<Page> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(repository.join("docs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut docs: Vec<String> = names.map(|name| format!("docs/{name}")).collect();
    docs.sort();
    let paths = iter::once("README.md".to_owned()).chain(docs);
    let pages = paths.map(|path| {
        let text = fs::read_to_string(repository.join(&path)).unwrap();
        Page { path, text }
    });
    pages.collect()
}

/// Returns the commands in the shell blocks of `text`, with continued lines joined.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_block = false;
    let mut pending = String::new();
    for line in text.lines() {
        match line {
            "```sh" => in_block = true,
            "```" => in_block = false,
            line if in_block => match line.strip_suffix('\\') {
                Some(begun) => pending.push_str(begun),
                None => commands.push(std::mem::take(&mut pending) + line),
            },
            _ => {}
        }
    }
    commands
}

/// Returns the targets of the relative links in `text`: the path and the heading after `#`. Either
/// may be empty.
fn links(text: &str) -> Vec<(&str, &str)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let relative = targets.filter(|target| !target.contains("://"));
    relative.map(|target| target.split_once('#').unwrap_or((target, ""))).collect()
}

/// Returns the anchors of the headings in `text`.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words.replace(' ', "-").replace(|c: char| !(c.is_alphanumeric() || "-_".contains(c)), "")
    };
    headings.map(anchor).collect()
}

#[test]
fn commands_are_found_in_shell_blocks_only() {
    let text = "a\n```sh\ncaxton one \\\n  two\nls\n```\ncaxton no\n```python\ncaxton no\n```\n";
    assert_eq!(commands(text), ["caxton one   two", "ls"]);
}

#[test]
fn relative_links_and_anchors_are_found() {
    let text = "## A plain, b\n[a](docs/a.md) [b](b.md#b-c)\n[c](#d) [e](https://example.org/e)\n";
    assert_eq!(links(text), [("docs/a.md", ""), ("b.md", "b-c"), ("", "d")]);
    assert_eq!(anchors(text), ["a-plain-b"]);
}

/// Checks that links also work in `/usr/share/doc/caxton`, which has only the README, SECURITY.md
/// and `docs/`.
#[test]
fn links_lead_to_installed_pages() {
    let pages = pages();
    let mut count = 0;
    for page in &pages {
        for (target, heading) in links(&page.text) {
            count += 1;
            let path = match (page.path.strip_prefix("docs/"), target) {
                (_, "") => page.path.clone(),
                (None, target) => target.to_owned(),
                (Some(_), target) => match target.strip_prefix("../") {
                    Some(above) => above.to_owned(),
                    None => format!("docs/{target}"),
                },
            };
            let found = pages.iter().find(|page| page.path == path);
            assert!(found.is_some() || path == "SECURITY.md", "{}: {target}", page.path);
            if let (Some(found), false) = (found, heading.is_empty()) {
                let anchors = anchors(&found.text);
                assert!(anchors.iter().any(|anchor| anchor == heading), "{path}: {heading}");
            }
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn every_documented_command_succeeds() {
    let Some(models) = env::var_os("CAXTON_MODELS") else {
        return skipped("every_documented_command_succeeds", "CAXTON_MODELS");
    };
    let daemon = Root::new().start();
    let place = tempfile::tempdir().unwrap();
    let source = Path::new(&models).join("all-MiniLM-L6-v2");
    std::os::unix::fs::symlink(source, place.path().join("all-MiniLM-L6-v2")).unwrap();
    fs::write(place.path().join("texts.jsonl"), "\"The pump runs hot.\"\n").unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_caxton")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), env::var("PATH").unwrap());
    let run = |command: &str| {
        let output = Command::new("sh")
            .args(["-euc", &command.replace(SOCKET, &daemon.socket().display().to_string())])
            .current_dir(place.path())
            .env("PATH", &path)
            .env("CAXTON_SOCKET", daemon.socket())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let mut counts = Vec::new();
    for page in pages() {
        let mut count = 0;
        for command in commands(&page.text) {
            let program = command.split(' ').next().unwrap();
            if !["caxton", "curl"].contains(&program)
                || ABSENT.iter().any(|model| command.contains(model))
            {
                continue;
            }
            count += 1;
            let answer = run(&command);
            if program == "curl" {
                let vectors = [r#""object":"list""#, r#""embeddings":[["#];
                assert!(vectors.iter().any(|vectors| answer.contains(vectors)), "{answer}");
            }
        }
        counts.push((page.path, count));
    }
    let counts: Vec<_> = counts.iter().map(|(path, count)| (path.as_str(), *count)).collect();
    // A count is too small if a block is no longer found.
    let expected = [
        // `status`, `curl` and `embed`.
        ("README.md", 3),
        // `curl`.
        ("docs/api.md", 1),
        // Two of `check`, and `cat-config`.
        ("docs/configuration.md", 3),
        // Nine of `memory`, and `model stats`.
        ("docs/memory.md", 10),
        // Fifteen of `model`, and two of `bench`.
        ("docs/models.md", 17),
        // `top` and `events`.
        ("docs/operations.md", 2),
        ("docs/security.md", 0),
    ];
    assert_eq!(counts, expected);
}
