//! Installing for the daemon: one at a time, off the runtime, with memory reserved for the self-test of a model.
//!
//! Owns whose turn it is. What is begun goes on when nobody waits for it any more. Tells the manager what left.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

use super::{Driver, InstallError, Installed, RemoveError, Rules, remove};
use crate::engine;
use crate::errors::{chain, errno};
use crate::events::Event;
use crate::files;
use crate::log::Message;
use crate::metrics::FailureType;
use crate::models::load::footprint_of;
use crate::models::selftest::Tester;
use crate::models::{Handle, ModelError};
use crate::package::drop::Fingerprint;
use crate::package::{
    Announced, Consent, Entry, Key, Origin, PackageBytes, Rollback, RollbackError, RolledBack,
    Sidecars, Store, StoreError,
};

/// Installs and removes for the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    handle: Handle,
    rules: watch::Receiver<Rules>,
    options: engine::Options,
    tester: Tester,
    /// One at a time: an installation may hold a whole model in memory.
    permit: Arc<Semaphore>,
    /// What is begun. Not waited for at the end: the next start takes away what is half done.
    work: TaskTracker,
}

impl Installer {
    /// An installer into the store of `handle`.
    pub fn new(
        handle: Handle,
        rules: watch::Receiver<Rules>,
        options: engine::Options,
        tester: Tester,
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

    /// The rules that hold now.
    pub fn rules(&self) -> Rules {
        self.rules.borrow().clone()
    }

    /// The way to the manager.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for its turn, then does [`Driver::install`]. Cancelling while it waits gives up; afterwards it goes on.
    ///
    /// # Errors
    /// As [`Driver::install`].
    pub async fn install(
        &self,
        source: impl Read + Send + 'static,
        sidecars: Sidecars,
        origin: Origin,
        consent: Consent,
    ) -> Result<Installed, InstallError> {
        let open = move || Ok((PackageBytes::Stream(source), sidecars));
        self.install_with(origin, consent, open).await
    }

    /// Does [`Installer::install`] with the package at `path` and the sidecars beside it.
    ///
    /// # Errors
    /// As [`Driver::install`], and when a file cannot be read.
    pub async fn install_file(
        &self,
        path: PathBuf,
        origin: Origin,
    ) -> Result<Installed, InstallError> {
        self.install_with(origin, Consent::default(), move || {
            let package = files::open_regular(&path).map_err(StoreError::from)?;
            Ok((PackageBytes::of(package), Sidecars::read(&path)?))
        })
        .await
    }

    async fn install_with<R: Read>(
        &self,
        origin: Origin,
        consent: Consent,
        open: impl FnOnce() -> Result<(PackageBytes<R>, Sidecars), InstallError> + Send + 'static,
    ) -> Result<Installed, InstallError> {
        let installer = self.clone();
        self.in_turn(async move {
            let file = file_of(&origin);
            let began = Instant::now();
            let installed = installer.drive(consent, move |driver| {
                let (source, sidecars) = open()?;
                driver.install(source, &sidecars, origin)
            });
            let installed = installed.await;
            let metrics = installer.handle.metrics();
            let installed = installed.inspect_err(|error| {
                if let Some(failure) = error.failure() {
                    metrics.validation_failed(None, failure);
                }
            })?;
            if !installed.existed {
                metrics.installed(began.elapsed());
                let model = installed.entry.key.name().to_owned();
                installer.handle.events().send(Event::PackageAccepted { model, file });
            }
            let gone = installed.removed.iter().map(|entry| entry.key.clone()).collect();
            installer.handle.store_changed(gone).await;
            Ok(installed)
        })
        .await
        .ok_or(InstallError::Stopping)?
    }

    /// Waits for its turn, then does [`Driver::finish`] for an entry that an earlier process left untested.
    ///
    /// # Errors
    /// As [`Driver::finish`].
    pub async fn finish(&self, key: Key) -> Result<Vec<Entry>, InstallError> {
        let installer = self.clone();
        self.in_turn(async move {
            let removed =
                installer.drive(Consent::default(), move |driver| driver.finish(&key)).await?;
            let gone = removed.iter().map(|entry| entry.key.clone()).collect();
            installer.handle.store_changed(gone).await;
            Ok(removed)
        })
        .await
        .ok_or(InstallError::Stopping)?
    }

    /// Returns an error when the model of a package would not fit into memory however often it is tried. Blocks.
    fn could_fit(&self, announced: &Announced<'_>) -> Result<(), InstallError> {
        let Announced { manifest, config, decoder_bytes, .. } = *announced;
        // What no version here can run is refused by the trial, with its reason.
        let Ok(mut footprint) = footprint_of(manifest, config, None, self.options) else {
            return Ok(());
        };
        // Bounds both steps: the decoder's memory is given back before the model is loaded.
        footprint.loading_bytes = footprint.loading_bytes.saturating_add(decoder_bytes);
        let name = format!("{}@{}", manifest.id, manifest.version);
        self.handle.could_fit(name, footprint).map_err(|error| match error {
            ModelError::Draining => InstallError::Stopping,
            error => InstallError::NoMemory(error),
        })
    }

    /// Runs `work` with the driver on the blocking pool, with memory reserved for each self-test.
    async fn drive<T: Send + 'static>(
        &self,
        consent: Consent,
        work: impl FnOnce(&Driver<'_>) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, InstallError> {
        let installer = self.clone();
        let rules = self.rules().with(consent);
        let runtime = runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let handle = &installer.handle;
            let reserve = |key: &Key, options| {
                let reserved = runtime.block_on(handle.reserve(key.clone(), options));
                reserved.map(Some).map_err(|error| match error {
                    ModelError::Draining => InstallError::Stopping,
                    error => InstallError::Untried(error),
                })
            };
            let fits = |announced: &Announced<'_>| installer.could_fit(announced);
            let Self { options, tester, .. } = &installer;
            let driver = Driver::alone(handle.store(), &rules, *options, tester);
            work(&driver.reserving(&fits, &reserve))
        });
        done.await.unwrap_or_else(|error| {
            lost(&error);
            let panicked = error.is_panic();
            Err(if panicked { InstallError::Panicked } else { InstallError::Stopping })
        })
    }

    /// Does [`remove`], and lets the manager let go of the model.
    ///
    /// # Errors
    /// As [`remove`]; `None` when the daemon is stopping.
    pub async fn remove(&self, name: String) -> Option<Result<Entry, RemoveError>> {
        let rules = self.rules();
        let removed = self.blocking(move |store| remove(&store, &name, &rules)).await?;
        if let Ok(entry) = &removed {
            self.handle.store_changed(vec![entry.key.clone()]).await;
        }
        Some(removed)
    }

    /// Marks an entry as quarantined because of `reason`: see [`Store::quarantine`].
    ///
    /// # Errors
    /// When there is no such entry or the disk fails; `None` when the daemon is stopping.
    pub async fn quarantine(&self, key: Key, reason: String) -> Option<Result<(), StoreError>> {
        self.blocking(move |store| store.quarantine(&key, reason)).await
    }

    /// Removes an entry that came with the appliance, which brings it no more, and lets the manager let go of the
    /// model.
    ///
    /// # Errors
    /// When the disk fails; `None` when the daemon is stopping.
    pub async fn discard(&self, key: Key) -> Option<Result<Entry, StoreError>> {
        let discarded = key.clone();
        let removed = self.blocking(move |store| store.remove(&discarded)).await?;
        self.handle.store_changed(vec![key]).await;
        Some(removed)
    }

    /// Says that `file` of the drop directory does not give an entry any more, and removes one that nothing else gives.
    /// Returns whether it stays.
    ///
    /// # Errors
    /// When there is no such entry or the disk fails; `None` when the daemon is stopping.
    pub async fn remove_with_file(
        &self,
        key: Key,
        file: String,
    ) -> Option<Result<bool, StoreError>> {
        let parted = key.clone();
        // In one turn: an administrator may give it in between.
        let stays = self.blocking(move |store| {
            let stays = store.let_go(&parted, &file)?;
            if !stays {
                store.remove(&parted)?;
            }
            Ok(stays)
        });
        let stays = stays.await?;
        if matches!(stays, Ok(false)) {
            self.handle.store_changed(vec![key]).await;
        }
        Some(stays)
    }

    /// Makes `id` mean another of its versions; requests in flight are answered by the one that it meant.
    ///
    /// # Errors
    /// As [`Store::roll_back`]; `None` when the daemon is stopping.
    pub async fn roll_back(
        &self,
        id: String,
        rollback: Rollback,
    ) -> Option<Result<RolledBack, RollbackError>> {
        let done = self.blocking(move |store| store.roll_back(&id, &rollback)).await?;
        self.handle.store_changed(Vec::new()).await;
        Some(done)
    }

    /// Remembers the fingerprint with which `file` of the drop directory was seen: see [`Store::saw`].
    ///
    /// # Errors
    /// When there is no such entry or the disk fails; `None` when the daemon is stopping.
    pub async fn saw(
        &self,
        key: Key,
        file: String,
        fingerprint: Fingerprint,
    ) -> Option<Result<(), StoreError>> {
        self.blocking(move |store| store.saw(&key, &file, fingerprint)).await
    }

    /// Makes an entry independent of the file that it came from.
    ///
    /// # Errors
    /// When the disk fails; `None` when the daemon is stopping.
    pub async fn adopt(&self, key: Key) -> Option<Result<(), StoreError>> {
        self.blocking(move |store| store.adopt(&key)).await
    }

    /// Says that `file` of the drop directory does not give an entry any more. Returns whether the entry may stay.
    ///
    /// # Errors
    /// When there is no such entry or the disk fails; `None` when the daemon is stopping.
    pub async fn let_go(&self, key: Key, file: String) -> Option<Result<bool, StoreError>> {
        self.blocking(move |store| store.let_go(&key, &file)).await
    }

    /// Hashes every file of an entry; lets the manager know when it is corrupt, or no more.
    ///
    /// # Errors
    /// When it is corrupt, gone or cannot be read; `None` when the daemon is stopping.
    pub async fn verify(&self, key: Key) -> Option<Result<(), StoreError>> {
        let checked = key.clone();
        let verified = self.blocking(move |store| store.verify(&checked, |_bytes| {})).await?;
        match &verified {
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(
                    name: Message::IntegrityFailure.name(),
                    model = %key, error = chain(error),
                    "validation failed"
                );
                self.handle.metrics().validation_failed(Some(key.id()), FailureType::Corrupt);
                self.handle.store_changed(vec![key]).await;
            }
            Err(error) => tracing::error!(
                name: Message::StoreFailed.name(),
                model = %key, errno = errno(error), error = chain(error),
                "validation failed"
            ),
            Ok(true) => {
                tracing::info!(
                    name: Message::PackageAccepted.name(),
                    model = %key,
                    "its files are right again"
                );
                self.handle.store_changed(Vec::new()).await;
            }
            Ok(false) => {}
        }
        Some(verified.map(drop))
    }

    /// Runs `work` on the blocking pool when it is its turn; `None` when the daemon is stopping or `work` panicked.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Store>) -> T + Send + 'static,
    ) -> Option<T> {
        let installer = self.clone();
        self.in_turn(async move { installer.off_runtime(work).await }).await?
    }

    /// Waits until nobody else is at work, then does `work`, which goes on when nobody waits for it any more; `None`
    /// when the daemon is stopping or `work` panicked.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.permit).acquire_owned().await.ok()?;
        let done = self.work.spawn(async move {
            let _permit = permit;
            work.await
        });
        done.await.inspect_err(lost).ok()
    }

    /// Runs `work` on the blocking pool; `None` as [`Installer::in_turn`].
    async fn off_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Store>) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(self.handle.store());
        let done = tokio::task::spawn_blocking(move || work(store));
        done.await.inspect_err(lost).ok()
    }
}

fn lost(error: &JoinError) {
    tracing::error!(name: Message::InternalFault.name(), %error, "work on the store was lost");
}

/// The file that a package came in, if it came in one.
fn file_of(origin: &Origin) -> Option<String> {
    match origin {
        Origin::Bundled { file, .. } => Some(file.clone()),
        Origin::Dropped { files } => files.keys().next().cloned(),
        Origin::Installed => None,
    }
}
