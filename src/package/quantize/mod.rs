//! Converts weights for a package: safetensors in, safetensors out.
//!
//! Reads f32, f16 and bf16 and writes one [`Precision`]. Tensors of any other rank than 2 (biases,
//! layer norms) become f32 in every precision: they are small, and an error in them affects every
//! token.
//!
//! Int8 is symmetric and per row. A row is an output channel of a linear layer or a token of an
//! embedding table. `NAME` becomes I8 `[rows, cols]`, and `NAME.scale` F32 `[rows]` is added, with
//! `value ≈ q · scale`, `|q| ≤ 127` and an error of at most half a scale. The columns of a linear
//! layer are divided into the blocks of [`input_blocks`], in which the engine computes: then
//! `NAME.scale` is `[rows, blocks]`, and `NAME.block` U32 `[cols]` contains the block of each
//! column. Smaller scales that clip the largest values were tried (16 candidates for each row,
//! chosen by squared error). No matrix of all-MiniLM-L6-v2 improved by more than 0.5 %, so values
//! are not clipped.
//!
//! A single value far above the rest of its row would make the scale too coarse for all other
//! values. Layer 2 of all-MiniLM-L6-v2 has a 6.2 among values of 0.05; this value alone reduced the
//! lowest cosine by 0.003. Such outliers are 0 in `NAME`. They are stored exactly in
//! `NAME.outlier.index`, U32 `[n]`, with ascending positions in the row-major matrix, and in
//! `NAME.outlier.value`, F32 `[n]`. A matrix of fewer than 64 rows stays f32: it is small, and an
//! error in the one used row of the token type table affects every token. The router of a mixture
//! of experts stays f32 in every precision.
//!
//! With one scale per row, the vectors of all-MiniLM-L6-v2 computed in int8 had a mean cosine of
//! 0.99943 over texts of 250 tokens; with blocks 0.99962. Over the 100 texts of `tests/golden`:
//! 0.99953 and 0.99969.
//!
//! Int4-table is int8 with the table of words of an encoder in 4 bits: `NAME` becomes U8 `[rows,
//! cols / 2]`, and `NAME.scale` F16 `[rows, cols / 32]`, in the blocks of
//! [`int4`](crate::base::int4).
//!
//! The output omits buffers that an encoder recomputes (`position_ids`, `token_type_ids`), and the
//! pooler and the heads for other tasks, which sentence encoders never run. The head of a reranker
//! stays, in f32 in every precision: it is small and comes last, so an error in it is not averaged
//! over tokens.
//!
//! Invariant: the same input gives the same output bytes, with tensors ordered by type and then by
//! name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use half::{bf16, f16};
use safetensors::tensor::{SafeTensorError, TensorView, View};
use safetensors::{Dtype, SafeTensors};

use super::manifest::{DenseLayer, Precision};
use crate::base::int4::{self, Int4Block};
use crate::base::quantization::{
    self, QuantizedRow, channel_order, input_blocks, is_word_table, reads_hidden,
};

/// Minimum number of rows of an int8 matrix; smaller matrices stay f32.
const MIN_INT8_ROWS: usize = 64;
/// Largest absolute integer in the word embedding table of an encoder that normalizes its
/// embeddings and the sum after each block, as BERT does.
///
/// The table has half the values of a small model but causes only a fortieth of its error, and
/// fewer steps compress better. For all-MiniLM-L6-v2 this saves 0.6 MB of 21.4 and costs 0.00001 of
/// the mean cosine.
///
/// Families with a norm before each block add the outputs of all blocks to the embeddings
/// themselves. Their tables, which have other names, keep all steps: 96 steps would increase the
/// error of the tiny EuroBERT of `tests/golden` by a third.
const WORD_STEPS: f32 = 96.0;

