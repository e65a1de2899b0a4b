//! Lends an entry to a child process, which reads it while this process holds the store.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use super::super::entries::Entries;
use super::super::entry::{EntryKey, StoreEntry};
use super::super::unpack::Durability;
use super::disk_condition::DiskCondition;
use super::{MODELS, Store, disk};
use crate::files::FileError;

impl Store {
    /// Opens the directory of the store. A child process that inherits the handle needs no path to
    /// the directory.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_directory(&self) -> Result<File, FileError> {
        File::open(&self.directory).map_err(FileError::new("open", &self.directory))
    }

    /// Returns the directory of the entry `key` in the store in `directory`.
    pub fn directory_of(directory: &Path, key: &EntryKey) -> PathBuf {
        directory.join(MODELS).join(key.directory())
    }

    /// Opens the one entry `key` of the store in `directory`, which another process holds. The
    /// entry cannot be changed.
    ///
    /// # Errors
    /// When the entry cannot be read; the error is the reason.
    pub fn open_single(directory: &Path, key: &EntryKey) -> Result<Self, String> {
        let entry = disk::read_entry(&Self::directory_of(directory, key))?;
        // `key` may be the printed one with 12 digits: the caller finds the entry under it.
        let entry = StoreEntry { key: key.clone(), ..entry };
        let lent = Self {
            directory: directory.to_owned(),
            durability: Durability::Volatile,
            writing: Mutex::default(),
            index: Mutex::new(Entries::from_iter([entry])),
            failed_removals: Mutex::default(),
            highest: Mutex::default(),
            trusted: Mutex::default(),
            unpacking: Mutex::default(),
            opened: Instant::now(),
            disk: DiskCondition::default(),
            locks: None,
        };
        Ok(lent)
    }
}
