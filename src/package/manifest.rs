//! The manifest: what a package says of itself, and the rules that it must keep.
//!
//! Invariant: a [`Manifest`] in memory has passed [`Manifest::parse`]; nothing past it meets an unknown key, a
//! path that leaves its directory, a size over the limits or a self-test of another length.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// The one format this version reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the manifest inside a package; it comes first.
pub const MANIFEST: &str = "manifest.json";
/// Name of the transformers configuration inside a package.
pub const CONFIG: &str = "config.json";
/// Name of the tokenizer inside a package.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the weights inside a package.
pub const WEIGHTS: &str = "model.safetensors";

/// Longest `max_sequence_length` in tokens; that of models which have none of their own.
pub(super) const MAX_SEQUENCE_LENGTH: usize = 65_536;

/// The most bytes of a JSON file but the tokenizer; configurations have a few kilobytes.
pub(super) const MAX_JSON: u64 = 4 << 20;
/// The most bytes of a tokenizer; the largest in use (250,000 pieces) has 17 MB.
pub(super) const MAX_TOKENIZER: u64 = 64 << 20;
/// The most bytes of a dense layer.
pub(super) const MAX_DENSE: u64 = 256 << 20;

const MAX_NAME_LENGTH: usize = 96;
const MAX_TEXT_LENGTH: usize = 1024;
/// Far above every sentence encoder there is; keeps products of shapes far from overflow.
const MAX_DIMENSIONS: usize = 65_536;
const MAX_DENSE_LAYERS: usize = 8;
const MAX_PROMPTS: usize = 64;
/// Characters of a parser's message that are kept: it quotes the manifest, which may be anything.
const MAX_QUOTED: usize = 300;

/// Name of the file that holds dense layer number `index`.
pub fn dense_file(index: usize) -> String {
    format!("dense.{index}.safetensors")
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[error("manifest.json: {0}")]
pub struct ManifestError(String);

impl ManifestError {
    /// The reason alone, for messages that already name the manifest.
    pub(super) fn reason(&self) -> &str {
        &self.0
    }

    /// What the JSON parser says, made fit for one line of a journal.
    fn json(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let mut printable = String::new();
        for character in text.chars().take(MAX_QUOTED) {
            if character.is_control() {
                printable.extend(character.escape_default());
            } else {
                printable.push(character);
            }
        }
        if text.chars().nth(MAX_QUOTED).is_some() {
            printable.push('…');
        }
        Self(printable)
    }
}

/// A name that is safe in a path and in a header: letters, digits, `.`, `_`, `-`; a letter or digit first.
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
            /// The name itself.
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
                    concat!("{:?} is no ", $what, ": expected at most {} letters, digits, '.', '_' or '-', a letter or digit first"),
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
    /// The name under which a model is asked for.
    ModelId, "model id"
);
safe_name!(
    /// The version of a package.
    Version, "version"
);
safe_name!(
    /// The name of a member of a package: one path component, never `.` or `..`.
    MemberName, "member name"
);

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// 8-bit integers, with an f32 scale for each row and block of columns.
    Int8,
}

impl Precision {
    /// The name in manifests and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// A dense layer between pooling and normalisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseLayer {
    /// Length of its input vector.
    pub in_features: usize,
    /// Length of its output vector.
    pub out_features: usize,
    /// Whether it adds a bias.
    pub bias: bool,
    /// `identity` or `tanh`.
    pub activation: String,
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub path: MemberName,
    /// Its length in bytes, uncompressed.
    pub size: u64,
    /// Its digest, uncompressed.
    pub sha256: Digest,
}

/// A text and the vector that the packed model gave for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// The text, without any prompt.
    pub text: String,
    /// Its vector, `[dimensions]`.
    pub vector: Vec<f32>,
}

/// What a package says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The name under which the model is asked for.
    pub id: ModelId,
    /// The version of this package.
    pub version: Version,
    /// `model_type` of the encoder, or `static`.
    pub architecture: String,
    /// Length of the vectors.
    pub dimensions: usize,
    /// Longest input in tokens, special tokens included.
    pub max_sequence_length: usize,
    /// How the weights are stored.
    pub precision: Precision,
    /// `mean`, `cls`, `max` or `mean_sqrt_len`.
    pub pooling: String,
    /// Dense layers after pooling, in order; layer `i` is the member `dense.i.safetensors`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dense: Vec<DenseLayer>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Texts put before an input, by name.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "unique_prompts"
    )]
    pub prompts: BTreeMap<String, String>,
    /// The prompt that is used when a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Languages, as BCP 47 tags; `mul` for many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// SPDX expression of the model's licence.
    pub license: String,
    /// Where the model comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The revision there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The files, in the order in which they stand in the archive.
    pub files: Vec<Member>,
    /// A text and its vector, tried before the model is made available.
    pub self_test: SelfTest,
}

/// Reads the prompts; a name that stands twice is refused, where a map alone would keep the last silently.
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

/// The identity under which two vectors may be compared: a digest over the weights, the tokenizer and every step that
/// changes a vector. Compared whole, and shown with its first 16 digits; the store has no two that are shown alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmbeddingSpace(Digest);

