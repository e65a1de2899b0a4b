//! Operands of a product of a few rows with a panel, and their division into blocks. The kernels of
//! all instruction sets use them.

use std::ops::Range;

use super::PANEL_WIDTH;
use super::elementwise::RowQuantization;

/// Operands and results of a product of rows with one panel.
pub(in crate::engine) struct Product<'a> {
    /// Rows, `stride` lane groups apart.
    pub(in crate::engine) operand: &'a [u32],
    pub(in crate::engine) stride: usize,
    pub(in crate::engine) rows: usize,
    /// Packed weights, `[lane_groups, 32]`.
    pub(in crate::engine) panel: &'a [[u32; PANEL_WIDTH]],
    /// Panel of the next product, which the kernel prefetches meanwhile. May be empty.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only kernels of x86-64 ask for it")
    )]
    pub(in crate::engine) next_panel: &'a [[u32; PANEL_WIDTH]],
    /// Results, `[rows, 32]`, rows `out_stride` values apart.
    pub(in crate::engine) out: &'a mut [f32],
    pub(in crate::engine) out_stride: usize,
}

impl Product<'_> {
    /// Returns whether `rows` rows of `width` lane groups, and their results, lie within the
    /// slices.
    pub(in crate::engine) fn fits(&self, rows: usize, width: usize) -> bool {
        let Some(last) = rows.checked_sub(1) else { return true };
        let end = |stride: usize, width: usize| last.checked_mul(stride)?.checked_add(width);
        end(self.stride, width).is_some_and(|end| end <= self.operand.len())
            && end(self.out_stride, PANEL_WIDTH).is_some_and(|end| end <= self.out.len())
    }
}

/// Quantization of the operands of a product of bytes.
///
/// The inputs are divided into blocks with their own scales. The sums of a block are exact in i32;
/// the blocks are added in f32. A sum `s` in a block with the row's `zero` and `scale` contributes
/// `(s − zero · sum of the column's weights) · scale · column's scale` to the result.
pub(in crate::engine) struct OperandQuantization<'a> {
    /// Ends of the blocks, in lane groups. The last one is the length of the panel.
    pub(in crate::engine) ends: &'a [usize],
    /// Scale and zero point of each row and block, `[rows, blocks]`.
    pub(in crate::engine) rows: &'a [RowQuantization],
    /// Sums of the weights of each column, per block.
    pub(in crate::engine) sums: &'a [[f32; PANEL_WIDTH]],
    /// Scales of the columns, per block.
    pub(in crate::engine) scales: &'a [[f32; PANEL_WIDTH]],
}

impl OperandQuantization<'_> {
    /// Returns whether the slices fit a product of `rows` rows and `groups` lane groups.
    pub(super) fn fits(&self, rows: usize, groups: usize) -> bool {
        self.ends.is_sorted()
            && self.ends.last() == Some(&groups)
            && self.sums.len() == self.ends.len()
            && self.scales.len() == self.ends.len()
            && self.rows.len() >= rows * self.ends.len()
    }

    /// Cuts the blocks into pieces of at most `most` lane groups.
    pub(super) fn pieces(&self, most: usize) -> impl Iterator<Item = BlockPiece> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends).enumerate().flat_map(move |(block, (start, &end))| {
            (start..end).step_by(most).map(move |start| {
                let stop = end.min(start + most);
                BlockPiece { block, groups: start..stop, is_last: stop == end }
            })
        })
    }
}

/// Cuts `rows` rows into blocks of nearly equal size, each at most `most`. A block of few rows has
/// too few independent sums to keep the multipliers busy.
pub(super) fn row_blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let blocks = rows.div_ceil(most);
    // Divide once for all blocks: a division takes as long as several rounds of a kernel.
    let (size, larger) = (rows / blocks.max(1), rows % blocks.max(1));
    (0..blocks).map(move |block| {
        let start = block * size + block.min(larger);
        start..start + size + usize::from(block < larger)
    })
}

/// Part of a quantization block, small enough for the cache.
pub(super) struct BlockPiece {
    pub(super) block: usize,
    /// Range of at least one lane group.
    pub(super) groups: Range<usize>,
    /// Whether the piece is the last one of its block. The kernel then subtracts the contribution
    /// of the row's zero point.
    pub(super) is_last: bool,
}
