//! Writes the log records that several parts of the ingester share.

use std::path::Path;

use crate::base::errors::{chain, errno};
use crate::files::FileError;
use crate::models::ingest::install::Installation;
use crate::package::{EntryKey, SignatureStatus, StoreEntry, StoreError};
use crate::telemetry::log::Message;

/// Logs that the package in `file` became a model, and which entries were removed for it.
pub(super) fn log_installed(
    file: &str,
    Installation { entry, existed, removed, signature }: &Installation,
) {
    let signature = match signature {
        SignatureStatus::Absent => "none".to_owned(),
        SignatureStatus::Unchecked => "not checked: no key is configured".to_owned(),
        SignatureStatus::Valid(key) => format!("valid, key {key}"),
    };
    tracing::info!(
        name: Message::PackageAccepted.name(),
        file, model = %entry.key, existed, signature,
        "package accepted"
    );
    log_displaced(removed);
}

/// Logs entries that were removed from the store for others.
pub(super) fn log_displaced(removed: &[StoreEntry]) {
    for entry in removed {
        tracing::info!(
            name: Message::StoreLimit.name(),
            model = %entry.key,
            "model removed from the store: a limit was reached, or other content replaced it"
        );
    }
}

/// Logs that a model was removed because of `file`.
pub(super) fn log_removed(file: &str, key: &EntryKey, why: &str) {
    tracing::info!(name: Message::PackageRemoved.name(), file, model = %key, "{why}");
}

/// Logs that a model stays without `file`.
pub(super) fn log_kept(file: &str, key: &EntryKey, why: &str) {
    tracing::warn!(name: Message::PackageStays.name(), file, model = %key, "{why}");
}

/// Logs that a model stays although `file` is missing, because the drop directory is not the one in
/// which the file was seen.
pub(super) fn log_kept_without_file(file: &str, key: &EntryKey) {
    tracing::warn!(
        name: Message::DropDirectoryReplaced.name(),
        file, model = %key,
        "model stays without its file: the drop directory was replaced"
    );
}

/// Logs that an unreadable entry is readable again.
pub(super) fn log_readable(key: &EntryKey) {
    tracing::info!(
        name: Message::PackageAccepted.name(),
        model = %key,
        "model can be read again"
    );
}

/// Logs the degraded conditions of the store, or its recovery if the list is empty. None of them
/// stops models from answering.
pub(super) fn log_degraded(degraded: &[String]) {
    if degraded.is_empty() {
        tracing::info!(name: Message::StoreRecovered.name(), "store works without restrictions");
        return;
    }
    tracing::warn!(
        name: Message::StoreDegraded.name(),
        reason = degraded.join("; "),
        "store is degraded"
    );
}

/// Logs that an operation of the store on a model failed.
pub(super) fn log_store_error(key: &EntryKey, error: &StoreError, what: &str) {
    tracing::error!(
        name: Message::StoreFailed.name(),
        model = %key, errno = errno(error), error = chain(error),
        "{what}"
    );
}

/// Logs that bundled models stay although the bundled directory holds no package of an installed
/// model.
pub(super) fn log_bundled_missing(directory: &Path, models: usize) {
    tracing::warn!(
        name: Message::DirectoryUnreadable.name(),
        error = "the directory has no bundled package: check whether its file system is mounted",
        directory = %directory.display(), models,
        "bundled models stay without their files"
    );
}

/// Logs that a directory of packages cannot be read.
pub(super) fn log_unreadable(what: &str, error: &FileError) {
    tracing::warn!(
        name: Message::DirectoryUnreadable.name(),
        errno = errno(error), error = chain(error),
        "{what}"
    );
}
