//! Chooses the next step against memory pressure, and the models to evict so that a load fits.
//!
//! Everything here is pure: the models in memory, the record of earlier steps and an instant go in,
//! one step comes out. The caller performs the step, takes a new sample, and asks again with the
//! level that the new sample [justifies](super::level::LevelTracker::instant_level). Because each
//! step is measured before the next one, a shortage never costs more than it must. The steps are
//! ordered by their cost to clients: release caches, shrink passes, evict idle models, evict models
//! in use, shed requests, and at the critical level evict every model but one fallback.
//!
//! Invariants:
//!
//! - A pinned model and a model that is still being loaded are never evicted.
//! - One of the fallback models in memory always stays.
//! - A plan ends, because [`EpisodeState`] records every step and no step is chosen twice, except
//!   that caches are released again when they had time to refill.

use std::cmp::Ordering;
use std::fmt;
use std::time::{Duration, Instant};

use super::level::PressureLevel;
use crate::base::units::Bytes;

/// Time without a request after which a model counts as idle, so that it may be evicted at
/// [`PressureLevel::Moderate`] already. A client that polls once a minute must not lose its model
/// between two polls.
pub const IDLE_TIME: Duration = Duration::from_secs(60);

/// Time for which a loaded model may not be evicted, except at [`PressureLevel::Critical`].
/// Together with the cool-down of an evicted model, it limits how often two models that do not fit
/// together replace each other.
pub const MIN_RESIDENCY: Duration = Duration::from_secs(30);

/// Time without a request after which a model of a better priority may be evicted for the load of
/// one of a worse priority.
pub const DISPLACEMENT_IDLE_TIME: Duration = Duration::from_secs(600);

/// Time after which released caches are worth releasing again: they refill while a shortage lasts.
const CACHE_REFILL_TIME: Duration = Duration::from_secs(60);

/// Time that a draining model gets, below [`PressureLevel::Critical`], before the plan evicts
/// another one.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A model that is in memory or is being loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedModel<K> {
    /// Identity of the model.
    pub key: K,
    /// Memory that its eviction frees.
    pub bytes: Bytes,
    /// Time since its last request ended, or since it was loaded if it had none. Zero while it is
    /// busy.
    pub idle: Duration,
    /// Time since it was loaded.
    pub resident_for: Duration,
    /// Excluded from eviction.
    pub is_pinned: bool,
    /// Requests are in progress; it finishes them before it is unloaded.
    pub is_busy: bool,
    /// The load is not finished yet.
    pub is_loading: bool,
    /// May answer for other models. One such model always stays in memory.
    pub is_fallback: bool,
    /// Priority from 1 (evicted last) to 5 (evicted first).
    pub priority: u8,
    /// Requests per hour, counted or expected.
    pub uses_per_hour: f64,
    /// Duration of loading it again.
    pub reload_cost: Duration,
}

/// Order of eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionOrder {
    /// Worst priority first; among equals a model that is not busy, then the one that is worth
    /// least per byte (see `value`).
    MemoryPressure,
    /// Longest idle time first. Priorities are ignored.
    Lru,
    /// Earliest load first. Priorities are ignored.
    Fifo,
    /// Models are never evicted.
    Manual,
}

/// An action that frees memory or saves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PressureAction<K> {
    /// Release scratch memory and the free memory that the allocator keeps.
    ReleaseCaches,
    /// Compute fewer tokens in one pass until the level is normal again.
    ShrinkBatches,
    /// Drain this model and drop its weights.
    Evict(K),
    /// Reject requests, with the time after which to retry, until the level falls below
    /// [`PressureLevel::High`].
    Shed,
}

/// The next action and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep<K> {
    /// The action to perform.
    pub action: PressureAction<K>,
    /// Sentence with the figures behind the action, for the journal.
    pub reason: String,
}

/// Record of the actions since the level was last normal. Each such episode of pressure starts with
/// an empty record.
#[derive(Clone, Debug)]
pub struct EpisodeState<K> {
    caches: Option<Instant>,
    batches: bool,
    shed: bool,
    /// One entry per model, with the instant of its last eviction order.
    evicted: Vec<(K, Instant)>,
}

impl<K> Default for EpisodeState<K> {
    fn default() -> Self {
        Self { caches: None, batches: false, shed: false, evicted: Vec::new() }
    }
}

impl<K: Clone + PartialEq> EpisodeState<K> {
    /// Records that `action` was ordered, whether or not it is finished.
    pub fn record(&mut self, action: &PressureAction<K>, now: Instant) {
        match action {
            PressureAction::ReleaseCaches => self.caches = Some(now),
            PressureAction::ShrinkBatches => self.batches = true,
            PressureAction::Evict(key) => {
                self.evicted.retain(|(other, _)| other != key);
                self.evicted.push((key.clone(), now));
            }
            PressureAction::Shed => self.shed = true,
        }
    }

