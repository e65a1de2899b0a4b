//! Reads a file of an installed package from the store and compares it with the manifest.
//!
//! Only reports a difference; the store decides how to react.
//!
//! Invariant: the returned bytes were hashed through the same handle from which they are read, or
//! the kernel checks each page of the handle against the hashed content (fs-verity).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::digest::{Digest, HashingReader};
use super::manifest::Member;
use super::mapping::MappedFile;
use super::verity;
use crate::base::errors::{chain, errno};
use crate::files::{self, FileError, ReadOnce};

/// Error of reading a member.
#[derive(Debug)]
pub(super) enum MemberError {
    /// The file differs from the installed one: other bytes, another kind of file, or no file. The
    /// text describes the difference.
    Differs(String),
    /// The file could not be read: the disk failed, or permissions, file descriptors or memory are
    /// missing. The error does not show whether its bytes are correct.
    Unread(FileError),
}

impl From<FileError> for MemberError {
    fn from(error: FileError) -> Self {
        // The path is missing, or is a symbolic link or a directory. An error without a number
        // means another kind of file.
        const DIFFERENT: [i32; 4] = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EISDIR];
        if errno(&error).is_none_or(|number| DIFFERENT.contains(&number)) {
            Self::Differs(chain(&error))
        } else {
            Self::Unread(error)
        }
    }
}

/// Sink that discards its input and reports the total number of bytes written.
pub(super) struct CountingSink<F> {
    pub(super) bytes: u64,
    pub(super) progress: F,
}

impl<F: FnMut(u64)> Write for CountingSink<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bytes += buffer.len() as u64;
        (self.progress)(self.bytes);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// fs-verity digests by file name, for files of an entry that the kernel checks.
pub(super) type VerityDigests = BTreeMap<String, String>;

/// Returns whether the kernel checks `file` and measures the digest that `kept` holds for the
/// member.
///
/// The digest was recorded when the member was hashed. The kernel checks each page that it reads,
/// so this process does not need to hash the file again.
fn is_protected_by_verity(file: &File, member: &Member, kept: &VerityDigests) -> bool {
    kept.get(member.path.as_str())
        .is_some_and(|digest| verity::measure(file).as_ref() == Some(digest))
}

/// Copies a member into `sink`, which must accept all bytes. Hashes it on the way, unless the
/// kernel checks the file according to `kept`.
pub(super) fn copy(
    directory: &Path,
    member: &Member,
    kept: &VerityDigests,
    sink: &mut impl Write,
) -> Result<(), MemberError> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path)?;
    // One byte above the expected size reveals a file that has grown, without reading all added
    // bytes.
    let limit = member.size.saturating_add(1);
    if is_protected_by_verity(&file, member, kept) {
        let mut reader = ReadOnce::new(file).take(limit);
        let copied = io::copy(&mut reader, sink).map_err(FileError::new("read", &path))?;
        return check_size(member, copied);
    }
    let mut reader = HashingReader::new(ReadOnce::new(file).take(limit));
    io::copy(&mut reader, sink).map_err(FileError::new("read", &path))?;
    check_size(member, reader.bytes_read())?;
    check_digest(member, reader.finish())
}

/// Hashes `file`, which was opened at `path`, and compares it with the member.
pub(super) fn check(file: File, path: &Path, member: &Member) -> Result<(), MemberError> {
    let limit = member.size.saturating_add(1);
    let mut reader = HashingReader::new(ReadOnce::new(file).take(limit));
    io::copy(&mut reader, &mut io::sink()).map_err(FileError::new("read", path))?;
    check_size(member, reader.bytes_read())?;
    check_digest(member, reader.finish())
}

/// Maps a member and verifies it.
///
/// Hashes the file, unless the kernel checks it according to `kept`. In that case the file is read
/// through once: a bad page then gives an error here, and not a SIGBUS that ends the process later.
pub(super) fn map(
    directory: &Path,
    member: &Member,
    kept: &VerityDigests,
) -> Result<MappedFile, MemberError> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path)?;
    let is_kept = is_protected_by_verity(&file, member, kept);
    let mapping = MappedFile::of(file).map_err(FileError::new("map", &path))?;
    check_size(member, mapping.bytes().len() as u64)?;
    if is_kept {
        mapping.read_through(|_chunk| {}).map_err(FileError::new("read", &path))?;
    } else {
        check_digest(member, mapping.digest().map_err(FileError::new("read", &path))?)?;
    }
    Ok(mapping)
}

fn check_size(member: &Member, size: u64) -> Result<(), MemberError> {
    if size == member.size {
        return Ok(());
    }
    let relation = if size > member.size { "more" } else { "fewer" };
    let reason = format!("{} has {relation} than {} bytes", member.path, member.size);
    Err(MemberError::Differs(reason))
}

fn check_digest(member: &Member, digest: Digest) -> Result<(), MemberError> {
    if digest == member.sha256 {
        return Ok(());
    }
    let reason = format!("{} has digest {digest} instead of {}", member.path, member.sha256);
    Err(MemberError::Differs(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_file_differs_and_unreadable_is_unknown() {
        for (errno, differs) in [
            (libc::ENOENT, true),
            (libc::ELOOP, true),
            (libc::EIO, false),
            (libc::EUCLEAN, false),
            (libc::EACCES, false),
            (libc::EMFILE, false),
            (libc::ENOMEM, false),
        ] {
            let error = FileError::new("open", "/a")(io::Error::from_raw_os_error(errno));
            match (MemberError::from(error), differs) {
                (MemberError::Differs(reason), true) => {
                    assert!(reason.starts_with("cannot open /a: "), "{reason}");
                }
                (MemberError::Unread(_), false) => {}
                (found, _) => panic!("{errno}: {found:?}"),
            }
        }
    }

    #[test]
    fn unreadable_page_is_reported_as_error() {
        // /proc/self/mem is a regular file whose first page is never mapped.
        let member: Member = serde_json::from_value(serde_json::json!({
            "path": "mem", "size": 1, "sha256": Digest::of(b""),
        }))
        .unwrap();
        let found = copy(Path::new("/proc/self"), &member, &VerityDigests::new(), &mut Vec::new());
        let Err(MemberError::Unread(error)) = found else { panic!("{found:?}") };
        assert!(error.disk_failed());
        let reason = chain(&error);
        assert!(reason.starts_with("cannot read /proc/self/mem: "), "{reason}");
    }
}
