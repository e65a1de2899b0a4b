//! Drops the rights of the child before it reads the first byte of its entry.
//!
//! A child of the daemon inherits the daemon's sandbox in addition. A child of the command line has
//! only these limits. The child fails if resource limits, closed descriptors or the parent-death
//! signal cannot be set. Landlock and seccomp apply only if the kernel supports them: the daemon
//! reports at start which ones it has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, close, getppid, sysconf};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::ChildTask;
use crate::base::errors::chain;

/// Highest descriptor of the standard streams (input, output, error).
const STREAMS: i32 = 2;
/// Limit of open descriptors: the three streams, and a few files at a time.
const MAX_FILES: u64 = 64;
/// Directory in which the engine finds the cache sizes of the processor.
const PROCESSOR: &str = "/sys/devices/system/cpu";

/// Drops all rights that the test of the entry in `directory` does not need.
///
/// # Errors
/// Returns the reason if a required limit cannot be set.
pub(super) fn confine(task: &ChildTask, directory: &Path) -> Result<(), String> {
    close_inherited()?;
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| format!("cannot set the parent-death signal: {error}"))?;
    // The parent may have ended before `prctl`. In this case the signal never comes.
    if getppid().as_raw() != task.parent {
        return Err("the parent process ended before the self-test began".to_owned());
    }
    limit(task)?;
    if let Err(error) = restrict_files(directory) {
        return Err(format!("cannot restrict file access with Landlock: {}", chain(&error)));
    }
    restrict_calls()
        .map_err(|reason| format!("cannot restrict system calls with seccomp: {reason}"))
}

/// Closes descriptors that a compromised parent, or the program that started the parent, left open.
fn close_inherited() -> Result<(), String> {
    let mut open = Vec::new();
    let failed = |error: std::io::Error| format!("cannot list /proc/self/fd: {error}");
    for child in fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = child.map_err(failed)?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > STREAMS) {
        // The descriptor of `/proc/self/fd` itself is in the list, but it is closed already.
        close(descriptor).unwrap_or(());
    }
    Ok(())
}

fn limit(task: &ChildTask) -> Result<(), String> {
    let address_space = program_bytes()?.saturating_add(task.address_space);
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        // Files cannot grow.
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_CPU, task.processor_seconds),
        (Resource::RLIMIT_AS, address_space),
    ] {
        // The soft limit sends SIGXCPU, which the parent can explain. The hard limit sends only
        // SIGKILL.
        let hard = match resource {
            Resource::RLIMIT_CPU => most.saturating_add(5),
            _ => most,
        };
        setrlimit(resource, most, hard)
            .map_err(|error| format!("cannot set {resource:?}: {error}"))?;
    }
    Ok(())
}

/// Returns the address space of the program as it was started, in bytes.
fn program_bytes() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/self/statm")
        .map_err(|error| format!("cannot read /proc/self/statm: {error}"))?;
    let pages: Option<u64> = text.split(' ').next().and_then(|pages| pages.parse().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|page| u64::try_from(page).ok());
    let bytes = pages.zip(page).map(|(pages, page)| pages.saturating_mul(page));
    bytes.ok_or_else(|| format!("/proc/self/statm has an unknown format: \"{}\"", text.trim_end()))
}

/// Restricts file access to reading the entry and the description of the processor.
fn restrict_files(directory: &Path) -> Result<(), RulesetError> {
    const MOST: ABI = ABI::V7;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(MOST))?
        .handle_access(AccessNet::from_all(MOST))?
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(path_beneath_rules([directory, Path::new(PROCESSOR)], reading))?
        .restrict_self()?;
    Ok(())
}

/// Denies sockets, other programs, other processes and files that are opened for writing.
///
/// This is a list of denied calls. The daemon's list of allowed calls also applies to its children.
fn restrict_calls() -> Result<(), String> {
    let mut denied = BTreeMap::new();
    for call in [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_kill,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_io_uring_setup,
        libc::SYS_memfd_create,
        libc::SYS_shmget,
        libc::SYS_mq_open,
        libc::SYS_inotify_init1,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_truncate,
        libc::SYS_ftruncate,
        libc::SYS_utimensat,
    ] {
        denied.insert(call, Vec::new());
    }
    #[cfg(target_arch = "x86_64")]
    for call in [
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_creat,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_mknod,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_lchown,
    ] {
        denied.insert(call, Vec::new());
    }
    // Deny new processes, that is a clone without `CLONE_THREAD`. Threads are allowed.
    denied.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD, 0)?]);
    denied.insert(libc::SYS_openat, writing(2)?);
    #[cfg(target_arch = "x86_64")]
    denied.insert(libc::SYS_open, writing(1)?);
    apply(denied, libc::EPERM)?;
    // A filter cannot read the flags of these calls, because they are in memory. With ENOSYS the C
    // library falls back to `clone` and `openat`.
    let hidden = [libc::SYS_clone3, libc::SYS_openat2];
    apply(hidden.into_iter().map(|call| (call, Vec::new())).collect(), libc::ENOSYS)
}

/// Returns rules that match an open for writing, creating or truncating, by the flags in
/// `argument`.
fn writing(argument: u8) -> Result<Vec<SeccompRule>, String> {
    [
        (libc::O_ACCMODE, libc::O_WRONLY),
        (libc::O_ACCMODE, libc::O_RDWR),
        (libc::O_CREAT, libc::O_CREAT),
        (libc::O_TRUNC, libc::O_TRUNC),
    ]
    .into_iter()
    .map(|(mask, value)| masked(argument, mask, value))
    .collect()
}

fn masked(argument: u8, mask: i32, value: i32) -> Result<SeccompRule, String> {
    let (mask, value) = (u64::from(mask.unsigned_abs()), u64::from(value.unsigned_abs()));
    let compared = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compared, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| chain(&error))
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), String> {
    use seccompiler::Error;

    // On a processor or kernel without seccomp filters the child runs without them. The daemon
    // reports this, and refuses to start if the configuration requires them.
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(()) };
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(|error| chain(&error))?;
    match seccompiler::apply_filter(&filter) {
        Ok(()) => Ok(()),
        Err(Error::Prctl(error) | Error::Seccomp(error))
            if error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(())
        }
        Err(error) => Err(chain(&error)),
    }
}
