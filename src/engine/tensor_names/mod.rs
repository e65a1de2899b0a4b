//! Lists the tensors of a checkpoint of each [`Family`], by name and shape.
//!
//! The names are those of transformers without the prefix of the model type; [`canonical`] converts
//! the names in older checkpoints. This module is pure and knows no file format.

mod conversion;
mod layer_names;
mod required;
#[cfg(test)]
mod tests;

use super::spec::Family;
pub(super) use conversion::{canonical, without_prefix};
pub(super) use layer_names::{LayerNames, Place};
pub(super) use required::encoder_tensors;

/// Names of the tensors outside the layers. A name that the family does not have is empty, and no
/// configuration of the family asks for it.
pub(super) struct EmbeddingNames {
    /// Tensor of the word embeddings.
    pub(super) words: &'static str,
    /// Tensor of the position embeddings.
    pub(super) positions: &'static str,
    /// Tensor of the token type embeddings.
    pub(super) types: &'static str,
    /// Normalization of the sum of the embeddings, without `.weight` and `.bias`.
    pub(super) norm: &'static str,
    /// Normalization after the last layer, without `.weight`.
    pub(super) final_norm: &'static str,
    /// Tensor of the relative position bias, or of the vectors of distances.
    pub(super) relative_bias: &'static str,
}

impl EmbeddingNames {
    const BERT: Self = Self {
        words: "embeddings.word_embeddings.weight",
        positions: "embeddings.position_embeddings.weight",
        types: "embeddings.token_type_embeddings.weight",
        norm: "embeddings.LayerNorm",
        final_norm: "",
        relative_bias: "encoder.relative_attention_bias.weight",
    };

    pub(super) const fn of(family: Family) -> Self {
        match family {
            Family::Bert
            | Family::DistilBert
            | Family::Gte
            | Family::JinaBert
            | Family::Mpnet
            | Family::Roberta
            | Family::XlmRoberta => Self::BERT,
            Family::DebertaV2 => {
                Self { relative_bias: "encoder.rel_embeddings.weight", ..Self::BERT }
            }
            Family::NomicBert => Self { norm: "emb_ln", ..Self::BERT },
            Family::ModernBert => Self {
                words: "embeddings.tok_embeddings.weight",
                norm: "embeddings.norm",
                final_norm: "final_norm",
                ..Self::BERT
            },
            Family::EmbeddingGemma2 | Family::EuroBert | Family::Gemma3 | Family::Qwen3 => {
                Self { words: "embed_tokens.weight", final_norm: "norm", ..Self::BERT }
            }
        }
    }
}

/// Normalization of the vectors of distances, without `.weight` and `.bias`.
pub(super) const DISTANCE_NORM: &str = "encoder.LayerNorm";

/// Matrix of EmbeddingGemma 2 after the last layer.
pub(super) const PROJECTION: &str = "embedding_projection.weight";

/// Names of the tensors of EmbeddingGemma 2 for the second vector of each token and layer.
pub(super) struct PerLayerNames;

impl PerLayerNames {
    /// Matrix from the word embedding to the second vectors of all layers.
    pub(super) const INPUTS: &str = "ple.per_layer_model_projection.weight";
    /// Normalization of a second vector, without `.weight`.
    pub(super) const INPUT_NORM: &str = "ple.per_layer_projection_norm";
    /// Matrix from the token vector to the factor of the second vector, in a layer.
    pub(super) const GATE: &str = "ple_block.per_layer_input_gate";
    /// Matrix from the product back to the token vector, in a layer.
    pub(super) const OUTPUT: &str = "ple_block.per_layer_projection";
    /// Normalization of the result, in a layer.
    pub(super) const NORM: &str = "ple_block.post_per_layer_input_norm";
    /// Factor of the token vectors at the end of a layer: a tensor with one value.
    pub(super) const SCALAR: &str = "layer_scalar";
}

/// Names of the tensors of a feed-forward layer with experts, in a layer. Packages have two
/// matrices for each expert; the published file has two for all of them, of which the second is
/// transposed.
pub(super) struct ExpertNames;

impl ExpertNames {
    /// Matrix from a token vector to a score for each expert.
    pub(super) const ROUTER: &str = "mlp.router.layer.weight";
    /// Bias of the sum of the experts' outputs.
    pub(super) const BIAS: &str = "mlp.experts.bias";

    /// Returns the name of the first product of `expert`.
    pub(super) fn wide(expert: usize) -> String {
        format!("mlp.experts.{expert}.fc1")
    }

    /// Returns the name of the second product of `expert`.
    pub(super) fn output(expert: usize) -> String {
        format!("mlp.experts.{expert}.fc2")
    }
}

/// A required tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequiredTensor {
    /// Canonical name.
    pub(super) name: String,
    /// Shape; a matrix is `[out, in]`.
    pub(super) shape: Vec<usize>,
}

impl RequiredTensor {
    pub(super) fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }
}
