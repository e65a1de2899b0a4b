//! Tests of `store`.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::symlink;

use super::disk::RECORD;
use super::*;
use crate::base::units::Bytes;
use crate::package::digest::Digest;
use crate::package::fixture::{Builder, package};
use crate::package::install_record::{CleanupRule, Timestamp};
use crate::package::manifest::{MANIFEST, TOKENIZER, WEIGHTS};
use crate::package::weights::Weights;

const QUOTA: Quota =
    Quota { max_size: Bytes::mib(64), max_models: 100, cleanup: CleanupRule::Manual };

fn limits() -> UnpackLimits {
    UnpackLimits::for_size(Bytes::mib(8))
}

/// A store in a temporary directory, in memory where possible.
struct TestStore(TempDir);

impl TestStore {
    fn new() -> Self {
        let place = tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir());
        Self(place.unwrap())
    }

    fn open(&self) -> Store {
        let (store, damaged) = Store::open(self.0.path()).unwrap();
        assert_eq!(damaged, Vec::<String>::new());
        store
    }

    fn models(&self) -> PathBuf {
        self.0.path().join("models")
    }

    fn assert_staging_is_empty(&self) {
        assert_eq!(names(&self.0.path().join("staging")), Vec::<String>::new());
    }
}

fn names(directory: &Path) -> Vec<String> {
    let children = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        children.map(|child| child.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn admit_as(store: &Store, package: &[u8], origin: Origin, quota: Quota) -> StoreInstall {
    let staged = store.stage(package, &limits()).unwrap();
    store.install(staged, origin, quota, |_| false).unwrap()
}

fn admit(store: &Store, package: &[u8]) -> StoreEntry {
    let admitted = admit_as(store, package, Origin::Installed, QUOTA);
    assert!(!admitted.existed);
    admitted.entry
}

/// Installs a package and marks it as available, as after a self-test.
fn install(store: &Store, package: &[u8]) -> EntryKey {
    let key = admit(store, package).key;
    store.activate(&key, QUOTA, |_| false).unwrap();
    key
}

fn status(store: &Store, key: &EntryKey) -> InstallStatus {
    store.entry(key).unwrap().record.status
}

fn keys(store: &Store) -> Vec<String> {
    store.entries().iter().map(|entry| entry.key.to_string()).collect()
}

fn bundled(file: &str) -> Origin {
    let fingerprint = serde_json::from_str("\"\"").unwrap();
    Origin::Bundled { file: format!("{file}.model.tar.zst"), fingerprint }
}

#[test]
fn store_is_locked_while_open() {
    let place = TestStore::new();
    let store = place.open();
    let second = Store::open(place.0.path()).unwrap_err();
    assert!(matches!(&second, StoreError::Locked(path) if path == place.0.path()), "{second}");
    drop(store);
    place.open();
}

#[test]
fn open_removes_temporary_files() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    let entry = store.path(&key);
    drop(store);
    let elsewhere = tempfile::tempdir().unwrap();
    let linked = place.0.path().join(MODELS).join("linked");
    symlink(elsewhere.path(), &linked).unwrap();
    let files = [place.0.path(), &entry, elsewhere.path()].map(|at| at.join(".aB3dE9"));
    files.iter().for_each(|file| fs::write(file, "half").unwrap());
    drop(Store::open(place.0.path()).unwrap());
    assert_eq!(files.map(|file| file.exists()), [false, false, true]);
    assert!(entry.join(RECORD).exists());
}

#[test]
fn package_status_survives_reopening() {
    let place = TestStore::new();
    let store = place.open();
    let package = package("m", "1");
    let staged = store.stage(&package[..], &limits()).unwrap();
    let digest = staged.unpacked().package_digest;
    let StoreInstall { entry, existed } =
        store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap();
    assert!(!existed);
    assert_eq!(entry.record.status, InstallStatus::Untested);
    assert_eq!(entry.record.package_digest, Digest::of(&package));
    assert_eq!(entry.record.package_digest, digest);
    place.assert_staging_is_empty();
    drop(store);

    let store = place.open();
    assert_eq!(status(&store, &entry.key), InstallStatus::Untested);
    assert!(store.activate(&entry.key, QUOTA, |_| false).unwrap().is_empty());
    let again = admit_as(&store, &package, Origin::Installed, QUOTA);
    assert!(again.existed);
    assert_eq!(again.entry.key, entry.key);
    place.assert_staging_is_empty();
    drop(store);

    let store = place.open();
    assert_eq!(status(&store, &entry.key), InstallStatus::Available);
    let (manifest, contents) = store.read(&entry.key).unwrap();
    assert_eq!(manifest.id.as_str(), "m");
    assert_eq!(contents.weights.bytes(), b"not really weights");
    assert!(matches!(contents.weights, Weights::Mapped(_)));
    let files = ["config.json", MANIFEST, WEIGHTS, RECORD, TOKENIZER];
    assert_eq!(names(&place.models().join(entry.key.directory())), files);
}

#[test]
fn dropped_or_refused_staging_leaves_nothing() {
    let place = TestStore::new();
    let store = place.open();
    let package = package("m", "1");
    let staged = store.stage(&package[..], &limits()).unwrap();
    assert_eq!(names(&place.0.path().join("staging")).len(), 1);
    drop(staged);
    place.assert_staging_is_empty();
    let truncated = store.stage(&package[..package.len() / 2], &limits()).unwrap_err();
    assert!(matches!(truncated, UnpackError::Truncated { .. }), "{truncated}");
    place.assert_staging_is_empty();
    assert_eq!(keys(&store), Vec::<String>::new());
}

#[test]
fn same_version_entries_coexist_unless_both_are_bundled() {
    let other = Builder::new("m", "1", b"other weights").compress();
    let packages = [package("m", "1"), other];
    let cases = [
        (Origin::Installed, Origin::Installed, false),
        (bundled("a"), bundled("b"), true),
        (bundled("a"), Origin::Installed, false),
        (Origin::Installed, bundled("a"), false),
    ];
    for (first, second, replaced) in cases {
        let place = TestStore::new();
        let store = place.open();
        let old = admit_as(&store, &packages[0], first, QUOTA).entry.key;
        assert!(store.activate(&old, QUOTA, |_| false).unwrap().is_empty());
        let new = admit_as(&store, &packages[1], second, QUOTA).entry.key;
        assert_ne!(old, new);
        assert_eq!(status(&store, &old), InstallStatus::Available);
        let removed = store.activate(&new, QUOTA, |_| false).unwrap();
        let removed: Vec<_> = removed.into_iter().map(|entry| entry.key).collect();
        // The entry that was installed last is chosen, although both were installed within a
        // second.
        assert_eq!(store.entries().resolve("m@1").unwrap().key, new);
        assert_eq!(removed, Vec::from_iter(replaced.then_some(old)));
        assert_eq!(store.entries().len(), 2 - removed.len());
        place.assert_staging_is_empty();
        let shown = keys(&store);
        drop(store);
        assert_eq!(keys(&place.open()), shown);
    }
}

#[test]
fn bundled_model_stays_bundled_after_installing_copy() {
    let place = TestStore::new();
    let store = place.open();
    let package = package("m", "1");
    for origin in [Origin::Installed, bundled("m"), Origin::Installed] {
        admit_as(&store, &package, origin, QUOTA);
    }
    assert_eq!(store.entries()[0].record.origin, bundled("m"));
    drop(store);
    assert_eq!(place.open().entries()[0].record.origin, bundled("m"));
}

type Damage = fn(&Path);

/// Changes of an installed file, each with a word that the reported reason contains.
const DAMAGES: [(&str, Damage, &str); 7] = [
    ("a flipped bit", |file| flip_a_bit(file), "digest"),
    ("more bytes", |file| append(file, b"x"), "more than"),
    (
        "fewer bytes",
        |file| OpenOptions::new().write(true).open(file).unwrap().set_len(1).unwrap(),
        "fewer than",
    ),
    (
        "a link to the same bytes",
        |file| {
            let moved = file.with_extension("moved");
            fs::rename(file, &moved).unwrap();
            symlink(moved, file).unwrap();
        },
        "cannot open",
    ),
    (
        "a FIFO",
        |file| {
            fs::remove_file(file).unwrap();
            nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        },
        "not a regular file",
    ),
    (
        "a directory",
        |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
        "not a regular file",
    ),
    ("nothing", |file| fs::remove_file(file).unwrap(), "cannot open"),
];

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes[0] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn append(file: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(file).unwrap().write_all(bytes).unwrap();
}

#[test]
fn changed_file_marks_entry_corrupt_persistently() {
    let package = package("m", "1");
    for (name, damage, word) in DAMAGES {
        for file in [WEIGHTS, TOKENIZER] {
            let place = TestStore::new();
            let store = place.open();
            let key = install(&store, &package);
            damage(&place.models().join(key.directory()).join(file));
            let error = store.read(&key).unwrap_err();
            let reason = match &error {
                StoreError::Corrupt { reason, .. } => reason,
                other => panic!("{name}: {other}"),
            };
            assert!(reason.contains(file) && reason.contains(word), "{name}: {reason}");
            let verified = store.verify(&key, |_| {});
            assert!(matches!(verified, Err(StoreError::Corrupt { .. })), "{name}");
            drop(store);
            let store = place.open();
            assert_eq!(status(&store, &key), InstallStatus::Corrupt(reason.clone()), "{name}");
        }
    }
}

/// A file that changes after its first 64 KiB were read.
struct Meddled<F> {
    file: File,
    meddle: Option<F>,
}

impl<F: FnOnce()> Read for Meddled<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.file.stream_position()? >= 64 << 10
            && let Some(meddle) = self.meddle.take()
        {
            meddle();
        }
        let length = buffer.len().min(64 << 10);
        self.file.read(&mut buffer[..length])
    }
}

