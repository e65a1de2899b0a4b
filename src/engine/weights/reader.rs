//! Reads the expected tensors of a file, and checks their shapes, types and values.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::Tensors;
use super::header::{Header, tensors_of_header};
use super::stored::{MatrixQuantization, StoredFormat, words};
use super::tensor::Tensor;
use crate::base::{int4, quantization};
use crate::engine::quote::quote;
use crate::engine::tensor_names::RequiredTensor;
use crate::engine::{EngineError, WeightsFile};

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
pub(in crate::engine) fn read<'a>(
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
pub(in crate::engine) fn read_with<'a>(
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
