//! Defines the wire types of a complete validation of a model.

use serde::{Deserialize, Serialize};

/// Answer of `POST /api/packages/{name}/validate`, and output of `caxton model verify --json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Id of the model; `null` if the manifest cannot be read.
    pub id: Option<String>,
    /// Version of the model.
    pub version: Option<String>,
    /// First digits of the digest of the manifest, for an installed model or a valid package.
    pub revision: Option<String>,
    /// Whether no fault was found and the model passed its self-test.
    pub valid: bool,
    /// Result for each file, in the order of the manifest.
    pub files: Vec<FileReport>,
    /// Whether the model can be loaded; `null` if this was not found out.
    pub can_load: Option<bool>,
    /// Length of the vectors.
    pub dimensions: Option<usize>,
    /// Cosine between the vector of the manifest and the one that this machine computed.
    pub self_test_cosine: Option<f64>,
    /// Arithmetic of the self-test: `f32`, `bf16` or `int8`.
    pub precision: Option<String>,
    /// Time to read the files of the model, check their digests and load the model.
    pub load_ms: Option<f64>,
    /// Memory of the weights.
    pub weight_bytes: Option<u64>,
    /// Estimated maximum of its memory, including the longest passes.
    pub peak_bytes: Option<u64>,
    /// State of the signature of a package file: `none`, `unchecked` (no key is configured), or the
    /// key that signed it.
    pub signature: Option<String>,
    /// SHA-256 of the package.
    pub package_sha256: Option<String>,
    /// All faults that were found, one sentence each.
    pub faults: Vec<String>,
}

/// Comparison of one file with the manifest.
#[derive(Debug, Serialize, Deserialize)]
pub struct FileReport {
    /// Name of the file.
    pub name: String,
    /// Size in bytes; `null` if the file is missing or cannot be read.
    pub size: Option<u64>,
    /// Size in the manifest.
    pub expected_size: u64,
    /// SHA-256 of the file; `null` if it was not computed.
    pub sha256: Option<String>,
    /// SHA-256 in the manifest.
    pub expected_sha256: String,
    /// `valid`, `invalid`, `missing` or `unreadable`.
    pub status: String,
}
