//! Packing of one encoder layer, from stored tensors to panels.
//!
//! Queries, keys and values are packed as one product, heads are padded to whole panels, and hidden
//! channels are in the order of the encoder. The first product of a gated feed-forward layer
//! alternates between panels of the gate and panels of the other factor. This module only arranges
//! weights; it does not compute layers.

pub(super) mod disentangled;
mod feed_forward;
mod per_layer;
#[cfg(test)]
mod tests;

use disentangled::DistanceTables;

use super::EngineError;
use super::config::{
    AttentionConfig, EncoderConfig, HiddenActivation, LayerConfig, NormKind, RopeConfig,
};
use super::linear::panel::PanelBuffer;
use super::linear::{KernelSession, Linear, OperandFormat};
use super::simd::{PANEL_WIDTH, rowwise};
use super::tensor_names::{LayerNames, Place};
use super::weights::{StoredRow, Tensor, Tensors};
use crate::base::quantization::{self, QuantizedRow};
pub(super) use feed_forward::{Experts, FeedForward, Products};
pub(super) use per_layer::PerLayerInput;

/// Weights of a normalization of rows.
pub(super) enum Norm {
    /// LayerNorm; a missing bias is zero.
    Layer { weight: Vec<f32>, bias: Vec<f32> },
    /// Division by the root mean square.
    Rms { weight: Vec<f32> },
}

/// Sizes of the rows of one layer, in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerDims {
    /// Width of a token vector.
    pub(super) hidden: usize,
    /// Width of a token vector with its padding.
    pub(super) row: usize,
    /// Number of heads of the queries.
    pub(super) heads: usize,
    /// Number of heads of the keys, and of the values; divides `heads`.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head: usize,
    /// Width of a head with its padding.
    pub(super) padded_head: usize,
    /// Width between the products of a feed-forward layer.
    intermediate: usize,
    /// Width between the products of a feed-forward layer, with its padding.
    pub(super) padded_intermediate: usize,
    /// Whether the first product of the feed-forward layer has two factors.
    pub(super) gated: bool,
}

impl LayerDims {
    pub(super) fn new(hidden: usize, layer: &LayerConfig) -> Self {
        let LayerConfig { attention, feed_forward, .. } = layer;
        Self {
            hidden,
            row: hidden.next_multiple_of(PANEL_WIDTH),
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head: attention.head,
            padded_head: attention.head.next_multiple_of(PANEL_WIDTH),
            intermediate: feed_forward.intermediate,
            padded_intermediate: feed_forward.intermediate.next_multiple_of(PANEL_WIDTH),
            gated: feed_forward.gated,
        }
    }

    /// Returns the shapes of the linear layers of [`Layer`], in its order: the number of outputs,
    /// and the ends of the blocks of inputs.
    pub(super) fn linears(&self) -> [(usize, Vec<usize>); 4] {
        let hidden = quantization::hidden_blocks(self.hidden);
        let wide = if self.gated { 2 * self.padded_intermediate } else { self.intermediate };
        [
            // Queries, keys and values are one product.
            (self.all_heads() * self.padded_head, hidden.clone()),
            // All channels of the heads have a similar magnitude, so they are one block.
            (self.hidden, vec![self.inner()]),
            (wide, hidden),
            (self.hidden, quantization::even_blocks(self.intermediate)),
        ]
    }

    /// Returns the width of all heads of the queries with their padding.
    pub(super) const fn inner(&self) -> usize {
        self.heads * self.padded_head
    }

    /// Returns the number of heads of queries, keys and values together.
    pub(super) const fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Returns the part to which head `head` of [`LayerDims::all_heads`] belongs.
    pub(super) const fn part_of(&self, head: usize) -> HeadPart {
        if head < self.heads {
            HeadPart::Query
        } else if head < self.heads + self.kv_heads {
            HeadPart::Key
        } else {
            HeadPart::Value
        }
    }
}

/// Parts of the product for queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadPart {
    Query,
    Key,
    Value,
}

