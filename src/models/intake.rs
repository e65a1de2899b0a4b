//! The intake: packages of the bundled and the drop directory become models, and leave when their files leave.
//!
//! Owns the drop directory's ledger and the schedule of validations. Every event is only a reason to look: a look
//! at the directory decides, so that a lost event costs time, never correctness.

mod bundled;
mod healing;
mod places;
mod records;
mod refusal;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::install::{InstallError, Installer};
use crate::config::Settings;
use crate::errors::{chain, errno};
use crate::log::Message;
use crate::package::drop::{self, Capacity, Fingerprint, Ledger, Round, Verdict};
use crate::package::{Entry, Key, Origin, Status};
use bundled::Bundled;
use healing::Healing;
use verdict::{capacity, judge};

/// A look without an event: bounds what a lost or impossible notification costs.
const RESCAN: Duration = Duration::from_secs(30);

/// The part of the settings that the intake follows while it runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Whether a model leaves the store when its file leaves the drop directory.
    pub remove_with_file: bool,
    /// How long a half-copied package may stay without growing.
    pub incomplete_timeout: Duration,
    /// How often every installed file is hashed again.
    pub validation_interval: Duration,
    /// Whether that happens at start, too.
    pub validation_on_startup: bool,
}

impl From<&Settings> for Schedule {
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

/// What the intake and the start of the daemon wait for: models that are available are served before anything is
/// tested.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Cancelled when the default model can be used, or no bundled package gives it.
    pub default_is_there: CancellationToken,
    /// Cancelled when the daemon has said that it is ready.
    pub is_ready: CancellationToken,
}

/// The intake's own state; see the module.
pub struct Intake {
    installer: Installer,
    schedule: watch::Receiver<Schedule>,
    bundled: Bundled,
    drop_directory: PathBuf,
    ledger: Ledger,
    /// Said once, not at every look.
    unreadable: bool,
    /// Files that `bundled_only` keeps out; said once each.
    kept_out: BTreeSet<String>,
    /// The store calls: an entry is damaged, or the disk fails.
    attention: Arc<Notify>,
    healing: Healing,
    /// Files that are missing from another drop directory than the one that they were seen in, and the models that stay
    /// without them; said once each.
    held: BTreeSet<(String, Key)>,
    /// What the manager was told last of what is degraded.
    degraded: Vec<String>,
}

impl Intake {
    /// An intake for these two directories.
    pub fn new(
        installer: Installer,
        schedule: watch::Receiver<Schedule>,
        bundled_directory: PathBuf,
        drop_directory: PathBuf,
    ) -> Self {
        let attention = Arc::new(Notify::new());
        let called = Arc::clone(&attention);
        installer.handle().store().on_attention(move || called.notify_one());
        Self {
            installer,
            schedule,
            bundled: Bundled::new(bundled_directory),
            drop_directory,
            ledger: Ledger::default(),
            unreadable: false,
            kept_out: BTreeSet::new(),
            attention,
            healing: Healing::default(),
            held: BTreeSet::new(),
            degraded: Vec::new(),
        }
    }

