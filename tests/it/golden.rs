//! Compares the engine with the vectors of sentence-transformers, within the bounds of
//! `tests/golden/README.md`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and a skip is printed by name"
)]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use caxton::engine::{
    self, Activation, Architecture, DenseSpec, EngineOptions, LoadedModel, ModelFiles, ModelSpec,
    Pooling, Precision,
};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::SafeTensors;

/// Largest difference of one value between unit vectors.
const MAX_DIFFERENCE: f32 = 2e-5;
/// Least cosine.
const MIN_COSINE: f32 = 0.999_999;
/// Environment variable with the directory of real models, by their names. They are not in the
/// repository.
const MODELS: &str = "CAXTON_MODELS";

pub(super) struct Case {
    pub(super) name: &'static str,
    architecture: Architecture,
    dimensions: usize,
    max_sequence_length: usize,
    pooling: Pooling,
    dense: Option<DenseSpec>,
    normalize: bool,
    prompts: &'static [(&'static str, &'static str)],
}

pub(super) const MEAN: Case = Case {
    name: "tiny-bert-mean",
    architecture: Architecture::Bert,
    dimensions: 64,
    max_sequence_length: 48,
    pooling: Pooling::Mean,
    dense: None,
    normalize: true,
    prompts: &[],
};

const TINY: [Case; 13] = [
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
        dense: Some(DenseSpec {
            in_features: 64,
            out_features: 40,
            bias: true,
            activation: Activation::Tanh,
        }),
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

pub(super) const MINI_LM: Case =
    Case { name: "all-MiniLM-L6-v2", dimensions: 384, max_sequence_length: 256, ..MEAN };

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
    let spec = ModelSpec {
        architecture: case.architecture,
        dimensions: case.dimensions,
        max_sequence_length: case.max_sequence_length,
        pooling: case.pooling,
        dense: case.dense.into_iter().collect(),
        normalize: case.normalize,
    };
    let files: ModelFiles = ModelFiles {
        config: match case.architecture {
            // sentence-transformers writes no such file for static embeddings; a package contains
            // this one.
            Architecture::Static => {
                let config = r#"{"model_type": "static", "vocab_size": 537, "hidden_size": 64}"#;
                config.as_bytes().to_vec()
            }
            _ => read(directory.join("config.json")),
        },
        tokenizer: read(directory.join("tokenizer.json")),
        weights: Box::new(read(directory.join("model.safetensors"))),
        dense: case
            .dense
            .iter()
            .map(|_| read(directory.join("2_Dense/model.safetensors")))
            .collect(),
    };
    let options = EngineOptions { threads: 2, batch_tokens: 512, precision };
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

/// Scales `vector` to length 1. Returns `None` for a vector of zeros, which static embeddings give
/// for a text without tokens.
fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    (norm != 0.0).then(|| vector.iter().map(|value| value / norm).collect())
}

