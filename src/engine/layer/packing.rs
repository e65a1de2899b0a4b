//! Packing of the products of a layer.

use super::dims::LayerDims;
use super::stored_linear::{InputOrder, StoredLinear};
use crate::base::quantization;
use crate::engine::EngineError;
use crate::engine::config::AttentionConfig;
use crate::engine::linear::{Linear, OperandFormat};
use crate::engine::simd::PANEL_WIDTH;
use crate::engine::weights::Tensors;

/// Description of how the layers are packed.
pub(in crate::engine) struct Packing {
    pub(in crate::engine) format: OperandFormat,
    /// Hidden channel at each index of a packed token vector.
    pub(in crate::engine) order: Vec<usize>,
}

impl Packing {
    /// Creates a linear layer of zeros from the number of outputs and the ends of the blocks of
    /// inputs.
    pub(super) fn zeroed(&self, (outputs, blocks): (usize, Vec<usize>)) -> Linear {
        match self.format {
            OperandFormat::Int8(rows) => Linear::integers(rows, outputs, &blocks),
            format => Linear::floats(format, outputs, blocks.last().copied().unwrap_or(0)),
        }
    }

    /// Returns the stored hidden channel of each packed index.
    fn hidden_places(&self) -> Vec<Option<usize>> {
        self.order.iter().copied().map(Some).collect()
    }

    /// Packs queries, keys and values. The queries are multiplied by the scale of the scores,
    /// unless they are normalized afterwards.
    pub(super) fn states(
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
    pub(super) fn attended(
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
    pub(super) fn wide(
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
    pub(super) fn narrow(
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
    pub(super) fn linear_from_hidden(
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
    pub(super) fn linear_to_hidden(&self, source: &StoredLinear<'_, '_>, inputs: usize) -> Linear {
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
    pub(in crate::engine) fn projection(
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
