//! Products of f32 and of bytes with SSE4.2, for processors without AVX: Goldmont, Tremont and
//! older.
//!
//! SSE has no load that broadcasts a value, and each shuffle would take a cycle of the unit that
//! multiplies. So the kernel first copies the rows of a tile into a [`PackedRows`], with each value
//! broadcast to a vector. The copy is used for all columns of the panel of weights. The
//! micro-kernels are in [`blocks`].
//!
//! Bytes are multiplied as 16-bit integers, as in [`super::avx2`].
//!
//! The scalar twins are in [`super::gemm`].

mod blocks;

use std::arch::x86_64::{
    __m128, __m128i, _mm_add_ps, _mm_castpd_ps, _mm_cvtepi8_epi16, _mm_cvtepi32_ps, _mm_hadd_epi32,
    _mm_load1_ps, _mm_loaddup_pd, _mm_loadl_epi64, _mm_loadu_ps, _mm_mul_ps, _mm_set1_ps,
    _mm_setzero_ps, _mm_setzero_si128, _mm_store_ps, _mm_store_si128, _mm_storeu_ps, _mm_sub_ps,
};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::PANEL_WIDTH;
use super::prefetch::Prefetcher;
use super::product::{BlockPiece, OperandQuantization, Product, row_blocks};
use blocks::{Block, BroadcastValue};

/// Maximum number of rows of a tile.
const ROWS: usize = 6;
/// Vectors of weights that a row is multiplied with: 32 columns of f32, or 16 columns of bytes.
const VECTORS: usize = 8;
/// Lane groups of f32 that all rows are multiplied with before the next ones: 8 KiB of weights and
/// 6 KiB of values. The first-level cache of a Goldmont has 24 KiB.
const F32_GROUPS: usize = 64;
/// Lane groups of bytes that are widened at a time: 12 KiB of weights. The loops process two lane
/// groups a round.
const INT8_GROUPS: usize = 48;
/// Columns of bytes in [`VECTORS`].
const COLUMNS: usize = 16;

/// Broadcast values of the rows of a tile, `[groups, rows]`. `GROUPS` includes one lane group that
/// is not written: the micro-kernel loads the next values ahead.
struct PackedRows<const GROUPS: usize>([[MaybeUninit<BroadcastValue>; ROWS]; GROUPS]);

impl<const GROUPS: usize> PackedRows<GROUPS> {
    const fn new() -> Self {
        Self([const { [const { MaybeUninit::uninit() }; ROWS] }; GROUPS])
    }

    /// Copies the values of `groups` lane groups of each of `rows` rows, and appends `padding` lane
    /// groups of zeros. `load` reads a lane group of the row at the pointer.
    ///
    /// # Safety
    /// `values` points to the first row, the rows have as many lane groups, and `groups + padding`
    /// is less than `GROUPS`.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    unsafe fn copy(
        &mut self,
        (values, stride): (*const u32, usize),
        rows: usize,
        groups: usize,
        padding: usize,
        load: impl Fn(*const u32, usize) -> __m128,
    ) {
        let panel: *mut f32 = self.0.as_mut_ptr().cast();
        for row in 0..rows {
            // SAFETY: the caller guarantees that the lane groups exist. The panel has `ROWS`
            // vectors for each lane group.
            // JUSTIFICATION: with slices, both bounds are compared for each value.
            unsafe {
                let values = values.add(row * stride);
                for group in 0..groups {
                    _mm_store_ps(panel.add((group * rows + row) * 4), load(values, group));
                }
                for group in groups..groups + padding {
                    _mm_store_ps(panel.add((group * rows + row) * 4), _mm_setzero_ps());
                }
            }
        }
    }

    fn values(&self) -> *const BroadcastValue {
        self.0.as_ptr().cast()
    }
}