#[test]
fn changing_package_is_staged_unchanged_or_refused() {
    // Incompressible, so that most of the file is still unread when it changes.
    let weights = |seed: u64| -> Vec<u8> {
        let hashes = (0..16_384_u64).map(|at| Digest::of(&(at + (seed << 32)).to_le_bytes()));
        hashes.flat_map(|digest| digest.to_string().into_bytes()).collect()
    };
    let old = Builder::new("m", "1", &weights(0)).compress();
    let new = Builder::new("m", "1", &weights(1)).compress();
    type Meddle = fn(&Path, &[u8]);
    let ways: [(&str, Meddle, bool); 4] = [
        (
            "replaced",
            |path, new| {
                fs::write(path.with_extension("new"), new).unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            },
            true,
        ),
        ("removed", |path, _| fs::remove_file(path).unwrap(), true),
        ("overwritten", |path, new| fs::write(path, new).unwrap(), false),
        (
            "cut",
            |path, _| {
                OpenOptions::new().write(true).open(path).unwrap().set_len(80 << 10).unwrap();
            },
            false,
        ),
    ];
    for (way, meddle, installed) in ways {
        let place = TestStore::new();
        let store = place.open();
        let path = place.0.path().join("package");
        fs::write(&path, &old).unwrap();
        let meddled =
            Meddled { file: File::open(&path).unwrap(), meddle: Some(|| meddle(&path, &new)) };
        let staged = store.stage(meddled, &limits());
        assert_eq!(staged.is_ok(), installed, "{way}: {staged:?}");
        let Ok(staged) = staged else {
            place.assert_staging_is_empty();
            continue;
        };
        assert_eq!(staged.unpacked().package_digest, Digest::of(&old), "{way}");
        let key = store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap().entry.key;
        assert!(store.read(&key).unwrap().1.weights.bytes() == weights(0), "{way}");
    }
}

