//! Admission: a model is measured by its manifest before a byte of its weights is read, and loaded when it fits.
//!
//! What does not fit beside the others makes those leave that may; when these are too few it is refused, with numbers.
//! An installation that tries a model asks for the memory in the same way, and gives it back.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use tokio::time::Instant;

use super::super::error::ModelError;
use super::super::load;
use super::super::queue::Limits;
use super::super::slot::{
    Admitting, Refusal, Reservation, ReserveReply, Resident, Running, Slot, Waiting, Why,
};
use super::super::worker::{self, Ready, Worker, WorkerError};
use super::{LOAD_BACKOFF, Manager};
use crate::engine::{Footprint, Options, Precision, Report};
use crate::errors::{chain, errno};
use crate::events::Event;
use crate::log::Message;
use crate::memory::plan;
use crate::memory::sample::Sample;
use crate::metrics::FailureType;
use crate::package::{Key, StoreError};
use crate::units::{Bytes, milliseconds};

/// The most batches of a model that are computed at a time unless the settings say more: of many small ones each would
/// have a text or two. One more is taken, so that the first thread that is free has its next pass at once.
const MOST_BATCHES: usize = 4;

/// Who wants a model.
pub(super) enum Wanted {
    /// These requests, or nobody yet whom it is to be there for.
    Now(Waiting),
    /// Nobody yet: nothing leaves for it.
    Ahead,
    /// An installation, which tries it with these options.
    ByInstallation(Options, ReserveReply),
}

/// What a model takes, and what there is.
pub(super) struct Estimate {
    key: Key,
    footprint: Result<Footprint, WorkerError>,
    sample: Sample,
}

impl Manager {
    /// Begins to let `key` in.
    pub(super) fn admit(&mut self, key: Key, wanted: Wanted) {
        let mut refused = false;
        match self.slots.remove(&key) {
            // Its worker panicked; what it held is gone.
            Some(Slot::Resident(dead)) => self.end(key.clone(), dead.worker),
            Some(Slot::Refused { .. }) => refused = true,
            _ => {}
        }
        let mut admitting = Admitting {
            since: Instant::now(),
            waiting: Vec::new(),
            options: self.options(&key),
            reserve: None,
            ahead: false,
            blocked: false,
            claim: Bytes(0),
            refused,
        };
        match wanted {
            Wanted::Now(waiting) => admitting.waiting = waiting,
            Wanted::Ahead => admitting.ahead = true,
            Wanted::ByInstallation(options, reply) => {
                admitting.options = options;
                admitting.reserve = Some(reply);
            }
        }
        let options = admitting.options;
        self.slots.insert(key.clone(), Slot::Admitting(admitting));
        self.estimate(key, options);
    }

    /// What `key` is loaded with.
    fn options(&self, key: &Key) -> Options {
        let options = self.parts.options;
        match self.f32_only.contains(key) {
            true => Options { precision: Precision::F32, ..options },
            false => options,
        }
    }

    fn estimate(&mut self, key: Key, options: Options) {
        let store = Arc::clone(&self.parts.store);
        let gauge = self.parts.gauge.clone();
        self.estimates.spawn_blocking(move || {
            let footprint = load::footprint::<WorkerError>(&store, &key, options);
            Estimate { footprint, sample: gauge.sample(), key }
        });
    }

