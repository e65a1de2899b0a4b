//! Facts about a model that an answer contains.

use std::sync::Arc;

use crate::models::catalog::Alias;
use crate::package::{EntryKey, Manifest};

/// Facts about a model that clients may know.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Manifest of the model.
    pub manifest: Arc<Manifest>,
    /// The identity under which two vectors may be compared.
    pub embedding_space: Arc<str>,
    /// The revision: the shortened digest of the manifest.
    pub revision: Arc<str>,
    /// Alias in the request that resolved to this model.
    pub alias: Option<Alias>,
}

impl ModelInfo {
    /// Returns the facts about the model `key` with this manifest.
    pub(super) fn new(key: &EntryKey, manifest: Arc<Manifest>) -> Self {
        let (_id, _version, revision) = key.parts();
        let embedding_space = manifest.embedding_space().into();
        Self { manifest, embedding_space, revision: revision.into(), alias: None }
    }
}
