//! Turns the packages of the bundled directory and the drop directories into models, and removes a
//! model when its file is removed.
//!
//! A notification only triggers a scan. All decisions follow from the scan of the directory, so
//! that a lost notification costs time and never correctness. The ingester also verifies all
//! installed files on a schedule.

mod bundled;
mod classify;
mod drop_directory;
pub mod install;
pub mod intake;
mod log_records;
mod missing_files;
mod rejection;
mod repair;
pub mod selftest;
pub mod trust;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::base::errors::{chain, errno};
use crate::config::Settings;
use crate::models::ingest::install::{InstallError, InstallProgress, Installer};
use crate::package::drop_dir::{
    self, Capacity, DirectoryListing, FileFingerprint, ScanResult, Verdict,
};
use crate::package::{EntryKey, InstallStatus, Origin};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;
use bundled::BundledDirectory;
use classify::{classify, measure_capacity};
pub use drop_directory::DropDirectory;
use intake::{Intake, IntakePublisher};
use repair::RepairSchedule;
use upkeep::Upkeep;

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
    /// The drop directories in the order of their scans, the main one first. Empty while they are
    /// scanned.
    directories: Vec<DropDirectory>,
    intake: IntakePublisher,
    /// Notified by the store when an entry is damaged or the disk fails.
    store_changed: Arc<Notify>,
    repairs: RepairSchedule,
    upkeep: Upkeep,
    /// Degraded conditions that were reported to the manager last.
    degraded: Vec<String>,
}

impl Ingester {
    /// Creates an ingester for the bundled directory and the drop directories, which are scanned in
    /// this order. The first one is the main drop directory.
    pub fn new(
        installer: Installer,
        schedule: watch::Receiver<IngestSettings>,
        bundled_directory: PathBuf,
        mut directories: Vec<DropDirectory>,
    ) -> Self {
        let attention = Arc::new(Notify::new());
        let called = Arc::clone(&attention);
        installer.handle().store().on_attention(move || called.notify_one());
        for (number, directory) in directories.iter_mut().enumerate() {
            directory.number = number;
        }
        let intake = IntakePublisher::new(installer.handle().events().clone());
        Self {
            installer,
            schedule,
            bundled: BundledDirectory::new(bundled_directory, directories.len()),
            directories,
            intake,
            store_changed: attention,
            repairs: RepairSchedule::default(),
            upkeep: Upkeep::default(),
            degraded: Vec::new(),
        }
    }

    /// Returns a channel with the packages on their way.
    pub fn intake(&self) -> watch::Receiver<Arc<Intake>> {
        self.intake.subscribe()
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
        let mut directories = mem::take(&mut self.directories);
        for (file, (fingerprint, key)) in dropped {
            // A file of a directory that is not configured any more is left alone.
            let Some((directory, name)) = find_directory(&mut directories, &file) else { continue };
            // A crash may have happened between the installation of a package and the removal of
            // its predecessor.
            let place = fingerprint.directory_id().map(str::to_owned);
            self.detach_from_others(directory, name, Some(&key), place.as_deref()).await;
            directory.scanner.record_installed(name, fingerprint, now);
        }
        self.directories = directories;
    }

