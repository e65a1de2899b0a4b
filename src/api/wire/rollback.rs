//! Rollback: which version an id means.

use serde::{Deserialize, Serialize};

use super::Package;

/// Body of `POST /api/packages/{id}/rollback`; without one the id means its version before.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The version, or the beginning of the revision, that it is to mean.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether it is to mean its highest version again.
    #[serde(default)]
    pub clear: bool,
}

/// Answer of `POST /api/packages/{id}/rollback`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// What the id meant.
    pub from: Package,
    /// What it means now.
    pub to: Package,
}
