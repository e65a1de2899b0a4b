//! A matrix that is read in place from its file.

use std::ops::Range;

use super::stored::{MatrixQuantization, StoredFormat};
use crate::engine::WeightsFile;

/// Location of a matrix in its file, and its storage format.
pub(in crate::engine) struct MatrixLocation {
    pub(super) stored: StoredFormat,
    pub(super) columns: usize,
    pub(super) range: Range<usize>,
}

/// A matrix that stays in its file; each row is decoded on request.
pub(in crate::engine) struct MappedTable {
    file: Box<dyn WeightsFile>,
    location: MatrixLocation,
}

impl MappedTable {
    /// Creates a table from the matrix at `location`, which was found in `file`. Notifies the file
    /// that the rest of it will not be read again.
    pub(in crate::engine) fn new(file: Box<dyn WeightsFile>, location: MatrixLocation) -> Self {
        let mut kept = vec![location.range.clone()];
        if let StoredFormat::Int4 { scales } = &location.stored {
            kept.push(scales.clone());
            kept.sort_by_key(|range| range.start);
        }
        let mut start = 0;
        for range in kept {
            file.forget(start..range.start);
            start = range.end;
        }
        file.forget(start..file.bytes().len());
        Self { file, location }
    }

    /// Decodes the values of `row` into `out`.
    pub(in crate::engine) fn read_row(&self, row: usize, out: &mut [f32]) {
        let MatrixLocation { stored, columns, range } = &self.location;
        let file = self.file.bytes();
        stored.decode(file, &file[range.clone()], *columns, row, out);
    }

    /// Returns the memory of this process that the table and its file occupy, in bytes.
    pub(in crate::engine) fn bytes(&self) -> u64 {
        let scales = match &self.location.stored {
            StoredFormat::Int8(MatrixQuantization { scales, blocks, outliers, .. }) => {
                let scales = size_of_val(scales.as_slice()) + size_of_val(blocks.as_slice());
                scales + size_of_val(outliers.as_slice())
            }
            _ => 0,
        };
        self.file.anonymous_bytes() + scales as u64
    }

    /// Returns the bytes of the table that are in a mapped file.
    pub(in crate::engine) fn mapped_bytes(&self) -> u64 {
        let scales = match &self.location.stored {
            StoredFormat::Int4 { scales } => scales.len(),
            _ => 0,
        };
        let bytes = self.location.range.len() + scales;
        if self.file.anonymous_bytes() > 0 { 0 } else { bytes as u64 }
    }
}
