//! Vector code, selected at run time for the instruction set of the processor.
//!
//! Each instruction set has its own kernels for products, in intrinsics or inline assembly;
//! [`gemm`] calls them. Most other vector code consists of loops over arrays of 16 or 32 values,
//! which the compiler vectorizes: `vectorised!` compiles the body of a function once for each
//! instruction set. Intrinsics replace the few loops that the compiler vectorizes badly. The
//! baseline is the scalar twin of every kernel; tests compare the kernels with it.
//!
//! This module detects the instruction set. It does not know models.
//!
//! Invariant: an [`Isa`] other than the baseline exists only on a processor that has its
//! instructions.

// Unsafe code here only calls functions that are compiled for detected instructions.
#![allow(unsafe_code, reason = "code for detected instructions is called through unsafe")]

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
pub(super) mod elementwise;
pub(super) mod gemm;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_int8;
#[cfg(target_arch = "aarch64")]
mod neon_matrix;
#[cfg(target_arch = "aarch64")]
mod neon_rows;
pub(super) mod peak_loops;
#[cfg(target_arch = "x86_64")]
mod prefetch;
pub(super) mod product;
pub(super) mod rowwise;
#[cfg(target_arch = "x86_64")]
mod sse;

/// Width of a panel of packed weights, of a block of results and of every vector loop, in columns.
pub(super) const PANEL_WIDTH: usize = 32;

/// Block of results, `[rows, 32]`, and the bias that is added to each row.
pub(super) type BiasedBlock<'a> = (&'a [[f32; PANEL_WIDTH]], &'a [f32; PANEL_WIDTH]);

/// Instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isa(IsaLevel);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsaLevel {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Sse42,
    #[cfg(target_arch = "x86_64")]
    Avx2 {
        vnni: bool,
    },
    #[cfg(target_arch = "x86_64")]
    Avx512 {
        vnni: bool,
        bf16: bool,
    },
    #[cfg(target_arch = "aarch64")]
    Neon {
        integers: NeonInt8,
        bf16: bool,
    },
}

/// Instruction that multiplies bytes on Arm.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NeonInt8 {
    /// `SMULL`. Every processor has it.
    Widening,
    /// `SDOT`.
    Dot,
    /// `SMMLA`, in addition to `SDOT`.
    Matrix,
}

/// Format of the rows of an int8 product, as its kernel reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Int8RowFormat {
    /// One byte per value, 0 to 255.
    Unsigned,
    /// One byte per value, −128 to 127. The zero point is lower by 128, too.
    #[cfg_attr(
        not(any(test, target_arch = "aarch64")),
        expect(dead_code, reason = "only Arm's kernels take it")
    )]
    Signed,
    /// 16 bits per value, 0 to 255.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "only kernels of x86-64 and some tests use it")
    )]
    Wide,
}

impl Isa {
    /// Detects the best instruction set of this processor.
    pub(super) fn detect() -> Self {
        Self::all().last().copied().unwrap_or(Self::baseline())
    }

    /// Returns the scalar twin, which every processor of the architecture runs.
    pub(super) const fn baseline() -> Self {
        Self(IsaLevel::Baseline)
    }

    /// Returns every instruction set that this processor has, with the best one last.
    pub(super) fn all() -> Vec<Self> {
        let mut levels = vec![IsaLevel::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(is_x86_feature_detected!("sse4.2").then_some(IsaLevel::Sse42));
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(IsaLevel::Avx2 { vnni: false });
                levels.extend(
                    is_x86_feature_detected!("avxvnni").then_some(IsaLevel::Avx2 { vnni: true }),
                );
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(IsaLevel::Avx512 { vnni: false, bf16: false });
                    let vnni = is_x86_feature_detected!("avx512vnni");
                    let bf16 = is_x86_feature_detected!("avx512bf16");
                    levels.extend((vnni || bf16).then_some(IsaLevel::Avx512 { vnni, bf16 }));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            levels.push(IsaLevel::Neon { integers: NeonInt8::Widening, bf16: false });
            if is_aarch64_feature_detected!("dotprod") {
                levels.push(IsaLevel::Neon { integers: NeonInt8::Dot, bf16: false });
                let matrix = is_aarch64_feature_detected!("i8mm");
                let integers = if matrix { NeonInt8::Matrix } else { NeonInt8::Dot };
                let bf16 = is_aarch64_feature_detected!("bf16");
                levels.extend((matrix || bf16).then_some(IsaLevel::Neon { integers, bf16 }));
            }
        }
        levels.into_iter().map(Self).collect()
    }