/// Description of how the layers are packed.
pub(super) struct Packing {
    pub(super) format: OperandFormat,
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
}

impl LayerDims {
    /// Returns the stored channel between the products of a feed-forward layer of each packed
    /// index.
    fn intermediate_places(&self) -> Vec<Option<usize>> {
        (0..self.intermediate).map(Some).collect()
    }

    /// Returns the stored channel of `heads` heads of each packed index, with each head padded to
    /// whole panels. Padding is `None`.
    fn head_places(&self, heads: usize) -> Vec<Option<usize>> {
        let Self { head, padded_head, .. } = *self;
        let place = |head_index, place| (place < head).then_some(head_index * head + place);
        let heads = (0..heads).flat_map(|index| (0..padded_head).map(move |at| place(index, at)));
        heads.collect()
    }
}

/// Packed weights of one encoder layer, and what it computes with them.
pub(super) struct Layer {
    pub(super) dims: LayerDims,
    /// Normalization of the token vectors before attention, for layers that have one.
    pub(super) input_norm: Option<Norm>,
    /// Queries, scaled, then keys and values. Each head is padded to whole panels.
    pub(super) states: Linear,
    pub(super) heads: HeadSteps,
    /// Largest distance between a query and a key, if attention is local.
    pub(super) window: Option<usize>,
    /// Whether a token attends only to itself and to the tokens before it.
    pub(super) causal: bool,
    pub(super) attended: Linear,
    /// Normalization after the output product of attention.
    pub(super) attended_norm: Option<Norm>,
    /// Normalization of the token vectors before the feed-forward layer.
    pub(super) wide_norm: Option<Norm>,
    pub(super) feed_forward: FeedForward,
    pub(super) activation: HiddenActivation,
    /// Normalization after the second product of the feed-forward layer.
    pub(super) norm: Option<Norm>,
    /// Step after the feed-forward layer.
    pub(super) per_layer: Option<PerLayerInput>,
    /// Tables of distances, which [`Layer::read`] leaves to the encoder.
    pub(super) distances: Option<DistanceTables>,
}

/// Steps between the product for queries, keys and values and attention.
pub(super) struct HeadSteps {
    /// Normalization of each head of the queries.
    query_norm: Option<Norm>,
    /// Normalization of each head of the keys.
    key_norm: Option<Norm>,
    /// Normalization of each head of the values.
    value_norm: Option<Norm>,
    /// Rotation of queries and keys by their position.
    pub(super) rope: Option<RopeConfig>,
}

impl HeadSteps {
    fn read(
        tensors: &Tensors<'_>,
        full: impl Fn(&str) -> String,
        names: &LayerNames,
        (config, kind): (&AttentionConfig, NormKind),
    ) -> Result<Self, EngineError> {
        let order: Vec<usize> = (0..config.head).collect();
        let read = |name: &str| {
            let norm = || Norm::read(tensors, &full(name), &order, kind);
            config.qk_norm.then(norm).transpose()
        };
        let ones = || Norm::Rms { weight: vec![1.0; config.head] };
        let mut query_norm = read(names.query_norm)?;
        // A normalized query loses the scale of its weights, so the norm applies it.
        if let Some(norm) = &mut query_norm {
            norm.scale(config.scale);
        }
        Ok(Self {
            query_norm,
            key_norm: read(names.key_norm)?,
            value_norm: config.v_norm.then(ones),
            rope: config.rope.clone(),
        })
    }

    /// Returns the normalization of the heads of `part`.
    pub(super) fn norm(&self, part: HeadPart) -> Option<&Norm> {
        match part {
            HeadPart::Query => self.query_norm.as_ref(),
            HeadPart::Key => self.key_norm.as_ref(),
            HeadPart::Value => self.value_norm.as_ref(),
        }
    }

    /// Returns whether the heads of `part` are used as the product computes them.
    pub(super) fn is_identity(&self, part: HeadPart) -> bool {
        self.norm(part).is_none() && (part == HeadPart::Value || self.rope.is_none())
    }

