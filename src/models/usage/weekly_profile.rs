//! Records the hours of the week in which a model is used, and estimates the probability of use in
//! a future hour. Pure.
//!
//! Hours are in UTC. A pattern that follows local time moves by an hour twice a year, and is
//! learned again within weeks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Hours in a week. The first begins on Monday at 00:00 UTC.
pub(super) const HOURS: usize = 168;
/// Weeks to observe before a probability is given.
const MIN_WEEKS: u64 = 3;
/// Weight of a week relative to the next one. A week three weeks earlier has half the weight.
const DECAY: f64 = 0.8;
/// Number of weeks that are remembered. The oldest has about 4 % of the weight of the last.
const MAX_WEEKS: u64 = 15;
/// Hour of the week at the Unix epoch: 1970 began on a Thursday, 72 hours after Monday 00:00.
const EPOCH: u64 = 72;
/// 2025-01-01 in seconds since the Unix epoch. A clock before it was never set, so it does not give
/// an hour of the week.
const CLOCK_SET: u64 = 1_735_689_600;
const HOUR: u64 = 3600;

/// Number of an hour, counted from 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct HourNumber(u64);

impl HourNumber {
    /// Returns the hour of `now`. Returns `None` while the clock of the device is not set.
    pub(super) fn of(now: SystemTime) -> Option<Self> {
        let seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        (seconds >= CLOCK_SET).then_some(Self(seconds / HOUR))
    }

    /// Returns the next hour.
    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the start of the hour. Returns `None` if the system cannot represent it.
    pub(super) fn start(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0.checked_mul(HOUR)?))
    }

    /// Returns the number of its day in UTC, counted from 1970.
    pub(super) fn day(self) -> u64 {
        self.0 / 24
    }

    fn week(self) -> u64 {
        self.0.saturating_add(EPOCH) / HOURS as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "below 168")]
    fn of_week(self) -> usize {
        (self.0.saturating_add(EPOCH) % HOURS as u64) as usize
    }
}

/// Numbers of hours in which a model was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoursUsed {
    /// Hours in the last seven days.
    pub last_7_days: usize,
    /// Hours in the seven days before.
    pub previous_7_days: usize,
}

/// Weekly profile: the hours in which a model was used in each of the last weeks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeeklyProfile {
    /// Bits for each hour of the week. Bit `k` is set if the model was used in that hour `k` weeks
    /// before `week`.
    used: HourBits,
    /// Week of the last use, counted from 1970.
    week: u64,
    /// Hour of the first use.
    first: HourNumber,
}

impl WeeklyProfile {
    /// Creates the profile of a model whose first use is in `hour`.
    pub(super) fn new(hour: HourNumber) -> Self {
        let mut habit = Self { used: HourBits([0; HOURS]), week: hour.week(), first: hour };
        habit.record(hour);
        habit
    }

    /// Records a use. Returns whether it is the first one in its hour.
    ///
    /// If the clock was set back, the uses that were recorded after `hour`'s week are dropped.
    pub(super) fn record(&mut self, hour: HourNumber) -> bool {
        let week = hour.week();
        let (forth, back) = (week.saturating_sub(self.week), self.week.saturating_sub(week));
        if (forth, back) != (0, 0) {
            // Bit `k` means `k` weeks before `week`. So the bits move left when `week` grows, and
            // right when the clock was set back.
            for bits in &mut self.used.0 {
                *bits = shift(*bits, forth, u16::checked_shl);
                *bits = shift(*bits, back, u16::checked_shr);
            }
        }
        self.week = week;
        self.first = self.first.min(hour);
        let Some(bits) = self.used.0.get_mut(hour.of_week()) else { return false };
        let is_first = *bits & 1 == 0;
        *bits |= 1;
        is_first
    }

    /// Returns whether the model was used in `hour`.
    pub(super) fn was_used(&self, hour: HourNumber) -> bool {
        self.was_used_before(hour, 0)
    }

