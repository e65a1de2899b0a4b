//! Lengths to which the vectors of a model may be cut, because the model was trained for them
//! (Matryoshka representation learning, <https://arxiv.org/abs/2205.13147>).
//!
//! A package lists them in its manifest. The registry has the lists of published models for
//! packages that were made without one. The vectors of every other model lose most of their meaning
//! when they are cut.

use super::manifest::Manifest;
use super::registry::known_model_of;

/// Returns the lengths below `dimensions` for which the model of `manifest` was trained, ascending:
/// those of the manifest, or those of the published model that its source or its id names.
pub fn trained_dimensions(manifest: &Manifest) -> &[usize] {
    if !manifest.matryoshka_dimensions.is_empty() {
        return &manifest.matryoshka_dimensions;
    }
    // Another length means another model, whatever its name is.
    let found =
        known_model_of(manifest).filter(|known| known.dimensions == Some(manifest.dimensions));
    found.map_or(&[], |known| known.matryoshka_dimensions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::fixture;
    use crate::package::manifest::{CONFIG, TOKENIZER, WEIGHTS};

    fn manifest(id: &str, source: Option<&str>, dimensions: usize) -> Manifest {
        let files: [(&str, &[u8]); 3] = [(CONFIG, b"{}"), (TOKENIZER, b"[]"), (WEIGHTS, b"w")];
        let source = source.map(|path| format!("https://huggingface.co/{path}"));
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
}
