//! Counts the use of every model, measures latency, and predicts the next use.
//!
//! The counts are kept across restarts in the file `usage.json` in the store's directory. This
//! module only answers questions: the manager decides which models to evict and which to preload.
//!
//! Invariants:
//! 1. The file is best effort. If it is missing, damaged or of another format, only the counts are
//!    lost. An unusable file is moved aside and never overwritten.
//! 2. Memory is bounded: [`MAX_MODELS`] models of about 2 KiB each, regardless of the requests.
//! 3. Counting never waits for I/O. It takes a few additions under a lock that is not held during
//!    I/O.
//!
//! The caller passes the time. Hours of the week are in UTC.

mod counts;
mod daily;
mod file;
mod histogram;
pub mod recommend;
mod weekly_profile;
mod write_failures;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::base::errors::{chain, errno};
use crate::files::FileError;
use crate::package::{EntryKey, Timestamp};
use crate::telemetry::log::Message;
use counts::UsageCounts;
pub use daily::DAYS;
use weekly_profile::HourNumber;
pub use weekly_profile::HoursUsed;
pub(super) use write_failures::WriteFailures;

/// Name of the file in the store's directory.
pub const FILE: &str = "usage.json";
/// Maximum number of models. Beyond it, the models that were seen least recently are forgotten.
const MAX_MODELS: usize = 1000;
/// Time for which the counts of a removed model are kept. A model that is installed again earlier
/// keeps its weekly profile.
const REMOVED_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Precision of the time at which a model was last installed. A smaller change is not worth a write
/// of the file.
const SEEN_PRECISION: Duration = Duration::from_secs(24 * 3600);
/// Least share of the past weeks in which a model was used in an hour of the week, for it to be
/// expected in that hour.
const MIN_PROBABILITY: f64 = 0.6;
/// Largest time span of [`Usage::predict`].
pub const MAX_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// Outcome of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestOutcome {
    /// Number of texts.
    pub texts: usize,
    /// Number of tokens of all texts.
    pub tokens: usize,
    /// Time from the enqueueing of the request to its vectors.
    pub latency: Duration,
    /// Whether the request succeeded. Latencies of failures are not counted, because they do not
    /// resemble those of answers.
    pub is_ok: bool,
}

/// Model that will probably be used.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictedUse {
    /// Key of the model.
    pub key: EntryKey,
    /// Share of the past weeks in which the model was used in that hour, with more weight for later
    /// weeks.
    pub probability: f64,
    /// Start of the hour, or the current time if the hour has begun.
    pub at: SystemTime,
}

/// Percentiles of latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentiles {
    /// Median.
    pub p50: Duration,
    /// 95th percentile.
    pub p95: Duration,
}

/// Statistics of a model's use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageStats {
    /// Number of requests that reached the model, without cancelled ones.
    pub requests: u64,
    /// Number of these requests that failed.
    pub failures: u64,
    /// Number of texts in successful requests.
    pub texts: u64,
    /// Number of tokens in successful requests.
    pub tokens: u64,
    /// Latency of all successful requests.
    pub latency: Option<Percentiles>,
    /// Latency of recent requests. See [`Usage::recent_latency`].
    pub recent_latency: Option<Percentiles>,
    /// Number of loads.
    pub loads: u64,
    /// Time that a load takes. See [`Usage::reload_cost`].
    pub reload_cost: Option<Duration>,
    /// Rate of use. See [`Usage::uses_per_hour`].
    pub uses_per_hour: f64,
    /// Share of the past weeks in which the model was used, for each hour of the week from Monday
    /// 00:00 UTC. `None` until three weeks have been observed.
    pub use_by_hour: Option<Vec<f64>>,
    /// Hours with a use in the last two weeks. `None` before the first use.
    pub hours_used: Option<HoursUsed>,
    /// Requests of each of the last [`DAYS`] days in UTC, the oldest day first. `None` before the
    /// first use.
    pub daily_requests: Option<[u64; DAYS]>,
    /// Expected next use, within [`MAX_AHEAD`].
    pub next_use: Option<PredictedUse>,
    /// Time of the first use.
    pub first_used_at: Option<Timestamp>,
    /// Time of the last use.
    pub last_used_at: Option<Timestamp>,
}

