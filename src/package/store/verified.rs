//! Stages packages in the right order: with keys, the signature is verified before anything of a
//! package is parsed.
//!
//! A package is hashed first. A stream is written to a nameless file meanwhile, because it cannot
//! be read twice. The same handle is then read again and unpacked, and the digest of this second
//! pass is compared with that of the first. So the verified bytes and the installed bytes are the
//! same.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::Instant;

use super::super::digest::{Digest, HashingReader};
use super::super::signature::{
    Sidecars, SignatureError, SignatureStatus, TrustedKeys, VerifyingReader,
};
use super::super::unpack::{PackageHeader, UnpackError};
use super::super::unpack_limits::UnpackLimits;
use super::free_space::FreeSpace;
use super::{Staged, Store, StoreError};
use crate::base::units::Bytes;
use crate::files::{ReadOnce, WriteOnce};

/// Bytes read at a time.
const BUFFER: usize = 1 << 16;
/// Bytes of a stream for which free space is checked at a time.
const SPACE_STEP: u64 = 8 << 20;
/// Largest file that stays in the page cache between the two passes.
const CACHED: u64 = 64 << 20;

/// The bytes of a package, from a file or a stream.
#[derive(Debug)]
pub enum PackageBytes<R> {
    /// A regular file, from its present position on.
    File(File),
    /// A stream that can be read once.
    Stream(R),
}

impl PackageBytes<File> {
    /// Returns the bytes of `file`.
    pub fn of(file: File) -> Self {
        Self::File(file)
    }
}

impl Store {
    /// Stages a package as [`Store::stage_if`] does, after `sidecars` and `keys` have vouched for
    /// it.
    ///
    /// Without keys the package is read once. With keys it is read twice, and nothing of it is
    /// decompressed or parsed before its signature was verified. A stream is then written to a
    /// private, nameless file in staging, which is deleted with its handle. Its size is bounded by
    /// [`UnpackLimits::max_compressed`] and the free space.
    ///
    /// # Errors
    /// Those of [`Store::stage_if`], and when a sidecar does not match the package.
    pub fn stage_verified<E>(
        &self,
        source: PackageBytes<impl Read>,
        sidecars: &Sidecars,
        keys: &TrustedKeys,
        limits: &UnpackLimits,
        approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), E>,
    ) -> Result<(Staged, SignatureStatus), E>
    where
        E: From<UnpackError> + From<SignatureError> + From<StoreError>,
    {
        if keys.is_empty() {
            return match source {
                PackageBytes::File(file) => {
                    self.stage_unsigned(ReadOnce::new(file), sidecars, keys, limits, approve)
                }
                PackageBytes::Stream(stream) => {
                    self.stage_unsigned(stream, sidecars, keys, limits, approve)
                }
            };
        }
        let (mut file, signature, digest) = match source {
            PackageBytes::File(file) => {
                let (signature, digest) = verify_file::<E>(&file, sidecars, keys, limits)?;
                (file, signature, digest)
            }
            PackageBytes::Stream(stream) => self.spool::<E>(stream, sidecars, keys, limits)?,
        };
        file.rewind().map_err(UnpackError::Source)?;
        let staged = self.stage_if(ReadOnce::new(file), limits, approve)?;
        same(&staged, digest)?;
        Ok((staged, signature))
    }

    fn stage_unsigned<E: From<UnpackError> + From<SignatureError>>(
        &self,
        source: impl Read,
        sidecars: &Sidecars,
        keys: &TrustedKeys,
        limits: &UnpackLimits,
        approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), E>,
    ) -> Result<(Staged, SignatureStatus), E> {
        let mut reader = sidecars.verifier(keys, source)?;
        let staged = self.stage_if(&mut reader, limits, approve)?;
        let signature = reader.finish(staged.unpacked().package_digest)?;
        Ok((staged, signature))
    }

    /// Writes `stream` to a file without a name and verifies it.
    fn spool<E: From<UnpackError> + From<SignatureError> + From<StoreError>>(
        &self,
        stream: impl Read,
        sidecars: &Sidecars,
        keys: &TrustedKeys,
        limits: &UnpackLimits,
    ) -> Result<(File, SignatureStatus, Digest), E> {
        // Fail before anything is written if the sidecars can never match.
        let reader = sidecars.verifier(keys, stream)?;
        let staging = self.directory.join("staging");
        let failed =
            |operation, source| UnpackError::Io { operation, path: staging.clone(), source };
        let spool =
            tempfile::tempfile_in(&staging).map_err(|source| failed("create a file in", source))?;
        let handle = spool.try_clone().map_err(|source| failed("open a file in", source))?;
        let mut out = WriteOnce::volatile(handle);
        let (mut written, mut allowed) = (0, 0);
        let (signature, digest) = verify(reader, limits, |part| -> Result<(), E> {
            written += part.len() as u64;
            if written > allowed {
                allowed = written + SPACE_STEP;
                let mut space = FreeSpace::of(&staging).map_err(StoreError::from)?;
                // The bytes written already are not free any more.
                space.free = Bytes(space.free.0.saturating_add(written));
                self.check_space(space, [allowed].into_iter())?;
            }
            Ok(out.write_all(part).map_err(|source| failed("write a file in", source))?)
        })?;
        Ok((spool, signature, digest))
    }
}

