//! The worker: the one OS thread that owns the weights of a resident model, from loading to
//! dropping them.
//!
//! Requests arrive in batches through a bounded queue. A request that is longer than a batch is
//! computed in parts, with batches of other requests in between. While many requests wait, several
//! batches are computed concurrently, each on its share of the engine's threads. One batch more is
//! taken, so that no thread idles until the slowest one is done or the next batch is gathered. The
//! worker has a thread for each batch; the limits of the queue set their number, and may change.
//! The worker ends when every sender of the queue is dropped. So an unload is: drop the queue, then
//! join the thread.
//!
//! Invariants:
//! 1. Weights are allocated and dropped on the worker's own thread.
//! 2. A request that was cancelled is not begun, and not continued after the current pass.
//! 3. A request that cannot be computed fails alone, not together with the others in its batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Builder, JoinHandle, Scope};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::{Embedder, EngineOptions, LoadedModel, Output, PrecisionReport, Tokenizer};
use crate::models::residency::load::{self, LoadError};
use crate::models::serving::liveness::PassTracker;
use crate::models::serving::queue::{
    self, EmbedJob, QueueLimits, QueueReceiver, QueueSender, QueuedRequest, WorkItem,
};
use crate::models::{JobOutput, ModelInfo};
use crate::package::{EntryKey, Store, StoreError};
use crate::telemetry::log::Message;
use crate::telemetry::metrics::{FailureType, Metrics};

/// Tokens of a pass while memory is short: the smallest value that `embedding.batch_tokens` may
/// have.
const SHORT_PASS_TOKENS: usize = 512;

/// A token id that every vocabulary has.
const ANY_TOKEN: u32 = 0;

/// Reason why a worker ended before it accepted requests.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store could not provide the model's files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files are not a working model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The thread could not be started.
    #[error("cannot start the thread of the worker")]
    Thread(#[source] io::Error),
    /// The thread panicked; the cause is in the log.
    #[error("the worker ended unexpectedly")]
    Ended,
}

impl WorkerError {
    /// Returns the kind of fault in the model's bytes, if that is the cause.
    pub(in crate::models) fn failure(&self) -> Option<FailureType> {
        match self {
            Self::Store(StoreError::Corrupt { .. }) => Some(FailureType::Corrupt),
            Self::Load(error) => error.failure(),
            Self::Store(_) | Self::Thread(_) | Self::Ended => None,
        }
    }

    /// Returns other options for the load, if they may help; see [`load::retry_options`].
    pub(in crate::models) fn retry_options(
        &self,
        key: &EntryKey,
        options: EngineOptions,
    ) -> Option<EngineOptions> {
        match self {
            Self::Load(error) => load::retry_options(key, error, options),
            _ => None,
        }
    }
}

/// A loaded model, as the worker reports it.
#[derive(Debug)]
pub(in crate::models) struct ReadyModel {
    /// Facts that clients may know.
    pub(in crate::models) info: ModelInfo,
    /// Converts texts into token ids.
    pub(in crate::models) tokenizer: Arc<Tokenizer>,
    /// Memory of this process that the weights take, in bytes.
    pub(in crate::models) weight_bytes: u64,
    /// Bytes of the store's file that are read in place, in addition to `weight_bytes`.
    pub(in crate::models) mapped_bytes: u64,
    /// Arithmetic of the model.
    pub(in crate::models) report: PrecisionReport,
    /// Duration of the load.
    pub(in crate::models) load_time: Duration,
    /// Liveness of its threads.
    pub(in crate::models) pass_tracker: Arc<PassTracker>,
    /// Most tokens of a pass.
    pass_tokens: Arc<AtomicUsize>,
}

impl ReadyModel {
    /// Makes passes as long as `most` tokens from the next one on, or short if memory is short.
    pub(in crate::models) fn set_pass_limit(&self, most: usize, is_memory_short: bool) {
        let tokens = if is_memory_short { most.min(SHORT_PASS_TOKENS) } else { most };
        self.pass_tokens.store(tokens, Ordering::Relaxed);
    }
}

