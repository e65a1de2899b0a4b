//! Judges from one sample after the other how short memory is.
//!
//! The judge is pure: samples and instants go in, a level comes out. The level rises at once and
//! falls one step after each quiet time. So a shortage that pauses for a moment does not make the
//! daemon take memory again.
//!
//! There are two results. The *level* is held for the quiet time; it decides what may start
//! (preloading) and what must continue (shedding). The *pressing* level is justified by the last
//! sample alone; it decides whether more memory must be freed. A plan that followed the held level
//! would empty the memory during the quiet time, although one step had already ended the shortage.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::sample::{GroupLimit, LimitEvents, Psi, Sample};
use crate::base::units::{Bytes, Percent};

/// Judged shortage of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PressureLevel {
    /// Memory is sufficient.
    #[default]
    Normal,
    /// Unused memory should be freed.
    Moderate,
    /// Memory in use should be freed, too.
    High,
    /// Everything that can be freed must be freed.
    Critical,
}

impl PressureLevel {
    /// Returns the name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Moderate => "moderate",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    const fn one_lower(self) -> Self {
        match self {
            Self::Normal | Self::Moderate => Self::Normal,
            Self::High => Self::Moderate,
            Self::Critical => Self::High,
        }
    }
}

impl fmt::Display for PressureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Thresholds of the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Start of [`PressureLevel::Moderate`], as a share of the [usable](Self::usable) part of a
    /// limit.
    pub moderate: Percent,
    /// Start of [`PressureLevel::High`], likewise.
    pub high: Percent,
    /// Start of [`PressureLevel::Critical`], likewise.
    pub critical: Percent,
    /// Bytes to keep free of every limit and of the machine's memory.
    pub min_free: Bytes,
    /// Time without a cause after which the level falls one step.
    pub quiet: Duration,
}

impl Thresholds {
    /// Returns the usable part of `limit`: all but `min_free`, which counts for at most a quarter
    /// of the limit. Otherwise almost nothing would be usable under a limit near or below
    /// `min_free`, and an idle daemon would always be at the critical level.
    pub fn usable(&self, limit: Bytes) -> Bytes {
        Bytes(limit.0.saturating_sub(self.kept_free(limit).0))
    }

    /// Returns the headroom: the bytes that may be allocated before [`PressureLevel::High`] begins.
    /// A model that was admitted with more would be evicted at once. The `mapped` bytes of weights
    /// that are read in place count as used: the kernel could reclaim them, but they would be read
    /// again and again.
    pub fn headroom(&self, sample: &Sample, mapped: Bytes) -> Bytes {
        let below = |limit: &GroupLimit| {
            let used = limit.unreclaimable.0.saturating_add(mapped.0);
            self.high.of(self.usable(limit.bytes)).0.saturating_sub(used)
        };
        let machine = &sample.machine;
        let available = machine.available.0.saturating_sub(self.kept_free(machine.total).0);
        Bytes(sample.limits.iter().map(below).fold(available, u64::min))
    }

    fn kept_free(&self, whole: Bytes) -> Bytes {
        self.min_free.min(Bytes(whole.0 / 4))
    }

    /// Returns the level of `used` bytes under `limit`. A limit of 0 is always exceeded.
    fn level(&self, used: Bytes, limit: Bytes) -> PressureLevel {
        let usable = self.usable(limit);
        let from = [
            (self.critical, PressureLevel::Critical),
            (self.high, PressureLevel::High),
            (self.moderate, PressureLevel::Moderate),
        ];
        let reached = from.into_iter().find(|(share, _)| used >= share.of(usable));
        reached.map_or(PressureLevel::Normal, |(_, level)| level)
    }
}

/// Time over which stalls are summed up. The thresholds in [`STALLS`] are taken from triggers with
/// this window.
const WINDOW: Duration = Duration::from_secs(1);

/// Longest time between two samples whose difference is used. A longer one does not show the last
/// moment; the kernel's average over 10 s does.
const MAX_SAMPLE_GAP: Duration = Duration::from_secs(10);

/// Percentages of [`WINDOW`] with some task waiting for memory, and the levels that begin there.
///
/// Android's lmkd is notified of low memory pressure at 70 ms of 1 s and of medium pressure at
/// 100 ms
/// (<https://android.googlesource.com/platform/system/memory/lmkd/+/f8fa4a6ef7325447f3d8551f2badbb5c9ae308b5/lmkd.cpp>,
/// `psi_thresholds`). The latter is also the share at which systemd notifies services, 200 ms of
/// 2 s (<https://github.com/systemd/systemd/blob/v257/docs/MEMORY_PRESSURE.md>). systemd-oomd kills
/// when 60 % lasts for 30 s (<https://www.freedesktop.org/software/systemd/man/257/oomd.conf.html>,
/// `DefaultMemoryPressureLimit=`). It uses the time in which all tasks wait, which is never more
/// than the time in which some do.
const STALLS: [(f32, PressureLevel); 3] =
    [(60.0, PressureLevel::Critical), (10.0, PressureLevel::High), (7.0, PressureLevel::Moderate)];

