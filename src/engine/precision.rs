//! Chooses the arithmetic in which a model runs.
//!
//! The choice is a pure function, except for the detection of the processor. [`Precision::Auto`]
//! picks int8 only for a package with integer weights: its packer has accepted their error, and the
//! self-test of the package runs with them. It prefers bf16 in AMX tiles to int8, and int8 to pairs
//! of bf16, in the order of the products that a processor computes per cycle.

use std::fmt;
use std::str::FromStr;

use super::UnknownName;
use super::amx::Amx;
use super::linear::{Backend, OperandFormat};
use super::simd::product::Product;
use super::simd::{Isa, PANEL_WIDTH, elementwise};

/// Arithmetic of a model's products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The fastest precision on this processor whose vectors stay close to those in f32.
    #[default]
    Auto,
    /// Products and everything else in f32: the exact precision.
    F32,
    /// Products of 8-bit integers. Weights have a scale for each output and block of channels;
    /// activations have a scale and an offset for each token and block. A block has at most 128
    /// channels, except that the output of the attention heads is one block.
    Int8,
    /// Products of bf16, summed in f32, if the processor supports them.
    Bf16,
}

impl Precision {
    /// All precisions, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::F32, Self::Int8, Self::Bf16];

    /// Returns the name that configurations and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }
}

impl FromStr for Precision {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|value| value.name() == text)
            .ok_or_else(|| UnknownName::new("precision", text, &Self::ALL.map(Self::name)))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Arithmetic of a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecisionReport {
    /// Precision of the products; never [`Precision::Auto`].
    pub precision: Precision,
    /// Instructions that compute the products: `amx-bf16`, `avx512-bf16`, `avx512-vnni`, `avx512`,
    /// `avx-vnni`, `avx2` or `sse4.2`; `neon-bf16`, `neon-i8mm`, `neon-dotprod` or `neon`;
    /// `scalar`; `none` if the model has no products.
    pub isa: &'static str,
    /// Reason for this precision, in words for an operator.
    pub reason: String,
}

/// Chosen arithmetic, with the report about it.
pub(super) struct ArithmeticChoice {
    pub(super) backend: Backend,
    /// Format of linear layers.
    pub(super) format: OperandFormat,
    /// Format of attention.
    pub(super) attention: OperandFormat,
    pub(super) report: PrecisionReport,
}

/// Chooses the arithmetic for `wanted` on this processor. `integers` states whether the weights are
/// stored as integers.
pub(super) fn choose_arithmetic(wanted: Precision, integers: bool) -> ArithmeticChoice {
    let amx = match wanted {
        // These precisions do not use AMX, so do not request its permission from the kernel.
        Precision::F32 | Precision::Int8 => Err("AMX was not requested"),
        Precision::Auto | Precision::Bf16 => Amx::request().and_then(check_amx),
    };
    choose_for(wanted, integers, Isa::detect(), amx)
}

/// Returns `amx` if its tiles compute the same products on this machine as their scalar twin.
pub(super) fn check_amx(amx: Amx) -> Result<Amx, &'static str> {
    const ROWS: usize = 48;
    const GROUPS: usize = 32;
    // The values are small integers, whose sums are exact in any order. So the comparison may be
    // bitwise.
    let group = |index: usize| {
        let [low, high] = [index * 3, index * 5 + 1].map(|index| {
            let value = u16::try_from(index % 7).unwrap_or(0);
            u32::from(elementwise::bf16(f32::from(value) - 3.0))
        });
        low | high << 16
    };
    let operand: Vec<u32> = (0..ROWS * GROUPS).map(group).collect();
    let panel: Vec<u32> = (0..GROUPS * PANEL_WIDTH).map(|index| group(index * 11 + 5)).collect();
    let results = |amx| {
        let mut out = vec![0.0; ROWS * PANEL_WIDTH];
        let mut product = Product {
            operand: &operand,
            stride: GROUPS,
            rows: ROWS,
            panel: panel.as_chunks::<PANEL_WIDTH>().0,
            next_panel: &[],
            out: &mut out,
            out_stride: PANEL_WIDTH,
        };
        Backend { isa: Isa::baseline(), amx }.session().multiply_bf16(&mut product);
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    if results(Some(amx)) == results(None) {
        Ok(amx)
    } else {
        Err("AMX of this processor computes wrong products")
    }
}

