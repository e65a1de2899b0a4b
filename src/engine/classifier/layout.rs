//! The shape of a head in each family, and the names of its tensors.

use serde::Deserialize;

use super::head::{ClassifierHead, HeadActivation, HeadNorm, Linear};
use super::{mismatch, refuse_labels, values};
use crate::engine::config::{HiddenActivation, NormKind, parse, positive};
use crate::engine::quote::quote;
use crate::engine::simd::Isa;
use crate::engine::spec::Family;
use crate::engine::tensor_names::{RequiredTensor, without_prefix};
use crate::engine::weights::{self, Header, WEIGHTS};
use crate::engine::{EngineError, ModelSpec, Pooling, WeightsFile};

/// Shape of a head, and the names of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct ClassifierLayout {
    family: Family,
    hidden: usize,
    labels: usize,
    pub(super) dense: &'static str,
    has_dense_bias: bool,
    pub(super) activation: HeadActivation,
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

impl ClassifierLayout {
    /// Reads the layout of the head of `spec` from the `config.json` of an encoder of `family`,
    /// which has `token_types` rows for token types. Returns `None` if `spec` describes a model of
    /// vectors.
    ///
    /// # Errors
    /// Returns an error if the family has no head here, or `config` or `spec` contradict its steps.
    pub(in crate::engine) fn read(
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

    pub(super) fn tensors(&self) -> Vec<RequiredTensor> {
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
    pub(in crate::engine) fn bytes(&self) -> u64 {
        let length = |tensor: &RequiredTensor| tensor.shape.iter().product::<usize>() as u64;
        self.tensors().iter().map(length).sum::<u64>().saturating_mul(size_of::<f32>() as u64)
    }

    /// Reads the head from the safetensors `file` of the encoder, which has this `header`.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing, or has another shape or type.
    pub(in crate::engine) fn load(
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
                let other = quote(other);
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
