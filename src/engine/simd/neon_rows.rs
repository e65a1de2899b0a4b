//! Rows to bytes in the intrinsics of NEON, where the compiler makes scalar code of the portable loop.
//!
//! The scalar twin is in [`super::rows`].

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddvq_f32, vcombine_s8, vcombine_s16, vcvtnq_s32_f32, vdupq_n_f32,
    vdupq_n_s8, veorq_s8, vfmaq_f32, vld1q_f32, vmaxnmq_f32, vmaxnmvq_f32, vminnmq_f32,
    vminnmvq_f32, vmovn_s16, vmovn_s32, vst1q_s8,
};

use super::rows::Quantization;

/// Values of one round.
const LANES: usize = 16;

/// Loads 16 values.
#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; LANES]) -> [float32x4_t; LANES / 4] {
    // SAFETY: four vectors of four are the 16 values.
    // JUSTIFICATION: there is no safe load of vectors.
    std::array::from_fn(|vector| unsafe { vld1q_f32(values.as_ptr().add(4 * vector)) })
}

/// Returns whole rounds of `values`; the last one ends in zeros, which are in every range.
fn rounds(values: &[f32]) -> impl Iterator<Item = ([f32; LANES], usize)> {
    values.chunks(LANES).map(|chunk| {
        let mut round = [0.0; LANES];
        round[..chunk.len()].copy_from_slice(chunk);
        (round, chunk.len())
    })
}

/// Quantizes a block of `values` to signed bytes, as `quantize_block` of [`super::rows`] does, less 128.
///
/// # Panics
/// When `out` has fewer bytes than there are values.
#[target_feature(enable = "neon")]
pub(super) fn quantize_block(values: &[f32], out: &mut [u8]) -> Quantization {
    let zeros = vdupq_n_f32(0.0);
    let (mut least, mut most, mut poison) = ([zeros; 4], [zeros; 4], [zeros; 4]);
    for (round, _) in rounds(values) {
        for (vector, value) in load(&round).into_iter().enumerate() {
            // A number wins over NaN.
            least[vector] = vminnmq_f32(least[vector], value);
            most[vector] = vmaxnmq_f32(most[vector], value);
            poison[vector] = vfmaq_f32(poison[vector], value, zeros);
        }
    }
    let [a, b, c, d] = least;
    let least = vminnmvq_f32(vminnmq_f32(vminnmq_f32(a, b), vminnmq_f32(c, d)));
    let [a, b, c, d] = most;
    let most = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a, b), vmaxnmq_f32(c, d)));
    let [a, b, c, d] = poison;
    let poison = vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)));
    let Quantization { scale, zero } = Quantization::of_range(least, most);
    let (inverse, zeros_at) = (vdupq_n_f32(1.0 / scale), vdupq_n_f32(zero));
    let (bottom, top) = (vdupq_n_f32(0.0), vdupq_n_f32(255.0));
    for ((round, length), out) in rounds(values).zip(out.chunks_mut(LANES)) {
        let [a, b, c, d] = load(&round).map(|value| {
            let shifted = vfmaq_f32(zeros_at, value, inverse);
            let shifted = vminnmq_f32(vmaxnmq_f32(shifted, bottom), top);
            vmovn_s32(vcvtnq_s32_f32(shifted))
        });
        let bytes = vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
        // 128 less.
        let bytes = veorq_s8(bytes, vdupq_n_s8(i8::MIN));
        let mut rounded = [0_u8; LANES];
        // SAFETY: a vector is 16 bytes.
        // JUSTIFICATION: there is no safe store of vectors.
        unsafe { vst1q_s8(rounded.as_mut_ptr().cast(), bytes) };
        out[..length].copy_from_slice(&rounded[..length]);
    }
    Quantization { scale: scale + poison, zero: zero - 128.0 }
}
