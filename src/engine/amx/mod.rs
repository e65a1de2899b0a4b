//! Products of bf16 in AMX tiles, in inline assembly, because Rust has no stable intrinsics.
//!
//! AMX has eight tiles of 16 rows of 64 bytes. Four of them hold sums (2 × 2 tiles for 32 rows and
//! 32 columns), two hold rows, and two hold packed columns. See
//! <https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html>, volume 1,
//! chapter 18.
//!
//! Linux permits a process to use AMX on request: <https://docs.kernel.org/arch/x86/xstate.html>.
//!
//! Invariant: an [`Amx`] exists only after the kernel granted the permission. [`Tiles`] exist only
//! while the tiles of their thread are configured.

#![allow(unsafe_code, reason = "tiles are reached through assembly alone")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

use super::simd::product::Product;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Lane groups (four bytes each) in a row of a tile.
pub(super) const TILE_GROUPS: usize = 16;
/// Operation `ARCH_REQ_XCOMP_PERM` of `arch_prctl`.
const REQUEST_PERMISSION: libc::c_int = 0x1023;
/// State component of the tile data.
const TILE_DATA: libc::c_ulong = 18;

/// Permission of this process to use AMX tiles for bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    /// Requests the permission from the kernel. A repeated request succeeds again.
    ///
    /// # Errors
    /// Returns the reason, in words for an operator, if the processor has no AMX or the kernel
    /// refuses.
    pub(super) fn request() -> Result<Self, &'static str> {
        const TILE_BF16: u32 = 1 << 24 | 1 << 22;
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & TILE_BF16 != TILE_BF16 {
            return Err("the processor has no AMX");
        }
        // SAFETY: this call of `arch_prctl` takes two integers and does not access the memory of
        // the process.
        // JUSTIFICATION: neither std nor nix provides this call.
        let refused =
            unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } != 0;
        if refused { Err("the kernel does not permit AMX") } else { Ok(Self(())) }
    }

    /// Configures the tiles of this thread. The thread must not have other [`Tiles`]: dropping one
    /// releases the tiles of both.
    pub(super) fn tiles(self) -> Tiles {
        let mut config = Config { bytes: [0; 64] };
        // Palette 1. Each of the eight tiles has rows of 64 bytes, and 16 rows.
        config.bytes[0] = 1;
        for tile in 0..8 {
            config.bytes[16 + 2 * tile] = 64;
            config.bytes[48 + tile] = 16;
        }
        // SAFETY: the permission was granted. The configuration has 64 bytes, of palette 1, with
        // tiles within its limits.
        // JUSTIFICATION: Rust has no stable intrinsic.
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

/// Configured tiles of this thread. The pointer makes the type neither `Send` nor `Sync`.
pub(super) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `Tiles` exist only where AMX is permitted. No other code uses tiles.
        // JUSTIFICATION: Rust has no stable intrinsic.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

impl Tiles {
    /// Computes products of bf16, 32 or 16 rows and 32 columns at a time. The rows are rounded up
    /// to a multiple of [`TILE_ROWS`]. The lane groups are a multiple of [`TILE_GROUPS`].
    ///
    /// # Panics
    /// Panics if the slices are too short for whole tiles, or if the panel is empty or not a
    /// multiple of a tile.
    #[expect(clippy::unused_self, reason = "proves that the tiles are configured")]
    pub(super) fn bf16(&self, product: &mut Product<'_>) {
        let rows = product.rows.next_multiple_of(TILE_ROWS);
        let steps = product.panel.len() / TILE_GROUPS;
        assert!(
            product.fits(rows, product.panel.len())
                && steps > 0
                && product.panel.len().is_multiple_of(TILE_GROUPS),
            "the caller gives whole tiles"
        );
        let (stride, out_stride) = (product.stride * 4, product.out_stride * 4);
        let mut first = 0;
        while first < rows {
            let pair = first + 2 * TILE_ROWS <= rows;
            // SAFETY: `Tiles` prove that the tiles are configured. In each of the `steps` steps,
            // the loads read 16 rows of 64 bytes from row `first` on (and from row `first + 16` on
            // if `pair`); `fits(rows)` puts them within the operand. They also read `steps · 16`
            // lane groups of 128 bytes, which is the panel. The stores write rows of 128 bytes,
            // which `fits(rows)` puts within `out`.
            // JUSTIFICATION: Rust has no stable intrinsics.
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
                        "tileloadd tmm6, [{panel} + {strip_stride}]",
                        "tileloadd tmm4, [{upper} + {stride}]",
                        "tileloadd tmm7, [{panel} + {strip_stride} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{lower} + {stride}]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        "add {upper}, 64",
                        "add {lower}, 64",
                        "add {panel}, 2048",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{out} + {out_stride}], tmm0",
                        "tilestored [{out} + {out_stride} + 64], tmm1",
                        "tilestored [{out_lower} + {out_stride}], tmm2",
                        "tilestored [{out_lower} + {out_stride} + 64], tmm3",
                        upper = inout(reg) operand => _,
                        lower = inout(reg) operand.add(TILE_ROWS * product.stride) => _,
                        stride = in(reg) stride,
                        panel = inout(reg) product.panel.as_ptr() => _,
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
                        "tileloadd tmm6, [{panel} + {strip_stride}]",
                        "tileloadd tmm4, [{operand} + {stride}]",
                        "tileloadd tmm7, [{panel} + {strip_stride} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {operand}, 64",
                        "add {panel}, 2048",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{out} + {out_stride}], tmm0",
                        "tilestored [{out} + {out_stride} + 64], tmm1",
                        operand = inout(reg) operand => _,
                        stride = in(reg) stride,
                        panel = inout(reg) product.panel.as_ptr() => _,
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
        // A tile has 16 rows and 16 columns of sums, of 32 products each.
        const OF_TILE: usize = TILE_ROWS * 16 * 2 * TILE_GROUPS;
        // SAFETY: `Tiles` prove that the tiles are configured. The assembly does not access memory.
        // JUSTIFICATION: Rust has no stable intrinsics.
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
#[expect(clippy::print_stderr, reason = "the test reports that tiles are emulated")]
pub(super) mod tests {
    use super::*;
    use crate::engine::linear::OperandFormat;
    use crate::engine::simd::Isa;
    use crate::engine::simd::gemm;
    use crate::engine::simd::gemm::tests::{SHAPES, results};

    /// Returns the tiles of this processor, or emulated ones if it has none.
    pub(in crate::engine) fn tiles() -> Amx {
        Amx::request().unwrap_or_else(|why| {
            eprintln!("tiles are emulated, because {why}");
            emulator::start()
        })
    }

    #[test]
    fn tile_multiplications_are_counted() {
        assert_eq!(tiles().tiles().multiply(3), 3 * 4 * 16 * 16 * 32);
    }

    #[test]
    fn tiles_match_scalar_twin() {
        let (tiles, isa) = (tiles().tiles(), Isa::baseline());
        for shape in SHAPES {
            let expected = results(shape, OperandFormat::Bf16, |product| gemm::bf16(isa, product));
            let found = results(shape, OperandFormat::Bf16, |product| tiles.bf16(product));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-3, "{shape:?}: {a} not {b}");
            }
        }
    }
}
