//! Restricts the files that the daemon may open, with Landlock.
//!
//! The daemon may read the directories that its settings name, its configuration, and files of the
//! system and the kernel. It may write to its store, its drop directory, the directory of the last
//! good configuration and, if it binds the socket, the directory of the socket. It may execute its
//! own program and the loader of that program. It cannot connect to TCP ports, and cannot signal
//! processes other than its children.
//!
//! A Landlock rule belongs to an existing directory, not to a name. If operators remove and create
//! a directory again, or mount a volume on it, it is another directory, and the daemon cannot use
//! it before a restart. The parent directory is not granted instead, because it also holds other
//! files. Further drop directories are the exception: they may be mounted at any time, so the
//! daemon may also read their parent directories, such as `/media`. [`Grants::absent`] lists the directories that do not exist at start.
//! <https://docs.kernel.org/userspace-api/landlock.html>

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::ExtraWritePaths;
use crate::api::wire::sandbox::SandboxPart;
use crate::base::errors::chain;
use crate::config::{self, ConfigSource, Settings};
use crate::models::ingest::install::further_directories;

/// Least version of Landlock. The first version, in Linux 5.13, does not allow a rename from one
/// directory to another. The store installs packages by such renames.
const MIN_ABI: ABI = ABI::V2;
/// Newest version whose rights are used. The program was tested with them.
const MAX_ABI: ABI = ABI::V7;

/// Directories that libraries read to look up users and groups, some of which are outside /etc, and
/// to count processors.
const SYSTEM: [&str; 9] = [
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run/systemd",
    "/sys",
    "/usr",
    "/var/lib/extrausers",
    "/var/lib/sss",
];
/// Directories in which a process writes to a file to subscribe to memory pressure:
/// `memory.pressure` of the control group, or `memory` of the machine.
const PRESSURE: [&str; 2] = ["/proc/pressure", "/sys/fs/cgroup"];

/// Program file as the kernel holds it. After an upgrade, the path of the program leads to another
/// file.
const PROGRAM: &str = "/proc/self/exe";
/// Loaders of programs, at the paths that the ABI of each machine fixes. The kernel executes the
/// loader too.
const LOADERS: [&str; 3] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux-riscv64-lp64d.so.1",
];

/// Paths that the daemon may access. Paths that do not exist are skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Grants {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    /// Files that may be read and executed.
    execute: Vec<PathBuf>,
    /// Directories whose files may be written in place, but not created or removed.
    pressure: Vec<PathBuf>,
    /// Whether systemd listens on an abstract socket, as it may in a container.
    needs_abstract_sockets: bool,
}

impl Grants {
    /// Creates the grants for `writes` and for `settings`, which were read from `files` of
    /// `source`. `watched` is the file through which systemd reports memory pressure.
    pub(super) fn new(
        settings: &Settings,
        source: &ConfigSource,
        files: &[PathBuf],
        writes: &ExtraWritePaths<'_>,
        watched: Option<PathBuf>,
    ) -> Self {
        let packages = &settings.packages;
        let mut read: Vec<PathBuf> = SYSTEM.map(PathBuf::from).into();
        let configuration = config::directories(source);
        read.extend(configuration.iter().filter_map(|directory| not_the_root(directory)));
        for directory in [&packages.bundled_directory, &packages.keys_directory] {
            read.extend(not_the_root(directory));
        }
        // A further drop directory may be mounted later: then it is another directory, to which the
        // parent gives access.
        for directory in further_directories(settings) {
            let (path, parent) = (Some(directory.as_path()), directory.parent());
            read.extend(path.into_iter().chain(parent).filter_map(not_the_root));
        }
        // A file may be a link to another directory, or be in the root directory. Its directory is
        // granted too, because editors replace files.
        for file in files.iter().filter_map(|file| fs::canonicalize(file).ok()) {
            read.extend(file.parent().and_then(not_the_root));
            read.push(file);
        }
        let mut write = vec![settings.memory.model_cache.directory.clone()];
        write.extend(not_the_root(&packages.drop_directory));
        write.extend(writes.last_good.and_then(Path::parent).map(Path::to_owned));
        if writes.socket {
            write.extend(settings.socket.path.parent().map(Path::to_owned));
        }
        let pressure = PRESSURE.map(PathBuf::from).into_iter().chain(watched).collect();
        let speaks_abstract =
            std::env::var("NOTIFY_SOCKET").is_ok_and(|socket| socket.starts_with('@'));
        let execute = [PROGRAM].into_iter().chain(LOADERS).map(PathBuf::from).collect();
        Self { read, write, execute, pressure, needs_abstract_sockets: speaks_abstract }
    }

