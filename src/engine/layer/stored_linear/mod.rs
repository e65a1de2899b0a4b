//! A linear layer as it is stored, and the panels that it is packed into.

#[cfg(test)]
mod tests;

use super::tensor;
use crate::base::quantization::{self, QuantizedRow};
use crate::engine::EngineError;
use crate::engine::linear::Linear;
use crate::engine::linear::panel::PanelBuffer;
use crate::engine::simd::PANEL_WIDTH;
use crate::engine::weights::{StoredRow, Tensor, Tensors};

/// Linear layer in its stored form: the rows of a matrix from one row on.
pub(super) struct StoredLinear<'t, 'a> {
    pub(super) weight: &'t Tensor<'a>,
    /// Bias of each row of the matrix; empty if there is none.
    bias: Vec<f32>,
    /// First row of the matrix that belongs to the layer.
    first_row: usize,
}

impl<'t, 'a> StoredLinear<'t, 'a> {
    /// Reads the layer that begins at row `first_row` of the matrix `name`, which has a bias or
    /// none.
    pub(super) fn read(
        tensors: &'t Tensors<'a>,
        name: &str,
        first_row: usize,
    ) -> Result<Self, EngineError> {
        let bias = tensors.get(&format!("{name}.bias")).map(Tensor::values);
        let weight = tensor(tensors, &format!("{name}.weight"))?;
        Ok(Self { weight, bias: bias.unwrap_or_default(), first_row })
    }

    /// Packs the stored `outputs` in their order, times `factor`, into the panels of `packed` from
    /// `first` on, `step` panels apart. An output that is `None` is padding at the end of its
    /// panel.
    pub(super) fn pack(
        &self,
        outputs: &[Option<usize>],
        inputs: &InputOrder,
        factor: f32,
        packed: &mut Linear,
        (first, step): (usize, usize),
    ) {
        let ends = packed.blocks().map(<[usize]>::to_vec);
        let blocks = ends.as_ref().and_then(|ends| inputs.blocks(self.weight, ends));
        let mut row = OutputRow::new(self.weight.shape[1], inputs);
        let mut panel = PanelBuffer::new(packed);
        for (index, outputs) in (first..).step_by(step).zip(outputs.chunks(PANEL_WIDTH)) {
            for output in outputs.iter().flatten().map(|output| self.first_row + output) {
                let bias = self.bias.get(output).copied().unwrap_or(0.0) * factor;
                let stored = || Some((self.weight.integers(output)?, blocks.as_ref()?));
                let Some(ends) = &ends else {
                    row.read(self.weight, output, inputs, factor);
                    panel.push_floats(&row.floats, bias);
                    continue;
                };
                match stored() {
                    Some((stored, blocks)) => row.arrange(&stored, factor, inputs, blocks),
                    None => {
                        row.read(self.weight, output, inputs, factor);
                        row.integers.round(quantization::STEPS, &mut row.floats, ends);
                    }
                }
                panel.push_integers(&row.integers, bias);
            }
            packed.pack(index, &mut panel);
        }
    }
}

/// Sequence of inputs that are adjacent both in the stored and in the packed order.
struct InputRun {
    stored: usize,
    packed: usize,
    length: usize,
}

/// Mapping from the stored to the packed inputs of a matrix.
pub(super) struct InputOrder {
    /// Stored input of each packed input; `None` is padding.
    stored_inputs: Vec<Option<usize>>,
    /// Runs of adjacent inputs in `stored_inputs`, without the padding.
    runs: Vec<InputRun>,
}

impl InputOrder {
    pub(super) fn new(stored_inputs: Vec<Option<usize>>) -> Self {
        let mut runs: Vec<InputRun> = Vec::new();
        for (packed, place) in stored_inputs.iter().enumerate() {
            let Some(stored) = *place else { continue };
            match runs.last_mut() {
                Some(run)
                    if (run.stored + run.length, run.packed + run.length) == (stored, packed) =>
                {
                    run.length += 1;
                }
                _ => runs.push(InputRun { stored, packed, length: 1 }),
            }
        }
        Self { stored_inputs, runs }
    }

    /// Returns the stored block whose scale applies to each block of packed inputs that ends at one
    /// of `ends`. Returns `None` if inputs of one packed block are stored with different scales, or
    /// as floats.
    fn blocks(&self, weight: &Tensor<'_>, ends: &[usize]) -> Option<Vec<usize>> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let blocks = starts.zip(ends).map(|(start, &end)| {
            let of_block = self.stored_inputs[start..end].iter().flatten();
            let mut blocks = of_block.map(|&place| weight.block(place));
            // A block of padding only contains zeros, so any scale is correct.
            let first = blocks.next().unwrap_or(Some(0))?;
            blocks.all(|block| block == Some(first)).then_some(first)
        });
        blocks.collect()
    }

    /// Copies a `stored` row to its packed order. The padding is not written.
    fn copy<T: Copy>(&self, stored: &[T], packed: &mut [T]) {
        for &InputRun { stored: from, packed: to, length } in &self.runs {
            packed[to..][..length].copy_from_slice(&stored[from..][..length]);
        }
    }

    /// Returns the packed index of the `stored` input.
    fn packed_index(&self, stored: usize) -> Option<usize> {
        let holds = |run: &&InputRun| (run.stored..run.stored + run.length).contains(&stored);
        self.runs.iter().find(holds).map(|run| run.packed + stored - run.stored)
    }
}

/// Buffers for the weights of one output, reused for the next ones.
struct OutputRow {
    /// Weights in the stored order.
    stored: Vec<f32>,
    /// Weights in the packed order.
    floats: Vec<f32>,
    /// Quantized weights in the packed order.
    integers: QuantizedRow,
}

impl OutputRow {
    /// Creates rows of zeros, for `stored` weights and for `inputs`.
    fn new(stored: usize, inputs: &InputOrder) -> Self {
        let packed = inputs.stored_inputs.len();
        let integers = QuantizedRow { integers: vec![0; packed], ..QuantizedRow::default() };
        Self { stored: vec![0.0; stored], floats: vec![0.0; packed], integers }
    }

    /// Reads row `output` of `weight` as floats, times `factor`.
    fn read(&mut self, weight: &Tensor<'_>, output: usize, inputs: &InputOrder, factor: f32) {
        weight.read_row(output, &mut self.stored);
        inputs.copy(&self.stored, &mut self.floats);
        if factor != 1.0 {
            self.floats.iter_mut().for_each(|weight| *weight *= factor);
        }
    }

    /// Copies the integers of a `stored` row to the packed order. The scales are those of `blocks`,
    /// times `factor`.
    fn arrange(
        &mut self,
        stored: &StoredRow<'_>,
        factor: f32,
        inputs: &InputOrder,
        blocks: &[usize],
    ) {
        let QuantizedRow { integers, scales, outliers } = &mut self.integers;
        inputs.copy(stored.integers, integers);
        scales.clear();
        scales.extend(blocks.iter().map(|&block| stored.scales[block] * factor));
        outliers.clear();
        for &(_, input, weight) in stored.outliers {
            let Some(place) = inputs.packed_index(input) else { continue };
            // The outlier is added in f32, so its integer must not count.
            integers[place] = 0;
            outliers.push((place, weight * factor));
        }
    }
}
