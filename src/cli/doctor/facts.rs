//! Facts about the system, before they are judged.
//!
//! They are read from files below a root, the caller's credentials, and the daemon's answers. A
//! file that is missing or not readable is a fact too, never an error, since the doctor is needed
//! when things are broken.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::http::Request;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups};
use serde_json::{Value, json};

use super::super::Connection;
use super::super::client::{Client, ClientError};
use super::super::owner::drop_root_if_needed;
use super::super::shell::quote;
use crate::api::wire::DaemonStatus;
use crate::api::wire::memory::MemoryStatus;
use crate::base::errors::chain;
use crate::config::{self, ConfigError, ConfigSource, KeyValue, LoadedConfig, Settings};
use crate::package::{Store, StoreContents};

/// Longest time for one answer of the daemon, which does not compute anything for these requests.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time for a vector. The daemon may load the default model before.
const EMBEDDING_PATIENCE: Duration = Duration::from_secs(30);
/// Directories of system units, in order of precedence: systemd.unit(5).
const UNIT_DIRECTORIES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// Name of the service unit.
pub(super) const SERVICE: &str = "caxton.service";
/// Name of the socket unit.
pub(super) const SOCKET: &str = "caxton.socket";

/// All facts that the checks use.
pub(super) struct Facts {
    pub(super) config: Result<LoadedConfig, ConfigError>,
    /// Settings from the files, or the defaults when the files are wrong.
    pub(super) settings: Settings,
    /// Every key with its origin; `None` when the files are wrong, or when the caller named a
    /// socket that is not of this configuration.
    pub(super) values: Option<Vec<KeyValue>>,
    /// Command that starts the daemon here.
    pub(super) start: String,
    /// State of the units; `None` when systemd does not run.
    pub(super) units: Option<Units>,
    pub(super) caller: Caller,
    pub(super) socket: SocketFile,
    /// Group of the socket in the configuration.
    pub(super) group: Option<NamedGroup>,
    pub(super) answers: Result<DaemonAnswers, NoAnswer>,
    /// Process of the daemon, if it answered and is visible.
    pub(super) process: Option<Process>,
    /// The drop directory; `None` when the caller named a socket that is not of this configuration,
    /// whose daemon has other directories.
    pub(super) drop_directory: Option<DropDirectory>,
    /// Disk of the store; `None` in the same case.
    pub(super) disk: Option<Result<Disk, String>>,
    /// Entries of the store; `None` in the same case. Examined last: see [`Facts::examine_store`].
    pub(super) store: Option<Result<StoreContents, String>>,
    pub(super) pressure: PressureFile,
    pub(super) journal: Journal,
    pub(super) clock: SystemTime,
    /// Modification time of this program's file. A clock that shows an earlier time is wrong.
    pub(super) built: Option<SystemTime>,
    pub(super) inotify: Inotify,
}

/// Units as their files show them. Their run-time state is known only to systemd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Units {
    pub(super) installed: bool,
    /// Whether the service or the socket is a link to /dev/null.
    pub(super) masked: bool,
    /// Whether the socket starts at boot.
    pub(super) enabled: bool,
}

/// User who runs the doctor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
    /// Name in the user database.
    pub(super) name: Option<String>,
    /// Groups of this process.
    pub(super) groups: Vec<u32>,
    /// Groups of the user in the group database. A process gets them at the next login.
    pub(super) database: Vec<u32>,
}

/// Group in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedGroup {
    pub(super) name: String,
    /// Group id; `None` when the group database has no such group.
    pub(super) gid: Option<u32>,
}

/// File at the socket's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) found: PathState,
}

/// Result of examining a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathState {
    Nothing,
    /// The caller may not examine it, or this failed for another reason.
    Hidden(String),
    /// The file is not a socket.
    Other,
    Socket {
        mode: u32,
        owner: u32,
        gid: u32,
        /// Name of the group `gid`.
        group: Option<String>,
    },
}

