//! Reads and writes the store's own files: its lock, and the record and manifest of an entry.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::Flock;

use super::super::access_stats::AccessStats;
use super::super::digest::Digest;
use super::super::entry::{EntryKey, StoreEntry};
use super::super::install_record::InstallRecord;
use super::super::manifest::{MANIFEST, Manifest};
use super::super::unpack::Durability;
use super::StoreError;
use crate::base::errors::chain;
use crate::files::{self, FileError};

pub(super) const RECORD: &str = "record.json";
/// Largest `record.json`: a record has a dozen short fields. The limit of a manifest is that of the
/// archive reader.
const MAX_RECORD: u64 = 64 << 10;
const MAX_MANIFEST: u64 = 1 << 20;

/// Takes the lock of the store in `directory`. Locks the directory itself where the disk refuses to
/// create the lock file. Such a store must not be changed before [`own_lock`] succeeds or the store
/// is opened again.
pub(super) fn lock(directory: &Path) -> Result<Locks, StoreError> {
    let of_directory = match own_lock(directory) {
        Err(StoreError::File(error)) if error.disk_failed() => files::lock_directory(directory)?,
        file => return Ok(Locks { _directory: None, file: Mutex::new(Some(file?)) }),
    };
    let locked = of_directory.ok_or_else(|| StoreError::Locked(directory.to_owned()))?;
    Ok(Locks { _directory: Some(locked), file: Mutex::default() })
}

/// Locks that keep other processes from the store.
#[derive(Debug)]
pub(super) struct Locks {
    _directory: Option<Flock<File>>,
    file: Mutex<Option<Flock<File>>>,
}

impl Locks {
    /// Takes the lock on the file of the store in `directory`, if only the directory is locked so
    /// far. The caller does this before it writes anything.
    pub(super) fn complete(&self, directory: &Path) -> Result<(), StoreError> {
        // A panic while the mutex is held leaves either `Some` or `None`.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(own_lock(directory)?);
        }
        Ok(())
    }
}

/// Takes the lock of the store in `directory` on its own file.
pub(super) fn own_lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join("lock");
    let lock = files::lock(&path)?.ok_or_else(|| StoreError::Locked(directory.to_owned()))?;
    files::change_owner(&path, directory)?;
    Ok(lock)
}

/// Removes the temporary files of interrupted writes in the store's `directory` and in its entries.
/// The caller owns the lock.
///
/// # Errors
/// When the directory cannot be listed, or a file cannot be removed.
pub(super) fn remove_unfinished(directory: &Path, models: &Path) -> Result<(), FileError> {
    let mut left = temporary_files(directory)?;
    // A directory that cannot be listed is reported when its entry is read.
    let (entries, _unlisted) = children(models);
    let entries = entries.iter().filter(|entry| !entry.is_symlink());
    left.extend(entries.filter_map(|entry| temporary_files(entry).ok()).flatten());
    left.iter().try_for_each(|file| files::remove(file))
}

fn temporary_files(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let children = fs::read_dir(directory).and_then(Iterator::collect);
    let mut children: Vec<fs::DirEntry> = children.map_err(FileError::new("list", directory))?;
    children.retain(|child| {
        let is_file = child.file_type().is_ok_and(|kind| kind.is_file());
        is_file && files::is_temporary(&child.file_name())
    });
    Ok(children.iter().map(fs::DirEntry::path).collect())
}

/// Contents of a store: see [`Store::examine`](super::Store::examine).
#[derive(Debug, Default)]
pub struct StoreContents {
    /// The entries that can be read.
    pub entries: Vec<StoreEntry>,
    /// The other entries: the path of each, and why it cannot be read.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Error that leaves the two lists incomplete: the directory cannot be listed to its end.
    pub unlisted: Option<FileError>,
}

/// Reads every entry in `models`, as far as the disk returns them.
pub(super) fn read_entries(models: &Path) -> StoreContents {
    let (children, unlisted) = children(models);
    let mut found = StoreContents { unlisted, ..StoreContents::default() };
    for path in children {
        match read_entry(&path) {
            Ok(entry) => found.entries.push(entry),
            Err(reason) => found.unreadable.push((files::display_path(&path).into_owned(), reason)),
        }
    }
    found
}

/// Reads the entry whose directory is `path`. The error is the reason why it cannot be used.
pub(super) fn read_entry(path: &Path) -> Result<StoreEntry, String> {
    let read = |name: &str, limit| {
        files::read_limited(&path.join(name), limit).map_err(|error| chain(&error))
    };
    let record: InstallRecord =
        serde_json::from_slice(&read(RECORD, MAX_RECORD)?).map_err(|error| chain(&error))?;
    let bytes = read(MANIFEST, MAX_MANIFEST)?;
    if Digest::of(&bytes) != record.manifest_digest {
        return Err("manifest.json differs from the installed one".to_owned());
    }
    let manifest = Manifest::parse(&bytes).map_err(|error| chain(&error))?;
    let key = EntryKey::new(&manifest, record.manifest_digest);
    if path.file_name().and_then(|name| name.to_str()) != Some(key.directory().as_str()) {
        return Err(format!("the directory contains another entry, {key}"));
    }
    let accesses = AccessStats::of(&record);
    Ok(StoreEntry { key, manifest: Arc::new(manifest), record, accesses, disabled: None })
}

/// Ignores an error of a failing disk: the store opens despite it.
pub(super) fn unless_disk_failed(error: FileError) -> Result<(), FileError> {
    if error.disk_failed() { Ok(()) } else { Err(error) }
}

/// Returns the paths in `directory`, as far as it can be listed, and the error that ended the list.
/// A directory that does not exist counts as empty: a disk that refuses writes prevented its
/// creation.
fn children(directory: &Path) -> (Vec<PathBuf>, Option<FileError>) {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return (Vec::new(), Some(FileError::new("list", directory)(error))),
    };
    let (mut children, mut failed) = (Vec::new(), None);
    for child in listed {
        match child {
            Ok(child) => children.push(child.path()),
            Err(error) => failed = Some(FileError::new("list", directory)(error)),
        }
    }
    (children, failed)
}

/// Writes the record of the entry whose directory is `directory`.
pub(super) fn write_record(
    directory: &Path,
    record: &InstallRecord,
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
