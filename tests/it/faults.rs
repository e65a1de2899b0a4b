//! Tests that one failing system call leaves the store in its old or its new state. Each call that
//! reads or changes the store fails once, with EIO, ENOSPC or EROFS.
//!
//! `strace --inject` makes the calls fail: it fails the n-th call of a kind without running it, in
//! an ordinary build of the program. A preloaded library would need a C compiler here, and would
//! miss calls that bypass the C library. A supervisor with seccomp notifications would have to be
//! written, and would need the same list of calls. strace counts the calls of each thread
//! separately, so a call may fail once in each thread.
//!
//! A run without faults finds the calls with a path below the store, and their numbers. Each of
//! them then fails in a run of its own, on a copy of the same store. The three errors alternate
//! from call to call; with `CAXTON_SLOW_TESTS` set, each call fails with each error.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use caxton::package::{InstallStatus, Store};

use crate::support::{Root, cli, pack, skipped};

/// Calls that open, list, read, write, sync, rename, create and delete files.
const CALLS: &str = "openat,read,pread64,write,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,\
                     rmdir,getdents64,statx,newfstatat,fchmod,chmod,ftruncate";
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EROFS"];

/// Usable content of a store: the available entries, and the entry that `m` resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    available: BTreeSet<String>,
    meant: Option<String>,
}

impl Held {
    fn of(directory: &Path) -> Self {
        let (store, damaged) = Store::open(directory).unwrap();
        assert_eq!(damaged, Vec::<String>::new());
        let entries = store.entries();
        let entries = entries.filtered(|entry| entry.record.status == InstallStatus::Available);
        for entry in &entries {
            // Check that the entry is whole, not only listed.
            store.read(&entry.key).unwrap();
        }
        let meant = entries.resolve("m").map(|entry| entry.key.to_string());
        Self { available: entries.iter().map(|entry| entry.key.to_string()).collect(), meant }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Command on a store without a daemon, and the store before it.
struct Change<'a> {
    root: &'a Root,
    arguments: Vec<String>,
    before: &'a Path,
}

impl Change<'_> {
    /// Runs the command under strace with `options`, on a fresh copy of the store.
    fn run(&self, options: &[String]) -> Output {
        caxton::files::remove(&self.root.state()).unwrap();
        copy(self.before, &self.root.state());
        let mut command = Command::new("strace");
        command
            .args(["--follow-forks", "--quiet=all"])
            .args(options)
            .args(["--", cli().get_program().to_str().unwrap()]);
        command.env_remove("CAXTON_SOCKET").arg("--config").arg(self.root.config());
        command.args(&self.arguments).output().unwrap()
    }

    /// Returns the calls with a path below the store, each as its kind and its number among the
    /// thread's calls of that kind; `None` where strace cannot be used.
    fn calls(&self) -> Option<Vec<(String, usize)>> {
        let trace = self.root.path().join("trace");
        let options = ["--decode-fds=path", "-o", trace.to_str().unwrap(), "-e"].map(str::to_owned);
        let traced = self.run(&[&options[..], &[format!("trace={CALLS}")]].concat());
        let text = fs::read_to_string(&trace).ok()?;
        assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
        let state = self.root.state();
        let state = state.to_str().unwrap();
        let mut counts = BTreeMap::<(&str, &str), usize>::new();
        let mut found = BTreeSet::new();
        for line in text.lines() {
            let Some((thread, call)) = line.trim_start().split_once(' ') else { continue };
            let Some((kind, arguments)) = call.trim_start().split_once('(') else { continue };
            if !CALLS.split(',').any(|known| known.trim() == kind) {
                continue;
            }
            let count = counts.entry((thread, kind)).or_default();
            *count += 1;
            if arguments.contains(state) {
                found.insert((kind.to_owned(), *count));
            }
        }
        Some(found.into_iter().collect())
    }
}

/// Runs `arguments` on a copy of the store `before`, once for each failing call. Checks that the
/// store then holds its old content, or the content of a run without faults.
fn old_or_new(test: &str, root: &Root, before: &Path, arguments: &[&str]) {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let change = Change { root, arguments, before };
    if Command::new("strace").arg("-V").output().is_err() {
        return skipped(test, "strace");
    }
    let old = {
        caxton::files::remove(&root.state()).unwrap();
        copy(before, &root.state());
        Held::of(&root.state())
    };
    let Some(calls) = change.calls() else { return skipped(test, "the right to trace") };
    let new = Held::of(&root.state());
    assert_ne!(old, new, "{test}");
    let is_slow = std::env::var_os("CAXTON_SLOW_TESTS").is_some();
    let (mut olds, mut news, mut failed) = (0, 0, 0);
    for (at, (kind, number)) in calls.iter().enumerate() {
        for (turn, error) in ERRORS.iter().enumerate() {
            if !is_slow && at % ERRORS.len() != turn {
                continue;
            }
            let inject = format!("inject={kind}:error={error}:when={number}");
            let options = ["-o", "/dev/null", "-e", &format!("trace={kind}"), "-e", &inject]
                .map(str::to_owned);
            let done = change.run(&options);
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(!said.contains("panicked"), "{test}, {inject}: {said}");
            failed += usize::from(!done.status.success());
            let held = Held::of(&root.state());
            match held {
                _ if held == new => news += 1,
                _ if held == old => olds += 1,
                _ => panic!("{test}, {inject}: {held:?} is neither {old:?} nor {new:?}: {said}"),
            }
            // A command that reports success must have made its change.
            assert!(!done.status.success() || held == new, "{test}, {inject}: {held:?}");
        }
    }
    eprintln!(
        "{test}: {} calls fail, {failed} commands; {olds} times old, {news} times new",
        calls.len()
    );
    assert!(failed > 0 && olds > 0, "{test}: no fault had an effect");
    // The next run works on the store that the last fault left.
    let again = change.run(&[
        "-o".to_owned(),
        "/dev/null".to_owned(),
        "-e".to_owned(),
        "trace=none".to_owned(),
    ]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(Held::of(&root.state()), new, "{test}");
}

#[test]
fn disk_fault_leaves_old_or_new_state() {
    let root = Root::without_bundled();
    let file = |version: &str| {
        let file = root.path().join(format!("m-{version}.model.tar.zst"));
        fs::write(&file, pack("tiny-bert-mean", "m", version)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let [one, two] = ["1", "2"].map(file);
    let run = |arguments: &[&str]| {
        let done = root.cli().args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let [with_one, with_two] = ["with-one", "with-two"].map(|name| root.path().join(name));
    run(&["model", "install", &one]);
    copy(&root.state(), &with_one);
    run(&["model", "install", &two]);
    copy(&root.state(), &with_two);
    old_or_new("install", &root, &with_one, &["model", "install", &two]);
    old_or_new("remove", &root, &with_one, &["model", "remove", "m"]);
    old_or_new("roll back", &root, &with_two, &["model", "rollback", "m"]);
}
