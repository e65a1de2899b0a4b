//! Memory pressure: while memory is short, the plan names one step at a time, and each is measured
//! before the next.
//!
//! An episode lasts from the first reading above normal to the next normal one. Its steps are
//! logged as one record when the plan has no further step, and again if more steps had to follow.
//! Each evicted model has a record of its own, too.

use std::time::{Duration, SystemTime};

use super::super::ActionRecord;
use super::super::slot::{Slot, Why};
use super::Manager;
use crate::config::EvictionPolicy;
use crate::events::Event;
use crate::log::Message;
use crate::memory::level::{Level, Thresholds};
use crate::memory::plan::{self, Action, Done, Policy, Step};
use crate::memory::release;
use crate::package::EntryKey;
use crate::units::{Bytes, milliseconds};

/// Time in which workers free their scratch memory, each after its current pass.
const SCRATCH_TIMEOUT: Duration = Duration::from_secs(1);
/// Assumed time to load a model again, if it was not measured yet.
const RELOAD_COST: Duration = Duration::from_millis(200);

/// An episode of memory pressure.
pub(super) struct Episode {
    started: std::time::Instant,
    done: Done<EntryKey>,
    /// Whether a step is in progress.
    acting: bool,
    /// End of the last step. Readings from before do not show its effect.
    acted: Option<std::time::Instant>,
    report: Report,
}

/// Steps of the episode that were not logged yet.
#[derive(Default)]
struct Report {
    steps: usize,
    level: Level,
    evicted: Vec<String>,
    freed: u64,
    reasons: Vec<String>,
}

