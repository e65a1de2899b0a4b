//! A file of an installed package, taken out of the store.
//!
//! Owns the comparison with the manifest. Whatever is wrong is said in words about the file: what
//! follows from it is the store's business.
//!
//! Invariant: what is given was hashed through the one handle that was opened for it.

use std::io::{self, Read, Write};
use std::path::Path;

use super::digest::{Digest, HashingReader};
use super::manifest::Member;
use super::mapping::Mapping;
use crate::errors::chain;
use crate::files::{self, FileError, ReadOnce};

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

/// Copies a member into `sink` while hashing it; says how it differs from what was installed.
pub(super) fn copy(directory: &Path, member: &Member, sink: &mut impl Write) -> Result<(), String> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path).map_err(|error| chain(&error))?;
    // One byte more than expected shows a file that has grown, without reading all that was added.
    let mut reader = HashingReader::new(ReadOnce::new(file).take(member.size.saturating_add(1)));
    io::copy(&mut reader, sink).map_err(|error| chain(&FileError::new("read", &path)(error)))?;
    check_size(member, reader.bytes_read())?;
    check_digest(member, reader.finish())
}

/// Maps a member and hashes the mapping; says how it differs from what was installed.
pub(super) fn map(directory: &Path, member: &Member) -> Result<Mapping, String> {
    let path = directory.join(member.path.as_str());
    let file = files::open_regular(&path).map_err(|error| chain(&error))?;
    let mapping = Mapping::of(file).map_err(|error| chain(&FileError::new("map", &path)(error)))?;
    check_size(member, mapping.bytes().len() as u64)?;
    check_digest(member, mapping.digest())?;
    Ok(mapping)
}

fn check_size(member: &Member, size: u64) -> Result<(), String> {
    if size == member.size {
        return Ok(());
    }
    let relation = if size > member.size { "more" } else { "fewer" };
    Err(format!("{} has {relation} than its {} bytes", member.path, member.size))
}

fn check_digest(member: &Member, digest: Digest) -> Result<(), String> {
    if digest == member.sha256 {
        return Ok(());
    }
    Err(format!("{} has digest {digest} instead of {}", member.path, member.sha256))
}
