//! A file of an installed package, taken out of the store.
//!
//! Owns the comparison with the manifest. What follows from a difference is the store's business.
//!
//! Invariant: what is given was hashed through the one handle that was opened for it.

use std::io::{self, Read, Write};
use std::path::Path;

use super::digest::{Digest, HashingReader};
use super::manifest::Member;
use super::mapping::Mapping;
use crate::errors::{chain, errno};
use crate::files::{self, FileError, ReadOnce};

/// Why a member is not given.
#[derive(Debug)]
pub(super) enum MemberError {
    /// It is not what was installed, in words about the file: other bytes, another kind of file, none, or one that the
    /// disk does not give.
    Differs(String),
    /// It could not be looked at, for want of rights, handles or memory: nothing is known of it.
    Unread(FileError),
}

impl From<FileError> for MemberError {
    fn from(error: FileError) -> Self {
        const OURS: [i32; 5] =
            [libc::EACCES, libc::EPERM, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        if errno(&error).is_some_and(|number| OURS.contains(&number)) {
            Self::Unread(error)
        } else {
            Self::Differs(chain(&error))
        }
    }
}

/// A sink that keeps nothing and tells how many bytes have come.
pub(super) struct Counter<F> {
    pub(super) bytes: u64,
    pub(super) progress: F,
}

impl<F: FnMut(u64)> Write for Counter<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bytes += buffer.len() as u64;
        (self.progress)(self.bytes);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies a member into `sink`, which takes everything, while hashing it.
pub(super) fn copy(
    directory: &Path,
    member: &Member,
    sink: &mut impl Write,
) -> Result<(), MemberError> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path)?;
    // One byte more than expected shows a file that has grown, without reading all that was added.
    let mut reader = HashingReader::new(ReadOnce::new(file).take(member.size.saturating_add(1)));
    io::copy(&mut reader, sink).map_err(FileError::new("read", &path))?;
    check_size(member, reader.bytes_read())?;
    check_digest(member, reader.finish())
}

/// Maps a member and hashes it.
pub(super) fn map(directory: &Path, member: &Member) -> Result<Mapping, MemberError> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path)?;
    let mapping = Mapping::of(file).map_err(FileError::new("map", &path))?;
    check_size(member, mapping.bytes().len() as u64)?;
    check_digest(member, mapping.digest().map_err(FileError::new("read", &path))?)?;
    Ok(mapping)
}

fn check_size(member: &Member, size: u64) -> Result<(), MemberError> {
    if size == member.size {
        return Ok(());
    }
    let relation = if size > member.size { "more" } else { "fewer" };
    let reason = format!("{} has {relation} than its {} bytes", member.path, member.size);
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
    fn what_the_disk_does_not_give_differs_and_what_the_process_was_refused_is_unknown() {
        for (errno, differs) in [
            (libc::EIO, true),
            (libc::ENOENT, true),
            (libc::ELOOP, true),
            (libc::EUCLEAN, true),
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
    fn a_page_that_cannot_be_read_is_told_and_ends_nothing() {
        // A regular file whose first page is never there.
        let member: Member = serde_json::from_value(serde_json::json!({
            "path": "mem", "size": 1, "sha256": Digest::of(b""),
        }))
        .unwrap();
        let found = copy(Path::new("/proc/self"), &member, &mut Vec::new());
        let Err(MemberError::Differs(reason)) = found else { panic!("{found:?}") };
        assert!(reason.starts_with("cannot read /proc/self/mem: "), "{reason}");
    }
}
