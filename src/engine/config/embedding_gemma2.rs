//! Configurations of EmbeddingGemma 2: its text encoder, alone or in a model of several media.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::rope::{LayerKind, OldTheta, RopeFile, every, layer_kinds, window};
use super::{
    AttentionConfig, EmbeddingConfig, EncoderConfig, FeedForwardConfig, HiddenActivation,
    LayerConfig, NormKind, NormPlacement, check_positions, check_sizes, layers, mismatch, parse,
    positive,
};
use crate::engine::quote::quote;
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Fields of a model of several media.
#[derive(Deserialize)]
struct OuterFile {
    text_config: Option<TextFile>,
}

/// Fields of the text encoder. The defaults are those of transformers 5.
#[derive(Deserialize)]
struct TextFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    hidden_activation: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    layer_types: Option<Vec<String>>,
    sliding_window: usize,
    sliding_window_pattern: Option<usize>,
    rope_parameters: Option<RopeFile>,
    hidden_size_per_layer_input: usize,
    embedding_dim: usize,
    /// Sizes of single layers, by the number of the layer.
    per_layer_config: Option<BTreeMap<String, LayerSizes>>,
}

/// Sizes of one layer that differ from those of the other layers.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerSizes {
    head_dim: Option<usize>,
    num_key_value_heads: Option<usize>,
}

/// Sizes of the layers without a window in a file without `per_layer_config`.
const FULL_LAYER: LayerSizes = LayerSizes { head_dim: Some(512), num_key_value_heads: Some(1) };

/// Reads the configuration of the text encoder of an EmbeddingGemma 2.
pub(super) fn read(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let outer: OuterFile = parse(bytes, spec)?;
    match outer.text_config {
        Some(text) => text.encoder(spec),
        None => parse::<TextFile>(bytes, spec)?.encoder(spec),
    }
}

impl TextFile {
    fn encoder(&self, spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("hidden_size_per_layer_input", self.hidden_size_per_layer_input),
            ("embedding_dim", self.embedding_dim),
        ])?;
        let positions = self.max_position_embeddings.unwrap_or(262_144);
        check_positions(spec, "max_position_embeddings", positions)?;
        let count = self.num_hidden_layers;
        let is_full = every("sliding_window_pattern", self.sliding_window_pattern.unwrap_or(6), 1)?;
        // transformers gives the last layer no window, also against the file.
        let mut kinds = layer_kinds(self.layer_types.as_deref(), count, is_full)?;
        if let Some(last) = kinds.last_mut() {
            *last = LayerKind::Full;
        }
        let sizes = self.layer_sizes(&kinds)?;
        let activation = self.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh");
        let feed_forward = FeedForwardConfig {
            intermediate: self.intermediate_size,
            activation: HiddenActivation::parse("hidden_activation", activation)?,
            gated: true,
            experts: None,
            bias: false,
            output_bias: false,
        };
        Ok(EncoderConfig {
            family: Family::EmbeddingGemma2,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            norm: NormKind::Rms,
            norm_epsilon: positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?,
            placement: NormPlacement::Sandwich,
            embeddings: EmbeddingConfig::scaled_words(self.hidden_size),
            layers: layers(count, |index| {
                Ok(LayerConfig {
                    input_norm: true,
                    attention: self.attention(kinds[index], sizes[index])?,
                    feed_forward: feed_forward.clone(),
                })
            })?,
            final_norm: true,
            relative_bias: None,
            per_layer_input: Some(self.hidden_size_per_layer_input),
            projection: Some(self.embedding_dim),
        })
    }

    /// Returns the sizes of each layer in which it differs.
    fn layer_sizes(&self, kinds: &[LayerKind]) -> Result<Vec<LayerSizes>, EngineError> {
        let mut sizes = vec![LayerSizes { head_dim: None, num_key_value_heads: None }; kinds.len()];
        let Some(differing) = &self.per_layer_config else {
            for (sizes, kind) in sizes.iter_mut().zip(kinds) {
                if *kind == LayerKind::Full {
                    *sizes = FULL_LAYER;
                }
            }
            return Ok(sizes);
        };
        for (name, of_layer) in differing {
            // Where there are ten or more layers, the numbers have leading zeros.
            let layer = name.parse().ok().and_then(|index: usize| sizes.get_mut(index));
            *layer.ok_or_else(|| {
                let name = quote(name);
                mismatch(format!(
                    "per_layer_config has layer {name}, but num_hidden_layers is {}",
                    kinds.len()
                ))
            })? = *of_layer;
        }
        Ok(sizes)
    }

    fn attention(
        &self,
        kind: LayerKind,
        sizes: LayerSizes,
    ) -> Result<AttentionConfig, EngineError> {
        let head = sizes.head_dim.unwrap_or(self.head_dim);
        let kv_heads = sizes.num_key_value_heads.unwrap_or(self.num_key_value_heads);
        check_sizes(&[("head_dim", head), ("num_key_value_heads", kv_heads)])?;
        let default = match kind {
            LayerKind::Full => 1_000_000.0,
            LayerKind::Local => 10_000.0,
        };
        let theta = OldTheta { field: "rope_theta", value: None, default };
        let rope = RopeFile::of_kind(self.rope_parameters.as_ref(), kind, None, theta)?;
        Ok(AttentionConfig {
            heads: self.num_attention_heads,
            kv_heads,
            head,
            scale: 1.0,
            causal: false,
            window: match kind {
                LayerKind::Full => None,
                LayerKind::Local => Some(window("sliding_window", self.sliding_window)?),
            },
            rope: Some(rope),
            qk_norm: true,
            v_norm: true,
            bias: self.attention_bias,
            output_bias: self.attention_bias,
        })
    }
}
