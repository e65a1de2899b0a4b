//! Tests of `convert`.

use std::error::Error as _;
use std::fs;

use serde_json::{Value, json};

use super::super::directory_fixture::{Layout, model_directory, safetensors, write_json};
use super::super::manifest::{DenseLayer, MAX_JSON, MAX_SEQUENCE_LENGTH};
use super::*;

fn read(directory: &Path) -> Result<ModelDirectory, ModelDirectoryError> {
    ModelDirectory::read(directory, StatedSteps::default(), None)
}

fn refusal(directory: &Path) -> String {
    read(directory).unwrap_err().to_string()
}

/// Returns the entry of the encoder in `modules.json`.
fn transformer() -> Value {
    json!({ "path": "", "type": "sentence_transformers.models.Transformer" })
}

#[test]
fn both_layouts_describe_the_same_model() {
    for layout in [Layout::Two, Layout::Six] {
        let directory = model_directory(layout);
        let source = read(directory.path()).unwrap();
        assert_eq!(source.architecture, "bert");
        assert_eq!(source.dimensions, 3);
        assert_eq!(source.max_sequence_length, 32, "{layout:?}");
        assert_eq!(source.pooling, "mean");
        assert!(source.normalize);
        assert_eq!(source.prompts, BTreeMap::from([("query".to_owned(), "query: ".to_owned())]));
        assert_eq!(source.default_prompt.as_deref(), Some("query"));
        let layers: Vec<_> = source.dense.iter().map(|dense| dense.layer.clone()).collect();
        let expected = DenseLayer {
            in_features: 4,
            out_features: 3,
            bias: true,
            activation: "tanh".to_owned(),
        };
        assert_eq!(layers, [expected]);
        let on_disk = |name| fs::read(directory.path().join(name)).unwrap();
        assert_eq!(source.config, on_disk("config.json"));
        assert_eq!(source.tokenizer, on_disk("tokenizer.json"));
        assert_eq!(source.weights, on_disk("model.safetensors"));
    }
}