    fn norms(&self) -> impl Iterator<Item = &Norm> {
        [&self.query_norm, &self.key_norm, &self.value_norm].into_iter().flatten()
    }

    /// Returns the number of values of the norms of an attention of `config`.
    fn len_of(config: &AttentionConfig) -> usize {
        (2 * usize::from(config.qk_norm) + usize::from(config.v_norm)) * config.head
    }
}

/// Returns the tensor `name`.
pub(super) fn tensor<'t, 'a>(
    tensors: &'t Tensors<'a>,
    name: &str,
) -> Result<&'t Tensor<'a>, EngineError> {
    tensors.get(name).ok_or_else(|| EngineError::Mismatch(format!("tensor \"{name}\" is missing")))
}

impl Norm {
    /// Reads the norm `name`, with its channels in `order`.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        name: &str,
        order: &[usize],
        kind: NormKind,
    ) -> Result<Self, EngineError> {
        let values = |part| {
            let values = tensor(tensors, &format!("{name}.{part}"))?.values();
            Ok::<Vec<f32>, EngineError>(order.iter().map(|&channel| values[channel]).collect())
        };
        let mut weight = values("weight")?;
        Ok(match kind {
            NormKind::LayerNorm => Self::Layer { weight, bias: values("bias")? },
            NormKind::LayerNormWithoutBias => {
                let bias = vec![0.0; weight.len()];
                Self::Layer { weight, bias }
            }
            NormKind::Rms => Self::Rms { weight },
            NormKind::RmsPlusOne => {
                weight.iter_mut().for_each(|weight| *weight += 1.0);
                Self::Rms { weight }
            }
        })
    }

    /// Multiplies the results of the norm by `factor`.
    fn scale(&mut self, factor: f32) {
        let (weight, bias) = match self {
            Self::Layer { weight, bias } => (weight, bias.as_mut_slice()),
            Self::Rms { weight } => (weight, &mut [][..]),
        };
        weight.iter_mut().chain(bias).for_each(|value| *value *= factor);
    }

    /// Normalizes each of `rows`, `stride` values apart, in place.
    pub(super) fn apply(
        &self,
        session: &KernelSession,
        rows: &mut [f32],
        stride: usize,
        epsilon: f32,
    ) {
        match self {
            Self::Layer { weight, bias } => {
                rowwise::layer_norm(session.isa, rows, stride, weight, bias, epsilon);
            }
            Self::Rms { weight } => rowwise::rms_norm(session.isa, rows, stride, weight, epsilon),
        }
    }

    /// Returns the number of values in weight and bias.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Layer { weight, bias } => weight.len() + bias.len(),
            Self::Rms { weight } => weight.len(),
        }
    }

    /// Returns the number of values in weight and bias of a norm of `kind` over `channels`.
    pub(super) const fn len_of(kind: NormKind, channels: usize) -> usize {
        match kind {
            NormKind::LayerNorm | NormKind::LayerNormWithoutBias => 2 * channels,
            NormKind::Rms | NormKind::RmsPlusOne => channels,
        }
    }
}

/// Linear layer in its stored form: the rows of a matrix from one row on.
struct StoredLinear<'t, 'a> {
    weight: &'t Tensor<'a>,
    /// Bias of each row of the matrix; empty if there is none.
    bias: Vec<f32>,
    /// First row of the matrix that belongs to the layer.
    first_row: usize,
}

impl<'t, 'a> StoredLinear<'t, 'a> {
    /// Reads the layer that begins at row `first_row` of the matrix `name`, which has a bias or
    /// none.
    fn read(tensors: &'t Tensors<'a>, name: &str, first_row: usize) -> Result<Self, EngineError> {
        let bias = tensors.get(&format!("{name}.bias")).map(Tensor::values);
        let weight = tensor(tensors, &format!("{name}.weight"))?;
        Ok(Self { weight, bias: bias.unwrap_or_default(), first_row })
    }

