//! Tests: the files of each family in both forms, and values that are refused.

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

#[test]
fn distilbert_configuration_keys_are_read() {
    let file = json!({
        "model_type": "distilbert", "vocab_size": 5, "dim": 8, "n_layers": 1, "n_heads": 2,
        "hidden_dim": 4, "activation": "relu", "max_position_embeddings": 10,
        "layer_norm_eps": 0.5,
    });
    let config = read(&file, &spec(Architecture::DistilBert)).unwrap();
    assert_eq!((config.hidden_size, config.layers.len(), config.heads()), (8, 1, 2));
    let feed_forward = &config.layers[0].feed_forward;
    assert_eq!((feed_forward.intermediate, config.embeddings.types), (4, 0));
    assert_eq!(feed_forward.activation, HiddenActivation::Relu);
    // transformers computes with this value and ignores the file.
    assert!((config.norm_epsilon - 1e-12).abs() < f64::EPSILON * 1e-12);
}

#[test]
fn bert_families_differ_in_their_embeddings() {
    let of = |name, architecture| golden(name, architecture).embeddings;
    let bert = of("tiny-bert-mean", Architecture::Bert);
    assert_eq!((bert.positions, bert.types, bert.padding_id, bert.norm), (64, 2, None, true));
    let camembert = of("tiny-camembert", Architecture::Camembert);
    assert_eq!((camembert.positions, camembert.types, camembert.padding_id), (98, 1, Some(1)));
    let mpnet = golden("tiny-mpnet", Architecture::Mpnet);
    assert_eq!(mpnet.relative_bias, Some(RelativeBias::Buckets));
    assert_eq!((mpnet.embeddings.types, mpnet.embeddings.padding_id), (0, Some(1)));
    assert_eq!(of("tiny-distilbert", Architecture::DistilBert).types, 0);
}

#[test]
fn jina_bert_is_recognized_in_a_bert() {
    let config = read(&jina_bert(), &spec(Architecture::Bert)).unwrap();
    assert_eq!(
        (config.family, config.relative_bias),
        (Family::JinaBert, Some(RelativeBias::Alibi))
    );
    assert_eq!((config.embeddings.positions, config.embeddings.types), (0, 2));
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    assert!(attention.bias && attention.output_bias && feed_forward.output_bias);
    assert!(feed_forward.gated && !feed_forward.bias);
    assert_eq!(feed_forward.activation, HiddenActivation::Gelu);
    let mut file = jina_bert();
    file["feed_forward_type"] = "reglu".into();
    let config = read(&file, &spec(Architecture::Bert)).unwrap();
    assert_eq!(config.layers[0].feed_forward.activation, HiddenActivation::Relu);
}

