//! Installs packages: reads, verifies and tests a package, and adds it to the store.
//!
//! An installation passes through these states:
//!
//! 1. Discovered: the file is in the drop directory. The drop scanner
//!    ([`crate::package::drop_dir::DropScanner`]) waits until it stops changing. Packages from the
//!    API or the command line skip this state.
//! 2. Settled: the package is complete. For a file, the attempt is counted on disk
//!    ([`Store::begin_unpacking`]). With configured keys, the whole package is read once for its
//!    signature. Then [`verify_and_store`] checks the manifest: trust, quota and memory.
//!    [`Store::stage_verified`] unpacks the package and compares every digest.
//! 3. Staged: the files are in the staging directory. The keys are read again, so that a key which
//!    was removed during unpacking no longer counts.
//! 4. Verified: the quota is applied, and one rename makes the package an entry
//!    ([`Store::install`]).
//! 5. Admitted ([`InstallStatus::Untested`](crate::package::InstallStatus::Untested)): the attempt
//!    is counted on disk, then the self-test runs in a child process ([`InstallDriver::finish`]).
//! 6. Self-tested: the entries that it replaces are removed ([`Store::activate`]).
//! 7. Available ([`InstallStatus::Available`](crate::package::InstallStatus::Available)): models
//!    may be loaded.
//!
//! A rejected file of the drop directory is moved to the quarantine, whichever state it was in. An
//! entry that cannot be moved away becomes
//! [`InstallStatus::Quarantined`](crate::package::InstallStatus::Quarantined). Neither is tried
//! again until the file changes or an administrator acts.
//!
//! [`InstallDriver`] runs these steps. The command line uses it on a store that no daemon has open.
//! [`Installer`] uses it for the drop directory, the bundled directory and the API, with memory
//! reserved for the self-test.

mod driver;
mod installer;

use std::io::{self, Read};
use std::path::PathBuf;

pub use driver::InstallDriver;
pub use installer::Installer;

use super::ModelError;
use super::catalog;
use super::load::{self, LoadError};
use crate::config::{CleanupPolicy, Settings};
use crate::engine;
use crate::files::FileError;
use crate::package::{
    CleanupRule, Consent, Entries, EntryKey, IdClaim, Origin, PackageBytes, PackageHeader, Quota,
    ReservedIds, Sidecars, SignatureError, SignatureStatus, Staged, Store, StoreEntry, StoreError,
    StoreInstall, TrustError, TrustedKeys, UnpackError, UnpackLimits, check_claim, drop_dir,
};
use crate::telemetry::metrics::FailureType;

/// Rules that an installation must obey.
#[derive(Clone, Debug)]
pub struct InstallRules {
    /// Directory of the public keys. If it holds a key, every package needs a signature, except
    /// bundled ones.
    pub keys_directory: PathBuf,
    /// Directory of the packages that came with the appliance. Other packages must not have their
    /// ids.
    pub bundled_directory: PathBuf,
    /// Directory into which operators copy packages.
    pub drop_directory: PathBuf,
    /// Limits of one package.
    pub limits: UnpackLimits,
    /// Limits of the store.
    pub quota: Quota,
    /// Names of the models that are not removed from the store to make space.
    pub protected: Vec<String>,
    /// Whether only bundled packages are accepted.
    pub bundled_only: bool,
    /// Permissions that an administrator has given.
    pub consent: Consent,
}

impl From<&Settings> for InstallRules {
    fn from(settings: &Settings) -> Self {
        let cache = &settings.memory.model_cache;
        let mut kept = settings.memory.preload_models.clone();
        kept.extend(catalog::implicit_models(settings));
        Self {
            keys_directory: settings.packages.keys_directory.clone(),
            bundled_directory: settings.packages.bundled_directory.clone(),
            drop_directory: settings.packages.drop_directory.clone(),
            limits: UnpackLimits::for_size(settings.packages.max_package_size),
            quota: Quota {
                max_size: cache.max_size,
                max_models: cache.max_models,
                cleanup: match cache.cleanup_policy {
                    CleanupPolicy::Lru => CleanupRule::Lru,
                    CleanupPolicy::Fifo => CleanupRule::Fifo,
                    CleanupPolicy::Manual => CleanupRule::Manual,
                },
            },
            protected: kept,
            bundled_only: cache.bundled_only,
            consent: Consent {
                replace: settings.packages.replace_embedding_space,
                allow_downgrade: false,
            },
        }
    }
}

impl InstallRules {
    /// Returns these rules with the additional permissions of one installation.
    #[must_use]
    pub fn with(mut self, consent: Consent) -> Self {
        self.consent.replace |= consent.replace;
        self.consent.allow_downgrade |= consent.allow_downgrade;
        self
    }

