//! Load on the running daemon: connections that send requests one after another.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};

use super::super::client::{Client, ClientError};
use super::super::measure::percentile;
use super::super::{Connection, print_table};
use super::milliseconds;
use crate::api::wire::EmbeddingsResponse;

/// Most latencies that are kept, for all connections together. Later ones are counted only.
const MAX_SAMPLES: usize = 1_000_000;
/// Time before the next request of a connection whose request was rejected.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Load to put on the daemon.
pub(super) struct DaemonLoad {
    /// Name of the model; `None` for the default model.
    pub(super) model: Option<String>,
    pub(super) connections: usize,
    pub(super) texts_per_request: usize,
    /// Time in which requests are sent.
    pub(super) time: Duration,
}

/// Figures of the daemon.
#[derive(Debug, Serialize)]
pub(super) struct DaemonReport {
    connections: usize,
    requests_per_second: f64,
    texts_per_second: f64,
    tokens_per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    /// Requests that got vectors.
    requests: u64,
    /// Requests that were rejected because the daemon was busy.
    rejected: u64,
}

/// Counts of one connection.
#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    rejected: u64,
    texts: u64,
    tokens: u64,
    latencies: Vec<Duration>,
}

impl DaemonLoad {
    /// Puts the load on the daemon. The first request is not counted, because it may load the
    /// model.
    pub(super) async fn run(
        self,
        connection: &Connection,
        texts: &[String],
    ) -> anyhow::Result<DaemonReport> {
        let bodies = Rc::new(self.bodies(texts));
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(connection.connect().await?);
        }
        if let Some(client) = clients.first_mut() {
            let _: EmbeddingsResponse = client.post("/v1/embeddings", &bodies[0]).await?;
        }
        let begun = Instant::now();
        let (until, samples) = (begun + self.time, MAX_SAMPLES.div_ceil(self.connections));
        let tasks = LocalSet::new();
        let mut running = JoinSet::new();
        for (first, client) in clients.into_iter().enumerate() {
            let bodies = Rc::clone(&bodies);
            running.spawn_local_on(send_requests(client, bodies, first, until, samples), &tasks);
        }
        let mut total = Counts::default();
        tasks
            .run_until(async {
                while let Some(counts) = running.join_next().await {
                    total.add(counts??);
                }
                anyhow::Ok(())
            })
            .await?;
        let time = begun.elapsed().as_secs_f64();
        total.latencies.sort_unstable();
        let percentile = |percent| milliseconds(percentile(&total.latencies, percent));
        let per_second = |count: u64| count as f64 / time;
        Ok(DaemonReport {
            connections: self.connections,
            requests_per_second: per_second(total.requests),
            texts_per_second: per_second(total.texts),
            tokens_per_second: per_second(total.tokens),
            p50_ms: percentile(50),
            p95_ms: percentile(95),
            p99_ms: percentile(99),
            requests: total.requests,
            rejected: total.rejected,
        })
    }

    /// Returns the bodies of the requests, which together have every text once.
    fn bodies(&self, texts: &[String]) -> Vec<serde_json::Value> {
        let body = |texts| {
            serde_json::json!({
                "input": texts,
                "model": self.model,
                "encoding_format": "base64",
            })
        };
        texts.chunks(self.texts_per_request).map(body).collect()
    }
}

/// Sends one request after another until `until`, beginning with the body number `first`, but at
/// least one. Keeps at most `samples` latencies.
async fn send_requests(
    mut client: Client,
    bodies: Rc<Vec<serde_json::Value>>,
    first: usize,
    until: Instant,
    samples: usize,
) -> Result<Counts, ClientError> {
    let mut counts = Counts::default();
    for body in bodies.iter().cycle().skip(first % bodies.len()) {
        let begun = Instant::now();
        match client.post::<EmbeddingsResponse>("/v1/embeddings", body).await {
            Ok(answer) => {
                counts.requests += 1;
                counts.texts += answer.data.len() as u64;
                counts.tokens += answer.usage.total_tokens as u64;
                if counts.latencies.len() < samples {
                    counts.latencies.push(begun.elapsed());
                }
            }
            Err(error) if error.is_busy() => {
                counts.rejected += 1;
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            break;
        }
    }
    Ok(counts)
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.rejected += other.rejected;
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.latencies.extend(other.latencies);
    }
}

impl DaemonReport {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let milliseconds = |value: f64| format!("{value:.2} ms");
        let rows = [
            ("connections", self.connections.to_string()),
            ("requests per second", format!("{:.1}", self.requests_per_second)),
            ("texts per second", format!("{:.1}", self.texts_per_second)),
            ("tokens per second", format!("{:.0}", self.tokens_per_second)),
            ("one request, p50", milliseconds(self.p50_ms)),
            ("one request, p95", milliseconds(self.p95_ms)),
            ("one request, p99", milliseconds(self.p99_ms)),
            ("requests with vectors", self.requests.to_string()),
            ("rejected requests", self.rejected.to_string()),
        ];
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        Ok(print_table(&["MEASURE", "VALUE"], &rows)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_every_text_once() {
        let texts = ["a", "b", "c"].map(str::to_owned);
        let time = Duration::ZERO;
        let load = DaemonLoad { model: None, connections: 1, texts_per_request: 2, time };
        let bodies = load.bodies(&texts);
        let inputs = Vec::from_iter(bodies.iter().map(|body| body["input"].to_string()));
        assert_eq!(inputs, [r#"["a","b"]"#, r#"["c"]"#]);
    }
}
