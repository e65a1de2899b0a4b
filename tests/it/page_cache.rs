//! Measures with util-linux's `fincore` how much of a model stays in the page cache after it is
//! installed, checked, loaded and unloaded. The page cache counts as memory of the service.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells figures"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use caxton::base::units::Bytes;
use caxton::engine::{EngineOptions, Precision};
use caxton::files::{self, ReadOnce};
use caxton::models::WorkerError;
use caxton::models::residency::load;
use caxton::package::{CleanupRule, Origin, Quota, Store, UnpackLimits, WEIGHTS};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::support::skipped;

/// Bytes of a model's files that may stay: the ends of pages, and the small files that are read
/// whole.
const RESIDUE: u64 = 4 << 20;

/// Returns the bytes of `files` in the page cache.
fn cached(files: &[PathBuf]) -> u64 {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .args(files)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|child| child.unwrap().path()).collect()
}

#[test]
fn page_cache_is_freed_after_install_verify_unload() {
    const TEST: &str = "page_cache_is_freed_after_install_verify_unload";
    if Command::new("fincore").arg("--version").output().is_err() {
        return skipped(TEST, "fincore of util-linux");
    }
    let place = tempfile::tempdir().unwrap();
    if statfs(place.path()).unwrap().filesystem_type() == TMPFS_MAGIC {
        return skipped(TEST, "a temporary directory on a disk");
    }
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("bundled-models/bundled-mini-1.0.0.model.tar.zst");
    let package = place.path().join("package");
    fs::copy(bundled, &package).unwrap();
    // The kernel cannot drop pages that are not written to disk yet.
    File::open(&package).unwrap().sync_all().unwrap();
    let source = || ReadOnce::new(files::open_regular(&package).unwrap());

    let (store, _damaged) = Store::open(place.path()).unwrap();
    let size = Bytes::mib(1024);
    let quota = Quota { max_size: size, max_models: 1, cleanup: CleanupRule::Manual };
    let staged = store.stage(source(), &UnpackLimits::for_size(size)).unwrap();
    let key = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
    let installed = files_of(&place.path().join("models").join(key.to_string()));
    let all: Vec<PathBuf> = installed.iter().cloned().chain([package.clone()]).collect();
    let left = |what: &str| {
        let bytes = cached(&all);
        eprintln!("{what}: {bytes} bytes left in the page cache");
        bytes
    };
    assert!(left("installed") <= RESIDUE);

    store.verify(&key, |_bytes| {}).unwrap();
    assert!(left("verified") <= RESIDUE);

    let options = EngineOptions { threads: 2, batch_tokens: 512, precision: Precision::Auto };
    let (_, model) = load::load_from::<WorkerError>(&store, &key, options).unwrap();
    let table = model.embedder.mapped_bytes();
    assert!(left("loaded") <= table + RESIDUE);

    // Use one word in every page, so that the whole table is read.
    let words = u32::try_from(model.tokenizer.vocabulary_size()).unwrap();
    let step = usize::try_from(u64::from(words) * 4096 / table).unwrap().max(1);
    let ids: Vec<u32> = (0..words).step_by(step).collect();
    for text in ids.chunks(128) {
        model.embedder.embed(&[text]).unwrap();
    }
    let weights: Vec<PathBuf> =
        installed.iter().filter(|path| path.ends_with(WEIGHTS)).cloned().collect();
    assert!(cached(&weights) >= table);
    store.verify(&key, |_bytes| {}).unwrap();
    assert!(left("verified while in use") <= table + RESIDUE);
    assert!(cached(&weights) >= table, "mapped pages left the page cache");

    drop(model);
    assert!(left("unloaded") <= RESIDUE);
}
