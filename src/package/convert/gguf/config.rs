//! Builds `config.json` from the metadata of a GGUF file.
//!
//! The keys and their defaults are those of llama.cpp:
//! <https://github.com/ggml-org/llama.cpp/blob/b6500/src/llama-arch.cpp>. A setting that changes
//! the arithmetic in a way that the family does not have is an error.

use serde_json::{Value, json};

use super::super::file::quoted;
use super::names::Names;
use super::reader::{Fault, Gguf};
use crate::package::manifest::MAX_SEQUENCE_LENGTH;

/// Padding id of RoBERTa and XLM-RoBERTa. Their positions begin behind it.
const PADDING_ID: u64 = 1;
/// Number of rows of the position table of RoBERTa that no token uses. The converter removes them.
pub(super) const UNUSED_POSITIONS: usize = 2;
/// Base of the rotations in layers with a window, if the file has none.
const LOCAL_THETA: f64 = 10_000.0;

/// Family of the encoder in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    DistilBert,
    EuroBert,
    Gemma3,
    JinaBert,
    ModernBert,
    NomicBert,
    Qwen3,
    Roberta,
    XlmRoberta,
}

/// Names of the architectures in files.
const ARCHITECTURES: [&str; 7] =
    ["bert", "eurobert", "gemma-embedding", "jina-bert-v2", "modern-bert", "nomic-bert", "qwen3"];

impl Family {
    /// Determines the family from the architecture, the tokenizer and the tensors of the file.
    fn of(file: &Gguf<'_>, architecture: &str) -> Result<Self, Fault> {
        Ok(match architecture {
            "bert" => match file.text("tokenizer.ggml.model")? {
                Some("gpt2") => Self::Roberta,
                Some("t5") => Self::XlmRoberta,
                _ if file.tensors.contains_key("token_types.weight") => Self::Bert,
                _ => Self::DistilBert,
            },
            "eurobert" => Self::EuroBert,
            "gemma-embedding" => Self::Gemma3,
            "jina-bert-v2" => Self::JinaBert,
            "modern-bert" => Self::ModernBert,
            "nomic-bert" => Self::NomicBert,
            "qwen3" => Self::Qwen3,
            other => {
                return Err(format!(
                    "general.architecture {} is not one of {}",
                    quoted(other),
                    ARCHITECTURES.join(", ")
                ));
            }
        })
    }

    /// Returns the name of the architecture in manifests, which is also the `model_type`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bert | Self::JinaBert => "bert",
            Self::DistilBert => "distilbert",
            Self::EuroBert => "eurobert",
            Self::Gemma3 => "gemma3_text",
            Self::ModernBert => "modernbert",
            Self::NomicBert => "nomic_bert",
            Self::Qwen3 => "qwen3",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    pub(super) const fn names(self) -> Names {
        match self {
            Self::Bert | Self::Roberta | Self::XlmRoberta => Names::BERT,
            Self::DistilBert => Names::DISTILBERT,
            Self::EuroBert | Self::Qwen3 => Names::DECODER,
            Self::Gemma3 => Names::GEMMA,
            Self::JinaBert => Names::JINA_BERT,
            Self::ModernBert => Names::MODERN_BERT,
            Self::NomicBert => Names::NOMIC_BERT,
        }
    }

    /// Returns whether the position table lacks the rows up to the padding id.
    pub(super) const fn counts_from_padding(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta)
    }
}

/// Shape of the encoder in a file.
pub(super) struct Shape {
    pub(super) family: Family,
    pub(super) hidden_size: usize,
    pub(super) max_sequence_length: usize,
    /// Content of `config.json`.
    pub(super) config: Value,
    /// Number of the pooling in llama.cpp, if the file has it.
    pub(super) pooling: Option<u64>,
}

/// Metadata of the architecture of a file.
struct Keys<'a, 'f> {
    file: &'a Gguf<'f>,
    architecture: &'f str,
}