/// Reason why the daemon did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// No process listens.
    Absent,
    /// The caller may not connect.
    Denied,
    /// The connection failed in another way, or the answer was not understood.
    Broken(String),
}

/// Answers of the daemon.
pub(super) struct DaemonAnswers {
    pub(super) status: DaemonStatus,
    pub(super) memory: MemoryStatus,
    /// Reason why the default model cannot answer; `None` when it can.
    pub(super) unready: Option<String>,
    /// Sandbox in the status, as raw JSON: a daemon of another version may not report it.
    pub(super) sandbox: Option<Value>,
    /// Vector of a text by the default model, or the reason why there is none.
    pub(super) embedding: Result<EmbeddingAnswer, String>,
}

/// Vector of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EmbeddingAnswer {
    /// Model that computed it.
    pub(super) model: String,
    /// Length of the vector.
    pub(super) dimensions: usize,
    /// Time from the request to the answer.
    pub(super) time: Duration,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
    /// Path of its control group.
    pub(super) cgroup: String,
}

/// The drop directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DropDirectory {
    pub(super) path: PathBuf,
    pub(super) found: Result<Ownership, io::ErrorKind>,
}

/// Owner, group and mode of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ownership {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// File system of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// The store, or the nearest directory above it that could be examined.
    pub(super) path: PathBuf,
    pub(super) free_bytes: u64,
    pub(super) read_only: bool,
}

/// State of `/proc/pressure/memory`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PressureFile {
    Counted,
    /// The kernel was built without it.
    Absent,
    /// The kernel has it, but it was disabled at boot:
    /// <https://docs.kernel.org/accounting/psi.html>.
    Disabled,
    Unreadable(String),
}

/// State of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Journal {
    /// Whether journald listens.
    pub(super) runs: bool,
    /// Whether it is kept over a restart: journald.conf(5), `Storage=auto`.
    pub(super) persistent: bool,
    /// Whether the daemon was started with its standard error in the journal; `None` when unknown.
    pub(super) heard: Option<bool>,
}

/// Limits of the kernel for one user: inotify(7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inotify {
    pub(super) instances: Option<u64>,
    pub(super) watches: Option<u64>,
}

impl Facts {
    /// Gathers all facts except the store. System files are read below `root`; paths of the
    /// configuration are used as they are. Takes a few milliseconds, and the time of the daemon's
    /// answers: at most 45 seconds.
    pub(super) async fn gather(root: &Path, connection: &Connection) -> Self {
        let explained = match &connection.config {
            Some(file) => config::explain(&ConfigSource::File(file.clone())),
            None => config::explain(&ConfigSource::Layers { root: root.to_owned() }),
        };
        let (config, values) = match explained {
            Ok(explained) => (Ok(explained.loaded), Some(explained.values)),
            Err(error) => (Err(error), None),
        };
        let settings =
            config.as_ref().map_or_else(|_| Settings::default(), |it| it.settings.clone());
        let path = connection.socket.clone().unwrap_or_else(|| settings.socket.path.clone());
        let is_configured = path == settings.socket.path;
        let units = root.join("run/systemd/system").is_dir().then(|| units(root));
        let start = match (&connection.config, &units) {
            (None, Some(_)) => format!("sudo systemctl enable --now {SOCKET} {SERVICE}"),
            (None, None) => "caxtond".to_owned(),
            (Some(file), _) => format!("caxtond --config {}", quote(file)),
        };
        let answers = query_daemon(&path).await;
        let pid = answers.as_ref().ok().map(|answers| answers.status.pid);
        let of_process = |name: &str| pid.map(|pid| root.join(format!("proc/{pid}/{name}")));
        Self {
            start,
            units,
            caller: Caller::of_process(),
            socket: SocketFile { found: examine(&path), path },
            group: settings.socket.group.as_deref().map(NamedGroup::of),
            process: of_process("").and_then(|directory| Process::read(&directory)),
            drop_directory: is_configured
                .then(|| DropDirectory::of(settings.packages.drop_directory.clone())),
            disk: is_configured.then(|| Disk::of(&settings.memory.model_cache.directory)),
            store: None,
            values: values.filter(|_| is_configured),
            pressure: PressureFile::read(&root.join("proc/pressure/memory")),
            journal: Journal {
                runs: root.join("run/systemd/journal/socket").exists(),
                persistent: root.join("var/log/journal").is_dir(),
                heard: of_process("environ").and_then(|path| fs::read(path).ok()).map(|bytes| {
                    bytes.split(|byte| *byte == 0).any(|it| it.starts_with(b"JOURNAL_STREAM="))
                }),
            },
            clock: SystemTime::now(),
            built: std::env::current_exe()
                .and_then(fs::metadata)
                .and_then(|metadata| metadata.modified())
                .ok(),
            inotify: Inotify {
                instances: number(&root.join("proc/sys/fs/inotify/max_user_instances")),
                watches: number(&root.join("proc/sys/fs/inotify/max_user_watches")),
            },
            answers,
            settings,
            config,
        }
    }
}

