//! Unloads: on request, when idle, and after removal from the store. Also preloads before the
//! expected use.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::error::ModelError;
use super::super::needs::{Need, Wish};
use super::super::slot::{Leaving, Running, Slot, Why};
use super::super::{ActionRecord, Flushed};
use super::admission::Wanted;
use super::{Manager, Unloading};
use crate::events::Event;
use crate::log::Message;
use crate::memory::level::Level;
use crate::memory::release;
use crate::memory::sample::Sample;
use crate::metrics::UnloadReason;
use crate::package::EntryKey;
use crate::units::{Bytes, milliseconds};

/// Interval at which a busy model with a very short `keep_alive` is polled, since the end of its
/// last request sends no event.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Time before its expected use at which a model is preloaded.
const AHEAD: Duration = Duration::from_secs(300);
/// Shortest interval at which users other than administrators may unload a model early. Each load
/// after it reads the model from the disk again.
const CUT_SHORT_EVERY: Duration = Duration::from_secs(60);

/// An unloaded model, measured on the thread that waited for its worker.
pub(super) struct Left {
    key: EntryKey,
    /// Reason for the unload; `None` for a worker without a slot, which is not reported.
    why: Option<(Why, String)>,
    before: Sample,
    after: Sample,
    duration: Duration,
}

/// A flush in progress.
pub(super) struct Flush {
    reply: oneshot::Sender<Flushed>,
    leaving: BTreeSet<EntryKey>,
    unloaded: Vec<EntryKey>,
    /// Sample before the first unload.
    before: Option<Sample>,
    started: Instant,
}

impl Manager {
    /// Drains and unloads `key`, if it is resident.
    pub(super) fn leave(&mut self, key: &EntryKey, why: Why, reason: String) {
        let Some(slot) = self.slots.remove(key) else { return };
        let Slot::Resident(resident) = slot else {
            self.slots.insert(key.clone(), slot);
            return;
        };
        let leaving = Leaving { why, waiting: Vec::new(), done: Vec::new() };
        self.slots.insert(key.clone(), Slot::Leaving(leaving));
        self.ending_of(key.clone(), resident.worker, Some((why, reason)));
    }

    /// Ends a worker that has no slot any more.
    pub(super) fn end(&mut self, key: EntryKey, worker: Running) {
        self.ending_of(key, worker, None);
    }

