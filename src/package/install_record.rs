//! The store's record of an installed model, and the choice of models to remove when the store is
//! full.
//!
//! Does no I/O. Times are passed in as arguments, except in [`Timestamp::now`].

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::listing::{FileFingerprint, is_dropped_file, is_package_name};
use super::signer::Signer;
use super::unpack::UnpackedPackage;
use crate::base::units::Bytes;

/// Seconds since 1970, as written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the current time in seconds; zero if the clock of the device is set before 1970.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs())
    }
}

/// Source of an installed model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A package that came with the appliance.
    Bundled {
        /// File name in the bundled directory.
        #[serde(deserialize_with = "package_name")]
        file: String,
        /// Fingerprint of the file when it was read.
        fingerprint: FileFingerprint,
    },
    /// One or several files of the drop directory with the same content.
    Dropped {
        /// File names in the drop directory, or absolute paths of files in further drop
        /// directories, with the fingerprint of each file when it was read. Never empty.
        #[serde(deserialize_with = "dropped_files")]
        files: BTreeMap<String, FileFingerprint>,
    },
    /// A package that an administrator installed.
    Installed,
}

/// Deserializes and checks the name of a package file.
///
/// A record lies in the daemon's directory, but other code acts on the names in it: `model remove`
/// deletes the files. A name must therefore not contain a path. Caxton deletes
/// nothing in a further drop directory, so a path of one does no harm.
fn package_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name, is_package_name).map_err(D::Error::custom)?;
    Ok(name)
}

/// Deserializes and checks the names or paths of dropped packages, at least one: see
/// [`package_name`].
fn dropped_files<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, FileFingerprint>, D::Error> {
    let names: BTreeMap<String, FileFingerprint> = BTreeMap::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(D::Error::custom("an origin must have at least one file"));
    }
    let check = |name: &String| check_name(name, is_dropped_file);
    names.keys().try_for_each(check).map_err(D::Error::custom)?;
    Ok(names)
}

fn check_name(name: &str, is_valid: fn(&str) -> bool) -> Result<(), String> {
    match is_valid(name) {
        true => Ok(()),
        false => Err(format!("{name:?} is not the name of a package file")),
    }
}

impl Origin {
    /// Returns whether the package came with the appliance.
    pub fn is_bundled(&self) -> bool {
        matches!(self, Self::Bundled { .. })
    }

    /// Returns the origin of one file of the drop directory, with its fingerprint when it was read.
    pub fn dropped(file: String, fingerprint: FileFingerprint) -> Self {
        Self::Dropped { files: BTreeMap::from([(file, fingerprint)]) }
    }

    /// Merges two origins of the same package.
    ///
    /// - `Bundled` wins over the other kinds, so that a bundled model stays when a copy of it is
    ///   dropped and then deleted.
    /// - Two `Dropped` origins are merged: all files are remembered.
    /// - Otherwise `other`, the later origin, replaces `self`.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (bundled @ Self::Bundled { .. }, other) if !other.is_bundled() => bundled,
            (Self::Dropped { mut files }, Self::Dropped { files: others }) => {
                files.extend(others);
                Self::Dropped { files }
            }
            (_, other) => other,
        }
    }
}

/// Status of an installed model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InstallStatus {
    /// The bytes are verified; the self-test has not passed yet.
    Untested,
    /// The model can be used.
    Available,
    /// The files differ from the installed ones. The text names the file and the difference.
    Corrupt(String),
    /// The self-test must not run again; the text gives the reason. The entry stays until an
    /// administrator removes it or installs its package again.
    Quarantined(String),
}

impl InstallStatus {
    /// Returns whether the files differ from the installed ones.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt(_))
    }

    /// Returns whether the self-test has passed once. Requests can only name such entries.
    pub fn is_tested(&self) -> bool {
        match self {
            Self::Available | Self::Corrupt(_) => true,
            Self::Untested | Self::Quarantined(_) => false,
        }
    }
}

/// Number of self-tests that may begin without finishing before the entry is quarantined. More than
/// one, because a power failure can interrupt a test.
const MAX_ATTEMPTS: u32 = 2;

/// State that the store keeps for an installed model, in addition to its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallRecord {
    /// Digest of the package file from which the model was installed.
    pub package_digest: Digest,
    /// Digest of the manifest, which contains the digests of all files.
    pub manifest_digest: Digest,
    /// Source of the model.
    pub origin: Origin,
    /// Status of the model.
    pub status: InstallStatus,
    /// Time of the installation.
    pub installed_at: Timestamp,
    /// Time at which the files were last verified.
    pub last_validated_at: Timestamp,
    /// Number of requests that have used the model.
    pub access_count: u64,
    /// Time at which a request last used the model.
    pub last_access_at: Option<Timestamp>,
    /// Time at which a rollback made the id resolve to this version, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_at: Option<Timestamp>,
    /// Whether the id must not resolve to this version until an administrator approves it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub awaits_approval: bool,
    /// Signer of the package, if keys were configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// Number of self-tests that began without finishing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// fs-verity digests by file name, for files that the kernel checks: see
    /// [`verity`](super::verity).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verity: BTreeMap<String, String>,
}

