//! Trust in the store: the disabled entries, and the highest version of each id that was installed
//! with a signature.
//!
//! The versions are in `<directory>/versions.json`:
//! `{"format":1,"highest":{"<id>":{"<key>":"<version>"}}}`, where `<key>` is the fingerprint of a
//! key. The file is written before an entry becomes available, so that no crash permits a
//! downgrade.
//!
//! Only versions signed by configured keys count. A thief of a key that was removed could have
//! signed any number, and no genuine package would be new enough.
//!
//! An unreadable file is moved aside. Only the versions of removed packages are lost then: those of
//! installed packages are in their records.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::disabled_reason::DisabledReason;
use super::super::entry::{StoreEntry, compare_natural};
use super::super::install_record::{InstallStatus, Origin};
use super::super::manifest::{ModelId, Version};
use super::super::signature::TrustedKeys;
use super::super::signer::Signer;
use super::super::trust::TrustInput;
use super::super::unpack::Durability;
use super::{Store, StoreError};
use crate::base::errors::chain;
use crate::files::{self, FileError};

const FILE: &str = "versions.json";
/// Only format that this version reads and writes.
const FORMAT: u32 = 1;
/// Maximum number of stored versions. A package that needs one more is refused, because dropping a
/// version would permit a downgrade.
const MAX_VERSIONS: usize = 4096;
/// Maximum size of the file: above the size of [`MAX_VERSIONS`] versions, with 96 characters for an
/// id and for a version, and 64 for a key.
const MAX_SIZE: u64 = 2 << 20;

/// The highest version of each id that each key has signed.
pub(super) type HighestVersions = BTreeMap<ModelId, BTreeMap<Digest, Version>>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    highest: HighestVersions,
}

/// Entries that a change of the keys disabled or enabled.
#[derive(Debug, Default)]
pub struct TrustChange {
    /// Entries that may not be used any more.
    pub disabled: Vec<StoreEntry>,
    /// Entries that may be used again.
    pub enabled: Vec<StoreEntry>,
}

/// Reads the versions in the store's `directory`. The second value describes a file that cannot be
/// used.
pub(super) fn read(directory: &Path) -> (HighestVersions, Option<String>) {
    let path = directory.join(FILE);
    let bytes = match files::read_limited(&path, MAX_SIZE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Default::default(),
        Err(error) => return (HighestVersions::new(), Some(chain(&error))),
    };
    let reason = match serde_json::from_slice(&bytes) {
        Ok(Contents { format: FORMAT, highest }) => return (highest, None),
        Ok(Contents { format, .. }) => format!("the file has format {format}, expected {FORMAT}"),
        Err(error) => error.to_string(),
    };
    let aside = path.with_added_extension("unreadable");
    let moved = match std::fs::rename(&path, &aside) {
        Ok(()) => format!("it was moved to {}", aside.display()),
        Err(error) => format!("it cannot be moved: {error}"),
    };
    (HighestVersions::new(), Some(format!("{}: {reason}; {moved}", path.display())))
}

impl Store {
    /// Decides for every entry whether `trusted` permits its use. Returns the entries for which
    /// that changed. Does not block on the disk.
    pub fn apply_trust(&self, trusted: &TrustInput) -> TrustChange {
        let mut judged = self.trusted();
        *judged = Some(trusted.clone());
        let mut changed = TrustChange::default();
        let mut index = self.index();
        for entry in &index.clone() {
            let disabled = trusted.disables(entry);
            if disabled == entry.disabled {
                continue;
            }
            let judged = index.update(&entry.key, |entry| entry.disabled = disabled);
            let Some(judged) = judged else { continue };
            match (&entry.disabled, &judged.disabled) {
                (None, Some(_)) => changed.disabled.push(judged.clone()),
                (Some(_), None) => changed.enabled.push(judged.clone()),
                _ => {}
            }
        }
        changed
    }

    /// Returns whether keys were configured at the last call of [`Store::apply_trust`].
    pub fn wants_signatures(&self) -> bool {
        self.trusted().as_ref().is_some_and(TrustInput::wants_signatures)
    }

    /// Adds an entry that was found later to the index, unless it is there already. Judges it by
    /// the same trust as the last [`Store::apply_trust`]. The caller holds `writing`.
    pub(super) fn insert_entry(&self, mut entry: StoreEntry) {
        let judged = self.trusted();
        entry.disabled = judged.as_ref().and_then(|trusted| trusted.disables(&entry));
        let mut index = self.index();
        if index.get(&entry.key).is_none() {
            index.insert(entry);
        }
    }

