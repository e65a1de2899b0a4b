//! Products of a few rows with a strip of 32 packed columns.
//!
//! A strip is `[groups, 32]`: for each four bytes of a row (one f32, two bf16, four integers) those
//! of the 32 columns. The scalar twin of every kernel, own or in [`super::super::amx`], is here.
//!
//! Invariant: a row's results do not depend on the other rows: each is one chain of sums in the order
//! of the groups.

use super::{Isa, Level, STRIP, mul_add, vectorised};

/// Rows of a product and where its results go.
pub(in crate::engine) struct Product<'a> {
    /// The rows, `stride` groups apart.
    pub(in crate::engine) operand: &'a [u32],
    pub(in crate::engine) stride: usize,
    pub(in crate::engine) rows: usize,
    /// `[groups, 32]`.
    pub(in crate::engine) strip: &'a [[u32; STRIP]],
    /// The results, rows `out_stride` apart.
    pub(in crate::engine) out: &'a mut [f32],
    pub(in crate::engine) out_stride: usize,
}

impl Product<'_> {
    /// Whether everything up to row `rows` lies within its slices.
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
/// Rows of one block in AVX-512: 12 × 32 sums are 24 of 32 registers.
#[cfg(target_arch = "x86_64")]
const WIDE_ROWS: usize = 12;

