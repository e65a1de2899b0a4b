//! Fuzzes packages: any bytes are unpacked or refused, and no file is written outside staging.
//!
//! An input that does not begin with a zstd frame is used as an archive: its header checksums are
//! corrected and it is compressed. Without this, random changes would seldom give a frame that
//! decodes and a header that is accepted.
//!
//! Works in the directory `TMPDIR`, which must be empty; `run` provides it.
#![no_main]

use std::path::Path;
use std::{env, fs, io};

use caxton::package::{Digest, Durability, UnpackLimits, UnpackError, UnpackedPackage, unpack};
use caxton::base::units::Bytes;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        try_package(bytes);
    } else {
        let mut archive = bytes.to_vec();
        seal(&mut archive);
        try_package(&compress(&archive));
    }
});

fn try_package(package: &[u8]) {
    let Ok(unpacked) = unpack_contained(package, |unpacked, staging| {
        for file in &unpacked.manifest.files {
            let content = fs::read(staging.join(file.path.as_str())).expect("written");
            assert_eq!(Digest::of(&content), file.sha256);
        }
    }) else {
        return;
    };
    assert_eq!(unpacked.package_digest, Digest::of(package));
    for length in [package.len() / 2, package.len() - 1] {
        let result = unpack_contained(&package[..length], |_, _| {});
        assert!(matches!(result, Err(UnpackError::Truncated { .. })), "{result:?}");
    }
}

fn unpack_contained(
    package: &[u8],
    inspect: impl FnOnce(&UnpackedPackage, &Path),
) -> Result<UnpackedPackage, UnpackError> {
    let parent = env::temp_dir();
    let staging = parent.join("staging");
    if let Err(error) = fs::create_dir(&staging) {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
    let result = unpack(package, &UnpackLimits::for_size(Bytes::mib(1)), &staging, Durability::Volatile);
    if let Ok(unpacked) = &result {
        inspect(unpacked, &staging);
    }
    assert_eq!(fs::read_dir(parent).expect("TMPDIR").count(), 1, "only staging");
    for entry in fs::read_dir(staging).expect("staging") {
        fs::remove_file(entry.expect("staging").path()).expect("a regular file");
    }
    result
}

/// Corrects the checksum of every header.
fn seal(archive: &mut [u8]) {
    let mut start = 0;
    while let Some(header) = archive.get_mut(start..).and_then(|rest| rest.get_mut(..BLOCK)) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        // Fields of the ustar header: the size at 124, and at 148 the checksum, which is computed
        // with spaces in its own field.
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = str::from_utf8(&header[124..135]).ok();
        let size = size.and_then(|digits| usize::from_str_radix(digits, 8).ok()).unwrap_or(0);
        start += BLOCK + size.next_multiple_of(BLOCK);
    }
}

fn compress(archive: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.include_checksum(true).expect("a checksum");
    io::copy(&mut &archive[..], &mut encoder).expect("memory");
    encoder.finish().expect("memory")
}
