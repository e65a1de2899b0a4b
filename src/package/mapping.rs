//! A file of the store mapped into memory, read-only.
//!
//! Owns the mapping and its one `unsafe` premise. Knows nothing of what is in the file.
//!
//! Invariants:
//! 1. The bytes are those of the file that was opened, to the end of the mapping's life, whatever
//!    is renamed or removed meanwhile.
//! 2. Nothing is ever written through it: its pages are the kernel's cache, which it may drop and
//!    read again from the file.
//! 3. Once it is gone nothing of the file stays in the page cache, unless another mapping uses it.

// The premise is one about files, which no type can hold.
#![allow(unsafe_code, reason = "a file is mapped and its pages are given back")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::{Mmap, UncheckedAdvice};

use super::digest::{Digest, Hasher};
use crate::files;

/// Bytes that are read at a time: few beside any model, many beside the cost of a system call.
const CHUNK: usize = 256 << 10;

/// A file of the store, mapped.
#[derive(Debug)]
pub struct Mapping {
    // Before the file: pages leave the cache only when nobody has them mapped.
    map: Mmap,
    file: Uncached,
}

/// A file that leaves the page cache with its handle.
#[derive(Debug)]
struct Uncached(File);

impl Drop for Uncached {
    fn drop(&mut self) {
        files::uncache(&self.0, 0..u64::MAX);
    }
}

impl Mapping {
    /// Maps all of `file`, which is one of the store's.
    pub(super) fn of(file: File) -> io::Result<Self> {
        // SAFETY: the bytes behind `&[u8]` must not change while it is borrowed. The store is the
        // daemon's own directory: nobody else may write there, a file in it is never written again
        // after the rename that put it there, and its lock keeps a second process of ours away.
        // Who breaks that (root alone can) breaks no type: bytes are read as numbers, each of
        // which is checked or harmless. When the file is cut, or the disk fails to give a page that it
        // gave when the digest was computed, an access raises SIGBUS: the process ends and is started
        // anew, and finds the entry corrupt or unreadable.
        //
        // JUSTIFICATION: read into memory the weights would count twice while they are packed,
        // and the table of words would stay there whole, of which few rows are used.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map, file: Uncached(file) })
    }

    /// What is in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The digest of the bytes, read through the handle that is mapped: a page that the disk does not give
    /// is an error there, and the end of the process in the mapping.
    pub(super) fn digest(&self) -> io::Result<Digest> {
        let mut hasher = Hasher::default();
        self.read_through(|chunk| hasher.update(chunk))?;
        Ok(hasher.finish())
    }

    /// Reads all bytes through the handle that is mapped, in their order.
    pub(super) fn read_through(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut chunk = vec![0; self.map.len().min(CHUNK)];
        for start in (0..self.map.len()).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(self.map.len() - start)];
            self.file.0.read_exact_at(chunk, start as u64)?;
            each(chunk);
        }
        Ok(())
    }

    /// Says that `range` will not be read for a while. Its pages leave the process and stay in the page
    /// cache; who reads them finds them unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the file.
    pub fn release(&self, range: Range<usize>) {
        let length = self.map[range.clone()].len();
        // SAFETY: on a shared mapping that is only read MADV_DONTNEED drops entries of the page
        // table and no content: the next access finds the same bytes in the file,
        // https://man7.org/linux/man-pages/man2/madvise.2.html. So slices of them stay valid.
        //
        // JUSTIFICATION: pages that were read once would stay in the resident set as long as
        // memory is not short, and that is what operators and limits look at.
        let advised = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, length)
        };
        // Only an advice: when it is not taken the kernel takes the pages when it is short of them.
        drop(advised);
    }

    /// Says that `range` will not be read again. Its pages leave the page cache too; who reads them
    /// nevertheless finds them unchanged, and waits for the disk.
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

    /// Resident bytes of the mapping that begins at `address`.
    fn resident(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    fn mapped(content: &[u8]) -> Mapping {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Mapping::of(file).unwrap()
    }

    #[test]
    fn a_mapping_is_the_file_and_has_its_digest() {
        for length in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5] {
            let content: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mapping = mapped(&content);
            assert_eq!(mapping.digest().unwrap(), Digest::of(&content), "{length}");
            assert_eq!(mapping.bytes(), content, "{length}");
        }
    }

    #[test]
    fn what_was_hashed_or_released_is_resident_no_more_and_still_readable() {
        const KEPT: usize = 1 << 20;
        let content = vec![7; 8 * KEPT];
        let mapping = mapped(&content);
        let address = mapping.bytes().as_ptr().addr();
        mapping.digest().unwrap();
        assert_eq!(resident(address), 0);
        assert_eq!(mapping.bytes(), content);
        assert_eq!(resident(address), content.len() as u64);
        mapping.release(KEPT..content.len());
        // Of a huge page more than was asked for leaves.
        assert!(resident(address) <= KEPT as u64);
        assert_eq!(mapping.bytes(), content);
        mapping.forget(3..content.len() - 3);
        assert!(resident(address) <= KEPT as u64);
        assert_eq!(mapping.bytes(), content);
    }
}
