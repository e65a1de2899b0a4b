//! Products of bytes with `SMULL` for four rows or more, with transposed weights.
//!
//! A panel has four bytes of a column in a vector, so the four bytes of a row must be broadcast to
//! match them. After the transposition, a vector has 16 bytes of one column, and matches 16 bytes
//! of one row. `SMULL` and `SMLAL2` multiply both halves, and no broadcast is necessary. The four
//! lanes of a sum are added up at the end.
//!
//! The Cortex-A53 issues and retires instructions in order. A loaded value is ready earlier than an
//! addition that was issued a cycle before the load. So the loads are together, before the last
//! additions of the previous round.

use std::arch::aarch64::{int32x4_t, uint32x4x4_t, vdupq_n_s32, vld1q_u32, vst4q_u32};
use std::arch::asm;
use std::mem::MaybeUninit;

use super::super::PANEL_WIDTH;
use super::super::neon::{Block, ROUND};
use super::GROUPS;

/// Maximum number of rows of a tile.
pub(super) const ROWS: usize = 4;
/// Columns of a tile.
pub(super) const COLUMNS: usize = 4;

/// Weights of four columns in the four lane groups of a round, column by column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct RoundWeights([u32; COLUMNS * ROUND]);

/// Transposed weights of a piece, `[32 / COLUMNS, rounds]`: 16 KiB.
pub(super) struct TransposedWeights {
    weights: [MaybeUninit<RoundWeights>; PANEL_WIDTH / COLUMNS * GROUPS / ROUND],
    rounds: usize,
}

impl TransposedWeights {
    pub(super) const fn new() -> Self {
        Self { weights: [MaybeUninit::uninit(); PANEL_WIDTH / COLUMNS * GROUPS / ROUND], rounds: 0 }
    }

    /// Transposes `groups`, at most [`GROUPS`] lane groups, in rounds. If `padded`, zeros fill the
    /// last round. Otherwise the lane groups after the last whole round are left out.
    #[target_feature(enable = "neon")]
    pub(super) fn fill(&mut self, groups: &[[u32; PANEL_WIDTH]], padded: bool) {
        let whole = groups.len() / ROUND;
        self.rounds = if padded { groups.len().div_ceil(ROUND) } else { whole };
        let zeros = [0; PANEL_WIDTH];
        for (index, of_round) in groups.chunks(ROUND).take(self.rounds).enumerate() {
            let groups: [&[u32; PANEL_WIDTH]; ROUND] =
                std::array::from_fn(|group| of_round.get(group).unwrap_or(&zeros));
            for block in 0..PANEL_WIDTH / COLUMNS {
                let round = self.weights[block * self.rounds + index].as_mut_ptr();
                // SAFETY: a lane group has four values from the first column of a block on, and a
                // round has 16.
                // JUSTIFICATION: all vector loads and stores are unsafe.
                unsafe {
                    let load = |group: usize| vld1q_u32(groups[group][block * COLUMNS..].as_ptr());
                    vst4q_u32(round.cast(), uint32x4x4_t(load(0), load(1), load(2), load(3)));
                }
            }
        }
    }

    /// Returns the number of transposed lane groups, including the padding.
    pub(super) fn groups(&self) -> usize {
        self.rounds * ROUND
    }

    /// Multiplies the rows of a block with the rounds. Returns the sums of the columns from
    /// `column` on.
    ///
    /// # Safety
    /// The block has `R` rows, 2 to 4, with the lane groups that were transposed last and the lane
    /// groups that pad them. `column` is a multiple of [`COLUMNS`] below 32.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn multiply<const R: usize>(
        &self,
        rows: Block,
        column: usize,
    ) -> [int32x4_t; R] {
        if self.rounds == 0 {
            return [vdupq_n_s32(0); R];
        }
        let weights = self.weights[column / COLUMNS * self.rounds..][..self.rounds].as_ptr();
        let mut sums = [vdupq_n_s32(0); ROWS];
        // SAFETY: the caller provides as many rows. The rounds of the columns were transposed.
        // JUSTIFICATION: the micro-kernels are unsafe; they rely on these guarantees.
        unsafe {
            match R {
                2 => two_rows(&mut sums, rows, weights.cast(), self.rounds),
                3 => three_rows(&mut sums, rows, weights.cast(), self.rounds),
                _ => four_rows(&mut sums, rows, weights.cast(), self.rounds),
            }
        }
        std::array::from_fn(|row| sums[row])
    }
}

/// Multiplies rows with columns: adds the products of both halves of each in 16 bits. All `SMULL`
/// come first, because a product is ready six cycles after it is issued.
macro_rules! products {
    ($($product:tt $row:tt $column:tt),+) => {
        concat!(
            $("smull ", $product, ".8h, ", $row, ".8b, ", $column, ".8b\n",)+
            $("smlal2 ", $product, ".8h, ", $row, ".16b, ", $column, ".16b\n",)+
        )
    };
}

macro_rules! additions {
    ($($sum:tt $product:tt),+) => {
        concat!($("sadalp ", $sum, ".4s, ", $product, ".8h\n",)+)
    };
}

/// Adds up the four lanes of each of four sums. The first register then contains the sums of the
/// four columns.
macro_rules! lanes {
    ($($a:tt $b:tt $c:tt $d:tt),+) => {
        concat!($(
            "addp ", $a, ".4s, ", $a, ".4s, ", $b, ".4s\n",
            "addp ", $c, ".4s, ", $c, ".4s, ", $d, ".4s\n",
            "addp ", $a, ".4s, ", $a, ".4s, ", $c, ".4s\n",
        )+)
    };
}

