//! Micro-kernel for products of bytes in the intrinsics of AVX-VNNI, for processors without
//! AVX-512.
//!
//! The scalar twin is in [`super::gemm`].

use std::arch::x86_64::{
    _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_storeu_ps,
};

use super::PANEL_WIDTH;
use super::prefetch::Prefetcher;
use super::product::{OperandQuantization, Product, row_blocks};

/// Maximum number of rows of a register tile: the sums of 6 rows × 16 columns take 12 of 16
/// registers.
const ROWS: usize = 6;
/// Columns of a register tile.
const COLUMNS: usize = 16;

/// Computes products of bytes.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) fn int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    assert!(
        product.fits(product.rows, product.panel.len())
            && integers.fits(product.rows, product.panel.len()),
        "the operands and the quantization must fit the product"
    );
    let calls = product.rows.div_ceil(ROWS) * (PANEL_WIDTH / COLUMNS);
    let mut prefetcher = Prefetcher::new(product.next_panel, calls, product.panel.len());
    for rows in row_blocks(product.rows, ROWS) {
        let first = rows.start;
        for column in (0..PANEL_WIDTH).step_by(COLUMNS) {
            // SAFETY: this function has the features. Both conditions were asserted above for all
            // rows, and `rows` are among them. `column` is 0 or 16.
            // JUSTIFICATION: as in `int8_rows`.
            unsafe {
                match rows.len() {
                    1 => int8_rows::<1>(product, integers, first, column, &mut prefetcher),
                    2 => int8_rows::<2>(product, integers, first, column, &mut prefetcher),
                    3 => int8_rows::<3>(product, integers, first, column, &mut prefetcher),
                    4 => int8_rows::<4>(product, integers, first, column, &mut prefetcher),
                    5 => int8_rows::<5>(product, integers, first, column, &mut prefetcher),
                    _ => int8_rows::<6>(product, integers, first, column, &mut prefetcher),
                }
            }
        }
    }
}

/// Multiplies `R` rows with 16 columns from `column` on.
///
/// # Safety
/// `product.fits(first + R, groups of the panel)` and
/// `integers.fits(first + R, groups of the panel)` are true, and `column + 16` is at most 32.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn int8_rows<const R: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    first: usize,
    column: usize,
    prefetcher: &mut Prefetcher<'_>,
) {
    let (stride, blocks) = (product.stride, integers.ends.len());
    // SAFETY: `fits` puts row `first + R - 1` and all its lane groups within the operand. The panel
    // has as many lane groups of 32 values, and no end of a quantization block is beyond them. 32
    // results of each row lie within `out`. `fits` guarantees a quantization for each row and
    // block.
    // JUSTIFICATION: with slices, the bounds of six rows are compared in every round of the
    // innermost loop.
    unsafe {
        let halves = |values: &[f32; PANEL_WIDTH]| {
            let values = values.as_ptr().add(column);
            [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))]
        };
        let panel = product.panel.as_ptr().cast::<u32>().add(column);
        let rows = product.operand.as_ptr().add(first * stride);
        let out = product.out.as_mut_ptr().add(first * product.out_stride + column);
        let mut begin = 0;
        for (block, &end) in integers.ends.iter().enumerate() {
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for start in (begin..end).step_by(prefetcher.interval) {
                prefetcher.prefetch_next();
                for group in start..end.min(start + prefetcher.interval) {
                    let weights = panel.add(group * PANEL_WIDTH);
                    let weights = [
                        _mm256_loadu_si256(weights.cast()),
                        _mm256_loadu_si256(weights.add(8).cast()),
                    ];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let bytes = (*rows.add(row * stride + group)).cast_signed();
                        let bytes = _mm256_set1_epi32(bytes);
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm256_dpbusd_avx_epi32(*sum, bytes, weights);
                        }
                    }
                }
            }
            begin = end;
            // The block is complete: dequantize its sums as [`OperandQuantization`] describes, and
            // add them to the results.
            let weight_sums = halves(&integers.sums[block]);
            let scales = halves(&integers.scales[block]);
            for (row, sums) in sums.into_iter().enumerate() {
                let stands_for = integers.rows.as_ptr().add((first + row) * blocks + block);
                let zero = _mm256_set1_ps(-(*stands_for).zero);
                let scale = _mm256_set1_ps((*stands_for).scale);
                for (half, sum) in sums.into_iter().enumerate() {
                    let out = out.add(row * product.out_stride + half * 8);
                    let sum = _mm256_fmadd_ps(zero, weight_sums[half], _mm256_cvtepi32_ps(sum));
                    let scale = _mm256_mul_ps(scale, scales[half]);
                    let value = if block == 0 {
                        _mm256_mul_ps(sum, scale)
                    } else {
                        _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out))
                    };
                    _mm256_storeu_ps(out, value);
                }
            }
        }
    }
}
