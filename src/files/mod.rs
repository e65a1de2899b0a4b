//! Reads and writes files with errors that name the operation and the path. After a crash, a file
//! has its old or its new content.
//!
//! All functions block: asynchronous callers use the runtime's blocking pool. [`watch`] observes
//! directories.

pub mod watch;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;

/// Bytes of a file that [`CacheWindow`] leaves in the page cache: many compared with the cost of a
/// sync, few compared with the memory of a device.
const WINDOW: u64 = 8 << 20;
/// Directory with the open file descriptors of this process: proc_pid_fd(5).
const HANDLES: &str = "/proc/self/fd";

/// Number of random characters in the name of a temporary file.
const TEMPORARY_LENGTH: usize = 6;

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", display_path(path).display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Returns a function for `map_err` that makes an error of `operation` (an infinitive: "open")
    /// on `path`.
    pub fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { operation, path, source }
    }

    /// Returns the kind of the underlying I/O error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns whether the disk failed: see [`disk_failed`].
    pub fn disk_failed(&self) -> bool {
        disk_failed(&self.source)
    }
}

/// Returns whether the cause of an error is the disk and not the caller: it is full, read-only or
/// damaged.
pub fn disk_failed(error: &io::Error) -> bool {
    const DISK: [i32; 8] = [
        libc::EROFS,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EIO,
        // Errors of a damaged file system: a wrong checksum, and a wrong structure.
        libc::EBADMSG,
        libc::EUCLEAN,
        libc::ENODEV,
        libc::ESTALE,
    ];
    // An error may be wrapped in another one that names the path: search the whole chain.
    let error: &(dyn std::error::Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut numbers = causes.filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    numbers.any(|number| DISK.contains(&number))
}

/// Returns the path to show to people. A path below a file descriptor of this process
/// (`/proc/self/fd/N/…`) becomes a path below the file that the descriptor refers to. All other
/// paths stay unchanged.
pub fn display_path(path: &Path) -> Cow<'_, Path> {
    let Ok(below) = path.strip_prefix(HANDLES) else { return path.into() };
    let mut parts = below.components();
    let Some(handle) = parts.next() else { return path.into() };
    match fs::read_link(Path::new(HANDLES).join(handle)) {
        Ok(target) => target.join(parts.as_path()).into(),
        Err(_closed) => path.into(),
    }
}

/// Returns a path to `directory` that stays valid even if this process loses rights or another
/// directory takes its name. The path goes through a file descriptor, which stays open until the
/// process ends. Child processes inherit the descriptor, so the path is valid for them, too.
///
/// # Errors
/// When `directory` is not a directory or cannot be opened.
pub fn open_pinned(directory: &Path) -> Result<(PathBuf, Metadata), FileError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let handle = nix::fcntl::open(directory, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| FileError::new("open", directory)(errno.into()))?;
    let metadata = handle.metadata().map_err(FileError::new("examine", directory))?;
    let path = Path::new(HANDLES).join(handle.into_raw_fd().to_string());
    Ok((path, metadata))
}

/// Opens `directory`, which must not be a symbolic link. Returns a file descriptor and a path
/// through it. The path leads to this directory while the descriptor is open, even if another one
/// takes its name.
///
/// # Errors
/// When it is a symbolic link or not a directory, or cannot be opened.
pub fn open_held(directory: &Path) -> Result<(File, PathBuf), FileError> {
    // Only for the text of the error. O_NOFOLLOW below is the check, so a change in between is
    // harmless.
    let found = fs::symlink_metadata(directory).map_err(FileError::new("examine", directory))?;
    let not_followed = |source: io::Error| match found.is_dir() {
        true => source,
        false => io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is a symbolic link or another file, not a directory: remove it",
        ),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = nix::fcntl::open(directory, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| FileError::new("open", directory)(not_followed(errno.into())))?;
    let path = Path::new(HANDLES).join(handle.as_raw_fd().to_string());
    Ok((handle, path))
}

/// Opens a regular file for reading without following a symbolic link in the last component.
///
/// # Errors
/// When it cannot be opened, or is a directory, a device, a socket or a FIFO (which would block the
/// reader).
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    // O_NONBLOCK: opening a FIFO returns at once. The flag has no effect on regular files.
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

/// Drops `range` of `file` from the page cache, where it counts as memory of this process's cgroup.
///
/// The call is only advice to the kernel: dirty pages and mapped pages that were touched stay. See
/// <https://man7.org/linux/man-pages/man2/posix_fadvise.2.html>.
pub fn uncache(file: &File, range: Range<u64>) {
    let [start, length] = [range.start, range.end.saturating_sub(range.start)]
        .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // A length of 0 would mean "until the end of the file".
    if length > 0 {
        let advised = posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // Some file systems do not support the advice. They have no pages to drop.
        advised.unwrap_or(());
    }
}

