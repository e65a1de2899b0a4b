//! Tests of the operations on rows, on every instruction set of this processor.

use super::*;
use crate::engine::config::HiddenActivation;

const ACTIVATIONS: [HiddenActivation; 4] = [
    HiddenActivation::Gelu,
    HiddenActivation::GeluTanh,
    HiddenActivation::Relu,
    HiddenActivation::Silu,
];
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
            let expected = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let found = f64::from(activated(isa, HiddenActivation::Silu, x));
            assert!((found - expected).abs() <= 2e-6, "{isa:?} {x}: {found}, {expected}");
        }
        for activation in ACTIVATIONS {
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
    for isa in Isa::all() {
        for activation in ACTIVATIONS.map(Some).into_iter().chain([None]) {
            let mut exact = vec![0.0; values.len()];
            let mut rounded = vec![0; values.len()];
            store_f32(isa, block, &bias, activation, &mut exact, PANEL_WIDTH);
            store_bf16(isa, block, &bias, activation, &mut rounded, PANEL_WIDTH);
            let expected: Vec<u16> = exact.into_iter().map(bf16).collect();
            assert_eq!(rounded, expected, "{isa:?} {activation:?}");
        }
    }
}

#[test]
fn silu_of_extreme_values_is_their_limit() {
    for isa in Isa::all() {
        for x in [-90.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert!(activated(isa, HiddenActivation::Silu, x).abs() < 1e-30, "{isa:?} {x}");
        }
        for x in [90.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(activated(isa, HiddenActivation::Silu, x), x, "{isa:?}");
        }
    }
}

#[test]
fn gate_multiplies_activated_values() {
    const ROWS: usize = 5;
    const STRIDE: usize = PANEL_WIDTH + 3;
    let values = values(2 * ROWS * PANEL_WIDTH);
    let (gate, up) = values.as_chunks::<PANEL_WIDTH>().0.split_at(ROWS);
    let gate_bias = std::array::from_fn(|j| values[7 * j] / 3.0);
    let up_bias = std::array::from_fn(|j| values[5 * j] / 7.0);
    for isa in Isa::all() {
        for activation in ACTIVATIONS {
            let (mut activated, mut factor) = ([1.0; ROWS * STRIDE], [1.0; ROWS * STRIDE]);
            store_f32(isa, gate, &gate_bias, Some(activation), &mut activated, STRIDE);
            store_f32(isa, up, &up_bias, None, &mut factor, STRIDE);
            let expected: Vec<f32> = activated.iter().zip(factor).map(|(a, b)| a * b).collect();
            let (gate, up) = ((gate, &gate_bias), (up, &up_bias));
            let mut found = [1.0; ROWS * STRIDE];
            gate_f32(isa, gate, up, activation, &mut found, STRIDE);
            assert_eq!(found.as_slice(), expected, "{isa:?} {activation:?}");
            let mut rounded = [bf16(1.0); ROWS * STRIDE];
            gate_bf16(isa, gate, up, activation, &mut rounded, STRIDE);
            assert_eq!(rounded, found.map(bf16), "{isa:?} {activation:?}");
        }
    }
}