#[test]
fn rotary_berts_have_gated_layers_and_their_own_rotations() {
    let nomic = golden("tiny-nomic-bert", Architecture::NomicBert);
    let LayerConfig { attention, feed_forward, .. } = &nomic.layers[2];
    assert_eq!(attention.rope, Some(RopeConfig { theta: 1000.0, divisor: 1.0 }));
    assert!(!attention.bias && !feed_forward.bias && !feed_forward.output_bias);
    assert!(feed_forward.gated && feed_forward.activation == HiddenActivation::Silu);
    assert_eq!((nomic.embeddings.positions, nomic.embeddings.types), (0, 2));
    assert_eq!((nomic.placement, nomic.norm), (NormPlacement::Post, NormKind::LayerNorm));
    let gte = golden("tiny-gte", Architecture::Gte);
    let LayerConfig { attention, feed_forward, .. } = &gte.layers[0];
    // 8 to the power 2 / 16
    let divisor = 1.296_839_554_651_009_6;
    assert_eq!(attention.rope, Some(RopeConfig { theta: 160_000.0, divisor }));
    assert!(attention.bias && attention.output_bias);
    assert!(!feed_forward.bias && feed_forward.output_bias && feed_forward.gated);
    assert_eq!((gte.embeddings.types, feed_forward.activation), (1, HiddenActivation::Gelu));
    assert_eq!(golden("tiny-gte-en", Architecture::Gte).embeddings.types, 0);
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
fn modernbert_defaults_and_biases_are_read() {
    let mut file = golden_json("tiny-modernbert-gelu", "config.published.json");
    file.as_object_mut().unwrap().retain(|key, _| {
        !["rope", "attn", "local", "norm", "hidden_activation"].iter().any(|p| key.contains(p))
    });
    let spec = golden_spec("tiny-modernbert-gelu", Architecture::ModernBert);
    let config = read(&file, &spec).unwrap();
    let (full, local) = ((None, 160_000.0), (Some(64), 10_000.0));
    assert_eq!(windows(&config), [full, local, local, full]);
    assert!((config.norm_epsilon - 1e-5).abs() < f64::EPSILON);
    assert_eq!(config.norm, NormKind::LayerNormWithoutBias);
    let first: Vec<_> = config.layers.iter().map(|layer| layer.input_norm).collect();
    assert_eq!(first, [false, true, true, true]);
    for key in ["norm_bias", "attention_bias", "mlp_bias"] {
        file[key] = true.into();
    }
    let config = read(&file, &spec).unwrap();
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    assert_eq!(config.norm, NormKind::LayerNorm);
    assert!(attention.bias && attention.output_bias);
    assert!(feed_forward.bias && feed_forward.output_bias);
}

#[test]
fn decoders_have_their_norms_heads_and_scales() {
    let qwen = golden("tiny-qwen3", Architecture::Qwen3);
    let attention = &qwen.layers[0].attention;
    assert_eq!((attention.heads, attention.kv_heads, attention.head), (4, 2, 32));
    assert!(attention.causal && attention.qk_norm && !attention.v_norm);
    assert_eq!((qwen.norm, qwen.placement), (NormKind::Rms, NormPlacement::Pre));
    let bidirectional = golden("tiny-qwen3-bidirectional", Architecture::Qwen3);
    assert!(!bidirectional.layers[0].attention.causal);
    let euro = golden("tiny-eurobert", Architecture::EuroBert);
    let attention = &euro.layers[0].attention;
    assert_eq!(attention.rope, Some(RopeConfig { theta: 250_000.0, divisor: 1.0 }));
    assert!(!attention.causal && !attention.qk_norm && euro.final_norm);
    let gemma = golden("tiny-gemma3-causal", Architecture::Gemma3Text);
    let attention = &gemma.layers[0].attention;
    assert!((f64::from(attention.scale) - 24_f64.powf(-0.5)).abs() < 1e-7 && attention.causal);
    assert_eq!((gemma.norm, gemma.placement), (NormKind::RmsPlusOne, NormPlacement::Sandwich));
    assert!((gemma.embeddings.scale - 8.0).abs() < f32::EPSILON);
    let bidirectional = golden("tiny-gemma3-bidirectional", Architecture::Gemma3Text);
    assert!(!bidirectional.layers[0].attention.causal);
}

#[test]
fn qwen3_layers_may_have_windows() {
    let mut file = golden_json("tiny-qwen3", "config.published.json");
    for (key, value) in [("use_sliding_window", json!(true)), ("sliding_window", json!(5))] {
        file[key] = value;
    }
    file["max_window_layers"] = 2.into();
    let spec = golden_spec("tiny-qwen3", Architecture::Qwen3);
    let windows = |file: &Value| -> Vec<_> {
        let config = read(file, &spec).unwrap();
        config.layers.iter().map(|layer| layer.attention.window).collect()
    };
    assert_eq!(windows(&file), [None, None, Some(4)]);
    file["is_causal"] = false.into();
    assert_eq!(windows(&file), [None, None, Some(5)]);
    file["use_sliding_window"] = false.into();
    assert_eq!(windows(&file), [None; 3]);
}

#[test]
fn embedding_gemma2_layers_have_their_own_sizes() {
    let config = golden("tiny-embedding-gemma2", Architecture::EmbeddingGemma2);
    let heads: Vec<_> = config
        .layers
        .iter()
        .map(|LayerConfig { attention: a, .. }| (a.heads, a.kv_heads, a.head))
        .collect();
    assert_eq!(heads, [(4, 2, 16), (4, 1, 32), (4, 2, 16), (4, 1, 32)]);
    assert!(config.layers.iter().all(|layer| layer.attention.v_norm));
    assert!((config.layers[0].attention.scale - 1.0).abs() < f32::EPSILON);
    assert_eq!((config.per_layer_input, config.projection), (Some(24), Some(96)));
    assert_eq!((config.norm, config.output_size()), (NormKind::Rms, 96));
    let spec = golden_spec("tiny-embedding-gemma2", Architecture::EmbeddingGemma2);
    // Numbers of layers have leading zeros in deeper models.
    let mut file = golden_json("tiny-embedding-gemma2", "config.json");
    let sizes = json!({ "head_dim": 32, "num_key_value_heads": 1 });
    file["per_layer_config"] = json!({ "01": sizes, "03": sizes });
    assert_eq!(read(&file, &spec), Ok(config));
    file["per_layer_config"] = Value::Null;
    let config = read(&file, &spec).unwrap();
    let AttentionConfig { kv_heads, head, .. } = config.layers[3].attention;
    assert_eq!((kv_heads, head), (1, 512));
    // The last layer sees the whole text, also against the file.
    file["layer_types"] = json!(vec!["sliding_attention"; 4]);
    let config = read(&file, &spec).unwrap();
    let local: Vec<_> = config.layers.iter().map(|l| l.attention.window.is_some()).collect();
    assert_eq!(local, [true, true, true, false]);
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

/// Checks the invariant of the module, and that sizes can be multiplied.
fn check_invariant(config: &EncoderConfig) {
    assert!((1..=MAX_LAYERS).contains(&config.layers.len()));
    let sizes = [config.vocab_size, config.hidden_size, config.output_size()];
    assert!(sizes.iter().all(|size| (1..=MAX_SIZE).contains(size)));
    for LayerConfig { attention, feed_forward, .. } in &config.layers {
        let AttentionConfig { heads, kv_heads, head, scale, .. } = *attention;
        assert!(heads.is_multiple_of(kv_heads) && (1..=MAX_SIZE).contains(&(heads * head)));
        assert!(scale.is_finite() && scale > 0.0);
        assert!((1..=MAX_SIZE).contains(&feed_forward.intermediate));
        assert!(attention.window.is_none_or(|window| window <= MAX_SIZE));
        if let Some(RopeConfig { theta, divisor }) = attention.rope {
            assert!(head.is_multiple_of(2));
            assert!(theta > 0.0 && divisor > 0.0 && theta.is_finite() && divisor.is_finite());
        }
    }
    assert!(encoder_tensors(config).all(|tensor| !tensor.shape.contains(&0)));
    config.matrix_operations(usize::MAX);
}

/// Calls `change` with every value in `file` that is not an object, and its path.
fn for_each_field(file: &Value, path: &str, change: &mut dyn FnMut(&str)) {
    match file {
        Value::Object(map) => {
            for (key, value) in map {
                for_each_field(value, &format!("{path}/{key}"), change);
            }
        }
        _ => change(path),
    }
}

#[test]
fn hostile_values_are_refused_by_name() {
    let values = [
        json!(0),
        json!(u64::MAX),
        json!(1_u64 << 40),
        json!(-1),
        json!(1.5),
        json!(-1e300),
        json!(1e300),
        json!(true),
        json!("hostile"),
        json!([]),
        json!(["hostile"]),
        json!({ "hostile": 0 }),
        Value::Null,
    ];
    let golden = GOLDEN.iter().flat_map(|&(name, architecture, published)| {
        let files = ["config.json"].into_iter().chain(published.then_some("config.published.json"));
        let spec = golden_spec(name, architecture);
        files.map(move |file| (golden_json(name, file), spec.clone()))
    });
    for (file, spec) in golden.chain([(jina_bert(), spec(Architecture::Bert))]) {
        let mut refused = 0;
        for_each_field(&file, "", &mut |path| {
            let field = path.rsplit('/').next().unwrap();
            // DistilBERT has other names for these sizes.
            let usual = match field {
                "dim" => "hidden_size",
                "n_layers" => "num_hidden_layers",
                "n_heads" => "num_attention_heads",
                "hidden_dim" => "intermediate_size",
                "activation" => "hidden_act",
                _ => field,
            };
            for value in &values {
                let mut changed = file.clone();
                *changed.pointer_mut(path).unwrap() = value.clone();
                match read(&changed, &spec) {
                    Ok(config) => check_invariant(&config),
                    Err(error) => {
                        let named = error.contains(field) || error.contains(usual);
                        assert!(named, "{path} = {value}: {error}");
                        refused += 1;
                    }
                }
            }
        });
        assert!(refused > 100, "{refused} values of {}", spec.architecture);
    }
}

#[test]
fn contradictory_bert_is_refused() {
    let kinds = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish";
    let cases = [
        (json!({ "hidden_act": "mish" }), format!("hidden_act is \"mish\"; known: {kinds}")),
        (
            json!({ "model_type": "t5" }),
            "model_type is \"t5\", but the manifest has the architecture \"bert\"".to_owned(),
        ),
        (
            json!({ "max_position_embeddings": 9 }),
            "max_position_embeddings allows 9 positions, fewer than max_sequence_length 10"
                .to_owned(),
        ),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0".to_owned()),
        (
            json!({ "num_attention_heads": 3 }),
            "hidden_size 8 is not a multiple of num_attention_heads 3".to_owned(),
        ),
        (json!({ "type_vocab_size": 0 }), "type_vocab_size is 0".to_owned()),
        (
            json!({ "num_hidden_layers": 513 }),
            "num_hidden_layers is 513, above the limit 512".to_owned(),
        ),
        (
            json!({ "layer_norm_eps": -1e-12 }),
            "layer_norm_eps is -0.000000000001, expected above 0 and in the range of f32"
                .to_owned(),
        ),
        (
            json!({ "position_embedding_type": "relative_key" }),
            "position_embedding_type \"relative_key\" is not supported".to_owned(),
        ),
        (
            json!({ "position_embedding_type": "alibi" }),
            "feed_forward_type \"original\" is not supported with position_embedding_type \
             \"alibi\""
                .to_owned(),
        ),
        (
            json!({ "_name_or_path": "jinaai/jina-bert-v2-qk-post-norm" }),
            "_name_or_path \"jinaai/jina-bert-v2-qk-post-norm\" is not supported".to_owned(),
        ),
        (
            json!({ "is_decoder": true }),
            "is_decoder is true; only encoders are supported".to_owned(),
        ),
    ];
    check_refusals(&bert(), &spec(Architecture::Bert), &cases);
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
fn every_second_layer_of_nomic_has_experts() {
    let spec = ModelSpec { dimensions: 64, ..spec(Architecture::NomicBert) };
    let with = |field: &str, value: Value| {
        let mut file = nomic_experts();
        file["n_layer"] = 4.into();
        file[field] = value;
        let config = read(&file, &spec).unwrap();
        let experts = config.layers.iter().map(|layer| layer.feed_forward.experts);
        (experts.collect::<Vec<_>>(), config)
    };
    let experts = Some(ExpertsConfig { count: 4, used: 2 });
    let (found, config) = with("n_layer", 4.into());
    assert_eq!(found, [None, experts, None, experts]);
    let settings = |layer: usize| {
        let FeedForwardConfig { gated, bias, output_bias, .. } = config.layers[layer].feed_forward;
        (gated, bias, output_bias)
    };
    assert_eq!([settings(0), settings(1)], [(false, true, true), (false, false, true)]);
    // A token uses two of the experts, and the router.
    let dense = with("moe_every_n_layers", 0.into()).1;
    let difference = config.matrix_operations(3) - dense.matrix_operations(3);
    assert_eq!(difference, 2 * 3 * 2 * (2 * 64 * 96 + 4 * 64));
    let names = encoder_tensors(&config).map(|tensor| (tensor.name, tensor.shape));
    let names: Vec<_> =
        names.filter(|(name, _)| name.starts_with("encoder.layers.3.mlp.")).collect();
    assert_eq!(names.len(), 2 + 2 * 4);
    for (name, shape) in [
        ("router.layer.weight", vec![4, 64]),
        ("experts.0.fc1.weight", vec![96, 64]),
        ("experts.3.fc2.weight", vec![64, 96]),
        ("experts.bias", vec![64]),
    ] {
        assert!(names.contains(&(format!("encoder.layers.3.mlp.{name}"), shape)), "{name}");
    }
    // Layers with the number 1 modulo this one have experts.
    for every in [json!(1), json!(0), json!(-1), json!(null)] {
        assert_eq!(with("moe_every_n_layers", every).0, [None; 4]);
    }
    assert_eq!(with("moe_every_n_layers", i64::MAX.into()).0, [None, experts, None, None]);
}

#[test]
fn impossible_experts_are_refused() {
    let spec = ModelSpec { dimensions: 64, ..spec(Architecture::NomicBert) };
    let cases = [
        (json!({ "num_experts": 0 }), "num_experts is 0"),
        (json!({ "num_experts": null }), "num_experts is 0"),
        (json!({ "moe_top_k": 0 }), "moe_top_k is 0"),
        (json!({ "moe_top_k": null }), "moe_top_k is 0"),
        (json!({ "moe_top_k": 5 }), "moe_top_k is 5, above the limit 4"),
        (json!({ "num_experts": 65 }), "num_experts is 65, above the limit 64"),
        (
            json!({ "num_experts": u64::MAX, "moe_top_k": u64::MAX }),
            "num_experts is 18446744073709551615, above the limit 64",
        ),
        (
            json!({ "moe_normalize_expert_weights": true }),
            "moe_normalize_expert_weights is true; only false is supported",
        ),
        (
            json!({ "expert_choice_router": true }),
            "expert_choice_router is true; only false is supported",
        ),
        (json!({ "num_shared_experts": 1 }), "num_shared_experts is 1; only 0 is supported"),
        (json!({ "ffn_div": 2 }), "ffn_div is 2; only 1 is supported"),
    ];
    let cases = cases.map(|(change, message)| (change, message.to_owned()));
    check_refusals(&nomic_experts(), &spec, &cases);
}

#[test]
fn unsupported_settings_of_newer_families_are_refused() {
    let check = |name, file, architecture, cases: &[(Value, &str)]| {
        let cases: Vec<_> =
            cases.iter().map(|(change, message)| (change.clone(), (*message).to_owned())).collect();
        check_refusals(&golden_json(name, file), &golden_spec(name, architecture), &cases);
    };
    check(
        "tiny-modernbert-gelu",
        "config.published.json",
        Architecture::ModernBert,
        &[
            (json!({ "global_attn_every_n_layers": 0 }), "global_attn_every_n_layers is 0"),
            (
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "layer_types has 2 layers, but num_hidden_layers is 4",
            ),
            (
                json!({ "layer_types": vec!["chunked_attention"; 4] }),
                "layer_types has \"chunked_attention\"; known: full_attention, sliding_attention",
            ),
            (
                json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
                "rope_type \"yarn\" is not supported",
            ),
            (
                json!({ "num_attention_heads": 64 }),
                "head_dim is 1; only heads of an even width can be rotated",
            ),
        ],
    );
    check(
        "tiny-nomic-bert",
        "config.published.json",
        Architecture::NomicBert,
        &[
            (
                json!({ "activation_function": "gelu_new" }),
                "activation_function is \"gelu_new\"; known: geglu, gelu, swiglu",
            ),
            (
                json!({ "num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2 }),
                "activation_function is \"swiglu\"; experts are supported only with \"gelu\"",
            ),
            (json!({ "prenorm": true }), "prenorm is true; only false is supported"),
            (json!({ "rotary_emb_fraction": 0.5 }), "rotary_emb_fraction is 0.5; expected 1"),
            (
                json!({ "rotary_scaling_factor": 2, "max_trained_positions": 39 }),
                "rotary_scaling_factor 2 is not supported for max_sequence_length 40, which is \
                 above max_trained_positions 39",
            ),
            (json!({ "n_head": 0 }), "n_head is 0"),
        ],
    );
    check(
        "tiny-gte",
        "config.published.json",
        Architecture::Gte,
        &[
            (json!({ "pack_qkv": false }), "pack_qkv is false; only true is supported"),
            (
                json!({ "rope_scaling": { "type": "ntk", "factor": 8, "mixed_b": 0.5 } }),
                "mixed_b of rope_scaling is not supported",
            ),
            (
                json!({ "rope_scaling": { "type": "ntk", "factor": 0.5 } }),
                "factor of rope_scaling is 0.5, expected 1 or more",
            ),
            (json!({ "rope_theta": null }), "rope_theta is missing"),
            (
                json!({ "position_embedding_type": "absolute" }),
                "position_embedding_type \"absolute\" is not supported",
            ),
        ],
    );
    check(
        "tiny-qwen3",
        "config.json",
        Architecture::Qwen3,
        &[
            (
                json!({ "num_key_value_heads": 3 }),
                "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
            ),
            (
                json!({ "num_attention_heads": 1 << 20, "head_dim": 1 << 20 }),
                "num_attention_heads times head_dim is 1099511627776, above the limit 16777216",
            ),
            (
                json!({ "use_bidirectional_attention": true }),
                "use_bidirectional_attention is true, but is_causal is not false",
            ),
            (
                json!({ "rope_parameters": { "rope_theta": 0.0 } }),
                "rope_theta is 0, expected above 0 and in the range of f32",
            ),
            (
                json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e6 } } }),
                "rope_parameters has full_attention or sliding_attention, which this architecture \
                 does not have",
            ),
        ],
    );
    check(
        "tiny-gemma3-causal",
        "config.json",
        Architecture::Gemma3Text,
        &[
            (json!({ "sliding_window": 0 }), "sliding_window is 0"),
            (
                json!({ "attn_logit_softcapping": 50.0 }),
                "attn_logit_softcapping 50 is not supported",
            ),
            (
                json!({ "is_causal": false }),
                "is_causal is false, but use_bidirectional_attention is not true",
            ),
        ],
    );
    check(
        "tiny-embedding-gemma2",
        "config.json",
        Architecture::EmbeddingGemma2,
        &[(
            json!({ "per_layer_config": { "4": {} } }),
            "per_layer_config has layer \"4\", but num_hidden_layers is 4",
        )],
    );
}

#[test]
fn deberta_has_tables_of_distances() {
    let name = "tiny-deberta-v2-cross-encoder";
    let deberta = golden(name, Architecture::DebertaV2);
    let buckets = DistanceBuckets { count: 8, farthest: 128 };
    assert_eq!(deberta.relative_bias, Some(RelativeBias::Disentangled(buckets)));
    assert!((deberta.layers[0].attention.scale - 1.0 / 48_f32.sqrt()).abs() < 1e-7);
    let EmbeddingConfig { positions, types, .. } = deberta.embeddings;
    assert_eq!((positions, types), (0, 0));
    let spec = golden_spec(name, Architecture::DebertaV2);
    let with = |fields: Value| {
        let mut file = golden_json(name, "config.json");
        for (key, value) in fields.as_object().unwrap() {
            file[key] = value.clone();
        }
        read(&file, &spec)
    };
    // Published files have one text.
    assert_eq!(with(json!({ "pos_att_type": "c2p|p2c" })), Ok(deberta));
    let positions = with(json!({ "position_biased_input": true, "type_vocab_size": 2 })).unwrap();
    assert_eq!((positions.embeddings.positions, positions.embeddings.types), (128, 2));
    for (fields, expected) in [
        (json!({ "relative_attention": false }), "relative_attention is false; only true"),
        (json!({ "share_att_key": false }), "share_att_key is false; only true is supported"),
        (json!({ "pos_att_type": ["c2p"] }), "pos_att_type is \"c2p\"; only \"c2p|p2c\""),
        (json!({ "pos_att_type": null }), "pos_att_type is \"\"; only \"c2p|p2c\""),
        (json!({ "norm_rel_ebd": "none" }), "norm_rel_ebd is \"none\"; only \"layer_norm\""),
        (json!({ "conv_kernel_size": 3 }), "conv_kernel_size is 3; layers with a convolution"),
        (json!({ "embedding_size": 32 }), "embedding_size is 32; only hidden_size 64"),
        (json!({ "attention_head_size": 8 }), "attention_head_size is 8, expected 16"),
        (json!({ "position_buckets": -1 }), "position_buckets is -1; expected at least 2, and"),
        (json!({ "position_buckets": 254 }), "less than twice the largest distance 128"),
    ] {
        let error = with(fields).unwrap_err();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn padding_id_reduces_roberta_and_mpnet_positions() {
    for (architecture, padding_id, positions) in [
        (Architecture::Camembert, 1, 10),
        (Architecture::Roberta, 1, 10),
        (Architecture::XlmRoberta, 3, 8),
        (Architecture::Mpnet, 3, 10),
    ] {
        let mut file = bert();
        file["model_type"] = architecture.name().into();
        file["pad_token_id"] = padding_id.into();
        file["max_position_embeddings"] = 12.into();
        let mut spec = spec(architecture);
        spec.max_sequence_length = positions;
        assert!(read(&file, &spec).is_ok(), "{architecture}");
        spec.max_sequence_length += 1;
        let error = read(&file, &spec).unwrap_err();
        let max = positions + 1;
        let message = format!(
            "max_position_embeddings allows {positions} positions, fewer than max_sequence_length \
             {max}"
        );
        assert_eq!(error, format!("config.json: {message}"), "{architecture}");
    }
    let mut file = bert();
    file["model_type"] = "roberta".into();
    file["pad_token_id"] = 5.into();
    let error = read(&file, &spec(Architecture::Roberta)).unwrap_err();
    assert_eq!(error, "config.json: pad_token_id 5 is outside vocab_size 5");
}

#[test]
fn mpnet_with_other_buckets_is_refused() {
    let mut file = bert();
    file["model_type"] = "mpnet".into();
    file["max_position_embeddings"] = 12.into();
    file["relative_attention_num_buckets"] = 64.into();
    let error = read(&file, &spec(Architecture::Mpnet)).unwrap_err();
    assert_eq!(error, "config.json: relative_attention_num_buckets is 64; MPNet has 32");
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
