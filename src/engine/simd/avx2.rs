//! Micro-kernels for products of f32 and of bytes with AVX2 and FMA.
//!
//! The innermost loops are inline assembly, in functions that are not inlined. With intrinsics, the
//! compiler keeps the sums in memory when the whole program is linked as one unit, and the loops
//! take five times as long.
//!
//! Bytes are multiplied as 16-bit integers: `vpmaddwd` is exact, whereas `vpmaddubsw` saturates.
//! The rows are already 16-bit integers, in the format
//! [`Int8RowFormat::Wide`](super::Int8RowFormat::Wide). The kernel widens the weights piece by
//! piece, into memory that stays in the first-level cache, and multiplies all rows with a piece.
//!
//! The scalar twins are in [`super::gemm`].

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_fmadd_ps,
    _mm256_fnmadd_ps, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_mul_ps, _mm256_permute4x64_epi64,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_store_si256, _mm256_storeu_ps,
};
use std::mem::MaybeUninit;

use super::PANEL_WIDTH;
use super::prefetch::Prefetcher;
use super::product::{BlockPiece, OperandQuantization, Product, row_blocks};

/// Maximum number of rows of a register tile: the sums of 3 rows × 4 vectors take 12 of 16
/// registers.
const ROWS: usize = 3;
/// Lane groups of f32 that all rows are multiplied with before the next ones: 16 KiB of weights.
const F32_GROUPS: usize = 128;
/// Columns of an int8 register tile.
const COLUMNS: usize = 16;
/// Lane groups of bytes that are widened at a time: 12 KiB of weights.
const INT8_GROUPS: usize = 96;

/// Calls `$body` with the registers of a tile of one, two and three rows:
/// `[values] [columns] [sums]`.
///
/// A value is a register and the address of a row's next lane group. A column is the byte offset of
/// a vector of weights, followed by the sums that it contributes to, each with the register of the
/// row's value. A sum is a register, its row and its vector.
macro_rules! for_blocks {
    ($body:ident: $one:ident, $two:ident, $three:ident) => {
        $body! {
            $one 1
            ["ymm12" ""]
            ["0": "ymm0" "ymm12"; "32": "ymm1" "ymm12"; "64": "ymm2" "ymm12"; "96": "ymm3" "ymm12"]
            ["ymm0" 0 0, "ymm1" 0 1, "ymm2" 0 2, "ymm3" 0 3]
        }
        $body! {
            $two 2
            ["ymm12" "", "ymm13" " + {stride}"]
            [
                "0": "ymm0" "ymm12", "ymm4" "ymm13";
                "32": "ymm1" "ymm12", "ymm5" "ymm13";
                "64": "ymm2" "ymm12", "ymm6" "ymm13";
                "96": "ymm3" "ymm12", "ymm7" "ymm13"
            ]
            [
                "ymm0" 0 0, "ymm1" 0 1, "ymm2" 0 2, "ymm3" 0 3,
                "ymm4" 1 0, "ymm5" 1 1, "ymm6" 1 2, "ymm7" 1 3
            ]
        }
        $body! {
            $three 3
            ["ymm12" "", "ymm13" " + {stride}", "ymm14" " + 2*{stride}"]
            [
                "0": "ymm0" "ymm12", "ymm4" "ymm13", "ymm8" "ymm14";
                "32": "ymm1" "ymm12", "ymm5" "ymm13", "ymm9" "ymm14";
                "64": "ymm2" "ymm12", "ymm6" "ymm13", "ymm10" "ymm14";
                "96": "ymm3" "ymm12", "ymm7" "ymm13", "ymm11" "ymm14"
            ]
            [
                "ymm0" 0 0, "ymm1" 0 1, "ymm2" 0 2, "ymm3" 0 3,
                "ymm4" 1 0, "ymm5" 1 1, "ymm6" 1 2, "ymm7" 1 3,
                "ymm8" 2 0, "ymm9" 2 1, "ymm10" 2 2, "ymm11" 2 3
            ]
        }
    };
}

/// Generates the instructions for one lane group of f32.
macro_rules! f32_group {
    ([$($value:tt $place:tt),+] [$($column:tt: $($sum:tt $factor:tt),+);+]) => {
        concat!(
            $("vbroadcastss ", $value, ", dword ptr [{rows}", $place, "]\n",)+
            $(
                "vmovups ymm15, ymmword ptr [{weights} + ", $column, "]\n",
                $("vfmadd231ps ", $sum, ", ", $factor, ", ymm15\n",)+
            )+
        )
    };
}