    /// Returns the number of hours in which the model was used, of the 168 hours that end with `now`
    /// and of the 168 hours before them.
    pub(super) fn hours_used(&self, now: HourNumber) -> HoursUsed {
        let count = |weeks_ago: u64| {
            let last = now.0.saturating_sub(weeks_ago * HOURS as u64);
            let hours = (0..HOURS as u64).filter_map(|ago| last.checked_sub(ago).map(HourNumber));
            hours.filter(|hour| self.was_used(*hour)).count()
        };
        HoursUsed { last_7_days: count(0), previous_7_days: count(1) }
    }

    /// Returns the share of the past weeks in which the model was used in this hour of the week,
    /// with more weight for later weeks. Returns `None` until [`MIN_WEEKS`] have been observed.
    ///
    /// Let `u_k` be 1 if the model was used `k` weeks before `hour`, and 0 otherwise. The result is
    /// Σ `DECAY^k · u_k` / Σ `DECAY^k`.
    pub(super) fn probability(&self, hour: HourNumber) -> Option<f64> {
        let weeks = hour.0.saturating_sub(self.first.0) / HOURS as u64;
        if weeks < MIN_WEEKS {
            return None;
        }
        let (mut used, mut all, mut weight) = (0.0, 0.0, 1.0);
        for ago in 1..=weeks.min(MAX_WEEKS) {
            weight *= DECAY;
            all += weight;
            if self.was_used_before(hour, ago) {
                used += weight;
            }
        }
        Some(used / all)
    }

    /// Returns [`Self::probability`] of the next 168 hours, ordered by the hour of the week.
    /// Returns `None` if one of them has not been observed for enough weeks.
    pub(super) fn probabilities(&self, now: HourNumber) -> Option<Vec<f64>> {
        let mut week = vec![0.0; HOURS];
        let mut hour = now;
        for _ in 0..HOURS {
            *week.get_mut(hour.of_week())? = self.probability(hour)?;
            hour = hour.next();
        }
        Some(week)
    }

    fn was_used_before(&self, hour: HourNumber, weeks_ago: u64) -> bool {
        let bits = self.used.0.get(hour.of_week()).copied().unwrap_or(0);
        // Weeks after the last use have no bits: the model was not used in them.
        let known = hour.week().checked_sub(weeks_ago).and_then(|week| self.week.checked_sub(week));
        known.is_some_and(|ago| shift(bits, ago, u16::checked_shr) & 1 == 1)
    }
}

fn shift(bits: u16, by: u64, direction: fn(u16, u32) -> Option<u16>) -> u16 {
    u32::try_from(by).ok().and_then(|by| direction(bits, by)).unwrap_or(0)
}

/// Bits for each hour of the week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
struct HourBits([u16; HOURS]);

/// Error of a list with another number of hours.
#[derive(Debug, thiserror::Error)]
#[error("expected {HOURS} hours of the week, found {0}")]
struct WrongLength(usize);

impl TryFrom<Vec<u16>> for HourBits {
    type Error = WrongLength;

    fn try_from(hours: Vec<u16>) -> Result<Self, WrongLength> {
        hours.try_into().map(Self).map_err(|hours: Vec<u16>| WrongLength(hours.len()))
    }
}

