//! Errors of the store.

use std::path::PathBuf;

use super::super::entry::EntryKey;
use super::super::install_record::StoreFull;
use super::free_space::NoSpace;
use crate::files::{self, FileError};

/// Errors of operations on the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the store.
    #[error("the store in {} is in use by another process, probably the daemon", files::display_path(.0).display())]
    Locked(PathBuf),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The quota would be exceeded.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// The file system has too little space.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// There is no such entry.
    #[error("{0} is not installed")]
    Unknown(EntryKey),
    /// Another entry of the same id has the same first digits of its digest, so that both have the
    /// same printed name.
    #[error(
        "another package of the same short name is installed: {0} has other content, but its \
         digest begins with the same digits; build the package again with another version"
    )]
    LooksAlike(EntryKey),
    /// Too many ids were installed with a signature.
    #[error("{} is full, because signed packages of too many ids were installed", .0.display())]
    TooManyVersions(PathBuf),
    /// A file differs from the installed one.
    #[error("{key} is corrupt: {reason}")]
    Corrupt {
        /// The entry.
        key: EntryKey,
        /// The file, and how it differs.
        reason: String,
    },
}
