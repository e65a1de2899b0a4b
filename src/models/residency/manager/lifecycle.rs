//! Unloads: on request, when idle, and after removal from the store. Also preloads before the
//! expected use.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::LoadReason;
use super::release::Release;
use super::{Manager, UnloadEnd};
use crate::base::units::{Bytes, milliseconds};
use crate::memory::level::PressureLevel;
use crate::memory::malloc_trim;
use crate::memory::sample::Sample;
use crate::models::error::ModelError;
use crate::models::residency::model_state::{
    DrainingModel, ModelState, UnloadReason, WorkerHandle,
};
use crate::models::residency::retention::{KeepAliveRequest, Retention};
use crate::models::{ActionRecord, FlushResult, FlushScope};
use crate::package::EntryKey;
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;
use crate::telemetry::metrics::UnloadLabel;

/// Interval at which a busy model with a very short `keep_alive` is polled, since the end of its
/// last request sends no event.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Time before its expected use at which a model is preloaded.
const PRELOAD_LEAD: Duration = Duration::from_secs(300);
/// Shortest interval at which users other than administrators may unload a model early. Each load
/// after it reads the model from the disk again.
const EARLY_UNLOAD_INTERVAL: Duration = Duration::from_secs(60);

/// An unloaded model, measured on the thread that waited for its worker.
pub(super) struct UnloadedModel {
    key: EntryKey,
    /// Reason for the unload; `None` for a worker without a slot, which is not reported.
    reason: Option<(UnloadReason, String)>,
    release: Release,
    duration: Duration,
}

/// A flush in progress.
pub(super) struct PendingFlush {
    reply: oneshot::Sender<FlushResult>,
    draining: BTreeSet<EntryKey>,
    unloaded: Vec<EntryKey>,
    /// Sample before the first unload.
    before: Option<Sample>,
    started: Instant,
}

impl Manager {
    /// Drains and unloads `key`, if it is resident.
    pub(super) fn drain(&mut self, key: &EntryKey, why: UnloadReason, reason: String) {
        let Some(slot) = self.states.remove(key) else { return };
        let ModelState::Resident(resident) = slot else {
            self.states.insert(key.clone(), slot);
            return;
        };
        let draining = DrainingModel {
            reason: why,
            waiting: Vec::new(),
            waiters: Vec::new(),
            queue: resident.worker.queue.downgrade(),
        };
        self.states.insert(key.clone(), ModelState::Draining(draining));
        let held = Bytes(resident.ready.weight_bytes);
        self.start_unload(key.clone(), resident.worker, held, Some((why, reason)));
    }

    /// Ends a worker that has no slot any more.
    pub(super) fn end_worker(&mut self, key: EntryKey, worker: WorkerHandle) {
        self.start_unload(key, worker, Bytes(0), None);
    }

    fn start_unload(
        &mut self,
        key: EntryKey,
        worker: WorkerHandle,
        held: Bytes,
        why: Option<(UnloadReason, String)>,
    ) {
        let WorkerHandle { queue, thread } = worker;
        // Remove the model from the table before its queue ends. From now on, requests for it go to
        // the manager.
        self.serving.remove(&key);
        let gauge = self.parts.sampler.clone();
        // The join takes as long as the requests in progress, so that it runs on the blocking pool.
        // The worker ends when every sender is dropped: this one and those of the leases.
        self.unloads.spawn_blocking(move || {
            let started = std::time::Instant::now();
            let unload = || {
                drop(queue);
                if thread.join().is_err() {
                    tracing::error!(
                        name: Message::InternalFault.name(),
                        model = %key,
                        "worker panicked"
                    );
                }
            };
            let trim = || {
                malloc_trim::trim();
            };
            let release = Release::measure(held, || gauge.sample(), unload, trim);
            UnloadedModel { key, reason: why, release, duration: started.elapsed() }
        });
    }

