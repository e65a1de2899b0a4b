//! Limits how often a refusal is logged.
//!
//! A client can cause thousands of refusals per second. journald limits the rate of a service and
//! then drops all of its records. So each kind of refusal is logged at most once a minute for each
//! user, with the number of suppressed records.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Message;

/// Minimum time between two records of one kind about one user.
const INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of stored pairs of kind and user. If the table is full, pairs that were not
/// logged within [`INTERVAL`] are removed.
const MAX_PAIRS: usize = 1024;

static REFUSALS: LazyLock<Mutex<Throttle>> = LazyLock::new(Mutex::default);

/// Counts a refusal of `kind` to the user `uid`. Takes less than a microsecond.
///
/// Returns the number of refusals since the last record if another record is due, and `None`
/// otherwise.
pub fn admit_refusal(kind: Message, uid: u32) -> Option<u64> {
    // A panic cannot happen in the middle of a change, so a poisoned lock is still consistent.
    let mut throttle = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
    throttle.check((kind.name(), uid), Instant::now())
}

#[derive(Debug, Default)]
struct Throttle {
    pairs: HashMap<(&'static str, u32), PairState>,
    /// Shared state of all pairs that do not fit in the table.
    others: Option<PairState>,
}

#[derive(Clone, Copy, Debug)]
struct PairState {
    at: Instant,
    suppressed: u64,
}

impl Throttle {
    fn check(&mut self, pair: (&'static str, u32), now: Instant) -> Option<u64> {
        if !self.pairs.contains_key(&pair) && self.pairs.len() >= MAX_PAIRS {
            self.pairs.retain(|_, state| now.duration_since(state.at) < INTERVAL);
        }
        if self.pairs.len() >= MAX_PAIRS && !self.pairs.contains_key(&pair) {
            return match &mut self.others {
                Some(state) => state.try_log(now),
                None => {
                    self.others = Some(PairState { at: now, suppressed: 0 });
                    Some(0)
                }
            };
        }
        match self.pairs.get_mut(&pair) {
            Some(state) => state.try_log(now),
            None => {
                self.pairs.insert(pair, PairState { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

impl PairState {
    fn try_log(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.at) < INTERVAL {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.at = now;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_once_a_minute_with_count() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.check(("a", 1), at(0)), Some(0));
        for second in 1..60 {
            assert_eq!(throttle.check(("a", 1), at(second)), None, "{second}");
        }
        // Another user and another kind are different pairs.
        assert_eq!(throttle.check(("a", 2), at(1)), Some(0));
        assert_eq!(throttle.check(("b", 1), at(1)), Some(0));
        assert_eq!(throttle.check(("a", 1), at(60)), Some(59));
        assert_eq!(throttle.check(("a", 1), at(61)), None);
        assert_eq!(throttle.check(("a", 1), at(500)), Some(1));
    }

    #[test]
    fn full_table_throttles_further_pairs_together() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let most = u32::try_from(MAX_PAIRS).unwrap();
        for uid in 0..most {
            assert_eq!(throttle.check(("a", uid), start), Some(0));
        }
        assert_eq!(throttle.check(("a", most), start), Some(0));
        assert_eq!(throttle.check(("a", most + 1), start), None);
        assert_eq!(throttle.pairs.len(), MAX_PAIRS);
        // Old pairs are removed.
        assert_eq!(throttle.check(("a", most), start + INTERVAL), Some(0));
        assert_eq!(throttle.pairs.len(), 1);
    }
}