/// Checks that the unpacked package is the verified one.
fn same(staged: &Staged, verified: Digest) -> Result<(), SignatureError> {
    match staged.unpacked().package_digest == verified {
        true => Ok(()),
        false => Err(SignatureError::Changed),
    }
}

fn verify_file<E: From<UnpackError> + From<SignatureError>>(
    file: &File,
    sidecars: &Sidecars,
    keys: &TrustedKeys,
    limits: &UnpackLimits,
) -> Result<(SignatureStatus, Digest), E> {
    let length = file.metadata().map_err(UnpackError::Source)?.len();
    if length <= CACHED {
        // Read a small file without `ReadOnce`, which would drop it from the page cache before the
        // second pass.
        return verify(sidecars.verifier(keys, file)?, limits, |_part| Ok(()));
    }
    let handle = file.try_clone().map_err(UnpackError::Source)?;
    verify(sidecars.verifier(keys, ReadOnce::new(handle))?, limits, |_part| Ok(()))
}

/// Reads `reader` to its end, passes each part to `keep`, and verifies the signature.
fn verify<E: From<UnpackError> + From<SignatureError>>(
    reader: VerifyingReader<'_, impl Read>,
    limits: &UnpackLimits,
    mut keep: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(SignatureStatus, Digest), E> {
    let started = Instant::now();
    let mut reader = HashingReader::new(reader);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Source(error).into()),
        };
        if reader.bytes_read() > limits.max_compressed {
            let reason =
                format!("the package is longer than the limit of {} bytes", limits.max_compressed);
            return Err(UnpackError::Refused { member: None, reason }.into());
        }
        if started.elapsed() > limits.time {
            return Err(UnpackError::TooSlow { limit: limits.time }.into());
        }
        keep(&buffer[..read])?;
    }
    let (reader, digest) = reader.into_parts();
    Ok((reader.finish(digest)?, digest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use minisign::KeyPair;
    use tempfile::TempDir;

    use super::*;
    use crate::package::fixture::package;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error(transparent)]
        Unpack(#[from] UnpackError),
        #[error(transparent)]
        Signature(#[from] SignatureError),
        #[error(transparent)]
        Store(#[from] StoreError),
    }

    struct Place {
        root: TempDir,
        store: Store,
        key: KeyPair,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let store = Store::volatile(root.path()).unwrap();
            let key = KeyPair::generate_unencrypted_keypair().unwrap();
            let keys = root.path().join("keys.d");
            fs::create_dir(&keys).unwrap();
            fs::write(keys.join("a.pub"), key.pk.to_box().unwrap().into_string()).unwrap();
            Self { root, store, key }
        }

        fn sidecars(&self, signed: &[u8]) -> Sidecars {
            let signature = minisign::sign(None, &self.key.sk, signed, None, None).unwrap();
            Sidecars::parse(Path::new("m"), None, Some(&signature.into_string())).unwrap()
        }

        fn stage(
            &self,
            source: PackageBytes<impl Read>,
            sidecars: &Sidecars,
            limits: &UnpackLimits,
            approve: impl FnOnce(&PackageHeader<'_>) -> Result<(), Failed>,
        ) -> Result<SignatureStatus, Failed> {
            let keys = TrustedKeys::load(&self.root.path().join("keys.d")).unwrap();
            let staged = self.store.stage_verified(source, sidecars, &keys, limits, approve);
            let status = staged.map(|(_staged, status)| status);
            assert_eq!(fs::read_dir(self.root.path().join("staging")).unwrap().count(), 0);
            status
        }

        /// Returns a file of `content`, positioned at its beginning.
        fn file(&self, content: &[u8]) -> File {
            let path = self.root.path().join("package");
            fs::write(&path, content).unwrap();
            File::options().read(true).write(true).open(path).unwrap()
        }
    }

    fn limits() -> UnpackLimits {
        UnpackLimits::for_size(Bytes::mib(1))
    }

    #[test]
    fn signed_package_is_staged_from_file_and_stream() {
        let place = Place::new();
        let package = package("m", "1");
        let sidecars = place.sidecars(&package);
        let file = PackageBytes::of(place.file(&package));
        let valid = |status| matches!(status, Ok(SignatureStatus::Valid(_)));
        assert!(valid(place.stage(file, &sidecars, &limits(), |_| Ok(()))));
        let stream = PackageBytes::Stream(&package[..]);
        assert!(valid(place.stage(stream, &sidecars, &limits(), |_| Ok(()))));
    }

    #[test]
    fn package_with_invalid_signature_is_not_parsed() {
        let place = Place::new();
        let sidecars = place.sidecars(b"something else");
        let good = package("m", "1");
        for content in [&good[..], b"no zstd frame", &good[..good.len() / 2]] {
            let never = |_: &PackageHeader<'_>| -> Result<(), Failed> { panic!("it was parsed") };
            let file = PackageBytes::of(place.file(content));
            let error = place.stage(file, &sidecars, &limits(), never).unwrap_err();
            assert!(matches!(error, Failed::Signature(SignatureError::Invalid(_))), "{error:?}");
            let stream = PackageBytes::Stream(content);
            let error = place.stage(stream, &sidecars, &limits(), never).unwrap_err();
            assert!(matches!(error, Failed::Signature(SignatureError::Invalid(_))), "{error:?}");
        }
    }

    #[test]
    fn missing_signature_is_refused_before_reading() {
        struct Unreadable;
        impl Read for Unreadable {
            fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
                panic!("it was read");
            }
        }
        let place = Place::new();
        let none = Sidecars::parse(Path::new("m"), None, None).unwrap();
        let stream = PackageBytes::Stream(Unreadable);
        let error = place.stage(stream, &none, &limits(), |_| Ok(())).unwrap_err();
        assert!(matches!(error, Failed::Signature(SignatureError::Missing)), "{error:?}");
    }

    #[test]
    fn stream_beyond_size_limit_is_refused() {
        let place = Place::new();
        let sidecars = place.sidecars(b"");
        let stream = PackageBytes::Stream(io::repeat(7));
        let error = place.stage(stream, &sidecars, &limits(), |_| Ok(())).unwrap_err();
        assert!(matches!(error, Failed::Unpack(UnpackError::Refused { .. })), "{error:?}");
        assert!(error.to_string().contains("longer than the limit"), "{error}");
    }

    #[test]
    fn file_changed_after_verification_is_refused() {
        let place = Place::new();
        let (signed, other) = (package("m", "1"), package("n", "1"));
        let sidecars = place.sidecars(&signed);
        let file = place.file(&signed);
        let writer = file.try_clone().unwrap();
        // Only the bytes that the decompressor has already read stay of the signed package, because
        // the file is small. The bytes after them are read and hashed in the second pass only.
        let change = |_: &PackageHeader<'_>| {
            writer.write_all_at(&other, signed.len() as u64).unwrap();
            Ok(())
        };
        let error = place.stage(PackageBytes::of(file), &sidecars, &limits(), change).unwrap_err();
        assert!(matches!(error, Failed::Unpack(UnpackError::Refused { .. })), "{error:?}");

        // Another whole package, valid by itself, replaces the verified one.
        let file = place.file(&signed);
        let path = place.root.path().join("package");
        let (first, digest) = {
            let keys = TrustedKeys::load(&place.root.path().join("keys.d")).unwrap();
            let verified: Result<_, Failed> = verify_file(&file, &sidecars, &keys, &limits());
            verified.unwrap()
        };
        assert!(matches!(first, SignatureStatus::Valid(_)));
        fs::write(&path, &other).unwrap();
        let mut file = file;
        file.rewind().unwrap();
        let staged = place.store.stage(ReadOnce::new(file), &limits()).unwrap();
        let compared: Result<(), SignatureError> = same(&staged, digest);
        assert!(matches!(compared, Err(SignatureError::Changed)), "{compared:?}");
    }
}
