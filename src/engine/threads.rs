//! The threads that a model computes on: a fixed number, parked while there is nothing to do.

use super::EngineError;

/// A pool of `count` threads; 0 is taken as 1.
///
/// # Errors
/// [`EngineError::Threads`] when the operating system refuses them.
pub(super) fn start(count: usize) -> Result<rayon::ThreadPool, EngineError> {
    let count = count.max(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("engine-{index}"))
        .build()
        .map_err(|source| EngineError::Threads { threads: count, source: source.into() })
}