/// Error of converting weights.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The weights are not a safetensors file.
    #[error("the weights are not in the safetensors format")]
    Format(#[source] SafeTensorError),
    /// A tensor has an unsupported type.
    #[error("tensor {name} has the type {dtype:?}; expected F32, F16 or BF16")]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// Type of the tensor.
        dtype: Dtype,
    },
    /// A tensor holds a value that the precision cannot represent.
    #[error("tensor {name} holds {value}, which {precision} cannot represent; {advice}")]
    Value {
        /// Name of the tensor.
        name: String,
        /// First such value.
        value: f32,
        /// Requested precision.
        precision: &'static str,
        /// Advice for the user.
        advice: &'static str,
    },
    /// A matrix has more values than a 32-bit index of an outlier can address.
    #[error("tensor {0} is too large for int8; pack it as f16")]
    Large(String),
    /// The rows of a table of words cannot be divided into blocks of 4-bit integers.
    #[error(
        "tensor {name} has {columns} columns, and int4-table needs a multiple of {}; pack it as \
         int8",
        int4::BLOCK
    )]
    Columns {
        /// Name of the tensor.
        name: String,
        /// Number of columns.
        columns: usize,
    },
    /// The weights have no table of words that may be stored in 4 bits.
    #[error(
        "the weights have no table of words of an encoder, which int4-table needs; pack a static \
         embedding as int8"
    )]
    NoWords,
    /// Two tensors of the output would have the same name.
    #[error(
        "tensor {0} has the name that integers need for the scales, blocks or outliers of another \
         tensor; pack it as f16 or f32"
    )]
    Name(String),
    /// A dense layer does not hold the tensors that its configuration declares.
    #[error("expected {expected}, found {found}")]
    Shape {
        /// Names and shapes that the configuration declares.
        expected: String,
        /// Names and shapes in the file.
        found: String,
    },
}

/// Tensor of the output.
struct Tensor<'data> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'data, [u8]>,
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Returns the precision that represents `weights` without loss.
///
/// Returns f16 if every matrix is f16, and f32 otherwise (bf16 has a wider range than f16).
///
/// # Errors
/// When the weights are not a safetensors file.
pub(super) fn native_precision(weights: &[u8]) -> Result<Precision, QuantizeError> {
    let tensors = SafeTensors::deserialize(weights).map_err(QuantizeError::Format)?;
    let half = tensors
        .iter()
        .filter(|(name, tensor)| tensor.shape().len() == 2 && !is_unused(name))
        .all(|(_, tensor)| tensor.dtype() == Dtype::F16);
    Ok(if half { Precision::F16 } else { Precision::F32 })
}

/// Converts the weights of an encoder with `channels` hidden channels to `precision`.
///
/// Needs memory for the input, the output, and one more tensor.
///
/// # Errors
/// When the weights are not a safetensors file, or hold a tensor of an unsupported type, or a value
/// that is not finite or exceeds the range of `precision`, or no table that `precision` needs.
pub(super) fn convert(
    weights: &[u8],
    precision: Precision,
    channels: usize,
) -> Result<Vec<u8>, QuantizeError> {
    convert_with_heads(weights, None, precision, channels)
}

/// Converts the weights of an encoder like [`convert`], and adds the tensors of `heads`, a
/// safetensors file, in f32.
///
/// # Errors
/// The errors of [`convert`].
pub(super) fn convert_with_heads(
    weights: &[u8],
    heads: Option<&[u8]>,
    precision: Precision,
    channels: usize,
) -> Result<Vec<u8>, QuantizeError> {
    convert_kept(weights, heads, precision, channels, |_head| false)
}

/// Converts the weights of a reranker like [`convert`], with its head.
///
/// # Errors
/// The errors of [`convert`].
pub(super) fn convert_classifier(
    weights: &[u8],
    precision: Precision,
    channels: usize,
) -> Result<Vec<u8>, QuantizeError> {
    convert_kept(weights, None, precision, channels, is_head)
}

