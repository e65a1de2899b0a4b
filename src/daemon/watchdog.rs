//! Sends keep-alives to systemd's watchdog, each after a check that the daemon still works.
//!
//! There are three checks in each interval of `WatchdogSec=`. In a check, the accept loop must
//! answer, the manager must answer, and some workers must make a forward pass (see
//! [`crate::models::LivenessProbe`]): the worker of the default model, and every worker with
//! requests. The timeout of each step is a third of the interval, so that two keep-alives are at
//! most an interval apart while all parts work. A part that does not answer is logged once, before
//! systemd ends the daemon.
//!
//! Does nothing without `$WATCHDOG_USEC`, or if `$WATCHDOG_PID` is another process.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::serve::LivenessPing;
use super::systemd;
use crate::models::{ManagerHandle, WorkerStall};
use crate::telemetry::log::Message;

/// Number of checks in an interval. The timeout of a step is the interval divided by this number.
const CHECKS_PER_INTERVAL: u32 = 3;

/// Parts that failed a check.
#[derive(Debug, thiserror::Error)]
enum LivenessError {
    /// The accept loop did not answer.
    #[error("the accept loop has not answered for {0:?}")]
    Connections(Duration),
    /// The manager did not answer.
    #[error("the manager has not answered for {0:?}")]
    Manager(Duration),
    /// A worker did not make a forward pass.
    #[error(transparent)]
    Worker(#[from] WorkerStall),
}

/// Sends keep-alives to systemd until `cancel`, if the watchdog is enabled. `turns` is the channel
/// to the accept loop.
pub(super) async fn watch(
    handle: ManagerHandle,
    turns: mpsc::Sender<LivenessPing>,
    cancel: CancellationToken,
) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return cancel.cancelled().await };
    let patience = interval / CHECKS_PER_INTERVAL;
    let watching = async {
        let mut voice = KeepAliveState::default();
        loop {
            let next = Instant::now() + patience;
            if voice.record(check_liveness(&handle, &turns, patience).await) {
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

/// State of the keep-alives, which logs each change once.
#[derive(Debug, Default)]
struct KeepAliveState {
    /// Whether the last check failed. That failure is in the log.
    has_failed: bool,
}

impl KeepAliveState {
    /// Returns whether a keep-alive may be sent. Logs the first of several failures, and the
    /// recovery.
    fn record(&mut self, proof: Result<(), LivenessError>) -> bool {
        let was_silent = std::mem::replace(&mut self.has_failed, proof.is_err());
        match proof {
            Ok(()) if was_silent => {
                tracing::info!(
                    name: Message::WatchdogAnswered.name(),
                    "the liveness check succeeds again; notifying the watchdog"
                );
                true
            }
            Ok(()) => true,
            Err(dead) => {
                if !was_silent {
                    tracing::error!(
                        name: Message::WatchdogMissed.name(),
                        reason = %dead,
                        "the liveness check failed; not notifying the watchdog"
                    );
                }
                false
            }
        }
    }
}

/// Checks that all parts that serve requests work: the accept loop, the manager and the workers.
/// They must answer within `patience` from the start of the check, which therefore ends by then. A
/// worker that is in a longer pass does not fail the check until that pass exceeds its own limit.
async fn check_liveness(
    handle: &ManagerHandle,
    turns: &mpsc::Sender<LivenessPing>,
    patience: Duration,
) -> Result<(), LivenessError> {
    let deadline = Instant::now() + patience;
    let (turned, beats) =
        tokio::join!(ping_accept_loop(turns, patience), timeout(patience, handle.start_probes()));
    turned?;
    // The manager may have ended already, if the daemon is stopping. This is not a failure.
    let beats = beats.map_err(|_elapsed| LivenessError::Manager(patience))?;
    for beat in beats.unwrap_or_default() {
        beat.wait(deadline.saturating_duration_since(Instant::now())).await?;
    }
    Ok(())
}

/// Waits for an answer of the accept loop. A loop that has ended is not a failure: the daemon
/// drains, or ends because of it.
async fn ping_accept_loop(
    turns: &mpsc::Sender<LivenessPing>,
    patience: Duration,
) -> Result<(), LivenessError> {
    let (turned, turn) = oneshot::channel();
    let turning = async {
        if turns.send(turned).await.is_ok() {
            // The sender is dropped unanswered when the loop ends.
            let (Ok(()) | Err(_)) = turn.await;
        }
    };
    timeout(patience, turning).await.map_err(|_elapsed| LivenessError::Connections(patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn watchdog_is_notified_only_when_alive() {
        let mut voice = KeepAliveState::default();
        let dead = || Err(LivenessError::Manager(PATIENCE));
        let proofs = [Ok(()), dead(), dead(), Ok(()), Ok(())];
        let told = proofs.map(|proof| voice.record(proof));
        assert_eq!(told, [true, false, false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_stuck_loop_is_dead() {
        let (turns, mut asked) = mpsc::channel::<LivenessPing>(1);
        let answering = async { asked.recv().await.unwrap().send(()).unwrap() };
        let (proof, ()) = tokio::join!(ping_accept_loop(&turns, PATIENCE), answering);
        proof.unwrap();
        let dead = ping_accept_loop(&turns, PATIENCE).await.unwrap_err();
        assert_eq!(dead.to_string(), "the accept loop has not answered for 10s");
        // The unanswered check still fills the channel.
        ping_accept_loop(&turns, PATIENCE).await.unwrap_err();
        drop(asked);
        ping_accept_loop(&turns, PATIENCE).await.unwrap();
    }
}
