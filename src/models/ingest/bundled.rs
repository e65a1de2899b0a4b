//! Installs the packages of the bundled directory, and removes models whose files an upgrade of the
//! appliance has removed.
//!
//! The directory has a drop scanner of its own ([`DropScanner`]): a package that cannot be
//! installed now is retried in the same way as one of the drop directory. Files of this directory
//! are never moved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use super::classify::classify;
use super::intake::{DirectoryReport, DirectoryState, IntakePart, MAX_REPORTED};
use super::{Ingester, log_records, run_blocking};
use crate::base::errors::{chain, errno};
use crate::models::ingest::install::{InstallError, InstallProgress};
use crate::package::drop_dir::{
    self, DropScanner, FileFingerprint, LAST_RETRY, MissingResource, ScanResult, Verdict,
};
use crate::package::{InstallStatus, Origin};
use crate::telemetry::log::Message;

/// Bundled directory and the state of its files.
#[derive(Debug)]
pub(super) struct BundledDirectory {
    pub(super) directory: PathBuf,
    pub(super) scanner: DropScanner,
    /// Position after the drop directories in the report of packages on their way.
    number: usize,
    /// Whether the directory could not be read. The failure is logged once, not at every scan.
    is_unreadable: bool,
}

impl BundledDirectory {
    pub(super) fn new(directory: PathBuf, number: usize) -> Self {
        Self { directory, scanner: DropScanner::default(), number, is_unreadable: false }
    }
}

