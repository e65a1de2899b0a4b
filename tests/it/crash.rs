//! The daemon killed while it installs a package: what the store holds then, and after the next start.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and what was hit is printed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use notify::Watcher as _;
use serde_json::json;

use crate::support::packages::{ask, dropped, entry, names, stored, until_answers};
use crate::support::{BOUND, Root, pack};

/// Every change of a file in the store, while this lives.
struct Changes {
    events: mpsc::Receiver<notify::Event>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn of(store: &Path) -> Self {
        let (sender, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            // Nobody listens any more when the test has ended.
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

    /// How many there have been, by way of one more in `store`.
    fn count(&self, store: &Path) -> usize {
        let last = store.join("last");
        fs::write(&last, "").unwrap();
        let events = std::iter::from_fn(|| self.events.recv_timeout(BOUND).ok());
        events.take_while(|event| !event.paths.contains(&last)).count()
    }
}

/// When to kill the daemon.
enum Moment {
    /// After so many changes of the store.
    Changes(usize),
    /// When the entry appears, before its self-test.
    Entry,
    /// When the daemon says that the package is accepted.
    Accepted,
}

/// The moments are changes of the store, from the first to the last that an installation makes:
/// times would hit the installation, a few milliseconds, only by luck.
#[test]
fn killed_at_any_moment_of_an_installation_the_store_holds_the_old_state_or_the_new() {
    const BY_CHANGES: usize = 12;
    let mut daemon = Root::new()
        .with("memory.model_cache.max_models", json!(100))
        .with("memory.model_cache.validation_on_startup", json!(false))
        .start();
    let changes = Changes::of(&daemon.state());
    let said = daemon.log().len();
    fs::write(dropped(&daemon, "whole"), pack("tiny-bert-mean", "whole", "1")).unwrap();
    daemon.wait_log_after(said, "package accepted");
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
                daemon.until("the package", || {
                    let said = |line: &String| line.contains("accepted") && line.contains(&id);
                    daemon.log().iter().any(said).then_some(())
                });
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
        let damaged = daemon.log().into_iter().find(|line| line.contains("an entry of the store"));
        assert_eq!(damaged, None, "round {round}");
    }
    eprintln!(
        "kills over {whole} changes: {unpacking} while unpacking, {untested} before the \
         self-test had passed, {available} after"
    );
    assert!(unpacking > 0 && available > 0, "the kills do not cover an installation");
}
