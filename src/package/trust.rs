//! Trust: which package may have which id, and whose signature still counts.
//!
//! Owns two decisions. [`permit`] says whether a package that is intact may be installed under the id that it claims.
//! [`Trusted::disables`] says whether an entry may still be used with the keys that are configured now. Both are pure;
//! [`Trusted::read`] reads what they need.
//!
//! Decisions:
//! - An id that a bundled package has is reserved: no other content may have it. The bundled directory is part of the
//!   operating system, and a name that no request gives means its default model.
//! - A package that would give an id another embedding space needs the administrator's word: vectors that clients have
//!   kept could not be compared any more. An alias needs none: it is part of the configuration, which is the
//!   administrator's word, and an alias goes before a model of the same name.
//! - With keys, the version of an id does not go down, also after the higher one was removed: a signature does not
//!   become invalid when a fault of its package becomes known.
//! - What was installed before there were keys has no signer, and no key disables it. `/status` names it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::drop;
use super::entry::{Entry, Key, choose, natural};
use super::manifest::{Manifest, ModelId, Version};
use super::record::{Origin, Record};
use super::signature::{KeyId, Keys, SignatureError};
use super::unpack::peek;
use crate::files;

/// Longest name of a key file that is kept in a record.
const MAX_FILE_NAME: usize = 128;

/// The key that vouched for a package when it was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// The identifier of the key, which whoever makes a key chooses.
    pub key: KeyId,
    /// SHA-256 of the key, which identifies it.
    pub fingerprint: Digest,
    /// The name of its file, without characters that a terminal or a log could take for its own.
    #[serde(deserialize_with = "plain_file")]
    pub file: String,
}

/// For people: the key's identifier and file.
impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key, self.file)
    }
}

fn plain_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|name| plain(&name))
}

/// `name` with '?' for all but letters, digits, '.', '_', '-' and '@', and not too long.
pub(super) fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '?' };
    name.chars().take(MAX_FILE_NAME).map(plain).collect()
}

/// Why an entry whose files are right may not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// The key that signed it is not configured any more.
    KeyRemoved(Signer),
    /// The file of the key that signed it does not name its id any more.
    NotCovered(Signer),
    /// Its id is that of a bundled package, and it is another.
    Reserved,
}

impl fmt::Display for Disabled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyRemoved(signer) => write!(
                f,
                "disabled: its key was removed: it was signed with key {signer}, which is not among the keys; put the \
                 key back, install it signed with another, or remove it with `caxton model remove`"
            ),
            Self::NotCovered(signer) => write!(
                f,
                "disabled: it was signed with key {signer}, whose file does not name its id any more"
            ),
            Self::Reserved => f.write_str(
                "disabled: its id is that of a bundled package, which no other may have; remove it with `caxton model \
                 remove`",
            ),
        }
    }
}

/// Why a package that is intact may not have the id that it claims.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A bundled package has the id.
    #[error(
        "the id \"{0}\" is that of a bundled package, and no other package may have it: pack it under another id"
    )]
    Reserved(ModelId),
    /// The id would mean another embedding space.
    #[error(
        "\"{id}\" would have another embedding space: {current} has {present}, the package has {new}, and vectors of the \
         two must not be compared; an administrator may want it: `caxton model install --replace`, or \
         packages.replace_embedding_space: true for the drop directory"
    )]
    OtherSpace {
        /// The id.
        id: ModelId,
        /// What it means now.
        current: Key,
        /// The embedding space that it has now.
        present: String,
        /// That of the package.
        new: String,
    },
    /// The embedding space would be shown as another one is.
    #[error(
        "the embedding space of the package is shown as {shown}, as that of {other} is, and is another one: clients could \
         not tell their vectors apart"
    )]
    SpaceLooksAlike {
        /// How both are shown.
        shown: String,
        /// The entry whose embedding space it would be taken for.
        other: Key,
    },
    /// A higher version was installed.
    #[error(
        "version {version} of \"{id}\" is older than {highest}, which was installed with a signature; with keys, versions \
         only go up, unless an administrator wants it: `caxton model install --allow-downgrade`"
    )]
    Downgrade {
        /// The id.
        id: ModelId,
        /// The version of the package.
        version: Version,
        /// The highest that was installed with a signature.
        highest: Version,
    },
}

/// What an administrator has said for one installation, or for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// The id may have another embedding space.
    pub replace: bool,
    /// The version may be lower than one that was installed.
    pub allow_downgrade: bool,
}

