//! Arithmetic of single values that the kernels share: the coefficients of GELU, the rounding to
//! bf16, and the quantization of the values of a row.

/// Limit of the polynomial for GELU. Above it, `Φ(x)` differs from 1 by less than 1e-7. Below its
/// negative, the magnitude of `x·Φ(x)` is less than 1e-6.
pub(super) const GELU_LIMIT: f32 = 5.2;
/// Coefficients of `(Φ(x) − ½)/x` as a polynomial in `2(x/GELU_LIMIT)² − 1`, lowest power first.
/// The polynomial is minimax in the error of `x·Φ(x)`, which is at most 1.5e-7 before rounding.
pub(super) const GELU: [f32; 14] = [
    0.135_949_98,
    -0.067_743_62,
    0.050_025_616,
    -0.039_931_986,
    0.031_973_917,
    -0.024_698_84,
    0.018_038_778,
    -0.012_619_661,
    0.008_365_083_5,
    -0.004_542_31,
    0.002_005_193_1,
    -0.001_468_777_4,
    0.001_188_680_8,
    -0.000_388_233_5,
];

/// Rounds to the nearest bf16, ties to even. A NaN stays a NaN: one bit of its fraction is set.
#[inline(always)]
pub(in crate::engine) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

/// Scale and zero point of quantized values: a byte represents `(byte − zero) · scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct RowQuantization {
    pub(in crate::engine) scale: f32,
    pub(in crate::engine) zero: f32,
}

impl RowQuantization {
    /// Returns the quantization of values from `least`, at most 0, to `most`, at least 0.
    #[inline(always)]
    pub(super) fn of_range(least: f32, most: f32) -> Self {
        let scale = ((most - least) / 255.0).max(f32::MIN_POSITIVE);
        Self { scale, zero: (-least / scale).round_ties_even().clamp(0.0, 255.0) }
    }
}
