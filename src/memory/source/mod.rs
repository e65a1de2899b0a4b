//! Waits for signals of memory pressure.
//!
//! The sources, best first: systemd's trigger, the trigger of the control group, the events at its
//! limits, the trigger of the machine, and finally polling. Besides each of them, writes to the
//! limits of the groups are watched.
//!
//! A [`PressureSource`] measures nothing and decides nothing: a signal means "take a sample now". A
//! signal too many does no harm; a missed one would.
//!
//! Invariants: however often a source signals, a waiting caller is woken at most once every
//! [`HOLD_OFF_TIME`]. A source that fails is closed, logged and replaced by the next one. Polling
//! never fails.

mod events;
mod limits;
mod stream;
mod systemd;
mod trigger;

use std::fmt;
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::cgroup::{self, ProcessGroups};
use super::flat_keyed::KernelTextError;
use super::psi::NotPressure;
use crate::base::errors::chain;
use crate::files::FileError;
use crate::telemetry::log::Message;
use events::EventsFile;
use limits::LimitWatch;
use stream::SignalStream;
pub use systemd::PressureEnvironment;
use systemd::RequestedSource;
use trigger::PressureTrigger;

/// Time after a signal in which the source is ignored.
///
/// Kernels have been seen to send fifty events a second
/// (<https://github.com/systemd/systemd/issues/39469>), although they promise one per window. A
/// group at its limit has an event with every pass of reclaim.
const HOLD_OFF_TIME: Duration = Duration::from_millis(500);

/// Interval of polling.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The sources, best first.
const SOURCES: &[SourceKind] =
    &[SourceKind::Systemd, SourceKind::Trigger, SourceKind::Events, SourceKind::Machine];

#[derive(Clone, Copy, Debug)]
enum SourceKind {
    Systemd,
    /// Pressure file of this process's control group.
    Trigger,
    Events,
    Machine,
}

/// Reason why a source cannot be used, or cannot be used any longer.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Environment(#[from] systemd::EnvironmentError),
    #[error("cannot parse {}", .0.display())]
    Pressure(PathBuf, #[source] NotPressure),
    #[error("cannot parse {}", .0.display())]
    Events(PathBuf, #[source] KernelTextError),
    #[error("{} reports no pressure any more: it has no trigger, or its control group was removed", .0.display())]
    Gone(PathBuf),
    #[error("the writer has closed {}", .0.display())]
    Closed(PathBuf),
}

impl SourceError {
    /// Returns whether this machine simply does not have the source, or not for this user. Such an
    /// error needs no action.
    fn is_normal(&self) -> bool {
        matches!(self, Self::File(error) if matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
        ))
    }
}

/// The current source of signals. `Display` names it for the journal, `/status` and systemd's
/// status line.
#[derive(Debug)]
pub struct PressureSource {
    root: PathBuf,
    environment: PressureEnvironment,
    /// Sources to try after `listener`.
    remaining: slice::Iter<'static, SourceKind>,
    listener: SourceListener,
    /// `None` without limits, or when they cannot be watched.
    limits: Option<LimitWatch>,
    /// End of the hold-off time.
    ignored_until: Instant,
}

#[derive(Debug)]
enum SourceListener {
    Trigger(PressureTrigger),
    Events(EventsFile),
    Stream(SignalStream),
    /// Polling, with the reason if the environment requests it.
    Clock(&'static str),
}

impl PressureSource {
    /// Opens the best available source, with the kernel's files below `root` (`/`, except in
    /// tests).
    ///
    /// Never fails: without any source, it polls. Unusable sources are logged. Reads a few of the
    /// kernel's files.
    ///
    /// # Panics
    /// Panics outside of a Tokio runtime with I/O and time.
    pub fn open(root: &Path, environment: PressureEnvironment) -> Self {
        let mut source = Self {
            root: root.to_owned(),
            environment,
            remaining: SOURCES.iter(),
            listener: SourceListener::Clock(""),
            limits: None,
            ignored_until: Instant::now(),
        };
        source.advance();
        source
    }

