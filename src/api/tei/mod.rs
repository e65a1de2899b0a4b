//! Serves the dialect of text-embeddings-inference (TEI): `/embed`, `/embed_all`, `/similarity`,
//! `/tokenize`, `/decode`, `/info` and `/health`. `/embed_sparse` and `/predict` exist too, but no
//! installed model can answer them.
//!
//! Contains the specifics of TEI: answers that are bare lists, flat errors, and its status codes.
//! [`request`] computes the vectors.
//!
//! Invariant: every failure on these routes has the form `{"error", "error_type"}`, including a
//! wrong body or method.

mod errors;
mod tokens;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use tokio::runtime::Handle;

use super::App;
use super::error::ApiError;
use super::input::{MAX_INPUTS, read_json};
use super::model_selection;
use super::rank;
use super::request::{self, EMBEDDING_SPACE, EmbedRequest, Embeddings, OutputKind, Prompt};
use super::request_context::{RequestContext, TenantContext};
use super::wire::{Input, tei};
use crate::engine::{self, Truncation};
use crate::models::Residency;
use crate::package::{Precision, resolve};

/// Builds the routes, with errors in TEI's format.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/embed", post(embed))
        .route("/embed_all", post(embed_all))
        .route("/embed_sparse", post(embed_sparse))
        .route("/predict", post(predict))
        .route("/similarity", post(similarity))
        .route("/rerank", post(rank::rerank))
        .route("/tokenize", post(tokens::tokenize))
        .route("/decode", post(tokens::decode))
        .route("/info", get(info))
        .route("/health", get(health))
        .method_not_allowed_fallback(super::no_method)
        .layer(middleware::map_response(errors::flatten))
}

/// Builds only the health route.
pub(super) fn health_route() -> Router<App> {
    Router::new().route("/health", get(health)).layer(middleware::map_response(errors::flatten))
}

async fn embed(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::EmbedRequest = read_json(&app, &caller, body).await?;
    check_not_empty(&request.inputs, "inputs")?;
    let embed = EmbedRequest {
        input: Arc::new(request.inputs),
        param: "inputs",
        output: request.normalize.map_or(OutputKind::Vector, OutputKind::Normalized),
        prompt: prompt(request.prompt_name),
        refuse_long: request.truncate == Some(false),
        truncation: truncation(request.truncation_direction),
        dimensions: request.dimensions,
        is_compared: false,
    };
    let embedded = request::embed(&app, &caller, request.model.as_deref(), embed).await?;
    write(&app, &caller, embedded, |embedded| {
        request::json(embedded.vectors.len(), &tei::EmbeddingRows(embedded.rows().collect()))
    })
    .await
}

async fn embed_all(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::EmbedAllRequest = read_json(&app, &caller, body).await?;
    check_not_empty(&request.inputs, "inputs")?;
    let embed = EmbedRequest {
        input: Arc::new(request.inputs),
        param: "inputs",
        output: OutputKind::TokenStates,
        prompt: prompt(request.prompt_name),
        refuse_long: request.truncate == Some(false),
        truncation: truncation(request.truncation_direction),
        dimensions: None,
        is_compared: false,
    };
    let embedded = request::embed(&app, &caller, request.model.as_deref(), embed).await?;
    let mut response = write(&app, &caller, embedded, |embedded| {
        let mut rows = embedded.rows();
        let texts = embedded.tokens.iter().map(|tokens| rows.by_ref().take(tokens.used).collect());
        request::json(embedded.vectors.len(), &tei::TokenStates(texts.collect()))
    })
    .await?;
    // Token states are not vectors of a text and do not belong to an embedding space.
    response.headers_mut().remove(EMBEDDING_SPACE);
    Ok(response)
}

async fn similarity(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::SimilarityRequest = read_json(&app, &caller, body).await?;
    let tei::SimilarityInputs { source_sentence, sentences } = request.inputs;
    let tei::SimilarityParameters { truncate, truncation_direction, prompt_name } =
        request.parameters.unwrap_or_default();
    let of = |texts: Vec<String>, param: &'static str| {
        let input = Input::Texts(texts);
        check_not_empty(&input, param)?;
        Ok::<_, ApiError>(EmbedRequest {
            input: Arc::new(input),
            param,
            prompt: prompt(prompt_name.clone()),
            refuse_long: truncate == Some(false),
            truncation: truncation(truncation_direction),
            is_compared: true,
            ..EmbedRequest::default()
        })
    };
    let source = of(vec![source_sentence], "inputs.source_sentence")?;
    let others = of(sentences, "inputs.sentences")?;
    // Check the input before a model is loaded for it.
    request::check_input(&others.input, others.param)?;
    let scores = rank::compare(&app, &caller, request.model.as_deref(), (source, others)).await?;
    let response = Json(tei::Similarities(scores.similarities())).into_response();
    Ok(scores.set_headers(&caller, response))
}

