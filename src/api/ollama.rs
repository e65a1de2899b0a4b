//! Serves Ollama's dialect: `/api/embed`, `/api/embeddings`, `/api/tags`, `/api/ps`, `/api/show`,
//! `/api/version`, and `/`.
//!
//! Converts Ollama's model names, and formats every failure on these routes as a flat `{"error":
//! "…"}`. The embedding [`service`] computes the vectors.
//!
//! Invariant: a text gets the same vector as on every other route, of length 1 if the model
//! normalizes. Ollama's own `/api/embeddings` does not normalize its vectors.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router, middleware};

use super::App;
use super::error::ApiError;
use super::input::{BodyLimit, read_json, read_small_json};
use super::request_context::{RequestContext, TenantContext};
use super::response::{self, set_embedding_headers};
use super::wire::ollama::{
    Details, EmbedRequest, EmbedResponse, EmbeddingsRequest, EmbeddingsResponse, Failure,
    RunningModel, RunningModels, ShowRequest, ShowResponse, Tag, Tags, Texts, VersionResponse,
};
use crate::base::units::Bytes;
use crate::models::{Fallback, KeepAlive, KeepAliveRequest, ModelInfo, Residency};
use crate::package::{Manifest, StoreEntry};
use crate::service::{self, CheckedInput, Embeddings, Input};

/// Capabilities of every model, in Ollama's terms.
const CAPABILITIES: [&str; 1] = ["embedding"];
/// Time until unloading that is reported for a model that is never unloaded: the longest duration
/// in Go. Ollama's clients show more than 20 years as "Forever".
const NEVER: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());
/// Last second of the year 9999, in seconds since 1970: the end of RFC 3339's range.
const LAST_SECOND: u64 = 253_402_300_799;
/// Longest body of `/api/show`, which contains only a name.
const MAX_SHOW: Bytes = Bytes(64 << 10);
/// Routes of Ollama that do not exist here. Its clients call some of them on their own, and parse
/// failures only in Ollama's format.
const ABSENT: [&str; 8] = [
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/generate",
    "/api/chat",
    "/api/blobs/{digest}",
];

