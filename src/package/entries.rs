//! Snapshot of the installed packages, and resolution of names to them.

use std::cmp::Ordering;
use std::ops::Index;
use std::sync::Arc;

use super::digest::Digest;
use super::entry::{EntryKey, StoreEntry, canonical_name, compare_natural};

/// Installed packages at one moment, in the order of their keys.
///
/// The snapshot never changes: the store replaces its own copy. A clone shares the entries and
/// costs one atomic increment. The accesses of an entry are the exception: every snapshot shows the
/// current ones.
#[derive(Clone, Debug, Default)]
pub struct Entries(Arc<Vec<Arc<StoreEntry>>>);

/// Iterator over the entries of a snapshot.
type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, Arc<StoreEntry>>,
    fn(&'a Arc<StoreEntry>) -> &'a StoreEntry,
>;

impl Entries {
    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns an iterator over the entries, in the order of their keys.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    /// Returns whether `other` is a clone of this snapshot, so that nothing changed between them.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the entry with this key.
    pub fn get(&self, key: &EntryKey) -> Option<&StoreEntry> {
        self.position(key).map(|at| &*self.0[at])
    }

    /// Returns the index of the entry with this key.
    pub fn position(&self, key: &EntryKey) -> Option<usize> {
        self.0.binary_search_by(|entry| entry.key.cmp(key)).ok()
    }

    /// Returns the entries for which `keep` returns true. Copies pointers, not entries.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&StoreEntry) -> bool) -> Self {
        Self(Arc::new(self.0.iter().filter(|entry| keep(entry)).cloned().collect()))
    }

    /// Resolves `name` to an entry. Returns `None` if no entry matches.
    ///
    /// - `id` resolves to the highest approved version, or to the version that a rollback chose. If
    ///   that version is corrupt, the id resolves to the highest usable version below it with the
    ///   same embedding space. Without such a version, it resolves to the corrupt one: an id never
    ///   changes its embedding space because of a fault.
    /// - `id@version` resolves to that version. If two entries have the same id and version, the
    ///   one installed last wins.
    /// - `id@revision` needs at least six digits and is tried after the versions. If several
    ///   revisions match, the entry installed first wins, so that a new entry does not take over
    ///   the name of an existing one.
    /// - `id@digest` with all 64 digits always resolves to that content, even if a version has an
    ///   equal name.
    /// - Names with a tag have the meaning that [`canonical_name`] gives them.
    ///
    /// Entries that are disabled, or that have not passed their self-test, are ignored.
    pub fn resolve(&self, name: &str) -> Option<&StoreEntry> {
        let name = canonical_name(name);
        let (id, rest) = split_name(&name);
        let resolvable = || self.of_id(id).filter(|entry| entry.is_resolvable());
        let last = |is_named: &dyn Fn(&StoreEntry) -> bool| {
            resolvable().filter(|entry| is_named(entry)).max_by(|a, b| compare_versions(a, b))
        };
        let Some(rest) = rest else {
            let preferred = self.preferred(id)?;
            return self.substitute(preferred).or(Some(preferred));
        };
        let by_revision = |digits: &str| {
            let named = resolvable().filter(|entry| entry.is_revision(digits));
            named.min_by_key(|entry| entry.record.installed_at)
        };
        let exact = (rest.len() == Digest::DIGITS).then(|| by_revision(rest)).flatten();
        exact.or_else(|| last(&|entry| entry.is_version(rest))).or_else(|| by_revision(rest))
    }

    /// Returns the version to which `id` resolves if its files are intact.
    fn preferred(&self, id: &str) -> Option<&StoreEntry> {
        let approved = || {
            let resolvable = self.of_id(id).filter(|entry| entry.is_resolvable());
            resolvable.filter(|entry| !entry.record.awaits_approval)
        };
        let highest = approved().max_by(|a, b| compare_versions(a, b))?;
        // A rollback applies only if it is newer than the installation of the highest version. A
        // later installation therefore ends the rollback.
        let since = Some(highest.record.installed_at);
        let chosen = approved().filter(|entry| entry.record.chosen_at > since);
        chosen.max_by_key(|entry| entry.record.chosen_at).or(Some(highest))
    }

    /// Returns the version that answers for the corrupt version `preferred`: the highest usable one
    /// below it with the same embedding space. Returns `None` if `preferred` is usable.
    ///
    /// A higher version is no candidate: a rollback has excluded it.
    fn substitute<'a>(&'a self, preferred: &StoreEntry) -> Option<&'a StoreEntry> {
        if preferred.is_usable() {
            return None;
        }
        let space = preferred.manifest.space();
        self.earlier_than(preferred)
            .filter(|entry| entry.manifest.space() == space)
            .max_by(|a, b| compare_versions(a, b))
    }

    /// Returns the corrupt versions for which another version answers, each with that version.
    pub fn substitutes(&self) -> Vec<(&StoreEntry, &StoreEntry)> {
        let corrupt = self.iter().filter(|entry| entry.record.status.is_corrupt());
        let answered = corrupt.filter_map(|entry| {
            let preferred = self.preferred(entry.key.id())?;
            let used = self.substitute(preferred)?;
            (preferred.key == entry.key).then_some((entry, used))
        });
        answered.collect()
    }

    /// Returns the corrupt version for which `entry` answers.
    pub fn answered_by(&self, entry: &StoreEntry) -> Option<&StoreEntry> {
        let preferred = self.preferred(entry.key.id())?;
        self.substitute(preferred).filter(|used| used.key == entry.key).map(|_used| preferred)
    }

    /// Returns whether `entry` is an update that waits for the approval of an administrator: its id
    /// would resolve to it if it were approved.
    pub fn is_waiting(&self, entry: &StoreEntry) -> bool {
        let preferred = || self.preferred(entry.key.id());
        entry.record.awaits_approval
            && entry.is_resolvable()
            && preferred().is_none_or(|it| compare_versions(entry, it) == Ordering::Greater)
    }

    /// Returns the highest usable entry with the name `name` that waits for approval.
    pub fn waiting(&self, name: &str) -> Option<&StoreEntry> {
        let name = &*canonical_name(name);
        let named = self.of_id(split_name(name).0).filter(|entry| entry.is_named(name));
        let waiting = named.filter(|entry| entry.record.awaits_approval && entry.is_usable());
        waiting.max_by(|a, b| compare_versions(a, b))
    }

    /// Returns whether `new`, which is not available yet, is an update: its id belongs to another
    /// installed version now and would resolve to `new`.
    pub(super) fn is_update(&self, new: &StoreEntry) -> bool {
        let id = new.key.id();
        // If all versions are disabled, the id still belongs to the highest one.
        let disabled = || {
            let tested = self
                .of_id(id)
                .filter(|entry| entry.record.status.is_tested() && !entry.record.awaits_approval);
            tested.max_by(|a, b| compare_versions(a, b))
        };
        match self.preferred(id).or_else(disabled) {
            Some(current) => compare_versions(new, current) == Ordering::Greater,
            // The approved versions were removed, and others wait.
            None => {
                self.of_id(id).any(|other| other.key != new.key && other.record.awaits_approval)
            }
        }
    }

    /// Resolves `name` for an administrator who removes an entry.
    ///
    /// Returns the entry of [`resolve`](Self::resolve). If no matching entry has passed its
    /// self-test, returns the highest version among the others.
    pub fn resolve_any(&self, name: &str) -> Option<&StoreEntry> {
        let name = &*canonical_name(name);
        let others = || {
            let named = self.of_id(split_name(name).0).filter(|entry| entry.is_named(name));
            named.max_by(|a, b| compare_versions(a, b))
        };
        self.resolve(name).or_else(others)
    }

    /// Returns the usable, approved entry that precedes the entry to which `name` resolves, by
    /// version and then by installation time.
    pub fn previous_version(&self, name: &str) -> Option<&StoreEntry> {
        self.earlier_than(self.resolve(name)?).max_by(|a, b| compare_versions(a, b))
    }

    /// Returns the usable, approved entries of the same id that precede `entry`.
    fn earlier_than<'a, 'b>(
        &'a self,
        entry: &'b StoreEntry,
    ) -> impl Iterator<Item = &'a StoreEntry> + use<'a, 'b> {
        self.of_id(entry.key.id()).filter(move |other| {
            other.is_usable()
                && !other.record.awaits_approval
                && compare_versions(other, entry) == Ordering::Less
        })
    }

    /// Returns the entries of one id. Their keys begin with `id@`, so they are adjacent.
    fn of_id(&self, id: &str) -> Iter<'_> {
        let prefix = format!("{id}@");
        let start = self.0.partition_point(|entry| entry.key.as_str() < prefix.as_str());
        let of_id = &self.0[start..];
        let end = of_id.partition_point(|entry| entry.key.as_str().starts_with(&prefix));
        iter(&of_id[..end])
    }

    /// Adds `entry`, or replaces the entry with the same key. Other snapshots stay as they are.
    pub(super) fn insert(&mut self, entry: StoreEntry) {
        let at = self.0.binary_search_by(|other| other.key.cmp(&entry.key));
        let entries = Arc::make_mut(&mut self.0);
        match at {
            Ok(at) => entries[at] = Arc::new(entry),
            Err(at) => entries.insert(at, Arc::new(entry)),
        }
    }

    /// Removes and returns the entry with this key. Other snapshots stay as they are.
    pub(super) fn remove(&mut self, key: &EntryKey) -> Option<StoreEntry> {
        let at = self.position(key)?;
        Some(Arc::unwrap_or_clone(Arc::make_mut(&mut self.0).remove(at)))
    }

    /// Changes the entry with this key, which keeps its key, and returns it. Other snapshots stay
    /// as they are.
    pub(super) fn update(
        &mut self,
        key: &EntryKey,
        change: impl FnOnce(&mut StoreEntry),
    ) -> Option<&StoreEntry> {
        let at = self.position(key)?;
        let entry = &mut Arc::make_mut(&mut self.0)[at];
        change(Arc::make_mut(entry));
        Some(entry)
    }
}

