//! Micro-kernels for products of f32 with NEON, which every 64-bit Arm processor has.
//!
//! A round processes four lane groups. It loads 16 bytes of each row, which contain the values of
//! all four lane groups, and multiplies each vector of weights with one lane of them.
//!
//! Compilers schedule instructions for processors that execute out of order. Cores that execute in
//! order (Cortex-A53, A55) run them as written, and a load in the wrong position costs as much as
//! several multiplications. So the loads are volatile, and each multiplication is an `asm!` of its
//! own: the compiler does not move one across the other.
//!
//! The scalar twins are in [`super::gemm`].

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vld1q_f32, vst1q_f32};
use std::arch::asm;
use std::ops::Range;

use super::PANEL_WIDTH;
use super::product::{Product, row_blocks};

/// Maximum number of rows of a tile.
const ROWS: usize = 8;
/// Lane groups of a round: one vector contains the values of a row.
pub(super) const ROUND: usize = 4;
/// Lane groups that all rows are multiplied with before the next ones: 16 KiB of weights.
const GROUPS: usize = 128;

/// Rows and weights of one micro-kernel call.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First row, at its first lane group.
    pub(super) rows: *const u32,
    pub(super) stride: usize,
    /// First column, at the first lane group.
    pub(super) weights: *const u32,
    pub(super) groups: usize,
}

/// Multiplies `4 * $vectors` columns of weights with one lane of each row. Runs `$then` after each
/// multiplication.
macro_rules! multiply_lane {
    ($instruction:literal, $lane:literal, $sums:ident, $weights:expr, $rows:expr, $vectors:expr, |$index:ident| $then:expr) => {
        for (row, sums) in $sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                asm!(
                    $instruction,
                    sum = inout(vreg) *sum,
                    weights = in(vreg) $weights[vector],
                    row = in(vreg) $rows[row],
                    lane = const $lane,
                    options(nomem, nostack, preserves_flags),
                );
                let $index = row * $vectors + vector;
                $then
            }
        }
    };
}
pub(super) use multiply_lane;

/// Multiplies a tile of `R` rows and `4 * V` columns while it loads. The block has at least one
/// round of lane groups.
///
/// The loop is software-pipelined: the loads of the weights of the next lane and of the next values
/// of the rows are between the multiplications. A row is loaded after the multiplications with its
/// last lane. Lane groups beyond the last whole round are not multiplied.
///
/// All loads are within the block: in the last round, the early loads read the first round again.
/// Weights are aligned, because a panel begins on a cache line. Rows need not be aligned.
macro_rules! while_loading {
    ($instruction:literal, $vector:ty, $sums:ident, $block:expr) => {
        let block = $block;
        let load = |at: *const u32| at.cast::<$vector>().read_volatile();
        // A piece may begin where a row is not aligned, so a row is loaded by an instruction that
        // permits this.
        let load_row = |start: *const u32, group: usize| {
            let values: $vector;
            asm!(
                "ldr {values:q}, [{start}, {offset}]",
                values = lateout(vreg) values,
                start = in(reg) start,
                offset = in(reg) group * size_of::<u32>(),
                options(nostack, readonly, preserves_flags),
            );
            values
        };
        let starts: [*const u32; R] = std::array::from_fn(|row| block.rows.add(row * block.stride));
        let mut rows: [$vector; R] = starts.map(|start| load_row(start, 0));
        let mut weights: [$vector; V] =
            std::array::from_fn(|vector| load(block.weights.add(4 * vector)));
        let mut next_group = 0;
        let mut at = block.weights.add(PANEL_WIDTH);
        for left in (0..block.groups / ROUND).rev() {
            macro_rules! lane {
                ($lane:literal) => {
                    let mut next = weights;
                    $crate::engine::simd::neon::multiply_lane!(
                        $instruction,
                        $lane,
                        $sums,
                        weights,
                        rows,
                        V,
                        |index| {
                            // One load for every `R` multiplications.
                            if index % R == 0 {
                                next[index / R] = load(at.add(4 * (index / R)));
                            }
                            if $lane == 3 && index % V == V - 1 {
                                rows[index / V] = load_row(starts[index / V], next_group);
                            }
                        }
                    );
                    weights = next;
                    at = at.add(PANEL_WIDTH);
                };
            }
            lane!(0);
            lane!(1);
            lane!(2);
            next_group += ROUND;
            // The last round: its early loads read the first round again, so they stay within the
            // block.
            if left == 0 {
                next_group = 0;
                at = block.weights;
            }
            lane!(3);
        }
    };
}
pub(super) use while_loading;