    /// Returns whether requests are shed.
    #[must_use]
    pub fn is_shedding(&self) -> bool {
        self.shed
    }

    /// Ends the shedding of requests. The plan orders it again if the level rises again.
    pub fn stop_shedding(&mut self) {
        self.shed = false;
    }

    /// Returns the time since the eviction of `resident` was ordered. `None` when it was not
    /// ordered, or when the model was unloaded since and loaded again.
    fn draining_for(&self, resident: &LoadedModel<K>, now: Instant) -> Option<Duration> {
        let (_, at) = self.evicted.iter().find(|(key, _)| *key == resident.key)?;
        let ago = now.saturating_duration_since(*at);
        // A model that is younger than the order is a new load of the same key, so the order was
        // carried out and it may be evicted again.
        (resident.resident_for >= ago).then_some(ago)
    }
}

/// Returns the next step for the level that the last sample justifies, `pressing`. Returns `None`
/// when no step is needed, when no step is left, or while a model that was ordered to unload still
/// finishes its requests.
///
/// - Moderate: release caches, shrink passes, evict models that have been idle for [`IDLE_TIME`].
/// - High: also evict models in use that were loaded at least [`MIN_RESIDENCY`] ago, then shed
///   requests.
/// - Critical: also evict younger models, until only the smallest fallback is left, besides pinned
///   and loading models.
pub fn next_step<K: Clone + PartialEq + fmt::Display>(
    pressing: PressureLevel,
    residents: &[LoadedModel<K>],
    done: &EpisodeState<K>,
    policy: EvictionOrder,
    now: Instant,
) -> Option<PlannedStep<K>> {
    if pressing == PressureLevel::Normal {
        return None;
    }
    // The order of the checks below is the order of the steps. Each check returns, so the caller
    // measures the effect before it asks for the next step.
    let scene = PlanInput { level: pressing, residents, state: done, policy, now };
    if done.caches.is_none_or(|at| now.saturating_duration_since(at) >= CACHE_REFILL_TIME) {
        return Some(scene.step(PressureAction::ReleaseCaches, "caches are released first"));
    }
    if !done.batches {
        return Some(scene.step(PressureAction::ShrinkBatches, "smaller passes need less memory"));
    }
    // A draining model frees its memory only when its requests are finished, so the next sample may
    // still show the shortage that its eviction will end. A second eviction now would give up more
    // than necessary. At critical there is no time to wait: the kernel may kill the process first.
    if pressing < PressureLevel::Critical && scene.is_waiting() {
        return None;
    }
    // The age needs no check here: IDLE is longer than RESIDENCY.
    if let Some(idle) = scene.evict(|resident| !resident.is_busy && resident.idle >= IDLE_TIME) {
        return Some(idle);
    }
    if pressing == PressureLevel::Moderate {
        return None;
    }
    // The minimum age prevents thrashing. Without it, two models that clients use in turn would be
    // loaded and evicted as fast as requests arrive.
    if let Some(used) = scene.evict(|resident| resident.resident_for >= MIN_RESIDENCY) {
        return Some(used);
    }
    // Requests are shed before young models are evicted: a rejected client can retry, and the load
    // of a young model was paid a moment ago.
    if !done.shed {
        let why = "no other model can be evicted, so requests are rejected";
        return Some(scene.step(PressureAction::Shed, why));
    }
    // At critical the age does not protect either: being killed by the kernel would cost every
    // model.
    if pressing == PressureLevel::Critical { scene.evict(|_| true) } else { None }
}

/// Arguments of [`next_step`].
struct PlanInput<'a, K> {
    level: PressureLevel,
    residents: &'a [LoadedModel<K>],
    state: &'a EpisodeState<K>,
    policy: EvictionOrder,
    now: Instant,
}

