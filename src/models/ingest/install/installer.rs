//! Installs and removes packages for the daemon, with memory reserved for each self-test.
//!
//! Operations run one at a time, outside the async runtime. An operation that has begun runs to its
//! end, even if its caller is cancelled. Each operation reports removed entries to the manager.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

use super::{
    InstallDriver, InstallError, InstallProgress, InstallRules, Installation, RemoveError,
    Validation, remove,
};
use crate::base::errors::{chain, errno};
use crate::base::units::Bytes;
use crate::engine;
use crate::files;
use crate::models::ingest::selftest::SelfTester;
use crate::models::residency::load::{footprint, footprint_of};
use crate::models::{ManagerHandle, ModelError};
use crate::package::drop_dir::FileFingerprint;
use crate::package::{
    Consent, EntryKey, Origin, PackageBytes, PackageHeader, Sidecars, Store, StoreEntry, StoreError,
};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;
use crate::telemetry::metrics::{FailureType, InstallLabel};

/// Installer of the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    handle: ManagerHandle,
    rules: watch::Receiver<InstallRules>,
    options: engine::EngineOptions,
    tester: SelfTester,
    /// Permit that allows one operation at a time: an installation may hold a whole model in
    /// memory.
    permit: Arc<Semaphore>,
    /// Operations that have begun. Shutdown does not wait for them: the next start cleans up
    /// incomplete ones.
    work: TaskTracker,
}

impl Installer {
    /// Creates an installer for the store of `handle`.
    pub fn new(
        handle: ManagerHandle,
        rules: watch::Receiver<InstallRules>,
        options: engine::EngineOptions,
        tester: SelfTester,
    ) -> Self {
        Self {
            handle,
            rules,
            options,
            tester,
            permit: Arc::new(Semaphore::new(1)),
            work: TaskTracker::new(),
        }
    }

    /// Returns a copy of the current rules.
    pub fn rules(&self) -> InstallRules {
        self.rules.borrow().clone()
    }

    /// Returns the handle of the manager.
    pub fn handle(&self) -> &ManagerHandle {
        &self.handle
    }

    /// Waits for the permit, then calls [`InstallDriver::install`].
    ///
    /// Cancel safety: an installation that is cancelled while it waits does not begin. One that has
    /// begun runs to its end.
    ///
    /// # Errors
    /// Returns the errors of [`InstallDriver::install`].
    pub async fn install(
        &self,
        source: impl Read + Send + 'static,
        sidecars: Sidecars,
        origin: Origin,
        consent: Consent,
    ) -> Result<Installation, InstallError> {
        let open = move || Ok((PackageBytes::Stream(source), sidecars));
        self.install_with(origin, consent, InstallProgress::default(), open).await
    }

    /// Calls [`Installer::install`] with the package at `path` and the sidecars beside it, and
    /// reports to `progress`.
    ///
    /// # Errors
    /// Returns the errors of [`InstallDriver::install`], and fails if a file cannot be read.
    pub async fn install_file(
        &self,
        path: PathBuf,
        origin: Origin,
        progress: InstallProgress,
    ) -> Result<Installation, InstallError> {
        let read = progress.clone();
        let open = move || {
            let package = files::open_regular(&path).map_err(StoreError::from)?;
            read.follow(&package);
            Ok((PackageBytes::of(package), Sidecars::read(&path)?))
        };
        let installed = self.install_with(origin, Consent::default(), progress.clone(), open).await;
        progress.finish();
        installed
    }

    async fn install_with<R: Read>(
        &self,
        origin: Origin,
        consent: Consent,
        progress: InstallProgress,
        open: impl FnOnce() -> Result<(PackageBytes<R>, Sidecars), InstallError> + Send + 'static,
    ) -> Result<Installation, InstallError> {
        let installer = self.clone();
        self.run_with_permit(async move {
            let file = file_of(&origin);
            let began = Instant::now();
            let installed = installer.run_driver(consent, progress, move |driver| {
                let (source, sidecars) = open()?;
                driver.install(source, &sidecars, origin)
            });
            let installed = installed.await;
            let metrics = installer.handle.metrics();
            let label = match &installed {
                Ok(installed) if installed.existed => InstallLabel::Existed,
                Ok(_installed) => InstallLabel::Installed,
                Err(error) => error.label(),
            };
            metrics.count_install(label, began.elapsed());
            let installed = installed.inspect_err(|error| {
                if let Some(failure) = error.failure() {
                    metrics.count_validation_failure(None, failure);
                }
            })?;
            if !installed.existed {
                let model = installed.entry.key.name().to_owned();
                installer.handle.events().publish(Event::PackageAccepted { model, file });
                installer.report_waiting(&installed.entry.key);
            }
            installer.publish_displaced(&installed.entry.key, &installed.removed);
            let gone = installed.removed.iter().map(|entry| entry.key.clone()).collect();
            installer.handle.notify_store_changed(gone).await;
            Ok(installed)
        })
        .await
        .ok_or(InstallError::Stopping)?
    }

