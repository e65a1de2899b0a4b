//! The events at the limits of a control group: anybody who may read them is woken when they change.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::{SourceError, read_again, registered};
use crate::files::FileError;
use crate::memory::sample::Events;

/// How often the file is read although it told of no change: the kernel does not tell when its group is removed.
const LOOK: Duration = Duration::from_secs(10);

/// How the file tells of a change: as of an error, too.
const CHANGE: Interest = Interest::PRIORITY.add(Interest::ERROR);

/// A `memory.events` file and what it said last.
#[derive(Debug)]
pub(super) struct EventCounts {
    path: PathBuf,
    /// Stays registered: to register is an allocation of the kernel, for which a group over its limit waits. A storm
    /// wakes the runtime a hundred times a second at most, as often as the kernel tells of changes
    /// (<https://github.com/torvalds/linux/blob/v6.1/kernel/cgroup/cgroup.c>, `CGROUP_FILE_NOTIFY_MIN_INTV`).
    changes: AsyncFd<File>,
    seen: Events,
}

impl EventCounts {
    pub(super) fn open(path: PathBuf) -> Result<Self, SourceError> {
        let file = File::open(&path).map_err(FileError::new("open", &path))?;
        let seen = read(&file, &path)?;
        let changes = registered(file, CHANGE, &path)?;
        Ok(Self { path, changes, seen })
    }

    /// Waits for a change; whether a count has changed. May be cancelled at any time.
    pub(super) async fn heard(&mut self) -> Result<bool, SourceError> {
        // That the group is gone is seen when the file is read.
        if let Ok(ready) = timeout(LOOK, self.changes.ready(CHANGE)).await {
            ready.map_err(FileError::new("wait for events of", &self.path))?.clear_ready();
        }
        // Without reading, it would tell of the same change for ever.
        let now = read(self.changes.get_ref(), &self.path)?;
        let changed = now != self.seen;
        self.seen = now;
        Ok(changed)
    }
}

fn read(file: &File, path: &Path) -> Result<Events, SourceError> {
    let text = read_again(file, path)?;
    Events::parse(&text).map_err(|error| SourceError::Events(path.to_owned(), error))
}

impl fmt::Display for EventCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of {}", self.path.display())
    }
}
