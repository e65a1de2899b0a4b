//! AMX tiles for the tests on processors without them: a handler for SIGILL emulates the illegal
//! instructions.
//!
//! The emulator decodes only the forms that [`super`] uses: tiles of 16 rows of 64 bytes, and
//! addresses of a base, a stride and a displacement. Other instructions, and instructions on tiles
//! that are not configured, remain illegal and end the process. The semantics follow Intel's
//! manual, volume 2:
//! <https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html>. The
//! products are added in order, and every operation is rounded; a processor may differ in the last
//! bit.

#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a register holds an address or a number, and libc has one type for both"
)]

use std::cell::Cell;
use std::sync::Once;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Amx, Config, TILE_GROUPS, TILE_ROWS};

type Tile = [[u32; TILE_GROUPS]; TILE_ROWS];

thread_local! {
    /// Tiles of the thread; `None` while they are not configured. The type needs no destructor, so
    /// a signal handler can use it.
    static TILES: Cell<Option<[Tile; 8]>> = const { Cell::new(None) };
}

/// Starts the emulation of tiles in this process. It never stops.
pub(in crate::engine) fn start() -> Amx {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let handler = SigHandler::SigAction(on_illegal_instruction);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler accesses its context, a cell of its thread, and the operands of the
        // instruction. It neither allocates nor locks.
        // JUSTIFICATION: a signal is the only notification of an illegal instruction.
        unsafe { sigaction(Signal::SIGILL, &action) }.unwrap();
    });
    Amx(())
}

extern "C" fn on_illegal_instruction(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a context of this type, which no other code uses
    // meanwhile.
    // JUSTIFICATION: the registers of the interrupted thread are accessible only here.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    if emulate(registers).is_none() {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action of a signal runs no code here. The instruction is executed
        // again and ends the process.
        // JUSTIFICATION: as above.
        unsafe { sigaction(Signal::SIGILL, &default) }.unwrap();
    }
}

/// Registers, in the order of their numbers in instructions.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Emulates the instruction at `REG_RIP` and advances `REG_RIP` behind it. Returns `None` if it is
/// not an AMX instruction of a supported form.
fn emulate(registers: &mut [libc::greg_t; 23]) -> Option<()> {
    let register = |number: u8| registers[REGISTERS[usize::from(number)] as usize];
    let mut next = registers[libc::REG_RIP as usize] as *const u8;
    let mut byte = || {
        // SAFETY: the processor has read this instruction. The bytes read so far determine that it
        // has at least one more.
        // JUSTIFICATION: code is memory like any other, but Rust has no slice of it.
        let byte = unsafe { next.read() };
        next = next.wrapping_add(1);
        byte
    };
    // The instruction has a three-byte VEX prefix and is in the opcode map 0F38. The prefix stores
    // register bits inverted.
    if byte() != 0xc4 {
        return None;
    }
    let extension = !byte();
    if extension & 0x1f != !2 & 0x1f {
        return None;
    }
    let last = byte();
    // W and L must be 0: neither 64-bit operands nor 256-bit vectors.
    if last & 0x84 != 0 {
        return None;
    }
    let (third, prefix) = (usize::from(!last >> 3 & 7), last & 3);
    let (operation, form) = (byte(), byte());
    let (tile, other) = (usize::from(form >> 3 & 7), usize::from(form & 7));
    // Decode a memory operand: a SIB byte if the base is 4, then the displacement. The index
    // register contains the stride of the rows.
    let place = (form >> 6 != 3).then(|| {
        let (mut base, mut stride) = (form & 7, 0);
        if base == 4 {
            let scaled = byte();
            base = scaled & 7;
            let index = scaled >> 3 & 7 | (extension >> 6 & 1) << 3;
            stride = if index == 4 { 0 } else { register(index) << (scaled >> 6) };
        }
        let displacement = match form >> 6 {
            0 => 0,
            1 => libc::greg_t::from(byte().cast_signed()),
            _ => libc::greg_t::from(i32::from_le_bytes([byte(), byte(), byte(), byte()])),
        };
        let start = register(base | (extension >> 5 & 1) << 3) + displacement;
        move |row: usize| (start + stride * row as libc::greg_t) as *mut [u32; TILE_GROUPS]
    });
    let mut tiles = TILES.get();
    match (operation, prefix, place) {
        // LDTILECFG
        (0x49, 0, Some(place)) => {
            // SAFETY: the instruction reads 64 bytes at this address.
            // JUSTIFICATION: the operand of the instruction is an address.
            let config = unsafe { place(0).cast::<Config>().read_unaligned() };
            tiles = Some(configured(&config)?);
        }
        // TILERELEASE
        (0x49, 0, None) => tiles = None,
        // TILEZERO
        (0x49, 3, None) => tiles.as_mut()?[tile] = [[0; TILE_GROUPS]; TILE_ROWS],
        // TILELOADD
        (0x4b, 3, Some(place)) => {
            for (row, values) in tiles.as_mut()?[tile].iter_mut().enumerate() {
                // SAFETY: the instruction reads 64 bytes in each row.
                // JUSTIFICATION: as above.
                *values = unsafe { place(row).read_unaligned() };
            }
        }
        // TILESTORED
        (0x4b, 2, Some(place)) => {
            for (row, values) in tiles.as_ref()?[tile].iter().enumerate() {
                // SAFETY: the instruction writes 64 bytes in each row.
                // JUSTIFICATION: as above.
                unsafe { place(row).write_unaligned(*values) };
            }
        }
        // TDPBF16PS
        (0x5c, 2, None) => {
            let tiles = tiles.as_mut()?;
            let (rows, columns) = (tiles[other], tiles[third]);
            add_products(&mut tiles[tile], &rows, &columns);
        }
        _ => return None,
    }
    TILES.set(tiles);
    registers[libc::REG_RIP as usize] = next as libc::greg_t;
    Some(())
}

/// Returns eight zeroed tiles of the size that [`super`] uses if `config` describes these.
fn configured(config: &Config) -> Option<[Tile; 8]> {
    let bytes = &config.bytes;
    let whole = |tile: usize| {
        (usize::from(bytes[48 + tile]), [bytes[16 + 2 * tile], bytes[17 + 2 * tile]])
            == (TILE_ROWS, [64, 0])
    };
    let others = bytes[1..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]);
    (bytes[0] == 1 && (0..8).all(whole) && others.copied().all(|byte| byte == 0))
        .then_some([[[0; TILE_GROUPS]; TILE_ROWS]; 8])
}

/// Adds the products of pairs of bf16 to `sums`.
fn add_products(sums: &mut Tile, rows: &Tile, columns: &Tile) {
    let pair = |group: u32| [group << 16, group & 0xffff_0000].map(f32::from_bits);
    for (sums, row) in sums.iter_mut().zip(rows) {
        for (group, columns) in row.iter().zip(columns) {
            let row = pair(*group);
            for (sum, column) in sums.iter_mut().zip(columns) {
                let column = pair(*column);
                let products = row[0] * column[0] + row[1] * column[1];
                *sum = (f32::from_bits(*sum) + products).to_bits();
            }
        }
    }
}
