//! Tests of `unpack`.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::package::fixture::{self, Builder, TestMember, package, package_with};
use crate::package::manifest::WEIGHTS;

const SIZE: Bytes = Bytes::mib(1);

/// Fresh staging directory, alone in its parent directory.
struct Staging(TempDir);

impl Staging {
    fn new() -> Self {
        // Prefer tmpfs: these tests sync a thousand files.
        let parent = tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir());
        let parent = parent.unwrap();
        fs::create_dir(parent.path().join("staging")).unwrap();
        Self(parent)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("staging")
    }

    fn names(path: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Checks that only the four files of the fixture were written, and only into staging.
    fn assert_contained(&self) {
        assert_eq!(Self::names(self.0.path()), BTreeSet::from(["staging".to_owned()]));
        let allowed = ["manifest.json", "config.json", "tokenizer.json", "model.safetensors"];
        for name in Self::names(&self.path()) {
            assert!(allowed.contains(&name.as_str()), "{name}");
            assert!(fs::symlink_metadata(self.path().join(name)).unwrap().is_file());
        }
    }
}

fn unpack_with(package: &[u8], limits: &UnpackLimits) -> Result<UnpackedPackage, UnpackError> {
    let staging = Staging::new();
    let result = unpack(package, limits, &staging.path(), Durability::Synced);
    staging.assert_contained();
    result
}

fn unpack_small(package: &[u8]) -> Result<UnpackedPackage, UnpackError> {
    unpack_with(package, &UnpackLimits::for_size(SIZE))
}

