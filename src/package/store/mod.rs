//! Store of verified packages, unpacked on disk, with an index of them in memory.
//!
//! ```text
//! <directory>/lock                held by the one process that may change the store
//! <directory>/models/<id>@<version>+<digest>/
//!                                 manifest.json, record.json and the manifest's files; the name
//!                                 has 12 digits of the digest
//! <directory>/versions.json       the highest version of each id that was installed signed
//! <directory>/unpacking.json      files whose unpacking began and has not ended
//! <directory>/staging/            entries being installed or removed; emptied at start
//! ```
//!
//! Invariants:
//! 1. An entry appears by one rename out of staging and is removed by one rename into it. A crash
//!    at any moment leaves the old state or the new one.
//! 2. Contents are returned only after their digests were compared: see [`contents`].
//! 3. One process at a time uses the store. It takes the lock before it reads anything.
//! 4. A thread that changes an entry holds `writing` until the change is on the disk. No thread
//!    holds the index while it waits for the disk, because the runtime reads the index at each
//!    request.
//! 5. The index is a snapshot that is never changed in place while a caller holds it: a change
//!    copies the list of pointers and the changed entry. An access of an entry is not a change.
//! 6. A failing disk disables only the data that it cannot return: see [`disk_condition`].
//!
//! Most methods block on the disk. [`Store::entries`] and [`Store::count_access`] do not: the
//! runtime may call them.

mod access_counts;
mod approval;
mod clean_up;
mod contents;
mod disk;
mod disk_condition;
mod error;
mod file_checks;
mod free_space;
mod origin_files;
mod rollback;
mod single_entry;
mod space;
mod test_attempts;
mod trust;
mod unpack_attempts;
mod verified;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tempfile::TempDir;

use super::access_stats::AccessStats;
use super::entries::Entries;
use super::entry::{EntryKey, StoreEntry};
use super::install_record::{InstallRecord, InstallStatus, Origin, Quota};
use super::signer::Signer;
use super::trust::TrustInput;
use super::unpack::{Durability, PackageHeader, UnpackError, UnpackedPackage, unpack_if};
use super::unpack_limits::UnpackLimits;
use crate::base::errors::chain;
use crate::files::{self, FileError};
pub use approval::{Approval, ApprovalError};
pub use clean_up::{RemovalReason, RemovedModel};
pub use disk::StoreContents;
use disk::{Locks, unless_disk_failed};
use disk_condition::{DiskCondition, make_directories};
pub use disk_condition::{StorageCondition, Verity};
pub use error::StoreError;
pub use free_space::{FreeSpace, NoSpace};
pub use rollback::{RollbackError, RollbackResult, RollbackTarget};
pub use space::StoreUse;
use space::{IncomingPackage, entries_to_remove};
pub use trust::TrustChange;
pub use unpack_attempts::UnpackGuard;
pub use verified::PackageBytes;

/// Name of the entries' directory in the store.
const MODELS: &str = "models";

/// A package that was read and verified but is not installed. Dropping it deletes the staged files.
#[derive(Debug)]
pub struct Staged {
    directory: TempDir,
    unpacked: UnpackedPackage,
    signer: Option<Signer>,
}

impl Staged {
    /// Returns the unpacked package: its manifest and digests.
    pub fn unpacked(&self) -> &UnpackedPackage {
        &self.unpacked
    }

    /// Sets the signer that vouches for the package.
    #[must_use]
    pub fn signed_by(self, signer: Option<Signer>) -> Self {
        Self { signer, ..self }
    }
}

/// Result of [`Store::install`].
#[derive(Debug)]
pub struct StoreInstall {
    /// The entry, new or already installed.
    pub entry: StoreEntry,
    /// `true` if the entry was installed already.
    pub existed: bool,
}

