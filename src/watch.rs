//! When to look at a directory again: the configuration's, the drop directory.
//!
//! Owns the watches and emits ticks; it neither reads nor parses. A tick says "look", not "changed":
//! whoever loads compares what came out. So no event has to be understood for the result to be right, only to arrive,
//! and when none arrives (a full queue, no inotify left, a link whose far end changed) the next rescan makes up for it.
//!
//! Directories are watched and not files, because editors and mounts replace files; parents of directories that do not
//! exist yet, because they may.
//!
//! A reader of whole files needs a tick when a file is finished, not during the write: [`Writes`]. The reader of the
//! drop directory also needs the names of completed files: [`Completed`].
//!
//! Invariant: a tick is sent after the watches were renewed, so nothing written after the tick's load goes unnoticed.

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

use crate::log::Message;

/// How long events must be quiet before a tick: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(250);

/// How long a tick may be held back by events that do not stop.
const LATEST: Duration = Duration::from_secs(2);

/// How often a tick comes without any event.
const RESCAN: Duration = Duration::from_secs(60);

/// How many completed files are remembered; the others wait like those that grow.
const MOST_COMPLETED: usize = 1024;

/// How often the directories may change while they are being watched before the rescan has to make up for it.
const ATTEMPTS: usize = 3;

/// Which writes to a file give a tick. A file that comes, goes or changes its name, owner or mode always gives one.
#[derive(Clone, Debug)]
pub enum Writes {
    /// Each: of what grows slowly, the growing is of interest. A tick for a completed file comes at once.
    Each(Completed),
    /// The last: when it is closed. What was begun and not ended would be read as if it were all, and an emptied file
    /// as one that says nothing. A file that somebody writes and never closes is seen with the next rescan. A new one
    /// gives a tick when it appears, since a link is then complete: should writing it take longer than [`QUIET`], it
    /// may be read half, and is read again when it is closed.
    Finished,
}

/// Names of files that were closed after they were written, or renamed, and not written since. Cheap to clone: all
/// clones share the names.
#[derive(Clone, Debug, Default)]
pub struct Completed(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    names: BTreeSet<String>,
    /// A name was added since the last tick.
    is_news: bool,
}

impl Completed {
    /// Takes all names.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().names)
    }

    /// Returns whether a name was added since this was called last.
    fn take_news(&self) -> bool {
        std::mem::take(&mut self.lock().is_news)
    }

    fn hear(&self, event: &Event) {
        let name = event.paths.last().and_then(|path| path.file_name()?.to_str());
        let Some(name) = name else { return };
        let Names { names, is_news } = &mut *self.lock();
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

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a tick when something in `wanted`, directories, may have changed, until cancelled or until nobody receives.
///
/// The first tick comes as soon as they are watched: it covers what changed since the caller's own look.
/// `ticks` should have a capacity of one: a tick that finds another one waiting is dropped, because one look sees
/// both changes. When the directories cannot be watched, that is logged once and ticks come every minute.
pub async fn watch(
    wanted: Vec<PathBuf>,
    writes: Writes,
    ticks: mpsc::Sender<()>,
    cancel: CancellationToken,
) {
    let completed = match &writes {
        Writes::Each(completed) => completed.clone(),
        Writes::Finished => Completed::default(),
    };
    let renew = move |wanted: &_, events: &_| Watches::new(wanted, &writes, events);
    let watching = run(wanted.into(), completed, ticks, renew);
    tokio::select! {
        () = cancel.cancelled() => {}
        () = watching => {}
    }
}

/// The loop of [`watch`]; `renew` makes the watches, so that a test can have it fail.
async fn run<R>(wanted: Arc<[PathBuf]>, completed: Completed, ticks: mpsc::Sender<()>, renew: R)
where
    R: Fn(&Arc<[PathBuf]>, &Arc<Notify>) -> Watches + Clone + Send + 'static,
{
    let directories = Vec::from_iter(wanted.iter().map(|path| path.display().to_string()));
    let events = Arc::new(Notify::new());
    let mut watches: Option<Watches> = None;
    let mut warned = false;
    loop {
        let old = watches.take();
        let (wanted, events_of_new, renew) =
            (Arc::clone(&wanted), Arc::clone(&events), renew.clone());
        let renewed = tokio::task::spawn_blocking(move || match old {
            Some(old) if old.hold(&wanted) => old,
            _ => renew(&wanted, &events_of_new),
        });
        let renewed = match renewed.await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "stopped looking for changes of files"
                );
                return;
            }
        };
        if let (Some(failure), false) = (&renewed.failure, warned) {
            tracing::warn!(
                name: Message::WatchFailed.name(),
                error = %failure,
                "cannot watch {}; looking for changes every {} s instead",
                directories.join(", "),
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
            // Not compared: a directory removed and made again may have the inode number it had before.
            watches = None;
        }
    }
}

