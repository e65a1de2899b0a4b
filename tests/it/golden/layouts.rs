//! Packs models in other layouts of their files.

use std::cell::RefCell;
use std::{fs, io};

use caxton::engine::Precision;
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::arithmetic::{length, max_difference};
use super::cases::{MEAN, TINY_NEWER};
use super::{
    CONFIG, MAX_DIFFERENCE, PUBLISHED, configuration, golden, load as load_model, load_with,
    options, read, texts, vectors,
};

/// Returns `weights` as a model for another task has them: `prefix` before every name, and a `head`
/// that an embedding does not need.
fn with_prefix(weights: &[u8], prefix: &str, head: &str) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let values = vec![0; 4 * 64 * 4];
    let head = (head.to_owned(), TensorView::new(Dtype::F32, vec![4, 64], &values).unwrap());
    let prefixed = tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
    safetensors::serialize(prefixed.chain([head]), None).unwrap()
}

#[test]
fn weights_of_task_models_give_same_vectors() {
    let texts = texts("texts.jsonl");
    // Columns: model, prefix of the names, another tensor
    let cases = [
        ("tiny-camembert", "roberta.", "lm_head.dense.weight"),
        ("tiny-nomic-bert", "bert.", "cls.predictions.decoder.weight"),
        ("tiny-gte", "new.", "pooler.dense.weight"),
        ("tiny-modernbert-gelu", "model.", "head.dense.weight"),
        ("tiny-eurobert", "model.", "lm_head.weight"),
        ("tiny-qwen3", "model.", "lm_head.weight"),
        ("tiny-gemma3-causal", "model.", "lm_head.weight"),
        ("tiny-embedding-gemma2", "language_model.", "lm_head.weight"),
    ];
    for (name, prefix, head) in cases {
        let case = TINY_NEWER.iter().find(|case| case.name == name).unwrap();
        let directory = golden().join(name);
        let weights = with_prefix(&read(directory.join("model.safetensors")), prefix, head);
        let config = configuration(case, &directory, CONFIG);
        let model = load_with(case, &directory, config, weights, options(Precision::F32));
        let expected = vectors(&load_model(case, &directory, Precision::F32), "", &texts);
        assert!(vectors(&model, "", &texts) == expected, "{name}");
    }
}

/// Packs `request`; returns the manifest and the vectors of `texts`.
fn packed_vectors(request: &PackRequest, texts: &[String]) -> (Manifest, Vec<Vec<f32>>) {
    let vectors = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(Precision::F32))?;
        for text in texts {
            vectors.borrow_mut().push(load::embed_plain(&model, text)?);
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let packed = package::pack(request, &run, &|_, _| {}, io::sink()).unwrap();
    (packed.manifest, vectors.into_inner())
}

/// Copies the model `name` in the form in which models of its family are published: the other
/// configuration, the prefix of a task model before the names of the weights, and the layout of
/// sentence-transformers before version 6.
fn published(name: &str, prefix: &str) -> TempDir {
    let source = golden().join(name);
    let directory = tempfile::tempdir().unwrap();
    let target = |file: &str| directory.path().join(file);
    let write = |file: &str, json: &Value| fs::write(target(file), json.to_string()).unwrap();
    let json = |file: &str| -> Value { serde_json::from_slice(&read(source.join(file))).unwrap() };
    fs::copy(source.join(PUBLISHED), target(CONFIG)).unwrap();
    for file in ["tokenizer.json", "config_sentence_transformers.json"] {
        fs::copy(source.join(file), target(file)).unwrap();
    }
    let weights = read(source.join("model.safetensors"));
    let weights = with_prefix(&weights, prefix, "lm_head.weight");
    fs::write(target("model.safetensors"), weights).unwrap();
    write("sentence_bert_config.json", &json!({ "max_seq_length": 96, "do_lower_case": false }));
    let mut modules = json("modules.json");
    for module in modules.as_array_mut().unwrap() {
        let class = module["type"].as_str().unwrap().rsplit('.').next().unwrap();
        module["type"] = format!("sentence_transformers.models.{class}").into();
        let path = module["path"].as_str().unwrap();
        if path.is_empty() {
            continue;
        }
        fs::create_dir(target(path)).unwrap();
        let [config, weights] = [CONFIG, "model.safetensors"].map(|file| format!("{path}/{file}"));
        let mut settings = json(&config);
        let settings = settings.as_object_mut().unwrap();
        settings.retain(|key, _| !key.starts_with("module_"));
        if let (Some(width), Some(mode)) =
            (settings.remove("embedding_dimension"), settings.remove("pooling_mode"))
        {
            let mode = match mode.as_str().unwrap() {
                "mean" => "pooling_mode_mean_tokens",
                "cls" => "pooling_mode_cls_token",
                _ => "pooling_mode_lasttoken",
            };
            settings.insert("word_embedding_dimension".to_owned(), width);
            settings.insert(mode.to_owned(), true.into());
        }
        // The earlier layout has an empty directory for a normalization.
        if !settings.is_empty() {
            fs::write(target(&config), serde_json::to_vec(settings).unwrap()).unwrap();
        }
        if source.join(&weights).exists() {
            fs::copy(source.join(&weights), target(&weights)).unwrap();
        }
    }
    write("modules.json", &modules);
    directory
}

