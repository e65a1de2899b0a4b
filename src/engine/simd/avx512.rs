//! Kernels in the intrinsics of AVX-512, where the compiler generates slower code from portable
//! loops.
//!
//! The scalar twins are in [`super::gemm`] and [`super::rowwise`].

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm_mask_storeu_epi8, _mm512_cvtepi32_ps,
    _mm512_cvtps_epi32, _mm512_cvtusepi32_epi8, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_fpclass_ps_mask, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_ps, _mm512_max_epi32, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_reduce_max_ps, _mm512_reduce_min_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::PANEL_WIDTH;
use super::elementwise::RowQuantization;
use super::prefetch::Prefetcher;
use super::product::{OperandQuantization, Product};

/// Maximum number of rows of a register tile: the sums of 12 rows × 32 columns take 24 of 32
/// registers.
const ROWS: usize = 12;

/// Defines a micro-kernel for `R` rows of floats. `$load` loads one lane group of 16 columns of the
/// panel, `$spread` broadcasts one lane group of a row to all lanes, and `$add` adds their products
/// to the sums.
macro_rules! float_rows {
    ($(#[$meta:meta])* $name:ident, $features:literal, $load:expr, $spread:expr, $add:expr) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// `product.fits(first + R, groups of the panel)` is true.
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(
            product: &mut Product<'_>,
            _: (),
            first: usize,
            prefetcher: &mut Prefetcher<'_>,
        ) {
            let (stride, groups) = (product.stride, product.panel.len());
            let panel: *const [u32; PANEL_WIDTH] = product.panel.as_ptr();
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            // SAFETY: `fits` puts row `first + R - 1` and `groups` lane groups of it within the
            // operand. The panel has `groups` lane groups of 32 columns. 32 results of each row lie
            // within `out`. Both types of a transmutation have 64 bytes, and all bit patterns are
            // valid.
            // JUSTIFICATION: with slices, the bounds of twelve rows are compared in every round of
            // the innermost loop. No intrinsic converts integers to pairs of bf16.
            unsafe {
                let rows = product.operand.as_ptr().add(first * stride);
                for start in (0..groups).step_by(prefetcher.interval) {
                    prefetcher.prefetch_next();
                    for group in start..groups.min(start + prefetcher.interval) {
                        let weights = panel.add(group).cast::<u32>();
                        let weights = [$load(weights), $load(weights.add(16))];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let value = $spread(*rows.add(row * stride + group));
                            for (sum, weights) in sums.iter_mut().zip(weights) {
                                *sum = $add(*sum, value, weights);
                            }
                        }
                    }
                }
                store(product, first, sums);
            }
        }
    };
}

float_rows! {
    /// Multiplies `R` rows of f32.
    f32_rows,
    "avx512f",
    |groups: *const u32| _mm512_loadu_ps(groups.cast()),
    |group: u32| _mm512_set1_ps(f32::from_bits(group)),
    |sum, value, weights| _mm512_fmadd_ps(value, weights, sum)
}

float_rows! {
    /// Multiplies `R` rows of pairs of bf16. The instruction treats denormals as zeros:
    /// <https://www.felixcloutier.com/x86/vdpbf16ps>.
    bf16_rows,
    "avx512f,avx512bf16",
    |groups: *const u32| transmute::<__m512i, __m512bh>(_mm512_loadu_si512(groups.cast())),
    |group: u32| transmute::<__m512i, __m512bh>(_mm512_set1_epi32(group.cast_signed())),
    |sum, pair, weights| _mm512_dpbf16_ps(sum, pair, weights)
}

/// Writes the sums of `R` rows from `first` on to the results.
///
/// # Safety
/// `product.fits(first + R, groups of the panel)` is true.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize>(product: &mut Product<'_>, first: usize, sums: [[__m512; 2]; R]) {
    // SAFETY: `fits` puts 32 results of each row within `out`.
    // JUSTIFICATION: as in `float_rows!`.
    unsafe {
        let out = product.out.as_mut_ptr().add(first * product.out_stride);
        for (row, sums) in sums.into_iter().enumerate() {
            for (half, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(out.add(row * product.out_stride + half * 16), sum);
            }
        }
    }
}

/// Multiplies `R` rows of bytes.
///
/// # Safety
/// `product.fits(first + R, groups of the panel)` and
/// `integers.fits(first + R, groups of the panel)` are true.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn int8_rows<const R: usize>(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    first: usize,
    prefetcher: &mut Prefetcher<'_>,
) {
    let (stride, blocks) = (product.stride, integers.ends.len());
    let panel: *const [u32; PANEL_WIDTH] = product.panel.as_ptr();
    // SAFETY: `fits` puts row `first + R - 1` and all its lane groups within the operand. The panel
    // has as many lane groups of 32 values, and no end of a quantization block is beyond them. 32
    // results of each row lie within `out`. `fits` guarantees a quantization for each row and
    // block.
    // JUSTIFICATION: as in `float_rows!`.
    unsafe {
        let halves = |values: &[f32; PANEL_WIDTH]| {
            [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))]
        };
        let rows = product.operand.as_ptr().add(first * stride);
        let out = product.out.as_mut_ptr().add(first * product.out_stride);
        let mut begin = 0;
        for (block, &end) in integers.ends.iter().enumerate() {
            let mut sums = [[_mm512_setzero_si512(); 2]; R];
            for start in (begin..end).step_by(prefetcher.interval) {
                prefetcher.prefetch_next();
                for group in start..end.min(start + prefetcher.interval) {
                    let weights = panel.add(group).cast::<u32>();
                    let weights = [
                        _mm512_loadu_si512(weights.cast()),
                        _mm512_loadu_si512(weights.add(16).cast()),
                    ];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let bytes = (*rows.add(row * stride + group)).cast_signed();
                        let bytes = _mm512_set1_epi32(bytes);
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm512_dpbusd_epi32(*sum, bytes, weights);
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
                let zero = _mm512_set1_ps(-(*stands_for).zero);
                let scale = _mm512_set1_ps((*stands_for).scale);
                for (half, sum) in sums.into_iter().enumerate() {
                    let out = out.add(row * product.out_stride + half * 16);
                    let sum = _mm512_fmadd_ps(zero, weight_sums[half], _mm512_cvtepi32_ps(sum));
                    let scale = _mm512_mul_ps(scale, scales[half]);
                    let value = if block == 0 {
                        _mm512_mul_ps(sum, scale)
                    } else {
                        _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(out))
                    };
                    _mm512_storeu_ps(out, value);
                }
            }
        }
    }
}

