//! The texts of a request as tokens: on the runtime's own threads where that is quick, on the blocking pool where it
//! would keep others waiting.
//!
//! Owns how much is tokenized where, and how much at a time; the tokenizer is the model's.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::error::ApiError;
use super::request::lost;
use super::turn::turn;
use super::wire::Input;
use crate::engine::{EngineError, Tokens, Truncation};
use crate::models::Lease;

/// Up to so many bytes are tokenized on the runtime's own thread: about 0.1 ms, what handing them over costs.
const INLINE_BYTES: usize = 2048;
/// One text of more bytes is tokenized at a time, of however many clients: it may take a hundred times its memory.
const LARGE_TEXT: usize = 64 << 10;
static LARGE: Semaphore = Semaphore::const_new(1);

/// The texts of a request as tokens.
pub(super) struct Tokenized {
    /// Token ids of each text, cut to the model's length.
    pub(super) ids: Vec<Vec<u32>>,
    /// Tokens of each whole text; `None` when its end was cut off unseen.
    pub(super) whole: Vec<Option<usize>>,
    /// Characters of all texts; none of those that were sent as token ids.
    pub(super) characters: usize,
}

/// Tokenizes on the blocking pool what would keep others waiting; a large text when it is its turn, by `deadline`.
pub(super) async fn tokenize(
    lease: &Lease,
    prompt: &str,
    input: &Arc<Input>,
    param: &'static str,
    truncation: Truncation,
    deadline: Instant,
) -> Result<Tokenized, ApiError> {
    let bytes = match &**input {
        Input::Texts(texts) => texts.iter().map(|text| prompt.len() + text.len()).sum(),
        Input::Ids(lists) => lists.iter().map(|ids| size_of_val(ids.as_slice())).sum::<usize>(),
    };
    if bytes <= INLINE_BYTES {
        return tokenize_now(lease, prompt, input, param, truncation);
    }
    let is_large = match &**input {
        Input::Texts(texts) => texts.iter().any(|text| text.len() > LARGE_TEXT),
        Input::Ids(_) => false,
    };
    let turn = if is_large { Some(turn(&LARGE, deadline).await?) } else { None };
    let (lease, prompt, input) = (lease.clone(), prompt.to_owned(), Arc::clone(input));
    let work = move || {
        let _turn = turn;
        tokenize_now(&lease, &prompt, &input, param, truncation)
    };
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

fn tokenize_now(
    lease: &Lease,
    prompt: &str,
    input: &Input,
    param: &str,
    truncation: Truncation,
) -> Result<Tokenized, ApiError> {
    let about = |index: usize| {
        move |error: EngineError| ApiError::from(error).about(format!("{param}[{index}]"))
    };
    let tokens: Vec<Tokens> = match input {
        Input::Texts(texts) => {
            let tokens = texts.iter().enumerate().map(|(index, text)| {
                lease.tokenize(prompt, text, truncation).map_err(about(index))
            });
            tokens.collect::<Result<_, _>>()?
        }
        Input::Ids(lists) => {
            let tokens = lists
                .iter()
                .enumerate()
                .map(|(index, ids)| lease.check_ids(ids, truncation).map_err(about(index)));
            tokens.collect::<Result<_, _>>()?
        }
    };
    let characters = match input {
        Input::Texts(texts) => texts.iter().map(|text| text.chars().count()).sum(),
        Input::Ids(_) => 0,
    };
    let whole = tokens.iter().map(|tokens| tokens.whole).collect();
    Ok(Tokenized { ids: tokens.into_iter().map(|tokens| tokens.ids).collect(), whole, characters })
}

/// Tokens of each whole text, those counted that are not known yet.
pub(super) async fn count(
    lease: &Lease,
    prompt: String,
    input: Arc<Input>,
    whole: Vec<Option<usize>>,
    param: &'static str,
) -> Result<Vec<usize>, ApiError> {
    if let Some(known) = whole.iter().copied().collect() {
        return Ok(known);
    }
    let lease = lease.clone();
    let count = move || {
        let of = |(index, whole): (usize, Option<usize>)| match (whole, &*input) {
            (Some(whole), _) => Ok(whole),
            (None, Input::Texts(texts)) => lease
                .count_tokens(&prompt, &texts[index])
                .map_err(|error| ApiError::from(error).about(format!("{param}[{index}]"))),
            (None, Input::Ids(lists)) => Ok(lists[index].len()),
        };
        whole.into_iter().enumerate().map(of).collect()
    };
    tokio::task::spawn_blocking(count).await.map_err(lost)?
}
