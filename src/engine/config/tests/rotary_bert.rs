//! Tests: nomic-bert, GTE and layers with experts.

use serde_json::{Value, json};

use super::{check_refusals, golden, nomic_experts, read, spec};
use crate::engine::config::{
    ExpertsConfig, FeedForwardConfig, HiddenActivation, LayerConfig, NormKind, NormPlacement,
    RopeConfig,
};
use crate::engine::tensor_names::encoder_tensors;
use crate::engine::{Architecture, ModelSpec};

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
