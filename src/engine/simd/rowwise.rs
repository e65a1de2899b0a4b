//! Element-wise and row-wise arithmetic: activations, LayerNorm, softmax, conversions and
//! quantization.
//!
//! A block of results is `[rows, 32]` in f32. Every function writes all 32 columns. The columns
//! beyond the last one of a matrix have weights and bias zero, so they stay zero.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::elementwise::{GELU, GELU_LIMIT, RowQuantization, bf16};
#[cfg(target_arch = "aarch64")]
use super::neon_rows;
use super::{Int8RowFormat, Isa, IsaLevel, PANEL_WIDTH, mul_add, vectorised};
use crate::engine::config::HiddenActivation;

/// Number of values in a round of a vector loop.
const LANES: usize = 16;
/// Constant 1.5 · 2²³. Adding and subtracting it rounds an f32 to an integer.
const ROUND: f32 = 12_582_912.0;
/// Lower bound of the argument of `exp`. Below it, the result is not a normal f32.
const EXP_MIN: f32 = -87.0;
/// Upper bound of the argument of `exp`. Above it, n reaches 128, and 2¹²⁸ overflows f32.
const EXP_MAX: f32 = 88.0;
/// ln 2 in two parts, the first with few bits: <https://www.netlib.org/cephes/>, `expf.c`.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Coefficients of the polynomial in the same file, highest power first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// Returns `eˣ` with a relative error below 2e-7. The argument is clamped, so the result is at
/// least 1e-38.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = if x > EXP_MIN { x } else { EXP_MIN };
    let x = if x < EXP_MAX { x } else { EXP_MAX };
    // Range reduction: x = n·ln 2 + r, so eˣ = 2ⁿ·eʳ. `ROUND` makes n an integer.
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -LN_2[0], x);
    let r = mul_add::<FMA>(n, -LN_2[1], r);
    let mut p = EXP[0];
    for coefficient in &EXP[1..] {
        p = mul_add::<FMA>(p, r, *coefficient);
    }
    let p = mul_add::<FMA>(p, r * r, r) + 1.0;
    // The low bits of `shifted` contain n. Biased and shifted, it is the exponent field of 2ⁿ.
    let scale = shifted.to_bits().wrapping_add(127) << 23;
    p * f32::from_bits(scale)
}

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    let near = if x < GELU_LIMIT { x } else { GELU_LIMIT };
    let near = if near > -GELU_LIMIT { near } else { -GELU_LIMIT };
    let square = near * near;
    let z = mul_add::<FMA>(square, 2.0 / (GELU_LIMIT * GELU_LIMIT), -1.0);
    let mut p = GELU[13];
    for coefficient in GELU[..13].iter().rev() {
        p = mul_add::<FMA>(p, z, *coefficient);
    }
    // `outer` keeps NaN; the clamping of `near` hides it.
    let outer = if x < -GELU_LIMIT { -GELU_LIMIT } else { x };
    // Use 1 above the limit: it is closer than the rounded polynomial.
    let phi = if x > GELU_LIMIT { 1.0 } else { mul_add::<FMA>(near, p, 0.5) };
    outer * phi
}

/// Computes `NewGELUActivation`, with `½(1 + tanh u)` as `1/(1 + e⁻²ᵘ)`:
/// <https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/activations.py>.
#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    const SCALE: f32 = -1.595_769_2;
    let inner = mul_add::<FMA>(x * x * x, 0.044_715, x);
    x / (1.0 + exp::<FMA>(SCALE * inner))
}

#[inline(always)]
fn activate<const FMA: bool, const ACTIVATION: u8>(x: f32) -> f32 {
    match ACTIVATION {
        IDENTITY => x,
        GELU_EXACT => gelu::<FMA>(x),
        GELU_TANH => gelu_tanh::<FMA>(x),
        _ => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
    }
}

const IDENTITY: u8 = 0;
const GELU_EXACT: u8 = 1;
const GELU_TANH: u8 = 2;
const RELU: u8 = 3;

