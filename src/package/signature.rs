//! What vouches for a package from outside: its sidecars, and the keys that this device trusts.
//!
//! Owns the formats of `<file>.sha256` (sha256sum's) and `<file>.minisig` (minisign's, pre-hashed
//! only), and the rule that decides: every sidecar that is present must hold; as soon as any key is
//! configured, a signature by one of the keys is required. It never reads the package itself:
//! [`VerifyingReader`] passes on the bytes that whoever installs reads. With keys these are read
//! again to be unpacked, and [`Store::stage_verified`](super::Store::stage_verified) compares both
//! passes, so what was signed and what is installed are the same bytes.
//!
//! Decisions:
//! - A signature is not an error where no key is configured: nobody could check it. It is reported
//!   as [`SignatureStatus::Unchecked`] for the journal, and it must be well-formed.
//! - The trusted comment of a signature is not interpreted. Identity and version stand in the
//!   manifest, which the signature covers; a file name could only repeat or contradict it.
//! - The sum of a `.sha256` file is for the file of that name: another name is a mistake and an
//!   error.
//! - A key is revoked by removing its file, and rotated by adding the new one first. What a revoked key signed is
//!   disabled: see [`super::trust`].
//! - A key may sign packages of all ids, or of those that begin as the lines `prefix: TEXT` after the two lines of its
//!   file say. They stand in the same file as the key, so that no copy or removal can part them. Any other line refuses
//!   the file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature, StreamVerifier};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::SIDECARS;
use super::digest::Digest;
use super::manifest::ModelId;
use super::trust::{Signer, plain};

/// A key has about 120 bytes, a signature about 350, a sum about 200.
const MAX_SIDECAR: u64 = 4096;

/// What a line that restricts a key to some ids begins with.
const PREFIX: &str = "prefix: ";

/// The identifier of a key pair, as minisign prints it: 16 upper-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; 8]);

/// A text that is no [`KeyId`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the identifier of a key: 16 upper-case hexadecimal digits")]
pub struct ParseKeyIdError;

impl TryFrom<String> for KeyId {
    type Error = ParseKeyIdError;

    fn try_from(text: String) -> Result<Self, ParseKeyIdError> {
        let good =
            text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
        let number = good.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        number.map(|number| Self(number.to_le_bytes())).ok_or(ParseKeyIdError)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

impl KeyId {
    /// Takes the identifier from the second line of a key or a signature:
    /// <https://jedisct1.github.io/minisign/#signature-format>.
    fn of_second_line(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.lines().nth(1)?).ok()?;
        bytes.get(2..10)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// Why what vouches for a package does not hold, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A key or a sidecar cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A key or a sidecar is not in its format. A sidecar that is still being copied looks like
    /// this.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The package is not the one that the `.sha256` file was made from.
    #[error("the package has SHA-256 {found}, its .sha256 file says {expected}")]
    WrongDigest {
        /// Of the `.sha256` file.
        expected: Digest,
        /// Of the package.
        found: Digest,
    },
    /// A key is configured and there is no `.minisig` file.
    #[error("a signature is required because keys are configured: add the package's .minisig file")]
    Missing,
    /// The signature is by a key that is not configured.
    #[error("signed with key {0}, which is not one of the configured keys")]
    UnknownKey(KeyId),
    /// The signature was made over the content itself, not its hash.
    #[error("the signature is in minisign's legacy format: sign again without -l")]
    Legacy,
    /// The signature does not match the package. A package that is still being copied looks like this: nothing of it is
    /// parsed before the signature holds, so that its end is not known.
    #[error(
        "the signature by key {0} does not match the package: copy all of it, or sign it again"
    )]
    Invalid(KeyId),
    /// What was verified is not what was unpacked.
    #[error("the package changed while it was read: copy it under another name and rename it")]
    Changed,
    /// The key may not sign packages of this id.
    #[error(
        "signed with key {key}, which may not sign \"{id}\": its file {file} names ids that begin with {}",
        prefixes.join(", ")
    )]
    NotCovered {
        /// The key.
        key: KeyId,
        /// Its file.
        file: String,
        /// The id of the package.
        id: ModelId,
        /// What ids must begin with.
        prefixes: Vec<String>,
    },
}

