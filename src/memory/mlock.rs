//! Locks the pages of the program in memory, so that the daemon can act when memory is short.
//!
//! Code is read from disk page by page, and the kernel reclaims such pages first. Suppose that
//! `memory.high` is below the group's unreclaimable memory: then every page that is read back
//! pushes another one out, and the kernel throttles the process for it. The daemon would only wait
//! for its own code and could not evict a model.

use nix::errno::Errno;
use nix::libc::{MCL_CURRENT, MCL_ONFAULT};
use nix::sys::mman::{MlockAllFlags, mlockall};

/// Locks all pages that are mapped now (the program, its libraries, the first stack), each from its
/// first use on. Later mappings are not locked: the kernel may reclaim weights and read them again.
///
/// Call this before any other thread runs and before anything large is mapped: `LimitMEMLOCK=` must
/// cover all mapped bytes (mlockall(2): <https://man7.org/linux/man-pages/man2/mlockall.2.html>).
///
/// # Errors
/// Fails when the limit is lower, or when the kernel rejects the call.
pub fn lock_program() -> Result<(), Errno> {
    // nix has no name for MCL_ONFAULT. The flag locks pages when they are first used, instead of
    // reading all of them now.
    mlockall(MlockAllFlags::from_bits_retain(MCL_CURRENT | MCL_ONFAULT))
}
