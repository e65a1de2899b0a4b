//! Tests of `install`.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::config::ModelSettings;
use crate::models::ingest::selftest::SelfTester;
use crate::package::{
    BoxError, InstallStatus, Manifest, PackRequest, PackageContents, fixture, pack,
};

const OPTIONS: engine::EngineOptions =
    engine::EngineOptions { threads: 1, batch_tokens: 512, precision: engine::Precision::F32 };

struct Place {
    root: TempDir,
    store: Store,
    rules: InstallRules,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (store, damaged) = Store::open(&root.path().join("store")).unwrap();
        assert!(damaged.is_empty());
        let mut rules = InstallRules::from(&Settings::default());
        rules.keys_directory = root.path().join("keys.d");
        rules.bundled_directory = root.path().join("bundled");
        rules.drop_directory = root.path().to_owned();
        Self { root, store, rules }
    }

    /// Simulates a restart of the process.
    fn reopened(self) -> Self {
        let Self { root, store, rules } = self;
        // Release the lock of the store before it is opened again.
        drop(store);
        let (store, damaged) = Store::open(&root.path().join("store")).unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        Self { root, store, rules }
    }

    fn install(&self, package: &[u8], origin: Origin) -> Result<Installation, InstallError> {
        let sidecars = Sidecars::parse(Path::new("m"), None, None).unwrap();
        self.driver(&SelfTester::in_process(), |driver| {
            driver.install(PackageBytes::Stream(package), &sidecars, origin)
        })
    }

    fn driver<T>(&self, tester: &SelfTester, work: impl FnOnce(&InstallDriver<'_>) -> T) -> T {
        work(&InstallDriver::standalone(&self.store, &self.rules, OPTIONS, tester))
    }

    fn finish(&self, key: &EntryKey) -> Result<Vec<StoreEntry>, InstallError> {
        self.driver(&SelfTester::in_process(), |driver| driver.finish(key))
    }

    /// Installs `package` without its self-test.
    fn admit(&self, package: &[u8]) -> EntryKey {
        let sidecars = Sidecars::parse(Path::new("m"), None, None).unwrap();
        let package = PackageBytes::Stream(package);
        let (store, rules) = (&self.store, &self.rules);
        let admitted =
            verify_and_store(store, package, &sidecars, Origin::Installed, rules, |_| Ok(()))
                .unwrap();
        admitted.entry.key
    }

    fn names(&self) -> Vec<String> {
        let entries = self.store.entries();
        let name = |entry: &StoreEntry| format!("{}@{}", entry.manifest.id, entry.manifest.version);
        entries.iter().map(name).collect()
    }
}

/// Computes the vector of the self-test with the real engine.
fn computed(manifest: &Manifest, contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
    let model = load::load(manifest, contents.clone(), OPTIONS)?;
    Ok(load::embed_plain(&model, &manifest.self_test.text)?)
}

/// Returns a package of a working model whose manifest declares the result of `vector`.
fn package(
    version: &str,
    vector: fn(&Manifest, &PackageContents) -> Result<Vec<f32>, BoxError>,
) -> Vec<u8> {
    let request = PackRequest {
        source: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-bert-mean"),
        version: Some(version.parse().unwrap()),
        ..PackRequest::default()
    };
    let mut bytes = Vec::new();
    pack(&request, &vector, &|_, _| {}, &mut bytes).unwrap();
    bytes
}

fn bundled() -> Origin {
    let origin =
        serde_json::json!({ "bundled": { "file": "file.model.tar.zst", "fingerprint": "" } });
    serde_json::from_value(origin).unwrap()
}

fn dropped(file: &str) -> Origin {
    Origin::dropped(file.to_owned(), serde_json::from_value("".into()).unwrap())
}

#[test]
fn working_package_is_installed_once() {
    let place = Place::new();
    let package = package("1", computed);
    let installed = place.install(&package, Origin::Installed).unwrap();
    assert!(!installed.existed && installed.removed.is_empty());
    assert_eq!(installed.signature, SignatureStatus::Absent);
    assert_eq!(installed.entry.record.status, InstallStatus::Available);
    assert_eq!(place.store.entries()[0].record.status, InstallStatus::Available);
    assert!(place.install(&package, Origin::Installed).unwrap().existed);
    assert_eq!(place.names(), ["tiny-bert-mean@1"]);
}