#[test]
fn published_layout_gives_same_package() {
    let texts = texts("texts.jsonl");
    for (name, prefix) in [
        ("tiny-nomic-bert", ""),
        ("tiny-gte", "new."),
        ("tiny-gte-en", "new."),
        ("tiny-modernbert-gelu", "model."),
        ("tiny-modernbert-silu", ""),
        ("tiny-eurobert", "model."),
        ("tiny-qwen3", "model."),
        ("tiny-gemma3-bidirectional", ""),
        ("tiny-gemma3-causal", "model."),
        ("tiny-embedding-gemma2", "language_model."),
    ] {
        let request = PackRequest {
            id: Some(name.parse().unwrap()),
            source: golden().join(name),
            ..PackRequest::default()
        };
        let directory = published(name, prefix);
        let other = PackRequest { source: directory.path().to_owned(), ..request.clone() };
        let (expected, expected_vectors) = packed_vectors(&request, &texts);
        let case = TINY_NEWER.iter().find(|case| case.name == name).unwrap();
        // A package omits empty prompts, which change nothing.
        for (prompt, text) in case.prompts.iter().filter(|(_, text)| !text.is_empty()) {
            assert_eq!(expected.prompts[*prompt], *text, "{name} {prompt}");
        }
        let (manifest, vectors) = packed_vectors(&other, &texts);
        let own = Manifest {
            files: expected.files.clone(),
            self_test: expected.self_test.clone(),
            ..manifest
        };
        assert_eq!(own, expected, "{name}");
        for (found, expected) in vectors.iter().zip(&expected_vectors) {
            let difference = max_difference(found, expected) / length(expected);
            assert!(difference <= MAX_DIFFERENCE, "{name}: {difference:e}");
        }
    }
}

#[test]
fn stated_steps_replace_modules_file() {
    let texts = texts("texts.jsonl");
    let source = golden().join(MEAN.name);
    let plain = tempfile::tempdir().unwrap();
    // transformers writes no configuration of modules and of prompts.
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(name), plain.path().join(name)).unwrap();
    }
    let request =
        PackRequest { id: Some(MEAN.name.parse().unwrap()), source, ..PackRequest::default() };
    let stated = PackRequest {
        source: plain.path().to_owned(),
        pooling: Some("mean"),
        normalize: Some(true),
        ..request.clone()
    };
    let expected = packed_vectors(&request, &texts);
    assert_eq!(packed_vectors(&stated, &texts), expected);
    // The comparison can fail: other steps give another manifest and other vectors.
    let (manifest, vectors) =
        packed_vectors(&PackRequest { pooling: Some("cls"), ..stated }, &texts);
    assert!(manifest != expected.0 && vectors != expected.1);
}

#[test]
fn vocabulary_file_gives_ids_of_tokenizer_file() {
    let texts = texts("texts.jsonl");
    let source = golden().join(MEAN.name);
    let tokenizer: Value = serde_json::from_slice(&read(source.join("tokenizer.json"))).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut words =
        Vec::from_iter(vocabulary.iter().map(|(word, id)| (id.as_u64(), word.as_str())));
    words.sort_unstable();
    let lines: String = words.iter().map(|(_, word)| format!("{word}\n")).collect();
    let plain = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), plain.path().join(name)).unwrap();
    }
    fs::write(plain.path().join("vocab.txt"), lines).unwrap();
    let config = r#"{ "do_lower_case": true, "model_max_length": 48 }"#;
    fs::write(plain.path().join("tokenizer_config.json"), config).unwrap();

    let ids = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(Precision::F32))?;
        for text in &texts {
            ids.borrow_mut().push(model.tokenizer.encode("", text)?.ids);
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let request = PackRequest {
        id: Some(MEAN.name.parse().unwrap()),
        source: plain.path().to_owned(),
        pooling: Some("mean"),
        normalize: Some(true),
        ..PackRequest::default()
    };
    package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
    let expected: Vec<Vec<u32>> =
        serde_json::from_slice(&read(source.join("reference_ids.json"))).unwrap();
    assert_eq!(ids.into_inner(), expected);
}