    /// Waits for the permit, then calls [`InstallDriver::finish`] for an entry that an earlier
    /// process left untested.
    ///
    /// # Errors
    /// Returns the errors of [`InstallDriver::finish`].
    pub async fn finish(&self, key: EntryKey) -> Result<Vec<StoreEntry>, InstallError> {
        let installer = self.clone();
        self.run_with_permit(async move {
            let finished = key.clone();
            let finish = move |driver: &InstallDriver<'_>| driver.finish(&finished);
            let progress = InstallProgress::default();
            let removed = installer.run_driver(Consent::default(), progress, finish).await;
            let label =
                removed.as_ref().map_or_else(InstallError::label, |_| InstallLabel::Installed);
            installer.handle.metrics().count_install_result(label);
            let removed = removed?;
            installer.report_waiting(&key);
            installer.publish_displaced(&key, &removed);
            let gone = removed.iter().map(|entry| entry.key.clone()).collect();
            installer.handle.notify_store_changed(gone).await;
            Ok(removed)
        })
        .await
        .ok_or(InstallError::Stopping)?
    }

    /// Returns an error if the model of a package can never fit into memory. Blocks.
    fn could_fit(&self, announced: &PackageHeader<'_>) -> Result<(), InstallError> {
        let PackageHeader { manifest, config, decoder_bytes, .. } = *announced;
        // A model that this version cannot run is rejected by the self-test, which reports the
        // reason.
        let options = self.handle.current_options(self.options);
        let Ok(mut footprint) = footprint_of(manifest, config, None, options) else {
            return Ok(());
        };
        // The sum bounds both steps: the memory of the decoder is freed before the model is loaded.
        footprint.loading_bytes = footprint.loading_bytes.saturating_add(decoder_bytes);
        let name = format!("{}@{}", manifest.id, manifest.version);
        self.handle.could_fit(name, footprint).map_err(|error| match error {
            ModelError::Draining => InstallError::Stopping,
            error => InstallError::NoMemory(error),
        })
    }

