//! Table of the models that Caxton knows by name, with facts that their model directories do not
//! state.
//!
//! Reads no files and fetches nothing. If a directory also states a fact, the package uses the
//! value of the directory; the table is then only used to check that the directory holds the named
//! model. The rows are in the submodules.
//!
//! Invariant: every field is a fact from the model's own repository. A fact that the repository
//! does not confirm is `None`. Sizes are computed ([`KnownModel::weights_size`]).

mod absolute;
mod modern;
mod rerankers;
mod sentence_transformers;

use super::manifest::{Manifest, Precision};
use crate::base::int4;
use crate::base::units::Bytes;

/// Address before the `owner/name` of a repository.
const REPOSITORIES: &str = "https://huggingface.co/";

/// Trade-off of a model between speed and quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Few layers and small vectors.
    Fast,
    /// Between `Fast` and `Quality`.
    Balanced,
    /// The best vectors, at several times the cost.
    Quality,
}

impl Tier {
    /// Returns the name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Balanced => "balanced",
            Self::Quality => "quality",
        }
    }

    /// Derives the tier of a model from its size. `dimensions` is `None` for a cross-encoder.
    ///
    /// - Fast: tables (static embeddings), and encoders with less than 30 million parameters, such
    ///   as 6 layers of 384.
    /// - Quality: encoders with at least 100 million parameters and 768 dimensions, such as 12
    ///   layers of 768.
    /// - Balanced: all others. Among them are small multilingual encoders, most of whose parameters
    ///   are word embeddings.
    pub fn of_size(architecture: &str, parameters: u64, dimensions: Option<usize>) -> Self {
        if architecture == "static" || parameters < 30_000_000 {
            Self::Fast
        } else if parameters >= 100_000_000 && dimensions.is_none_or(|length| length >= 768) {
            Self::Quality
        } else {
            Self::Balanced
        }
    }
}

/// Task for which a model was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Comparing sentences with each other: paraphrases, clusters.
    Similarity,
    /// Finding the passages that answer a query.
    Search,
    /// Finding code by a description of its function.
    CodeSearch,
    /// Scoring pairs of a query and a passage. Such a model is a cross-encoder and gives no
    /// vectors.
    Rerank,
}

impl Task {
    /// All tasks, in the order in which listings name them.
    pub const ALL: [Self; 4] = [Self::Similarity, Self::Search, Self::CodeSearch, Self::Rerank];

    /// Returns the name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Similarity => "similarity",
            Self::Search => "search",
            Self::CodeSearch => "code-search",
            Self::Rerank => "rerank",
        }
    }
}

/// Kind of tokenizer, which determines the memory that its words take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenizerKind {
    /// Words and their parts, as in BERT.
    WordPiece,
    /// Byte pair encoding.
    Bpe,
    /// Pieces with probabilities, as in XLM-RoBERTa.
    Unigram,
}

impl TokenizerKind {
    /// Returns the measured memory for each word, in bytes; see `engine::footprint`.
    const fn word_bytes(self) -> u64 {
        match self {
            Self::WordPiece => 210,
            Self::Bpe => 310,
            Self::Unigram => 1000,
        }
    }
}

/// Model that Caxton knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// Model id of its packages.
    pub id: &'static str,
    /// Other names by which [`find_known_model`] finds the model: those of other servers, and
    /// earlier names of the repository.
    pub other_names: &'static [&'static str],
    /// Repository on huggingface.co, as `owner/name`.
    pub repository: &'static str,
    /// Commit of the repository that the facts describe.
    pub revision: Option<&'static str>,
    /// Name that the models of one series share.
    pub family: &'static str,
    /// Architecture, as in manifests.
    pub architecture: &'static str,
    /// Length of the vectors; `None` for a cross-encoder.
    pub dimensions: Option<usize>,
    /// Smaller lengths to which vectors may be cut, because the model was trained for them
    /// (Matryoshka representation learning, <https://arxiv.org/abs/2205.13147>); ascending.
    pub matryoshka_dimensions: &'static [usize],
    /// Maximum input length in tokens, if the repository states it clearly.
    pub max_sequence_length: Option<usize>,
    /// Pooling, as in manifests.
    pub pooling: Option<&'static str>,
    /// Number of dense layers between pooling and normalization.
    pub dense_layers: Option<usize>,
    /// Whether the vectors have length 1.
    pub normalize: Option<bool>,
    /// Part of the model that Caxton does not compute, although it has the architecture.
    pub obstacle: Option<&'static str>,
    /// Languages, as BCP 47 tags; `mul` for many; empty if the repository names none.
    pub languages: &'static [&'static str],
    /// Prompts by name, for repositories whose files do not state them.
    pub prompts: &'static [(&'static str, &'static str)],
    /// SPDX expression of the licence; `None` if the repository states none.
    pub license: Option<&'static str>,
    /// Number of parameters, word embeddings included.
    pub parameters: u64,
    /// Number of rows of the table of word embeddings.
    pub words: u64,
    /// Length of a row of that table.
    pub width: u64,
    /// Kind of tokenizer.
    pub tokenizer: TokenizerKind,
    /// SHA-256 of the published `model.safetensors`, in hexadecimal.
    pub weights_sha256: Option<&'static str>,
    /// Tasks for which the model was trained, the main one first.
    pub tasks: &'static [Task],
    /// Id of the later model of the same publisher that replaces this one. Its vectors are not
    /// comparable.
    pub successor: Option<&'static str>,
    /// Description for listings, one line.
    pub description: &'static str,
}

