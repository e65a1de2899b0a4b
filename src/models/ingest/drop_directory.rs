//! State of one drop directory: the main one, or a further one such as a removable disk.
//!
//! Caxton only reads a further directory. It may be absent, and may be another one after a while.
//! A file system that does not answer delays the other directories by [`LIST_TIMEOUT`] at most.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::log_records;
use crate::base::errors::chain;
use crate::files::FileError;
use crate::files::watch::CompletedFiles;
use crate::package::EntryKey;
use crate::package::drop_dir::{
    self, DirectoryListing, DropScanner, OtherFiles, OtherFilesLog, OtherFilesNews,
};

/// Longest time that a scan waits for the listing of a further directory.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// A directory of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryReport {
    /// The directory.
    pub path: PathBuf,
    /// State of the directory.
    pub state: DirectoryState,
}

/// State of a directory of packages. The texts are reasons, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectoryState {
    /// It was not scanned yet.
    Unknown,
    /// It can be read.
    Present,
    /// A further directory is not there now.
    Absent(String),
    /// It cannot be read.
    Unreadable(String),
    /// Another directory is in its place.
    Replaced(String),
}

impl DirectoryState {
    /// Returns whether both states are the same, for whatever reason.
    fn is_like(&self, other: &Self) -> bool {
        mem::discriminant(self) == mem::discriminant(other)
    }

    /// Returns the name of the state for clients, and the reason.
    pub fn describe(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Unknown => ("unknown", None),
            Self::Present => ("present", None),
            Self::Absent(reason) => ("absent", Some(reason)),
            Self::Unreadable(reason) => ("unreadable", Some(reason)),
            Self::Replaced(reason) => ("replaced", Some(reason)),
        }
    }
}

/// A drop directory, with the state of its files.
#[derive(Debug)]
pub struct DropDirectory {
    pub(super) path: PathBuf,
    /// Position in the order of the scans.
    pub(super) number: usize,
    /// Whether a model is removed together with its file in a further directory; `None` for the
    /// main directory, whose rule may change at any time.
    pub(super) further: Option<bool>,
    completed: CompletedFiles,
    pub(super) scanner: DropScanner,
    /// Listing that did not end in time.
    listing: Option<JoinHandle<Result<DirectoryListing, FileError>>>,
    state: DirectoryState,
    /// Files that `bundled_only` excludes. Each is logged once.
    pub(super) excluded: BTreeSet<String>,
    /// Files that are not packages.
    pub(super) others: OtherFiles,
    others_log: OtherFilesLog,
    /// Files that are missing, but were seen in another directory than the current one, and the
    /// models that stay without them. Each pair is logged once.
    pub(super) kept_without_file: BTreeSet<(String, EntryKey)>,
    /// Files that could not be detached from all models, each with the model from which it must not
    /// be detached. The next scan retries it.
    pub(super) undetached: BTreeMap<String, Option<EntryKey>>,
}

impl DropDirectory {
    /// Creates the state of the main directory. `completed` gets the names of its complete files.
    pub fn main(path: PathBuf, completed: CompletedFiles) -> Self {
        Self::new(path, None, completed)
    }

    /// Creates the state of a further directory. If `removes` is set, a model is removed together
    /// with its file.
    pub fn further(path: &Path, removes: bool, completed: CompletedFiles) -> Self {
        // Records hold the path, so it has one form.
        Self::new(path.components().collect(), Some(removes), completed)
    }

