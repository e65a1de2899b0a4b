//! Lists the packages of a directory, each with a fingerprint of its files.
//!
//! The drop directory and the bundled directory are listed in the same way.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use nix::sys::statvfs::fstatvfs;
use serde::{Deserialize, Serialize};

use super::other_files::{OtherFiles, OtherKind};
use super::{SIDECARS, SUFFIX};
use crate::base::printable::is_printable;
use crate::files::FileError;

/// Longest name of a package, in bytes. With every suffix that is appended to it, a file system
/// accepts it.
pub const MAX_NAME: usize = 240;
/// Longest path of a drop directory in a record, in bytes: `PATH_MAX` of Linux.
const MAX_DIRECTORY: usize = 4096;

/// Returns whether `name` may be the name of a package in the drop directory or the bundled one:
/// one path component with a package's suffix, at most 240 bytes, only printable characters, no dot
/// at the beginning.
pub fn is_package_name(name: &str) -> bool {
    name.ends_with(SUFFIX)
        && !name.starts_with('.')
        && name.len() <= MAX_NAME
        && name.chars().all(|c| c != '/' && is_printable(c))
}

/// Returns whether `file` may name a package of a drop directory in a record: the name of a package
/// in the main drop directory, or the absolute path of a package in a further one.
///
/// The path alone permits nothing: code that acts on the file compares its directory with the
/// configured ones.
pub fn is_dropped_file(file: &str) -> bool {
    let Some((directory, name)) = file.rsplit_once('/') else { return is_package_name(file) };
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    is_package_name(name)
        && directory.starts_with('/')
        && directory.len() <= MAX_DIRECTORY
        && directory.chars().all(is_printable)
        && Path::new(directory).components().all(is_plain)
}

/// Fingerprint of a package and its sidecars: inode, size and times of each. A directory counts by
/// its inode alone, because its contents do not make it a package. The fingerprint also holds the
/// directory in which the files were seen, which comparisons ignore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileFingerprint(pub(super) String);

/// Separator before the directory in the text of a fingerprint. Older versions wrote no directory.
const SEEN_IN: &str = " in ";

impl PartialEq for FileFingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.parts().0 == other.parts().0
    }
}

impl Eq for FileFingerprint {}

impl FileFingerprint {
    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once(SEEN_IN) {
            Some((files, directory)) => (files, Some(directory)),
            None => (&self.0, None),
        }
    }

    /// Returns the directory in which the files were seen, in the form of [`directory_id`].
    pub fn directory_id(&self) -> Option<&str> {
        self.parts().1
    }

    /// Returns the size of the package in bytes; `None` for a directory.
    pub fn size(&self) -> Option<u64> {
        let package = self.parts().0.split(' ').next()?;
        package.split(':').nth(1)?.parse().ok()
    }

    fn seen_in(mut self, place: &str) -> Self {
        self.0.push_str(SEEN_IN);
        self.0.push_str(place);
        self
    }

    fn of(files: &[Metadata]) -> Self {
        let files = files.iter().map(|file| match file.is_dir() {
            true => file.ino().to_string(),
            false => {
                let (changed, changed_ns) = (file.ctime(), file.ctime_nsec());
                format!("{}{changed}.{changed_ns}", Self::beginning(file))
            }
        });
        Self(Vec::from_iter(files).join(" "))
    }

    /// Returns the part of the fingerprint that stays the same when `file` is renamed.
    fn beginning(file: &Metadata) -> String {
        let (modified, modified_ns) = (file.mtime(), file.mtime_nsec());
        format!("{}:{}:{modified}.{modified_ns}:", file.ino(), file.size())
    }

    /// Returns whether `file`, renamed or not, is one of the files of this fingerprint.
    pub(super) fn is_of(&self, file: &Metadata) -> bool {
        let beginning = Self::beginning(file);
        self.0.split(' ').any(|part| match file.is_dir() {
            true => part.parse() == Ok(file.ino()),
            false => part.starts_with(&beginning),
        })
    }
}