    /// Returns the keys of the `entries` that are not removed from the store to make space: for
    /// each kept name, the entry that it resolves to and the one that a rollback would select.
    fn protected_keys(&self, entries: &Entries) -> Vec<EntryKey> {
        let kept = self
            .protected
            .iter()
            .flat_map(|name| [entries.resolve(name), entries.previous_version(name)]);
        kept.flatten().map(|entry| entry.key.clone()).collect()
    }
}

/// Reasons for which a package was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The package is incomplete or malformed, or it could not be written.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The signature or the checksum does not match the package, or a required signature is
    /// missing.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A configured key cannot be used, so the package was not checked.
    #[error("a configured key cannot be used, so no package is installed: correct or remove it")]
    Keys(#[source] SignatureError),
    /// The package is intact, but it must not have the id that it claims.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The store rejected the package.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The contents are verified, but the model cannot be loaded or fails its self-test.
    #[error("the package is intact, but its model does not work")]
    Load(#[from] LoadError),
    /// The self-test has used all its attempts, and the process ended during each of them.
    #[error("the daemon ended repeatedly during the self-test of the model")]
    NoTestAttemptsLeft,
    /// The unpacking has used all its attempts, and the process ended during each of them.
    #[error("the daemon ended repeatedly while it unpacked the package")]
    NoUnpackAttemptsLeft,
    /// The engine panicked in the self-test. The log does not have the cause: standard error of
    /// the child is discarded.
    #[error("the engine panicked during the self-test of the model")]
    SelfTestPanicked,
    /// The installation itself panicked. The cause is in the log.
    #[error("the installation of the package panicked: the log has the cause")]
    InstallationPanicked,
    /// The self-test ended without a result.
    #[error("the self-test of the model {0}")]
    Crashed(String),
    /// The self-test could not run.
    #[error("the package is intact, but its self-test could not run")]
    NotTested(#[source] io::Error),
    /// The manager did not reserve memory for the self-test.
    #[error("the package is intact, but its model could not be tested")]
    NotReserved(#[source] ModelError),
    /// The model would not fit into memory. No byte of the package was written.
    #[error("the package was not unpacked, because its model could not be loaded")]
    NoMemory(#[source] ModelError),
    /// The configuration allows bundled packages only.
    #[error(
        "memory.model_cache.bundled_only is true, so only packages of the appliance are installed; \
         to install other packages, set it to false"
    )]
    BundledOnly,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl InstallError {
    /// Returns the kind of fault in the package. Returns `None` if the package is not at fault, or
    /// if it may still be incomplete.
    pub fn failure(&self) -> Option<FailureType> {
        match self {
            Self::Unpack(UnpackError::Refused { .. }) | Self::NoUnpackAttemptsLeft => {
                Some(FailureType::Malformed)
            }
            Self::Signature(SignatureError::WrongDigest { .. }) => Some(FailureType::Digest),
            Self::Signature(
                SignatureError::Malformed { .. }
                | SignatureError::UnknownKey(_)
                | SignatureError::Legacy
                | SignatureError::Invalid(_)
                | SignatureError::NotCovered { .. },
            ) => Some(FailureType::Signature),
            Self::Trust(_) | Self::Store(StoreError::LooksAlike(_)) => Some(FailureType::Identity),
            Self::Load(error) => error.failure(),
            Self::NoTestAttemptsLeft
            | Self::SelfTestPanicked
            | Self::InstallationPanicked
            | Self::Crashed(_) => Some(FailureType::SelfTest),
            Self::Unpack(_)
            | Self::Signature(_)
            | Self::Keys(_)
            | Self::Store(_)
            | Self::NotTested(_)
            | Self::NotReserved(_)
            | Self::NoMemory(_)
            | Self::BundledOnly
            | Self::Stopping => None,
        }
    }

    /// Calls [`load::retry_options`] if the model could not be loaded.
    pub fn retry_options(
        &self,
        key: &EntryKey,
        options: engine::EngineOptions,
    ) -> Option<engine::EngineOptions> {
        match self {
            Self::Load(error) => load::retry_options(key, error, options),
            _ => None,
        }
    }
}

/// Result of an installation.
#[derive(Debug)]
pub struct Installation {
    /// Installed entry.
    pub entry: StoreEntry,
    /// Whether exactly this package was installed already.
    pub existed: bool,
    /// Entries that were removed: to make space, or because the new entry has the same id and
    /// version.
    pub removed: Vec<StoreEntry>,
    /// Signer of the package.
    pub signature: SignatureStatus,
}

/// Does the part of [`InstallDriver::install`] before the self-test.
///
/// A new entry is [`InstallStatus::Untested`](crate::package::InstallStatus::Untested). Calls
/// `fits` with the manifest and the sizes that the package declares, after the store has agreed and
/// before a byte is written.
///
/// # Errors
/// Fails if the package is incomplete, rejected or not trusted, or if the store rejects it.
pub fn verify_and_store(
    store: &Store,
    source: PackageBytes<impl Read>,
    sidecars: &Sidecars,
    origin: Origin,
    rules: &InstallRules,
    fits: impl FnOnce(&PackageHeader<'_>) -> Result<(), InstallError>,
) -> Result<Installation, InstallError> {
    if rules.bundled_only && !origin.is_bundled() {
        return Err(InstallError::BundledOnly);
    }
    let keys = keys_for(&origin, rules)?;
    // Count the attempt before the first byte is read: reading alone may crash the process.
    let _unpacking = store.begin_unpacking(&origin).ok_or(InstallError::NoUnpackAttemptsLeft)?;
    let kept = rules.protected_keys(&store.entries());
    let keep = |entry: &StoreEntry| kept.contains(&entry.key);
    let approve = |announced: &PackageHeader<'_>| -> Result<(), InstallError> {
        check_id(store, announced, sidecars, &keys, &origin, rules)?;
        store.check_capacity(announced, &origin, rules.quota, keep)?;
        fits(announced)
    };
    let (staged, signature) =
        store.stage_verified(source, sidecars, &keys, &rules.limits, approve)?;
    let staged = record_signer(staged, signature, &origin, rules)?;
    // The store may have changed while the package was unpacked.
    let kept = rules.protected_keys(&store.entries());
    let keep = |entry: &StoreEntry| kept.contains(&entry.key);
    let StoreInstall { entry, existed } = store.install(staged, origin, rules.quota, keep)?;
    Ok(Installation { entry, existed, removed: Vec::new(), signature })
}

/// Returns the keys with which a package from `origin` is checked.
///
/// A bundled package needs no key. It is in a directory of the operating system, which is trusted.
fn keys_for(origin: &Origin, rules: &InstallRules) -> Result<TrustedKeys, InstallError> {
    match origin.is_bundled() {
        true => Ok(TrustedKeys::default()),
        false => TrustedKeys::load(&rules.keys_directory).map_err(InstallError::Keys),
    }
}

/// Decides whether a package may have the id that it claims, before a byte of it is written. If
/// keys are configured, the signature is verified already.
fn check_id(
    store: &Store,
    announced: &PackageHeader<'_>,
    sidecars: &Sidecars,
    keys: &TrustedKeys,
    origin: &Origin,
    rules: &InstallRules,
) -> Result<(), InstallError> {
    let PackageHeader { manifest, manifest_digest, .. } = *announced;
    if !keys.is_empty()
        && let Some(key) = sidecars.key()
    {
        keys.signer(SignatureStatus::Valid(key), &manifest.id)?;
    }
    let claim = IdClaim { manifest, manifest_digest, origin, is_signed: !keys.is_empty() };
    let reserved = ReservedIds::read(&rules.bundled_directory);
    let highest = store.highest_signed(&manifest.id, keys);
    Ok(check_claim(&claim, &store.entries(), &reserved, highest, rules.consent)?)
}

/// Records the signer of a staged package.
///
/// Reads the keys again: a key that was removed while a large package was unpacked must not count.
fn record_signer(
    staged: Staged,
    signature: SignatureStatus,
    origin: &Origin,
    rules: &InstallRules,
) -> Result<Staged, InstallError> {
    let signer = keys_for(origin, rules)?.signer(signature, &staged.unpacked().manifest.id)?;
    Ok(staged.signed_by(signer))
}

/// Reasons for which a model was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The model is not installed.
    #[error("\"{0}\" is not installed")]
    Unknown(String),
    /// The model came with the appliance.
    #[error(
        "\"{0}\" belongs to the appliance, and the next start would install it again: remove its \
         file from packages.bundled_directory"
    )]
    Bundled(String),
    /// The store could not be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the model in the drop directory could not be removed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Removes the entry `name` from the store, in any state, and its files from the drop directory.
///
/// The files are removed too because the drop scanner would install them again. A bundled entry
/// that has not passed its self-test may be removed: its package is read and tested again at the
/// next start.
///
/// # Errors
/// Fails if the model is unknown, if it is bundled and works, or if the disk fails.
pub fn remove(store: &Store, name: &str, rules: &InstallRules) -> Result<StoreEntry, RemoveError> {
    let entries = store.entries();
    let entry = entries.resolve_any(name).ok_or_else(|| RemoveError::Unknown(name.to_owned()))?;
    match &entry.record.origin {
        Origin::Bundled { .. } if entry.record.status.is_tested() => {
            return Err(RemoveError::Bundled(name.to_owned()));
        }
        Origin::Dropped { files } => {
            for file in files.keys() {
                drop_dir::remove(&rules.drop_directory, file)?;
            }
        }
        Origin::Bundled { .. } | Origin::Installed => {}
    }
    Ok(store.remove(&entry.key)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::base::errors::chain;
    use crate::base::units::Bytes;
    use crate::models::selftest::SelfTester;
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
            let name =
                |entry: &StoreEntry| format!("{}@{}", entry.manifest.id, entry.manifest.version);
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
        for (package, reason) in
            [(wrong, "self-test failed"), (no_model, "config.json cannot be read")]
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
}
