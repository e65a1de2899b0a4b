//! The first steps of a layer: queries, keys and values, and attention.

use super::{Encoder, TextStarts};
use crate::engine::attention::{AttentionHeads, AttentionOutput, DistanceTerms, Reach};
use crate::engine::layer::{HeadPart, Layer};
use crate::engine::linear::{KernelSession, Operand, OperandFormat};
use crate::engine::scratch::{BLOCK, ThreadScratch};
use crate::engine::simd::{PANEL_WIDTH, rowwise};

impl Encoder {
    /// Writes the queries, keys and values of the rows of `x` to `heads`, for `layer`. `texts` are
    /// the texts of the pass.
    pub(in crate::engine) fn project(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        x: &[f32],
        texts: &TextStarts,
        heads: &mut [u32],
    ) {
        let count = texts.rows();
        let stride = self.shape.head_stride(&layer.dims, count);
        let ThreadScratch { inputs, block, head, normed, .. } = scratch;
        block.reserve(self.shape.block());
        head.reserve(self.shape.head_block());
        normed.reserve(self.shape.normed());
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let x = &x[first * self.row()..];
            let norm = layer.input_norm.as_ref();
            let x = self.normalized(session, norm, x, rows, normed.f32s_mut());
            let operand = inputs.operand(session, &layer.states, x, self.row(), rows);
            for (index, states) in heads.chunks_mut(stride).take(layer.dims.all_heads()).enumerate()
            {
                let scratch = (block.f32s_mut(), head.f32s_mut());
                let head = (index, states);
                self.project_head(layer, session, operand, scratch, (texts, first), head);
            }
        }
    }

    /// Computes head `index` of the queries, keys and values for the rows of `operand`, which are
    /// the rows from `first` on of `texts`. Writes them to the same rows of `states`. `block` and
    /// `head` are memory for a block of results and for a block of the head.
    pub(super) fn project_head(
        &self,
        layer: &Layer,
        session: &KernelSession,
        operand: Operand<'_>,
        (block, head): (&mut [f32], &mut [f32]),
        (texts, first): (&TextStarts, usize),
        (index, states): (usize, &mut [u32]),
    ) {
        let width = layer.dims.padded_head;
        let panels = width / PANEL_WIDTH;
        let part = layer.dims.part_of(index);
        let groups = self.shape.head_groups(&layer.dims);
        let states = &mut states[first * groups..];
        let direct = layer.heads.is_identity(part);
        for panel in 0..panels {
            let of_all = index * panels + panel;
            let results = layer.states.multiply_panel(session, operand, block, of_all, of_all + 1);
            if direct {
                store(session, self.shape.attention, states, groups, panel, results);
            } else {
                store(
                    session,
                    OperandFormat::F32,
                    bytemuck::cast_slice_mut(head),
                    width,
                    panel,
                    results,
                );
            }
        }
        if direct {
            return;
        }
        let head = &mut head[..operand.rows * width];
        if let Some(norm) = layer.heads.norm(part) {
            norm.apply(session, head, width, self.epsilon);
        }
        if part != HeadPart::Value
            && let Some(rope) = &layer.heads.rope
        {
            let rope = (rope, layer.dims.head);
            self.rotations.rotate(session, rope, head, width, (texts, first));
        }
        match self.shape.attention {
            OperandFormat::Bf16 => {
                rowwise::to_bf16(session.isa, head, bytemuck::cast_slice_mut(states));
            }
            _ => states[..head.len()].copy_from_slice(bytemuck::cast_slice(head)),
        }
    }

    /// Returns the heads of a text of `length` tokens in a pass of `rows` rows. `states` begins at
    /// the first row of the text.
    pub(super) fn heads<'a>(
        &'a self,
        layer: &'a Layer,
        states: &'a [u32],
        (rows, length): (usize, usize),
    ) -> AttentionHeads<'a> {
        AttentionHeads {
            format: self.shape.attention,
            heads: layer.dims.heads,
            kv_heads: layer.dims.kv_heads,
            width: layer.dims.padded_head,
            states,
            stride: self.shape.head_stride(&layer.dims, rows),
            length,
            reach: Reach { window: layer.window, causal: layer.causal },
            bias: self.relative_bias.as_deref(),
            distances: self
                .distances
                .as_ref()
                .zip(layer.distances.as_ref())
                .map(|(rows, tables)| DistanceTerms { tables, rows }),
        }
    }

    /// Computes the attention of the texts of a pass in `layer`, from the `states` of its rows, to
    /// `attended`.
    pub(in crate::engine) fn attend(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        states: &[u32],
        texts: &TextStarts,
        attended: &mut [u32],
    ) {
        let inner = layer.dims.inner();
        let groups = self.shape.head_groups(&layer.dims);
        let stride = self.shape.attended_stride(&layer.dims);
        for text in texts.iter() {
            let states = &states[text.start * groups..];
            let attended = &mut attended[text.start * stride..];
            let heads = self.heads(layer, states, (texts.rows(), text.len()));
            for head in 0..heads.heads {
                let start = head * heads.width;
                let mut attended = match self.packing.format {
                    OperandFormat::Bf16 => {
                        AttentionOutput::Bf16(&mut bytemuck::cast_slice_mut(attended)[start..])
                    }
                    OperandFormat::F32 | OperandFormat::Int8(_) => {
                        AttentionOutput::F32(&mut bytemuck::cast_slice_mut(attended)[start..])
                    }
                };
                let memory = &mut scratch.attention;
                heads.attend(session, memory, head, 0..text.len(), &mut attended, inner);
            }
        }
    }
}

/// Stores the results of a panel, with bias, to `rows`, `stride` lane groups apart.
fn store(
    session: &KernelSession,
    format: OperandFormat,
    rows: &mut [u32],
    stride: usize,
    panel: usize,
    (results, bias): (&[[f32; PANEL_WIDTH]], &[f32; PANEL_WIDTH]),
) {
    if format == OperandFormat::Bf16 {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(rows);
        let out = &mut halves[panel * PANEL_WIDTH..];
        rowwise::store_bf16(session.isa, results, bias, None, out, stride * 2);
    } else {
        let out = &mut bytemuck::cast_slice_mut(rows)[panel * PANEL_WIDTH..];
        rowwise::store_f32(session.isa, results, bias, None, out, stride);
    }
}
