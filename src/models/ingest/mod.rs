//! Turns the packages of the bundled directory and the drop directory into models, and removes a
//! model when its file is removed.
//!
//! A notification only triggers a scan. All decisions follow from the scan of the directory, so
//! that a lost notification costs time and never correctness. The ingester also verifies all
//! installed files on a schedule.

mod bundled;
mod classify;
pub mod install;
mod log_records;
mod missing_files;
mod rejection;
mod repair;
pub mod selftest;
pub mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::base::errors::{chain, errno};
use crate::config::Settings;
use crate::models::ingest::install::{InstallError, Installer};
use crate::package::drop_dir::{self, Capacity, DropScanner, FileFingerprint, ScanResult, Verdict};
use crate::package::{Entries, EntryKey, InstallStatus, Origin, StoreEntry};
use crate::telemetry::log::Message;
use bundled::BundledDirectory;
use classify::{classify, measure_capacity};
use repair::RepairSchedule;

/// Longest time between two scans. It bounds the delay after a lost notification, or on a file
/// system without notifications.
const RESCAN: Duration = Duration::from_secs(30);

/// Settings that the ingester follows while it runs.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// Whether a model is removed from the store when its file is removed from the drop directory.
    pub remove_with_file: bool,
    /// Time for which an incomplete package may stay without growing.
    pub incomplete_timeout: Duration,
    /// Interval at which every installed file is hashed.
    pub validation_interval: Duration,
    /// Whether every installed file is hashed at start, too.
    pub validation_on_startup: bool,
}

impl From<&Settings> for IngestSettings {
    fn from(settings: &Settings) -> Self {
        let cache = &settings.memory.model_cache;
        Self {
            remove_with_file: settings.packages.remove_with_file,
            incomplete_timeout: settings.packages.incomplete_timeout,
            validation_interval: cache.validation_interval,
            validation_on_startup: cache.validation_on_startup,
        }
    }
}

/// Events that order the start of the daemon and of the ingester: available models are served
/// before new packages are tested.
#[derive(Clone, Debug, Default)]
pub struct StartSignals {
    /// Cancelled when the default model can be used, or when no bundled package provides it.
    pub default_available: CancellationToken,
    /// Cancelled when the daemon has notified systemd that it is ready.
    pub daemon_ready: CancellationToken,
}

/// State of the ingester. See the module.
pub struct Ingester {
    installer: Installer,
    schedule: watch::Receiver<IngestSettings>,
    bundled: BundledDirectory,
    drop_directory: PathBuf,
    scanner: DropScanner,
    /// Whether the drop directory could not be read. The failure is logged once, not at every scan.
    is_unreadable: bool,
    /// Files that `bundled_only` excludes. Each is logged once.
    excluded: BTreeSet<String>,
    /// Notified by the store when an entry is damaged or the disk fails.
    store_changed: Arc<Notify>,
    repairs: RepairSchedule,
    /// Files that are missing, but were seen in another directory than the current drop directory,
    /// and the models that stay without them. Each pair is logged once.
    kept_without_file: BTreeSet<(String, EntryKey)>,
    /// Degraded conditions that were reported to the manager last.
    degraded: Vec<String>,
}

impl Ingester {
    /// Creates an ingester for the two directories.
    pub fn new(
        installer: Installer,
        schedule: watch::Receiver<IngestSettings>,
        bundled_directory: PathBuf,
        drop_directory: PathBuf,
    ) -> Self {
        let attention = Arc::new(Notify::new());
        let called = Arc::clone(&attention);
        installer.handle().store().on_attention(move || called.notify_one());
        Self {
            installer,
            schedule,
            bundled: BundledDirectory::new(bundled_directory),
            drop_directory,
            scanner: DropScanner::default(),
            is_unreadable: false,
            excluded: BTreeSet::new(),
            store_changed: attention,
            repairs: RepairSchedule::default(),
            kept_without_file: BTreeSet::new(),
            degraded: Vec::new(),
        }
    }

