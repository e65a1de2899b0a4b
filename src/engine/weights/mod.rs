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
//! The table of words of an encoder may also be stored in 4 bits, in the
//! [blocks](crate::base::int4) of `Q4_0`: `NAME` is u8 of `[rows, columns / 2]`, and `NAME.scale`
//! is f16 of `[rows, columns / 32]`. Rows of such a table are decoded from both tensors in the
//! file.
//!
//! The callers pass the expected names and shapes; this module does not know the purpose of a
//! tensor.
//!
//! Invariant: [`Tensors`] contain exactly the expected tensors, in their shapes, and every value is
//! finite.

mod header;
mod reader;
mod stored;
mod table;
mod tensor;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;

pub(super) use header::{Header, header_memory};
pub(super) use reader::{read, read_with};
pub(super) use table::MappedTable;
pub(super) use tensor::{StoredRow, Tensor};

/// Name of the file of an encoder or a table in messages.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// Bytes of an outlier in a file: its position and its value.
pub(super) const OUTLIER_FILE_BYTES: u64 = 8;
/// Bytes of an outlier in memory, in a table or in a packed layer.
pub(super) const OUTLIER_BYTES: u64 = size_of::<(usize, usize, f32)>() as u64;

/// Tensors by canonical name.
pub(super) type Tensors<'a> = BTreeMap<String, Tensor<'a>>;
