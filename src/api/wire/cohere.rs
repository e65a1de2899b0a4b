//! Defines the wire types of Cohere's routes for embeddings.
//!
//! Fields and their meaning: <https://docs.cohere.com/reference/embed>. The types of an answer's
//! `meta` are in [`rank`](super::rank).

use serde::{Deserialize, Serialize};

use super::rank::Meta;
use super::truncate::Truncate;
use super::{Vector, input};

/// Body of `POST /v1/embed` and `POST /v2/embed`. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
pub struct EmbedRequest {
    /// Texts to embed.
    #[serde(default, deserialize_with = "input::documents")]
    pub texts: Option<Vec<String>>,
    /// Name of the model; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// `search_query` and `search_document` select the model's prompt for it. `classification` and
    /// `clustering` select the model's default prompt, and so does a missing field.
    #[serde(default)]
    pub input_type: Option<String>,
    /// Types of the vectors in the answer: `float`, `int8`, `uint8`, `binary`, `ubinary` and
    /// `base64` (`float` as text).
    #[serde(default)]
    pub embedding_types: Option<Vec<String>>,
    /// `NONE` refuses texts that are too long, `START` cuts off their beginning. Otherwise their
    /// end is cut off.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Length to which vectors are cut; they are scaled to length 1 again.
    #[serde(default)]
    pub output_dimension: Option<usize>,
}

/// Answer of `POST /v1/embed` and `POST /v2/embed`.
#[derive(Debug, Serialize)]
pub struct EmbedResponse {
    /// Id of the request.
    pub id: String,
    /// Kind of `embeddings`: `embeddings_floats` or `embeddings_by_type`.
    pub response_type: &'static str,
    /// Vectors of the texts, in the same order.
    pub embeddings: CohereEmbeddings,
    /// Texts of the request.
    pub texts: Vec<String>,
    /// Counts in Cohere's terms.
    pub meta: Meta,
}

/// Vectors of an answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum CohereEmbeddings {
    /// Vectors as numbers, for a request to `/v1/embed` without `embedding_types`.
    Floats(Vec<Vector>),
    /// Vectors by type.
    ByType(Box<EmbeddingsByType>),
}

/// Vectors of an answer by type. A type that was not requested is absent.
#[derive(Debug, Default, Serialize)]
pub struct EmbeddingsByType {
    /// Numbers, `[texts, dimensions]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float: Option<Vec<Vector>>,
    /// Signed bytes, `[texts, dimensions]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8: Option<Vec<Vector>>,
    /// Unsigned bytes, `[texts, dimensions]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uint8: Option<Vec<Vector>>,
    /// Signed bytes of eight signs each, `[texts, dimensions / 8]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<Vec<Vector>>,
    /// Unsigned bytes of eight signs each, `[texts, dimensions / 8]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ubinary: Option<Vec<Vector>>,
    /// Numbers as little-endian f32 in base64, `[texts]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<Vec<Vector>>,
}