/// A key that packages may be signed with.
#[derive(Clone, Debug)]
struct Trusted {
    public: PublicKey,
    /// SHA-256 of the algorithm, the identifier and the key.
    fingerprint: Digest,
    /// The name of its file, as a record keeps it.
    file: String,
    /// What the ids begin with that it may sign; any id when there is none.
    prefixes: Vec<String>,
}

impl Trusted {
    fn covers(&self, id: &ModelId) -> bool {
        let begins = |prefix: &String| id.as_str().starts_with(prefix.as_str());
        self.prefixes.is_empty() || self.prefixes.iter().any(begins)
    }
}

/// The public keys that packages may be signed with.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<KeyId, Trusted>);

/// The keys that can be used, and what is wrong with the files of the others, by the name that a record has of them.
pub(super) type EachKey = (Keys, BTreeMap<String, SignatureError>);

impl Keys {
    /// Loads every `*.pub` file of `directory`; a missing directory holds no keys.
    ///
    /// # Errors
    /// When the directory or one key cannot be read: trusting fewer keys than configured,
    /// down to none at all, would drop the requirement of a signature silently.
    pub fn load(directory: &Path) -> Result<Self, SignatureError> {
        let (keys, errors) = Self::load_each(directory)?;
        errors.into_values().next().map_or(Ok(keys), Err)
    }