    fn ending_of(&mut self, key: EntryKey, worker: Running, why: Option<(Why, String)>) {
        let Running { queue, thread } = worker;
        let gauge = self.parts.gauge.clone();
        // The join takes as long as the requests in progress, so that it runs on the blocking pool.
        // The worker ends when every sender is dropped: this one and those of the leases.
        self.ending.spawn_blocking(move || {
            let started = std::time::Instant::now();
            let before = gauge.sample();
            drop(queue);
            if thread.join().is_err() {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    model = %key,
                    "a worker panicked"
                );
            }
            // The allocator keeps freed memory. Return it to the kernel first, so that the second
            // sample shows it.
            release::trim();
            let after = gauge.sample();
            Left { key, why, before, after, duration: started.elapsed() }
        });
    }

    pub(super) fn left(&mut self, Left { key, why, before, after, duration }: Left) {
        // A worker without a slot is not reported, but its memory may let a waiting model fit.
        let Some((why, reason)) = why else { return self.readmit() };
        let freed = Bytes(before.process.0.saturating_sub(after.process.0));
        let mapped = Bytes(before.mapped.0.saturating_sub(after.mapped.0));
        let record = ActionRecord {
            at: SystemTime::now(),
            action: match why {
                Why::Asked => "unload",
                Why::Idle => "idle",
                Why::Pressure | Why::Room => "evict",
            },
            model: Some(key.clone()),
            level: self.parts.readings.borrow().level,
            reason,
            freed: Some(freed),
            duration,
        };
        self.tell_left(&key, why, &record);
        let is_step = why == Why::Pressure;
        if is_step {
            self.evicted(&record);
        }
        let (reason, duration_ms) = (&record.reason, milliseconds(duration));
        let (freed_bytes, mapped_bytes) = (freed.0, mapped.0);
        match why.is_eviction() {
            true => tracing::info!(
                name: Message::ModelEvicted.name(),
                model = %key, reason, freed_bytes, mapped_bytes, duration_ms,
                "evicted"
            ),
            false => tracing::info!(
                name: Message::ModelUnloaded.name(),
                model = %key, reason, freed_bytes, mapped_bytes, duration_ms,
                "unloaded"
            ),
        }
        self.remember(record);
        // The slot is missing if the model was removed while it drained.
        if let Some(Slot::Leaving(_)) = self.slots.get(&key)
            && let Some(Slot::Leaving(Leaving { why, waiting, done })) = self.slots.remove(&key)
        {
            if why.is_eviction() {
                let stays_away = self.parts.settings.borrow().memory.pressure.reload_cooldown;
                let until = Instant::now() + stays_away;
                self.slots.insert(key.clone(), Slot::Away { until });
            } else {
                self.slots.insert(key.clone(), Slot::Unloaded);
            }
            self.answer(waiting);
            // The caller may have stopped waiting.
            for done in done {
                let (Ok(()) | Err(())) = done.send(());
            }
        }
        // The end of the unload is measured: flushes, waiting models and the pressure plan
        // continue.
        self.flushed(&key, &before, &after);
        self.readmit();
        if is_step {
            self.acted();
        } else {
            self.parts.gauge.look();
        }
    }

    fn tell_left(&self, key: &EntryKey, why: Why, record: &ActionRecord) {
        self.parts.metrics.count_unload(
            key.id(),
            match why {
                Why::Asked => UnloadReason::Request,
                Why::Idle => UnloadReason::Idle,
                Why::Pressure => UnloadReason::Pressure,
                Why::Room => UnloadReason::Room,
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
        match self.slots.remove(key) {
            Some(Slot::Admitting(admitting)) => gone(admitting.waiting),
            Some(Slot::Loading { waiting, worker, .. }) => {
                gone(waiting);
                self.end(key.clone(), worker);
            }
            Some(Slot::Resident(resident)) => {
                let reason = "it left the store, or the daemon stops".to_owned();
                tracing::info!(
                    name: Message::ModelUnloaded.name(),
                    model = %key, reason,
                    "unloading"
                );
                let model = key.name().to_owned();
                self.parts.events.publish(Event::ModelUnloaded { model, reason, bytes: None });
                self.end(key.clone(), resident.worker);
            }
            // The end of its thread, or of its installation, is awaited already.
            Some(Slot::Reserved { waiting, .. }) => gone(waiting),
            Some(Slot::Leaving(leaving)) => gone(leaving.waiting),
            Some(
                Slot::Unloaded | Slot::Away { .. } | Slot::Refused { .. } | Slot::Failed { .. },
            )
            | None => {}
        }
    }

    /// Returns the time at which the next model becomes idle for too long.
    pub(super) fn next_idle(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.needs(now)
            .into_iter()
            // A busy model is in use until its last request ends, and no event reports that end. So
            // it is polled.
            .filter_map(|(key, need)| match self.slots.get(&key) {
                Some(Slot::Resident(resident)) if resident.is_busy() => {
                    now.checked_add(need.time.max(LOOK_AGAIN))
                }
                Some(Slot::Resident(_)) => Some(need.until),
                _ => None,
            })
            .min()
    }

    pub(super) fn unload_idle(&mut self) {
        let now = Instant::now();
        for (key, need) in self.needs(now) {
            if let Some(Slot::Resident(resident)) = self.slots.get(&key)
                && now >= need.until
                && !resident.is_busy()
            {
                if need.is_cut_short {
                    self.cut_short.retain(|_, at| now.duration_since(*at) < CUT_SHORT_EVERY);
                    self.cut_short.insert(key.clone(), now);
                }
                let time = humantime::format_duration(need.time);
                let reason = match need.is_wish {
                    true => format!("not used for {time}, its keep_alive"),
                    false => format!("not used for {time}"),
                };
                self.leave(&key, Why::Idle, reason);
            }
        }
    }

    /// Returns the needs of the resident models that are not pinned and whose need ends.
    fn needs(&mut self, now: Instant) -> Vec<(EntryKey, Need)> {
        let resident = self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Resident(_)));
        let keys = Vec::from_iter(resident.map(|(key, _)| key.clone()));
        keys.into_iter().filter_map(|key| Some((key.clone(), self.need(&key, now)?))).collect()
    }

    /// Returns the last need of `key`; `None` when the model is not in memory, is pinned, or its
    /// need does not end.
    pub(super) fn need(&mut self, key: &EntryKey, now: Instant) -> Option<Need> {
        if self.is_pinned(key) {
            return None;
        }
        let max_idle_time = self.model_settings(key).max_idle_time;
        let Some(Slot::Resident(resident)) = self.slots.get_mut(key) else { return None };
        // This call records the end of the requests in progress.
        resident.idle(now);
        let need = resident.need(max_idle_time)?;
        // A user who unloads a model early again and again would make the disk read it for each
        // request. So an early unload is delayed until `CUT_SHORT_EVERY` after the last one.
        let again = self.cut_short.get(key).and_then(|at| at.checked_add(CUT_SHORT_EVERY));
        let until = match again {
            Some(again) if need.is_cut_short => need.until.max(again),
            _ => need.until,
        };
        Some(Need { until, ..need })
    }

    pub(super) fn keep_alive(&mut self, name: &str, wish: Wish) -> Result<(), ModelError> {
        let key = self.find(name)?.key;
        if let Some(Slot::Resident(resident)) = self.slots.get_mut(&key) {
            resident.wish(wish);
        }
        Ok(())
    }

    pub(super) fn pin(&mut self, name: &str, pinned: bool) -> Result<(), ModelError> {
        let key = self.find(name)?.key;
        tracing::info!(
            name: Message::ModelPinned.name(),
            model = %key, pinned,
            "pinned or no longer"
        );
        self.pins.insert(key, pinned);
        Ok(())
    }

    pub(super) fn unload(&mut self, name: &str) -> Result<Unloading, ModelError> {
        let key = self.find(name)?.key;
        if self.is_pinned(&key) {
            return Err(ModelError::Pinned(name.to_owned()));
        }
        self.leave(&key, Why::Asked, "an administrator said so".to_owned());
        Ok(match self.slots.get_mut(&key) {
            Some(Slot::Leaving(leaving)) => {
                let (done, gone) = oneshot::channel();
                leaving.done.push(done);
                Some(gone)
            }
            _ => None,
        })
    }

    pub(super) fn flush_models(&mut self, reply: oneshot::Sender<Flushed>) {
        let resident = self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Resident(_)));
        let unloaded: Vec<EntryKey> =
            resident.map(|(key, _)| key.clone()).filter(|key| !self.is_pinned(key)).collect();
        for key in &unloaded {
            self.leave(key, Why::Asked, "an administrator flushed the memory".to_owned());
        }
        let leaving = self.slots.iter().filter(|(_, slot)| slot.is_leaving());
        let leaving: BTreeSet<EntryKey> = leaving.map(|(key, _)| key.clone()).collect();
        let flush = Flush { reply, leaving, unloaded, before: None, started: Instant::now() };
        if flush.leaving.is_empty() {
            let after = self.parts.readings.borrow().sample.clone();
            flush.finish(after);
        } else {
            self.flushes.push(flush);
        }
    }

    /// Finishes the flushes for which `key` was the last model.
    fn flushed(&mut self, key: &EntryKey, before: &Sample, after: &Sample) {
        let (finished, rest) = std::mem::take(&mut self.flushes)
            .into_iter()
            .map(|mut flush| {
                flush.leaving.remove(key);
                flush.before.get_or_insert_with(|| before.clone());
                flush
            })
            .partition::<Vec<_>, _>(|flush| flush.leaving.is_empty());
        self.flushes = rest;
        finished.into_iter().for_each(|flush| flush.finish(after.clone()));
    }

    /// Preloads the models that are expected to be used soon, if memory is not short. Nothing is
    /// evicted for them.
    pub(super) fn load_ahead(&mut self) {
        if self.parts.readings.borrow().level > Level::Normal {
            return;
        }
        for expected in self.parts.usage.expected(AHEAD, SystemTime::now()) {
            let absent = matches!(self.slots.get(&expected.key), None | Some(Slot::Unloaded));
            let found = self.find(&expected.key.exact_name());
            if absent && found.is_ok_and(|entry| entry.key == expected.key) {
                tracing::info!(
                    name: Message::ModelLoading.name(),
                    model = %expected.key, probability = expected.probability,
                    "loading ahead of its usual hour"
                );
                self.admit(expected.key, Wanted::Ahead);
            }
        }
    }
}

impl Flush {
    fn finish(self, after: Sample) {
        let Self { reply, unloaded, before, started, .. } = self;
        let duration = started.elapsed();
        let before = before.unwrap_or_else(|| after.clone());
        // The client may have cancelled.
        drop(reply.send(Flushed { unloaded, before, after, duration }));
    }
}

/// Rejects the requests that wait for a removed model.
fn gone(waiting: super::Waiting) {
    for (name, reply) in waiting {
        drop(reply.send(Err(ModelError::Ended(name))));
    }
}
