//! Sends records to journald's socket: one record per datagram, or a sealed memory file for a
//! larger record.
//!
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// Socket for sending to journald, which may stop and restart.
#[derive(Debug)]
pub(super) struct JournalSocket {
    socket: UnixDatagram,
    /// Path of journald's socket, used for every send. A connected socket would not reach a
    /// restarted journald.
    path: PathBuf,
}

impl JournalSocket {
    /// Opens a socket and checks that journald listens at `path`.
    ///
    /// # Errors
    /// When no process listens at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(path)?;
        Ok(Self { socket: UnixDatagram::unbound()?, path: path.to_owned() })
    }

    /// Sends `record`. Blocks while journald does not accept records.
    ///
    /// # Errors
    /// When no process listens, or memory is missing for a record that is too large for a datagram.
    pub(super) fn send(&self, record: &[u8]) -> io::Result<()> {
        loop {
            return match self.socket.send_to(record, &self.path) {
                Ok(_all) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_too_large(&error) => self.send_file(record),
                Err(error) => Err(error),
            };
        }
    }

    /// Sends `record` in a memory file. journald accepts the file only if it is sealed against
    /// changes.
    fn send_file(&self, record: &[u8]) -> io::Result<()> {
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
        let mut file = File::from(memfd_create("caxton-journal", flags)?);
        file.write_all(record)?;
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let file = OwnedFd::from(file);
        let (files, address) = ([file.as_raw_fd()], UnixAddr::new(&self.path)?);
        let rights = [ControlMessage::ScmRights(&files)];
        let (socket, nothing) = (self.socket.as_raw_fd(), [IoSlice::new(&[])]);
        loop {
            match sendmsg(socket, &nothing, &rights, MsgFlags::MSG_NOSIGNAL, Some(&address)) {
                Ok(_none) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_too_large(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EMSGSIZE | Errno::ENOBUFS))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read};

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[test]
    fn large_record_is_sent_as_sealed_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let record = vec![b'a'; 1 << 20];
        JournalSocket::open(&path).unwrap().send(&record).unwrap();
        let (mut bytes, mut space) = ([0; 16], nix::cmsg_space!([std::os::fd::RawFd; 1]));
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received =
            recvmsg::<UnixAddr>(journald.as_raw_fd(), &mut slices, Some(&mut space), flags);
        let received = received.unwrap();
        assert_eq!(received.bytes, 0, "the datagram itself is empty");
        let files: Vec<_> = received.cmsgs().unwrap().collect();
        let [ControlMessageOwned::ScmRights(files)] = &files[..] else { panic!("{files:?}") };
        let mut file = File::open(format!("/proc/self/fd/{}", files[0])).unwrap();
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
        let all = [
            SealFlag::F_SEAL_SHRINK,
            SealFlag::F_SEAL_GROW,
            SealFlag::F_SEAL_WRITE,
            SealFlag::F_SEAL_SEAL,
        ];
        let all = all.into_iter().collect::<SealFlag>();
        assert_eq!(SealFlag::from_bits_truncate(seals), all);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, record);
    }

    #[test]
    fn socket_without_listener_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let error = JournalSocket::open(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        drop(UnixDatagram::bind(&path).unwrap());
        let error = JournalSocket::open(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
