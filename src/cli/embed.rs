//! `caxton embed`: prints the vectors of texts.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use clap::Args;

use super::{Connection, print_error, print_json, progress, terminal};
use crate::api::wire::{Embedding, EmbeddingsResponse, Vector};
use crate::base::exit::Exit;

/// Lines of standard input that go into one request: enough to keep the daemon busy, few enough to
/// show progress.
const LINES: usize = 128;

/// Print the vectors of texts.
#[derive(Debug, Args)]
pub(super) struct Embed {
    /// Text to embed [default: each line of standard input].
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Model or alias [default: the daemon's default model].
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Prompt of the model to put before each text, such as "query".
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

impl Embed {
    pub(super) async fn run(mut self, connection: &Connection) -> anyhow::Result<Exit> {
        if self.texts.is_empty() {
            if io::stdin().is_terminal() {
                print_error("enter one text per line; end the input with Ctrl-D");
            }
            let lines: Result<Vec<String>, _> = io::stdin().lock().lines().collect();
            self.texts = lines.context("cannot read standard input")?;
            // The API rejects empty texts, so skip empty lines.
            self.texts.retain(|line| !line.is_empty());
        }
        let mut client = connection.connect().await?;
        let total = self.texts.len();
        let bar = progress::texts(total as u64, "embedding");
        let mut whole: Option<EmbeddingsResponse> = None;
        for lines in self.texts.chunks(LINES) {
            let body = serde_json::json!({
                "input": lines,
                "model": self.model,
                "prompt_name": self.prompt,
            });
            let mut part: EmbeddingsResponse = client.post("/v1/embeddings", &body).await?;
            bar.inc(lines.len() as u64);
            if !self.json {
                part.data.iter().try_for_each(print_vector)?;
                continue;
            }
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    let before = whole.data.len();
                    part.data.iter_mut().for_each(|embedding| embedding.index += before);
                    whole.data.append(&mut part.data);
                    whole.usage.prompt_tokens += part.usage.prompt_tokens;
                    whole.usage.total_tokens += part.usage.total_tokens;
                }
            }
        }
        bar.finish_and_clear();
        if let Some(whole) = whole {
            print_json(&whole)?;
        }
        Ok(Exit::Ok)
    }
}

fn print_vector(embedding: &Embedding) -> anyhow::Result<()> {
    let mut out = terminal::out();
    match &embedding.embedding {
        Vector::Float(values) => {
            let values = Vec::from_iter(values.iter().map(ToString::to_string));
            writeln!(out, "{}", values.join(" "))?;
        }
        Vector::Base64(text) => writeln!(out, "{text}")?,
    }
    Ok(())
}
