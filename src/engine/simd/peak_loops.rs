//! Loops that measure the peak rate of multiplications: the best instruction of a processor, with
//! all operands in registers.
//!
//! There is one loop for each instruction set and format. The computation of embeddings does not
//! use them.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;
use std::hint::black_box;

#[cfg(target_arch = "aarch64")]
use super::NeonInt8;
use super::{Isa, IsaLevel};

/// Format of the multiplied values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum ValueFormat {
    F32,
    Bf16,
    Bytes,
}

/// Multiplies for `rounds` rounds. Returns the number of multiplications.
pub(in crate::engine) fn multiply(isa: Isa, values: ValueFormat, rounds: usize) -> usize {
    // SAFETY: only `Isa::all` constructs a level other than the baseline, after it detected the
    // instructions.
    // JUSTIFICATION: a safe call needs the features enabled for the whole binary, which then would
    // not start on other processors.
    let of_round = unsafe {
        match (isa.0, values) {
            (IsaLevel::Baseline, _) => portable(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Sse42, ValueFormat::F32 | ValueFormat::Bf16) => sse_f32(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Sse42, ValueFormat::Bytes) => sse_bytes(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx2 { .. }, ValueFormat::F32 | ValueFormat::Bf16) => avx2_f32(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx2 { vnni: false }, ValueFormat::Bytes) => avx2_bytes(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx2 { vnni: true }, ValueFormat::Bytes) => avx_vnni_bytes(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx512 { vnni: true, .. }, ValueFormat::Bytes) => avx512_vnni_bytes(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx512 { vnni: false, .. }, ValueFormat::Bytes) => avx512_bytes(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx512 { bf16: true, .. }, ValueFormat::Bf16) => avx512_bf16(rounds),
            #[cfg(target_arch = "x86_64")]
            (IsaLevel::Avx512 { .. }, ValueFormat::F32 | ValueFormat::Bf16) => avx512_f32(rounds),
            #[cfg(target_arch = "aarch64")]
            (IsaLevel::Neon { integers: NeonInt8::Widening, .. }, ValueFormat::Bytes) => {
                neon_widening(rounds)
            }
            #[cfg(target_arch = "aarch64")]
            (IsaLevel::Neon { integers: NeonInt8::Dot, .. }, ValueFormat::Bytes) => {
                neon_dot(rounds)
            }
            #[cfg(target_arch = "aarch64")]
            (IsaLevel::Neon { integers: NeonInt8::Matrix, .. }, ValueFormat::Bytes) => {
                neon_matrix(rounds)
            }
            #[cfg(target_arch = "aarch64")]
            (IsaLevel::Neon { bf16: true, .. }, ValueFormat::Bf16) => neon_bf16(rounds),
            #[cfg(target_arch = "aarch64")]
            (IsaLevel::Neon { .. }, ValueFormat::F32 | ValueFormat::Bf16) => neon_f32(rounds),
        }
    };
    of_round * rounds
}

/// Multiplies accumulators that the compiler keeps in registers. Returns the multiplications of a
/// round.
fn portable(rounds: usize) -> usize {
    const SUMS: usize = 32;
    let (factor, mut sums) = (black_box(0.5_f32), [1.0_f32; SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * factor + factor;
        }
    }
    black_box(sums);
    SUMS
}

