//! The rights of root, given up before the store is touched.
//!
//! The store and the drop directory belong to the daemon's user. Whoever took that user over may have put links, names
//! and damaged packages there, which a process with the rights of root would follow, delete and parse. So the command
//! line changes to the owner of the store for good; what only root may open (the configuration, a package on the command
//! line, the place of an exported file) is opened before.
//!
//! The directories themselves are held by handles: with `DynamicUser=` they lie below `/var/lib/private`, which root
//! alone may enter.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, geteuid, getresuid, setgroups, setresgid, setresuid};

use crate::config::Settings;
use crate::files::{self, FileError};

/// Why the rights of root were not given up; nothing of the store was touched.
#[derive(Debug, thiserror::Error)]
#[error("cannot change to user {uid}, the owner of {}", directory.display())]
pub(super) struct StayedRoot {
    uid: u32,
    directory: PathBuf,
    source: io::Error,
}

/// The user that the store belongs to, when that is another one than this process, which is root.
pub(super) struct Owner {
    uid: Uid,
    gid: Gid,
    /// The store, or the nearest directory above it that exists.
    directory: PathBuf,
    /// The store, below a handle.
    store: PathBuf,
}

impl Owner {
    /// Finds the owner of the store of `settings`; of the nearest directory above it when there is no store yet. `None`
    /// when this process is not root, or root is the owner.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub(super) fn of_store(settings: &Settings) -> Result<Option<Self>, FileError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let store = &settings.memory.model_cache.directory;
        let (directory, path, metadata) = nearest(store)?;
        let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        if uid.is_root() {
            return Ok(None);
        }
        let store = reached(store, directory, path);
        Ok(Some(Self { uid, gid, directory: directory.to_owned(), store }))
    }

    /// Changes to this user, for good. Returns `settings` whose directories this user reaches.
    ///
    /// # Errors
    /// When a directory cannot be opened, or the system refuses; then the process is still root, and is to end.
    pub(super) fn become_it(self, settings: &Settings) -> anyhow::Result<Settings> {
        let mut settings = settings.clone();
        let cache = &mut settings.memory.model_cache.directory;
        let dropped = &mut settings.packages.drop_directory;
        *dropped = match dropped.strip_prefix(&*cache) {
            // Below the store its owner decides what the name leads to, so that it is followed with the owner's rights.
            Ok(below) => self.store.join(below),
            Err(_elsewhere) => {
                let (directory, path, _metadata) = nearest(dropped)?;
                reached(dropped, directory, path)
            }
        };
        *cache = self.store;
        let Self { uid, gid, directory, .. } = self;
        let changed = setgroups(&[gid])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(io::Error::from)
            .and_then(|()| is_for_good(uid));
        changed.map_err(|source| StayedRoot { uid: uid.as_raw(), directory, source })?;
        Ok(settings)
    }
}

/// Changes to the owner of the store of `settings` when this process is root and the owner is not. Returns `settings`
/// whose directories the user reaches that this process then has.
///
/// # Errors
/// When a directory cannot be opened, or the system refuses; then the process is still root, and is to end.
pub(super) fn leave_root(settings: &Settings) -> anyhow::Result<Settings> {
    match Owner::of_store(settings)? {
        Some(owner) => owner.become_it(settings),
        None => Ok(settings.clone()),
    }
}

/// `path`, which is `directory` or lies below it, by way of the handle of `directory`.
fn reached(path: &Path, directory: &Path, handle: PathBuf) -> PathBuf {
    match path.strip_prefix(directory) {
        Ok(rest) if rest != Path::new("") => handle.join(rest),
        _ => handle,
    }
}

/// Whether this process has the rights of `uid` alone, and none to come back.
fn is_for_good(uid: Uid) -> io::Result<()> {
    let found = getresuid()?;
    let root = Uid::from_raw(0);
    let only = [found.real, found.effective, found.saved].iter().all(|found| *found == uid);
    if only && setresuid(root, root, root).is_err() {
        return Ok(());
    }
    Err(io::Error::other("the rights of root are still there"))
}

/// The nearest of `path` and the directories above it that exists, pinned.
fn nearest(path: &Path) -> Result<(&Path, PathBuf, std::fs::Metadata), FileError> {
    let mut ancestors = path.ancestors().filter(|path| *path != Path::new(""));
    loop {
        let directory = ancestors.next().unwrap_or(Path::new("/"));
        match files::pinned(directory) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && directory != Path::new("/") => {}
            pinned => return pinned.map(|(path, metadata)| (directory, path, metadata)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_directory_that_exists_is_pinned() {
        let root = tempfile::tempdir().unwrap();
        let (directory, path, metadata) = nearest(root.path()).unwrap();
        assert_eq!((directory, metadata.uid()), (root.path(), geteuid().as_raw()));
        assert_eq!(*files::shown(&path), root.path().canonicalize().unwrap());
        let absent = root.path().join("a/b");
        assert_eq!(nearest(&absent).unwrap().0, root.path());
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(nearest(&file.join("a")).is_err());
        assert_eq!(nearest(Path::new("/no-such-directory/x")).unwrap().0, Path::new("/"));
    }

    #[test]
    fn a_store_of_root_or_of_this_user_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.memory.model_cache.directory = root.path().join("store");
        assert!(Owner::of_store(&settings).unwrap().is_none());
    }
}
