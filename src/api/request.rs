//! One internal request: what every dialect turns its JSON into, and what it makes its answer of.
//!
//! Owns the way from texts to vectors: limits, the lease, the prompt, tokenizing, computing, counting, and the headers
//! that tell the truth about an answer. Knows no dialect.
//!
//! Invariant: the same text gets the same vector, whatever the route.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::task::JoinError;

use super::App;
use super::caller::Caller;
use super::error::ApiError;
use super::input::MAX_INPUTS;
use super::target;
use super::tokenize::{Job, Tokenized, count, tokenize};
use super::wire::Input;
use crate::engine::{Output, Truncation};
use crate::log::Message;
use crate::models::alias::Target;
use crate::models::{Fallback, Lease, ModelInfo, StandIn};
use crate::package::{Entry, Manifest};
use crate::units::milliseconds;

/// Tokens of which a request may want the states: as many rows as it may have vectors.
const MAX_TOKEN_STATES: usize = MAX_INPUTS;
/// The identity under which the vectors of an answer may be compared with others.
pub(super) const EMBEDDING_SPACE: &str = "x-caxton-embedding-space";
/// Up to so many numbers are written as text on the runtime's own thread: about 0.1 ms.
const INLINE_VALUES: usize = 2048;
/// What a number of a vector takes as text, at most in most answers: a sign, nine digits after "0.0", a comma.
const NUMBER_BYTES: usize = 14;
/// What an answer takes beside its numbers, at most in most answers.
const ANSWER_BYTES: usize = 512;

/// Texts of which somebody wants vectors.
#[derive(Clone, Debug, Default)]
pub(super) struct EmbedRequest {
    /// The texts, or their token ids. Copies of a request share them.
    pub(super) input: Arc<Input>,
    /// What the dialect calls the field of the texts, for its errors.
    pub(super) param: &'static str,
    /// What is wanted of each text.
    pub(super) wanted: Wanted,
    /// Which of the model's prompts goes before each text.
    pub(super) prompt: Prompt,
    /// Whether a text that is too long is an error; otherwise one end is left out.
    pub(super) refuse_long: bool,
    /// Which end that is.
    pub(super) truncation: Truncation,
    /// Cut vectors to this length, and scale them to length 1 again if the model gives such.
    pub(super) dimensions: Option<usize>,
    /// Whether the vectors are compared with each other, and none is written.
    pub(super) compared: bool,
}

/// What is wanted of each text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its vector, as the model's manifest describes it.
    #[default]
    Vector,
    /// Its vector, scaled to length 1 whatever the manifest says, or not scaled.
    Normalized(bool),
    /// The states of all its tokens after the last layer.
    TokenStates,
}

impl Wanted {
    /// What the engine computes for it, of a model that normalises its vectors or does not.
    fn output(self, normalizes: bool) -> Output {
        match self {
            Self::Normalized(false) if normalizes => Output::Unnormalized,
            Self::Vector | Self::Normalized(_) => Output::Vector,
            Self::TokenStates => Output::TokenStates,
        }
    }
}

/// What goes before each text.
#[derive(Clone, Debug, Default)]
pub(super) enum Prompt {
    /// The model's default prompt, if it has one.
    #[default]
    Default,
    /// The model's prompt of this name.
    Named(String),
    /// The prompt for what is searched with or in: the model's `query` or `passage` (or `document`), or else its default.
    Query,
    /// See [`Prompt::Query`].
    Passage,
}

/// Writes an answer with so many numbers; on the blocking pool, in turns of the users, if it would keep others waiting.
pub(super) async fn write(
    app: &App,
    caller: &Caller,
    values: usize,
    write: impl FnOnce(&Caller) -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    if values <= INLINE_VALUES {
        return Ok(write(caller));
    }
    let (uid, deadline, caller) = (caller.uid, caller.deadline, caller.clone());
    app.places.work.run(uid, deadline, move || write(&caller)).await
}