    fn trusted(&self) -> MutexGuard<'_, Option<TrustInput>> {
        // A panic while the lock is held leaves the old value or the new one.
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the highest version of `id` that was installed with a signature by one of `keys`.
    /// The package of this version may have been removed since.
    pub fn highest_signed(&self, id: &ModelId, keys: &TrustedKeys) -> Option<Version> {
        let remembered = self.highest().get(id).cloned().unwrap_or_default();
        let entries = self.entries();
        let tested = entries
            .iter()
            .filter(|entry| entry.manifest.id == *id && entry.record.status.is_tested());
        let signed = tested.filter_map(|entry| {
            let signer = entry.record.signer.as_ref()?;
            Some((signer.fingerprint, entry.manifest.version.clone()))
        });
        let versions = remembered.into_iter().chain(signed);
        let versions = versions.filter(|(key, _)| keys.contains(*key)).map(|(_, version)| version);
        versions.max_by(|a, b| compare_natural(a.as_str(), b.as_str()))
    }

    /// Stores the version of a signed entry, if it is the highest. The caller holds `writing`.
    ///
    /// # Errors
    /// When the file cannot be written or is full; the stored versions stay.
    pub(super) fn remember_version(&self, entry: &StoreEntry) -> Result<(), StoreError> {
        let Some(signer) = &entry.record.signer else { return Ok(()) };
        let (id, version) = (&entry.manifest.id, &entry.manifest.version);
        let mut highest = self.highest().clone();
        let of_id = highest.entry(id.clone()).or_default();
        let known = of_id.get(&signer.fingerprint);
        if known.is_some_and(|known| compare_natural(known.as_str(), version.as_str()).is_ge()) {
            return Ok(());
        }
        of_id.insert(signer.fingerprint, version.clone());
        if highest.values().map(BTreeMap::len).sum::<usize>() > MAX_VERSIONS {
            return Err(StoreError::TooManyVersions(self.versions_file()));
        }
        let contents = Contents { format: FORMAT, highest };
        self.write_versions(&contents)?;
        *self.highest() = contents.highest;
        Ok(())
    }

    /// Updates an intact entry whose package was given once more, from `origin`. Enables an entry
    /// for which a signature or the bundled directory vouches. The caller holds `writing`.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn update_origin(
        &self,
        mut entry: StoreEntry,
        origin: Origin,
        signer: Option<Signer>,
    ) -> Result<StoreEntry, StoreError> {
        let vouched = signer.is_some() || origin.is_bundled();
        let origin = entry.record.origin.clone().merge(origin);
        let signer = signer.or_else(|| entry.record.signer.clone());
        if (&entry.record.origin, &entry.record.signer) != (&origin, &signer) {
            entry = self.change(&entry.key, |record| {
                record.origin = origin;
                record.signer = signer;
            })?;
        }
        if entry.record.status == InstallStatus::Available {
            self.remember_version(&entry)?;
        }
        entry.disabled = after_vouching(entry.disabled, vouched);
        self.index().update(&entry.key, |indexed| indexed.disabled.clone_from(&entry.disabled));
        Ok(entry)
    }

    fn write_versions(&self, contents: &Contents) -> Result<(), FileError> {
        if self.durability == Durability::Volatile {
            return Ok(());
        }
        let path = self.versions_file();
        let json = serde_json::to_vec(contents)
            .map_err(|error| FileError::new("write", &path)(error.into()))?;
        files::write_atomic(&path, &json)?;
        files::change_owner(&path, &self.directory)
    }

    fn versions_file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn highest(&self) -> MutexGuard<'_, HighestVersions> {
        // A panic while the lock is held leaves the map whole, because it is replaced in one step.
        self.highest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns `disabled`, or `None` if the entry was vouched for again.
