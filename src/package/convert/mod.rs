//! Reads a model directory of sentence-transformers.
//!
//! Two layouts are supported. The layout up to version 5 has classes
//! `sentence_transformers.models.*`, booleans `pooling_mode_*` and the length limit in
//! `sentence_bert_config.json`. The layout since version 6 has other class paths, one key
//! `pooling_mode` and the length limit in `tokenizer_config.json`. Extra keys are ignored, because
//! Caxton does not control the format. A key that would change a vector in a way that Caxton does
//! not compute is an error.
//!
//! Invariants: every file is a regular file within its size limit, and no path leaves the
//! directory.

mod encoder;
mod file;
mod pickle;
mod static_embedding;
mod torch;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use self::encoder::Encoder;
pub use self::file::ModelDirectoryError;
use self::file::{is_missing, read_file, read_json, read_json_if_present, unsupported};
use super::manifest::{CONFIG, DenseLayer, MAX_DENSE, WEIGHTS};

const MAX_WEIGHTS: u64 = 4 << 30;

/// File name of weights that torch wrote before safetensors existed.
const TORCH_WEIGHTS: &str = "pytorch_model.bin";

const MODULES: &str = "modules.json";
const ORDER: &str =
    "Transformer and Pooling or StaticEmbedding, any number of Dense, at most one Normalize";

/// Dense layer with the contents of its file.
#[derive(Debug)]
pub(super) struct DenseFile {
    pub(super) layer: DenseLayer,
    pub(super) path: PathBuf,
    pub(super) weights: Vec<u8>,
}

/// Contents of a model directory: shapes and steps as in a manifest, files as on disk.
#[derive(Debug)]
pub(super) struct ModelDirectory {
    pub(super) architecture: &'static str,
    pub(super) dimensions: usize,
    pub(super) max_sequence_length: usize,
    pub(super) pooling: &'static str,
    pub(super) dense: Vec<DenseFile>,
    pub(super) normalize: bool,
    pub(super) prompts: BTreeMap<String, String>,
    pub(super) default_prompt: Option<String>,
    pub(super) config: Vec<u8>,
    pub(super) tokenizer: Vec<u8>,
    pub(super) weights_path: PathBuf,
    pub(super) weights: Vec<u8>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    bias: Option<bool>,
    activation_function: Option<String>,
    module_input_name: Option<String>,
    use_residual: Option<bool>,
}

#[derive(Default, Deserialize)]
struct NormalizeConfig {
    module_input_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct PromptConfig {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

impl ModelDirectory {
    /// Reads all of `directory`. The weights are held in memory.
    ///
    /// # Errors
    /// When a file is missing, not a regular file, too large or not in its format, or when the
    /// model has a step that Caxton does not compute.
    pub(super) fn read(directory: &Path) -> Result<Self, ModelDirectoryError> {
        let modules_path = directory.join(MODULES);
        let modules: Vec<Module> = read_json(&modules_path)?;
        let mut modules = modules.iter().map(|module| locate(directory, module));
        let out_of_order = |found: Option<&str>| {
            unsupported(
                &modules_path,
                format!(
                    "found {} in the list of modules; the order must be {ORDER}",
                    found.unwrap_or("no further module")
                ),
            )
        };

        let (root, is_static) = match modules.next().transpose()? {
            Some(("Transformer", root)) => (root, false),
            Some(("StaticEmbedding", root)) => (root, true),
            other => return Err(out_of_order(other.map(|(name, _)| name))),
        };
        let (encoder, pooling, (weights_path, weights)) = if is_static {
            let weights = read_weights(&root, MAX_WEIGHTS)?;
            (static_embedding::read(&root, &weights.0, &weights.1)?, "mean", weights)
        } else {
            let encoder = Encoder::read(&root)?;
            let pooling = match modules.next().transpose()? {
                Some(("Pooling", path)) => read_pooling(&path, encoder.hidden_size)?,
                other => return Err(out_of_order(other.map(|(name, _)| name))),
            };
            (encoder, pooling, read_weights(&root, MAX_WEIGHTS)?)
        };
        let mut dimensions = encoder.hidden_size;
        let mut dense = Vec::new();
        let mut normalize = false;
        for module in modules {
            match module? {
                ("Dense", path) if !normalize => {
                    let layer = read_dense(&path, dimensions)?;
                    dimensions = layer.layer.out_features;
                    dense.push(layer);
                }
                ("Normalize", path) if !normalize => {
                    check_normalize(&path)?;
                    normalize = true;
                }
                (name, _) => return Err(out_of_order(Some(name))),
            }
        }
        let (prompts, default_prompt) = read_prompts(directory)?;
        Ok(Self {
            architecture: encoder.architecture,
            dimensions,
            max_sequence_length: encoder.max_sequence_length,
            pooling,
            dense,
            normalize,
            prompts,
            default_prompt,
            config: encoder.config,
            tokenizer: encoder.tokenizer,
            weights,
            weights_path,
        })
    }
}

/// Returns the class name and the directory of a module.
fn locate<'a>(root: &Path, module: &'a Module) -> Result<(&'a str, PathBuf), ModelDirectoryError> {
    let path = Path::new(&module.path);
    // model2vec writes "." in places where sentence-transformers writes an empty path.
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        let reason = format!("the path {:?} of a module leaves the directory", module.path);
        return Err(unsupported(&root.join(MODULES), reason));
    }
    // Accept only the library's own classes: a class of the same name in a model's own code can
    // compute anything.
    let name = module.class.strip_prefix("sentence_transformers.").and_then(|class| {
        let name = class.rsplit('.').next()?;
        ["Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize"]
            .contains(&name)
            .then_some(name)
    });
    let name = name.ok_or_else(|| {
        let reason = format!(
            "the module {:?} is not supported; \
             supported are the modules of sentence-transformers in the order {ORDER}",
            module.class
        );
        unsupported(&root.join(MODULES), reason)
    })?;
    Ok((name, root.join(path)))
}

