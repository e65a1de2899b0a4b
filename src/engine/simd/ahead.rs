//! What the next product reads, asked for while this one computes.
//!
//! The weights of a model are larger than the second cache, so that each strip comes from beyond it once
//! in a pass. Waited for, that is a fifth of the time of a pass of 128 rows; asked for all at once, it
//! holds up the loads of the product itself. So kernels ask for a line every few groups.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::slice;

use super::STRIP;

/// Lines of the next strip that were not asked for yet.
pub(super) struct Ahead<'a> {
    lines: slice::Iter<'a, [u32; STRIP / 2]>,
    /// Groups of a kernel's call between two looks here.
    pub(super) every: usize,
    /// Lines of each look.
    count: usize,
}

impl<'a> Ahead<'a> {
    /// Spreads `strip` over `calls` of a kernel with `groups` each.
    pub(super) fn new(strip: &'a [[u32; STRIP]], calls: usize, groups: usize) -> Self {
        let (lines, _) = strip.as_flattened().as_chunks();
        let looks = (groups * calls).max(1);
        let every = (looks / lines.len().max(1)).clamp(1, groups.max(1));
        Self { lines: lines.iter(), every, count: (lines.len() * every).div_ceil(looks) }
    }

    /// Asks for the next lines; to be called every [`Self::every`] groups.
    #[inline(always)]
    pub(super) fn look(&mut self) {
        for line in self.lines.by_ref().take(self.count) {
            // SAFETY: a hint, which reads nothing and cannot fault.
            // JUSTIFICATION: there is no safe way to give it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_asked_for_within_the_calls() {
        for (strip, calls, groups) in
            [(384, 22, 384), (384, 1, 384), (1536, 3, 1536), (0, 5, 64), (96, 7, 16), (16, 1, 0)]
        {
            let strip = vec![[0; STRIP]; strip];
            let mut ahead = Ahead::new(&strip, calls, groups);
            for _ in 0..calls {
                for _ in (0..groups).step_by(ahead.every) {
                    ahead.look();
                }
            }
            assert!(groups == 0 || ahead.lines.len() == 0, "{} left", ahead.lines.len());
        }
    }
}
