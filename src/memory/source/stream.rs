//! Receives signals of pressure as bytes through a FIFO or a Unix socket.
//!
//! This serves tests of a whole system, and service managers that know more than the kernel.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::{SourceError, register, retry_interrupted};
use crate::files::FileError;

/// Bytes discarded per signal at most: the default capacity of a FIFO. Remaining bytes cause the
/// next signal.
const MAX_DISCARDED: usize = 64 << 10;

/// Stream of bytes, each of which signals pressure. Their values have no meaning.
#[derive(Debug)]
pub(super) struct SignalStream {
    path: PathBuf,
    kind: &'static str,
    payload: Vec<u8>,
    /// `None` until the socket is connected, which may take time.
    file: Option<File>,
}

impl SignalStream {
    /// Opens a FIFO. It is opened for writing, too, so that the stream does not end when the writer
    /// closes it; another writer may open it later.
    pub(super) fn fifo(path: &Path, payload: &[u8]) -> Result<Self, SourceError> {
        let open = |write| {
            let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
            OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path)
        };
        let file = match open(true) {
            // Without write permission, the stream ends when the last writer closes the FIFO.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && payload.is_empty() => {
                open(false)
            }
            opened => opened,
        };
        let mut file = file.map_err(FileError::new("open", path))?;
        file.write_all(payload).map_err(FileError::new("write to", path))?;
        Ok(Self { path: path.to_owned(), kind: "FIFO", payload: Vec::new(), file: Some(file) })
    }

    /// Creates a stream from a socket that is connected by the first wait.
    pub(super) fn socket(path: &Path, payload: Vec<u8>) -> Self {
        Self { path: path.to_owned(), kind: "socket", payload, file: None }
    }

    /// Waits for bytes and discards them. Returns whether there were any.
    pub(super) async fn wait(&mut self) -> Result<bool, SourceError> {
        let Self { path, payload, file, .. } = self;
        let file = match file {
            Some(file) => file,
            unconnected => unconnected.insert(connect(path, payload).await?),
        };
        // Register for the wait only, so that a storm of bytes does not wake the runtime during the
        // hold-off time. No signal is lost, because the bytes stay in the FIFO or socket.
        let registered = register(file.as_fd(), Interest::READABLE, path)?;
        let ready = registered.readable().await.map(|mut ready| ready.retain_ready());
        drop(registered);
        ready.map_err(FileError::new("wait for bytes of", &*path))?;
        match discard(file) {
            Ok(DiscardOutcome::Some) => Ok(true),
            Ok(DiscardOutcome::Nothing) => Ok(false),
            Ok(DiscardOutcome::End) => Err(SourceError::Closed(path.clone())),
            Err(error) => Err(FileError::new("read", &*path)(error).into()),
        }
    }
}

impl fmt::Display for SignalStream {
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

enum DiscardOutcome {
    Some,
    Nothing,
    End,
}

/// Discards the available bytes, up to [`MAX_DISCARDED`].
fn discard(file: &mut File) -> io::Result<DiscardOutcome> {
    let mut buffer = [0; 4096];
    let mut discarded = DiscardOutcome::Nothing;
    for _ in 0..MAX_DISCARDED / buffer.len() {
        match retry_interrupted(|| file.read(&mut buffer)) {
            // Report the bytes before the end of the stream. The next read finds the end again.
            Ok(0) if matches!(discarded, DiscardOutcome::Nothing) => {
                return Ok(DiscardOutcome::End);
            }
            Ok(0) => break,
            Ok(_) => discarded = DiscardOutcome::Some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(discarded)
}
