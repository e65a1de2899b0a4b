//! What the journal is told by the intake more than once, in one place each.

use std::path::Path;

use crate::errors::{chain, errno};
use crate::files::FileError;
use crate::log::Message;
use crate::models::install::Installed;
use crate::package::{Entry, Key, SignatureStatus, StoreError};

/// The package in `file` became a model, for which others may have left.
pub(super) fn accepted(file: &str, Installed { entry, existed, removed, signature }: &Installed) {
    let signature = match signature {
        SignatureStatus::Absent => "none".to_owned(),
        SignatureStatus::Unchecked => "not checked, no key is configured".to_owned(),
        SignatureStatus::Valid(key) => format!("valid, key {key}"),
    };
    tracing::info!(
        name: Message::PackageAccepted.name(),
        file, model = %entry.key, existed, signature,
        "package accepted"
    );
    left(removed);
}

/// These left the store for others.
pub(super) fn left(removed: &[Entry]) {
    for entry in removed {
        tracing::info!(
            name: Message::StoreLimit.name(),
            model = %entry.key,
            "left the store to make room or for its successor"
        );
    }
}

/// The model leaves with `file`.
pub(super) fn removed(file: &str, key: &Key, why: &str) {
    tracing::info!(name: Message::PackageRemoved.name(), file, model = %key, "{why}");
}

/// The model stays without `file`.
pub(super) fn stays(file: &str, key: &Key, why: &str) {
    tracing::warn!(name: Message::PackageStays.name(), file, model = %key, "{why}");
}

/// The model stays although `file` is missing: the drop directory is not the one in which it was seen.
pub(super) fn held(file: &str, key: &Key) {
    tracing::warn!(
        name: Message::DropDirectoryReplaced.name(),
        file, model = %key,
        "stays without its file: the drop directory is another one than before"
    );
}

/// An entry that the disk did not give is there again.
pub(super) fn readable(key: &Key) {
    tracing::info!(
        name: Message::PackageAccepted.name(),
        model = %key,
        "can be read again"
    );
}

/// What does not work as it should, and does not keep models from answering; nothing when all does again.
pub(super) fn degraded(degraded: &[String]) {
    let reason = match degraded {
        [] => "nothing is degraded any more".to_owned(),
        degraded => degraded.join("; "),
    };
    tracing::warn!(name: Message::StoreDegraded.name(), reason, "the condition has changed");
}

/// The store did not do what had to be done with the model.
pub(super) fn store_failed(key: &Key, error: &StoreError, what: &str) {
    tracing::error!(
        name: Message::StoreFailed.name(),
        model = %key, errno = errno(error), error = chain(error),
        "{what}"
    );
}

/// Models of the bundled directory stay although it holds no package of an installed model.
pub(super) fn without_bundled(directory: &Path, models: usize) {
    tracing::warn!(
        name: Message::DirectoryUnreadable.name(),
        error = "no bundled package is in it: its file system may not be mounted",
        directory = %directory.display(), models,
        "bundled models stay without their files"
    );
}

/// A directory of packages cannot be read.
pub(super) fn unreadable(what: &str, error: &FileError) {
    tracing::warn!(
        name: Message::DirectoryUnreadable.name(),
        errno = errno(error), error = chain(error),
        "{what}"
    );
}
