//! Watches writes to the limits of the control groups.
//!
//! The kernel does not signal a lowered limit until the group allocates again, and an idle group
//! does not allocate. So inotify(7) watches the files themselves; it reports writes by processes.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::register;
use crate::files::FileError;
use crate::memory::cgroup::Hierarchy;

/// Watch on the limits of a group and its ancestors; dropping it ends the watch.
#[derive(Debug)]
pub(super) struct LimitWatch {
    group: PathBuf,
    /// Stays registered, because registering allocates kernel memory, for which a group over its
    /// limit is throttled.
    writes: AsyncFd<File>,
}

impl LimitWatch {
    /// Watches the existing limit files. Files may be absent, because groups above can lack the
    /// controller.
    pub(super) fn watch(memory: &Hierarchy) -> Result<Self, FileError> {
        let group = memory.own().to_owned();
        let failed = |path: &Path, errno: Errno| FileError::new("watch", path)(errno.into());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(|errno| failed(&group, errno))?;
        for file in memory.limited().flat_map(|directory| memory.limits(directory)) {
            match inotify.add_watch(&file, AddWatchFlags::IN_MODIFY) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed(&file, errno)),
            }
        }
        let writes = register(File::from(OwnedFd::from(inotify)), Interest::READABLE, &group)?;
        Ok(Self { group, writes })
    }

    /// Waits until a process writes to one of the limits. May be cancelled at any time.
    pub(super) async fn wait_for_write(&mut self) -> Result<(), FileError> {
        // The event's file does not matter, because a sample reads all limits. Events beyond the
        // buffer wake the next call.
        let mut events = [0; 1024];
        let read = self.writes.async_io_mut(Interest::READABLE, |file| file.read(&mut events));
        read.await.map(drop).map_err(FileError::new("read writes to the limits of", &self.group))
    }
}
