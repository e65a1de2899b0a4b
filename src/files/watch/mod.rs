//! Watches directories and sends a tick when their files may have changed.
//!
//! A tick means "read again", not "changed": the receiver reads the files and compares the result.
//! Therefore the contents of an event do not matter, only its arrival. Some changes give no event:
//! the kernel's queue is full, inotify has no free watches, or the target of a link changed. The
//! next rescan detects them.
//!
//! Directories are watched instead of files, because editors and mounts replace files. For a
//! directory that does not exist yet, its nearest existing parent is watched.
//!
//! A reader of whole files needs a tick when a write is complete and not during the write: see
//! [`WriteFilter`]. The reader of the drop directory also needs the names of completed files: see
//! [`CompletedFiles`].
//!
//! Invariant: each tick is sent after the watches were renewed. A file that changes after the
//! reader has read it therefore causes another tick.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::telemetry::log::Message;

/// Time without events before a tick: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(250);

/// Longest delay of a tick while events do not stop.
const LATEST: Duration = Duration::from_secs(2);

/// Interval of ticks without events.
const RESCAN: Duration = Duration::from_secs(60);

/// Number of completed files that are remembered. The reader treats any further files like files
/// that still grow.
const MOST_COMPLETED: usize = 1024;

/// Number of attempts to watch directories that change at the same time. After that, the next
/// rescan detects the changes.
const ATTEMPTS: usize = 3;

/// The writes that cause a tick. The creation, removal or renaming of a file and a change of its
/// owner or mode always cause one.
#[derive(Clone, Debug)]
pub enum WriteFilter {
    /// Every write, for a reader that observes how files grow. A completed file causes a tick at
    /// once.
    Each(CompletedFiles),
    /// The last write: the file was closed. During a write, a reader would take an incomplete file
    /// for a complete one, or an emptied file for one without settings. A file that a program
    /// writes and never closes is found by the next rescan. A new file causes a tick when it
    /// appears, because a new link is complete at that time. If writing a new file takes longer
    /// than [`QUIET`], its reader may see an incomplete file; it gets another tick when the file is
    /// closed.
    Finished,
}

/// Names of files that were closed after writing, or renamed, and not written since. Clones share
/// the names.
#[derive(Clone, Debug, Default)]
pub struct CompletedFiles(Arc<Mutex<CompletedNames>>);

#[derive(Debug, Default)]
struct CompletedNames {
    names: BTreeSet<String>,
    /// Whether a name was added since the last tick.
    is_news: bool,
}

impl CompletedFiles {
    /// Returns all names and removes them.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().names)
    }

    /// Returns whether a name was added since the last call.
    fn take_news(&self) -> bool {
        std::mem::take(&mut self.lock().is_news)
    }

    fn on_event(&self, event: &Event) {
        let name = event.paths.last().and_then(|path| path.file_name()?.to_str());
        let Some(name) = name else { return };
        let CompletedNames { names, is_news } = &mut *self.lock();
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
                if names.len() < MOST_COMPLETED =>
            {
                *is_news |= names.insert(name.to_owned());
            }
            EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Name(RenameMode::From)) => {
                names.remove(name);
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, CompletedNames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a tick when a file in the directories `wanted` may have changed. Returns when `cancel` is
/// cancelled or the receiver of the ticks is dropped.
///
/// The first tick is sent as soon as the directories are watched, and covers all changes since the
/// caller last read them. `ticks` should have a capacity of one: a tick is dropped while another
/// one waits, because one reading covers both changes. If the directories cannot be watched, the
/// failure is logged once and a tick is sent every minute.
pub async fn watch(
    wanted: Vec<PathBuf>,
    writes: WriteFilter,
    ticks: mpsc::Sender<()>,
    cancel: CancellationToken,
) {
    let completed = match &writes {
        WriteFilter::Each(completed) => completed.clone(),
        WriteFilter::Finished => CompletedFiles::default(),
    };
    let renew = move |wanted: &_, events: &_| DirectoryWatches::new(wanted, &writes, events);
    let watching = run(wanted.into(), completed, ticks, renew);
    tokio::select! {
        () = cancel.cancelled() => {}
        () = watching => {}
    }
}

/// Runs the loop of [`watch`]. `renew` makes the watches; tests pass one that fails.
async fn run<R>(
    wanted: Arc<[PathBuf]>,
    completed: CompletedFiles,
    ticks: mpsc::Sender<()>,
    renew: R,
) where
    R: Fn(&Arc<[PathBuf]>, &Arc<Notify>) -> DirectoryWatches + Clone + Send + 'static,
{
    let directories = Vec::from_iter(wanted.iter().map(|path| path.display().to_string()));
    let events = Arc::new(Notify::new());
    let mut watches: Option<DirectoryWatches> = None;
    let mut warned = false;
    loop {
        let old = watches.take();
        let (wanted, events_of_new, renew) =
            (Arc::clone(&wanted), Arc::clone(&events), renew.clone());
        let renewed = tokio::task::spawn_blocking(move || match old {
            Some(old) if old.is_current(&wanted) => old,
            _ => renew(&wanted, &events_of_new),
        });
        let renewed = match renewed.await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "cannot watch files for changes any more"
                );
                return;
            }
        };
        if let (Some(failure), false) = (&renewed.failure, warned) {
            tracing::warn!(
                name: Message::WatchFailed.name(),
                directory = %directories.join(", "), error = %failure,
                "cannot watch a directory for changes; polling it every {} s",
                RESCAN.as_secs()
            );
            warned = true;
        }
        watches = Some(renewed);
        if let Err(mpsc::error::TrySendError::Closed(())) = ticks.try_send(()) {
            return;
        }
        if timeout_at(Instant::now() + RESCAN, events.notified()).await.is_ok() {
            settle(&events, &completed).await;
            // Always renew the watches after an event instead of comparing directories: a directory
            // that was removed and created again may have the same inode number as before.
            watches = None;
        }
    }
}