/// Usage counts of all models.
#[derive(Debug)]
pub struct Usage {
    /// Path of the file. `None` if the existing file could neither be read nor moved aside: then
    /// the counts are not saved.
    path: Option<PathBuf>,
    state: Mutex<UsageState>,
}

#[derive(Debug, Default)]
struct UsageState {
    models: BTreeMap<EntryKey, UsageCounts>,
    /// Whether the counts have changed since the last write.
    changed: bool,
}

impl Usage {
    /// Reads the counts from the file at `path`. Starts without counts if there is none.
    ///
    /// An unusable file is moved aside to `<path>.unreadable`, with a warning. Blocks on reading.
    pub fn open(path: &Path) -> Self {
        let (models, path) = match file::read(path) {
            Ok(models) => (models, Some(path.to_owned())),
            Err(error) => (BTreeMap::new(), move_unusable_aside(path, &chain(&error))),
        };
        let mut state = UsageState { models, changed: false };
        state.shrink_to(MAX_MODELS);
        Self { path, state: Mutex::new(state) }
    }

    /// Counts a request.
    pub fn record(&self, key: &EntryKey, outcome: RequestOutcome, now: SystemTime) {
        self.state().counts(key, now).record_request(outcome, now);
    }

    /// Counts a load that took `duration`.
    pub fn record_load(&self, key: &EntryKey, duration: Duration, now: SystemTime) {
        self.state().counts(key, now).record_load(duration);
    }

    /// Returns the rate of use in requests per hour: the recent rate, or the usual rate in this
    /// hour of the week and the next, whichever is larger. Returns 0 for a model that was never
    /// used.
    pub fn uses_per_hour(&self, key: &EntryKey, now: SystemTime) -> f64 {
        self.state().models.get(key).map_or(0.0, |counts| counts.uses_per_hour(now))
    }

    /// Returns the average time of a load, with more weight for later loads. Returns `None` before
    /// the first load.
    pub fn reload_cost(&self, key: &EntryKey) -> Option<Duration> {
        self.state().models.get(key).and_then(UsageCounts::reload_cost)
    }

    /// Returns the latency of the last 128 to 256 answers, with more weight for later ones. Returns
    /// `None` before the first answer.
    pub fn recent_latency(&self, key: &EntryKey) -> Option<Percentiles> {
        self.state().models.get(key).and_then(UsageCounts::recent_latency)
    }

    /// Returns the models that will probably be used `within` this time from now (at most
    /// [`MAX_AHEAD`]), each with the first hour in which it is expected, in the order of time.
    ///
    /// The current hour counts for models that were not used in it yet. A model is expected in an
    /// hour if it was used in that hour of the week (UTC) in at least 60 % of the past weeks. Each
    /// earlier week has 20 % less weight than the next one. At least three weeks must have been
    /// observed.
    pub fn predict(&self, within: Duration, now: SystemTime) -> Vec<PredictedUse> {
        let state = self.state();
        let expected =
            state.models.iter().filter_map(|(key, counts)| next_use(key, counts, within, now));
        let mut expected = Vec::from_iter(expected);
        expected
            .sort_by(|a, b| a.at.cmp(&b.at).then_with(|| b.probability.total_cmp(&a.probability)));
        expected
    }

    /// Returns the statistics of all models.
    pub fn stats(&self, now: SystemTime) -> BTreeMap<EntryKey, UsageStats> {
        // Copy the counts: the probabilities of a whole week take time, and counting must not wait
        // for them.
        let models = self.state().models.clone();
        let stats = models.into_iter().map(|(key, counts)| {
            let stats = UsageStats {
                requests: counts.requests,
                failures: counts.failures,
                texts: counts.texts,
                tokens: counts.tokens,
                latency: counts.latency(),
                recent_latency: counts.recent_latency(),
                loads: counts.loads,
                reload_cost: counts.reload_cost(),
                uses_per_hour: counts.uses_per_hour(now),
                use_by_hour: counts.use_by_hour(now),
                hours_used: counts.hours_used(now),
                daily_requests: counts.daily_requests(now),
                next_use: next_use(&key, &counts, MAX_AHEAD, now),
                first_used_at: counts.first_used_at,
                last_used_at: counts.last_used_at,
            };
            (key, stats)
        });
        stats.collect()
    }

