//! Limits for unpacking a package.

use std::time::Duration;

use crate::base::units::Bytes;

/// Limits that a package must not exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Maximum size of the package file in bytes.
    pub max_compressed: u64,
    /// Maximum total size in bytes of all members, the manifest included.
    pub max_total: u64,
    /// Maximum size in bytes of one file.
    pub max_file: u64,
    /// Maximum ratio of unpacked to compressed bytes. It is not checked below one mebibyte of
    /// output.
    pub max_ratio: u32,
    /// Maximum size in bytes of the manifest, which is held in memory.
    pub max_manifest: u64,
    /// Maximum number of members, the manifest included.
    pub max_members: usize,
    /// Maximum time from the first byte to the last.
    pub time: Duration,
}

impl UnpackLimits {
    /// Returns the limits of packages whose unpacked size is at most `max_total`.
    pub fn for_size(max_total: Bytes) -> Self {
        /// Bytes per second of the slowest memory cards on sale (speed class 4).
        const SLOWEST_DISK: u64 = 4_000_000;
        let Bytes(max_total) = max_total;
        Self {
            // zstd expands incompressible data by less than 1/256. Headers take a few kilobytes.
            max_compressed: max_total.saturating_add(max_total / 256).saturating_add(1 << 20),
            max_total,
            max_file: max_total,
            // Weights compress to no less than half and tokenizers to a tenth. Zeros exceed a ratio
            // of 10,000.
            max_ratio: 100,
            max_manifest: 1 << 20,
            max_members: 16,
            time: Duration::from_secs(60 + max_total / SLOWEST_DISK),
        }
    }
}
