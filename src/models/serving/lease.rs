//! Lease of a resident model.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::engine::{EngineError, Output, TokenSpan, Tokenizer, Tokens, Truncation};
use crate::models::catalog::fallback::FallbackFor;
use crate::models::error::ModelError;
use crate::models::model_info::ModelInfo;
use crate::models::residency::retention::{LastUses, ModelUser};
use crate::models::serving::queue::{PushError, QueueSender};
use crate::models::serving::ticket::{JobOutput, Ticket};
use crate::models::usage::{RequestOutcome, Usage};
use crate::package::EntryKey;

/// A lease that was given back for a while. The model may be unloaded in the meantime.
#[derive(Clone, Debug)]
pub struct ReleasedLease {
    pub(in crate::models) name: String,
    pub(in crate::models) key: EntryKey,
    pub(in crate::models) info: ModelInfo,
    pub(in crate::models) fallback_for: Option<Arc<FallbackFor>>,
}

/// The right to send requests to one resident model. The model stays in memory while the lease
/// lives.
#[derive(Clone, Debug)]
pub struct Lease {
    pub(in crate::models) name: String,
    pub(in crate::models) key: EntryKey,
    /// Facts about the model.
    pub info: ModelInfo,
    /// Set when this model is the fallback for another one.
    pub fallback_for: Option<Arc<FallbackFor>>,
    pub(in crate::models) tokenizer: Arc<Tokenizer>,
    pub(in crate::models) queue: QueueSender,
    pub(in crate::models) usage: Arc<Usage>,
    pub(in crate::models) last_uses: Arc<LastUses>,
}

impl Lease {
    /// Records that `user` uses the model now. The model is not unloaded as idle while that user
    /// needs it.
    pub fn record_use(&self, user: ModelUser) {
        self.last_uses.record(user, tokio::time::Instant::now());
    }

    /// Converts a text into token ids. Takes up to milliseconds of processor time, so it must not
    /// run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(
        &self,
        prompt: &str,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_truncated(prompt, text, truncation)
    }

    /// Converts one text of a pair into token ids without special ones. Must not run on the
    /// runtime's threads, like [`tokenize`](Self::tokenize).
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize_part(&self, text: &str, truncation: Truncation) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_part(text, truncation)
    }

    /// Joins the tokens of the texts of a pair.
    ///
    /// # Errors
    /// When the model does not score pairs.
    pub fn join(
        &self,
        first: &Tokens,
        second: &Tokens,
        truncation: Truncation,
    ) -> Result<Tokens, EngineError> {
        self.tokenizer.join(first, second, truncation)
    }

    /// Returns all tokens of a text with their positions in it; with `special`, also the special
    /// tokens around it. Takes a hundred times the memory of the text, and milliseconds, so it must
    /// not run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenSpan>, EngineError> {
        self.tokenizer.pieces(prompt, text, special)
    }

    /// Converts token ids into text. Must not run on the runtime's threads.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Counts the first piece of a text that is not empty: its tokens, without special ones, and
    /// its length in bytes. Takes milliseconds, so it must not run on the runtime's threads.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn count_piece(&self, text: &str) -> Result<(usize, usize), EngineError> {
        self.tokenizer.count_piece(text)
    }

    /// Returns the maximum number of tokens of a text, special tokens included.
    pub fn max_sequence_length(&self) -> usize {
        self.tokenizer.max_sequence_length()
    }

    /// Returns the number of special tokens around a text.
    pub fn special_tokens(&self) -> usize {
        self.tokenizer.around()
    }

    /// Returns the number of special tokens of a pair; 0 if the model does not score pairs.
    pub fn special_of_pair(&self) -> usize {
        self.tokenizer.special_of_pair()
    }

    /// Gives the lease back. [`ManagerHandle::renew`](crate::models::ManagerHandle::renew) acquires
    /// it again.
    pub fn release(self) -> ReleasedLease {
        ReleasedLease {
            name: self.name,
            key: self.key,
            info: self.info,
            fallback_for: self.fallback_for,
        }
    }

    /// Checks token ids that a client sent, and adds the model's special tokens around them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.tokenizer.encode_ids(ids, truncation)
    }

    /// Checks whether a request with this ticket could be enqueued now if it were short, so that
    /// texts are not tokenized for a request that will be rejected. A rejection is counted in
    /// [`Usage`].
    ///
    /// # Errors
    /// When too many requests wait already, or the model has ended.
    pub fn check_queue(&self, ticket: &Ticket) -> Result<(), ModelError> {
        let began = Instant::now();
        self.queue.check(ticket).map_err(|error| {
            let latency = began.elapsed();
            let outcome = RequestOutcome { texts: 0, tokens: 0, latency, is_ok: false };
            self.usage.record(&self.key, outcome, SystemTime::now());
            self.push_error(error)
        })
    }

    fn push_error(&self, error: PushError) -> ModelError {
        let name = self.name.clone();
        match error {
            PushError::Full { waiting, retry_after } => {
                ModelError::Overloaded { name, waiting, retry_after }
            }
            PushError::Closed => ModelError::Ended(name),
        }
    }

    /// Computes `texts` and returns the results. The request is counted in [`Usage`].
    ///
    /// Cancelling drops the request: it is not begun, or it stops after the current pass. A
    /// cancelled request is not counted, since it neither succeeded nor failed.
    ///
    /// # Errors
    /// When too many requests wait already, or the model does not answer by the ticket's deadline.
    pub async fn embed(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<JobOutput, ModelError> {
        let (count, tokens) = (texts.len(), texts.iter().map(Vec::len).sum());
        let began = Instant::now();
        let answer = self.push_and_wait(texts, output, ticket).await;
        let latency = began.elapsed();
        let outcome = RequestOutcome { texts: count, tokens, latency, is_ok: answer.is_ok() };
        self.usage.record(&self.key, outcome, SystemTime::now());
        answer
    }

    async fn push_and_wait(
        &self,
        texts: Vec<Vec<u32>>,
        output: Output,
        ticket: Ticket,
    ) -> Result<JobOutput, ModelError> {
        let pushed = self.queue.push(texts, output, &ticket);
        let answer = pushed.map_err(|error| self.push_error(error))?;
        let patience = ticket.deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(patience, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(patience))?;
        Ok(answer.map_err(|_closed| ModelError::Ended(self.name.clone()))??)
    }
}
