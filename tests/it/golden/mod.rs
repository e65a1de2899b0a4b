//! Compares the engine with the vectors of sentence-transformers, within the bounds of
//! `tests/golden/README.md`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and a skip is printed by name"
)]

mod arithmetic;
mod cases;
mod layouts;
mod packed;
mod published;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, slice};

use caxton::engine::{
    self, Architecture, EngineOptions, LoadedModel, ModelFiles, ModelSpec, Precision,
};
use safetensors::SafeTensors;

use self::arithmetic::{dot, length, unit};
use self::cases::{TINY, TINY_NEWER};

pub(super) use self::arithmetic::max_difference;
pub(super) use self::cases::{Case, MEAN, MINI_LM};

/// Largest difference of one value between unit vectors.
const MAX_DIFFERENCE: f32 = 2e-5;
/// Least cosine.
const MIN_COSINE: f32 = 0.999_999;
/// Environment variable with the directory of real models, by their names. They are not in the
/// repository.
const MODELS: &str = "CAXTON_MODELS";

pub(super) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

pub(super) fn texts(file: &str) -> Vec<String> {
    let lines = String::from_utf8(read(golden().join(file))).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) fn load(case: &Case, directory: &Path, precision: Precision) -> LoadedModel {
    let weights = read(directory.join("model.safetensors"));
    load_with(case, directory, configuration(case, directory, CONFIG), weights, options(precision))
}

/// Returns options in which most passes have several texts.
const fn options(precision: Precision) -> EngineOptions {
    EngineOptions { threads: 2, batch_tokens: 512, precision }
}

/// Name of the configuration as transformers 5 writes it.
const CONFIG: &str = "config.json";
/// Name of the configuration in the form in which the models of the family were published.
const PUBLISHED: &str = "config.published.json";

/// Reads the configuration `file` in `directory`.
fn configuration(case: &Case, directory: &Path, file: &str) -> Vec<u8> {
    match case.architecture {
        // sentence-transformers writes no such file for static embeddings; a package contains
        // this one.
        Architecture::Static => {
            let config = r#"{"model_type": "static", "vocab_size": 537, "hidden_size": 64}"#;
            config.as_bytes().to_vec()
        }
        _ => read(directory.join(file)),
    }
}

/// Loads the model in `directory` with another configuration and other weights.
fn load_with(
    case: &Case,
    directory: &Path,
    config: Vec<u8>,
    weights: Vec<u8>,
    options: EngineOptions,
) -> LoadedModel {
    let spec = ModelSpec {
        architecture: case.architecture,
        dimensions: case.dimensions,
        max_sequence_length: case.max_sequence_length,
        pooling: case.pooling,
        dense: case.dense.to_vec(),
        normalize: case.normalize,
        labels: None,
        token_types: false,
        token_heads: engine::TokenHeads::default(),
    };
    let dense = |index| read(directory.join(format!("{index}_Dense/model.safetensors")));
    let files: ModelFiles = ModelFiles {
        config,
        tokenizer: read(directory.join("tokenizer.json")),
        weights: Box::new(weights),
        dense: (2..).zip(case.dense).map(|(index, _)| dense(index)).collect(),
    };
    engine::load(&spec, files, options).unwrap()
}

/// Returns the rows of a tensor in the reference file.
pub(super) fn reference(case: &Case, tensor: &str) -> Vec<Vec<f32>> {
    let bytes = read(golden().join(case.name).join("reference.safetensors"));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values: Vec<f32> = tensors
        .tensor(tensor)
        .unwrap()
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| f32::from_le_bytes(*word))
        .collect();
    values.chunks_exact(case.dimensions).map(<[f32]>::to_vec).collect()
}

