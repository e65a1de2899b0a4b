//! Applies changes of the trusted keys, and of `packages.disable_unsigned`, to installed models at
//! once.
//!
//! This module decides when the keys are read again. [`crate::package::TrustInput`] decides which
//! entries they allow.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::base::errors::{chain, errno};
use crate::config::Settings;
use crate::models::ManagerHandle;
use crate::package::{SignatureError, Store, TrustChange, TrustInput};
use crate::telemetry::log::Message;

/// Directories and settings from which trust is derived.
#[derive(Clone, Debug)]
pub struct TrustRoots {
    keys_directory: PathBuf,
    bundled_directory: PathBuf,
    disables_unsigned: bool,
}

impl From<&Settings> for TrustRoots {
    fn from(settings: &Settings) -> Self {
        let packages = &settings.packages;
        Self {
            keys_directory: packages.keys_directory.clone(),
            bundled_directory: packages.bundled_directory.clone(),
            disables_unsigned: packages.disable_unsigned,
        }
    }
}

impl TrustRoots {
    /// Reads the keys and decides for every entry of `store` whether it may be used. Returns the
    /// entries for which this changed, and the errors of unusable keys.
    ///
    /// While the directory of the keys cannot be listed, nothing changes: a failing disk must not
    /// revoke a key. Blocks on reading small files.
    pub fn reevaluate(&self, store: &Store) -> (TrustChange, Vec<SignatureError>) {
        match TrustInput::read(&self.keys_directory, &self.bundled_directory) {
            Ok((trusted, errors)) => {
                let trusted = trusted.disabling_unsigned(self.disables_unsigned);
                (store.apply_trust(&trusted), errors)
            }
            Err(error) => (TrustChange::default(), vec![error]),
        }
    }
}

/// Logs which entries were disabled and enabled.
pub fn log_changes(changed: &TrustChange) {
    for entry in &changed.disabled {
        let reason = entry.disabled.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(
            name: Message::PackageDisabled.name(),
            model = %entry.key, reason,
            "model disabled"
        );
    }
    for entry in &changed.enabled {
        tracing::info!(
            name: Message::PackageEnabled.name(),
            model = %entry.key,
            "model enabled again"
        );
    }
}

/// Judges the entries again at each tick of `ticks`, which signal changes in the directory of keys,
/// and after each change of `settings`. The directories stay those of `roots`. Runs until `cancel`.
///
/// Disabled models are unloaded after they have finished their requests in progress.
pub async fn watch_keys(
    handle: ManagerHandle,
    mut roots: TrustRoots,
    mut ticks: mpsc::Receiver<()>,
    mut settings: watch::Receiver<Arc<Settings>>,
    cancel: CancellationToken,
) {
    let mut told = Vec::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            tick = ticks.recv() => if tick.is_none() { return },
            changed = settings.changed() => if changed.is_err() { return },
        }
        roots.disables_unsigned = settings.borrow_and_update().packages.disable_unsigned;
        let (roots, store) = (roots.clone(), Arc::clone(handle.store()));
        let judged = tokio::task::spawn_blocking(move || roots.reevaluate(&store)).await;
        let (changed, errors) = match judged {
            Ok(judged) => judged,
            Err(error) => {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "task that reads the keys did not finish"
                );
                continue;
            }
        };
        // Log the errors once, not at every read.
        let texts = Vec::from_iter(errors.iter().map(|error| chain(error)));
        if texts != told {
            for error in &errors {
                tracing::error!(
                    name: Message::KeyUnusable.name(),
                    errno = errno(error), error = chain(error),
                    "key cannot be used; no package is installed until it is corrected"
                );
            }
            told = texts;
        }
        log_changes(&changed);
        if !changed.disabled.is_empty() || !changed.enabled.is_empty() {
            let gone = changed.disabled.into_iter().map(|entry| entry.key).collect();
            handle.notify_store_changed(gone).await;
        }
    }
}
