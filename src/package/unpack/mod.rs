//! Unpacks a package into staging: reads it once and checks the content while it is written.
//!
//! Never follows a name out of staging and never overwrites a file. A failed attempt leaves its
//! files in staging; the caller owns staging and removes them.
//!
//! Invariants: when [`unpack`] succeeds, staging holds the exact bytes of the manifest, and exactly
//! the files that the manifest lists, with the listed sizes and digests. They are synced to disk if
//! [`Durability::Synced`] is requested. A stream that ends too early always gives
//! [`UnpackError::Truncated`], at any position.

mod check;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::archive::{Archive, ArchiveError, ArchiveMember};
use super::digest::{BackgroundHashingReader, Digest};
use super::manifest::{CONFIG, MANIFEST, Manifest, Member};
use super::unpack_limits::UnpackLimits;
use super::zstd_frame::{FrameError, ZstdFrame};
use crate::base::units::Bytes;
use crate::files::{self, WriteOnce};
pub use check::{PackageCheck, check_package};

/// Buffer size in bytes for copying a member.
const COPY_BUFFER: usize = 1 << 16;

/// Durability of the unpacked files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Files and directories are synced, so they survive a power failure.
    Synced,
    /// The files are deleted when this process ends, so they are not synced.
    Volatile,
}

/// Facts that a package announces at its beginning, before any file is written.
#[derive(Clone, Copy, Debug)]
pub struct PackageHeader<'a> {
    /// Checked manifest, with the size of every file.
    pub manifest: &'a Manifest,
    /// Digest of the manifest's bytes.
    pub manifest_digest: Digest,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// Content of `config.json`. Its digest matches the manifest.
    pub config: &'a [u8],
    /// Memory of the decoder during unpacking, in bytes: the declared window and the buffers.
    pub decoder_bytes: u64,
}

/// Result of unpacking a package into staging.
#[derive(Clone, Debug, PartialEq)]
pub struct UnpackedPackage {
    /// Parsed manifest of the package.
    pub manifest: Manifest,
    /// Digest of the manifest's bytes.
    pub manifest_digest: Digest,
    /// Digest of the package file.
    pub package_digest: Digest,
    /// Length of the package file in bytes.
    pub package_bytes: u64,
    /// Total size in bytes of all members, the manifest included.
    pub unpacked_bytes: u64,
}

