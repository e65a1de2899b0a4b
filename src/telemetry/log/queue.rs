//! Queue of records for journald, and the thread that writes them.
//!
//! The thread starts later than the log: the sandbox applies only to the current thread and to
//! threads that start later, so the thread must start after the sandbox. Records are queued until
//! then. A logging thread holds the lock only while it moves one record, and never waits for
//! journald.
//!
//! Invariants:
//! 1. At most [`MAX_RECORDS`] records are queued, with at most [`MAX_BYTES`] in total, except for a
//!    single larger record.
//! 2. Every record is written or counted as lost. The number of lost records is reported to the
//!    journal as soon as it has accepted all queued records.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::log_record::LogRecord;
use super::message::Message;
use super::socket::JournalSocket;

/// Maximum number of queued records: more than a start with a full drop directory writes.
const MAX_RECORDS: usize = 1024;
/// Maximum total size of queued records in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Interval between attempts to report lost records while the journal is not reachable.
const RETRY: Duration = Duration::from_secs(1);

/// Destination of records.
#[derive(Debug)]
pub(super) enum Sink {
    /// journald's own socket, with structured fields.
    Journal(JournalSocket),
    /// Stream that systemd connected to the journal: lines with a priority.
    Stderr,
}

impl Sink {
    fn send(&self, record: &[u8]) -> io::Result<()> {
        match self {
            Self::Journal(socket) => socket.send(record),
            Self::Stderr => io::stderr().write_all(record),
        }
    }
}

/// Handle of the queue. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct LogQueue {
    shared: Arc<SharedQueue>,
    encode: fn(&LogRecord) -> Vec<u8>,
}

#[derive(Debug, Default)]
struct SharedQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Records lost since the start.
    lost: u64,
    /// Number of lost records that were reported to the journal.
    reported: u64,
    /// Sink, until the thread takes it.
    sink: Option<Sink>,
    closed: bool,
    ended: bool,
}

/// Next task of the writing thread.
enum WriterTask {
    Record(Vec<u8>),
    ReportLost(u64),
}

impl LogQueue {
    /// Creates a queue whose records will be written to `sink`.
    pub(super) fn new(sink: Sink) -> Self {
        let encode = match sink {
            Sink::Journal(_) => LogRecord::native,
            Sink::Stderr => LogRecord::line,
        };
        let state = QueueState { sink: Some(sink), ..QueueState::default() };
        let shared = SharedQueue { state: Mutex::new(state), ..SharedQueue::default() };
        Self { shared: Arc::new(shared), encode }
    }

    /// Starts the thread, unless it has been started.
    ///
    /// # Errors
    /// When the system cannot start a thread. The cause is written to stderr; records are not
    /// written then.
    pub(super) fn begin(&self) -> io::Result<()> {
        let Some(sink) = self.shared.state().sink.take() else { return Ok(()) };
        let (writer, encode) = (Arc::clone(&self.shared), self.encode);
        let write = move || writer.write(&sink, encode);
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(write);
        // The thread is not joined. It ends after `finish`, or with the process.
        thread.map(drop).inspect_err(|error| {
            self.shared.state().ended = true;
            // The line has the form of `LogRecord::line`. If stderr fails too, only the exit code
            // shows the failure.
            let kind = Message::StartFailed;
            let (priority, name) = (kind.priority() as u8, kind.name());
            let text = "cannot start the thread that writes the log";
            drop(writeln!(io::stderr(), "<{priority}>{name}: {text} error={error}"));
        })
    }

    /// Queues `record`, or counts it as lost if the queue is full. Takes a few microseconds.
    pub(super) fn push(&self, record: &LogRecord) {
        let record = (self.encode)(record);
        let mut state = self.shared.state();
        // An empty queue accepts a record of any size, so that a record above `MAX_BYTES` is not
        // always lost.
        let fits = state.waiting.len() < MAX_RECORDS && state.bytes + record.len() <= MAX_BYTES;
        if state.closed || !(fits || state.waiting.is_empty()) {
            state.lost += 1;
            return;
        }
        state.bytes += record.len();
        state.waiting.push_back(record);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Returns the number of records lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.shared.state().lost
    }

