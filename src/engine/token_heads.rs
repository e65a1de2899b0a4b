//! Heads that compute an output for each token, beside the vector of the text: the sparse head and
//! the multi-vector head of bge-m3.
//!
//! The sparse head gives each token a weight, `relu(w · state + b)`. The multi-vector head gives
//! each token a vector, `W · state + b`, scaled to length 1. Their tensors are in the file of the
//! encoder. The formulas are those of FlagEmbedding:
//! <https://github.com/FlagOpen/FlagEmbedding/blob/master/FlagEmbedding/finetune/embedder/encoder_only/m3/modeling.py>
//!
//! The heads are small and come last, so they are computed in f32 in every precision.

use super::classifier::values;
use super::spec::TokenHeads;
use super::tensor_names::RequiredTensor;
use super::vector::{dot, normalize};
use super::weights::{self, Header, WEIGHTS};
use super::{EngineError, ModelSpec, Output, WeightsFile};

/// Name of the sparse head.
const SPARSE: &str = "sparse_linear";
/// Name of the multi-vector head.
const MULTI_VECTOR: &str = "colbert_linear";

/// Number of tokens for which a row of weights is used while it is in the first-level cache.
const BLOCK: usize = 8;

/// Checks that `spec` describes a model without heads for tokens, for a runtime without token
/// states.
pub(super) fn refuse_token_heads(spec: &ModelSpec) -> Result<(), EngineError> {
    match spec.token_heads == TokenHeads::default() {
        true => Ok(()),
        false => Err(EngineError::Mismatch(format!(
            "the architecture \"{}\" has no token states for a sparse or multi-vector head",
            spec.architecture
        ))),
    }
}

impl TokenHeads {
    /// Returns the tensors of the heads, for token states of `hidden` values.
    fn tensors(self, hidden: usize) -> Vec<RequiredTensor> {
        let sparse = self.sparse.then_some((SPARSE, 1));
        let multi_vector = self.multi_vector.map(|outputs| (MULTI_VECTOR, outputs));
        let heads = sparse.into_iter().chain(multi_vector);
        let tensors = heads.flat_map(|(name, outputs)| {
            [
                RequiredTensor::new(format!("{name}.weight"), [outputs, hidden]),
                RequiredTensor::new(format!("{name}.bias"), [outputs]),
            ]
        });
        tensors.collect()
    }

    /// Returns the memory of the heads, in bytes, which is also their size in a package. The token
    /// states have `hidden` values.
    pub(super) fn bytes(self, hidden: usize) -> u64 {
        let length = |tensor: &RequiredTensor| {
            tensor.shape.iter().fold(1_u64, |all, length| all.saturating_mul(*length as u64))
        };
        let values = self.tensors(hidden).iter().map(length).fold(0, u64::saturating_add);
        values.saturating_mul(size_of::<f32>() as u64)
    }

    /// Reads the heads from the safetensors `file` of the encoder, which has this `header`. The
    /// token states have `hidden` values.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing, or has another shape or type.
    pub(super) fn load(
        self,
        hidden: usize,
        header: &Header,
        file: &dyn WeightsFile,
    ) -> Result<TokenHeadWeights, EngineError> {
        let expected = self.tensors(hidden);
        let own =
            |name: &str| expected.iter().any(|tensor| tensor.name == name).then(|| name.to_owned());
        let tensors = weights::read_with(header, WEIGHTS, file, own, expected.iter().cloned())?;
        let head = |name: &str| Projection {
            weight: values(&tensors, name, "weight"),
            bias: values(&tensors, name, "bias"),
        };
        Ok(TokenHeadWeights {
            sparse: self.sparse.then(|| head(SPARSE)),
            multi_vector: self.multi_vector.map(|_| head(MULTI_VECTOR)),
        })
    }
}

/// Linear layer that is applied to each token.
struct Projection {
    /// Weights, `[out, in]`.
    weight: Vec<f32>,
    /// Bias, `[out]`.
    bias: Vec<f32>,
}

