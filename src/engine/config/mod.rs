//! Reads the `config.json` of transformers: the shape of an encoder, checked against the
//! [`ModelSpec`].
//!
//! Each submodule knows the field names and defaults of that file for some of the [`Family`]s, in
//! the form of transformers 5 and in the form in which models were published before. This module
//! has the types, which are the same for all families, and the checks. It does not read weights.
//!
//! Invariant: an [`EncoderConfig`] that [`EncoderConfig::read`] returned is safe to divide by, to
//! multiply and to index with: no size is zero or above [`MAX_SIZE`], the heads of the keys divide
//! the heads of the queries, a head that is rotated has an even width, every factor is finite, and
//! every position that a text can reach exists.

mod bert;
mod checks;
mod deberta;
mod decoder;
mod embedding_gemma2;
mod modernbert;
mod rope;
mod rotary_bert;
#[cfg(test)]
pub(super) mod tests;

use super::quote::quote;
use super::spec::Family;
use super::{EngineError, ModelSpec};
use checks::{
    check_at_most, check_layer_count, check_positions, check_sizes, head_width, mismatch,
    score_scale,
};
pub(super) use checks::{check_lengths, check_not_zero, parse, positive};

/// Name of the file in messages.
const FILE: &str = "config.json";
/// Maximum number of layers. The deepest encoder of the families here has 36 layers.
pub(super) const MAX_LAYERS: usize = 512;
/// Maximum number of experts of a layer. nomic-embed-text-v2-moe has 8.
const MAX_EXPERTS: usize = 64;
/// Maximum of every other size. The product of two sizes and a small factor fits a `u64`.
const MAX_SIZE: usize = 1 << 24;
/// Number of buckets of MPNet's position bias. MPNet fixes it and ignores its `config.json`.
pub(super) const MPNET_BUCKETS: u32 = 32;

/// Activation between the two products of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HiddenActivation {
    /// `x·Φ(x)`, where `Φ` is computed with the error function.
    Gelu,
    /// Approximation of [`HiddenActivation::Gelu`] with the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e⁻ˣ)`.
    Silu,
}

impl HiddenActivation {
    /// Names in `config.json`. Several names mean the same formula.
    const NAMES: [(&'static str, Self); 6] = [
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    /// Parses the value `name` of the field `field`.
    pub(super) fn parse(field: &str, name: &str) -> Result<Self, EngineError> {
        Self::NAMES.into_iter().find(|known| known.0 == name).map(|known| known.1).ok_or_else(
            || {
                let known = Self::NAMES.map(|known| known.0).join(", ");
                mismatch(format!("{field} is {}; known: {known}", quote(name)))
            },
        )
    }
}

/// Shape of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EncoderConfig {
    /// Family of the encoder, which decides the names of its tensors.
    pub(super) family: Family,
    /// Number of rows of the word embedding table.
    pub(super) vocab_size: usize,
    /// Length of a token vector.
    pub(super) hidden_size: usize,
    /// Kind of every normalization.
    pub(super) norm: NormKind,
    /// Number that a normalization adds to the variance or to the mean square.
    pub(super) norm_epsilon: f64,
    /// Place of the normalizations in a layer.
    pub(super) placement: NormPlacement,
    /// Vectors at the input of the first layer.
    pub(super) embeddings: EmbeddingConfig,
    /// Layers, at most [`MAX_LAYERS`].
    pub(super) layers: Vec<LayerConfig>,
    /// Whether a normalization follows the last layer.
    pub(super) final_norm: bool,
    /// Number that attention adds to a score according to the distance of the two tokens.
    pub(super) relative_bias: Option<RelativeBias>,
    /// Length of the second vector that each layer of EmbeddingGemma 2 gets for each token.
    pub(super) per_layer_input: Option<usize>,
    /// Length of a token vector after the projection behind the last layer.
    pub(super) projection: Option<usize>,
}

/// Kind of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    /// LayerNorm with weight and bias.
    LayerNorm,
    /// LayerNorm with a weight.
    LayerNormWithoutBias,
    /// Division by the root mean square, with a weight.
    Rms,
    /// Division by the root mean square, with a weight of 1 plus the stored value.
    RmsPlusOne,
}

/// Place of the normalizations of a layer. Both attention and the feed-forward layer are a block:
/// the input of a block is added to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormPlacement {
    /// After the sum.
    Post,
    /// Before the block.
    Pre,
    /// Before the block, and after the block before the sum.
    Sandwich,
}

impl NormPlacement {
    /// Returns whether a normalization comes before a block.
    pub(super) const fn is_before(self) -> bool {
        matches!(self, Self::Pre | Self::Sandwich)
    }

    /// Returns whether a normalization comes after a block.
    pub(super) const fn is_after(self) -> bool {
        matches!(self, Self::Post | Self::Sandwich)
    }
}

/// Relation between the distance of two tokens and the number that attention adds to their score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelativeBias {
    /// Learned numbers for [`MPNET_BUCKETS`] ranges of distances.
    Buckets,
    /// Product of the distance and a slope that depends on the head.
    Alibi,
    /// Products of queries and keys with vectors of the distance.
    Disentangled(DistanceBuckets),
}