impl Manager {
    /// Handles a new reading of the memory counters.
    pub(super) fn pressed(&mut self) {
        let reading = self.parts.readings.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.level, reading.level);
        if before != reading.level {
            self.parts.events.publish(Event::PressureChanged {
                level: reading.level.name(),
                before: before.name(),
                reason: reading.cause.clone(),
            });
        }
        if reading.level == Level::Normal {
            return self.end_episode();
        }
        let now = std::time::Instant::now();
        let episode = self.episode.get_or_insert_with(|| Episode {
            started: now,
            done: Done::default(),
            acting: false,
            acted: None,
            report: Report::default(),
        });
        // Shedding stops below the high level. The other measures stay until the episode ends.
        if reading.level < Level::High {
            episode.done.stop_shedding();
        }
        episode.report.level = episode.report.level.max(reading.level);
        // The effect of the last step is not measured yet: a second step now might evict too much.
        if episode.acting || episode.acted.is_some_and(|acted| reading.at < acted) {
            return;
        }
        let residents = self.residents();
        let policy = self.policy();
        let Some(episode) = &mut self.episode else { return };
        match plan::next(reading.pressing, &residents, &episode.done, policy, now) {
            None => self.report(reading.cause.as_deref()),
            Some(step) => self.perform(step, reading.level),
        }
    }

    fn perform(&mut self, Step { action, reason }: Step<EntryKey>, level: Level) {
        let Some(episode) = &mut self.episode else { return };
        episode.done.record(&action, std::time::Instant::now());
        episode.report.steps += 1;
        episode.report.reasons.push(reason.clone());
        let name = match action {
            Action::Evict(key) => {
                episode.acting = true;
                return self.leave(&key, Why::Pressure, reason);
            }
            Action::ReleaseCaches => {
                episode.acting = true;
                self.release_caches();
                "release_caches"
            }
            // These two steps free nothing themselves. The next sample shows whether they helped.
            Action::ShrinkBatches => {
                self.limit_passes();
                self.parts.gauge.look();
                "shrink_batches"
            }
            Action::Shed => {
                tracing::warn!(
                    name: Message::RequestsShed.name(),
                    %level, reason,
                    "requests are refused until memory is free"
                );
                self.parts.gauge.look();
                "shed"
            }
        };
        self.remember(ActionRecord {
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
    pub(super) fn acted(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.acting = false;
            episode.acted = Some(std::time::Instant::now());
        }
        self.parts.gauge.look();
    }

    /// Adds an evicted model to the report of this episode.
    pub(super) fn evicted(&mut self, record: &ActionRecord) {
        let Some(episode) = &mut self.episode else { return };
        episode.report.freed += record.freed.map_or(0, |freed| freed.0);
        episode.report.evicted.extend(record.model.as_ref().map(ToString::to_string));
    }

    /// Returns whether a request for `key`, which is resident, is shed because memory is short.
    /// Requests for other models are refused by admission, with numbers.
    pub(super) fn sheds(&self, key: &EntryKey) -> bool {
        let resident = matches!(self.slots.get(key), Some(Slot::Resident(_)));
        self.is_shedding() && resident && !(self.is_fallback(key) || self.is_pinned(key))
    }

    /// Returns whether requests are shed because memory is short.
    pub(super) fn is_shedding(&self) -> bool {
        self.episode.as_ref().is_some_and(|episode| episode.done.is_shedding())
    }

    fn end_episode(&mut self) {
        self.report(None);
        if let Some(episode) = self.episode.take() {
            self.resident().for_each(|resident| resident.ready.unlimit_pass());
            tracing::info!(
                name: Message::PressureLeft.name(),
                duration_ms = milliseconds(episode.started.elapsed()),
                "memory is not short any more"
            );
        }
    }

    /// Logs the steps since the last report, if there were any.
    fn report(&mut self, cause: Option<&str>) {
        let Some(episode) = &mut self.episode else { return };
        let report = std::mem::take(&mut episode.report);
        if report.steps == 0 {
            return;
        }
        let cause = cause.unwrap_or("it is over");
        tracing::warn!(
            name: Message::PressureEntered.name(),
            level = %report.level,
            models = report.evicted.join(", "),
            freed_bytes = report.freed,
            duration_ms = milliseconds(episode.started.elapsed()),
            shedding = episode.done.is_shedding(),
            steps = report.reasons.join("; "),
            "memory is short: {cause}"
        );
    }

    fn limit_passes(&self) {
        self.resident().for_each(|resident| resident.ready.limit_pass());
    }

    /// Requests that every worker frees its scratch memory, then returns free memory to the kernel.
    /// A busy worker frees it after its pass and is not waited for: the wait would be repeated if
    /// the worker had to be evicted.
    fn release_caches(&mut self) {
        let idle = self.resident().filter_map(|resident| {
            let released = resident.worker.queue.release_scratch();
            (!resident.is_busy()).then_some(released)
        });
        let released: Vec<_> = idle.collect();
        self.releasing.spawn(async move {
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
            if let Err(error) = tokio::task::spawn_blocking(release::trim).await {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "free memory was not given back"
                );
            }
        });
    }

    fn resident(&self) -> impl Iterator<Item = &super::super::slot::Resident> {
        self.slots.values().filter_map(|slot| match slot {
            Slot::Resident(resident) => Some(resident),
            _ => None,
        })
    }

    /// Returns the models in memory or loading, as the plan sees them.
    pub(super) fn residents(&mut self) -> Vec<plan::Resident<EntryKey>> {
        let now = tokio::time::Instant::now();
        let keys: Vec<EntryKey> = self.slots.keys().cloned().collect();
        keys.into_iter().filter_map(|key| self.plan_resident(key, now)).collect()
    }

    fn plan_resident(
        &mut self,
        key: EntryKey,
        now: tokio::time::Instant,
    ) -> Option<plan::Resident<EntryKey>> {
        let (pinned, fallback) = (self.is_pinned(&key), self.is_fallback(&key));
        let priority = self.model_settings(&key).memory_priority;
        let usage = &self.parts.usage;
        let uses_per_hour = usage.uses_per_hour(&key, SystemTime::now());
        let reload_cost = usage.reload_cost(&key).unwrap_or(RELOAD_COST);
        let common = |bytes, idle, resident_for, busy, loading| plan::Resident {
            key: key.clone(),
            bytes,
            idle,
            resident_for,
            pinned,
            busy,
            loading,
            fallback,
            priority,
            uses_per_hour,
            reload_cost,
        };
        // Loading models count as busy and cannot be evicted, but the plan must know of them.
        match self.slots.get_mut(&key)? {
            Slot::Resident(resident) => {
                let idle = resident.idle(now);
                let (bytes, busy) = (resident.bytes(), resident.is_busy());
                Some(common(bytes, idle, resident.resident_for(now), busy, false))
            }
            Slot::Loading { footprint, .. } | Slot::Reserved { footprint, .. } => {
                let bytes = Bytes(footprint.weight_bytes);
                Some(common(bytes, Duration::ZERO, Duration::ZERO, true, true))
            }
            _ => None,
        }
    }

    pub(super) fn policy(&self) -> Policy {
        match self.parts.settings.borrow().memory.eviction_policy {
            EvictionPolicy::MemoryPressure => Policy::MemoryPressure,
            EvictionPolicy::Lru => Policy::Lru,
            EvictionPolicy::Fifo => Policy::Fifo,
            EvictionPolicy::Manual => Policy::Manual,
        }
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        super::super::thresholds(&self.parts.settings.borrow())
    }
}