fn read_pooling(directory: &Path, hidden_size: usize) -> Result<&'static str, ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let config: BTreeMap<String, Value> = read_json(&path)?;
    let width = ["embedding_dimension", "word_embedding_dimension"]
        .iter()
        .find_map(|key| config.get(*key).and_then(Value::as_u64));
    if width != u64::try_from(hidden_size).ok() {
        let found = width.map_or_else(|| "missing".to_owned(), |width| width.to_string());
        let reason = format!("embedding_dimension is {found}, but the encoder has {hidden_size}");
        return Err(unsupported(&path, reason));
    }
    if config.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(unsupported(
            &path,
            "include_prompt is false, but Caxton pools over the tokens of a prompt too",
        ));
    }
    let modes = pooling_modes(&config)
        .ok_or_else(|| unsupported(&path, "pooling_mode is neither a name nor a list of names"))?;
    match modes.as_slice() {
        // The default of sentence-transformers if no mode is enabled.
        [] => Ok("mean"),
        [mode] => match mode.as_str() {
            "mean" | "mean_tokens" => Ok("mean"),
            "cls" | "cls_token" => Ok("cls"),
            "max" | "max_tokens" => Ok("max"),
            "mean_sqrt_len_tokens" => Ok("mean_sqrt_len"),
            other => Err(unsupported(
                &path,
                format!("pooling {other:?} is not one of mean, cls, max, mean_sqrt_len_tokens"),
            )),
        },
        several => Err(unsupported(
            &path,
            format!("several poolings at once ({}); only one is supported", several.join(", ")),
        )),
    }
}

/// Returns the enabled poolings of either layout; `None` if `pooling_mode` has an invalid type.
///
/// The newer key `pooling_mode` wins, as in sentence-transformers.
fn pooling_modes(config: &BTreeMap<String, Value>) -> Option<Vec<String>> {
    match config.get("pooling_mode") {
        Some(Value::String(mode)) => Some(vec![mode.clone()]),
        Some(Value::Array(modes)) => {
            modes.iter().map(|mode| mode.as_str().map(str::to_owned)).collect()
        }
        Some(_) => None,
        None => Some(
            config
                .iter()
                .filter(|(_, on)| **on == Value::Bool(true))
                .filter_map(|(key, _)| key.strip_prefix("pooling_mode_").map(str::to_owned))
                .collect(),
        ),
    }
}

