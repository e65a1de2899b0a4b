//! Kills the daemon while it installs or removes a package, and checks the store then and after the
//! next start.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints what its kills interrupted"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use caxton::package::{InstallStatus, Store, StoreEntry};
use caxton::telemetry::log::Message;
use notify::Watcher as _;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, file_name, names, repacked, stored, until_answers, until_gone,
    until_quarantined, until_staging_is_empty,
};
use crate::support::selftest::{SelfTest, until_none_of};
use crate::support::{BOUND, Daemon, Root, is_event, pack};

/// Watch on all file changes in the store, until it is dropped.
struct Changes {
    events: mpsc::Receiver<notify::Event>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn of(store: &Path) -> Self {
        let (sender, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            // The send fails when the test has ended.
            drop(sender.send(event.unwrap()));
        })
        .unwrap();
        watcher.watch(store, notify::RecursiveMode::Recursive).unwrap();
        Self { events, _watcher: watcher }
    }

    /// Waits for `count` changes.
    fn wait(&self, count: usize) {
        for _ in 0..count {
            self.events.recv_timeout(BOUND).unwrap();
        }
    }

    /// Waits until the entry of `id` is in the store.
    fn wait_entry(&self, id: &str) {
        let is_entry = |path: &PathBuf| {
            path.parent().is_some_and(|parent| parent.ends_with("models"))
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(id))
        };
        while !self.events.recv_timeout(BOUND).unwrap().paths.iter().any(is_entry) {}
    }

    /// Counts the changes until now. Makes one more change in `store` to find the end of the queue.
    fn count(&self, store: &Path) -> usize {
        let last = store.join("last");
        fs::write(&last, "").unwrap();
        let events = std::iter::from_fn(|| self.events.recv_timeout(BOUND).ok());
        events.take_while(|event| !event.paths.contains(&last)).count()
    }
}

/// Returns the records about store entries that cannot be read.
fn damaged_entries(daemon: &Daemon) -> Vec<String> {
    let mut log = daemon.log();
    log.retain(|line| is_event(line, Message::StoreEntryDamaged));
    log
}

/// Moment of the kill.
enum Moment {
    /// The store has changed this many times.
    Changes(usize),
    /// The entry appeared, and its self-test has not run yet.
    Entry,
    /// The daemon has logged that the package is accepted.
    Accepted,
}

/// Checks the store after a kill at any moment of an installation. The moments are counted in
/// changes of the store, from the first to the last one. Delays would hit the few milliseconds of
/// an installation only by luck.
#[test]
fn kill_during_install_leaves_old_or_new_state() {
    const BY_CHANGES: usize = 12;
    let mut daemon = Root::new()
        .with("memory.model_cache.max_models", json!(100))
        .with("memory.model_cache.validation_on_startup", json!(false))
        .start();
    let changes = Changes::of(&daemon.state());
    let count = daemon.log().len();
    fs::write(dropped(&daemon, "whole"), pack("tiny-bert-mean", "whole", "1")).unwrap();
    daemon.wait_event_after(count, Message::PackageAccepted, &[&file_name("whole")]);
    let whole = changes.count(&daemon.state());
    assert!(whole >= BY_CHANGES, "{whole} changes");
    let by_changes = (0..BY_CHANGES).map(|part| Moment::Changes(1 + part * whole / BY_CHANGES));
    let later = [Moment::Entry, Moment::Entry, Moment::Entry, Moment::Accepted];
    let (mut unpacking, mut untested, mut available) = (0, 0, 0);
    for (round, moment) in by_changes.chain(later).enumerate() {
        let id = format!("m{round}");
        let before = stored(&daemon);
        let changes = Changes::of(&daemon.state());
        fs::write(dropped(&daemon, &id), pack("tiny-bert-mean", &id, "1")).unwrap();
        match moment {
            Moment::Changes(count) => changes.wait(count),
            Moment::Entry => changes.wait_entry(&id),
            Moment::Accepted => {
                daemon.wait_event_with(Message::PackageAccepted, &[&file_name(&id)]);
            }
        }
        let root = daemon.kill();
        let left = names(&root.state().join("staging"));
        let entries = stored(&root);
        match entries.len() - before.len() {
            0 => unpacking += usize::from(!left.is_empty()),
            1 => {
                let record = fs::read_to_string(entry(&root, &id).join("record.json")).unwrap();
                match record.contains("\"untested\"") {
                    true => untested += 1,
                    false => available += 1,
                }
            }
            more => panic!("round {round}: {more} entries more"),
        }

        daemon = root.start();
        let staging = names(&daemon.state().join("staging"));
        assert!(left.iter().all(|name| !staging.contains(name)), "round {round}: {staging:?}");
        until_answers(&daemon, &id);
        assert_eq!(ask(&daemon, &id).vectors(), ask(&daemon, "whole").vectors());
        assert_eq!(daemon.package(&id)["status"], "available");
        assert_eq!(stored(&daemon).len(), before.len() + 1);
        assert_eq!(damaged_entries(&daemon), [] as [String; 0], "round {round}");
    }
    eprintln!(
        "kills over {whole} changes: {unpacking} while unpacking, {untested} before the \
         self-test had passed, {available} after"
    );
    assert!(unpacking > 0 && available > 0, "the kills do not cover an installation");
}