    /// Returns the name that reports use.
    pub(super) const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 { vnni: true, .. } => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 { vnni: false, .. } => "avx512",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 { vnni: true } => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 { vnni: false } => "avx2",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Sse42 => "sse4.2",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { integers: NeonInt8::Widening, .. } => "neon",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { integers: NeonInt8::Dot, .. } => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { integers: NeonInt8::Matrix, .. } => "neon-i8mm",
            IsaLevel::Baseline => "scalar",
        }
    }

    /// Returns whether int8 products are at least as fast as f32 products.
    pub(super) const fn multiplies_bytes(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Sse42 | IsaLevel::Avx2 { .. } | IsaLevel::Avx512 { .. } => true,
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { .. } => true,
            IsaLevel::Baseline => false,
        }
    }

    /// Returns the format in which the int8 kernel reads its rows.
    pub(super) const fn int8_row_format(self) -> Int8RowFormat {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Sse42
            | IsaLevel::Avx2 { vnni: false }
            | IsaLevel::Avx512 { vnni: false, .. } => Int8RowFormat::Wide,
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 { vnni: true } | IsaLevel::Avx512 { vnni: true, .. } => {
                Int8RowFormat::Unsigned
            }
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { .. } => Int8RowFormat::Signed,
            IsaLevel::Baseline => Int8RowFormat::Unsigned,
        }
    }

    /// Returns whether one instruction multiplies pairs of bf16. Then bf16 products are faster than
    /// f32 products.
    pub(super) const fn multiplies_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 { bf16, .. } => bf16,
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Sse42 | IsaLevel::Avx2 { .. } => false,
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon { bf16, .. } => bf16,
            IsaLevel::Baseline => false,
        }
    }

    /// Returns the name that reports use for kernels that multiply bf16.
    pub(super) const fn bf16_name(self) -> &'static str {
        if cfg!(target_arch = "aarch64") { "neon-bf16" } else { "avx512-bf16" }
    }
}

/// Returns the processor's extensions among those that decide on an [`Isa`]. AMX is detected in the
/// AMX module.
pub(super) fn extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512", Isa::detect().name().starts_with("avx512")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("neon", is_aarch64_feature_detected!("neon")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
        ("bf16", is_aarch64_feature_detected!("bf16")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known = [];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// Whether the baseline multiplies and adds in one instruction.
const BASELINE_FMA: bool = cfg!(target_arch = "aarch64");

/// Returns `a · b + c`. One fused instruction computes it if `FMA`. The scalar twin of x86-64 has
/// no such instruction, and `f32::mul_add` would call a much slower library function there.
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles the body of a function, generic over `FMA`, for every instruction set. Defines a
/// function of the same name that takes the [`Isa`] as its first argument and calls the right copy.
macro_rules! vectorised {
    ($(#[$meta:meta])* fn $name:ident<$fma:ident>($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set counts")]
        pub(in crate::engine) fn $name(isa: $crate::engine::simd::Isa, $($arg: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            fn body<const $fma: bool>($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "sse4.2")]
            fn sse($($arg: $type),*) {
                body::<false>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                body::<true>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn avx512($($arg: $type),*) {
                body::<true>($($arg),*);
            }
            match isa.0 {
                $crate::engine::simd::IsaLevel::Baseline => {
                    body::<{ $crate::engine::simd::BASELINE_FMA }>($($arg),*)
                }
                // SAFETY: only `Isa::all` constructs this value, after it detected SSE4.2.
                // JUSTIFICATION: a safe call needs the features enabled for the whole binary, which
                // then would not start on other processors.
                #[cfg(target_arch = "x86_64")]
                $crate::engine::simd::IsaLevel::Sse42 => unsafe { sse($($arg),*) },
                // Every processor of the architecture has NEON.
                #[cfg(target_arch = "aarch64")]
                $crate::engine::simd::IsaLevel::Neon { .. } => body::<true>($($arg),*),
                // SAFETY: only `Isa::all` constructs this value, after it detected AVX2 and FMA.
                // JUSTIFICATION: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::engine::simd::IsaLevel::Avx2 { .. } => unsafe { avx2($($arg),*) },
                // SAFETY: only `Isa::all` constructs this value, after it detected all five
                // features.
                // JUSTIFICATION: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::engine::simd::IsaLevel::Avx512 { .. } => unsafe { avx512($($arg),*) },
            }
        }
    };
}
use vectorised;
