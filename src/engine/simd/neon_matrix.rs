//! Micro-kernels for products of bytes and of bf16 with the matrix instructions of Armv8.6: `SMMLA`
//! and `BFMMLA`.
//!
//! An instruction multiplies two rows with two columns. The two lane groups of each must be
//! adjacent, but a panel has the columns of one lane group in a line. So the lane groups of a piece
//! are first zipped in pairs, once for all rows.
//!
//! The scalar twins are in [`super::gemm`].

use std::arch::aarch64::{
    float32x4_t, int32x4_t, uint32x4_t, uint64x2_t, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32,
    vld1q_f32, vld1q_u32, vld1q_u64, vreinterpretq_f32_f64, vreinterpretq_f64_f32,
    vreinterpretq_s32_s64, vreinterpretq_s64_s32, vst1q_f32, vzip1q_f64, vzip1q_s64, vzip1q_u32,
    vzip1q_u64, vzip2q_f64, vzip2q_s64, vzip2q_u32, vzip2q_u64,
};
use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::PANEL_WIDTH;
use super::neon::ROUND;
use super::neon_int8::{self, GROUPS};
use super::product::{BlockPiece, OperandQuantization, Product, row_blocks};

/// Columns of a register tile.
const COLUMNS: usize = 16;
/// Vectors of sums for these columns. Each vector has the sums of two rows and two columns.
const VECTORS: usize = COLUMNS / 2;
/// Maximum number of pairs of rows of a register tile: their sums fill three quarters of the
/// registers.
const PAIRS: usize = 3;
/// Number of rows from which zipping the weights costs less than it saves, for bytes. The sums of
/// bytes are exact, so a row has the same results with either kernel.
const ROWS: usize = 6;

/// Zipped weights of a piece, `[pairs of groups, pairs of columns]`: two lane groups of each
/// column.
struct ZippedWeights {
    weights: [MaybeUninit<[uint32x4_t; PANEL_WIDTH / 2]>; GROUPS / 2],
    /// Number of rounds that are written.
    rounds: usize,
}

impl ZippedWeights {
    const fn new() -> Self {
        Self { weights: [MaybeUninit::uninit(); GROUPS / 2], rounds: 0 }
    }

    /// Writes the weights of `groups`, followed by zeros up to a whole round.
    ///
    /// # Panics
    /// Panics if there are more than [`GROUPS`] lane groups.
    #[target_feature(enable = "neon")]
    fn set(&mut self, groups: &[[u32; PANEL_WIDTH]]) {
        let rounds = groups.len().div_ceil(ROUND);
        let zeros = [0; PANEL_WIDTH];
        for (pair, weights) in self.weights[..rounds * ROUND / 2].iter_mut().enumerate() {
            let [even, odd] = [2 * pair, 2 * pair + 1]
                .map(|group| groups.get(group).unwrap_or(&zeros).as_chunks::<4>().0);
            let mut zipped = [vdupq_n_u32(0); PANEL_WIDTH / 2];
            for (zipped, (even, odd)) in
                zipped.as_chunks_mut::<2>().0.iter_mut().zip(even.iter().zip(odd))
            {
                // SAFETY: both have four lane groups.
                // JUSTIFICATION: all vector loads are unsafe.
                let [even, odd] = unsafe { [vld1q_u32(even.as_ptr()), vld1q_u32(odd.as_ptr())] };
                *zipped = [vzip1q_u32(even, odd), vzip2q_u32(even, odd)];
            }
            weights.write(zipped);
        }
        self.rounds = rounds;
    }

    /// Returns the weights of the columns from `column` on.
    fn column(&self, column: usize) -> *const uint32x4_t {
        self.weights.as_ptr().cast::<uint32x4_t>().wrapping_add(column / 2)
    }
}

/// Start addresses of `P` pairs of rows. An odd last row is in its pair twice.
type RowStarts<const P: usize> = [[*const u64; 2]; P];

/// Returns the addresses of `rows` at lane group `group`.
///
/// # Safety
/// The product has these rows and this lane group.
unsafe fn starts<const P: usize>(
    product: &Product<'_>,
    rows: &Range<usize>,
    group: usize,
) -> RowStarts<P> {
    std::array::from_fn(|pair| {
        [2 * pair, 2 * pair + 1].map(|row| {
            let row = (rows.start + row).min(rows.end - 1);
            // SAFETY: the caller guarantees this.
            // JUSTIFICATION: with slices, every round compares the bounds of its rows.
            unsafe { product.operand.as_ptr().add(row * product.stride + group).cast() }
        })
    })
}

