//! OpenAI's dialect: `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{name}`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::App;
use super::caller::Caller;
use super::error::ApiError;
use super::input::{Name, read_json};
use super::request::{self, EmbedRequest, Embedded, Prompt};
use super::wire::{
    Embedding, EmbeddingsRequest, EmbeddingsResponse, Model, ModelList, Usage, Vector,
};
use crate::package::{Entry, Status, choose};

#[derive(Clone, Copy)]
enum Encoding {
    Float,
    Base64,
}

pub(super) async fn embeddings(
    State(app): State<App>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = app.settings.borrow().socket.max_body;
    let request: EmbeddingsRequest = read_json(body, limit).await?;
    let encoding = encoding(request.encoding_format.as_deref())?;
    let prompt = prompt(request.prompt_name, request.input_type.as_deref())?;
    let caller =
        Caller { allow_fallback: request.allow_fallback.or(caller.allow_fallback), ..caller };
    let embed = EmbedRequest {
        input: request.input,
        param: "input",
        prompt,
        refuse_long: request.truncate == Some(false),
        dimensions: request.dimensions,
    };
    let embedded = request::embed(&app, &caller, request.model.as_deref(), embed).await?;
    // Writing thousands of vectors as text takes milliseconds.
    let write = move || {
        let mut response = Json(answer(&embedded, encoding)).into_response();
        embedded.label(&caller, &mut response);
        response
    };
    tokio::task::spawn_blocking(write).await.map_err(request::lost)
}

fn encoding(format: Option<&str>) -> Result<Encoding, ApiError> {
    match format {
        None => Ok(Encoding::Float),
        // Ollama's clients write it as they like.
        Some(format) if format.eq_ignore_ascii_case("float") => Ok(Encoding::Float),
        Some(format) if format.eq_ignore_ascii_case("base64") => Ok(Encoding::Base64),
        Some(other) => Err(ApiError::invalid(
            Some("encoding_format".to_owned()),
            format!("encoding_format is \"{other}\"; expected \"float\" or \"base64\""),
        )),
    }
}

fn prompt(name: Option<String>, input_type: Option<&str>) -> Result<Prompt, ApiError> {
    match (name, input_type) {
        (Some(name), _) => Ok(Prompt::Named(name)),
        (None, None) => Ok(Prompt::Default),
        (None, Some("query" | "search_query")) => Ok(Prompt::Query),
        (None, Some("passage" | "document" | "search_document")) => Ok(Prompt::Passage),
        (None, Some(other)) => Err(ApiError::invalid(
            Some("input_type".to_owned()),
            format!("input_type is \"{other}\"; expected \"query\", \"passage\" or \"document\""),
        )),
    }
}

fn answer(embedded: &Embedded, encoding: Encoding) -> EmbeddingsResponse {
    let data =
        embedded.rows().zip(&embedded.tokens).enumerate().map(|(index, (vector, tokens))| {
            let embedding = match encoding {
                Encoding::Float => Vector::Float(vector.to_vec()),
                Encoding::Base64 => {
                    let bytes: Vec<u8> =
                        vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    Vector::Base64(STANDARD.encode(bytes))
                }
            };
            Embedding {
                object: "embedding".to_owned(),
                index,
                embedding,
                tokens_provided: tokens.provided,
                tokens_used: tokens.used,
            }
        });
    let used = embedded.used();
    EmbeddingsResponse {
        object: "list".to_owned(),
        data: data.collect(),
        model: embedded.info.manifest.id.to_string(),
        usage: Usage { prompt_tokens: used, total_tokens: used },
    }
}

pub(super) async fn models(State(app): State<App>) -> Json<ModelList> {
    let entries = available(&app);
    // Of several versions of one id the one that the id means.
    let chosen = entries.iter().filter(|entry| {
        choose(&entries, entry.manifest.id.as_str()).is_some_and(|chosen| chosen.key == entry.key)
    });
    Json(ModelList { object: "list".to_owned(), data: chosen.map(describe).collect() })
}

pub(super) async fn model(
    State(app): State<App>,
    Name(name): Name,
) -> Result<Json<Model>, ApiError> {
    let entries = available(&app);
    let entry = choose(&entries, &name).ok_or_else(|| ApiError::unknown_package(name, &entries))?;
    Ok(Json(describe(entry)))
}

/// The models that can be asked for.
pub(super) fn available(app: &App) -> Vec<Entry> {
    let mut entries = app.handle.store().entries();
    let bundled_only = app.settings.borrow().memory.model_cache.bundled_only;
    entries.retain(|entry| {
        entry.record.status == Status::Available
            && (!bundled_only || entry.record.origin.is_bundled())
    });
    entries
}

fn describe(entry: &Entry) -> Model {
    let manifest = &entry.manifest;
    Model {
        id: manifest.id.to_string(),
        object: "model".to_owned(),
        created: entry.record.installed_at.0,
        owned_by: "caxton".to_owned(),
        dimensions: manifest.dimensions,
        max_sequence_length: manifest.max_sequence_length,
        embedding_space: manifest.embedding_space(),
        prompts: manifest.prompts.keys().cloned().collect(),
    }
}