impl Facts {
    /// Reads the entries of the store. A process of root changes to the owner of the store before,
    /// permanently, so that this must be the last fact to gather.
    pub(super) fn examine_store(&mut self) {
        if self.disk.is_none() {
            return;
        }
        let examined = drop_root_if_needed(&self.settings)
            .map(|settings| Store::examine(&settings.memory.model_cache.directory));
        self.store = Some(examined.map_err(|error| {
            let causes = Vec::from_iter(error.chain().map(ToString::to_string));
            causes.join(": ")
        }));
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn units(root: &Path) -> Units {
    let there =
        |name: &str| UNIT_DIRECTORIES.map(|directory| root.join(directory).join(name)).into_iter();
    let masks = |path: PathBuf| fs::read_link(path).is_ok_and(|to| to == Path::new("/dev/null"));
    // A link counts even if its target is missing below `root`.
    let exists = |path: PathBuf| path.symlink_metadata().is_ok();
    Units {
        installed: there(SERVICE).any(exists),
        masked: there(SERVICE).chain(there(SOCKET)).any(masks),
        enabled: there(&format!("sockets.target.wants/{SOCKET}")).any(exists),
    }
}

impl Caller {
    fn of_process() -> Self {
        let (uid, gid) = (geteuid(), getegid());
        let user = User::from_uid(uid).ok().flatten();
        let numbers = |gids: Vec<Gid>| Vec::from_iter(gids.into_iter().map(Gid::as_raw));
        let database = user.as_ref().and_then(|user| {
            let name = std::ffi::CString::new(user.name.as_bytes()).ok()?;
            getgrouplist(&name, user.gid).ok()
        });
        let mut groups = numbers(getgroups().unwrap_or_default());
        groups.push(gid.as_raw());
        Self {
            uid: uid.as_raw(),
            name: user.map(|user| user.name),
            groups,
            database: numbers(database.unwrap_or_default()),
        }
    }
}

fn examine(path: &Path) -> PathState {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => PathState::Socket {
            mode: metadata.mode() & 0o777,
            owner: metadata.uid(),
            gid: metadata.gid(),
            group: group_name(metadata.gid()),
        },
        Ok(_) => PathState::Other,
        Err(error) if error.kind() == io::ErrorKind::NotFound => PathState::Nothing,
        Err(error) => PathState::Hidden(error.to_string()),
    }
}

fn group_name(gid: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}

impl NamedGroup {
    fn of(name: &str) -> Self {
        let found = || Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        Self { name: name.to_owned(), gid: name.parse().ok().or_else(found) }
    }
}

async fn query_daemon(socket: &Path) -> Result<DaemonAnswers, NoAnswer> {
    let mut client = in_time(Client::connect(socket)).await?;
    let status: Value = in_time(client.get("/status")).await?;
    let sandbox = status.get("sandbox").filter(|value| !value.is_null()).cloned();
    let status: DaemonStatus = serde_json::from_value(status).map_err(|error| {
        NoAnswer::Broken(format!("the status of the daemon is not valid: {error}"))
    })?;
    let memory = in_time(client.get("/api/memory/status")).await?;
    let unready = match in_time(client.send(Request::get("/readyz"), Body::empty())).await {
        Ok(_) => None,
        Err(NoAnswer::Broken(why)) => Some(why),
        Err(silence) => return Err(silence),
    };
    let embedding = query_embedding(socket).await;
    Ok(DaemonAnswers { status, memory, unready, sandbox, embedding })
}

/// Asks for the vector of a text. The answer is raw JSON: a daemon of another version may have
/// other fields. Uses a connection of its own, because the daemon may close one after an error.
async fn query_embedding(socket: &Path) -> Result<EmbeddingAnswer, String> {
    let text = |silence| match silence {
        NoAnswer::Broken(why) => why,
        NoAnswer::Absent => "no daemon listens on the socket".to_owned(),
        NoAnswer::Denied => "this user may not connect".to_owned(),
    };
    let mut client = in_time(Client::connect(socket)).await.map_err(text)?;
    let request = json!({ "input": ["caxton doctor"], "encoding_format": "float" });
    let begun = Instant::now();
    let answer = within(EMBEDDING_PATIENCE, client.post("/v1/embeddings", &request));
    let answer: Value = answer.await.map_err(text)?;
    let time = begun.elapsed();
    let numbers = answer["data"][0]["embedding"].as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers: Option<Vec<f64>> = numbers.iter().map(Value::as_f64).collect();
    match numbers {
        Some(numbers) if numbers.iter().any(|number| *number != 0.0) => Ok(EmbeddingAnswer {
            model: answer["model"].as_str().unwrap_or_default().to_owned(),
            dimensions: numbers.len(),
            time,
        }),
        _ => Err("the answer has no vector, or one of zeros".to_owned()),
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, NoAnswer> {
    within(PATIENCE, answer).await
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, NoAnswer> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ClientError::Unreachable { source, path })) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoAnswer::Absent,
            io::ErrorKind::PermissionDenied => NoAnswer::Denied,
            _ => NoAnswer::Broken(format!("cannot connect to {}: {source}", path.display())),
        }),
        Ok(Err(error)) => Err(NoAnswer::Broken(chain(&error))),
        Err(_elapsed) => Err(NoAnswer::Broken(format!(
            "the daemon does not answer within {} s",
            limit.as_secs()
        ))),
    }
}

