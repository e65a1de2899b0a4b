//! An installed package as others see it, and which one a name means. Pure.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::{Manifest, ModelId, Version};
use super::record::{Record, Status};
use super::trust::Disabled;

/// Digits of a revision that are enough to name it: two of a thousand entries begin alike once in thirty times, which
/// whoever needs more digits sees by the answer's headers.
const LEAST_REVISION: usize = 6;

/// Identifies one installed package: its id, its version, and the digest of its manifest.
///
/// Written to files with all 64 digits of the digest, and shown with the first 12: the store has no two packages of one
/// id that are shown alike. A key of 12 digits is read as well, because older files have such keys; it equals no key of
/// an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

impl Key {
    /// The key of the package with this manifest.
    pub(super) fn new(manifest: &Manifest, manifest_digest: Digest) -> Self {
        // '@' and '+' occur in no id or version, so that no two packages share a key.
        Self(format!("{}@{}+{manifest_digest}", manifest.id, manifest.version))
    }

    /// The name of the entry's directory: what is shown of the key.
    pub(super) fn directory(&self) -> String {
        self.to_string()
    }

    /// Whether `other` is shown as this key is, for the same id: their digests begin alike.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let ((id, _, revision), (other_id, _, other_revision)) = (self.parts(), other.parts());
        id == other_id && revision == other_revision
    }

    /// `id@digest` with all digits: the name that means this entry and no other, whatever versions are called.
    pub fn exact_name(&self) -> String {
        let (_, digest) = self.0.split_once('+').unwrap_or((&self.0, ""));
        format!("{}@{digest}", self.id())
    }

    /// The key with 12 digits that older files have for this entry.
    pub fn shortened(&self) -> Self {
        Self(self.to_string())
    }

    /// `id@version`, as a request may name it.
    pub fn name(&self) -> &str {
        self.0.split_once('+').map_or(&self.0, |(name, _revision)| name)
    }

    /// The id alone.
    pub fn id(&self) -> &str {
        self.parts().0
    }

    /// The id, the version, and the revision: the digest of the manifest, shortened.
    pub fn parts(&self) -> (&str, &str, &str) {
        let (id, rest) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let (version, revision) = rest.split_once('+').unwrap_or((rest, ""));
        (id, version, revision.get(..Digest::SHORT).unwrap_or(revision))
    }
}

/// A text that is no [`Key`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the key of a package, such as \"all-MiniLM-L6-v2@1+0123456789ab\"")]
pub struct ParseKeyError;

impl TryFrom<String> for Key {
    type Error = ParseKeyError;

    fn try_from(text: String) -> Result<Self, ParseKeyError> {
        let key = Self(text);
        let (id, version, _shown) = key.parts();
        let digest = key.0.split_once('+').map_or("", |(_name, digest)| digest);
        // A key becomes the name of a directory: what `new` would not have made stays outside.
        let good = id.parse::<ModelId>().is_ok()
            && version.parse::<Version>().is_ok()
            && [Digest::SHORT, Digest::DIGITS].contains(&digest.len())
            && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(key) } else { Err(ParseKeyError) }
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        text.to_owned().try_into()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, version, revision) = self.parts();
        write!(f, "{id}@{version}+{revision}")
    }
}

/// An installed package.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What identifies it.
    pub key: Key,
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// What the store knows of it.
    pub record: Record,
    /// Why it may not be used although its files are right; follows from the keys, and is not kept on disk.
    pub disabled: Option<Disabled>,
}

impl Entry {
    /// Whether it may answer: it is available and nothing disables it.
    pub fn is_usable(&self) -> bool {
        self.record.status == Status::Available && self.disabled.is_none()
    }

    /// Whether a name may mean it: it was tested and nothing disables it. One that is corrupt may be meant, so that the
    /// caller hears of it.
    fn may_be_meant(&self) -> bool {
        self.record.status.is_tested() && self.disabled.is_none()
    }

    /// Whether it is among those that `name` may mean: `id`, `id@version` or `id@revision`.
    pub fn is_named(&self, name: &str) -> bool {
        match name.split_once('@') {
            None => self.manifest.id.as_str() == name,
            Some((id, rest)) => {
                self.manifest.id.as_str() == id && (self.is_version(rest) || self.is_revision(rest))
            }
        }
    }

    fn is_version(&self, version: &str) -> bool {
        self.manifest.version.as_str() == version
    }

    fn is_revision(&self, beginning: &str) -> bool {
        beginning.len() >= LEAST_REVISION
            && self.record.manifest_digest.to_string().starts_with(beginning)
    }
}

