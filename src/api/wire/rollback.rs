//! Defines the wire types of a rollback, which selects the version that an id means.

use serde::{Deserialize, Serialize};

use super::Package;

/// Body of `POST /api/packages/{id}/rollback`. Without a body, the id means its previous version.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// New version of the id, or the first digits of its revision.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether the id means its highest version again.
    #[serde(default)]
    pub clear: bool,
}

/// Answer of `POST /api/packages/{id}/rollback`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RollbackResponse {
    /// Package that the id meant before.
    pub from: Package,
    /// Package that the id means now.
    pub to: Package,
}
