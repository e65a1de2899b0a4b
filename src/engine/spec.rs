//! Describes a model for the engine: its architecture and the steps after the encoder.
//!
//! Pure data. The caller may take it from a manifest or build it in a test.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Kind of model, spelled as `model_type` in a transformers `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// BERT and the models with its tensors (MiniLM, E5, BGE, GTE), and version 2 of jina-bert.
    Bert,
    /// CamemBERT: RoBERTa under its own name.
    Camembert,
    /// Versions 2 and 3 of DeBERTa.
    DebertaV2,
    /// DistilBERT.
    DistilBert,
    /// EmbeddingGemma 2, for texts.
    EmbeddingGemma2,
    /// EuroBERT.
    EuroBert,
    /// Gemma 3 for texts (EmbeddingGemma).
    Gemma3Text,
    /// GTE with rotary positions.
    Gte,
    /// ModernBERT.
    ModernBert,
    /// MPNet: BERT with a relative position bias.
    Mpnet,
    /// nomic-bert.
    NomicBert,
    /// Qwen3.
    Qwen3,
    /// RoBERTa.
    Roberta,
    /// A table of token vectors without layers (model2vec, `StaticEmbedding`). The name is Caxton's
    /// own: transformers has no `model_type` for it.
    Static,
    /// XLM-RoBERTa.
    XlmRoberta,
}

/// Encoders with the same tensor names and the same fields in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    DebertaV2,
    DistilBert,
    EmbeddingGemma2,
    EuroBert,
    Gemma3,
    Gte,
    /// Version 2 of jina-bert. Its architecture is [`Architecture::Bert`], as in its `config.json`.
    JinaBert,
    ModernBert,
    Mpnet,
    NomicBert,
    Qwen3,
    /// RoBERTa and CamemBERT.
    Roberta,
    XlmRoberta,
}

/// Code that runs an [`Architecture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    /// The fused encoder.
    Fused(Family),
    /// Lookup in the table of [`static_embedding`](super::static_embedding).
    Static,
}

impl Architecture {
    /// All architectures, in the order in which messages list them.
    pub const ALL: [Self; 15] = [
        Self::Bert,
        Self::Camembert,
        Self::DebertaV2,
        Self::DistilBert,
        Self::EmbeddingGemma2,
        Self::EuroBert,
        Self::Gemma3Text,
        Self::Gte,
        Self::ModernBert,
        Self::Mpnet,
        Self::NomicBert,
        Self::Qwen3,
        Self::Roberta,
        Self::Static,
        Self::XlmRoberta,
    ];

    /// Returns the name that manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Camembert => "camembert",
            Self::DebertaV2 => "deberta-v2",
            Self::DistilBert => "distilbert",
            Self::EmbeddingGemma2 => "embedding_gemma2",
            Self::EuroBert => "eurobert",
            Self::Gemma3Text => "gemma3_text",
            Self::Gte => "gte",
            Self::ModernBert => "modernbert",
            Self::Mpnet => "mpnet",
            Self::NomicBert => "nomic_bert",
            Self::Qwen3 => "qwen3",
            Self::Roberta => "roberta",
            Self::Static => "static",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// Returns the second `model_type` of the architecture in `config.json`, beside
    /// [`Architecture::name`].
    pub(super) const fn second_model_type(self) -> Option<&'static str> {
        match self {
            // The text part of a model of several media.
            Self::EmbeddingGemma2 => Some("embedding_gemma2_text"),
            // The name in the custom code that the published models have.
            Self::Gte => Some("new"),
            _ => None,
        }
    }

    pub(super) const fn runtime(self) -> Runtime {
        Runtime::Fused(match self {
            Self::Bert => Family::Bert,
            Self::Camembert | Self::Roberta => Family::Roberta,
            Self::DebertaV2 => Family::DebertaV2,
            Self::DistilBert => Family::DistilBert,
            Self::EmbeddingGemma2 => Family::EmbeddingGemma2,
            Self::EuroBert => Family::EuroBert,
            Self::Gemma3Text => Family::Gemma3,
            Self::Gte => Family::Gte,
            Self::ModernBert => Family::ModernBert,
            Self::Mpnet => Family::Mpnet,
            Self::NomicBert => Family::NomicBert,
            Self::Qwen3 => Family::Qwen3,
            Self::Static => return Runtime::Static,
            Self::XlmRoberta => Family::XlmRoberta,
        })
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
    /// Last token, which in a model with causal attention is the only one that sees all others.
    LastToken,
}

impl Pooling {
    /// All poolings, in the order in which messages list them.
    pub const ALL: [Self; 5] =
        [Self::Mean, Self::Cls, Self::Max, Self::MeanSqrtLen, Self::LastToken];

    /// Returns the name that manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len",
            Self::LastToken => "lasttoken",
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
    /// Number of scores of a classifier that reads pairs of texts; `None` for a model of vectors.
    /// The vector of a classifier is the input of its last layer.
    pub labels: Option<usize>,
    /// Whether the second text of a pair has token type 1, for a classifier whose encoder has two
    /// types.
    pub token_types: bool,
    /// Heads for tokens, beside the vector of the text.
    pub token_heads: TokenHeads,
}

/// Heads that compute an output for each token, beside the vector of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenHeads {
    /// Whether the model has a sparse head, which gives each token a weight.
    pub sparse: bool,
    /// Length of the vectors of the multi-vector head, which gives each token a vector; `None` if
    /// the model does not have it.
    pub multi_vector: Option<usize>,
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
    /// The table of words of an encoder may have 4 bits, with a `.scale` tensor.
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
        let known = "mean, cls, max, mean_sqrt_len, lasttoken";
        assert_eq!(error, format!("unknown pooling \"avg\"; known: {known}"));
    }
}
