//! Packs the GGUF and ONNX files of `tests/golden/conversion`, compares the vectors with those of
//! llama.cpp and onnxruntime, and refuses damaged files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caxton::engine::{EngineOptions, Precision};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};
use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::support::{cli, golden};

const OPTIONS: EngineOptions =
    EngineOptions { threads: 2, batch_tokens: 256, precision: Precision::F32 };

/// Facts about a file and the largest difference of one value between unit vectors.
struct Case {
    file: &'static str,
    architecture: &'static str,
    pooling: &'static str,
    /// Precision of the package by default.
    precision: package::Precision,
    dense: usize,
    bound: f32,
}

/// Bound of models whose activations llama.cpp computes in f32.
const EXACT: f32 = 5e-6;
/// Bound of models with GELU, which llama.cpp takes from a table of values in f16.
const TABLE: f32 = 2e-4;

const BERT: Case = Case {
    file: "bert-f32",
    architecture: "bert",
    pooling: "mean",
    precision: package::Precision::F32,
    dense: 0,
    bound: TABLE,
};

const CASES: [Case; 15] = [
    BERT,
    Case { file: "bert-bf16", ..BERT },
    Case { file: "bert-f16", precision: package::Precision::F16, ..BERT },
    Case { file: "bert-q8_0", precision: package::Precision::F16, ..BERT },
    Case { file: "bert-q4_0", precision: package::Precision::F16, ..BERT },
    Case {
        file: "large-blocks-q4_k_s",
        pooling: "cls",
        precision: package::Precision::F16,
        ..BERT
    },
    Case { file: "distilbert-f32", architecture: "distilbert", ..BERT },
    Case { file: "eurobert-f32", architecture: "eurobert", bound: EXACT, ..BERT },
    Case { file: "gemma-embedding-f32", architecture: "gemma3_text", dense: 2, ..BERT },
    Case { file: "jina-bert-v2-f32", ..BERT },
    Case { file: "modern-bert-f32", architecture: "modernbert", ..BERT },
    Case { file: "nomic-bert-f32", architecture: "nomic_bert", bound: EXACT, ..BERT },
    Case { file: "qwen3-f32", architecture: "qwen3", pooling: "lasttoken", bound: EXACT, ..BERT },
    Case { file: "roberta-f32", architecture: "roberta", pooling: "cls", ..BERT },
    Case { file: "xlm-roberta-f32", architecture: "xlm-roberta", ..BERT },
];

fn path(name: &str) -> PathBuf {
    golden("conversion").join(name)
}

fn bytes(file: &str) -> Vec<u8> {
    fs::read(path(&format!("{file}.gguf"))).unwrap()
}

/// Texts of the reference.
fn texts() -> Vec<String> {
    fs::read_to_string(path("texts.txt")).unwrap().lines().map(str::to_owned).collect()
}

/// Token ids and vector of a text.
type Computed = (Vec<u32>, Vec<f32>);

/// Returns the token ids that llama.cpp finds, and the vectors that it computes, for the texts that
/// are short enough for the model.
fn reference(file: &str) -> Vec<Computed> {
    let ids = fs::read(path("llama-cpp_ids.json")).unwrap();
    let mut ids: BTreeMap<String, Vec<Vec<u32>>> = serde_json::from_slice(&ids).unwrap();
    let (model, _format) = file.rsplit_once('-').unwrap();
    let ids = ids.remove(model).unwrap();
    let vectors = rows("llama-cpp.safetensors", file);
    assert_eq!(ids.len(), vectors.len());
    ids.into_iter().zip(vectors).collect()
}

/// Returns the rows of the matrix `tensor` in a file of references.
fn rows(file: &str, tensor: &str) -> Vec<Vec<f32>> {
    let file = fs::read(path(file)).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let matrix = file.tensor(tensor).unwrap();
    let (words, _) = matrix.data().as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    values.chunks_exact(matrix.shape()[1]).map(<[f32]>::to_vec).collect()
}

fn request(source: &Path) -> PackRequest {
    PackRequest { source: source.to_owned(), ..PackRequest::default() }
}

