//! Reference MPNet in candle's operations: BERT without token types, with a bias for the distance
//! of two tokens.
//!
//! The formulas are those of transformers' `MPNetModel`:
//! <https://github.com/huggingface/transformers/blob/00099b9f15ad8bea330364709453fc49cbba90e5/src/transformers/models/mpnet/modeling_mpnet.py>
//!
//! Shapes: b texts, s tokens of the longest text, h hidden size, n heads, d = h / n.

use candle_core::{D, Result, Tensor};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, Module, VarBuilder};

use super::activation;
use crate::engine::config::{EncoderConfig, LayerConfig, MPNET_BUCKETS};
use crate::engine::position_bias::bucket;
use crate::engine::tensor_names::LayerNames;

pub(super) struct Mpnet {
    words: Embedding,
    positions: Embedding,
    norm: LayerNorm,
    /// Relative position bias, `[buckets, n]`.
    relative_bias: Tensor,
    layers: Vec<Layer>,
    padding_id: u32,
}

impl Mpnet {
    pub(super) fn load(config: &EncoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let table = |rows, name| candle_nn::embedding(rows, hidden, embeddings.pp(name));
        let layers = (0..config.layers.len())
            .map(|index| Layer::load(config, index, &vb.pp(LayerNames::MPNET.layers).pp(index)))
            .collect::<Result<_>>()?;
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.embeddings.positions, "position_embeddings")?,
            norm: candle_nn::layer_norm(hidden, config.norm_epsilon, embeddings.pp("LayerNorm"))?,
            relative_bias: vb.get(
                (MPNET_BUCKETS as usize, config.heads()),
                "encoder.relative_attention_bias.weight",
            )?,
            layers,
            padding_id: config.embeddings.padding_id.unwrap(),
        })
    }

    /// Computes the token vectors `[b, s, h]` of `ids`, `[b, s]`. `mask` is 1 for a token and 0 for
    /// padding, f32 `[b, s]`.
    pub(super) fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let positions = self.position_ids(ids)?; // [b, s]
        let embeddings = (self.words.forward(ids)? + self.positions.forward(&positions)?)?;
        let mut states = self.norm.forward(&embeddings)?; // [b, s, h]
        // Use `f32::MIN` instead of −∞: the softmax of a row of only −∞ would be NaN.
        let mask = mask.affine(-f64::from(f32::MIN), f64::from(f32::MIN))?; // [b, s]
        let mask = mask.unsqueeze(1)?.unsqueeze(1)?; // [b, 1, 1, s]
        let bias = self.position_bias(ids.dim(1)?)?.broadcast_add(&mask)?; // [b, n, s, s]
        for layer in &self.layers {
            states = layer.forward(&states, &bias)?;
        }
        Ok(states)
    }

    /// Returns the position ids. They count from the padding id and skip padding tokens, which keep
    /// that id.
    fn position_ids(&self, ids: &Tensor) -> Result<Tensor> {
        let rows: Vec<u32> = ids
            .to_vec2::<u32>()?
            .iter()
            .flat_map(|row| {
                row.iter().scan(self.padding_id, |position, &id| {
                    let padding = id == self.padding_id;
                    *position += u32::from(!padding);
                    Some(if padding { self.padding_id } else { *position })
                })
            })
            .collect();
        Tensor::from_vec(rows, ids.dims2()?, ids.device())
    }

    /// Returns the bias that is added to the score of each pair of tokens, `[1, n, s, s]`.
    fn position_bias(&self, length: usize) -> Result<Tensor> {
        let positions = 0..u32::try_from(length)?;
        let buckets: Vec<u32> = positions
            .clone()
            .flat_map(|query| positions.clone().map(move |key| bucket(query, key)))
            .collect();
        let buckets = Tensor::from_vec(buckets, length * length, self.relative_bias.device())?;
        self.relative_bias
            .index_select(&buckets, 0)? // [s · s, n]
            .reshape((length, length, ()))?
            .permute((2, 0, 1))? // [n, s, s]
            .contiguous()?
            .unsqueeze(0)
    }
}

/// One encoder layer.
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    output_norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn load(config: &EncoderConfig, index: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let LayerConfig { attention, feed_forward, .. } = &config.layers[index];
        let (hidden, intermediate) = (config.hidden_size, feed_forward.intermediate);
        let linear = |input, out, name| candle_nn::linear(input, out, vb.pp(name));
        let norm = |name| candle_nn::layer_norm(hidden, config.norm_epsilon, vb.pp(name));
        let names = LayerNames::MPNET;
        let [query, key, value] = names.separate_states();
        Ok(Self {
            query: linear(hidden, hidden, query)?,
            key: linear(hidden, hidden, key)?,
            value: linear(hidden, hidden, value)?,
            attention_output: linear(hidden, hidden, names.attention_output)?,
            attention_norm: norm(names.attention_norm)?,
            intermediate: linear(hidden, intermediate, names.plain_wide())?,
            activation: activation(feed_forward.activation),
            output: linear(intermediate, hidden, names.output)?,
            output_norm: norm(names.output_norm)?,
            heads: attention.heads,
        })
    }

    /// Runs the layer on `states`, `[b, s, h]`, with the position bias and mask in `bias`, `[b, n,
    /// s, s]`.
    fn forward(&self, states: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let attended = self.attention_output.forward(&self.attention(states, bias)?)?;
        let attended = self.attention_norm.forward(&(attended + states)?)?;
        let wide = self.activation.forward(&self.intermediate.forward(&attended)?)?; // [b, s, i]
        self.output_norm.forward(&(self.output.forward(&wide)? + attended)?)
    }

    fn attention(&self, states: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (batch, length, hidden) = states.dims3()?;
        let width = hidden / self.heads;
        let split = |linear: &Linear| {
            linear
                .forward(states)?
                .reshape((batch, length, self.heads, width))?
                .transpose(1, 2)? // [b, n, s, d]
                .contiguous()
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        #[expect(clippy::cast_precision_loss, reason = "the width of a head is small")]
        let scale = (width as f64).sqrt();
        let scores = ((query.matmul(&key.t()?)? / scale)? + bias)?; // [b, n, s, s]
        let attention = candle_nn::ops::softmax(&scores, D::Minus1)?;
        attention
            .matmul(&value)? // [b, n, s, d]
            .transpose(1, 2)?
            .contiguous()?
            .flatten_from(D::Minus2) // [b, s, h]
    }
}
