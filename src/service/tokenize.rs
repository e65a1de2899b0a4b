//! Tokenizes the texts of a request: short ones on the runtime's own thread, longer ones on the
//! blocking pool, scheduled fairly among users.
//!
//! Decides how much is tokenized where and at the same time. The tokenizer itself belongs to the
//! model. A request returns its lease while it waits for a permit, so that the model can be
//! evicted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::EmbedError;
use super::permit::{Permit, PermitPool, Permits};
use super::request::{CheckedInput, Input};
use crate::engine::{EngineError, Tokens, Truncation};
use crate::models::{Lease, ManagerHandle, Urgency};

/// Total length in bytes up to which texts are tokenized on the runtime's own thread. This takes
/// about 25 µs, or 13 ms with the slowest tokenizer that is accepted.
const INLINE_BYTES: usize = 512;
/// Number of token ids up to which they are checked on the runtime's own thread. They are only
/// compared with the vocabulary.
const INLINE_IDS: usize = 512;
/// Number of ids of a query up to which they are copied into pairs on the runtime's own thread. The
/// copies take about 10 µs.
const INLINE_COPIES: usize = 16 << 10;
/// Length in bytes above which only one text is tokenized at the same time, for all clients. The
/// tokenizer may allocate a hundred times this size.
const LARGE_TEXT: usize = 64 << 10;
/// Time for which a request keeps its permit while its model is loaded again.
const RENEWAL: Duration = Duration::from_millis(50);

/// Texts of a request as tokens.
#[derive(Debug, Default)]
pub(super) struct TokenizedTexts {
    /// Token ids of each text, truncated to the model's length.
    pub(super) ids: Vec<Vec<u32>>,
    /// Number of tokens of each text before truncation; `None` if the end was cut off without
    /// tokenizing it.
    pub(super) whole: Vec<Option<usize>>,
    /// Number of characters of all texts; 0 for token ids.
    pub(super) characters: usize,
}

/// Parts of the daemon that tokenizing uses, for one caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenizeContext<'a> {
    /// Renews the leases that were returned.
    pub(super) handle: &'a ManagerHandle,
    /// Permits for work on the processors.
    pub(super) permits: &'a Permits,
    /// User of the request.
    pub(super) uid: u32,
    /// Instant at which the request times out, and its class for loads.
    pub(super) urgency: Urgency,
}

/// Waits for a permit from `pool`. A request that must wait returns its lease and renews it
/// afterwards, so that the model can be evicted while requests wait.
///
/// # Errors
/// As [`PermitPool::acquire_by`], and the errors of the model if it was evicted and cannot be
/// loaded again.
pub(super) async fn acquire_permit(
    TokenizeContext { handle, uid, urgency, .. }: TokenizeContext<'_>,
    pool: &PermitPool,
    lease: Lease,
) -> Result<(Permit, Lease), EmbedError> {
    if let Some(permit) = pool.try_acquire() {
        return Ok((permit, lease));
    }
    let absent = lease.release();
    loop {
        let permit = pool.acquire_by(uid, urgency.deadline).await?;
        match tokio::time::timeout(RENEWAL, handle.renew(&absent, urgency)).await {
            Ok(lease) => return Ok((permit, lease?)),
            // The model is being loaded: release the permit for others meanwhile.
            Err(_elapsed) => drop(permit),
        }
        // Renew the lease without a permit. If no permit is free then, the lease is dropped again
        // and the request queues once more.
        let lease = handle.renew(&absent, urgency).await?;
        if let Some(permit) = pool.try_acquire() {
            return Ok((permit, lease));
        }
    }
}

/// Tokenizes `job`: short texts on the runtime's thread, others on the blocking pool, and a large
/// text under the permit for large texts. Returns the tokens and a lease of the same model.
pub(super) async fn tokenize(
    context: TokenizeContext<'_>,
    mut lease: Lease,
    job: TokenizeJob,
) -> Result<(Lease, TokenizedTexts), EmbedError> {
    let (is_short, is_large) = match job.input.input() {
        Input::Texts(texts) => {
            let prompt = job.prompt.len();
            let bytes: usize = texts.iter().map(|text| prompt + text.len()).sum();
            let is_short = bytes <= INLINE_BYTES && job.copied_ids() <= INLINE_COPIES;
            (is_short, texts.iter().any(|text| text.len() > LARGE_TEXT))
        }
        Input::Ids(lists) => (lists.iter().map(Vec::len).sum::<usize>() <= INLINE_IDS, false),
    };
    let mut state = TokenizeState { job, texts: TokenizedTexts::default() };
    if is_short {
        while !state.step(&lease)? {}
        return Ok((lease, state.texts));
    }
    let pool = if is_large { &context.permits.large } else { &context.permits.work };
    loop {
        let (permit, held) = acquire_permit(context, pool, lease).await?;
        let work = move || {
            let began = Instant::now();
            loop {
                let is_done = state.step(&held)?;
                if is_done || permit.is_expired(began) {
                    return Ok::<_, EmbedError>((state, held, is_done));
                }
            }
        };
        let is_done;
        (state, lease, is_done) = tokio::task::spawn_blocking(work).await??;
        if is_done {
            return Ok((lease, state.texts));
        }
    }
}

/// Use of the texts of a [`TokenizeJob`].
#[derive(Clone, Debug)]
pub(super) enum TextRole {
    /// Each is a text of its own.
    Whole,
    /// Each is the first text of pairs. Its tokens have no special ones.
    Query,
    /// Each becomes a pair with the query that has these tokens.
    Document(Arc<Tokens>),
}

