//! Model packages: made, verified, installed, kept.
//!
//! Owns the archive format, the manifest, the digests, the store on disk and the drop directory's bookkeeping. It
//! knows nothing of engines: whoever can run a model passes the self-test in.
//!
//! Invariants:
//! 1. Check and use see the same bytes: a package is read once, through one handle, into private staging; a
//!    store file is hashed through the handle that its contents are then taken from, the weights in the very
//!    mapping that is then used.
//! 2. The store changes by one rename: at any moment it holds the old state or the new.
//! 3. Nothing is trusted by its presence: every package is verified, wherever it lies.

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

/// Endings of the files that may stand beside a package: its digest and its signature.
pub const SIDECARS: [&str; 2] = [".sha256", ".minisig"];
/// How the file name of every package ends.
pub const SUFFIX: &str = ".model.tar.zst";