/// Packs `request`; returns the manifest, and the token ids and the vector of each text.
fn pack(
    request: &PackRequest,
    texts: &[String],
) -> Result<(Manifest, Vec<Computed>), package::PackError> {
    let found = RefCell::new(Vec::new());
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), OPTIONS)?;
        for text in texts {
            let ids = model.tokenizer.encode("", text)?.ids;
            found.borrow_mut().push((ids, load::embed_plain(&model, text)?));
        }
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    };
    let packed = package::pack(request, &run, &|_, _| {}, io::sink())?;
    Ok((packed.manifest, found.into_inner()))
}

/// Returns the error of packing the file `contents`, with its causes.
fn refusal(contents: &[u8]) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.gguf");
    fs::write(&file, contents).unwrap();
    let error = pack(&request(&file), &[]).err()?;
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Some(message)
}

#[test]
fn gguf_files_give_the_vectors_of_llama_cpp() {
    let texts = texts();
    let mut failures = Vec::new();
    for case in &CASES {
        let file = case.file;
        let exact = PackRequest {
            precision: Some(package::Precision::F32),
            ..request(&path(&format!("{file}.gguf")))
        };
        let (manifest, found) = match pack(&exact, &texts) {
            Ok(packed) => packed,
            Err(error) => {
                failures.push(format!("{file}: {error:?}"));
                continue;
            }
        };
        assert_eq!(manifest.id.as_str(), file);
        assert_eq!(manifest.architecture, case.architecture, "{file}");
        assert_eq!(manifest.pooling, case.pooling, "{file}");
        assert_eq!(manifest.dense.len(), case.dense, "{file}");
        assert!(manifest.normalize, "{file}");
        let expected = reference(file);
        assert!(expected.len() >= 5, "{file}");
        let mut worst = 0.0_f32;
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            if found.0 != expected.0 {
                failures.push(format!("{file} text {index}: {:?} not {:?}", found.0, expected.0));
            }
            for (found, expected) in found.1.iter().zip(&expected.1) {
                worst = worst.max((found - expected).abs());
            }
        }
        if worst > case.bound || worst.is_nan() {
            failures.push(format!("{file}: largest difference {worst:e}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_gguf_file_has_a_case() {
    let names = fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut files: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".gguf").map(str::to_owned)).collect();
    let mut cases = CASES.map(|case| case.file.to_owned());
    files.sort();
    cases.sort();
    assert_eq!(files, cases);
}

#[test]
fn gguf_is_packed_in_the_precision_of_its_blocks() {
    for case in &CASES {
        let (manifest, _) = pack(&request(&path(&format!("{}.gguf", case.file))), &[]).unwrap();
        assert_eq!(manifest.precision, case.precision, "{}", case.file);
    }
}

#[test]
fn options_must_not_contradict_gguf() {
    let source = path("bert-f32.gguf");
    let stated = |pooling, normalize| {
        let request = PackRequest { pooling, normalize, ..request(&source) };
        pack(&request, &[]).map(|(manifest, _)| (manifest.pooling, manifest.normalize))
    };
    assert_eq!(stated(Some("mean"), Some(false)).unwrap(), ("mean".to_owned(), false));
    let error = stated(Some("cls"), None).unwrap_err();
    let message = error.source().unwrap().to_string();
    assert!(message.contains("its pooling is mean, but --pooling is cls"), "{message}");
}

#[test]
fn command_line_packs_a_gguf_file() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("packed.model.tar.zst");
    let source = path("bert-q8_0.gguf");
    let packed = cli()
        .args(["model", "pack", "--source"])
        .arg(&source)
        .arg("--output")
        .arg(&output)
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    assert!(output.exists());
}

#[test]
fn every_truncation_of_gguf_is_refused() {
    let whole = bytes("bert-q4_0");
    // Every length in the header, and a few in the tensors.
    let lengths = (0..800).chain((800..whole.len()).step_by(4999)).chain([whole.len() - 1]);
    for length in lengths {
        let message = refusal(&whole[..length]).unwrap();
        assert!(
            message.contains("damaged or incomplete")
                || message.contains("overlap")
                || message.contains("not a GGUF file"),
            "{length}: {message}"
        );
    }
}