/// Returns the texts of `case` that differ from the reference by more than allowed, and the largest
/// difference of all, in lengths of the vector.
fn compare(case: &Case, model: &LoadedModel, texts: &[String]) -> (Vec<String>, f32) {
    let ids = read(golden().join(case.name).join("reference_ids.json"));
    let ids: Vec<Vec<u32>> = serde_json::from_slice(&ids).unwrap();
    assert_eq!(ids.len(), texts.len());
    let mut failures = Vec::new();
    for (index, (text, expected)) in texts.iter().zip(&ids).enumerate() {
        let found = model.tokenizer.encode("", text).unwrap().ids;
        if found != *expected {
            failures.push(format!("{} text {index}: ids {found:?} not {expected:?}", case.name));
        }
    }
    let mut worst = 0.0_f32;
    let prompts = case.prompts.iter().map(|(name, prompt)| (format!("prompt.{name}"), *prompt));
    for (tensor, prompt) in [("embedding".to_owned(), "")].into_iter().chain(prompts) {
        let vectors = vectors(model, prompt, texts);
        let expected = reference(case, &tensor);
        assert_eq!(expected.len(), texts.len());
        for (index, (found, expected)) in
            vectors.chunks_exact(case.dimensions).zip(&expected).enumerate()
        {
            let (Some(unit_found), Some(unit_expected)) = (unit(found), unit(expected)) else {
                if found != expected || case.architecture != Architecture::Static {
                    failures.push(format!("{} {tensor} text {index}: zeros", case.name));
                }
                continue;
            };
            let [length, expected_length] = [found, expected].map(length);
            let difference = max_difference(found, expected) / expected_length;
            let cosine = dot(&unit_found, &unit_expected);
            worst = worst.max(difference);
            let is_unnormalized = case.normalize && (length - 1.0).abs() > 1e-5;
            // The negated form also fails for NaN.
            if !(difference <= MAX_DIFFERENCE && cosine >= MIN_COSINE) || is_unnormalized {
                failures.push(format!(
                    "{} {tensor} text {index}: difference {difference:e}, cosine {cosine}, \
                     length {length}",
                    case.name
                ));
            }
        }
    }
    (failures, worst)
}

/// Returns the vectors of all `texts` after `prompt`, one after another.
fn vectors(model: &LoadedModel, prompt: &str, texts: &[String]) -> Vec<f32> {
    let tokens: Vec<_> =
        texts.iter().map(|text| model.tokenizer.encode(prompt, text).unwrap().ids).collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    model.embedder.embed(&tokens).unwrap()
}

/// Compares the models of `cases` with their references, with each of `forms` of their
/// configuration that they have.
fn compare_forms<'a>(cases: impl Iterator<Item = &'a Case>, forms: &[&str]) {
    let texts = texts("texts.jsonl");
    let mut failures = Vec::new();
    for case in cases {
        let directory = golden().join(case.name);
        for form in forms.iter().filter(|form| **form == CONFIG || directory.join(form).exists()) {
            let config = configuration(case, &directory, form);
            let weights = read(directory.join("model.safetensors"));
            let model = load_with(case, &directory, config, weights, options(Precision::F32));
            let (found, worst) = compare(case, &model, &texts);
            eprintln!("{} with {form}: largest difference {worst:e}", case.name);
            failures.extend(found.into_iter().map(|failure| format!("{failure} ({form})")));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Tests the families that together use every operation. The tests under emulation run only this
/// one.
#[test]
fn tiny_models_match_sentence_transformers() {
    let names = ["tiny-modernbert-silu", "tiny-qwen3", "tiny-embedding-gemma2"];
    let newer = TINY_NEWER.iter().filter(|case| names.contains(&case.name));
    compare_forms(TINY.iter().chain(newer), &[CONFIG]);
}

#[test]
fn newer_models_match_sentence_transformers() {
    compare_forms(TINY_NEWER.iter(), &[CONFIG, PUBLISHED]);
}

#[test]
fn every_golden_model_of_vectors_has_a_case() {
    let cases: BTreeSet<String> =
        TINY.iter().chain(&TINY_NEWER).map(|case| case.name.to_owned()).collect();
    let names = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let is_model = |name: &String| name.starts_with("tiny-") && !name.contains("cross-encoder");
    assert_eq!(names.filter(is_model).collect::<BTreeSet<_>>(), cases);
}

#[test]
fn threads_and_batches_do_not_change_vectors() {
    let texts = texts("texts.jsonl");
    let reversed: Vec<String> = texts.iter().rev().cloned().collect();
    for case in TINY.iter().chain(&TINY_NEWER) {
        let directory = golden().join(case.name);
        let (name, length) = (case.name, case.dimensions);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let load = |threads, batch_tokens| {
                let options = EngineOptions { threads, batch_tokens, precision };
                let config = configuration(case, &directory, CONFIG);
                let weights = read(directory.join("model.safetensors"));
                load_with(case, &directory, config, weights, options)
            };
            let model = load(1, 1);
            let alone: Vec<f32> =
                texts.iter().flat_map(|text| vectors(&model, "", slice::from_ref(text))).collect();
            // The passes have a few texts, and all texts.
            for (threads, batch_tokens) in [(3, 100), (2, 65_536)] {
                let model = load(threads, batch_tokens);
                let found = vectors(&model, "", &texts);
                assert!(found == alone, "{name} {precision} {threads} {batch_tokens}");
                let found = vectors(&model, "", &reversed);
                let found = found.chunks_exact(length).rev().flatten();
                assert!(found.eq(&alone), "{name} {precision} {threads} {batch_tokens}: reversed");
            }
        }
    }
}
