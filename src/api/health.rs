//! Serves liveness, readiness and the status of the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use super::error::ApiError;
use super::visibility::Visibility;
use super::wire::{DaemonStatus, QuarantinedPackage, StoreCondition};
use super::{App, packages, wire};
use crate::base::errors::chain;
use crate::models::ingest::install::InstallProgress;
use crate::models::ingest::intake;
use crate::package::Verity;
use crate::package::drop_dir::list_quarantined;
use crate::telemetry::log::Message;

/// Answers 200 whenever the event loop runs.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Answers 200 when the default model is ready, with a line below `ok` for each degraded part.
pub(super) async fn readyz(State(app): State<App>) -> Result<String, ApiError> {
    let overview = app.handle.overview().borrow().clone();
    if !overview.is_ready() {
        let error = ApiError::not_ready(&app.handle.default_model());
        return Err(error.with_degraded(&overview.degraded));
    }
    let lines = overview.degraded.iter().map(|what| format!("degraded: {what}\n"));
    Ok(std::iter::once("ok\n".to_owned()).chain(lines).collect())
}

pub(super) async fn status(
    State(app): State<App>,
    visibility: Visibility,
) -> Result<Json<DaemonStatus>, ApiError> {
    let packages = packages::describe_all(&app, &visibility).await?;
    let measured = tokio::task::spawn_blocking(measure).await?;
    let drop_directory = app.settings.borrow().packages.drop_directory.clone();
    let quarantine = visibility.quarantine(quarantine(drop_directory).await?);
    let overview = app.handle.overview().borrow().clone();
    let unsigned = packages::unsigned(&app);
    let intake = visibility.intake(app.intake.borrow().clone());
    let store = store(&app).await?;
    Ok(Json(DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: app.started.elapsed().as_secs(),
        ready: overview.is_ready(),
        default_model: visibility.default_model(&app),
        threads: app.threads,
        resident_memory_bytes: measured.resident,
        memory_level: overview.level.name().to_owned(),
        memory_pressure_source: overview.source,
        queue_size: app.settings.borrow().embedding.queue_size,
        machine_memory_bytes: measured.total,
        machine_memory_available_bytes: measured.available,
        degraded: overview.degraded,
        store,
        sandbox: app.sandbox.clone(),
        configuration: visibility.configuration(&app),
        tenants: visibility.tenants(&app),
        quarantine,
        intake_omitted: intake.omitted,
        package_directories: intake.directories.iter().map(package_directory).collect(),
        intake: intake.packages.iter().map(incoming_package).collect(),
        unsigned,
        packages,
    }))
}

/// Describes a package on its way.
fn incoming_package(package: &intake::IncomingPackage) -> wire::intake::IncomingPackage {
    let read = package.progress.as_ref().and_then(InstallProgress::read_bytes);
    let retry_in = package.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
    wire::intake::IncomingPackage {
        file: package.file.clone(),
        directory: package.directory.display().to_string(),
        state: package.state_name().to_owned(),
        bytes: read.map(|(bytes, _size)| bytes).or(package.bytes),
        expected_bytes: read.map(|(_bytes, size)| size),
        reason: package.reason.clone(),
        retry_in_seconds: retry_in.map(|time| time.as_secs()),
    }
}

fn package_directory(directory: &intake::DirectoryReport) -> wire::intake::PackageDirectory {
    let (state, reason) = directory.state.describe();
    wire::intake::PackageDirectory {
        path: directory.path.display().to_string(),
        state: state.to_owned(),
        reason: reason.map(str::to_owned),
    }
}

/// Describes the state of the store's disk.
async fn store(app: &App) -> Result<StoreCondition, ApiError> {
    let store = Arc::clone(app.handle.store());
    let condition = tokio::task::spawn_blocking(move || store.condition()).await?;
    let (verity, verity_reason) = match condition.verity {
        Verity::On => (true, None),
        Verity::Off(reason) => (false, Some(reason)),
    };
    Ok(StoreCondition {
        file_system: condition.file_system,
        writable: condition.unwritable.is_none(),
        verity,
        verity_reason,
        next_validation_at: app.handle.next_validation(),
    })
}

/// Reads the quarantine of a drop directory; `None` when it cannot be read.
async fn quarantine(drop_directory: PathBuf) -> Result<Option<Vec<QuarantinedPackage>>, ApiError> {
    match tokio::task::spawn_blocking(move || list_quarantined(&drop_directory)).await? {
        Ok(packages) => Ok(Some(Vec::from_iter(
            packages.into_iter().map(|(file, reason)| QuarantinedPackage { file, reason }),
        ))),
        Err(error) => {
            tracing::warn!(
                name: Message::DirectoryUnreadable.name(),
                error = chain(&error),
                "the quarantine directory cannot be read"
            );
            Ok(None)
        }
    }
}

/// Memory in bytes; `None` where the system does not report it.
#[derive(Default)]
struct ProcessMemory {
    resident: Option<u64>,
    total: Option<u64>,
    available: Option<u64>,
}

/// Measures memory. Reads files: must not run on the runtime's threads.
fn measure() -> ProcessMemory {
    let Ok(mut system) = System::new() else { return ProcessMemory::default() };
    system.refresh_memory();
    ProcessMemory {
        resident: resident(&mut system),
        total: Some(system.total_memory()),
        available: Some(system.available_memory()),
    }
}

/// Reads the resident memory of this process in bytes, if the system reports it. Reads files: must
/// not run on the runtime's threads.
pub(super) fn resident_memory() -> Option<u64> {
    System::new().ok().and_then(|mut system| resident(&mut system))
}

fn resident(system: &mut System) -> Option<u64> {
    let pid = sysinfo::get_current_pid().ok()?;
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, memory);
    system.process(pid).map(sysinfo::Process::memory)
}
