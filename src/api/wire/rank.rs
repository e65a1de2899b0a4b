//! Defines the wire types of ranking.
//!
//! The fields of `/rerank` with `texts` are those of text-embeddings-inference:
//! <https://huggingface.github.io/text-embeddings-inference/>. With `documents`, they are those that
//! Cohere (<https://docs.cohere.com/reference/rerank>), Jina and vLLM have in common.

use serde::{Deserialize, Serialize};

use super::input;
pub use super::input::Document;
use super::truncate::Truncate;

/// Body of `POST /v1/rank`.
#[derive(Debug, Deserialize)]
pub struct RankRequest {
    /// Text of the query.
    pub query: String,
    /// Documents to rank.
    #[serde(deserialize_with = "input::texts")]
    pub documents: Vec<String>,
    /// Number of best documents in the answer; all when absent.
    #[serde(default)]
    pub top_n: Option<usize>,
    /// Name of the model; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// `semantic` (the default), `multi-vector`, `hybrid` or `keyword`.
    #[serde(default)]
    pub mode: Option<String>,
    /// Whether the answer contains the documents.
    #[serde(default)]
    pub return_documents: bool,
    /// Whether a fallback model or keywords may answer when the model is not available; allowed
    /// when absent.
    #[serde(default)]
    pub allow_fallback: Option<bool>,
}

/// Answer of `POST /v1/rank`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RankResponse {
    /// Constant `list`.
    pub object: String,
    /// Id of the model that answered; `null` for keywords.
    pub model: Option<String>,
    /// `semantic`, `cross-encoder` (the model is a reranker), `multi-vector`, `hybrid` or
    /// `keyword`. `keyword` is also the mode when no model could answer.
    pub mode: String,
    /// Ranked documents, the best one first.
    pub results: Vec<RankedDocument>,
    /// Token counts.
    pub usage: super::Usage,
}

/// A ranked document.
#[derive(Debug, Serialize, Deserialize)]
pub struct RankedDocument {
    /// Index of the document in the request.
    pub index: usize,
    /// Score, higher is better: the cosine, the score of the reranker, the mean of the best cosines
    /// of the query's tokens, the fused reciprocal ranks, or BM25's score, depending on the mode.
    pub score: f32,
    /// The document, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// Body of `POST /rerank`, `POST /v1/rerank` and `POST /v2/rerank`. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
pub struct RerankRequest {
    /// Text of the query.
    pub query: Document,
    /// Texts to rank, in text-embeddings-inference's dialect.
    #[serde(default, deserialize_with = "input::documents")]
    pub texts: Option<Vec<String>>,
    /// Texts to rank, in the dialect of Cohere, Jina and vLLM.
    #[serde(default, deserialize_with = "input::documents")]
    pub documents: Option<Vec<String>>,
    /// Number of best documents in the answer to `documents`; all when absent.
    #[serde(default)]
    pub top_n: Option<usize>,
    /// Whether the answer to `documents` contains the documents; without effect on `/rerank`.
    #[serde(default)]
    pub return_documents: Option<bool>,
    /// Whether scores are the raw ones of a reranker, or cosines. Otherwise a reranker applies its
    /// activation, and cosines are mapped to 0 to 1.
    #[serde(default)]
    pub raw_scores: bool,
    /// Whether the answer contains the texts.
    #[serde(default)]
    pub return_text: bool,
    /// `false` or `"NONE"` refuses texts that are too long. Otherwise one end is cut off.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// `semantic` (the default) or `multi-vector`; not in the other APIs.
    #[serde(default)]
    pub mode: Option<String>,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
}

/// A ranked text. The answer of `POST /rerank` is a list of these, the best one first.
#[derive(Debug, Serialize, Deserialize)]
pub struct RerankedText {
    /// Index of the text in the request.
    pub index: usize,
    /// The text, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Score, higher is better.
    pub score: f32,
}

/// Answer to `documents`.
#[derive(Debug, Serialize)]
pub struct DocumentsResponse {
    /// Id of the request.
    pub id: String,
    /// Id of the model that answered; `keyword` if no model could.
    pub model: String,
    /// Ranked documents, the best one first.
    pub results: Vec<RelevantDocument>,
    /// Token counts.
    pub usage: super::Usage,
    /// Counts in Cohere's terms.
    pub meta: Meta,
}

/// A ranked document in the dialect of Cohere, Jina and vLLM.
#[derive(Debug, Serialize)]
pub struct RelevantDocument {
    /// Index of the document in the request.
    pub index: usize,
    /// Score, higher is better: from 0 to 1, unless the request has `raw_scores` or the reranker
    /// has no activation.
    pub relevance_score: f32,
    /// The document, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

/// A document in an answer.
#[derive(Debug, Serialize)]
pub struct DocumentText {
    /// Text of the document.
    pub text: String,
}

/// Facts about an answer in Cohere's terms. Nothing is billed.
#[derive(Debug, Serialize)]
pub struct Meta {
    /// Version of Cohere's API that the answer follows.
    pub api_version: ApiVersion,
    /// Counts that Cohere bills.
    pub billed_units: BilledUnits,
}

/// Version of Cohere's API.
#[derive(Debug, Serialize)]
pub struct ApiVersion {
    /// The version, such as `2`.
    pub version: &'static str,
}

/// Counts that Cohere bills.
#[derive(Debug, Default, Serialize)]
pub struct BilledUnits {
    /// Searches of a request to rank documents: always 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search_units: Option<usize>,
    /// Tokens computed, special tokens included.
    pub input_tokens: usize,
}

/// Body of every failure in this dialect. It has the message where the clients of Cohere
/// (`message`), of Jina (`detail`) and of vLLM (`error`) look for it.
#[derive(Debug, Serialize)]
pub struct RerankFailure {
    /// Message for people.
    pub message: String,
    /// Same value as `message`.
    pub detail: String,
    /// The error in OpenAI's format.
    pub error: super::ErrorBody,
}
