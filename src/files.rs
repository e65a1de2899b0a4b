//! Files, read and written so that an error names the operation and the path, and a crash leaves old or new.
//!
//! Owns no state. Everything here blocks: callers on the runtime go through its blocking pool.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, PosixFadviseAdvice, posix_fadvise};

/// Bytes of a file that [`Window`] lets into the page cache: many beside the cost of a sync, few beside
/// the memory of a device.
const WINDOW: u64 = 8 << 20;

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// An error of `operation` (an infinitive: "open") on `path`; made to stand in `map_err`.
    pub fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { operation, path, source }
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Opens a regular file for reading, without following a link in its last component.
///
/// # Errors
/// When it cannot be opened or is a directory, a device, a socket or a FIFO (which would hang the reader).
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    // O_NONBLOCK: the open of a FIFO returns at once; it has no effect on regular files.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(FileError::new("open", path))?;
    let metadata = file.metadata().map_err(FileError::new("examine", path))?;
    if metadata.is_file() {
        return Ok(file);
    }
    Err(FileError::new("read", path)(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is not a regular file",
    )))
}

/// Takes `range` of `file` out of the page cache, where it counts as memory of this process's cgroup.
///
/// An advice: pages that were written and not synced stay, and so do those that somebody has mapped and
/// touched; <https://man7.org/linux/man-pages/man2/posix_fadvise.2.html>.
pub fn uncache(file: &File, range: Range<u64>) {
    let [start, length] = [range.start, range.end.saturating_sub(range.start)]
        .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // A length of 0 would mean all behind the start.
    if length > 0 {
        let advised = posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // Some file systems have no cache to speak of; then there is nothing to take out.
        advised.unwrap_or(());
    }
}

/// How far a file was read or written from its beginning, and how far when its pages were last taken out.
#[derive(Debug, Default)]
struct Window {
    passed: u64,
    uncached: u64,
}

impl Window {
    /// Whether `bytes` more fill it; then it begins anew.
    fn pass(&mut self, bytes: usize) -> bool {
        self.passed += bytes as u64;
        let full = self.passed - self.uncached >= WINDOW;
        if full {
            self.uncached = self.passed;
        }
        full
    }
}

/// A file that is read once: what was read does not stay in the page cache.
#[derive(Debug)]
pub struct ReadOnce {
    file: File,
    window: Window,
}

impl ReadOnce {
    /// Reads `file` from its beginning.
    pub fn new(file: File) -> Self {
        Self { file, window: Window::default() }
    }
}

impl Read for ReadOnce {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if self.window.pass(read) {
            // From the beginning: of pages that the kernel holds together some reach over windows.
            uncache(&self.file, 0..self.window.passed);
        }
        Ok(read)
    }
}

impl Drop for ReadOnce {
    /// Also what the kernel has read ahead.
    fn drop(&mut self) {
        uncache(&self.file, 0..u64::MAX);
    }
}

/// A new file that is written once: where it is synced, what was written does not stay in the page cache.
#[derive(Debug)]
pub struct WriteOnce {
    file: File,
    /// `None`: nothing waits for the disk, so that nothing can leave the cache.
    window: Option<Window>,
}

impl WriteOnce {
    /// Writes `file` from its beginning, and syncs it on the way.
    pub fn synced(file: File) -> Self {
        Self { file, window: Some(Window::default()) }
    }

    /// Writes `file` from its beginning, and leaves the rest to the kernel.
    pub fn volatile(file: File) -> Self {
        Self { file, window: None }
    }

    /// Makes the file survive a power cut.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        uncache(&self.file, 0..u64::MAX);
        Ok(())
    }
}

impl Write for WriteOnce {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        if let Some(window) = &mut self.window
            && window.pass(written)
        {
            // Only what is on the disk can leave the cache.
            self.file.sync_data()?;
            uncache(&self.file, 0..window.passed);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The whole content of a regular file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read or is longer.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(FileError::new("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::new("read", path)(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than the {limit} bytes allowed"),
        )));
    }
    Ok(bytes)
}