pub(super) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Returns the texts of `case` that differ from the reference by more than allowed, and the largest
/// difference of all.
fn compare(case: &Case, directory: &Path, texts: &[String]) -> (Vec<String>, f32) {
    let model = load(case, directory, Precision::F32);
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
        let tokens: Vec<_> =
            texts.iter().map(|text| model.tokenizer.encode(prompt, text).unwrap().ids).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let vectors = model.embedder.embed(&tokens).unwrap();
        let expected = reference(case, &tensor);
        assert_eq!(expected.len(), texts.len());
        for (index, (found, expected)) in
            vectors.chunks_exact(case.dimensions).zip(&expected).enumerate()
        {
            let length = found.iter().map(|value| value * value).sum::<f32>().sqrt();
            let (found, expected) = match (unit(found), unit(expected)) {
                (Some(found), Some(expected)) => (found, expected),
                (None, None) if case.architecture == Architecture::Static => continue,
                (found, _) => {
                    let who = if found.is_none() { "" } else { " expected" };
                    failures.push(format!("{} {tensor} text {index}: zeros{who}", case.name));
                    continue;
                }
            };
            let difference = max_difference(&found, &expected);
            let cosine: f32 = found.iter().zip(&expected).map(|(a, b)| a * b).sum();
            worst = worst.max(difference);
            let unnormalised = case.normalize && (length - 1.0).abs() > 1e-5;
            // The negated form also fails for NaN.
            if !(difference <= MAX_DIFFERENCE && cosine >= MIN_COSINE) || unnormalised {
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

#[test]
fn tiny_models_match_sentence_transformers() {
    let texts = texts("texts.jsonl");
    let mut failures = Vec::new();
    for case in &TINY {
        let (found, worst) = compare(case, &golden().join(case.name), &texts);
        eprintln!("{}: largest difference {worst:e}", case.name);
        failures.extend(found);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Least cosine to the vectors of sentence-transformers, for each stored precision. The random
/// weights of the tiny models make attention sharp, which enlarges the errors of int8.
const PACKED: [(package::Precision, f32); 3] = [
    (package::Precision::F32, MIN_COSINE),
    (package::Precision::F16, 0.999_99),
    (package::Precision::Int8, 0.99),
];

#[test]
fn packing_in_any_precision_preserves_vectors() {
    let texts = texts("texts.jsonl");
    for case in &TINY {
        let expected = reference(case, "embedding");
        for (stored, bound) in PACKED {
            let request = PackRequest {
                source: golden().join(case.name),
                precision: Some(stored),
                ..PackRequest::default()
            };
            let loaded = RefCell::new(None);
            let run = |manifest: &Manifest, contents: &PackageContents| {
                let options =
                    EngineOptions { threads: 2, batch_tokens: 512, precision: Precision::F32 };
                let model = load::load(manifest, contents.clone(), options)?;
                let vector = load::embed_plain(&model, &manifest.self_test.text)?;
                *loaded.borrow_mut() = Some(model);
                Ok(vector)
            };
            package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
            let model = loaded.into_inner().unwrap();
            let mut least = 1.0_f32;
            for (text, expected) in texts.iter().zip(&expected) {
                let found = load::embed_plain(&model, text).unwrap();
                let (Some(found), Some(expected)) = (unit(&found), unit(expected)) else {
                    assert_eq!(&found, expected, "{} {text:?}", case.name);
                    continue;
                };
                least = least.min(found.iter().zip(&expected).map(|(a, b)| a * b).sum());
            }
            eprintln!("{} as {}: least cosine {least}", case.name, stored.name());
            assert!(least >= bound, "{} as {}: {least}", case.name, stored.name());
        }
    }
}

/// Packs `request`; returns the manifest and the vectors of `texts`.
fn packed_vectors(request: &PackRequest, texts: &[String]) -> (Manifest, Vec<Vec<f32>>) {
    let vectors = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let options = EngineOptions { threads: 2, batch_tokens: 512, precision: Precision::F32 };
        let model = load::load(manifest, contents.clone(), options)?;
        for text in texts {
            vectors.borrow_mut().push(load::embed_plain(&model, text)?);
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let packed = package::pack(request, &run, &|_, _| {}, io::sink()).unwrap();
    (packed.manifest, vectors.into_inner())
}

#[test]
fn stated_steps_replace_modules_file() {
    let texts = texts("texts.jsonl");
    let source = golden().join(MEAN.name);
    let plain = tempfile::tempdir().unwrap();
    // transformers writes no configuration of modules and of prompts.
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(name), plain.path().join(name)).unwrap();
    }
    let request =
        PackRequest { id: Some(MEAN.name.parse().unwrap()), source, ..PackRequest::default() };
    let stated = PackRequest {
        source: plain.path().to_owned(),
        pooling: Some("mean"),
        normalize: Some(true),
        ..request.clone()
    };
    let expected = packed_vectors(&request, &texts);
    assert_eq!(packed_vectors(&stated, &texts), expected);
    // The comparison can fail: other steps give another manifest and other vectors.
    let (manifest, vectors) =
        packed_vectors(&PackRequest { pooling: Some("cls"), ..stated }, &texts);
    assert!(manifest != expected.0 && vectors != expected.1);
}

#[test]
fn minilm_matches_sentence_transformers() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("minilm_matches_sentence_transformers", MODELS);
    };
    let directory = Path::new(&models).join(MINI_LM.name);
    let (failures, worst) = compare(&MINI_LM, &directory, &texts("texts_real.jsonl"));
    eprintln!("{}: largest difference {worst:e}", MINI_LM.name);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Mean and least cosine to the f32 vectors of sentence-transformers.
const ROUNDED: [(Precision, f32, f32); 2] =
    [(Precision::Bf16, 0.9999, 0.9995), (Precision::Int8, 0.9995, 0.998)];

#[test]
fn rounded_precisions_of_minilm_stay_near_reference() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("rounded_precisions_of_minilm_stay_near_reference", MODELS);
    };
    let directory = Path::new(&models).join(MINI_LM.name);
    let texts = texts("texts_real.jsonl");
    let expected = reference(&MINI_LM, "embedding");
    for (precision, mean_bound, least_bound) in ROUNDED {
        let model = load(&MINI_LM, &directory, precision);
        if model.embedder.report().precision != precision {
            let test = format!("rounded_precisions_of_minilm_stay_near_reference: {precision}");
            crate::support::skipped(&test, "a processor that multiplies it");
            continue;
        }
        let tokens: Vec<_> =
            texts.iter().map(|text| model.tokenizer.encode("", text).unwrap().ids).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let vectors = model.embedder.embed(&tokens).unwrap();
        let cosines: Vec<f32> = vectors
            .chunks_exact(MINI_LM.dimensions)
            .zip(&expected)
            .map(|(found, expected)| {
                let unit = |vector| unit(vector).unwrap();
                unit(found).iter().zip(unit(expected)).map(|(a, b)| a * b).sum()
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a hundred texts")]
        let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
        let least = cosines.iter().copied().fold(1.0, f32::min);
        eprintln!("{precision} on {}: mean {mean}, least {least}", model.embedder.report().isa);
        assert!(mean >= mean_bound && least >= least_bound, "{precision}: {mean}, {least}");
    }
}