/// Number of kills; `CAXTON_KILLS` overrides it.
const KILLS: usize = 50;
/// Number of models in the store above which a round removes one.
const MOST_MODELS: usize = 5;

/// Names in the state directory at rest, besides those of entries.
const OTHER_FILES: [&str; 4] = ["lock", "models", "staging", "usage.json"];
/// Names in the directory of an entry.
const ENTRY_FILES: [&str; 5] =
    ["config.json", "manifest.json", "model.safetensors", "record.json", "tokenizer.json"];

/// SplitMix64 random number generator, reproducible from its seed.
struct Random(u64);

impl Random {
    /// Returns a number from 1 to `most`.
    fn up_to(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let most = u64::try_from(most).unwrap();
        usize::try_from((mixed ^ (mixed >> 31)) % most).unwrap() + 1
    }
}

/// Returns the number in the environment variable `name`, if it is set.
fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

/// Kills the daemon and checks that no self-test survives it, not even the `caught` one, and that
/// every entry is whole.
fn kill(daemon: Daemon, caught: Option<SelfTest>) -> (Root, Vec<StoreEntry>) {
    let pid = daemon.pid();
    let root = daemon.kill();
    if let Some(caught) = caught {
        caught.resume();
    }
    until_none_of(pid);
    let found = Store::examine(&root.state());
    assert!(found.unlisted.is_none(), "{:?}", found.unlisted);
    assert_eq!(found.unreadable, []);
    assert_eq!(found.entries.len(), stored(&root).len());
    (root, found.entries)
}

/// Returns the relative paths of all files and directories below `directory`.
fn below(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in names(directory) {
        let child = directory.join(&name);
        if child.is_dir() {
            found.extend(below(&child).into_iter().map(|inner| format!("{name}/{inner}")));
        }
        found.insert(name);
    }
    found
}

fn paths(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().copied().map(str::to_owned).collect()
}

/// Returns the paths in the state directory outside of entries, and the set of paths of each entry.
fn files(root: &Root) -> (BTreeSet<String>, BTreeSet<BTreeSet<String>>) {
    let models = root.state().join("models");
    let entries = names(&models).iter().map(|name| below(&models.join(name))).collect();
    let mut others = below(&root.state());
    others.retain(|path| !path.starts_with("models/"));
    (others, entries)
}

