//! The plan: what to give up next when memory is short, and what to evict so that a load fits.
//!
//! Pure: what there is, what was done and a moment in, one step out. The caller performs the step, measures, and asks
//! again with what the new sample is [pressing](super::level::Judge::pressing) for, so that nothing more leaves than
//! has to. The order is that of what a step costs those who use the models: caches, smaller passes, models that nobody
//! uses, models in use, requests; in extremity all but one fallback.
//!
//! Invariants: pinned models and models on their way into memory never leave; of the fallbacks in memory one always
//! stays; a plan ends, because each step is taken out of what is left to do.

use std::cmp::Ordering;
use std::fmt;
use std::time::{Duration, Instant};

use super::level::Level;
use crate::units::Bytes;

/// How long without a request makes a model idle, so that it leaves at [`Level::Moderate`] already: as long as a client
/// that polls once a minute needs to be recognised as one that comes back.
pub const IDLE: Duration = Duration::from_secs(60);

/// How long a model stays after it was loaded, except at [`Level::Critical`]. With the time for which an evicted model
/// stays away it bounds how often two models that do not fit together can take turns.
pub const RESIDENCY: Duration = Duration::from_secs(30);

/// How long without a request ends what a better priority protects from: the load of a model of a worse one.
pub const CLAIM: Duration = Duration::from_secs(600);

/// Caches fill again while a shortage lasts; before this time it is not worth while to empty them once more.
const REFILLED: Duration = Duration::from_secs(60);

/// How long a model that was told to leave is waited for before another one is, below [`Level::Critical`].
const DRAINED: Duration = Duration::from_secs(5);

/// Something in memory, or on its way there.
#[derive(Clone, Debug, PartialEq)]
pub struct Resident<K> {
    /// What it is called.
    pub key: K,
    /// What comes back when it leaves.
    pub bytes: Bytes,
    /// How long ago its last request ended, or it was loaded; nothing while it is busy.
    pub idle: Duration,
    /// How long ago it was loaded.
    pub resident_for: Duration,
    /// Whether it stays whatever happens.
    pub pinned: bool,
    /// Whether requests are in flight, which it finishes before it leaves.
    pub busy: bool,
    /// Whether it is still on its way into memory.
    pub loading: bool,
    /// Whether it may answer for others; one of these stays.
    pub fallback: bool,
    /// From 1, kept longest, to 5, leaves first.
    pub priority: u8,
    /// Requests an hour, as counted or expected.
    pub uses_per_hour: f64,
    /// How long loading it again takes.
    pub reload_cost: Duration,
}

/// Which model leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// That of the worst priority; of these one that is not busy, of these the one worth least.
    MemoryPressure,
    /// The one idle for the longest time. Priorities do not count.
    Lru,
    /// The one loaded first. Priorities do not count.
    Fifo,
    /// None ever.
    Manual,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<K> {
    /// Give back scratch memory and what the allocator keeps.
    ReleaseCaches,
    /// Compute fewer tokens at a time until the level is normal again.
    ShrinkBatches,
    /// Drain this one and drop its weights.
    Evict(K),
    /// Refuse requests, with when to come again, until the level is lower again.
    Shed,
}

/// What to do next, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<K> {
    /// What to do.
    pub action: Action<K>,
    /// A sentence with numbers, for the journal.
    pub reason: String,
}

/// What was done since the level was last normal; a new one begins with every such episode.
#[derive(Clone, Debug)]
pub struct Done<K> {
    caches: Option<Instant>,
    batches: bool,
    shed: bool,
    /// Each model once, with when it was told to leave last.
    evicted: Vec<(K, Instant)>,
}

impl<K> Default for Done<K> {
    fn default() -> Self {
        Self { caches: None, batches: false, shed: false, evicted: Vec::new() }
    }
}

impl<K: Clone + PartialEq> Done<K> {
    /// Remembers that `action` was ordered, whether or not it is finished.
    pub fn record(&mut self, action: &Action<K>, now: Instant) {
        match action {
            Action::ReleaseCaches => self.caches = Some(now),
            Action::ShrinkBatches => self.batches = true,
            Action::Evict(key) => {
                self.evicted.retain(|(other, _)| other != key);
                self.evicted.push((key.clone(), now));
            }
            Action::Shed => self.shed = true,
        }
    }

