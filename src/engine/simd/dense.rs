//! Products of a few rows with a strip of 32 packed columns.
//!
//! A strip is `[groups, 32]`: for each four bytes of a row (one f32, two bf16, four integers) those
//! of the 32 columns. The scalar twin of every kernel, own or in [`super::super::amx`], is here.
//!
//! Invariant: a row's results do not depend on the other rows: each is one chain of sums in the order
//! of the groups.

use std::ops::Range;

use super::rows::Quantization;
use super::{Isa, STRIP, mul_add, vectorised};
#[cfg(target_arch = "x86_64")]
use super::{Level, avx_vnni, avx512};

/// Rows of a product and where its results go.
pub(in crate::engine) struct Product<'a> {
    /// The rows, `stride` groups apart.
    pub(in crate::engine) operand: &'a [u32],
    pub(in crate::engine) stride: usize,
    pub(in crate::engine) rows: usize,
    /// `[groups, 32]`.
    pub(in crate::engine) strip: &'a [[u32; STRIP]],
    /// What is multiplied next, to be fetched meanwhile; may be empty.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only kernels of x86-64 ask for it")
    )]
    pub(in crate::engine) ahead: &'a [[u32; STRIP]],
    /// The results, rows `out_stride` apart.
    pub(in crate::engine) out: &'a mut [f32],
    pub(in crate::engine) out_stride: usize,
}

impl Product<'_> {
    /// Whether everything up to row `rows` lies within its slices.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::engine) fn fits(&self, rows: usize) -> bool {
        let Some(last) = rows.checked_sub(1) else { return true };
        let end = |stride: usize, width: usize| last.checked_mul(stride)?.checked_add(width);
        end(self.stride, self.strip.len()).is_some_and(|end| end <= self.operand.len())
            && end(self.out_stride, STRIP).is_some_and(|end| end <= self.out.len())
    }
}

/// Rows of one block in the baseline and AVX2: 6 × 16 sums are 12 of 16 registers.
const ROWS: usize = 6;
/// Columns of one block there.
const COLUMNS: usize = 16;

/// What makes values of a product of bytes.
pub(in crate::engine) struct Integers<'a> {
    /// Ends of the blocks, in groups; the last is that of the strip.
    pub(in crate::engine) ends: &'a [usize],
    /// What the bytes of a row and block stand for, `[rows, blocks]`.
    pub(in crate::engine) rows: &'a [Quantization],
    /// Of each block, the sums of the columns' weights.
    pub(in crate::engine) sums: &'a [[f32; STRIP]],
    /// Of each block, the columns' scales.
    pub(in crate::engine) scales: &'a [[f32; STRIP]],
}

impl Integers<'_> {
    /// Whether they are those of a product of `rows` rows and `groups` groups.
    pub(super) fn fit(&self, rows: usize, groups: usize) -> bool {
        self.ends.is_sorted()
            && self.ends.last() == Some(&groups)
            && self.sums.len() == self.ends.len()
            && self.scales.len() == self.ends.len()
            && self.rows.len() >= rows * self.ends.len()
    }
}

/// Sums of the groups `groups` for `R` rows from `first` on, in 16 columns from `column` on.
#[inline(always)]
fn sums<const R: usize, T: Copy + Default>(
    product: &Product<'_>,
    first: usize,
    column: usize,
    groups: Range<usize>,
    add: impl Fn(u32, u32, T) -> T,
) -> [[T; COLUMNS]; R] {
    let mut sums = [[T::default(); COLUMNS]; R];
    let rows: [&[u32]; R] = std::array::from_fn(|row| {
        &product.operand[(first + row) * product.stride..][groups.clone()]
    });
    for (group, strip) in product.strip[groups].iter().enumerate() {
        let Some(weights) = strip[column..].first_chunk::<COLUMNS>() else { return sums };
        for (row, sums) in rows.iter().zip(&mut sums) {
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = add(row[group], weight, *sum);
            }
        }
    }
    sums
}