impl Process {
    /// Reads `/proc/PID`: proc_pid_status(5), cgroups(7).
    fn read(directory: &Path) -> Option<Self> {
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let numbers = |key: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().split_whitespace().filter_map(|it| it.parse().ok()).collect()
        };
        // The columns are the real, effective, saved and file system id.
        let (uids, gids) = (numbers("Uid:"), numbers("Gid:"));
        let mut groups = numbers("Groups:");
        groups.extend(gids.get(1));
        let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        Some(Self { uid: *uids.get(1)?, groups, cgroup })
    }

    /// Returns whether systemd runs the process as our service.
    pub(super) fn is_service(&self) -> bool {
        self.cgroup.lines().any(|line| line.split('/').any(|name| name == SERVICE))
    }
}

impl DropDirectory {
    fn of(path: PathBuf) -> Self {
        let found = fs::metadata(&path).map(|metadata| Ownership::of(&metadata));
        Self { found: found.map_err(|error| error.kind()), path }
    }
}

impl Ownership {
    fn of(metadata: &Metadata) -> Self {
        Self { mode: metadata.mode() & 0o777, uid: metadata.uid(), gid: metadata.gid() }
    }

    /// Returns the bits of `rwx` that `process` has. Access control lists are ignored.
    pub(super) fn bits(&self, process: &Process) -> u32 {
        if Uid::from_raw(process.uid).is_root() {
            return 0o7;
        }
        let class = if process.uid == self.uid {
            6
        } else if process.groups.contains(&self.gid) {
            3
        } else {
            0
        };
        self.mode >> class & 0o7
    }
}

