//! What vouches for a package from outside: its sidecars, and the keys that this device trusts.
//!
//! Owns the formats of `<file>.sha256` (sha256sum's) and `<file>.minisig` (minisign's, pre-hashed
//! only), and the rule that decides: every sidecar that is present must hold; as soon as any key is
//! configured, a signature by one of the keys is required. It never reads the package itself:
//! [`VerifyingReader`] passes on the bytes that are unpacked, so what was signed and what is
//! installed are the same bytes.
//!
//! Decisions:
//! - A signature is not an error where no key is configured: nobody could check it. It is reported
//!   as [`SignatureStatus::Unchecked`] for the journal, and it must be well-formed.
//! - The trusted comment of a signature is not interpreted. Identity and version stand in the
//!   manifest, which the signature covers; a file name could only repeat or contradict it.
//! - The sum of a `.sha256` file is for the file of that name: another name is a mistake and an
//!   error.
//! - A key is revoked by removing its file, and rotated by adding the new one first.

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

use super::SIDECARS;
use super::digest::Digest;

/// A key has about 120 bytes, a signature about 350, a sum about 200.
const MAX_SIDECAR: u64 = 4096;

/// The identifier of a key pair, as minisign prints it: 16 upper-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

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
    /// The signature does not match the package.
    #[error("the signature by key {0} does not match the package")]
    Invalid(KeyId),
}

/// The public keys that packages may be signed with.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<KeyId, PublicKey>);

impl Keys {
    /// Loads every `*.pub` file of `directory`; a missing directory holds no keys.
    ///
    /// # Errors
    /// When the directory or one key cannot be read: trusting fewer keys than configured,
    /// down to none at all, would drop the requirement of a signature silently.
    pub fn load(directory: &Path) -> Result<Self, SignatureError> {
        let failed = |source| SignatureError::Io { path: directory.to_owned(), source };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.map_err(failed)?,
        };
        let mut keys = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension() != Some(OsStr::new("pub")) {
                continue;
            }
            // Links are followed: who writes this directory decides what is trusted.
            let text = read_small(&path, OFlag::empty())?.ok_or_else(|| SignatureError::Io {
                path: path.clone(),
                source: io::ErrorKind::NotFound.into(),
            })?;
            let (id, key) = parse_key(&text).ok_or_else(|| {
                malformed(&path, "not a minisign public key of two lines".to_owned())
            })?;
            if keys.insert(id, key.clone()).is_some_and(|other| other != key) {
                return Err(malformed(&path, format!("another key has the identifier {id} too")));
            }
        }
        Ok(Self(keys))
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
                let verifier =
                    key.verify_stream(signature).map_err(|_legacy| SignatureError::Legacy)?;
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
        if let Some(expected) = self.sha256.filter(|expected| *expected != package_digest) {
            return Err(SignatureError::WrongDigest { expected, found: package_digest });
        }
        match self.signature {
            PendingSignature::Absent => Ok(SignatureStatus::Absent),
            PendingSignature::Unchecked => Ok(SignatureStatus::Unchecked),
            PendingSignature::Pending(id, mut verifier) => match verifier.finalize() {
                Ok(()) => Ok(SignatureStatus::Valid(id)),
                Err(_mismatch) => Err(SignatureError::Invalid(id)),
            },
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

fn parse_key(text: &str) -> Option<(KeyId, PublicKey)> {
    Some((KeyId::of_second_line(text)?, PublicKey::decode(text).ok()?))
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
        assert_eq!(parse_key(key).unwrap().0.to_string(), "E7620F1842B4E81F");
    }
}
