//! The encoder: computes token vectors from token ids.
//!
//! The families differ in the steps of a layer, which [`Layer`] lists: where it normalizes, whether
//! it rotates queries and keys, which keys a query reaches, and whether the feed-forward layer is
//! gated or has experts. One loop over these steps computes all of them.
//!
//! The tokens of many texts are concatenated without padding between them. The residual stream is
//! f32 in every precision. Products are computed in the format of the weights; LayerNorm, softmax
//! and activations are computed in f32.
//!
//! The encoder holds the weights. It knows neither threads nor pooling.
//!
//! Invariant: the vectors of a text depend only on its ids, to the last bit.

mod after_attention;
mod experts;
mod feed_forward;
mod heads;
mod packing;
mod per_layer;
mod rotation;
mod together;

use super::buffer::Buffer;
use super::layer::disentangled::DistanceRows;
use super::layer::{Layer, Norm, Packing};
use super::linear::{KernelSession, Linear, Operand, OperandFormat};
use super::scratch::{BLOCK, RowShape, ThreadScratch};
use super::simd::PANEL_WIDTH;
use super::token_type::id_and_type;
use super::weights::MappedTable;
use rotation::Rotations;
pub(super) use rotation::TextStarts;
pub(super) use together::ThreadTeam;

/// Weights of an encoder.
pub(super) struct Encoder {
    packing: Packing,
    shape: RowShape,
    hidden: usize,
    pub(super) words: MappedTable,
    /// Factor of the word embeddings.
    word_scale: f32,
    /// Position embeddings plus the embedding of the first token type, `[positions, hidden]`.
    /// Without position embeddings, one row for all positions, or none.
    positions: Vec<f32>,
    /// Difference between the embeddings of the second and the first token type, `[hidden]`. Empty
    /// in a model with fewer types.
    second_type: Vec<f32>,
    /// Whether `positions` has a row for each position.
    has_positions: bool,
    /// Id of the padding token, for families whose positions begin after this id. A padding token
    /// has its own id as its position. `None`: positions begin at 0.
    padding_id: Option<u32>,
    /// Normalization of the embeddings.
    norm: Option<Norm>,
    /// Normalization after the last layer.
    final_norm: Option<Norm>,
    /// Product of the token vectors after that, and the number of its outputs.
    projection: Option<(Linear, usize)>,
    epsilon: f32,
    /// Whether the norm after a product applies to the product alone and not to its sum with the
    /// residual stream.
    normalizes_products: bool,
    relative_bias: Option<Vec<Vec<f32>>>,
    /// Rows of the tables of distances that the layers have.
    distances: Option<DistanceRows>,
    rotations: Rotations,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Returns the format of the operands of the linear layers.
    pub(super) fn format(&self) -> OperandFormat {
        self.packing.format
    }

    /// Returns the number of values of a token vector that the encoder returns.
    pub(super) fn outputs(&self) -> usize {
        self.projection.as_ref().map_or(self.hidden, |(_, outputs)| *outputs)
    }

    /// Returns the distance between two rows of the residual stream, in values.
    pub(super) fn row(&self) -> usize {
        self.hidden.next_multiple_of(PANEL_WIDTH)
    }

