//! Arms a trigger on a pressure file. The kernel wakes the waiting process when tasks have stalled
//! for long enough in a window.
//!
//! <https://docs.kernel.org/accounting/psi.html#monitoring-for-pressure-thresholds>

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{SourceError, read_from_start, register};
use crate::files::FileError;
use crate::memory::psi::Psi;

/// Stall time within a window that fires the trigger. systemd's default of 200 ms is meant for
/// releasing caches. Evicting a model takes longer, so the daemon starts earlier.
const THRESHOLD_US: u64 = 150_000;

/// Window of the trigger. Without CAP_SYS_RESOURCE, the kernel accepts only multiples of two
/// seconds.
const WINDOW_US: u64 = 2_000_000;

/// Trigger that stays armed until it is dropped.
#[derive(Debug)]
pub(super) struct PressureTrigger {
    name: &'static str,
    /// Stays registered, because polling the file resets the trigger, and registering polls it.
    armed: AsyncFd<File>,
    stall: StallCounter,
}

impl PressureTrigger {
    /// Arms a trigger with `payload`, in the format of the kernel, on the pressure file at `path`,
    /// opened by [`open`].
    pub(super) fn arm(
        mut file: File,
        path: &Path,
        name: &'static str,
        payload: &[u8],
    ) -> Result<Self, SourceError> {
        let stall = StallCounter::start(path, threshold(payload))?;
        file.write_all(payload).map_err(FileError::new("arm a trigger on", path))?;
        // Write the payload first: the kernel reports an error condition on a file without a
        // trigger.
        let armed = register(file, Interest::PRIORITY | Interest::ERROR, path)?;
        Ok(Self { name, armed, stall })
    }

    /// Waits for an event and returns whether it means pressure.
    pub(super) async fn wait(&mut self) -> Result<bool, SourceError> {
        let path = &self.stall.path;
        let mut ready = (self.armed.ready(Interest::PRIORITY | Interest::ERROR).await)
            .map_err(FileError::new("wait for events of", path))?;
        let is_gone = ready.ready().is_error();
        ready.clear_ready();
        if is_gone {
            return Err(SourceError::Gone(path.clone()));
        }
        self.stall.is_enough()
    }
}

impl fmt::Display for PressureTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.stall.path.display())
    }
}

/// Opens a file that may be a pressure file. A trigger can be armed only if it is opened for
/// writing.
pub(super) fn open(path: &Path, write: bool) -> Result<File, FileError> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(flags.bits());
    options.open(path).map_err(FileError::new("open", path))
}

/// Returns the payload of a trigger that systemd did not configure.
///
/// The kernel always cuts off the last byte, as if it were the end of a C string. Without the NUL
/// byte, a window of 2 s would become one of 200 ms.
pub(super) fn default_payload() -> String {
    format!("some {THRESHOLD_US} {WINDOW_US}\0")
}

/// Returns the threshold of a payload in microseconds, or 1 if the payload cannot be parsed.
fn threshold(payload: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(payload);
    text.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1)
}

/// Stall time since the trigger was armed.
///
/// The kernel starts the first window of an unprivileged trigger at the boot of the machine, so its
/// first event comes with the first stall, however short. An event therefore counts only when the
/// stall time since arming reaches the threshold; all events after that count. The counter is
/// `some`, which is never less than `full`.
#[derive(Debug)]
struct StallCounter {
    path: PathBuf,
    /// Separate handle, because systemd's protocol forbids reading from the one that is polled.
    file: File,
    at_arming: u64,
    threshold: u64,
}

impl StallCounter {
    fn start(path: &Path, threshold: u64) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(FileError::new("open", path))?;
        let mut stall = Self { path: path.to_owned(), file, at_arming: 0, threshold };
        stall.at_arming = stall.total()?;
        Ok(stall)
    }

    fn total(&self) -> Result<u64, SourceError> {
        let psi = Psi::parse(&read_from_start(&self.file, &self.path)?);
        psi.map(|psi| psi.some_total_us)
            .map_err(|error| SourceError::Pressure(self.path.clone(), error))
    }

    fn is_enough(&self) -> Result<bool, SourceError> {
        Ok(self.total()?.saturating_sub(self.at_arming) >= self.threshold)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn default_trigger_is_nul_terminated() {
        assert_eq!(default_payload().as_bytes(), b"some 150000 2000000\0");
        assert_eq!(WINDOW_US % 2_000_000, 0);
    }

    #[test]
    fn threshold_is_second_word_of_payload() {
        for (payload, expected) in [
            (default_payload().as_bytes(), THRESHOLD_US),
            (b"full 70000 2000000\0", 70_000),
            (b"some", 1),
            (b"", 1),
            (b"some \xff 3", 1),
        ] {
            assert_eq!(threshold(payload), expected);
        }
    }

    #[test]
    fn stall_counts_after_threshold_since_arming() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("memory.pressure");
        let write = |total: u64| {
            let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
            fs::write(&path, line).unwrap();
        };
        write(5_000_000);
        let stall = StallCounter::start(&path, 150_000).unwrap();
        for (total, enough) in [
            (5_000_000, false),
            (5_149_999, false),
            (5_150_000, true),
            (9_000_000, true),
            (7, false),
        ] {
            write(total);
            assert_eq!(stall.is_enough().unwrap(), enough, "{total}");
        }
        fs::write(&path, "?").unwrap();
        let error = stall.is_enough().unwrap_err();
        assert_eq!(error.to_string(), format!("cannot parse {}", path.display()));
    }
}
