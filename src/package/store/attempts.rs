//! Attempts: how often the self-test of an entry has begun without an end.

use super::super::entry::Key;
use super::super::record::Status;
use super::{Store, StoreError};

impl Store {
    /// Counts the beginning of a self-test, on the disk before the test begins: an entry whose test ends the daemon is
    /// known after the next start. [`Store::make_available`], [`Store::remove`] or [`Store::cancel_test`] follows.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; the test must not begin then.
    pub fn begin_test(&self, key: &Key) -> Result<(), StoreError> {
        self.count_test(key, |attempts| attempts.saturating_add(1))
    }

    /// Takes back what [`Store::begin_test`] counted, for a self-test that was stopped on purpose.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn cancel_test(&self, key: &Key) -> Result<(), StoreError> {
        self.count_test(key, |attempts| attempts.saturating_sub(1))
    }

    fn count_test(&self, key: &Key, count: impl FnOnce(u32) -> u32) -> Result<(), StoreError> {
        let _writing = self.writing();
        let mut entry = self.entry(key)?;
        let attempts = count(entry.record.attempts);
        entry.record.attempts = attempts;
        self.write_record(&entry)?;
        if let Some(entry) = self.index().get_mut(key) {
            entry.record.attempts = attempts;
        }
        Ok(())
    }

    /// Marks an entry as [`Status::Quarantined`] because of `reason`.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails; in memory it is marked then, too.
    pub fn quarantine(&self, key: &Key, reason: String) -> Result<(), StoreError> {
        self.update(key, |record| record.status = Status::Quarantined(reason))
    }
}