impl From<HourBits> for Vec<u16> {
    fn from(hours: HourBits) -> Self {
        hours.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Monday 2026-01-05, 00:00 UTC.
    const MONDAY: u64 = 1_767_571_200 / HOUR;
    const WEEK: u64 = HOURS as u64;

    /// Returns the profile of a model that was used at nine on Mondays of these weeks.
    fn nine_on_mondays(weeks: impl IntoIterator<Item = u64>) -> WeeklyProfile {
        let mut hours = weeks.into_iter().map(|week| HourNumber(MONDAY + 9 + week * WEEK));
        let mut habit = WeeklyProfile::new(hours.next().unwrap());
        for hour in hours {
            habit.record(hour);
        }
        habit
    }

    #[test]
    fn hours_of_the_last_two_weeks_are_counted() {
        let habit = nine_on_mondays([0, 1, 2]);
        let used = |hour| {
            let HoursUsed { last_7_days, previous_7_days } = habit.hours_used(HourNumber(hour));
            (last_7_days, previous_7_days)
        };
        let last = MONDAY + 9 + 2 * WEEK;
        assert_eq!(used(last), (1, 1));
        assert_eq!(used(last + WEEK - 1), (1, 1));
        assert_eq!(used(last + WEEK), (0, 1));
        assert_eq!(used(last + 3 * WEEK), (0, 0));
    }

    #[test]
    fn week_begins_on_monday() {
        assert_eq!(HourNumber(MONDAY).of_week(), 0);
        assert_eq!(HourNumber(MONDAY - 1).of_week(), HOURS - 1);
        assert_eq!(HourNumber(MONDAY).week(), HourNumber(MONDAY - 1).week() + 1);
        let at = UNIX_EPOCH + Duration::from_secs(MONDAY * HOUR + 1);
        assert_eq!(HourNumber::of(at), Some(HourNumber(MONDAY)));
        assert_eq!(HourNumber::of(UNIX_EPOCH), None);
    }

    #[test]
    fn recent_weeks_count_more() {
        let in_week = |week: u64| HourNumber(MONDAY + 9 + week * WEEK);
        for (weeks, asked, expected) in [
            (vec![0, 1, 2], 2, None),
            (vec![0, 1, 2], 3, Some(1.0)),
            (vec![0, 2], 3, Some((0.8 + 0.512) / 1.952)),
            (vec![0, 1], 3, Some((0.64 + 0.512) / 1.952)),
            (vec![0], 3, Some(0.512 / 1.952)),
            // Unused for a long time.
            (vec![0, 1, 2, 3], 60, Some(0.0)),
            ((0..40).collect(), 40, Some(1.0)),
        ] {
            let found = nine_on_mondays(weeks.clone()).probability(in_week(asked));
            match (found, expected) {
                (Some(found), Some(expected)) => {
                    assert!((found - expected).abs() < 1e-9, "{weeks:?}: {found}");
                }
                pair => assert_eq!(pair.0, pair.1, "{weeks:?}"),
            }
        }
        let habit = nine_on_mondays(0..5);
        assert_eq!(habit.probability(in_week(5).next()), Some(0.0));
    }

    #[test]
    fn current_week_does_not_affect_its_probability() {
        let habit = nine_on_mondays([0, 1, 2, 3]);
        let now = HourNumber(MONDAY + 9 + 3 * WEEK);
        assert!(habit.was_used(now) && !habit.was_used(now.next()));
        assert_eq!(habit.probability(now), Some(1.0));
        assert_eq!(nine_on_mondays([0, 1, 2]).probability(now), Some(1.0));
    }

    #[test]
    fn probabilities_start_on_monday() {
        let habit = nine_on_mondays(0..4);
        assert_eq!(habit.probabilities(HourNumber(MONDAY + 10 + WEEK)), None);
        let week = habit.probabilities(HourNumber(MONDAY + 100 + 3 * WEEK)).unwrap();
        let likely: Vec<_> = (0..HOURS).filter(|hour| week[*hour] > 0.0).collect();
        assert_eq!((week.len(), likely), (HOURS, vec![9]));
    }

    #[test]
    fn clock_set_back_keeps_earlier_weeks() {
        let mut habit = nine_on_mondays([0, 1, 2, 9]);
        habit.record(HourNumber(MONDAY + 9 + 3 * WEEK));
        assert_eq!(habit, nine_on_mondays(0..4));
    }

    proptest! {
        #[test]
        fn arbitrary_hours_give_valid_probabilities(
            hours in prop::collection::vec(
                prop_oneof![any::<u64>(), MONDAY..MONDAY + 30 * WEEK], 1..60),
            asked in prop_oneof![any::<u64>(), MONDAY..MONDAY + 30 * WEEK],
        ) {
            let mut habit = WeeklyProfile::new(HourNumber(hours[0]));
            for hour in &hours {
                habit.record(HourNumber(*hour));
                prop_assert!(habit.was_used(HourNumber(*hour)) && !habit.record(HourNumber(*hour)));
            }
            let probability = habit.probability(HourNumber(asked));
            prop_assert!(probability.is_none_or(|share| (0.0..=1.0).contains(&share)));
            prop_assert!(HourNumber(asked).start().is_none_or(|at| at >= UNIX_EPOCH));
            let json = serde_json::to_string(&habit).unwrap();
            prop_assert_eq!(serde_json::from_str::<WeeklyProfile>(&json).unwrap(), habit);
        }
    }
}
