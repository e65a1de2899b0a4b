//! Products of a few rows with a panel of 32 packed columns.
//!
//! A panel is `[lane_groups, 32]`. A lane group is four bytes of a row: one f32, two bf16 or four
//! int8. The panel holds the weights of the 32 columns for each lane group, one behind the other.
//! This module contains the scalar twins of all kernels for products, also of those in
//! [`super::super::amx`].
//!
//! Invariant: the results of a row do not depend on the other rows. Each result is one chain of
//! additions in the order of the lane groups.

use super::elementwise::RowQuantization;
use super::product::{OperandQuantization, Product};
use super::{BASELINE_FMA, Isa, IsaLevel, PANEL_WIDTH, mul_add};
#[cfg(target_arch = "aarch64")]
use super::{NeonInt8, neon, neon_int8, neon_matrix};
#[cfg(target_arch = "x86_64")]
use super::{avx_vnni, avx2, avx512, sse};

/// Adds up the products of each row's lane groups with the columns. Scalar twin of the kernels for
/// floats.
fn scalar(product: &mut Product<'_>, add: impl Fn(u32, u32, f32) -> f32) {
    for row in 0..product.rows {
        let values = &product.operand[row * product.stride..];
        let mut sums = [0.0; PANEL_WIDTH];
        for (&value, weights) in values.iter().zip(product.panel) {
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = add(value, weight, *sum);
            }
        }
        product.out[row * product.out_stride..][..PANEL_WIDTH].copy_from_slice(&sums);
    }
}

fn scalar_f32(product: &mut Product<'_>) {
    let add = |a, b, sum| mul_add::<BASELINE_FMA>(f32::from_bits(a), f32::from_bits(b), sum);
    scalar(product, add);
}

fn scalar_bf16(product: &mut Product<'_>) {
    let low = |pair: u32| f32::from_bits(pair << 16);
    let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    scalar(product, |a, b, sum| {
        let sum = mul_add::<BASELINE_FMA>(low(a), low(b), sum);
        mul_add::<BASELINE_FMA>(high(a), high(b), sum)
    });
}

/// Multiplies four unsigned bytes with four signed ones. Scalar twin of the kernels for bytes;
/// [`OperandQuantization`] has the formula.
fn scalar_int8(product: &mut Product<'_>, integers: &OperandQuantization<'_>) {
    let dot = |a: u32, b: u32| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes().map(|byte| i8::from_le_bytes([byte])));
        (0..4).map(|i| i32::from(a[i]) * i32::from(b[i])).sum::<i32>()
    };
    let blocks = integers.ends.len();
    for row in 0..product.rows {
        let bytes = &product.operand[row * product.stride..][..product.panel.len()];
        let mut values = [0.0_f32; PANEL_WIDTH];
        let mut start = 0;
        for (block, &end) in integers.ends.iter().enumerate() {
            let mut sums = [0_i32; PANEL_WIDTH];
            for (&value, weights) in bytes[start..end].iter().zip(&product.panel[start..end]) {
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum += dot(value, weight);
                }
            }
            let RowQuantization { scale, zero } = integers.rows[row * blocks + block];
            for column in 0..PANEL_WIDTH {
                #[expect(clippy::cast_precision_loss, reason = "rounded once, as f32 does")]
                let sum = sums[column] as f32;
                let sum = mul_add::<BASELINE_FMA>(-zero, integers.sums[block][column], sum);
                let scale = scale * integers.scales[block][column];
                values[column] = mul_add::<BASELINE_FMA>(sum, scale, values[column]);
            }
            start = end;
        }
        product.out[row * product.out_stride..][..PANEL_WIDTH].copy_from_slice(&values);
    }
}

