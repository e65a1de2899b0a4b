//! Products of f32 with NEON, which every 64-bit Arm processor has.
//!
//! A round takes four groups. It loads 16 bytes of each row, which have the values of all four, and
//! multiplies each vector of weights with one lane of them.
//!
//! The scalar twins are in [`super::dense`].

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_laneq_f32, vld1q_f32, vst1q_f32};

use super::STRIP;
use super::dense::{Product, row_blocks};

/// Rows of one block at most.
const ROWS: usize = 8;
/// Groups of a round: the values of a row in one vector.
pub(super) const ROUND: usize = 4;
/// Groups that all rows are multiplied with before the next ones: 16 KiB of weights.
const GROUPS: usize = 128;

/// A block of rows, and what is multiplied with it.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// The first row, at its first group.
    pub(super) rows: *const u32,
    pub(super) stride: usize,
    /// The first column, at the first group.
    pub(super) weights: *const u32,
    pub(super) groups: usize,
}

/// Calls `$call` with the number of rows, and the vectors of columns that are multiplied with them at once:
/// as many as the registers hold.
macro_rules! with_rows {
    ($rows:expr, $call:ident $arguments:tt) => {
        match $rows {
            1 => $call::<1, 8> $arguments,
            2 => $call::<2, 8> $arguments,
            3 => $call::<3, 4> $arguments,
            4 => $call::<4, 4> $arguments,
            5 => $call::<5, 2> $arguments,
            6 => $call::<6, 2> $arguments,
            7 => $call::<7, 2> $arguments,
            _ => $call::<8, 2> $arguments,
        }
    };
}

/// Adds the products of one lane of each row with a group of weights.
macro_rules! lane {
    ($lane:literal, $sums:ident, $rows:ident, $weights:expr, $load:expr, $multiply:ident) => {
        let weights: [_; V] =
            std::array::from_fn(|vector| $load($weights.add($lane * STRIP + vector * 4)));
        for (sums, row) in $sums.iter_mut().zip($rows) {
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = $multiply::<$lane>(*sum, weights, row);
            }
        }
    };
}

/// Adds the products of a block of f32 to the sums.
///
/// # Safety
/// The block has `R` rows, `4 * V` columns, and as many groups of them.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn f32_rows<const R: usize, const V: usize>(
    mut sums: [[float32x4_t; V]; R],
    block: Block,
) -> [[float32x4_t; V]; R] {
    // SAFETY: a round reads four groups of each row and of the weights, which the caller gives.
    // JUSTIFICATION: with slices, every round compares the bounds of its rows.
    unsafe {
        for group in (0..block.groups).step_by(ROUND) {
            let rows: [_; R] = std::array::from_fn(|row| {
                vld1q_f32(block.rows.add(row * block.stride + group).cast())
            });
            let weights = block.weights.add(group * STRIP);
            let load = |weights: *const u32| vld1q_f32(weights.cast());
            lane!(0, sums, rows, weights, load, vfmaq_laneq_f32);
            lane!(1, sums, rows, weights, load, vfmaq_laneq_f32);
            lane!(2, sums, rows, weights, load, vfmaq_laneq_f32);
            lane!(3, sums, rows, weights, load, vfmaq_laneq_f32);
        }
    }
    sums
}

/// Computes products of f32.
///
/// # Panics
/// When the product does not fit its slices, or its groups are not whole rounds.
#[target_feature(enable = "neon")]
pub(super) fn f32(product: &mut Product<'_>) {
    assert_whole(product);
    let groups = product.strip.len();
    for start in (0..groups).step_by(GROUPS) {
        for rows in row_blocks(product.rows, ROWS) {
            let end = groups.min(start + GROUPS);
            // SAFETY: `fits` was just asserted for all rows; the piece lies within the groups.
            // JUSTIFICATION: as in `f32_block`.
            unsafe { with_rows!(rows.len(), f32_block(product, rows.start, start, end)) };
        }
    }
}

/// Asserts that a kernel may multiply all rows of `product`.
fn assert_whole(product: &Product<'_>) {
    let groups = product.strip.len();
    assert!(
        product.fits(product.rows, groups) && groups.is_multiple_of(ROUND),
        "the caller gives whole rows of whole lines"
    );
}

/// Returns the block of rows from `first` on with the groups from `start` to `end` and the columns from
/// `column` on.
///
/// # Safety
/// All are within the product.
pub(super) unsafe fn block(
    product: &Product<'_>,
    first: usize,
    start: usize,
    end: usize,
    column: usize,
) -> Block {
    // SAFETY: the caller says so.
    // JUSTIFICATION: as in `f32_rows`.
    unsafe {
        Block {
            rows: product.operand.as_ptr().add(first * product.stride + start),
            stride: product.stride,
            weights: product.strip.as_ptr().add(start).cast::<u32>().add(column),
            groups: end - start,
        }
    }
}

/// Multiplies `R` rows from `first` on with the groups from `start` to `end`.
///
/// # Safety
/// `product.fits(first + R, groups of the strip)`; the strip has whole rounds of groups up to `end`.
#[target_feature(enable = "neon")]
unsafe fn f32_block<const R: usize, const V: usize>(
    product: &mut Product<'_>,
    first: usize,
    start: usize,
    end: usize,
) {
    for column in (0..STRIP).step_by(4 * V) {
        // SAFETY: `fits` puts the groups of each row within the operand and 32 results of it within `out`;
        // a strip has 32 columns.
        // JUSTIFICATION: there is no safe load and store of vectors.
        unsafe {
            let out = product.out.as_mut_ptr().add(first * product.out_stride + column);
            let mut sums = [[vdupq_n_f32(0.0); V]; R];
            if start > 0 {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        *sum = vld1q_f32(out.add(row * product.out_stride + vector * 4));
                    }
                }
            }
            let sums = f32_rows::<R, V>(sums, block(product, first, start, end, column));
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    vst1q_f32(out.add(row * product.out_stride + vector * 4), sum);
                }
            }
        }
    }
}