/// Returns the initial sums of `R` rows and `4 * V` columns of the product: zeros if `groups` are
/// the first lane groups, otherwise the results so far.
///
/// # Safety
/// `out` has `4 * V` results of `R` rows, `stride` values apart.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn first_sums<const R: usize, const V: usize>(
    out: *const f32,
    stride: usize,
    groups: &Range<usize>,
) -> [[float32x4_t; V]; R] {
    let mut sums = [[vdupq_n_f32(0.0); V]; R];
    if groups.start > 0 {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller provides the results.
                // JUSTIFICATION: all vector loads are unsafe.
                *sum = unsafe { vld1q_f32(out.add(row * stride + vector * 4)) };
            }
        }
    }
    sums
}

/// Writes the sums to the results.
///
/// # Safety
/// `out` has `4 * V` results of `R` rows, `stride` values apart.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const R: usize, const V: usize>(
    out: *mut f32,
    stride: usize,
    sums: [[float32x4_t; V]; R],
) {
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller provides the results.
            // JUSTIFICATION: all vector stores are unsafe.
            unsafe { vst1q_f32(out.add(row * stride + vector * 4), sum) };
        }
    }
}

/// Multiplies `R` rows from `first` on with `groups`. Adds the products to the results of earlier
/// lane groups.
///
/// # Safety
/// `product.fits(first + R, groups of the panel)` is true. `groups` are whole rounds within the
/// panel, at least one.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn f32_rows<const R: usize, const V: usize>(
    product: &mut Product<'_>,
    first: usize,
    groups: &Range<usize>,
) {
    let stride = product.out_stride;
    for column in (0..PANEL_WIDTH).step_by(4 * V) {
        // SAFETY: `fits` puts the lane groups of each row within the operand and 32 results of it
        // within `out`. A panel has 32 columns. The caller guarantees at least one round.
        // JUSTIFICATION: the compiler moves intrinsics to other positions.
        unsafe {
            let out = product.out.as_mut_ptr().add(first * stride + column);
            let mut sums = first_sums::<R, V>(out, stride, groups);
            while_loading!(
                "fmla {sum:v}.4s, {weights:v}.4s, {row:v}.s[{lane}]",
                float32x4_t,
                sums,
                block(product, first, groups, column)
            );
            store::<R, V>(out, stride, sums);
        }
    }
}

/// Multiplies as [`f32_rows`] does, for cores that cannot multiply while they load 128 bits. Loads
/// the weights of `L` lanes, then multiplies them.
///
/// # Safety
/// The requirements are those of [`f32_rows`].
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn f32_rows_interleaved<const R: usize, const V: usize, const L: usize>(
    product: &mut Product<'_>,
    first: usize,
    groups: &Range<usize>,
) {
    let stride = product.out_stride;
    for column in (0..PANEL_WIDTH).step_by(4 * V) {
        // SAFETY: as in `f32_rows`. The assembly reads and writes registers, except for the load of
        // a row.
        // JUSTIFICATION: as in `f32_rows`.
        unsafe {
            let out = product.out.as_mut_ptr().add(first * stride + column);
            let mut sums = first_sums::<R, V>(out, stride, groups);
            let block = block(product, first, groups, column);
            let starts: [*const u32; R] =
                std::array::from_fn(|row| block.rows.add(row * block.stride));
            let mut at = block.weights;
            for group in (0..block.groups).step_by(ROUND) {
                // Load in assembly: for a volatile load, the compiler computes each address from
                // that of the row before, which makes a chain.
                let rows: [float32x4_t; R] = starts.map(|start| {
                    let values;
                    asm!(
                        "ldr {values:q}, [{start}, {offset}]",
                        values = lateout(vreg) values,
                        start = in(reg) start,
                        offset = in(reg) group * size_of::<u32>(),
                        options(nostack, readonly, preserves_flags),
                    );
                    values
                });
                macro_rules! lanes {
                    ($($lane:literal)*) => {
                        let weights: [[float32x4_t; V]; L] = std::array::from_fn(|lane| {
                            let at = at.add(lane * PANEL_WIDTH);
                            std::array::from_fn(|vector| {
                                at.add(4 * vector).cast::<float32x4_t>().read_volatile()
                            })
                        });
                        at = at.add(L * PANEL_WIDTH);
                        $(multiply_lane!(
                            "fmla {sum:v}.4s, {weights:v}.4s, {row:v}.s[{lane}]",
                            $lane, sums, weights[$lane % L], rows, V, |_index| ()
                        );)*
                    };
                }
                if L == 4 {
                    lanes!(0 1 2 3);
                } else if L == 2 {
                    lanes!(0 1);
                    lanes!(2 3);
                } else {
                    lanes!(0);
                    lanes!(1);
                    lanes!(2);
                    lanes!(3);
                }
            }
            store::<R, V>(out, stride, sums);
        }
    }
}

