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
mod progress;
mod upkeep;
mod validation;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use driver::{InstallDriver, MeasuredModel};
pub use installer::Installer;
pub use progress::InstallProgress;
pub(in crate::models::ingest) use upkeep::version_change;
pub use validation::Validation;

use crate::config::{CleanupPolicy, Settings, UpdatePolicy};
use crate::engine;
use crate::files::FileError;
use crate::models::ModelError;
use crate::models::catalog;
use crate::models::residency::load::{self, LoadError};
use crate::package::{
    CleanupRule, Consent, Entries, EntryKey, IdClaim, Origin, PackageBytes, PackageHeader, Quota,
    RemovedModel, ReservedIds, Sidecars, SignatureError, SignatureStatus, Staged, Store,
    StoreEntry, StoreError, StoreInstall, Timestamp, TrustError, TrustedKeys, UnpackError,
    UnpackLimits, check_claim, drop_dir,
};
use crate::telemetry::metrics::{FailureType, InstallLabel};

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
    /// Further drop directories. Nothing is written there.
    pub more_directories: Vec<PathBuf>,
    /// Limits of one package.
    pub limits: UnpackLimits,
    /// Limits of the store.
    pub quota: Quota,
    /// Time without a use after which a model is removed from the store; `None` means never.
    pub unused_for: Option<Duration>,
    /// Names of the models that are not removed from the store to make space.
    pub protected: Vec<String>,
    /// Whether a higher version of an installed id waits for the approval of an administrator.
    pub holds_updates: bool,
    /// Whether only bundled packages are accepted.
    pub bundled_only: bool,
    /// Permissions that an administrator has given.
    pub consent: Consent,
}

impl From<&Settings> for InstallRules {
    fn from(settings: &Settings) -> Self {
        let cache = &settings.memory.model_cache;
        let mut kept = settings.memory.preload_models.clone();
        kept.extend(settings.memory.fallback_models.iter().cloned());
        let needed = settings.models.iter().filter(|(_, model)| model.pinned || model.preload);
        kept.extend(needed.map(|(name, _)| name.clone()));
        kept.extend(catalog::implicit_models(settings));
        Self {
            keys_directory: settings.packages.keys_directory.clone(),
            bundled_directory: settings.packages.bundled_directory.clone(),
            drop_directory: settings.packages.drop_directory.clone(),
            more_directories: further_directories(settings),
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
            unused_for: cache.unused_for,
            protected: kept,
            holds_updates: settings.packages.updates == UpdatePolicy::Manual,
            bundled_only: cache.bundled_only,
            consent: Consent {
                replace: settings.packages.replace_embedding_space,
                allow_downgrade: false,
            },
        }
    }
}

/// Returns the paths of the further drop directories, in the form in which records hold them.
pub fn further_directories(settings: &Settings) -> Vec<PathBuf> {
    let more = settings.packages.more_directories.iter();
    more.map(|directory| directory.path.components().collect()).collect()
}

impl InstallRules {
    /// Returns whether `file` exists in a further drop directory. Blocks.
    fn is_further(&self, file: &Path) -> bool {
        let directory = file.parent().unwrap_or(file);
        self.more_directories.iter().any(|further| further == directory)
            && file.symlink_metadata().is_ok()
    }

    /// Returns these rules with the additional permissions of one installation.
    #[must_use]
    pub fn with(mut self, consent: Consent) -> Self {
        self.consent.replace |= consent.replace;
        self.consent.allow_downgrade |= consent.allow_downgrade;
        self
    }

    /// Returns the keys of the `entries` that are not removed from the store to make space: for
    /// each kept name, the entry that it resolves to, the one that a rollback would select, and the
    /// one that an approval would select.
    fn protected_keys(&self, entries: &Entries) -> Vec<EntryKey> {
        let kept = self.protected.iter().flat_map(|name| {
            [entries.resolve(name), entries.previous_version(name), entries.waiting(name)]
        });
        kept.flatten().map(|entry| entry.key.clone()).collect()
    }

    /// Removes the models that exceed the limits of `store`, and those that were not used for a
    /// long time. See [`Store::clean_up`]. Blocks.
    pub fn clean_up(&self, store: &Store) -> Vec<RemovedModel> {
        let kept = self.protected_keys(&store.entries());
        let keep = |entry: &StoreEntry| kept.contains(&entry.key);
        store.clean_up(self.quota, self.unused_for, keep, Timestamp::now())
    }

    /// Returns whether [`InstallRules::clean_up`] would remove a model. Does not block.
    pub fn needs_clean_up(&self, store: &Store) -> bool {
        let kept = self.protected_keys(&store.entries());
        let keep = |entry: &StoreEntry| kept.contains(&entry.key);
        store.needs_clean_up(self.quota, self.unused_for, keep, Timestamp::now())
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

    /// Returns the label under which a failed installation is counted.
    pub(super) fn label(&self) -> InstallLabel {
        match self {
            Self::InstallationPanicked => InstallLabel::Failed,
            Self::Unpack(UnpackError::Truncated { .. })
            | Self::Signature(SignatureError::Missing | SignatureError::Changed) => {
                InstallLabel::Incomplete
            }
            Self::BundledOnly => InstallLabel::KeptOut,
            Self::Stopping => InstallLabel::Stopping,
            Self::NotReserved(_) | Self::NoMemory(_) => InstallLabel::Memory,
            error => match (error.failure(), error) {
                (Some(failure), _) => InstallLabel::Refused(failure),
                (None, Self::Store(_)) => InstallLabel::Store,
                (None, _) => InstallLabel::Failed,
            },
        }
    }

    /// Returns whether the package was rejected because of its own contents, its signature or its
    /// id, or because it is incomplete. Other errors are faults of the daemon or of the machine, or
    /// limits of the configuration.
    pub fn is_fault_of_package(&self) -> bool {
        match self {
            // The cause is in the log: the package may be innocent.
            Self::InstallationPanicked => false,
            Self::Unpack(UnpackError::Truncated { .. })
            | Self::Signature(SignatureError::Missing | SignatureError::Changed) => true,
            error => error.failure().is_some(),
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
    /// A file of the model is in a further drop directory.
    #[error(
        "the package of \"{name}\" is {}, where Caxton removes nothing, and the model would be \
         installed from it again: remove that file first", .file.display()
    )]
    InFurtherDirectory {
        /// The model.
        name: String,
        /// The file.
        file: PathBuf,
    },
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
/// Fails if the model is unknown, if it is bundled and works, if a further drop directory holds its
/// package, or if the disk fails.
pub fn remove(store: &Store, name: &str, rules: &InstallRules) -> Result<StoreEntry, RemoveError> {
    let entries = store.entries();
    let entry = entries.resolve_any(name).ok_or_else(|| RemoveError::Unknown(name.to_owned()))?;
    match &entry.record.origin {
        Origin::Bundled { .. } if entry.record.status.is_tested() => {
            return Err(RemoveError::Bundled(name.to_owned()));
        }
        Origin::Dropped { files } => {
            let further = files.keys().map(Path::new).find(|file| rules.is_further(file));
            if let Some(file) = further {
                let (name, file) = (name.to_owned(), file.to_owned());
                return Err(RemoveError::InFurtherDirectory { name, file });
            }
            // A path belongs to a directory that is absent or not configured any more.
            for file in files.keys().filter(|file| !file.contains('/')) {
                drop_dir::remove(&rules.drop_directory, file)?;
            }
        }
        Origin::Bundled { .. } | Origin::Installed => {}
    }
    Ok(store.remove(&entry.key)?)
}

#[cfg(test)]
mod tests;