/// The store of one device, with an index of its entries in memory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    durability: Durability,
    /// Allows one change at a time.
    writing: Mutex<()>,
    index: Mutex<Entries>,
    /// Entries that could not be removed when another one needed their space.
    /// [`Store::take_failed_removals`] empties the list after each installation, so its length is
    /// bounded by the number of entries.
    failed_removals: Mutex<Vec<(EntryKey, StoreError)>>,
    /// The highest version of each id that was installed with a signature.
    highest: Mutex<trust::HighestVersions>,
    /// The keys and bundled packages by which the entries were judged last. Lock order: before the
    /// index.
    trusted: Mutex<Option<TrustInput>>,
    /// Name of the file that is being unpacked; held while its attempts are written.
    unpacking: Mutex<Option<String>>,
    opened: Instant,
    disk: DiskCondition,
    /// `None` for a store opened with [`Store::open_single`].
    locks: Option<Locks>,
}

impl Store {
    /// Opens the store in `directory` and creates it if it does not exist: takes its lock, empties
    /// staging, reads the index.
    ///
    /// Entries that cannot be read are not in the index. The second value holds a reason for each.
    /// A disk that refuses writes is not an error, nor are entries that cannot be listed: see
    /// [`Store::condition`].
    ///
    /// # Errors
    /// When another process holds the store, `directory` cannot be created, or a directory in it
    /// cannot be created for another reason than a failing disk.
    pub fn open(directory: &Path) -> Result<(Self, Vec<String>), StoreError> {
        Self::open_as(directory, Durability::Synced)
    }

    /// Reads the entries of the store in `directory`, without its lock. An entry that is installed
    /// or removed meanwhile may be listed among the unreadable ones.
    pub fn examine(directory: &Path) -> StoreContents {
        disk::read_entries(&directory.join(MODELS))
    }

    /// Opens a store in `directory` that is deleted together with it: no write is synced to the
    /// disk.
    ///
    /// # Errors
    /// When a directory cannot be created or read.
    pub fn volatile(directory: &Path) -> Result<Self, StoreError> {
        Self::open_as(directory, Durability::Volatile).map(|(store, _damaged)| store)
    }

    fn open_as(
        directory: &Path,
        durability: Durability,
    ) -> Result<(Self, Vec<String>), StoreError> {
        files::create_directory(directory)?;
        let locks = disk::lock(directory)?;
        let disk = DiskCondition::default();
        let emptied = files::remove(&directory.join("staging"));
        let emptied =
            emptied.and_then(|()| disk::remove_unfinished(directory, &directory.join(MODELS)));
        let prepared = disk.record_write(emptied.and_then(|()| make_directories(directory)));
        prepared.or_else(unless_disk_failed)?;
        let StoreContents { entries, unreadable, unlisted } =
            disk::read_entries(&directory.join(MODELS));
        let index = Entries::from_iter(entries);
        let (highest, problem) = trust::read(directory);
        let mut damaged = Vec::from_iter(problem);
        damaged.extend(unlisted.as_ref().map(|error| chain(error)));
        disk.set_unlisted(unlisted.as_ref());
        for (path, reason) in unreadable {
            damaged.push(format!("{}: {reason}", path.display()));
            disk.record_skipped(&path, reason);
        }
        let directory = directory.to_owned();
        let (writing, index) = (Mutex::default(), Mutex::new(index));
        let (failed_removals, highest) = (Mutex::default(), Mutex::new(highest));
        let trusted = Mutex::default();
        let store = Self {
            directory,
            durability,
            writing,
            index,
            failed_removals,
            highest,
            trusted,
            unpacking: Mutex::default(),
            opened: Instant::now(),
            disk,
            locks: Some(locks),
        };
        store.forget_unpacked();
        Ok((store, damaged))
    }

    /// Returns a snapshot of the entries. Does not copy them.
    pub fn entries(&self) -> Entries {
        self.index().clone()
    }

    /// Reads a package from `source`, once, into private staging, and verifies it.
    ///
    /// # Errors
    /// When the package is incomplete or refused, or the disk fails; staging is then empty again.
    pub fn stage(&self, source: impl Read, limits: &UnpackLimits) -> Result<Staged, UnpackError> {
        self.stage_if(source, limits, |_announced| Ok(()))
    }

