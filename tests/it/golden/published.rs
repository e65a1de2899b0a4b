//! Compares models with published weights, which are not in the repository.

use std::env;
use std::path::Path;

use caxton::engine::Precision;

use super::cases::{Case, MINI_LM, MPNET};
use super::{MODELS, compare, load, texts};

/// Compares the model in `directory`, which has the published weights of `case`, with its
/// references.
fn compare_published(case: &Case, directory: &Path) {
    let model = load(case, directory, Precision::F32);
    let (failures, worst) = compare(case, &model, &texts("texts_real.jsonl"));
    eprintln!("{}: largest difference {worst:e}", case.name);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn minilm_matches_sentence_transformers() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("minilm_matches_sentence_transformers", MODELS);
    };
    compare_published(&MINI_LM, &Path::new(&models).join(MINI_LM.name));
}

#[test]
fn mpnet_matches_sentence_transformers() {
    let directory = env::var_os(MODELS).map(|models| Path::new(&models).join(MPNET.name));
    let Some(directory) = directory.filter(|directory| directory.exists()) else {
        let needs = format!("{} in {MODELS}", MPNET.name);
        return crate::support::skipped("mpnet_matches_sentence_transformers", &needs);
    };
    compare_published(&MPNET, &directory);
}
