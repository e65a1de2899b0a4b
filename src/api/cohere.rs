//! Serves Cohere's dialect of embeddings: `POST /v1/embed` and `POST /v2/embed`. Cohere's ranking is
//! in [`rerank`].

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Router, middleware};

use super::error::ApiError;
use super::input::read_json;
use super::openai::{VectorFormat, wire_vector};
use super::request_context::{RequestContext, RequestId};
use super::response::{self, set_embedding_headers};
use super::wire::cohere::{self, CohereEmbeddings, EmbeddingsByType};
use super::wire::rank::{ApiVersion, BilledUnits, Meta};
use super::wire::truncate::Truncate;
use super::{App, rerank};
use crate::engine::Truncation;
use crate::service::{
    CheckedInput, EmbedError, EmbedRequest, Embeddings, Input, OutputType, Prompt,
};

/// Name of the type `float` as text.
const BASE64: &str = "base64";
/// Most items of `embedding_types`: one for each type.
const MAX_TYPES: usize = OutputType::ALL.len() + 1;
/// Bytes charged for each byte of a text in the answer: once for the text, once for the text as
/// JSON.
const RETURNED_FACTOR: u64 = 2;
/// Name of the field with the texts, for errors.
const TEXTS: &str = "texts";

/// Builds the routes, with errors in the format of Cohere's clients.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/embed", post(embed))
        .route("/v2/embed", post(embed))
        .method_not_allowed_fallback(super::no_method)
        .layer(middleware::map_response(rerank::write_failure))
}

async fn embed(
    State(app): State<App>,
    path: MatchedPath,
    RequestId(id): RequestId,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: cohere::EmbedRequest = read_json(&app, &caller, body).await?;
    let formats = formats(request.embedding_types.as_deref())?;
    let of_texts = |error| ApiError::of_embed(error, TEXTS);
    let texts = request.texts.unwrap_or_default();
    let bytes: usize = texts.iter().map(String::len).sum();
    let input = CheckedInput::new(Input::Texts(texts)).map_err(of_texts)?;
    caller.call.charge.grow((bytes as u64).saturating_mul(RETURNED_FACTOR))?;
    let embed = EmbedRequest {
        prompt: prompt(request.input_type.as_deref())?,
        refuse_long: request.truncate.is_some_and(Truncate::refuses_long),
        truncation: request.truncate.map_or_else(Truncation::default, Truncate::truncation),
        dimensions: request.output_dimension,
        // The header states one embedding space: that of the only type, or that of `float`.
        output_type: match formats[..] {
            [VectorFormat { output_type, .. }] => output_type,
            _ => OutputType::Float,
        },
        ..EmbedRequest::new(input.clone())
    };
    let embedded = app.service.embed(&caller.call, request.model.as_deref(), embed).await;
    let embedded = embedded.map_err(|error| match error {
        EmbedError::WrongDimensions { .. } | EmbedError::DimensionsNotTrained { .. } => {
            of_texts(error).with_param("output_dimension".to_owned())
        }
        error => of_texts(error),
    })?;
    for format in &formats {
        format.output_type.check_length(embedded.dimensions).map_err(of_texts)?;
    }
    // The service has charged the numbers of one type.
    let values = embedded.vectors.len();
    let others = values.saturating_mul(formats.len().saturating_sub(1));
    caller.call.charge.grow_numbers(others, false)?;
    let by_type = request.embedding_types.is_some() || path.as_str().starts_with("/v2/");
    let version = if path.as_str().starts_with("/v2/") { "2" } else { "1" };
    let values = values.saturating_add(others);
    let write = move |caller: &RequestContext| {
        let used = embedded.used();
        let billed_units = BilledUnits { search_units: None, input_tokens: used };
        let answer = cohere::EmbedResponse {
            id,
            response_type: if by_type { "embeddings_by_type" } else { "embeddings_floats" },
            embeddings: embeddings(&embedded, &formats, by_type),
            texts: input.texts().to_vec(),
            meta: Meta { api_version: ApiVersion { version }, billed_units },
        };
        let mut response = response::json(values, &answer);
        set_embedding_headers(&embedded, caller, &mut response);
        response
    };
    response::write(&app, &caller, values, write).await
}

