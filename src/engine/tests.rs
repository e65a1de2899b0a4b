//! Tests: models from their files to their vectors, and the errors on the way.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::json;

use crate::base::int4::Int4Block;
#[cfg(target_arch = "x86_64")]
use crate::engine::amx;
use crate::engine::config::EncoderConfig;
use crate::engine::config::tests::{bert, fused, spec};
#[cfg(target_arch = "x86_64")]
use crate::engine::fused::FusedEmbedder;
use crate::engine::pooling::PoolingHead;
#[cfg(target_arch = "x86_64")]
use crate::engine::precision;
use crate::engine::reference::Reference;
#[cfg(target_arch = "x86_64")]
use crate::engine::simd::Isa;
use crate::engine::weights::Header;
use crate::engine::weights::tests::{f32s, file};
use crate::engine::{
    Activation, Architecture, DenseSpec, Embedder, EngineError, EngineOptions, FileSizes,
    LoadedModel, ModelFiles, ModelSpec, Output, Precision, WeightsFile, WeightsFormat, footprint,
    load, load_with,
};

const OPTIONS: EngineOptions =
    EngineOptions { threads: 2, batch_tokens: 64, precision: Precision::F32 };

fn golden_file(name: &str, file: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(directory.join(file)).unwrap()
}

fn golden_spec(name: &str, architecture: Architecture) -> ModelSpec {
    let mut spec = spec(architecture);
    let dimensions = match name {
        "tiny-bert-odd" => 60,
        "tiny-embedding-gemma2" => 96,
        _ => 64,
    };
    (spec.dimensions, spec.max_sequence_length, spec.normalize) = (dimensions, 40, true);
    spec
}

fn golden(name: &str, architecture: Architecture) -> Box<dyn Embedder> {
    golden_with(name, architecture, OPTIONS)
}

fn golden_with(
    name: &str,
    architecture: Architecture,
    options: EngineOptions,
) -> Box<dyn Embedder> {
    let files: ModelFiles = ModelFiles {
        config: golden_file(name, "config.json"),
        tokenizer: golden_file(name, "tokenizer.json"),
        weights: Box::new(golden_file(name, "model.safetensors")),
        dense: Vec::new(),
    };
    load(&golden_spec(name, architecture), files, options).unwrap().embedder
}

/// Builds a word-level tokenizer with `words` words and no special tokens.
pub(super) fn tokenizer(words: usize) -> Vec<u8> {
    let vocabulary: serde_json::Map<_, _> =
        (0..words).map(|id| (format!("w{id}"), id.into())).collect();
    let json = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    json.to_string().into_bytes()
}

/// Returns `file` with its parsed header, for the encoder of `config`.
pub(super) fn opened(
    file: Box<dyn WeightsFile>,
    config: &EncoderConfig,
) -> (Box<dyn WeightsFile>, Header) {
    let tensors = super::tensor_names::encoder_tensors(config);
    let header = Header::read("model.safetensors", file.bytes(), tensors).unwrap();
    (file, header)
}

/// Builds the BERT of `config::tests` with every weight equal to `value`.
pub(super) fn constant_bert(value: f32) -> (ModelSpec, ModelFiles) {
    let spec = spec(Architecture::Bert);
    let config = bert().to_string().into_bytes();
    let shape = fused(&config, &spec).unwrap();
    let tensors: Vec<_> = crate::engine::tensor_names::encoder_tensors(&shape).collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|tensor| {
            let values = vec![value; tensor.shape.iter().product()];
            (tensor.name.as_str(), safetensors::Dtype::F32, &tensor.shape[..], f32s(&values))
        })
        .collect();
    let weights = Box::new(file(&tensors));
    (spec, ModelFiles { config, tokenizer: tokenizer(5), weights, dense: Vec::new() })
}

fn refusal(spec: &ModelSpec, files: ModelFiles) -> String {
    load(spec, files, OPTIONS).err().unwrap().to_string()
}

