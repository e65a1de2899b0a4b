//! Shows memory to the extent that [`Visibility`] allows, and changes it for administrators.

use std::cmp::Reverse;
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};

use super::App;
use super::error::ApiError;
use super::input::{BodyLimit, PathName, parameter, read_optional_json, read_small_json};
use super::visibility::Visibility;
use super::wire::memory::{
    FlushRequest, FlushResponse, LoadModelRequest, LoadModelsRequest, LoadResult, LoadedModels,
    MeasuredMemory, MemoryAction, MemoryLimit, MemoryLimitSetting, MemoryStatus, ModelCounts,
    ModelMemory, Pressure, ResidencyChange, SystemMemory,
};
use crate::base::units::{Bytes, milliseconds, parse_duration};
use crate::config::MemorySettings;
use crate::memory::sample::{Psi, Sample};
use crate::models::{ActionRecord, FlushScope, ModelView, REQUEST_TIMEOUT, Residency};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;

/// Longest body of these routes.
const MAX_BODY: BodyLimit = BodyLimit::Route(Bytes(4096));
/// Value for no limit other than those of the kernel.
const AUTO: &str = "auto";
/// Most models of one request to load.
const MAX_LOADS: usize = 32;
/// Longest wait for a load, unless the request sets another one.
const LOAD_WAIT: Duration = Duration::from_secs(30);

pub(super) async fn status(
    State(app): State<App>,
    visibility: Visibility,
    RawQuery(query): RawQuery,
) -> Result<Json<MemoryStatus>, ApiError> {
    let order = parameter(query.as_deref(), "sort", &["name", "use", "memory"])?;
    let view = app.handle.memory().await?;
    let reading = view.reading;
    let limits = reading.sample.limits.iter().map(|limit| MemoryLimit {
        bytes: limit.bytes.0,
        unreclaimable_bytes: limit.unreclaimable.0,
        file: limit.file.display().to_string(),
    });
    let shown = view.models.into_iter().filter(|model| visibility.shows(&model.key));
    let shown = Vec::from_iter(shown);
    let model_counts = count_by_state(&shown);
    let mut models = Vec::from_iter(shown.into_iter().map(model));
    match order.as_deref() {
        // Models that are not in memory have no last use, and come last.
        Some("use") => models.sort_by_key(|model| model.idle_seconds.unwrap_or(u64::MAX)),
        Some("memory") => models.sort_by_key(|model| Reverse(model.weight_bytes)),
        _ => {}
    }
    let actions = view.actions.into_iter().filter_map(|record| {
        let key = record.model.clone();
        visibility.action(key.as_ref(), action(record))
    });
    let machine = &reading.sample.machine;
    // The sample has `u64::MAX` on a system that does not report its memory.
    let known = |bytes: Bytes| (bytes.0 < u64::MAX).then_some(bytes.0);
    Ok(Json(MemoryStatus {
        level: reading.level.name().to_owned(),
        cause: reading.cause.clone(),
        source: reading.source.clone(),
        shedding: view.is_shedding,
        headroom_bytes: view.headroom.0,
        used_percent: used_percent(&reading.sample),
        total_loaded_bytes: models
            .iter()
            .fold(0, |sum, model| model.weight_bytes.saturating_add(sum)),
        model_counts,
        measured: measured(&reading.sample),
        configured_limit_bytes: view.configured_limit.map(|limit| limit.0),
        limits: limits.collect(),
        system: SystemMemory {
            total_bytes: known(machine.total),
            available_bytes: known(machine.available),
            swap_total_bytes: machine.swap_total.0,
            swap_free_bytes: machine.swap_free.0,
            pressure: machine.psi.as_ref().map(pressure),
        },
        models,
        actions: actions.collect(),
    }))
}

/// Returns the used share of the tightest limit, or of the machine, in percent with one decimal.
fn used_percent(sample: &Sample) -> Option<f64> {
    let (used, most) = match sample.tightest() {
        Some(limit) => (limit.unreclaimable, limit.bytes),
        None => {
            let (total, available) = (sample.machine.total, sample.machine.available);
            (Bytes(total.0.saturating_sub(available.0)), total)
        }
    };
    let is_known = most.0 > 0 && most.0 < u64::MAX;
    is_known.then(|| (used.0 as f64 / most.0 as f64 * 1000.0).round() / 10.0)
}

fn measured(sample: &Sample) -> MeasuredMemory {
    MeasuredMemory {
        unreclaimable_bytes: sample.unreclaimable.0,
        process_bytes: sample.process.0,
        mapped_bytes: sample.mapped.0,
        swap_bytes: sample.swap.0,
        pressure: sample.psi.as_ref().map(pressure),
    }
}

