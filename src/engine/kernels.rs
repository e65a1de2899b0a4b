//! Entry points for `benches/kernels.rs`: each kernel with operands of the shapes that
//! all-MiniLM-L6-v2 has.
//!
//! The module is compiled only with the feature `bench-kernels`, and the serving path does not use
//! it. It contains no arithmetic of its own. A kernel is called as the encoder calls it, on the
//! calling thread.

use std::hint::black_box;

use super::attention::{AttentionHeads, AttentionOutput, AttentionScratch, Reach};
use super::buffer::Buffer;
use super::config::HiddenActivation;
use super::linear::panel::PanelBuffer;
use super::linear::{Linear, Operand, OperandFormat, ROWS};
use super::precision::{self, ArithmeticChoice, Precision};
use super::simd::elementwise::RowQuantization;
use super::simd::rowwise;
use super::simd::{Isa, PANEL_WIDTH};
use crate::base::quantization::{self, QuantizedRow, STEPS};

const HIDDEN: usize = 384;
const INTERMEDIATE: usize = 1536;
const HEADS: usize = 12;

/// Linear layer of all-MiniLM-L6-v2.
#[derive(Clone, Copy, Debug)]
pub enum LinearLayer {
    /// Queries, keys and values.
    States,
    /// Output projection of attention, back to hidden channels.
    Attended,
    /// First feed-forward layer.
    Wide,
    /// Second feed-forward layer.
    Narrow,
}

impl LinearLayer {
    /// All linear layers, in the order of the encoder.
    pub const ALL: [Self; 4] = [Self::States, Self::Attended, Self::Wide, Self::Narrow];

    /// Returns the numbers of inputs and outputs.
    pub const fn shape(self) -> (usize, usize) {
        match self {
            Self::States => (HIDDEN, 3 * HIDDEN),
            Self::Attended => (HIDDEN, HIDDEN),
            Self::Wide => (HIDDEN, INTERMEDIATE),
            Self::Narrow => (INTERMEDIATE, HIDDEN),
        }
    }

    /// Returns the ends of the blocks of inputs that share a scale.
    fn blocks(self) -> Vec<usize> {
        match self {
            Self::States | Self::Wide => quantization::hidden_blocks(HIDDEN),
            Self::Attended => vec![HIDDEN],
            Self::Narrow => quantization::even_blocks(INTERMEDIATE),
        }
    }

    fn packed(self, format: OperandFormat) -> Linear {
        let (inputs, outputs) = self.shape();
        let mut linear = match format {
            OperandFormat::Int8(rows) => Linear::integers(rows, outputs, &self.blocks()),
            OperandFormat::F32 | OperandFormat::Bf16 => Linear::floats(format, outputs, inputs),
        };
        let mut panel = PanelBuffer::new(&linear);
        for (index, rows) in values(outputs * inputs).chunks(PANEL_WIDTH * inputs).enumerate() {
            for weights in rows.chunks(inputs) {
                match format {
                    OperandFormat::Int8(_) => {
                        let row = QuantizedRow::round_to(STEPS, weights, &self.blocks());
                        panel.push_integers(&row, 0.0);
                    }
                    OperandFormat::F32 | OperandFormat::Bf16 => panel.push_floats(weights, 0.0),
                }
            }
            linear.pack(index, &mut panel);
        }
        linear
    }
}

/// Returns `count` values between −1 and 1 in an irregular order.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Returns the kernels and formats for `precision`, or `None` if this processor has no instructions
/// for it.
fn choice(precision: Precision) -> Option<ArithmeticChoice> {
    let choice = precision::choose_arithmetic(precision, false);
    (choice.report.precision == precision).then_some(choice)
}

/// Returns a closure that multiplies `rows` rows with the weights of `layer`. The rows are prepared
/// in advance, and the results are dropped. Returns `None` if this processor has no instructions
/// for `precision`.
pub fn product(precision: Precision, layer: LinearLayer, rows: usize) -> Option<impl FnMut()> {
    let ArithmeticChoice { backend, format, .. } = choice(precision)?;
    let session = backend.session();
    let (inputs, _) = layer.shape();
    let linear = layer.packed(format);
    let values = values(rows.next_multiple_of(ROWS) * inputs);
    let stride = format.row_lane_groups(inputs);
    let mut groups = Buffer::zeroed(rows.next_multiple_of(ROWS) * stride);
    let ends = layer.blocks();
    let mut quantization = vec![RowQuantization::default(); rows * ends.len()];
    match format {
        OperandFormat::F32 => groups.f32s_mut().copy_from_slice(&values),
        OperandFormat::Bf16 => {
            rowwise::to_bf16(backend.isa, &values, bytemuck::cast_slice_mut(groups.groups_mut()));
        }
        OperandFormat::Int8(_) => rowwise::quantize(
            backend.isa,
            &values[..rows * inputs],
            inputs,
            &ends,
            groups.groups_mut(),
            stride,
            &mut quantization,
        ),
    }
    let mut block = Buffer::zeroed(rows.next_multiple_of(ROWS) * PANEL_WIDTH);
    Some(move || {
        let operand = Operand {
            groups: groups.groups(),
            stride,
            rows,
            quantization: &quantization,
            values: (&values, inputs),
        };
        linear.for_each_panel(&session, operand, block.f32s_mut(), |_, results, _| {
            black_box(results);
        });
    })
}

