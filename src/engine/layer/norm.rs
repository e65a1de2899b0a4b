//! The normalization of rows, by their variance or by their root mean square.

use super::tensor;
use crate::engine::EngineError;
use crate::engine::config::NormKind;
use crate::engine::linear::KernelSession;
use crate::engine::simd::rowwise;
use crate::engine::weights::Tensors;

/// Weights of a normalization of rows.
pub(in crate::engine) enum Norm {
    /// LayerNorm; a missing bias is zero.
    Layer { weight: Vec<f32>, bias: Vec<f32> },
    /// Division by the root mean square.
    Rms { weight: Vec<f32> },
}

impl Norm {
    /// Reads the norm `name`, with its channels in `order`.
    pub(in crate::engine) fn read(
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
    pub(super) fn scale(&mut self, factor: f32) {
        let (weight, bias) = match self {
            Self::Layer { weight, bias } => (weight, bias.as_mut_slice()),
            Self::Rms { weight } => (weight, &mut [][..]),
        };
        weight.iter_mut().chain(bias).for_each(|value| *value *= factor);
    }

    /// Normalizes each of `rows`, `stride` values apart, in place.
    pub(in crate::engine) fn apply(
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
    pub(in crate::engine) fn len(&self) -> usize {
        match self {
            Self::Layer { weight, bias } => weight.len() + bias.len(),
            Self::Rms { weight } => weight.len(),
        }
    }

    /// Returns the number of values in weight and bias of a norm of `kind` over `channels`.
    pub(in crate::engine) const fn len_of(kind: NormKind, channels: usize) -> usize {
        match kind {
            NormKind::LayerNorm | NormKind::LayerNormWithoutBias => 2 * channels,
            NormKind::Rms | NormKind::RmsPlusOne => channels,
        }
    }
}
