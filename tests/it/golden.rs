//! Compares the engine with the vectors of sentence-transformers, within the bounds of
//! `tests/golden/README.md`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and a skip is printed by name"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io, slice};

use caxton::engine::{
    self, Activation, Architecture, DenseSpec, EngineOptions, LoadedModel, ModelFiles, ModelSpec,
    Pooling, Precision,
};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

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
    dense: &'static [DenseSpec],
    normalize: bool,
    /// Prompts for which there are reference vectors.
    prompts: &'static [(&'static str, &'static str)],
}

pub(super) const MEAN: Case = Case {
    name: "tiny-bert-mean",
    architecture: Architecture::Bert,
    dimensions: 64,
    max_sequence_length: 48,
    pooling: Pooling::Mean,
    dense: &[],
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

const TINY_NEWER: [Case; 12] = [
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

pub(super) const MINI_LM: Case =
    Case { name: "all-MiniLM-L6-v2", dimensions: 384, max_sequence_length: 256, ..MEAN };

const MPNET: Case = Case {
    name: "all-mpnet-base-v2",
    architecture: Architecture::Mpnet,
    dimensions: 768,
    max_sequence_length: 384,
    ..MEAN
};

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

/// Scales `vector` to length 1. Returns `None` for a vector of zeros, which static embeddings give
/// for a text without tokens.
fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let norm = length(vector);
    (norm != 0.0).then(|| vector.iter().map(|value| value / norm).collect())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(vector: &[f32]) -> f32 {
    dot(vector, vector).sqrt()
}

/// Returns the cosine of two vectors that are not zero.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(&unit(a).unwrap(), &unit(b).unwrap())
}

fn mean_and_least(cosines: &[f32]) -> (f32, f32) {
    #[expect(clippy::cast_precision_loss, reason = "a hundred texts")]
    let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
    (mean, cosines.iter().copied().fold(1.0, f32::min))
}

pub(super) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
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

/// Returns `weights` as a model for another task has them: `prefix` before every name, and a `head`
/// that an embedding does not need.
fn with_prefix(weights: &[u8], prefix: &str, head: &str) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let values = vec![0; 4 * 64 * 4];
    let head = (head.to_owned(), TensorView::new(Dtype::F32, vec![4, 64], &values).unwrap());
    let prefixed = tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
    safetensors::serialize(prefixed.chain([head]), None).unwrap()
}

#[test]
fn weights_of_task_models_give_same_vectors() {
    let texts = texts("texts.jsonl");
    // Columns: model, prefix of the names, another tensor
    let cases = [
        ("tiny-camembert", "roberta.", "lm_head.dense.weight"),
        ("tiny-nomic-bert", "bert.", "cls.predictions.decoder.weight"),
        ("tiny-gte", "new.", "pooler.dense.weight"),
        ("tiny-modernbert-gelu", "model.", "head.dense.weight"),
        ("tiny-eurobert", "model.", "lm_head.weight"),
        ("tiny-qwen3", "model.", "lm_head.weight"),
        ("tiny-gemma3-causal", "model.", "lm_head.weight"),
        ("tiny-embedding-gemma2", "language_model.", "lm_head.weight"),
    ];
    for (name, prefix, head) in cases {
        let case = TINY_NEWER.iter().find(|case| case.name == name).unwrap();
        let directory = golden().join(name);
        let weights = with_prefix(&read(directory.join("model.safetensors")), prefix, head);
        let config = configuration(case, &directory, CONFIG);
        let model = load_with(case, &directory, config, weights, options(Precision::F32));
        let expected = vectors(&load(case, &directory, Precision::F32), "", &texts);
        assert!(vectors(&model, "", &texts) == expected, "{name}");
    }
}

/// Least cosine to the vectors of sentence-transformers, for each stored precision. The random
/// weights of the tiny models make attention sharp, which enlarges the errors of int8.
const PACKED: [(package::Precision, f32); 3] = [
    (package::Precision::F32, MIN_COSINE),
    (package::Precision::F16, 0.999_99),
    (package::Precision::Int8, 0.99),
];

