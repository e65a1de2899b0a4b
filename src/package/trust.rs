//! Trust decisions: which package may use which id, and whose signatures are accepted.
//!
//! Contains two decisions. [`check_claim`] decides whether an intact package may be installed under
//! the id in its manifest. [`TrustInput::disables`] decides whether an entry may still be used with
//! the keys that are configured now. Both do no I/O; [`TrustInput::read`] reads their input.
//!
//! Rules:
//! - The id of a bundled package is reserved: no other content may use it. The bundled directory is
//!   part of the operating system and contains the default model, which answers requests that name
//!   no model.
//! - A package that gives an existing id another embedding space needs the consent of the
//!   administrator, because vectors that clients have stored could not be compared with new ones.
//!   An alias needs no consent: it is part of the configuration, so the administrator has written
//!   it. An alias wins over a model of the same name.
//! - With keys, the version of an id never decreases, even after the higher version was removed. A
//!   signature stays valid when a flaw of its package becomes known, so an attacker could otherwise
//!   install the old version.
//! - A package that was installed before keys were configured has no signer. `/status` lists such
//!   packages. Keys disable them only if `packages.disable_unsigned` is set.

use std::collections::BTreeSet;
use std::path::Path;

use super::digest::Digest;
use super::disabled_reason::DisabledReason;
use super::entries::Entries;
use super::entry::{EntryKey, StoreEntry, compare_natural};
use super::install_record::Origin;
use super::listing;
use super::manifest::{Manifest, ModelId, Version};
use super::signature::{SignatureError, TrustedKeys};
use super::unpack::peek;
use crate::files;

/// Error of [`check_claim`]: the package may not use the id in its manifest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A bundled package has the id.
    #[error(
        "the id \"{0}\" is that of a bundled package, and only that package may have it: pack the \
         model under another id"
    )]
    Reserved(ModelId),
    /// The embedding space of the id would change.
    #[error(
        "the package would change the embedding space of \"{id}\": {current} has {present}, and \
         the package has {new}; vectors of the two must not be compared; to allow it, an \
         administrator runs `caxton model install --replace`, or sets \
         packages.replace_embedding_space: true for the drop directory"
    )]
    OtherSpace {
        /// Id of the package.
        id: ModelId,
        /// Entry to which the id resolves now.
        current: EntryKey,
        /// Embedding space of that entry.
        present: String,
        /// Embedding space of the package.
        new: String,
    },
    /// The printed form of the embedding space equals that of a different embedding space.
    #[error(
        "the embedding spaces of the package and of {other} differ, but both are shown as {shown}: \
         clients could not distinguish their vectors"
    )]
    SpaceLooksAlike {
        /// Printed form of both embedding spaces.
        shown: String,
        /// Entry that has the other embedding space.
        other: EntryKey,
    },
    /// A higher version was installed before.
    #[error(
        "version {version} of \"{id}\" is older than {highest}, which was installed with a \
         signature; to allow it, an administrator runs `caxton model install --allow-downgrade`"
    )]
    Downgrade {
        /// Id of the package.
        id: ModelId,
        /// Version of the package.
        version: Version,
        /// Highest version that was installed with a signature.
        highest: Version,
    },
}

/// Consent of an administrator, for one installation or for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Allows the id to change its embedding space.
    pub replace: bool,
    /// Allows a version that is lower than one that was installed before.
    pub allow_downgrade: bool,
}

/// Reserved ids, each with the digests of the bundled contents that may use it.
#[derive(Clone, Debug, Default)]
pub struct ReservedIds(BTreeSet<(ModelId, Digest)>);

impl ReservedIds {
    /// Reads the manifest at the beginning of every package in the bundled `directory`.
    ///
    /// A package that cannot be read reserves no id; it cannot be installed either. Blocks: reads a
    /// few kilobytes of each file.
    pub fn read(directory: &Path) -> Self {
        let Ok(listing) = listing::list(directory) else { return Self::default() };
        let manifest = |name: &String| {
            let file = files::open_regular(&directory.join(name)).ok()?;
            peek(file)
        };
        let packages = listing.keys().filter_map(manifest);
        Self(packages.map(|(manifest, digest)| (manifest.id, digest)).collect())
    }

