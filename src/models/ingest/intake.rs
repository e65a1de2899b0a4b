//! Report of the packages on their way: found, waited for, being read, failed or not accepted.
//!
//! The ingester publishes a report after each change. Readers never block it. The report is bounded,
//! because a drop directory may hold any number of files.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::Ingester;
use super::drop_directory::DropDirectory;
pub use super::drop_directory::{DirectoryReport, DirectoryState};
use super::install::InstallProgress;
use crate::package::drop_dir::{PendingFile, PendingState};
use crate::telemetry::events::{Event, Events};

/// Number of packages in a report.
pub const MAX_REPORTED: usize = 64;

/// Packages on their way, and the drop directories.
#[derive(Clone, Debug, Default)]
pub struct Intake {
    /// The packages, those that need an operator first.
    pub packages: Vec<IncomingPackage>,
    /// Number of further packages.
    pub omitted: usize,
    /// The drop directories in the order of their scans, and the bundled directory.
    pub directories: Vec<DirectoryReport>,
    /// Attempts since the start to install a package that had failed before.
    pub retries: u64,
}

/// A package on its way.
#[derive(Clone, Debug)]
pub struct IncomingPackage {
    /// Name of the file.
    pub file: String,
    /// Directory of the file.
    pub directory: PathBuf,
    /// State of the package.
    pub state: IntakeState,
    /// Size of the file in bytes, as far as it is known.
    pub bytes: Option<u64>,
    /// Reason of the state, for operators.
    pub reason: Option<String>,
    /// Instant of the next attempt, if nothing changes before.
    pub retry_at: Option<Instant>,
    /// Progress of the installation; `None` unless the package is being read.
    pub progress: Option<InstallProgress>,
}

/// State of a package on its way. States that need an operator come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IntakeState {
    /// The package is being read and verified, or its model is being tested.
    Reading,
    /// The package could not be installed now, and is retried.
    Failed,
    /// The package is wrong.
    Refused,
    /// The package ends early; its rest is waited for.
    Incomplete,
    /// The file was found and may still change.
    Settling,
    /// The configuration allows bundled packages only.
    KeptOut,
    /// The file is not a package.
    NotAPackage,
}

impl IncomingPackage {
    /// Names of all states.
    pub const STATE_NAMES: [&str; 8] = [
        "reading",
        "verifying",
        "failed",
        "refused",
        "incomplete",
        "settling",
        "kept_out",
        "not_a_package",
    ];

    /// Returns the name of the state for clients. The state of a package that is being read depends
    /// on the progress.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            IntakeState::Reading => match &self.progress {
                Some(progress) if progress.is_testing() => "verifying",
                _ => "reading",
            },
            IntakeState::Failed => "failed",
            IntakeState::Refused => "refused",
            IntakeState::Incomplete => "incomplete",
            IntakeState::Settling => "settling",
            IntakeState::KeptOut => "kept_out",
            IntakeState::NotAPackage => "not_a_package",
        }
    }
}

/// Packages of one directory.
#[derive(Clone, Debug)]
pub(super) struct IntakePart {
    directory: DirectoryReport,
    packages: Vec<IncomingPackage>,
    /// Number of all packages, also of those that are not in the list.
    count: usize,
}

impl IntakePart {
    /// Describes the `pending` files of a directory, of which there are `count`. `reading` is the
    /// file that is being installed.
    pub(super) fn new(
        directory: DirectoryReport,
        (pending, count): (Vec<PendingFile>, usize),
        reading: Option<(&str, &InstallProgress)>,
    ) -> Self {
        let mut packages = Vec::from_iter(pending.into_iter().map(|file| IncomingPackage {
            file: file.name,
            directory: directory.path.clone(),
            state: match file.state {
                PendingState::Settling => IntakeState::Settling,
                PendingState::Incomplete => IntakeState::Incomplete,
                PendingState::Failed => IntakeState::Failed,
                PendingState::Refused => IntakeState::Refused,
            },
            bytes: file.bytes,
            reason: file.reason,
            retry_at: file.retry_at,
            progress: None,
        }));
        if let Some((name, progress)) = reading {
            let (state, progress) = (IntakeState::Reading, Some(progress.clone()));
            let (reason, retry_at) = (None, None);
            match packages.iter_mut().find(|package| package.file == name) {
                Some(package) => {
                    *package = IncomingPackage {
                        state,
                        progress,
                        reason,
                        retry_at,
                        file: mem::take(&mut package.file),
                        directory: mem::take(&mut package.directory),
                        bytes: package.bytes,
                    };
                }
                None => packages.push(IncomingPackage {
                    file: name.to_owned(),
                    directory: directory.path.clone(),
                    state,
                    bytes: None,
                    reason,
                    retry_at,
                    progress,
                }),
            }
        }
        Self { directory, packages, count }
    }

