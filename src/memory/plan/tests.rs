//! Tests of `plan`.

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Returns a model that may be evicted at once: 100 MiB, loaded an hour ago, used a second ago.
fn model(key: &'static str) -> LoadedModel<&'static str> {
    LoadedModel {
        key,
        bytes: Bytes::mib(100),
        idle: Duration::from_secs(1),
        resident_for: HOUR,
        is_pinned: false,
        is_busy: false,
        is_loading: false,
        is_fallback: false,
        has_dependents: false,
        priority: 3,
        uses_per_hour: 10.0,
        reload_cost: Duration::from_secs(1),
    }
}

/// Runs the plan to its end and returns all actions; every evicted model is unloaded at once.
fn steps(
    pressing: PressureLevel,
    residents: &[LoadedModel<&'static str>],
    policy: EvictionOrder,
) -> Vec<PressureAction<&'static str>> {
    let (mut residents, mut done) = (residents.to_vec(), EpisodeState::default());
    let (now, mut actions) = (Instant::now(), Vec::new());
    while let Some(PlannedStep { action, .. }) = next_step(pressing, &residents, &done, policy, now)
    {
        done.record(&action, now);
        residents.retain(|resident| action != PressureAction::Evict(resident.key));
        actions.push(action);
    }
    actions
}

#[test]
fn higher_levels_extend_the_same_plan() {
    use PressureAction::{Evict, ReleaseCaches, Shed, ShrinkBatches};
    let residents = [
        LoadedModel { is_fallback: true, bytes: Bytes::mib(20), ..model("small fallback") },
        LoadedModel { is_fallback: true, ..model("fallback") },
        LoadedModel { is_pinned: true, idle: HOUR, ..model("pinned") },
        LoadedModel { is_loading: true, ..model("loading") },
        LoadedModel { resident_for: Duration::from_secs(29), priority: 5, ..model("young") },
        LoadedModel { is_busy: true, idle: Duration::ZERO, ..model("busy") },
        LoadedModel { idle: IDLE_TIME, priority: 1, ..model("idle") },
        model("used"),
    ];
    let cheap = [ReleaseCaches, ShrinkBatches, Evict("idle")];
    let used = [Evict("fallback"), Evict("used"), Evict("busy"), Shed];
    let last = [Evict("young")];
    let of = |level| steps(level, &residents, EvictionOrder::MemoryPressure);
    assert_eq!(of(PressureLevel::Normal), []);
    assert_eq!(of(PressureLevel::Moderate), cheap);
    assert_eq!(of(PressureLevel::High), [&cheap[..], &used].concat());
    assert_eq!(of(PressureLevel::Critical), [&cheap[..], &used, &last].concat());
    // The manual policy evicts nothing, so requests are shed instead.
    let manual = [ReleaseCaches, ShrinkBatches, Shed];
    assert_eq!(steps(PressureLevel::Critical, &residents, EvictionOrder::Manual), manual);
    assert_eq!(steps(PressureLevel::Moderate, &residents, EvictionOrder::Manual), manual[..2]);
}

/// Returns the keys in the order of their eviction at the high level.
fn leaving(policy: EvictionOrder, residents: &[LoadedModel<&'static str>]) -> Vec<&'static str> {
    let evicted = steps(PressureLevel::High, residents, policy).into_iter();
    evicted
        .filter_map(|a| if let PressureAction::Evict(key) = a { Some(key) } else { None })
        .collect()
}

#[test]
fn eviction_order_follows_the_policy() {
    let second = Duration::from_secs(1);
    let residents = [
        LoadedModel { priority: 1, uses_per_hour: 0.0, ..model("important") },
        LoadedModel { uses_per_hour: 11.0, ..model("used more") },
        LoadedModel { resident_for: 2 * HOUR, ..model("old") },
        LoadedModel { bytes: Bytes::mib(200), ..model("large") },
        LoadedModel { reload_cost: 3 * second, ..model("slow to load") },
        LoadedModel { idle: 2 * second, ..model("idle for longer") },
        LoadedModel { priority: 4, uses_per_hour: 1e9, ..model("unimportant") },
        LoadedModel { is_busy: true, idle: Duration::ZERO, uses_per_hour: 0.0, ..model("busy") },
    ];
    assert_eq!(
        leaving(EvictionOrder::MemoryPressure, &residents),
        [
            "unimportant",
            "large",
            "idle for longer",
            "old",
            "used more",
            "slow to load",
            "busy",
            "important"
        ]
    );
    let lru = leaving(EvictionOrder::Lru, &residents);
    assert_eq!((lru[0], lru[7]), ("idle for longer", "busy"));
    assert_eq!(leaving(EvictionOrder::Fifo, &residents)[0], "old");
}

#[test]
fn models_with_dependents_are_evicted_later() {
    let named = LoadedModel { has_dependents: true, ..model("named") };
    let used = |uses_per_hour| LoadedModel { uses_per_hour, ..model("used") };
    let first = |policy, other| leaving(policy, &[named.clone(), other])[0];
    for (other, expected) in [
        (model("equal"), "equal"),
        (used(20.0), "used"),
        (used(30.0), "named"),
        (LoadedModel { priority: 2, ..model("better priority") }, "named"),
        (LoadedModel { is_busy: true, idle: Duration::ZERO, ..model("busy") }, "named"),
    ] {
        assert_eq!(first(EvictionOrder::MemoryPressure, other.clone()), expected, "{other:?}");
    }
    // The other orders do not depend on the value.
    let later = LoadedModel { idle: Duration::ZERO, resident_for: HOUR / 2, ..model("later") };
    assert_eq!(first(EvictionOrder::Lru, later.clone()), "named");
    assert_eq!(first(EvictionOrder::Fifo, later), "named");
}

#[test]
fn nonfinite_use_rates_have_defined_order() {
    let odd = |key, uses_per_hour| LoadedModel { uses_per_hour, bytes: Bytes(0), ..model(key) };
    let residents = [
        odd("none", f64::NAN),
        odd("endless", f64::INFINITY),
        odd("less than none", f64::NEG_INFINITY),
    ];
    let order = leaving(EvictionOrder::MemoryPressure, &residents);
    assert_eq!(order, ["none", "less than none", "endless"]);
}

#[test]
fn smallest_or_pinned_fallback_stays() {
    let of = |key, mib| LoadedModel { is_fallback: true, bytes: Bytes::mib(mib), ..model(key) };
    let pinned = LoadedModel { is_pinned: true, ..of("pinned", 300) };
    let loading = LoadedModel { is_loading: true, ..of("loading", 1) };
    let all = [of("large", 200), of("small", 20), of("medium", 100), loading, pinned];
    // Uses and cost are equal, so the largest model is worth least per byte.
    assert_eq!(leaving(EvictionOrder::MemoryPressure, &all[..4]), ["large", "medium"]);
    assert_eq!(leaving(EvictionOrder::MemoryPressure, &all), ["large", "medium", "small"]);
    assert_eq!(leaving(EvictionOrder::MemoryPressure, &all[..1]), [""; 0]);
}

#[test]
fn draining_model_delays_next_eviction_below_critical() {
    let residents = [LoadedModel { is_busy: true, ..model("a") }, model("b")];
    let (start, mut done) = (Instant::now(), EpisodeState::default());
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    for action in
        [PressureAction::ReleaseCaches, PressureAction::ShrinkBatches, PressureAction::Evict("a")]
    {
        done.record(&action, start);
    }
    let next = |level, residents: &[_], seconds| {
        let step =
            next_step(level, residents, &done, EvictionOrder::MemoryPressure, after(seconds));
        step.map(|step| step.action)
    };
    assert_eq!(next(PressureLevel::High, &residents, 1), None);
    assert_eq!(next(PressureLevel::Critical, &residents, 1), Some(PressureAction::Evict("b")));
    assert_eq!(next(PressureLevel::High, &residents, 5), Some(PressureAction::Evict("b")));
    assert_eq!(next(PressureLevel::High, &residents[1..], 1), Some(PressureAction::Evict("b")));
    assert_eq!(next(PressureLevel::High, &residents[..1], 5), Some(PressureAction::Shed));
    // A model that was evicted and loaded again is a victim like any other. After 60 s the
    // caches have refilled.
    let back = [LoadedModel { resident_for: Duration::from_secs(31), ..model("a") }];
    assert_eq!(next(PressureLevel::High, &back, 50), Some(PressureAction::Evict("a")));
    assert_eq!(next(PressureLevel::High, &back, 60), Some(PressureAction::ReleaseCaches));
}

#[test]
fn shedding_is_ordered_again_after_it_stopped() {
    let resident = LoadedModel { resident_for: Duration::from_secs(1), ..model("young") };
    let (mut done, now) = (EpisodeState::default(), Instant::now());
    for action in
        [PressureAction::ReleaseCaches, PressureAction::ShrinkBatches, PressureAction::Shed]
    {
        done.record(&action, now);
    }
    let next = |done: &EpisodeState<_>| {
        next_step(
            PressureLevel::High,
            std::slice::from_ref(&resident),
            done,
            EvictionOrder::MemoryPressure,
            now,
        )
        .map(|step| step.action)
    };
    assert!(done.is_shedding());
    assert_eq!(next(&done), None);
    done.stop_shedding();
    assert_eq!(next(&done), Some(PressureAction::Shed));
}

#[test]
fn step_reason_has_numbers() {
    let idle = LoadedModel { idle: Duration::from_millis(125_400), ..model("m@1") };
    let residents = [idle, LoadedModel { is_busy: true, ..model("n@1") }];
    let reasons = |residents: &[_]| {
        let (mut done, now) = (EpisodeState::default(), Instant::now());
        let mut reasons = Vec::new();
        for _ in 0..3 {
            let step =
                next_step(PressureLevel::High, residents, &done, EvictionOrder::Lru, now).unwrap();
            done.record(&step.action, now);
            reasons.push(step.reason);
        }
        reasons
    };
    assert_eq!(
        reasons(&residents),
        [
            "high: 2 models hold 200.0 MiB; caches are released first",
            "high: 2 models hold 200.0 MiB; smaller passes need less memory",
            "high: m@1 was not used for 2m 5s (priority 3, 10.0 uses an hour, 1.0 s to load \
                 again) and frees 100.0 MiB",
        ]
    );
    assert_eq!(
        reasons(&residents[1..])[2],
        "high: n@1 is in use and finishes its requests first (priority 3, 10.0 uses an hour, \
             1.0 s to load again) and frees 100.0 MiB"
    );
}

#[test]
fn load_evicts_only_needed_and_lesser_models() {
    let of = |key, mib, priority| LoadedModel {
        bytes: Bytes::mib(mib),
        priority,
        // The value per byte is equal for all, so that priority and position decide.
        reload_cost: Duration::from_secs(mib),
        ..model(key)
    };
    let residents = [of("tiny", 10, 5), of("mid", 100, 4), of("big", 300, 3), of("best", 50, 1)];
    let cases: &[(u64, u8, Option<&[&str]>)] = &[
        (0, 3, Some(&[])),
        (10, 3, Some(&["tiny"])),
        (11, 3, Some(&["mid"])),
        (110, 3, Some(&["tiny", "mid"])),
        // The greedy pass needs all three to reach 300 MiB; then the first two are spared.
        (300, 3, Some(&["big"])),
        (305, 3, Some(&["tiny", "big"])),
        (410, 3, Some(&["tiny", "mid", "big"])),
        (411, 3, None),
        (411, 1, Some(&["mid", "big", "best"])),
        (11, 5, None),
        (u64::MAX >> 20, 1, None),
    ];
    for (needed, priority, expected) in cases {
        let needed = Bytes::mib(*needed);
        let victims =
            select_evictions(needed, *priority, &residents, EvictionOrder::MemoryPressure);
        assert_eq!(victims.as_deref(), *expected, "{needed} at {priority}");
    }
    let lru = select_evictions(Bytes::mib(411), 5, &residents, EvictionOrder::Lru);
    assert!(lru.is_some(), "priorities are not looked at");
    assert_eq!(select_evictions(Bytes(1), 1, &residents, EvictionOrder::Manual), None);
}

#[test]
fn load_spares_young_and_evicts_lapsed_models() {
    let young = LoadedModel { resident_for: Duration::from_secs(29), ..model("young") };
    let claimed = LoadedModel {
        priority: 1,
        idle: DISPLACEMENT_IDLE_TIME - Duration::from_secs(1),
        ..model("a")
    };
    let lapsed = LoadedModel { idle: DISPLACEMENT_IDLE_TIME, ..claimed.clone() };
    let loading = LoadedModel { is_loading: true, ..model("loading") };
    let pinned = LoadedModel { is_pinned: true, ..model("pinned") };
    let fallback = LoadedModel { is_fallback: true, ..model("fallback") };
    let busy = LoadedModel { is_busy: true, ..model("busy") };
    // Columns: models in memory, the victim now, MiB that could be freed at some time.
    let cases: &[(&[&LoadedModel<_>], Option<&str>, u64)] = &[
        (&[&young], None, 100),
        (&[&claimed], None, 100),
        (&[&lapsed], Some("a"), 100),
        (&[&loading], None, 100),
        (&[&pinned], None, 0),
        (&[&fallback], None, 0),
        (&[&busy], Some("busy"), 100),
        (&[&busy, &model("quiet")], Some("quiet"), 200),
    ];
    for (residents, victim, ever) in cases {
        let residents: Vec<_> = residents.iter().copied().cloned().collect();
        let victims = select_evictions(Bytes(1), 3, &residents, EvictionOrder::MemoryPressure);
        assert_eq!(victims, victim.map(|key| vec![key]), "{residents:?}");
        let ever = Bytes::mib(*ever);
        assert_eq!(
            evictable_bytes(&residents, EvictionOrder::MemoryPressure),
            ever,
            "{residents:?}"
        );
        assert_eq!(evictable_bytes(&residents, EvictionOrder::Manual), Bytes(0));
    }
}

#[test]
fn alternating_models_respect_minimum_residency() {
    // Only one of the two models fits. Requests alternate between them every second for ten
    // minutes.
    let mut there: Option<(&str, u64)> = None;
    let mut loads = 0;
    for second in 0..600_u64 {
        let wanted = if second % 2 == 0 { "a" } else { "b" };
        let residents: Vec<_> = there
            .iter()
            .map(|&(key, since)| LoadedModel {
                resident_for: Duration::from_secs(second - since),
                ..model(key)
            })
            .collect();
        let is_there = residents.iter().any(|resident| resident.key == wanted);
        let needed = if residents.is_empty() { Bytes(0) } else { Bytes::mib(100) };
        let fits = select_evictions(needed, 3, &residents, EvictionOrder::MemoryPressure).is_some();
        if !is_there && fits {
            (there, loads) = (Some((wanted, second)), loads + 1);
        }
    }
    assert!((2..=20).contains(&loads), "{loads}");
}

fn residents() -> impl Strategy<Value = Vec<LoadedModel<usize>>> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let resident =
        (flags, 0_u64..1 << 30, 0_u64..200, 0_u64..200, 1_u8..=5, any::<f64>(), 0_u64..9);
    prop::collection::vec(resident, 0..10).prop_map(|residents| {
        let models = residents.into_iter().enumerate();
        models
            .map(|(key, (flags, bytes, idle, age, priority, uses_per_hour, cost))| LoadedModel {
                key,
                bytes: Bytes(bytes),
                idle: Duration::from_secs(idle),
                resident_for: Duration::from_secs(age),
                is_pinned: flags.0 && flags.1,
                is_busy: flags.1,
                is_loading: flags.2 && flags.3,
                is_fallback: flags.3,
                has_dependents: flags.4,
                priority,
                uses_per_hour,
                reload_cost: Duration::from_secs(cost),
            })
            .collect()
    })
}

fn policy() -> impl Strategy<Value = EvictionOrder> {
    prop::sample::select(vec![
        EvictionOrder::MemoryPressure,
        EvictionOrder::Lru,
        EvictionOrder::Fifo,
        EvictionOrder::Manual,
    ])
}

fn level() -> impl Strategy<Value = PressureLevel> {
    prop::sample::select(vec![
        PressureLevel::Moderate,
        PressureLevel::High,
        PressureLevel::Critical,
    ])
}

fn has_fallback(residents: &[LoadedModel<usize>]) -> bool {
    residents.iter().any(|resident| resident.is_fallback && !resident.is_loading)
}

proptest! {
    #[test]
    fn plan_keeps_fallback_pinned_and_loading_models(
        residents in residents(), policy in policy(), level in level(), leaves: bool,
    ) {
        let (mut left, mut done, now) = (residents.clone(), EpisodeState::default(), Instant::now());
        let mut steps = 0;
        while let Some(step) = next_step(level, &left, &done, policy, now) {
            prop_assert!(!step.reason.contains('\n'));
            done.record(&step.action, now);
            if let PressureAction::Evict(key) = step.action {
                prop_assert!(!residents[key].is_pinned && !residents[key].is_loading);
                // A model that never finishes its requests is ordered to unload only once, too.
                left.retain(|resident| !leaves || resident.key != key);
            }
            steps += 1;
            prop_assert!(steps <= residents.len() + 3);
        }
        prop_assert_eq!(has_fallback(&left), has_fallback(&residents));
        if level == PressureLevel::Critical && leaves && policy != EvictionOrder::Manual {
            let free = left.iter().filter(|r| !r.is_pinned && !r.is_loading);
            prop_assert!(free.clone().count() <= 1);
            prop_assert!(free.clone().all(|resident| resident.is_fallback));
        }
    }

    #[test]
    fn load_victims_are_sufficient_and_necessary(
        residents in residents(), policy in policy(), needed in 0_u64..1 << 32, priority in 1_u8..=5,
    ) {
        let needed = Bytes(needed);
        let ever = evictable_bytes(&residents, policy);
        if let Some(victims) = select_evictions(needed, priority, &residents, policy) {
            let bytes = |key: &usize| residents[*key].bytes.0;
            let freed: u64 = victims.iter().map(bytes).sum();
            prop_assert!(needed <= Bytes(freed) && needed <= ever);
            for key in &victims {
                let resident = &residents[*key];
                prop_assert!(!resident.is_pinned && !resident.is_loading);
                prop_assert!(resident.resident_for >= MIN_RESIDENCY);
                prop_assert!(freed - bytes(key) < needed.0);
            }
            let kept: Vec<_> =
                residents.iter().filter(|r| !victims.contains(&r.key)).cloned().collect();
            prop_assert_eq!(has_fallback(&kept), has_fallback(&residents));
        }
    }
}