/// Computes products of f32.
///
/// # Panics
/// Panics if the product does not fit its slices, or has an odd number of lane groups.
#[target_feature(enable = "sse4.2")]
pub(super) fn f32(product: &mut Product<'_>) {
    let (rows, groups) = (product.rows, product.panel.len());
    assert!(
        product.fits(rows, groups) && groups.is_multiple_of(2),
        "the operands must fit the product in whole rounds"
    );
    let calls = rows.div_ceil(ROWS) * groups.div_ceil(F32_GROUPS);
    let mut prefetcher = Prefetcher::new(product.next_panel, calls, 1);
    for start in (0..groups).step_by(F32_GROUPS) {
        for rows in row_blocks(rows, ROWS) {
            prefetcher.prefetch_next();
            // SAFETY: `fits` was asserted above for all rows. `start` is below the number of lane
            // groups.
            // JUSTIFICATION: as in `f32_rows`.
            unsafe { f32_rows(product, rows, start) };
        }
    }
}

/// Multiplies rows with the lane groups from `start` on, at most [`F32_GROUPS`].
///
/// # Safety
/// `product.fits(rows.end, groups of the panel)` is true. There are 1 to 6 rows. `start` is below
/// the number of lane groups, which is even.
#[target_feature(enable = "sse4.2")]
unsafe fn f32_rows(product: &mut Product<'_>, rows: Range<usize>, start: usize) {
    let (stride, out_stride) = (product.stride, product.out_stride);
    let groups = F32_GROUPS.min(product.panel.len() - start);
    let mut panel = PackedRows::<{ F32_GROUPS + 1 }>::new();
    // SAFETY: `fits` puts the lane groups of each row within the operand and 32 results of it
    // within `out`. The copied panel then has as many lane groups as the weights from `start` on.
    // JUSTIFICATION: all vector loads and stores are unsafe.
    unsafe {
        let values = product.operand.as_ptr().add(rows.start * stride + start);
        panel.copy((values, stride), rows.len(), groups, 0, |values, group| {
            _mm_load1_ps(values.add(group).cast())
        });
        let weights: *const u8 = product.panel.as_ptr().add(start).cast();
        let out = product.out.as_mut_ptr().add(rows.start * out_stride);
        let at_once = blocks::VECTORS[rows.len()];
        for vector in (0..VECTORS).step_by(at_once) {
            let block = Block {
                rows: rows.len(),
                panel: panel.values(),
                weights: weights.add(vector * 16),
                rounds: groups / 2,
                results: out.add(vector * 4),
                stride: out_stride,
            };
            blocks::f32(block, start == 0);
        }
    }
}

/// Weights of 32 columns, widened to 16 bits each: `[2, groups, 16 columns, 4 inputs]`.
#[repr(C, align(16))]
struct WidenedWeights([[MaybeUninit<[i16; 4 * COLUMNS]>; INT8_GROUPS]; PANEL_WIDTH / COLUMNS]);

impl WidenedWeights {
    /// Widens the weights, and appends a lane group of zeros if their number is odd.
    #[target_feature(enable = "sse4.2")]
    fn fill(&mut self, panel: &[[u32; PANEL_WIDTH]]) {
        let zeros = [[0; PANEL_WIDTH]; 1];
        let padding = &zeros[..panel.len() % 2];
        for (half, widened) in self.0.iter_mut().enumerate() {
            for (widened, group) in widened.iter_mut().zip(panel.iter().chain(padding)) {
                let widened: *mut __m128i = widened.as_mut_ptr().cast();
                let (pairs, _) = group[half * COLUMNS..].as_chunks::<2>();
                for (index, pair) in pairs[..VECTORS].iter().enumerate() {
                    // SAFETY: `pair` has 8 bytes, and `widened` has eight times 16 bytes, aligned
                    // to 16.
                    // JUSTIFICATION: all vector loads and stores are unsafe.
                    unsafe {
                        let weights = _mm_loadl_epi64(pair.as_ptr().cast::<__m128i>());
                        _mm_store_si128(widened.add(index), _mm_cvtepi8_epi16(weights));
                    }
                }
            }
        }
    }
}

/// Computes products of bytes. The rows have 16 bits per value.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "sse4.2")]
pub(super) fn int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    let (rows, groups) = (product.rows, product.panel.len());
    assert!(
        product.fits(rows, 2 * groups) && integers.fits(rows, groups),
        "the operands and the quantization must fit the product"
    );
    let calls = rows.div_ceil(ROWS) * integers.pieces(INT8_GROUPS).count();
    let mut prefetcher = Prefetcher::new(product.next_panel, calls, 1);
    let mut widened = WidenedWeights(
        [const { [const { MaybeUninit::uninit() }; INT8_GROUPS] }; PANEL_WIDTH / COLUMNS],
    );
    for piece in integers.pieces(INT8_GROUPS) {
        widened.fill(&product.panel[piece.groups.clone()]);
        for rows in row_blocks(rows, ROWS) {
            prefetcher.prefetch_next();
            // SAFETY: both conditions were asserted above for all rows. `widened` has the weights
            // of the piece.
            // JUSTIFICATION: as in `int8_rows`.
            unsafe { int8_rows(product, integers, &piece, &widened, rows) };
        }
    }
}

