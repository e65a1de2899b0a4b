//! Memory of a forward pass: one arena for each thread, which grows to the longest pass and is
//! kept.
//!
//! The module also computes the sizes of arenas in advance.

use super::attention::AttentionScratch;
use super::buffer::Buffer;
use super::layer::LayerDims;
use super::linear::{KernelSession, Linear, Operand, OperandFormat, ROWS};
use super::simd::PANEL_WIDTH;
use super::simd::elementwise::RowQuantization;
use super::simd::rowwise;

/// Rows that pass through the feed-forward products together. The values between these products,
/// 1.5 MiB at 3,072 channels, should stay near the second-level cache.
pub(super) const BLOCK: usize = 128;

/// Widths and formats of one row of a pass.
#[derive(Clone, Copy)]
pub(super) struct RowShape {
    pub(super) dims: LayerDims,
    /// Format of the operands of linear layers.
    pub(super) format: OperandFormat,
    /// Format of queries, keys and values: F32 or Bf16.
    pub(super) attention: OperandFormat,
}

impl RowShape {
    /// Returns the number of lane groups in a row of one head's queries, keys or values.
    pub(super) fn head_groups(&self) -> usize {
        self.attention.lane_groups(self.dims.padded_head)
    }

    /// Returns the distance, in lane groups, from one head's queries, keys or values to the next
    /// head's, in a pass of `rows` rows.
    pub(super) fn head_stride(&self, rows: usize) -> usize {
        padded(rows) * self.head_groups()
    }

    /// Returns the number of lane groups of a row of attended values: bf16 if the next product
    /// reads it, otherwise f32.
    pub(super) fn attended_stride(&self) -> usize {
        match self.format {
            OperandFormat::Bf16 => self.dims.inner() / 2,
            OperandFormat::F32 | OperandFormat::Int8(_) => self.dims.inner(),
        }
    }

    /// Returns the format and the number of lane groups of a row between the products of a
    /// feed-forward layer.
    pub(super) fn intermediate(&self) -> (OperandFormat, usize) {
        let format = if self.format == OperandFormat::Bf16 {
            OperandFormat::Bf16
        } else {
            OperandFormat::F32
        };
        let values = self.dims.padded_intermediate;
        (format, format.lane_groups(values).max(values / format.weights_per_lane_group()))
    }

    /// Returns the maximum over all products of two numbers: the lane groups in a row that is
    /// prepared for the product, and the blocks of its inputs, each with a [`RowQuantization`].
    fn inputs(&self) -> (usize, usize) {
        let linears = self.dims.linears();
        let inputs = linears.iter().map(|(_, ends)| ends.last().copied().unwrap_or(0));
        match self.format {
            OperandFormat::F32 => (0, 0),
            // Only the products with hidden inputs read converted rows. The inputs of the other two
            // are already stored as bf16.
            OperandFormat::Bf16 => {
                (self.format.lane_groups(self.dims.hidden).max(self.dims.row / 2), 0)
            }
            OperandFormat::Int8(_) => (
                inputs.map(|inputs| self.format.row_lane_groups(inputs)).max().unwrap_or(0),
                linears.iter().map(|(_, ends)| ends.len()).max().unwrap_or(0),
            ),
        }
    }

    /// Returns the memory of the arena of one thread, in bytes, after passes of up to `rows` rows
    /// and texts of up to `length` tokens.
    pub(super) fn arena_bytes(&self, rows: usize, length: usize) -> u64 {
        let states = PassBuffers::sizes(self, rows).iter().sum::<usize>();
        let wide = BLOCK * self.intermediate().1;
        let block = self.dims.hidden.max(BLOCK * PANEL_WIDTH);
        // Token vectors of a text, before they are pooled.
        let vectors = length * self.dims.hidden;
        let buffers = Buffer::bytes_of(states + wide + block + vectors);
        let attention = AttentionScratch::bytes_of(self.attention, self.dims.padded_head, length);
        buffers + self.inputs_bytes() + attention
    }

