//! Reads a safetensors file and decodes its tensors to f32.
//!
//! A tensor is stored as f32, f16, bf16 or int8. An int8 matrix `NAME` of shape `[rows,
//! columns]` has these companions:
//!
//! - `NAME.scale`, f32 of `[rows]`: a value is `q · scale[row]`. If blocks of columns have their
//!   own scales, the shape is `[rows, blocks]`.
//! - `NAME.block`, u32 of `[columns]`: the block of each column. Present only if there are blocks.
//! - `NAME.outlier.index`, u32 of `[n]`: positions of the outliers in the row-major matrix.
//! - `NAME.outlier.value`, f32 of `[n]`: exact values of the outliers.
//!
//! The table of words of an encoder may also be stored in 4 bits, in the [blocks](int4) of `Q4_0`:
//! `NAME` is u8 of `[rows, columns / 2]`, and `NAME.scale` is f16 of `[rows, columns / 32]`. Rows
//! of such a table are decoded from both tensors in the file.
//!
//! The callers pass the expected names and shapes; this module does not know the purpose of a
//! tensor.
//!
//! Invariant: [`Tensors`] contain exactly the expected tensors, in their shapes, and every value is
//! finite.

mod header;

use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use super::quote::quote;
use super::tensor_names::RequiredTensor;
use super::{EngineError, WeightsFile};
use crate::base::{int4, quantization};
use header::tensors_of_header;
pub(super) use header::{Header, header_memory};

/// Name of the file of an encoder or a table in messages.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// A tensor of a file in its stored format; decoded on use.
#[derive(Clone)]
pub(super) struct Tensor<'a> {
    pub(super) shape: Vec<usize>,
    stored: StoredFormat,
    data: &'a [u8],
    /// File that contains `data`.
    file: &'a dyn WeightsFile,
}

/// Storage format of a tensor's values.
#[derive(Clone, Debug)]
enum StoredFormat {
    F32,
    F16,
    Bf16,
    Int8(MatrixQuantization),
    Int4 {
        /// Position in the file of the scales, one f16 for each row and block.
        scales: Range<usize>,
    },
}

/// One row of a matrix of integers, as stored.
pub(super) struct StoredRow<'t> {
    /// One integer for each column; meaningless for an outlier.
    pub(super) integers: &'t [i8],
    /// One scale for each block.
    pub(super) scales: &'t [f32],
    /// Row, column and exact value of each outlier.
    pub(super) outliers: &'t [(usize, usize, f32)],
}

/// Data that converts the integers of a matrix to values.
#[derive(Clone, Debug)]
struct MatrixQuantization {
    /// Scale of each row and block, `[rows, blocks]`.
    scales: Vec<f32>,
    /// Block of each column; empty if the matrix is a single block.
    blocks: Vec<u32>,
    block_count: usize,
    /// Row, column and exact value of each outlier, in ascending order of position.
    outliers: Vec<(usize, usize, f32)>,
}

/// Bytes of an outlier in a file: its position and its value.
pub(super) const OUTLIER_FILE_BYTES: u64 = 8;
/// Bytes of an outlier in memory, in a table or in a packed layer.
pub(super) const OUTLIER_BYTES: u64 = size_of::<(usize, usize, f32)>() as u64;

