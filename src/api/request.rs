//! Defines the internal request into which every dialect converts its JSON, and the result from
//! which it makes its answer.
//!
//! Contains the steps from texts to vectors: limits, lease, prompt, tokenizing, computing,
//! counting, and the headers that describe the answer. Does not depend on any dialect.
//!
//! Invariant: a text gets the same vector on every route.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::task::JoinError;

use super::App;
use super::error::ApiError;
use super::input::MAX_INPUTS;
use super::model_selection;
use super::request_context::RequestContext;
use super::tokenize::{TokenizeJob, TokenizedTexts, count, tokenize};
use super::wire::Input;
use crate::base::units::milliseconds;
use crate::engine::{Output, Truncation};
use crate::models::alias::ResolvedModel;
use crate::models::{Fallback, FallbackFor, Lease, ModelInfo};
use crate::package::{Manifest, StoreEntry};
use crate::telemetry::log::Message;

/// Most tokens for which a request may get states: as many rows as it may have vectors.
const MAX_TOKEN_STATES: usize = MAX_INPUTS;
/// Header with the embedding space, the identity under which the vectors of an answer may be
/// compared with others.
pub(super) const EMBEDDING_SPACE: &str = "x-caxton-embedding-space";
/// Number of values up to which an answer is written on the runtime's own thread. This takes about
/// 0.1 ms.
const INLINE_VALUES: usize = 2048;
/// Estimated bytes of a number as text, enough in most answers: a sign, nine digits after "0.0", a
/// comma.
const NUMBER_BYTES: usize = 14;
/// Estimated bytes of an answer besides its numbers, enough in most answers.
const ANSWER_BYTES: usize = 512;

/// A request for vectors of texts.
#[derive(Clone, Debug, Default)]
pub(super) struct EmbedRequest {
    /// Texts, or their token ids. Copies of a request share them.
    pub(super) input: Arc<Input>,
    /// Name of the input field in the dialect, for errors.
    pub(super) param: &'static str,
    /// Kind of result for each text.
    pub(super) output: OutputKind,
    /// Prompt to put before each text.
    pub(super) prompt: Prompt,
    /// Whether a text that is too long is an error. Otherwise it is truncated.
    pub(super) refuse_long: bool,
    /// End at which a long text is truncated.
    pub(super) truncation: Truncation,
    /// Length to which vectors are cut. They are scaled to length 1 again if the model normalizes.
    pub(super) dimensions: Option<usize>,
    /// Whether the vectors are only compared with each other and not written.
    pub(super) is_compared: bool,
}

/// Kind of result for each text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// Vector of the text, as the model's manifest describes it.
    #[default]
    Vector,
    /// Vector of the text, scaled to length 1 (`true`) or not (`false`), whatever the manifest
    /// declares.
    Normalized(bool),
    /// States of all tokens of the text after the last layer.
    TokenStates,
}

impl OutputKind {
    /// Returns the engine's output for this result. `normalizes` is true for a model that
    /// normalizes its vectors.
    fn output(self, normalizes: bool) -> Output {
        match self {
            Self::Normalized(false) if normalizes => Output::Unnormalized,
            Self::Vector | Self::Normalized(_) => Output::Vector,
            Self::TokenStates => Output::TokenStates,
        }
    }
}

/// Prompt to put before each text.
#[derive(Clone, Debug, Default)]
pub(super) enum Prompt {
    /// Default prompt of the model, if it has one.
    #[default]
    Default,
    /// Prompt of the model with this name.
    Named(String),
    /// Prompt for a query in a search: the model's `query`, or else its default.
    Query,
    /// Prompt for a document in a search: the model's `passage` or `document`, or else its default.
    Passage,
}

/// Writes an answer with `values` numbers. A large answer is written on the blocking pool,
/// scheduled fairly among users.
pub(super) async fn write(
    app: &App,
    caller: &RequestContext,
    values: usize,
    write: impl FnOnce(&RequestContext) -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    if values <= INLINE_VALUES {
        return Ok(write(caller));
    }
    let (uid, deadline, caller) = (caller.uid, caller.deadline, caller.clone());
    app.permits.work.run(uid, deadline, move || write(&caller)).await
}

/// Returns an answer as JSON. `values` is the approximate count of its numbers, for the initial
/// size of the buffer.
pub(super) fn json(values: usize, answer: &impl Serialize) -> Response {
    let mut text = Vec::with_capacity(ANSWER_BYTES + values * NUMBER_BYTES);
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(name: Message::InternalFault.name(), %error, "an answer could not be written");
            ApiError::lost_work().into_response()
        }
    }
}

