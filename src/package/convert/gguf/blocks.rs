//! Decodes the blocks in which GGUF files store the values of tensors.
//!
//! Each format divides a row into blocks of a fixed number of values and bytes. The layouts are
//! those of <https://github.com/ggml-org/llama.cpp/blob/b6500/ggml/src/ggml-common.h>, and the
//! values are bit for bit those of ggml's own functions.

use half::f16;

/// Values of a large block (the formats whose names end in `K`).
const LARGE: usize = 256;
/// Values of a small block.
const SMALL: usize = 32;

/// Format of the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Number of each supported format in a file, with its name.
const FORMATS: [(u32, BlockFormat, &str); 11] = [
    (0, BlockFormat::F32, "F32"),
    (1, BlockFormat::F16, "F16"),
    (2, BlockFormat::Q4_0, "Q4_0"),
    (3, BlockFormat::Q4_1, "Q4_1"),
    (6, BlockFormat::Q5_0, "Q5_0"),
    (7, BlockFormat::Q5_1, "Q5_1"),
    (8, BlockFormat::Q8_0, "Q8_0"),
    (12, BlockFormat::Q4K, "Q4_K"),
    (13, BlockFormat::Q5K, "Q5_K"),
    (14, BlockFormat::Q6K, "Q6_K"),
    (30, BlockFormat::Bf16, "BF16"),
];

/// Names of formats that are not supported, with their numbers.
const OTHERS: [(u32, &str); 14] = [
    (10, "Q2_K"),
    (11, "Q3_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl BlockFormat {
    /// Returns the format with the number `number`.
    ///
    /// # Errors
    /// Returns the name of the format, or its number, if it is not supported.
    pub(super) fn of(number: u32) -> Result<Self, String> {
        if let Some((_, format, _)) = FORMATS.iter().find(|(known, ..)| *known == number) {
            return Ok(*format);
        }
        let name = OTHERS.iter().find(|(known, _)| *known == number);
        Err(name.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned()))
    }

    /// Returns the names of all supported formats.
    pub(super) fn names() -> String {
        FORMATS.map(|(.., name)| name).join(", ")
    }

    /// Returns the number of values of a block.
    pub(super) const fn values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => SMALL,
            Self::Q4K | Self::Q5K | Self::Q6K => LARGE,
        }
    }

    /// Returns the number of bytes of a block.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Appends the values of the whole blocks in `bytes` to `values`.
    pub(super) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => each(bytes, values, |block, [value]| *value = f32::from_le_bytes(*block)),
            Self::F16 => each(bytes, values, |block: &[u8; 2], [value]| *value = half_at(block, 0)),
            Self::Bf16 => each(bytes, values, |&[low, high], [value]| {
                *value = f32::from_le_bytes([0, 0, low, high]);
            }),
            Self::Q4_0 => each(bytes, values, decode_q4_0),
            Self::Q4_1 => each(bytes, values, decode_q4_1),
            Self::Q5_0 => each(bytes, values, decode_q5_0),
            Self::Q5_1 => each(bytes, values, decode_q5_1),
            Self::Q8_0 => each(bytes, values, decode_q8_0),
            Self::Q4K => each(bytes, values, decode_q4_k),
            Self::Q5K => each(bytes, values, decode_q5_k),
            Self::Q6K => each(bytes, values, decode_q6_k),
        }
    }
}

/// Decodes each block of `B` bytes to `V` values.
fn each<const B: usize, const V: usize>(
    bytes: &[u8],
    values: &mut Vec<f32>,
    decode: fn(&[u8; B], &mut [f32; V]),
) {
    let (blocks, _) = bytes.as_chunks();
    values.reserve(blocks.len() * V);
    for block in blocks {
        let mut decoded = [0.0; V];
        decode(block, &mut decoded);
        values.extend_from_slice(&decoded);
    }
}

/// Returns the f16 at `start` of a block.
fn half_at(block: &[u8], start: usize) -> f32 {
    f16::from_le_bytes([block[start], block[start + 1]]).to_f32()
}

/// Sets both halves of `values` to what `value` returns for the low and the high four bits of each
/// byte. `value` gets the bits and the index of the value.
fn nibbles(bytes: &[u8], values: &mut [f32; SMALL], value: impl Fn(u8, usize) -> f32) {
    for (index, byte) in bytes.iter().enumerate() {
        values[index] = value(byte & 15, index);
        values[index + SMALL / 2] = value(byte >> 4, index + SMALL / 2);
    }
}

fn decode_q4_0(block: &[u8; 18], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], values, |bits, _| (f32::from(bits) - 8.0) * scale);
}

fn decode_q4_1(block: &[u8; 20], values: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], values, |bits, _| f32::from(bits) * scale + least);
}

/// Returns the fifth bit of value `index`, from the four bytes of these bits at `start`.
fn fifth_bit(block: &[u8], start: usize, index: usize) -> u8 {
    ((block[start + index / 8] >> (index % 8)) & 1) << 4
}

fn decode_q5_0(block: &[u8; 22], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    nibbles(&block[6..], values, |bits, index| {
        (f32::from(bits | fifth_bit(block, 2, index)) - 16.0) * scale
    });
}

fn decode_q5_1(block: &[u8; 24], values: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[8..], values, |bits, index| {
        f32::from(bits | fifth_bit(block, 4, index)) * scale + least
    });
}

fn decode_q8_0(block: &[u8; 34], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for (value, byte) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte.cast_signed()) * scale;
    }
}

