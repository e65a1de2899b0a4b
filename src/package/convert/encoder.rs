//! Reads the transformer module of a model directory: its architecture, length limit and tokenizer.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::file::{
    ModelDirectoryError, is_missing, parse, read_file, read_json_if_present, unsupported,
};
use crate::package::manifest::{CONFIG, MAX_JSON, MAX_TOKENIZER, TOKENIZER};

/// File names of the transformer module's configuration. The first existing one is read, as in
/// sentence-transformers.
const TRANSFORMER_CONFIGS: [&str; 4] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_xlm-roberta_config.json",
];

/// Supported values of `model_type`, each with the number of unused rows at the start of its
/// position table. Families with unused rows count positions from the padding index plus one.
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/roberta/modeling_roberta.py>
const ARCHITECTURES: [(&str, usize); 6] = [
    ("bert", 0),
    ("distilbert", 0),
    ("modernbert", 0),
    ("mpnet", 2),
    ("roberta", 2),
    ("xlm-roberta", 2),
];

/// Smallest usable length limit: one token between the two special tokens.
const MIN_SEQUENCE_LENGTH: usize = 3;

#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: Option<usize>,
    /// DistilBERT's name for `hidden_size`.
    dim: Option<usize>,
    max_position_embeddings: usize,
}

#[derive(Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
    transformer_task: Option<String>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// Length limit, as a float, because "no limit" is written as 10^30.
    model_max_length: Option<f64>,
    do_lower_case: Option<bool>,
    truncation_side: Option<String>,
}

/// Contents of the first module, without its weights.
pub(super) struct Encoder {
    pub(super) architecture: &'static str,
    pub(super) hidden_size: usize,
    pub(super) max_sequence_length: usize,
    pub(super) config: Vec<u8>,
    pub(super) tokenizer: Vec<u8>,
}

impl Encoder {
    /// Reads the module in `root`.
    ///
    /// # Errors
    /// When a file is missing or requires a feature that Caxton does not support.
    pub(super) fn read(root: &Path) -> Result<Self, ModelDirectoryError> {
        let path = root.join(CONFIG);
        let bytes = read_file(&path, MAX_JSON)?;
        let config: Config = parse(&path, &bytes)?;
        let Some(&(architecture, reserved)) =
            ARCHITECTURES.iter().find(|(name, _)| *name == config.model_type)
        else {
            let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
            let reason = format!("model_type {:?} is not one of {known}", config.model_type);
            return Err(unsupported(&path, reason));
        };
        let hidden_size = config
            .hidden_size
            .or(config.dim)
            .ok_or_else(|| unsupported(&path, "hidden_size is missing"))?;
        let (transformer_path, transformer) = read_transformer_config(root)?;
        let tokenizer_config: TokenizerConfig =
            read_json_if_present(&root.join("tokenizer_config.json"))?.unwrap_or_default();
        let tokenizer = read_tokenizer(root, &tokenizer_config)?;
        check_lower_case(&transformer_path, &transformer, &tokenizer)?;

        let positions = config.max_position_embeddings.saturating_sub(reserved);
        let max_sequence_length = match transformer.max_seq_length {
            Some(limit) => limit.min(positions),
            None => no_longer_than(tokenizer_config.model_max_length, positions),
        };
        if max_sequence_length < MIN_SEQUENCE_LENGTH {
            let reason =
                format!("a length limit of {max_sequence_length} tokens is too short for a text");
            return Err(unsupported(&path, reason));
        }
        Ok(Self { architecture, hidden_size, max_sequence_length, config: bytes, tokenizer })
    }
}

/// Returns the smaller of a limit, as transformers writes it, and the number of positions.
fn no_longer_than(limit: Option<f64>, positions: usize) -> usize {
    // Compare as floats first: "no limit" is 10^30, which does not fit an integer.
    match limit {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        #[expect(clippy::cast_precision_loss, reason = "position tables are far below 2^52")]
        Some(limit) if limit < positions as f64 => limit.max(0.0) as usize,
        _ => positions,
    }
}

