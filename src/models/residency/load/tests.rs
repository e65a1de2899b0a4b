//! Tests of `load`.

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
use crate::models::serving::worker::WorkerError;
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
                    drop(tensors.insert("extra.bias".to_owned(), extra));
                });
            },
            "tensor \"extra.bias\" [3] is not part of this model",
            "tensor \"extra.bias\" [3] is not part of this model",
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
            |path| change_json(path, "config.json", |json| json["hidden_act"] = "selu".into()),
            "config.json: hidden_act is \"selu\"; known: gelu, gelu_new,",
            "config.json: hidden_act is \"selu\"; known: gelu, gelu_new,",
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
