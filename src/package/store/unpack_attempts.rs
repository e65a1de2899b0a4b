//! Counts attempts to unpack a file: the store refuses a file whose unpacking ended the daemon
//! twice.
//!
//! `<directory>/unpacking.json` lists each file whose unpacking began and has not ended, with its
//! fingerprint and the number of attempts. The store writes and syncs the list before it reads a
//! byte of the package. Success, refusal, a panic and a stop on purpose remove the file from the
//! list. A package without a file is not counted, because no restart repeats it.
//!
//! A bundled package gets another attempt when the store has been open for an hour. After each such
//! attempt the time doubles, up to a day. The reason: power cuts may have ended the earlier
//! attempts, and no operator can drop that file again.
//!
//! A disk that refuses writes prevents no attempt.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::install_record::Origin;
use super::super::listing::FileFingerprint;
use super::super::unpack::Durability;
use super::Store;
use crate::base::errors::{chain, errno};
use crate::files::{self, FileError};
use crate::telemetry::log::Message;

const FILE: &str = "unpacking.json";
/// Maximum number of attempts to unpack a file that ended without a result: a power cut may have
/// ended one.
const MOST_ATTEMPTS: u32 = 2;
/// Time for which the store must be open before a bundled package gets its first attempt above
/// [`MOST_ATTEMPTS`], and the upper bound of this time for later attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(3600);
const LAST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of files in the list. A file stays there only when its unpacking ended the
/// daemon.
const MOST_FILES: usize = 64;
/// Maximum size of the list: above the size of [`MOST_FILES`] names and fingerprints.
const MAX_SIZE: u64 = 512 << 10;

/// An unpacking that began and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UnpackAttempts {
    fingerprint: FileFingerprint,
    attempts: u32,
}

/// Attempts by the name of the file.
type Files = BTreeMap<String, UnpackAttempts>;

/// A package that is being unpacked, until this is dropped.
#[derive(Debug)]
pub struct UnpackGuard<'a> {
    store: &'a Store,
}

impl Drop for UnpackGuard<'_> {
    fn drop(&mut self) {
        self.store.end_unpacking();
    }
}

impl Store {
    /// Counts an attempt to unpack the package from `origin`, on the disk. Returns `None` when the
    /// file has used all its attempts: the caller must not unpack it now.
    pub fn begin_unpacking(&self, origin: &Origin) -> Option<UnpackGuard<'_>> {
        let unpacking = UnpackGuard { store: self };
        let (file, fingerprint) = match origin {
            Origin::Bundled { file, fingerprint } => (file, fingerprint),
            Origin::Dropped { files } => match files.first_key_value() {
                Some(named) => named,
                None => return Some(unpacking),
            },
            Origin::Installed => return Some(unpacking),
        };
        let mut current = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = self.read_unpacking();
        let begun = UnpackAttempts { fingerprint: fingerprint.clone(), attempts: 0 };
        let begun = match files.remove(file).filter(|begun| begun.fingerprint == *fingerprint) {
            Some(begun) if !may_begin(origin, begun.attempts, self.opened.elapsed()) => {
                return None;
            }
            Some(begun) => begun,
            None => begun,
        };
        while files.len() >= MOST_FILES {
            files.pop_first();
        }
        let attempts = begun.attempts.saturating_add(1);
        files.insert(file.clone(), UnpackAttempts { attempts, ..begun });
        self.write_unpacking(&files);
        *current = Some(file.clone());
        Some(unpacking)
    }

    /// Removes the current file from the list: its unpacking has ended, or the daemon stops on
    /// purpose.
    pub fn end_unpacking(&self) {
        let mut current = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = current.take() else { return };
        let mut files = self.read_unpacking();
        if files.remove(&file).is_some() {
            self.write_unpacking(&files);
        }
    }

    /// Removes the files that have become entries: the process ended after the installation and
    /// before the list was updated.
    pub(super) fn forget_unpacked(&self) {
        let mut files = self.read_unpacking();
        let before = files.len();
        let entries = self.entries();
        files.retain(|file, begun| {
            !entries.iter().any(|entry| match &entry.record.origin {
                Origin::Bundled { file: of, fingerprint } => {
                    of == file && *fingerprint == begun.fingerprint
                }
                Origin::Dropped { files } => files.get(file) == Some(&begun.fingerprint),
                Origin::Installed => false,
            })
        });
        if files.len() < before {
            self.write_unpacking(&files);
        }
    }

    fn read_unpacking(&self) -> Files {
        let path = self.directory.join(FILE);
        let read = files::read_limited(&path, MAX_SIZE).and_then(|bytes| {
            serde_json::from_slice(&bytes)
                .map_err(|error| FileError::new("read", &path)(error.into()))
        });
        match read {
            Ok(files) => files,
            Err(error) => {
                // The next attempt writes the list again.
                if error.kind() != io::ErrorKind::NotFound {
                    log_failure(
                        &error,
                        "attempts to unpack packages cannot be read; they are counted from zero",
                    );
                }
                Files::new()
            }
        }
    }

    fn write_unpacking(&self, files: &Files) {
        if self.durability == Durability::Volatile {
            return;
        }
        let path = self.directory.join(FILE);
        let written = match files.is_empty() {
            true => files::remove(&path).and_then(|()| files::sync_directory(&self.directory)),
            false => serde_json::to_vec(files)
                .map_err(|error| FileError::new("write", &path)(error.into()))
                .and_then(|json| files::write_atomic(&path, &json))
                .and_then(|()| files::change_owner(&path, &self.directory)),
        };
        if let Err(error) = self.disk.record_write(written) {
            log_failure(&error, "attempts to unpack packages cannot be stored");
        }
    }
}

