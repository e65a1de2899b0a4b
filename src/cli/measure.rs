//! Measurements: rounds over all texts, and texts one at a time.
//!
//! A thread of its own tokenizes ahead of the engine.
//!
//! Invariants:
//! 1. A round passes every text through the engine once, in passes of at most the token budget.
//! 2. Every text that is counted was tokenized and embedded within the measured time.

use std::cmp::Reverse;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::progress;
use crate::engine::{Embedder, EngineError, LoadedModel, Tokens};
use crate::models::residency::load::embed_plain;

/// Passes that wait for the engine, in addition to the one that the tokenizer prepares.
const PASSES_AHEAD: usize = 1;
/// Fewest samples: with fewer than 100, the 99th percentile is the maximum.
const LEAST_SAMPLES: usize = 100;

/// Result of whole rounds.
#[derive(Debug)]
pub(super) struct Throughput {
    /// Texts of all rounds.
    pub(super) texts: u64,
    /// Tokens of these texts, with the special ones.
    pub(super) tokens: u64,
    /// Operations in the matrix products for these texts.
    pub(super) operations: u64,
    /// Time from before the first text was tokenized to the last vector.
    pub(super) time: Duration,
    /// Vectors of one round, `[texts, dimensions]`, in the order of the input.
    pub(super) vectors: Vec<f32>,
}

impl Throughput {
    /// Returns `count` per second.
    pub(super) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.time.as_secs_f64()
    }
}

/// Texts that pass through the engine in one call.
#[derive(Default)]
struct EmbedCall {
    /// Index of each text in the input.
    texts: Vec<usize>,
    /// Token ids of each text.
    ids: Vec<Vec<u32>>,
    /// Tokens of all texts.
    tokens: usize,
    /// Whether this is the last pass of a round.
    ends_round: bool,
}

/// Duration of the measurement.
#[derive(Clone, Copy, Debug)]
pub(super) enum MeasureLength {
    /// Whole rounds until this time is over.
    Time(Duration),
    /// This many rounds, however long they take.
    Rounds(u64),
}

impl MeasureLength {
    /// Returns whether the measurement is over after `rounds` rounds, which took `time`.
    fn is_over(self, rounds: u64, time: Duration) -> bool {
        match self {
            Self::Time(least) => time >= least,
            Self::Rounds(count) => rounds >= count,
        }
    }

    /// Returns the largest number of rounds.
    fn most(self) -> u64 {
        match self {
            Self::Time(_) => u64::MAX,
            Self::Rounds(count) => count,
        }
    }
}

/// Embeds all of `texts`, each after `prompt`, again and again for `length`. There must be at least
/// one text.
///
/// # Errors
/// When a text cannot be tokenized or embedded, or a thread cannot be started.
pub(super) fn throughput(
    model: &LoadedModel,
    prompt: &str,
    texts: &[String],
    batch_tokens: usize,
    length: MeasureLength,
) -> anyhow::Result<Throughput> {
    let LoadedModel { tokenizer, embedder } = model;
    thread::scope(|scope| {
        let (passes, incoming) = sync_channel(PASSES_AHEAD);
        let started = Instant::now();
        let ahead = Builder::new()
            .name("tokenizer".to_owned())
            .spawn_scoped(scope, || {
                let encode = |text: &str| tokenizer.encode(prompt, text);
                tokenize_rounds(encode, texts, batch_tokens, length.most(), passes)
            })
            .context("cannot start a thread")?;
        let embedded = embed_rounds(embedder.as_ref(), texts.len(), incoming, started, length);
        // The receiver is dropped by now, which ends the thread.
        ahead.join().map_err(|_panic| anyhow!("the tokenizer's thread ended unexpectedly"))?;
        embedded
    })
}