/// The entry that `name` means: `id`, of which the highest version or the one that a rollback chose, `id@version`, or
/// `id@revision`, of which six digits are enough where no version is called so. All digits mean this content, whatever
/// versions are called.
///
/// Of two with the same id and version the one installed last. Of two whose revisions begin alike the one installed
/// first: a newcomer does not take the name of what is there. Entries whose self-test has not passed, or that are disabled, are not
/// there.
pub fn choose<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let meant = || entries.iter().filter(|entry| entry.may_be_meant());
    let last = |named: &dyn Fn(&Entry) -> bool| {
        meant().filter(|entry| named(entry)).max_by(|a, b| by_version(a, b))
    };
    match name.split_once('@') {
        None => {
            let highest = last(&|entry| entry.is_named(name))?;
            let since = Some(highest.record.installed_at);
            let chosen =
                meant().filter(|entry| entry.is_named(name) && entry.record.chosen_at > since);
            chosen.max_by_key(|entry| entry.record.chosen_at).or(Some(highest))
        }
        Some((id, rest)) => {
            let of_id = |entry: &Entry| entry.manifest.id.as_str() == id;
            let by_revision = |digits: &str| {
                let named = meant().filter(|entry| of_id(entry) && entry.is_revision(digits));
                named.min_by_key(|entry| entry.record.installed_at)
            };
            let exact = (rest.len() == Digest::DIGITS).then(|| by_revision(rest)).flatten();
            exact
                .or_else(|| last(&|entry| of_id(entry) && entry.is_version(rest)))
                .or_else(|| by_revision(rest))
        }
    }
}

/// Returns the entry that `name` means, for an administrator who removes it: the one of [`choose`], or, when no such
/// entry has passed its self-test, the highest version among the others.
pub fn choose_any<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let others =
        || entries.iter().filter(|entry| entry.is_named(name)).max_by(|a, b| by_version(a, b));
    choose(entries, name).or_else(others)
}

/// The entry before the one that `id` means, by version and time; one that is corrupt is passed over.
pub fn earlier<'a>(entries: &'a [Entry], id: &str) -> Option<&'a Entry> {
    let current = choose(entries, id)?;
    let earlier = entries.iter().filter(|entry| {
        entry.manifest.id == current.manifest.id
            && entry.is_usable()
            && by_version(entry, current) == Ordering::Less
    });
    earlier.max_by(|a, b| by_version(a, b))
}

/// By version, and of the same version by when it was installed.
fn by_version(a: &Entry, b: &Entry) -> Ordering {
    let versions = natural(a.manifest.version.as_str(), b.manifest.version.as_str());
    versions.then(a.record.installed_at.cmp(&b.record.installed_at))
}

/// Compares two versions as people do: runs of digits by their value, so that 1.10 comes after 1.9.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let runs = |text: &str| -> Vec<(usize, String)> {
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        text.as_bytes()
            .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
            .map(|run| String::from_utf8_lossy(run).into_owned())
            .map(|run| match digits(&run) {
                // Without leading zeros the longer number is the larger.
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
    fn a_key_is_read_from_its_text_and_nothing_else_is() {
        let key = Key::new(&fixture::manifest("m", "1.0-rc1", &[]), Digest::of(b""));
        assert_eq!(key.parts(), ("m", "1.0-rc1", "e3b0c44298fc"));
        assert_eq!(key.to_string().len(), "m@1.0-rc1+".len() + Digest::SHORT);
        let written = String::from(key.clone());
        assert_eq!(written, format!("m@1.0-rc1+{}", Digest::of(b"")));
        assert_eq!(written.parse(), Ok(key.clone()));
        assert_eq!(key.exact_name(), format!("m@{}", Digest::of(b"")));
        // What older files have is read, and is another key.
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
            assert_eq!(bad.parse::<Key>(), Err(ParseKeyError), "{bad}");
        }
    }

    #[test]
    fn versions_compare_as_people_do() {
        for (a, b) in [
            ("1", "2"),
            ("1.9", "1.10"),
            ("2", "10"),
            ("1.0-rc1", "1.0-rc2"),
            ("1", "1.1"),
            ("a", "b"),
            ("1", "01"),
        ] {
            assert_ne!(natural(a, b), Ordering::Equal, "{a} {b}");
            assert_eq!(natural(a, b), natural(b, a).reverse(), "{a} {b}");
        }
        for (a, b) in
            [("1", "2"), ("1.9", "1.10"), ("2", "10"), ("1.0-rc1", "1.0-rc2"), ("1", "1.1")]
        {
            assert_eq!(natural(a, b), Ordering::Less, "{a} {b}");
        }
    }
}
