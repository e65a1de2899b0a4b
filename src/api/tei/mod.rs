//! Serves the dialect of text-embeddings-inference (TEI): `/embed`, `/embed_all`, `/embed_sparse`,
//! `/similarity`, `/rerank`, `/tokenize`, `/decode`, `/info` and `/health`. `POST /` and
//! `/invocations` (Amazon SageMaker) are `/embed`, and `/ping` is `/health`. `/predict` exists too,
//! but no installed model can answer it.
//!
//! Contains the specifics of TEI: answers that are bare lists, flat errors, and its status codes.
//! The embedding service computes the vectors.
//!
//! Invariant: every failure on these routes has the form `{"error", "error_type"}`, including a
//! wrong body or method.

mod errors;
mod tokens;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router, middleware};
use tokio::runtime::Handle;

use super::App;
use super::error::ApiError;
use super::input::read_json;
use super::rank::{self, Comparison};
use super::request_context::{RequestContext, TenantContext};
use super::rerank;
use super::response::{self, EMBEDDING_SPACE, set_embedding_headers};
use super::wire::tei;
use crate::engine::{self, Truncation};
use crate::models::Residency;
use crate::models::usage::recommend::TaskType;
use crate::package::{Classifier, Manifest, Precision};
use crate::service::{
    CheckedInput, EmbedRequest, Embeddings, Input, MAX_INPUTS, OutputKind, Prompt,
};

/// Builds the routes, with errors in TEI's format.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/embed", post(embed))
        .route("/invocations", post(embed))
        .route("/embed_all", post(embed_all))
        .route("/embed_sparse", post(embed_sparse))
        .route("/predict", post(predict))
        .route("/similarity", post(similarity))
        .route("/rerank", post(rerank::of_either_dialect))
        .route("/tokenize", post(tokens::tokenize))
        .route("/decode", post(tokens::decode))
        .route("/info", get(info))
        .route("/health", get(health))
        .route("/ping", get(health))
        .method_not_allowed_fallback(super::no_method)
        .layer(middleware::map_response(errors::flatten))
}

/// Builds only the health routes.
pub(super) fn health_routes() -> Router<App> {
    Router::new()
        .route("/health", get(health))
        .route("/ping", get(health))
        .layer(middleware::map_response(errors::flatten))
}

/// Builds the `POST` of the path `/`, to which clients with the address of a TEI server send texts.
/// The caller adds the other methods.
pub(super) fn at_root() -> MethodRouter<App> {
    post(embed).layer(middleware::map_response(errors::flatten))
}

async fn embed(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::EmbedRequest = read_json(&app, &caller, body).await?;
    let embed = EmbedRequest {
        output: request.normalize.map_or(OutputKind::Vector, OutputKind::Normalized),
        prompt: prompt(request.prompt_name),
        refuse_long: request.truncate == Some(false),
        truncation: truncation(request.truncation_direction),
        dimensions: request.dimensions,
        ..EmbedRequest::new(check(request.inputs, "inputs")?)
    };
    let embedded = app.service.embed(&caller.call, request.model.as_deref(), embed).await;
    let embedded = embedded.map_err(|error| ApiError::of_embed(error, "inputs"))?;
    write(&app, &caller, embedded, |embedded| {
        response::json(embedded.vectors.len(), &tei::EmbeddingRows(embedded.rows().collect()))
    })
    .await
}

async fn embed_all(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let answer = |embedded: &Embeddings| {
        let texts = tei::TokenStates(embedded.token_rows().collect());
        response::json(embedded.vectors.len(), &texts)
    };
    embed_tokens(&app, &caller, body, OutputKind::TokenStates, answer).await
}

async fn embed_sparse(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let answer = |embedded: &Embeddings| {
        let texts = tei::SparseRows::new(embedded.sparse_rows());
        response::json(embedded.vectors.len(), &texts)
    };
    embed_tokens(&app, &caller, body, OutputKind::Sparse, answer).await
}