/// Computes products of f32 on processors that multiply while they load.
///
/// # Panics
/// Panics if the product does not fit its slices, or if its lane groups are not whole rounds.
#[target_feature(enable = "neon")]
pub(super) fn f32(product: &mut Product<'_>) {
    in_pieces(product, |product, rows, groups| {
        // SAFETY: `in_pieces` passes rows and lane groups of the product, and 1 to 8 rows.
        // JUSTIFICATION: the kernels are unsafe; they rely on these guarantees.
        unsafe {
            match rows.len() {
                1 => f32_rows::<1, 8>(product, rows.start, &groups),
                2 => f32_rows::<2, 8>(product, rows.start, &groups),
                3 => f32_rows::<3, 4>(product, rows.start, &groups),
                4 => f32_rows::<4, 4>(product, rows.start, &groups),
                5 => f32_rows::<5, 2>(product, rows.start, &groups),
                6 => f32_rows::<6, 2>(product, rows.start, &groups),
                7 => f32_rows::<7, 2>(product, rows.start, &groups),
                _ => f32_rows::<8, 2>(product, rows.start, &groups),
            }
        }
    });
}

/// Computes products of f32 on processors without dot products. One of them, the Cortex-A53, does
/// not multiply while it loads. The others execute out of order, so the order of the instructions
/// matters less.
///
/// # Panics
/// Panics if the product does not fit its slices, or if its lane groups are not whole rounds.
#[target_feature(enable = "neon")]
pub(super) fn f32_interleaved(product: &mut Product<'_>) {
    in_pieces(product, |product, rows, groups| {
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        unsafe {
            match rows.len() {
                1 => f32_rows_interleaved::<1, 8, 2>(product, rows.start, &groups),
                2 => f32_rows_interleaved::<2, 8, 1>(product, rows.start, &groups),
                3 => f32_rows_interleaved::<3, 4, 2>(product, rows.start, &groups),
                4 => f32_rows_interleaved::<4, 4, 2>(product, rows.start, &groups),
                5 => f32_rows_interleaved::<5, 2, 4>(product, rows.start, &groups),
                6 => f32_rows_interleaved::<6, 2, 4>(product, rows.start, &groups),
                7 => f32_rows_interleaved::<7, 2, 4>(product, rows.start, &groups),
                _ => f32_rows_interleaved::<8, 2, 4>(product, rows.start, &groups),
            }
        }
    });
}

/// Calls `multiply` with at most [`ROWS`] rows and at most [`GROUPS`] lane groups, until the whole
/// product is computed.
fn in_pieces(
    product: &mut Product<'_>,
    multiply: impl Fn(&mut Product<'_>, Range<usize>, Range<usize>),
) {
    let groups = product.panel.len();
    assert!(
        product.fits(product.rows, groups) && groups.is_multiple_of(ROUND),
        "the operands must fit the product in whole rounds"
    );
    for start in (0..groups).step_by(GROUPS) {
        for rows in row_blocks(product.rows, ROWS) {
            multiply(product, rows, start..groups.min(start + GROUPS));
        }
    }
}

/// Returns the rows from `first` on and the weights of `groups` from `column` on.
///
/// # Safety
/// All are within the product.
pub(super) unsafe fn block(
    product: &Product<'_>,
    first: usize,
    groups: &Range<usize>,
    column: usize,
) -> Block {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: with slices, every round compares the bounds of its rows.
    unsafe {
        Block {
            rows: product.operand.as_ptr().add(first * product.stride + groups.start),
            stride: product.stride,
            weights: product.panel.as_ptr().add(groups.start).cast::<u32>().add(column),
            groups: groups.len(),
        }
    }
}
