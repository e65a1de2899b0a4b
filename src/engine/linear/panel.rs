//! Packing of the outputs of a panel.
//!
//! A [`PanelBuffer`] is filled output by output, in the order in which weights are stored. Then it
//! is transposed line by line, so that each cache line of the packed weights is written once.

use super::{GROUPS, Linear, OperandFormat, Outlier};
use crate::base::quantization::QuantizedRow;
use crate::engine::buffer::Buffer;
use crate::engine::simd::{PANEL_WIDTH, elementwise};

/// Outputs that are packed at a time. Together they fill a vector.
const OUTPUTS: usize = 4;

/// Buffer for the up to 32 adjacent outputs of a panel, in their order. Its memory is reused from
/// panel to panel.
pub(in crate::engine) struct PanelBuffer {
    format: OperandFormat,
    /// Number of outputs added so far.
    outputs: usize,
    /// Weights, `[32, groups]`.
    rows: Buffer,
    groups: usize,
    /// Ends of the blocks of inputs that share scales; empty for float formats.
    ends: Vec<usize>,
    bias: [f32; PANEL_WIDTH],
    /// Scales of the outputs, per block.
    scales: Vec<[f32; PANEL_WIDTH]>,
    /// Sums of the weights of the outputs, per block.
    sums: Vec<[f32; PANEL_WIDTH]>,
    outliers: Vec<Outlier>,
}

impl PanelBuffer {
    /// Creates a buffer without outputs for panels of `linear`.
    pub(in crate::engine) fn new(linear: &Linear) -> Self {
        let ends = linear.blocks().unwrap_or_default().to_vec();
        Self {
            format: linear.format,
            outputs: 0,
            rows: Buffer::zeroed(PANEL_WIDTH * linear.groups),
            groups: linear.groups,
            bias: [0.0; PANEL_WIDTH],
            scales: vec![[0.0; PANEL_WIDTH]; ends.len()],
            sums: vec![[0.0; PANEL_WIDTH]; ends.len()],
            ends,
            outliers: Vec::new(),
        }
    }

    /// Adds an output with this bias. Returns its column.
    fn next(&mut self, bias: f32) -> usize {
        let column = self.outputs;
        self.outputs += 1;
        self.bias[column] = bias;
        column
    }

    /// Returns the lane groups of output `column`. The padding lane groups stay zero, because no
    /// code writes them.
    fn row(&mut self, column: usize) -> &mut [u32] {
        &mut self.rows.groups_mut()[column * self.groups..][..self.groups]
    }

    /// Adds an output in a float format: its weights, one for each input, and its bias.
    pub(in crate::engine) fn push_floats(&mut self, weights: &[f32], bias: f32) {
        let column = self.next(bias);
        if self.format == OperandFormat::F32 {
            let row: &mut [f32] = bytemuck::cast_slice_mut(self.row(column));
            row[..weights.len()].copy_from_slice(weights);
        } else {
            let row: &mut [u16] = bytemuck::cast_slice_mut(self.row(column));
            for (value, &weight) in row.iter_mut().zip(weights) {
                *value = elementwise::bf16(weight);
            }
        }
    }

    /// Adds an output in [`OperandFormat::Int8`]: its weights, one for each input, and its bias.
    pub(in crate::engine) fn push_integers(&mut self, weights: &QuantizedRow, bias: f32) {
        let column = self.next(bias);
        let QuantizedRow { integers, scales, outliers } = weights;
        let row: &mut [i8] = bytemuck::cast_slice_mut(self.row(column));
        row[..integers.len()].copy_from_slice(integers);
        let mut start = 0;
        for (block, &end) in self.ends.iter().enumerate() {
            self.scales[block][column] = scales[block];
            self.sums[block][column] = sum(&integers[start..end]);
            start = end;
        }
        let of_output = outliers.iter();
        self.outliers.extend(of_output.map(|&(input, weight)| Outlier { column, input, weight }));
    }
}

