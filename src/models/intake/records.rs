//! What the journal is told by the intake more than once, in one place each.

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

/// The store did not do what had to be done with the model.
pub(super) fn store_failed(key: &Key, error: &StoreError, what: &str) {
    tracing::error!(
        name: Message::StoreFailed.name(),
        model = %key, errno = errno(error), error = chain(error),
        "{what}"
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
