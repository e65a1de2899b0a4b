//! Verifies sidecars of a package: its checksum, and its signature by a key that this device
//! trusts.
//!
//! The formats are `<file>.sha256` (written by sha256sum) and `<file>.minisig` (minisign,
//! pre-hashed only). Every sidecar that is present must match. As soon as a key is configured, a
//! signature by one of the keys is required. This module does not read the package:
//! [`VerifyingReader`] passes on the bytes that the installer reads. With keys, the package is read
//! again to unpack it, and [`Store::stage_verified`](super::Store::stage_verified) compares both
//! passes, so the signed bytes and the installed bytes are the same.
//!
//! Rules:
//! - A signature is not an error if no key is configured, although it cannot be checked. It must be
//!   well-formed, and it is reported as [`SignatureStatus::Unchecked`] for the journal.
//! - The trusted comment of a signature is not interpreted. The signature covers the manifest with
//!   the id and the version; a file name in the comment could only repeat or contradict them.
//! - The digest in a `.sha256` file applies to the file that it names. Another name is an error.
//! - To revoke a key, remove its file. To rotate a key, add the new one first. Entries that a
//!   revoked key signed are disabled: see [`super::trust`].
//! - A key may sign packages of all ids, or only ids with certain prefixes: lines `prefix: TEXT`
//!   after the two lines of the key. They are in the same file as the key, so that the key is never
//!   copied without its restrictions. Any other line makes the file invalid.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature, StreamVerifier};
use nix::fcntl::OFlag;

use super::SIDECARS;
use super::digest::Digest;
use super::manifest::ModelId;
use super::signer::{KeyId, Signer, plain};

/// Maximum size in bytes of a key or a sidecar. A key has about 120 bytes, a signature about 350, a
/// checksum file about 200.
const MAX_SIDECAR: u64 = 4096;

/// Start of a line that restricts a key to some ids.
const PREFIX: &str = "prefix: ";

/// Error of reading keys or sidecars, or of verifying a package.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A key or a sidecar cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A key or a sidecar does not have its format. A sidecar whose copy is in progress also gives
    /// this error.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Description of the fault.
        reason: String,
    },
    /// The digest of the package differs from its `.sha256` file.
    #[error(
        "the package has SHA-256 {found}, but its .sha256 file says {expected}: copy both files \
         again"
    )]
    WrongDigest {
        /// Digest in the `.sha256` file.
        expected: Digest,
        /// Digest of the package.
        found: Digest,
    },
    /// A key is configured, but the `.minisig` file is missing.
    #[error("a signature is required because keys are configured: add the package's .minisig file")]
    Missing,
    /// The signature is by a key that is not configured.
    #[error(
        "the package is signed with key {0}, which is not one of the configured keys: add the key, \
         or sign the package with a configured one"
    )]
    UnknownKey(KeyId),
    /// The signature covers the content itself instead of its hash.
    #[error("the signature is in minisign's legacy format: sign again without -l")]
    Legacy,
    /// The signature does not match the package. A package whose copy is in progress also gives
    /// this error: it is not parsed before its signature is verified, so an early end cannot be
    /// detected.
    #[error(
        "the signature by key {0} does not match the package: copy all of it, or sign it again"
    )]
    Invalid(KeyId),
    /// The verified bytes differ from the unpacked bytes.
    #[error("the package changed while it was read: copy it under another name and rename it")]
    Changed,
    /// The key must not sign packages of this id.
    #[error(
        "the package is signed with key {key}, which may not sign \"{id}\": its file {file} allows \
         ids that begin with {}",
        prefixes.join(", ")
    )]
    NotCovered {
        /// Identifier of the key.
        key: KeyId,
        /// Name of the key file.
        file: String,
        /// Id of the package.
        id: ModelId,
        /// Prefixes of the ids that the key may sign.
        prefixes: Vec<String>,
    },
}

/// Trusted public key.
#[derive(Clone, Debug)]
struct TrustedKey {
    public: PublicKey,
    /// SHA-256 of the algorithm, the identifier and the key.
    fingerprint: Digest,
    /// Name of the key file, in the form that a record keeps.
    file: String,
    /// Prefixes of the ids that the key may sign; empty for any id.
    prefixes: Vec<String>,
}

impl TrustedKey {
    fn covers(&self, id: &ModelId) -> bool {
        let begins = |prefix: &String| id.as_str().starts_with(prefix.as_str());
        self.prefixes.is_empty() || self.prefixes.iter().any(begins)
    }
}

/// Public keys that may sign packages.
#[derive(Clone, Debug, Default)]
pub struct TrustedKeys(BTreeMap<KeyId, TrustedKey>);

