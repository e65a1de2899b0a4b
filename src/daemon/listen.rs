//! Opens the listening socket: takes it from systemd, or binds it here.
//!
//! A socket that is bound here gets its mode and group under a temporary name, and is then renamed.
//! So no connection can arrive under other permissions. A lock file beside the socket decides
//! whether an existing socket is stale. The kernel releases the lock when its holder ends.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nix::fcntl::Flock;
use nix::unistd::Group;

use crate::config::SocketSettings;
use crate::files::{self, FileError};
use crate::telemetry::log::Message;

/// Name of the socket that systemd passes. It is systemd's default for a socket unit of this name.
const NAME: &str = "caxton.socket";

/// Reasons for which the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory of the socket does not exist.
    #[error("the directory of socket.path, {}, does not exist; create it", .0.display())]
    NoDirectory(PathBuf),
    /// Another daemon listens on the path.
    #[error("another daemon listens on {}; stop it or change socket.path", .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{} exists and is not a socket; remove it or change socket.path", .0.display())]
    NotASocket(PathBuf),
    /// The configured group is unknown.
    #[error("the group \"{0}\" of socket.group does not exist; create it or change socket.group")]
    NoGroup(String),
    /// systemd passed more than one socket.
    #[error("systemd passed {0} sockets; expected one; see `systemctl cat caxton.socket`")]
    Passed(usize),
    /// systemd passed a socket with an unexpected name.
    #[error("systemd passed a socket called {0:?}; expected FileDescriptorName={NAME}")]
    Name(String),
    /// systemd passed a descriptor of another kind.
    #[error(
        "systemd passed a descriptor that is not a listening Unix stream socket; set ListenStream="
    )]
    Kind(#[source] io::Error),
}

/// Listening socket.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    /// Socket in non-blocking mode.
    pub(super) listener: UnixListener,
    /// Guard that removes the path when it is dropped. `None` if systemd owns the socket.
    pub(super) bound: Option<SocketGuard>,
}

/// Path of a socket that was bound here, with its lock.
#[derive(Debug)]
pub(super) struct SocketGuard {
    path: PathBuf,
    inode: u64,
    _lock: Flock<File>,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // Another daemon may have replaced the socket, if the lock file was deleted.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(
                name: Message::SocketNotRemoved.name(),
                path = %self.path.display(), errno = error.raw_os_error(), %error,
                "cannot remove the socket"
            );
        }
    }
}

impl ListeningSocket {
    /// Takes the socket that systemd passed, or binds the one of `settings`.
    pub(super) fn open(settings: &SocketSettings) -> Result<Self, ListenError> {
        let names = std::env::var("LISTEN_FDNAMES").ok();
        let mut passed = ListenFd::from_env();
        if passed.len() > 0 {
            check_passed(passed.len(), names.as_deref())?;
        }
        let (listener, bound) = match passed.take_unix_listener(0).map_err(ListenError::Kind)? {
            Some(listener) => (listener, None),
            None => bind(settings).map(|(listener, bound)| (listener, Some(bound)))?,
        };
        listener.set_nonblocking(true).map_err(FileError::new("listen on", &settings.path))?;
        Ok(Self { listener, bound })
    }
}

/// Checks that systemd passed exactly the one expected socket, by number and names
/// (sd_listen_fds(3)). A socket that is passed without names is accepted.
fn check_passed(count: usize, names: Option<&str>) -> Result<(), ListenError> {
    match (count, names) {
        (1, None | Some(NAME)) => Ok(()),
        (1, Some(other)) => Err(ListenError::Name(other.to_owned())),
        (count, _) => Err(ListenError::Passed(count)),
    }
}

/// Returns whether this process must bind the socket, because systemd does not pass one
/// (sd_listen_fds(3)).
pub(super) fn binds() -> bool {
    let passed = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    passed != Some(std::process::id())
}

fn bind(settings: &SocketSettings) -> Result<(UnixListener, SocketGuard), ListenError> {
    let path = &settings.path;
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(ListenError::NoDirectory(directory.to_owned()));
    }
    let lock = lock(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.clone()));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::new("examine", path)(error).into());
        }
        _ => {}
    }
    let unnamed = directory.join(format!(".caxton-{}.sock", std::process::id()));
    // An earlier process with the same id may have been killed before its rename.
    files::remove(&unnamed)?;
    let listener = UnixListener::bind(&unnamed).map_err(FileError::new("bind", &unnamed))?;
    if let Some(name) = &settings.group {
        let gid = group(name)?;
        std::os::unix::fs::chown(&unnamed, None, Some(gid))
            .map_err(FileError::new("change the group of", &unnamed))?;
    }
    fs::set_permissions(&unnamed, Permissions::from_mode(settings.mode))
        .map_err(FileError::new("change the mode of", &unnamed))?;
    let inode = fs::metadata(&unnamed).map_err(FileError::new("examine", &unnamed))?.ino();
    fs::rename(&unnamed, path).map_err(FileError::new("rename the socket to", path))?;
    Ok((listener, SocketGuard { path: path.clone(), inode, _lock: lock }))
}

fn lock(socket: &Path) -> Result<Flock<File>, ListenError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    files::lock(Path::new(&path))?.ok_or_else(|| ListenError::InUse(socket.to_owned()))
}

fn group(name: &str) -> Result<u32, ListenError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid.as_raw()).ok_or_else(|| ListenError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn settings(path: PathBuf) -> SocketSettings {
        SocketSettings { path, mode: 0o640, group: None, ..Settings::default().socket }
    }

    #[test]
    fn exactly_one_matching_socket_is_accepted() {
        for (count, names, taken) in [
            (1, None, Ok(())),
            (1, Some(NAME), Ok(())),
            (1, Some("http"), Err("a socket called \"http\"; expected FileDescriptorName=")),
            (1, Some(""), Err("a socket called \"\"")),
            (2, Some("caxton.socket:http"), Err("systemd passed 2 sockets; expected one")),
            (2, None, Err("systemd passed 2 sockets")),
        ] {
            match (check_passed(count, names).map_err(|error| error.to_string()), taken) {
                (Ok(()), Ok(())) => {}
                (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
                (other, _) => panic!("{count} {names:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn bound_socket_has_mode_and_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("caxton.sock");
        let listening = ListeningSocket::open(&settings(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn only_stale_socket_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("caxton.sock");
        // Create the remains of a killed daemon: the socket without a lock.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = ListeningSocket::open(&settings(path.clone())).unwrap();
        let second = ListeningSocket::open(&settings(path.clone())).unwrap_err();
        assert!(matches!(second, ListenError::InUse(_)), "{second}");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn other_files_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("caxton.sock");
        fs::write(&path, "precious").unwrap();
        let error = ListeningSocket::open(&settings(path.clone())).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = settings(root.path().join("no/such/caxton.sock"));
        let error = ListeningSocket::open(&nowhere).unwrap_err();
        assert!(matches!(error, ListenError::NoDirectory(_)), "{error}");
        let grouped = SocketSettings {
            group: Some("no-such-group".to_owned()),
            ..settings(root.path().join("s"))
        };
        let error = ListeningSocket::open(&grouped).unwrap_err();
        assert!(matches!(error, ListenError::NoGroup(_)), "{error}");
    }
}
