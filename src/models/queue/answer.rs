//! What a client holds while its request waits and is computed.
//!
//! Owns the client's end of the reply, and whether any client has left since that was asked last: a full queue that is
//! asked for room thousands of times a second looks for requests that nobody wants only when there may be some.
//!
//! Invariant: when an [`Answer`] has been dropped unanswered, the next [`Departures::take`] says so.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::super::Computed;
use crate::engine::EngineError;

/// What a request comes back with.
pub(in crate::models) type Reply = Result<Computed, EngineError>;

/// Whether a client has left unanswered.
#[derive(Debug, Default)]
pub(super) struct Departures(AtomicBool);

impl Departures {
    /// Whether one has since this was asked last.
    pub(super) fn take(&self) -> bool {
        // Acquires what the client did before it said so: its end of the reply is closed.
        self.0.swap(false, Ordering::Acquire)
    }
}

/// The answer to come; an error when the worker is gone. Whoever drops it before has left, and the request is not begun,
/// or not continued past a pass.
#[derive(Debug)]
pub(in crate::models) struct Answer {
    reply: oneshot::Receiver<Reply>,
    departures: Arc<Departures>,
    is_answered: bool,
}

impl Answer {
    /// The two ends of a reply.
    pub(super) fn channel(departures: &Arc<Departures>) -> (oneshot::Sender<Reply>, Self) {
        let (sender, reply) = oneshot::channel();
        (sender, Self { reply, departures: Arc::clone(departures), is_answered: false })
    }
}

impl Future for Answer {
    type Output = Result<Reply, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = Pin::new(&mut self.reply).poll(context);
        self.is_answered = reply.is_ready();
        reply
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_answered {
            // Whoever hears of the departure finds the request unwanted.
            self.reply.close();
            self.departures.0.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
pub(in crate::models) mod tests {
    use std::time::Duration;

    use super::*;

    /// Waits for it on a thread that may block.
    pub(in crate::models) fn wait(answer: Answer) -> Result<Reply, oneshot::error::RecvError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
    }

    #[test]
    fn only_who_leaves_unanswered_is_a_departure() {
        let departures = Arc::default();
        let computed =
            Computed { vectors: vec![1.0], queue: Duration::ZERO, inference: Duration::ZERO };
        let (sender, answer) = Answer::channel(&departures);
        sender.send(Ok(computed)).unwrap();
        assert_eq!(wait(answer).unwrap().unwrap().vectors, [1.0]);
        let (sender, answer) = Answer::channel(&departures);
        drop(sender);
        assert!(wait(answer).is_err());
        assert!(!departures.take());
        let (sender, answer) = Answer::channel(&departures);
        drop(answer);
        assert!(sender.is_closed());
        assert!(departures.take() && !departures.take());
    }
}
