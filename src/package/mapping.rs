//! Read-only memory mapping of a file in the store.
//!
//! Contains the mapping and the `unsafe` code that it needs. Does not interpret the content.
//!
//! Invariants:
//! 1. The bytes are those of the opened file for the whole life of the mapping, even if the file is
//!    renamed or deleted in the meantime.
//! 2. The mapping is never written. Its pages belong to the kernel's page cache, so the kernel can
//!    drop them and read them again from the file.
//! 3. After the mapping is dropped, no page of the file stays in the page cache, unless another
//!    mapping uses it.

// The contract concerns files, so the type system cannot express it.
#![allow(unsafe_code, reason = "a file is mapped and its pages are given back")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::{Mmap, UncheckedAdvice};

use super::digest::{Digest, Hasher};
use crate::files;

/// Bytes per read: small compared with any model, large enough that the cost of the system call
/// does not matter.
const CHUNK: usize = 256 << 10;

/// Mapped file of the store.
#[derive(Debug)]
pub struct MappedFile {
    // Must precede `file`, because fields are dropped in order: the kernel removes pages from the
    // cache only when they are not mapped.
    map: Mmap,
    file: UncachedFile,
}

/// File whose pages are removed from the page cache when it is dropped.
#[derive(Debug)]
struct UncachedFile(File);

impl Drop for UncachedFile {
    fn drop(&mut self) {
        files::uncache(&self.0, 0..u64::MAX);
    }
}

impl MappedFile {
    /// Maps all of `file`, which must be a file of the store.
    pub(super) fn of(file: File) -> io::Result<Self> {
        // SAFETY: the bytes behind `&[u8]` must not change while they are borrowed. The store is
        // the daemon's own directory: other users cannot write there, a file is never written after
        // the rename that put it there, and the lock of the store keeps out a second daemon. Only
        // root can break this. Even then no type invariant breaks: bytes are read as numbers, and
        // each number is checked or harmless. If the file is truncated, or the disk fails to return
        // a page that it returned when the digest was computed, an access raises SIGBUS: the
        // process ends, is restarted, and finds the entry corrupt or unreadable.
        //
        // JUSTIFICATION: the safe way, reading the file into memory, would hold the weights twice
        // while they are packed, and would keep the whole table of word embeddings in memory, of
        // which few rows are used.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map, file: UncachedFile(file) })
    }

    /// Returns the content of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Computes the digest of the bytes.
    ///
    /// Reads through the handle of the mapped file, not through the mapping: a page that the disk
    /// fails to return gives an error here, but would end the process (SIGBUS) in the mapping.
    pub(super) fn digest(&self) -> io::Result<Digest> {
        let mut hasher = Hasher::default();
        self.read_through(|chunk| hasher.update(chunk))?;
        Ok(hasher.finish())
    }

    /// Reads all bytes in order through the handle of the mapped file; calls `each` for every
    /// chunk.
    pub(super) fn read_through(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut chunk = vec![0; self.map.len().min(CHUNK)];
        for start in (0..self.map.len()).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(self.map.len() - start)];
            self.file.0.read_exact_at(chunk, start as u64)?;
            each(chunk);
        }
        Ok(())
    }

    /// Advises the kernel that `range` will not be read for a while. Its pages leave the process
    /// but stay in the page cache. The bytes stay readable and unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the file.
    pub fn release(&self, range: Range<usize>) {
        let length = self.map[range.clone()].len();
        // SAFETY: for a shared mapping that is only read, MADV_DONTNEED drops page table entries
        // and no content. The next access finds the same bytes in the file
        // (https://man7.org/linux/man-pages/man2/madvise.2.html), so borrowed slices stay valid.
        //
        // JUSTIFICATION: without the call, pages that were read once would stay in the resident set
        // as long as memory is not short. Operators and limits look at the resident set.
        let advised = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, length)
        };
        // A failure is harmless: the kernel reclaims the pages anyway when memory is short.
        drop(advised);
    }

    /// Advises the kernel that `range` will not be read again. Its pages leave the page cache too.
    /// The bytes stay readable and unchanged, but a later read waits for the disk.
    ///
    /// # Panics
    /// When `range` reaches beyond the file.
    pub fn forget(&self, range: Range<usize>) {
        self.release(range.clone());
        files::uncache(&self.file.0, range.start as u64..range.end as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Returns the number of resident bytes of the mapping that begins at `address`.
    fn resident(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    fn mapped(content: &[u8]) -> MappedFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        MappedFile::of(file).unwrap()
    }

    #[test]
    fn mapping_matches_file_and_digest() {
        for length in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5] {
            let content: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mapping = mapped(&content);
            assert_eq!(mapping.digest().unwrap(), Digest::of(&content), "{length}");
            assert_eq!(mapping.bytes(), content, "{length}");
        }
    }

    #[test]
    fn released_pages_leave_memory_but_stay_readable() {
        const KEPT: usize = 1 << 20;
        let content = vec![7; 8 * KEPT];
        let mapping = mapped(&content);
        let address = mapping.bytes().as_ptr().addr();
        mapping.digest().unwrap();
        assert_eq!(resident(address), 0);
        assert_eq!(mapping.bytes(), content);
        assert_eq!(resident(address), content.len() as u64);
        mapping.release(KEPT..content.len());
        // At most `KEPT` bytes stay: with huge pages the kernel may release more than the range.
        assert!(resident(address) <= KEPT as u64);
        assert_eq!(mapping.bytes(), content);
        mapping.forget(3..content.len() - 3);
        assert!(resident(address) <= KEPT as u64);
        assert_eq!(mapping.bytes(), content);
    }
}
