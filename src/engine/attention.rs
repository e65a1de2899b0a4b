//! Attention of one text, head by head, on the queries, keys and values of its rows.
//!
//! The scores of up to 32 queries with all keys are whole rows, so softmax does not combine partial
//! results. The keys and values of a head are packed into panels as weights are, and multiplied by
//! the same kernels.

use std::ops::Range;

use super::buffer::Buffer;
use super::linear::{KernelSession, OperandFormat, ROWS};
use super::simd::product::Product;
use super::simd::{PANEL_WIDTH, rowwise};

/// Queries, keys and values of one text, and the shape of its heads.
#[derive(Clone, Copy)]
pub(super) struct AttentionHeads<'a> {
    /// Format of the states: F32 or Bf16.
    pub(super) format: OperandFormat,
    pub(super) heads: usize,
    /// Number of values of a head, padded to whole panels.
    pub(super) width: usize,
    /// Queries of all heads, then keys, then values, `[3, heads, rows, width]`. Each head has the
    /// rows of the text, followed by the padding rows.
    pub(super) states: &'a [u32],
    /// Distance between two heads, in lane groups.
    pub(super) stride: usize,
    /// Number of tokens of the text.
    pub(super) length: usize,
    /// Relative position bias of each head, added to the score of a query and a key. A head has
    /// `2 · max_positions − 1` values by distance; distance 0 is in the middle.
    pub(super) bias: Option<&'a [Vec<f32>]>,
}

/// Destination of the attended values, in rows.
pub(super) enum AttentionOutput<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Memory for one text at a time.
#[derive(Default)]
pub(super) struct AttentionScratch {
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    probabilities: Buffer,
    block: Buffer,
}

impl AttentionScratch {
    /// Returns the number of lane groups of each buffer, in the order of the fields, for a text of
    /// `length` tokens and heads of `width` values.
    const fn sizes(format: OperandFormat, width: usize, length: usize) -> [usize; 5] {
        let padded = length.next_multiple_of(PANEL_WIDTH);
        [
            padded * format.lane_groups(width),
            format.lane_groups(padded) * width,
            ROWS * padded,
            ROWS * format.lane_groups(padded),
            ROWS * PANEL_WIDTH,
        ]
    }

    fn reserve(&mut self, format: OperandFormat, width: usize, length: usize) {
        let Self { keys, values, scores, probabilities, block } = self;
        let sizes = Self::sizes(format, width, length);
        for (buffer, size) in [keys, values, scores, probabilities, block].into_iter().zip(sizes) {
            buffer.reserve(size);
        }
    }

    /// Returns the memory that a text will need, in bytes.
    pub(super) fn bytes_of(format: OperandFormat, width: usize, length: usize) -> u64 {
        Self::sizes(format, width, length).map(Buffer::bytes_of).iter().sum()
    }
}

