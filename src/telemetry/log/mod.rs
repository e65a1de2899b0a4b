//! Log of the process: to journald with structured fields under systemd, to stderr elsewhere.
//!
//! Contains the process's only subscriber and the thread that writes to the journal. Each record
//! that matters to an operator has a kind, a [`Message`]. A `tracing` event names its kind, as in
//! `name: Message::Ready.name()`. `tests/it/catalog.rs` requires this of every event at info and
//! above. Texts and vectors of requests must never be logged.
//!
//! Under systemd, logging never waits for journald: records go through a bounded queue, and records
//! that exceed it are dropped and counted. Elsewhere the logging thread writes records to stderr
//! itself, so that they stay in order with other output of the process. A line on stderr is
//! `TIME LEVEL event-name: text field=value …`. If stderr is the journal but journald's socket
//! cannot be reached, a line is `<6>event-name: text field=value …`, with the priority in front.
//!
//! This module has its own client for journald. An experiment replaced it by the layer of
//! `tracing-journald` 0.3, without a field prefix, on the log's own thread, with events from the
//! bounded queue. The layer does not fit, for these reasons in the source of its version 0.3.2
//! (<https://github.com/tokio-rs/tracing/blob/tracing-journald-0.3.2/tracing-journald/src/lib.rs>):
//!
//! - The layer encodes and sends a record in `on_event`, on the thread that logs, and `send_to` on
//!   its socket blocks. It has no function that takes a record from a queue, and a `tracing::Event`
//!   borrows its values, so the event itself cannot be queued.
//! - A record has its own `MESSAGE_ID` only if the field prefix is `None`, because
//!   `with_custom_fields` adds the same fields to every record. Without a prefix, an event field
//!   with the name of a journal field, such as `priority`, becomes a second value of that field.
//! - `on_event` drops the error of a send, so lost records cannot be counted or reported.
//! - The priority follows from the level alone, so [`Priority::Critical`] cannot be expressed.
//!
//! `systemd-journal-logger` and `libsystemd` also block while they send. The protocol is short.

mod line_format;
mod log_record;
mod message;
mod queue;
mod socket;
mod throttle;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

pub use message::{Message, Priority};
pub use throttle::admit_refusal;

use log_record::LogRecord;
use queue::{LogQueue, Sink};
use socket::JournalSocket;

/// Socket of journald (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Maximum time that the end of the process waits for journald to accept the remaining records.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Queue of this process's log, once the log writes to the journal.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Handle that changes the log level while the process runs.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<LevelFilter, Registry>);

impl LevelHandle {
    /// Sets the level: from now on, records of `level` and above are written.
    pub fn set(&self, level: LevelFilter) {
        if let Err(error) = self.0.modify(|filter| *filter = level) {
            tracing::error!(
                name: Message::InternalFault.name(),
                %error,
                "cannot change the log level"
            );
        }
    }
}

/// Starts the log.
///
/// # Errors
/// When the log of the process has been started before.
pub fn start(level: LevelFilter) -> Result<LevelHandle, TryInitError> {
    let (filter, handle) = reload::Layer::new(level);
    let (layer, failure) =
        match stderr_is_the_journal().then(|| JournalSocket::open(Path::new(JOURNAL))) {
            Some(Ok(socket)) => (Journal::new(Sink::Journal(socket)).boxed(), None),
            Some(Err(error)) => (Journal::new(Sink::Stderr).boxed(), Some(error)),
            None => (line_format::layer::<FilteredRegistry, _>(io::stderr).boxed(), None),
        };
    Registry::default().with(filter).with(layer).try_init()?;
    if let Some(error) = failure {
        tracing::warn!(
            name: Message::JournalUnreachable.name(),
            errno = error.raw_os_error(), %error,
            "cannot reach journald; logging to stderr"
        );
    }
    Ok(LevelHandle(handle))
}

/// Starts the thread that writes to the journal, if the log goes there. Until then, records are
/// queued.
///
/// The caller first enters the sandbox, which must happen while the process has a single thread.
///
/// # Errors
/// When the system cannot start a thread. The failure has then been written to stderr.
pub fn begin() -> io::Result<()> {
    QUEUE.get().map_or(Ok(()), LogQueue::begin)
}

/// Returns the number of records that were dropped since the start because journald did not accept
/// them.
pub fn lost_records() -> u64 {
    QUEUE.get().map_or(0, LogQueue::lost)
}

/// Waits until journald has received all records, for at most one second. Later records are lost.
///
/// # Errors
/// When the system cannot start the writing thread. The failure has then been written to stderr.
pub fn finish() -> io::Result<()> {
    QUEUE.get().map_or(Ok(()), |queue| queue.finish(FINISH_TIMEOUT))
}

/// Layer that puts every event into the queue. Spans are ignored, because Caxton does not use them.
#[derive(Debug)]
struct Journal(LogQueue);

impl Journal {
    fn new(sink: Sink) -> Self {
        // A process has one log: a second subscriber is rejected by the registry.
        Self(QUEUE.get_or_init(|| LogQueue::new(sink)).clone())
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        self.0.push(&LogRecord::of(event));
    }
}

type FilteredRegistry =
    tracing_subscriber::layer::Layered<reload::Layer<LevelFilter, Registry>, Registry>;

/// Returns whether stderr is the stream that systemd connected to the journal.
///
/// `$JOURNAL_STREAM` contains the device and inode of that stream (systemd.exec(5)). The variable
/// alone is not sufficient: a process inherits it even if its stderr is redirected.
fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok().and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((u64::from_str(device).ok()?, u64::from_str(inode).ok()?))
    });
    let stderr = nix::sys::stat::fstat(io::stderr().as_fd());
    stream.is_some_and(|stream| stderr.is_ok_and(|stat| stream == (stat.st_dev, stat.st_ino)))
}
