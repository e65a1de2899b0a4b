//! Computes the vector of a text from its token vectors: pooling, dense layers, normalization. Or
//! the scores of a pair of texts: pooling, and the head of a classifier.
//!
//! Pure arithmetic on f32 slices, the same for every encoder. The formulas are those of the modules
//! `Pooling`, `DenseSpec` and `Normalize` of sentence-transformers:
//! <https://github.com/UKPLab/sentence-transformers/blob/13b4da229038847bad09d663918f0a489cc00775/sentence_transformers/models/Pooling.py>

use super::classifier::ClassifierHead;
use super::tensor_names::RequiredTensor;
use super::token_heads::TokenHeadWeights;
use super::vector::{dot, normalize};
use super::weights;
use super::{Activation, DenseSpec, EngineError, ModelSpec, Output, Pooling, WeightsFile};

/// Steps after the encoder.
pub(super) struct PoolingHead {
    pooling: Pooling,
    dense: Vec<DenseLayer>,
    normalize: bool,
    classifier: Option<ClassifierHead>,
    token_heads: TokenHeadWeights,
}

impl PoolingHead {
    /// Reads the steps of `spec`, with the safetensors file of each dense layer in `files`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or does not match `spec`.
    pub(super) fn read(spec: &ModelSpec, files: &[Vec<u8>]) -> Result<Self, EngineError> {
        if spec.dense.len() != files.len() {
            return Err(EngineError::Mismatch(format!(
                "the manifest has {} dense layers, and the package has files for {}",
                spec.dense.len(),
                files.len()
            )));
        }
        let layers = spec.dense.iter().zip(files).enumerate();
        let dense = layers
            .map(|(index, (dense, file))| DenseLayer::read(index, *dense, file))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pooling: spec.pooling,
            dense,
            normalize: spec.normalize,
            classifier: None,
            token_heads: TokenHeadWeights::default(),
        })
    }

    /// Adds the head of a classifier, whose weights are in the file of the encoder.
    pub(super) fn with_classifier(self, classifier: Option<ClassifierHead>) -> Self {
        Self { classifier, ..self }
    }

    /// Adds the heads for tokens, whose weights are in the file of the encoder.
    pub(super) fn with_token_heads(self, token_heads: TokenHeadWeights) -> Self {
        Self { token_heads, ..self }
    }

    /// Checks that the model computes `output`.
    ///
    /// # Errors
    /// Returns [`EngineError::NoScores`] for [`Output::Logits`] of a model of vectors, and
    /// [`EngineError::NoTokenHead`] for an output of a head that the model does not have.
    pub(super) fn check(&self, output: Output) -> Result<(), EngineError> {
        match output {
            Output::Logits if self.classifier.is_none() => Err(EngineError::NoScores),
            _ => self.token_heads.check(output),
        }
    }

    /// Returns the number of scores of a pair; 0 for a model of vectors.
    pub(super) fn labels(&self) -> usize {
        self.classifier.as_ref().map_or(0, ClassifierHead::labels)
    }

    /// Returns the length of the vector of a token from the multi-vector head; 0 without the head.
    pub(super) fn token_vector_length(&self) -> usize {
        self.token_heads.vector_length()
    }

    /// Computes `output` of a text from its token vectors `tokens`, `[length, hidden]` row-major.
    pub(super) fn apply(&self, tokens: &[f32], hidden: usize, output: Output) -> Vec<f32> {
        match output {
            Output::TokenStates => return tokens.to_vec(),
            Output::TokenWeights => return self.token_heads.weights(tokens, hidden),
            Output::TokenVectors => return self.token_heads.vectors(tokens, hidden),
            Output::Vector | Output::Unnormalized | Output::Logits => {}
        }
        let mut vector = pool(self.pooling, tokens, hidden);
        if let Some(classifier) = &self.classifier {
            let features = classifier.features(&vector);
            let is_score = output == Output::Logits;
            return if is_score { classifier.logits(&features) } else { features };
        }
        for layer in &self.dense {
            vector = layer.apply(&vector);
        }
        if self.normalize && output == Output::Vector {
            normalize(&mut vector);
        }
        vector
    }

    /// Estimates the memory of the dense layers of `spec` before they are read, in bytes.
    pub(super) fn bytes_of(spec: &ModelSpec) -> u64 {
        let values = |layer: &DenseSpec| {
            let (weights, bias) = (layer.in_features, usize::from(layer.bias));
            (weights as u64 + bias as u64).saturating_mul(layer.out_features as u64)
        };
        let values = spec.dense.iter().map(values).fold(0, u64::saturating_add);
        values.saturating_mul(size_of::<f32>() as u64)
    }

    /// Returns the memory of the dense layers and of the other heads, in bytes.
    pub(super) fn weight_bytes(&self) -> u64 {
        let dense = self
            .dense
            .iter()
            .map(|layer| size_of_val(layer.weight.as_slice()) + size_of_val(layer.bias.as_slice()))
            .sum::<usize>() as u64;
        let classifier = self.classifier.as_ref().map_or(0, ClassifierHead::weight_bytes);
        dense + classifier + self.token_heads.weight_bytes()
    }
}

