//! The texts of a request as tokens: on the runtime's own threads where that is quick, on the blocking pool, in turns of
//! the users, where it would keep others waiting.
//!
//! Owns how much is tokenized where, and how much at a time; the tokenizer is the model's. A request that waits for its
//! turn gives its lease back meanwhile, so that the model may leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::App;
use super::caller::Caller;
use super::error::ApiError;
use super::request::lost;
use super::turn::{Place, Turns};
use super::wire::Input;
use crate::engine::{EngineError, Tokens, Truncation};
use crate::models::Lease;

/// Texts of up to so many bytes together are tokenized on the runtime's own thread: about 25 µs. A tokenizer that takes
/// the most that is accepted needs 13 ms.
const INLINE_BYTES: usize = 512;
/// The same for token ids, which are only compared with the vocabulary.
const INLINE_IDS: usize = 512;
/// One text of more bytes is tokenized at a time, of however many clients: it may take a hundred times its memory.
const LARGE_TEXT: usize = 64 << 10;
/// How long a request keeps its turn while its model comes back.
const RENEWAL: Duration = Duration::from_millis(50);

/// The texts of a request as tokens.
#[derive(Debug, Default)]
pub(super) struct Tokenized {
    /// Token ids of each text, cut to the model's length.
    pub(super) ids: Vec<Vec<u32>>,
    /// Tokens of each whole text; `None` when its end was cut off unseen.
    pub(super) whole: Vec<Option<usize>>,
    /// Characters of all texts; none of those that were sent as token ids.
    pub(super) characters: usize,
}

/// Waits for a turn of `turns`. A request that has to wait gives its lease back and asks for it again when its turn
/// comes, so that a model may leave memory while requests wait.
///
/// # Errors
/// As [`Turns::take`], and those of the model when it has left and does not come back.
pub(super) async fn turn(
    app: &App,
    caller: &Caller,
    turns: &Turns,
    lease: Lease,
) -> Result<(Place, Lease), ApiError> {
    if let Some(place) = turns.try_take() {
        return Ok((place, lease));
    }
    let absent = lease.give_back();
    loop {
        let place = turns.take(caller.uid, caller.deadline).await?;
        match tokio::time::timeout(RENEWAL, app.handle.renew(&absent, caller.deadline)).await {
            Ok(lease) => return Ok((place, lease?)),
            // It is being loaded: others work meanwhile.
            Err(_elapsed) => drop(place),
        }
        let lease = app.handle.renew(&absent, caller.deadline).await?;
        if let Some(place) = turns.try_take() {
            return Ok((place, lease));
        }
    }
}

/// Tokenizes on the blocking pool what would keep others waiting; a large text when it is its turn. Gives the lease
/// back, or one of the same model.
pub(super) async fn tokenize(
    app: &App,
    caller: &Caller,
    mut lease: Lease,
    job: Job,
) -> Result<(Lease, Tokenized), ApiError> {
    let mut job = Tokenizing { job, done: Tokenized::default() };
    let (is_short, is_large) = match &*job.job.input {
        Input::Texts(texts) => {
            let prompt = job.job.prompt.len();
            let bytes: usize = texts.iter().map(|text| prompt + text.len()).sum();
            (bytes <= INLINE_BYTES, texts.iter().any(|text| text.len() > LARGE_TEXT))
        }
        Input::Ids(lists) => (lists.iter().map(Vec::len).sum::<usize>() <= INLINE_IDS, false),
    };
    if is_short {
        while !job.step(&lease)? {}
        return Ok((lease, job.done));
    }
    let turns = if is_large { &app.places.large } else { &app.places.work };
    loop {
        let (place, held) = turn(app, caller, turns, lease).await?;
        let work = move || {
            let began = Instant::now();
            loop {
                let is_done = job.step(&held)?;
                if is_done || place.is_over(began) {
                    return Ok::<_, ApiError>((job, held, is_done));
                }
            }
        };
        let is_done;
        (job, lease, is_done) = tokio::task::spawn_blocking(work).await.map_err(lost)??;
        if is_done {
            return Ok((lease, job.done));
        }
    }
}

