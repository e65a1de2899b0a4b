//! Lists the system calls that the daemon may make, grouped by purpose.
//!
//! The table comes from traces of the integration tests and from the sources of glibc 2.34 to 2.42,
//! the Rust standard library and the crates that the daemon uses. The comment of a group names the
//! part of the daemon that needs it. A call outside the groups is denied, see [`super`].

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Calls that are allowed with any arguments.
const GROUPS: &[&[i64]] = &[
    MEMORY, THREADS, SIGNALS, PROCESSES, TIME, READING, WRITING, STORE, SOCKETS, EVENTS, IDENTITY,
    SANDBOX, HERE,
];

/// Memory: the allocator, mapped weights, locked pages (`mlock`), and pages that are returned to
/// the kernel.
const MEMORY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_msync,
    libc::SYS_membarrier,
    libc::SYS_mseal,
];

/// Threads of the runtime, the engine and the workers, and calls of the C library when a thread
/// starts, waits or ends. `clone` is in [`conditional`].
const THREADS: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_restart_syscall,
];

/// Signals: handlers of the runtime, their stacks, and `abort`.
const SIGNALS: &[i64] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
];

/// Start, supervision and end of the self-test's child, which runs this program's own file.
/// Landlock decides which files can be executed. The new program stays under this filter.
const PROCESSES: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrusage,
];

/// Clocks on kernels that do not provide them in user space, and timers.
const TIME: &[i64] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
];

/// Opening and reading of files. Landlock decides which files.
const READING: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_lseek,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
];

/// Writing to open files, pipes, and the memory file for the journal (see [`conditional`] for
/// `memfd_create`).
const WRITING: &[i64] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    SYNC_FILE_RANGE,
    libc::SYS_pipe2,
];

/// Changes of directories: staging, installation, removal, quarantine, the file of the socket,
/// locks and owners.
const STORE: &[i64] = &[
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    RENAMEAT,
    libc::SYS_renameat2,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
];

/// Sockets of the daemon, of systemd, of the journal and of the user database. [`conditional`]
/// decides which sockets can be created.
const SOCKETS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
];

/// Events: polling by the runtime, directory watches, and the wait for memory pressure.
const EVENTS: &[i64] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Identity of this process and machine, and random numbers.
const IDENTITY: &[i64] = &[
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getresuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Further restrictions that the child of a self-test applies to itself. These calls can only
/// remove rights.
const SANDBOX: &[i64] = &[
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
];

/// Older forms of the calls above. Only x86-64 has them, and C libraries still use them.
#[cfg(target_arch = "x86_64")]
const HERE: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_getrlimit,
    libc::SYS_time,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const HERE: &[i64] = &[];

// The `libc` crate does not have these three on every machine. The numbers are those of
// asm-generic/unistd.h.
#[cfg(target_arch = "x86_64")]
const RENAMEAT: i64 = libc::SYS_renameat;
#[cfg(not(target_arch = "x86_64"))]
const RENAMEAT: i64 = 38;
#[cfg(target_arch = "x86_64")]
const SYNC_FILE_RANGE: i64 = libc::SYS_sync_file_range;
#[cfg(not(target_arch = "x86_64"))]
const SYNC_FILE_RANGE: i64 = 84;
/// Call that glibc 2.39 and later tries first for `fchmodat`.
const FCHMODAT2: i64 = 452;

/// Flags of all namespaces that `clone` can create. The time namespace has no flag there.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// Options of `prctl`: names of threads and memory areas, the parent-death signal, dropping of
/// rights, and options that modules of the user database use when they are loaded.
const PRCTL: &[i32] = &[
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_VMA,
    libc::PR_CAPBSET_READ,
];

/// Commands of `ioctl`: non-blocking sockets, the number of readable bytes of an inotify
/// descriptor, close-on-exec, the check for a terminal, and fs-verity (its flag, its digest,
/// enabling it). The numbers of fs-verity are those of linux/fsverity.h and linux/fs.h, the same on
/// every little-endian 64-bit machine.
const IOCTL: &[u32] = &[
    0x5401,      // TCGETS
    0x541b,      // FIONREAD
    0x5421,      // FIONBIO
    0x5450,      // FIONCLEX
    0x5451,      // FIOCLEX
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4080_6685, // FS_IOC_ENABLE_VERITY
    0xc004_6686, // FS_IOC_MEASURE_VERITY
];

/// Codes of `arch_prctl` on x86-64: thread-local storage, shadow stacks of glibc, and the
/// permission for AMX. <https://docs.kernel.org/arch/x86/xstate.html>
#[cfg(target_arch = "x86_64")]
const ARCH_PRCTL: &[u32] = &[
    0x1002, // ARCH_SET_FS
    0x1003, // ARCH_GET_FS
    0x1021, // ARCH_GET_XCOMP_SUPP
    0x1022, // ARCH_GET_XCOMP_PERM
    0x1023, // ARCH_REQ_XCOMP_PERM
    0x3001, // ARCH_CET_STATUS, of glibc before 2.39
    0x5001, // ARCH_SHSTK_ENABLE
    0x5003, // ARCH_SHSTK_LOCK
    0x5005, // ARCH_SHSTK_STATUS
];

/// Returns the rules of every allowed call. A call with an empty list is allowed with any
/// arguments. Any other call is allowed if one rule of its list matches.
pub(super) fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules = BTreeMap::new();
    for call in GROUPS.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    rules.extend(conditional()?);
    Ok(rules)
}

