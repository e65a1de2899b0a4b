//! Serves Ollama's dialect: `/api/embed`, `/api/embeddings`, `/api/tags`, `/api/ps`, `/api/show`,
//! `/api/version`, `/api/pull`, and `/`. `/api/generate` and `/api/chat` only load and unload
//! models. The routes that change models explain how to do so.
//!
//! Converts Ollama's model names, and formats every failure on these routes as a flat `{"error":
//! "…"}`. The embedding [`service`] computes the vectors.
//!
//! Invariant: a text gets the same vector as on every other route, of length 1 if the model
//! normalizes. Ollama's own `/api/embeddings` does not normalize its vectors.

mod listing;
mod load;
mod pull;

use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use axum::{Json, Router, middleware};

use super::App;
use super::error::ApiError;
use super::input::read_json;
use super::request_context::RequestContext;
use super::response::{self, set_embedding_headers};
use super::wire::ollama::{
    EmbedRequest, EmbedResponse, EmbeddingsRequest, EmbeddingsResponse, Failure, Texts,
    VersionResponse,
};
use crate::base::units::Bytes;
use crate::config::TenantSettings;
use crate::models::{Fallback, KeepAlive, KeepAliveRequest};
use crate::package::Manifest;
use crate::service::{self, CheckedInput, Embeddings, Input, OutputKind};

/// Time until unloading that is reported for a model that is never unloaded: the longest duration
/// in Go. Ollama's clients show more than 20 years as "Forever".
const NEVER: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());
/// Last second of the year 9999, in seconds since 1970: the end of RFC 3339's range.
const LAST_SECOND: u64 = 253_402_300_799;
/// Longest body of a request that contains only a name.
const MAX_SMALL: Bytes = Bytes(64 << 10);

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embeddings))
        .route("/api/generate", post(load::generate))
        .route("/api/chat", post(load::chat))
        .route("/api/tags", get(listing::tags))
        .route("/api/ps", get(listing::running))
        .route("/api/show", post(listing::show))
        .route("/api/version", get(version))
        .route("/api/pull", post(pull::pull))
        .route("/api/push", post(pull::push))
        .route("/api/create", post(pull::create))
        .route("/api/copy", post(pull::copy))
        .route("/api/delete", delete(pull::delete))
        // This route does not exist here. Clients call it on their own, and parse failures only in
        // Ollama's format.
        .route("/api/blobs/{digest}", any(super::no_route))
        // Register before `layer`, so that 405 answers get Ollama's format, too.
        .method_not_allowed_fallback(super::no_method)
        .layer(middleware::map_response(rewrite_failure))
}

/// Rewrites a failure to Ollama's format and status.
async fn rewrite_failure(response: Response) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let body = Json(Failure { error: error.full_message() }).into_response().into_body();
    let (mut parts, _nested) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    // Ollama answers 503 for a full queue:
    // https://github.com/ollama/ollama/blob/v0.12.6/server/routes.go, `handleScheduleError`.
    if parts.status == StatusCode::TOO_MANY_REQUESTS {
        parts.status = StatusCode::SERVICE_UNAVAILABLE;
    }
    Response::from_parts(parts, body)
}

/// Answers the request with which clients check that a server is running.
pub(super) async fn greeting() -> &'static str {
    "Caxton is running\n"
}

async fn version() -> Json<VersionResponse> {
    Json(VersionResponse { version: env!("CARGO_PKG_VERSION") })
}

async fn embed(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: EmbedRequest = read_json(&app, &caller, body).await?;
    let of_field = |texts: Option<Texts>| texts.map_or_else(Vec::new, |Texts(texts)| texts);
    let input = of_field(request.input);
    // Without texts the request would only load the model, and a client that uses the field of the
    // older route would get an empty answer.
    let (texts, param) = match input.is_empty() {
        true => (of_field(request.prompt), "prompt"),
        false => (input, "input"),
    };
    let embed = of_texts(texts, param)?.map(|embed| service::EmbedRequest {
        output: request.normalize.map_or(OutputKind::Vector, OutputKind::Normalized),
        refuse_long: request.truncate == Some(false),
        dimensions: request.dimensions.filter(|dimensions| *dimensions > 0),
        ..embed
    });
    let model = request.model.as_deref();
    let answered = answer(&app, &caller, model, request.keep_alive, embed, param).await?;
    let values = answered.embedded.as_ref().map_or(0, |embedded| embedded.vectors.len());
    let write = move |caller: &RequestContext| {
        let OllamaEmbeddings { model, load, embedded } = answered;
        let of = |embedded: &Embeddings| (rows(embedded), embedded.used());
        let (embeddings, prompt_eval_count) = embedded.as_ref().map(of).unwrap_or_default();
        let answer = EmbedResponse {
            model,
            embeddings,
            total_duration: nanoseconds(caller.began.elapsed()),
            load_duration: nanoseconds(load),
            prompt_eval_count,
        };
        let mut response = response::json(values, &answer);
        if let Some(embedded) = embedded {
            set_embedding_headers(&embedded, caller, &mut response);
        }
        response
    };
    response::write(&app, &caller, values, write).await
}