/// Returns the member and the message of a rejection.
fn refusal(result: Result<UnpackedPackage, UnpackError>) -> (Option<String>, String) {
    match result {
        Err(UnpackError::Refused { member, reason }) => (member, reason),
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn valid_package_is_unpacked_exactly() {
    let builder = Builder::new("m", "1.0", b"weights");
    let package = builder.compress();
    let staging = Staging::new();
    let unpacked =
        unpack(&package[..], &UnpackLimits::for_size(SIZE), &staging.path(), Durability::Synced)
            .unwrap();
    staging.assert_contained();
    assert_eq!(unpacked.manifest.file_name(), "m-1.0.model.tar.zst");
    assert_eq!(unpacked.manifest_digest, Digest::of(&builder.entries[0].content));
    assert_eq!(unpacked.package_digest, Digest::of(&package));
    assert_eq!(unpacked.package_bytes, package.len() as u64);
    let mut total = 0;
    for (name, entry) in
        ["manifest.json", "config.json", "tokenizer.json", WEIGHTS].iter().zip(builder.entries)
    {
        assert_eq!(fs::read(staging.path().join(name)).unwrap(), entry.content, "{name}");
        total += entry.content.len() as u64;
    }
    assert_eq!(unpacked.unpacked_bytes, total);
}

#[test]
fn contents_around_block_size_are_written() {
    for length in [0, 1, 511, 512, 513, 1024, COPY_BUFFER, COPY_BUFFER + 1] {
        let content: Vec<u8> = (0..=250).cycle().take(length).collect();
        let staging = Staging::new();
        let package = Builder::new("m", "1", &content).compress();
        unpack(&package[..], &UnpackLimits::for_size(SIZE), &staging.path(), Durability::Synced)
            .unwrap();
        assert_eq!(fs::read(staging.path().join(WEIGHTS)).unwrap(), content, "{length} bytes");
    }
}

#[test]
fn every_prefix_is_reported_as_truncated() {
    let package = package("m", "1");
    for length in 0..package.len() {
        match unpack_small(&package[..length]) {
            Err(UnpackError::Truncated { bytes }) => assert_eq!(bytes, length as u64),
            other => panic!("{length} of {} bytes: {other:?}", package.len()),
        }
    }
}

/// Checks that a flipped bit is rejected or does not change the content.
///
/// zstd decodes a few bits to the same content with either value (the window size, padding
/// inside an entropy table). Then the same files are installed, and only a sidecar could detect
/// the change, because it covers the compressed bytes.
#[test]
fn flipped_bit_never_changes_installed_files() {
    let package = package("m", "1");
    let good = unpack_small(&package).unwrap();
    let mut same_content = 0;
    for bit in 0..package.len() * 8 {
        let mut flipped = package.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match unpack_small(&flipped) {
            Err(UnpackError::Refused { .. } | UnpackError::Truncated { .. }) => {}
            Ok(unpacked) if unpacked.manifest_digest == good.manifest_digest => {
                assert_ne!(unpacked.package_digest, good.package_digest);
                same_content += 1;
            }
            other => panic!("bit {bit} flipped: {other:?}"),
        }
    }
    assert!(same_content < 64, "{same_content} bits make no difference");
}

#[test]
fn hostile_archive_error_names_member_and_reason() {
    type Change = fn(&mut Builder);
    fn rename(builder: &mut Builder, name: &str) {
        builder.entries[3].rename(name).seal();
    }
    fn set_type(builder: &mut Builder, typeflag: u8) {
        builder.entries[3].set(156, &[typeflag]).seal();
    }
    let cases: [(Change, Option<&str>, &str); 24] = [
        (|b| rename(b, "../x"), Some("../x"), "one path component"),
        (|b| rename(b, "/etc/passwd"), Some("/etc/passwd"), "one path component"),
        (|b| rename(b, ".."), Some(".."), "one path component"),
        (|b| rename(b, "other"), Some("other"), "where it must have model.safetensors"),
        (|b| rename(b, "MODEL.safetensors"), Some("MODEL.safetensors"), "where it must have"),
        (|b| set_type(b, b'1'), Some(WEIGHTS), "entry type '1'"),
        (|b| set_type(b, b'2'), Some(WEIGHTS), "entry type '2'"),
        (|b| set_type(b, b'3'), Some(WEIGHTS), "entry type '3'"),
        (|b| set_type(b, b'5'), Some(WEIGHTS), "entry type '5'"),
        (|b| b.entries[3].header[148] ^= 1, Some(WEIGHTS), "checksum"),
        (|b| b.entries[3].content[0] ^= 1, Some(WEIGHTS), "SHA-256"),
        (
            |b| {
                let mut pax = TestMember::new("config.json", b"20 path=../x\n");
                pax.set(156, b"x").seal();
                b.entries.insert(1, pax);
            },
            Some("config.json"),
            "entry type 'x'",
        ),
        (|b| b.entries.push(b.entries[1].clone()), Some("config.json"), "does not list this"),
        (|b| b.entries.insert(1, b.entries[1].clone()), Some("config.json"), "where it must"),
        (|b| b.entries.push(TestMember::new("extra", b"x")), Some("extra"), "does not list this"),
        (|b| drop(b.entries.pop()), Some(WEIGHTS), "missing"),
        (|b| drop(b.entries.remove(1)), Some("tokenizer.json"), "must have config.json"),
        (|b| b.entries.swap(1, 2), Some("tokenizer.json"), "must have config.json"),
        (|b| b.entries.swap(0, 1), Some("config.json"), "must have manifest.json"),
        (|b| b.entries.clear(), Some(MANIFEST), "missing"),
        // One byte more than the manifest declares, one byte less, and one byte more than the
        // archive holds.
        (|b| b.entries[3] = TestMember::new(WEIGHTS, b"1234567+"), Some(WEIGHTS), "expected 7"),
        (|b| b.entries[3] = TestMember::new(WEIGHTS, b"123456"), Some(WEIGHTS), "expected 7"),
        (
            |b| {
                b.entries[3].padding.clear();
                b.end.clear();
                b.entries[3].content.pop();
            },
            Some(WEIGHTS),
            "6 bytes, expected 7",
        ),
        (|b| b.end.push(0), None, "bytes follow"),
    ];
    for (index, (change, member, reason)) in cases.into_iter().enumerate() {
        let mut builder = Builder::new("m", "1", b"1234567");
        change(&mut builder);
        let (found, message) = refusal(unpack_small(&builder.compress()));
        assert_eq!(found.as_deref(), member, "case {index}: {message}");
        assert!(message.contains(reason), "case {index}: {message:?} lacks {reason:?}");
    }
}

#[test]
fn invalid_manifest_is_refused_before_writing() {
    let package = package_with("m", "1", |builder| {
        builder.change_manifest(|json| json["surprise\n"] = json!(1));
    });
    let staging = Staging::new();
    let result =
        unpack(&package[..], &UnpackLimits::for_size(SIZE), &staging.path(), Durability::Synced);
    let (member, reason) = refusal(result);
    assert_eq!(member.as_deref(), Some(MANIFEST));
    assert!(reason.starts_with("unknown field `surprise\\n`"), "{reason}");
    assert_eq!(Staging::names(&staging.path()), BTreeSet::new());
}

#[test]
fn unapproved_package_is_neither_written_nor_read_further() {
    struct Counting<'a>(&'a [u8], usize);
    impl Read for Counting<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 += read;
            Ok(read)
        }
    }
    // Use noise, so that the weights make up most of the package.
    let mut noise = Digest::of(b"seed").leading();
    let weights: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.to_be_bytes()[0]
    })
    .take(8 << 20)
    .collect();
    let package = Builder::new("m", "1", &weights).compress();
    let limits = UnpackLimits::for_size(Bytes::mib(16));
    let staging = Staging::new();
    let mut source = Counting(&package, 0);
    let mut announced = None;
    let refusal = |it: &PackageHeader<'_>| {
        announced = Some((it.manifest.clone(), it.manifest_digest, it.config.to_owned()));
        assert_eq!(it.manifest_bytes, it.manifest.to_json().unwrap().len() as u64);
        Err(UnpackError::Source(io::ErrorKind::QuotaExceeded.into()))
    };
    let error =
        unpack_if(&mut source, &limits, &staging.path(), Durability::Synced, refusal).unwrap_err();
    assert!(matches!(&error, UnpackError::Source(_)), "{error:?}");
    assert_eq!(Staging::names(&staging.path()), BTreeSet::new());
    assert!(source.1 < 1 << 20, "{} bytes were read", source.1);
    let (manifest, digest, config) = announced.unwrap();
    assert_eq!(digest, Digest::of(&manifest.to_json().unwrap()));
    assert_eq!((manifest.total_size(), config), ((8 << 20) + 4, b"{}".to_vec()));
}

