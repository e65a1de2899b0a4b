//! Compares every file of a package with its manifest, without writing a file.

use std::io::{self, Read};
use std::path::Path;
use std::time::Instant;

use super::super::archive::Archive;
use super::super::digest::{Digest, HashingReader};
use super::super::file_check::FileCheck;
use super::super::manifest::{MANIFEST, Manifest, MemberName};
use super::super::unpack_limits::UnpackLimits;
use super::super::zstd_frame::ZstdFrame;
use super::{Durability, UnpackError, Unpacker, frame_error, rejected};

/// Result of [`check_package`].
#[derive(Debug, Default)]
pub struct PackageCheck {
    /// Manifest; `None` if it cannot be read.
    pub manifest: Option<Manifest>,
    /// Result for each file, in the order of the manifest.
    pub files: Vec<FileCheck>,
    /// Fault at which reading stopped; `None` if the whole package was read.
    pub fault: Option<UnpackError>,
}

/// Reads the package `source` within `limits` and compares every file with the manifest. Continues
/// after a file that differs.
///
/// With keys, call it only after the signature of the package was verified. Memory: that of
/// unpacking.
pub fn check_package(source: impl Read, limits: &UnpackLimits) -> PackageCheck {
    let mut check = PackageCheck::default();
    let mut found = Vec::new();
    check.fault = read(source, limits, &mut check.manifest, &mut found).err();
    let members = check.manifest.iter().flat_map(|manifest| &manifest.files);
    let checks = members.map(|member| match found.iter().find(|(name, ..)| *name == member.path) {
        Some((_, size, digest)) => FileCheck::compared(member, *size, Some(*digest)),
        None => FileCheck::missing(member),
    });
    check.files = checks.collect();
    check
}

/// Reads the package into `manifest` and, for each file, its name, size and digest into `found`.
fn read(
    source: impl Read,
    limits: &UnpackLimits,
    manifest: &mut Option<Manifest>,
    found: &mut Vec<(MemberName, u64, Digest)>,
) -> Result<(), UnpackError> {
    // No file is written there.
    let staging = Path::new("");
    let frame = ZstdFrame::open(source, limits, Instant::now)
        .map_err(|error| frame_error(error, None, staging))?;
    let mut package = Unpacker {
        archive: Archive::new(frame),
        staging,
        durability: Durability::Volatile,
        files: Vec::new(),
    };
    let (read, _json) = package.manifest(limits)?;
    let listed = manifest.insert(read);
    while let Some(entry) = package.next_member()? {
        let name = entry.name.as_str();
        let is_listed = listed.files.iter().any(|member| member.path == entry.name);
        if !is_listed || name == MANIFEST || found.iter().any(|(other, ..)| *other == entry.name) {
            return Err(rejected(name, "the manifest does not list this file once".to_owned()));
        }
        let mut content = HashingReader::new(&mut package.archive);
        let copied = io::copy(&mut content, &mut io::sink());
        let (size, digest) = (content.bytes_read(), content.finish());
        copied.map_err(|error| package.read_error(error, Some(name)))?;
        found.push((entry.name, size, digest));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Bytes;
    use crate::package::file_check::FileStatus;
    use crate::package::fixture::{package, package_with};

    fn check(package: &[u8]) -> PackageCheck {
        check_package(package, &UnpackLimits::for_size(Bytes::mib(8)))
    }

    #[test]
    fn all_changed_files_are_listed() {
        let good = check(&package("m", "1"));
        assert!(good.fault.is_none() && good.files.len() == 3, "{good:?}");
        assert!(good.files.iter().all(|file| file.status == FileStatus::Valid), "{good:?}");
        let changed = check(&package_with("m", "1", |builder| {
            for entry in &mut builder.entries[2..] {
                entry.content[0] ^= 1;
            }
        }));
        assert!(changed.fault.is_none(), "{changed:?}");
        let statuses = Vec::from_iter(changed.files.iter().map(|file| file.status));
        assert_eq!(statuses, [FileStatus::Valid, FileStatus::Invalid, FileStatus::Invalid]);
    }

    #[test]
    fn incomplete_package_is_reported() {
        let package = package("m", "1");
        let cut = check(&package[..package.len() - 5]);
        assert!(matches!(cut.fault, Some(UnpackError::Truncated { .. })), "{cut:?}");
        let nothing = check(b"no package");
        assert!(nothing.manifest.is_none() && nothing.files.is_empty(), "{nothing:?}");
        assert!(nothing.fault.is_some());
    }
}
