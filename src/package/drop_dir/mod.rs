//! Scans the drop directory, into which operators copy packages, and decides when each file is
//! read.
//!
//! A copy in progress looks like a damaged package. Therefore:
//! - A file is read when the kernel reports that it was renamed or closed after a write. Without
//!   such a report, it is read once it has not changed for [`QUIET`].
//! - The scanner waits for the rest of an incomplete file.
//! - A wrong file is quarantined when it has not changed for [`CONFIRM`], because some tools
//!   reserve the space first and fill it later.
//! - A file with a [`Verdict`] is not read again unless it changes.
//! - A file that could not be installed is retried when the capacity that it lacked has changed,
//!   and otherwise after a time that doubles from [`FIRST_RETRY`] to [`LAST_RETRY`].
//!
//! [`DropScanner`], the drop scanner, is pure: the caller passes listings and `now`. It never opens
//! a package; the installer passes it the verdict.

mod quarantine;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::mem;
use std::path::Path;
use std::time::{Duration, Instant};

use super::SIDECARS;
use super::digest::{Digest, HashingReader};
use super::listing::is_absent;
pub use super::listing::{
    DirectoryListing, FileFingerprint, MAX_NAME, directory_id, is_dropped_file, is_package_name,
    list, list_all,
};
pub use super::other_files::{OtherFiles, OtherFilesLog, OtherFilesNews, OtherKind};
use super::store::{FreeSpace, NoSpace, StoreUse};
use crate::files::{self, FileError, ReadOnce};
pub use quarantine::{
    QuarantineResult, invalid_reason, is_unchanged, list_quarantined, quarantine,
};

/// Time without a change after which a file is read. Well under the two seconds within which a
/// package should be available.
pub const QUIET: Duration = Duration::from_millis(300);
/// Time without a change after which a wrong file is quarantined.
pub const CONFIRM: Duration = Duration::from_secs(3);
/// Time after which a package that could not be installed is retried; it doubles with each failure.
pub const FIRST_RETRY: Duration = Duration::from_secs(600);
/// Longest time between two attempts.
pub const LAST_RETRY: Duration = Duration::from_secs(24 * 3600);

/// Capacity of the device for packages at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Use of the store; `None` when it is not known.
    pub store: Option<StoreUse>,
    /// Models that are not removed from the store for others.
    pub kept: Vec<String>,
    /// Space of the store's file system; `None` when it cannot be measured.
    pub space: Option<FreeSpace>,
    /// The limits of memory and the settings that share it among models, as text that changes when
    /// one of them does.
    pub memory: String,
}

/// Resource that an installation lacked. Two failures of the same kind are logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingResource {
    /// The quota of the store.
    Quota,
    /// The file system of the store.
    Space(NoSpace),
    /// Memory for the model.
    Memory,
    /// Usable keys. An attempt costs next to nothing.
    Keys,
    /// The disk, the system or the time.
    Other,
}

impl MissingResource {
    /// Returns whether an attempt may succeed with the capacity `now` that failed with the capacity
    /// `then`.
    fn is_met(&self, then: &Capacity, now: &Capacity) -> bool {
        match self {
            Self::Quota => (&then.store, &then.kept) != (&now.store, &now.kept),
            Self::Space(needed) => now.space.is_some_and(|space| needed.is_met_by(&space)),
            Self::Memory => then.memory != now.memory,
            Self::Keys | Self::Other => false,
        }
    }

    /// Returns the wait after so many failures of one file.
    fn back_off(&self, failures: u32) -> Duration {
        match self {
            // An operator may repair the file of a key at any time, so do not double the wait.
            Self::Keys => FIRST_RETRY,
            _ => {
                let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
                FIRST_RETRY.saturating_mul(doubled).min(LAST_RETRY)
            }
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        mem::discriminant(self) == mem::discriminant(other)
    }
}

/// Result of an attempt to install a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The package is installed.
    Accepted,
    /// The file may be a copy in progress. The text describes the missing part.
    Incomplete(String),
    /// The file is wrong. The text is the reason.
    Refused(String),
    /// The device has no capacity for it.
    Failed {
        /// The reason, for operators.
        reason: String,
        /// The resource that it lacked.
        lack: MissingResource,
    },
    /// The file is wrong and stays where it is. The text is the reason.
    Ignored(String),
}

#[derive(Clone, Debug)]
enum FilePhase {
    Settling,
    Judged(Verdict),
}

#[derive(Clone, Debug)]
struct FileState {
    fingerprint: FileFingerprint,
    unchanged_since: Instant,
    state: FilePhase,
    /// Attempts that failed since the file changed.
    failures: u32,
    /// The capacity at the last attempt.
    tried_with: Capacity,
    /// Whether the wait caused the last attempt, and not a change of the capacity.
    tried_by_time: bool,
    /// The resource that the last failure lacked.
    lacked: Option<MissingResource>,
}

