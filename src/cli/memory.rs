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
    FlushResponse, LoadModelRequest, MemoryLimit, MemoryLimitSetting, MemoryStatus, ModelMemory,
    ResidencyChange,
};
use crate::base::units::Bytes;

/// Show memory, load and unload models, and limit the memory of the daemon.
#[derive(Debug, Subcommand)]
pub(super) enum Memory {
    /// Show the memory pressure, the limits, and the models with their memory.
    Status(Status),
    /// Unload all models that are not pinned, and wait until they are unloaded; for administrators.
    Flush(Flush),
    /// Load a model, and optionally pin or unpin it; for administrators.
    #[command(
        after_help = "Examples:\n  caxton memory load bundled-mini --pin\n  caxton memory load bundled-mini --unpin"
    )]
    Load(Load),
    /// Unload a model, and wait until it is unloaded; for administrators.
    #[command(after_help = "Examples:\n  caxton memory unload bundled-mini")]
    Unload(Unload),
    /// Limit the daemon's memory until its next start; for administrators.
    #[command(after_help = "Examples:\n  caxton memory limit 2GiB\n  caxton memory limit auto")]
    Limit(Limit),
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print the complete answer of the daemon in JSON, with the last actions against pressure.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Flush {
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// Model, as `id`, `id@version` or `id@revision`.
    model: String,
    /// Exclude the model from eviction until the daemon's next start.
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,
    /// Allow the eviction of the model again.
    #[arg(long)]
    unpin: bool,
}

#[derive(Debug, Args)]
pub(super) struct Unload {
    /// Model, as `id`, `id@version` or `id@revision`.
    model: String,
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
        let status: MemoryStatus = connection.connect().await?.get("/api/memory/status").await?;
        if self.json {
            return print_json(&status);
        }
        let mut facts = vec![
            fact("level", status.level),
            fact("source", status.source),
            fact("process", size(status.measured.process_bytes)),
            fact("control group", size(status.measured.unreclaimable_bytes)),
            fact("mapped files", size(status.measured.mapped_bytes)),
            fact("headroom for models", size(status.headroom_bytes)),
        ];
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
        let flushed: FlushResponse = connection
            .connect()
            .await?
            .call(Method::POST, "/api/memory/flush", Body::empty())
            .await?;
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
        let path = format!("/api/memory/models/{}/load", segment(&self.model));
        let moved: ResidencyChange =
            connection.connect().await?.post(&path, &LoadModelRequest { pinned }).await?;
        let how = if moved.was_resident { "already loaded" } else { "loaded" };
        let facts = [fact(&moved.model, format!("{how}, {} ms", moved.duration_ms))];
        Ok(print_table(&["MODEL", ""], &facts)?)
    }
}

impl Unload {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let path = format!("/api/memory/models/{}", segment(&self.model));
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
