//! OpenAI's dialect: `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{name}`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::App;
use super::error::ApiError;
use super::input::{Name, read_json};
use super::wire::{
    Embedding, EmbeddingsRequest, EmbeddingsResponse, Input, Model, ModelList, Usage, Vector,
};
use crate::models::{Lease, ModelInfo};
use crate::package::{Entry, Status, choose};

/// As many as OpenAI takes.
const MAX_INPUTS: usize = 2048;

#[derive(Clone, Copy)]
enum Encoding {
    Float,
    Base64,
}

/// What is known of a request before its answer is written.
struct Answer {
    info: ModelInfo,
    encoding: Encoding,
    dimensions: usize,
    tokens: usize,
    truncated: usize,
}

pub(super) async fn embeddings(State(app): State<App>, body: Body) -> Result<Response, ApiError> {
    let limit = app.settings.borrow().socket.max_body;
    let request: EmbeddingsRequest = read_json(body, limit).await?;
    check_input(&request.input)?;
    let encoding = encoding(request.encoding_format.as_deref())?;
    let lease = app.handle.lease(request.model.as_deref()).await?;
    let dimensions = dimensions(request.dimensions, lease.info.manifest.dimensions)?;
    let prompt = prompt(request.prompt_name.as_deref(), &lease)?;

    let tokenizer = lease.clone();
    let input = request.input;
    let tokenized =
        tokio::task::spawn_blocking(move || tokenize(&tokenizer, &prompt, &input)).await;
    let (texts, truncated) = tokenized.map_err(lost)??;
    let tokens = texts.iter().map(Vec::len).sum();
    let vectors = lease.embed(texts).await?;
    let answer = Answer { info: lease.info.clone(), encoding, dimensions, tokens, truncated };
    // Writing thousands of vectors as text takes milliseconds.
    tokio::task::spawn_blocking(move || answer.write(vectors)).await.map_err(lost)
}

fn lost(error: tokio::task::JoinError) -> ApiError {
    tracing::error!(%error, "a request was lost");
    ApiError::lost()
}

fn check_input(input: &Input) -> Result<(), ApiError> {
    let (count, empty) = match input {
        Input::Texts(texts) => (texts.len(), texts.iter().position(String::is_empty)),
        Input::Ids(lists) => (lists.len(), lists.iter().position(Vec::is_empty)),
    };
    if count == 0 {
        let message = "input is missing or an empty list; expected at least one text".to_owned();
        return Err(ApiError::invalid(Some("input".to_owned()), message));
    }
    if count > MAX_INPUTS {
        return Err(ApiError::too_many_inputs(count, MAX_INPUTS));
    }
    match empty {
        Some(index) => {
            let message = format!("input {index} is empty");
            Err(ApiError::invalid(Some(format!("input[{index}]")), message))
        }
        None => Ok(()),
    }
}

fn encoding(format: Option<&str>) -> Result<Encoding, ApiError> {
    match format {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => Err(ApiError::invalid(
            Some("encoding_format".to_owned()),
            format!("encoding_format is \"{other}\"; expected \"float\" or \"base64\""),
        )),
    }
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

/// The text that goes before every input: the prompt that was asked for, or the model's default.
fn prompt(asked: Option<&str>, lease: &Lease) -> Result<String, ApiError> {
    let manifest = &lease.info.manifest;
    let Some(name) = asked.or(manifest.default_prompt.as_deref()) else {
        return Ok(String::new());
    };
    manifest.prompts.get(name).cloned().ok_or_else(|| {
        let known = Vec::from_iter(manifest.prompts.keys().map(String::as_str)).join(", ");
        let message = format!("this model has no prompt \"{name}\"; it has: {known}");
        ApiError::invalid(Some("prompt_name".to_owned()), message)
    })
}

/// Token ids of each input, and how many inputs were truncated.
fn tokenize(
    lease: &Lease,
    prompt: &str,
    input: &Input,
) -> Result<(Vec<Vec<u32>>, usize), ApiError> {
    let tokens: Vec<_> = match input {
        Input::Texts(texts) => {
            let tokens = texts.iter().map(|text| lease.tokenize(prompt, text));
            tokens.collect::<Result<_, _>>()?
        }
        Input::Ids(lists) => {
            let checked = lists.iter().enumerate().map(|(index, ids)| {
                let checked = lease.check_ids(ids);
                checked.map_err(|error| ApiError::from(error).about(format!("input[{index}]")))
            });
            checked.collect::<Result<_, _>>()?
        }
    };
    let truncated = tokens.iter().filter(|tokens| tokens.truncated).count();
    Ok((tokens.into_iter().map(|tokens| tokens.ids).collect(), truncated))
}

impl Answer {
    fn write(self, vectors: Vec<f32>) -> Response {
        let manifest = &self.info.manifest;
        let vectors = vectors.chunks_exact(manifest.dimensions).map(|vector| {
            let mut vector = vector[..self.dimensions].to_vec();
            // A shortened vector of a model that normalises is to be of length 1 again.
            if self.dimensions < manifest.dimensions && manifest.normalize {
                normalize(&mut vector);
            }
            match self.encoding {
                Encoding::Float => Vector::Float(vector),
                Encoding::Base64 => {
                    let bytes: Vec<u8> =
                        vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    Vector::Base64(STANDARD.encode(bytes))
                }
            }
        });
        let data = vectors
            .enumerate()
            .map(|(index, embedding)| Embedding {
                object: "embedding".to_owned(),
                index,
                embedding,
            })
            .collect();
        let usage = Usage { prompt_tokens: self.tokens, total_tokens: self.tokens };
        let model = manifest.id.to_string();
        let body = EmbeddingsResponse { object: "list".to_owned(), data, model, usage };
        let mut response = Json(body).into_response();
        let headers = response.headers_mut();
        for (name, value) in [
            ("x-caxton-model", format!("{}@{}", manifest.id, manifest.version)),
            ("x-caxton-revision", self.info.revision),
            ("x-caxton-embedding-space", self.info.embedding_space),
            ("x-caxton-truncated-inputs", self.truncated.to_string()),
        ] {
            // Ids, versions and digests are visible ASCII; anything else would be left out, not panic.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        // Components of a unit vector: the quotient is within f32.
        #[expect(clippy::cast_possible_truncation, reason = "a quotient of at most 1")]
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
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
