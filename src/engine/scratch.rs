//! Memory of a forward pass: one arena for each thread, which grows to the longest pass and is
//! kept.
//!
//! The module also computes the sizes of arenas in advance.

use super::attention::AttentionScratch;
use super::buffer::Buffer;
use super::config::{AttentionConfig, EncoderConfig, RelativeBias};
use super::layer::{LayerDims, PerLayerInput};
use super::linear::{KernelSession, Linear, Operand, OperandFormat, ROWS};
use super::simd::PANEL_WIDTH;
use super::simd::elementwise::RowQuantization;
use super::simd::rowwise;
use crate::base::quantization::even_blocks;

/// Rows that pass through the feed-forward products together. The values between these products,
/// 1.5 MiB at 3,072 channels, should stay near the second-level cache.
pub(super) const BLOCK: usize = 128;

/// Widths and formats of one row of a pass. Where the layers differ, each width is that of the
/// widest layer.
#[derive(Clone, Copy)]
pub(super) struct RowShape {
    /// Format of the operands of linear layers.
    pub(super) format: OperandFormat,
    /// Format of queries, keys and values: F32 or Bf16.
    pub(super) attention: OperandFormat,
    /// Width of a token vector.
    hidden: usize,
    /// Width of a token vector with its padding.
    row: usize,
    /// Lane groups of the queries, keys and values of all heads.
    states: usize,
    /// Width of the attended values of all heads.
    inner: usize,
    /// Width of a head with its padding.
    padded_head: usize,
    /// Width between the products of a feed-forward layer, with its padding.
    padded_intermediate: usize,
    /// Panels of results that are stored together.
    panels: usize,
    /// Whether token vectors are normalized into a copy.
    normed: bool,
    /// Whether a step follows the product for queries, keys and values.
    has_head_steps: bool,
    /// Width of the second vector of a token in a layer, with its padding; 0 without it.
    per_layer: usize,
    /// Rows of a table of distances, with their padding; 0 without tables.
    distances: usize,
    /// Number of experts that compute a token; 0 in a model without experts.
    experts: usize,
    /// Lane groups in a row that is prepared for a product, and the blocks of its inputs, each with
    /// a [`RowQuantization`].
    inputs: (usize, usize),
}

impl RowShape {
    pub(super) fn new(
        config: &EncoderConfig,
        format: OperandFormat,
        attention: OperandFormat,
    ) -> Self {
        let hidden = config.hidden_size;
        let mut shape = Self {
            format,
            attention,
            hidden,
            row: hidden.next_multiple_of(PANEL_WIDTH),
            states: 0,
            inner: 0,
            padded_head: 0,
            padded_intermediate: 0,
            panels: 1,
            normed: config.placement.is_before(),
            has_head_steps: false,
            per_layer: config.per_layer_input.map_or(0, PerLayerInput::padded),
            distances: match config.relative_bias {
                Some(RelativeBias::Disentangled(buckets)) => {
                    buckets.rows().next_multiple_of(PANEL_WIDTH)
                }
                None | Some(RelativeBias::Alibi | RelativeBias::Buckets) => 0,
            },
            experts: 0,
            inputs: (0, 0),
        };
        for layer in &config.layers {
            let dims = LayerDims::new(hidden, layer);
            let states = dims.all_heads() * shape.head_groups(&dims);
            let inputs = shape.inputs_of(&dims);
            shape.states = shape.states.max(states);
            shape.inner = shape.inner.max(dims.inner());
            shape.padded_head = shape.padded_head.max(dims.padded_head);
            shape.padded_intermediate = shape.padded_intermediate.max(dims.padded_intermediate);
            shape.panels = shape.panels.max(1 + usize::from(dims.gated));
            let AttentionConfig { rope, qk_norm, v_norm, .. } = &layer.attention;
            shape.has_head_steps |= rope.is_some() || *qk_norm || *v_norm;
            shape.inputs = (shape.inputs.0.max(inputs.0), shape.inputs.1.max(inputs.1));
            let experts = layer.feed_forward.experts.map_or(0, |experts| experts.used);
            shape.experts = shape.experts.max(experts);
        }
        // The second vectors are inputs of a product, too.
        if let Some(width) = config.per_layer_input {
            let (groups, blocks) = match format {
                OperandFormat::F32 => (0, 0),
                OperandFormat::Bf16 => (shape.per_layer / 2, 0),
                OperandFormat::Int8(_) => (format.row_lane_groups(width), even_blocks(width).len()),
            };
            shape.inputs = (shape.inputs.0.max(groups), shape.inputs.1.max(blocks));
        }
        shape
    }

