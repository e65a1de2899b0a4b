//! Attack: a package declares a large zstd window, which the decompressor would allocate before it
//! reads anything else.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and what was measured is printed"
)]

use std::fs;
use std::io::Write;

use serde_json::json;

use crate::support::packages::{dropped, until_quarantined};
use crate::support::{Daemon, Root};

/// Returns the peak memory of the daemon, in KiB.
fn peak_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn large_zstd_window_is_rejected_without_allocation() {
    let daemon = Root::new().with("memory.memory_limit", json!("128MiB")).start();
    let before = peak_kib(&daemon);
    // Use bytes that do not repeat: a window fills only as far as there is content.
    let mut noise = 1_u64;
    let content = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.to_be_bytes()[0]
    });
    let content: Vec<u8> = content.take(40 << 20).collect();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&content).unwrap();
    fs::write(dropped(&daemon, "m"), encoder.finish().unwrap()).unwrap();
    let reason = until_quarantined(&daemon, "m");
    assert!(reason.contains("requires too much memory"), "{reason}");
    let grown = peak_kib(&daemon).saturating_sub(before);
    eprintln!("a window of 128 MiB: the peak grew by {grown} KiB");
    assert!(grown < 16 << 10, "{grown} KiB");
}
