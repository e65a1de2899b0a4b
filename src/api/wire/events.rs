//! Defines the wire type of events.

use serde::{Deserialize, Serialize};

/// Data of one event of `GET /v1/events`. Fields without a value are omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Id, larger than the ids of all earlier events. `lagged` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Time of the event, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// `model_loaded`, `model_unloaded`, `model_evicted`, `model_failed`, `pressure_changed`,
    /// `package_accepted`, `package_refused`, `package_waiting`, `package_failed`,
    /// `package_removed`, `store_limit`, `model_corrupt`, `model_rolled_back`, `update_waiting`,
    /// `model_approved`, `memory_flushed`, `configuration_applied`, `configuration_refused`,
    /// `fallback`, or `lagged` when the client reads too slowly or requests events that are no
    /// longer remembered. Later versions may add types.
    #[serde(rename = "type")]
    pub kind: String,
    /// The model, as `id@version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Fallback that answers instead of `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<String>,
    /// Name of the package file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// State of a package on its way, in the words of [`super::intake::IncomingPackage`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Time until the next attempt, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_seconds: Option<u64>,
    /// Version to which the id of `model` resolved before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_before: Option<String>,
    /// Version to which the id of `model` resolves now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Models that were unloaded, each as `id@version`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// New pressure level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Previous pressure level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level_before: Option<String>,
    /// Reason, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Problems of the configuration, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Number of times that settings were applied since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Memory that was allocated or freed, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Duration in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Number of events that were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}