    /// Finishes what a crash interrupted, and installs what is new in the bundled directory.
    ///
    /// Afterwards every bundled model can be loaded. Takes as long as unpacking and testing what is new.
    async fn prepare(&mut self) {
        let entries = self.installer.handle().store().entries();
        for entry in entries.iter().filter(|entry| entry.record.status == Status::Untested) {
            if entry.record.is_given_up() {
                self.give_up(entry).await;
                continue;
            }
            match self.installer.finish(entry.key.clone()).await {
                Ok(removed) => {
                    tracing::info!(
                        name: Message::PackageAccepted.name(),
                        model = %entry.key,
                        "finished its installation"
                    );
                    records::left(&removed);
                }
                Err(InstallError::Stopping) => return,
                Err(error) => {
                    tracing::error!(
                        name: Message::PackageRefused.name(),
                        model = %entry.key, reason = chain(&error),
                        "its installation could not be finished"
                    );
                    // Not read once more, to be refused once more.
                    if let (Verdict::Refused(reason), Origin::Dropped { files }) =
                        (judge(&error), &entry.record.origin)
                    {
                        self.quarantine_files(files, &reason).await;
                    }
                }
            }
        }
        self.install_bundled().await;
        let now = Instant::now();
        let mut entries = self.installer.handle().store().entries();
        entries.sort_by_key(|entry| entry.record.installed_at);
        let mut dropped = BTreeMap::new();
        for entry in entries {
            // The file of a quarantined entry could not be moved away: it is not to be read again either.
            if let Origin::Dropped { files } = entry.record.origin
                && matches!(entry.record.status, Status::Available | Status::Quarantined(_))
            {
                for (file, fingerprint) in files {
                    dropped.insert(file, (fingerprint, entry.key.clone()));
                }
            }
        }
        for (file, (fingerprint, key)) in dropped {
            // A crash may have come between a package and what it replaces.
            self.discard_dropped(&file, Some(&key), fingerprint.place()).await;
            self.ledger.remember(&file, fingerprint, now);
        }
    }

