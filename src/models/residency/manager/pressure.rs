//! Memory pressure: while memory is short, the plan names one step at a time, and each is measured
//! before the next.
//!
//! An episode lasts from the first reading above normal to the next normal one. Its steps are
//! logged as one record when the plan has no further step, and again if more steps had to follow.
//! Each evicted model has a record of its own, too.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Manager;
use crate::base::units::{Bytes, milliseconds};
use crate::config::EvictionPolicy;
use crate::memory::level::{PressureLevel, Thresholds};
use crate::memory::malloc_trim;
use crate::memory::monitor::MemorySampler;
use crate::memory::plan::{self, EpisodeState, EvictionOrder, PlannedStep, PressureAction};
use crate::memory::sample::Sample;
use crate::models::residency::model_state::{ModelState, UnloadReason};
use crate::models::{ActionRecord, FlushResult};
use crate::package::EntryKey;
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;

/// Time in which workers free their scratch memory, each after its current pass.
const SCRATCH_TIMEOUT: Duration = Duration::from_secs(1);
/// Assumed time to load a model again, if it was not measured yet.
const RELOAD_COST: Duration = Duration::from_millis(200);

/// Most plans for one step. A plan is outdated if a request takes its model in the meantime.
const MAX_PLANS: usize = 8;

/// Reason for a release of caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReleaseReason {
    /// A step of the plan.
    Pressure,
    /// A request of an administrator.
    Request,
}

/// An episode of memory pressure.
pub(super) struct Episode {
    started: std::time::Instant,
    state: EpisodeState<EntryKey>,
    /// Whether a step is in progress.
    is_step_running: bool,
    /// End of the last step. Readings from before do not show its effect.
    last_step_end: Option<std::time::Instant>,
    report: EpisodeReport,
}

/// Steps of the episode that were not logged yet.
#[derive(Default)]
struct EpisodeReport {
    steps: usize,
    level: PressureLevel,
    evicted: Vec<String>,
    freed: u64,
    reasons: Vec<String>,
}

impl Manager {
    /// Handles a new reading of the memory counters.
    pub(super) fn on_pressure(&mut self) {
        self.update_episode();
        // While requests are shed, the manager decides about each request again.
        self.serving.set_shedding(self.is_shedding());
    }