/// Returns a closure that quantizes `rows` rows of inputs of `layer` to int8.
pub fn quantize(layer: LinearLayer, rows: usize) -> impl FnMut() {
    let (inputs, _) = layer.shape();
    let values = values(rows * inputs);
    let isa = Isa::detect();
    let stride = OperandFormat::Int8(isa.int8_row_format()).row_lane_groups(inputs);
    let mut groups = vec![0; rows * stride];
    let ends = layer.blocks();
    let mut quantization = vec![RowQuantization::default(); rows * ends.len()];
    move || {
        rowwise::quantize(isa, &values, inputs, &ends, &mut groups, stride, &mut quantization);
        black_box(&groups);
    }
}

/// Returns a closure that adds the bias to `rows` rows of results of the first feed-forward layer,
/// applies exact GELU, and stores them.
pub fn gelu(rows: usize) -> impl FnMut() {
    let results = values(rows * PANEL_WIDTH);
    let mut out = vec![0.0; rows * INTERMEDIATE];
    let isa = Isa::detect();
    move || {
        let (results, _) = results.as_chunks::<PANEL_WIDTH>();
        for start in (0..INTERMEDIATE).step_by(PANEL_WIDTH) {
            let activation = Some(HiddenActivation::Gelu);
            let out = &mut out[start..];
            rowwise::store_f32(isa, results, &[0.5; PANEL_WIDTH], activation, out, INTERMEDIATE);
        }
        black_box(&out);
    }
}

/// Returns a closure that applies softmax in place to the scores of 32 queries with `keys` keys.
pub fn softmax(keys: usize) -> impl FnMut() {
    let stride = keys.next_multiple_of(PANEL_WIDTH);
    let mut scores = values(ROWS * stride);
    let (ranges, mut inverses) = ([(0, keys); ROWS], [0.0; ROWS]);
    let isa = Isa::detect();
    move || {
        rowwise::softmax(isa, &mut scores, stride, &ranges, None, &mut inverses);
        black_box(&inverses);
    }
}

/// Returns a closure that applies LayerNorm in place to `rows` token vectors.
pub fn layer_norm(rows: usize) -> impl FnMut() {
    let mut vectors = values(rows * HIDDEN);
    let (weight, bias) = ([1.0; HIDDEN], [0.1; HIDDEN]);
    let isa = Isa::detect();
    move || {
        rowwise::layer_norm(isa, &mut vectors, HIDDEN, &weight, &bias, 1e-12);
        black_box(&vectors);
    }
}

/// Returns a closure that computes the attention of one text of `tokens` tokens in all heads. In
/// [`Precision::Int8`], attention uses bf16 if the processor has it, otherwise f32. Returns `None`
/// if this processor has no instructions for `precision`.
pub fn attention(precision: Precision, tokens: usize) -> Option<impl FnMut()> {
    let ArithmeticChoice { backend, attention: format, .. } = choice(precision)?;
    let session = backend.session();
    let width = HIDDEN / HEADS;
    let rows = tokens.next_multiple_of(ROWS) + ROWS;
    let stride = rows * format.lane_groups(width);
    let values = values(rows * 3 * HIDDEN);
    let mut states = Buffer::zeroed(3 * HEADS * stride);
    match format {
        OperandFormat::Bf16 => {
            rowwise::to_bf16(backend.isa, &values, bytemuck::cast_slice_mut(states.groups_mut()));
        }
        OperandFormat::F32 | OperandFormat::Int8(_) => states.f32s_mut().copy_from_slice(&values),
    }
    let mut memory = AttentionScratch::default();
    let mut out = Buffer::zeroed(tokens * HIDDEN);
    Some(move || {
        let heads = AttentionHeads {
            format,
            heads: HEADS,
            kv_heads: HEADS,
            width,
            states: states.groups(),
            stride,
            length: tokens,
            reach: Reach::default(),
            bias: None,
            distances: None,
        };
        for head in 0..HEADS {
            let start = head * width;
            let mut attended = match format {
                OperandFormat::Bf16 => {
                    AttentionOutput::Bf16(&mut bytemuck::cast_slice_mut(out.groups_mut())[start..])
                }
                OperandFormat::F32 | OperandFormat::Int8(_) => {
                    AttentionOutput::F32(&mut out.f32s_mut()[start..])
                }
            };
            heads.attend(&session, &mut memory, head, 0..tokens, &mut attended, HIDDEN);
        }
        black_box(out.groups());
    })
}