/// Calls [`activate_rows`] with the activation as a constant, so that no loop branches on it.
macro_rules! with_activation {
    ($activation:expr, $fma:ident, ($($arg:expr),*)) => {
        match $activation {
            None => activate_rows::<$fma, IDENTITY, _>($($arg),*),
            Some(HiddenActivation::Gelu) => activate_rows::<$fma, GELU_EXACT, _>($($arg),*),
            Some(HiddenActivation::GeluTanh) => activate_rows::<$fma, GELU_TANH, _>($($arg),*),
            Some(HiddenActivation::Relu) => activate_rows::<$fma, RELU, _>($($arg),*),
        }
    };
}

/// Writes `activation(block + bias)`, converted by `convert`, to the rows of `out`, `stride` values
/// apart.
#[inline(always)]
fn activate_rows<const FMA: bool, const ACTIVATION: u8, T>(
    block: &[[f32; PANEL_WIDTH]],
    bias: &[f32; PANEL_WIDTH],
    out: &mut [T],
    stride: usize,
    convert: impl Fn(f32) -> T,
) {
    for (row, out) in block.iter().zip(out.chunks_mut(stride)) {
        let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
        for j in 0..PANEL_WIDTH {
            out[j] = convert(activate::<FMA, ACTIVATION>(row[j] + bias[j]));
        }
    }
}

/// Writes `activation(block + bias)` to the rows of `out`, `stride` values apart.
pub(in crate::engine) fn store_f32(
    isa: Isa,
    block: &[[f32; PANEL_WIDTH]],
    bias: &[f32; PANEL_WIDTH],
    activation: Option<HiddenActivation>,
    out: &mut [f32],
    stride: usize,
) {
    match (isa.0, activation) {
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "aarch64")]
        (IsaLevel::Neon { .. }, Some(HiddenActivation::Gelu)) => unsafe {
            neon_rows::store_gelu(block, bias, out, stride);
        },
        _ => store_portable(isa, block, bias, activation, out, stride),
    }
}

vectorised! {
    fn store_portable<FMA>(
        block: &[[f32; PANEL_WIDTH]],
        bias: &[f32; PANEL_WIDTH],
        activation: Option<HiddenActivation>,
        out: &mut [f32],
        stride: usize,
    ) {
        with_activation!(activation, FMA, (block, bias, out, stride, |x| x));
    }
}

/// Writes the values of [`store_f32`], rounded to bf16.
pub(in crate::engine) fn store_bf16(
    isa: Isa,
    block: &[[f32; PANEL_WIDTH]],
    bias: &[f32; PANEL_WIDTH],
    activation: Option<HiddenActivation>,
    out: &mut [u16],
    stride: usize,
) {
    match (isa.0, activation) {
        // The portable loop computes GELU in another order, and a pass that all threads compute
        // together rounds the values of `store_f32`.
        //
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "aarch64")]
        (IsaLevel::Neon { .. }, Some(HiddenActivation::Gelu)) => unsafe {
            neon_rows::store_gelu_bf16(block, bias, out, stride);
        },
        _ => store_bf16_portable(isa, block, bias, activation, out, stride),
    }
}

vectorised! {
    fn store_bf16_portable<FMA>(
        block: &[[f32; PANEL_WIDTH]],
        bias: &[f32; PANEL_WIDTH],
        activation: Option<HiddenActivation>,
        out: &mut [u16],
        stride: usize,
    ) {
        with_activation!(activation, FMA, (block, bias, out, stride, bf16));
    }
}

vectorised! {
    /// Adds `block + bias` to the rows of `out`, `stride` values apart.
    fn add_f32<FMA>(block: &[[f32; PANEL_WIDTH]], bias: &[f32; PANEL_WIDTH], out: &mut [f32], stride: usize) {
        for (row, out) in block.iter().zip(out.chunks_mut(stride)) {
            let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
            for j in 0..PANEL_WIDTH {
                out[j] += row[j] + bias[j];
            }
        }
    }
}

vectorised! {
    /// Multiplies each row of `block` by its factor and writes it to the rows of `out`, `stride`
    /// values apart.
    fn scale_f32<FMA>(block: &[[f32; PANEL_WIDTH]], factors: &[f32], out: &mut [f32], stride: usize) {
        for ((row, factor), out) in block.iter().zip(factors).zip(out.chunks_mut(stride)) {
            let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
            for j in 0..PANEL_WIDTH {
                out[j] = row[j] * factor;
            }
        }
    }
}

