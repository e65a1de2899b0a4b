//! Loads a model from the verified contents of a package, and runs its self-test.
//!
//! Only this module uses both the manifest and the engine.

use std::ops::Range;
use std::sync::Arc;

use crate::base::errors::chain;
use crate::config::{self, Settings};
use crate::engine::{
    self, DenseSpec, EngineError, EngineOptions, FileSizes, Footprint, LoadedModel, ModelFiles,
    ModelSpec, Precision, TokenHeads, UnknownName, WeightsFile, WeightsFormat,
};
use crate::package::{
    self, EntryKey, Manifest, PackageContents, Store, StoreError, TOKENIZER, WEIGHTS, Weights,
    dense_file,
};
use crate::telemetry::log::Message;
use crate::telemetry::metrics::FailureType;

/// Least cosine of a self-test in any precision.
pub const MIN_COSINE: f64 = 0.998;

/// Returns the least cosine between the vector of a self-test and the one that this machine
/// computes. In f32, processors differ by about 1e-6 because they round differently. Lower
/// precisions lose as much as they may lose on any text. A wrong tokenizer, pooling or weight gives
/// a far smaller cosine.
const fn min_cosine(precision: Precision) -> f64 {
    match precision {
        Precision::Int8 => MIN_COSINE,
        Precision::Bf16 | Precision::Auto | Precision::F32 => 0.9995,
    }
}

/// Reasons for which the contents of a package are not a working model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The manifest names something that this version does not support.
    #[error("the manifest names a feature that this version does not support")]
    Unsupported(#[from] UnknownName),
    /// The process that ran the self-test reported that the model does not work.
    #[error("{0}")]
    FailedInChild(String),
    /// The files are not a model that can be loaded.
    #[error("the model cannot be loaded from its files")]
    Engine(#[from] EngineError),
    /// The model computes another vector for the text of the self-test.
    #[error(
        "the self-test failed in {precision}: the cosine to the vector of the manifest is \
         {cosine:.6}, and at least {} is required",
        min_cosine(*precision)
    )]
    SelfTest {
        /// Measured cosine.
        cosine: f64,
        /// Precision in which the model ran.
        precision: Precision,
    },
}

impl LoadError {
    /// Returns the kind of fault in the model's bytes. Returns `None` if the machine is at fault.
    pub fn failure(&self) -> Option<FailureType> {
        match self {
            Self::Engine(EngineError::Threads { .. }) => None,
            Self::Unsupported(_) | Self::FailedInChild(_) | Self::Engine(_) => {
                Some(FailureType::Incompatible)
            }
            Self::SelfTest { .. } => Some(FailureType::SelfTest),
        }
    }
}

/// Converts a manifest to the model specification of the engine.
///
/// # Errors
/// Fails if the manifest names an architecture, pooling or activation that the engine does not
/// have.
pub fn spec(manifest: &Manifest) -> Result<ModelSpec, UnknownName> {
    let dense = manifest.dense.iter().map(|layer| {
        Ok(DenseSpec {
            in_features: layer.in_features,
            out_features: layer.out_features,
            bias: layer.bias,
            activation: layer.activation.parse()?,
        })
    });
    Ok(ModelSpec {
        architecture: manifest.architecture.parse()?,
        dimensions: manifest.dimensions,
        max_sequence_length: manifest.max_sequence_length,
        pooling: manifest.pooling.parse()?,
        dense: dense.collect::<Result<_, UnknownName>>()?,
        normalize: manifest.normalize,
        labels: manifest.classifier.as_ref().map(|classifier| classifier.labels),
        token_types: manifest.classifier.as_ref().is_some_and(|it| it.token_types),
        token_heads: TokenHeads {
            sparse: manifest.sparse.is_some(),
            multi_vector: manifest.multi_vector.as_ref().map(|head| head.dimensions),
        },
    })
}

/// Returns the number of processors that this process may use. The standard library respects the
/// affinity and the quota of the cgroup. Returns 1 if the number is unknown.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the options for running models under `settings`. The default number of threads is the
/// number of usable processors.
pub fn options(settings: &Settings) -> EngineOptions {
    EngineOptions {
        threads: settings.embedding.threads.unwrap_or_else(processors),
        batch_tokens: settings.embedding.batch_tokens,
        precision: match settings.embedding.precision {
            config::Precision::Auto => Precision::Auto,
            config::Precision::F32 => Precision::F32,
            config::Precision::Int8 => Precision::Int8,
            config::Precision::Bf16 => Precision::Bf16,
        },
    }
}

