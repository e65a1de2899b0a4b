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
mod tests {
    use std::os::unix::fs::symlink;

    use notify::event::{CreateKind, DataChange, Flag, MetadataKind};
    use tempfile::TempDir;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::config::{ConfigSource, directories, load};

    /// Upper bound of a wait in these tests. It is smaller than [`RESCAN`], so that a rescan cannot
    /// replace a missing event.
    const BOUND: Duration = Duration::from_secs(20);

    struct Watching {
        source: ConfigSource,
        ticks: mpsc::Receiver<()>,
        cancel: CancellationToken,
        tasks: JoinSet<()>,
    }

    impl Watching {
        async fn start(source: ConfigSource) -> Self {
            let (sender, mut ticks) = mpsc::channel(1);
            let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
            let directories = directories(&source);
            tasks.spawn(watch(directories, WriteFilter::Finished, sender, cancel.clone()));
            timeout(BOUND, ticks.recv()).await.unwrap().unwrap();
            Self { source, ticks, cancel, tasks }
        }

        /// Waits for a tick after which the configuration has `models`. Loads it only after ticks.
        async fn until(&mut self, models: usize, step: &str) {
            let seen = async {
                loop {
                    self.ticks.recv().await.expect("the watch goes on");
                    let loaded = load(&self.source);
                    if loaded.is_ok_and(|l| l.settings.memory.model_cache.max_models == models) {
                        return;
                    }
                }
            };
            timeout(BOUND, seen).await.expect(step);
        }
    }

    fn yaml(models: usize) -> String {
        format!("memory: {{ model_cache: {{ max_models: {models} }} }}\n")
    }