/// Progress through a file: bytes passed from its beginning, and bytes passed when its pages were
/// last dropped from the page cache.
#[derive(Debug, Default)]
struct CacheWindow {
    passed: u64,
    uncached: u64,
}

impl CacheWindow {
    /// Counts `bytes` more. Returns whether the window is full, and begins the next window in that
    /// case.
    fn pass(&mut self, bytes: usize) -> bool {
        self.passed += bytes as u64;
        let full = self.passed - self.uncached >= WINDOW;
        if full {
            self.uncached = self.passed;
        }
        full
    }
}

/// A file that is read once and does not stay in the page cache.
#[derive(Debug)]
pub struct ReadOnce {
    file: File,
    window: CacheWindow,
}

impl ReadOnce {
    /// Wraps `file`, which is read from its beginning.
    pub fn new(file: File) -> Self {
        Self { file, window: CacheWindow::default() }
    }
}

impl Read for ReadOnce {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if self.window.pass(read) {
            // Drop the pages from the beginning of the file, not of the window: a large folio can
            // span two windows, and the kernel drops it only as a whole.
            uncache(&self.file, 0..self.window.passed);
        }
        Ok(read)
    }
}

impl Drop for ReadOnce {
    /// Drops all pages from the cache, also those that the kernel read ahead.
    fn drop(&mut self) {
        uncache(&self.file, 0..u64::MAX);
    }
}

/// A new file that is written once. In synced mode its pages do not stay in the page cache.
#[derive(Debug)]
pub struct WriteOnce {
    file: File,
    /// `None` in volatile mode: without syncs the pages stay dirty and cannot be dropped.
    window: Option<CacheWindow>,
}

impl WriteOnce {
    /// Wraps `file`, which is written from its beginning and synced after each window.
    pub fn synced(file: File) -> Self {
        Self { file, window: Some(CacheWindow::default()) }
    }

    /// Wraps `file`, which is written from its beginning. The kernel decides when to write it back.
    pub fn volatile(file: File) -> Self {
        Self { file, window: None }
    }

    /// Syncs the file to the disk, so that it survives a power cut, and drops its pages from the
    /// cache.
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
            // The kernel drops only clean pages: sync first.
            self.file.sync_data()?;
            uncache(&self.file, 0..window.passed);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a regular file of at most `limit` bytes.
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
            format!("it is longer than the limit of {limit} bytes"),
        )));
    }
    Ok(bytes)
}

/// Replaces the file at `path` with `bytes`. After a crash, it has the old or the new content.
///
/// # Errors
/// When writing, renaming or syncing fails. The old content is then still there, unless the sync of
/// the directory failed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = temporary(directory)?;
    let mut write = || -> io::Result<()> {
        file.as_file_mut().write_all(bytes)?;
        file.as_file().sync_all()
    };
    write().map_err(FileError::new("write", path))?;
    file.persist(path).map_err(|error| FileError::new("replace", path)(error.error))?;
    sync_directory(directory)
}

/// Returns whether `name` has the form of the names that [`temporary`] gives.
pub fn is_temporary(name: &OsStr) -> bool {
    let random = name.as_bytes().strip_prefix(b".").unwrap_or_default();
    random.len() == TEMPORARY_LENGTH && random.iter().all(u8::is_ascii_alphanumeric)
}

/// Creates a file in `directory` that is removed when it is dropped. Errors keep the errno of the
/// system, which the errors of [`tempfile::NamedTempFile`] itself hide.
///
/// # Errors
/// When it cannot be created.
pub fn temporary(directory: &Path) -> Result<tempfile::NamedTempFile, FileError> {
    tempfile::Builder::new()
        .prefix(".")
        .rand_bytes(TEMPORARY_LENGTH)
        .make_in(directory, |path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600).open(path)
        })
        .map_err(FileError::new("create a file in", directory))
}

/// Syncs `directory`, so that renames and removals in it survive a power cut.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(FileError::new("sync", directory))
}

/// Creates `directory` and its parents if they do not exist.
///
/// # Errors
/// When it cannot be created.
pub fn create_directory(directory: &Path) -> Result<(), FileError> {
    fs::create_dir_all(directory).map_err(FileError::new("create", directory))
}

/// Locks the file at `path` and creates it if it does not exist. Returns `None` while another
/// process holds the lock.
///
/// The kernel releases the lock when its holder ends for any reason. The file itself must stay: a
/// process can create a new file under the name of a removed one, and the lock would exclude
/// nothing. An existing file can be locked on a read-only file system, too.
///
/// # Errors
/// When it cannot be opened or locked.
pub fn lock(path: &Path) -> Result<Option<Flock<File>>, FileError> {
    let open = |write: bool| {
        OpenOptions::new()
            .read(!write)
            .write(write)
            .create(write)
            .truncate(false)
            // Do not follow links: root may open files in a directory of another user, who could
            // place a link there.
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path)
    };
    let file = match open(true) {
        // Open for writing first: some network file systems lock only files that are open for
        // writing.
        Err(error) if disk_failed(&error) => open(false).or(Err(error)),
        file => file,
    };
    lock_file(file.map_err(FileError::new("open", path))?, path)
}

