//! The most that the processors of this machine multiply, to measure the encoders against.
//!
//! Owns the threads and the clock. It takes no part in computing vectors.

use std::io;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::linear::{Format, Machine};
use super::simd::Isa;
use super::simd::registers::{self, Values};

/// Rounds between two looks at the clock: tens of microseconds.
const ROUNDS: usize = 4096;
/// How long each thread tries.
const DURATION: Duration = Duration::from_millis(250);

/// Returns the operations a second, multiplications and additions, that `threads` threads of this machine do at
/// once in `format`, with the best instruction of `machine` and all operands in registers.
///
/// This is the sum over the threads of what each one does in the median of many tens of microseconds: as
/// another program takes a processor for milliseconds, this is the processor's own limit, not what others leave of
/// it. Blocks for a quarter of a second.
///
/// # Errors
/// When the system gives no threads.
pub(super) fn measure(machine: Machine, format: Format, threads: usize) -> io::Result<f64> {
    thread::scope(|scope| {
        let running: io::Result<Vec<_>> = (0..threads)
            .map(|_| {
                Builder::new()
                    .name("peak".to_owned())
                    .spawn_scoped(scope, move || median_rate(machine, format))
            })
            .collect();
        let rates = running?.into_iter().map(|thread| {
            thread.join().map_err(|_panic| io::Error::other("a thread that measures ended early"))
        });
        rates.sum()
    })
}

/// Returns [`measure`] for f32, with this processor's best instructions.
pub(super) fn f32(threads: usize) -> io::Result<f64> {
    measure(Machine { isa: Isa::detect(), amx: None }, Format::F32, threads)
}

fn median_rate(machine: Machine, format: Format) -> f64 {
    let values = match format {
        Format::F32 => Values::F32,
        Format::Bf16 => Values::Bf16,
        Format::Int8(_) => Values::Bytes,
    };
    let tiles = machine.amx.filter(|_| format == Format::Bf16).map(|amx| amx.tiles());
    let started = Instant::now();
    let mut rates = Vec::new();
    loop {
        let begun = Instant::now();
        let multiplications = match &tiles {
            Some(tiles) => tiles.multiply(ROUNDS),
            None => registers::multiply(machine.isa, values, ROUNDS),
        };
        rates.push(2.0 * multiplications as f64 / begun.elapsed().as_secs_f64());
        if started.elapsed() >= DURATION {
            break;
        }
    }
    // Not the highest, which varies by several percent from run to run.
    let middle = rates.len() / 2;
    *rates.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_peak() {
        for format in [Format::F32, Format::Int8(Isa::detect().integer_rows()), Format::Bf16] {
            let machine = Machine { isa: Isa::detect(), amx: None };
            let peak = measure(machine, format, 1).unwrap();
            // From a slow processor without vectors to the fastest with tiles.
            assert!((1e7..1e14).contains(&peak), "{format:?} {peak:e}");
        }
    }
}
