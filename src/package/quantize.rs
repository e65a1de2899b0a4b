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
//! error in the one used row of the token type table affects every token.
//!
//! With one scale per row, the vectors of all-MiniLM-L6-v2 computed in int8 had a mean cosine of
//! 0.99943 over texts of 250 tokens; with blocks 0.99962. Over the 100 texts of `tests/golden`:
//! 0.99953 and 0.99969.
//!
//! The output omits buffers that an encoder recomputes (`position_ids`, `token_type_ids`) and the
//! pooler, which sentence encoders never run.
//!
//! Invariant: the same input gives the same output bytes, with tensors ordered by type and then by
//! name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use half::{bf16, f16};
use safetensors::tensor::{SafeTensorError, TensorView, View};
use safetensors::{Dtype, SafeTensors};

use super::manifest::{DenseLayer, Precision};
use crate::base::quantization::{self, QuantizedRow, channel_order, input_blocks, reads_hidden};

/// Minimum number of rows of an int8 matrix; smaller matrices stay f32.
const MIN_INT8_ROWS: usize = 64;
/// Largest absolute integer in the word embedding table of an encoder.
///
/// The table has half the values of a small model but causes only a fortieth of its error, and
/// fewer steps compress better. For all-MiniLM-L6-v2 this saves 0.6 MB of 21.4 and costs 0.00001 of
/// the mean cosine.
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
    /// Two tensors of the output would have the same name.
    #[error(
        "tensor {0} has the name that int8 needs for the scales, blocks or outliers of another \
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