/// Locks the directory at `path` itself, for a directory in which [`lock`] cannot create its file.
/// Returns `None` while another process holds the lock.
///
/// # Errors
/// When it cannot be opened or locked.
pub fn lock_directory(path: &Path) -> Result<Option<Flock<File>>, FileError> {
    lock_file(File::open(path).map_err(FileError::new("open", path))?, path)
}

fn lock_file(file: File, path: &Path) -> Result<Option<Flock<File>>, FileError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_file, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_file, errno)) => Err(FileError::new("lock", path)(errno.into())),
    }
}

/// Removes the file or the directory tree at `path`. A missing path is not an error.
///
/// # Errors
/// When a part of it could not be removed.
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

/// Gives `path` the owner of `directory` if this process runs as root. An administrator may install
/// packages as root that the daemon must manage later.
///
/// # Errors
/// When the owner cannot be read or set.
pub fn change_owner(path: &Path, directory: &Path) -> Result<(), FileError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(directory).map_err(FileError::new("examine", directory))?;
    let found = fs::symlink_metadata(path).map_err(FileError::new("examine", path))?;
    // Skip a change that is not needed: a read-only file system would refuse it.
    if (found.uid(), found.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    // Do not follow links: the owner of the directory could place one to a file of root.
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
        .map_err(FileError::new("change the owner of", path))
}

/// Calls [`change_owner`] for the directory `path` and for its direct children.
///
/// # Errors
/// When the directory cannot be listed, or an owner cannot be read or set.
pub fn change_owners(path: &Path, directory: &Path) -> Result<(), FileError> {
    for child in fs::read_dir(path).map_err(FileError::new("list", path))? {
        change_owner(&child.map_err(FileError::new("list", path))?.path(), directory)?;
    }
    change_owner(path, directory)
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
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
        assert!(open_regular(&file).is_ok());
        for other in [&link, &fifo, &root.path().to_owned(), &root.path().join("absent")] {
            assert!(open_regular(other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn pinned_directory_survives_move() {
        let root = tempfile::tempdir().unwrap();
        let (directory, moved) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir(&directory).unwrap();
        let (path, metadata) = open_pinned(&directory).unwrap();
        assert!(metadata.is_dir());
        fs::rename(&directory, &moved).unwrap();
        fs::create_dir(&directory).unwrap();
        write_atomic(&path.join("file"), b"content").unwrap();
        assert_eq!(fs::read(moved.join("file")).unwrap(), b"content");
        let error = open_regular(&path.join("absent")).unwrap_err();
        let expected = moved.canonicalize().unwrap().join("absent");
        assert_eq!(error.to_string(), format!("cannot open {}", expected.display()));
        assert_eq!(display_path(&moved), moved);
        let file = moved.join("file");
        let link = root.path().join("link");
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        for other in [&file, &link, &root.path().join("absent")] {
            assert!(open_pinned(other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn windowed_write_and_read_round_trip() {
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
    fn read_limit_is_inclusive() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "four").unwrap();
        assert_eq!(read_limited(&file, 4).unwrap(), b"four");
        let error = read_limited(&file, 3).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", file.display()));
    }

    #[test]
    fn atomic_write_replaces_without_leftovers() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        write_atomic(&file, b"old").unwrap();
        write_atomic(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn disk_failures_are_recognized() {
        let of = |number| io::Error::from_raw_os_error(number);
        for number in [libc::EIO, libc::ENOSPC, libc::EROFS, libc::EDQUOT] {
            assert!(disk_failed(&of(number)), "{number}");
        }
        assert!(!disk_failed(&of(libc::EACCES)) && !disk_failed(&io::Error::other("no number")));
        // An error as tempfile wraps it.
        let wrapped = FileError::new("write", "/a")(of(libc::EROFS));
        let wrapped = io::Error::new(wrapped.kind(), wrapped);
        assert!(wrapped.raw_os_error().is_none() && disk_failed(&wrapped));
    }

    #[test]
    fn lock_is_exclusive_and_released_on_drop() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(held.is_some() && lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        assert!(lock(&root.path().join("absent/lock")).is_err());
    }

    #[test]
    fn lock_does_not_follow_links() {
        let root = tempfile::tempdir().unwrap();
        let (link, target) = (root.path().join("lock"), root.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(lock(&link).is_err());
        assert!(!target.exists());
        assert!(lock(&target).unwrap().is_some());
    }

    #[test]
    fn remove_handles_directories_and_absent_paths() {
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