impl fmt::Display for EmbeddingSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.leading())
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not JSON, has an unknown, missing or duplicate key, or breaks a rule of the format.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::json(&error))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as it is written: indented JSON with a final newline.
    ///
    /// # Errors
    /// When it breaks a rule of the format, so that nothing is written that would not be read.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError(error.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// The file name of the package: `<id>-<version>.model.tar.zst`.
    pub fn file_name(&self) -> String {
        format!("{}-{}{}", self.id, self.version, super::SUFFIX)
    }

    /// The sum of the sizes of all files, in bytes.
    pub fn total_size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The identity under which two vectors may be compared, as clients see it: [`EmbeddingSpace`] as text.
    pub fn embedding_space(&self) -> String {
        self.space().to_string()
    }

    /// The identity under which two vectors may be compared. Serializes some kilobytes and hashes them.
    pub fn space(&self) -> EmbeddingSpace {
        let files: Vec<_> =
            self.files.iter().map(|file| (file.path.as_str(), file.sha256)).collect();
        let identity = serde_json::json!({
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
        EmbeddingSpace(Digest::of(identity.to_string().as_bytes()))
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |message: String| Err(ManifestError(message));
        if self.format != FORMAT {
            return refuse(format!(
                "format {} is not known; this version reads {FORMAT}",
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
        let prompts =
            self.prompts.iter().flat_map(|(name, text)| [("prompts", name), ("prompts", text)]);
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
            // Control characters would forge lines of the journal.
            if text.len() > MAX_TEXT_LENGTH || text.chars().any(char::is_control) {
                return Err(ManifestError(format!(
                    "{key}: expected at most {MAX_TEXT_LENGTH} bytes without control characters"
                )));
            }
        }
        if self.prompts.len() > MAX_PROMPTS {
            return Err(ManifestError(format!("prompts: at most {MAX_PROMPTS}")));
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
            return Err(ManifestError(format!("dense: at most {MAX_DENSE_LAYERS} layers")));
        }
        let widths = self.dense.iter().flat_map(|layer| [layer.in_features, layer.out_features]);
        if let Some(width) = widths.clone().find(|width| !(1..=MAX_DIMENSIONS).contains(width)) {
            return Err(ManifestError(format!(
                "dense: expected widths of 1 to {MAX_DIMENSIONS}, found {width}"
            )));
        }
        match self.dense.last() {
            Some(last) if last.out_features != self.dimensions => Err(ManifestError(format!(
                "dense: the last layer gives {} dimensions, the model {}",
                last.out_features, self.dimensions
            ))),
            _ => Ok(()),
        }
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        let mut expected: BTreeSet<String> = [CONFIG, TOKENIZER, WEIGHTS].map(str::to_owned).into();
        expected.extend((0..self.dense.len()).map(dense_file));
        let (mut folded, mut seen) = (BTreeSet::new(), BTreeSet::new());
        // One more than expected is enough to refuse; the message does not grow with the manifest.
        for file in self.files.iter().take(expected.len() + 1) {
            // Folded, because a case-insensitive file system would overwrite one with the other.
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
        // Weights are mapped; all else is read into memory, some of it before anybody has asked how much there is.
        let most = |file: &Member| match file.path.as_str() {
            WEIGHTS => u64::MAX,
            TOKENIZER => MAX_TOKENIZER,
            CONFIG => MAX_JSON,
            _dense => MAX_DENSE,
        };
        match self.files.iter().find(|file| file.size > most(file)) {
            Some(file) => Err(ManifestError(format!(
                "files: {} has {} bytes, at most {} are read",
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
    fn what_is_written_is_read() {
        let manifest = good();
        assert_eq!(Manifest::parse(&manifest.to_json().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn every_broken_rule_is_named() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 20] = [
            (|m| m["format"] = json!(2), "format 2 is not known"),
            (|m| m["surprise"] = json!(1), "unknown field `surprise`"),
            (|m| m["files"][0]["mode"] = json!(1), "unknown field `mode`"),
            (|m| drop(m.as_object_mut().unwrap().remove("license")), "missing field `license`"),
            (|m| m["id"] = json!("../m"), "is no model id"),
            (|m| m["id"] = json!(".m"), "is no model id"),
            (|m| m["version"] = json!("1/2"), "is no version"),
            (|m| m["files"][0]["path"] = json!("../config.json"), "is no member name"),
            (|m| m["files"][0]["path"] = json!("other"), "files: expected exactly"),
            (|m| m["files"][1]["path"] = json!("Config.json"), "Config.json appears twice"),
            (|m| m["files"][0]["path"] = json!("Config.json"), "files: expected exactly"),
            (|m| m["files"][0]["size"] = json!(5 << 20), "config.json has 5242880 bytes, at most"),
            (|m| m["files"][1]["size"] = json!(65 << 20), "tokenizer.json has 68157440 bytes"),
            (|m| m["files"][0]["sha256"] = json!("00"), "expected a SHA-256 digest"),
            (|m| m["files"][0]["size"] = json!(-1), "invalid value: integer `-1`"),
            (|m| m["dimensions"] = json!(0), "dimensions: expected 1 to"),
            (|m| m["self_test"]["vector"] = json!([1.0]), "self_test.vector: expected 2"),
            (|m| m["self_test"]["vector"] = json!([1e300, 0]), "self_test.vector: expected 2"),
            (|m| m["license"] = json!("MIT\nforged"), "license: expected at most"),
            (|m| m["default_prompt"] = json!("none"), "is not one of the prompts"),
        ];
        for (change, expected) in cases {
            let reason = parse_changed(change).unwrap_err();
            assert!(reason.contains(expected), "{reason:?} lacks {expected:?}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_every_depth() {
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
    fn a_refusal_is_one_short_line_whatever_it_quotes() {
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
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(Manifest::parse(&bytes));
        }

        /// Whatever is accepted has safe names and is written and read again unchanged.
        #[test]
        fn any_edit_is_refused_or_survives_a_round_trip(
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