async fn embeddings(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: EmbeddingsRequest = read_json(&app, &caller, body).await?;
    let prompt = request.prompt.filter(|prompt| !prompt.is_empty());
    let (texts, param) = match (prompt, request.input) {
        (Some(prompt), _) => (vec![prompt], "prompt"),
        (None, Some(Texts(texts))) => (texts, "input"),
        (None, None) => (Vec::new(), "prompt"),
    };
    if texts.len() > 1 {
        let message = "input has several texts, and the answer of /api/embeddings has one vector; \
                       send them to /api/embed";
        return Err(ApiError::invalid(Some("input".to_owned()), message.to_owned()));
    }
    let embed = of_texts(texts, param)?;
    let model = request.model.as_deref();
    let OllamaEmbeddings { embedded, .. } =
        answer(&app, &caller, model, request.keep_alive, embed, param).await?;
    let Some(embedded) = embedded else {
        return Ok(Json(EmbeddingsResponse { embedding: Vec::new() }).into_response());
    };
    let embedding = embedded.vectors.clone();
    let values = embedding.len();
    let mut response = response::json(values, &EmbeddingsResponse { embedding });
    set_embedding_headers(&embedded, &caller, &mut response);
    Ok(response)
}

/// Result for both routes that compute vectors.
struct OllamaEmbeddings {
    /// Name of the model for the answer.
    model: String,
    /// Time until the model was in memory.
    load: Duration,
    /// `None` when the request had no text and only loads the model.
    embedded: Option<Embeddings>,
}

/// Builds the request for the vectors of `texts`; `None` when there are none. `param` is the field
/// with the texts.
fn of_texts(texts: Vec<String>, param: &str) -> Result<Option<service::EmbedRequest>, ApiError> {
    if texts.is_empty() {
        return Ok(None);
    }
    let input = CheckedInput::new(Input::Texts(texts));
    let input = input.map_err(|error| ApiError::of_embed(error, param))?;
    Ok(Some(service::EmbedRequest::new(input)))
}

/// Loads the model, sets its `keep_alive`, and embeds the texts in the field `param`, if there are
/// any.
async fn answer(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    keep_alive: Option<KeepAlive>,
    embed: Option<service::EmbedRequest>,
    param: &str,
) -> Result<OllamaEmbeddings, ApiError> {
    let of_param = |error| ApiError::of_embed(error, param);
    let model = model.filter(|name| !name.is_empty());
    let tenant = caller.call.tenant_settings();
    let named = model.map(|name| model_name(app, tenant, name)).transpose()?;
    let began = Instant::now();
    let fallback = Fallback::Vectors(caller.call.allow_fallback);
    let no_texts = Input::default();
    let input = embed.as_ref().map_or(&no_texts, |embed| embed.input.input());
    let leased = app.service.lease(&caller.call, named.as_deref(), input, fallback).await;
    let leased = leased.map_err(of_param)?;
    let load = began.elapsed();
    // Apply `keep_alive` only to the requested model. A fallback was not requested, and the
    // requested model is then not in memory.
    if let Some(keep_alive) = keep_alive
        && leased.fallback_for().is_none()
    {
        let name = format!("{}@{}", leased.info().manifest.id, leased.info().revision);
        let is_admin = caller.sender.is_admin(app).await;
        let wish = KeepAliveRequest { user: caller.call.user, is_admin, keep_alive };
        app.handle.keep_alive(&name, wish).await?;
    }
    let manifest = &leased.info().manifest;
    let model = answered_name(model, named.as_deref(), manifest);
    let most = manifest.dimensions;
    let embedded = match embed {
        Some(embed) => {
            // Ollama ignores a length that is greater than the model's.
            let dimensions = embed.dimensions.filter(|dimensions| *dimensions <= most);
            let embed = service::EmbedRequest { dimensions, ..embed };
            Some(leased.embed(&caller.call, embed).await.map_err(of_param)?)
        }
        None => None,
    };
    Ok(OllamaEmbeddings { model, load, embedded })
}

/// Converts a name in Ollama's form to the name of a model or an alias: removes the name space of
/// Ollama's own models, and ignores case.
///
/// # Errors
/// When several models or aliases differ from the name only in case.
fn model_name(app: &App, tenant: Option<&TenantSettings>, name: &str) -> Result<String, ApiError> {
    let name = name.strip_prefix("library/").unwrap_or(name);
    app.handle.catalog().match_ignoring_case(name, tenant).map_err(|ambiguous| {
        ApiError::invalid(Some("model".to_owned()), format!("the model {ambiguous}"))
    })
}

/// Returns the name of a model in Ollama's form.
fn ollama_name(manifest: &Manifest) -> String {
    format!("{}:{}", manifest.id, manifest.version)
}

/// Returns the model name for the answer: the name in the request, which was converted to `named`,
/// unless another model answered.
fn answered_name(asked: Option<&str>, named: Option<&str>, manifest: &Manifest) -> String {
    let is_it = named.and_then(|named| named.split('@').next()) == Some(manifest.id.as_str());
    asked.filter(|_| is_it).map_or_else(|| ollama_name(manifest), str::to_owned)
}

fn rows(embedded: &Embeddings) -> Vec<Vec<f32>> {
    embedded.rows().map(<[f32]>::to_vec).collect()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Formats seconds since 1970 as RFC 3339 in UTC.
fn time(at: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(at.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelError;

    #[test]
    fn time_is_capped_at_year_9999() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(LAST_SECOND), "9999-12-31T23:59:59Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[tokio::test]
    async fn error_is_flat_with_field_and_headers() {
        let error = ApiError::invalid(Some("input[1]".to_owned()), "a bad text".to_owned());
        let response = rewrite_failure(error.into_response()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        assert_eq!(&body[..], br#"{"error":"input[1]: a bad text"}"#);

        let full = ModelError::Overloaded {
            name: "m".to_owned(),
            waiting: 3,
            retry_after: Duration::from_millis(300),
        };
        let response = rewrite_failure(ApiError::from(full).into_response()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
    }
}
