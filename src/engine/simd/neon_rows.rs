//! Quantization of rows and GELU in the intrinsics of NEON.
//!
//! The compiler generates scalar code from the portable loop of the quantization. In its code for
//! the portable GELU, half of the instructions copy constants.
//!
//! The scalar twins are in [`super::rowwise`].

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddvq_f32, vcombine_s8, vcombine_s16, vcvtnq_s32_f32, vdupq_n_f32,
    vdupq_n_s8, veorq_s8, vfmaq_f32, vfmaq_laneq_f32, vld1q_f32, vmaxnmq_f32, vmaxnmvq_f32,
    vmaxq_f32, vminnmq_f32, vminnmvq_f32, vminq_f32, vmovn_s16, vmovn_s32, vmulq_f32, vst1q_f32,
    vst1q_s8,
};
use std::{ptr, slice};

use super::elementwise::{GELU, GELU_LIMIT, RowQuantization, bf16};
use super::{BiasedBlock, PANEL_WIDTH};

/// Number of values in a round.
const LANES: usize = 16;

/// Loads 16 values.
#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; LANES]) -> [float32x4_t; LANES / 4] {
    // SAFETY: four vectors of four values are the 16 values.
    // JUSTIFICATION: all vector loads are unsafe.
    std::array::from_fn(|vector| unsafe { vld1q_f32(values.as_ptr().add(4 * vector)) })
}

/// Least and largest values of a block, lane by lane. `poison` is NaN in a lane with a value that
/// is not finite.
struct LaneRange {
    least: [float32x4_t; LANES / 4],
    most: [float32x4_t; LANES / 4],
    poison: [float32x4_t; LANES / 4],
}

impl LaneRange {
    #[inline]
    #[target_feature(enable = "neon")]
    fn add(&mut self, values: &[f32; LANES]) {
        for (vector, value) in load(values).into_iter().enumerate() {
            // These instructions return the number if one operand is NaN.
            self.least[vector] = vminnmq_f32(self.least[vector], value);
            self.most[vector] = vmaxnmq_f32(self.most[vector], value);
            self.poison[vector] = vfmaq_f32(self.poison[vector], value, vdupq_n_f32(0.0));
        }
    }
}

/// Quantizes 16 values with the quantization of unsigned bytes, and writes them as signed bytes.
#[inline]
#[target_feature(enable = "neon")]
fn write(values: &[f32; LANES], inverse: float32x4_t, zero: float32x4_t, out: &mut [u8; LANES]) {
    let (bottom, top) = (vdupq_n_f32(0.0), vdupq_n_f32(255.0));
    let [a, b, c, d] = load(values).map(|value| {
        let shifted = vfmaq_f32(zero, value, inverse);
        vmovn_s32(vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(shifted, bottom), top)))
    });
    let bytes = vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
    // Subtract 128: flipping the top bit converts an unsigned byte to a signed one.
    let bytes = veorq_s8(bytes, vdupq_n_s8(i8::MIN));
    // SAFETY: a vector has 16 bytes.
    // JUSTIFICATION: all vector stores are unsafe.
    unsafe { vst1q_s8(out.as_mut_ptr().cast(), bytes) };
}

/// Quantizes a block of `values` to signed bytes. The bytes and the zero point are lower by 128
/// than those of `quantize_block` in [`super::rowwise`].
///
/// # Panics
/// Panics if `values` and `out` have different lengths.
#[target_feature(enable = "neon")]
pub(super) fn quantize_block(values: &[f32], out: &mut [u8]) -> RowQuantization {
    assert_eq!(values.len(), out.len(), "a byte for each value");
    let (rounds, rest) = values.as_chunks::<LANES>();
    // Pad the last round with zeros. Every range includes 0, so they do not change it.
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let zeros = [vdupq_n_f32(0.0); LANES / 4];
    let mut range = LaneRange { least: zeros, most: zeros, poison: zeros };
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
    let RowQuantization { scale, zero } = RowQuantization::of_range(least, most);
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
    RowQuantization { scale: scale + poison, zero: zero - 128.0 }
}

/// Constant, repeated in each lane of a vector.
#[repr(C, align(16))]
struct RepeatedConstant([f32; 4]);

/// Constants that `FMLA` adds to: the even coefficients of [`GELU`], then −1 and ½.
static ADDENDS: [RepeatedConstant; 9] = {
    let mut addends = [const { RepeatedConstant([-1.0; 4]) }; 9];
    let mut i = 0;
    while i < 7 {
        addends[i] = RepeatedConstant([GELU[2 * i]; 4]);
        i += 1;
    }
    addends[HALF] = RepeatedConstant([0.5; 4]);
    addends
};

/// Indices of −1 and ½ in [`ADDENDS`].
const MINUS_ONE: usize = 7;
const HALF: usize = 8;

/// Odd coefficients of [`GELU`], followed by zeros.
const ODD: [f32; LANES] = {
    let mut odd = [0.0; LANES];
    let mut i = 0;
    while i < 7 {
        odd[i] = GELU[2 * i + 1];
        i += 1;
    }
    odd
};

/// Loads one of [`ADDENDS`] from memory at each use.
///
/// `FMLA` overwrites its addend. The compiler keeps a constant in a register and copies it before
/// each `FMLA`. The copies occupy the units that multiply, whereas a load occupies a unit that is
/// idle here.
#[inline]
#[target_feature(enable = "neon")]
fn addend(i: usize) -> float32x4_t {
    // SAFETY: the four values of `RepeatedConstant` form a vector and are aligned as one.
    // JUSTIFICATION: the compiler moves a load that is not volatile out of the loop.
    unsafe { ptr::from_ref(&ADDENDS[i]).cast::<float32x4_t>().read_volatile() }
}