/// Converts the weights of an encoder. Keeps the tensors whose names `is_head` accepts, and those
/// of the file `heads`, in f32.
fn convert_kept(
    weights: &[u8],
    heads: Option<&[u8]>,
    precision: Precision,
    channels: usize,
    is_head: impl Fn(&str) -> bool,
) -> Result<Vec<u8>, QuantizeError> {
    let input = SafeTensors::deserialize(weights).map_err(QuantizeError::Format)?;
    let order = match precision {
        Precision::Int8 | Precision::Int4Table => order_of_channels(&input, channels, &is_head)?,
        Precision::F32 | Precision::F16 => Vec::new(),
    };
    let mut output = BTreeMap::new();
    let mut has_words = false;
    for (name, tensor) in input.iter() {
        if is_head(name) || is_router(name) {
            output.insert(name.to_owned(), to_f32(name, &tensor)?);
            continue;
        }
        if is_unused(name) {
            continue;
        }
        let is_words = precision == Precision::Int4Table && is_word_table(name);
        let parts = match (precision, tensor.shape()) {
            (_, &[rows, columns]) if is_words => {
                has_words = true;
                to_int4(name, &tensor, rows, columns)?
            }
            (Precision::F16, [_, _]) => vec![("", to_f16(name, &tensor)?)],
            // A matrix without columns takes no bytes, so a file of a hundred bytes could declare
            // more rows than memory can hold scales for.
            (Precision::Int8 | Precision::Int4Table, &[rows, columns])
                if rows >= MIN_INT8_ROWS && columns > 0 =>
            {
                to_int8(name, &tensor, rows, columns, &order)?
            }
            _ => vec![("", to_f32(name, &tensor)?)],
        };
        for (suffix, part) in parts {
            let part_name = format!("{name}{suffix}");
            if !suffix.is_empty() && input.tensor(&part_name).is_ok() {
                return Err(QuantizeError::Name(part_name));
            }
            output.insert(part_name, part);
        }
    }
    if precision == Precision::Int4Table && !has_words {
        return Err(QuantizeError::NoWords);
    }
    let heads = heads.map(SafeTensors::deserialize).transpose().map_err(QuantizeError::Format)?;
    for (name, tensor) in heads.iter().flat_map(SafeTensors::iter) {
        output.insert(name.to_owned(), to_f32(name, &tensor)?);
    }
    safetensors::serialize(&output, None).map_err(QuantizeError::Format)
}

/// Converts the weights of a dense layer to f32. Dense layers stay f32 in every package: they are
/// small, and they come last, so an error in them is not averaged over tokens.
///
/// # Errors
/// The errors of [`convert`], and when the tensors do not match `layer`.
pub(super) fn convert_dense(weights: &[u8], layer: &DenseLayer) -> Result<Vec<u8>, QuantizeError> {
    let mut expected =
        BTreeSet::from([format!("linear.weight {:?}", [layer.out_features, layer.in_features])]);
    if layer.bias {
        expected.insert(format!("linear.bias {:?}", [layer.out_features]));
    }
    let input = SafeTensors::deserialize(weights).map_err(QuantizeError::Format)?;
    let found: BTreeSet<_> =
        input.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.shape())).collect();
    if found != expected {
        let list = |names: BTreeSet<String>| Vec::from_iter(names).join(", ");
        return Err(QuantizeError::Shape { expected: list(expected), found: list(found) });
    }
    convert(weights, Precision::F32, layer.in_features)
}

/// Modules that encoders of texts never run: heads that predict words, and encoders of images and
/// sounds.
const UNUSED_MODULES: [&str; 11] = [
    "audio_tower",
    "cls",
    "colbert_linear",
    "decoder",
    "embed_audio",
    "embed_vision",
    "lm_head",
    "pooler",
    "sparse_linear",
    "vision_embedder",
    "vision_tower",
];

/// Modules of the heads of classifiers.
const HEAD_MODULES: [&str; 4] = ["classifier", "head", "pooler", "pre_classifier"];

/// Returns whether the tensor belongs to the head of a classifier. Before its name, there may be
/// one for the whole model.
fn is_head(name: &str) -> bool {
    name.split('.').take(2).any(|part| HEAD_MODULES.contains(&part))
}

/// Returns whether the matrix selects the experts that compute a token. It stays f32, because a
/// small error in it may select another expert.
fn is_router(name: &str) -> bool {
    name.ends_with("router.layer.weight")
}

/// Returns whether sentence encoders never read this tensor.
fn is_unused(name: &str) -> bool {
    name.ends_with("position_ids")
        || name.ends_with("token_type_ids")
        || name.split('.').any(|part| UNUSED_MODULES.contains(&part))
}