/// Packs the model of `case` as `stored`; returns the packed model, for products in `precision`.
fn packed_model(case: &Case, stored: package::Precision, precision: Precision) -> LoadedModel {
    packed_directory(&golden().join(case.name), stored, precision)
}

/// Packs the model in `directory` like [`packed_model`].
fn packed_directory(
    directory: &Path,
    stored: package::Precision,
    precision: Precision,
) -> LoadedModel {
    let request = PackRequest {
        source: directory.to_owned(),
        precision: Some(stored),
        ..PackRequest::default()
    };
    let loaded = RefCell::new(None);
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(precision))?;
        let vector = load::embed_plain(&model, &manifest.self_test.text)?;
        *loaded.borrow_mut() = Some(model);
        Ok(vector)
    };
    package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
    loaded.into_inner().unwrap()
}

#[test]
fn packing_in_any_precision_preserves_vectors() {
    let texts = texts("texts.jsonl");
    for case in TINY.iter().chain(&TINY_NEWER) {
        let expected = reference(case, "embedding");
        for (stored, bound) in PACKED {
            let model = packed_model(case, stored, Precision::F32);
            let mut least = 1.0_f32;
            for (text, expected) in texts.iter().zip(&expected) {
                let found = load::embed_plain(&model, text).unwrap();
                let (Some(found), Some(expected)) = (unit(&found), unit(expected)) else {
                    assert_eq!(&found, expected, "{} {text:?}", case.name);
                    continue;
                };
                least = least.min(dot(&found, &expected));
            }
            eprintln!("{} as {}: least cosine {least}", case.name, stored.name());
            assert!(least >= bound, "{} as {}: {least}", case.name, stored.name());
        }
    }
}

/// Compares the vectors of an int4-table package of `directory` with the reference of `case`;
/// returns the mean and the least cosine.
fn cosines_of_int4_table(case: &Case, directory: &Path, texts: &[String]) -> (f32, f32) {
    let model = packed_directory(directory, package::Precision::Int4Table, Precision::F32);
    let vectors = vectors(&model, "", texts);
    let pairs = vectors.chunks_exact(case.dimensions).zip(reference(case, "embedding"));
    let cosines: Vec<f32> = pairs.map(|(found, expected)| cosine(found, &expected)).collect();
    let (mean, least) = mean_and_least(&cosines);
    eprintln!("{} as int4-table: mean {mean}, least {least}", case.name);
    (mean, least)
}

#[test]
fn int4_table_of_a_tiny_model_stays_near_reference() {
    let (mean, least) =
        cosines_of_int4_table(&MEAN, &golden().join(MEAN.name), &texts("texts.jsonl"));
    assert!(mean >= 0.999 && least >= 0.997, "mean {mean}, least {least}");
}

#[test]
fn int4_table_of_minilm_stays_near_reference() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("int4_table_of_minilm_stays_near_reference", MODELS);
    };
    let directory = Path::new(&models).join(MINI_LM.name);
    let (mean, least) = cosines_of_int4_table(&MINI_LM, &directory, &texts("texts_real.jsonl"));
    assert!(mean >= 0.998 && least >= 0.994, "mean {mean}, least {least}");
}

/// Stored and computed precision of the newer families, with the mean and the least cosine to the
/// vectors of sentence-transformers. The int8 bounds are lower than those of [`ROUNDED`], because
/// the random weights of the tiny models make attention sharp.
const ROUNDED_TINY: [(package::Precision, Precision, f32, f32); 3] = [
    (package::Precision::F32, Precision::Bf16, 0.9999, 0.9995),
    (package::Precision::F32, Precision::Int8, 0.999, 0.996),
    (package::Precision::Int8, Precision::Int8, 0.999, 0.996),
];