/// Returns when events have been quiet for [`QUIET`] or a file is completed, but after [`LATEST`] in any case.
async fn settle(events: &Notify, completed: &Completed) {
    let latest = Instant::now() + LATEST;
    while Instant::now() < latest && !completed.take_news() {
        let quiet = (Instant::now() + QUIET).min(latest);
        if timeout_at(quiet, events.notified()).await.is_err() {
            return;
        }
    }
}

/// A directory that exists, with what tells it from another of the same path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Directory {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Watches on the directories of a source; dropped, they end.
struct Watches {
    directories: Vec<Directory>,
    failure: Option<notify::Error>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watches {
    /// Watches what exists now, and looks once more: a directory made meanwhile would not be heard of.
    fn new(wanted: &Arc<[PathBuf]>, writes: &Writes, events: &Arc<Notify>) -> Self {
        let mut watches = Self::once(wanted, writes, events);
        for _ in 1..ATTEMPTS {
            if watches.failure.is_some() || watches.hold(wanted) {
                break;
            }
            watches = Self::once(wanted, writes, events);
        }
        watches
    }

    fn once(wanted: &Arc<[PathBuf]>, writes: &Writes, events: &Arc<Notify>) -> Self {
        let directories = existing(wanted);
        let (wanted, events, writes) = (Arc::clone(wanted), Arc::clone(events), writes.clone());
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) if !matters(&event, &wanted, &writes) => {}
            // An error of the queue is answered like a change: by looking.
            heard => {
                if let (Ok(event), Writes::Each(completed)) = (heard, &writes) {
                    completed.hear(&event);
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

    /// Whether they are complete and on the directories that exist now.
    fn hold(&self, wanted: &[PathBuf]) -> bool {
        self.failure.is_none() && self.directories == existing(wanted)
    }
}

/// The directories `wanted`, each or, when it does not exist, the nearest one above it that does.
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

/// Whether `event` may have changed a file of the directories `wanted`.
///
/// Loading opens and reads files, which is heard as well: it must not lead to the next load. The name of a file says
/// nothing, because mounts swap links to directories beside it; but what happens beside a directory that is only
/// waited for has nothing to do with it.
fn matters(event: &Event, wanted: &[PathBuf], writes: &Writes) -> bool {
    if let (Writes::Finished, EventKind::Modify(ModifyKind::Data(_))) = (writes, event.kind) {
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
    use crate::config::{Source, directories, load};

    /// Only bounds a failure; below [`RESCAN`], so that a rescan cannot stand in for an event.
    const BOUND: Duration = Duration::from_secs(20);

    struct Watching {
        source: Source,
        ticks: mpsc::Receiver<()>,
        cancel: CancellationToken,
        tasks: JoinSet<()>,
    }

    impl Watching {
        async fn start(source: Source) -> Self {
            let (sender, mut ticks) = mpsc::channel(1);
            let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
            let directories = directories(&source);
            tasks.spawn(watch(directories, Writes::Finished, sender, cancel.clone()));
            timeout(BOUND, ticks.recv()).await.unwrap().unwrap();
            Self { source, ticks, cancel, tasks }
        }

        /// Waits until a tick after which the configuration says `models`, looking at ticks only.
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

    /// One way in which programs change a file; `usize` is what it has to say afterwards.
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
    async fn every_way_of_editing_a_file_gives_a_tick() {
        for (name, edit) in EDITS {
            let root = TempDir::new().unwrap();
            let file = root.path().join("caxton.yaml");
            write(&file, 1);
            let mut watching = Watching::start(Source::File(file.clone())).await;
            for models in 2..5 {
                edit(&file, models);
                watching.until(models, name).await;
            }
        }
    }

    #[tokio::test]
    async fn a_swap_of_the_data_directory_of_a_mount_gives_a_tick() {
        let root = TempDir::new().unwrap();
        let conf = root.path().join("etc/caxton/conf.d");
        let swap = |models: usize| {
            write(&conf.join(format!("..{models}/10-site.yaml")), models);
            symlink(format!("..{models}"), conf.join("..data_tmp")).unwrap();
            fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
        };
        swap(1);
        symlink("..data/10-site.yaml", conf.join("10-site.yaml")).unwrap();
        let mut watching = Watching::start(Source::Layers { root: root.path().into() }).await;
        for models in 2..5 {
            swap(models);
            watching.until(models, "swap of ..data").await;
        }
    }

    #[tokio::test]
    async fn directories_may_come_go_and_come_again() {
        let root = TempDir::new().unwrap();
        let mut watching = Watching::start(Source::Layers { root: root.path().into() }).await;
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
    async fn cancelling_ends_the_watch() {
        let root = TempDir::new().unwrap();
        let mut watching = Watching::start(Source::Layers { root: root.path().into() }).await;
        watching.cancel.cancel();
        timeout(BOUND, watching.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_watch_ends_when_nobody_receives() {
        let root = TempDir::new().unwrap();
        let file = root.path().join("caxton.yaml");
        let mut watching = Watching::start(Source::File(file.clone())).await;
        watching.ticks.close();
        write(&file, 1);
        timeout(BOUND, watching.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_inotify_ticks_come_with_every_rescan() {
        let exhausted = |_: &Arc<[PathBuf]>, _: &Arc<Notify>| Watches {
            directories: Vec::new(),
            failure: Some(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
            _watcher: None,
        };
        let (sender, mut ticks) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let completed = Completed::default();
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
    async fn events_that_do_not_stop_hold_a_tick_back_for_two_seconds_at_most() {
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
        settle(&events, &Completed::default()).await;
        assert!((LATEST..LATEST + QUIET).contains(&before.elapsed()), "{:?}", before.elapsed());
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        let before = Instant::now();
        settle(&Notify::new(), &Completed::default()).await;
        assert!((QUIET..QUIET * 2).contains(&before.elapsed()), "{:?}", before.elapsed());
    }

    #[test]
    fn reading_and_what_happens_beside_a_missing_directory_do_not_matter() {
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
        let each = Writes::Each(Completed::default());
        for (kind, path, expected) in cases {
            let event = Event::new(kind).add_path(path.into());
            for writes in [&each, &Writes::Finished] {
                assert_eq!(matters(&event, &wanted, writes), expected, "{event:?}");
            }
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(matters(&overflow, &wanted, &Writes::Finished));
        let growing = Event::new(EventKind::Modify(ModifyKind::Data(DataChange::Any)))
            .add_path("/etc/caxton/caxton.yaml".into());
        assert!(matters(&growing, &wanted, &each));
        assert!(!matters(&growing, &wanted, &Writes::Finished));
    }

    #[tokio::test]
    async fn files_that_were_written_to_their_end_are_named_at_once() {
        let place = TempDir::new().unwrap();
        let (sender, mut ticks) = mpsc::channel(1);
        let (cancel, completed) = (CancellationToken::new(), Completed::default());
        let mut tasks = JoinSet::new();
        let writes = Writes::Each(completed.clone());
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

        // Nothing is known of a file that is written again.
        let of = |kind| Event::new(kind).add_path(renamed.clone());
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        completed.hear(&of(closed));
        completed.hear(&of(EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        assert_eq!(completed.take(), BTreeSet::new());
        for number in 0..2 * MOST_COMPLETED {
            completed.hear(&Event::new(closed).add_path(place.path().join(number.to_string())));
        }
        assert_eq!(completed.take().len(), MOST_COMPLETED);
        cancel.cancel();
        tasks.join_all().await;
    }
}
