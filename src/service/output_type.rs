//! Types in which clients can receive vectors, and the conversion of a vector to them.
//!
//! Pure. A vector is cut to its length and normalised first, and then quantised:
//!
//! | type | numbers |
//! | --- | --- |
//! | `int8` | components of the unit vector times 127, rounded |
//! | `uint8` | the same plus 128 |
//! | `ubinary` | 8 components in a byte, the first in the highest bit: 1 if it is above 0 |
//! | `binary` | the same bytes minus 128 |
//!
//! The bits are those of sentence-transformers: `numpy.packbits(vector > 0)`,
//! <https://github.com/UKPLab/sentence-transformers/blob/v3.0.0/sentence_transformers/quantization.py>.
//! vLLM sets the bit of a component that is exactly 0 too; computed components are never exactly 0
//! in practice. sentence-transformers scales int8 by ranges of each component that it measures on
//! texts of the client; a server has no such texts, so the scale here is a constant.

use super::error::EmbedError;

/// Factor from the components of a unit vector to int8.
const SCALE: f64 = 127.0;
/// Difference between an unsigned byte and the signed one for it.
const OFFSET: i16 = 128;
/// Character before the type in the name of an embedding space.
const SUFFIX: char = ';';
/// Components in one byte of the binary types.
const BITS: usize = 8;

/// Type of the numbers of a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputType {
    /// Floating point, as the model computes it.
    #[default]
    Float,
    /// Signed bytes, one for each component.
    Int8,
    /// Unsigned bytes, one for each component.
    Uint8,
    /// Signed bytes, one for eight components.
    Binary,
    /// Unsigned bytes, one for eight components.
    Ubinary,
}

/// Numbers of a vector in one of the types.
#[derive(Clone, Debug, PartialEq)]
pub enum QuantizedVector {
    /// `[dimensions]`.
    Float(Vec<f32>),
    /// `[dimensions]`, or `[dimensions / 8]` for packed bits.
    Signed(Vec<i8>),
    /// `[dimensions]`, or `[dimensions / 8]` for packed bits.
    Unsigned(Vec<u8>),
}

impl OutputType {
    /// All types.
    pub const ALL: [Self; 5] = [Self::Float, Self::Int8, Self::Uint8, Self::Binary, Self::Ubinary];

    /// Returns the type that a client names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the name for clients.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Binary => "binary",
            Self::Ubinary => "ubinary",
        }
    }

    /// Returns the factor from the components of a unit vector to the numbers; `None` if the type
    /// has no scale.
    pub const fn scale(self) -> Option<f64> {
        match self {
            Self::Int8 | Self::Uint8 => Some(SCALE),
            Self::Float | Self::Binary | Self::Ubinary => None,
        }
    }

    /// Returns the number that is added to the scaled component, or to the byte of bits.
    pub const fn offset(self) -> i16 {
        match self {
            Self::Float | Self::Int8 | Self::Ubinary => 0,
            Self::Uint8 => OFFSET,
            Self::Binary => -OFFSET,
        }
    }

    /// Returns whether the numbers are bytes of eight components.
    pub const fn is_packed(self) -> bool {
        matches!(self, Self::Binary | Self::Ubinary)
    }

    /// Checks that vectors of `dimensions` components fit the type.
    ///
    /// # Errors
    /// When they do not fill whole bytes.
    pub fn check_length(self, dimensions: usize) -> Result<(), EmbedError> {
        if self.is_packed() && !dimensions.is_multiple_of(BITS) {
            return Err(EmbedError::UnevenBits { output_type: self.name(), dimensions });
        }
        Ok(())
    }

    /// Returns the name of the embedding space of these numbers: that of the vectors, with the type
    /// as a suffix unless it is `float`. Numbers of different types cannot be compared.
    pub fn name_space(self, space: &str) -> String {
        match self {
            Self::Float => space.to_owned(),
            _ => format!("{space}{SUFFIX}{}", self.name()),
        }
    }

    /// Returns whether a client that expects the embedding space `expected` accepts vectors of the
    /// space `actual`. `expected` may omit the type.
    pub fn accepts_space(expected: &str, actual: &str) -> bool {
        let is_suffix = |rest: &str| rest.is_empty() || rest.starts_with(SUFFIX);
        actual.strip_prefix(expected).is_some_and(is_suffix) && !expected.is_empty()
    }

    /// Converts a vector to the type. A vector of zeros stays one; its bits are all 0.
    pub fn quantize(self, vector: &[f32]) -> QuantizedVector {
        match self {
            Self::Float => QuantizedVector::Float(vector.to_vec()),
            Self::Int8 => QuantizedVector::Signed(scaled(vector).collect()),
            Self::Uint8 => QuantizedVector::Unsigned(scaled(vector).map(to_unsigned).collect()),
            Self::Binary => QuantizedVector::Signed(packed(vector).map(to_signed).collect()),
            Self::Ubinary => QuantizedVector::Unsigned(packed(vector).collect()),
        }
    }
}

impl QuantizedVector {
    /// Returns the bytes of the numbers; floats are little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Float(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Signed(values) => values.iter().map(|value| value.cast_unsigned()).collect(),
            Self::Unsigned(values) => values.clone(),
        }
    }
}

/// Returns the components of the unit vector times [`SCALE`], rounded.
fn scaled(vector: &[f32]) -> impl Iterator<Item = i8> {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    // The vectors of some models are not normalised.
    let factor = if square > 0.0 { SCALE / square.sqrt() } else { 0.0 };
    vector.iter().map(move |value| {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of at most 127")]
        let rounded = (f64::from(*value) * factor).round() as i8;
        rounded
    })
}