    /// Loads every `*.pub` file of `directory` that can be used, in the order of their names.
    ///
    /// # Errors
    /// When the directory is there and cannot be listed.
    pub(super) fn load_each(directory: &Path) -> Result<EachKey, SignatureError> {
        let failed = |source| SignatureError::Io { path: directory.to_owned(), source };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(EachKey::default()),
            entries => entries.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension() == Some(OsStr::new("pub")) {
                paths.push(path);
            }
        }
        paths.sort();
        let (mut keys, mut errors) = (Self::default(), BTreeMap::new());
        for path in paths {
            let file = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
            let file = plain(&file);
            if let Err(error) = keys.add(&path, file.clone()) {
                errors.insert(file, error);
            }
        }
        Ok((keys, errors))
    }

    /// Adds the key in the file at `path`.
    fn add(&mut self, path: &Path, file: String) -> Result<(), SignatureError> {
        // Links are followed: who writes this directory decides what is trusted.
        let text = read_small(path, OFlag::empty())?.ok_or_else(|| SignatureError::Io {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let (id, key) = parse_key(&text, file).map_err(|reason| malformed(path, reason))?;
        match self.0.get(&id) {
            None => drop(self.0.insert(id, key)),
            Some(other) if other.fingerprint != key.fingerprint => {
                return Err(malformed(path, format!("another key has the identifier {id} too")));
            }
            Some(other) if other.prefixes != key.prefixes => {
                let reason = format!("the same key stands in {}, with other prefixes", other.file);
                return Err(malformed(path, reason));
            }
            Some(_same) => {}
        }
        Ok(())
    }

    /// Returns who gave a package of this id the signature that was checked with these keys; `None` where none was
    /// checked.
    ///
    /// # Errors
    /// When the key may not sign packages of this id.
    pub fn signer(
        &self,
        status: SignatureStatus,
        id: &ModelId,
    ) -> Result<Option<Signer>, SignatureError> {
        let SignatureStatus::Valid(key) = status else { return Ok(None) };
        let trusted = self.0.get(&key).ok_or(SignatureError::UnknownKey(key))?;
        let Trusted { fingerprint, file, prefixes, .. } = trusted;
        if !trusted.covers(id) {
            let (file, prefixes) = (file.clone(), prefixes.clone());
            return Err(SignatureError::NotCovered { key, file, id: id.clone(), prefixes });
        }
        Ok(Some(Signer { key, fingerprint: *fingerprint, file: file.clone() }))
    }

    /// Whether the key with this fingerprint is one of them.
    pub(super) fn have(&self, fingerprint: Digest) -> bool {
        self.0.values().any(|key| key.fingerprint == fingerprint)
    }

    /// Whether the key of `signer` may sign packages of `id`; `None` when it is not among these.
    pub(super) fn covers(&self, signer: &Signer, id: &ModelId) -> Option<bool> {
        let trusted = self.0.get(&signer.key)?;
        (trusted.fingerprint == signer.fingerprint).then(|| trusted.covers(id))
    }

    /// Whether no key is configured, so that no signature is required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The files beside a package that vouch for it.
#[derive(Clone)]
pub struct Sidecars {
    sha256: Option<Digest>,
    minisig: Option<(KeyId, Signature)>,
}

impl Sidecars {
    /// Reads `<package_path>.sha256` and `<package_path>.minisig`, as far as they exist.
    ///
    /// # Errors
    /// When one exists and is not a regular file of at most 4 KiB in its format.
    pub fn read(package_path: &Path) -> Result<Self, SignatureError> {
        let sidecar = |suffix: &str| {
            let mut path = package_path.as_os_str().to_owned();
            path.push(suffix);
            // The drop directory may be open to others: a link could point at any file of this
            // device.
            read_small(&PathBuf::from(path), OFlag::O_NOFOLLOW)
        };
        let [sha256, minisig] = SIDECARS;
        let (sha256, minisig) = (sidecar(sha256)?, sidecar(minisig)?);
        Self::parse(package_path, sha256.as_deref(), minisig.as_deref())
    }

    /// Reads the texts of the `.sha256` and `.minisig` files of the package `package_path`, as far as they exist.
    ///
    /// # Errors
    /// When one is not in its format.
    pub fn parse(
        package_path: &Path,
        sha256: Option<&str>,
        minisig: Option<&str>,
    ) -> Result<Self, SignatureError> {
        let name = package_path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let wrong = |ending: &str, reason: String| {
            let mut path = package_path.as_os_str().to_owned();
            path.push(ending);
            malformed(Path::new(&path), reason)
        };
        let sha256 = sha256.map(|text| {
            let expected = "expected one line: a SHA-256 digest, two spaces, ";
            parse_sum(text, name).ok_or_else(|| wrong(SIDECARS[0], format!("{expected}{name}")))
        });
        let minisig = minisig.map(|text| {
            let reason = "not a minisign signature".to_owned();
            parse_signature(text).ok_or_else(|| wrong(SIDECARS[1], reason))
        });
        Ok(Self { sha256: sha256.transpose()?, minisig: minisig.transpose()? })
    }

    /// The key that the signature says it is by, right or not.
    pub fn key(&self) -> Option<KeyId> {
        self.minisig.as_ref().map(|(key, _signature)| *key)
    }

    /// Starts the check: the package must then be read through the reader that is given, to its
    /// end.
    ///
    /// # Errors
    /// When it is already certain that the check will fail, so that the package need not be read.
    pub fn verifier<'a, R: Read>(
        &'a self,
        keys: &'a Keys,
        source: R,
    ) -> Result<VerifyingReader<'a, R>, SignatureError> {
        let signature = match &self.minisig {
            None if keys.is_empty() => PendingSignature::Absent,
            None => return Err(SignatureError::Missing),
            Some(_) if keys.is_empty() => PendingSignature::Unchecked,
            Some((id, signature)) => {
                let key = keys.0.get(id).ok_or(SignatureError::UnknownKey(*id))?;
                // The identifiers are equal, so only the legacy format is left to refuse.
                let verifier = key
                    .public
                    .verify_stream(signature)
                    .map_err(|_legacy| SignatureError::Legacy)?;
                PendingSignature::Pending(*id, Box::new(verifier))
            }
        };
        Ok(VerifyingReader { source, sha256: self.sha256, signature })
    }
}

/// What is known of the signer of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureStatus {
    /// There is no signature, and no key that would require one.
    Absent,
    /// There is a signature, and no key to check it with.
    Unchecked,
    /// Signed with this key.
    Valid(KeyId),
}

enum PendingSignature<'a> {
    Absent,
    Unchecked,
    Pending(KeyId, Box<StreamVerifier<'a>>),
}

/// A reader that passes a package on and checks its signature over what it passed.
pub struct VerifyingReader<'a, R> {
    source: R,
    sha256: Option<Digest>,
    signature: PendingSignature<'a>,
}