macro_rules! kernel {
    ($(#[$meta:meta])* $name:ident, $vector:ty, #[$feature:meta], $instruction:literal) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The rows and the weights have `rounds` whole rounds of lane groups.
        #[inline(never)]
        #[$feature]
        unsafe fn $name<const P: usize>(
            all_sums: &mut [[$vector; VECTORS]; P],
            starts: RowStarts<P>,
            mut weights: *const uint32x4_t,
            rounds: usize,
        ) {
            let mut sums = *all_sums;
            // SAFETY: no load is beyond the lane groups that the caller provides. The assembly
            // reads and writes registers, with an instruction that this function's target feature
            // includes.
            // JUSTIFICATION: the instruction has no stable intrinsic.
            unsafe {
                for round in 0..rounds {
                    let rows: [[uint64x2_t; 2]; P] = starts.map(|[even, odd]| {
                        let [even, odd] = [even, odd].map(|row| vld1q_u64(row.add(2 * round)));
                        [vzip1q_u64(even, odd), vzip2q_u64(even, odd)]
                    });
                    for half in 0..2 {
                        for vector in 0..VECTORS {
                            let weights = weights.add(vector).read_volatile();
                            for (sums, rows) in sums.iter_mut().zip(rows) {
                                asm!(
                                    $instruction,
                                    sum = inout(vreg) sums[vector],
                                    rows = in(vreg) rows[half],
                                    weights = in(vreg) weights,
                                    options(nomem, nostack, preserves_flags),
                                );
                            }
                        }
                        weights = weights.add(PANEL_WIDTH / 2);
                    }
                }
            }
            *all_sums = sums;
        }
    };
}

kernel! {
    /// Adds the products of bytes to sums of two rows and two columns.
    int8_rows, int32x4_t, #[target_feature(enable = "neon,i8mm")],
    "smmla {sum:v}.4s, {rows:v}.16b, {weights:v}.16b"
}

kernel! {
    /// Adds the products of bf16 to sums of two rows and two columns.
    bf16_rows, float32x4_t, #[target_feature(enable = "neon,bf16")],
    "bfmmla {sum:v}.4s, {rows:v}.8h, {weights:v}.8h"
}

/// Calls `$call` with the number of pairs of rows as a constant.
macro_rules! with_pairs {
    ($rows:expr, $call:ident $arguments:tt) => {
        match $rows.len().div_ceil(2) {
            1 => $call::<1> $arguments,
            2 => $call::<2> $arguments,
            _ => $call::<3> $arguments,
        }
    };
}

/// Cuts `rows` rows into blocks of at most [`PAIRS`] pairs.
fn pair_blocks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    row_blocks(rows.div_ceil(2), PAIRS).map(move |pairs| 2 * pairs.start..rows.min(2 * pairs.end))
}

/// Computes products of bytes with `SMMLA`. The rows are signed.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    let (rows, groups) = (product.rows, product.panel.len());
    let mut zipped = ZippedWeights::new();
    for piece in neon_int8::pieces(product, integers) {
        let padded = piece.groups.start + piece.groups.len().next_multiple_of(ROUND);
        // Few rows do not pay for the zipping. At the end of the panel, the rows lack the lane
        // groups that would pad the last round.
        if rows < ROWS || padded > groups {
            // SAFETY: the piece is one of the product.
            // JUSTIFICATION: the kernel is unsafe; it relies on this guarantee.
            unsafe { neon_int8::dot_product_of_piece(product, integers, &piece) };
            continue;
        }
        zipped.set(&product.panel[piece.groups.clone()]);
        for rows in pair_blocks(rows) {
            // SAFETY: the rows are those of the product. They have the lane groups of the piece and
            // the following ones up to a whole round, which are multiplied with zeros.
            // JUSTIFICATION: as above.
            unsafe { with_pairs!(rows, int8_block(product, integers, &piece, &zipped, rows)) };
        }
    }
}

