//! What the kernels can do at most on this machine, to measure the encoders against.
//!
//! Owns one product that stays in the first cache. It takes no part in computing vectors.

use std::hint::black_box;
use std::io;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::linear::{Format, Linear, Machine, Operand};
use super::simd::rows::Quantization;
use super::simd::{Isa, STRIP};

/// Groups of a row, and rows where no tiles take more: with one strip of weights less than the 32 KiB that the smallest
/// first caches have.
const GROUPS: usize = 64;
const ROWS: usize = 12;
/// Products between two looks at the clock: tens of microseconds.
const PRODUCTS: usize = 200;
/// How long each thread tries.
const DURATION: Duration = Duration::from_millis(250);

/// The operations a second, multiplications and additions, of products in `format` on `threads` threads
/// of this machine when their operands are in the first cache.
///
/// The sum over the threads, which run at once, of what each one does in the median of many tens of
/// microseconds: as another program takes a processor for milliseconds, this is the processor's own
/// limit, not what others leave of it. Blocks for a quarter of a second.
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

/// [`measure`] for f32, of this processor's best kernels.
pub(super) fn f32(threads: usize) -> io::Result<f64> {
    measure(Machine { isa: Isa::detect(), amx: None }, Format::F32, threads)
}

fn median_rate(machine: Machine, format: Format) -> f64 {
    let session = machine.session();
    let inputs = GROUPS * format.per_group();
    let linear = match format {
        Format::Int8(rows) => Linear::integers(rows, STRIP, &[inputs]),
        Format::F32 | Format::Bf16 => Linear::floats(format, STRIP, inputs),
    };
    // Tiles that are not full take as long.
    let rows = if machine.amx.is_some() { super::linear::ROWS } else { ROWS };
    let groups = vec![0; super::linear::ROWS * format.row_groups(inputs)];
    let mut block = vec![0.0; super::linear::ROWS * STRIP];
    let quantization = [Quantization { scale: 1.0, zero: 0.0 }; ROWS];
    let operand = Operand {
        groups: &groups,
        stride: format.row_groups(inputs),
        rows,
        quantization: &quantization,
        values: (&[], 1),
    };
    let operations = 2 * PRODUCTS * rows * inputs * STRIP;
    let started = Instant::now();
    let mut rates = Vec::new();
    loop {
        let begun = Instant::now();
        for _ in 0..PRODUCTS {
            linear.apply(&session, operand, black_box(&mut block), |_, _, _| ());
        }
        rates.push(operations as f64 / begun.elapsed().as_secs_f64());
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