    /// Adds files that the configuration keeps out, and files that are not packages.
    fn add_others(&mut self, directory: &DropDirectory) {
        let mut add = |file: &String, state, reason: &str| {
            self.packages.push(IncomingPackage {
                file: file.clone(),
                directory: directory.path.clone(),
                state,
                bytes: None,
                reason: Some(reason.to_owned()),
                retry_at: None,
                progress: None,
            });
        };
        for file in directory.excluded.iter().take(MAX_REPORTED) {
            add(file, IntakeState::KeptOut, "memory.model_cache.bundled_only is true");
        }
        for (file, kind) in &directory.others.listed {
            add(file, IntakeState::NotAPackage, kind.advice());
        }
        self.count += directory.excluded.len() + directory.others.count;
    }
}

/// Publisher of the report, and of the events of packages on their way.
#[derive(Debug)]
pub(super) struct IntakePublisher {
    sender: watch::Sender<Arc<Intake>>,
    events: Events,
    /// Parts by directory, in the order of [`Intake::directories`].
    parts: BTreeMap<usize, IntakePart>,
    /// State and reason of each reported package in its last event.
    announced: BTreeMap<(usize, String), (IntakeState, Option<String>)>,
    retries: u64,
}

impl IntakePublisher {
    pub(super) fn new(events: Events) -> Self {
        Self {
            sender: watch::Sender::default(),
            events,
            parts: BTreeMap::new(),
            announced: BTreeMap::new(),
            retries: 0,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Intake>> {
        self.sender.subscribe()
    }

    /// Counts an attempt to install a package that had failed before.
    pub(super) fn count_retry(&mut self) {
        self.retries += 1;
    }

    /// Publishes the packages of the directory with this number, and the events of changes.
    pub(super) fn update(&mut self, number: usize, part: IntakePart) {
        self.announce(number, &part);
        self.parts.insert(number, part);
        let parts = || self.parts.values();
        let mut packages = Vec::from_iter(parts().flat_map(|part| &part.packages));
        packages.sort_by_key(|package| package.state);
        packages.truncate(MAX_REPORTED);
        let count = parts().map(|part| part.count.max(part.packages.len())).sum::<usize>();
        self.sender.send_replace(Arc::new(Intake {
            omitted: count - packages.len(),
            packages: packages.into_iter().cloned().collect(),
            directories: parts().map(|part| part.directory.clone()).collect(),
            retries: self.retries,
        }));
    }

    fn announce(&mut self, number: usize, part: &IntakePart) {
        let packages = || part.packages.iter().take(MAX_REPORTED);
        let is_there = |file: &String| packages().any(|package| package.file == *file);
        self.announced.retain(|(of, file), _| *of != number || is_there(file));
        for package in packages() {
            // A retry that fails again is an event, and the growth of a copy is not.
            let reason = package.reason.clone().filter(|_| package.state == IntakeState::Failed);
            let now = (package.state, reason);
            let place = (number, package.file.clone());
            let is_news = match self.announced.get(&place) {
                None => true,
                Some(before) => {
                    *before != now
                        && !matches!(package.state, IntakeState::Reading | IntakeState::Settling)
                }
            };
            if !is_news {
                continue;
            }
            self.announced.insert(place, now);
            let file = package.file.clone();
            match package.state {
                IntakeState::Failed => self.events.publish(Event::PackageFailed {
                    file,
                    reason: package.reason.clone().unwrap_or_default(),
                    retry_in: package
                        .retry_at
                        .map(|at| at.saturating_duration_since(Instant::now())),
                }),
                // The rejection itself is an event.
                IntakeState::Refused => {}
                _ => self.events.publish(Event::PackageWaiting {
                    file,
                    state: package.state_name(),
                    reason: package.reason.clone(),
                }),
            }
        }
    }
}

impl Ingester {
    /// Publishes the state of the files of `directory`. `reading` is the file that is being
    /// installed.
    pub(super) fn report_intake(
        &mut self,
        directory: &DropDirectory,
        reading: Option<(&str, &InstallProgress)>,
    ) {
        let pending = directory.scanner.pending(MAX_REPORTED);
        let mut part = IntakePart::new(directory.report(), pending, reading);
        part.add_others(directory);
        self.intake.update(directory.number, part);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::telemetry::events::EventItem;

    fn pending(name: &str, state: PendingState, reason: Option<&str>) -> PendingFile {
        let reason = reason.map(str::to_owned);
        PendingFile { name: name.to_owned(), state, bytes: Some(7), reason, retry_at: None }
    }

    fn part(path: &str, files: Vec<PendingFile>) -> IntakePart {
        let count = files.len();
        let directory = DirectoryReport { path: path.into(), state: DirectoryState::Present };
        IntakePart::new(directory, (files, count), None)
    }

    /// Returns type, file and state of each event since the last call.
    fn news(events: &Events, after: &mut u64) -> Vec<(&'static str, String, &'static str)> {
        let mut listener = events.subscribe(Some(*after));
        let mut found = Vec::new();
        while let Some(EventItem::Record(record)) = listener.next_from_history() {
            *after = record.id;
            found.push(match record.event.clone() {
                Event::PackageWaiting { file, state, .. } => ("waiting", file, state),
                Event::PackageFailed { file, .. } => ("failed", file, ""),
                other => panic!("{other:?}"),
            });
        }
        found
    }

    #[test]
    fn events_are_changes_and_not_scans() {
        let (events, mut after) = (Events::new(SystemTime::now()), 0);
        let mut publisher = IntakePublisher::new(events.clone());
        let mut observe = |state, reason| {
            publisher.update(0, part("/drop", vec![pending("a", state, reason)]));
            news(&events, &mut after)
        };
        let waiting = |state| vec![("waiting", "a".to_owned(), state)];
        let failed = vec![("failed", "a".to_owned(), "")];
        assert_eq!(observe(PendingState::Settling, None), waiting("settling"));
        assert_eq!(observe(PendingState::Settling, None), []);
        assert_eq!(observe(PendingState::Incomplete, Some("half")), waiting("incomplete"));
        // A slow copy settles and is incomplete in turns.
        assert_eq!(observe(PendingState::Settling, None), []);
        assert_eq!(observe(PendingState::Incomplete, Some("three quarters")), []);
        assert_eq!(observe(PendingState::Failed, Some("full")), failed);
        assert_eq!(observe(PendingState::Failed, Some("full")), []);
        assert_eq!(observe(PendingState::Failed, Some("fuller")), failed);
        assert_eq!(observe(PendingState::Refused, Some("wrong")), []);
    }

    #[test]
    fn report_is_bounded_and_urgent_packages_come_first() {
        let mut publisher = IntakePublisher::new(Events::new(SystemTime::now()));
        let reader = publisher.subscribe();
        let settling = |number: u32| pending(&number.to_string(), PendingState::Settling, None);
        publisher.update(0, part("/drop", (0..100).map(settling).collect()));
        publisher.update(1, part("/stick", vec![pending("f", PendingState::Failed, Some("why"))]));
        let report = reader.borrow().clone();
        assert_eq!((report.packages.len(), report.omitted), (MAX_REPORTED, 101 - MAX_REPORTED));
        let first = &report.packages[0];
        assert_eq!((first.file.as_str(), first.state_name()), ("f", "failed"));
        assert_eq!(first.directory, PathBuf::from("/stick"));
        let paths = Vec::from_iter(report.directories.iter().map(|report| report.path.clone()));
        assert_eq!(paths, [PathBuf::from("/drop"), PathBuf::from("/stick")]);
        publisher.update(0, part("/drop", Vec::new()));
        assert_eq!((reader.borrow().packages.len(), reader.borrow().omitted), (1, 0));
    }

    #[test]
    fn package_that_is_read_replaces_its_pending_file() {
        let directory = DirectoryReport { path: "/drop".into(), state: DirectoryState::Present };
        let retry_at = Some(Instant::now() + Duration::from_secs(600));
        let failed = PendingFile { retry_at, ..pending("a", PendingState::Failed, Some("why")) };
        let progress = InstallProgress::default();
        for files in [vec![failed], Vec::new()] {
            let count = files.len();
            let reading = Some(("a", &progress));
            let part = IntakePart::new(directory.clone(), (files, count), reading);
            let package = &part.packages[0];
            assert_eq!((part.packages.len(), package.state_name()), (1, "reading"));
            assert_eq!((&package.reason, package.retry_at), (&None, None));
        }
    }
}
