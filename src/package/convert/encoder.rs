//! Reads the transformer module of a model directory: its architecture, length limit and tokenizer.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::file::{
    ModelDirectoryError, is_missing, parse, quoted, read_file, read_json_if_present, unsupported,
};
use super::vocabulary;
use crate::package::manifest::{CONFIG, MAX_JSON, MAX_SEQUENCE_LENGTH, MAX_TOKENIZER, TOKENIZER};

/// File names of the transformer module's configuration. The first existing one is read, as in
/// sentence-transformers.
const TRANSFORMER_CONFIGS: [&str; 4] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_xlm-roberta_config.json",
];

/// Supported values of `model_type`, each with its architecture and the number of unused rows at
/// the start of its position table. Families with unused rows count positions from the padding
/// index plus one.
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/roberta/modeling_roberta.py>
const MODEL_TYPES: [(&str, &str, usize); 16] = [
    ("bert", "bert", 0),
    ("camembert", "camembert", 2),
    ("deberta-v2", "deberta-v2", 0),
    ("distilbert", "distilbert", 0),
    ("embedding_gemma2", EMBEDDING_GEMMA2, 0),
    ("embedding_gemma2_text", EMBEDDING_GEMMA2, 0),
    ("eurobert", "eurobert", 0),
    ("gemma3_text", "gemma3_text", 0),
    ("gte", "gte", 0),
    ("modernbert", "modernbert", 0),
    ("mpnet", "mpnet", 2),
    // The name of gte in the code that its first models carry.
    ("new", "gte", 0),
    ("nomic_bert", "nomic_bert", 0),
    ("qwen3", "qwen3", 0),
    ("roberta", "roberta", 2),
    ("xlm-roberta", "xlm-roberta", 2),
];

/// Architecture whose `config.json` may describe a model of other media too.
const EMBEDDING_GEMMA2: &str = "embedding_gemma2";

/// Kinds of models that are not supported, each with the values of `model_type` by which it is
/// recognized.
const OTHER_KINDS: [(&str, &[&str]); 4] = [
    (
        "a model of images and texts",
        &["chinese_clip", "clip", "clip_text_model", "gemma3", "qwen2_vl", "qwen3_vl", "siglip"],
    ),
    ("an encoder with a decoder", &["bart", "mbart", "mt5", "t5", "t5gemma", "umt5"]),
    (
        "a language model of another family",
        &["gemma", "gemma2", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "phi3", "qwen2"],
    ),
    ("an encoder of another family", &["albert", "deberta", "electra", "xlm-roberta-xl"]),
];

/// Smallest usable length limit: one token between the two special tokens.
const MIN_SEQUENCE_LENGTH: usize = 3;

/// Configuration of PEFT, beside weights that only change another model.
const ADAPTER: &str = "adapter_config.json";

#[derive(Deserialize)]
struct Config {
    model_type: String,
    /// Names of the classes to which the weights belong.
    architectures: Option<Vec<String>>,
    /// jina-embeddings-v3: tasks for which the weights have low-rank adapters.
    lora_adaptations: Option<Vec<String>>,
    /// EmbeddingGemma 2: the part of the configuration that describes the encoder of texts.
    text_config: Option<Value>,
}

/// Sizes of an encoder, under the names of all families.
#[derive(Deserialize)]
struct Sizes {
    hidden_size: Option<usize>,
    /// DistilBERT's name for `hidden_size`.
    dim: Option<usize>,
    /// nomic's name for `hidden_size`.
    n_embd: Option<usize>,
    /// EmbeddingGemma 2: length of the vectors of tokens after their projection.
    embedding_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    /// nomic's name for `max_position_embeddings`.
    n_positions: Option<usize>,
}

impl Sizes {
    /// Returns the number of channels between the layers.
    fn hidden(&self) -> Option<usize> {
        self.hidden_size.or(self.dim).or(self.n_embd)
    }

    /// Returns the maximum number of positions, unused ones included.
    fn positions(&self) -> Option<usize> {
        self.max_position_embeddings.or(self.n_positions)
    }
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
    /// Whether the weights are only those of the encoder, without a head for another task.
    pub(super) is_bare: bool,
    /// Number of channels between the layers.
    pub(super) hidden_size: usize,
    /// Length of the vectors of tokens.
    pub(super) dimensions: usize,
    pub(super) max_sequence_length: usize,
    pub(super) config: Vec<u8>,
    pub(super) tokenizer: Vec<u8>,
}

/// Task for which sentence-transformers loads an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Vectors of the tokens.
    Features,
    /// Output of the head of a classifier.
    Classification,
}

impl Task {
    /// Returns the value of `transformer_task`.
    const fn name(self) -> &'static str {
        match self {
            Self::Features => "feature-extraction",
            Self::Classification => "sequence-classification",
        }
    }
}

impl Encoder {
    /// Reads the module in `root`, for vectors of tokens.
    ///
    /// # Errors
    /// When a file is missing or requires a feature that Caxton does not support.
    pub(super) fn read(root: &Path) -> Result<Self, ModelDirectoryError> {
        Self::read_for(root, Task::Features)
    }

