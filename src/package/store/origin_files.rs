//! Records from which files of the drop directory an entry comes.
//!
//! The caller decides whether an entry is removed together with its last file.

use super::super::entry::EntryKey;
use super::super::install_record::Origin;
use super::super::listing::FileFingerprint;
use super::{Store, StoreError};

impl Store {
    /// Makes an entry independent of the file that it came from: it stays until an administrator
    /// removes it.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn mark_installed(&self, key: &EntryKey) -> Result<(), StoreError> {
        self.update(key, |record| record.origin = Origin::Installed)
    }

    /// Removes `file` of the drop directory from the origin of an entry. Returns `true` if the
    /// entry may stay, because it has another file or an administrator installed it. Changes
    /// nothing if it returns `false`; the caller decides then.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn detach_file(&self, key: &EntryKey, file: &str) -> Result<bool, StoreError> {
        let _writing = self.writing();
        let Origin::Dropped { mut files } = self.entry(key)?.record.origin else { return Ok(true) };
        if files.keys().all(|name| name == file) {
            return Ok(false);
        }
        if files.remove(file).is_some() {
            self.change(key, |record| record.origin = Origin::Dropped { files })?;
        }
        Ok(true)
    }

    /// Records that `file` of the drop directory, from which an entry comes, was seen with
    /// `fingerprint`.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; the fingerprint is then recorded in memory
    /// only.
    pub fn record_fingerprint(
        &self,
        key: &EntryKey,
        file: &str,
        fingerprint: FileFingerprint,
    ) -> Result<(), StoreError> {
        self.update(key, |record| {
            if let Origin::Dropped { files } = &mut record.origin
                && let Some(known) = files.get_mut(file)
            {
                *known = fingerprint;
            }
        })
    }
}
