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
    "model_not_approved",
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

/// Reason for the removal of a model from the store by Caxton itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreEvictionLabel {
    /// A limit of the store was reached.
    Limit,
    /// Other content of the same version replaced it.
    Replaced,
    /// The model was unused for a long time.
    Unused,
}

impl StoreEvictionLabel {
    pub(super) const ALL: [Self; 3] = [Self::Limit, Self::Replaced, Self::Unused];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Replaced => "replaced",
            Self::Unused => "unused",
        }
    }
}

/// Result of an attempt to install a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallLabel {
    /// The model is installed.
    Installed,
    /// Exactly this package was installed already.
    Existed,
    /// The package is wrong.
    Refused(FailureType),
    /// The package ends early, changed while it was read, or lacks its signature.
    Incomplete,
    /// The configuration allows bundled packages only.
    KeptOut,
    /// The memory does not suffice for the model.
    Memory,
    /// The store rejected the package, or could not write it.
    Store,
    /// The daemon or the machine is at fault.
    Failed,
    /// The daemon was stopping.
    Stopping,
}

impl InstallLabel {
    /// Labels of all results.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let others = [
            Self::Installed,
            Self::Existed,
            Self::Incomplete,
            Self::KeptOut,
            Self::Memory,
            Self::Store,
            Self::Failed,
            Self::Stopping,
        ];
        others.into_iter().chain(FailureType::ALL.map(Self::Refused))
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Existed => "existed",
            Self::Refused(failure) => failure.name(),
            Self::Incomplete => "incomplete",
            Self::KeptOut => "kept_out",
            Self::Memory => "memory",
            Self::Store => "store",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
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
    pub(super) version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FailureLabels {
    pub(super) model_id: String,
    pub(super) version: String,
    pub(super) failure_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LeaseLabels {
    pub(super) model_id: String,
    pub(super) version: String,
    pub(super) cache: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UnloadLabels {
    pub(super) model_id: String,
    pub(super) version: String,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StatusLabels {
    pub(super) status: &'static str,
}

/// Splits `id@version`. A text without `@` is an id with an empty version.
fn split(model: &str) -> (String, String) {
    let (id, version) = model.split_once('@').unwrap_or((model, ""));
    (id.to_owned(), version.to_owned())
}

pub(super) fn model_labels(model: &str) -> ModelLabels {
    let (model_id, version) = split(model);
    ModelLabels { model_id, version }
}

pub(super) fn lease_label(model: &str, outcome: LeaseOutcome) -> LeaseLabels {
    let (model_id, version) = split(model);
    LeaseLabels { model_id, version, cache: outcome.name() }
}

pub(super) fn lease_labels(model: &str) -> impl Iterator<Item = LeaseLabels> {
    LeaseOutcome::ALL.into_iter().map(|outcome| lease_label(model, outcome))
}

pub(super) fn failure_label(model: &str, failure: FailureType) -> FailureLabels {
    let (model_id, version) = split(model);
    FailureLabels { model_id, version, failure_type: failure.name() }
}

pub(super) fn failure_labels(model: &str) -> impl Iterator<Item = FailureLabels> {
    FailureType::ALL.into_iter().map(|failure| failure_label(model, failure))
}

pub(super) fn unload_label(model: &str, label: UnloadLabel) -> UnloadLabels {
    let (model_id, version) = split(model);
    UnloadLabels { model_id, version, reason: label.name() }
}

pub(super) fn unload_labels(
    model: &str,
    all: [UnloadLabel; 2],
) -> impl Iterator<Item = UnloadLabels> {
    all.into_iter().map(move |label| unload_label(model, label))
}
