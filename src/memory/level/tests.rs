//! Tests of `level`.

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
fn pressing(stalls: &[(u64, u64)], sample: impl Fn(Option<Psi>) -> Sample) -> Vec<PressureLevel> {
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
        let sample =
            move |psi| Sample { machine: machine(available, psi), psi: own, ..Sample::default() };
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
