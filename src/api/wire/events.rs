//! What happened, as clients see it.

use serde::{Deserialize, Serialize};

/// The data of one event of `GET /v1/events`. What an event has nothing to say of is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its place: larger than that of every event before. `lagged` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// When it happened, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// `model_loaded`, `model_unloaded`, `model_evicted`, `model_failed`, `pressure_changed`, `package_accepted`,
    /// `package_refused`, `configuration_applied`, `configuration_refused`, `fallback`, or `lagged` when the client
    /// reads too slowly or asks for what is forgotten. There may be more in later versions.
    #[serde(rename = "type")]
    pub kind: String,
    /// The model, as `id@version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The model that answers in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<String>,
    /// The file of the package.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// How short memory is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// How short memory was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level_before: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with the configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// How often settings have been put in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Memory that was taken or given back, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How many events are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}
