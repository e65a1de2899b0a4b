//! Attention of one text, head by head, on the queries, keys and values of its rows.
//!
//! The scores of up to 32 queries with all keys are whole rows, so softmax does not combine partial
//! results. The keys and values of a head are packed into panels as weights are, and multiplied by
//! the same kernels.

use std::ops::Range;

use super::buffer::Buffer;
use super::linear::{Format, ROWS, Session};
use super::simd::dense::Product;
use super::simd::{STRIP, rows};

/// Queries, keys and values of one text, and the shape of its heads.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// Format of the states: F32 or Bf16.
    pub(super) format: Format,
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
    /// `2 · reach − 1` values by distance; distance 0 is in the middle.
    pub(super) bias: Option<&'a [Vec<f32>]>,
}

/// Destination of the attended values, in rows.
pub(super) enum Attended<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Memory for one text at a time.
#[derive(Default)]
pub(super) struct Memory {
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    probabilities: Buffer,
    block: Buffer,
}

impl Memory {
    /// Returns the number of lane groups of each buffer, in the order of the fields, for a text of
    /// `length` tokens and heads of `width` values.
    const fn sizes(format: Format, width: usize, length: usize) -> [usize; 5] {
        let padded = length.next_multiple_of(STRIP);
        [
            padded * format.groups(width),
            format.groups(padded) * width,
            ROWS * padded,
            ROWS * format.groups(padded),
            ROWS * STRIP,
        ]
    }

    fn reserve(&mut self, format: Format, width: usize, length: usize) {
        let Self { keys, values, scores, probabilities, block } = self;
        let sizes = Self::sizes(format, width, length);
        for (buffer, size) in [keys, values, scores, probabilities, block].into_iter().zip(sizes) {
            buffer.reserve(size);
        }
    }

    /// Returns the memory that a text will need, in bytes.
    pub(super) fn bytes_of(format: Format, width: usize, length: usize) -> u64 {
        Self::sizes(format, width, length).map(Buffer::bytes_of).iter().sum()
    }
}

