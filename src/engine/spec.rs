//! What a model is, as the engine needs to know it: its shape and the steps after the encoder.
//!
//! Pure data. Where it comes from (a manifest, a test) is not the engine's business.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The kind of model, as `model_type` in a transformers `config.json` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// BERT and what shares its tensors (MiniLM, E5, BGE, GTE).
    Bert,
    /// DistilBERT.
    DistilBert,
    /// ModernBERT.
    ModernBert,
    /// MPNet: BERT with a relative position bias.
    Mpnet,
    /// RoBERTa.
    Roberta,
    /// A table of token vectors and no layers (model2vec, `StaticEmbedding`); transformers has no
    /// such `model_type`.
    Static,
    /// XLM-RoBERTa.
    XlmRoberta,
}

/// An [`Architecture`] that is the encoder of BERT but for names, positions and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    DistilBert,
    Mpnet,
    Roberta,
    XlmRoberta,
}

/// What runs an [`Architecture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    /// The fused encoder.
    Fused(Family),
    /// candle-transformers' ModernBERT.
    ModernBert,
    /// A look-up.
    Static,
}

impl Architecture {
    /// Every architecture, in the order in which messages list them.
    pub const ALL: [Self; 7] = [
        Self::Bert,
        Self::DistilBert,
        Self::ModernBert,
        Self::Mpnet,
        Self::Roberta,
        Self::Static,
        Self::XlmRoberta,
    ];

    /// The name in configurations and manifests.
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

/// How the token vectors of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The largest value of each dimension over all tokens.
    Max,
    /// The sum over all tokens, divided by the square root of their number.
    MeanSqrtLen,
}

impl Pooling {
    /// Every pooling, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Max, Self::MeanSqrtLen];

    /// The name in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len",
        }
    }
}

/// What a dense layer applies after its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Every activation, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::Identity, Self::Tanh];

    /// The name in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Tanh => "tanh",
        }
    }
}

/// A name that none of the known ones equals.
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

/// A linear layer between pooling and normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Length of its input vector.
    pub in_features: usize,
    /// Length of its output vector.
    pub out_features: usize,
    /// Whether it adds a bias.
    pub bias: bool,
    /// What it applies last.
    pub activation: Activation,
}

/// Everything about a model that is not in its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// What kind of model it is.
    pub architecture: Architecture,
    /// Length of the vectors that come out at the end.
    pub dimensions: usize,
    /// Longest input in tokens, special tokens included; longer texts are truncated.
    pub max_sequence_length: usize,
    /// How token vectors become one vector.
    pub pooling: Pooling,
    /// Dense layers, in order.
    pub dense: Vec<Dense>,
    /// Whether the vector is scaled to length 1 at the end.
    pub normalize: bool,
}

/// The bytes of a weights file, wherever they lie: in memory, or in a file that is mapped.
///
/// Whoever implements it promises that [`WeightsFile::bytes`] gives the same bytes at the same
/// place each time, before and after [`WeightsFile::release`] and [`WeightsFile::forget`].
pub trait WeightsFile: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Hears that `range` of the bytes will not be read for a while, and may give back the memory that
    /// it takes.
    fn release(&self, range: Range<usize>);

    /// Hears that `range` of the bytes will not be read again, and may give back what the system keeps
    /// of it too.
    fn forget(&self, range: Range<usize>);

    /// Memory of this process that the bytes take, in bytes; without what belongs to a file, from
    /// which the system reads it again when it is needed.
    fn anonymous_bytes(&self) -> u64;
}

/// In memory: nothing of it can be given back alone.
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

/// The verified contents of a model's files.
///
/// Bytes and not paths: what was checked is what is used.
pub struct ModelFiles<W = Box<dyn WeightsFile>> {
    /// `config.json` of transformers; of static embeddings `model_type`, `vocab_size` and
    /// `hidden_size` alone.
    pub config: Vec<u8>,
    /// `tokenizer.json` of Hugging Face tokenizers.
    pub tokenizer: Vec<u8>,
    /// `model.safetensors`: f32, f16, bf16, or int8 with a `.scale` beside each int8 tensor. Kept as
    /// long as the model: the table of words is read in place.
    pub weights: W,
    /// One safetensors file for each [`Dense`] of the [`ModelSpec`], in its order.
    pub dense: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
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