pub(super) fn router() -> Router<App> {
    let router = Router::new()
        .route("/", get(greeting))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embeddings))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(running))
        .route("/api/show", post(show))
        .route("/api/version", get(version));
    ABSENT
        .into_iter()
        .fold(router, |router, path| router.route(path, any(super::no_route)))
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
async fn greeting() -> &'static str {
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
    let texts = request.input.map_or_else(Vec::new, |Texts(texts)| texts);
    let param = "input";
    let embed = of_texts(texts, param)?.map(|embed| service::EmbedRequest {
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
    let text = request.prompt.filter(|prompt| !prompt.is_empty());
    let param = "prompt";
    let embed = of_texts(text.into_iter().collect(), param)?;
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
    let named = model.map(model_name);
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
    let model = answered_name(model, leased.info());
    let embedded = match embed {
        Some(embed) => Some(leased.embed(&caller.call, embed).await.map_err(of_param)?),
        None => None,
    };
    Ok(OllamaEmbeddings { model, load, embedded })
}

/// Converts a name in Ollama's form (`id`, `id:latest` or `id:version`) to the name of a model.
fn model_name(name: &str) -> String {
    match name.split_once(':') {
        Some((id, "latest")) => id.to_owned(),
        Some((id, version)) => format!("{id}@{version}"),
        None => name.to_owned(),
    }
}

/// Returns the name of a model in Ollama's form.
fn ollama_name(manifest: &Manifest) -> String {
    format!("{}:{}", manifest.id, manifest.version)
}

/// Returns the model name for the answer: the requested name, unless another model answered.
fn answered_name(asked: Option<&str>, info: &ModelInfo) -> String {
    let is_it = |asked: &&str| asked.split([':', '@']).next() == Some(info.manifest.id.as_str());
    asked.filter(is_it).map_or_else(|| ollama_name(&info.manifest), str::to_owned)
}

fn rows(embedded: &Embeddings) -> Vec<Vec<f32>> {
    embedded.rows().map(<[f32]>::to_vec).collect()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

async fn tags(State(app): State<App>, viewer: TenantContext) -> Json<Tags> {
    let entries = viewer.visible_models(&app);
    let models = entries.iter().map(|StoreEntry { manifest, record, .. }| Tag {
        name: ollama_name(manifest),
        model: ollama_name(manifest),
        modified_at: time(record.installed_at.0),
        size: manifest.total_size(),
        digest: record.package_digest.to_string(),
        details: details(manifest),
        capabilities: CAPABILITIES.to_vec(),
    });
    Json(Tags { models: models.collect() })
}

async fn running(
    State(app): State<App>,
    viewer: TenantContext,
) -> Result<Json<RunningModels>, ApiError> {
    let view = app.handle.memory().await?;
    let entries = viewer.visible_models(&app);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let models = view.models.into_iter().filter_map(|model| {
        let Residency::Resident { weight_bytes, .. } = model.residency else { return None };
        // Skip a model that has just left the store: it is being unloaded.
        let StoreEntry { manifest, record, .. } = entries.get(&model.key)?;
        Some(RunningModel {
            name: ollama_name(manifest),
            model: ollama_name(manifest),
            size: weight_bytes,
            digest: record.package_digest.to_string(),
            details: details(manifest),
            expires_at: time(now.saturating_add(model.expires.unwrap_or(NEVER)).as_secs()),
            size_vram: 0,
            context_length: manifest.max_sequence_length,
        })
    });
    Ok(Json(RunningModels { models: models.collect() }))
}

async fn show(
    State(app): State<App>,
    viewer: TenantContext,
    body: Body,
) -> Result<Json<ShowResponse>, ApiError> {
    let limit = BodyLimit::smaller(app.settings.borrow().socket.max_body, MAX_SHOW);
    let request: ShowRequest = read_small_json(body, limit).await?;
    let Some(asked) = request.model.or(request.name) else {
        let message = "model is missing; expected the name of a model".to_owned();
        return Err(ApiError::invalid(Some("model".to_owned()), message));
    };
    let entries = viewer.visible_models(&app);
    let Some(StoreEntry { manifest, record, .. }) = entries.resolve(&model_name(&asked)) else {
        return Err(ApiError::unknown_package(asked, &entries));
    };
    Ok(Json(ShowResponse {
        license: manifest.license.clone(),
        details: details(manifest),
        model_info: model_info(manifest, record.manifest_digest.short()),
        capabilities: CAPABILITIES.to_vec(),
        modified_at: time(record.installed_at.0),
    }))
}

/// Returns the facts that Ollama's clients read, under its names, and the embedding space and
/// revision, which are needed to compare vectors.
fn model_info(manifest: &Manifest, revision: String) -> BTreeMap<String, serde_json::Value> {
    let architecture = &manifest.architecture;
    BTreeMap::from([
        ("general.architecture".to_owned(), architecture.as_str().into()),
        (format!("{architecture}.context_length"), manifest.max_sequence_length.into()),
        (format!("{architecture}.embedding_length"), manifest.dimensions.into()),
        ("caxton.embedding_space".to_owned(), manifest.embedding_space().into()),
        ("caxton.revision".to_owned(), revision.into()),
    ])
}

fn details(manifest: &Manifest) -> Details {
    Details {
        parent_model: "",
        format: "safetensors",
        family: manifest.architecture.clone(),
        families: vec![manifest.architecture.clone()],
        parameter_size: "",
        quantization_level: manifest.precision.name(),
    }
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
    fn tag_is_version_and_latest_is_unversioned() {
        for (name, expected) in [
            ("bundled-mini", "bundled-mini"),
            ("bundled-mini:latest", "bundled-mini"),
            ("bundled-mini:1.0.0", "bundled-mini@1.0.0"),
            ("bundled-mini@1.0.0", "bundled-mini@1.0.0"),
            ("", ""),
            (":", "@"),
        ] {
            assert_eq!(model_name(name), expected, "{name}");
        }
    }

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