impl Projection {
    /// Computes the outputs of `tokens`, `[length, hidden]`: `[length, out]`.
    fn apply(&self, tokens: &[f32], hidden: usize) -> Vec<f32> {
        let (hidden, outputs) = (hidden.max(1), self.bias.len().max(1));
        let mut projected = vec![0.0; tokens.len() / hidden * outputs];
        let blocks = tokens.chunks(BLOCK * hidden).zip(projected.chunks_mut(BLOCK * outputs));
        for (tokens, projected) in blocks {
            let rows = self.weight.chunks_exact(hidden).zip(&self.bias).enumerate();
            for (at, (row, bias)) in rows {
                let tokens = tokens.chunks_exact(hidden);
                for (token, projected) in tokens.zip(projected.chunks_exact_mut(outputs)) {
                    projected[at] = dot(row, token) + bias;
                }
            }
        }
        projected
    }

    fn bytes(&self) -> u64 {
        (size_of_val(self.weight.as_slice()) + size_of_val(self.bias.as_slice())) as u64
    }
}

/// Weights of the heads for tokens.
#[derive(Default)]
pub(super) struct TokenHeadWeights {
    sparse: Option<Projection>,
    multi_vector: Option<Projection>,
}

impl TokenHeadWeights {
    /// Checks that the model computes `output`, if it is an output of these heads.
    ///
    /// # Errors
    /// Returns [`EngineError::NoTokenHead`] if the model does not have the head.
    pub(super) fn check(&self, output: Output) -> Result<(), EngineError> {
        match output {
            Output::TokenWeights if self.sparse.is_none() => {
                Err(EngineError::NoTokenHead { head: "sparse" })
            }
            Output::TokenVectors if self.multi_vector.is_none() => {
                Err(EngineError::NoTokenHead { head: "multi-vector" })
            }
            _ => Ok(()),
        }
    }

    /// Returns the length of the vector of a token; 0 without the head.
    pub(super) fn vector_length(&self) -> usize {
        self.multi_vector.as_ref().map_or(0, |head| head.bias.len())
    }

    /// Computes the weight of each of `tokens`, `[length, hidden]`. Returns nothing without the
    /// head.
    pub(super) fn weights(&self, tokens: &[f32], hidden: usize) -> Vec<f32> {
        let Some(head) = &self.sparse else { return Vec::new() };
        let mut weights = head.apply(tokens, hidden);
        // `f32::max` would hide a NaN.
        weights.iter_mut().filter(|weight| **weight < 0.0).for_each(|weight| *weight = 0.0);
        weights
    }

    /// Computes the vector of each of `tokens`, `[length, hidden]`. Returns nothing without the
    /// head.
    pub(super) fn vectors(&self, tokens: &[f32], hidden: usize) -> Vec<f32> {
        let Some(head) = &self.multi_vector else { return Vec::new() };
        let mut vectors = head.apply(tokens, hidden);
        vectors.chunks_exact_mut(self.vector_length().max(1)).for_each(normalize);
        vectors
    }

    /// Returns the memory of the weights, in bytes.
    pub(super) fn weight_bytes(&self) -> u64 {
        [&self.sparse, &self.multi_vector].into_iter().flatten().map(Projection::bytes).sum()
    }
}

