//! Linear layers: weights that are packed once into panels, and their products.
//!
//! The packed form is panels of 32 outputs, `[panels, groups, 32]`. A lane group is four bytes
//! along the inputs. Inputs and outputs are padded with zeros to whole tiles. The caller processes
//! each block of results while it is in the cache.

pub(super) mod panel;

use super::amx::{Amx, Tiles};
use super::buffer::Buffer;
use super::simd::elementwise::RowQuantization;
use super::simd::gemm;
use super::simd::product::{OperandQuantization, Product};
use super::simd::{Int8RowFormat, Isa, PANEL_WIDTH};

/// Alignment of the length of an operand's row, in lane groups: a cache line, and a row of an AMX
/// tile.
const GROUPS: usize = 16;
/// Alignment of the number of rows of operands and results.
pub(super) const ROWS: usize = 32;

/// Format of the elements of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperandFormat {
    F32,
    Bf16,
    /// Weights are signed bytes. Rows are integers with a zero point, in the layout that the kernel
    /// reads.
    Int8(Int8RowFormat),
}

impl OperandFormat {
    /// Returns the number of weights in a lane group.
    pub(super) const fn weights_per_lane_group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8(_) => 4,
        }
    }

    /// Returns the number of lane groups of `elements` weights, padded.
    pub(super) const fn lane_groups(self, elements: usize) -> usize {
        elements.div_ceil(self.weights_per_lane_group()).next_multiple_of(GROUPS)
    }

    /// Returns the number of lane groups of a row of `elements`, padded. It is twice that of the
    /// weights if the integers of a row take twice the memory.
    pub(super) const fn row_lane_groups(self, elements: usize) -> usize {
        match self {
            Self::Int8(Int8RowFormat::Wide) => 2 * self.lane_groups(elements),
            _ => self.lane_groups(elements),
        }
    }
}

/// Instructions that this processor has and this process may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backend {
    pub(super) isa: Isa,
    pub(super) amx: Option<Amx>,
}

impl Backend {
    /// Prepares this thread for products: configures its AMX tiles, if there are any.
    pub(super) fn session(&self) -> KernelSession {
        KernelSession { isa: self.isa, tiles: self.amx.map(Amx::tiles) }
    }
}

/// Kernels of one thread during a phase of a pass. Holds the configured tiles.
pub(super) struct KernelSession {
    pub(super) isa: Isa,
    tiles: Option<Tiles>,
}

impl KernelSession {
    /// Computes one product of f32.
    pub(super) fn multiply_f32(&self, product: &mut Product<'_>) {
        gemm::f32(self.isa, product);
    }

    /// Computes one product of bf16. Rows and results must be allocated up to a multiple of
    /// [`ROWS`].
    pub(super) fn multiply_bf16(&self, product: &mut Product<'_>) {
        match &self.tiles {
            Some(tiles) => tiles.bf16(product),
            None => gemm::bf16(self.isa, product),
        }
    }

    /// Computes one product of bytes.
    pub(super) fn multiply_int8(
        &self,
        product: &mut Product<'_>,
        integers: &OperandQuantization<'_>,
    ) {
        gemm::int8(self.isa, product, integers);
    }
}

/// Rows to multiply.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) groups: &'a [u32],
    /// Distance between two rows, in lane groups.
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// Scale and zero point of rows of bytes, `[rows, blocks]`; empty for other formats.
    pub(super) quantization: &'a [RowQuantization],
    /// Values from which rows of bytes were quantized, and their stride; outliers are multiplied
    /// with them. Empty for other formats.
    pub(super) values: (&'a [f32], usize),
}

impl<'a> Operand<'a> {
    /// Returns an operand of `rows` rows of f32 or bf16, `stride` lane groups apart.
    pub(super) const fn floats(groups: &'a [u32], stride: usize, rows: usize) -> Self {
        Self { groups, stride, rows, quantization: &[], values: (&[], 0) }
    }