/// Defines a loop over registers that hold zeros.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_loop {
    ($name:ident, $multiplications:literal, $clear:expr, $body:expr, $end:expr) => {
        /// Returns the multiplications of a round.
        ///
        /// # Safety
        /// The processor has the instructions.
        unsafe fn $name(rounds: usize) -> usize {
            // SAFETY: the caller guarantees the instructions. They read and write declared
            // registers alone: the declaration of an `xmm` register covers the whole vector
            // register.
            // JUSTIFICATION: with intrinsics, the compiler computes the result of zeros and removes
            // the loop.
            unsafe {
                asm!(
                    $clear,
                    "2:",
                    $body,
                    "dec {rounds}",
                    "jnz 2b",
                    $end,
                    rounds = inout(reg) rounds.max(1) => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
            $multiplications
        }
    };
}

/// Generates one instruction for each of twelve accumulators. So many independent chains hide the
/// latency of the instruction.
#[cfg(target_arch = "x86_64")]
macro_rules! sums {
    ($instruction:literal, $factors:literal) => {
        sums!(@ $instruction, $factors, "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11")
    };
    (@ $instruction:literal, $factors:literal, $($sum:literal)+) => {
        concat!($($instruction, $sum, $factors, "\n",)+)
    };
}

/// Generates two instructions for each of six accumulators: a multiplication and an addition.
#[cfg(target_arch = "x86_64")]
macro_rules! products_and_sums {
    ($multiply:literal, $factors:literal, $add:literal, $two_operands:tt, $register:literal) => {
        products_and_sums!(@ $multiply, $factors, $add, $two_operands, $register,
            "0" "6", "1" "7", "2" "8", "3" "9", "4" "10", "5" "11")
    };
    (@ $multiply:literal, $factors:literal, $add:literal, true, $register:literal,
     $($sum:literal $product:literal),+) => {
        concat!($(
            $multiply, " ", $register, $product, $factors, "\n",
            $add, " ", $register, $sum, ", ", $register, $product, "\n",
        )+)
    };
    (@ $multiply:literal, $factors:literal, $add:literal, false, $register:literal,
     $($sum:literal $product:literal),+) => {
        concat!($(
            $multiply, " ", $register, $product, $factors, "\n",
            $add, " ", $register, $sum, ", ", $register, $sum, ", ", $register, $product, "\n",
        )+)
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! sse_loop {
    ($name:ident, $multiplications:literal, $multiply:literal, $add:literal) => {
        x86_loop! {
            $name, $multiplications,
            concat!("pxor xmm15, xmm15\n", sums!("movdqa xmm", ", xmm15")),
            products_and_sums!($multiply, ", xmm15", $add, true, "xmm"),
            ""
        }
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! avx_loop {
    ($name:ident, $multiplications:literal, $body:expr) => {
        x86_loop! { $name, $multiplications, "vzeroall", $body, "vzeroupper" }
    };
}

#[cfg(target_arch = "x86_64")]
sse_loop! { sse_f32, 24, "mulps", "addps" }
#[cfg(target_arch = "x86_64")]
sse_loop! { sse_bytes, 48, "pmaddwd", "paddd" }
#[cfg(target_arch = "x86_64")]
avx_loop! { avx2_f32, 96, sums!("vfmadd231ps ymm", ", ymm14, ymm15") }
#[cfg(target_arch = "x86_64")]
avx_loop! {
    avx2_bytes, 96,
    products_and_sums!("vpmaddwd", ", ymm14, ymm15", "vpaddd", false, "ymm")
}
#[cfg(target_arch = "x86_64")]
avx_loop! { avx_vnni_bytes, 384, sums!("{{vex}} vpdpbusd ymm", ", ymm14, ymm15") }
#[cfg(target_arch = "x86_64")]
avx_loop! { avx512_f32, 192, sums!("vfmadd231ps zmm", ", zmm14, zmm15") }
#[cfg(target_arch = "x86_64")]
avx_loop! { avx512_bf16, 384, sums!("vdpbf16ps zmm", ", zmm14, zmm15") }
#[cfg(target_arch = "x86_64")]
avx_loop! {
    avx512_bytes, 192,
    products_and_sums!("vpmaddwd", ", zmm14, zmm15", "vpaddd", false, "zmm")
}
#[cfg(target_arch = "x86_64")]
avx_loop! { avx512_vnni_bytes, 768, sums!("vpdpbusd zmm", ", zmm14, zmm15") }

/// Defines a loop with one instruction for each of 24 accumulators.
#[cfg(target_arch = "aarch64")]
macro_rules! neon_loop {
    ($name:ident, $multiplications:literal, #[$feature:meta], $instruction:literal, $factors:literal) => {
        neon_loop! { @ $name, $multiplications, #[$feature], $instruction, $factors,
            "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11"
            "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23" }
    };
    (@ $name:ident, $multiplications:literal, #[$feature:meta], $instruction:literal, $factors:literal,
     $($sum:literal)+) => {
        neon_asm! {
            $name, $multiplications, #[$feature],
            concat!($($instruction, " v", $sum, ".4s, ", $factors, "\n",)+)
        }
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! neon_asm {
    ($name:ident, $multiplications:literal, #[$feature:meta], $body:expr) => {
        /// Returns the multiplications of a round.
        ///
        /// # Safety
        /// The processor has the instructions.
        #[$feature]
        unsafe fn $name(rounds: usize) -> usize {
            // SAFETY: the caller guarantees the instructions. They read and write declared
            // registers alone.
            // JUSTIFICATION: with intrinsics, the compiler computes the result of zeros and removes
            // the loop.
            unsafe {
                asm!(
                    "movi v30.4s, #0",
                    "movi v31.4s, #0",
                    "2:",
                    $body,
                    "subs {rounds}, {rounds}, #1",
                    "b.ne 2b",
                    rounds = inout(reg) rounds.max(1) => _,
                    inout("v0") 0.0_f32 => _, inout("v1") 0.0_f32 => _, inout("v2") 0.0_f32 => _,
                    inout("v3") 0.0_f32 => _, inout("v4") 0.0_f32 => _, inout("v5") 0.0_f32 => _,
                    inout("v6") 0.0_f32 => _, inout("v7") 0.0_f32 => _, inout("v8") 0.0_f32 => _,
                    inout("v9") 0.0_f32 => _, inout("v10") 0.0_f32 => _, inout("v11") 0.0_f32 => _,
                    inout("v12") 0.0_f32 => _, inout("v13") 0.0_f32 => _, inout("v14") 0.0_f32 => _,
                    inout("v15") 0.0_f32 => _, inout("v16") 0.0_f32 => _, inout("v17") 0.0_f32 => _,
                    inout("v18") 0.0_f32 => _, inout("v19") 0.0_f32 => _, inout("v20") 0.0_f32 => _,
                    inout("v21") 0.0_f32 => _, inout("v22") 0.0_f32 => _, inout("v23") 0.0_f32 => _,
                    out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
                    out("v29") _, out("v30") _, out("v31") _,
                    options(nomem, nostack),
                );
            }
            $multiplications
        }
    };
}

/// Generates three instructions for each of six accumulators: two multiplications and an addition.
#[cfg(target_arch = "aarch64")]
macro_rules! widening {
    ($($sum:literal $products:literal),+) => {
        concat!($(
            "smull v", $products, ".8h, v30.8b, v31.8b\n",
            "smlal2 v", $products, ".8h, v30.16b, v31.16b\n",
            "sadalp v", $sum, ".4s, v", $products, ".8h\n",
        )+)
    };
}

#[cfg(target_arch = "aarch64")]
neon_loop! { neon_f32, 96, #[target_feature(enable = "neon")], "fmla", "v30.4s, v31.4s" }
#[cfg(target_arch = "aarch64")]
neon_loop! { neon_dot, 384, #[target_feature(enable = "neon,dotprod")], "sdot", "v30.16b, v31.16b" }
#[cfg(target_arch = "aarch64")]
neon_loop! { neon_matrix, 768, #[target_feature(enable = "neon,i8mm")], "smmla", "v30.16b, v31.16b" }
#[cfg(target_arch = "aarch64")]
neon_loop! { neon_bf16, 384, #[target_feature(enable = "neon,bf16")], "bfmmla", "v30.8h, v31.8h" }
#[cfg(target_arch = "aarch64")]
neon_asm! {
    neon_widening, 96, #[target_feature(enable = "neon")],
    widening!("0" "24", "1" "25", "2" "26", "3" "27", "4" "28", "5" "29")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplications_scale_with_rounds() {
        for isa in Isa::all() {
            for values in [ValueFormat::F32, ValueFormat::Bf16, ValueFormat::Bytes] {
                let once = multiply(isa, values, 1);
                assert!(once >= 24, "{isa:?} {values:?}: {once}");
                assert_eq!(multiply(isa, values, 7), 7 * once, "{isa:?} {values:?}");
            }
        }
    }
}
