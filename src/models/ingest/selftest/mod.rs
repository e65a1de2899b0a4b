//! Runs the self-test of an untested entry in a child process.
//!
//! A hostile model can abort, hang or take all memory while it is loaded. Therefore the daemon
//! never loads a model before its self-test has passed. [`SelfTester`] executes its own program
//! with a hidden argument, and [`run_if_asked`] handles that argument. The child reads one entry of
//! the store, loads the model, computes one vector, and writes one line of JSON. Any other end of
//! the child rejects the package.
//!
//! The child is bounded by:
//! - `RLIMIT_AS`: the memory that was reserved for the model, with a margin, and the mapped files
//!   ([`ChildLimits`]).
//! - `RLIMIT_CPU`, and a deadline that the parent enforces. The parent kills the child at the
//!   deadline and when the daemon stops. The kernel kills the child when the parent ends.
//! - Landlock: the child reads the directory of its entry and the description of the processor, and
//!   writes no file.
//! - seccomp: no socket, no other program, no other process, no file opened for writing.
//! - `oom_score_adj`: when memory is short, the OOM killer kills the child before the daemon.
//!
//! The daemon executes its own program, and does not start a helper before it enters its sandbox,
//! for two reasons. A child inherits the Landlock domain and the seccomp filter of the daemon, so
//! that it never has a right that the daemon lacks. And no second process stays in memory. In
//! return, the daemon needs the right to execute. Landlock limits this right to the daemon's own
//! program and to the loader with which the kernel starts it. An attacker who controls the daemon
//! gains nothing by it: an executed program has the rights of the daemon.

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

use crate::base::printable;
use crate::base::units::Bytes;
use crate::engine::{EngineOptions, Footprint, Precision};
use crate::models::ingest::install::InstallError;
use crate::models::residency::load::LoadError;
use crate::package::{EntryKey, Store, StoreError};
pub use child::run_if_asked;

/// Hidden argument that makes the program the child. The next argument is a [`ChildTask`] in JSON.
const ARGUMENT: &str = "--self-test-of-an-entry";
/// Running program, even if its file was renamed or replaced.
const PROGRAM: &str = "/proc/self/exe";
/// Timeout of a self-test without its allowance for file size. A board with a slow core needs half
/// a minute for the largest tokenizer.
const BASE_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of files that extend the timeout by one second: the rate at which a slow card is read and
/// a slow core hashes.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// Address space of the child in addition to the model: buffers, and overhead of the allocator.
const EXTRA_ADDRESS_SPACE: u64 = 64 << 20;
/// Address space of one thread: the stack of the standard library, and a guard page.
const THREAD_ADDRESS_SPACE: u64 = 3 << 20;
/// Number of threads in addition to those of the engine.
const EXTRA_THREADS: u64 = 4;
/// Largest answer of a child, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Characters of the child's text that are kept in an error.
const MAX_REASON: usize = 2000;
/// Interval at which the parent checks whether the daemon stops.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Value of `oom_score_adj` that makes the OOM killer choose the process before all others.
const HIGHEST_OOM_SCORE: &str = "1000";

/// Runner of self-tests. Cheap to clone. Only one test may run at a time.
#[derive(Clone, Debug)]
pub struct SelfTester {
    mode: TestMode,
    stop: CancellationToken,
}

#[derive(Clone, Debug)]
enum TestMode {
    /// Test in a child process. Both files are opened early: the sandbox of the daemon denies
    /// access to them. `score` is the `oom_score_adj` of this process, which a child inherits.
    /// `null` discards the standard error of the child.
    Child { score: Option<Arc<Mutex<File>>>, null: Option<Arc<File>> },
    /// Test in this process, for unit tests.
    #[cfg(test)]
    InProcess,
}

impl SelfTester {
    /// Creates a tester. Cancelling `stop` kills the running child and prevents new ones.
    ///
    /// Must be called before the process enters its sandbox.
    pub fn new(stop: CancellationToken) -> Self {
        let score = File::options().read(true).write(true).open("/proc/self/oom_score_adj");
        let score = score.ok().map(|file| Arc::new(Mutex::new(file)));
        let null = File::options().write(true).open("/dev/null").ok().map(Arc::new);
        Self { mode: TestMode::Child { score, null }, stop }
    }

