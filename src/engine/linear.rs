//! Linear layers: weights packed once, products, and what the caller does with each block of results.
//!
//! Owns the packed form: strips of 32 outputs, `[strips, groups, 32]`, in which a group is four bytes
//! along the inputs. Inputs and outputs are padded with zeros to whole tiles.

use super::amx::{Amx, Tiles};
use super::buffer::Buffer;
use super::simd::dense::{self, Product};
use super::simd::rows::{self, Quantization};
use super::simd::{Isa, STRIP};

/// Groups in a row of an operand are a multiple of this: a cache line, and a row of a tile.
const GROUPS: usize = 16;
/// Rows of operands and results are padded to a multiple of this.
pub(super) const ROWS: usize = 32;

/// The elements of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    Bf16,
    /// Rows unsigned with an offset, weights signed.
    Int8,
}

impl Format {
    /// Elements of a group.
    pub(super) const fn per_group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Groups of a row of `elements`, padded.
    pub(super) const fn groups(self, elements: usize) -> usize {
        elements.div_ceil(self.per_group()).next_multiple_of(GROUPS)
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
    /// One product in `format`.
    ///
    /// Rows and results are there for whole multiples of [`ROWS`].
    pub(super) fn multiply(&self, format: Format, product: &mut Product<'_>) {
        match (format, &self.tiles) {
            (Format::F32, _) => dense::f32(self.isa, product),
            (Format::Bf16, Some(tiles)) => tiles.bf16(product),
            (Format::Bf16, None) => dense::bf16(self.isa, product),
            (Format::Int8, Some(tiles)) => tiles.int8(product),
            (Format::Int8, None) => dense::int8(self.isa, product),
        }
    }
}

/// Rows to multiply.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) groups: &'a [u32],
    /// Groups from one row to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// One for each row of bytes; empty for other formats.
    pub(super) quantization: &'a [Quantization],
    /// What rows of bytes stand for, and its stride; empty for other formats.
    pub(super) values: (&'a [f32], usize),
}

/// A weight that is far larger than the others of its output, and would leave them few steps of a
/// scale in common. It is multiplied in f32.
struct Outlier {
    column: usize,
    input: usize,
    weight: f32,
}

/// Most outliers of one output.
const OUTLIERS: usize = 4;
/// How much larger than the next an outlier is.
const OUTLIER_RATIO: f32 = 2.0;

/// The inputs of the outliers among the weights of one output.
fn outliers(weights: &[f32]) -> Vec<usize> {
    let mut largest: Vec<usize> = Vec::with_capacity(OUTLIERS + 2);
    for (input, weight) in weights.iter().enumerate() {
        let place = largest.partition_point(|&other| weights[other].abs() >= weight.abs());
        if place <= OUTLIERS {
            largest.insert(place, input);
            largest.truncate(OUTLIERS + 1);
        }
    }
    let above = |pair: &[usize]| weights[pair[0]].abs() >= OUTLIER_RATIO * weights[pair[1]].abs();
    let count = largest.windows(2).rposition(above).map_or(0, |last| last + 1);
    largest.truncate(count);
    largest
}

/// The packed weights and bias of one linear layer.
pub(super) struct Linear {
    format: Format,
    inputs: usize,
    groups: usize,
    weights: Buffer,
    bias: Vec<[f32; STRIP]>,
    /// Of each output, for [`Format::Int8`]: the scale of its weights, and their sum.
    scales: Vec<[f32; STRIP]>,
    sums: Vec<[f32; STRIP]>,
    /// Of each strip, for [`Format::Int8`].
    outliers: Vec<Vec<Outlier>>,
}

impl Linear {
    /// Outputs and inputs of zeros.
    pub(super) fn zeroed(format: Format, outputs: usize, inputs: usize) -> Self {
        let strips = outputs.div_ceil(STRIP);
        let groups = format.groups(inputs);
        let per_output = if format == Format::Int8 { strips } else { 0 };
        Self {
            format,
            inputs,
            groups,
            weights: Buffer::zeroed(strips * groups * STRIP),
            bias: vec![[0.0; STRIP]; strips],
            scales: vec![[0.0; STRIP]; per_output],
            sums: vec![[0.0; STRIP]; per_output],
            outliers: (0..per_output).map(|_| Vec::new()).collect(),
        }
    }

    /// Sets the weights, one for each input, and the bias of an output.
    pub(super) fn set(&mut self, output: usize, weights: &[f32], bias: f32) {
        let (strip, column) = (output / STRIP, output % STRIP);
        self.bias[strip][column] = bias;
        let start = strip * self.groups * STRIP;
        let packed = &mut self.weights.groups_mut()[start..][..self.groups * STRIP];
        let packed = packed.iter_mut().skip(column).step_by(STRIP);
        match self.format {
            Format::F32 => {
                for (group, weight) in packed.zip(weights) {
                    *group = weight.to_bits();
                }
            }
            Format::Bf16 => {
                for (group, pair) in packed.zip(weights.chunks(2)) {
                    let high = pair.get(1).map_or(0, |&weight| rows::bf16(weight));
                    *group = u32::from(rows::bf16(pair[0])) | u32::from(high) << 16;
                }
            }
            Format::Int8 => {
                let mut inliers = weights.to_vec();
                for input in outliers(weights) {
                    let weight = std::mem::take(&mut inliers[input]);
                    self.outliers[strip].push(Outlier { column, input, weight });
                }
                let largest = inliers.iter().fold(0.0_f32, |max, weight| max.max(weight.abs()));
                let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                let mut sum = 0_i32;
                for (group, four) in packed.zip(inliers.chunks(4)) {
                    let mut bytes = [0_u8; 4];
                    for (byte, weight) in bytes.iter_mut().zip(four) {
                        #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
                        let value = (weight / scale).round() as i8;
                        sum += i32::from(value);
                        *byte = value.to_le_bytes()[0];
                    }
                    *group = u32::from_le_bytes(bytes);
                }
                self.scales[strip][column] = scale;
                #[expect(clippy::cast_precision_loss, reason = "a row has fewer than 2^17 inputs")]
                {
                    self.sums[strip][column] = sum as f32;
                }
            }
        }
    }

    /// Number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let values = self.bias.len() + self.scales.len() + self.sums.len();
        let outliers = self.outliers.iter().map(Vec::len).sum::<usize>() * size_of::<Outlier>();
        self.weights.bytes() + outliers as u64 + (values * size_of::<[f32; STRIP]>()) as u64
    }

    /// Multiplies, and gives each strip of 32 outputs to `take`: its number, its results
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
        let (weights, _) = self.weights.groups().as_chunks::<STRIP>();
        for (strip, weights) in weights.chunks_exact(self.groups).enumerate() {
            let mut product = Product {
                operand: operand.groups,
                stride: operand.stride,
                rows: operand.rows,
                strip: weights,
                out: block,
                out_stride: STRIP,
            };
            session.multiply(self.format, &mut product);
            let (results, _) = block.as_chunks_mut::<STRIP>();
            let results = &mut results[..operand.rows];
            if self.format == Format::Int8 {
                let (sums, scales) = (&self.sums[strip], &self.scales[strip]);
                rows::scale_integers(session.isa, results, operand.quantization, sums, scales);
                for outlier in &self.outliers[strip] {
                    let (values, stride) = operand.values;
                    for (results, values) in results.iter_mut().zip(values.chunks(stride)) {
                        results[outlier.column] += values[outlier.input] * outlier.weight;
                    }
                }
            }
            take(strip, results, &self.bias[strip]);
        }
    }
}
