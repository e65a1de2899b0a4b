//! Attention of one text, head by head, on the queries, keys and values of its rows.
//!
//! The scores of up to 32 queries with all keys in their reach are whole rows, so softmax does not
//! combine partial results. The keys and values of a head are packed into panels as weights are,
//! and multiplied by the same kernels. Local and causal attention skip the panels of keys that no
//! query of a block attends to. In DeBERTa, products with [tables of
//! distances](super::layer::disentangled) are added to the scores.

use std::ops::Range;

use super::buffer::Buffer;
use super::layer::disentangled::{DistanceRows, DistanceTables};
use super::linear::{KernelSession, OperandFormat, ROWS};
use super::simd::product::Product;
use super::simd::{Isa, PANEL_WIDTH, rowwise};

/// Keys to which a query attends, by their distance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reach {
    /// Largest distance, if attention is local.
    pub(super) window: Option<usize>,
    /// Whether a query attends to no later keys.
    pub(super) causal: bool,
}

impl Reach {
    /// Returns the keys of a text of `length` tokens to which some query of `queries` attends.
    fn keys(self, queries: Range<usize>, length: usize) -> Range<usize> {
        let window = self.window.unwrap_or(length);
        let start = queries.start.saturating_sub(window);
        let ahead = if self.causal { 0 } else { window };
        start..length.min(queries.end.saturating_add(ahead))
    }
}

/// Queries, keys and values of one text, and the shape of its heads.
#[derive(Clone, Copy)]
pub(super) struct AttentionHeads<'a> {
    /// Format of the states: F32 or Bf16.
    pub(super) format: OperandFormat,
    /// Number of heads of the queries.
    pub(super) heads: usize,
    /// Number of heads of the keys, and of the values. Adjacent heads of the queries share one.
    pub(super) kv_heads: usize,
    /// Number of values of a head, padded to whole panels.
    pub(super) width: usize,
    /// Queries of all heads, then keys, then values, `[heads of all three, rows, width]`. Each head
    /// has the rows of the text, followed by the padding rows.
    pub(super) states: &'a [u32],
    /// Distance between two heads, in lane groups.
    pub(super) stride: usize,
    /// Number of tokens of the text.
    pub(super) length: usize,
    pub(super) reach: Reach,
    /// Relative position bias of each head, added to the score of a query and a key. A head has
    /// `2 · max_positions − 1` values by distance; distance 0 is in the middle.
    pub(super) bias: Option<&'a [Vec<f32>]>,
    /// Tables of distances, whose products are added to the scores. Queries and keys then have the
    /// same number of heads.
    pub(super) distances: Option<DistanceTerms<'a>>,
}

/// Tables of distances of a layer, and the row of each distance.
#[derive(Clone, Copy)]
pub(super) struct DistanceTerms<'a> {
    pub(super) tables: &'a DistanceTables,
    pub(super) rows: &'a DistanceRows,
}

/// Panels of keys, in their order.
struct KeyPanels {
    /// First key of the first panel, a multiple of [`PANEL_WIDTH`].
    first: usize,
    /// Number of panels.
    count: usize,
}

impl KeyPanels {
    fn of(keys: &Range<usize>) -> Self {
        let first = keys.start / PANEL_WIDTH;
        Self { first: first * PANEL_WIDTH, count: keys.end.div_ceil(PANEL_WIDTH) - first }
    }

    /// Returns the number of keys with their padding.
    const fn padded(&self) -> usize {
        self.count * PANEL_WIDTH
    }
}

/// Destination of the attended values, in rows.
pub(super) enum AttentionOutput<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

impl AttentionOutput<'_> {
    /// Writes the rows of `block`, each times its factor, from value `start` on, `stride` values
    /// apart.
    fn write(
        &mut self,
        isa: Isa,
        block: &[[f32; PANEL_WIDTH]],
        factors: &[f32],
        (start, stride): (usize, usize),
    ) {
        match self {
            Self::F32(out) => rowwise::scale_f32(isa, block, factors, &mut out[start..], stride),
            Self::Bf16(out) => rowwise::scale_bf16(isa, block, factors, &mut out[start..], stride),
        }
    }
}

