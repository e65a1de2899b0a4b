//! Configurations of ModernBERT.

use serde::Deserialize;

use super::rope::{LayerKind, OldTheta, RopeFile, every, layer_kinds, window};
use super::{
    AttentionConfig, EmbeddingConfig, EncoderConfig, FeedForwardConfig, HiddenActivation,
    LayerConfig, NormKind, NormPlacement, check_positions, check_sizes, layers, parse, positive,
};
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Fields of `config.json`. The defaults are those of
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/modernbert/configuration_modernbert.py>
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    hidden_activation: Option<String>,
    norm_eps: Option<f64>,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    local_attention: Option<usize>,
    /// Written before version 5 of transformers, instead of `layer_types`.
    global_attn_every_n_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    /// Written before version 5, like the next two fields, instead of `rope_parameters`.
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    rope_parameters: Option<RopeFile>,
}

/// Reads the configuration of a ModernBERT.
pub(super) fn read(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    check_sizes(&[
        ("vocab_size", file.vocab_size),
        ("hidden_size", file.hidden_size),
        ("num_attention_heads", file.num_attention_heads),
        ("intermediate_size", file.intermediate_size),
    ])?;
    check_positions(spec, "max_position_embeddings", file.max_position_embeddings)?;
    let is_full =
        every("global_attn_every_n_layers", file.global_attn_every_n_layers.unwrap_or(3), 0)?;
    let kinds = layer_kinds(file.layer_types.as_deref(), file.num_hidden_layers, is_full)?;
    let activation = file.hidden_activation.as_deref().unwrap_or("gelu");
    let feed_forward = FeedForwardConfig {
        intermediate: file.intermediate_size,
        activation: HiddenActivation::parse("hidden_activation", activation)?,
        gated: true,
        experts: None,
        bias: file.mlp_bias,
        output_bias: file.mlp_bias,
    };
    Ok(EncoderConfig {
        family: Family::ModernBert,
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        norm: match file.norm_bias {
            true => NormKind::LayerNorm,
            false => NormKind::LayerNormWithoutBias,
        },
        norm_epsilon: positive("norm_eps", file.norm_eps.unwrap_or(1e-5))?,
        placement: NormPlacement::Pre,
        embeddings: EmbeddingConfig { norm: true, ..EmbeddingConfig::words() },
        layers: layers(file.num_hidden_layers, |index| {
            Ok(LayerConfig {
                // The first layer has no norm, because the embeddings already have one.
                input_norm: index > 0,
                attention: file.attention(kinds[index])?,
                feed_forward: feed_forward.clone(),
            })
        })?,
        final_norm: true,
        relative_bias: None,
        per_layer_input: None,
        projection: None,
    })
}

impl ConfigFile {
    fn attention(&self, kind: LayerKind) -> Result<AttentionConfig, EngineError> {
        let theta = match kind {
            LayerKind::Full => OldTheta {
                field: "global_rope_theta",
                value: self.global_rope_theta,
                default: 160_000.0,
            },
            LayerKind::Local => OldTheta {
                field: "local_rope_theta",
                value: self.local_rope_theta,
                default: 10_000.0,
            },
        };
        let (parameters, scaling) = (self.rope_parameters.as_ref(), self.rope_scaling.as_ref());
        let rope = RopeFile::of_kind(parameters, kind, scaling, theta)?;
        Ok(AttentionConfig {
            window: match kind {
                LayerKind::Full => None,
                // The value in the file counts the tokens on both sides.
                LayerKind::Local => {
                    Some(window("local_attention", self.local_attention.unwrap_or(128) / 2)?)
                }
            },
            rope: Some(rope),
            bias: self.attention_bias,
            output_bias: self.attention_bias,
            ..AttentionConfig::bidirectional(self.hidden_size, self.num_attention_heads)?
        })
    }
}