#[test]
fn failed_package_is_not_stored_and_removes_nothing() {
    let mut place = Place::new();
    place.rules.quota.max_models = 1;
    place.rules.protected.clear();
    let old = place.install(&package("1", computed), Origin::Installed).unwrap().entry;
    let wrong = package("2", |manifest, contents| {
        let mut vector = computed(manifest, contents)?;
        vector.rotate_left(1);
        Ok(vector)
    });
    let no_model = fixture::package("m", "1");
    for (package, reason) in [(wrong, "self-test failed"), (no_model, "config.json cannot be read")]
    {
        let error = place.install(&package, Origin::Installed).unwrap_err();
        let found = chain(&error);
        assert!(matches!(error, InstallError::Load(_)) && found.contains(reason), "{found}");
        assert_eq!(place.names(), ["tiny-bert-mean@1"]);
        place.store.verify(&old.key, |_| {}).unwrap();
    }
    // The limits do allow version 2: only its failed self-test kept it out.
    let new = place.install(&package("2", computed), Origin::Installed).unwrap();
    let left: Vec<_> = new.removed.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(left, [old.key]);
    assert_eq!(place.names(), ["tiny-bert-mean@2"]);
}

#[test]
fn kept_models_are_not_removed_for_space() {
    let mut place = Place::new();
    place.rules.quota.max_models = 1;
    place.rules.protected = vec!["tiny-bert-mean".to_owned()];
    place.install(&package("1", computed), Origin::Installed).unwrap();
    let error = place.install(&package("2", computed), Origin::Installed).unwrap_err();
    let full = matches!(error, InstallError::Store(StoreError::Full(_)));
    assert!(full, "{error:?}");
    assert_eq!(place.names(), ["tiny-bert-mean@1"]);
}

#[test]
fn bundled_only_refuses_other_packages() {
    let mut place = Place::new();
    place.rules.bundled_only = true;
    let package = package("1", computed);
    for refused in [Origin::Installed, dropped("file")] {
        let error = place.install(&package, refused).unwrap_err();
        assert!(matches!(error, InstallError::BundledOnly), "{error:?}");
    }
    place.install(&package, bundled()).unwrap();
    assert_eq!(place.names(), ["tiny-bert-mean@1"]);
}

#[test]
fn self_test_is_abandoned_after_two_crashes() {
    let mut place = Place::new();
    let package = package("1", computed);
    let key = place.admit(&package);
    for attempts in 1..=2 {
        place.store.begin_test(&key).unwrap();
        // Simulate the end of the process.
        place = place.reopened();
        let entries = place.store.entries();
        assert_eq!((entries.len(), entries[0].record.attempts), (1, attempts));
    }
    let given_up = place.finish(&key);
    assert!(matches!(given_up, Err(InstallError::NoTestAttemptsLeft)), "{given_up:?}");
    let given_up = place.install(&package, Origin::Installed);
    assert!(matches!(given_up, Err(InstallError::NoTestAttemptsLeft)), "{given_up:?}");
    place.store.quarantine(&key, "why".to_owned()).unwrap();
    place = place.reopened();
    let entries = place.store.entries();
    assert_eq!(entries[0].record.status, InstallStatus::Quarantined("why".to_owned()));
    assert!(entries.resolve("tiny-bert-mean").is_none());
    // An explicit installation by an administrator resets the attempts.
    let installed = place.install(&package, Origin::Installed).unwrap();
    assert!(!installed.existed);
    assert_eq!(place.reopened().store.entries()[0].record.attempts, 0);
}

#[test]
fn cancelled_self_test_is_not_an_attempt() {
    let place = Place::new();
    let key = place.admit(&package("1", computed));
    place.store.begin_test(&key).unwrap();
    place.store.cancel_test(&key).unwrap();
    let place = place.reopened();
    assert_eq!(place.store.entries()[0].record.attempts, 0);
    place.finish(&key).unwrap();
    assert_eq!(place.store.entries()[0].record.status, InstallStatus::Available);
}

#[test]
fn entry_is_removable_in_any_state() {
    let package = package("1", computed);
    let status = |place: &Place, status: &str| {
        let directory = place.root.path().join("store/models");
        let entry = fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
        let path = entry.join("record.json");
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["status"] = serde_json::from_str(status).unwrap();
        fs::write(path, record.to_string()).unwrap();
    };
    for found in ["\"untested\"", r#"{"quarantined": "why"}"#, r#"{"corrupt": "how"}"#] {
        for origin in [Origin::Installed, dropped("file.model.tar.zst"), bundled()] {
            for name in ["tiny-bert-mean", "tiny-bert-mean@1", "revision"] {
                let place = Place::new();
                let installed = place.install(&package, origin.clone()).unwrap();
                status(&place, found);
                let place = place.reopened();
                let revision = installed.entry.record.manifest_digest.short();
                let name = name.replace("revision", &format!("tiny-bert-mean@{revision}"));
                let removed = remove(&place.store, &name, &place.rules);
                if origin.is_bundled() && found.contains("corrupt") {
                    assert!(matches!(removed, Err(RemoveError::Bundled(_))), "{removed:?}");
                    continue;
                }
                assert_eq!(removed.unwrap().key, installed.entry.key, "{found} {name}");
                assert_eq!(place.reopened().names(), Vec::<String>::new());
            }
        }
    }
}

