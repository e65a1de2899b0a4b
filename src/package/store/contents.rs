//! Contents: what the files of an entry hold, and whether they are still what was installed.
//!
//! Owns the comparison of an entry with its manifest, and the mark on one that differs.
//!
//! Invariant: nothing is given before its digest was compared, through the handle that it came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::entry::{Entry, Key};
use super::super::manifest::{CONFIG, Manifest, TOKENIZER, WEIGHTS};
use super::super::member::{self, MemberError};
use super::super::pack::Contents;
use super::super::record::{Status, Timestamp};
use super::super::weights::Weights;
use super::{Store, StoreError};
use crate::errors::chain;

impl Store {
    /// The manifest and contents of an entry: every file is hashed, and only bytes whose digest holds are returned.
    ///
    /// The weights are mapped and hashed in the mapping, which the contents keep; the other files are read into
    /// memory.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a file is missing or not what it was; the entry is marked so.
    pub fn read(&self, key: &Key) -> Result<(Arc<Manifest>, Contents), StoreError> {
        let (manifest, contents) = self.read_without_weights(key)?;
        let Contents { config, tokenizer, weights: (), dense } = contents;
        let weights = self.read_weights(key)?;
        Ok((manifest, Contents { config, tokenizer, weights, dense }))
    }

    /// The weights of [`read`](Self::read) alone.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_weights(&self, key: &Key) -> Result<Weights, StoreError> {
        let Entry { manifest, record, .. } = self.entry(key)?;
        let mut weights = Weights::from(Vec::new());
        for member in manifest.files.iter().filter(|member| member.path.as_str() == WEIGHTS) {
            let mapped = member::map(&self.path(key), member, &record.verity);
            let mapping = self.intact(key, WEIGHTS, mapped)?;
            weights = Weights::Mapped(Arc::new(mapping));
        }
        Ok(weights)
    }

    /// [`read`](Self::read) without the weights, which are by far the largest file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_without_weights(
        &self,
        key: &Key,
    ) -> Result<(Arc<Manifest>, Contents<()>), StoreError> {
        let Entry { manifest, record, .. } = self.entry(key)?;
        let mut files = BTreeMap::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() != WEIGHTS) {
            // Exactly as large as it will be: growing would copy, and hold twice as much.
            let mut content = Vec::with_capacity(usize::try_from(member.size).unwrap_or(0));
            let name = member.path.as_str();
            let copied = member::copy(&self.path(key), member, &record.verity, &mut content);
            self.intact(key, name, copied)?;
            files.insert(name, content);
        }
        let contents = Contents::from_members(
            (),
            |name| files.remove(name).unwrap_or_default(),
            manifest.dense.len(),
        );
        Ok((manifest, contents))
    }

    /// The manifest of an entry and its `config.json`, whose digest holds.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file is missing or not what it was; the entry is marked so.
    pub fn config(&self, key: &Key) -> Result<(Arc<Manifest>, Vec<u8>), StoreError> {
        Ok((self.entry(key)?.manifest, self.member(key, CONFIG)?))
    }

    /// The `tokenizer.json` of an entry, whose digest holds.
    ///
    /// # Errors
    /// Those of [`config`](Self::config).
    pub fn tokenizer(&self, key: &Key) -> Result<Vec<u8>, StoreError> {
        self.member(key, TOKENIZER)
    }

    fn member(&self, key: &Key, name: &str) -> Result<Vec<u8>, StoreError> {
        let Entry { manifest, record, .. } = self.entry(key)?;
        let mut content = Vec::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() == name) {
            content.reserve_exact(usize::try_from(member.size).unwrap_or(0));
            let copied = member::copy(&self.path(key), member, &record.verity, &mut content);
            self.intact(key, name, copied)?;
        }
        Ok(content)
    }

    /// Hashes every file of an entry; calls `progress` with the bytes hashed so far. Returns whether it was corrupt or could
    /// not be read before.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a file is missing or not what it was; the entry is marked so.
    pub fn verify(&self, key: &Key, progress: impl FnMut(u64)) -> Result<bool, StoreError> {
        let was_unread = self.medium.is_unread(key);
        let mut counter = member::Counter { bytes: 0, progress };
        for member in &self.entry(key)?.manifest.files {
            // Every byte, whoever checks it at each load.
            let copied = member::copy(&self.path(key), member, &BTreeMap::new(), &mut counter);
            self.intact(key, member.path.as_str(), copied)?;
        }
        // It was installed before the file system, or this version, had it.
        let entry = self.entry(key)?;
        let verity = match entry.record.verity.is_empty() {
            true => self.protect(&self.path(key), &entry)?,
            false => entry.record.verity,
        };
        let mut was_corrupt = false;
        let written = self.update(key, |record| {
            record.last_validated_at = Timestamp::now();
            record.verity = verity;
            was_corrupt = matches!(record.status, Status::Corrupt(_));
            if was_corrupt {
                record.status = Status::Available;
            }
        });
        match written {
            // The files are right, whether that can be written down or not.
            Err(StoreError::File(error)) if error.disk_failed() => {}
            written => written?,
        }
        Ok(was_corrupt || was_unread)
    }

    /// What was `found` of the file `name`; marks the entry corrupt when it is not what was installed. The one place where
    /// that is found out: it calls for attention.
    pub(super) fn intact<T>(
        &self,
        key: &Key,
        name: &str,
        found: Result<T, MemberError>,
    ) -> Result<T, StoreError> {
        let mut reason = match found {
            Ok(found) => {
                self.medium.read(key, name);
                return Ok(found);
            }
            // A disk or a permission that can be put right; nothing is known of the bytes.
            Err(MemberError::Unread(error)) => {
                self.medium.unread(key, name, &error);
                return Err(error.into());
            }
            Err(MemberError::Differs(reason)) => reason,
        };
        // Whatever else is wrong with the disk, the caller hears first that these bytes are not to be used. An entry that
        // has not passed its self-test keeps its status: a corrupt one whose files are right again becomes available.
        let is_tested = self.entry(key).is_ok_and(|entry| entry.record.status.is_tested());
        let status = Status::Corrupt(reason.clone());
        if is_tested && let Err(error) = self.update(key, |record| record.status = status) {
            reason = format!("{reason}; that could not be recorded: {}", chain(&error));
        }
        self.medium.attract();
        Err(StoreError::Corrupt { key: key.clone(), reason })
    }
}
