//! Shows memory to the extent that [`Visibility`] allows, and changes it for administrators.

use std::time::{Instant, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;

use super::App;
use super::error::ApiError;
use super::input::{BodyLimit, PathName, read_optional_json, read_small_json};
use super::visibility::Visibility;
use super::wire::memory::{
    FlushResponse, LoadModelRequest, MeasuredMemory, MemoryAction, MemoryLimit, MemoryLimitSetting,
    MemoryStatus, ModelMemory, Pressure, ResidencyChange, SystemMemory,
};
use crate::base::units::{Bytes, milliseconds};
use crate::memory::sample::{Psi, Sample};
use crate::models::{ActionRecord, ModelView, Residency};
use crate::telemetry::log::Message;

/// Longest body of these routes.
const MAX_BODY: BodyLimit = BodyLimit::Route(Bytes(4096));
/// Value for no limit other than those of the kernel.
const AUTO: &str = "auto";

pub(super) async fn status(
    State(app): State<App>,
    visibility: Visibility,
) -> Result<Json<MemoryStatus>, ApiError> {
    let view = app.handle.memory().await?;
    let reading = view.reading;
    let limits = reading.sample.limits.iter().map(|limit| MemoryLimit {
        bytes: limit.bytes.0,
        unreclaimable_bytes: limit.unreclaimable.0,
        file: limit.file.display().to_string(),
    });
    let models = view.models.into_iter().filter(|model| visibility.shows(&model.key));
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
        models: models.map(model).collect(),
        actions: actions.collect(),
    }))
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

pub(super) async fn flush(State(app): State<App>) -> Result<Json<FlushResponse>, ApiError> {
    let flushed = app.handle.flush().await?;
    let freed = flushed.before.process.0.saturating_sub(flushed.after.process.0);
    let duration_ms = milliseconds(flushed.duration);
    tracing::info!(
        name: Message::MemoryFlushed.name(),
        models = flushed.unloaded.len(), freed_bytes = freed, duration_ms,
        "models unloaded at the request of an administrator"
    );
    Ok(Json(FlushResponse {
        unloaded: flushed.unloaded.iter().map(ToString::to_string).collect(),
        before: measured(&flushed.before),
        after: measured(&flushed.after),
        freed_bytes: freed,
        duration_ms,
    }))
}

pub(super) async fn load(
    State(app): State<App>,
    PathName(name): PathName,
    body: Body,
) -> Result<Json<ResidencyChange>, ApiError> {
    let body: Option<LoadModelRequest> = read_optional_json(body, MAX_BODY).await?;
    let started = Instant::now();
    let resident = is_resident(&app, &name).await?;
    let lease = app.handle.lease(Some(&name)).await?;
    if let Some(pinned) = body.and_then(|body| body.pinned) {
        app.handle.pin(&name, pinned).await?;
    }
    let model = format!("{}@{}", lease.info.manifest.id, lease.info.manifest.version);
    let duration_ms = milliseconds(started.elapsed());
    Ok(Json(ResidencyChange { model, was_resident: resident, duration_ms }))
}

pub(super) async fn unload(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Json<ResidencyChange>, ApiError> {
    let started = Instant::now();
    let was_resident = app.handle.unload(&name).await?;
    let duration_ms = milliseconds(started.elapsed());
    Ok(Json(ResidencyChange { model: name, was_resident, duration_ms }))
}

pub(super) async fn set_limit(
    State(app): State<App>,
    body: Body,
) -> Result<Json<MemoryLimitSetting>, ApiError> {
    let MemoryLimitSetting { limit } = read_small_json(body, MAX_BODY).await?;
    let bytes = match limit.as_str() {
        AUTO => None,
        size => Some(size.parse::<Bytes>().map_err(|_not_a_size| {
            let message = format!(
                "limit is {size:?}; expected a size with its unit, such as \"512MiB\", or \
                 \"{AUTO}\""
            );
            ApiError::invalid(Some("limit".to_owned()), message)
        })?),
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
