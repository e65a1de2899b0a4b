//! The step after the feed-forward layer of EmbeddingGemma 2: each layer has a second vector for
//! each token, which it computes from the embedding of the token.
//!
//! With the embedding `e` and the token vector `x`, the step computes `x + norm(output · (gelu(gate
//! · x) ⊙ norm(inputs · e)))` and multiplies the sum by a number. Follows `EmbeddingGemma2PLEBlock`
//! of transformers.

use super::{Linear, Norm, OperandFormat, Packing, StoredLinear, tensor};
use crate::base::quantization;
use crate::engine::EngineError;
use crate::engine::config::EncoderConfig;
use crate::engine::simd::PANEL_WIDTH;
use crate::engine::tensor_names::{LayerNames, PerLayerNames};
use crate::engine::weights::Tensors;

/// Weights of the step.
pub(in crate::engine) struct PerLayerInput {
    /// Product from the embedding of a token to its second vector.
    pub(in crate::engine) inputs: Linear,
    /// Normalization of the second vector.
    pub(in crate::engine) input_norm: Norm,
    /// Product from the token vector to the factor of the second vector.
    pub(in crate::engine) gate: Linear,
    /// Product from the second vector, times the factor, to hidden channels.
    pub(in crate::engine) output: Linear,
    /// Normalization of that product.
    pub(in crate::engine) norm: Norm,
    /// Factor of the token vector at the end of the layer.
    pub(in crate::engine) scalar: f32,
}

impl PerLayerInput {
    /// Reads and packs the step of layer `index`, with a second vector of `width` values.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if a tensor is missing.
    pub(super) fn read(
        tensors: &Tensors<'_>,
        names: &LayerNames,
        (index, width): (usize, usize),
        config: &EncoderConfig,
        packing: &Packing,
    ) -> Result<Self, EngineError> {
        let full = |part: &str| format!("{}.{index}.{part}", names.layers);
        let source = |part| StoredLinear::read(tensors, &full(part), 0);
        let natural: Vec<usize> = (0..width).collect();
        let all_inputs = PerLayerNames::INPUTS.trim_end_matches(".weight");
        let inputs = StoredLinear::read(tensors, all_inputs, index * width)?;
        #[expect(clippy::cast_precision_loss, reason = "sizes are below 2^24")]
        let factor = 1.0 / (config.hidden_size as f32).sqrt();
        let (gate, output) = (source(PerLayerNames::GATE)?, source(PerLayerNames::OUTPUT)?);
        let scalar = tensor(tensors, &full(PerLayerNames::SCALAR))?.values();
        let packed = Self {
            inputs: packing.linear_from_hidden(&inputs, width, factor),
            input_norm: Norm::read(tensors, PerLayerNames::INPUT_NORM, &natural, config.norm)?,
            gate: packing.linear_from_hidden(&gate, width, 1.0),
            output: packing.linear_to_hidden(&output, width),
            norm: Norm::read(tensors, &full(PerLayerNames::NORM), &packing.order, config.norm)?,
            scalar: scalar.first().copied().unwrap_or(1.0),
        };
        for stored in [&gate, &output] {
            stored.weight.forget();
        }
        Ok(packed)
    }

    /// Returns the width of a second vector with its padding.
    pub(in crate::engine) const fn padded(width: usize) -> usize {
        width.next_multiple_of(PANEL_WIDTH)
    }

    /// Returns the memory of the weights, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let linears = [&self.inputs, &self.gate, &self.output].map(Linear::bytes);
        let norms = (self.input_norm.len() + self.norm.len()) * size_of::<f32>();
        linears.iter().sum::<u64>() + norms as u64
    }

    /// Returns the memory that the weights for token vectors of `hidden` values and second vectors
    /// of `width` values will take, in bytes, without outliers.
    pub(super) fn bytes_of(format: OperandFormat, hidden: usize, width: usize) -> u64 {
        let from_hidden = Linear::bytes_of(format, width, &quantization::hidden_blocks(hidden));
        let to_hidden = Linear::bytes_of(format, hidden, &quantization::even_blocks(width));
        2 * from_hidden + to_hidden + ((hidden + width) * size_of::<f32>()) as u64
    }
}