#[test]
fn pooling_is_read_from_either_key() {
    let cases = [
        (json!({ "pooling_mode": "cls" }), "cls"),
        (json!({ "pooling_mode": ["max"] }), "max"),
        (json!({ "pooling_mode": "mean_sqrt_len_tokens" }), "mean_sqrt_len"),
        (json!({ "pooling_mode_cls_token": true }), "cls"),
        (json!({ "pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false }), "max"),
        (json!({ "pooling_mode_mean_sqrt_len_tokens": true }), "mean_sqrt_len"),
        (json!({ "pooling_mode": "lasttoken" }), "lasttoken"),
        (json!({ "pooling_mode_lasttoken": true, "pooling_mode_cls_token": false }), "lasttoken"),
        (json!({ "pooling_mode_mean_tokens": false }), "mean"),
        (json!({ "pooling_mode": "cls", "pooling_mode_max_tokens": true }), "cls"),
    ];
    for (mut config, expected) in cases {
        let directory = model_directory(Layout::Six);
        config["embedding_dimension"] = json!(4);
        write_json(directory.path(), "1_Pooling/config.json", &config);
        assert_eq!(read(directory.path()).unwrap().pooling, expected, "{config}");
    }
}

#[test]
fn smallest_length_limit_applies() {
    // Columns: model_type, position rows, max_seq_length, model_max_length, expected limit
    let cases = [
        ("bert", 64, json!(32), json!(16), 32),
        ("bert", 64, json!(512), json!(16), 64),
        ("bert", 64, json!(null), json!(48), 48),
        ("bert", 64, json!(null), json!(1e30), 64),
        ("bert", 64, json!(null), json!(1_000_000_000_000_000_019_884_624_838_656_u128 as f64), 64),
        ("bert", 64, json!(null), json!(null), 64),
        ("roberta", 66, json!(null), json!(512), 64),
        ("xlm-roberta", 514, json!(514), json!(null), 512),
        ("mpnet", 66, json!(null), json!(1e30), 64),
        ("camembert", 514, json!(null), json!(512), 512),
        ("qwen3", 131_072, json!(null), json!(null), MAX_SEQUENCE_LENGTH),
        ("distilbert", 64, json!(null), json!(512), 64),
        ("modernbert", 8192, json!(512), json!(8192), 512),
    ];
    for (architecture, positions, max_seq, max_length, expected) in cases {
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        let config = json!({
            "model_type": architecture, "dim": 4, "max_position_embeddings": positions,
        });
        write_json(path, "config.json", &config);
        write_json(path, "sentence_bert_config.json", &json!({ "max_seq_length": max_seq }));
        let tokenizer = json!({ "model_max_length": max_length });
        write_json(path, "tokenizer_config.json", &tokenizer);
        let found = read(path).unwrap().max_sequence_length;
        assert_eq!(found, expected, "{architecture} {max_seq} {max_length}");
    }
}

#[test]
fn older_transformer_configuration_names_are_read() {
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    fs::remove_file(path.join("sentence_bert_config.json")).unwrap();
    assert_eq!(read(path).unwrap().max_sequence_length, 48);
    write_json(path, "sentence_roberta_config.json", &json!({ "max_seq_length": 20 }));
    assert_eq!(read(path).unwrap().max_sequence_length, 20);
}

#[test]
fn unsupported_setting_error_names_file_and_setting() {
    let pooling = "1_Pooling/config.json";
    let dense = "2_Dense/config.json";
    let cases = [
        (
            pooling,
            json!({ "embedding_dimension": 4, "pooling_mode": ["cls", "max"] }),
            "(cls, max)",
        ),
        (
            pooling,
            json!({
                "word_embedding_dimension": 4,
                "pooling_mode_cls_token": true,
                "pooling_mode_max_tokens": true,
            }),
            "several poolings",
        ),
        (
            pooling,
            json!({ "embedding_dimension": 4, "pooling_mode": "weightedmean" }),
            "weightedmean",
        ),
        (
            pooling,
            json!({ "embedding_dimension": 4, "pooling_mode_weightedmean_tokens": true }),
            "weightedmean_tokens",
        ),
        (pooling, json!({ "embedding_dimension": 4, "pooling_mode": 3 }), "neither"),
        (pooling, json!({ "embedding_dimension": 8, "pooling_mode": "mean" }), "8"),
        (pooling, json!({ "pooling_mode": "mean" }), "embedding_dimension is missing"),
        (pooling, json!({ "embedding_dimension": 4, "include_prompt": false }), "include_prompt"),
        (
            dense,
            json!({ "in_features": 4, "out_features": 3, "activation_function": "my.ReLU" }),
            "ReLU",
        ),
        (dense, json!({ "in_features": 5, "out_features": 3 }), "in_features is 5"),
        (
            dense,
            json!({ "in_features": 4, "out_features": 3, "use_residual": true }),
            "use_residual",
        ),
        (
            dense,
            json!({ "in_features": 4, "out_features": 3, "module_input_name": "tokens" }),
            "module_input_name \"tokens\" must be \"sentence_embedding\"",
        ),
        (
            dense,
            json!({ "in_features": 4, "out_features": 3, "module_output_name": "other" }),
            "module_output_name \"other\"",
        ),
        (
            "3_Normalize/config.json",
            json!({ "module_input_name": "token_embeddings" }),
            "token_embeddings",
        ),
        (
            "config.json",
            json!({ "model_type": "t5", "d_model": 4 }),
            "model_type \"t5\" (an encoder with a decoder) is not one of bert, camembert, deberta-v2,",
        ),
        ("config.json", json!({ "model_type": "clip" }), "(a model of images and texts)"),
        ("config.json", json!({ "model_type": "llama" }), "(a language model of another family)"),
        ("config.json", json!({ "model_type": "x\n" }), "model_type \"x\\n\" is not one of bert,"),
        (
            "config.json",
            json!({ "model_type": "xlm-roberta", "lora_adaptations": ["retrieval.query"] }),
            "as those of jina-embeddings-v3",
        ),
        ("adapter_config.json", json!({ "peft_type": "LORA" }), "merge the adapter"),
        (
            "config.json",
            json!({ "model_type": "bert", "max_position_embeddings": 64 }),
            "hidden_size is missing",
        ),
        (
            "config.json",
            json!({ "model_type": "bert", "hidden_size": 4 }),
            "max_position_embeddings is missing",
        ),
        (
            "config.json",
            json!({ "model_type": "roberta", "hidden_size": 4, "max_position_embeddings": 4 }),
            "too short for a text",
        ),
        ("sentence_bert_config.json", json!({ "transformer_task": "fill-mask" }), "fill-mask"),
        ("tokenizer_config.json", json!({ "truncation_side": "left" }), "truncation_side"),
        ("tokenizer_config.json", json!({ "do_lower_case": false }), "do_lower_case is false"),
        (
            "config_sentence_transformers.json",
            json!({ "prompts": {}, "default_prompt_name": "query" }),
            "query",
        ),
    ];
    for (file, config, part) in cases {
        let directory = model_directory(Layout::Six);
        write_json(directory.path(), file, &config);
        let message = refusal(directory.path());
        assert!(message.contains(file) && message.contains(part), "{config}: {message}");
    }
}

#[test]
fn do_lower_case_needs_a_lowercasing_tokenizer() {
    let lower = json!({ "type": "Lowercase" });
    let sequence =
        |inner: Value| json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, inner] });
    let cases = [
        (json!(null), false),
        (json!({ "type": "BertNormalizer", "lowercase": false }), false),
        (json!({ "type": "BertNormalizer", "lowercase": true }), true),
        (lower.clone(), true),
        (sequence(lower.clone()), true),
        (sequence(sequence(lower)), true),
        (sequence(json!({ "type": "NFKC" })), false),
    ];
    for (normalizer, accepted) in cases {
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        write_json(path, "sentence_bert_config.json", &json!({ "do_lower_case": true }));
        write_json(path, "tokenizer_config.json", &json!({}));
        write_json(path, "tokenizer.json", &json!({ "normalizer": normalizer }));
        match read(path) {
            Ok(_) => assert!(accepted, "{normalizer}"),
            Err(error) => {
                assert!(!accepted, "{normalizer}");
                assert!(error.to_string().contains("do_lower_case"), "{error}");
            }
        }
    }
}

