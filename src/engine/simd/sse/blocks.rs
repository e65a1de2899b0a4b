//! Micro-kernels for SSE4.2, in inline assembly.
//!
//! Goldmont and related cores issue the instructions of a vector unit in order. A multiplication
//! occupies the only multiplier for two cycles. So the loops are software-pipelined. Each step
//! loads a value for a product of a later step, computes one product, and adds an earlier product
//! that is ready by then.

use std::arch::asm;
use std::arch::x86_64::{_mm_loadu_ps, _mm_setzero_ps, _mm_storeu_ps};

/// Value of a row, broadcast to a vector.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct BroadcastValue([u8; 16]);

/// Operands and results of one micro-kernel call.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Number of rows, 1 to 6.
    pub(super) rows: usize,
    /// Broadcast values, `[2 * rounds, rows]`, and memory for one more lane group.
    pub(super) panel: *const BroadcastValue,
    /// Weights of `2 * rounds` lane groups, 128 bytes apart.
    pub(super) weights: *const u8,
    /// Number of rounds of two lane groups, at least 1.
    pub(super) rounds: usize,
    /// First result of the first row. Each row has four results for each vector.
    pub(super) results: *mut f32,
    /// Distance between the results of two rows, in values.
    pub(super) stride: usize,
}

/// Vectors of weights that a tile is multiplied with at once, by its number of rows.
pub(super) const VECTORS: [usize; 7] = [0, 4, 2, 2, 1, 1, 1];