/// Returns whether the package from `origin` may be unpacked after `attempts` attempts without an
/// end, when the store has been open for `open`.
fn may_begin(origin: &Origin, attempts: u32, open: Duration) -> bool {
    let Some(above) = attempts.checked_sub(MOST_ATTEMPTS) else { return true };
    let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(above)).min(LAST_PAUSE);
    origin.is_bundled() && open >= pause
}

fn log_failure(error: &FileError, what: &str) {
    tracing::error!(
        name: Message::StoreFailed.name(),
        errno = errno(error), error = chain(error),
        "{what}"
    );
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn origin(file: &str, fingerprint: &str) -> Origin {
        let fingerprint = serde_json::from_value(fingerprint.into()).unwrap();
        Origin::dropped(file.to_owned(), fingerprint)
    }

    fn open(directory: &TempDir) -> Store {
        Store::open(directory.path()).unwrap().0
    }

    /// Begins to unpack and does not end, as a killed process does. Returns whether it could begin.
    fn killed(directory: &TempDir, origin: &Origin) -> bool {
        let store = open(directory);
        let unpacking = store.begin_unpacking(origin);
        let began = unpacking.is_some();
        std::mem::forget(unpacking);
        began
    }

    #[test]
    fn unpacking_stops_after_two_crashes_until_change() {
        let directory = tempfile::tempdir().unwrap();
        let file = origin("a.model.tar.zst", "1");
        assert!(killed(&directory, &file));
        // Another file between the attempts changes nothing.
        drop(open(&directory).begin_unpacking(&origin("b.model.tar.zst", "1")).unwrap());
        assert!(killed(&directory, &file));
        assert!(!killed(&directory, &file) && !killed(&directory, &file));
        assert!(killed(&directory, &origin("a.model.tar.zst", "2")));
        for _ in 0..3 {
            assert!(killed(&directory, &Origin::Installed));
        }
    }

    #[test]
    fn bundled_package_is_retried_with_backoff() {
        let bundled = Origin::Bundled {
            file: "a.model.tar.zst".to_owned(),
            fingerprint: serde_json::from_value("1".into()).unwrap(),
        };
        let dropped = origin("a.model.tar.zst", "1");
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (attempts, pause) in [(2, 1), (3, 2), (4, 4), (6, 16), (7, 24), (u32::MAX, 24)] {
            let just_before = hours(pause) - Duration::from_nanos(1);
            assert!(!may_begin(&bundled, attempts, just_before), "{attempts}");
            assert!(may_begin(&bundled, attempts, hours(pause)), "{attempts}");
            assert!(!may_begin(&dropped, attempts, hours(1000)), "{attempts}");
        }
        for origin in [bundled, dropped] {
            assert!(may_begin(&origin, 0, Duration::ZERO) && may_begin(&origin, 1, Duration::ZERO));
        }
    }

    #[test]
    fn open_removes_temporary_files() {
        let directory = tempfile::tempdir().unwrap();
        let left = files::temporary(directory.path()).unwrap().into_temp_path();
        let [other, inner] = [".keep", ".abc123"].map(|name| directory.path().join(name));
        fs::write(&other, "").unwrap();
        fs::create_dir(&inner).unwrap();
        open(&directory);
        assert!(!left.exists() && other.exists() && inner.exists());
        std::mem::forget(left);
    }

    #[test]
    fn orderly_end_resets_attempts() {
        let directory = tempfile::tempdir().unwrap();
        let file = origin("a.model.tar.zst", "1");
        for _ in 0..2 {
            assert!(killed(&directory, &file));
            drop(open(&directory).begin_unpacking(&file).unwrap());
            assert!(!directory.path().join(FILE).exists());
            // The store ends the attempt on purpose while the file is being unpacked.
            let store = open(&directory);
            let unpacking = store.begin_unpacking(&file);
            store.end_unpacking();
            std::mem::forget(unpacking);
        }
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn attempts_are_bounded_and_damaged_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for number in 0..MOST_FILES + 5 {
            assert!(killed(&directory, &origin(&format!("{number}.model.tar.zst"), "1")));
        }
        let files: Files = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(files.len(), MOST_FILES);
        fs::write(&path, "{").unwrap();
        let file = origin("a.model.tar.zst", "1");
        assert!(killed(&directory, &file) && killed(&directory, &file));
        assert!(!killed(&directory, &file));
        // Every attempt may begin where the list cannot be written.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        for _ in 0..3 {
            assert!(killed(&directory, &file));
        }
    }
}
