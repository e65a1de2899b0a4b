//! Software prefetch of the next panel of weights while the current product is computed.
//!
//! The weights of a model are larger than the second-level cache, so each panel comes from beyond
//! it once in a pass. Waiting for these loads costs a fifth of the time of a pass of 128 rows.
//! Prefetching all lines at once delays the loads of the current product. So the kernels prefetch a
//! cache line every few lane groups.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::slice;

use super::PANEL_WIDTH;

/// Cache lines of the next panel that are not prefetched yet.
pub(super) struct Prefetcher<'a> {
    lines: slice::Iter<'a, [u32; PANEL_WIDTH / 2]>,
    /// Lane groups that a kernel processes between two calls of [`Self::prefetch_next`].
    pub(super) interval: usize,
    /// Lines that each call prefetches.
    count: usize,
}

impl<'a> Prefetcher<'a> {
    /// Spreads the prefetches of `panel` over `calls` kernel calls with `groups` lane groups each.
    pub(super) fn new(panel: &'a [[u32; PANEL_WIDTH]], calls: usize, groups: usize) -> Self {
        let (lines, _) = panel.as_flattened().as_chunks();
        // Few lines: one line every `interval` lane groups. Many lines: `count` lines in each lane
        // group.
        let looks = (groups * calls).max(1);
        let interval = (looks / lines.len().max(1)).clamp(1, groups.max(1));
        Self { lines: lines.iter(), interval, count: (lines.len() * interval).div_ceil(looks) }
    }

    /// Prefetches the next lines. The kernel calls it every [`Self::interval`] lane groups.
    #[inline(always)]
    pub(super) fn prefetch_next(&mut self) {
        for line in self.lines.by_ref().take(self.count) {
            // SAFETY: a prefetch is a hint. It reads no value and cannot fault.
            // JUSTIFICATION: the prefetch intrinsic is unsafe.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cache_line_is_prefetched() {
        for (panel, calls, groups) in
            [(384, 22, 384), (384, 1, 384), (1536, 3, 1536), (0, 5, 64), (96, 7, 16), (16, 1, 0)]
        {
            let panel = vec![[0; PANEL_WIDTH]; panel];
            let mut prefetcher = Prefetcher::new(&panel, calls, groups);
            for _ in 0..calls {
                for _ in (0..groups).step_by(prefetcher.interval) {
                    prefetcher.prefetch_next();
                }
            }
            assert!(groups == 0 || prefetcher.lines.len() == 0, "{} left", prefetcher.lines.len());
        }
    }
}
