//! Free space of the store's file system, and its reserve.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::base::units::Bytes;
use crate::files::FileError;

/// Share of a file system that stays free for others, one twentieth, but not less than
/// [`LEAST_RESERVE`] and not more than [`MOST_RESERVE`].
const RESERVE_SHARE: u64 = 20;
const LEAST_RESERVE: Bytes = Bytes::mib(64);
const MOST_RESERVE: Bytes = Bytes::mib(1024);

/// Free space of a file system, for a package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// Bytes that are free for users without privileges.
    pub free: Bytes,
    /// Bytes of these that no package may take.
    pub reserve: Bytes,
    /// Number of files that can be created; `None` where the file system has no such limit.
    pub files: Option<u64>,
}

/// The file system of the store has too little space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the file system of {} has {} and {} files free, and {} must stay free for other programs; the \
     package needs {} and {} files: free space there, or move the store with \
     memory.model_cache.directory",
    directory.display(), space.free, FileCount(space.files), space.reserve, needed, files
)]
pub struct NoSpace {
    pub(super) directory: PathBuf,
    pub(super) space: FreeSpace,
    pub(super) needed: Bytes,
    pub(super) files: u64,
}

/// A number of files that may be unlimited.
struct FileCount(Option<u64>);

impl std::fmt::Display for FileCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(count) => count.fmt(f),
            None => f.write_str("an unlimited number of"),
        }
    }
}

impl NoSpace {
    /// Returns an error for a package that needs `needed` bytes.
    #[cfg(test)]
    pub(in super::super) fn for_test(needed: Bytes) -> Self {
        Self { directory: PathBuf::new(), space: FreeSpace::default(), needed, files: 1 }
    }

    /// Returns whether `space` is enough for the package.
    pub fn is_met_by(&self, space: &FreeSpace) -> bool {
        space.fits(self.needed, self.files)
    }
}

impl FreeSpace {
    /// Measures the file system of `directory`.
    ///
    /// # Errors
    /// When the directory cannot be examined.
    pub(super) fn of(directory: &Path) -> Result<Self, FileError> {
        let found = statvfs(directory).map_err(|errno| {
            FileError::new("measure the file system of", directory)(errno.into())
        })?;
        let unit = found.fragment_size();
        let whole = Bytes(found.blocks().saturating_mul(unit));
        Ok(Self {
            free: Bytes(found.blocks_available().saturating_mul(unit)),
            reserve: reserve(whole),
            // Some file systems create inodes on demand and report 0.
            files: (found.files() > 0).then(|| found.files_available()),
        })
    }

    pub(super) fn fits(&self, needed: Bytes, files: u64) -> bool {
        let usable = self.free.0.saturating_sub(self.reserve.0);
        needed.0 <= usable && self.files.is_none_or(|free| files <= free)
    }
}

fn reserve(whole: Bytes) -> Bytes {
    Bytes(whole.0 / RESERVE_SHARE).clamp(LEAST_RESERVE, MOST_RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_is_bounded_twentieth() {
        for (whole, expected) in [
            (Bytes(0), LEAST_RESERVE),
            (Bytes::mib(1280), LEAST_RESERVE),
            (Bytes::mib(4000), Bytes::mib(200)),
            (Bytes::mib(20_480), MOST_RESERVE),
            (Bytes::mib(1 << 20), MOST_RESERVE),
        ] {
            assert_eq!(reserve(whole), expected, "{whole}");
        }
    }

    #[test]
    fn free_space_check_is_exact() {
        let space = FreeSpace { free: Bytes(100), reserve: Bytes(40), files: Some(3) };
        for (needed, files, expected) in
            [(60, 3, true), (61, 3, false), (60, 4, false), (u64::MAX, 0, false), (0, 0, true)]
        {
            assert_eq!(space.fits(Bytes(needed), files), expected, "{needed} {files}");
        }
        let unlimited = FreeSpace { files: None, ..space };
        assert!(unlimited.fits(Bytes(60), u64::MAX));
        // Less is free than the reserve.
        assert!(!FreeSpace { free: Bytes(39), ..space }.fits(Bytes(1), 0));
        let error = NoSpace { directory: "/store".into(), space, needed: Bytes(61), files: 3 };
        assert!(!error.is_met_by(&space));
        assert!(error.is_met_by(&FreeSpace { free: Bytes(101), ..space }));
        let text = error.to_string();
        for part in ["/store", "100 B", "40 B", "61 B", "3 files", "memory.model_cache.directory"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
}
