//! Products of bf16 in AMX tiles, in inline assembly, because Rust has no stable intrinsics.
//!
//! Eight tiles of 16 rows of 64 bytes: four of sums (2 × 2, of 32 rows and 32 columns), two of rows, two
//! of packed columns. <https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html>,
//! volume 1, chapter 18.
//!
//! Owns the permission, which Linux gives to a process that asks:
//! <https://docs.kernel.org/arch/x86/xstate.html>.
//!
//! Invariant: an [`Amx`] exists only after the permission was given, [`Tiles`] only while the tiles of
//! this thread are configured.

#![allow(unsafe_code, reason = "tiles are reached through assembly alone")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

use super::simd::dense::Product;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Groups of four bytes in a row of a tile.
pub(super) const TILE_GROUPS: usize = 16;
/// `ARCH_REQ_XCOMP_PERM` of `arch_prctl`.
const REQUEST_PERMISSION: libc::c_int = 0x1023;
/// The state component of the tiles.
const TILE_DATA: libc::c_ulong = 18;

/// That this process may use tiles of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    /// The permission of this process, asked for when it has none.
    ///
    /// # Errors
    /// Why there is none, in words for an operator.
    pub(super) fn request() -> Result<Self, &'static str> {
        const TILE_BF16: u32 = 1 << 24 | 1 << 22;
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & TILE_BF16 != TILE_BF16 {
            return Err("the processor has no AMX");
        }
        // SAFETY: this call of `arch_prctl` takes two integers and touches no memory of the process.
        // JUSTIFICATION: neither std nor nix has it.
        let refused =
            unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } != 0;
        if refused { Err("the kernel does not permit AMX") } else { Ok(Self(())) }
    }

    /// Configures the tiles of this thread, which must hold no others: the first to be dropped takes them from both.
    pub(super) fn tiles(self) -> Tiles {
        let mut config = Config { bytes: [0; 64] };
        config.bytes[0] = 1;
        for tile in 0..8 {
            config.bytes[16 + 2 * tile] = 64;
            config.bytes[48 + tile] = 16;
        }
        // SAFETY: permission was given; the configuration is 64 bytes, of palette 1, with tiles within
        // its limits.
        // JUSTIFICATION: there is no stable intrinsic.
        unsafe {
            asm!("ldtilecfg [{config}]", config = in(reg) &raw const config,
                options(nostack, preserves_flags, readonly));
        }
        Tiles(PhantomData)
    }
}

#[repr(C, align(64))]
struct Config {
    bytes: [u8; 64],
}

/// The configured tiles of this thread.
pub(super) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `Tiles` exist only where AMX is permitted; nothing else uses tiles.
        // JUSTIFICATION: there is no stable intrinsic.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

