//! The self-test of an entry that nothing is known of yet, in a process of its own.
//!
//! A hostile model can abort, hang or take all memory while it is loaded. The daemon therefore never loads a model
//! before its self-test has passed. [`Tester`] executes the own program with a hidden argument, [`run_if_asked`] is
//! the other side. The child reads one entry of the store, loads the model, computes one vector, and writes one line of
//! JSON. Whatever else happens to the child is a refusal of the package.
//!
//! The child is bounded by:
//! - `RLIMIT_AS`: what was reserved for the model with a margin, and the files that are mapped ([`Bounds`]).
//! - `RLIMIT_CPU` and a deadline that the parent holds. The parent kills the child at the deadline and when the daemon
//!   stops; the kernel kills it when the parent ends.
//! - Landlock: it reads the directory of its entry and the description of the processor, and writes nothing.
//! - seccomp: no socket, no other program, no other process, no file opened for writing.
//! - `oom_score_adj`: the kernel takes the child before the daemon when memory is short.
//!
//! Why the program is executed, and no helper is started before the sandbox: a child inherits the Landlock domain and
//! the seccomp filter of the daemon, so that it never has a right that the daemon lacks, and no second process stays in
//! memory. The daemon needs the right to execute for that, which Landlock limits to the own program and to the loader
//! that the kernel starts it with. A daemon that was taken over gains nothing by it: whatever it executes has the
//! daemon's own rights.

mod child;
mod confine;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::install::InstallError;
use super::load::LoadError;
use crate::engine::{Footprint, Options, Precision};
use crate::package::{Key, Store, StoreError};
use crate::printable;
use crate::units::Bytes;
pub use child::run_if_asked;

/// The hidden argument that makes a program the child; what follows is a [`Task`].
const ARGUMENT: &str = "--self-test-of-an-entry";
/// The program that runs, whatever its name is now.
const PROGRAM: &str = "/proc/self/exe";
/// How long a self-test may take. A board with a slow core needs half a minute for the largest tokenizer.
const DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of files for which there is a second more: a slow card gives that many, hashed on a slow core.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// Address space of the child beside the model: buffers, the allocator's own.
const BESIDE: u64 = 64 << 20;
/// Address space of one thread: the stack that the standard library gives it, and a guard.
const THREAD: u64 = 3 << 20;
/// Threads beside those of the engine.
const THREADS_BESIDE: u64 = 4;
/// The longest line that a child may answer with.
const MAX_ANSWER: u64 = 64 << 10;
/// Characters of it that are told.
const MAX_REASON: usize = 2000;
/// How often the parent looks whether the daemon stops.
const LOOK: Duration = Duration::from_millis(50);
/// The kernel takes a process with this score before all others.
const TAKEN_FIRST: &str = "1000";

/// Runs self-tests, one at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tester {
    how: How,
    stop: CancellationToken,
}

#[derive(Clone, Debug)]
enum How {
    /// In a child. Both files are out of reach within the sandbox of the daemon. `score` is this process's
    /// `oom_score_adj`, which a child inherits; `null` takes what the child writes to standard error.
    Child { score: Option<Arc<Mutex<File>>>, null: Option<Arc<File>> },
    /// In this process, which is one of unit tests.
    #[cfg(test)]
    Here,
}

impl Tester {
    /// A tester that kills the running child, and starts no other, when `stop` is cancelled.
    ///
    /// To be made before the process enters its sandbox.
    pub fn new(stop: CancellationToken) -> Self {
        let score = File::options().read(true).write(true).open("/proc/self/oom_score_adj");
        let score = score.ok().map(|file| Arc::new(Mutex::new(file)));
        let null = File::options().write(true).open("/dev/null").ok().map(Arc::new);
        Self { how: How::Child { score, null }, stop }
    }

    /// A tester that nothing stops but the end of the process.
    pub fn unstoppable() -> Self {
        Self::new(CancellationToken::new())
    }