#[test]
fn file_changed_in_staging_is_corrupt() {
    let place = TestStore::new();
    let store = place.open();
    let staged = store.stage(&package("m", "1")[..], &limits()).unwrap();
    flip_a_bit(&staged.directory.path().join(WEIGHTS));
    let key = store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap().entry.key;
    let error = store.read(&key).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn vanished_entry_is_corrupt() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    fs::remove_dir_all(place.models().join(key.directory())).unwrap();
    let error = store.read(&key).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(matches!(status(&store, &key), InstallStatus::Corrupt(_)));
    store.remove(&key).unwrap();
    assert_eq!(keys(&store), Vec::<String>::new());
}

#[test]
fn reinstalling_replaces_corrupt_entry() {
    let place = TestStore::new();
    let store = place.open();
    let package = package("m", "1");
    let key = install(&store, &package);
    flip_a_bit(&place.models().join(key.directory()).join(WEIGHTS));
    store.verify(&key, |_| {}).unwrap_err();
    let entry = admit(&store, &package);
    // The same contents passed the self-test before.
    assert_eq!((&entry.key, &entry.record.status), (&key, &InstallStatus::Available));
    store.verify(&key, |_| {}).unwrap();
    place.assert_staging_is_empty();
}

#[test]
fn restored_untested_entry_stays_untested() {
    let place = TestStore::new();
    let store = place.open();
    let key = admit(&store, &package("m", "1")).key;
    let file = place.models().join(key.directory()).join(TOKENIZER);
    let right = fs::read(&file).unwrap();
    flip_a_bit(&file);
    let corrupt = store.read(&key).unwrap_err();
    assert!(matches!(corrupt, StoreError::Corrupt { .. }), "{corrupt}");
    fs::write(&file, right).unwrap();
    store.verify(&key, |_| {}).unwrap();
    assert_eq!(status(&store, &key), InstallStatus::Untested);
    store.quarantine(&key, "why".to_owned()).unwrap();
    store.verify(&key, |_| {}).unwrap();
    assert_eq!(status(&store, &key), InstallStatus::Quarantined("why".to_owned()));
}

#[test]
fn restored_entry_becomes_available() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    let weights = place.models().join(key.directory()).join(WEIGHTS);
    flip_a_bit(&weights);
    store.verify(&key, |_| {}).unwrap_err();
    flip_a_bit(&weights);
    assert!(store.verify(&key, |_| {}).unwrap());
    assert_eq!(status(&store, &key), InstallStatus::Available);
    assert!(!store.verify(&key, |_| {}).unwrap());
    drop(store);
    assert_eq!(status(&place.open(), &key), InstallStatus::Available);
}

#[test]
fn pending_write_does_not_block_queries() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    let _writing = store.writing();
    store.count_access(&key);
    assert_eq!(store.entries()[0].accesses.count(), 1);
}