/// Tokens of one text, special tokens included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenCounts {
    /// Tokens of the text before truncation.
    pub(super) provided: usize,
    /// Tokens from which the vector is computed.
    pub(super) used: usize,
}

/// Durations of the stages of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timings {
    /// Time to convert texts to token ids.
    pub(super) tokenization: Duration,
    /// Time in the queue.
    pub(super) queue: Duration,
    /// Time to convert token ids to vectors.
    pub(super) inference: Duration,
}

/// Vectors with facts about their origin.
#[derive(Debug)]
pub(super) struct Embeddings {
    /// Model that answered.
    pub(super) info: ModelInfo,
    /// Vectors `[texts, dimensions]`, or token states `[tokens of all texts, dimensions]`;
    /// row-major.
    pub(super) vectors: Vec<f32>,
    /// Length of one row.
    pub(super) dimensions: usize,
    /// Token counts of each text.
    pub(super) tokens: Vec<TokenCounts>,
    /// Number of characters of all texts; 0 for token ids.
    pub(super) characters: usize,
    /// Model that was requested, and its error, if the answer comes from a fallback.
    pub(super) fallback_for: Option<Arc<FallbackFor>>,
    /// Durations of the stages.
    pub(super) timings: Timings,
}

/// Checks the input as far as possible without a model, so that an invalid request loads nothing.
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
        return Err(ApiError::too_many_inputs(MAX_INPUTS).with_param(param.to_owned()));
    }
    match empty {
        Some(index) => {
            let message = format!("{param} {index} is empty");
            Err(ApiError::invalid(Some(format!("{param}[{index}]")), message))
        }
        None => Ok(()),
    }
}

/// Computes the vectors of `request` with the model `model` or the default model. Loads the model
/// first if necessary.
///
/// Dropping the future cancels the request at any stage.
pub(super) async fn embed(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    request: EmbedRequest,
) -> Result<Embeddings, ApiError> {
    check_input(&request.input, request.param)?;
    let fallback = Fallback::Vectors(caller.allow_fallback);
    let lease = lease_model(app, caller, model, &request.input, fallback).await?;
    embed_with(app, lease, caller, request).await
}

/// Returns a lease of the model that `model` means; without a name, of the tenant's or the default
/// model; or of a fallback. All requests with one lease get vectors of one embedding space. The
/// texts of `input` decide whether an alias selects its canary.
pub(super) async fn lease_model(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    input: &Input,
    fallback: Fallback,
) -> Result<Lease, ApiError> {
    let ResolvedModel { name, alias } = model_selection::select_model(app, caller, model, input)?;
    // A missing model that comes from an alias or from the settings may have a fallback, because it
    // is the operator's choice. A missing model that the client names is the client's error.
    let named = model.is_some() && alias.is_none();
    let is_allowed = |entry: &StoreEntry| model_selection::is_allowed_fallback(caller, entry);
    match app.handle.lease_for(&name, named, fallback, is_allowed, caller.deadline).await {
        Ok(mut lease) => {
            lease.record_use(caller.user());
            lease.info.alias = alias;
            if let Some(stand_in) = &lease.fallback_for {
                app.metrics.count_fallback(ApiError::from(&stand_in.error).code());
            }
            Ok(lease)
        }
        Err(error) => Err(ApiError::from(error).with_alias(alias.as_ref())),
    }
}

