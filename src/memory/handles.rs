//! Files of the kernel that are read again and again, each through a handle that stays open.
//!
//! To open a file takes memory of this process's control group. When that is over its `memory.high` the kernel answers
//! each allocation with a pause of some tenths of a second
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>), and a sample opens a dozen files:
//! whoever has to let memory go could not measure what to let go. Reading from a handle that has been read before takes
//! nothing. To look for a file that is not there does: the kernel remembers its name, until it needs the memory.
//!
//! Invariant: what is read is what the path names now, as if it had been opened anew; but a file that was not there is
//! found up to [`ABSENT`] late.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files::{self, FileError};

/// Longest file that is read; the longest of the kernel's has a few kilobytes.
const MAX_FILE: usize = 1 << 20;
/// How much is read at a time: all of a file, but for the longest.
const CHUNK: usize = 8 << 10;
/// How long a file is not looked for after it was not there. While memory is not short, samples are that far apart.
const ABSENT: Duration = Duration::from_secs(10);

/// The handles, and when other files were not there.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<PathBuf, File>,
    absent: HashMap<PathBuf, Instant>,
    buffer: Vec<u8>,
}

impl Handles {
    /// What the regular file `path` says now. Bytes that are not UTF-8 become a sign that no parser here accepts.
    pub(super) fn read(&mut self, path: &Path) -> Result<String, FileError> {
        let Self { open, absent, buffer } = self;
        let failed = FileError::new("examine", path);
        if absent.get(path).is_some_and(|since| since.elapsed() < ABSENT) {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        // Out of the maps while it is looked at: what is not put back is gone.
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

/// Whether `file` is what was `found` under its name: a control group that was made anew has other files.
fn is_same(file: &File, found: &Metadata) -> bool {
    let is = |kept: Metadata| (kept.dev(), kept.ino()) == (found.dev(), found.ino());
    file.metadata().is_ok_and(is)
}

/// Fills `buffer` with all of `file`, from its beginning.
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
    fn what_is_read_is_what_the_path_names_now() {
        let tree = Tree::new(&[("group/a", "1"), ("other/a", "3")]);
        let (path, mut handles) = (tree.path("group/a"), Handles::default());
        assert_eq!(handles.read(&path).unwrap(), "1");
        tree.write("group/a", "22");
        assert_eq!(handles.read(&path).unwrap(), "22");
        // The same group made anew, and none.
        fs::rename(tree.path("group"), tree.path("old")).unwrap();
        fs::rename(tree.path("other"), tree.path("group")).unwrap();
        assert_eq!(handles.read(&path).unwrap(), "3");
        fs::remove_file(&path).unwrap();
        assert_eq!(handles.read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(handles.open.is_empty());
    }

    #[test]
    fn a_file_that_was_not_there_is_looked_for_again_after_a_while() {
        let tree = Tree::new(&[]);
        let (path, mut handles) = (tree.path("a"), Handles::default());
        let is_absent = |handles: &mut Handles| {
            handles.read(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        assert!(is_absent(&mut handles));
        tree.write("a", "1");
        assert!(is_absent(&mut handles));
        let long_ago = Instant::now().checked_sub(ABSENT).unwrap();
        handles.absent.values_mut().for_each(|since| *since = long_ago);
        assert_eq!(handles.read(&path).unwrap(), "1");
        assert!(handles.absent.is_empty());
    }

    #[test]
    fn a_file_is_opened_once_and_read_whole() {
        let text = "a line of it\n".repeat(CHUNK / 4);
        let tree = Tree::new(&[("a", text.as_str())]);
        let mut handles = Handles::default();
        assert_eq!(handles.read(&tree.path("a")).unwrap(), text);
        let descriptor = |handles: &Handles| handles.open[&tree.path("a")].as_raw_fd();
        let first = descriptor(&handles);
        assert_eq!(handles.read(&tree.path("a")).unwrap(), text);
        assert_eq!(descriptor(&handles), first);
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused() {
        let long = "a".repeat(MAX_FILE + 1);
        let tree = Tree::new(&[("a", long.as_str()), ("directory/b", "")]);
        let kind = |path| Handles::default().read(&tree.path(path)).unwrap_err().kind();
        assert_eq!(kind("a"), io::ErrorKind::FileTooLarge);
        assert_eq!(kind("directory"), io::ErrorKind::InvalidInput);
    }
}