fn read_dense(directory: &Path, in_features: usize) -> Result<DenseFile, ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let config: DenseConfig = read_json(&path)?;
    if config.in_features != in_features {
        let reason = format!(
            "in_features is {}, but the previous module has {in_features}",
            config.in_features
        );
        return Err(unsupported(&path, reason));
    }
    check_input(&path, config.module_input_name.as_deref())?;
    if config.use_residual == Some(true) {
        return Err(unsupported(&path, "use_residual is not supported"));
    }
    let activation = match config.activation_function.as_deref() {
        Some("torch.nn.modules.linear.Identity" | "torch.nn.Identity") => "identity",
        // Tanh is the default of the class if the file names no function.
        Some("torch.nn.modules.activation.Tanh" | "torch.nn.Tanh") | None => "tanh",
        Some(other) => {
            let reason = format!("activation_function {other:?} is neither Identity nor Tanh");
            return Err(unsupported(&path, reason));
        }
    };
    let (path, weights) = read_weights(directory, MAX_DENSE)?;
    Ok(DenseFile {
        layer: DenseLayer {
            in_features,
            out_features: config.out_features,
            bias: config.bias.unwrap_or(true),
            activation: activation.to_owned(),
        },
        weights,
        path,
    })
}

fn check_normalize(directory: &Path) -> Result<(), ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let config: NormalizeConfig = read_json_if_present(&path)?.unwrap_or_default();
    check_input(&path, config.module_input_name.as_deref())
}

fn check_input(path: &Path, name: Option<&str>) -> Result<(), ModelDirectoryError> {
    match name {
        Some(other) if other != "sentence_embedding" => {
            Err(unsupported(path, format!("module_input_name {other:?} is not the pooled vector")))
        }
        _ => Ok(()),
    }
}

/// Reads the prompts and the name of the default prompt.
///
/// Empty prompts are omitted. They do not change a vector. Version 6 writes them into every model,
/// which would give one model two embedding spaces.
fn read_prompts(
    root: &Path,
) -> Result<(BTreeMap<String, String>, Option<String>), ModelDirectoryError> {
    let path = root.join("config_sentence_transformers.json");
    let config: PromptConfig = read_json_if_present(&path)?.unwrap_or_default();
    let all = config.prompts.unwrap_or_default();
    if let Some(name) = &config.default_prompt_name
        && !all.contains_key(name)
    {
        let reason = format!("default_prompt_name {name:?} is not one of the prompts");
        return Err(unsupported(&path, reason));
    }
    let prompts: BTreeMap<_, _> = all
        .into_iter()
        .filter_map(|(name, text)| text.filter(|text| !text.is_empty()).map(|text| (name, text)))
        .collect();
    let default = config.default_prompt_name.filter(|name| prompts.contains_key(name));
    Ok((prompts, default))
}

