//! Quarantine of the drop directory: moves rejected packages into it, each with its reason in a
//! file beside it.
//!
//! Only the rejected files are moved. A file that took the name of one in the meantime is put back.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::super::digest::Digest;
use super::super::listing::{FileFingerprint, MAX_NAME, is_absent, list};
use super::super::{SIDECARS, SUFFIX};
use crate::base::errors::chain;
use crate::base::printable::{self, is_printable};
use crate::base::units::Bytes;
use crate::files::{self, FileError};

/// Name of the quarantine inside the drop directory.
const QUARANTINE: &str = "quarantine";
/// Suffix of the file that holds the reason, beside a rejected package.
const REASON: &str = ".reason";
/// Bytes of a reason that are read. A reason quotes a few names of a package at most.
const MAX_REASON: u64 = 64 << 10;
/// Maximum number of rejected packages that are kept.
const MAX_QUARANTINED: usize = 8;
/// Total size up to which rejected packages are kept, unless one package may be larger.
const LEAST_BOUND: Bytes = Bytes::mib(1024);

/// Result of [`quarantine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuarantineResult {
    /// The package has this path now.
    Moved(PathBuf),
    /// Another file has this name now, and nothing was moved.
    Replaced,
}

/// Returns the reason why the file `name` of `directory` cannot be a package with any contents, or
/// `None`.
///
/// # Errors
/// When it cannot be examined.
pub fn invalid_reason(directory: &Path, name: &str) -> Result<Option<String>, FileError> {
    if name.len() > MAX_NAME {
        let reason =
            format!("the file name has {} bytes, and at most {MAX_NAME} are allowed", name.len());
        return Ok(Some(reason));
    }
    // The record of an entry could not hold the name: see `is_package_name`.
    if !name.chars().all(is_printable) {
        return Ok(Some("the file name has characters that are not printable".to_owned()));
    }
    let path = directory.join(name);
    let found = fs::symlink_metadata(&path).map_err(FileError::new("examine", &path))?;
    let kind = found.file_type();
    let what = if kind.is_file() {
        return Ok(None);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Ok(Some(format!("the package is {what}, not a regular file: copy the package itself")))
}

/// Returns whether the file `name` of `directory` is still the `refused` one.
///
/// # Errors
/// When it cannot be examined.
pub fn is_unchanged(
    directory: &Path,
    name: &str,
    refused: &FileFingerprint,
) -> Result<bool, FileError> {
    let path = directory.join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) => Ok(refused.is_of(&found)),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(FileError::new("examine", path)(error)),
    }
}

/// Moves a rejected package and its sidecars into the quarantine and writes the reason beside it.
/// Then deletes the oldest packages there beyond the bounds.
///
/// `refused` is the fingerprint of the rejected files. `max_package` is the size of the largest
/// package. A name that is too long is shortened. A package of the same name in the quarantine is
/// replaced.
///
/// # Errors
/// When the drop directory cannot be written, or the package is a directory or larger than the
/// whole quarantine may be; the package then stays in the drop directory.
pub fn quarantine(
    directory: &Path,
    name: &str,
    refused: &FileFingerprint,
    reason: &str,
    max_package: Bytes,
) -> Result<QuarantineResult, FileError> {
    let named = directory.join(QUARANTINE);
    let path = directory.join(name);
    let bound = max_package.max(LEAST_BOUND);
    if !is_unchanged(directory, name, refused)? {
        return Ok(QuarantineResult::Replaced);
    }
    let found = fs::symlink_metadata(&path).map_err(FileError::new("examine", &path))?;
    let stays = |why: String| {
        FileError::new("quarantine", &path)(io::Error::new(io::ErrorKind::InvalidInput, why))
    };
    if found.is_dir() {
        // The quarantine deletes its oldest packages, and a directory may hold anything.
        return Err(stays("it is a directory: remove it manually".to_owned()));
    }
    if found.size() > bound.0 {
        let size = Bytes(found.size());
        return Err(stays(format!(
            "its size is {size}, and the quarantine is limited to {bound}: remove it manually"
        )));
    }
    // Every writer of the drop directory may create a link under this name. Caxton would write and
    // delete elsewhere if it followed the link.
    match fs::symlink_metadata(&named) {
        Err(error) if is_absent(&error) => files::create_directory(&named)?,
        _there => {}
    }
    let (_handle, quarantine) = files::open_held(&named)?;
    let kept_as = shorten(name);
    if !move_one(&path, &quarantine.join(&kept_as), refused)? {
        return Ok(QuarantineResult::Replaced);
    }
    for ending in SIDECARS {
        let sidecar = directory.join(format!("{name}{ending}"));
        move_one(&sidecar, &quarantine.join(format!("{kept_as}{ending}")), refused)?;
    }
    files::write_atomic(
        &quarantine.join(format!("{kept_as}{REASON}")),
        // Operators print the reason with `cat`, and it may quote contents of the package.
        format!("{}\n", printable::line(reason)).as_bytes(),
    )?;
    prune(&quarantine, MAX_QUARANTINED, bound)?;
    Ok(QuarantineResult::Moved(named.join(kept_as)))
}

