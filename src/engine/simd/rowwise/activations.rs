//! Activations between the products of a feed-forward layer, plain and gated.

use super::super::elementwise::{GELU, GELU_LIMIT, bf16};
use super::super::{BiasedBlock, Isa, PANEL_WIDTH, mul_add, vectorised};
#[cfg(target_arch = "aarch64")]
use super::super::{IsaLevel, neon_rows};
use super::ROUND;
use crate::engine::config::HiddenActivation;

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
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
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

/// Returns `x/(1 + e⁻ˣ)`.
#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    // `exp` clamps its argument, so without this bound, large negative values would not become 0.
    let outer = if x < -EXP_MAX { -EXP_MAX } else { x };
    outer / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn activate<const FMA: bool, const ACTIVATION: u8>(x: f32) -> f32 {
    match ACTIVATION {
        IDENTITY => x,
        GELU_EXACT => gelu::<FMA>(x),
        GELU_TANH => gelu_tanh::<FMA>(x),
        SILU => silu::<FMA>(x),
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
const SILU: u8 = 3;
const RELU: u8 = 4;

/// Calls `$rows` with the activation as a constant, so that no loop branches on it.
macro_rules! with_activation {
    ($activation:expr, $fma:ident, $rows:ident($($arg:expr),*)) => {
        match $activation {
            None => $rows::<$fma, IDENTITY, _>($($arg),*),
            Some(HiddenActivation::Gelu) => $rows::<$fma, GELU_EXACT, _>($($arg),*),
            Some(HiddenActivation::GeluTanh) => $rows::<$fma, GELU_TANH, _>($($arg),*),
            Some(HiddenActivation::Silu) => $rows::<$fma, SILU, _>($($arg),*),
            Some(HiddenActivation::Relu) => $rows::<$fma, RELU, _>($($arg),*),
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
        with_activation!(activation, FMA, activate_rows(block, bias, out, stride, |x| x));
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
        with_activation!(activation, FMA, activate_rows(block, bias, out, stride, bf16));
    }
}

/// Writes `activation(gate + bias) · (up + bias)`, converted by `convert`, to the rows of `out`,
/// `stride` values apart.
#[inline(always)]
fn gate_rows<const FMA: bool, const ACTIVATION: u8, T>(
    (gate, gate_bias): BiasedBlock<'_>,
    (up, up_bias): BiasedBlock<'_>,
    out: &mut [T],
    stride: usize,
    convert: impl Fn(f32) -> T,
) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out.chunks_mut(stride)) {
        let Some(out) = out.first_chunk_mut::<PANEL_WIDTH>() else { return };
        for j in 0..PANEL_WIDTH {
            let activated = activate::<FMA, ACTIVATION>(gate[j] + gate_bias[j]);
            out[j] = convert(activated * (up[j] + up_bias[j]));
        }
    }
}

/// Writes `activation(gate + bias) · (up + bias)` to the rows of `out`, `stride` values apart.
/// `gate` and `up` are the blocks of the two first products of a gated feed-forward layer, each
/// with its bias.
pub(in crate::engine) fn gate_f32(
    isa: Isa,
    gate: BiasedBlock<'_>,
    up: BiasedBlock<'_>,
    activation: HiddenActivation,
    out: &mut [f32],
    stride: usize,
) {
    match (isa.0, activation) {
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "aarch64")]
        (IsaLevel::Neon { .. }, HiddenActivation::Gelu) => unsafe {
            neon_rows::gate_gelu(gate, up, out, stride, |x| x);
        },
        _ => gate_portable(isa, gate, up, activation, out, stride),
    }
}

vectorised! {
    fn gate_portable<FMA>(
        gate: BiasedBlock<'_>,
        up: BiasedBlock<'_>,
        activation: HiddenActivation,
        out: &mut [f32],
        stride: usize,
    ) {
        with_activation!(Some(activation), FMA, gate_rows(gate, up, out, stride, |x| x));
    }
}

/// Writes the values of [`gate_f32`], rounded to bf16.
pub(in crate::engine) fn gate_bf16(
    isa: Isa,
    gate: BiasedBlock<'_>,
    up: BiasedBlock<'_>,
    activation: HiddenActivation,
    out: &mut [u16],
    stride: usize,
) {
    match (isa.0, activation) {
        // SAFETY: every 64-bit Arm processor has NEON.
        // JUSTIFICATION: as in `vectorised!`.
        #[cfg(target_arch = "aarch64")]
        (IsaLevel::Neon { .. }, HiddenActivation::Gelu) => unsafe {
            neon_rows::gate_gelu(gate, up, out, stride, bf16);
        },
        _ => gate_bf16_portable(isa, gate, up, activation, out, stride),
    }
}

vectorised! {
    fn gate_bf16_portable<FMA>(
        gate: BiasedBlock<'_>,
        up: BiasedBlock<'_>,
        activation: HiddenActivation,
        out: &mut [u16],
        stride: usize,
    ) {
        with_activation!(Some(activation), FMA, gate_rows(gate, up, out, stride, bf16));
    }
}