    fn write(path: &Path, models: usize) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, yaml(models)).unwrap();
    }

    /// A way in which programs change a file. The `usize` is the value that the file must have
    /// afterwards.
    type Edit = fn(&Path, usize);

    const EDITS: [(&str, Edit); 6] = [
        ("truncate and write", write),
        ("write new and rename", |file, models| {
            let new = file.with_extension("new");
            write(&new, models);
            fs::rename(new, file).unwrap();
        }),
        ("keep a backup and write new", |file, models| {
            fs::rename(file, file.with_extension("yaml~")).unwrap();
            write(file, models);
        }),
        ("sed -i", |file, models| {
            let new = tempfile::NamedTempFile::new_in(file.parent().unwrap()).unwrap();
            fs::write(new.path(), yaml(models)).unwrap();
            new.persist(file).unwrap();
        }),
        ("remove and make again", |file, models| {
            fs::remove_file(file).unwrap();
            write(file, models);
        }),
        ("swap a link", |file, models| {
            let (target, link) =
                (file.with_extension(models.to_string()), file.with_extension("l"));
            write(&target, models);
            symlink(target, &link).unwrap();
            fs::rename(link, file).unwrap();
        }),
    ];

    #[tokio::test]
    async fn every_kind_of_edit_is_noticed() {
        for (name, edit) in EDITS {
            let root = TempDir::new().unwrap();
            let file = root.path().join("caxton.yaml");
            write(&file, 1);
            let mut watching = Watching::start(ConfigSource::File(file.clone())).await;
            for models in 2..5 {
                edit(&file, models);
                watching.until(models, name).await;
            }
        }
    }

    #[tokio::test]
    async fn data_link_swap_is_noticed() {
        let root = TempDir::new().unwrap();
        let conf = root.path().join("etc/caxton/conf.d");
        let swap = |models: usize| {
            write(&conf.join(format!("..{models}/10-site.yaml")), models);
            symlink(format!("..{models}"), conf.join("..data_tmp")).unwrap();
            fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
        };
        swap(1);
        symlink("..data/10-site.yaml", conf.join("10-site.yaml")).unwrap();
        let mut watching = Watching::start(ConfigSource::Layers { root: root.path().into() }).await;
        for models in 2..5 {
            swap(models);
            watching.until(models, "swap of ..data").await;
        }
    }

    #[tokio::test]
    async fn recreated_directories_are_watched() {
        let root = TempDir::new().unwrap();
        let mut watching = Watching::start(ConfigSource::Layers { root: root.path().into() }).await;
        let default = 10;
        let etc = root.path().join("etc/caxton");
        for round in ["made", "made again"] {
            for models in 20..23 {
                write(&etc.join("conf.d/10-site.yaml"), models);
                watching.until(models, &format!("drop-in {models}, directory {round}")).await;
            }
            for models in 30..33 {
                write(&etc.join("conf.d/10-site.yaml"), models);
                watching.until(models, &format!("drop-in {models}, directory {round}")).await;
            }
            write(&root.path().join("usr/lib/caxton/conf.d/90-vendor.yaml"), 40);
            watching.until(40, &format!("a lower layer, directory {round}")).await;
            fs::remove_dir_all(root.path().join("usr")).unwrap();
            watching.until(32, &format!("a lower layer removed, directory {round}")).await;
            fs::rename(&etc, root.path().join("etc/old")).unwrap();
            watching.until(default, &format!("renamed away, directory {round}")).await;
            fs::remove_dir_all(root.path().join("etc/old")).unwrap();
        }
    }

    #[tokio::test]
    async fn cancelled_watch_ends() {
        let root = TempDir::new().unwrap();
        let mut watching = Watching::start(ConfigSource::Layers { root: root.path().into() }).await;
        watching.cancel.cancel();
        timeout(BOUND, watching.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn watch_ends_when_receiver_is_closed() {
        let root = TempDir::new().unwrap();
        let file = root.path().join("caxton.yaml");
        let mut watching = Watching::start(ConfigSource::File(file.clone())).await;
        watching.ticks.close();
        write(&file, 1);
        timeout(BOUND, watching.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn rescans_notify_without_inotify() {
        let exhausted = |_: &Arc<[PathBuf]>, _: &Arc<Notify>| DirectoryWatches {
            directories: Vec::new(),
            failure: Some(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
            _watcher: None,
        };
        let (sender, mut ticks) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let completed = CompletedFiles::default();
        tasks.spawn(run([PathBuf::from("/nowhere")].into(), completed, sender, exhausted));
        ticks.recv().await.unwrap();
        for _ in 0..3 {
            let before = Instant::now();
            ticks.recv().await.unwrap();
            let waited = before.elapsed();
            assert!((RESCAN..RESCAN + QUIET).contains(&waited), "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn continuous_events_delay_notification_by_two_seconds() {
        let events = Arc::new(Notify::new());
        let (busy, mut tasks) = (Arc::clone(&events), JoinSet::new());
        tasks.spawn(async move {
            let mut every = tokio::time::interval(QUIET / 2);
            loop {
                every.tick().await;
                busy.notify_one();
            }
        });
        let before = Instant::now();
        settle(&events, &CompletedFiles::default()).await;
        assert!((LATEST..LATEST + QUIET).contains(&before.elapsed()), "{:?}", before.elapsed());
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        let before = Instant::now();
        settle(&Notify::new(), &CompletedFiles::default()).await;
        assert!((QUIET..QUIET * 2).contains(&before.elapsed()), "{:?}", before.elapsed());
    }

    #[test]
    fn reads_and_unrelated_paths_are_ignored() {
        let wanted = [PathBuf::from("/etc/caxton"), PathBuf::from("/etc/caxton/conf.d")];
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let created = EventKind::Create(CreateKind::Any);
        let chmod = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let cases = [
            (opened, "/etc/caxton/caxton.yaml", false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), "/etc/caxton", false),
            (written, "/etc/caxton/caxton.yaml", true),
            (chmod, "/etc/caxton/caxton.yaml", true),
            (created, "/etc/caxton/conf.d/..data", true),
            (created, "/etc/caxton", true),
            (created, "/etc/resolv.conf", false),
            (created, "/etc/caxton-2", false),
        ];
        let each = WriteFilter::Each(CompletedFiles::default());
        for (kind, path, expected) in cases {
            let event = Event::new(kind).add_path(path.into());
            for writes in [&each, &WriteFilter::Finished] {
                assert_eq!(matters(&event, &wanted, writes), expected, "{event:?}");
            }
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(matters(&overflow, &wanted, &WriteFilter::Finished));
        let growing = Event::new(EventKind::Modify(ModifyKind::Data(DataChange::Any)))
            .add_path("/etc/caxton/caxton.yaml".into());
        assert!(matters(&growing, &wanted, &each));
        assert!(!matters(&growing, &wanted, &WriteFilter::Finished));
    }

    #[tokio::test]
    async fn completed_files_are_named_immediately() {
        let place = TempDir::new().unwrap();
        let (sender, mut ticks) = mpsc::channel(1);
        let (cancel, completed) = (CancellationToken::new(), CompletedFiles::default());
        let mut tasks = JoinSet::new();
        let writes = WriteFilter::Each(completed.clone());
        tasks.spawn(watch(vec![place.path().to_owned()], writes, sender, cancel.clone()));
        timeout(BOUND, ticks.recv()).await.unwrap().unwrap();
        let mut until = async |name: &str| {
            let named = async {
                while !completed.take().contains(name) {
                    ticks.recv().await.unwrap()
                }
            };
            timeout(BOUND, named).await.expect(name);
        };
        let (written, renamed) = (place.path().join("written"), place.path().join("renamed"));
        fs::write(&written, "content").unwrap();
        until("written").await;
        fs::rename(&written, &renamed).unwrap();
        until("renamed").await;

        // A file that is written again is no longer known to be complete.
        let of = |kind| Event::new(kind).add_path(renamed.clone());
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        completed.on_event(&of(closed));
        completed.on_event(&of(EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        assert_eq!(completed.take(), BTreeSet::new());
        for number in 0..2 * MOST_COMPLETED {
            completed.on_event(&Event::new(closed).add_path(place.path().join(number.to_string())));
        }
        assert_eq!(completed.take().len(), MOST_COMPLETED);
        cancel.cancel();
        tasks.join_all().await;
    }
}