/// Computes products of f32.
pub(in crate::engine) fn f32(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: only `Isa::all` constructs this value, after it detected the features.
        // JUSTIFICATION: as in `vectorised!`.
        IsaLevel::Avx512 { .. } => unsafe { avx512::f32(product) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        IsaLevel::Avx2 { .. } => unsafe { avx2::f32(product) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        IsaLevel::Sse42 => unsafe { sse::f32(product) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as above.
        IsaLevel::Neon { integers: NeonInt8::Widening, .. } => unsafe {
            neon::f32_interleaved(product)
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        IsaLevel::Neon { .. } => unsafe { neon::f32(product) },
        IsaLevel::Baseline => scalar_f32(product),
    }
}

/// Computes products of bytes and dequantizes them to f32. The rows have the format that
/// [`Isa::int8_row_format`] returns.
///
/// # Panics
/// Panics if `integers` does not fit the product.
pub(in crate::engine) fn int8(
    isa: Isa,
    product: &mut Product<'_>,
    integers: &OperandQuantization<'_>,
) {
    assert!(
        integers.fits(product.rows, product.panel.len()),
        "the quantization must fit the product"
    );
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; it detected VNNI, too.
        // JUSTIFICATION: as above.
        IsaLevel::Avx512 { vnni: true, .. } => unsafe { avx512::int8(product, integers) },
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx2 { vnni: true } => unsafe { avx_vnni::int8(product, integers) },
        // SAFETY: as above. `Isa::all` constructs an AVX-512 level only if it also detected AVX2
        // and FMA.
        // JUSTIFICATION: as above.
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx2 { vnni: false } | IsaLevel::Avx512 { vnni: false, .. } => unsafe {
            avx2::int8(product, integers)
        },
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Sse42 => unsafe { sse::int8(product, integers) },
        #[cfg(target_arch = "aarch64")]
        IsaLevel::Neon { integers: instruction, .. } => match instruction {
            // SAFETY: every 64-bit Arm processor has NEON.
            // JUSTIFICATION: as in `vectorised!`.
            NeonInt8::Widening => unsafe { neon_int8::widening(product, integers) },
            // SAFETY: only `Isa::all` constructs this value, after it detected dot products.
            // JUSTIFICATION: as in `vectorised!`.
            NeonInt8::Dot => unsafe { neon_int8::dot_product(product, integers) },
            // SAFETY: as above; it detected products of matrices, too.
            // JUSTIFICATION: as in `vectorised!`.
            NeonInt8::Matrix => unsafe { neon_matrix::int8(product, integers) },
        },
        IsaLevel::Baseline => scalar_int8(product, integers),
    }
}

/// Computes products of pairs of bf16, summed in f32. The kernel of the baseline is also the scalar
/// twin of the AMX tiles.
pub(in crate::engine) fn bf16(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; it detected pairs of bf16, too.
        // JUSTIFICATION: as above.
        IsaLevel::Avx512 { bf16: true, .. } => unsafe { avx512::bf16(product) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: only `Isa::all` constructs this value, after it detected products of bf16.
        // JUSTIFICATION: as in `vectorised!`.
        IsaLevel::Neon { bf16: true, .. } => unsafe { neon_matrix::bf16(product) },
        _ => scalar_bf16(product),
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::linear::OperandFormat;
    use crate::engine::simd::Int8RowFormat;

    /// Shapes `(rows, inputs)`, usual and odd ones.
    pub(in crate::engine) const SHAPES: [(usize, usize); 10] = [
        (1, 60),
        (1, 384),
        (2, 64),
        (5, 60),
        (7, 384),
        (13, 768),
        (17, 64),
        (31, 60),
        (33, 1536),
        (512, 64),
    ];

    /// Returns an operand and a panel of pseudorandom lane groups that are valid in `format`.
    pub(in crate::engine) fn groups(
        rows: usize,
        inputs: usize,
        format: OperandFormat,
    ) -> [Vec<u32>; 2] {
        let count = format.lane_groups(inputs);
        let mut state = 0x9e37_79b9_u32;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let mut value = move || match format {
            // Weights are never −128. Every byte is odd, so it cannot be −128 (0x80).
            OperandFormat::Int8(_) => next() | 0x0101_0101,
            // Values are between −1 and 1, so that no term is lost in a much larger sum.
            OperandFormat::F32 => ((next() % 2001) as f32 / 1000.0 - 1.0).to_bits(),
            OperandFormat::Bf16 => {
                let mut half = || {
                    u32::from(crate::engine::simd::elementwise::bf16(
                        (next() % 2001) as f32 / 1000.0 - 1.0,
                    ))
                };
                half() | half() << 16
            }
        };
        let rows = rows.next_multiple_of(32) * count;
        [(0..rows).map(|_| value()).collect(), (0..count * PANEL_WIDTH).map(|_| value()).collect()]
    }

    /// Returns the results of `multiply`, `[rows, 32]`.
    pub(in crate::engine) fn results(
        (rows, inputs): (usize, usize),
        format: OperandFormat,
        multiply: impl Fn(&mut Product<'_>),
    ) -> Vec<f32> {
        let [operand, panel] = groups(rows, inputs, format);
        let mut out = vec![0.0; rows.next_multiple_of(32) * PANEL_WIDTH];
        let stride = format.lane_groups(inputs);
        let panel = panel.as_chunks::<PANEL_WIDTH>().0;
        multiply(&mut Product {
            operand: &operand,
            stride,
            rows,
            panel,
            next_panel: panel,
            out: &mut out,
            out_stride: PANEL_WIDTH,
        });
        out.truncate(rows * PANEL_WIDTH);
        out
    }

    type Kernel = fn(Isa, &mut Product<'_>, usize);

    const INT8: OperandFormat = OperandFormat::Int8(Int8RowFormat::Unsigned);

    /// Converts `operand`, rows of unsigned bytes `stride` lane groups apart, to the format of the
    /// kernel of `isa`. Returns the rows and their stride.
    fn laid_out(isa: Isa, operand: &[u32], stride: usize) -> (Vec<u32>, usize) {
        match isa.int8_row_format() {
            Int8RowFormat::Unsigned => (operand.to_vec(), stride),
            Int8RowFormat::Signed => {
                (operand.iter().map(|group| group ^ 0x8080_8080).collect(), stride)
            }
            Int8RowFormat::Wide => {
                let wide = |low: u8, high: u8| u32::from(low) | u32::from(high) << 16;
                let pairs = operand.iter().map(|group| group.to_le_bytes());
                (pairs.flat_map(|[a, b, c, d]| [wide(a, b), wide(c, d)]).collect(), 2 * stride)
            }
        }
    }

    /// Returns the quantization of rows in the format of the kernel of `isa`, for unsigned bytes
    /// with `zero`.
    fn standing_for(isa: Isa, scale: f32, zero: f32) -> RowQuantization {
        let shift = if isa.int8_row_format() == Int8RowFormat::Signed { 128.0 } else { 0.0 };
        RowQuantization { scale, zero: zero - shift }
    }

    /// Calls `int8` for rows of unsigned bytes, in four blocks with pseudorandom scales.
    fn int8_in_blocks(isa: Isa, product: &mut Product<'_>, first_row: usize) {
        let groups = product.panel.len();
        let ends = [4, 7, groups / 2 + 1, groups];
        let (operand, stride) = laid_out(isa, product.operand, product.stride);
        let product =
            &mut Product { operand: &operand, stride, out: &mut *product.out, ..*product };
        let value = |index: usize| ((index * 7919) % 101) as f32 / 50.0 - 1.0;
        let row = |row: usize| {
            let quantization = |block| {
                let zero = (((row + block) * 37) % 256) as f32;
                standing_for(isa, 0.01 + value(row * 3 + block).abs(), zero)
            };
            (0..ends.len()).map(quantization).collect::<Vec<_>>()
        };
        let scales = |block: usize| std::array::from_fn(|column| value(block + 5 + column) * 300.0);
        let starts = std::iter::once(0).chain(ends);
        let sums = starts.zip(ends).map(|(start, end)| {
            std::array::from_fn(|column| {
                let weights =
                    product.panel[start..end].iter().flat_map(|group| group[column].to_le_bytes());
                weights.map(|weight| f32::from(weight.cast_signed())).sum()
            })
        });
        let integers = OperandQuantization {
            rows: &(first_row..first_row + product.rows).flat_map(row).collect::<Vec<_>>(),
            sums: &sums.collect::<Vec<_>>(),
            scales: &(0..ends.len()).map(scales).collect::<Vec<_>>(),
            ends: &ends,
        };
        int8(isa, product, &integers);
    }

    #[test]
    fn every_kernel_matches_scalar_twin() {
        for shape in SHAPES {
            let baseline = Isa::baseline();
            let expected = results(shape, OperandFormat::F32, |product| f32(baseline, product));
            let pairs = results(shape, OperandFormat::Bf16, |product| bf16(baseline, product));
            let integers = results(shape, INT8, |product| int8_in_blocks(baseline, product, 0));
            let largest = integers.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            for isa in Isa::all() {
                let found = results(shape, OperandFormat::F32, |product| f32(isa, product));
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-4, "{isa:?} {shape:?}: {a} not {b}");
                }
                let found = results(shape, OperandFormat::Bf16, |product| bf16(isa, product));
                for (a, b) in found.iter().zip(&pairs) {
                    assert!((a - b).abs() <= 1e-4, "{isa:?} {shape:?}: {a} not {b}");
                }
                let found = results(shape, INT8, |product| int8_in_blocks(isa, product, 0));
                for (a, b) in found.iter().zip(&integers) {
                    assert!((a - b).abs() <= largest * 1e-6, "{isa:?} {shape:?}: {a} not {b}");
                }
            }
        }
    }

    #[test]
    fn quantized_bytes_are_multiplied_as_values() {
        // Two blocks of one lane group. The bytes represent 2·(byte − 10) and 0.5·(byte − 1).
        let operand = [u32::from_le_bytes([12, 10, 10, 9]), u32::from_le_bytes([1, 1, 3, 1])];
        let mut panel = [[0; PANEL_WIDTH]; 2];
        panel[0][7] = u32::from_le_bytes([3_i8, 1, 1, -5].map(|weight| weight.to_le_bytes()[0]));
        panel[1][7] = u32::from_le_bytes([1, 1, 4, 0]);
        let mut sums = [[0.0; PANEL_WIDTH]; 2];
        (sums[0][7], sums[1][7]) = (0.0, 6.0);
        for isa in Isa::all() {
            let rows =
                [(2.0, 10.0), (0.5, 1.0)].map(|(scale, zero)| standing_for(isa, scale, zero));
            let mut out = [f32::NAN; PANEL_WIDTH];
            let (operand, stride) = laid_out(isa, &operand, 2);
            let mut product = Product {
                operand: &operand,
                stride,
                rows: 1,
                panel: &panel,
                next_panel: &[],
                out: &mut out,
                out_stride: PANEL_WIDTH,
            };
            let scales = &[[0.5; PANEL_WIDTH]; 2];
            int8(
                isa,
                &mut product,
                &OperandQuantization { ends: &[1, 2], rows: &rows, sums: &sums, scales },
            );
            // (4·3 − 2·−5 + 1·4) · 0.5
            assert_eq!((out[7], out[6]), (13.0, 0.0), "{isa:?}");
        }
    }

    #[test]
    fn scalar_twin_matches_naive_product() {
        let (rows, inputs) = (3, 5);
        let [operand, panel] = groups(rows, inputs, OperandFormat::F32);
        let found =
            results((rows, inputs), OperandFormat::F32, |product| f32(Isa::baseline(), product));
        let count = OperandFormat::F32.lane_groups(inputs);
        for row in 0..rows {
            for column in 0..PANEL_WIDTH {
                let expected: f32 = (0..count)
                    .map(|group| {
                        f32::from_bits(operand[row * count + group])
                            * f32::from_bits(panel[group * PANEL_WIDTH + column])
                    })
                    .sum();
                assert!((found[row * PANEL_WIDTH + column] - expected).abs() < 1e-5);
            }
        }
    }

    proptest! {
        #[test]
        fn row_result_is_independent_of_other_rows(rows in 2_usize..40, inputs in 1_usize..200) {
            for isa in Isa::all() {
                for (format, kernel) in [
                    (OperandFormat::F32, (|isa, product, _| f32(isa, product)) as Kernel),
                    (OperandFormat::Bf16, |isa, product, _| bf16(isa, product)),
                    (INT8, int8_in_blocks),
                ] {
                    let all = results((rows, inputs), format, |product| kernel(isa, product, 0));
                    let last = results((rows, inputs), format, |product| {
                        let first = rows - 1;
                        let mut last = Product {
                            operand: &product.operand[first * product.stride..],
                            rows: 1,
                            out: &mut product.out[first * PANEL_WIDTH..],
                            ..*product
                        };
                        kernel(isa, &mut last, first);
                    });
                    let start = (rows - 1) * PANEL_WIDTH;
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&all[start..]), bits(&last[start..]), "{:?}", isa);
                }
            }
        }
    }
}