    /// How long ago `resident` was told to leave; `None` when it was not, or left and came back.
    fn leaving_for(&self, resident: &Resident<K>, now: Instant) -> Option<Duration> {
        let (_, at) = self.evicted.iter().find(|(key, _)| *key == resident.key)?;
        let ago = now.saturating_duration_since(*at);
        (resident.resident_for >= ago).then_some(ago)
    }
}

/// The next step at what the last sample is `pressing` for; `None` when nothing more is needed or left, or when a model
/// that was told to leave is still finishing its requests.
///
/// At moderate, caches, passes and models idle for [`IDLE`]. At high also models in use that are no younger than
/// [`RESIDENCY`], then requests. At critical also younger ones, until only one fallback is left, the smallest.
pub fn next<K: Clone + PartialEq + fmt::Display>(
    pressing: Level,
    residents: &[Resident<K>],
    done: &Done<K>,
    policy: Policy,
    now: Instant,
) -> Option<Step<K>> {
    if pressing == Level::Normal {
        return None;
    }
    let scene = Scene { pressing, residents, done, policy, now };
    if done.caches.is_none_or(|at| now.saturating_duration_since(at) >= REFILLED) {
        return Some(
            scene.step(Action::ReleaseCaches, "what they can compute without comes first"),
        );
    }
    if !done.batches {
        return Some(scene.step(Action::ShrinkBatches, "smaller passes need less"));
    }
    if pressing < Level::Critical && scene.is_waiting() {
        return None;
    }
    if let Some(idle) = scene.evict(|resident| !resident.busy && resident.idle >= IDLE) {
        return Some(idle);
    }
    if pressing == Level::Moderate {
        return None;
    }
    if let Some(used) = scene.evict(|resident| resident.resident_for >= RESIDENCY) {
        return Some(used);
    }
    if !done.shed {
        return Some(scene.step(Action::Shed, "no other may leave, so requests have to wait"));
    }
    if pressing == Level::Critical { scene.evict(|_| true) } else { None }
}

/// The arguments of [`next`].
struct Scene<'a, K> {
    pressing: Level,
    residents: &'a [Resident<K>],
    done: &'a Done<K>,
    policy: Policy,
    now: Instant,
}

impl<K: Clone + PartialEq + fmt::Display> Scene<'_, K> {
    fn is_waiting(&self) -> bool {
        let leaving = |resident| self.done.leaving_for(resident, self.now);
        self.residents.iter().any(|resident| leaving(resident).is_some_and(|ago| ago < DRAINED))
    }

    /// The eviction of the first in the order of the policy of those that are `ready`.
    fn evict(&self, ready: impl Fn(&Resident<K>) -> bool) -> Option<Step<K>> {
        let there = |resident: &Resident<K>| self.done.leaving_for(resident, self.now).is_none();
        let victims = movable(self.residents, self.policy).filter(|r| there(r) && ready(r));
        let victim = victims.min_by(|a, b| order(self.policy, a, b))?;
        let reason = format!("{}: {}", self.pressing, describe(victim));
        Some(Step { action: Action::Evict(victim.key.clone()), reason })
    }

    /// A step that is no model's.
    fn step(&self, action: Action<K>, why: &str) -> Step<K> {
        let held = Bytes(self.residents.iter().fold(0, |sum, r| r.bytes.0.saturating_add(sum)));
        let count = self.residents.len();
        let models = if count == 1 { "model holds" } else { "models hold" };
        Step { action, reason: format!("{}: {count} {models} {held}; {why}", self.pressing) }
    }
}

