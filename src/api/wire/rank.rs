//! Defines the wire types of ranking.
//!
//! The fields of `/rerank` are those of text-embeddings-inference:
//! <https://huggingface.github.io/text-embeddings-inference/>.

use serde::{Deserialize, Serialize};

use super::input;

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
    /// `semantic` (the default), `hybrid` or `keyword`.
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
    /// `semantic`, `hybrid` or `keyword`. `keyword` is also the mode when no model could answer.
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
    /// Score, higher is better: the cosine, the fused reciprocal ranks, or BM25's score, depending
    /// on the mode.
    pub score: f32,
    /// The document, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// Body of `POST /rerank`.
#[derive(Debug, Deserialize)]
pub struct RerankRequest {
    /// Text of the query.
    pub query: String,
    /// Texts to rank.
    #[serde(deserialize_with = "input::texts")]
    pub texts: Vec<String>,
    /// Whether scores are cosines. Otherwise they are mapped to 0 to 1.
    #[serde(default)]
    pub raw_scores: bool,
    /// Whether the answer contains the texts.
    #[serde(default)]
    pub return_text: bool,
    /// `false` refuses texts that are too long.
    #[serde(default)]
    pub truncate: Option<bool>,
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