/// Loads a model. Blocks.
///
/// Mapped weights stay mapped. Their pages are released as they are packed.
///
/// # Errors
/// Fails if the manifest or a file does not describe a model that this version can run.
pub fn load(
    manifest: &Manifest,
    contents: PackageContents,
    options: EngineOptions,
) -> Result<LoadedModel, LoadError> {
    let PackageContents { config, tokenizer, weights, dense } = contents;
    load_with(
        manifest,
        PackageContents { config, tokenizer, weights: || Ok(weights), dense },
        options,
    )
}

/// Wrapper of the error type of [`load_with`]'s caller, so that an error of the engine can be
/// converted to it.
struct CallerError<E>(E);

impl<E: From<LoadError>> From<EngineError> for CallerError<E> {
    fn from(error: EngineError) -> Self {
        Self(LoadError::from(error).into())
    }
}

/// Does the same as [`load`], but verifies the weights while the tokenizer is read.
fn load_with<E: From<LoadError>>(
    manifest: &Manifest,
    contents: PackageContents<impl FnOnce() -> Result<Weights, E>>,
    options: EngineOptions,
) -> Result<LoadedModel, E> {
    let PackageContents { config, tokenizer, weights, dense } = contents;
    let weights =
        || -> Result<Box<dyn WeightsFile>, _> { Ok(Box::new(weights().map_err(CallerError)?)) };
    let files = ModelFiles { config, tokenizer, weights, dense };
    let spec = spec(manifest).map_err(LoadError::from)?;
    engine::load_with(&spec, files, options).map_err(|CallerError(error)| error)
}

/// Returns the memory that loading the model `key` of `store` with `options` takes.
///
/// Reads `config.json` and, unless it is very large, `tokenizer.json`. For the other files it uses
/// the sizes in the manifest.
///
/// # Errors
/// Fails if one of these files differs from the installed one, or does not describe a model that
/// this version can run.
pub fn footprint<E: From<StoreError> + From<LoadError>>(
    store: &Store,
    key: &EntryKey,
    options: EngineOptions,
) -> Result<Footprint, E> {
    let (manifest, config) = store.config(key)?;
    let tokenizer = match size(&manifest, TOKENIZER) > engine::COUNTED_BYTES {
        true => None,
        false => Some(store.tokenizer(key)?),
    };
    Ok(footprint_of(&manifest, &config, tokenizer.as_deref(), options)?)
}

/// Returns the memory that loading the model `key` takes, like [`footprint`], if its texts are
/// truncated to `most` tokens. The weights do not depend on it, only the memory of the passes does.
///
/// # Errors
/// Returns the errors of [`footprint`].
pub fn capped_footprint<E: From<StoreError> + From<LoadError>>(
    store: &Store,
    key: &EntryKey,
    options: EngineOptions,
    most: Option<usize>,
) -> Result<Footprint, E> {
    let full = footprint::<E>(store, key, options)?;
    let Some(most) = most else { return Ok(full) };
    let (manifest, config) = store.config(key)?;
    let length = most.min(manifest.max_sequence_length);
    let capped = footprint_of_length(&manifest, &config, None, length, options)?;
    Ok(Footprint { scratch_bytes: capped.scratch_bytes, ..full })
}

/// Returns the size in bytes of the file `name` of a model. Returns 0 if there is none.
fn size(manifest: &Manifest, name: &str) -> u64 {
    let member = manifest.files.iter().find(|member| member.path.as_str() == name);
    member.map_or(0, |member| member.size)
}

/// Returns the memory that loading a model with `options` takes. `config` is the content of its
/// `config.json`. Without a `tokenizer`, a typical vocabulary is assumed.
///
/// # Errors
/// Fails if `config` does not describe a model that this version can run.
pub fn footprint_of(
    manifest: &Manifest,
    config: &[u8],
    tokenizer: Option<&[u8]>,
    options: EngineOptions,
) -> Result<Footprint, LoadError> {
    footprint_of_length(manifest, config, tokenizer, manifest.max_sequence_length, options)
}