/// Cause of a level.
#[derive(Clone, Debug, PartialEq)]
pub enum PressureCause {
    /// A limit is near.
    Limit {
        /// Bytes of the limited group that the kernel cannot reclaim.
        unreclaimable: Bytes,
        /// The limit.
        limit: Bytes,
        /// File that contains the limit.
        file: PathBuf,
    },
    /// The machine has little memory left.
    Machine {
        /// Available bytes.
        available: Bytes,
        /// Bytes that should be available.
        kept_free: Bytes,
    },
    /// Tasks wait for memory.
    Stall {
        /// Percentage of the time in which some task waited.
        share: f32,
        /// The time is that of the whole machine, because the figure of this group is not known.
        machine: bool,
    },
    /// This group reached its limits since the last sample.
    Events {
        /// Number of times at `memory.high`, where the kernel throttles the group.
        high: u64,
        /// Number of times at `memory.max`, where the kernel reclaims pages of the group.
        max: u64,
        /// Number of times without anything left to reclaim.
        oom: u64,
    },
}

impl fmt::Display for PressureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { unreclaimable, limit, file } => write!(
                f,
                "{unreclaimable} of the {limit} of {} are in use and cannot be reclaimed",
                file.display()
            ),
            Self::Machine { available, kept_free } => {
                write!(f, "the machine has {available} available, and {kept_free} must stay free")
            }
            Self::Stall { share, machine: false } => {
                write!(f, "tasks waited for memory {share:.1} % of the time")
            }
            Self::Stall { share, machine: true } => {
                write!(f, "tasks of the machine waited for memory {share:.1} % of the time")
            }
            Self::Events { high, max, oom } => write!(
                f,
                "since the last sample, memory.high was reached {high} times, memory.max {max} \
                 times, and memory ran out {oom} times"
            ),
        }
    }
}

/// Judge of the samples, one for the life of the process. See the module documentation.
#[derive(Debug, Default)]
pub struct LevelTracker {
    level: PressureLevel,
    instant_level: PressureLevel,
    cause: Option<PressureCause>,
    /// Instant at which the level last had a cause or fell one step.
    since: Option<Instant>,
    own_stalls: StallTracker,
    machine_stalls: StallTracker,
    events: Option<LimitEvents>,
}

impl LevelTracker {
    /// Creates a judge without samples, at [`PressureLevel::Normal`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges `sample` and returns the new level. Call this about once a second, and after each
    /// step of a plan.
    pub fn update(
        &mut self,
        sample: &Sample,
        thresholds: &Thresholds,
        now: Instant,
    ) -> PressureLevel {
        let (pressing, cause) = match self.evaluate(sample, thresholds, now) {
            Some((level, cause)) => (level, Some(cause)),
            None => (PressureLevel::Normal, None),
        };
        self.instant_level = pressing;
        let quiet = |since: Instant| now.saturating_duration_since(since) >= thresholds.quiet;
        // Equal levels restart the quiet time, too: the cause still exists.
        if pressing >= self.level {
            (self.level, self.cause, self.since) = (pressing, cause, Some(now));
        } else if self.since.is_none_or(quiet) {
            (self.level, self.since) = (self.level.one_lower(), Some(now));
            self.cause = self.cause.take().filter(|_| self.level > PressureLevel::Normal);
        }
        self.level
    }

    /// Returns the level that the last sample alone justifies; it never exceeds the held level.
    /// [`super::plan::next_step`] uses it.
    pub fn instant_level(&self) -> PressureLevel {
        self.instant_level
    }

    /// Returns the last cause of the level, for the journal; `None` at [`PressureLevel::Normal`].
    pub fn cause(&self) -> Option<&PressureCause> {
        self.cause.as_ref()
    }

    /// Returns the highest level that `sample` justifies, with its cause. The first of several
    /// equal causes counts.
    fn evaluate(
        &mut self,
        sample: &Sample,
        thresholds: &Thresholds,
        now: Instant,
    ) -> Option<(PressureLevel, PressureCause)> {
        let others = [
            self.level_of_events(sample, thresholds),
            level_of_machine(sample, thresholds),
            self.level_of_stalls(sample, thresholds, now),
        ];
        let reasons = levels_of_limits(sample, thresholds).chain(others.into_iter().flatten());
        let reasons = reasons.filter(|(level, _)| *level > PressureLevel::Normal);
        reasons.reduce(|first, next| if next.0 > first.0 { next } else { first })
    }