impl FromIterator<StoreEntry> for Entries {
    fn from_iter<T: IntoIterator<Item = StoreEntry>>(entries: T) -> Self {
        let mut all = Self::default();
        entries.into_iter().for_each(|entry| all.insert(entry));
        all
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = &'a StoreEntry;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        iter(&self.0)
    }
}

impl Index<usize> for Entries {
    type Output = StoreEntry;

    fn index(&self, at: usize) -> &StoreEntry {
        &self.0[at]
    }
}

fn iter<'a>(entries: &'a [Arc<StoreEntry>]) -> Iter<'a> {
    let as_entry: fn(&'a Arc<StoreEntry>) -> &'a StoreEntry = Arc::as_ref;
    entries.iter().map(as_entry)
}

/// Splits a name into the id, and the version or revision.
fn split_name(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(id, rest)| (id, Some(rest)))
}

/// Compares entries by version, and equal versions by installation time.
fn compare_versions(a: &StoreEntry, b: &StoreEntry) -> Ordering {
    let versions = compare_natural(a.manifest.version.as_str(), b.manifest.version.as_str());
    versions.then(a.record.installed_at.cmp(&b.record.installed_at))
}

#[cfg(test)]
mod tests {
    use super::super::disabled_reason::DisabledReason;
    use super::super::fixture::entry;
    use super::super::install_record::{InstallStatus, Timestamp};
    use super::*;

