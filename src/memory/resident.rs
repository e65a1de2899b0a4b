//! The program's own pages: kept in memory, so that it can act when there is none.
//!
//! Code is read from the disk page by page as it is needed, and the kernel takes such pages first when memory is short.
//! With `memory.high` below what cannot be taken, every page that comes back takes others away and is paid for with a
//! pause: the daemon would do nothing but wait for its own code, and could not let a model go.

use nix::errno::Errno;
use nix::libc::{MCL_CURRENT, MCL_ONFAULT};
use nix::sys::mman::{MlockAllFlags, mlockall};

/// Has the kernel leave the pages that this process has mapped so far, each from its first use on: the program, its
/// libraries, its first stack. What is mapped later is not touched: weights may be taken and come back.
///
/// To be called before any other thread runs and anything large is mapped: `LimitMEMLOCK=` has to hold all that is
/// mapped (mlockall(2): <https://man7.org/linux/man-pages/man2/mlockall.2.html>).
///
/// # Errors
/// When the limit is lower, or the call is refused.
pub fn keep_program() -> Result<(), Errno> {
    // nix has no name for the second flag.
    mlockall(MlockAllFlags::from_bits_retain(MCL_CURRENT | MCL_ONFAULT))
}