    fn new(path: PathBuf, further: Option<bool>, completed: CompletedFiles) -> Self {
        Self {
            path,
            number: 0,
            further,
            completed,
            scanner: DropScanner::default(),
            listing: None,
            state: DirectoryState::Unknown,
            excluded: BTreeSet::new(),
            others: OtherFiles::default(),
            others_log: OtherFilesLog::default(),
            kept_without_file: BTreeSet::new(),
            undetached: BTreeMap::new(),
        }
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_further(&self) -> bool {
        self.further.is_some()
    }

    /// Returns the name under which records, log and events know the file `name`: its name, or its
    /// path in a further directory.
    pub(super) fn file(&self, name: &str) -> String {
        match self.further {
            None => name.to_owned(),
            Some(_) => self.path.join(name).display().to_string(),
        }
    }

    /// Returns the name in this directory of a file that [`DropDirectory::file`] names; `None` if
    /// it is in another directory.
    pub(super) fn name_of<'a>(&self, file: &'a str) -> Option<&'a str> {
        match (self.further, file.rsplit_once('/')) {
            (None, None) => Some(file),
            (Some(_), Some((directory, name))) if Path::new(directory) == self.path => Some(name),
            _ => None,
        }
    }

    /// Passes the names of complete files to the scanner.
    pub(super) fn take_completed(&mut self) {
        self.scanner.mark_complete(self.completed.take());
    }

    /// Returns whether the directory could be read at the last scan.
    pub(super) fn is_present(&self) -> bool {
        self.state == DirectoryState::Present
    }

    /// Lists the directory. Returns `None` if the runtime is shutting down.
    ///
    /// A listing that does not end in time is an error now, and the next call waits for it again:
    /// at most one thread waits for the file system.
    pub(super) async fn list(&mut self) -> Option<Result<DirectoryListing, FileError>> {
        if self.further.is_some() && !drop_dir::is_dropped_file(&self.file("a.model.tar.zst")) {
            let what = "its path is too long or has characters that are not printable";
            let error = io::Error::new(io::ErrorKind::InvalidInput, what);
            return Some(Err(FileError::new("use", &self.path)(error)));
        }
        let path = self.path.clone();
        let start = || tokio::task::spawn_blocking(move || drop_dir::list_all(&path));
        let mut listing = self.listing.take().unwrap_or_else(start);
        let done = match self.further {
            None => (&mut listing).await,
            Some(_) => match tokio::time::timeout(LIST_TIMEOUT, &mut listing).await {
                Ok(done) => done,
                Err(_elapsed) => {
                    self.listing = Some(listing);
                    let error =
                        io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer");
                    return Some(Err(FileError::new("list", &self.path)(error)));
                }
            },
        };
        done.inspect_err(log_records::log_lost_task).ok()
    }

    /// Records that the directory cannot be read, and logs the change.
    pub(super) fn on_unreadable(&mut self, error: &FileError) {
        let reason = chain(error);
        let is_absent = self.is_further() && error.kind() != io::ErrorKind::PermissionDenied;
        let state = match is_absent {
            true => DirectoryState::Absent(reason.clone()),
            false => DirectoryState::Unreadable(reason.clone()),
        };
        let is_change = !self.state.is_like(&state);
        self.state = state;
        // These lists are of the last scan, and the files are not there now.
        self.others = OtherFiles::default();
        self.excluded.clear();
        match is_absent {
            _ if !is_change => {}
            true => log_records::log_absent(&self.path, &reason),
            false => log_records::log_unreadable("drop directory cannot be read", error),
        }
    }

    /// Records that the directory was read, and logs when a further directory has come back.
    pub(super) fn on_readable(&mut self) {
        let was = mem::replace(&mut self.state, DirectoryState::Present);
        if self.is_further() && !matches!(was, DirectoryState::Present | DirectoryState::Unknown) {
            log_records::log_present(&self.path);
            self.scanner.retry_failed();
        }
    }

    /// Remembers the files that are not packages, and logs each new one. Returns the time of the
    /// next scan.
    pub(super) fn mention_others(&mut self, found: OtherFiles, now: Instant) -> Option<Instant> {
        // A removable disk may hold any other files.
        self.others = if self.is_further() { found.only_models() } else { found };
        let OtherFilesNews { mention, further, next } = self.others_log.observe(&self.others, now);
        for (name, kind) in mention {
            log_records::log_not_a_package(&self.path, &name, kind);
        }
        if let Some(count) = further {
            log_records::log_further_files(&self.path, count);
        }
        next
    }

    /// Describes the directory for `/status`.
    pub(super) fn report(&self) -> DirectoryReport {
        let state = match &self.state {
            DirectoryState::Present if !self.kept_without_file.is_empty() => {
                let count = self.kept_without_file.len();
                DirectoryState::Replaced(format!(
                    "another directory is in its place, and {count} models stay without their files"
                ))
            }
            state => state.clone(),
        };
        DirectoryReport { path: self.path.clone(), state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stick() -> DropDirectory {
        DropDirectory::further(Path::new("/media//stick/"), false, CompletedFiles::default())
    }

    #[test]
    fn files_of_directories_are_told_apart() {
        let main = DropDirectory::main("/drop".into(), CompletedFiles::default());
        let name = "a.model.tar.zst";
        assert_eq!((main.file(name).as_str(), main.name_of(name)), (name, Some(name)));
        let stick = stick();
        let file = stick.file(name);
        assert_eq!(file, "/media/stick/a.model.tar.zst");
        assert_eq!((stick.name_of(&file), main.name_of(&file)), (Some(name), None));
        assert_eq!(stick.name_of(name), None);
        assert_eq!(stick.name_of("/media/stick/below/a.model.tar.zst"), None);
        assert_eq!(stick.name_of("/media/a.model.tar.zst"), None);
    }

    #[tokio::test]
    async fn absent_and_present_directory_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("stick");
        let mut stick = DropDirectory::further(&path, false, CompletedFiles::default());
        let error = stick.list().await.unwrap().unwrap_err();
        stick.on_unreadable(&error);
        assert!(matches!(stick.report().state, DirectoryState::Absent(_)));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("m.gguf"), "").unwrap();
        let listing = stick.list().await.unwrap().unwrap();
        stick.on_readable();
        assert!(stick.is_present());
        assert!(stick.mention_others(listing.others, Instant::now()).is_some());
        assert_eq!(stick.report().state, DirectoryState::Present);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_file_system_blocks_one_thread_only() {
        let mut stick = stick();
        let (release, wait) = tokio::sync::oneshot::channel::<()>();
        let empty = tempfile::tempdir().unwrap();
        let path = empty.path().to_owned();
        stick.listing = Some(tokio::runtime::Handle::current().spawn(async move {
            assert!(wait.await.is_err());
            drop_dir::list_all(&path)
        }));
        for _ in 0..3 {
            let error = stick.list().await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        drop(release);
        // The first listing, which is of another directory in this test, ends now.
        assert!(stick.list().await.unwrap().unwrap().packages.is_empty());
    }
}