fn describe<K: fmt::Display>(victim: &Resident<K>) -> String {
    let Resident { key, bytes, priority, .. } = victim;
    let use_of_it = if victim.busy {
        "is in use and finishes its requests first".to_owned()
    } else {
        // Fractions of a second say nothing here.
        let idle = Duration::from_secs(victim.idle.as_secs());
        format!("was not used for {}", humantime::format_duration(idle))
    };
    format!(
        "{key} {use_of_it} (priority {priority}, {:.1} uses an hour, {:.1} s to load again) and \
         gives back {bytes}",
        victim.uses_per_hour,
        victim.reload_cost.as_secs_f64()
    )
}

/// What to evict so that a load of a model of this `priority` gets `needed` bytes more: first those that the policy
/// names first, and of these none that the others make unnecessary. `None` when that much cannot leave now; whether it
/// ever could is told by [`could_leave`].
///
/// A load is one client's wish, so it is given less than a shortage is. Models younger than [`RESIDENCY`] stay. Busy
/// ones may leave, as under steady use no model would get its turn otherwise, but after those that are not. Under
/// [`Policy::MemoryPressure`] a model of a better priority stays, unless nobody has used it for [`CLAIM`]: what was
/// marked as important yesterday must not keep out what is asked for today.
///
/// One byte is a way to ask for the place of one model.
pub fn victims_for<K: Clone>(
    needed: Bytes,
    priority: u8,
    residents: &[Resident<K>],
    policy: Policy,
) -> Option<Vec<K>> {
    let yields = |resident: &Resident<K>| {
        policy != Policy::MemoryPressure
            || resident.priority >= priority
            || (!resident.busy && resident.idle >= CLAIM)
    };
    let mut order_of_leaving: Vec<_> = movable(residents, policy)
        .filter(|resident| resident.resident_for >= RESIDENCY && yields(resident))
        .collect();
    order_of_leaving.sort_by(|a, b| order(policy, a, b));
    let mut freed = 0_u64;
    let mut victims = Vec::new();
    for victim in order_of_leaving {
        if freed >= needed.0 {
            break;
        }
        freed = freed.saturating_add(victim.bytes.0);
        victims.push(victim);
    }
    if freed < needed.0 {
        return None;
    }
    // Backwards, so that of two that could stay it is the one worth more.
    for index in (0..victims.len()).rev() {
        let rest = victims.iter().enumerate().filter(|(other, _)| *other != index);
        let rest = rest.fold(0_u64, |sum, (_, victim)| sum.saturating_add(victim.bytes.0));
        if rest >= needed.0 {
            victims.remove(index);
        }
    }
    Some(victims.into_iter().map(|victim| victim.key.clone()).collect())
}

/// What [`victims_for`] could free at best, once all that are being loaded, young or better have had their time: a
/// load that needs more than this will not fit however often it is tried.
pub fn could_leave<K>(residents: &[Resident<K>], policy: Policy) -> Bytes {
    let stays = staying_fallback(residents);
    let leaves = residents.iter().enumerate().filter(|(index, resident)| {
        policy != Policy::Manual && !resident.pinned && Some(*index) != stays
    });
    Bytes(leaves.fold(0, |sum, (_, resident)| resident.bytes.0.saturating_add(sum)))
}

/// Those that may leave at all.
fn movable<K>(residents: &[Resident<K>], policy: Policy) -> impl Iterator<Item = &Resident<K>> {
    let stays = staying_fallback(residents);
    residents.iter().enumerate().filter_map(move |(index, resident)| {
        let stays =
            policy == Policy::Manual || resident.pinned || resident.loading || Some(index) == stays;
        (!stays).then_some(resident)
    })
}

/// The fallback that always stays: the smallest, or a pinned one, which stays anyway and makes the others free to go.
fn staying_fallback<K>(residents: &[Resident<K>]) -> Option<usize> {
    let fallbacks = residents.iter().enumerate().filter(|(_, r)| r.fallback && !r.loading);
    fallbacks.min_by_key(|(_, r)| (!r.pinned, r.bytes)).map(|(index, _)| index)
}