fn pressure(psi: &Psi) -> Pressure {
    Pressure {
        some_avg10_percent: psi.some_avg10,
        some_avg60_percent: psi.some_avg60,
        full_avg10_percent: psi.full_avg10,
    }
}

fn count_by_state(models: &[ModelView]) -> ModelCounts {
    let mut counts = ModelCounts::default();
    for model in models {
        match model.residency {
            Residency::Resident { .. } => counts.loaded += 1,
            Residency::Loading => counts.loading += 1,
            Residency::Draining => counts.unloading += 1,
            Residency::Failed(_) => counts.error += 1,
            Residency::Unloaded | Residency::CoolingDown => {}
        }
    }
    counts
}

fn model(view: ModelView) -> ModelMemory {
    let (id, version, _revision) = view.key.parts();
    let (weight_bytes, problem) = match &view.residency {
        Residency::Resident { weight_bytes, .. } => (*weight_bytes, None),
        Residency::Failed(reason) => (0, Some(reason.clone())),
        _ => (0, None),
    };
    ModelMemory {
        id: id.to_owned(),
        version: version.to_owned(),
        residency: view.residency.name().to_owned(),
        problem,
        weight_bytes,
        peak_bytes: view.footprint.map_or(0, |footprint| footprint.peak_bytes()),
        priority: view.priority,
        pinned: view.pinned,
        idle_seconds: view.idle.map(|idle| idle.as_secs()),
        expires_in_seconds: view.expires.map(|expires| expires.as_secs()),
    }
}

fn action(record: ActionRecord) -> MemoryAction {
    MemoryAction {
        at: record.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        action: record.action.to_owned(),
        model: record.model.map(|key| key.to_string()),
        level: record.level.name().to_owned(),
        reason: record.reason,
        freed_bytes: record.freed.map(|freed| freed.0),
        duration_ms: milliseconds(record.duration),
    }
}

pub(super) async fn flush(
    State(app): State<App>,
    body: Body,
) -> Result<Json<FlushResponse>, ApiError> {
    let request: FlushRequest = read_optional_json(body, MAX_BODY).await?.unwrap_or_default();
    let flushed = app.handle.flush(flush_scope(&request)?).await?;
    let freed = flushed.before.process.0.saturating_sub(flushed.after.process.0);
    let duration_ms = milliseconds(flushed.duration);
    tracing::info!(
        name: Message::MemoryFlushed.name(),
        models = flushed.unloaded.len(), freed_bytes = freed, duration_ms,
        "memory flushed at the request of an administrator"
    );
    app.events.publish(Event::MemoryFlushed {
        models: flushed.unloaded.iter().map(|key| key.name().to_owned()).collect(),
        freed_bytes: freed,
    });
    Ok(Json(FlushResponse {
        unloaded: flushed.unloaded.iter().map(ToString::to_string).collect(),
        before: measured(&flushed.before),
        after: measured(&flushed.after),
        freed_bytes: freed,
        duration_ms,
    }))
}

fn flush_scope(request: &FlushRequest) -> Result<FlushScope, ApiError> {
    let FlushRequest { idle_for, caches_only } = request;
    let invalid = |message| ApiError::invalid(Some("idle_for".to_owned()), message);
    match idle_for {
        None if *caches_only => Ok(FlushScope::Caches),
        None => Ok(FlushScope::All),
        Some(_) if *caches_only => {
            let message = "idle_for unloads models and caches_only does not; send one of them";
            Err(invalid(message.to_owned()))
        }
        Some(time) => {
            let parsed = parse_duration(time);
            let parsed = parsed.map_err(|error| invalid(format!("idle_for: {error}")))?;
            Ok(FlushScope::Unused(parsed))
        }
    }
}

pub(super) async fn load(
    State(app): State<App>,
    PathName(name): PathName,
    body: Body,
) -> Result<Json<ResidencyChange>, ApiError> {
    let body: Option<LoadModelRequest> = read_optional_json(body, MAX_BODY).await?;
    let LoadModelRequest { pinned, wait } = body.unwrap_or_default();
    let deadline = Instant::now() + load_wait(wait.as_deref())?;
    Ok(Json(load_model(&app, &name, pinned, deadline).await?))
}

