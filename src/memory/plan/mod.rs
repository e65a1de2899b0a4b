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

/// Factor of the value of a model that has dependents. Of two models that are otherwise worth the
/// same, the other one is evicted first, and also if it is used up to twice as often.
const DEPENDENTS_FACTOR: f64 = 2.0;

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
    /// Default model, or model of a tenant or an alias of the configuration.
    pub has_dependents: bool,
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
/// size, times [`DEPENDENTS_FACTOR`] if the configuration depends on the model.
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
    let factor = if resident.has_dependents { DEPENDENTS_FACTOR } else { 1.0 };
    uses * cost * factor / bytes
}

#[cfg(test)]
mod tests;
