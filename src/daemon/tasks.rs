//! How the tasks of the daemon end.

use std::io;

use tokio::task::JoinError;

use crate::exit::Exit;
use crate::log::Message;

/// Runs a task that ends well only when it is told to, under its name.
pub(super) async fn ending(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, Result<(), Exit>) {
    task.await;
    (name, Ok(()))
}

/// Says how the loop that serves connections ended.
pub(super) fn served(outcome: io::Result<usize>) -> Result<(), Exit> {
    match outcome {
        Ok(0) => Ok(()),
        Ok(cut) => {
            tracing::warn!(
                name: Message::DrainTimeout.name(),
                cut,
                "connections were cut off: the drain took too long"
            );
            Ok(())
        }
        Err(error) => {
            tracing::error!(
                name: Message::ServingFailed.name(),
                errno = error.raw_os_error(), %error,
                "the socket failed"
            );
            Err(Exit::System)
        }
    }
}

/// Logs how a task ended, and returns it.
pub(super) fn report(
    ended: &Result<(&'static str, Result<(), Exit>), JoinError>,
) -> Result<(), Exit> {
    match ended {
        Ok((name, outcome)) => {
            tracing::debug!(task = name, ok = outcome.is_ok(), "ended");
            *outcome
        }
        Err(error) => {
            tracing::error!(name: Message::InternalFault.name(), %error, "a task panicked");
            Err(Exit::Software)
        }
    }
}