    pub(super) fn on_unloaded(
        &mut self,
        UnloadedModel { key, reason: why, release, duration }: UnloadedModel,
    ) {
        // A worker without a slot is not reported, but its memory may let a waiting model fit.
        let Some((why, reason)) = why else { return self.readmit() };
        let (freed, mapped) = (release.freed(), release.mapped());
        let record = ActionRecord {
            at: SystemTime::now(),
            action: match why {
                UnloadReason::Requested => "unload",
                UnloadReason::Idle => "idle",
                UnloadReason::Pressure | UnloadReason::Displaced => "evict",
            },
            model: Some(key.clone()),
            level: self.parts.readings.borrow().level,
            reason,
            freed: Some(freed),
            duration,
        };
        self.log_unload(&key, why, &record);
        let is_step = why == UnloadReason::Pressure;
        if is_step {
            self.on_evicted(&record);
        }
        let (reason, duration_ms) = (&record.reason, milliseconds(duration));
        let (freed_bytes, mapped_bytes) = (freed.0, mapped.0);
        match why.is_eviction() {
            true => tracing::info!(
                name: Message::ModelEvicted.name(),
                model = %key, reason, freed_bytes, mapped_bytes, duration_ms,
                "model evicted"
            ),
            false => tracing::info!(
                name: Message::ModelUnloaded.name(),
                model = %key, reason, freed_bytes, mapped_bytes, duration_ms,
                "model unloaded"
            ),
        }
        self.record_action(record);
        self.log_release(&key, &release);
        // The slot is missing if the model was removed while it drained.
        if let Some(ModelState::Draining(_)) = self.states.get(&key)
            && let Some(ModelState::Draining(draining)) = self.states.remove(&key)
        {
            let DrainingModel { reason: why, waiting, waiters, queue: _ } = draining;
            if why.is_eviction() {
                self.states.insert(key.clone(), ModelState::CoolingDown { since: Instant::now() });
            } else {
                self.states.insert(key.clone(), ModelState::Unloaded);
            }
            self.answer_waiting(waiting);
            // The caller may have stopped waiting.
            for waiter in waiters {
                let (Ok(()) | Err(())) = waiter.send(());
            }
        }
        // The end of the unload is measured: flushes, waiting models and the pressure plan
        // continue.
        self.finish_flushes(&key, &release.before, &release.after);
        self.readmit();
        if is_step {
            self.on_step_done();
        } else {
            self.parts.sampler.wake();
        }
    }

    /// Logs that an unload released too little memory. Does nothing while another model is loading:
    /// the samples contain its memory, too.
    fn log_release(&self, key: &EntryKey, release: &Release) {
        let is_loading = |state: &ModelState| {
            matches!(state, ModelState::Loading { .. } | ModelState::Reserved { .. })
        };
        if release.is_enough() || self.states.values().any(is_loading) {
            return;
        }
        tracing::warn!(
            name: Message::MemoryNotReleased.name(),
            model = %key,
            bytes = release.held.0,
            freed_bytes = release.freed().0,
            mapped_bytes = release.mapped().0,
            "an unloaded model released less than half of its memory"
        );
    }

    fn log_unload(&self, key: &EntryKey, why: UnloadReason, record: &ActionRecord) {
        self.parts.metrics.count_unload(
            key.name(),
            match why {
                UnloadReason::Requested => UnloadLabel::Request,
                UnloadReason::Idle => UnloadLabel::Idle,
                UnloadReason::Pressure => UnloadLabel::Pressure,
                UnloadReason::Displaced => UnloadLabel::Displaced,
            },
        );
        let (model, reason) = (key.name().to_owned(), record.reason.clone());
        let bytes = record.freed.map(|freed| freed.0);
        self.parts.events.publish(match why.is_eviction() {
            true => Event::ModelEvicted { model, reason, bytes },
            false => Event::ModelUnloaded { model, reason, bytes },
        });
    }

    /// Drops a model that was removed from the store, or every model when the daemon stops.
    pub(super) fn forget(&mut self, key: &EntryKey) {
        self.pins.remove(key);
        self.f32_only.remove(key);
        match self.states.remove(key) {
            Some(ModelState::Admitting(admitting)) => {
                reject_removed(admitting.waiting);
                if let Some(reply) = admitting.reserve {
                    // The installation may have been cancelled.
                    drop(reply.send(Err(ModelError::Ended(key.name().to_owned()))));
                }
            }
            Some(ModelState::Loading { waiting, worker, .. }) => {
                reject_removed(waiting);
                self.end_worker(key.clone(), worker);
            }
            Some(ModelState::Resident(resident)) => {
                let reason = "it was removed from the store, or the daemon stops".to_owned();
                tracing::info!(
                    name: Message::ModelUnloaded.name(),
                    model = %key, reason,
                    "unloading model"
                );
                let model = key.name().to_owned();
                self.parts.events.publish(Event::ModelUnloaded { model, reason, bytes: None });
                self.end_worker(key.clone(), resident.worker);
            }
            // The end of its thread, or of its installation, is awaited already.
            Some(ModelState::Reserved { waiting, .. }) => reject_removed(waiting),
            Some(ModelState::Draining(draining)) => reject_removed(draining.waiting),
            Some(
                ModelState::Unloaded
                | ModelState::CoolingDown { .. }
                | ModelState::Refused { .. }
                | ModelState::Failed { .. },
            )
            | None => {}
        }
    }