    pub(super) fn estimated(&mut self, Estimate { key, footprint, sample }: Estimate) {
        // A model that was forgotten meanwhile has no such slot any more.
        let Some(Slot::Admitting(admitting)) = self.slots.get(&key) else { return };
        // While requests are shed, none makes another model leave.
        let may_evict = !admitting.ahead && !self.is_shedding();
        let is_tried = admitting.reserve.is_some();
        let claimed = self.claimed_before(admitting.since);
        let footprint = match footprint {
            Ok(footprint) => footprint,
            // Trying it will say the same, before it takes memory.
            Err(_no_model) if is_tried => return self.reserve(key, Footprint::default()),
            Err(error) => {
                let waiting = self.waiting(&key);
                return self.fail(key, error, waiting);
            }
        };
        let needed = needed(&footprint);
        let room = Bytes(self.room(&sample).0.saturating_sub(claimed.0));
        let others = self.slots.values().filter(|slot| slot.is_in_memory()).count();
        let most = self.parts.settings.borrow().memory.max_loaded_models;
        let has_place = is_tried || others < most;
        if needed <= room && has_place {
            return match is_tried {
                true => self.reserve(key, footprint),
                false => self.load(key, footprint),
            };
        }
        if may_evict && let Some(victims) = self.victims(&key, needed, room, has_place) {
            for victim in victims {
                self.leave(&victim, Why::Room, format!("{key} needs {needed}"));
            }
            // Looked at again when they have left.
            return self.block(&key, needed);
        }
        if self.slots.values().any(Slot::is_leaving) {
            return self.block(&key, Bytes(0));
        }
        self.refuse(key, needed, room, &sample);
    }

    /// Has `key` wait until those have left that are leaving; `claim` of what they leave is for it.
    fn block(&mut self, key: &Key, claim: Bytes) {
        if let Some(Slot::Admitting(admitting)) = self.slots.get_mut(key) {
            admitting.blocked = true;
            admitting.claim = admitting.claim.max(claim);
        }
    }

    /// What others left, or are leaving, for models that were asked for before `since`.
    fn claimed_before(&self, since: Instant) -> Bytes {
        let claims = self.slots.values().filter_map(|slot| match slot {
            Slot::Admitting(admitting) if admitting.since < since => Some(admitting.claim.0),
            _ => None,
        });
        Bytes(claims.fold(0, u64::saturating_add))
    }

    /// Gives the installation that wants to try `key` the right to take what it was estimated to.
    fn reserve(&mut self, key: Key, footprint: Footprint) {
        let Some(Slot::Admitting(Admitting { since, waiting, reserve: Some(reply), .. })) =
            self.slots.remove(&key)
        else {
            return;
        };
        let (reservation, dropped) = Reservation::new();
        self.slots.insert(key.clone(), Slot::Reserved { since, waiting, footprint });
        self.reserved.spawn(async move {
            // Nothing is ever sent: it ends when the installation drops its side, or was not waiting any more.
            drop(dropped.await);
            key
        });
        drop(reply.send(Ok(reservation)));
    }

    /// An installation has let go of `key`, which it tried.
    pub(super) fn tried(&mut self, key: &Key) {
        let Some(Slot::Reserved { .. }) = self.slots.get(key) else { return };
        if let Some(Slot::Reserved { waiting, .. }) = self.slots.remove(key) {
            self.answer(waiting);
        }
        self.readmit();
        // It may be the default model, and was taken to be on its way when the store told of it.
        self.load_default();
    }

    /// Looks again whether those fit that wait for others to leave.
    pub(super) fn readmit(&mut self) {
        let mut blocked = Vec::new();
        for (key, slot) in &mut self.slots {
            if let Slot::Admitting(admitting) = slot
                && std::mem::take(&mut admitting.blocked)
            {
                blocked.push((key.clone(), admitting.options));
            }
        }
        blocked.into_iter().for_each(|(key, options)| self.estimate(key, options));
    }

    /// What may still be allocated, loads in flight taken to need all that they were estimated to.
    pub(super) fn room(&self, sample: &Sample) -> Bytes {
        let (mut mapped, mut loading) = (0_u64, 0_u64);
        for slot in self.slots.values() {
            match slot {
                Slot::Resident(resident) => {
                    mapped = mapped.saturating_add(resident.ready.mapped_bytes);
                }
                Slot::Loading { footprint, .. } | Slot::Reserved { footprint, .. } => {
                    loading = loading.saturating_add(needed(footprint).0);
                }
                _ => {}
            }
        }
        Bytes(self.thresholds().room(sample, Bytes(mapped)).0.saturating_sub(loading))
    }