    /// Returns the layers in their order.
    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the sizes and formats of a row in a forward pass.
    pub(super) fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// Writes the embeddings of `text` to rows of `x`. All ids must be in the vocabulary, and may
    /// have a [token type](super::token_type).
    pub(super) fn embed(
        &self,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        text: &[u32],
        x: &mut [f32],
    ) {
        let (row, hidden) = (self.row(), self.hidden);
        // Position ids begin after the padding id and do not count padding tokens:
        // https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/models/roberta/modeling_roberta.py
        let mut next = self.padding_id.map_or(0, |id| id as usize + 1);
        let x = &mut x[..text.len() * row];
        for (x, &token) in x.chunks_exact_mut(row).zip(text) {
            let (id, is_second) = id_and_type(token);
            self.words.read_row(id as usize, x);
            if self.word_scale != 1.0 {
                x[..hidden].iter_mut().for_each(|value| *value *= self.word_scale);
            }
            let position = if self.padding_id == Some(id) {
                id as usize
            } else {
                next += 1;
                next - 1
            };
            let position = if self.has_positions { position } else { 0 };
            let position = self.positions.get(position * hidden..).unwrap_or_default();
            x[..hidden].iter_mut().zip(position).for_each(|(value, other)| *value += other);
            if is_second {
                let second = &self.second_type;
                x[..hidden].iter_mut().zip(second).for_each(|(value, other)| *value += other);
            }
            // Clear the padding: the buffer may contain values of an earlier pass.
            x[hidden..].fill(0.0);
        }
        if let Some(norm) = &self.norm {
            norm.apply(session, x, row, self.epsilon);
        }
        // Int8 weights expect the channels in the packed order; the norm above used the natural
        // order.
        if matches!(self.packing.format, OperandFormat::Int8(_)) {
            scratch.block.reserve(hidden);
            let natural = &mut scratch.block.f32s_mut()[..hidden];
            for x in x.chunks_exact_mut(row) {
                natural.copy_from_slice(&x[..hidden]);
                for (value, &channel) in x.iter_mut().zip(&self.packing.order) {
                    *value = natural[channel];
                }
            }
        }
    }

    /// Copies the token vectors from rows of `x` to `vectors`, `[rows, outputs]`, with the channels
    /// in their natural order, or multiplies them with the last product. Returns them.
    pub(super) fn token_vectors<'a>(
        &self,
        session: &KernelSession,
        x: &[f32],
        block: &mut Buffer,
        vectors: &'a mut Buffer,
    ) -> &'a [f32] {
        let (row, outputs) = (self.row(), self.outputs());
        let values = x.len() / row * outputs;
        vectors.reserve(values);
        let vectors = &mut vectors.f32s_mut()[..values];
        if let Some((linear, _)) = &self.projection {
            block.reserve(self.shape.block());
            let blocks = x.chunks(BLOCK * row).zip(vectors.chunks_mut(BLOCK * outputs));
            for (x, vectors) in blocks {
                let operand = Operand::floats(bytemuck::cast_slice(x), row, x.len() / row);
                linear.for_each_panel(session, operand, block.f32s_mut(), |panel, results, _| {
                    let first = panel * PANEL_WIDTH;
                    let width = PANEL_WIDTH.min(outputs - first);
                    for (result, vector) in results.iter().zip(vectors.chunks_mut(outputs)) {
                        vector[first..][..width].copy_from_slice(&result[..width]);
                    }
                });
            }
            return vectors;
        }
        for (x, vector) in x.chunks_exact(row).zip(vectors.chunks_exact_mut(outputs)) {
            match self.packing.format {
                OperandFormat::F32 | OperandFormat::Bf16 => vector.copy_from_slice(&x[..outputs]),
                OperandFormat::Int8(_) => {
                    for (&value, &channel) in x.iter().zip(&self.packing.order) {
                        vector[channel] = value;
                    }
                }
            }
        }
        vectors
    }

    /// Returns `rows` rows of `x`, normalized into `normed` if there is a `norm`.
    fn normalized<'a>(
        &self,
        session: &KernelSession,
        norm: Option<&Norm>,
        x: &'a [f32],
        rows: usize,
        normed: &'a mut [f32],
    ) -> &'a [f32] {
        let Some(norm) = norm else { return x };
        let row = self.row();
        normed[..rows * row].copy_from_slice(&x[..rows * row]);
        norm.apply(session, &mut normed[..rows * row], row, self.epsilon);
        normed
    }

    /// Applies the norm after the last layer to the rows of `x`.
    pub(super) fn complete(&self, session: &KernelSession, x: &mut [f32]) {
        if let Some(norm) = &self.final_norm {
            norm.apply(session, x, self.row(), self.epsilon);
        }
    }
}
