//! One layer of the encoder, from stored tensors to packed weights.
//!
//! Owns the arrangement: queries, keys and values in one product, heads padded to whole strips, hidden
//! channels in the order of the encoder. Never computes.

#[cfg(test)]
mod tests;

use super::EngineError;
use super::config::EncoderConfig;
use super::layout::LayerNames;
use super::linear::strip::Strip;
use super::linear::{Format, Linear, Session};
use super::simd::{STRIP, rows};
use super::weights::{StoredIntegers, Tensor, Tensors};
use crate::integers::{self, IntegerRow};

/// Weight and bias of a LayerNorm.
pub(super) struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Sizes of rows in values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    /// Of a token vector.
    pub(super) hidden: usize,
    /// Of a token vector with its padding.
    pub(super) row: usize,
    pub(super) heads: usize,
    /// Of a head.
    head: usize,
    /// Of a head with its padding.
    pub(super) padded_head: usize,
    /// Between the products of a feed-forward layer.
    pub(super) intermediate: usize,
    /// The same with its padding.
    pub(super) padded_intermediate: usize,
}

impl Widths {
    pub(super) fn new(config: &EncoderConfig) -> Self {
        let head = config.hidden_size / config.heads;
        Self {
            hidden: config.hidden_size,
            row: config.hidden_size.next_multiple_of(STRIP),
            heads: config.heads,
            head,
            padded_head: head.next_multiple_of(STRIP),
            intermediate: config.intermediate_size,
            padded_intermediate: config.intermediate_size.next_multiple_of(STRIP),
        }
    }

    /// The linear layers of [`Layer`] in its order: outputs, and ends of the blocks of inputs.
    pub(super) fn linears(&self) -> [(usize, Vec<usize>); 4] {
        let hidden = integers::hidden_blocks(self.hidden);
        [
            // One product for queries, keys and values.
            (3 * self.inner(), hidden.clone()),
            // What the heads give is all of one size.
            (self.hidden, vec![self.inner()]),
            (self.intermediate, hidden),
            (self.hidden, integers::even_blocks(self.intermediate)),
        ]
    }

    /// Of all heads.
    pub(super) const fn inner(&self) -> usize {
        self.heads * self.padded_head
    }
}

/// How the layers are packed.
pub(super) struct Packing {
    pub(super) format: Format,
    pub(super) widths: Widths,
    /// The hidden channel at each place of a token vector.
    pub(super) order: Vec<usize>,
}

impl Packing {
    /// A linear layer of zeros with `outputs` and the ends of the blocks of inputs.
    fn zeroed(&self, (outputs, blocks): (usize, Vec<usize>)) -> Linear {
        match self.format {
            Format::Int8(rows) => Linear::integers(rows, outputs, &blocks),
            format => Linear::floats(format, outputs, blocks.last().copied().unwrap_or(0)),
        }
    }

    /// Returns the hidden channels, as places of inputs or outputs.
    fn hidden_places(&self) -> Vec<Option<usize>> {
        self.order.iter().copied().map(Some).collect()
    }

    /// Returns the channels between the products of a feed-forward layer, as places of inputs or outputs.
    fn intermediate_places(&self) -> Vec<Option<usize>> {
        (0..self.widths.intermediate).map(Some).collect()
    }

    /// Returns the channels of all heads, each head padded to whole strips, as places of inputs or outputs.
    fn head_places(&self) -> Vec<Option<usize>> {
        let Widths { heads, head, padded_head, .. } = self.widths;
        let place = |head_index, place| (place < head).then_some(head_index * head + place);
        let heads = (0..heads).flat_map(|index| (0..padded_head).map(move |at| place(index, at)));
        heads.collect()
    }
}

/// One layer.
pub(super) struct Layer {
    /// Queries, scaled, then keys and values; each head padded to whole strips.
    pub(super) states: Linear,
    pub(super) attended: Linear,
    pub(super) attended_norm: Norm,
    pub(super) wide: Linear,
    pub(super) narrow: Linear,
    pub(super) norm: Norm,
}

/// The tensor `name`.
pub(super) fn tensor<'t, 'a>(
    tensors: &'t Tensors<'a>,
    name: &str,
) -> Result<&'t Tensor<'a>, EngineError> {
    tensors.get(name).ok_or_else(|| EngineError::Mismatch(format!("tensor \"{name}\" is missing")))
}

impl Norm {
    /// The LayerNorm `name` with its channels in `order`.
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