#[test]
fn verify_hashes_every_byte_and_updates_time() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    let mut seen = 0;
    let installed = store.entry(&key).unwrap();
    store.verify(&key, |bytes| seen = bytes).unwrap();
    assert_eq!(seen, installed.manifest.total_size());
    let record = store.entry(&key).unwrap().record;
    assert!(record.last_validated_at >= installed.record.last_validated_at);
}

/// Checks changes that each leave an entry that cannot be the installed one.
#[test]
fn damaged_entry_is_reported_and_replaced_by_reinstalling() {
    const CHANGES: [(&str, Damage, &str); 7] = [
        ("no record", |entry| fs::remove_file(entry.join(RECORD)).unwrap(), "cannot open"),
        ("no manifest", |entry| fs::remove_file(entry.join(MANIFEST)).unwrap(), "cannot open"),
        ("a record that is no JSON", |entry| fs::write(entry.join(RECORD), "{").unwrap(), "EOF"),
        (
            "a record with a field too many",
            |entry| {
                let text = fs::read_to_string(entry.join(RECORD)).unwrap();
                fs::write(entry.join(RECORD), text.replacen('{', "{\"more\": 1,", 1)).unwrap();
            },
            "unknown field",
        ),
        (
            "an endless record",
            |entry| fs::write(entry.join(RECORD), vec![b' '; 1 << 20]).unwrap(),
            "longer than",
        ),
        ("another manifest", |entry| append(&entry.join(MANIFEST), b" "), "differs"),
        (
            "another name",
            |entry| {
                fs::rename(entry, entry.with_file_name("other@1+0123456789ab")).unwrap();
            },
            "another entry, m@1",
        ),
    ];
    let package = package("m", "1");
    for (name, change, word) in CHANGES {
        let place = TestStore::new();
        let store = place.open();
        let key = install(&store, &package);
        let good = install(&store, &crate::package::fixture::package("good", "1"));
        drop(store);
        change(&place.models().join(key.directory()));
        let (store, damaged) = Store::open(place.0.path()).unwrap();
        assert_eq!(keys(&store), [good.to_string()], "{name}");
        assert!(damaged.len() == 1 && damaged[0].contains(word), "{name}: {damaged:?}");
        install(&store, &package);
        store.verify(&key, |_| {}).unwrap();
    }
}

#[test]
fn crash_keeps_old_entries_and_allows_installing() {
    let old = package("old", "1");
    let new = package("new", "1");
    type Crash = fn(&TestStore, &Store, &[u8]);
    let crashes: [(&str, Crash, usize); 4] = [
        (
            "while unpacking",
            |_, store, package| {
                std::mem::forget(store.stage(package, &limits()).unwrap());
            },
            0,
        ),
        (
            "while unpacking, half of the files",
            |place, _, package| {
                let half = place.0.path().join("staging/install-half");
                fs::create_dir(&half).unwrap();
                fs::write(half.join(MANIFEST), package).unwrap();
            },
            0,
        ),
        (
            "in an entry's directory that a lost disk write left empty",
            |place, _, _| {
                fs::create_dir(place.models().join("new@1+0123456789ab")).unwrap();
            },
            1,
        ),
        (
            "while removing",
            |place, store, package| {
                let key = install(store, package);
                let bin = place.0.path().join(format!("staging/removed-{key}"));
                fs::rename(place.models().join(key.directory()), bin).unwrap();
            },
            0,
        ),
    ];
    for (name, crash, left_out) in crashes {
        let place = TestStore::new();
        let store = place.open();
        let key = install(&store, &old);
        crash(&place, &store, &new);
        drop(store);
        let (store, damaged) = Store::open(place.0.path()).unwrap();
        assert_eq!(damaged.len(), left_out, "{name}: {damaged:?}");
        place.assert_staging_is_empty();
        assert_eq!(keys(&store), [key.to_string()], "{name}");
        assert_eq!(status(&store, &key), InstallStatus::Available, "{name}");
        store.verify(&key, |_| {}).unwrap();
        install(&store, &new);
        assert_eq!(store.entries().len(), 2, "{name}");
    }
}

#[test]
fn removed_entry_is_gone_and_unknown() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    assert_eq!(store.remove(&key).unwrap().key, key);
    assert_eq!(names(&place.models()), Vec::<String>::new());
    place.assert_staging_is_empty();
    for unknown in [
        store.remove(&key).map(drop),
        store.read(&key).map(drop),
        store.verify(&key, |_| {}).map(drop),
        store.activate(&key, QUOTA, |_| false).map(drop),
    ] {
        assert!(matches!(unknown, Err(StoreError::Unknown(found)) if found == key));
    }
}

#[test]
fn failed_removal_keeps_the_entry() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    let staging = place.0.path().join("staging");
    fs::remove_dir_all(&staging).unwrap();
    fs::write(&staging, "in the way").unwrap();
    let failed = store.remove(&key);
    assert!(matches!(failed, Err(StoreError::File(_))), "{failed:?}");
    store.verify(&key, |_| {}).unwrap();
}