/// A running worker. It finishes its requests and ends when `queue` and all its clones are dropped.
#[derive(Debug)]
pub(in crate::models) struct Worker {
    /// Queue of its requests.
    pub(in crate::models) queue: QueueSender,
    /// Resolves once: to the loaded model, or to the reason of the failure.
    pub(in crate::models) ready: oneshot::Receiver<Result<ReadyModel, WorkerError>>,
    /// Thread of the worker, which ends after the weights are dropped.
    pub(in crate::models) thread: JoinHandle<()>,
}

/// Starts a worker that verifies and loads `key`, then serves the requests in its queue, within
/// `limits`.
///
/// # Errors
/// When the thread cannot be started.
pub(in crate::models) fn spawn(
    store: Arc<Store>,
    key: EntryKey,
    options: EngineOptions,
    limits: QueueLimits,
    metrics: Metrics,
) -> Result<Worker, WorkerError> {
    let (queue, jobs) = queue::channel(limits);
    let (announce, ready) = oneshot::channel();
    let thread = Builder::new()
        .name("worker".to_owned())
        .spawn(move || {
            let started = Instant::now();
            let loaded = load::load_from::<WorkerError>(&store, &key, options);
            // The store is not needed while the model serves.
            drop(store);
            match loaded {
                Err(error) => drop(announce.send(Err(error))),
                Ok((manifest, LoadedModel { tokenizer, embedder })) => {
                    let pass_tokens = Arc::new(AtomicUsize::new(options.batch_tokens));
                    let pulse = Arc::default();
                    let ready = ReadyModel {
                        info: ModelInfo::new(&key, manifest),
                        tokenizer: Arc::new(tokenizer),
                        weight_bytes: embedder.weight_bytes(),
                        mapped_bytes: embedder.mapped_bytes(),
                        report: embedder.report().clone(),
                        load_time: started.elapsed(),
                        pass_tracker: Arc::clone(&pulse),
                        pass_tokens: Arc::clone(&pass_tokens),
                    };
                    // If the receiver is gone, the queue is closed as well, and `serve` ends at
                    // once.
                    drop(announce.send(Ok(ready)));
                    let worker = ModelServer {
                        embedder,
                        name: key.name(),
                        tokens: &pass_tokens,
                        pass_tracker: &pulse,
                        metrics: &metrics,
                    };
                    worker.serve(jobs);
                }
            }
        })
        .map_err(WorkerError::Thread)?;
    Ok(Worker { queue, ready, thread })
}

/// A model that serves requests.
struct ModelServer<'a> {
    embedder: Box<dyn Embedder>,
    /// Name of the model in metrics, as `id@version`.
    name: &'a str,
    /// Most tokens of a pass.
    tokens: &'a AtomicUsize,
    pass_tracker: &'a PassTracker,
    metrics: &'a Metrics,
}

