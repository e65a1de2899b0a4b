//! An entry lent to a process that this one has started, which reads it while this one holds the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use super::super::entry::Key;
use super::super::unpack::Durability;
use super::medium::Medium;
use super::{MODELS, Store, disk};
use crate::files::FileError;

impl Store {
    /// Opens the directory of the store: a handle that another process inherits leads to it wherever it lies.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_directory(&self) -> Result<File, FileError> {
        File::open(&self.directory).map_err(FileError::new("open", &self.directory))
    }

    /// Returns where the files of the entry `key` are in a store in `directory`.
    pub fn directory_of(directory: &Path, key: &Key) -> PathBuf {
        directory.join(MODELS).join(key.directory())
    }

    /// Opens the one entry `key` of the store in `directory`, which another process holds. Nothing of it can be changed.
    ///
    /// # Errors
    /// When it cannot be read; says why.
    pub fn lend(directory: &Path, key: &Key) -> Result<Self, String> {
        let entry = disk::read_entry(&Self::directory_of(directory, key))?;
        let lent = Self {
            directory: directory.to_owned(),
            durability: Durability::Volatile,
            writing: Mutex::default(),
            index: Mutex::new(BTreeMap::from([(key.clone(), entry)])),
            stuck: Mutex::default(),
            highest: Mutex::default(),
            trusted: Mutex::default(),
            unpacking: Mutex::default(),
            opened: Instant::now(),
            medium: Medium::default(),
            locks: None,
        };
        Ok(lent)
    }
}
