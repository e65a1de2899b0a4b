//! Tests of `signature`.

use std::os::unix::fs::symlink;

use minisign::KeyPair;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;
use crate::base::units::Bytes;
use crate::package::signer::ParseKeyIdError;
use crate::package::{Durability, UnpackLimits, fixture, unpack};

const NAME: &str = "m-1.model.tar.zst";

/// Directory with keys, and a package with its sidecars.
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

    fn keys(&self) -> Result<TrustedKeys, SignatureError> {
        TrustedKeys::load(&self.path("keys.d"))
    }

    /// Verifies the package like an installation, in one pass with unpacking.
    fn check(&self) -> Result<SignatureStatus, SignatureError> {
        let keys = self.keys()?;
        let sidecars = Sidecars::read(&self.path(NAME))?;
        let mut reader = sidecars.verifier(&keys, &self.package[..])?;
        let staging = tempfile::tempdir_in(self.path("staging")).unwrap();
        let limits = UnpackLimits::for_size(Bytes::mib(1));
        let unpacked = unpack(&mut reader, &limits, staging.path(), Durability::Synced).unwrap();
        reader.finish(unpacked.package_digest)
    }
}

fn key() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn id(key: &KeyPair) -> KeyId {
    let number = u64::from_le_bytes(key.pk.keynum().try_into().unwrap());
    format!("{number:016X}").try_into().unwrap()
}

#[test]
fn package_without_sidecars_and_keys_is_unsigned() {
    let drop = Drop::new();
    assert_eq!(drop.check().unwrap(), SignatureStatus::Absent);
    assert!(TrustedKeys::load(&drop.path("missing")).unwrap().is_empty());
}

#[test]
fn signature_by_any_configured_key_is_valid() {
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
    // Removing the file revokes the key.
    fs::remove_file(drop.path("keys.d/old.pub")).unwrap();
    drop.write(&format!("{NAME}.minisig"), drop.sign(&old));
    assert!(matches!(drop.check(), Err(SignatureError::UnknownKey(found)) if found == id(&old)));
}

#[test]
fn configured_key_makes_signature_mandatory() {
    let drop = Drop::new();
    drop.trust("a.pub", &key());
    assert!(matches!(drop.check(), Err(SignatureError::Missing)));
}

#[test]
fn signature_without_keys_is_reported_unchecked() {
    let drop = Drop::new();
    drop.write(&format!("{NAME}.minisig"), drop.sign(&key()));
    assert_eq!(drop.check().unwrap(), SignatureStatus::Unchecked);
}

#[test]
fn signature_of_other_bytes_is_invalid() {
    let mut drop = Drop::new();
    let key = key();
    drop.trust("a.pub", &key);
    let signature = drop.sign(&key);
    drop.write(&format!("{NAME}.minisig"), &signature);
    drop.package = fixture::package("m", "2");
    assert!(matches!(drop.check(), Err(SignatureError::Invalid(found)) if found == id(&key)));
    // The signature covers the trusted comment too.
    drop.package = fixture::package("m", "1");
    drop.write(&format!("{NAME}.minisig"), signature.replace("any comment", "new comment"));
    assert!(matches!(drop.check(), Err(SignatureError::Invalid(_))));
}

#[test]
fn partially_read_package_is_invalid() {
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
fn checksum_must_match_package_and_name() {
    let drop = Drop::new();
    let digest = Digest::of(&drop.package);
    for good in
        [format!("{digest}  {NAME}\n"), format!("{digest} *{NAME}\n"), format!("{digest}  {NAME}")]
    {
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
fn sidecar_must_be_small_regular_text_file() {
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
fn unreadable_key_is_an_error_with_path() {
    let drop = Drop::new();
    drop.trust("good.pub", &key());
    drop.write("keys.d/README", "only *.pub files are keys");
    assert_eq!(drop.keys().unwrap().0.len(), 1);
    let bad = drop.path("keys.d/bad.pub");
    let error = || drop.keys().unwrap_err().to_string();
    fs::write(&bad, "untrusted comment: no key\nRWQ=\n").unwrap();
    assert!(error().contains("bad.pub: it is not a minisign public key"), "{}", error());
    fs::remove_file(&bad).unwrap();
    symlink("missing", &bad).unwrap();
    assert!(error().ends_with("keys.d/bad.pub"), "{}", error());
    fs::remove_file(&bad).unwrap();
    fs::create_dir(&bad).unwrap();
    assert!(error().contains("not a regular file"), "{}", error());
}

#[test]
fn key_file_restricts_signed_ids() {
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
        let (keys, errors) = TrustedKeys::load_each(&drop.path("keys.d")).unwrap();
        assert!(keys.is_empty() && errors.contains_key("a.pub"), "{bad}");
    }
    // The same key in two files with different prefixes is a mistake.
    drop.write("keys.d/a.pub", format!("{text}\nprefix: a\n"));
    drop.write("keys.d/b.pub", text);
    let error = drop.keys().unwrap_err().to_string();
    assert!(error.contains("b.pub: a.pub contains the same key with other prefixes"), "{error}");
}

#[test]
fn keys_with_same_identifier_are_refused() {
    let drop = Drop::new();
    let (one, two) = (key(), key());
    drop.trust("one.pub", &one);
    let mut forged = two.pk.to_bytes();
    forged[2..10].copy_from_slice(one.pk.keynum());
    let text = format!("untrusted comment: forged\n{}\n", STANDARD.encode(forged));
    drop.write("keys.d/two.pub", text);
    let error = drop.keys().unwrap_err().to_string();
    let expected = format!("another key has the same identifier {}", id(&one));
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn key_identifier_matches_minisign_output() {
    // The example key of minisign's documentation, and the identifier that minisign prints for
    // it.
    let key = "untrusted comment: minisign public key E7620F1842B4E81F\n\
                   RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    let id = parse_key(key, String::new()).unwrap().0;
    assert_eq!(id.to_string(), "E7620F1842B4E81F");
    assert_eq!(KeyId::try_from(id.to_string()), Ok(id));
    for bad in ["", "E7620F1842B4E81", "E7620F1842B4E81f", "+7620F1842B4E81F", "E7620F1842B4E81FF"]
    {
        assert_eq!(KeyId::try_from(bad.to_owned()), Err(ParseKeyIdError), "{bad}");
    }
}