/// Multiplies `P` pairs of rows with a piece, and adds the dequantized sums to the results.
///
/// # Safety
/// `rows` are 1 to `2 * P` rows of the product, which have the lane groups of the piece up to a
/// whole round.
#[target_feature(enable = "neon,i8mm")]
unsafe fn int8_block<const P: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    zipped: &ZippedWeights,
    rows: Range<usize>,
) {
    for column in (0..PANEL_WIDTH).step_by(COLUMNS) {
        let mut sums = [[vdupq_n_s32(0); VECTORS]; P];
        // SAFETY: the caller guarantees the rows. `fits` puts 32 results of each row within `out`.
        // JUSTIFICATION: as in `int8`.
        unsafe {
            let starts = starts::<P>(product, &rows, piece.groups.start);
            int8_rows::<P>(&mut sums, starts, zipped.column(column), zipped.rounds);
            for row in rows.clone() {
                let sums = &sums[(row - rows.start) / 2];
                let of_row: [int32x4_t; COLUMNS / 4] = std::array::from_fn(|vector| {
                    let [first, second] = [sums[2 * vector], sums[2 * vector + 1]]
                        .map(|sum| vreinterpretq_s64_s32(sum));
                    vreinterpretq_s32_s64(if (row - rows.start).is_multiple_of(2) {
                        vzip1q_s64(first, second)
                    } else {
                        vzip2q_s64(first, second)
                    })
                });
                neon_int8::add_values(product, integers, piece, (row, column), [of_row]);
            }
        }
    }
}

/// Computes products of pairs of bf16 with `BFMMLA`.
///
/// # Panics
/// Panics if the product does not fit its slices, or if its lane groups are not whole rounds.
#[target_feature(enable = "neon,bf16")]
pub(super) fn bf16(product: &mut Product<'_>) {
    let groups = product.panel.len();
    assert!(
        product.fits(product.rows, groups) && groups.is_multiple_of(ROUND),
        "the operands must fit the product in whole rounds"
    );
    let mut zipped = ZippedWeights::new();
    for start in (0..groups).step_by(GROUPS) {
        zipped.set(&product.panel[start..groups.min(start + GROUPS)]);
        for rows in pair_blocks(product.rows) {
            // SAFETY: the rows are those of the product, whose lane groups are whole rounds.
            // JUSTIFICATION: as in `int8`.
            unsafe { with_pairs!(rows, bf16_block(product, &zipped, rows, start)) };
        }
    }
}

/// Multiplies `P` pairs of rows with the lane groups from `start` on.
///
/// # Safety
/// `rows` are 1 to `2 * P` rows of the product, which have the lane groups of `zipped` from `start`
/// on.
#[target_feature(enable = "neon,bf16")]
unsafe fn bf16_block<const P: usize>(
    product: &mut Product<'_>,
    zipped: &ZippedWeights,
    rows: Range<usize>,
    start: usize,
) {
    for column in (0..PANEL_WIDTH).step_by(COLUMNS) {
        // SAFETY: the caller guarantees the rows. `fits` puts 32 results of each row within `out`.
        // JUSTIFICATION: as in `int8`.
        unsafe {
            let out = |row: usize, vector: usize| -> usize {
                let row = (rows.start + row).min(rows.end - 1);
                row * product.out_stride + column + 4 * vector
            };
            let mut sums = [[vdupq_n_f32(0.0); VECTORS]; P];
            if start > 0 {
                for (pair, sums) in sums.iter_mut().enumerate() {
                    for (vector, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let [even, odd] = [2 * pair, 2 * pair + 1].map(|row| {
                            vreinterpretq_f64_f32(vld1q_f32(
                                product.out.as_ptr().add(out(row, vector)),
                            ))
                        });
                        *sums = [vzip1q_f64(even, odd), vzip2q_f64(even, odd)]
                            .map(|sum| vreinterpretq_f32_f64(sum));
                    }
                }
            }
            let starts = starts::<P>(product, &rows, start);
            bf16_rows::<P>(&mut sums, starts, zipped.column(column), zipped.rounds);
            for (pair, sums) in sums.iter().enumerate() {
                for (vector, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
                    let [first, second] = sums.map(|sum| vreinterpretq_f64_f32(sum));
                    let results = [vzip1q_f64(first, second), vzip2q_f64(first, second)];
                    // An odd last row is in its pair twice. Both copies have the same results.
                    for (row, results) in results.into_iter().enumerate() {
                        let out = product.out.as_mut_ptr().add(out(2 * pair + row, vector));
                        vst1q_f32(out, vreinterpretq_f32_f64(results));
                    }
                }
            }
        }
    }
}
