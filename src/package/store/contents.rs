//! Reads the files of an entry and compares them with its manifest.
//!
//! An entry whose files differ is marked as corrupt here.
//!
//! Invariant: bytes are returned only after their digest was compared, through the handle that they
//! were read from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::entry::{EntryKey, StoreEntry};
use super::super::install_record::{InstallStatus, Timestamp};
use super::super::manifest::{CONFIG, Manifest, TOKENIZER, WEIGHTS};
use super::super::member::{self, MemberError};
use super::super::pack::PackageContents;
use super::super::weights::Weights;
use super::{Store, StoreError};
use crate::base::errors::chain;

impl Store {
    /// Reads the manifest and contents of an entry. Hashes every file, and returns only bytes with
    /// the right digest.
    ///
    /// The weights are mapped and hashed in the mapping, which the contents keep. The other files
    /// are read into memory.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a file is missing or was changed since it was installed; the
    /// entry is marked so.
    pub fn read(&self, key: &EntryKey) -> Result<(Arc<Manifest>, PackageContents), StoreError> {
        let (manifest, contents) = self.read_without_weights(key)?;
        let PackageContents { config, tokenizer, weights: (), dense } = contents;
        let weights = self.read_weights(key)?;
        Ok((manifest, PackageContents { config, tokenizer, weights, dense }))
    }

    /// Reads the weights alone, as [`read`](Self::read) does.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_weights(&self, key: &EntryKey) -> Result<Weights, StoreError> {
        let StoreEntry { manifest, record, .. } = self.entry(key)?;
        let mut weights = Weights::from(Vec::new());
        for member in manifest.files.iter().filter(|member| member.path.as_str() == WEIGHTS) {
            let mapped = member::map(&self.path(key), member, &record.verity);
            let mapping = self.intact(key, WEIGHTS, mapped)?;
            weights = Weights::Mapped(Arc::new(mapping));
        }
        Ok(weights)
    }

    /// Reads an entry as [`read`](Self::read) does, but without the weights, which are by far the
    /// largest file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_without_weights(
        &self,
        key: &EntryKey,
    ) -> Result<(Arc<Manifest>, PackageContents<()>), StoreError> {
        let StoreEntry { manifest, record, .. } = self.entry(key)?;
        let mut files = BTreeMap::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() != WEIGHTS) {
            // Allocate the exact size: a vector that grows copies its bytes and holds both copies
            // meanwhile.
            let mut content = Vec::with_capacity(usize::try_from(member.size).unwrap_or(0));
            let name = member.path.as_str();
            let copied = member::copy(&self.path(key), member, &record.verity, &mut content);
            self.intact(key, name, copied)?;
            files.insert(name, content);
        }
        let contents = PackageContents::from_members(
            (),
            |name| files.remove(name).unwrap_or_default(),
            manifest.dense.len(),
        );
        Ok((manifest, contents))
    }

    /// Reads the manifest of an entry and its `config.json`, whose digest is compared.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file is missing or was changed since it was installed; the
    /// entry is marked so.
    pub fn config(&self, key: &EntryKey) -> Result<(Arc<Manifest>, Vec<u8>), StoreError> {
        Ok((self.entry(key)?.manifest, self.member(key, CONFIG)?))
    }

    /// Reads the `tokenizer.json` of an entry, whose digest is compared.
    ///
    /// # Errors
    /// Those of [`config`](Self::config).
    pub fn tokenizer(&self, key: &EntryKey) -> Result<Vec<u8>, StoreError> {
        self.member(key, TOKENIZER)
    }

    fn member(&self, key: &EntryKey, name: &str) -> Result<Vec<u8>, StoreError> {
        let StoreEntry { manifest, record, .. } = self.entry(key)?;
        let mut content = Vec::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() == name) {
            content.reserve_exact(usize::try_from(member.size).unwrap_or(0));
            let copied = member::copy(&self.path(key), member, &record.verity, &mut content);
            self.intact(key, name, copied)?;
        }
        Ok(content)
    }

    /// Hashes every file of an entry and calls `progress` with the number of bytes hashed so far.
    /// Returns `true` if the entry was corrupt or unreadable before.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a file is missing or was changed since it was installed; the
    /// entry is marked so.
    pub fn verify(&self, key: &EntryKey, progress: impl FnMut(u64)) -> Result<bool, StoreError> {
        let was_unread = self.disk.is_unread(key);
        let mut counter = member::CountingSink { bytes: 0, progress };
        for member in &self.entry(key)?.manifest.files {
            // Pass no fs-verity digests: hash every byte here, even where the kernel checks the
            // file at each read.
            let copied = member::copy(&self.path(key), member, &BTreeMap::new(), &mut counter);
            self.intact(key, member.path.as_str(), copied)?;
        }
        // The entry has no fs-verity digests if it was installed before the file system or Caxton
        // supported them.
        let entry = self.entry(key)?;
        let verity = match entry.record.verity.is_empty() {
            true => self.protect(&self.path(key), &entry)?,
            false => entry.record.verity,
        };
        let mut was_corrupt = false;
        let written = self.update(key, |record| {
            record.last_validated_at = Timestamp::now();
            record.verity = verity;
            was_corrupt = matches!(record.status, InstallStatus::Corrupt(_));
            if was_corrupt {
                record.status = InstallStatus::Available;
            }
        });
        match written {
            // The files are right, even if the record cannot be written.
            Err(StoreError::File(error)) if error.disk_failed() => {}
            written => written?,
        }
        if was_corrupt {
            self.disk.notify();
        }
        Ok(was_corrupt || was_unread)
    }

    /// Returns the value in `found` for the file `name`. Marks the entry corrupt when the file
    /// differs from the installed one. This is the only place that detects corruption, so it calls
    /// `attract`.
    pub(super) fn intact<T>(
        &self,
        key: &EntryKey,
        name: &str,
        found: Result<T, MemberError>,
    ) -> Result<T, StoreError> {
        let mut reason = match found {
            Ok(found) => {
                self.disk.record_read(key, name);
                return Ok(found);
            }
            // The disk or a permission failed and can be repaired; the bytes themselves are
            // unknown.
            Err(MemberError::Unread(error)) => {
                self.disk.record_read_failure(key, name, &error);
                return Err(error.into());
            }
            Err(MemberError::Differs(reason)) => reason,
        };
        // Report the corruption first, even if the disk fails too: the caller must not use these
        // bytes. An entry that has not passed its self-test keeps its status, because a corrupt
        // entry becomes available when its files are right again.
        let is_tested = self.entry(key).is_ok_and(|entry| entry.record.status.is_tested());
        let status = InstallStatus::Corrupt(reason.clone());
        if is_tested && let Err(error) = self.update(key, |record| record.status = status) {
            reason = format!("{reason}; the store could not record this: {}", chain(&error));
        }
        self.disk.notify();
        Err(StoreError::Corrupt { key: key.clone(), reason })
    }
}