    /// A tester for unit tests, whose program is not this one.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self { how: How::Here, stop: CancellationToken::new() }
    }

    /// Returns whether the daemon is stopping.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Tests the entry `key` of `store`, which takes `footprint` with these options. Blocks until the test has ended.
    ///
    /// # Errors
    /// When the model does not work or ends the child, the child cannot be started, or the daemon stops.
    pub(super) fn test(
        &self,
        store: &Store,
        key: &Key,
        footprint: &Footprint,
        options: Options,
    ) -> Result<(), InstallError> {
        match &self.how {
            How::Child { score, null } => {
                let entry = store.entries().into_iter().find(|entry| entry.key == *key);
                let entry = entry.ok_or_else(|| StoreError::Unknown(key.clone()))?;
                let bounds = Bounds::new(footprint, entry.manifest.total_size(), options.threads);
                let directory = store.open_directory().map_err(StoreError::from)?;
                let mut command =
                    command(directory, key, &bounds, options).map_err(InstallError::NotTested)?;
                if let Some(null) = null {
                    command.stderr(null.try_clone().map_err(InstallError::NotTested)?);
                }
                let ended = {
                    let _raised = score.as_deref().and_then(Raised::new);
                    Running::start(&mut command)
                }
                .and_then(|running| running.wait(bounds.deadline, &self.stop));
                verdict(key, ended.map_err(InstallError::NotTested)?, &bounds)
            }
            #[cfg(test)]
            How::Here => child::test(store, key, options).into_result(key),
        }
    }
}

/// What a child may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    /// Bytes of address space beyond those of the program itself.
    address_space: u64,
    deadline: Duration,
}

impl Bounds {
    /// The bounds for a model that takes `footprint`, whose files have `size` bytes, on so many threads.
    ///
    /// The margin is half of what was reserved: what grows is copied, and the footprint is an estimate.
    fn new(footprint: &Footprint, size: u64, threads: usize) -> Self {
        let reserved = footprint.peak_bytes().saturating_add(footprint.mapped_bytes);
        let threads = (threads as u64).saturating_add(THREADS_BESIDE);
        let address_space = [reserved, reserved / 2, size, BESIDE, threads.saturating_mul(THREAD)];
        Self {
            address_space: address_space.into_iter().fold(0, u64::saturating_add),
            deadline: DEADLINE + Duration::from_secs(size / BYTES_PER_SECOND),
        }
    }
}

/// What the child is told. The directory of the store is its standard input: the path may lead nowhere for the child.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    /// The entry.
    key: String,
    /// The process that waits for the answer.
    parent: i32,
    threads: usize,
    batch_tokens: usize,
    precision: String,
    address_space: u64,
    /// The deadline, as seconds of all processors.
    processor_seconds: u64,
}

fn command(directory: File, key: &Key, bounds: &Bounds, options: Options) -> io::Result<Command> {
    let task = Task {
        key: key.to_string(),
        parent: nix::unistd::getpid().as_raw(),
        threads: options.threads,
        batch_tokens: options.batch_tokens,
        precision: options.precision.name().to_owned(),
        address_space: bounds.address_space,
        processor_seconds: bounds.deadline.as_secs(),
    };
    let task = serde_json::to_string(&task)?;
    let mut command = Command::new(PROGRAM);
    command.arg0("caxton").args([ARGUMENT, &task]).stdin(directory);
    // Without a reader, where there is no better place for it.
    command.stderr(Stdio::piped());
    // With one arena of glibc all address space that is taken is also asked for.
    command.env_clear().env("MALLOC_ARENA_MAX", "1");
    Ok(command)
}

/// What the child found out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The model gives the vector that its manifest promises.
    Passed,
    /// It gives another one.
    WrongVector { cosine: f64, precision: String },
    /// The files are no model that this version can run.
    Refused(String),
    /// A file is not what was installed.
    Corrupt(String),
    /// The engine panicked.
    Panicked,
    /// The machine did not do what the test needs.
    NotTested(String),
}

impl Answer {
    fn into_result(self, key: &Key) -> Result<(), InstallError> {
        Err(match self {
            Self::Passed => return Ok(()),
            Self::WrongVector { cosine, precision } => match precision.parse::<Precision>() {
                Ok(precision) => LoadError::SelfTest { cosine, precision }.into(),
                Err(error) => LoadError::from(error).into(),
            },
            Self::Refused(reason) => LoadError::Tested(printable(&reason)).into(),
            Self::Corrupt(reason) => {
                StoreError::Corrupt { key: key.clone(), reason: printable(&reason) }.into()
            }
            Self::Panicked => InstallError::Panicked,
            Self::NotTested(reason) => {
                InstallError::NotTested(io::Error::other(printable(&reason)))
            }
        })
    }
}

/// Returns the beginning of what a child said, as it may be shown.
fn printable(text: &str) -> String {
    let beginning: String = text.chars().take(MAX_REASON).collect();
    printable::line(&beginning).into_owned()
}

/// How a child ended.
#[derive(Debug)]
enum Ended {
    /// It answered, or its end of the pipe was closed.
    Itself { answer: Vec<u8>, status: ExitStatus },
    /// It was killed at the deadline.
    TooLate,
    /// It was killed because the daemon stops.
    Stopped,
}

