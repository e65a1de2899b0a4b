//! Removal of models that exceed a lowered limit, or that were not used for a long time.

use std::time::Duration;

use super::super::entries::Entries;
use super::super::entry::{EntryKey, StoreEntry};
use super::super::install_record::{Origin, Quota, Timestamp, select_excess};
use super::space::with_candidates;
use super::{Store, StoreError};

/// Time before which the clock of a device is not set: the beginning of 2020. A model with an older
/// time would seem unused for decades as soon as the clock is set.
const CLOCK_IS_SET: Timestamp = Timestamp(1_577_836_800);

/// Reason why a model was removed without a new one that needs its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// The store exceeds its limits: they were lowered, or a crash interrupted a removal.
    Excess,
    /// The model was not used for this time.
    Unused(Duration),
}

/// A model that was removed, or whose removal failed.
#[derive(Debug)]
pub struct RemovedModel {
    /// The model.
    pub entry: StoreEntry,
    /// Reason of the removal.
    pub reason: RemovalReason,
    /// Error if the disk failed.
    pub error: Option<StoreError>,
}

impl Store {
    /// Returns whether [`Store::clean_up`] would remove a model at `now`. Does not block.
    pub fn needs_clean_up(
        &self,
        quota: Quota,
        unused_for: Option<Duration>,
        keep: impl Fn(&StoreEntry) -> bool,
        now: Timestamp,
    ) -> bool {
        !superfluous(&self.entries(), quota, unused_for, keep, now).is_empty()
    }

    /// Removes the models that exceed the quota, and those that were not used for `unused_for`.
    /// `keep` returns `true` for entries that must not be removed.
    ///
    /// The quota applies to the same models as at an installation. The time applies only to models
    /// that did not come from a drop directory: the next start would install their files again.
    /// Updates that wait for approval are not unused.
    pub fn clean_up(
        &self,
        quota: Quota,
        unused_for: Option<Duration>,
        keep: impl Fn(&StoreEntry) -> bool,
        now: Timestamp,
    ) -> Vec<RemovedModel> {
        let _writing = self.writing();
        let entries = self.entries();
        let superfluous = superfluous(&entries, quota, unused_for, keep, now);
        let removed = superfluous.into_iter().filter_map(|(key, reason)| {
            let entry = entries.get(&key)?.clone();
            Some(RemovedModel { entry, reason, error: self.remove_locked(&key).err() })
        });
        removed.collect()
    }
}

