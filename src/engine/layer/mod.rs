//! Packing of one encoder layer, from stored tensors to panels.
//!
//! Queries, keys and values are packed as one product, heads are padded to whole panels, and hidden
//! channels are in the order of the encoder. The first product of a gated feed-forward layer
//! alternates between panels of the gate and panels of the other factor. This module only arranges
//! weights; it does not compute layers.

mod dims;
pub(super) mod disentangled;
mod feed_forward;
mod norm;
mod packing;
mod per_layer;
mod stored_linear;

use super::EngineError;
use super::config::{
    AttentionConfig, EncoderConfig, HiddenActivation, LayerConfig, NormKind, RopeConfig,
};
use super::linear::{Linear, OperandFormat};
use super::tensor_names::{LayerNames, Place};
use super::weights::{Tensor, Tensors};
pub(super) use dims::{HeadPart, LayerDims};
use disentangled::DistanceTables;
pub(super) use feed_forward::{Experts, FeedForward, Products};
pub(super) use norm::Norm;
pub(super) use packing::Packing;
pub(super) use per_layer::PerLayerInput;
use stored_linear::StoredLinear;

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