    /// Finishes installations that a crash interrupted, and installs new packages of the bundled
    /// directory. Then every bundled model can be loaded.
    ///
    /// Takes as long as unpacking and testing the new packages.
    async fn prepare(&mut self) {
        let entries = self.installer.handle().store().entries();
        for entry in entries.iter().filter(|entry| entry.record.status == InstallStatus::Untested) {
            if entry.record.is_given_up() {
                self.quarantine_untested(entry).await;
                continue;
            }
            match self.installer.finish(entry.key.clone()).await {
                Ok(removed) => {
                    tracing::info!(
                        name: Message::PackageAccepted.name(),
                        model = %entry.key,
                        "interrupted installation finished"
                    );
                    log_records::log_displaced(&removed);
                }
                Err(InstallError::Stopping) => return,
                Err(error) => {
                    tracing::error!(
                        name: Message::PackageRefused.name(),
                        model = %entry.key, reason = chain(&error),
                        "interrupted installation failed"
                    );
                    // Quarantine the files now. Otherwise the package would be read again and
                    // rejected again.
                    if let (Verdict::Refused(reason), Origin::Dropped { files }) =
                        (classify(&error), &entry.record.origin)
                    {
                        self.quarantine_files(files, &reason).await;
                    }
                }
            }
        }
        self.install_bundled().await;
        let now = Instant::now();
        let entries = self.installer.handle().store().entries();
        // In this order, the latest installation from a file overrides earlier ones in the map
        // below.
        let mut by_time = Vec::from_iter(&entries);
        by_time.sort_by_key(|entry| entry.record.installed_at);
        let mut dropped = BTreeMap::new();
        for entry in by_time {
            // The file of a quarantined entry could not be moved away. Remember it, so that it is
            // not read again.
            if let Origin::Dropped { files } = &entry.record.origin
                && matches!(
                    entry.record.status,
                    InstallStatus::Available | InstallStatus::Quarantined(_)
                )
            {
                for (file, fingerprint) in files {
                    dropped.insert(file.clone(), (fingerprint.clone(), entry.key.clone()));
                }
            }
        }
        for (file, (fingerprint, key)) in dropped {
            // A crash may have happened between the installation of a package and the removal of
            // its predecessor.
            self.detach_from_others(&file, Some(&key), fingerprint.directory_id()).await;
            self.scanner.record_installed(&file, fingerprint, now);
        }
    }

