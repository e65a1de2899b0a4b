//! Rollback: which of several versions an id means when it is not to be the highest.
//!
//! Owns the marks in the records. The mark that was set last holds, until a version above all others is installed after
//! it; so one record is written for a rollback, and a crash at any moment leaves the old choice or the new.

use super::super::entry::{Entry, Key, choose, earlier};
use super::super::manifest::ModelId;
use super::super::record::Timestamp;
use super::{Store, StoreError};

/// What an id is to mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// The version before the one that it means.
    Earlier,
    /// This version, or the one with this revision.
    To(String),
    /// The highest version again.
    Clear,
}

/// What an id meant and means now.
#[derive(Debug)]
pub struct RolledBack {
    /// Before.
    pub from: Entry,
    /// Now; the same when there was nothing to clear.
    pub to: Entry,
}

/// Why an id means what it meant.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// No such model.
    #[error("\"{0}\" is not installed")]
    Unknown(String),
    /// The name says already which version is meant.
    #[error(
        "\"{0}\" names a version; give the id alone, and the version that it is to mean with --to"
    )]
    NamesVersion(String),
    /// It is the first.
    #[error(
        "there is no version before {0} in the store that could be used; install one, or name another with --to"
    )]
    NoEarlier(Key),
    /// The version is not there, or cannot be used.
    #[error(
        "\"{id}\" has no version or revision \"{version}\" in the store that can be used; it has: {}", known.join(", ")
    )]
    NoVersion {
        /// The id.
        id: String,
        /// What was asked for.
        version: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The record was not written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Makes `id` mean another of its versions, also after opening again, until a version above all others is installed.
    ///
    /// # Errors
    /// When there is no such model or version, or the disk fails; then it means what it meant.
    pub fn roll_back(&self, id: &str, rollback: &Rollback) -> Result<RolledBack, RollbackError> {
        if id.contains('@') {
            return Err(RollbackError::NamesVersion(id.to_owned()));
        }
        let mut entries = self.entries();
        entries.retain(|entry| entry.is_named(id));
        let from = choose(&entries, id).ok_or_else(|| RollbackError::Unknown(id.to_owned()))?;
        let from = from.clone();
        let usable = |entry: &&Entry| entry.is_usable();
        match rollback {
            Rollback::Earlier => {
                let to = earlier(&entries, id);
                let to = to.ok_or_else(|| RollbackError::NoEarlier(from.key.clone()))?;
                self.mark(&to.key, Some(turn(entries.iter(), &from.manifest.id)))?;
            }
            Rollback::To(version) => {
                let to = choose(&entries, &format!("{id}@{version}")).filter(usable);
                let to = to.ok_or_else(|| RollbackError::NoVersion {
                    id: id.to_owned(),
                    version: version.clone(),
                    known: entries.iter().filter(usable).map(|e| e.key.to_string()).collect(),
                })?;
                self.mark(&to.key, Some(turn(entries.iter(), &from.manifest.id)))?;
            }
            Rollback::Clear => {
                // The mark that holds goes last: no older one comes into force in between.
                entries.retain(|entry| entry.record.chosen_at.is_some());
                entries.sort_by_key(|entry| entry.record.chosen_at);
                for entry in &entries {
                    self.mark(&entry.key, None)?;
                }
            }
        }
        let entries = self.entries();
        let to = choose(&entries, id).ok_or_else(|| RollbackError::Unknown(id.to_owned()))?;
        Ok(RolledBack { from, to: to.clone() })
    }

    fn mark(&self, key: &Key, chosen_at: Option<Timestamp>) -> Result<(), StoreError> {
        let _writing = self.writing();
        let mut entry = self.entry(key)?;
        entry.record.chosen_at = chosen_at;
        // First the disk: what is not there must not hold until the next start only.
        self.write_record(&entry)?;
        if let Some(entry) = self.index().get_mut(key) {
            entry.record.chosen_at = chosen_at;
        }
        Ok(())
    }
}

/// The present second, or a later one, so that of what happens to one id within a second, or before and after a clock
/// was set back, the later has the later time.
pub(super) fn turn<'a>(entries: impl Iterator<Item = &'a Entry>, id: &ModelId) -> Timestamp {
    let of_id = entries.filter(|entry| entry.manifest.id == *id);
    let times = of_id.flat_map(|entry| [Some(entry.record.installed_at), entry.record.chosen_at]);
    let next = times.flatten().max().map(|last| Timestamp(last.0.saturating_add(1)));
    Timestamp::now().max(next.unwrap_or(Timestamp(0)))
}