/// Generates the instructions for the lane group of bytes at the offsets `$weights` and `$rows`, in
/// bytes.
macro_rules! int8_group {
    ($weights:tt $rows:tt [$($value:tt $place:tt),+] [$($column:tt: $($sum:tt $factor:tt),+);+]) => {
        concat!(
            $("vpbroadcastq ", $value, ", qword ptr [{rows}", $place, " + ", $rows, "]\n",)+
            $($(
                "vpmaddwd ymm15, ", $factor,
                ", ymmword ptr [{weights} + ", $weights, " + ", $column, "]\n",
                "vpaddd ", $sum, ", ", $sum, ", ymm15\n",
            )+)+
        )
    };
}

/// Operands and results of one micro-kernel call.
#[derive(Clone, Copy)]
struct Block {
    /// First row, at its first lane group.
    rows: *const u32,
    /// Distance between two rows, in `u32`.
    stride: usize,
    /// Weights of the lane groups, 128 bytes each.
    weights: *const u8,
    /// Number of lane groups, at least 1.
    groups: usize,
    /// First result of the first row.
    out: *mut f32,
    out_stride: usize,
}

macro_rules! f32_block {
    ($name:ident $count:literal $values:tt $columns:tt
     [$($register:tt $row:tt $vector:tt),+]) => {
        /// Multiplies the rows with 32 columns. Adds to the results unless `fresh`; overwrites them
        /// if `fresh`.
        ///
        /// # Safety
        /// The block's rows, weights and results are valid for its number of lane groups and for
        /// the rows of this function.
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(block: Block, fresh: bool) {
            let Block { rows, stride, weights, groups, out, out_stride } = block;
            let mut sums = [[_mm256_setzero_ps(); 4]; $count];
            // SAFETY: the caller provides 32 results for each row. Round `n` of the `groups` rounds
            // reads value `n` of each row and the weights of lane group `n`, which the caller
            // provides. The loop writes registers alone.
            // JUSTIFICATION: the compiler keeps the sums of intrinsics in memory; see the head of
            // this file.
            unsafe {
                if !fresh {
                    $(sums[$row][$vector] = _mm256_loadu_ps(out.add($row * out_stride + $vector * 8));)+
                }
                asm!(
                    // The assembler comment uses `stride`, which is an error to leave unused in the
                    // tile of one row.
                    "# rows are {stride} bytes apart",
                    "2:",
                    f32_group!($values $columns),
                    "add {rows}, 4",
                    "add {weights}, 128",
                    "dec {groups}",
                    "jnz 2b",
                    rows = inout(reg) rows => _,
                    stride = in(reg) stride * size_of::<u32>(),
                    weights = inout(reg) weights => _,
                    groups = inout(reg) groups => _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    $(inout($register) sums[$row][$vector],)+
                    options(nostack, readonly),
                );
                $(_mm256_storeu_ps(out.add($row * out_stride + $vector * 8), sums[$row][$vector]);)+
            }
        }
    };
}
for_blocks!(f32_block: f32_1_row, f32_2_rows, f32_3_rows);

macro_rules! int8_block {
    ($name:ident $count:literal $values:tt $columns:tt
     [$($register:tt $row:tt $vector:tt),+]) => {
        /// Multiplies rows of 16-bit integers with 16 columns of widened weights. Returns two sums
        /// for each column: one of the first two and one of the last two inputs of all lane groups.
        ///
        /// # Safety
        /// The block's rows and weights are valid for its number of lane groups and for the rows of
        /// this function.
        #[inline(never)]
        #[target_feature(enable = "avx2")]
        unsafe fn $name(block: Block) -> [[__m256i; 4]; $count] {
            let mut sums = [[_mm256_setzero_si256(); 4]; $count];
            // SAFETY: the first loop reads four lane groups a round, `groups / 4` times. The second
            // loop reads one lane group a round, `groups % 4` times. The caller provides them all.
            // Both loops write registers alone.
            // JUSTIFICATION: the compiler keeps the sums of intrinsics in memory; see the head of
            // this file.
            unsafe {
                asm!(
                    "# rows are {stride} bytes apart",
                    "sub {groups}, 4",
                    "jb 3f",
                    "2:",
                    int8_group!("0" "0" $values $columns),
                    int8_group!("128" "8" $values $columns),
                    int8_group!("256" "16" $values $columns),
                    int8_group!("384" "24" $values $columns),
                    "add {rows}, 32",
                    "add {weights}, 512",
                    "sub {groups}, 4",
                    "jae 2b",
                    "3:",
                    "add {groups}, 4",
                    "jz 5f",
                    "4:",
                    int8_group!("0" "0" $values $columns),
                    "add {rows}, 8",
                    "add {weights}, 128",
                    "dec {groups}",
                    "jnz 4b",
                    "5:",
                    rows = inout(reg) block.rows => _,
                    stride = in(reg) block.stride * size_of::<u32>(),
                    weights = inout(reg) block.weights => _,
                    groups = inout(reg) block.groups => _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    $(inout($register) sums[$row][$vector],)+
                    options(nostack, readonly),
                );
            }
            sums
        }
    };
}
for_blocks!(int8_block: int8_1_row, int8_2_rows, int8_3_rows);

