//! Reads kernel files again and again through handles that stay open.
//!
//! Opening a file allocates memory in this process's control group. When the group is over its
//! `memory.high`, the kernel throttles each allocation for tenths of a second
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>), and a sample
//! reads a dozen files. With a new handle for each read, the daemon could hardly measure the
//! shortage that it has to end. Reading again from an open handle allocates nothing. Looking for an
//! absent file does: the kernel caches the name until it needs the memory.
//!
//! Invariant: a read returns the content that the path names now, as if the file had just been
//! opened. Only a file that was absent is found up to [`ABSENT_RETRY_INTERVAL`] late.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files::{self, FileError};

/// Longest file that is read. The longest of the kernel's files has a few kilobytes.
const MAX_FILE: usize = 1 << 20;
/// Size of one read. All files but the longest fit in it.
const CHUNK: usize = 8 << 10;
/// Time for which an absent file is not looked for again. While memory is not short, samples are
/// this far apart.
const ABSENT_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Open handles, and the instants at which other files were absent.
#[derive(Debug, Default)]
pub(super) struct CachedFiles {
    open: HashMap<PathBuf, File>,
    absent: HashMap<PathBuf, Instant>,
    buffer: Vec<u8>,
}

impl CachedFiles {
    /// Returns the current content of the regular file `path`. Bytes that are not UTF-8 become
    /// U+FFFD, which every parser here rejects.
    pub(super) fn read(&mut self, path: &Path) -> Result<String, FileError> {
        let Self { open, absent, buffer } = self;
        let failed = FileError::new("examine", path);
        if absent.get(path).is_some_and(|since| since.elapsed() < ABSENT_RETRY_INTERVAL) {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        // Take the handle out of the map while it is checked. Every early return below thereby
        // drops a handle that may be stale.
        let kept = open.remove(path);
        absent.remove(path);
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    absent.insert(path.to_owned(), Instant::now());
                }
                return Err(failed(error));
            }
        };
        let file = match kept.filter(|file| is_same(file, &found)) {
            Some(file) => file,
            None => files::open_regular(path)?,
        };
        read_all(&file, buffer).map_err(FileError::new("read", path))?;
        open.insert(path.to_owned(), file);
        Ok(String::from_utf8_lossy(buffer).into_owned())
    }
}

/// Returns whether `file` is the file that was `found` under its name. A control group that was
/// removed and created again has other files.
fn is_same(file: &File, found: &Metadata) -> bool {
    let is = |kept: Metadata| (kept.dev(), kept.ino()) == (found.dev(), found.ino());
    file.metadata().is_ok_and(is)
}

/// Fills `buffer` with the whole content of `file`, from its beginning.
fn read_all(file: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    loop {
        let length = buffer.len();
        buffer.resize(length + CHUNK, 0);
        let read = file.read_at(&mut buffer[length..], length as u64);
        buffer.truncate(length + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) if buffer.len() > MAX_FILE => return Err(io::ErrorKind::FileTooLarge.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::super::fixture::Tree;
    use super::*;

    #[test]
    fn replaced_file_is_reopened() {
        let tree = Tree::new(&[("group/a", "1"), ("other/a", "3")]);
        let (path, mut handles) = (tree.path("group/a"), CachedFiles::default());
        assert_eq!(handles.read(&path).unwrap(), "1");
        tree.write("group/a", "22");
        assert_eq!(handles.read(&path).unwrap(), "22");
        // The group is replaced by another one of the same name, then the file is removed.
        fs::rename(tree.path("group"), tree.path("old")).unwrap();
        fs::rename(tree.path("other"), tree.path("group")).unwrap();
        assert_eq!(handles.read(&path).unwrap(), "3");
        fs::remove_file(&path).unwrap();
        assert_eq!(handles.read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(handles.open.is_empty());
    }

    #[test]
    fn absent_file_is_retried_after_a_delay() {
        let tree = Tree::new(&[]);
        let (path, mut handles) = (tree.path("a"), CachedFiles::default());
        let is_absent = |handles: &mut CachedFiles| {
            handles.read(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        assert!(is_absent(&mut handles));
        tree.write("a", "1");
        assert!(is_absent(&mut handles));
        let long_ago = Instant::now().checked_sub(ABSENT_RETRY_INTERVAL).unwrap();
        handles.absent.values_mut().for_each(|since| *since = long_ago);
        assert_eq!(handles.read(&path).unwrap(), "1");
        assert!(handles.absent.is_empty());
    }

    #[test]
    fn file_is_opened_once_and_read_completely() {
        let text = "a line of it\n".repeat(CHUNK / 4);
        let tree = Tree::new(&[("a", text.as_str())]);
        let mut handles = CachedFiles::default();
        assert_eq!(handles.read(&tree.path("a")).unwrap(), text);
        let descriptor = |handles: &CachedFiles| handles.open[&tree.path("a")].as_raw_fd();
        let first = descriptor(&handles);
        assert_eq!(handles.read(&tree.path("a")).unwrap(), text);
        assert_eq!(descriptor(&handles), first);
    }

    #[test]
    fn directory_or_oversized_file_is_refused() {
        let long = "a".repeat(MAX_FILE + 1);
        let tree = Tree::new(&[("a", long.as_str()), ("directory/b", "")]);
        let kind = |path| CachedFiles::default().read(&tree.path(path)).unwrap_err().kind();
        assert_eq!(kind("a"), io::ErrorKind::FileTooLarge);
        assert_eq!(kind("directory"), io::ErrorKind::InvalidInput);
    }
}