    /// Returns the memory of the [`PreparedRows`] of a block of rows, in bytes.
    fn inputs_bytes(&self) -> u64 {
        let (groups, blocks) = self.inputs();
        Buffer::bytes_of(BLOCK * groups) + (BLOCK * blocks * size_of::<RowQuantization>()) as u64
    }
}

/// Rows prepared for a product.
#[derive(Default)]
pub(super) struct PreparedRows {
    groups: Buffer,
    quantization: Vec<RowQuantization>,
}

/// Some rows of [`PreparedRows`], to be prepared.
pub(super) struct UnpreparedRows<'a> {
    groups: &'a mut [u32],
    quantization: &'a mut [RowQuantization],
}

impl UnpreparedRows<'_> {
    /// Prepares `values`, rows `stride` apart, for `linear`: converts them to bf16 or quantizes
    /// them to int8. Does nothing for f32, which is read in place.
    pub(super) fn fill(
        self,
        session: &KernelSession,
        linear: &Linear,
        values: &[f32],
        stride: usize,
    ) {
        match linear.format() {
            OperandFormat::F32 => {}
            OperandFormat::Bf16 => {
                rowwise::to_bf16(session.isa, values, bytemuck::cast_slice_mut(self.groups));
            }
            OperandFormat::Int8(_) => {
                let ends = linear.blocks().unwrap_or_default();
                let groups = linear.format().row_lane_groups(linear.inputs());
                let Self { groups: out, quantization } = self;
                rowwise::quantize(session.isa, values, stride, ends, out, groups, quantization);
            }
        }
    }
}

impl PreparedRows {
    /// Returns the number of lane groups of a row that is prepared for `linear`, and its number of
    /// blocks with a [`RowQuantization`] each. `stride` is that of the values.
    fn shape(linear: &Linear, stride: usize) -> (usize, usize) {
        match linear.format() {
            OperandFormat::F32 => (0, 0),
            OperandFormat::Bf16 => (stride / 2, 0),
            format @ OperandFormat::Int8(_) => {
                (format.row_lane_groups(linear.inputs()), linear.blocks().map_or(0, <[usize]>::len))
            }
        }
    }

    /// Reserves memory for `count` rows for `linear`. Returns them in parts of `each` rows.
    pub(super) fn rows_mut(
        &mut self,
        linear: &Linear,
        stride: usize,
        count: usize,
        each: usize,
    ) -> Vec<UnpreparedRows<'_>> {
        let (row, blocks) = Self::shape(linear, stride);
        self.groups.reserve(count.next_multiple_of(ROWS) * row);
        let pairs = (count * blocks).max(self.quantization.len());
        self.quantization.resize(pairs, RowQuantization::default());
        let mut groups = self.groups.groups_mut();
        let mut quantization = self.quantization.as_mut_slice();
        let rows = (0..count).step_by(each).map(|first| {
            let rows = each.min(count - first);
            UnpreparedRows {
                groups: groups.split_off_mut(..rows * row).unwrap_or_default(),
                quantization: quantization.split_off_mut(..rows * blocks).unwrap_or_default(),
            }
        });
        rows.collect()
    }

    /// Returns `count` rows of `values`, `stride` apart, that were prepared before, as an operand
    /// of `linear`.
    pub(super) fn prepared<'a>(
        &'a self,
        linear: &Linear,
        values: &'a [f32],
        stride: usize,
        count: usize,
    ) -> Operand<'a> {
        let (row, blocks) = Self::shape(linear, stride);
        match linear.format() {
            OperandFormat::F32 => Operand::floats(bytemuck::cast_slice(values), stride, count),
            OperandFormat::Bf16 => Operand::floats(self.groups.groups(), row, count),
            OperandFormat::Int8(_) => Operand {
                groups: self.groups.groups(),
                stride: row,
                rows: count,
                quantization: &self.quantization[..count * blocks],
                values: (&values[..count * stride], stride),
            },
        }
    }

    /// Prepares `count` rows of `values`, `stride` apart, and returns them as an operand of
    /// `linear`. `values` must also contain the padding rows.
    pub(super) fn operand<'a>(
        &'a mut self,
        session: &KernelSession,
        linear: &Linear,
        values: &'a [f32],
        stride: usize,
        count: usize,
    ) -> Operand<'a> {
        for rows in self.rows_mut(linear, stride, count, count.max(1)) {
            rows.fill(session, linear, &values[..count * stride], stride);
        }
        self.prepared(linear, values, stride, count)
    }
}