    /// Installs the bundled default model if there is none, and says so in `start`; takes up everything else when the
    /// daemon is ready. Then looks at both directories whenever `ticks` says so, without waiting for files
    /// whose names `take_completed` gives, and validates on schedule, until `cancel`.
    pub async fn run(
        mut self,
        mut ticks: mpsc::Receiver<()>,
        take_completed: impl Fn() -> BTreeSet<String>,
        start: Start,
        cancel: CancellationToken,
    ) {
        let started = async {
            self.install_default().await;
            start.default_is_there.cancel();
            start.is_ready.cancelled().await;
            self.prepare().await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = started => {}
        }
        tracing::debug!("looked at every bundled package");
        let mut validate_at = match self.schedule.borrow().validation_on_startup {
            true => Instant::now(),
            false => Instant::now() + self.schedule.borrow().validation_interval,
        };
        loop {
            let heal_at = self.heal().await;
            let bundled_at = self.look_at_bundled().await;
            self.ledger.complete(take_completed());
            let mut next = self.look().await;
            self.tell_condition().await;
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
                () = self.attention.notified() => {}
                // What was kept out may be let in now. The rules change before the schedule does.
                Ok(()) = self.schedule.changed() => {}
            }
        }
    }

    /// One look at the drop directory; returns when the next is due even if nothing happens.
    async fn look(&mut self) -> Option<Instant> {
        let directory = self.drop_directory.clone();
        let (place, listing) = match off_runtime(move || drop::look(&directory)).await? {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    records::unreadable("the drop directory cannot be read", &error);
                }
                return None;
            }
        };
        self.unreadable = false;
        if self.installer.rules().bundled_only {
            self.keep_out(listing.into_keys().collect());
            return None;
        }
        self.kept_out.clear();
        self.remember_places(&listing).await;
        let timeout = self.schedule.borrow().incomplete_timeout;
        let capacity = self.capacity().await?;
        let Round { ready, refused, gone, next } =
            self.ledger.observe(listing, timeout, &capacity, Instant::now());
        let left = !gone.is_empty();
        for name in gone {
            self.missing(&name, &place).await;
        }
        for (name, fingerprint, reason) in refused {
            self.quarantine(name, fingerprint, reason).await;
        }
        let tried = !ready.is_empty();
        for (name, fingerprint) in ready {
            self.attempt(name, fingerprint).await;
        }
        // A verdict may have set a new time to look, and a model that left makes room.
        if tried || left { Some(Instant::now()) } else { next }
    }

    /// Returns what the appliance can take now; `None` when the runtime is going down.
    async fn capacity(&self) -> Option<Capacity> {
        let (handle, rules) = (self.installer.handle().clone(), self.installer.rules());
        off_runtime(move || capacity(&handle, rules)).await
    }

    fn keep_out(&mut self, files: BTreeSet<String>) {
        for file in files.difference(&self.kept_out) {
            tracing::warn!(
                name: Message::PackageKeptOut.name(),
                file,
                "not installed: memory.model_cache.bundled_only is set"
            );
        }
        self.kept_out = files;
    }

    async fn attempt(&mut self, file: String, fingerprint: Fingerprint) {
        let (directory, name) = (self.drop_directory.clone(), file.clone());
        // What cannot be examined cannot be opened either, and is told then.
        let Some(fault) = off_runtime(move || drop::fault(&directory, &name)).await else { return };
        if let Ok(Some(reason)) = fault {
            self.ledger.judge(&file, &fingerprint, Verdict::Refused(reason), Instant::now());
            return;
        }
        let origin = Origin::dropped(file.clone(), fingerprint.clone());
        let path = self.drop_directory.join(&file);
        let error = match self.installer.install_file(path, origin).await {
            Ok(installed) => {
                records::accepted(&file, &installed);
                let key = &installed.entry.key;
                self.discard_dropped(&file, Some(key), fingerprint.place()).await;
                self.ledger.judge(&file, &fingerprint, Verdict::Accepted, Instant::now());
                return;
            }
            Err(error) => error,
        };
        let verdict = judge(&error);
        let is_news = self.ledger.judge(&file, &fingerprint, verdict.clone(), Instant::now());
        match verdict {
            Verdict::Incomplete(reason) => {
                tracing::info!(
                    name: Message::PackageIncomplete.name(),
                    file, reason,
                    "waiting"
                );
            }
            Verdict::Failed { reason, .. } if is_news => {
                tracing::error!(
                    name: Message::PackageNotInstalled.name(),
                    file, reason, errno = errno(&error),
                    "cannot be installed now"
                );
            }
            _ => {}
        }
    }

    /// Removes the models that came with `name` of the directory `place` alone, except the one that comes with it now.
    async fn discard_dropped(&self, name: &str, except: Option<&Key>, place: Option<&str>) {
        let removes = self.schedule.borrow().remove_with_file;
        for Entry { key, record, .. } in self.dropped(name) {
            let Origin::Dropped { files } = record.origin else { continue };
            let is_of_place = files.get(name).is_some_and(|known| known.place() == place);
            if Some(&key) == except || !is_of_place {
                continue;
            }
            if removes {
                self.remove_with(name, &key).await;
            } else {
                self.let_go(&key, name).await;
            }
        }
    }

    /// Removes a model that the file `name` alone gave.
    async fn remove_with(&self, name: &str, key: &Key) {
        match self.installer.remove_with_file(key.clone(), name.to_owned()).await {
            Some(Ok(true)) => records::stays(name, key, "stays: it has another file"),
            Some(Ok(false)) => records::removed(name, key, "removed with its file"),
            Some(Err(error)) => records::store_failed(key, &error, "cannot be removed"),
            None => {}
        }
    }

    /// The models that came with `name`, be it with other files, too.
    fn dropped(&self, name: &str) -> Vec<Entry> {
        let mut entries = self.installer.handle().store().entries();
        entries.retain(|entry| match &entry.record.origin {
            Origin::Dropped { files } => files.contains_key(name),
            _ => false,
        });
        entries
    }

    /// Says that the file `name` does not give a model any more; whether the model stays without it.
    async fn let_go(&self, key: &Key, name: &str) -> bool {
        match self.installer.let_go(key.clone(), name.to_owned()).await {
            Some(Ok(stays)) => {
                if stays {
                    records::stays(name, key, "stays: it has another file");
                }
                stays
            }
            Some(Err(error)) => {
                records::store_failed(key, &error, "cannot be parted from a file");
                true
            }
            None => true,
        }
    }

    async fn discard(&self, key: Key) {
        if let Some(Err(error)) = self.installer.discard(key.clone()).await {
            records::store_failed(&key, &error, "cannot be removed");
        }
    }
}

/// Runs `work`, which touches the disk, on the blocking pool; `None` when it panicked or the runtime is going down.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "work on the drop directory was lost"
        )
    })
    .ok()
}
