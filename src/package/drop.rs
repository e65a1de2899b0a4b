//! The drop directory: where operators put packages, and when each of them is looked at.
//!
//! A copy in progress looks like a damaged package, so that time decides: a file is read once it has been quiet for
//! [`QUIET`], waited for while it is only incomplete, and quarantined when it is wrong and has not changed for
//! [`CONFIRM`] (some tools reserve the space first and fill it later). A file that was judged is not read again
//! unless it changes.
//!
//! [`Ledger`] is pure: listings and `now` come in. It never opens a package; whoever installs one tells it the
//! [`Verdict`].

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, HashingReader};
use super::{SIDECARS, SUFFIX};
use crate::files::{self, FileError, ReadOnce};

/// A file this long without a change is read. Well under the two seconds within which a package is to be available.
pub const QUIET: Duration = Duration::from_millis(300);
/// A file that is wrong is quarantined when it has not changed for this long.
pub const CONFIRM: Duration = Duration::from_secs(3);
/// After a failure of our own (a full disk) the file is tried again after this long.
const RETRY: Duration = Duration::from_secs(600);
/// Name of the directory, inside the drop directory, that refused packages are moved to.
const QUARANTINE: &str = "quarantine";
/// What the name of the file beside a refused package, which says why, ends with.
const REASON: &str = ".reason";
/// Refused packages that are kept; older ones are deleted, so that they cannot fill the disk.
const MAX_QUARANTINED: usize = 8;

/// What changes when a package or one of its sidecars changes: inode, size and times of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    fn of(files: &[Metadata]) -> Self {
        let files = files.iter().map(|file| {
            let (modified, changed) = (file.mtime(), file.ctime());
            let (modified_ns, changed_ns) = (file.mtime_nsec(), file.ctime_nsec());
            format!(
                "{}:{}:{modified}.{modified_ns}:{changed}.{changed_ns}",
                file.ino(),
                file.size()
            )
        });
        Self(Vec::from_iter(files).join(" "))
    }
}

/// What an attempt to install a file came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is installed.
    Accepted,
    /// It may be a copy in progress; says what is missing.
    Incomplete(String),
    /// It is wrong; says what.
    Refused(String),
    /// The appliance could not try; says why.
    Failed(String),
    /// It is wrong and could not be moved away.
    Ignored,
}

#[derive(Clone, Debug)]
enum State {
    Settling,
    Judged(Verdict),
}

#[derive(Clone, Debug)]
struct Seen {
    fingerprint: Fingerprint,
    unchanged_since: Instant,
    state: State,
}

/// What is to be done after a look at the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Files to install now.
    pub ready: Vec<(String, Fingerprint)>,
    /// Files to quarantine now, with the reason.
    pub refused: Vec<(String, String)>,
    /// Files that are there no more, of which models may have come.
    pub gone: Vec<String>,
    /// When to look again even if nothing changes.
    pub next: Option<Instant>,
}

/// What is known of each file of the drop directory.
#[derive(Debug, Default)]
pub struct Ledger {
    files: BTreeMap<String, Seen>,
}

impl Ledger {
    /// Remembers that `name`, as it was with `fingerprint`, is installed.
    pub fn remember(&mut self, name: &str, fingerprint: Fingerprint, now: Instant) {
        let state = State::Judged(Verdict::Accepted);
        let seen = Seen { fingerprint, unchanged_since: now, state };
        self.files.insert(name.to_owned(), seen);
    }