    /// Returns `rows` rows from `first` on.
    pub(super) fn part(&self, first: usize, rows: usize) -> Self {
        let (values, stride) = self.values;
        // Number of quantization blocks; 0 for float formats.
        let blocks = self.quantization.len() / self.rows;
        Self {
            groups: &self.groups[first * self.stride..],
            stride: self.stride,
            rows,
            quantization: &self.quantization[first * blocks..],
            values: (&values[first * stride..], stride),
        }
    }
}

/// Weight that is multiplied in f32, because it is far larger than the other weights of its output.
struct Outlier {
    column: usize,
    input: usize,
    weight: f32,
}

/// Quantization of the weights of a layer in [`OperandFormat::Int8`].
struct WeightQuantization {
    /// Ends of the blocks of inputs that share a scale and a zero point.
    inputs: Vec<usize>,
    /// Ends of the same blocks, in lane groups.
    ends: Vec<usize>,
    /// Scales of the weights of each output, `[panels, blocks]`.
    scales: Vec<[f32; PANEL_WIDTH]>,
    /// Sums of the weights of each output, `[panels, blocks]`.
    sums: Vec<[f32; PANEL_WIDTH]>,
    /// Outliers of each panel.
    outliers: Vec<Vec<Outlier>>,
}

impl WeightQuantization {
    fn bytes(&self) -> usize {
        let outliers = self.outliers.iter().map(Vec::len).sum::<usize>() * size_of::<Outlier>();
        outliers + (self.scales.len() + self.sums.len()) * size_of::<[f32; PANEL_WIDTH]>()
    }
}

/// Packed weights and bias of one linear layer.
pub(super) struct Linear {
    format: OperandFormat,
    inputs: usize,
    groups: usize,
    weights: Buffer,
    bias: Vec<[f32; PANEL_WIDTH]>,
    integers: Option<WeightQuantization>,
}

impl Linear {
    /// Creates a layer of zeros in a float format.
    pub(super) fn floats(format: OperandFormat, outputs: usize, inputs: usize) -> Self {
        let (panels, groups) = (outputs.div_ceil(PANEL_WIDTH), format.lane_groups(inputs));
        Self {
            format,
            inputs,
            groups,
            weights: Buffer::zeroed(panels * groups * PANEL_WIDTH),
            bias: vec![[0.0; PANEL_WIDTH]; panels],
            integers: None,
        }
    }

    /// Creates a layer of zeros in [`OperandFormat::Int8`] for `rows`. `blocks` are the ends of the
    /// blocks of inputs; each except the last is a multiple of 4.
    pub(super) fn integers(rows: Int8RowFormat, outputs: usize, blocks: &[usize]) -> Self {
        let inputs = blocks.last().copied().unwrap_or(0);
        let mut linear = Self::floats(OperandFormat::Int8(rows), outputs, inputs);
        let panels = linear.bias.len();
        let mut ends: Vec<usize> = blocks.iter().map(|end| end.div_ceil(4)).collect();
        // The padding after the last block has zero weights, so it belongs to that block.
        if let Some(last) = ends.last_mut() {
            *last = linear.groups;
        }
        linear.integers = Some(WeightQuantization {
            inputs: blocks.to_vec(),
            scales: vec![[0.0; PANEL_WIDTH]; panels * ends.len()],
            sums: vec![[0.0; PANEL_WIDTH]; panels * ends.len()],
            outliers: (0..panels).map(|_| Vec::new()).collect(),
            ends,
        });
        linear
    }

    /// Returns the ends of the blocks of inputs that share scales, or `None` for float formats.
    pub(super) fn blocks(&self) -> Option<&[usize]> {
        self.integers.as_ref().map(|scales| scales.inputs.as_slice())
    }

    /// Returns the format of the weights and operands.
    pub(super) fn format(&self) -> OperandFormat {
        self.format
    }