pub(super) fn after_vouching(
    disabled: Option<DisabledReason>,
    vouched: bool,
) -> Option<DisabledReason> {
    disabled.filter(|_| !vouched)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minisign::KeyPair;
    use tempfile::TempDir;

    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::package;
    use crate::package::install_record::{CleanupRule, Quota};
    use crate::package::{EntryKey, SignatureStatus, UnpackLimits};

    const QUOTA: Quota =
        Quota { max_size: Bytes::mib(64), max_models: 9, cleanup: CleanupRule::Manual };

    struct Place {
        root: TempDir,
        keys: TrustedKeys,
        signer: Signer,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let pair = KeyPair::generate_unencrypted_keypair().unwrap();
            fs::create_dir(root.path().join("keys.d")).unwrap();
            let text = pair.pk.to_box().unwrap().into_string();
            fs::write(root.path().join("keys.d/a.pub"), text).unwrap();
            let keys = TrustedKeys::load(&root.path().join("keys.d")).unwrap();
            let number = u64::from_le_bytes(pair.pk.keynum().try_into().unwrap());
            let status = SignatureStatus::Valid(format!("{number:016X}").try_into().unwrap());
            let signer = keys.signer(status, &"m".parse().unwrap()).unwrap().unwrap();
            Self { root, keys, signer }
        }

        fn store(&self) -> (Store, Vec<String>) {
            Store::open(&self.root.path().join("store")).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.root.path().join("store").join(FILE)
        }
    }

    fn admit(store: &Store, version: &str, signer: Option<Signer>) -> EntryKey {
        let limits = UnpackLimits::for_size(Bytes::mib(8));
        let staged = store.stage(&package("m", version)[..], &limits).unwrap().signed_by(signer);
        store.install(staged, Origin::Installed, QUOTA, |_| false).unwrap().entry.key
    }

    fn install(store: &Store, version: &str, signer: Option<Signer>) -> EntryKey {
        let key = admit(store, version, signer);
        store.activate(&key, QUOTA, |_| false).unwrap();
        key
    }

    fn highest(store: &Store, keys: &TrustedKeys) -> Option<String> {
        let highest = store.highest_signed(&"m".parse().unwrap(), keys);
        highest.map(|version| version.as_str().to_owned())
    }

    #[test]
    fn highest_signed_version_survives_package_but_not_key() {
        let place = Place::new();
        let (store, _) = place.store();
        install(&store, "3", None);
        assert_eq!(highest(&store, &place.keys), None);
        let untested = admit(&store, "4", Some(place.signer.clone()));
        assert_eq!(highest(&store, &place.keys), None);
        store.remove(&untested).unwrap();
        let newer = install(&store, "1.10", Some(place.signer.clone()));
        install(&store, "1.9", Some(place.signer.clone()));
        store.remove(&newer).unwrap();
        assert_eq!(highest(&store, &place.keys), Some("1.10".to_owned()));
        drop(store);
        let (store, damaged) = place.store();
        assert_eq!(damaged, Vec::<String>::new());
        assert_eq!(highest(&store, &place.keys), Some("1.10".to_owned()));
        assert_eq!(highest(&store, &TrustedKeys::default()), None);
        // The signature comes with a later copy of the installed package.
        let vouched = admit(&store, "3", Some(place.signer.clone()));
        assert_eq!(highest(&store, &place.keys), Some("3".to_owned()));
        store.remove(&vouched).unwrap();
        assert_eq!(highest(&store, &place.keys), Some("3".to_owned()));
    }

    #[test]
    fn damaged_version_file_does_not_block_opening() {
        for bad in ["", "{}", r#"{"format":2,"highest":{}}"#, r#"{"format":1,"highest":{"m":1}}"#] {
            let place = Place::new();
            let (store, _) = place.store();
            install(&store, "2", Some(place.signer.clone()));
            assert!(place.file().exists());
            drop(store);
            fs::write(place.file(), bad).unwrap();
            let (store, damaged) = place.store();
            assert!(damaged.len() == 1 && damaged[0].contains(FILE), "{damaged:?}");
            // The version of an installed package is in its record.
            assert_eq!(highest(&store, &place.keys), Some("2".to_owned()));
            install(&store, "3", Some(place.signer.clone()));
            drop(store);
            assert_eq!(place.store().1, Vec::<String>::new());
        }
    }

    #[test]
    fn remembered_versions_are_bounded() {
        let place = Place::new();
        let (store, _) = place.store();
        let ids = (0..MAX_VERSIONS).map(|number| format!("m{number}").parse().unwrap());
        let of_one = BTreeMap::from([(place.signer.fingerprint, "1".parse().unwrap())]);
        *store.highest() = ids.map(|id| (id, of_one.clone())).collect();
        let key = admit(&store, "1", Some(place.signer.clone()));
        let full = store.activate(&key, QUOTA, |_| false).unwrap_err();
        assert!(matches!(full, StoreError::TooManyVersions(_)), "{full}");
        // The longest ids and versions fit into the largest file that is read.
        let long = |number: usize| format!("{number:a>96}").parse().unwrap();
        let version: Version = "v".repeat(96).parse().unwrap();
        let of_one = BTreeMap::from([(place.signer.fingerprint, version)]);
        let highest = (0..MAX_VERSIONS).map(|number| (long(number), of_one.clone())).collect();
        let json = serde_json::to_vec(&Contents { format: FORMAT, highest }).unwrap();
        assert!((json.len() as u64) < MAX_SIZE, "{}", json.len());
    }

    #[test]
    fn trusted_keys_decide_which_entries_are_usable() {
        let place = Place::new();
        let (store, _) = place.store();
        let key = install(&store, "1", Some(place.signer.clone()));
        let nowhere = place.root.path().join("bundled");
        let judge = |keys: &str| {
            let (trusted, _) = TrustInput::read(&place.root.path().join(keys), &nowhere).unwrap();
            store.apply_trust(&trusted)
        };
        let changed = judge("keys.d");
        assert!(changed.disabled.is_empty() && changed.enabled.is_empty());
        assert!(store.wants_signatures());
        let changed = judge("none");
        assert_eq!(changed.disabled.len(), 1);
        assert!(!store.entries()[0].is_usable() && !store.wants_signatures());
        assert!(store.entries().resolve("m").is_none());
        assert!(judge("none").disabled.is_empty(), "said once");
        // The same package without a signature does not enable the entry, a signed one does.
        admit(&store, "1", None);
        assert!(!store.entries()[0].is_usable());
        admit(&store, "1", Some(place.signer.clone()));
        assert!(store.entries()[0].is_usable());
        judge("none");
        assert_eq!(judge("keys.d").enabled[0].key, key);
    }
}
