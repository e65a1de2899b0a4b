//! The head of a classifier: computes the scores of a pair of texts from its pooled token vector.
//!
//! A cross-encoder is an encoder with such a head: `*ForSequenceClassification` in transformers. It
//! reads a query and a document together, and its score states how relevant the document is. The
//! head has a dense layer with an activation, in ModernBERT also a LayerNorm, and a linear layer
//! with one output for each label. Its tensors are in the file of the encoder.
//!
//! The head is small and comes last, so it is computed in f32 in every precision.

use serde::Deserialize;

use super::config::{HiddenActivation, NormKind, parse, positive};
use super::simd::{Isa, PANEL_WIDTH, rowwise};
use super::spec::Family;
use super::tensor_names::{RequiredTensor, without_prefix};
use super::vector::dot;
use super::weights::{self, Header, Tensors, WEIGHTS};
use super::{EngineError, ModelSpec, Pooling, WeightsFile};

/// Shape of a head, and the names of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClassifierLayout {
    family: Family,
    hidden: usize,
    labels: usize,
    dense: &'static str,
    has_dense_bias: bool,
    activation: HeadActivation,
    norm: Option<NormLayout>,
    output: &'static str,
}

/// LayerNorm of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
struct NormLayout {
    kind: NormKind,
    epsilon: f64,
}

/// Name of the LayerNorm.
const NORM: &str = "head.norm";

/// Activation after the dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadActivation {
    Tanh,
    Hidden(HiddenActivation),
}

/// Fields of ModernBERT's `config.json` that concern the head.
#[derive(Deserialize)]
struct ModernBertHead {
    classifier_activation: Option<String>,
    classifier_pooling: Option<String>,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default)]
    norm_bias: bool,
    norm_eps: Option<f64>,
}

/// Fields of DeBERTa's `config.json` that concern the head.
#[derive(Deserialize)]
struct DebertaHead {
    pooler_hidden_act: Option<String>,
    pooler_hidden_size: Option<usize>,
}

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

impl ClassifierLayout {
    /// Reads the layout of the head of `spec` from the `config.json` of an encoder of `family`,
    /// which has `token_types` rows for token types. Returns `None` if `spec` describes a model of
    /// vectors.
    ///
    /// # Errors
    /// Returns an error if the family has no head here, or `config` or `spec` contradict its steps.
    pub(super) fn read(
        config: &[u8],
        (family, token_types): (Family, usize),
        spec: &ModelSpec,
    ) -> Result<Option<Self>, EngineError> {
        let Some(labels) = spec.labels else { return Ok(None) };
        if spec.token_types && token_types < 2 {
            return Err(mismatch(format!(
                "config.json: type_vocab_size is {token_types}, but the texts of a pair have two \
                 token types"
            )));
        }
        if labels != 1 {
            return Err(mismatch(format!("the classifier has {labels} labels; expected 1")));
        }
        if !spec.dense.is_empty() || spec.normalize {
            return Err(mismatch("a classifier has neither dense layers nor a normalization"));
        }
        let tanh = Self {
            family,
            hidden: spec.dimensions,
            labels,
            dense: "pooler.dense",
            has_dense_bias: true,
            activation: HeadActivation::Tanh,
            norm: None,
            output: "classifier",
        };
        let (layout, pooling) = match family {
            Family::Bert | Family::Gte | Family::JinaBert => (tanh, Pooling::Cls),
            Family::Mpnet | Family::Roberta | Family::XlmRoberta => {
                let (dense, output) = ("classifier.dense", "classifier.out_proj");
                (Self { dense, output, ..tanh }, Pooling::Cls)
            }
            Family::DistilBert => {
                let activation = HeadActivation::Hidden(HiddenActivation::Relu);
                (Self { dense: "pre_classifier", activation, ..tanh }, Pooling::Cls)
            }
            Family::DebertaV2 => {
                let head: DebertaHead = parse(config, spec)?;
                (head.layout(tanh)?, Pooling::Cls)
            }
            Family::ModernBert => {
                let head: ModernBertHead = parse(config, spec)?;
                head.layout(tanh)?
            }
            Family::EmbeddingGemma2
            | Family::EuroBert
            | Family::Gemma3
            | Family::NomicBert
            | Family::Qwen3 => {
                refuse_labels(spec)?;
                return Ok(None);
            }
        };
        if pooling != spec.pooling {
            return Err(mismatch(format!(
                "the classifier reads the pooling {pooling}, but the manifest has {}",
                spec.pooling
            )));
        }
        Ok(Some(layout))
    }

