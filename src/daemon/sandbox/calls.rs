//! System calls: what the daemon may not ask of the kernel, by seccomp.
//!
//! A list of what is denied, not of what is allowed: the unit has such a list, kept by systemd, and one of our own
//! would break with the next C library. Denied is what a program that serves a Unix socket never does and whoever takes
//! it over would: sockets of any other family, other programs, other processes' memory, mounts, namespaces, modules,
//! io_uring (which goes around this filter), memory that is both written and executed. Every denied call fails with
//! EPERM. <https://docs.kernel.org/userspace-api/seccomp_filter.html>

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::api::wire::sandbox::Part;
use crate::errors::chain;

/// Denied whatever their arguments.
const DENIED: &[i64] = &[
    // Other programs, other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Ways around a filter, and into the kernel.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    // Other views of the file system. truncate: Landlock holds it from its third version on only.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_truncate,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    // Other namespaces, other users.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_personality,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Denied where they exist.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// Denies all threads of this process, and those to come, what is denied.
pub(super) fn restrict() -> Part {
    let applied = filter().map_err(|error| chain(&error)).and_then(|filter| {
        seccompiler::apply_filter_all_threads(&filter).map_err(|error| chain(&error))
    });
    match applied {
        Ok(()) => Part::on(None),
        Err(reason) => Part::off(None, reason),
    }
}

fn filter() -> Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::new();
    for call in DENIED.iter().chain(DENIED_HERE) {
        rules.insert(*call, Vec::new());
    }
    let executable = (libc::PROT_WRITE | libc::PROT_EXEC).unsigned_abs();
    let unix = rule(0, SeccompCmpOp::Ne, libc::AF_UNIX.unsigned_abs())?;
    let written = rule(2, SeccompCmpOp::MaskedEq(executable.into()), executable)?;
    let exec = libc::PROT_EXEC.unsigned_abs();
    let made_executable = rule(2, SeccompCmpOp::MaskedEq(exec.into()), exec)?;
    rules.insert(libc::SYS_socket, vec![unix.clone()]);
    rules.insert(libc::SYS_socketpair, vec![unix]);
    rules.insert(libc::SYS_mmap, vec![written]);
    rules.insert(libc::SYS_mprotect, vec![made_executable.clone()]);
    rules.insert(libc::SYS_pkey_mprotect, vec![made_executable]);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, architecture)?;
    Ok([other_numbers(), filter.try_into()?].concat())
}

/// Denies a call by one of its arguments.
fn rule(argument: u8, operator: SeccompCmpOp, value: u32) -> Result<SeccompRule, BackendError> {
    // The kernel looks at the lower half of each of these arguments.
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())?;
    SeccompRule::new(vec![condition])
}

/// Denies the second set of numbers under which an x86-64 kernel may know every call, x32: a list of denied numbers
/// would not hold for those.
#[cfg(target_arch = "x86_64")]
fn other_numbers() -> BpfProgram {
    use seccompiler::sock_filter;

    // linux/bpf_common.h, linux/seccomp.h, asm/unistd.h.
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_NOT_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const OFFSET_OF_NUMBER: u32 = 0;
    const X32: u32 = 0x4000_0000;
    let error = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: OFFSET_OF_NUMBER },
        sock_filter { code: JUMP_IF_NOT_LESS, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: error },
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn other_numbers() -> BpfProgram {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// What `tried` gives in a thread under the filter, which stays the thread's alone.
    fn under_filter<T: Send>(tried: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                seccompiler::apply_filter(&filter().unwrap()).unwrap();
                tried()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn no_socket_of_another_family_can_be_made() {
        let sockets = || {
            let make = |family| {
                let family = AddressFamily::from_i32(family).unwrap();
                socket(family, SockType::Datagram, SockFlag::empty(), None).err()
            };
            // IPv4, IPv6, netlink.
            ([2, 10, 16].map(make), UnixStream::pair().is_ok(), make(libc::AF_UNIX))
        };
        let (denied, pair, unix) = under_filter(sockets);
        assert_eq!(denied, [Some(Errno::EPERM); 3]);
        assert_eq!((pair, unix), (true, None));
    }

    #[test]
    fn no_other_program_can_be_started() {
        let started = under_filter(|| Command::new("/bin/true").status().map(drop));
        assert_eq!(started.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_thread_can_be_started_and_looks_up_users() {
        let found = under_filter(|| thread::spawn(|| nix::unistd::User::from_uid(0.into())).join());
        assert_eq!(found.unwrap().unwrap().unwrap().name, "root");
    }
}
