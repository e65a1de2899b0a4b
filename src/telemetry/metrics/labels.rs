//! Labels of the series and their possible values. The types and constants here exclude other
//! values.

use prometheus_client::encoding::EncodeLabelSet;

/// Outcome of a request that was answered successfully.
pub const OK: &str = "ok";
/// Outcome of a request whose client left, or whose connection was cut, before the response.
pub const CANCELED: &str = "canceled";
/// Outcome of a request that was lost because of a panic.
pub const INTERNAL: &str = "internal";
/// Outcomes that every route has from the start, for alerts and dashboards. Series of other error
/// codes appear with their first count.
pub(super) const OUTCOMES: &[&str] = &[
    OK,
    CANCELED,
    INTERNAL,
    "invalid_request",
    "model_not_found",
    "overloaded",
    "memory_pressure",
    "memory_limit",
    "model_failed",
    "model_loading",
    "timeout",
    "draining",
];
/// Route of requests that match no route, and label of every value that is not in its list.
pub(super) const OTHER: &str = "other";
/// Reasons for a fallback: the error codes that the requested model would have given.
pub(super) const FALLBACK_REASONS: &[&str] = &[
    "model_not_found",
    "model_corrupt",
    "model_failed",
    "model_ended",
    "model_loading",
    "memory_limit",
    "memory_pressure",
    OTHER,
];

/// State of a model when a request needed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// The model was in memory.
    Hit,
    /// The model was being loaded or had to be loaded.
    Miss,
    /// The request was rejected at once: the model is cooling down, has failed recently or does not
    /// fit, too many requests wait for it, or requests are shed.
    Rejected,
}

impl LeaseOutcome {
    pub(super) const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Rejected];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Rejected => "rejected",
        }
    }
}

/// Reason for unloading a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnloadLabel {
    /// Evicted because memory was short.
    Pressure,
    /// Evicted because another model needed its memory.
    Displaced,
    /// Unloaded because it was idle.
    Idle,
    /// Unloaded on request of an administrator.
    Request,
}

impl UnloadLabel {
    pub(super) const EVICTIONS: [Self; 2] = [Self::Pressure, Self::Displaced];
    pub(super) const UNLOADS: [Self; 2] = [Self::Idle, Self::Request];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pressure => "pressure",
            Self::Displaced => "displaced",
            Self::Idle => "idle",
            Self::Request => "request",
        }
    }
}

/// Fault of a model's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureType {
    /// Files in the store differ from the installed ones.
    Corrupt,
    /// The file is not a valid package, or exceeds a limit.
    Malformed,
    /// The package does not match its `.sha256` file.
    Digest,
    /// The package is not signed by a trusted key, or its signature is wrong.
    Signature,
    /// The package must not have its id, its embedding space or its version.
    Identity,
    /// The files are not a model that this version can run.
    Incompatible,
    /// The model computes another vector than the one in its manifest.
    SelfTest,
}

impl FailureType {
    pub(super) const ALL: [Self; 7] = [
        Self::Corrupt,
        Self::Malformed,
        Self::Digest,
        Self::Signature,
        Self::Identity,
        Self::Incompatible,
        Self::SelfTest,
    ];

    /// Returns the value of the label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::Malformed => "malformed",
            Self::Digest => "digest",
            Self::Signature => "signature",
            Self::Identity => "identity",
            Self::Incompatible => "incompatible",
            Self::SelfTest => "self_test",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModelLabels {
    pub(super) model_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FailureLabels {
    pub(super) model_id: String,
    pub(super) failure_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LeaseLabels {
    pub(super) model_id: String,
    pub(super) cache: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UnloadLabels {
    pub(super) model_id: String,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) route: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StageLabels {
    pub(super) stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub(super) reason: &'static str,
}

pub(super) fn model_labels(id: &str) -> ModelLabels {
    ModelLabels { model_id: id.to_owned() }
}

pub(super) fn lease_labels(id: &str) -> impl Iterator<Item = LeaseLabels> {
    LeaseOutcome::ALL
        .into_iter()
        .map(|outcome| LeaseLabels { model_id: id.to_owned(), cache: outcome.name() })
}

pub(super) fn failure_labels(id: &str) -> impl Iterator<Item = FailureLabels> {
    FailureType::ALL
        .into_iter()
        .map(|failure| FailureLabels { model_id: id.to_owned(), failure_type: failure.name() })
}

pub(super) fn unload_labels(id: &str, all: [UnloadLabel; 2]) -> impl Iterator<Item = UnloadLabels> {
    all.into_iter().map(|label| UnloadLabels { model_id: id.to_owned(), reason: label.name() })
}
