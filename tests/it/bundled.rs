//! Tests of the shipped bundled model: its size, its digest, and the similarity of its vectors to
//! the original's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use caxton::base::units::Bytes;
use caxton::config::Settings;
use caxton::models::residency::load::{cosine, load, options, self_test};
use caxton::package::{CleanupRule, Digest, Origin, Quota, Store, UnpackLimits};

use crate::golden::{MINI_LM, reference, texts};

const PACKAGE: &str = "bundled-models/bundled-mini-1.0.0.model.tar.zst";
/// Least mean cosine of the int8 weights to the f32 reference.
const MIN_MEAN_COSINE: f64 = 0.9995;
const MIN_COSINE: f64 = 0.998;
const MAX_SIZE: u64 = 21_000_000;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGE)
}

#[test]
fn bundled_mini_is_small_and_intact() {
    let path = package();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.len() as u64 <= MAX_SIZE, "{} bytes", bytes.len());
    let sum = fs::read_to_string(path.with_extension("zst.sha256")).unwrap();
    assert_eq!(sum.split(' ').next().unwrap(), Digest::of(&bytes).to_string());
}

#[test]
fn bundled_mini_is_accurate() {
    let scratch = tempfile::tempdir().unwrap();
    let (store, _damaged) = Store::open(scratch.path()).unwrap();
    let limits = UnpackLimits::for_size(Bytes::mib(64));
    let quota = Quota { max_size: Bytes::mib(64), max_models: 1, cleanup: CleanupRule::Manual };
    let staged = store.stage(File::open(package()).unwrap(), &limits).unwrap();
    let admitted = store.install(staged, Origin::Installed, quota, |_| false).unwrap();
    let (manifest, contents) = store.read(&admitted.entry.key).unwrap();
    let model = load(&manifest, contents, options(&Settings::default())).unwrap();
    self_test(&manifest, &model).unwrap();

    let tokens: Vec<Vec<u32>> = texts("texts_real.jsonl")
        .iter()
        .map(|text| model.tokenizer.encode("", text).unwrap().ids)
        .collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let vectors = model.embedder.embed(&tokens).unwrap();
    let expected = reference(&MINI_LM, "embedding");
    let cosines: Vec<f64> = vectors
        .chunks_exact(manifest.dimensions)
        .zip(&expected)
        .map(|(found, expected)| cosine(found, expected))
        .collect();
    assert_eq!(cosines.len(), 100);
    #[expect(clippy::cast_precision_loss, reason = "a count of texts")]
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let least = cosines.iter().copied().fold(1.0, f64::min);
    assert!(mean >= MIN_MEAN_COSINE && least >= MIN_COSINE, "mean {mean}, least {least}");
}