/// An answer with about so many numbers, as JSON.
pub(super) fn json(values: usize, answer: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(ANSWER_BYTES + values * NUMBER_BYTES);
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(name: Message::InternalFault.name(), %error, "an answer could not be written");
            ApiError::lost().into_response()
        }
    }
}

/// Tokens of one text, special tokens included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// What was given.
    pub(super) provided: usize,
    /// What the vector is made of.
    pub(super) used: usize,
}

/// How long the stages of an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timings {
    /// Texts to token ids.
    pub(super) tokenization: Duration,
    /// From the queue's beginning to its end.
    pub(super) queue: Duration,
    /// Token ids to vectors.
    pub(super) inference: Duration,
}

/// Vectors, and the truth about them.
#[derive(Debug)]
pub(super) struct Embedded {
    /// The model that answered.
    pub(super) info: ModelInfo,
    /// `[texts, dimensions]`, or of token states `[tokens of all texts, dimensions]`; row-major.
    pub(super) vectors: Vec<f32>,
    /// Length of one row.
    pub(super) dimensions: usize,
    /// Of each text.
    pub(super) tokens: Vec<Counted>,
    /// Characters of all texts; none of those that were sent as token ids.
    pub(super) characters: usize,
    /// For whom the model stands in, if it does.
    pub(super) stands_in: Option<Arc<StandIn>>,
    /// How long it took.
    pub(super) timings: Timings,
}

/// Checks what can be checked without a model, so that nothing is loaded for a request that is wrong.
pub(super) fn check_input(input: &Input, param: &str) -> Result<(), ApiError> {
    let (count, empty) = match input {
        Input::Texts(texts) => (texts.len(), texts.iter().position(String::is_empty)),
        Input::Ids(lists) => (lists.len(), lists.iter().position(Vec::is_empty)),
    };
    if count == 0 {
        let message = format!("{param} is missing or an empty list; expected at least one text");
        return Err(ApiError::invalid(Some(param.to_owned()), message));
    }
    if count > MAX_INPUTS {
        return Err(ApiError::too_many_inputs(MAX_INPUTS).about(param.to_owned()));
    }
    match empty {
        Some(index) => {
            let message = format!("{param} {index} is empty");
            Err(ApiError::invalid(Some(format!("{param}[{index}]")), message))
        }
        None => Ok(()),
    }
}

/// The vectors of `request` by the model of this name, or by the default model; it is loaded first if need be.
///
/// Cancelling drops the request wherever it is.
pub(super) async fn embed(
    app: &App,
    caller: &Caller,
    model: Option<&str>,
    request: EmbedRequest,
) -> Result<Embedded, ApiError> {
    check_input(&request.input, request.param)?;
    let fallback = Fallback::Vectors(caller.allow_fallback);
    let lease = open(app, caller, model, &request.input, fallback).await?;
    embed_with(app, lease, caller, request).await
}

/// The right to ask the model that `model` means, or what stands for it when the request names none: several requests by
/// one lease get vectors of one embedding space. `input` decides whether an alias means its canary.
pub(super) async fn open(
    app: &App,
    caller: &Caller,
    model: Option<&str>,
    input: &Input,
    fallback: Fallback,
) -> Result<Lease, ApiError> {
    let Target { name, alias } = target::find(app, caller, model, input)?;
    // What an alias or the settings name is the operator's choice, whose clients go on without it.
    let named = model.is_some() && alias.is_none();
    let is_allowed = |entry: &Entry| target::may_stand_in(caller, entry);
    match app.handle.lease_for(&name, named, fallback, is_allowed, caller.deadline).await {
        Ok(mut lease) => {
            lease.used_by(caller.user());
            lease.info.alias = alias;
            if let Some(stand_in) = &lease.stands_in {
                app.metrics.fallback(ApiError::from(&stand_in.error).code());
            }
            Ok(lease)
        }
        Err(error) => Err(ApiError::from(error).through(alias.as_ref())),
    }
}

