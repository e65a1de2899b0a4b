//! Table of the models that Caxton knows by name, with facts that their model directories do not
//! state.
//!
//! Reads no files and fetches nothing. If a directory also states a fact, the package uses the
//! value of the directory; the table is then only used to check that the directory holds the named
//! model.
//!
//! Invariant: every field is a fact from the model's own repository. A fact that the repository
//! does not confirm is `None`.

use crate::base::units::Bytes;

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
}

impl Task {
    /// Returns the name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Similarity => "similarity",
            Self::Search => "search",
            Self::CodeSearch => "code-search",
        }
    }
}

/// Model that Caxton knows by name.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// Model id of its packages.
    pub id: &'static str,
    /// Other names by which [`find_known_model`] finds the model.
    pub other_names: &'static [&'static str],
    /// Repository on huggingface.co, as `owner/name`.
    pub repository: &'static str,
    /// Architecture: `model_type` of the encoder.
    pub architecture: &'static str,
    /// Length of the vectors.
    pub dimensions: usize,
    /// Maximum input length in tokens, if the repository states it clearly.
    pub max_sequence_length: Option<usize>,
    /// Pooling: `mean`, `cls`, `max` or `mean_sqrt_len`.
    pub pooling: &'static str,
    /// Whether the vectors have length 1.
    pub normalize: bool,
    /// Languages, as BCP 47 tags; `mul` for many; empty if the repository names none.
    pub languages: &'static [&'static str],
    /// Prompts by name, for repositories whose files do not state them.
    pub prompts: &'static [(&'static str, &'static str)],
    /// SPDX expression of the licence; `None` if the repository states none.
    pub license: Option<&'static str>,
    /// Approximate size of the installed weights in f32.
    pub f32_size: Bytes,
    /// Approximate size of the installed weights in int8.
    pub int8_size: Bytes,
    /// Trade-off between speed and quality.
    pub tier: Tier,
    /// Tasks for which the model was trained.
    pub tasks: &'static [Task],
    /// Description for listings, one line.
    pub description: &'static str,
}

const fn megabytes(count: u64) -> Bytes {
    Bytes(count * 1_000_000)
}

const ENGLISH: &[&str] = &["en"];
const MANY: &[&str] = &["mul"];

