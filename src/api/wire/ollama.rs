//! What clients of Ollama's API see.
//!
//! Fields and their meaning: <https://github.com/ollama/ollama/blob/v0.12.6/api/types.go>. Durations are in nanoseconds,
//! times in RFC 3339, and the model's name ends in `:version`.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::super::keep_alive;
use crate::models::KeepAlive;

/// Body of `POST /api/embed`.
#[derive(Debug, Deserialize)]
pub struct EmbedRequest {
    /// Which model, with or without a tag; the default one when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// What to embed; an empty text, an empty list or nothing loads the model and no more.
    #[serde(default)]
    pub input: Option<Texts>,
    /// `false` refuses texts that are too long, whose end is left out otherwise.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Cut vectors to this length and scale them to length 1 again; 0 is as if absent.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// How long the model stays after this request and later ones.
    #[serde(default, deserialize_with = "keep_alive::read")]
    pub keep_alive: Option<KeepAlive>,
    /// How Ollama is to run the model; accepted and not used.
    #[serde(default)]
    pub options: Option<IgnoredAny>,
}

/// One text or several; none for an empty one.
#[derive(Debug)]
pub struct Texts(pub Vec<String>);

/// Answer of `POST /api/embed`.
#[derive(Debug, Serialize)]
pub struct EmbedResponse {
    /// The model as it was asked for; another one's name when another one answered.
    pub model: String,
    /// One vector for each text, in its order.
    pub embeddings: Vec<Vec<f32>>,
    /// From the request to its answer.
    pub total_duration: u64,
    /// Of that, until the model was in memory.
    pub load_duration: u64,
    /// Tokens computed, special tokens included.
    pub prompt_eval_count: usize,
}

/// Body of `POST /api/embeddings`, which Ollama has replaced by `/api/embed`.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    /// Which model, with or without a tag; the default one when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// The text; an empty one loads the model and no more.
    #[serde(default)]
    pub prompt: Option<String>,
    /// How long the model stays after this request and later ones.
    #[serde(default, deserialize_with = "keep_alive::read")]
    pub keep_alive: Option<KeepAlive>,
    /// How Ollama is to run the model; accepted and not used.
    #[serde(default)]
    pub options: Option<IgnoredAny>,
}

/// Answer of `POST /api/embeddings`.
#[derive(Debug, Serialize)]
pub struct EmbeddingsResponse {
    /// The vector; empty when there was no text.
    pub embedding: Vec<f32>,
}

/// Answer of `GET /api/tags`.
#[derive(Debug, Serialize)]
pub struct Tags {
    /// Every version of every model that can be asked for.
    pub models: Vec<Tag>,
}

/// A model that can be asked for.
#[derive(Debug, Serialize)]
pub struct Tag {
    /// `id:version`.
    pub name: String,
    /// The same.
    pub model: String,
    /// When it was installed.
    pub modified_at: String,
    /// Sum of the sizes of its files, in bytes.
    pub size: u64,
    /// SHA-256 of the package it was installed from.
    pub digest: String,
    /// What it is.
    pub details: Details,
    /// `embedding`.
    pub capabilities: Vec<&'static str>,
}

/// What a model is.
#[derive(Debug, Serialize)]
pub struct Details {
    /// Empty: no model is made of another.
    pub parent_model: &'static str,
    /// `safetensors`.
    pub format: &'static str,
    /// `model_type` of the encoder.
    pub family: String,
    /// The same.
    pub families: Vec<String>,
    /// Empty: packages do not state how many parameters a model has.
    pub parameter_size: &'static str,
    /// How its weights are stored: `f32`, `f16` or `int8`.
    pub quantization_level: &'static str,
}

/// Answer of `GET /api/ps`.
#[derive(Debug, Serialize)]
pub struct Running {
    /// Every model in memory.
    pub models: Vec<RunningModel>,
}

/// A model in memory.
#[derive(Debug, Serialize)]
pub struct RunningModel {
    /// `id:version`.
    pub name: String,
    /// The same.
    pub model: String,
    /// Memory that its weights take, in bytes.
    pub size: u64,
    /// SHA-256 of the package it was installed from.
    pub digest: String,
    /// What it is.
    pub details: Details,
    /// When it leaves for want of use; some 292 years from now when it does not.
    pub expires_at: String,
    /// 0: no model is in a graphics card's memory.
    pub size_vram: u64,
    /// Longest input in tokens.
    pub context_length: usize,
}

/// Body of `POST /api/show`.
#[derive(Debug, Deserialize)]
pub struct ShowRequest {
    /// Which model, with or without a tag.
    #[serde(default)]
    pub model: Option<String>,
    /// The same, from older clients.
    #[serde(default)]
    pub name: Option<String>,
}

/// Answer of `POST /api/show`.
#[derive(Debug, Serialize)]
pub struct ShowResponse {
    /// SPDX expression of its licence.
    pub license: String,
    /// What it is.
    pub details: Details,
    /// More of what it is, by name.
    pub model_info: BTreeMap<String, serde_json::Value>,
    /// `embedding`.
    pub capabilities: Vec<&'static str>,
    /// When it was installed.
    pub modified_at: String,
}

/// Answer of `GET /api/version`.
#[derive(Debug, Serialize)]
pub struct Version {
    /// Version of the daemon, which is Caxton's and not Ollama's.
    pub version: &'static str,
}

/// Every failure.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// For people.
    pub error: String,
}