    /// Stages a package as [`Store::stage`] does, if `approve` accepts the announced contents.
    /// Calls `approve` before a byte of the package is written.
    ///
    /// # Errors
    /// Those of [`Store::stage`], and that of `approve`.
    pub fn stage_if<E: From<UnpackError>>(
        &self,
        source: impl Read,
        limits: &UnpackLimits,
        approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), E>,
    ) -> Result<Staged, E> {
        let staging = self.directory.join("staging");
        if !self.disk.is_writable() || self.disk.unlisted().is_some() {
            // The file system may accept writes again, or may be listed again.
            self.recover();
        }
        if let Some(why) = self.disk.unlisted() {
            // Without a list, neither the installed packages nor their part of the quota are known.
            let source = io::Error::other(why);
            return Err(UnpackError::Io { operation: "list", path: self.models(), source }.into());
        }
        let directory =
            tempfile::Builder::new().prefix("install-").tempdir_in(&staging).map_err(|source| {
                UnpackError::Io { operation: "create a directory in", path: staging, source }
            })?;
        let unpacked = unpack_if(source, limits, directory.path(), self.durability, approve)?;
        Ok(Staged { directory, unpacked, signer: None })
    }

    /// Installs a staged package as [`InstallStatus::Untested`].
    ///
    /// An installed entry with the same key is kept, unless it is corrupt, quarantined or cannot be
    /// read. Such an entry is replaced by the staged files. The new entry is available at once if
    /// its contents passed the self-test before.
    ///
    /// Removes no other entry: [`Store::activate`] does that, when the self-test has passed.
    /// `keep` returns `true` for entries that must not be removed then.
    ///
    /// # Errors
    /// When the quota would be exceeded or the disk fails; nothing is installed then.
    pub fn install(
        &self,
        staged: Staged,
        origin: Origin,
        quota: Quota,
        keep: impl Fn(&StoreEntry) -> bool,
    ) -> Result<StoreInstall, StoreError> {
        let Staged { directory, unpacked, signer } = staged;
        let key = EntryKey::new(&unpacked.manifest, unpacked.manifest_digest);
        let _writing = self.writing();
        let index = self.entries();
        let mut keys = index.iter().map(|entry| &entry.key);
        if let Some(other) = keys.find(|other| **other != key && other.looks_like(&key)) {
            return Err(StoreError::LooksAlike(other.clone()));
        }
        let corrupt = match index.get(&key) {
            Some(entry)
                if matches!(
                    entry.record.status,
                    InstallStatus::Corrupt(_) | InstallStatus::Quarantined(_)
                ) || self.disk.is_unread(&key) =>
            {
                Some(&entry.record)
            }
            Some(entry) => {
                let entry = self.update_origin(entry.clone(), origin, signer)?;
                return Ok(StoreInstall { entry, existed: true });
            }
            None => None,
        };
        let now = rollback::next_timestamp(index.iter(), &unpacked.manifest.id);
        let vouched = signer.is_some() || origin.is_bundled();
        let disabled = index.get(&key).and_then(|entry| entry.disabled.clone());
        let disabled = trust::after_vouching(disabled, vouched);
        let is_repair = corrupt.is_some();
        let record = InstallRecord::untested(&unpacked, origin, signer, now, corrupt);
        let manifest = Arc::new(unpacked.manifest);
        let accesses = AccessStats::default();
        let mut entry = StoreEntry { key: key.clone(), manifest, record, accesses, disabled };
        // An untested entry only checks the quota now: no other entry is removed before it has
        // passed its self-test. An entry that replaces a tested one is available at once, so it
        // gets fs-verity here.
        if entry.record.status == InstallStatus::Untested {
            entries_to_remove(&index, IncomingPackage::from(&entry), quota, keep)?;
        } else {
            entry.record.verity = self.protect(directory.path(), &entry)?;
        }
        self.disk.record_write(disk::write_record(
            directory.path(),
            &entry.record,
            self.durability,
        ))?;
        files::change_owners(directory.path(), &self.directory)?;
        // An entry that is in the store under this key now is corrupt, quarantined or was never
        // readable.
        self.insert_directory(directory, &key)?;
        self.disk.forget(&key);
        self.index().insert(entry.clone());
        if is_repair {
            self.disk.notify();
        }
        Ok(StoreInstall { entry, existed: false })
    }

    /// Moves a staged directory to the path of `key` by one rename. Replaces an entry that is
    /// there, which is corrupt or was never readable, only if the rename succeeds. The caller holds
    /// `writing`.
    fn insert_directory(&self, directory: TempDir, key: &EntryKey) -> Result<(), StoreError> {
        let target = self.path(key);
        let aside = self.move_to_staging(key)?;
        let put_back = || {
            if let Some(aside) = &aside {
                // A failure here is harmless: the old entry could not be used anyway.
                drop(fs::rename(aside, &target));
            }
        };
        if let Err(error) = fs::rename(directory.path(), &target) {
            put_back();
            // The drop of `directory` removes the staged files.
            return Err(FileError::new("install", &target)(error).into());
        }
        if let Err(error) = self.sync_models() {
            // Move the entry back to the path that `directory` removes when it is dropped: an entry
            // that no caller learns of must not stay.
            drop(fs::rename(&target, directory.path()));
            put_back();
            return Err(error.into());
        }
        // The directory is not at its old path any more, so keep its handle from removing that
        // path.
        let _moved = directory.keep();
        if let Some(aside) = aside {
            files::remove(&aside)?;
        }
        Ok(())
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// When there is no such entry, or the disk fails.
    pub fn remove(&self, key: &EntryKey) -> Result<StoreEntry, StoreError> {
        if !self.disk.is_writable() {
            // The file system may accept writes again.
            self.recover();
        }
        let _writing = self.writing();
        self.remove_locked(key)
    }

    /// Removes an entry from the index, so that no request finds it, and then from the disk. Puts
    /// it back into the index if its directory could not be moved away. The caller holds `writing`.
    fn remove_locked(&self, key: &EntryKey) -> Result<StoreEntry, StoreError> {
        let entry = self.index().remove(key).ok_or_else(|| StoreError::Unknown(key.clone()))?;
        let discarded = self.remove_directory(key);
        if discarded.is_err() && self.path(key).try_exists().unwrap_or(true) {
            self.index().insert(entry.clone());
        } else {
            self.disk.forget(key);
        }
        discarded.map(|()| entry)
    }

    /// Moves the directory of `key` out of the store by one rename, then deletes it.
    fn remove_directory(&self, key: &EntryKey) -> Result<(), StoreError> {
        let Some(aside) = self.move_to_staging(key)? else { return Ok(()) };
        self.sync_models()?;
        Ok(files::remove(&aside)?)
    }

    /// Moves the directory of `key` into staging by one rename. Returns its new path, or `None`
    /// when it does not exist.
    fn move_to_staging(&self, key: &EntryKey) -> Result<Option<PathBuf>, StoreError> {
        let path = self.path(key);
        let aside = self.directory.join("staging").join(format!("removed-{key}"));
        files::remove(&aside)?;
        match fs::rename(&path, &aside) {
            Ok(()) => Ok(Some(aside)),
            // The missing path may also be staging: it does not exist when the disk refused to
            // create it.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && path.try_exists().is_ok_and(|there| !there) =>
            {
                Ok(None)
            }
            Err(error) => Err(FileError::new("remove", &path)(error).into()),
        }
    }

    /// Syncs the directory of the entries, so that renames into it and out of it survive a power
    /// cut.
    fn sync_models(&self) -> Result<(), FileError> {
        match self.durability {
            Durability::Synced => files::sync_directory(&self.models()),
            Durability::Volatile => Ok(()),
        }
    }

    /// Marks an entry that passed its self-test as available. Removes and returns the entries that
    /// it replaces and those that are removed to stay within the quota.
    ///
    /// The new record is written first. When that fails, or after a crash in between, every entry
    /// that was available still is. An entry that cannot be removed stays and is reported by
    /// [`Store::take_failed_removals`]. After a crash all of them stay: the store then exceeds its
    /// quota until the next installation.
    ///
    /// # Errors
    /// When there is no such entry, the quota would be exceeded, or the record cannot be written.
    /// No entry is removed then.
    pub fn activate(
        &self,
        key: &EntryKey,
        quota: Quota,
        keep: impl Fn(&StoreEntry) -> bool,
    ) -> Result<Vec<StoreEntry>, StoreError> {
        let _writing = self.writing();
        let mut entry = self.entry(key)?;
        let leaving =
            entries_to_remove(&self.entries(), IncomingPackage::from(&entry), quota, keep)?;
        let verity = self.protect(&self.path(key), &entry)?;
        // Store the signed version first, so that no crash after this permits a downgrade.
        self.remember_version(&entry)?;
        entry.record.status = InstallStatus::Available;
        entry.record.attempts = 0;
        entry.record.verity.clone_from(&verity);
        self.write_record(&entry)?;
        self.index().update(key, |indexed| {
            indexed.record.status = InstallStatus::Available;
            indexed.record.attempts = 0;
            indexed.record.verity = verity;
        });
        let mut removed = Vec::new();
        for key in leaving {
            let Ok(entry) = self.entry(&key) else { continue };
            let taken_out = self.remove_locked(&key);
            // The directory may be out of the store although it could not be deleted.
            if self.entry(&key).is_err() {
                removed.push(entry);
            }
            if let Err(error) = taken_out {
                self.failed_removals().push((key, error));
            }
        }
        Ok(removed)
    }

    /// Returns the entries that could not be removed for another one since the last call, with the
    /// reasons.
    pub fn take_failed_removals(&self) -> Vec<(EntryKey, StoreError)> {
        std::mem::take(&mut self.failed_removals())
    }

    fn entry(&self, key: &EntryKey) -> Result<StoreEntry, StoreError> {
        self.index().get(key).cloned().ok_or_else(|| StoreError::Unknown(key.clone()))
    }

    fn update(
        &self,
        key: &EntryKey,
        change: impl FnOnce(&mut InstallRecord),
    ) -> Result<(), StoreError> {
        let _writing = self.writing();
        self.change(key, change).map(drop)
    }

    /// Changes a record in memory, then writes it. The change in memory stays even if the write
    /// fails. The caller holds `writing`.
    fn change(
        &self,
        key: &EntryKey,
        change: impl FnOnce(&mut InstallRecord),
    ) -> Result<StoreEntry, StoreError> {
        let entry = self.index().update(key, |entry| change(&mut entry.record)).cloned();
        let entry = entry.ok_or_else(|| StoreError::Unknown(key.clone()))?;
        self.write_record(&entry)?;
        Ok(entry)
    }

    fn write_record(&self, entry: &StoreEntry) -> Result<(), StoreError> {
        let directory = self.path(&entry.key);
        let record = entry.current_record();
        self.disk.record_write(disk::write_record(&directory, &record, self.durability))?;
        Ok(files::change_owner(&directory.join(disk::RECORD), &self.directory)?)
    }

    fn models(&self) -> PathBuf {
        self.directory.join(MODELS)
    }

    fn path(&self, key: &EntryKey) -> PathBuf {
        self.models().join(key.directory())
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        // A panic while the lock is held leaves the index whole, as below, and the old or the new
        // state on disk.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_removals(&self) -> MutexGuard<'_, Vec<(EntryKey, StoreError)>> {
        // A panic while the lock is held leaves the list whole.
        self.failed_removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Entries> {
        // A panic while the lock is held leaves the index whole: every change is one insertion,
        // removal or replacement.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