    /// Creates a tester that stops only with the process.
    pub fn without_stop() -> Self {
        Self::new(CancellationToken::new())
    }

    /// Creates a tester for unit tests. Their program cannot act as the child.
    #[cfg(test)]
    pub(crate) fn in_process() -> Self {
        Self { mode: TestMode::InProcess, stop: CancellationToken::new() }
    }

    /// Returns whether the daemon is stopping.
    pub(in crate::models) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Tests the entry `key` of `store`, whose memory is `footprint` with these options. Blocks
    /// until the test has ended. Returns the figures of the test.
    ///
    /// # Errors
    /// Fails if the model does not work or crashes the child, if the child cannot be started, or if
    /// the daemon stops.
    pub(in crate::models) fn test(
        &self,
        store: &Store,
        key: &EntryKey,
        footprint: &Footprint,
        options: EngineOptions,
    ) -> Result<SelfTestFigures, InstallError> {
        match &self.mode {
            TestMode::Child { score, null } => {
                let entry = store.entries().get(key).cloned();
                let entry = entry.ok_or_else(|| StoreError::Unknown(key.clone()))?;
                let bounds =
                    ChildLimits::new(footprint, entry.manifest.total_size(), options.threads);
                let directory = store.open_directory().map_err(StoreError::from)?;
                let mut command =
                    command(directory, key, &bounds, options).map_err(InstallError::NotTested)?;
                if let Some(null) = null {
                    command.stderr(null.try_clone().map_err(InstallError::NotTested)?);
                }
                // Restore the score of this process right after the start, before waiting.
                let ended = {
                    let _raised = score.as_deref().and_then(RaisedOomScore::new);
                    RunningChild::start(&mut command)
                }
                .and_then(|running| running.wait(bounds.deadline, &self.stop));
                judge_end(key, ended.map_err(InstallError::NotTested)?, &bounds)
            }
            #[cfg(test)]
            TestMode::InProcess => child::test(store, key, options).into_result(key),
        }
    }
}

/// Figures of a self-test that passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfTestFigures {
    /// Cosine between the vector of the manifest and the computed one.
    pub cosine: f64,
    /// Precision in which the model ran.
    pub precision: Precision,
    /// Time to read the files of the model, check their digests and load the model.
    pub load: Duration,
    /// Memory of the weights in bytes.
    pub weight_bytes: u64,
}

/// Limits of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChildLimits {
    /// Bytes of address space in addition to those of the program itself.
    address_space: u64,
    deadline: Duration,
}

impl ChildLimits {
    /// Returns the limits for a model of `footprint` with `size` bytes of files, on `threads`
    /// threads.
    ///
    /// The margin is half of the reservation: growing buffers are copied, and the footprint is an
    /// estimate.
    fn new(footprint: &Footprint, size: u64, threads: usize) -> Self {
        let reserved = footprint.peak_bytes().saturating_add(footprint.mapped_bytes);
        let threads = (threads as u64).saturating_add(EXTRA_THREADS);
        let address_space = [
            reserved,
            reserved / 2,
            size,
            EXTRA_ADDRESS_SPACE,
            threads.saturating_mul(THREAD_ADDRESS_SPACE),
        ];
        Self {
            address_space: address_space.into_iter().fold(0, u64::saturating_add),
            deadline: BASE_TIMEOUT + Duration::from_secs(size / BYTES_PER_SECOND),
        }
    }
}

/// Parameters of the child. The directory of the store is not among them. It is the standard input
/// of the child, because its path may be unreachable for the child.
#[derive(Debug, Serialize, Deserialize)]
struct ChildTask {
    /// Key of the entry.
    key: String,
    /// Process id of the parent, which waits for the answer.
    parent: i32,
    threads: usize,
    batch_tokens: usize,
    precision: String,
    address_space: u64,
    /// Limit of processor time in seconds, summed over all threads.
    processor_seconds: u64,
}

