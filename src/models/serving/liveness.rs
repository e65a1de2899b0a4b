//! Liveness of the manager and the workers, for the systemd watchdog.
//!
//! A worker is alive if it computes the probe, a forward pass of one token, or if it is in a pass
//! that has not taken longer than the slowest machine would need. The length of its queue does not
//! matter, since a probe is computed before all waiting requests. Pure except for the waiting in
//! [`LivenessProbe::wait`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::package::EntryKey;

/// Lower bound of the throughput of every machine and model. The largest known model is faster,
/// even on one core of a small board.
const SLOWEST_TOKENS_PER_SECOND: u64 = 20;
/// Allowance of a pass in addition to its tokens: pages of the weights may be read again from a
/// slow disk.
const PASS_ALLOWANCE: Duration = Duration::from_secs(30);

/// A pass in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RunningPass {
    since: Instant,
    tokens: usize,
    /// Tokens of the passes that began before it. It may have to wait for their threads.
    tokens_before: usize,
}

impl RunningPass {
    /// Returns the longest time that the pass may take on any machine.
    fn time_limit(self) -> Duration {
        let tokens = self.tokens.saturating_add(self.tokens_before);
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        PASS_ALLOWANCE.saturating_add(Duration::from_secs(tokens / SLOWEST_TOKENS_PER_SECOND))
    }
}

/// Passes in progress of one worker's threads. The lock is held only for moves in memory.
#[derive(Debug, Default)]
pub(in crate::models) struct PassTracker(Mutex<Vec<RunningPass>>);

impl PassTracker {
    /// Runs `work`, a pass of `tokens` tokens, and records it as in progress meanwhile.
    pub(in crate::models) fn track<T>(&self, tokens: usize, work: impl FnOnce() -> T) -> T {
        let mut passes = self.lock();
        let before = passes.iter().map(|pass| pass.tokens);
        let tokens_before = before.fold(0, usize::saturating_add);
        let running = RunningPass { since: Instant::now(), tokens, tokens_before };
        passes.push(running);
        drop(passes);
        let done = work();
        let mut passes = self.lock();
        // Two equal entries are interchangeable, so any of them may be removed.
        if let Some(own) = passes.iter().position(|pass| *pass == running) {
            passes.swap_remove(own);
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RunningPass>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the pass with the earliest deadline, which may be in the past.
    fn most_overdue(&self) -> Option<RunningPass> {
        self.lock().iter().copied().min_by_key(|pass| pass.since.checked_add(pass.time_limit()))
    }
}

/// A worker that was asked for a liveness pass.
#[derive(Debug)]
pub struct LivenessProbe {
    pub(in crate::models) key: EntryKey,
    pub(in crate::models) tracker: Arc<PassTracker>,
    /// Time of the request.
    pub(in crate::models) requested_at: Instant,
    /// Gets a value after the pass; closed if the worker has ended.
    pub(in crate::models) reply: oneshot::Receiver<()>,
}

/// A worker that does not make progress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerStall {
    /// The worker was asked for a pass and did not begin it.
    #[error("the worker of {model} has not started a forward pass for {waited:?}")]
    NotStarted {
        /// The model.
        model: String,
        /// Time since the request.
        waited: Duration,
    },
    /// The worker is in a pass that takes too long.
    #[error("the worker of {model} has been in a forward pass of {tokens} tokens for {running:?}")]
    InPass {
        /// The model.
        model: String,
        /// Tokens of the pass.
        tokens: usize,
        /// Duration of the pass so far.
        running: Duration,
    },
}

impl LivenessProbe {
    /// Waits for the pass, at most for `patience`. A worker that has ended counts as alive. A
    /// worker that computed the probe is still stuck if another of its passes takes too long.
    ///
    /// # Errors
    /// When the worker neither computes the probe nor is in a pass that is within its time.
    pub async fn wait(self, patience: Duration) -> Result<(), WorkerStall> {
        let Self { key, tracker: pulse, requested_at: asked, reply: answer } = self;
        let answered = tokio::time::timeout(patience, answer).await;
        match (answered, pulse.most_overdue()) {
            // The worker has ended, or it computed the pass and has no other in progress.
            (Ok(Err(_)), _) | (Ok(Ok(())), None) => Ok(()),
            (_, pass) => check_progress(&key, pass, asked, Instant::now()),
        }
    }
}

/// Judges a worker that has not answered the probe, or has another pass in progress.
fn check_progress(
    key: &EntryKey,
    running: Option<RunningPass>,
    asked: Instant,
    now: Instant,
) -> Result<(), WorkerStall> {
    let model = || key.to_string();
    let Some(pass) = running else {
        let waited = now.saturating_duration_since(asked);
        return Err(WorkerStall::NotStarted { model: model(), waited });
    };
    let running = now.saturating_duration_since(pass.since);
    match running <= pass.time_limit() {
        true => Ok(()),
        false => Err(WorkerStall::InPass { model: model(), tokens: pass.tokens, running }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> EntryKey {
        "a@1+0123456789ab".parse().unwrap()
    }

    #[test]
    fn silent_worker_is_alive_during_its_pass() {
        let now = Instant::now() + Duration::from_secs(3600);
        let asked = now - Duration::from_secs(10);
        let of = |tokens, tokens_before, seconds| {
            let since = now - Duration::from_secs(seconds);
            let running = RunningPass { since, tokens, tokens_before };
            check_progress(&key(), Some(running), asked, now).is_ok()
        };
        let cases = [
            (1, 0, 30, true),
            (1, 0, 31, false),
            (4096, 0, 230, true),
            (4096, 0, 240, false),
            (1, 4095, 230, true),
            (1, 4095, 240, false),
            (usize::MAX, 1, 3000, true),
        ];
        for (tokens, before, seconds, lives) in cases {
            let told = format!("{tokens} tokens behind {before} for {seconds} s");
            assert_eq!(of(tokens, before, seconds), lives, "{told}");
        }
        let idle = check_progress(&key(), None, asked, now).unwrap_err();
        assert_eq!(
            idle.to_string(),
            "the worker of a@1+0123456789ab has not started a forward pass for 10s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn probe_accepts_answer_or_exit_but_not_silence() {
        let beat = |pulse: &Arc<PassTracker>| {
            let (done, answer) = oneshot::channel();
            let (pulse, asked) = (Arc::clone(pulse), Instant::now());
            (done, LivenessProbe { key: key(), tracker: pulse, requested_at: asked, reply: answer })
        };
        let pulse = Arc::default();
        let patience = Duration::from_secs(10);
        let (done, answered) = beat(&pulse);
        done.send(()).unwrap();
        assert_eq!(answered.wait(patience).await, Ok(()));
        let (done, left) = beat(&pulse);
        drop(done);
        assert_eq!(left.wait(patience).await, Ok(()));
        let (_done, silent) = beat(&pulse);
        silent.wait(patience).await.unwrap_err();
        let (_done, busy) = beat(&pulse);
        pulse.lock().push(RunningPass { since: Instant::now(), tokens: 1, tokens_before: 0 });
        assert_eq!(busy.wait(patience).await, Ok(()));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        pulse.lock().push(RunningPass { since: long_ago, tokens: 1, tokens_before: 0 });
        let (done, beside) = beat(&pulse);
        done.send(()).unwrap();
        assert!(matches!(beside.wait(patience).await, Err(WorkerStall::InPass { tokens: 1, .. })));
        let begun = pulse.track(2, || pulse.lock().clone());
        assert_eq!(begun.iter().map(|pass| pass.tokens_before).collect::<Vec<_>>(), [0, 0, 2]);
        assert_eq!(pulse.lock().len(), 2);
    }
}
