//! Checks whether the store and its file system have space for a package, before a byte of it is
//! written.
//!
//! This module selects the entries that are removed for another one; the store asks for them here
//! and again when the package is installed.

use super::super::entries::Entries;
use super::super::entry::EntryKey;
use super::super::install_record::{
    InstallStatus, Origin, Quota, RemovalCandidate, StoreFull, select_removals,
};
use super::super::manifest::Manifest;
use super::super::unpack::PackageHeader;
use super::free_space::{FreeSpace, NoSpace};
use super::{Store, StoreEntry, StoreError};
use crate::base::units::Bytes;

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
        let index = self.entries();
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
        let entries = self.entries();
        let counted = || entries.iter().filter(|entry| !entry.record.origin.is_bundled());
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
    index: &Entries,
    incoming: IncomingPackage<'_>,
    quota: Quota,
    keep: impl Fn(&StoreEntry) -> bool,
) -> Result<Vec<EntryKey>, StoreFull> {
    let others = index.iter().filter(|other| other.key != *incoming.key);
    let (replaced, others): (Vec<_>, Vec<_>) = others.partition(|other| replaces(incoming, other));
    let mut leaving = Vec::from_iter(replaced.into_iter().map(|other| other.key.clone()));
    if !incoming.is_bundled {
        let size = incoming.manifest.total_size();
        let victims = with_candidates(&others, &keep, |candidates| {
            let victims = select_removals(candidates, size, quota)?;
            Ok(victims.into_iter().cloned().collect::<Vec<_>>())
        });
        leaving.extend(victims?);
    }
    Ok(leaving)
}

/// Calls `select` with `entries` as candidates for a removal. `keep` returns `true` for entries that
/// must not be removed.
pub(super) fn with_candidates<T>(
    entries: &[&StoreEntry],
    keep: &impl Fn(&StoreEntry) -> bool,
    select: impl FnOnce(&[RemovalCandidate<'_, &EntryKey>]) -> T,
) -> T {
    // The oldest access decides, so take the records with the current accesses.
    let records = Vec::from_iter(entries.iter().map(|entry| entry.current_record()));
    let candidates = entries.iter().zip(&records).map(|(entry, record)| RemovalCandidate {
        key: &entry.key,
        size: entry.manifest.total_size(),
        record,
        kept: keep(entry),
    });
    select(&Vec::from_iter(candidates))
}

/// Returns whether `new` replaces `old`: both are bundled and have the same id and version, but
/// other contents. No limit counts bundled entries, so that they would accumulate. Other entries
/// stay side by side.
fn replaces(new: IncomingPackage<'_>, old: &StoreEntry) -> bool {
    let same =
        (&new.manifest.id, &new.manifest.version) == (&old.manifest.id, &old.manifest.version);
    same && new.is_bundled && old.record.origin.is_bundled()
}
