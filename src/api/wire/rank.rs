//! What clients see of ranking.
//!
//! The fields of `/rerank` are those of text-embeddings-inference:
//! <https://huggingface.github.io/text-embeddings-inference/>.

use serde::{Deserialize, Serialize};

use super::super::input;

/// Body of `POST /v1/rank`.
#[derive(Debug, Deserialize)]
pub struct RankRequest {
    /// What is looked for.
    pub query: String,
    /// Where.
    #[serde(deserialize_with = "input::texts")]
    pub documents: Vec<String>,
    /// How many of the best to give; all when absent.
    #[serde(default)]
    pub top_n: Option<usize>,
    /// Which model; the default one when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// `semantic` (the default), `hybrid` or `keyword`.
    #[serde(default)]
    pub mode: Option<String>,
    /// Whether the answer has the documents.
    #[serde(default)]
    pub return_documents: bool,
    /// Whether another model, or keywords, may answer when this one cannot; they may when absent.
    #[serde(default)]
    pub allow_fallback: Option<bool>,
}

/// Answer of `POST /v1/rank`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RankResponse {
    /// `list`.
    pub object: String,
    /// The model that answered; `null` for keywords.
    pub model: Option<String>,
    /// `semantic`, `hybrid` or `keyword`: `keyword` also when no model could answer.
    pub mode: String,
    /// The best first.
    pub results: Vec<Ranked>,
    /// What was counted.
    pub usage: super::Usage,
}

/// A document and how well it fits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ranked {
    /// Its position in the request.
    pub index: usize,
    /// Higher is better: the cosine, the fused reciprocal ranks, or BM25's score, by the mode.
    pub score: f32,
    /// The document, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// Body of `POST /rerank`.
#[derive(Debug, Deserialize)]
pub struct RerankRequest {
    /// What is looked for.
    pub query: String,
    /// Where.
    #[serde(deserialize_with = "input::texts")]
    pub texts: Vec<String>,
    /// Whether scores are cosines; from 0 to 1 otherwise.
    #[serde(default)]
    pub raw_scores: bool,
    /// Whether the answer has the texts.
    #[serde(default)]
    pub return_text: bool,
    /// `false` refuses texts that are too long.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Which model; beyond text-embeddings-inference.
    #[serde(default)]
    pub model: Option<String>,
}

/// One of the answer of `POST /rerank`, the best first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reranked {
    /// Its position in the request.
    pub index: usize,
    /// The text, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Higher is better.
    pub score: f32,
}
