//! What the machine's processors can do at most, to measure the encoders against.
//!
//! Owns one loop of multiplications and additions that touches no memory. It takes no part in
//! computing vectors.

use std::hint::black_box;
use std::io;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

/// Independent chains of operations. A fused multiply-add takes 4 to 5 cycles and two begin in
/// each, so that 10 keep the units busy; with the two factors they fit into 16 registers.
const CHAINS: usize = 12;
/// Steps of every chain between two looks at the clock: tens of microseconds.
const STEPS: usize = 10_000;
/// How long each thread tries.
const DURATION: Duration = Duration::from_millis(250);

/// [`STEPS`] fused multiply-adds in each chain; gives how many operations that were.
struct FusedMultiplyAdds;

impl SimdOp for FusedMultiplyAdds {
    type Output = usize;

    // Without this the loop would be compiled for the least processor.
    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> usize {
        let ops = isa.f32();
        // Converges to 2: neither infinities nor subnormal numbers, which some processors do slowly.
        let (factor, addend) = (ops.splat(black_box(0.5)), ops.splat(black_box(1.0)));
        let mut chains = [ops.splat(black_box(0.0)); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = ops.mul_add(*chain, factor, addend);
            }
        }
        black_box(chains.map(|chain| ops.sum(chain)));
        2 * CHAINS * STEPS * ops.len()
    }
}

/// The f32 operations a second that `threads` threads of this machine do when nothing but the
/// arithmetic holds them up.
///
/// The sum over the threads, which run at once, of what each one does in the median of many tens of
/// microseconds: as another program takes a processor for milliseconds, this is the processor's own
/// limit, not what others leave of it. Blocks for a quarter of a second.
///
/// # Errors
/// When the system gives no threads.
pub fn f32_peak(threads: usize) -> io::Result<f64> {
    thread::scope(|scope| {
        let running: io::Result<Vec<_>> = (0..threads)
            .map(|_| Builder::new().name("peak".to_owned()).spawn_scoped(scope, median_rate))
            .collect();
        let rates = running?.into_iter().map(|thread| {
            thread.join().map_err(|_panic| io::Error::other("a thread that measures ended early"))
        });
        rates.sum()
    })
}

fn median_rate() -> f64 {
    let started = Instant::now();
    let mut rates = Vec::new();
    loop {
        let begun = Instant::now();
        let operations = FusedMultiplyAdds.dispatch();
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
    fn a_thread_does_at_least_an_operation_a_nanosecond() {
        // The slowest processors meant here do one vector of four a cycle at 1 GHz.
        let peak = f32_peak(1).unwrap();
        assert!(peak > 1e9, "{peak:e}");
        assert!(peak < 1e13, "{peak:e}");
    }
}
