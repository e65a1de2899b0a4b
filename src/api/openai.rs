//! Serves OpenAI's dialect: `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{name}`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::try_join_all;

use super::App;
use super::error::ApiError;
use super::input::{PathName, read_json};
use super::request_context::{RequestContext, TenantContext};
use super::response::{self, set_embedding_headers};
use super::wire::truncate::Truncate;
use super::wire::{
    AdditionalEmbeddings, Embedding, EmbeddingsRequest, EmbeddingsResponse, Model, ModelList,
    ModelSelfTest, Usage, Vector, VectorForm,
};
use crate::engine::Truncation;
use crate::models::catalog::{AliasTargets, Catalog};
use crate::models::residency::load::MIN_COSINE;
use crate::models::{ManagerHandle, ModelInfo};
use crate::package::{EmbeddingSpace, Entries, EntryKey, Manifest, StoreEntry, trained_dimensions};
use crate::service::{
    CallContext, CheckedInput, EmbedRequest, Embeddings, OutputType, Prompt, QuantizedVector,
};

/// Most models in addition to the requested one. A migration to another model needs one.
const MAX_ADDITIONAL: usize = 3;

/// Form in which vectors are written.
#[derive(Clone, Copy)]
pub(super) struct VectorFormat {
    pub(super) output_type: OutputType,
    pub(super) is_base64: bool,
}

pub(super) async fn embeddings(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: EmbeddingsRequest = read_json(&app, &caller, body).await?;
    let is_base64 = is_base64(request.encoding_format.as_deref())?;
    let output_type = output_type(request.output_dtype.as_deref())?;
    let dimensions = requested_dimensions(request.dimensions, request.output_dimension)?;
    let format = VectorFormat { output_type, is_base64 };
    let prompt = prompt(request.prompt_name, request.input_type.as_deref())?;
    let caller = caller.with_fallback(request.allow_fallback);
    let names = request.additional_models.unwrap_or_default();
    if names.len() > MAX_ADDITIONAL {
        let message = format!(
            "additional_models has {} models; a request takes at most {MAX_ADDITIONAL}",
            names.len()
        );
        return Err(ApiError::invalid(Some("additional_models".to_owned()), message));
    }
    let of_input = |error| ApiError::of_embed(error, "input");
    let embed = EmbedRequest {
        prompt,
        refuse_long: request.truncate.is_some_and(Truncate::refuses_long),
        truncation: request.truncate.map_or_else(Truncation::default, Truncate::truncation),
        dimensions,
        output_type,
        ..EmbedRequest::new(CheckedInput::new(request.input).map_err(of_input)?)
    };
    let additional = names.iter().enumerate().map(|(index, name)| {
        // The expected embedding space is that of the requested model.
        let call = CallContext { expected_space: None, ..caller.call.clone() };
        let (app, embed) = (&app, embed.clone());
        async move {
            let embedded = app.service.embed(&call, Some(name), embed).await;
            embedded.map_err(|error| of_input(error).with_additional_model(index, name))
        }
    });
    let additional = try_join_all(Vec::from_iter(additional));
    let model = request.model.as_deref();
    let embedded = async { app.service.embed(&caller.call, model, embed).await.map_err(of_input) };
    let (embedded, additional) = tokio::try_join!(embedded, additional)?;
    let others = additional.iter().map(|embedded| embedded.vectors.len());
    let values = embedded.vectors.len() + others.sum::<usize>();
    let write = move |caller: &RequestContext| {
        let mut response =
            response::json(values, &embeddings_response(&embedded, &additional, format));
        set_embedding_headers(&embedded, caller, &mut response);
        response
    };
    response::write(&app, &caller, values, write).await
}

fn is_base64(format: Option<&str>) -> Result<bool, ApiError> {
    match format {
        None => Ok(false),
        // Ignore case: clients of Ollama write the value in upper or lower case.
        Some(format) if format.eq_ignore_ascii_case("float") => Ok(false),
        Some(format) if format.eq_ignore_ascii_case("base64") => Ok(true),
        Some(other) => Err(ApiError::invalid(
            Some("encoding_format".to_owned()),
            format!("encoding_format is \"{other}\"; expected \"float\" or \"base64\""),
        )),
    }
}

