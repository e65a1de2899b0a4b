//! The drop directory: where operators put packages, and when each of them is looked at.
//!
//! A copy in progress looks like a damaged package. A file is read when the kernel says that it was renamed, or closed
//! after a write, and else once it has been quiet for [`QUIET`]. It is waited for while it is only incomplete, and quarantined when it is wrong and has not changed for
//! [`CONFIRM`] (some tools reserve the space first and fill it later). A file that was judged is not read again
//! unless it changes. A file that could not be taken is tried again when the appliance can take what it could not take
//! before, and else after a time that doubles from [`FIRST_RETRY`] to [`LAST_RETRY`].
//!
//! [`Ledger`] is pure: listings and `now` come in. It never opens a package; whoever installs one tells it the
//! [`Verdict`].

mod quarantine;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statvfs::fstatvfs;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, HashingReader};
use super::store::{FreeSpace, NoSpace, StoreUse};
use super::{SIDECARS, SUFFIX};
use crate::files::{self, FileError, ReadOnce};
use crate::printable::is_printable;
pub use quarantine::{MAX_NAME, Quarantined, fault, is_still, quarantine, quarantined};

/// A file this long without a change is read. Well under the two seconds within which a package is to be available.
pub const QUIET: Duration = Duration::from_millis(300);
/// A file that is wrong is quarantined when it has not changed for this long.
pub const CONFIRM: Duration = Duration::from_secs(3);
/// A package that could not be taken is tried again after this long, then after twice as long, and so on.
pub const FIRST_RETRY: Duration = Duration::from_secs(600);
/// The longest time between two attempts.
pub const LAST_RETRY: Duration = Duration::from_secs(24 * 3600);

/// Whether `name` may be the name of a package in the drop directory or the bundled one: one component of a path with a
/// package's ending, at most 240 bytes, only printable characters, no dot at the beginning.
pub fn is_package_name(name: &str) -> bool {
    name.ends_with(SUFFIX)
        && !name.starts_with('.')
        && name.len() <= MAX_NAME
        && name.chars().all(|c| c != '/' && is_printable(c))
}

/// What changes when a package or one of its sidecars changes: inode, size and times of each; of a directory the inode
/// alone, because what is in it says nothing of a package. Beside it, which does not count when two are compared, the
/// directory in which they were seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprint(String);

/// Stands before the directory in the text of a fingerprint. Older versions wrote none.
const SEEN_IN: &str = " in ";

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.parts().0 == other.parts().0
    }
}

impl Eq for Fingerprint {}

impl Fingerprint {
    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once(SEEN_IN) {
            Some((files, directory)) => (files, Some(directory)),
            None => (&self.0, None),
        }
    }

    /// The directory in which the files were seen, as [`place`] has it.
    pub fn place(&self) -> Option<&str> {
        self.parts().1
    }

    fn seen_in(mut self, place: &str) -> Self {
        self.0.push_str(SEEN_IN);
        self.0.push_str(place);
        self
    }

    fn of(files: &[Metadata]) -> Self {
        let files = files.iter().map(|file| match file.is_dir() {
            true => file.ino().to_string(),
            false => {
                let (changed, changed_ns) = (file.ctime(), file.ctime_nsec());
                format!("{}{changed}.{changed_ns}", Self::beginning(file))
            }
        });
        Self(Vec::from_iter(files).join(" "))
    }

    /// What stays the same when `file` is renamed.
    fn beginning(file: &Metadata) -> String {
        let (modified, modified_ns) = (file.mtime(), file.mtime_nsec());
        format!("{}:{}:{modified}.{modified_ns}:", file.ino(), file.size())
    }

    /// Whether `file`, renamed or not, is one of those that this was made of.
    fn is_of(&self, file: &Metadata) -> bool {
        let beginning = Self::beginning(file);
        self.0.split(' ').any(|part| match file.is_dir() {
            true => part.parse() == Ok(file.ino()),
            false => part.starts_with(&beginning),
        })
    }
}