fn is_zero(attempts: &u32) -> bool {
    *attempts == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl InstallRecord {
    /// Returns the time of the last use, or of the installation if the model was never used.
    pub(super) fn last_use(&self) -> Timestamp {
        self.last_access_at.unwrap_or(self.installed_at)
    }

    /// Returns whether the self-test must not begin again.
    pub fn is_given_up(&self) -> bool {
        self.status == InstallStatus::Untested && self.attempts >= MAX_ATTEMPTS
    }

    /// Creates the record of an entry that is installed at `now` and has not been tested.
    ///
    /// `corrupt` is the record of a corrupt or unreadable entry with the same content that this
    /// entry replaces. The repair is not a new installation: the entry keeps the old times of
    /// installation and rollback, and waits for approval if the old one did. If the old entry has
    /// passed its self-test, the new one is available without another test.
    pub(super) fn untested(
        unpacked: &UnpackedPackage,
        origin: Origin,
        signer: Option<Signer>,
        now: Timestamp,
        corrupt: Option<&Self>,
    ) -> Self {
        let was_tested = |old: &&Self| {
            matches!(old.status, InstallStatus::Available | InstallStatus::Corrupt(_))
        };
        Self {
            package_digest: unpacked.package_digest,
            manifest_digest: unpacked.manifest_digest,
            origin: match corrupt {
                // A dropped file may repair the entry, but the entry still belongs to the
                // administrator.
                Some(old) if old.origin == Origin::Installed => Origin::Installed,
                Some(old) => old.origin.clone().merge(origin),
                None => origin,
            },
            status: corrupt
                .filter(was_tested)
                .map_or(InstallStatus::Untested, |_| InstallStatus::Available),
            installed_at: corrupt.map_or(now, |corrupt| corrupt.installed_at),
            last_validated_at: now,
            access_count: 0,
            last_access_at: None,
            chosen_at: corrupt.and_then(|corrupt| corrupt.chosen_at),
            awaits_approval: corrupt.is_some_and(|corrupt| corrupt.awaits_approval),
            attempts: 0,
            signer: signer.or_else(|| corrupt.and_then(|corrupt| corrupt.signer.clone())),
            verity: BTreeMap::new(),
        }
    }
}

/// Policy that selects the models to remove when the store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupRule {
    /// Removes the model whose last use, or installation if it was never used, is the oldest.
    Lru,
    /// Removes the model that was installed first.
    Fifo,
    /// Removes no model; the installation fails.
    Manual,
}

/// Limits of the store. Bundled models do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Maximum total size of all files.
    pub max_size: Bytes,
    /// Maximum number of models.
    pub max_models: usize,
    /// Policy that selects the models to remove.
    pub cleanup: CleanupRule,
}

/// Installed model, as [`select_removals`] sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemovalCandidate<'a, K> {
    /// Identifier that the caller uses for the model.
    pub(super) key: K,
    /// Total size of the model's files in bytes.
    pub(super) size: u64,
    /// Record of the model.
    pub(super) record: &'a InstallRecord,
    /// Whether the model must not be removed.
    pub(super) kept: bool,
}

/// Error of a full store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store is full: it has {models} models with {size}, and another model with {incoming} \
     would exceed the limits of {max_models} models and {max_size}; remove models with `caxton \
     model remove`, or raise memory.model_cache.max_models and max_size_gb"
)]
pub struct StoreFull {
    models: usize,
    size: Bytes,
    incoming: Bytes,
    max_models: usize,
    max_size: Bytes,
}

