//! Repairs corrupt or unreadable entries by installing them from their packages again.
//!
//! [`Healing`] limits the rate. It is pure: the caller passes the time. This module also reports
//! degraded conditions to the manager.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Intake, off_runtime, records};
use crate::package::{EntryKey, InstallStatus, Origin, StoreEntry, drop_dir};

/// Least time between two repairs of an entry. The first repair begins at once. The pause protects
/// a failing disk, which would damage each new copy, from being worn out.
const PAUSE: Duration = Duration::from_secs(600);

/// Time at which the last repair of each damaged entry began.
#[derive(Debug, Default)]
pub(super) struct Healing {
    begun: BTreeMap<EntryKey, Instant>,
}

impl Healing {
    /// Returns the `damaged` entries to repair at `now`, and the time at which the next repair is
    /// due. Records that the returned ones have begun.
    pub(super) fn due(
        &mut self,
        damaged: Vec<EntryKey>,
        now: Instant,
    ) -> (Vec<EntryKey>, Option<Instant>) {
        // Keep the time of a repaired entry for the whole pause: it may be damaged again.
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
    /// Schedules the repair of corrupt and unreadable entries whose package still exists. Returns
    /// the time at which the next repair is due.
    ///
    /// The drop scanner forgets their files, so that the next scan installs them again.
    pub(super) async fn heal(&mut self) -> Option<Instant> {
        let store = Arc::clone(self.installer.handle().store());
        let unreadable = store.unreadable_keys();
        let mut entries = store.entries();
        entries.retain(|entry| {
            matches!(entry.record.status, InstallStatus::Corrupt(_))
                || unreadable.contains(&entry.key)
        });
        let damaged = entries.iter().map(|entry| entry.key.clone()).collect();
        let (due, next) = self.healing.due(damaged, Instant::now());
        entries.retain(|entry| due.contains(&entry.key));
        for entry in entries {
            match &entry.record.origin {
                Origin::Dropped { files } => {
                    files.keys().for_each(|file| self.ledger.rescan(file));
                }
                // The drop directory may hold a copy of a package that an administrator installed.
                Origin::Installed => self.forget_copy(&entry).await,
                Origin::Bundled { file, .. } => self.bundled.ledger.rescan(file),
            }
        }
        next
    }

    /// Makes the drop scanner read the package of `entry` again, if the drop directory holds it.
    async fn forget_copy(&mut self, entry: &StoreEntry) {
        let (directory, wanted) = (self.drop_directory.clone(), entry.record.package_digest);
        let copy = off_runtime(move || {
            let names = drop_dir::list(&directory).ok()?.into_keys();
            let mut names = names.filter(|name| {
                drop_dir::digest(&directory.join(name)).is_ok_and(|digest| digest == wanted)
            });
            names.next()
        });
        if let Some(Some(name)) = copy.await {
            self.ledger.rescan(&name);
        }
    }

    /// Makes the store retry operations that its disk refused, and reports changes of the degraded
    /// conditions to the manager.
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

    /// Hashes every installed file. The next round of the main loop repairs the entries that are
    /// found to be corrupt.
    pub(super) async fn validate(&mut self, cancel: &CancellationToken) {
        for entry in self.installer.handle().store().entries() {
            if cancel.is_cancelled() {
                return;
            }
            match self.installer.verify(entry.key.clone()).await {
                Some(Ok(())) => tracing::debug!(model = %entry.key, "validated"),
                // `Installer::verify` has logged the error.
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
    fn entry_is_repaired_at_once_then_after_pause() {
        let [a, b]: [EntryKey; 2] =
            ["a@1+0123456789ab", "b@1+0123456789ab"].map(|key| key.parse().unwrap());
        let mut healing = Healing::default();
        let start = Instant::now();
        assert_eq!(healing.due(Vec::new(), start), (Vec::new(), None));
        let first = healing.due(vec![a.clone()], start);
        assert_eq!(first, (vec![a.clone()], Some(start + PAUSE)));
        // Damage `a` again at once, and `b` too.
        let second = start + Duration::from_secs(1);
        let both = || vec![a.clone(), b.clone()];
        assert_eq!(healing.due(both(), second), (vec![b.clone()], Some(start + PAUSE)));
        assert_eq!(healing.due(both(), second), (Vec::new(), Some(start + PAUSE)));
        let third = start + PAUSE;
        assert_eq!(healing.due(both(), third), (vec![a.clone()], Some(second + PAUSE)));
    }
}
