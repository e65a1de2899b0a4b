//! Packing of one encoder layer, from stored tensors to panels.
//!
//! Queries, keys and values are packed as one product, heads are padded to whole panels, and hidden
//! channels are in the order of the encoder. This module only arranges weights; it does not compute
//! layers.

#[cfg(test)]
mod tests;

use super::EngineError;
use super::config::EncoderConfig;
use super::linear::panel::PanelBuffer;
use super::linear::{KernelSession, Linear, OperandFormat};
use super::simd::{PANEL_WIDTH, rowwise};
use super::tensor_names::LayerNames;
use super::weights::{StoredRow, Tensor, Tensors};
use crate::base::quantization::{self, QuantizedRow};

/// Weight and bias of a LayerNorm.
pub(super) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Sizes of rows, in values.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerDims {
    /// Width of a token vector.
    pub(super) hidden: usize,
    /// Width of a token vector with its padding.
    pub(super) row: usize,
    pub(super) heads: usize,
    /// Width of a head.
    head: usize,
    /// Width of a head with its padding.
    pub(super) padded_head: usize,
    /// Width between the products of a feed-forward layer.
    pub(super) intermediate: usize,
    /// Width between the products of a feed-forward layer, with its padding.
    pub(super) padded_intermediate: usize,
}

impl LayerDims {
    pub(super) fn new(config: &EncoderConfig) -> Self {
        let head = config.hidden_size / config.heads;
        Self {
            hidden: config.hidden_size,
            row: config.hidden_size.next_multiple_of(PANEL_WIDTH),
            heads: config.heads,
            head,
            padded_head: head.next_multiple_of(PANEL_WIDTH),
            intermediate: config.intermediate_size,
            padded_intermediate: config.intermediate_size.next_multiple_of(PANEL_WIDTH),
        }
    }

    /// Returns the shapes of the linear layers of [`Layer`], in its order: the number of outputs,
    /// and the ends of the blocks of inputs.
    pub(super) fn linears(&self) -> [(usize, Vec<usize>); 4] {
        let hidden = quantization::hidden_blocks(self.hidden);
        [
            // Queries, keys and values are one product.
            (3 * self.inner(), hidden.clone()),
            // All channels of the heads have a similar magnitude, so they are one block.
            (self.hidden, vec![self.inner()]),
            (self.intermediate, hidden),
            (self.hidden, quantization::even_blocks(self.intermediate)),
        ]
    }

    /// Returns the width of all heads with their padding.
    pub(super) const fn inner(&self) -> usize {
        self.heads * self.padded_head
    }
}

/// Description of how the layers are packed.
pub(super) struct Packing {
    pub(super) format: OperandFormat,
    pub(super) dims: LayerDims,
    /// Hidden channel at each index of a packed token vector.
    pub(super) order: Vec<usize>,
}

impl Packing {
    /// Creates a linear layer of zeros from the number of outputs and the ends of the blocks of
    /// inputs.
    fn zeroed(&self, (outputs, blocks): (usize, Vec<usize>)) -> Linear {
        match self.format {
            OperandFormat::Int8(rows) => Linear::integers(rows, outputs, &blocks),
            format => Linear::floats(format, outputs, blocks.last().copied().unwrap_or(0)),
        }
    }

    /// Returns the stored hidden channel of each packed index.
    fn hidden_places(&self) -> Vec<Option<usize>> {
        self.order.iter().copied().map(Some).collect()
    }

    /// Returns the stored channel between the products of a feed-forward layer of each packed
    /// index.
    fn intermediate_places(&self) -> Vec<Option<usize>> {
        (0..self.dims.intermediate).map(Some).collect()
    }

    /// Returns the stored channel of all heads of each packed index, with each head padded to whole
    /// panels. Padding is `None`.
    fn head_places(&self) -> Vec<Option<usize>> {
        let LayerDims { heads, head, padded_head, .. } = self.dims;
        let place = |head_index, place| (place < head).then_some(head_index * head + place);
        let heads = (0..heads).flat_map(|index| (0..padded_head).map(move |at| place(index, at)));
        heads.collect()
    }
}

/// Packed weights of one encoder layer.
pub(super) struct Layer {
    /// Queries, scaled, then keys and values. Each head is padded to whole panels.
    pub(super) states: Linear,
    pub(super) attended: Linear,
    pub(super) attended_norm: LayerNorm,
    pub(super) wide: Linear,
    pub(super) narrow: Linear,
    pub(super) norm: LayerNorm,
}

/// Returns the tensor `name`.
pub(super) fn tensor<'t, 'a>(
    tensors: &'t Tensors<'a>,
    name: &str,
) -> Result<&'t Tensor<'a>, EngineError> {
    tensors.get(name).ok_or_else(|| EngineError::Mismatch(format!("tensor \"{name}\" is missing")))
}

impl LayerNorm {
    /// Reads the LayerNorm `name`, with its channels in `order`.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        name: &str,
        order: &[usize],
    ) -> Result<Self, EngineError> {
        let values = |part| {
            let values = tensor(tensors, &format!("{name}.{part}"))?.values();
            Ok(order.iter().map(|&channel| values[channel]).collect())
        };
        Ok(Self { weight: values("weight")?, bias: values("bias")? })
    }

    pub(super) fn apply(
        &self,
        session: &KernelSession,
        rows: &mut [f32],
        stride: usize,
        epsilon: f32,
    ) {
        rowwise::layer_norm(session.isa, rows, stride, &self.weight, &self.bias, epsilon);
    }

    /// Returns the number of values in weight and bias.
    pub(super) fn len(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}