/// The vectors of `request` by the model of `lease`, which is given back while the request waits for its turn to be
/// tokenized.
pub(super) async fn embed_with(
    app: &App,
    lease: Lease,
    caller: &Caller,
    request: EmbedRequest,
) -> Result<Embedded, ApiError> {
    check_input(&request.input, request.param)?;
    let dimensions = dimensions(request.dimensions, lease.info.manifest.dimensions)?;
    let prompt = prompt(&request.prompt, &lease)?.into();
    lease.check_queue(&caller.ticket())?;
    let began = Instant::now();
    let EmbedRequest { input, param, truncation, .. } = request;
    let job = Job { prompt, input, param, truncation };
    let (lease, tokenized) = tokenize(app, caller, lease, job.clone()).await?;
    let tokenization = began.elapsed();
    let Tokenized { ids, whole, characters } = tokenized;
    let used: Vec<usize> = ids.iter().map(Vec::len).collect();
    let long = used.iter().zip(&whole).position(|(used, whole)| *whole != Some(*used));
    if let Some(index) = long
        && request.refuse_long
    {
        let most = lease.info.manifest.max_sequence_length;
        return Err(ApiError::too_long(format!("{}[{index}]", request.param), whole[index], most));
    }
    let total = used.iter().sum();
    if request.wanted == Wanted::TokenStates && total > MAX_TOKEN_STATES {
        return Err(ApiError::too_many_tokens(request.param, total, MAX_TOKEN_STATES));
    }
    let rows = if request.wanted == Wanted::TokenStates { total } else { used.len() };
    let numbers = rows.saturating_mul(lease.info.manifest.dimensions);
    caller.charge.grow_numbers(numbers, request.compared)?;
    let output = request.wanted.output(lease.info.manifest.normalize);
    // What was cut off unseen is counted while the rest is computed.
    let (computed, provided) = tokio::try_join!(
        async { Ok(lease.embed(ids, output, caller.ticket()).await?) },
        count(app, caller, lease.clone(), job, whole),
    )?;
    let tokens = provided.into_iter().zip(used);
    let tokens = tokens.map(|(provided, used)| Counted { provided, used }).collect();
    let timings = Timings { tokenization, queue: computed.queue, inference: computed.inference };
    let info = described(&lease.info, request.wanted);
    let mut vectors = computed.vectors;
    let dimensions = match request.wanted {
        Wanted::TokenStates => vectors.len() / total.max(1),
        Wanted::Vector | Wanted::Normalized(_) => {
            let (own, wanted) = (&lease.info.manifest, &info.manifest);
            if dimensions < own.dimensions || (wanted.normalize && !own.normalize) {
                vectors = shorten(&vectors, own.dimensions, dimensions, wanted.normalize);
            }
            dimensions
        }
    };
    let stands_in = lease.stands_in.clone();
    Ok(Embedded { info, vectors, dimensions, tokens, characters, stands_in, timings })
}

/// The model as if its manifest said of normalisation what is wanted: its vectors are of the embedding space that a
/// model with such a manifest has.
fn described(info: &ModelInfo, wanted: Wanted) -> ModelInfo {
    let mut info = info.clone();
    if let Wanted::Normalized(normalize) = wanted
        && normalize != info.manifest.normalize
    {
        let manifest = Manifest { normalize, ..Manifest::clone(&info.manifest) };
        info.embedding_space = manifest.embedding_space().into();
        info.manifest = Arc::new(manifest);
    }
    info
}

fn dimensions(asked: Option<usize>, available: usize) -> Result<usize, ApiError> {
    let dimensions = asked.unwrap_or(available);
    if (1..=available).contains(&dimensions) {
        return Ok(dimensions);
    }
    Err(ApiError::invalid(
        Some("dimensions".to_owned()),
        format!("dimensions is {dimensions}; this model gives 1 to {available}"),
    ))
}

