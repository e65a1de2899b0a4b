//! Healing: when an entry that is corrupt or cannot be read is written anew from its package.
//!
//! Owns the pauses, in [`Healing`], which is pure: `now` comes in. Also tells what of the store is degraded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Intake, off_runtime, records};
use crate::package::{Entry, Key, Origin, Status, drop};

/// An entry is written anew at once, and again no sooner than after this time: a disk that spoils what was just written
/// must not be worn out.
const PAUSE: Duration = Duration::from_secs(600);

/// When each damaged entry was last written anew, or was to be.
#[derive(Debug, Default)]
pub(super) struct Healing {
    begun: BTreeMap<Key, Instant>,
}

impl Healing {
    /// Returns those of the `damaged` entries whose turn it is at `now`, and takes their turn to have begun; and when the
    /// next one is due.
    pub(super) fn due(&mut self, damaged: Vec<Key>, now: Instant) -> (Vec<Key>, Option<Instant>) {
        // Before the others: what was healed may be damaged again within the pause.
        self.begun.retain(|_key, begun| now.duration_since(*begun) < PAUSE);
        let (waiting, due): (Vec<_>, Vec<_>) =
            damaged.into_iter().partition(|key| self.begun.contains_key(key));
        let next = waiting.iter().filter_map(|key| Some(*self.begun.get(key)? + PAUSE)).min();
        self.begun.extend(due.iter().map(|key| (key.clone(), now)));
        let next_of_due = (!due.is_empty()).then(|| now + PAUSE);
        (due, next.into_iter().chain(next_of_due).min())
    }
}

impl Intake {
    /// Has entries written anew that are corrupt or cannot be read, if their package is still there; returns when the next
    /// one is due. Their packages are read at the next look.
    pub(super) async fn heal(&mut self) -> Option<Instant> {
        let store = Arc::clone(self.installer.handle().store());
        let unreadable = store.unreadable_keys();
        let mut entries = store.entries();
        entries.retain(|entry| {
            matches!(entry.record.status, Status::Corrupt(_)) || unreadable.contains(&entry.key)
        });
        let damaged = entries.iter().map(|entry| entry.key.clone()).collect();
        let (due, next) = self.healing.due(damaged, Instant::now());
        entries.retain(|entry| due.contains(&entry.key));
        for entry in entries {
            match &entry.record.origin {
                Origin::Dropped { files } => {
                    files.keys().for_each(|file| self.ledger.forget(file));
                }
                // A copy of what an administrator gave may lie there, too.
                Origin::Installed => self.forget_copy(&entry).await,
                Origin::Bundled { file, .. } => self.bundled.ledger.forget(file),
            }
        }
        next
    }

    /// Has the package of `entry` read again, if it is in the drop directory.
    async fn forget_copy(&mut self, entry: &Entry) {
        let (directory, wanted) = (self.drop_directory.clone(), entry.record.package_digest);
        let copy = off_runtime(move || {
            let names = drop::list(&directory).ok()?.into_keys();
            let mut names = names.filter(|name| {
                drop::digest(&directory.join(name)).is_ok_and(|digest| digest == wanted)
            });
            names.next()
        });
        if let Some(Some(name)) = copy.await {
            self.ledger.forget(&name);
        }
    }

    /// Has the store try again what its disk refused, and tells the manager what is degraded.
    pub(super) async fn tell_condition(&mut self) {
        let store = Arc::clone(self.installer.handle().store());
        let looked = off_runtime(move || {
            let found = store.recover();
            (found, store.condition())
        });
        let Some((found, condition)) = looked.await else { return };
        for key in &found {
            records::readable(key);
        }
        if !found.is_empty() {
            self.installer.handle().store_changed(Vec::new()).await;
        }
        let mut degraded = condition.degraded();
        if !self.held.is_empty() {
            degraded.push(
                "the drop directory is another one than before; models stay without their files"
                    .to_owned(),
            );
        }
        if degraded != self.degraded {
            records::degraded(&degraded);
            self.installer.handle().degraded(degraded.clone()).await;
            self.degraded = degraded;
        }
    }

    /// Hashes every installed file. What is found to be corrupt is written anew at the next look.
    pub(super) async fn validate(&mut self, cancel: &CancellationToken) {
        for entry in self.installer.handle().store().entries() {
            if cancel.is_cancelled() {
                return;
            }
            match self.installer.verify(entry.key.clone()).await {
                Some(Ok(())) => tracing::debug!(model = %entry.key, "validated"),
                // It is in the journal.
                Some(Err(_error)) => {}
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_written_anew_at_once_and_then_after_a_pause() {
        let [a, b]: [Key; 2] =
            ["a@1+0123456789ab", "b@1+0123456789ab"].map(|key| key.parse().unwrap());
        let mut healing = Healing::default();
        let start = Instant::now();
        assert_eq!(healing.due(Vec::new(), start), (Vec::new(), None));
        let first = healing.due(vec![a.clone()], start);
        assert_eq!(first, (vec![a.clone()], Some(start + PAUSE)));
        // Spoiled again at once, and another one beside it.
        let second = start + Duration::from_secs(1);
        let both = || vec![a.clone(), b.clone()];
        assert_eq!(healing.due(both(), second), (vec![b.clone()], Some(start + PAUSE)));
        assert_eq!(healing.due(both(), second), (Vec::new(), Some(start + PAUSE)));
        let third = start + PAUSE;
        assert_eq!(healing.due(both(), third), (vec![a.clone()], Some(second + PAUSE)));
    }
}
