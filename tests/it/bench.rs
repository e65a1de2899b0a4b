//! Tests of `caxton bench` as a user runs it: without a daemon, on a model of the golden files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use caxton::engine::Precision;

use super::golden::{self, MEAN};
use crate::support::Root;

/// Largest difference to the vector of the text alone, because batches round differently.
const MAX_DIFFERENCE: f32 = 1e-6;
const NUMBERS: [&str; 10] = [
    "texts_per_second",
    "tokens_per_second",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "load_ms",
    "first_vector_ms",
    "peak_rss_bytes",
    "weight_bytes",
    "matrix_peak_fraction",
];

/// Temporary directory with a packed model, a configuration, and the store and socket that it
/// names.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let config = json!({
            "socket": { "path": place.path("socket") },
            "memory": { "model_cache": { "directory": place.path("store") } },
            "packages": { "keys_directory": place.path("keys.d") },
        });
        // JSON is valid YAML.
        fs::write(place.path("caxton.yaml"), config.to_string()).unwrap();
        let source = golden::golden().join(MEAN.name);
        let packed =
            place.run(&["model", "pack"], &[("--source", &source), ("--output", &place.package())]);
        assert!(packed.status.success(), "{}", stderr(&packed));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn package(&self) -> PathBuf {
        self.path("tiny.model.tar.zst")
    }

    /// Writes a file of texts and returns its path.
    fn input(&self, lines: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path("texts.jsonl");
        fs::write(&path, lines).unwrap();
        path
    }

    fn run(&self, words: &[&str], paths: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_caxton"));
        command.env_remove("CAXTON_SOCKET").arg("--config").arg(self.path("caxton.yaml"));
        command.args(words);
        for (name, path) in paths {
            command.arg(name).arg(path);
        }
        command.output().unwrap()
    }

    /// Runs one round over `input` with `model`.
    fn bench(&self, model: &Path, input: &Path, options: &[&str]) -> Output {
        let words = [&["bench", "--seconds", "0"], options].concat();
        self.run(&words, &[("--model", model), ("--input", input)])
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json_lines(texts: &[String]) -> String {
    texts.iter().map(|text| json!(text).to_string() + "\n").collect()
}

#[test]
fn report_is_complete_and_vectors_match_the_engine() {
    let place = Place::new();
    let texts = golden::texts("texts.jsonl");
    let input = place.input(json_lines(&texts));
    let vectors = place.path("vectors.safetensors");
    // Few tokens per pass cause many passes.
    let options = ["--json", "--threads", "2", "--batch-tokens", "64", "--precision", "f32"];
    let options = [&options[..], &["--output", vectors.to_str().unwrap()]].concat();
    let output = place.bench(&place.package(), &input, &options);
    assert!(output.status.success(), "{}", stderr(&output));

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in NUMBERS {
        assert!(report[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {report}");
    }
    assert_eq!(report["precision"], "f32");
    assert_eq!(report.as_object().unwrap().len(), NUMBERS.len() + 2, "{report}");
    assert!(report.as_object().unwrap().contains_key("isa"), "{report}");

    let file = fs::read(vectors).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names(), ["embedding"]);
    let tensor = tensors.tensor("embedding").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[texts.len(), 64][..]));
    let values: Vec<f32> =
        tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let model = golden::load(&MEAN, &golden::golden().join(MEAN.name), Precision::F32);
    for (index, (text, found)) in texts.iter().zip(values.chunks_exact(64)).enumerate() {
        let ids = model.tokenizer.encode("", text).unwrap().ids;
        let expected = model.embedder.embed(&[&ids]).unwrap();
        let difference = golden::max_difference(found, &expected);
        // `!(a > b)` would accept NaN; this form rejects it.
        assert!(difference <= MAX_DIFFERENCE, "text {index}: {difference:e}");
    }
}