/// Returns the entries to remove, each with the reason.
fn superfluous(
    entries: &Entries,
    quota: Quota,
    unused_for: Option<Duration>,
    keep: impl Fn(&StoreEntry) -> bool,
    now: Timestamp,
) -> Vec<(EntryKey, RemovalReason)> {
    let unused_since = |entry: &StoreEntry| {
        let last_use = entry.current_record().last_use();
        (last_use >= CLOCK_IS_SET).then(|| Duration::from_secs(now.0.saturating_sub(last_use.0)))
    };
    let is_unused = |entry: &StoreEntry, limit: Duration| {
        entry.record.origin == Origin::Installed
            && entry.record.status.is_tested()
            && !entries.is_waiting(entry)
            && !keep(entry)
            && unused_since(entry).is_some_and(|since| since >= limit)
    };
    let mut leaving = Vec::new();
    if let Some(limit) = unused_for {
        let unused = entries.iter().filter(|entry| is_unused(entry, limit));
        leaving.extend(unused.map(|entry| (entry.key.clone(), RemovalReason::Unused(limit))));
    }
    let is_left = |entry: &&StoreEntry| leaving.iter().all(|(key, _)| *key != entry.key);
    let left = Vec::from_iter(entries.iter().filter(is_left));
    let excess = with_candidates(&left, &keep, |candidates| {
        Vec::from_iter(select_excess(candidates, quota).into_iter().cloned())
    });
    leaving.extend(excess.into_iter().map(|key| (key, RemovalReason::Excess)));
    leaving
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::package;
    use crate::package::{CleanupRule, UnpackLimits};

    const QUOTA: Quota =
        Quota { max_size: Bytes::mib(8), max_models: 9, cleanup: CleanupRule::Lru };
    const NOW: Timestamp = Timestamp(1_700_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Installs a model from `origin` that was not used since its installation `seconds` before
    /// [`NOW`].
    fn add(store: &Store, id: &str, origin: Origin, seconds: u64) -> EntryKey {
        let limits = UnpackLimits::for_size(QUOTA.max_size);
        let staged = store.stage(&package(id, "1")[..], &limits).unwrap();
        let key = store.install(staged, origin, QUOTA, |_| false).unwrap().entry.key;
        store.activate(&key, QUOTA, |_| false).unwrap();
        store.update(&key, |record| record.installed_at.0 = NOW.0 - seconds).unwrap();
        key
    }

    fn cleaned(store: &Store, quota: Quota, unused_for: Option<Duration>) -> Vec<String> {
        let keep = |entry: &StoreEntry| entry.manifest.id.as_str() == "kept";
        let needed = store.needs_clean_up(quota, unused_for, keep, NOW);
        let removed = store.clean_up(quota, unused_for, keep, NOW);
        assert_eq!(needed, !removed.is_empty());
        assert!(removed.iter().all(|it| it.error.is_none()));
        removed.into_iter().map(|it| format!("{} {:?}", it.entry.key.id(), it.reason)).collect()
    }

    fn ids(store: &Store) -> Vec<String> {
        store.entries().iter().map(|entry| entry.key.id().to_owned()).collect()
    }

    #[test]
    fn unused_models_leave_unless_a_file_or_name_keeps_them() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let fingerprint = || serde_json::from_str("\"\"").unwrap();
        let file = || "file.model.tar.zst".to_owned();
        let bundled = Origin::Bundled { file: file(), fingerprint: fingerprint() };
        add(&store, "bundled", bundled, 7200);
        add(&store, "dropped", Origin::dropped(file(), fingerprint()), 7200);
        add(&store, "kept", Origin::Installed, 7200);
        add(&store, "recent", Origin::Installed, 3599);
        add(&store, "unused", Origin::Installed, 3600);
        let clock_unset = add(&store, "unset", Origin::Installed, 7200);
        store.update(&clock_unset, |record| record.installed_at = Timestamp(60)).unwrap();
        let waiting = add(&store, "waiting", Origin::Installed, 7200);
        store.update(&waiting, |record| record.awaits_approval = true).unwrap();
        assert!(cleaned(&store, QUOTA, None).is_empty());
        assert_eq!(cleaned(&store, QUOTA, Some(HOUR)), ["unused Unused(3600s)"]);
        assert!(cleaned(&store, QUOTA, Some(HOUR)).is_empty());
        let left = ["bundled", "dropped", "kept", "recent", "unset", "waiting"];
        assert_eq!(ids(&store), left);
    }

    #[test]
    fn use_of_a_model_keeps_it() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let key = add(&store, "used", Origin::Installed, 7200);
        store.entries().get(&key).unwrap().accesses.record_access(Timestamp(NOW.0 - 10));
        assert!(cleaned(&store, QUOTA, Some(HOUR)).is_empty());
    }

    #[test]
    fn lowered_limit_removes_least_recently_used_models() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        for (id, seconds) in [("kept", 50), ("old", 40), ("older", 45), ("young", 10)] {
            add(&store, id, Origin::Installed, seconds);
        }
        let lowered = Quota { max_models: 2, ..QUOTA };
        let manual = Quota { cleanup: CleanupRule::Manual, ..lowered };
        assert!(cleaned(&store, manual, None).is_empty());
        assert_eq!(cleaned(&store, lowered, None), ["older Excess", "old Excess"]);
        assert_eq!(ids(&store), ["kept", "young"]);
        let none = Quota { max_size: Bytes(1), ..lowered };
        assert_eq!(cleaned(&store, none, None), ["young Excess"]);
        assert!(cleaned(&store, none, None).is_empty(), "the protected model stays");
    }
}
