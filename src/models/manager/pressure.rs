//! Pressure: while memory is short the plan names one step after the other, each measured before the next.
//!
//! An episode lasts from the first reading above normal to the next normal one. What it did is one record of the
//! journal, written when its steps have come to rest, and again when more of them had to follow; each model that leaves
//! has one, too.

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
use crate::package::Key;
use crate::units::{Bytes, milliseconds};

/// How long workers have to let their scratch memory go, each after the pass that it is in.
const SCRATCH_TIMEOUT: Duration = Duration::from_secs(1);
/// What loading a model again is taken to take when it was not measured yet.
const RELOAD_COST: Duration = Duration::from_millis(200);

/// Memory is short, and this was done.
pub(super) struct Episode {
    started: std::time::Instant,
    done: Done<Key>,
    shedding: bool,
    /// A step is on its way.
    acting: bool,
    /// When the last step was finished: readings from before do not show what it did.
    acted: Option<std::time::Instant>,
    report: Report,
}

/// What the journal was not yet told.
#[derive(Default)]
struct Report {
    steps: usize,
    level: Level,
    evicted: Vec<String>,
    freed: u64,
    reasons: Vec<String>,
}

impl Manager {
    /// Follows the last reading.
    pub(super) fn pressed(&mut self) {
        let reading = self.parts.readings.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.level, reading.level);
        if before != reading.level {
            self.parts.events.send(Event::PressureChanged {
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
            shedding: false,
            acting: false,
            acted: None,
            report: Report::default(),
        });
        if reading.level < Level::High {
            episode.shedding = false;
        }
        episode.report.level = episode.report.level.max(reading.level);
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

    fn perform(&mut self, Step { action, reason }: Step<Key>, level: Level) {
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
            Action::ShrinkBatches => {
                self.limit_passes();
                self.parts.gauge.look();
                "shrink_batches"
            }
            Action::Shed => {
                if !std::mem::replace(&mut episode.shedding, true) {
                    tracing::warn!(
                        name: Message::RequestsShed.name(),
                        %level, reason,
                        "requests are refused until memory is free"
                    );
                }
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

    /// A step is finished: what it did is in the readings from now on.
    pub(super) fn acted(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.acting = false;
            episode.acted = Some(std::time::Instant::now());
        }
        self.parts.gauge.look();
    }

    /// Notes a model that left in this episode.
    pub(super) fn evicted(&mut self, record: &ActionRecord) {
        let Some(episode) = &mut self.episode else { return };
        episode.report.freed += record.freed.map_or(0, |freed| freed.0);
        episode.report.evicted.extend(record.model.as_ref().map(ToString::to_string));
    }

    /// Whether a request for `key`, which is in memory, is refused because memory is short. For one that is not,
    /// admission says so, with numbers.
    pub(super) fn sheds(&self, key: &Key) -> bool {
        let resident = matches!(self.slots.get(key), Some(Slot::Resident(_)));
        self.is_shedding() && resident && !(self.is_fallback(key) || self.is_pinned(key))
    }

    /// Whether requests are refused because memory is short.
    pub(super) fn is_shedding(&self) -> bool {
        self.episode.as_ref().is_some_and(|episode| episode.shedding)
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

    /// Writes what was done since the last report, if anything.
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
            shedding = episode.shedding,
            steps = report.reasons.join("; "),
            "memory is short: {cause}"
        );
    }

    fn limit_passes(&self) {
        self.resident().for_each(|resident| resident.ready.limit_pass());
    }

    /// Has every worker let its scratch memory go, then gives what is free back to the kernel. One that is busy does it
    /// after its pass and is not waited for: it would be waited for again when it has to leave.
    fn release_caches(&mut self) {
        let idle = self.resident().filter_map(|resident| {
            let released = resident.worker.queue.release_scratch();
            (!resident.is_busy()).then_some(released)
        });
        let released: Vec<_> = idle.collect();
        self.releasing.spawn(async move {
            let all = async {
                for released in released {
                    // A worker that ends has released it all.
                    drop(released.await);
                }
            };
            // One that has begun a long pass meanwhile does it later.
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

    /// What the plan sees.
    pub(super) fn residents(&mut self) -> Vec<plan::Resident<Key>> {
        let now = tokio::time::Instant::now();
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        keys.into_iter().filter_map(|key| self.plan_resident(key, now)).collect()
    }

    fn plan_resident(
        &mut self,
        key: Key,
        now: tokio::time::Instant,
    ) -> Option<plan::Resident<Key>> {
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
