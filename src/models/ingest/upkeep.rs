//! Upkeep of the installed models: removes superfluous ones, and reports corrupt versions and the
//! versions that answer for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::install::version_change;
use super::{Ingester, log_records};
use crate::package::{Entries, EntryKey, InstallStatus};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;

/// Least time between two removals of superfluous models if the disk refused one.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// State of the upkeep: the facts that were reported already.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Corrupt entries.
    corrupt: BTreeSet<EntryKey>,
    /// Corrupt versions, each with the version that answers for it.
    substitutes: BTreeMap<EntryKey, EntryKey>,
    /// Time before which no superfluous model is removed.
    retry_at: Option<Instant>,
}

impl Ingester {
    /// Removes models that exceed the limits of the store, or that were not used for a long time.
    pub(super) async fn clean_up(&mut self) {
        let now = Instant::now();
        if self.upkeep.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let removed_all = self.installer.clean_up().await;
        self.upkeep.retry_at = (!removed_all).then(|| now + RETRY_INTERVAL);
    }

    /// Returns whether the version `new` waits for approval, so that its id still means `old`.
    pub(super) fn waits_to_replace(&self, new: &EntryKey, old: &EntryKey) -> bool {
        let entries = self.installer.handle().store().entries();
        entries.get(new).is_some_and(|new| entries.is_waiting(new))
            && entries.resolve(new.id()).is_some_and(|current| current.key == *old)
    }

    /// Makes a model independent of the file `name`, which provides its update now.
    pub(super) async fn keep_until_approval(&self, name: &str, key: &EntryKey) {
        match self.installer.detach_from_all_files(key.clone()).await {
            Some(Ok(())) => {
                log_records::log_kept(name, key, "model stays: its update waits for approval");
            }
            Some(Err(error)) => {
                log_records::log_store_error(key, &error, "model cannot be detached from a file");
            }
            None => {}
        }
    }

    /// Reports entries that became corrupt, and ids that resolve to another version because of that
    /// or no longer do.
    pub(super) async fn report_corrupt(&mut self) {
        let handle = self.installer.handle();
        let entries = handle.store().entries();
        let mut corrupt = BTreeSet::new();
        for entry in &entries {
            let InstallStatus::Corrupt(reason) = &entry.record.status else { continue };
            if !self.upkeep.corrupt.contains(&entry.key) {
                let (model, reason) = (entry.key.name().to_owned(), reason.clone());
                handle.events().publish(Event::ModelCorrupt { model, reason });
            }
            corrupt.insert(entry.key.clone());
        }
        let pairs = entries.substitutes().into_iter();
        let substitutes: BTreeMap<_, _> =
            pairs.map(|(from, to)| (from.key.clone(), to.key.clone())).collect();
        let is_changed = substitutes != self.upkeep.substitutes;
        if is_changed {
            for event in changes(&entries, &self.upkeep.substitutes, &substitutes) {
                handle.events().publish(event);
            }
            // The default model may be another entry now.
            handle.notify_store_changed(Vec::new()).await;
        }
        self.upkeep.corrupt = corrupt;
        self.upkeep.substitutes = substitutes;
    }
}

/// Logs the changes from the substitutes `before` to those of `now`, and returns their events.
fn changes(
    entries: &Entries,
    before: &BTreeMap<EntryKey, EntryKey>,
    now: &BTreeMap<EntryKey, EntryKey>,
) -> Vec<Event> {
    let mut events = Vec::new();
    for (from, to) in now.iter().filter(|(from, to)| before.get(from) != Some(to)) {
        tracing::warn!(
            name: Message::VersionSubstituted.name(),
            from = %from, to = %to,
            "version is corrupt; an earlier version of the same embedding space answers for its id"
        );
        let (Some(from), Some(to)) = (entries.get(from), entries.get(to)) else { continue };
        events.push(version_change(from, to));
    }
    for (from, to) in before.iter().filter(|(from, _)| !now.contains_key(from)) {
        let Some(current) = entries.resolve(from.id()) else { continue };
        tracing::info!(
            name: Message::VersionRestored.name(),
            model = %current.key,
            "no version answers for a corrupt version of the id any more"
        );
        if let Some(to) = entries.get(to).filter(|to| to.key != current.key) {
            events.push(version_change(to, current));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::fixture::entry;

    #[test]
    fn substitution_and_its_end_are_events() {
        let all = ["1", "2"].map(|version| entry("m", version, 2, "a"));
        let [one, two] = all.clone().map(|entry| entry.key);
        let entries = Entries::from_iter(all);
        let none = BTreeMap::new();
        let some = BTreeMap::from([(two, one)]);
        let event = |from: &str, to: &str| Event::ModelRolledBack {
            model: "m".to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        assert_eq!(changes(&entries, &none, &some), [event("2", "1")]);
        assert_eq!(changes(&entries, &some, &some), []);
        assert_eq!(changes(&entries, &some, &none), [event("1", "2")]);
    }
}