    /// Runs the ingester until `cancel`.
    ///
    /// Installs the bundled default model if it is missing, and cancels `start.default_available`.
    /// Handles all other packages when the daemon is ready. Then scans all directories at each tick
    /// of `ticks`, and hashes all installed files on schedule.
    pub async fn run(
        mut self,
        mut ticks: mpsc::Receiver<()>,
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
        let mut is_validation_due = self.schedule.borrow().validation_on_startup;
        // The interval counts from the last validation, or from the start. It is added at each
        // iteration, because a reload may have changed it.
        let mut validated_at = Instant::now();
        loop {
            self.report_corrupt().await;
            self.clean_up().await;
            let heal_at = self.repair().await;
            let bundled_at = self.scan_bundled().await;
            let mut next = self.scan_all().await;
            self.report_condition().await;
            is_validation_due |= Instant::now() >= validated_at + self.validation_interval();
            if mem::take(&mut is_validation_due) {
                self.validate(&cancel).await;
                validated_at = Instant::now();
                next = Some(validated_at);
            }
            let validate_at = validated_at + self.validation_interval();
            let left = validate_at.saturating_duration_since(Instant::now());
            self.installer.handle().set_next_validation(left);
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

    fn validation_interval(&self) -> Duration {
        self.schedule.borrow().validation_interval
    }

    /// Scans the drop directories one after another. Returns the time of the next scan if no
    /// notification arrives before.
    async fn scan_all(&mut self) -> Option<Instant> {
        let mut directories = mem::take(&mut self.directories);
        let mut next = None;
        for directory in &mut directories {
            let due = self.scan(directory).await;
            self.report_intake(directory, None);
            next = next.into_iter().chain(due).min();
        }
        self.directories = directories;
        next
    }

    /// Scans a drop directory. Returns the time of the next scan if no notification arrives before.
    async fn scan(&mut self, directory: &mut DropDirectory) -> Option<Instant> {
        tracing::debug!(directory = %directory.path.display(), "drop directory is scanned");
        directory.take_completed();
        let DirectoryListing { place, packages, others } = match directory.list().await? {
            Ok(listing) => listing,
            Err(error) => {
                directory.on_unreadable(&error);
                return None;
            }
        };
        directory.on_readable();
        let others_at = directory.mention_others(others, Instant::now());
        if self.installer.rules().bundled_only {
            exclude(directory, packages.into_keys().collect());
            return others_at;
        }
        directory.excluded.clear();
        self.record_directories(directory, &packages).await;
        let mut has_removed = self.retry_detaching(directory, &packages, &place).await;
        let timeout = self.schedule.borrow().incomplete_timeout;
        let capacity = self.capacity().await?;
        let ScanResult { ready, refused, removed, next } =
            directory.scanner.observe(packages, timeout, &capacity, Instant::now());
        for name in removed {
            has_removed |= self.on_missing_file(directory, &name, &place).await;
        }
        for (name, fingerprint, reason) in refused {
            self.quarantine(directory, name, fingerprint, reason).await;
        }
        let tried = !ready.is_empty();
        for (name, fingerprint) in ready {
            self.install(directory, name, fingerprint).await;
        }
        // Scan again at once: a verdict may have set a new time, and a removed model leaves space.
        // A missing file whose models stay does not count: each scan reports it again.
        match tried || has_removed {
            true => Some(Instant::now()),
            false => next.into_iter().chain(others_at).min(),
        }
    }

    /// Measures the capacity of the appliance. Returns `None` if the runtime is shutting down.
    async fn capacity(&self) -> Option<Capacity> {
        let (handle, rules) = (self.installer.handle().clone(), self.installer.rules());
        run_blocking(move || measure_capacity(&handle, rules)).await
    }

    async fn install(
        &mut self,
        directory: &mut DropDirectory,
        name: String,
        fingerprint: FileFingerprint,
    ) {
        let (path, checked) = (directory.path.clone(), name.clone());
        // A file that cannot be examined cannot be opened either. The installation below reports
        // that error.
        let Some(fault) = run_blocking(move || drop_dir::invalid_reason(&path, &checked)).await
        else {
            return;
        };
        if let Ok(Some(reason)) = fault {
            directory.scanner.record_result(
                &name,
                &fingerprint,
                Verdict::Refused(reason),
                Instant::now(),
            );
            return;
        }
        if directory.scanner.has_failed(&name) {
            self.intake.count_retry();
        }
        let progress = InstallProgress::default();
        self.report_intake(directory, Some((&name, &progress)));
        let file = directory.file(&name);
        let origin = Origin::dropped(file.clone(), fingerprint.clone());
        let path = directory.path.join(&name);
        let error = match self.installer.install_file(path, origin, progress).await {
            Ok(installed) => {
                log_records::log_installed(&file, &installed);
                let key = Some(&installed.entry.key);
                let place = fingerprint.directory_id();
                self.detach_from_others(directory, &name, key, place).await;
                let now = Instant::now();
                directory.scanner.record_result(&name, &fingerprint, Verdict::Accepted, now);
                return;
            }
            Err(error) => error,
        };
        let verdict = classify(&error);
        let is_news =
            directory.scanner.record_result(&name, &fingerprint, verdict.clone(), Instant::now());
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

    /// Logs and publishes that a model was removed because of `file`.
    fn report_removed(&self, file: &str, key: &EntryKey, why: &'static str) {
        log_records::log_removed(file, key, why);
        self.installer.handle().events().publish(Event::PackageRemoved {
            model: key.name().to_owned(),
            reason: format!("{why}: {file}"),
        });
    }

    async fn discard(&self, key: EntryKey) {
        if let Some(Err(error)) = self.installer.discard(key.clone()).await {
            log_records::log_store_error(&key, &error, "model cannot be removed");
        }
    }
}

/// Returns the directory of a file that a record names, and the name of the file there.
fn find_directory<'d, 'f>(
    directories: &'d mut [DropDirectory],
    file: &'f str,
) -> Option<(&'d mut DropDirectory, &'f str)> {
    directories.iter_mut().find_map(|directory| {
        let name = directory.name_of(file)?;
        Some((directory, name))
    })
}

/// Remembers the `files` that `bundled_only` excludes, and logs each new one.
fn exclude(directory: &mut DropDirectory, files: BTreeSet<String>) {
    for name in files.difference(&directory.excluded) {
        tracing::warn!(
            name: Message::PackageKeptOut.name(),
            file = directory.file(name),
            "package not installed: memory.model_cache.bundled_only is true"
        );
    }
    directory.excluded = files;
}

/// Runs `work`, which accesses the disk, on the blocking pool. Returns `None` if it panicked or the
/// runtime is shutting down.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.inspect_err(log_records::log_lost_task).ok()
}