/// Returns the memory that loading a model takes, for texts of at most `length` tokens.
fn footprint_of_length(
    manifest: &Manifest,
    config: &[u8],
    tokenizer: Option<&[u8]>,
    length: usize,
    options: EngineOptions,
) -> Result<Footprint, LoadError> {
    let size = |name: &str| size(manifest, name);
    let sizes = FileSizes {
        tokenizer: size(TOKENIZER),
        weights: size(WEIGHTS),
        dense: (0..manifest.dense.len()).map(|index| size(&dense_file(index))).sum(),
        stored: match manifest.precision {
            package::Precision::F32 => WeightsFormat::F32,
            package::Precision::F16 => WeightsFormat::F16,
            package::Precision::Int8 => WeightsFormat::Int8,
            package::Precision::Int4Table => WeightsFormat::Int4Table,
        },
    };
    let spec = ModelSpec { max_sequence_length: length, ..spec(manifest)? };
    Ok(engine::footprint(&spec, config, tokenizer, sizes, options)?)
}

/// Loads the model `key` of `store`.
///
/// If [`Precision::Auto`] chooses another precision than f32, the self-test runs in that precision.
/// If it fails, the caller may [`retry_options`].
///
/// # Errors
/// Fails if a file differs from the installed one, or if the model does not work in general or in
/// the chosen precision.
pub fn load_from<E: From<StoreError> + From<LoadError>>(
    store: &Store,
    key: &EntryKey,
    options: EngineOptions,
) -> Result<(Arc<Manifest>, LoadedModel), E> {
    let (manifest, contents) = store.read_without_weights(key)?;
    let PackageContents { config, tokenizer, weights: (), dense } = contents;
    let weights = || Ok::<_, E>(store.read_weights(key)?);
    let model =
        load_with(&manifest, PackageContents { config, tokenizer, weights, dense }, options)?;
    let picked = model.embedder.report().precision;
    if options.precision != Precision::Auto || picked == Precision::F32 {
        return Ok((manifest, model));
    }
    self_test(&manifest, &model)?;
    Ok((manifest, model))
}

/// Returns the options with which to load `key` again after `error`: f32, if another precision was
/// chosen and its self-test failed. Logs the fallback.
///
/// f32 takes more memory, so a caller that reserves memory must reserve it again.
pub fn retry_options(
    key: &EntryKey,
    error: &LoadError,
    options: EngineOptions,
) -> Option<EngineOptions> {
    let LoadError::SelfTest { precision, .. } = error else { return None };
    if options.precision != Precision::Auto || *precision == Precision::F32 {
        return None;
    }
    tracing::warn!(
        name: Message::PrecisionReplaced.name(),
        model = %key, error = chain(error),
        "self-test failed; falling back to f32"
    );
    Some(EngineOptions { precision: Precision::F32, ..options })
}

impl WeightsFile for Weights {
    fn bytes(&self) -> &[u8] {
        Self::bytes(self)
    }

    fn release(&self, range: Range<usize>) {
        Self::release(self, range);
    }

    fn forget(&self, range: Range<usize>) {
        Self::forget(self, range);
    }

    fn anonymous_bytes(&self) -> u64 {
        Self::anonymous_bytes(self)
    }
}

/// Computes the vector of `text` without any prompt, of shape `[dimensions]`.
///
/// # Errors
/// Fails if the model cannot compute it.
pub fn embed_plain(model: &LoadedModel, text: &str) -> Result<Vec<f32>, EngineError> {
    let tokens = model.tokenizer.encode("", text)?;
    model.embedder.embed(&[&tokens.ids])
}

/// Computes the vector of the self-test of `manifest`, of shape `[dimensions]`: the vector of its
/// text, or in a reranker the one of the pair of the text with itself.
///
/// # Errors
/// Fails if the model cannot compute it.
pub fn self_test_vector(manifest: &Manifest, model: &LoadedModel) -> Result<Vec<f32>, EngineError> {
    let text = &manifest.self_test.text;
    if manifest.is_reranker() {
        let pair = model.tokenizer.encode_pair(text, text)?;
        return model.embedder.embed(&[&pair.ids]);
    }
    embed_plain(model, text)
}

/// Checks that a model computes the vector that its manifest declares. Returns the cosine between
/// the two vectors.
///
/// # Errors
/// Fails if the model computes another vector or none.
pub fn self_test(manifest: &Manifest, model: &LoadedModel) -> Result<f64, LoadError> {
    let vector = self_test_vector(manifest, model)?;
    let cosine = cosine(&vector, &manifest.self_test.vector);
    let precision = model.embedder.report().precision;
    if cosine >= min_cosine(precision) {
        Ok(cosine)
    } else {
        Err(LoadError::SelfTest { cosine, precision })
    }
}

/// Returns the cosine between two vectors. Returns 0 if one of them is zero or their lengths
/// differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if a.len() == b.len() && norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests;
