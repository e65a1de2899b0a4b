//! Configurations of Qwen3, EuroBERT and Gemma 3: families in the style of language models.

use serde::Deserialize;

use super::rope::{LayerKind, OldTheta, RopeFile, every, layer_kinds, window};
use super::{
    AttentionConfig, EmbeddingConfig, EncoderConfig, FeedForwardConfig, HiddenActivation,
    LayerConfig, NormKind, NormPlacement, RopeConfig, check_positions, check_sizes, head_width,
    layers, mismatch, parse, positive, score_scale,
};
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Fields of `config.json`. Each family has only some of the optional ones. The defaults are those
/// of transformers:
/// <https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gemma3/configuration_gemma3.py>
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    /// Name in Qwen3 and EuroBERT.
    hidden_act: Option<String>,
    /// Name in Gemma 3.
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    is_causal: Option<bool>,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    #[serde(rename = "_sliding_window_pattern")]
    old_sliding_window_pattern: Option<usize>,
    use_bidirectional_attention: Option<bool>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    rope_parameters: Option<RopeFile>,
    /// Written before version 5 of transformers, like the next two fields.
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<RopeFile>,
}

/// Reads the configuration of a Qwen3.
pub(super) fn read_qwen3(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    let head = file.head_dim.unwrap_or(128);
    file.check(spec, head)?;
    let causal = file.is_causal.unwrap_or(true);
    if causal && file.use_bidirectional_attention == Some(true) {
        return Err(mismatch("use_bidirectional_attention is true, but is_causal is not false"));
    }
    let first_local = match (file.use_sliding_window, file.sliding_window) {
        (true, Some(_)) => file.max_window_layers.unwrap_or(28),
        _ => file.num_hidden_layers,
    };
    let kinds = layer_kinds(file.layer_types.as_deref(), file.num_hidden_layers, |index| {
        index < first_local
    })?;
    let rope = file.rope_of_all_layers()?;
    let feed_forward = file.feed_forward("hidden_act", file.hidden_act.as_deref(), "silu")?;
    let layers = layers(file.num_hidden_layers, |index| {
        let attention = AttentionConfig {
            causal,
            window: match kinds[index] {
                LayerKind::Full => None,
                LayerKind::Local => Some(file.local_window(causal)?),
            },
            rope: Some(rope.clone()),
            qk_norm: true,
            ..file.attention(head, score_scale(head))
        };
        Ok(LayerConfig { input_norm: true, attention, feed_forward: feed_forward.clone() })
    })?;
    file.encoder(Family::Qwen3, 1e-6, layers)
}

/// Reads the configuration of a EuroBERT.
pub(super) fn read_eurobert(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    check_sizes(&[("num_attention_heads", file.num_attention_heads)])?;
    let head = match file.head_dim {
        Some(head) => head,
        None => head_width(file.hidden_size, file.num_attention_heads)?,
    };
    file.check(spec, head)?;
    let layer = LayerConfig {
        input_norm: true,
        attention: AttentionConfig {
            rope: Some(file.rope_of_all_layers()?),
            ..file.attention(head, score_scale(head))
        },
        feed_forward: FeedForwardConfig {
            bias: file.mlp_bias,
            output_bias: file.mlp_bias,
            ..file.feed_forward("hidden_act", file.hidden_act.as_deref(), "silu")?
        },
    };
    let layers = layers(file.num_hidden_layers, |_| Ok(layer.clone()))?;
    file.encoder(Family::EuroBert, 1e-5, layers)
}

