//! Defines the wire type of an approval, after which an id means an update.

use serde::{Deserialize, Serialize};

use super::Package;

/// Answer of `POST /api/packages/{name}/approve`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApprovalResponse {
    /// Approved package.
    pub approved: Package,
    /// Package that the id meant before; `null` if no version was approved.
    pub from: Option<Package>,
    /// Package that the id means now. It is not the approved one if that has a lower version.
    pub to: Package,
}
