//! Installed packages as other modules see them.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::access_stats::AccessStats;
use super::digest::Digest;
use super::disabled_reason::DisabledReason;
use super::install_record::{InstallRecord, InstallStatus, Timestamp};
use super::manifest::{Manifest, ModelId, Version};

/// Minimum number of digits that name a revision.
///
/// Among a thousand entries, the probability that two revisions share their first six digits is
/// about one in thirty. A client detects such a collision by the response headers and can send more
/// digits.
const LEAST_REVISION: usize = 6;

/// Identity of one installed package: its id, its version, and the digest of its manifest.
///
/// Files contain the key with all 64 digits of the digest. [`Display`](fmt::Display) prints the
/// first 12. The store does not keep two packages of one id whose printed keys are equal. Keys with
/// 12 digits can be parsed too, because older files contain them; such a key is not equal to the
/// key of any entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryKey(String);

impl EntryKey {
    /// Creates the key of the package with this manifest.
    pub(super) fn new(manifest: &Manifest, manifest_digest: Digest) -> Self {
        // Ids and versions contain neither '@' nor '+', so two packages never share a key.
        Self(format!("{}@{}+{manifest_digest}", manifest.id, manifest.version))
    }

    /// Returns the name of the entry's directory, which is the printed form of the key.
    pub(super) fn directory(&self) -> String {
        self.to_string()
    }

    /// Returns whether `other` has the same id and the same first 12 digits of the digest.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let ((id, _, revision), (other_id, _, other_revision)) = (self.parts(), other.parts());
        id == other_id && revision == other_revision
    }

    /// Returns `id@digest` with all digits. This name resolves to this entry only, even if a
    /// version has an equal name.
    pub fn exact_name(&self) -> String {
        let (_, digest) = self.0.split_once('+').unwrap_or((&self.0, ""));
        format!("{}@{digest}", self.id())
    }

    /// Returns the key with 12 digits that older files contain for this entry.
    pub fn shortened(&self) -> Self {
        Self(self.to_string())
    }

    /// Returns the key as it is in files: `id@version+digest` with all digits.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns `id@version`, which is a valid model name in a request.
    pub fn name(&self) -> &str {
        self.0.split_once('+').map_or(&self.0, |(name, _revision)| name)
    }

    /// Returns the id alone.
    pub fn id(&self) -> &str {
        self.parts().0
    }

    /// Returns the id, the version, and the revision (the first 12 digits of the manifest's
    /// digest).
    pub fn parts(&self) -> (&str, &str, &str) {
        let (id, rest) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let (version, revision) = rest.split_once('+').unwrap_or((rest, ""));
        (id, version, revision.get(..Digest::SHORT).unwrap_or(revision))
    }
}

/// Error of parsing a text that is not a [`EntryKey`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the key of a package, such as \"all-MiniLM-L6-v2@1+0123456789ab\"")]
pub struct ParseEntryKeyError;

impl TryFrom<String> for EntryKey {
    type Error = ParseEntryKeyError;

    fn try_from(text: String) -> Result<Self, ParseEntryKeyError> {
        let key = Self(text);
        let (id, version, _shown) = key.parts();
        let digest = key.0.split_once('+').map_or("", |(_name, digest)| digest);
        // A key becomes a directory name, so reject every text that `new` could not have created.
        let good = id.parse::<ModelId>().is_ok()
            && version.parse::<Version>().is_ok()
            && [Digest::SHORT, Digest::DIGITS].contains(&digest.len())
            && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(key) } else { Err(ParseEntryKeyError) }
    }
}

impl FromStr for EntryKey {
    type Err = ParseEntryKeyError;

    fn from_str(text: &str) -> Result<Self, ParseEntryKeyError> {
        text.to_owned().try_into()
    }
}

impl From<EntryKey> for String {
    fn from(key: EntryKey) -> Self {
        key.0
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, version, revision) = self.parts();
        write!(f, "{id}@{version}+{revision}")
    }
}

/// An installed package.
#[derive(Clone, Debug)]
pub struct StoreEntry {
    /// Identity of the package.
    pub key: EntryKey,
    /// Content of the package's manifest.
    pub manifest: Arc<Manifest>,
    /// State that the store keeps for the package. The accesses in it are those that were read from
    /// the disk; `accesses` has the current ones.
    pub record: InstallRecord,
    /// Accesses of the entry, shared by all its clones.
    pub accesses: AccessStats,
    /// Reason why the entry must not be used although its files are valid. It is derived from the
    /// keys and not stored on disk.
    pub disabled: Option<DisabledReason>,
}

impl StoreEntry {
    /// Returns the record with the current accesses, as it is written to the disk.
    pub(super) fn current_record(&self) -> InstallRecord {
        InstallRecord {
            access_count: self.accesses.count(),
            last_access_at: self.accesses.last_access_at(),
            ..self.record.clone()
        }
    }