/// Replaces `path` by a file with `bytes`: after a crash it holds the old content or the new.
///
/// # Errors
/// When writing, renaming or syncing fails; but for a failed sync of the directory the old content is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .tempfile_in(directory)
        .map_err(FileError::new("create a file in", directory))?;
    let mut write = || -> io::Result<()> {
        file.write_all(bytes)?;
        file.as_file().sync_all()
    };
    write().map_err(FileError::new("write", path))?;
    file.persist(path).map_err(|error| FileError::new("replace", path)(error.error))?;
    sync_directory(directory)
}

/// Makes renames and removals in `directory` survive a power cut.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(FileError::new("sync", directory))
}

/// Creates `directory` and its parents unless it is there.
///
/// # Errors
/// When it cannot be created.
pub fn create_directory(directory: &Path) -> Result<(), FileError> {
    fs::create_dir_all(directory).map_err(FileError::new("create", directory))
}

/// Locks the file at `path`, creating it if need be; `None` while another process holds it.
///
/// The kernel drops the lock with its holder, however that ends. The file itself stays: a lock on a file that was
/// removed keeps nobody out.
///
/// # Errors
/// When it cannot be opened or locked.
pub fn lock(path: &Path) -> Result<Option<Flock<File>>, FileError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        // Root may open what another user's directory holds: no link of theirs is followed.
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(FileError::new("open", path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_file, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_file, errno)) => Err(FileError::new("lock", path)(errno.into())),
    }
}

/// Removes `path`, a file or a directory with all that is in it; it need not be there.
///
/// # Errors
/// When something of it stays.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Gives `path` the owner of `directory`, when this is root: an administrator may install as root what
/// the daemon will look after.
///
/// # Errors
/// When the owner cannot be read or set.
pub fn own(path: &Path, directory: &Path) -> Result<(), FileError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(directory).map_err(FileError::new("examine", directory))?;
    // Not what a link there leads to: who owns the directory may have put one.
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
        .map_err(FileError::new("change the owner of", path))
}

/// [`own`] for the directory `path` and what is directly in it.
///
/// # Errors
/// When the directory cannot be listed, or an owner not be read or set.
pub fn own_all(path: &Path, directory: &Path) -> Result<(), FileError> {
    for child in fs::read_dir(path).map_err(FileError::new("list", path))? {
        own(&child.map_err(FileError::new("list", path))?.path(), directory)?;
    }
    own(path, directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "four").unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let fifo = root.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open_regular(&file).is_ok());
        for other in [&link, &fifo, &root.path().to_owned(), &root.path().join("absent")] {
            assert!(open_regular(other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn what_is_written_and_read_once_is_whole_whatever_the_window() {
        #[expect(clippy::cast_possible_truncation, reason = "windows are small")]
        let window = WINDOW as usize;
        for length in [0, 1, window - 1, window, 2 * window + 5] {
            let content: Vec<u8> = (0..=250).cycle().take(length).collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            for mut written in [
                WriteOnce::synced(file.reopen().unwrap()),
                WriteOnce::volatile(file.reopen().unwrap()),
            ] {
                content.chunks(70_001).for_each(|part| written.write_all(part).unwrap());
                written.sync().unwrap();
                let mut found = Vec::new();
                ReadOnce::new(file.reopen().unwrap()).read_to_end(&mut found).unwrap();
                assert!(found == content, "{length}");
            }
        }
    }

    #[test]
    fn a_limit_is_inclusive_and_the_error_names_the_path() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "four").unwrap();
        assert_eq!(read_limited(&file, 4).unwrap(), b"four");
        let error = read_limited(&file, 3).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", file.display()));
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_beside() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        write_atomic(&file, b"old").unwrap();
        write_atomic(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_has_one_holder_and_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(held.is_some() && lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        assert!(lock(&root.path().join("absent/lock")).is_err());
    }

    #[test]
    fn no_link_is_locked_in_the_place_of_a_file() {
        let root = tempfile::tempdir().unwrap();
        let (link, target) = (root.path().join("lock"), root.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(lock(&link).is_err());
        assert!(!target.exists());
        assert!(lock(&target).unwrap().is_some());
    }

    #[test]
    fn removing_takes_directories_files_and_nothing() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        create_directory(&directory).unwrap();
        fs::write(directory.join("file"), "").unwrap();
        for path in [root.path().join("a"), root.path().join("absent")] {
            remove(&path).unwrap();
            assert!(!path.exists());
        }
    }
}
