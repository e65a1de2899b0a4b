//! Reads the directory of a reranker: an encoder with the head of a classifier that has one label,
//! as `*ForSequenceClassification` of transformers or `CrossEncoder` of sentence-transformers
//! writes it.
//!
//! The file of its weights contains the head. `config.json` states the number of labels, and one of
//! two files the function that makes a score of the output of the last layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::encoder::{Encoder, Task};
use super::file::{ModelDirectoryError, quoted, read_json_if_present, unsupported};
use super::steps::StatedSteps;
use super::token_heads::TokenHeads;
use super::{MAX_WEIGHTS, ModelDirectory, Module, ST_CONFIG, locate, weights};
use crate::package::manifest::{CONFIG, Classifier, ScoreActivation};
use crate::package::registry::KnownModel;

/// End of the class names of classifiers.
const CLASS: &str = "ForSequenceClassification";

/// Architectures whose head the engine computes.
const ARCHITECTURES: [&str; 9] = [
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "gte",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
];

/// Fields of `config.json`.
#[derive(Deserialize)]
struct Config {
    architectures: Option<Vec<String>>,
    id2label: Option<BTreeMap<String, Value>>,
    num_labels: Option<usize>,
    type_vocab_size: Option<usize>,
    /// Pooling of the head of ModernBERT.
    classifier_pooling: Option<String>,
    /// Activation in the layout of version 4 of sentence-transformers.
    sentence_transformers: Option<ActivationConfig>,
    /// Activation in the layout of the versions before.
    sbert_ce_default_activation_function: Option<String>,
}

/// Fields of `config_sentence_transformers.json`, and of the object of the same name in
/// `config.json`.
#[derive(Default, Deserialize)]
struct ActivationConfig {
    activation_fn: Option<String>,
    default_prompt_name: Option<String>,
}

/// Fields of `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    model_input_names: Option<Vec<String>>,
    tokenizer_class: Option<String>,
}

/// Classes of tokenizers, without the suffix `Fast`, with whether they give token types.
/// <https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models>
const TOKENIZER_CLASSES: [(&str, bool); 9] = [
    ("BertTokenizer", true),
    ("CamembertTokenizer", false),
    ("DebertaV2Tokenizer", true),
    ("DistilBertTokenizer", false),
    ("ElectraTokenizer", true),
    ("MPNetTokenizer", false),
    ("RobertaTokenizer", false),
    ("TokenizersBackend", false),
    ("XLMRobertaTokenizer", false),
];

impl Config {
    /// Returns the number of labels. The default is that of transformers.
    fn labels(&self) -> usize {
        let listed = self.id2label.as_ref().map(BTreeMap::len);
        listed.or(self.num_labels).unwrap_or(2)
    }

    fn is_classifier(&self) -> bool {
        self.architectures.iter().flatten().any(|class| class.ends_with(CLASS))
    }
}

