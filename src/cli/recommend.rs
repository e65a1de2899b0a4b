//! `caxton model recommend`: shows the installed models that suit a task, the best first.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::client::segment;
use super::{Connection, print_error, print_json, print_table, terminal};
use crate::api::wire::memory::{LoadModelRequest, ResidencyChange};
use crate::api::wire::{Recommendation, Recommendations};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::{ParseUnitError, milliseconds, parse_duration};
use crate::models::usage::recommend::{Complexity, TaskType, UnknownWord};

/// Show the installed models that suit a task.
#[derive(Debug, Args)]
pub(super) struct Recommend {
    /// Task for which vectors are wanted.
    #[arg(long, value_name = "TASK", default_value = "embedding", value_parser = TaskType::NAMES)]
    task: String,
    /// Difficulty of telling the texts apart: low, medium, high, or a number from 0 to 1.
    #[arg(long, value_name = "LEVEL", value_parser = complexity)]
    complexity: Option<String>,
    /// Longest latency of 95 in 100 requests, such as 50ms. Slower models are left out.
    #[arg(long, value_name = "TIME", value_parser = latency)]
    max_latency: Option<Duration>,
    /// Load the first of these models; for administrators.
    #[arg(long)]
    load: bool,
    /// Print the answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

fn complexity(text: &str) -> Result<String, UnknownWord> {
    text.parse::<Complexity>().map(|_complexity| text.to_owned())
}

fn latency(text: &str) -> Result<Duration, ParseUnitError> {
    parse_duration(text)
}

impl Recommend {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut path = format!("/api/models/recommendations?task_type={}", self.task);
        if let Some(complexity) = &self.complexity {
            path.push_str(&format!("&complexity={}", segment(complexity)));
        }
        if let Some(latency) = self.max_latency {
            // The daemon expects a whole number of milliseconds.
            path.push_str(&format!("&max_latency_ms={}", milliseconds(latency).max(1)));
        }
        let mut client = connection.connect().await?;
        let found: Recommendations = client.get(&path).await?;
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.recommendations)?;
        }
        let Some(best) = found.recommendations.first() else {
            print_error("caxton: no installed model is known to be fast enough");
            return Ok(Exit::Failure);
        };
        if self.load {
            let name = format!("{}@{}", best.id, best.version);
            let path = format!("/api/memory/models/{}/load", segment(&name));
            let loaded: ResidencyChange = client.post(&path, &LoadModelRequest::default()).await?;
            if !self.json {
                let what = if loaded.was_resident { "already in memory" } else { "loaded" };
                writeln!(terminal::out(), "{what}: {}", printable::line(&loaded.model))?;
            }
        }
        Ok(Exit::Ok)
    }
}

fn print(found: &[Recommendation]) -> anyhow::Result<()> {
    let rows = Vec::from_iter(found.iter().map(|model| {
        vec![
            model.id.clone(),
            model.version.clone(),
            model.suitability.replace('_', " "),
            model.tier.clone(),
            model.p95_ms.map_or_else(|| "-".to_owned(), |p95| format!("{p95:.1} ms")),
            model.memory.replace('_', " "),
        ]
    }));
    print_table(&["MODEL", "VERSION", "TASK", "TIER", "P95", "MEMORY"], &rows)?;
    if let Some(best) = found.first() {
        let what = format!("{}@{}: {}", best.id, best.version, best.reason);
        writeln!(terminal::out(), "{}", printable::line(&what))?;
    }
    Ok(())
}
