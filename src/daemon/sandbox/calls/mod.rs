//! Restricts the system calls that the daemon may make, with seccomp.
//!
//! The filter is a list of allowed calls ([`allowed`]). Every other call fails with EPERM and has
//! no effect. Two kinds of calls fail with ENOSYS instead, because the C library then falls back to
//! an older call: `clone3`, whose flags a filter cannot read, and every call that is newer than the
//! list.
//!
//! Denied calls are logged: the kernel writes a record of type 1326 (`AUDIT_SECCOMP`) with the
//! number of the call to the audit log, or to the kernel log if no audit daemon runs. The ENOSYS
//! filter does not write records, because every start of a thread would cause one.
//!
//! The filter also applies to the child of a self-test. It does not include the filter of the
//! systemd unit: a call must pass both. <https://docs.kernel.org/userspace-api/seccomp_filter.html>

mod allowed;
mod install;

use std::error::Error;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter,
};

use crate::api::wire::sandbox::SandboxPart;
use crate::base::errors::chain;
use install::install;

/// Number of the newest call that [`allowed`] was compared with: `file_setattr` of Linux 6.17.
/// Numbers from 424 on are the same on every machine.
const NEWEST_CALL: u32 = 469;

/// Restricts all current and future threads of this process to the allowed calls.
pub(super) fn restrict() -> SandboxPart {
    match apply(libc::SECCOMP_FILTER_FLAG_TSYNC) {
        Ok(()) => SandboxPart::on(None),
        Err(error) => SandboxPart::off(None, chain(&*error)),
    }
}

/// Installs both filters with `flags`.
fn apply(flags: libc::c_ulong) -> Result<(), Box<dyn Error>> {
    install(&filter()?, flags | libc::SECCOMP_FILTER_FLAG_LOG)?;
    // If several filters return an error, the kernel uses the result of the last one installed. So
    // the ENOSYS filter comes last.
    install(&enosys_filter(), flags)?;
    Ok(())
}

/// Returns the filter that denies all calls outside the list with EPERM.
fn filter() -> Result<BpfProgram, BackendError> {
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(allowed::rules()?, denied, SeccompAction::Allow, architecture)?.try_into()
}

