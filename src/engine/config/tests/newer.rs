//! Tests: ModernBERT and the decoders.

use serde_json::{Value, json};

use super::{golden, golden_json, golden_spec, read, windows};
use crate::engine::Architecture;
use crate::engine::config::{AttentionConfig, LayerConfig, NormKind, NormPlacement, RopeConfig};

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
