//! The files of the store that it writes itself: its lock, and the record and manifest of an entry.
//!
//! Owns their names and limits. What an entry means is the index's business.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::Flock;

use super::super::digest::Digest;
use super::super::entry::{Entry, Key};
use super::super::manifest::{MANIFEST, Manifest};
use super::super::record::Record;
use super::super::unpack::Durability;
use super::StoreError;
use crate::errors::chain;
use crate::files::{self, FileError};

pub(super) const RECORD: &str = "record.json";
/// A record has a dozen short fields; a manifest in the store is one that the reader accepted.
const MAX_RECORD: u64 = 64 << 10;
const MAX_MANIFEST: u64 = 1 << 20;

/// The lock of the store in `directory`.
pub(super) fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join("lock");
    let lock = files::lock(&path)?.ok_or_else(|| StoreError::Locked(directory.to_owned()))?;
    files::own(&path, directory)?;
    Ok(lock)
}

/// The entry whose directory is `path`; says why there is none.
pub(super) fn read_entry(path: &Path) -> Result<Entry, String> {
    let read = |name: &str, limit| {
        files::read_limited(&path.join(name), limit).map_err(|error| chain(&error))
    };
    let record: Record =
        serde_json::from_slice(&read(RECORD, MAX_RECORD)?).map_err(|error| chain(&error))?;
    let bytes = read(MANIFEST, MAX_MANIFEST)?;
    if Digest::of(&bytes) != record.manifest_digest {
        return Err("manifest.json is not the one that was installed".to_owned());
    }
    let manifest = Manifest::parse(&bytes).map_err(|error| chain(&error))?;
    let key = Key::new(&manifest, record.manifest_digest);
    if path.file_name().and_then(|name| name.to_str()) != Some(key.as_str()) {
        return Err(format!("it holds {key}"));
    }
    Ok(Entry { key, manifest: Arc::new(manifest), record })
}

/// Writes the record of the entry whose directory is `directory`.
pub(super) fn write_record(
    directory: &Path,
    record: &Record,
    durability: Durability,
) -> Result<(), FileError> {
    let path = directory.join(RECORD);
    let json = serde_json::to_vec_pretty(record)
        .map_err(|error| FileError::new("write", &path)(error.into()))?;
    match durability {
        Durability::Synced => files::write_atomic(&path, &json),
        Durability::Volatile => fs::write(&path, &json).map_err(FileError::new("write", &path)),
    }
}