impl Ingester {
    /// Installs packages of the bundled directory until the default model can be used. Does nothing
    /// if it can be used already.
    pub(super) async fn install_default(&mut self) {
        let handle = self.installer.handle().clone();
        let default = handle.default_model();
        let is_usable = || {
            let entries = handle.store().entries();
            entries
                .resolve(&default)
                .is_some_and(|entry| entry.record.status == InstallStatus::Available)
        };
        if is_usable() {
            return;
        }
        let Some((ready, _next)) = self.due_bundled(true).await else { return };
        let id = default.split('@').next().unwrap_or_default();
        let (likely, others): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|(file, _)| file.starts_with(id));
        for (file, fingerprint) in likely.into_iter().chain(others) {
            self.install_bundled_file(&file, &fingerprint).await;
            if is_usable() {
                return;
            }
        }
    }

    /// Installs the new, corrupt or unreadable packages of the bundled directory. Then removes the
    /// models that an upgrade of the appliance has removed.
    pub(super) async fn install_bundled(&mut self) {
        let Some((ready, _next)) = self.due_bundled(true).await else { return };
        for (file, fingerprint) in ready {
            self.install_bundled_file(&file, &fingerprint).await;
        }
        if let Some(listing) = self.list_bundled().await {
            self.remove_outdated(&listing).await;
        }
    }

    /// Scans the bundled directory. Returns the time of the next scan if no notification arrives
    /// before.
    pub(super) async fn scan_bundled(&mut self) -> Option<Instant> {
        let Some((ready, next)) = self.due_bundled(false).await else {
            self.report_bundled(None);
            return None;
        };
        let tried = !ready.is_empty();
        for (file, fingerprint) in ready {
            self.install_bundled_file(&file, &fingerprint).await;
        }
        self.report_bundled(None);
        if tried { Some(Instant::now()) } else { next }
    }

    /// Returns the packages that are to be installed now, and the time at which the next one is
    /// due.
    ///
    /// `are_complete` means that new files need not settle: the appliance wrote them before it
    /// started the daemon.
    async fn due_bundled(
        &mut self,
        are_complete: bool,
    ) -> Option<(Vec<(String, FileFingerprint)>, Option<Instant>)> {
        let listing = self.list_bundled().await?;
        let capacity = self.capacity().await?;
        let ledger = &mut self.bundled.scanner;
        if are_complete {
            ledger.mark_complete(listing.keys().cloned().collect());
        }
        let ScanResult { ready, next, .. } =
            ledger.observe(listing, LAST_RETRY, &capacity, Instant::now());
        Some((ready, next))
    }

    async fn list_bundled(&mut self) -> Option<BTreeMap<String, FileFingerprint>> {
        let directory = self.bundled.directory.clone();
        let listing = run_blocking(move || drop_dir::list(&directory)).await?;
        let was_unreadable = std::mem::replace(&mut self.bundled.is_unreadable, listing.is_err());
        if let Err(error) = &listing
            && !was_unreadable
        {
            log_records::log_unreadable("bundled directory cannot be read", error);
        }
        listing.ok()
    }

    /// Installs a bundled package, unless exactly this file is installed and readable, or
    /// quarantined.
    async fn install_bundled_file(&mut self, file: &str, fingerprint: &FileFingerprint) {
        let origin = Origin::Bundled { file: file.to_owned(), fingerprint: fingerprint.clone() };
        let error = match self.is_bundled_known(&origin) {
            true => None,
            false => {
                if self.bundled.scanner.has_failed(file) {
                    self.intake.count_retry();
                }
                let path = self.bundled.directory.join(file);
                let progress = InstallProgress::default();
                self.report_bundled(Some((file, &progress)));
                let installed = self.installer.install_file(path, origin, progress).await;
                installed.map(|installed| log_records::log_installed(file, &installed)).err()
            }
        };
        let verdict = match &error {
            None => Verdict::Accepted,
            Some(InstallError::Stopping) => return,
            Some(error) => classify_bundled(error),
        };
        let is_refused = matches!(verdict, Verdict::Ignored(_));
        let is_news =
            self.bundled.scanner.record_result(file, fingerprint, verdict, Instant::now());
        self.report_bundled(None);
        let Some(error) = error else { return };
        let reason = chain(&error);
        if is_refused {
            tracing::error!(
                name: Message::PackageRefused.name(),
                file, reason, errno = errno(&error),
                "bundled package refused"
            );
            self.publish_rejected(file, reason);
        } else if is_news {
            tracing::error!(
                name: Message::PackageNotInstalled.name(),
                file, reason, errno = errno(&error),
                "bundled package cannot be installed now"
            );
        }
    }

    /// Publishes the state of the bundled packages. `reading` is the file that is being installed.
    fn report_bundled(&mut self, reading: Option<(&str, &InstallProgress)>) {
        let BundledDirectory { directory, scanner, number, is_unreadable } = &self.bundled;
        let state = match is_unreadable {
            true => DirectoryState::Unreadable("the journal has the reason".to_owned()),
            false => DirectoryState::Present,
        };
        let report = DirectoryReport { path: directory.clone(), state };
        let part = IntakePart::new(report, scanner.pending(MAX_REPORTED), reading);
        self.intake.update(*number, part);
    }

    fn is_bundled_known(&self, origin: &Origin) -> bool {
        let store = self.installer.handle().store();
        let unreadable = store.unreadable_keys();
        store.entries().iter().any(|entry| {
            entry.record.origin == *origin
                && matches!(
                    entry.record.status,
                    InstallStatus::Available | InstallStatus::Quarantined(_)
                )
                && !unreadable.contains(&entry.key)
        })
    }

    /// Removes the models whose files an upgrade of the appliance has removed or replaced. A model
    /// whose file was replaced stays until the new package is installed.
    async fn remove_outdated(&self, listing: &BTreeMap<String, FileFingerprint>) {
        // If no file matches an installed model, assume that the file system is not mounted. An
        // upgrade would leave at least one package.
        let entries = self.installer.handle().store().entries();
        let current: BTreeSet<_> = entries
            .iter()
            .filter(|entry| entry.record.status.is_tested())
            .filter_map(|entry| match &entry.record.origin {
                Origin::Bundled { file, fingerprint } => {
                    (listing.get(file) == Some(fingerprint)).then_some(file)
                }
                _ => None,
            })
            .collect();
        let mut stay = 0;
        for entry in &entries {
            if let Origin::Bundled { file, fingerprint } = &entry.record.origin
                && listing.get(file) != Some(fingerprint)
                && (current.contains(file) || !listing.contains_key(file))
            {
                if current.is_empty() {
                    stay += 1;
                    continue;
                }
                self.report_removed(
                    file,
                    &entry.key,
                    "model removed: the appliance no longer contains its package",
                );
                self.discard(entry.key.clone()).await;
            }
        }
        if stay > 0 {
            log_records::log_bundled_missing(&self.bundled.directory, stay);
        }
    }
}

/// Classifies an error of the installation of a bundled package. The file of a rejected package is
/// not moved.
fn classify_bundled(error: &InstallError) -> Verdict {
    match (classify(error), error) {
        (failed @ Verdict::Failed { .. }, _) => failed,
        // The store allows another attempt later.
        (_, InstallError::NoUnpackAttemptsLeft) => {
            Verdict::Failed { reason: chain(error), lack: MissingResource::Other }
        }
        _ => Verdict::Ignored(chain(error)),
    }
}
