//! The steps of a layer after attention: its output product and the feed-forward layer.

use super::Encoder;
use crate::engine::layer::{FeedForward, Layer, Norm};
use crate::engine::linear::{KernelSession, Linear, Operand, OperandFormat};
use crate::engine::scratch::{BLOCK, ThreadScratch};
use crate::engine::simd::{PANEL_WIDTH, rowwise};

impl Encoder {
    /// Computes the part of `layer` after attention, in place, for `count` rows of `x`, whose
    /// `embeddings` are empty if the layers do not read them.
    pub(in crate::engine) fn finish(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        (attended, embeddings): (&[u32], &[f32]),
        count: usize,
        x: &mut [f32],
    ) {
        let (row, stride) = (self.row(), self.shape.attended_stride(&layer.dims));
        scratch.block.reserve(self.shape.block());
        scratch.normed.reserve(self.shape.normed());
        for first in (0..count).step_by(BLOCK) {
            let count = BLOCK.min(count - first);
            let (attended, x) = (&attended[first * stride..], &mut x[first * row..]);
            self.finish_block(layer, session, scratch, attended, count, x);
            if let Some(step) = &layer.per_layer {
                let embeddings = &embeddings[first * row..];
                self.add_per_layer(layer, step, session, scratch, embeddings, (x, count));
            }
        }
    }

    fn finish_block(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        attended: &[u32],
        count: usize,
        x: &mut [f32],
    ) {
        let ThreadScratch { inputs, wide, block, normed, .. } = scratch;
        let (block, normed) = (block.f32s_mut(), normed.f32s_mut());
        let operand = match self.packing.format {
            OperandFormat::Bf16 => {
                Operand::floats(attended, self.shape.attended_stride(&layer.dims), count)
            }
            _ => {
                let values = bytemuck::cast_slice(attended);
                inputs.operand(session, &layer.attended, values, layer.dims.inner(), count)
            }
        };
        let norm = layer.attended_norm.as_ref();
        self.add_product(session, (&layer.attended, norm), operand, block, normed, x);

        let products = match &layer.feed_forward {
            FeedForward::Dense(products) => products,
            FeedForward::Experts(experts) => {
                return self.add_experts((layer, experts), session, scratch, (x, count));
            }
        };
        wide.reserve(self.shape.wide());
        let norm = layer.wide_norm.as_ref();
        let input = self.normalized(session, norm, x, count, normed);
        let memory = (inputs, wide, &mut *block);
        let operand = self.between_products((layer, products), session, memory, (input, count));
        let norm = layer.norm.as_ref();
        self.add_product(session, (&products.narrow, norm), operand, block, normed, x);
    }

    /// Adds the product of `operand` with a linear layer to the rows of `x`. The `norm` of the
    /// layer applies to the sum, or to the product if the layers also normalize their input.
    /// `block` and `normed` are memory for a block of results and of rows.
    pub(super) fn add_product(
        &self,
        session: &KernelSession,
        (linear, norm): (&Linear, Option<&Norm>),
        operand: Operand<'_>,
        block: &mut [f32],
        normed: &mut [f32],
        x: &mut [f32],
    ) {
        let (row, rows) = (self.row(), operand.rows);
        let x = &mut x[..rows * row];
        if let Some(norm) = norm.filter(|_| self.normalizes_products) {
            let products = &mut normed[..rows * row];
            linear.for_each_panel(session, operand, block, |panel, results, bias| {
                let out = &mut products[panel * PANEL_WIDTH..];
                rowwise::store_f32(session.isa, results, bias, None, out, row);
            });
            norm.apply(session, products, row, self.epsilon);
            rowwise::add_rows(session.isa, x, products);
            return;
        }
        linear.for_each_panel(session, operand, block, |panel, results, bias| {
            rowwise::add_f32(session.isa, results, bias, &mut x[panel * PANEL_WIDTH..], row);
        });
        if let Some(norm) = norm {
            norm.apply(session, x, row, self.epsilon);
        }
    }
}
