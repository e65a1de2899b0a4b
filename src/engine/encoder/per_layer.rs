//! The step with the second vectors of EmbeddingGemma 2, which follows the feed-forward layer.

use super::super::layer::{Layer, PerLayerInput};
use super::super::linear::KernelSession;
use super::super::scratch::{BLOCK, ThreadScratch};
use super::super::simd::{PANEL_WIDTH, rowwise};
use super::Encoder;

impl Encoder {
    /// Computes the step of `layer` for the first `count` rows of `x`, at most [`BLOCK`], in place.
    /// `embeddings` has the embeddings of the same rows. Both have the padding rows, too.
    pub(super) fn add_per_layer(
        &self,
        layer: &Layer,
        step: &PerLayerInput,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        embeddings: &[f32],
        (x, count): (&mut [f32], usize),
    ) {
        let (row, width) = (self.row(), self.shape.per_layer());
        scratch.block.reserve(self.shape.block());
        scratch.normed.reserve(self.shape.normed());
        scratch.wide.reserve(self.shape.wide());
        let ThreadScratch { inputs, wide, block, normed, .. } = scratch;
        let (block, normed) = (block.f32s_mut(), normed.f32s_mut());
        let (second, factors) = wide.f32s_mut().split_at_mut(BLOCK * width);

        let operand = inputs.operand(session, &step.inputs, embeddings, row, count);
        step.inputs.for_each_panel(session, operand, block, |panel, results, bias| {
            let out = &mut second[panel * PANEL_WIDTH..];
            rowwise::store_f32(session.isa, results, bias, None, out, width);
        });
        step.input_norm.apply(session, &mut second[..count * width], width, self.epsilon);

        let operand = inputs.operand(session, &step.gate, x, row, count);
        step.gate.for_each_panel(session, operand, block, |panel, results, bias| {
            let out = &mut factors[panel * PANEL_WIDTH..];
            let activation = Some(layer.activation);
            rowwise::store_f32(session.isa, results, bias, activation, out, width);
        });
        for (value, factor) in second[..count * width].iter_mut().zip(factors) {
            *value *= *factor;
        }

        let operand = inputs.operand(session, &step.output, second, width, count);
        let product = (&step.output, Some(&step.norm));
        self.add_product(session, product, operand, block, normed, x);
        x[..count * row].iter_mut().for_each(|value| *value *= step.scalar);
    }
}
