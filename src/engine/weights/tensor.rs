//! A tensor that was found in a file and checked.

use std::ops::Range;

use super::stored::{StoredFormat, words};
use super::table::MatrixLocation;
use crate::engine::WeightsFile;

/// A tensor of a file in its stored format; decoded on use.
#[derive(Clone)]
pub(in crate::engine) struct Tensor<'a> {
    pub(in crate::engine) shape: Vec<usize>,
    pub(super) stored: StoredFormat,
    pub(super) data: &'a [u8],
    /// File that contains `data`.
    pub(super) file: &'a dyn WeightsFile,
}

/// One row of a matrix of integers, as stored.
pub(in crate::engine) struct StoredRow<'t> {
    /// One integer for each column; meaningless for an outlier.
    pub(in crate::engine) integers: &'t [i8],
    /// One scale for each block.
    pub(in crate::engine) scales: &'t [f32],
    /// Row, column and exact value of each outlier.
    pub(in crate::engine) outliers: &'t [(usize, usize, f32)],
}

impl<'a> Tensor<'a> {
    /// Returns the length of a row; a vector is a single row.
    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Decodes the values of `row` into `out`.
    pub(in crate::engine) fn read_row(&self, row: usize, out: &mut [f32]) {
        self.stored.decode(self.file.bytes(), self.data, self.columns(), row, out);
    }

    /// Returns the integers of `row`, or `None` if the tensor is not stored as 8-bit integers.
    pub(in crate::engine) fn integers(&self, row: usize) -> Option<StoredRow<'_>> {
        let StoredFormat::Int8(quantization) = &self.stored else { return None };
        let columns = self.columns();
        Some(StoredRow {
            integers: bytemuck::cast_slice(&self.data[row * columns..][..columns]),
            scales: quantization.scales(row),
            outliers: quantization.outliers(row),
        })
    }

    /// Returns the block of `column`, or `None` if the tensor is not stored as 8-bit integers.
    pub(in crate::engine) fn block(&self, column: usize) -> Option<usize> {
        let StoredFormat::Int8(quantization) = &self.stored else { return None };
        Some(quantization.blocks.get(column).map_or(0, |&block| block as usize))
    }

    /// Decodes all values, row-major.
    pub(in crate::engine) fn values(&self) -> Vec<f32> {
        let columns = self.columns();
        let mut values = vec![0.0; self.shape.iter().product()];
        // A matrix without columns has no values, and `chunks_exact_mut(0)` would panic.
        for (row, values) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            self.read_row(row, values);
        }
        values
    }

    /// Returns the row-major index of the first value that is not finite, and the value. Decodes
    /// one row at a time, because a table may be large.
    pub(super) fn first_non_finite(&self) -> Option<(usize, f32)> {
        let columns = self.columns();
        let rows = self.shape.iter().product::<usize>().checked_div(columns)?;
        let mut values = vec![0.0; columns];
        (0..rows).find_map(|row| {
            self.read_row(row, &mut values);
            let column = values.iter().position(|value| !value.is_finite())?;
            Some((row * columns + column, values[column]))
        })
    }

    /// Returns whether the tensor contains a value that is not finite, without decoding all values.
    /// For integers, the check only compares the scales with the largest integer, so `true` means
    /// that such a value is possible.
    pub(super) fn has_non_finite(&self) -> bool {
        // Infinity and NaN are the values whose exponent bits are all ones. Adding one to the
        // exponent of such a value carries into the sign bit, which the fold collects.
        match &self.stored {
            StoredFormat::F32 => {
                words(self.data).fold(0, |all, word| {
                    all | (u32::from_le_bytes(word) & 0x7f80_0000).wrapping_add(0x80_0000)
                }) >> 31
                    != 0
            }
            StoredFormat::F16 => {
                words(self.data).fold(0_u16, |all, word| {
                    all | (u16::from_le_bytes(word) & 0x7c00).wrapping_add(0x400)
                }) >> 15
                    != 0
            }
            StoredFormat::Bf16 => {
                words(self.data).fold(0_u16, |all, word| {
                    all | (u16::from_le_bytes(word) & 0x7f80).wrapping_add(0x80)
                }) >> 15
                    != 0
            }
            StoredFormat::Int8(quantization) => {
                quantization.scales.iter().any(|scale| !(scale * 128.0).is_finite())
            }
            // The product of a finite f16 and an integer of 4 bits is finite.
            StoredFormat::Int4 { .. } => false,
        }
    }

    /// Returns the position of the data in the file.
    pub(super) fn range(&self) -> Range<usize> {
        let start = self.data.as_ptr().addr() - self.file.bytes().as_ptr().addr();
        start..start + self.data.len()
    }

    /// Notifies the file that the data will not be read soon.
    pub(super) fn release(&self) {
        self.file.release(self.range());
    }

    /// Notifies the file that the data will not be read again.
    pub(in crate::engine) fn forget(&self) {
        self.file.forget(self.range());
    }

    /// Returns the location and format of the tensor without the borrow of its file.
    pub(in crate::engine) fn location(&self) -> MatrixLocation {
        MatrixLocation { stored: self.stored.clone(), columns: self.columns(), range: self.range() }
    }
}
