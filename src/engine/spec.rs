//! Describes a model for the engine: its architecture and the steps after the encoder.
//!
//! Pure data. The caller may take it from a manifest or build it in a test.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Kind of model, spelled as `model_type` in a transformers `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// BERT and the models with its tensors (MiniLM, E5, BGE, GTE).
    Bert,
    /// DistilBERT.
    DistilBert,
    /// ModernBERT.
    ModernBert,
    /// MPNet: BERT with a relative position bias.
    Mpnet,
    /// RoBERTa.
    Roberta,
    /// A table of token vectors without layers (model2vec, `StaticEmbedding`). The name is Caxton's
    /// own: transformers has no `model_type` for it.
    Static,
    /// XLM-RoBERTa.
    XlmRoberta,
}

/// An [`Architecture`] that differs from the encoder of BERT only in names, positions and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    DistilBert,
    Mpnet,
    Roberta,
    XlmRoberta,
}

/// Code that runs an [`Architecture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    /// The fused encoder.
    Fused(Family),
    /// candle-transformers' ModernBERT.
    ModernBert,
    /// Lookup in the table of [`static_embedding`](super::static_embedding).
    Static,
}

impl Architecture {
    /// All architectures, in the order in which messages list them.
    pub const ALL: [Self; 7] = [
        Self::Bert,
        Self::DistilBert,
        Self::ModernBert,
        Self::Mpnet,
        Self::Roberta,
        Self::Static,
        Self::XlmRoberta,
    ];

    /// Returns the name that configurations and manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::ModernBert => "modernbert",
            Self::Mpnet => "mpnet",
            Self::Roberta => "roberta",
            Self::Static => "static",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    pub(super) const fn runtime(self) -> Runtime {
        match self {
            Self::Bert => Runtime::Fused(Family::Bert),
            Self::DistilBert => Runtime::Fused(Family::DistilBert),
            Self::ModernBert => Runtime::ModernBert,
            Self::Mpnet => Runtime::Fused(Family::Mpnet),
            Self::Roberta => Runtime::Fused(Family::Roberta),
            Self::Static => Runtime::Static,
            Self::XlmRoberta => Runtime::Fused(Family::XlmRoberta),
        }
    }
}

/// Method that reduces the token vectors of a text to one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Mean of all tokens.
    Mean,
    /// First token.
    Cls,
    /// Maximum of each dimension over all tokens.
    Max,
    /// Sum of all tokens, divided by the square root of their number.
    MeanSqrtLen,
}

impl Pooling {
    /// All poolings, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Max, Self::MeanSqrtLen];

    /// Returns the name that manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len",
        }
    }
}

/// Function that a dense layer applies after its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Identity: no change.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// All activations, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::Identity, Self::Tanh];

    /// Returns the name that manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Tanh => "tanh",
        }
    }
}

/// A name that does not match any known name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} \"{found}\"; known: {known}")]
pub struct UnknownName {
    kind: &'static str,
    found: String,
    known: String,
}

impl UnknownName {
    pub(super) fn new(kind: &'static str, found: &str, known: &[&str]) -> Self {
        Self { kind, found: found.to_owned(), known: known.join(", ") }
    }
}

macro_rules! names {
    ($type:ty, $kind:literal) => {
        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .into_iter()
                    .find(|value| value.name() == text)
                    .ok_or_else(|| UnknownName::new($kind, text, &Self::ALL.map(Self::name)))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names!(Architecture, "architecture");
names!(Pooling, "pooling");
names!(Activation, "activation");

/// A linear layer between pooling and normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseSpec {
    /// Length of the input vector.
    pub in_features: usize,
    /// Length of the output vector.
    pub out_features: usize,
    /// Whether the layer adds a bias.
    pub bias: bool,
    /// Activation after the product and the bias.
    pub activation: Activation,
}

/// Properties of a model that its files do not contain, or that its files must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// Kind of model.
    pub architecture: Architecture,
    /// Length of the final vectors.
    pub dimensions: usize,
    /// Maximum length of an input in tokens, special tokens included; longer texts are truncated.
    pub max_sequence_length: usize,
    /// Method that reduces token vectors to one vector.
    pub pooling: Pooling,
    /// Dense layers, in order.
    pub dense: Vec<DenseSpec>,
    /// Whether the final vector is scaled to length 1.
    pub normalize: bool,
}

/// Bytes of a weights file, in memory or in a mapped file.
///
/// An implementation must guarantee that [`WeightsFile::bytes`] always returns the same bytes at
/// the same address, also after [`WeightsFile::release`] and [`WeightsFile::forget`].
pub trait WeightsFile: Send + Sync {
    /// Returns all bytes.
    fn bytes(&self) -> &[u8];

    /// Accepts the hint that `range` of the bytes will not be read soon. The implementation may
    /// free the memory that the range occupies.
    fn release(&self, range: Range<usize>);

    /// Accepts the hint that `range` of the bytes will not be read again. The implementation may
    /// also drop the range from the page cache of the system.
    fn forget(&self, range: Range<usize>);

    /// Returns the memory of this process that the bytes occupy, in bytes. The count excludes pages
    /// of a mapped file, because the system can drop them and read them again.
    fn anonymous_bytes(&self) -> u64;
}

/// A file in memory, of which no part can be freed separately.
impl WeightsFile for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn release(&self, _range: Range<usize>) {}

    fn forget(&self, _range: Range<usize>) {}

    fn anonymous_bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// Verified contents of a model's files.
///
/// The engine takes bytes instead of paths, so that it uses exactly the bytes that were verified.
pub struct ModelFiles<W = Box<dyn WeightsFile>> {
    /// `config.json` of transformers. For static embeddings, it has only `model_type`, `vocab_size`
    /// and `hidden_size`.
    pub config: Vec<u8>,
    /// `tokenizer.json` of Hugging Face tokenizers.
    pub tokenizer: Vec<u8>,
    /// `model.safetensors`: f32, f16, bf16, or int8 with a `.scale` tensor for each int8 tensor.
    /// The file is kept for the lifetime of the model if the table of word embeddings is read in
    /// place.
    pub weights: W,
    /// One safetensors file for each [`DenseSpec`] of the [`ModelSpec`], in the same order.
    pub dense: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_names_round_trip() {
        for value in Architecture::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        for value in Pooling::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        for value in Activation::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        let error = "avg".parse::<Pooling>().unwrap_err().to_string();
        assert_eq!(error, "unknown pooling \"avg\"; known: mean, cls, max, mean_sqrt_len");
    }
}
