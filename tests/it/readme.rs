//! Runs every `caxton` and `curl` line in the shell blocks of the README, with a daemon of the
//! test's own.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use crate::support::{Root, skipped};

/// Socket in the README; it is replaced by that of the test's daemon.
const SOCKET: &str = "/run/caxton/caxton.sock";

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

#[test]
fn commands_are_found_in_shell_blocks_only() {
    let text = "a\n```sh\ncaxton one \\\n  two\nls\n```\ncaxton no\n```python\ncaxton no\n```\n";
    assert_eq!(commands(text), ["caxton one   two", "ls"]);
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let Some(models) = env::var_os("CAXTON_MODELS") else {
        return skipped("every_command_of_the_readme_does_what_it_says", "CAXTON_MODELS");
    };
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
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
    let mut count = 0;
    for command in commands(&text) {
        let program = command.split(' ').next().unwrap();
        if !["caxton", "curl"].contains(&program) {
            continue;
        }
        count += 1;
        let answer = run(&command);
        if program == "curl" {
            let vectors = [r#""object":"list""#, r#""embeddings":[["#];
            assert!(vectors.iter().any(|vectors| answer.contains(vectors)), "{answer}");
        }
    }
    // Nine of `caxton model`, six of `memory`, `status`, `embed`, `bench`, `events`, `top`, two of
    // `check`, `cat-config` and two of `curl`. The count fails if a block is no longer found.
    assert_eq!(count, 25);
}