    /// Returns the time at which the next model becomes idle for too long.
    pub(super) fn next_idle(&self) -> Option<Instant> {
        let now = Instant::now();
        self.retentions(now)
            .into_iter()
            // A busy model is in use until its last request ends, and no event reports that end. So
            // it is polled.
            .filter_map(|(key, need)| match self.states.get(&key) {
                Some(ModelState::Resident(resident)) if resident.is_busy() => {
                    now.checked_add(need.time.max(BUSY_POLL_INTERVAL))
                }
                Some(ModelState::Resident(_)) => Some(need.until),
                _ => None,
            })
            .min()
    }

    pub(super) fn unload_idle(&mut self) {
        let now = Instant::now();
        for (key, need) in self.retentions(now) {
            // A request may have used the model since its need was computed, so compute it again.
            // While the table is locked, no further request can use it.
            if now >= need.until && self.serving.remove_if(&key, || self.is_idle(&key, now)) {
                if need.is_shortened {
                    self.unloaded_early
                        .retain(|_, at| now.duration_since(*at) < EARLY_UNLOAD_INTERVAL);
                    self.unloaded_early.insert(key.clone(), now);
                }
                let time = humantime::format_duration(need.time);
                let reason = match need.is_requested {
                    true => format!("not used for {time}, its keep_alive"),
                    false => format!("not used for {time}"),
                };
                self.drain(&key, UnloadReason::Idle, reason);
            }
        }
    }

    /// Returns whether `key` is resident without a lease, and its last need is over.
    fn is_idle(&self, key: &EntryKey, now: Instant) -> bool {
        let state = self.states.get(key);
        matches!(state, Some(ModelState::Resident(resident)) if !resident.is_busy())
            && self.retention(key, now).is_some_and(|need| now >= need.until)
    }

    /// Returns the needs of the resident models that are not pinned and whose need ends.
    fn retentions(&self, now: Instant) -> Vec<(EntryKey, Retention)> {
        let keys = self.states.keys();
        keys.filter_map(|key| Some((key.clone(), self.retention(key, now)?))).collect()
    }

    /// Returns the last need of `key`; `None` when the model is not in memory, is pinned, or its
    /// need does not end.
    pub(super) fn retention(&self, key: &EntryKey, now: Instant) -> Option<Retention> {
        let Some(ModelState::Resident(resident)) = self.states.get(key) else { return None };
        if self.is_pinned(key) {
            return None;
        }
        let max_idle_time = self.model_settings(key).max_idle_time.limit();
        // This call records the end of the requests in progress.
        resident.idle(now);
        let need = resident.retention(max_idle_time)?;
        // A user who unloads a model early again and again would make the disk read it for each
        // request. So an early unload is delayed until `EARLY_UNLOAD_INTERVAL` after the last one.
        let again =
            self.unloaded_early.get(key).and_then(|at| at.checked_add(EARLY_UNLOAD_INTERVAL));
        let until = match again {
            Some(again) if need.is_shortened => need.until.max(again),
            _ => need.until,
        };
        Some(Retention { until, ..need })
    }

    pub(super) fn keep_alive(
        &mut self,
        name: &str,
        wish: KeepAliveRequest,
    ) -> Result<(), ModelError> {
        let key = self.find(name)?;
        if let Some(ModelState::Resident(resident)) = self.states.get_mut(&key) {
            resident.set_keep_alive(wish);
        }
        Ok(())
    }

    pub(super) fn pin(&mut self, name: &str, pinned: bool) -> Result<(), ModelError> {
        let key = self.find(name)?;
        tracing::info!(
            name: Message::ModelPinned.name(),
            model = %key, pinned,
            "pin changed"
        );
        self.pins.insert(key, pinned);
        Ok(())
    }

    /// Drains and unloads the model `name`. `is_forced` also drops its waiting requests.
    pub(super) fn unload(
        &mut self,
        name: &str,
        is_forced: bool,
    ) -> Result<(EntryKey, UnloadEnd), ModelError> {
        let key = self.find(name)?;
        if self.is_pinned(&key) {
            return Err(ModelError::Pinned(name.to_owned()));
        }
        self.drain(&key, UnloadReason::Requested, "an administrator requested it".to_owned());
        let end = match self.states.get_mut(&key) {
            Some(ModelState::Draining(draining)) => {
                if is_forced {
                    draining.queue.abort();
                }
                let (done, end) = oneshot::channel();
                // Callers that stopped waiting must not add up while a model drains.
                draining.waiters.retain(|waiter| !waiter.is_closed());
                draining.waiters.push(done);
                Some(end)
            }
            _ => None,
        };
        Ok((key, end))
    }