impl<R> VerifyingReader<'_, R> {
    /// Ends the check. `package_digest` is that of all bytes that were read:
    /// [`Unpacked::package_digest`](super::Unpacked::package_digest).
    ///
    /// # Errors
    /// When a sidecar does not match what was read; so also when that was not all of the package.
    pub fn finish(self, package_digest: Digest) -> Result<SignatureStatus, SignatureError> {
        // The signature comes first: one that does not match may be that of a copy under way, of which a wrong digest says
        // nothing.
        let signature = match self.signature {
            PendingSignature::Absent => SignatureStatus::Absent,
            PendingSignature::Unchecked => SignatureStatus::Unchecked,
            PendingSignature::Pending(id, mut verifier) => match verifier.finalize() {
                Ok(()) => SignatureStatus::Valid(id),
                Err(_mismatch) => return Err(SignatureError::Invalid(id)),
            },
        };
        match self.sha256.filter(|expected| *expected != package_digest) {
            Some(expected) => Err(SignatureError::WrongDigest { expected, found: package_digest }),
            None => Ok(signature),
        }
    }
}

impl<R: Read> Read for VerifyingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if let PendingSignature::Pending(_, verifier) = &mut self.signature {
            verifier.update(&buffer[..read]);
        }
        Ok(read)
    }
}

fn malformed(path: &Path, reason: String) -> SignatureError {
    SignatureError::Malformed { path: path.to_owned(), reason }
}