/// Input of [`tokenize`] and [`count`].
#[derive(Clone, Debug)]
pub(super) struct TokenizeJob {
    /// Text to put before each text.
    pub(super) prompt: Arc<str>,
    /// Texts, or their token ids if each is a text of its own.
    pub(super) input: CheckedInput,
    /// End at which a long text is truncated.
    pub(super) truncation: Truncation,
    /// Use of the texts.
    pub(super) role: TextRole,
}

impl TokenizeJob {
    fn tokenize(&self, lease: &Lease, text: &str) -> Result<Tokens, EngineError> {
        match &self.role {
            TextRole::Whole => lease.tokenize(&self.prompt, text, self.truncation),
            TextRole::Query => lease.tokenize_part(text, self.truncation),
            TextRole::Document(query) => {
                let document = lease.tokenize_part(text, self.truncation)?;
                lease.join(query, &document, self.truncation)
            }
        }
    }

    /// Returns the number of ids of the query in all pairs, each with a copy of them.
    pub(super) fn copied_ids(&self) -> usize {
        match &self.role {
            TextRole::Whole | TextRole::Query => 0,
            TextRole::Document(query) => query.ids.len().saturating_mul(self.input.texts().len()),
        }
    }

    /// Returns the number of tokens beside those of the text.
    fn tokens_beside(&self, lease: &Lease) -> usize {
        match &self.role {
            TextRole::Whole => lease.special_tokens(),
            TextRole::Query => 0,
            TextRole::Document(query) => lease.special_of_pair() + query.whole.unwrap_or_default(),
        }
    }
}

fn failed(index: usize) -> impl FnOnce(EngineError) -> EmbedError {
    move |source| EmbedError::Text { index, source }
}

struct TokenizeState {
    job: TokenizeJob,
    texts: TokenizedTexts,
}

impl TokenizeState {
    /// Tokenizes the next text. Returns whether it was the last one.
    fn step(&mut self, lease: &Lease) -> Result<bool, EmbedError> {
        let Self { job, texts: done } = self;
        let index = done.ids.len();
        let (tokens, count) = match job.input.input() {
            Input::Texts(texts) => {
                let Some(text) = texts.get(index) else { return Ok(true) };
                done.characters += text.chars().count();
                (job.tokenize(lease, text), texts.len())
            }
            Input::Ids(lists) => {
                let Some(ids) = lists.get(index) else { return Ok(true) };
                (lease.check_ids(ids, job.truncation), lists.len())
            }
        };
        let Tokens { ids, whole } = tokens.map_err(failed(index))?;
        done.ids.push(ids);
        done.whole.push(whole);
        Ok(done.ids.len() == count)
    }
}

/// Returns the number of tokens of each text before truncation. Unknown numbers are counted piece
/// by piece on the blocking pool, scheduled fairly among users.
pub(super) async fn count(
    context: TokenizeContext<'_>,
    mut lease: Lease,
    job: TokenizeJob,
    whole: Vec<Option<usize>>,
) -> Result<Vec<usize>, EmbedError> {
    if let Some(known) = whole.iter().copied().collect() {
        return Ok(known);
    }
    let mut counting = CountState { job, whole, at: 0, partial: None };
    loop {
        let (permit, held) = acquire_permit(context, &context.permits.work, lease).await?;
        let work = move || {
            let began = Instant::now();
            loop {
                let is_done = counting.step(&held)?;
                if is_done || permit.is_expired(began) {
                    return Ok::<_, EmbedError>((counting, held, is_done));
                }
            }
        };
        let is_done;
        (counting, lease, is_done) = tokio::task::spawn_blocking(work).await??;
        if is_done {
            return Ok(counting.whole.into_iter().map(Option::unwrap_or_default).collect());
        }
    }
}

struct CountState {
    job: TokenizeJob,
    whole: Vec<Option<usize>>,
    /// Index of the current text.
    at: usize,
    /// Text that is being counted, with its prompt; the number of its bytes that were counted; the
    /// tokens in these.
    partial: Option<(String, usize, usize)>,
}

impl CountState {
    /// Counts the next piece. Returns whether everything is counted.
    fn step(&mut self, lease: &Lease) -> Result<bool, EmbedError> {
        let Self { job, whole, at, partial: begun } = self;
        let Some(count) = whole.get_mut(*at) else { return Ok(true) };
        let (None, Input::Texts(texts)) = (&count, job.input.input()) else {
            if let (None, Input::Ids(lists)) = (&count, job.input.input()) {
                *count = lists.get(*at).map(Vec::len);
            }
            *at += 1;
            return Ok(false);
        };
        let text = texts.get(*at).map_or("", String::as_str);
        let (text, done, tokens) = begun
            .get_or_insert_with(|| ([&job.prompt, text].concat(), 0, job.tokens_beside(lease)));
        let rest = text.get(*done..).unwrap_or_default();
        if rest.is_empty() {
            *count = Some(*tokens);
            *begun = None;
            *at += 1;
            return Ok(false);
        }
        let (more, length) = lease.count_piece(rest).map_err(failed(*at))?;
        *tokens += more;
        *done += length;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_a_copy_of_the_query() {
        let input = CheckedInput::new(Input::Texts(vec!["a".to_owned(), "b".to_owned()])).unwrap();
        let copied = |role| {
            let (prompt, truncation) = ("".into(), Truncation::Right);
            TokenizeJob { prompt, input: input.clone(), truncation, role }.copied_ids()
        };
        let query = Tokens { ids: vec![1, 2, 3], whole: Some(3) };
        assert_eq!(copied(TextRole::Document(Arc::new(query))), 6);
        assert_eq!(copied(TextRole::Query), 0);
    }
}
