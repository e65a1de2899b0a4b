//! Packs a model directory into a package.
//!
//! Reads the directory, compares it with the registry, converts the weights, runs the self-test,
//! builds the manifest and writes the archive. Does not run models: the caller passes in the
//! self-test.
//!
//! Invariants:
//! 1. The self-test gets exactly the bytes that are written.
//! 2. The same directory and request give the same package, byte for byte, regardless of time, path
//!    and user.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::convert::{ModelDirectory, ModelDirectoryError};
use super::digest::{Digest, HashingWriter};
use super::manifest::{
    CONFIG, FORMAT, MANIFEST, Manifest, ManifestError, Member, ModelId, Precision, SelfTest,
    TOKENIZER, Version, WEIGHTS, dense_file,
};
use super::quantize::{QuantizeError, convert, convert_dense, native_precision};
use super::registry::{KnownModel, find_known_model};
use super::ustar::write_archive;
use super::weights::Weights;

/// Text of the self-test. Accents, capitals, digits, punctuation and a second script are the first
/// parts that a damaged tokenizer gets wrong.
const SELF_TEST_TEXT: &str = "The quick brown fox paid €19.95 in Zürich; 東京 wasn't cheaper.";

/// SPDX value for an unknown licence. <https://spdx.github.io/spdx-spec/v2.3/package-information/>
const UNKNOWN_LICENSE: &str = "NOASSERTION";

/// Error of the caller's code that runs the model.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Callback that computes the vector of the manifest's [`SelfTest::text`] with the contents to be
/// packed.
pub type RunSelfTest<'a> = dyn Fn(&Manifest, &PackageContents) -> Result<Vec<f32>, BoxError> + 'a;

/// Parameters of [`pack`].
#[derive(Clone, Debug, Default)]
pub struct PackRequest {
    /// Model directory in the format of sentence-transformers.
    pub source: PathBuf,
    /// Model id; the name of the directory by default.
    pub id: Option<ModelId>,
    /// Id or repository of the known model in the directory, if it differs from the id.
    pub original: Option<String>,
    /// Version; `1` by default.
    pub version: Option<Version>,
    /// Precision of the weights; the precision of the directory by default.
    pub precision: Option<Precision>,
    /// SPDX expression of the licence; the licence in the registry by default.
    pub license: Option<String>,
    /// Revision of the directory in its source repository.
    pub revision: Option<String>,
}

/// Contents of a package's files, as they are packed.
#[derive(Clone, Debug)]
pub struct PackageContents<W = Weights> {
    /// Content of `config.json`.
    pub config: Vec<u8>,
    /// Content of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// Content of `model.safetensors`.
    pub weights: W,
    /// Contents of `dense.N.safetensors`, in order.
    pub dense: Vec<Vec<u8>>,
}

impl<W> PackageContents<W> {
    /// Builds contents from `weights` and from members that `take` returns by name. `dense` is the
    /// number of dense layers.
    pub(super) fn from_members(
        weights: W,
        mut take: impl FnMut(&str) -> Vec<u8>,
        dense: usize,
    ) -> Self {
        Self {
            config: take(CONFIG),
            tokenizer: take(TOKENIZER),
            weights,
            dense: (0..dense).map(|index| take(&dense_file(index))).collect(),
        }
    }
}

impl PackageContents {
    /// Returns names and contents in the order of the archive.
    fn members(&self) -> Vec<(String, &[u8])> {
        let mut members = vec![
            (CONFIG.to_owned(), self.config.as_slice()),
            (TOKENIZER.to_owned(), &self.tokenizer),
            (WEIGHTS.to_owned(), self.weights.bytes()),
        ];
        let dense = self.dense.iter().enumerate();
        members.extend(dense.map(|(index, bytes)| (dense_file(index), bytes.as_slice())));
        members
    }
}

/// Facts about a written package.
#[derive(Clone, Debug)]
pub struct PackResult {
    /// Manifest of the package.
    pub manifest: Manifest,
    /// Digest of `manifest.json`.
    pub manifest_digest: Digest,
    /// Digest of the whole package.
    pub package_digest: Digest,
    /// Size of the whole package in bytes.
    pub bytes: u64,
}