impl FileState {
    fn new(fingerprint: FileFingerprint, now: Instant) -> Self {
        Self {
            fingerprint,
            unchanged_since: now,
            state: FilePhase::Settling,
            failures: 0,
            tried_with: Capacity::default(),
            tried_by_time: true,
            lacked: None,
        }
    }
}

/// Actions after one scan of the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ScanResult {
    /// Files to install now.
    pub ready: Vec<(String, FileFingerprint)>,
    /// Files to quarantine now, with the reason.
    pub refused: Vec<(String, FileFingerprint, String)>,
    /// Files that disappeared; models may have been installed from them.
    pub removed: Vec<String>,
    /// Instant of the next scan, even if nothing changes.
    pub next: Option<Instant>,
}

/// Drop scanner: the state of each file of the drop directory.
#[derive(Debug, Default)]
pub struct DropScanner {
    files: BTreeMap<String, FileState>,
    /// Files that the next scan reads at once, without waiting for [`QUIET`].
    completed: BTreeSet<String>,
}

impl DropScanner {
    /// Records that `name` is installed with the contents of `fingerprint`.
    pub fn record_installed(&mut self, name: &str, fingerprint: FileFingerprint, now: Instant) {
        let state = FilePhase::Judged(Verdict::Accepted);
        let seen = FileState { state, ..FileState::new(fingerprint, now) };
        self.files.insert(name.to_owned(), seen);
    }

    /// Makes the next scan read `name` again although it has not changed.
    pub fn rescan(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = FilePhase::Settling;
        }
    }

    /// Makes the next scan retry all files that could not be installed: the disk that failed is back.
    pub fn retry_failed(&mut self) {
        for seen in self.files.values_mut() {
            if matches!(seen.state, FilePhase::Judged(Verdict::Failed { .. })) {
                seen.state = FilePhase::Settling;
            }
        }
    }

    /// Records for the next scan that the writers have completed the files of these names.
    pub fn mark_complete(&mut self, names: BTreeSet<String>) {
        self.completed = names;
    }

    /// Compares `listing` with the known files and returns the actions at `now`, with the current
    /// `capacity`.
    pub fn observe(
        &mut self,
        listing: BTreeMap<String, FileFingerprint>,
        incomplete_timeout: Duration,
        capacity: &Capacity,
        now: Instant,
    ) -> ScanResult {
        let mut round = ScanResult::default();
        let completed = mem::take(&mut self.completed);
        self.files.retain(|name, _seen| {
            let stays = listing.contains_key(name);
            // Report a file in any state: an installed one may have been overwritten before it was
            // removed.
            if !stays {
                round.removed.push(name.clone());
            }
            stays
        });
        for (name, fingerprint) in listing {
            let fresh = || FileState::new(fingerprint.clone(), now);
            let seen = self.files.entry(name.clone()).or_insert_with(fresh);
            if seen.fingerprint != fingerprint {
                *seen = fresh();
            }
            let mut by_time = true;
            // `wait` counts from the last change of the file, or from the last failed attempt.
            let (wait, refusal) = match &seen.state {
                FilePhase::Settling if completed.contains(&name) => (Duration::ZERO, None),
                FilePhase::Settling => (QUIET, None),
                FilePhase::Judged(Verdict::Failed { lack, .. }) => {
                    by_time = !lack.is_met(&seen.tried_with, capacity);
                    (if by_time { lack.back_off(seen.failures) } else { QUIET }, None)
                }
                FilePhase::Judged(Verdict::Incomplete(reason)) => (
                    incomplete_timeout,
                    Some(format!(
                        "{reason}; the rest did not arrive within {incomplete_timeout:?}"
                    )),
                ),
                FilePhase::Judged(Verdict::Refused(reason)) => (CONFIRM, Some(reason.clone())),
                FilePhase::Judged(Verdict::Accepted | Verdict::Ignored(_)) => continue,
            };
            let due = seen.unchanged_since + wait;
            match refusal {
                _ if now < due => round.next = round.next.into_iter().chain([due]).min(),
                Some(reason) => round.refused.push((name, fingerprint, reason)),
                None => {
                    seen.tried_with = capacity.clone();
                    seen.tried_by_time = by_time;
                    round.ready.push((name, fingerprint));
                }
            }
        }
        round
    }

    /// Returns whether the last attempt to install `name` with its present contents failed.
    pub fn has_failed(&self, name: &str) -> bool {
        self.files.get(name).is_some_and(|seen| seen.failures > 0)
    }

    /// Records the result of an attempt to install `name` with the contents of `fingerprint`.
    /// Returns whether the result is worth a log record: a failure of the same kind as the one
    /// before is not, unless the wait caused the attempt.
    pub fn record_result(
        &mut self,
        name: &str,
        fingerprint: &FileFingerprint,
        verdict: Verdict,
        now: Instant,
    ) -> bool {
        let seen = self.files.get_mut(name).filter(|seen| seen.fingerprint == *fingerprint);
        let Some(seen) = seen else { return true };
        let mut is_news = true;
        if let Verdict::Failed { lack, .. } = &verdict {
            is_news = seen.tried_by_time
                || !seen.lacked.as_ref().is_some_and(|lacked| lacked.is_like(lack));
            seen.lacked = Some(lack.clone());
            seen.failures = seen.failures.saturating_add(1);
            seen.unchanged_since = now;
        }
        seen.state = FilePhase::Judged(verdict);
        is_news
    }

    /// Gives up on a file that is wrong because of `reason` and cannot be moved away.
    pub fn give_up(&mut self, name: &str, reason: String) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = FilePhase::Judged(Verdict::Ignored(reason));
        }
    }

    /// Returns the files that are not installed, at most `most` of them, and the number of all. If
    /// there are more, those that need an operator come first.
    pub fn pending(&self, most: usize) -> (Vec<PendingFile>, usize) {
        let mut found = Vec::new();
        let mut count = 0;
        for urgency in PendingState::BY_URGENCY {
            for (name, seen) in &self.files {
                let Some(state) = seen.pending_state().filter(|state| *state == urgency) else {
                    continue;
                };
                count += 1;
                if found.len() < most {
                    found.push(seen.describe(name, state));
                }
            }
        }
        (found, count)
    }
}