/// Chooses the arithmetic for `wanted` on a processor that has `isa`, and has `amx` or a reason for
/// its absence.
pub(super) fn choose_for(
    wanted: Precision,
    integers: bool,
    isa: Isa,
    amx: Result<Amx, &'static str>,
) -> ArithmeticChoice {
    let pairs = isa.multiplies_bf16();
    let without = |why| format!("{why}, and the processor has no other instruction for bf16");
    let (precision, reason) = match (wanted, amx) {
        (Precision::F32, _) => (Precision::F32, "exact".to_owned()),
        (Precision::Int8, _) => (Precision::Int8, "requested".to_owned()),
        (Precision::Bf16, Ok(_)) => (Precision::Bf16, "requested".to_owned()),
        (Precision::Bf16, Err(why)) if pairs => (Precision::Bf16, format!("requested; {why}")),
        (Precision::Bf16, Err(why)) => {
            (Precision::F32, format!("bf16 was requested, but {}; f32 is exact", without(why)))
        }
        (Precision::Auto, Ok(_)) => (
            Precision::Bf16,
            "fastest on this processor, which multiplies bf16 in tiles".to_owned(),
        ),
        (Precision::Auto, Err(_)) if integers && isa.multiplies_bytes() => (
            Precision::Int8,
            "the package has int8 weights, and the processor multiplies int8".to_owned(),
        ),
        (Precision::Auto, Err(_)) if pairs => (
            Precision::Bf16,
            "fastest on this processor, which multiplies pairs of bf16".to_owned(),
        ),
        (Precision::Auto, Err(why)) => (Precision::F32, format!("exact; {}", without(why))),
    };
    let slow = isa.name() == "scalar";
    let reason = if slow { format!("{reason}; slow: no SSE4.2") } else { reason };
    // The products need no tiles in other precisions, so do not configure them.
    let tiles = amx.ok().filter(|_| precision == Precision::Bf16);
    let rows = isa.int8_row_format();
    let (format, attention, name) = match precision {
        Precision::Auto | Precision::F32 => (OperandFormat::F32, OperandFormat::F32, isa.name()),
        Precision::Bf16 if tiles.is_some() => {
            (OperandFormat::Bf16, OperandFormat::Bf16, "amx-bf16")
        }
        Precision::Bf16 => (OperandFormat::Bf16, OperandFormat::Bf16, isa.bf16_name()),
        // The error that bf16 attention adds is far smaller than the error of the int8 products.
        Precision::Int8 if pairs => (OperandFormat::Int8(rows), OperandFormat::Bf16, isa.name()),
        Precision::Int8 => (OperandFormat::Int8(rows), OperandFormat::F32, isa.name()),
    };
    let report = PrecisionReport { precision, isa: name, reason };
    ArithmeticChoice { backend: Backend { isa, amx: tiles }, format, attention, report }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_names_round_trip() {
        for value in Precision::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        let error = "f64".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "unknown precision \"f64\"; known: auto, f32, int8, bf16");
    }

    const NO_AMX: Result<Amx, &str> = Err("the processor has no AMX");

    fn decided(wanted: Precision, integers: bool, isa: Isa) -> PrecisionReport {
        choose_for(wanted, integers, isa, NO_AMX).report
    }

    #[test]
    fn f32_is_default_without_bf16_support() {
        let cases = [
            (Precision::Auto, Precision::F32, "exact; the processor has no AMX, and"),
            (Precision::F32, Precision::F32, "exact"),
            (Precision::Int8, Precision::Int8, "requested"),
            (
                Precision::Bf16,
                Precision::F32,
                "bf16 was requested, but the processor has no AMX, and the processor has no other instruction for bf16; f32",
            ),
        ];
        for (wanted, expected, reason) in cases {
            let report = decided(wanted, false, Isa::baseline());
            assert_eq!(report.precision, expected, "{wanted}");
            assert!(report.reason.starts_with(reason), "{}", report.reason);
        }
        let report = decided(Precision::Auto, true, Isa::baseline());
        assert_eq!(report.precision, Precision::F32);
        assert_eq!(report.reason.ends_with("slow: no SSE4.2"), report.isa == "scalar");
        for isa in Isa::all().into_iter().filter(|isa| isa.multiplies_bytes()) {
            let report = decided(Precision::Auto, true, isa);
            assert_eq!(report.precision, Precision::Int8, "{isa:?}");
        }
    }

    #[test]
    fn bf16_is_chosen_for_floats_where_supported() {
        for isa in Isa::all().into_iter().filter(|isa| isa.multiplies_bf16()) {
            for (wanted, reason) in
                [(Precision::Auto, "fastest on this processor"), (Precision::Bf16, "requested; ")]
            {
                let report = decided(wanted, false, isa);
                assert_eq!((report.precision, report.isa), (Precision::Bf16, isa.bf16_name()));
                assert!(report.reason.starts_with(reason), "{}", report.reason);
            }
            let choice = choose_for(Precision::Int8, true, isa, NO_AMX);
            let format = OperandFormat::Int8(isa.int8_row_format());
            assert_eq!((choice.format, choice.attention), (format, OperandFormat::Bf16));
        }
    }
}
