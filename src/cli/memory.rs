//! `caxton memory`: shows memory usage and limits, and loads and unloads models.

use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use clap::{Args, Subcommand};

use super::bar::share;
use super::client::segment;
use super::{Connection, print_json, print_table, terminal};
use crate::api::wire::memory::{
    FlushRequest, FlushResponse, LoadModelRequest, LoadModelsRequest, LoadedModels, MemoryLimit,
    MemoryLimitSetting, MemoryStatus, ModelCounts, ModelMemory, ResidencyChange,
};
use crate::base::units::Bytes;

/// Show memory, load and unload models, and limit the memory of the daemon.
#[derive(Debug, Subcommand)]
pub(super) enum Memory {
    /// Show the memory pressure, the limits, and the models with their memory.
    Status(Status),
    /// Unload all models that are not pinned, or only idle ones, and wait until they are unloaded;
    /// for administrators.
    #[command(
        after_help = "Examples:\n  caxton memory flush\n  caxton memory flush --idle 10m\n  caxton memory flush --caches"
    )]
    Flush(Flush),
    /// Load models, and optionally pin or unpin them; for administrators.
    #[command(
        after_help = "Examples:\n  caxton memory load bundled-mini --pin\n  caxton memory load bundled-mini --unpin\n  caxton memory load bundled-mini --wait 2m"
    )]
    Load(Load),
    /// Unload a model, and wait until it is unloaded, at most 10 s; for administrators.
    #[command(
        after_help = "Examples:\n  caxton memory unload bundled-mini\n  caxton memory unload bundled-mini --force"
    )]
    Unload(Unload),
    /// Limit the daemon's memory until its next start or until memory.memory_limit is changed; for
    /// administrators.
    #[command(after_help = "Examples:\n  caxton memory limit 2GiB\n  caxton memory limit auto")]
    Limit(Limit),
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Order of the models: by name, the last used first, or the largest first.
    #[arg(long, value_name = "ORDER", default_value = "name", value_parser = ["name", "use", "memory"])]
    sort: String,
    /// Print the complete answer of the daemon in JSON, with the last actions against pressure.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Flush {
    /// Unload only the models without a request for this time, such as 10m.
    #[arg(long, value_name = "TIME", conflicts_with = "caches")]
    idle: Option<String>,
    /// Unload no model, and clear only the caches.
    #[arg(long)]
    caches: bool,
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// Models, each as `id`, `id@version` or `id@revision`. They are loaded in this order.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Exclude the models from eviction until the daemon's next start.
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,
    /// Allow the eviction of the models again.
    #[arg(long)]
    unpin: bool,
    /// Longest wait for all models together, up to 5m [default: 30s]. The loads continue
    /// afterwards.
    #[arg(long, value_name = "TIME")]
    wait: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Unload {
    /// Model, as `id`, `id@version` or `id@revision`.
    model: String,
    /// Drop the requests that wait for the model. Their clients get an error and may retry.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Limit {
    /// Size with its unit, such as 512MiB, or `auto` for the kernel's limits alone.
    limit: String,
}

impl Memory {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Status(command) => command.run(connection).await,
            Self::Flush(command) => command.run(connection).await,
            Self::Load(command) => command.run(connection).await,
            Self::Unload(command) => command.run(connection).await,
            Self::Limit(command) => command.run(connection).await,
        }
    }
}

