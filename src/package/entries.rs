//! Snapshot of the installed packages, and resolution of names to them.

use std::cmp::Ordering;
use std::ops::Index;
use std::sync::Arc;

use super::digest::Digest;
use super::entry::{EntryKey, StoreEntry, compare_natural};

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
    /// - `id` resolves to the highest version, or to the version that a rollback chose.
    /// - `id@version` resolves to that version. If two entries have the same id and version, the
    ///   one installed last wins.
    /// - `id@revision` needs at least six digits and is tried after the versions. If several
    ///   revisions match, the entry installed first wins, so that a new entry does not take over
    ///   the name of an existing one.
    /// - `id@digest` with all 64 digits always resolves to that content, even if a version has an
    ///   equal name.
    ///
    /// Entries that are disabled, or that have not passed their self-test, are ignored.
    pub fn resolve(&self, name: &str) -> Option<&StoreEntry> {
        let (id, rest) = split_name(name);
        let resolvable = || self.of_id(id).filter(|entry| entry.is_resolvable());
        let last = |is_named: &dyn Fn(&StoreEntry) -> bool| {
            resolvable().filter(|entry| is_named(entry)).max_by(|a, b| compare_versions(a, b))
        };
        let Some(rest) = rest else {
            let highest = last(&|_| true)?;
            // A rollback applies only if it is newer than the installation of the highest version.
            // A later installation therefore ends the rollback.
            let since = Some(highest.record.installed_at);
            let chosen = resolvable().filter(|entry| entry.record.chosen_at > since);
            return chosen.max_by_key(|entry| entry.record.chosen_at).or(Some(highest));
        };
        let by_revision = |digits: &str| {
            let named = resolvable().filter(|entry| entry.is_revision(digits));
            named.min_by_key(|entry| entry.record.installed_at)
        };
        let exact = (rest.len() == Digest::DIGITS).then(|| by_revision(rest)).flatten();
        exact.or_else(|| last(&|entry| entry.is_version(rest))).or_else(|| by_revision(rest))
    }

    /// Resolves `name` for an administrator who removes an entry.
    ///
    /// Returns the entry of [`resolve`](Self::resolve). If no matching entry has passed its
    /// self-test, returns the highest version among the others.
    pub fn resolve_any(&self, name: &str) -> Option<&StoreEntry> {
        let others = || {
            let named = self.of_id(split_name(name).0).filter(|entry| entry.is_named(name));
            named.max_by(|a, b| compare_versions(a, b))
        };
        self.resolve(name).or_else(others)
    }

    /// Returns the usable entry that precedes the entry to which `name` resolves, by version and
    /// then by installation time.
    pub fn previous_version(&self, name: &str) -> Option<&StoreEntry> {
        let current = self.resolve(name)?;
        let earlier = self.of_id(current.key.id()).filter(|entry| {
            entry.is_usable() && compare_versions(entry, current) == Ordering::Less
        });
        earlier.max_by(|a, b| compare_versions(a, b))
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
    use super::super::fixture::entry;
    use super::super::install_record::Timestamp;
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
        assert_eq!(entries.previous_version("m").unwrap().key.name(), "m@1");
        assert!(entries.previous_version("m-2").is_none());
        assert_eq!(names(&entries.filtered(|entry| entry.is_named("m"))), ["m@1", "m@2"]);
    }

    #[test]
    fn later_entry_replaces_one_with_its_key() {
        let mut newer = entry("m", "1", 2, "a");
        newer.record.attempts = 7;
        let both: Entries = [entry("m", "1", 2, "a"), newer].into_iter().collect();
        assert_eq!((both.len(), both[0].record.attempts), (1, 7));
    }
}
