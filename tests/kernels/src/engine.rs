//! The module that contains the kernels, with the two types of the engine that they name.

pub(in crate::engine) mod config {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code, reason = "the tests name the variants")]
    pub(in crate::engine) enum HiddenActivation {
        Gelu,
        GeluTanh,
        Relu,
        Silu,
    }
}

#[cfg(test)]
pub(in crate::engine) mod linear {
    use super::simd::Int8RowFormat;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::engine) enum OperandFormat {
        F32,
        Bf16,
        Int8(Int8RowFormat),
    }

    impl OperandFormat {
        pub(in crate::engine) const fn lane_groups(self, elements: usize) -> usize {
            let per_group = match self {
                Self::F32 => 1,
                Self::Bf16 => 2,
                Self::Int8(_) => 4,
            };
            elements.div_ceil(per_group).next_multiple_of(16)
        }
    }
}

#[path = "../../../src/engine/simd/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the encoder uses more of it than this package")]
mod simd;

use std::hint::black_box;

use simd::elementwise::RowQuantization;
use simd::product::{OperandQuantization, Product};
use simd::{Isa, PANEL_WIDTH, gemm};

/// Multiplies one row of ones with one panel of ones by each kernel of this processor. Returns the
/// first results.
pub fn multiply() -> Vec<(&'static str, [f32; 3])> {
    const GROUPS: usize = 16;
    // Hide the numbers from the compiler, which would otherwise compile special loops for them.
    let (groups, rows) = (black_box(GROUPS), black_box(1));
    let product = |isa: Isa, one: u32, multiply: &dyn Fn(Isa, &mut Product<'_>)| {
        let mut out = [0.0; PANEL_WIDTH];
        let mut product = Product {
            operand: &[one; 2 * GROUPS],
            stride: groups,
            rows,
            panel: &[[one; PANEL_WIDTH]; GROUPS][..groups],
            next_panel: &[],
            out: &mut out,
            out_stride: black_box(PANEL_WIDTH),
        };
        multiply(isa, &mut product);
        out[0]
    };
    let integers = OperandQuantization {
        ends: &[groups],
        rows: &[RowQuantization { scale: 1.0, zero: 0.0 }],
        sums: &[[0.0; PANEL_WIDTH]],
        scales: &[[1.0; PANEL_WIDTH]],
    };
    let int8 = |isa, product: &mut Product<'_>| gemm::int8(isa, product, &integers);
    let of = |isa: Isa| {
        [
            product(isa, 1.0_f32.to_bits(), &|isa, product| gemm::f32(isa, product)),
            product(isa, 0x3f80_3f80, &|isa, product| gemm::bf16(isa, product)),
            product(isa, 0x0101_0101, &int8),
        ]
    };
    Isa::all().into_iter().map(|isa| (isa.name(), of(isa))).collect()
}