/// Ranges of distances in one direction that share a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DistanceBuckets {
    /// Number of ranges, at least 2. Those of the smaller half have one distance each.
    pub(super) count: usize,
    /// Number above the largest distance of the logarithmic ranges. The largest distance is above
    /// half of `count`.
    pub(super) farthest: usize,
}

impl DistanceBuckets {
    /// Returns the number of rows of the table.
    pub(super) const fn rows(&self) -> usize {
        2 * self.count
    }
}

/// Vectors at the input of the first layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EmbeddingConfig {
    /// Number of rows of the position embedding table; 0 without that table.
    pub(super) positions: usize,
    /// Number of rows of the token type embedding table; 0 without that table.
    pub(super) types: usize,
    /// Whether the sum of the embeddings is normalized.
    pub(super) norm: bool,
    /// Factor of the word embeddings.
    pub(super) scale: f32,
    /// Token id from which positions count: the first token has the position after this id, and a
    /// token with this id has the id as its position. `None`: positions begin at 0.
    pub(super) padding_id: Option<u32>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerConfig {
    /// Whether a normalization comes before attention. It is `false` with
    /// [`NormPlacement::Post`], and in the first layer of ModernBERT, whose embeddings are
    /// normalized.
    pub(super) input_norm: bool,
    /// Attention.
    pub(super) attention: AttentionConfig,
    /// Feed-forward layer.
    pub(super) feed_forward: FeedForwardConfig,
}

/// Attention of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AttentionConfig {
    /// Number of heads of the queries.
    pub(super) heads: usize,
    /// Number of heads of the keys, and of the values; divides `heads`.
    pub(super) kv_heads: usize,
    /// Length of the vectors of a head.
    pub(super) head: usize,
    /// Factor of the scores.
    pub(super) scale: f32,
    /// Whether a token attends only to itself and to the tokens before it.
    pub(super) causal: bool,
    /// Largest distance at which a token attends to another one; `None` without limit.
    pub(super) window: Option<usize>,
    /// Rotation of queries and keys.
    pub(super) rope: Option<RopeConfig>,
    /// Whether each head of queries and keys is normalized, before it is rotated.
    pub(super) qk_norm: bool,
    /// Whether each head of the values is normalized without a weight.
    pub(super) v_norm: bool,
    /// Whether queries, keys and values have a bias.
    pub(super) bias: bool,
    /// Whether the output product has a bias.
    pub(super) output_bias: bool,
}

/// Rotation of the two halves of a head by the position of the token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RopeConfig {
    /// Base of the frequencies: pair `i` of `n` turns by `theta^(−i / n)` a position.
    pub(super) theta: f64,
    /// Number that divides every frequency.
    pub(super) divisor: f64,
}

/// Feed-forward layer of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FeedForwardConfig {
    /// Length of a token vector between the two products.
    pub(super) intermediate: usize,
    /// Activation between the two products.
    pub(super) activation: HiddenActivation,
    /// Whether the first product has two results of length `intermediate`, of which the first is
    /// activated and then multiplied by the second.
    pub(super) gated: bool,
    /// Experts, of which each has its own two products; `None` for a layer with one pair of them.
    pub(super) experts: Option<ExpertsConfig>,
    /// Whether the first product has a bias.
    pub(super) bias: bool,
    /// Whether the second product has a bias. With experts, the bias is added to the sum of their
    /// outputs.
    pub(super) output_bias: bool,
}

/// Experts of a feed-forward layer. A router selects some of them for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertsConfig {
    /// Number of experts, at most [`MAX_EXPERTS`].
    pub(super) count: usize,
    /// Number of experts that compute a token.
    pub(super) used: usize,
}

/// Returns `count` layers, each from its number.
fn layers(
    count: usize,
    layer: impl FnMut(usize) -> Result<LayerConfig, EngineError>,
) -> Result<Vec<LayerConfig>, EngineError> {
    check_layer_count(count)?;
    (0..count).map(layer).collect()
}

impl EncoderConfig {
    /// Reads the configuration of an encoder of `family` from `bytes` and checks it against `spec`.
    ///
    /// The `model_type` of some families is that of another one. The file then decides, so the
    /// result may have another family.
    ///
    /// # Errors
    /// Returns an error if the JSON is malformed, contradicts `spec` or itself, or selects
    /// arithmetic that the encoder does not implement. The message has the field and its value.
    pub(super) fn read(
        bytes: &[u8],
        family: Family,
        spec: &ModelSpec,
    ) -> Result<Self, EngineError> {
        let config = match family {
            Family::Bert
            | Family::DistilBert
            | Family::JinaBert
            | Family::Mpnet
            | Family::Roberta
            | Family::XlmRoberta => bert::read(bytes, family, spec),
            Family::DebertaV2 => deberta::read(bytes, spec),
            Family::EmbeddingGemma2 => embedding_gemma2::read(bytes, spec),
            Family::EuroBert => decoder::read_eurobert(bytes, spec),
            Family::Gemma3 => decoder::read_gemma3(bytes, spec),
            Family::Gte => rotary_bert::read_gte(bytes, spec),
            Family::ModernBert => modernbert::read(bytes, spec),
            Family::NomicBert => rotary_bert::read_nomic(bytes, spec),
            Family::Qwen3 => decoder::read_qwen3(bytes, spec),
        }?;
        config.layers.iter().try_for_each(|layer| layer.attention.check())?;
        check_lengths(spec, config.output_size())?;
        Ok(config)
    }