fn output_type(name: Option<&str>) -> Result<OutputType, ApiError> {
    let Some(name) = name else { return Ok(OutputType::Float) };
    OutputType::from_name(name).ok_or_else(|| {
        let known = OutputType::ALL.map(OutputType::name).join(", ");
        let message = format!("output_dtype is \"{name}\"; expected one of {known}");
        ApiError::invalid(Some("output_dtype".to_owned()), message)
    })
}

/// Returns the requested length of the vectors, which has two names.
fn requested_dimensions(
    dimensions: Option<usize>,
    output_dimension: Option<usize>,
) -> Result<Option<usize>, ApiError> {
    match (dimensions, output_dimension) {
        (Some(one), Some(other)) if one != other => Err(ApiError::invalid(
            Some("output_dimension".to_owned()),
            format!("output_dimension is {other}, and dimensions is {one}; set one of them"),
        )),
        (one, other) => Ok(one.or(other)),
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

fn embeddings_response(
    embedded: &Embeddings,
    additional: &[Embeddings],
    format: VectorFormat,
) -> EmbeddingsResponse {
    EmbeddingsResponse {
        object: "list".to_owned(),
        data: data(embedded, format),
        model: embedded.info.manifest.id.to_string(),
        usage: usage(embedded),
        vector_form: vector_form(format.output_type),
        additional: additional
            .iter()
            .map(|embedded| additional_embeddings(embedded, format))
            .collect(),
    }
}

fn vector_form(output_type: OutputType) -> Option<VectorForm> {
    (output_type != OutputType::Float).then(|| VectorForm {
        output_dtype: output_type.name().to_owned(),
        scale: output_type.scale(),
        offset: output_type.offset(),
        bit_order: output_type.is_packed().then(|| "msb_first".to_owned()),
    })
}

fn additional_embeddings(embedded: &Embeddings, format: VectorFormat) -> AdditionalEmbeddings {
    let ModelInfo { manifest, embedding_space, revision, .. } = &embedded.info;
    AdditionalEmbeddings {
        model: manifest.id.to_string(),
        version: manifest.version.to_string(),
        revision: revision.to_string(),
        embedding_space: embedding_space.to_string(),
        dimensions: embedded.dimensions,
        data: data(embedded, format),
        usage: usage(embedded),
    }
}

fn data(embedded: &Embeddings, format: VectorFormat) -> Vec<Embedding> {
    let rows = embedded.rows().zip(&embedded.tokens).enumerate();
    let rows = rows.map(|(index, (vector, tokens))| Embedding {
        object: "embedding".to_owned(),
        index,
        embedding: wire_vector(vector, format),
        tokens_provided: tokens.provided,
        tokens_used: tokens.used,
    });
    rows.collect()
}

/// Converts a vector to the form.
pub(super) fn wire_vector(
    vector: &[f32],
    VectorFormat { output_type, is_base64 }: VectorFormat,
) -> Vector {
    if is_base64 && output_type == OutputType::Float {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        return Vector::Base64(STANDARD.encode(bytes));
    }
    match output_type.quantize(vector) {
        quantized if is_base64 => Vector::Base64(STANDARD.encode(quantized.to_bytes())),
        QuantizedVector::Float(values) => Vector::Float(values),
        QuantizedVector::Signed(values) => Vector::Signed(values),
        QuantizedVector::Unsigned(values) => Vector::Unsigned(values),
    }
}

fn usage(embedded: &Embeddings) -> Usage {
    let used = embedded.used();
    Usage { prompt_tokens: used, total_tokens: used }
}

pub(super) async fn models(
    State(app): State<App>,
    viewer: TenantContext,
) -> Result<Response, ApiError> {
    // Each of up to a thousand models is compared with each other: run on the blocking pool.
    let describe = move || {
        let catalog = app.handle.catalog();
        let entries = viewer.visible_models(&app);
        let described = ModelDescriber::new(&app.handle, &entries, &catalog);
        let data = (0..entries.len()).map(|at| described.model(at)).collect();
        response::json(0, &ModelList { object: "list".to_owned(), data })
    };
    Ok(tokio::task::spawn_blocking(describe).await?)
}

pub(super) async fn model(
    State(app): State<App>,
    viewer: TenantContext,
    PathName(name): PathName,
) -> Result<Json<Model>, ApiError> {
    let catalog = app.handle.catalog();
    let entries = viewer.visible_models(&app);
    let entry = catalog.lookup_in(&entries, &name);
    let at = entry.and_then(|entry| entries.position(&entry.key));
    let at = at.ok_or_else(|| ApiError::unknown_package(name, &entries))?;
    let describe = move || ModelDescriber::new(&app.handle, &entries, &catalog).model(at);
    Ok(Json(tokio::task::spawn_blocking(describe).await?))
}

/// Data to describe models, each of which is compared with the others.
struct ModelDescriber<'a> {
    handle: &'a ManagerHandle,
    entries: &'a Entries,
    /// Shortest name of each entry. `spaces` has their embedding spaces, which are hashes and
    /// therefore computed once.
    names: Vec<String>,
    spaces: Vec<EmbeddingSpace>,
    aliases: Vec<AliasTargets<'a>>,
}

impl<'a> ModelDescriber<'a> {
    fn new(handle: &'a ManagerHandle, entries: &'a Entries, catalog: &'a Catalog) -> Self {
        Self {
            handle,
            entries,
            names: entries.iter().map(|entry| name_of(entry, entries)).collect(),
            spaces: entries.iter().map(|entry| entry.manifest.space()).collect(),
            aliases: catalog.aliases(entries),
        }
    }

    /// Describes the entry at index `at`.
    fn model(&self, at: usize) -> Model {
        let entry = &self.entries[at];
        let manifest = &entry.manifest;
        let is_it = |key: Option<&EntryKey>| key == Some(&entry.key);
        let others = |fits: &dyn Fn(usize) -> bool| -> Vec<String> {
            let others = (0..self.entries.len()).filter(|other| *other != at && fits(*other));
            others.map(|other| self.names[other].clone()).collect()
        };
        // A reranker has no vectors that could be compared.
        let have_vectors = |other: &Manifest| !manifest.is_reranker() && !other.is_reranker();
        let aliases = self.aliases.iter().filter(|alias| is_it(alias.model));
        let canaries = self.aliases.iter().filter(|alias| is_it(alias.canary));
        let current = self.entries.resolve(manifest.id.as_str());
        Model {
            id: self.names[at].clone(),
            object: "model".to_owned(),
            created: entry.record.installed_at.0,
            owned_by: "caxton".to_owned(),
            version: manifest.version.to_string(),
            revision: entry.record.manifest_digest.short(),
            current: is_it(current.map(|current| &current.key)),
            awaits_approval: self.entries.is_waiting(entry),
            aliases: aliases.map(|alias| alias.name.to_owned()).collect(),
            canary_of: canaries.map(|alias| alias.name.to_owned()).collect(),
            task: manifest.task().to_owned(),
            token_heads: manifest.token_heads(),
            dimensions: manifest.dimensions,
            matryoshka_dimensions: trained_dimensions(manifest).to_vec(),
            max_sequence_length: self.handle.max_sequence_length(manifest),
            compatible_dimensions: others(&|other| {
                let other = &self.entries[other].manifest;
                have_vectors(other) && other.dimensions == manifest.dimensions
            }),
            compatible_vectors: others(&|other| {
                have_vectors(&self.entries[other].manifest) && self.spaces[other] == self.spaces[at]
            }),
            embedding_space: self.spaces[at].to_string(),
            self_test: ModelSelfTest {
                text: manifest.self_test.text.clone(),
                vector: manifest.self_test.vector.clone(),
                min_cosine: MIN_COSINE,
            },
            prompts: manifest.prompts.keys().cloned().collect(),
        }
    }
}

/// Returns the shortest name that means `entry` and no other of `entries`.
fn name_of(entry: &StoreEntry, entries: &Entries) -> String {
    let (id, version) = (&entry.manifest.id, &entry.manifest.version);
    let names = [id.to_string(), format!("{id}@{version}")];
    let is_meant =
        |name: &String| entries.resolve(name).is_some_and(|meant| meant.key == entry.key);
    let by_revision = || format!("{id}@{}", entry.record.manifest_digest.short());
    names.into_iter().find(is_meant).unwrap_or_else(by_revision)
}