#[test]
fn modules_must_be_known_and_in_order() {
    let class = |name: &str, path: &str| {
        let class = format!("sentence_transformers.models.{name}");
        json!({ "path": path, "type": class })
    };
    let transformer = class("Transformer", "");
    let pooling = class("Pooling", "1_Pooling");
    let dense = class("Dense", "2_Dense");
    let normalize = class("Normalize", "3_Normalize");
    let custom = json!({ "path": "", "type": "custom_code.Transformer" });
    let cases = [
        (json!([]), "no further module"),
        (json!([transformer]), "no further module"),
        (json!([pooling, transformer]), "found Pooling"),
        (json!([transformer, normalize]), "found Normalize"),
        (json!([transformer, pooling, pooling]), "found Pooling"),
        (json!([transformer, pooling, normalize, dense]), "found Dense"),
        (json!([transformer, pooling, normalize, normalize]), "found Normalize"),
        (json!([transformer, pooling, class("LSTM", "2_LSTM")]), "models.LSTM"),
        (json!([transformer, class("StaticEmbedding", "")]), "found StaticEmbedding"),
        (json!([class("WordEmbeddings", "")]), "WordEmbeddings"),
        (json!([custom, pooling]), "custom_code.Transformer"),
        (json!([transformer, class("Pooling", "../1_Pooling")]), "leaves the directory"),
        (json!([class("Transformer", "/etc")]), "leaves the directory"),
    ];
    for (modules, part) in cases {
        let directory = model_directory(Layout::Two);
        write_json(directory.path(), "modules.json", &modules);
        let message = refusal(directory.path());
        assert!(message.contains("modules.json") && message.contains(part), "{message}");
    }
}

