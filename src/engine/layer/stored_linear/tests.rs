//! Tests that compare packing with its definition.

use std::collections::BTreeMap;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::Dtype;

use super::*;
use crate::engine::linear::OperandFormat;
use crate::engine::linear::panel::tests::{Output, output};
use crate::engine::simd::Int8RowFormat;
use crate::engine::tensor_names::RequiredTensor;
use crate::engine::weights;
use crate::engine::weights::tests::{f32s, file};

/// Stored form of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StoredFormat {
    F32,
    F16,
    Bf16,
    /// Integers with one scale for each row.
    Int8,
    /// Integers with one scale for each row and block of columns. `fit` is whether the stored
    /// blocks are the blocks of packed inputs.
    Blocks {
        fit: bool,
    },
}

/// Stored matrix, and how it is packed.
#[derive(Debug)]
struct Case {
    stored: StoredFormat,
    format: OperandFormat,
    outputs: Vec<Option<usize>>,
    inputs: Vec<Option<usize>>,
    ends: Vec<usize>,
    factor: f32,
    /// Values of the matrix, `[rows, columns]`.
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    outliers: BTreeMap<usize, f32>,
}

impl Case {
    fn block(&self, column: usize) -> usize {
        match self.stored {
            StoredFormat::Blocks { fit: true } => {
                let place = self.inputs.iter().position(|&place| place == Some(column));
                self.ends.partition_point(|&end| end <= place.unwrap_or(0))
            }
            StoredFormat::Blocks { fit: false } => column % 2,
            _ => 0,
        }
    }

    fn blocks(&self) -> usize {
        (0..self.columns).map(|column| self.block(column)).max().unwrap_or(0) + 1
    }

    fn scale(&self, row: usize, block: usize) -> f32 {
        0.001 * (1 + row % 7) as f32 + 0.01 * (1 + block) as f32
    }

    fn integer(&self, at: usize) -> i8 {
        #[expect(clippy::cast_possible_truncation, reason = "values are below 1")]
        let integer = (self.values[at] * 127.0) as i8;
        integer
    }

    fn is_integers(&self) -> bool {
        matches!(self.stored, StoredFormat::Int8 | StoredFormat::Blocks { .. })
    }

    /// Returns the stored value.
    fn value(&self, row: usize, column: usize) -> f32 {
        let at = row * self.columns + column;
        let value = self.values[at];
        match self.stored {
            StoredFormat::F32 => value,
            StoredFormat::F16 => f16::from_f32(value).to_f32(),
            StoredFormat::Bf16 => bf16::from_f32(value).to_f32(),
            _ => self.outliers.get(&at).copied().unwrap_or_else(|| {
                f32::from(self.integer(at)) * self.scale(row, self.block(column))
            }),
        }
    }

    fn bias(row: usize) -> f32 {
        0.1 * row as f32 - 1.0
    }

    fn file(&self) -> Vec<u8> {
        let Self { rows, columns, values, .. } = self;
        let matrix: &[usize] = &[*rows, *columns];
        let words = |bits: &dyn Fn(f32) -> [u8; 2]| values.iter().flat_map(|&x| bits(x)).collect();
        let (dtype, data) = match self.stored {
            StoredFormat::F32 => (Dtype::F32, f32s(values)),
            StoredFormat::F16 => (Dtype::F16, words(&|x| f16::from_f32(x).to_le_bytes())),
            StoredFormat::Bf16 => (Dtype::BF16, words(&|x| bf16::from_f32(x).to_le_bytes())),
            _ => {
                let integers = (0..values.len()).map(|at| self.integer(at).to_le_bytes()[0]);
                (Dtype::I8, integers.collect())
            }
        };
        let bias: Vec<f32> = (0..*rows).map(Self::bias).collect();
        let (count, blocks) = (self.outliers.len(), self.blocks());
        let of_row = |row| (0..blocks).map(move |block| self.scale(row, block));
        let scales: Vec<f32> = (0..*rows).flat_map(of_row).collect();
        let of_scales = if blocks == 1 { vec![*rows] } else { vec![*rows, blocks] };
        let u32s = |values: &mut dyn Iterator<Item = usize>| -> Vec<u8> {
            values.flat_map(|value| u32::try_from(value).unwrap().to_le_bytes()).collect()
        };
        let indices = u32s(&mut self.outliers.keys().copied());
        let exact: Vec<f32> = self.outliers.values().copied().collect();
        let of_columns = u32s(&mut (0..*columns).map(|column| self.block(column)));
        let mut tensors = vec![
            ("a.weight", dtype, matrix, data),
            ("a.bias", Dtype::F32, &matrix[..1], f32s(&bias)),
        ];
        let counts = [count];
        if self.is_integers() {
            tensors.push(("a.weight.scale", Dtype::F32, &of_scales, f32s(&scales)));
            tensors.push(("a.weight.outlier.index", Dtype::U32, &counts, indices));
            tensors.push(("a.weight.outlier.value", Dtype::F32, &counts, f32s(&exact)));
            if blocks > 1 {
                tensors.push(("a.weight.block", Dtype::U32, &matrix[1..], of_columns));
            }
        }
        file(&tensors)
    }