/// Computes the late interaction of a query and a document (MaxSim): the largest dot product of
/// each vector of the query with one of the document, averaged over the query. Both are rows of
/// `length` values. The result is from -1 to 1 for vectors of length 1, and 0 if one has no rows.
pub fn max_sim(query: &[f32], document: &[f32], length: usize) -> f32 {
    let length = length.max(1);
    if document.len() < length || query.len() < length {
        return 0.0;
    }
    let best = |query: &[f32]| {
        let products = document.chunks_exact(length).map(|document| dot(query, document));
        products.fold(f32::NEG_INFINITY, f32::max)
    };
    let sum: f32 = query.chunks_exact(length).map(best).sum();
    #[expect(clippy::cast_precision_loss, reason = "a text has far fewer than 2^24 tokens")]
    let count = (query.len() / length) as f32;
    sum / count
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::spec;
    use crate::engine::weights::tests::{f32s, file};

    const BOTH: TokenHeads = TokenHeads { sparse: true, multi_vector: Some(3) };

    fn tensors() -> Vec<u8> {
        file(&[
            ("sparse_linear.weight", Dtype::F32, &[1, 2], f32s(&[1.0, -2.0])),
            ("sparse_linear.bias", Dtype::F32, &[1], f32s(&[0.5])),
            ("colbert_linear.weight", Dtype::F32, &[3, 2], f32s(&[2.0, 0.0, 0.0, 3.0, 0.0, 0.0])),
            ("colbert_linear.bias", Dtype::F32, &[3], f32s(&[1.0, 1.0, 0.0])),
        ])
    }

    fn load(heads: TokenHeads, bytes: Vec<u8>) -> Result<TokenHeadWeights, String> {
        let header = Header::read(WEIGHTS, &bytes, heads.tensors(2).iter()).unwrap();
        heads.load(2, &header, &bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn token_outputs_match_hand_computed_values() {
        let heads = load(BOTH, tensors()).unwrap();
        assert_eq!(heads.weights(&[1.0, 0.0, 0.0, 1.0, 3.0, 1.0], 2), [1.5, 0.0, 1.5]);
        // Before they are scaled: [3, 4, 0] and [1, 0, 0].
        assert_eq!(heads.vectors(&[1.0, 1.0, 0.0, -1.0 / 3.0], 2), [0.6, 0.8, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(heads.vector_length(), 3);
        assert_eq!((heads.weight_bytes(), BOTH.bytes(2)), (12 * 4, 12 * 4));
    }

    #[test]
    fn many_tokens_get_the_outputs_of_single_ones() {
        let heads = load(BOTH, tensors()).unwrap();
        let tokens: Vec<f32> = (0_u8..2 * 21).map(|at| f32::from(at % 11) - 5.0).collect();
        let alone = |of: fn(&TokenHeadWeights, &[f32], usize) -> Vec<f32>| {
            tokens.chunks(2).flat_map(|token| of(&heads, token, 2)).collect::<Vec<_>>()
        };
        assert_eq!(heads.vectors(&tokens, 2), alone(TokenHeadWeights::vectors));
        assert_eq!(heads.weights(&tokens, 2), alone(TokenHeadWeights::weights));
    }

    #[test]
    fn nan_is_not_hidden() {
        let heads = load(BOTH, tensors()).unwrap();
        assert!(heads.weights(&[f32::NAN, 0.0], 2)[0].is_nan());
    }

    #[test]
    fn missing_head_is_refused() {
        let sparse = load(TokenHeads { sparse: true, multi_vector: None }, tensors()).unwrap();
        assert!(sparse.check(Output::TokenWeights).is_ok() && sparse.check(Output::Vector).is_ok());
        let error = sparse.check(Output::TokenVectors).unwrap_err();
        assert_eq!(error.to_string(), "the model has no multi-vector head");
        assert!(sparse.vectors(&[1.0, 1.0], 2).is_empty());
        let error = TokenHeadWeights::default().check(Output::TokenWeights).unwrap_err();
        assert_eq!(error.to_string(), "the model has no sparse head");
        let wide = TokenHeads { multi_vector: Some(4), ..BOTH };
        let error = load(wide, tensors()).err().unwrap();
        assert!(error.contains("colbert_linear") && error.contains("expected [4"), "{error}");
    }

    #[test]
    fn static_model_with_heads_is_refused() {
        let spec = ModelSpec { token_heads: BOTH, ..spec(Architecture::Static) };
        let error = refuse_token_heads(&spec).unwrap_err().to_string();
        assert!(error.contains("\"static\" has no token states"), "{error}");
    }

    #[test]
    fn late_interaction_averages_best_matches() {
        let query = [1.0, 0.0, 0.0, 1.0];
        let document = [0.6, 0.8, 1.0, 0.0, 0.0, -1.0];
        assert_eq!(max_sim(&query, &document, 2), f32::midpoint(1.0, 0.8));
        assert_eq!(max_sim(&query, &query, 2), 1.0);
        assert_eq!(max_sim(&query[..2], &[-1.0, 0.0], 2), -1.0);
        assert_eq!((max_sim(&[], &document, 2), max_sim(&query, &[], 2)), (0.0, 0.0));
    }
}