    /// Returns the number of lane groups in a row of one head's queries, keys or values.
    pub(super) fn head_groups(&self, dims: &LayerDims) -> usize {
        self.attention.lane_groups(dims.padded_head)
    }

    /// Returns the distance, in lane groups, from one head's queries, keys or values to the next
    /// head's, in a pass of `rows` rows.
    pub(super) fn head_stride(&self, dims: &LayerDims, rows: usize) -> usize {
        padded(rows) * self.head_groups(dims)
    }

    /// Returns the number of lane groups of a row of attended values: bf16 if the next product
    /// reads it, otherwise f32.
    pub(super) fn attended_stride(&self, dims: &LayerDims) -> usize {
        match self.format {
            OperandFormat::Bf16 => dims.inner() / 2,
            OperandFormat::F32 | OperandFormat::Int8(_) => dims.inner(),
        }
    }

    /// Returns the format and the number of lane groups of a row of `padded_intermediate` values
    /// between the products of a feed-forward layer.
    pub(super) fn intermediate(&self, padded_intermediate: usize) -> (OperandFormat, usize) {
        let format = if self.format == OperandFormat::Bf16 {
            OperandFormat::Bf16
        } else {
            OperandFormat::F32
        };
        let values = padded_intermediate;
        (format, format.lane_groups(values).max(values / format.weights_per_lane_group()))
    }

    /// Returns the maximum over the products of a layer of two numbers: the lane groups in a row
    /// that is prepared for the product, and the blocks of its inputs.
    fn inputs_of(&self, dims: &LayerDims) -> (usize, usize) {
        let linears = dims.linears();
        let inputs = linears.iter().map(|(_, ends)| ends.last().copied().unwrap_or(0));
        match self.format {
            OperandFormat::F32 => (0, 0),
            // Only the products with hidden inputs read converted rows. The inputs of the other two
            // are already stored as bf16.
            OperandFormat::Bf16 => (self.format.lane_groups(dims.hidden).max(dims.row / 2), 0),
            OperandFormat::Int8(_) => (
                inputs.map(|inputs| self.format.row_lane_groups(inputs)).max().unwrap_or(0),
                linears.iter().map(|(_, ends)| ends.len()).max().unwrap_or(0),
            ),
        }
    }

    /// Returns the number of lane groups of a block between the products of a feed-forward layer,
    /// or of a block of second vectors and their factors.
    pub(super) fn wide(&self) -> usize {
        let between = BLOCK * self.intermediate(self.padded_intermediate).1;
        between.max(2 * BLOCK * self.per_layer)
    }

    /// Returns the width of a second vector with its padding.
    pub(super) fn per_layer(&self) -> usize {
        self.per_layer
    }

    /// Returns the number of values of a block of results: of the two factors of a gated layer.
    pub(super) fn block(&self) -> usize {
        self.panels * BLOCK * PANEL_WIDTH
    }

    /// Returns the number of values of a block of normalized token vectors.
    pub(super) fn normed(&self) -> usize {
        if self.normed { BLOCK * self.row } else { 0 }
    }

    /// Returns the number of values of a block of token vectors that one expert computes.
    pub(super) fn gathered(&self) -> usize {
        if self.experts > 0 { BLOCK * self.row } else { 0 }
    }

    /// Returns the number of values of the outputs of all experts for a block of token vectors.
    pub(super) fn expert_outputs(&self) -> usize {
        BLOCK * self.experts * self.row
    }

    /// Returns the number of values of a block of one head.
    pub(super) fn head_block(&self) -> usize {
        BLOCK * self.padded_head
    }

    /// Returns the memory of the arena of one thread, in bytes, after passes of up to `rows` rows
    /// and texts of up to `length` tokens.
    pub(super) fn arena_bytes(&self, rows: usize, length: usize) -> u64 {
        let states = PassBuffers::sizes(self, rows).iter().sum::<usize>();
        let wide = self.wide();
        let block = self.hidden.max(self.block());
        let head = if self.has_head_steps { self.head_block() } else { 0 };
        // Token vectors of a text, before they are pooled.
        let vectors = length * self.hidden;
        let experts = self.gathered() + self.expert_outputs();
        let buffers = states + wide + block + head + self.normed() + experts + vectors;
        let buffers = Buffer::bytes_of(buffers);
        let Self { attention, padded_head, distances, .. } = *self;
        let attention = AttentionScratch::bytes_of(attention, padded_head, length, distances);
        buffers + self.inputs_bytes() + attention
    }