impl Keys<'_, '_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn optional(&self, key: &str) -> Result<Option<u64>, Fault> {
        self.file.unsigned(&self.name(key))
    }

    fn number(&self, key: &str) -> Result<u64, Fault> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    fn fraction(&self, key: &str) -> Result<f64, Fault> {
        self.file.float(&self.name(key))?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Fault {
        format!("the key {} is missing", self.name(key))
    }

    /// Checks that the number `key`, if the file has it, is `expected`.
    fn check(&self, key: &str, expected: u64) -> Result<(), Fault> {
        match self.optional(key)? {
            Some(found) if found != expected => {
                Err(format!("{} is {found}; only {expected} is supported", self.name(key)))
            }
            _ => Ok(()),
        }
    }

    /// Checks the settings that the engine does not have.
    fn check_arithmetic(&self) -> Result<(), Fault> {
        let key = self.name("rope.scaling.type");
        match self.file.text(&key)? {
            None | Some("none") => Ok(()),
            Some(other) => Err(format!("{key} {} is not supported", quoted(other))),
        }
    }

    /// Returns the width of a head, if the file has it.
    fn head(&self) -> Result<Option<u64>, Fault> {
        let head = self.optional("attention.key_length")?;
        if let Some(head) = head {
            self.check("attention.value_length", head)?;
            self.check("rope.dimension_count", head)?;
        }
        Ok(head)
    }

    /// Returns the kinds of the layers in a family in which every `pattern`-th layer sees the whole
    /// text: the first one of them, or the last one.
    fn layer_types(&self, layers: u64, pattern: u64, full_first: bool) -> Result<Value, Fault> {
        const KEY: &str = "attention.sliding_window_pattern";
        let kind = |local: bool| if local { "sliding_attention" } else { "full_attention" };
        if let Some(listed) = self.file.list(&self.name(KEY)) {
            let local = listed.integers().map(|list| list.map(|local| kind(local != 0)));
            let local = local.ok_or_else(|| format!("{} is not a list", self.name(KEY)))?;
            return Ok(local.take(MAX_LAYERS).collect());
        }
        let pattern = match self.optional(KEY)?.unwrap_or(pattern) {
            0 => return Err(format!("{} is 0", self.name(KEY))),
            pattern => pattern,
        };
        let full = if full_first { 0 } else { pattern - 1 };
        // The engine refuses more layers than this, with a message.
        let layers = layers.min(MAX_LAYERS as u64);
        Ok((0..layers).map(|index| kind(index % pattern != full)).collect())
    }
}

/// Maximum number of kinds of layers in the built file, more than the engine accepts.
const MAX_LAYERS: usize = 1024;

impl Shape {
    /// Reads the shape of the encoder in `file`.
    ///
    /// # Errors
    /// When the file contains another kind of model, or a key is missing or invalid.
    pub(super) fn read(file: &Gguf<'_>) -> Result<Self, Fault> {
        check_whole(file)?;
        let architecture = file.text("general.architecture")?;
        let architecture =
            architecture.ok_or_else(|| "the key general.architecture is missing".to_owned())?;
        let family = Family::of(file, architecture)?;
        let keys = Keys { file, architecture };
        keys.check_arithmetic()?;
        let words = file.tensors.get("token_embd.weight").map(|tensor| tensor.shape.as_slice());
        let Some(&[vocab_size, hidden_size]) = words else {
            return Err("it has no matrix token_embd.weight".to_owned());
        };
        let (layers, context) = (keys.number("block_count")?, keys.number("context_length")?);
        let mut config = json!({
            "model_type": family.name(),
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": keys.number("attention.head_count")?,
            "intermediate_size": keys.number("feed_forward_length")?,
            "max_position_embeddings": context,
        });
        if let (Some(config), Value::Object(more)) =
            (config.as_object_mut(), family.settings(&keys, layers, context)?)
        {
            config.extend(more);
        }
        let limit = usize::try_from(context).unwrap_or(usize::MAX).min(MAX_SEQUENCE_LENGTH);
        let pooling = keys.optional("pooling_type")?;
        Ok(Self { family, hidden_size, max_sequence_length: limit, config, pooling })
    }
}

/// Checks that the file is a whole model and not a part of one.
fn check_whole(file: &Gguf<'_>) -> Result<(), Fault> {
    match file.text("general.type")? {
        None | Some("model") => {}
        Some(other) => {
            let other = quoted(other);
            return Err(format!("general.type is {other}; only \"model\" is supported"));
        }
    }
    match file.unsigned("split.count")? {
        Some(count) if count > 1 => Err(format!(
            "it is one of {count} parts; join them with `llama-gguf-split --merge FIRST OUTPUT`"
        )),
        _ => Ok(()),
    }
}

