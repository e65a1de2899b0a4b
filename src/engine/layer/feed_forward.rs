//! Weights of the feed-forward layer: one pair of products, or a pair for each of several experts.
//!
//! With the token vector `x`, the router computes the probabilities `p = softmax(router · x)`. The
//! layer with experts computes `Σ pₑ · outputₑ(act(wideₑ · x)) + bias` over the experts with the
//! largest probabilities. These do not sum to 1. Follows `NomicMoELayer` of
//! nomic-embed-text-v2-moe.

use super::{LayerDims, Linear, OperandFormat, Packing, StoredLinear, tensor};
use crate::engine::EngineError;
use crate::engine::config::{EncoderConfig, FeedForwardConfig};
use crate::engine::tensor_names::{ExpertNames, LayerNames, Place};
use crate::engine::weights::Tensors;

/// Weights of a feed-forward layer.
pub(in crate::engine) enum FeedForward {
    Dense(Products),
    Experts(Experts),
}

/// The two products of a feed-forward layer or of an expert.
pub(in crate::engine) struct Products {
    /// Product from token vectors to the vectors that are activated.
    pub(in crate::engine) wide: Linear,
    /// Product back to hidden channels.
    pub(in crate::engine) narrow: Linear,
}

/// Experts of a layer, and the router that selects some of them for each token. The products of the
/// experts have no biases.
pub(in crate::engine) struct Experts {
    /// Product from a token vector to a score for each expert. It is f32 in every precision,
    /// because a small error may select another expert.
    pub(in crate::engine) router: Linear,
    pub(in crate::engine) products: Vec<Products>,
    /// Number of experts that compute a token.
    pub(in crate::engine) used: usize,
    /// Bias of the sum of the experts' outputs, `[hidden]`, in the packed order.
    pub(in crate::engine) bias: Vec<f32>,
}

impl FeedForward {
    /// Reads and packs the feed-forward layer of layer `index`. Then releases the stored weights.
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
        let dims = LayerDims::new(config.hidden_size, layer);
        let full = |part: &str| format!("{}.{index}.{part}", names.layers);
        let whole = |part: &str| StoredLinear::read(tensors, &full(part), 0);
        let Some(experts) = layer.feed_forward.experts else {
            let at =
                |place: Place| StoredLinear::read(tensors, &full(place.tensor), place.first_row);
            let [gate, up] = names.wide(&layer.feed_forward);
            let wide = [gate.map(at).transpose()?, up.map(at).transpose()?];
            return Ok(Self::Dense(Products::pack(packing, &dims, &wide, &whole(names.output)?)));
        };
        let read = |expert: usize| -> Result<Products, EngineError> {
            let wide = [None, Some(whole(&ExpertNames::wide(expert))?)];
            let narrow = whole(&ExpertNames::output(expert))?;
            Ok(Products::pack(packing, &dims, &wide, &narrow))
        };
        let bias = tensor(tensors, &full(ExpertNames::BIAS))?.values();
        Ok(Self::Experts(Experts {
            router: packing.projection(tensors, &full(ExpertNames::ROUTER), experts.count)?,
            products: (0..experts.count).map(read).collect::<Result<_, _>>()?,
            used: experts.used,
            bias: packing.order.iter().map(|&channel| bias[channel]).collect(),
        }))
    }

    /// Returns the memory of the weights, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(products) => products.bytes(),
            Self::Experts(Experts { router, products, bias, used: _ }) => {
                let products = products.iter().map(Products::bytes).sum::<u64>();
                products + router.bytes() + size_of_val(bias.as_slice()) as u64
            }
        }
    }

    /// Returns the memory that the weights will take, in bytes, without outliers.
    pub(super) fn bytes_of(
        format: OperandFormat,
        dims: &LayerDims,
        config: &FeedForwardConfig,
    ) -> u64 {
        let [_, _, wide, narrow] = dims.linears();
        let bytes = |(outputs, ends): (usize, Vec<usize>)| Linear::bytes_of(format, outputs, &ends);
        let products = bytes(wide) + bytes(narrow);
        let Some(experts) = config.experts else { return products };
        let router = Linear::bytes_of(OperandFormat::F32, experts.count, &[dims.hidden]);
        experts.count as u64 * products + router + (dims.hidden * size_of::<f32>()) as u64
    }
}

impl Products {
    /// Packs the two factors of the first product, of which the first exists only in a gated layer,
    /// and the second product. Then releases the stored weights.
    fn pack(
        packing: &Packing,
        dims: &LayerDims,
        wide: &[Option<StoredLinear<'_, '_>>; 2],
        narrow: &StoredLinear<'_, '_>,
    ) -> Self {
        let [_, _, wide_shape, narrow_shape] = dims.linears();
        let packed = Self {
            wide: packing.wide(dims, wide, packing.zeroed(wide_shape)),
            narrow: packing.narrow(dims, narrow, packing.zeroed(narrow_shape)),
        };
        // One matrix may have the rows of both factors, so none is released earlier.
        for stored in wide.iter().flatten().chain([narrow]) {
            stored.weight.forget();
        }
        packed
    }

    fn bytes(&self) -> u64 {
        self.wide.bytes() + self.narrow.bytes()
    }
}