#[test]
fn installed_model_is_measured_and_shown_as_table() {
    let place = Place::new();
    let package = place.package();
    let installed = place.run(&["model", "install", package.to_str().unwrap()], &[]);
    assert!(installed.status.success(), "{}", stderr(&installed));
    let input = place.input("\"a fox\"\n");
    let output = place.bench(Path::new(MEAN.name), &input, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    let measures: Vec<&str> = table.lines().filter_map(|line| line.split("  ").next()).collect();
    for name in ["texts per second", "one text, p99", "start to first vector", "precision"] {
        assert!(measures.contains(&name), "{table}");
    }
}

#[test]
fn rounds_option_omits_latency_and_peak_figures() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n\"a dog\"\n");
    let options = [("--model", place.package()), ("--input", input)];
    let options = options.each_ref().map(|(name, path)| (*name, path.as_path()));
    let output = place.run(&["bench", "--rounds", "3", "--json"], &options);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = report.as_object().unwrap();
    for name in NUMBERS {
        let measured = !["p50_ms", "p95_ms", "p99_ms", "matrix_peak_fraction"].contains(&name);
        assert_eq!(report.contains_key(name), measured, "{name}: {report:?}");
    }
}

#[test]
fn rounds_and_seconds_exclude_each_other() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n");
    let options = [("--model", place.package()), ("--input", input)];
    let options = options.each_ref().map(|(name, path)| (*name, path.as_path()));
    let both = place.run(&["bench", "--rounds", "3", "--seconds", "1"], &options);
    assert_eq!(both.status.code(), Some(64), "{}", stderr(&both));
}

#[test]
fn second_model_is_measured_and_compared() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n\"a dog\"\n\"a pump\"\n");
    let package = place.package();
    let options = ["--json", "--against", package.to_str().unwrap()];
    let output = place.bench(&package, &input, &options);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in NUMBERS {
        assert!(report["model"][name].as_f64().is_some_and(|value| value > 0.0), "{name}");
        assert_eq!(report["against"][name].is_null(), name == "peak_rss_bytes", "{name}");
    }
    let agreement = &report["agreement"];
    assert_eq!(agreement["same_embedding_space"], true);
    assert_eq!(agreement["neighbor_overlap"], 1.0, "{agreement}");
    assert_eq!(agreement["similarity_pairs"], 3, "{agreement}");
    let table = place.bench(&package, &input, &options[1..]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("rank correlation") && table.contains("peak memory"), "{table}");
}

#[test]
fn running_daemon_is_measured_over_its_socket() {
    let daemon = Root::new().start();
    let input = daemon.path().join("texts.jsonl");
    fs::write(&input, "\"a fox\"\n\"a dog\"\n\"a pump\"\n").unwrap();
    let run = |options: &[&str]| {
        let mut command = daemon.cli();
        command.args(["bench", "--daemon", "--seconds", "0", "--input"]).arg(&input);
        command.args(options).output().unwrap()
    };
    let output = run(&["--json", "--connections", "3", "--texts-per-request", "2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Each connection sends one request at least. Two of the bodies have two texts.
    assert_eq!(report["requests"].as_u64().unwrap() + report["rejected"].as_u64().unwrap(), 3);
    for name in ["requests_per_second", "texts_per_second", "tokens_per_second", "p50_ms", "p99_ms"]
    {
        assert!(report[name].as_f64().unwrap() > 0.0, "{name}: {report}");
    }
    let table = String::from_utf8(run(&[]).stdout).unwrap();
    assert!(table.contains("one request, p95"), "{table}");
    let unknown = run(&["--model", "none-such"]);
    assert_eq!(unknown.status.code(), Some(65), "{}", stderr(&unknown));
    daemon.stop();
}

#[test]
fn invalid_input_is_rejected_with_its_location() {
    let place = Place::new();
    let package = place.package();
    let cases: [(&[u8], &str); 3] = [
        (b"\"one\"\ntw\xf6\n", "line 2 of "),
        (b"\n\n", " contains no texts"),
        (b"", " contains no texts"),
    ];
    for (lines, message) in cases {
        let input = place.input(lines);
        let output = place.bench(&package, &input, &[]);
        assert_eq!(output.status.code(), Some(65), "{lines:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{lines:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("texts.jsonl"), "{lines:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn unknown_precision_is_rejected() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n");
    let output = place.bench(&place.package(), &input, &["--precision", "f31"]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stderr(&output).contains("'f31'"), "{}", stderr(&output));
}

#[test]
fn absent_model_is_rejected() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n");
    let output = place.bench(Path::new("absent"), &input, &[]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("\"absent\" is not installed"), "{}", stderr(&output));
}

#[test]
fn truncated_package_is_rejected() {
    let place = Place::new();
    let input = place.input("\"a fox\"\n");
    let cut = place.path("cut.model.tar.zst");
    let whole = fs::read(place.package()).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let output = place.bench(&cut, &input, &[]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
}
