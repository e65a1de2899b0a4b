//! Linear layers: weights that are packed once into panels, and their products.
//!
//! The packed form is panels of 32 outputs, `[strips, groups, 32]`. A lane group is four bytes
//! along the inputs. Inputs and outputs are padded with zeros to whole tiles. The caller processes
//! each block of results while it is in the cache.

pub(super) mod strip;

use super::amx::{Amx, Tiles};
use super::buffer::Buffer;
use super::simd::dense::{self, Integers, Product};
use super::simd::rows::Quantization;
use super::simd::{IntegerRows, Isa, STRIP};

/// Alignment of the length of an operand's row, in lane groups: a cache line, and a row of an AMX
/// tile.
const GROUPS: usize = 16;
/// Alignment of the number of rows of operands and results.
pub(super) const ROWS: usize = 32;

/// Format of the elements of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    Bf16,
    /// Weights are signed bytes. Rows are integers with a zero point, in the layout that the kernel
    /// reads.
    Int8(IntegerRows),
}

impl Format {
    /// Returns the number of weights in a lane group.
    pub(super) const fn per_group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8(_) => 4,
        }
    }

    /// Returns the number of lane groups of `elements` weights, padded.
    pub(super) const fn groups(self, elements: usize) -> usize {
        elements.div_ceil(self.per_group()).next_multiple_of(GROUPS)
    }

    /// Returns the number of lane groups of a row of `elements`, padded. It is twice that of the
    /// weights if the integers of a row take twice the memory.
    pub(super) const fn row_groups(self, elements: usize) -> usize {
        match self {
            Self::Int8(IntegerRows::Wide) => 2 * self.groups(elements),
            _ => self.groups(elements),
        }
    }
}

/// Instructions that this processor has and this process may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) isa: Isa,
    pub(super) amx: Option<Amx>,
}

impl Machine {
    /// Prepares this thread for products: configures its AMX tiles, if there are any.
    pub(super) fn session(&self) -> Session {
        Session { isa: self.isa, tiles: self.amx.map(Amx::tiles) }
    }
}

/// Kernels of one thread during a phase of a pass. Holds the configured tiles.
pub(super) struct Session {
    pub(super) isa: Isa,
    tiles: Option<Tiles>,
}

impl Session {
    /// Computes one product of f32.
    pub(super) fn multiply_f32(&self, product: &mut Product<'_>) {
        dense::f32(self.isa, product);
    }

    /// Computes one product of bf16. Rows and results must be allocated up to a multiple of
    /// [`ROWS`].
    pub(super) fn multiply_bf16(&self, product: &mut Product<'_>) {
        match &self.tiles {
            Some(tiles) => tiles.bf16(product),
            None => dense::bf16(self.isa, product),
        }
    }