/// What the appliance can take at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// The store; `None` when that is not known.
    pub store: Option<StoreUse>,
    /// The models that do not leave the store for others.
    pub kept: Vec<String>,
    /// The file system of the store; `None` when it cannot be measured.
    pub space: Option<FreeSpace>,
    /// The limits of memory and the settings that share it among models, in any form that changes when one of them
    /// does.
    pub memory: String,
}

/// Why a package could not be taken. Two failures of the same kind are told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The quota of the store.
    Quota,
    /// The file system of the store.
    Space(NoSpace),
    /// Memory for the model.
    Memory,
    /// Usable keys. The attempt costs next to nothing.
    Keys,
    /// The disk, the system or the time.
    Other,
}

impl Lack {
    /// Whether an attempt may succeed `now` that failed with what there was `then`.
    fn is_met(&self, then: &Capacity, now: &Capacity) -> bool {
        match self {
            Self::Quota => (&then.store, &then.kept) != (&now.store, &now.kept),
            Self::Space(needed) => now.space.is_some_and(|space| needed.is_met_by(&space)),
            Self::Memory => then.memory != now.memory,
            Self::Keys | Self::Other => false,
        }
    }

    /// How long to wait after so many failures of one file.
    fn back_off(&self, failures: u32) -> Duration {
        match self {
            // The file of a key may be put right at any time.
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

/// What an attempt to install a file came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is installed.
    Accepted,
    /// It may be a copy in progress; says what is missing.
    Incomplete(String),
    /// It is wrong; says what.
    Refused(String),
    /// The appliance could not take it.
    Failed {
        /// Why, for people.
        reason: String,
        /// What it lacked.
        lack: Lack,
    },
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
    /// Attempts that failed since the file changed.
    failures: u32,
    /// What there was when it was tried last.
    tried_with: Capacity,
    /// Whether it was tried last because the time had come, and not because more can be taken.
    tried_by_time: bool,
    /// What the last failure lacked.
    lacked: Option<Lack>,
}

impl Seen {
    fn new(fingerprint: Fingerprint, now: Instant) -> Self {
        Self {
            fingerprint,
            unchanged_since: now,
            state: State::Settling,
            failures: 0,
            tried_with: Capacity::default(),
            tried_by_time: true,
            lacked: None,
        }
    }
}

/// What is to be done after a look at the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Files to install now.
    pub ready: Vec<(String, Fingerprint)>,
    /// Files to quarantine now, with the reason.
    pub refused: Vec<(String, Fingerprint, String)>,
    /// Files that are there no more, of which models may have come.
    pub gone: Vec<String>,
    /// When to look again even if nothing changes.
    pub next: Option<Instant>,
}

/// What is known of each file of the drop directory.
#[derive(Debug, Default)]
pub struct Ledger {
    files: BTreeMap<String, Seen>,
    /// Files that the next look need not wait for.
    completed: BTreeSet<String>,
}

impl Ledger {
    /// Remembers that `name`, as it was with `fingerprint`, is installed.
    pub fn remember(&mut self, name: &str, fingerprint: Fingerprint, now: Instant) {
        let state = State::Judged(Verdict::Accepted);
        let seen = Seen { state, ..Seen::new(fingerprint, now) };
        self.files.insert(name.to_owned(), seen);
    }

    /// Has `name` read again although it has not changed.
    pub fn forget(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = State::Settling;
        }
    }

    /// Remembers for the next look that the files of these names were written to their end.
    pub fn complete(&mut self, names: BTreeSet<String>) {
        self.completed = names;
    }

