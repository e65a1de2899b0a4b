//! The worker: the one OS thread that owns the weights of a resident model, from loading to
//! dropping them.
//!
//! Requests arrive in batches through a bounded queue. A request that is longer than a batch is
//! computed in parts, with batches of other requests in between. While many requests wait, several
//! batches are computed concurrently, each on its share of the engine's threads. One batch more is
//! taken, so that no thread idles until the slowest one is done or the next batch is gathered. The
//! worker starts and joins a thread for each batch beyond the first. It ends when every sender of
//! the queue is dropped. So an unload is: drop the queue, then join the thread.
//!
//! Invariants:
//! 1. Weights are allocated and dropped on the worker's own thread.
//! 2. A request that was cancelled is not begun, and not continued after the current pass.
//! 3. A request that cannot be computed fails alone, not together with the others in its batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::liveness::PassTracker;
use super::load::{self, LoadError};
use super::queue::{
    self, EmbedJob, QueueLimits, QueueReceiver, QueueSender, QueuedRequest, WorkItem,
};
use super::{JobOutput, ModelInfo};
use crate::engine::{Embedder, EngineOptions, LoadedModel, Output, PrecisionReport, Tokenizer};
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
    pub(super) fn failure(&self) -> Option<FailureType> {
        match self {
            Self::Store(StoreError::Corrupt { .. }) => Some(FailureType::Corrupt),
            Self::Load(error) => error.failure(),
            Self::Store(_) | Self::Thread(_) | Self::Ended => None,
        }
    }

    /// Returns other options for the load, if they may help; see [`load::retry_options`].
    pub(super) fn retry_options(
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
pub(super) struct ReadyModel {
    /// Facts that clients may know.
    pub(super) info: ModelInfo,
    /// Converts texts into token ids.
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Memory of this process that the weights take, in bytes.
    pub(super) weight_bytes: u64,
    /// Bytes of the store's file that are read in place, in addition to `weight_bytes`.
    pub(super) mapped_bytes: u64,
    /// Arithmetic of the model.
    pub(super) report: PrecisionReport,
    /// Duration of the load.
    pub(super) load_time: Duration,
    /// Liveness of its threads.
    pub(super) pass_tracker: Arc<PassTracker>,
    pass_limit: Arc<PassLimit>,
}

impl ReadyModel {
    /// Makes passes short from the next one on.
    pub(super) fn limit_pass(&self) {
        self.pass_limit
            .current
            .store(SHORT_PASS_TOKENS.min(self.pass_limit.configured), Ordering::Relaxed);
    }

    /// Makes passes as long as the settings allow.
    pub(super) fn unlimit_pass(&self) {
        self.pass_limit.current.store(self.pass_limit.configured, Ordering::Relaxed);
    }
}

/// Most tokens of a pass.
#[derive(Debug)]
struct PassLimit {
    configured: usize,
    current: AtomicUsize,
}

/// A running worker. It finishes its requests and ends when `queue` and all its clones are dropped.
#[derive(Debug)]
pub(super) struct Worker {
    /// Queue of its requests.
    pub(super) queue: QueueSender,
    /// Resolves once: to the loaded model, or to the reason of the failure.
    pub(super) ready: oneshot::Receiver<Result<ReadyModel, WorkerError>>,
    /// Thread of the worker, which ends after the weights are dropped.
    pub(super) thread: JoinHandle<()>,
}

/// Starts a worker that verifies and loads `key`, then serves the requests in its queue, within
/// `limits`.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn spawn(
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
                    let usual = options.batch_tokens;
                    let pass =
                        Arc::new(PassLimit { configured: usual, current: AtomicUsize::new(usual) });
                    let pulse = Arc::default();
                    let ready = ReadyModel {
                        info: ModelInfo::new(&key, manifest),
                        tokenizer: Arc::new(tokenizer),
                        weight_bytes: embedder.weight_bytes(),
                        mapped_bytes: embedder.mapped_bytes(),
                        report: embedder.report().clone(),
                        load_time: started.elapsed(),
                        pass_tracker: Arc::clone(&pulse),
                        pass_limit: Arc::clone(&pass),
                    };
                    // If the receiver is gone, the queue is closed as well, and `serve` ends at
                    // once.
                    drop(announce.send(Ok(ready)));
                    let worker = ModelServer {
                        embedder,
                        tokens: &pass.current,
                        pass_tracker: &pulse,
                        metrics: &metrics,
                    };
                    worker.serve(jobs, limits.batches);
                }
            }
        })
        .map_err(WorkerError::Thread)?;
    Ok(Worker { queue, ready, thread })
}