    /// Computes one product of bytes.
    pub(super) fn multiply_int8(&self, product: &mut Product<'_>, integers: &Integers<'_>) {
        dense::int8(self.isa, product, integers);
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
    pub(super) quantization: &'a [Quantization],
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

/// Quantization of the weights of a layer in [`Format::Int8`].
struct Scales {
    /// Ends of the blocks of inputs that share a scale and a zero point.
    inputs: Vec<usize>,
    /// Ends of the same blocks, in lane groups.
    ends: Vec<usize>,
    /// Scales of the weights of each output, `[strips, blocks]`.
    scales: Vec<[f32; STRIP]>,
    /// Sums of the weights of each output, `[strips, blocks]`.
    sums: Vec<[f32; STRIP]>,
    /// Outliers of each panel.
    outliers: Vec<Vec<Outlier>>,
}

impl Scales {
    fn bytes(&self) -> usize {
        let outliers = self.outliers.iter().map(Vec::len).sum::<usize>() * size_of::<Outlier>();
        outliers + (self.scales.len() + self.sums.len()) * size_of::<[f32; STRIP]>()
    }
}

/// Packed weights and bias of one linear layer.
pub(super) struct Linear {
    format: Format,
    inputs: usize,
    groups: usize,
    weights: Buffer,
    bias: Vec<[f32; STRIP]>,
    integers: Option<Scales>,
}

impl Linear {
    /// Creates a layer of zeros in a float format.
    pub(super) fn floats(format: Format, outputs: usize, inputs: usize) -> Self {
        let (strips, groups) = (outputs.div_ceil(STRIP), format.groups(inputs));
        Self {
            format,
            inputs,
            groups,
            weights: Buffer::zeroed(strips * groups * STRIP),
            bias: vec![[0.0; STRIP]; strips],
            integers: None,
        }
    }

    /// Creates a layer of zeros in [`Format::Int8`] for `rows`. `blocks` are the ends of the blocks
    /// of inputs; each except the last is a multiple of 4.
    pub(super) fn integers(rows: IntegerRows, outputs: usize, blocks: &[usize]) -> Self {
        let inputs = blocks.last().copied().unwrap_or(0);
        let mut linear = Self::floats(Format::Int8(rows), outputs, inputs);
        let strips = linear.bias.len();
        let mut ends: Vec<usize> = blocks.iter().map(|end| end.div_ceil(4)).collect();
        // The padding after the last block has zero weights, so it belongs to that block.
        if let Some(last) = ends.last_mut() {
            *last = linear.groups;
        }
        linear.integers = Some(Scales {
            inputs: blocks.to_vec(),
            scales: vec![[0.0; STRIP]; strips * ends.len()],
            sums: vec![[0.0; STRIP]; strips * ends.len()],
            outliers: (0..strips).map(|_| Vec::new()).collect(),
            ends,
        });
        linear
    }

    /// Returns the ends of the blocks of inputs that share scales, or `None` for float formats.
    pub(super) fn blocks(&self) -> Option<&[usize]> {
        self.integers.as_ref().map(|scales| scales.inputs.as_slice())
    }

    /// Returns the format of the weights and operands.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Returns the number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let scales = self.integers.as_ref().map_or(0, Scales::bytes);
        self.weights.bytes() + (scales + size_of_val(self.bias.as_slice())) as u64
    }

    /// Returns the memory that a layer will take, in bytes, without outliers. `blocks` are those of
    /// [`Linear::integers`]; float formats use only the last end.
    pub(super) fn bytes_of(format: Format, outputs: usize, blocks: &[usize]) -> u64 {
        let strips = outputs.div_ceil(STRIP);
        let groups = format.groups(blocks.last().copied().unwrap_or(0));
        let scales = if matches!(format, Format::Int8(_)) { 2 * blocks.len() } else { 0 };
        let values = strips * (1 + scales) * size_of::<[f32; STRIP]>();
        Buffer::bytes_of(strips * groups * STRIP) + values as u64
    }

    /// Returns the number of panels of 32 outputs.
    pub(super) fn strips(&self) -> usize {
        self.bias.len()
    }

    /// Returns the bias of the outputs of panel `strip`.
    pub(super) fn bias(&self, strip: usize) -> &[f32; STRIP] {
        &self.bias[strip]
    }

    /// Returns the weights of panel `strip`, `[groups, 32]`. Returns an empty slice beyond the last
    /// panel.
    fn weights(&self, strip: usize) -> &[[u32; STRIP]] {
        let (weights, _) = self.weights.groups().as_chunks::<STRIP>();
        weights.chunks_exact(self.groups).nth(strip).unwrap_or_default()
    }

    /// Multiplies with every panel of 32 outputs. Calls `take` for each panel with its number, its
    /// results `[rows, 32]` without bias, and its bias.
    ///
    /// `block` is memory for `[rows padded, 32]`.
    pub(super) fn apply(
        &self,
        session: &Session,
        operand: Operand<'_>,
        block: &mut [f32],
        mut take: impl FnMut(usize, &[[f32; STRIP]], &[f32; STRIP]),
    ) {
        for strip in 0..self.strips() {
            let (results, bias) = self.apply_strip(session, operand, block, strip, strip + 1);
            take(strip, results, bias);
        }
    }

    /// Multiplies with the 32 outputs of panel `strip`. Returns the results `[rows, 32]` without
    /// bias, and the bias. Prefetches the weights of panel `next` meanwhile, if it exists.
    ///
    /// `block` is memory for `[rows padded, 32]`.
    pub(super) fn apply_strip<'a>(
        &'a self,
        session: &Session,
        operand: Operand<'_>,
        block: &'a mut [f32],
        strip: usize,
        next: usize,
    ) -> (&'a [[f32; STRIP]], &'a [f32; STRIP]) {
        let mut product = Product {
            operand: operand.groups,
            stride: operand.stride,
            rows: operand.rows,
            strip: self.weights(strip),
            ahead: self.weights(next),
            out: block,
            out_stride: STRIP,
        };
        match (&self.integers, self.format) {
            (Some(scales), _) => scales.multiply(session, strip, &operand, &mut product),
            (None, Format::Bf16) => session.multiply_bf16(&mut product),
            (None, _) => session.multiply_f32(&mut product),
        }
        let (results, _) = block.as_chunks::<STRIP>();
        (&results[..operand.rows], &self.bias[strip])
    }
}

impl Scales {
    fn multiply(
        &self,
        session: &Session,
        strip: usize,
        operand: &Operand<'_>,
        product: &mut Product<'_>,
    ) {
        let blocks = self.ends.len();
        let integers = Integers {
            ends: &self.ends,
            rows: operand.quantization,
            sums: &self.sums[strip * blocks..][..blocks],
            scales: &self.scales[strip * blocks..][..blocks],
        };
        session.multiply_int8(product, &integers);
        // Add the outliers. They multiply the values before quantization, in f32.
        let (values, stride) = operand.values;
        let (results, _) = product.out.as_chunks_mut::<STRIP>();
        for outlier in &self.outliers[strip] {
            for (results, values) in results[..operand.rows].iter_mut().zip(values.chunks(stride)) {
                results[outlier.column] += values[outlier.input] * outlier.weight;
            }
        }
    }
}