    /// Waits for memory pressure, for a write to a limit, or for the next poll.
    ///
    /// Replaces a source that fails. May be cancelled at any time; the next call receives a signal
    /// that this one missed.
    pub async fn next(&mut self) {
        loop {
            sleep_until(self.ignored_until).await;
            let signal = tokio::select! {
                signal = self.listener.wait() => signal,
                written = wait_for_write(&mut self.limits) => {
                    if let Err(error) = written {
                        self.limits = None;
                        log_unwatched(&error);
                    }
                    Ok(true)
                }
            };
            self.ignored_until = Instant::now() + self.listener.hold_off();
            match signal {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        name: Message::PressureSourceFailed.name(),
                        source = %self, error = %chain(&error),
                        "a source of memory pressure events has failed"
                    );
                    self.advance();
                }
            }
        }
    }

    /// Closes the current source and opens the next usable one.
    fn advance(&mut self) {
        self.listener = SourceListener::Clock("");
        self.limits = self.watch_limits();
        while let Some(step) = self.remaining.next() {
            match self.try_open(*step) {
                Ok(Some(listener)) => {
                    if matches!(listener, SourceListener::Clock(_)) {
                        self.remaining = [].iter();
                    }
                    self.listener = listener;
                    break;
                }
                Ok(None) => {}
                // A source requested by the environment should exist, so its absence is a warning.
                Err(error) if error.is_normal() && !matches!(step, SourceKind::Systemd) => {
                    tracing::debug!(
                        error = %chain(&error),
                        "cannot use a source of memory pressure events"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        name: Message::PressureSourceFailed.name(),
                        error = %chain(&error),
                        "cannot use a source of memory pressure events"
                    );
                }
            }
        }
        tracing::info!(
            name: Message::PressureSource.name(),
            source = %self,
            "selected the source of memory pressure events"
        );
    }

    /// Opens one source; returns `None` where it does not apply.
    fn try_open(&self, step: SourceKind) -> Result<Option<SourceListener>, SourceError> {
        let own = |name| self.groups().map(|groups| Some(groups.unified?.own().join(name)));
        let arm = |path: &Path, name| {
            let file = trigger::open(path, true)?;
            let trigger =
                PressureTrigger::arm(file, path, name, trigger::default_payload().as_bytes())?;
            Ok(Some(SourceListener::Trigger(trigger)))
        };
        match step {
            SourceKind::Systemd => {
                match self.environment.open_requested(&self.root, || self.groups())? {
                    RequestedSource::Nothing => Ok(None),
                    RequestedSource::Off => {
                        let reason = ", because $MEMORY_PRESSURE_WATCH is /dev/null";
                        Ok(Some(SourceListener::Clock(reason)))
                    }
                    RequestedSource::Trigger(trigger) => Ok(Some(SourceListener::Trigger(trigger))),
                    RequestedSource::Stream(stream) => Ok(Some(SourceListener::Stream(stream))),
                }
            }
            SourceKind::Trigger => match own("memory.pressure")? {
                Some(path) => arm(&path, "the control group's trigger"),
                None => Ok(None),
            },
            SourceKind::Events => match own("memory.events")? {
                Some(path) => Ok(Some(SourceListener::Events(EventsFile::open(path)?))),
                None => Ok(None),
            },
            SourceKind::Machine => {
                arm(&self.root.join("proc/pressure/memory"), "the machine's trigger")
            }
        }
    }

    fn watch_limits(&self) -> Option<LimitWatch> {
        let memory = self.groups().map(|groups| groups.memory);
        let watched = memory.and_then(|memory| memory.as_ref().map(LimitWatch::watch).transpose());
        watched.unwrap_or_else(|error| {
            log_unwatched(&error);
            None
        })
    }

    /// Finds the groups of this process. The result is not cached: a source may have failed because
    /// the process was moved.
    fn groups(&self) -> Result<ProcessGroups, FileError> {
        match cgroup::read(&self.root.join(cgroup::MEMBERSHIP)) {
            Ok(membership) => cgroup::find(&self.root, &membership),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ProcessGroups::default()),
            Err(error) => Err(error),
        }
    }
}

