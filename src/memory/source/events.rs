//! Waits for events at the limits of a control group. Every process that may read the file can wait
//! for them.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::{SourceError, read_from_start, register};
use crate::files::FileError;
use crate::memory::sample::LimitEvents;

/// Interval at which the file is read without an event: the kernel sends none when the group is
/// removed.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Readiness that signals a change. The kernel reports it as an error condition, too.
const CHANGE: Interest = Interest::PRIORITY.add(Interest::ERROR);

/// A `memory.events` file and its last content.
#[derive(Debug)]
pub(super) struct EventsFile {
    path: PathBuf,
    /// Stays registered, because registering allocates kernel memory, for which a group over its
    /// limit is throttled. A storm of events wakes the runtime at most a hundred times a second,
    /// because the kernel limits its notifications
    /// (<https://github.com/torvalds/linux/blob/v6.1/kernel/cgroup/cgroup.c>,
    /// `CGROUP_FILE_NOTIFY_MIN_INTV`).
    changes: AsyncFd<File>,
    last_counts: LimitEvents,
}

impl EventsFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, SourceError> {
        let file = File::open(&path).map_err(FileError::new("open", &path))?;
        let seen = read(&file, &path)?;
        let changes = register(file, CHANGE, &path)?;
        Ok(Self { path, changes, last_counts: seen })
    }

    /// Waits for an event and returns whether a count has changed. May be cancelled at any time.
    pub(super) async fn wait(&mut self) -> Result<bool, SourceError> {
        // Ignore the timeout: if the group is gone, the read below fails.
        if let Ok(ready) = timeout(POLL_INTERVAL, self.changes.ready(CHANGE)).await {
            ready.map_err(FileError::new("wait for events of", &self.path))?.clear_ready();
        }
        // Reading the file also resets the event. Without it, the next wait would return at once.
        let now = read(self.changes.get_ref(), &self.path)?;
        let changed = now != self.last_counts;
        self.last_counts = now;
        Ok(changed)
    }
}

fn read(file: &File, path: &Path) -> Result<LimitEvents, SourceError> {
    let text = read_from_start(file, path)?;
    LimitEvents::parse(&text).map_err(|error| SourceError::Events(path.to_owned(), error))
}

impl fmt::Display for EventsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of {}", self.path.display())
    }
}