/// Multiplies rows with the weights of `piece`, and adds the dequantized sums to the results.
///
/// # Safety
/// `product.fits(rows.end, twice the groups of the panel)` and `integers.fits(rows.end, groups of
/// the panel)` are true. There are 1 to 6 rows. `widened` has the weights of the piece.
#[target_feature(enable = "sse4.2")]
unsafe fn int8_rows(
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    widened: &WidenedWeights,
    rows: Range<usize>,
) {
    let (stride, out_stride) = (product.stride, product.out_stride);
    let groups = piece.groups.len();
    let mut panel = PackedRows::<{ INT8_GROUPS + 1 }>::new();
    let at_once = blocks::VECTORS[rows.len()];
    // SAFETY: `fits` puts the lane groups of each row, two elements each, within the operand and 32
    // results of it within `out`. Both the copied panel and `widened` are padded to an even number
    // of lane groups.
    // JUSTIFICATION: all vector loads and stores are unsafe.
    unsafe {
        let integers_of_rows =
            product.operand.as_ptr().add(rows.start * stride + 2 * piece.groups.start);
        panel.copy((integers_of_rows, stride), rows.len(), groups, groups % 2, |values, group| {
            _mm_castpd_ps(_mm_loaddup_pd(values.add(2 * group).cast()))
        });
        for (half, widened) in widened.0.iter().enumerate() {
            let mut sums = [[_mm_setzero_si128(); VECTORS]; ROWS];
            for vector in (0..VECTORS).step_by(at_once) {
                blocks::int8(Block {
                    rows: rows.len(),
                    panel: panel.values(),
                    weights: widened.as_ptr().cast::<u8>().add(vector * 16),
                    rounds: groups.div_ceil(2),
                    results: sums.as_mut_ptr().cast::<f32>().add(vector * 4),
                    stride: VECTORS * 4,
                });
            }
            let column = half * COLUMNS;
            for (row, sums) in rows.clone().zip(&sums) {
                let out = product.out.as_mut_ptr().add(row * out_stride + column);
                values(integers, piece, row, column, out, sums);
            }
        }
    }
}

/// Converts the sums of a row and a piece to f32 and adds them to the results.
/// [`OperandQuantization`] has the formula. Each column has two sums: one of the first two and one
/// of the last two inputs of all lane groups.
///
/// # Safety
/// `out` has 16 results.
#[target_feature(enable = "sse4.2")]
unsafe fn values(
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    row: usize,
    column: usize,
    out: *mut f32,
    sums: &[__m128i; VECTORS],
) {
    let weight_sums = &integers.sums[piece.block][column..][..COLUMNS];
    let scales = &integers.scales[piece.block][column..][..COLUMNS];
    let of_row = integers.rows[row * integers.ends.len() + piece.block];
    let zero = _mm_set1_ps(if piece.is_last { of_row.zero } else { 0.0 });
    let scale = _mm_set1_ps(of_row.scale);
    for (index, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
        // SAFETY: both slices have 16 values. The caller provides as many results.
        // JUSTIFICATION: all vector loads and stores are unsafe.
        unsafe {
            let load = |values: &[f32]| _mm_loadu_ps(values.as_ptr().add(index * 4));
            let sum = _mm_cvtepi32_ps(_mm_hadd_epi32(sums[0], sums[1]));
            let sum = _mm_sub_ps(sum, _mm_mul_ps(zero, load(weight_sums)));
            let value = _mm_mul_ps(sum, _mm_mul_ps(scale, load(scales)));
            let out = out.add(index * 4);
            let first = piece.groups.start == 0;
            let value = if first { value } else { _mm_add_ps(value, _mm_loadu_ps(out)) };
            _mm_storeu_ps(out, value);
        }
    }
}
