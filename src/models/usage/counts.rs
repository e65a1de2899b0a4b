//! The counts of one model, as they are in memory and in the file. Pure.
//!
//! Invariant: numbers stay where they are when they are full; no sequence of calls overflows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::habit::{Habit, Hour};
use super::histogram::Histogram;
use super::{Percentiles, Served};
use crate::package::Timestamp;

/// A request counts half as much an hour later: between what is used right now and what is used steadily.
const HALF_LIFE: Duration = Duration::from_secs(3600);

/// What is counted of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    /// Requests that were answered or failed.
    pub(super) requests: u64,
    /// Those that failed.
    pub(super) failures: u64,
    /// Texts of those that were answered.
    pub(super) texts: u64,
    /// Tokens of those that were answered.
    pub(super) tokens: u64,
    latency: Histogram,
    recent_latency: Histogram,
    /// How often it was loaded.
    pub(super) loads: u64,
    /// What loading takes, in microseconds.
    load_us: Option<u64>,
    /// Requests, each halved with every [`HALF_LIFE`] since, as of the last use: the combined recency and frequency
    /// of LRFU, <https://doi.org/10.1109/TC.2001.970573>.
    recent_uses: f64,
    /// Hours in which it was used.
    hours: u64,
    habit: Option<Habit>,
    /// When it was used first.
    pub(super) first_used_at: Option<Timestamp>,
    /// When it was used last.
    pub(super) last_used_at: Option<Timestamp>,
    /// When there was the last sign of it: a use, a load, or that it is installed.
    seen_at: Option<Timestamp>,
}

impl Counts {
    /// Counts a request.
    pub(super) fn serve(&mut self, outcome: Served, now: SystemTime) {
        let Served { texts, tokens, latency, ok } = outcome;
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
        let Some(hour) = Hour::of(now) else { return };
        let is_first = match &mut self.habit {
            Some(habit) => habit.record(hour),
            None => {
                self.habit = Some(Habit::begin(hour));
                true
            }
        };
        if is_first {
            add(&mut self.hours, 1);
        }
    }

    /// Counts a load. Its time moves what is known of loads by a quarter of the difference, so that one load from a
    /// cold disk does not tell of all.
    pub(super) fn load(&mut self, duration: Duration) {
        add(&mut self.loads, 1);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.load_us = Some(self.load_us.map_or(us, |known| known - known / 4 + us / 4));
    }

    /// Remembers that there was a sign of it.
    pub(super) fn see(&mut self, now: SystemTime) {
        self.seen_at = Some(timestamp(now));
    }

    /// When there was the last sign of it.
    pub(super) fn seen_at(&self) -> Option<Timestamp> {
        self.seen_at
    }

    /// For how long there was no sign of it.
    pub(super) fn unseen_for(&self, now: SystemTime) -> Duration {
        since(self.seen_at, now)
    }

    /// What loading takes.
    pub(super) fn reload_cost(&self) -> Option<Duration> {
        self.load_us.map(Duration::from_micros)
    }

    /// Latency of all answers.
    pub(super) fn latency(&self) -> Option<Percentiles> {
        percentiles(&self.latency)
    }

    /// Latency of the last answers.
    pub(super) fn recent_latency(&self) -> Option<Percentiles> {
        percentiles(&self.recent_latency)
    }

    /// Requests an hour: of late, or as usual in this hour of the week and the next, whichever is more.
    pub(super) fn uses_per_hour(&self, now: SystemTime) -> f64 {
        // With `r` requests an hour the sum of the halved ones settles at r · half-life / ln 2.
        let half_life_hours = HALF_LIFE.as_secs_f64() / 3600.0;
        let recent = self.recent_uses(now) * std::f64::consts::LN_2 / half_life_hours;
        let usual = Hour::of(now).and_then(|hour| {
            let likely = self.probability(hour)?.max(self.probability(hour.next())?);
            Some(likely * self.requests as f64 / self.hours.max(1) as f64)
        });
        recent.max(usual.unwrap_or(0.0))
    }

    /// Whether it was used in `hour`.
    pub(super) fn was_used_in(&self, hour: Hour) -> bool {
        self.habit.as_ref().is_some_and(|habit| habit.was_used(hour))
    }

    /// How likely it is used in `hour`; none before there are enough weeks.
    pub(super) fn probability(&self, hour: Hour) -> Option<f64> {
        self.habit.as_ref()?.probability(hour)
    }

    /// How likely it is used in each hour of the week, from Monday 00:00 UTC on.
    pub(super) fn use_by_hour(&self, now: SystemTime) -> Option<Vec<f64>> {
        self.habit.as_ref()?.probabilities(Hour::of(now)?)
    }

    fn recent_uses(&self, now: SystemTime) -> f64 {
        let age = since(self.last_used_at, now).div_duration_f64(HALF_LIFE);
        // The file may hold any number.
        self.recent_uses.max(0.0) * (-age).exp2()
    }
}

fn add(count: &mut u64, more: impl TryInto<u64>) {
    *count = count.saturating_add(more.try_into().unwrap_or(u64::MAX));
}

/// Time since `then`; none when the clock was set back.
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