static KNOWN: [KnownModel; 10] = [
    KnownModel {
        id: "all-MiniLM-L6-v2",
        other_names: &["bundled-mini"],
        repository: "sentence-transformers/all-MiniLM-L6-v2",
        architecture: "bert",
        dimensions: 384,
        max_sequence_length: Some(256),
        pooling: "mean",
        normalize: true,
        languages: ENGLISH,
        prompts: &[],
        license: Some("Apache-2.0"),
        f32_size: megabytes(90),
        int8_size: megabytes(23),
        tier: Tier::Fast,
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, the smallest: the usual choice on a device",
    },
    KnownModel {
        id: "all-MiniLM-L12-v2",
        other_names: &[],
        repository: "sentence-transformers/all-MiniLM-L12-v2",
        architecture: "bert",
        dimensions: 384,
        max_sequence_length: None,
        pooling: "mean",
        normalize: true,
        languages: ENGLISH,
        prompts: &[],
        license: Some("Apache-2.0"),
        f32_size: megabytes(133),
        int8_size: megabytes(34),
        tier: Tier::Balanced,
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, twice the layers of all-MiniLM-L6-v2",
    },
    KnownModel {
        id: "all-mpnet-base-v2",
        other_names: &[],
        repository: "sentence-transformers/all-mpnet-base-v2",
        architecture: "mpnet",
        dimensions: 768,
        max_sequence_length: Some(384),
        pooling: "mean",
        normalize: true,
        languages: ENGLISH,
        prompts: &[],
        license: Some("Apache-2.0"),
        f32_size: megabytes(436),
        int8_size: megabytes(110),
        tier: Tier::Quality,
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, the best vectors of its family",
    },
    KnownModel {
        id: "multilingual-e5-small",
        other_names: &[],
        repository: "intfloat/multilingual-e5-small",
        architecture: "bert",
        dimensions: 384,
        max_sequence_length: Some(512),
        pooling: "mean",
        normalize: true,
        languages: MANY,
        prompts: &[("passage", "passage: "), ("query", "query: ")],
        license: Some("MIT"),
        f32_size: megabytes(470),
        int8_size: megabytes(119),
        tier: Tier::Balanced,
        tasks: &[Task::Search, Task::Similarity],
        description: "94 languages, search: needs its prompts \"query\" and \"passage\"",
    },
    KnownModel {
        id: "msmarco-distilbert-base-v4",
        other_names: &[],
        repository: "sentence-transformers/msmarco-distilbert-base-v4",
        architecture: "distilbert",
        dimensions: 768,
        max_sequence_length: Some(512),
        pooling: "mean",
        normalize: false,
        languages: ENGLISH,
        prompts: &[],
        license: Some("Apache-2.0"),
        f32_size: megabytes(265),
        int8_size: megabytes(67),
        tier: Tier::Balanced,
        tasks: &[Task::Search],
        description: "English, search: trained on questions and passages of MS MARCO",
    },
    KnownModel {
        id: "paraphrase-multilingual-mpnet-base-v2",
        other_names: &[],
        repository: "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        architecture: "xlm-roberta",
        dimensions: 768,
        max_sequence_length: Some(128),
        pooling: "mean",
        normalize: false,
        languages: MANY,
        prompts: &[],
        license: Some("Apache-2.0"),
        f32_size: megabytes(1_110),
        int8_size: megabytes(279),
        tier: Tier::Quality,
        tasks: &[Task::Similarity],
        description: "50 languages, paraphrases across languages",
    },
    // The next three models have the same shape but different weights, so they are not aliases.
    KnownModel {
        id: "distiluse-base-multilingual-cased",
        repository: "sentence-transformers/distiluse-base-multilingual-cased",
        ..DISTILUSE
    },
    KnownModel {
        id: "distiluse-base-multilingual-cased-v1",
        repository: "sentence-transformers/distiluse-base-multilingual-cased-v1",
        languages: &["ar", "de", "en", "es", "fr", "it", "ko", "nl", "pl", "pt", "ru", "tr", "zh"],
        description: "13 languages, compact vectors from a distilled encoder",
        ..DISTILUSE
    },
    KnownModel {
        id: "distiluse-base-multilingual-cased-v2",
        repository: "sentence-transformers/distiluse-base-multilingual-cased-v2",
        max_sequence_length: Some(128),
        description: "50 languages, compact vectors from a distilled encoder",
        ..DISTILUSE
    },
    KnownModel {
        id: "st-codesearch-distilroberta-base",
        other_names: &["code-search-net"],
        repository: "flax-sentence-embeddings/st-codesearch-distilroberta-base",
        architecture: "roberta",
        dimensions: 768,
        max_sequence_length: Some(128),
        pooling: "mean",
        normalize: true,
        languages: &[],
        prompts: &[],
        license: None,
        f32_size: megabytes(326),
        int8_size: megabytes(82),
        tier: Tier::Balanced,
        tasks: &[Task::CodeSearch],
        description: "Finds code by an English description: trained on CodeSearchNet",
    },
];

const DISTILUSE: KnownModel = KnownModel {
    id: "",
    other_names: &[],
    repository: "",
    architecture: "distilbert",
    dimensions: 512,
    max_sequence_length: None,
    pooling: "mean",
    normalize: false,
    languages: MANY,
    prompts: &[],
    license: Some("Apache-2.0"),
    f32_size: megabytes(541),
    int8_size: megabytes(137),
    tier: Tier::Balanced,
    tasks: &[Task::Similarity],
    description: "Many languages, compact vectors from a distilled encoder",
};

/// Returns every model that Caxton knows by name.
pub fn known_models() -> &'static [KnownModel] {
    &KNOWN
}

/// Finds a model by its id, by another name, or by the `owner/name` of its repository.
pub fn find_known_model(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|model| {
        name == model.id || name == model.repository || model.other_names.contains(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::ModelId;

    #[test]
    fn models_are_found_by_names_and_repository() {
        for model in known_models() {
            model.id.parse::<ModelId>().unwrap();
            assert_eq!(find_known_model(model.id).map(|found| found.id), Some(model.id));
            assert_eq!(find_known_model(model.repository).map(|found| found.id), Some(model.id));
            assert!(model.repository.ends_with(&format!("/{}", model.id)), "{}", model.id);
            for name in model.other_names {
                name.parse::<ModelId>().unwrap();
                assert_eq!(find_known_model(name).map(|found| found.id), Some(model.id));
                assert!(known_models().iter().all(|other| other.id != *name), "{name}");
            }
        }
        for (name, id) in [
            ("bundled-mini", "all-MiniLM-L6-v2"),
            ("code-search-net", "st-codesearch-distilroberta-base"),
        ] {
            assert_eq!(find_known_model(name).map(|found| found.id), Some(id));
        }
        for unknown in ["", "all-minilm-l6-v2", "MiniLM", "nobody/all-MiniLM-L6-v2"] {
            assert!(find_known_model(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn int8_size_is_about_a_quarter_of_f32() {
        for model in known_models() {
            let ratio = model.f32_size.0 as f64 / model.int8_size.0 as f64;
            assert!((3.9..=4.0).contains(&ratio), "{}: {ratio}", model.id);
        }
    }
}
