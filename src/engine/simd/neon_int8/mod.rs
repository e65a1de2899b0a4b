//! Micro-kernels for products of bytes with NEON: with `SDOT` where the processor has it, otherwise
//! with `SMULL`.
//!
//! `SMULL` and `SMLAL` make 16-bit sums of two products. These do not overflow: rows are −128 to
//! 127, and weights are −127 to 127. `SADALP` adds them in pairs to sums of 32 bits, so a column
//! has two sums. If there are enough rows to pay for it, the weights are [`transposed`] first.
//!
//! The scalar twins are in [`super::gemm`].

mod transposed;

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int16x8_t, int32x4_t, vaddq_f32, vaddq_s32, vcvtq_f32_s32,
    vdupq_laneq_s32, vdupq_n_f32, vdupq_n_s32, vget_low_s8, vld1q_f32, vld1q_s8, vmlal_high_s8,
    vmlal_s8, vmlsq_n_f32, vmull_high_s8, vmull_s8, vmulq_f32, vmulq_n_f32, vpadalq_s16,
    vpaddlq_s16, vpaddq_s32, vreinterpretq_s8_s32, vreinterpretq_s32_s8, vst1q_f32,
};
use std::arch::asm;

use super::PANEL_WIDTH;
use super::elementwise::RowQuantization;
use super::neon::{Block, ROUND, block, multiply_lane, while_loading};
use super::product::{BlockPiece, OperandQuantization, Product, row_blocks};
use transposed::{COLUMNS, TransposedWeights};

/// Lane groups that all rows are multiplied with before the next ones: 16 KiB of weights.
pub(super) const GROUPS: usize = 128;

/// Loads the next 16 bytes of each row: its values in four lane groups.
///
/// # Safety
/// The block has four lane groups from `group` on.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn rounds_of<const R: usize>(block: Block, group: usize) -> [int8x16_t; R] {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: with slices, every round compares the bounds of its rows.
    unsafe {
        std::array::from_fn(|row| vld1q_s8(block.rows.add(row * block.stride + group).cast()))
    }
}

/// Loads one lane group of each row and broadcasts it to all lanes.
///
/// # Safety
/// The block has this lane group.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn groups_of<const R: usize>(block: Block, group: usize) -> [int8x16_t; R] {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: as above.
    unsafe {
        std::array::from_fn(|row| {
            let four = *block.rows.add(row * block.stride + group);
            vreinterpretq_s8_s32(vdupq_n_s32(four.cast_signed()))
        })
    }
}

/// Loads the weights of a lane group for `4 * V` columns.
///
/// # Safety
/// The block has this lane group.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn weights_of<const V: usize>(block: Block, group: usize) -> [int8x16_t; V] {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: as above.
    unsafe {
        std::array::from_fn(|vector| {
            vld1q_s8(block.weights.add(group * PANEL_WIDTH + vector * 4).cast())
        })
    }
}

/// Multiplies `R` rows from `first` on with a piece by `SDOT`, and adds the dequantized sums to the
/// results.
///
/// # Safety
/// `product.fits(first + R, groups of the panel)` is true. `integers` and the piece are those of
/// the product.
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_rows<const R: usize, const V: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    first: usize,
) {
    for column in (0..PANEL_WIDTH).step_by(4 * V) {
        let mut sums = [[vdupq_n_s32(0); V]; R];
        // SAFETY: `fits` puts the lane groups of each row within the operand and 32 results of it
        // within `out`. A panel has 32 columns. No lane group is beyond those of the block.
        // JUSTIFICATION: the compiler moves intrinsics to other positions, and `SDOT` has no
        // intrinsic.
        unsafe {
            let block = block(product, first, &piece.groups, column);
            if block.groups >= ROUND {
                while_loading!(
                    "sdot {sum:v}.4s, {weights:v}.16b, {row:v}.4b[{lane}]",
                    int32x4_t,
                    sums,
                    block
                );
            }
            for group in block.groups - block.groups % ROUND..block.groups {
                let (rows, weights) = (groups_of::<R>(block, group), weights_of::<V>(block, group));
                multiply_lane!(
                    "sdot {sum:v}.4s, {weights:v}.16b, {row:v}.4b[{lane}]",
                    0,
                    sums,
                    weights,
                    rows,
                    V,
                    |_index| ()
                );
            }
            add_values(product, integers, piece, (first, column), sums);
        }
    }
}

