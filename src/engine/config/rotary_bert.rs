//! Configurations of nomic-bert and GTE: BERT with rotary positions, and with feed-forward layers
//! that are gated or, in nomic-bert, have experts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::rope::{OldTheta, RopeFile};
use super::{
    AttentionConfig, EmbeddingConfig, EncoderConfig, ExpertsConfig, FeedForwardConfig,
    HiddenActivation, LayerConfig, MAX_EXPERTS, MAX_SIZE, NormKind, NormPlacement, RopeConfig,
    check_at_most, check_not_zero, check_positions, check_sizes, head_width, layers, mismatch,
    parse, positive, score_scale,
};
use crate::engine::quote::quote;
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Sizes that both families have, under any name.
struct Sizes {
    family: Family,
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    /// Width of a head, if the file has it.
    head: Option<usize>,
    intermediate: usize,
    positions: usize,
    types: usize,
    epsilon: f64,
}

/// Settings of the layers of both families, beside their sizes.
struct Layers {
    activation: HiddenActivation,
    gated: bool,
    /// Experts, for models that have them.
    experts: Option<ExpertLayers>,
    /// Whether queries, keys, values and the output product of attention have a bias.
    attention_bias: bool,
    /// Whether the first product of a feed-forward layer has a bias.
    bias: bool,
    /// Whether the second product of a feed-forward layer has a bias.
    output_bias: bool,
}

/// Experts of a model, and the layers that have them.
struct ExpertLayers {
    experts: ExpertsConfig,
    /// Distance between two layers with experts, 2 or more. The first one is layer 1.
    every: usize,
}

impl Layers {
    /// Returns `layer` with the settings of layer `index` for its feed-forward layer.
    fn with_experts(&self, mut layer: LayerConfig, index: usize) -> LayerConfig {
        let has_experts = |layers: &&ExpertLayers| index % layers.every == 1;
        if let Some(ExpertLayers { experts, .. }) = self.experts.as_ref().filter(has_experts) {
            let feed_forward = &mut layer.feed_forward;
            feed_forward.experts = Some(*experts);
            // The products of the experts have no biases, and their sum always has one.
            (feed_forward.bias, feed_forward.output_bias) = (false, true);
        }
        layer
    }
}

impl Sizes {
    /// Checks the sizes and returns the width of a head.
    fn check(&self, spec: &ModelSpec) -> Result<usize, EngineError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.intermediate),
            ("head_dim", self.head.unwrap_or(1)),
        ])?;
        check_at_most("type_vocab_size", self.types, MAX_SIZE)?;
        check_positions(spec, "max_position_embeddings", self.positions)?;
        self.head.map_or_else(|| head_width(self.hidden_size, self.heads), Ok)
    }

    /// Returns the encoder with these sizes, which have been checked, and heads of width `head`.
    fn encoder(
        self,
        head: usize,
        rope: RopeConfig,
        settings: &Layers,
    ) -> Result<EncoderConfig, EngineError> {
        let layer = LayerConfig {
            input_norm: false,
            attention: AttentionConfig {
                heads: self.heads,
                kv_heads: self.heads,
                head,
                scale: score_scale(head),
                causal: false,
                window: None,
                rope: Some(rope),
                qk_norm: false,
                v_norm: false,
                bias: settings.attention_bias,
                output_bias: settings.attention_bias,
            },
            feed_forward: FeedForwardConfig {
                intermediate: self.intermediate,
                activation: settings.activation,
                gated: settings.gated,
                experts: None,
                bias: settings.bias,
                output_bias: settings.output_bias,
            },
        };
        Ok(EncoderConfig {
            family: self.family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            norm: NormKind::LayerNorm,
            norm_epsilon: positive("layer_norm_eps", self.epsilon)?,
            placement: NormPlacement::Post,
            embeddings: EmbeddingConfig {
                types: self.types,
                norm: true,
                ..EmbeddingConfig::words()
            },
            layers: layers(self.layers, |index| Ok(settings.with_experts(layer.clone(), index)))?,
            final_norm: false,
            relative_bias: None,
            per_layer_input: None,
            projection: None,
        })
    }
}

/// Fields of nomic-bert as transformers 5 writes them.
#[derive(Deserialize)]
struct NomicFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    rope_parameters: Option<RopeFile>,
}