/// Returns coefficient `2i` plus `z` times coefficient `2i + 1`, which is lane `LANE` of `odd`.
#[inline]
#[target_feature(enable = "neon")]
fn pair<const LANE: i32>(i: usize, odd: float32x4_t, z: float32x4_t) -> float32x4_t {
    vfmaq_laneq_f32::<LANE>(addend(i), z, odd)
}

/// Returns GELU of 16 values, with the polynomial and the bounds of `gelu` in [`super::rowwise`].
///
/// `FMAX` and `FMIN` propagate NaN.
#[inline]
#[target_feature(enable = "neon")]
fn gelu(x: [float32x4_t; LANES / 4]) -> [float32x4_t; LANES / 4] {
    let limit = vdupq_n_f32(GELU_LIMIT);
    let scale = vdupq_n_f32(2.0 / (GELU_LIMIT * GELU_LIMIT));
    let [low, high, ..] = load(&ODD);
    let outer = x.map(|x| vmaxq_f32(x, vdupq_n_f32(-GELU_LIMIT)));
    let near = outer.map(|x| vminq_f32(x, limit));
    let z = near.map(|near| vfmaq_f32(addend(MINUS_ONE), vmulq_f32(near, near), scale));
    // Use Horner's method in z², with two coefficients a step: only half of the steps add to a
    // constant.
    let square = z.map(|z| vmulq_f32(z, z));
    let step = |p: [float32x4_t; 4], terms: [float32x4_t; 4]| {
        std::array::from_fn(|vector| vfmaq_f32(terms[vector], p[vector], square[vector]))
    };
    let p = z.map(|z| pair::<2>(6, high, z));
    let p = step(p, z.map(|z| pair::<1>(5, high, z)));
    let p = step(p, z.map(|z| pair::<0>(4, high, z)));
    let p = step(p, z.map(|z| pair::<3>(3, low, z)));
    let p = step(p, z.map(|z| pair::<2>(2, low, z)));
    let p = step(p, z.map(|z| pair::<1>(1, low, z)));
    let p: [float32x4_t; 4] = step(p, z.map(|z| pair::<0>(0, low, z)));
    std::array::from_fn(|vector| {
        // The sum is 1 − 2⁻²⁴ above the limit. This is within the rounding error of a product.
        vmulq_f32(outer[vector], vfmaq_f32(addend(HALF), near[vector], p[vector]))
    })
}

/// Writes GELU of `block + bias` to the rows of `out`, `stride` values apart, as `store_f32` of
/// [`super::rowwise`] does.
#[target_feature(enable = "neon")]
pub(super) fn store_gelu(
    block: &[[f32; PANEL_WIDTH]],
    bias: &[f32; PANEL_WIDTH],
    out: &mut [f32],
    stride: usize,
) {
    for (row, out) in block.iter().zip(out.chunks_mut(stride)) {
        let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
        let rounds = row.as_chunks::<LANES>().0.iter().zip(bias.as_chunks::<LANES>().0);
        for ((row, bias), out) in rounds.zip(out.as_chunks_mut::<LANES>().0) {
            let (row, bias) = (load(row), load(bias));
            let x = std::array::from_fn(|vector| vaddq_f32(row[vector], bias[vector]));
            for (vector, value) in gelu(x).into_iter().enumerate() {
                // SAFETY: four vectors of four values are the 16 values.
                // JUSTIFICATION: all vector stores are unsafe.
                unsafe { vst1q_f32(out.as_mut_ptr().add(4 * vector), value) };
            }
        }
    }
}

/// Writes the values of [`store_gelu`], rounded to bf16.
#[target_feature(enable = "neon")]
pub(super) fn store_gelu_bf16(
    block: &[[f32; PANEL_WIDTH]],
    bias: &[f32; PANEL_WIDTH],
    out: &mut [u16],
    stride: usize,
) {
    let mut values = [0.0; PANEL_WIDTH];
    for (row, out) in block.iter().zip(out.chunks_mut(stride)) {
        let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
        store_gelu(slice::from_ref(row), bias, &mut values, PANEL_WIDTH);
        for (out, value) in out.iter_mut().zip(values) {
            *out = bf16(value);
        }
    }
}

/// Writes GELU of `gate + bias`, times `up + bias` and converted by `convert`, to the rows of
/// `out`, `stride` values apart, as `gate_f32` and `gate_bf16` of [`super::rowwise`] do.
#[target_feature(enable = "neon")]
pub(super) fn gate_gelu<T>(
    (gate, gate_bias): BiasedBlock<'_>,
    (up, up_bias): BiasedBlock<'_>,
    out: &mut [T],
    stride: usize,
    convert: impl Fn(f32) -> T,
) {
    let mut values = [0.0; PANEL_WIDTH];
    for ((gate, up), out) in gate.iter().zip(up).zip(out.chunks_mut(stride)) {
        let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
        store_gelu(slice::from_ref(gate), gate_bias, &mut values, PANEL_WIDTH);
        for j in 0..PANEL_WIDTH {
            out[j] = convert(values[j] * (up[j] + up_bias[j]));
        }
    }
}