fn command(
    directory: File,
    key: &EntryKey,
    bounds: &ChildLimits,
    options: EngineOptions,
) -> io::Result<Command> {
    let task = ChildTask {
        key: key.to_string(),
        parent: nix::unistd::getpid().as_raw(),
        threads: options.threads,
        batch_tokens: options.batch_tokens,
        precision: options.precision.name().to_owned(),
        address_space: bounds.address_space,
        // The kernel adds up the time of all threads, and the deadline is a time by the clock.
        processor_seconds: bounds.deadline.as_secs().saturating_mul(options.threads.max(1) as u64),
    };
    let task = serde_json::to_string(&task)?;
    let mut command = Command::new(PROGRAM);
    command.arg0("caxton").args([ARGUMENT, &task]).stdin(directory);
    // Fallback if `/dev/null` could not be opened: a pipe that is never read.
    command.stderr(Stdio::piped());
    // Use one arena: each further arena of glibc reserves address space that it does not use, and
    // `RLIMIT_AS` counts it.
    command.env_clear().env("MALLOC_ARENA_MAX", "1");
    Ok(command)
}

/// Result of a test, as the child reports it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TestOutcome {
    /// The model computes the vector that its manifest declares.
    Passed { cosine: f64, precision: String, load_us: u64, weight_bytes: u64 },
    /// The model computes another vector.
    WrongVector { cosine: f64, precision: String },
    /// The files are not a model that this version can run.
    Refused(String),
    /// A file differs from the installed one.
    Corrupt(String),
    /// The engine panicked.
    Panicked,
    /// The test could not run because of the machine.
    NotTested(String),
}

impl TestOutcome {
    fn into_result(self, key: &EntryKey) -> Result<SelfTestFigures, InstallError> {
        Err(match self {
            Self::Passed { cosine, precision, load_us, weight_bytes } => {
                let precision = precision.parse().map_err(LoadError::from)?;
                let load = Duration::from_micros(load_us);
                return Ok(SelfTestFigures { cosine, precision, load, weight_bytes });
            }
            Self::WrongVector { cosine, precision } => match precision.parse::<Precision>() {
                Ok(precision) => LoadError::SelfTest { cosine, precision }.into(),
                Err(error) => LoadError::from(error).into(),
            },
            Self::Refused(reason) => LoadError::FailedInChild(printable(&reason)).into(),
            Self::Corrupt(reason) => {
                StoreError::Corrupt { key: key.clone(), reason: printable(&reason) }.into()
            }
            Self::Panicked => InstallError::SelfTestPanicked,
            Self::NotTested(reason) => {
                InstallError::NotTested(io::Error::other(printable(&reason)))
            }
        })
    }
}

/// Returns the beginning of a text from a child, with unprintable characters escaped.
fn printable(text: &str) -> String {
    let beginning: String = text.chars().take(MAX_REASON).collect();
    printable::line(&beginning).into_owned()
}

/// End of a child.
#[derive(Debug)]
enum ChildEnd {
    /// The child answered, or it closed its end of the pipe.
    Exited { answer: Vec<u8>, status: ExitStatus },
    /// The child was killed at the deadline.
    TimedOut,
    /// The child was killed because the daemon stops.
    Stopped,
}

/// Judges the end of a child that ran within `bounds`.
fn judge_end(
    key: &EntryKey,
    ended: ChildEnd,
    bounds: &ChildLimits,
) -> Result<SelfTestFigures, InstallError> {
    let (answer, status) = match ended {
        ChildEnd::Exited { answer, status } => (answer, status),
        ChildEnd::TimedOut => {
            let seconds = bounds.deadline.as_secs();
            return Err(InstallError::Crashed(format!("did not end within {seconds} s")));
        }
        ChildEnd::Stopped => return Err(InstallError::Stopping),
    };
    match serde_json::from_slice::<TestOutcome>(&answer) {
        Ok(answer) => answer.into_result(key),
        // The parent killed the child because it had written something. So its exit status means
        // nothing.
        Err(_no_answer) if !answer.is_empty() => {
            Err(InstallError::Crashed("wrote a result that cannot be read".to_owned()))
        }
        Err(_no_answer) => Err(InstallError::Crashed(describe_end(status, bounds))),
    }
}

/// Describes the end of a child that did not answer.
fn describe_end(status: ExitStatus, bounds: &ChildLimits) -> String {
    let Some(signal) = status.signal() else {
        return format!("ended without a result: {status}");
    };
    let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
    let why = match Signal::try_from(signal) {
        Ok(Signal::SIGXCPU) => {
            format!(": it took more than {} s of processor time", bounds.deadline.as_secs())
        }
        Ok(Signal::SIGABRT) => format!(
            ", probably because it reached its memory limit: {} in addition to the program",
            Bytes(bounds.address_space)
        ),
        Ok(Signal::SIGKILL) => ", probably by the kernel because memory is short".to_owned(),
        _ => String::new(),
    };
    format!("was ended by signal {signal} ({name}){why}")
}

