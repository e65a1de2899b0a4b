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

mod archive;
mod digest;
#[cfg(test)]
mod directory_fixture;
pub mod drop;
mod entry;
#[cfg(test)]
pub(crate) mod fixture;
mod frame;
mod manifest;
mod mapping;
mod member;
mod pack;
mod quantize;
mod record;
mod registry;
mod signature;
mod source;
mod store;
mod trust;
mod unpack;
mod ustar;
mod verity;
mod weights;

pub use digest::{Digest, HashingReader, ParseDigestError, hashed};
pub use entry::{Entry, Key, ParseKeyError, choose, choose_any, earlier};
pub use manifest::{
    CONFIG, DenseLayer, EmbeddingSpace, FORMAT, MANIFEST, Manifest, ManifestError, Member,
    MemberName, ModelId, Precision, SelfTest, TOKENIZER, Version, WEIGHTS, dense_file,
};
pub use pack::{
    BoxError, Contents, PackError, PackRequest, Packed, RunSelfTest, pack, write_package,
};
pub use quantize::QuantizeError;
pub use record::{Cleanup, Origin, Quota, Record, Status, StoreFull, Timestamp};
pub use registry::{KnownModel, Task, Tier, known, known_models};
pub use signature::{KeyId, Keys, Sidecars, SignatureError, SignatureStatus, VerifyingReader};
pub use source::SourceError;
pub use store::{
    Admitted, Changed, Condition, Examined, FreeSpace, NoSpace, PackageBytes, Rollback,
    RollbackError, RolledBack, Staged, Store, StoreError, StoreUse, Unpacking, Verity,
};
pub use trust::{Claim, Consent, Disabled, Reserved, Signer, TrustError, Trusted, permit};
pub use unpack::{Announced, Durability, Limits, UnpackError, Unpacked, unpack, unpack_if};
pub use weights::Weights;

/// File name suffixes of a package's sidecars: its digest and its signature.
pub const SIDECARS: [&str; 2] = [".sha256", ".minisig"];
/// File name suffix of every package.
pub const SUFFIX: &str = ".model.tar.zst";