    /// Reads the module in `root`, which is used for `task`.
    ///
    /// # Errors
    /// As [`Encoder::read`].
    pub(super) fn read_for(root: &Path, task: Task) -> Result<Self, ModelDirectoryError> {
        refuse_adapter(root)?;
        let path = root.join(CONFIG);
        let bytes = read_file(&path, MAX_JSON)?;
        let config: Config = parse(&path, &bytes)?;
        let (architecture, reserved) = architecture_of(&path, &config)?;
        let sizes: Sizes = match config.text_config {
            Some(text) if architecture == EMBEDDING_GEMMA2 => serde_json::from_value(text)
                .map_err(|source| ModelDirectoryError::Json { path: path.clone(), source })?,
            _ => parse(&path, &bytes)?,
        };
        let missing = |key: &str| unsupported(&path, format!("{key} is missing"));
        let hidden_size = sizes.hidden().ok_or_else(|| missing("hidden_size"))?;
        let positions = sizes.positions().ok_or_else(|| missing("max_position_embeddings"))?;
        let (transformer_path, transformer) = read_transformer_config(root, task)?;
        let tokenizer_config: TokenizerConfig =
            read_json_if_present(&root.join("tokenizer_config.json"))?.unwrap_or_default();
        let tokenizer = read_tokenizer(root, &config.model_type, &tokenizer_config)?;
        check_lower_case(&transformer_path, &transformer, &tokenizer)?;

        let positions = positions.saturating_sub(reserved).min(MAX_SEQUENCE_LENGTH);
        let max_sequence_length = match transformer.max_seq_length {
            Some(limit) => limit.min(positions),
            None => no_longer_than(tokenizer_config.model_max_length, positions),
        };
        if max_sequence_length < MIN_SEQUENCE_LENGTH {
            let reason =
                format!("a length limit of {max_sequence_length} tokens is too short for a text");
            return Err(unsupported(&path, reason));
        }
        let classes = config.architectures.as_deref().unwrap_or_default();
        Ok(Self {
            architecture,
            is_bare: !classes.is_empty() && classes.iter().all(|class| class.ends_with("Model")),
            hidden_size,
            dimensions: match sizes.embedding_dim {
                Some(projected) if architecture == EMBEDDING_GEMMA2 => projected,
                _ => hidden_size,
            },
            max_sequence_length,
            config: bytes,
            tokenizer,
        })
    }
}

/// Returns the architecture of `config`, and the number of unused rows of its position table.
fn architecture_of(
    path: &Path,
    config: &Config,
) -> Result<(&'static str, usize), ModelDirectoryError> {
    if let Some(task) = config.lora_adaptations.iter().flatten().next() {
        let reason = format!(
            "lora_adaptations names {}: the weights have an adapter for each task, as those of \
             jina-embeddings-v3, which Caxton does not apply",
            quoted(task)
        );
        return Err(unsupported(path, reason));
    }
    let model_type = config.model_type.as_str();
    if let Some(&(_, architecture, reserved)) =
        MODEL_TYPES.iter().find(|(known, ..)| *known == model_type)
    {
        return Ok((architecture, reserved));
    }
    let known = MODEL_TYPES.map(|(name, ..)| name).join(", ");
    let kind = OTHER_KINDS.iter().find(|(_, names)| names.contains(&model_type));
    let kind = kind.map(|(kind, _)| format!(" ({kind})")).unwrap_or_default();
    let model_type = quoted(model_type);
    Err(unsupported(path, format!("model_type {model_type}{kind} is not one of {known}")))
}

/// Checks that the weights in `root` are a whole model.
fn refuse_adapter(root: &Path) -> Result<(), ModelDirectoryError> {
    let path = root.join(ADAPTER);
    if path.exists() {
        return Err(unsupported(
            &path,
            "the weights are an adapter (PEFT) for the weights of another model; load the model \
             with SentenceTransformer(DIRECTORY), merge the adapter \
             (model[0].auto_model.merge_and_unload()) and save the result",
        ));
    }
    Ok(())
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
    task: Task,
) -> Result<(PathBuf, TransformerConfig), ModelDirectoryError> {
    for name in TRANSFORMER_CONFIGS {
        let path = root.join(name);
        let Some(config) = read_json_if_present::<TransformerConfig>(&path)? else { continue };
        return match &config.transformer_task {
            Some(stated) if stated != task.name() => {
                let expected = task.name();
                let reason = format!(
                    "transformer_task {stated:?} does not fit the other files; expected {expected}"
                );
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
            "it is missing, and only the vocab.txt of a BERT can replace it: load the model with \
             transformers and save its fast tokenizer \
             (AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY))",
        )),
        other => other,
    }
}

fn read_tokenizer(
    root: &Path,
    model_type: &str,
    config: &TokenizerConfig,
) -> Result<Vec<u8>, ModelDirectoryError> {
    let built = match root.join(TOKENIZER).exists() {
        true => None,
        false => vocabulary::build_tokenizer(root, model_type)?,
    };
    let bytes = built.map_or_else(|| read_tokenizer_file(root), Ok)?;
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
