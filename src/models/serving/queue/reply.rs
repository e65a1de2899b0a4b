//! The client's end of a request: the future for its answer, and the flag that a client has
//! cancelled.
//!
//! A full queue may get thousands of requests per second. The flag lets it search for cancelled
//! requests only when there may be some.
//!
//! Invariant: after an [`ReplyFuture`] was dropped without an answer, the next [`CancelFlag::take`]
//! returns true.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::engine::EngineError;
use crate::models::JobOutput;

/// Result of a request.
pub(in crate::models) type JobReply = Result<JobOutput, EngineError>;

/// Flag that is set when a client cancels its request.
#[derive(Debug, Default)]
pub(super) struct CancelFlag(AtomicBool);

impl CancelFlag {
    /// Returns whether a client has cancelled since the last call, and resets the flag.
    pub(super) fn take(&self) -> bool {
        // `Acquire` pairs with the `Release` in `drop`: a reader that sees the flag also sees the
        // closed reply channel.
        self.0.swap(false, Ordering::Acquire)
    }
}

/// Future for the answer; resolves to an error when the worker has ended. Dropping it cancels the
/// request: the request is not begun, or not continued after the current pass.
#[derive(Debug)]
pub(in crate::models) struct ReplyFuture {
    reply: oneshot::Receiver<JobReply>,
    cancelled: Arc<CancelFlag>,
    is_answered: bool,
}

impl ReplyFuture {
    /// Creates the two ends of a reply channel.
    pub(super) fn channel(departures: &Arc<CancelFlag>) -> (oneshot::Sender<JobReply>, Self) {
        let (sender, reply) = oneshot::channel();
        (sender, Self { reply, cancelled: Arc::clone(departures), is_answered: false })
    }
}

impl Future for ReplyFuture {
    type Output = Result<JobReply, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = Pin::new(&mut self.reply).poll(context);
        self.is_answered = reply.is_ready();
        reply
    }
}

impl Drop for ReplyFuture {
    fn drop(&mut self) {
        if !self.is_answered {
            // Close the channel before the flag is set, so that a sweep that sees the flag finds
            // the request cancelled.
            self.reply.close();
            self.cancelled.0.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
pub(in crate::models) mod tests {
    use std::time::Duration;

    use super::*;

    /// Blocks on the answer, on a thread that may block.
    pub(in crate::models) fn wait(
        answer: ReplyFuture,
    ) -> Result<JobReply, oneshot::error::RecvError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
    }

    #[test]
    fn only_unanswered_client_counts_as_departure() {
        let departures = Arc::default();
        let computed =
            JobOutput { vectors: vec![1.0], queue: Duration::ZERO, inference: Duration::ZERO };
        let (sender, answer) = ReplyFuture::channel(&departures);
        sender.send(Ok(computed)).unwrap();
        assert_eq!(wait(answer).unwrap().unwrap().vectors, [1.0]);
        let (sender, answer) = ReplyFuture::channel(&departures);
        drop(sender);
        assert!(wait(answer).is_err());
        assert!(!departures.take());
        let (sender, answer) = ReplyFuture::channel(&departures);
        drop(answer);
        assert!(sender.is_closed());
        assert!(departures.take() && !departures.take());
    }
}
