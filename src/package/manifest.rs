//! The manifest of a package, and the rules that it must follow.
//!
//! Invariant: a [`Manifest`] that was read has passed [`Manifest::parse`]. Later code never meets
//! an unknown key, a path that leaves its directory, a size over the limits or a self-test vector
//! of another length.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// The only format version that this program reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the manifest in a package. It is the first member.
pub const MANIFEST: &str = "manifest.json";
/// Name of the transformers configuration in a package.
pub const CONFIG: &str = "config.json";
/// Name of the tokenizer in a package.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the weights in a package.
pub const WEIGHTS: &str = "model.safetensors";

/// Maximum of `max_sequence_length` in tokens, and its value for models without a limit of their
/// own.
pub(super) const MAX_SEQUENCE_LENGTH: usize = 65_536;

/// Maximum size in bytes of a JSON file other than the tokenizer. Configurations have a few
/// kilobytes.
pub(super) const MAX_JSON: u64 = 4 << 20;
/// Maximum size in bytes of a tokenizer. The largest one in use (250,000 pieces) has 17 MB.
pub(super) const MAX_TOKENIZER: u64 = 64 << 20;
/// Maximum size in bytes of a dense layer.
pub(super) const MAX_DENSE: u64 = 256 << 20;

const MAX_NAME_LENGTH: usize = 96;
const MAX_TEXT_LENGTH: usize = 1024;
/// Far above the width of every existing sentence encoder. Keeps products of shapes far from an
/// overflow.
const MAX_DIMENSIONS: usize = 65_536;
const MAX_DENSE_LAYERS: usize = 8;
/// Maximum number of lengths in `matryoshka_dimensions`.
const MAX_MATRYOSHKA_DIMENSIONS: usize = 64;
const MAX_PROMPTS: usize = 64;
/// Maximum number of tokens without a weight in sparse vectors.
const MAX_IGNORED_TOKENS: usize = 64;
/// Number of characters that are kept of a parser's message. The message quotes the manifest, which
/// can contain any text.
const MAX_QUOTED: usize = 300;

/// Returns the name of the file that holds dense layer number `index`.
pub fn dense_file(index: usize) -> String {
    format!("dense.{index}.safetensors")
}

/// Error of an invalid manifest.
#[derive(Debug, thiserror::Error)]
#[error("manifest.json: {0}")]
pub struct ManifestError(String);

impl ManifestError {
    /// Returns the reason alone, for messages that already name the manifest.
    pub(super) fn reason(&self) -> &str {
        &self.0
    }

    /// Converts an error of the JSON parser; escapes and truncates its text to fit one line of a
    /// journal.
    fn json(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let mut printable = String::new();
        for character in text.chars().take(MAX_QUOTED + 1) {
            if character.is_control() {
                printable.extend(character.escape_default());
            } else {
                printable.push(character);
            }
        }
        if let Some((end, _)) = printable.char_indices().nth(MAX_QUOTED) {
            printable.truncate(end);
            printable.push('…');
        }
        Self(printable)
    }
}

/// Returns whether `text` is safe in a path and in a header: letters, digits, `.`, `_` and `-`,
/// beginning with a letter or digit.
fn is_safe_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LENGTH
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

macro_rules! safe_name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = ManifestError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                if is_safe_name(&text) {
                    return Ok(Self(text));
                }
                Err(ManifestError(format!(
                    concat!(
                        "{:?} is not a valid ",
                        $what,
                        ": expected at most {} letters, digits, '.', '_' or '-', a letter or digit first"
                    ),
                    text, MAX_NAME_LENGTH
                )))
            }
        }

        impl FromStr for $type {
            type Err = ManifestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.to_owned().try_into()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

safe_name!(
    /// Name by which requests select a model.
    ModelId, "model id"
);
safe_name!(
    /// Version of a package.
    Version, "version"
);
safe_name!(
    /// Name of a member of a package: one path component, never `.` or `..`.
    MemberName, "member name"
);

/// Storage format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// 8-bit integers, with an f32 scale for each row and block of columns.
    Int8,
    /// 8-bit integers, and 4-bit integers in the table of words, with an f16 scale for each row and
    /// 32 columns.
    #[serde(rename = "int4-table")]
    Int4Table,
}

