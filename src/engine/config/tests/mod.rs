//! Tests: the files of each family in both forms, and what all families have in common.

mod bert;
mod newer;
mod refusals;
mod rotary_bert;

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::base::errors::chain;
use crate::engine::spec::Runtime;
use crate::engine::tensor_names::encoder_tensors;
use crate::engine::{Activation, Architecture, DenseSpec, Pooling, TokenHeads};

pub(in crate::engine) fn spec(architecture: Architecture) -> ModelSpec {
    ModelSpec {
        architecture,
        dimensions: 8,
        max_sequence_length: 10,
        pooling: Pooling::Mean,
        dense: Vec::new(),
        normalize: false,
        labels: None,
        token_types: false,
        token_heads: TokenHeads::default(),
    }
}

pub(in crate::engine) fn bert() -> Value {
    json!({
        "model_type": "bert", "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 4, "hidden_act": "gelu",
        "max_position_embeddings": 10, "type_vocab_size": 2,
    })
}

/// Returns the form in which nomic-embed-text-v2-moe was published, with smaller sizes. The second
/// of its two layers has experts.
pub(in crate::engine) fn nomic_experts() -> Value {
    json!({
        "model_type": "nomic_bert", "vocab_size": 40, "n_embd": 64, "n_head": 4, "n_layer": 2,
        "n_inner": 96, "n_positions": 256, "type_vocab_size": 1, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu", "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": false, "rotary_emb_scale_base": null,
        "rotary_scaling_factor": null, "qkv_proj_bias": true, "mlp_fc1_bias": true,
        "mlp_fc2_bias": true, "num_experts": 4, "moe_top_k": 2, "moe_every_n_layers": 2,
        "moe_normalize_expert_weights": false, "expert_choice_router": false,
        "num_shared_experts": 0, "ffn_div": 1,
    })
}

/// Reads the configuration of a model that the fused encoder runs.
pub(in crate::engine) fn fused(
    bytes: &[u8],
    spec: &ModelSpec,
) -> Result<EncoderConfig, EngineError> {
    let Runtime::Fused(family) = spec.architecture.runtime() else {
        panic!("{} is not run by the fused encoder", spec.architecture);
    };
    EncoderConfig::read(bytes, family, spec)
}

fn read(file: &Value, spec: &ModelSpec) -> Result<EncoderConfig, String> {
    fused(file.to_string().as_bytes(), spec).map_err(|error| chain(&error))
}

/// Models in `tests/golden`, with whether they have a configuration in the published form.
pub(in crate::engine) const GOLDEN: [(&str, Architecture, bool); 23] = [
    ("tiny-bert-mean", Architecture::Bert, false),
    ("tiny-bert-odd", Architecture::Bert, false),
    ("tiny-bert-f16", Architecture::Bert, false),
    ("tiny-camembert", Architecture::Camembert, false),
    ("tiny-deberta-v2-cross-encoder", Architecture::DebertaV2, false),
    ("tiny-distilbert", Architecture::DistilBert, false),
    ("tiny-distiluse", Architecture::DistilBert, false),
    ("tiny-embedding-gemma2", Architecture::EmbeddingGemma2, true),
    ("tiny-eurobert", Architecture::EuroBert, true),
    ("tiny-gemma3-bidirectional", Architecture::Gemma3Text, true),
    ("tiny-gemma3-causal", Architecture::Gemma3Text, true),
    ("tiny-gte", Architecture::Gte, true),
    ("tiny-gte-en", Architecture::Gte, true),
    ("tiny-modernbert", Architecture::ModernBert, false),
    ("tiny-modernbert-cross-encoder", Architecture::ModernBert, false),
    ("tiny-modernbert-gelu", Architecture::ModernBert, true),
    ("tiny-modernbert-silu", Architecture::ModernBert, true),
    ("tiny-mpnet", Architecture::Mpnet, false),
    ("tiny-nomic-bert", Architecture::NomicBert, true),
    ("tiny-qwen3", Architecture::Qwen3, true),
    ("tiny-qwen3-bidirectional", Architecture::Qwen3, false),
    ("tiny-roberta", Architecture::Roberta, false),
    ("tiny-xlm-roberta", Architecture::XlmRoberta, false),
];