vectorised! {
    /// Writes the values of [`scale_f32`], rounded to bf16.
    fn scale_bf16<FMA>(block: &[[f32; PANEL_WIDTH]], factors: &[f32], out: &mut [u16], stride: usize) {
        for ((row, factor), out) in block.iter().zip(factors).zip(out.chunks_mut(stride)) {
            let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
            for j in 0..PANEL_WIDTH {
                out[j] = bf16(row[j] * factor);
            }
        }
    }
}

/// Quantizes `values` to bytes.
///
/// The range includes 0, so that the zero point is in the range of a byte. The scale is NaN if a
/// value is not finite, so that the results are NaN, too, and not plausible numbers.
#[inline(always)]
fn quantize_block<const FMA: bool, T: From<u8>>(values: &[f32], out: &mut [T]) -> RowQuantization {
    let (mut least, mut most) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let mut poison = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut look = |j: usize, value: f32| {
        least[j] = if value < least[j] { value } else { least[j] };
        most[j] = if value > most[j] { value } else { most[j] };
        // NaN and infinities times 0 are NaN; finite values add 0.
        poison[j] = mul_add::<FMA>(value, 0.0, poison[j]);
    };
    for chunk in chunks {
        for (j, &value) in chunk.iter().enumerate() {
            look(j, value);
        }
    }
    for (j, &value) in rest.iter().enumerate() {
        look(j, value);
    }
    let least = reduce(&least, |a, b| if a < b { a } else { b });
    let most = reduce(&most, |a, b| if a > b { a } else { b });
    let poison = reduce(&poison, |a, b| a + b);
    let RowQuantization { scale, zero } = RowQuantization::of_range(least, most);
    let inverse = 1.0 / scale;
    let byte = |value: f32| {
        let shifted = mul_add::<FMA>(value, inverse, zero);
        let shifted = if shifted > 0.0 { shifted } else { 0.0 };
        let shifted = if shifted < 255.0 { shifted } else { 255.0 };
        // `ROUND` puts the integer in the low bits.
        (shifted + ROUND).to_bits().to_le_bytes()[0]
    };
    let (bytes, rest_bytes) = out.as_chunks_mut::<LANES>();
    for (bytes, chunk) in bytes.iter_mut().zip(chunks) {
        for (out, &value) in bytes.iter_mut().zip(chunk) {
            *out = byte(value).into();
        }
    }
    for (out, &value) in rest_bytes.iter_mut().zip(rest) {
        *out = byte(value).into();
    }
    RowQuantization { scale: scale + poison, zero }
}

vectorised! {
    fn quantize_bytes<FMA>(values: &[f32], out: &mut [u8], quantization: &mut RowQuantization) {
        *quantization = quantize_block::<FMA, u8>(values, out);
    }
}

vectorised! {
    fn quantize_signed_bytes<FMA>(values: &[f32], out: &mut [u8], quantization: &mut RowQuantization) {
        *quantization = quantize_block::<FMA, u8>(values, out);
        for byte in out {
            *byte ^= 0x80;
        }
        quantization.zero -= 128.0;
    }
}

vectorised! {
    fn quantize_wide<FMA>(values: &[f32], out: &mut [u16], quantization: &mut RowQuantization) {
        *quantization = quantize_block::<FMA, u16>(values, out);
    }
}

/// Quantizes the rows of `values`, `stride` values apart, to rows of `out`, `out_stride` lane
/// groups apart, in the format that [`Isa::int8_row_format`] returns. Each block of channels has
/// its own scale and zero point, `[rows, blocks]`; `ends` are the ends of the blocks.
pub(in crate::engine) fn quantize(
    isa: Isa,
    values: &[f32],
    stride: usize,
    ends: &[usize],
    out: &mut [u32],
    out_stride: usize,
    quantization: &mut [RowQuantization],
) {
    let rows = values.chunks(stride).zip(out.chunks_mut(out_stride));
    for ((values, out), row) in rows.zip(quantization.chunks_mut(ends.len())) {
        let mut start = 0;
        for (block, &end) in row.iter_mut().zip(ends) {
            let values = &values[start..end];
            match isa.int8_row_format() {
                Int8RowFormat::Wide => {
                    let out: &mut [u16] = bytemuck::cast_slice_mut(out);
                    quantize_wide(isa, values, &mut out[start..end], block);
                }
                Int8RowFormat::Signed => {
                    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
                    quantize_signed(isa, values, &mut out[start..end], block);
                }
                Int8RowFormat::Unsigned => {
                    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
                    quantize_unsigned(isa, values, &mut out[start..end], block);
                }
            }
            start = end;
        }
    }
}