    pub(super) fn apply(&self, session: &Session, rows: &mut [f32], stride: usize, epsilon: f32) {
        rows::layer_norm(session.isa, rows, stride, &self.weight, &self.bias, epsilon);
    }

    /// Values of weight and bias.
    pub(super) fn len(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}

/// A linear layer as it is stored.
struct Source<'t, 'a> {
    weight: &'t Tensor<'a>,
    bias: Vec<f32>,
}

impl<'t, 'a> Source<'t, 'a> {
    fn read(tensors: &'t Tensors<'a>, name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            weight: tensor(tensors, &format!("{name}.weight"))?,
            bias: tensor(tensors, &format!("{name}.bias"))?.values(),
        })
    }

    /// Packs the stored `outputs` in their order, times `factor`, in the strips of `packed` from `first` on, and
    /// releases the stored weight. An output that is `None` pads the end of its strip.
    fn pack(
        &self,
        outputs: &[Option<usize>],
        inputs: &Inputs,
        factor: f32,
        packed: &mut Linear,
        first: usize,
    ) {
        let ends = packed.blocks().map(<[usize]>::to_vec);
        let blocks = ends.as_ref().and_then(|ends| inputs.blocks(self.weight, ends));
        let mut row = Row::new(self.weight.shape[1], inputs);
        let mut strip = Strip::new(packed);
        for (index, outputs) in (first..).zip(outputs.chunks(STRIP)) {
            for &output in outputs.iter().flatten() {
                let bias = self.bias[output] * factor;
                let stored = || Some((self.weight.integers(output)?, blocks.as_ref()?));
                let Some(ends) = &ends else {
                    row.read(self.weight, output, inputs, factor);
                    strip.push_floats(&row.floats, bias);
                    continue;
                };
                match stored() {
                    Some((stored, blocks)) => row.arrange(&stored, factor, inputs, blocks),
                    None => {
                        row.read(self.weight, output, inputs, factor);
                        row.integers.round(integers::STEPS, &mut row.floats, ends);
                    }
                }
                strip.push_integers(&row.integers, bias);
            }
            packed.pack(index, &mut strip);
        }
        self.weight.forget();
    }
}

/// Inputs that lie one behind the other, both where they are stored and where they are packed.
struct Run {
    stored: usize,
    packed: usize,
    length: usize,
}

/// Where the inputs of a stored matrix go.
struct Inputs {
    /// The stored input of each packed one; none pads.
    places: Vec<Option<usize>>,
    /// The same, without what pads.
    runs: Vec<Run>,
}

impl Inputs {
    fn new(places: Vec<Option<usize>>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (packed, place) in places.iter().enumerate() {
            let Some(stored) = *place else { continue };
            match runs.last_mut() {
                Some(run)
                    if (run.stored + run.length, run.packed + run.length) == (stored, packed) =>
                {
                    run.length += 1;
                }
                _ => runs.push(Run { stored, packed, length: 1 }),
            }
        }
        Self { places, runs }
    }

    /// Returns the stored block that has the scale of each block of packed inputs that ends at one of `ends`; `None` when inputs
    /// of one were stored with different scales, or as floats.
    fn blocks(&self, weight: &Tensor<'_>, ends: &[usize]) -> Option<Vec<usize>> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let blocks = starts.zip(ends).map(|(start, &end)| {
            let of_block = self.places[start..end].iter().flatten();
            let mut blocks = of_block.map(|&place| weight.block(place));
            // Of padding alone there are only zeros, to any scale.
            let first = blocks.next().unwrap_or(Some(0))?;
            blocks.all(|block| block == Some(first)).then_some(first)
        });
        blocks.collect()
    }

    /// Copies a `stored` row to where it is packed; what pads stays as it is.
    fn copy<T: Copy>(&self, stored: &[T], packed: &mut [T]) {
        for &Run { stored: from, packed: to, length } in &self.runs {
            packed[to..][..length].copy_from_slice(&stored[from..][..length]);
        }
    }

    /// Returns the place of the `stored` input.
    fn place(&self, stored: usize) -> Option<usize> {
        let holds = |run: &&Run| (run.stored..run.stored + run.length).contains(&stored);
        self.runs.iter().find(holds).map(|run| run.packed + stored - run.stored)
    }
}

/// Memory for the weights of one output, kept from one to the next.
struct Row {
    /// In the order in which they are stored.
    stored: Vec<f32>,
    /// In the order in which they are packed.
    floats: Vec<f32>,
    /// In the order in which they are packed.
    integers: IntegerRow,
}