/// Fields of nomic-bert in the published models, which have custom code. A field without a default
/// here has another default in that code than in transformers, and every published file has it.
#[derive(Deserialize)]
struct PublishedNomicFile {
    vocab_size: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    n_positions: usize,
    activation_function: String,
    type_vocab_size: usize,
    layer_norm_epsilon: f64,
    rotary_emb_base: f64,
    rotary_emb_fraction: f64,
    rotary_emb_scale_base: Option<f64>,
    rotary_scaling_factor: Option<f64>,
    max_trained_positions: Option<usize>,
    num_experts: Option<usize>,
    moe_top_k: Option<usize>,
    moe_every_n_layers: Option<i64>,
    #[serde(default)]
    moe_normalize_expert_weights: bool,
    #[serde(default)]
    expert_choice_router: bool,
    num_shared_experts: Option<usize>,
    ffn_div: Option<f64>,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default)]
    causal: bool,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    use_rms_norm: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

/// Reads the configuration of a nomic-bert.
pub(super) fn read_nomic(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let fields: BTreeMap<String, IgnoredAny> = parse(bytes, spec)?;
    if fields.contains_key("n_embd") {
        parse::<PublishedNomicFile>(bytes, spec)?.encoder(spec)
    } else {
        parse::<NomicFile>(bytes, spec)?.encoder(spec)
    }
}

impl NomicFile {
    fn encoder(self, spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
        let theta = OldTheta { field: "rope_theta", value: None, default: 1000.0 };
        let rope = RopeFile::of_all_layers(self.rope_parameters.as_ref(), None, theta)?;
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        let settings = Layers {
            activation: HiddenActivation::parse("hidden_act", activation)?,
            gated: true,
            experts: None,
            attention_bias: false,
            bias: false,
            output_bias: false,
        };
        let sizes = Sizes {
            family: Family::NomicBert,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            head: self.head_dim,
            intermediate: self.intermediate_size,
            positions: self.max_position_embeddings,
            types: self.type_vocab_size.unwrap_or(2),
            epsilon: self.layer_norm_eps.unwrap_or(1e-12),
        };
        let head = sizes.check(spec)?;
        sizes.encoder(head, rope, &settings)
    }
}

impl PublishedNomicFile {
    fn encoder(self, spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
        self.check_arithmetic(spec)?;
        check_sizes(&[
            ("n_embd", self.n_embd),
            ("n_head", self.n_head),
            ("n_layer", self.n_layer),
            ("n_inner", self.n_inner),
        ])?;
        check_positions(spec, "n_positions", self.n_positions)?;
        let (activation, gated) = match &*self.activation_function {
            "swiglu" => (HiddenActivation::Silu, true),
            "geglu" => (HiddenActivation::Gelu, true),
            "gelu" => (HiddenActivation::Gelu, false),
            other => {
                let other = quote(other);
                return Err(mismatch(format!(
                    "activation_function is {other}; known: geglu, gelu, swiglu"
                )));
            }
        };
        let theta = positive("rotary_emb_base", self.rotary_emb_base)?;
        let settings = Layers {
            activation,
            gated,
            experts: self.experts(gated)?,
            attention_bias: self.qkv_proj_bias,
            bias: self.mlp_fc1_bias,
            output_bias: self.mlp_fc2_bias,
        };
        let sizes = Sizes {
            family: Family::NomicBert,
            vocab_size: self.vocab_size,
            hidden_size: self.n_embd,
            layers: self.n_layer,
            heads: self.n_head,
            head: None,
            intermediate: self.n_inner,
            positions: self.n_positions,
            types: self.type_vocab_size,
            epsilon: positive("layer_norm_epsilon", self.layer_norm_epsilon)?,
        };
        let head = sizes.check(spec)?;
        sizes.encoder(head, RopeConfig { theta, divisor: 1.0 }, &settings)
    }

    /// Returns the experts and the layers that have them, if there are any. `gated` is whether the
    /// other feed-forward layers are gated.
    fn experts(&self, gated: bool) -> Result<Option<ExpertLayers>, EngineError> {
        let every = self.moe_every_n_layers.and_then(|every| usize::try_from(every).ok());
        // Layer `index` has experts if `index % every` is 1, which it never is for an `every` of 1.
        let Some(every) = every.filter(|&every| every > 1) else { return Ok(None) };
        let [count, used] = [self.num_experts, self.moe_top_k].map(|number| number.unwrap_or(0));
        check_not_zero(&[("num_experts", count), ("moe_top_k", used)])?;
        check_at_most("num_experts", count, MAX_EXPERTS)?;
        check_at_most("moe_top_k", used, count)?;
        for (field, value) in [
            ("moe_normalize_expert_weights", self.moe_normalize_expert_weights),
            ("expert_choice_router", self.expert_choice_router),
        ] {
            if value {
                return Err(mismatch(format!("{field} is true; only false is supported")));
            }
        }
        if let Some(shared) = self.num_shared_experts.filter(|&shared| shared > 0) {
            return Err(mismatch(format!("num_shared_experts is {shared}; only 0 is supported")));
        }
        if let Some(divisor) = self.ffn_div.filter(|&divisor| divisor != 1.0) {
            return Err(mismatch(format!("ffn_div is {divisor}; only 1 is supported")));
        }
        if gated {
            let activation = quote(&self.activation_function);
            return Err(mismatch(format!(
                "activation_function is {activation}; experts are supported only with \"gelu\""
            )));
        }
        Ok(Some(ExpertLayers { experts: ExpertsConfig { count, used }, every }))
    }

