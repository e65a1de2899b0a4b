//! A FIFO or a Unix socket through which somebody tells of pressure, byte by byte: for tests of a whole system, and
//! for managers that know more than the kernel.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::{SourceError, registered, uninterrupted};
use crate::files::FileError;

/// What is discarded with one signal, at most: all that a FIFO holds by default. What is left gives the next one.
const DISCARDED: usize = 64 << 10;

/// A stream of bytes without meaning, each of which says "pressure".
#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    kind: &'static str,
    payload: Vec<u8>,
    /// `None` until the socket is connected, which may have to be waited for.
    file: Option<File>,
}

impl Stream {
    /// A FIFO, open for writing too: so it does not end when who writes leaves, and comes again.
    pub(super) fn fifo(path: &Path, payload: &[u8]) -> Result<Self, SourceError> {
        let open = |write| {
            let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
            OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path)
        };
        let file = match open(true) {
            // Who may only read it hears of the end, too.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && payload.is_empty() => {
                open(false)
            }
            opened => opened,
        };
        let mut file = file.map_err(FileError::new("open", path))?;
        file.write_all(payload).map_err(FileError::new("write to", path))?;
        Ok(Self { path: path.to_owned(), kind: "FIFO", payload: Vec::new(), file: Some(file) })
    }

    /// A socket, to be connected when it is first waited for.
    pub(super) fn socket(path: &Path, payload: Vec<u8>) -> Self {
        Self { path: path.to_owned(), kind: "socket", payload, file: None }
    }

    /// Waits for bytes and discards them.
    pub(super) async fn heard(&mut self) -> Result<bool, SourceError> {
        let Self { path, payload, file, .. } = self;
        let file = match file {
            Some(file) => file,
            unconnected => unconnected.insert(connect(path, payload).await?),
        };
        // Registered for the wait only: while this is held off, a storm does not wake the runtime. Nothing is lost, as
        // the bytes stay where they are.
        let registered = registered(file.as_fd(), Interest::READABLE, path)?;
        let ready = registered.readable().await.map(|mut ready| ready.retain_ready());
        drop(registered);
        ready.map_err(FileError::new("wait for bytes of", &*path))?;
        match discard(file) {
            Ok(Discarded::Some) => Ok(true),
            Ok(Discarded::Nothing) => Ok(false),
            Ok(Discarded::End) => Err(SourceError::Closed(path.clone())),
            Err(error) => Err(FileError::new("read", &*path)(error).into()),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "systemd's {} {}", self.kind, self.path.display())
    }
}

async fn connect(path: &Path, payload: &[u8]) -> Result<File, SourceError> {
    let connected = UnixStream::connect(path).await.and_then(UnixStream::into_std);
    let stream = connected.map_err(FileError::new("connect to", path))?;
    let mut file = File::from(OwnedFd::from(stream));
    file.write_all(payload).map_err(FileError::new("write to", path))?;
    Ok(file)
}

enum Discarded {
    Some,
    Nothing,
    End,
}

/// Reads what is there, up to [`DISCARDED`] bytes.
fn discard(file: &mut File) -> io::Result<Discarded> {
    let mut buffer = [0; 4096];
    let mut discarded = Discarded::Nothing;
    for _ in 0..DISCARDED / buffer.len() {
        match uninterrupted(|| file.read(&mut buffer)) {
            // What was read before the end is heard first; the end is there at the next read, too.
            Ok(0) if matches!(discarded, Discarded::Nothing) => return Ok(Discarded::End),
            Ok(0) => break,
            Ok(_) => discarded = Discarded::Some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(discarded)
}
