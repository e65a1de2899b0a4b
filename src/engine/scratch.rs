//! The memory of a forward pass: one arena for each worker, which grows to the longest pass and stays.

use super::attention::Memory;
use super::buffer::Buffer;
use super::linear::{Format, Linear, Operand, Session};
use super::simd::rows::{self, Quantization};

/// Rows made ready for a product.
#[derive(Default)]
pub(super) struct Inputs {
    groups: Buffer,
    quantization: Vec<Quantization>,
}

impl Inputs {
    /// `count` rows of `values`, `stride` apart, as an operand of `linear`.
    ///
    /// f32 is not copied. `values` reach over the rows that pad the last.
    pub(super) fn operand<'a>(
        &'a mut self,
        session: &Session,
        linear: &Linear,
        values: &'a [f32],
        stride: usize,
        count: usize,
    ) -> Operand<'a> {
        let (width, ends) = (linear.inputs(), linear.blocks().unwrap_or_default());
        let groups = linear.format().groups(width);
        let padded = count.next_multiple_of(super::linear::ROWS);
        match linear.format() {
            Format::F32 => {
                let groups = bytemuck::cast_slice(values);
                Operand { groups, stride, rows: count, quantization: &[], values: (&[], 0) }
            }
            Format::Bf16 => {
                let groups = groups.max(stride / 2);
                self.groups.reserve(padded * groups);
                let halves = bytemuck::cast_slice_mut(self.groups.groups_mut());
                rows::to_bf16(session.isa, &values[..count * stride], halves);
                let operand = self.groups.groups();
                Operand {
                    groups: operand,
                    stride: groups,
                    rows: count,
                    quantization: &[],
                    values: (&[], 0),
                }
            }
            Format::Int8 => {
                self.groups.reserve(padded * groups);
                let pairs = count * ends.len();
                self.quantization
                    .resize(pairs.max(self.quantization.len()), Quantization::default());
                let quantization = &mut self.quantization[..pairs];
                let bytes = bytemuck::cast_slice_mut(self.groups.groups_mut());
                let values = &values[..count * stride];
                let out_stride = groups * 4;
                rows::quantize(session.isa, values, stride, ends, bytes, out_stride, quantization);
                let operand = self.groups.groups();
                Operand {
                    groups: operand,
                    stride: groups,
                    rows: count,
                    quantization,
                    values: (values, stride),
                }
            }
        }
    }
}

/// What one thread needs for a block of rows or a text.
#[derive(Default)]
pub(super) struct Work {
    pub(super) inputs: Inputs,
    /// Between the products of a feed-forward layer.
    pub(super) wide: Buffer,
    pub(super) block: Buffer,
    pub(super) attention: Memory,
}

/// What the rows of a pass need.
#[derive(Default)]
pub(super) struct States {
    /// The residual stream, `[rows, row]` f32.
    pub(super) x: Buffer,
    /// Queries, keys and values.
    pub(super) heads: Buffer,
    /// What the heads give.
    pub(super) attended: Buffer,
}