/// Returns the name of a package in the quarantine: its own, or a prefix of it with a digest of the
/// whole.
fn shorten(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let digest = Digest::of(name.as_bytes()).short();
    let mut end = MAX_NAME - SUFFIX.len() - digest.len() - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{digest}{SUFFIX}", &name[..end])
}

/// Renames `from` to `to` if it is one of the `refused` files. Puts back another file that replaced
/// it in between. Returns whether the file was moved.
fn move_one(from: &Path, to: &Path, refused: &FileFingerprint) -> Result<bool, FileError> {
    move_with(from, to, refused, || {})
}

/// Moves a file as [`move_one`] does. Calls `between` after the file was examined and before it is
/// renamed.
fn move_with(
    from: &Path,
    to: &Path,
    refused: &FileFingerprint,
    between: impl FnOnce(),
) -> Result<bool, FileError> {
    let failed = |error| FileError::new("quarantine", from)(error);
    let is_refused = |found: io::Result<Metadata>| match found {
        Ok(found) => Ok(refused.is_of(&found)),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(failed(error)),
    };
    if !is_refused(fs::symlink_metadata(from))? {
        return Ok(false);
    }
    between();
    match fs::rename(from, to) {
        Err(error) if is_absent(&error) => return Ok(false),
        result => result.map_err(failed)?,
    }
    // Another file may have taken the name between the examination and the rename: examine the file
    // again, and put a wrong one back.
    if is_refused(fs::symlink_metadata(to))? {
        return Ok(true);
    }
    // A third file may have taken the old name since. It is the newest and stays, so do not replace
    // it.
    renameat2(AT_FDCWD, to, AT_FDCWD, from, RenameFlags::RENAME_NOREPLACE)
        .map_err(|errno| FileError::new("restore", to)(errno.into()))?;
    Ok(false)
}

/// Returns the packages in the quarantine of `directory` with their reasons, the newest first. The
/// list is empty when there is no quarantine, and a reason is empty when its file was removed. Does
/// not follow links.
///
/// # Errors
/// When the quarantine cannot be read.
pub fn list_quarantined(directory: &Path) -> Result<Vec<(String, String)>, FileError> {
    let (_handle, quarantine) = match files::open_held(&directory.join(QUARANTINE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        held => held?,
    };
    let reason = |name: String| {
        let path = quarantine.join(format!("{name}{REASON}"));
        let reason = match files::read_limited(&path, MAX_REASON) {
            Ok(reason) => String::from_utf8_lossy(&reason).trim_end().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => printable::line(&chain(&error)).into_owned(),
        };
        (name, reason)
    };
    let packages = oldest_first(&quarantine)?.into_iter().rev();
    Ok(packages.map(|(name, _size)| reason(name)).collect())
}

/// Deletes the oldest packages until at most `count` packages and at most `bound` bytes remain.
fn prune(quarantine: &Path, count: usize, bound: Bytes) -> Result<(), FileError> {
    let packages = oldest_first(quarantine)?;
    let mut left = packages.len();
    let mut size = packages.iter().fold(0, |sum: u64, (_, size)| sum.saturating_add(*size));
    for (name, its_size) in packages {
        if left <= count && size <= bound.0 {
            break;
        }
        for ending in endings() {
            files::remove(&quarantine.join(format!("{name}{ending}")))?;
        }
        left -= 1;
        size = size.saturating_sub(its_size);
    }
    Ok(())
}

/// Returns the suffixes of all files of one rejected package.
fn endings() -> impl Iterator<Item = &'static str> {
    ["", REASON].into_iter().chain(SIDECARS)
}

/// Returns the packages in `quarantine`, oldest first, each with the size of all its files.
fn oldest_first(quarantine: &Path) -> Result<Vec<(String, u64)>, FileError> {
    let mut packages = Vec::new();
    for name in list(quarantine)?.into_keys() {
        let path = quarantine.join(&name);
        let metadata = fs::symlink_metadata(&path).map_err(FileError::new("examine", &path))?;
        let sizes = endings().filter_map(|ending| {
            fs::symlink_metadata(quarantine.join(format!("{name}{ending}"))).ok()
        });
        let size = sizes.fold(0, |sum: u64, file| sum.saturating_add(file.size()));
        packages.push((metadata.ctime(), metadata.ctime_nsec(), name, size));
    }
    packages.sort();
    Ok(Vec::from_iter(packages.into_iter().map(|(_, _, name, size)| (name, size))))
}

#[cfg(test)]
mod tests;
