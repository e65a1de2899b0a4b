//! Configurations of versions 2 and 3 of DeBERTa, whose `model_type` is the same.

use serde::Deserialize;

use super::{
    AttentionConfig, DistanceBuckets, EmbeddingConfig, EncoderConfig, FeedForwardConfig,
    HiddenActivation, LayerConfig, NormKind, NormPlacement, RelativeBias, check_positions,
    check_sizes, layers, mismatch, parse, positive,
};
use crate::engine::quote::quote;
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Fields of `config.json`. The defaults are those of
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/deberta_v2/configuration_deberta_v2.py>
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    layer_norm_eps: Option<f64>,
    position_biased_input: Option<bool>,
    #[serde(default)]
    relative_attention: bool,
    max_relative_positions: Option<i64>,
    position_buckets: Option<i64>,
    #[serde(default)]
    share_att_key: bool,
    pos_att_type: Option<Terms>,
    norm_rel_ebd: Option<String>,
    conv_kernel_size: Option<usize>,
    embedding_size: Option<usize>,
    attention_head_size: Option<usize>,
}

/// Terms of the score that depend on the distance of two tokens. Older files have one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Terms {
    One(String),
    Many(Vec<String>),
}

impl Terms {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::One(names) => names.split('|').map(str::trim).collect(),
            Self::Many(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// Reads the configuration of a DeBERTa.
pub(super) fn read(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    check_sizes(&[
        ("vocab_size", file.vocab_size),
        ("hidden_size", file.hidden_size),
        ("num_attention_heads", file.num_attention_heads),
        ("intermediate_size", file.intermediate_size),
        ("max_position_embeddings", file.max_position_embeddings),
        // 0 is allowed: the model has no token types.
        ("type_vocab_size", file.type_vocab_size.max(1)),
    ])?;
    file.check_arithmetic()?;
    check_positions(spec, "max_position_embeddings", file.max_position_embeddings)?;
    let attention = AttentionConfig::bidirectional(file.hidden_size, file.num_attention_heads)?;
    if let Some(head) = file.attention_head_size.filter(|&head| head != attention.head) {
        return Err(mismatch(format!(
            "attention_head_size is {head}, expected {}",
            attention.head
        )));
    }
    // A score has three terms, and its factor is that of a head of three times the width.
    let attention = AttentionConfig { scale: attention.scale / 3_f32.sqrt(), ..attention };
    let feed_forward = FeedForwardConfig {
        intermediate: file.intermediate_size,
        activation: HiddenActivation::parse("hidden_act", &file.hidden_act)?,
        gated: false,
        experts: None,
        bias: true,
        output_bias: true,
    };
    let has_positions = file.position_biased_input.unwrap_or(true);
    Ok(EncoderConfig {
        family: Family::DebertaV2,
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        norm: NormKind::LayerNorm,
        norm_epsilon: positive("layer_norm_eps", file.layer_norm_eps.unwrap_or(1e-7))?,
        placement: NormPlacement::Post,
        embeddings: EmbeddingConfig {
            positions: if has_positions { file.max_position_embeddings } else { 0 },
            types: file.type_vocab_size,
            norm: true,
            ..EmbeddingConfig::words()
        },
        layers: layers(file.num_hidden_layers, |_| {
            Ok(LayerConfig {
                input_norm: false,
                attention: attention.clone(),
                feed_forward: feed_forward.clone(),
            })
        })?,
        final_norm: false,
        relative_bias: Some(RelativeBias::Disentangled(file.buckets()?)),
        per_layer_input: None,
        projection: None,
    })
}

impl ConfigFile {
    /// Checks the settings that select arithmetic that the encoder does not implement.
    fn check_arithmetic(&self) -> Result<(), EngineError> {
        let flags = [
            ("relative_attention", self.relative_attention),
            ("share_att_key", self.share_att_key),
        ];
        if let Some((name, _)) = flags.iter().find(|(_, is_set)| !is_set) {
            return Err(mismatch(format!("{name} is false; only true is supported")));
        }
        let mut terms = self.pos_att_type.as_ref().map(Terms::names).unwrap_or_default();
        terms.sort_unstable();
        if terms != ["c2p", "p2c"] {
            let terms = quote(&terms.join("|"));
            return Err(mismatch(format!(
                "pos_att_type is {terms}; only \"c2p|p2c\" is supported"
            )));
        }
        let norm = self.norm_rel_ebd.as_deref().unwrap_or("none");
        if norm != "layer_norm" {
            let norm = quote(norm);
            return Err(mismatch(format!(
                "norm_rel_ebd is {norm}; only \"layer_norm\" is supported"
            )));
        }
        if let Some(size) = self.conv_kernel_size.filter(|&size| size > 0) {
            return Err(mismatch(format!(
                "conv_kernel_size is {size}; layers with a convolution are not supported"
            )));
        }
        match self.embedding_size.filter(|&size| size != self.hidden_size) {
            Some(size) => Err(mismatch(format!(
                "embedding_size is {size}; only hidden_size {} is supported",
                self.hidden_size
            ))),
            None => Ok(()),
        }
    }

    fn buckets(&self) -> Result<DistanceBuckets, EngineError> {
        let buckets = self.position_buckets.unwrap_or(-1);
        let farthest = match self.max_relative_positions {
            Some(positions) if positions > 0 => usize::try_from(positions).unwrap_or(usize::MAX),
            _ => self.max_position_embeddings,
        };
        check_sizes(&[("max_relative_positions", farthest)])?;
        let count = usize::try_from(buckets).unwrap_or(0);
        // The logarithmic buckets are those between half of them and the largest distance.
        if count < 2 || count / 2 + 1 >= farthest {
            return Err(mismatch(format!(
                "position_buckets is {buckets}; expected at least 2, and less than twice the \
                 largest distance {farthest}"
            )));
        }
        Ok(DistanceBuckets { count, farthest })
    }
}