#[test]
fn gate_keeps_nan_of_either_factor() {
    let nan = std::array::from_fn(|j| if j % 3 == 0 { f32::NAN } else { 1.0 });
    let one = [1.0; PANEL_WIDTH];
    for isa in Isa::all() {
        for activation in ACTIVATIONS {
            for (gate, up) in [(nan, one), (one, nan)] {
                let mut out = ZERO;
                let mut rounded = [0; PANEL_WIDTH];
                let (gate, up) = ([gate], [up]);
                let (gate, up) = ((gate.as_slice(), &ZERO), (up.as_slice(), &ZERO));
                gate_f32(isa, gate, up, activation, &mut out, PANEL_WIDTH);
                gate_bf16(isa, gate, up, activation, &mut rounded, PANEL_WIDTH);
                assert_eq!(out.map(f32::is_nan), nan.map(f32::is_nan), "{isa:?} {activation:?}");
                let rounded = rounded.map(|bits| f32::from_bits(u32::from(bits) << 16).is_nan());
                assert_eq!(rounded, nan.map(f32::is_nan), "{isa:?} {activation:?}");
            }
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
            softmax(isa, &mut scores, stride, &[(0, length); 3], bias, &mut inverses);
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
fn softmax_counts_only_columns_in_its_range() {
    const STRIDE: usize = 96;
    let ranges = [(0, 1), (0, 96), (5, 40), (16, 32), (31, 33), (64, 96), (95, 96), (17, 80)];
    let original = values(ranges.len() * STRIDE);
    let biases = values(STRIDE + ranges.len());
    let start = ranges.len() - 1;
    for isa in Isa::all() {
        for bias in [None, Some((biases.as_slice(), start))] {
            let mut scores = original.clone();
            let mut inverses = [0.0; 8];
            softmax(isa, &mut scores, STRIDE, &ranges, bias, &mut inverses);
            for (row, (first, end)) in ranges.into_iter().enumerate() {
                let counts = |column: usize| (first..end).contains(&column);
                let score = |column: usize| {
                    let bias = bias.map_or(0.0, |(bias, start)| bias[start - row + column]);
                    f64::from(original[row * STRIDE + column]) + f64::from(bias)
                };
                let sum: f64 = (first..end).map(|column| score(column).exp()).sum();
                for column in 0..STRIDE {
                    let found = scores[row * STRIDE + column];
                    if counts(column) {
                        let expected = score(column).exp() / sum;
                        let found = f64::from(found * inverses[row]);
                        assert!((found - expected).abs() < 1e-6, "{isa:?} {row} {column}");
                    } else {
                        assert_eq!(found, 0.0, "{isa:?} {row} {column}");
                    }
                }
            }
        }
    }
}

#[test]
fn softmax_keeps_nan_in_its_range() {
    const STRIDE: usize = 64;
    for isa in Isa::all() {
        for value in [f32::NAN, f32::INFINITY] {
            for (column, is_nan) in [(3, true), (20, true), (39, true), (2, false), (40, false)] {
                let mut scores = values(STRIDE);
                scores[column] = value;
                let mut inverses = [0.0];
                softmax(isa, &mut scores, STRIDE, &[(3, 40)], None, &mut inverses);
                assert_eq!(inverses[0].is_nan(), is_nan, "{isa:?} {value} {column}");
                assert_eq!(scores.iter().any(|x| x.is_nan()), is_nan, "{isa:?} {value} {column}");
            }
        }
    }
}

#[test]
fn rms_norm_matches_its_formula() {
    for isa in Isa::all() {
        for width in [1_usize, 24, 31, 64, 96, 128, 768] {
            let stride = width.next_multiple_of(PANEL_WIDTH) + PANEL_WIDTH;
            // The last row has no padding.
            let mut x = values(2 * stride + width);
            let original = x.clone();
            let weight: Vec<f32> = values(width).iter().map(|value| value / 3.0 + 1.0).collect();
            rms_norm(isa, &mut x, stride, &weight, 1e-3);
            for (found, row) in x.chunks(stride).zip(original.chunks(stride)) {
                let squares = row[..width].iter().map(|&x| f64::from(x).powi(2));
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let factor = 1.0 / (squares.sum::<f64>() / width as f64 + 1e-3).sqrt();
                for ((found, value), weight) in found.iter().zip(row).zip(&weight) {
                    let expected = f64::from(*value) * factor * f64::from(*weight);
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{isa:?} {width}");
                }
                assert_eq!(found[width..], row[width..], "{isa:?} {width}");
            }
        }
    }
}

#[test]
fn norms_keep_nan_in_its_row() {
    for isa in Isa::all() {
        for at in [0, 17, 39] {
            let mut x = values(3 * 40);
            x[40 + at] = f32::NAN;
            let mut y = x.clone();
            rms_norm(isa, &mut x, 40, &[1.0; 40], 1e-6);
            layer_norm(isa, &mut y, 40, &[1.0; 40], &[0.0; 40], 1e-6);
            for x in [x, y] {
                let rows: Vec<&[f32]> = x.chunks(40).collect();
                assert!(rows[1].iter().all(|x| x.is_nan()), "{isa:?} {at}");
                assert!([rows[0], rows[2]].concat().iter().all(|x| x.is_finite()), "{isa:?} {at}");
            }
        }
    }
}

#[test]
fn rotation_matches_its_formula() {
    const ROWS: usize = 3;
    for isa in Isa::all() {
        for width in [2_usize, 6, 24, 32, 64, 80, 128, 256] {
            let half = width / 2;
            let stride = width.next_multiple_of(PANEL_WIDTH) + PANEL_WIDTH;
            let angles = values(ROWS * half);
            // A table may have more rows than there are rows to rotate.
            let mut table = vec![f32::NAN; (ROWS + 1) * width];
            for (row, angles) in table.chunks_mut(width).zip(angles.chunks(half)) {
                for (i, angle) in angles.iter().enumerate() {
                    (row[i], row[half + i]) = (angle.cos(), angle.sin());
                }
            }
            let mut x = values(ROWS * stride);
            let original = x.clone();
            rotate(isa, &mut x, stride, &table, width);
            for (row, found) in x.chunks(stride).enumerate() {
                let original = &original[row * stride..][..stride];
                for i in 0..half {
                    let (sine, cosine) = f64::from(angles[row * half + i]).sin_cos();
                    let [a, b] = [original[i], original[i + half]].map(f64::from);
                    let error = f64::from(found[i]) - (a * cosine - b * sine);
                    assert!(error.abs() < 2e-6, "{isa:?} {width} {row} {i}");
                    let error = f64::from(found[i + half]) - (b * cosine + a * sine);
                    assert!(error.abs() < 2e-6, "{isa:?} {width} {row} {i}");
                }
                assert_eq!(found[width..], original[width..], "{isa:?} {width}");
            }
        }
    }
}

#[test]
fn rotation_keeps_nan_in_its_pair() {
    for isa in Isa::all() {
        for at in [5, 64 + 5] {
            let mut x = values(128);
            x[at] = f32::NAN;
            rotate(isa, &mut x, 128, &[0.5; 128], 128);
            let found: Vec<usize> = (0..128).filter(|&i| x[i].is_nan()).collect();
            assert_eq!(found, [5, 64 + 5], "{isa:?}");
        }
    }
}

#[test]
fn added_rows_are_sums() {
    for isa in Isa::all() {
        for length in [0, 1, 15, 33, 384] {
            let (mut x, other) = (values(length + 2), values(length));
            x.reverse();
            let expected: Vec<f32> = x.iter().zip(&other).map(|(a, b)| a + b).collect();
            let rest = x[length..].to_vec();
            add_rows(isa, &mut x, &other);
            assert_eq!(x, [expected, rest].concat(), "{isa:?}");
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