/// Computes products of f32.
///
/// # Panics
/// Panics if the product does not fit its slices.
#[target_feature(enable = "avx2,fma")]
pub(super) fn f32(product: &mut Product<'_>) {
    let (rows, groups) = (product.rows, product.panel.len());
    assert!(product.fits(rows, groups), "the operands must fit the product");
    let calls = rows.div_ceil(ROWS) * groups.div_ceil(F32_GROUPS);
    let mut prefetcher = Prefetcher::new(product.next_panel, calls, 1);
    for start in (0..groups).step_by(F32_GROUPS) {
        for rows in row_blocks(rows, ROWS) {
            prefetcher.prefetch_next();
            // SAFETY: `fits` puts `groups` lane groups of each row within the operand and 32
            // results of it within `out`. The panel has `groups` lane groups, and `start` is below
            // that number.
            // JUSTIFICATION: with slices, every round of the loop compares the bounds of its rows.
            unsafe {
                let block = f32_piece(product, rows.start, start);
                match rows.len() {
                    1 => f32_1_row(block, start == 0),
                    2 => f32_2_rows(block, start == 0),
                    _ => f32_3_rows(block, start == 0),
                }
            }
        }
    }
}

/// Returns the operands from row `first` and lane group `start` on.
///
/// # Safety
/// Row `first` and lane group `start` are within the product.
#[inline]
unsafe fn f32_piece(product: &mut Product<'_>, first: usize, start: usize) -> Block {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: as in `f32`.
    unsafe {
        Block {
            rows: product.operand.as_ptr().add(first * product.stride + start),
            stride: product.stride,
            weights: product.panel.as_ptr().add(start).cast(),
            groups: F32_GROUPS.min(product.panel.len() - start),
            out: product.out.as_mut_ptr().add(first * product.out_stride),
            out_stride: product.out_stride,
        }
    }
}

/// Weights of 16 columns, widened to 16 bits each: `[groups, 16 columns, 4 inputs]`.
#[repr(C, align(32))]
struct WidenedWeights([MaybeUninit<[i16; 4 * COLUMNS]>; INT8_GROUPS]);

impl WidenedWeights {
    /// Widens the weights of 16 columns from `column` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fill(&mut self, panel: &[[u32; PANEL_WIDTH]], column: usize) {
        for (widened, group) in self.0.iter_mut().zip(panel) {
            let widened: *mut __m256i = widened.as_mut_ptr().cast();
            let (fours, _) = group[column..].as_chunks::<4>();
            for (index, four) in fours[..COLUMNS / 4].iter().enumerate() {
                // SAFETY: `four` has 16 bytes, and `widened` has four times 32 bytes, aligned to
                // 32.
                // JUSTIFICATION: all vector loads and stores are unsafe.
                unsafe {
                    let weights = _mm_loadu_si128(four.as_ptr().cast::<__m128i>());
                    _mm256_store_si256(widened.add(index), _mm256_cvtepi8_epi16(weights));
                }
            }
        }
    }
}