impl Precision {
    /// Returns the name in manifests and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4Table => "int4-table",
        }
    }
}

/// Dense layer between pooling and normalisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseLayer {
    /// Length of the input vector.
    pub in_features: usize,
    /// Length of the output vector.
    pub out_features: usize,
    /// Whether the layer adds a bias.
    pub bias: bool,
    /// Activation function: `identity` or `tanh`.
    pub activation: String,
}

/// Head of a model that reads a pair of texts and computes a score for it, instead of a vector of
/// each text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// Number of scores of a pair; always 1.
    pub labels: usize,
    /// Function that makes the score of the output of the last layer: `sigmoid` or `identity`.
    pub activation: ScoreActivation,
    /// Whether the second text of a pair has token type 1. Otherwise all tokens have type 0.
    pub token_types: bool,
}

/// Function that makes the score of a pair of the output of the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreActivation {
    /// No change.
    Identity,
    /// `1 / (1 + e⁻ˣ)`, from 0 to 1.
    Sigmoid,
}

impl ScoreActivation {
    /// Returns the score for the output `logit` of the last layer.
    pub fn apply(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        }
    }
}

/// Head that gives each token of a text a weight, which is the weight of its word in a sparse
/// vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseHead {
    /// Ids of the tokens that have no weight, such as the special ones around a text.
    pub ignored_tokens: Vec<u32>,
}

/// Head that gives each token of a text a vector of length 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiVectorHead {
    /// Length of the vectors.
    pub dimensions: usize,
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Name of the file.
    pub path: MemberName,
    /// Uncompressed length in bytes.
    pub size: u64,
    /// Digest of the uncompressed content.
    pub sha256: Digest,
}

/// Text and the vector that the packed model computed for it. A reranker reads the pair of the text
/// with itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// Input text, without a prompt.
    pub text: String,
    /// Expected vector, `[dimensions]`.
    pub vector: Vec<f32>,
}

/// The manifest of a package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version, equal to [`FORMAT`].
    pub format: u32,
    /// Name by which requests select the model.
    pub id: ModelId,
    /// Version of the package.
    pub version: Version,
    /// Architecture: `model_type` of the encoder, or `static`.
    pub architecture: String,
    /// Length of the vectors.
    pub dimensions: usize,
    /// Smaller lengths to which vectors may be cut, because the model was trained for them, in
    /// ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matryoshka_dimensions: Vec<usize>,
    /// Maximum input length in tokens, special tokens included.
    pub max_sequence_length: usize,
    /// Storage format of the weights.
    pub precision: Precision,
    /// Pooling: `mean`, `cls`, `max`, `mean_sqrt_len` or `lasttoken`.
    pub pooling: String,
    /// Dense layers after pooling, in order. Layer `i` is the member `dense.i.safetensors`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dense: Vec<DenseLayer>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Head of a reranker; absent for a model of vectors. The vector of a reranker is the input of
    /// its last layer, and only the self-test uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<Classifier>,
    /// Head for sparse vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<SparseHead>,
    /// Head for a vector of each token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_vector: Option<MultiVectorHead>,
    /// Prompts by name. A prompt is a text that is put before an input.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "unique_prompts"
    )]
    pub prompts: BTreeMap<String, String>,
    /// Name of the prompt for requests that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Languages, as BCP 47 tags; `mul` for many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// SPDX expression of the model's licence.
    pub license: String,
    /// Source of the model, such as the URL of its repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Revision of the model at that source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Files, in the order of the archive.
    pub files: Vec<Member>,
    /// Self-test that runs before the model becomes available.
    pub self_test: SelfTest,
}

/// Deserializes the prompts and rejects duplicate names. A plain map would silently keep the last
/// one.
fn unique_prompts<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    struct UniquePrompts;

    impl<'de> Visitor<'de> for UniquePrompts {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut prompts = BTreeMap::new();
            while let Some((name, text)) = map.next_entry::<String, String>()? {
                if prompts.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("duplicate prompt {name:?}")));
                }
                prompts.insert(name, text);
            }
            Ok(prompts)
        }
    }

    deserializer.deserialize_map(UniquePrompts)
}