#[inline(always)]
fn block<const R: usize>(
    product: &mut Product<'_>,
    first: usize,
    add: impl Fn(u32, u32, f32) -> f32 + Copy,
) {
    for column in (0..STRIP).step_by(COLUMNS) {
        let sums = sums::<R, f32>(product, first, column, 0..product.strip.len(), add);
        for (row, sums) in sums.iter().enumerate() {
            let start = (first + row) * product.out_stride + column;
            product.out[start..][..COLUMNS].copy_from_slice(sums);
        }
    }
}

#[inline(always)]
fn blocks(product: &mut Product<'_>, add: impl Fn(u32, u32, f32) -> f32 + Copy) {
    let mut first = 0;
    while first + ROWS <= product.rows {
        block::<ROWS>(product, first, add);
        first += ROWS;
    }
    while first < product.rows {
        block::<1>(product, first, add);
        first += 1;
    }
}

#[inline(always)]
fn integer_block<const R: usize, const FMA: bool>(
    product: &mut Product<'_>,
    integers: &Integers<'_>,
    first: usize,
) {
    let add = |a: u32, b: u32, sum: i32| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes().map(|byte| i8::from_le_bytes([byte])));
        (0..4).fold(sum, |sum, i| sum.wrapping_add(i32::from(a[i]) * i32::from(b[i])))
    };
    let blocks = integers.ends.len();
    for column in (0..STRIP).step_by(COLUMNS) {
        let mut values = [[0.0_f32; COLUMNS]; R];
        let mut start = 0;
        for (block, &end) in integers.ends.iter().enumerate() {
            let sums = sums::<R, i32>(product, first, column, start..end, add);
            let weights = &integers.sums[block][column..][..COLUMNS];
            let scales = &integers.scales[block][column..][..COLUMNS];
            for (row, (values, sums)) in values.iter_mut().zip(&sums).enumerate() {
                let Quantization { scale, zero } = integers.rows[(first + row) * blocks + block];
                for j in 0..COLUMNS {
                    #[expect(clippy::cast_precision_loss, reason = "rounded once, as f32 does")]
                    let sum = mul_add::<FMA>(-zero, weights[j], sums[j] as f32);
                    values[j] = mul_add::<FMA>(sum, scale * scales[j], values[j]);
                }
            }
            start = end;
        }
        for (row, values) in values.iter().enumerate() {
            let start = (first + row) * product.out_stride + column;
            product.out[start..][..COLUMNS].copy_from_slice(values);
        }
    }
}

vectorised! {
    /// f32.
    fn portable_f32<FMA>(product: &mut Product<'_>) {
        let add = |a, b, sum| mul_add::<FMA>(f32::from_bits(a), f32::from_bits(b), sum);
        blocks(product, add);
    }
}

vectorised! {
    /// Pairs of bf16, summed in f32.
    fn portable_bf16<FMA>(product: &mut Product<'_>) {
        let low = |pair: u32| f32::from_bits(pair << 16);
        let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        let add = |a, b, sum| {
            let sum = mul_add::<FMA>(low(a), low(b), sum);
            mul_add::<FMA>(high(a), high(b), sum)
        };
        blocks(product, add);
    }
}

vectorised! {
    /// Four unsigned bytes times four signed ones, summed in i32 within a block and in f32 over the
    /// blocks: a sum `s` in a block whose bytes have the offset `zero` and the scale `scale` is
    /// `(s − zero · sum of the column's weights) · scale · column's scale`.
    fn portable_int8<FMA>(product: &mut Product<'_>, integers: &Integers<'_>) {
        let mut first = 0;
        while first + ROWS <= product.rows {
            integer_block::<ROWS, FMA>(product, integers, first);
            first += ROWS;
        }
        while first < product.rows {
            integer_block::<1, FMA>(product, integers, first);
            first += 1;
        }
    }
}

/// Products of f32.
pub(in crate::engine) fn f32(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: only `Isa::detect` makes this value, after it found the features.
        // JUSTIFICATION: as in `vectorised!`.
        Level::Avx512 { .. } => unsafe { avx512::f32(product) },
        _ => portable_f32(isa, product),
    }
}