#[test]
fn invalid_text_is_refused() {
    let (spec, files) = constant_bert(0.5);
    let LoadedModel { embedder, .. } = load(&spec, files, OPTIONS).unwrap();
    let cases: [(&[u32], &str); 3] = [
        (&[], "the text has 0 tokens, and the model accepts 1 to 10"),
        (&[1; 11], "the text has 11 tokens, and the model accepts 1 to 10"),
        (&[4, 5], "token id 5 is outside the model's vocabulary of 5 tokens"),
    ];
    for (text, message) in cases {
        assert_eq!(embedder.embed(&[&[1], text]).unwrap_err().to_string(), message);
    }
    assert!(embedder.embed(&[]).unwrap().is_empty());
    assert_eq!(embedder.embed(&[&[4; 10]]).unwrap().len(), 8);
}

#[test]
fn nonfinite_vector_is_an_error() {
    // Every sum of products overflows f32.
    let (spec, files) = constant_bert(f32::MAX);
    let LoadedModel { embedder, .. } = load(&spec, files, OPTIONS).unwrap();
    let error = embedder.embed(&[&[1, 2]]).unwrap_err();
    assert!(matches!(error, EngineError::NotFinite { precision: "f32" }), "{error}");
}

#[test]
fn word_embeddings_must_cover_the_tokenizer() {
    let (spec, mut files) = constant_bert(0.5);
    files.tokenizer = tokenizer(6);
    let message = "tokenizer.json has 6 tokens, model.safetensors has word embeddings for 5";
    assert_eq!(refusal(&spec, files), message);
}

#[test]
fn weights_error_precedes_tokenizer_error() {
    for (architecture, name) in
        [(Architecture::Bert, "tiny-bert-mean"), (Architecture::ModernBert, "tiny-modernbert")]
    {
        let files = ModelFiles {
            config: golden_file(name, "config.json"),
            tokenizer: b"no tokenizer".to_vec(),
            weights: || Err(EngineError::Mismatch("no weights".to_owned())),
            dense: Vec::new(),
        };
        let error = load_with(&golden_spec(name, architecture), files, OPTIONS).err().unwrap();
        assert_eq!(error.to_string(), "no weights", "{name}");
    }
}

#[test]
fn static_table_must_cover_the_tokenizer() {
    let config = json!({ "model_type": "static", "vocab_size": 5, "hidden_size": 8 });
    let table = ("embedding.weight", safetensors::Dtype::F32, &[5, 8][..], f32s(&[0.5; 40]));
    let files = |words| ModelFiles::<Box<dyn WeightsFile>> {
        config: config.to_string().into_bytes(),
        tokenizer: tokenizer(words),
        weights: Box::new(file(std::slice::from_ref(&table))),
        dense: Vec::new(),
    };
    let spec = spec(Architecture::Static);
    let message = "tokenizer.json has 6 tokens, model.safetensors has word embeddings for 5";
    assert_eq!(refusal(&spec, files(6)), message);
    let LoadedModel { tokenizer, embedder } = load(&spec, files(5), OPTIONS).unwrap();
    let ids = ["", "w4 w1"].map(|text| tokenizer.encode("", text).unwrap().ids);
    let vectors = embedder.embed(&[&ids[0], &ids[1]]).unwrap();
    assert_eq!(vectors, [[0.0; 8], [0.5; 8]].concat());
}

#[test]
fn modernbert_weights_must_match_configuration() {
    let name = "tiny-modernbert";
    let load_changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let config = golden_file(name, "config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        change(&mut config);
        let files: ModelFiles = ModelFiles {
            config: config.to_string().into_bytes(),
            tokenizer: golden_file(name, "tokenizer.json"),
            weights: Box::new(golden_file(name, "model.safetensors")),
            dense: Vec::new(),
        };
        refusal(&golden_spec(name, Architecture::ModernBert), files)
    };
    let layers = |count: usize| {
        load_changed(&|config| {
            config["layer_types"] = serde_json::Value::Null;
            config["num_hidden_layers"] = count.into();
        })
    };
    let cases = [
        (layers(512), "\"layers.3.attn_norm.weight\" [64] is missing"),
        (layers(2), "\"layers.2.attn.Wo.weight\" [64, 64] is not part of this model"),
        (
            load_changed(&|config| config["intermediate_size"] = 95.into()),
            "\"layers.0.mlp.Wi.weight\" has shape [192, 64], expected [190, 64]",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, format!("model.safetensors: tensor {expected}"));
    }
}