/// Decodes the values of a tensor and checks that all are finite.
fn values(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, QuantizeError> {
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => {
            let (chunks, _) = tensor.data().as_chunks();
            chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        Dtype::F16 => {
            let (chunks, _) = tensor.data().as_chunks();
            chunks.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
        }
        Dtype::BF16 => {
            let (chunks, _) = tensor.data().as_chunks();
            chunks.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()
        }
        dtype => return Err(QuantizeError::Dtype { name: name.to_owned(), dtype }),
    };
    match values.iter().find(|value| !value.is_finite()) {
        Some(&value) => Err(QuantizeError::Value {
            name: name.to_owned(),
            value,
            precision: "a package",
            advice: "the file is damaged: download it again",
        }),
        None => Ok(values),
    }
}

fn to_f32<'data>(name: &str, tensor: &TensorView<'data>) -> Result<Tensor<'data>, QuantizeError> {
    let values = values(name, tensor)?;
    let data = match tensor.dtype() {
        Dtype::F32 => Cow::Borrowed(tensor.data()),
        _ => Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    };
    Ok(Tensor { dtype: Dtype::F32, shape: tensor.shape().to_vec(), data })
}

fn to_f16<'data>(name: &str, tensor: &TensorView<'data>) -> Result<Tensor<'data>, QuantizeError> {
    let values = values(name, tensor)?;
    if let Some(&value) = values.iter().find(|value| !f16::from_f32(**value).is_finite()) {
        return Err(QuantizeError::Value {
            name: name.to_owned(),
            value,
            precision: Precision::F16.name(),
            advice: "pack it as f32 or int8",
        });
    }
    let data = match tensor.dtype() {
        Dtype::F16 => Cow::Borrowed(tensor.data()),
        _ => Cow::Owned(
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        ),
    };
    Ok(Tensor { dtype: Dtype::F16, shape: tensor.shape().to_vec(), data })
}

/// Converts a matrix to int8; returns its parts, each with the suffix for the matrix's name.
///
/// `order` is the order of the hidden channels, from [`order_of_channels`].
fn to_int8(
    name: &str,
    tensor: &TensorView<'_>,
    rows: usize,
    columns: usize,
    order: &[usize],
) -> Result<Vec<(&'static str, Tensor<'static>)>, QuantizeError> {
    let values = values(name, tensor)?;
    let ends = input_blocks(name, columns, order.len());
    let is_words = name.ends_with("word_embeddings.weight");
    let steps = if is_words { WORD_STEPS } else { quantization::STEPS };
    let natural: Vec<usize> = (0..columns).collect();
    let order = if reads_hidden(name, columns, order.len()) { order } else { &natural };
    let mut quantized = vec![0; values.len()];
    let mut scales = Vec::with_capacity(rows * ends.len() * size_of::<f32>());
    let (mut indices, mut outlier_values) = (Vec::new(), Vec::new());
    for (row_index, row) in values.chunks(columns).enumerate() {
        let start = row_index * columns;
        // Blocks consist of columns that are adjacent in `order`. Round the reordered row, then
        // write the integers back to their original columns, so that the stored matrix keeps its
        // layout.
        let row: Vec<f32> = order.iter().map(|&column| row[column]).collect();
        let QuantizedRow { integers, scales: of_row, outliers } =
            QuantizedRow::round_to(steps, &row, &ends);
        for (integer, column) in integers.iter().zip(order) {
            quantized[start + column] = integer.to_le_bytes()[0];
        }
        scales.extend(of_row.into_iter().flat_map(f32::to_le_bytes));
        let outliers = outliers.into_iter().map(|(place, value)| (start + order[place], value));
        // A `BTreeMap` sorts the outliers by their position in the matrix.
        for (index, value) in outliers.collect::<BTreeMap<_, _>>() {
            let index =
                u32::try_from(index).map_err(|_too_large| QuantizeError::Large(name.to_owned()))?;
            indices.extend(index.to_le_bytes());
            outlier_values.extend(value.to_le_bytes());
        }
    }
    let part = |dtype, shape, data| Tensor { dtype, shape, data: Cow::Owned(data) };
    let mut parts = vec![("", part(Dtype::I8, vec![rows, columns], quantized))];
    if let &[_one] = ends.as_slice() {
        parts.push((".scale", part(Dtype::F32, vec![rows], scales)));
    } else {
        parts.push((".scale", part(Dtype::F32, vec![rows, ends.len()], scales)));
        let blocks = blocks_of_columns(order, &ends);
        let blocks = blocks.into_iter().flat_map(u32::to_le_bytes).collect();
        parts.push((".block", part(Dtype::U32, vec![columns], blocks)));
    }
    if !indices.is_empty() {
        let count = indices.len() / size_of::<u32>();
        parts.push((".outlier.index", part(Dtype::U32, vec![count], indices)));
        parts.push((".outlier.value", part(Dtype::F32, vec![count], outlier_values)));
    }
    Ok(parts)
}