    fn update_episode(&mut self) {
        let reading = self.parts.readings.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.level, reading.level);
        if before != reading.level {
            self.parts.events.publish(Event::PressureChanged {
                level: reading.level.name(),
                before: before.name(),
                reason: reading.cause.clone(),
            });
        }
        if reading.level == PressureLevel::Normal {
            return self.end_episode();
        }
        let now = std::time::Instant::now();
        let episode = self.episode.get_or_insert_with(|| Episode {
            started: now,
            state: EpisodeState::default(),
            is_step_running: false,
            last_step_end: None,
            report: EpisodeReport::default(),
        });
        // Shedding stops below the high level. The other measures stay until the episode ends.
        if reading.level < PressureLevel::High {
            episode.state.stop_shedding();
        }
        episode.report.level = episode.report.level.max(reading.level);
        // The effect of the last step is not measured yet: a second step now might evict too much.
        if episode.is_step_running || episode.last_step_end.is_some_and(|acted| reading.at < acted)
        {
            return;
        }
        match self.next_step(reading.instant_level, now) {
            None => self.log_report(reading.cause.as_deref()),
            Some(step) => self.perform(step, reading.level),
        }
    }

    /// Plans the next step. The model of an eviction is not in the serving table afterwards. Returns
    /// `None` as well when requests take the planned models again and again.
    fn next_step(
        &self,
        pressing: PressureLevel,
        now: std::time::Instant,
    ) -> Option<PlannedStep<EntryKey>> {
        let policy = self.eviction_order();
        let state = &self.episode.as_ref()?.state;
        for _plan in 0..MAX_PLANS {
            let residents = self.loaded_models();
            let step = plan::next_step(pressing, &residents, state, policy, now)?;
            let PressureAction::Evict(key) = &step.action else { return Some(step) };
            let was_busy = residents.iter().any(|model| model.key == *key && model.is_busy);
            // A request may have taken a lease since the plan saw the model idle. While the table
            // is locked, no further request can. The next plan sees the model busy.
            let is_as_planned = || was_busy || !self.is_busy(key);
            if self.serving.remove_if(key, is_as_planned) {
                return Some(step);
            }
        }
        None
    }

    /// Returns whether `key` is resident and leased.
    fn is_busy(&self, key: &EntryKey) -> bool {
        let state = self.states.get(key);
        matches!(state, Some(ModelState::Resident(resident)) if resident.is_busy())
    }

    fn perform(
        &mut self,
        PlannedStep { action, reason }: PlannedStep<EntryKey>,
        level: PressureLevel,
    ) {
        let Some(episode) = &mut self.episode else { return };
        episode.state.record(&action, std::time::Instant::now());
        episode.report.steps += 1;
        episode.report.reasons.push(reason.clone());
        let name = match action {
            PressureAction::Evict(key) => {
                episode.is_step_running = true;
                return self.drain(&key, UnloadReason::Pressure, reason);
            }
            PressureAction::ReleaseCaches => {
                episode.is_step_running = true;
                let released = self.released_caches();
                self.releasing.spawn(async move {
                    released.await;
                    ReleaseReason::Pressure
                });
                "release_caches"
            }
            // These two steps free nothing themselves. The next sample shows whether they helped.
            PressureAction::ShrinkBatches => {
                self.set_pass_limits(true);
                self.parts.sampler.wake();
                "shrink_batches"
            }
            PressureAction::Shed => {
                tracing::warn!(
                    name: Message::RequestsShed.name(),
                    %level, reason,
                    "rejecting requests until memory is free"
                );
                self.parts.sampler.wake();
                "shed"
            }
        };
        self.record_action(ActionRecord {
            at: SystemTime::now(),
            action: name,
            model: None,
            level,
            reason,
            freed: None,
            duration: Duration::ZERO,
        });
    }

    /// Marks the current step as finished. Readings from now on show its effect.
    pub(super) fn on_step_done(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.is_step_running = false;
            episode.last_step_end = Some(std::time::Instant::now());
        }
        self.parts.sampler.wake();
    }

    /// Adds an evicted model to the report of this episode.
    pub(super) fn on_evicted(&mut self, record: &ActionRecord) {
        let Some(episode) = &mut self.episode else { return };
        episode.report.freed += record.freed.map_or(0, |freed| freed.0);
        episode.report.evicted.extend(record.model.as_ref().map(ToString::to_string));
    }

    /// Returns whether a request for `key`, which is resident, is shed because memory is short.
    /// Requests for other models are refused by admission, with numbers.
    pub(super) fn is_shed(&self, key: &EntryKey) -> bool {
        let resident = matches!(self.states.get(key), Some(ModelState::Resident(_)));
        self.is_shedding() && resident && !(self.is_fallback(key) || self.is_pinned(key))
    }

    /// Returns whether requests are shed because memory is short.
    pub(super) fn is_shedding(&self) -> bool {
        self.episode.as_ref().is_some_and(|episode| episode.state.is_shedding())
    }

    fn end_episode(&mut self) {
        self.log_report(None);
        if let Some(episode) = self.episode.take() {
            self.set_pass_limits(false);
            tracing::info!(
                name: Message::PressureLeft.name(),
                duration_ms = milliseconds(episode.started.elapsed()),
                "memory pressure has ended"
            );
        }
    }

    /// Logs the steps since the last report, if there were any.
    fn log_report(&mut self, cause: Option<&str>) {
        let Some(episode) = &mut self.episode else { return };
        let report = std::mem::take(&mut episode.report);
        if report.steps == 0 {
            return;
        }
        let cause = cause.unwrap_or("the pressure has ended");
        tracing::warn!(
            name: Message::PressureEntered.name(),
            level = %report.level,
            models = report.evicted.join(", "),
            freed_bytes = report.freed,
            duration_ms = milliseconds(episode.started.elapsed()),
            shedding = episode.state.is_shedding(),
            steps = report.reasons.join("; "),
            "memory is short: {cause}"
        );
    }

    fn set_pass_limits(&self, is_memory_short: bool) {
        let most = self.parts.settings.borrow().embedding.batch_tokens;
        self.resident_models()
            .for_each(|resident| resident.ready.set_pass_limit(most, is_memory_short));
    }

    /// Clears the caches for an administrator.
    pub(super) fn flush_caches(&mut self, reply: oneshot::Sender<FlushResult>) {
        let (released, sampler) = (self.released_caches(), self.parts.sampler.clone());
        self.releasing.spawn(async move {
            let started = Instant::now();
            let before = sampled(&sampler).await;
            released.await;
            let after = sampled(&sampler).await;
            if let (Some(before), Some(after)) = (before, after) {
                let duration = started.elapsed();
                // The client may have cancelled.
                drop(reply.send(FlushResult { unloaded: Vec::new(), before, after, duration }));
            }
            ReleaseReason::Request
        });
    }

    /// Requests that every worker frees its scratch memory. The returned future ends when idle
    /// workers have done so and free memory was returned to the kernel. A busy worker frees it after
    /// its pass and is not waited for: the wait would be repeated if the worker had to be evicted.
    fn released_caches(&self) -> impl Future<Output = ()> + Send + use<> {
        let idle = self.resident_models().filter_map(|resident| {
            let released = resident.worker.queue.release_scratch();
            (!resident.is_busy()).then_some(released)
        });
        let released: Vec<_> = idle.collect();
        async move {
            let all = async {
                for released in released {
                    // A worker that ends has freed all of its memory, so that a closed channel is
                    // fine.
                    drop(released.await);
                }
            };
            // A worker that has begun a long pass in the meantime frees its scratch memory
            // afterwards.
            drop(tokio::time::timeout(SCRATCH_TIMEOUT, all).await);
            if let Err(error) = tokio::task::spawn_blocking(malloc_trim::trim).await {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "task that returns free memory to the kernel was lost"
                );
            }
        }
    }

    fn resident_models(
        &self,
    ) -> impl Iterator<Item = &crate::models::residency::model_state::ResidentModel> {
        self.states.values().filter_map(|slot| match slot {
            ModelState::Resident(resident) => Some(resident),
            _ => None,
        })
    }

    /// Returns the models in memory or loading, as the plan sees them.
    pub(super) fn loaded_models(&self) -> Vec<plan::LoadedModel<EntryKey>> {
        let now = Instant::now();
        let named = self.catalog().models_with_dependents();
        let model = |(key, state)| self.loaded_model(key, state, now, named.contains(key));
        self.states.iter().filter_map(model).collect()
    }

    fn loaded_model(
        &self,
        key: &EntryKey,
        state: &ModelState,
        now: Instant,
        has_dependents: bool,
    ) -> Option<plan::LoadedModel<EntryKey>> {
        let (pinned, fallback) = (self.is_pinned(key), self.is_fallback(key));
        let priority = self.model_settings(key).memory_priority;
        let usage = &self.parts.usage;
        let uses_per_hour = usage.uses_per_hour(key, SystemTime::now());
        let reload_cost = usage.reload_cost(key).unwrap_or(RELOAD_COST);
        let common = |bytes, idle, resident_for, busy, loading| plan::LoadedModel {
            key: key.clone(),
            bytes,
            idle,
            resident_for,
            is_pinned: pinned,
            is_busy: busy,
            is_loading: loading,
            is_fallback: fallback,
            has_dependents,
            priority,
            uses_per_hour,
            reload_cost,
        };
        // Loading models count as busy and cannot be evicted, but the plan must know of them.
        match state {
            ModelState::Resident(resident) => {
                let idle = resident.idle(now);
                let (bytes, busy) = (resident.bytes(), resident.is_busy());
                Some(common(bytes, idle, resident.resident_for(now), busy, false))
            }
            ModelState::Loading { footprint, .. } | ModelState::Reserved { footprint, .. } => {
                let bytes = Bytes(footprint.weight_bytes);
                Some(common(bytes, Duration::ZERO, Duration::ZERO, true, true))
            }
            _ => None,
        }
    }

    pub(super) fn eviction_order(&self) -> EvictionOrder {
        match self.parts.settings.borrow().memory.eviction_policy {
            EvictionPolicy::MemoryPressure => EvictionOrder::MemoryPressure,
            EvictionPolicy::Lru => EvictionOrder::Lru,
            EvictionPolicy::Fifo => EvictionOrder::Fifo,
            EvictionPolicy::Manual => EvictionOrder::Manual,
        }
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        crate::models::thresholds(&self.parts.settings.borrow())
    }
}

/// Takes a sample on the blocking pool; `None` if the task was lost.
async fn sampled(sampler: &MemorySampler) -> Option<Sample> {
    let sampler = sampler.clone();
    let sample = tokio::task::spawn_blocking(move || sampler.sample()).await;
    sample
        .inspect_err(|error| {
            tracing::error!(
                name: Message::InternalFault.name(),
                %error,
                "task that samples memory was lost"
            );
        })
        .ok()
}