    /// Runs the ingester until `cancel`.
    ///
    /// Installs the bundled default model if it is missing, and cancels `start.default_available`.
    /// Handles all other packages when the daemon is ready. Then scans both directories at each
    /// tick of `ticks`, and hashes all installed files on schedule. `take_completed` returns the
    /// names of files that are known to be complete: the scan does not wait until they stop
    /// changing.
    pub async fn run(
        mut self,
        mut ticks: mpsc::Receiver<()>,
        take_completed: impl Fn() -> BTreeSet<String>,
        start: StartSignals,
        cancel: CancellationToken,
    ) {
        let started = async {
            self.install_default().await;
            start.default_available.cancel();
            start.daemon_ready.cancelled().await;
            self.prepare().await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = started => {}
        }
        tracing::debug!("every bundled package was examined");
        let mut validate_at = match self.schedule.borrow().validation_on_startup {
            true => Instant::now(),
            false => Instant::now() + self.schedule.borrow().validation_interval,
        };
        loop {
            let heal_at = self.repair().await;
            let bundled_at = self.scan_bundled().await;
            self.scanner.mark_complete(take_completed());
            let mut next = self.scan().await;
            self.report_condition().await;
            if Instant::now() >= validate_at {
                self.validate(&cancel).await;
                validate_at = Instant::now() + self.schedule.borrow().validation_interval;
                next = Some(Instant::now());
            }
            let rescan = Instant::now() + RESCAN;
            let due = [next, heal_at, bundled_at].into_iter().flatten();
            let wake = due.chain([rescan, validate_at]).min().unwrap_or(rescan);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(wake.into()) => {}
                tick = ticks.recv() => if tick.is_none() { return },
                () = self.store_changed.notified() => {}
                // A reload may have allowed excluded packages. The rules are sent before the
                // schedule, so they are current here.
                Ok(()) = self.schedule.changed() => {}
            }
        }
    }

    /// Scans the drop directory. Returns the time of the next scan if no notification arrives
    /// before.
    async fn scan(&mut self) -> Option<Instant> {
        let directory = self.drop_directory.clone();
        let (place, listing) =
            match run_blocking(move || drop_dir::list_with_id(&directory)).await? {
                Ok(found) => found,
                Err(error) => {
                    if !std::mem::replace(&mut self.is_unreadable, true) {
                        log_records::log_unreadable("drop directory cannot be read", &error);
                    }
                    return None;
                }
            };
        self.is_unreadable = false;
        if self.installer.rules().bundled_only {
            self.exclude(listing.into_keys().collect());
            return None;
        }
        self.excluded.clear();
        self.record_directories(&listing).await;
        let timeout = self.schedule.borrow().incomplete_timeout;
        let capacity = self.capacity().await?;
        let ScanResult { ready, refused, removed, next } =
            self.scanner.observe(listing, timeout, &capacity, Instant::now());
        let left = !removed.is_empty();
        for name in removed {
            self.on_missing_file(&name, &place).await;
        }
        for (name, fingerprint, reason) in refused {
            self.quarantine(name, fingerprint, reason).await;
        }
        let tried = !ready.is_empty();
        for (name, fingerprint) in ready {
            self.install(name, fingerprint).await;
        }
        // Scan again at once: a verdict may have set a new time, and a removed model leaves space.
        if tried || left { Some(Instant::now()) } else { next }
    }

    /// Measures the capacity of the appliance. Returns `None` if the runtime is shutting down.
    async fn capacity(&self) -> Option<Capacity> {
        let (handle, rules) = (self.installer.handle().clone(), self.installer.rules());
        run_blocking(move || measure_capacity(&handle, rules)).await
    }

    fn exclude(&mut self, files: BTreeSet<String>) {
        for file in files.difference(&self.excluded) {
            tracing::warn!(
                name: Message::PackageKeptOut.name(),
                file,
                "package not installed: memory.model_cache.bundled_only is true"
            );
        }
        self.excluded = files;
    }

    async fn install(&mut self, file: String, fingerprint: FileFingerprint) {
        let (directory, name) = (self.drop_directory.clone(), file.clone());
        // A file that cannot be examined cannot be opened either. The installation below reports
        // that error.
        let Some(fault) = run_blocking(move || drop_dir::invalid_reason(&directory, &name)).await
        else {
            return;
        };
        if let Ok(Some(reason)) = fault {
            self.scanner.record_result(
                &file,
                &fingerprint,
                Verdict::Refused(reason),
                Instant::now(),
            );
            return;
        }
        let origin = Origin::dropped(file.clone(), fingerprint.clone());
        let path = self.drop_directory.join(&file);
        let error = match self.installer.install_file(path, origin).await {
            Ok(installed) => {
                log_records::log_installed(&file, &installed);
                let key = &installed.entry.key;
                self.detach_from_others(&file, Some(key), fingerprint.directory_id()).await;
                self.scanner.record_result(&file, &fingerprint, Verdict::Accepted, Instant::now());
                return;
            }
            Err(error) => error,
        };
        let verdict = classify(&error);
        let is_news =
            self.scanner.record_result(&file, &fingerprint, verdict.clone(), Instant::now());
        match verdict {
            Verdict::Incomplete(reason) => {
                tracing::info!(
                    name: Message::PackageIncomplete.name(),
                    file, reason,
                    "package is incomplete; waiting for the rest"
                );
            }
            Verdict::Failed { reason, .. } if is_news => {
                tracing::error!(
                    name: Message::PackageNotInstalled.name(),
                    file, reason, errno = errno(&error),
                    "package cannot be installed now"
                );
            }
            _ => {}
        }
    }

    /// Detaches the file `name`, as seen in the directory `place`, from all models except `except`.
    /// Models without another file are removed if `remove_with_file` is set.
    async fn detach_from_others(&self, name: &str, except: Option<&EntryKey>, place: Option<&str>) {
        let removes = self.schedule.borrow().remove_with_file;
        for StoreEntry { key, record, .. } in &self.entries_of_file(name) {
            let Origin::Dropped { files } = &record.origin else { continue };
            let is_of_place = files.get(name).is_some_and(|known| known.directory_id() == place);
            if Some(key) == except || !is_of_place {
                continue;
            }
            if removes {
                self.remove_if_only_file(name, key).await;
            } else {
                self.detach(key, name).await;
            }
        }
    }

    /// Removes a model if `name` is its only file.
    async fn remove_if_only_file(&self, name: &str, key: &EntryKey) {
        match self.installer.remove_with_file(key.clone(), name.to_owned()).await {
            Some(Ok(true)) => log_records::log_kept(name, key, "model stays: it has another file"),
            Some(Ok(false)) => log_records::log_removed(name, key, "model removed with its file"),
            Some(Err(error)) => {
                log_records::log_store_error(key, &error, "model cannot be removed");
            }
            None => {}
        }
    }

    /// Returns the models that came with the file `name`, possibly with other files too.
    fn entries_of_file(&self, name: &str) -> Entries {
        self.installer.handle().store().entries().filtered(|entry| match &entry.record.origin {
            Origin::Dropped { files } => files.contains_key(name),
            _ => false,
        })
    }

    /// Detaches the file `name` from a model. Returns whether the model stays without the file.
    async fn detach(&self, key: &EntryKey, name: &str) -> bool {
        match self.installer.detach_from_file(key.clone(), name.to_owned()).await {
            Some(Ok(stays)) => {
                if stays {
                    log_records::log_kept(name, key, "model stays: it has another file");
                }
                stays
            }
            Some(Err(error)) => {
                log_records::log_store_error(key, &error, "model cannot be detached from a file");
                true
            }
            None => true,
        }
    }

    async fn discard(&self, key: EntryKey) {
        if let Some(Err(error)) = self.installer.discard(key.clone()).await {
            log_records::log_store_error(&key, &error, "model cannot be removed");
        }
    }
}

/// Runs `work`, which accesses the disk, on the blocking pool. Returns `None` if it panicked or the
/// runtime is shutting down.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "task for the drop directory did not finish"
        )
    })
    .ok()
}
