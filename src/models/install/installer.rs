//! Installing for the daemon: one at a time, off the runtime, with memory reserved for the trial of a model.
//!
//! Owns whose turn it is. What is begun goes on when nobody waits for it any more. Tells the manager what left.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

use super::{InstallError, Installed, RemoveError, Rules, admit, remove, test};
use crate::engine;
use crate::errors::{chain, errno};
use crate::events::Event;
use crate::files::{self, ReadOnce};
use crate::log::Message;
use crate::metrics::FailureType;
use crate::models::{Handle, ModelError};
use crate::package::{
    Entry, Key, Origin, Rollback, RollbackError, RolledBack, Sidecars, Status, Store, StoreError,
};

/// Installs and removes for the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    handle: Handle,
    rules: watch::Receiver<Rules>,
    options: engine::Options,
    /// One at a time: an installation may hold a whole model in memory.
    permit: Arc<Semaphore>,
    /// What is begun. Not waited for at the end: the next start takes away what is half done.
    work: TaskTracker,
}

impl Installer {
    /// An installer into the store of `handle`.
    pub fn new(handle: Handle, rules: watch::Receiver<Rules>, options: engine::Options) -> Self {
        Self {
            handle,
            rules,
            options,
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

    /// Waits for its turn, then does [`install`](super::install). Cancelling while it waits gives up; afterwards it goes on.
    ///
    /// # Errors
    /// As [`install`](super::install).
    pub async fn install(
        &self,
        source: impl Read + Send + 'static,
        sidecars: Sidecars,
        origin: Origin,
    ) -> Result<Installed, InstallError> {
        self.install_with(origin, move || Ok((source, sidecars))).await
    }

    /// Does [`Installer::install`] with the package at `path` and the sidecars beside it.
    ///
    /// # Errors
    /// As [`install`](super::install), and when a file cannot be read.
    pub async fn install_file(
        &self,
        path: PathBuf,
        origin: Origin,
    ) -> Result<Installed, InstallError> {
        self.install_with(origin, move || {
            let package = files::open_regular(&path).map_err(StoreError::from)?;
            Ok((ReadOnce::new(package), Sidecars::read(&path)?))
        })
        .await
    }

    async fn install_with<R: Read>(
        &self,
        origin: Origin,
        open: impl FnOnce() -> Result<(R, Sidecars), InstallError> + Send + 'static,
    ) -> Result<Installed, InstallError> {
        let installer = self.clone();
        self.in_turn(async move {
            let file = file_of(&origin);
            let installed = installer.install_now(origin, open).await;
            let metrics = installer.handle.metrics();
            let (installed, took) = installed.inspect_err(|error| {
                if let Some(failure) = error.failure() {
                    metrics.validation_failed(None, failure);
                }
            })?;
            if !installed.existed {
                metrics.installed(took);
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

    /// Does [`install`](super::install), with memory reserved for the trial, and says how long it took.
    async fn install_now<R: Read>(
        &self,
        origin: Origin,
        open: impl FnOnce() -> Result<(R, Sidecars), InstallError> + Send + 'static,
    ) -> Result<(Installed, Duration), InstallError> {
        let rules = self.rules();
        let began = Instant::now();
        let admitted = self.off_runtime(move |store| {
            open().and_then(|(source, sidecars)| admit(&store, source, &sidecars, origin, &rules))
        });
        let mut installed = admitted.await.ok_or(InstallError::Stopping)??;
        let entry = &mut installed.entry;
        if entry.record.status == Status::Untested {
            installed.removed = self.try_now(entry.key.clone()).await?;
            entry.record.status = Status::Available;
        }
        Ok((installed, began.elapsed()))
    }

    /// Waits for its turn, then does [`try_out`](super::try_out) with memory reserved for it.
    ///
    /// # Errors
    /// As [`try_out`](super::try_out), and when the model does not fit into memory.
    pub async fn try_out(&self, key: Key) -> Result<Vec<Entry>, InstallError> {
        let installer = self.clone();
        let tried = self.in_turn(async move { installer.try_now(key).await }).await;
        tried.ok_or(InstallError::Stopping)?
    }

    async fn try_now(&self, key: Key) -> Result<Vec<Entry>, InstallError> {
        let mut tested = self.test(key.clone(), self.options).await;
        if let Err(error) = &tested
            && let Some(options) = error.fall_back(&key, self.options)
        {
            tested = self.test(key.clone(), options).await;
        }
        if tested.is_err() {
            let removed = self.off_runtime(move |store| store.remove(&key)).await;
            removed.ok_or(InstallError::Stopping)??;
        }
        tested
    }

    async fn test(&self, key: Key, options: engine::Options) -> Result<Vec<Entry>, InstallError> {
        let reserved = self.handle.reserve(key.clone(), options).await;
        let reservation = reserved.map_err(|error| match error {
            ModelError::Draining => InstallError::Stopping,
            error => InstallError::Untried(error),
        })?;
        let rules = self.rules();
        let tested = self.off_runtime(move |store| test(&store, &key, &rules, options)).await;
        drop(reservation);
        tested.ok_or(InstallError::Stopping)?
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