    fn entries() -> Entries {
        let names = [("m", "1"), ("m-2", "1"), ("m", "2"), ("mm", "1"), ("a", "1")];
        names.iter().map(|(id, version)| entry(id, version, 2, "a")).collect()
    }

    fn names(entries: &Entries) -> Vec<&str> {
        entries.iter().map(|entry| entry.key.name()).collect()
    }

    #[test]
    fn snapshot_is_shared_until_a_change() {
        let mut index = entries();
        let snapshot = index.clone();
        assert!(snapshot.is_same(&index) && snapshot.is_same(&index.clone()));
        let key = snapshot.resolve("m@2").unwrap().key.clone();
        snapshot.get(&key).unwrap().accesses.record_access(Timestamp(1));
        assert!(snapshot.is_same(&index));
        index.update(&key, |entry| entry.record.attempts = 1);
        assert!(!snapshot.is_same(&index));
        let attempts = |entries: &Entries| entries.get(&key).unwrap().record.attempts;
        assert_eq!((attempts(&snapshot), attempts(&index)), (0, 1));
        // The other entries are still the same objects.
        assert!(Arc::ptr_eq(&snapshot.0[0], &index.0[0]));
        assert_eq!(index.remove(&key).unwrap().key, key);
        assert_eq!((snapshot.len(), index.len()), (5, 4));
        assert!(index.get(&key).is_none() && index.remove(&key).is_none());
        assert!(index.update(&key, |_| {}).is_none());
        // The counts are shared, also with the entry in the older snapshot.
        index.insert(snapshot.get(&key).unwrap().clone());
        index.get(&key).unwrap().accesses.record_access(Timestamp(2));
        assert_eq!(snapshot.get(&key).unwrap().accesses.count(), 2);
    }