/// Returns the specification of the golden model `name`.
fn golden_spec(name: &str, architecture: Architecture) -> ModelSpec {
    let dimensions = match name {
        "tiny-bert-odd" => 60,
        "tiny-embedding-gemma2" => 96,
        _ => 64,
    };
    ModelSpec { dimensions, max_sequence_length: 40, ..spec(architecture) }
}

/// Returns the content of `file` of the golden model `name`.
pub(in crate::engine) fn golden_file(name: &str, file: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(directory.join(file)).unwrap()
}

fn golden_json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&golden_file(name, file)).unwrap()
}

/// Returns the configuration of the golden model `name`.
pub(in crate::engine) fn golden(name: &str, architecture: Architecture) -> EncoderConfig {
    read(&golden_json(name, "config.json"), &golden_spec(name, architecture)).unwrap()
}

/// Returns the version 2 of jina-bert that jina-embeddings-v2-small-en is, with smaller sizes.
fn jina_bert() -> Value {
    let mut file = bert();
    file["_name_or_path"] = "jinaai/jina-bert-implementation".into();
    file["position_embedding_type"] = "alibi".into();
    file["feed_forward_type"] = "geglu".into();
    file
}

#[test]
fn published_and_new_configurations_are_equivalent() {
    for (name, architecture, published) in GOLDEN {
        let spec = golden_spec(name, architecture);
        let new = golden(name, architecture);
        if published {
            let published = read(&golden_json(name, "config.published.json"), &spec);
            assert_eq!(published.as_ref(), Ok(&new), "{name}");
        }
    }
}

/// Returns the window and the base of the rotation of each layer.
fn windows(config: &EncoderConfig) -> Vec<(Option<usize>, f64)> {
    let of_layer = |layer: &LayerConfig| {
        (layer.attention.window, layer.attention.rope.as_ref().unwrap().theta)
    };
    config.layers.iter().map(of_layer).collect()
}

#[test]
fn windows_follow_the_meaning_of_each_family() {
    // ModernBERT: half of the value on either side, the token excluded.
    let config = golden("tiny-modernbert-silu", Architecture::ModernBert);
    let (full, local) = ((None, 80_000.0), (Some(4), 20_000.0));
    assert_eq!(windows(&config), [full, local, local, full]);
    // Gemma 3, in both directions: half of the value too.
    let config = golden("tiny-gemma3-bidirectional", Architecture::Gemma3Text);
    let (full, local) = ((None, 1e6), (Some(8), 1e4));
    assert_eq!(windows(&config), [local, local, full, full]);
    // Gemma 3, causal: the value includes the token itself.
    let config = golden("tiny-gemma3-causal", Architecture::Gemma3Text);
    let local = (Some(7), 1e4);
    assert_eq!(windows(&config), [local, local, full, full]);
    // EmbeddingGemma 2: the value is the distance.
    let config = golden("tiny-embedding-gemma2", Architecture::EmbeddingGemma2);
    let local = (Some(8), 1e4);
    assert_eq!(windows(&config), [local, full, local, full]);
}

#[test]
fn old_files_name_layers_by_a_pattern() {
    let mut file = golden_json("tiny-gemma3-causal", "config.published.json");
    let map = file.as_object_mut().unwrap();
    map.remove("layer_types");
    map.insert("sliding_window_pattern".to_owned(), 2.into());
    let spec = golden_spec("tiny-gemma3-causal", Architecture::Gemma3Text);
    let local = |file: &Value| -> Vec<bool> {
        let config = read(file, &spec).unwrap();
        config.layers.iter().map(|layer| layer.attention.window.is_some()).collect()
    };
    assert_eq!(local(&file), [true, false, true, false]);
    // The default is six.
    file.as_object_mut().unwrap().remove("sliding_window_pattern");
    assert_eq!(local(&file), [true; 4]);
    let mut file = golden_json("tiny-modernbert-gelu", "config.published.json");
    file["global_attn_every_n_layers"] = 2.into();
    let spec = golden_spec("tiny-modernbert-gelu", Architecture::ModernBert);
    let config = read(&file, &spec).unwrap();
    let local: Vec<_> = config.layers.iter().map(|layer| layer.attention.window).collect();
    assert_eq!(local, [None, Some(8), None, Some(8)]);
}

