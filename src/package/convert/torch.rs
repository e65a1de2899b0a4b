//! Converts `pytorch_model.bin`, written by `torch.save`, to a safetensors file.
//!
//! Handles the zip archive around the pickle and the views into its storages. The format is an
//! uncompressed zip archive with `NAME/data.pkl`, a pickle, and `NAME/data/KEY`, the bytes of each
//! storage (<https://github.com/pytorch/pytorch/blob/v2.9.0/docs/source/notes/serialization.rst>).
//!
//! Invariant: no tensor reaches beyond its storage or has more values than it, and all tensors
//! together do not exceed the limit. Therefore a small file cannot cause the allocation of much
//! memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::path::Path;

use safetensors::tensor::TensorView;
use zip::{CompressionMethod, ZipArchive};

use super::file::{ModelDirectoryError, quoted, read_file, unsupported};
use super::pickle::{self, Tensor};

const PICKLE: &str = "/data.pkl";

/// Reads the tensors of the file at `path`, at most `limit` bytes, as a safetensors file.
///
/// Holds the input and the output in memory at the same time.
///
/// # Errors
/// When the file cannot be read, is damaged, or is not a dictionary of tensors.
pub(super) fn read_as_safetensors(path: &Path, limit: u64) -> Result<Vec<u8>, ModelDirectoryError> {
    let bytes = read_file(path, limit)?;
    convert(&bytes, limit).map_err(|reason| unsupported(path, reason))
}

fn convert(bytes: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.content(PICKLE)?;
    let mut converted = BTreeMap::new();
    let mut storages = BTreeMap::new();
    let mut total = 0_u64;
    for (name, tensor) in pickle::tensors(pickle)? {
        let storage = match storages.get(tensor.storage) {
            Some(storage) => *storage,
            None => archive.content(&format!("/data/{}", tensor.storage))?,
        };
        storages.insert(tensor.storage, storage);
        let refuse = |reason: &str| format!("tensor {} {:?} {reason}", quoted(name), tensor.shape);
        let data = values(&tensor, storage).map_err(refuse)?;
        total = total.saturating_add(data.len() as u64);
        if total > limit {
            return Err(refuse(&format!("and the previous tensors take more than {limit} bytes")));
        }
        if converted.insert(name, (tensor.dtype, tensor.shape.clone(), data)).is_some() {
            return Err(refuse("appears twice"));
        }
    }
    let mut views = BTreeMap::new();
    for (name, (dtype, shape, data)) in &converted {
        let view = TensorView::new(*dtype, shape.clone(), data);
        views.insert(*name, view.map_err(|error| format!("tensor {}: {error}", quoted(name)))?);
    }
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// The zip archive of a torch file.
struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// Directory in the archive that contains all files.
    folder: String,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, String> {
        if !bytes.starts_with(b"PK") {
            return Err(
                "it is not a zip archive, which torch writes since version 1.6: load it and \
                        save it with a newer version"
                    .to_owned(),
            );
        }
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| {
            format!("it is an incomplete or damaged archive ({error}): copy it again")
        })?;
        let mut folders = Vec::new();
        for name in zip.file_names() {
            let name =
                name.map_err(|error| format!("it contains a file without a name: {error}"))?;
            folders.extend(name.strip_suffix(PICKLE).map(str::to_owned));
        }
        let [folder] = <[String; 1]>::try_from(folders)
            .map_err(|found| format!("it contains {} files {PICKLE}, expected one", found.len()))?;
        let mut archive = Self { bytes, zip, folder };
        // Files without this entry were written on little-endian machines.
        let order = "/byteorder";
        if archive.has(order) && archive.content(order)? != b"little" {
            return Err("it was written on a big-endian machine, which is not supported".to_owned());
        }
        Ok(archive)
    }

    fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{}{name}", self.folder)).is_some()
    }

    /// Returns the bytes of the file `name` in the directory, after a check of their CRC-32.
    fn content(&mut self, name: &str) -> Result<&'a [u8], String> {
        let name = format!("{}{name}", self.folder);
        let damaged = |what: &dyn std::fmt::Display| format!("its file {}: {what}", quoted(&name));
        let mut file = self.zip.by_name(&name).map_err(|error| damaged(&error))?;
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            return Err(damaged(&"it is compressed or encrypted, which torch never writes"));
        }
        // Reading the whole file makes the zip reader verify the CRC-32.
        let length = io::copy(&mut file, &mut io::sink()).map_err(|error| damaged(&error))?;
        let content = file.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            self.bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
        });
        content.ok_or_else(|| damaged(&"it extends beyond the end of the archive"))
    }
}