/// Converts a table of words to 4 bits; returns its parts, each with the suffix for the table's
/// name.
fn to_int4(
    name: &str,
    tensor: &TensorView<'_>,
    rows: usize,
    columns: usize,
) -> Result<Vec<(&'static str, Tensor<'static>)>, QuantizeError> {
    if columns == 0 || !columns.is_multiple_of(int4::BLOCK) {
        return Err(QuantizeError::Columns { name: name.to_owned(), columns });
    }
    let values = values(name, tensor)?;
    let (blocks, _) = values.as_chunks();
    let mut integers = Vec::with_capacity(blocks.len() * int4::BLOCK_BYTES);
    let mut scales = Vec::with_capacity(blocks.len() * size_of::<f16>());
    for block in blocks {
        let Int4Block { bytes, scale } = Int4Block::round(block);
        if !scale.is_finite() {
            return Err(QuantizeError::Value {
                name: name.to_owned(),
                value: int4::largest(block),
                precision: Precision::Int4Table.name(),
                advice: "pack it as int8",
            });
        }
        integers.extend(bytes);
        scales.extend(scale.to_le_bytes());
    }
    let part = |dtype, columns, data| {
        let shape = vec![rows, columns];
        Tensor { dtype, shape, data: Cow::Owned(data) }
    };
    Ok(vec![
        ("", part(Dtype::U8, columns / 2, integers)),
        (".scale", part(Dtype::F16, columns / int4::BLOCK, scales)),
    ])
}

/// Returns the block of each column. Blocks consist of columns in `order` and end at `ends`.
fn blocks_of_columns(order: &[usize], ends: &[usize]) -> Vec<u32> {
    let mut blocks = vec![0; order.len()];
    let mut start = 0;
    for (block, &end) in (0..).zip(ends) {
        order[start..end].iter().for_each(|&column| blocks[column] = block);
        start = end;
    }
    blocks
}

/// Returns the order of the `channels` hidden channels in which packages and the engine divide
/// blocks. Empty if no norm has that many channels, as in a static embedding.
fn order_of_channels(
    input: &SafeTensors<'_>,
    channels: usize,
    is_head: impl Fn(&str) -> bool,
) -> Result<Vec<usize>, QuantizeError> {
    let mut norms: Vec<[Vec<f32>; 2]> = Vec::new();
    // The norms of attention heads have another length.
    let is_norm = |tensor: &TensorView<'_>| tensor.shape() == [channels];
    let is_read = |name: &str| !is_unused(name) && !is_head(name);
    for (name, weight) in input.iter().filter(|(name, norm)| is_read(name) && is_norm(norm)) {
        // Checkpoints that were converted from TensorFlow use its names (gamma and beta).
        let norm = name.strip_suffix(".weight").map(|norm| format!("{norm}.bias"));
        let old = || name.strip_suffix(".gamma").map(|norm| format!("{norm}.beta"));
        let Some(bias_name) = norm.or_else(old) else { continue };
        let bias = match input.tensor(&bias_name) {
            Ok(bias) if is_norm(&bias) => values(&bias_name, &bias)?,
            _ => vec![0.0; channels],
        };
        norms.push([values(name, &weight)?, bias]);
    }
    // The configuration states the number of channels, which may be absurd.
    Ok(if norms.is_empty() { Vec::new() } else { channel_order(&norms, channels) })
}

#[cfg(test)]
mod tests;