/// Dense layer that computes `activation(weight · x + bias)`.
struct DenseLayer {
    /// Weights, `[out, in]`.
    weight: Vec<f32>,
    /// Bias, `[out]`; empty if the layer has none.
    bias: Vec<f32>,
    in_features: usize,
    activation: Activation,
}

impl DenseLayer {
    fn read(index: usize, dense: DenseSpec, file: &dyn WeightsFile) -> Result<Self, EngineError> {
        // `chunks_exact` in `apply` panics for a length of 0.
        if dense.in_features == 0 {
            return Err(EngineError::Mismatch(format!("dense layer {index} has no inputs")));
        }
        let weight = RequiredTensor::new("linear.weight", [dense.out_features, dense.in_features]);
        let bias = dense.bias.then(|| RequiredTensor::new("linear.bias", [dense.out_features]));
        let mut weights = weights::read(
            &format!("dense.{index}.safetensors"),
            file,
            |name| Some(name.to_owned()),
            [weight].into_iter().chain(bias),
        )?;
        let mut values = |name| weights.remove(name).map(|tensor| tensor.values());
        let bias = values("linear.bias").unwrap_or_default();
        let weight = values("linear.weight").unwrap_or_default();
        Ok(Self { weight, bias, in_features: dense.in_features, activation: dense.activation })
    }

    fn apply(&self, input: &[f32]) -> Vec<f32> {
        let mut output: Vec<f32> =
            self.weight.chunks_exact(self.in_features).map(|row| dot(row, input)).collect();
        for (value, bias) in output.iter_mut().zip(&self.bias) {
            *value += bias;
        }
        match self.activation {
            Activation::Identity => {}
            Activation::Tanh => output.iter_mut().for_each(|value| *value = value.tanh()),
        }
        output
    }
}

/// Pools `tokens`, `[length, hidden]` with at least one row, into one vector of length `hidden`.
///
/// A NaN in `tokens` stays visible in the result; `f32::max` alone would hide it.
fn pool(pooling: Pooling, tokens: &[f32], hidden: usize) -> Vec<f32> {
    let width = hidden.min(tokens.len());
    #[expect(clippy::cast_precision_loss, reason = "a text has far fewer than 2^24 tokens")]
    let length = (tokens.len() / hidden.max(1)) as f32;
    match pooling {
        Pooling::Cls => tokens[..width].to_vec(),
        Pooling::LastToken => tokens[tokens.len() - width..].to_vec(),
        Pooling::Max => {
            let larger = |max: f32, value| if max >= value || max.is_nan() { max } else { value };
            fold(tokens, width, larger)
        }
        Pooling::Mean => divided_sum(tokens, width, length),
        Pooling::MeanSqrtLen => divided_sum(tokens, width, length.sqrt()),
    }
}

/// Returns the sum of the rows of `tokens`, `[length, width]`, divided by `divisor`.
fn divided_sum(tokens: &[f32], width: usize, divisor: f32) -> Vec<f32> {
    let mut pooled = fold(tokens, width, |sum, value| sum + value);
    pooled.iter_mut().for_each(|value| *value /= divisor);
    pooled
}

