//! Reports the ends of the daemon's tasks.

use std::io;

use tokio::task::JoinError;

use crate::base::exit::Exit;
use crate::telemetry::log::Message;

/// Runs a task that ends only when it is cancelled. Returns its name with success.
pub(super) async fn run_task(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, Result<(), Exit>) {
    task.await;
    (name, Ok(()))
}

/// Logs the end of the accept loop, and converts it to an exit status.
pub(super) fn report_accept_loop(outcome: io::Result<usize>) -> Result<(), Exit> {
    match outcome {
        Ok(0) => Ok(()),
        Ok(cut) => {
            tracing::warn!(
                name: Message::DrainTimeout.name(),
                cut,
                "closed connections with unfinished requests after the drain timeout"
            );
            Ok(())
        }
        Err(error) => {
            tracing::error!(
                name: Message::ServingFailed.name(),
                errno = error.raw_os_error(), %error,
                "the listening socket failed"
            );
            Err(Exit::System)
        }
    }
}

/// Logs the end of a task, and returns its result.
pub(super) fn report(
    ended: &Result<(&'static str, Result<(), Exit>), JoinError>,
) -> Result<(), Exit> {
    match ended {
        Ok((name, outcome)) => {
            tracing::debug!(task = name, ok = outcome.is_ok(), "a task ended");
            *outcome
        }
        Err(error) => {
            tracing::error!(name: Message::InternalFault.name(), %error, "a task panicked");
            Err(Exit::Software)
        }
    }
}