impl Tiles {
    /// Products of 32 or 16 rows and 32 columns at a time: rows are rounded up to [`TILE_ROWS`], groups
    /// are a multiple of [`TILE_GROUPS`].
    ///
    /// # Panics
    /// When the slices are too short for whole tiles.
    #[expect(clippy::unused_self, reason = "proves that the tiles are configured")]
    pub(super) fn bf16(&self, product: &mut Product<'_>) {
        let rows = product.rows.next_multiple_of(TILE_ROWS);
        let steps = product.strip.len() / TILE_GROUPS;
        assert!(
            product.fits(rows, product.strip.len())
                && steps > 0
                && product.strip.len().is_multiple_of(TILE_GROUPS),
            "the caller gives whole tiles"
        );
        let (stride, out_stride) = (product.stride * 4, product.out_stride * 4);
        let mut first = 0;
        while first < rows {
            let pair = first + 2 * TILE_ROWS <= rows;
            // SAFETY: `Tiles` prove that the tiles are configured. Loaded are 16 rows of 64 bytes at
            // each of `steps` places from row `first` (and from row `first + 16` when `pair`),
            // within the operand by `fits(rows)`; `steps · 16` groups of 128 bytes, the strip; stored
            // are rows of 128 bytes, within `out` by `fits(rows)`.
            // JUSTIFICATION: there are no stable intrinsics.
            unsafe {
                let operand = product.operand.as_ptr().add(first * product.stride);
                let out = product.out.as_mut_ptr().add(first * product.out_stride);
                if pair {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm6, [{strip} + {strip_stride}]",
                        "tileloadd tmm4, [{upper} + {stride}]",
                        "tileloadd tmm7, [{strip} + {strip_stride} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{lower} + {stride}]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        "add {upper}, 64",
                        "add {lower}, 64",
                        "add {strip}, 2048",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{out} + {out_stride}], tmm0",
                        "tilestored [{out} + {out_stride} + 64], tmm1",
                        "tilestored [{out_lower} + {out_stride}], tmm2",
                        "tilestored [{out_lower} + {out_stride} + 64], tmm3",
                        upper = inout(reg) operand => _,
                        lower = inout(reg) operand.add(TILE_ROWS * product.stride) => _,
                        stride = in(reg) stride,
                        strip = inout(reg) product.strip.as_ptr() => _,
                        strip_stride = in(reg) 128_usize,
                        steps = inout(reg) steps => _,
                        out = in(reg) out,
                        out_lower = in(reg) out.add(TILE_ROWS * product.out_stride),
                        out_stride = in(reg) out_stride,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                    first += 2 * TILE_ROWS;
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "2:",
                        "tileloadd tmm6, [{strip} + {strip_stride}]",
                        "tileloadd tmm4, [{operand} + {stride}]",
                        "tileloadd tmm7, [{strip} + {strip_stride} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {operand}, 64",
                        "add {strip}, 2048",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{out} + {out_stride}], tmm0",
                        "tilestored [{out} + {out_stride} + 64], tmm1",
                        operand = inout(reg) operand => _,
                        stride = in(reg) stride,
                        strip = inout(reg) product.strip.as_ptr() => _,
                        strip_stride = in(reg) 128_usize,
                        steps = inout(reg) steps => _,
                        out = in(reg) out,
                        out_stride = in(reg) out_stride,
                        out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _,
                        out("tmm7") _,
                        options(nostack),
                    );
                    first += TILE_ROWS;
                }
            }
        }
    }
}

impl Tiles {
    /// Multiplies tiles of zeros for `rounds` rounds, at least one. Returns the number of
    /// multiplications.
    #[expect(clippy::unused_self, reason = "proves that the tiles are configured")]
    pub(super) fn multiply(&self, rounds: usize) -> usize {
        // A tile has 16 rows and columns of sums, of 32 products each.
        const OF_TILE: usize = TILE_ROWS * 16 * 2 * TILE_GROUPS;
        // SAFETY: `Tiles` prove that the tiles are configured. The assembly touches no memory.
        // JUSTIFICATION: there are no stable intrinsics.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
        4 * OF_TILE * rounds.max(1)
    }
}

#[cfg(test)]
mod emulator;

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "what is not the processor's own is said")]
pub(super) mod tests {
    use super::*;
    use crate::engine::linear::Format;
    use crate::engine::simd::Isa;
    use crate::engine::simd::dense;
    use crate::engine::simd::dense::tests::{SHAPES, results};

    /// Tiles of this processor, or emulated ones.
    pub(in crate::engine) fn tiles() -> Amx {
        Amx::request().unwrap_or_else(|why| {
            eprintln!("tiles are emulated, because {why}");
            emulator::start()
        })
    }

    #[test]
    fn tiles_multiply_whole_rounds() {
        assert_eq!(tiles().tiles().multiply(3), 3 * 4 * 16 * 16 * 32);
    }

    #[test]
    fn tiles_give_what_their_scalar_twin_gives() {
        let (tiles, isa) = (tiles().tiles(), Isa::baseline());
        for shape in SHAPES {
            let expected = results(shape, Format::Bf16, |product| dense::bf16(isa, product));
            let found = results(shape, Format::Bf16, |product| tiles.bf16(product));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-3, "{shape:?}: {a} not {b}");
            }
        }
    }
}
