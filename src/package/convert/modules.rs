//! Reads the modules after the encoder: dense layers, pooling and normalization.
//!
//! A dense layer for the vectors of tokens, before pooling, becomes one for the pooled vector. Both
//! give the same vector if the layer is linear and the pooling is a mean or selects a token; other
//! combinations are refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::file::{ModelDirectoryError, read_json, read_json_if_present, unsupported};
use super::weights;
use crate::package::manifest::{CONFIG, DenseLayer, MAX_DENSE};

/// Name that sentence-transformers gives to the pooled vector.
const POOLED_VECTOR: &str = "sentence_embedding";
/// Name that sentence-transformers gives to the vectors of tokens.
const TOKEN_VECTORS: &str = "token_embeddings";

/// Dense layer with the contents of its file.
#[derive(Debug)]
pub(in crate::package) struct DenseFile {
    pub(in crate::package) layer: DenseLayer,
    pub(in crate::package) path: PathBuf,
    pub(in crate::package) weights: Vec<u8>,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    bias: Option<bool>,
    activation_function: Option<String>,
    #[serde(flatten)]
    data: DataNames,
    use_residual: Option<bool>,
}

/// Names of the data that a module reads and writes.
#[derive(Default, Deserialize)]
struct DataNames {
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

/// Steps from the vectors of tokens to one vector.
pub(super) struct TokenSteps {
    pub(super) pooling: &'static str,
    /// Length of the vector.
    pub(super) dimensions: usize,
    /// Dense layers that were before the pooling, for the pooled vector.
    pub(super) dense: Vec<DenseFile>,
}

impl TokenSteps {
    /// Returns the mean of vectors of length `dimensions`.
    pub(super) fn mean(dimensions: usize) -> Self {
        Self { pooling: "mean", dimensions, dense: Vec::new() }
    }

    /// Reads the next `modules` up to the pooling. Each is a class name and a directory. The
    /// vectors of tokens have the length `dimensions`.
    ///
    /// # Errors
    /// When a module is not supported, or `out_of_order` for another one than a dense layer or a
    /// pooling.
    pub(super) fn read<'m>(
        modules: &mut impl Iterator<Item = Result<(&'m str, PathBuf), ModelDirectoryError>>,
        mut dimensions: usize,
        out_of_order: impl Fn(Option<&str>) -> ModelDirectoryError,
    ) -> Result<Self, ModelDirectoryError> {
        let mut dense: Vec<DenseFile> = Vec::new();
        loop {
            match modules.next().transpose()? {
                Some(("Dense", path)) => {
                    let layer = read_dense_for(TOKEN_VECTORS, &path, dimensions)?;
                    dimensions = layer.layer.out_features;
                    dense.push(layer);
                }
                Some(("Pooling", path)) => {
                    let pooling = read_pooling(&path, dimensions)?;
                    let fixed = dense.iter().find(|dense| !commutes(pooling, &dense.layer));
                    return match fixed {
                        None => Ok(Self { pooling, dimensions, dense }),
                        Some(dense) => Err(unsupported(
                            &dense.path,
                            format!(
                                "the layer comes before the pooling {pooling}, which is supported \
                                 only for layers without activation_function and the poolings \
                                 mean, cls and lasttoken"
                            ),
                        )),
                    };
                }
                other => return Err(out_of_order(other.map(|(name, _)| name))),
            }
        }
    }
}

/// Returns whether `layer` gives the same vector before and after `pooling`.
fn commutes(pooling: &str, layer: &DenseLayer) -> bool {
    layer.activation == "identity"
        && match pooling {
            "mean" | "cls" | "lasttoken" => true,
            // The sum is divided by the square root of the number of tokens, so a bias would count
            // more than once.
            "mean_sqrt_len" => !layer.bias,
            _ => false,
        }
}

/// Reads the pooling of vectors of length `dimensions`.
fn read_pooling(directory: &Path, dimensions: usize) -> Result<&'static str, ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let config: BTreeMap<String, Value> = read_json(&path)?;
    let width = ["embedding_dimension", "word_embedding_dimension"]
        .iter()
        .find_map(|key| config.get(*key).and_then(Value::as_u64));
    if width != u64::try_from(dimensions).ok() {
        let found = width.map_or_else(|| "missing".to_owned(), |width| width.to_string());
        let reason =
            format!("embedding_dimension is {found}, but the previous module has {dimensions}");
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
            "lasttoken" => Ok("lasttoken"),
            other => Err(unsupported(
                &path,
                format!(
                    "pooling {other:?} is not one of mean, cls, max, mean_sqrt_len_tokens, \
                     lasttoken"
                ),
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

/// Reads the dense layer in `directory`, which follows a vector of length `in_features`.
pub(super) fn read_dense(
    directory: &Path,
    in_features: usize,
) -> Result<DenseFile, ModelDirectoryError> {
    read_dense_for(POOLED_VECTOR, directory, in_features)
}

/// Reads the dense layer in `directory`, which must read and write the data `name`.
fn read_dense_for(
    name: &str,
    directory: &Path,
    in_features: usize,
) -> Result<DenseFile, ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let config: DenseConfig = read_json(&path)?;
    if config.in_features != in_features {
        let reason = format!(
            "in_features is {}, but the previous module has {in_features}",
            config.in_features
        );
        return Err(unsupported(&path, reason));
    }
    config.data.check(&path, name)?;
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

/// Checks that the normalization in `directory` reads the pooled vector.
pub(super) fn check_normalize(directory: &Path) -> Result<(), ModelDirectoryError> {
    let path = directory.join(CONFIG);
    let names: DataNames = read_json_if_present(&path)?.unwrap_or_default();
    names.check(&path, POOLED_VECTOR)
}

impl DataNames {
    /// Checks that the module reads and writes `expected`. The pooled vector is the default.
    fn check(&self, path: &Path, expected: &str) -> Result<(), ModelDirectoryError> {
        let input = self.module_input_name.as_deref().unwrap_or(POOLED_VECTOR);
        let output = self.module_output_name.as_deref().unwrap_or(input);
        for (key, found) in [("module_input_name", input), ("module_output_name", output)] {
            if found != expected {
                let reason = format!("{key} {found:?} must be {expected:?} at this place");
                return Err(unsupported(path, reason));
            }
        }
        Ok(())
    }
}
