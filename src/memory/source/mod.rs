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
mod tests;