impl MatrixQuantization {
    /// Returns the scales of `row`, one for each block.
    fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.block_count..][..self.block_count]
    }

    /// Returns row, column and value of the outliers of `row`.
    fn outliers(&self, row: usize) -> &[(usize, usize, f32)] {
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
    fn decode(&self, file: &[u8], matrix: &[u8], columns: usize, row: usize, out: &mut [f32]) {
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

impl<'a> Tensor<'a> {
    /// Returns the length of a row; a vector is a single row.
    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Decodes the values of `row` into `out`.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        self.stored.decode(self.file.bytes(), self.data, self.columns(), row, out);
    }

    /// Returns the integers of `row`, or `None` if the tensor is not stored as 8-bit integers.
    pub(super) fn integers(&self, row: usize) -> Option<StoredRow<'_>> {
        let StoredFormat::Int8(quantization) = &self.stored else { return None };
        let columns = self.columns();
        Some(StoredRow {
            integers: bytemuck::cast_slice(&self.data[row * columns..][..columns]),
            scales: quantization.scales(row),
            outliers: quantization.outliers(row),
        })
    }

    /// Returns the block of `column`, or `None` if the tensor is not stored as 8-bit integers.
    pub(super) fn block(&self, column: usize) -> Option<usize> {
        let StoredFormat::Int8(quantization) = &self.stored else { return None };
        Some(quantization.blocks.get(column).map_or(0, |&block| block as usize))
    }

    /// Decodes all values, row-major.
    pub(super) fn values(&self) -> Vec<f32> {
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
    fn first_non_finite(&self) -> Option<(usize, f32)> {
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
    fn has_non_finite(&self) -> bool {
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
    fn range(&self) -> Range<usize> {
        let start = self.data.as_ptr().addr() - self.file.bytes().as_ptr().addr();
        start..start + self.data.len()
    }

    /// Notifies the file that the data will not be read soon.
    fn release(&self) {
        self.file.release(self.range());
    }

    /// Notifies the file that the data will not be read again.
    pub(super) fn forget(&self) {
        self.file.forget(self.range());
    }

    /// Returns the location and format of the tensor without the borrow of its file.
    pub(super) fn location(&self) -> MatrixLocation {
        MatrixLocation { stored: self.stored.clone(), columns: self.columns(), range: self.range() }
    }
}

/// Location of a matrix in its file, and its storage format.
pub(super) struct MatrixLocation {
    stored: StoredFormat,
    columns: usize,
    range: Range<usize>,
}

/// A matrix that stays in its file; each row is decoded on request.
pub(super) struct MappedTable {
    file: Box<dyn WeightsFile>,
    location: MatrixLocation,
}

impl MappedTable {
    /// Creates a table from the matrix at `location`, which was found in `file`. Notifies the file
    /// that the rest of it will not be read again.
    pub(super) fn new(file: Box<dyn WeightsFile>, location: MatrixLocation) -> Self {
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
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let MatrixLocation { stored, columns, range } = &self.location;
        let file = self.file.bytes();
        stored.decode(file, &file[range.clone()], *columns, row, out);
    }

    /// Returns the memory of this process that the table and its file occupy, in bytes.
    pub(super) fn bytes(&self) -> u64 {
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
    pub(super) fn mapped_bytes(&self) -> u64 {
        let scales = match &self.location.stored {
            StoredFormat::Int4 { scales } => scales.len(),
            _ => 0,
        };
        let bytes = self.location.range.len() + scales;
        if self.file.anonymous_bytes() > 0 { 0 } else { bytes as u64 }
    }
}

/// A tensor of a file that was not checked yet.
struct UncheckedTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> UncheckedTensor<'a> {
    const fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    const fn data(&self) -> &'a [u8] {
        self.data
    }
}

/// Tensors by canonical name.
pub(super) type Tensors<'a> = BTreeMap<String, Tensor<'a>>;

/// Reads the `expected` tensors of the safetensors `file`; messages call the file `name`.
///
/// `canonical` returns the name under which a stored tensor is expected, or `None` to skip the
/// tensor. Each value is read once to check that it is finite; then the memory of a mapped file is
/// released.
///
/// # Errors
/// Returns an error if a tensor is missing, unknown, of the wrong shape or of an unsupported type,
/// or has a value that is not finite. The message names the tensor, and its shapes where these
/// matter.
pub(super) fn read<'a>(
    name: &str,
    file: &'a dyn WeightsFile,
    canonical: impl Fn(&str) -> Option<String>,
    mut expected: impl Iterator<Item = RequiredTensor>,
) -> Result<Tensors<'a>, EngineError> {
    let needed = tensors_of_header(file.bytes());
    let first: Vec<RequiredTensor> = expected.by_ref().take(needed).collect();
    let header = Header::read(name, file.bytes(), first.iter())?;
    read_with(&header, name, file, canonical, first.into_iter().chain(expected))
}