#[test]
fn entry_stays_until_last_dropped_file_goes() {
    let place = TestStore::new();
    let store = place.open();
    let fingerprint = || serde_json::from_value("".into()).unwrap();
    let name = |file: &str| format!("{file}.model.tar.zst");
    let dropped = |file: &str| Origin::dropped(name(file), fingerprint());
    for file in ["a", "b", "c"] {
        admit_as(&store, &package("m", "1"), dropped(file), QUOTA);
    }
    let key = store.entries()[0].key.clone();
    for (file, stays) in [("other", true), ("c", true), ("a", true), ("b", false)] {
        assert_eq!(store.detach_file(&key, &name(file)).unwrap(), stays, "{file}");
    }
    assert_eq!(store.entry(&key).unwrap().record.origin, dropped("b"));
    drop(store);
    let store = place.open();
    assert_eq!(store.entry(&key).unwrap().record.origin, dropped("b"));
    // An administrator adopted the entry, so that no file removes it.
    store.mark_installed(&key).unwrap();
    assert!(store.detach_file(&key, "b").unwrap());
    store.remove(&key).unwrap();
    assert!(matches!(store.detach_file(&key, "b"), Err(StoreError::Unknown(_))));
}

#[test]
fn cleanup_spares_bundled_and_kept_models() {
    let size = {
        let place = TestStore::new();
        let store = place.open();
        let key = install(&store, &package("a", "1"));
        store.entry(&key).unwrap().manifest.total_size()
    };
    let by_count = |cleanup| Quota { max_models: 3, cleanup, ..QUOTA };
    let by_size = |cleanup| Quota { max_size: Bytes(3 * size), cleanup, ..QUOTA };
    let cases = [
        // `a` was installed first but used last; `kept` is older than both.
        (by_count(CleanupRule::Lru), Some("b")),
        (by_count(CleanupRule::Fifo), Some("a")),
        (by_count(CleanupRule::Manual), None),
        (by_size(CleanupRule::Lru), Some("b")),
        (by_size(CleanupRule::Fifo), Some("a")),
        (by_size(CleanupRule::Manual), None),
    ];
    for (quota, leaves) in cases {
        let place = TestStore::new();
        let store = place.open();
        admit_as(&store, &package("bundled", "1"), bundled("bundled"), QUOTA);
        for (at, id) in ["kept", "a", "b"].iter().enumerate() {
            let key = install(&store, &package(id, "1"));
            // All are installed within one second, the resolution of the record: set distinct
            // times.
            let at = Timestamp(at as u64);
            store.update(&key, |record| record.installed_at = at).unwrap();
            if *id == "a" {
                store.count_access(&key);
            }
        }
        let keep = |entry: &StoreEntry| entry.manifest.id.as_str() == "kept";
        let staged = store.stage(&package("new", "1")[..], &limits()).unwrap();
        let admitted = store.install(staged, Origin::Installed, quota, keep);
        place.assert_staging_is_empty();
        match (leaves, admitted) {
            (Some(id), Ok(StoreInstall { entry, .. })) => {
                // The entry may fail its self-test, so that no other entry is removed yet.
                assert_eq!(store.entries().len(), 5);
                let removed = store.activate(&entry.key, quota, keep).unwrap();
                let ids = removed.iter().map(|entry| entry.manifest.id.as_str());
                assert_eq!(ids.collect::<Vec<_>>(), [id], "{quota:?}");
            }
            (None, Err(StoreError::Full(_))) => {}
            (_, other) => panic!("{quota:?}: {other:?}"),
        }
        assert_eq!(store.entries().len(), 4);
        let shown = keys(&store);
        drop(store);
        assert_eq!(keys(&place.open()), shown);
    }
}

#[test]
fn full_store_refuses_package_before_writing() {
    let place = TestStore::new();
    let store = place.open();
    let none = Quota { max_models: 1, max_size: Bytes(1), cleanup: CleanupRule::Manual };
    let ask = |package: &[u8], origin: &Origin, quota| {
        let approve = |announced: &PackageHeader<'_>| -> Result<(), Asked> {
            Ok(store.check_capacity(announced, origin, quota, |_| false)?)
        };
        match store.stage_if(package, &limits(), approve) {
            Ok(_staged) => Ok(()),
            Err(Asked::Store(error)) => Err(error),
            Err(Asked::Unpack(error)) => panic!("{error:?}"),
        }
    };
    let (a, b) = (package("a", "1"), package("b", "1"));
    let full = ask(&a, &Origin::Installed, none).unwrap_err();
    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    place.assert_staging_is_empty();
    ask(&a, &bundled("a"), none).unwrap();
    ask(&a, &Origin::Installed, QUOTA).unwrap();
    // A package that is installed already needs no space, unless its entry is corrupt.
    let key = install(&store, &a);
    ask(&a, &Origin::Installed, none).unwrap();
    ask(&b, &Origin::Installed, none).unwrap_err();
    flip_a_bit(&place.models().join(key.directory()).join(WEIGHTS));
    store.verify(&key, |_| {}).unwrap_err();
    ask(&a, &Origin::Installed, none).unwrap_err();
    let used = store.in_use(none);
    assert_eq!((used.models, used.size), (1, Bytes(store.entries()[0].manifest.total_size())));
    place.assert_staging_is_empty();
}

