//! The events at the limits of a control group: anybody who may read them is woken when they change.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::{SourceError, read_again, registered};
use crate::files::FileError;
use crate::memory::sample::Events;

/// How often the file is read although it told of no change: the kernel does not tell when its group is removed.
const LOOK: Duration = Duration::from_secs(10);

/// A `memory.events` file and what it said last.
#[derive(Debug)]
pub(super) struct EventCounts {
    path: PathBuf,
    file: File,
    seen: Events,
}

impl EventCounts {
    pub(super) fn open(path: PathBuf) -> Result<Self, SourceError> {
        let file = File::open(&path).map_err(FileError::new("open", &path))?;
        let mut counts = Self { path, file, seen: Events::default() };
        counts.seen = counts.read()?;
        drop(counts.registered()?);
        Ok(counts)
    }

    /// Waits for a change; whether a count has changed.
    pub(super) async fn heard(&mut self) -> Result<bool, SourceError> {
        // Registered for the wait only: while this is held off, a storm does not wake the runtime. Nothing is lost, as
        // the file remembers whether it has changed since it was read.
        let registered = self.registered()?;
        // An error is how the file tells of any change; that the group is gone is seen when it is read.
        let ready = timeout(LOOK, registered.ready(Interest::PRIORITY | Interest::ERROR)).await;
        let ready = ready.map(|ready| ready.map(|mut ready| ready.retain_ready()));
        drop(registered);
        match ready {
            Ok(ready) => ready.map_err(FileError::new("wait for events of", &self.path))?,
            Err(_elapsed) => {}
        }
        // Without reading, it would tell of the same change for ever.
        let now = self.read()?;
        let changed = now != self.seen;
        self.seen = now;
        Ok(changed)
    }

    fn registered(&self) -> Result<AsyncFd<BorrowedFd<'_>>, FileError> {
        registered(self.file.as_fd(), Interest::PRIORITY | Interest::ERROR, &self.path)
    }

    fn read(&self) -> Result<Events, SourceError> {
        let text = read_again(&self.file, &self.path)?;
        Events::parse(&text).map_err(|error| SourceError::Events(self.path.clone(), error))
    }
}

impl fmt::Display for EventCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of {}", self.path.display())
    }
}