/// Calls `$body` with the registers and steps of tiles of one to six rows.
///
/// - `sums`: the accumulators, each with its row and vector.
/// - `loaded`, `zeroed`: the registers of products. Those in `loaded` are loaded before the loop,
///   with their offsets in bytes.
/// - `even`, `odd`: the registers of the weights of even and odd lane groups, with their offsets in
///   bytes.
/// - `first`, `middle`, `last`: the steps of a round of two lane groups. A step loads a value,
///   multiplies a value with weights, and adds a product to a sum.
/// - `pending`: the products that are added after the loop.
/// - `advance`: the bytes of a round in the copied panel.
macro_rules! for_blocks {
    ($body:ident: $one:ident $two:ident $three:ident $four:ident $five:ident $six:ident) => {
        $body! {
            $one
            sums ["xmm0" 0 0, "xmm1" 0 1, "xmm2" 0 2, "xmm3" 0 3]
            loaded ["xmm4" "0"]
            zeroed ["xmm5", "xmm6", "xmm7"]
            even ["xmm8" "0", "xmm9" "16", "xmm10" "32", "xmm11" "48"]
            odd ["xmm12" "128", "xmm13" "144", "xmm14" "160", "xmm15" "176"]
            first [
                "xmm5" "0", "xmm4" "xmm8", "xmm2" "xmm6"
            ]
            middle [
                "xmm6" "0", "xmm5" "xmm9", "xmm3" "xmm7";
                "xmm7" "0", "xmm6" "xmm10", "xmm0" "xmm4";
                "xmm4" "16", "xmm7" "xmm11", "xmm1" "xmm5";
                "xmm5" "16", "xmm4" "xmm12", "xmm2" "xmm6"
            ]
            last [
                "xmm6" "16", "xmm5" "xmm13", "xmm3" "xmm7";
                "xmm7" "16", "xmm6" "xmm14", "xmm0" "xmm4";
                "xmm4" "32", "xmm7" "xmm15", "xmm1" "xmm5"
            ]
            pending ["xmm2" "xmm6", "xmm3" "xmm7"]
            advance "32"
        }
        $body! {
            $two
            sums ["xmm0" 0 0, "xmm1" 0 1, "xmm2" 1 0, "xmm3" 1 1]
            loaded ["xmm4" "0", "xmm5" "0"]
            zeroed ["xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"]
            even ["xmm12" "0", "xmm13" "16"]
            odd ["xmm14" "128", "xmm15" "144"]
            first [
                "xmm6" "16", "xmm4" "xmm12", "xmm3" "xmm7"
            ]
            middle [
                "xmm7" "16", "xmm5" "xmm13", "xmm0" "xmm8";
                "xmm8" "32", "xmm6" "xmm12", "xmm1" "xmm9";
                "xmm9" "32", "xmm7" "xmm13", "xmm2" "xmm10";
                "xmm10" "48", "xmm8" "xmm14", "xmm3" "xmm11"
            ]
            last [
                "xmm11" "48", "xmm9" "xmm15", "xmm0" "xmm4";
                "xmm4" "64", "xmm10" "xmm14", "xmm1" "xmm5";
                "xmm5" "64", "xmm11" "xmm15", "xmm2" "xmm6"
            ]
            pending ["xmm3" "xmm7", "xmm0" "xmm8", "xmm1" "xmm9", "xmm2" "xmm10", "xmm3" "xmm11"]
            advance "64"
        }
        $body! {
            $three
            sums ["xmm0" 0 0, "xmm1" 0 1, "xmm2" 1 0, "xmm3" 1 1, "xmm4" 2 0, "xmm5" 2 1]
            loaded ["xmm6" "0", "xmm7" "0"]
            zeroed ["xmm8", "xmm9", "xmm10", "xmm11"]
            even ["xmm12" "0", "xmm13" "16"]
            odd ["xmm14" "128", "xmm15" "144"]
            first [
                "xmm8" "16", "xmm6" "xmm12", "xmm3" "xmm9"
            ]
            middle [
                "xmm9" "16", "xmm7" "xmm13", "xmm4" "xmm10";
                "xmm10" "32", "xmm8" "xmm12", "xmm5" "xmm11";
                "xmm11" "32", "xmm9" "xmm13", "xmm0" "xmm6";
                "xmm6" "48", "xmm10" "xmm12", "xmm1" "xmm7";
                "xmm7" "48", "xmm11" "xmm13", "xmm2" "xmm8";
                "xmm8" "64", "xmm6" "xmm14", "xmm3" "xmm9"
            ]
            last [
                "xmm9" "64", "xmm7" "xmm15", "xmm4" "xmm10";
                "xmm10" "80", "xmm8" "xmm14", "xmm5" "xmm11";
                "xmm11" "80", "xmm9" "xmm15", "xmm0" "xmm6";
                "xmm6" "96", "xmm10" "xmm14", "xmm1" "xmm7";
                "xmm7" "96", "xmm11" "xmm15", "xmm2" "xmm8"
            ]
            pending ["xmm3" "xmm9", "xmm4" "xmm10", "xmm5" "xmm11"]
            advance "96"
        }
        $body! {
            $four
            sums ["xmm0" 0 0, "xmm1" 1 0, "xmm2" 2 0, "xmm3" 3 0]
            loaded ["xmm4" "0", "xmm5" "16"]
            zeroed ["xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"]
            even ["xmm12" "0"]
            odd ["xmm13" "128"]
            first [
                "xmm6" "32", "xmm4" "xmm12", "xmm3" "xmm7"
            ]
            middle [
                "xmm7" "48", "xmm5" "xmm12", "xmm0" "xmm8";
                "xmm8" "64", "xmm6" "xmm12", "xmm1" "xmm9";
                "xmm9" "80", "xmm7" "xmm12", "xmm2" "xmm10";
                "xmm10" "96", "xmm8" "xmm13", "xmm3" "xmm11"
            ]
            last [
                "xmm11" "112", "xmm9" "xmm13", "xmm0" "xmm4";
                "xmm4" "128", "xmm10" "xmm13", "xmm1" "xmm5";
                "xmm5" "144", "xmm11" "xmm13", "xmm2" "xmm6"
            ]
            pending ["xmm3" "xmm7", "xmm0" "xmm8", "xmm1" "xmm9", "xmm2" "xmm10", "xmm3" "xmm11"]
            advance "128"
        }
        $body! {
            $five
            sums ["xmm0" 0 0, "xmm1" 1 0, "xmm2" 2 0, "xmm3" 3 0, "xmm4" 4 0]
            loaded ["xmm5" "0", "xmm6" "16"]
            zeroed ["xmm7", "xmm8", "xmm9"]
            even ["xmm10" "0"]
            odd ["xmm11" "128"]
            first [
                "xmm7" "32", "xmm5" "xmm10", "xmm3" "xmm8"
            ]
            middle [
                "xmm8" "48", "xmm6" "xmm10", "xmm4" "xmm9";
                "xmm9" "64", "xmm7" "xmm10", "xmm0" "xmm5";
                "xmm5" "80", "xmm8" "xmm10", "xmm1" "xmm6";
                "xmm6" "96", "xmm9" "xmm10", "xmm2" "xmm7";
                "xmm7" "112", "xmm5" "xmm11", "xmm3" "xmm8"
            ]
            last [
                "xmm8" "128", "xmm6" "xmm11", "xmm4" "xmm9";
                "xmm9" "144", "xmm7" "xmm11", "xmm0" "xmm5";
                "xmm5" "160", "xmm8" "xmm11", "xmm1" "xmm6";
                "xmm6" "176", "xmm9" "xmm11", "xmm2" "xmm7"
            ]
            pending ["xmm3" "xmm8", "xmm4" "xmm9"]
            advance "160"
        }
        $body! {
            $six
            sums ["xmm0" 0 0, "xmm1" 1 0, "xmm2" 2 0, "xmm3" 3 0, "xmm4" 4 0, "xmm5" 5 0]
            loaded ["xmm6" "0", "xmm7" "16"]
            zeroed ["xmm8", "xmm9", "xmm10", "xmm11"]
            even ["xmm12" "0"]
            odd ["xmm13" "128"]
            first [
                "xmm8" "32", "xmm6" "xmm12", "xmm3" "xmm9"
            ]
            middle [
                "xmm9" "48", "xmm7" "xmm12", "xmm4" "xmm10";
                "xmm10" "64", "xmm8" "xmm12", "xmm5" "xmm11";
                "xmm11" "80", "xmm9" "xmm12", "xmm0" "xmm6";
                "xmm6" "96", "xmm10" "xmm12", "xmm1" "xmm7";
                "xmm7" "112", "xmm11" "xmm12", "xmm2" "xmm8";
                "xmm8" "128", "xmm6" "xmm13", "xmm3" "xmm9"
            ]
            last [
                "xmm9" "144", "xmm7" "xmm13", "xmm4" "xmm10";
                "xmm10" "160", "xmm8" "xmm13", "xmm5" "xmm11";
                "xmm11" "176", "xmm9" "xmm13", "xmm0" "xmm6";
                "xmm6" "192", "xmm10" "xmm13", "xmm1" "xmm7";
                "xmm7" "208", "xmm11" "xmm13", "xmm2" "xmm8"
            ]
            pending ["xmm3" "xmm9", "xmm4" "xmm10", "xmm5" "xmm11"]
            advance "192"
        }
    };
}