    /// Compares `listing` with what is known and says what to do at `now`, when the appliance can take what `capacity`
    /// says.
    pub fn observe(
        &mut self,
        listing: BTreeMap<String, Fingerprint>,
        incomplete_timeout: Duration,
        capacity: &Capacity,
        now: Instant,
    ) -> Round {
        let mut round = Round::default();
        let completed = mem::take(&mut self.completed);
        self.files.retain(|name, _seen| {
            let stays = listing.contains_key(name);
            // Whatever it was last: one that was installed may have been overwritten before it was removed.
            if !stays {
                round.gone.push(name.clone());
            }
            stays
        });
        for (name, fingerprint) in listing {
            let fresh = || Seen::new(fingerprint.clone(), now);
            let seen = self.files.entry(name.clone()).or_insert_with(fresh);
            if seen.fingerprint != fingerprint {
                *seen = fresh();
            }
            let mut by_time = true;
            let (wait, refusal) = match &seen.state {
                State::Settling if completed.contains(&name) => (Duration::ZERO, None),
                State::Settling => (QUIET, None),
                State::Judged(Verdict::Failed { lack, .. }) => {
                    by_time = !lack.is_met(&seen.tried_with, capacity);
                    (if by_time { lack.back_off(seen.failures) } else { QUIET }, None)
                }
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

    /// Remembers what an attempt to install `name`, as it was with `fingerprint`, came to. Returns whether that is news:
    /// an attempt that fails for the same kind of reason as the one before it, and was not due by the time, is none.
    pub fn judge(
        &mut self,
        name: &str,
        fingerprint: &Fingerprint,
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
        seen.state = State::Judged(verdict);
        is_news
    }

    /// Gives up on a file that cannot be moved away.
    pub fn ignore(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            seen.state = State::Judged(Verdict::Ignored);
        }
    }
}

/// Returns which directory stands at `directory`: its file system and its inode. Another volume in its place, or none
/// where one was mounted, is another directory. The file system's own id counts, where it has one: it stays the same
/// when a disk is found under another number.
///
/// # Errors
/// When the directory cannot be examined.
pub fn place(directory: &Path) -> Result<String, FileError> {
    let handle = File::open(directory).map_err(FileError::new("open", directory))?;
    let found = handle.metadata().map_err(FileError::new("examine", directory))?;
    let system = fstatvfs(&handle)
        .map_err(|errno| FileError::new("examine the file system of", directory)(errno.into()))?;
    Ok(format!("{:x}:{}", system.filesystem_id(), found.ino()))
}

/// The packages in `directory`, each with the fingerprint of itself and its sidecars.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> Result<BTreeMap<String, Fingerprint>, FileError> {
    look(directory).map(|(_place, listing)| listing)
}

/// Does [`list`], and returns the [`place`] of the directory too.
///
/// # Errors
/// When the directory cannot be read, or is replaced by another one meanwhile.
pub fn look(directory: &Path) -> Result<(String, BTreeMap<String, Fingerprint>), FileError> {
    let mut listing = BTreeMap::new();
    let seen_in = place(directory)?;
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
        listing.insert(name, Fingerprint::of(&metadata).seen_in(&seen_in));
    }
    // A volume may have been mounted or unmounted since the first file was listed.
    if place(directory)? != seen_in {
        let replaced = io::Error::other("it was replaced while it was listed");
        return Err(FileError::new("list", directory)(replaced));
    }
    Ok((seen_in, listing))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    const TIMEOUT: Duration = Duration::from_secs(600);
    const NAME: &str = "a.model.tar.zst";

