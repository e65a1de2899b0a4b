//! Counts the uses of entries in memory, and writes the counts from time to time.

use super::super::entry::EntryKey;
use super::super::install_record::Timestamp;
use super::{Store, StoreError};

impl Store {
    /// Counts one use of an entry in memory; [`Store::flush`] writes it.
    pub fn count_access(&self, key: &EntryKey) {
        if let Some(entry) = self.index().get_mut(key) {
            entry.record.access_count += 1;
            entry.record.last_access_at = Some(Timestamp::now());
        }
    }

    /// Writes the access counts.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn flush(&self, keys: impl IntoIterator<Item = EntryKey>) -> Result<(), StoreError> {
        for key in keys {
            let _writing = self.writing();
            match self.entry(&key) {
                Ok(entry) => self.write_record(&entry)?,
                // The entry was removed since.
                Err(_unknown) => {}
            }
        }
        Ok(())
    }
}
