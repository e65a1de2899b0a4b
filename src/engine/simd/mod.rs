//! Vector code: one body for every instruction set, compiled once for each and chosen at run time.
//!
//! Bodies are loops over arrays of 16 or 32 values that the compiler turns into vector instructions;
//! `vectorised!` compiles a body for AVX-512, for AVX2 and for the baseline of the architecture
//! (NEON on aarch64). The baseline on x86-64 is the scalar twin that tests compare with.
//!
//! Owns the detection. Knows nothing of models.
//!
//! Invariant: an [`Isa`] other than the baseline exists only where its instructions do.

// The dispatch to code compiled for instructions that were detected is the one use of `unsafe`.
#![allow(unsafe_code, reason = "code for detected instructions is called through unsafe")]

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
pub(super) mod dense;
pub(super) mod rows;

/// Columns of a strip of packed weights, of a block of results and of every vector loop.
pub(super) const STRIP: usize = 32;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2 {
        vnni: bool,
    },
    #[cfg(target_arch = "x86_64")]
    Avx512 {
        vnni: bool,
        bf16: bool,
    },
}

impl Isa {
    /// The best that this processor has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    return Self(Level::Avx512 {
                        vnni: is_x86_feature_detected!("avx512vnni"),
                        bf16: is_x86_feature_detected!("avx512bf16"),
                    });
                }
                return Self(Level::Avx2 { vnni: is_x86_feature_detected!("avxvnni") });
            }
        }
        Self::baseline()
    }

    /// What every processor of this architecture has.
    pub(super) const fn baseline() -> Self {
        Self(Level::Baseline)
    }

    /// Its name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { vnni: true, .. } => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { vnni: false, .. } => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 { vnni: true } => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 { vnni: false } => "avx2",
            Level::Baseline if cfg!(target_arch = "aarch64") => "neon",
            Level::Baseline => "scalar",
        }
    }

    /// Whether four products of bytes are one instruction, so that they are faster than those of f32.
    pub(super) const fn multiplies_bytes(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 { vnni } | Level::Avx512 { vnni, .. } => vnni,
            Level::Baseline => false,
        }
    }

    /// Whether two products of bf16 are one instruction, so that they are faster than those of f32.
    pub(super) const fn multiplies_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 { bf16, .. } => bf16,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 { .. } => false,
            Level::Baseline => false,
        }
    }

    /// Every set that this processor has, for tests that compare them.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "other architectures have the baseline alone")
        )]
        let mut all = vec![Self::baseline()];
        #[cfg(target_arch = "x86_64")]
        {
            let best = Self::detect();
            if best != Self::baseline() {
                all.push(Self(Level::Avx2 { vnni: false }));
                if is_x86_feature_detected!("avxvnni") {
                    all.push(Self(Level::Avx2 { vnni: true }));
                }
            }
            if let Level::Avx512 { vnni, bf16 } = best.0 {
                all.push(Self(Level::Avx512 { vnni: false, bf16: false }));
                all.extend((vnni || bf16).then_some(best));
            }
        }
        all
    }
}

/// The extensions that this processor has, of those that decide on an [`Isa`]; AMX is asked for elsewhere.
pub(super) fn extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512", Isa::detect().name().starts_with("avx512")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known = [("neon", cfg!(target_arch = "aarch64"))];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// Whether the baseline multiplies and adds in one instruction.
const BASELINE_FMA: bool = cfg!(target_arch = "aarch64");

/// `a · b + c`; in one instruction where `FMA`, which the scalar twin has not (and a library call in
/// its place would be slower by far).
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles the body of a function, generic over `FMA`, for every instruction set, behind a function
/// of the same name that takes the [`Isa`] first.
macro_rules! vectorised {
    ($(#[$meta:meta])* fn $name:ident<$fma:ident>($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set counts")]
        pub(in crate::engine) fn $name(isa: $crate::engine::simd::Isa, $($arg: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            fn body<const $fma: bool>($($arg: $type),*) $body

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
                $crate::engine::simd::Level::Baseline => {
                    body::<{ $crate::engine::simd::BASELINE_FMA }>($($arg),*)
                }
                // SAFETY: only `Isa::detect` makes this value, after it found avx2 and fma.
                // JUSTIFICATION: a safe call needs the features in the whole binary, which then would
                // not start on other processors.
                #[cfg(target_arch = "x86_64")]
                $crate::engine::simd::Level::Avx2 { .. } => unsafe { avx2($($arg),*) },
                // SAFETY: only `Isa::detect` makes this value, after it found all five.
                // JUSTIFICATION: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::engine::simd::Level::Avx512 { .. } => unsafe { avx512($($arg),*) },
            }
        }
    };
}
use vectorised;