#[test]
fn pinned_and_fallback_models_are_protected() {
    let mut settings = Settings::default();
    settings.memory.fallback_models = vec!["fallback".to_owned()];
    let model = |pinned, preload| ModelSettings { pinned, preload, ..ModelSettings::default() };
    settings.models = [
        ("pinned".to_owned(), model(true, false)),
        ("preloaded@2".to_owned(), model(false, true)),
        ("other".to_owned(), model(false, false)),
    ]
    .into();
    let mut protected = InstallRules::from(&settings).protected;
    protected.sort();
    protected.dedup();
    assert_eq!(protected, ["bundled-mini", "fallback", "pinned", "preloaded@2"]);
}

#[test]
fn faults_of_the_machine_are_not_the_packages() {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let refused = UnpackError::Refused { member: None, reason: String::new() };
    for error in [InstallError::Unpack(refused), InstallError::SelfTestPanicked] {
        assert!(error.is_fault_of_package(), "{error:?}");
    }
    for error in [
        InstallError::Unpack(UnpackError::Source(full())),
        InstallError::NotTested(full()),
        InstallError::InstallationPanicked,
        InstallError::BundledOnly,
        InstallError::Stopping,
    ] {
        assert!(!error.is_fault_of_package(), "{error:?}");
    }
}

#[test]
fn update_waits_under_manual_policy() {
    let mut place = Place::new();
    place.rules.holds_updates = true;
    place.install(&package("1", computed), Origin::Installed).unwrap();
    let update = place.install(&package("2", computed), Origin::Installed).unwrap();
    assert!(update.entry.record.awaits_approval);
    assert_eq!(update.entry.record.status, InstallStatus::Available);
    let place = place.reopened();
    let entries = place.store.entries();
    assert_eq!(entries.resolve("tiny-bert-mean").unwrap().manifest.version.as_str(), "1");
}

#[test]
fn resolved_model_is_removed_before_untested_one() {
    let place = Place::new();
    place.install(&package("1", computed), Origin::Installed).unwrap();
    place.admit(&package("2", computed));
    let removed = remove(&place.store, "tiny-bert-mean", &place.rules).unwrap();
    assert_eq!(removed.manifest.version.as_str(), "1");
    let removed = remove(&place.store, "tiny-bert-mean", &place.rules).unwrap();
    assert_eq!(removed.manifest.version.as_str(), "2");
}

#[test]
fn bad_key_is_reported_as_key_error() {
    let place = Place::new();
    fs::create_dir(&place.rules.keys_directory).unwrap();
    fs::write(place.rules.keys_directory.join("site.pub"), "no key").unwrap();
    let error = place.install(&package("1", computed), Origin::Installed).unwrap_err();
    assert!(matches!(error, InstallError::Keys(_)), "{error:?}");
    assert!(chain(&error).contains("site.pub"));
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn remove_deletes_dropped_files_but_no_bundled_model() {
    let place = Place::new();
    let package = package("1", computed);
    let files = ["file", "copy"].map(|name| place.root.path().join(name));
    let sidecars = ["file.sha256", "copy.minisig"].map(|name| place.root.path().join(name));
    for sidecar in &sidecars {
        fs::write(sidecar, "of the package").unwrap();
    }
    for (file, name) in files.iter().zip(["file", "copy"]) {
        fs::write(file, "package").unwrap();
        place.install(&package, dropped(name)).unwrap();
    }
    remove(&place.store, "tiny-bert-mean@1", &place.rules).unwrap();
    assert!(files.iter().chain(&sidecars).all(|file| !file.exists()));
    let again = remove(&place.store, "tiny-bert-mean@1", &place.rules);
    assert!(matches!(again, Err(RemoveError::Unknown(_))), "{again:?}");
    place.install(&package, bundled()).unwrap();
    let bundled = remove(&place.store, "tiny-bert-mean", &place.rules);
    assert!(matches!(bundled, Err(RemoveError::Bundled(_))), "{bundled:?}");
    assert_eq!(place.names(), ["tiny-bert-mean@1"]);
}

#[test]
fn store_size_limit_applies_to_installation() {
    let mut place = Place::new();
    let package = package("1", computed);
    place.rules.quota.max_size = Bytes(1);
    let error = place.install(&package, Origin::Installed).unwrap_err();
    assert!(matches!(error, InstallError::Store(StoreError::Full(_))), "{error:?}");
    assert_eq!(place.names(), Vec::<String>::new());
}