impl<K: Clone + PartialEq + fmt::Display> PlanInput<'_, K> {
    fn is_waiting(&self) -> bool {
        // A model that drains for longer than DRAINED stays in the list, but no longer delays the
        // next step.
        let leaving = |resident| self.state.draining_for(resident, self.now);
        self.residents.iter().any(|resident| leaving(resident).is_some_and(|ago| ago < DRAIN_TIME))
    }

    /// Returns the eviction of the first `ready` model in the order of the policy.
    fn evict(&self, ready: impl Fn(&LoadedModel<K>) -> bool) -> Option<PlannedStep<K>> {
        // A model that drains for longer than DRAINED is still in `residents`. It must not be
        // chosen twice, or the plan would never end.
        let there =
            |resident: &LoadedModel<K>| self.state.draining_for(resident, self.now).is_none();
        let victims = evictable(self.residents, self.policy).filter(|r| there(r) && ready(r));
        let victim = victims.min_by(|a, b| compare_for_eviction(self.policy, a, b))?;
        let reason = format!("{}: {}", self.level, describe(victim));
        Some(PlannedStep { action: PressureAction::Evict(victim.key.clone()), reason })
    }

    /// Returns a step that concerns all models, with their number and size in its reason.
    fn step(&self, action: PressureAction<K>, why: &str) -> PlannedStep<K> {
        let held = Bytes(self.residents.iter().fold(0, |sum, r| r.bytes.0.saturating_add(sum)));
        let count = self.residents.len();
        let models = if count == 1 { "model holds" } else { "models hold" };
        PlannedStep { action, reason: format!("{}: {count} {models} {held}; {why}", self.level) }
    }
}

fn describe<K: fmt::Display>(victim: &LoadedModel<K>) -> String {
    let LoadedModel { key, bytes, priority, .. } = victim;
    let use_of_it = if victim.is_busy {
        "is in use and finishes its requests first".to_owned()
    } else {
        // Show whole seconds: the fraction does not help the reader.
        let idle = Duration::from_secs(victim.idle.as_secs());
        format!("was not used for {}", humantime::format_duration(idle))
    };
    format!(
        "{key} {use_of_it} (priority {priority}, {:.1} uses an hour, {:.1} s to load again) and \
         frees {bytes}",
        victim.uses_per_hour,
        victim.reload_cost.as_secs_f64()
    )
}

/// Returns the models to evict so that a load of a model of this `priority` gets `needed` more
/// bytes. The order of the policy decides, and the result contains no model that the others make
/// unnecessary. Returns `None` when so many bytes cannot be freed now; [`evictable_bytes`] returns
/// the bytes that could ever be freed.
///
/// A load is the wish of one client, so it may evict less than a shortage may:
///
/// - Models younger than [`MIN_RESIDENCY`] stay.
/// - Busy models may be evicted, too; otherwise a model under steady use would keep every other one
///   out. Among models of one priority they come last, except under [`EvictionOrder::Fifo`].
/// - Under [`EvictionOrder::MemoryPressure`] a model of a better priority stays, unless it has been
///   idle for [`DISPLACEMENT_IDLE_TIME`]: a model that was important yesterday must not keep out
///   the one that a client needs today.
///
/// The caller passes 1 byte when only the number of models is exceeded, so that exactly one model
/// is evicted.
pub fn select_evictions<K: Clone>(
    needed: Bytes,
    priority: u8,
    residents: &[LoadedModel<K>],
    policy: EvictionOrder,
) -> Option<Vec<K>> {
    let yields = |resident: &LoadedModel<K>| {
        policy != EvictionOrder::MemoryPressure
            || resident.priority >= priority
            || (!resident.is_busy && resident.idle >= DISPLACEMENT_IDLE_TIME)
    };
    let mut order_of_leaving: Vec<_> = evictable(residents, policy)
        .filter(|resident| resident.resident_for >= MIN_RESIDENCY && yields(resident))
        .collect();
    order_of_leaving.sort_by(|a, b| compare_for_eviction(policy, a, b));
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
    // Drop the victims that are not needed: a small early one may be superfluous once a large later
    // one is on the list. Walk backwards, because the later victims are worth more and should be
    // the first to be spared.
    for index in (0..victims.len()).rev() {
        let rest = victims.iter().enumerate().filter(|(other, _)| *other != index);
        let rest = rest.fold(0_u64, |sum, (_, victim)| sum.saturating_add(victim.bytes.0));
        if rest >= needed.0 {
            victims.remove(index);
        }
    }
    Some(victims.into_iter().map(|victim| victim.key.clone()).collect())
}

/// Returns the bytes that [`select_evictions`] could free at best, once no model is loading, young
/// or protected by its priority any more. A load that needs more will never fit, however often it
/// is retried.
pub fn evictable_bytes<K>(residents: &[LoadedModel<K>], policy: EvictionOrder) -> Bytes {
    let stays = protected_fallback(residents);
    let leaves = residents.iter().enumerate().filter(|(index, resident)| {
        policy != EvictionOrder::Manual && !resident.is_pinned && Some(*index) != stays
    });
    Bytes(leaves.fold(0, |sum, (_, resident)| resident.bytes.0.saturating_add(sum)))
}