/// Selects the models to remove so that one of `incoming` bytes fits; returns them in order of
/// removal.
///
/// # Errors
/// When the quota is exceeded even without all removable models.
pub(super) fn select_removals<K: Copy>(
    occupants: &[RemovalCandidate<'_, K>],
    incoming: u64,
    quota: Quota,
) -> Result<Vec<K>, StoreFull> {
    let (leaving, fits) = select(occupants, Some(incoming), quota);
    if fits {
        return Ok(leaving);
    }
    let counted = counted(occupants);
    Err(StoreFull {
        models: counted.clone().count(),
        size: Bytes(counted.map(|occupant| occupant.size).sum()),
        incoming: Bytes(incoming),
        max_models: quota.max_models,
        max_size: quota.max_size,
    })
}

/// Selects the models to remove because the quota was lowered; returns them in order of removal.
/// Selects all removable models if the quota is exceeded even without them.
pub(super) fn select_excess<K: Copy>(
    occupants: &[RemovalCandidate<'_, K>],
    quota: Quota,
) -> Vec<K> {
    select(occupants, None, quota).0
}

/// Returns the occupants that the quota counts.
fn counted<'a, 'r, K>(
    occupants: &'a [RemovalCandidate<'r, K>],
) -> impl Iterator<Item = &'a RemovalCandidate<'r, K>> + Clone {
    occupants.iter().filter(|occupant| !occupant.record.origin.is_bundled())
}

/// Selects the models to remove so that the quota is kept, with one more model of `incoming` bytes
/// if there is one. Returns them in order of removal, and whether the quota is kept without them.
fn select<K: Copy>(
    occupants: &[RemovalCandidate<'_, K>],
    incoming: Option<u64>,
    quota: Quota,
) -> (Vec<K>, bool) {
    let mut candidates: Vec<_> = match quota.cleanup {
        CleanupRule::Manual => Vec::new(),
        _ => counted(occupants).filter(|occupant| !occupant.kept).collect(),
    };
    // Of models that were last used in the same second, the larger one leaves first: then fewer
    // models have to leave.
    candidates.sort_by_key(|occupant| match quota.cleanup {
        CleanupRule::Lru => (occupant.record.last_use(), Reverse(occupant.size)),
        _ => (occupant.record.installed_at, Reverse(0)),
    });
    let mut models = counted(occupants).count() + usize::from(incoming.is_some());
    let mut size: u64 = counted(occupants).map(|occupant| occupant.size).sum();
    let mut leaving = Vec::new();
    let mut candidates = candidates.into_iter();
    while models > quota.max_models || size.saturating_add(incoming.unwrap_or(0)) > quota.max_size.0
    {
        let Some(victim) = candidates.next() else { return (leaving, false) };
        models -= 1;
        size -= victim.size;
        leaving.push(victim.key);
    }
    (leaving, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(installed_at: u64, last_access_at: Option<u64>) -> InstallRecord {
        InstallRecord {
            package_digest: Digest::of(b""),
            manifest_digest: Digest::of(b""),
            origin: Origin::Installed,
            status: InstallStatus::Available,
            installed_at: Timestamp(installed_at),
            last_validated_at: Timestamp(installed_at),
            access_count: 0,
            last_access_at: last_access_at.map(Timestamp),
            chosen_at: None,
            awaits_approval: false,
            attempts: 0,
            signer: None,
            verity: BTreeMap::new(),
        }
    }

    fn bundled_origin() -> Origin {
        let fingerprint = serde_json::from_str("\"\"").unwrap();
        Origin::Bundled { file: String::new(), fingerprint }
    }

    #[test]
    fn record_accepts_only_package_file_names() {
        let read = |origin: serde_json::Value| {
            let mut json = serde_json::to_value(record(1, None)).unwrap();
            json["origin"] = origin;
            serde_json::from_value::<InstallRecord>(json)
        };
        let bundled =
            |name: &str| serde_json::json!({"bundled": {"file": name, "fingerprint": ""}});
        let dropped = |name: &str| serde_json::json!({"dropped": {"files": {name: ""}}});
        for good in [
            bundled("a.model.tar.zst"),
            dropped("b.model.tar.zst"),
            dropped("/media/stick/b.model.tar.zst"),
        ] {
            assert_eq!(serde_json::to_value(read(good.clone()).unwrap().origin).unwrap(), good);
        }
        for name in [
            "/etc",
            "/etc/../a.model.tar.zst",
            "../a.model.tar.zst",
            "",
            ".",
            "a",
            "a\n.model.tar.zst",
        ] {
            for origin in [bundled(name), dropped(name)] {
                let error = read(origin).unwrap_err().to_string();
                assert!(error.contains("is not the name of a package file"), "{name:?}: {error}");
                assert!(!error.contains(char::is_control), "{error:?}");
            }
        }
        let error = read(bundled("/etc/a.model.tar.zst")).unwrap_err().to_string();
        assert!(error.contains("is not the name of a package file"), "{error}");
        let none = read(serde_json::json!({"dropped": {"files": {}}})).unwrap_err();
        assert!(none.to_string().contains("at least one file"), "{none}");
    }

    #[test]
    fn attempts_default_to_zero_and_two_give_up() {
        let old = serde_json::to_value(record(1, None)).unwrap();
        assert!(old.get("attempts").is_none() && old.get("awaits_approval").is_none(), "{old}");
        let mut record: InstallRecord = serde_json::from_value(old).unwrap();
        assert_eq!((record.attempts, record.awaits_approval), (0, false));
        for (status, attempts, given_up) in [
            (InstallStatus::Untested, 0, false),
            (InstallStatus::Untested, 1, false),
            (InstallStatus::Untested, 2, true),
            (InstallStatus::Untested, 3, true),
            (InstallStatus::Available, 2, false),
        ] {
            (record.status, record.attempts) = (status, attempts);
            let json = serde_json::to_vec(&record).unwrap();
            let read: InstallRecord = serde_json::from_slice(&json).unwrap();
            assert_eq!((read.is_given_up(), &read), (given_up, &record));
        }
    }

    #[test]
    fn cleanup_policy_selects_victims() {
        // The model that was installed first was used last, and vice versa.
        let records = [record(1, Some(9)), record(2, Some(5)), record(3, None)];
        let occupants = || {
            Vec::from_iter(records.iter().enumerate().map(|(key, record)| RemovalCandidate {
                key,
                size: 10,
                record,
                kept: false,
            }))
        };
        let quota = |max_models, cleanup| Quota { max_size: Bytes(100), max_models, cleanup };
        let leaving = |quota| select_removals(&occupants(), 10, quota);
        assert_eq!(leaving(quota(4, CleanupRule::Manual)), Ok(vec![]));
        assert_eq!(leaving(quota(3, CleanupRule::Lru)), Ok(vec![2]));
        assert_eq!(leaving(quota(2, CleanupRule::Lru)), Ok(vec![2, 1]));
        assert_eq!(leaving(quota(3, CleanupRule::Fifo)), Ok(vec![0]));
        assert!(leaving(quota(3, CleanupRule::Manual)).is_err());
        let small = Quota { max_size: Bytes(25), max_models: 9, cleanup: CleanupRule::Fifo };
        assert_eq!(leaving(small), Ok(vec![0, 1]));
        // Without an incoming model, one more model may stay.
        let excess = |quota| select_excess(&occupants(), quota);
        assert_eq!(excess(quota(3, CleanupRule::Lru)), Vec::<usize>::new());
        assert_eq!(excess(quota(2, CleanupRule::Lru)), [2]);
        assert_eq!(excess(small), [0]);
        assert_eq!(excess(quota(1, CleanupRule::Manual)), Vec::<usize>::new());
    }

    #[test]
    fn larger_of_equally_old_models_leaves_first() {
        let records = [record(1, Some(5)), record(2, Some(5)), record(3, Some(4))];
        let sizes = [10, 20, 1];
        let occupants =
            Vec::from_iter(
                records.iter().zip(sizes).enumerate().map(|(key, (record, size))| {
                    RemovalCandidate { key, size, record, kept: false }
                }),
            );
        let quota = Quota { max_size: Bytes(15), max_models: 9, cleanup: CleanupRule::Lru };
        assert_eq!(select_removals(&occupants, 1, quota), Ok(vec![2, 1]));
        assert_eq!(select_removals(&occupants, 5, quota), Ok(vec![2, 1]));
    }

    #[test]
    fn lowered_quota_spares_protected_models() {
        let records = [record(1, None), record(2, None), record(3, None)];
        let occupants =
            Vec::from_iter(records.iter().enumerate().map(|(key, record)| RemovalCandidate {
                key,
                size: 10,
                record,
                kept: key == 0,
            }));
        let quota = Quota { max_size: Bytes(5), max_models: 9, cleanup: CleanupRule::Lru };
        // The protected model alone exceeds the quota; the others leave nevertheless.
        assert_eq!(select_excess(&occupants, quota), [1, 2]);
    }

    proptest! {
        #[test]
        fn cleanup_frees_enough_and_spares_protected_models(
            models in prop::collection::vec((0_u64..50, any::<bool>(), any::<bool>()), 0..12),
            incoming in 0_u64..60,
            max_size in 0_u64..200,
            max_models in 1_usize..8,
        ) {
            let records: Vec<_> = models.iter().enumerate().map(|(at, (_, _, bundled))| InstallRecord {
                origin: if *bundled { bundled_origin() } else { Origin::Installed },
                ..record(at as u64, None)
            }).collect();
            let occupants: Vec<_> = models.iter().zip(&records).enumerate().map(
                |(key, ((size, kept, _), record))| RemovalCandidate { key, size: *size, record, kept: *kept }
            ).collect();
            let quota = Quota { max_size: Bytes(max_size), max_models, cleanup: CleanupRule::Lru };
            if let Ok(leaving) = select_removals(&occupants, incoming, quota) {
                let mut size = incoming;
                let mut count = 1;
                for occupant in &occupants {
                    let bundled = occupant.record.origin.is_bundled();
                    if leaving.contains(&occupant.key) {
                        prop_assert!(!occupant.kept && !bundled);
                    } else if !bundled {
                        size += occupant.size;
                        count += 1;
                    }
                }
                prop_assert!(size <= max_size && count <= max_models);
            }
        }
    }
}
