//! Reads a model directory of sentence-transformers, or of transformers without `modules.json`.
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
mod other_formats;
mod pickle;
mod static_embedding;
mod steps;
mod torch;
mod weights;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use self::encoder::Encoder;
pub use self::file::ModelDirectoryError;
use self::file::{read_json, read_json_if_present, unsupported};
use self::steps::MODULES;
pub(super) use self::steps::StatedSteps;
use super::manifest::{CONFIG, DenseLayer, MAX_DENSE};
use super::registry::KnownModel;

const MAX_WEIGHTS: u64 = 4 << 30;

/// Configuration that sentence-transformers writes beside the modules.
const ST_CONFIG: &str = "config_sentence_transformers.json";
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
    pub(super) matryoshka_dimensions: Vec<usize>,
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

/// Key of `config.json` and of `config_sentence_transformers.json` that vLLM also reads.
#[derive(Default, Deserialize)]
struct MatryoshkaConfig {
    matryoshka_dimensions: Option<Vec<usize>>,
}

#[derive(Default, Deserialize)]
struct PromptConfig {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

impl ModelDirectory {
    /// Reads all of `directory`. The weights are held in memory.
    ///
    /// `stated` and the registry's facts about `known` supply the steps after the encoder if the
    /// directory does not state them.
    ///
    /// # Errors
    /// When a file is missing, not a regular file, too large or not in its format, when the model
    /// has a step that Caxton does not compute, or when its steps are unknown or contradict
    /// `stated`.
    pub(super) fn read(
        directory: &Path,
        stated: StatedSteps,
        known: Option<&KnownModel>,
    ) -> Result<Self, ModelDirectoryError> {
        other_formats::check_directory(directory)?;
        let Some(modules) = read_json_if_present::<Vec<Module>>(&directory.join(MODULES))? else {
            return Self::read_plain(directory, stated, known);
        };
        let source = Self::read_modules(directory, &modules)?;
        stated.check(directory, source.pooling, source.normalize)?;
        Ok(source)
    }

    /// Reads a directory that contains only an encoder.
    fn read_plain(
        directory: &Path,
        stated: StatedSteps,
        known: Option<&KnownModel>,
    ) -> Result<Self, ModelDirectoryError> {
        if !weights::exist(directory) {
            other_formats::refuse(directory)?;
        }
        let encoder = Encoder::read(directory)?;
        let (pooling, normalize) = stated.of_plain_directory(directory, known)?;
        let (weights_path, weights) = weights::read(directory, MAX_WEIGHTS)?;
        let (prompts, default_prompt) = read_prompts(directory)?;
        Ok(Self {
            architecture: encoder.architecture,
            dimensions: encoder.hidden_size,
            matryoshka_dimensions: read_matryoshka(directory, directory, encoder.hidden_size)?,
            max_sequence_length: encoder.max_sequence_length,
            pooling,
            dense: Vec::new(),
            normalize,
            prompts,
            default_prompt,
            config: encoder.config,
            tokenizer: encoder.tokenizer,
            weights,
            weights_path,
        })
    }

    /// Reads a directory with `modules`.
    fn read_modules(directory: &Path, modules: &[Module]) -> Result<Self, ModelDirectoryError> {
        let modules_path = directory.join(MODULES);
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
            let weights = weights::read(&root, MAX_WEIGHTS)?;
            (static_embedding::read(&root, &weights.0, &weights.1)?, "mean", weights)
        } else {
            let encoder = Encoder::read(&root)?;
            let pooling = match modules.next().transpose()? {
                Some(("Pooling", path)) => read_pooling(&path, encoder.hidden_size)?,
                other => return Err(out_of_order(other.map(|(name, _)| name))),
            };
            (encoder, pooling, weights::read(&root, MAX_WEIGHTS)?)
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
            matryoshka_dimensions: read_matryoshka(directory, &root, dimensions)?,
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
    let (path, weights) = weights::read(directory, MAX_DENSE)?;
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

/// Reads the lengths below `dimensions` for which the model was trained, ascending.
fn read_matryoshka(
    directory: &Path,
    encoder: &Path,
    dimensions: usize,
) -> Result<Vec<usize>, ModelDirectoryError> {
    for path in [directory.join(ST_CONFIG), encoder.join(CONFIG)] {
        let config: MatryoshkaConfig = read_json_if_present(&path)?.unwrap_or_default();
        let Some(mut lengths) = config.matryoshka_dimensions else { continue };
        // Lists contain the whole length too.
        lengths.retain(|length| (1..dimensions).contains(length));
        lengths.sort_unstable();
        lengths.dedup();
        return Ok(lengths);
    }
    Ok(Vec::new())
}

/// Reads the prompts and the name of the default prompt.
///
/// Empty prompts are omitted. They do not change a vector. Version 6 writes them into every model,
/// which would give one model two embedding spaces.
fn read_prompts(
    root: &Path,
) -> Result<(BTreeMap<String, String>, Option<String>), ModelDirectoryError> {
    let path = root.join(ST_CONFIG);
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

#[cfg(test)]
mod tests;
