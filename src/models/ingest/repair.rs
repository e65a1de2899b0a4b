//! Repairs corrupt or unreadable entries by installing them from their packages again.
//!
//! [`RepairSchedule`] limits the rate. It is pure: the caller passes the time. This module also
//! reports degraded conditions to the manager.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Ingester, find_directory, log_records, run_blocking};
use crate::package::{EntryKey, InstallStatus, Origin, StoreEntry, drop_dir};

/// Least time between two repairs of an entry. The first repair begins at once. The pause protects
/// a failing disk, which would damage each new copy, from being worn out.
const REPAIR_INTERVAL: Duration = Duration::from_secs(600);

/// Time at which the last repair of each damaged entry began.
#[derive(Debug, Default)]
pub(super) struct RepairSchedule {
    started: BTreeMap<EntryKey, Instant>,
}

impl RepairSchedule {
    /// Returns the `damaged` entries to repair at `now`, and the time at which the next repair is
    /// due. Records that the returned ones have begun.
    pub(super) fn due(
        &mut self,
        damaged: Vec<EntryKey>,
        now: Instant,
    ) -> (Vec<EntryKey>, Option<Instant>) {
        // Keep the time of a repaired entry for the whole pause: it may be damaged again.
        self.started.retain(|_key, begun| now.duration_since(*begun) < REPAIR_INTERVAL);
        let (waiting, due): (Vec<_>, Vec<_>) =
            damaged.into_iter().partition(|key| self.started.contains_key(key));
        let next =
            waiting.iter().filter_map(|key| Some(*self.started.get(key)? + REPAIR_INTERVAL)).min();
        self.started.extend(due.iter().map(|key| (key.clone(), now)));
        let next_of_due = (!due.is_empty()).then(|| now + REPAIR_INTERVAL);
        (due, next.into_iter().chain(next_of_due).min())
    }
}

impl Ingester {
    /// Schedules the repair of corrupt and unreadable entries whose package still exists. Returns
    /// the time at which the next repair is due.
    ///
    /// The drop scanner forgets their files, so that the next scan installs them again.
    pub(super) async fn repair(&mut self) -> Option<Instant> {
        let store = Arc::clone(self.installer.handle().store());
        let unreadable = store.unreadable_keys();
        let entries = store.entries().filtered(|entry| {
            matches!(entry.record.status, InstallStatus::Corrupt(_))
                || unreadable.contains(&entry.key)
        });
        let damaged = entries.iter().map(|entry| entry.key.clone()).collect();
        let (due, next) = self.repairs.due(damaged, Instant::now());
        for entry in &entries.filtered(|entry| due.contains(&entry.key)) {
            match &entry.record.origin {
                Origin::Dropped { files } => {
                    for file in files.keys() {
                        if let Some((directory, name)) = find_directory(&mut self.directories, file)
                        {
                            directory.scanner.rescan(name);
                        }
                    }
                }
                // The drop directory may hold a copy of a package that an administrator installed.
                Origin::Installed => self.reread_package(entry).await,
                Origin::Bundled { file, .. } => self.bundled.scanner.rescan(file),
            }
        }
        next
    }

    /// Makes the drop scanner read the package of `entry` again, if a drop directory holds it.
    async fn reread_package(&mut self, entry: &StoreEntry) {
        let wanted = entry.record.package_digest;
        for directory in &mut self.directories {
            // An absent file system may not answer.
            if directory.is_further() && !directory.is_present() {
                continue;
            }
            let path = directory.path.clone();
            let copy = run_blocking(move || {
                let names = drop_dir::list(&path).ok()?.into_keys();
                let mut names = names.filter(|name| {
                    drop_dir::digest(&path.join(name)).is_ok_and(|digest| digest == wanted)
                });
                names.next()
            });
            if let Some(Some(name)) = copy.await {
                return directory.scanner.rescan(&name);
            }
        }
    }

    /// Makes the store retry operations that its disk refused, and reports changes of the degraded
    /// conditions to the manager.
    pub(super) async fn report_condition(&mut self) {
        let store = Arc::clone(self.installer.handle().store());
        let looked = run_blocking(move || {
            let found = store.recover();
            (found, store.condition())
        });
        let Some((found, condition)) = looked.await else { return };
        for key in &found {
            log_records::log_readable(key);
        }
        if !found.is_empty() {
            self.installer.handle().notify_store_changed(Vec::new()).await;
        }
        let mut degraded = condition.degraded();
        let main = self.directories.first();
        if main.is_some_and(|directory| !directory.kept_without_file.is_empty()) {
            degraded.push(
                "the drop directory was replaced; models stay without their files".to_owned(),
            );
        }
        if degraded != self.degraded {
            log_records::log_degraded(&degraded);
            self.installer.handle().report_degraded(degraded.clone()).await;
            self.degraded = degraded;
        }
    }

    /// Hashes every installed file. The next round of the main loop repairs the entries that are
    /// found to be corrupt.
    pub(super) async fn validate(&mut self, cancel: &CancellationToken) {
        for entry in &self.installer.handle().store().entries() {
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
        let mut healing = RepairSchedule::default();
        let start = Instant::now();
        assert_eq!(healing.due(Vec::new(), start), (Vec::new(), None));
        let first = healing.due(vec![a.clone()], start);
        assert_eq!(first, (vec![a.clone()], Some(start + REPAIR_INTERVAL)));
        // Damage `a` again at once, and `b` too.
        let second = start + Duration::from_secs(1);
        let both = || vec![a.clone(), b.clone()];
        assert_eq!(healing.due(both(), second), (vec![b.clone()], Some(start + REPAIR_INTERVAL)));
        assert_eq!(healing.due(both(), second), (Vec::new(), Some(start + REPAIR_INTERVAL)));
        let third = start + REPAIR_INTERVAL;
        assert_eq!(healing.due(both(), third), (vec![a.clone()], Some(second + REPAIR_INTERVAL)));
    }
}