/// Error of [`pack`].
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The directory cannot be read, or its model is not supported.
    #[error("the model directory cannot be packed")]
    Source(#[from] ModelDirectoryError),
    /// The name of the directory is not a model id, and the request has no id.
    #[error("the name of {} is not a model id; choose an id with --model-id", path.display())]
    Id {
        /// Path of the directory.
        path: PathBuf,
        /// Fault of the name.
        #[source]
        source: BoxError,
    },
    /// The directory does not hold the known model that the id names.
    #[error(
        "this directory is not {id}: {key} is {found} instead of {expected}; \
         choose another id with --model-id"
    )]
    Contradiction {
        /// Id of the known model.
        id: &'static str,
        /// Name of the fact that differs.
        key: &'static str,
        /// Value in the directory.
        found: String,
        /// Value in the registry.
        expected: String,
    },
    /// The weights cannot be converted.
    #[error("{} cannot be converted", path.display())]
    Weights {
        /// File of the weights.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: QuantizeError,
    },
    /// The model could not compute the vector of the self-test.
    #[error("the model failed its self-test")]
    SelfTest(#[source] BoxError),
    /// The requested original is not a known model.
    #[error("\"{0}\" is not a known model; `caxton model known` lists them")]
    Unknown(String),
    /// The manifest would break a rule of the format.
    #[error("the manifest of the package is invalid")]
    Manifest(#[from] ManifestError),
    /// The package could not be written.
    #[error("cannot write the package")]
    Write(#[source] io::Error),
}

/// Packs the model of `request` and writes the package to `out`.
///
/// The manifest passed to `self_test` has a vector of zeros. `progress` is called with the number
/// of archive bytes done and the total number.
///
/// Blocks for seconds per 100 MB of weights, plus the time of the self-test. Needs about twice the
/// size of the weights in memory.
///
/// # Errors
/// When the directory is not supported or differs from the known model of its id, the weights
/// cannot be converted, the self-test fails, or `out` fails.
pub fn pack(
    request: &PackRequest,
    self_test: &RunSelfTest<'_>,
    progress: &dyn Fn(u64, u64),
    out: impl Write,
) -> Result<PackResult, PackError> {
    let id = match &request.id {
        Some(id) => id.clone(),
        None => id_of(&request.source)?,
    };
    let known = match &request.original {
        Some(name) => Some(find_known_model(name).ok_or_else(|| PackError::Unknown(name.clone()))?),
        None => find_known_model(id.as_str()),
    };
    let source = ModelDirectory::read(&request.source)?;
    if let Some(known) = known {
        compare(known, &source)?;
    }
    let unconverted = |source_error| PackError::Weights {
        path: source.weights_path.clone(),
        source: source_error,
    };
    let precision = match request.precision {
        Some(precision) => precision,
        None => native_precision(&source.weights).map_err(unconverted)?,
    };
    let weights = convert(&source.weights, precision).map_err(unconverted)?;
    let (mut manifest, contents) = describe(request, id, precision, known, source, weights)?;
    let vector = self_test(&manifest, &contents).map_err(PackError::SelfTest)?;
    manifest.self_test.vector = round_vector(&vector);
    let mut out = HashingWriter::new(out);
    write_package(&manifest, &contents, progress, &mut out)?;
    let bytes = out.bytes_written();
    let manifest_digest = Digest::of(&manifest.to_json()?);
    Ok(PackResult { manifest_digest, package_digest: out.finish(), bytes, manifest })
}

/// Writes the package of `manifest` and of the contents that it describes. The same input gives the
/// same bytes.
///
/// `progress` is called with the number of archive bytes done and the total number.
///
/// # Errors
/// When the manifest breaks a rule of the format, or `out` fails.
pub fn write_package(
    manifest: &Manifest,
    contents: &PackageContents,
    progress: &dyn Fn(u64, u64),
    out: impl Write,
) -> Result<(), PackError> {
    let json = manifest.to_json()?;
    let mut members = vec![(MANIFEST.to_owned(), json.as_slice())];
    members.extend(contents.members());
    write_archive(&members, progress, out).and_then(|mut out| out.flush()).map_err(PackError::Write)
}

/// Rounds `vector` to three decimal digits of its largest absolute value.
///
/// This precision is enough for a self-test. The lowest bits differ between processors; rounding
/// keeps the package independent of the processor that packs it.
fn round_vector(vector: &[f32]) -> Vec<f32> {
    let largest = vector.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return vector.to_vec();
    }
    // The largest value keeps three significant digits: `floor(log10(largest))` is the position of
    // its first digit.
    let digits = 2.0 - f64::from(largest).log10().floor();
    let steps = 10_f64.powf(digits);
    #[expect(clippy::cast_possible_truncation, reason = "between neighbours of an f32")]
    let round = |value: &f32| ((f64::from(*value) * steps).round() / steps) as f32;
    vector.iter().map(round).collect()
}

/// Returns the name of a directory as a model id.
fn id_of(directory: &Path) -> Result<ModelId, PackError> {
    let refuse = |source: BoxError| PackError::Id { path: directory.to_owned(), source };
    // Canonicalize first, so that `.` and `..` have a name too.
    let path = directory.canonicalize().map_err(|error| refuse(error.into()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.parse().map_err(|error: ManifestError| refuse(error.into()))
}

/// Checks that a directory holds the known model whose id it would get.
fn compare(known: &KnownModel, source: &ModelDirectory) -> Result<(), PackError> {
    let facts = [
        ("architecture", source.architecture.to_owned(), known.architecture.to_owned()),
        ("dimensions", source.dimensions.to_string(), known.dimensions.to_string()),
        ("pooling", source.pooling.to_owned(), known.pooling.to_owned()),
        ("normalize", source.normalize.to_string(), known.normalize.to_string()),
    ];
    match facts.into_iter().find(|(_, found, expected)| found != expected) {
        Some((key, found, expected)) => {
            Err(PackError::Contradiction { id: known.id, key, found, expected })
        }
        None => Ok(()),
    }
}

/// Builds the manifest, with a zero vector for the self-test, and the contents that it describes.
fn describe(
    request: &PackRequest,
    id: ModelId,
    precision: Precision,
    known: Option<&KnownModel>,
    source: ModelDirectory,
    weights: Vec<u8>,
) -> Result<(Manifest, PackageContents), PackError> {
    let mut layers = Vec::new();
    let mut dense = Vec::new();
    for part in source.dense {
        let bytes = convert_dense(&part.weights, &part.layer)
            .map_err(|source| PackError::Weights { path: part.path, source })?;
        layers.push(part.layer);
        dense.push(bytes);
    }
    let contents = PackageContents {
        config: source.config,
        tokenizer: source.tokenizer,
        weights: weights.into(),
        dense,
    };
    let mut prompts = source.prompts;
    if let Some(known) = known
        && prompts.is_empty()
    {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        prompts.extend(known.prompts.iter().map(owned));
    }
    let known_license = known.and_then(|known| known.license);
    let license = request.license.as_deref().or(known_license).unwrap_or(UNKNOWN_LICENSE);
    let manifest = Manifest {
        format: FORMAT,
        id,
        version: match &request.version {
            Some(version) => version.clone(),
            None => "1".parse()?,
        },
        architecture: source.architecture.to_owned(),
        dimensions: source.dimensions,
        max_sequence_length: source.max_sequence_length,
        precision,
        pooling: source.pooling.to_owned(),
        dense: layers,
        normalize: source.normalize,
        prompts,
        default_prompt: source.default_prompt,
        languages: known.map_or_else(Vec::new, |known| {
            known.languages.iter().map(|tag| (*tag).to_owned()).collect()
        }),
        license: license.to_owned(),
        source: known.map(|known| format!("https://huggingface.co/{}", known.repository)),
        revision: request.revision.clone(),
        files: contents.members().into_iter().map(member).collect::<Result<_, _>>()?,
        self_test: SelfTest {
            text: SELF_TEST_TEXT.to_owned(),
            vector: vec![0.0; source.dimensions],
        },
    };
    Ok((manifest, contents))
}

fn member((name, contents): (String, &[u8])) -> Result<Member, ManifestError> {
    Ok(Member { path: name.parse()?, size: contents.len() as u64, sha256: Digest::of(contents) })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use serde_json::json;

    use proptest::prelude::*;

    use super::super::directory_fixture::{Layout, model_directory, safetensors, write_json};
    use super::super::unpack::{Durability, unpack};
    use super::super::unpack_limits::UnpackLimits;
    use super::*;
    use crate::base::units::Bytes;

    fn request(source: &Path) -> PackRequest {
        PackRequest {
            source: source.to_owned(),
            id: Some("tiny".parse().unwrap()),
            ..PackRequest::default()
        }
    }

    fn constant(manifest: &Manifest, _contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
        Ok(vec![0.5; manifest.dimensions])
    }

    fn packed(request: &PackRequest) -> Result<(PackResult, Vec<u8>), PackError> {
        let mut bytes = Vec::new();
        let packed = pack(request, &constant, &|_, _| {}, &mut bytes)?;
        Ok((packed, bytes))
    }

    /// Returns the names and contents of an archive.
    fn members(package: &[u8]) -> Vec<(String, Vec<u8>)> {
        let tar = zstd::decode_all(package).unwrap();
        let text = |field: &[u8]| {
            String::from_utf8(field.iter().copied().take_while(|byte| *byte != 0).collect())
                .unwrap()
        };
        let mut members = Vec::new();
        let mut rest = tar.as_slice();
        while rest[0] != 0 {
            let size = usize::from_str_radix(&text(&rest[124..136]), 8).unwrap();
            members.push((text(&rest[..100]), rest[512..512 + size].to_vec()));
            rest = &rest[512 + size.next_multiple_of(512)..];
        }
        assert_eq!(rest, [0; 1024]);
        members
    }

    #[test]
    fn self_test_vector_keeps_three_digits() {
        assert_eq!(round_vector(&[0.123_456, -0.000_96, 0.5]), [0.123, -0.001, 0.5]);
        assert_eq!(round_vector(&[12.345, -0.04]), [12.3, -0.0]);
        assert_eq!(round_vector(&[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn archive_contains_manifest_and_self_tested_files() {
        for layout in [Layout::Two, Layout::Six] {
            for precision in [Precision::F32, Precision::F16, Precision::Int8] {
                let directory = model_directory(layout);
                let request =
                    PackRequest { precision: Some(precision), ..request(directory.path()) };
                let seen = RefCell::new(Vec::new());
                let self_test = |manifest: &Manifest, contents: &PackageContents| {
                    assert_eq!(manifest.self_test.vector, [0.0; 3]);
                    let owned = |(name, bytes): (String, &[u8])| (name, bytes.to_vec());
                    seen.borrow_mut().extend(contents.members().into_iter().map(owned));
                    Ok(vec![0.6, 0.8, 0.0])
                };
                let mut bytes = Vec::new();
                let packed = pack(&request, &self_test, &|_, _| {}, &mut bytes).unwrap();

                let mut members = members(&bytes);
                let (name, json) = members.remove(0);
                assert_eq!(name, MANIFEST);
                assert_eq!(Manifest::parse(&json).unwrap(), packed.manifest);
                assert_eq!(members, seen.into_inner());
                for (member, (name, contents)) in packed.manifest.files.iter().zip(&members) {
                    assert_eq!(member.path.as_str(), name);
                    assert_eq!(member.size, contents.len() as u64);
                    assert_eq!(member.sha256, Digest::of(contents));
                }
                let names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names, [CONFIG, TOKENIZER, WEIGHTS, "dense.0.safetensors"]);
                assert_eq!(packed.manifest.self_test.vector, [0.6, 0.8, 0.0]);
                assert_eq!(packed.manifest_digest, Digest::of(&json));
                assert_eq!(packed.package_digest, Digest::of(&bytes));
                assert_eq!(packed.bytes, bytes.len() as u64);
            }
        }
    }

    #[test]
    fn packing_is_reproducible() {
        let [(first, first_bytes), (_, second_bytes)] =
            [model_directory(Layout::Two), model_directory(Layout::Two)]
                .map(|directory| packed(&request(directory.path())).unwrap());
        assert!(first_bytes == second_bytes);
        assert_eq!(first.manifest.file_name(), "tiny-1.model.tar.zst");
        assert_eq!(first.manifest.precision, Precision::F32);
    }

    #[test]
    fn request_overrides_defaults() {
        let directory = model_directory(Layout::Two);
        let (plain, _) = packed(&request(directory.path())).unwrap();
        assert_eq!(plain.manifest.license, "NOASSERTION");
        assert_eq!((plain.manifest.source, plain.manifest.revision), (None, None));
        let (named, _) = packed(&PackRequest {
            version: Some("2.1".parse().unwrap()),
            license: Some("MIT".to_owned()),
            revision: Some("abc".to_owned()),
            ..request(directory.path())
        })
        .unwrap();
        assert_eq!(named.manifest.version.as_str(), "2.1");
        assert_eq!(named.manifest.license, "MIT");
        assert_eq!(named.manifest.revision.as_deref(), Some("abc"));
    }

    #[test]
    fn id_defaults_to_valid_directory_name() {
        let outer = tempfile::tempdir().unwrap();
        for (name, valid) in [("my-model.v2", true), ("my model", false), ("-x", false)] {
            let source = outer.path().join(name);
            fs::rename(model_directory(Layout::Two).keep(), &source).unwrap();
            let request = PackRequest { source, ..PackRequest::default() };
            match packed(&request) {
                Ok((packed, _)) => assert!(valid && packed.manifest.id.as_str() == name),
                Err(error) => {
                    assert!(!valid && error.to_string().contains("--model-id"), "{error}");
                }
            }
        }
    }

    /// Returns a directory with the shape of multilingual-e5-small, without its prompts.
    fn e5_directory() -> tempfile::TempDir {
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        let class = |name: &str, path: &str| {
            let class = format!("sentence_transformers.models.{name}");
            json!({ "path": path, "type": class })
        };
        let modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")];
        write_json(path, "modules.json", &modules.map(|(name, path)| class(name, path)).into());
        let config =
            json!({ "model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512 });
        write_json(path, "config.json", &config);
        let pooling = json!({ "word_embedding_dimension": 384, "pooling_mode_mean_tokens": true });
        write_json(path, "1_Pooling/config.json", &pooling);
        write_json(path, "config_sentence_transformers.json", &json!({}));
        directory
    }

    #[test]
    fn known_model_gets_missing_facts() {
        let directory = e5_directory();
        let id = Some("multilingual-e5-small".parse().unwrap());
        let (packed, _) = packed(&PackRequest { id, ..request(directory.path()) }).unwrap();
        let manifest = packed.manifest;
        assert_eq!(manifest.license, "MIT");
        assert_eq!(manifest.languages, ["mul"]);
        let source = "https://huggingface.co/intfloat/multilingual-e5-small";
        assert_eq!(manifest.source.as_deref(), Some(source));
        let prompts: Vec<_> = manifest.prompts.values().collect();
        assert_eq!(prompts, ["passage: ", "query: "]);
        assert_eq!(manifest.default_prompt, None);
    }

    #[test]
    fn directory_that_contradicts_known_model_is_refused() {
        let directory = e5_directory();
        let path = directory.path();
        let cases = [
            ("all-mpnet-base-v2", "architecture bert instead of mpnet"),
            ("all-MiniLM-L6-v2", "pooling cls instead of mean"),
        ];
        let pooling = json!({ "word_embedding_dimension": 384, "pooling_mode_cls_token": true });
        write_json(path, "1_Pooling/config.json", &pooling);
        for (id, part) in cases {
            let request = PackRequest { id: Some(id.parse().unwrap()), ..request(path) };
            let message = packed(&request).unwrap_err().to_string();
            assert!(message.contains(id) && message.contains(part), "{message}");
        }
        let other = model_directory(Layout::Two);
        let id = Some("all-MiniLM-L6-v2".parse().unwrap());
        let message = packed(&PackRequest { id, ..request(other.path()) }).unwrap_err().to_string();
        assert_eq!(
            message,
            "this directory is not all-MiniLM-L6-v2: dimensions is 3 instead of 384; \
             choose another id with --model-id"
        );
    }

    #[test]
    fn failure_names_its_layer_and_keeps_cause() {
        let directory = model_directory(Layout::Two);
        let path = directory.path();
        let run = |self_test: &dyn Fn() -> Result<Vec<f32>, BoxError>, out: &mut dyn Write| {
            pack(&request(path), &|_, _| self_test(), &|_, _| {}, out).unwrap_err()
        };
        let error = run(&|| Err("no memory".into()), &mut io::sink());
        assert_eq!(error.to_string(), "the model failed its self-test");
        assert_eq!(error.source().unwrap().to_string(), "no memory");
        for vector in [vec![], vec![0.5; 4], vec![f32::NAN; 3]] {
            let error = run(&|| Ok(vector.clone()), &mut io::sink());
            assert!(matches!(error, PackError::Manifest(_)), "{error}");
        }
        let error = run(&|| Ok(vec![0.5; 3]), &mut &mut [0_u8; 16][..]);
        assert!(matches!(error, PackError::Write(_)), "{error}");

        let weights = safetensors(&[("w", vec![1], vec![f32::NAN])]);
        fs::write(path.join("model.safetensors"), &weights).unwrap();
        let error = packed(&request(path)).unwrap_err();
        let file = path.join("model.safetensors");
        assert_eq!(error.to_string(), format!("{} cannot be converted", file.display()));
        assert!(error.source().unwrap().to_string().contains("NaN"));
        fs::remove_file(file).unwrap();
        let error = packed(&request(path)).unwrap_err();
        assert_eq!(error.to_string(), "the model directory cannot be packed");
        assert!(error.source().unwrap().to_string().ends_with("pytorch_model.bin is missing too"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn pack_and_unpack_round_trip_exactly(
            layout in prop::sample::select(vec![Layout::Two, Layout::Six]),
            precision in prop::sample::select(vec![Precision::F32, Precision::F16, Precision::Int8]),
            // Rows as wide as the directory's configuration requires.
            rows in prop::collection::vec(prop::array::uniform4(-100.0_f32..100.0), 1..300),
        ) {
            let directory = model_directory(layout);
            let values = rows.as_flattened().to_vec();
            let name = "embeddings.word_embeddings.weight";
            let weights = safetensors(&[(name, vec![rows.len(), 4], values)]);
            fs::write(directory.path().join(WEIGHTS), weights).unwrap();
            let request = PackRequest { precision: Some(precision), ..request(directory.path()) };
            let (packed, bytes) = packed(&request).unwrap();

            let staging = tempfile::tempdir().unwrap();
            let limits = UnpackLimits::for_size(Bytes::mib(1));
            let unpacked = unpack(&bytes[..], &limits, staging.path(), Durability::Synced).unwrap();
            prop_assert_eq!(&unpacked.manifest, &packed.manifest);
            prop_assert_eq!(unpacked.manifest_digest, packed.manifest_digest);
            prop_assert_eq!(unpacked.package_digest, packed.package_digest);
            prop_assert_eq!(unpacked.package_bytes, packed.bytes);
            let read = |name: &str| fs::read(staging.path().join(name)).unwrap();
            let layers = unpacked.manifest.dense.len();
            let contents = PackageContents::from_members(read(WEIGHTS).into(), read, layers);
            let mut again = Vec::new();
            write_package(&unpacked.manifest, &contents, &|_, _| {}, &mut again).unwrap();
            prop_assert!(again == bytes);
        }
    }
}