/// Returns the filter that answers `clone3` and calls newer than the list with ENOSYS.
fn enosys_filter() -> BpfProgram {
    // Constants of linux/bpf_common.h, linux/seccomp.h and asm/unistd.h.
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_GREATER: u16 = 0x25;
    const JUMP_IF_NOT_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const OFFSET_OF_NUMBER: u32 = 0;
    /// Start of the x32 call numbers, a second set that an x86-64 kernel may have. This filter lets
    /// them pass, and the other filter denies them.
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let error = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    // `jt` and `jf` are the numbers of instructions to skip if the condition is true or false.
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: OFFSET_OF_NUMBER },
        sock_filter { code: JUMP_IF_EQUAL, jt: 3, jf: 0, k: clone3 },
        sock_filter { code: JUMP_IF_NOT_LESS, jt: 1, jf: 0, k: X32 },
        sock_filter { code: JUMP_IF_GREATER, jt: 1, jf: 0, k: NEWEST_CALL },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: error },
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

    /// Returns the decision of the kernel on a call, as `seccomp_run_filters` in kernel/seccomp.c
    /// makes it.
    fn decided(call: i64, arguments: &[u64]) -> u32 {
        let filters = [enosys_filter(), filter().unwrap()];
        let decisions = filters.map(|filter| run(&filter, call, arguments));
        let graver = |a: u32, b: u32| if b & 0xffff_0000 < a & 0xffff_0000 { b } else { a };
        decisions.into_iter().reduce(graver).unwrap()
    }

    /// Runs `filter`. Supports only the few instructions that seccomp filters use here.
    fn run(filter: &[sock_filter], call: i64, arguments: &[u64]) -> u32 {
        const X86_64: u32 = 0xc000_003e;
        const AARCH64: u32 = 0xc000_00b7;
        let architecture = if cfg!(target_arch = "x86_64") { X86_64 } else { AARCH64 };
        // Layout of `struct seccomp_data`: call number, architecture, instruction pointer, six
        // arguments.
        let mut data = [u32::try_from(call).unwrap(), architecture, 0, 0].to_vec();
        for at in 0..6 {
            let argument = arguments.get(at).copied().unwrap_or(0);
            data.extend([(argument & 0xffff_ffff) as u32, (argument >> 32) as u32]);
        }
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[at];
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                0x20 => value = data[k as usize / 4],
                0x54 => value &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(value == k),
                0x25 => at += jump(value > k),
                0x35 => at += jump(value >= k),
                0x06 => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn filter_checks_call_numbers_and_arguments() {
        let (read, write, exec) = (1, 2, 4);
        let anonymous = 0x22;
        let namespaces =
            [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
        let thread = 0x003d_0f00;
        let mut cases: Vec<(i64, Vec<u64>, u32)> = vec![
            (libc::SYS_read, vec![], ALLOW),
            (libc::SYS_futex, vec![], ALLOW),
            (libc::SYS_execve, vec![], ALLOW),
            (452, vec![], ALLOW),
            // Only Unix sockets are allowed. The kernel reads the lower half of the argument.
            (libc::SYS_socket, vec![1], ALLOW),
            (libc::SYS_socket, vec![1 << 32 | 1], ALLOW),
            (libc::SYS_socket, vec![2], EPERM),
            (libc::SYS_socket, vec![1 << 32 | 10], EPERM),
            (libc::SYS_socket, vec![16], EPERM),
            (libc::SYS_socketpair, vec![40], EPERM),
            (libc::SYS_mmap, vec![0, 0, read | write, anonymous], ALLOW),
            (libc::SYS_mmap, vec![0, 0, read | exec, 2], ALLOW),
            (libc::SYS_mmap, vec![0, 0, read | exec, anonymous], EPERM),
            (libc::SYS_mmap, vec![0, 0, write | exec, 2], EPERM),
            (libc::SYS_mmap, vec![0, 0, read | write | exec, anonymous], EPERM),
            (libc::SYS_mprotect, vec![0, 0, read | write], ALLOW),
            (libc::SYS_mprotect, vec![0, 0, read | exec], EPERM),
            (libc::SYS_pkey_mprotect, vec![0, 0, read | exec], EPERM),
            (libc::SYS_shmat, vec![0, 0, 0o100_000], EPERM),
            (libc::SYS_clone, vec![thread], ALLOW),
            // Flags of `posix_spawn`: CLONE_VM, CLONE_VFORK, SIGCHLD.
            (libc::SYS_clone, vec![0x4100 | 17], ALLOW),
            (libc::SYS_clone3, vec![], ENOSYS),
            (libc::SYS_unshare, vec![0x1000_0000], EPERM),
            (libc::SYS_setns, vec![], EPERM),
            (libc::SYS_ioctl, vec![3, 0x5421], ALLOW),
            (libc::SYS_ioctl, vec![3, 0x4080_6685], ALLOW),
            // TIOCSTI inserts input into another process's terminal.
            (libc::SYS_ioctl, vec![3, 0x5412], EPERM),
            (libc::SYS_prctl, vec![15], ALLOW),
            (libc::SYS_prctl, vec![22], EPERM),
            (libc::SYS_prlimit64, vec![0, 7], ALLOW),
            (libc::SYS_prlimit64, vec![1, 7], EPERM),
            (libc::SYS_memfd_create, vec![0, 3], ALLOW),
            (libc::SYS_memfd_create, vec![0, 0x13], EPERM),
            (libc::SYS_io_uring_setup, vec![], EPERM),
            (libc::SYS_ptrace, vec![], EPERM),
            (libc::SYS_bpf, vec![], EPERM),
            (libc::SYS_setresuid, vec![], EPERM),
            (libc::SYS_truncate, vec![], EPERM),
            (libc::SYS_execveat, vec![], EPERM),
            (i64::from(NEWEST_CALL), vec![], EPERM),
            (i64::from(NEWEST_CALL) + 1, vec![], ENOSYS),
        ];
        cases.extend(namespaces.map(|flag| (libc::SYS_clone, vec![flag | 17], EPERM)));
        #[cfg(target_arch = "x86_64")]
        cases.extend([
            // x32 numbers, under which the same calls may be found.
            (0x4000_0000 | libc::SYS_execve, vec![], EPERM),
            (0x4000_0000 | 520, vec![], EPERM),
            (libc::SYS_arch_prctl, vec![0x1023, 18], ALLOW),
            (libc::SYS_arch_prctl, vec![0x2001], EPERM),
        ]);
        for (call, arguments, expected) in cases {
            let decided = decided(call, &arguments);
            assert_eq!(decided, expected, "{call} {arguments:x?}: {decided:#x}");
        }
    }

    #[test]
    fn filter_allows_only_calls_in_the_table() {
        let rules = allowed::rules().unwrap();
        let allowed = (0..=i64::from(NEWEST_CALL))
            .filter(|call| run(&filter().unwrap(), *call, &[]) == ALLOW);
        let unconditional =
            rules.iter().filter(|(_, rules)| rules.is_empty()).map(|(call, _)| *call);
        let conditional = BTreeSet::from_iter(rules.keys().copied());
        let allowed = BTreeSet::from_iter(allowed);
        assert!(allowed.is_superset(&BTreeSet::from_iter(unconditional)), "{allowed:?}");
        assert!(allowed.is_subset(&conditional), "{allowed:?}");
    }

    /// Returns the result of `tried` in a thread under the filters, which apply to that thread
    /// only.
    fn under_filter<T: Send>(tried: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                apply(0).unwrap();
                tried()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn only_unix_sockets_can_be_created() {
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
    fn child_process_inherits_the_filter() {
        // Landlock decides which programs can be started. It is not active in this test.
        let started = under_filter(|| {
            Command::new("/bin/sh").args(["-c", "grep Seccomp: /proc/self/status"]).output()
        });
        let said = String::from_utf8(started.unwrap().stdout).unwrap();
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["Seccomp:", "2"]);
    }

    #[test]
    fn filtered_thread_can_look_up_users() {
        let found = under_filter(|| thread::spawn(|| nix::unistd::User::from_uid(0.into())).join());
        assert_eq!(found.unwrap().unwrap().unwrap().name, "root");
    }

    #[test]
    fn overlong_filter_is_an_error() {
        let error = install(&vec![enosys_filter()[0].clone(); 70_000], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other);
    }
}
