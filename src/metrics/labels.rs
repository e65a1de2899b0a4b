//! The labels of series and the words that are their values: all there are, so that a series cannot have another.

use prometheus_client::encoding::EncodeLabelSet;

/// The outcome of a request that was answered as it wished.
pub const OK: &str = "ok";
/// The outcome of a request whose client left, or whose connection was cut, before it was answered.
pub const GONE: &str = "gone";
/// The outcome of a request that was lost to a panic.
pub const INTERNAL: &str = "internal";
/// Outcomes that every route has from the beginning: those that alerts and dashboards ask for. Other codes of errors
/// appear with their first.
pub(super) const OUTCOMES: &[&str] = &[
    OK,
    GONE,
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
/// The route of requests that no route takes, and the label of anything that is not on its list.
pub(super) const OTHER: &str = "other";
/// Why another model answered: the codes of the errors that the one asked for would have given.
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

/// How a model was when a request asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// It was in memory.
    Hit,
    /// It had to be loaded, or was being.
    Load,
    /// It was refused at once: it stays away, failed a moment ago, does not fit, or requests are shed.
    Refused,
}

impl Sought {
    pub(super) const ALL: [Self; 3] = [Self::Hit, Self::Load, Self::Refused];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Load => "load",
            Self::Refused => "refused",
        }
    }
}

/// Why a model left memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Evicted: memory was short.
    Pressure,
    /// Evicted: another model needed its place.
    Room,
    /// Unloaded: nobody used it.
    Idle,
    /// Unloaded: an administrator said so.
    Request,
}

impl Departure {
    pub(super) const EVICTIONS: [Self; 2] = [Self::Pressure, Self::Room];
    pub(super) const UNLOADS: [Self; 2] = [Self::Idle, Self::Request];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pressure => "pressure",
            Self::Room => "room",
            Self::Idle => "idle",
            Self::Request => "request",
        }
    }
}

/// What was wrong with a model's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureType {
    /// Files of the store are not what was installed.
    Corrupt,
    /// The package is no package, or breaks a limit.
    Malformed,
    /// The package is not what its `.sha256` file says.
    Digest,
    /// The package is not signed by a key that is trusted, or its signature is wrong.
    Signature,
    /// The package may not have its id, its embedding space or its version.
    Identity,
    /// The files are no model that this version can run.
    Incompatible,
    /// The model gives another vector than its manifest says.
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

    /// In one word, as the label has it.
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
    pub(super) residency: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DepartureLabels {
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
    Sought::ALL
        .into_iter()
        .map(|sought| LeaseLabels { model_id: id.to_owned(), residency: sought.name() })
}

pub(super) fn failure_labels(id: &str) -> impl Iterator<Item = FailureLabels> {
    FailureType::ALL
        .into_iter()
        .map(|failure| FailureLabels { model_id: id.to_owned(), failure_type: failure.name() })
}

pub(super) fn departure_labels(
    id: &str,
    all: [Departure; 2],
) -> impl Iterator<Item = DepartureLabels> {
    all.into_iter()
        .map(|departure| DepartureLabels { model_id: id.to_owned(), reason: departure.name() })
}
