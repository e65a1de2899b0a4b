//! The memory of a forward pass: one arena for each thread, which grows to the longest pass and stays.
//!
//! Owns the sizes, also of what is not there yet.

use super::attention::Memory;
use super::buffer::Buffer;
use super::layer::Widths;
use super::linear::{Format, Linear, Operand, ROWS, Session};
use super::simd::STRIP;
use super::simd::rows::{self, Quantization};

/// Rows that go through the feed-forward products together: what lies between them, 1.5 MiB at 3,072 channels, should
/// stay near the second cache.
pub(super) const BLOCK: usize = 128;

/// What one row takes, and in which format.
#[derive(Clone, Copy)]
pub(super) struct RowShape {
    pub(super) widths: Widths,
    /// Of the operands of linear layers.
    pub(super) format: Format,
    /// Of queries, keys and values: F32 or Bf16.
    pub(super) attention: Format,
}

impl RowShape {
    /// Groups of queries, keys and values.
    pub(super) fn heads_stride(&self) -> usize {
        3 * self.widths.heads * self.attention.groups(self.widths.padded_head)
    }

    /// Groups of what the heads give: bf16 when the next product takes it, else f32.
    pub(super) fn attended_stride(&self) -> usize {
        match self.format {
            Format::Bf16 => self.widths.inner() / 2,
            Format::F32 | Format::Int8(_) => self.widths.inner(),
        }
    }

    /// Format and groups of what lies between the products of a feed-forward layer.
    pub(super) fn between(&self) -> (Format, usize) {
        let format = if self.format == Format::Bf16 { Format::Bf16 } else { Format::F32 };
        let values = self.widths.padded_intermediate;
        (format, format.groups(values).max(values / format.per_group()))
    }

    /// Groups of a row that is made ready for a product, and blocks of its inputs with a
    /// [`Quantization`] each; the most of all products.
    fn inputs(&self) -> (usize, usize) {
        let linears = self.widths.linears();
        let inputs = linears.iter().map(|(_, ends)| ends.last().copied().unwrap_or(0));
        match self.format {
            Format::F32 => (0, 0),
            // Those behind the first product of a layer are stored as bf16.
            Format::Bf16 => (self.format.groups(self.widths.hidden).max(self.widths.row / 2), 0),
            Format::Int8(_) => (
                inputs.map(|inputs| self.format.row_groups(inputs)).max().unwrap_or(0),
                linears.iter().map(|(_, ends)| ends.len()).max().unwrap_or(0),
            ),
        }
    }

    /// Memory of the arena of one thread, in bytes, which has seen passes of `rows` rows and texts of
    /// `length` tokens.
    pub(super) fn arena_bytes(&self, rows: usize, length: usize) -> u64 {
        let (groups, blocks) = self.inputs();
        let states = States::sizes(self, rows).iter().sum::<usize>();
        let wide = BLOCK * self.between().1;
        let block = self.widths.hidden.max(BLOCK * STRIP);
        // The token vectors of a text, before they are pooled.
        let vectors = length * self.widths.hidden;
        let quantization = (BLOCK * blocks * size_of::<Quantization>()) as u64;
        let buffers = Buffer::bytes_of(states + BLOCK * groups + wide + block + vectors);
        let attention = Memory::bytes_of(self.attention, self.widths.padded_head, length);
        buffers + quantization + attention
    }
}

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
        let groups = linear.format().row_groups(width);
        let padded = count.next_multiple_of(ROWS);
        match linear.format() {
            Format::F32 => Operand::floats(bytemuck::cast_slice(values), stride, count),
            Format::Bf16 => {
                let groups = groups.max(stride / 2);
                self.groups.reserve(padded * groups);
                let halves = bytemuck::cast_slice_mut(self.groups.groups_mut());
                rows::to_bf16(session.isa, &values[..count * stride], halves);
                Operand::floats(self.groups.groups(), groups, count)
            }
            Format::Int8(_) => {
                self.groups.reserve(padded * groups);
                let pairs = count * ends.len();
                self.quantization
                    .resize(pairs.max(self.quantization.len()), Quantization::default());
                let quantization = &mut self.quantization[..pairs];
                let values = &values[..count * stride];
                let out = self.groups.groups_mut();
                rows::quantize(session.isa, values, stride, ends, out, groups, quantization);
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
    /// The token vectors of a text, before they are pooled.
    pub(super) vectors: Buffer,
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

impl States {
    /// Groups of each buffer, in their order, for `rows` rows, and as many more as a block of the last
    /// may touch.
    fn sizes(shape: &RowShape, rows: usize) -> [usize; 3] {
        let rows = rows.next_multiple_of(ROWS) + ROWS;
        [shape.widths.row, shape.heads_stride(), shape.attended_stride()].map(|row| rows * row)
    }

    /// Makes room for `rows` rows.
    pub(super) fn reserve(&mut self, shape: &RowShape, rows: usize) {
        let Self { x, heads, attended } = self;
        for (buffer, size) in [x, heads, attended].into_iter().zip(Self::sizes(shape, rows)) {
            buffer.reserve(size);
        }
    }
}