impl Disk {
    /// Examines the disk that holds `directory`, or will hold it.
    fn of(directory: &Path) -> Result<Self, String> {
        let mut why = String::new();
        for path in directory.ancestors() {
            match statvfs(path) {
                Ok(found) => {
                    let free_bytes = found.blocks_available().saturating_mul(found.fragment_size());
                    let read_only = found.flags().contains(FsFlags::ST_RDONLY);
                    return Ok(Self { path: path.to_owned(), free_bytes, read_only });
                }
                Err(error) => why = format!("cannot examine {}: {error}", path.display()),
            }
        }
        Err(why)
    }
}

impl PressureFile {
    fn read(path: &Path) -> Self {
        match fs::read(path) {
            Ok(_) => Self::Counted,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Absent,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Self::Disabled,
            Err(error) => Self::Unreadable(format!("cannot read {}: {error}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn unit_state_is_read_from_files() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert_eq!(units(root.path()), Units::default());
        write(root.path(), "usr/lib/systemd/system/caxton.service", "");
        fs::create_dir_all(at("etc/systemd/system/sockets.target.wants")).unwrap();
        let wants = at("etc/systemd/system/sockets.target.wants/caxton.socket");
        symlink("/usr/lib/systemd/system/caxton.socket", wants).unwrap();
        let expected = Units { installed: true, masked: false, enabled: true };
        assert_eq!(units(root.path()), expected);
        symlink("/dev/null", at("etc/systemd/system/caxton.service")).unwrap();
        assert!(units(root.path()).masked);
    }

    #[test]
    fn process_ids_groups_and_cgroup_are_parsed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Process::read(root.path()), None);
        let status = "Name:\tcaxtond\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";
        write(root.path(), "status", status);
        write(root.path(), "cgroup", "0::/caxton.slice/caxton.service\n");
        let process = Process::read(root.path()).unwrap();
        assert_eq!((process.uid, &process.groups[..]), (2, &[9, 10, 6][..]));
        assert!(process.is_service());
        let other = Process { cgroup: "0::/my-caxton.service.d".to_owned(), ..process };
        assert!(!other.is_service());
    }

    #[test]
    fn permission_bits_come_from_first_matching_class() {
        let owned = Ownership { mode: 0o754, uid: 1, gid: 2 };
        let process =
            |uid, groups: &[u32]| Process { uid, groups: groups.to_vec(), cgroup: String::new() };
        for (uid, groups, expected) in
            [(0, &[][..], 0o7), (1, &[2], 0o7), (3, &[2], 0o5), (3, &[4], 0o4)]
        {
            assert_eq!(owned.bits(&process(uid, groups)), expected, "{uid} {groups:?}");
        }
    }

    #[test]
    fn absent_path_uses_disk_of_parent() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::of(&root.path().join("not/there")).unwrap();
        assert_eq!(disk.path, root.path());
        assert!(!disk.read_only);
    }

    #[tokio::test]
    async fn dead_socket_differs_from_file_and_absence() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        assert_eq!(examine(&path), PathState::Nothing);
        assert_eq!(query_daemon(&path).await.err(), Some(NoAnswer::Absent));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(examine(&path), PathState::Socket { .. }));
        assert_eq!(query_daemon(&path).await.err(), Some(NoAnswer::Absent));
        assert_eq!(examine(root.path()), PathState::Other);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_times_out() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let silence = query_daemon(&path).await.err();
        let expected = NoAnswer::Broken("the daemon does not answer within 5 s".to_owned());
        assert_eq!(silence, Some(expected));
    }

    #[test]
    fn caller_groups_include_own_gid() {
        let caller = Caller::of_process();
        assert!(caller.groups.contains(&getegid().as_raw()));
    }
}