impl SourceListener {
    /// Waits for a signal and returns whether it may mean pressure.
    async fn wait(&mut self) -> Result<bool, SourceError> {
        match self {
            Self::Trigger(trigger) => trigger.wait().await,
            Self::Events(counts) => counts.wait().await,
            Self::Stream(stream) => stream.wait().await,
            Self::Clock(_) => Ok(true),
        }
    }

    /// Returns the time to ignore the source after a signal.
    fn hold_off(&self) -> Duration {
        match self {
            Self::Trigger(_) | Self::Events(_) | Self::Stream(_) => HOLD_OFF_TIME,
            Self::Clock(_) => POLL_INTERVAL,
        }
    }
}

/// Waits for a write to a limit. Never returns if no limit is watched.
async fn wait_for_write(limits: &mut Option<LimitWatch>) -> Result<(), FileError> {
    match limits {
        Some(limits) => limits.wait_for_write().await,
        None => pending().await,
    }
}

fn log_unwatched(error: &FileError) {
    tracing::warn!(
        name: Message::MemoryUnknown.name(),
        error = %chain(error),
        "cannot watch the memory limits; polling them every 10 s"
    );
}

impl fmt::Display for PressureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listener {
            SourceListener::Trigger(trigger) => trigger.fmt(f),
            SourceListener::Events(counts) => counts.fmt(f),
            SourceListener::Stream(stream) => stream.fmt(f),
            SourceListener::Clock(reason) => write!(f, "polling{reason}"),
        }
    }
}

/// Registers `file`, which was opened at `path`, with the runtime.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor may change; those of a File or a borrowed one do not"
)]
fn register<T: AsFd + AsRawFd>(
    file: T,
    interest: Interest,
    path: &Path,
) -> Result<AsyncFd<T>, FileError> {
    AsyncFd::with_interest(file, interest).map_err(FileError::new("wait for", path))
}

