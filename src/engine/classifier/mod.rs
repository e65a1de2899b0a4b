//! The head of a classifier: computes the scores of a pair of texts from its pooled token vector.
//!
//! A cross-encoder is an encoder with such a head: `*ForSequenceClassification` in transformers. It
//! reads a query and a document together, and its score states how relevant the document is. The
//! head has a dense layer with an activation, in ModernBERT also a LayerNorm, and a linear layer
//! with one output for each label. Its tensors are in the file of the encoder.
//!
//! The head is small and comes last, so it is computed in f32 in every precision.

mod head;
mod layout;
#[cfg(test)]
mod tests;

use super::weights::{Tensor, Tensors};
use super::{EngineError, ModelSpec};
pub(super) use head::ClassifierHead;
pub(super) use layout::ClassifierLayout;

fn mismatch(what: impl std::fmt::Display) -> EngineError {
    EngineError::Mismatch(what.to_string())
}

/// Checks that `spec` describes a model of vectors, for a runtime without classifiers.
pub(super) fn refuse_labels(spec: &ModelSpec) -> Result<(), EngineError> {
    match spec.labels {
        None => Ok(()),
        Some(_) => Err(mismatch(format!(
            "the architecture \"{}\" is not supported for a classifier",
            spec.architecture
        ))),
    }
}

/// Returns the values of a tensor; none if the head does not have it.
pub(super) fn values(tensors: &Tensors<'_>, name: &str, part: &str) -> Vec<f32> {
    tensors.get(&format!("{name}.{part}")).map(Tensor::values).unwrap_or_default()
}
