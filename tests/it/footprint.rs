//! Compares the estimated footprint of a model with the measured one. Each model is loaded and run
//! in a process of its own, whose memory the kernel counts.
//!
//! A thread that polls without pause finds the peak of anonymous memory. Golden models are measured
//! as they are, where the bound is [`SLACK`], and enlarged to a width at which a tenth exceeds it.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells figures"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{env, io, thread};

use caxton::base::units::Bytes;
use caxton::engine::{EngineOptions, Footprint, Precision};
use caxton::models::WorkerError;
use caxton::models::residency::load;
use caxton::package::{
    self, EntryKey, Manifest, Origin, PackRequest, PackageContents, Quota, Store, UnpackLimits,
    WEIGHTS, pack,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{golden, skipped};

/// Environment variable that makes the test measure in this process: the precision and the store's
/// directory.
const MEASURED: &str = "CAXTON_MEASURED";
/// Allowed error for a process of a few megabytes: stacks and allocator arenas of the threads, and
/// memory that was free before the load.
const SLACK: u64 = 2 << 20;
const OPTIONS: EngineOptions =
    EngineOptions { threads: 2, batch_tokens: 1536, precision: Precision::Auto };

/// Returns a field of a file in `/proc/self` in bytes.
fn kilobytes(lines: &str, field: &str) -> u64 {
    let value = lines.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn anonymous() -> u64 {
    kilobytes(&fs::read_to_string("/proc/self/status").unwrap(), "RssAnon:")
}

/// Returns the resident bytes of mappings of files with this name.
fn mapped(name: &str) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut all = 0;
    let mut rest = maps.as_str();
    while let Some(at) = rest.find(&format!("{name}\n")) {
        rest = &rest[at..];
        all += kilobytes(rest, "Rss:");
        rest = &rest[name.len()..];
    }
    all
}

/// Returns the result of `work`, and the peak of anonymous memory while it ran.
fn watched<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
            }
        });
        let value = work();
        peak.fetch_max(anonymous(), Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
        (value, peak.load(Ordering::Relaxed))
    })
}

fn store_with(package: impl io::Read) -> (TempDir, Manifest) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::volatile(directory.path()).unwrap();
    let size = Bytes::mib(1024);
    let quota = Quota { max_size: size, max_models: 1, cleanup: package::CleanupRule::Manual };
    // Enlarged models repeat their values, so they compress extremely well.
    let limits = UnpackLimits { max_ratio: u32::MAX, ..UnpackLimits::for_size(size) };
    let staged = store.stage(package, &limits).unwrap();
    let entry = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry;
    (directory, Manifest::clone(&entry.manifest))
}

fn only_key(store: &Store) -> EntryKey {
    store.entries()[0].key.clone()
}

/// Figures of the measured process: estimated weights, mapped, scratch and loading bytes; measured
/// peak and mapped bytes.
type Figures = [u64; 6];

/// Loads the model, looks up words all over the embedding table, runs the longest passes on all
/// threads, and returns the figures.
fn measure(directory: &Path, precision: Precision) -> Figures {
    let options = EngineOptions { precision, ..OPTIONS };
    let store = Store::volatile(directory).unwrap();
    let key = only_key(&store);
    let Footprint { weight_bytes, mapped_bytes, scratch_bytes, loading_bytes } =
        load::footprint::<WorkerError>(&store, &key, options).unwrap();
    let before = anonymous();
    let ((model, manifest), loaded) = watched(|| {
        let (manifest, model) = load::load_from::<WorkerError>(&store, &key, options).unwrap();
        (model, manifest)
    });
    let words = u32::try_from(model.tokenizer.vocabulary_size()).unwrap();
    // One word in every eight pages is enough, because the kernel also maps the pages around it.
    let step = u64::from(words) * 8 * 4096 / mapped_bytes.max(1);
    let ids: Vec<u32> = (0..words).step_by(usize::try_from(step).unwrap().max(1)).collect();
    let longest = manifest.max_sequence_length.min(options.batch_tokens);
    let ((), used) = watched(|| {
        for texts in ids.chunks(64.min(longest)).collect::<Vec<_>>().chunks(4) {
            model.embedder.embed(texts).unwrap();
        }
        // Six texts of 256 tokens make three passes of the largest size that holds several texts.
        for length in BTreeSet::from([longest, longest.min(256)]) {
            let text: Vec<u32> = (0..words).cycle().take(length).collect();
            for _ in 0..2 {
                model
                    .embedder
                    .embed(&vec![text.as_slice(); options.batch_tokens / length])
                    .unwrap();
            }
        }
    });
    let peak = loaded.max(used) - before;
    [weight_bytes, mapped_bytes, scratch_bytes, loading_bytes, peak, mapped(WEIGHTS)]
}