fn embeddings(embedded: &Embeddings, formats: &[VectorFormat], by_type: bool) -> CohereEmbeddings {
    let of = |format| embedded.rows().map(|row| wire_vector(row, format)).collect();
    if !by_type {
        let format = VectorFormat { output_type: OutputType::Float, is_base64: false };
        return CohereEmbeddings::Floats(of(format));
    }
    let mut found = EmbeddingsByType::default();
    for format in formats {
        let field = match format.output_type {
            OutputType::Float if format.is_base64 => &mut found.base64,
            OutputType::Float => &mut found.float,
            OutputType::Int8 => &mut found.int8,
            OutputType::Uint8 => &mut found.uint8,
            OutputType::Binary => &mut found.binary,
            OutputType::Ubinary => &mut found.ubinary,
        };
        *field = Some(of(*format));
    }
    CohereEmbeddings::ByType(Box::new(found))
}

/// Reads `embedding_types`: `float` when the field is missing or empty.
fn formats(types: Option<&[String]>) -> Result<Vec<VectorFormat>, ApiError> {
    let invalid = |message| ApiError::invalid(Some("embedding_types".to_owned()), message);
    let types = types.unwrap_or_default();
    if types.len() > MAX_TYPES {
        let message =
            format!("embedding_types has {} items; expected at most {MAX_TYPES}", types.len());
        return Err(invalid(message));
    }
    let mut formats: Vec<VectorFormat> = Vec::new();
    for name in types {
        let is_base64 = name == BASE64;
        let output_type =
            if is_base64 { Some(OutputType::Float) } else { OutputType::from_name(name) };
        let Some(output_type) = output_type else {
            let known = OutputType::ALL.map(OutputType::name).join(", ");
            let message = format!("embedding_types has \"{name}\"; expected {known} or {BASE64}");
            return Err(invalid(message));
        };
        let is_same =
            |other: &VectorFormat| other.output_type == output_type && other.is_base64 == is_base64;
        if !formats.iter().any(is_same) {
            formats.push(VectorFormat { output_type, is_base64 });
        }
    }
    if formats.is_empty() {
        formats.push(VectorFormat { output_type: OutputType::Float, is_base64: false });
    }
    Ok(formats)
}

fn prompt(input_type: Option<&str>) -> Result<Prompt, ApiError> {
    match input_type {
        Some("search_query") => Ok(Prompt::Query),
        Some("search_document") => Ok(Prompt::Passage),
        None | Some("classification" | "clustering") => Ok(Prompt::Default),
        Some(other) => Err(ApiError::invalid(
            Some("input_type".to_owned()),
            format!(
                "input_type is \"{other}\"; expected \"search_query\", \"search_document\", \
                 \"classification\" or \"clustering\""
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(types: &[&str]) -> Result<Vec<(OutputType, bool)>, String> {
        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
        let found = formats(Some(&types)).map_err(|error| error.message().to_owned())?;
        Ok(found.iter().map(|format| (format.output_type, format.is_base64)).collect())
    }

    #[test]
    fn each_type_is_kept_once() {
        let float = (OutputType::Float, false);
        assert_eq!(read(&[]), Ok(vec![float]));
        let all = ["base64", "float", "int8", "float", "base64"];
        let expected = vec![(OutputType::Float, true), float, (OutputType::Int8, false)];
        assert_eq!(read(&all), Ok(expected));
        assert!(read(&["float", "int4"]).unwrap_err().contains("\"int4\"; expected float, int8"));
        assert!(read(&["float"; 7]).unwrap_err().contains("at most 6"));
    }

    #[test]
    fn input_type_selects_the_prompt() {
        assert!(matches!(prompt(Some("search_query")), Ok(Prompt::Query)));
        assert!(matches!(prompt(Some("search_document")), Ok(Prompt::Passage)));
        assert!(matches!(prompt(Some("clustering")), Ok(Prompt::Default)));
        assert!(matches!(prompt(None), Ok(Prompt::Default)));
        assert!(prompt(Some("image")).unwrap_err().message().contains("\"image\""));
    }
}