/// Checks the store at every kill and after it. The printed seed repeats the same choices through
/// `CAXTON_SEED`.
#[test]
fn random_kills_leave_store_intact_and_clean() {
    let kills = number_of("CAXTON_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number_of("CAXTON_SEED").unwrap_or_else(|| u64::from(now.subsec_nanos()));
    eprintln!("CAXTON_SEED={seed}");
    let began = Instant::now();
    let mut random = Random(seed);
    let mut daemon = Root::new()
        .with("memory.model_cache.max_models", json!(100))
        .with("memory.model_cache.validation_on_startup", json!(false))
        .with("memory.fallback_strategy", json!("strict"))
        .with("memory.max_loaded_models", json!(20))
        .start();
    let package = pack("tiny-bert-mean", "whole", "1");
    let drop_one = |daemon: &Root, id: &str| {
        fs::write(dropped(daemon, id), repacked(&package, id)).unwrap();
    };
    // Count the changes of an installation and of a removal.
    let changes = Changes::of(&daemon.state());
    let count = daemon.log().len();
    drop_one(&daemon, "first");
    daemon.wait_event_after(count, Message::PackageAccepted, &[&file_name("first")]);
    let installing = changes.count(&daemon.state());
    let changes = Changes::of(&daemon.state());
    fs::remove_file(dropped(&daemon, "first")).unwrap();
    until_gone(&daemon, "first");
    let removing = changes.count(&daemon.state());
    fs::remove_file(daemon.state().join("last")).unwrap();
    drop_one(&daemon, "whole");
    until_answers(&daemon, "whole");
    let vectors = ask(&daemon, "whole").vectors();
    let mut live = BTreeSet::from(["whole".to_owned()]);
    let (mut killed, mut round) = (0, 0);
    let (mut unpacking, mut untested, mut available, mut tests, mut given_up) = (0, 0, 0, 0, 0);
    let mut removals = [0, 0];
    while killed < kills {
        round += 1;
        killed += 1;
        let changes = Changes::of(&daemon.state());
        if live.len() > MOST_MODELS {
            let nth = random.up_to(live.len() - 1) - 1;
            let id = live.iter().filter(|id| *id != "whole").nth(nth).unwrap().clone();
            fs::remove_file(dropped(&daemon, &id)).unwrap();
            changes.wait(random.up_to(removing));
            let (root, entries) = kill(daemon, None);
            removals
                [usize::from(entries.iter().any(|entry| entry.manifest.id.to_string() == id))] += 1;
            live.remove(&id);
            daemon = root.start();
            until_gone(&daemon, &id);
        } else {
            let id = format!("m{round}");
            let in_test = random.up_to(3) == 1;
            let moment = random.up_to(installing * 11 / 12);
            drop_one(&daemon, &id);
            let mut caught = None;
            if in_test {
                caught = SelfTest::wait(&daemon, || ask(&daemon, &id).status == 200);
                tests += usize::from(caught.is_some());
            } else {
                changes.wait(moment);
            }
            let is_caught = caught.is_some();
            let (mut root, entries) = kill(daemon, caught);
            let found = |entries: &[StoreEntry]| {
                entries.iter().find(|entry| entry.manifest.id.to_string() == id).cloned()
            };
            match found(&entries).map(|entry| entry.record.status) {
                None => unpacking += 1,
                Some(InstallStatus::Untested) => untested += 1,
                Some(InstallStatus::Available) => available += 1,
                Some(status) => panic!("round {round}: {status:?}"),
            }
            let mut is_given_up = false;
            if is_caught && random.up_to(2) == 1 {
                // Interrupt the same self-test a second time.
                daemon = root.spawn();
                let again = SelfTest::wait(&daemon, || ask(&daemon, &id).status == 200);
                daemon.wait_notified("READY=1");
                let (killed_again, entries) = kill(daemon, again);
                killed += 1;
                is_given_up = found(&entries).unwrap().record.is_given_up();
                root = killed_again;
            }
            daemon = root.start();
            if is_given_up {
                given_up += 1;
                let reason = until_quarantined(&daemon, &id);
                assert_eq!(
                    reason,
                    "the daemon ended repeatedly during the self-test of the model\n"
                );
                until_gone(&daemon, &id);
                let other = format!("{id}-again");
                drop_one(&daemon, &other);
                until_answers(&daemon, &other);
                live.insert(other);
            } else {
                until_answers(&daemon, &id);
                live.insert(id);
            }
        }
        for id in &live {
            let answer = ask(&daemon, id);
            assert_eq!(answer.status, 200, "round {round}, {id}: {answer:?}");
            assert_eq!(answer.vectors(), vectors, "round {round}, {id}");
        }
        assert_eq!(stored(&daemon).len(), live.len() + 1, "round {round}");
        assert_eq!(damaged_entries(&daemon), [] as [String; 0], "round {round}");
        until_staging_is_empty(&daemon);
    }
    // A stop does not wait for every write. The next start removes the remains of such a write.
    let daemon = daemon.stop().start();
    let expected = (paths(&OTHER_FILES), BTreeSet::from([paths(&ENTRY_FILES)]));
    daemon.until("the files of a store at rest", || {
        let found = files(&daemon);
        if found != expected {
            eprintln!("{found:?}");
        }
        (found == expected).then_some(())
    });
    eprintln!(
        "{killed} kills in {:?}, over {installing} changes of an installation and {removing} of a \
         removal: {unpacking} before the entry, {untested} before the self-test had passed, {available} \
         after; {tests} in a self-test, {given_up} twice; {} removals done, {} not",
        began.elapsed(),
        removals[0],
        removals[1],
    );
    assert!(kills < KILLS || tests > 0, "no self-test was caught");
}