/// Memory for one text at a time.
#[derive(Default)]
pub(super) struct AttentionScratch {
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    probabilities: Buffer,
    block: Buffer,
    /// Products of a block of queries with the keys of distances.
    query_terms: Buffer,
    /// Products of all keys with the queries of distances.
    key_terms: Buffer,
}

impl AttentionScratch {
    /// Returns the number of lane groups of each buffer, in the order of the fields, for a text of
    /// `length` tokens, heads of `width` values and tables of `distances` rows.
    const fn sizes(
        format: OperandFormat,
        width: usize,
        length: usize,
        distances: usize,
    ) -> [usize; 7] {
        let padded = length.next_multiple_of(PANEL_WIDTH);
        [
            padded * format.lane_groups(width),
            format.lane_groups(padded) * width,
            ROWS * padded,
            ROWS * format.lane_groups(padded),
            ROWS * PANEL_WIDTH,
            ROWS * distances,
            length.next_multiple_of(ROWS) * distances,
        ]
    }

    fn reserve(&mut self, format: OperandFormat, width: usize, length: usize, distances: usize) {
        let Self { keys, values, scores, probabilities, block, query_terms, key_terms } = self;
        let buffers = [keys, values, scores, probabilities, block, query_terms, key_terms];
        let sizes = Self::sizes(format, width, length, distances);
        for (buffer, size) in buffers.into_iter().zip(sizes) {
            buffer.reserve(size);
        }
    }

    /// Returns the memory that a text will need, in bytes.
    pub(super) fn bytes_of(
        format: OperandFormat,
        width: usize,
        length: usize,
        distances: usize,
    ) -> u64 {
        Self::sizes(format, width, length, distances).map(Buffer::bytes_of).iter().sum()
    }
}

