//! Storage formats of the values of a tensor, and their decoding to f32.

use std::ops::Range;

use half::{bf16, f16};

use crate::base::int4;

/// Storage format of a tensor's values.
#[derive(Clone, Debug)]
pub(super) enum StoredFormat {
    F32,
    F16,
    Bf16,
    Int8(MatrixQuantization),
    Int4 {
        /// Position in the file of the scales, one f16 for each row and block.
        scales: Range<usize>,
    },
}

/// Data that converts the integers of a matrix to values.
#[derive(Clone, Debug)]
pub(super) struct MatrixQuantization {
    /// Scale of each row and block, `[rows, blocks]`.
    pub(super) scales: Vec<f32>,
    /// Block of each column; empty if the matrix is a single block.
    pub(super) blocks: Vec<u32>,
    pub(super) block_count: usize,
    /// Row, column and exact value of each outlier, in ascending order of position.
    pub(super) outliers: Vec<(usize, usize, f32)>,
}

impl MatrixQuantization {
    /// Returns the scales of `row`, one for each block.
    pub(super) fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.block_count..][..self.block_count]
    }

    /// Returns row, column and value of the outliers of `row`.
    pub(super) fn outliers(&self, row: usize) -> &[(usize, usize, f32)] {
        let first = self.outliers.partition_point(|outlier| outlier.0 < row);
        let behind = &self.outliers[first..];
        &behind[..behind.partition_point(|outlier| outlier.0 == row)]
    }
}

impl StoredFormat {
    /// Returns the bytes of a row of `columns` values, without its scales.
    const fn row_bytes(&self, columns: usize) -> usize {
        match self {
            Self::F32 => columns * 4,
            Self::F16 | Self::Bf16 => columns * 2,
            Self::Int8(_) => columns,
            Self::Int4 { .. } => columns / 2,
        }
    }

    /// Decodes row `row` of the `matrix` in `file`, which has `columns` columns, into `out`.
    pub(super) fn decode(
        &self,
        file: &[u8],
        matrix: &[u8],
        columns: usize,
        row: usize,
        out: &mut [f32],
    ) {
        let bytes = self.row_bytes(columns);
        let data = &matrix[row * bytes..][..bytes];
        match self {
            Self::F32 => fill(out, words(data).map(f32::from_le_bytes)),
            Self::F16 => fill(out, words(data).map(|word| f16::from_le_bytes(word).to_f32())),
            Self::Bf16 => fill(out, words(data).map(|word| bf16::from_le_bytes(word).to_f32())),
            Self::Int8(quantization) => {
                let scales = quantization.scales(row);
                let values = data.iter().map(|&q| f32::from(i8::from_le_bytes([q])));
                if let &[scale] = scales {
                    fill(out, values.map(|value| value * scale));
                } else {
                    let values = values.zip(&quantization.blocks);
                    fill(out, values.map(|(value, &block)| value * scales[block as usize]));
                }
                for &(_, column, value) in quantization.outliers(row) {
                    out[column] = value;
                }
            }
            Self::Int4 { scales } => {
                let bytes = columns / int4::BLOCK * size_of::<f16>();
                let scales = words(&file[scales.clone()][row * bytes..][..bytes]);
                let (blocks, _) = data.as_chunks();
                let (out, _) = out.as_chunks_mut();
                for ((out, block), scale) in out.iter_mut().zip(blocks).zip(scales) {
                    int4::decode(block, f16::from_le_bytes(scale).to_f32(), out);
                }
            }
        }
    }
}

fn fill(out: &mut [f32], values: impl Iterator<Item = f32>) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value;
    }
}

/// Splits `data` into little-endian words; safetensors guarantees that their number is whole.
pub(super) fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}