#[test]
fn newer_families_are_read_in_both_forms() {
    // Columns: directory, architecture, pooling, dimensions, normalize, dense layers, prompts
    let cases = [
        ("tiny-camembert", "camembert", "mean", 64, false, 0, 0),
        ("tiny-embedding-gemma2", "embedding_gemma2", "mean", 96, true, 0, 3),
        ("tiny-eurobert", "eurobert", "mean", 64, true, 0, 0),
        ("tiny-gemma3-bidirectional", "gemma3_text", "mean", 64, true, 2, 14),
        ("tiny-gemma3-causal", "gemma3_text", "lasttoken", 64, true, 0, 1),
        ("tiny-gte", "gte", "cls", 64, true, 0, 0),
        ("tiny-gte-en", "gte", "cls", 64, true, 0, 0),
        ("tiny-modernbert-gelu", "modernbert", "mean", 64, true, 0, 2),
        ("tiny-modernbert-silu", "modernbert", "cls", 64, true, 0, 0),
        ("tiny-nomic-bert", "nomic_bert", "mean", 64, false, 0, 4),
        ("tiny-qwen3", "qwen3", "lasttoken", 64, true, 0, 1),
        ("tiny-qwen3-bidirectional", "qwen3", "mean", 64, true, 0, 0),
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, architecture, pooling, dimensions, normalize, dense, prompts) in cases {
        let source = read(&golden.join(name)).unwrap();
        assert_eq!(source.architecture, architecture, "{name}");
        assert_eq!((source.pooling, source.normalize), (pooling, normalize), "{name}");
        assert_eq!((source.dimensions, source.hidden_size), (dimensions, 64), "{name}");
        assert_eq!((source.dense.len(), source.prompts.len()), (dense, prompts), "{name}");
        assert_eq!(source.max_sequence_length, 96, "{name}");
        let published = golden.join(name).join("config.published.json");
        let Ok(published) = fs::read(published) else { continue };
        let directory = model_directory(Layout::Six);
        fs::write(directory.path().join("config.json"), published).unwrap();
        let encoder = Encoder::read(directory.path()).unwrap();
        assert_eq!(encoder.architecture, architecture, "{name}");
        assert_eq!((encoder.dimensions, encoder.hidden_size), (dimensions, 64), "{name}");
    }
}

