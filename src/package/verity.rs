//! Interface to fs-verity: the kernel makes a file permanently read-only and checks every page that
//! it reads from the disk. Reading a corrupt page fails with EIO.
//! <https://docs.kernel.org/filesystems/fsverity.html>
//!
//! Contains the two ioctls. The caller connects the kernel's digest with the bytes: it hashes the
//! file after [`enable`], through the same handle.

#![allow(unsafe_code, reason = "fs-verity has no interface but ioctl")]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// FS_VERITY_HASH_ALG_SHA256 of linux/fsverity.h.
const SHA256: u16 = 1;
/// Bytes that one hash of the kernel's Merkle tree covers. Every kernel with fs-verity supports
/// this size.
const BLOCK: u32 = 4096;
/// Length in bytes of the longest digest that the kernel returns (SHA-512).
const LONGEST: u16 = 64;
const SHA256_BYTES: usize = 32;

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_pointer: u64,
    signature_size: u32,
    reserved: u32,
    signature_pointer: u64,
    reserved_too: [u64; 11],
}

/// `struct fsverity_digest` without its digest.
#[repr(C)]
struct DigestHeader {
    algorithm: u16,
    size: u16,
}

/// `struct fsverity_digest` with space for the longest digest.
#[repr(C)]
struct MeasuredDigest {
    header: DigestHeader,
    bytes: [u8; LONGEST as usize],
}

nix::ioctl_write_ptr!(enable_verity, b'f', 133, EnableArgument);
nix::ioctl_readwrite!(measure_verity, b'f', 134, DigestHeader);

/// Enables fs-verity for `file`, which must be open for reading only. Does nothing if it is already
/// enabled.
///
/// Blocks while the kernel reads and hashes the whole file.
///
/// # Errors
/// When the file system or the kernel does not support fs-verity, when the file is open for
/// writing, or when the disk fails.
pub(super) fn enable(file: &File) -> Result<(), Errno> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK,
        ..EnableArgument::default()
    };
    // SAFETY: the argument has the size (128 bytes) and the layout of `struct fsverity_enable_arg`
    // in linux/fsverity.h. The kernel reads it only during the call and does not keep a pointer to
    // it. The salt and the signature have size 0, so the kernel does not follow their null
    // pointers. `file` is open during the call.
    //
    // JUSTIFICATION: neither the standard library nor nix has a safe function for this ioctl.
    match unsafe { enable_verity(file.as_raw_fd(), &raw const argument) } {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Returns the kernel's digest of `file` in hexadecimal digits.
///
/// Returns `None` if fs-verity is not enabled for the file, or uses another hash than SHA-256.
pub(super) fn measure(file: &File) -> Option<String> {
    let header = DigestHeader { algorithm: 0, size: LONGEST };
    let mut found = MeasuredDigest { header, bytes: [0; LONGEST as usize] };
    // SAFETY: the kernel writes a `struct fsverity_digest`: a header of two u16, followed by at
    // most as many bytes as the header's `size` field allows. `size` is the length of `bytes`, so
    // all writes stay inside `found`. The pointer is derived from the whole structure, so all of it
    // may be written through the pointer. `file` is open during the call.
    //
    // JUSTIFICATION: neither the standard library nor nix has a safe function for this ioctl.
    let measured = unsafe { measure_verity(file.as_raw_fd(), (&raw mut found).cast()) };
    measured.ok()?;
    let is_sha256 =
        found.header.algorithm == SHA256 && usize::from(found.header.size) == SHA256_BYTES;
    is_sha256
        .then(|| found.bytes[..SHA256_BYTES].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_arguments_match_kernel_layout() {
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!(
            (size_of::<DigestHeader>(), std::mem::offset_of!(MeasuredDigest, bytes)),
            (4, 4)
        );
    }

    #[test]
    fn file_without_verity_has_no_digest() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file), None);
        // The kernel refuses to enable it for a file that is open for writing, on every file
        // system.
        assert!(enable(&file).is_err());
        assert_eq!(measure(&file), None);
    }
}