/// Returns the models that may be evicted at all.
fn evictable<K>(
    residents: &[LoadedModel<K>],
    policy: EvictionOrder,
) -> impl Iterator<Item = &LoadedModel<K>> {
    let stays = protected_fallback(residents);
    residents.iter().enumerate().filter_map(move |(index, resident)| {
        let stays = policy == EvictionOrder::Manual
            || resident.is_pinned
            || resident.is_loading
            || Some(index) == stays;
        (!stays).then_some(resident)
    })
}

/// Returns the index of the fallback that always stays: a pinned one if there is one, otherwise the
/// smallest. A pinned fallback stays in any case, so no other one has to.
fn protected_fallback<K>(residents: &[LoadedModel<K>]) -> Option<usize> {
    let fallbacks = residents.iter().enumerate().filter(|(_, r)| r.is_fallback && !r.is_loading);
    fallbacks.min_by_key(|(_, r)| (!r.is_pinned, r.bytes)).map(|(index, _)| index)
}

/// Compares two models; the lesser one is evicted first.
fn compare_for_eviction<K>(
    policy: EvictionOrder,
    a: &LoadedModel<K>,
    b: &LoadedModel<K>,
) -> Ordering {
    let longest_idle = || b.idle.cmp(&a.idle);
    let not_busy = || a.is_busy.cmp(&b.is_busy);
    match policy {
        EvictionOrder::MemoryPressure => (b.priority.cmp(&a.priority))
            // Priority outranks busy: a busy model of a worse priority is drained before an idle
            // model of a better one.
            .then_with(not_busy)
            .then_with(|| value_per_byte(a).total_cmp(&value_per_byte(b)))
            .then_with(longest_idle),
        EvictionOrder::Lru => not_busy().then_with(longest_idle),
        EvictionOrder::Fifo => b.resident_for.cmp(&a.resident_for),
        EvictionOrder::Manual => Ordering::Equal,
    }
}

/// Returns the saving per byte of keeping a model in memory: expected uses per hour × reload time ÷
/// size.
///
/// This is the value of GreedyDual-Size-Frequency, frequency × cost ÷ size (Cherkasova 1998,
/// <https://www.hpl.hp.com/techreports/98/HPL-98-69R1.html>). The original ages its entries with a
/// clock value; here the idle time itself lowers the value of a model that was used often in the
/// past. Adding 1 to the uses separates models without any counted use by their idle time:
/// otherwise all of them would be worth 0.
fn value_per_byte<K>(resident: &LoadedModel<K>) -> f64 {
    let hours_idle = resident.idle.as_secs_f64() / 3600.0;
    // `f64::max` returns the other operand for NaN, so NaN counts as 0.
    let uses = (resident.uses_per_hour.max(0.0) + 1.0) / (1.0 + hours_idle);
    // A reload cost of zero would make the value zero for every size; the smaller model must still
    // be worth more per byte.
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
        while let Some(PlannedStep { action, .. }) =
            next_step(pressing, &residents, &done, policy, now)
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
    fn leaving(
        policy: EvictionOrder,
        residents: &[LoadedModel<&'static str>],
    ) -> Vec<&'static str> {
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
            LoadedModel {
                is_busy: true,
                idle: Duration::ZERO,
                uses_per_hour: 0.0,
                ..model("busy")
            },
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
        for action in [
            PressureAction::ReleaseCaches,
            PressureAction::ShrinkBatches,
            PressureAction::Evict("a"),
        ] {
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
                    next_step(PressureLevel::High, residents, &done, EvictionOrder::Lru, now)
                        .unwrap();
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
        let residents =
            [of("tiny", 10, 5), of("mid", 100, 4), of("big", 300, 3), of("best", 50, 1)];
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
            let fits =
                select_evictions(needed, 3, &residents, EvictionOrder::MemoryPressure).is_some();
            if !is_there && fits {
                (there, loads) = (Some((wanted, second)), loads + 1);
            }
        }
        assert!((2..=20).contains(&loads), "{loads}");
    }

    fn residents() -> impl Strategy<Value = Vec<LoadedModel<usize>>> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let resident =
            (flags, 0_u64..1 << 30, 0_u64..200, 0_u64..200, 1_u8..=5, any::<f64>(), 0_u64..9);
        prop::collection::vec(resident, 0..10).prop_map(|residents| {
            let models = residents.into_iter().enumerate();
            models
                .map(|(key, (flags, bytes, idle, age, priority, uses_per_hour, cost))| {
                    LoadedModel {
                        key,
                        bytes: Bytes(bytes),
                        idle: Duration::from_secs(idle),
                        resident_for: Duration::from_secs(age),
                        is_pinned: flags.0 && flags.1,
                        is_busy: flags.1,
                        is_loading: flags.2 && flags.3,
                        is_fallback: flags.3,
                        priority,
                        uses_per_hour,
                        reload_cost: Duration::from_secs(cost),
                    }
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
}