/// The text of a small regular file, or `None` when there is no such file.
fn read_small(path: &Path, flags: OFlag) -> Result<Option<String>, SignatureError> {
    let failed = |source| SignatureError::Io { path: path.to_owned(), source };
    // O_NONBLOCK, because opening a named pipe would wait for its writer.
    let flags = (flags | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(malformed(path, "not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIDECAR + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SIDECAR {
        return Err(malformed(path, format!("longer than {MAX_SIDECAR} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_bytes| malformed(path, "not text".to_owned()))
}

/// One line of sha256sum for the file `name`, in text (two spaces) or binary mode (a space and an
/// asterisk).
fn parse_sum(text: &str, name: &str) -> Option<Digest> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let (digest, rest) = line.split_once(' ')?;
    let found = rest.strip_prefix([' ', '*'])?;
    (found == name).then(|| digest.parse().ok())?
}

/// The key in a file of this name, or what is wrong with its text.
fn parse_key(text: &str, file: String) -> Result<(KeyId, Trusted), String> {
    let lines = Vec::from_iter(text.lines());
    let key = || {
        let key = lines.get(..2)?.join("\n");
        let bytes = STANDARD.decode(lines.get(1)?).ok()?;
        Some((KeyId::of_second_line(&key)?, PublicKey::decode(&key).ok()?, Digest::of(&bytes)))
    };
    let (id, public, fingerprint) =
        key().ok_or_else(|| "not a minisign public key of two lines".to_owned())?;
    let mut prefixes = Vec::new();
    for (at, line) in lines.iter().enumerate().skip(2).filter(|(_, line)| !line.is_empty()) {
        let prefix = line.strip_prefix(PREFIX).filter(|prefix| prefix.parse::<ModelId>().is_ok());
        let prefix = prefix.ok_or_else(|| {
            let number = at + 1;
            format!("line {number}: expected \"{PREFIX}\" and what the ids begin with that this key may sign")
        })?;
        prefixes.push(prefix.to_owned());
    }
    prefixes.sort();
    prefixes.dedup();
    Ok((id, Trusted { public, fingerprint, file, prefixes }))
}

fn parse_signature(text: &str) -> Option<(KeyId, Signature)> {
    Some((KeyId::of_second_line(text)?, Signature::decode(text).ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use minisign::KeyPair;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;
    use crate::package::{Durability, Limits, fixture, unpack};
    use crate::units::Bytes;

    const NAME: &str = "m-1.model.tar.zst";

    /// A directory with keys, and one with a package.
    struct Drop {
        directory: TempDir,
        package: Vec<u8>,
    }

    impl Drop {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("keys.d")).unwrap();
            fs::create_dir(directory.path().join("staging")).unwrap();
            Self { directory, package: fixture::package("m", "1") }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            fs::write(self.path(name), content).unwrap();
        }

        fn trust(&self, name: &str, key: &KeyPair) {
            self.write(&format!("keys.d/{name}"), key.pk.to_box().unwrap().into_string());
        }

        fn sign(&self, key: &KeyPair) -> String {
            minisign::sign(None, &key.sk, &self.package[..], Some("any comment"), None)
                .unwrap()
                .into_string()
        }

        fn keys(&self) -> Result<Keys, SignatureError> {
            Keys::load(&self.path("keys.d"))
        }

        /// Checks the package as an installation does: in one pass with unpacking it.
        fn check(&self) -> Result<SignatureStatus, SignatureError> {
            let keys = self.keys()?;
            let sidecars = Sidecars::read(&self.path(NAME))?;
            let mut reader = sidecars.verifier(&keys, &self.package[..])?;
            let staging = tempfile::tempdir_in(self.path("staging")).unwrap();
            let limits = Limits::for_size(Bytes::mib(1));
            let unpacked =
                unpack(&mut reader, &limits, staging.path(), Durability::Synced).unwrap();
            reader.finish(unpacked.package_digest)
        }
    }

    fn key() -> KeyPair {
        KeyPair::generate_unencrypted_keypair().unwrap()
    }

    fn id(key: &KeyPair) -> KeyId {
        KeyId(key.pk.keynum().try_into().unwrap())
    }

    #[test]
    fn without_sidecars_and_keys_a_package_is_unsigned() {
        let drop = Drop::new();
        assert_eq!(drop.check().unwrap(), SignatureStatus::Absent);
        assert!(Keys::load(&drop.path("missing")).unwrap().is_empty());
    }

    #[test]
    fn a_signature_by_any_configured_key_holds() {
        let drop = Drop::new();
        let (old, new) = (key(), key());
        drop.trust("old.pub", &old);
        drop.trust("new.pub", &new);
        drop.trust("copy-of-new.pub", &new);
        assert!(!drop.keys().unwrap().is_empty());
        for signer in [&old, &new] {
            drop.write(&format!("{NAME}.minisig"), drop.sign(signer));
            assert_eq!(drop.check().unwrap(), SignatureStatus::Valid(id(signer)));
        }
        // Revoked.
        fs::remove_file(drop.path("keys.d/old.pub")).unwrap();
        drop.write(&format!("{NAME}.minisig"), drop.sign(&old));
        assert!(
            matches!(drop.check(), Err(SignatureError::UnknownKey(found)) if found == id(&old))
        );
    }

    #[test]
    fn a_configured_key_makes_a_signature_required() {
        let drop = Drop::new();
        drop.trust("a.pub", &key());
        assert!(matches!(drop.check(), Err(SignatureError::Missing)));
    }

    #[test]
    fn a_signature_that_nobody_can_check_is_reported() {
        let drop = Drop::new();
        drop.write(&format!("{NAME}.minisig"), drop.sign(&key()));
        assert_eq!(drop.check().unwrap(), SignatureStatus::Unchecked);
    }

    #[test]
    fn a_signature_of_other_bytes_is_refused() {
        let mut drop = Drop::new();
        let key = key();
        drop.trust("a.pub", &key);
        let signature = drop.sign(&key);
        drop.write(&format!("{NAME}.minisig"), &signature);
        drop.package = fixture::package("m", "2");
        assert!(matches!(drop.check(), Err(SignatureError::Invalid(found)) if found == id(&key)));
        // The comment is signed too.
        drop.package = fixture::package("m", "1");
        drop.write(&format!("{NAME}.minisig"), signature.replace("any comment", "new comment"));
        assert!(matches!(drop.check(), Err(SignatureError::Invalid(_))));
    }

    #[test]
    fn a_package_that_was_not_read_to_its_end_is_not_vouched_for() {
        let drop = Drop::new();
        let key = key();
        drop.trust("a.pub", &key);
        drop.write(&format!("{NAME}.minisig"), drop.sign(&key));
        let (keys, sidecars) = (drop.keys().unwrap(), Sidecars::read(&drop.path(NAME)).unwrap());
        let mut reader = sidecars.verifier(&keys, &drop.package[..]).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        let digest = Digest::of(&drop.package);
        assert!(matches!(reader.finish(digest), Err(SignatureError::Invalid(_))));
    }

    #[test]
    fn a_legacy_signature_is_refused() {
        let drop = Drop::new();
        let key = key();
        drop.trust("a.pub", &key);
        let signature = drop.sign(&key);
        let encoded = signature.lines().nth(1).unwrap();
        let mut bytes = STANDARD.decode(encoded).unwrap();
        bytes[..2].copy_from_slice(b"Ed");
        drop.write(&format!("{NAME}.minisig"), signature.replace(encoded, &STANDARD.encode(bytes)));
        assert!(matches!(drop.check(), Err(SignatureError::Legacy)));
    }

    #[test]
    fn a_sum_must_be_of_this_package_under_its_name() {
        let drop = Drop::new();
        let digest = Digest::of(&drop.package);
        for good in [
            format!("{digest}  {NAME}\n"),
            format!("{digest} *{NAME}\n"),
            format!("{digest}  {NAME}"),
        ] {
            drop.write(&format!("{NAME}.sha256"), good);
            assert_eq!(drop.check().unwrap(), SignatureStatus::Absent);
        }
        let other = Digest::of(b"other");
        drop.write(&format!("{NAME}.sha256"), format!("{other}  {NAME}\n"));
        assert!(matches!(
            drop.check(),
            Err(SignatureError::WrongDigest { expected, found })
                if expected == other && found == digest
        ));
        for bad in [
            String::new(),
            digest.to_string(),
            format!("{digest} {NAME}\n"),
            format!("{digest}  other\n"),
            format!("{digest}  ./{NAME}\n"),
            format!("{digest}  {NAME}\n\n"),
            format!("{digest}  {NAME}\r\n"),
            format!("{digest}  {NAME}\n{digest}  {NAME}\n"),
            format!("{}  {NAME}\n", digest.short()),
        ] {
            drop.write(&format!("{NAME}.sha256"), &bad);
            assert!(matches!(drop.check(), Err(SignatureError::Malformed { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_sidecar_is_a_small_regular_file_of_text() {
        let drop = Drop::new();
        let sidecar = drop.path(&format!("{NAME}.minisig"));
        let refusal = || drop.check().unwrap_err().to_string();
        for (bad, reason) in [
            (vec![b'x'; 4096], "not a minisign signature"),
            (vec![b'x'; 4097], "longer than 4096 bytes"),
            (vec![0xff], "not text"),
            (drop.sign(&key()).into_bytes()[..200].to_vec(), "not a minisign signature"),
        ] {
            fs::write(&sidecar, bad).unwrap();
            assert!(refusal().contains(reason), "{} lacks {reason}", refusal());
        }
        fs::remove_file(&sidecar).unwrap();
        mkfifo(&sidecar, Mode::S_IRWXU).unwrap();
        assert!(refusal().contains("not a regular file"), "{}", refusal());
        fs::remove_file(&sidecar).unwrap();
        fs::create_dir(&sidecar).unwrap();
        assert!(refusal().contains("not a regular file"), "{}", refusal());
        fs::remove_dir(&sidecar).unwrap();
        drop.write("elsewhere", "secret");
        symlink(drop.path("elsewhere"), &sidecar).unwrap();
        assert!(refusal().contains("cannot read"), "{}", refusal());
    }

    #[test]
    fn a_key_that_cannot_be_read_is_named_and_not_skipped() {
        let drop = Drop::new();
        drop.trust("good.pub", &key());
        drop.write("keys.d/README", "only *.pub files are keys");
        assert_eq!(drop.keys().unwrap().0.len(), 1);
        let bad = drop.path("keys.d/bad.pub");
        let error = || drop.keys().unwrap_err().to_string();
        fs::write(&bad, "untrusted comment: no key\nRWQ=\n").unwrap();
        assert!(error().contains("bad.pub: not a minisign public key"), "{}", error());
        fs::remove_file(&bad).unwrap();
        symlink("missing", &bad).unwrap();
        assert!(error().ends_with("keys.d/bad.pub"), "{}", error());
        fs::remove_file(&bad).unwrap();
        fs::create_dir(&bad).unwrap();
        assert!(error().contains("not a regular file"), "{}", error());
    }

    #[test]
    fn a_key_signs_the_ids_that_its_file_names_and_any_other_line_refuses_the_file() {
        let drop = Drop::new();
        let key = key();
        let text = key.pk.to_box().unwrap().into_string();
        let text = text.trim_end();
        let id = |id: &str| id.parse::<ModelId>().unwrap();
        let valid = SignatureStatus::Valid(self::id(&key));
        for (lines, signs, does_not) in [
            ("", &["a", "acme-1"][..], &[][..]),
            ("\nprefix: acme-\n", &["acme-1", "acme-"], &["acme", "Acme-1", "xacme-1"]),
            ("\n\nprefix: b\nprefix: acme\n\n", &["acme", "b", "bb"], &["a"]),
        ] {
            drop.write("keys.d/a.pub", format!("{text}{lines}"));
            let keys = drop.keys().unwrap();
            for name in signs {
                let signer = keys.signer(valid, &id(name)).unwrap().unwrap();
                assert_eq!((signer.key, &*signer.file), (self::id(&key), "a.pub"));
                assert_eq!(keys.covers(&signer, &id(name)), Some(true), "{name}");
            }
            for name in does_not {
                let error = keys.signer(valid, &id(name)).unwrap_err();
                let said = error.to_string();
                assert!(matches!(error, SignatureError::NotCovered { .. }), "{said}");
                assert!(said.contains("a.pub") && said.contains("acme"), "{said}");
            }
            assert!(keys.signer(SignatureStatus::Absent, &id("x")).unwrap().is_none());
        }
        for bad in [
            "prefix:acme",
            "prefix: ",
            "prefix: *",
            "prefix: acme-*",
            "prefix: a b",
            "prefix: a ",
            "Prefix: a",
            " prefix: a",
            "id: a",
            "# prefix: a",
            "ids: a, b",
            "prefix: -a",
        ] {
            drop.write("keys.d/a.pub", format!("{text}\n{bad}\n"));
            let error = drop.keys().unwrap_err().to_string();
            assert!(error.contains("a.pub: line 3: expected \"prefix: \""), "{bad}: {error}");
            let (keys, errors) = Keys::load_each(&drop.path("keys.d")).unwrap();
            assert!(keys.is_empty() && errors.contains_key("a.pub"), "{bad}");
        }
        // Twice, with different rights, is a mistake.
        drop.write("keys.d/a.pub", format!("{text}\nprefix: a\n"));
        drop.write("keys.d/b.pub", text);
        let error = drop.keys().unwrap_err().to_string();
        assert!(
            error.contains("b.pub: the same key stands in a.pub, with other prefixes"),
            "{error}"
        );
    }

    #[test]
    fn two_keys_under_one_identifier_are_refused() {
        let drop = Drop::new();
        let (one, two) = (key(), key());
        drop.trust("one.pub", &one);
        let mut forged = two.pk.to_bytes();
        forged[2..10].copy_from_slice(one.pk.keynum());
        let text = format!("untrusted comment: forged\n{}\n", STANDARD.encode(forged));
        drop.write("keys.d/two.pub", text);
        let error = drop.keys().unwrap_err().to_string();
        assert!(error.contains(&format!("another key has the identifier {}", id(&one))), "{error}");
    }

    #[test]
    fn a_key_identifier_is_printed_as_minisign_prints_it() {
        // The example key of minisign's documentation, and the identifier that minisign shows for
        // it.
        let key = "untrusted comment: minisign public key E7620F1842B4E81F\n\
                   RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
        let id = parse_key(key, String::new()).unwrap().0;
        assert_eq!(id.to_string(), "E7620F1842B4E81F");
        assert_eq!(KeyId::try_from(id.to_string()), Ok(id));
        for bad in
            ["", "E7620F1842B4E81", "E7620F1842B4E81f", "+7620F1842B4E81F", "E7620F1842B4E81FF"]
        {
            assert_eq!(KeyId::try_from(bad.to_owned()), Err(ParseKeyIdError), "{bad}");
        }
    }
}