    /// Has `name` read again although it has not changed.
    pub fn forget(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = State::Settling;
        }
    }

    /// Compares `listing` with what is known and says what to do at `now`.
    pub fn observe(
        &mut self,
        listing: BTreeMap<String, Fingerprint>,
        incomplete_timeout: Duration,
        now: Instant,
    ) -> Round {
        let mut round = Round::default();
        self.files.retain(|name, _seen| {
            let stays = listing.contains_key(name);
            // Whatever it was last: one that was installed may have been overwritten before it was removed.
            if !stays {
                round.gone.push(name.clone());
            }
            stays
        });
        for (name, fingerprint) in listing {
            let fresh = Seen {
                fingerprint: fingerprint.clone(),
                unchanged_since: now,
                state: State::Settling,
            };
            let seen = self.files.entry(name.clone()).or_insert_with(|| fresh.clone());
            if seen.fingerprint != fingerprint {
                *seen = fresh;
            }
            let (wait, refusal) = match &seen.state {
                State::Settling => (QUIET, None),
                State::Judged(Verdict::Failed(_)) => (RETRY, None),
                State::Judged(Verdict::Incomplete(reason)) => (
                    incomplete_timeout,
                    Some(format!("{reason}; the rest did not come within {incomplete_timeout:?}")),
                ),
                State::Judged(Verdict::Refused(reason)) => (CONFIRM, Some(reason.clone())),
                State::Judged(Verdict::Accepted | Verdict::Ignored) => continue,
            };
            let due = seen.unchanged_since + wait;
            match refusal {
                _ if now < due => round.next = round.next.into_iter().chain([due]).min(),
                Some(reason) => round.refused.push((name, reason)),
                None => round.ready.push((name, fingerprint)),
            }
        }
        round
    }

    /// Remembers what an attempt to install `name`, as it was with `fingerprint`, came to.
    pub fn judge(&mut self, name: &str, fingerprint: &Fingerprint, verdict: Verdict, now: Instant) {
        if let Some(seen) = self.files.get_mut(name)
            && seen.fingerprint == *fingerprint
        {
            if matches!(verdict, Verdict::Failed(_)) {
                seen.unchanged_since = now;
            }
            seen.state = State::Judged(verdict);
        }
    }

    /// Gives up on a file that cannot be moved away.
    pub fn ignore(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = State::Judged(Verdict::Ignored);
        }
    }
}

/// The packages in `directory`, each with the fingerprint of itself and its sidecars.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> Result<BTreeMap<String, Fingerprint>, FileError> {
    let mut listing = BTreeMap::new();
    for child in fs::read_dir(directory).map_err(FileError::new("list", directory))? {
        let child = child.map_err(FileError::new("list", directory))?;
        let Ok(name) = child.file_name().into_string() else { continue };
        // A leading dot is how rsync, scp and file managers mark what they have not finished.
        if !name.ends_with(SUFFIX) || name.starts_with('.') {
            continue;
        }
        let sidecars = SIDECARS.map(|ending| directory.join(format!("{name}{ending}")));
        let files = [child.path()].into_iter().chain(sidecars);
        let mut metadata = Vec::new();
        for file in files {
            match fs::symlink_metadata(&file) {
                Ok(found) => metadata.push(found),
                // A package's name may be so long that no sidecar's is possible.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(FileError::new("examine", file)(error)),
            }
        }
        listing.insert(name, Fingerprint::of(&metadata));
    }
    Ok(listing)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename)
}

/// The digest of the package at `path`. Reads all of it.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<Digest, FileError> {
    let mut reader = HashingReader::new(ReadOnce::new(files::open_regular(path)?));
    io::copy(&mut reader, &mut io::sink()).map_err(FileError::new("read", path))?;
    Ok(reader.finish())
}

/// Moves a refused package and its sidecars into the quarantine, with the reason beside it.
///
/// Returns where it is now. One of the same name that is there already is replaced.
///
/// # Errors
/// When the drop directory cannot be written; the package then stays where it is.
pub fn quarantine(directory: &Path, name: &str, reason: &str) -> Result<PathBuf, FileError> {
    let quarantine = directory.join(QUARANTINE);
    files::create_directory(&quarantine)?;
    let target = quarantine.join(name);
    fs::rename(directory.join(name), &target)
        .map_err(FileError::new("move to quarantine", directory.join(name)))?;
    for ending in SIDECARS {
        let sidecar = format!("{name}{ending}");
        match fs::rename(directory.join(&sidecar), quarantine.join(&sidecar)) {
            Err(error) if !is_absent(&error) => {
                return Err(FileError::new("move to quarantine", directory.join(&sidecar))(error));
            }
            _ => {}
        }
    }
    files::write_atomic(
        &quarantine.join(format!("{name}{REASON}")),
        format!("{reason}\n").as_bytes(),
    )?;
    prune(&quarantine)?;
    Ok(target)
}

/// Removes a package and its sidecars, which would be held against the next package of its name. None need be there.
///
/// # Errors
/// When something of it stays.
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

