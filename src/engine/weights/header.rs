//! Reads the header of a safetensors file: the JSON before the values.
//!
//! This module bounds the size of the header: the library accepts a hundred megabytes, and parsing
//! takes several times the length of the JSON.

use std::borrow::Borrow;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::super::EngineError;
use super::super::quote::escape;
use super::super::tensor_names::RequiredTensor;

/// Bytes of the header that are allowed for every model.
const HEADER_BYTES: usize = 64 << 10;
/// Additional bytes of the header for each expected tensor. A tensor of integers has up to four
/// companions, which this bound covers.
const HEADER_BYTES_OF_TENSOR: usize = 1 << 10;
/// Memory for each byte of the header during parsing. Measured with glibc for a header with the
/// shortest possible entries.
const HEADER_MEMORY: u64 = 16;

/// Returns the memory for parsing the largest allowed header of a file with `tensors` tensors.
pub(in crate::engine) fn header_memory(tensors: u128) -> u64 {
    let bytes = tensors.saturating_mul(HEADER_BYTES_OF_TENSOR as u128);
    let bytes = bytes.saturating_add(HEADER_BYTES as u128);
    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(HEADER_MEMORY)
}

/// Returns the smallest number of tensors that justifies the length of the header of `file`. The
/// callers take no more than this number from an iterator of expected tensors, whose length may be
/// absurd.
pub(super) fn tensors_of_header(file: &[u8]) -> usize {
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    // The library refuses a length beyond the end of the file before it allocates memory, so ignore
    // it here.
    let length = usize::try_from(length).ok().filter(|&length| length <= file.len());
    length.unwrap_or(0).saturating_sub(HEADER_BYTES).div_ceil(HEADER_BYTES_OF_TENSOR)
}

/// Parsed header of a safetensors file: names, types, shapes and positions of its tensors. The
/// tensors fill the rest of the file without gaps.
pub(in crate::engine) struct Header {
    pub(super) metadata: Metadata,
    /// Offset of the values in the file.
    pub(super) start: usize,
}

impl Header {
    /// Parses the header of `file` for the `expected` tensors; messages call the file `name`.
    ///
    /// # Errors
    /// Returns an error if the header is larger than the number of tensors justifies, or does not
    /// match the file.
    pub(in crate::engine) fn read(
        name: &str,
        file: &[u8],
        expected: impl Iterator<Item: Borrow<RequiredTensor>>,
    ) -> Result<Self, EngineError> {
        let unreadable =
            |source: String| EngineError::File { file: name.to_owned(), source: source.into() };
        let needed = tensors_of_header(file);
        let count = expected.take(needed).count();
        if count < needed {
            return Err(unreadable(format!(
                "its header is larger than {count} tensors need, which is {} bytes at most",
                HEADER_BYTES + count * HEADER_BYTES_OF_TENSOR
            )));
        }
        let (length, metadata) =
            SafeTensors::read_metadata(file).map_err(|error| unreadable(escape(error)))?;
        Ok(Self { metadata, start: size_of::<u64>() + length })
    }

    /// Returns whether any tensor is stored as integers.
    pub(in crate::engine) fn has_integers(&self) -> bool {
        self.metadata.tensors().values().any(|tensor| tensor.dtype == Dtype::I8)
    }
}
