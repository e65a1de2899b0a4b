//! Reads the static embedding module of a model directory, in the layout of sentence-transformers
//! (`embedding.weight`) or model2vec (`embeddings`).
//!
//! Neither layout has a transformers configuration, so this module creates one. It contains the
//! shape of the table, and the table is checked against it at every load.

use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::json;

use super::encoder::{Encoder, read_tokenizer_file};
use super::file::{ModelDirectoryError, parse, unsupported};
use crate::package::manifest::{MAX_SEQUENCE_LENGTH, TOKENIZER};

/// Tensor names of the table in the two layouts.
const TABLES: [&str; 2] = ["embedding.weight", "embeddings"];
/// Additional tensors of model2vec if tokens share rows of the table.
const SHARED: [&str; 2] = ["mapping", "weights"];

#[derive(Deserialize)]
struct Tokenizer {
    truncation: Option<Truncation>,
}

#[derive(Deserialize)]
struct Truncation {
    max_length: usize,
    direction: Option<String>,
}

/// Reads the module in `root`; `weights` is the content of its weights file, and `weights_path` the
/// path of that file for messages.
///
/// # Errors
/// When a file is missing or requires a feature that Caxton does not support.
pub(super) fn read(
    root: &Path,
    weights_path: &Path,
    weights: &[u8],
) -> Result<Encoder, ModelDirectoryError> {
    let [rows, hidden_size] = table_shape(weights_path, weights)?;
    let tokenizer = read_tokenizer_file(root)?;
    let config = json!({
        "model_type": "static", "vocab_size": rows, "hidden_size": hidden_size,
    });
    Ok(Encoder {
        architecture: "static",
        is_bare: true,
        hidden_size,
        dimensions: hidden_size,
        max_sequence_length: max_sequence_length(&root.join(TOKENIZER), &tokenizer)?,
        config: config.to_string().into_bytes(),
        tokenizer,
    })
}

fn table_shape(path: &Path, weights: &[u8]) -> Result<[usize; 2], ModelDirectoryError> {
    let tensors = SafeTensors::deserialize(weights)
        .map_err(|error| unsupported(path, format!("it is not a safetensors file: {error}")))?;
    if let Some(name) = SHARED.into_iter().find(|name| tensors.tensor(name).is_ok()) {
        let reason = format!(
            "tensor \"{name}\": the tokens of this model share rows, which is not supported; load \
             the directory with SentenceTransformer(DIRECTORY) and save it with .save(OTHER), \
             which writes one row for each token"
        );
        return Err(unsupported(path, reason));
    }
    let Some((name, table)) =
        TABLES.into_iter().find_map(|name| Some((name, tensors.tensor(name).ok()?)))
    else {
        let reason = format!("it contains neither of the tables {}", TABLES.join(" and "));
        return Err(unsupported(path, reason));
    };
    match table.shape() {
        &[rows, columns] => Ok([rows, columns]),
        other => {
            let reason = format!("tensor \"{name}\" has shape {other:?}, expected two axes");
            Err(unsupported(path, reason))
        }
    }
}

