//! fs-verity: the kernel makes a file read-only for ever and checks every page of it when it reads the page from the
//! disk. A page that is wrong cannot be read (EIO). <https://docs.kernel.org/filesystems/fsverity.html>
//!
//! Owns the two ioctls. The caller binds the kernel's digest to the bytes: it hashes the file after [`enable`], through
//! the same handle.

#![allow(unsafe_code, reason = "fs-verity has no interface but ioctl")]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// FS_VERITY_HASH_ALG_SHA256.
const SHA256: u16 = 1;
/// Bytes that one hash of the kernel's tree covers. Every kernel with fs-verity has this size.
const BLOCK: u32 = 4096;
/// Bytes of the longest digest that a kernel gives: SHA-512.
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

/// `struct fsverity_digest` with room for every digest.
#[repr(C)]
struct MeasuredDigest {
    header: DigestHeader,
    bytes: [u8; LONGEST as usize],
}

nix::ioctl_write_ptr!(enable_verity, b'f', 133, EnableArgument);
nix::ioctl_readwrite!(measure_verity, b'f', 134, DigestHeader);

/// Turns fs-verity on for `file`, which is open for reading. Does nothing when it is on. Blocks: the kernel reads and
/// hashes the whole file.
///
/// # Errors
/// When the file system or the kernel does not have it, when the file is open for writing, or when the disk fails.
pub(super) fn enable(file: &File) -> Result<(), Errno> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK,
        ..EnableArgument::default()
    };
    // SAFETY: the argument has the size and the layout of `struct fsverity_enable_arg` of linux/fsverity.h, 128 bytes.
    // The kernel reads it during the call and keeps no pointer to it. The salt and the signature have size 0, so that
    // the kernel does not follow their null pointers. `file` is open during the call.
    //
    // JUSTIFICATION: neither the standard library nor nix has a safe function for this ioctl.
    match unsafe { enable_verity(file.as_raw_fd(), &raw const argument) } {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Returns the kernel's digest of `file` in hexadecimal digits; `None` when fs-verity is off for it, or has another
/// hash than SHA-256.
pub(super) fn measure(file: &File) -> Option<String> {
    let header = DigestHeader { algorithm: 0, size: LONGEST };
    let mut found = MeasuredDigest { header, bytes: [0; LONGEST as usize] };
    // SAFETY: the kernel writes `struct fsverity_digest`: a header of two u16 and after it at most as many bytes as the
    // header's `size` says, which is the length of `bytes`. The pointer is that of the whole structure, so that all of
    // it may be written through it. `file` is open during the call.
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
    fn the_arguments_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!(
            (size_of::<DigestHeader>(), std::mem::offset_of!(MeasuredDigest, bytes)),
            (4, 4)
        );
    }

    #[test]
    fn a_file_without_it_has_no_digest() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file), None);
        // A file that is open for writing cannot have it, on any file system.
        assert!(enable(&file).is_err());
        assert_eq!(measure(&file), None);
    }
}