/// Defines `$name`, which multiplies the rows of its table with four columns.
///
/// The last products of a round are added in the next round, after its loads.
macro_rules! rows {
    ($(#[$meta:meta])* $name:ident
     sums [$($a:tt $b:tt $c:tt $d:tt $of_row:tt),+] products [$($product:tt),+]
     rows [$($row:tt $pointer:tt $number:tt),+; $last_row:tt $last_pointer:tt $last_number:tt]
     round [$($step:expr),+] last [$($first:tt)+] [$($other:tt)+]) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The block has the number of rows of this function, with `rounds` rounds of lane groups.
        /// `weights` are those of four columns in each round. `rounds` is at least 1.
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn $name(
            sums: &mut [int32x4_t; ROWS],
            block: Block,
            weights: *const RoundWeights,
            rounds: usize,
        ) {
            // SAFETY: each round reads 16 bytes of each row and 64 bytes of the weights, which the
            // caller provides. All other instructions write registers alone.
            // JUSTIFICATION: the compiler reorders intrinsics, and additions then wait.
            unsafe {
                asm!(
                    $(concat!(
                        "movi ", $a, ".2d, #0\n", "movi ", $b, ".2d, #0\n",
                        "movi ", $c, ".2d, #0\n", "movi ", $d, ".2d, #0"
                    ),)+
                    $(concat!("movi ", $product, ".2d, #0"),)+
                    "2:",
                    $(concat!("ldr ", $row, ", [", $pointer, ", {offset}]"),)+
                    "subs {rounds}, {rounds}, #1",
                    concat!("ldr ", $last_row, ", [", $last_pointer, ", {offset}]"),
                    "add {offset}, {offset}, #16",
                    additions!($($first)+),
                    "ld1 {{v20.16b - v23.16b}}, [{weights}]",
                    additions!($($other)+),
                    $($step,)+
                    "add {weights}, {weights}, #64",
                    "b.ne 2b",
                    additions!($($first)+),
                    additions!($($other)+),
                    lanes!($($a $b $c $d),+),
                    offset = inout(reg) 0_usize => _,
                    weights = inout(reg) weights => _,
                    rounds = inout(reg) rounds => _,
                    $(in($pointer) block.rows.add($number * block.stride),)+
                    in($last_pointer) block.rows.add($last_number * block.stride),
                    $(out($a) sums[$of_row], out($b) _, out($c) _, out($d) _,)+
                    $(out($product) _,)+
                    out("v16") _,
                    out("v17") _,
                    out("v18") _,
                    out("v19") _,
                    out("v20") _,
                    out("v21") _,
                    out("v22") _,
                    out("v23") _,
                    options(nostack, readonly),
                );
            }
        }
    };
}

rows! {
    /// Multiplies two rows.
    two_rows
    sums ["v0" "v1" "v2" "v3" 0, "v4" "v5" "v6" "v7" 1]
    products ["v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"]
    rows ["q16" "x0" 0; "q17" "x1" 1]
    round [
        products!(
            "v24" "v16" "v20", "v25" "v17" "v20", "v26" "v16" "v21", "v27" "v17" "v21",
            "v28" "v16" "v22", "v29" "v17" "v22", "v30" "v16" "v23", "v31" "v17" "v23"
        )
    ]
    last ["v0" "v24", "v4" "v25"]
        ["v1" "v26", "v5" "v27", "v2" "v28", "v6" "v29", "v3" "v30", "v7" "v31"]
}

rows! {
    /// Multiplies three rows.
    three_rows
    sums ["v0" "v1" "v2" "v3" 0, "v4" "v5" "v6" "v7" 1, "v8" "v9" "v10" "v11" 2]
    products [
        "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31", "v12", "v13", "v14", "v15"
    ]
    rows ["q16" "x0" 0, "q17" "x1" 1; "q18" "x2" 2]
    round [
        products!(
            "v24" "v16" "v20", "v25" "v17" "v20", "v26" "v18" "v20",
            "v27" "v16" "v21", "v28" "v17" "v21", "v29" "v18" "v21",
            "v30" "v16" "v22", "v31" "v17" "v22", "v12" "v18" "v22",
            "v13" "v16" "v23", "v14" "v17" "v23", "v15" "v18" "v23"
        )
    ]
    last ["v0" "v24", "v4" "v25"] [
        "v8" "v26", "v1" "v27", "v5" "v28", "v9" "v29", "v2" "v30", "v6" "v31", "v10" "v12",
        "v3" "v13", "v7" "v14", "v11" "v15"
    ]
}

rows! {
    /// Multiplies four rows.
    four_rows
    sums [
        "v0" "v1" "v2" "v3" 0, "v4" "v5" "v6" "v7" 1, "v8" "v9" "v10" "v11" 2,
        "v12" "v13" "v14" "v15" 3
    ]
    products ["v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"]
    rows ["q16" "x0" 0, "q17" "x1" 1, "q18" "x2" 2; "q19" "x3" 3]
    round [
        products!(
            "v24" "v16" "v20", "v25" "v17" "v20", "v26" "v18" "v20", "v27" "v19" "v20",
            "v28" "v16" "v21", "v29" "v17" "v21", "v30" "v18" "v21", "v31" "v19" "v21"
        ),
        additions!(
            "v0" "v24", "v4" "v25", "v8" "v26", "v12" "v27",
            "v1" "v28", "v5" "v29", "v9" "v30", "v13" "v31"
        ),
        products!(
            "v24" "v16" "v22", "v25" "v17" "v22", "v26" "v18" "v22", "v27" "v19" "v22",
            "v28" "v16" "v23", "v29" "v17" "v23", "v30" "v18" "v23", "v31" "v19" "v23"
        )
    ]
    last ["v2" "v24", "v6" "v25"]
        ["v10" "v26", "v14" "v27", "v3" "v28", "v7" "v29", "v11" "v30", "v15" "v31"]
}