/// Answers a request for an output of the tokens of texts.
async fn embed_tokens(
    app: &App,
    caller: &RequestContext,
    body: Body,
    output: OutputKind,
    answer: impl FnOnce(&Embeddings) -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    let request: tei::EmbedTokensRequest = read_json(app, caller, body).await?;
    let embed = EmbedRequest {
        output,
        prompt: prompt(request.prompt_name),
        refuse_long: request.truncate == Some(false),
        truncation: truncation(request.truncation_direction),
        ..EmbedRequest::new(check(request.inputs, "inputs")?)
    };
    let embedded = app.service.embed(&caller.call, request.model.as_deref(), embed).await;
    let embedded = embedded.map_err(|error| ApiError::of_embed(error, "inputs"))?;
    let mut response = write(app, caller, embedded, answer).await?;
    // Outputs of tokens are not vectors of a text and do not belong to an embedding space.
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
    let (query_param, documents_param) = ("inputs.source_sentence", "inputs.sentences");
    let of = |texts: Vec<String>, param: &'static str| {
        Ok::<_, ApiError>(EmbedRequest {
            prompt: prompt(prompt_name.clone()),
            refuse_long: truncate == Some(false),
            truncation: truncation(truncation_direction),
            is_compared: true,
            ..EmbedRequest::new(check(Input::Texts(texts), param)?)
        })
    };
    let comparison = Comparison {
        query: of(vec![source_sentence], query_param)?,
        documents: of(sentences, documents_param)?,
        query_param,
        documents_param,
        task_type: TaskType::Similarity,
        may_rerank: false,
        by_tokens: false,
    };
    let scores = rank::compare(&app, &caller, request.model.as_deref(), &comparison).await?;
    let response = Json(tei::Similarities(scores.similarities())).into_response();
    Ok(scores.set_headers(&caller, response))
}

async fn predict() -> ApiError {
    ApiError::wrong_task("no installed model is a classifier".to_owned())
}

/// Describes the model that the caller gets without naming one, because this route has no parameter
/// for a name.
async fn info(State(app): State<App>, viewer: TenantContext) -> Result<Json<tei::Info>, ApiError> {
    let default = viewer.default_model(&app);
    let entries = viewer.visible_models(&app);
    let entry = entries.resolve(&default).ok_or_else(|| match &viewer {
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
        model_type: model_type(manifest),
        max_concurrent_requests: settings.queue_size,
        max_input_length: app.handle.max_sequence_length(manifest),
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

/// Returns a pooling in the spelling of TEI. Poolings that TEI does not have keep their names.
fn pooling_name(pooling: &str) -> &str {
    match pooling {
        "lasttoken" => "last_token",
        other => other,
    }
}

/// Returns the task of a model. The name of a score is the one that transformers gives it.
fn model_type(manifest: &Manifest) -> tei::ModelType {
    match &manifest.classifier {
        None => tei::ModelType::Embedding { pooling: pooling_name(&manifest.pooling).to_owned() },
        Some(Classifier { labels, .. }) => {
            let name = |label: usize| format!("LABEL_{label}");
            tei::ModelType::Reranker {
                id2label: (0..*labels).map(|label| (label.to_string(), name(label))).collect(),
                label2id: (0..*labels).map(|label| (name(label), label)).collect(),
            }
        }
    }
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
        // The format of the layers. The table of words has none in `torch`.
        Precision::Int8 | Precision::Int4Table => "int8",
    }
}

async fn health(State(app): State<App>) -> Result<(), ApiError> {
    if app.handle.overview().borrow().is_ready() {
        return Ok(());
    }
    Err(ApiError::not_ready(&app.handle.default_model()))
}

/// Checks the input in the field `param`. TEI distinguishes an empty request from other invalid
/// ones.
fn check(input: Input, param: &str) -> Result<CheckedInput, ApiError> {
    let empty = match &input {
        Input::Texts(texts) => texts.is_empty() || texts.iter().any(String::is_empty),
        Input::Ids(lists) => lists.is_empty() || lists.iter().any(Vec::is_empty),
    };
    if empty {
        return Err(ApiError::empty(param.to_owned()));
    }
    CheckedInput::new(input).map_err(|error| ApiError::of_embed(error, param))
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
        set_embedding_headers(&embedded, caller, &mut response);
        response
    };
    response::write(app, caller, values, write).await
}