/// Reads the beginning of a file that the kernel generates for each read from offset 0.
fn read_from_start(file: &File, path: &Path) -> Result<String, FileError> {
    // Both kinds of file read here are shorter than 200 bytes.
    let mut buffer = [0; 512];
    let length = retry_interrupted(|| file.read_at(&mut buffer, 0));
    let length = length.map_err(FileError::new("read", path))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Repeats `call` until no signal interrupts it.
fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::{self, OpenOptions};
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use nix::sys::stat::Mode;
    use tokio::runtime::Handle;
    use tokio::time::timeout;

    use super::super::fixture::{CapturedLog, MACHINE, Tree, V2_OWN, v1, v2};
    use super::*;

    /// Timeout that only a failing test reaches.
    const BOUND: Duration = Duration::from_secs(20);
    const PRESSURE: &str = "proc/pressure/memory";

    fn environment(watch: &str, write: Option<&[u8]>) -> PressureEnvironment {
        let write = write.map(|bytes| OsString::from(BASE64_STANDARD.encode(bytes)));
        PressureEnvironment { watch: Some(watch.into()), write }
    }

    fn fifo(tree: &Tree, path: &str) -> PathBuf {
        let path = tree.path(path);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        path
    }

    fn writer(path: &Path) -> File {
        OpenOptions::new().write(true).open(path).unwrap()
    }

    async fn signal(source: &mut PressureSource, step: &str) {
        timeout(BOUND, source.next()).await.expect(step);
    }

    /// Links the machine's own pressure file at `path`. Prints a message and returns `false` where
    /// no trigger can be armed on it.
    #[expect(clippy::print_stderr, reason = "a skip is printed by name")]
    fn real_pressure(tree: &Tree, path: &str, test: &str) -> bool {
        let real = Path::new("/proc/pressure/memory");
        let armed = trigger::open(real, true).map_err(SourceError::from).and_then(|file| {
            PressureTrigger::arm(file, real, "", trigger::default_payload().as_bytes())
        });
        if let Err(error) = armed {
            eprintln!("skipped: {test}, because {}", chain(&error));
            return false;
        }
        let path = tree.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(fs::remove_file(&path));
        symlink(real, path).unwrap();
        true
    }

    #[tokio::test]
    async fn polling_is_used_without_pressure_files() {
        let (journal, _guard) = CapturedLog::record();
        for tree in [Tree::new(&[]), Tree::new(MACHINE)] {
            let source = PressureSource::open(tree.root(), PressureEnvironment::default());
            assert_eq!(source.to_string(), "polling");
        }
        assert!(journal.text().contains("source=polling"));
    }

    #[tokio::test(start_paused = true)]
    async fn polling_signals_every_second() {
        let tree = Tree::new(&[]);
        let mut source = PressureSource::open(tree.root(), PressureEnvironment::default());
        source.next().await;
        for _ in 0..3 {
            let before = Instant::now();
            source.next().await;
            let waited = before.elapsed();
            assert!(
                (POLL_INTERVAL..POLL_INTERVAL + Duration::from_millis(5)).contains(&waited),
                "{waited:?}"
            );
        }
    }

    #[tokio::test]
    async fn unwaitable_files_fall_back_to_polling() {
        let (journal, _guard) = CapturedLog::record();
        let tree = v2();
        let source = PressureSource::open(tree.root(), PressureEnvironment::default());
        assert_eq!(source.to_string(), "polling");
        let text = journal.text();
        for name in
            [&format!("{V2_OWN}/memory.pressure"), &format!("{V2_OWN}/memory.events"), PRESSURE]
        {
            let problem = format!("cannot wait for {}", tree.path(name).display());
            assert_eq!(text.matches(&problem).count(), 1, "{text}");
        }
        let armed = fs::read(tree.path(V2_OWN).join("memory.pressure")).unwrap();
        assert!(armed.starts_with(b"some 150000 2000000\0"), "{armed:?}");
    }

    #[tokio::test]
    async fn malformed_pressure_files_fall_back_to_polling() {
        let (journal, _guard) = CapturedLog::record();
        let tree = v2();
        tree.write(PRESSURE, "");
        tree.write(&format!("{V2_OWN}/memory.pressure"), "");
        tree.write(&format!("{V2_OWN}/memory.events"), "high");
        assert_eq!(
            PressureSource::open(tree.root(), PressureEnvironment::default()).to_string(),
            "polling"
        );
        assert_eq!(journal.text().matches("cannot parse").count(), 3, "{}", journal.text());
    }

    #[tokio::test]
    async fn group_trigger_precedes_machine_trigger() {
        let tree = v2();
        if !real_pressure(&tree, PRESSURE, "real triggers") {
            return;
        }
        let source = PressureSource::open(tree.root(), PressureEnvironment::default());
        let machine = tree.path(PRESSURE);
        assert_eq!(source.to_string(), format!("the machine's trigger {}", machine.display()));
        let own = format!("{V2_OWN}/memory.pressure");
        assert!(real_pressure(&tree, &own, "real triggers"));
        let mut source = PressureSource::open(tree.root(), PressureEnvironment::default());
        let own = tree.path(&own);
        assert_eq!(source.to_string(), format!("the control group's trigger {}", own.display()));
        // systemd's payload is written unchanged, and the kernel accepts it.
        let wish = environment(&format!("/{PRESSURE}"), Some(b"some 200000 2000000\0"));
        let systemd = PressureSource::open(tree.root(), wish);
        assert_eq!(systemd.to_string(), format!("systemd's trigger {}", machine.display()));
        // The machine may really be under pressure now, but the trigger must not have failed.
        let (journal, _guard) = CapturedLog::record();
        tokio::select! {
            biased;
            () = source.next() => {}
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(journal.text(), "");
    }

    #[tokio::test]
    async fn dead_trigger_is_replaced() {
        let (journal, _guard) = CapturedLog::record();
        let tree = Tree::new(MACHINE);
        let path = format!("/{PRESSURE}");
        if !real_pressure(&tree, PRESSURE, "a real trigger that dies") {
            return;
        }
        // Without a written trigger, the kernel reports an error on the file, as if its group were
        // gone.
        let mut source = PressureSource::open(tree.root(), environment(&path, None));
        assert!(source.to_string().starts_with("systemd's trigger "), "{source}");
        fs::remove_file(tree.path(PRESSURE)).unwrap();
        signal(&mut source, "the clock that replaces it").await;
        assert_eq!(source.to_string(), "polling");
        let text = journal.text();
        assert_eq!(text.matches("its control group was removed").count(), 1, "{text}");
    }

    #[tokio::test]
    async fn systemd_fifo_gets_payload_and_signals() {
        let tree = v2();
        let path = fifo(&tree, "pressure");
        let payload = b"any \0 bytes";
        let mut source = PressureSource::open(tree.root(), environment("/pressure", Some(payload)));
        assert_eq!(source.to_string(), format!("systemd's FIFO {}", path.display()));
        let mut written = [0; 11];
        OpenOptions::new().read(true).open(&path).unwrap().read_exact(&mut written).unwrap();
        assert_eq!(&written, payload);
        // A writer may close the FIFO, and another one may open it.
        for _ in 0..2 {
            writer(&path).write_all(b"x").unwrap();
            signal(&mut source, "a byte in the FIFO").await;
        }
        assert!(source.to_string().starts_with("systemd's FIFO"));
    }

    #[tokio::test]
    async fn limit_changes_signal_beside_the_source() {
        for (tree, limit) in [
            (v2(), format!("{V2_OWN}/memory.high")),
            (v2(), format!("{V2_OWN}/memory.max")),
            (v1(), "sys/fs/cgroup/memory/a/memory.limit_in_bytes".to_owned()),
        ] {
            fifo(&tree, "pressure");
            let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
            for _ in 0..2 {
                tree.write(&limit, "1000");
                signal(&mut source, &limit).await;
            }
        }
        // A group above gets its limit later than the service starts.
        let tree = v2();
        let above = "sys/fs/cgroup/system.slice/memory.max";
        tree.write(above, "max");
        fifo(&tree, "pressure");
        let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
        tree.write(above, "1000");
        signal(&mut source, above).await;
    }

    #[tokio::test]
    async fn unwatchable_limits_are_logged() {
        let (journal, _guard) = CapturedLog::record();
        let tree = v2();
        let limit = tree.path(V2_OWN).join("memory.high");
        fs::remove_file(&limit).unwrap();
        symlink(&limit, &limit).unwrap();
        PressureSource::open(tree.root(), PressureEnvironment::default());
        let text = journal.text();
        let problem = format!("polling them every 10 s error=cannot watch {}", limit.display());
        assert!(text.contains(&problem), "{text}");
    }

    #[tokio::test]
    async fn closed_systemd_socket_is_replaced() {
        let (journal, _guard) = CapturedLog::record();
        let tree = v2();
        let path = tree.path("pressure");
        let listener = UnixListener::bind(&path).unwrap();
        let mut source =
            PressureSource::open(tree.root(), environment("/pressure", Some(b"hello")));
        assert_eq!(source.to_string(), format!("systemd's socket {}", path.display()));
        let manager = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"hello");
            stream.write_all(b"x").unwrap();
            stream
        });
        signal(&mut source, "a byte in the socket").await;
        assert!(source.to_string().starts_with("systemd's socket"));
        drop(manager.await.unwrap());
        signal(&mut source, "the clock that replaces it").await;
        assert_eq!(source.to_string(), "polling");
        let text = journal.text();
        assert_eq!(text.matches("the writer has closed ").count(), 1, "{text}");
    }

    #[tokio::test]
    async fn socket_without_listener_is_replaced() {
        let tree = v2();
        drop(UnixListener::bind(tree.path("pressure")).unwrap());
        let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
        signal(&mut source, "the clock").await;
        assert_eq!(source.to_string(), "polling");
    }

    #[tokio::test]
    async fn disabled_watch_uses_only_polling() {
        let tree = v2();
        real_pressure(&tree, PRESSURE, "a trigger that would be used if it were not off");
        let mut source = PressureSource::open(tree.root(), environment("/dev/null", Some(b"x")));
        assert_eq!(source.to_string(), "polling, because $MEMORY_PRESSURE_WATCH is /dev/null");
        signal(&mut source, "the clock").await;
    }

    #[tokio::test]
    async fn invalid_watch_environment_is_logged_and_ignored() {
        let file = "sys/fs/cgroup/other/memory.pressure";
        let own = format!("/{V2_OWN}/memory.pressure");
        let wish = |watch: &str| environment(watch, Some(b"some 200000 2000000\0"));
        let not_base64 =
            PressureEnvironment { watch: Some(own.clone().into()), write: Some("c29t*ZQ".into()) };
        for (wish, problem) in [
            (wish(&format!("/{file}")), "a control group that this process is not in"),
            (wish("/sys/fs/cgroup/absent/memory.pressure"), "cannot examine"),
            (wish("relative/memory.pressure"), "not an absolute path"),
            (wish(&format!("/sys/../{file}")), "not an absolute path"),
            (wish(""), "not an absolute path"),
            (wish("/sys/fs/cgroup"), "not a pressure file, FIFO or socket"),
            // The path is right, but the file is not the kernel's.
            (wish(&own), "not a pressure file, FIFO or socket"),
            (not_base64, "$MEMORY_PRESSURE_WRITE is not base64"),
        ] {
            let (journal, _guard) = CapturedLog::record();
            let tree = v2();
            tree.write(file, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
            let before = fs::read(tree.path(file)).unwrap();
            let source = PressureSource::open(tree.root(), wish.clone());
            assert_eq!(source.to_string(), "polling", "{wish:?}");
            let text = journal.text();
            let warned = text.lines().any(|l| l.contains(" WARN ") && l.contains(problem));
            assert!(warned, "{wish:?}: {text}");
            assert_eq!(fs::read(tree.path(file)).unwrap(), before, "{wish:?}");
        }
    }

    #[tokio::test]
    async fn cancelled_wait_loses_no_signal() {
        let tree = v2();
        let path = fifo(&tree, "pressure");
        let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
        writer(&path).write_all(b"x").unwrap();
        for _ in 0..3 {
            tokio::select! {
                biased;
                () = source.next() => panic!("readiness comes with the runtime's next turn"),
                () = std::future::ready(()) => {}
            }
        }
        signal(&mut source, "the byte from before").await;
    }

    #[tokio::test]
    async fn event_storm_is_limited_to_two_per_second() {
        const SIGNALS: u32 = 4;
        let tree = v2();
        let path = fifo(&tree, "pressure");
        let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
        let (mut storm, written) = (writer(&path), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&written);
        // The thread ends when the source is dropped, because it is the last reader of the FIFO.
        let storm = thread::spawn(move || {
            while storm.write_all(b"x").is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let metrics = Handle::current().metrics();
        signal(&mut source, "the first").await;
        let (before, parked) = (Instant::now(), metrics.worker_park_count(0));
        for _ in 0..SIGNALS {
            signal(&mut source, "the storm").await;
        }
        let (waited, parked) = (before.elapsed(), metrics.worker_park_count(0) - parked);
        drop(source);
        storm.join().unwrap();
        // The bound is not computed from HOLD_OFF, because the assertion would then hold for any
        // value of it.
        assert!(waited >= Duration::from_millis(500) * SIGNALS, "{waited:?}");
        assert!(parked <= u64::from(SIGNALS) * 10, "{parked}");
        let written = written.load(Ordering::Relaxed);
        assert!(written > parked * 100, "no storm: {written}");
    }
}