/// Error of [`unpack`].
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes so far are a valid beginning of a package. The copy is still in progress, or was
    /// interrupted.
    #[error("the package ends after {bytes} bytes, before it is complete: copy all of it")]
    Truncated {
        /// Number of bytes present.
        bytes: u64,
    },
    /// The package is invalid. A retry fails as long as its bytes do not change.
    #[error("{}{reason}", member.as_ref().map(|name| format!("{name}: ")).unwrap_or_default())]
    Refused {
        /// Name of the invalid member, escaped for printing; `None` for the package as a whole.
        member: Option<String>,
        /// Description of the fault.
        reason: String,
    },
    /// Unpacking exceeded the time limit. A slow disk can cause this, so the package may be valid.
    #[error("the package was not unpacked within {} seconds", limit.as_secs())]
    TooSlow {
        /// Time limit from [`UnpackLimits::time`].
        limit: Duration,
    },
    /// The package cannot be read. The error does not show whether its content is valid.
    #[error("cannot read the package")]
    Source(#[source] io::Error),
    /// Staging cannot be written, or memory is short. The error does not show whether the package
    /// is valid.
    #[error("cannot {operation} {}", files::display_path(path).display())]
    Io {
        /// Failed operation.
        operation: &'static str,
        /// File or directory of the operation.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

/// Unpacks the package `source` into `staging`, which must exist and be empty and private.
///
/// Reads `source` to its end, once. Memory: the zstd window (at most 8 MiB, chosen by the package),
/// the manifest, `config.json` and less than 2 MiB of buffers. Files get mode 0644 less the umask.
/// If `durability` is [`Durability::Synced`], the files and then the directory are synced once all
/// of them are valid.
///
/// # Errors
/// When the package is incomplete, invalid, over a limit or cannot be read, or when staging cannot
/// be written. Files may remain in `staging`.
pub fn unpack(
    source: impl Read,
    limits: &UnpackLimits,
    staging: &Path,
    durability: Durability,
) -> Result<UnpackedPackage, UnpackError> {
    unpack_if(source, limits, staging, durability, |_announced| Ok(()))
}

/// Reads only the manifest at the beginning of the package `source`; returns it with the digest of
/// its bytes.
///
/// Returns `None` if the manifest cannot be read or breaks a rule. Only for trusted packages: the
/// rest of the package is not checked.
pub(super) fn peek(source: impl Read) -> Option<(Manifest, Digest)> {
    let limits = UnpackLimits::for_size(Bytes(u64::MAX));
    let mut archive = Archive::new(ZstdFrame::open(source, &limits, Instant::now).ok()?);
    let entry = archive.next_member().ok()??;
    if entry.name.as_str() != MANIFEST || entry.size > limits.max_manifest {
        return None;
    }
    let mut json = Vec::new();
    archive.read_to_end(&mut json).ok()?;
    Some((Manifest::parse(&json).ok()?, Digest::of(&json)))
}

/// Unpacks like [`unpack`], but only if `approve` accepts the announced facts.
///
/// Calls `approve` once, after the manifest and `config.json` were read and checked, and before the
/// first byte is written.
///
/// # Errors
/// The errors of [`unpack`], and the error of `approve`. After an error of `approve`, `staging` is
/// still empty.
pub fn unpack_if<E: From<UnpackError>>(
    source: impl Read,
    limits: &UnpackLimits,
    staging: &Path,
    durability: Durability,
    approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), E>,
) -> Result<UnpackedPackage, E> {
    unpack_timed(source, limits, staging, durability, approve, Instant::now)
}

fn unpack_timed<E: From<UnpackError>>(
    source: impl Read,
    limits: &UnpackLimits,
    staging: &Path,
    durability: Durability,
    approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), E>,
    now: impl FnMut() -> Instant,
) -> Result<UnpackedPackage, E> {
    let frame =
        ZstdFrame::open(source, limits, now).map_err(|error| frame_error(error, None, staging))?;
    let archive = Archive::new(frame);
    let mut unpacking = Unpacker { archive, staging, durability, files: Vec::new() };
    let (manifest, json) = unpacking.manifest(limits)?;
    let manifest_digest = Digest::of(&json);
    let (config, others) = match manifest.files.split_first() {
        Some((first, others)) if first.path.as_str() == CONFIG => {
            (unpacking.small_member(first)?, others)
        }
        // The memory estimate needs `config.json`, and `approve` needs the estimate before the
        // first write.
        _ => {
            let reason = format!("{CONFIG} must be the first file in the list");
            return Err(rejected(MANIFEST, reason).into());
        }
    };
    let manifest_bytes = json.len() as u64;
    approve(&PackageHeader {
        manifest: &manifest,
        manifest_digest,
        manifest_bytes,
        config: &config,
        decoder_bytes: unpacking.archive.get_ref().decoder_bytes(),
    })?;
    unpacking.write(MANIFEST, &json)?;
    unpacking.write(CONFIG, &config)?;
    for member in others {
        unpacking.member(member)?;
    }
    if let Some(entry) = unpacking.next_member()? {
        return Err(rejected(entry.name, "the manifest does not list this file".to_owned()).into());
    }
    if durability == Durability::Synced {
        unpacking.sync()?;
    }
    let (package_digest, package_bytes) = unpacking.archive.into_inner().finish();
    Ok(UnpackedPackage {
        manifest_digest,
        package_digest,
        package_bytes,
        unpacked_bytes: manifest.total_size() + manifest_bytes,
        manifest,
    })
}

struct Unpacker<'a, R> {
    archive: Archive<R>,
    staging: &'a Path,
    durability: Durability,
    /// Written files, to be synced once the whole package is known to be valid.
    files: Vec<(PathBuf, WriteOnce)>,
}