    /// Returns the directories for packages and keys that do not exist and are not inside a granted
    /// directory. If one is created later, the daemon can use it only after a restart.
    pub(super) fn absent<'a>(&self, settings: &'a Settings) -> Vec<&'a Path> {
        let packages = &settings.packages;
        let more = packages.more_directories.iter().map(|more| (&more.path, &self.read));
        let named = [
            (&packages.drop_directory, &self.write),
            (&packages.bundled_directory, &self.read),
            (&packages.keys_directory, &self.read),
        ];
        let is_within = |directory: &Path, granted: &[PathBuf]| {
            granted.iter().any(|above| above.is_dir() && directory.starts_with(above))
        };
        let absent = named.into_iter().chain(more).filter(|(directory, granted)| {
            !is_within(directory, granted) && !is_within(directory, &self.write)
        });
        absent.map(|(directory, _)| directory.as_path()).collect()
    }
}

/// Returns `directory` unless it is the root of the file system.
fn not_the_root(directory: &Path) -> Option<PathBuf> {
    directory.parent().map(|_above| directory.to_owned())
}

/// Restricts the calling thread, and all threads and processes that it starts, to `grants`. Blocks
/// while some directories are opened.
pub(super) fn restrict(grants: &Grants) -> SandboxPart {
    // Landlock restricts only the calling thread, so existing threads would stay unrestricted.
    match threads() {
        Ok(1) => {}
        Ok(threads) => {
            return SandboxPart::off(None, format!("{} other threads already run", threads - 1));
        }
        Err(error) => {
            return SandboxPart::off(None, format!("cannot list /proc/self/task: {error}"));
        }
    }
    apply(grants)
}

fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn apply(grants: &Grants) -> SandboxPart {
    let status = match ruleset(grants).and_then(landlock::RulesetCreated::restrict_self) {
        Ok(status) => status,
        Err(error) => return SandboxPart::off(None, chain(&error)),
    };
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
        LandlockStatus::NotEnabled => {
            let reason = "disabled in the kernel; add landlock to lsm= of the kernel command line";
            return SandboxPart::off(None, reason.to_owned());
        }
        LandlockStatus::NotImplemented => {
            return SandboxPart::off(None, "not supported by the kernel".to_owned());
        }
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => {
            SandboxPart::on(Some(abi))
        }
        RulesetStatus::NotEnforced => SandboxPart::off(Some(abi), too_old(abi)),
    }
}

/// Returns the reason for a kernel whose version of Landlock, `abi`, is below [`MIN_ABI`].
fn too_old(abi: u32) -> String {
    format!("the kernel supports version {abi}, and version {} is required", MIN_ABI as u32)
}