/// Reads tensors like [`read`], from a file with an already parsed `header`.
///
/// # Errors
/// Returns the errors of [`read`].
pub(super) fn read_with<'a>(
    header: &Header,
    name: &str,
    file: &'a dyn WeightsFile,
    canonical: impl Fn(&str) -> Option<String>,
    expected: impl Iterator<Item = RequiredTensor>,
) -> Result<Tensors<'a>, EngineError> {
    let mut views = UncheckedTensors { name, file, tensors: BTreeMap::new() };
    for (name, tensor) in header.metadata.tensors() {
        let Some(name) = canonical(&name) else { continue };
        if views.tensors.contains_key(&name) {
            return Err(views.mismatch_error(&name, "is present twice, under two names"));
        }
        let (begin, end) = tensor.data_offsets;
        let data = file.bytes().get(header.start + begin..header.start + end);
        let data = data.ok_or_else(|| views.mismatch_error(&name, "lies outside the file"))?;
        let view = UncheckedTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), data };
        views.tensors.insert(name, view);
    }
    let mut found = Tensors::new();
    for RequiredTensor { name, shape } in expected {
        let tensor = views.take(&name, &shape)?;
        found.insert(name, tensor);
    }
    if let Some((name, view)) = views.tensors.first_key_value() {
        let what = format!("{:?} is not part of this model", view.shape());
        return Err(views.mismatch_error(name, &what));
    }
    Ok(found)
}

/// Tensors of a file that were not taken yet.
struct UncheckedTensors<'n, 'a> {
    name: &'n str,
    file: &'a dyn WeightsFile,
    tensors: BTreeMap<String, UncheckedTensor<'a>>,
}