/// Running child. Dropping it kills the child.
struct RunningChild(Child);

impl RunningChild {
    fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.stdout(Stdio::piped()).spawn()?;
        Ok(Self(child))
    }

    /// Waits for the answer, the deadline or `stop`, whichever comes first. Then kills the child.
    ///
    /// Must run on the thread that started the child: the kernel kills the child when that thread
    /// ends.
    fn wait(mut self, deadline: Duration, stop: &CancellationToken) -> io::Result<ChildEnd> {
        let until = Instant::now() + deadline;
        let pipe = self.0.stdout.take();
        let pipe =
            pipe.ok_or_else(|| io::Error::other("the self-test process has no output pipe"))?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let reader = thread::Builder::new().name("self-test".to_owned()).spawn(move || {
            let mut answer = Vec::new();
            let read = BufReader::new(pipe.take(MAX_ANSWER)).read_until(b'\n', &mut answer);
            // The parent may have stopped waiting.
            drop(sender.send(read.map(|_bytes| answer)));
        })?;
        let answer = loop {
            let left = until.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(STOP_POLL_INTERVAL)) {
                Ok(answer) => break Ok(answer?),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(Vec::new()),
                Err(mpsc::RecvTimeoutError::Timeout) if stop.is_cancelled() => {
                    break Err(ChildEnd::Stopped);
                }
                Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => {
                    break Err(ChildEnd::TimedOut);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        };
        // Killing a child that has ended changes nothing: its exit status stays the same.
        self.0.kill()?;
        let status = self.0.wait()?;
        // The reader ends now, because the child's end of the pipe is closed.
        drop(reader.join());
        Ok(match answer {
            Ok(answer) => ChildEnd::Exited { answer, status },
            Err(ended) => ended,
        })
    }
}