fn ruleset(grants: &Grants) -> Result<landlock::RulesetCreated, RulesetError> {
    let mut scopes = BitFlags::from(Scope::Signal);
    if !grants.needs_abstract_sockets {
        scopes |= Scope::AbstractUnixSocket;
    }
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let writing = AccessFs::from_write(MAX_ABI) | reading;
    let made = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::from_all(MIN_ABI))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(MAX_ABI))?
        .handle_access(AccessNet::from_all(MAX_ABI))?
        .scope(scopes)?
        .create()?;
    made.set_compatibility(CompatLevel::BestEffort)
        .add_rules(path_beneath_rules(&grants.read, reading))?
        .add_rules(path_beneath_rules(&grants.write, writing))?
        .add_rules(path_beneath_rules(&grants.execute, AccessFs::ReadFile | AccessFs::Execute))?
        .add_rules(path_beneath_rules(&grants.pressure, reading | AccessFs::WriteFile))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::thread;

    use super::*;
    use crate::config::DropDirectorySettings;

    #[test]
    fn parents_are_not_granted_and_absences_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        let mut settings = Settings::default();
        settings.packages.drop_directory = path.join("volume/drop");
        settings.packages.keys_directory = path.join("keys.d");
        settings.packages.bundled_directory = "/usr/share/caxton/models".into();
        fs::create_dir(path.join("keys.d")).unwrap();
        let source = ConfigSource::File("/caxton.yaml".into());
        let watched = PathBuf::from("/run/pressure");
        let writes =
            ExtraWritePaths { last_good: Some(Path::new("/state/last-good")), socket: true };
        let grants = Grants::new(&settings, &source, &[], &writes, Some(watched.clone()));
        assert!(grants.write.contains(&PathBuf::from("/state")), "the last good configuration's");
        assert!(grants.pressure.contains(&watched));
        assert!(grants.write.contains(&PathBuf::from("/run/caxton")), "the socket's");
        assert_eq!(grants.absent(&settings), [path.join("volume/drop")]);
        fs::create_dir_all(path.join("volume/drop")).unwrap();
        assert!(grants.absent(&settings).is_empty());
        let all = [grants.read, grants.write, grants.execute, grants.pressure].concat();
        for above in [Path::new("/"), path, &path.join("volume")] {
            assert!(!all.contains(&above.to_owned()), "{all:?}");
        }
    }

    #[test]
    fn further_directories_are_readable_with_their_parents() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        let stick = root.path().join("stick");
        settings.packages.more_directories =
            [stick.clone(), "/mnt".into(), "/no/such/stick".into()]
                .map(|path| DropDirectorySettings { path, remove_with_file: true })
                .into();
        let source = ConfigSource::File("/caxton.yaml".into());
        let writes = ExtraWritePaths { last_good: None, socket: false };
        let grants = Grants::new(&settings, &source, &[], &writes, None);
        for granted in [root.path(), &stick, Path::new("/mnt")] {
            assert!(grants.read.contains(&granted.to_owned()), "{granted:?}");
            assert!(!grants.write.contains(&granted.to_owned()), "{granted:?}");
        }
        assert!(!grants.read.contains(&PathBuf::from("/")));
        let absent = grants.absent(&settings);
        assert!(!absent.contains(&stick.as_path()), "the parent is granted");
        assert!(absent.contains(&Path::new("/no/such/stick")));
    }

    #[test]
    fn ungranted_paths_are_denied() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for directory in ["read", "write", "none"] {
            fs::create_dir(at(directory)).unwrap();
            fs::write(at(directory).join("file"), directory).unwrap();
        }
        fs::create_dir(at("write/below")).unwrap();
        let grants = Grants {
            read: vec![at("read"), at("not there")],
            write: vec![at("write")],
            ..Grants::default()
        };
        // Landlock applies only to this thread.
        let tried = thread::scope(|scope| {
            let tried = scope.spawn(|| {
                let part = apply(&grants);
                let kind = |outcome: io::Result<()>| outcome.err().map(|error| error.kind());
                let outcomes = [
                    kind(fs::read(at("read/file")).map(drop)),
                    kind(fs::read_dir(at("read")).map(drop)),
                    kind(fs::write(at("write/new"), "")),
                    kind(fs::rename(at("write/new"), at("write/below/new"))),
                    kind(fs::remove_dir_all(at("write/below"))),
                    kind(fs::read(at("none/file")).map(drop)),
                    kind(fs::read_dir(at("none")).map(drop)),
                    kind(fs::write(at("none/file"), "")),
                    kind(fs::remove_file(at("none/file"))),
                    kind(fs::write(at("read/file"), "")),
                    kind(fs::write(at("read/new"), "")),
                    kind(fs::rename(at("write/file"), at("read/other")).map_err(|error| {
                        // The kernel returns EXDEV if a rename is denied on one side only.
                        match error.kind() {
                            ErrorKind::CrossesDevices => ErrorKind::PermissionDenied.into(),
                            _ => error,
                        }
                    })),
                ];
                (part, outcomes)
            });
            tried.join().unwrap()
        });
        let (part, outcomes) = tried;
        if !part.is_on() {
            let line =
                b"skipped: what is not granted can neither be read nor written: needs Landlock\n";
            return io::stderr().write_all(line).unwrap();
        }
        let (granted, denied) = outcomes.split_at(5);
        assert!(granted.iter().all(Option::is_none), "{granted:?}");
        assert!(denied.iter().all(|kind| *kind == Some(ErrorKind::PermissionDenied)), "{denied:?}");
    }

    #[test]
    fn old_version_is_named_as_number() {
        let expected = "the kernel supports version 1, and version 2 is required";
        assert_eq!(too_old(ABI::V1 as u32), expected);
    }

    #[test]
    fn sandbox_is_off_when_threads_exist() {
        // A test runs beside the main thread of the test harness.
        let part = restrict(&Grants::default());
        assert!(part.reason.is_some_and(|reason| reason.contains("other threads already run")));
    }
}