    /// Returns the stored block of each block of packed inputs. Returns `None` if one of them has
    /// several, or if the matrix is stored as floats.
    fn stored_blocks(&self) -> Option<Vec<usize>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let of_block = |(start, &end): (usize, &usize)| {
            let columns = self.inputs[start..end].iter().flatten();
            let mut blocks: Vec<usize> = columns.map(|&column| self.block(column)).collect();
            blocks.dedup();
            (blocks.len() <= 1).then(|| blocks.first().copied().unwrap_or(0))
        };
        starts.zip(&self.ends).map(of_block).collect::<Option<_>>().filter(|_| self.is_integers())
    }

    /// Returns the expected integers of stored row `row`.
    fn integers(&self, row: usize) -> QuantizedRow {
        let Some(blocks) = self.stored_blocks() else {
            return QuantizedRow::round_to(quantization::STEPS, &self.floats(row), &self.ends);
        };
        let at = |place: &Option<usize>| place.map(|column| row * self.columns + column);
        let integer = |place| {
            let at = at(place).filter(|at| !self.outliers.contains_key(at));
            at.map_or(0, |at| self.integer(at))
        };
        let mut outliers: Vec<(usize, f32)> = Vec::new();
        for (index, weight) in self.outliers.range(row * self.columns..(row + 1) * self.columns) {
            let place = self.inputs.iter().position(|place| at(place) == Some(*index));
            outliers.extend(place.map(|place| (place, weight * self.factor)));
        }
        QuantizedRow {
            integers: self.inputs.iter().map(integer).collect(),
            scales: blocks.iter().map(|&block| self.scale(row, block) * self.factor).collect(),
            outliers,
        }
    }

    fn floats(&self, row: usize) -> Vec<f32> {
        let value = |column| self.value(row, column) * self.factor;
        self.inputs.iter().map(|place| place.map_or(0.0, value)).collect()
    }

    /// Returns the expected packed form of stored row `row`.
    fn expected(&self, row: usize) -> Output {
        let mut weights = vec![0; 4 * self.format.lane_groups(self.inputs.len())];
        let (mut blocks, mut outliers) = (Vec::new(), Vec::new());
        match self.format {
            OperandFormat::F32 => {
                let bytes = self.floats(row).into_iter().flat_map(f32::to_ne_bytes);
                weights.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
            }
            OperandFormat::Bf16 => {
                let values = self.floats(row).into_iter().map(bf16::from_f32);
                let bytes = values.flat_map(bf16::to_ne_bytes);
                weights.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
            }
            OperandFormat::Int8(_) => {
                let row = self.integers(row);
                for (byte, integer) in weights.iter_mut().zip(&row.integers) {
                    *byte = integer.to_ne_bytes()[0];
                }
                let mut start = 0;
                for (&end, scale) in self.ends.iter().zip(&row.scales) {
                    let sum: f32 = row.integers[start..end].iter().map(|&q| f32::from(q)).sum();
                    blocks.push((scale.to_bits(), sum.to_bits()));
                    start = end;
                }
                let of_row = row.outliers.iter();
                outliers.extend(of_row.map(|&(input, weight)| (input, weight.to_bits())));
            }
        }
        let bias = (Self::bias(row) * self.factor).to_bits();
        Output { weights, bias, blocks, outliers }
    }
}