/// Returns the scale and the minimum of group `group` of 32 values. Twelve bytes contain eight
/// pairs of six bits each.
fn group_scale(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
            (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(least))
}

fn decode_q4_k(block: &[u8; 144], values: &mut [f32; LARGE]) {
    decode_groups(block, &block[16..], values, |_, _| 0);
}

fn decode_q5_k(block: &[u8; 176], values: &mut [f32; LARGE]) {
    decode_groups(block, &block[48..], values, |group, index| {
        ((block[16 + index] >> group) & 1) << 4
    });
}

/// Decodes eight groups of 32 values with the scales at the start of `block`. `low` contains four
/// bits of each value: each 32 bytes are one group in the low bits and the next one in the high
/// bits. `high` returns the fifth bit of value `index` of a group.
fn decode_groups(
    block: &[u8],
    low: &[u8],
    values: &mut [f32; LARGE],
    high: impl Fn(usize, usize) -> u8,
) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (group, values) in values.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        let (factor, subtrahend) = group_scale(&block[4..16], group);
        let (factor, subtrahend) = (scale * factor, least * subtrahend);
        let bytes = &low[group / 2 * SMALL..][..SMALL];
        for (index, (value, byte)) in values.iter_mut().zip(bytes).enumerate() {
            let bits = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            *value = factor * f32::from(bits | high(group, index)) - subtrahend;
        }
    }
}

fn decode_q6_k(block: &[u8; 210], values: &mut [f32; LARGE]) {
    let scale = half_at(block, 208);
    for (index, value) in values.iter_mut().enumerate() {
        // Each half of 128 values has 64 bytes of low bits and 32 bytes of high bits. The four
        // quarters of the half share these bytes.
        let (half, place) = (index / 128, index % 128);
        let (quarter, column) = (place / 32, place % 32);
        let low = block[half * 64 + quarter % 2 * 32 + column];
        let low = if quarter < 2 { low & 15 } else { low >> 4 };
        let high = (block[128 + half * 32 + column] >> (2 * quarter)) & 3;
        let factor = block[192 + index / 16].cast_signed();
        *value = scale * f32::from(factor) * (f32::from(low | (high << 4)) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a block of `format` with the given scales at their places.
    fn block(format: BlockFormat, scales: &[(usize, f32)]) -> Vec<u8> {
        let mut block: Vec<u8> =
            (0..format.bytes()).map(|i| (i * 37 + 11).to_le_bytes()[0]).collect();
        for (place, scale) in scales {
            block[*place..place + 2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
        }
        block
    }

    /// The expected sums and values are those of the package gguf 0.19.
    #[test]
    fn blocks_have_the_values_of_the_package_gguf() {
        let (scale, least): (&[_], &[_]) = (&[(0, 0.125)], &[(0, 0.125), (2, 0.5)]);
        let cases = [
            (BlockFormat::Q4_0, scale, [-0.375, 0.25, -0.375, 0.0], -2.625, -64.75),
            (BlockFormat::Q4_1, least, [2.375, 1.0, 1.625, 2.0], 46.625, 761.875),
            (BlockFormat::Q5_0, scale, [1.125, -0.25, 1.75, 0.125], 1.875, 14.0),
            (BlockFormat::Q5_1, least, [2.875, 3.5, 2.875, 1.125], 79.125, 1251.625),
            (BlockFormat::Q8_0, scale, [10.625, 15.25, -11.375, -6.0], -22.0, -1010.0),
            (BlockFormat::Q4K, least, [17.125, -25.5, 47.625, -9.25], 3109.0, 530_357.0),
            (BlockFormat::Q5K, least, [79.125, -25.5, 125.625, -1.75], 10831.0, 1_587_183.0),
            (BlockFormat::Q6K, &[(208, 0.125)], [-178.875, 212.0, -43.875, -7.5], 576.5, 98052.5),
        ];
        for (format, scales, [first, second, middle, last], sum, weighted_sum) in cases {
            let mut values = Vec::new();
            format.decode(&block(format, scales), &mut values);
            assert_eq!(values.len(), format.values(), "{format:?}");
            let half = values.len() / 2;
            let found = [values[0], values[1], values[half], values[values.len() - 1]];
            assert_eq!(found, [first, second, middle, last], "{format:?}");
            let sums =
                values.iter().zip(1_u32..).fold((0.0, 0.0), |(sum, weighted), (value, index)| {
                    let value = f64::from(*value);
                    (sum + value, weighted + value * f64::from(index))
                });
            assert_eq!(sums, (sum, weighted_sum), "{format:?}");
        }
    }

    #[test]
    fn numbers_are_decoded_and_partial_blocks_are_left_out() {
        let mut values = Vec::new();
        BlockFormat::F32.decode(&1.5_f32.to_le_bytes(), &mut values);
        BlockFormat::F16.decode(&f16::from_f32(-2.0).to_le_bytes(), &mut values);
        BlockFormat::Bf16.decode(&[0xc0, 0x3f], &mut values);
        BlockFormat::Q8_0.decode(&[0; 33], &mut values);
        assert_eq!(values, [1.5, -2.0, 1.5]);
    }

    #[test]
    fn unsupported_formats_have_a_name() {
        assert_eq!(BlockFormat::of(12), Ok(BlockFormat::Q4K));
        assert_eq!(BlockFormat::of(20), Err("IQ4_NL".to_owned()));
        assert_eq!(BlockFormat::of(200), Err("number 200".to_owned()));
    }
}