#[test]
fn rounded_precisions_of_newer_families_stay_near_reference() {
    let texts = texts("texts.jsonl");
    let mut failures = Vec::new();
    for (stored, precision, mean_bound, least_bound) in ROUNDED_TINY {
        for case in &TINY_NEWER {
            let model = packed_model(case, stored, precision);
            if model.embedder.report().precision != precision {
                let test = "rounded_precisions_of_newer_families_stay_near_reference";
                let test = format!("{test}: {precision}");
                crate::support::skipped(&test, "a processor that multiplies it");
                break;
            }
            let found = vectors(&model, "", &texts);
            let pairs = found.chunks_exact(case.dimensions).zip(reference(case, "embedding"));
            let cosines: Vec<f32> =
                pairs.map(|(found, expected)| cosine(found, &expected)).collect();
            let (mean, least) = mean_and_least(&cosines);
            let line = format!(
                "{} as {} in {precision}: mean {mean}, least {least}",
                case.name,
                stored.name()
            );
            eprintln!("{line}");
            // The negated form also fails for NaN.
            if !(mean >= mean_bound && least >= least_bound) {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
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

/// Packs `request`; returns the manifest and the vectors of `texts`.
fn packed_vectors(request: &PackRequest, texts: &[String]) -> (Manifest, Vec<Vec<f32>>) {
    let vectors = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(Precision::F32))?;
        for text in texts {
            vectors.borrow_mut().push(load::embed_plain(&model, text)?);
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let packed = package::pack(request, &run, &|_, _| {}, io::sink()).unwrap();
    (packed.manifest, vectors.into_inner())
}

/// Copies the model `name` in the form in which models of its family are published: the other
/// configuration, the prefix of a task model before the names of the weights, and the layout of
/// sentence-transformers before version 6.
fn published(name: &str, prefix: &str) -> TempDir {
    let source = golden().join(name);
    let directory = tempfile::tempdir().unwrap();
    let target = |file: &str| directory.path().join(file);
    let write = |file: &str, json: &Value| fs::write(target(file), json.to_string()).unwrap();
    let json = |file: &str| -> Value { serde_json::from_slice(&read(source.join(file))).unwrap() };
    fs::copy(source.join(PUBLISHED), target(CONFIG)).unwrap();
    for file in ["tokenizer.json", "config_sentence_transformers.json"] {
        fs::copy(source.join(file), target(file)).unwrap();
    }
    let weights = read(source.join("model.safetensors"));
    let weights = with_prefix(&weights, prefix, "lm_head.weight");
    fs::write(target("model.safetensors"), weights).unwrap();
    write("sentence_bert_config.json", &json!({ "max_seq_length": 96, "do_lower_case": false }));
    let mut modules = json("modules.json");
    for module in modules.as_array_mut().unwrap() {
        let class = module["type"].as_str().unwrap().rsplit('.').next().unwrap();
        module["type"] = format!("sentence_transformers.models.{class}").into();
        let path = module["path"].as_str().unwrap();
        if path.is_empty() {
            continue;
        }
        fs::create_dir(target(path)).unwrap();
        let [config, weights] = [CONFIG, "model.safetensors"].map(|file| format!("{path}/{file}"));
        let mut settings = json(&config);
        let settings = settings.as_object_mut().unwrap();
        settings.retain(|key, _| !key.starts_with("module_"));
        if let (Some(width), Some(mode)) =
            (settings.remove("embedding_dimension"), settings.remove("pooling_mode"))
        {
            let mode = match mode.as_str().unwrap() {
                "mean" => "pooling_mode_mean_tokens",
                "cls" => "pooling_mode_cls_token",
                _ => "pooling_mode_lasttoken",
            };
            settings.insert("word_embedding_dimension".to_owned(), width);
            settings.insert(mode.to_owned(), true.into());
        }
        // The earlier layout has an empty directory for a normalization.
        if !settings.is_empty() {
            fs::write(target(&config), serde_json::to_vec(settings).unwrap()).unwrap();
        }
        if source.join(&weights).exists() {
            fs::copy(source.join(&weights), target(&weights)).unwrap();
        }
    }
    write("modules.json", &modules);
    directory
}

#[test]
fn published_layout_gives_same_package() {
    let texts = texts("texts.jsonl");
    for (name, prefix) in [
        ("tiny-nomic-bert", ""),
        ("tiny-gte", "new."),
        ("tiny-gte-en", "new."),
        ("tiny-modernbert-gelu", "model."),
        ("tiny-modernbert-silu", ""),
        ("tiny-eurobert", "model."),
        ("tiny-qwen3", "model."),
        ("tiny-gemma3-bidirectional", ""),
        ("tiny-gemma3-causal", "model."),
        ("tiny-embedding-gemma2", "language_model."),
    ] {
        let request = PackRequest {
            id: Some(name.parse().unwrap()),
            source: golden().join(name),
            ..PackRequest::default()
        };
        let directory = published(name, prefix);
        let other = PackRequest { source: directory.path().to_owned(), ..request.clone() };
        let (expected, expected_vectors) = packed_vectors(&request, &texts);
        let case = TINY_NEWER.iter().find(|case| case.name == name).unwrap();
        // A package omits empty prompts, which change nothing.
        for (prompt, text) in case.prompts.iter().filter(|(_, text)| !text.is_empty()) {
            assert_eq!(expected.prompts[*prompt], *text, "{name} {prompt}");
        }
        let (manifest, vectors) = packed_vectors(&other, &texts);
        let own = Manifest {
            files: expected.files.clone(),
            self_test: expected.self_test.clone(),
            ..manifest
        };
        assert_eq!(own, expected, "{name}");
        for (found, expected) in vectors.iter().zip(&expected_vectors) {
            let difference = max_difference(found, expected) / length(expected);
            assert!(difference <= MAX_DIFFERENCE, "{name}: {difference:e}");
        }
    }
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
fn vocabulary_file_gives_ids_of_tokenizer_file() {
    let texts = texts("texts.jsonl");
    let source = golden().join(MEAN.name);
    let tokenizer: Value = serde_json::from_slice(&read(source.join("tokenizer.json"))).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut words =
        Vec::from_iter(vocabulary.iter().map(|(word, id)| (id.as_u64(), word.as_str())));
    words.sort_unstable();
    let lines: String = words.iter().map(|(_, word)| format!("{word}\n")).collect();
    let plain = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), plain.path().join(name)).unwrap();
    }
    fs::write(plain.path().join("vocab.txt"), lines).unwrap();
    let config = r#"{ "do_lower_case": true, "model_max_length": 48 }"#;
    fs::write(plain.path().join("tokenizer_config.json"), config).unwrap();

    let ids = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(Precision::F32))?;
        for text in &texts {
            ids.borrow_mut().push(model.tokenizer.encode("", text)?.ids);
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let request = PackRequest {
        id: Some(MEAN.name.parse().unwrap()),
        source: plain.path().to_owned(),
        pooling: Some("mean"),
        normalize: Some(true),
        ..PackRequest::default()
    };
    package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
    let expected: Vec<Vec<u32>> =
        serde_json::from_slice(&read(source.join("reference_ids.json"))).unwrap();
    assert_eq!(ids.into_inner(), expected);
}

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
        let vectors = vectors(&model, "", &texts);
        let pairs = vectors.chunks_exact(MINI_LM.dimensions).zip(&expected);
        let cosines: Vec<f32> = pairs.map(|(found, expected)| cosine(found, expected)).collect();
        let (mean, least) = mean_and_least(&cosines);
        eprintln!("{precision} on {}: mean {mean}, least {least}", model.embedder.report().isa);
        assert!(mean >= mean_bound && least >= least_bound, "{precision}: {mean}, {least}");
    }
}