/// Returns `count` channels in some order, in heads of `width` that are padded to a multiple of
/// `padded`.
fn places(
    count: usize,
    moved: &[(Index, Index)],
    width: usize,
    padded: usize,
) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    for (a, b) in moved {
        order.swap(a.index(count), b.index(count));
    }
    let mut places = Vec::new();
    for head in order.chunks(width) {
        places.extend(head.iter().copied().map(Some));
        places.resize(places.len().next_multiple_of(padded), None);
    }
    places
}

fn cases() -> impl Strategy<Value = Case> {
    let stored = prop_oneof![
        Just(StoredFormat::F32),
        Just(StoredFormat::F16),
        Just(StoredFormat::Bf16),
        Just(StoredFormat::Int8),
        Just(StoredFormat::Blocks { fit: true }),
        Just(StoredFormat::Blocks { fit: false }),
    ];
    let format = prop_oneof![
        Just(OperandFormat::F32),
        Just(OperandFormat::Bf16),
        Just(OperandFormat::Int8(Int8RowFormat::Unsigned)),
    ];
    let swaps = || prop::collection::vec(any::<(Index, Index)>(), 0..20);
    let sizes = (1_usize..100, 2_usize..150);
    (stored, format, sizes, swaps(), swaps(), 1_usize..80, any::<bool>(), 1_usize..12)
        .prop_flat_map(
            |(stored, format, (rows, columns), of_outputs, of_inputs, width, heads, block)| {
                let padded = if heads { 32 } else { 1 };
                let outputs = places(rows, &of_outputs, width, 32);
                let inputs = places(columns, &of_inputs, width, padded);
                let end = |start: usize| (start + 4 * block).min(inputs.len());
                let ends: Vec<usize> = (0..inputs.len()).step_by(4 * block).map(end).collect();
                let values = prop::collection::vec(-1.0_f32..1.0, rows * columns);
                let outliers = prop::collection::btree_map(0..rows * columns, -9.0_f32..9.0, 0..9);
                let factor = prop_oneof![Just(1.0_f32), Just(0.176_776_69)];
                (values, outliers, factor).prop_map(move |(values, outliers, factor)| Case {
                    stored,
                    format,
                    outputs: outputs.clone(),
                    inputs: inputs.clone(),
                    ends: ends.clone(),
                    factor,
                    values,
                    rows,
                    columns,
                    outliers,
                })
            },
        )
}

proptest! {
    #[test]
    fn packed_weights_match_stored_weights(case in cases()) {
        // A file may not store more blocks than columns.
        prop_assume!(case.blocks() <= case.columns);
        let bytes = case.file();
        let expected = [
            RequiredTensor::new("a.weight", [case.rows, case.columns]),
            RequiredTensor::new("a.bias", [case.rows]),
        ];
        let canonical = |name: &str| Some(name.to_owned());
        let tensors = weights::read("m", &bytes, canonical, expected.into_iter()).unwrap();
        let source = StoredLinear::read(&tensors, "a", 0).unwrap();
        let outputs = case.outputs.len();
        // The first panel belongs to another matrix and must stay unchanged.
        let mut packed = match case.format {
            OperandFormat::Int8(rows) => Linear::integers(rows, PANEL_WIDTH + outputs, &case.ends),
            format => Linear::floats(format, PANEL_WIDTH + outputs, case.inputs.len()),
        };
        let zeros = output(&packed, 0);
        let inputs = InputOrder::new(case.inputs.clone());
        source.pack(&case.outputs, &inputs, case.factor, &mut packed, (1, 1));
        for at in 0..PANEL_WIDTH + outputs {
            let row = at.checked_sub(PANEL_WIDTH).and_then(|at| case.outputs[at]);
            let found = output(&packed, at);
            match row {
                Some(row) => prop_assert_eq!(found, case.expected(row), "{}", at),
                None => prop_assert_eq!(&found, &zeros, "{}", at),
            }
        }
    }
}