    /// Runs `work` with the driver on the blocking pool, with memory reserved for each self-test.
    async fn run_driver<T: Send + 'static>(
        &self,
        consent: Consent,
        progress: InstallProgress,
        work: impl FnOnce(&InstallDriver<'_>) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, InstallError> {
        let installer = self.clone();
        let rules = self.rules().with(consent);
        let runtime = runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let handle = &installer.handle;
            let reserve = |key: &EntryKey, options| {
                progress.start_test();
                let reserved = runtime.block_on(handle.reserve(key.clone(), options));
                reserved.map(Some).map_err(|error| match error {
                    ModelError::Draining => InstallError::Stopping,
                    error => InstallError::NotReserved(error),
                })
            };
            let fits = |announced: &PackageHeader<'_>| installer.could_fit(announced);
            let options = handle.current_options(installer.options);
            let tester = &installer.tester;
            let driver = InstallDriver::standalone(handle.store(), &rules, options, tester);
            work(&driver.with_reservation(&fits, &reserve))
        });
        done.await.unwrap_or_else(|error| {
            log_lost(&error);
            Err(match error.is_panic() {
                true => InstallError::InstallationPanicked,
                false => InstallError::Stopping,
            })
        })
    }

    /// Calls [`remove`], and notifies the manager, which unloads the model.
    ///
    /// # Errors
    /// Returns the errors of [`remove`]. Returns `None` if the daemon is stopping.
    pub async fn remove(&self, name: String) -> Option<Result<StoreEntry, RemoveError>> {
        let rules = self.rules();
        let removed = self.run_exclusively(move |store| remove(&store, &name, &rules)).await?;
        if let Ok(entry) = &removed {
            self.handle.events().publish(Event::PackageRemoved {
                model: entry.key.name().to_owned(),
                reason: "an administrator removed the model".to_owned(),
            });
            self.handle.notify_store_changed(vec![entry.key.clone()]).await;
        }
        Some(removed)
    }

    /// Marks an entry as quarantined because of `reason`. See [`Store::quarantine`].
    ///
    /// # Errors
    /// Fails if the entry is unknown or the disk fails. Returns `None` if the daemon is stopping.
    pub async fn quarantine(
        &self,
        key: EntryKey,
        reason: String,
    ) -> Option<Result<(), StoreError>> {
        self.run_exclusively(move |store| store.quarantine(&key, reason)).await
    }

    /// Removes an entry, and notifies the manager, which unloads the model.
    ///
    /// Unlike [`Installer::remove`], it also removes a bundled entry that the appliance no longer
    /// ships.
    ///
    /// # Errors
    /// Fails if the disk fails. Returns `None` if the daemon is stopping.
    pub async fn discard(&self, key: EntryKey) -> Option<Result<StoreEntry, StoreError>> {
        let discarded = key.clone();
        let removed = self.run_exclusively(move |store| store.remove(&discarded)).await?;
        self.handle.notify_store_changed(vec![key]).await;
        Some(removed)
    }

    /// Detaches an entry from `file` of the drop directory, and removes the entry if no other file
    /// provides it. Returns whether the entry stays.
    ///
    /// # Errors
    /// Fails if the entry is unknown or the disk fails. Returns `None` if the daemon is stopping.
    pub async fn remove_with_file(
        &self,
        key: EntryKey,
        file: String,
    ) -> Option<Result<bool, StoreError>> {
        let parted = key.clone();
        // Detach and remove under one permit: between two, an administrator could install the same
        // package.
        let stays = self.run_exclusively(move |store| {
            let stays = store.detach_file(&parted, &file)?;
            if !stays {
                store.remove(&parted)?;
            }
            Ok(stays)
        });
        let stays = stays.await?;
        if matches!(stays, Ok(false)) {
            self.handle.notify_store_changed(vec![key]).await;
        }
        Some(stays)
    }

    /// Stores the fingerprint that `file` of the drop directory has now. See
    /// [`Store::record_fingerprint`].
    ///
    /// # Errors
    /// Fails if the entry is unknown or the disk fails. Returns `None` if the daemon is stopping.
    pub async fn record_fingerprint(
        &self,
        key: EntryKey,
        file: String,
        fingerprint: FileFingerprint,
    ) -> Option<Result<(), StoreError>> {
        self.run_exclusively(move |store| store.record_fingerprint(&key, &file, fingerprint)).await
    }

    /// Detaches an entry from all its files, so that it stays until an administrator removes it.
    ///
    /// # Errors
    /// Fails if the disk fails. Returns `None` if the daemon is stopping.
    pub async fn detach_from_all_files(&self, key: EntryKey) -> Option<Result<(), StoreError>> {
        self.run_exclusively(move |store| store.mark_installed(&key)).await
    }

    /// Detaches an entry from `file` of the drop directory. Returns whether another source provides
    /// the entry; if not, the store is unchanged and the caller decides.
    ///
    /// # Errors
    /// Fails if the entry is unknown or the disk fails. Returns `None` if the daemon is stopping.
    pub async fn detach_from_file(
        &self,
        key: EntryKey,
        file: String,
    ) -> Option<Result<bool, StoreError>> {
        self.run_exclusively(move |store| store.detach_file(&key, &file)).await
    }

    /// Hashes every file of an entry. Notifies the manager if the entry is corrupt, or if it is
    /// intact again.
    ///
    /// # Errors
    /// Fails if the entry is corrupt, missing or unreadable. Returns `None` if the daemon is
    /// stopping.
    pub async fn verify(&self, key: EntryKey) -> Option<Result<(), StoreError>> {
        let checked = key.clone();
        let verified =
            self.run_exclusively(move |store| store.verify(&checked, |_bytes| {})).await?;
        match &verified {
            Err(error @ StoreError::Corrupt { .. }) => self.report_corrupt(key, error).await,
            Err(error) => tracing::error!(
                name: Message::StoreFailed.name(),
                model = %key, errno = errno(error), error = chain(error),
                "validation of the model failed"
            ),
            Ok(true) => {
                tracing::info!(
                    name: Message::PackageAccepted.name(),
                    model = %key,
                    "files of the model are intact again"
                );
                self.handle.notify_store_changed(Vec::new()).await;
            }
            Ok(false) => {}
        }
        Some(verified.map(drop))
    }

    /// Logs and counts that an entry was found to be corrupt, and notifies the manager.
    async fn report_corrupt(&self, key: EntryKey, error: &StoreError) {
        tracing::error!(
            name: Message::IntegrityFailure.name(),
            model = %key, error = chain(error),
            "validation of the model failed"
        );
        self.handle.metrics().count_validation_failure(Some(key.name()), FailureType::Corrupt);
        self.handle.notify_store_changed(vec![key]).await;
    }

    /// Calls [`InstallDriver::validate`], and marks an entry whose files differ as corrupt. The
    /// self-test runs beside the resident models, and only if it fits into the headroom: no model
    /// is evicted for it.
    ///
    /// # Errors
    /// Fails if the entry is unknown or the daemon is stopping.
    pub async fn validate(&self, key: EntryKey) -> Result<Validation, InstallError> {
        let view = self.handle.memory().await.map_err(|error| match error {
            ModelError::Draining => InstallError::Stopping,
            error => InstallError::NotReserved(error),
        })?;
        let headroom = view.headroom;
        let (rules, tester) = (self.rules(), self.tester.clone());
        let options = self.handle.current_options(self.options);
        let checked = key.clone();
        let validated = self.run_exclusively(move |store| {
            let reserve = |key: &EntryKey, options| {
                let needed = footprint::<InstallError>(&store, key, options)?.peak_bytes();
                if needed <= headroom.0 {
                    return Ok(None);
                }
                let reason = format!(
                    "it needs {} beside the resident models, and {headroom} are free; unload a \
                     model first",
                    Bytes(needed)
                );
                Err(InstallError::NotTested(io::Error::other(reason)))
            };
            let fits = |_: &PackageHeader<'_>| Ok(());
            let validation = InstallDriver::standalone(&store, &rules, options, &tester)
                .with_reservation(&fits, &reserve)
                .validate(&checked, |_bytes| {})?;
            let recorded = store.record_checks(&checked, &validation.files);
            Ok::<_, InstallError>((validation, recorded))
        });
        let (validation, recorded) = validated.await.ok_or(InstallError::Stopping)??;
        if let Err(error) = recorded {
            self.report_corrupt(key, &error).await;
        }
        Ok(validation)
    }

    /// Waits for the permit, then runs `work` on the blocking pool. Returns `None` if the daemon is
    /// stopping or `work` panicked.
    pub(super) async fn run_exclusively<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Store>) -> T + Send + 'static,
    ) -> Option<T> {
        let installer = self.clone();
        self.run_with_permit(async move { installer.run_blocking(work).await }).await?
    }

    /// Waits for the permit, then runs `work` in a task of its own. The task runs to its end even
    /// if the caller is cancelled. Returns `None` if the daemon is stopping or `work` panicked.
    async fn run_with_permit<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.permit).acquire_owned().await.ok()?;
        let done = self.work.spawn(async move {
            let _permit = permit;
            work.await
        });
        done.await.inspect_err(log_lost).ok()
    }

    /// Runs `work` on the blocking pool. Returns `None` in the cases of
    /// [`Installer::run_with_permit`].
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Store>) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(self.handle.store());
        let done = tokio::task::spawn_blocking(move || work(store));
        done.await.inspect_err(log_lost).ok()
    }
}

fn log_lost(error: &JoinError) {
    tracing::error!(
        name: Message::InternalFault.name(),
        %error,
        "task for the store did not finish"
    );
}

/// Returns the name of the file that contained the package. Returns `None` if the package did not
/// come in a file.
fn file_of(origin: &Origin) -> Option<String> {
    match origin {
        Origin::Bundled { file, .. } => Some(file.clone()),
        Origin::Dropped { files } => files.keys().next().cloned(),
        Origin::Installed => None,
    }
}