/// Calls a kernel for all rows, in tiles of nearly equal height. A tile of few rows has too few
/// independent sums to keep the multipliers busy.
macro_rules! in_blocks {
    ($product:expr, $integers:expr, $kernel:ident) => {{
        let product = $product;
        let fits = product.fits(product.rows, product.panel.len());
        assert!(fits, "the operands must fit the product");
        let blocks = product.rows.div_ceil(ROWS);
        let mut prefetcher = Prefetcher::new(product.next_panel, blocks, product.panel.len());
        let mut first = 0;
        for block in 0..blocks {
            let rows = (product.rows - first).div_ceil(blocks - block);
            // SAFETY: the caller of this function has detected the features. `fits` was asserted
            // above for `product.rows`, and the caller asserted `fits`. `first + rows` is never
            // beyond `product.rows`.
            // JUSTIFICATION: a safe call needs the features enabled for the whole binary.
            unsafe {
                match rows {
                    1 => $kernel::<1>(product, $integers, first, &mut prefetcher),
                    2 => $kernel::<2>(product, $integers, first, &mut prefetcher),
                    3 => $kernel::<3>(product, $integers, first, &mut prefetcher),
                    4 => $kernel::<4>(product, $integers, first, &mut prefetcher),
                    5 => $kernel::<5>(product, $integers, first, &mut prefetcher),
                    6 => $kernel::<6>(product, $integers, first, &mut prefetcher),
                    7 => $kernel::<7>(product, $integers, first, &mut prefetcher),
                    8 => $kernel::<8>(product, $integers, first, &mut prefetcher),
                    9 => $kernel::<9>(product, $integers, first, &mut prefetcher),
                    10 => $kernel::<10>(product, $integers, first, &mut prefetcher),
                    11 => $kernel::<11>(product, $integers, first, &mut prefetcher),
                    _ => $kernel::<12>(product, $integers, first, &mut prefetcher),
                }
            }
            first += rows;
        }
    }};
}

/// Computes products of f32.
///
/// # Panics
/// Panics if the product does not fit its slices.
#[target_feature(enable = "avx512f")]
pub(super) fn f32(product: &mut Product<'_>) {
    in_blocks!(product, (), f32_rows);
}

/// Computes products of pairs of bf16.
///
/// # Panics
/// Panics if the product does not fit its slices.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn bf16(product: &mut Product<'_>) {
    in_blocks!(product, (), bf16_rows);
}

/// Computes products of bytes.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    assert!(
        integers.fits(product.rows, product.panel.len()),
        "the quantization must fit the product"
    );
    in_blocks!(product, integers, int8_rows);
}

/// Quantizes one block of a row to unsigned bytes, as [`super::rowwise::quantize`] does for whole
/// rows.
///
/// # Panics
/// Panics if there are fewer bytes than values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn quantize_block(values: &[f32], out: &mut [u8]) -> RowQuantization {
    /// Classes of `vfpclassps` for NaN and infinities:
    /// <https://www.intel.com/content/www/us/en/docs/intrinsics-guide/>.
    const NOT_FINITE: i32 = 0x99;
    const LANES: usize = 16;
    assert!(values.len() <= out.len(), "a byte for each value");
    let lanes = |at: usize| -> __mmask16 {
        let rest = values.len() - at;
        if rest >= LANES { __mmask16::MAX } else { (1 << rest) - 1 }
    };
    let (mut least, mut most) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    let mut wrong: __mmask16 = 0;
    for at in (0..values.len()).step_by(LANES) {
        // SAFETY: the mask selects the lanes of `values` from `at` on. The other lanes are not
        // read.
        // JUSTIFICATION: all masked loads are unsafe.
        let chunk = unsafe { _mm512_maskz_loadu_ps(lanes(at), values.as_ptr().add(at)) };
        least = _mm512_min_ps(least, chunk);
        most = _mm512_max_ps(most, chunk);
        wrong |= _mm512_fpclass_ps_mask::<NOT_FINITE>(chunk);
    }
    let (least, most) = (_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most));
    let mut quantization = RowQuantization::of_range(least, most);
    let inverse = _mm512_set1_ps(1.0 / quantization.scale);
    let zero = _mm512_set1_ps(quantization.zero);
    for at in (0..values.len()).step_by(LANES) {
        // SAFETY: as above. `out` is at least as long as `values`.
        // JUSTIFICATION: as above.
        unsafe {
            let chunk = _mm512_maskz_loadu_ps(lanes(at), values.as_ptr().add(at));
            let shifted = _mm512_cvtps_epi32(_mm512_fmadd_ps(chunk, inverse, zero));
            // `max` clamps to 0 from below; the conversion with unsigned saturation clamps to 255.
            let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(shifted, _mm512_setzero_si512()));
            _mm_mask_storeu_epi8(out.as_mut_ptr().add(at).cast(), lanes(at), bytes);
        }
    }
    if wrong != 0 {
        quantization.scale = f32::NAN;
    }
    quantization
}