/// State of a file that is not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingState {
    /// The file is new or has changed: the scanner waits until it stops changing.
    Settling,
    /// The file ends early: the scanner waits for the rest.
    Incomplete,
    /// The device has no capacity for the package now: it is retried.
    Failed,
    /// The file is wrong: it is quarantined, or stays and is not read again.
    Refused,
}

impl PendingState {
    const BY_URGENCY: [Self; 4] = [Self::Failed, Self::Refused, Self::Incomplete, Self::Settling];
}

/// A file that is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingFile {
    /// Name of the file.
    pub name: String,
    /// State of the file.
    pub state: PendingState,
    /// Size of the file in bytes; `None` for a directory.
    pub bytes: Option<u64>,
    /// Reason of the state, for operators.
    pub reason: Option<String>,
    /// Instant at which the package is read or retried, if nothing changes before.
    pub retry_at: Option<Instant>,
}

impl FileState {
    fn pending_state(&self) -> Option<PendingState> {
        match &self.state {
            FilePhase::Settling => Some(PendingState::Settling),
            FilePhase::Judged(verdict) => match verdict {
                Verdict::Accepted => None,
                Verdict::Incomplete(_) => Some(PendingState::Incomplete),
                Verdict::Failed { .. } => Some(PendingState::Failed),
                Verdict::Refused(_) | Verdict::Ignored(_) => Some(PendingState::Refused),
            },
        }
    }

    fn describe(&self, name: &str, state: PendingState) -> PendingFile {
        let (reason, wait) = match &self.state {
            FilePhase::Settling => (None, Some(QUIET)),
            FilePhase::Judged(Verdict::Accepted) => (None, None),
            FilePhase::Judged(Verdict::Failed { reason, lack }) => {
                (Some(reason.clone()), Some(lack.back_off(self.failures)))
            }
            FilePhase::Judged(
                Verdict::Incomplete(reason) | Verdict::Refused(reason) | Verdict::Ignored(reason),
            ) => (Some(reason.clone()), None),
        };
        PendingFile {
            name: name.to_owned(),
            state,
            bytes: self.fingerprint.size(),
            reason,
            retry_at: wait.map(|wait| self.unchanged_since + wait),
        }
    }
}

/// Returns the digest of the package at `path`. Reads all of it.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<Digest, FileError> {
    let mut reader = HashingReader::new(ReadOnce::new(files::open_regular(path)?));
    io::copy(&mut reader, &mut io::sink()).map_err(FileError::new("read", path))?;
    Ok(reader.finish())
}

/// Removes a package and its sidecars, as far as they exist. Sidecars that stay would be compared
/// with the next package of this name.
///
/// # Errors
/// When a file of it cannot be removed.
pub fn remove(directory: &Path, name: &str) -> Result<(), FileError> {
    files::remove(&directory.join(name))?;
    for ending in SIDECARS {
        let sidecar = directory.join(format!("{name}{ending}"));
        match fs::remove_file(&sidecar) {
            Err(error) if !is_absent(&error) => {
                return Err(FileError::new("remove", sidecar)(error));
            }
            _ => {}
        }
    }
    match files::sync_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