/// Returns the values of `tensor` in row-major order, from its `storage`.
fn values<'a>(tensor: &Tensor<'_>, storage: &'a [u8]) -> Result<Cow<'a, [u8]>, &'static str> {
    const BEYOND: &str = "extends beyond its storage";
    let Tensor { dtype, stored, offset, shape, strides, .. } = tensor;
    let size = dtype.bitsize() / 8;
    if stored.checked_mul(size) != Some(storage.len()) {
        return Err("has a storage whose size differs from the declared size");
    }
    if shape.len() != strides.len() {
        return Err("has a different number of axes and strides");
    }
    // All arithmetic on untrusted sizes is checked. After these checks, `last` is the highest
    // position of any value, so the positions below cannot overflow or leave the storage.
    let count = shape.iter().try_fold(1_usize, |count, length| count.checked_mul(*length));
    let count = count.filter(|count| count <= stored).ok_or("has more values than its storage")?;
    if count == 0 {
        return Ok(Cow::Borrowed(&[]));
    }
    let last = shape.iter().zip(strides).try_fold(*offset, |last, (length, stride)| {
        last.checked_add((length - 1).checked_mul(*stride)?)
    });
    last.filter(|last| last < stored).ok_or(BEYOND)?;
    if is_row_major(shape, strides) {
        return Ok(Cow::Borrowed(&storage[offset * size..][..count * size]));
    }
    let mut gathered = Vec::with_capacity(count * size);
    for index in 0..count {
        // `rest` is decomposed into one index per axis, from the last axis to the first.
        let mut rest = index;
        let mut position = *offset;
        for (length, stride) in shape.iter().zip(strides).rev() {
            position += rest % length * stride;
            rest /= length;
        }
        gathered.extend(&storage[position * size..][..size]);
    }
    Ok(Cow::Owned(gathered))
}

