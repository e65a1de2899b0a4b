//! Counts latencies in 44 counters, each half an octave wide. Pure.
//!
//! A quantile is interpolated within its counter. Its error is less than the width of the counter,
//! a factor of √2.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of counters. They cover 0.1 ms to 210 s. The first and the last one also count shorter
/// and longer latencies.
const COUNTERS: usize = 44;
/// Lower bound of the second counter.
const LEAST: Duration = Duration::from_micros(100);
/// Least number of latencies in a recent histogram, once it has counted as many. It holds fewer
/// than twice this number.
const RECENT: u64 = 128;

/// Number of requests by latency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub(super) struct Histogram {
    counts: [u64; COUNTERS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; COUNTERS] }
    }
}

impl Histogram {
    /// Counts a latency.
    pub(super) fn record(&mut self, latency: Duration) {
        if let Some(count) = self.counts.get_mut(counter(latency)) {
            *count = count.saturating_add(1);
        }
    }

    /// Counts a latency, and reduces the weight of earlier ones: all counters are halved when the
    /// total reaches twice [`RECENT`].
    pub(super) fn record_recent(&mut self, latency: Duration) {
        self.record(latency);
        // A loop, because a file may contain counters of any size.
        while self.count() >= u128::from(2 * RECENT) {
            self.counts.iter_mut().for_each(|count| *count /= 2);
        }
    }

    fn count(&self) -> u128 {
        self.counts.iter().map(|count| u128::from(*count)).sum()
    }

    /// Returns the latency that `share` (0 to 1) of all requests did not exceed. Returns `None` for
    /// an empty histogram.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = (count as f64 * share).max(1.0);
        let mut below = 0.0;
        for (counter, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let (from, to) = (begin(counter), begin(counter + 1));
                return Some(from + (to - from).mul_f64((wanted - below) / count));
            }
            below += count;
        }
        // Reached only through rounding, with counts beyond the precision of f64.
        Some(begin(COUNTERS))
    }
}

/// Returns the index of the counter for `latency`.
fn counter(latency: Duration) -> usize {
    let octaves = latency.div_duration_f64(LEAST).log2();
    // The logarithm of zero is minus infinity. The cast saturates it to 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let half_octaves = (octaves * 2.0 + 1.0).floor() as usize;
    half_octaves.min(COUNTERS - 1)
}

/// Returns the lower bound of `counter`.
fn begin(counter: usize) -> Duration {
    match counter {
        0 => Duration::ZERO,
        _ => LEAST.mul_f64(((counter - 1) as f64 / 2.0).exp2()),
    }
}

/// Error of a list with another number of counters.
#[derive(Debug, thiserror::Error)]
#[error("expected {COUNTERS} counters of latencies, found {0}")]
pub(super) struct WrongSize(usize);

impl TryFrom<Vec<u64>> for Histogram {
    type Error = WrongSize;

    fn try_from(counts: Vec<u64>) -> Result<Self, WrongSize> {
        let counts = counts.try_into().map_err(|counts: Vec<u64>| WrongSize(counts.len()))?;
        Ok(Self { counts })
    }
}

impl From<Histogram> for Vec<u64> {
    fn from(histogram: Histogram) -> Self {
        histogram.counts.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(latencies: impl IntoIterator<Item = Duration>) -> Histogram {
        let mut histogram = Histogram::default();
        latencies.into_iter().for_each(|latency| histogram.record(latency));
        histogram
    }

    #[test]
    fn latency_is_counted_in_its_bucket() {
        for counter_of in 0..COUNTERS {
            let inside = (begin(counter_of) + begin(counter_of + 1)) / 2;
            assert_eq!(counter(inside), counter_of, "{inside:?}");
        }
        assert_eq!((counter(Duration::ZERO), counter(Duration::MAX)), (0, COUNTERS - 1));
    }

    #[test]
    fn quantiles_of_zero_or_one_latencies() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let ten = Duration::from_millis(10);
        let median = of([ten]).quantile(0.5).unwrap();
        assert!((0.7..1.42).contains(&median.div_duration_f64(ten)), "{median:?}");
    }

    #[test]
    fn recent_latencies_replace_old_ones() {
        let (slow, quick) = (Duration::from_secs(1), Duration::from_millis(5));
        let mut recent = Histogram::default();
        (0..100_000).for_each(|_| recent.record_recent(slow));
        (0..1_000).for_each(|_| recent.record_recent(quick));
        assert!(recent.quantile(0.95).unwrap() < Duration::from_millis(10));
        assert!((u128::from(RECENT)..u128::from(2 * RECENT)).contains(&recent.count()));
    }

    #[test]
    fn full_counters_saturate() {
        let mut full = Histogram { counts: [u64::MAX; COUNTERS] };
        full.record(Duration::from_millis(1));
        assert_eq!(full, Histogram { counts: [u64::MAX; COUNTERS] });
        assert!(full.quantile(1.0).is_some());
        full.record_recent(Duration::from_millis(1));
        assert!(full.count() < u128::from(2 * RECENT));
    }

    proptest! {
        #[test]
        fn quantile_error_is_within_one_bucket(
            micros in prop::collection::vec(100_u64..200_000_000, 1..200),
            // Multiples of 1/64 are exact in f64.
            share in 1_usize..=64,
        ) {
            let mut latencies = Vec::from_iter(micros.into_iter().map(Duration::from_micros));
            let found = of(latencies.iter().copied());
            let found = found.quantile(share as f64 / 64.0).unwrap();
            latencies.sort_unstable();
            let rank = (latencies.len() * share).div_ceil(64);
            let ratio = found.div_duration_f64(latencies[rank - 1]);
            prop_assert!((0.7..=1.4143).contains(&ratio), "{found:?}, {ratio}");
        }

        #[test]
        fn histogram_round_trips(counts in prop::collection::vec(any::<u64>(), 0..60)) {
            let size = counts.len();
            match Histogram::try_from(counts.clone()) {
                Ok(histogram) => prop_assert_eq!(Vec::from(histogram), counts),
                Err(_wrong) => prop_assert_ne!(size, COUNTERS),
            }
        }
    }
}