/// Returns the length limit of the tokenizer, or [`MAX_SEQUENCE_LENGTH`] if it has none.
///
/// Without a limit, sentence-transformers accepts texts of any length. Caxton truncates longer
/// texts and states this in its response.
fn max_sequence_length(path: &Path, tokenizer: &[u8]) -> Result<usize, ModelDirectoryError> {
    let tokenizer: Tokenizer = parse(path, tokenizer)?;
    let Some(truncation) = tokenizer.truncation else { return Ok(MAX_SEQUENCE_LENGTH) };
    if truncation.direction.is_some_and(|side| side != "Right") {
        return Err(unsupported(path, "truncation.direction must be \"Right\""));
    }
    match truncation.max_length {
        0 => Err(unsupported(path, "truncation.max_length is 0")),
        limit => Ok(limit.min(MAX_SEQUENCE_LENGTH)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::super::{ModelDirectory, StatedSteps};
    use super::*;
    use crate::package::directory_fixture::{Values, safetensors, write_json};
    use crate::package::manifest::WEIGHTS;

    /// Creates a directory with a table of three tokens and dimension 2 and a Normalize module, in
    /// the layout of model2vec.
    fn directory(path: &str, tensors: &[Values<'_>], truncation: &Value) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let class = |name: &str, path: &str| {
            let class = format!("sentence_transformers.models.{name}");
            json!({ "path": path, "type": class })
        };
        let modules = json!([class("StaticEmbedding", path), class("Normalize", "1_Normalize")]);
        write_json(directory.path(), "modules.json", &modules);
        let root = directory.path().join(path);
        write_json(&root, "tokenizer.json", &json!({ "truncation": truncation }));
        fs::write(root.join(WEIGHTS), safetensors(tensors)).unwrap();
        directory
    }

    fn read_directory(path: &Path) -> Result<ModelDirectory, ModelDirectoryError> {
        ModelDirectory::read(path, StatedSteps::default(), None)
    }

    fn table(name: &str) -> Values<'_> {
        (name, vec![3, 2], vec![0.5; 6])
    }

    #[test]
    fn both_table_names_and_all_paths_are_read() {
        for path in ["", ".", "0_StaticEmbedding"] {
            for name in TABLES {
                let directory = directory(path, &[table(name)], &Value::Null);
                let source = read_directory(directory.path()).unwrap();
                assert_eq!((source.architecture, source.pooling), ("static", "mean"));
                assert_eq!((source.dimensions, source.normalize), (2, true));
                assert_eq!(source.max_sequence_length, 65_536);
                let config: Value = serde_json::from_slice(&source.config).unwrap();
                let expected = json!({ "model_type": "static", "vocab_size": 3, "hidden_size": 2 });
                assert_eq!(config, expected);
            }
        }
    }

    #[test]
    fn pooling_module_is_refused() {
        let directory = directory("", &[table(TABLES[0])], &Value::Null);
        let class = |name: &str| json!({ "path": "", "type": format!("sentence_transformers.models.{name}") });
        let modules = json!([class("StaticEmbedding"), class("Pooling")]);
        write_json(directory.path(), "modules.json", &modules);
        let message = read_directory(directory.path()).unwrap_err().to_string();
        assert!(message.contains("found Pooling"), "{message}");
    }

    #[test]
    fn length_limit_comes_from_the_tokenizer() {
        let limit = |truncation: Value| {
            let directory = directory("", &[table(TABLES[0])], &truncation);
            read_directory(directory.path()).map(|source| source.max_sequence_length)
        };
        assert_eq!(limit(json!({ "max_length": 512, "direction": "Right" })).unwrap(), 512);
        assert_eq!(limit(json!({ "max_length": 1_000_000 })).unwrap(), 65_536);
        for (truncation, part) in [
            (json!({ "max_length": 512, "direction": "Left" }), "truncation.direction"),
            (json!({ "max_length": 0 }), "truncation.max_length is 0"),
        ] {
            let message = limit(truncation).unwrap_err().to_string();
            assert!(message.contains("tokenizer.json") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn invalid_table_is_refused_by_name() {
        let mapping: Values<'_> = ("mapping", vec![3], vec![0.0; 3]);
        let cases = [
            (vec![], "neither of the tables embedding.weight and embeddings"),
            (vec![table("embeddings"), mapping], "tensor \"mapping\""),
            (
                vec![("embeddings", vec![6], vec![0.5; 6])],
                "tensor \"embeddings\" has shape [6], expected two axes",
            ),
        ];
        for (tensors, part) in cases {
            let directory = directory("", &tensors, &Value::Null);
            let message = read_directory(directory.path()).unwrap_err().to_string();
            assert!(message.contains(WEIGHTS) && message.contains(part), "{message}");
        }
    }

    #[test]
    fn table_error_names_the_file_of_the_weights() {
        let directory = directory("", &[table(TABLES[0])], &Value::Null);
        fs::remove_file(directory.path().join(WEIGHTS)).unwrap();
        let dense = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch/dense.bin");
        fs::copy(dense, directory.path().join("pytorch_model.bin")).unwrap();
        let message = read_directory(directory.path()).unwrap_err().to_string();
        assert!(message.contains("pytorch_model.bin: it contains neither"), "{message}");
    }
}
