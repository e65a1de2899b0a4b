//! Linear layers: weights packed once, products, and what the caller does with each block of results.
//!
//! Owns the packed form: strips of 32 outputs, `[strips, groups, 32]`, in which a group is four bytes
//! along the inputs. Inputs and outputs are padded with zeros to whole tiles.

pub(super) mod strip;

use super::amx::{Amx, Tiles};
use super::buffer::Buffer;
use super::simd::dense::{self, Integers, Product};
use super::simd::rows::Quantization;
use super::simd::{IntegerRows, Isa, STRIP};

/// Groups in a row of an operand are a multiple of this: a cache line, and a row of a tile.
const GROUPS: usize = 16;
/// Rows of operands and results are padded to a multiple of this.
pub(super) const ROWS: usize = 32;

/// The elements of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    Bf16,
    /// Weights are signed bytes; rows are integers with an offset, which lie as the kernel takes them.
    Int8(IntegerRows),
}

impl Format {
    /// Returns the weights of a group.
    pub(super) const fn per_group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8(_) => 4,
        }
    }

    /// Returns the groups of `elements` weights, padded.
    pub(super) const fn groups(self, elements: usize) -> usize {
        elements.div_ceil(self.per_group()).next_multiple_of(GROUPS)
    }

    /// Returns the groups of a row of `elements`, padded: twice those of the weights where the integers
    /// of a row take twice the memory.
    pub(super) const fn row_groups(self, elements: usize) -> usize {
        match self {
            Self::Int8(IntegerRows::Wide) => 2 * self.groups(elements),
            _ => self.groups(elements),
        }
    }
}

/// What multiplies: instructions that this processor has, and may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) isa: Isa,
    pub(super) amx: Option<Amx>,
}

impl Machine {
    /// Prepares this thread.
    pub(super) fn session(&self) -> Session {
        Session { isa: self.isa, tiles: self.amx.map(Amx::tiles) }
    }
}

/// The kernels on one thread, from a phase's begin to its end.
pub(super) struct Session {
    pub(super) isa: Isa,
    tiles: Option<Tiles>,
}

impl Session {
    /// One product of f32.
    pub(super) fn multiply_f32(&self, product: &mut Product<'_>) {
        dense::f32(self.isa, product);
    }

    /// One product of bf16. Rows and results are there for whole multiples of [`ROWS`].
    pub(super) fn multiply_bf16(&self, product: &mut Product<'_>) {
        match &self.tiles {
            Some(tiles) => tiles.bf16(product),
            None => dense::bf16(self.isa, product),
        }
    }

    /// One product of bytes.
    pub(super) fn multiply_int8(&self, product: &mut Product<'_>, integers: &Integers<'_>) {
        dense::int8(self.isa, product, integers);
    }
}

/// Rows to multiply.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) groups: &'a [u32],
    /// Groups from one row to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// For rows of bytes, `[rows, blocks]`; empty for other formats.
    pub(super) quantization: &'a [Quantization],
    /// What rows of bytes stand for, and its stride; empty for other formats.
    pub(super) values: (&'a [f32], usize),
}

impl<'a> Operand<'a> {
    /// `rows` rows of f32 or bf16, `stride` groups apart.
    pub(super) const fn floats(groups: &'a [u32], stride: usize, rows: usize) -> Self {
        Self { groups, stride, rows, quantization: &[], values: (&[], 0) }
    }

