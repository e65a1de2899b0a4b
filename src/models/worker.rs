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
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::load::{self, LoadError};
use crate::engine::{Embedder, EngineError, Loaded, Options, Report, Tokenizer};
use crate::package::{Key, Store, StoreError};

/// One request: token ids of its texts in, `[texts, dimensions]` row-major out.
#[derive(Debug)]
pub(super) struct Job {
    /// Token ids of each text.
    pub(super) texts: Vec<Vec<u32>>,
    /// Where the vectors go; closed when the client has left.
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
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
    /// How long verifying and loading took.
    pub(super) took: Duration,
}

/// A running worker; dropping `queue` and its clones lets it finish what is queued and end.
#[derive(Debug)]
pub(super) struct Worker {
    /// Where its requests go.
    pub(super) queue: mpsc::Sender<Job>,
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
            let began = Instant::now();
            let loaded = read_and_load(&store, &key, options);
            // The files' bytes and the store are not needed while the model serves.
            drop(store);
            match loaded {
                Err(error) => drop(announce.send(Err(error))),
                Ok(Loaded { tokenizer, embedder }) => {
                    let ready = Ready {
                        tokenizer: Arc::new(tokenizer),
                        weight_bytes: embedder.weight_bytes(),
                        mapped_bytes: embedder.mapped_bytes(),
                        report: embedder.report().clone(),
                        took: began.elapsed(),
                    };
                    // When nobody waits any more the queue is closed too, and `serve` ends at once.
                    drop(announce.send(Ok(ready)));
                    serve(embedder, jobs, options.batch_tokens);
                }
            }
        })
        .map_err(WorkerError::Thread)?;
    Ok(Worker { queue, ready, thread })
}

fn read_and_load(store: &Store, key: &Key, options: Options) -> Result<Loaded, WorkerError> {
    Ok(load::load_from::<WorkerError>(store, key, options)?.1)
}

fn serve(mut embedder: Box<dyn Embedder>, mut jobs: mpsc::Receiver<Job>, batch_tokens: usize) {
    while let Some(Job { texts, reply }) = jobs.blocking_recv() {
        let mut vectors = Vec::with_capacity(texts.len() * embedder.dimensions());
        let mut outcome = Ok(());
        for pass in passes(&texts, batch_tokens) {
            if reply.is_closed() {
                break;
            }
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
        drop(reply.send(outcome.map(|()| vectors)));
    }
}

/// Cuts `texts` into runs of at most `batch_tokens` tokens, at least one text each.
fn passes(texts: &[Vec<u32>], batch_tokens: usize) -> impl Iterator<Item = &[Vec<u32>]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fitting = rest
            .iter()
            .take_while(|text| {
                tokens += text.len();
                tokens <= batch_tokens
            })
            .count();
        let (pass, after) = rest.split_at(fitting.max(1).min(rest.len()));
        rest = after;
        (!pass.is_empty()).then_some(pass)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_keep_the_order_and_the_budget() {
        let texts: Vec<Vec<u32>> = [3, 3, 5, 9, 1, 1].map(|length| vec![0; length]).into();
        let lengths: Vec<Vec<usize>> =
            passes(&texts, 6).map(|pass| pass.iter().map(Vec::len).collect()).collect();
        assert_eq!(lengths, [vec![3, 3], vec![5], vec![9], vec![1, 1]]);
        assert_eq!(passes(&[], 6).count(), 0);
    }
}