fn quantize_signed(isa: Isa, values: &[f32], out: &mut [u8], quantization: &mut RowQuantization) {
    match isa.0 {
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "aarch64")]
        IsaLevel::Neon { .. } => *quantization = unsafe { neon_rows::quantize_block(values, out) },
        _ => quantize_signed_bytes(isa, values, out, quantization),
    }
}

fn quantize_unsigned(isa: Isa, values: &[f32], out: &mut [u8], quantization: &mut RowQuantization) {
    match isa.0 {
        // SAFETY: only `Isa::all` constructs this value, after it detected the features.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx512 { .. } => *quantization = unsafe { avx512::quantize_block(values, out) },
        _ => quantize_bytes(isa, values, out, quantization),
    }
}

vectorised! {
    /// Applies LayerNorm in place to each row of `x`, `[rows, stride]`, over its first
    /// `weight.len()` values.
    fn layer_norm<FMA>(x: &mut [f32], stride: usize, weight: &[f32], bias: &[f32], epsilon: f32) {
        let width = weight.len();
        #[expect(clippy::cast_precision_loss, reason = "a row has fewer than 2^24 values")]
        let inverse = 1.0 / width as f32;
        for row in x.chunks_mut(stride) {
            let row = &mut row[..width];
            let mean = sum::<FMA>(row, |x| x) * inverse;
            let variance = sum::<FMA>(row, |x| (x - mean) * (x - mean)) * inverse;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *x = mul_add::<FMA>((*x - mean) * factor, *weight, *bias);
            }
        }
    }
}

/// Returns the sum of `of` over the values, computed in 16 partial sums.
#[inline(always)]
fn sum<const FMA: bool>(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            lanes[j] += of(chunk[j]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += of(value);
    }
    reduce(&lanes, |a, b| a + b)
}

