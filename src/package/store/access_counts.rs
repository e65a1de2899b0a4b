//! Counts the accesses of entries in memory, and writes the counts to the disk from time to time.

use super::super::entry::{EntryKey, StoreEntry};
use super::super::install_record::Timestamp;
use super::{Store, StoreError};

impl Store {
    /// Counts one access of an entry in memory. The snapshots of the store show it at once;
    /// [`Store::write_access_counts`] writes it.
    pub fn count_access(&self, key: &EntryKey) {
        if let Some(entry) = self.index().get(key) {
            entry.accesses.record_access(Timestamp::now());
        }
    }

    /// Writes the records of the entries that were accessed since the last call. Returns their
    /// number.
    ///
    /// # Errors
    /// When the disk fails. The entries that were not written are written by the next call.
    pub fn write_access_counts(&self) -> Result<usize, StoreError> {
        let mut written = 0;
        for StoreEntry { key, accesses, .. } in &self.entries() {
            if !accesses.take_unwritten() {
                continue;
            }
            let _writing = self.writing();
            // The entry may have been changed or removed since the snapshot was taken.
            let Ok(entry) = self.entry(key) else { continue };
            if let Err(error) = self.write_record(&entry) {
                accesses.mark_unwritten();
                return Err(error);
            }
            written += 1;
        }
        Ok(written)
    }
}