#[test]
fn config_json_must_be_first() {
    let package = package_with("m", "1", |builder| {
        builder.change_manifest(|json| json["files"].as_array_mut().unwrap().swap(0, 1));
        builder.entries.swap(1, 2);
    });
    let (member, reason) = refusal(unpack_small(&package));
    assert_eq!(member.as_deref(), Some(MANIFEST));
    assert!(reason.contains("config.json must be the first"), "{reason}");
}

#[test]
fn each_limit_is_exact() {
    let package = package("m", "1");
    let good = unpack_small(&package).unwrap();
    let manifest_size = good.unpacked_bytes - good.manifest.total_size();
    let exact = UnpackLimits {
        max_compressed: good.package_bytes,
        max_total: good.unpacked_bytes,
        max_file: 18,
        max_manifest: manifest_size,
        max_members: 4,
        ..UnpackLimits::for_size(SIZE)
    };
    assert_eq!(unpack_with(&package, &exact).unwrap(), good);
    type Case = (fn(&mut UnpackLimits), Option<&'static str>, &'static str);
    let less: [Case; 5] = [
        (|l| l.max_compressed -= 1, None, "compressed"),
        (|l| l.max_total -= 1, None, "unpacked"),
        (|l| l.max_file -= 1, Some(WEIGHTS), "over the limit of 17"),
        (|l| l.max_manifest -= 1, Some(MANIFEST), "over the limit of"),
        (|l| l.max_members -= 1, None, "4 members, over the limit of 3"),
    ];
    for (change, member, reason) in less {
        let mut limits = exact.clone();
        change(&mut limits);
        let (found, message) = refusal(unpack_with(&package, &limits));
        assert_eq!(found.as_deref(), member, "{message}");
        assert!(message.contains(reason), "{message:?} lacks {reason:?}");
    }
}

#[test]
fn slow_unpacking_times_out() {
    let package = package("m", "1");
    let limits = UnpackLimits::for_size(SIZE);
    let start = Instant::now();
    let unpack_after = |elapsed| {
        let mut times = [start].into_iter().chain(std::iter::repeat(start + elapsed));
        let now = move || times.next().unwrap();
        let staging = Staging::new();
        let any = |_: &PackageHeader<'_>| Ok(());
        unpack_timed(&package[..], &limits, &staging.path(), Durability::Synced, any, now)
    };
    assert!(unpack_after(limits.time).is_ok());
    let result = unpack_after(limits.time + Duration::from_nanos(1));
    assert!(
        matches!(result, Err(UnpackError::TooSlow { limit }) if limit == limits.time),
        "{result:?}"
    );
}