impl<'a> UncheckedTensors<'_, 'a> {
    fn mismatch_error(&self, name: &str, what: &str) -> EngineError {
        EngineError::Mismatch(format!("{}: tensor {} {what}", self.name, quote(name)))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, EngineError> {
        let Some(view) = self.tensors.remove(name) else {
            return Err(self.mismatch_error(name, &format!("{shape:?} is missing")));
        };
        let is_int4 = view.dtype() == Dtype::U8 && quantization::is_word_table(name);
        let of_bytes = match *shape {
            [rows, columns] if is_int4 => vec![rows, columns / 2],
            _ => shape.to_vec(),
        };
        if view.shape() != of_bytes {
            let what = format!("has shape {:?}, expected {of_bytes:?}", view.shape());
            return Err(self.mismatch_error(name, &what));
        }
        let stored = match view.dtype() {
            Dtype::U8 if is_int4 => self.take_int4_scales(name, shape)?,
            Dtype::F32 => StoredFormat::F32,
            Dtype::F16 => StoredFormat::F16,
            Dtype::BF16 => StoredFormat::Bf16,
            Dtype::I8 => StoredFormat::Int8(self.take_quantization(name, shape)?),
            other => {
                let what = format!("has type {other:?}; supported types are F32, F16, BF16 and I8");
                return Err(self.mismatch_error(name, &what));
            }
        };
        let tensor = Tensor { shape: shape.to_vec(), stored, data: view.data(), file: self.file };
        let suspicious = tensor.has_non_finite();
        tensor.release();
        if !suspicious {
            return Ok(tensor);
        }
        match tensor.first_non_finite() {
            None => Ok(tensor),
            Some((index, _)) if view.dtype() == Dtype::I8 => {
                Err(self.mismatch_error(name, &format!("overflows f32 at index {index}")))
            }
            Some((index, value)) => {
                Err(self.mismatch_error(name, &format!("has {value} at index {index}")))
            }
        }
    }

    /// Takes the scales of the 4-bit integers of `name`, a matrix of `shape`.
    fn take_int4_scales(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<StoredFormat, EngineError> {
        let blocks = match *shape {
            [rows, columns] if columns.is_multiple_of(int4::BLOCK) => [rows, columns / int4::BLOCK],
            _ => {
                let (multiple, what) = (int4::BLOCK, format!("has type U8 and shape {shape:?}"));
                let what = format!("{what}; in 4 bits, a row is a multiple of {multiple} values");
                return Err(self.mismatch_error(name, &what));
            }
        };
        let scale_name = format!("{name}.scale");
        if let Some(view) = self.tensors.get(&scale_name).filter(|view| view.dtype() != Dtype::F16)
        {
            let what = format!("has type {:?}, expected F16", view.dtype());
            return Err(self.mismatch_error(&scale_name, &what));
        }
        Ok(StoredFormat::Int4 { scales: self.take(&scale_name, &blocks)?.range() })
    }

    fn take_quantization(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<MatrixQuantization, EngineError> {
        let &[rows, columns] = shape else {
            let what = format!("has type I8 and shape {shape:?}; only a matrix may have type I8");
            return Err(self.mismatch_error(name, &what));
        };
        let scale_name = format!("{name}.scale");
        if let Some(view) = self.tensors.get(&scale_name).filter(|view| view.dtype() != Dtype::F32)
        {
            let what = format!("has type {:?}, expected F32", view.dtype());
            return Err(self.mismatch_error(&scale_name, &what));
        }
        let (blocks, block_count) = self.take_blocks(name, columns)?;
        let with_blocks = [rows, block_count];
        let shape_of_scales = if blocks.is_empty() { &with_blocks[..1] } else { &with_blocks };
        let scales = self.take(&scale_name, shape_of_scales)?.values();
        // The scale of a row of zeros is 1, so a quantizer never writes a scale of zero or less.
        if let Some(at) = scales.iter().position(|&scale| scale <= 0.0) {
            let row = at / block_count;
            let what = format!("is {} for row {row}, expected above 0", scales[at]);
            return Err(self.mismatch_error(&scale_name, &what));
        }
        let mut outliers = Vec::new();
        for (index, value) in self.take_outliers(name)? {
            if index >= rows * columns {
                let what = format!("points at {index} in a matrix of {shape:?}");
                return Err(self.mismatch_error(&format!("{name}.outlier.index"), &what));
            }
            outliers.push((index / columns, index % columns, value));
        }
        outliers.sort_by_key(|&(row, column, _)| (row, column));
        // A duplicate is ambiguous: decoding to f32 takes the last value, and an int8 product adds
        // all of them.
        let twice =
            outliers.windows(2).find(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
        if let Some(&[(row, column, _), _]) = twice {
            let what = format!("points at {} twice", row * columns + column);
            return Err(self.mismatch_error(&format!("{name}.outlier.index"), &what));
        }
        Ok(MatrixQuantization { scales, blocks, block_count, outliers })
    }

    /// Takes the block of each column of `name`, and the number of blocks. The list is empty if the
    /// matrix is a single block.
    fn take_blocks(
        &mut self,
        name: &str,
        columns: usize,
    ) -> Result<(Vec<u32>, usize), EngineError> {
        let block_name = format!("{name}.block");
        let Some(view) = self.tensors.remove(&block_name) else { return Ok((Vec::new(), 1)) };
        if view.dtype() != Dtype::U32 || view.shape() != [columns] || columns == 0 {
            let (found, shape) = (view.dtype(), view.shape());
            let what = format!("has type {found:?} and shape {shape:?}, expected U32 and");
            return Err(self.mismatch_error(&block_name, &format!("{what} [{columns}]")));
        }
        let blocks: Vec<u32> = words(view.data()).map(u32::from_le_bytes).collect();
        let last = blocks.iter().copied().max().unwrap_or(0) as usize;
        // Require fewer blocks than columns; otherwise the scales could take more memory than the
        // values.
        if last >= columns {
            let what = format!("has block {last}, expected less than {columns}");
            return Err(self.mismatch_error(&block_name, &what));
        }
        Ok((blocks, last + 1))
    }

    /// Takes positions and values of the outliers of `name`; returns an empty list if it has none.
    fn take_outliers(&mut self, name: &str) -> Result<Vec<(usize, f32)>, EngineError> {
        let (index_name, value_name) =
            (format!("{name}.outlier.index"), format!("{name}.outlier.value"));
        let Some(view) = self.tensors.remove(&index_name) else { return Ok(Vec::new()) };
        let &[count] = view.shape() else {
            let what = format!("has shape {:?}, expected one axis", view.shape());
            return Err(self.mismatch_error(&index_name, &what));
        };
        if view.dtype() != Dtype::U32 {
            let what = format!("has type {:?}, expected U32", view.dtype());
            return Err(self.mismatch_error(&index_name, &what));
        }
        let values = self.take(&value_name, &[count])?.values();
        let indices = words(view.data()).map(|word| u32::from_le_bytes(word) as usize);
        Ok(indices.zip(values).collect())
    }
}

/// Splits `data` into little-endian words; safetensors guarantees that their number is whole.
fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
pub(super) mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    /// Builds a safetensors file.
    pub(in crate::engine) fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    pub(in crate::engine) fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn i8s(values: &[i8]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn read_a(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Result<Vec<f32>, String> {
        let expected = [RequiredTensor::new("a", [2, 2])].into_iter();
        let canonical = |name: &str| (name != "ignored").then(|| name.replace("old", "a"));
        match read("m.safetensors", &file(tensors), canonical, expected) {
            Ok(weights) => Ok(weights["a"].values()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_stored_type_reads_as_f32() {
        let values = [1.0, -2.5, 0.0, 384.0];
        let halves = |bits: fn(f32) -> [u8; 2]| values.into_iter().flat_map(bits).collect();
        let cases: [(Dtype, Vec<u8>); 3] = [
            (Dtype::F32, f32s(&values)),
            (Dtype::F16, halves(|value| f16::from_f32(value).to_le_bytes())),
            (Dtype::BF16, halves(|value| bf16::from_f32(value).to_le_bytes())),
        ];
        for (dtype, data) in cases {
            assert_eq!(read_a(&[("a", dtype, &[2, 2], data)]), Ok(values.to_vec()), "{dtype:?}");
        }
    }

    #[test]
    fn int8_outliers_are_placed_by_index() {
        let with = |dtype: Dtype, index: &[u32], values: &[f32]| {
            let data = index.iter().flat_map(|index| index.to_le_bytes()).collect();
            read_a(&[
                ("a", Dtype::I8, &[2, 2], i8s(&[1, 2, 3, 4])),
                ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1.0])),
                ("a.outlier.index", dtype, &[index.len()], data),
                ("a.outlier.value", Dtype::F32, &[values.len()], f32s(values)),
            ])
        };
        assert_eq!(with(Dtype::U32, &[1, 2], &[9.5, -7.0]), Ok(vec![1.0, 9.5, -7.0, 4.0]));
        for (dtype, index, values, expected) in [
            (Dtype::U32, &[4][..], &[1.0][..], "\"a.outlier.index\" points at 4"),
            (Dtype::U32, &[1, 1], &[1.0, 2.0], "points at 1 twice"),
            (Dtype::F32, &[1], &[1.0], "has type F32, expected U32"),
            (Dtype::U32, &[1], &[1.0, 2.0], "has shape [2], expected [1]"),
            (Dtype::U32, &[1], &[f32::NAN], "has NaN"),
        ] {
            let message = with(dtype, index, values).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn int8_is_scaled_by_row() {
        let values = read_a(&[
            ("a", Dtype::I8, &[2, 2], i8s(&[127, -128, 3, 0])),
            ("a.scale", Dtype::F32, &[2], f32s(&[0.5, 2.0])),
        ]);
        assert_eq!(values, Ok(vec![63.5, -64.0, 6.0, 0.0]));
    }

    #[test]
    fn int8_columns_use_their_block_scales() {
        let with = |dtype: Dtype, blocks: &[u32], scales: &[usize]| {
            let data = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
            let values: Vec<f32> = (0..scales.iter().product()).map(|at| 1.0 + at as f32).collect();
            read_a(&[
                ("a", Dtype::I8, &[2, 2], i8s(&[10, 20, 30, 40])),
                ("a.scale", Dtype::F32, scales, f32s(&values)),
                ("a.block", dtype, &[blocks.len()], data),
            ])
        };
        assert_eq!(with(Dtype::U32, &[1, 0], &[2, 2]), Ok(vec![20.0, 20.0, 120.0, 120.0]));
        assert_eq!(with(Dtype::U32, &[0, 0], &[2, 1]), Ok(vec![10.0, 20.0, 60.0, 80.0]));
        for (dtype, blocks, scales, expected) in [
            (Dtype::U32, &[0, 1][..], &[2][..], "\"a.scale\" has shape [2], expected [2, 2]"),
            (Dtype::U32, &[0, 1], &[2, 3], "\"a.scale\" has shape [2, 3], expected [2, 2]"),
            (Dtype::U32, &[0, 2], &[2, 3], "\"a.block\" has block 2, expected less than 2"),
            (Dtype::U32, &[0, u32::MAX], &[2, 2], "has block 4294967295"),
            (
                Dtype::U32,
                &[0],
                &[2, 1],
                "\"a.block\" has type U32 and shape [1], expected U32 and [2]",
            ),
            (
                Dtype::F32,
                &[0, 1],
                &[2, 2],
                "\"a.block\" has type F32 and shape [2], expected U32 and [2]",
            ),
        ] {
            let message = with(dtype, blocks, scales).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    /// Returns two rows of 64 columns in 4 bits, all of them 1 and 3 above 0 in turn, and their
    /// scales.
    fn int4_table() -> (Vec<u8>, Vec<u8>) {
        let scales = [0.5_f32, -1.0, 0.0, 2.0].map(|scale| f16::from_f32(scale).to_le_bytes());
        (vec![0xb9; 2 * 32], scales.concat())
    }

    #[test]
    fn int4_table_is_decoded_in_place() {
        const NAME: &str = "x.word_embeddings.weight";
        let (integers, scales) = int4_table();
        let bytes = file(&[
            (NAME, Dtype::U8, &[2, 32], integers),
            (&format!("{NAME}.scale"), Dtype::F16, &[2, 2], scales),
            ("another", Dtype::F32, &[1], f32s(&[7.0])),
        ]);
        let expected = [RequiredTensor::new(NAME, [2, 64]), RequiredTensor::new("another", [1])];
        let tensors =
            read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected.into_iter());
        let table = tensors.unwrap().remove(NAME).unwrap();
        let row = |first: f32, second: f32| {
            let block = |scale: f32| [[scale; 16], [3.0 * scale; 16]].concat();
            [block(first), block(second)].concat()
        };
        assert_eq!(table.values(), [row(0.5, -1.0), row(0.0, 2.0)].concat());
        assert!(table.integers(0).is_none() && table.block(0).is_none());
        let table = MappedTable::new(Box::new(bytes.clone()), table.location());
        let mut found = vec![0.0; 64];
        table.read_row(1, &mut found);
        assert_eq!(found, row(0.0, 2.0));
        // A file in memory counts as memory, and nothing is decoded in addition.
        assert_eq!((table.bytes(), table.mapped_bytes()), (bytes.len() as u64, 0));
    }

    #[test]
    fn wrong_int4_tables_are_refused() {
        const NAME: &str = "word_embeddings.weight";
        let scale_name = format!("{NAME}.scale");
        let read = |name: &str, columns, scale: Option<(Dtype, &[usize], Vec<u8>)>| {
            let mut tensors = vec![(name, Dtype::U8, &[2, 32][..], int4_table().0)];
            tensors.extend(scale.map(|(dtype, shape, data)| (&*scale_name, dtype, shape, data)));
            let expected = [RequiredTensor::new(name, [2, columns])].into_iter();
            let bytes = file(&tensors);
            let read = read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected);
            read.err().unwrap().to_string()
        };
        let scales = int4_table().1;
        let infinite = [scales[2..].to_vec(), f16::INFINITY.to_le_bytes().to_vec()].concat();
        for (found, expected) in [
            (read(NAME, 64, None), "weight.scale\" [2, 2] is missing"),
            (read(NAME, 66, None), "has shape [2, 32], expected [2, 33]"),
            (read(NAME, 65, None), "shape [2, 65]; in 4 bits, a row is a multiple of 32 values"),
            (
                read(NAME, 64, Some((Dtype::F32, &[2, 1], scales.clone()))),
                "weight.scale\" has type F32, expected F16",
            ),
            (
                read(NAME, 64, Some((Dtype::F16, &[4], scales))),
                "weight.scale\" has shape [4], expected [2, 2]",
            ),
            (
                read(NAME, 64, Some((Dtype::F16, &[2, 2], infinite))),
                "weight.scale\" has inf at index 3",
            ),
            // A linear layer cannot be stored in 4 bits.
            (
                read("query.weight", 64, None),
                "\"query.weight\" has shape [2, 32], expected [2, 64]",
            ),
            (
                read("query.weight", 32, None),
                "has type U8; supported types are F32, F16, BF16 and I8",
            ),
        ] {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn ignored_tensor_is_not_read() {
        let a = ("a", Dtype::F32, [2, 2].as_slice(), f32s(&[1.0; 4]));
        let ignored = ("ignored", Dtype::I64, [1].as_slice(), vec![0; 8]);
        assert_eq!(read_a(&[a, ignored]), Ok(vec![1.0; 4]));
    }

    #[test]
    fn every_refusal_names_the_tensor() {
        let good = || f32s(&[1.0; 4]);
        let quantized = || i8s(&[1; 4]);
        type Tensors<'a> = Vec<(&'a str, Dtype, &'a [usize], Vec<u8>)>;
        let cases: Vec<(Tensors<'_>, &str)> = vec![
            (vec![], "\"a\" [2, 2] is missing"),
            (vec![("a", Dtype::F32, &[4], good())], "\"a\" has shape [4], expected [2, 2]"),
            (
                vec![("a", Dtype::F32, &[2, 2], good()), ("b", Dtype::F32, &[1], f32s(&[1.0]))],
                "\"b\" [1] is not part of this model",
            ),
            (
                vec![("a", Dtype::F32, &[2, 2], good()), ("old", Dtype::F32, &[2, 2], good())],
                "\"a\" is present twice, under two names",
            ),
            (
                vec![("a", Dtype::F32, &[2, 2], f32s(&[0.0, 1.0, f32::NAN, 0.0]))],
                "\"a\" has NaN at index 2",
            ),
            (
                vec![("a", Dtype::F32, &[2, 2], f32s(&[f32::INFINITY, 1.0, 0.0, 0.0]))],
                "\"a\" has inf at index 0",
            ),
            (
                vec![("a", Dtype::F64, &[2, 2], vec![0; 32])],
                "\"a\" has type F64; supported types are F32, F16, BF16 and I8",
            ),
            (vec![("a", Dtype::I8, &[2, 2], quantized())], "\"a.scale\" [2] is missing"),
            (
                vec![
                    ("a", Dtype::I8, &[2, 2], quantized()),
                    ("a.scale", Dtype::F32, &[1], f32s(&[1.0])),
                ],
                "\"a.scale\" has shape [1], expected [2]",
            ),
            (
                vec![
                    ("a", Dtype::I8, &[2, 2], quantized()),
                    ("a.scale", Dtype::F16, &[2], vec![0; 4]),
                ],
                "\"a.scale\" has type F16, expected F32",
            ),
            (
                vec![
                    ("a", Dtype::I8, &[2, 2], quantized()),
                    ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 0.0])),
                ],
                "\"a.scale\" is 0 for row 1, expected above 0",
            ),
            (
                vec![
                    ("a", Dtype::I8, &[2, 2], quantized()),
                    ("a.scale", Dtype::F32, &[2], f32s(&[f32::NAN, 1.0])),
                ],
                "\"a.scale\" has NaN at index 0",
            ),
            (
                vec![
                    ("a", Dtype::I8, &[2, 2], i8s(&[1, 1, 1, 127])),
                    ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1e38])),
                ],
                "\"a\" overflows f32 at index 3",
            ),
            (
                vec![
                    ("a", Dtype::F32, &[2, 2], good()),
                    ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1.0])),
                ],
                "\"a.scale\" [2] is not part of this model",
            ),
        ];
        for (tensors, message) in cases {
            let error = read_a(&tensors).unwrap_err();
            assert_eq!(error, format!("m.safetensors: tensor {message}"));
        }
    }

    #[test]
    fn an_int8_vector_is_refused() {
        let bytes = file(&[("a", Dtype::I8, &[2], i8s(&[1, 1]))]);
        let expected = [RequiredTensor::new("a", [2])].into_iter();
        let error =
            read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected).err().unwrap();
        let message = "m.safetensors: tensor \"a\" has type I8 and shape [2]; only a matrix may have \
                       type I8";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn oversized_header_is_refused() {
        let with = |padding: usize, tensors: usize| {
            let names: Vec<String> = (0..tensors).map(|index| format!("t{index}")).collect();
            let all: Vec<(&str, Dtype, &[usize], Vec<u8>)> = names
                .iter()
                .map(|name| (name.as_str(), Dtype::F32, [1].as_slice(), f32s(&[1.0])))
                .collect();
            let mut bytes = file(&all);
            let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            bytes[..8].copy_from_slice(&(length + padding as u64).to_le_bytes());
            let end = usize::try_from(8 + length).unwrap();
            bytes.splice(end..end, std::iter::repeat_n(b' ', padding));
            let expected = (0..tensors).map(|index| RequiredTensor::new(format!("t{index}"), [1]));
            let read = read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected);
            read.map(|tensors| tensors.len()).map_err(|error| crate::base::errors::chain(&error))
        };
        assert_eq!(with(0, 3), Ok(3));
        assert_eq!(with(64 << 10, 3), Ok(3));
        assert_eq!(with((64 << 10) + 2 * 1024, 3), Ok(3));
        let error = with((64 << 10) + 3 * 1024, 3).unwrap_err();
        assert_eq!(
            error,
            "m.safetensors cannot be read: its header is larger than 3 tensors need, which is \
             68608 bytes at most"
        );
        assert!(with(10 << 20, 3).unwrap_err().contains("larger than 3 tensors need"));
    }

    #[test]
    fn tensor_name_in_error_is_escaped() {
        let evil = format!("\u{1b}[2J{}", "x".repeat(2000));
        let error = read_a(&[
            ("a", Dtype::F32, &[2, 2], f32s(&[1.0; 4])),
            (&evil, Dtype::F32, &[1], f32s(&[1.0])),
        ])
        .unwrap_err();
        assert!(error.starts_with("m.safetensors: tensor \"\\u{1b}[2Jxxx"), "{error}");
        assert!(error.ends_with("xxx…\" [1] is not part of this model"), "{error}");
        assert!(error.len() < 250, "{error}");
    }

    #[test]
    fn invalid_safetensors_error_names_the_file() {
        for bytes in [&b""[..], &[255; 16], b"\x08\0\0\0\0\0\0\0{\"a\": 1}"] {
            let bytes = bytes.to_vec();
            let error = read("m.safetensors", &bytes, |_| None, std::iter::empty()).err().unwrap();
            assert_eq!(error.to_string(), "m.safetensors cannot be read");
        }
    }
}