/// Reads the weights of a module as a safetensors file; returns them with the path of their source.
///
/// Prefers `model.safetensors` over `pytorch_model.bin`, like sentence-transformers.
fn read_weights(directory: &Path, limit: u64) -> Result<(PathBuf, Vec<u8>), ModelDirectoryError> {
    let path = directory.join(WEIGHTS);
    match read_file(&path, limit) {
        Err(error) if is_missing(&error) => {}
        other => return other.map(|weights| (path, weights)),
    }
    let torch = directory.join(TORCH_WEIGHTS);
    match torch::read_as_safetensors(&torch, limit) {
        Err(error) if is_missing(&error) => {}
        other => return other.map(|weights| (torch, weights)),
    }
    let split = [WEIGHTS, TORCH_WEIGHTS]
        .iter()
        .any(|name| directory.join(format!("{name}.index.json")).exists());
    let reason = if split {
        "it is missing: the weights are split over several files; save them as one \
         (save_pretrained(DIRECTORY, max_shard_size=\"100GB\"))"
    } else {
        "it is missing, and pytorch_model.bin is missing too"
    };
    Err(unsupported(&path, reason))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs;

    use serde_json::json;

    use super::super::directory_fixture::{Layout, model_directory, write_json};
    use super::super::manifest::MAX_JSON;
    use super::*;

    fn refusal(directory: &Path) -> String {
        ModelDirectory::read(directory).unwrap_err().to_string()
    }

    #[test]
    fn both_layouts_describe_the_same_model() {
        for layout in [Layout::Two, Layout::Six] {
            let directory = model_directory(layout);
            let source = ModelDirectory::read(directory.path()).unwrap();
            assert_eq!(source.architecture, "bert");
            assert_eq!(source.dimensions, 3);
            assert_eq!(source.max_sequence_length, 32, "{layout:?}");
            assert_eq!(source.pooling, "mean");
            assert!(source.normalize);
            assert_eq!(
                source.prompts,
                BTreeMap::from([("query".to_owned(), "query: ".to_owned())])
            );
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
            (json!({ "pooling_mode_mean_tokens": false }), "mean"),
            (json!({ "pooling_mode": "cls", "pooling_mode_max_tokens": true }), "cls"),
        ];
        for (mut config, expected) in cases {
            let directory = model_directory(Layout::Six);
            config["embedding_dimension"] = json!(4);
            write_json(directory.path(), "1_Pooling/config.json", &config);
            assert_eq!(
                ModelDirectory::read(directory.path()).unwrap().pooling,
                expected,
                "{config}"
            );
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
            (
                "bert",
                64,
                json!(null),
                json!(1_000_000_000_000_000_019_884_624_838_656_u128 as f64),
                64,
            ),
            ("bert", 64, json!(null), json!(null), 64),
            ("roberta", 66, json!(null), json!(512), 64),
            ("xlm-roberta", 514, json!(514), json!(null), 512),
            ("mpnet", 66, json!(null), json!(1e30), 64),
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
            let found = ModelDirectory::read(path).unwrap().max_sequence_length;
            assert_eq!(found, expected, "{architecture} {max_seq} {max_length}");
        }
    }

    #[test]
    fn older_transformer_configuration_names_are_read() {
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        fs::remove_file(path.join("sentence_bert_config.json")).unwrap();
        assert_eq!(ModelDirectory::read(path).unwrap().max_sequence_length, 48);
        write_json(path, "sentence_roberta_config.json", &json!({ "max_seq_length": 20 }));
        assert_eq!(ModelDirectory::read(path).unwrap().max_sequence_length, 20);
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
                json!({ "embedding_dimension": 4, "pooling_mode_lasttoken": true }),
                "lasttoken",
            ),
            (pooling, json!({ "embedding_dimension": 4, "pooling_mode": 3 }), "neither"),
            (pooling, json!({ "embedding_dimension": 8, "pooling_mode": "mean" }), "8"),
            (pooling, json!({ "pooling_mode": "mean" }), "embedding_dimension is missing"),
            (
                pooling,
                json!({ "embedding_dimension": 4, "include_prompt": false }),
                "include_prompt",
            ),
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
                "tokens",
            ),
            (
                "3_Normalize/config.json",
                json!({ "module_input_name": "token_embeddings" }),
                "token_embeddings",
            ),
            (
                "config.json",
                json!({ "model_type": "t5", "hidden_size": 4, "max_position_embeddings": 64 }),
                "bert, distilbert, modernbert",
            ),
            (
                "config.json",
                json!({ "model_type": "bert", "max_position_embeddings": 64 }),
                "hidden_size is missing",
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
            match ModelDirectory::read(path) {
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
    fn missing_files_are_named() {
        let beside = |path: &Path, name: &str| fs::write(path.join(name), b"x").unwrap();
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        fs::remove_file(path.join("model.safetensors")).unwrap();
        let both = "model.safetensors: it is missing, and pytorch_model.bin is missing too";
        assert!(refusal(path).ends_with(both), "{}", refusal(path));
        for index in ["model.safetensors.index.json", "pytorch_model.bin.index.json"] {
            beside(path, index);
            assert!(refusal(path).contains("split over several files"));
            fs::remove_file(path.join(index)).unwrap();
        }
        beside(path, "pytorch_model.bin");
        assert!(refusal(path).contains("pytorch_model.bin: it is not a zip archive"));
        fs::remove_file(path.join("tokenizer.json")).unwrap();
        assert!(refusal(path).contains("tokenizer.json: it is missing"));
        for name in ["1_Pooling/config.json", "config.json", "modules.json"] {
            let directory = model_directory(Layout::Two);
            fs::remove_file(directory.path().join(name)).unwrap();
            let error = ModelDirectory::read(directory.path()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("cannot open {}", directory.path().join(name).display())
            );
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn torch_weights_are_read_without_safetensors() {
        let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch");
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        let untouched = ModelDirectory::read(path).unwrap();
        for (from, module) in [("weights.bin", "."), ("dense.bin", "2_Dense")] {
            fs::copy(torch.join(from), path.join(module).join("pytorch_model.bin")).unwrap();
        }
        // sentence-transformers also prefers the safetensors file.
        assert_eq!(ModelDirectory::read(path).unwrap().weights, untouched.weights);
        for module in [".", "2_Dense"] {
            fs::remove_file(path.join(module).join("model.safetensors")).unwrap();
        }
        let source = ModelDirectory::read(path).unwrap();
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
            let error = ModelDirectory::read(directory.path()).unwrap_err();
            assert!(matches!(error, ModelDirectoryError::Json { .. }), "{text:?}: {error}");
            assert!(error.to_string().contains("config.json"));
        }
    }
}
