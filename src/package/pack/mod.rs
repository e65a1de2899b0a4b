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
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::convert::{ModelDirectory, ModelDirectoryError, StatedSteps, gguf};
use super::digest::{Digest, HashingWriter};
use super::manifest::{
    CONFIG, FORMAT, MANIFEST, Manifest, ManifestError, Member, ModelId, Precision, SelfTest,
    TOKENIZER, Version, WEIGHTS, dense_file,
};
use super::matryoshka::trained_dimensions;
use super::quantize::{
    QuantizeError, convert_classifier, convert_dense, convert_with_heads, native_precision,
};
use super::registry::{KnownModel, find_known_id, find_known_model};
use super::ustar::write_archive;
use super::weights::Weights;

/// Text of the self-test. Accents, capitals, digits, punctuation and a second script are the first
/// parts that a damaged tokenizer gets wrong.
const SELF_TEST_TEXT: &str = "The quick brown fox paid €19.95 in Zürich; 東京 wasn't cheaper.";

/// Smallest maximum input length: one token between the two special tokens.
const MIN_LENGTH: usize = 3;

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
    /// Model directory in the format of sentence-transformers or transformers, or GGUF file.
    pub source: PathBuf,
    /// Model id; the name of the directory by default.
    pub id: Option<ModelId>,
    /// Id, other name or repository of the known model in the directory, if it differs from the id.
    pub original: Option<String>,
    /// Version; `1` by default.
    pub version: Option<Version>,
    /// Precision of the weights; the precision of the directory by default.
    pub precision: Option<Precision>,
    /// SPDX expression of the licence; the licence in the registry by default.
    pub license: Option<String>,
    /// Revision of the directory in its source repository.
    pub revision: Option<String>,
    /// Lengths to which vectors may be cut; those of the directory by default, or else those of the
    /// published model with this id.
    pub matryoshka_dimensions: Option<Vec<usize>>,
    /// Pooling: `mean`, `cls`, `max`, `mean_sqrt_len` or `lasttoken`; that of the directory by
    /// default, or else that of the known model or of the family.
    pub pooling: Option<&'static str>,
    /// Whether the vectors get length 1; as in the directory by default, or else as for the known
    /// model.
    pub normalize: Option<bool>,
    /// Maximum input length in tokens, to lower that of the directory.
    pub max_sequence_length: Option<usize>,
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

/// Result of comparing the weights in a directory with the published ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsOrigin {
    /// The file is the published one of this known model, byte for byte.
    Published(&'static KnownModel),
    /// The file differs from the published one of this known model.
    Changed(&'static KnownModel),
    /// The registry has no digest to compare with, or the directory has another file.
    Unknown,
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
    /// Origin of the weights.
    pub origin: WeightsOrigin,
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
    /// The requested revision is the one of the known model, but the weights are not.
    #[error(
        "{} does not have the SHA-256 of {repository} at revision {revision}: {expected}; take \
         the file from there again, or leave out --revision if it is another model",
        path.display()
    )]
    NotPublished {
        /// File of the weights.
        path: PathBuf,
        /// Repository of the known model.
        repository: &'static str,
        /// Revision that the registry describes.
        revision: &'static str,
        /// Digest in the registry.
        expected: &'static str,
    },
    /// The requested maximum input length is not one that the model can have.
    #[error(
        "the model in the directory can have a maximum input length of {least} to {most} tokens, \
         not {asked}; correct --max-sequence-length",
        least = MIN_LENGTH
    )]
    Length {
        /// Requested length.
        asked: usize,
        /// Length of the directory.
        most: usize,
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
        None => find_known_id(id.as_str()),
    };
    let stated = StatedSteps { pooling: request.pooling, normalize: request.normalize };
    let mut source = ModelDirectory::read(&request.source, stated, known)?;
    if let Some(known) = known {
        compare(known, &source)?;
    }
    check_length(request, source.max_sequence_length)?;
    let origin = origin(known, &source);
    // The published file has the undivided matrices, and its digest has been compared.
    source.divide_experts()?;
    check_revision(request, origin, &source)?;
    let unconverted = |source_error| PackError::Weights {
        path: source.weights_path.clone(),
        source: source_error,
    };
    let precision = match request.precision.or(source.precision) {
        Some(precision) => precision,
        None => native_precision(&source.weights).map_err(unconverted)?,
    };
    let weights = match (&source.classifier, &source.token_heads.weights) {
        (Some(_), _) => convert_classifier(&source.weights, precision, source.hidden_size),
        (None, heads) => {
            convert_with_heads(&source.weights, heads.as_deref(), precision, source.hidden_size)
        }
    };
    let weights = weights.map_err(unconverted)?;
    let (mut manifest, contents) = describe(request, id, precision, known, source, weights)?;
    let vector = self_test(&manifest, &contents).map_err(PackError::SelfTest)?;
    manifest.self_test.vector = round_vector(&vector);
    let mut out = HashingWriter::new(out);
    write_package(&manifest, &contents, progress, &mut out)?;
    let bytes = out.bytes_written();
    let manifest_digest = Digest::of(&manifest.to_json()?);
    Ok(PackResult { manifest_digest, package_digest: out.finish(), bytes, manifest, origin })
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

