//! The watchdog: systemd is told that the daemon lives when it has just shown that it does, and not otherwise.
//!
//! Three times an interval of `WatchdogSec=` the loop that serves connections has to turn, the manager to answer, and
//! the worker of the default model, and of every model with requests, to make a forward pass (see
//! [`crate::models::Beat`]). Each has a third of the interval, so that between two words there is less than one interval
//! as long as all of them live. Whatever does not answer is named in the log, once, before systemd ends the daemon.
//!
//! Does nothing without `$WATCHDOG_USEC`, or when `$WATCHDOG_PID` is another process.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::serve::Turn;
use super::systemd;
use crate::log::Message;
use crate::models::{Handle, Stuck};

/// How often within the interval life is shown; every proof has as long.
const PROOFS: u32 = 3;

/// What does not live.
#[derive(Debug, thiserror::Error)]
enum Dead {
    /// The accept loop.
    #[error("the loop that serves connections has not turned for {0:?}")]
    Connections(Duration),
    /// The manager.
    #[error("the manager of models has not answered for {0:?}")]
    Manager(Duration),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] Stuck),
}

/// Shows life to systemd until `cancel`, when it wants that. `turns` leads to the loop that serves connections.
pub(super) async fn watch(handle: Handle, turns: mpsc::Sender<Turn>, cancel: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return cancel.cancelled().await };
    let patience = interval / PROOFS;
    let watching = async {
        let mut voice = Voice::default();
        loop {
            let next = Instant::now() + patience;
            if voice.speaks(prove(&handle, &turns, patience).await) {
                systemd::alive();
            }
            tokio::time::sleep_until(next).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = watching => {}
    }
}

/// What is told of one proof after the other.
#[derive(Debug, Default)]
struct Voice {
    /// Whether the last proof failed, which is in the log.
    is_silent: bool,
}

impl Voice {
    /// Whether systemd is to be told that the daemon lives. Why not is logged once.
    fn speaks(&mut self, proof: Result<(), Dead>) -> bool {
        let was_silent = std::mem::replace(&mut self.is_silent, proof.is_err());
        match proof {
            Ok(()) if was_silent => {
                tracing::info!(
                    name: Message::WatchdogAnswered.name(),
                    "the daemon lives again; systemd is told so"
                );
                true
            }
            Ok(()) => true,
            Err(dead) => {
                if !was_silent {
                    tracing::error!(
                        name: Message::WatchdogMissed.name(),
                        reason = %dead,
                        "systemd is not told that the daemon lives"
                    );
                }
                false
            }
        }
    }
}

/// Fails unless everything that answers requests has just shown that it can, within `patience` altogether but for the
/// wait for a pass that may take longer.
async fn prove(
    handle: &Handle,
    turns: &mpsc::Sender<Turn>,
    patience: Duration,
) -> Result<(), Dead> {
    let deadline = Instant::now() + patience;
    turn(turns, patience).await?;
    // While the daemon stops, the manager may have ended before this task.
    let beats =
        timeout(patience, handle.beats()).await.map_err(|_elapsed| Dead::Manager(patience))?;
    for beat in beats.unwrap_or_default() {
        beat.prove(deadline.saturating_duration_since(Instant::now())).await?;
    }
    Ok(())
}

/// Waits for a turn of the loop that serves connections. One that has ended is no dead one: the daemon drains, or ends
/// because of it.
async fn turn(turns: &mpsc::Sender<Turn>, patience: Duration) -> Result<(), Dead> {
    let (turned, turn) = oneshot::channel();
    let turning = async {
        if turns.send(turned).await.is_ok() {
            // Dropped unanswered when the loop ends.
            let (Ok(()) | Err(_)) = turn.await;
        }
    };
    timeout(patience, turning).await.map_err(|_elapsed| Dead::Connections(patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn systemd_is_told_after_a_proof_of_life_and_at_no_other_time() {
        let mut voice = Voice::default();
        let dead = || Err(Dead::Manager(PATIENCE));
        let proofs = [Ok(()), dead(), dead(), Ok(()), Ok(())];
        let told = proofs.map(|proof| voice.speaks(proof));
        assert_eq!(told, [true, false, false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_turn_is_dead_and_one_that_has_ended_is_not() {
        let (turns, mut asked) = mpsc::channel::<Turn>(1);
        let answering = async { asked.recv().await.unwrap().send(()).unwrap() };
        let (proof, ()) = tokio::join!(turn(&turns, PATIENCE), answering);
        proof.unwrap();
        let dead = turn(&turns, PATIENCE).await.unwrap_err();
        assert_eq!(dead.to_string(), "the loop that serves connections has not turned for 10s");
        // The question that was never answered fills the channel.
        turn(&turns, PATIENCE).await.unwrap_err();
        drop(asked);
        turn(&turns, PATIENCE).await.unwrap();
    }
}