/// Usable keys, and an error for each unusable key file, by the name that records contain.
pub(super) type LoadedKeys = (TrustedKeys, BTreeMap<String, SignatureError>);

impl TrustedKeys {
    /// Loads every `*.pub` file of `directory`. A missing directory holds no keys.
    ///
    /// # Errors
    /// When the directory or one key cannot be read. Ignoring an unreadable key would be dangerous:
    /// without any key, packages would silently need no signature.
    pub fn load(directory: &Path) -> Result<Self, SignatureError> {
        let (keys, errors) = Self::load_each(directory)?;
        errors.into_values().next().map_or(Ok(keys), Err)
    }

    /// Loads every usable `*.pub` file of `directory`, in the order of their names.
    ///
    /// # Errors
    /// When the directory exists and cannot be listed.
    pub(super) fn load_each(directory: &Path) -> Result<LoadedKeys, SignatureError> {
        let failed = |source| SignatureError::Io { path: directory.to_owned(), source };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LoadedKeys::default());
            }
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
        // Symbolic links are followed: a writer of this directory decides what is trusted anyway.
        let text = read_small(path, OFlag::empty())?.ok_or_else(|| SignatureError::Io {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let (id, key) = parse_key(&text, file).map_err(|reason| malformed(path, reason))?;
        match self.0.get(&id) {
            None => drop(self.0.insert(id, key)),
            Some(other) if other.fingerprint != key.fingerprint => {
                return Err(malformed(path, format!("another key has the same identifier {id}")));
            }
            Some(other) if other.prefixes != key.prefixes => {
                let reason = format!("{} contains the same key with other prefixes", other.file);
                return Err(malformed(path, reason));
            }
            Some(_same) => {}
        }
        Ok(())
    }

    /// Returns the signer of a package with this id, after its signature was checked with these
    /// keys. Returns `None` if no signature was checked.
    ///
    /// # Errors
    /// When the key must not sign packages of this id.
    pub fn signer(
        &self,
        status: SignatureStatus,
        id: &ModelId,
    ) -> Result<Option<Signer>, SignatureError> {
        let SignatureStatus::Valid(key) = status else { return Ok(None) };
        let trusted = self.0.get(&key).ok_or(SignatureError::UnknownKey(key))?;
        let TrustedKey { fingerprint, file, prefixes, .. } = trusted;
        if !trusted.covers(id) {
            let (file, prefixes) = (file.clone(), prefixes.clone());
            return Err(SignatureError::NotCovered { key, file, id: id.clone(), prefixes });
        }
        Ok(Some(Signer { key, fingerprint: *fingerprint, file: file.clone() }))
    }

    /// Returns whether a key with this fingerprint is configured.
    pub(super) fn contains(&self, fingerprint: Digest) -> bool {
        self.0.values().any(|key| key.fingerprint == fingerprint)
    }

    /// Returns whether the key of `signer` may sign packages of `id`; `None` if it is not among
    /// these keys.
    pub(super) fn covers(&self, signer: &Signer, id: &ModelId) -> Option<bool> {
        let trusted = self.0.get(&signer.key)?;
        (trusted.fingerprint == signer.fingerprint).then(|| trusted.covers(id))
    }

    /// Returns whether no key is configured, so that signatures are not required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Parsed sidecars of a package.
#[derive(Clone)]
pub struct Sidecars {
    sha256: Option<Digest>,
    minisig: Option<(KeyId, Signature)>,
}

impl Sidecars {
    /// Reads `<package_path>.sha256` and `<package_path>.minisig`, if they exist.
    ///
    /// # Errors
    /// When one exists and is not a regular file of at most 4 KiB in its format.
    pub fn read(package_path: &Path) -> Result<Self, SignatureError> {
        let sidecar = |suffix: &str| {
            let mut path = package_path.as_os_str().to_owned();
            path.push(suffix);
            // Other users may be able to write into the drop directory: a symbolic link could point
            // to any file of the device, so links are not followed.
            read_small(&PathBuf::from(path), OFlag::O_NOFOLLOW)
        };
        let [sha256, minisig] = SIDECARS;
        let (sha256, minisig) = (sidecar(sha256)?, sidecar(minisig)?);
        Self::parse(package_path, sha256.as_deref(), minisig.as_deref())
    }

    /// Parses the texts of the `.sha256` and `.minisig` files of the package `package_path`, if
    /// they exist.
    ///
    /// # Errors
    /// When one does not have its format.
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
            let reason = "it is not a minisign signature".to_owned();
            parse_signature(text).ok_or_else(|| wrong(SIDECARS[1], reason))
        });
        Ok(Self { sha256: sha256.transpose()?, minisig: minisig.transpose()? })
    }

    /// Returns the key that the signature names, without a check of the signature.
    pub fn key(&self) -> Option<KeyId> {
        self.minisig.as_ref().map(|(key, _signature)| *key)
    }

    /// Starts the verification. The package must then be read to its end through the returned
    /// reader.
    ///
    /// # Errors
    /// When the verification is already certain to fail, so that the package does not need to be
    /// read.
    pub fn verifier<'a, R: Read>(
        &'a self,
        keys: &'a TrustedKeys,
        source: R,
    ) -> Result<VerifyingReader<'a, R>, SignatureError> {
        let signature = match &self.minisig {
            None if keys.is_empty() => PendingSignature::Absent,
            None => return Err(SignatureError::Missing),
            Some(_) if keys.is_empty() => PendingSignature::Unchecked,
            Some((id, signature)) => {
                let key = keys.0.get(id).ok_or(SignatureError::UnknownKey(*id))?;
                // The identifiers are equal, so only the legacy format remains as a reason to fail.
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

/// Result of checking a package's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureStatus {
    /// The package has no signature, and no key requires one.
    Absent,
    /// The package has a signature, and no key is configured to check it.
    Unchecked,
    /// The package has a valid signature of this key.
    Valid(KeyId),
}

enum PendingSignature<'a> {
    Absent,
    Unchecked,
    Pending(KeyId, Box<StreamVerifier<'a>>),
}

/// Reader that passes a package on and verifies its signature over the passed bytes.
pub struct VerifyingReader<'a, R> {
    source: R,
    sha256: Option<Digest>,
    signature: PendingSignature<'a>,
}