/// The contents that may have the ids of bundled packages.
#[derive(Clone, Debug, Default)]
pub struct Reserved(BTreeSet<(ModelId, Digest)>);

impl Reserved {
    /// Reads the manifest at the beginning of every package in the bundled `directory`. What cannot be read there
    /// reserves nothing: it cannot be installed either. Blocks: a few kilobytes of each file are read.
    pub fn read(directory: &Path) -> Self {
        let Ok(listing) = drop::list(directory) else { return Self::default() };
        let manifest = |name: &String| {
            let file = files::open_regular(&directory.join(name)).ok()?;
            peek(file)
        };
        let packages = listing.keys().filter_map(manifest);
        Self(packages.map(|(manifest, digest)| (manifest.id, digest)).collect())
    }

    /// Those that `entries` have, too: of packages that were replaced and are used until their successors are tested.
    fn with(&self, entries: &[Entry]) -> Self {
        let bundled = entries.iter().filter(|entry| entry.record.origin.is_bundled());
        let bundled = bundled.map(|it| (it.manifest.id.clone(), it.record.manifest_digest));
        Self(self.0.iter().cloned().chain(bundled).collect())
    }

    /// Whether content with this manifest may have `id`.
    fn admits(&self, id: &ModelId, manifest: Digest) -> bool {
        self.0.contains(&(id.clone(), manifest)) || !self.0.iter().any(|(other, _)| other == id)
    }
}

/// A package that wants to be installed.
#[derive(Debug)]
pub struct Claim<'a> {
    /// What it says of itself.
    pub manifest: &'a Manifest,
    /// The digest of that.
    pub manifest_digest: Digest,
    /// Where it comes from.
    pub origin: &'a Origin,
    /// Whether a configured key vouches for it.
    pub is_signed: bool,
}

/// Decides whether a package may be installed beside `entries`. `highest` is the highest version of its id that was
/// installed with a signature.
///
/// # Errors
/// When its id is reserved, its embedding space is another, or its version is too low.
pub fn permit(
    claim: &Claim<'_>,
    entries: &[Entry],
    reserved: &Reserved,
    highest: Option<Version>,
    consent: Consent,
) -> Result<(), TrustError> {
    let Claim { manifest, manifest_digest, origin, is_signed } = claim;
    let key = Key::new(manifest, *manifest_digest);
    if origin.is_bundled() {
        return Ok(());
    }
    if !reserved.with(entries).admits(&manifest.id, *manifest_digest) {
        return Err(TrustError::Reserved(manifest.id.clone()));
    }
    // The same content is there, whole or damaged: nothing new comes.
    if entries.iter().any(|entry| entry.key == key) {
        return Ok(());
    }
    let space = manifest.space();
    if let Some(other) = entries
        .iter()
        .map(|it| (it, it.manifest.space()))
        .find_map(|(it, of)| (of != space && of.to_string() == space.to_string()).then_some(it))
    {
        let other = other.key.clone();
        return Err(TrustError::SpaceLooksAlike { shown: space.to_string(), other });
    }
    // Of an id whose entries are all disabled, what it would mean if they were not.
    let disabled = || {
        let tested = entries
            .iter()
            .filter(|entry| entry.manifest.id == manifest.id && entry.record.status.is_tested());
        tested.max_by(|a, b| natural(a.manifest.version.as_str(), b.manifest.version.as_str()))
    };
    if let Some(current) = choose(entries, manifest.id.as_str()).or_else(disabled)
        && current.manifest.space() != space
        && !consent.replace
    {
        return Err(TrustError::OtherSpace {
            id: manifest.id.clone(),
            current: current.key.clone(),
            present: current.manifest.embedding_space(),
            new: space.to_string(),
        });
    }
    match highest {
        Some(highest)
            if *is_signed
                && !consent.allow_downgrade
                && natural(manifest.version.as_str(), highest.as_str()).is_lt() =>
        {
            let (id, version) = (manifest.id.clone(), manifest.version.clone());
            Err(TrustError::Downgrade { id, version, highest })
        }
        _ => Ok(()),
    }
}

/// What decides which entries may be used: the keys, and the ids of bundled packages.
#[derive(Clone, Debug, Default)]
pub struct Trusted {
    keys: Keys,
    /// Names of key files that could not be read.
    unread: BTreeSet<String>,
    reserved: Reserved,
}