/// What is to be tokenized.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// What goes before each text.
    pub(super) prompt: Arc<str>,
    /// The texts, or their ids.
    pub(super) input: Arc<Input>,
    /// What the dialect calls the field of the texts.
    pub(super) param: &'static str,
    /// Which end of a text that is too long is left out.
    pub(super) truncation: Truncation,
}

impl Job {
    fn about(&self, index: usize) -> impl FnOnce(EngineError) -> ApiError + use<> {
        let param = self.param;
        move |error| ApiError::from(error).about(format!("{param}[{index}]"))
    }
}

struct Tokenizing {
    job: Job,
    done: Tokenized,
}

impl Tokenizing {
    /// Tokenizes the next text. Returns whether that was the last one.
    fn step(&mut self, lease: &Lease) -> Result<bool, ApiError> {
        let Self { job, done } = self;
        let index = done.ids.len();
        let (tokens, count) = match &*job.input {
            Input::Texts(texts) => {
                let Some(text) = texts.get(index) else { return Ok(true) };
                done.characters += text.chars().count();
                (lease.tokenize(&job.prompt, text, job.truncation), texts.len())
            }
            Input::Ids(lists) => {
                let Some(ids) = lists.get(index) else { return Ok(true) };
                (lease.check_ids(ids, job.truncation), lists.len())
            }
        };
        let Tokens { ids, whole } = tokens.map_err(job.about(index))?;
        done.ids.push(ids);
        done.whole.push(whole);
        Ok(done.ids.len() == count)
    }
}

/// Tokens of each whole text, those counted that are not known yet: piece by piece, in turns.
pub(super) async fn count(
    app: &App,
    caller: &Caller,
    mut lease: Lease,
    job: Job,
    whole: Vec<Option<usize>>,
) -> Result<Vec<usize>, ApiError> {
    if let Some(known) = whole.iter().copied().collect() {
        return Ok(known);
    }
    let mut counting = Counting { job, whole, at: 0, begun: None };
    loop {
        let (place, held) = turn(app, caller, &app.places.work, lease).await?;
        let work = move || {
            let began = Instant::now();
            loop {
                let is_done = counting.step(&held)?;
                if is_done || place.is_over(began) {
                    return Ok::<_, ApiError>((counting, held, is_done));
                }
            }
        };
        let is_done;
        (counting, lease, is_done) = tokio::task::spawn_blocking(work).await.map_err(lost)??;
        if is_done {
            return Ok(counting.whole.into_iter().map(Option::unwrap_or_default).collect());
        }
    }
}

struct Counting {
    job: Job,
    whole: Vec<Option<usize>>,
    /// The text that is looked at.
    at: usize,
    /// The one that is being counted with its prompt, how much of it is done, and the tokens of that.
    begun: Option<(String, usize, usize)>,
}

impl Counting {
    /// Counts the next piece. Returns whether that was the last one.
    fn step(&mut self, lease: &Lease) -> Result<bool, ApiError> {
        let Self { job, whole, at, begun } = self;
        let Some(count) = whole.get_mut(*at) else { return Ok(true) };
        let (None, Input::Texts(texts)) = (&count, &*job.input) else {
            if let (None, Input::Ids(lists)) = (&count, &*job.input) {
                *count = lists.get(*at).map(Vec::len);
            }
            *at += 1;
            return Ok(false);
        };
        let text = texts.get(*at).map_or("", String::as_str);
        let (text, done, tokens) =
            begun.get_or_insert_with(|| ([&job.prompt, text].concat(), 0, lease.special_tokens()));
        let rest = text.get(*done..).unwrap_or_default();
        if rest.is_empty() {
            *count = Some(*tokens);
            *begun = None;
            *at += 1;
            return Ok(false);
        }
        let (more, length) = lease.count_piece(rest).map_err(job.about(*at))?;
        *tokens += more;
        *done += length;
        Ok(false)
    }
}