/// Runs [`measure`] in a process of its own: this test again, with [`MEASURED`] set.
fn measured(directory: &Path, precision: Precision) -> Figures {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "footprint::estimate_is_within_ten_percent_of_measurement"])
        .args(["--nocapture", "--test-threads=1"])
        .env(MEASURED, format!("{precision} {}", directory.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let figures = said.lines().find_map(|line| line.split_once("figures: "));
    let Some((_, figures)) = figures else {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    };
    serde_json::from_str(figures).unwrap()
}

/// Compares the estimate of a package that is run in `precision` with the measurement. Returns a
/// description if it is wrong.
fn judge(package: &[u8], precision: Precision) -> Option<String> {
    let (store, manifest) = store_with(package);
    let [weights, mapped, scratch, loading, peak, mapped_peak] = measured(store.path(), precision);
    let footprint = Footprint {
        weight_bytes: weights,
        mapped_bytes: mapped,
        scratch_bytes: scratch,
        loading_bytes: loading,
    };
    let estimate = footprint.peak_bytes() + mapped;
    let measured = peak + mapped_peak;
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let ratio = estimate as f64 / measured as f64;
    let line = format!(
        "{} in {}, run in {precision}: {estimate} bytes estimated, {measured} measured, {ratio:.3} \
         (weights {weights}, scratch {scratch}, loading {loading}, {peak} measured; mapped {mapped}, \
         {mapped_peak} measured)",
        manifest.id,
        manifest.precision.name(),
    );
    eprintln!("{line}");
    let within = estimate.abs_diff(measured) <= SLACK.max(measured / 10);
    (!within).then_some(line)
}

/// Golden models and the factors by which they are enlarged.
const GROWN: [(&str, usize); 16] = [
    ("tiny-bert-mean", 8),
    ("tiny-bert-odd", 8),
    ("tiny-camembert", 8),
    ("tiny-deberta-v2-cross-encoder", 8),
    ("tiny-distilbert", 8),
    ("tiny-embedding-gemma2", 8),
    ("tiny-eurobert", 8),
    ("tiny-gemma3-causal", 8),
    ("tiny-gte", 8),
    ("tiny-modernbert", 8),
    ("tiny-mpnet", 8),
    ("tiny-nomic-bert", 8),
    ("tiny-qwen3", 8),
    ("tiny-roberta", 8),
    ("tiny-static", 64),
    ("tiny-xlm-roberta", 8),
];
/// Stored precision, and the precision in which it is run.
const RUNS: [(package::Precision, Precision); 2] =
    [(package::Precision::F32, Precision::F32), (package::Precision::Int8, Precision::Int8)];

/// Packs the model in `source`.
fn packed(source: &Path, stored: package::Precision) -> Vec<u8> {
    let request = PackRequest {
        source: source.to_owned(),
        precision: Some(stored),
        ..PackRequest::default()
    };
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let options = EngineOptions { precision: Precision::F32, ..OPTIONS };
        let model = load::load(manifest, contents.clone(), options)?;
        Ok(load::self_test_vector(manifest, &model)?)
    };
    let mut package = Vec::new();
    pack(&request, &run, &|_, _| {}, &mut package).unwrap();
    package
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    if let Ok(bytes) = fs::read(path) {
        let mut json = serde_json::from_slice(&bytes).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }
}

/// Multiplies the lengths of vectors in a configuration by `factor`.
fn grow(json: &mut Value, factor: u64) {
    for length in [
        "dim",
        "embedding_dim",
        "head_dim",
        "hidden_dim",
        "hidden_size",
        "hidden_size_per_layer_input",
        "intermediate_size",
        "pooler_hidden_size",
    ] {
        if let Some(value) = json[length].as_u64() {
            json[length] = (value * factor).into();
        }
    }
}