    fn tensors(&self) -> Vec<RequiredTensor> {
        let Self { hidden, labels, dense, output, .. } = *self;
        let mut tensors = vec![RequiredTensor::new(format!("{dense}.weight"), [hidden, hidden])];
        if self.has_dense_bias {
            tensors.push(RequiredTensor::new(format!("{dense}.bias"), [hidden]));
        }
        if let Some(norm) = self.norm {
            tensors.push(RequiredTensor::new(format!("{NORM}.weight"), [hidden]));
            if norm.kind == NormKind::LayerNorm {
                tensors.push(RequiredTensor::new(format!("{NORM}.bias"), [hidden]));
            }
        }
        tensors.push(RequiredTensor::new(format!("{output}.weight"), [labels, hidden]));
        tensors.push(RequiredTensor::new(format!("{output}.bias"), [labels]));
        tensors
    }

    /// Returns the memory of the head, in bytes, which is also its size in a package.
    pub(super) fn bytes(&self) -> u64 {
        let length = |tensor: &RequiredTensor| tensor.shape.iter().product::<usize>() as u64;
        self.tensors().iter().map(length).sum::<u64>().saturating_mul(size_of::<f32>() as u64)
    }

    /// Reads the head from the safetensors `file` of the encoder, which has this `header`.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing, or has another shape or type.
    pub(super) fn load(
        &self,
        header: &Header,
        file: &dyn WeightsFile,
    ) -> Result<ClassifierHead, EngineError> {
        let expected = self.tensors();
        let own = |name: &str| {
            // A matrix of integers has companions, whose names begin with its own.
            let name = without_prefix(self.family, name);
            let is_own = expected.iter().any(|tensor| {
                let rest = name.strip_prefix(tensor.name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            is_own.then(|| name.to_owned())
        };
        let tensors = weights::read_with(header, WEIGHTS, file, own, expected.iter().cloned())?;
        let linear = |name: &str| Linear {
            weight: values(&tensors, name, "weight"),
            bias: values(&tensors, name, "bias"),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the head computes in f32")]
        let norm = self.norm.map(|norm| HeadNorm {
            weight: values(&tensors, NORM, "weight"),
            bias: values(&tensors, NORM, "bias"),
            epsilon: norm.epsilon as f32,
        });
        Ok(ClassifierHead {
            isa: Isa::detect(),
            dense: linear(self.dense),
            activation: self.activation,
            norm,
            output: linear(self.output),
        })
    }
}

impl DebertaHead {
    /// Returns the layout of the head. `layout` has the sizes.
    fn layout(&self, layout: ClassifierLayout) -> Result<ClassifierLayout, EngineError> {
        if let Some(size) = self.pooler_hidden_size.filter(|&size| size != layout.hidden) {
            return Err(mismatch(format!(
                "config.json: pooler_hidden_size is {size}; only hidden_size {} is supported",
                layout.hidden
            )));
        }
        let activation = match self.pooler_hidden_act.as_deref().unwrap_or("gelu") {
            "tanh" => HeadActivation::Tanh,
            other => HeadActivation::Hidden(HiddenActivation::parse("pooler_hidden_act", other)?),
        };
        Ok(ClassifierLayout { activation, ..layout })
    }
}

impl ModernBertHead {
    /// Returns the layout of the head, with its pooling. `layout` has the sizes.
    fn layout(&self, layout: ClassifierLayout) -> Result<(ClassifierLayout, Pooling), EngineError> {
        let activation = self.classifier_activation.as_deref().unwrap_or("gelu");
        let activation = HiddenActivation::parse("classifier_activation", activation)?;
        // The defaults are those of transformers.
        let pooling = match self.classifier_pooling.as_deref() {
            Some("cls") | None => Pooling::Cls,
            Some("mean") => Pooling::Mean,
            Some(other) => {
                let other = super::quote::quote(other);
                return Err(mismatch(format!(
                    "config.json: classifier_pooling is {other}; known: cls, mean"
                )));
            }
        };
        let kind = match self.norm_bias {
            true => NormKind::LayerNorm,
            false => NormKind::LayerNormWithoutBias,
        };
        let epsilon = positive("norm_eps", self.norm_eps.unwrap_or(1e-5))?;
        let layout = ClassifierLayout {
            dense: "head.dense",
            has_dense_bias: self.classifier_bias,
            activation: HeadActivation::Hidden(activation),
            norm: Some(NormLayout { kind, epsilon }),
            ..layout
        };
        Ok((layout, pooling))
    }
}

/// Returns the values of a tensor; none if the head does not have it.
pub(super) fn values(tensors: &Tensors<'_>, name: &str, part: &str) -> Vec<f32> {
    tensors.get(&format!("{name}.{part}")).map(weights::Tensor::values).unwrap_or_default()
}

/// Linear layer.
struct Linear {
    /// Weights, `[out, in]`.
    weight: Vec<f32>,
    /// Bias, `[out]`; empty if the layer has none.
    bias: Vec<f32>,
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
struct HeadNorm {
    weight: Vec<f32>,
    /// Bias; empty if the norm has none.
    bias: Vec<f32>,
    epsilon: f32,
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
pub(super) struct ClassifierHead {
    isa: Isa,
    dense: Linear,
    activation: HeadActivation,
    norm: Option<HeadNorm>,
    output: Linear,
}

impl ClassifierHead {
    /// Computes the input of the last layer, `[hidden]`, from a pooled token vector.
    pub(super) fn features(&self, pooled: &[f32]) -> Vec<f32> {
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
    pub(super) fn logits(&self, features: &[f32]) -> Vec<f32> {
        self.output.apply(features)
    }

    /// Returns the number of scores.
    pub(super) fn labels(&self) -> usize {
        self.output.bias.len()
    }

    /// Returns the memory of the weights, in bytes.
    pub(super) fn weight_bytes(&self) -> u64 {
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

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::engine::config::tests::spec;
    use crate::engine::weights::tests::{f32s, file};
    use crate::engine::{Architecture, DenseSpec};

    fn classifier(architecture: Architecture) -> ModelSpec {
        let pooling = Pooling::Cls;
        ModelSpec {
            labels: Some(1),
            dimensions: 2,
            pooling,
            normalize: false,
            ..spec(architecture)
        }
    }

    fn layout(family: Family, spec: &ModelSpec, config: &str) -> Result<ClassifierLayout, String> {
        let layout = ClassifierLayout::read(config.as_bytes(), (family, 2), spec);
        layout.map(Option::unwrap).map_err(|error| error.to_string())
    }

    fn load(layout: &ClassifierLayout, bytes: Vec<u8>) -> Result<ClassifierHead, String> {
        let header = Header::read(WEIGHTS, &bytes, layout.tensors().iter()).unwrap();
        layout.load(&header, &bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn tanh_head_is_computed_by_hand() {
        let spec = classifier(Architecture::Bert);
        let layout = layout(Family::Bert, &spec, "{}").unwrap();
        // The tensors of the encoder are ignored, and the prefix is optional.
        let bytes = file(&[
            ("bert.encoder.x", Dtype::F32, &[1], f32s(&[9.0])),
            ("bert.pooler.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.5, 0.5])),
            ("bert.pooler.dense.bias", Dtype::F32, &[2], f32s(&[0.0, 1.0])),
            ("classifier.weight", Dtype::F32, &[1, 2], f32s(&[2.0, -1.0])),
            ("classifier.bias", Dtype::F32, &[1], f32s(&[0.25])),
        ]);
        let head = load(&layout, bytes).unwrap();
        let features = head.features(&[0.5, -0.5]);
        assert_eq!(features, [0.5_f32.tanh(), 1.0_f32.tanh()]);
        let expected = 2.0 * features[0] - features[1] + 0.25;
        assert_eq!((head.logits(&features), head.labels()), (vec![expected], 1));
        assert_eq!(head.weight_bytes(), layout.bytes());
        assert_eq!(layout.bytes(), 9 * 4);
    }

    #[test]
    fn modernbert_head_normalizes() {
        let spec = ModelSpec { pooling: Pooling::Mean, ..classifier(Architecture::ModernBert) };
        let config = r#"{"model_type": "modernbert", "classifier_pooling": "mean",
            "classifier_activation": "relu", "norm_eps": 1e-12}"#;
        let layout = layout(Family::ModernBert, &spec, config).unwrap();
        let bytes = file(&[
            ("model.final_norm.weight", Dtype::F32, &[1], f32s(&[9.0])),
            ("head.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.0, 1.0])),
            ("head.norm.weight", Dtype::F32, &[2], f32s(&[1.0, 2.0])),
            ("classifier.weight", Dtype::F32, &[1, 2], f32s(&[1.0, 1.0])),
            ("classifier.bias", Dtype::F32, &[1], f32s(&[0.0])),
        ]);
        let head = load(&layout, bytes).unwrap();
        let features = head.features(&[-3.0, 4.0]);
        assert!((features[0] + 1.0).abs() < 1e-5 && (features[1] - 2.0).abs() < 1e-5);
        assert!((head.logits(&features)[0] - 1.0).abs() < 1e-5);
        assert_eq!(head.weight_bytes(), layout.bytes());
    }

    #[test]
    fn deberta_names_the_activation_of_its_head() {
        let spec = classifier(Architecture::DebertaV2);
        for (field, expected) in [
            ("", HeadActivation::Hidden(HiddenActivation::Gelu)),
            (r#", "pooler_hidden_act": "tanh""#, HeadActivation::Tanh),
        ] {
            let config = format!(r#"{{"model_type": "deberta-v2"{field}}}"#);
            let layout = layout(Family::DebertaV2, &spec, &config).unwrap();
            assert_eq!((layout.activation, layout.dense), (expected, "pooler.dense"));
        }
    }

    #[test]
    fn contradictory_head_is_refused() {
        let bert = classifier(Architecture::Bert);
        let modern = classifier(Architecture::ModernBert);
        let dense = DenseSpec {
            in_features: 2,
            out_features: 2,
            bias: false,
            activation: crate::engine::Activation::Identity,
        };
        let modern_config = |field: &str| format!(r#"{{"model_type": "modernbert", {field}}}"#);
        let deberta = classifier(Architecture::DebertaV2);
        let deberta_config = |field: &str| format!(r#"{{"model_type": "deberta-v2", {field}}}"#);
        let cases = [
            (
                Family::Bert,
                ModelSpec { labels: Some(3), ..bert.clone() },
                "{}".to_owned(),
                "3 labels",
            ),
            (
                Family::Bert,
                ModelSpec { dense: vec![dense], ..bert.clone() },
                "{}".to_owned(),
                "neither dense layers nor a normalization",
            ),
            (
                Family::Bert,
                ModelSpec { pooling: Pooling::Mean, ..bert },
                "{}".to_owned(),
                "the classifier reads the pooling cls, but the manifest has mean",
            ),
            (
                Family::Qwen3,
                classifier(Architecture::Qwen3),
                "{}".to_owned(),
                "the architecture \"qwen3\" is not supported for a classifier",
            ),
            (
                Family::ModernBert,
                modern.clone(),
                modern_config(r#""classifier_pooling": "max""#),
                "classifier_pooling is \"max\"; known: cls, mean",
            ),
            (
                Family::ModernBert,
                modern.clone(),
                modern_config(r#""classifier_activation": "mish""#),
                "classifier_activation is \"mish\"",
            ),
            (Family::ModernBert, modern, modern_config(r#""norm_eps": 0"#), "norm_eps is 0"),
            (
                Family::DebertaV2,
                deberta.clone(),
                deberta_config(r#""pooler_hidden_size": 3"#),
                "pooler_hidden_size is 3; only hidden_size 2 is supported",
            ),
            (
                Family::DebertaV2,
                deberta,
                deberta_config(r#""pooler_hidden_act": "mish""#),
                "pooler_hidden_act is \"mish\"",
            ),
        ];
        for (family, spec, config, expected) in cases {
            let error = ClassifierLayout::read(config.as_bytes(), (family, 2), &spec).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let typed = ModelSpec { token_types: true, ..classifier(Architecture::Bert) };
        assert!(ClassifierLayout::read(b"{}", (Family::Bert, 2), &typed).is_ok());
        let error = ClassifierLayout::read(b"{}", (Family::Bert, 1), &typed).unwrap_err();
        assert!(error.to_string().contains("type_vocab_size is 1, but the texts"), "{error}");
        assert!(refuse_labels(&classifier(Architecture::Static)).is_err());
        let vectors = spec(Architecture::Bert);
        assert_eq!(ClassifierLayout::read(b"", (Family::Bert, 2), &vectors).unwrap(), None);
    }

    #[test]
    fn missing_tensor_is_named() {
        let layout = layout(Family::Roberta, &classifier(Architecture::Roberta), "{}").unwrap();
        let bytes = file(&[
            ("classifier.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.5, 0.5])),
            ("classifier.dense.bias", Dtype::F32, &[2], f32s(&[0.0, 1.0])),
            ("classifier.out_proj.weight", Dtype::F32, &[2, 2], f32s(&[0.0; 4])),
        ]);
        let error = load(&layout, bytes).err().unwrap();
        let expected = "tensor \"classifier.out_proj.weight\" has shape [2, 2], expected [1, 2]";
        assert_eq!(error, format!("model.safetensors: {expected}"));
    }
}