    /// Packs the stored `outputs` in their order, times `factor`, into the panels of `packed` from
    /// `first` on, `step` panels apart. An output that is `None` is padding at the end of its
    /// panel.
    fn pack(
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
    /// Reads and packs layer `index` of the encoder of `config`. Then releases the stored weights.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if a tensor is missing.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        names: &LayerNames,
        index: usize,
        config: &EncoderConfig,
        packing: &Packing,
    ) -> Result<Self, EngineError> {
        let layer = &config.layers[index];
        let LayerConfig { attention, feed_forward, input_norm } = layer;
        let full = |part: &str| format!("{}.{index}.{part}", names.layers);
        let at = |place: Place| StoredLinear::read(tensors, &full(place.tensor), place.first_row);
        let norm = |exists: bool, name: &str| {
            let read = || Norm::read(tensors, &full(name), &packing.order, config.norm);
            exists.then(read).transpose()
        };
        let [query, key, value] = names.states(attention);
        let states = [at(query)?, at(key)?, at(value)?];
        let attended = StoredLinear::read(tensors, &full(names.attention_output), 0)?;
        let (before, after) = (config.placement.is_before(), config.placement.is_after());
        let dims = LayerDims::new(config.hidden_size, layer);
        let [states_shape, attended_shape, ..] = dims.linears();
        let packed = Self {
            input_norm: norm(*input_norm, names.input_norm)?,
            states: packing.states(&dims, attention, &states, packing.zeroed(states_shape)),
            heads: HeadSteps::read(tensors, full, names, (attention, config.norm))?,
            window: attention.window,
            causal: attention.causal,
            attended: packing.attended(&dims, &attended, packing.zeroed(attended_shape)),
            attended_norm: norm(after, names.attention_norm)?,
            wide_norm: norm(before, names.feed_forward_norm)?,
            feed_forward: FeedForward::read(tensors, names, index, config, packing)?,
            activation: feed_forward.activation,
            norm: norm(after, names.output_norm)?,
            per_layer: config
                .per_layer_input
                .map(|width| PerLayerInput::read(tensors, names, (index, width), config, packing))
                .transpose()?,
            distances: None,
            dims,
        };
        // A matrix may have the rows of several linear layers, so none is released earlier.
        for stored in states.iter().chain([&attended]) {
            stored.weight.forget();
        }
        Ok(packed)
    }

    /// Returns the memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let norms = [&self.input_norm, &self.attended_norm, &self.wide_norm, &self.norm];
        let norms = norms.into_iter().flatten().chain(self.heads.norms()).map(Norm::len);
        let norms = norms.sum::<usize>() * size_of::<f32>();
        let linears = [&self.states, &self.attended].map(Linear::bytes);
        let per_layer = self.per_layer.as_ref().map_or(0, PerLayerInput::bytes);
        let products = linears.iter().sum::<u64>() + self.feed_forward.bytes();
        let distances = self.distances.as_ref().map_or(0, DistanceTables::bytes);
        norms as u64 + products + per_layer + distances
    }

    /// Returns the memory that a `layer` of `config` will take, in bytes, without outliers.
    pub(super) fn bytes_of(
        format: OperandFormat,
        config: &EncoderConfig,
        layer: &LayerConfig,
    ) -> u64 {
        let dims = LayerDims::new(config.hidden_size, layer);
        let (before, after) = (config.placement.is_before(), config.placement.is_after());
        let norms = usize::from(layer.input_norm) + usize::from(before) + 2 * usize::from(after);
        let values =
            norms * Norm::len_of(config.norm, dims.hidden) + HeadSteps::len_of(&layer.attention);
        let [states, attended, ..] = dims.linears();
        let linears = [states, attended];
        let linears =
            linears.iter().map(|(outputs, ends)| Linear::bytes_of(format, *outputs, ends));
        let products =
            linears.sum::<u64>() + FeedForward::bytes_of(format, &dims, &layer.feed_forward);
        let per_layer = config
            .per_layer_input
            .map_or(0, |width| PerLayerInput::bytes_of(format, config.hidden_size, width));
        (values * size_of::<f32>()) as u64 + products + per_layer
    }
}

