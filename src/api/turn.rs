//! What is done for one request at a time because of the memory that it takes.
//!
//! Owns no turn; each is a semaphore beside the work that it is for.

use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use crate::models::ModelError;

/// Waits for a turn of `semaphore`, which nobody closes, until `deadline`. To be given back by the work itself, which
/// goes on when the client leaves.
///
/// # Errors
/// 504 when the turn did not come in time.
pub(super) async fn turn(
    semaphore: &'static Semaphore,
    deadline: Instant,
) -> Result<SemaphorePermit<'static>, ApiError> {
    let patience = deadline.saturating_duration_since(Instant::now());
    let permit = tokio::time::timeout(patience, semaphore.acquire()).await;
    let permit = permit.map_err(|_elapsed| ModelError::Timeout(patience))?;
    permit.map_err(|_closed| ApiError::lost())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_in_time_is_told() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let patience = Duration::from_secs(3600);
        let held = turn(&ONE, Instant::now() + patience).await.unwrap();
        let refused = turn(&ONE, Instant::now() + patience).await.unwrap_err();
        assert_eq!(refused.code(), "timeout");
        drop(held);
        // One that is free is given to whoever comes late, too.
        drop(turn(&ONE, Instant::now()).await.unwrap());
    }
}