/// Linear layer in its stored form.
struct StoredLinear<'t, 'a> {
    weight: &'t Tensor<'a>,
    bias: Vec<f32>,
}

impl<'t, 'a> StoredLinear<'t, 'a> {
    fn read(tensors: &'t Tensors<'a>, name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            weight: tensor(tensors, &format!("{name}.weight"))?,
            bias: tensor(tensors, &format!("{name}.bias"))?.values(),
        })
    }

    /// Packs the stored `outputs` in their order, times `factor`, into the panels of `packed` from
    /// `first` on. Then releases the stored weight. An output that is `None` is padding at the end
    /// of its panel.
    fn pack(
        &self,
        outputs: &[Option<usize>],
        inputs: &InputOrder,
        factor: f32,
        packed: &mut Linear,
        first: usize,
    ) {
        let ends = packed.blocks().map(<[usize]>::to_vec);
        let blocks = ends.as_ref().and_then(|ends| inputs.blocks(self.weight, ends));
        let mut row = OutputRow::new(self.weight.shape[1], inputs);
        let mut panel = PanelBuffer::new(packed);
        for (index, outputs) in (first..).zip(outputs.chunks(PANEL_WIDTH)) {
            for &output in outputs.iter().flatten() {
                let bias = self.bias[output] * factor;
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
        self.weight.forget();
    }
}

/// Sequence of inputs that are adjacent both in the stored and in the packed order.
struct InputRun {
    stored: usize,
    packed: usize,
    length: usize,
}

/// Mapping from the stored to the packed inputs of a matrix.
struct InputOrder {
    /// Stored input of each packed input; `None` is padding.
    stored_inputs: Vec<Option<usize>>,
    /// Runs of adjacent inputs in `stored_inputs`, without the padding.
    runs: Vec<InputRun>,
}

impl InputOrder {
    fn new(stored_inputs: Vec<Option<usize>>) -> Self {
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

impl Layer {
    /// Reads and packs layer `index`.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if a tensor is missing.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        names: &LayerNames,
        index: usize,
        packing: &Packing,
    ) -> Result<Self, EngineError> {
        let full = |part| format!("{}.{index}.{part}", names.layers);
        let source = |part| StoredLinear::read(tensors, &full(part));
        let states = [source(names.query)?, source(names.key)?, source(names.value)?];
        let order = &packing.order;
        let zeroed = packing.dims.linears().map(|shape| packing.zeroed(shape));
        let [zero_states, zero_attended, zero_wide, zero_narrow] = zeroed;
        Ok(Self {
            states: packing.states(&states, zero_states),
            attended: packing.attended(&source(names.attention_output)?, zero_attended),
            attended_norm: LayerNorm::read(tensors, &full(names.attention_norm), order)?,
            wide: packing.wide(&source(names.intermediate)?, zero_wide),
            narrow: packing.narrow(&source(names.output)?, zero_narrow),
            norm: LayerNorm::read(tensors, &full(names.output_norm), order)?,
        })
    }

    /// Returns the memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let norms = (self.attended_norm.len() + self.norm.len()) * size_of::<f32>();
        let linears = [&self.states, &self.attended, &self.wide, &self.narrow].map(Linear::bytes);
        norms as u64 + linears.iter().sum::<u64>()
    }

    /// Returns the memory that a layer will take, in bytes, without outliers.
    pub(super) fn bytes_of(format: OperandFormat, dims: &LayerDims) -> u64 {
        // Count weight and bias of two LayerNorms.
        let norms = 4 * dims.hidden * size_of::<f32>();
        let linears = dims.linears();
        let linears =
            linears.iter().map(|(outputs, ends)| Linear::bytes_of(format, *outputs, ends));
        norms as u64 + linears.sum::<u64>()
    }
}

impl Packing {
    /// Packs queries, keys and values. The queries are divided by the square root of a head's
    /// width, which is the scale of softmax.
    fn states(&self, states: &[StoredLinear<'_, '_>; 3], mut packed: Linear) -> Linear {
        let (outputs, inputs) = (self.head_places(), InputOrder::new(self.hidden_places()));
        #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
        let scale = 1.0 / (self.dims.head as f32).sqrt();
        let panels = self.dims.inner() / PANEL_WIDTH;
        for (part, source) in states.iter().enumerate() {
            let factor = if part == 0 { scale } else { 1.0 };
            source.pack(&outputs, &inputs, factor, &mut packed, part * panels);
        }
        packed
    }

    /// Packs the product from attended values back to hidden channels.
    fn attended(&self, source: &StoredLinear<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = InputOrder::new(self.head_places());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }

    fn wide(&self, source: &StoredLinear<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = InputOrder::new(self.hidden_places());
        source.pack(&self.intermediate_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }

    fn narrow(&self, source: &StoredLinear<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = InputOrder::new(self.intermediate_places());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }
}