/// The text that goes before every input.
pub(super) fn prompt(prompt: &Prompt, lease: &Lease) -> Result<String, ApiError> {
    let manifest = &lease.info.manifest;
    let usual: &[&str] = match prompt {
        Prompt::Default => &[],
        Prompt::Query => &["query"],
        Prompt::Passage => &["passage", "document"],
        Prompt::Named(name) => {
            return manifest.prompts.get(name).cloned().ok_or_else(|| {
                let known = Vec::from_iter(manifest.prompts.keys().map(String::as_str)).join(", ");
                let message = format!("this model has no prompt \"{name}\"; it has: {known}");
                ApiError::invalid(Some("prompt_name".to_owned()), message)
            });
        }
    };
    let names = usual.iter().copied().chain(manifest.default_prompt.as_deref());
    let found = names.into_iter().find_map(|name| manifest.prompts.get(name));
    Ok(found.cloned().unwrap_or_default())
}

/// An internal error for work that was lost: a panic, or the daemon is stopping.
pub(super) fn lost(error: JoinError) -> ApiError {
    tracing::error!(name: Message::InternalFault.name(), %error, "a request was lost");
    ApiError::lost()
}

/// The first `to` of every `from` numbers; scaled to length 1 if `normalize`.
fn shorten(vectors: &[f32], from: usize, to: usize, normalize: bool) -> Vec<f32> {
    let mut short = Vec::with_capacity(vectors.len() / from * to);
    for vector in vectors.chunks_exact(from) {
        let begin = short.len();
        short.extend_from_slice(&vector[..to]);
        if normalize {
            scale_to_one(&mut short[begin..]);
        }
    }
    short
}

fn scale_to_one(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        // Components of a unit vector: the quotient is within f32.
        #[expect(clippy::cast_possible_truncation, reason = "a quotient of at most 1")]
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

impl Embedded {
    /// The vectors or token states, one after the other.
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.chunks_exact(self.dimensions)
    }

    /// Tokens that were computed.
    pub(super) fn used(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.used).sum()
    }

    /// What is said of the answer in headers, on every route.
    pub(super) fn label(&self, caller: &Caller, response: &mut Response) {
        label_model(&self.info, response);
        let truncated = self.tokens.iter().filter(|tokens| tokens.used < tokens.provided).count();
        let Timings { tokenization, queue, inference } = self.timings;
        // For what is measured of requests, and until the answer is written.
        response.extensions_mut().insert(self.timings);
        response.extensions_mut().insert(Arc::clone(&caller.charge));
        let headers = response.headers_mut();
        let count = |number: usize| HeaderValue::from(number);
        let time = |duration| HeaderValue::from(milliseconds(duration));
        for (name, value) in [
            ("x-caxton-truncated-inputs", count(truncated)),
            ("x-compute-characters", count(self.characters)),
            ("x-compute-tokens", count(self.used())),
            ("x-tokenization-time", time(tokenization)),
            ("x-queue-time", time(queue)),
            ("x-inference-time", time(inference)),
            ("x-total-time", time(caller.began.elapsed())),
        ] {
            headers.insert(HeaderName::from_static(name), value);
        }
        let stand_in = self.stands_in.as_ref().map(|stand_in| {
            let StandIn { wanted, error } = &**stand_in;
            format!("{wanted}; reason={}", ApiError::from(error).code())
        });
        if let Some(stand_in) = stand_in {
            insert(headers, "x-caxton-fallback-for", &stand_in);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// Says in headers which model an answer is of.
pub(super) fn label_model(info: &ModelInfo, response: &mut Response) {
    let ModelInfo { manifest, embedding_space, revision, alias } = info;
    let headers = response.headers_mut();
    insert(headers, "x-caxton-model", &format!("{}@{}", manifest.id, manifest.version));
    insert(headers, "x-caxton-revision", revision);
    insert(headers, EMBEDDING_SPACE, embedding_space);
    if let Some(alias) = alias {
        insert(headers, "x-caxton-alias", &alias.to_string());
    }
}

/// Ids, versions, digests and numbers are visible ASCII; anything else would be left out, not panic.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
