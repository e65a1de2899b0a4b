//! `caxton embed`: prints the vectors of texts.
//!
//! Standard input is read in chunks, each of which is one request, so that its size has no limit.

use std::io::{self, BufRead, BufWriter, IsTerminal, Write};

use clap::Args;

use super::lines::{Line, Lines};
use super::{Connection, print_error, print_json, progress, terminal};
use crate::api::wire::{AdditionalEmbeddings, Embedding, EmbeddingsResponse, Vector};
use crate::base::exit::Exit;

/// Lines of standard input that go into one request: enough to keep the daemon busy, few enough to
/// show progress.
const LINES: usize = 128;
/// Bytes of the lines in one request, above which no further line is added.
const REQUEST_BYTES: usize = 1 << 20;

/// Print the vectors of texts.
#[derive(Debug, Args)]
pub(super) struct Embed {
    /// Text to embed [default: each line of standard input].
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Model or alias [default: the daemon's default model].
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Further model that embeds the same texts; up to three may be given. The vectors of a text
    /// follow each other in the order of the models.
    #[arg(long = "additional-model", value_name = "ID")]
    additional_models: Vec<String>,
    /// Prompt of the model to put before each text, such as "query".
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// Number of lines of standard input to skip, to continue after an interruption.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "texts")]
    skip: u64,
    /// Print one JSON object for each text, in order: the number of its line, the model and the
    /// vector. For large inputs.
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

impl Embed {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut client = connection.connect().await?;
        let mut input = TextSource::new(&self.texts, self.skip)?;
        // The lines of a terminal would be mixed with the bar.
        let bar = match terminal::is_interactive() || io::stdin().is_terminal() {
            true => progress::texts(self.texts.len() as u64, "embedding"),
            false => progress::counted("embedding"),
        };
        let mut whole: Option<EmbeddingsResponse> = None;
        loop {
            let lines = input.next_chunk()?;
            if lines.is_empty() {
                break;
            }
            let texts = Vec::from_iter(lines.iter().map(|line| line.text.as_str()));
            let body = serde_json::json!({
                "input": texts,
                "model": self.model,
                "prompt_name": self.prompt,
                "additional_models": self.additional_models,
            });
            let part: EmbeddingsResponse = client.post_patiently("/v1/embeddings", &body).await?;
            bar.inc(lines.len() as u64);
            if self.json {
                match &mut whole {
                    None => whole = Some(part),
                    Some(whole) => append(whole, part),
                }
            } else if self.json_lines {
                print_json_lines(&lines, &part)?;
            } else {
                print_vectors(&part)?;
            }
        }
        bar.finish_and_clear();
        if let Some(whole) = whole {
            print_json(&whole)?;
        }
        Ok(Exit::Ok)
    }
}

/// Texts of the command line, or lines of standard input.
enum TextSource {
    Arguments(Vec<Line>),
    Input(Lines<Box<dyn BufRead>>),
}

impl TextSource {
    fn new(texts: &[String], skip: u64) -> anyhow::Result<Self> {
        if !texts.is_empty() {
            let lines = (1..).zip(texts).map(|(number, text)| Line { number, text: text.clone() });
            return Ok(Self::Arguments(lines.collect()));
        }
        if io::stdin().is_terminal() {
            print_error("enter one text per line; end the input with Ctrl-D");
        }
        let mut lines = Lines::new(Box::new(io::stdin().lock()) as Box<dyn BufRead>);
        lines.skip(skip)?;
        Ok(Self::Input(lines))
    }

    /// Returns the texts of the next request; none at the end.
    fn next_chunk(&mut self) -> anyhow::Result<Vec<Line>> {
        match self {
            Self::Arguments(texts) => Ok(texts.drain(..texts.len().min(LINES)).collect()),
            Self::Input(lines) => lines.chunk(LINES, REQUEST_BYTES),
        }
    }
}

/// Adds the answer about later texts.
fn append(whole: &mut EmbeddingsResponse, mut part: EmbeddingsResponse) {
    let add = |all: &mut Vec<Embedding>, more: &mut Vec<Embedding>| {
        let before = all.len();
        more.iter_mut().for_each(|embedding| embedding.index += before);
        all.append(more);
    };
    add(&mut whole.data, &mut part.data);
    whole.usage.prompt_tokens += part.usage.prompt_tokens;
    whole.usage.total_tokens += part.usage.total_tokens;
    for (all, more) in whole.additional.iter_mut().zip(&mut part.additional) {
        add(&mut all.data, &mut more.data);
        all.usage.prompt_tokens += more.usage.prompt_tokens;
        all.usage.total_tokens += more.usage.total_tokens;
    }
}

/// Returns the vector of each model for the text number `index`.
fn vectors_of(answer: &EmbeddingsResponse, index: usize) -> impl Iterator<Item = &Embedding> {
    let additional = answer.additional.iter().filter_map(move |model| model.data.get(index));
    answer.data.get(index).into_iter().chain(additional)
}

fn print_vectors(answer: &EmbeddingsResponse) -> anyhow::Result<()> {
    (0..answer.data.len()).flat_map(|index| vectors_of(answer, index)).try_for_each(print_vector)
}

/// Prints one JSON object for each of `lines`.
fn print_json_lines(lines: &[Line], answer: &EmbeddingsResponse) -> anyhow::Result<()> {
    let mut out = BufWriter::new(terminal::json());
    for (index, (line, embedding)) in lines.iter().zip(&answer.data).enumerate() {
        let mut object = serde_json::json!({
            "line": line.number,
            "model": answer.model,
            "embedding": embedding.embedding,
        });
        if !answer.additional.is_empty() {
            let additional = |model: &AdditionalEmbeddings| {
                serde_json::json!({
                    "model": model.model,
                    "embedding_space": model.embedding_space,
                    "embedding": model.data.get(index).map(|embedding| &embedding.embedding),
                })
            };
            object["additional"] = answer.additional.iter().map(additional).collect();
        }
        serde_json::to_writer(&mut out, &object).map_err(io::Error::from)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn print_vector(embedding: &Embedding) -> anyhow::Result<()> {
    let text = match &embedding.embedding {
        Vector::Float(values) => spaced(values),
        Vector::Signed(values) => spaced(values),
        Vector::Unsigned(values) => spaced(values),
        Vector::Base64(text) => text.clone(),
    };
    writeln!(terminal::out(), "{text}")?;
    Ok(())
}

fn spaced(values: &[impl ToString]) -> String {
    Vec::from_iter(values.iter().map(ToString::to_string)).join(" ")
}
