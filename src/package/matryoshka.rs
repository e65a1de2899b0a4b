//! Lengths to which the vectors of a model may be cut, because the model was trained for them
//! (Matryoshka representation learning, <https://arxiv.org/abs/2205.13147>).
//!
//! A package lists them in its manifest. The table below has the lists of published models for
//! packages that were made without one. The vectors of every other model lose most of their meaning
//! when they are cut.

use super::manifest::Manifest;

const REPOSITORIES: &str = "https://huggingface.co/";

/// Published model that was trained for shorter vectors.
struct TrainedModel {
    /// Repository on huggingface.co, as `owner/name`.
    repository: &'static str,
    /// Length of the whole vectors.
    dimensions: usize,
    /// Smaller lengths, ascending.
    shorter: &'static [usize],
}

const fn trained(
    repository: &'static str,
    dimensions: usize,
    shorter: &'static [usize],
) -> TrainedModel {
    TrainedModel { repository, dimensions, shorter }
}

/// Facts from the models' own repositories. A length that a repository does not name is left out.
static TRAINED: [TrainedModel; 12] = [
    trained("Alibaba-NLP/gte-multilingual-base", 768, &[128, 256, 512]),
    trained("Qwen/Qwen3-Embedding-0.6B", 1024, &[32, 64, 128, 256, 512, 768]),
    trained("Snowflake/snowflake-arctic-embed-l-v2.0", 1024, &[256]),
    trained("Snowflake/snowflake-arctic-embed-m-v1.5", 768, &[256]),
    trained("Snowflake/snowflake-arctic-embed-m-v2.0", 768, &[256]),
    trained("google/embeddinggemma-300m", 768, &[128, 256, 512]),
    trained("mixedbread-ai/mxbai-embed-large-v1", 1024, &[512]),
    trained("nomic-ai/modernbert-embed-base", 768, &[256]),
    trained("nomic-ai/nomic-embed-text-v1.5", 768, &[64, 128, 256, 512]),
    trained("nomic-ai/nomic-embed-text-v2-moe", 768, &[256]),
    trained("sentence-transformers/static-retrieval-mrl-en-v1", 1024, &[32, 64, 128, 256, 512]),
    trained(
        "sentence-transformers/static-similarity-mrl-multilingual-v1",
        1024,
        &[32, 64, 128, 256, 512],
    ),
];

/// Returns the lengths below `dimensions` for which the model of `manifest` was trained, ascending:
/// those of the manifest, or those of the published model that its source or its id names.
pub fn trained_dimensions(manifest: &Manifest) -> &[usize] {
    if !manifest.matryoshka_dimensions.is_empty() {
        return &manifest.matryoshka_dimensions;
    }
    let source = manifest.source.as_deref().and_then(|source| source.strip_prefix(REPOSITORIES));
    let source = source.map(|path| path.trim_end_matches('/'));
    let is_named = |model: &&TrainedModel| match source {
        Some(source) => model.repository == source,
        None => {
            let name = model.repository.split_once('/').map(|(_owner, name)| name);
            name == Some(manifest.id.as_str())
        }
    };
    let found = TRAINED.iter().find(is_named);
    // Another length means another model, whatever its name is.
    let found = found.filter(|model| model.dimensions == manifest.dimensions);
    found.map_or(&[], |model| model.shorter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::fixture;
    use crate::package::manifest::{CONFIG, TOKENIZER, WEIGHTS};

    fn manifest(id: &str, source: Option<&str>, dimensions: usize) -> Manifest {
        let files: [(&str, &[u8]); 3] = [(CONFIG, b"{}"), (TOKENIZER, b"[]"), (WEIGHTS, b"w")];
        let source = source.map(|path| format!("{REPOSITORIES}{path}"));
        Manifest { dimensions, source, ..fixture::manifest(id, "1", &files) }
    }

    #[test]
    fn published_models_are_found_by_source_and_id() {
        let arctic = "snowflake-arctic-embed-m-v1.5";
        let repository = format!("Snowflake/{arctic}");
        for (id, source, dimensions, expected) in [
            (arctic, None, 768, &[256][..]),
            ("own-name", Some(repository.as_str()), 768, &[256]),
            ("own-name", None, 768, &[]),
            (arctic, None, 384, &[]),
            (arctic, Some("someone/else"), 768, &[]),
        ] {
            assert_eq!(trained_dimensions(&manifest(id, source, dimensions)), expected, "{id}");
        }
    }

    #[test]
    fn list_of_the_manifest_wins() {
        let manifest = manifest("nomic-embed-text-v1.5", None, 768);
        assert_eq!(trained_dimensions(&manifest), [64, 128, 256, 512]);
        let manifest = Manifest { matryoshka_dimensions: vec![100], ..manifest };
        assert_eq!(trained_dimensions(&manifest), [100]);
    }

    #[test]
    fn table_has_smaller_lengths_in_ascending_order() {
        for TrainedModel { repository, dimensions, shorter } in &TRAINED {
            assert!(shorter.is_sorted_by(|a, b| a < b), "{repository}");
            assert!(shorter.iter().all(|length| length < dimensions), "{repository}");
        }
    }
}
