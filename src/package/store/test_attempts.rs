//! Counts the self-tests of an entry that began and have not ended.

use super::super::entry::EntryKey;
use super::super::install_record::InstallStatus;
use super::{Store, StoreError};

impl Store {
    /// Counts the start of a self-test on the disk, before the test begins. After a crash caused by
    /// the test, the next start finds the count. The caller calls [`Store::activate`],
    /// [`Store::remove`] or [`Store::cancel_test`] afterwards.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; the test must not begin then.
    pub fn begin_test(&self, key: &EntryKey) -> Result<(), StoreError> {
        self.count_test(key, |attempts| attempts.saturating_add(1))
    }

    /// Takes back one count of [`Store::begin_test`], for a self-test that was stopped on purpose.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn cancel_test(&self, key: &EntryKey) -> Result<(), StoreError> {
        self.count_test(key, |attempts| attempts.saturating_sub(1))
    }

    fn count_test(&self, key: &EntryKey, count: impl FnOnce(u32) -> u32) -> Result<(), StoreError> {
        let _writing = self.writing();
        let mut entry = self.entry(key)?;
        let attempts = count(entry.record.attempts);
        entry.record.attempts = attempts;
        // Write the disk first: a count that exists only in memory would not survive the crash that
        // it is for.
        self.write_record(&entry)?;
        self.index().update(key, |entry| entry.record.attempts = attempts);
        Ok(())
    }

    /// Marks an entry as [`InstallStatus::Quarantined`] because of `reason`.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; the entry is then marked in memory only.
    pub fn quarantine(&self, key: &EntryKey, reason: String) -> Result<(), StoreError> {
        self.update(key, |record| record.status = InstallStatus::Quarantined(reason))
    }
}