    /// Returns the rows from `first` on, `rows` of them.
    pub(super) fn part(&self, first: usize, rows: usize) -> Self {
        let (values, stride) = self.values;
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

/// A weight that is multiplied in f32.
struct Outlier {
    column: usize,
    input: usize,
    weight: f32,
}

/// What [`Format::Int8`] has beside the weights.
struct Scales {
    /// Ends of the blocks of inputs that share scales and an offset.
    inputs: Vec<usize>,
    /// The same in groups.
    ends: Vec<usize>,
    /// Of each strip and block, `[strips, blocks]`: the scale of an output's weights.
    scales: Vec<[f32; STRIP]>,
    /// Of each strip and block, `[strips, blocks]`: the sum of an output's weights.
    sums: Vec<[f32; STRIP]>,
    /// Of each strip.
    outliers: Vec<Vec<Outlier>>,
}

impl Scales {
    fn bytes(&self) -> usize {
        let outliers = self.outliers.iter().map(Vec::len).sum::<usize>() * size_of::<Outlier>();
        outliers + (self.scales.len() + self.sums.len()) * size_of::<[f32; STRIP]>()
    }
}

/// The packed weights and bias of one linear layer.
pub(super) struct Linear {
    format: Format,
    inputs: usize,
    groups: usize,
    weights: Buffer,
    bias: Vec<[f32; STRIP]>,
    integers: Option<Scales>,
}

impl Linear {
    /// Outputs and inputs of zeros, in a format of floats.
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

    /// Makes a layer of zeros in [`Format::Int8`] for `rows`; `blocks` are the ends of the blocks of
    /// inputs, each but the last a multiple of 4.
    pub(super) fn integers(rows: IntegerRows, outputs: usize, blocks: &[usize]) -> Self {
        let inputs = blocks.last().copied().unwrap_or(0);
        let mut linear = Self::floats(Format::Int8(rows), outputs, inputs);
        let strips = linear.bias.len();
        let mut ends: Vec<usize> = blocks.iter().map(|end| end.div_ceil(4)).collect();
        // What pads the last block has weights of zero.
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

    /// Ends of the blocks of inputs that share scales; none in formats of floats.
    pub(super) fn blocks(&self) -> Option<&[usize]> {
        self.integers.as_ref().map(|scales| scales.inputs.as_slice())
    }

    /// The elements of its weights and operands.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let scales = self.integers.as_ref().map_or(0, Scales::bytes);
        self.weights.bytes() + (scales + size_of_val(self.bias.as_slice())) as u64
    }

    /// Memory of a layer before it is there, in bytes; without outliers. `blocks` are those of
    /// [`Linear::integers`], of which floats have the last end alone.
    pub(super) fn bytes_of(format: Format, outputs: usize, blocks: &[usize]) -> u64 {
        let strips = outputs.div_ceil(STRIP);
        let groups = format.groups(blocks.last().copied().unwrap_or(0));
        let scales = if matches!(format, Format::Int8(_)) { 2 * blocks.len() } else { 0 };
        let values = strips * (1 + scales) * size_of::<[f32; STRIP]>();
        Buffer::bytes_of(strips * groups * STRIP) + values as u64
    }

    /// Returns the strips of 32 outputs.
    pub(super) fn strips(&self) -> usize {
        self.bias.len()
    }

    /// Returns the bias of the outputs of `strip`.
    pub(super) fn bias(&self, strip: usize) -> &[f32; STRIP] {
        &self.bias[strip]
    }

    /// Returns the weights of `strip`, `[groups, 32]`; of one that is not there, none.
    fn weights(&self, strip: usize) -> &[[u32; STRIP]] {
        let (weights, _) = self.weights.groups().as_chunks::<STRIP>();
        weights.chunks_exact(self.groups).nth(strip).unwrap_or_default()
    }

    /// Multiplies with every strip of 32 outputs, and gives each to `take`: its number, its results
    /// `[rows, 32]` without bias, and its bias.
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

    /// Multiplies with the 32 outputs of `strip`. Returns the results `[rows, 32]` without bias, and the
    /// bias. Meanwhile prefetches the weights of the strip `next`, if there is one.
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
        let (values, stride) = operand.values;
        let (results, _) = product.out.as_chunks_mut::<STRIP>();
        for outlier in &self.outliers[strip] {
            for (results, values) in results[..operand.rows].iter_mut().zip(values.chunks(stride)) {
                results[outlier.column] += values[outlier.input] * outlier.weight;
            }
        }
    }
}