impl Packing {
    /// Packs queries, keys and values. The queries are multiplied by the scale of the scores,
    /// unless they are normalized afterwards.
    fn states(
        &self,
        dims: &LayerDims,
        attention: &AttentionConfig,
        states: &[StoredLinear<'_, '_>; 3],
        mut packed: Linear,
    ) -> Linear {
        let inputs = InputOrder::new(self.hidden_places());
        let panels = dims.padded_head / PANEL_WIDTH;
        let scale = if attention.qk_norm { 1.0 } else { attention.scale };
        let parts = [(dims.heads, scale), (dims.kv_heads, 1.0), (dims.kv_heads, 1.0)];
        let mut first = 0;
        for ((heads, factor), source) in parts.into_iter().zip(states) {
            source.pack(&dims.head_places(heads), &inputs, factor, &mut packed, (first, 1));
            first += heads * panels;
        }
        packed
    }

    /// Packs the product from attended values back to hidden channels.
    fn attended(
        &self,
        dims: &LayerDims,
        source: &StoredLinear<'_, '_>,
        mut packed: Linear,
    ) -> Linear {
        let inputs = InputOrder::new(dims.head_places(dims.heads));
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, (0, 1));
        packed
    }

    /// Packs the first product of the feed-forward layer: its factors, of which the first exists
    /// only in a gated layer.
    fn wide(
        &self,
        dims: &LayerDims,
        factors: &[Option<StoredLinear<'_, '_>>; 2],
        mut packed: Linear,
    ) -> Linear {
        let inputs = InputOrder::new(self.hidden_places());
        let step = factors.iter().flatten().count();
        for (first, source) in factors.iter().flatten().enumerate() {
            let outputs = dims.intermediate_places();
            source.pack(&outputs, &inputs, 1.0, &mut packed, (first, step));
        }
        packed
    }

    /// Packs the second product of the feed-forward layer.
    fn narrow(
        &self,
        dims: &LayerDims,
        source: &StoredLinear<'_, '_>,
        mut packed: Linear,
    ) -> Linear {
        let inputs = InputOrder::new(dims.intermediate_places());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, (0, 1));
        packed
    }

    /// Packs a product from hidden channels to `outputs` outputs, times `factor`.
    fn linear_from_hidden(
        &self,
        source: &StoredLinear<'_, '_>,
        outputs: usize,
        factor: f32,
    ) -> Linear {
        let hidden = self.order.len();
        let mut packed = self.zeroed((outputs, quantization::hidden_blocks(hidden)));
        let inputs = InputOrder::new(self.hidden_places());
        let outputs: Vec<_> = (0..outputs).map(Some).collect();
        source.pack(&outputs, &inputs, factor, &mut packed, (0, 1));
        packed
    }

    /// Packs a product from `inputs` inputs to hidden channels.
    fn linear_to_hidden(&self, source: &StoredLinear<'_, '_>, inputs: usize) -> Linear {
        let hidden = self.order.len();
        let mut packed = self.zeroed((hidden, quantization::even_blocks(inputs)));
        let inputs = InputOrder::new((0..inputs).map(Some).collect());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, (0, 1));
        packed
    }

    /// Reads and packs the matrix `name` from hidden channels to `outputs` outputs, in f32.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if the tensor is missing.
    pub(super) fn projection(
        &self,
        tensors: &Tensors<'_>,
        name: &str,
        outputs: usize,
    ) -> Result<Linear, EngineError> {
        let packing = Self { format: OperandFormat::F32, order: self.order.clone() };
        let source = StoredLinear::read(tensors, name.trim_end_matches(".weight"), 0)?;
        Ok(packing.linear_from_hidden(&source, outputs, 1.0))
    }
}
