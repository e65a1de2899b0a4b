//! The worker: the one OS thread that owns a resident model's weights, from loading to dropping them.
//!
//! Requests come through a bounded queue and are answered one after the other. The thread ends when every sender
//! of the queue is gone, so that unloading is: drop the queue, join.
//!
//! Invariants:
//! 1. Weights are allocated and dropped on the worker's own thread.
//! 2. Work that nobody waits for is not begun, and not continued past a pass.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Computed;
use super::load::{self, LoadError};
use crate::engine::{Embedder, EngineError, Loaded, Options, Report, Tokenizer};
use crate::package::{Key, Store, StoreError};

/// Tokens of a pass while memory is short: as few as `embedding.batch_tokens` may be.
const SHORT_PASS: usize = 512;

/// What a worker is asked to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Compute vectors.
    Embed(Job),
    /// Let the memory go that passes need; the next pass takes it again.
    ReleaseScratch(oneshot::Sender<()>),
}

/// One request: token ids of its texts in, `[texts, dimensions]` row-major out.
#[derive(Debug)]
pub(super) struct Job {
    /// Token ids of each text.
    pub(super) texts: Vec<Vec<u32>>,
    /// When it was put into the queue.
    pub(super) queued: Instant,
    /// Where the vectors go; closed when the client has left.
    pub(super) reply: oneshot::Sender<Result<Computed, EngineError>>,
}

/// Why a worker ended before it could take requests.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store did not give the model's files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files are no working model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The thread panicked; the cause is in the log.
    #[error("the worker ended unexpectedly")]
    Ended,
}

/// What a worker has loaded.
#[derive(Debug)]
pub(super) struct Ready {
    /// Turns texts into token ids.
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Memory of this process that the weights take, in bytes.
    pub(super) weight_bytes: u64,
    /// Bytes that are read in place from the store's file, beside them.
    pub(super) mapped_bytes: u64,
    /// What it is computed in.
    pub(super) report: Report,
    /// How long loading took.
    pub(super) took: Duration,
    pass: Arc<Pass>,
}

impl Ready {
    /// Has passes be short from the next one on.
    pub(super) fn limit_pass(&self) {
        self.pass.tokens.store(SHORT_PASS.min(self.pass.usual), Ordering::Relaxed);
    }

    /// Has passes be as long as the settings say.
    pub(super) fn unlimit_pass(&self) {
        self.pass.tokens.store(self.pass.usual, Ordering::Relaxed);
    }
}

/// How many tokens a pass may have.
#[derive(Debug)]
struct Pass {
    usual: usize,
    tokens: AtomicUsize,
}

/// A running worker; dropping `queue` and its clones lets it finish what is queued and end.
#[derive(Debug)]
pub(super) struct Worker {
    /// Where its requests go.
    pub(super) queue: mpsc::Sender<Work>,
    /// Answers once: loaded, or why not.
    pub(super) ready: oneshot::Receiver<Result<Ready, WorkerError>>,
    /// Ends after the weights are dropped.
    pub(super) thread: JoinHandle<()>,
}

/// Starts a worker that verifies and loads `key`, then serves at most `queue_size` waiting requests.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn spawn(
    store: Arc<Store>,
    key: Key,
    options: Options,
    queue_size: usize,
) -> Result<Worker, WorkerError> {
    let (queue, jobs) = mpsc::channel(queue_size);
    let (announce, ready) = oneshot::channel();
    let thread = Builder::new()
        .name("worker".to_owned())
        .spawn(move || {
            let started = Instant::now();
            let loaded = read_and_load(&store, &key, options);
            // The files' bytes and the store are not needed while the model serves.
            drop(store);
            match loaded {
                Err(error) => drop(announce.send(Err(error))),
                Ok(Loaded { tokenizer, embedder }) => {
                    let usual = options.batch_tokens;
                    let pass = Arc::new(Pass { usual, tokens: AtomicUsize::new(usual) });
                    let ready = Ready {
                        tokenizer: Arc::new(tokenizer),
                        weight_bytes: embedder.weight_bytes(),
                        mapped_bytes: embedder.mapped_bytes(),
                        report: embedder.report().clone(),
                        took: started.elapsed(),
                        pass: Arc::clone(&pass),
                    };
                    // When nobody waits any more the queue is closed too, and `serve` ends at once.
                    drop(announce.send(Ok(ready)));
                    serve(embedder, jobs, &pass.tokens);
                }
            }
        })
        .map_err(WorkerError::Thread)?;
    Ok(Worker { queue, ready, thread })
}

fn read_and_load(store: &Store, key: &Key, options: Options) -> Result<Loaded, WorkerError> {
    Ok(load::load_from::<WorkerError>(store, key, options)?.1)
}

fn serve(mut embedder: Box<dyn Embedder>, mut work: mpsc::Receiver<Work>, tokens: &AtomicUsize) {
    while let Some(work) = work.blocking_recv() {
        match work {
            Work::Embed(job) => embed(&mut *embedder, job, tokens),
            Work::ReleaseScratch(done) => {
                embedder.release_scratch();
                // Whoever asked may have stopped waiting.
                let (Ok(()) | Err(())) = done.send(());
            }
        }
    }
}

fn embed(embedder: &mut dyn Embedder, Job { texts, queued, reply }: Job, tokens: &AtomicUsize) {
    let began = Instant::now();
    let mut vectors = Vec::with_capacity(texts.len() * embedder.dimensions());
    let mut outcome = Ok(());
    let mut rest = texts.as_slice();
    while !rest.is_empty() && !reply.is_closed() {
        let (pass, after) = rest.split_at(pass(rest, tokens.load(Ordering::Relaxed)));
        rest = after;
        let pass: Vec<&[u32]> = pass.iter().map(Vec::as_slice).collect();
        match embedder.embed(&pass) {
            Ok(more) => vectors.extend(more),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    // The client may leave at any time; then nobody reads this.
    let queue = began.saturating_duration_since(queued);
    drop(reply.send(outcome.map(|()| Computed { vectors, queue, inference: began.elapsed() })));
}

/// How many of the first of `texts` have at most `tokens` tokens together; one at least.
fn pass(texts: &[Vec<u32>], tokens: usize) -> usize {
    let mut total = 0;
    let fitting = texts.iter().take_while(|text| {
        total += text.len();
        total <= tokens
    });
    fitting.count().max(1).min(texts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_keeps_the_budget_and_has_a_text() {
        let texts: Vec<Vec<u32>> = [3, 3, 5, 9, 1, 1].map(|length| vec![0; length]).into();
        let firsts = [0, 2, 3, 4].map(|first| pass(&texts[first..], 6));
        assert_eq!(firsts, [2, 1, 1, 2]);
        assert_eq!(pass(&[], 6), 0);
    }
}
