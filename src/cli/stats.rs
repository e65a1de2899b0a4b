//! `caxton model stats`: shows the use and speed of each model, and its next expected use.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::{Connection, print_json, print_table};
use crate::api::wire::{ModelStats, ModelStatsList};

/// Show the use and the speed of each model.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let stats: ModelStatsList = connection.connect().await?.get("/api/models/stats").await?;
        if self.json {
            return print_json(&stats);
        }
        let rows: Vec<Vec<String>> = stats.models.iter().map(row).collect();
        let headings = [
            "MODEL", "VERSION", "REQUESTS", "FAILED", "TEXTS", "TOKENS", "LATENCY", "LOADS",
            "LOADING", "USES/H", "LAST USE", "NEXT USE",
        ];
        Ok(print_table(&headings, &rows)?)
    }
}

fn row(model: &ModelStats) -> Vec<String> {
    let latency = model.recent_latency_ms.as_ref();
    let loading = model.load_ms.map(|load| format!("{load:.0} ms"));
    vec![
        model.id.clone(),
        // The counts of a removed model remain.
        if model.installed {
            model.version.clone()
        } else {
            format!("{} (removed)", model.version)
        },
        model.requests.to_string(),
        model.failures.to_string(),
        model.texts.to_string(),
        model.tokens.to_string(),
        or_dash(latency.map(|latency| format!("{:.1}, {:.1} ms", latency.p50, latency.p95))),
        model.loads.to_string(),
        or_dash(loading),
        format!("{:.1}", model.uses_per_hour),
        or_dash(model.last_used_at.map(time)),
        or_dash(
            model
                .next_use
                .as_ref()
                .map(|next| format!("{} ({:.0} %)", time(next.at), next.probability * 100.0)),
        ),
    ]
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

/// Formats a time in RFC 3339, in UTC; a number that is out of range is printed unchanged.
fn time(at: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(at)) {
        // Later times are beyond the year 9999, which humantime cannot format.
        Some(time) if at < 253_402_300_800 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => at.to_string(),
    }
}