    /// Returns the number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let scales = self.integers.as_ref().map_or(0, WeightQuantization::bytes);
        self.weights.bytes() + (scales + size_of_val(self.bias.as_slice())) as u64
    }

    /// Returns the memory that a layer will take, in bytes, without outliers. `blocks` are those of
    /// [`Linear::integers`]; float formats use only the last end.
    pub(super) fn bytes_of(format: OperandFormat, outputs: usize, blocks: &[usize]) -> u64 {
        let panels = outputs.div_ceil(PANEL_WIDTH);
        let groups = format.lane_groups(blocks.last().copied().unwrap_or(0));
        let scales = if matches!(format, OperandFormat::Int8(_)) { 2 * blocks.len() } else { 0 };
        let values = panels * (1 + scales) * size_of::<[f32; PANEL_WIDTH]>();
        Buffer::bytes_of(panels * groups * PANEL_WIDTH) + values as u64
    }

    /// Returns the number of panels of 32 outputs.
    pub(super) fn panels(&self) -> usize {
        self.bias.len()
    }

    /// Returns the bias of the outputs of panel `panel`.
    pub(super) fn bias(&self, panel: usize) -> &[f32; PANEL_WIDTH] {
        &self.bias[panel]
    }

    /// Returns the weights of panel `panel`, `[lane_groups, 32]`. Returns an empty slice beyond the
    /// last panel.
    fn weights(&self, panel: usize) -> &[[u32; PANEL_WIDTH]] {
        let (weights, _) = self.weights.groups().as_chunks::<PANEL_WIDTH>();
        weights.chunks_exact(self.groups).nth(panel).unwrap_or_default()
    }

    /// Multiplies with every panel of 32 outputs. Calls `take` for each panel with its number, its
    /// results `[rows, 32]` without bias, and its bias.
    ///
    /// `block` is memory for `[rows padded, 32]`.
    pub(super) fn for_each_panel(
        &self,
        session: &KernelSession,
        operand: Operand<'_>,
        block: &mut [f32],
        mut take: impl FnMut(usize, &[[f32; PANEL_WIDTH]], &[f32; PANEL_WIDTH]),
    ) {
        for panel in 0..self.panels() {
            let (results, bias) = self.multiply_panel(session, operand, block, panel, panel + 1);
            take(panel, results, bias);
        }
    }

    /// Multiplies with the 32 outputs of panel `panel`. Returns the results `[rows, 32]` without
    /// bias, and the bias. Prefetches the weights of panel `next` meanwhile, if it exists.
    ///
    /// `block` is memory for `[rows padded, 32]`.
    pub(super) fn multiply_panel<'a>(
        &'a self,
        session: &KernelSession,
        operand: Operand<'_>,
        block: &'a mut [f32],
        panel: usize,
        next: usize,
    ) -> (&'a [[f32; PANEL_WIDTH]], &'a [f32; PANEL_WIDTH]) {
        let mut product = Product {
            operand: operand.groups,
            stride: operand.stride,
            rows: operand.rows,
            panel: self.weights(panel),
            next_panel: self.weights(next),
            out: block,
            out_stride: PANEL_WIDTH,
        };
        match (&self.integers, self.format) {
            (Some(scales), _) => scales.multiply(session, panel, &operand, &mut product),
            (None, OperandFormat::Bf16) => session.multiply_bf16(&mut product),
            (None, _) => session.multiply_f32(&mut product),
        }
        let (results, _) = block.as_chunks::<PANEL_WIDTH>();
        (&results[..operand.rows], &self.bias[panel])
    }
}

impl WeightQuantization {
    fn multiply(
        &self,
        session: &KernelSession,
        panel: usize,
        operand: &Operand<'_>,
        product: &mut Product<'_>,
    ) {
        let blocks = self.ends.len();
        let integers = OperandQuantization {
            ends: &self.ends,
            rows: operand.quantization,
            sums: &self.sums[panel * blocks..][..blocks],
            scales: &self.scales[panel * blocks..][..blocks],
        };
        session.multiply_int8(product, &integers);
        // Add the outliers. They multiply the values before quantization, in f32.
        let (values, stride) = operand.values;
        let (results, _) = product.out.as_chunks_mut::<PANEL_WIDTH>();
        for outlier in &self.outliers[panel] {
            for (results, values) in results[..operand.rows].iter_mut().zip(values.chunks(stride)) {
                results[outlier.column] += values[outlier.input] * outlier.weight;
            }
        }
    }
}