    /// Checks the settings that select arithmetic that the encoder does not implement.
    fn check_arithmetic(&self, spec: &ModelSpec) -> Result<(), EngineError> {
        let switches = [
            ("rotary_emb_interleaved", self.rotary_emb_interleaved),
            ("causal", self.causal),
            ("prenorm", self.prenorm),
            ("parallel_block", self.parallel_block),
            ("use_rms_norm", self.use_rms_norm),
            ("scale_attn_by_inverse_layer_idx", self.scale_attn_by_inverse_layer_idx),
        ];
        if let Some((field, _)) = switches.into_iter().find(|switch| switch.1) {
            return Err(mismatch(format!("{field} is true; only false is supported")));
        }
        if let Some(base) = self.rotary_emb_scale_base {
            return Err(mismatch(format!("rotary_emb_scale_base {base} is not supported")));
        }
        if self.rotary_emb_fraction != 1.0 {
            let fraction = self.rotary_emb_fraction;
            return Err(mismatch(format!("rotary_emb_fraction is {fraction}; expected 1")));
        }
        // The factor changes the rotations only in texts that are longer than those of training.
        let trained = self.max_trained_positions.unwrap_or(2048);
        let longest = spec.max_sequence_length;
        if let Some(factor) = self.rotary_scaling_factor.filter(|_| longest > trained) {
            return Err(mismatch(format!(
                "rotary_scaling_factor {factor} is not supported for max_sequence_length \
                 {longest}, which is above max_trained_positions {trained}"
            )));
        }
        Ok(())
    }
}

/// Fields of GTE, as transformers 5 writes them and in the published models.
#[derive(Deserialize)]
struct GteFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    rope_parameters: Option<RopeFile>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    position_embedding_type: Option<String>,
    layer_norm_type: Option<String>,
    pack_qkv: Option<bool>,
    #[serde(default)]
    logn_attention_scale: bool,
}

/// Reads the configuration of a GTE.
pub(super) fn read_gte(bytes: &[u8], spec: &ModelSpec) -> Result<EncoderConfig, EngineError> {
    let file: GteFile = parse(bytes, spec)?;
    file.check_arithmetic()?;
    let activation = file.hidden_act.as_deref().unwrap_or("gelu");
    let settings = Layers {
        activation: HiddenActivation::parse("hidden_act", activation)?,
        gated: true,
        experts: None,
        attention_bias: true,
        bias: false,
        output_bias: true,
    };
    let sizes = Sizes {
        family: Family::Gte,
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        layers: file.num_hidden_layers,
        heads: file.num_attention_heads,
        head: None,
        intermediate: file.intermediate_size,
        positions: file.max_position_embeddings,
        types: file.type_vocab_size.unwrap_or(1),
        epsilon: file.layer_norm_eps.unwrap_or(1e-12),
    };
    let head = sizes.check(spec)?;
    let rope = match (&file.rope_scaling, file.rope_theta) {
        (Some(scaling), Some(theta)) => scaling.static_ntk(head, theta)?,
        (Some(_), None) => return Err(mismatch("rope_theta is missing")),
        (None, value) => {
            let theta = OldTheta { field: "rope_theta", value, default: 160_000.0 };
            RopeFile::of_all_layers(file.rope_parameters.as_ref(), None, theta)?
        }
    };
    sizes.encoder(head, rope, &settings)
}

impl GteFile {
    /// Checks the settings that select arithmetic that the encoder does not implement.
    fn check_arithmetic(&self) -> Result<(), EngineError> {
        for (field, found, supported) in [
            ("position_embedding_type", &self.position_embedding_type, "rope"),
            ("layer_norm_type", &self.layer_norm_type, "layer_norm"),
        ] {
            if let Some(other) = found.as_ref().filter(|found| *found != supported) {
                return Err(mismatch(format!("{field} {} is not supported", quote(other))));
            }
        }
        if self.pack_qkv == Some(false) {
            return Err(mismatch("pack_qkv is false; only true is supported"));
        }
        if self.logn_attention_scale {
            return Err(mismatch("logn_attention_scale is true; only false is supported"));
        }
        Ok(())
    }
}
