//! Compares every file of an entry with its manifest, without an effect on the entry.

use std::io::{self, Read};

use super::super::digest::HashingReader;
use super::super::entry::EntryKey;
use super::super::file_check::FileCheck;
use super::super::manifest::Member;
use super::{Store, StoreError};
use crate::base::errors::{chain, errno};
use crate::files::{self, FileError, ReadOnce};

impl Store {
    /// Hashes every file of an entry and returns a result for each, in the order of the manifest.
    /// Calls `progress` with the number of bytes hashed so far.
    ///
    /// Unlike [`verify`](Self::verify), it continues after a fault and does not mark the entry.
    /// Memory: a buffer of a few kilobytes.
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
            checks.push(self.check_file(key, member).unwrap_or_else(|error| match errno(&error) {
                Some(libc::ENOENT) => FileCheck::missing(member),
                _ => FileCheck::unreadable(member, &chain(&error)),
            }));
            done += member.size;
            progress(done);
        }
        Ok(checks)
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
    use crate::package::file_check::FileStatus;
    use crate::package::fixture::package;
    use crate::package::{CleanupRule, Origin, Quota, UnpackLimits};

    #[test]
    fn every_fault_is_listed_and_entry_is_unmarked() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::volatile(place.path()).unwrap();
        let quota = Quota { max_size: Bytes::mib(8), max_models: 9, cleanup: CleanupRule::Manual };
        let limits = UnpackLimits::for_size(Bytes::mib(8));
        let staged = store.stage(&package("m", "1")[..], &limits).unwrap();
        let key = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
        let statuses = |store: &Store| {
            let checks = store.check_files(&key, |_| {}).unwrap();
            Vec::from_iter(checks.into_iter().map(|check| check.status))
        };
        assert_eq!(statuses(&store), [FileStatus::Valid; 3]);
        let directory = Store::directory_of(place.path(), &key);
        fs::remove_file(directory.join("config.json")).unwrap();
        fs::remove_file(directory.join("tokenizer.json")).unwrap();
        fs::create_dir(directory.join("tokenizer.json")).unwrap();
        fs::write(directory.join("model.safetensors"), "x").unwrap();
        let before = store.entry(&key).unwrap().record.status;
        assert_eq!(
            statuses(&store),
            [FileStatus::Missing, FileStatus::Unreadable, FileStatus::Invalid]
        );
        assert_eq!(store.entry(&key).unwrap().record.status, before);
    }
}
