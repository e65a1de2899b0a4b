//! Approval of updates: an update that waits is installed and tested, but its id keeps its version.
//!
//! An update waits because of a mark in the record of its entry. A request can name it by its
//! version. The mark stays until an administrator approves the update, or selects it with a
//! rollback: a change of the configuration never changes the version that an id means.

use super::super::entry::{EntryKey, StoreEntry};
use super::rollback::next_timestamp;
use super::{Store, StoreError};

/// Result of an approval.
#[derive(Debug)]
pub struct Approval {
    /// The entry to which the id resolved before; `None` if no version was approved.
    pub from: Option<StoreEntry>,
    /// The approved entry.
    pub approved: StoreEntry,
    /// The entry to which the id resolves now. It is another one than the approved entry if that is
    /// below the version that the id means.
    pub to: StoreEntry,
}

/// Errors of an approval. The id then resolves as before.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// There is no such model.
    #[error("\"{0}\" is not installed")]
    Unknown(String),
    /// No usable entry of this name waits.
    #[error("no usable version of \"{0}\" waits for approval")]
    NotWaiting(String),
    /// The record was not written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Decides whether an entry waits for approval when it becomes available. It waits if
    /// `is_manual` and if its id means a lower version now. Returns whether it waits.
    ///
    /// A bundled entry never waits: the update of the appliance that contains it was approved, and
    /// may remove the version before.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn hold_update(&self, key: &EntryKey, is_manual: bool) -> Result<bool, StoreError> {
        let _writing = self.writing();
        let entry = self.entry(key)?;
        let is_held =
            is_manual && !entry.record.origin.is_bundled() && self.entries().is_update(&entry);
        if entry.record.awaits_approval != is_held {
            self.change(key, |record| record.awaits_approval = is_held)?;
        }
        Ok(is_held)
    }

    /// Approves the update with the name `name`, or the highest one if `name` is only an id. The id
    /// then resolves to it, unless it means a higher version already.
    ///
    /// # Errors
    /// When there is no such model, none of its versions waits, or the disk fails.
    pub fn approve(&self, name: &str) -> Result<Approval, ApprovalError> {
        let _writing = self.writing();
        let entries = self.entries();
        let Some(waiting) = entries.waiting(name) else {
            return Err(match entries.resolve_any(name) {
                Some(_) => ApprovalError::NotWaiting(name.to_owned()),
                None => ApprovalError::Unknown(name.to_owned()),
            });
        };
        let key = &waiting.key;
        match entries.is_waiting(waiting) {
            // A rollback that is newer than the installation must not hide the approved version.
            true => self.mark(key, Some(next_timestamp(entries.iter(), &waiting.manifest.id)))?,
            false => drop(self.change(key, |record| record.awaits_approval = false)?),
        }
        let from = entries.resolve(key.id()).cloned();
        let approved = self.entry(key)?;
        let to = self.entries().resolve(key.id()).cloned().unwrap_or_else(|| approved.clone());
        Ok(Approval { from, approved, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::package;
    use crate::package::{CleanupRule, Origin, Quota, RollbackTarget, UnpackLimits};

    const QUOTA: Quota =
        Quota { max_size: Bytes::mib(8), max_models: 9, cleanup: CleanupRule::Manual };

    /// Installs a version of `m` under the policy, as after a self-test.
    fn add_from(store: &Store, version: &str, origin: Origin, is_manual: bool) -> EntryKey {
        let limits = UnpackLimits::for_size(QUOTA.max_size);
        let staged = store.stage(&package("m", version)[..], &limits).unwrap();
        let key = store.install(staged, origin, QUOTA, |_| false).unwrap().entry.key;
        store.hold_update(&key, is_manual).unwrap();
        store.activate(&key, QUOTA, |_| false).unwrap();
        key
    }

    fn add(store: &Store, version: &str, is_manual: bool) -> EntryKey {
        add_from(store, version, Origin::Installed, is_manual)
    }

    fn current(store: &Store) -> String {
        store.entries().resolve("m").unwrap().manifest.version.to_string()
    }

    fn is_waiting(store: &Store, key: &EntryKey) -> bool {
        let entries = store.entries();
        entries.is_waiting(entries.get(key).unwrap())
    }

    #[test]
    fn held_update_waits_until_approval() {
        let place = tempfile::tempdir().unwrap();
        let (store, _damaged) = Store::open(place.path()).unwrap();
        let one = add(&store, "1", true);
        assert!(!is_waiting(&store, &one), "the first version is no update");
        let two = add(&store, "2", true);
        let lower = add(&store, "0", true);
        drop(store);
        let (store, _damaged) = Store::open(place.path()).unwrap();
        let waiting = [&one, &two, &lower].map(|key| is_waiting(&store, key));
        assert_eq!((waiting, current(&store).as_str()), ([false, true, false], "1"));
        let Approval { from, approved, to } = store.approve("m").unwrap();
        assert_eq!((from.unwrap().key, &approved.key, &to.key), (one, &two, &two));
        assert_eq!(current(&store), "2");
        drop(store);
        let (store, _damaged) = Store::open(place.path()).unwrap();
        assert_eq!(current(&store), "2");
        let again = store.approve("m@2").unwrap_err();
        assert!(matches!(again, ApprovalError::NotWaiting(_)), "{again}");
        let unknown = store.approve("n").unwrap_err();
        assert!(matches!(unknown, ApprovalError::Unknown(_)), "{unknown}");
    }

    #[test]
    fn approval_ends_a_rollback() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        for version in ["1", "2"] {
            add(&store, version, false);
        }
        add(&store, "3", true);
        store.roll_back("m", &RollbackTarget::Previous).unwrap();
        assert_eq!(current(&store), "1");
        store.approve("m@3").unwrap();
        assert_eq!(current(&store), "3");
        store.roll_back("m", &RollbackTarget::Previous).unwrap();
        assert_eq!(current(&store), "2");
    }

    #[test]
    fn automatic_policy_does_not_approve_waiting_versions() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        add(&store, "1", true);
        let two = add(&store, "2", true);
        // The policy is automatic from here on: a later version takes over, an earlier one waits.
        assert_eq!(current(&store), "1");
        add(&store, "3", false);
        assert_eq!(current(&store), "3");
        assert!(!is_waiting(&store, &two), "a version below the current one is no update");
        store.roll_back("m", &RollbackTarget::Previous).unwrap();
        assert_eq!(current(&store), "1", "a version that was never approved is no rollback");
        store.roll_back("m", &RollbackTarget::Clear).unwrap();
        let Approval { approved, to, .. } = store.approve("m@2").unwrap();
        assert_eq!((approved.key, to.manifest.version.as_str()), (two, "3"));
        store.roll_back("m", &RollbackTarget::Previous).unwrap();
        assert_eq!(current(&store), "2");
    }

    #[test]
    fn rollback_to_waiting_version_approves_it() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        add(&store, "1", true);
        let two = add(&store, "2", true);
        store.roll_back("m", &RollbackTarget::To("2".to_owned())).unwrap();
        assert_eq!((current(&store).as_str(), is_waiting(&store, &two)), ("2", false));
        store.roll_back("m", &RollbackTarget::Clear).unwrap();
        assert_eq!(current(&store), "2");
    }

    #[test]
    fn bundled_version_never_waits() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        add(&store, "1", true);
        let fingerprint = serde_json::from_str("\"\"").unwrap();
        let bundled = Origin::Bundled { file: "m.model.tar.zst".to_owned(), fingerprint };
        add_from(&store, "2", bundled, true);
        assert_eq!(current(&store), "2");
    }

    #[test]
    fn decision_after_interruption_replaces_earlier_one() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        add(&store, "1", true);
        let limits = UnpackLimits::for_size(QUOTA.max_size);
        let staged = store.stage(&package("m", "2")[..], &limits).unwrap();
        let two = store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap().entry.key;
        assert!(store.hold_update(&two, true).unwrap());
        // The process ended here, and the next one has another policy.
        assert!(!store.hold_update(&two, false).unwrap());
        store.activate(&two, QUOTA, |_| false).unwrap();
        assert_eq!(current(&store), "2");
    }
}