/// Returns an identity of the directory at `directory`: its file system and its inode. If another
/// volume is mounted there, or the volume is unmounted, the identity differs. The file system's own
/// id is used where it has one, because it stays the same when a disk gets another device number.
///
/// # Errors
/// When the directory cannot be examined.
pub fn directory_id(directory: &Path) -> Result<String, FileError> {
    let handle = File::open(directory).map_err(FileError::new("open", directory))?;
    let found = handle.metadata().map_err(FileError::new("examine", directory))?;
    let system = fstatvfs(&handle)
        .map_err(|errno| FileError::new("examine the file system of", directory)(errno.into()))?;
    Ok(format!("{:x}:{}", system.filesystem_id(), found.ino()))
}

/// Lists the packages in `directory`, each with the fingerprint of itself and its sidecars.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> Result<BTreeMap<String, FileFingerprint>, FileError> {
    list_all(directory).map(|listing| listing.packages)
}

/// Contents of a directory.
#[derive(Debug)]
pub struct DirectoryListing {
    /// The [`directory_id`] of the directory.
    pub place: String,
    /// Packages, each with the fingerprint of itself and its sidecars.
    pub packages: BTreeMap<String, FileFingerprint>,
    /// Files that are not packages.
    pub others: OtherFiles,
}

/// Lists the packages as [`list`] does, and also the other files of the directory.
///
/// # Errors
/// When the directory cannot be read, or is replaced by another one meanwhile.
pub fn list_all(directory: &Path) -> Result<DirectoryListing, FileError> {
    let mut listing = BTreeMap::new();
    let mut others = OtherFiles::default();
    let seen_in = directory_id(directory)?;
    for child in fs::read_dir(directory).map_err(FileError::new("list", directory))? {
        let child = child.map_err(FileError::new("list", directory))?;
        let name = match child.file_name().into_string() {
            // rsync, scp and file managers mark unfinished files with a leading dot.
            Ok(name) if name.ends_with(SUFFIX) && !name.starts_with('.') => name,
            other => {
                let name = other.unwrap_or_else(|name| name.to_string_lossy().into_owned());
                let is_directory = child.file_type().is_ok_and(|kind| kind.is_dir());
                if let Some(kind) = OtherKind::of(&name, is_directory) {
                    others.insert(name, kind);
                }
                continue;
            }
        };
        let sidecars = SIDECARS.map(|ending| directory.join(format!("{name}{ending}")));
        let files = [child.path()].into_iter().chain(sidecars);
        let mut metadata = Vec::new();
        for file in files {
            match fs::symlink_metadata(&file) {
                Ok(found) => metadata.push(found),
                // The name of a package may be so long that the name of a sidecar would be invalid.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(FileError::new("examine", file)(error)),
            }
        }
        listing.insert(name, FileFingerprint::of(&metadata).seen_in(&seen_in));
    }
    // A volume may have been mounted or unmounted since the first file was listed.
    if directory_id(directory)? != seen_in {
        let replaced = io::Error::other("the directory was replaced while it was listed");
        return Err(FileError::new("list", directory)(replaced));
    }
    Ok(DirectoryListing { place: seen_in, packages: listing, others })
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.model.tar.zst";

    #[test]
    fn fingerprint_comparison_ignores_directory() {
        let [one, two] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        fs::write(one.path().join(NAME), "package").unwrap();
        let fingerprint = list(one.path()).unwrap().remove(NAME).unwrap();
        let [here, there] = [&one, &two].map(|directory| directory_id(directory.path()).unwrap());
        assert_ne!(here, there);
        assert_eq!(fingerprint.directory_id(), Some(here.as_str()));
        let (files, _place) = fingerprint.parts();
        // An older version wrote fingerprints without the directory.
        let old = FileFingerprint(files.to_owned());
        assert_eq!((&old, old.directory_id()), (&fingerprint, None));
        let elsewhere = old.clone().seen_in(&there);
        assert_eq!(elsewhere, fingerprint);
        assert_ne!(FileFingerprint("1:2".to_owned()), fingerprint);
    }

    #[test]
    fn fingerprint_knows_size_and_others_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path(NAME), "package").unwrap();
        fs::write(path("a.model.tar.zst.sha256"), "digest").unwrap();
        fs::write(path("a.gguf"), "").unwrap();
        fs::create_dir(path("b.model.tar.zst")).unwrap();
        fs::create_dir(path("model")).unwrap();
        let listing = list_all(directory.path()).unwrap();
        assert_eq!(listing.packages[NAME].size(), Some(7));
        assert_eq!(listing.packages["b.model.tar.zst"].size(), None);
        assert_eq!(FileFingerprint(String::new()).size(), None);
        let others = Vec::from_iter(listing.others.listed.keys().map(String::as_str));
        assert_eq!((others, listing.others.count), (vec!["a.gguf", "model"], 2));
        assert_eq!(listing.place, directory_id(directory.path()).unwrap());
    }

    #[test]
    fn name_too_long_for_sidecars_is_listed() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("{}{SUFFIX}", "a".repeat(255 - SUFFIX.len()));
        fs::write(directory.path().join(&name), "").unwrap();
        assert_eq!(list(directory.path()).unwrap().into_keys().next(), Some(name));
    }

    #[test]
    fn package_name_is_safe_component_with_suffix() {
        let fits = format!("{}{SUFFIX}", "a".repeat(MAX_NAME - SUFFIX.len()));
        for good in [NAME, "é x.model.tar.zst", &fits] {
            assert!(is_package_name(good), "{good}");
        }
        let long = format!("a{fits}");
        for bad in [
            "",
            "a",
            "/etc/a.model.tar.zst",
            "../a.model.tar.zst",
            "a/b.model.tar.zst",
            ".a.model.tar.zst",
            SUFFIX,
            "a\n.model.tar.zst",
            "a\u{1b}[2J.model.tar.zst",
            "a\u{9b}2J.model.tar.zst",
            "a\u{202e}b.model.tar.zst",
            "a.model.tar.zst/",
            "a.model.tar.zst\0",
            &long,
        ] {
            assert!(!is_package_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn dropped_file_is_name_or_absolute_path() {
        for good in [NAME, "/media/stick/a.model.tar.zst", "/srv/é x/a.model.tar.zst"] {
            assert!(is_dropped_file(good), "{good}");
        }
        let long = format!("/{}/{NAME}", "a/".repeat(MAX_DIRECTORY / 2));
        for bad in [
            "",
            "/etc",
            "/a.model.tar.zst",
            "a/a.model.tar.zst",
            "../a.model.tar.zst",
            "/media/../etc/a.model.tar.zst",
            "/media/stick/.a.model.tar.zst",
            "/media/stick/a.model.tar.zst/",
            "/media/\u{1b}[2J/a.model.tar.zst",
            &long,
        ] {
            assert!(!is_dropped_file(bad), "{bad:?}");
        }
    }

    #[test]
    fn fingerprint_recognizes_renamed_files() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in [NAME, "a.model.tar.zst.sha256", "other"] {
            fs::write(path(name), "content").unwrap();
        }
        fs::create_dir(path("b.model.tar.zst")).unwrap();
        let before = list(root.path()).unwrap();
        fs::rename(path(NAME), path("renamed")).unwrap();
        let metadata = |name: &str| fs::symlink_metadata(path(name)).unwrap();
        assert!(before[NAME].is_of(&metadata("renamed")));
        assert!(before[NAME].is_of(&metadata("a.model.tar.zst.sha256")));
        assert!(!before[NAME].is_of(&metadata("other")));
        assert!(!before[NAME].is_of(&metadata("b.model.tar.zst")));
        // A change inside a directory does not change its fingerprint.
        fs::write(path("b.model.tar.zst/file"), "").unwrap();
        let after = list(root.path()).unwrap();
        assert_eq!(before["b.model.tar.zst"], after["b.model.tar.zst"]);
        assert!(after["b.model.tar.zst"].is_of(&metadata("b.model.tar.zst")));
    }
}