    pub(super) fn flush(&mut self, scope: FlushScope, reply: oneshot::Sender<FlushResult>) {
        // Callers that stopped waiting must not add up while a model drains.
        self.flushes.retain(|flush| !flush.reply.is_closed());
        let flush = match scope {
            FlushScope::Caches => return self.flush_caches(reply),
            FlushScope::Unused(time) => {
                let unloaded = self.unload_unused(time);
                let draining = unloaded.iter().cloned().collect();
                PendingFlush { reply, draining, unloaded, before: None, started: Instant::now() }
            }
            FlushScope::All => {
                let unloaded = self.unload_all();
                let draining = self.states.iter().filter(|(_, state)| state.is_draining());
                let draining = draining.map(|(key, _)| key.clone()).collect();
                PendingFlush { reply, draining, unloaded, before: None, started: Instant::now() }
            }
        };
        if flush.draining.is_empty() {
            let after = self.parts.readings.borrow().sample.clone();
            flush.finish(after);
        } else {
            self.flushes.push(flush);
        }
    }

    /// Unloads every model that is not pinned. Returns the models.
    fn unload_all(&mut self) -> Vec<EntryKey> {
        let unloaded = self.unpinned_models();
        for key in &unloaded {
            let reason = "an administrator flushed the memory".to_owned();
            self.drain(key, UnloadReason::Requested, reason);
        }
        unloaded
    }

    /// Unloads the models without a request for `time` that are not pinned. Returns the models.
    fn unload_unused(&mut self, time: Duration) -> Vec<EntryKey> {
        let now = Instant::now();
        let shown = humantime::format_duration(time);
        let reason = format!("an administrator flushed the models that were unused for {shown}");
        let mut unloaded = Vec::new();
        for key in self.unpinned_models() {
            let is_unused = || match self.states.get(&key) {
                Some(ModelState::Resident(resident)) => {
                    !resident.is_busy() && resident.idle(now) >= time
                }
                _ => false,
            };
            // While the table is locked, no further request can use the model.
            if self.serving.remove_if(&key, is_unused) {
                self.drain(&key, UnloadReason::Requested, reason.clone());
                unloaded.push(key);
            }
        }
        unloaded
    }

    fn unpinned_models(&self) -> Vec<EntryKey> {
        let resident =
            self.states.iter().filter(|(_, slot)| matches!(slot, ModelState::Resident(_)));
        resident.map(|(key, _)| key.clone()).filter(|key| !self.is_pinned(key)).collect()
    }

    /// Finishes the flushes for which `key` was the last model.
    fn finish_flushes(&mut self, key: &EntryKey, before: &Sample, after: &Sample) {
        let (finished, rest) = std::mem::take(&mut self.flushes)
            .into_iter()
            .map(|mut flush| {
                flush.draining.remove(key);
                flush.before.get_or_insert_with(|| before.clone());
                flush
            })
            .partition::<Vec<_>, _>(|flush| flush.draining.is_empty());
        self.flushes = rest;
        finished.into_iter().for_each(|flush| flush.finish(after.clone()));
    }

    /// Preloads the models that are expected to be used soon, if the settings permit it and memory
    /// is not short. Nothing is evicted for them.
    pub(super) fn preload_expected(&mut self) {
        let is_enabled = self.parts.settings.borrow().memory.preload_expected;
        if !is_enabled || self.parts.readings.borrow().level > PressureLevel::Normal {
            return;
        }
        for expected in self.parts.usage.predict(PRELOAD_LEAD, SystemTime::now()) {
            let absent =
                matches!(self.states.get(&expected.key), None | Some(ModelState::Unloaded));
            let found = self.find(&expected.key.exact_name());
            if absent && found.is_ok_and(|key| key == expected.key) {
                tracing::info!(
                    name: Message::ModelLoading.name(),
                    model = %expected.key, probability = expected.probability,
                    "preloading model before its expected use"
                );
                self.admit(expected.key, LoadReason::Preload);
            }
        }
    }
}

impl PendingFlush {
    fn finish(self, after: Sample) {
        let Self { reply, unloaded, before, started, .. } = self;
        let duration = started.elapsed();
        let before = before.unwrap_or_else(|| after.clone());
        // The client may have cancelled.
        drop(reply.send(FlushResult { unloaded, before, after, duration }));
    }
}

/// Rejects the requests that wait for a removed model.
fn reject_removed(waiting: super::WaitingLeases) {
    for request in waiting {
        drop(request.reply.send(Err(ModelError::Ended(request.name))));
    }
}
