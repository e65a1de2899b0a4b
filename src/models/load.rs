//! Loads a model from the verified contents of a package, and runs its self-test.
//!
//! Only this module uses both the manifest and the engine.

use std::ops::Range;
use std::sync::Arc;

use crate::base::errors::chain;
use crate::config::{self, Settings};
use crate::engine::{
    self, DenseSpec, EngineError, EngineOptions, FileSizes, Footprint, LoadedModel, ModelFiles,
    ModelSpec, Precision, UnknownName, WeightsFile, WeightsFormat,
};
use crate::package::{
    self, EntryKey, Manifest, PackageContents, Store, StoreError, TOKENIZER, WEIGHTS, Weights,
    dense_file,
};
use crate::telemetry::log::Message;
use crate::telemetry::metrics::FailureType;

/// Returns the least cosine between the vector of a self-test and the one that this machine
/// computes. In f32, processors differ by about 1e-6 because they round differently. Lower
/// precisions lose as much as they may lose on any text. A wrong tokenizer, pooling or weight gives
/// a far smaller cosine.
const fn min_cosine(precision: Precision) -> f64 {
    match precision {
        Precision::Int8 => 0.998,
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
    let size = |name: &str| size(manifest, name);
    let sizes = FileSizes {
        tokenizer: size(TOKENIZER),
        weights: size(WEIGHTS),
        dense: (0..manifest.dense.len()).map(|index| size(&dense_file(index))).sum(),
        stored: match manifest.precision {
            package::Precision::F32 => WeightsFormat::F32,
            package::Precision::F16 => WeightsFormat::F16,
            package::Precision::Int8 => WeightsFormat::Int8,
        },
    };
    Ok(engine::footprint(&spec(manifest)?, config, tokenizer, sizes, options)?)
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

/// Checks that a model computes the vector that its manifest declares.
///
/// # Errors
/// Fails if the model computes another vector or none.
pub fn self_test(manifest: &Manifest, model: &LoadedModel) -> Result<(), LoadError> {
    let vector = embed_plain(model, &manifest.self_test.text)?;
    let cosine = cosine(&vector, &manifest.self_test.vector);
    let precision = model.embedder.report().precision;
    if cosine >= min_cosine(precision) {
        Ok(())
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
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::path::Path;

    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;
    use crate::base::errors::chain;
    use crate::base::units::Bytes;
    use crate::models::worker::WorkerError;
    use crate::package::{BoxError, CleanupRule, Origin, PackRequest, Quota, UnpackLimits, pack};

    const OPTIONS: EngineOptions =
        EngineOptions { threads: 1, batch_tokens: 512, precision: Precision::F32 };

    /// Type, shape and data of each tensor, by name.
    type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

    fn change_weights(directory: &Path, change: impl FnOnce(&mut Tensors)) {
        let path = directory.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                let part = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                (name.to_owned(), part)
            })
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn change_json(directory: &Path, name: &str, change: impl FnOnce(&mut Value)) {
        let path = directory.join(name);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    fn set(tensors: &mut Tensors, name: &str, value: f32) {
        tensors.get_mut(name).unwrap().2[..4].copy_from_slice(&value.to_le_bytes());
    }

    /// Returns a copy of a working model directory.
    fn model_directory() -> TempDir {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-bert-mean");
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        for name in [
            "config.json",
            "modules.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "model.safetensors",
        ] {
            fs::copy(golden.join(name), directory.path().join(name)).unwrap();
        }
        directory
    }

    fn request(directory: &Path) -> PackRequest {
        PackRequest {
            source: directory.to_owned(),
            id: Some("m".parse().unwrap()),
            ..PackRequest::default()
        }
    }

    /// Computes the vector of the self-test with the real engine.
    fn computed(manifest: &Manifest, contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
        let model = load(manifest, contents.clone(), OPTIONS)?;
        Ok(embed_plain(&model, &manifest.self_test.text)?)
    }

    #[test]
    fn contradictory_model_is_neither_packed_nor_loaded() {
        const KEY: &str = "encoder.layer.0.attention.self.key.weight";
        const BIAS: &str = "encoder.layer.1.output.dense.bias";
        const NORM: &str = "embeddings.LayerNorm.bias";
        type Change = fn(&Path);
        // Each case: the change, the error of packing, and the error of loading a package that was
        // made without our checks.
        let cases: [(Change, &str, &str); 9] = [
            (
                |path| change_weights(path, |tensors| drop(tensors.remove(BIAS))),
                "tensor \"encoder.layer.1.output.dense.bias\" [64] is missing",
                "tensor \"encoder.layer.1.output.dense.bias\" [64] is missing",
            ),
            (
                |path| {
                    let extra = (Dtype::F32, vec![3], vec![0; 12]);
                    change_weights(path, |tensors| {
                        drop(tensors.insert("cls.bias".to_owned(), extra));
                    });
                },
                "tensor \"cls.bias\" [3] is not part of this model",
                "tensor \"cls.bias\" [3] is not part of this model",
            ),
            (
                |path| {
                    change_weights(path, |tensors| {
                        tensors.get_mut(KEY).unwrap().1 = vec![32, 128];
                    });
                },
                "tensor \"encoder.layer.0.attention.self.key.weight\" has shape [32, 128], \
                 expected [64, 64]",
                "tensor \"encoder.layer.0.attention.self.key.weight\" has shape [32, 128], \
                 expected [64, 64]",
            ),
            (
                |path| change_weights(path, |tensors| set(tensors, NORM, f32::NAN)),
                "tensor embeddings.LayerNorm.bias holds NaN",
                "tensor \"embeddings.LayerNorm.bias\" has NaN at index 0",
            ),
            (
                |path| change_weights(path, |tensors| set(tensors, NORM, f32::NEG_INFINITY)),
                "tensor embeddings.LayerNorm.bias holds -inf",
                "tensor \"embeddings.LayerNorm.bias\" has -inf at index 0",
            ),
            (
                |path| change_json(path, "config.json", |json| json["hidden_act"] = "silu".into()),
                "config.json: unknown activation \"silu\"; known: gelu, gelu_new,",
                "config.json: unknown activation \"silu\"; known: gelu, gelu_new,",
            ),
            (
                |path| {
                    change_json(path, "1_Pooling/config.json", |json| {
                        json["pooling_mode"] = "weightedmean".into();
                    });
                },
                "pooling \"weightedmean\" is not one of mean, cls, max,",
                "unknown pooling \"weightedmean\"; known: mean, cls, max, mean_sqrt_len",
            ),
            (
                |path| {
                    change_json(path, "tokenizer.json", |json| {
                        json["model"]["vocab"]["beyond"] = 540.into();
                    });
                },
                "tokenizer.json has 541 tokens, model.safetensors has word embeddings for 540",
                "tokenizer.json has 541 tokens, model.safetensors has word embeddings for 540",
            ),
            (
                |path| fs::write(path.join("model.safetensors"), b"\x80\x02").unwrap(),
                "the weights are not in the safetensors format",
                "model.safetensors cannot be read",
            ),
        ];
        let good = model_directory();
        let packed = pack(&request(good.path()), &computed, &|_, _| {}, std::io::sink()).unwrap();
        for (change, at_pack, at_load) in cases {
            let directory = model_directory();
            let path = directory.path();
            change(path);
            let refused = pack(&request(path), &computed, &|_, _| {}, std::io::sink());
            let message = chain(&refused.unwrap_err());
            assert!(message.contains(at_pack), "{message} instead of {at_pack}");

            let read = |name: &str| fs::read(path.join(name)).unwrap();
            let contents = PackageContents {
                config: read("config.json"),
                tokenizer: read("tokenizer.json"),
                weights: read("model.safetensors").into(),
                dense: Vec::new(),
            };
            let mut manifest = packed.manifest.clone();
            let pooling: Value = serde_json::from_slice(&read("1_Pooling/config.json")).unwrap();
            if let Some(mode) = pooling["pooling_mode"].as_str() {
                mode.clone_into(&mut manifest.pooling);
            }
            let message = chain(&load(&manifest, contents, OPTIONS).err().unwrap());
            assert!(message.contains(at_load), "{message} instead of {at_load}");
        }
    }

    fn fill(tensors: &mut Tensors, suffix: &str, value: impl Fn(f32) -> f32) {
        let matching = tensors.iter_mut().filter(|(name, _)| name.ends_with(suffix));
        for word in matching.flat_map(|(_, (_, _, data))| data.as_chunks_mut::<4>().0) {
            *word = value(f32::from_le_bytes(*word)).to_le_bytes();
        }
    }

    /// Installs an int8 model whose vectors are right only in f32.
    ///
    /// Each output of its feed-forward layers is the sum of a small part and of a large weight
    /// times the sum of the inputs. A LayerNorm with unit weight and zero bias makes that sum 0,
    /// unless the inputs are rounded.
    fn fragile() -> (TempDir, Store, EntryKey) {
        const LARGE: f32 = 64.0;
        let directory = model_directory();
        change_weights(directory.path(), |tensors| {
            fill(tensors, "attention.output.LayerNorm.weight", |_| 1.0);
            fill(tensors, "attention.output.LayerNorm.bias", |_| 0.0);
            fill(tensors, "intermediate.dense.weight", |weight| weight + LARGE);
        });
        let request =
            PackRequest { precision: Some(package::Precision::Int8), ..request(directory.path()) };
        let mut packed = Vec::new();
        pack(&request, &computed, &|_, _| {}, &mut packed).unwrap();
        let (store, _damaged) = Store::open(directory.path()).unwrap();
        let size = Bytes::mib(16);
        let staged = store.stage(packed.as_slice(), &UnpackLimits::for_size(size)).unwrap();
        let quota = Quota { max_size: size, max_models: 1, cleanup: CleanupRule::Manual };
        let admitted = store.install(staged, Origin::Installed, quota, |_| false).unwrap();
        (directory, store, admitted.entry.key)
    }

    #[test]
    fn auto_precision_falls_back_to_f32() {
        let (directory, store, key) = fragile();
        let (manifest, contents) = store.read(&key).unwrap();
        let mut picked = None;
        for precision in [Precision::F32, Precision::Int8, Precision::Bf16, Precision::Auto] {
            let options = EngineOptions { precision, ..OPTIONS };
            let model = load(&manifest, contents.clone(), options).unwrap();
            // A processor without bf16 products falls back to f32.
            let used = model.embedder.report().precision;
            let tested = self_test(&manifest, &model);
            assert_eq!(tested.is_ok(), used == Precision::F32, "{precision}: {tested:?}");
            picked = Some(used);
        }
        let picked = picked.unwrap();

        let log = directory.path().join("log");
        let writer = Arc::new(File::create(&log).unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
        let options = EngineOptions { precision: Precision::Auto, ..OPTIONS };
        let read = |options| load_from::<WorkerError>(&store, &key, options);
        let loaded = tracing::subscriber::with_default(subscriber, || {
            read(options).or_else(|error| read(error.retry_options(&key, options).ok_or(error)?))
        });
        let (_, model) = loaded.unwrap();
        self_test(&manifest, &model).unwrap();
        let report = model.embedder.report();
        assert_eq!(report.precision, Precision::F32);
        let log = fs::read_to_string(log).unwrap();
        if picked == Precision::F32 {
            assert_eq!(log, "");
        } else {
            let expected = [
                "WARN".to_owned(),
                "self-test failed; falling back to f32".to_owned(),
                format!("model={key}"),
                format!("the self-test failed in {picked}: the cosine "),
            ];
            assert!(expected.iter().all(|part| log.contains(part)), "{log}");
        }
    }

    #[test]
    fn cosine_handles_zero_and_mismatched_vectors() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[1.0], &[-1.0]), -1.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), 0.0);
    }
}