macro_rules! steps {
    ($multiply:tt $add:tt [$($next:tt $place:tt, $value:tt $weights:tt, $sum:tt $product:tt);+]) => {
        concat!($(
            "movaps ", $next, ", xmmword ptr [{panel} + ", $place, "]\n",
            $multiply, " ", $value, ", ", $weights, "\n",
            $add, " ", $sum, ", ", $product, "\n",
        )+)
    };
}

/// Defines `$name`, which multiplies a tile with as many rows as its table describes.
macro_rules! block {
    ($name:ident $multiply:tt $add:tt; sums [$($sum:tt $row:tt $column:tt),+]
     loaded [$($loaded:tt $place:tt),+] zeroed [$($zeroed:tt),+]
     even [$($even:tt $even_place:tt),+] odd [$($odd:tt $odd_place:tt),+]
     first $first:tt middle $middle:tt last $last:tt
     pending [$($pending:tt $product:tt),+] advance $advance:tt) => {
        /// Multiplies the tile. Adds to the results unless `fresh`; overwrites them if `fresh`.
        ///
        /// # Safety
        /// The block has the number of rows of this function, and its fields are valid as
        /// documented.
        #[inline(never)]
        #[target_feature(enable = "sse4.2")]
        unsafe fn $name(block: Block, fresh: bool) {
            let Block { panel, weights, rounds, results, stride, .. } = block;
            let mut sums = [[_mm_setzero_ps(); 4]; 6];
            // SAFETY: each of the `rounds` rounds reads two lane groups of the panel and of the
            // weights, which the caller provides. It also reads up to six values of the next lane
            // group of the panel; in the last round these are read but not used. In the last round,
            // `cmovz` makes the early load of the next weights read the first ones again, so the
            // load stays within the weights. The loop writes registers alone. The caller provides
            // the results of each row.
            // JUSTIFICATION: the compiler reorders intrinsics, and each product then waits.
            unsafe {
                if !fresh {
                    $(sums[$row][$column] = _mm_loadu_ps(results.add($row * stride + $column * 4));)+
                }
                asm!(
                    $(concat!("movaps ", $loaded, ", xmmword ptr [{panel} + ", $place, "]"),)+
                    $(concat!("pxor ", $zeroed, ", ", $zeroed),)+
                    $(concat!("movups ", $even, ", xmmword ptr [{weights} + ", $even_place, "]"),)+
                    "2:",
                    steps!($multiply $add $first),
                    $(concat!("movups ", $odd, ", xmmword ptr [{weights} + ", $odd_place, "]"),)+
                    steps!($multiply $add $middle),
                    // `cmovz` and `jnz` test the result of `dec`. No instruction between them may
                    // change the flags, so the pointer into the panel advances by `lea`.
                    "add {weights}, 256",
                    "dec {rounds}",
                    "cmovz {weights}, {start}",
                    $(concat!("movups ", $even, ", xmmword ptr [{weights} + ", $even_place, "]"),)+
                    steps!($multiply $add $last),
                    concat!("lea {panel}, [{panel} + ", $advance, "]"),
                    "jnz 2b",
                    $(concat!($add, " ", $pending, ", ", $product),)+
                    panel = inout(reg) panel => _,
                    weights = inout(reg) weights => _,
                    start = in(reg) weights,
                    rounds = inout(reg) rounds => _,
                    $(out($loaded) _,)+
                    $(out($zeroed) _,)+
                    $(out($even) _,)+
                    $(out($odd) _,)+
                    $(inout($sum) sums[$row][$column],)+
                    options(nostack, readonly),
                );
                $(_mm_storeu_ps(results.add($row * stride + $column * 4), sums[$row][$column]);)+
            }
        }
    };
}