    #[test]
    fn names_resolve_only_within_their_id() {
        let entries = entries();
        assert_eq!(names(&entries), ["a@1", "m-2@1", "m@1", "m@2", "mm@1"]);
        let found = |name| entries.resolve(name).map(|entry| entry.key.name());
        assert_eq!(found("m"), Some("m@2"));
        assert_eq!(found("m-2"), Some("m-2@1"));
        assert_eq!(found("m@1"), Some("m@1"));
        for unknown in ["", "@", "m@", "m@3", "z", "A"] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
        for (tagged, meant) in [
            ("m:latest", Some("m@2")),
            ("m:1", Some("m@1")),
            ("m:3", None),
            ("m:", None),
            (":", None),
            ("m:latest:latest", None),
            ("m@1:latest", None),
        ] {
            assert_eq!(found(tagged), meant, "{tagged}");
            let any = entries.resolve_any(tagged).map(|entry| entry.key.name());
            assert_eq!(any, meant, "{tagged}");
        }
        assert_eq!(entries.previous_version("m").unwrap().key.name(), "m@1");
        assert!(entries.previous_version("m-2").is_none());
        assert_eq!(names(&entries.filtered(|entry| entry.is_named("m"))), ["m@1", "m@2"]);
    }

    /// Returns versions of `m`, each with the name of its weights.
    fn versions(weights: &[(&str, &str)]) -> Vec<StoreEntry> {
        weights.iter().map(|(version, weights)| entry("m", version, 2, weights)).collect()
    }

    fn resolved(entries: &[StoreEntry]) -> Option<String> {
        let entries = Entries::from_iter(entries.iter().cloned());
        entries.resolve("m").map(|entry| entry.key.name().to_owned())
    }

    #[test]
    fn corrupt_version_is_replaced_within_its_embedding_space() {
        let corrupt = || InstallStatus::Corrupt("bytes differ".to_owned());
        let mut all = versions(&[("1", "a"), ("2", "a"), ("3", "b"), ("4", "a")]);
        all[3].record.status = corrupt();
        assert_eq!(resolved(&all).unwrap(), "m@2", "version 3 has another embedding space");
        let entries = Entries::from_iter(all.clone());
        let substitutes = entries.substitutes();
        let names = substitutes.iter().map(|(from, to)| (from.key.name(), to.key.name()));
        assert_eq!(Vec::from_iter(names), [("m@4", "m@2")]);
        let answered = |at: usize| entries.answered_by(&all[at]).map(|entry| entry.key.name());
        assert_eq!([answered(1), answered(0), answered(3)], [Some("m@4"), None, None]);
        all[1].record.status = corrupt();
        assert_eq!(resolved(&all).unwrap(), "m@1");
        all[0].disabled = Some(DisabledReason::Reserved);
        assert_eq!(resolved(&all).unwrap(), "m@4", "only another embedding space is left");
        assert!(Entries::from_iter(all.clone()).substitutes().is_empty());
        all[3].record.status = InstallStatus::Available;
        assert_eq!(resolved(&all).unwrap(), "m@4");
    }

