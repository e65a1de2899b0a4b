//! Reads a model directory of sentence-transformers, or of transformers without `modules.json`. A
//! directory with a classifier of one label is that of a reranker ([`reranker`]). A GGUF file takes
//! the place of a directory ([`gguf`]).
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

mod computed_tensor;
mod encoder;
mod experts;
mod file;
pub(super) mod gguf;
mod modules;
mod onnx;
mod other_formats;
mod pickle;
mod reranker;
mod static_embedding;
mod steps;
mod token_heads;
mod torch;
mod vocabulary;
mod weights;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use self::encoder::Encoder;
pub use self::file::ModelDirectoryError;
use self::file::{read_json_if_present, unsupported};
use self::modules::{DenseFile, TokenSteps, check_normalize, read_dense};
use self::steps::MODULES;
pub(super) use self::steps::StatedSteps;
use self::token_heads::TokenHeads;
use super::manifest::{CONFIG, Classifier, Precision};
use super::registry::KnownModel;

const MAX_WEIGHTS: u64 = 4 << 30;

/// Configuration that sentence-transformers writes beside the modules.
const ST_CONFIG: &str = "config_sentence_transformers.json";
const ORDER: &str = "Transformer, any number of Dense for tokens and Pooling, or StaticEmbedding; \
                     then any number of Dense, at most one Normalize";

/// Contents of a model directory: shapes and steps as in a manifest, files as on disk.
#[derive(Debug)]
pub(super) struct ModelDirectory {
    pub(super) architecture: &'static str,
    /// Number of channels between the layers of the encoder.
    pub(super) hidden_size: usize,
    pub(super) dimensions: usize,
    pub(super) matryoshka_dimensions: Vec<usize>,
    pub(super) max_sequence_length: usize,
    pub(super) pooling: &'static str,
    pub(super) dense: Vec<DenseFile>,
    pub(super) normalize: bool,
    /// Head of a reranker.
    pub(super) classifier: Option<Classifier>,
    /// Heads for tokens.
    pub(super) token_heads: TokenHeads,
    pub(super) prompts: BTreeMap<String, String>,
    pub(super) default_prompt: Option<String>,
    pub(super) config: Vec<u8>,
    pub(super) tokenizer: Vec<u8>,
    pub(super) weights_path: PathBuf,
    pub(super) weights: Vec<u8>,
    /// Precision of the package by default; `None` for that of the weights.
    pub(super) precision: Option<Precision>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
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
    /// Reads all of `directory`, or the GGUF file with this path. The weights are held in memory.
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
        if gguf::is_file(directory) {
            return gguf::read(directory, stated, known);
        }
        other_formats::check_directory(directory)?;
        let modules: Option<Vec<Module>> = read_json_if_present(&directory.join(MODULES))?;
        if let Some(reranker) = reranker::read(directory, modules.as_deref(), stated, known)? {
            return Ok(reranker);
        }
        let Some(modules) = modules else {
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
        let token_heads = TokenHeads::read(directory, &encoder)?;
        let (pooling, normalize) = stated.of_plain_directory(directory, &encoder, known)?;
        let (weights_path, weights) = weights::read(directory, MAX_WEIGHTS)?;
        let (prompts, default_prompt) = read_prompts(directory)?;
        Ok(Self {
            architecture: encoder.architecture,
            hidden_size: encoder.hidden_size,
            dimensions: encoder.dimensions,
            matryoshka_dimensions: read_matryoshka(directory, directory, encoder.dimensions)?,
            max_sequence_length: encoder.max_sequence_length,
            pooling,
            dense: Vec::new(),
            normalize,
            classifier: None,
            token_heads,
            prompts,
            default_prompt,
            config: encoder.config,
            tokenizer: encoder.tokenizer,
            weights,
            weights_path,
            precision: None,
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
        let (encoder, token_heads, steps, (weights_path, weights)) = if is_static {
            let weights = weights::read(&root, MAX_WEIGHTS)?;
            let encoder = static_embedding::read(&root, &weights.0, &weights.1)?;
            let steps = TokenSteps::mean(encoder.dimensions);
            (encoder, TokenHeads::default(), steps, weights)
        } else {
            let encoder = Encoder::read(&root)?;
            let token_heads = TokenHeads::read(&root, &encoder)?;
            let steps = TokenSteps::read(&mut modules, encoder.dimensions, out_of_order)?;
            (encoder, token_heads, steps, weights::read(&root, MAX_WEIGHTS)?)
        };
        let TokenSteps { pooling, mut dimensions, mut dense } = steps;
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
            hidden_size: encoder.hidden_size,
            dimensions,
            matryoshka_dimensions: read_matryoshka(directory, &root, dimensions)?,
            max_sequence_length: encoder.max_sequence_length,
            pooling,
            dense,
            normalize,
            classifier: None,
            token_heads,
            prompts,
            default_prompt,
            config: encoder.config,
            tokenizer: encoder.tokenizer,
            weights,
            weights_path,
            precision: None,
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
