//! Defines the wire types of Ollama's dialect.
//!
//! Fields and their meaning: <https://github.com/ollama/ollama/blob/v0.12.6/api/types.go>.
//! Durations are in nanoseconds, times in RFC 3339, and the names of models end in `:version`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
    /// Texts to embed if `input` has none: the field of the older route.
    #[serde(default)]
    pub prompt: Option<Texts>,
    /// `false` refuses texts that are too long. Otherwise their end is cut off.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// `true` scales vectors to length 1, `false` returns them before the normalization. If absent,
    /// the model decides; not in Ollama's API.
    #[serde(default)]
    pub normalize: Option<bool>,
    /// Length to which vectors are cut; they are scaled to length 1 again. 0 has no effect, and
    /// neither does a length greater than the model's.
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
    /// Text to embed if `prompt` has none: the field of the newer route.
    #[serde(default)]
    pub input: Option<Texts>,
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
    /// All versions of all models that can be requested. The version that an id means appears twice:
    /// as `id:latest` and as `id:version`.
    pub models: Vec<Tag>,
}

/// A model that can be requested.
#[derive(Debug, Serialize)]
pub struct Tag {
    /// Name in the form `id:latest` or `id:version`.
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
    /// Task of the model: `embedding` or `rerank`.
    pub capabilities: Vec<&'static str>,
}

/// Details of a model.
#[derive(Clone, Debug, Serialize)]
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
    /// Type of the stored weights: `f32`, `f16`, `int8` or `int4-table`.
    pub quantization_level: &'static str,
}

/// Answer of `GET /api/ps`.
#[derive(Debug, Serialize)]
pub struct RunningModels {
    /// All models in memory, under the names that [`Tags`] lists.
    pub models: Vec<RunningModel>,
}

/// A model in memory.
#[derive(Debug, Serialize)]
pub struct RunningModel {
    /// Name in the form `id:latest` or `id:version`.
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

/// Body of `POST /api/pull`.
#[derive(Debug, Deserialize)]
pub struct PullRequest {
    /// Name of the model, with or without a tag.
    #[serde(default)]
    pub model: Option<String>,
    /// Name of the model in the field that older clients use.
    #[serde(default)]
    pub name: Option<String>,
    /// `false` requests one object. Otherwise the answer has one object a line.
    #[serde(default)]
    pub stream: Option<bool>,
}

/// Progress of `POST /api/pull`.
#[derive(Debug, Default, Serialize)]
pub struct PullProgress {
    /// Step of the installation; `success` is the last one.
    pub status: String,
    /// Digest of the package, with its algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size of the model's files in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes that are present: the same number, because the model is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

/// Body of `POST /api/generate` and of `POST /api/chat`. Without a prompt and messages it only
/// loads or unloads the model.
#[derive(Debug, Deserialize)]
pub struct GenerateRequest {
    /// Name of the model, with or without a tag; the default model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// Text to continue, which no model here can do.
    #[serde(default)]
    pub prompt: Option<Contents>,
    /// Messages to answer, which no model here can do.
    #[serde(default)]
    pub messages: Option<Contents>,
    /// Time for which the model stays in memory after this request and later ones; 0 unloads it.
    #[serde(default, deserialize_with = "keep_alive::read")]
    pub keep_alive: Option<KeepAlive>,
}

/// A value of which only the emptiness counts. An empty text or list and `null` are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whether the value is empty.
    pub is_empty: bool,
}

/// Answer of `POST /api/generate` that loaded or unloaded a model.
#[derive(Debug, Serialize)]
pub struct GenerateResponse {
    /// Requested name of the model, or the name of the fallback that was loaded.
    pub model: String,
    /// Time of the answer.
    pub created_at: String,
    /// Constant empty text.
    pub response: &'static str,
    /// Constant `true`.
    pub done: bool,
    /// `load` or `unload`.
    pub done_reason: &'static str,
}

/// Answer of `POST /api/chat` that loaded or unloaded a model.
#[derive(Debug, Serialize)]
pub struct ChatResponse {
    /// Requested name of the model, or the name of the fallback that was loaded.
    pub model: String,
    /// Time of the answer.
    pub created_at: String,
    /// Message without contents.
    pub message: EmptyMessage,
    /// Constant `true`.
    pub done: bool,
    /// `load` or `unload`.
    pub done_reason: &'static str,
}

/// A message without contents.
#[derive(Debug, Serialize)]
pub struct EmptyMessage {
    /// Constant `assistant`.
    pub role: &'static str,
    /// Constant empty text.
    pub content: &'static str,
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
    /// Task of the model: `embedding` or `rerank`.
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

impl<'de> Deserialize<'de> for Contents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentsVisitor)
    }
}

struct ContentsVisitor;

impl<'de> Visitor<'de> for ContentsVisitor {
    type Value = Contents;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Contents, E> {
        Ok(Contents { is_empty: true })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Contents, E> {
        Ok(Contents { is_empty: text.is_empty() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Contents, A::Error> {
        let mut is_empty = true;
        while items.next_element::<IgnoredAny>()?.is_some() {
            is_empty = false;
        }
        Ok(Contents { is_empty })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Contents, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Contents { is_empty: false })
    }
}
