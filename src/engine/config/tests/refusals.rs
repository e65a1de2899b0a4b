//! Tests: hostile values of every field, and settings that are not supported.

use serde_json::{Value, json};

use super::{GOLDEN, check_refusals, golden_json, golden_spec, jina_bert, read, spec};
use crate::engine::Architecture;
use crate::engine::config::{
    AttentionConfig, EncoderConfig, LayerConfig, MAX_LAYERS, MAX_SIZE, RopeConfig,
};
use crate::engine::tensor_names::encoder_tensors;

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
