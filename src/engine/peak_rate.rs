//! Measurement of the peak rate of operations of the processors. Reports compare the encoders with
//! it.
//!
//! The embedding path does not use this module.

use std::io;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::linear::{Backend, OperandFormat};
use super::simd::Isa;
use super::simd::peak_loops::{self, ValueFormat};

/// Rounds of one sample, which takes tens of microseconds.
const ROUNDS: usize = 4096;
/// Duration of the measurement in each thread.
const DURATION: Duration = Duration::from_millis(250);

/// Measures the peak rate of `threads` concurrent threads in `format`, with the best instruction of
/// `backend` and all operands in registers. Returns the operations (multiplications and additions)
/// per second.
///
/// The result is the sum over the threads of the median rate of many samples of tens of
/// microseconds each. Another program occupies a processor for milliseconds at a time. So the
/// median is the limit of the processor itself, not the share that other programs leave. Blocks for
/// a quarter of a second.
///
/// # Errors
/// Returns an error if the system cannot create the threads.
pub(super) fn measure(backend: Backend, format: OperandFormat, threads: usize) -> io::Result<f64> {
    thread::scope(|scope| {
        let running: io::Result<Vec<_>> = (0..threads)
            .map(|_| {
                Builder::new()
                    .name("peak".to_owned())
                    .spawn_scoped(scope, move || median_rate(backend, format))
            })
            .collect();
        let rates = running?.into_iter().map(|thread| {
            thread.join().map_err(|_panic| io::Error::other("a measuring thread panicked"))
        });
        rates.sum()
    })
}

/// Returns the rate of [`measure`] for f32, with this processor's best instructions.
pub(super) fn f32(threads: usize) -> io::Result<f64> {
    measure(Backend { isa: Isa::detect(), amx: None }, OperandFormat::F32, threads)
}

fn median_rate(backend: Backend, format: OperandFormat) -> f64 {
    let values = match format {
        OperandFormat::F32 => ValueFormat::F32,
        OperandFormat::Bf16 => ValueFormat::Bf16,
        OperandFormat::Int8(_) => ValueFormat::Bytes,
    };
    let tiles = backend.amx.filter(|_| format == OperandFormat::Bf16).map(|amx| amx.tiles());
    let started = Instant::now();
    let mut rates = Vec::new();
    loop {
        let begun = Instant::now();
        let multiplications = match &tiles {
            Some(tiles) => tiles.multiply(ROUNDS),
            None => peak_loops::multiply(backend.isa, values, ROUNDS),
        };
        rates.push(2.0 * multiplications as f64 / begun.elapsed().as_secs_f64());
        if started.elapsed() >= DURATION {
            break;
        }
    }
    // Use the median. The maximum varies by several percent from run to run.
    let middle = rates.len() / 2;
    *rates.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_plausible_peak() {
        for format in [
            OperandFormat::F32,
            OperandFormat::Int8(Isa::detect().int8_row_format()),
            OperandFormat::Bf16,
        ] {
            let backend = Backend { isa: Isa::detect(), amx: None };
            let peak = measure(backend, format, 1).unwrap();
            // The range is from a slow processor without vectors to the fastest one with tiles.
            assert!((1e7..1e14).contains(&peak), "{format:?} {peak:e}");
        }
    }
}
