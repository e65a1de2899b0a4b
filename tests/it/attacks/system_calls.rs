//! Attack: an attacker controls the daemon and makes system calls. The test stops the daemon's
//! first thread and makes it execute them, as a debugger can.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{Daemon, Root, skipped};

/// Machine code of the instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Distance of the attacker's data below the stack pointer. The compiler uses the 128 bytes
/// directly below it (the red zone).
const SCRATCH: u64 = 16 << 10;
/// Result of a system call that the filter denies.
const DENIED: Result<u64, Errno> = Err(Errno::EPERM);

/// The daemon's first thread, controlled by an attacker.
struct Taken {
    thread: Pid,
    before: user_regs_struct,
}

impl Taken {
    /// Stops the first thread of `daemon`, which waits in a system call. Returns `None` where the
    /// machine does not permit this.
    fn over(daemon: &Daemon) -> Option<Self> {
        let thread = Pid::from_raw(daemon.pid().try_into().unwrap());
        ptrace::attach(thread).ok()?;
        stopped(thread);
        // If the sandbox fails to prevent a child process, the child dies with the test.
        let options = ptrace::Options::PTRACE_O_EXITKILL
            | ptrace::Options::PTRACE_O_TRACECLONE
            | ptrace::Options::PTRACE_O_TRACEFORK
            | ptrace::Options::PTRACE_O_TRACEVFORK;
        ptrace::setoptions(thread, options).unwrap();
        let before = ptrace::getregs(thread).unwrap();
        let taken = Self { thread, before };
        let bytes = ptrace::read(thread, address(before.rip - 2)).unwrap().to_ne_bytes();
        assert_eq!(bytes[..2], SYSCALL, "the first thread does not wait");
        assert_eq!(taken.call(libc::SYS_getpid, &[]), Ok(u64::from(daemon.pid())));
        Some(taken)
    }

    /// Makes the system call of number `call`.
    fn call(&self, call: c_long, arguments: &[u64]) -> Result<u64, Errno> {
        let mut registers = self.before;
        // `rip` is after the two bytes of `syscall`: execute the same instruction with other
        // registers.
        registers.rip -= 2;
        registers.rax = call.cast_unsigned();
        // Prevent the kernel from restarting the interrupted call before this one.
        registers.orig_rax = u64::MAX;
        let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
        registers.rdi = argument(0);
        registers.rsi = argument(1);
        registers.rdx = argument(2);
        registers.r10 = argument(3);
        registers.r8 = argument(4);
        registers.r9 = argument(5);
        ptrace::setregs(self.thread, registers).unwrap();
        ptrace::step(self.thread, None).unwrap();
        stopped(self.thread);
        let answer = ptrace::getregs(self.thread).unwrap().rax;
        match i32::try_from(answer.cast_signed()) {
            Ok(error @ -4095..=-1) => Err(Errno::from_raw(-error)),
            _ => Ok(answer),
        }
    }

    /// Maps a new page of memory with `protection`, and returns its address.
    fn map(&self, protection: i32) -> Result<u64, Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let [protection, flags] = [protection, flags].map(|bits| u64::from(bits.cast_unsigned()));
        self.call(libc::SYS_mmap, &[0, 4096, protection, flags, u64::MAX, 0])
    }

    /// Writes `path` and a null-terminated array with its address into the daemon's memory. Returns
    /// the addresses of both.
    fn path(&self, path: &Path) -> (u64, u64) {
        let mut bytes = path.to_str().unwrap().as_bytes().to_vec();
        bytes.resize((bytes.len() / 8 + 1) * 8, 0);
        let text = self.before.rsp - SCRATCH;
        let array = text - 16;
        let words = bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        for (at, word) in (array..).step_by(8).zip([text, 0].into_iter().chain(words)) {
            ptrace::write(self.thread, address(at), word.cast_signed()).unwrap();
        }
        (text, array)
    }

    /// Restores the thread's registers and lets it continue. Checks that `daemon` serves as before.
    fn release(self, daemon: Daemon) {
        ptrace::setregs(self.thread, self.before).unwrap();
        ptrace::detach(self.thread, None).unwrap();
        daemon.embed(json!("it serves as before"));
        daemon.stop();
    }
}