/// Returns the sum of the integers of a block.
fn sum(integers: &[i8]) -> f32 {
    let sum: i32 = integers.iter().map(|&weight| i32::from(weight)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a block has fewer than 2^17 inputs")]
    {
        sum as f32
    }
}

impl Linear {
    /// Packs the outputs of `panel` as panel `index`, and empties `panel`. The missing outputs of a
    /// panel that is not full become zeros.
    pub(in crate::engine) fn pack(&mut self, index: usize, panel: &mut PanelBuffer) {
        let filled = std::mem::take(&mut panel.outputs);
        panel.rows.groups_mut()[filled * self.groups..].fill(0);
        panel.bias[filled..].fill(0.0);
        self.bias[index] = panel.bias;
        let (weights, _) = self.weights.groups_mut().as_chunks_mut::<PANEL_WIDTH>();
        let weights = &mut weights[index * self.groups..][..self.groups];
        transpose(panel.rows.groups(), self.groups, weights);
        let Some(integers) = &mut self.integers else { return };
        let blocks = panel.ends.len();
        for of_block in panel.scales.iter_mut().chain(&mut panel.sums) {
            of_block[filled..].fill(0.0);
        }
        integers.scales[index * blocks..][..blocks].copy_from_slice(&panel.scales);
        integers.sums[index * blocks..][..blocks].copy_from_slice(&panel.sums);
        integers.outliers[index] = panel.outliers.drain(..).collect();
    }
}

/// Transposes `rows`, `[32, groups]`, to `[groups, 32]`. It processes one cache line of every row
/// at a time; the lines that this part writes stay in the first-level cache meanwhile.
fn transpose(rows: &[u32], groups: usize, packed: &mut [[u32; PANEL_WIDTH]]) {
    let (parts, _) = packed.as_chunks_mut::<GROUPS>();
    for (part, packed) in parts.iter_mut().enumerate() {
        for (place, rows) in rows.chunks_exact(OUTPUTS * groups).enumerate() {
            let (lines, _) = rows.as_chunks::<GROUPS>();
            let line = |row: usize| &lines[row * (groups / GROUPS) + part];
            let lines: [&[u32; GROUPS]; OUTPUTS] = std::array::from_fn(line);
            for (group, packed) in packed.iter_mut().enumerate() {
                let (places, _) = packed.as_chunks_mut::<OUTPUTS>();
                places[place] = lines.map(|line| line[group]);
            }
        }
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use super::super::WeightQuantization;
    use super::*;
    use crate::engine::simd::Int8RowFormat;

    /// Packed form of one output, to be compared bit for bit.
    #[derive(Debug, PartialEq)]
    pub(in crate::engine) struct Output {
        /// Bytes of all lane groups.
        pub(in crate::engine) weights: Vec<u8>,
        pub(in crate::engine) bias: u32,
        /// Scale and sum of each block, as bits.
        pub(in crate::engine) blocks: Vec<(u32, u32)>,
        /// Input and weight of each outlier, the weight as bits.
        pub(in crate::engine) outliers: Vec<(usize, u32)>,
    }

    /// Reads one output from the packed form.
    pub(in crate::engine) fn output(linear: &Linear, output: usize) -> Output {
        let (panel, column) = (output / PANEL_WIDTH, output % PANEL_WIDTH);
        let groups = &linear.weights.groups()[panel * linear.groups * PANEL_WIDTH..];
        let groups = groups.iter().skip(column).step_by(PANEL_WIDTH).take(linear.groups);
        let (mut blocks, mut outliers) = (Vec::new(), Vec::new());
        if let Some(WeightQuantization { ends, scales, sums, outliers: of_strips, .. }) =
            &linear.integers
        {
            let of_block = |block: usize| {
                let at = panel * ends.len() + block;
                (scales[at][column].to_bits(), sums[at][column].to_bits())
            };
            blocks.extend((0..ends.len()).map(of_block));
            let of_output = of_strips[panel].iter().filter(|outlier| outlier.column == column);
            outliers.extend(of_output.map(|outlier| (outlier.input, outlier.weight.to_bits())));
        }
        Output {
            weights: groups.flat_map(|group| group.to_ne_bytes()).collect(),
            bias: linear.bias[panel][column].to_bits(),
            blocks,
            outliers,
        }
    }

    #[test]
    fn partial_panel_is_padded_with_zeros() {
        let row = QuantizedRow::round_to(127.0, &[1.0, 9.0, -3.0, 2.0, 1.0], &[4, 5]);
        assert_eq!(row.outliers.len(), 1);
        let mut integers = Linear::integers(Int8RowFormat::Unsigned, 2 * PANEL_WIDTH, &[4, 5]);
        let mut floats = Linear::floats(OperandFormat::Bf16, 2 * PANEL_WIDTH, 3);
        let (mut panel, mut of_floats) = (PanelBuffer::new(&integers), PanelBuffer::new(&floats));
        for (index, filled) in [PANEL_WIDTH, 3].into_iter().enumerate() {
            for _ in 0..filled {
                panel.push_integers(&row, 0.5);
                of_floats.push_floats(&[1.0, 2.0, 3.0], 0.5);
            }
            integers.pack(index, &mut panel);
            floats.pack(index, &mut of_floats);
        }
        for linear in [&integers, &floats] {
            let first = output(linear, 0);
            assert_eq!((first.bias, first.weights[..4] == [0; 4]), (0.5_f32.to_bits(), false));
            let zeros = Output {
                weights: vec![0; first.weights.len()],
                bias: 0,
                blocks: vec![(0, 0); first.blocks.len()],
                outliers: Vec::new(),
            };
            for at in 0..2 * PANEL_WIDTH {
                let expected = if at < PANEL_WIDTH + 3 { &first } else { &zeros };
                assert_eq!(output(linear, at), *expected, "{at}");
            }
        }
    }
}