#[test]
fn weights_must_match_configuration() {
    let (spec, mut files) = constant_bert(0.5);
    let mut config = bert();
    config["num_hidden_layers"] = 512.into();
    files.config = config.to_string().into_bytes();
    let message = "model.safetensors: tensor \"encoder.layer.1.attention.self.query.weight\" \
                   [8, 8] is missing";
    assert_eq!(refusal(&spec, files), message);
}

#[test]
fn every_weight_in_memory_is_counted() {
    let (mut spec, files) = constant_bert(0.5);
    let plain = load(&spec, files, OPTIONS).unwrap().embedder.weight_bytes();
    // The terms are: tables of 5 + 10 + 2 rows and LayerNorm; attention and its LayerNorm;
    // feed-forward and its LayerNorm. Packing never makes them smaller.
    let encoder = (17 * 8 + 16) + (4 * (64 + 8) + 16) + (8 * 4 + 4 + 4 * 8 + 8 + 16);
    assert!(plain >= 4 * encoder, "{plain}");
    spec.dense = vec![DenseSpec {
        in_features: 8,
        out_features: 3,
        bias: true,
        activation: Activation::Identity,
    }];
    spec.dimensions = 3;
    let (_, mut files) = constant_bert(0.5);
    files.dense = vec![file(&[
        ("linear.weight", safetensors::Dtype::F32, &[3, 8], f32s(&[0.5; 24])),
        ("linear.bias", safetensors::Dtype::F32, &[3], f32s(&[0.5; 3])),
    ])];
    let LoadedModel { embedder, .. } = load(&spec, files, OPTIONS).unwrap();
    assert_eq!(embedder.weight_bytes(), plain + 4 * (24 + 3));
    assert_eq!(embedder.dimensions(), 3);
}

/// A file that looks like a mapped one, and records the ranges that are released and forgotten.
struct Mapped(Vec<u8>, Arc<Mutex<(Ranges, Ranges)>>);

type Ranges = Vec<Range<usize>>;

impl WeightsFile for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: Range<usize>) {
        self.1.lock().unwrap().0.push(range);
    }

    fn forget(&self, range: Range<usize>) {
        self.1.lock().unwrap().1.push(range);
    }

    fn anonymous_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn only_word_embeddings_stay_mapped() {
    let (spec, files) = constant_bert(0.5);
    let in_memory = load(&spec, files, OPTIONS).unwrap().embedder;
    let (_, files) = constant_bert(0.5);
    let noted = Arc::default();
    let file = Mapped(files.weights.bytes().to_vec(), Arc::clone(&noted));
    let length = file.0.len();
    let tensors = safetensors::SafeTensors::deserialize(&file.0).unwrap().len();
    let files: ModelFiles = ModelFiles { weights: Box::new(file), ..files };
    let embedder = load(&spec, files, OPTIONS).unwrap().embedder;
    // The word embedding table: five words of eight values.
    assert_eq!((embedder.mapped_bytes(), in_memory.mapped_bytes()), (5 * 8 * 4, 0));
    assert_eq!(embedder.weight_bytes(), in_memory.weight_bytes() - length as u64);
    let (released, forgotten) = &*noted.lock().unwrap();
    // Each tensor is released after its check. Six matrices are forgotten after packing, and at the
    // end the parts of the file before and after the word embedding table.
    assert_eq!((released.len(), forgotten.len()), (tensors, 6 + 2));
    let [before, after] = forgotten.last_chunk().unwrap();
    assert_eq!((before.start, after.end, after.start - before.end), (0, length, 5 * 8 * 4));
    assert_eq!(embedder.embed(&[&[1, 2]]).unwrap().len(), 8);
}