#[derive(Debug, thiserror::Error)]
enum Asked {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[test]
fn failed_rename_keeps_old_state_and_cleans_staging() {
    let place = TestStore::new();
    let store = place.open();
    let staged = store.stage(&package("m", "1")[..], &limits()).unwrap();
    fs::remove_dir(place.models()).unwrap();
    let error = store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap_err();
    assert!(chain(&error).starts_with("cannot install"), "{error:?}");
    place.assert_staging_is_empty();
    assert!(store.entries().is_empty());
    fs::create_dir(place.models()).unwrap();
    // A corrupt entry stays at its path when the rename of its replacement fails.
    let key = install(&store, &package("m", "1"));
    let entry = place.models().join(key.directory());
    flip_a_bit(&entry.join(WEIGHTS));
    store.verify(&key, |_| {}).unwrap_err();
    let staged = store.stage(&package("m", "1")[..], &limits()).unwrap();
    // The rename fails because the staged directory does not exist any more.
    let directory = staged.directory.path().to_owned();
    fs::remove_dir_all(&directory).unwrap();
    store.insert_directory(staged.directory, &key).unwrap_err();
    assert!(entry.join(WEIGHTS).exists());
    place.assert_staging_is_empty();
}

#[test]
fn failed_record_write_removes_no_model() {
    let place = TestStore::new();
    let store = place.open();
    let old = install(&store, &package("old", "1"));
    let quota = Quota { max_models: 1, cleanup: CleanupRule::Lru, ..QUOTA };
    let new = admit_as(&store, &package("new", "1"), Origin::Installed, quota).entry.key;
    let record = place.models().join(new.directory());
    let elsewhere = place.0.path().join("elsewhere");
    fs::rename(&record, &elsewhere).unwrap();
    store.activate(&new, quota, |_| false).unwrap_err();
    assert_eq!(store.entry(&old).unwrap().record.status, InstallStatus::Available);
    assert_eq!(store.entry(&new).unwrap().record.status, InstallStatus::Untested);
    store.read(&old).unwrap();
    fs::rename(&elsewhere, &record).unwrap();
    let removed = store.activate(&new, quota, |_| false).unwrap();
    assert_eq!(removed.len(), 1);
    assert_eq!(keys(&store), [new.to_string()]);
}

#[test]
fn model_is_available_despite_failed_cleanup() {
    let place = TestStore::new();
    let store = place.open();
    let old = install(&store, &package("old", "1"));
    let quota = Quota { max_models: 1, cleanup: CleanupRule::Lru, ..QUOTA };
    let new = admit_as(&store, &package("new", "1"), Origin::Installed, quota).entry.key;
    // The removal fails because staging is a file.
    let staging = place.0.path().join("staging");
    fs::remove_dir(&staging).unwrap();
    fs::write(&staging, "").unwrap();
    assert!(store.activate(&new, quota, |_| false).unwrap().is_empty());
    let failed_removals = store.take_failed_removals();
    assert_eq!(failed_removals.len(), 1);
    assert!(
        failed_removals[0].0 == old && chain(&failed_removals[0].1).contains("cannot remove"),
        "{failed_removals:?}"
    );
    assert!(store.take_failed_removals().is_empty());
    for key in [&old, &new] {
        assert_eq!(store.entry(key).unwrap().record.status, InstallStatus::Available);
        store.read(key).unwrap();
    }
    // The next installation also removes the entry that could not be removed.
    fs::remove_file(&staging).unwrap();
    fs::create_dir(&staging).unwrap();
    let next = admit_as(&store, &package("next", "1"), Origin::Installed, quota).entry.key;
    let removed = store.activate(&next, quota, |_| false).unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(keys(&store), [next.to_string()]);
}

#[test]
fn bundled_packages_ignore_the_quota() {
    let place = TestStore::new();
    let store = place.open();
    let none = Quota { max_models: 1, max_size: Bytes(1), cleanup: CleanupRule::Manual };
    admit_as(&store, &package("a", "1"), bundled("a"), none);
    admit_as(&store, &package("b", "1"), bundled("b"), none);
    let staged = store.stage(&package("c", "1")[..], &limits()).unwrap();
    let full = store.install(staged, Origin::Installed, none, |_| false).unwrap_err();
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    assert_eq!(store.entries().len(), 2);
}

#[test]
fn written_access_counts_survive_reopening() {
    let place = TestStore::new();
    let store = place.open();
    let key = install(&store, &package("m", "1"));
    assert_eq!(store.entry(&key).unwrap().accesses.last_access_at(), None);
    assert_eq!(store.write_access_counts().unwrap(), 0);
    store.count_access(&key);
    store.count_access(&key);
    assert_eq!(store.write_access_counts().unwrap(), 1);
    assert_eq!(store.write_access_counts().unwrap(), 0);
    store.count_access(&key);
    drop(store);
    let store = place.open();
    let record = store.entry(&key).unwrap().record;
    assert_eq!(record.access_count, 2);
    assert!(record.last_access_at.is_some());
    assert_eq!(store.entries()[0].accesses.count(), 2);
    // The counts of an entry that was removed are not written.
    store.count_access(&key);
    store.remove(&key).unwrap();
    store.count_access(&key);
    assert_eq!(store.write_access_counts().unwrap(), 0);
}

#[test]
fn name_resolves_to_highest_tested_version() {
    let place = TestStore::new();
    let store = place.open();
    let old = install(&store, &package("m", "1.9"));
    let new = install(&store, &package("m", "1.10"));
    install(&store, &package("mm", "2"));
    admit(&store, &package("m", "3"));
    let chosen = |name: &str| store.entries().resolve(name).map(|entry| entry.key.clone());
    assert_eq!(chosen("m"), Some(new.clone()));
    assert_eq!(chosen("m@1.9"), Some(old.clone()));
    assert_eq!(chosen("m@1.10"), Some(new.clone()));
    for unknown in ["m@3", "m@2", "m@", "M", "", "@", "m@1.10@", "m+1"] {
        assert_eq!(chosen(unknown), None, "{unknown}");
    }
    // An earlier version of the same embedding space answers for a corrupt one. If none is left, the
    // corrupt one is chosen, so that its error is reported instead of "not installed".
    flip_a_bit(&place.models().join(new.directory()).join(WEIGHTS));
    store.verify(&new, |_| {}).unwrap_err();
    assert_eq!(chosen("m"), Some(old.clone()));
    store.remove(&old).unwrap();
    assert_eq!(chosen("m"), Some(new));
}

#[test]
fn revision_prefix_resolves_unless_it_is_a_version() {
    let place = TestStore::new();
    let store = place.open();
    let one = install(&store, &package("m", "1"));
    let two = install(&store, &package("m", "2"));
    let chosen = |name: &str| store.entries().resolve(name).map(|entry| entry.key.clone());
    let revision = store.entry(&one).unwrap().record.manifest_digest.to_string();
    assert_eq!(chosen("m"), Some(two));
    for digits in [6, 12, 64] {
        assert_eq!(chosen(&format!("m@{}", &revision[..digits])), Some(one.clone()), "{digits}");
    }
    for other in [&revision[..5], "", "0"] {
        assert_eq!(chosen(&format!("m@{other}")), None, "{other}");
    }
    assert_eq!(chosen(&format!("n@{revision}")), None);
    let so_called = install(&store, &package("m", &revision[..6]));
    assert_eq!(chosen(&format!("m@{}", &revision[..6])), Some(so_called));
    assert_eq!(chosen(&format!("m@{}", &revision[..7])), Some(one));
}

#[test]
fn same_version_resolves_to_latest_install() {
    let place = TestStore::new();
    let store = place.open();
    let other = Builder::new("m", "1", b"other weights").compress();
    let bundled = admit_as(&store, &package("m", "1"), bundled("m"), QUOTA).entry.key;
    store.activate(&bundled, QUOTA, |_| false).unwrap();
    let own = install(&store, &other);
    for (last, first) in [(&bundled, &own), (&own, &bundled)] {
        store.update(last, |record| record.installed_at = Timestamp(2)).unwrap();
        store.update(first, |record| record.installed_at = Timestamp(1)).unwrap();
        assert_eq!(store.entries().resolve("m").unwrap().key, *last);
    }
}

#[test]
fn rollback_lasts_until_new_highest_version() {
    let place = TestStore::new();
    let mut store = place.open();
    let [one, two, three] = ["1", "2", "3"].map(|version| install(&store, &package("m", version)));
    let chosen = |store: &Store| store.entries().resolve("m").unwrap().key.clone();
    let roll_back = |store: &Store, rollback: RollbackTarget| {
        let RollbackResult { from, to } = store.roll_back("m", &rollback).unwrap();
        (from.key, to.key)
    };
    assert_eq!(roll_back(&store, RollbackTarget::Previous), (three.clone(), two.clone()));
    // A rollback can be repeated, also after the store was opened again.
    assert_eq!(roll_back(&store, RollbackTarget::Previous), (two.clone(), one.clone()));
    drop(store);
    store = place.open();
    assert_eq!(chosen(&store), one);
    let error = store.roll_back("m", &RollbackTarget::Previous).unwrap_err();
    assert!(matches!(&error, RollbackError::NoPrevious(key) if *key == one), "{error}");
    assert_eq!(store.entries().resolve("m@3").unwrap().key, three);
    // Neither a lower version nor an installed package undoes the rollback.
    let lower = install(&store, &package("m", "2.5"));
    admit_as(&store, &package("m", "3"), Origin::Installed, QUOTA);
    assert_eq!(chosen(&store), one);
    let to = RollbackTarget::To("2.5".to_owned());
    assert_eq!(roll_back(&store, to), (one, lower.clone()));
    // An untested version does not count yet.
    let higher = admit(&store, &package("m", "4")).key;
    assert_eq!(chosen(&store), lower);
    store.activate(&higher, QUOTA, |_| false).unwrap();
    assert_eq!(chosen(&store), higher);
    assert_eq!(roll_back(&store, RollbackTarget::Previous), (higher.clone(), three.clone()));
    assert_eq!(roll_back(&store, RollbackTarget::Clear), (three.clone(), higher.clone()));
    assert_eq!(roll_back(&store, RollbackTarget::Clear), (higher.clone(), higher));
    drop(store);
    let marks = place.open().entries();
    assert!(marks.iter().all(|entry| entry.record.chosen_at.is_none()));
}

#[test]
fn rollback_refuses_unusable_versions_and_survives_repair() {
    let place = TestStore::new();
    let store = place.open();
    let [one, two] = ["1", "2"].map(|version| install(&store, &package("m", version)));
    for (id, rollback, expected) in [
        ("n", RollbackTarget::Previous, "\"n\" is not installed"),
        ("m@2", RollbackTarget::Previous, "names a version"),
        ("m", RollbackTarget::To("3".to_owned()), "no usable version or revision \"3\""),
    ] {
        let error = store.roll_back(id, &rollback).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    store.roll_back("m", &RollbackTarget::Previous).unwrap();
    let weights = place.models().join(two.directory()).join(WEIGHTS);
    flip_a_bit(&weights);
    store.verify(&two, |_| {}).unwrap_err();
    assert!(!admit_as(&store, &package("m", "2"), Origin::Installed, QUOTA).existed);
    store.activate(&two, QUOTA, |_| false).unwrap();
    assert_eq!(store.entries().resolve("m").unwrap().key, one);

    store.roll_back("m", &RollbackTarget::Clear).unwrap();
    flip_a_bit(&place.models().join(one.directory()).join(WEIGHTS));
    store.verify(&one, |_| {}).unwrap_err();
    for rollback in [RollbackTarget::Previous, RollbackTarget::To("1".to_owned())] {
        store.roll_back("m", &rollback).unwrap_err();
        assert_eq!(store.entries().resolve("m").unwrap().key, two);
    }
}

/// A tmpfs of a given size, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts a tmpfs with `options`. Returns `None` where this process may not mount.
    fn mount(options: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(place.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a skip is printed by name")]
fn full_disk_keeps_old_state_and_names_path() {
    let old = package("old", "1");
    // Compression does not matter: the unpacked size counts, 16 pages and some more.
    let new = Builder::new("new", "1", &[7; 16 << 12]).compress();
    let (mut failed_at, mut installed) = (std::collections::BTreeSet::new(), 0);
    // The store itself and the old package take about 10 inodes and as many pages.
    let sizes = (8..48).map(|pages| format!("size={}k", 4 * pages));
    let inodes = (4..32).map(|inodes| format!("nr_inodes={inodes}"));
    for options in sizes.chain(inodes) {
        let Some(disk) = SmallDisk::mount(&options) else {
            eprintln!("skipped: a full disk, because this process may not mount");
            return;
        };
        let directory = disk.0.path();
        let Ok((store, _)) = Store::open(directory) else { continue };
        let staged = store.stage(&old[..], &limits());
        let Some(Ok(before)) =
            staged.ok().map(|staged| store.install(staged, Origin::Installed, QUOTA, |_| false))
        else {
            continue;
        };
        let outcome = match store.stage(&new[..], &limits()) {
            Err(error) => Err((chain(&error), matches!(error, UnpackError::Io { .. }))),
            Ok(staged) => store
                .install(staged, Origin::Installed, QUOTA, |_| false)
                .map_err(|error| (chain(&error), matches!(error, StoreError::File(_)))),
        };
        assert_eq!(names(&directory.join("staging")), Vec::<String>::new(), "{options}");
        let mut expected = vec![before.entry.key.clone()];
        match outcome {
            Ok(admitted) => {
                installed += 1;
                expected.insert(0, admitted.entry.key);
            }
            Err((error, is_io)) => {
                let (step, _) = error.split_once(directory.to_str().unwrap()).expect(&error);
                assert!(is_io && error.contains("No space"), "{options}: {error}");
                failed_at.insert(step.to_owned());
            }
        }
        drop(store);
        let (store, damaged) = Store::open(directory).unwrap();
        assert_eq!(damaged, Vec::<String>::new(), "{options}");
        let found: Vec<_> = store.entries().iter().map(|entry| entry.key.clone()).collect();
        assert_eq!(found, expected, "{options}");
        for key in found {
            store.read(&key).unwrap();
        }
    }
    assert!(installed > 0 && failed_at.len() >= 3, "{installed} installed, {failed_at:?}");
}