    /// Returns the number of heads of the queries in the first layer.
    pub(super) fn heads(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.attention.heads)
    }

    /// Returns the length of the vectors that the encoder computes.
    pub(super) fn output_size(&self) -> usize {
        self.projection.unwrap_or(self.hidden_size)
    }

    /// Returns the number of multiplications and additions in the matrix products for one text of
    /// `tokens` tokens.
    pub(super) fn matrix_operations(&self, tokens: usize) -> u64 {
        let [hidden, tokens] = [self.hidden_size, tokens].map(|n| n as u64);
        let of_layers = self.layers.iter().fold(0_u64, |sum, layer| {
            let LayerConfig { attention, feed_forward, .. } = layer;
            let [queries, keys, intermediate, per_layer] = [
                attention.heads * attention.head,
                attention.kv_heads * attention.head,
                feed_forward.intermediate,
                self.per_layer_input.unwrap_or(0),
            ]
            .map(|n| n as u64);
            // The router has an output for each expert.
            let (used, routes) = feed_forward
                .experts
                .map_or((1, 0), |experts| (experts.used as u64, experts.count as u64));
            let products = used * if feed_forward.gated { 3 } else { 2 };
            // Queries and output, keys and values, the feed-forward layer, and the gate, the output
            // and the input of the second vector.
            let feed_forward = products * intermediate + routes;
            let of_token =
                hidden.saturating_mul(2 * queries + 2 * keys + feed_forward + 3 * per_layer);
            // Two more products have a result for each token and vector of distances.
            let distances = match self.relative_bias {
                Some(RelativeBias::Disentangled(buckets)) => buckets.rows() as u64,
                None | Some(RelativeBias::Alibi | RelativeBias::Buckets) => 0,
            };
            let pairs = attention.attended_pairs(tokens);
            let pairs = pairs.saturating_add(tokens.saturating_mul(distances));
            let of_scores = pairs.saturating_mul(2 * queries);
            sum.saturating_add(tokens.saturating_mul(of_token)).saturating_add(of_scores)
        });
        let projection = hidden * self.projection.unwrap_or(0) as u64;
        of_layers.saturating_add(tokens.saturating_mul(projection)).saturating_mul(2)
    }
}

impl EmbeddingConfig {
    /// Returns word embeddings and nothing else.
    const fn words() -> Self {
        Self { positions: 0, types: 0, norm: false, scale: 1.0, padding_id: None }
    }

    /// Returns the word embeddings of Gemma: times the square root of their length.
    fn scaled_words(hidden_size: usize) -> Self {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "at most MAX_SIZE, and the engine computes in f32"
        )]
        let scale = (hidden_size as f64).sqrt() as f32;
        Self { scale, ..Self::words() }
    }
}

impl AttentionConfig {
    /// Checks the sizes of the heads, each of which has been checked alone.
    fn check(&self) -> Result<(), EngineError> {
        let Self { heads, kv_heads, head, .. } = *self;
        if !heads.is_multiple_of(kv_heads) {
            return Err(mismatch(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        check_at_most("num_attention_heads times head_dim", heads.saturating_mul(head), MAX_SIZE)?;
        if self.rope.is_some() && !head.is_multiple_of(2) {
            return Err(mismatch(format!(
                "head_dim is {head}; only heads of an even width can be rotated"
            )));
        }
        Ok(())
    }

    /// Returns the attention of a BERT: `heads` heads with biases that see all tokens.
    fn bidirectional(hidden_size: usize, heads: usize) -> Result<Self, EngineError> {
        let head = head_width(hidden_size, heads)?;
        Ok(Self {
            heads,
            kv_heads: heads,
            head,
            scale: score_scale(head),
            causal: false,
            window: None,
            rope: None,
            qk_norm: false,
            v_norm: false,
            bias: true,
            output_bias: true,
        })
    }

    /// Returns the number of pairs of a token and a token that it attends to, in a text of `tokens`
    /// tokens.
    fn attended_pairs(&self, tokens: u64) -> u64 {
        let others = tokens.saturating_sub(1);
        let window = self.window.map_or(others, |window| others.min(window as u64));
        // The first tokens see fewer than `window` tokens before them.
        let before = window.saturating_mul(window + 1) / 2;
        let before = before.saturating_add((others - window).saturating_mul(window));
        let sides = if self.causal { 1 } else { 2 };
        tokens.saturating_add(before.saturating_mul(sides))
    }
}