/// A model that serves requests.
struct ModelServer<'a> {
    embedder: Box<dyn Embedder>,
    /// Most tokens of a pass.
    tokens: &'a AtomicUsize,
    pass_tracker: &'a PassTracker,
    metrics: &'a Metrics,
}

impl ModelServer<'_> {
    /// Computes batches until the queue has ended, at most `batches` of them concurrently.
    fn serve(&self, queue: QueueReceiver, batches: usize) {
        thread::scope(|scope| {
            for taken in 1..batches {
                let queue = queue.clone();
                let started = Builder::new()
                    .name("worker-batch".to_owned())
                    .spawn_scoped(scope, || self.take_batches(queue));
                if let Err(error) = started {
                    tracing::warn!(
                        name: Message::BatchesLimited.name(),
                        batches = taken, %error,
                        "thread for another batch cannot be started"
                    );
                    break;
                }
            }
            self.take_batches(queue);
        });
    }

    fn take_batches(&self, mut queue: QueueReceiver) {
        loop {
            // Read before each batch: the limit changes with memory pressure.
            let budget = self.tokens.load(Ordering::Relaxed);
            match queue.next(budget) {
                None => return,
                Some(WorkItem::Batch(batch)) => self.compute(&mut queue, batch, budget),
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
        // Token states have one row for each token, vectors one row for each text.
        let rows = if output == Output::TokenStates { tokens } else { texts.len() };
        let outcome = self.pass_tracker.track(tokens, || self.embedder.compute(&texts, output));
        let took = began.elapsed();
        // At most one request of a batch is unfinished: the one that is alone in it.
        let mut unfinished = None;
        match outcome {
            Ok(vectors) => {
                let width = vectors.len() / rows.max(1);
                let mut rest = vectors.as_slice();
                for (mut turn, part) in batch.into_iter().zip(parts) {
                    // `drain` removes the computed texts, so that the rest is in place for the next
                    // pass.
                    let done: usize = turn.job.texts.drain(..part).map(|text| text.len()).sum();
                    let own_rows = if output == Output::TokenStates { done } else { part };
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
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::super::queue::{ReplyFuture, wait};
    use super::super::{Flow, Owner, Priority, Ticket};
    use super::*;
    use crate::engine::{EngineError, Precision};

    type Meet = Box<dyn Fn(&[u32]) + Send + Sync>;

    /// Model whose vector of a text is its first id, twice. The id [`BAD`] cannot be computed.
    struct Fake {
        passes: Arc<Mutex<Vec<Vec<u32>>>>,
        report: PrecisionReport,
        /// Called in each pass with the first ids of its texts.
        meet: Meet,
    }

    impl Default for Fake {
        fn default() -> Self {
            let report =
                PrecisionReport { precision: Precision::F32, isa: "none", reason: String::new() };
            Self { passes: Arc::default(), report, meet: Box::new(|_| {}) }
        }
    }

    const BAD: u32 = 666;

    impl Embedder for Fake {
        fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
            let firsts: Vec<u32> = texts.iter().map(|text| text[0]).collect();
            self.passes.lock().unwrap().push(firsts.clone());
            (self.meet)(&firsts);
            if firsts.contains(&BAD) {
                return Err(EngineError::NotFinite { precision: "f32" });
            }
            Ok(match output {
                Output::TokenStates => texts.concat().iter().map(|id| *id as f32).collect(),
                _ => firsts.iter().flat_map(|first| [*first as f32; 2]).collect(),
            })
        }

        fn dimensions(&self) -> usize {
            2
        }

        fn weight_bytes(&self) -> u64 {
            0
        }

        fn mapped_bytes(&self) -> u64 {
            0
        }

        fn release_scratch(&self) {
            self.passes.lock().unwrap().push(Vec::new());
        }

        fn matrix_peak(&self) -> io::Result<f64> {
            Ok(0.0)
        }

        fn report(&self) -> &PrecisionReport {
            &self.report
        }

        fn matrix_operations(&self, _tokens: usize) -> u64 {
            0
        }
    }

    /// Computes the requests in `queue` until it has ended.
    fn serve(model: impl Embedder + 'static, queue: QueueReceiver, budget: usize, batches: usize) {
        let (tokens, metrics) = (AtomicUsize::new(budget), Metrics::new(&[]));
        let (embedder, pulse): (Box<dyn Embedder>, _) = (Box::new(model), PassTracker::default());
        ModelServer { embedder, tokens: &tokens, pass_tracker: &pulse, metrics: &metrics }
            .serve(queue, batches);
    }

    type Vectors = Result<Vec<f32>, String>;

    /// Requests that wait for a worker which is not started yet.
    struct Waiting {
        sender: QueueSender,
        receiver: QueueReceiver,
        answers: Vec<Option<ReplyFuture>>,
    }

    impl Waiting {
        fn new() -> Self {
            let limits =
                QueueLimits { requests: 100, tokens: 10_000, wait: Duration::ZERO, batches: 1 };
            let (sender, receiver) = queue::channel(limits);
            Self { sender, receiver, answers: Vec::new() }
        }

        /// Sends a request of texts that each repeat one id `length` times.
        fn ask(&mut self, ids: &[u32], length: usize, priority: Priority) {
            self.ask_for(Output::Vector, ids, length, priority);
        }

        fn ask_for(&mut self, output: Output, ids: &[u32], length: usize, priority: Priority) {
            let texts = ids.iter().map(|id| vec![*id; length]).collect();
            let ticket = Ticket {
                flow: Flow { owner: Owner::Tenant(self.answers.len() as u64), connection: 0 },
                priority: Some(priority),
                deadline: Instant::now() + Duration::from_secs(1000),
                tenant: None,
                weight: 1,
            };
            let answer = self.sender.push(texts, output, &ticket).unwrap();
            self.answers.push(Some(answer));
        }

        /// Runs a worker with passes of `budget` tokens until all requests are done. Returns its
        /// passes, and the answers.
        fn serve(self, budget: usize) -> (Vec<Vec<u32>>, Vec<Option<Vectors>>) {
            let fake = Fake::default();
            let passes = Arc::clone(&fake.passes);
            drop(self.sender);
            serve(fake, self.receiver, budget, 1);
            let answers = self.answers.into_iter().map(|answer| {
                let answer = wait(answer?).unwrap();
                Some(answer.map(|computed| computed.vectors).map_err(|error| error.to_string()))
            });
            (std::mem::take(&mut passes.lock().unwrap()), answers.collect())
        }
    }

    #[test]
    fn requests_share_a_pass_but_not_vectors() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1, 2], 3, Priority::Interactive);
        waiting.ask(&[3], 3, Priority::Interactive);
        waiting.ask(&[4, 5], 3, Priority::Interactive);
        let (passes, answers) = waiting.serve(10);
        assert_eq!(passes, [vec![1, 2, 3], vec![4, 5]]);
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
        assert_eq!(answers, [vec![1., 1., 2., 2.], vec![3., 3.], vec![4., 4., 5., 5.]]);
    }

    #[test]
    fn different_outputs_do_not_share_a_pass() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1], 1, Priority::Interactive);
        waiting.ask_for(Output::TokenStates, &[2, 3], 3, Priority::Interactive);
        waiting.ask_for(Output::TokenStates, &[4], 2, Priority::Interactive);
        waiting.ask(&[5], 1, Priority::Interactive);
        let (passes, answers) = waiting.serve(100);
        assert_eq!(passes, [vec![1], vec![2, 3, 4], vec![5]]);
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
        let expected = [vec![1., 1.], vec![2., 2., 2., 3., 3., 3.], vec![4., 4.], vec![5., 5.]];
        assert_eq!(answers, expected);
    }

    #[test]
    fn liveness_pass_runs_before_waiting_requests() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1, 2], 3, Priority::Interactive);
        let proof = waiting.sender.probe();
        let (passes, _) = waiting.serve(10);
        assert_eq!(passes, [vec![ANY_TOKEN], vec![1, 2]]);
        assert_eq!(proof.blocking_recv(), Ok(()));
    }

    #[test]
    fn long_requests_are_computed_in_alternating_parts() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1, 2, 3, 4, 5], 4, Priority::Bulk);
        waiting.ask(&[6, 7, 8], 4, Priority::Bulk);
        let (passes, answers) = waiting.serve(8);
        assert_eq!(passes, [vec![1, 2], vec![6, 7], vec![3, 4], vec![8, 5]]);
        let first = answers[0].as_ref().unwrap().as_ref().unwrap();
        assert_eq!(first, &[1., 1., 2., 2., 3., 3., 4., 4., 5., 5.]);
    }

    #[test]
    fn failing_request_does_not_affect_others() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1], 1, Priority::Interactive);
        waiting.ask(&[2, BAD], 1, Priority::Interactive);
        waiting.ask(&[3], 1, Priority::Interactive);
        let (_, answers) = waiting.serve(10);
        let ok: Vec<bool> = answers.into_iter().map(|answer| answer.unwrap().is_ok()).collect();
        assert_eq!(ok, [true, false, true]);
    }

    #[test]
    fn batches_are_computed_in_parallel() {
        let mut waiting = Waiting::new();
        for id in 1..=3 {
            waiting.ask(&[id], 4, Priority::Interactive);
        }
        // No pass ends before there are three.
        let (passes, came) = (Mutex::new(0), Condvar::new());
        let meet = move |_: &[u32]| {
            let mut passes = passes.lock().unwrap();
            *passes += 1;
            came.notify_all();
            let (patience, alone) = (Duration::from_secs(60), |passes: &mut usize| *passes < 3);
            let (passes, waited) = came.wait_timeout_while(passes, patience, alone).unwrap();
            assert!(!waited.timed_out(), "{} passes at a time", *passes);
        };
        drop(waiting.sender);
        serve(Fake { meet: Box::new(meet), ..Fake::default() }, waiting.receiver, 4, 3);
        for (answer, id) in waiting.answers.into_iter().zip([1.0, 2.0, 3.0]) {
            let answer = wait(answer.unwrap()).unwrap().unwrap();
            assert_eq!(answer.vectors, [id; 2]);
        }
    }

    #[test]
    fn panic_in_one_batch_ends_the_worker() {
        let mut waiting = Waiting::new();
        waiting.ask(&[BAD], 1, Priority::Interactive);
        let Waiting { sender, receiver, mut answers } = waiting;
        let panics = |firsts: &[u32]| assert!(!firsts.contains(&BAD), "a bad id");
        let fake = Fake { meet: Box::new(panics), ..Fake::default() };
        // The sender still exists, so that only the panic can end it.
        assert!(thread::spawn(move || serve(fake, receiver, 1, 3)).join().is_err());
        assert!(wait(answers[0].take().unwrap()).is_err());
        assert!(sender.is_closed());
    }

    #[test]
    fn cancelled_request_is_not_computed() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1], 1, Priority::Interactive);
        waiting.ask(&[2], 1, Priority::Interactive);
        waiting.answers[0] = None;
        let (passes, answers) = waiting.serve(10);
        assert_eq!(passes, [vec![2]]);
        assert!(answers[0].is_none() && answers[1].as_ref().unwrap().is_ok());
    }

    #[test]
    fn scratch_memory_is_released_before_the_next_pass() {
        let mut waiting = Waiting::new();
        waiting.ask(&[1], 1, Priority::Interactive);
        let released = waiting.sender.release_scratch();
        let (passes, _) = waiting.serve(10);
        assert_eq!(passes, [vec![], vec![1]]);
        assert_eq!(released.blocking_recv(), Ok(()));
    }

    #[test]
    fn pass_keeps_budget_but_is_never_empty() {
        let texts: Vec<Vec<u32>> = [3, 3, 5, 9, 1, 1].map(|length| vec![0; length]).into();
        let firsts = [0, 2, 3, 4].map(|first| texts_in_pass(&texts[first..], 6));
        assert_eq!(firsts, [2, 1, 1, 2]);
        assert_eq!(texts_in_pass(&[], 6), 0);
    }
}
