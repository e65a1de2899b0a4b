//! Model packages: packing, verification, installation and storage.
//!
//! Covers the archive format, the manifest, the digests, the store on disk and the drop directory.
//! Does not depend on the engine: the caller passes in the function that runs the self-test.
//!
//! Invariants:
//! 1. The checked bytes are the bytes that are used. A package is read through one handle into
//!    private staging. With keys, it is read for its signature first, and both passes are compared.
//!    A store file is hashed through the handle from which its contents are then read or mapped.
//! 2. The store changes by one rename. At any moment it holds the old state or the new one.
//! 3. A file is not trusted because of its location. Every package is verified.

mod access_stats;
mod archive;
mod convert;
mod digest;
#[cfg(test)]
mod directory_fixture;
mod disabled_reason;
pub mod drop_dir;
mod entries;
mod entry;
mod file_check;
#[cfg(test)]
pub(crate) mod fixture;
mod install_record;
mod listing;
mod manifest;
mod mapping;
mod matryoshka;
mod member;
mod other_files;
mod pack;
mod quantize;
mod registry;
mod signature;
mod signer;
mod store;
mod trust;
mod unpack;
mod unpack_limits;
mod ustar;
mod verity;
mod weights;
mod zstd_frame;

pub use access_stats::AccessStats;
pub use convert::ModelDirectoryError;
pub use digest::{Digest, HashingReader, ParseDigestError, hashed_bytes};
pub use disabled_reason::DisabledReason;
pub use entries::Entries;
pub use entry::{EntryKey, ParseEntryKeyError, StoreEntry, canonical_name};
pub use file_check::{FileCheck, FileStatus};
pub use install_record::{
    CleanupRule, InstallRecord, InstallStatus, Origin, Quota, StoreFull, Timestamp,
};
pub use manifest::{
    CONFIG, Classifier, DenseLayer, EmbeddingSpace, FORMAT, MANIFEST, Manifest, ManifestError,
    Member, MemberName, ModelId, MultiVectorHead, Precision, ScoreActivation, SelfTest, SparseHead,
    TOKENIZER, Version, WEIGHTS, dense_file,
};
pub use matryoshka::trained_dimensions;
pub use pack::{
    BoxError, PackError, PackRequest, PackResult, PackageContents, RunSelfTest, WeightsOrigin,
    pack, write_package,
};
pub use quantize::QuantizeError;
pub use registry::{
    KnownModel, Task, Tier, TokenizerKind, find_known_model, known_model_of, known_models,
};
pub use signature::{Sidecars, SignatureError, SignatureStatus, TrustedKeys, VerifyingReader};
pub use signer::{KeyId, Signer};
pub use store::{
    Approval, ApprovalError, FreeSpace, NoSpace, PackageBytes, RemovalReason, RemovedModel,
    RollbackError, RollbackResult, RollbackTarget, Staged, StorageCondition, Store, StoreContents,
    StoreError, StoreInstall, StoreUse, TrustChange, UnpackGuard, Verity,
};
pub use trust::{Consent, IdClaim, ReservedIds, TrustError, TrustInput, check_claim};
pub use unpack::{
    Durability, PackageCheck, PackageHeader, UnpackError, UnpackedPackage, check_package, unpack,
    unpack_if,
};
pub use unpack_limits::UnpackLimits;
pub use weights::Weights;

/// File name suffixes of a package's sidecars: its digest and its signature.
pub const SIDECARS: [&str; 2] = [".sha256", ".minisig"];
/// File name suffix of every package.
pub const SUFFIX: &str = ".model.tar.zst";
