//! Installs a seccomp filter.

#![allow(unsafe_code, reason = "the kernel takes a filter by its address")]

use std::io;

use seccompiler::BpfProgramRef;

/// Installs `filter` with the flags of `seccomp(2)`. It applies permanently to the calling thread
/// and, with `SECCOMP_FILTER_FLAG_TSYNC`, to every thread of the process.
///
/// # Errors
/// Fails if the filter has more than 65535 instructions, or if the kernel rejects it.
pub(super) fn install(filter: BpfProgramRef<'_>, flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    // The kernel requires this from a process without privileges.
    nix::sys::prctl::set_no_new_privs()?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions at `filter` and does not write to them. Both the
    // slice and `program` live until the call returns. `seccompiler::sock_filter` and
    // `libc::sock_filter` are both `repr(C)` with the fields of `struct sock_filter` in
    // linux/filter.h.
    // JUSTIFICATION: neither std nor nix has this call, and seccompiler offers no way to set
    // SECCOMP_FILTER_FLAG_LOG.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            &raw const program,
        )
    };
    match outcome {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has a different seccomp filter"))),
    }
}