impl AttentionHeads<'_> {
    /// Computes the attention of the queries in `queries` of one head. Writes the values of the
    /// first query to the start of `out`, and those of each next query `out_stride` values further.
    ///
    /// Each call packs the keys and values in reach of the queries, so few calls with many queries
    /// are cheaper.
    pub(super) fn attend(
        &self,
        session: &KernelSession,
        memory: &mut AttentionScratch,
        head: usize,
        queries: Range<usize>,
        out: &mut AttentionOutput<'_>,
        out_stride: usize,
    ) {
        let distances = self.distances.map_or(0, |terms| terms.tables.padded_rows());
        memory.reserve(self.format, self.width, self.length, distances);
        let packed = KeyPanels::of(&self.reach.keys(queries.clone(), self.length));
        let kv_head = head / (self.heads / self.kv_heads);
        self.pack_keys(kv_head, &packed, memory.keys.groups_mut());
        self.pack_values(kv_head, &packed, memory.values.groups_mut());
        if let Some(DistanceTerms { tables, rows }) = self.distances {
            let keys = self.rows(0, self.heads + kv_head);
            let table = tables.queries(head, &rows.panels(self.length));
            self.multiply_table(session, keys, self.length, table, memory.key_terms.f32s_mut());
        }
        for first in queries.clone().step_by(ROWS) {
            let block = first..queries.end.min(first + ROWS);
            let start = (first - queries.start) * out_stride;
            self.attend_rows(session, memory, (head, &packed), block, out, (start, out_stride));
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

    /// Returns the number of lane groups of the keys of a panel in a packed value channel.
    const fn key_groups(&self) -> usize {
        PANEL_WIDTH / self.format.weights_per_lane_group()
    }

    /// Returns the rows of head `head` from `row` on. The heads of the keys follow those of the
    /// queries, and the heads of the values follow those of the keys.
    fn rows(&self, row: usize, head: usize) -> &[u32] {
        &self.states[head * self.stride + row * self.groups()..]
    }

    /// Returns the lane groups of the row of `key` in head `head` of the keys.
    fn key(&self, key: usize, head: usize) -> &[u32] {
        &self.rows(key, self.heads + head)[..self.groups()]
    }

    /// Returns the lane groups of the values of `key` in head `head` of the values.
    fn value(&self, key: usize, head: usize) -> &[u32] {
        &self.rows(key, self.heads + self.kv_heads + head)[..self.groups()]
    }

    /// Packs panels of 32 keys, `[panels, groups, 32]`. Padding keys are zero.
    fn pack_keys(&self, head: usize, panels: &KeyPanels, packed: &mut [u32]) {
        let (packed, _) = packed.as_chunks_mut::<PANEL_WIDTH>();
        let packed = packed.chunks_exact_mut(self.groups()).take(panels.count);
        for (first, packed) in (panels.first..).step_by(PANEL_WIDTH).zip(packed) {
            // Transpose: a line of the panel has the same lane group of 32 keys.
            for column in 0..PANEL_WIDTH {
                let key = first + column;
                if key < self.length {
                    for (packed, &group) in packed.iter_mut().zip(self.key(key, head)) {
                        packed[column] = group;
                    }
                } else {
                    packed.iter_mut().for_each(|packed| packed[column] = 0);
                }
            }
        }
    }

    /// Packs panels of 32 value channels, `[panels, groups of keys, 32]`. The values of padding
    /// keys are zero.
    fn pack_values(&self, head: usize, panels: &KeyPanels, packed: &mut [u32]) {
        let key_groups = panels.count * self.key_groups();
        let (packed, _) = packed.as_chunks_mut::<PANEL_WIDTH>();
        for (panel, packed) in
            packed.chunks_exact_mut(key_groups).take(self.width / PANEL_WIDTH).enumerate()
        {
            for (group, packed) in packed.iter_mut().enumerate() {
                let key = panels.first + group * self.format.weights_per_lane_group();
                *packed = match self.format {
                    OperandFormat::F32 if key < self.length => {
                        let row = self.value(key, head)[panel * PANEL_WIDTH..].first_chunk();
                        *row.unwrap_or(&[0; PANEL_WIDTH])
                    }
                    // A lane group has the values of two adjacent keys, so two rows are
                    // interleaved.
                    OperandFormat::Bf16 if key < self.length => {
                        let half = |key: usize| {
                            let row =
                                self.value(key, head)[panel * PANEL_WIDTH / 2..].first_chunk();
                            *row.unwrap_or(&[0; PANEL_WIDTH / 2])
                        };
                        let odd = key + 1;
                        let odd = if odd < self.length { half(odd) } else { [0; PANEL_WIDTH / 2] };
                        interleave(&half(key), &odd)
                    }
                    _ => [0; PANEL_WIDTH],
                };
            }
        }
    }

    /// Computes the attention of at most [`ROWS`] queries of one head, whose keys and values are
    /// the `packed` panels. Writes the values of the first query to `start` of `out`, and those of
    /// each next query `stride` values further.
    fn attend_rows(
        &self,
        session: &KernelSession,
        memory: &mut AttentionScratch,
        (head, packed): (usize, &KeyPanels),
        queries: Range<usize>,
        out: &mut AttentionOutput<'_>,
        (start, stride): (usize, usize),
    ) {
        let rows = queries.len();
        let panels = KeyPanels::of(&self.reach.keys(queries.clone(), self.length));
        let padded = panels.padded();
        let skipped = (panels.first - packed.first) / PANEL_WIDTH;
        // First product: the scores of the queries with each panel of 32 keys.
        let groups = self.groups();
        let operand = self.rows(queries.start, head);
        let scores = &mut memory.scores.f32s_mut()[..ROWS * padded];
        let (keys, _) = memory.keys.groups().as_chunks::<PANEL_WIDTH>();
        let keys = keys.chunks_exact(groups).skip(skipped).take(panels.count);
        for (panel, keys) in keys.enumerate() {
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
        let scores = &mut scores[..rows * padded];
        if let Some(terms) = &self.distances {
            let table = terms.tables.keys(head, &terms.rows.panels(self.length));
            self.multiply_table(session, operand, rows, table, memory.query_terms.f32s_mut());
            let products = [memory.query_terms.f32s(), memory.key_terms.f32s()];
            self.add_distances(terms, products, scores, &panels, queries.clone());
        }
        let inverses = self.softmax(session, scores, &panels, head, queries);
        let probabilities = match self.format {
            OperandFormat::Bf16 => {
                let rounded = memory.probabilities.groups_mut();
                let halves = bytemuck::cast_slice_mut(rounded);
                rowwise::to_bf16(session.isa, scores, halves);
                memory.probabilities.groups()
            }
            _ => memory.scores.groups(),
        };
        // Second product: the probabilities with each panel of 32 value channels. Softmax left out
        // the division by the sums; the results are scaled instead.
        let key_groups = panels.count * self.key_groups();
        let (values, _) = memory.values.groups().as_chunks::<PANEL_WIDTH>();
        let values = values.chunks_exact(packed.count * self.key_groups());
        for (panel, values) in values.take(self.width / PANEL_WIDTH).enumerate() {
            let block = memory.block.f32s_mut();
            self.multiply(
                session,
                &mut Product {
                    operand: probabilities,
                    stride: key_groups,
                    rows,
                    panel: &values[skipped * self.key_groups()..][..key_groups],
                    next_panel: &[],
                    out: block,
                    out_stride: PANEL_WIDTH,
                },
            );
            let block = &block.as_chunks::<PANEL_WIDTH>().0[..rows];
            out.write(session.isa, block, &inverses, (start + panel * PANEL_WIDTH, stride));
        }
    }

    /// Multiplies the first `count` rows of a head in `operand` with the panels of a table. Writes
    /// the results to `out`, `[rows, 32 times the panels]`.
    fn multiply_table(
        &self,
        session: &KernelSession,
        operand: &[u32],
        count: usize,
        table: &[[u32; PANEL_WIDTH]],
        out: &mut [f32],
    ) {
        let groups = self.groups();
        let width = table.len() / groups * PANEL_WIDTH;
        for first in (0..count).step_by(ROWS) {
            for (panel, table) in table.chunks_exact(groups).enumerate() {
                self.multiply(
                    session,
                    &mut Product {
                        operand: &operand[first * groups..],
                        stride: groups,
                        rows: ROWS.min(count - first),
                        panel: table,
                        next_panel: &[],
                        out: &mut out[first * width + panel * PANEL_WIDTH..],
                        out_stride: width,
                    },
                );
            }
        }
    }

    /// Adds the products that belong to the distance of each query and key to the `scores` of
    /// `queries` with the keys of `panels`. The products are those of the queries of the block and
    /// of all keys.
    fn add_distances(
        &self,
        DistanceTerms { rows, .. }: &DistanceTerms<'_>,
        [of_queries, of_keys]: [&[f32]; 2],
        scores: &mut [f32],
        panels: &KeyPanels,
        queries: Range<usize>,
    ) {
        let table = rows.panels(self.length);
        let (first, width) = (table.start * PANEL_WIDTH, table.len() * PANEL_WIDTH);
        let of_keys = || of_keys.chunks_exact(width).take(self.length).skip(panels.first);
        for ((query, of_query), scores) in queries
            .zip(of_queries.chunks_exact(width))
            .zip(scores.chunks_exact_mut(panels.padded()))
        {
            let rows = rows.from(query, panels.first);
            for ((score, of_key), &row) in scores.iter_mut().zip(of_keys()).zip(rows) {
                let row = row as usize - first;
                *score += of_query[row] + of_key[row];
            }
        }
    }

    /// Replaces the `scores` of `queries` with the keys of `panels` by their softmax without the
    /// division. Returns the reciprocal of the sum of each row.
    fn softmax(
        &self,
        session: &KernelSession,
        scores: &mut [f32],
        panels: &KeyPanels,
        head: usize,
        queries: Range<usize>,
    ) -> [f32; ROWS] {
        let mut ranges = [(0, 0); ROWS];
        for (query, range) in queries.clone().zip(&mut ranges) {
            let keys = self.reach.keys(query..query + 1, self.length);
            *range = (keys.start - panels.first, keys.end - panels.first);
        }
        // Row `i` of the block adds the bias from index `max_positions - 1 - (queries.start + i)`
        // plus the first key on.
        let bias = self.bias.map(|bias| {
            let bias = bias[head].as_slice();
            (bias, bias.len() / 2 + panels.first - queries.start)
        });
        let mut inverses = [0.0; ROWS];
        let ranges = &ranges[..queries.len()];
        rowwise::softmax(session.isa, scores, panels.padded(), ranges, bias, &mut inverses);
        inverses
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
