//! Observes and disturbs the self-tests of a daemon, as an attacker or the kernel could: they are
//! child processes.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::pack;
use super::packages::{ask, dropped};
use super::{BOUND, Daemon};

/// Number of packages to drop before a self-test must be caught. Each self-test takes a few
/// hundredths of a second.
const TRIES: usize = 50;
/// Beginning of the command line of a self-test.
const COMMAND: &str = "caxton\0--self-test";

/// A stopped self-test process. Dropping this kills it.
#[derive(Debug)]
pub(crate) struct SelfTest(Pid);

impl SelfTest {
    /// Drops packages until the self-test of one is caught. Returns its id, which begins with
    /// `prefix`, and the process.
    pub(crate) fn catch(daemon: &Daemon, prefix: &str) -> (String, Self) {
        for number in 0..TRIES {
            let id = format!("{prefix}{number}");
            let package = pack("tiny-bert-mean", &id, "1");
            fs::write(dropped(daemon, &id), package).unwrap();
            let caught = Self::wait(daemon, || ask(daemon, &id).status == 200);
            if let Some(caught) = caught {
                return (id, caught);
            }
        }
        panic!("no self-test was caught");
    }

    /// Waits for a self-test until `over` returns true.
    pub(crate) fn wait(daemon: &Daemon, over: impl Fn() -> bool) -> Option<Self> {
        loop {
            for _ in 0..100 {
                let found = children(daemon.pid()).into_iter().find(|pid| is_self_test(*pid));
                if let Some(pid) = found
                    && kill(pid, Signal::SIGSTOP).is_ok()
                {
                    let caught = Self(pid);
                    if caught.is_stopped() && !caught.has_answered() {
                        return Some(caught);
                    }
                }
            }
            if over() {
                return None;
            }
        }
    }

    /// Waits until every thread is stopped or the process has ended. Returns whether it is stopped.
    fn is_stopped(&self) -> bool {
        loop {
            let states = self.states();
            if states.is_empty() || states.iter().any(|state| matches!(state, 'Z' | 'X')) {
                return false;
            }
            if states.iter().all(|state| matches!(state, 'T' | 't')) {
                return true;
            }
            thread::yield_now();
        }
    }

    /// Returns whether the process has written its answer; the daemon then ignores how it ends.
    fn has_answered(&self) -> bool {
        let io = fs::read_to_string(format!("/proc/{}/io", self.0)).unwrap_or_default();
        // The process writes nothing but its answer.
        !io.lines().any(|line| line == "wchar: 0")
    }

    /// Returns the state of each thread; empty when the process has ended.
    fn states(&self) -> Vec<char> {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.0)) else {
            return Vec::new();
        };
        let state = |thread: fs::DirEntry| stat(&thread.path())?[0].chars().next();
        threads.filter_map(|thread| state(thread.ok()?)).collect()
    }

    /// Returns the content of the file `name` in its `/proc` directory.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0)).unwrap()
    }

    /// Returns the targets of its file descriptors.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap();
        let target = |link: std::io::Result<fs::DirEntry>| fs::read_link(link.unwrap().path());
        links.map(|link| target(link).unwrap().display().to_string()).collect()
    }

    /// Resumes the process. It may be so young that it does not yet end together with its parent.
    pub(crate) fn resume(self) {
        // The process may have ended.
        kill(self.0, Signal::SIGCONT).unwrap_or(());
        // Skip `drop`, which would kill the process.
        std::mem::forget(self);
    }

    /// Ends the process by `signal`, as the kernel or a crash would.
    pub(crate) fn end(self, signal: Signal) {
        kill(self.0, signal).unwrap();
        // SIGKILL ends a stopped process at once, and the daemon may have reaped it by now.
        kill(self.0, Signal::SIGCONT).unwrap_or(());
        // Skip `drop`, which would kill the process.
        std::mem::forget(self);
    }
}

impl Drop for SelfTest {
    fn drop(&mut self) {
        // The process may have ended.
        kill(self.0, Signal::SIGKILL).unwrap_or(());
    }
}

/// Waits until no self-test that `parent` started is alive.
pub(crate) fn until_none_of(parent: u32) {
    let deadline = Instant::now() + BOUND;
    let parent = format!("\"parent\":{parent},");
    let is_one = |process: std::io::Result<fs::DirEntry>| {
        // The command line of an ended process is empty.
        let line = fs::read_to_string(process.unwrap().path().join("cmdline"));
        line.is_ok_and(|line| line.starts_with(COMMAND) && line.contains(&parent))
    };
    while fs::read_dir("/proc").unwrap().any(is_one) {
        assert!(Instant::now() < deadline, "a self-test outlives its daemon");
        thread::yield_now();
    }
}

fn children(parent: u32) -> Vec<Pid> {
    // Some kernels do not provide /proc/PID/task/TID/children.
    let processes = fs::read_dir("/proc").unwrap().filter_map(|process| {
        process.unwrap().file_name().to_str()?.parse().ok().map(Pid::from_raw)
    });
    let is_child = |pid: &Pid| {
        let fields = stat(Path::new(&format!("/proc/{pid}")));
        fields.is_some_and(|fields| fields[1] == parent.to_string())
    };
    processes.filter(is_child).collect()
}

/// Returns the fields of the status of a process or thread from the third one on, which is the
/// state; the parent follows.
fn stat(directory: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Returns whether the process already runs the self-test program. Until then, the parent waits for
/// its exec.
fn is_self_test(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(COMMAND))
}