/// Products of unsigned bytes with signed ones, as values.
///
/// # Panics
/// When `integers` are not those of the product.
pub(in crate::engine) fn int8(isa: Isa, product: &mut Product<'_>, integers: &Integers<'_>) {
    assert!(integers.fit(product.rows, product.strip.len()), "the caller gives those of the rows");
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; it found VNNI too.
        // JUSTIFICATION: as above.
        Level::Avx512 { vnni: true, .. } => unsafe { avx512::int8(product, integers) },
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 { vnni: true } => unsafe { avx_vnni::int8(product, integers) },
        _ => portable_int8(isa, product, integers),
    }
}

/// Products of pairs of bf16, summed in f32. The baseline's is the scalar twin of the tiles', too.
pub(in crate::engine) fn bf16(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; it found pairs of bf16 too.
        // JUSTIFICATION: as above.
        Level::Avx512 { bf16: true, .. } => unsafe { avx512::bf16(product) },
        _ => portable_bf16(isa, product),
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::linear::Format;

    /// Rows and inputs of every odd and every usual shape.
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

    /// An operand and a strip of pseudorandom groups, good as any format.
    pub(in crate::engine) fn groups(rows: usize, inputs: usize, format: Format) -> [Vec<u32>; 2] {
        let count = format.groups(inputs);
        let mut state = 0x9e37_79b9_u32;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let mut value = move || match format {
            Format::Int8 => next(),
            // Between -1 and 1, so that no sum is dwarfed.
            Format::F32 => ((next() % 2001) as f32 / 1000.0 - 1.0).to_bits(),
            Format::Bf16 => {
                let mut half = || {
                    u32::from(crate::engine::simd::rows::bf16(
                        (next() % 2001) as f32 / 1000.0 - 1.0,
                    ))
                };
                half() | half() << 16
            }
        };
        let rows = rows.next_multiple_of(32) * count;
        [(0..rows).map(|_| value()).collect(), (0..count * STRIP).map(|_| value()).collect()]
    }

    /// The results of `multiply`, `[rows, 32]`.
    pub(in crate::engine) fn results(
        (rows, inputs): (usize, usize),
        format: Format,
        multiply: impl Fn(&mut Product<'_>),
    ) -> Vec<f32> {
        let [operand, strip] = groups(rows, inputs, format);
        let mut out = vec![0.0; rows.next_multiple_of(32) * STRIP];
        let stride = format.groups(inputs);
        let strip = strip.as_chunks::<STRIP>().0;
        multiply(&mut Product {
            operand: &operand,
            stride,
            rows,
            strip,
            ahead: strip,
            out: &mut out,
            out_stride: STRIP,
        });
        out.truncate(rows * STRIP);
        out
    }

    type Kernel = fn(Isa, &mut Product<'_>, usize);

    /// Calls `int8` with pseudorandom integers in three blocks, or as many as there are groups for.
    fn int8_in_blocks(isa: Isa, product: &mut Product<'_>, first_row: usize) {
        let groups = product.strip.len();
        let ends: Vec<usize> = [4, groups / 2, groups].into_iter().filter(|&end| end > 0).collect();
        let value = |index: usize| ((index * 7919) % 101) as f32 / 50.0 - 1.0;
        let row = |row: usize| {
            let quantization = |block| Quantization {
                scale: 0.01 + value(row * 3 + block).abs(),
                zero: (((row + block) * 37) % 256) as f32,
            };
            (0..ends.len()).map(quantization).collect::<Vec<_>>()
        };
        let column = |block: usize| std::array::from_fn(|column| value(block + column) * 300.0);
        let integers = Integers {
            rows: &(first_row..first_row + product.rows).flat_map(row).collect::<Vec<_>>(),
            sums: &(0..ends.len()).map(column).collect::<Vec<_>>(),
            scales: &(0..ends.len()).map(|block| column(block + 5)).collect::<Vec<_>>(),
            ends: &ends,
        };
        int8(isa, product, &integers);
    }

    #[test]
    fn every_kernel_gives_what_its_scalar_twin_gives() {
        for shape in SHAPES {
            let baseline = Isa::baseline();
            let expected = results(shape, Format::F32, |product| f32(baseline, product));
            let pairs = results(shape, Format::Bf16, |product| bf16(baseline, product));
            let integers =
                results(shape, Format::Int8, |product| int8_in_blocks(baseline, product, 0));
            let largest = integers.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            for isa in Isa::all() {
                let found = results(shape, Format::F32, |product| f32(isa, product));
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-4, "{isa:?} {shape:?}: {a} not {b}");
                }
                let found = results(shape, Format::Bf16, |product| bf16(isa, product));
                for (a, b) in found.iter().zip(&pairs) {
                    assert!((a - b).abs() <= 1e-4, "{isa:?} {shape:?}: {a} not {b}");
                }
                let found = results(shape, Format::Int8, |product| int8_in_blocks(isa, product, 0));
                for (a, b) in found.iter().zip(&integers) {
                    assert!((a - b).abs() <= largest * 1e-6, "{isa:?} {shape:?}: {a} not {b}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_multiplied_as_what_they_stand_for() {
        // Two blocks of one group, whose bytes stand for 2·(byte − 10) and 0.5·(byte − 1).
        let operand = [u32::from_le_bytes([12, 10, 10, 9]), u32::from_le_bytes([1, 1, 3, 1])];
        let mut strip = [[0; STRIP]; 2];
        strip[0][7] = u32::from_le_bytes([3_i8, 1, 1, -5].map(|weight| weight.to_le_bytes()[0]));
        strip[1][7] = u32::from_le_bytes([1, 1, 4, 0]);
        let mut sums = [[0.0; STRIP]; 2];
        (sums[0][7], sums[1][7]) = (0.0, 6.0);
        let rows = [(2.0, 10.0), (0.5, 1.0)].map(|(scale, zero)| Quantization { scale, zero });
        for isa in Isa::all() {
            let mut out = [f32::NAN; STRIP];
            let mut product = Product {
                operand: &operand,
                stride: 2,
                rows: 1,
                strip: &strip,
                ahead: &[],
                out: &mut out,
                out_stride: STRIP,
            };
            let scales = &[[0.5; STRIP]; 2];
            int8(isa, &mut product, &Integers { ends: &[1, 2], rows: &rows, sums: &sums, scales });
            // (4·3 − 2·−5 + 1·4) · 0.5
            assert_eq!((out[7], out[6]), (13.0, 0.0), "{isa:?}");
        }
    }

    #[test]
    fn the_scalar_twin_multiplies() {
        let (rows, inputs) = (3, 5);
        let [operand, strip] = groups(rows, inputs, Format::F32);
        let found = results((rows, inputs), Format::F32, |product| f32(Isa::baseline(), product));
        let count = Format::F32.groups(inputs);
        for row in 0..rows {
            for column in 0..STRIP {
                let expected: f32 = (0..count)
                    .map(|group| {
                        f32::from_bits(operand[row * count + group])
                            * f32::from_bits(strip[group * STRIP + column])
                    })
                    .sum();
                assert!((found[row * STRIP + column] - expected).abs() < 1e-5);
            }
        }
    }

    proptest! {
        #[test]
        fn a_row_is_the_same_among_any_others(rows in 2_usize..40, inputs in 1_usize..200) {
            for isa in Isa::all() {
                for (format, kernel) in [
                    (Format::F32, (|isa, product, _| f32(isa, product)) as Kernel),
                    (Format::Bf16, |isa, product, _| bf16(isa, product)),
                    (Format::Int8, int8_in_blocks),
                ] {
                    let all = results((rows, inputs), format, |product| kernel(isa, product, 0));
                    let last = results((rows, inputs), format, |product| {
                        let first = rows - 1;
                        let mut last = Product {
                            operand: &product.operand[first * product.stride..],
                            rows: 1,
                            out: &mut product.out[first * STRIP..],
                            ..*product
                        };
                        kernel(isa, &mut last, first);
                    });
                    let start = (rows - 1) * STRIP;
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&all[start..]), bits(&last[start..]), "{:?}", isa);
                }
            }
        }
    }
}
