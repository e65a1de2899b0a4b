//! Tests that the manual and the completions match the command line, the configuration and the
//! package format. Each file is generated and compared; `CAXTON_WRITE_MANUAL=1 cargo test --test it
//! manual` writes the files.
//!
//! A page is `packaging/man/NAME.in`, written by hand, in which a line `@word@` is replaced by
//! generated text.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod keys;
mod roff;
mod source;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use clap_complete::Shell;

use crate::support::{BOUND, Root, golden, skipped};

/// Version that the pages describe, and its date. The date does not depend on the build, so two
/// builds give the same bytes.
const VERSION: (&str, &str) = ("0.1.0", "2026-11-21");

const PAGES: [&str; 4] = ["caxton.1", "caxtond.8", "caxton.yaml.5", "caxton-package.5"];

const COMPLETIONS: [(Shell, &str); 3] =
    [(Shell::Bash, "caxton.bash"), (Shell::Zsh, "_caxton"), (Shell::Fish, "caxton.fish")];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the text that replaces a line `@word@` of a page.
fn generated(word: &str) -> String {
    match word {
        "caxton-options" => commands::options(&caxton()),
        "caxton-commands" => commands::subcommands(&caxton()),
        "caxton-examples" => commands::examples(&caxton()),
        "caxtond-options" => commands::options(&caxton::daemon::command()),
        "exit-status" => source::exit_status(),
        "keys" => keys::keys(),
        "manifest" => source::manifest(),
        "limits" => source::limits(),
        "journal" => source::journal(),
        _ => panic!("@{word}@ has no replacement"),
    }
}

/// Returns the command line without hidden commands and options.
fn caxton() -> clap::Command {
    let mut whole = caxton::cli::command();
    whole.build();
    whole
}

fn page(name: &str) -> String {
    let (version, date) = VERSION;
    let mut page = format!(
        ".\\\" Made from {name}.in by `CAXTON_WRITE_MANUAL=1 cargo test --test it manual`; change that.\n"
    );
    for line in read(&format!("packaging/man/{name}.in")).lines() {
        match line.strip_prefix('@').and_then(|line| line.strip_suffix('@')) {
            Some(word) => page.push_str(&generated(word)),
            None => page.push_str(&line.replace("@VERSION@", version).replace("@DATE@", date)),
        }
        if !page.ends_with('\n') {
            page.push('\n');
        }
    }
    page
}

fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    // Hide `caxton daemon`: `caxton demo` starts it, and users do not type it.
    let mut command = commands::without_hidden(&caxton::cli::command());
    clap_complete::generate(shell, &mut command, "caxton", &mut script);
    let text = String::from_utf8(script).unwrap();
    // Some generated lines end in blanks.
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

#[test]
fn pages_and_completions_match_the_types() {
    assert_eq!(VERSION.0, env!("CARGO_PKG_VERSION"), "a new version has a new day");
    let pages = PAGES.map(|name| (format!("packaging/man/{name}"), page(name)));
    let completions = COMPLETIONS
        .map(|(shell, name)| (format!("packaging/completions/{name}"), completion(shell)));
    let write = env::var_os("CAXTON_WRITE_MANUAL").is_some();
    for (path, text) in pages.into_iter().chain(completions) {
        if write {
            fs::write(repository(&path), text).unwrap();
            continue;
        }
        let stored = read(&path);
        let differs = stored.lines().zip(text.lines()).position(|(stored, made)| stored != made);
        assert!(
            stored == text,
            "{path} is not what the types say (line {:?}): CAXTON_WRITE_MANUAL=1 cargo test --test it manual",
            differs.map(|index| index + 1)
        );
    }
}

/// Returns whether `program` is installed. If not, prints that `test` is skipped.
fn is_there(program: &str, test: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        skipped(test, program);
    }
    found.is_ok()
}