/// Replaces the first `old` behind `key` in `file` by `new` of the same length.
fn replaced(file: &[u8], key: &str, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let find = |from: usize, part: &[u8]| {
        from + file[from..].windows(part.len()).position(|window| window == part).unwrap()
    };
    let at = find(find(0, key.as_bytes()) + key.len(), old);
    let mut changed = file.to_vec();
    changed[at..at + new.len()].copy_from_slice(new);
    changed
}

#[test]
fn hostile_gguf_is_refused_by_name() {
    let file = bytes("bert-f32");
    let number = |count: u64| count.to_le_bytes();
    let with = |start: usize, part: &[u8]| {
        let mut changed = file.clone();
        changed[start..start + part.len()].copy_from_slice(part);
        changed
    };
    let short = |value: u32| value.to_le_bytes();
    // The length and the format of a tensor.
    let described = |format: u32| [&number(32)[..], &short(format)].concat();
    let q2_k = replaced(&file, "token_embd_norm.bias", &described(0), &described(10));
    let cases: [(Vec<u8>, &str); 13] = [
        (with(0, b"GGML"), "it is not a GGUF file"),
        (with(4, &short(1)), "it has the version 1 of the format"),
        (with(4, &[0, 0, 0, 3]), "little-endian"),
        (with(8, &number(u64::MAX)), "tensors or keys, more than 65536"),
        (with(16, &number(1 << 40)), "tensors or keys, more than 65536"),
        (with(24, &number(u64::MAX)), "damaged or incomplete"),
        // The count of the list of tokens.
        (replaced(&file, "ggml.tokens", &number(540), &number(u64::MAX)), "damaged or incomplete"),
        // The kind of the tokens: a list.
        (replaced(&file, "ggml.tokens", &short(8), &short(9)), "a list of lists"),
        (replaced(&file, "bert.block_count", &short(4), &short(99)), "the unknown kind 99"),
        (replaced(&file, "general.architecture", b"bert", b"gpt2"), "\"gpt2\" is not one of bert"),
        (replaced(&file, "token_embd.weight", &number(540), &number(1 << 60)), "whole blocks"),
        // More tensor values than the file has.
        (replaced(&file, "token_embd.weight", &number(540), &number(50_000)), "damaged"),
        (q2_k, "has the format Q2_K"),
    ];
    for (contents, part) in cases {
        let message = refusal(&contents).unwrap();
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn changed_bytes_of_gguf_never_panic() {
    let file = bytes("gemma-embedding-f32");
    // Every byte of the metadata and of the descriptions of the tensors would take too long.
    for at in (8..20_000).step_by(251) {
        for byte in [0, 0xff] {
            let mut changed = file.clone();
            changed[at] = byte;
            drop(refusal(&changed));
        }
    }
}

/// Copies the files of the model `name`, with an export to ONNX instead of its weights.
fn onnx_directory(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let target = |file: &str| directory.path().join(file);
    for folder in ["1_Pooling", "onnx"] {
        fs::create_dir(target(folder)).unwrap();
    }
    let files = ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"];
    for file in files.iter().chain(&["sentence_bert_config.json", "1_Pooling/config.json"]) {
        let source = golden(name).join(file);
        if source.exists() {
            fs::copy(source, target(file)).unwrap();
        }
    }
    fs::copy(path(&format!("{name}.onnx")), target("onnx/model.onnx")).unwrap();
    directory
}

#[test]
fn onnx_exports_give_the_vectors_of_onnxruntime() {
    let texts = fs::read_to_string(golden("texts.jsonl")).unwrap();
    let texts: Vec<String> =
        texts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in ["tiny-bert-mean", "tiny-modernbert-gelu", "tiny-xlm-roberta"] {
        let directory = onnx_directory(name);
        let request = PackRequest { id: Some(name.parse().unwrap()), ..request(directory.path()) };
        let (manifest, found) = pack(&request, &texts).unwrap();
        assert_eq!((manifest.pooling.as_str(), manifest.normalize), ("mean", true), "{name}");
        let expected = rows("onnxruntime.safetensors", name);
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let differences = found.1.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let worst = differences.fold(0.0, f32::max);
            assert!(worst <= EXACT, "{name} text {index}: {worst:e}");
        }
    }
}