    /// Who leaves for `key`; `None` when nobody may, or all that may are too few.
    fn victims(
        &mut self,
        key: &Key,
        needed: Bytes,
        room: Bytes,
        has_place: bool,
    ) -> Option<Vec<Key>> {
        let missing = Bytes(needed.0.saturating_sub(room.0));
        // One byte is a way to ask for the place of one model.
        let missing = if has_place { missing } else { missing.max(Bytes(1)) };
        let priority = self.model_settings(key).memory_priority;
        let policy = self.policy();
        let victims = plan::victims_for(missing, priority, &self.residents(), policy)?;
        (!victims.is_empty()).then_some(victims)
    }

    /// Returns an error when a model of `footprint` will not fit even when everything has left that may.
    pub(super) fn could_fit(
        &mut self,
        footprint: &Footprint,
        sample: &Sample,
    ) -> Result<(), Refusal> {
        let refusal = self.refusal(needed(footprint), self.room(sample), sample);
        match refusal.needed <= refusal.most {
            true => Ok(()),
            false => Err(refusal),
        }
    }

    fn refusal(&mut self, needed: Bytes, room: Bytes, sample: &Sample) -> Refusal {
        let residents = self.residents();
        let loading = self.slots.values().filter_map(|slot| match slot {
            Slot::Loading { footprint, .. } | Slot::Reserved { footprint, .. } => {
                Some(footprint.weight_bytes)
            }
            _ => None,
        });
        let could = plan::could_leave(&residents, self.policy()).0;
        let most = loading.fold(room.0.saturating_add(could), u64::saturating_add);
        let could_fit = needed.0 <= most;
        let limit = match sample.tightest() {
            Some(limit) => format!("the {} of {}", limit.bytes, limit.file.display()),
            None => format!("the {} of this machine", sample.machine.total),
        };
        Refusal {
            needed,
            room,
            most: Bytes(most),
            limit,
            retry_after: could_fit.then_some(plan::RESIDENCY),
        }
    }

    fn refuse(&mut self, key: Key, needed: Bytes, room: Bytes, sample: &Sample) {
        let refusal = Arc::new(self.refusal(needed, room, sample));
        if let Some(Slot::Admitting(admitting)) = self.slots.get_mut(&key)
            && let Some(reply) = admitting.reserve.take()
        {
            self.slots.remove(&key);
            let name = key.name().to_owned();
            // Whoever installs tells it.
            return drop(reply.send(Err(ModelError::MemoryLimit { name, refusal })));
        }
        let told = matches!(self.slots.get(&key), Some(Slot::Admitting(it)) if it.refused);
        let waiting = self.waiting(&key);
        if !told {
            tracing::warn!(
                name: Message::ModelDoesNotFit.name(),
                model = %key, bytes = needed.0, room_bytes = room.0,
                "not loaded, and tried again with each request: {refusal}"
            );
            let (model, reason) = (key.name().to_owned(), refusal.to_string());
            self.parts.events.send(Event::ModelFailed { model, reason });
        }
        let at = std::time::Instant::now();
        self.slots.insert(key, Slot::Refused { refusal: Arc::clone(&refusal), at });
        self.announce();
        for (name, reply) in waiting {
            let refusal = Arc::clone(&refusal);
            drop(reply.send(Err(ModelError::MemoryLimit { name, refusal })));
        }
    }

    /// Takes those that wait for `key`, which is being admitted.
    fn waiting(&mut self, key: &Key) -> Waiting {
        match self.slots.get_mut(key) {
            Some(Slot::Admitting(admitting)) => std::mem::take(&mut admitting.waiting),
            _ => Vec::new(),
        }
    }

    fn load(&mut self, key: Key, footprint: Footprint) {
        let Some(Slot::Admitting(Admitting { since, waiting, options, .. })) =
            self.slots.remove(&key)
        else {
            return;
        };
        let embedding = self.parts.settings.borrow().embedding.clone();
        let limits = Limits {
            requests: embedding.queue_size,
            tokens: embedding.queue_tokens,
            wait: Duration::from_millis(embedding.max_batch_wait_ms as u64),
            batches: embedding.parallel_batches.unwrap_or(options.threads.min(MOST_BATCHES) + 1),
        };
        let store = Arc::clone(&self.parts.store);
        let metrics = self.parts.metrics.clone();
        let spawned = worker::spawn(store, key.clone(), options, limits, metrics);
        match spawned {
            Ok(Worker { queue, ready, thread }) => {
                tracing::info!(
                    name: Message::ModelLoading.name(),
                    model = %key, bytes = needed(&footprint).0,
                    "loading"
                );
                let id = thread.thread().id();
                let worker = Running { queue, thread };
                self.slots.insert(key.clone(), Slot::Loading { since, waiting, worker, footprint });
                self.loads.spawn(async move {
                    (key, id, ready.await.unwrap_or(Err(WorkerError::Ended)))
                });
            }
            Err(error) => self.fail(key, error, waiting),
        }
    }

