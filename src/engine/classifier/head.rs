//! The weights of a head, and its computation.

use crate::engine::config::HiddenActivation;
use crate::engine::simd::{Isa, PANEL_WIDTH, rowwise};
use crate::engine::vector::dot;

/// Activation after the dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadActivation {
    Tanh,
    Hidden(HiddenActivation),
}

/// Linear layer.
pub(super) struct Linear {
    /// Weights, `[out, in]`.
    pub(super) weight: Vec<f32>,
    /// Bias, `[out]`; empty if the layer has none.
    pub(super) bias: Vec<f32>,
}

impl Linear {
    fn apply(&self, input: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(input.len().max(1));
        let mut output: Vec<f32> = rows.map(|row| dot(row, input)).collect();
        output.iter_mut().zip(&self.bias).for_each(|(value, bias)| *value += bias);
        output
    }

    fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice()) + size_of_val(self.bias.as_slice())
    }
}

/// LayerNorm.
pub(super) struct HeadNorm {
    pub(super) weight: Vec<f32>,
    /// Bias; empty if the norm has none.
    pub(super) bias: Vec<f32>,
    pub(super) epsilon: f32,
}

impl HeadNorm {
    fn apply(&self, values: &mut [f32]) {
        #[expect(clippy::cast_precision_loss, reason = "a width far below 2^24")]
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for (value, weight) in values.iter_mut().zip(&self.weight) {
            *value = (*value - mean) * scale * weight;
        }
        values.iter_mut().zip(&self.bias).for_each(|(value, bias)| *value += bias);
    }

    fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice()) + size_of_val(self.bias.as_slice())
    }
}

/// Weights of a head.
pub(in crate::engine) struct ClassifierHead {
    pub(super) isa: Isa,
    pub(super) dense: Linear,
    pub(super) activation: HeadActivation,
    pub(super) norm: Option<HeadNorm>,
    pub(super) output: Linear,
}

impl ClassifierHead {
    /// Computes the input of the last layer, `[hidden]`, from a pooled token vector.
    pub(in crate::engine) fn features(&self, pooled: &[f32]) -> Vec<f32> {
        let mut features = self.dense.apply(pooled);
        match self.activation {
            HeadActivation::Tanh => features.iter_mut().for_each(|value| *value = value.tanh()),
            HeadActivation::Hidden(activation) => self.activate(activation, &mut features),
        }
        if let Some(norm) = &self.norm {
            norm.apply(&mut features);
        }
        features
    }

    /// Computes the scores, `[labels]`, from the result of [`ClassifierHead::features`]. Both are
    /// raw: the caller applies the activation of the scores.
    pub(in crate::engine) fn logits(&self, features: &[f32]) -> Vec<f32> {
        self.output.apply(features)
    }

    /// Returns the number of scores.
    pub(in crate::engine) fn labels(&self) -> usize {
        self.output.bias.len()
    }

    /// Returns the memory of the weights, in bytes.
    pub(in crate::engine) fn weight_bytes(&self) -> u64 {
        let norm = self.norm.as_ref().map_or(0, HeadNorm::bytes);
        (self.dense.bytes() + norm + self.output.bytes()) as u64
    }

    /// Applies `activation` in place, with the kernel of the feed-forward layers.
    fn activate(&self, activation: HiddenActivation, values: &mut [f32]) {
        for values in values.chunks_mut(PANEL_WIDTH) {
            let mut panel = [[0.0; PANEL_WIDTH]];
            panel[0][..values.len()].copy_from_slice(values);
            let (bias, mut out) = ([0.0; PANEL_WIDTH], [0.0; PANEL_WIDTH]);
            rowwise::store_f32(self.isa, &panel, &bias, Some(activation), &mut out, PANEL_WIDTH);
            values.copy_from_slice(&out[..values.len()]);
        }
    }
}