#[test]
fn decompression_bomb_is_refused_by_ratio() {
    let bomb = Builder::new("m", "1", &vec![0; 32 << 20]).compress();
    let ratio = (32 << 20) / bomb.len();
    assert!(ratio > 5_000, "zeros shrink {ratio} times");
    let limits = UnpackLimits::for_size(Bytes::mib(64));
    let (member, reason) = refusal(unpack_with(&bomb, &limits));
    assert_eq!(member.as_deref(), Some(WEIGHTS));
    assert!(reason.contains("more than 100 times"), "{reason}");
    assert!(unpack_with(&bomb, &UnpackLimits { max_ratio: u32::MAX, ..limits }).is_ok());
}

#[test]
fn overflowing_size_sum_is_over_the_limit() {
    let package = package_with("m", "1", |builder| {
        builder.change_manifest(|json| {
            let files = json["files"].as_array_mut().unwrap();
            // Only the weights file may have such a large size.
            for file in files.iter_mut().filter(|file| file["path"] == WEIGHTS) {
                file["size"] = json!(u64::MAX);
            }
        });
    });
    let limits = UnpackLimits { max_file: u64::MAX, ..UnpackLimits::for_size(SIZE) };
    let (_, reason) = refusal(unpack_with(&package, &limits));
    assert!(reason.contains("over the limit"), "{reason}");
}

#[test]
fn unwritable_staging_is_an_io_error() {
    let package = package("m", "1");
    let limits = UnpackLimits::for_size(SIZE);
    let operation =
        |staging: &Path| match unpack(&package[..], &limits, staging, Durability::Synced) {
            Err(UnpackError::Io { operation, path, source }) => (operation, path, source.kind()),
            other => panic!("expected an I/O error, found {other:?}"),
        };
    let staging = Staging::new();
    let missing = staging.path().join("missing");
    assert_eq!(operation(&missing), ("create", missing.join(MANIFEST), io::ErrorKind::NotFound));
    // A symbolic link at the path of a file is not followed.
    let outside = staging.0.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    let weights = staging.path().join(WEIGHTS);
    std::os::unix::fs::symlink(&outside, &weights).unwrap();
    assert_eq!(operation(&staging.path()), ("create", weights, io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
}

#[test]
fn failing_source_is_a_source_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let package = package("m", "1");
    for length in [0, 100, package.len()] {
        let source = package[..length].chain(Failing);
        let staging = Staging::new();
        match unpack(source, &UnpackLimits::for_size(SIZE), &staging.path(), Durability::Synced) {
            Err(UnpackError::Source(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
            other => panic!("expected an error of the source, found {other:?}"),
        }
    }
}

#[test]
fn source_of_single_bytes_is_read() {
    struct Trickle<'a>(&'a [u8]);
    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }
    let package = package("m", "1");
    let staging = Staging::new();
    let source = Trickle(&package);
    let unpacked =
        unpack(source, &UnpackLimits::for_size(SIZE), &staging.path(), Durability::Synced).unwrap();
    assert_eq!(unpacked.package_digest, Digest::of(&package));
}

#[test]
fn tar_and_zstd_package_is_unpacked() {
    // The package was made by tests/fuzz/seeds.
    let package = include_bytes!("../../../tests/fuzz/corpus/package/valid.tar.zst");
    assert_eq!(unpack_small(package).unwrap().manifest.id.as_str(), "seed");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_and_stay_in_staging(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(unpack_small(&bytes).is_err());
        prop_assert!(unpack_small(&fixture::compress(&bytes)).is_err());
    }

    /// Checks that edits of headers and contents with recomputed checksums stay in staging, and
    /// that accepted files have the digests of the manifest.
    #[test]
    fn edited_archive_stays_in_staging_and_matches_digests(
        edits in proptest::collection::vec((0..4_usize, 0..600_usize, any::<u8>()), 1..8),
    ) {
        let mut builder = Builder::new("m", "1", b"weights");
        for (entry, offset, byte) in edits {
            let entry = &mut builder.entries[entry];
            match offset.checked_sub(entry.header.len()) {
                None => entry.header[offset] = byte,
                Some(offset) => {
                    let offset = offset % entry.content.len();
                    entry.content[offset] = byte;
                }
            }
            entry.seal();
        }
        if let Ok(unpacked) = unpack_small(&builder.compress()) {
            for (file, entry) in unpacked.manifest.files.iter().zip(&builder.entries[1..]) {
                prop_assert_eq!(file.sha256, Digest::of(&entry.content));
            }
        }
    }
}