/// Converts the weights of an encoder to `precision`.
///
/// Needs memory for the input, the output, and one more tensor.
///
/// # Errors
/// When the weights are not a safetensors file, or hold a tensor of an unsupported type, or a value
/// that is not finite or exceeds the range of `precision`.
pub(super) fn convert(weights: &[u8], precision: Precision) -> Result<Vec<u8>, QuantizeError> {
    let input = SafeTensors::deserialize(weights).map_err(QuantizeError::Format)?;
    let order = match precision {
        Precision::Int8 => order_of_channels(&input)?,
        Precision::F32 | Precision::F16 => Vec::new(),
    };
    let mut output = BTreeMap::new();
    for (name, tensor) in input.iter().filter(|(name, _)| !is_unused(name)) {
        match (precision, tensor.shape()) {
            (Precision::F16, [_, _]) => {
                output.insert(name.to_owned(), to_f16(name, &tensor)?);
            }
            // A matrix without columns takes no bytes, so a file of a hundred bytes could declare
            // more rows than memory can hold scales for.
            (Precision::Int8, &[rows, columns]) if rows >= MIN_INT8_ROWS && columns > 0 => {
                for (suffix, part) in to_int8(name, &tensor, rows, columns, &order)? {
                    let part_name = format!("{name}{suffix}");
                    if !suffix.is_empty() && input.tensor(&part_name).is_ok() {
                        return Err(QuantizeError::Name(part_name));
                    }
                    output.insert(part_name, part);
                }
            }
            _ => {
                output.insert(name.to_owned(), to_f32(name, &tensor)?);
            }
        }
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
    convert(weights, Precision::F32)
}

/// Returns whether sentence encoders never read this tensor.
fn is_unused(name: &str) -> bool {
    name.ends_with("position_ids")
        || name.ends_with("token_type_ids")
        || name.split('.').any(|part| part == "pooler")
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

/// Returns the order of the hidden channels in which packages and the engine divide blocks. Empty
/// if the model has no LayerNorm.
fn order_of_channels(input: &SafeTensors<'_>) -> Result<Vec<usize>, QuantizeError> {
    let mut norms: Vec<[Vec<f32>; 2]> = Vec::new();
    for (name, weight) in input.iter().filter(|(name, _)| !is_unused(name)) {
        // Checkpoints that were converted from TensorFlow use its names (gamma and beta).
        let norm = name.strip_suffix(".weight").map(|norm| format!("{norm}.bias"));
        let old = || name.strip_suffix(".gamma").map(|norm| format!("{norm}.beta"));
        let Some(bias_name) = norm.or_else(old).filter(|_| weight.shape().len() == 1) else {
            continue;
        };
        if let Ok(bias) = input.tensor(&bias_name) {
            norms.push([values(name, &weight)?, values(&bias_name, &bias)?]);
        }
    }
    // In an encoder, all of them have one value per hidden channel.
    let channels = norms.first().map_or(0, |[weight, _]| weight.len());
    norms.retain(|norm| norm.iter().all(|values| values.len() == channels));
    Ok(channel_order(&norms, channels))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::directory_fixture::{Values, safetensors};
    use super::*;

    fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
        values("test", tensor).unwrap()
    }

    /// Returns a safetensors file with one tensor of `dtype`.
    fn file(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        ::safetensors::serialize([(name, view)], None).unwrap()
    }

    #[test]
    fn int8_matches_known_matrix() {
        let mut matrix = vec![0.0; MIN_INT8_ROWS * 2];
        matrix[..6].copy_from_slice(&[127.0, -64.6, 0.0, 0.0, 1e-40, 0.0]);
        let weights = safetensors(&[
            ("m", vec![MIN_INT8_ROWS, 2], matrix),
            ("bias", vec![2], vec![0.1, 0.2]),
            ("small", vec![1, 2], vec![0.3, 0.4]),
        ]);
        let packed = convert(&weights, Precision::Int8).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let mut names = packed.names();
        names.sort_unstable();
        assert_eq!(names, ["bias", "m", "m.scale", "small"]);
        let matrix = packed.tensor("m").unwrap();
        assert_eq!((matrix.dtype(), matrix.shape()), (Dtype::I8, &[MIN_INT8_ROWS, 2][..]));
        assert_eq!(matrix.data()[..6], [127, 191, 0, 0, 0, 0]);
        let scales = packed.tensor("m.scale").unwrap();
        assert_eq!((scales.dtype(), scales.shape()), (Dtype::F32, &[MIN_INT8_ROWS][..]));
        assert_eq!(floats(&scales), [1.0; MIN_INT8_ROWS]);
        assert_eq!(floats(&packed.tensor("bias").unwrap()), [0.1, 0.2]);
        assert_eq!(floats(&packed.tensor("small").unwrap()), [0.3, 0.4]);
    }

    #[test]
    fn linear_columns_are_rounded_in_engine_blocks() {
        let value = |index: usize| ((index * 7919 % 2003) as f32 / 1001.0 - 1.0).powi(3);
        let linear: Vec<f32> = (0..MIN_INT8_ROWS * 200).map(value).collect();
        let weight: Vec<f32> = (0..200).map(|at| if at % 13 == 5 { 20.0 } else { 1.0 }).collect();
        let weights = safetensors(&[
            ("x.dense.weight", vec![MIN_INT8_ROWS, 200], linear.clone()),
            ("x.embeddings.weight", vec![MIN_INT8_ROWS, 200], linear.clone()),
            ("x.LayerNorm.gamma", vec![200], weight.clone()),
            ("x.LayerNorm.beta", vec![200], vec![0.0; 200]),
        ]);
        let packed = convert(&weights, Precision::Int8).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let order = channel_order(&[[weight, vec![0.0; 200]]], 200);
        assert_eq!(order[..3], [5, 18, 31]);
        let ends = input_blocks("x.dense.weight", 200, 200);
        let blocks = packed.tensor("x.dense.weight.block").unwrap();
        assert_eq!((blocks.dtype(), blocks.shape()), (Dtype::U32, &[200][..]));
        let (blocks, _) = blocks.data().as_chunks();
        let blocks: Vec<u32> = blocks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let scales = packed.tensor("x.dense.weight.scale").unwrap();
        assert_eq!(scales.shape(), [MIN_INT8_ROWS, ends.len()]);
        let scales = floats(&scales);
        let integers = packed.tensor("x.dense.weight").unwrap();
        for (row, values) in linear.chunks(200).enumerate() {
            let ordered: Vec<f32> = order.iter().map(|&column| values[column]).collect();
            let expected = QuantizedRow::round_to(quantization::STEPS, &ordered, &ends);
            assert_eq!(scales[row * ends.len()..][..ends.len()], expected.scales);
            for (place, &column) in order.iter().enumerate() {
                let block = ends.partition_point(|&end| end <= place);
                assert_eq!(blocks[column] as usize, block);
                let integer = integers.data()[row * 200 + column];
                assert_eq!(integer, expected.integers[place].to_le_bytes()[0]);
            }
        }
        let table = packed.tensor("x.embeddings.weight.scale").unwrap();
        assert_eq!(table.shape(), [MIN_INT8_ROWS]);
        assert!(packed.tensor("x.embeddings.weight.block").is_err());
    }

    #[test]
    fn outliers_are_stored_exactly() {
        let mut matrix = vec![0.5; MIN_INT8_ROWS * 3];
        (matrix[4], matrix[6]) = (-6.25, 3.5);
        let weights = safetensors(&[("m", vec![MIN_INT8_ROWS, 3], matrix)]);
        let packed = convert(&weights, Precision::Int8).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let index = packed.tensor("m.outlier.index").unwrap();
        assert_eq!((index.dtype(), index.shape()), (Dtype::U32, &[2][..]));
        assert_eq!(index.data(), [4, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(floats(&packed.tensor("m.outlier.value").unwrap()), [-6.25, 3.5]);
        let quantized = packed.tensor("m").unwrap();
        assert_eq!((quantized.data()[4], quantized.data()[6]), (0, 0));
        assert!((floats(&packed.tensor("m.scale").unwrap())[1] - 0.5 / 127.0).abs() < 4e-5);
    }

    #[test]
    fn only_matrices_are_stored_below_f32() {
        let numbers = [0.5_f32, -1.25, 3.0, 0.0];
        let sources: [(Dtype, Vec<u8>); 3] = [
            (Dtype::F32, numbers.iter().flat_map(|number| number.to_le_bytes()).collect()),
            (
                Dtype::F16,
                numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect(),
            ),
            (
                Dtype::BF16,
                numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect(),
            ),
        ];
        for (dtype, data) in &sources {
            for (shape, precision, expected) in [
                (&[2, 2][..], Precision::F32, Dtype::F32),
                (&[2, 2], Precision::F16, Dtype::F16),
                (&[4], Precision::F16, Dtype::F32),
                (&[4], Precision::Int8, Dtype::F32),
                (&[1, 2, 2], Precision::Int8, Dtype::F32),
            ] {
                let packed = convert(&file("t", *dtype, shape, data), precision).unwrap();
                let packed = SafeTensors::deserialize(&packed).unwrap();
                let tensor = packed.tensor("t").unwrap();
                assert_eq!((tensor.dtype(), tensor.shape()), (expected, shape), "{dtype:?}");
                assert_eq!(floats(&tensor), numbers, "{dtype:?} {precision:?}");
            }
        }
    }

    #[test]
    fn matrix_without_columns_gets_no_scales() {
        let shape = [usize::MAX / 8, 0];
        let packed = convert(&file("empty.weight", Dtype::F32, &shape, &[]), Precision::Int8);
        let packed = packed.unwrap();
        let tensors = SafeTensors::deserialize(&packed).unwrap();
        assert_eq!(tensors.names(), ["empty.weight"]);
        assert_eq!(tensors.tensor("empty.weight").unwrap().shape(), shape);
    }

    #[test]
    fn native_precision_is_lossless() {
        for (dtype, expected) in [
            (Dtype::F32, Precision::F32),
            (Dtype::F16, Precision::F16),
            (Dtype::BF16, Precision::F32),
        ] {
            let data = vec![0; dtype.bitsize() / 8 * 2];
            let weights = file("t", dtype, &[1, 2], &data);
            assert_eq!(native_precision(&weights).unwrap(), expected, "{dtype:?}");
        }
        assert!(native_precision(b"pickle").is_err());
    }

    #[test]
    fn buffers_and_pooler_are_omitted() {
        let weights = safetensors(&[
            ("pooler.dense.weight", vec![1, 1], vec![f32::NAN]),
            ("bert.pooler.dense.bias", vec![1], vec![1.0]),
            ("embeddings.position_ids", vec![1, 1], vec![1.0]),
            ("embeddings.position_embeddings.weight", vec![1, 1], vec![1.0]),
        ]);
        let packed = convert(&weights, Precision::F32).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        assert_eq!(packed.names(), ["embeddings.position_embeddings.weight"]);
    }

    #[test]
    fn unconvertible_tensor_is_refused_by_name() {
        let floats = |value| safetensors(&[("bad", vec![1, 2], vec![0.0, value])]);
        let cases = [
            (b"not safetensors".to_vec(), Precision::F32, "safetensors format"),
            (file("bad", Dtype::I64, &[1], &[0; 8]), Precision::F32, "tensor bad has the type I64"),
            (file("bad", Dtype::I8, &[1, 1], &[0]), Precision::Int8, "tensor bad has the type I8"),
            (floats(f32::NAN), Precision::F32, "tensor bad holds NaN"),
            (floats(f32::INFINITY), Precision::Int8, "tensor bad holds inf"),
            (floats(f32::NEG_INFINITY), Precision::F16, "tensor bad holds -inf"),
            (floats(65_520.0), Precision::F16, "pack it as f32 or int8"),
            (
                safetensors(&[
                    ("m", vec![MIN_INT8_ROWS, 1], vec![1.0; MIN_INT8_ROWS]),
                    ("m.scale", vec![1], vec![1.0]),
                ]),
                Precision::Int8,
                "tensor m.scale",
            ),
        ];
        for (weights, precision, part) in cases {
            let message = convert(&weights, precision).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(convert(&floats(65_504.0), Precision::F16).is_ok());
    }

    #[test]
    fn dense_layer_has_exactly_its_tensors() {
        let layer = |bias| DenseLayer {
            in_features: 2,
            out_features: 1,
            bias,
            activation: "tanh".to_owned(),
        };
        let weight: Values<'_> = ("linear.weight", vec![1, 2], vec![1.0; 2]);
        let bias: Values<'_> = ("linear.bias", vec![1], vec![1.0]);
        let both = safetensors(&[weight.clone(), bias]);
        assert_eq!(convert_dense(&both, &layer(true)).unwrap(), both);
        let alone = safetensors(&[weight]);
        assert!(convert_dense(&alone, &layer(false)).is_ok());
        let transposed = safetensors(&[("linear.weight", vec![2, 1], vec![1.0; 2])]);
        for (weights, bias) in [(&both, false), (&alone, true), (&transposed, false)] {
            let message = convert_dense(weights, &layer(bias)).unwrap_err().to_string();
            assert!(message.starts_with("expected linear."), "{message}");
        }
    }

    #[test]
    fn conversion_is_independent_of_tensor_order() {
        let tensors: [Values<'_>; 3] = [
            ("b", vec![1, 2], vec![1.0, 2.0]),
            ("a", vec![2], vec![3.0, 4.0]),
            ("c", vec![2, 1], vec![5.0, 6.0]),
        ];
        // The writer sorts too: only different types change the order of the tensors.
        let mixed = |first: Dtype| {
            let half: Vec<u8> =
                [1.0, 2.0].iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect();
            let single: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|n| n.to_le_bytes()).collect();
            let of = |dtype| if dtype == Dtype::F16 { &half } else { &single };
            let other = if first == Dtype::F16 { Dtype::F32 } else { Dtype::F16 };
            let view = |dtype| TensorView::new(dtype, vec![1, 2], of(dtype)).unwrap();
            ::safetensors::serialize([("x", view(first)), ("y", view(other))], None).unwrap()
        };
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            let once = convert(&safetensors(&tensors), precision).unwrap();
            assert_eq!(once, convert(&safetensors(&tensors), precision).unwrap());
            let [a, b] = [Dtype::F16, Dtype::F32].map(|first| convert(&mixed(first), precision));
            assert_eq!(a.unwrap(), b.unwrap());
        }
    }

    proptest! {
        #[test]
        fn int8_error_is_within_half_a_step(
            columns in 1_usize..300,
            magnitude in -30_i32..30,
            seed in prop::collection::vec(-1.0_f32..1.0, 200),
        ) {
            let rows = MIN_INT8_ROWS;
            let scale = 2.0_f32.powi(magnitude);
            let original: Vec<f32> =
                seed.iter().cycle().take(rows * columns).map(|value| value * scale).collect();
            let weights = safetensors(&[("m", vec![rows, columns], original.clone())]);
            let packed = convert(&weights, Precision::Int8).unwrap();
            let packed = SafeTensors::deserialize(&packed).unwrap();
            let scales = floats(&packed.tensor("m.scale").unwrap());
            let words = |name: &str| -> Vec<usize> {
                packed.tensor(name).map_or_else(|_none| Vec::new(), |tensor| {
                    let (words, _) = tensor.data().as_chunks();
                    words.iter().map(|word| u32::from_le_bytes(*word) as usize).collect()
                })
            };
            let mut blocks = words("m.block");
            prop_assert_eq!(blocks.is_empty(), columns <= 128);
            blocks.resize(columns, 0);
            let count = scales.len() / rows;
            prop_assert_eq!(count, columns.div_ceil(128));
            let quantized = packed.tensor("m").unwrap();
            let mut left = original.clone();
            words("m.outlier.index").into_iter().for_each(|index| left[index] = 0.0);
            let mut largest = vec![0.0_f32; scales.len()];
            for (index, (value, byte)) in left.iter().zip(quantized.data()).enumerate() {
                let block = index / columns * count + blocks[index % columns];
                let step = scales[block];
                let quantized = i8::from_le_bytes([*byte]);
                prop_assert!(quantized != i8::MIN);
                let error = (f32::from(quantized) * step - value).abs();
                prop_assert!(error <= step * 0.5 * (1.0 + 1e-4), "{value} {step} {error}");
                largest[block] = largest[block].max(value.abs());
            }
            // The largest value of a block uses the range: the step is at most 1 % larger than
            // necessary.
            for (largest, step) in largest.into_iter().zip(scales) {
                let exact = largest / 127.0;
                prop_assert!(!exact.is_normal() || (exact..=exact * 1.01).contains(&step));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(convert(&bytes, Precision::Int8).is_err());
        }
    }
}