/// Reads the configuration of a Gemma 3.
pub(super) fn read_gemma3(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    let head = file.head_dim.unwrap_or(256);
    file.check(spec, head)?;
    if let Some(cap) = file.attn_logit_softcapping {
        return Err(mismatch(format!("attn_logit_softcapping {cap} is not supported")));
    }
    let causal = !file.use_bidirectional_attention.unwrap_or(false);
    if causal && file.is_causal == Some(false) {
        return Err(mismatch("is_causal is false, but use_bidirectional_attention is not true"));
    }
    let is_full = match (file.sliding_window_pattern, file.old_sliding_window_pattern) {
        (None, Some(pattern)) => every("_sliding_window_pattern", pattern, 1)?,
        (pattern, _) => every("sliding_window_pattern", pattern.unwrap_or(6), 1)?,
    };
    let kinds = layer_kinds(file.layer_types.as_deref(), file.num_hidden_layers, is_full)?;
    let scalar = positive("query_pre_attn_scalar", file.query_pre_attn_scalar.unwrap_or(256.0))?;
    #[expect(clippy::cast_possible_truncation, reason = "the engine computes in f32")]
    let scale = positive("query_pre_attn_scalar to the power −0.5", scalar.powf(-0.5))? as f32;
    let activation = file.hidden_activation.as_deref();
    let feed_forward = file.feed_forward("hidden_activation", activation, "gelu_pytorch_tanh")?;
    let layers = layers(file.num_hidden_layers, |index| {
        let kind = kinds[index];
        let (field, value, default, scaling) = match kind {
            LayerKind::Full => ("rope_theta", file.rope_theta, 1e6, file.rope_scaling.as_ref()),
            LayerKind::Local => ("rope_local_base_freq", file.rope_local_base_freq, 1e4, None),
        };
        let theta = OldTheta { field, value, default };
        let parameters = file.rope_parameters.as_ref();
        let attention = AttentionConfig {
            causal,
            window: match kind {
                LayerKind::Full => None,
                LayerKind::Local if causal => Some(file.local_window(causal)?),
                // The value in the file counts the tokens on both sides.
                LayerKind::Local => {
                    Some(window("sliding_window", file.sliding_window.unwrap_or(4096) / 2)?)
                }
            },
            rope: Some(RopeFile::of_kind(parameters, kind, scaling, theta)?),
            qk_norm: true,
            ..file.attention(head, scale)
        };
        Ok(LayerConfig { input_norm: true, attention, feed_forward: feed_forward.clone() })
    })?;
    let config = file.encoder(Family::Gemma3, 1e-6, layers)?;
    Ok(EncoderConfig {
        norm: NormKind::RmsPlusOne,
        placement: NormPlacement::Sandwich,
        embeddings: EmbeddingConfig::scaled_words(config.hidden_size),
        ..config
    })
}

impl ConfigFile {
    /// Checks the sizes, with heads of width `head`.
    fn check(&self, spec: &ModelSpec, head: usize) -> Result<(), EngineError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", head),
            ("intermediate_size", self.intermediate_size),
        ])?;
        check_positions(spec, "max_position_embeddings", self.max_position_embeddings)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns an attention that sees the whole text and does not rotate or normalize heads.
    fn attention(&self, head: usize, scale: f32) -> AttentionConfig {
        AttentionConfig {
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head,
            scale,
            causal: false,
            window: None,
            rope: None,
            qk_norm: false,
            v_norm: false,
            bias: self.attention_bias,
            output_bias: self.attention_bias,
        }
    }

    /// Returns a feed-forward layer without biases, with the activation `name` of `field`.
    fn feed_forward(
        &self,
        field: &str,
        name: Option<&str>,
        default: &str,
    ) -> Result<FeedForwardConfig, EngineError> {
        Ok(FeedForwardConfig {
            intermediate: self.intermediate_size,
            activation: HiddenActivation::parse(field, name.unwrap_or(default))?,
            gated: true,
            experts: None,
            bias: false,
            output_bias: false,
        })
    }

    fn rope_of_all_layers(&self) -> Result<RopeConfig, EngineError> {
        let (parameters, scaling) = (self.rope_parameters.as_ref(), self.rope_scaling.as_ref());
        let theta = OldTheta { field: "rope_theta", value: self.rope_theta, default: 10_000.0 };
        RopeFile::of_all_layers(parameters, scaling, theta)
    }

    /// Returns the largest distance in a layer with a window. In a causal layer, the value in the
    /// file counts the token itself too.
    fn local_window(&self, causal: bool) -> Result<usize, EngineError> {
        let size = window("sliding_window", self.sliding_window.unwrap_or(4096))?;
        if !causal {
            return Ok(size);
        }
        size.checked_sub(1).ok_or_else(|| mismatch("sliding_window is 0"))
    }

    /// Returns the encoder with `layers`, and with the norms and embeddings of Qwen3.
    fn encoder(
        &self,
        family: Family,
        default_epsilon: f64,
        layers: Vec<LayerConfig>,
    ) -> Result<EncoderConfig, EngineError> {
        Ok(EncoderConfig {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            norm: NormKind::Rms,
            norm_epsilon: positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(default_epsilon))?,
            placement: NormPlacement::Pre,
            embeddings: EmbeddingConfig::words(),
            layers,
            final_norm: true,
            relative_bias: None,
            per_layer_input: None,
            projection: None,
        })
    }
}
