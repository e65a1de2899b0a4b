//! Which files of the drop directory give an entry.
//!
//! Owns the changes of an entry's [`Origin`]. Whether an entry leaves with its last file is decided by the caller.

use super::super::drop::Fingerprint;
use super::super::entry::Key;
use super::super::record::Origin;
use super::{Store, StoreError};

impl Store {
    /// Makes an entry independent of the file that it came from: it stays until an administrator removes it.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn adopt(&self, key: &Key) -> Result<(), StoreError> {
        self.update(key, |record| record.origin = Origin::Installed)
    }

    /// Says that `file` of the drop directory does not give an entry any more. Returns whether the entry may stay:
    /// when another file gives it, or an administrator did. If not, nothing changes; the caller decides.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn let_go(&self, key: &Key, file: &str) -> Result<bool, StoreError> {
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

    /// Remembers that `file` of the drop directory, which gave an entry, was seen with `fingerprint`.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; it is remembered in memory then, too.
    pub fn saw(&self, key: &Key, file: &str, fingerprint: Fingerprint) -> Result<(), StoreError> {
        self.update(key, |record| {
            if let Origin::Dropped { files } = &mut record.origin
                && let Some(known) = files.get_mut(file)
            {
                *known = fingerprint;
            }
        })
    }
}