#[test]
fn manual_pages_pass_formatters_without_warnings() {
    let test = "manual_pages_pass_formatters_without_warnings";
    let checkers: [(&str, &[&str]); 2] = [
        ("groff", &["-ww", "-man", "-Kutf8", "-Tutf8", "-z"]),
        ("mandoc", &["-Tlint", "-Wwarning"]),
    ];
    for (program, arguments) in checkers {
        if !is_there(program, &format!("{test} ({program})")) {
            continue;
        }
        for page in PAGES {
            let output = Command::new(program)
                .args(arguments)
                .arg(repository("packaging/man").join(page))
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(said.is_empty(), "{program}: {page}: {}", String::from_utf8_lossy(&said));
        }
    }
}

#[test]
fn manual_examples_succeed() {
    let daemon = Root::new().start();
    let place = tempfile::tempdir().unwrap();
    // Copy the directory, because the model would get the name of a link's target.
    let copied = Command::new("cp")
        .arg("-r")
        .arg(golden("tiny-bert-mean"))
        .arg(place.path().join("bge-small"))
        .status()
        .unwrap();
    assert!(copied.success());
    fs::create_dir(place.path().join("conf.d")).unwrap();
    for (name, text) in [
        ("texts.txt", "The pump runs hot.\n"),
        ("texts.jsonl", "\"The pump runs hot.\"\n\"The bearing is worn.\"\n\"A red car.\"\n"),
        ("conf.d/50-site.yaml", "log: { level: warn }\n"),
    ] {
        fs::write(place.path().join(name), text).unwrap();
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_caxton")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), env::var("PATH").unwrap());
    let examples = commands::example_lines(&caxton());
    assert!(examples.len() >= 15, "{examples:?}");
    for example in examples {
        let output = Command::new("sh")
            .args(["-euc", &example])
            .current_dir(place.path())
            .env("PATH", &path)
            .env("CAXTON_SOCKET", daemon.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // `caxton doctor` may find problems of the machine that runs the tests.
        let code = output.status.code();
        let is_fine = code == Some(0) || (example.starts_with("caxton doctor") && code == Some(1));
        assert!(is_fine, "{example}: {stderr}");
    }
    daemon.stop();
}

/// Runs `script` in `shell` and returns its output.
fn run_script(shell: &str, arguments: &[&str], script: &str) -> String {
    // A shell on a terminal would wait forever for output that never comes.
    let output = Command::new("timeout")
        .args([&BOUND.as_secs().to_string(), shell])
        .args(arguments)
        .arg(script)
        .current_dir(repository("packaging/completions"))
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{shell}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn bash_completes_commands_and_options() {
    let test = "bash_completes_commands_and_options";
    if !is_there("bash", test) {
        return;
    }
    let complete = |words: &str| {
        let script = format!(
            "source ./caxton.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _caxton caxton \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"; complete -p caxton >&2"
        );
        run_script("bash", &["--norc", "--noprofile", "-c"], &script)
    };
    assert_eq!(complete("caxton mo"), "model\n");
    assert_eq!(complete("caxton model verif"), "verify\n");
    assert_eq!(complete("caxton model pack --prec"), "--precision\n");
    assert_eq!(complete("caxton daem"), "\n");
}

#[test]
fn zsh_completes_commands() {
    let test = "zsh_completes_commands";
    if !is_there("zsh", test) {
        return;
    }
    // zsh's completion works only on a terminal, so a second shell gets a pseudo-terminal.
    let script = "zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell \"PS1=; fpath=($PWD \\$fpath); autoload -Uz compinit; compinit -u -D; print loa''ded\"
        zpty -r shell loaded '*loaded*'
        zpty -w -n shell $'caxton mo\\t'
        zpty -r shell typed '*model*'
        print -r -- \"$typed\"";
    let typed = run_script("zsh", &["-fc"], script);
    assert!(typed.contains("model"), "{typed}");
}

#[test]
fn fish_completes_commands() {
    let test = "fish_completes_commands";
    if !is_there("fish", test) {
        return;
    }
    let script = "source caxton.fish; complete -C 'caxton mo'; complete -C 'caxton model verif'";
    let typed = run_script("fish", &["--no-config", "-c"], script);
    let words: Vec<_> = typed.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["model", "verify"]);
}