/// The packages in the quarantine of `directory` and why each is there, the last one first; none when there is no
/// quarantine. A reason that somebody took away is empty.
///
/// # Errors
/// When the quarantine cannot be read.
pub fn quarantined(directory: &Path) -> Result<Vec<(String, String)>, FileError> {
    let quarantine = directory.join(QUARANTINE);
    if !quarantine.try_exists().map_err(FileError::new("examine", &quarantine))? {
        return Ok(Vec::new());
    }
    let reason = |name: String| {
        let path = quarantine.join(format!("{name}{REASON}"));
        match fs::read_to_string(&path) {
            Ok(reason) => Ok((name, reason.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((name, String::new())),
            Err(error) => Err(FileError::new("read", path)(error)),
        }
    };
    oldest_first(&quarantine)?.into_iter().rev().map(reason).collect()
}

/// Deletes the oldest quarantined packages beyond the number that is kept.
fn prune(quarantine: &Path) -> Result<(), FileError> {
    let packages = oldest_first(quarantine)?;
    let excess = packages.len().saturating_sub(MAX_QUARANTINED);
    for name in packages.into_iter().take(excess) {
        for ending in ["", REASON].into_iter().chain(SIDECARS) {
            files::remove(&quarantine.join(format!("{name}{ending}")))?;
        }
    }
    Ok(())
}

/// The packages in `quarantine`, the one that came first before the others.
fn oldest_first(quarantine: &Path) -> Result<Vec<String>, FileError> {
    let mut packages = Vec::new();
    for name in list(quarantine)?.into_keys() {
        let path = quarantine.join(&name);
        let metadata = fs::symlink_metadata(&path).map_err(FileError::new("examine", &path))?;
        packages.push((metadata.ctime(), metadata.ctime_nsec(), name));
    }
    packages.sort();
    Ok(Vec::from_iter(packages.into_iter().map(|(_, _, name)| name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(600);
    const NAME: &str = "a.model.tar.zst";

    fn listing(content: &str) -> BTreeMap<String, Fingerprint> {
        BTreeMap::from([(NAME.to_owned(), Fingerprint(content.to_owned()))])
    }

    fn ready(content: &str) -> Round {
        Round {
            ready: vec![(NAME.to_owned(), Fingerprint(content.to_owned()))],
            ..Round::default()
        }
    }

    #[test]
    fn a_file_is_read_once_it_is_quiet_and_not_again() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let growing = ledger.observe(listing("1"), TIMEOUT, start);
        assert_eq!(growing, Round { next: Some(start + QUIET), ..Round::default() });
        let grown = ledger.observe(listing("2"), TIMEOUT, start + QUIET);
        assert_eq!(grown, Round { next: Some(start + 2 * QUIET), ..Round::default() });
        let now = start + 2 * QUIET;
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, now), ready("2"));
        ledger.judge(NAME, &Fingerprint("2".to_owned()), Verdict::Accepted, now);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, now + TIMEOUT), Round::default());
        let replaced = ledger.observe(listing("3"), TIMEOUT, now + TIMEOUT);
        assert!(replaced.ready.is_empty() && replaced.next.is_some());
        ledger.remember(NAME, Fingerprint("3".to_owned()), now);
        let gone = ledger.observe(BTreeMap::new(), TIMEOUT, now);
        let is_gone = Round { gone: vec![NAME.to_owned()], ..Round::default() };
        assert_eq!(gone, is_gone);
        // Overwritten first, and removed before that came to anything.
        ledger.remember(NAME, Fingerprint("3".to_owned()), now);
        ledger.observe(listing("4"), TIMEOUT, now);
        assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, now), is_gone);
    }

    #[test]
    fn a_file_that_is_forgotten_is_read_again_and_still_missed() {
        let start = Instant::now();
        let now = start + QUIET;
        let mut ledger = Ledger::default();
        ledger.remember(NAME, Fingerprint("1".to_owned()), start);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, now), Round::default());
        ledger.forget(NAME);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, now), ready("1"));
        assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, now).gone, [NAME]);
    }

    #[test]
    fn a_name_may_be_too_long_for_sidecars() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("{}{SUFFIX}", "a".repeat(255 - SUFFIX.len()));
        fs::write(directory.path().join(&name), "").unwrap();
        assert_eq!(list(directory.path()).unwrap().into_keys().next(), Some(name));
    }

    #[test]
    fn an_incomplete_file_is_waited_for_until_the_timeout() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, start);
        let half = Verdict::Incomplete("it ends early".to_owned());
        ledger.judge(NAME, &Fingerprint("1".to_owned()), half.clone(), start + QUIET);
        let waiting = ledger.observe(listing("1"), TIMEOUT, start + QUIET);
        assert_eq!(waiting, Round { next: Some(start + TIMEOUT), ..Round::default() });
        // More of it comes: the clock starts again.
        ledger.observe(listing("2"), TIMEOUT, start + TIMEOUT);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, start + TIMEOUT + QUIET), ready("2"));
        ledger.judge(NAME, &Fingerprint("2".to_owned()), half, start + TIMEOUT + QUIET);
        let given_up = ledger.observe(listing("2"), TIMEOUT, start + 2 * TIMEOUT);
        assert!(given_up.refused[0].1.starts_with("it ends early"), "{given_up:?}");
    }

    #[test]
    fn a_wrong_file_is_refused_only_when_it_has_stopped_changing() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, start);
        let wrong = Verdict::Refused("a bad digest".to_owned());
        ledger.judge(NAME, &Fingerprint("1".to_owned()), wrong, start + QUIET);
        let early = ledger.observe(listing("1"), TIMEOUT, start + QUIET);
        assert_eq!(early, Round { next: Some(start + CONFIRM), ..Round::default() });
        let late = ledger.observe(listing("1"), TIMEOUT, start + CONFIRM);
        assert_eq!(late.refused, [(NAME.to_owned(), "a bad digest".to_owned())]);
        ledger.ignore(NAME);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, start + TIMEOUT), Round::default());
    }

    #[test]
    fn a_verdict_on_an_older_content_does_not_count() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, start);
        ledger.observe(listing("2"), TIMEOUT, start);
        ledger.judge(NAME, &Fingerprint("1".to_owned()), Verdict::Accepted, start);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, start + QUIET), ready("2"));
    }

    #[test]
    fn a_failure_of_our_own_is_tried_again_later() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, start);
        let full = Verdict::Failed("no space".to_owned());
        ledger.judge(NAME, &Fingerprint("1".to_owned()), full, start + QUIET);
        assert!(ledger.observe(listing("1"), TIMEOUT, start + RETRY).ready.is_empty());
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, start + RETRY + QUIET), ready("1"));
    }

    #[test]
    fn the_quarantine_takes_the_sidecars_and_keeps_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(root.path().join(name), name).unwrap();
        write(".half.model.tar.zst");
        write("readme.txt");
        assert_eq!(quarantined(root.path()).unwrap(), []);
        for index in 0..=MAX_QUARANTINED {
            let name = format!("{index}{SUFFIX}");
            write(&name);
            write(&format!("{name}.sha256"));
            let before = list(root.path()).unwrap();
            assert_eq!(before.keys().collect::<Vec<_>>(), [&name]);
            write(&format!("{name}.sha256 "));
            quarantine(root.path(), &name, "why").unwrap();
            assert!(list(root.path()).unwrap().is_empty());
            fs::remove_file(root.path().join(format!("{name}.sha256 "))).unwrap();
        }
        let quarantine = root.path().join(QUARANTINE);
        assert_eq!(list(&quarantine).unwrap().len(), MAX_QUARANTINED);
        assert!(!quarantine.join(format!("0{SUFFIX}.reason")).exists());
        let last = format!("{MAX_QUARANTINED}{SUFFIX}");
        assert_eq!(fs::read_to_string(quarantine.join(format!("{last}.reason"))).unwrap(), "why\n");
        assert!(quarantine.join(format!("{last}.sha256")).exists());
        let found = quarantined(root.path()).unwrap();
        assert_eq!(found.len(), MAX_QUARANTINED);
        assert_eq!(found[0], (last.clone(), "why".to_owned()));
        fs::remove_file(quarantine.join(format!("{last}.reason"))).unwrap();
        assert_eq!(quarantined(root.path()).unwrap()[0], (last, String::new()));
    }
}
