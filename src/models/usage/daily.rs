//! Counts the requests of each of the last days. Pure.
//!
//! Days are in UTC.

use serde::{Deserialize, Serialize};

use super::weekly_profile::HourNumber;

/// Number of days: two weeks, so that a week can be compared with the one before.
pub const DAYS: usize = 14;

/// Number of requests in each of the last days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DailyCounts {
    /// Day of the last request, counted from 1970.
    day: u64,
    /// Requests of that day and of the days before it, the latest day first.
    requests: [u64; DAYS],
}

impl DailyCounts {
    /// Creates counts of zero requests.
    pub(super) fn new(hour: HourNumber) -> Self {
        Self { day: hour.day(), requests: [0; DAYS] }
    }

    /// Counts a request in `hour`.
    ///
    /// If the clock was set back, the requests of the days after `hour` are dropped.
    pub(super) fn record(&mut self, hour: HourNumber) {
        self.requests = self.until(hour.day());
        self.day = hour.day();
        let [today, ..] = &mut self.requests;
        *today = today.saturating_add(1);
    }

    /// Returns the requests of the days that end with the day of `now`, the oldest day first.
    pub(super) fn last_days(&self, now: HourNumber) -> [u64; DAYS] {
        let mut requests = self.until(now.day());
        requests.reverse();
        requests
    }

    /// Returns the requests of `day` and of the days before it, the latest day first.
    fn until(&self, day: u64) -> [u64; DAYS] {
        let mut requests = [0; DAYS];
        for (ago, count) in (0..).zip(&mut requests) {
            // Days after the last request have no count.
            let index = day.checked_sub(ago).and_then(|day| self.day.checked_sub(day));
            let index = index.and_then(|index| usize::try_from(index).ok());
            *count = index.and_then(|index| self.requests.get(index)).copied().unwrap_or(0);
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use proptest::prelude::*;

    /// 2026-01-05 in days since 1970.
    const MONDAY: u64 = 20_458;

    fn hour(day: u64) -> HourNumber {
        HourNumber::of(UNIX_EPOCH + Duration::from_secs(day * 86_400 + 3600 * 23)).unwrap()
    }

    /// Returns the counts after a request on each of these days.
    fn counted(days: &[u64]) -> DailyCounts {
        let mut counts = DailyCounts::new(hour(days[0]));
        days.iter().for_each(|day| counts.record(hour(*day)));
        counts
    }

    #[test]
    fn requests_are_counted_by_day() {
        let counts = counted(&[MONDAY, MONDAY, MONDAY + 1, MONDAY + 13]);
        let last = |day| counts.last_days(hour(day));
        assert_eq!(last(MONDAY + 13), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(last(MONDAY + 14), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(last(MONDAY + 26), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(last(MONDAY + 27), [0; DAYS]);
    }

    #[test]
    fn clock_set_back_keeps_earlier_days() {
        let counts = counted(&[MONDAY, MONDAY + 9, MONDAY + 2]);
        assert_eq!(counts, counted(&[MONDAY, MONDAY + 2]));
        assert_eq!(counted(&[MONDAY + 90, MONDAY]), counted(&[MONDAY]));
    }

    proptest! {
        #[test]
        fn arbitrary_days_are_counted_without_overflow(
            days in prop::collection::vec(20_100_u64..1 << 40, 1..30),
            now in 20_100_u64..1 << 40,
        ) {
            let counts = counted(&days);
            prop_assert!(counts.last_days(hour(now)).iter().sum::<u64>() <= days.len() as u64);
            let json = serde_json::to_string(&counts).unwrap();
            prop_assert_eq!(serde_json::from_str::<DailyCounts>(&json).unwrap(), counts);
        }
    }
}