/// Quantizes the matrices of the safetensors file `original` to int8. `blocks` is the number of
/// column blocks with their own scales. The scale of block `b` is `1 + b` times as large as
/// necessary.
fn quantized(original: &[u8], blocks: usize) -> Vec<u8> {
    let tensors = safetensors::SafeTensors::deserialize(original).unwrap();
    let mut quantized = Vec::new();
    for (name, view) in tensors.iter() {
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let &[rows, columns] = view.shape() else {
            quantized.push((name.to_owned(), view.dtype(), view.shape().to_vec(), f32s(&values)));
            continue;
        };
        let (mut integers, mut scales) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(columns) {
            let largest = row.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
            let of_block = |block| scale * (1 + block) as f32;
            scales.extend((0..blocks).map(of_block));
            #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
            integers.extend(row.iter().enumerate().map(|(column, value)| {
                ((value / of_block(column % blocks)).round() as i8).to_le_bytes()[0]
            }));
        }
        let shape = if blocks == 1 { vec![rows] } else { vec![rows, blocks] };
        quantized.push((name.to_owned(), safetensors::Dtype::I8, vec![rows, columns], integers));
        quantized.push((format!("{name}.scale"), safetensors::Dtype::F32, shape, f32s(&scales)));
        if blocks > 1 {
            let block = |column| u32::try_from(column % blocks).unwrap().to_le_bytes();
            let data = (0..columns).flat_map(block).collect();
            quantized.push((format!("{name}.block"), safetensors::Dtype::U32, vec![columns], data));
        }
    }
    let quantized: Vec<_> = quantized
        .iter()
        .map(|(name, dtype, shape, data)| (&name[..], *dtype, &shape[..], data.clone()))
        .collect();
    file(&quantized)
}

#[test]
fn int8_vectors_are_close_to_f32() {
    let original = golden_file("tiny-bert-mean", "model.safetensors");
    let text: &[u32] = &[2, 220, 512, 449, 288, 465, 480, 3];
    let embed = |weights: Vec<u8>, precision| {
        let files: ModelFiles = ModelFiles {
            config: golden_file("tiny-bert-mean", "config.json"),
            tokenizer: golden_file("tiny-bert-mean", "tokenizer.json"),
            weights: Box::new(weights),
            dense: Vec::new(),
        };
        let spec = golden_spec("tiny-bert-mean", Architecture::Bert);
        let options = EngineOptions { precision, ..OPTIONS };
        load(&spec, files, options).unwrap().embedder.embed(&[text]).unwrap()
    };
    let exact = embed(original.clone(), Precision::F32);
    for precision in [Precision::F32, Precision::Int8] {
        // If there are two blocks, the columns alternate between them. So these blocks differ from
        // the engine's own blocks, each of which gets columns of both.
        for blocks in [1, 2] {
            let near = embed(quantized(&original, blocks), precision);
            let cosine: f32 = exact.iter().zip(&near).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.999 && exact != near, "{precision} {blocks}: {cosine}");
        }
    }
}

/// Stores the table of words of the safetensors file `original` in 4 bits.
fn with_int4_words(original: &[u8]) -> Vec<u8> {
    const WORDS: &str = "embeddings.word_embeddings.weight";
    let tensors = safetensors::SafeTensors::deserialize(original).unwrap();
    let mut stored = Vec::new();
    for (name, view) in tensors.iter() {
        if name != WORDS {
            stored.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        }
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let blocks: Vec<_> = values.as_chunks().0.iter().map(Int4Block::round).collect();
        let integers = blocks.iter().flat_map(|block| block.bytes).collect();
        let scales = blocks.iter().flat_map(|block| block.scale.to_le_bytes()).collect();
        let [rows, columns] = [view.shape()[0], view.shape()[1]];
        stored.push((WORDS, safetensors::Dtype::U8, vec![rows, columns / 2], integers));
        let scale = "embeddings.word_embeddings.weight.scale";
        stored.push((scale, safetensors::Dtype::F16, vec![rows, columns / 32], scales));
    }
    let stored: Vec<_> = stored
        .iter()
        .map(|(name, dtype, shape, data)| (*name, *dtype, &shape[..], data.clone()))
        .collect();
    file(&stored)
}