impl Trusted {
    /// Reads both directories. Returns the key files that cannot be used, too: a fault of one says nothing of the others.
    ///
    /// # Errors
    /// When the directory of keys is there and cannot be listed: nothing is known then of any key.
    pub fn read(
        keys_directory: &Path,
        bundled_directory: &Path,
    ) -> Result<(Self, Vec<SignatureError>), SignatureError> {
        let (keys, unread) = Keys::load_each(keys_directory)?;
        let (unread, errors): (_, Vec<_>) = unread.into_iter().unzip();
        let reserved = Reserved::read(bundled_directory);
        Ok((Self { keys, unread, reserved }, errors))
    }

    /// Whether a key is configured, usable or not, so that packages need signatures.
    pub fn wants_signatures(&self) -> bool {
        !self.keys.is_empty() || !self.unread.is_empty()
    }

    /// Why the entry with this manifest and record may not be used. One whose key file is there and cannot be read may: a
    /// failing disk takes no key away.
    pub(super) fn disables(&self, manifest: &Manifest, record: &Record) -> Option<Disabled> {
        if record.origin.is_bundled() {
            return None;
        }
        if !self.reserved.admits(&manifest.id, record.manifest_digest) {
            return Some(Disabled::Reserved);
        }
        let signer = record.signer.as_ref()?;
        match self.keys.covers(signer, &manifest.id) {
            Some(true) => None,
            Some(false) => Some(Disabled::NotCovered(signer.clone())),
            None if self.unread.contains(&signer.file) => None,
            None => Some(Disabled::KeyRemoved(signer.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minisign::KeyPair;
    use tempfile::TempDir;

    use super::*;
    use crate::package::SignatureStatus;
    use crate::package::Status;
    use crate::package::fixture::entry;

    const NOBODY: Consent = Consent { replace: false, allow_downgrade: false };

    fn bundled() -> Origin {
        let fingerprint = serde_json::from_str("\"\"").unwrap();
        Origin::Bundled { file: "file".to_owned(), fingerprint }
    }

    /// A directory of keys with one key, and who that is.
    fn key(file: &str) -> (TempDir, Signer) {
        let directory = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let text = pair.pk.to_box().unwrap().into_string();
        fs::write(directory.path().join(file), text).unwrap();
        let keys = Keys::load(directory.path()).unwrap();
        let number = u64::from_le_bytes(pair.pk.keynum().try_into().unwrap());
        let status = SignatureStatus::Valid(format!("{number:016X}").try_into().unwrap());
        let signer = keys.signer(status, &"m".parse().unwrap()).unwrap().unwrap();
        (directory, signer)
    }

    /// What [`permit`] says of `new`, which an administrator gives.
    fn judge(
        new: &Entry,
        entries: &[Entry],
        highest: Option<&str>,
        consent: Consent,
    ) -> Result<(), TrustError> {
        let claim = Claim {
            manifest: &new.manifest,
            manifest_digest: new.record.manifest_digest,
            origin: &new.record.origin,
            is_signed: new.record.signer.is_some(),
        };
        let highest = highest.map(|version| version.parse().unwrap());
        permit(&claim, entries, &Reserved::default(), highest, consent)
    }

    #[test]
    fn the_id_of_a_bundled_package_is_for_its_content_alone() {
        let mut mini = entry("mini", "1", 2, "a");
        mini.record.origin = bundled();
        let entries = [mini.clone()];
        let word = Consent { replace: true, allow_downgrade: true };
        for mut other in [entry("mini", "2", 2, "a"), entry("mini", "1", 2, "b")] {
            let refused = judge(&other, &entries, None, word);
            assert_eq!(refused, Err(TrustError::Reserved(mini.manifest.id.clone())));
            other.record.origin = bundled();
            assert_eq!(judge(&other, &entries, None, NOBODY), Ok(()));
        }
        mini.record.origin = Origin::Installed;
        assert_eq!(judge(&mini, &entries, None, NOBODY), Ok(()));
        assert_eq!(judge(&entry("mini-2", "1", 2, "b"), &entries, None, NOBODY), Ok(()));
    }

    #[test]
    fn another_embedding_space_needs_consent_unless_the_id_is_new() {
        let mut entries = [entry("m", "1", 2, "a"), entry("n", "1", 2, "b")];
        let new = entry("m", "2", 2, "b");
        let word = Consent { replace: true, ..NOBODY };
        for disabled in [None, Some(Disabled::Reserved)] {
            entries[0].disabled = disabled;
            let refused = judge(&new, &entries, None, NOBODY).unwrap_err();
            let TrustError::OtherSpace { current, present, new, .. } = refused else {
                panic!("{refused}");
            };
            assert_eq!(current, entries[0].key);
            assert!(present != new && present.len() == 16 && new.len() == 16);
        }
        assert_eq!(judge(&new, &entries, None, word), Ok(()));
        assert_eq!(judge(&entry("m", "2", 2, "a"), &entries, None, NOBODY), Ok(()));
        assert_eq!(judge(&entry("o", "2", 2, "c"), &entries, None, NOBODY), Ok(()));
        // What is there already is no news, whatever the id means now.
        let both = [entries[0].clone(), new.clone()];
        assert_eq!(judge(&entries[0], &both, None, NOBODY), Ok(()));
        // What was never tested, nobody has vectors of.
        entries[0].record.status = Status::Untested;
        assert_eq!(judge(&new, &entries, None, NOBODY), Ok(()));
    }

    #[test]
    fn a_signed_version_goes_up_as_choose_counts() {
        let mut new = entry("m", "1.9", 2, "a");
        assert_eq!(judge(&new, &[], Some("1.10"), NOBODY), Ok(()), "not signed");
        new.record.signer = Some(key("a.pub").1);
        for (highest, permitted) in
            [(None, true), (Some("1.8"), true), (Some("1.9"), true), (Some("1.10"), false)]
        {
            let said = judge(&new, &[], highest, NOBODY);
            assert_eq!(said.is_ok(), permitted, "{said:?}");
        }
        let word = Consent { allow_downgrade: true, ..NOBODY };
        assert_eq!(judge(&new, &[], Some("2"), word), Ok(()));
        // One that is there is not installed anew.
        assert_eq!(judge(&new, std::slice::from_ref(&new), Some("2"), NOBODY), Ok(()));
    }

    #[test]
    fn a_removed_key_disables_and_a_fault_of_the_disk_does_not() {
        let (directory, signer) = key("a.pub");
        let file = directory.path().join("a.pub");
        let mut signed = entry("m", "1", 2, "a");
        signed.record.signer = Some(signer.clone());
        let mut unsigned = entry("n", "1", 2, "a");
        let nowhere = directory.path().join("bundled");
        let disables = |entry: &Entry| {
            let (trusted, errors) = Trusted::read(directory.path(), &nowhere).unwrap();
            (trusted.disables(&entry.manifest, &entry.record), errors.len())
        };
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(disables(&signed), (None, 0));
        // Unreadable: a directory in its place, or text that is no key.
        fs::write(&file, "no key").unwrap();
        assert_eq!(disables(&signed), (None, 1));
        fs::rename(&file, directory.path().join("b.pub")).unwrap();
        let removed = Some(Disabled::KeyRemoved(signer.clone()));
        assert_eq!(disables(&signed), (removed.clone(), 1));
        fs::remove_file(directory.path().join("b.pub")).unwrap();
        assert_eq!(disables(&signed), (removed, 0));
        assert_eq!(disables(&unsigned), (None, 0));
        // Another name is the same key; other ids are another right.
        fs::write(directory.path().join("c.pub"), format!("{text}\nprefix: x\n")).unwrap();
        assert_eq!(disables(&signed), (Some(Disabled::NotCovered(signer.clone())), 0));
        fs::write(directory.path().join("c.pub"), format!("{text}\nprefix: m\n")).unwrap();
        assert_eq!(disables(&signed), (None, 0));
        // The same identifier is not the same key.
        signed.record.signer = Some(Signer { fingerprint: Digest::of(b""), ..signer });
        assert!(matches!(disables(&signed).0, Some(Disabled::KeyRemoved(_))));
        signed.record.origin = bundled();
        assert_eq!(disables(&signed), (None, 0));
        unsigned.record.signer = None;
        let not_there = Trusted::read(&directory.path().join("c.pub"), &nowhere);
        assert!(not_there.is_err(), "a directory that cannot be listed says nothing of keys");
    }

    #[test]
    fn a_record_keeps_the_signer_and_nothing_that_a_terminal_takes_for_its_own() {
        let (_directory, signer) = key("a.pub");
        let json = serde_json::to_string(&signer).unwrap();
        assert_eq!(serde_json::from_str::<Signer>(&json).unwrap(), signer);
        let odd = json.replace("a.pub", "\\u001b[31m/../x\u{202e}.pub");
        let read: Signer = serde_json::from_str(&odd).unwrap();
        assert_eq!(read.file, "??31m?..?x?.pub");
        for bad in [json.replace(&signer.key.to_string(), "x"), json.replace("\"file\"", "\"f\"")] {
            assert!(serde_json::from_str::<Signer>(&bad).is_err(), "{bad}");
        }
    }
}