/// Judges what a child did within `bounds`.
fn verdict(key: &Key, ended: Ended, bounds: &Bounds) -> Result<(), InstallError> {
    let (answer, status) = match ended {
        Ended::Itself { answer, status } => (answer, status),
        Ended::TooLate => {
            let seconds = bounds.deadline.as_secs();
            return Err(InstallError::Crashed(format!("did not end within {seconds} s")));
        }
        Ended::Stopped => return Err(InstallError::Stopping),
    };
    match serde_json::from_slice::<Answer>(&answer) {
        Ok(answer) => answer.into_result(key),
        // It was killed for having written something, however it would have ended.
        Err(_no_answer) if !answer.is_empty() => {
            Err(InstallError::Crashed("wrote a result that cannot be read".to_owned()))
        }
        Err(_no_answer) => Err(InstallError::Crashed(how(status, bounds))),
    }
}

/// Says how a child ended that did not answer.
fn how(status: ExitStatus, bounds: &Bounds) -> String {
    let Some(signal) = status.signal() else {
        return format!("ended without a result: {status}");
    };
    let name = Signal::try_from(signal).map_or("of an unknown name", Signal::as_str);
    let why = match Signal::try_from(signal) {
        Ok(Signal::SIGXCPU) => {
            format!(": it took more than {} s of processor time", bounds.deadline.as_secs())
        }
        Ok(Signal::SIGABRT) => format!(
            ", as it is when it gets no more memory: it may have {} beside the program",
            Bytes(bounds.address_space)
        ),
        Ok(Signal::SIGKILL) => ", probably by the kernel because memory is short".to_owned(),
        _ => String::new(),
    };
    format!("was ended by signal {signal} ({name}){why}")
}

