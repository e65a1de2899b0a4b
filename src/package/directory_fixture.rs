//! Model directories for tests: the smallest complete ones, in both layouts.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Major version of sentence-transformers whose layout a directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Two,
    Six,
}

/// Name, shape and values of an f32 tensor.
pub(super) type Values<'a> = (&'a str, Vec<usize>, Vec<f32>);

/// Returns a safetensors file of f32 tensors.
pub(super) fn safetensors(tensors: &[Values<'_>]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub(super) fn write_json(directory: &Path, name: &str, value: &Value) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// Creates a directory with a BERT of hidden size 4, a dense layer to 3 dimensions, and prompts.
pub(super) fn model_directory(layout: Layout) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let class = |name: &str, two: &str, six: &str| {
        let class = if layout == Layout::Two { two } else { six };
        json!({ "path": name, "type": format!("sentence_transformers.{class}") })
    };
    write_json(
        path,
        "modules.json",
        &json!([
            class("", "models.Transformer", "base.modules.transformer.Transformer"),
            class("1_Pooling", "models.Pooling", "sentence_transformer.modules.pooling.Pooling"),
            class("2_Dense", "models.Dense", "base.modules.dense.Dense"),
            class("3_Normalize", "models.Normalize", "base.modules.normalize.Normalize"),
        ]),
    );
    write_json(
        path,
        "config.json",
        &json!({
            "model_type": "bert",
            "hidden_size": 4,
            "max_position_embeddings": 64,
        }),
    );
    let tokenizer = json!({
        "version": "1.0",
        "normalizer": { "type": "BertNormalizer", "lowercase": true },
        "model": { "type": "WordPiece", "vocab": { "[UNK]": 0 } },
    });
    write_json(path, "tokenizer.json", &tokenizer);
    let dense = json!({
        "in_features": 4, "out_features": 3, "bias": true,
        "activation_function": "torch.nn.modules.activation.Tanh",
    });
    write_json(path, "2_Dense/config.json", &dense);
    let prompts = json!({ "query": "query: ", "document": "" });
    write_json(
        path,
        "config_sentence_transformers.json",
        &json!({ "prompts": prompts, "default_prompt_name": "query" }),
    );
    match layout {
        Layout::Two => {
            write_json(
                path,
                "sentence_bert_config.json",
                &json!({ "max_seq_length": 32, "do_lower_case": false }),
            );
            write_json(
                path,
                "tokenizer_config.json",
                &json!({ "model_max_length": 48, "do_lower_case": true }),
            );
            write_json(
                path,
                "1_Pooling/config.json",
                &json!({
                    "word_embedding_dimension": 4,
                    "pooling_mode_cls_token": false,
                    "pooling_mode_mean_tokens": true,
                    "pooling_mode_max_tokens": false,
                    "pooling_mode_mean_sqrt_len_tokens": false,
                }),
            );
        }
        Layout::Six => {
            write_json(
                path,
                "sentence_bert_config.json",
                &json!({ "transformer_task": "feature-extraction" }),
            );
            write_json(path, "tokenizer_config.json", &json!({ "model_max_length": 32 }));
            write_json(
                path,
                "1_Pooling/config.json",
                &json!({
                    "embedding_dimension": 4,
                    "pooling_mode": "mean",
                    "include_prompt": true,
                }),
            );
            write_json(
                path,
                "3_Normalize/config.json",
                &json!({ "module_input_name": "sentence_embedding" }),
            );
        }
    }
    let weights = safetensors(&[
        ("embeddings.word_embeddings.weight", vec![2, 4], vec![0.5; 8]),
        ("embeddings.LayerNorm.weight", vec![4], vec![1.0; 4]),
        ("pooler.dense.weight", vec![4, 4], vec![0.25; 16]),
    ]);
    fs::write(path.join("model.safetensors"), weights).unwrap();
    let dense = safetensors(&[
        ("linear.weight", vec![3, 4], vec![0.125; 12]),
        ("linear.bias", vec![3], vec![0.5; 3]),
    ]);
    fs::write(path.join("2_Dense/model.safetensors"), dense).unwrap();
    directory
}
