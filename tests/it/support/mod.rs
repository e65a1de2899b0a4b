//! Starts a real daemon for a test in a temporary root of its own, and observes its output.
//!
//! A test never waits for a fixed time. It waits for a line of the log, a notification or the end
//! of the process; [`BOUND`] only limits the wait of a failing test.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

pub(crate) mod attacker;
mod daemon;
mod http;
pub(crate) mod mounts;
pub(crate) mod packages;
mod root;
pub(crate) mod selftest;
pub(crate) mod signing;
pub(crate) mod tokenizers;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

pub(crate) use daemon::{Daemon, is_event};
pub(crate) use http::{Answer, Connection, refused};
pub(crate) use root::Root;

/// Time after which a wait fails: a hundred times the duration of anything here on an idle machine.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
/// Path of OpenAI's endpoint.
pub(crate) const EMBEDDINGS: &str = "/v1/embeddings";
/// Length of the vectors of [`tiny_package`].
pub(crate) const TINY_DIMENSIONS: usize = 64;

/// User id without privileges on Debian and Fedora, which tests use for a user other than root.
pub(crate) const STRANGER: u32 = 65_534;

/// Returns the command line without the environment variables that could change its behaviour.
pub(crate) fn cli() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caxton"));
    command.env_remove("CAXTON_SOCKET").stdin(Stdio::null());
    command
}

/// Returns the path of a directory in `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Packs the model in `tests/golden/{name}` with the command line and returns the bytes of the
/// package.
pub(crate) fn pack(name: &str, id: &str, version: &str) -> Vec<u8> {
    pack_with(name, id, version, &[])
}

/// Packs the model in `tests/golden/{name}` like [`pack`], with more `arguments`.
pub(crate) fn pack_with(name: &str, id: &str, version: &str, arguments: &[&str]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("packed.model.tar.zst");
    let packed = cli()
        .args(["model", "pack", "--model-id", id, "--model-version", version, "--source"])
        .arg(golden(name))
        .arg("--output")
        .arg(&output)
        .args(arguments)
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    std::fs::read(output).unwrap()
}

/// Returns the package that the tests use as the bundled model: `bundled-mini`, version 1, with the
/// tiny model `tiny-bert-mean`.
pub(crate) fn tiny_package() -> &'static [u8] {
    static PACKAGE: OnceLock<Vec<u8>> = OnceLock::new();
    PACKAGE.get_or_init(|| pack("tiny-bert-mean", "bundled-mini", "1"))
}

/// Returns the cosine of two unit vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Prints to the real stderr that `test` was skipped. The harness captures the ordinary output of a
/// passing test.
pub(crate) fn skipped(test: &str, needs: &str) {
    let line = format!("skipped: {test}: needs {needs}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}