    /// Updates the set of installed models. A removed model is forgotten 30 days after it was last
    /// installed.
    pub fn keep_installed(&self, installed: &BTreeSet<EntryKey>, now: SystemTime) {
        let mut state = self.state();
        let UsageState { models, changed } = &mut *state;
        for key in installed {
            // Older versions wrote keys with a shortened digest. Move their counts to the full key.
            let shortened = key.shortened();
            if shortened != *key
                && let Some(counts) = models.remove(&shortened)
            {
                models.insert(key.clone(), counts);
                *changed = true;
            }
        }
        models.retain(|key, counts| {
            let unseen = counts.unseen_for(now);
            if installed.contains(key) {
                if unseen >= SEEN_PRECISION {
                    counts.record_seen(now);
                    *changed = true;
                }
                return true;
            }
            let kept = unseen < REMOVED_RETENTION;
            *changed |= !kept;
            kept
        });
    }

    /// Writes the counts to the file if they have changed. Blocks on writing. The caller chooses
    /// the interval.
    ///
    /// # Errors
    /// Fails if the disk fails. The next call tries again.
    pub fn save(&self) -> Result<(), FileError> {
        let Some(path) = &self.path else { return Ok(()) };
        let models = {
            let mut state = self.state();
            if !std::mem::take(&mut state.changed) {
                return Ok(());
            }
            state.models.clone()
        };
        file::write(path, models).inspect_err(|_error| self.state().changed = true)
    }

    fn state(&self) -> MutexGuard<'_, UsageState> {
        // A panic under the lock leaves usable counts: at worst one request is counted in part.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UsageState {
    /// Returns the counts of `key` to be changed. Creates them if needed.
    fn counts(&mut self, key: &EntryKey, now: SystemTime) -> &mut UsageCounts {
        self.changed = true;
        if !self.models.contains_key(key) {
            self.shrink_to(MAX_MODELS - 1);
        }
        let counts = self.models.entry(key.clone()).or_default();
        counts.record_seen(now);
        counts
    }

    /// Forgets the models that were seen least recently, until at most `count` are left.
    fn shrink_to(&mut self, count: usize) {
        while self.models.len() > count {
            let oldest = self.models.iter().min_by_key(|(_, counts)| counts.seen_at());
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.models.remove(&oldest);
            self.changed = true;
        }
    }
}

/// Moves an unusable file aside. Returns the path for new counts, or `None` if the file could not
/// be moved.
fn move_unusable_aside(path: &Path, error: &str) -> Option<PathBuf> {
    let shown = path.display();
    match file::move_aside(path) {
        Ok(aside) => {
            let aside = aside.display();
            tracing::warn!(
                name: Message::UsageNotKept.name(),
                path = %shown, error, moved_to = %aside,
                "usage file cannot be used and was moved; usage is counted from zero"
            );
            Some(path.to_owned())
        }
        Err(moving) => {
            tracing::warn!(
                name: Message::UsageNotKept.name(),
                path = %shown, error, errno = errno(&moving), moving = chain(&moving),
                "usage file cannot be used or moved; usage is counted but not stored"
            );
            None
        }
    }
}

fn next_use(
    key: &EntryKey,
    counts: &UsageCounts,
    within: Duration,
    now: SystemTime,
) -> Option<PredictedUse> {
    let mut hour = HourNumber::of(now)?;
    let until = now.checked_add(within.min(MAX_AHEAD))?;
    if counts.was_used_in(hour) {
        hour = hour.next();
    }
    loop {
        let at = hour.start()?.max(now);
        if at > until {
            return None;
        }
        match counts.probability(hour) {
            Some(probability) if probability >= MIN_PROBABILITY => {
                return Some(PredictedUse { key: key.clone(), probability, at });
            }
            _ => hour = hour.next(),
        }
    }
}

#[cfg(test)]
mod tests;