/// A child, which does not outlive this.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.stdout(Stdio::piped()).spawn()?;
        Ok(Self(child))
    }

    /// Waits for the answer; kills the child then, and at the deadline, and when `stop` is cancelled.
    ///
    /// On the thread that started it: the kernel kills the child when that thread ends.
    fn wait(mut self, deadline: Duration, stop: &CancellationToken) -> io::Result<Ended> {
        let until = Instant::now() + deadline;
        let pipe = self.0.stdout.take().ok_or_else(|| io::Error::other("the child has no pipe"))?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let reader = thread::Builder::new().name("self-test".to_owned()).spawn(move || {
            let mut answer = Vec::new();
            let read = BufReader::new(pipe.take(MAX_ANSWER)).read_until(b'\n', &mut answer);
            // The parent may have given up.
            drop(sender.send(read.map(|_bytes| answer)));
        })?;
        let answer = loop {
            let left = until.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(LOOK)) {
                Ok(answer) => break Ok(answer?),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(Vec::new()),
                Err(mpsc::RecvTimeoutError::Timeout) if stop.is_cancelled() => {
                    break Err(Ended::Stopped);
                }
                Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => {
                    break Err(Ended::TooLate);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        };
        // A child that has ended keeps its status: a signal that comes later changes nothing.
        self.0.kill()?;
        let status = self.0.wait()?;
        // Its end of the pipe is closed now.
        drop(reader.join());
        Ok(match answer {
            Ok(answer) => Ended::Itself { answer, status },
            Err(ended) => ended,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that was waited for is not there any more.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// This process with the score of the child that it starts, until this is dropped: less than a millisecond, in which
/// the kernel would take this process first.
struct Raised<'a> {
    score: &'a Mutex<File>,
    was: Vec<u8>,
}

impl<'a> Raised<'a> {
    fn new(score: &'a Mutex<File>) -> Option<Self> {
        let file = score.lock().unwrap_or_else(PoisonError::into_inner);
        let mut was = vec![0; 16];
        let length = file.read_at(&mut was, 0).ok()?;
        was.truncate(length);
        file.write_at(TAKEN_FIRST.as_bytes(), 0).ok()?;
        drop(file);
        Some(Self { score, was })
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        let file = self.score.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_at(&self.was, 0) {
            tracing::debug!(%error, "the score for the kernel's choice stays raised");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { address_space: 5 << 20, deadline: Duration::from_secs(7) };

    fn key() -> Key {
        format!("m@1+{}", "0".repeat(64)).parse().unwrap()
    }

    fn run(script: &str, deadline: Duration, stop: &CancellationToken) -> Ended {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
        Running::start(&mut command).unwrap().wait(deadline, stop).unwrap()
    }

    fn judged(script: &str) -> Result<(), InstallError> {
        let key = key();
        let stop = CancellationToken::new();
        verdict(&key, run(script, Duration::from_secs(60), &stop), &BOUNDS)
    }

    fn reason(script: &str) -> String {
        match judged(script) {
            Err(InstallError::Crashed(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_is_believed_however_the_child_ends() {
        judged("echo '\"passed\"'; exec sleep 60").unwrap();
        judged("echo '\"passed\"'; kill -9 $$").unwrap();
        let wrong = judged(r#"echo '{"wrong_vector":{"cosine":0.5,"precision":"int8"}}'"#);
        let is_wrong = matches!(
            wrong,
            Err(InstallError::Load(LoadError::SelfTest { precision: Precision::Int8, .. }))
        );
        assert!(is_wrong, "{wrong:?}");
        let refused = judged(r#"printf '{"refused":"a\\u001b[31mb\\u202ec"}\n'"#).unwrap_err();
        assert!(crate::errors::chain(&refused).ends_with(r"a\u{1b}[31mb\u{202e}c"), "{refused:?}");
        let machine = judged(r#"echo '{"not_tested":"no thread"}'"#);
        assert!(matches!(machine, Err(InstallError::NotTested(_))), "{machine:?}");
        let panicked = judged("echo '\"panicked\"'");
        assert!(matches!(panicked, Err(InstallError::Panicked)), "{panicked:?}");
    }

    #[test]
    fn a_child_that_ends_without_an_answer_is_a_refusal_that_says_how() {
        assert!(reason("kill -ABRT $$").contains("signal 6 (SIGABRT)"));
        assert!(
            reason("kill -ABRT $$").contains("may have 5.0 MiB"),
            "{}",
            reason("kill -ABRT $$")
        );
        assert!(reason("kill -XCPU $$").contains("more than 7 s of processor time"));
        assert!(reason("kill -KILL $$").contains("memory is short"));
        assert!(reason("kill -SEGV $$").contains("SIGSEGV"));
        assert!(reason("exit 3").contains("exit status: 3"));
        assert!(reason("exit 3").contains("without a result"));
        assert!(reason("echo nonsense").contains("cannot be read"));
        // More than an answer may have, without an end.
        assert!(reason("exec yes x | tr -d '\\n'").contains("cannot be read"));
    }

    #[test]
    fn a_child_that_hangs_is_killed_at_the_deadline_also_when_its_pipe_is_closed() {
        let stop = CancellationToken::new();
        let ended = run("exec sleep 60", Duration::from_millis(50), &stop);
        assert!(matches!(ended, Ended::TooLate), "{ended:?}");
        let key = key();
        let error = verdict(&key, ended, &BOUNDS).unwrap_err();
        assert!(error.to_string().ends_with("did not end within 7 s"), "{error}");
        let began = Instant::now();
        let closed = run("exec >&-; exec sleep 60", Duration::from_secs(60), &stop);
        assert!(matches!(closed, Ended::Itself { .. }), "{closed:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_child_is_killed_when_the_daemon_stops() {
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = run("exec sleep 60", Duration::from_secs(60), &stop);
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
    }

    #[test]
    fn the_bounds_grow_with_the_reservation_and_with_the_files() {
        let footprint = |weight_bytes, mapped_bytes| Footprint {
            weight_bytes,
            mapped_bytes,
            scratch_bytes: 0,
            loading_bytes: 0,
        };
        let none = Bounds::new(&footprint(0, 0), 0, 2);
        assert_eq!(none.address_space, BESIDE + 6 * THREAD);
        assert_eq!(none.deadline, DEADLINE);
        let some = Bounds::new(&footprint(100, 20), 30, 2);
        assert_eq!(some.address_space - none.address_space, 180 + 30);
        let large = Bounds::new(&footprint(0, 0), 80 << 20, 2);
        assert_eq!(large.deadline, DEADLINE + Duration::from_secs(10));
        Bounds::new(&footprint(u64::MAX, u64::MAX), u64::MAX, usize::MAX);
    }

    #[test]
    fn the_score_is_raised_for_the_child_alone() {
        let Tester { how: How::Child { score: Some(score), .. }, .. } = Tester::unstoppable()
        else {
            return;
        };
        let now = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before = now();
        if let Some(raised) = Raised::new(&score) {
            assert_eq!(now().trim(), TAKEN_FIRST);
            drop(raised);
        }
        assert_eq!(now(), before);
    }
}
