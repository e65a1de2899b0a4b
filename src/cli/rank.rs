//! `caxton rank`: sorts lines by their similarity to a query, or by the scores of a reranker.

use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use clap::Args;

use super::lines::{Line, Lines};
use super::{Connection, print_error, print_json, terminal};
use crate::api::wire::rank::RankResponse;
use crate::base::exit::Exit;
use crate::base::printable;

/// Most lines of one request.
const MAX_LINES: usize = 2048;
/// Most bytes of all lines, which are read into memory.
const MAX_BYTES: usize = 64 << 20;

/// Sort lines of standard input by their similarity to a query.
#[derive(Debug, Args)]
pub(super) struct Rank {
    /// Text with which each line is compared.
    query: String,
    /// Model or alias [default: the daemon's reranker, or its default model].
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Comparison by meaning, by the meaning of each token, by keywords, or by meaning and
    /// keywords.
    #[arg(long, value_name = "MODE", default_value = "semantic", value_parser = ["semantic", "multi-vector", "hybrid", "keyword"])]
    mode: String,
    /// Number of best lines to print [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    top: Option<u64>,
    /// Print the answer of the daemon in JSON. Its indexes count the lines that are not empty, from
    /// 0.
    #[arg(long)]
    json: bool,
}

impl Rank {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        if io::stdin().is_terminal() {
            print_error("enter one text per line; end the input with Ctrl-D");
        }
        let lines = read(Lines::new(io::stdin().lock()))?;
        let texts = Vec::from_iter(lines.iter().map(|line| line.text.as_str()));
        let body = serde_json::json!({
            "query": self.query,
            "documents": texts,
            "model": self.model,
            "mode": self.mode,
            "top_n": self.top,
        });
        let mut client = connection.connect().await?;
        let answer: RankResponse = client.post_patiently("/v1/rank", &body).await?;
        if self.json {
            print_json(&answer)?;
            return Ok(Exit::Ok);
        }
        let by_reranker = answer.mode == "cross-encoder" && self.mode == "semantic";
        if answer.mode != self.mode && !by_reranker {
            print_error(&format!(
                "caxton: warning: no model could answer, so the lines are ranked by {}",
                printable::line(&answer.mode)
            ));
        }
        let mut out = terminal::out();
        for result in &answer.results {
            let text = texts.get(result.index).copied().unwrap_or_default();
            writeln!(out, "{:.4}\t{}", result.score, printable::line(text))?;
        }
        Ok(Exit::Ok)
    }
}

/// Reads all lines; there must be no more than one request can have.
fn read(mut lines: Lines<impl io::BufRead>) -> anyhow::Result<Vec<Line>> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some(line) = lines.next_line()? {
        bytes += line.text.len();
        if all.len() == MAX_LINES || bytes > MAX_BYTES {
            bail!(
                "standard input has more than {MAX_LINES} lines or 64 MiB, which are the limits of \
                 one request; select some lines first, for example with grep(1)"
            );
        }
        all.push(line);
    }
    Ok(all)
}