impl Drop for RunningChild {
    fn drop(&mut self) {
        // If the child was waited for already, both calls do nothing.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Guard that raises the `oom_score_adj` of this process while it starts a child, which inherits
/// the value. Dropping the guard restores the value. In between, for less than a millisecond, the
/// OOM killer would choose this process first.
struct RaisedOomScore<'a> {
    score: &'a Mutex<File>,
    original: Vec<u8>,
}

impl<'a> RaisedOomScore<'a> {
    fn new(score: &'a Mutex<File>) -> Option<Self> {
        let file = score.lock().unwrap_or_else(PoisonError::into_inner);
        let mut was = vec![0; 16];
        let length = file.read_at(&mut was, 0).ok()?;
        was.truncate(length);
        file.write_at(HIGHEST_OOM_SCORE.as_bytes(), 0).ok()?;
        drop(file);
        Some(Self { score, original: was })
    }
}

impl Drop for RaisedOomScore<'_> {
    fn drop(&mut self) {
        let file = self.score.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_at(&self.original, 0) {
            tracing::debug!(%error, "oom_score_adj cannot be restored and stays raised");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: ChildLimits =
        ChildLimits { address_space: 5 << 20, deadline: Duration::from_secs(7) };

    fn key() -> EntryKey {
        format!("m@1+{}", "0".repeat(64)).parse().unwrap()
    }

    fn run(script: &str, deadline: Duration, stop: &CancellationToken) -> ChildEnd {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
        RunningChild::start(&mut command).unwrap().wait(deadline, stop).unwrap()
    }

    fn judged(script: &str) -> Result<SelfTestFigures, InstallError> {
        let key = key();
        let stop = CancellationToken::new();
        judge_end(&key, run(script, Duration::from_secs(60), &stop), &BOUNDS)
    }

    /// Answer of a child whose model works.
    const PASSED: &str =
        r#"{"passed":{"cosine":0.5,"precision":"f32","load_us":1500,"weight_bytes":7}}"#;

    fn reason(script: &str) -> String {
        match judged(script) {
            Err(InstallError::Crashed(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn child_result_counts_regardless_of_exit() {
        let figures = judged(&format!("echo '{PASSED}'; exec sleep 60")).unwrap();
        let (load, precision) = (Duration::from_micros(1500), Precision::F32);
        assert_eq!(figures, SelfTestFigures { cosine: 0.5, precision, load, weight_bytes: 7 });
        judged(&format!("echo '{PASSED}'; kill -9 $$")).unwrap();
        let wrong = judged(r#"echo '{"wrong_vector":{"cosine":0.5,"precision":"int8"}}'"#);
        let is_wrong = matches!(
            wrong,
            Err(InstallError::Load(LoadError::SelfTest { precision: Precision::Int8, .. }))
        );
        assert!(is_wrong, "{wrong:?}");
        let refused = judged(r#"printf '{"refused":"a\\u001b[31mb\\u202ec"}\n'"#).unwrap_err();
        assert!(
            crate::base::errors::chain(&refused).ends_with(r"a\u{1b}[31mb\u{202e}c"),
            "{refused:?}"
        );
        let machine = judged(r#"echo '{"not_tested":"no thread"}'"#);
        assert!(matches!(machine, Err(InstallError::NotTested(_))), "{machine:?}");
        let panicked = judged("echo '\"panicked\"'");
        assert!(matches!(panicked, Err(InstallError::SelfTestPanicked)), "{panicked:?}");
    }

    #[test]
    fn missing_result_error_explains_child_exit() {
        assert!(reason("kill -ABRT $$").contains("signal 6 (SIGABRT)"));
        assert!(
            reason("kill -ABRT $$").contains("memory limit: 5.0 MiB"),
            "{}",
            reason("kill -ABRT $$")
        );
        assert!(reason("kill -XCPU $$").contains("more than 7 s of processor time"));
        assert!(reason("kill -KILL $$").contains("memory is short"));
        assert!(reason("kill -SEGV $$").contains("SIGSEGV"));
        assert!(reason("exit 3").contains("exit status: 3"));
        assert!(reason("exit 3").contains("without a result"));
        assert!(reason("echo nonsense").contains("cannot be read"));
        // Exceed the size limit of an answer, without a line end.
        assert!(reason("exec yes x | tr -d '\\n'").contains("cannot be read"));
    }

    #[test]
    fn hanging_child_is_killed() {
        let stop = CancellationToken::new();
        let ended = run("exec sleep 60", Duration::from_millis(50), &stop);
        assert!(matches!(ended, ChildEnd::TimedOut), "{ended:?}");
        let key = key();
        let error = judge_end(&key, ended, &BOUNDS).unwrap_err();
        assert!(error.to_string().ends_with("did not end within 7 s"), "{error}");
        let began = Instant::now();
        let closed = run("exec >&-; exec sleep 60", Duration::from_secs(60), &stop);
        assert!(matches!(closed, ChildEnd::Exited { .. }), "{closed:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn child_is_killed_on_shutdown() {
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = run("exec sleep 60", Duration::from_secs(60), &stop);
        assert!(matches!(ended, ChildEnd::Stopped), "{ended:?}");
    }

    #[test]
    fn bounds_grow_with_footprint_and_files() {
        let footprint = |weight_bytes, mapped_bytes| Footprint {
            weight_bytes,
            mapped_bytes,
            scratch_bytes: 0,
            loading_bytes: 0,
        };
        let none = ChildLimits::new(&footprint(0, 0), 0, 2);
        assert_eq!(none.address_space, EXTRA_ADDRESS_SPACE + 6 * THREAD_ADDRESS_SPACE);
        assert_eq!(none.deadline, BASE_TIMEOUT);
        let some = ChildLimits::new(&footprint(100, 20), 30, 2);
        assert_eq!(some.address_space - none.address_space, 180 + 30);
        let large = ChildLimits::new(&footprint(0, 0), 80 << 20, 2);
        assert_eq!(large.deadline, BASE_TIMEOUT + Duration::from_secs(10));
        ChildLimits::new(&footprint(u64::MAX, u64::MAX), u64::MAX, usize::MAX);
    }

    #[test]
    fn oom_score_is_raised_and_restored() {
        let SelfTester { mode: TestMode::Child { score: Some(score), .. }, .. } =
            SelfTester::without_stop()
        else {
            return;
        };
        let now = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before = now();
        if let Some(raised) = RaisedOomScore::new(&score) {
            assert_eq!(now().trim(), HIGHEST_OOM_SCORE);
            drop(raised);
        }
        assert_eq!(now(), before);
    }
}
