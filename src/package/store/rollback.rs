//! Rollback: makes an id resolve to another of its versions than the highest one.
//!
//! A rollback is a mark in the record of an entry. The newest mark applies, until a version above
//! all others is installed after it. One rollback writes one record, so a crash at any moment
//! leaves the old choice or the new one. A rollback to a version that waits for approval approves
//! it.

use super::super::entry::{EntryKey, StoreEntry, canonical_name};
use super::super::install_record::Timestamp;
use super::super::manifest::ModelId;
use super::{Store, StoreError};

/// The version that an id should resolve to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollbackTarget {
    /// The version before the current one.
    Previous,
    /// This version, or the one with this revision.
    To(String),
    /// The highest approved version again.
    Clear,
}

/// The entries to which an id resolves before and after a rollback.
#[derive(Debug)]
pub struct RollbackResult {
    /// The entry before the rollback.
    pub from: StoreEntry,
    /// The entry after it; the same one when the rollback had nothing to clear.
    pub to: StoreEntry,
}

/// Errors of a rollback. The id then resolves as before.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is no such model.
    #[error("\"{0}\" is not installed")]
    Unknown(String),
    /// The name already includes a version.
    #[error("\"{0}\" names a version; give only the id, and give the target version separately")]
    NamesVersion(String),
    /// The current version is the first one.
    #[error(
        "the store has no version before {0} that can be used; install an older version, or give the target version"
    )]
    NoPrevious(EntryKey),
    /// The version is not installed, or cannot be used.
    #[error(
        "the store has no usable version or revision \"{version}\" of \"{id}\"; it has: {}",
        known.join(", ")
    )]
    NoVersion {
        /// The id.
        id: String,
        /// The requested version.
        version: String,
        /// The versions that can be used.
        known: Vec<String>,
    },
    /// The record was not written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Makes `id` resolve to another of its versions until a version above all others is installed.
    /// The choice survives a restart.
    ///
    /// # Errors
    /// When there is no such model or version, or the disk fails; the id then resolves as before.
    pub fn roll_back(
        &self,
        id: &str,
        rollback: &RollbackTarget,
    ) -> Result<RollbackResult, RollbackError> {
        let id = &*canonical_name(id);
        if id.contains('@') {
            return Err(RollbackError::NamesVersion(id.to_owned()));
        }
        // Without the lock, the version that is selected here could be removed before it is marked.
        let _writing = self.writing();
        let entries = self.entries().filtered(|entry| entry.is_named(id));
        let from = entries.resolve(id).ok_or_else(|| RollbackError::Unknown(id.to_owned()))?;
        let from = from.clone();
        let usable = |entry: &&StoreEntry| entry.is_usable();
        match rollback {
            RollbackTarget::Previous => {
                let to = entries.previous_version(id);
                let to = to.ok_or_else(|| RollbackError::NoPrevious(from.key.clone()))?;
                self.mark(&to.key, Some(next_timestamp(entries.iter(), &from.manifest.id)))?;
            }
            RollbackTarget::To(version) => {
                let to = entries.resolve(&format!("{id}@{version}")).filter(usable);
                let to = to.ok_or_else(|| RollbackError::NoVersion {
                    id: id.to_owned(),
                    version: version.clone(),
                    known: entries.iter().filter(usable).map(|e| e.key.to_string()).collect(),
                })?;
                self.mark(&to.key, Some(next_timestamp(entries.iter(), &from.manifest.id)))?;
            }
            RollbackTarget::Clear => {
                // Clear the newest mark last, so that an older one never takes effect.
                let marked = entries.iter().filter(|entry| entry.record.chosen_at.is_some());
                let mut marked = Vec::from_iter(marked);
                marked.sort_by_key(|entry| entry.record.chosen_at);
                for entry in marked {
                    self.mark(&entry.key, None)?;
                }
            }
        }
        let entries = self.entries();
        let to = entries.resolve(id).ok_or_else(|| RollbackError::Unknown(id.to_owned()))?;
        Ok(RollbackResult { from, to: to.clone() })
    }

    /// Sets or clears the mark of an entry. A mark approves the entry. The caller holds `writing`.
    pub(super) fn mark(
        &self,
        key: &EntryKey,
        chosen_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let mut entry = self.entry(key)?;
        entry.record.chosen_at = chosen_at;
        entry.record.awaits_approval &= chosen_at.is_none();
        let awaits_approval = entry.record.awaits_approval;
        // Write the disk first: a mark that exists only in memory would be lost at the next start.
        self.write_record(&entry)?;
        self.index().update(key, |entry| {
            entry.record.chosen_at = chosen_at;
            entry.record.awaits_approval = awaits_approval;
        });
        Ok(())
    }
}

/// Returns the present second, or one second after the latest event of `id` if that is later. So of
/// two events of one id the later one has the later time, even within one second or after the clock
/// was set back.
pub(super) fn next_timestamp<'a>(
    entries: impl Iterator<Item = &'a StoreEntry>,
    id: &ModelId,
) -> Timestamp {
    let of_id = entries.filter(|entry| entry.manifest.id == *id);
    let times = of_id.flat_map(|entry| [Some(entry.record.installed_at), entry.record.chosen_at]);
    let next = times.flatten().max().map(|last| Timestamp(last.0.saturating_add(1)));
    Timestamp::now().max(next.unwrap_or(Timestamp(0)))
}