/// Memory of a pass that all threads compute together, in addition to the memory of each thread.
#[derive(Default)]
pub(super) struct SharedScratch {
    /// Results of a product, `[panels, rows, 32]`.
    pub(super) results: Buffer,
    /// Whole rows, gathered from the results.
    pub(super) gathered: Buffer,
    pub(super) inputs: PreparedRows,
}

impl SharedScratch {
    /// Returns the number of lane groups of the results and of the gathered rows.
    fn sizes(shape: &RowShape) -> [usize; 2] {
        let LayerDims { row, padded_intermediate, .. } = shape.dims;
        let gathered = padded_intermediate.max(shape.dims.inner());
        [BLOCK * row.max(padded_intermediate), BLOCK * gathered]
    }

    /// Reserves memory for a block of rows.
    pub(super) fn reserve(&mut self, shape: &RowShape) {
        let [results, gathered] = Self::sizes(shape);
        self.results.reserve(results);
        self.gathered.reserve(gathered);
    }

    /// Returns the memory for a model of `shape`, in bytes.
    pub(super) fn bytes_of(shape: &RowShape) -> u64 {
        let [results, gathered] = Self::sizes(shape);
        let inputs = match shape.format {
            // The gathered rows are f32 here, and the product that reads them converts them.
            OperandFormat::Bf16 => shape.inputs_bytes().max(Buffer::bytes_of(gathered / 2)),
            OperandFormat::F32 | OperandFormat::Int8(_) => shape.inputs_bytes(),
        };
        Buffer::bytes_of(results + gathered) + inputs
    }
}

/// Memory of one thread for a block of rows or a text.
#[derive(Default)]
pub(super) struct ThreadScratch {
    pub(super) inputs: PreparedRows,
    /// Values between the products of a feed-forward layer.
    pub(super) wide: Buffer,
    pub(super) block: Buffer,
    pub(super) attention: AttentionScratch,
    /// Token vectors of a text, before they are pooled.
    pub(super) vectors: Buffer,
}

/// Memory for the rows of a pass.
#[derive(Default)]
pub(super) struct PassBuffers {
    /// Residual stream, `[rows, row]` in f32.
    pub(super) x: Buffer,
    /// Queries, keys and values, `[3, heads, rows padded, head]`.
    pub(super) heads: Buffer,
    /// Attended values.
    pub(super) attended: Buffer,
}

/// Returns the number of rows with padding. A text may begin at any row, so the last block of
/// [`ROWS`] rows of a text may reach beyond the next multiple.
const fn padded(rows: usize) -> usize {
    rows.next_multiple_of(ROWS) + ROWS
}

impl PassBuffers {
    /// Returns the number of lane groups of each buffer, in the order of the fields, for `rows`
    /// rows. The attended values are counted as f32, which a pass that all threads compute together
    /// needs.
    fn sizes(shape: &RowShape, rows: usize) -> [usize; 3] {
        let heads = 3 * shape.dims.heads * shape.head_groups();
        [shape.dims.row, heads, shape.dims.inner()].map(|row| padded(rows) * row)
    }

    /// Reserves memory for `rows` rows.
    pub(super) fn reserve(&mut self, shape: &RowShape, rows: usize) {
        let Self { x, heads, attended } = self;
        for (buffer, size) in [x, heads, attended].into_iter().zip(Self::sizes(shape, rows)) {
            buffer.reserve(size);
        }
    }
}