#[test]
fn words_in_four_bits_stay_in_the_file() {
    let original = golden_file("tiny-bert-mean", "model.safetensors");
    let weights = with_int4_words(&original);
    let spec = golden_spec("tiny-bert-mean", Architecture::Bert);
    let files = |weights: Box<dyn WeightsFile>| ModelFiles {
        config: golden_file("tiny-bert-mean", "config.json"),
        tokenizer: golden_file("tiny-bert-mean", "tokenizer.json"),
        weights,
        dense: Vec::new(),
    };
    let exact = load(&spec, files(Box::new(original)), OPTIONS).unwrap().embedder;
    let noted = Arc::default();
    let length = weights.len();
    let mapped = Mapped(weights, Arc::clone(&noted));
    let embedder = load(&spec, files(Box::new(mapped)), OPTIONS).unwrap().embedder;

    let stored = WeightsFormat::Int4Table;
    let sizes = FileSizes { tokenizer: 0, weights: length as u64, dense: 0, stored };
    let config = golden_file("tiny-bert-mean", "config.json");
    let estimate = footprint(&spec, &config, None, sizes, OPTIONS).unwrap();
    // A row of 64 values has 32 bytes and two scales.
    assert_eq!((embedder.mapped_bytes(), estimate.mapped_bytes), (540 * 36, 540 * 36));
    // Without the file, both models take the same memory.
    let original = golden_file("tiny-bert-mean", "model.safetensors").len() as u64;
    assert_eq!(embedder.weight_bytes(), exact.weight_bytes() - original);
    let (_, forgotten) = &*noted.lock().unwrap();
    let [before, between, after] = forgotten.last_chunk().unwrap();
    assert_eq!((before.start, after.end), (0, length));
    let kept = (between.start - before.end) + (after.start - between.end);
    assert_eq!(kept, 540 * 36);

    let text: &[u32] = &[2, 220, 512, 449, 288, 465, 480, 3];
    let [exact, near] = [exact, embedder].map(|model| model.embed(&[text]).unwrap());
    let cosine: f32 = exact.iter().zip(&near).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.997 && exact != near, "{cosine}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiled_vectors_are_accurate_and_independent_of_batch() {
    let amx = amx::tests::tiles();
    precision::check_amx(amx).unwrap();
    // The lengths cover one row, rows that two threads share, and more than one tile.
    let texts: Vec<Vec<u32>> = [1_u32, 3, 16, 31, 33, 40]
        .map(|length| (0..length).map(|token| (token * 37 + length) % 240).collect())
        .into();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for (name, architecture) in FUSED {
        let spec = golden_spec(name, architecture);
        let config = fused(&golden_file(name, "config.json"), &spec).unwrap();
        let choice = precision::choose_for(Precision::Bf16, false, Isa::detect(), Ok(amx));
        assert_eq!(choice.report.isa, "amx-bf16");
        let weights = opened(Box::new(golden_file(name, "model.safetensors")), &config);
        let head = PoolingHead::read(&spec, &[]).unwrap();
        let tiled = FusedEmbedder::new(&spec, config, weights, head, choice, OPTIONS).unwrap();
        let exact = golden(name, architecture);
        let together = tiled.embed(&texts).unwrap();
        let mut cosines = Vec::new();
        for (text, found) in texts.iter().zip(together.chunks(spec.dimensions)) {
            assert_eq!(tiled.embed(&[text]).unwrap(), found, "{name}: {} tokens", text.len());
            let expected = exact.embed(&[text]).unwrap();
            cosines.push(found.iter().zip(&expected).map(|(a, b)| a * b).sum::<f32>());
        }
        assert!(cosines.iter().all(|cosine| *cosine >= 0.9995), "{name}: {cosines:?}");
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vector_is_normalized_mean_of_token_states() {
    let text: &[u32] = &[2, 220, 100, 49, 188, 65, 180, 3];
    // `golden_spec` sets mean pooling for every model.
    for (name, architecture) in FUSED.into_iter().chain(NEWER) {
        let embedder = golden(name, architecture);
        let compute = |output| embedder.compute(&[text], output).unwrap();
        let (vector, raw) = (compute(Output::Vector), compute(Output::Unnormalized));
        let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() > 1e-2, "{name}: {length}");
        let unit: Vec<f32> = raw.iter().map(|value| value / length).collect();
        assert!(largest_difference(&unit, &vector) < 1e-6, "{name}");
        let states = compute(Output::TokenStates);
        let width = raw.len();
        assert_eq!(states.len(), text.len() * width, "{name}");
        let mean = |at: usize| states.iter().skip(at).step_by(width).sum::<f32>() / 8.0;
        let means: Vec<f32> = (0..width).map(mean).collect();
        assert!(largest_difference(&means, &raw) < 1e-5, "{name}");
    }
}

/// Golden models that the fused encoder runs.
const FUSED: [(&str, Architecture); 6] = [
    ("tiny-bert-mean", Architecture::Bert),
    ("tiny-bert-odd", Architecture::Bert),
    ("tiny-distilbert", Architecture::DistilBert),
    ("tiny-roberta", Architecture::Roberta),
    ("tiny-xlm-roberta", Architecture::XlmRoberta),
    ("tiny-mpnet", Architecture::Mpnet),
];

/// Golden models whose layers have other steps than those of BERT.
const NEWER: [(&str, Architecture); 10] = [
    ("tiny-modernbert", Architecture::ModernBert),
    ("tiny-modernbert-silu", Architecture::ModernBert),
    ("tiny-nomic-bert", Architecture::NomicBert),
    ("tiny-gte", Architecture::Gte),
    ("tiny-eurobert", Architecture::EuroBert),
    ("tiny-qwen3", Architecture::Qwen3),
    ("tiny-qwen3-bidirectional", Architecture::Qwen3),
    ("tiny-gemma3-bidirectional", Architecture::Gemma3Text),
    ("tiny-gemma3-causal", Architecture::Gemma3Text),
    ("tiny-embedding-gemma2", Architecture::EmbeddingGemma2),
];

#[test]
fn thread_count_does_not_change_results() {
    // The cases have fewer rows than threads, rows that no step divides evenly, and more rows than
    // one block.
    let lengths: [&[usize]; 5] = [&[1], &[5], &[40], &[23, 2, 9], &[40, 39, 40, 38, 40, 37, 40]];
    for (name, architecture) in FUSED.into_iter().chain(NEWER) {
        for precision in [Precision::F32, Precision::Int8, Precision::Bf16] {
            let [one, three] = [1, 3].map(|threads| {
                golden_with(
                    name,
                    architecture,
                    EngineOptions { threads, batch_tokens: 300, precision },
                )
            });
            for lengths in lengths {
                let texts: Vec<Vec<u32>> = (1..)
                    .zip(lengths)
                    .map(|(text, &length)| {
                        (0_u32..).take(length).map(|id| (id * text * 7) % 240).collect()
                    })
                    .collect();
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                let expected = one.compute(&texts, Output::TokenStates).unwrap();
                let found = three.compute(&texts, Output::TokenStates).unwrap();
                assert!(found == expected, "{name} {precision} {lengths:?}");
            }
        }
    }
}

proptest! {
    // Use few cases, because each one loads every model.
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn vector_is_independent_of_batch(
        texts in prop::collection::vec(prop::collection::vec(0_u32..240, 1..40), 1..12),
    ) {
        for (name, architecture) in FUSED.into_iter().chain(NEWER) {
            let embedder = golden(name, architecture);
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            for output in [Output::Vector, Output::Unnormalized, Output::TokenStates] {
                let together = embedder.compute(&texts, output).unwrap();
                let mut rest = together.as_slice();
                for text in &texts {
                    let alone = embedder.compute(&[text], output).unwrap();
                    let (own, others) = rest.split_at(alone.len());
                    prop_assert_eq!(&alone, own, "{} {:?}", name, output);
                    rest = others;
                }
                prop_assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn vectors_match_the_reference(
        texts in prop::collection::vec(prop::collection::vec(0_u32..240, 1..40), 1..6),
    ) {
        for (name, architecture) in FUSED {
            let embedder = golden(name, architecture);
            let spec = golden_spec(name, architecture);
            let config = fused(&golden_file(name, "config.json"), &spec).unwrap();
            let reference = Reference::read(&config, &golden_file(name, "model.safetensors"));
            let head = PoolingHead::read(&spec, &[]).unwrap();
            for text in &texts {
                let found = embedder.embed(&[text]).unwrap();
                let states = reference.states(text);
                let expected = head.apply(&states, config.hidden_size, Output::Vector);
                let difference = largest_difference(&found, &expected);
                prop_assert!(difference <= 2e-5, "{} differs by {}", name, difference);
                // The tolerance is larger, because LayerNorm scales a state to a length of √hidden.
                let found = embedder.compute(&[text], Output::TokenStates).unwrap();
                let difference = largest_difference(&found, &states);
                prop_assert!(difference <= 2e-4, "{} states differ by {}", name, difference);
            }
        }
    }
}