    /// Judges the events at the group's limits since the last sample.
    ///
    /// Pages of files count against `memory.max` and `memory.high`, too, so merely reading a
    /// package drives a group to them without harm. An event therefore counts only when the needed
    /// memory of the group, mapped weights included, reaches the moderate threshold of a limit.
    /// Real trouble of the kernel shows in the stalls.
    fn level_of_events(
        &mut self,
        sample: &Sample,
        thresholds: &Thresholds,
    ) -> Option<(PressureLevel, PressureCause)> {
        let now = sample.events?;
        let before = self.events.replace(now)?;
        let high = now.high.saturating_sub(before.high);
        let max = now.max.saturating_sub(before.max);
        let killed = now.oom_kill.saturating_sub(before.oom_kill);
        let oom = now.oom.saturating_sub(before.oom).max(killed);
        let needed = sample.limits.iter().map(|limit| {
            let needed = Bytes(limit.unreclaimable.0.saturating_add(sample.mapped.0));
            thresholds.level(needed, limit.bytes)
        });
        // A limit that is not visible counts as near.
        let near = needed.max().is_none_or(|level| level > PressureLevel::Normal);
        let level = if oom > 0 {
            PressureLevel::Critical
        } else if near && (high > 0 || max > 0) {
            PressureLevel::High
        } else {
            PressureLevel::Normal
        };
        Some((level, PressureCause::Events { high, max, oom }))
    }

    /// Judges the stalls of this group, or of the machine if those of the group are not known. The
    /// machine's stalls count only when its memory is short: other groups may stall within their
    /// own limits, and freeing memory here would not help them.
    fn level_of_stalls(
        &mut self,
        sample: &Sample,
        thresholds: &Thresholds,
        now: Instant,
    ) -> Option<(PressureLevel, PressureCause)> {
        if let Some(psi) = &sample.psi {
            let (level, share) = self.own_stalls.level(psi, now);
            return Some((level, PressureCause::Stall { share, machine: false }));
        }
        let machine = &sample.machine;
        let (level, share) = self.machine_stalls.level(machine.psi.as_ref()?, now);
        let used = Bytes(machine.total.0.saturating_sub(machine.available.0));
        let short = thresholds.level(used, machine.total) > PressureLevel::Normal;
        short.then_some((level, PressureCause::Stall { share, machine: true }))
    }
}

/// Judges each limit, of this group and of the groups above it.
fn levels_of_limits<'a>(
    sample: &'a Sample,
    thresholds: &'a Thresholds,
) -> impl Iterator<Item = (PressureLevel, PressureCause)> + 'a {
    sample.limits.iter().map(|limit| {
        let level = thresholds.level(limit.unreclaimable, limit.bytes);
        let (unreclaimable, file) = (limit.unreclaimable, limit.file.clone());
        (level, PressureCause::Limit { unreclaimable, limit: limit.bytes, file })
    })
}

/// Judges the available memory of the machine: high below the bytes to keep free, critical below a
/// quarter of them.
fn level_of_machine(
    sample: &Sample,
    thresholds: &Thresholds,
) -> Option<(PressureLevel, PressureCause)> {
    let available = sample.machine.available;
    let kept_free = thresholds.kept_free(sample.machine.total);
    if available >= kept_free {
        return None;
    }
    let level =
        if available.0 < kept_free.0 / 4 { PressureLevel::Critical } else { PressureLevel::High };
    Some((level, PressureCause::Machine { available, kept_free }))
}

/// Stalls, summed up in windows as the kernel's triggers do. Each level is reported at most once
/// per window.
///
/// The kernel's average over 10 s cannot guide the next step. It takes seconds to rise, and after
/// one step has ended the shortage it takes as long to fall. In that time the plan would free
/// everything.
#[derive(Debug, Default)]
struct StallTracker {
    window: Option<StallWindow>,
}

#[derive(Clone, Copy, Debug)]
struct StallWindow {
    begin: Instant,
    /// Counter of the kernel at `begin`.
    total_us: u64,
    /// Highest level that was reported in this window.
    reported: PressureLevel,
}

impl StallTracker {
    /// Returns the level, unless it was already reported in this window, and the share in percent.
    fn level(&mut self, psi: &Psi, now: Instant) -> (PressureLevel, f32) {
        let fresh = StallWindow {
            begin: now,
            total_us: psi.some_total_us,
            reported: PressureLevel::Normal,
        };
        // A counter that went back belongs to another group.
        let window = self.window.filter(|window| {
            window.total_us <= psi.some_total_us
                && now.saturating_duration_since(window.begin) <= MAX_SAMPLE_GAP
        });
        let Some(window) = window else {
            self.window = Some(fresh);
            return (of_share(psi.some_avg10), psi.some_avg10);
        };
        let elapsed = now.saturating_duration_since(window.begin);
        let stalled = Duration::from_micros(psi.some_total_us - window.total_us);
        // Dividing by at least WINDOW keeps a short burst at the start of a window from looking
        // like a long stall.
        let share = 100.0 * stalled.as_secs_f32() / elapsed.max(WINDOW).as_secs_f32();
        let level = of_share(share);
        let reported = window.reported.max(level);
        self.window =
            Some(if elapsed >= WINDOW { fresh } else { StallWindow { reported, ..window } });
        (if level > window.reported { level } else { PressureLevel::Normal }, share)
    }
}

fn of_share(percent: f32) -> PressureLevel {
    let reached = STALLS.into_iter().find(|(share, _)| percent >= *share);
    reached.map_or(PressureLevel::Normal, |(_, level)| level)
}

#[cfg(test)]
mod tests;
