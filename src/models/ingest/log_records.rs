//! Writes the log records that several parts of the ingester share.

use std::path::Path;

use tokio::task::JoinError;

use crate::base::errors::{chain, errno};
use crate::files::FileError;
use crate::models::ingest::install::Installation;
use crate::package::drop_dir::OtherKind;
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
            reason = "a limit was reached, or other content replaced it",
            "model removed from the store"
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

/// Logs that a further drop directory is not there.
pub(super) fn log_absent(directory: &Path, reason: &str) {
    tracing::info!(
        name: Message::DropDirectoryAbsent.name(),
        directory = %directory.display(), reason,
        "drop directory is absent; its models stay"
    );
}

/// Logs that a further drop directory can be read again.
pub(super) fn log_present(directory: &Path) {
    tracing::info!(
        name: Message::DropDirectoryPresent.name(),
        directory = %directory.display(),
        "drop directory is present"
    );
}

/// Logs a file of a drop directory that is not a package.
pub(super) fn log_not_a_package(directory: &Path, file: &str, kind: OtherKind) {
    tracing::warn!(
        name: Message::NotAPackage.name(),
        directory = %directory.display(), file, reason = kind.advice(),
        "file is not a package and is not installed"
    );
}

/// Logs the number of files of a drop directory that are not packages and are not mentioned.
pub(super) fn log_further_files(directory: &Path, count: usize) {
    tracing::warn!(
        name: Message::NotAPackage.name(),
        directory = %directory.display(),
        reason = format!("{count} files, which are not named here"),
        "further files are not packages and are not installed"
    );
}

/// Logs that a task for a directory did not finish.
pub(super) fn log_lost_task(error: &JoinError) {
    tracing::error!(
        name: Message::InternalFault.name(),
        %error,
        "task for the drop directory did not finish"
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
