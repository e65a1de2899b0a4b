//! Reads the weights of a module: one file, or several files that an index lists.
//!
//! Invariant: the files of an index are in the directory of the index, and contain exactly the
//! tensors that the index lists for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;

use super::file::{
    ModelDirectoryError, is_missing, quoted, read_file, read_json_if_present, unsupported,
};
use super::{onnx, other_formats, torch};
use crate::package::manifest::WEIGHTS;

/// File name of weights that torch wrote before safetensors existed.
const TORCH_WEIGHTS: &str = "pytorch_model.bin";
/// Maximum number of files of an index. transformers writes files of several gigabytes.
const MAX_SHARDS: usize = 128;

/// Function that reads a file of at most the given size as a safetensors file.
type Reader = fn(&Path, u64) -> Result<Vec<u8>, ModelDirectoryError>;

/// File names of weights in the order in which transformers looks for them; after them, those of
/// optimum.
const READERS: [(&str, Reader); 4] = [
    (WEIGHTS, read_file),
    (TORCH_WEIGHTS, torch::read_as_safetensors),
    ("onnx/model.onnx", onnx::read_as_safetensors),
    ("model.onnx", onnx::read_as_safetensors),
];

#[derive(Deserialize)]
struct Index {
    /// File of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// Returns whether `directory` has weights that Caxton can read.
pub(super) fn exist(directory: &Path) -> bool {
    READERS
        .iter()
        .any(|(name, _)| directory.join(name).exists() || index_path(directory, name).exists())
}

/// Reads the weights of a module as a safetensors file; returns them with the path of their source.
///
/// Prefers `model.safetensors` over `pytorch_model.bin`, like sentence-transformers, and both over
/// an export to ONNX. Holds weights in several files twice in memory.
pub(super) fn read(
    directory: &Path,
    limit: u64,
) -> Result<(PathBuf, Vec<u8>), ModelDirectoryError> {
    for (name, reader) in READERS {
        let path = directory.join(name);
        match reader(&path, limit) {
            Err(error) if is_missing(&error) => {}
            other => return other.map(|weights| (path, weights)),
        }
        let path = index_path(directory, name);
        if let Some(index) = read_json_if_present::<Index>(&path)? {
            let shards = Shards { directory, path: &path, name, reader, limit };
            let weights = shards.read(&index)?;
            return Ok((path, weights));
        }
    }
    other_formats::refuse(directory)?;
    let reason = format!("it is missing, and {TORCH_WEIGHTS} is missing too");
    Err(unsupported(&directory.join(WEIGHTS), reason))
}

fn index_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.index.json"))
}

/// Weights in several files.
struct Shards<'a> {
    directory: &'a Path,
    /// Path of the index.
    path: &'a Path,
    /// Name of the file that would contain all weights.
    name: &'a str,
    reader: Reader,
    /// Maximum size of all files together.
    limit: u64,
}

impl Shards<'_> {
    fn read(&self, index: &Index) -> Result<Vec<u8>, ModelDirectoryError> {
        let listed = self.listed(index)?;
        let mut files = Vec::with_capacity(listed.len());
        let mut left = self.limit;
        for (name, tensors) in listed {
            let path = self.directory.join(name);
            if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > left) {
                let reason = format!("the files that it lists have more than {} bytes", self.limit);
                return Err(unsupported(self.path, reason));
            }
            let bytes = (self.reader)(&path, left)?;
            left = left.saturating_sub(bytes.len() as u64);
            check_tensors(&path, &bytes, &tensors)?;
            files.push((path, bytes));
        }
        let mut parsed = Vec::with_capacity(files.len());
        for (path, bytes) in &files {
            parsed.push(parse(path, bytes)?);
        }
        let tensors = parsed.iter().flat_map(|file| file.iter());
        safetensors::serialize(tensors, None)
            .map_err(|error| unsupported(self.path, format!("its files do not fit: {error}")))
    }

    /// Returns the names of the files, each with its tensors.
    fn listed<'i>(
        &self,
        index: &'i Index,
    ) -> Result<BTreeMap<&'i str, BTreeSet<&'i str>>, ModelDirectoryError> {
        let mut listed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            listed.entry(file).or_default().insert(tensor);
        }
        let refuse = |reason: String| Err(unsupported(self.path, reason));
        if listed.is_empty() {
            return refuse("its weight_map is empty".to_owned());
        }
        if listed.len() > MAX_SHARDS {
            let count = listed.len();
            return refuse(format!("it lists {count} files, more than {MAX_SHARDS}"));
        }
        if let Some(name) = listed.keys().find(|name| !is_file_name(name)) {
            return refuse(format!(
                "it lists {}, which is not the name of a file in its directory",
                quoted(name)
            ));
        }
        if let Some(name) = self.unlisted(&listed) {
            return refuse(format!(
                "it does not list {}, which looks like one of its files; copy all files of one \
                 revision, and no others",
                quoted(&name)
            ));
        }
        Ok(listed)
    }

    /// Returns a file that looks like a part of the weights, such as
    /// `model-00001-of-00002.safetensors`, but is not listed.
    fn unlisted(&self, listed: &BTreeMap<&str, BTreeSet<&str>>) -> Option<String> {
        let (stem, extension) = self.name.split_once('.')?;
        let entries = fs::read_dir(self.directory).ok()?;
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| {
                let number = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
                number.is_some_and(|number| number.starts_with('-') && number.contains("-of-"))
            })
            .find(|name| !listed.contains_key(name.as_str()))
    }
}

fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0'])
}

fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>, ModelDirectoryError> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| unsupported(path, format!("it is not a safetensors file: {error}")))
}

/// Checks that a file contains exactly the tensors that the index lists for it.
fn check_tensors(
    path: &Path,
    bytes: &[u8],
    listed: &BTreeSet<&str>,
) -> Result<(), ModelDirectoryError> {
    let file = parse(path, bytes)?;
    let found: BTreeSet<&str> = file.iter().map(|(name, _)| name).collect();
    let reason = if let Some(name) = listed.difference(&found).next() {
        format!(
            "the tensor {} is missing, although the index lists it in this file; copy the file \
             again",
            quoted(name)
        )
    } else if let Some(name) = found.difference(listed).next() {
        format!("the index does not list the tensor {} in this file", quoted(name))
    } else {
        return Ok(());
    };
    Err(unsupported(path, reason))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::package::directory_fixture::{Values, safetensors, write_json};

    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";
    const LIMIT: u64 = 1 << 20;

    fn tensors() -> [Values<'static>; 3] {
        [
            ("a", vec![2, 2], vec![0.25, 0.5, 0.75, 1.0]),
            ("b", vec![1], vec![2.0]),
            ("c", vec![3], vec![3.0; 3]),
        ]
    }

    /// Creates a directory with the tensors a and b in the first file and c in the second one.
    fn split_directory() -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, c] = tensors();
        fs::write(directory.path().join(FIRST), safetensors(&[a, b])).unwrap();
        fs::write(directory.path().join(SECOND), safetensors(&[c])).unwrap();
        let index = json!({
            "metadata": { "total_size": 32 },
            "weight_map": { "a": FIRST, "b": FIRST, "c": SECOND },
        });
        write_json(directory.path(), INDEX, &index);
        directory
    }

    #[test]
    fn split_weights_equal_whole_weights() {
        let directory = split_directory();
        let (path, weights) = read(directory.path(), LIMIT).unwrap();
        assert_eq!(path, directory.path().join(INDEX));
        assert!(weights == safetensors(&tensors()));
        // A whole file wins over the index.
        fs::write(directory.path().join(WEIGHTS), b"whole").unwrap();
        assert_eq!(read(directory.path(), LIMIT).unwrap().1, b"whole");
    }

    #[test]
    fn split_torch_weights_are_read() {
        let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch/dense.bin");
        let directory = tempfile::tempdir().unwrap();
        let name = "pytorch_model-00001-of-00001.bin";
        fs::copy(&torch, directory.path().join(name)).unwrap();
        let index = json!({ "weight_map": { "linear.weight": name, "linear.bias": name } });
        write_json(directory.path(), "pytorch_model.bin.index.json", &index);
        let (_, weights) = read(directory.path(), LIMIT).unwrap();
        assert!(weights == torch::read_as_safetensors(&torch, LIMIT).unwrap());
    }

    #[test]
    fn contradictory_index_is_refused() {
        let many: serde_json::Map<_, _> = (0..=MAX_SHARDS)
            .map(|number| (number.to_string(), number.to_string().into()))
            .collect();
        let both = json!({ "a": FIRST, "b": FIRST, "c": SECOND });
        let with = |tensor: &str, file: &str| {
            let mut map = both.clone();
            map[tensor] = file.into();
            map
        };
        let cases = [
            (json!({}), "weight_map is empty"),
            (many.into(), "it lists 129 files, more than 128"),
            (with("d", "../x"), "\"../x\", which is not the name of a file"),
            (with("d", "/etc/passwd"), "which is not the name of a file"),
            (with("d", ".."), "which is not the name of a file"),
            (with("d", ""), "which is not the name of a file"),
            (with("d", "sub/"), "which is not the name of a file"),
            (with("d", SECOND), "the tensor \"d\" is missing"),
            (with("c", FIRST), "does not list \"model-00002-of-00002.safetensors\""),
            (with("b", SECOND), "does not list the tensor \"b\""),
            (json!({ "a": FIRST, "c": SECOND }), "does not list the tensor \"b\""),
            (with("d", "absent.safetensors"), "cannot open"),
        ];
        for (map, part) in cases {
            let directory = split_directory();
            write_json(directory.path(), INDEX, &json!({ "weight_map": map }));
            let message = read(directory.path(), LIMIT).unwrap_err().to_string();
            assert!(message.contains(part), "{message} instead of {part}");
        }
    }

    #[test]
    fn limit_applies_to_all_files_together() {
        let directory = split_directory();
        let size = |name| fs::metadata(directory.path().join(name)).unwrap().len();
        let both = size(FIRST) + size(SECOND);
        assert!(read(directory.path(), both).is_ok());
        let message = read(directory.path(), both - 1).unwrap_err().to_string();
        assert!(message.contains(&format!("more than {} bytes", both - 1)), "{message}");
    }
}