/// Returns the calls that are allowed only with some arguments.
fn conditional() -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let unix = vec![rule(&[(0, is(libc::AF_UNIX.unsigned_abs()))])?];
    let executable = libc::PROT_EXEC.unsigned_abs();
    let writable = libc::PROT_WRITE.unsigned_abs();
    let anonymous = libc::MAP_ANONYMOUS.unsigned_abs();
    let sealing = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let calls = [
        // Deny network sockets, and channels into the kernel such as netlink.
        (libc::SYS_socket, unix.clone()),
        (libc::SYS_socketpair, unix),
        // Executable code comes only from files: the loader and the modules of the user database
        // map them. A mapping with PROT_EXEC must be neither writable nor anonymous, and `mprotect`
        // cannot make memory executable later.
        (
            libc::SYS_mmap,
            vec![
                rule(&[(2, none_of(executable))])?,
                rule(&[(2, none_of(writable)), (3, none_of(anonymous))])?,
            ],
        ),
        (libc::SYS_mprotect, vec![rule(&[(2, none_of(executable))])?]),
        // Allow threads and the self-test's child, without new namespaces.
        (libc::SYS_clone, vec![rule(&[(0, none_of(NEW_NAMESPACES))])?]),
        // Allow only the limits of the calling process.
        (libc::SYS_prlimit64, vec![rule(&[(0, is(0))])?]),
        // A log record that is too large for the journal's socket is passed as a sealed memory
        // file.
        (libc::SYS_memfd_create, vec![rule(&[(1, none_of(!sealing))])?]),
        (libc::SYS_prctl, one_of(0, PRCTL.iter().map(|option| option.cast_unsigned()))?),
        (libc::SYS_ioctl, one_of(1, IOCTL.iter().copied())?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_arch_prctl, one_of(0, ARCH_PRCTL.iter().copied())?),
    ];
    Ok(calls.into())
}

/// Returns a rule that matches if all conditions are true. A condition consists of the position of
/// an argument and the required lower half of its value.
fn rule(conditions: &[(u8, (SeccompCmpOp, u32))]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.iter().map(|(argument, (operator, value))| {
        // The kernel uses only the lower half of each of these arguments.
        let length = SeccompCmpArgLen::Dword;
        SeccompCondition::new(*argument, length, operator.clone(), u64::from(*value))
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Returns one rule for each of the `values` that the argument may have.
fn one_of(
    argument: u8,
    values: impl Iterator<Item = u32>,
) -> Result<Vec<SeccompRule>, BackendError> {
    values.map(|value| rule(&[(argument, is(value))])).collect()
}

fn is(value: u32) -> (SeccompCmpOp, u32) {
    (SeccompCmpOp::Eq, value)
}

fn none_of(bits: u32) -> (SeccompCmpOp, u32) {
    (SeccompCmpOp::MaskedEq(bits.into()), 0)
}