impl<R: Read> Unpacker<'_, R> {
    /// Reads and checks the manifest; returns it with its bytes.
    fn manifest(&mut self, limits: &UnpackLimits) -> Result<(Manifest, Vec<u8>), UnpackError> {
        let entry = self.expect_member(MANIFEST)?;
        if entry.size > limits.max_manifest {
            let reason =
                format!("it has {} bytes, over the limit of {}", entry.size, limits.max_manifest);
            return Err(rejected(MANIFEST, reason));
        }
        let mut json = Vec::new();
        self.archive
            .read_to_end(&mut json)
            .map_err(|error| self.read_error(error, Some(MANIFEST)))?;
        check_size(MANIFEST, entry.size, json.len() as u64)?;
        let manifest = Manifest::parse(&json)
            .map_err(|error| rejected(MANIFEST, error.reason().to_owned()))?;
        check_limits(&manifest, entry.size, limits)?;
        Ok((manifest, json))
    }

    /// Reads the next member of the archive, which must be `expected`, into memory. The manifest
    /// bounds its size.
    fn small_member(&mut self, expected: &Member) -> Result<Vec<u8>, UnpackError> {
        let name = expected.path.as_str();
        let entry = self.expect_member(name)?;
        check_size(name, expected.size, entry.size)?;
        let mut content = Vec::new();
        self.archive
            .read_to_end(&mut content)
            .map_err(|error| self.read_error(error, Some(name)))?;
        check_size(name, expected.size, content.len() as u64)?;
        check_digest(expected, Digest::of(&content))?;
        Ok(content)
    }

    /// Writes a file that has been read and checked.
    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), UnpackError> {
        let path = self.staging.join(name);
        let mut file = create(&path, self.durability)?;
        file.write_all(content).map_err(failed("write", &path))?;
        self.files.push((path, file));
        Ok(())
    }

    /// Writes the next member of the archive, which must be `expected`.
    fn member(&mut self, expected: &Member) -> Result<(), UnpackError> {
        let name = expected.path.as_str();
        let entry = self.expect_member(name)?;
        check_size(name, expected.size, entry.size)?;
        let path = self.staging.join(name);
        let mut file = create(&path, self.durability)?;
        let content = BackgroundHashingReader::new(&mut self.archive);
        let mut content = content.map_err(failed("start a thread to hash", &path))?;
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => file.write_all(&buffer[..read]).map_err(failed("write", &path))?,
                Err(error) => return Err(self.read_error(error, Some(name))),
            }
        }
        check_size(name, expected.size, content.bytes_read())?;
        check_digest(expected, content.finish())?;
        self.files.push((path, file));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), UnpackError> {
        for (path, file) in &mut self.files {
            file.sync().map_err(failed("sync", path))?;
        }
        let directory = File::open(self.staging).and_then(|directory| directory.sync_all());
        directory.map_err(failed("sync", self.staging))
    }

    fn expect_member(&mut self, expected: &str) -> Result<ArchiveMember, UnpackError> {
        match self.next_member()? {
            Some(entry) if entry.name.as_str() == expected => Ok(entry),
            Some(entry) => Err(rejected(
                entry.name,
                format!("the archive has this file where it must have {expected}"),
            )),
            None => Err(rejected(expected, "the file is missing from the archive".to_owned())),
        }
    }

    fn next_member(&mut self) -> Result<Option<ArchiveMember>, UnpackError> {
        self.archive.next_member().map_err(|error| match error {
            ArchiveError::Refused { member, fault } => {
                UnpackError::Refused { member, reason: fault.to_string() }
            }
            ArchiveError::Read(error) => self.read_error(error, None),
        })
    }

    fn read_error(&self, error: io::Error, member: Option<&str>) -> UnpackError {
        match error.downcast::<FrameError>() {
            Ok(error) => frame_error(error, member, self.staging),
            Err(error) => UnpackError::Source(error),
        }
    }
}

fn rejected(member: impl Into<String>, reason: String) -> UnpackError {
    UnpackError::Refused { member: Some(member.into()), reason }
}

fn frame_error(error: FrameError, member: Option<&str>, staging: &Path) -> UnpackError {
    match error {
        FrameError::Truncated { bytes } => UnpackError::Truncated { bytes },
        FrameError::Refused(reason) => {
            UnpackError::Refused { member: member.map(str::to_owned), reason }
        }
        FrameError::Source(error) => UnpackError::Source(error),
        FrameError::TooSlow(limit) => UnpackError::TooSlow { limit },
        FrameError::Memory => {
            failed("allocate memory to unpack into", staging)(io::ErrorKind::OutOfMemory.into())
        }
    }
}

fn check_size(member: &str, expected: u64, found: u64) -> Result<(), UnpackError> {
    if found == expected {
        return Ok(());
    }
    Err(rejected(member, format!("it has {found} bytes, expected {expected}")))
}

fn check_digest(expected: &Member, found: Digest) -> Result<(), UnpackError> {
    if found == expected.sha256 {
        return Ok(());
    }
    let reason = format!("it has SHA-256 {found}, expected {}", expected.sha256);
    Err(rejected(expected.path.as_str(), reason))
}

/// Checks the sizes and the member count that the manifest announces, before any file is written.
fn check_limits(
    manifest: &Manifest,
    manifest_size: u64,
    limits: &UnpackLimits,
) -> Result<(), UnpackError> {
    if let Some(file) = manifest.files.iter().find(|file| file.size > limits.max_file) {
        let reason = format!("it has {} bytes, over the limit of {}", file.size, limits.max_file);
        return Err(rejected(file.path.clone(), reason));
    }
    let total = manifest.total_size().saturating_add(manifest_size);
    let members = manifest.files.len() + 1;
    let reason = if total > limits.max_total {
        format!("the unpacked package has {total} bytes, over the limit of {}", limits.max_total)
    } else if members > limits.max_members {
        format!("the package has {members} members, over the limit of {}", limits.max_members)
    } else {
        return Ok(());
    };
    Err(UnpackError::Refused { member: None, reason })
}

fn create(path: &Path, durability: Durability) -> Result<WriteOnce, UnpackError> {
    // O_EXCL: never write into an existing file or through a symbolic link.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    let file = file.map_err(failed("create", path))?;
    Ok(match durability {
        Durability::Synced => WriteOnce::synced(file),
        Durability::Volatile => WriteOnce::volatile(file),
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    move |source| UnpackError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