/// Loads the models of a list, one after the other, so that each is admitted with the memory that
/// the ones before it have left. After the wait, the rest is requested without another wait.
pub(super) async fn load_all(
    State(app): State<App>,
    body: Body,
) -> Result<Json<LoadedModels>, ApiError> {
    let LoadModelsRequest { models, pinned, wait } = read_small_json(body, MAX_BODY).await?;
    let deadline = Instant::now() + load_wait(wait.as_deref())?;
    if models.is_empty() || models.len() > MAX_LOADS {
        let message = format!("models has {} names; expected 1 to {MAX_LOADS} names", models.len());
        return Err(ApiError::invalid(Some("models".to_owned()), message));
    }
    let mut results = Vec::with_capacity(models.len());
    for name in models {
        let (change, error) = match load_model(&app, &name, pinned, deadline).await {
            Ok(change) => (Some(change), None),
            Err(error) => (None, Some(error.to_body())),
        };
        results.push(LoadResult { name, change, error });
    }
    let loaded = results.iter().filter(|result| result.change.is_some()).count();
    Ok(Json(LoadedModels { loaded, results }))
}

/// Returns the longest wait for a load. `text` is the wait of the request.
fn load_wait(text: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(LOAD_WAIT) };
    let invalid = |message| ApiError::invalid(Some("wait".to_owned()), message);
    let wait = parse_duration(text).map_err(|error| invalid(format!("wait: {error}")))?;
    if wait > REQUEST_TIMEOUT {
        let most = humantime::format_duration(REQUEST_TIMEOUT);
        return Err(invalid(format!("wait is {text:?}; expected at most {most}")));
    }
    Ok(wait)
}

async fn load_model(
    app: &App,
    name: &str,
    pinned: Option<bool>,
    deadline: Instant,
) -> Result<ResidencyChange, ApiError> {
    let started = Instant::now();
    let was_resident = is_resident(app, name).await?;
    let lease = app.handle.load(name, deadline).await?;
    if let Some(pinned) = pinned {
        app.handle.pin(name, pinned).await?;
    }
    let duration = started.elapsed();
    let (manifest, revision) = (&lease.info.manifest, &*lease.info.revision);
    let loaded = app.handle.residency().await?.into_iter().find_map(|(key, residency)| {
        let is_it = key.id() == manifest.id.as_str() && key.parts().2 == revision;
        match residency {
            Residency::Resident { weight_bytes, report, .. } if is_it => {
                Some((weight_bytes, report.precision.to_string()))
            }
            _ => None,
        }
    });
    let (bytes, precision) = loaded.unzip();
    Ok(ResidencyChange {
        model: format!("{}@{}", manifest.id, manifest.version),
        was_resident,
        bytes,
        precision,
        duration_ms: milliseconds(duration),
    })
}

pub(super) async fn unload(
    State(app): State<App>,
    PathName(name): PathName,
    RawQuery(query): RawQuery,
) -> Result<Json<ResidencyChange>, ApiError> {
    let force = parameter(query.as_deref(), "force", &["true", "false"])?;
    let started = Instant::now();
    let (key, was_resident) = app.handle.unload(&name, force.as_deref() == Some("true")).await?;
    Ok(Json(ResidencyChange {
        model: key.name().to_owned(),
        was_resident,
        bytes: None,
        precision: None,
        duration_ms: milliseconds(started.elapsed()),
    }))
}

pub(super) async fn set_limit(
    State(app): State<App>,
    body: Body,
) -> Result<Json<MemoryLimitSetting>, ApiError> {
    let MemoryLimitSetting { limit } = read_small_json(body, MAX_BODY).await?;
    let bytes = match limit.as_str() {
        AUTO => None,
        size => {
            let (least, most) = (MemorySettings::LEAST_LIMIT, MemorySettings::MOST_LIMIT);
            let parsed = size.parse().ok().filter(|size: &Bytes| (least..=most).contains(size));
            Some(parsed.ok_or_else(|| {
                let message = format!(
                    "limit is {size:?}; expected a size with its unit, such as \"512MiB\", from \
                     {least} to {most}, or \"{AUTO}\""
                );
                ApiError::invalid(Some("limit".to_owned()), message)
            })?)
        }
    };
    tracing::info!(
        name: Message::MemoryLimitSet.name(),
        limit,
        "memory limit set until the next start"
    );
    app.handle.set_memory_limit(bytes).await;
    Ok(Json(MemoryLimitSetting { limit }))
}

/// Returns whether the model that `name` means is in memory; false when there is no such model.
async fn is_resident(app: &App, name: &str) -> Result<bool, ApiError> {
    let catalog = app.handle.catalog();
    let Some(entry) = catalog.lookup(name) else { return Ok(false) };
    let residency = app.handle.residency().await?;
    Ok(matches!(residency.get(&entry.key), Some(Residency::Resident { .. })))
}