/// Returns bytes of the signs of eight components each, the first one in the highest bit. The last
/// byte is filled with zeros.
fn packed(vector: &[f32]) -> impl Iterator<Item = u8> {
    vector.chunks(BITS).map(|part| {
        let bits = part.iter().enumerate();
        bits.fold(0, |byte, (at, value)| byte | (u8::from(*value > 0.0) << (BITS - 1 - at)))
    })
}

/// Adds [`OFFSET`].
fn to_unsigned(value: i8) -> u8 {
    value.cast_unsigned() ^ 0x80
}

/// Subtracts [`OFFSET`].
fn to_signed(value: u8) -> i8 {
    (value ^ 0x80).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_the_scaled_unit_vector() {
        let vector = [3.0, -4.0, 0.0];
        let int8 = OutputType::Int8.quantize(&vector);
        assert_eq!(int8, QuantizedVector::Signed(vec![76, -102, 0]));
        let uint8 = OutputType::Uint8.quantize(&vector);
        assert_eq!(uint8, QuantizedVector::Unsigned(vec![204, 26, 128]));
        for one in [1.0, 5.0, 1e-30] {
            let extreme = OutputType::Int8.quantize(&[-one, 0.0]);
            assert_eq!(extreme, QuantizedVector::Signed(vec![-127, 0]));
        }
    }

    #[test]
    fn bits_are_packed_from_the_highest_one() {
        let mut vector = [-0.5_f32; 16];
        for at in [0, 9, 15] {
            vector[at] = 0.25;
        }
        // Neither zero is above 0.
        (vector[1], vector[2]) = (0.0, -0.0);
        let ubinary = OutputType::Ubinary.quantize(&vector);
        assert_eq!(ubinary, QuantizedVector::Unsigned(vec![0b1000_0000, 0b0100_0001]));
        let binary = OutputType::Binary.quantize(&vector);
        assert_eq!(binary, QuantizedVector::Signed(vec![0, -63]));
    }

    #[test]
    fn zero_vector_has_no_direction() {
        for (kind, expected) in [
            (OutputType::Int8, QuantizedVector::Signed(vec![0; 8])),
            (OutputType::Uint8, QuantizedVector::Unsigned(vec![128; 8])),
            (OutputType::Binary, QuantizedVector::Signed(vec![-128])),
            (OutputType::Ubinary, QuantizedVector::Unsigned(vec![0])),
        ] {
            assert_eq!(kind.quantize(&[0.0; 8]), expected);
        }
    }

    #[test]
    fn names_and_spaces_have_the_type() {
        for kind in OutputType::ALL {
            assert_eq!(OutputType::from_name(kind.name()), Some(kind));
        }
        for unknown in ["", "Float", "int4", "base64"] {
            assert_eq!(OutputType::from_name(unknown), None, "{unknown}");
        }
        assert_eq!(OutputType::Float.name_space("ab"), "ab");
        assert_eq!(OutputType::Ubinary.name_space("ab"), "ab;ubinary");
    }

    #[test]
    fn expected_space_may_omit_the_type() {
        for (expected, actual, is_accepted) in [
            ("ab", "ab", true),
            ("ab", "ab;int8", true),
            ("ab;int8", "ab;int8", true),
            ("ab;int8", "ab", false),
            ("ab;int8", "ab;uint8", false),
            ("a", "ab", false),
            ("", "ab", false),
            ("", ";int8", false),
        ] {
            let found = OutputType::accepts_space(expected, actual);
            assert_eq!(found, is_accepted, "{expected} {actual}");
        }
    }

    #[test]
    fn packed_types_need_whole_bytes() {
        for kind in OutputType::ALL {
            assert!(kind.check_length(16).is_ok());
            assert_eq!(kind.check_length(12).is_err(), kind.is_packed(), "{kind:?}");
        }
    }

    proptest! {
        /// Checks the stated offset: both types of a pair have the same content.
        #[test]
        fn signed_and_unsigned_differ_by_the_offset(
            vector in proptest::collection::vec(-2.0_f32..2.0, 1..40),
        ) {
            for (signed, unsigned) in [
                (OutputType::Int8, OutputType::Uint8),
                (OutputType::Binary, OutputType::Ubinary),
            ] {
                let distance = unsigned.offset() - signed.offset();
                prop_assert_eq!(distance, 128);
                match (signed.quantize(&vector), unsigned.quantize(&vector)) {
                    (QuantizedVector::Signed(a), QuantizedVector::Unsigned(b)) => {
                        let a: Vec<i16> = a.into_iter().map(|a| i16::from(a) + 128).collect();
                        prop_assert_eq!(a, b.into_iter().map(i16::from).collect::<Vec<_>>());
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }

        #[test]
        fn int8_keeps_the_direction(vector in proptest::collection::vec(-1.0_f32..1.0, 64)) {
            let QuantizedVector::Signed(bytes) = OutputType::Int8.quantize(&vector) else {
                return Err(TestCaseError::fail("int8 is signed"));
            };
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let exact: Vec<f64> = vector.iter().copied().map(f64::from).collect();
            let bytes: Vec<f64> = bytes.into_iter().map(f64::from).collect();
            let cosine = dot(&exact, &bytes) / (dot(&exact, &exact) * dot(&bytes, &bytes)).sqrt();
            prop_assert!(cosine > 0.995, "{cosine}");
        }
    }
}
