//! Defines the wire types of Ollama's dialect.
//!
//! Fields and their meaning: <https://github.com/ollama/ollama/blob/v0.12.6/api/types.go>.
//! Durations are in nanoseconds, times in RFC 3339, and the names of models end in `:version`.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::super::keep_alive;
use crate::models::KeepAlive;

/// Body of `POST /api/embed`.
#[derive(Debug, Deserialize)]
pub struct EmbedRequest {
    /// Name of the model, with or without a tag; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// Texts to embed. An empty text, an empty list or a missing field only loads the model.
    #[serde(default)]
    pub input: Option<Texts>,
    /// `false` refuses texts that are too long. Otherwise their end is cut off.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Length to which vectors are cut; they are scaled to length 1 again. 0 has no effect.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// Time for which the model stays in memory after this request and later ones.
    #[serde(default, deserialize_with = "keep_alive::read")]
    pub keep_alive: Option<KeepAlive>,
    /// Runtime options of Ollama; accepted and ignored.
    #[serde(default)]
    pub options: Option<IgnoredAny>,
}

/// Zero or more texts, read from a string or a list. An empty string gives zero texts.
#[derive(Debug)]
pub struct Texts(pub Vec<String>);

/// Answer of `POST /api/embed`.
#[derive(Debug, Serialize)]
pub struct EmbedResponse {
    /// Requested name of the model, or the name of the fallback that answered.
    pub model: String,
    /// One vector for each text, in the same order.
    pub embeddings: Vec<Vec<f32>>,
    /// Time from the request to its answer.
    pub total_duration: u64,
    /// Part of that time until the model was in memory.
    pub load_duration: u64,
    /// Tokens computed, special tokens included.
    pub prompt_eval_count: usize,
}

/// Body of `POST /api/embeddings`, which Ollama has replaced by `/api/embed`.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    /// Name of the model, with or without a tag; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// Text to embed. An empty text only loads the model.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Time for which the model stays in memory after this request and later ones.
    #[serde(default, deserialize_with = "keep_alive::read")]
    pub keep_alive: Option<KeepAlive>,
    /// Runtime options of Ollama; accepted and ignored.
    #[serde(default)]
    pub options: Option<IgnoredAny>,
}

/// Answer of `POST /api/embeddings`.
#[derive(Debug, Serialize)]
pub struct EmbeddingsResponse {
    /// The vector; empty for a request without text.
    pub embedding: Vec<f32>,
}

/// Answer of `GET /api/tags`.
#[derive(Debug, Serialize)]
pub struct Tags {
    /// All versions of all models that can be requested.
    pub models: Vec<Tag>,
}

/// A model that can be requested.
#[derive(Debug, Serialize)]
pub struct Tag {
    /// Name in the form `id:version`.
    pub name: String,
    /// Same value as `name`.
    pub model: String,
    /// Time of the installation.
    pub modified_at: String,
    /// Sum of the sizes of the model's files, in bytes.
    pub size: u64,
    /// SHA-256 of the installed package.
    pub digest: String,
    /// Details of the model.
    pub details: Details,
    /// Constant `embedding`.
    pub capabilities: Vec<&'static str>,
}

/// Details of a model.
#[derive(Debug, Serialize)]
pub struct Details {
    /// Always empty: packages do not name a parent model.
    pub parent_model: &'static str,
    /// Constant `safetensors`.
    pub format: &'static str,
    /// `model_type` of the encoder.
    pub family: String,
    /// Only the value of `family`.
    pub families: Vec<String>,
    /// Always empty: packages do not state the number of parameters.
    pub parameter_size: &'static str,
    /// Type of the stored weights: `f32`, `f16` or `int8`.
    pub quantization_level: &'static str,
}

/// Answer of `GET /api/ps`.
#[derive(Debug, Serialize)]
pub struct RunningModels {
    /// All models in memory.
    pub models: Vec<RunningModel>,
}

/// A model in memory.
#[derive(Debug, Serialize)]
pub struct RunningModel {
    /// Name in the form `id:version`.
    pub name: String,
    /// Same value as `name`.
    pub model: String,
    /// Memory of the weights, in bytes.
    pub size: u64,
    /// SHA-256 of the installed package.
    pub digest: String,
    /// Details of the model.
    pub details: Details,
    /// Time at which the model is unloaded because it is idle; about 292 years in the future when
    /// it is not unloaded for that reason.
    pub expires_at: String,
    /// Always 0: models do not use the memory of a graphics card.
    pub size_vram: u64,
    /// Longest input in tokens.
    pub context_length: usize,
}

/// Body of `POST /api/show`.
#[derive(Debug, Deserialize)]
pub struct ShowRequest {
    /// Name of the model, with or without a tag.
    #[serde(default)]
    pub model: Option<String>,
    /// Name of the model in the field that older clients use.
    #[serde(default)]
    pub name: Option<String>,
}

/// Answer of `POST /api/show`.
#[derive(Debug, Serialize)]
pub struct ShowResponse {
    /// SPDX expression of the licence.
    pub license: String,
    /// Details of the model.
    pub details: Details,
    /// Further facts about the model, by name.
    pub model_info: BTreeMap<String, serde_json::Value>,
    /// Constant `embedding`.
    pub capabilities: Vec<&'static str>,
    /// Time of the installation.
    pub modified_at: String,
}

/// Answer of `GET /api/version`.
#[derive(Debug, Serialize)]
pub struct VersionResponse {
    /// Version of Caxton, not of Ollama.
    pub version: &'static str,
}

/// Body of every failure.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Message for people.
    pub error: String,
}