#[inline(always)]
fn block<const R: usize, T: Copy + Default>(
    product: &mut Product<'_>,
    first: usize,
    add: impl Fn(u32, u32, T) -> T,
    bits: impl Fn(T) -> f32,
) {
    let groups = product.strip.len();
    let rows: [&[u32]; R] =
        std::array::from_fn(|row| &product.operand[(first + row) * product.stride..][..groups]);
    for column in (0..STRIP).step_by(COLUMNS) {
        let mut sums = [[T::default(); COLUMNS]; R];
        for (group, strip) in product.strip.iter().enumerate() {
            let Some(weights) = strip[column..].first_chunk::<COLUMNS>() else { return };
            for (row, sums) in rows.iter().zip(&mut sums) {
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = add(row[group], weight, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = &mut product.out[(first + row) * product.out_stride + column..][..COLUMNS];
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = bits(sum);
            }
        }
    }
}

#[inline(always)]
fn blocks<T: Copy + Default>(
    product: &mut Product<'_>,
    add: impl Fn(u32, u32, T) -> T + Copy,
    bits: impl Fn(T) -> f32 + Copy,
) {
    let mut first = 0;
    while first + ROWS <= product.rows {
        block::<ROWS, T>(product, first, add, bits);
        first += ROWS;
    }
    while first < product.rows {
        block::<1, T>(product, first, add, bits);
        first += 1;
    }
}

vectorised! {
    /// f32.
    fn portable_f32<FMA>(product: &mut Product<'_>) {
        let add = |a, b, sum| mul_add::<FMA>(f32::from_bits(a), f32::from_bits(b), sum);
        blocks(product, add, |sum: f32| sum);
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
        blocks(product, add, |sum: f32| sum);
    }
}

vectorised! {
    /// Four unsigned bytes times four signed ones, summed in i32, whose bits are the result.
    fn portable_int8<FMA>(product: &mut Product<'_>) {
        let add = |a: u32, b: u32, sum: i32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes().map(|byte| i8::from_le_bytes([byte])));
            (0..4).fold(sum, |sum, i| sum.wrapping_add(i32::from(a[i]) * i32::from(b[i])))
        };
        blocks(product, add, |sum: i32| f32::from_ne_bytes(sum.to_ne_bytes()));
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! wide {
    (
        $name:ident, $features:literal, $zero:ident, $load:ident,
        spread: |$bits:ident| $spread:expr,
        add: |$sum:ident, $value:ident, $weights:ident| $add:expr,
        store: $store:ident
    ) => {
        /// `R` rows of a product.
        ///
        /// # Safety
        /// The processor has the features, and `product.fits(first + R)`.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(product: &mut Product<'_>, first: usize) {
            use std::arch::x86_64::*;
            let (stride, groups) = (product.stride, product.strip.len());
            let strip: *const [u32; STRIP] = product.strip.as_ptr();
            let mut sums = [[$zero(); 2]; R];
            // SAFETY: `fits` puts row `first + R - 1` and `groups` values of it within the operand; the
            // strip has `groups` times 32 values; and 32 results of each row lie within `out`.
            // JUSTIFICATION: with slices, the bounds of twelve rows are compared in every round of the
            // innermost loop.
            unsafe {
                let rows = product.operand.as_ptr().add(first * stride);
                for group in 0..groups {
                    let weights = strip.add(group).cast::<u32>();
                    let low = $load(weights.cast());
                    let high = $load(weights.add(16).cast());
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let $bits = *rows.add(row * stride + group);
                        let $value = $spread;
                        for ($sum, $weights) in sums.iter_mut().zip([low, high]) {
                            *$sum = $add;
                        }
                    }
                }
                let out = product.out.as_mut_ptr().add(first * product.out_stride);
                for (row, sums) in sums.into_iter().enumerate() {
                    let out = out.add(row * product.out_stride);
                    $store(out.cast(), sums[0]);
                    $store(out.add(16).cast(), sums[1]);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
wide!(
    wide_f32, "avx512f", _mm512_setzero_ps, _mm512_loadu_ps,
    spread: |bits| _mm512_set1_ps(f32::from_bits(bits)),
    add: |sum, value, weights| _mm512_fmadd_ps(value, weights, *sum),
    store: _mm512_storeu_ps
);

#[cfg(target_arch = "x86_64")]
wide!(
    wide_int8, "avx512f,avx512vnni", _mm512_setzero_si512, _mm512_loadu_si512,
    spread: |bits| _mm512_set1_epi32(bits.cast_signed()),
    add: |sum, value, weights| _mm512_dpbusd_epi32(*sum, value, weights),
    store: _mm512_storeu_si512
);

/// Calls a kernel for all rows in blocks of nearly one size: a block of few rows leaves the
/// multipliers waiting for its sums.
#[cfg(target_arch = "x86_64")]
macro_rules! wide_blocks {
    ($product:expr, $kernel:ident) => {{
        let product = $product;
        assert!(product.fits(product.rows), "the caller gives whole rows");
        let blocks = product.rows.div_ceil(WIDE_ROWS);
        let mut first = 0;
        for block in 0..blocks {
            let rows = (product.rows - first).div_ceil(blocks - block);
            // SAFETY: the `Isa` says that the processor has the features; `fits` was just asserted for
            // `product.rows`, and `first + rows` is never beyond.
            // JUSTIFICATION: as in `vectorised!`.
            unsafe {
                match rows {
                    1 => $kernel::<1>(product, first),
                    2 => $kernel::<2>(product, first),
                    3 => $kernel::<3>(product, first),
                    4 => $kernel::<4>(product, first),
                    5 => $kernel::<5>(product, first),
                    6 => $kernel::<6>(product, first),
                    7 => $kernel::<7>(product, first),
                    8 => $kernel::<8>(product, first),
                    9 => $kernel::<9>(product, first),
                    10 => $kernel::<10>(product, first),
                    11 => $kernel::<11>(product, first),
                    _ => $kernel::<12>(product, first),
                }
            }
            first += rows;
        }
    }};
}

/// Products of f32.
pub(in crate::engine) fn f32(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 { .. } => wide_blocks!(product, wide_f32),
        _ => portable_f32(isa, product),
    }
}

/// Products of unsigned bytes with signed ones; the results are bits of i32.
pub(in crate::engine) fn int8(isa: Isa, product: &mut Product<'_>) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 { vnni: true } => wide_blocks!(product, wide_int8),
        _ => portable_int8(isa, product),
    }
}

/// Products of bf16; the scalar twin of the tiles'.
pub(in crate::engine) fn bf16(isa: Isa, product: &mut Product<'_>) {
    portable_bf16(isa, product);
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
            out: &mut out,
            out_stride: STRIP,
        });
        out.truncate(rows * STRIP);
        out
    }

    #[test]
    fn every_kernel_gives_what_its_scalar_twin_gives() {
        for shape in SHAPES {
            let expected = results(shape, Format::F32, |product| f32(Isa::baseline(), product));
            let integers = results(shape, Format::Int8, |product| int8(Isa::baseline(), product));
            for isa in Isa::all() {
                let found = results(shape, Format::F32, |product| f32(isa, product));
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-4, "{isa:?} {shape:?}: {a} not {b}");
                }
                let found = results(shape, Format::Int8, |product| int8(isa, product));
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&integers), "{isa:?} {shape:?}");
            }
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
                    (Format::F32, f32 as fn(Isa, &mut Product<'_>)),
                    (Format::Bf16, bf16),
                    (Format::Int8, int8),
                ] {
                    let all = results((rows, inputs), format, |product| kernel(isa, product));
                    let last = results((rows, inputs), format, |product| {
                        let first = rows - 1;
                        kernel(isa, &mut Product {
                            operand: &product.operand[first * product.stride..],
                            rows: 1,
                            out: &mut product.out[first * STRIP..],
                            ..*product
                        });
                    });
                    let start = (rows - 1) * STRIP;
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&all[start..]), bits(&last[start..]), "{:?}", isa);
                }
            }
        }
    }
}