    #[test]
    fn substitute_is_below_the_version_that_a_rollback_chose() {
        let mut all = versions(&[("1", "a"), ("2", "a"), ("3", "a")]);
        all[1].record.chosen_at = Some(Timestamp(1));
        assert_eq!(resolved(&all).unwrap(), "m@2");
        all[1].record.status = InstallStatus::Corrupt("bytes differ".to_owned());
        assert_eq!(resolved(&all).unwrap(), "m@1");
        all[0].record.status = InstallStatus::Corrupt("bytes differ".to_owned());
        assert_eq!(resolved(&all).unwrap(), "m@2");
    }

    #[test]
    fn id_skips_versions_that_await_approval() {
        let mut all = versions(&[("1", "a"), ("2", "a"), ("3", "a")]);
        all[1].record.awaits_approval = true;
        all[2].record.awaits_approval = true;
        assert_eq!(resolved(&all).unwrap(), "m@1");
        let entries = Entries::from_iter(all.clone());
        assert_eq!(entries.resolve("m@3").unwrap().key.name(), "m@3");
        assert_eq!(entries.waiting("m").unwrap().key.name(), "m@3");
        assert_eq!(entries.waiting("m@2").unwrap().key.name(), "m@2");
        assert!(entries.waiting("m@1").is_none());
        assert!(entries.is_waiting(&all[1]) && entries.is_waiting(&all[2]));
        assert!(!entries.is_waiting(&all[0]));
        // A version below the current one waits for nothing, and is not the one before it either.
        all[2].record.awaits_approval = false;
        let entries = Entries::from_iter(all.clone());
        assert_eq!(resolved(&all).unwrap(), "m@3");
        assert!(!entries.is_waiting(&all[1]));
        assert_eq!(entries.previous_version("m").unwrap().key.name(), "m@1");
        // Without an approved version, the id has no meaning.
        let only = &mut all[1..2];
        assert_eq!(resolved(only), None);
        assert!(Entries::from_iter(only.iter().cloned()).is_waiting(&only[0]));
    }

    #[test]
    fn update_is_above_the_version_that_the_id_means() {
        let mut all = versions(&[("1", "a"), ("2", "a"), ("3", "b"), ("4", "c")]);
        all[3].record.status = InstallStatus::Untested;
        let is_update = |all: &[StoreEntry], of: usize| {
            Entries::from_iter(all.iter().cloned()).is_update(&all[of])
        };
        assert!(is_update(&all, 3));
        // After a rollback, the version between is an update as well.
        all[0].record.chosen_at = Some(Timestamp(1));
        all[1].record.status = InstallStatus::Untested;
        assert!(is_update(&all, 1));
        all[0].record.chosen_at = None;
        assert!(!is_update(&all, 1));
        // The id belongs to its disabled versions too.
        all[0].disabled = Some(DisabledReason::Reserved);
        all[2].disabled = Some(DisabledReason::Reserved);
        assert!(is_update(&all, 3));
        assert!(!is_update(&all[3..], 0), "an id without a version has no update");
        all[2].disabled = None;
        all[2].record.awaits_approval = true;
        assert!(is_update(&all[2..], 1), "the id has only versions that wait");
    }

    #[test]
    fn later_entry_replaces_one_with_its_key() {
        let mut newer = entry("m", "1", 2, "a");
        newer.record.attempts = 7;
        let both: Entries = [entry("m", "1", 2, "a"), newer].into_iter().collect();
        assert_eq!((both.len(), both[0].record.attempts), (1, 7));
    }
}
