//! Defines the wire types of text-embeddings-inference's (TEI's) dialect.
//!
//! Fields, their defaults and the answers:
//! <https://huggingface.github.io/text-embeddings-inference/>. Every request also accepts `model`,
//! which TEI's API does not have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::input;
use crate::service::Input;

/// Body of `POST /embed`.
#[derive(Debug, Deserialize)]
pub struct EmbedRequest {
    /// Texts or token ids to embed.
    pub inputs: Input,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
    /// `false` refuses texts that are too long. Otherwise one end is cut off.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// End that is cut off.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Name of the model's prompt to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// `true` normalizes vectors to length 1, `false` returns them before the normalization. If
    /// absent, the model decides, so that a text has the same vector on every route.
    #[serde(default)]
    pub normalize: Option<bool>,
    /// Length to which vectors are cut.
    #[serde(default)]
    pub dimensions: Option<usize>,
}

/// Body of `POST /embed_all` and `POST /embed_sparse`.
#[derive(Debug, Deserialize)]
pub struct EmbedTokensRequest {
    /// Texts or token ids whose tokens are computed.
    pub inputs: Input,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
    /// `false` refuses texts that are too long. Otherwise one end is cut off.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// End that is cut off.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Name of the model's prompt to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
}

/// Body of `POST /similarity`.
#[derive(Debug, Deserialize)]
pub struct SimilarityRequest {
    /// Texts to compare.
    pub inputs: SimilarityInputs,
    /// Options of the comparison.
    #[serde(default)]
    pub parameters: Option<SimilarityParameters>,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
}

/// Texts that `POST /similarity` compares.
#[derive(Debug, Deserialize)]
pub struct SimilarityInputs {
    /// Text with which all `sentences` are compared.
    pub source_sentence: String,
    /// Texts to compare with it.
    #[serde(deserialize_with = "input::texts")]
    pub sentences: Vec<String>,
}

/// Options of `POST /similarity`.
#[derive(Debug, Default, Deserialize)]
pub struct SimilarityParameters {
    /// `false` refuses texts that are too long. Otherwise one end is cut off.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// End that is cut off.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Name of the model's prompt to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
}

/// End at which a text that is too long is cut off. TEI's documentation writes the value in lower
/// case and its program reads it capitalized: both forms are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationDirection {
    /// Beginning of the text.
    #[serde(alias = "Left")]
    Left,
    /// End of the text.
    #[default]
    #[serde(alias = "Right")]
    Right,
}

/// Body of `POST /tokenize`.
#[derive(Debug, Deserialize)]
pub struct TokenizeRequest {
    /// Texts to tokenize; token ids are refused.
    pub inputs: Input,
    /// Whether the answer contains the special tokens around a text; true when absent.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
    /// Name of the model's prompt to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
}

/// Body of `POST /decode`.
#[derive(Debug, Deserialize)]
pub struct DecodeRequest {
    /// Token ids to decode; texts are refused.
    pub ids: Input,
    /// Whether special tokens are omitted; true when absent.
    #[serde(default)]
    pub skip_special_tokens: Option<bool>,
    /// Name of the model; the default model when absent; not in TEI's API.
    #[serde(default)]
    pub model: Option<String>,
}

/// Answer of `POST /embed`: a vector for each text, `[texts, dimensions]`.
#[derive(Debug, Serialize)]
pub struct EmbeddingRows<'a>(pub Vec<&'a [f32]>);

/// Answer of `POST /embed_all`: a state or vector for each token of each text, `[texts, tokens,
/// dimensions]`.
#[derive(Debug, Serialize)]
pub struct TokenStates<'a>(pub Vec<Vec<&'a [f32]>>);

/// Answer of `POST /embed_sparse`: a sparse vector for each text.
#[derive(Debug, Serialize)]
pub struct SparseRows(pub Vec<Vec<SparseValue>>);

/// Component of a sparse vector that is not 0.
#[derive(Debug, Serialize)]
pub struct SparseValue {
    /// Token id.
    pub index: u32,
    /// Weight of the token.
    pub value: f32,
}

impl SparseRows {
    /// Builds the answer from the weights of each text by token id.
    pub fn new(texts: impl Iterator<Item = BTreeMap<u32, f32>>) -> Self {
        let component = |(index, value)| SparseValue { index, value };
        Self(texts.map(|weights| weights.into_iter().map(component).collect()).collect())
    }
}

/// Answer of `POST /similarity`: a cosine for each sentence.
#[derive(Debug, Serialize)]
pub struct Similarities(pub Vec<f32>);

/// Answer of `POST /tokenize`: the tokens of each text.
#[derive(Debug, Serialize)]
pub struct TokenizeResponse(pub Vec<Vec<Token>>);

/// A token.
#[derive(Debug, Serialize)]
pub struct Token {
    /// Id of the token.
    pub id: u32,
    /// Part of the text that the token represents, or the name of a special token.
    pub text: String,
    /// Whether the token is a special token around the text.
    pub special: bool,
    /// Position in the text at which the token begins, in characters; `null` for a special token.
    pub start: Option<usize>,
    /// Position at which the token ends, in characters; `null` for a special token.
    pub stop: Option<usize>,
}

/// Answer of `POST /decode`: a text for each list of ids.
#[derive(Debug, Serialize)]
pub struct DecodeResponse(pub Vec<String>);

/// Answer of `GET /info`: the default model and the limits.
#[derive(Debug, Serialize)]
pub struct Info {
    /// Id of the model.
    pub model_id: String,
    /// Revision of the model.
    pub model_sha: String,
    /// Precision of the resident model, or else the type of its stored weights.
    pub model_dtype: String,
    /// Name for requests.
    pub served_model_name: String,
    /// Task of the model.
    pub model_type: ModelType,
    /// Longest queue of the model, in requests.
    pub max_concurrent_requests: usize,
    /// Longest input in tokens.
    pub max_input_length: usize,
    /// Most tokens of one forward pass.
    pub max_batch_tokens: usize,
    /// Most texts of one forward pass: always `null`, because passes are limited by tokens.
    pub max_batch_requests: Option<usize>,
    /// Most inputs of one request.
    pub max_client_batch_size: usize,
    /// Whether texts that are too long are truncated by default.
    pub auto_truncate: bool,
    /// Threads that tokenize short texts. Long texts use other threads.
    pub tokenization_workers: usize,
    /// Version of Caxton.
    pub version: String,
    /// Commit of TEI's source: always `null`.
    pub sha: Option<String>,
    /// Label of TEI's image: always `null`.
    pub docker_label: Option<String>,
}

/// Task of a model.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// Vectors of texts.
    Embedding {
        /// Method by which the states of the tokens become one vector.
        pooling: String,
    },
    /// Scores of pairs of texts.
    Reranker {
        /// Names of the scores, by number.
        id2label: BTreeMap<String, String>,
        /// Numbers of the scores, by name.
        label2id: BTreeMap<String, usize>,
    },
}

/// Body of every failure on the routes of this dialect.
#[derive(Debug, Serialize)]
pub struct ErrorResponse {
    /// Message for people.
    pub error: String,
    /// Type for programs.
    pub error_type: ErrorType,
}

/// Type of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorType {
    /// No model can answer now.
    Unhealthy,
    /// The model cannot do the task, or it failed.
    Backend,
    /// Too many requests are queued.
    Overloaded,
    /// The request is invalid.
    Validation,
    /// The text cannot be tokenized.
    Tokenizer,
    /// The request has no input.
    Empty,
}