macro_rules! f32_block {
    ($name:ident $($table:tt)+) => {
        block! { $name "mulps" "addps"; $($table)+ }
    };
}

macro_rules! int8_block {
    ($name:ident $($table:tt)+) => {
        block! { $name "pmaddwd" "paddd"; $($table)+ }
    };
}

for_blocks!(f32_block: f32_1_row f32_2_rows f32_3_rows f32_4_rows f32_5_rows f32_6_rows);
for_blocks!(int8_block: int8_1_row int8_2_rows int8_3_rows int8_4_rows int8_5_rows int8_6_rows);

/// Multiplies f32 values with `VECTORS[block.rows]` vectors. Adds to the results unless `fresh`;
/// overwrites them if `fresh`.
///
/// # Safety
/// The fields of `block` are valid as documented.
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn f32(block: Block, fresh: bool) {
    // SAFETY: the caller guarantees the same.
    // JUSTIFICATION: the micro-kernels are unsafe; they rely on the contract of [`Block`].
    unsafe {
        match block.rows {
            1 => f32_1_row(block, fresh),
            2 => f32_2_rows(block, fresh),
            3 => f32_3_rows(block, fresh),
            4 => f32_4_rows(block, fresh),
            5 => f32_5_rows(block, fresh),
            _ => f32_6_rows(block, fresh),
        }
    }
}

/// Multiplies 16-bit integers with `VECTORS[block.rows]` vectors. The results are sums of 32
/// bits.
///
/// # Safety
/// The fields of `block` are valid as documented.
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn int8(block: Block) {
    // SAFETY: the caller guarantees the same.
    // JUSTIFICATION: as above.
    unsafe {
        match block.rows {
            1 => int8_1_row(block, true),
            2 => int8_2_rows(block, true),
            3 => int8_3_rows(block, true),
            4 => int8_4_rows(block, true),
            5 => int8_5_rows(block, true),
            _ => int8_6_rows(block, true),
        }
    }
}
