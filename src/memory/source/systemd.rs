//! Implements systemd's memory pressure protocol: <https://systemd.io/PRESSURE/>.
//!
//! The module checks `$MEMORY_PRESSURE_WATCH` and `$MEMORY_PRESSURE_WRITE`. It rejects files that
//! do not belong to this process, because children of a service inherit the variables: the shell of
//! a desktop would receive the pressure of its terminal.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, fstatfs};

use super::SourceError;
use super::stream::SignalStream;
use super::trigger::{self, PressureTrigger};
use crate::files::FileError;
use crate::memory::cgroup::ProcessGroups;

/// Value of `$MEMORY_PRESSURE_WATCH` that turns the protocol off.
const OFF: &str = "/dev/null";

/// The two variables of the protocol.
///
/// They stay in the environment, because this process starts no other one that could take them for
/// its own.
#[derive(Clone, Debug, Default)]
pub struct PressureEnvironment {
    /// `$MEMORY_PRESSURE_WATCH`: absolute path of a pressure file, a FIFO or a Unix socket.
    pub watch: Option<OsString>,
    /// `$MEMORY_PRESSURE_WRITE`: the bytes to write to it after opening, in base64.
    pub write: Option<OsString>,
}

impl PressureEnvironment {
    /// Returns the variables of this process.
    pub fn of_process() -> Self {
        let value = |name| std::env::var_os(name);
        Self { watch: value("MEMORY_PRESSURE_WATCH"), write: value("MEMORY_PRESSURE_WRITE") }
    }

    /// Opens the requested source; `groups` finds the groups of this process.
    pub(super) fn open_requested(
        &self,
        root: &Path,
        groups: impl FnOnce() -> Result<ProcessGroups, FileError>,
    ) -> Result<RequestedSource, SourceError> {
        let Some(watch) = &self.watch else { return Ok(RequestedSource::Nothing) };
        // Off also disables the triggers of the machine and the group. Polling stays: it costs only
        // the samples, and without it the process would not notice that it reaches its limit.
        if watch == OFF {
            return Ok(RequestedSource::Off);
        }
        if !is_normal(watch) {
            return Err(EnvironmentError::Path(watch.clone()).into());
        }
        let path = root.join(Path::new(watch).strip_prefix("/").unwrap_or(Path::new(watch)));
        let payload = match &self.write {
            Some(write) => {
                BASE64_STANDARD.decode(write.as_bytes()).map_err(EnvironmentError::Write)?
            }
            None => Vec::new(),
        };
        let kind = fs::metadata(&path).map_err(FileError::new("examine", &path))?.file_type();
        if kind.is_fifo() {
            SignalStream::fifo(&path, &payload).map(RequestedSource::Stream)
        } else if kind.is_socket() {
            Ok(RequestedSource::Stream(SignalStream::socket(&path, payload)))
        } else if kind.is_file() {
            arm(&path, &payload, &groups()?).map(RequestedSource::Trigger)
        } else {
            Err(EnvironmentError::Kind(path).into())
        }
    }
}

/// Source requested by the environment.
#[derive(Debug)]
pub(super) enum RequestedSource {
    Nothing,
    Off,
    Trigger(PressureTrigger),
    Stream(SignalStream),
}

/// Error of a requested source that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnvironmentError {
    #[error(
        "$MEMORY_PRESSURE_WATCH is {0:?}, which is not an absolute path without empty, . and .. parts"
    )]
    Path(OsString),
    #[error("$MEMORY_PRESSURE_WRITE is not base64")]
    Write(#[source] base64::DecodeError),
    #[error("$MEMORY_PRESSURE_WATCH names {}, which belongs to a control group that this process is not in", .0.display())]
    Foreign(PathBuf),
    #[error("$MEMORY_PRESSURE_WATCH names {}, which is not a pressure file, FIFO or socket", .0.display())]
    Kind(PathBuf),
}

/// Returns whether `path` is absolute and without empty, `.` and `..` components, which could hide
/// its target.
fn is_normal(path: &OsStr) -> bool {
    let mut parts = path.as_bytes().split(|byte| *byte == b'/');
    parts.next() == Some(b"")
        && parts.clone().next().is_some()
        && parts.all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Arms a trigger on a pressure file. The file must be that of the machine, of this process's group
/// or of an ancestor.
fn arm(
    path: &Path,
    payload: &[u8],
    groups: &ProcessGroups,
) -> Result<PressureTrigger, SourceError> {
    let unified = groups.unified.as_ref();
    let is_own =
        unified.is_some_and(|unified| unified.directories().any(|d| path.parent() == Some(d)));
    let foreign = || EnvironmentError::Foreign(path.to_owned());
    if !is_own && unified.is_some_and(|unified| unified.shows(path)) {
        return Err(foreign().into());
    }
    let file = trigger::open(path, !payload.is_empty())?;
    let found = fstatfs(&file).map_err(|errno| FileError::new("examine", path)(errno.into()))?;
    match found.filesystem_type() {
        PROC_SUPER_MAGIC => {}
        CGROUP2_SUPER_MAGIC if is_own => {}
        CGROUP2_SUPER_MAGIC => return Err(foreign().into()),
        // The payload must not be written: it would change a file that is not a pressure file.
        _ => return Err(EnvironmentError::Kind(path.to_owned()).into()),
    }
    PressureTrigger::arm(file, path, "systemd's trigger", payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_absolute_normalized_paths_are_accepted() {
        for (path, normal) in [
            ("/sys/fs/cgroup/a/memory.pressure", true),
            ("/a", true),
            ("", false),
            ("/", false),
            ("a/b", false),
            ("/a/../b", false),
            ("/./a", false),
            ("//a", false),
            ("/a/", false),
        ] {
            assert_eq!(is_normal(OsStr::new(path)), normal, "{path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_environment_never_panics(watch: Vec<u8>, write: Vec<u8>, slash: bool) {
            let root = tempfile::tempdir().unwrap();
            let value = |bytes: &[u8]| Some(OsStr::from_bytes(bytes).to_owned());
            let watch = if slash { [b"/", watch.as_slice()].concat() } else { watch };
            let environment = PressureEnvironment { watch: value(&watch), write: value(&write) };
            prop_assert!(environment.open_requested(root.path(), || Ok(ProcessGroups::default())).is_err());
        }
    }
}