    /// Returns the time of the last use, or of the installation if the model was never used.
    pub fn last_use(&self) -> Timestamp {
        self.accesses.last_access_at().unwrap_or(self.record.installed_at)
    }

    /// Returns whether the entry can serve requests: it is available and not disabled.
    pub fn is_usable(&self) -> bool {
        self.record.status == InstallStatus::Available && self.disabled.is_none()
    }

    /// Returns whether a name can resolve to the entry: its self-test has passed once and it is not
    /// disabled.
    ///
    /// Corrupt entries are included, so that the caller gets an error that names the corruption.
    pub(super) fn is_resolvable(&self) -> bool {
        self.record.status.is_tested() && self.disabled.is_none()
    }

    /// Returns whether `name` matches the entry as `id`, `id@version` or `id@revision`, or in the
    /// form of [`canonical_name`].
    pub fn is_named(&self, name: &str) -> bool {
        let name = canonical_name(name);
        match name.split_once('@') {
            None => self.manifest.id.as_str() == name,
            Some((id, rest)) => {
                self.manifest.id.as_str() == id && (self.is_version(rest) || self.is_revision(rest))
            }
        }
    }

    pub(super) fn is_version(&self, version: &str) -> bool {
        self.manifest.version.as_str() == version
    }

    pub(super) fn is_revision(&self, beginning: &str) -> bool {
        beginning.len() >= LEAST_REVISION
            && self.record.manifest_digest.to_string().starts_with(beginning)
    }
}

/// Converts a name with a tag, as Ollama's clients write it: `id:latest` becomes `id`, and
/// `id:version` becomes `id@version`. Returns other names as they are. Ids, versions and aliases
/// contain no colon.
pub fn canonical_name(name: &str) -> Cow<'_, str> {
    match name.split_once(':') {
        Some((id, _)) if id.contains('@') => Cow::Borrowed(name),
        Some((id, "latest")) => Cow::Borrowed(id),
        Some((id, version)) => Cow::Owned(format!("{id}@{version}")),
        None => Cow::Borrowed(name),
    }
}

/// Compares two versions in natural order: runs of digits by their numeric value, so 1.10 follows
/// 1.9.
pub(super) fn compare_natural(a: &str, b: &str) -> Ordering {
    let runs = |text: &str| -> Vec<(usize, String)> {
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        text.as_bytes()
            .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
            .map(|run| String::from_utf8_lossy(run).into_owned())
            .map(|run| match digits(&run) {
                // Without leading zeros, the longer number is the larger one.
                true => {
                    (run.trim_start_matches('0').len() + 1, run.trim_start_matches('0').to_owned())
                }
                false => (0, run),
            })
            .collect()
    };
    runs(a).cmp(&runs(b)).then(a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::fixture;

    #[test]
    fn key_round_trips_and_other_text_is_refused() {
        let key = EntryKey::new(&fixture::manifest("m", "1.0-rc1", &[]), Digest::of(b""));
        assert_eq!(key.parts(), ("m", "1.0-rc1", "e3b0c44298fc"));
        assert_eq!(key.to_string().len(), "m@1.0-rc1+".len() + Digest::SHORT);
        let written = String::from(key.clone());
        assert_eq!(written, format!("m@1.0-rc1+{}", Digest::of(b"")));
        assert_eq!(written.parse(), Ok(key.clone()));
        assert_eq!(key.exact_name(), format!("m@{}", Digest::of(b"")));
        // A key with 12 digits from an older file can be parsed, and is a different key.
        assert_eq!(key.to_string().parse(), Ok(key.shortened()));
        assert_ne!(key, key.shortened());
        for bad in [
            "",
            "m",
            "m@1",
            "m@1+",
            "m@1+0123456789a",
            "m@1+0123456789abc",
            "m@1+0123456789AB",
            "../m@1+0123456789ab",
            "m@1/2+0123456789ab",
            "m@@1+0123456789ab",
            "m@1++0123456789ab",
        ] {
            assert_eq!(bad.parse::<EntryKey>(), Err(ParseEntryKeyError), "{bad}");
        }
    }

    #[test]
    fn versions_compare_naturally() {
        for (a, b) in [
            ("1", "2"),
            ("1.9", "1.10"),
            ("2", "10"),
            ("1.0-rc1", "1.0-rc2"),
            ("1", "1.1"),
            ("a", "b"),
            ("1", "01"),
        ] {
            assert_ne!(compare_natural(a, b), Ordering::Equal, "{a} {b}");
            assert_eq!(compare_natural(a, b), compare_natural(b, a).reverse(), "{a} {b}");
        }
        for (a, b) in
            [("1", "2"), ("1.9", "1.10"), ("2", "10"), ("1.0-rc1", "1.0-rc2"), ("1", "1.1")]
        {
            assert_eq!(compare_natural(a, b), Ordering::Less, "{a} {b}");
        }
    }
}
