//! Writes to the limits of the control groups. Of a limit that was lowered the kernel tells nothing until the group
//! allocates again, and an idle one does not: the files themselves are watched, which inotify(7) does for what processes
//! write to them.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::registered;
use crate::files::FileError;
use crate::memory::cgroup::Hierarchy;

/// The limits of a group and of all that hold it, watched for as long as this is held.
#[derive(Debug)]
pub(super) struct Limits {
    group: PathBuf,
    /// Stays registered: to register is an allocation of the kernel, which a group over its limit waits for.
    writes: AsyncFd<File>,
}

impl Limits {
    /// Watches those that are there: the controller may be off in groups above.
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
        let writes = registered(File::from(OwnedFd::from(inotify)), Interest::READABLE, &group)?;
        Ok(Self { group, writes })
    }

    /// Waits until a process has written to one of them. May be cancelled at any time.
    pub(super) async fn written(&mut self) -> Result<(), FileError> {
        // Which one is no matter: all are read for a sample. What does not fit is read by the next call.
        let mut events = [0; 1024];
        let read = self.writes.async_io_mut(Interest::READABLE, |file| file.read(&mut events));
        read.await.map(drop).map_err(FileError::new("read writes to the limits of", &self.group))
    }
}
