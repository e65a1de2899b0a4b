//! Counts the use of one model, in memory and in the file. Pure.
//!
//! Invariant: counters saturate. No sequence of calls overflows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::daily::{DAYS, DailyCounts};
use super::histogram::Histogram;
use super::weekly_profile::{HourNumber, HoursUsed, WeeklyProfile};
use super::{Percentiles, RequestOutcome};
use crate::package::Timestamp;

/// Half-life of a request in the recent rate. It is a compromise between models in use right now
/// and models in steady use.
const HALF_LIFE: Duration = Duration::from_secs(3600);

/// Usage counts of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageCounts {
    /// Number of requests that were answered or failed.
    pub(super) requests: u64,
    /// Number of failed requests.
    pub(super) failures: u64,
    /// Number of texts in answered requests.
    pub(super) texts: u64,
    /// Number of tokens in answered requests.
    pub(super) tokens: u64,
    latency: Histogram,
    recent_latency: Histogram,
    /// Number of loads.
    pub(super) loads: u64,
    /// Average time of a load, in microseconds.
    load_us: Option<u64>,
    /// Sum over all requests, each halved with every [`HALF_LIFE`] since, as of the last use: the
    /// combined recency and frequency of LRFU, <https://doi.org/10.1109/TC.2001.970573>.
    recent_uses: f64,
    /// Number of distinct hours in which the model was used.
    hours: u64,
    habit: Option<WeeklyProfile>,
    /// Missing in the files of older versions.
    #[serde(default)]
    daily: Option<DailyCounts>,
    /// Time of the first use.
    pub(super) first_used_at: Option<Timestamp>,
    /// Time of the last use.
    pub(super) last_used_at: Option<Timestamp>,
    /// Time at which the model was last used, loaded or installed.
    seen_at: Option<Timestamp>,
}

impl UsageCounts {
    /// Counts a request.
    pub(super) fn record_request(&mut self, outcome: RequestOutcome, now: SystemTime) {
        let RequestOutcome { texts, tokens, latency, is_ok: ok } = outcome;
        add(&mut self.requests, 1);
        if ok {
            add(&mut self.texts, texts);
            add(&mut self.tokens, tokens);
            self.latency.record(latency);
            self.recent_latency.record_recent(latency);
        } else {
            add(&mut self.failures, 1);
        }
        self.recent_uses = self.recent_uses(now) + 1.0;
        let at = timestamp(now);
        self.first_used_at.get_or_insert(at);
        self.last_used_at = Some(at);
        let Some(hour) = HourNumber::of(now) else { return };
        self.daily.get_or_insert_with(|| DailyCounts::new(hour)).record(hour);
        let is_first = match &mut self.habit {
            Some(habit) => habit.record(hour),
            None => {
                self.habit = Some(WeeklyProfile::new(hour));
                true
            }
        };
        if is_first {
            add(&mut self.hours, 1);
        }
    }

    /// Counts a load. Moves the average by a quarter of the difference, so that one load from a
    /// cold disk does not dominate.
    pub(super) fn record_load(&mut self, duration: Duration) {
        add(&mut self.loads, 1);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.load_us = Some(self.load_us.map_or(us, |known| known - known / 4 + us / 4));
    }

    /// Records that the model was used, loaded or installed at `now`.
    pub(super) fn record_seen(&mut self, now: SystemTime) {
        self.seen_at = Some(timestamp(now));
    }

    /// Returns the time at which the model was last used, loaded or installed.
    pub(super) fn seen_at(&self) -> Option<Timestamp> {
        self.seen_at
    }

    /// Returns the time since the model was last used, loaded or installed.
    pub(super) fn unseen_for(&self, now: SystemTime) -> Duration {
        since(self.seen_at, now)
    }

    /// Returns the average time of a load.
    pub(super) fn reload_cost(&self) -> Option<Duration> {
        self.load_us.map(Duration::from_micros)
    }

    /// Returns the latency of all answers.
    pub(super) fn latency(&self) -> Option<Percentiles> {
        percentiles(&self.latency)
    }

    /// Returns the latency of recent answers.
    pub(super) fn recent_latency(&self) -> Option<Percentiles> {
        percentiles(&self.recent_latency)
    }

    /// Returns the requests per hour: the recent rate, or the usual rate in this hour of the week
    /// and the next, whichever is larger.
    pub(super) fn uses_per_hour(&self, now: SystemTime) -> f64 {
        // At `r` requests per hour, the sum of the halved requests converges to r · half-life / ln
        // 2.
        let half_life_hours = HALF_LIFE.as_secs_f64() / 3600.0;
        let recent = self.recent_uses(now) * std::f64::consts::LN_2 / half_life_hours;
        let usual = HourNumber::of(now).and_then(|hour| {
            let likely = self.probability(hour)?.max(self.probability(hour.next())?);
            Some(likely * self.requests as f64 / self.hours.max(1) as f64)
        });
        recent.max(usual.unwrap_or(0.0))
    }

    /// Returns whether the model was used in `hour`.
    pub(super) fn was_used_in(&self, hour: HourNumber) -> bool {
        self.habit.as_ref().is_some_and(|habit| habit.was_used(hour))
    }

    /// Returns the probability of use in `hour`. Returns `None` until enough weeks have been
    /// observed.
    pub(super) fn probability(&self, hour: HourNumber) -> Option<f64> {
        self.habit.as_ref()?.probability(hour)
    }

    /// Returns the probability of use in each hour of the week, from Monday 00:00 UTC.
    pub(super) fn use_by_hour(&self, now: SystemTime) -> Option<Vec<f64>> {
        self.habit.as_ref()?.probabilities(HourNumber::of(now)?)
    }

    /// Returns the number of hours with a use in the last two weeks. Returns `None` before the first
    /// use, and while the clock is not set.
    pub(super) fn hours_used(&self, now: SystemTime) -> Option<HoursUsed> {
        Some(self.habit.as_ref()?.hours_used(HourNumber::of(now)?))
    }

    /// Returns the requests of each of the last days, the oldest day first. Returns `None` before the
    /// first request, and while the clock is not set.
    pub(super) fn daily_requests(&self, now: SystemTime) -> Option<[u64; DAYS]> {
        Some(self.daily.as_ref()?.last_days(HourNumber::of(now)?))
    }

    fn recent_uses(&self, now: SystemTime) -> f64 {
        let age = since(self.last_used_at, now).div_duration_f64(HALF_LIFE);
        // The value may come from the file, which can hold any number.
        self.recent_uses.max(0.0) * (-age).exp2()
    }
}

fn add(count: &mut u64, more: impl TryInto<u64>) {
    *count = count.saturating_add(more.try_into().unwrap_or(u64::MAX));
}

/// Returns the time since `then`. Returns zero if the clock was set back.
fn since(then: Option<Timestamp>, now: SystemTime) -> Duration {
    let then = then.map_or(0, |then| then.0);
    Duration::from_secs(timestamp(now).0.saturating_sub(then))
}

fn timestamp(now: SystemTime) -> Timestamp {
    Timestamp(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn percentiles(histogram: &Histogram) -> Option<Percentiles> {
    Some(Percentiles { p50: histogram.quantile(0.5)?, p95: histogram.quantile(0.95)? })
}
