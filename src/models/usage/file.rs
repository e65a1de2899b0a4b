//! Reads and writes the file that keeps counts across restarts:
//! `{"format":1,"models":{"<key>":{…}}}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::counts::UsageCounts;
use crate::files::{self, FileError};
use crate::package::EntryKey;

/// Version of the file format. Only this version is read and written.
const FORMAT: u32 = 1;
/// Largest file in bytes: several times the size of [`super::MAX_MODELS`] models.
const MAX_SIZE: u64 = 16 << 20;
const UNUSABLE_SUFFIX: &str = "unreadable";

/// Reasons for which a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file has another format version, such as that of a newer release.
    #[error("the file has format {0}, and this version reads format {FORMAT}")]
    Format(u32),
    /// The file is damaged.
    #[error("the file is damaged")]
    Damaged(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct FormatHeader {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageFile {
    format: u32,
    models: BTreeMap<EntryKey, UsageCounts>,
}

/// Reads the counts from the file at `path`. Returns an empty map if the file does not exist.
///
/// # Errors
/// Fails if the file exists but cannot be used.
pub(super) fn read(path: &Path) -> Result<BTreeMap<EntryKey, UsageCounts>, ReadError> {
    match files::read_limited(path, MAX_SIZE) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<EntryKey, UsageCounts>, ReadError> {
    // Parse the version by itself first: the rest of another format is unknown.
    let FormatHeader { format } = serde_json::from_slice(bytes)?;
    if format != FORMAT {
        return Err(ReadError::Format(format));
    }
    Ok(serde_json::from_slice::<UsageFile>(bytes)?.models)
}

/// Replaces the file at `path`.
///
/// # Errors
/// Fails if the disk fails. The old file is then still there.
pub(super) fn write(path: &Path, models: BTreeMap<EntryKey, UsageCounts>) -> Result<(), FileError> {
    // Not indented: most of the file is long rows of numbers.
    let mut json = serde_json::to_vec(&UsageFile { format: FORMAT, models })
        .map_err(|error| FileError::new("write", path)(error.into()))?;
    json.push(b'\n');
    files::write_atomic(path, &json)?;
    files::change_owner(path, path.parent().unwrap_or(Path::new(".")))
}

/// Renames the file at `path`, so that it is not overwritten. Replaces a file that was moved aside
/// earlier. Returns the new path.
///
/// # Errors
/// Fails if the disk fails, or if the new path cannot be replaced by a file.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, FileError> {
    let aside = path.with_added_extension(UNUSABLE_SUFFIX);
    fs::rename(path, &aside).map_err(FileError::new("move aside", path))?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written() -> Vec<u8> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("usage.json");
        let models = ["a@1+0123456789ab", "b@2+0123456789ab"];
        let models = models.map(|key| (key.parse().unwrap(), UsageCounts::default()));
        write(&path, models.into()).unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn damaged_file_error_names_the_fault() {
        for (bytes, expected) in [
            ("", "the file is damaged"),
            ("{}", "the file is damaged"),
            ("[]", "the file is damaged"),
            (r#"{"format":1}"#, "the file is damaged"),
            (r#"{"format":1,"models":{"../a":{}}}"#, "the file is damaged"),
            (r#"{"format":1,"models":{},"more":0}"#, "the file is damaged"),
            (
                r#"{"format":2,"anything":0}"#,
                "the file has format 2, and this version reads format 1",
            ),
        ] {
            assert_eq!(parse(bytes.as_bytes()).unwrap_err().to_string(), expected, "{bytes}");
        }
        assert_eq!(parse(&written()).unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn damaged_file_never_panics(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = written();
            for (index, byte) in edits {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            drop(parse(&bytes[..cut.index(bytes.len() + 1)]));
            drop(parse(&bytes));
        }
    }
}