    /// Returns the reserved ids together with those of the bundled `entries`. These include
    /// packages that an update has replaced and that are used until their successors are tested.
    fn with_entries(&self, entries: &Entries) -> Self {
        let bundled = entries.iter().filter(|entry| entry.record.origin.is_bundled());
        let bundled = bundled.map(|it| (it.manifest.id.clone(), it.record.manifest_digest));
        Self(self.0.iter().cloned().chain(bundled).collect())
    }

    /// Returns whether content with this manifest may use `id`.
    fn permits(&self, id: &ModelId, manifest: Digest) -> bool {
        self.0.contains(&(id.clone(), manifest)) || !self.0.iter().any(|(other, _)| other == id)
    }
}

/// Package that is about to be installed.
#[derive(Debug)]
pub struct IdClaim<'a> {
    /// Manifest of the package.
    pub manifest: &'a Manifest,
    /// Digest of the manifest's bytes.
    pub manifest_digest: Digest,
    /// Source of the package.
    pub origin: &'a Origin,
    /// Whether the package has a valid signature of a configured key.
    pub is_signed: bool,
}

/// Decides whether a package may be installed in addition to `entries`.
///
/// `highest` is the highest version of its id that was installed with a signature.
///
/// # Errors
/// When the id is reserved, the embedding space differs, or the version is too low.
pub fn check_claim(
    claim: &IdClaim<'_>,
    entries: &Entries,
    reserved: &ReservedIds,
    highest: Option<Version>,
    consent: Consent,
) -> Result<(), TrustError> {
    let IdClaim { manifest, manifest_digest, origin, is_signed } = claim;
    let key = EntryKey::new(manifest, *manifest_digest);
    if origin.is_bundled() {
        return Ok(());
    }
    if !reserved.with_entries(entries).permits(&manifest.id, *manifest_digest) {
        return Err(TrustError::Reserved(manifest.id.clone()));
    }
    // The same content is already installed, intact or damaged, so it needs no new decision.
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
    // If all entries of the id are disabled, compare with the entry to which it would resolve
    // otherwise. A disabled entry must not allow a change of the embedding space.
    let disabled = || {
        let tested = entries
            .iter()
            .filter(|entry| entry.manifest.id == manifest.id && entry.record.status.is_tested());
        tested.max_by(|a, b| {
            compare_natural(a.manifest.version.as_str(), b.manifest.version.as_str())
        })
    };
    if let Some(current) = entries.resolve(manifest.id.as_str()).or_else(disabled)
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
                && compare_natural(manifest.version.as_str(), highest.as_str()).is_lt() =>
        {
            let (id, version) = (manifest.id.clone(), manifest.version.clone());
            Err(TrustError::Downgrade { id, version, highest })
        }
        _ => Ok(()),
    }
}

/// Input of the decision which entries may be used: the keys, and the ids of bundled packages.
#[derive(Clone, Debug, Default)]
pub struct TrustInput {
    keys: TrustedKeys,
    /// Names of key files that could not be read.
    unread: BTreeSet<String>,
    reserved: ReservedIds,
    /// Whether keys disable the entries without a signature.
    disables_unsigned: bool,
}

impl TrustInput {
    /// Reads both directories. Also returns an error for each unusable key file; the other keys
    /// stay usable.
    ///
    /// # Errors
    /// When the directory of keys exists and cannot be listed: then the state of every key is
    /// unknown.
    pub fn read(
        keys_directory: &Path,
        bundled_directory: &Path,
    ) -> Result<(Self, Vec<SignatureError>), SignatureError> {
        let (keys, unread) = TrustedKeys::load_each(keys_directory)?;
        let (unread, errors): (_, Vec<_>) = unread.into_iter().unzip();
        let reserved = ReservedIds::read(bundled_directory);
        Ok((Self { keys, unread, reserved, disables_unsigned: false }, errors))
    }

