//! Recognizes models in formats that Caxton does not read, to name them in error messages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{ModelDirectoryError, unsupported};

/// Extensions of files with models, each with the name of its format.
const FORMATS: [(&str, &str); 6] = [
    ("gguf", "GGUF"),
    ("h5", "TensorFlow"),
    ("msgpack", "Flax"),
    ("onnx", "ONNX"),
    ("pb", "TensorFlow"),
    ("tflite", "TensorFlow Lite"),
];
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
    let origin = if format == "GGUF" {
        "the repository from which it was converted"
    } else {
        "the same repository"
    };
    let reason = format!(
        "it is a {format} model, which Caxton cannot pack; take model.safetensors, config.json and \
         tokenizer.json of {origin} (and modules.json with the directories that it names, if the \
         repository has it)"
    );
    unsupported(path, reason)
}

#[cfg(test)]
mod tests {
    use super::super::{ModelDirectory, StatedSteps};
    use super::*;
    use crate::package::directory_fixture::{Layout, model_directory};

    const CASES: [(&str, &str, &str); 8] = [
        ("model.onnx", "ONNX", "the same repository"),
        ("onnx/model_quantized.onnx", "ONNX", "the same repository"),
        ("model.tflite", "TensorFlow Lite", "the same repository"),
        ("model.Q8_0.gguf", "GGUF", "the repository from which it was converted"),
        ("MODEL.GGUF", "GGUF", "the repository from which it was converted"),
        ("tf_model.h5", "TensorFlow", "the same repository"),
        ("saved_model.pb", "TensorFlow", "the same repository"),
        ("flax_model.msgpack", "Flax", "the same repository"),
    ];

    fn check(source: &Path, (name, format, origin): (&str, &str, &str)) {
        let error = ModelDirectory::read(source, StatedSteps::default(), None).unwrap_err();
        let message = error.to_string();
        let expected = format!("{name}: it is a {format} model, which Caxton cannot pack");
        assert!(message.contains(&expected) && message.contains(origin), "{message}");
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