    /// Closes the queue and waits until all records are written, for at most `limit`.
    ///
    /// # Errors
    /// The errors of [`Self::begin`].
    pub(super) fn finish(&self, limit: Duration) -> io::Result<()> {
        self.begin()?;
        let mut state = self.shared.state();
        state.closed = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(state, limit, |state| !state.ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

impl SharedQueue {
    /// Runs the writing thread until the queue is closed and empty.
    fn write(&self, sink: &Sink, encode: fn(&LogRecord) -> Vec<u8>) {
        let mut is_reached = true;
        while let Some(work) = self.next(is_reached) {
            let sent = match &work {
                WriterTask::Record(record) => sink.send(record),
                WriterTask::ReportLost(count) => {
                    sink.send(&encode(&LogRecord::of_dropped_count(*count)))
                }
            };
            // The cause of a failure cannot be logged, because the log itself has failed. Count the
            // record instead.
            is_reached = sent.is_ok();
            match work {
                WriterTask::Record(_) if !is_reached => self.state().lost += 1,
                WriterTask::ReportLost(count) if is_reached => self.state().reported += count,
                _ => {}
            }
        }
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// Waits for the next task; returns `None` once the queue is closed and empty.
    ///
    /// Queued records come first, then the report of lost records. If the last attempt to send
    /// failed (`is_reached` is false), the report waits for [`RETRY`].
    fn next(&self, is_reached: bool) -> Option<WriterTask> {
        let mut may_report = is_reached;
        let mut state = self.state();
        loop {
            if let Some(record) = state.waiting.pop_front() {
                state.bytes -= record.len();
                return Some(WriterTask::Record(record));
            }
            let unreported = state.lost - state.reported;
            if unreported > 0 && may_report {
                return Some(WriterTask::ReportLost(unreported));
            }
            // Closed, and the last report of lost records was sent or has failed: do not retry at
            // the end.
            if state.closed {
                return None;
            }
            // The next report after a failure waits for the timeout. A new record wakes the thread
            // earlier and is sent first.
            if unreported > 0 {
                let waited = self.changed.wait_timeout(state, RETRY);
                let (after, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                may_report = waited.timed_out();
                state = after;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // No code that can panic runs while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// Timeout of a test for operations that take a millisecond.
    const BOUND: Duration = Duration::from_secs(60);

    fn journald() -> (TempDir, PathBuf, UnixDatagram) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(BOUND)).unwrap();
        (place, path, journald)
    }

    fn receive(journald: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let length = journald.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn queue(path: &std::path::Path) -> LogQueue {
        let queue = LogQueue::new(Sink::Journal(JournalSocket::open(path).unwrap()));
        queue.begin().unwrap();
        queue
    }

    /// Reads up to the report of lost records; returns the report and the number of records before
    /// it.
    fn read_to_loss(journald: &UnixDatagram) -> (String, u64) {
        let mut before = 0;
        loop {
            let record = receive(journald);
            if record.contains("\nCAXTON_EVENT=records-lost\n") {
                return (record, before);
            }
            before += 1;
        }
    }

    /// Pushes `count` records that differ from a report of lost records.
    fn push(queue: &LogQueue, count: usize) {
        let plain = LogQueue { encode: |_| b"MESSAGE=a\n".to_vec(), ..queue.clone() };
        for _ in 0..count {
            plain.push(&LogRecord::of_dropped_count(0));
        }
    }

    #[test]
    fn blocked_journal_drops_records_and_reports_loss() {
        let (_place, path, journald) = journald();
        let queue = queue(&path);
        // The socket's own queue is short, and the test does not read from it yet.
        let count = 3 * MAX_RECORDS;
        push(&queue, count);
        let lost = queue.lost();
        assert!(lost >= MAX_RECORDS as u64, "{lost} records were lost");
        let (report, written) = read_to_loss(&journald);
        assert!(report.contains(&format!("\nCAXTON_LOST={lost}\n")), "{report}");
        assert_eq!(written + lost, count as u64);
        // The loss is reported only once.
        push(&queue, 1);
        assert_eq!(receive(&journald), "MESSAGE=a\n");
    }

    #[test]
    fn restarted_journal_gets_loss_report() {
        let (_place, path, journald) = journald();
        let queue = queue(&path);
        drop(journald);
        push(&queue, 2);
        let deadline = std::time::Instant::now() + BOUND;
        while queue.lost() < 2 {
            assert!(std::time::Instant::now() < deadline, "a failure was not counted");
            thread::yield_now();
        }
        std::fs::remove_file(&path).unwrap();
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!(read_to_loss(&journald).1, 0);
    }

    #[test]
    fn finish_writes_early_records() {
        let (_place, path, journald) = journald();
        let queue = LogQueue::new(Sink::Journal(JournalSocket::open(&path).unwrap()));
        push(&queue, 1);
        queue.finish(BOUND).unwrap();
        assert_eq!(receive(&journald), "MESSAGE=a\n");
    }

    #[test]
    fn queued_bytes_are_bounded() {
        let (_place, path, _journald) = journald();
        let large = LogQueue { encode: |_| vec![b'a'; MAX_BYTES / 4], ..queue(&path) };
        // The socket accepts a few records as memory files; four more can be queued.
        for _ in 0..64 {
            large.push(&LogRecord::of_dropped_count(0));
        }
        let state = large.shared.state();
        assert!(state.bytes <= MAX_BYTES && state.lost > 0, "{} bytes wait", state.bytes);
    }

    #[test]
    fn finish_waits_only_until_timeout() {
        let (_place, path, journald) = journald();
        let queue = queue(&path);
        push(&queue, 3);
        queue.finish(BOUND).unwrap();
        for _ in 0..3 {
            assert_eq!(receive(&journald), "MESSAGE=a\n");
        }
        let stuck = self::queue(&path);
        push(&stuck, MAX_RECORDS);
        stuck.finish(Duration::from_millis(1)).unwrap();
        assert!(!stuck.shared.state().ended, "nobody read what was written");
    }
}
