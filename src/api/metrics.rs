//! Serves `GET /metrics`, and counts every request.
//!
//! Defines the routes by which requests are counted. Values that other modules measure are only
//! read here: a scrape does not load a model, and other work never waits for a scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::visibility::Visibility;
use super::{App, health};
use crate::memory::level::PressureLevel;
use crate::memory::sample::Psi;
use crate::models::ingest::install::InstallRules;
use crate::models::ingest::intake::{IncomingPackage, Intake};
use crate::models::{MemoryView, Residency};
use crate::service::Timings;
use crate::telemetry::log::{self, Message};
use crate::telemetry::metrics::{
    CANCELED, Format, INTERNAL, Metrics, OK, ObservedModel, ObservedState, Stages, Stall,
};

/// Paths of all routes as they are registered. Requests for other paths are counted together.
pub const ROUTES: &[&str] = &[
    "/v1/embeddings",
    "/v1/rank",
    "/v1/models",
    "/v1/models/{name}",
    "/v1/events",
    "/livez",
    "/readyz",
    "/status",
    "/metrics",
    "/api/configuration",
    "/api/memory/status",
    "/api/memory/flush",
    "/api/memory/limit",
    "/api/memory/load",
    "/api/memory/models/{name}/load",
    "/api/memory/models/{name}",
    "/api/packages",
    "/api/packages/{name}",
    "/api/packages/{name}/verify",
    "/api/packages/{name}/validate",
    "/api/packages/{name}/export",
    "/api/packages/{name}/rollback",
    "/api/packages/{name}/approve",
    "/api/models/stats",
    "/api/models/recommendations",
    "/",
    "/api/embed",
    "/api/embeddings",
    "/api/tags",
    "/api/ps",
    "/api/show",
    "/api/version",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/generate",
    "/api/blobs/{digest}",
    "/api/chat",
    "/embeddings",
    "/embed",
    "/invocations",
    "/embed_all",
    "/embed_sparse",
    "/predict",
    "/similarity",
    "/rerank",
    "/tokenize",
    "/decode",
    "/info",
    "/health",
    "/ping",
    "/v1/embed",
    "/v2/embed",
    "/v1/rerank",
    "/v2/rerank",
];

/// Answers with all counters and measurements, in the text format that the client accepts.
pub(super) async fn scrape(
    State(app): State<App>,
    visibility: Visibility,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let view = app.handle.memory().await?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let render = move || {
        let observed = ObservedState { resident: health::resident_memory(), ..observe(&app, view) };
        app.metrics.render(&observed, format).map(|text| visibility.metrics(text))
    };
    let text = tokio::task::spawn_blocking(render).await?;
    let text = text.map_err(|error| {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "the metrics could not be rendered"
        );
        ApiError::lost_work()
    })?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

fn observe(app: &App, view: MemoryView) -> ObservedState {
    let MemoryView { reading, headroom, is_shedding: shedding, models: in_memory, .. } = view;
    let sample = reading.sample;
    let entries = app.handle.store().entries();
    let mut observed = ObservedState {
        version: env!("CARGO_PKG_VERSION"),
        uptime: app.started.elapsed(),
        ready: app.handle.overview().borrow().is_ready(),
        configuration_problems: app.configuration.borrow().problems.len(),
        process: sample.process.0,
        unreclaimable: sample.unreclaimable.0,
        limit: sample.tightest().map(|limit| (limit.bytes.0, limit.unreclaimable.0)),
        headroom: headroom.0,
        pressure_level: rank(reading.level),
        shedding,
        requests_held: app.budget.held(),
        requests_limit: app.budget.size(),
        log_records_lost: log::lost_records(),
        stalls: stalls(sample.psi.or(sample.machine.psi)),
        ..ObservedState::default()
    };
    let settings = app.settings.borrow();
    let quota = InstallRules::from(&**settings).quota;
    observed.cache_limit = quota.max_size.0;
    observed.queue_limit = settings.embedding.queue_size;
    observed.queue_limit_tokens = settings.embedding.queue_tokens;
    drop(settings);
    let store = app.handle.store();
    observed.cache = store.in_use(quota).size.0;
    observed.disk_free = store.free_space().ok().map(|space| space.free.0);
    let intake = Arc::clone(&app.intake.borrow());
    observed.packages = count_packages(&intake);
    observed.package_retries = intake.retries;
    for entry in &entries {
        let model = observed.models.entry(entry.key.name().to_owned()).or_default();
        model.last_used = model.last_used.max(entry.last_use().0);
    }
    for model in in_memory {
        if let Residency::Resident { weight_bytes, waiting, waiting_tokens, .. } = model.residency
            && let Some(seen) = observed.models.get_mut(model.key.name())
        {
            *seen = ObservedModel {
                resident: true,
                memory: seen.memory.saturating_add(weight_bytes),
                waiting: seen.waiting.saturating_add(waiting),
                waiting_tokens: seen.waiting_tokens.saturating_add(waiting_tokens),
                last_used: seen.last_used,
            };
        }
    }
    observed
}

