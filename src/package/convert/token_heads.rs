//! Reads the heads that bge-m3 has beside its encoder: `sparse_linear.pt` and `colbert_linear.pt`,
//! which FlagEmbedding writes with `torch.save`.
//!
//! Invariant: a head has exactly a weight and a bias, whose shapes fit the encoder.

use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;

use super::encoder::Encoder;
use super::file::{ModelDirectoryError, is_missing, parse, unsupported};
use super::torch;
use crate::package::manifest::{MAX_DENSE, MultiVectorHead, SparseHead, TOKENIZER};

/// Name of the sparse head: of its file, and of its tensors in a package.
const SPARSE: &str = "sparse_linear";
/// Name of the multi-vector head: of its file, and of its tensors in a package.
const MULTI_VECTOR: &str = "colbert_linear";

/// Names of tokens that have no weight in sparse vectors, in the spellings of XLM-RoBERTa and of
/// BERT. The roles are those of FlagEmbedding: beginning, end, padding, unknown.
const IGNORED_TOKENS: [&str; 8] =
    ["<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]"];

/// Heads for tokens.
#[derive(Debug, Default)]
pub(in crate::package) struct TokenHeads {
    pub(in crate::package) sparse: Option<SparseHead>,
    pub(in crate::package) multi_vector: Option<MultiVectorHead>,
    /// Safetensors file with the tensors of both heads; `None` if there are none.
    pub(in crate::package) weights: Option<Vec<u8>>,
}

