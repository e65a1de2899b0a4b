//! Reads the header of a safetensors file, which is JSON in front of the values.
//!
//! Owns its bound: the library takes a hundred megabytes of it, and parsing takes several times its length.

use std::borrow::Borrow;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::super::EngineError;
use super::super::layout::Expected;
use super::super::quote::escaped;

/// Bytes of the JSON at the start of a safetensors file that any model may have.
const HEADER_BYTES: usize = 64 << 10;
/// Bytes of that JSON for each tensor that is expected: those of integers have four more beside them.
const HEADER_BYTES_OF_TENSOR: usize = 1 << 10;
/// Memory for each byte of that JSON while it is parsed. Measured with glibc, of a header of the shortest tensors.
const HEADER_MEMORY: u64 = 16;

/// Memory that parsing the largest header of a file with `tensors` tensors takes.
pub(in crate::engine) fn header_memory(tensors: u128) -> u64 {
    let bytes = tensors.saturating_mul(HEADER_BYTES_OF_TENSOR as u128);
    let bytes = bytes.saturating_add(HEADER_BYTES as u128);
    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(HEADER_MEMORY)
}

/// How many tensors make the length of the header of `file` plausible. An absurd number is not counted to its end.
pub(super) fn tensors_of_header(file: &[u8]) -> usize {
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    // What is longer than the file is refused by the library, which allocates nothing before.
    let length = usize::try_from(length).ok().filter(|&length| length <= file.len());
    length.unwrap_or(0).saturating_sub(HEADER_BYTES).div_ceil(HEADER_BYTES_OF_TENSOR)
}

/// The header of a safetensors file, parsed: names, types, shapes and places of its tensors, which fill the file
/// without a hole.
pub(in crate::engine) struct Header {
    pub(super) metadata: Metadata,
    /// Where the values begin.
    pub(super) start: usize,
}

impl Header {
    /// Parses the header of `file`, which messages call `name`, for the `expected` tensors.
    ///
    /// # Errors
    /// When it is larger than so many tensors need, or no header of this file.
    pub(in crate::engine) fn read(
        name: &str,
        file: &[u8],
        expected: impl Iterator<Item: Borrow<Expected>>,
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
            SafeTensors::read_metadata(file).map_err(|error| unreadable(escaped(error)))?;
        Ok(Self { metadata, start: size_of::<u64>() + length })
    }

    /// Whether a tensor is stored in integers.
    pub(in crate::engine) fn has_integers(&self) -> bool {
        self.metadata.tensors().values().any(|tensor| tensor.dtype == Dtype::I8)
    }
}
