//! Recognizes models in formats that Caxton does not read, to name them in error messages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{ModelDirectoryError, unsupported};

/// Extensions of files with models, each with the name of its format.
const FORMATS: [(&str, &str); 6] = [
    ("gguf", GGUF),
    ("h5", "TensorFlow"),
    ("msgpack", "Flax"),
    ("onnx", ONNX),
    ("pb", "TensorFlow"),
    ("tflite", "TensorFlow Lite"),
];
/// Format that is packed from its file, not from a directory.
const GGUF: &str = "GGUF";
/// Format of which a file in a directory takes the place of the weights.
const ONNX: &str = "ONNX";
/// Subdirectory of repositories that contains exports to ONNX.
const ONNX_DIRECTORY: &str = "onnx";

/// Checks that `path` is a directory.
///
/// # Errors
/// When it is a file or does not exist. The error names the format of the file if it is known.
pub(super) fn check_directory(path: &Path) -> Result<(), ModelDirectoryError> {
    let failed = |source: io::Error| ModelDirectoryError::Io {
        operation: "open",
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(());
    }
    match format_of(path) {
        Some(format) => Err(refusal(path, format)),
        None => Err(unsupported(path, "it is not a directory; give the directory of the model")),
    }
}

/// Checks that `directory`, which has no weights that Caxton reads, contains no model in another
/// format either.
///
/// # Errors
/// When it does. The error names the first such file.
pub(super) fn refuse(directory: &Path) -> Result<(), ModelDirectoryError> {
    let found = first_in(directory).or_else(|| first_in(&directory.join(ONNX_DIRECTORY)));
    match found {
        Some((path, format)) => Err(refusal(&path, format)),
        None => Ok(()),
    }
}

/// Returns the first file in the order of names that has a known format.
fn first_in(directory: &Path) -> Option<(PathBuf, &'static str)> {
    fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let format = format_of(&path)?;
            Some((path, format))
        })
        .min()
}

fn format_of(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?;
    FORMATS.iter().find(|(known, _)| known.eq_ignore_ascii_case(extension)).map(|(_, name)| *name)
}

fn refusal(path: &Path, format: &str) -> ModelDirectoryError {
    if format == GGUF {
        return unsupported(path, "it is a GGUF model; give this file instead of its directory");
    }
    if format == ONNX {
        return unsupported(
            path,
            "it is an ONNX model; Caxton packs a directory with config.json, tokenizer.json and \
             onnx/model.onnx that is neither quantized nor optimized; take these files, or \
             model.safetensors, of the same repository",
        );
    }
    let reason = format!(
        "it is a {format} model, which Caxton cannot pack; take model.safetensors, config.json and \
         tokenizer.json of the same repository (and modules.json with the directories that it \
         names, if the repository has it)"
    );
    unsupported(path, reason)
}

#[cfg(test)]
mod tests {
    use super::super::{ModelDirectory, StatedSteps};
    use super::*;
    use crate::package::directory_fixture::{Layout, model_directory};

    const CASES: [(&str, &str); 4] = [
        ("model.tflite", "TensorFlow Lite"),
        ("tf_model.h5", "TensorFlow"),
        ("saved_model.pb", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
    ];

    fn refusal_of(source: &Path) -> String {
        ModelDirectory::read(source, StatedSteps::default(), None).unwrap_err().to_string()
    }

    fn check(source: &Path, (name, format): (&str, &str)) {
        let message = refusal_of(source);
        let expected = format!("{name}: it is a {format} model, which Caxton cannot pack");
        assert!(message.contains(&expected) && message.contains("same repository"), "{message}");
    }

    #[test]
    fn onnx_is_packed_from_a_directory_with_one_file() {
        let directory = model_directory(Layout::Two);
        fs::remove_file(directory.path().join("model.safetensors")).unwrap();
        let quantized = directory.path().join("onnx/model_quantized.onnx");
        fs::create_dir(directory.path().join(ONNX_DIRECTORY)).unwrap();
        fs::write(&quantized, b"x").unwrap();
        for source in [directory.path(), &quantized] {
            let message = refusal_of(source);
            let expected = "model_quantized.onnx: it is an ONNX model; Caxton packs a directory";
            assert!(message.contains(expected), "{message}");
        }
        fs::write(directory.path().join("onnx/model.onnx"), b"x").unwrap();
        let message = refusal_of(directory.path());
        assert!(message.contains("onnx/model.onnx: it is not an ONNX file"), "{message}");
    }

    #[test]
    fn gguf_is_packed_from_its_file() {
        for name in ["model.Q8_0.gguf", "MODEL.GGUF"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(name);
            fs::write(&path, b"damaged").unwrap();
            let message = refusal_of(directory.path());
            assert!(
                message.contains(&format!("{name}: it is a GGUF model; give this")),
                "{message}"
            );
            let message = refusal_of(&path);
            assert!(message.contains(&format!("{name}: it is not a GGUF file")), "{message}");
        }
    }

    #[test]
    fn other_formats_are_named_with_a_way_out() {
        for case in CASES {
            // The file beside nothing, beside all files but the weights, and given itself.
            let alone = tempfile::tempdir().unwrap();
            let beside = model_directory(Layout::Two);
            fs::remove_file(beside.path().join("model.safetensors")).unwrap();
            for directory in [&alone, &beside] {
                let path = directory.path().join(case.0);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, b"x").unwrap();
                check(directory.path(), case);
                check(&path, case);
            }
        }
    }

    #[test]
    fn other_formats_beside_weights_are_ignored() {
        let directory = model_directory(Layout::Two);
        fs::create_dir(directory.path().join(ONNX_DIRECTORY)).unwrap();
        for name in ["tf_model.h5", "onnx/model.onnx"] {
            fs::write(directory.path().join(name), b"x").unwrap();
        }
        assert!(ModelDirectory::read(directory.path(), StatedSteps::default(), None).is_ok());
    }

    #[test]
    fn file_of_no_known_format_is_not_a_directory() {
        let directory = model_directory(Layout::Two);
        let path = directory.path().join("model.safetensors");
        let error = ModelDirectory::read(&path, StatedSteps::default(), None).unwrap_err();
        assert!(error.to_string().contains("it is not a directory"), "{error}");
    }
}