/// Less is who leaves first.
fn order<K>(policy: Policy, a: &Resident<K>, b: &Resident<K>) -> Ordering {
    let longest_idle = || b.idle.cmp(&a.idle);
    let not_busy = || a.busy.cmp(&b.busy);
    match policy {
        Policy::MemoryPressure => (b.priority.cmp(&a.priority))
            .then_with(not_busy)
            .then_with(|| value(a).total_cmp(&value(b)))
            .then_with(longest_idle),
        Policy::Lru => not_busy().then_with(longest_idle),
        Policy::Fifo => b.resident_for.cmp(&a.resident_for),
        Policy::Manual => Ordering::Equal,
    }
}

/// What keeping a byte of it in memory saves: expected uses an hour × the time that loading it again takes ÷ its bytes.
///
/// It is the value of GreedyDual-Size-Frequency, frequency × cost ÷ size (Cherkasova 1998,
/// <https://www.hpl.hp.com/techreports/98/HPL-98-69R1.html>); in place of its clock, time itself makes what was used
/// often once worth less. The 1 that is added makes one that was never counted be told by how long ago it was used.
fn value<K>(resident: &Resident<K>) -> f64 {
    let hours_idle = resident.idle.as_secs_f64() / 3600.0;
    // What is not a number counts as 0.
    let uses = (resident.uses_per_hour.max(0.0) + 1.0) / (1.0 + hours_idle);
    // What takes no time to load is still worth more the smaller it is.
    let cost = resident.reload_cost.as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let bytes = resident.bytes.0.max(1) as f64;
    uses * cost / bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// One that may leave at once: 100 MiB, loaded an hour ago, used a second ago.
    fn model(key: &'static str) -> Resident<&'static str> {
        Resident {
            key,
            bytes: Bytes::mib(100),
            idle: Duration::from_secs(1),
            resident_for: HOUR,
            pinned: false,
            busy: false,
            loading: false,
            fallback: false,
            priority: 3,
            uses_per_hour: 10.0,
            reload_cost: Duration::from_secs(1),
        }
    }

    /// All steps until there is none, each model leaving at once.
    fn steps(
        pressing: Level,
        residents: &[Resident<&'static str>],
        policy: Policy,
    ) -> Vec<Action<&'static str>> {
        let (mut residents, mut done) = (residents.to_vec(), Done::default());
        let (now, mut actions) = (Instant::now(), Vec::new());
        while let Some(Step { action, .. }) = next(pressing, &residents, &done, policy, now) {
            done.record(&action, now);
            residents.retain(|resident| action != Action::Evict(resident.key));
            actions.push(action);
        }
        actions
    }

    #[test]
    fn each_level_goes_further_in_the_same_order() {
        use Action::{Evict, ReleaseCaches, Shed, ShrinkBatches};
        let residents = [
            Resident { fallback: true, bytes: Bytes::mib(20), ..model("small fallback") },
            Resident { fallback: true, ..model("fallback") },
            Resident { pinned: true, idle: HOUR, ..model("pinned") },
            Resident { loading: true, ..model("loading") },
            Resident { resident_for: Duration::from_secs(29), priority: 5, ..model("young") },
            Resident { busy: true, idle: Duration::ZERO, ..model("busy") },
            Resident { idle: IDLE, priority: 1, ..model("idle") },
            model("used"),
        ];
        let cheap = [ReleaseCaches, ShrinkBatches, Evict("idle")];
        let used = [Evict("fallback"), Evict("used"), Evict("busy"), Shed];
        let last = [Evict("young")];
        let of = |level| steps(level, &residents, Policy::MemoryPressure);
        assert_eq!(of(Level::Normal), []);
        assert_eq!(of(Level::Moderate), cheap);
        assert_eq!(of(Level::High), [&cheap[..], &used].concat());
        assert_eq!(of(Level::Critical), [&cheap[..], &used, &last].concat());
        // Whoever wants no evictions has requests refused instead.
        let manual = [ReleaseCaches, ShrinkBatches, Shed];
        assert_eq!(steps(Level::Critical, &residents, Policy::Manual), manual);
        assert_eq!(steps(Level::Moderate, &residents, Policy::Manual), manual[..2]);
    }

    /// In which order the models leave at high.
    fn leaving(policy: Policy, residents: &[Resident<&'static str>]) -> Vec<&'static str> {
        let evicted = steps(Level::High, residents, policy).into_iter();
        evicted.filter_map(|a| if let Action::Evict(key) = a { Some(key) } else { None }).collect()
    }

    #[test]
    fn who_leaves_first_is_the_policys() {
        let second = Duration::from_secs(1);
        let residents = [
            Resident { priority: 1, uses_per_hour: 0.0, ..model("important") },
            Resident { uses_per_hour: 11.0, ..model("used more") },
            Resident { resident_for: 2 * HOUR, ..model("old") },
            Resident { bytes: Bytes::mib(200), ..model("large") },
            Resident { reload_cost: 3 * second, ..model("slow to load") },
            Resident { idle: 2 * second, ..model("idle for longer") },
            Resident { priority: 4, uses_per_hour: 1e9, ..model("unimportant") },
            Resident { busy: true, idle: Duration::ZERO, uses_per_hour: 0.0, ..model("busy") },
        ];
        assert_eq!(
            leaving(Policy::MemoryPressure, &residents),
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
        let lru = leaving(Policy::Lru, &residents);
        assert_eq!((lru[0], lru[7]), ("idle for longer", "busy"));
        assert_eq!(leaving(Policy::Fifo, &residents)[0], "old");
    }

    #[test]
    fn numbers_that_are_none_do_not_upset_the_order() {
        let odd = |key, uses_per_hour| Resident { uses_per_hour, bytes: Bytes(0), ..model(key) };
        let residents = [
            odd("none", f64::NAN),
            odd("endless", f64::INFINITY),
            odd("less than none", f64::NEG_INFINITY),
        ];
        let order = leaving(Policy::MemoryPressure, &residents);
        assert_eq!(order, ["none", "less than none", "endless"]);
    }

    #[test]
    fn of_the_fallbacks_the_smallest_stays_or_a_pinned_one() {
        let of = |key, mib| Resident { fallback: true, bytes: Bytes::mib(mib), ..model(key) };
        let pinned = Resident { pinned: true, ..of("pinned", 300) };
        let loading = Resident { loading: true, ..of("loading", 1) };
        let all = [of("large", 200), of("small", 20), of("medium", 100), loading, pinned];
        // Of equal use and cost per byte the largest is worth least.
        assert_eq!(leaving(Policy::MemoryPressure, &all[..4]), ["large", "medium"]);
        assert_eq!(leaving(Policy::MemoryPressure, &all), ["large", "medium", "small"]);
        assert_eq!(leaving(Policy::MemoryPressure, &all[..1]), [""; 0]);
    }

    #[test]
    fn one_that_is_leaving_is_waited_for_but_not_for_ever_and_not_at_critical() {
        let residents = [Resident { busy: true, ..model("a") }, model("b")];
        let (start, mut done) = (Instant::now(), Done::default());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        for action in [Action::ReleaseCaches, Action::ShrinkBatches, Action::Evict("a")] {
            done.record(&action, start);
        }
        let next = |level, residents: &[_], seconds| {
            let step = next(level, residents, &done, Policy::MemoryPressure, after(seconds));
            step.map(|step| step.action)
        };
        assert_eq!(next(Level::High, &residents, 1), None);
        assert_eq!(next(Level::Critical, &residents, 1), Some(Action::Evict("b")));
        assert_eq!(next(Level::High, &residents, 5), Some(Action::Evict("b")));
        assert_eq!(next(Level::High, &residents[1..], 1), Some(Action::Evict("b")));
        assert_eq!(next(Level::High, &residents[..1], 5), Some(Action::Shed));
        // One that left and came back is as good a victim as any; caches have filled again by then.
        let back = [Resident { resident_for: Duration::from_secs(31), ..model("a") }];
        assert_eq!(next(Level::High, &back, 50), Some(Action::Evict("a")));
        assert_eq!(next(Level::High, &back, 60), Some(Action::ReleaseCaches));
    }

    #[test]
    fn a_reason_has_the_numbers() {
        let idle = Resident { idle: Duration::from_millis(125_400), ..model("m@1") };
        let residents = [idle, Resident { busy: true, ..model("n@1") }];
        let reasons = |residents: &[_]| {
            let (mut done, now) = (Done::default(), Instant::now());
            let mut reasons = Vec::new();
            for _ in 0..3 {
                let step = next(Level::High, residents, &done, Policy::Lru, now).unwrap();
                done.record(&step.action, now);
                reasons.push(step.reason);
            }
            reasons
        };
        assert_eq!(
            reasons(&residents),
            [
                "high: 2 models hold 200.0 MiB; what they can compute without comes first",
                "high: 2 models hold 200.0 MiB; smaller passes need less",
                "high: m@1 was not used for 2m 5s (priority 3, 10.0 uses an hour, 1.0 s to load \
                 again) and gives back 100.0 MiB",
            ]
        );
        assert_eq!(
            reasons(&residents[1..])[2],
            "high: n@1 is in use and finishes its requests first (priority 3, 10.0 uses an hour, \
             1.0 s to load again) and gives back 100.0 MiB"
        );
    }

    #[test]
    fn a_load_evicts_no_more_than_it_needs_and_nobody_better() {
        let of = |key, mib, priority| Resident {
            bytes: Bytes::mib(mib),
            priority,
            // Of equal value a byte, so that priorities and the order below decide.
            reload_cost: Duration::from_secs(mib),
            ..model(key)
        };
        let residents =
            [of("tiny", 10, 5), of("mid", 100, 4), of("big", 300, 3), of("best", 50, 1)];
        let cases: &[(u64, u8, Option<&[&str]>)] = &[
            (0, 3, Some(&[])),
            (10, 3, Some(&["tiny"])),
            (11, 3, Some(&["mid"])),
            (110, 3, Some(&["tiny", "mid"])),
            // All three are needed to get there, but then the first two can stay.
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
            let victims = victims_for(needed, *priority, &residents, Policy::MemoryPressure);
            assert_eq!(victims.as_deref(), *expected, "{needed} at {priority}");
        }
        let lru = victims_for(Bytes::mib(411), 5, &residents, Policy::Lru);
        assert!(lru.is_some(), "priorities are not looked at");
        assert_eq!(victims_for(Bytes(1), 1, &residents, Policy::Manual), None);
    }

    #[test]
    fn a_load_waits_for_the_young_and_takes_what_nobody_has_used_for_long() {
        let young = Resident { resident_for: Duration::from_secs(29), ..model("young") };
        let claimed = Resident { priority: 1, idle: CLAIM - Duration::from_secs(1), ..model("a") };
        let lapsed = Resident { idle: CLAIM, ..claimed.clone() };
        let loading = Resident { loading: true, ..model("loading") };
        let pinned = Resident { pinned: true, ..model("pinned") };
        let fallback = Resident { fallback: true, ..model("fallback") };
        let busy = Resident { busy: true, ..model("busy") };
        // Who is there, whether one may leave now, and what may leave some day in MiB.
        let cases: &[(&[&Resident<_>], Option<&str>, u64)] = &[
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
            let victims = victims_for(Bytes(1), 3, &residents, Policy::MemoryPressure);
            assert_eq!(victims, victim.map(|key| vec![key]), "{residents:?}");
            let ever = Bytes::mib(*ever);
            assert_eq!(could_leave(&residents, Policy::MemoryPressure), ever, "{residents:?}");
            assert_eq!(could_leave(&residents, Policy::Manual), Bytes(0));
        }
    }

    #[test]
    fn two_models_that_do_not_fit_together_take_turns_no_faster_than_the_residency() {
        // There is room for one of them; requests for the two alternate each second for ten minutes.
        let mut there: Option<(&str, u64)> = None;
        let mut loads = 0;
        for second in 0..600_u64 {
            let wanted = if second % 2 == 0 { "a" } else { "b" };
            let residents: Vec<_> = there
                .iter()
                .map(|&(key, since)| Resident {
                    resident_for: Duration::from_secs(second - since),
                    ..model(key)
                })
                .collect();
            let is_there = residents.iter().any(|resident| resident.key == wanted);
            let needed = if residents.is_empty() { Bytes(0) } else { Bytes::mib(100) };
            let fits = victims_for(needed, 3, &residents, Policy::MemoryPressure).is_some();
            if !is_there && fits {
                (there, loads) = (Some((wanted, second)), loads + 1);
            }
        }
        assert!((2..=20).contains(&loads), "{loads}");
    }

    fn residents() -> impl Strategy<Value = Vec<Resident<usize>>> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let resident =
            (flags, 0_u64..1 << 30, 0_u64..200, 0_u64..200, 1_u8..=5, any::<f64>(), 0_u64..9);
        prop::collection::vec(resident, 0..10).prop_map(|residents| {
            let models = residents.into_iter().enumerate();
            models
                .map(|(key, (flags, bytes, idle, age, priority, uses_per_hour, cost))| Resident {
                    key,
                    bytes: Bytes(bytes),
                    idle: Duration::from_secs(idle),
                    resident_for: Duration::from_secs(age),
                    pinned: flags.0 && flags.1,
                    busy: flags.1,
                    loading: flags.2 && flags.3,
                    fallback: flags.3,
                    priority,
                    uses_per_hour,
                    reload_cost: Duration::from_secs(cost),
                })
                .collect()
        })
    }

    fn policy() -> impl Strategy<Value = Policy> {
        prop::sample::select(vec![
            Policy::MemoryPressure,
            Policy::Lru,
            Policy::Fifo,
            Policy::Manual,
        ])
    }

    fn level() -> impl Strategy<Value = Level> {
        prop::sample::select(vec![Level::Moderate, Level::High, Level::Critical])
    }

    fn has_fallback(residents: &[Resident<usize>]) -> bool {
        residents.iter().any(|resident| resident.fallback && !resident.loading)
    }

    proptest! {
        #[test]
        fn a_plan_ends_with_a_fallback_and_all_that_is_pinned_or_loading_still_there(
            residents in residents(), policy in policy(), level in level(), leaves: bool,
        ) {
            let (mut left, mut done, now) = (residents.clone(), Done::default(), Instant::now());
            let mut steps = 0;
            while let Some(step) = next(level, &left, &done, policy, now) {
                prop_assert!(!step.reason.contains('\n'));
                done.record(&step.action, now);
                if let Action::Evict(key) = step.action {
                    prop_assert!(!residents[key].pinned && !residents[key].loading);
                    // Those that never finish are told once, too.
                    left.retain(|resident| !leaves || resident.key != key);
                }
                steps += 1;
                prop_assert!(steps <= residents.len() + 3);
            }
            prop_assert_eq!(has_fallback(&left), has_fallback(&residents));
            if level == Level::Critical && leaves && policy != Policy::Manual {
                let free = left.iter().filter(|r| !r.pinned && !r.loading);
                prop_assert!(free.clone().count() <= 1);
                prop_assert!(free.clone().all(|resident| resident.fallback));
            }
        }

        #[test]
        fn the_victims_of_a_load_suffice_and_each_is_needed(
            residents in residents(), policy in policy(), needed in 0_u64..1 << 32, priority in 1_u8..=5,
        ) {
            let needed = Bytes(needed);
            let ever = could_leave(&residents, policy);
            if let Some(victims) = victims_for(needed, priority, &residents, policy) {
                let bytes = |key: &usize| residents[*key].bytes.0;
                let freed: u64 = victims.iter().map(bytes).sum();
                prop_assert!(needed <= Bytes(freed) && needed <= ever);
                for key in &victims {
                    let resident = &residents[*key];
                    prop_assert!(!resident.pinned && !resident.loading);
                    prop_assert!(resident.resident_for >= RESIDENCY);
                    prop_assert!(freed - bytes(key) < needed.0);
                }
                let kept: Vec<_> =
                    residents.iter().filter(|r| !victims.contains(&r.key)).cloned().collect();
                prop_assert_eq!(has_fallback(&kept), has_fallback(&residents));
            }
        }
    }
}
