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
    /// number. An entry that cannot be written does not stop the others, unless the disk refuses
    /// all writes.
    ///
    /// # Errors
    /// The first error. The entries that were not written are written by the next call.
    pub fn write_access_counts(&self) -> Result<usize, StoreError> {
        let (mut written, mut failed) = (0, None);
        for StoreEntry { key, accesses, .. } in &self.entries() {
            if !accesses.take_unwritten() {
                continue;
            }
            let _writing = self.writing();
            // The entry may have been changed or removed since the snapshot was taken.
            let Ok(entry) = self.entry(key) else { continue };
            match self.write_record(&entry) {
                Ok(()) => written += 1,
                Err(error) => {
                    accesses.mark_unwritten();
                    failed = failed.or(Some(error));
                    // Each further write to a damaged disk could take seconds.
                    if !self.disk.is_writable() {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(written), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::disk;
    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::package;
    use crate::package::{CleanupRule, Origin, Quota, UnpackLimits};

    #[test]
    fn entry_that_cannot_be_written_does_not_stop_the_others() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let size = Bytes::mib(8);
        let quota = Quota { max_size: size, max_models: 9, cleanup: CleanupRule::Manual };
        let keys = ["a", "b"].map(|id| {
            let limits = UnpackLimits::for_size(size);
            let staged = store.stage(&package(id, "1")[..], &limits).unwrap();
            store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key
        });
        let [broken, whole] = &keys;
        keys.iter().for_each(|key| store.count_access(key));
        fs::remove_dir_all(store.path(broken)).unwrap();
        store.write_access_counts().unwrap_err();
        let written = disk::read_entry(&store.path(whole)).unwrap();
        assert_eq!(written.record.access_count, 1);
        // The broken entry is tried again, and the other one is written already.
        store.write_access_counts().unwrap_err();
        store.remove(broken).unwrap();
        assert_eq!(store.write_access_counts().unwrap(), 0);
    }
}