#[test]
fn linear_scaling_divides_frequencies() {
    let rope = |file: &Value, name: &str, architecture| {
        let config = read(file, &golden_spec(name, architecture)).unwrap();
        config.layers.iter().map(|layer| layer.attention.rope.as_ref().unwrap().divisor).collect()
    };
    let linear = json!({ "type": "linear", "factor": 4.0 });
    let mut file = golden_json("tiny-eurobert", "config.published.json");
    file["rope_scaling"] = linear.clone();
    let found: Vec<f64> = rope(&file, "tiny-eurobert", Architecture::EuroBert);
    assert_eq!(found, [4.0; 3]);
    // In Gemma 3, the old field belongs to the layers without a window.
    let mut file = golden_json("tiny-gemma3-causal", "config.published.json");
    file["rope_scaling"] = linear;
    let found: Vec<f64> = rope(&file, "tiny-gemma3-causal", Architecture::Gemma3Text);
    assert_eq!(found, [1.0, 1.0, 4.0, 4.0]);
}

#[test]
fn cost_counts_the_pairs_in_reach() {
    let config = read(&bert(), &spec(Architecture::Bert)).unwrap();
    // Each token needs 4·8² + 2·8·4 = 320 multiplications, and 2·8 for each token that it attends
    // to.
    assert_eq!(config.matrix_operations(0), 0);
    assert_eq!(config.matrix_operations(1), 2 * (320 + 16));
    assert_eq!(config.matrix_operations(3), 2 * 3 * (320 + 48));
    let attention =
        |causal, window| AttentionConfig { causal, window, ..config.layers[0].attention.clone() };
    for (causal, window) in
        [(false, None), (true, None), (false, Some(0)), (false, Some(3)), (true, Some(3))]
    {
        let reach = window.unwrap_or(usize::MAX);
        for tokens in 0..12_usize {
            let pairs = (0..tokens)
                .flat_map(|query| (0..tokens).map(move |key| (query, key)))
                .filter(|(query, key)| query.abs_diff(*key) <= reach && !(causal && key > query));
            let found = attention(causal, window).attended_pairs(tokens as u64);
            assert_eq!(found, pairs.count() as u64, "{causal} {window:?} {tokens}");
        }
    }
    // A token also needs the products of EmbeddingGemma 2 for its second vectors, and its
    // projection.
    let config = golden("tiny-embedding-gemma2", Architecture::EmbeddingGemma2);
    let tensors = encoder_tensors(&config)
        .filter(|tensor| tensor.shape.len() == 2 && !tensor.name.starts_with("embed_tokens"));
    let weights: usize = tensors.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let scores: usize =
        config.layers.iter().map(|l| 2 * l.attention.heads * l.attention.head).sum();
    assert_eq!(config.matrix_operations(1), 2 * (weights + scores) as u64);
}

/// Checks that each change of `file` is refused with its message.
fn check_refusals(file: &Value, spec: &ModelSpec, cases: &[(Value, String)]) {
    assert!(read(file, spec).is_ok());
    for (change, message) in cases {
        let mut file = file.clone();
        file.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let error = read(&file, spec).unwrap_err();
        assert_eq!(error, format!("config.json: {message}"));
    }
}

#[test]
fn dense_layer_dimensions_must_match() {
    let dense = |in_features, out_features| DenseSpec {
        in_features,
        out_features,
        bias: true,
        activation: Activation::Tanh,
    };
    let mut spec = spec(Architecture::Bert);
    spec.dense = vec![dense(8, 4), dense(4, 6)];
    let error = read(&bert(), &spec).unwrap_err();
    assert_eq!(error, "the vectors have 6 dimensions, but the manifest has 8");
    spec.dimensions = 6;
    assert!(read(&bert(), &spec).is_ok());
    spec.dense[1].in_features = 5;
    let error = read(&bert(), &spec).unwrap_err();
    assert_eq!(error, "dense layer 1 takes vectors of length 5, and gets 4");
}

#[test]
fn invalid_configuration_error_names_file_and_field() {
    let error = |text: &str| chain(&fused(text.as_bytes(), &spec(Architecture::Bert)).unwrap_err());
    let missing = error("{}");
    assert!(missing.starts_with("config.json cannot be read: "), "{missing}");
    assert!(missing.contains("model_type"), "{missing}");
    let nan = bert().to_string().replace("\"hidden_size\":8", "\"hidden_size\":NaN");
    assert!(error(&nan).contains("hidden_size"), "{}", error(&nan));
    let trailing = format!("{} x", bert());
    assert!(error(&trailing).contains("trailing characters"), "{}", error(&trailing));
}
