//! One layer of the encoder, from stored tensors to packed weights.
//!
//! Owns the arrangement: queries, keys and values in one product, heads padded to whole strips, hidden
//! channels in the order of the encoder. Never computes.

use super::EngineError;
use super::config::EncoderConfig;
use super::layout::LayerNames;
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

    /// The hidden channels, as places of inputs.
    fn hidden_places(&self) -> Vec<Option<usize>> {
        self.order.iter().copied().map(Some).collect()
    }

    /// The channels of all heads, each head padded, as places of inputs.
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

    /// How its inputs go to `places` of `packed`.
    fn arrangement<'p>(&self, places: &'p [Option<usize>], packed: &Linear) -> Arrangement<'p> {
        let ends = packed.blocks().unwrap_or_default();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let blocks = starts.zip(ends).map(|(start, &end)| {
            let mut blocks =
                places[start..end].iter().flatten().map(|&place| self.weight.block(place));
            // Of padding alone there are only zeros, to any scale.
            let first = blocks.next().unwrap_or(Some(0))?;
            blocks.all(|block| block == Some(first)).then_some(first)
        });
        Arrangement { places, blocks: blocks.collect() }
    }

    /// Packs output `output`, times `factor`, as output `packed_output`.
    fn pack(
        &self,
        output: usize,
        factor: f32,
        arrangement: &Arrangement<'_>,
        packed: &mut Linear,
        packed_output: usize,
    ) {
        let Arrangement { places, blocks } = arrangement;
        let bias = self.bias[output] * factor;
        let floats = || -> Vec<f32> {
            let row = self.row(output);
            places.iter().map(|place| place.map_or(0.0, |place| row[place] * factor)).collect()
        };
        let stored = || Some((self.weight.integers(output)?, blocks.as_ref()?));
        match packed.blocks() {
            None => packed.set_floats(packed_output, &floats(), bias),
            Some(ends) => {
                let row = match stored() {
                    Some((stored, blocks)) => arranged(&stored, factor, places, blocks),
                    None => IntegerRow::round(&floats(), ends),
                };
                packed.set_integers(packed_output, &row, bias);
            }
        }
    }

    /// Says that the weight was packed.
    fn forget(&self) {
        self.weight.forget();
    }

    fn row(&self, output: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.weight.shape[1]];
        self.weight.read_row(output, &mut row);
        row
    }
}

/// Where the inputs of a stored matrix go.
struct Arrangement<'p> {
    /// The stored input of each packed one; none pads.
    places: &'p [Option<usize>],
    /// The stored block that has the scale of each packed one; `None` when inputs of one were stored with different
    /// scales, or as floats.
    blocks: Option<Vec<usize>>,
}

/// A stored row times `factor`, with the input of `places[i]` at `i`, and the scales of `blocks`.
fn arranged(
    stored: &StoredIntegers<'_>,
    factor: f32,
    places: &[Option<usize>],
    blocks: &[usize],
) -> IntegerRow {
    let StoredIntegers { integers, scales, outliers } = stored;
    let outliers = outliers.iter().filter_map(|&(input, weight)| {
        Some((places.iter().position(|&place| place == Some(input))?, weight * factor))
    });
    IntegerRow {
        integers: places.iter().map(|place| place.map_or(0, |place| integers[place])).collect(),
        scales: blocks.iter().map(|&block| scales[block] * factor).collect(),
        outliers: outliers.collect(),
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
        let Widths { hidden, heads, head, padded_head, .. } = self.widths;
        let places = self.hidden_places();
        #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
        let scale = 1.0 / (head as f32).sqrt();
        for (part, source) in states.iter().enumerate() {
            let factor = if part == 0 { scale } else { 1.0 };
            let arrangement = source.arrangement(&places, &packed);
            for output in 0..hidden {
                let padded = (part * heads + output / head) * padded_head + output % head;
                source.pack(output, factor, &arrangement, &mut packed, padded);
            }
            source.forget();
        }
        packed
    }

    fn attended(&self, source: &Source<'_, '_>, packed: Linear) -> Linear {
        self.to_hidden(source, &self.head_places(), packed)
    }

    fn wide(&self, source: &Source<'_, '_>, mut packed: Linear) -> Linear {
        let places = self.hidden_places();
        let arrangement = source.arrangement(&places, &packed);
        for output in 0..self.widths.intermediate {
            source.pack(output, 1.0, &arrangement, &mut packed, output);
        }
        source.forget();
        packed
    }

    fn narrow(&self, source: &Source<'_, '_>, packed: Linear) -> Linear {
        let places: Vec<Option<usize>> = (0..self.widths.intermediate).map(Some).collect();
        self.to_hidden(source, &places, packed)
    }

    /// A layer whose outputs are the hidden channels.
    fn to_hidden(
        &self,
        source: &Source<'_, '_>,
        places: &[Option<usize>],
        mut packed: Linear,
    ) -> Linear {
        let arrangement = source.arrangement(places, &packed);
        for (place, &channel) in self.order.iter().enumerate() {
            source.pack(channel, 1.0, &arrangement, &mut packed, place);
        }
        source.forget();
        packed
    }
}