/// Returns the directory of the encoder if `directory` contains a classifier, and not an encoder of
/// texts. A caller that states a step of an encoder of texts wants the latter.
fn find(
    directory: &Path,
    modules: Option<&[Module]>,
    stated: StatedSteps,
    known: Option<&KnownModel>,
) -> Result<Option<(PathBuf, Config)>, ModelDirectoryError> {
    let root = match modules {
        None if stated.is_empty() && known.is_none_or(KnownModel::is_reranker) => {
            directory.to_owned()
        }
        Some([module]) => match locate(directory, module)? {
            ("Transformer", root) => root,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let Some(config) = read_json_if_present::<Config>(&root.join(CONFIG))? else { return Ok(None) };
    Ok(config.is_classifier().then_some((root, config)))
}

/// Reads `directory` if it contains a classifier.
///
/// # Errors
/// When it contains a classifier that is not a reranker, or that has a step that Caxton does not
/// compute.
pub(super) fn read(
    directory: &Path,
    modules: Option<&[Module]>,
    stated: StatedSteps,
    known: Option<&KnownModel>,
) -> Result<Option<ModelDirectory>, ModelDirectoryError> {
    let Some((root, config)) = find(directory, modules, stated, known)? else { return Ok(None) };
    let path = root.join(CONFIG);
    let labels = config.labels();
    if labels != 1 {
        let reason = format!(
            "it describes a classifier with {labels} labels; only rerankers, which have one, are \
             supported; to embed texts with its encoder, give both --pooling \
             mean|cls|max|mean_sqrt_len|lasttoken and --normalize true|false"
        );
        return Err(unsupported(&path, reason));
    }
    let encoder = Encoder::read_for(&root, Task::Classification)?;
    let architecture = encoder.architecture;
    if !ARCHITECTURES.contains(&architecture) {
        let known = ARCHITECTURES.join(", ");
        let reason = format!(
            "a reranker with model_type {architecture} is not supported; supported are {known}"
        );
        return Err(unsupported(&path, reason));
    }
    let token_types = has_token_types(&root, &config, architecture)?;
    let pooling = match config.classifier_pooling.as_deref() {
        Some("mean") if architecture == "modernbert" => "mean",
        Some(other) if architecture == "modernbert" && other != "cls" => {
            let other = quoted(other);
            return Err(unsupported(
                &path,
                format!("classifier_pooling {other} is neither cls nor mean"),
            ));
        }
        _ => "cls",
    };
    let activation = read_activation(directory, &path, &config)?;
    let (weights_path, weights) = weights::read(&root, MAX_WEIGHTS)?;
    Ok(Some(ModelDirectory {
        architecture,
        hidden_size: encoder.hidden_size,
        dimensions: encoder.hidden_size,
        matryoshka_dimensions: Vec::new(),
        max_sequence_length: encoder.max_sequence_length,
        pooling,
        dense: Vec::new(),
        normalize: false,
        classifier: Some(Classifier { labels, activation, token_types }),
        token_heads: TokenHeads::default(),
        prompts: BTreeMap::new(),
        default_prompt: None,
        config: encoder.config,
        tokenizer: encoder.tokenizer,
        weights_path,
        weights,
        precision: None,
    }))
}

/// Returns whether the encoder gets the token types of a pair. The encoder must have two types, and
/// the class of the tokenizer must give them, as transformers decides it.
fn has_token_types(
    root: &Path,
    config: &Config,
    architecture: &str,
) -> Result<bool, ModelDirectoryError> {
    let default = if architecture == "bert" { 2 } else { 1 };
    if config.type_vocab_size.unwrap_or(default) < 2 {
        return Ok(false);
    }
    let path = root.join("tokenizer_config.json");
    let tokenizer: TokenizerConfig = read_json_if_present(&path)?.unwrap_or_default();
    if let Some(names) = tokenizer.model_input_names {
        return Ok(names.iter().any(|name| name == "token_type_ids"));
    }
    // Without a class, the one of the model type is used.
    let Some(class) = tokenizer.tokenizer_class else {
        return Ok(matches!(architecture, "bert" | "deberta-v2"));
    };
    let name = class.strip_suffix("Fast").unwrap_or(&class);
    match TOKENIZER_CLASSES.iter().find(|(known, _)| *known == name) {
        Some((_, has_types)) => Ok(*has_types),
        // Version 4 of transformers gives types with PreTrainedTokenizerFast, and version 5 none.
        None => {
            let class = quoted(&class);
            Err(unsupported(
                &path,
                format!(
                    "tokenizer_class {class} does not tell whether the encoder gets token types; \
                     add model_input_names, with token_type_ids if the model was trained with them"
                ),
            ))
        }
    }
}

/// Reads the function that makes a score of the output of the last layer. Without it,
/// sentence-transformers uses the sigmoid for one label.
fn read_activation(
    directory: &Path,
    config_path: &Path,
    config: &Config,
) -> Result<ScoreActivation, ModelDirectoryError> {
    let path = directory.join(ST_CONFIG);
    let own: ActivationConfig = read_json_if_present(&path)?.unwrap_or_default();
    if let Some(name) = own.default_prompt_name {
        let name = quoted(&name);
        return Err(unsupported(
            &path,
            format!("default_prompt_name is {name}; rerankers with a prompt are not supported"),
        ));
    }
    let older = config.sentence_transformers.as_ref().and_then(|it| it.activation_fn.as_deref());
    let oldest = config.sbert_ce_default_activation_function.as_deref();
    let (path, class) = match (own.activation_fn.as_deref(), older.or(oldest)) {
        (Some(class), _) => (path.as_path(), class),
        (None, Some(class)) => (config_path, class),
        (None, None) => return Ok(ScoreActivation::Sigmoid),
    };
    match class {
        "torch.nn.modules.activation.Sigmoid" | "torch.nn.Sigmoid" => Ok(ScoreActivation::Sigmoid),
        "torch.nn.modules.linear.Identity" | "torch.nn.Identity" => Ok(ScoreActivation::Identity),
        other => {
            let other = quoted(other);
            let reason =
                format!("the activation {other} of scores is neither Sigmoid nor Identity");
            Err(unsupported(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::TempDir;

    use super::super::file::read_json;
    use super::super::steps::MODULES;
    use super::*;
    use crate::package::directory_fixture::write_json;

    const BERT: &str = "tests/golden/tiny-bert-cross-encoder";
    const MODERNBERT: &str = "tests/golden/tiny-modernbert-cross-encoder";

    /// Copies a directory of `tests/golden`.
    fn copy(name: &str) -> TempDir {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    /// Replaces fields of a JSON file; `null` removes the field.
    fn change(directory: &TempDir, file: &str, fields: &Value) {
        let path = directory.path().join(file);
        let mut json: Value = read_json(&path).unwrap();
        for (key, value) in fields.as_object().unwrap() {
            match value {
                Value::Null => drop(json.as_object_mut().unwrap().remove(key)),
                value => json[key] = value.clone(),
            }
        }
        write_json(directory.path(), file, &json);
    }

    fn found(directory: &TempDir) -> Result<ModelDirectory, String> {
        ModelDirectory::read(directory.path(), StatedSteps::default(), None)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rerankers_of_all_layouts_are_read() {
        let directory = copy(BERT);
        let read = found(&directory).unwrap();
        // The class of the tokenizer gives no token types.
        let activation = ScoreActivation::Sigmoid;
        let sigmoid = Classifier { labels: 1, activation, token_types: false };
        assert_eq!(read.classifier.as_ref(), Some(&sigmoid));
        let shape = (read.architecture, read.dimensions, read.max_sequence_length, read.pooling);
        assert_eq!(shape, ("bert", 64, 64, "cls"));
        // Directories of transformers, and of older versions, have no list of modules.
        for file in [MODULES, ST_CONFIG, "sentence_bert_config.json"] {
            fs::remove_file(directory.path().join(file)).unwrap();
        }
        assert_eq!(found(&directory).unwrap().classifier, Some(sigmoid));
        change(&directory, CONFIG, &json!({ "id2label": null, "num_labels": 1 }));
        let identity = "torch.nn.modules.linear.Identity";
        for fields in [
            json!({ "sbert_ce_default_activation_function": identity }),
            json!({ "sentence_transformers": { "activation_fn": identity, "version": "4.0.1" } }),
        ] {
            change(&directory, CONFIG, &fields);
            let classifier = found(&directory).unwrap().classifier.unwrap();
            assert_eq!(classifier.activation, ScoreActivation::Identity, "{fields}");
        }
        assert_eq!(found(&copy(MODERNBERT)).unwrap().pooling, "mean");
    }

    #[test]
    fn tokenizer_decides_about_token_types() {
        for (fields, types, expected) in [
            (json!({ "tokenizer_class": "BertTokenizer" }), json!(2), true),
            (json!({ "tokenizer_class": "BertTokenizerFast" }), json!(2), true),
            (json!({ "tokenizer_class": "BertTokenizer" }), json!(1), false),
            (json!({ "tokenizer_class": "BertTokenizer" }), json!(null), true),
            (json!({ "tokenizer_class": null }), json!(2), true),
            (json!({ "tokenizer_class": "XLMRobertaTokenizerFast" }), json!(2), false),
            (json!({ "model_input_names": ["input_ids", "token_type_ids"] }), json!(2), true),
            (
                json!({
                    "tokenizer_class": "BertTokenizer",
                    "model_input_names": ["input_ids", "attention_mask"],
                }),
                json!(2),
                false,
            ),
        ] {
            let directory = copy(BERT);
            change(&directory, "tokenizer_config.json", &fields);
            change(&directory, CONFIG, &json!({ "type_vocab_size": types }));
            let classifier = found(&directory).unwrap().classifier.unwrap();
            assert_eq!(classifier.token_types, expected, "{fields} {types}");
        }
    }

    #[test]
    fn stated_steps_select_the_encoder() {
        let directory = copy(BERT);
        fs::remove_file(directory.path().join(MODULES)).unwrap();
        let steps = StatedSteps { pooling: Some("mean"), normalize: Some(true) };
        fs::remove_file(directory.path().join("sentence_bert_config.json")).unwrap();
        let read = ModelDirectory::read(directory.path(), steps, None).unwrap();
        assert_eq!((read.classifier, read.pooling, read.normalize), (None, "mean", true));
    }

    #[test]
    fn unsupported_classifier_is_refused() {
        let labels = json!({ "0": "a", "1": "b", "2": "c" });
        let st = ST_CONFIG;
        for (file, fields, expected) in [
            (CONFIG, json!({ "id2label": labels }), "a classifier with 3 labels"),
            (CONFIG, json!({ "id2label": null }), "a classifier with 2 labels"),
            (
                CONFIG,
                json!({ "model_type": "nomic_bert" }),
                "a reranker with model_type nomic_bert",
            ),
            (CONFIG, json!({ "model_type": "deberta" }), "(an encoder of another family)"),
            (st, json!({ "activation_fn": "torch.nn.Tanh" }), "neither Sigmoid nor Identity"),
            (st, json!({ "default_prompt_name": "q" }), "rerankers with a prompt"),
            (
                "tokenizer_config.json",
                json!({ "tokenizer_class": "PreTrainedTokenizerFast" }),
                "tokenizer_class \"PreTrainedTokenizerFast\" does not tell whether",
            ),
            ("sentence_bert_config.json", json!({ "transformer_task": "x" }), "transformer_task"),
        ] {
            let directory = copy(BERT);
            change(&directory, file, &fields);
            let message = found(&directory).unwrap_err();
            assert!(message.contains(expected), "{message} instead of {expected}");
        }
        let directory = copy(MODERNBERT);
        change(&directory, CONFIG, &json!({ "classifier_pooling": "max" }));
        let message = found(&directory).unwrap_err();
        assert!(
            message.contains("classifier_pooling \"max\" is neither cls nor mean"),
            "{message}"
        );
    }
}
