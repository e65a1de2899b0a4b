//! What waits for journald, and the one thread that writes it.
//!
//! Owns the thread, which begins later than the log: what a process takes from itself for its safety holds only for
//! the threads that are to come. Until then records wait. Whoever logs takes a lock for as long as a record takes to
//! move, and never waits for journald.
//!
//! Invariants:
//! 1. At most [`MAX_RECORDS`] and, but for a single larger one, [`MAX_BYTES`] wait.
//! 2. Every record is written or counted as lost. As soon as the journal has taken all that waited, it is told how many
//!    were lost.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::record::Record;
use super::socket::Socket;

/// Records that may wait: more than a start with a full drop directory writes.
const MAX_RECORDS: usize = 1024;
/// What they may take together.
const MAX_BYTES: usize = 4 << 20;
/// Nobody listened: try again after this long to tell what was lost.
const RETRY: Duration = Duration::from_secs(1);

/// Where records go.
#[derive(Debug)]
pub(super) enum Sink {
    /// journald's own socket, with fields.
    Journal(Socket),
    /// The stream that systemd connected to the journal: lines with a priority.
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

/// The way to the thread. Clones lead to the same.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    encode: fn(&Record) -> Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Since the start.
    lost: u64,
    /// Of them, how many the journal was told of.
    told: u64,
    /// Until the thread has it.
    sink: Option<Sink>,
    closed: bool,
    ended: bool,
}

/// What the thread has to do next.
enum Work {
    Record(Vec<u8>),
    TellLost(u64),
}

impl Queue {
    /// What will be written to `sink`.
    pub(super) fn new(sink: Sink) -> Self {
        let encode = match sink {
            Sink::Journal(_) => Record::native,
            Sink::Stderr => Record::line,
        };
        let state = State { sink: Some(sink), ..State::default() };
        let shared = Shared { state: Mutex::new(state), ..Shared::default() };
        Self { shared: Arc::new(shared), encode }
    }

    /// Starts the thread, unless it has been started.
    ///
    /// # Errors
    /// When the system refuses a thread. Nothing is written then, but why: to stderr.
    pub(super) fn begin(&self) -> io::Result<()> {
        let Some(sink) = self.shared.state().sink.take() else { return Ok(()) };
        let (writer, encode) = (Arc::clone(&self.shared), self.encode);
        let write = move || writer.write(&sink, encode);
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(write);
        // It ends after `finish`; at the latest with the process.
        thread.map(drop).inspect_err(|error| {
            self.shared.state().ended = true;
            // The priority is that of sd-daemon(3). When not even this is taken, the exit code is what tells.
            drop(writeln!(io::stderr(), "<3>the log cannot be written: no thread: {error}"));
        })
    }

    /// Has `record` written, or counts it as lost when too many wait. Takes a few microseconds.
    pub(super) fn push(&self, record: &Record) {
        let record = (self.encode)(record);
        let mut state = self.shared.state();
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

    /// How many records were lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.shared.state().lost
    }

    /// Takes no more, and waits until all is written, for at most `limit`.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
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

impl Shared {
    /// The thread.
    fn write(&self, sink: &Sink, encode: fn(&Record) -> Vec<u8>) {
        let mut is_reached = true;
        while let Some(work) = self.next(is_reached) {
            let sent = match &work {
                Work::Record(record) => sink.send(record),
                Work::TellLost(count) => sink.send(&encode(&Record::of_lost(*count))),
            };
            // Why is not known to anybody else: the log itself is what fails. The count tells.
            is_reached = sent.is_ok();
            match work {
                Work::Record(_) if !is_reached => self.state().lost += 1,
                Work::TellLost(count) if is_reached => self.state().told += count,
                _ => {}
            }
        }
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// Waits for something to do; `None` when nothing more comes. After a failure what was lost is told later.
    fn next(&self, is_reached: bool) -> Option<Work> {
        let mut may_tell = is_reached;
        let mut state = self.state();
        loop {
            if let Some(record) = state.waiting.pop_front() {
                state.bytes -= record.len();
                return Some(Work::Record(record));
            }
            let untold = state.lost - state.told;
            if untold > 0 && may_tell {
                return Some(Work::TellLost(untold));
            }
            if state.closed {
                return None;
            }
            if untold > 0 {
                let waited = self.changed.wait_timeout(state, RETRY);
                let (after, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                may_tell = waited.timed_out();
                state = after;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// How long a test waits for what takes a millisecond.
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

    fn queue(path: &std::path::Path) -> Queue {
        let queue = Queue::new(Sink::Journal(Socket::open(path).unwrap()));
        queue.begin().unwrap();
        queue
    }

    /// Reads up to the record that says how many were lost: that, and how many came before it.
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

    /// A record that no test takes for the one of a loss.
    fn push(queue: &Queue, count: usize) {
        let plain = Queue { encode: |_| b"MESSAGE=a\n".to_vec(), ..queue.clone() };
        for _ in 0..count {
            plain.push(&Record::of_lost(0));
        }
    }

    #[test]
    fn while_the_journal_takes_nothing_nobody_waits_and_then_it_is_told_what_was_lost() {
        let (_place, path, journald) = journald();
        let queue = queue(&path);
        // The socket's own queue is short, and nobody reads.
        let count = 3 * MAX_RECORDS;
        push(&queue, count);
        let lost = queue.lost();
        assert!(lost >= MAX_RECORDS as u64, "{lost} records were lost");
        let (told, written) = read_to_loss(&journald);
        assert!(told.contains(&format!("\nCAXTON_LOST={lost}\n")), "{told}");
        assert_eq!(written + lost, count as u64);
        // Told once.
        push(&queue, 1);
        assert_eq!(receive(&journald), "MESSAGE=a\n");
    }

    #[test]
    fn a_journal_that_comes_back_is_told_what_was_lost() {
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
    fn what_was_logged_before_the_thread_began_is_written_at_the_end_at_the_latest() {
        let (_place, path, journald) = journald();
        let queue = Queue::new(Sink::Journal(Socket::open(&path).unwrap()));
        push(&queue, 1);
        queue.finish(BOUND).unwrap();
        assert_eq!(receive(&journald), "MESSAGE=a\n");
    }

    #[test]
    fn the_bytes_that_wait_are_bounded() {
        let (_place, path, _journald) = journald();
        let large = Queue { encode: |_| vec![b'a'; MAX_BYTES / 4], ..queue(&path) };
        // The socket takes a few, as memory files; four more may wait.
        for _ in 0..64 {
            large.push(&Record::of_lost(0));
        }
        let state = large.shared.state();
        assert!(state.bytes <= MAX_BYTES && state.lost > 0, "{} bytes wait", state.bytes);
    }

    #[test]
    fn finishing_waits_for_what_was_logged_but_not_for_ever() {
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