    /// Returns the memory of the [`PreparedRows`] of a block of rows, in bytes.
    fn inputs_bytes(&self) -> u64 {
        let (groups, blocks) = self.inputs;
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
    /// Normalized token vectors.
    pub(super) normed: Buffer,
    pub(super) inputs: PreparedRows,
}

impl SharedScratch {
    /// Returns the number of lane groups of the results, of the gathered rows and of the normalized
    /// token vectors.
    fn sizes(shape: &RowShape) -> [usize; 3] {
        let gathered = shape.padded_intermediate.max(shape.inner);
        let results = BLOCK * shape.row.max(shape.padded_intermediate);
        [results.max(shape.expert_outputs()), BLOCK * gathered, shape.normed()]
    }

    /// Reserves memory for a block of rows.
    pub(super) fn reserve(&mut self, shape: &RowShape) {
        let [results, gathered, normed] = Self::sizes(shape);
        self.results.reserve(results);
        self.gathered.reserve(gathered);
        self.normed.reserve(normed);
    }

    /// Returns the memory for a model of `shape`, in bytes.
    pub(super) fn bytes_of(shape: &RowShape) -> u64 {
        let [results, gathered, normed] = Self::sizes(shape);
        let inputs = match shape.format {
            // The gathered rows are f32 here, and the product that reads them converts them.
            OperandFormat::Bf16 => shape.inputs_bytes().max(Buffer::bytes_of(gathered / 2)),
            OperandFormat::F32 | OperandFormat::Int8(_) => shape.inputs_bytes(),
        };
        Buffer::bytes_of(results + gathered + normed) + inputs
    }
}

/// Memory of one thread for a block of rows or a text.
#[derive(Default)]
pub(super) struct ThreadScratch {
    pub(super) inputs: PreparedRows,
    /// Values between the products of a feed-forward layer.
    pub(super) wide: Buffer,
    /// Results of a product.
    pub(super) block: Buffer,
    /// Values of one head between the product and attention.
    pub(super) head: Buffer,
    /// Normalized token vectors.
    pub(super) normed: Buffer,
    /// Token vectors that one expert computes.
    pub(super) gathered: Buffer,
    /// Outputs of all experts.
    pub(super) expert_outputs: Buffer,
    pub(super) attention: AttentionScratch,
    /// Token vectors of a text, before they are pooled.
    pub(super) vectors: Buffer,
}

/// Memory for the rows of a pass.
#[derive(Default)]
pub(super) struct PassBuffers {
    /// Residual stream, `[rows, row]` in f32.
    pub(super) x: Buffer,
    /// Queries, keys and values, `[heads of all three, rows padded, head]`.
    pub(super) heads: Buffer,
    /// Attended values.
    pub(super) attended: Buffer,
    /// Embeddings of the tokens, `[rows, row]` in f32, if the layers read them.
    pub(super) embeddings: Buffer,
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
    fn sizes(shape: &RowShape, rows: usize) -> [usize; 4] {
        let embedding = if shape.per_layer > 0 { shape.row } else { 0 };
        [shape.row, shape.states, shape.inner, embedding].map(|row| padded(rows) * row)
    }

    /// Reserves memory for `rows` rows.
    pub(super) fn reserve(&mut self, shape: &RowShape, rows: usize) {
        let Self { x, heads, attended, embeddings } = self;
        let buffers = [x, heads, attended, embeddings];
        for (buffer, size) in buffers.into_iter().zip(Self::sizes(shape, rows)) {
            buffer.reserve(size);
        }
    }

    /// Keeps a copy of the embeddings, the first `values` of `x`, if the layers read them.
    pub(super) fn keep_embeddings(&mut self, values: usize) {
        let embeddings = self.embeddings.f32s_mut();
        let values = values.min(embeddings.len());
        embeddings[..values].copy_from_slice(&self.x.f32s()[..values]);
    }
}
