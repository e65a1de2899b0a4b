//! Installation: a package is read, verified, put into the store and tried before anybody may use it.
//!
//! [`install`] is one blocking function, for a command line that works without a daemon. [`Installer`] does the same for
//! the daemon.

mod installer;

use std::io::Read;
use std::path::PathBuf;

pub use installer::Installer;

use super::ModelError;
use super::alias;
use super::load::{self, LoadError};
use crate::config::{CleanupPolicy, Settings};
use crate::engine;
use crate::files::FileError;
use crate::metrics::FailureType;
use crate::package::{
    Admitted, Cleanup, Entry, Key, Keys, Limits, Origin, Quota, Sidecars, SignatureError,
    SignatureStatus, Status, Store, StoreError, UnpackError, choose, drop, earlier,
};

/// What an installation is held to.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Public keys; when there is one, every package needs a signature.
    pub keys_directory: PathBuf,
    /// Where operators put packages.
    pub drop_directory: PathBuf,
    /// Bounds of one package.
    pub limits: Limits,
    /// Bounds of the store.
    pub quota: Quota,
    /// Models that do not leave the store to make room, by name.
    pub kept: Vec<String>,
    /// Whether only packages that came with the appliance are accepted.
    pub bundled_only: bool,
}

impl From<&Settings> for Rules {
    fn from(settings: &Settings) -> Self {
        let cache = &settings.memory.model_cache;
        let mut kept = settings.memory.preload_models.clone();
        kept.extend(alias::meant_by(settings));
        Self {
            keys_directory: settings.packages.keys_directory.clone(),
            drop_directory: settings.packages.drop_directory.clone(),
            limits: Limits::for_size(settings.packages.max_package_size),
            quota: Quota {
                max_size: cache.max_size,
                max_models: cache.max_models,
                cleanup: match cache.cleanup_policy {
                    CleanupPolicy::Lru => Cleanup::Lru,
                    CleanupPolicy::Fifo => Cleanup::Fifo,
                    CleanupPolicy::Manual => Cleanup::Manual,
                },
            },
            kept,
            bundled_only: cache.bundled_only,
        }
    }
}

impl Rules {
    /// Those of `entries` that do not leave the store to make room: what the kept names mean, and what a rollback of them
    /// would lead to.
    fn keeps(&self, entries: &[Entry]) -> Vec<Key> {
        let kept =
            self.kept.iter().flat_map(|name| [choose(entries, name), earlier(entries, name)]);
        kept.flatten().map(|entry| entry.key.clone()).collect()
    }
}

