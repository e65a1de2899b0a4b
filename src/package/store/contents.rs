//! Contents: what the files of an entry hold, and whether they are still what was installed.
//!
//! Owns the comparison of an entry with its manifest, and the mark on one that differs.
//!
//! Invariant: nothing is given before its digest was compared, through the handle that it came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::entry::Key;
use super::super::manifest::{CONFIG, Manifest, WEIGHTS};
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
        let manifest = self.entry(key)?.manifest;
        let mut weights = Weights::from(Vec::new());
        for member in manifest.files.iter().filter(|member| member.path.as_str() == WEIGHTS) {
            let mapping = self.intact(key, member::map(&self.path(key), member))?;
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
        let manifest = self.entry(key)?.manifest;
        let mut files = BTreeMap::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() != WEIGHTS) {
            // Exactly as large as it will be: growing would copy, and hold twice as much.
            let mut content = Vec::with_capacity(usize::try_from(member.size).unwrap_or(0));
            self.intact(key, member::copy(&self.path(key), member, &mut content))?;
            files.insert(member.path.as_str(), content);
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
        let manifest = self.entry(key)?.manifest;
        let mut config = Vec::new();
        for member in manifest.files.iter().filter(|member| member.path.as_str() == CONFIG) {
            self.intact(key, member::copy(&self.path(key), member, &mut config))?;
        }
        Ok((manifest, config))
    }

    /// Hashes every file of an entry; calls `progress` with the bytes hashed so far. Returns whether it was marked
    /// corrupt before, which it is no more.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a file is missing or not what it was; the entry is marked so.
    pub fn verify(&self, key: &Key, progress: impl FnMut(u64)) -> Result<bool, StoreError> {
        let mut counter = member::Counter { bytes: 0, progress };
        for member in &self.entry(key)?.manifest.files {
            self.intact(key, member::copy(&self.path(key), member, &mut counter))?;
        }
        let mut was_corrupt = false;
        self.update(key, |record| {
            record.last_validated_at = Timestamp::now();
            was_corrupt = matches!(record.status, Status::Corrupt(_));
            if was_corrupt {
                record.status = Status::Available;
            }
        })?;
        Ok(was_corrupt)
    }

    /// What was `found` of a member; marks the entry corrupt when it is not what was installed.
    fn intact<T>(&self, key: &Key, found: Result<T, MemberError>) -> Result<T, StoreError> {
        let mut reason = match found {
            Ok(found) => return Ok(found),
            // A disk or a permission that can be put right; nothing is known of the bytes.
            Err(MemberError::Unread(error)) => return Err(error.into()),
            Err(MemberError::Differs(reason)) => reason,
        };
        let status = Status::Corrupt(reason.clone());
        // Whatever else is wrong with the disk, the caller hears first that these bytes are not to be used.
        if let Err(error) = self.update(key, |record| record.status = status) {
            reason = format!("{reason}; that could not be recorded: {}", chain(&error));
        }
        Err(StoreError::Corrupt { key: key.clone(), reason })
    }
}