async fn embed_sparse() -> ApiError {
    let message = "no installed model gives sparse vectors; /embed gives dense ones".to_owned();
    ApiError::wrong_task(message)
}

async fn predict() -> ApiError {
    ApiError::wrong_task("no installed model is a classifier".to_owned())
}

/// Describes the model that the caller gets without naming one, because this route has no parameter
/// for a name.
async fn info(State(app): State<App>, viewer: TenantContext) -> Result<Json<tei::Info>, ApiError> {
    let default = model_selection::default_model(&app, &viewer);
    let entries = model_selection::visible_models(&app, &viewer);
    let entry = resolve(&entries, &default).ok_or_else(|| match &viewer {
        // Return the same error as for a request for vectors.
        TenantContext(Some(tenant)) if tenant.settings.allowed_models.is_some() => {
            ApiError::model_not_allowed(&tenant.name, &default)
        }
        TenantContext(_) => ApiError::not_ready(&default),
    })?;
    let residency = app.handle.residency().await?;
    let dtype = match residency.get(&entry.key) {
        Some(Residency::Resident { report, .. }) => computed_dtype(report.precision),
        _ => stored_dtype(entry.manifest.precision),
    };
    let settings = app.settings.borrow().embedding.clone();
    let manifest = &entry.manifest;
    Ok(Json(tei::Info {
        model_id: manifest.id.to_string(),
        model_sha: entry.record.manifest_digest.short(),
        model_dtype: dtype.to_owned(),
        served_model_name: manifest.id.to_string(),
        model_type: tei::ModelType::Embedding { pooling: manifest.pooling.clone() },
        max_concurrent_requests: settings.queue_size,
        max_input_length: manifest.max_sequence_length,
        max_batch_tokens: settings.batch_tokens,
        max_batch_requests: None,
        max_client_batch_size: MAX_INPUTS,
        auto_truncate: true,
        tokenization_workers: Handle::current().metrics().num_workers(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha: None,
        docker_label: None,
    }))
}

/// Returns the dtype in the spelling of `torch`.
fn computed_dtype(precision: engine::Precision) -> &'static str {
    match precision {
        engine::Precision::F32 | engine::Precision::Auto => "float32",
        engine::Precision::Int8 => "int8",
        engine::Precision::Bf16 => "bfloat16",
    }
}

/// Returns the dtype in the spelling of `torch`.
fn stored_dtype(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "float32",
        Precision::F16 => "float16",
        Precision::Int8 => "int8",
    }
}

async fn health(State(app): State<App>) -> Result<(), ApiError> {
    if app.handle.overview().borrow().is_ready() {
        return Ok(());
    }
    Err(ApiError::not_ready(&app.handle.default_model()))
}

/// Checks that the input has text. TEI distinguishes an empty request from other invalid ones.
fn check_not_empty(input: &Input, param: &str) -> Result<(), ApiError> {
    let empty = match input {
        Input::Texts(texts) => texts.is_empty() || texts.iter().any(String::is_empty),
        Input::Ids(lists) => lists.is_empty() || lists.iter().any(Vec::is_empty),
    };
    if empty { Err(ApiError::empty(param.to_owned())) } else { Ok(()) }
}

fn prompt(name: Option<String>) -> Prompt {
    name.map_or(Prompt::Default, Prompt::Named)
}

fn truncation(direction: Option<tei::TruncationDirection>) -> Truncation {
    match direction.unwrap_or_default() {
        tei::TruncationDirection::Left => Truncation::Left,
        tei::TruncationDirection::Right => Truncation::Right,
    }
}

/// Writes an answer with vectors and sets its headers.
async fn write(
    app: &App,
    caller: &RequestContext,
    embedded: Embeddings,
    answer: impl FnOnce(&Embeddings) -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    let values = embedded.vectors.len();
    let write = move |caller: &RequestContext| {
        let mut response = answer(&embedded);
        embedded.set_headers(caller, &mut response);
        response
    };
    request::write(app, caller, values, write).await
}