/// Why a package was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It is incomplete, wrong, or could not be written.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// What vouches for it does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The keys that packages are checked with are not usable; nothing is known of the package.
    #[error("packages cannot be checked: a configured key cannot be used")]
    Keys(#[source] SignatureError),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its contents are verified but are no working model.
    #[error("the package is intact but its model does not work")]
    Load(#[from] LoadError),
    /// It could not be tried.
    #[error("the package is intact, but its model was not tried")]
    Untried(#[source] ModelError),
    /// The configuration allows bundled packages only.
    #[error(
        "memory.model_cache.bundled_only is set: only packages that came with the appliance are accepted"
    )]
    BundledOnly,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl InstallError {
    /// What is wrong with the package; `None` when it is not to blame, or more of it may come.
    pub fn failure(&self) -> Option<FailureType> {
        match self {
            Self::Unpack(UnpackError::Refused { .. }) => Some(FailureType::Malformed),
            Self::Signature(SignatureError::WrongDigest { .. }) => Some(FailureType::Digest),
            Self::Signature(
                SignatureError::Malformed { .. }
                | SignatureError::UnknownKey(_)
                | SignatureError::Legacy
                | SignatureError::Invalid(_),
            ) => Some(FailureType::Signature),
            Self::Load(error) => error.failure(),
            Self::Unpack(_)
            | Self::Signature(_)
            | Self::Keys(_)
            | Self::Store(_)
            | Self::Untried(_)
            | Self::BundledOnly
            | Self::Stopping => None,
        }
    }

    /// See [`load::fall_back`].
    pub fn fall_back(&self, key: &Key, options: engine::Options) -> Option<engine::Options> {
        match self {
            Self::Load(error) => load::fall_back(key, error, options),
            _ => None,
        }
    }
}

/// What an installation did.
#[derive(Debug)]
pub struct Installed {
    /// The model.
    pub entry: Entry,
    /// Whether exactly this package was installed already.
    pub existed: bool,
    /// What left: to make room, or because this one has the same id and version.
    pub removed: Vec<Entry>,
    /// Who vouches for it.
    pub signature: SignatureStatus,
}

/// Reads a package from `source`, verifies it, puts it into `store` and tries it.
///
/// Blocks: reads the package once, writes and syncs its files, loads the model and computes one vector.
///
/// # Errors
/// When any of that fails; the store then holds what it held before.
pub fn install(
    store: &Store,
    source: impl Read,
    sidecars: &Sidecars,
    origin: Origin,
    rules: &Rules,
    options: engine::Options,
) -> Result<Installed, InstallError> {
    let mut installed = admit(store, source, sidecars, origin, rules)?;
    let entry = &mut installed.entry;
    if entry.record.status == Status::Untested {
        installed.removed = try_out(store, &entry.key, rules, options)?;
        entry.record.status = Status::Available;
    }
    Ok(installed)
}

/// Does the part of [`install`] before the model is tried: a new entry is [`Status::Untested`].
///
/// # Errors
/// When the package is incomplete, refused or not vouched for, or the store does not take it.
pub fn admit(
    store: &Store,
    source: impl Read,
    sidecars: &Sidecars,
    origin: Origin,
    rules: &Rules,
) -> Result<Installed, InstallError> {
    if rules.bundled_only && !origin.is_bundled() {
        return Err(InstallError::BundledOnly);
    }
    let keys = Keys::load(&rules.keys_directory).map_err(InstallError::Keys)?;
    let mut reader = sidecars.verifier(&keys, source)?;
    let staged = store.stage(&mut reader, &rules.limits)?;
    let signature = reader.finish(staged.unpacked().package_digest)?;
    let kept = rules.keeps(&store.entries());
    let keep = |entry: &Entry| kept.contains(&entry.key);
    let Admitted { entry, existed } = store.admit(staged, origin, rules.quota, keep)?;
    Ok(Installed { entry, existed, removed: Vec::new(), signature })
}

/// Makes an entry available if its model works, and removes it if not. Returns what left for it.
///
/// # Errors
/// When it does not work.
pub fn try_out(
    store: &Store,
    key: &Key,
    rules: &Rules,
    options: engine::Options,
) -> Result<Vec<Entry>, InstallError> {
    let tested = test(store, key, rules, options).or_else(|error| {
        let options = error.fall_back(key, options).ok_or(error)?;
        test(store, key, rules, options)
    });
    if tested.is_err() {
        store.remove(key)?;
    }
    tested
}

/// Makes an entry available if its model works with `options`.
fn test(
    store: &Store,
    key: &Key,
    rules: &Rules,
    options: engine::Options,
) -> Result<Vec<Entry>, InstallError> {
    // What no version here can run is refused by its configuration, before the rest is read into memory for nothing.
    load::footprint::<InstallError>(store, key, options)?;
    let (manifest, model) = load::load_from::<InstallError>(store, key, options)?;
    load::self_test(&manifest, &model)?;
    let kept = rules.keeps(&store.entries());
    Ok(store.make_available(key, rules.quota, |entry| kept.contains(&entry.key))?)
}

/// Why a model was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No such model is installed.
    #[error("\"{0}\" is not installed")]
    Unknown(String),
    /// It came with the appliance.
    #[error("\"{0}\" came with the appliance and would be back at the next start")]
    Bundled(String),
    /// The store or the drop directory could not be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its file in the drop directory could not be removed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Removes `name` from the store, and all its files from the drop directory: it would come back otherwise.
///
/// # Errors
/// When there is no such model, it came with the appliance, or the disk fails.
pub fn remove(store: &Store, name: &str, rules: &Rules) -> Result<Entry, RemoveError> {
    let entries = store.entries();
    let entry = choose(&entries, name).ok_or_else(|| RemoveError::Unknown(name.to_owned()))?;
    match &entry.record.origin {
        Origin::Bundled { .. } => return Err(RemoveError::Bundled(name.to_owned())),
        Origin::Dropped { files } => {
            for file in files.keys() {
                drop::remove(&rules.drop_directory, file)?;
            }
        }
        Origin::Installed => {}
    }
    Ok(store.remove(&entry.key)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::errors::chain;
    use crate::package::{BoxError, Contents, Manifest, PackRequest, fixture, pack};
    use crate::units::Bytes;

    const OPTIONS: engine::Options =
        engine::Options { threads: 1, batch_tokens: 512, precision: engine::Precision::F32 };

    struct Place {
        root: TempDir,
        store: Store,
        rules: Rules,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (store, damaged) = Store::open(&root.path().join("store")).unwrap();
            assert!(damaged.is_empty());
            let mut rules = Rules::from(&Settings::default());
            rules.keys_directory = root.path().join("keys.d");
            rules.drop_directory = root.path().to_owned();
            Self { root, store, rules }
        }

        fn install(&self, package: &[u8], origin: Origin) -> Result<Installed, InstallError> {
            let sidecars = Sidecars::parse(Path::new("m"), None, None).unwrap();
            install(&self.store, package, &sidecars, origin, &self.rules, OPTIONS)
        }

        fn names(&self) -> Vec<String> {
            let entries = self.store.entries();
            let name = |entry: &Entry| format!("{}@{}", entry.manifest.id, entry.manifest.version);
            entries.iter().map(name).collect()
        }
    }

    /// The vector of the self-test, truly computed.
    fn computed(manifest: &Manifest, contents: &Contents) -> Result<Vec<f32>, BoxError> {
        let model = load::load(manifest, contents.clone(), OPTIONS)?;
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    }

    /// A package of a model that works, whose manifest promises what `vector` says.
    fn package(
        version: &str,
        vector: fn(&Manifest, &Contents) -> Result<Vec<f32>, BoxError>,
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
        let origin = serde_json::json!({ "bundled": { "file": "file", "fingerprint": "" } });
        serde_json::from_value(origin).unwrap()
    }

    fn dropped(file: &str) -> Origin {
        Origin::dropped(file.to_owned(), serde_json::from_value("".into()).unwrap())
    }

    #[test]
    fn a_package_whose_model_works_becomes_available_and_then_is_there_already() {
        let place = Place::new();
        let package = package("1", computed);
        let installed = place.install(&package, Origin::Installed).unwrap();
        assert!(!installed.existed && installed.removed.is_empty());
        assert_eq!(installed.signature, SignatureStatus::Absent);
        assert_eq!(installed.entry.record.status, Status::Available);
        assert_eq!(place.store.entries()[0].record.status, Status::Available);
        assert!(place.install(&package, Origin::Installed).unwrap().existed);
        assert_eq!(place.names(), ["tiny-bert-mean@1"]);
    }

    #[test]
    fn a_package_whose_model_does_not_work_is_not_in_the_store_and_nobody_left_for_it() {
        let mut place = Place::new();
        place.rules.quota.max_models = 1;
        place.rules.kept.clear();
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
        // The limits themselves would have let it in.
        let new = place.install(&package("2", computed), Origin::Installed).unwrap();
        let left: Vec<_> = new.removed.iter().map(|entry| entry.key.clone()).collect();
        assert_eq!(left, [old.key]);
        assert_eq!(place.names(), ["tiny-bert-mean@2"]);
    }

    #[test]
    fn the_default_and_the_preloaded_models_do_not_leave_to_make_room() {
        let mut place = Place::new();
        place.rules.quota.max_models = 1;
        place.rules.kept = vec!["tiny-bert-mean".to_owned()];
        place.install(&package("1", computed), Origin::Installed).unwrap();
        let error = place.install(&package("2", computed), Origin::Installed).unwrap_err();
        let full = matches!(error, InstallError::Store(StoreError::Full(_)));
        assert!(full, "{error:?}");
        assert_eq!(place.names(), ["tiny-bert-mean@1"]);
    }

    #[test]
    fn with_bundled_only_nothing_else_is_accepted() {
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
    fn a_bad_key_is_the_fault_of_the_key_and_not_of_the_package() {
        let place = Place::new();
        fs::create_dir(&place.rules.keys_directory).unwrap();
        fs::write(place.rules.keys_directory.join("site.pub"), "no key").unwrap();
        let error = place.install(&package("1", computed), Origin::Installed).unwrap_err();
        assert!(matches!(error, InstallError::Keys(_)), "{error:?}");
        assert!(chain(&error).contains("site.pub"));
        assert_eq!(place.names(), Vec::<String>::new());
    }

    #[test]
    fn removing_takes_the_dropped_files_too_and_never_a_bundled_model() {
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
    fn a_store_of_limited_size_counts_what_is_installed() {
        let mut place = Place::new();
        let package = package("1", computed);
        place.rules.quota.max_size = Bytes(1);
        let error = place.install(&package, Origin::Installed).unwrap_err();
        assert!(matches!(error, InstallError::Store(StoreError::Full(_))), "{error:?}");
        assert_eq!(place.names(), Vec::<String>::new());
    }
}
