//! Tracks the disk below the store: whether it accepts writes, which entries cannot be read, and
//! whether it has fs-verity.
//!
//! A failing disk disables only the data that it cannot return. The store opens, serves the entries
//! that it can read, and retries the others. This state is not stored: it is determined again after
//! each start.
//!
//! Invariant: no lock of this module is held during I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::statfs::{FsType, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::super::entry::{EntryKey, StoreEntry};
use super::super::verity;
use super::{Store, disk};
use crate::base::errors::chain;
use crate::files::{self, FileError};

/// fs-verity of the store's files: the kernel checks them when it reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verity {
    /// On, for entries that became available since the file system supports it.
    On,
    /// Off, with the reason.
    Off(String),
}

/// Condition of the disk below a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageCondition {
    /// The kind of the file system.
    pub file_system: String,
    /// State of fs-verity.
    pub verity: Verity,
    /// Reason why nothing can be written.
    pub unwritable: Option<String>,
    /// Reason why the entries cannot be listed.
    pub unlisted: Option<String>,
    /// Number of entries that cannot be read, or have a file that cannot be read.
    pub unreadable: usize,
}

impl StorageCondition {
    /// Returns a sentence for each failure, without names of models or files.
    pub fn degraded(&self) -> Vec<String> {
        let unwritable = self
            .unwritable
            .iter()
            .map(|why| format!("the store cannot be written ({why}); installed models are served"));
        let unlisted = self.unlisted.iter().map(|why| {
            format!("the models in the store cannot be listed ({why}) and are not served")
        });
        let unreadable = match self.unreadable {
            0 => None,
            1 => Some("1 entry of the store cannot be read".to_owned()),
            more => Some(format!("{more} entries of the store cannot be read")),
        };
        unwritable.chain(unlisted).chain(unreadable).collect()
    }
}

/// Last known state of the disk.
#[derive(Default)]
pub(super) struct DiskCondition {
    known: Mutex<KnownFailures>,
    /// Called when the store finds a failure that can perhaps be repaired at once.
    attention: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct KnownFailures {
    unwritable: Option<String>,
    /// Reason why the entries cannot be listed.
    unlisted: Option<String>,
    /// Entries that could not be read when the store was opened: the reason, by the name of the
    /// directory.
    left_out: BTreeMap<String, String>,
    /// Files that could not be read later: the reason, by entry and file.
    unread: BTreeMap<EntryKey, BTreeMap<String, String>>,
    verity: Option<Verity>,
}

impl fmt::Debug for DiskCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCondition").finish_non_exhaustive()
    }
}

impl DiskCondition {
    fn known(&self) -> MutexGuard<'_, KnownFailures> {
        // A panic while the lock is held leaves the maps whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the callback set by [`Store::on_attention`].
    pub(super) fn notify(&self) {
        if let Some(attention) = self.attention.get() {
            attention();
        }
    }

    /// Records whether a write succeeded.
    pub(super) fn record_write<T>(&self, written: Result<T, FileError>) -> Result<T, FileError> {
        match &written {
            Ok(_) => {
                let was = self.known().unwritable.take();
                if was.is_some() {
                    self.notify();
                }
            }
            Err(error) if error.disk_failed() => self.record_write_failure(cause(error)),
            Err(_not_the_disk) => {}
        }
        written
    }

    fn record_write_failure(&self, why: String) {
        let was = self.known().unwritable.replace(why);
        if was.is_none() {
            self.notify();
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.known().unwritable.is_none()
    }

    /// Records whether the entries could be listed.
    pub(super) fn set_unlisted(&self, error: Option<&FileError>) {
        self.known().unlisted = error.map(cause);
    }

    /// Returns the reason why the entries cannot be listed.
    pub(super) fn unlisted(&self) -> Option<String> {
        self.known().unlisted.clone()
    }

    /// Records that the entry in the directory `path` cannot be read.
    pub(super) fn record_skipped(&self, path: &Path, reason: String) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.known().left_out.insert(name.into_owned(), reason);
    }

    /// Records that `file` of an entry could not be read. Ignores errors that are not those of the
    /// disk.
    pub(super) fn record_read_failure(&self, key: &EntryKey, file: &str, error: &FileError) {
        if !error.disk_failed() {
            return;
        }
        let reason = chain(error);
        self.known().unread.entry(key.clone()).or_default().insert(file.to_owned(), reason);
        self.notify();
    }

    /// Records that `file` of an entry was read.
    pub(super) fn record_read(&self, key: &EntryKey, file: &str) {
        let mut known = self.known();
        if let Some(files) = known.unread.get_mut(key) {
            files.remove(file);
            if files.is_empty() {
                known.unread.remove(key);
            }
        }
    }

    pub(super) fn is_unread(&self, key: &EntryKey) -> bool {
        self.known().unread.contains_key(key)
    }

