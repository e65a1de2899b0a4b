//! The log: to journald with structured fields under systemd, to stderr elsewhere.
//!
//! Owns the process's one subscriber and the thread that writes to the journal. What is worth a word to an operator has
//! a [`Message`], which a `tracing` event names (`name: Message::Ready.name()`); `tests/it/catalog.rs` holds every event
//! at info and above to that. Texts and vectors of requests are never given to the log.
//!
//! Under systemd nobody waits for journald: records go through a bounded queue, and what does not fit is dropped and
//! counted. Elsewhere records are written to stderr by whoever logs, in order with everything else that the process
//! does.
//!
//! `tracing-journald` prefixes `MESSAGE_ID`, waits for the socket and hides its errors; `systemd-journal-logger` and
//! `libsystemd` wait, too. So the protocol, which is a page, is spoken here.

mod message;
mod queue;
mod record;
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
pub use throttle::refusal;

use queue::{Queue, Sink};
use record::Record;
use socket::Socket;

/// Where journald takes records (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long the end of the process waits for journald to take what it was not yet given.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of this process's log, once it writes to the journal.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Changes the level while the process runs.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<LevelFilter, Registry>);

impl Level {
    /// Writes records of `level` and above from now on.
    pub fn set(&self, level: LevelFilter) {
        if let Err(error) = self.0.modify(|filter| *filter = level) {
            tracing::error!(
                name: Message::InternalFault.name(),
                %error,
                "the log level cannot be changed"
            );
        }
    }
}

/// Starts the log.
///
/// # Errors
/// When the process has one already.
pub fn start(level: LevelFilter) -> Result<Level, TryInitError> {
    let (filter, handle) = reload::Layer::new(level);
    let (layer, failure) = match stderr_is_the_journal().then(|| Socket::open(Path::new(JOURNAL))) {
        Some(Ok(socket)) => (Journal::new(Sink::Journal(socket)).boxed(), None),
        Some(Err(error)) => (Journal::new(Sink::Stderr).boxed(), Some(error)),
        None => (stderr().boxed(), None),
    };
    Registry::default().with(filter).with(layer).try_init()?;
    if let Some(error) = failure {
        tracing::warn!(
            name: Message::JournalUnreachable.name(),
            errno = error.raw_os_error(), %error,
            "journald cannot be reached, logging to stderr"
        );
    }
    Ok(Level(handle))
}

/// Starts the thread that writes to the journal, if that is where the log goes. Until then records wait, so that the
/// process can leave what it does not need while it has one thread.
///
/// # Errors
/// When the system refuses a thread, as stderr has been told.
pub fn begin() -> io::Result<()> {
    QUEUE.get().map_or(Ok(()), Queue::begin)
}

/// How many records were dropped since the start because journald took none.
pub fn lost() -> u64 {
    QUEUE.get().map_or(0, Queue::lost)
}

/// Waits until journald has what was logged, but not for long. Nothing is written afterwards.
///
/// # Errors
/// When nothing can be written, because the system refuses a thread, as stderr has been told.
pub fn finish() -> io::Result<()> {
    QUEUE.get().map_or(Ok(()), |queue| queue.finish(FINISH_TIMEOUT))
}

/// Gives every event to the queue. Spans are not looked at: Caxton has none.
#[derive(Debug)]
struct Journal(Queue);

impl Journal {
    fn new(sink: Sink) -> Self {
        // A process has one log: whoever comes second is refused by the registry.
        Self(QUEUE.get_or_init(|| Queue::new(sink)).clone())
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        self.0.push(&Record::of(event));
    }
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<LevelFilter, Registry>, Registry>;

fn stderr() -> impl Layer<Filtered> {
    tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(false)
}

/// Whether stderr is the stream that systemd connected to the journal: `$JOURNAL_STREAM` is its device and inode
/// (systemd.exec(5)). The variable alone says nothing: it is inherited by whoever redirects stderr.
fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok().and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((u64::from_str(device).ok()?, u64::from_str(inode).ok()?))
    });
    let stderr = nix::sys::stat::fstat(io::stderr().as_fd());
    stream.is_some_and(|stream| stderr.is_ok_and(|stat| stream == (stat.st_dev, stat.st_ino)))
}