    pub(super) fn loaded(
        &mut self,
        key: Key,
        thread: ThreadId,
        outcome: Result<Ready, WorkerError>,
    ) {
        // A model that was forgotten while it was loading has no slot any more; or another one, if it came back.
        let slot = self.slots.get(&key);
        let is_its = matches!(slot, Some(Slot::Loading { worker, .. }) if worker.thread.thread().id() == thread);
        let slot = is_its.then(|| self.slots.remove(&key)).flatten();
        let Some(Slot::Loading { waiting, worker, footprint, .. }) = slot else { return };
        let ready = match outcome {
            Ok(ready) => ready,
            Err(error) => {
                self.end(key.clone(), worker);
                if error.fall_back(&key, self.options(&key)).is_some() {
                    self.f32_only.insert(key.clone());
                    return self.admit(key, Wanted::Now(waiting));
                }
                self.readmit();
                return self.fail(key, error, waiting);
            }
        };
        let Ready { weight_bytes, mapped_bytes, report, took, .. } = &ready;
        let Report { precision, isa, reason } = report;
        tracing::info!(
            name: Message::ModelLoaded.name(),
            model = %key,
            bytes = weight_bytes,
            mapped_bytes,
            duration_ms = milliseconds(*took),
            %precision,
            isa,
            reason,
            "loaded"
        );
        self.parts.usage.record_load(&key, *took, std::time::SystemTime::now());
        self.parts.metrics.loaded(key.id(), *took);
        self.parts.events.send(Event::ModelLoaded {
            model: key.name().to_owned(),
            bytes: *weight_bytes,
            duration: *took,
        });
        if self.episode.is_some() {
            ready.limit_pass();
        }
        let resident = Resident::new(ready, worker, footprint, Instant::now());
        self.slots.insert(key, Slot::Resident(resident));
        // Before anybody hears of it by an answer.
        self.announce();
        self.answer(waiting);
        self.readmit();
        self.parts.gauge.look();
    }

    fn fail(&mut self, key: Key, error: WorkerError, waiting: Waiting) {
        let reason = chain(&error);
        let (model, failure) = (key.to_string(), error.failure());
        match failure {
            Some(FailureType::Corrupt) => tracing::error!(
                name: Message::IntegrityFailure.name(),
                model, error = reason,
                "the model cannot be loaded"
            ),
            Some(FailureType::SelfTest) => tracing::error!(
                name: Message::SelfTestFailed.name(),
                model, error = reason,
                "the model cannot be loaded"
            ),
            _ => tracing::error!(
                name: Message::ModelFailed.name(),
                model, errno = errno(&error), error = reason,
                "the model cannot be loaded"
            ),
        }
        self.parts.metrics.load_failed(key.id());
        if let Some(failure) = failure {
            self.parts.metrics.validation_failed(Some(key.id()), failure);
        }
        self.parts.events.send(Event::ModelFailed { model: key.name().to_owned(), reason });
        // The store remembers what is corrupt, until its package is installed again: then it is loaded at once.
        if matches!(error, WorkerError::Store(StoreError::Corrupt { .. })) {
            self.slots.remove(&key);
        } else {
            let error = Arc::new(error);
            self.slots.insert(key, Slot::Failed { until: Instant::now() + LOAD_BACKOFF, error });
        }
        self.announce();
        self.answer(waiting);
    }
}

/// What has to be free for a model: its own memory at its peak, and the pages of its file that it reads in place.
fn needed(footprint: &Footprint) -> Bytes {
    Bytes(footprint.peak_bytes().saturating_add(footprint.mapped_bytes))
}