    /// Sets whether keys disable the entries without a signature, which were installed before keys
    /// were configured.
    #[must_use]
    pub fn disabling_unsigned(self, disables_unsigned: bool) -> Self {
        Self { disables_unsigned, ..self }
    }

    /// Returns whether packages need signatures, because a key file exists, usable or not.
    pub fn wants_signatures(&self) -> bool {
        !self.keys.is_empty() || !self.unread.is_empty()
    }

    /// Returns the reason why `entry` must not be used, if there is one.
    ///
    /// While the file of its key exists but cannot be read, the state of the entry stays as it is:
    /// a failing disk must not revoke a key, and a file without a key must not restore one.
    pub(super) fn disables(&self, entry: &StoreEntry) -> Option<DisabledReason> {
        let StoreEntry { manifest, record, disabled, .. } = entry;
        if record.origin.is_bundled() {
            return None;
        }
        if !self.reserved.permits(&manifest.id, record.manifest_digest) {
            return Some(DisabledReason::Reserved);
        }
        let Some(signer) = &record.signer else {
            let is_disabled = self.disables_unsigned && self.wants_signatures();
            return is_disabled.then_some(DisabledReason::Unsigned);
        };
        match self.keys.covers(signer, &manifest.id) {
            Some(true) => None,
            Some(false) => Some(DisabledReason::NotCovered(signer.clone())),
            None if self.unread.contains(&signer.file) => disabled.clone(),
            None => Some(DisabledReason::KeyRemoved(signer.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minisign::KeyPair;
    use tempfile::TempDir;

    use super::*;
    use crate::package::InstallStatus;
    use crate::package::SignatureStatus;
    use crate::package::fixture::entry;
    use crate::package::signer::Signer;

    const NOBODY: Consent = Consent { replace: false, allow_downgrade: false };

    fn bundled() -> Origin {
        let fingerprint = serde_json::from_str("\"\"").unwrap();
        Origin::Bundled { file: "file".to_owned(), fingerprint }
    }

    /// Returns a directory with one key, and the signer of that key.
    fn key(file: &str) -> (TempDir, Signer) {
        let directory = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let text = pair.pk.to_box().unwrap().into_string();
        fs::write(directory.path().join(file), text).unwrap();
        let keys = TrustedKeys::load(directory.path()).unwrap();
        let number = u64::from_le_bytes(pair.pk.keynum().try_into().unwrap());
        let status = SignatureStatus::Valid(format!("{number:016X}").try_into().unwrap());
        let signer = keys.signer(status, &"m".parse().unwrap()).unwrap().unwrap();
        (directory, signer)
    }

    /// Calls [`check_claim`] for `new` with the given consent.
    fn judge(
        new: &StoreEntry,
        entries: &[StoreEntry],
        highest: Option<&str>,
        consent: Consent,
    ) -> Result<(), TrustError> {
        let claim = IdClaim {
            manifest: &new.manifest,
            manifest_digest: new.record.manifest_digest,
            origin: &new.record.origin,
            is_signed: new.record.signer.is_some(),
        };
        let highest = highest.map(|version| version.parse().unwrap());
        let entries: Entries = entries.iter().cloned().collect();
        check_claim(&claim, &entries, &ReservedIds::default(), highest, consent)
    }

    #[test]
    fn bundled_id_is_reserved_for_its_content() {
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
    fn new_embedding_space_for_known_id_needs_consent() {
        let mut entries = [entry("m", "1", 2, "a"), entry("n", "1", 2, "b")];
        let new = entry("m", "2", 2, "b");
        let word = Consent { replace: true, ..NOBODY };
        for disabled in [None, Some(DisabledReason::Reserved)] {
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
        // Content that is already installed is accepted, even if the id now resolves to another
        // entry.
        let both = [entries[0].clone(), new.clone()];
        assert_eq!(judge(&entries[0], &both, None, NOBODY), Ok(()));
        // Clients have no vectors of an entry that was never tested.
        entries[0].record.status = InstallStatus::Untested;
        assert_eq!(judge(&new, &entries, None, NOBODY), Ok(()));
    }

    #[test]
    fn signed_downgrade_needs_consent() {
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
        // An entry that is already installed is not a downgrade.
        assert_eq!(judge(&new, std::slice::from_ref(&new), Some("2"), NOBODY), Ok(()));
    }

    #[test]
    fn unreadable_key_neither_disables_nor_enables() {
        let (directory, signer) = key("a.pub");
        let file = directory.path().join("a.pub");
        let mut signed = entry("m", "1", 2, "a");
        signed.record.signer = Some(signer.clone());
        let mut unsigned = entry("n", "1", 2, "a");
        let nowhere = directory.path().join("bundled");
        let disables = |entry: &StoreEntry| {
            let (trusted, errors) = TrustInput::read(directory.path(), &nowhere).unwrap();
            (trusted.disables(entry), errors.len())
        };
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(disables(&signed), (None, 0));
        // The key file is unusable: its text is not a key.
        fs::write(&file, "no key").unwrap();
        assert_eq!(disables(&signed), (None, 1));
        fs::rename(&file, directory.path().join("b.pub")).unwrap();
        let removed = Some(DisabledReason::KeyRemoved(signer.clone()));
        assert_eq!(disables(&signed), (removed.clone(), 1));
        // The unusable file does not restore a key that was removed.
        fs::rename(directory.path().join("b.pub"), &file).unwrap();
        let disabled = StoreEntry { disabled: removed.clone(), ..signed.clone() };
        assert_eq!(disables(&disabled), (removed.clone(), 1));
        fs::remove_file(&file).unwrap();
        assert_eq!(disables(&signed), (removed, 0));
        assert_eq!(disables(&unsigned), (None, 0));
        // The key is recognised under another file name; its prefixes decide which ids it covers.
        fs::write(directory.path().join("c.pub"), format!("{text}\nprefix: x\n")).unwrap();
        assert_eq!(disables(&signed), (Some(DisabledReason::NotCovered(signer.clone())), 0));
        fs::write(directory.path().join("c.pub"), format!("{text}\nprefix: m\n")).unwrap();
        assert_eq!(disables(&signed), (None, 0));
        // A key with the same identifier is not necessarily the same key.
        signed.record.signer = Some(Signer { fingerprint: Digest::of(b""), ..signer });
        assert!(matches!(disables(&signed).0, Some(DisabledReason::KeyRemoved(_))));
        signed.record.origin = bundled();
        assert_eq!(disables(&signed), (None, 0));
        unsigned.record.signer = None;
        let not_there = TrustInput::read(&directory.path().join("c.pub"), &nowhere);
        assert!(not_there.is_err(), "a directory that cannot be listed says nothing of keys");
    }

    #[test]
    fn keys_disable_unsigned_entries_only_on_request() {
        let (directory, signer) = key("a.pub");
        let nowhere = directory.path().join("bundled");
        let disables = |entry: &StoreEntry, disables_unsigned| {
            let (trusted, _) = TrustInput::read(directory.path(), &nowhere).unwrap();
            trusted.disabling_unsigned(disables_unsigned).disables(entry)
        };
        let unsigned = entry("m", "1", 2, "a");
        let (mut signed, mut shipped) = (unsigned.clone(), unsigned.clone());
        signed.record.signer = Some(signer);
        shipped.record.origin = bundled();
        assert_eq!(disables(&unsigned, false), None);
        assert_eq!(disables(&unsigned, true), Some(DisabledReason::Unsigned));
        assert_eq!((disables(&signed, true), disables(&shipped, true)), (None, None));
        // An unusable key file requires signatures, too.
        fs::write(directory.path().join("a.pub"), "no key").unwrap();
        assert_eq!(disables(&unsigned, true), Some(DisabledReason::Unsigned));
        fs::remove_file(directory.path().join("a.pub")).unwrap();
        assert_eq!(disables(&unsigned, true), None);
    }

    #[test]
    fn signer_round_trips_without_control_characters() {
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