impl Row {
    /// Makes rows of zeros, of `stored` weights and for `inputs`.
    fn new(stored: usize, inputs: &Inputs) -> Self {
        let packed = inputs.places.len();
        let integers = IntegerRow { integers: vec![0; packed], ..IntegerRow::default() };
        Self { stored: vec![0.0; stored], floats: vec![0.0; packed], integers }
    }

    /// Reads row `output` of `weight`, times `factor`, as floats.
    fn read(&mut self, weight: &Tensor<'_>, output: usize, inputs: &Inputs, factor: f32) {
        weight.read_row(output, &mut self.stored);
        inputs.copy(&self.stored, &mut self.floats);
        if factor != 1.0 {
            self.floats.iter_mut().for_each(|weight| *weight *= factor);
        }
    }

    /// Takes the integers of a `stored` row, times `factor`, with the scales of `blocks`.
    fn arrange(
        &mut self,
        stored: &StoredIntegers<'_>,
        factor: f32,
        inputs: &Inputs,
        blocks: &[usize],
    ) {
        let IntegerRow { integers, scales, outliers } = &mut self.integers;
        inputs.copy(stored.integers, integers);
        scales.clear();
        scales.extend(blocks.iter().map(|&block| stored.scales[block] * factor));
        outliers.clear();
        for &(_, input, weight) in stored.outliers {
            let Some(place) = inputs.place(input) else { continue };
            integers[place] = 0;
            outliers.push((place, weight * factor));
        }
    }
}

impl Layer {
    /// Layer `index`.
    ///
    /// # Errors
    /// [`EngineError::Mismatch`] when a tensor is missing.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        names: &LayerNames,
        index: usize,
        packing: &Packing,
    ) -> Result<Self, EngineError> {
        let full = |part| format!("{}.{index}.{part}", names.layers);
        let source = |part| Source::read(tensors, &full(part));
        let states = [source(names.query)?, source(names.key)?, source(names.value)?];
        let order = &packing.order;
        let zeroed = packing.widths.linears().map(|shape| packing.zeroed(shape));
        let [zero_states, zero_attended, zero_wide, zero_narrow] = zeroed;
        Ok(Self {
            states: packing.states(&states, zero_states),
            attended: packing.attended(&source(names.attention_output)?, zero_attended),
            attended_norm: Norm::read(tensors, &full(names.attention_norm), order)?,
            wide: packing.wide(&source(names.intermediate)?, zero_wide),
            narrow: packing.narrow(&source(names.output)?, zero_narrow),
            norm: Norm::read(tensors, &full(names.output_norm), order)?,
        })
    }

    /// Memory of the layer, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let norms = (self.attended_norm.len() + self.norm.len()) * size_of::<f32>();
        let linears = [&self.states, &self.attended, &self.wide, &self.narrow].map(Linear::bytes);
        norms as u64 + linears.iter().sum::<u64>()
    }

    /// Memory of a layer before it is there, in bytes; without outliers.
    pub(super) fn bytes_of(format: Format, widths: &Widths) -> u64 {
        // Weight and bias of two LayerNorms.
        let norms = 4 * widths.hidden * size_of::<f32>();
        let linears = widths.linears();
        let linears =
            linears.iter().map(|(outputs, ends)| Linear::bytes_of(format, *outputs, ends));
        norms as u64 + linears.sum::<u64>()
    }
}

impl Packing {
    /// Queries, keys and values; the queries divided by the square root of a head's width.
    fn states(&self, states: &[Source<'_, '_>; 3], mut packed: Linear) -> Linear {
        let (outputs, inputs) = (self.head_places(), Inputs::new(self.hidden_places()));
        #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
        let scale = 1.0 / (self.widths.head as f32).sqrt();
        let strips = self.widths.inner() / STRIP;
        for (part, source) in states.iter().enumerate() {
            let factor = if part == 0 { scale } else { 1.0 };
            source.pack(&outputs, &inputs, factor, &mut packed, part * strips);
        }
        packed
    }

    /// Packs the product from attended values back to hidden channels.
    fn attended(&self, source: &Source<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = Inputs::new(self.head_places());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }

    fn wide(&self, source: &Source<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = Inputs::new(self.hidden_places());
        source.pack(&self.intermediate_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }

    fn narrow(&self, source: &Source<'_, '_>, mut packed: Linear) -> Linear {
        let inputs = Inputs::new(self.intermediate_places());
        source.pack(&self.hidden_places(), &inputs, 1.0, &mut packed, 0);
        packed
    }
}