/// Computes products of bytes. The rows have 16 bits per value.
///
/// # Panics
/// Panics if the product does not fit its slices, or if `integers` does not fit the product.
#[target_feature(enable = "avx2,fma")]
pub(super) fn int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    let (rows, groups) = (product.rows, product.panel.len());
    assert!(
        product.fits(rows, 2 * groups) && integers.fits(rows, groups),
        "the operands and the quantization must fit the product"
    );
    let pieces = integers.pieces(INT8_GROUPS).count() * PANEL_WIDTH / COLUMNS;
    let mut prefetcher = Prefetcher::new(product.next_panel, rows.div_ceil(ROWS) * pieces, 1);
    let mut widened = WidenedWeights([const { MaybeUninit::uninit() }; INT8_GROUPS]);
    for column in (0..PANEL_WIDTH).step_by(COLUMNS) {
        for piece in integers.pieces(INT8_GROUPS) {
            widened.fill(&product.panel[piece.groups.clone()], column);
            let weights = widened.0.as_ptr().cast();
            for rows in row_blocks(rows, ROWS) {
                prefetcher.prefetch_next();
                let first = rows.start;
                // SAFETY: `fits` puts twice `groups` elements of each row within the operand and 32
                // results of it within `out`. A piece lies within `groups`, and `widened` has its
                // weights. `fits` guarantees a quantization for each row and block.
                // JUSTIFICATION: with slices, every round of the loop compares the bounds of its
                // rows.
                unsafe {
                    let block = int8_piece(product, first, &piece, weights, column);
                    match rows.len() {
                        1 => values(integers, &piece, first, column, block, int8_1_row(block)),
                        2 => values(integers, &piece, first, column, block, int8_2_rows(block)),
                        _ => values(integers, &piece, first, column, block, int8_3_rows(block)),
                    }
                }
            }
        }
    }
}

/// Returns the operands from row `first` on for `piece`.
///
/// # Safety
/// Row `first`, the piece and 16 columns from `column` on are within the product.
#[inline]
unsafe fn int8_piece(
    product: &mut Product<'_>,
    first: usize,
    piece: &BlockPiece,
    weights: *const u8,
    column: usize,
) -> Block {
    // SAFETY: the caller guarantees this.
    // JUSTIFICATION: as in `int8`.
    unsafe {
        Block {
            rows: product.operand.as_ptr().add(first * product.stride + 2 * piece.groups.start),
            stride: product.stride,
            weights,
            groups: piece.groups.len(),
            out: product.out.as_mut_ptr().add(first * product.out_stride + column),
            out_stride: product.out_stride,
        }
    }
}

/// Converts the sums of a piece to f32 and adds them to the results. [`OperandQuantization`] has
/// the formula.
///
/// # Safety
/// `integers.fits(first + R, ..)` is true, `block` has 16 results for each of `R` rows, and
/// `column + 16` is at most 32.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn values<const R: usize>(
    integers: &OperandQuantization<'_>,
    piece: &BlockPiece,
    first: usize,
    column: usize,
    block: Block,
    sums: [[__m256i; 4]; R],
) {
    let blocks = integers.ends.len();
    // SAFETY: `fits` guarantees a quantization for each row and block, and 32 weight sums and
    // scales for each block. The caller provides the results.
    // JUSTIFICATION: all vector loads and stores are unsafe.
    unsafe {
        let halves = |values: &[f32; PANEL_WIDTH]| {
            let values = values.as_ptr().add(column);
            [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))]
        };
        let weight_sums = halves(&integers.sums[piece.block]);
        let scales = halves(&integers.scales[piece.block]);
        for (row, sums) in sums.into_iter().enumerate() {
            let stands_for = *integers.rows.as_ptr().add((first + row) * blocks + piece.block);
            let zero = if piece.is_last { stands_for.zero } else { 0.0 };
            let (zero, scale) = (_mm256_set1_ps(zero), _mm256_set1_ps(stands_for.scale));
            for (half, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
                // `hadd` adds the two adjacent sums of each column. It works in 128-bit halves, so
                // the sums of columns 2 and 3 follow those of 4 and 5; the permutation restores the
                // order.
                let sum =
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[0], sums[1]));
                let out = block.out.add(row * block.out_stride + half * 8);
                let sum = _mm256_fnmadd_ps(zero, weight_sums[half], _mm256_cvtepi32_ps(sum));
                let scale = _mm256_mul_ps(scale, scales[half]);
                let value = if piece.groups.start == 0 {
                    _mm256_mul_ps(sum, scale)
                } else {
                    _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out))
                };
                _mm256_storeu_ps(out, value);
            }
        }
    }
}