/// Folds the rows of `tokens`, `[length, width]`, into the first one.
fn fold(tokens: &[f32], width: usize, with: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let (first, rest) = tokens.split_at(width);
    let mut pooled = first.to_vec();
    for token in rest.chunks_exact(width.max(1)) {
        for (value, other) in pooled.iter_mut().zip(token) {
            *value = with(*value, *other);
        }
    }
    pooled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::Dtype;

    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::spec;
    use crate::engine::weights::tests::{f32s, file};

    #[test]
    fn pooling_matches_hand_computed_values() {
        let tokens = [1.0, -2.0, 3.0, -4.0, 5.0, -9.0, 7.0, -5.0];
        let cases = [
            (Pooling::Mean, [4.0, -5.0]),
            (Pooling::Cls, [1.0, -2.0]),
            (Pooling::Max, [7.0, -2.0]),
            (Pooling::MeanSqrtLen, [8.0, -10.0]),
            (Pooling::LastToken, [7.0, -5.0]),
        ];
        for (pooling, expected) in cases {
            assert_eq!(pool(pooling, &tokens, 2), expected, "{pooling}");
            assert_eq!(pool(pooling, &tokens[..2], 2), [1.0, -2.0], "{pooling} of one token");
        }
    }

    #[test]
    fn nan_survives_pooling() {
        for tokens in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [1.0, 2.0, f32::NAN]] {
            for pooling in [Pooling::Mean, Pooling::Max, Pooling::MeanSqrtLen] {
                assert!(pool(pooling, &tokens, 1)[0].is_nan(), "{pooling}");
            }
        }
    }

    #[test]
    fn zero_vector_stays_zero_when_normalized() {
        let mut vector = [0.0; 3];
        normalize(&mut vector);
        assert_eq!(vector, [0.0; 3]);
        let mut vector = [3.0, -4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
    }

    fn head(dense: Vec<DenseSpec>, files: &[Vec<u8>]) -> Result<PoolingHead, String> {
        let mut spec = spec(Architecture::Bert);
        spec.dense = dense;
        PoolingHead::read(&spec, files).map_err(|error| error.to_string())
    }

    const DENSE: DenseSpec =
        DenseSpec { in_features: 3, out_features: 2, bias: true, activation: Activation::Identity };

    fn dense_file() -> Vec<u8> {
        file(&[
            ("linear.weight", Dtype::F32, &[2, 3], f32s(&[1.0, 2.0, 3.0, 0.5, 0.0, -0.5])),
            ("linear.bias", Dtype::F32, &[2], f32s(&[10.0, 1.0])),
        ])
    }

    #[test]
    fn dense_layers_are_applied_after_pooling() {
        let head_identity = head(vec![DENSE], &[dense_file()]).unwrap();
        assert_eq!(head_identity.apply(&[1.0, 1.0, 2.0], 3, Output::Vector), [19.0, 0.5]);
        assert_eq!(head_identity.weight_bytes(), 8 * 4);
        let tanh = DenseSpec { activation: Activation::Tanh, ..DENSE };
        let head_tanh = head(vec![tanh], &[dense_file()]).unwrap();
        assert_eq!(
            head_tanh.apply(&[1.0, 1.0, 2.0], 3, Output::Vector),
            [19.0_f32.tanh(), 0.5_f32.tanh()]
        );
    }

    #[test]
    fn mismatched_dense_file_is_refused() {
        let cases = [
            (
                DenseSpec { bias: false, ..DENSE },
                "tensor \"linear.bias\" [2] is not part of this model",
            ),
            (
                DenseSpec { out_features: 4, ..DENSE },
                "tensor \"linear.weight\" has shape [2, 3], expected [4, 3]",
            ),
        ];
        for (dense, message) in cases {
            let error = head(vec![dense], &[dense_file()]).err().unwrap();
            assert_eq!(error, format!("dense.0.safetensors: {message}"));
        }
        let error = head(vec![DENSE], &[]).err().unwrap();
        assert_eq!(error, "the manifest has 1 dense layers, and the package has files for 0");
        let nothing = DenseSpec { in_features: 0, ..DENSE };
        let error = head(vec![nothing], &[dense_file()]).err().unwrap();
        assert_eq!(error, "dense layer 0 has no inputs");
    }

    proptest! {
        #[test]
        fn pooling_stays_between_the_extremes(
            tokens in prop::collection::vec(-1e3_f32..1e3, 1..40),
        ) {
            let least = tokens.iter().copied().fold(f32::INFINITY, f32::min);
            let most = tokens.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(pool(Pooling::Max, &tokens, 1), [most]);
            prop_assert_eq!(pool(Pooling::Cls, &tokens, 1), [tokens[0]]);
            prop_assert_eq!(pool(Pooling::LastToken, &tokens, 1), [tokens[tokens.len() - 1]]);
            let mean = pool(Pooling::Mean, &tokens, 1)[0];
            prop_assert!(least - 1e-2 <= mean && mean <= most + 1e-2);
        }
    }
}
