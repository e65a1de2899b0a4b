//! Compares every file of an entry with its manifest, and continues after a fault.

use std::io::{self, Read};

use super::super::digest::HashingReader;
use super::super::entry::EntryKey;
use super::super::file_check::{FileCheck, FileStatus};
use super::super::manifest::Member;
use super::super::member::MemberError;
use super::{Store, StoreError};
use crate::base::errors::{chain, errno};
use crate::files::{self, FileError, ReadOnce};

impl Store {
    /// Hashes every file of an entry and returns a result for each, in the order of the manifest.
    /// Calls `progress` with the number of bytes hashed so far.
    ///
    /// Unlike [`verify`](Self::verify), it continues after a fault and does not mark the entry;
    /// [`record_checks`](Self::record_checks) does. Memory: a buffer of a few kilobytes.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn check_files(
        &self,
        key: &EntryKey,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<FileCheck>, StoreError> {
        let manifest = self.entry(key)?.manifest;
        let mut done = 0;
        let mut checks = Vec::with_capacity(manifest.files.len());
        for member in &manifest.files {
            let check = self.check_file(key, member).unwrap_or_else(|error| {
                let is_missing = errno(&error) == Some(libc::ENOENT);
                match MemberError::from(error) {
                    MemberError::Differs(_) if is_missing => FileCheck::missing(member),
                    MemberError::Differs(reason) => FileCheck::other_kind(member, &reason),
                    MemberError::Unread(error) => {
                        self.disk.record_read_failure(key, member.path.as_str(), &error);
                        FileCheck::unreadable(member, &chain(&error))
                    }
                }
            });
            checks.push(check);
            done += member.size;
            progress(done);
        }
        Ok(checks)
    }

    /// Marks an entry as corrupt if `checks`, the results of [`check_files`](Self::check_files),
    /// have a file that is missing or differs.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with the first such file.
    pub fn record_checks(&self, key: &EntryKey, checks: &[FileCheck]) -> Result<(), StoreError> {
        let differs =
            |check: &&FileCheck| matches!(check.status, FileStatus::Invalid | FileStatus::Missing);
        let Some(check) = checks.iter().find(differs) else { return Ok(()) };
        let reason = check.fault.clone().unwrap_or_default();
        self.intact(key, check.expected.path.as_str(), Err(MemberError::Differs(reason)))
    }

    fn check_file(&self, key: &EntryKey, member: &Member) -> Result<FileCheck, FileError> {
        let path = self.path(key).join(member.path.as_str());
        let file = files::open_regular(&path)?;
        let size = file.metadata().map_err(FileError::new("examine", &path))?.len();
        if size > member.size {
            // A file that has grown is not hashed, because its size has no bound.
            return Ok(FileCheck::compared(member, size, None));
        }
        let mut reader = HashingReader::new(ReadOnce::new(file).take(member.size));
        let read = io::copy(&mut reader, &mut io::sink()).map_err(FileError::new("read", &path))?;
        Ok(FileCheck::compared(member, read, Some(reader.finish())))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::package;
    use crate::package::{CleanupRule, InstallStatus, Origin, Quota, UnpackLimits};

    #[test]
    fn every_fault_is_listed_before_entry_is_marked() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let quota = Quota { max_size: Bytes::mib(8), max_models: 9, cleanup: CleanupRule::Manual };
        let limits = UnpackLimits::for_size(Bytes::mib(8));
        let staged = store.stage(&package("m", "1")[..], &limits).unwrap();
        let key = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
        store.activate(&key, quota, |_| false).unwrap();
        let check = || store.check_files(&key, |_| {}).unwrap();
        let statuses = |checks: &[FileCheck]| Vec::from_iter(checks.iter().map(|it| it.status));
        assert_eq!(statuses(&check()), [FileStatus::Valid; 3]);
        assert!(store.record_checks(&key, &check()).is_ok());
        let directory = Store::directory_of(place.path(), &key);
        fs::remove_file(directory.join("config.json")).unwrap();
        fs::remove_file(directory.join("tokenizer.json")).unwrap();
        fs::create_dir(directory.join("tokenizer.json")).unwrap();
        fs::remove_file(directory.join("model.safetensors")).unwrap();
        fs::write(directory.join("model.safetensors"), "x").unwrap();
        let before = store.entry(&key).unwrap().record.status;
        let checks = check();
        assert_eq!(
            statuses(&checks),
            [FileStatus::Missing, FileStatus::Invalid, FileStatus::Invalid]
        );
        assert_eq!(store.entry(&key).unwrap().record.status, before);
        let marked = store.record_checks(&key, &checks);
        assert!(matches!(marked, Err(StoreError::Corrupt { .. })), "{marked:?}");
        let reason = "config.json: the file is missing".to_owned();
        assert_eq!(store.entry(&key).unwrap().record.status, InstallStatus::Corrupt(reason));
    }
}
