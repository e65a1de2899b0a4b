//! Measures the memory that an unload releases, and judges whether it is enough.
//!
//! Pure, apart from the functions that the caller passes.

use crate::base::units::Bytes;
use crate::memory::sample::Sample;

/// Size of a model below which its release is not judged: other work of the process changes its
/// memory by megabytes.
const MIN_JUDGED: Bytes = Bytes::mib(16);

/// Memory before and after an unload.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) before: Sample,
    pub(super) after: Sample,
    /// Bytes of the weights that were dropped.
    pub(super) held: Bytes,
}

impl Release {
    /// Runs `unload`, which drops `held` bytes, and measures it. Runs `trim` once, and a second time
    /// if less than half of the bytes were released.
    pub(super) fn measure(
        held: Bytes,
        sample: impl Fn() -> Sample,
        unload: impl FnOnce(),
        trim: impl Fn(),
    ) -> Self {
        let before = sample();
        unload();
        // The allocator keeps freed memory. Return it to the kernel first, so that the second
        // sample shows it.
        trim();
        let mut release = Self { before, after: sample(), held };
        if !release.is_enough() {
            trim();
            release.after = sample();
        }
        release
    }

    /// Returns the bytes by which the memory of the process shrank.
    pub(super) fn freed(&self) -> Bytes {
        Bytes(self.before.process.0.saturating_sub(self.after.process.0))
    }

    /// Returns the bytes by which the pages of mapped files shrank.
    pub(super) fn mapped(&self) -> Bytes {
        Bytes(self.before.mapped.0.saturating_sub(self.after.mapped.0))
    }

    /// Returns whether at least half of the bytes were released. True for small models.
    pub(super) fn is_enough(&self) -> bool {
        let released = self.freed().0.saturating_add(self.mapped().0);
        self.held < MIN_JUDGED || released >= self.held.0 / 2
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn of(process: Bytes) -> Sample {
        Sample { process, ..Sample::default() }
    }

    /// Measures the release of `held` when the samples show `sizes` one after the other. Returns
    /// the release, and how often memory was trimmed.
    fn measured(held: Bytes, sizes: &[Bytes]) -> (Release, usize) {
        let (taken, trims) = (Cell::new(0), Cell::new(0));
        let sample = || of(sizes[taken.replace(taken.get() + 1)]);
        let release = Release::measure(held, sample, || {}, || trims.set(trims.get() + 1));
        assert_eq!(taken.get(), sizes.len());
        (release, trims.get())
    }

    #[test]
    fn kept_memory_is_trimmed_twice_and_judged() {
        let mib = Bytes::mib;
        let (kept, trims) = measured(mib(100), &[mib(300), mib(290), mib(280)]);
        assert_eq!((kept.freed(), kept.is_enough(), trims), (mib(20), false, 2));
        let (late, trims) = measured(mib(100), &[mib(300), mib(290), mib(210)]);
        assert_eq!((late.freed(), late.is_enough(), trims), (mib(90), true, 2));
        let (grown, trims) = measured(mib(100), &[mib(300), mib(310), mib(310)]);
        assert_eq!((grown.freed(), grown.is_enough(), trims), (Bytes(0), false, 2));
    }

    #[test]
    fn released_and_small_memory_is_trimmed_once() {
        let mib = Bytes::mib;
        let (freed, trims) = measured(mib(100), &[mib(300), mib(250)]);
        assert_eq!((freed.is_enough(), trims), (true, 1));
        let (small, trims) = measured(mib(15), &[mib(300), mib(300)]);
        assert_eq!((small.is_enough(), trims), (true, 1));
    }

    #[test]
    fn mapped_pages_count_as_released() {
        let mib = Bytes::mib;
        let before = Sample { mapped: mib(60), ..of(mib(300)) };
        let release = Release { before, after: of(mib(300)), held: mib(100) };
        assert_eq!((release.mapped(), release.is_enough()), (mib(60), true));
    }
}