/// Reduces the lanes pairwise.
#[inline(always)]
fn reduce(lanes: &[f32; LANES], with: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            lanes[j] = with(lanes[j], lanes[j + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Replaces the scores of a row by `e^(score − largest)`. Returns the reciprocal of their sum.
#[inline(always)]
fn softmax_row<const FMA: bool>(row: &mut [f32], length: usize, bias: Option<&[f32]>) -> f32 {
    if let Some(bias) = bias {
        for (score, bias) in row.iter_mut().zip(bias) {
            *score += bias;
        }
    }
    // Padding columns have no key. Their weights become about 1e-38, and their value vectors are
    // zero.
    row[length..].fill(f32::MIN);
    let (chunks, _) = row.as_chunks_mut::<LANES>();
    let mut most = [f32::MIN; LANES];
    for chunk in chunks.iter() {
        for j in 0..LANES {
            most[j] = if chunk[j] > most[j] { chunk[j] } else { most[j] };
        }
    }
    let most = reduce(&most, |a, b| if a > b { a } else { b });
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            // Propagate NaN, which the clamping in `exp` hides: `score * 0.0` is NaN for NaN and
            // infinities.
            let score = chunk[j] - most;
            let value = exp::<FMA>(score) + score * 0.0;
            chunk[j] = value;
            sums[j] += value;
        }
    }
    1.0 / reduce(&sums, |a, b| a + b)
}

vectorised! {
    /// Computes the softmax of each row of `scores`, `[rows, stride]`, over its first `length`
    /// values, without the division. `inverses` receives the reciprocal of the sum of each row.
    ///
    /// `bias` is a slice and an index, and is added to the scores first: row `i` adds the `length`
    /// values from index `start − i` on.
    fn softmax<FMA>(
        scores: &mut [f32],
        stride: usize,
        length: usize,
        bias: Option<(&[f32], usize)>,
        inverses: &mut [f32],
    ) {
        for (i, (row, inverse)) in scores.chunks_mut(stride).zip(inverses).enumerate() {
            let bias = bias.map(|(bias, start)| &bias[start - i..][..length]);
            *inverse = softmax_row::<FMA>(row, length, bias);
        }
    }
}

vectorised! {
    /// Rounds `values` to bf16, up to the length of the shorter slice.
    fn to_bf16<FMA>(values: &[f32], out: &mut [u16]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = bf16(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: [f32; PANEL_WIDTH] = [0.0; PANEL_WIDTH];

    fn activated(isa: Isa, activation: HiddenActivation, x: f32) -> f32 {
        let mut out = [0.0; PANEL_WIDTH];
        store_f32(isa, &[[x; PANEL_WIDTH]], &ZERO, Some(activation), &mut out, PANEL_WIDTH);
        out[PANEL_WIDTH - 1]
    }

    /// Computes the error function by its Maclaurin series. Beyond 4 the result is ±1.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        if x.abs() > 4.0 { x.signum() } else { sum * 2.0 / std::f64::consts::PI.sqrt() }
    }

    #[test]
    fn gelu_error_is_below_one_millionth() {
        for isa in Isa::all() {
            for step in -90_000_i32..=90_000 {
                #[expect(clippy::cast_precision_loss, reason = "below 2^24")]
                let x = step as f32 / 10_000.0;
                let found = f64::from(activated(isa, HiddenActivation::Gelu, x));
                let x = f64::from(x);
                let expected = x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
                assert!((found - expected).abs() <= 1e-6, "{isa:?} {x}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn other_activations_match_their_formulas() {
        for isa in Isa::all() {
            for step in -400_i32..=400 {
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let x = step as f32 / 20.0;
                let u = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                let expected = 0.5 * x * (1.0 + u.tanh());
                let found = activated(isa, HiddenActivation::GeluTanh, x);
                assert!((found - expected).abs() <= 2e-6, "{isa:?} {x}: {found}, {expected}");
                assert_eq!(activated(isa, HiddenActivation::Relu, x), x.max(0.0));
            }
            for activation in
                [HiddenActivation::Gelu, HiddenActivation::GeluTanh, HiddenActivation::Relu]
            {
                assert!(activated(isa, activation, f32::NAN).is_nan(), "{activation:?}");
            }
        }
    }

    #[test]
    fn stored_bf16_is_rounded_f32() {
        const ROWS: usize = 40;
        let values = values(ROWS * PANEL_WIDTH);
        let block = values.as_chunks::<PANEL_WIDTH>().0;
        let bias = std::array::from_fn(|j| values[7 * j] / 3.0);
        let activations =
            [HiddenActivation::Gelu, HiddenActivation::GeluTanh, HiddenActivation::Relu];
        for isa in Isa::all() {
            for activation in activations.map(Some).into_iter().chain([None]) {
                let mut exact = vec![0.0; values.len()];
                let mut rounded = vec![0; values.len()];
                store_f32(isa, block, &bias, activation, &mut exact, PANEL_WIDTH);
                store_bf16(isa, block, &bias, activation, &mut rounded, PANEL_WIDTH);
                let expected: Vec<u16> = exact.into_iter().map(bf16).collect();
                assert_eq!(rounded, expected, "{isa:?} {activation:?}");
            }
        }
    }

    fn values(count: usize) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 100.0).collect()
    }

    #[test]
    fn softmax_sums_to_one_and_keeps_ratios() {
        for isa in Isa::all() {
            for length in [1_usize, 2, 15, 16, 17, 60, 64, 512] {
                let stride = length.next_multiple_of(PANEL_WIDTH);
                let mut scores = values(3 * stride);
                let original = scores.clone();
                let bias = vec![0.25; 2 * length - 1 + 3];
                let mut inverses = [0.0; 3];
                let bias = Some((bias.as_slice(), length - 1));
                let bias = bias.filter(|_| length > 2);
                softmax(isa, &mut scores, stride, length, bias, &mut inverses);
                for row in 0..3 {
                    let found = &scores[row * stride..][..length];
                    let sum: f32 = found.iter().sum();
                    assert!((sum * inverses[row] - 1.0).abs() < 1e-5, "{isa:?} {length}");
                    let original = &original[row * stride..][..length];
                    for (value, score) in found.iter().zip(original) {
                        let expected = (score - original[0]).exp();
                        assert!((value / found[0] - expected).abs() <= 1e-5 * expected.max(1.0));
                    }
                }
            }
        }
    }

    #[test]
    fn layer_norm_matches_its_formula() {
        for isa in Isa::all() {
            for width in [1_usize, 60, 64, 384, 768] {
                let stride = width.next_multiple_of(PANEL_WIDTH);
                let mut x = values(2 * stride);
                let original = x.clone();
                let (weight, bias) = (vec![2.0; width], vec![1.0; width]);
                layer_norm(isa, &mut x, stride, &weight, &bias, 1e-12);
                for row in [0, 1] {
                    let of = |x: &[f32]| x[row * stride..][..width].to_vec();
                    let original = of(&original);
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    let width = width as f32;
                    let mean = original.iter().sum::<f32>() / width;
                    let variance = original.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width;
                    for (found, value) in of(&x).iter().zip(&original) {
                        let expected = (value - mean) / (variance + 1e-12).sqrt() * 2.0 + 1.0;
                        assert!((found - expected).abs() < 1e-4, "{isa:?} {width}");
                    }
                }
            }
        }
    }

    /// Returns the quantized integers in `groups`.
    fn integers(isa: Isa, groups: &[u32]) -> Vec<i16> {
        let bytes: &[u8] = bytemuck::cast_slice(groups);
        match isa.int8_row_format() {
            Int8RowFormat::Unsigned => bytes.iter().map(|&byte| i16::from(byte)).collect(),
            Int8RowFormat::Signed => bytes.iter().map(|&byte| byte.cast_signed().into()).collect(),
            Int8RowFormat::Wide => bytemuck::cast_slice(groups).to_vec(),
        }
    }

    #[test]
    fn quantization_error_is_within_one_step() {
        for isa in Isa::all() {
            for width in [1, 3, 16, 60, 384] {
                let values = values(2 * width);
                let ends = if width > 16 { vec![16, width] } else { vec![width] };
                let blocks = ends.len();
                let stride = width.div_ceil(2) + 5;
                let mut out = vec![0; 2 * stride];
                let mut rows = vec![RowQuantization::default(); 2 * blocks];
                quantize(isa, &values, width, &ends, &mut out, stride, &mut rows);
                for row in 0..2 {
                    for i in 0..width {
                        let block = usize::from(i >= 16);
                        let RowQuantization { scale, zero } = rows[row * blocks + block];
                        let integer = integers(isa, &out[row * stride..])[i];
                        let found = (f32::from(integer) - zero) * scale;
                        let value = values[row * width + i];
                        assert!((found - value).abs() <= scale * 1.01, "{isa:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn quantized_bytes_match_scalar_twin() {
        let bytes = |isa, width| {
            let values = values(width);
            let mut out = vec![0; width.div_ceil(2)];
            let mut block = [RowQuantization::default()];
            let stride = out.len();
            quantize(isa, &values, width, &[width], &mut out, stride, &mut block);
            let signed = matches!(isa.int8_row_format(), Int8RowFormat::Signed);
            let offset = if signed { 128.0 } else { 0.0 };
            let integers = integers(isa, &out)[..width].to_vec();
            let integers: Vec<f32> =
                integers.into_iter().map(|integer| f32::from(integer) + offset).collect();
            (integers, block[0].scale, block[0].zero + offset)
        };
        for isa in Isa::all() {
            for width in [1, 4, 15, 16, 17, 61, 384] {
                let (expected, scale, zero) = bytes(Isa::baseline(), width);
                let (found, found_scale, found_zero) = bytes(isa, width);
                assert_eq!((found_scale, found_zero), (scale, zero), "{isa:?} {width}");
                for (found, expected) in found.iter().zip(&expected) {
                    // Multiplying and adding in one instruction rounds once less, so a byte may
                    // differ by 1.
                    assert!((found - expected).abs() <= 1.0, "{isa:?} {width}");
                }
            }
        }
    }

    #[test]
    fn nonfinite_value_makes_block_scale_nan() {
        for isa in Isa::all() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let values = [[1.0; 16].as_slice(), &[1.0, value, 1.0, 1.0]].concat();
                let mut rows = [RowQuantization::default(); 2];
                quantize(isa, &values, 20, &[16, 20], &mut [0; 10], 10, &mut rows);
                assert_eq!(rows.map(|row| row.scale.is_nan()), [false, true], "{isa:?} {value}");
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest() {
        for x in values(1000).into_iter().chain([0.0, -0.0, f32::MAX, f32::INFINITY, 1e-40]) {
            assert_eq!(bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(half::bf16::from_bits(bf16(f32::NAN)).is_nan());
    }
}