/// Copies the golden model `name` with all vectors `factor` times as long, and for texts of 256
/// tokens.
fn grown(name: &str, factor: usize) -> TempDir {
    const POSITIONS: usize = 256;
    let directory = tempfile::Builder::new().prefix(&format!("grown-{name}-")).tempdir().unwrap();
    copy(&golden(name), directory.path());
    let path = |file: &str| directory.path().join(file);
    change_json(&path("config.json"), |json| {
        json["max_position_embeddings"] = (POSITIONS as u64 + 2).into();
        grow(json, factor as u64);
        let layers = json.get_mut("per_layer_config").and_then(Value::as_object_mut);
        for (_, layer) in layers.into_iter().flatten() {
            grow(layer, factor as u64);
        }
    });
    change_json(&path("1_Pooling/config.json"), |json| {
        json["embedding_dimension"] =
            (json["embedding_dimension"].as_u64().unwrap() * factor as u64).into();
    });
    change_json(&path("sentence_bert_config.json"), |json| {
        json["max_seq_length"] = POSITIONS.into()
    });
    let weights = fs::read(path(WEIGHTS)).unwrap();
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&weights)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            let mut shape = view.shape().to_vec();
            let is_table =
                name.contains("embed") && !name.contains("projection") && shape.len() == 2;
            // The last layer of a reranker has one output.
            let fixed = ["relative_attention_bias.weight", "layer_scalar", "classifier.bias"];
            if name.contains("position_embeddings") {
                shape = vec![POSITIONS + 2, shape[1] * factor];
            } else if is_table || name == "classifier.weight" {
                shape[1] *= factor;
            } else if !fixed.iter().any(|fixed| name.ends_with(fixed)) {
                shape.iter_mut().for_each(|length| *length *= factor);
            }
            let bytes = shape.iter().product::<usize>() * 4;
            let data = view.data().iter().copied().cycle().take(bytes).collect();
            (name.to_owned(), (shape, data))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, data))| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(path(WEIGHTS), safetensors::serialize(views, None).unwrap()).unwrap();
    directory
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for child in fs::read_dir(from).unwrap() {
        let child: PathBuf = child.unwrap().path();
        let target = to.join(child.file_name().unwrap());
        if child.is_dir() {
            copy(&child, &target);
        } else {
            fs::copy(&child, target).unwrap();
        }
    }
}

#[test]
fn estimate_is_within_ten_percent_of_measurement() {
    if let Some(told) = env::var_os(MEASURED) {
        let told = told.into_string().unwrap();
        let (precision, directory) = told.split_once(' ').unwrap();
        let figures = measure(Path::new(directory), precision.parse().unwrap());
        // The test harness has already begun a line, so begin another one.
        return writeln!(io::stdout(), "\nfigures: {}", serde_json::to_string(&figures).unwrap())
            .unwrap();
    }
    let mut wrong = Vec::new();
    for (name, factor) in GROWN {
        let source = grown(name, factor);
        for (stored, run) in RUNS {
            wrong.extend(judge(&packed(source.path(), stored), run));
        }
        if name == "tiny-bert-mean" {
            wrong.extend(judge(
                &packed(source.path(), package::Precision::Int4Table),
                Precision::Int8,
            ));
        }
        let tiny = packed(&golden(name), package::Precision::F32);
        wrong.extend(judge(&tiny, Precision::F32));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_golden_family_is_measured() {
    // A static embedding has no configuration.
    let family = |name: &str| {
        let config = fs::read(golden(name).join("config.json")).ok()?;
        let config: Value = serde_json::from_slice(&config).unwrap();
        Some(config["model_type"].as_str().unwrap().to_owned())
    };
    let names = fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let all: BTreeSet<_> =
        names.filter(|name| name.starts_with("tiny-")).filter_map(|name| family(&name)).collect();
    let measured: BTreeSet<_> = GROWN.iter().filter_map(|(name, _)| family(name)).collect();
    assert_eq!(measured, all);
}

#[test]
fn estimate_of_bundled_model_is_within_ten_percent() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("bundled-models/bundled-mini-1.0.0.model.tar.zst");
    let package = fs::read(package).unwrap();
    let runs = [Precision::F32, Precision::Bf16, Precision::Int8];
    let wrong = runs.iter().filter_map(|&run| judge(&package, run));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn estimate_of_minilm_is_within_ten_percent() {
    let Some(models) = env::var_os("CAXTON_MODELS") else {
        return skipped("estimate_of_minilm_is_within_ten_percent", "CAXTON_MODELS");
    };
    let source = Path::new(&models).join("all-MiniLM-L6-v2");
    let package = packed(&source, package::Precision::F32);
    let runs = [Precision::F32, Precision::Bf16, Precision::Int8];
    let wrong = runs.iter().filter_map(|&run| judge(&package, run));
    let int4_table = packed(&source, package::Precision::Int4Table);
    let wrong = wrong.chain(judge(&int4_table, Precision::Int8));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new());
}