/// Returns whether the values are contiguous in row-major order. Strides of axes with length 1 are
/// ignored, because they are never used.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&length, &stride)| {
        let fits = length == 1 || stride == expected;
        expected *= length;
        fits
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::PathBuf;

    use half::{bf16, f16};
    use proptest::prelude::*;
    use safetensors::{Dtype, SafeTensors};

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
    }

    fn refusal(bytes: &[u8]) -> String {
        convert(bytes, LIMIT).unwrap_err()
    }

    #[test]
    fn all_saved_torch_tensors_are_read() {
        let file = read_as_safetensors(&path("weights.bin"), LIMIT).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let numbers = |count: u8| (0..count).map(|index| f32::from(index) / 8.0 - 1.0);
        let f32s = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
        let mut expected: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
        let mut single = |name, shape: &[usize], values: Vec<f32>| {
            expected.insert(name, (Dtype::F32, shape.to_vec(), f32s(values)));
        };
        single("f32", &[2, 3], numbers(6).collect());
        single("scalar", &[], vec![0.5]);
        single("empty", &[0, 4], vec![]);
        let tall: Vec<f32> = numbers(6).collect();
        single("transposed", &[3, 2], [0, 3, 1, 4, 2, 5].map(|index| tall[index]).to_vec());
        single("rows", &[2, 4], numbers(24).skip(8).take(8).collect());
        single("column", &[6], numbers(24).skip(1).step_by(4).collect());
        single("tied", &[6, 4], numbers(24).collect());
        single("parameter", &[2], numbers(2).collect());
        let halves = numbers(4).flat_map(|n| f16::from_f32(n).to_le_bytes()).collect();
        expected.insert("f16", (Dtype::F16, vec![2, 2], halves));
        let halves = numbers(4).flat_map(|n| bf16::from_f32(n).to_le_bytes()).collect();
        expected.insert("bf16", (Dtype::BF16, vec![2, 2], halves));
        let integers = (0..3_i64).flat_map(i64::to_le_bytes).collect();
        expected.insert("i64", (Dtype::I64, vec![1, 3], integers));
        let found = file.iter().map(|(name, view)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
    }

    #[test]
    fn invalid_torch_file_is_refused_by_name() {
        let cases = [
            ("malicious.bin", "refers to \"posix.system\", which no tensor needs"),
            ("alone.bin", "it does not contain a dictionary of tensors"),
            ("checkpoint.bin", "\"epoch\" is not a tensor"),
            ("legacy.bin", "it is not a zip archive, which torch writes since version 1.6"),
        ];
        for (name, part) in cases {
            let message = read_as_safetensors(&path(name), LIMIT).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(name), "{message}");
        }
        let message = refusal(&[]);
        assert!(message.contains("not a zip archive"), "{message}");
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = fs::read(path("weights.bin")).unwrap();
        for length in 2..bytes.len() {
            let message = refusal(&bytes[..length]);
            assert!(message.contains("incomplete or damaged archive"), "{length}: {message}");
        }
    }

    #[test]
    fn changed_storage_fails_its_checksum() {
        let mut bytes = fs::read(path("dense.bin")).unwrap();
        let one = 1.0_f32.to_le_bytes().map(|byte| byte);
        let minus_one = [one[0], one[1], one[2], 0xbf];
        let at = bytes.windows(4).position(|word| word == minus_one).unwrap();
        bytes[at + 3] = one[3];
        let message = refusal(&bytes);
        assert!(message.contains("/data/0\":"), "{message}");
    }

    #[test]
    fn tensor_beyond_its_storage_is_refused() {
        let storage = [0; 4 * 6];
        let tensor = |stored, offset, shape: &[usize], strides: &[usize]| {
            let tensor = Tensor {
                dtype: Dtype::F32,
                storage: "0",
                stored,
                offset,
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            };
            values(&tensor, &storage).map(|values| values.len())
        };
        assert_eq!(tensor(6, 0, &[2, 3], &[1, 2]), Ok(24));
        assert_eq!(tensor(6, 5, &[1, 1], &[usize::MAX, 7]), Ok(4));
        assert_eq!(tensor(6, usize::MAX, &[0, usize::MAX], &[1, 1]), Ok(0));
        for (stored, offset, shape, strides, part) in [
            (6, 1, &[2, 3][..], &[3, 1][..], "beyond"),
            (6, 0, &[2, 2], &[6, 1], "beyond"),
            (6, usize::MAX, &[2], &[1], "beyond"),
            (6, 0, &[2], &[usize::MAX], "beyond"),
            (6, 0, &[3, 3], &[0, 1], "more values"),
            (6, 0, &[1 << 40, 1 << 40], &[0, 0], "more values"),
            (6, 0, &[2, 3], &[1], "axes"),
            (7, 0, &[1], &[1], "differs from the declared size"),
            (usize::MAX, 0, &[1], &[1], "differs from the declared size"),
        ] {
            let reason = tensor(stored, offset, shape, strides).unwrap_err();
            assert!(reason.contains(part), "{shape:?} {strides:?}: {reason}");
        }
    }

    #[test]
    fn total_tensor_size_is_limited() {
        let bytes = fs::read(path("weights.bin")).unwrap();
        let message = convert(&bytes, 100).unwrap_err();
        let expected = "and the previous tensors take more than 100 bytes";
        assert!(message.ends_with(expected), "{message}");
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = fs::read(path("weights.bin")).unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            drop(convert(&bytes, LIMIT));
        }
    }
}