fn embed_rounds(
    embedder: &dyn Embedder,
    texts: usize,
    incoming: Receiver<Result<EmbedCall, EngineError>>,
    started: Instant,
    length: MeasureLength,
) -> anyhow::Result<Throughput> {
    let dimensions = embedder.dimensions();
    let bar = progress::texts(texts as u64, "embedding");
    let mut done = Throughput {
        texts: 0,
        tokens: 0,
        operations: 0,
        time: Duration::ZERO,
        vectors: vec![0.0; texts * dimensions],
    };
    let mut rounds = 0;
    for pass in incoming {
        let pass = pass?;
        let ids: Vec<&[u32]> = pass.ids.iter().map(Vec::as_slice).collect();
        let vectors = embedder.embed(&ids)?;
        for (&text, vector) in pass.texts.iter().zip(vectors.chunks_exact(dimensions)) {
            done.vectors[text * dimensions..][..dimensions].copy_from_slice(vector);
        }
        done.texts += ids.len() as u64;
        done.tokens += pass.tokens as u64;
        done.operations += ids.iter().map(|ids| embedder.matrix_operations(ids.len())).sum::<u64>();
        done.time = started.elapsed();
        bar.inc(ids.len() as u64);
        if pass.ends_round {
            rounds += 1;
            if length.is_over(rounds, done.time) {
                break;
            }
            bar.reset();
        }
    }
    bar.finish_and_clear();
    Ok(done)
}

/// Sends the passes of `rounds` rounds, until the receiver is gone or a text cannot be tokenized.
fn tokenize_rounds(
    encode: impl Fn(&str) -> Result<Tokens, EngineError>,
    texts: &[String],
    batch_tokens: usize,
    rounds: u64,
    passes: SyncSender<Result<EmbedCall, EngineError>>,
) {
    // Texts of similar length share a pass, and the shortest come last, so that the threads of the
    // engine end the round together. The sort uses bytes, since the tokens are not known yet.
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&text| Reverse(texts[text].len()));
    for _ in 0..rounds {
        let mut pass = EmbedCall::default();
        for &text in &order {
            let ids = match encode(&texts[text]) {
                Ok(tokens) => tokens.ids,
                Err(error) => {
                    // A closed channel means that the engine failed first, and its error is
                    // reported.
                    drop(passes.send(Err(error)));
                    return;
                }
            };
            let full = !pass.texts.is_empty() && pass.tokens + ids.len() > batch_tokens;
            if full && passes.send(Ok(std::mem::take(&mut pass))).is_err() {
                return;
            }
            pass.tokens += ids.len();
            pass.texts.push(text);
            pass.ids.push(ids);
        }
        pass.ends_round = true;
        if passes.send(Ok(pass)).is_err() {
            return;
        }
    }
}

/// Measures how long one text takes alone, from its characters to its vector. Cycles over the texts
/// until `at_least` is over, and takes [`LEAST_SAMPLES`] at least. Returns the times sorted.
///
/// # Errors
/// When a text cannot be tokenized or embedded.
pub(super) fn latencies(
    model: &LoadedModel,
    texts: &[String],
    at_least: Duration,
) -> Result<Vec<Duration>, EngineError> {
    let started = Instant::now();
    let mut samples = Vec::new();
    for text in texts.iter().cycle() {
        let begun = Instant::now();
        embed_plain(model, text)?;
        samples.push(begun.elapsed());
        if samples.len() >= LEAST_SAMPLES && started.elapsed() >= at_least {
            break;
        }
    }
    samples.sort_unstable();
    Ok(samples)
}

/// Returns the smallest value of `sorted` that `percent` per cent of all values do not exceed; 0
/// for an empty slice.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let of = |count: u64, percent| {
            let samples: Vec<Duration> = (1..=count).map(Duration::from_millis).collect();
            percentile(&samples, percent).as_millis()
        };
        for (count, percent, expected) in
            [(0, 50, 0), (1, 99, 1), (2, 50, 1), (3, 50, 2), (100, 99, 99), (200, 95, 190)]
        {
            assert_eq!(of(count, percent), expected, "{percent} % of {count}");
        }
    }
}
