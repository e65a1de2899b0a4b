//! Reading the files of a model directory: regular files within a size limit, and JSON in them.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;

use crate::package::manifest::MAX_JSON;

/// Why a model directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be opened or read.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not what sentence-transformers writes", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A file asks for what Caxton does not support, or contradicts another.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

pub(super) fn unsupported(path: &Path, reason: impl Into<String>) -> SourceError {
    SourceError::Unsupported { path: path.to_owned(), reason: reason.into() }
}

pub(super) fn is_missing(error: &SourceError) -> bool {
    matches!(error, SourceError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, SourceError> {
    parse(path, &read_file(path, MAX_JSON)?)
}

pub(super) fn read_json_if_present<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, SourceError> {
    match read_json(path) {
        Err(error) if is_missing(&error) => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, SourceError> {
    serde_json::from_slice(bytes)
        .map_err(|source| SourceError::Json { path: path.to_owned(), source })
}

/// The contents of a regular file of at most `limit` bytes.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, SourceError> {
    let failed =
        |operation| move |source| SourceError::Io { operation, path: path.to_owned(), source };
    // Non-blocking, because opening a FIFO would wait for its other end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("inspect"))?;
    if !metadata.is_file() {
        return Err(unsupported(path, "is not a regular file"));
    }
    let too_large = || unsupported(path, format!("is larger than the limit of {limit} bytes"));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that grows is noticed.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}
