//! Checks whether the store and its file system have space for a package, before a byte of it is
//! written.
//!
//! This module defines the reserve of the file system. It also selects the entries that are removed
//! for another one; the store asks for them here and again when the package is installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::super::entry::EntryKey;
use super::super::install_record::{
    InstallStatus, Origin, Quota, RemovalCandidate, StoreFull, select_removals,
};
use super::super::manifest::Manifest;
use super::super::unpack::PackageHeader;
use super::{Store, StoreEntry, StoreError};
use crate::base::units::Bytes;
use crate::files::FileError;

/// Share of a file system that stays free for others, one twentieth, but not less than
/// [`LEAST_RESERVE`] and not more than [`MOST_RESERVE`].
const RESERVE_SHARE: u64 = 20;
const LEAST_RESERVE: Bytes = Bytes::mib(64);
const MOST_RESERVE: Bytes = Bytes::mib(1024);
/// Files of an entry besides those of the manifest: its directory, manifest.json, record.json, and
/// the temporary file from which record.json is renamed.
const FILES_BESIDE: u64 = 4;

/// Use of the store, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUse {
    /// The limits.
    pub quota: Quota,
    /// Number of entries, without bundled ones.
    pub models: usize,
    /// Size of their files.
    pub size: Bytes,
}

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
    "the file system of {} has {} and {} files free, of which {} stay free for others; the package takes {} and {} \
     files: free space there, or move the store with memory.model_cache.directory",
    directory.display(), space.free, FileCount(space.files), space.reserve, needed, files
)]
pub struct NoSpace {
    directory: PathBuf,
    space: FreeSpace,
    needed: Bytes,
    files: u64,
}

/// A number of files that may be unlimited.
struct FileCount(Option<u64>);

impl std::fmt::Display for FileCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(count) => count.fmt(f),
            None => f.write_str("any number of"),
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

    fn fits(&self, needed: Bytes, files: u64) -> bool {
        let usable = self.free.0.saturating_sub(self.reserve.0);
        needed.0 <= usable && self.files.is_none_or(|free| files <= free)
    }
}

fn reserve(whole: Bytes) -> Bytes {
    Bytes(whole.0 / RESERVE_SHARE).clamp(LEAST_RESERVE, MOST_RESERVE)
}

impl Store {
    /// Checks whether the store has space for the package, so that a package that does not fit is
    /// never written. Applies the quota, which is applied again at the installation, and the free
    /// space of the file system.
    ///
    /// Bundled packages have no quota and no reserve.
    ///
    /// # Errors
    /// [`StoreError::Full`] and [`StoreError::NoSpace`], and when the file system cannot be
    /// measured.
    pub fn check_capacity(
        &self,
        announced: &PackageHeader<'_>,
        origin: &Origin,
        quota: Quota,
        keep: impl Fn(&StoreEntry) -> bool,
    ) -> Result<(), StoreError> {
        let key = EntryKey::new(announced.manifest, announced.manifest_digest);
        let index = self.index().clone();
        let is_bundled = origin.is_bundled();
        let is_there =
            |entry: &StoreEntry| !matches!(entry.record.status, InstallStatus::Corrupt(_));
        if !index.get(&key).is_some_and(is_there) {
            let incoming = IncomingPackage { key: &key, manifest: announced.manifest, is_bundled };
            entries_to_remove(&index, incoming, quota, keep)?;
        }
        let mut space = FreeSpace::of(&self.directory)?;
        if is_bundled {
            space.reserve = Bytes(0);
        }
        let sizes = announced.manifest.files.iter().map(|file| file.size);
        self.check_space(space, sizes.chain([announced.manifest_bytes]))
    }

    /// Checks that the file system of the store has space for files of `sizes` and its reserve.
    pub(super) fn check_space(
        &self,
        space: FreeSpace,
        sizes: impl Iterator<Item = u64>,
    ) -> Result<(), StoreError> {
        /// Block size of most file systems. A file takes whole blocks.
        const BLOCK: u64 = 4096;
        // [`Store::check_capacity`] passes the manifest among `sizes`, so it is not counted as a
        // file here.
        let (mut needed, mut files) = (FILES_BESIDE * BLOCK, FILES_BESIDE - 1);
        for size in sizes {
            needed = needed.saturating_add(size.checked_next_multiple_of(BLOCK).unwrap_or(size));
            files += 1;
        }
        let needed = Bytes(needed);
        if space.fits(needed, files) {
            return Ok(());
        }
        Err(NoSpace { directory: self.directory.clone(), space, needed, files }.into())
    }

    /// Returns the use of the store, and its limits.
    pub fn in_use(&self, quota: Quota) -> StoreUse {
        let index = self.index();
        let counted = || index.values().filter(|entry| !entry.record.origin.is_bundled());
        let size = counted().map(|entry| entry.manifest.total_size()).fold(0, u64::saturating_add);
        StoreUse { quota, models: counted().count(), size: Bytes(size) }
    }

    /// Measures the file system of the store.
    ///
    /// # Errors
    /// When it cannot be measured.
    pub fn free_space(&self) -> Result<FreeSpace, StoreError> {
        Ok(FreeSpace::of(&self.directory)?)
    }
}

/// A package that will become an entry.
#[derive(Clone, Copy)]
pub(super) struct IncomingPackage<'a> {
    key: &'a EntryKey,
    manifest: &'a Manifest,
    is_bundled: bool,
}

impl<'a> From<&'a StoreEntry> for IncomingPackage<'a> {
    fn from(entry: &'a StoreEntry) -> Self {
        let is_bundled = entry.record.origin.is_bundled();
        Self { key: &entry.key, manifest: &entry.manifest, is_bundled }
    }
}

/// Returns the entries that are removed when `incoming` becomes available: those that it replaces,
/// and those that are removed to stay within the quota.
pub(super) fn entries_to_remove(
    index: &BTreeMap<EntryKey, StoreEntry>,
    incoming: IncomingPackage<'_>,
    quota: Quota,
    keep: impl Fn(&StoreEntry) -> bool,
) -> Result<Vec<EntryKey>, StoreFull> {
    let others = index.values().filter(|other| other.key != *incoming.key);
    let (replaced, others): (Vec<_>, Vec<_>) = others.partition(|other| replaces(incoming, other));
    let mut leaving = Vec::from_iter(replaced.into_iter().map(|other| other.key.clone()));
    if !incoming.is_bundled {
        let occupants = others.iter().map(|other| RemovalCandidate {
            key: &other.key,
            size: other.manifest.total_size(),
            record: &other.record,
            kept: keep(other),
        });
        let size = incoming.manifest.total_size();
        let victims = select_removals(&Vec::from_iter(occupants), size, quota)?;
        leaving.extend(victims.into_iter().cloned());
    }
    Ok(leaving)
}

/// Returns whether `new` replaces `old`: both are bundled and have the same id and version, but
/// other contents. No limit counts bundled entries, so that they would accumulate. Other entries
/// stay side by side.
fn replaces(new: IncomingPackage<'_>, old: &StoreEntry) -> bool {
    let same =
        (&new.manifest.id, &new.manifest.version) == (&old.manifest.id, &old.manifest.version);
    same && new.is_bundled && old.record.origin.is_bundled()
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
