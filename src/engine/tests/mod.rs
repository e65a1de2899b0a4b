//! Tests: models from their files to their vectors, and the errors on the way.

mod stored_weights;
mod vectors;

use std::path::Path;

use serde_json::json;

use crate::engine::config::EncoderConfig;
use crate::engine::config::tests::{bert, fused, spec};
use crate::engine::weights::Header;
use crate::engine::weights::tests::{f32s, file};
use crate::engine::{
    Activation, Architecture, DenseSpec, EngineError, EngineOptions, LoadedModel, ModelFiles,
    ModelSpec, Precision, WeightsFile, load, load_with,
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