impl Status {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let path = format!("/api/memory/status?sort={}", self.sort);
        let status: MemoryStatus = connection.connect().await?.get(&path).await?;
        if self.json {
            return print_json(&status);
        }
        let mut facts = vec![
            fact("level", status.level),
            fact("source", status.source),
            fact("process", size(status.measured.process_bytes)),
            fact("control group", size(status.measured.unreclaimable_bytes)),
            fact("mapped files", size(status.measured.mapped_bytes)),
            fact("models", counts(status.model_counts)),
            fact("weights of models", size(status.total_loaded_bytes)),
            fact("headroom for models", size(status.headroom_bytes)),
        ];
        if let Some(percent) = status.used_percent {
            facts.push(fact("used", format!("{percent:.1} %")));
        }
        if let Some(cause) = status.cause {
            facts.insert(1, fact("cause", cause));
        }
        for limit in status.limits {
            facts.push(fact("limit", format!("{} ({})", Bytes(limit.bytes), limit.file)));
        }
        print_table(&["MEMORY", ""], &facts)?;
        if !status.models.is_empty() {
            writeln!(terminal::out())?;
            let headings = ["MODEL", "VERSION", "STATE", "WEIGHTS", "PRIORITY", "IDLE", "UNLOAD"];
            print_table(&headings, &status.models.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Describes the numbers of models. Leaves out states without a model, except `loaded`.
fn counts(counts: ModelCounts) -> String {
    let ModelCounts { loaded, loading, unloading, error } = counts;
    let mut text = format!("{loaded} loaded");
    for (count, state) in [(loading, "loading"), (unloading, "unloading"), (error, "failed")] {
        if count > 0 {
            text = format!("{text}, {count} {state}");
        }
    }
    text
}

fn row(model: &ModelMemory) -> Vec<String> {
    let priority = if model.pinned { "pinned".to_owned() } else { model.priority.to_string() };
    vec![
        model.id.clone(),
        model.version.clone(),
        model.problem.as_ref().map_or_else(
            || model.residency.clone(),
            |problem| format!("{}: {problem}", model.residency),
        ),
        if model.weight_bytes == 0 { "-".to_owned() } else { size(model.weight_bytes) },
        priority,
        time(model.idle_seconds),
        model
            .expires_in_seconds
            .map_or_else(|| "-".to_owned(), |seconds| format!("in {}", time(Some(seconds)))),
    ]
}

impl Flush {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let request = FlushRequest { idle_for: self.idle, caches_only: self.caches };
        let flushed: FlushResponse =
            connection.connect().await?.post("/api/memory/flush", &request).await?;
        if self.json {
            return print_json(&flushed);
        }
        let facts = [
            fact("unloaded", names(&flushed.unloaded)),
            fact("before", size(flushed.before.process_bytes)),
            fact("after", size(flushed.after.process_bytes)),
            fact("freed", size(flushed.freed_bytes)),
            fact("duration", format!("{} ms", flushed.duration_ms)),
        ];
        Ok(print_table(&["MEMORY", ""], &facts)?)
    }
}

impl Load {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let pinned = if self.pin { Some(true) } else { self.unpin.then_some(false) };
        let mut client = connection.connect().await?;
        // An error of the only model determines the exit code.
        if let [model] = self.models.as_slice() {
            let path = format!("/api/memory/models/{}/load", segment(model));
            let request = LoadModelRequest { pinned, wait: self.wait };
            let loaded = client.post(&path, &request).await?;
            return Ok(print_table(&["MODEL", ""], &[loaded_fact(&loaded)])?);
        }
        let request = LoadModelsRequest { models: self.models, pinned, wait: self.wait };
        let LoadedModels { results, .. } = client.post("/api/memory/load", &request).await?;
        let rows = results.iter().filter_map(|result| match (&result.change, &result.error) {
            (Some(change), _) => Some(loaded_fact(change)),
            (None, Some(error)) => Some(fact(&result.name, format!("failed: {}", error.message))),
            (None, None) => None,
        });
        print_table(&["MODEL", ""], &Vec::from_iter(rows))?;
        let failed = results.iter().filter(|result| result.change.is_none()).count();
        anyhow::ensure!(failed == 0, "{failed} of {} models were not loaded", results.len());
        Ok(())
    }
}

/// Describes a model that is in memory.
fn loaded_fact(loaded: &ResidencyChange) -> Vec<String> {
    let how = if loaded.was_resident { "already loaded" } else { "loaded" };
    let mut text = format!("{how}, {} ms", loaded.duration_ms);
    if let (Some(bytes), Some(precision)) = (loaded.bytes, &loaded.precision) {
        text = format!("{text}, {} in {precision}", size(bytes));
    }
    fact(&loaded.model, text)
}

impl Unload {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let force = if self.force { "?force=true" } else { "" };
        let path = format!("/api/memory/models/{}{force}", segment(&self.model));
        let moved: ResidencyChange =
            connection.connect().await?.call(Method::DELETE, &path, Body::empty()).await?;
        let how = if moved.was_resident { "unloaded" } else { "was not loaded" };
        let facts = [fact(&moved.model, format!("{how}, {} ms", moved.duration_ms))];
        Ok(print_table(&["MODEL", ""], &facts)?)
    }
}

impl Limit {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let limit = MemoryLimitSetting { limit: self.limit };
        let set: MemoryLimitSetting =
            connection.connect().await?.send_json(Method::PUT, "/api/memory/limit", &limit).await?;
        Ok(print_table(&["MEMORY", ""], &[fact("limit", set.limit)])?)
    }
}

/// Returns the limit of which the largest share is used: used bytes, limit in bytes, and its name.
/// Without any limit, returns the machine's memory.
pub(super) fn nearest_limit(status: &MemoryStatus) -> Option<(u64, u64, &str)> {
    let used = |limit: &MemoryLimit| share(limit.unreclaimable_bytes, limit.bytes);
    match status.limits.iter().max_by(|a, b| used(a).total_cmp(&used(b))) {
        Some(limit) => {
            let name = limit.file.rsplit('/').next().unwrap_or_default();
            Some((limit.unreclaimable_bytes, limit.bytes, name))
        }
        None => {
            let total = status.system.total_bytes?;
            let used = total.saturating_sub(status.system.available_bytes?);
            Some((used, total, "the machine"))
        }
    }
}

fn fact(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn names(models: &[String]) -> String {
    if models.is_empty() { "none".to_owned() } else { models.join(", ") }
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

fn time(seconds: Option<u64>) -> String {
    seconds.map_or_else(
        || "-".to_owned(),
        |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    )
}