/// Computes the vectors of `request` with the model of `lease`. The lease is returned while the
/// request waits for a permit to tokenize.
pub(super) async fn embed_with(
    app: &App,
    lease: Lease,
    caller: &RequestContext,
    request: EmbedRequest,
) -> Result<Embeddings, ApiError> {
    check_input(&request.input, request.param)?;
    let dimensions = dimensions(request.dimensions, lease.info.manifest.dimensions)?;
    let prompt = prompt(&request.prompt, &lease)?.into();
    // Refuse early: with a full queue, tokenizing would be wasted.
    lease.check_queue(&caller.ticket())?;
    let began = Instant::now();
    let EmbedRequest { input, param, truncation, .. } = request;
    let job = TokenizeJob { prompt, input, param, truncation };
    let (lease, tokenized) = tokenize(app, caller, lease, job.clone()).await?;
    let tokenization = began.elapsed();
    let TokenizedTexts { ids, whole, characters } = tokenized;
    let used: Vec<usize> = ids.iter().map(Vec::len).collect();
    let long = used.iter().zip(&whole).position(|(used, whole)| *whole != Some(*used));
    if let Some(index) = long
        && request.refuse_long
    {
        let most = lease.info.manifest.max_sequence_length;
        return Err(ApiError::too_long(format!("{}[{index}]", request.param), whole[index], most));
    }
    let total = used.iter().sum();
    if request.output == OutputKind::TokenStates && total > MAX_TOKEN_STATES {
        return Err(ApiError::too_many_tokens(request.param, total, MAX_TOKEN_STATES));
    }
    let rows = if request.output == OutputKind::TokenStates { total } else { used.len() };
    let numbers = rows.saturating_mul(lease.info.manifest.dimensions);
    caller.charge.grow_numbers(numbers, request.is_compared)?;
    let output = request.output.output(lease.info.manifest.normalize);
    // Count the tokens of truncated texts while the vectors are computed.
    let (computed, provided) = tokio::try_join!(
        async { Ok(lease.embed(ids, output, caller.ticket()).await?) },
        count(app, caller, lease.clone(), job, whole),
    )?;
    let tokens = provided.into_iter().zip(used);
    let tokens = tokens.map(|(provided, used)| TokenCounts { provided, used }).collect();
    let timings = Timings { tokenization, queue: computed.queue, inference: computed.inference };
    let info = with_normalization(&lease.info, request.output);
    let mut vectors = computed.vectors;
    let dimensions = match request.output {
        OutputKind::TokenStates => vectors.len() / total.max(1),
        OutputKind::Vector | OutputKind::Normalized(_) => {
            let (own, wanted) = (&lease.info.manifest, &info.manifest);
            if dimensions < own.dimensions || (wanted.normalize && !own.normalize) {
                vectors = shorten(&vectors, own.dimensions, dimensions, wanted.normalize);
            }
            dimensions
        }
    };
    let stands_in = lease.fallback_for.clone();
    Ok(Embeddings {
        info,
        vectors,
        dimensions,
        tokens,
        characters,
        fallback_for: stands_in,
        timings,
    })
}

/// Returns the model as if its manifest declared the requested normalization. The result has the
/// embedding space of such a model.
fn with_normalization(info: &ModelInfo, wanted: OutputKind) -> ModelInfo {
    let mut info = info.clone();
    if let OutputKind::Normalized(normalize) = wanted
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

/// Returns the text that the prompt puts before every input.
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

/// Logs that work was lost (it panicked, or the daemon is stopping), and returns an internal error.
pub(super) fn log_lost(error: JoinError) -> ApiError {
    tracing::error!(name: Message::InternalFault.name(), %error, "a request was lost");
    ApiError::lost_work()
}

/// Cuts each vector of `from` numbers to its first `to`, and scales them to length 1 if
/// `normalize`.
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
        // The components of a unit vector are at most 1: each quotient fits into an f32.
        #[expect(clippy::cast_possible_truncation, reason = "a quotient of at most 1")]
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

impl Embeddings {
    /// Returns the vectors or token states one by one.
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.chunks_exact(self.dimensions)
    }

    /// Returns the number of tokens that were computed.
    pub(super) fn used(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.used).sum()
    }

    /// Sets the headers that describe the answer, on every route.
    pub(super) fn set_headers(&self, caller: &RequestContext, response: &mut Response) {
        set_model_headers(&self.info, response);
        let truncated = self.tokens.iter().filter(|tokens| tokens.used < tokens.provided).count();
        let Timings { tokenization, queue, inference } = self.timings;
        // The metrics read the timings, and the charge must be held until the answer is written.
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
        let stand_in = self.fallback_for.as_ref().map(|stand_in| {
            let FallbackFor { requested: wanted, error } = &**stand_in;
            format!("{wanted}; reason={}", ApiError::from(error).code())
        });
        if let Some(stand_in) = stand_in {
            insert(headers, "x-caxton-fallback-for", &stand_in);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// Sets the headers that name the model of an answer.
pub(super) fn set_model_headers(info: &ModelInfo, response: &mut Response) {
    let ModelInfo { manifest, embedding_space, revision, alias } = info;
    let headers = response.headers_mut();
    insert(headers, "x-caxton-model", &format!("{}@{}", manifest.id, manifest.version));
    insert(headers, "x-caxton-revision", revision);
    insert(headers, EMBEDDING_SPACE, embedding_space);
    if let Some(alias) = alias {
        insert(headers, "x-caxton-alias", &alias.to_string());
    }
}

/// Sets a header. Ids, versions, digests and numbers are visible ASCII; any other value is omitted
/// instead of causing a panic.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
