//! Reads files of a model directory: regular files within a size limit, and JSON.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;

use crate::package::manifest::MAX_JSON;

/// Maximum number of characters of a quoted name.
const MAX_QUOTED: usize = 64;

/// Error of reading a model directory.
#[derive(Debug, thiserror::Error)]
pub enum ModelDirectoryError {
    /// A file could not be opened or read.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// Failed operation.
        operation: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// A file is not the expected JSON.
    #[error("{} does not have the format that sentence-transformers writes", path.display())]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A file requires a feature that Caxton does not support, or contradicts another file.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// Path of the file.
        path: PathBuf,
        /// Description of the problem and of its solution.
        reason: String,
    },
}

pub(super) fn unsupported(path: &Path, reason: impl Into<String>) -> ModelDirectoryError {
    ModelDirectoryError::Unsupported { path: path.to_owned(), reason: reason.into() }
}

/// Returns a name from a file in quotes, cut after [`MAX_QUOTED`] characters and with escapes.
pub(super) fn quoted(name: &str) -> String {
    let mut start: String = name.chars().take(MAX_QUOTED).collect();
    if start.len() < name.len() {
        start.push('…');
    }
    format!("{start:?}")
}

pub(super) fn is_missing(error: &ModelDirectoryError) -> bool {
    matches!(error, ModelDirectoryError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelDirectoryError> {
    parse(path, &read_file(path, MAX_JSON)?)
}

pub(super) fn read_json_if_present<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, ModelDirectoryError> {
    match read_json(path) {
        Err(error) if is_missing(&error) => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
) -> Result<T, ModelDirectoryError> {
    serde_json::from_slice(bytes)
        .map_err(|source| ModelDirectoryError::Json { path: path.to_owned(), source })
}

/// Reads a regular file of at most `limit` bytes.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ModelDirectoryError> {
    let failed = |operation| {
        move |source| ModelDirectoryError::Io { operation, path: path.to_owned(), source }
    };
    // Non-blocking, because opening a FIFO would wait for its other end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("inspect"))?;
    if !metadata.is_file() {
        return Err(unsupported(path, "it is not a regular file"));
    }
    let too_large = || unsupported(path, format!("it is larger than the limit of {limit} bytes"));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // Read one byte more than the limit, to detect a file that grows in the meantime.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}
