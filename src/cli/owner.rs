//! Drop of root's rights before the store is used.
//!
//! The store and the drop directory belong to the daemon's user. An attacker who controls this user
//! may have put links, names and damaged packages there, and a process with the rights of root
//! would follow, delete and parse them. So the command line changes to the owner of the store
//! permanently. Files that only root may open (the configuration, a package on the command line,
//! the target of an export) are opened before.
//!
//! The directories themselves are reached through open handles: with `DynamicUser=` they are below
//! `/var/lib/private`, which only root may enter.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, geteuid, getresuid, setgroups, setresgid, setresuid};

use crate::config::Settings;
use crate::files::{self, FileError};

/// Error: the rights of root were not dropped. The store was not used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot change from root to user {uid}, the owner of {}; run the command as that user",
    directory.display()
)]
pub(super) struct RootNotDropped {
    uid: u32,
    directory: PathBuf,
    source: io::Error,
}

/// Owner of the store, when it differs from the user of this process, which is root.
pub(super) struct Owner {
    uid: Uid,
    gid: Gid,
    /// The store, or the nearest directory above it that exists.
    directory: PathBuf,
    /// Path of the store below an open handle.
    store: PathBuf,
}

impl Owner {
    /// Finds the owner of the store of `settings`, or of the nearest directory above it when the
    /// store does not exist yet. Returns `None` when this process does not run as root, or root is
    /// the owner.
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

    /// Changes to this user permanently. Returns `settings` with directories that this user can
    /// reach.
    ///
    /// # Errors
    /// When a directory cannot be opened, or the system call fails; the process still runs as root
    /// then, and must end.
    pub(super) fn drop_root(self, settings: &Settings) -> anyhow::Result<Settings> {
        let mut settings = settings.clone();
        let cache = &mut settings.memory.model_cache.directory;
        let dropped = &mut settings.packages.drop_directory;
        *dropped = match dropped.strip_prefix(&*cache) {
            // The owner of the store controls the path below the store, so it is followed with the
            // owner's rights, not with those of root.
            Ok(below) => self.store.join(below),
            Err(_elsewhere) => {
                let (directory, path, _metadata) = nearest(dropped)?;
                reached(dropped, directory, path)
            }
        };
        *cache = self.store;
        let Self { uid, gid, directory, .. } = self;
        // Order matters: groups first, since changing them needs the rights of root.
        let changed = setgroups(&[gid])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(io::Error::from)
            .and_then(|()| check_irreversible(uid));
        changed.map_err(|source| RootNotDropped { uid: uid.as_raw(), directory, source })?;
        Ok(settings)
    }
}

/// Changes to the owner of the store of `settings` when this process runs as root and the owner is
/// another user. Returns `settings` with directories that the resulting user can reach.
///
/// # Errors
/// When a directory cannot be opened, or the system call fails; the process still runs as root
/// then, and must end.
pub(super) fn drop_root_if_needed(settings: &Settings) -> anyhow::Result<Settings> {
    match Owner::of_store(settings)? {
        Some(owner) => owner.drop_root(settings),
        None => Ok(settings.clone()),
    }
}

/// Returns the path of `path`, which is `directory` or below it, through the handle of `directory`.
fn reached(path: &Path, directory: &Path, handle: PathBuf) -> PathBuf {
    match path.strip_prefix(directory) {
        Ok(rest) if rest != Path::new("") => handle.join(rest),
        _ => handle,
    }
}

/// Checks that this process has only the rights of `uid`, and cannot regain those of root.
fn check_irreversible(uid: Uid) -> io::Result<()> {
    let found = getresuid()?;
    let root = Uid::from_raw(0);
    let only = [found.real, found.effective, found.saved].iter().all(|found| *found == uid);
    if only && setresuid(root, root, root).is_err() {
        return Ok(());
    }
    Err(io::Error::other("the process still has the rights of root"))
}

/// Returns the nearest existing directory of `path` and its ancestors, with the path of an open
/// handle.
fn nearest(path: &Path) -> Result<(&Path, PathBuf, std::fs::Metadata), FileError> {
    let mut ancestors = path.ancestors().filter(|path| *path != Path::new(""));
    loop {
        let directory = ancestors.next().unwrap_or(Path::new("/"));
        match files::open_pinned(directory) {
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
    fn nearest_existing_directory_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let (directory, path, metadata) = nearest(root.path()).unwrap();
        assert_eq!((directory, metadata.uid()), (root.path(), geteuid().as_raw()));
        assert_eq!(*files::display_path(&path), root.path().canonicalize().unwrap());
        let absent = root.path().join("a/b");
        assert_eq!(nearest(&absent).unwrap().0, root.path());
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(nearest(&file.join("a")).is_err());
        assert_eq!(nearest(Path::new("/no-such-directory/x")).unwrap().0, Path::new("/"));
    }

    #[test]
    fn own_store_needs_no_user_switch() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.memory.model_cache.directory = root.path().join("store");
        assert!(Owner::of_store(&settings).unwrap().is_none());
    }
}