fn stopped(thread: Pid) {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    let is_stopped = matches!(status, WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..));
    assert!(is_stopped, "{status:?}");
}

fn address(value: u64) -> ptrace::AddressType {
    std::ptr::with_exposed_provenance_mut(usize::try_from(value).unwrap())
}

#[test]
fn compromised_daemon_cannot_execute_written_memory() {
    let daemon = Root::new().start();
    let Some(taken) = Taken::over(&daemon) else {
        return skipped("compromised_daemon_cannot_execute_written_memory", "ptrace");
    };
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let page = taken.map(read | write).unwrap();
    assert_eq!(taken.map(read | write | execute), DENIED, "memory that is written and executed");
    assert_eq!(taken.map(read | execute), DENIED, "memory of no file that is executed");
    let executable = [page, 4096, u64::from((read | execute).cast_unsigned())];
    assert_eq!(taken.call(libc::SYS_mprotect, &executable), DENIED, "written, then executed");
    assert_eq!(taken.call(libc::SYS_shmget, &[0, 4096, 0o1600]), DENIED, "shared memory");
    taken.release(daemon);
}

#[test]
fn compromised_daemon_cannot_create_namespaces() {
    let daemon = Root::new().start();
    let Some(taken) = Taken::over(&daemon) else {
        return skipped("compromised_daemon_cannot_create_namespaces", "ptrace");
    };
    let child = u64::from(libc::SIGCHLD.cast_unsigned());
    for namespace in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWCGROUP,
    ] {
        let namespace = u64::from(namespace.cast_unsigned());
        assert_eq!(taken.call(libc::SYS_clone, &[namespace | child]), DENIED, "{namespace:#x}");
        assert_eq!(taken.call(libc::SYS_unshare, &[namespace]), DENIED, "{namespace:#x}");
    }
    // The flags of clone3 are in memory, which a seccomp filter cannot read. ENOSYS makes glibc use
    // the older call.
    let page = taken.map(libc::PROT_READ | libc::PROT_WRITE).unwrap();
    assert_eq!(taken.call(libc::SYS_clone3, &[page, 88]), Err(Errno::ENOSYS));
    taken.release(daemon);
}

#[test]
fn compromised_daemon_cannot_make_dangerous_calls() {
    let daemon = Root::new().start();
    let Some(taken) = Taken::over(&daemon) else {
        return skipped("compromised_daemon_cannot_make_dangerous_calls", "ptrace");
    };
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK] {
        let family = u64::from(family.cast_unsigned());
        assert_eq!(taken.call(libc::SYS_socket, &[family, 1]), DENIED, "family {family}");
    }
    for call in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_setresuid,
        libc::SYS_execveat,
        // The number of execve in the x32 ABI.
        0x4000_0000 + 520,
    ] {
        assert_eq!(taken.call(call, &[]), DENIED, "call {call}");
    }
    taken.release(daemon);
}

#[test]
fn compromised_daemon_cannot_open_other_files() {
    const NAME: &str = "compromised_daemon_cannot_open_other_files";
    // Do not use a directory below that of the socket, because the daemon may write there.
    let outside = tempfile::tempdir().unwrap();
    let drop_directory = outside.path().join("drop");
    fs::create_dir(&drop_directory).unwrap();
    let root = Root::new().with("packages.drop_directory", json!(drop_directory));
    let daemon = root.start();
    if !daemon.has_landlock() {
        return skipped(NAME, "Landlock");
    }
    let Some(taken) = Taken::over(&daemon) else { return skipped(NAME, "ptrace") };
    let (text, array) = taken.path(Path::new("/bin/true"));
    let executed = taken.call(libc::SYS_execve, &[text, array, 0]);
    assert_eq!(executed, Err(Errno::EACCES), "another program");
    let open = |path: &Path| {
        let flags = u64::from((libc::O_CREAT | libc::O_WRONLY).cast_unsigned());
        taken.call(libc::SYS_open, &[taken.path(path).0, flags, 0o600])
    };
    let above = open(&outside.path().join("above"));
    assert_eq!(above, Err(Errno::EACCES), "the directory above the drop directory");
    open(&drop_directory.join("within")).unwrap();
    assert!(drop_directory.join("within").exists());
    taken.release(daemon);
}