#[test]
fn dense_for_tokens_moves_behind_pooling() {
    let directory = model_directory(Layout::Six);
    let path = directory.path();
    let modules = json!([
        transformer(),
        { "path": "1_Dense", "type": "sentence_transformers.base.modules.dense.Dense" },
        { "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
        { "path": "2_Dense", "type": "sentence_transformers.models.Dense" },
    ]);
    write_json(path, "modules.json", &modules);
    let layer = |activation: &str, name: &str, bias: bool| {
        let layer = json!({
            "in_features": 4, "out_features": 6, "bias": bias,
            "activation_function": activation, "module_input_name": name,
        });
        write_json(path, "1_Dense/config.json", &layer);
    };
    let pool = |mode: &str| {
        let pooling = json!({ "embedding_dimension": 6, "pooling_mode": mode });
        write_json(path, "1_Pooling/config.json", &pooling);
    };
    let identity = "torch.nn.modules.linear.Identity";
    let weights = safetensors(&[("linear.weight", vec![6, 4], vec![0.5; 24])]);
    fs::create_dir(path.join("1_Dense")).unwrap();
    fs::write(path.join("1_Dense/model.safetensors"), weights).unwrap();
    write_json(path, "2_Dense/config.json", &json!({ "in_features": 6, "out_features": 3 }));
    for (mode, bias) in
        [("mean", true), ("cls", true), ("lasttoken", true), ("mean_sqrt_len_tokens", false)]
    {
        layer(identity, "token_embeddings", bias);
        pool(mode);
        let source = read(path).unwrap();
        let widths: Vec<_> = source.dense.iter().map(|dense| dense.layer.out_features).collect();
        assert_eq!((widths, source.dimensions), (vec![6, 3], 3), "{mode}");
    }
    for (activation, name, mode, bias, part) in [
        (identity, "token_embeddings", "max", false, "before the pooling max"),
        (identity, "token_embeddings", "mean_sqrt_len_tokens", true, "the pooling mean_sqrt_len"),
        ("torch.nn.modules.activation.Tanh", "token_embeddings", "mean", false, "pooling mean,"),
        (identity, "sentence_embedding", "mean", false, "must be \"token_embeddings\""),
    ] {
        layer(activation, name, bias);
        pool(mode);
        let message = refusal(path);
        assert!(message.contains("1_Dense") && message.contains(part), "{message}");
    }
}

#[test]
fn missing_files_are_named() {
    let beside = |path: &Path, name: &str| fs::write(path.join(name), b"x").unwrap();
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let both = "model.safetensors: it is missing, and pytorch_model.bin is missing too";
    assert!(refusal(path).ends_with(both), "{}", refusal(path));
    beside(path, "pytorch_model.bin");
    assert!(refusal(path).contains("pytorch_model.bin: it is not a zip archive"));
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert!(refusal(path).contains("tokenizer.json: it is missing"));
    for name in ["1_Pooling/config.json", "config.json"] {
        let directory = model_directory(Layout::Two);
        fs::remove_file(directory.path().join(name)).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot open {}", directory.path().join(name).display())
        );
        assert!(error.source().is_some());
    }
    let absent = path.join("absent");
    assert_eq!(refusal(&absent), format!("cannot open {}", absent.display()));
}

#[test]
fn torch_weights_are_read_without_safetensors() {
    let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch");
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    let untouched = read(path).unwrap();
    for (from, module) in [("weights.bin", "."), ("dense.bin", "2_Dense")] {
        fs::copy(torch.join(from), path.join(module).join("pytorch_model.bin")).unwrap();
    }
    // sentence-transformers also prefers the safetensors file.
    assert_eq!(read(path).unwrap().weights, untouched.weights);
    for module in [".", "2_Dense"] {
        fs::remove_file(path.join(module).join("model.safetensors")).unwrap();
    }
    let source = read(path).unwrap();
    assert_eq!(source.weights_path, path.join("pytorch_model.bin"));
    let dense = &source.dense[0];
    assert_eq!(dense.path, path.join("2_Dense/pytorch_model.bin"));
    let names = |file: &[u8]| {
        let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
        let mut names: Vec<_> = tensors.names().into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&dense.weights), ["linear.bias", "linear.weight"]);
    assert_eq!(names(&source.weights).len(), 11);
}

#[test]
fn only_regular_files_within_limit_are_read() {
    let directory = model_directory(Layout::Two);
    let config = directory.path().join("config.json");
    fs::write(&config, vec![b' '; usize::try_from(MAX_JSON).unwrap() + 1]).unwrap();
    assert!(refusal(directory.path()).contains("larger than the limit"));
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert!(refusal(directory.path()).contains("not a regular file"));
    fs::remove_dir(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refusal(directory.path()).contains("not a regular file"));
}

#[test]
fn invalid_json_error_names_the_file() {
    for text in ["", "{", "[]", "{\"model_type\": 3}", "\u{0}"] {
        let directory = model_directory(Layout::Two);
        fs::write(directory.path().join("config.json"), text).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert!(matches!(error, ModelDirectoryError::Json { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains("config.json"));
    }
}
