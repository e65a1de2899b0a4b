//! Classifies failed installations, and measures the capacity on which a retry depends.

use crate::base::errors::chain;
use crate::engine::EngineError;
use crate::models::ingest::install::{InstallError, InstallRules};
use crate::models::residency::load::LoadError;
use crate::models::{ManagerHandle, ModelError};
use crate::package::drop_dir::{Capacity, MissingResource, Verdict};
use crate::package::{SignatureError, StoreError, UnpackError};

/// Measures the capacity of the appliance. Blocks.
pub(super) fn measure_capacity(handle: &ManagerHandle, rules: InstallRules) -> Capacity {
    let store = handle.store();
    Capacity {
        store: Some(store.in_use(rules.quota)),
        kept: rules.protected,
        // An error is ignored here: the installation reports it when it writes the package.
        space: store.free_space().ok(),
        memory: handle.memory_limits(),
    }
}

/// Classifies an installation error: the file is incomplete, permanently rejected, or worth a
/// retry.
pub(super) fn classify(error: &InstallError) -> Verdict {
    let reason = chain(error);
    let lack = match error {
        InstallError::Unpack(UnpackError::Truncated { .. })
        | InstallError::Signature(
            // Only the signature reveals that a package is still incomplete.
            SignatureError::Missing | SignatureError::Invalid(_) | SignatureError::Changed,
        ) => return Verdict::Incomplete(reason),
        InstallError::Unpack(UnpackError::Refused { .. })
        | InstallError::Signature(
            SignatureError::Malformed { .. }
            | SignatureError::WrongDigest { .. }
            | SignatureError::UnknownKey(_)
            | SignatureError::Legacy
            | SignatureError::NotCovered { .. },
        )
        | InstallError::Trust(_)
        | InstallError::Store(StoreError::LooksAlike(_)) => return Verdict::Refused(reason),
        InstallError::Load(error) => match error {
            LoadError::Engine(EngineError::Threads { .. }) => MissingResource::Other,
            _ => return Verdict::Refused(reason),
        },
        InstallError::NoTestAttemptsLeft
        | InstallError::NoUnpackAttemptsLeft
        | InstallError::Crashed(_)
        | InstallError::SelfTestPanicked
        | InstallError::InstallationPanicked => return Verdict::Refused(reason),
        InstallError::Store(StoreError::Full(_)) => MissingResource::Quota,
        InstallError::Store(StoreError::NoSpace(needed)) => MissingResource::Space(needed.clone()),
        InstallError::NoMemory(_) | InstallError::NotReserved(ModelError::MemoryLimit { .. }) => {
            MissingResource::Memory
        }
        InstallError::Keys(_) => MissingResource::Keys,
        InstallError::Unpack(
            UnpackError::Io { .. } | UnpackError::Source(_) | UnpackError::TooSlow { .. },
        )
        | InstallError::Signature(SignatureError::Io { .. })
        | InstallError::Store(_)
        | InstallError::NotTested(_)
        | InstallError::NotReserved(_)
        | InstallError::BundledOnly
        | InstallError::Stopping => MissingResource::Other,
    };
    Verdict::Failed { reason, lack }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::base::units::Bytes;
    use crate::engine::Precision;
    use crate::files::FileError;
    use crate::models::MemoryRefusal;
    use crate::package::{Digest, TrustError};

    /// Tests that a package is not quarantined for a fault outside it.
    #[test]
    fn only_package_faults_are_refused() {
        let path = || PathBuf::from("/path");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let unpack = InstallError::Unpack;
        let signature = InstallError::Signature;
        let engine = |error| InstallError::Load(LoadError::Engine(error));
        let malformed = || SignatureError::Malformed { path: path(), reason: String::new() };
        let incomplete = [
            unpack(UnpackError::Truncated { bytes: 1 }),
            signature(SignatureError::Missing),
            signature(SignatureError::Changed),
        ];
        let refused = [
            unpack(UnpackError::Refused { member: None, reason: String::new() }),
            signature(malformed()),
            signature(SignatureError::Legacy),
            InstallError::Trust(TrustError::Reserved("m".parse().unwrap())),
            signature(SignatureError::WrongDigest {
                expected: Digest::of(b""),
                found: Digest::of(b"a"),
            }),
            InstallError::Load(LoadError::SelfTest { cosine: 0.5, precision: Precision::F32 }),
            InstallError::NoTestAttemptsLeft,
            InstallError::NoUnpackAttemptsLeft,
            InstallError::Crashed("was ended by signal 6".to_owned()),
            InstallError::SelfTestPanicked,
            InstallError::InstallationPanicked,
            engine(EngineError::Mismatch(String::new())),
        ];
        let failed = [
            unpack(UnpackError::Io { operation: "write", path: path(), source: full() }),
            unpack(UnpackError::Source(full())),
            unpack(UnpackError::TooSlow { limit: Duration::from_secs(1) }),
            signature(SignatureError::Io { path: path(), source: full() }),
            InstallError::Keys(malformed()),
            engine(EngineError::Threads { threads: 1, source: full().into() }),
            InstallError::Store(StoreError::Locked(path())),
            InstallError::Store(FileError::new("write", Path::new("/path"))(full()).into()),
            InstallError::NotTested(io::Error::other("no process")),
            InstallError::BundledOnly,
            InstallError::Stopping,
        ];
        for error in incomplete {
            assert!(matches!(classify(&error), Verdict::Incomplete(_)), "{error:?}");
        }
        for error in refused {
            assert!(matches!(classify(&error), Verdict::Refused(_)), "{error:?}");
        }
        for error in failed {
            assert!(matches!(classify(&error), Verdict::Failed { .. }), "{error:?}");
        }
    }

    #[test]
    fn failure_names_missing_resource() {
        let refusal = || {
            let (needed, headroom, most) = (Bytes(2), Bytes(1), Bytes(1));
            let limit = "limit".to_owned();
            let refusal =
                MemoryRefusal { needed, headroom, max_headroom: most, limit, retry_after: None };
            ModelError::MemoryLimit { name: "m".to_owned(), refusal: Arc::new(refusal) }
        };
        for (error, expected) in [
            (InstallError::NoMemory(refusal()), MissingResource::Memory),
            (InstallError::NotReserved(refusal()), MissingResource::Memory),
            (InstallError::NotReserved(ModelError::Draining), MissingResource::Other),
            (InstallError::Keys(SignatureError::Legacy), MissingResource::Keys),
            (InstallError::Store(StoreError::Locked(PathBuf::new())), MissingResource::Other),
        ] {
            let Verdict::Failed { lack, .. } = classify(&error) else { panic!("{error:?}") };
            assert_eq!(lack, expected, "{error:?}");
        }
    }

    #[test]
    fn verdict_includes_cause() {
        let error =
            InstallError::Load(LoadError::SelfTest { cosine: 0.5, precision: Precision::F32 });
        let Verdict::Refused(reason) = classify(&error) else { panic!("not refused") };
        assert!(reason.contains("does not work") && reason.contains("manifest is 0.5"), "{reason}");
    }
}