impl Heads<'_> {
    /// Computes the attention of the queries in `queries` of one head. Writes the values of the
    /// first query to the start of `out`, and those of each next query `out_stride` values further.
    ///
    /// Each call packs all keys and values of the head, so few calls with many queries are cheaper.
    pub(super) fn attend(
        &self,
        session: &Session,
        memory: &mut Memory,
        head: usize,
        queries: Range<usize>,
        out: &mut Attended<'_>,
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

    fn multiply(&self, session: &Session, product: &mut Product<'_>) {
        match self.format {
            Format::Bf16 => session.multiply_bf16(product),
            Format::F32 | Format::Int8(_) => session.multiply_f32(product),
        }
    }

    /// Returns the number of lane groups in a row of one head.
    const fn groups(&self) -> usize {
        self.format.groups(self.width)
    }

    /// Returns the rows from `row` on. `part` is 0 for queries, 1 for keys, 2 for values.
    fn rows(&self, row: usize, part: usize, head: usize) -> &[u32] {
        &self.states[(part * self.heads + head) * self.stride + row * self.groups()..]
    }

    /// Returns the lane groups of one row.
    fn row(&self, row: usize, part: usize, head: usize) -> &[u32] {
        &self.rows(row, part, head)[..self.groups()]
    }

    /// Packs panels of 32 keys, `[strips, groups, 32]`. Padding keys are zero.
    fn pack_keys(&self, head: usize, packed: &mut [u32]) {
        let groups = self.groups();
        let (packed, _) = packed.as_chunks_mut::<STRIP>();
        for (strip, packed) in packed.chunks_exact_mut(groups).enumerate() {
            // Transpose: a line of the panel has the same lane group of 32 keys.
            for column in 0..STRIP {
                let key = strip * STRIP + column;
                if key < self.length {
                    for (packed, &group) in packed.iter_mut().zip(self.row(key, 1, head)) {
                        packed[column] = group;
                    }
                } else {
                    packed.iter_mut().for_each(|packed| packed[column] = 0);
                }
            }
            if (strip + 1) * STRIP >= self.length {
                break;
            }
        }
    }

    /// Packs panels of 32 value channels, `[strips, groups of keys, 32]`. The values of padding
    /// keys are zero.
    fn pack_values(&self, head: usize, packed: &mut [u32]) {
        let key_groups = self.format.groups(self.length.next_multiple_of(STRIP));
        let (packed, _) = packed.as_chunks_mut::<STRIP>();
        for (strip, packed) in
            packed.chunks_exact_mut(key_groups).take(self.width / STRIP).enumerate()
        {
            for (group, packed) in packed.iter_mut().enumerate() {
                *packed = match self.format {
                    Format::F32 if group < self.length => {
                        let row = self.row(group, 2, head)[strip * STRIP..].first_chunk();
                        *row.unwrap_or(&[0; STRIP])
                    }
                    // A lane group has the values of two adjacent keys, so two rows are
                    // interleaved.
                    Format::Bf16 if 2 * group < self.length => {
                        let half = |key: usize| {
                            let row = self.row(key, 2, head)[strip * STRIP / 2..].first_chunk();
                            *row.unwrap_or(&[0; STRIP / 2])
                        };
                        let odd = 2 * group + 1;
                        let odd = if odd < self.length { half(odd) } else { [0; STRIP / 2] };
                        interleave(&half(2 * group), &odd)
                    }
                    _ => [0; STRIP],
                };
            }
        }
    }

    /// Computes the attention of at most [`ROWS`] queries of one head. Writes the values of the
    /// first query to `start` of `out`, and those of each next query `stride` values further.
    fn attend_rows(
        &self,
        session: &Session,
        memory: &mut Memory,
        head: usize,
        queries: Range<usize>,
        out: &mut Attended<'_>,
        (start, stride): (usize, usize),
    ) {
        let rows = queries.len();
        let padded = self.length.next_multiple_of(STRIP);
        // First product: the scores of the queries with each panel of 32 keys.
        let (groups, key_groups) = (self.groups(), self.format.groups(padded));
        let operand = self.rows(queries.start, 0, head);
        let scores = &mut memory.scores.f32s_mut()[..ROWS * padded];
        let (keys, _) = memory.keys.groups().as_chunks::<STRIP>();
        for (strip, keys) in keys.chunks_exact(groups).take(padded / STRIP).enumerate() {
            self.multiply(
                session,
                &mut Product {
                    operand,
                    stride: groups,
                    rows,
                    strip: keys,
                    ahead: &[],
                    out: &mut scores[strip * STRIP..],
                    out_stride: padded,
                },
            );
        }
        let mut inverses = [0.0; ROWS];
        // Row `i` of the block adds the bias from index `reach - 1 - (queries.start + i)` on.
        let bias = self.bias.map(|bias| {
            let bias = bias[head].as_slice();
            (bias, bias.len() / 2 - queries.start)
        });
        rows::softmax(
            session.isa,
            &mut scores[..rows * padded],
            padded,
            self.length,
            bias,
            &mut inverses,
        );
        let probabilities = match self.format {
            Format::Bf16 => {
                let rounded = memory.probabilities.groups_mut();
                let halves = bytemuck::cast_slice_mut(rounded);
                rows::to_bf16(session.isa, &scores[..rows * padded], halves);
                memory.probabilities.groups()
            }
            _ => memory.scores.groups(),
        };
        // Second product: the probabilities with each panel of 32 value channels. Softmax left out
        // the division by the sums; the results are scaled instead.
        let (values, _) = memory.values.groups().as_chunks::<STRIP>();
        let strips = values.chunks_exact(key_groups).take(self.width / STRIP);
        for (strip, values) in strips.enumerate() {
            let block = memory.block.f32s_mut();
            self.multiply(
                session,
                &mut Product {
                    operand: probabilities,
                    stride: key_groups,
                    rows,
                    strip: values,
                    ahead: &[],
                    out: block,
                    out_stride: STRIP,
                },
            );
            let block = &block.as_chunks::<STRIP>().0[..rows];
            let start = start + strip * STRIP;
            match out {
                Attended::F32(out) => {
                    rows::scale_f32(session.isa, block, &inverses, &mut out[start..], stride);
                }
                Attended::Bf16(out) => {
                    rows::scale_bf16(session.isa, block, &inverses, &mut out[start..], stride);
                }
            }
        }
    }
}

/// Returns pairs of bf16, one value of each row: `even` and `odd` are 32 values each, two in a lane
/// group.
fn interleave(even: &[u32; STRIP / 2], odd: &[u32; STRIP / 2]) -> [u32; STRIP] {
    let mut pairs = [0; STRIP];
    for (pairs, (&even, &odd)) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(even.iter().zip(odd))
    {
        *pairs = [(even & 0xffff) | odd << 16, even >> 16 | (odd & 0xffff_0000)];
    }
    pairs
}
