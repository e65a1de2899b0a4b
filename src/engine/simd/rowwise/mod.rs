//! Element-wise and row-wise arithmetic: activations, LayerNorm and RMSNorm, rotary positions,
//! softmax, conversions and quantization.
//!
//! A block of results is `[rows, 32]` in f32. Every function writes all 32 columns. The columns
//! beyond the last one of a matrix have weights and bias zero, so they stay zero.

mod activations;
#[cfg(test)]
mod tests;

use std::ops::Range;

use activations::exp;
pub(in crate::engine) use activations::{gate_bf16, gate_f32, store_bf16, store_f32};

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::elementwise::{RowQuantization, bf16};
#[cfg(target_arch = "aarch64")]
use super::neon_rows;
use super::{Int8RowFormat, Isa, IsaLevel, PANEL_WIDTH, mul_add, vectorised};

/// Number of values in a round of a vector loop.
const LANES: usize = 16;
/// Constant 1.5 · 2²³. Adding and subtracting it rounds an f32 to an integer.
const ROUND: f32 = 12_582_912.0;

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
    /// Adds the values of `other` to those of `x`, up to the length of the shorter slice.
    fn add_rows<FMA>(x: &mut [f32], other: &[f32]) {
        for (x, other) in x.iter_mut().zip(other) {
            *x += other;
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

vectorised! {
    /// Applies RMSNorm in place to each row of `x`, `[rows, stride]`, over its first
    /// `weight.len()` values.
    fn rms_norm<FMA>(x: &mut [f32], stride: usize, weight: &[f32], epsilon: f32) {
        let width = weight.len();
        #[expect(clippy::cast_precision_loss, reason = "a row has fewer than 2^24 values")]
        let inverse = 1.0 / width as f32;
        for row in x.chunks_mut(stride) {
            let row = &mut row[..width];
            let mean_square = sum::<FMA>(row, |x| x * x) * inverse;
            let factor = 1.0 / (mean_square + epsilon).sqrt();
            for (x, weight) in row.iter_mut().zip(weight) {
                *x = *x * factor * weight;
            }
        }
    }
}

vectorised! {
    /// Rotates the first `width` values of each row of `x`, `[rows, stride]`, by the angles of its
    /// position. A pair is a value of the first half and the value `width/2` further.
    ///
    /// `table` is `[rows, width]`: the cosines of `width/2` angles, then their sines. `width` is
    /// even and not 0.
    fn rotate<FMA>(x: &mut [f32], stride: usize, table: &[f32], width: usize) {
        for (row, angles) in x.chunks_mut(stride).zip(table.chunks_exact(width)) {
            let (first, second) = row[..width].split_at_mut(width / 2);
            let (cosines, sines) = angles.split_at(width / 2);
            let (first, first_rest) = first.as_chunks_mut();
            let (second, second_rest) = second.as_chunks_mut();
            let (cosines, cosines_rest) = cosines.as_chunks();
            let (sines, sines_rest) = sines.as_chunks();
            rotate_rounds::<FMA, LANES>(first, second, cosines, sines);
            let (first, second) = (first_rest.as_chunks_mut().0, second_rest.as_chunks_mut().0);
            let (cosines, sines) = (cosines_rest.as_chunks().0, sines_rest.as_chunks().0);
            rotate_rounds::<FMA, 1>(first, second, cosines, sines);
        }
    }
}

/// Rotates pairs of values of `first` and `second`, in rounds of `N`.
#[inline(always)]
fn rotate_rounds<const FMA: bool, const N: usize>(
    first: &mut [[f32; N]],
    second: &mut [[f32; N]],
    cosines: &[[f32; N]],
    sines: &[[f32; N]],
) {
    let angles = cosines.iter().zip(sines);
    for ((first, second), (cosines, sines)) in first.iter_mut().zip(second).zip(angles) {
        // Copies: the compiler does not vectorize a loop that reads the values that it replaces.
        let (a, b) = (*first, *second);
        for j in 0..N {
            first[j] = mul_add::<FMA>(a[j], cosines[j], -(b[j] * sines[j]));
        }
        for j in 0..N {
            second[j] = mul_add::<FMA>(b[j], cosines[j], a[j] * sines[j]);
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

/// Returns the columns of the chunks that contain the columns from `start` to `end`.
#[inline(always)]
fn chunk_columns((start, end): (usize, usize)) -> Range<usize> {
    start / LANES * LANES..end.next_multiple_of(LANES)
}

/// Replaces the scores from `start` to `end` by `e^(score − largest)`, and the others by 0. The
/// others in the same chunks are `f32::MIN` before. Returns the reciprocal of the sum.
#[inline(always)]
fn softmax_row<const FMA: bool>(row: &mut [f32], (start, end): (usize, usize)) -> f32 {
    let columns = chunk_columns((start, end));
    let (chunks, _) = row[columns.clone()].as_chunks_mut::<LANES>();
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
    // `exp` returns about 1e-38 for the columns that do not count. The sum is at least 1, so they
    // do not change it. Their products with values would be subnormal numbers, which are slow.
    //
    // An assignment would become a call of `memset`, which takes as long as the rest of a short
    // row.
    for part in [columns.start..start, end..columns.end] {
        for x in &mut row[part] {
            *x = if *x < 0.0 { *x } else { 0.0 };
        }
    }
    1.0 / reduce(&sums, |a, b| a + b)
}

vectorised! {
    /// Computes the softmax of each row of `scores`, `[rows, stride]`, over the columns in its
    /// range, without the division. The other columns become 0. `inverses` receives the reciprocal
    /// of the sum of each row.
    ///
    /// A range is the first column and the one behind the last. `stride` is a multiple of 16.
    ///
    /// `bias` is a slice and an index `first`, and is added to the scores before: row `i` adds the
    /// value at index `first − i + j` to its column `j`.
    fn softmax<FMA>(
        scores: &mut [f32],
        stride: usize,
        ranges: &[(usize, usize)],
        bias: Option<(&[f32], usize)>,
        inverses: &mut [f32],
    ) {
        // A loop of its own: vector loads of values that were just stored one by one are slow.
        for (i, (row, &(start, end))) in scores.chunks_mut(stride).zip(ranges).enumerate() {
            if let Some((bias, first)) = bias {
                let bias = &bias[first - i..][start..end];
                for (score, bias) in row[start..end].iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            // Columns outside the range that share a chunk with others must not be the largest.
            let columns = chunk_columns((start, end));
            row[columns.start..start].fill(f32::MIN);
            row[end..columns.end].fill(f32::MIN);
            row[..columns.start].as_chunks_mut().0.fill([0.0; LANES]);
            row[columns.end..].as_chunks_mut().0.fill([0.0; LANES]);
        }
        for ((row, &range), inverse) in scores.chunks_mut(stride).zip(ranges).zip(inverses) {
            *inverse = softmax_row::<FMA>(row, range);
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