impl<R> VerifyingReader<'_, R> {
    /// Ends the verification. `package_digest` is the digest of all bytes that were read:
    /// [`UnpackedPackage::package_digest`](super::UnpackedPackage::package_digest).
    ///
    /// # Errors
    /// When a sidecar does not match the bytes that were read, also because they were not the whole
    /// package.
    pub fn finish(self, package_digest: Digest) -> Result<SignatureStatus, SignatureError> {
        // Report a mismatch of the signature first: it can mean that the copy is still in progress,
        // and is then retried. A wrong digest would be reported as a permanent error.
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

/// Reads the text of a small regular file; returns `None` if the file does not exist.
fn read_small(path: &Path, flags: OFlag) -> Result<Option<String>, SignatureError> {
    let failed = |source| SignatureError::Io { path: path.to_owned(), source };
    // O_NONBLOCK, because opening a named pipe would wait for its writer.
    let flags = (flags | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(malformed(path, "it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIDECAR + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SIDECAR {
        return Err(malformed(path, format!("it is longer than {MAX_SIDECAR} bytes")));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_bytes| malformed(path, "it is not text".to_owned()))
}

/// Parses one line of sha256sum for the file `name`, in text mode (two spaces) or binary mode (a
/// space and an asterisk).
fn parse_sum(text: &str, name: &str) -> Option<Digest> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let (digest, rest) = line.split_once(' ')?;
    let found = rest.strip_prefix([' ', '*'])?;
    (found == name).then(|| digest.parse().ok())?
}

/// Parses the text of a key file; returns the key or a description of the fault.
fn parse_key(text: &str, file: String) -> Result<(KeyId, TrustedKey), String> {
    let lines = Vec::from_iter(text.lines());
    let key = || {
        let key = lines.get(..2)?.join("\n");
        let bytes = STANDARD.decode(lines.get(1)?).ok()?;
        Some((KeyId::parse_second_line(&key)?, PublicKey::decode(&key).ok()?, Digest::of(&bytes)))
    };
    let (id, public, fingerprint) =
        key().ok_or_else(|| "it is not a minisign public key of two lines".to_owned())?;
    let mut prefixes = Vec::new();
    for (at, line) in lines.iter().enumerate().skip(2).filter(|(_, line)| !line.is_empty()) {
        let prefix = line.strip_prefix(PREFIX).filter(|prefix| prefix.parse::<ModelId>().is_ok());
        let prefix = prefix.ok_or_else(|| {
            let number = at + 1;
            format!(
                "line {number}: expected \"{PREFIX}\" and the beginning of the ids that this key \
                 may sign"
            )
        })?;
        prefixes.push(prefix.to_owned());
    }
    prefixes.sort();
    prefixes.dedup();
    Ok((id, TrustedKey { public, fingerprint, file, prefixes }))
}

fn parse_signature(text: &str) -> Option<(KeyId, Signature)> {
    Some((KeyId::parse_second_line(text)?, Signature::decode(text).ok()?))
}

#[cfg(test)]
mod tests;
