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
mod tests {
    use proptest::prelude::*;

    use super::super::sample::{GroupLimit, MachineMemory};
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        moderate: Percent::new(75),
        high: Percent::new(85),
        critical: Percent::new(95),
        min_free: Bytes::mib(64),
        quiet: Duration::from_secs(10),
    };

    fn mib(unreclaimable: u64, limit: u64) -> GroupLimit {
        GroupLimit {
            bytes: Bytes::mib(limit),
            unreclaimable: Bytes::mib(unreclaimable),
            file: "memory.max".into(),
        }
    }

    fn under(limits: Vec<GroupLimit>) -> Sample {
        Sample { limits, ..Sample::default() }
    }

    fn stalled(total_ms: u64) -> Option<Psi> {
        Some(Psi { some_total_us: total_ms * 1000, ..Psi::default() })
    }

    fn first(sample: &Sample) -> PressureLevel {
        LevelTracker::new().update(sample, &THRESHOLDS, Instant::now())
    }

    #[test]
    fn fullest_limit_sets_the_level() {
        use PressureLevel::{Critical, High, Moderate, Normal};
        let cases = [
            // 75, 85 and 95 % of 1024 - 64 MiB.
            (vec![mib(719, 1024)], Normal),
            (vec![mib(720, 1024)], Moderate),
            (vec![mib(815, 1024)], Moderate),
            (vec![mib(816, 1024)], High),
            (vec![mib(911, 1024)], High),
            (vec![mib(912, 1024)], Critical),
            (vec![mib(9999, 1024)], Critical),
            // The worst limit decides, whatever its position and its size.
            (vec![mib(10, 1024), mib(3500, 4096)], High),
            (vec![mib(3500, 4096), mib(10, 1024)], High),
            (vec![], Normal),
            // At most a quarter of a small limit is kept free.
            (vec![mib(15, 64)], Normal),
            (vec![mib(35, 64)], Normal),
            (vec![mib(36, 64)], Moderate),
            (vec![mib(46, 64)], Critical),
            (vec![mib(0, 0)], Critical),
        ];
        for (limits, level) in cases {
            assert_eq!(first(&under(limits.clone())), level, "{limits:?}");
        }
        let largest = GroupLimit { bytes: Bytes(u64::MAX), ..mib(1, 0) };
        assert_eq!(first(&under(vec![largest])), Normal);
    }

    #[test]
    fn machine_below_min_free_is_at_least_high() {
        use PressureLevel::{Critical, High, Normal};
        let cases = [
            (1024, 64, Normal),
            (1024, 63, High),
            (1024, 16, High),
            (1024, 15, Critical),
            // At most a quarter of a small machine is kept free.
            (128, 32, Normal),
            (128, 31, High),
        ];
        for (total, available, level) in cases {
            let (total, available) = (Bytes::mib(total), Bytes::mib(available));
            let machine = MachineMemory { total, available, ..MachineMemory::default() };
            let sample = Sample { machine, ..Sample::default() };
            assert_eq!(first(&sample), level, "{available} of {total}");
        }
    }

    /// Returns the pressing levels for samples given as pairs of milliseconds: the time, and the
    /// stalls until then.
    fn pressing(
        stalls: &[(u64, u64)],
        sample: impl Fn(Option<Psi>) -> Sample,
    ) -> Vec<PressureLevel> {
        let (mut judge, start) = (LevelTracker::new(), Instant::now());
        let judged = stalls.iter().map(|&(at, total)| {
            judge.update(&sample(stalled(total)), &THRESHOLDS, start + Duration::from_millis(at));
            judge.instant_level()
        });
        judged.collect()
    }

    #[test]
    fn stalls_raise_each_level_once_per_window() {
        use PressureLevel::{Critical, High, Moderate, Normal};
        type Case = (&'static str, &'static [(u64, u64)], &'static [PressureLevel]);
        let cases: &[Case] = &[
            (
                "a second each",
                &[(0, 0), (1000, 69), (2000, 139), (3000, 239), (4000, 839)],
                &[Normal, Normal, Moderate, High, Critical],
            ),
            (
                "as they add up",
                &[(0, 0), (100, 60), (200, 99), (300, 150), (1000, 600)],
                &[Normal, Normal, Moderate, High, Critical],
            ),
            (
                "not again for what was reported",
                &[(0, 0), (200, 100), (300, 130), (900, 200)],
                &[Normal, High, Normal, Normal],
            ),
            (
                "again in the next window",
                &[(0, 0), (200, 100), (1000, 100), (1100, 200)],
                &[Normal, High, Normal, High],
            ),
            ("not after a long silence", &[(0, 0), (60_000, 9000)], &[Normal, Normal]),
            ("not by another group's counter", &[(0, 5000), (1000, 600)], &[Normal, Normal]),
        ];
        for (name, stalls, expected) in cases {
            let own = pressing(stalls, |psi| Sample { psi, ..Sample::default() });
            assert_eq!(own, *expected, "{name}");
        }
    }

    #[test]
    fn first_sample_uses_the_kernel_average() {
        for (some_avg10, level) in [
            (6.9, PressureLevel::Normal),
            (7.0, PressureLevel::Moderate),
            (10.0, PressureLevel::High),
            (59.0, PressureLevel::High),
            (60.0, PressureLevel::Critical),
            (f32::NAN, PressureLevel::Normal),
        ] {
            let psi = Some(Psi { some_avg10, ..Psi::default() });
            assert_eq!(first(&Sample { psi, ..Sample::default() }), level, "{some_avg10}");
        }
    }

    #[test]
    fn machine_stalls_count_without_group_counters() {
        let stalls = [(0, 0), (1000, 200)];
        let machine = |available, psi| MachineMemory {
            total: Bytes::mib(1024),
            available: Bytes::mib(available),
            psi,
            ..MachineMemory::default()
        };
        let of = |available, own| {
            let sample = move |psi| Sample {
                machine: machine(available, psi),
                psi: own,
                ..Sample::default()
            };
            pressing(&stalls, sample)[1]
        };
        assert_eq!(of(300, None), PressureLevel::High);
        assert_eq!(of(800, None), PressureLevel::Normal);
        assert_eq!(of(300, stalled(0)), PressureLevel::Normal);
    }

    #[test]
    fn limit_events_count_only_near_the_limit() {
        let events = |max, oom_kill| Some(LimitEvents { max, oom_kill, ..LimitEvents::default() });
        let cases = [
            ("nothing new", 100, 0, events(5, 0), PressureLevel::Normal),
            ("pages of files that nobody needs", 100, 0, events(6, 0), PressureLevel::Normal),
            ("weights that are mapped", 100, 50, events(6, 0), PressureLevel::High),
            ("what cannot be reclaimed", 150, 0, events(6, 0), PressureLevel::High),
            ("a process was killed", 100, 0, events(6, 1), PressureLevel::Critical),
            ("a counter of another group", 150, 0, events(4, 0), PressureLevel::Moderate),
            ("none any more", 100, 0, None, PressureLevel::Normal),
        ];
        for (name, unreclaimable, mapped, events_after, level) in cases {
            let (mut judge, now) = (LevelTracker::new(), Instant::now());
            let mut sample = under(vec![mib(unreclaimable, 256)]);
            sample.mapped = Bytes::mib(mapped);
            sample.events = events(5, 0);
            judge.update(&sample, &THRESHOLDS, now);
            sample.events = events_after;
            judge.update(&sample, &THRESHOLDS, now);
            assert_eq!(judge.instant_level(), level, "{name}");
        }
    }

    #[test]
    fn level_rises_at_once_and_falls_stepwise() {
        use PressureLevel::{Critical, High, Moderate, Normal};
        // Columns: seconds, used MiB of 1024 with 64 kept free, the level, the pressing level.
        let steps = [
            (0, 0, Normal, Normal),
            (1, 950, Critical, Critical),
            (2, 100, Critical, Normal),
            (10, 100, Critical, Normal),
            (11, 100, High, Normal),
            (20, 730, High, Moderate),
            (21, 730, Moderate, Moderate),
            (30, 730, Moderate, Moderate),
            (39, 0, Moderate, Normal),
            (40, 0, Normal, Normal),
            (41, 730, Moderate, Moderate),
            // A long time without a sample counts as one quiet time.
            (99, 950, Critical, Critical),
            (999, 0, High, Normal),
        ];
        let (mut judge, start) = (LevelTracker::new(), Instant::now());
        for (seconds, used, level, pressing) in steps {
            let sample = under(vec![mib(used, 1024)]);
            let judged = judge.update(&sample, &THRESHOLDS, start + Duration::from_secs(seconds));
            assert_eq!((judged, judge.instant_level()), (level, pressing), "after {seconds} s");
            assert_eq!(judge.cause().is_some(), level > Normal, "after {seconds} s");
        }
    }

    #[test]
    fn cause_names_file_and_amounts() {
        let mut judge = LevelTracker::new();
        judge.update(&under(vec![mib(240, 256), mib(10, 4096)]), &THRESHOLDS, Instant::now());
        assert_eq!(
            judge.cause().unwrap().to_string(),
            "240.0 MiB of the 256.0 MiB of memory.max are in use and cannot be reclaimed"
        );
    }

    proptest! {
        #[test]
        fn level_falls_one_step_per_quiet_time(
            samples in prop::collection::vec((0_u64..5_000, 0_u64..1024), 1..60),
        ) {
            let (mut judge, mut now) = (LevelTracker::new(), Instant::now());
            let mut last = PressureLevel::Normal;
            let mut fell: Option<Instant> = None;
            for (elapsed, used) in samples {
                now += Duration::from_millis(elapsed);
                let level = judge.update(&under(vec![mib(used, 1024)]), &THRESHOLDS, now);
                prop_assert!(judge.instant_level() <= level);
                if level < last {
                    prop_assert_eq!(level, last.one_lower());
                    prop_assert!(fell.is_none_or(|at| now - at >= THRESHOLDS.quiet));
                    fell = Some(now);
                } else if level > last {
                    fell = Some(now);
                }
                last = level;
            }
        }

        #[test]
        fn arbitrary_samples_never_panic_the_judge(
            numbers in prop::collection::vec((any::<u64>(), any::<u64>(), any::<f32>()), 1..8),
        ) {
            let (mut judge, now) = (LevelTracker::new(), Instant::now());
            for (a, b, share) in numbers {
                let psi = Some(Psi { some_avg10: share, some_total_us: a, ..Psi::default() });
                let limit = GroupLimit { bytes: Bytes(b), unreclaimable: Bytes(a), file: "f".into() };
                let machine = MachineMemory { total: Bytes(a), available: Bytes(b), psi, ..MachineMemory::default() };
                let events = Some(LimitEvents { high: a, max: b, oom: b, ..LimitEvents::default() });
                let own = if share > 0.0 { psi } else { None };
                let sample = Sample {
                    mapped: Bytes(a),
                    limits: vec![limit],
                    psi: own,
                    events,
                    machine,
                    ..Sample::default()
                };
                judge.update(&sample, &THRESHOLDS, now);
                prop_assert!(judge.cause().is_none_or(|cause| !cause.to_string().is_empty()));
            }
        }
    }
}