impl ModelServer<'_> {
    /// Computes batches until the queue has ended. Each receiver of the queue has a thread.
    fn serve(&self, queue: QueueReceiver) {
        thread::scope(|scope| self.take_batches(scope, queue));
    }

    fn take_batches<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        mut queue: QueueReceiver,
    ) {
        loop {
            // Read before each batch: the limit changes with memory pressure and the settings.
            let budget = self.tokens.load(Ordering::Relaxed);
            match queue.next(budget) {
                None => return,
                Some(WorkItem::Batch(batch)) => self.compute(&mut queue, batch, budget),
                Some(WorkItem::AddReceiver(receiver)) => {
                    let started = Builder::new()
                        .name("worker-batch".to_owned())
                        .spawn_scoped(scope, move || self.take_batches(scope, receiver));
                    if let Err(error) = started {
                        tracing::warn!(
                            name: Message::BatchesLimited.name(),
                            batches = queue.stop_growing(), %error,
                            "thread for another batch cannot be started"
                        );
                    }
                }
                Some(WorkItem::Probe(done)) => {
                    let pass = || self.embedder.compute(&[&[ANY_TOKEN]], Output::Vector);
                    if let Err(error) = self.pass_tracker.track(1, pass) {
                        // A failed pass shows life as well. Requests report the error to their
                        // clients.
                        tracing::debug!(%error, "liveness pass failed");
                    }
                    // The caller may have stopped waiting.
                    let (Ok(()) | Err(())) = done.send(());
                }
                Some(WorkItem::ReleaseScratch(waiting)) => {
                    self.embedder.release_scratch();
                    for done in waiting {
                        // The caller may have stopped waiting.
                        let (Ok(()) | Err(())) = done.send(());
                    }
                }
            }
        }
    }

    /// Computes one pass and answers the requests that it finishes.
    fn compute(
        &self,
        queue: &mut QueueReceiver,
        mut batch: Vec<QueuedRequest<EmbedJob>>,
        budget: usize,
    ) {
        self.embedder.set_batch_tokens(budget);
        let began = Instant::now();
        for turn in &mut batch {
            turn.job.began.get_or_insert(began);
        }
        // A request above the budget is alone in its batch. Only then is a part smaller than the
        // request.
        let parts: Vec<usize> =
            batch.iter().map(|turn| texts_in_pass(&turn.job.texts, budget)).collect();
        let texts: Vec<&[u32]> = batch
            .iter()
            .zip(&parts)
            .flat_map(|(turn, part)| turn.job.texts.iter().take(*part).map(Vec::as_slice))
            .collect();
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        self.metrics.count_batch(texts.len(), tokens);
        // A batch has one kind of output.
        let output = batch.first().map_or(Output::Vector, |turn| turn.job.output);
        let rows = if output.is_per_token() { tokens } else { texts.len() };
        let outcome = self.pass_tracker.track(tokens, || self.embedder.compute(&texts, output));
        let took = began.elapsed();
        // At most one request of a batch is unfinished: the one that is alone in it.
        let mut unfinished = None;
        match outcome {
            Ok(vectors) => {
                self.metrics.count_tokens(self.name, tokens);
                let width = vectors.len() / rows.max(1);
                let mut rest = vectors.as_slice();
                for (mut turn, part) in batch.into_iter().zip(parts) {
                    // `drain` removes the computed texts, so that the rest is in place for the next
                    // pass.
                    let done: usize = turn.job.texts.drain(..part).map(|text| text.len()).sum();
                    let own_rows = if output.is_per_token() { done } else { part };
                    let (own, others) = rest.split_at(own_rows * width);
                    rest = others;
                    turn.job.vectors.extend_from_slice(own);
                    match turn.job.texts.is_empty() {
                        true => send_reply(turn.job),
                        false => unfinished = Some((turn, done)),
                    }
                }
            }
            Err(error) => {
                let last = batch.pop();
                if !batch.is_empty() {
                    // One request is at fault. Compute each one alone, so that the others succeed.
                    let alone = batch.into_iter().chain(last).map(|turn| vec![turn]);
                    return alone.for_each(|batch| self.compute(queue, batch, budget));
                }
                // The client may cancel at any time; then the answer is dropped.
                if let Some(turn) = last {
                    drop(turn.job.reply.send(Err(error)));
                }
            }
        }
        // The time of the whole pass gives the throughput, and so the retry time of rejected
        // clients.
        queue.finish_batch(tokens, took, unfinished);
    }
}

fn send_reply(EmbedJob { vectors, queued, began, reply, .. }: EmbedJob) {
    let now = Instant::now();
    let began = began.unwrap_or(now);
    let queue = began.saturating_duration_since(queued);
    let inference = now.saturating_duration_since(began);
    // The client may cancel at any time; then the answer is dropped.
    drop(reply.send(Ok(JobOutput { vectors, queue, inference })));
}

/// Returns how many of the first `texts` have at most `tokens` tokens together; at least one.
fn texts_in_pass(texts: &[Vec<u32>], tokens: usize) -> usize {
    let mut total = 0;
    let fitting = texts.iter().take_while(|text| {
        total += text.len();
        total <= tokens
    });
    fitting.count().max(1).min(texts.len())
}

#[cfg(test)]
mod tests;