impl KnownModel {
    /// Returns all names by which the model is found: id, repository and other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.id, self.repository].into_iter().chain(self.other_names.iter().copied())
    }

    /// Returns whether the model is a cross-encoder, which scores pairs of texts.
    pub fn is_reranker(&self) -> bool {
        self.tasks.contains(&Task::Rerank)
    }

    /// Returns the trade-off between speed and quality.
    pub fn tier(&self) -> Tier {
        Tier::of_size(self.architecture, self.parameters, self.dimensions)
    }

    /// Returns the approximate size of the weights in a package of `precision`: 4, 2 or 1 bytes
    /// for each parameter, and in int8 a scale of 4 bytes for each [`KnownModel::width`]
    /// parameters. In int4-table, the table of words has 18 bytes for each 32 parameters.
    pub const fn weights_size(&self, precision: Precision) -> Bytes {
        Bytes(match precision {
            Precision::F32 => 4 * self.parameters,
            Precision::F16 => 2 * self.parameters,
            Precision::Int8 => self.parameters + 4 * (self.parameters / self.width),
            Precision::Int4Table => {
                let table = self.words * self.width;
                let rest = self.parameters.saturating_sub(table);
                rest + 4 * (rest / self.width) + table / 32 * 18
            }
        })
    }

    /// Returns whether the table of words can be stored in 4 bits.
    pub fn allows_int4_table(&self) -> bool {
        self.architecture != "static" && self.width.is_multiple_of(int4::BLOCK as u64)
    }

    /// Returns the approximate memory of a package of `precision` on a processor that computes in
    /// it: the weights, and the words of the tokenizer. The memory of the longest passes is
    /// extra.
    pub const fn memory(&self, precision: Precision) -> Bytes {
        Bytes(self.weights_size(precision).0 + self.words * self.tokenizer.word_bytes())
    }
}

/// Row without facts, from which the rows of the table take the fields that they do not set.
const MODEL: KnownModel = KnownModel {
    id: "",
    other_names: &[],
    repository: "",
    revision: None,
    family: "",
    architecture: "bert",
    dimensions: None,
    matryoshka_dimensions: &[],
    max_sequence_length: None,
    pooling: None,
    dense_layers: Some(0),
    normalize: None,
    obstacle: None,
    languages: ENGLISH,
    prompts: &[],
    license: None,
    parameters: 0,
    words: BERT_WORDS,
    width: 768,
    tokenizer: TokenizerKind::WordPiece,
    weights_sha256: None,
    tasks: &[],
    successor: None,
    description: "",
};

/// Words of the uncased BERT.
const BERT_WORDS: u64 = 30_522;
/// Words of the uncased BERT, filled up to a multiple of 64.
const PADDED_BERT_WORDS: u64 = 30_528;
/// Words of XLM-RoBERTa.
const XLMR_WORDS: u64 = 250_002;

const ENGLISH: &[&str] = &["en"];
const MANY: &[&str] = &["mul"];

const APACHE: Option<&str> = Some("Apache-2.0");
const MIT: Option<&str> = Some("MIT");

/// Prompt of several publishers for queries in English.
const PASSAGES_PROMPT: &[(&str, &str)] =
    &[("query", "Represent this sentence for searching relevant passages: ")];

/// Returns every model that Caxton knows by name.
pub fn known_models() -> impl Iterator<Item = &'static KnownModel> {
    sentence_transformers::MODELS
        .iter()
        .chain(absolute::MODELS)
        .chain(modern::MODELS)
        .chain(rerankers::MODELS)
}

/// Finds a model by its id, by another name, or by the `owner/name` of its repository, in any case
/// of letters, and also with Ollama's tag `:latest`.
pub fn find_known_model(name: &str) -> Option<&'static KnownModel> {
    let name = name.strip_suffix(":latest").unwrap_or(name);
    known_models().find(|model| model.names().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Returns the known model that `manifest` describes: the one of the repository that its source
/// names, or without such a source, the one with its id.
pub fn known_model_of(manifest: &Manifest) -> Option<&'static KnownModel> {
    let source = manifest.source.as_deref().and_then(|source| source.strip_prefix(REPOSITORIES));
    let Some(repository) = source.map(|path| path.trim_end_matches('/')) else {
        return find_known_id(manifest.id.as_str());
    };
    let is_repository = |name: &str| name.contains('/') && name.eq_ignore_ascii_case(repository);
    known_models().find(|known| known.names().any(is_repository))
}

/// Finds a model by its exact id. Another name of a known model may be the id of any model of the
/// operator.
pub(super) fn find_known_id(id: &str) -> Option<&'static KnownModel> {
    known_models().find(|known| known.id == id)
}

#[cfg(test)]
mod tests;