/// Identity under which two vectors may be compared.
///
/// A digest over the weights, the tokenizer and every step that changes a vector. Comparisons use
/// the whole digest. [`Display`](fmt::Display) prints the first 16 digits; the store does not keep
/// two different spaces with equal printed forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmbeddingSpace(Digest);

impl fmt::Display for EmbeddingSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.leading())
    }
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// When it is not JSON, has an unknown, missing or duplicate key, or breaks a rule of the
    /// format.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::json(&error))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Serializes the manifest as indented JSON with a final newline.
    ///
    /// # Errors
    /// When it breaks a rule of the format, so that no manifest is written that could not be read.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError(error.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Returns the file name of the package: `<id>-<version>.model.tar.zst`.
    pub fn file_name(&self) -> String {
        format!("{}-{}{}", self.id, self.version, super::SUFFIX)
    }

    /// Returns the total size of all files in bytes, saturated at `u64::MAX`.
    pub fn total_size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// Returns the printed form of [`Self::space`], as clients see it.
    pub fn embedding_space(&self) -> String {
        self.space().to_string()
    }

    /// Returns the embedding space. Serializes and hashes some kilobytes.
    pub fn space(&self) -> EmbeddingSpace {
        let files: Vec<_> =
            self.files.iter().map(|file| (file.path.as_str(), file.sha256)).collect();
        let mut identity = serde_json::json!({
            "architecture": self.architecture,
            "default_prompt": self.default_prompt,
            "dense": self.dense,
            "dimensions": self.dimensions,
            "files": files,
            "max_sequence_length": self.max_sequence_length,
            "normalize": self.normalize,
            "pooling": self.pooling,
            "prompts": self.prompts,
        });
        if let Some(classifier) = &self.classifier {
            identity["classifier"] = serde_json::json!(classifier);
        }
        EmbeddingSpace(Digest::of(identity.to_string().as_bytes()))
    }

    /// Returns whether the model scores pairs of texts, and computes no vectors for clients.
    pub fn is_reranker(&self) -> bool {
        self.classifier.is_some()
    }

    /// Returns the name of the task of the model: `embedding` or `rerank`.
    pub fn task(&self) -> &'static str {
        if self.is_reranker() { "rerank" } else { "embedding" }
    }

    /// Returns the names of the heads for tokens: `sparse` and `multi-vector`.
    pub fn token_heads(&self) -> Vec<String> {
        let heads =
            [("sparse", self.sparse.is_some()), ("multi-vector", self.multi_vector.is_some())];
        heads.iter().filter(|(_, has_it)| *has_it).map(|(name, _)| (*name).to_owned()).collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |message: String| Err(ManifestError(message));
        if self.format != FORMAT {
            return refuse(format!(
                "format {} is not supported; this version reads format {FORMAT}",
                self.format
            ));
        }
        for (key, value, max) in [
            ("dimensions", self.dimensions, MAX_DIMENSIONS),
            ("max_sequence_length", self.max_sequence_length, MAX_SEQUENCE_LENGTH),
        ] {
            if !(1..=max).contains(&value) {
                return refuse(format!("{key}: expected 1 to {max}, found {value}"));
            }
        }
        self.check_texts()?;
        self.check_dense()?;
        self.check_matryoshka()?;
        self.check_classifier()?;
        self.check_token_heads()?;
        self.check_files()?;
        let vector = &self.self_test.vector;
        if vector.len() != self.dimensions || !vector.iter().all(|value| value.is_finite()) {
            return refuse(format!(
                "self_test.vector: expected {} finite numbers, found {} numbers",
                self.dimensions,
                vector.len()
            ));
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), ManifestError> {
        let languages = self.languages.iter().map(|text| ("languages", text));
        let prompts = self.prompts.keys().map(|name| ("prompts", name));
        let others = [
            ("architecture", Some(&self.architecture)),
            ("pooling", Some(&self.pooling)),
            ("license", Some(&self.license)),
            ("source", self.source.as_ref()),
            ("revision", self.revision.as_ref()),
            ("self_test.text", Some(&self.self_test.text)),
            ("default_prompt", self.default_prompt.as_ref()),
        ];
        let activations = self.dense.iter().map(|layer| ("dense.activation", &layer.activation));
        let others = others.into_iter().filter_map(|(key, text)| text.map(|text| (key, text)));
        for (key, text) in languages.chain(prompts).chain(activations).chain(others) {
            // Control characters could forge lines of the journal.
            if text.len() > MAX_TEXT_LENGTH || text.chars().any(char::is_control) {
                return Err(ManifestError(format!(
                    "{key}: expected at most {MAX_TEXT_LENGTH} bytes without control characters"
                )));
            }
        }
        for text in self.prompts.values() {
            // The instructions of some models are a line before the text.
            let is_allowed = |c: char| c == '\n' || !c.is_control();
            if text.len() > MAX_TEXT_LENGTH || !text.chars().all(is_allowed) {
                return Err(ManifestError(format!(
                    "prompts: expected at most {MAX_TEXT_LENGTH} bytes without control characters \
                     except line feeds"
                )));
            }
        }
        if self.prompts.len() > MAX_PROMPTS {
            return Err(ManifestError(format!("prompts: expected at most {MAX_PROMPTS} prompts")));
        }
        match &self.default_prompt {
            Some(name) if !self.prompts.contains_key(name) => {
                Err(ManifestError(format!("default_prompt: {name:?} is not one of the prompts")))
            }
            _ => Ok(()),
        }
    }

    fn check_dense(&self) -> Result<(), ManifestError> {
        if self.dense.len() > MAX_DENSE_LAYERS {
            return Err(ManifestError(format!(
                "dense: expected at most {MAX_DENSE_LAYERS} layers"
            )));
        }
        let widths = self.dense.iter().flat_map(|layer| [layer.in_features, layer.out_features]);
        if let Some(width) = widths.clone().find(|width| !(1..=MAX_DIMENSIONS).contains(width)) {
            return Err(ManifestError(format!(
                "dense: expected widths of 1 to {MAX_DIMENSIONS}, found {width}"
            )));
        }
        match self.dense.last() {
            Some(last) if last.out_features != self.dimensions => Err(ManifestError(format!(
                "dense: the last layer has {} dimensions, but the model has {}",
                last.out_features, self.dimensions
            ))),
            _ => Ok(()),
        }
    }

    fn check_classifier(&self) -> Result<(), ManifestError> {
        let Some(Classifier { labels, .. }) = self.classifier else { return Ok(()) };
        if labels != 1 {
            return Err(ManifestError(format!("classifier.labels: expected 1, found {labels}")));
        }
        let of_vectors = [
            ("dense", !self.dense.is_empty()),
            ("matryoshka_dimensions", !self.matryoshka_dimensions.is_empty()),
            ("normalize", self.normalize),
            ("default_prompt", self.default_prompt.is_some()),
            ("sparse", self.sparse.is_some()),
            ("multi_vector", self.multi_vector.is_some()),
        ];
        match of_vectors.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => {
                Err(ManifestError(format!("{key}: a model with a classifier cannot have it")))
            }
            None => Ok(()),
        }
    }

    fn check_token_heads(&self) -> Result<(), ManifestError> {
        if let Some(SparseHead { ignored_tokens }) = &self.sparse
            && ignored_tokens.len() > MAX_IGNORED_TOKENS
        {
            return Err(ManifestError(format!(
                "sparse.ignored_tokens: expected at most {MAX_IGNORED_TOKENS} ids"
            )));
        }
        match self.multi_vector {
            Some(MultiVectorHead { dimensions }) if !(1..=MAX_DIMENSIONS).contains(&dimensions) => {
                Err(ManifestError(format!(
                    "multi_vector.dimensions: expected 1 to {MAX_DIMENSIONS}, found {dimensions}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn check_matryoshka(&self) -> Result<(), ManifestError> {
        let lengths = &self.matryoshka_dimensions;
        let is_ascending = lengths.is_sorted_by(|a, b| a < b);
        let are_smaller = lengths.iter().all(|length| (1..self.dimensions).contains(length));
        if lengths.len() <= MAX_MATRYOSHKA_DIMENSIONS && is_ascending && are_smaller {
            return Ok(());
        }
        Err(ManifestError(format!(
            "matryoshka_dimensions: expected at most {MAX_MATRYOSHKA_DIMENSIONS} numbers in \
             ascending order, from 1 to less than {}",
            self.dimensions
        )))
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        let mut expected: BTreeSet<String> = [CONFIG, TOKENIZER, WEIGHTS].map(str::to_owned).into();
        expected.extend((0..self.dense.len()).map(dense_file));
        let (mut folded, mut seen) = (BTreeSet::new(), BTreeSet::new());
        // One file more than expected is enough to reject; the message does not grow with the
        // manifest.
        for file in self.files.iter().take(expected.len() + 1) {
            // Compare in lower case: on a case-insensitive file system one file would overwrite the
            // other.
            if !folded.insert(file.path.as_str().to_ascii_lowercase()) {
                return Err(ManifestError(format!("files: {} appears twice", file.path)));
            }
            seen.insert(file.path.as_str().to_owned());
        }
        if seen != expected {
            return Err(ManifestError(format!(
                "files: expected exactly {}, found {}",
                Vec::from_iter(expected).join(", "),
                Vec::from_iter(seen).join(", ")
            )));
        }
        // Weights are mapped. All other files are read into memory, some of them before a check of
        // the available memory.
        let most = |file: &Member| match file.path.as_str() {
            WEIGHTS => u64::MAX,
            TOKENIZER => MAX_TOKENIZER,
            CONFIG => MAX_JSON,
            _dense => MAX_DENSE,
        };
        match self.files.iter().find(|file| file.size > most(file)) {
            Some(file) => Err(ManifestError(format!(
                "files: {} has {} bytes, but the limit is {}",
                file.path,
                file.size,
                most(file)
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::package::fixture;

    fn good() -> Manifest {
        fixture::manifest("m", "1.0", &[(CONFIG, b"{}"), (TOKENIZER, b"[]"), (WEIGHTS, b"w")])
    }

    fn parse_changed(change: impl FnOnce(&mut Value)) -> Result<Manifest, String> {
        let mut json = serde_json::to_value(good()).unwrap();
        change(&mut json);
        Manifest::parse(json.to_string().as_bytes()).map_err(|error| error.reason().to_owned())
    }

    #[test]
    fn manifest_round_trips() {
        let manifest = good();
        assert_eq!(Manifest::parse(&manifest.to_json().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn precision_has_its_name_in_json() {
        for precision in [Precision::F32, Precision::F16, Precision::Int8, Precision::Int4Table] {
            assert_eq!(json!(precision), json!(precision.name()));
        }
    }

    #[test]
    fn token_heads_are_named() {
        assert!(good().token_heads().is_empty());
        let both = parse_changed(|m| {
            m["sparse"] = json!({ "ignored_tokens": [0, 2] });
            m["multi_vector"] = json!({ "dimensions": 3 });
        });
        let both = both.unwrap();
        assert_eq!(both.token_heads(), ["sparse", "multi-vector"]);
        assert_eq!(Manifest::parse(&both.to_json().unwrap()).unwrap(), both);
        let unknown = parse_changed(|m| m["sparse"] = json!({ "ignored_tokens": [], "x": 1 }));
        assert!(unknown.unwrap_err().contains("unknown field `x`"));
    }

    #[test]
    fn violated_rule_is_named() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 27] = [
            (
                |m| m["sparse"] = json!({ "ignored_tokens": vec![0; 65] }),
                "sparse.ignored_tokens: expected at most 64 ids",
            ),
            (
                |m| m["multi_vector"] = json!({ "dimensions": 0 }),
                "multi_vector.dimensions: expected 1 to 65536, found 0",
            ),
            (|m| m["format"] = json!(2), "format 2 is not supported"),
            (|m| m["surprise"] = json!(1), "unknown field `surprise`"),
            (|m| m["files"][0]["mode"] = json!(1), "unknown field `mode`"),
            (|m| drop(m.as_object_mut().unwrap().remove("license")), "missing field `license`"),
            (|m| m["id"] = json!("../m"), "is not a valid model id"),
            (|m| m["id"] = json!(".m"), "is not a valid model id"),
            (|m| m["version"] = json!("1/2"), "is not a valid version"),
            (|m| m["files"][0]["path"] = json!("../config.json"), "is not a valid member name"),
            (|m| m["files"][0]["path"] = json!("other"), "files: expected exactly"),
            (|m| m["files"][1]["path"] = json!("Config.json"), "Config.json appears twice"),
            (|m| m["files"][0]["path"] = json!("Config.json"), "files: expected exactly"),
            (
                |m| m["files"][0]["size"] = json!(5 << 20),
                "config.json has 5242880 bytes, but the limit",
            ),
            (|m| m["files"][1]["size"] = json!(65 << 20), "tokenizer.json has 68157440 bytes"),
            (|m| m["files"][0]["sha256"] = json!("00"), "expected a SHA-256 digest"),
            (|m| m["files"][0]["size"] = json!(-1), "invalid value: integer `-1`"),
            (|m| m["dimensions"] = json!(0), "dimensions: expected 1 to"),
            (|m| m["self_test"]["vector"] = json!([1.0]), "self_test.vector: expected 2"),
            (|m| m["self_test"]["vector"] = json!([1e300, 0]), "self_test.vector: expected 2"),
            (|m| m["license"] = json!("MIT\nforged"), "license: expected at most"),
            (|m| m["prompts"] = json!({ "a": "b\r" }), "control characters except line feeds"),
            (|m| m["prompts"] = json!({ "a\n": "b" }), "prompts: expected at most 1024 bytes"),
            (|m| m["default_prompt"] = json!("none"), "is not one of the prompts"),
            (|m| m["matryoshka_dimensions"] = json!([2]), "from 1 to less than 2"),
            (|m| m["matryoshka_dimensions"] = json!([0, 1]), "from 1 to less than 2"),
            (|m| m["matryoshka_dimensions"] = json!([1, 1]), "in ascending order"),
        ];
        for (change, expected) in cases {
            let reason = parse_changed(change).unwrap_err();
            assert!(reason.contains(expected), "{reason:?} lacks {expected:?}");
        }
    }

    #[test]
    fn prompt_may_have_lines() {
        let prompt = "Instruct: Find passages\nQuery:";
        let manifest = parse_changed(|m| m["prompts"] = json!({ "query": prompt })).unwrap();
        assert_eq!(manifest.prompts["query"], prompt);
    }

    #[test]
    fn trained_lengths_do_not_change_the_embedding_space() {
        let trained = Manifest { matryoshka_dimensions: vec![1], ..good() };
        let json = trained.to_json().unwrap();
        assert_eq!(Manifest::parse(&json).unwrap(), trained);
        assert_eq!(trained.space(), good().space());
        // Packages without the list keep their digest.
        let json = String::from_utf8(good().to_json().unwrap()).unwrap();
        assert!(!json.contains("matryoshka"), "{json}");
    }

    fn reranker() -> Manifest {
        let activation = ScoreActivation::Sigmoid;
        let classifier = Some(Classifier { labels: 1, activation, token_types: true });
        Manifest { classifier, normalize: false, ..good() }
    }

    #[test]
    fn reranker_has_no_steps_of_vectors() {
        let json = reranker().to_json().unwrap();
        let read = Manifest::parse(&json).unwrap();
        assert!(read == reranker() && read.is_reranker() && !good().is_reranker());
        assert!(read.space() != Manifest { normalize: false, ..good() }.space());
        // Packages of other models keep their digest.
        assert!(!String::from_utf8(good().to_json().unwrap()).unwrap().contains("classifier"));
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 7] = [
            (|m| m["classifier"]["labels"] = json!(3), "classifier.labels: expected 1, found 3"),
            (|m| m["classifier"]["activation"] = json!("tanh"), "unknown variant `tanh`"),
            (|m| m["classifier"]["name"] = json!("x"), "unknown field `name`"),
            (|m| m["normalize"] = json!(true), "normalize: a model with a classifier"),
            (|m| m["matryoshka_dimensions"] = json!([1]), "matryoshka_dimensions: a model with"),
            (|m| m["default_prompt"] = json!("query"), "default_prompt: a model with"),
            (|m| m["sparse"] = json!({ "ignored_tokens": [] }), "sparse: a model with"),
        ];
        for (change, expected) in cases {
            let mut json = serde_json::to_value(reranker()).unwrap();
            change(&mut json);
            let error = Manifest::parse(json.to_string().as_bytes()).unwrap_err();
            assert!(error.reason().contains(expected), "{error} lacks {expected:?}");
        }
    }

    #[test]
    fn scores_are_sigmoid_or_unchanged() {
        assert_eq!(ScoreActivation::Identity.apply(-3.0), -3.0);
        assert_eq!(ScoreActivation::Sigmoid.apply(0.0), 0.5);
        let score = ScoreActivation::Sigmoid.apply(2.0);
        assert!((score - 0.880_797).abs() < 1e-6, "{score}");
        for extreme in [-1e30_f32, 1e30] {
            assert!((0.0..=1.0).contains(&ScoreActivation::Sigmoid.apply(extreme)));
        }
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_depth() {
        let json = String::from_utf8(good().to_json().unwrap()).unwrap();
        for (once, twice, expected) in [
            (r#""format": 1,"#, r#""format": 1, "format": 1,"#, "duplicate field `format`"),
            (r#""size": 1,"#, r#""size": 1, "size": 1,"#, "duplicate field `size`"),
            (
                r#""query": "query: ""#,
                r#""query": "a", "query": "b""#,
                r#"duplicate prompt "query""#,
            ),
            (r#""text": "#, r#""text": "", "text": "#, "duplicate field `text`"),
        ] {
            assert!(json.contains(once), "{once}");
            let error = Manifest::parse(json.replacen(once, twice, 1).as_bytes()).unwrap_err();
            assert!(error.reason().contains(expected), "{error}");
        }
    }

    #[test]
    fn refusal_is_one_short_line() {
        for hostile in ["x\ny\u{1b}[2J".to_owned(), "x".repeat(1 << 20)] {
            type Change<'a> = Box<dyn FnOnce(&mut Value) + 'a>;
            let changes: [Change<'_>; 6] = [
                Box::new(|m| m[&hostile] = json!(1)),
                Box::new(|m| m["id"] = json!(hostile)),
                Box::new(|m| m["precision"] = json!(hostile)),
                Box::new(|m| m["license"] = json!(hostile)),
                Box::new(|m| m["default_prompt"] = json!(hostile)),
                Box::new(|m| {
                    let names = (0..10_000).map(|name| {
                        json!({ "path": format!("f{name}"), "size": 0, "sha256": "0".repeat(64) })
                    });
                    m["files"] = names.collect();
                }),
            ];
            for change in changes {
                let reason = parse_changed(change).unwrap_err();
                assert!(reason.chars().count() <= MAX_QUOTED + 1, "{} characters", reason.len());
                assert!(!reason.contains(char::is_control), "{reason:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(Manifest::parse(&bytes));
        }

        /// Checks that an accepted manifest has safe names and survives a round trip unchanged.
        #[test]
        fn accepted_edit_round_trips(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut json = good().to_json().unwrap();
            for (index, byte) in edits {
                let index = index.index(json.len());
                json[index] = byte;
            }
            if let Ok(manifest) = Manifest::parse(&json) {
                prop_assert!(!manifest.file_name().contains('/'));
                prop_assert_eq!(Manifest::parse(&manifest.to_json().unwrap()).unwrap(), manifest);
            }
        }
    }
}
