//! Attack: the unpacking of a package kills the daemon. The next starts must not repeat it without
//! end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use caxton::base::units::Bytes;
use caxton::package::{
    Digest, Durability, Manifest, PackageContents, UnpackLimits, WEIGHTS, Weights, unpack,
    write_package,
};
use caxton::telemetry::log::Message;
use notify::Watcher as _;
use serde_json::json;

use crate::support::packages::{ask, dropped, file_name, stored, until_quarantined};
use crate::support::{BOUND, Root, pack};

/// Size of weights that take so long to unpack that the test can kill the daemon meanwhile.
const WEIGHT_BYTES: usize = 48 << 20;

/// Returns a package of a model whose weights are noise.
fn large(id: &str) -> Vec<u8> {
    let small = pack("tiny-bert-mean", id, "1");
    let place = tempfile::tempdir().unwrap();
    let limits = UnpackLimits::for_size(Bytes::mib(64));
    let unpacked = unpack(small.as_slice(), &limits, place.path(), Durability::Volatile).unwrap();
    let mut noise = 1_u64;
    let weights = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.to_be_bytes()[0]
    });
    let weights: Vec<u8> = weights.take(WEIGHT_BYTES).collect();
    let mut manifest: Manifest = unpacked.manifest;
    let member = manifest.files.iter_mut().find(|member| member.path.as_str() == WEIGHTS).unwrap();
    (member.size, member.sha256) = (WEIGHT_BYTES as u64, Digest::of(&weights));
    let read = |name: &str| fs::read(place.path().join(name)).unwrap();
    let contents = PackageContents {
        config: read("config.json"),
        tokenizer: read("tokenizer.json"),
        weights: Weights::from(weights),
        dense: Vec::new(),
    };
    let mut package = Vec::new();
    write_package(&manifest, &contents, &|_, _| {}, &mut package).unwrap();
    package
}

/// Sends a message when the store in `state` begins to unpack a package.
fn unpacking(state: &Path) -> (mpsc::Receiver<()>, notify::RecommendedWatcher) {
    let (sender, begun) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // The list of attempts gets this name by a rename, when it is complete.
        let is_mark = |path: &PathBuf| path.ends_with("unpacking.json");
        let event = event.unwrap();
        // Ignore reads of the list.
        if !event.kind.is_access() && event.paths.iter().any(is_mark) {
            // The receiver may be gone when the test has continued.
            sender.send(()).unwrap_or_default();
        }
    })
    .unwrap();
    watcher.watch(state, notify::RecursiveMode::NonRecursive).unwrap();
    (begun, watcher)
}

#[test]
fn package_is_quarantined_after_two_unpacking_crashes() {
    let package = large("m");
    let mut daemon = Root::new().start();
    let before = stored(&daemon);
    let (begun, watcher) = unpacking(&daemon.state());
    fs::write(dropped(&daemon, "m"), &package).unwrap();
    begun.recv_timeout(BOUND).unwrap();
    drop(watcher);
    let mut root = daemon.kill();
    assert_eq!(stored(&root), before);

    let (begun, watcher) = unpacking(&root.state());
    daemon = root.start();
    begun.recv_timeout(BOUND).unwrap();
    drop(watcher);
    root = daemon.kill();
    assert_eq!(stored(&root), before);

    daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    let expected = "the daemon ended repeatedly while it unpacked the package\n";
    assert_eq!(until_quarantined(&daemon, "m"), expected);
    assert_eq!(ask(&daemon, "m").status, 404);
    assert_eq!(stored(&daemon), before);
    // A good package is installed as before.
    fs::write(dropped(&daemon, "n"), pack("tiny-bert-mean", "n", "1")).unwrap();
    daemon.wait_event_with(Message::PackageAccepted, &[&file_name("n")]);
    daemon.stop();
}
