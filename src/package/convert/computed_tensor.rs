//! Builds a safetensors file from tensors in another format.
//!
//! Invariant: the bytes of a tensor are computed when they are written, so the memory is that of
//! the file and of one tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::View;

use super::file::quoted;

/// Function that returns the little-endian values of a tensor in row-major order.
type Values<'a> = Box<dyn Fn() -> Cow<'a, [u8]> + 'a>;

/// Tensor of the file.
pub(super) struct ComputedTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    values: Values<'a>,
}

impl<'a> ComputedTensor<'a> {
    /// Returns a tensor whose bytes `values` computes: as many as `dtype` and `shape` require.
    /// Returns `None` if that number is too large for a `usize`.
    pub(super) fn new(
        dtype: Dtype,
        shape: Vec<usize>,
        values: impl Fn() -> Cow<'a, [u8]> + 'a,
    ) -> Option<Self> {
        let count = shape.iter().try_fold(1_usize, |count, length| count.checked_mul(*length))?;
        let bytes = count.checked_mul(dtype.bitsize() / 8)?;
        Some(Self { dtype, shape, bytes, values: Box::new(values) })
    }

    /// Returns the number of bytes of the values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl View for &ComputedTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.values)()
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Returns a safetensors file with `tensors`, whose values have at most `limit` bytes.
///
/// # Errors
/// Returns the reason if they have more. Nothing is computed in this case.
pub(super) fn serialize(
    tensors: &BTreeMap<String, ComputedTensor<'_>>,
    limit: u64,
) -> Result<Vec<u8>, String> {
    let mut total = 0_u64;
    for (name, tensor) in tensors {
        total = total.saturating_add(tensor.bytes as u64);
        if total > limit {
            let name = quoted(name);
            return Err(format!("tensor {name} and those before it take more than {limit} bytes"));
        }
    }
    safetensors::serialize(tensors, None).map_err(|error| error.to_string())
}

/// Returns the transpose of a matrix with `columns` columns and values of `size` bytes. A matrix
/// that is not empty has a column and values of at least one byte.
pub(super) fn transpose(matrix: &[u8], columns: usize, size: usize) -> Vec<u8> {
    let mut transposed = Vec::with_capacity(matrix.len());
    // A matrix without rows may have any number of columns.
    if matrix.is_empty() {
        return transposed;
    }
    for column in 0..columns {
        for row in matrix.chunks_exact(columns * size) {
            transposed.extend_from_slice(&row[column * size..][..size]);
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn ones(count: usize) -> ComputedTensor<'static> {
        let values = move || Cow::Owned(1_f32.to_le_bytes().repeat(count));
        ComputedTensor::new(Dtype::F32, vec![count], values).unwrap()
    }

    #[test]
    fn computed_values_are_written() {
        let tensors = BTreeMap::from([("b".to_owned(), ones(2)), ("a".to_owned(), ones(3))]);
        let file = serialize(&tensors, 20).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(file.tensor("a").unwrap().data(), 1_f32.to_le_bytes().repeat(3));
        assert_eq!(file.tensor("b").unwrap().shape(), [2]);
        let message = serialize(&tensors, 19).unwrap_err();
        assert_eq!(message, "tensor \"b\" and those before it take more than 19 bytes");
    }

    #[test]
    fn size_beyond_memory_is_refused() {
        let values = || Cow::Borrowed(&[][..]);
        assert!(ComputedTensor::new(Dtype::F32, vec![usize::MAX, 2], values).is_none());
        assert!(ComputedTensor::new(Dtype::F32, vec![usize::MAX], values).is_none());
    }
}