    fn room() -> Capacity {
        Capacity::default()
    }

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
    fn a_completed_file_is_read_at_once() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let completed = || BTreeSet::from([NAME.to_owned()]);
        ledger.complete(completed());
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), start), ready("1"));
        ledger.judge(NAME, &Fingerprint("1".to_owned()), Verdict::Accepted, start);
        // The same for another content; it says nothing of the next one, or of another file.
        ledger.complete(completed());
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), start), ready("2"));
        let next = ledger.observe(listing("3"), TIMEOUT, &room(), start).next;
        assert_eq!(next, Some(start + QUIET));
        ledger.complete(BTreeSet::from(["other".to_owned()]));
        assert_eq!(ledger.observe(listing("4"), TIMEOUT, &room(), start).ready, []);
    }

    #[test]
    fn a_file_is_read_once_it_is_quiet_and_not_again() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let growing = ledger.observe(listing("1"), TIMEOUT, &room(), start);
        assert_eq!(growing, Round { next: Some(start + QUIET), ..Round::default() });
        let grown = ledger.observe(listing("2"), TIMEOUT, &room(), start + QUIET);
        assert_eq!(grown, Round { next: Some(start + 2 * QUIET), ..Round::default() });
        let now = start + 2 * QUIET;
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), now), ready("2"));
        ledger.judge(NAME, &Fingerprint("2".to_owned()), Verdict::Accepted, now);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), now + TIMEOUT), Round::default());
        let replaced = ledger.observe(listing("3"), TIMEOUT, &room(), now + TIMEOUT);
        assert!(replaced.ready.is_empty() && replaced.next.is_some());
        ledger.remember(NAME, Fingerprint("3".to_owned()), now);
        let gone = ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now);
        let is_gone = Round { gone: vec![NAME.to_owned()], ..Round::default() };
        assert_eq!(gone, is_gone);
        // Overwritten first, and removed before that came to anything.
        ledger.remember(NAME, Fingerprint("3".to_owned()), now);
        ledger.observe(listing("4"), TIMEOUT, &room(), now);
        assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now), is_gone);
    }

    #[test]
    fn a_file_that_is_forgotten_is_read_again_and_still_missed() {
        let start = Instant::now();
        let now = start + QUIET;
        let mut ledger = Ledger::default();
        ledger.remember(NAME, Fingerprint("1".to_owned()), start);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), Round::default());
        ledger.forget(NAME);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
        assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now).gone, [NAME]);
    }

    #[test]
    fn a_fingerprint_says_where_it_was_taken_and_is_compared_without_that() {
        let [one, two] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        fs::write(one.path().join(NAME), "package").unwrap();
        let fingerprint = list(one.path()).unwrap().remove(NAME).unwrap();
        let [here, there] = [&one, &two].map(|directory| place(directory.path()).unwrap());
        assert_ne!(here, there);
        assert_eq!(fingerprint.place(), Some(here.as_str()));
        let (files, _place) = fingerprint.parts();
        // As an older version has written it.
        let old = Fingerprint(files.to_owned());
        assert_eq!((&old, old.place()), (&fingerprint, None));
        let elsewhere = old.clone().seen_in(&there);
        assert_eq!(elsewhere, fingerprint);
        assert_ne!(Fingerprint("1:2".to_owned()), fingerprint);
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
        ledger.observe(listing("1"), TIMEOUT, &room(), start);
        let half = Verdict::Incomplete("it ends early".to_owned());
        ledger.judge(NAME, &Fingerprint("1".to_owned()), half.clone(), start + QUIET);
        let waiting = ledger.observe(listing("1"), TIMEOUT, &room(), start + QUIET);
        assert_eq!(waiting, Round { next: Some(start + TIMEOUT), ..Round::default() });
        // More of it comes: the clock starts again.
        ledger.observe(listing("2"), TIMEOUT, &room(), start + TIMEOUT);
        assert_eq!(
            ledger.observe(listing("2"), TIMEOUT, &room(), start + TIMEOUT + QUIET),
            ready("2")
        );
        ledger.judge(NAME, &Fingerprint("2".to_owned()), half, start + TIMEOUT + QUIET);
        let given_up = ledger.observe(listing("2"), TIMEOUT, &room(), start + 2 * TIMEOUT);
        assert!(given_up.refused[0].2.starts_with("it ends early"), "{given_up:?}");
    }

    #[test]
    fn a_wrong_file_is_refused_only_when_it_has_stopped_changing() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, &room(), start);
        let wrong = Verdict::Refused("a bad digest".to_owned());
        ledger.judge(NAME, &Fingerprint("1".to_owned()), wrong, start + QUIET);
        let early = ledger.observe(listing("1"), TIMEOUT, &room(), start + QUIET);
        assert_eq!(early, Round { next: Some(start + CONFIRM), ..Round::default() });
        let late = ledger.observe(listing("1"), TIMEOUT, &room(), start + CONFIRM);
        let fingerprint = Fingerprint("1".to_owned());
        assert_eq!(late.refused, [(NAME.to_owned(), fingerprint, "a bad digest".to_owned())]);
        ledger.ignore(NAME);
        assert_eq!(
            ledger.observe(listing("1"), TIMEOUT, &room(), start + TIMEOUT),
            Round::default()
        );
    }

    #[test]
    fn a_name_is_one_component_of_a_path_that_ends_as_a_package_does() {
        let fits = format!("{}{SUFFIX}", "a".repeat(MAX_NAME - SUFFIX.len()));
        for good in [NAME, "é x.model.tar.zst", &fits] {
            assert!(is_package_name(good), "{good}");
        }
        let long = format!("a{fits}");
        for bad in [
            "",
            "a",
            "/etc/a.model.tar.zst",
            "../a.model.tar.zst",
            "a/b.model.tar.zst",
            ".a.model.tar.zst",
            SUFFIX,
            "a\n.model.tar.zst",
            "a\u{1b}[2J.model.tar.zst",
            "a\u{9b}2J.model.tar.zst",
            "a\u{202e}b.model.tar.zst",
            "a.model.tar.zst/",
            "a.model.tar.zst\0",
            &long,
        ] {
            assert!(!is_package_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_verdict_on_an_older_content_does_not_count() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, &room(), start);
        ledger.observe(listing("2"), TIMEOUT, &room(), start);
        ledger.judge(NAME, &Fingerprint("1".to_owned()), Verdict::Accepted, start);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), start + QUIET), ready("2"));
    }

    fn failed(lack: Lack) -> Verdict {
        Verdict::Failed { reason: "why".to_owned(), lack }
    }

    #[test]
    fn a_failure_is_tried_again_after_a_time_that_doubles_up_to_a_day() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, &room(), start);
        let mut now = start + QUIET;
        let mut attempts = Vec::new();
        while now < start + 7 * LAST_RETRY {
            assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
            attempts.push(now.duration_since(start).as_secs());
            let fingerprint = Fingerprint("1".to_owned());
            assert!(ledger.judge(NAME, &fingerprint, failed(Lack::Other), now));
            let round = ledger.observe(listing("1"), TIMEOUT, &room(), now);
            assert_eq!(round.ready, []);
            now = round.next.unwrap();
            let early = now - Duration::from_millis(1);
            assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), early).ready, []);
        }
        let minutes = [0, 10, 30, 70, 150, 310, 630, 1270];
        assert_eq!(attempts[..8], minutes.map(|minutes| 60 * minutes));
        assert_eq!(attempts[9] - attempts[8], LAST_RETRY.as_secs());
        assert_eq!(attempts.len(), 14);
        // Another content begins anew.
        ledger.observe(listing("2"), TIMEOUT, &room(), now);
        assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), now + QUIET), ready("2"));
        ledger.judge(NAME, &Fingerprint("2".to_owned()), failed(Lack::Other), now);
        let next = ledger.observe(listing("2"), TIMEOUT, &room(), now).next;
        assert_eq!(next, Some(now + FIRST_RETRY));
    }

    #[test]
    fn unusable_keys_are_tried_again_every_ten_minutes() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(listing("1"), TIMEOUT, &room(), start);
        for attempt in 1..9 {
            let now = start + attempt * FIRST_RETRY;
            assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
            ledger.judge(NAME, &Fingerprint("1".to_owned()), failed(Lack::Keys), now);
        }
    }

    #[test]
    fn a_failure_is_tried_again_at_once_when_more_can_be_taken_and_told_once() {
        let use_of = |models| StoreUse {
            quota: crate::package::Quota {
                max_size: Bytes::mib(1),
                max_models: 1,
                cleanup: crate::package::Cleanup::Manual,
            },
            models,
            size: Bytes(0),
        };
        let full = Capacity {
            store: Some(use_of(1)),
            space: Some(FreeSpace { free: Bytes::mib(1), ..FreeSpace::default() }),
            memory: "small".to_owned(),
            kept: Vec::new(),
        };
        let no_space = NoSpace::for_test(Bytes::mib(2));
        let with_store = Capacity { store: Some(use_of(0)), ..full.clone() };
        let with_other_kept = Capacity { kept: vec!["m".to_owned()], ..full.clone() };
        let with_memory = Capacity { memory: "large".to_owned(), ..full.clone() };
        let space = |mib| Some(FreeSpace { free: Bytes::mib(mib), ..FreeSpace::default() });
        let with_space = Capacity { space: space(2), ..full.clone() };
        let with_some_space = Capacity { space: space(1), ..full.clone() };
        let cases = [
            (Lack::Quota, vec![&with_store, &with_other_kept]),
            (Lack::Memory, vec![&with_memory]),
            (Lack::Space(no_space), vec![&with_space]),
            (Lack::Other, vec![]),
            (Lack::Keys, vec![]),
        ];
        let all = [&with_store, &with_other_kept, &with_memory, &with_space, &with_some_space];
        for (lack, helps) in cases {
            for capacity in all {
                let start = Instant::now();
                let mut ledger = Ledger::default();
                let fingerprint = Fingerprint("1".to_owned());
                ledger.observe(listing("1"), TIMEOUT, &full, start);
                let now = start + QUIET;
                assert_eq!(ledger.observe(listing("1"), TIMEOUT, &full, now), ready("1"));
                assert!(ledger.judge(NAME, &fingerprint, failed(lack.clone()), now));
                let now = now + QUIET;
                assert_eq!(ledger.observe(listing("1"), TIMEOUT, &full, now).ready, []);
                let ready_now = ledger.observe(listing("1"), TIMEOUT, capacity, now).ready;
                let helps = helps.contains(&capacity);
                assert_eq!(ready_now.len(), usize::from(helps), "{lack:?} {capacity:?}");
                if !helps {
                    continue;
                }
                // The same again is no news, another reason is.
                assert!(!ledger.judge(NAME, &fingerprint, failed(lack.clone()), now));
                let next = ledger.observe(listing("1"), TIMEOUT, &full, now).next.unwrap();
                if !matches!(lack, Lack::Space(_)) {
                    // Back to what there was is a change, too.
                    assert_eq!(next, now + QUIET);
                    ledger.observe(listing("1"), TIMEOUT, &full, now + QUIET);
                    assert!(ledger.judge(NAME, &fingerprint, failed(Lack::Other), now));
                } else {
                    assert_eq!(next, now + 2 * FIRST_RETRY);
                    // By its time, it is told again.
                    ledger.observe(listing("1"), TIMEOUT, &full, next);
                    assert!(ledger.judge(NAME, &fingerprint, failed(lack.clone()), next));
                }
            }
        }
    }

    #[test]
    fn a_fingerprint_knows_its_files_when_they_are_renamed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in [NAME, "a.model.tar.zst.sha256", "other"] {
            fs::write(path(name), "content").unwrap();
        }
        fs::create_dir(path("b.model.tar.zst")).unwrap();
        let before = list(root.path()).unwrap();
        fs::rename(path(NAME), path("renamed")).unwrap();
        let metadata = |name: &str| fs::symlink_metadata(path(name)).unwrap();
        assert!(before[NAME].is_of(&metadata("renamed")));
        assert!(before[NAME].is_of(&metadata("a.model.tar.zst.sha256")));
        assert!(!before[NAME].is_of(&metadata("other")));
        assert!(!before[NAME].is_of(&metadata("b.model.tar.zst")));
        // What is in a directory does not change it.
        fs::write(path("b.model.tar.zst/file"), "").unwrap();
        let after = list(root.path()).unwrap();
        assert_eq!(before["b.model.tar.zst"], after["b.model.tar.zst"]);
        assert!(after["b.model.tar.zst"].is_of(&metadata("b.model.tar.zst")));
    }
}
