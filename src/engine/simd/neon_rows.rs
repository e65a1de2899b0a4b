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

/// The least and the largest values of a block, lane by lane, and NaN where one is not finite.
struct Range {
    least: [float32x4_t; LANES / 4],
    most: [float32x4_t; LANES / 4],
    poison: [float32x4_t; LANES / 4],
}

impl Range {
    #[inline]
    #[target_feature(enable = "neon")]
    fn add(&mut self, values: &[f32; LANES]) {
        for (vector, value) in load(values).into_iter().enumerate() {
            // A number wins over NaN.
            self.least[vector] = vminnmq_f32(self.least[vector], value);
            self.most[vector] = vmaxnmq_f32(self.most[vector], value);
            self.poison[vector] = vfmaq_f32(self.poison[vector], value, vdupq_n_f32(0.0));
        }
    }
}

/// Writes signed bytes of 16 values, by the quantization of unsigned ones.
#[inline]
#[target_feature(enable = "neon")]
fn write(values: &[f32; LANES], inverse: float32x4_t, zero: float32x4_t, out: &mut [u8; LANES]) {
    let (bottom, top) = (vdupq_n_f32(0.0), vdupq_n_f32(255.0));
    let [a, b, c, d] = load(values).map(|value| {
        let shifted = vfmaq_f32(zero, value, inverse);
        vmovn_s32(vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(shifted, bottom), top)))
    });
    let bytes = vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
    // 128 less.
    let bytes = veorq_s8(bytes, vdupq_n_s8(i8::MIN));
    // SAFETY: a vector is 16 bytes.
    // JUSTIFICATION: there is no safe store of vectors.
    unsafe { vst1q_s8(out.as_mut_ptr().cast(), bytes) };
}

/// Quantizes a block of `values` to signed bytes, as `quantize_block` of [`super::rows`] does, less 128.
///
/// # Panics
/// When `out` has not a byte for each value.
#[target_feature(enable = "neon")]
pub(super) fn quantize_block(values: &[f32], out: &mut [u8]) -> Quantization {
    assert_eq!(values.len(), out.len(), "a byte for each value");
    let (rounds, rest) = values.as_chunks::<LANES>();
    // Zeros fill the last round: they are in every range.
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let zeros = [vdupq_n_f32(0.0); LANES / 4];
    let mut range = Range { least: zeros, most: zeros, poison: zeros };
    for round in rounds {
        range.add(round);
    }
    range.add(&last);
    let [a, b, c, d] = range.least;
    let least = vminnmvq_f32(vminnmq_f32(vminnmq_f32(a, b), vminnmq_f32(c, d)));
    let [a, b, c, d] = range.most;
    let most = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a, b), vmaxnmq_f32(c, d)));
    let [a, b, c, d] = range.poison;
    let poison = vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)));
    let Quantization { scale, zero } = Quantization::of_range(least, most);
    let (inverse, shift) = (vdupq_n_f32(1.0 / scale), vdupq_n_f32(zero));
    let (out_rounds, out_rest) = out.as_chunks_mut::<LANES>();
    for (round, out) in rounds.iter().zip(out_rounds) {
        write(round, inverse, shift, out);
    }
    if !rest.is_empty() {
        let mut bytes = [0; LANES];
        write(&last, inverse, shift, &mut bytes);
        out_rest.copy_from_slice(&bytes[..rest.len()]);
    }
    Quantization { scale: scale + poison, zero: zero - 128.0 }
}