    /// Clears the records of an entry that was removed or written again.
    pub(super) fn forget(&self, key: &EntryKey) {
        let mut known = self.known();
        known.unread.remove(key);
        known.left_out.remove(&key.directory());
    }

    /// Records whether fs-verity could be enabled.
    pub(super) fn record_verity(&self, tried: Result<(), nix::errno::Errno>) {
        use nix::errno::Errno;
        let verity = match tried {
            Ok(()) => Verity::On,
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => {
                Verity::Off("the file system or the kernel does not support it".to_owned())
            }
            Err(errno) => Verity::Off(errno.desc().to_owned()),
        };
        self.known().verity = Some(verity);
    }
}

/// Returns the innermost cause, without a path.
fn cause(error: &FileError) -> String {
    let error: &(dyn std::error::Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

impl Store {
    /// Sets a callback that is called when an entry is found to be corrupt or unreadable, when it is
    /// intact again, and when the disk begins to refuse writes or accepts them again. Any thread may
    /// call it. Only the first callback is kept.
    pub fn on_attention(&self, attention: impl Fn() + Send + Sync + 'static) {
        drop(self.disk.attention.set(Box::new(attention)));
    }

    /// Returns the condition of the disk. Blocks for two system calls.
    pub fn condition(&self) -> StorageCondition {
        let file_system = match statfs(&self.directory) {
            Ok(found) => name_of(found.filesystem_type()),
            Err(errno) => format!("unknown ({})", errno.desc()),
        };
        let unwritable = self.write_refusal();
        let is_kept = self.entries().iter().any(|entry| !entry.record.verity.is_empty());
        let known = self.disk.known();
        let off = || Verity::Off("not tried yet".to_owned());
        StorageCondition {
            file_system,
            verity: known
                .verity
                .clone()
                .unwrap_or_else(|| if is_kept { Verity::On } else { off() }),
            unwritable: unwritable.or_else(|| known.unwritable.clone()),
            unlisted: known.unlisted.clone(),
            unreadable: known.left_out.len() + known.unread.len(),
        }
    }

    /// Returns the reason why the entry could not be read the last time, if it could not.
    pub fn unreadable(&self, key: &EntryKey) -> Option<String> {
        self.disk.known().unread.get(key).and_then(|files| files.values().next().cloned())
    }

    /// Returns the entries with a file that could not be read the last time.
    pub fn unreadable_keys(&self) -> BTreeSet<EntryKey> {
        self.disk.known().unread.keys().cloned().collect()
    }

    /// Retries failed operations: makes the store writable when its file system accepts writes
    /// again, lists the entries, and reads those that could not be read. Returns the recovered
    /// entries. Blocks; writes only after a write has failed, or to detect fs-verity.
    pub fn recover(&self) -> Vec<EntryKey> {
        let _writing = self.writing();
        if !self.disk.is_writable() && self.write_refusal().is_none() {
            // `disk` records success and failure alike.
            drop(self.try_to_write());
        }
        if self.disk.known().verity.is_none() && self.disk.is_writable() {
            self.probe_verity();
        }
        let mut found = Vec::new();
        if self.disk.unlisted().is_some() {
            self.list_again(&mut found);
        }
        let left_out = Vec::from_iter(self.disk.known().left_out.keys().cloned());
        for name in left_out {
            let path = self.models().join(&name);
            match disk::read_entry(&path) {
                Ok(entry) => {
                    self.disk.known().left_out.remove(&name);
                    found.push(entry.key.clone());
                    self.insert_entry(entry);
                }
                Err(_) if path.symlink_metadata().is_err_and(is_absent) => {
                    self.disk.known().left_out.remove(&name);
                }
                Err(reason) => self.disk.record_skipped(&path, reason),
            }
        }
        found
    }

    /// Lists the entries once more and adds new ones to `found`. The caller holds `writing`.
    fn list_again(&self, found: &mut Vec<EntryKey>) {
        let disk::StoreContents { entries, unreadable, unlisted } =
            disk::read_entries(&self.models());
        self.disk.set_unlisted(unlisted.as_ref());
        for (path, reason) in unreadable {
            self.disk.record_skipped(&path, reason);
        }
        for entry in entries {
            if self.index().get(&entry.key).is_none() {
                found.push(entry.key.clone());
                self.insert_entry(entry);
            }
        }
    }

    /// Detects with an empty file whether the file system supports fs-verity.
    fn probe_verity(&self) {
        let staging = self.directory.join("staging");
        // The kernel refuses fs-verity for a file that is open for writing.
        let Ok(path) = files::temporary(&staging).map(tempfile::NamedTempFile::into_temp_path)
        else {
            return;
        };
        if let Ok(file) = files::open_regular(&path) {
            self.disk.record_verity(verity::enable(&file));
        }
    }

    /// Returns the reason why the file system accepts no writes, as far as statvfs(3) reports one.
    fn write_refusal(&self) -> Option<String> {
        let found = statvfs(&self.directory).ok()?;
        let why = if found.flags().contains(FsFlags::ST_RDONLY) {
            "its file system is mounted read-only"
        } else if found.blocks() > 0 && found.blocks_available() == 0 {
            "its file system is full"
        } else {
            return None;
        };
        Some(why.to_owned())
    }

    /// Creates the directories that opening the store could not create, then writes and removes a
    /// file.
    fn try_to_write(&self) -> Result<(), FileError> {
        // A store opened with [`Store::open_single`] is never written to.
        let Some(locks) = &self.locks else { return Ok(()) };
        let staging = self.directory.join("staging");
        match locks.complete(&self.directory) {
            Err(super::StoreError::File(error)) => return self.disk.record_write(Err(error)),
            // Another process has opened the store since, so this one must not write to it.
            Err(_locked) => return Ok(()),
            Ok(()) => {}
        }
        let tried = make_directories(&self.directory).and_then(|()| {
            let file = files::temporary(&staging)?;
            fs::write(file.path(), [0]).map_err(FileError::new("write", file.path()))?;
            file.as_file().sync_all().map_err(FileError::new("sync", file.path()))
        });
        self.disk.record_write(tried)
    }

    /// Enables fs-verity for the files of the entry in `directory`, so that the kernel checks each
    /// read from now on. Then hashes each file through its handle. Returns the kernel's digests by
    /// file, or an empty map where the file system does not support fs-verity.
    pub(super) fn protect(
        &self,
        directory: &Path,
        entry: &StoreEntry,
    ) -> Result<BTreeMap<String, String>, super::StoreError> {
        use super::super::member;
        let mut digests = BTreeMap::new();
        for member in &entry.manifest.files {
            let path = directory.join(member.path.as_str());
            let file = files::open_regular(&path)?;
            let tried = verity::enable(&file);
            self.disk.record_verity(tried);
            if tried.is_err() {
                return Ok(BTreeMap::new());
            }
            let Some(digest) = verity::measure(&file) else { return Ok(BTreeMap::new()) };
            // The file cannot change any more, so the kernel's digest now stands for the bytes that
            // are compared here.
            let name = member.path.as_str();
            self.intact(&entry.key, name, member::check(file, &path, member))?;
            digests.insert(name.to_owned(), digest);
        }
        Ok(digests)
    }
}

fn is_absent(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Creates the directories of the store in `directory` and gives them its owner. Keeps the contents
/// of staging.
pub(super) fn make_directories(directory: &Path) -> Result<(), FileError> {
    for name in ["staging", "models"] {
        let path = directory.join(name);
        files::create_directory(&path)?;
        files::change_owner(&path, directory)?;
    }
    Ok(())
}

/// Returns the name of a kind of file system, as mount(8) prints it.
fn name_of(kind: FsType) -> String {
    const KNOWN: [(i64, &str); 9] = [
        (0xef53, "ext4"),
        (0x9123_683e, "btrfs"),
        (0xf2f5_2010, "f2fs"),
        (0x5846_5342, "xfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x7371_7368, "squashfs"),
        (0x6969, "nfs"),
        (0x4d44, "vfat"),
    ];
    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    let number = kind.0 as i64;
    let known = KNOWN.iter().find(|(magic, _)| *magic == number);
    known.map_or_else(|| format!("file system {number:#x}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(number: i32) -> FileError {
        FileError::new("write", "/store/x")(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn successful_write_clears_unwritable_state() {
        let disk = DiskCondition::default();
        for number in [libc::EROFS, libc::ENOSPC, libc::EIO] {
            drop(disk.record_write::<()>(Err(failed(number))));
            assert!(!disk.is_writable(), "{number}");
            disk.record_write(Ok(())).unwrap();
            assert!(disk.is_writable(), "{number}");
        }
        drop(disk.record_write::<()>(Err(failed(libc::EACCES))));
        assert!(disk.is_writable(), "the disk is not to blame for missing rights");
    }

    #[test]
    fn unreadable_entry_stays_available_until_reinstalled() {
        use crate::base::units::Bytes;
        use crate::package::UnpackLimits;
        use crate::package::fixture::package;
        use crate::package::install_record::{CleanupRule, InstallStatus, Origin, Quota};
        use crate::package::member::MemberError;

        let quota = Quota { max_size: Bytes::mib(64), max_models: 9, cleanup: CleanupRule::Manual };
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let bytes = package("m", "1");
        let admit = || {
            let staged = store.stage(&bytes[..], &UnpackLimits::for_size(Bytes::mib(8))).unwrap();
            store.install(staged, Origin::Installed, quota, |_| false).unwrap()
        };
        let key = admit().entry.key;
        store.activate(&key, quota, |_| false).unwrap();
        assert!(admit().existed);
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let called = std::sync::Arc::clone(&calls);
        store.on_attention(move || {
            called.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let error = store.intact::<()>(&key, "w", Err(MemberError::Unread(failed(libc::EIO))));
        assert!(matches!(error, Err(super::super::StoreError::File(_))), "{error:?}");
        assert_eq!(store.entries()[0].record.status, InstallStatus::Available);
        assert!(store.unreadable(&key).is_some());
        assert_eq!(store.condition().unreadable, 1);
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 1);
        let healed = admit();
        assert!(!healed.existed);
        assert_eq!(healed.entry.record.status, InstallStatus::Available);
        assert_eq!((store.unreadable(&key), store.condition().unreadable), (None, 0));
        store.read(&key).unwrap();
        // Missing permissions are not a failure of the disk.
        drop(store.intact::<()>(&key, "w", Err(MemberError::Unread(failed(libc::EACCES)))));
        assert_eq!(store.unreadable(&key), None);
    }

    #[test]
    fn degraded_messages_contain_no_paths() {
        let whole = StorageCondition {
            file_system: "ext4".to_owned(),
            verity: Verity::On,
            unwritable: None,
            unlisted: None,
            unreadable: 0,
        };
        assert_eq!(whole.degraded(), Vec::<String>::new());
        let why = cause(&failed(libc::EROFS));
        assert!(why.starts_with("Read-only file system"), "{why}");
        let failing = StorageCondition { unwritable: Some(why), unreadable: 2, ..whole };
        let said = failing.degraded();
        assert!(said[0].contains("Read-only") && !said[0].contains("/store"), "{said:?}");
        assert_eq!(said[1], "2 entries of the store cannot be read");
    }

    /// Checks a store whose entries the disk or a wrong mode hides at start.
    #[test]
    fn unlisted_entries_recover_without_reopening() {
        use std::os::unix::fs::PermissionsExt;

        use nix::unistd::{Uid, chown, geteuid, setfsuid};

        use crate::base::units::Bytes;
        use crate::package::fixture::package;
        use crate::package::install_record::{CleanupRule, Origin, Quota};
        use crate::package::{TrustInput, UnpackLimits};

        let quota = Quota { max_size: Bytes::mib(64), max_models: 9, cleanup: CleanupRule::Manual };
        let place = tempfile::tempdir().unwrap();
        let bytes = package("m", "1");
        let stage = |store: &Store| store.stage(&bytes[..], &UnpackLimits::for_size(Bytes::mib(8)));
        {
            let store = Store::volatile(place.path()).unwrap();
            store.install(stage(&store).unwrap(), Origin::Installed, quota, |_| false).unwrap();
        }
        let models = place.path().join("models");
        let mode = |mode| fs::set_permissions(&models, PermissionsExt::from_mode(mode)).unwrap();
        // Give this thread another user id in the file system, because modes do not restrict root.
        let other = geteuid().is_root().then(|| Uid::from_raw(65_534));
        let opened = std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                if let Some(other) = other {
                    let all = ["", "lock", "models", "staging"].map(|name| place.path().join(name));
                    let entries = fs::read_dir(&models).unwrap().map(|child| child.unwrap().path());
                    for path in all.into_iter().chain(Vec::from_iter(entries)) {
                        chown(&path, Some(other), None).unwrap();
                        for child in path.read_dir().into_iter().flatten() {
                            chown(&child.unwrap().path(), Some(other), None).unwrap();
                        }
                    }
                    setfsuid(other);
                }
                mode(0o000);
                let (store, damaged) = Store::open(place.path()).unwrap();
                assert!(
                    damaged[0].starts_with("cannot list ") && damaged.len() == 1,
                    "{damaged:?}"
                );
                store.apply_trust(&TrustInput::default());
                assert_eq!(store.recover(), []);
                let degraded = store.condition().degraded();
                assert!(
                    degraded[0].contains("cannot be listed (Permission denied"),
                    "{degraded:?}"
                );
                // The store refuses packages while it does not know which are installed.
                let error = chain(&stage(&store).unwrap_err());
                assert!(error.contains("models: Permission denied"), "{error}");
                assert!(Store::examine(place.path()).unlisted.is_some());

                mode(0o700);
                let found = store.recover();
                assert_eq!(found, Vec::from_iter(store.entries().iter().map(|it| it.key.clone())));
                assert_eq!(found.len(), 1);
                assert_eq!(store.condition().degraded(), Vec::<String>::new());
                assert_eq!(store.recover(), []);
                stage(&store).unwrap();
            });
            user.join()
        });
        mode(0o700);
        opened.unwrap();
    }
}