/// Returns the number of packages of each state. The report of the packages is bounded; the rest
/// has the state `other`.
fn count_packages(intake: &Intake) -> BTreeMap<&'static str, usize> {
    let states = IncomingPackage::STATE_NAMES.into_iter().chain(["other"]);
    let mut counts = BTreeMap::from_iter(states.map(|state| (state, 0)));
    for package in &intake.packages {
        *counts.entry(package.state_name()).or_default() += 1;
    }
    *counts.entry("other").or_default() += intake.omitted;
    counts
}

fn rank(level: PressureLevel) -> u8 {
    match level {
        PressureLevel::Normal => 0,
        PressureLevel::Moderate => 1,
        PressureLevel::High => 2,
        PressureLevel::Critical => 3,
    }
}

/// Returns the pressure stall ratios in `psi`. The caller passes those of the control group, or
/// those of the machine if the group has none.
fn stalls(psi: Option<Psi>) -> Vec<Stall> {
    let Some(psi) = psi else { return Vec::new() };
    let of = |kind, window, percent: f32| Stall { kind, window, ratio: f64::from(percent) / 100.0 };
    vec![
        of("some", "10s", psi.some_avg10),
        of("some", "60s", psi.some_avg60),
        of("full", "10s", psi.full_avg10),
    ]
}

/// Counts each request: when its answer begins, when its handler panics, or when its client
/// disconnects.
pub(super) async fn count(
    metrics: Metrics,
    route: Option<MatchedPath>,
    answer: impl Future<Output = Response>,
) -> Response {
    let began = Instant::now();
    let mut guard = RequestGuard { metrics, route, is_answered: false };
    let response = answer.await;
    guard.is_answered = true;
    guard.count(outcome(&response));
    if let Some(Timings { tokenization, queue, inference }) = response.extensions().get().copied() {
        let total = began.elapsed();
        guard.metrics.observe_stages(Stages { tokenization, queue, inference, total });
    }
    response
}

fn outcome(response: &Response) -> &'static str {
    match (response.extensions().get::<ApiError>(), response.status()) {
        (Some(error), _) => error.code(),
        (None, status) if status.is_server_error() => INTERNAL,
        (None, status) if status.is_client_error() => "invalid_request",
        (None, _) => OK,
    }
}

/// A request without an answer so far. If it is dropped in this state, it is counted as panicked or
/// cancelled.
struct RequestGuard {
    metrics: Metrics,
    route: Option<MatchedPath>,
    is_answered: bool,
}

impl RequestGuard {
    fn count(&self, outcome: &'static str) {
        self.metrics.count_request(self.route.as_ref().map(MatchedPath::as_str), outcome);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if !self.is_answered {
            self.count(if std::thread::panicking() { INTERNAL } else { CANCELED });
        }
    }
}
