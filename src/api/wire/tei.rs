//! The dialect of text-embeddings-inference as clients see it.
//!
//! Fields, their defaults and the answers:
//! <https://huggingface.github.io/text-embeddings-inference/>. Beyond it every request takes `model`.

use serde::{Deserialize, Serialize};

use super::super::input;
use super::Input;

/// Body of `POST /embed`.
#[derive(Debug, Deserialize)]
pub struct EmbedRequest {
    /// What to embed.
    pub inputs: Input,
    /// Which model; the default one when absent; beyond TEI.
    #[serde(default)]
    pub model: Option<String>,
    /// `false` refuses texts that are too long, of which one end is left out otherwise.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Which end that is.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Which of the model's prompts to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// `true`: vectors of length 1. `false`: vectors before they are normalised. Absent: as the model's own are, so that
    /// a text has the same vector on every route.
    #[serde(default)]
    pub normalize: Option<bool>,
    /// Cut vectors to this length.
    #[serde(default)]
    pub dimensions: Option<usize>,
}

/// Body of `POST /embed_all`.
#[derive(Debug, Deserialize)]
pub struct EmbedAllRequest {
    /// The texts of whose tokens the states are wanted.
    pub inputs: Input,
    /// Which model; the default one when absent; beyond TEI.
    #[serde(default)]
    pub model: Option<String>,
    /// `false` refuses texts that are too long, of which one end is left out otherwise.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Which end that is.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Which of the model's prompts to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
}

/// Body of `POST /similarity`.
#[derive(Debug, Deserialize)]
pub struct SimilarityRequest {
    /// What to compare.
    pub inputs: SimilarityInputs,
    /// How.
    #[serde(default)]
    pub parameters: Option<SimilarityParameters>,
    /// Which model; the default one when absent; beyond TEI.
    #[serde(default)]
    pub model: Option<String>,
}

/// What `POST /similarity` compares.
#[derive(Debug, Deserialize)]
pub struct SimilarityInputs {
    /// What the others are compared with.
    pub source_sentence: String,
    /// The others.
    #[serde(deserialize_with = "input::texts")]
    pub sentences: Vec<String>,
}

/// How `POST /similarity` compares.
#[derive(Debug, Default, Deserialize)]
pub struct SimilarityParameters {
    /// `false` refuses texts that are too long, of which one end is left out otherwise.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Which end that is.
    #[serde(default)]
    pub truncation_direction: Option<TruncationDirection>,
    /// Which of the model's prompts to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
}

/// Which end of a text that is too long is left out. TEI's documentation writes it in lower case, and its program reads
/// it in upper case: both are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationDirection {
    /// Its beginning.
    #[serde(alias = "Left")]
    Left,
    /// Its end.
    #[default]
    #[serde(alias = "Right")]
    Right,
}

/// Body of `POST /tokenize`.
#[derive(Debug, Deserialize)]
pub struct TokenizeRequest {
    /// Texts.
    pub inputs: Input,
    /// Whether those around a text are shown, too; they are when it is absent.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
    /// Which of the model's prompts to put before each text.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Which model; the default one when absent; beyond TEI.
    #[serde(default)]
    pub model: Option<String>,
}

/// Body of `POST /decode`.
#[derive(Debug, Deserialize)]
pub struct DecodeRequest {
    /// Token ids.
    pub ids: Input,
    /// Whether special tokens are left out; they are when it is absent.
    #[serde(default)]
    pub skip_special_tokens: Option<bool>,
    /// Which model; the default one when absent; beyond TEI.
    #[serde(default)]
    pub model: Option<String>,
}

/// Answer of `POST /embed`: a vector for each text.
#[derive(Debug, Serialize)]
pub struct Embeddings<'a>(pub Vec<&'a [f32]>);

/// Answer of `POST /embed_all`: for each text a state for each of its tokens.
#[derive(Debug, Serialize)]
pub struct TokenStates<'a>(pub Vec<Vec<&'a [f32]>>);

/// Answer of `POST /similarity`: a cosine for each sentence.
#[derive(Debug, Serialize)]
pub struct Similarities(pub Vec<f32>);

/// Answer of `POST /tokenize`: for each text its tokens.
#[derive(Debug, Serialize)]
pub struct Tokenized(pub Vec<Vec<Token>>);

/// A token.
#[derive(Debug, Serialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The part of the text that it stands for; of a special token, its name.
    pub text: String,
    /// Whether it is not of the text, but around it.
    pub special: bool,
    /// Where its part of the text begins, in characters; `null` when it is special.
    pub start: Option<usize>,
    /// Where it ends.
    pub stop: Option<usize>,
}

/// Answer of `POST /decode`: a text for each list of ids.
#[derive(Debug, Serialize)]
pub struct Decoded(pub Vec<String>);

/// Answer of `GET /info`: the default model, and the limits.
#[derive(Debug, Serialize)]
pub struct Info {
    /// Its id.
    pub model_id: String,
    /// Its revision.
    pub model_sha: String,
    /// What it is computed in while it is in memory, or else how its weights are stored.
    pub model_dtype: String,
    /// The name to ask for it.
    pub served_model_name: String,
    /// What it does.
    pub model_type: ModelType,
    /// Requests that may wait.
    pub max_concurrent_requests: usize,
    /// Longest input in tokens.
    pub max_input_length: usize,
    /// Tokens of one forward pass.
    pub max_batch_tokens: usize,
    /// Texts of one forward pass: `null`, since tokens are what counts.
    pub max_batch_requests: Option<usize>,
    /// Inputs of one request.
    pub max_client_batch_size: usize,
    /// Whether texts that are too long are cut when a request says nothing.
    pub auto_truncate: bool,
    /// Threads that tokenize short texts; long ones have threads of their own.
    pub tokenization_workers: usize,
    /// Version of Caxton.
    pub version: String,
    /// Of the source of TEI: `null`.
    pub sha: Option<String>,
    /// Of TEI's image: `null`.
    pub docker_label: Option<String>,
}

/// What a model does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// Vectors of texts.
    Embedding {
        /// How the states of the tokens become one vector.
        pooling: String,
    },
}

/// Every failure on the routes of this dialect.
#[derive(Debug, Serialize)]
pub struct ErrorResponse {
    /// For people.
    pub error: String,
    /// For programs.
    pub error_type: ErrorType,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorType {
    /// Nothing can be answered now.
    Unhealthy,
    /// The model cannot do it, or failed.
    Backend,
    /// Too many requests wait.
    Overloaded,
    /// The request is wrong.
    Validation,
    /// The text cannot be tokenized.
    Tokenizer,
    /// There is nothing to answer.
    Empty,
}