/// Part of `tokenizer.json` that names tokens.
#[derive(Deserialize)]
struct Tokenizer {
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Head of a file: its number of outputs, and the file in the format of safetensors.
struct Head {
    outputs: usize,
    file: Vec<u8>,
}

impl TokenHeads {
    /// Reads the heads in `directory`, which has this `encoder`.
    ///
    /// # Errors
    /// When a file is not a linear layer for the states of the encoder, or the tokenizer does not
    /// name the tokens without a weight.
    pub(super) fn read(directory: &Path, encoder: &Encoder) -> Result<Self, ModelDirectoryError> {
        let sparse = read_head(directory, SPARSE, encoder.dimensions, Some(1))?;
        let multi_vector = read_head(directory, MULTI_VECTOR, encoder.dimensions, None)?;
        let heads = [(SPARSE, &sparse), (MULTI_VECTOR, &multi_vector)];
        Ok(Self {
            weights: join(directory, heads)?,
            sparse: match sparse {
                Some(_) => Some(SparseHead { ignored_tokens: ignored(directory, encoder)? }),
                None => None,
            },
            multi_vector: multi_vector.map(|head| MultiVectorHead { dimensions: head.outputs }),
        })
    }
}

/// Reads the head `name`, whose inputs are the states of the encoder. Returns `None` if `directory`
/// does not have it.
fn read_head(
    directory: &Path,
    name: &str,
    inputs: usize,
    outputs: Option<usize>,
) -> Result<Option<Head>, ModelDirectoryError> {
    let path = directory.join(format!("{name}.pt"));
    let file = match torch::read_as_safetensors(&path, MAX_DENSE) {
        Err(error) if is_missing(&error) => return Ok(None),
        other => other?,
    };
    let tensors = SafeTensors::deserialize(&file)
        .map_err(|error| unsupported(&path, format!("its tensors do not fit: {error}")))?;
    let shape = |name| tensors.tensor(name).map(|tensor| tensor.shape().to_vec());
    let fits = match (shape("weight").as_deref(), shape("bias").as_deref(), tensors.len()) {
        (Ok(&[rows, columns]), Ok(&[bias]), 2) => {
            let is_wanted = outputs.is_none_or(|outputs| rows == outputs);
            (rows > 0 && rows == bias && columns == inputs && is_wanted).then_some(rows)
        }
        _ => None,
    };
    match fits {
        Some(outputs) => Ok(Some(Head { outputs, file })),
        None => {
            let outputs = outputs.map_or_else(|| "n".to_owned(), |outputs| outputs.to_string());
            let reason = format!(
                "expected the tensors weight [{outputs}, {inputs}] and bias [{outputs}]; pack the \
                 directory without this file to omit the head"
            );
            Err(unsupported(&path, reason))
        }
    }
}

/// Joins the tensors of the heads that are present in one file, under the names that they have in a
/// package.
fn join(
    directory: &Path,
    heads: [(&str, &Option<Head>); 2],
) -> Result<Option<Vec<u8>>, ModelDirectoryError> {
    let refuse = |error: safetensors::SafeTensorError| unsupported(directory, error.to_string());
    let mut files = Vec::new();
    for (name, head) in heads {
        if let Some(head) = head {
            files.push((name, SafeTensors::deserialize(&head.file).map_err(refuse)?));
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    let tensors = files.iter().flat_map(|(head, file)| {
        file.iter().map(move |(name, tensor)| (format!("{head}.{name}"), tensor))
    });
    safetensors::serialize(tensors, None).map(Some).map_err(refuse)
}

/// Returns the ids of the tokens without a weight, ascending.
fn ignored(directory: &Path, encoder: &Encoder) -> Result<Vec<u32>, ModelDirectoryError> {
    let path = directory.join(TOKENIZER);
    let tokenizer: Tokenizer = parse(&path, &encoder.tokenizer)?;
    let named = tokenizer
        .added_tokens
        .iter()
        .filter(|token| IGNORED_TOKENS.contains(&token.content.as_str()));
    let mut ids: Vec<u32> = named.map(|token| token.id).collect();
    ids.sort_unstable();
    ids.dedup();
    // A token can be listed twice, but not under more ids than names.
    if ids.is_empty() || ids.len() > IGNORED_TOKENS.len() {
        let names = IGNORED_TOKENS.join(" ");
        let reason = format!(
            "its added_tokens do not name the tokens without a weight in sparse vectors, which are \
             some of {names}"
        );
        return Err(unsupported(&path, reason));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::Dtype;
    use tempfile::TempDir;

    use super::super::{ModelDirectory, StatedSteps};
    use super::*;

    /// Copies the XLM-RoBERTa of `tests/golden`, with the heads of `tests/golden/torch`.
    fn directory() -> TempDir {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let copy = tempfile::tempdir().unwrap();
        let source = golden.join("tiny-xlm-roberta");
        let modules = ["1_Pooling", "2_Normalize"];
        for module in modules {
            fs::create_dir(copy.path().join(module)).unwrap();
        }
        for from in ["", "1_Pooling", "2_Normalize"] {
            for entry in fs::read_dir(source.join(from)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), copy.path().join(from).join(entry.file_name())).unwrap();
                }
            }
        }
        for head in [SPARSE, MULTI_VECTOR] {
            let file = format!("{head}.pt");
            fs::copy(golden.join("torch").join(&file), copy.path().join(file)).unwrap();
        }
        copy
    }

    fn read(directory: &TempDir) -> Result<TokenHeads, String> {
        let read = ModelDirectory::read(directory.path(), StatedSteps::default(), None);
        read.map(|model| model.token_heads).map_err(|error| error.to_string())
    }

    #[test]
    fn heads_beside_the_weights_are_read() {
        let heads = read(&directory()).unwrap();
        assert_eq!(heads.sparse, Some(SparseHead { ignored_tokens: vec![0, 1, 2, 3] }));
        assert_eq!(heads.multi_vector, Some(MultiVectorHead { dimensions: 48 }));
        let weights = heads.weights.unwrap();
        let tensors = SafeTensors::deserialize(&weights).unwrap();
        let mut found: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (name, tensor.dtype(), tensor.shape().to_vec()))
            .collect();
        found.sort_by_key(|(name, ..)| *name);
        let expected = [
            ("colbert_linear.bias", Dtype::F16, vec![48]),
            ("colbert_linear.weight", Dtype::F16, vec![48, 64]),
            ("sparse_linear.bias", Dtype::F32, vec![1]),
            ("sparse_linear.weight", Dtype::F32, vec![1, 64]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn each_head_is_optional() {
        let place = directory();
        fs::remove_file(place.path().join("colbert_linear.pt")).unwrap();
        let heads = read(&place).unwrap();
        assert!(heads.sparse.is_some() && heads.multi_vector.is_none());
        let weights = heads.weights.unwrap();
        assert_eq!(SafeTensors::deserialize(&weights).unwrap().len(), 2);
        fs::remove_file(place.path().join("sparse_linear.pt")).unwrap();
        let heads = read(&place).unwrap();
        assert!(heads.sparse.is_none() && heads.weights.is_none());
    }

    #[test]
    fn head_of_another_shape_is_refused() {
        let place = directory();
        let path = |name: &str| place.path().join(name);
        fs::copy(path("colbert_linear.pt"), path("sparse_linear.pt")).unwrap();
        let message = read(&place).unwrap_err();
        assert!(message.contains("sparse_linear.pt"), "{message}");
        assert!(message.contains("weight [1, 64] and bias [1]"), "{message}");
        fs::remove_file(path("sparse_linear.pt")).unwrap();
        fs::write(path("colbert_linear.pt"), b"no archive").unwrap();
        let message = read(&place).unwrap_err();
        assert!(message.contains("colbert_linear.pt: it is not a zip archive"), "{message}");
    }

    #[test]
    fn tokenizer_names_the_ignored_tokens() {
        let place = directory();
        let path = place.path().join(TOKENIZER);
        let tokenizer = fs::read_to_string(&path).unwrap();
        let mut encoder = Encoder::read(place.path()).unwrap();
        encoder.tokenizer = tokenizer.replace("\"<unk>\"", "\"<other>\"").into_bytes();
        assert_eq!(ignored(place.path(), &encoder).unwrap(), [0, 1, 2]);
        encoder.tokenizer = br#"{ "added_tokens": [] }"#.to_vec();
        let message = ignored(place.path(), &encoder).unwrap_err().to_string();
        assert!(message.contains("tokens without a weight"), "{message}");
    }
}