/// Returns the name of a directory, or of a GGUF file without its extension, as a model id.
fn id_of(directory: &Path) -> Result<ModelId, PackError> {
    let refuse = |source: BoxError| PackError::Id { path: directory.to_owned(), source };
    // Canonicalize first, so that `.` and `..` have a name too.
    let path = directory.canonicalize().map_err(|error| refuse(error.into()))?;
    let name = if gguf::is_file(&path) { path.file_stem() } else { path.file_name() };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    name.parse().map_err(|error: ManifestError| refuse(error.into()))
}

/// Checks that a directory holds the known model whose id it would get.
fn compare(known: &KnownModel, source: &ModelDirectory) -> Result<(), PackError> {
    let facts = [
        ("architecture", source.architecture.to_owned(), Some(known.architecture.to_owned())),
        ("dimensions", source.dimensions.to_string(), text(known.dimensions)),
        ("pooling", source.pooling.to_owned(), text(known.pooling)),
        ("normalize", source.normalize.to_string(), text(known.normalize)),
        ("the number of dense layers", source.dense.len().to_string(), text(known.dense_layers)),
    ];
    for (key, found, expected) in facts {
        if let Some(expected) = expected.filter(|expected| found != *expected) {
            return Err(PackError::Contradiction { id: known.id, key, found, expected });
        }
    }
    Ok(())
}

/// Checks that the requested maximum input length is at most that of the directory.
fn check_length(request: &PackRequest, most: usize) -> Result<(), PackError> {
    match request.max_sequence_length {
        Some(asked) if !(MIN_LENGTH..=most).contains(&asked) => {
            Err(PackError::Length { asked, most })
        }
        _ => Ok(()),
    }
}

fn text(fact: Option<impl ToString>) -> Option<String> {
    fact.map(|fact| fact.to_string())
}

/// Compares the weights of `source` with the published ones of the known model. Hashes them if the
/// registry has a digest.
fn origin(known: Option<&'static KnownModel>, source: &ModelDirectory) -> WeightsOrigin {
    let is_published_form = source.weights_path.file_name() == Some(OsStr::new(WEIGHTS));
    match known.and_then(|known| Some((known, known.weights_sha256?))) {
        Some((known, digest)) if is_published_form => {
            if Digest::of(&source.weights).to_string() == digest {
                WeightsOrigin::Published(known)
            } else {
                WeightsOrigin::Changed(known)
            }
        }
        _ => WeightsOrigin::Unknown,
    }
}

/// Checks that a directory whose revision is that of a known model has the weights of this
/// revision.
fn check_revision(
    request: &PackRequest,
    origin: WeightsOrigin,
    source: &ModelDirectory,
) -> Result<(), PackError> {
    let WeightsOrigin::Changed(known) = origin else { return Ok(()) };
    match (known.revision, known.weights_sha256) {
        (Some(revision), Some(expected)) if request.revision.as_deref() == Some(revision) => {
            Err(PackError::NotPublished {
                path: source.weights_path.clone(),
                repository: known.repository,
                revision,
                expected,
            })
        }
        _ => Ok(()),
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
    let mut manifest = Manifest {
        format: FORMAT,
        id,
        version: match &request.version {
            Some(version) => version.clone(),
            None => "1".parse()?,
        },
        architecture: source.architecture.to_owned(),
        dimensions: source.dimensions,
        matryoshka_dimensions: match &request.matryoshka_dimensions {
            Some(lengths) => shorter_lengths(lengths, source.dimensions),
            None => source.matryoshka_dimensions,
        },
        max_sequence_length: request.max_sequence_length.unwrap_or(source.max_sequence_length),
        precision,
        pooling: source.pooling.to_owned(),
        dense: layers,
        normalize: source.normalize,
        classifier: source.classifier,
        sparse: source.token_heads.sparse,
        multi_vector: source.token_heads.multi_vector,
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
    if request.matryoshka_dimensions.is_none() {
        manifest.matryoshka_dimensions = trained_dimensions(&manifest).to_vec();
    }
    Ok((manifest, contents))
}

/// Returns `lengths` in ascending order, without the length of the whole vectors.
fn shorter_lengths(lengths: &[usize], dimensions: usize) -> Vec<usize> {
    let mut shorter: Vec<usize> =
        lengths.iter().copied().filter(|length| *length != dimensions).collect();
    shorter.sort_unstable();
    shorter.dedup();
    shorter
}

fn member((name, contents): (String, &[u8])) -> Result<Member, ManifestError> {
    Ok(Member { path: name.parse()?, size: contents.len() as u64, sha256: Digest::of(contents) })
}

#[cfg(test)]
mod tests;