/// Waits until no event arrived for [`QUIET`] or a file is completed, but at most for [`LATEST`].
async fn settle(events: &Notify, completed: &CompletedFiles) {
    let latest = Instant::now() + LATEST;
    while Instant::now() < latest && !completed.take_news() {
        let quiet = (Instant::now() + QUIET).min(latest);
        if timeout_at(quiet, events.notified()).await.is_err() {
            return;
        }
    }
}

/// An existing directory. Device and inode distinguish it from another directory with the same
/// path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Directory {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Watches on a set of directories. Dropping the value ends them.
struct DirectoryWatches {
    directories: Vec<Directory>,
    failure: Option<notify::Error>,
    _watcher: Option<RecommendedWatcher>,
}

impl DirectoryWatches {
    /// Watches the directories that exist now, and repeats this if they changed meanwhile: a
    /// directory that was created during the setup would not be watched.
    fn new(wanted: &Arc<[PathBuf]>, writes: &WriteFilter, events: &Arc<Notify>) -> Self {
        let mut watches = Self::once(wanted, writes, events);
        for _ in 1..ATTEMPTS {
            if watches.failure.is_some() || watches.is_current(wanted) {
                break;
            }
            watches = Self::once(wanted, writes, events);
        }
        watches
    }

    fn once(wanted: &Arc<[PathBuf]>, writes: &WriteFilter, events: &Arc<Notify>) -> Self {
        let directories = existing(wanted);
        let (wanted, events, writes) = (Arc::clone(wanted), Arc::clone(events), writes.clone());
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) if !matters(&event, &wanted, &writes) => {}
            // An error, such as an overflow of the queue, is treated like a change.
            heard => {
                if let (Ok(event), WriteFilter::Each(completed)) = (heard, &writes) {
                    completed.on_event(&event);
                }
                events.notify_one();
            }
        };
        let mut watcher = match notify::recommended_watcher(handler) {
            Ok(watcher) => watcher,
            Err(error) => return Self { directories, failure: Some(error), _watcher: None },
        };
        let mut failure = None;
        for directory in &directories {
            if let Err(error) = watcher.watch(&directory.path, RecursiveMode::NonRecursive) {
                failure = Some(error);
            }
        }
        Self { directories, failure, _watcher: Some(watcher) }
    }

    /// Returns whether all watches were made and are on the directories that exist now.
    fn is_current(&self, wanted: &[PathBuf]) -> bool {
        self.failure.is_none() && self.directories == existing(wanted)
    }
}

/// Returns the directories `wanted`. A directory that does not exist is replaced by its nearest
/// existing parent.
fn existing(wanted: &[PathBuf]) -> Vec<Directory> {
    let mut found: Vec<_> =
        wanted.iter().filter_map(|wanted| wanted.ancestors().find_map(directory)).collect();
    found.sort();
    found.dedup();
    found
}

fn directory(path: &Path) -> Option<Directory> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
    Some(Directory { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
}

/// Returns whether `event` may have changed a file of the directories `wanted`.
///
/// Loading opens and reads files, which causes events, too. They must not lead to another load. The
/// name of the file is ignored, because a mount swaps a link to a directory beside the file. Events
/// in a parent that is watched only until a wanted directory appears are ignored, unless they
/// concern the path to it.
fn matters(event: &Event, wanted: &[PathBuf], writes: &WriteFilter) -> bool {
    if let (WriteFilter::Finished, EventKind::Modify(ModifyKind::Data(_))) = (writes, event.kind) {
        return false;
    }
    if let EventKind::Access(access) = event.kind
        && access != AccessKind::Close(AccessMode::Write)
    {
        return false;
    }
    let related = |path: &PathBuf| {
        wanted.iter().any(|wanted| wanted.starts_with(path) || path.starts_with(wanted))
    };
    event.paths.is_empty() || event.paths.iter().any(related)
}

#[cfg(test)]
mod tests;
