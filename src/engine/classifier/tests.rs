//! Tests: heads computed by hand, and heads that are refused.

use safetensors::Dtype;

use super::head::HeadActivation;
use super::*;
use crate::engine::config::HiddenActivation;
use crate::engine::config::tests::spec;
use crate::engine::spec::Family;
use crate::engine::weights::tests::{f32s, file};
use crate::engine::weights::{Header, WEIGHTS};
use crate::engine::{Architecture, DenseSpec, Pooling};

fn classifier(architecture: Architecture) -> ModelSpec {
    let pooling = Pooling::Cls;
    ModelSpec { labels: Some(1), dimensions: 2, pooling, normalize: false, ..spec(architecture) }
}

fn layout(family: Family, spec: &ModelSpec, config: &str) -> Result<ClassifierLayout, String> {
    let layout = ClassifierLayout::read(config.as_bytes(), (family, 2), spec);
    layout.map(Option::unwrap).map_err(|error| error.to_string())
}

fn load(layout: &ClassifierLayout, bytes: Vec<u8>) -> Result<ClassifierHead, String> {
    let header = Header::read(WEIGHTS, &bytes, layout.tensors().iter()).unwrap();
    layout.load(&header, &bytes).map_err(|error| error.to_string())
}

#[test]
fn tanh_head_is_computed_by_hand() {
    let spec = classifier(Architecture::Bert);
    let layout = layout(Family::Bert, &spec, "{}").unwrap();
    // The tensors of the encoder are ignored, and the prefix is optional.
    let bytes = file(&[
        ("bert.encoder.x", Dtype::F32, &[1], f32s(&[9.0])),
        ("bert.pooler.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.5, 0.5])),
        ("bert.pooler.dense.bias", Dtype::F32, &[2], f32s(&[0.0, 1.0])),
        ("classifier.weight", Dtype::F32, &[1, 2], f32s(&[2.0, -1.0])),
        ("classifier.bias", Dtype::F32, &[1], f32s(&[0.25])),
    ]);
    let head = load(&layout, bytes).unwrap();
    let features = head.features(&[0.5, -0.5]);
    assert_eq!(features, [0.5_f32.tanh(), 1.0_f32.tanh()]);
    let expected = 2.0 * features[0] - features[1] + 0.25;
    assert_eq!((head.logits(&features), head.labels()), (vec![expected], 1));
    assert_eq!(head.weight_bytes(), layout.bytes());
    assert_eq!(layout.bytes(), 9 * 4);
}

#[test]
fn modernbert_head_normalizes() {
    let spec = ModelSpec { pooling: Pooling::Mean, ..classifier(Architecture::ModernBert) };
    let config = r#"{"model_type": "modernbert", "classifier_pooling": "mean",
        "classifier_activation": "relu", "norm_eps": 1e-12}"#;
    let layout = layout(Family::ModernBert, &spec, config).unwrap();
    let bytes = file(&[
        ("model.final_norm.weight", Dtype::F32, &[1], f32s(&[9.0])),
        ("head.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.0, 1.0])),
        ("head.norm.weight", Dtype::F32, &[2], f32s(&[1.0, 2.0])),
        ("classifier.weight", Dtype::F32, &[1, 2], f32s(&[1.0, 1.0])),
        ("classifier.bias", Dtype::F32, &[1], f32s(&[0.0])),
    ]);
    let head = load(&layout, bytes).unwrap();
    let features = head.features(&[-3.0, 4.0]);
    assert!((features[0] + 1.0).abs() < 1e-5 && (features[1] - 2.0).abs() < 1e-5);
    assert!((head.logits(&features)[0] - 1.0).abs() < 1e-5);
    assert_eq!(head.weight_bytes(), layout.bytes());
}

#[test]
fn deberta_names_the_activation_of_its_head() {
    let spec = classifier(Architecture::DebertaV2);
    for (field, expected) in [
        ("", HeadActivation::Hidden(HiddenActivation::Gelu)),
        (r#", "pooler_hidden_act": "tanh""#, HeadActivation::Tanh),
    ] {
        let config = format!(r#"{{"model_type": "deberta-v2"{field}}}"#);
        let layout = layout(Family::DebertaV2, &spec, &config).unwrap();
        assert_eq!((layout.activation, layout.dense), (expected, "pooler.dense"));
    }
}

#[test]
fn contradictory_head_is_refused() {
    let bert = classifier(Architecture::Bert);
    let modern = classifier(Architecture::ModernBert);
    let dense = DenseSpec {
        in_features: 2,
        out_features: 2,
        bias: false,
        activation: crate::engine::Activation::Identity,
    };
    let modern_config = |field: &str| format!(r#"{{"model_type": "modernbert", {field}}}"#);
    let deberta = classifier(Architecture::DebertaV2);
    let deberta_config = |field: &str| format!(r#"{{"model_type": "deberta-v2", {field}}}"#);
    let cases = [
        (Family::Bert, ModelSpec { labels: Some(3), ..bert.clone() }, "{}".to_owned(), "3 labels"),
        (
            Family::Bert,
            ModelSpec { dense: vec![dense], ..bert.clone() },
            "{}".to_owned(),
            "neither dense layers nor a normalization",
        ),
        (
            Family::Bert,
            ModelSpec { pooling: Pooling::Mean, ..bert },
            "{}".to_owned(),
            "the classifier reads the pooling cls, but the manifest has mean",
        ),
        (
            Family::Qwen3,
            classifier(Architecture::Qwen3),
            "{}".to_owned(),
            "the architecture \"qwen3\" is not supported for a classifier",
        ),
        (
            Family::ModernBert,
            modern.clone(),
            modern_config(r#""classifier_pooling": "max""#),
            "classifier_pooling is \"max\"; known: cls, mean",
        ),
        (
            Family::ModernBert,
            modern.clone(),
            modern_config(r#""classifier_activation": "mish""#),
            "classifier_activation is \"mish\"",
        ),
        (Family::ModernBert, modern, modern_config(r#""norm_eps": 0"#), "norm_eps is 0"),
        (
            Family::DebertaV2,
            deberta.clone(),
            deberta_config(r#""pooler_hidden_size": 3"#),
            "pooler_hidden_size is 3; only hidden_size 2 is supported",
        ),
        (
            Family::DebertaV2,
            deberta,
            deberta_config(r#""pooler_hidden_act": "mish""#),
            "pooler_hidden_act is \"mish\"",
        ),
    ];
    for (family, spec, config, expected) in cases {
        let error = ClassifierLayout::read(config.as_bytes(), (family, 2), &spec).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let typed = ModelSpec { token_types: true, ..classifier(Architecture::Bert) };
    assert!(ClassifierLayout::read(b"{}", (Family::Bert, 2), &typed).is_ok());
    let error = ClassifierLayout::read(b"{}", (Family::Bert, 1), &typed).unwrap_err();
    assert!(error.to_string().contains("type_vocab_size is 1, but the texts"), "{error}");
    assert!(refuse_labels(&classifier(Architecture::Static)).is_err());
    let vectors = spec(Architecture::Bert);
    assert_eq!(ClassifierLayout::read(b"", (Family::Bert, 2), &vectors).unwrap(), None);
}

#[test]
fn missing_tensor_is_named() {
    let layout = layout(Family::Roberta, &classifier(Architecture::Roberta), "{}").unwrap();
    let bytes = file(&[
        ("classifier.dense.weight", Dtype::F32, &[2, 2], f32s(&[1.0, 0.0, 0.5, 0.5])),
        ("classifier.dense.bias", Dtype::F32, &[2], f32s(&[0.0, 1.0])),
        ("classifier.out_proj.weight", Dtype::F32, &[2, 2], f32s(&[0.0; 4])),
    ]);
    let error = load(&layout, bytes).err().unwrap();
    let expected = "tensor \"classifier.out_proj.weight\" has shape [2, 2], expected [1, 2]";
    assert_eq!(error, format!("model.safetensors: {expected}"));
}
