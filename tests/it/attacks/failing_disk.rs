//! Attack: system calls of a running daemon fail with EIO, first those that read an entry of the
//! store, then those that write to any disk. `strace --inject` makes them fail, as in `faults`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use caxton::telemetry::log::Message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, file_name, names, until_answers, until_looked,
};
use crate::support::{Answer, Daemon, Root, pack, skipped};

/// A tracer that makes system calls of a daemon fail. Dropping it ends the tracer, and the calls
/// work again.
struct Failing {
    tracer: Child,
    _stderr: BufReader<ChildStderr>,
}

impl Failing {
    /// Makes each of the `calls` fail with EIO in every thread, only for `paths` unless the list is
    /// empty. Returns `None` where a process cannot be traced.
    fn begin(test: &str, daemon: &Daemon, calls: &str, paths: &[PathBuf]) -> Option<Self> {
        let mut command = Command::new("strace");
        command.args(["--follow-forks", "-o", "/dev/null", "-p", &daemon.pid().to_string()]);
        paths.iter().for_each(|path| {
            command.arg("-P").arg(path);
        });
        command.args(["-e", &format!("trace={calls}"), "-e"]);
        command.arg(format!("inject={calls}:error=EIO"));
        let Ok(mut tracer) = command.stderr(Stdio::piped()).spawn() else {
            skipped(test, "strace");
            return None;
        };
        let mut stderr = BufReader::new(tracer.stderr.take().unwrap());
        let mut line = String::new();
        while stderr.read_line(&mut line).unwrap() > 0 {
            // strace prints this line when it traces every thread, including those that start
            // later.
            if line.contains(" attached") {
                return Some(Self { tracer, _stderr: stderr });
            }
            assert!(!line.contains("exited"), "{line}");
        }
        tracer.wait().unwrap();
        assert!(line.contains("not permitted"), "{line}");
        skipped(test, "the right to trace");
        None
    }

    /// Ends the tracer, so that the calls work again.
    fn end(mut self) {
        let pid = Pid::from_raw(self.tracer.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.tracer.wait().unwrap();
    }
}

fn degraded(daemon: &Daemon) -> Vec<String> {
    let answer = daemon.get("/readyz");
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = String::from_utf8(answer.body).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("degraded: ")).map(str::to_owned).collect()
}

fn until_degraded(daemon: &Daemon, word: &str) {
    daemon.until(&format!("degraded: {word}"), || {
        degraded(daemon).iter().any(|reason| reason.contains(word)).then_some(())
    });
}

fn until_whole(daemon: &Daemon) {
    daemon.until("nothing degraded", || degraded(daemon).is_empty().then_some(()));
}

fn install(daemon: &Daemon, id: &str) {
    let file = daemon.path().join(file_name(id));
    fs::write(&file, pack("tiny-bert-mean", id, "1")).unwrap();
    let installed = daemon.cli().args(["model", "install"]).arg(&file).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    fs::remove_file(&file).unwrap();
}

fn verify(daemon: &Daemon) -> Answer {
    daemon.connect().request("POST", "/api/packages/m/verify", &[], b"")
}

#[test]
fn unreadable_entry_recovers_without_being_marked_corrupt() {
    let daemon = Root::new()
        .with("memory.fallback_strategy", json!("strict"))
        .with("memory.model_cache.validation_on_startup", json!(false))
        .start();
    install(&daemon, "m");
    // Restart, because a model in memory is not read again.
    let daemon = daemon.stop().start();
    let directory = entry(&daemon, "m");
    let files = Vec::from_iter(names(&directory).into_iter().map(|name| directory.join(name)));
    let test = "reads that fail";
    let Some(failing) = Failing::begin(test, &daemon, "read,pread64,preadv", &files) else {
        return;
    };
    let answer = ask(&daemon, "m");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("model_failed")));
    until_degraded(&daemon, "cannot be read");
    assert_ne!(verify(&daemon).status, 200);
    assert_eq!(daemon.package("m")["status"], "available");
    daemon.embed(json!("the default model"));

    failing.end();
    // A successful `verify` ends the wait for the next load, so that the next request loads the
    // model at once.
    assert_eq!(verify(&daemon).status, 200);
    assert_eq!(ask(&daemon, "m").status, 200);
    until_whole(&daemon);
    assert_eq!(daemon.package("m")["status"], "available");
    daemon.stop();
}

#[test]
fn failing_writes_delay_installs_but_not_answers() {
    let daemon = Root::new().with("memory.fallback_strategy", json!("strict")).start();
    until_looked(&daemon, "m");
    let test = "writes that fail";
    let calls = "fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,ftruncate";
    let Some(failing) = Failing::begin(test, &daemon, calls, &[]) else { return };
    fs::write(dropped(&daemon, "late"), pack("tiny-bert-mean", "late", "1")).unwrap();
    let line = daemon.wait_event_with(Message::PackageNotInstalled, &[&file_name("late")]);
    assert!(line.contains("os error 5"), "{line}");
    until_degraded(&daemon, "cannot be written");
    for id in ["bundled-mini", "m"] {
        assert_eq!(ask(&daemon, id).status, 200, "{id}");
    }
    let removed = daemon.cli().args(["model", "remove", "m"]).output().unwrap();
    assert!(!removed.status.success(), "{}", String::from_utf8_lossy(&removed.stdout));
    assert_eq!(ask(&daemon, "m").status, 200);
    assert!(dropped(&daemon, "late").exists());

    failing.end();
    install(&daemon, "given");
    until_answers(&daemon, "given");
    until_whole(&daemon);
    // The file need not be dropped again: the daemon retries it at its start.
    let daemon = daemon.stop().start();
    for id in ["late", "m", "given"] {
        until_answers(&daemon, id);
    }
    daemon.stop();
}