impl Family {
    /// Returns the fields of `config.json` that other families do not have.
    fn settings(self, keys: &Keys<'_, '_>, layers: u64, context: u64) -> Result<Value, Fault> {
        let layer_norm = || keys.fraction("attention.layer_norm_epsilon");
        let rms_norm = || keys.fraction("attention.layer_norm_rms_epsilon");
        let theta = || keys.fraction("rope.freq_base");
        let local_theta = || {
            let theta = keys.file.float(&keys.name("rope.freq_base_swa"))?;
            Ok::<_, Fault>(theta.unwrap_or(LOCAL_THETA))
        };
        let heads = keys.number("attention.head_count")?;
        let kv_heads = keys.optional("attention.head_count_kv")?.unwrap_or(heads);
        let head = keys.head()?;
        let types = keys.file.tensors.get("token_types.weight");
        let types = types.and_then(|types| types.shape.first().copied());
        let causal = keys.file.bool(&keys.name("attention.causal"))?;
        if causal == Some(true) && self != Self::Qwen3 {
            return Err(format!(
                "{} is true; only false is supported",
                keys.name("attention.causal")
            ));
        }
        Ok(match self {
            Self::Bert | Self::DistilBert => json!({
                "hidden_act": "gelu", "layer_norm_eps": layer_norm()?, "type_vocab_size": types,
            }),
            Self::Roberta | Self::XlmRoberta => {
                let padding = keys.file.unsigned("tokenizer.ggml.padding_token_id")?;
                if padding.is_some_and(|id| id != PADDING_ID) {
                    return Err(format!("tokenizer.ggml.padding_token_id is not {PADDING_ID}"));
                }
                json!({
                    "hidden_act": "gelu", "layer_norm_eps": layer_norm()?, "type_vocab_size": types,
                    "pad_token_id": PADDING_ID,
                    "max_position_embeddings": context.saturating_add(UNUSED_POSITIONS as u64),
                })
            }
            Self::JinaBert => json!({
                "hidden_act": "gelu", "layer_norm_eps": layer_norm()?, "type_vocab_size": types,
                "position_embedding_type": "alibi", "feed_forward_type": "geglu",
            }),
            Self::NomicBert => json!({
                "hidden_act": "silu", "layer_norm_eps": layer_norm()?,
                "type_vocab_size": types.unwrap_or(0), "head_dim": head,
                "rope_parameters": { "rope_type": "default", "rope_theta": theta()? },
            }),
            Self::ModernBert => {
                let window = keys.optional("attention.sliding_window")?;
                let kinds = match window {
                    // Without a window, every layer sees the whole text.
                    None | Some(0) => keys.layer_types(layers, 1, true)?,
                    Some(_) => keys.layer_types(layers, 3, true)?,
                };
                let activation = keys.file.text(&keys.name("hidden_activation"))?;
                json!({
                    "hidden_activation": activation.unwrap_or("gelu"), "norm_eps": layer_norm()?,
                    "global_rope_theta": theta()?, "local_rope_theta": local_theta()?,
                    "local_attention": window.unwrap_or(0), "layer_types": kinds,
                })
            }
            Self::Qwen3 => json!({
                "hidden_act": "silu", "rms_norm_eps": rms_norm()?, "rope_theta": theta()?,
                "num_key_value_heads": kv_heads, "head_dim": head,
                "is_causal": causal.unwrap_or(true),
            }),
            Self::EuroBert => json!({
                "hidden_act": "silu", "rms_norm_eps": rms_norm()?, "rope_theta": theta()?,
                "num_key_value_heads": kv_heads, "head_dim": head,
            }),
            Self::Gemma3 => {
                let head = head.ok_or_else(|| keys.missing("attention.key_length"))?;
                json!({
                    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": rms_norm()?,
                    "rope_theta": theta()?, "rope_local_base_freq": local_theta()?,
                    "num_key_value_heads": kv_heads, "head_dim": head,
                    "query_pre_attn_scalar": head, "use_bidirectional_attention": true,
                    "sliding_window": keys.number("attention.sliding_window")?,
                    "layer_types": keys.layer_types(layers, 6, false)?,
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{file, key, listed, named, number, tensor, truth};
    use super::*;

    fn shape(keys: &[Vec<u8>]) -> Result<Value, Fault> {
        let bytes = file(keys, &[tensor("token_embd.weight", &[4, 3], 0)], 48);
        Shape::read(&Gguf::parse(&bytes).unwrap()).map(|shape| shape.config)
    }

    /// Returns the keys of an encoder with `architecture` and six layers, and `more`.
    fn keys(architecture: &str, more: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let name = |key: &str| format!("{architecture}.{key}");
        let fraction = |key_name: &str| key(&name(key_name), 6, &0.5_f32.to_le_bytes());
        let mut keys = vec![
            named("general.architecture", architecture),
            number(&name("block_count"), 6),
            number(&name("context_length"), 64),
            number(&name("attention.head_count"), 2),
            number(&name("feed_forward_length"), 8),
            fraction("attention.layer_norm_epsilon"),
            fraction("attention.layer_norm_rms_epsilon"),
            fraction("rope.freq_base"),
        ];
        keys.extend_from_slice(more);
        keys
    }

    #[test]
    fn kinds_of_layers_come_from_pattern_or_list() {
        let full = |kinds: &Value| -> Vec<usize> {
            let kinds = kinds.as_array().unwrap().iter().zip(0..);
            kinds.filter(|(kind, _)| **kind == "full_attention").map(|(_, index)| index).collect()
        };
        let modern = |more: &[Vec<u8>]| {
            let config = shape(&keys("modern-bert", more)).unwrap();
            full(&config["layer_types"])
        };
        let window = number("modern-bert.attention.sliding_window", 8);
        let pattern = "modern-bert.attention.sliding_window_pattern";
        assert_eq!(modern(&[]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(modern(std::slice::from_ref(&window)), [0, 3]);
        assert_eq!(modern(&[window.clone(), number(pattern, 2)]), [0, 2, 4]);
        let list = [1, 1, 0, 1, 1, 1].map(|local| vec![local]);
        assert_eq!(modern(&[window, listed(pattern, 7, &list)]), [2]);
        let head = number("gemma-embedding.attention.key_length", 2);
        let window = number("gemma-embedding.attention.sliding_window", 8);
        let config = shape(&keys("gemma-embedding", &[head, window])).unwrap();
        assert_eq!(full(&config["layer_types"]), [5]);
        assert_eq!(config["rope_local_base_freq"], 10_000.0);
    }

    #[test]
    fn positions_of_roberta_begin_behind_the_padding_id() {
        let tokenizer = named("tokenizer.ggml.model", "gpt2");
        let config = shape(&keys("bert", std::slice::from_ref(&tokenizer))).unwrap();
        assert_eq!(config["model_type"], "roberta");
        assert_eq!(config["max_position_embeddings"], 66);
        let padding = number("tokenizer.ggml.padding_token_id", 3);
        let message = shape(&keys("bert", &[tokenizer, padding])).unwrap_err();
        assert!(message.contains("padding_token_id is not 1"), "{message}");
        assert_eq!(shape(&keys("bert", &[])).unwrap()["model_type"], "distilbert");
    }

    #[test]
    fn other_models_are_refused_by_name() {
        for (architecture, more, part) in [
            ("llama", vec![], "\"llama\" is not one of bert, eurobert"),
            ("bert", vec![named("general.type", "adapter")], "general.type is \"adapter\""),
            ("bert", vec![number("split.count", 2)], "one of 2 parts"),
            ("bert", vec![truth("bert.attention.causal", true)], "attention.causal is true"),
            ("qwen3", vec![named("qwen3.rope.scaling.type", "yarn")], "scaling.type \"yarn\""),
            (
                "qwen3",
                vec![
                    number("qwen3.attention.key_length", 4),
                    number("qwen3.rope.dimension_count", 2),
                ],
                "rope.dimension_count is 2; only 4",
            ),
            ("gemma-embedding", vec![], "attention.key_length is missing"),
            (
                "modern-bert",
                vec![number("modern-bert.attention.sliding_window_pattern", 0)],
                "sliding_window_pattern is 0",
            ),
        ] {
            let message = shape(&keys(architecture, &more)).unwrap_err();
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = shape(&keys("bert", &[])[..2]).unwrap_err();
        assert!(message.contains("bert.context_length is missing"), "{message}");
        let message = shape(&[]).unwrap_err();
        assert!(message.contains("general.architecture is missing"), "{message}");
    }
}