/// Returns the sums of the products of a block, computed with `SMULL` and `SMLAL`.
///
/// # Safety
/// The block has `R` rows and `4 * V` columns of its lane groups.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn widening_rows<const R: usize, const V: usize>(block: Block) -> [[int32x4_t; V]; R] {
    /// Sums of the first two and of the last two of four columns.
    type Halves = [int32x4_t; 2];
    let mut sums: [[Halves; V]; R] = [[[vdupq_n_s32(0); 2]; V]; R];
    let whole = block.groups - block.groups % ROUND;
    let add = |sums: &mut Halves, [low, high]: [int16x8_t; 2]| {
        sums[0] = vpadalq_s16(sums[0], low);
        sums[1] = vpadalq_s16(sums[1], high);
    };
    macro_rules! pair {
        ($even:literal $odd:literal, $rows:expr, $group:expr) => {
            let weights = [weights_of::<V>(block, $group), weights_of::<V>(block, $group + 1)];
            for (sums, row) in sums.iter_mut().zip($rows) {
                let row = vreinterpretq_s32_s8(row);
                let even = vreinterpretq_s8_s32(vdupq_laneq_s32::<$even>(row));
                let odd = vreinterpretq_s8_s32(vdupq_laneq_s32::<$odd>(row));
                for (vector, sums) in sums.iter_mut().enumerate() {
                    let [first, second] = [weights[0][vector], weights[1][vector]];
                    let low = vmull_s8(vget_low_s8(first), vget_low_s8(even));
                    let low = vmlal_s8(low, vget_low_s8(second), vget_low_s8(odd));
                    let high = vmull_high_s8(first, even);
                    add(sums, [low, vmlal_high_s8(high, second, odd)]);
                }
            }
        };
    }
    // SAFETY: no lane group is beyond those of the block.
    // JUSTIFICATION: the loads are unsafe.
    unsafe {
        for group in (0..whole).step_by(ROUND) {
            let rows = rounds_of::<R>(block, group);
            pair!(0 1, rows, group);
            pair!(2 3, rows, group + 2);
        }
        for group in whole..block.groups {
            let weights = weights_of::<V>(block, group);
            for (sums, row) in sums.iter_mut().zip(groups_of::<R>(block, group)) {
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let low = vmull_s8(vget_low_s8(weights), vget_low_s8(row));
                    add(sums, [low, vmull_high_s8(weights, row)]);
                }
            }
        }
    }
    sums.map(|sums| sums.map(|[low, high]| vpaddq_s32(low, high)))
}

/// Multiplies `R` rows from `first` on with a piece whose rounds were transposed. Adds the
/// dequantized sums to the results.
///
/// # Safety
/// The requirements are those of [`dot_rows`]. In addition, `weights` are those of the piece, the
/// rows have the lane groups that pad it, and `R` is 2 to 4.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn transposed_rows<const R: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    (piece, weights): (&BlockPiece, &TransposedWeights),
    first: usize,
) {
    for column in (0..PANEL_WIDTH).step_by(COLUMNS) {
        // SAFETY: as in `dot_rows`.
        // JUSTIFICATION: all vector loads and stores are unsafe.
        unsafe {
            let block = block(product, first, &piece.groups, column);
            let mut sums = weights.multiply::<R>(block, column);
            // Multiply the lane groups that are not in the transposed rounds.
            for group in weights.groups()..block.groups {
                let [weights] = weights_of::<{ COLUMNS / 4 }>(block, group);
                for (sum, row) in sums.iter_mut().zip(groups_of::<R>(block, group)) {
                    let low = vpaddlq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(row)));
                    let high = vpaddlq_s16(vmull_high_s8(weights, row));
                    *sum = vaddq_s32(*sum, vpaddq_s32(low, high));
                }
            }
            add_values(product, integers, piece, (first, column), sums.map(|sum| [sum]));
        }
    }
}

/// Computes products of bytes with `SMULL`. The rows are signed.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "neon")]
pub(super) fn widening(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    let mut weights = TransposedWeights::new();
    for piece in pieces(product, integers) {
        // SAFETY: the calls have 1 to 4 rows and a piece of the product. Its weights were
        // transposed for the kernels that read them.
        // JUSTIFICATION: the kernel is unsafe; it relies on these guarantees.
        unsafe {
            match product.rows {
                0 => {}
                1 => widening_block::<1, 4>(product, integers, &piece, 0),
                2 => widening_block::<2, 4>(product, integers, &piece, 0),
                3 => widening_block::<3, 2>(product, integers, &piece, 0),
                _ => {
                    // The last round reads up to three lane groups after the piece. The rows have
                    // them, except after the end of the panel.
                    let end = piece.groups.start + piece.groups.len().next_multiple_of(ROUND);
                    let padded = end <= product.panel.len();
                    weights.fill(&product.panel[piece.groups.clone()], padded);
                    let piece = (&piece, &weights);
                    for rows in row_blocks(product.rows, transposed::ROWS) {
                        match rows.len() {
                            2 => transposed_rows::<2>(product, integers, piece, rows.start),
                            3 => transposed_rows::<3>(product, integers, piece, rows.start),
                            _ => transposed_rows::<4>(product, integers, piece, rows.start),
                        }
                    }
                }
            }
        }
    }
}

