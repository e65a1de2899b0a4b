//! Models with reference vectors.

use caxton::engine::{Activation, Architecture, DenseSpec, Pooling};

/// Model with reference vectors.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(super) architecture: Architecture,
    pub(super) dimensions: usize,
    pub(super) max_sequence_length: usize,
    pub(super) pooling: Pooling,
    pub(super) dense: &'static [DenseSpec],
    pub(super) normalize: bool,
    /// Prompts for which there are reference vectors.
    pub(super) prompts: &'static [(&'static str, &'static str)],
}

pub(crate) const MEAN: Case = Case {
    name: "tiny-bert-mean",
    architecture: Architecture::Bert,
    dimensions: 64,
    max_sequence_length: 48,
    pooling: Pooling::Mean,
    dense: &[],
    normalize: true,
    prompts: &[],
};

pub(super) const TINY: [Case; 13] = [
    MEAN,
    Case { name: "tiny-bert-f16", ..MEAN },
    Case { name: "tiny-bert-cls", max_sequence_length: 64, pooling: Pooling::Cls, ..MEAN },
    Case {
        name: "tiny-bert-max-raw",
        max_sequence_length: 64,
        pooling: Pooling::Max,
        normalize: false,
        ..MEAN
    },
    Case {
        name: "tiny-bert-odd",
        dimensions: 60,
        max_sequence_length: 40,
        pooling: Pooling::MeanSqrtLen,
        ..MEAN
    },
    Case { name: "tiny-e5", prompts: &[("query", "query: "), ("passage", "passage: ")], ..MEAN },
    Case {
        name: "tiny-distilbert",
        architecture: Architecture::DistilBert,
        normalize: false,
        ..MEAN
    },
    Case {
        name: "tiny-distiluse",
        architecture: Architecture::DistilBert,
        dimensions: 40,
        dense: &[DenseSpec {
            in_features: 64,
            out_features: 40,
            bias: true,
            activation: Activation::Tanh,
        }],
        normalize: false,
        ..MEAN
    },
    Case { name: "tiny-roberta", architecture: Architecture::Roberta, ..MEAN },
    Case { name: "tiny-xlm-roberta", architecture: Architecture::XlmRoberta, ..MEAN },
    Case { name: "tiny-mpnet", architecture: Architecture::Mpnet, ..MEAN },
    Case { name: "tiny-modernbert", architecture: Architecture::ModernBert, ..MEAN },
    Case {
        name: "tiny-static",
        architecture: Architecture::Static,
        max_sequence_length: 65_536,
        ..MEAN
    },
];

/// Case with the length limit of the newer families.
const NEWER: Case = Case { max_sequence_length: 96, ..MEAN };

const QWEN3: Case = Case { name: "tiny-qwen3", architecture: Architecture::Qwen3, ..NEWER };

/// Instruction before queries, for models that need one.
const INSTRUCTION: &str = "Instruct: Given a web search query, retrieve relevant passages that \
                           answer the query\nQuery:";

/// Prompts of EmbeddingGemma.
const GEMMA_PROMPTS: &[(&str, &str)] = &[
    ("query", "task: search result | query: "),
    ("document", "title: none | text: "),
    ("STS", "task: sentence similarity | query: "),
];

/// Prompts of nomic's models.
const NOMIC_PROMPTS: &[(&str, &str)] =
    &[("search_query", "search_query: "), ("search_document", "search_document: ")];

pub(super) const TINY_NEWER: [Case; 12] = [
    Case {
        name: "tiny-camembert",
        architecture: Architecture::Camembert,
        normalize: false,
        ..NEWER
    },
    Case {
        name: "tiny-nomic-bert",
        architecture: Architecture::NomicBert,
        normalize: false,
        prompts: NOMIC_PROMPTS,
        ..NEWER
    },
    Case { name: "tiny-gte", architecture: Architecture::Gte, pooling: Pooling::Cls, ..NEWER },
    Case { name: "tiny-gte-en", architecture: Architecture::Gte, pooling: Pooling::Cls, ..NEWER },
    Case {
        name: "tiny-modernbert-gelu",
        architecture: Architecture::ModernBert,
        prompts: NOMIC_PROMPTS,
        ..NEWER
    },
    Case {
        name: "tiny-modernbert-silu",
        architecture: Architecture::ModernBert,
        pooling: Pooling::Cls,
        ..NEWER
    },
    Case { name: "tiny-eurobert", architecture: Architecture::EuroBert, ..NEWER },
    Case {
        pooling: Pooling::LastToken,
        prompts: &[("query", INSTRUCTION), ("document", "")],
        ..QWEN3
    },
    Case { name: "tiny-qwen3-bidirectional", ..QWEN3 },
    Case {
        name: "tiny-gemma3-bidirectional",
        architecture: Architecture::Gemma3Text,
        dense: &[
            DenseSpec {
                in_features: 64,
                out_features: 128,
                bias: false,
                activation: Activation::Identity,
            },
            DenseSpec {
                in_features: 128,
                out_features: 64,
                bias: false,
                activation: Activation::Identity,
            },
        ],
        prompts: GEMMA_PROMPTS,
        ..NEWER
    },
    Case {
        name: "tiny-gemma3-causal",
        architecture: Architecture::Gemma3Text,
        pooling: Pooling::LastToken,
        prompts: &[("query", INSTRUCTION), ("document", "")],
        ..NEWER
    },
    Case {
        name: "tiny-embedding-gemma2",
        architecture: Architecture::EmbeddingGemma2,
        dimensions: 96,
        prompts: GEMMA_PROMPTS,
        ..NEWER
    },
];

pub(crate) const MINI_LM: Case =
    Case { name: "all-MiniLM-L6-v2", dimensions: 384, max_sequence_length: 256, ..MEAN };

pub(super) const MPNET: Case = Case {
    name: "all-mpnet-base-v2",
    architecture: Architecture::Mpnet,
    dimensions: 768,
    max_sequence_length: 384,
    ..MEAN
};