fn read_transformer_config(
    root: &Path,
) -> Result<(PathBuf, TransformerConfig), ModelDirectoryError> {
    for name in TRANSFORMER_CONFIGS {
        let path = root.join(name);
        let Some(config) = read_json_if_present::<TransformerConfig>(&path)? else { continue };
        return match &config.transformer_task {
            Some(task) if task != "feature-extraction" => {
                let reason = format!("transformer_task {task:?} does not return token vectors");
                Err(unsupported(&path, reason))
            }
            _ => Ok((path, config)),
        };
    }
    Ok((root.join(TRANSFORMER_CONFIGS[0]), TransformerConfig::default()))
}

/// Reads the tokenizer file in `root`. If it is missing, the error contains instructions.
pub(super) fn read_tokenizer_file(root: &Path) -> Result<Vec<u8>, ModelDirectoryError> {
    let path = root.join(TOKENIZER);
    match read_file(&path, MAX_TOKENIZER) {
        Err(error) if is_missing(&error) => Err(unsupported(
            &path,
            "it is missing, and a vocabulary alone is not enough: load the model with transformers \
             and save its fast tokenizer \
             (AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY))",
        )),
        other => other,
    }
}

fn read_tokenizer(root: &Path, config: &TokenizerConfig) -> Result<Vec<u8>, ModelDirectoryError> {
    let bytes = read_tokenizer_file(root)?;
    let path = root.join("tokenizer_config.json");
    if config.truncation_side.as_deref().is_some_and(|side| side != "right") {
        return Err(unsupported(
            &path,
            "truncation_side must be \"right\": Caxton keeps the beginning of a text",
        ));
    }
    // Versions of transformers disagree on which of the two wins, so neither choice would be
    // certain to give the right vector.
    let lowercases = bert_normalizer(&root.join(TOKENIZER), &bytes)?
        .and_then(|normalizer| normalizer.get("lowercase").and_then(Value::as_bool));
    match (config.do_lower_case, lowercases) {
        (Some(asked), Some(done)) if asked != done => Err(unsupported(
            &path,
            format!(
                "do_lower_case is {asked}, but the normalizer in {TOKENIZER} has lowercase {done}; \
                 make them agree"
            ),
        )),
        _ => Ok(bytes),
    }
}

/// Returns the normalizers of a tokenizer, with nested sequences flattened.
fn normalizers(path: &Path, tokenizer: &[u8]) -> Result<Vec<Value>, ModelDirectoryError> {
    #[derive(Deserialize)]
    struct Tokenizer {
        normalizer: Option<Value>,
    }
    let mut pending = Vec::from_iter(parse::<Tokenizer>(path, tokenizer)?.normalizer);
    let mut flat = Vec::new();
    while let Some(mut normalizer) = pending.pop() {
        match normalizer.get_mut("normalizers").map(Value::take) {
            Some(Value::Array(inner)) => pending.extend(inner),
            _ => flat.push(normalizer),
        }
    }
    Ok(flat)
}

fn is_a(normalizer: &Value, kind: &str) -> bool {
    normalizer.get("type").and_then(Value::as_str) == Some(kind)
}

fn bert_normalizer(path: &Path, tokenizer: &[u8]) -> Result<Option<Value>, ModelDirectoryError> {
    Ok(normalizers(path, tokenizer)?.into_iter().find(|one| is_a(one, "BertNormalizer")))
}

/// Checks that the tokenizer lowercases if `do_lower_case` is set.
///
/// sentence-transformers lowercases a text before it calls the tokenizer. Caxton accepts the flag
/// only if the tokenizer lowercases too, so that the flag changes nothing. Otherwise the tokenizer
/// in the package would have to differ from the one in the directory, and an operator could not
/// compare the two.
fn check_lower_case(
    path: &Path,
    config: &TransformerConfig,
    tokenizer: &[u8],
) -> Result<(), ModelDirectoryError> {
    if config.do_lower_case != Some(true) {
        return Ok(());
    }
    let lowercases = |one: &Value| {
        is_a(one, "Lowercase")
            || (is_a(one, "BertNormalizer") && one.get("lowercase") == Some(&Value::Bool(true)))
    };
    if normalizers(path, tokenizer)?.iter().any(lowercases) {
        return Ok(());
    }
    Err(unsupported(
        path,
        format!(
            "do_lower_case is true, but {TOKENIZER} does not lowercase; \
             put a Lowercase normalizer first in {TOKENIZER} and set do_lower_case to false"
        ),
    ))
}
