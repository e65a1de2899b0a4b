//! Tests of `watch`.

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
        let (target, link) = (file.with_extension(models.to_string()), file.with_extension("l"));
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