impl AttentionHeads<'_> {
    /// Computes the attention of the queries in `queries` of one head. Writes the values of the
    /// first query to the start of `out`, and those of each next query `out_stride` values further.
    ///
    /// Each call packs all keys and values of the head, so few calls with many queries are cheaper.
    pub(super) fn attend(
        &self,
        session: &KernelSession,
        memory: &mut AttentionScratch,
        head: usize,
        queries: Range<usize>,
        out: &mut AttentionOutput<'_>,
        out_stride: usize,
    ) {
        memory.reserve(self.format, self.width, self.length);
        self.pack_keys(head, memory.keys.groups_mut());
        self.pack_values(head, memory.values.groups_mut());
        for first in queries.clone().step_by(ROWS) {
            let block = first..queries.end.min(first + ROWS);
            let start = (first - queries.start) * out_stride;
            self.attend_rows(session, memory, head, block, out, (start, out_stride));
        }
    }

    fn multiply(&self, session: &KernelSession, product: &mut Product<'_>) {
        match self.format {
            OperandFormat::Bf16 => session.multiply_bf16(product),
            OperandFormat::F32 | OperandFormat::Int8(_) => session.multiply_f32(product),
        }
    }

    /// Returns the number of lane groups in a row of one head.
    const fn groups(&self) -> usize {
        self.format.lane_groups(self.width)
    }

    /// Returns the rows from `row` on. `part` is 0 for queries, 1 for keys, 2 for values.
    fn rows(&self, row: usize, part: usize, head: usize) -> &[u32] {
        &self.states[(part * self.heads + head) * self.stride + row * self.groups()..]
    }

    /// Returns the lane groups of one row.
    fn row(&self, row: usize, part: usize, head: usize) -> &[u32] {
        &self.rows(row, part, head)[..self.groups()]
    }

    /// Packs panels of 32 keys, `[panels, groups, 32]`. Padding keys are zero.
    fn pack_keys(&self, head: usize, packed: &mut [u32]) {
        let groups = self.groups();
        let (packed, _) = packed.as_chunks_mut::<PANEL_WIDTH>();
        for (panel, packed) in packed.chunks_exact_mut(groups).enumerate() {
            // Transpose: a line of the panel has the same lane group of 32 keys.
            for column in 0..PANEL_WIDTH {
                let key = panel * PANEL_WIDTH + column;
                if key < self.length {
                    for (packed, &group) in packed.iter_mut().zip(self.row(key, 1, head)) {
                        packed[column] = group;
                    }
                } else {
                    packed.iter_mut().for_each(|packed| packed[column] = 0);
                }
            }
            if (panel + 1) * PANEL_WIDTH >= self.length {
                break;
            }
        }
    }

    /// Packs panels of 32 value channels, `[panels, groups of keys, 32]`. The values of padding
    /// keys are zero.
    fn pack_values(&self, head: usize, packed: &mut [u32]) {
        let key_groups = self.format.lane_groups(self.length.next_multiple_of(PANEL_WIDTH));
        let (packed, _) = packed.as_chunks_mut::<PANEL_WIDTH>();
        for (panel, packed) in
            packed.chunks_exact_mut(key_groups).take(self.width / PANEL_WIDTH).enumerate()
        {
            for (group, packed) in packed.iter_mut().enumerate() {
                *packed = match self.format {
                    OperandFormat::F32 if group < self.length => {
                        let row = self.row(group, 2, head)[panel * PANEL_WIDTH..].first_chunk();
                        *row.unwrap_or(&[0; PANEL_WIDTH])
                    }
                    // A lane group has the values of two adjacent keys, so two rows are
                    // interleaved.
                    OperandFormat::Bf16 if 2 * group < self.length => {
                        let half = |key: usize| {
                            let row =
                                self.row(key, 2, head)[panel * PANEL_WIDTH / 2..].first_chunk();
                            *row.unwrap_or(&[0; PANEL_WIDTH / 2])
                        };
                        let odd = 2 * group + 1;
                        let odd = if odd < self.length { half(odd) } else { [0; PANEL_WIDTH / 2] };
                        interleave(&half(2 * group), &odd)
                    }
                    _ => [0; PANEL_WIDTH],
                };
            }
        }
    }

    /// Computes the attention of at most [`ROWS`] queries of one head. Writes the values of the
    /// first query to `start` of `out`, and those of each next query `stride` values further.
    fn attend_rows(
        &self,
        session: &KernelSession,
        memory: &mut AttentionScratch,
        head: usize,
        queries: Range<usize>,
        out: &mut AttentionOutput<'_>,
        (start, stride): (usize, usize),
    ) {
        let rows = queries.len();
        let padded = self.length.next_multiple_of(PANEL_WIDTH);
        // First product: the scores of the queries with each panel of 32 keys.
        let (groups, key_groups) = (self.groups(), self.format.lane_groups(padded));
        let operand = self.rows(queries.start, 0, head);
        let scores = &mut memory.scores.f32s_mut()[..ROWS * padded];
        let (keys, _) = memory.keys.groups().as_chunks::<PANEL_WIDTH>();
        for (panel, keys) in keys.chunks_exact(groups).take(padded / PANEL_WIDTH).enumerate() {
            self.multiply(
                session,
                &mut Product {
                    operand,
                    stride: groups,
                    rows,
                    panel: keys,
                    next_panel: &[],
                    out: &mut scores[panel * PANEL_WIDTH..],
                    out_stride: padded,
                },
            );
        }
        let mut inverses = [0.0; ROWS];
        // Row `i` of the block adds the bias from index `max_positions - 1 - (queries.start + i)`
        // on.
        let bias = self.bias.map(|bias| {
            let bias = bias[head].as_slice();
            (bias, bias.len() / 2 - queries.start)
        });
        rowwise::softmax(
            session.isa,
            &mut scores[..rows * padded],
            padded,
            self.length,
            bias,
            &mut inverses,
        );
        let probabilities = match self.format {
            OperandFormat::Bf16 => {
                let rounded = memory.probabilities.groups_mut();
                let halves = bytemuck::cast_slice_mut(rounded);
                rowwise::to_bf16(session.isa, &scores[..rows * padded], halves);
                memory.probabilities.groups()
            }
            _ => memory.scores.groups(),
        };
        // Second product: the probabilities with each panel of 32 value channels. Softmax left out
        // the division by the sums; the results are scaled instead.
        let (values, _) = memory.values.groups().as_chunks::<PANEL_WIDTH>();
        let panels = values.chunks_exact(key_groups).take(self.width / PANEL_WIDTH);
        for (panel, values) in panels.enumerate() {
            let block = memory.block.f32s_mut();
            self.multiply(
                session,
                &mut Product {
                    operand: probabilities,
                    stride: key_groups,
                    rows,
                    panel: values,
                    next_panel: &[],
                    out: block,
                    out_stride: PANEL_WIDTH,
                },
            );
            let block = &block.as_chunks::<PANEL_WIDTH>().0[..rows];
            let start = start + panel * PANEL_WIDTH;
            match out {
                AttentionOutput::F32(out) => {
                    rowwise::scale_f32(session.isa, block, &inverses, &mut out[start..], stride);
                }
                AttentionOutput::Bf16(out) => {
                    rowwise::scale_bf16(session.isa, block, &inverses, &mut out[start..], stride);
                }
            }
        }
    }
}

/// Returns pairs of bf16, one value of each row: `even` and `odd` are 32 values each, two in a lane
/// group.
fn interleave(even: &[u32; PANEL_WIDTH / 2], odd: &[u32; PANEL_WIDTH / 2]) -> [u32; PANEL_WIDTH] {
    let mut pairs = [0; PANEL_WIDTH];
    for (pairs, (&even, &odd)) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(even.iter().zip(odd))
    {
        *pairs = [(even & 0xffff) | odd << 16, even >> 16 | (odd & 0xffff_0000)];
    }
    pairs
}