/// Computes products of bytes with `SDOT`. The rows are signed.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_product(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    for piece in pieces(product, integers) {
        // SAFETY: the piece is one of the product.
        // JUSTIFICATION: as above.
        unsafe { dot_product_of_piece(product, integers, &piece) };
    }
}

/// Multiplies all rows with a piece, and adds the dequantized sums to the results.
///
/// # Safety
/// `integers` and the piece are those of the product.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dot_product_of_piece(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
) {
    for rows in row_blocks(product.rows, 8) {
        // SAFETY: the calls have 1 to 8 rows of the product. The caller guarantees the other
        // requirements.
        // JUSTIFICATION: as above.
        unsafe {
            match rows.len() {
                1 => dot_rows::<1, 8>(product, integers, piece, rows.start),
                2 => dot_rows::<2, 8>(product, integers, piece, rows.start),
                3 => dot_rows::<3, 4>(product, integers, piece, rows.start),
                4 => dot_rows::<4, 4>(product, integers, piece, rows.start),
                5 => dot_rows::<5, 2>(product, integers, piece, rows.start),
                6 => dot_rows::<6, 2>(product, integers, piece, rows.start),
                7 => dot_rows::<7, 2>(product, integers, piece, rows.start),
                _ => dot_rows::<8, 2>(product, integers, piece, rows.start),
            }
        }
    }
}

/// Asserts that the slices contain everything that a kernel reads and writes. Returns the pieces.
pub(super) fn pieces<'a>(
    product: &Product<'_>,
    integers: &'a OperandQuantization<'_>,
) -> impl Iterator<Item = BlockPiece> + use<'a> {
    let (rows, groups) = (product.rows, product.panel.len());
    assert!(
        product.fits(rows, groups) && integers.fits(rows, groups),
        "the operands and the quantization must fit the product"
    );
    integers.pieces(GROUPS)
}

/// Multiplies `R` rows from `first` on with a piece by `SMULL`, and adds the dequantized sums to
/// the results.
///
/// # Safety
/// The requirements are those of [`dot_rows`].
#[target_feature(enable = "neon")]
unsafe fn widening_block<const R: usize, const V: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    first: usize,
) {
    for column in (0..PANEL_WIDTH).step_by(4 * V) {
        // SAFETY: as in `dot_rows`.
        // JUSTIFICATION: all vector loads and stores are unsafe.
        unsafe {
            let sums = widening_rows::<R, V>(block(product, first, &piece.groups, column));
            add_values(product, integers, piece, (first, column), sums);
        }
    }
}

/// Converts the sums of `R` rows and `4 * V` columns from `row` and `column` on to f32, and adds
/// them to the results. [`OperandQuantization`] has the formula.
///
/// # Safety
/// `product.fits(row + R, ..)` and `integers.fits(row + R, ..)` are true, and `column + 4 * V` is
/// at most 32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn add_values<const R: usize, const V: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    (row, column): (usize, usize),
    sums: [[int32x4_t; V]; R],
) {
    let blocks = integers.ends.len();
    let is_first = piece.groups.start == 0;
    // SAFETY: the caller provides the results and the quantization of each row. Weight sums and
    // scales have 32 columns.
    // JUSTIFICATION: all vector loads and stores are unsafe. With slices, the bounds of each row
    // are compared.
    unsafe {
        let load = |values: &[f32; PANEL_WIDTH]| -> [float32x4_t; V] {
            std::array::from_fn(|vector| vld1q_f32(values.as_ptr().add(column + 4 * vector)))
        };
        let scales = load(&integers.scales[piece.block]);
        // Subtract the zero point's contribution once, with the last piece of a block.
        let weight_sums =
            if piece.is_last { load(&integers.sums[piece.block]) } else { [vdupq_n_f32(0.0); V] };
        let mut out = product.out.as_mut_ptr().add(row * product.out_stride + column);
        let mut of_row = integers.rows.as_ptr().add(row * blocks + piece.block);
        for sums in sums {
            let RowQuantization { scale, zero } = *of_row;
            for (vector, sum) in sums.into_iter().enumerate() {
                let sum = vmlsq_n_f32(vcvtq_f32_s32(sum), weight_sums[vector], zero);
                let value = vmulq_f32(sum, vmulq_n_f32(scales[vector], scale));
                let out = out.add(4 * vector);
                vst1q_f32(out, if is_first { value } else { vaddq_f32(value, vld1q_f32(out)) });
            }
            out = out.add(product.out_stride);
            of_row = of_row.add(blocks);
        }
    }
}
