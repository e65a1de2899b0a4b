//! Admission: estimates the footprint of a model from its manifest before its weights are read, and
//! loads the model if it fits.
//!
//! If it does not fit beside the others, models are evicted for it. If that cannot free enough, it
//! is refused, with numbers. An installation that runs a self-test reserves the memory in the same
//! way, and gives it back afterwards.
//!
//! A load for which an interactive request waits starts before the loads for which only bulk
//! requests or preloads wait, and gets memory before them.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use tokio::time::Instant;

use super::{LOAD_BACKOFF, Manager};
use crate::base::errors::{chain, errno};
use crate::base::units::{Bytes, milliseconds};
use crate::engine::{EngineOptions, Footprint, Precision, PrecisionReport};
use crate::memory::plan;
use crate::memory::sample::Sample;
use crate::models::Priority;
use crate::models::error::{MemoryRefusal, ModelError};
use crate::models::residency::load;
use crate::models::residency::model_state::{
    DrainingModel, ModelState, PendingAdmission, Reservation, ReserveReply, ResidentModel,
    UnloadReason, WaitingLeases, WorkerHandle,
};
use crate::models::serving::worker::{self, ReadyModel, Worker, WorkerError};
use crate::package::{EntryKey, StoreError};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;
use crate::telemetry::metrics::FailureType;

/// Time for which a load lets more urgent ones start first: as long as a request waits for a load.
const MAX_YIELD_TIME: Duration = Duration::from_secs(10);

/// Reason for an admission.
pub(super) enum LoadReason {
    /// Requests for the model; or none, when the default model is loaded.
    Request(WaitingLeases),
    /// A preload: nothing is evicted for it.
    Preload,
    /// An installation, which tests the model with these options.
    SelfTest(EngineOptions, ReserveReply),
}

/// Footprint of a model, and a memory sample taken after it was computed.
pub(super) struct FootprintEstimate {
    key: EntryKey,
    footprint: Result<Footprint, WorkerError>,
    sample: Sample,
}

impl Manager {
    /// Starts the admission of `key`.
    pub(super) fn admit(&mut self, key: EntryKey, wanted: LoadReason) {
        let mut refused = false;
        let mut earlier = Vec::new();
        match self.states.remove(&key) {
            // The worker panicked, and its requests failed with it.
            Some(ModelState::Resident(dead)) => self.end_worker(key.clone(), dead.worker),
            // Remember that the refusal is already logged: the retries of a client must not fill
            // the journal.
            Some(ModelState::Refused { .. }) => refused = true,
            // An installation tests a model for which requests wait. They wait for the new
            // admission, too.
            Some(ModelState::Loading { waiting, worker, .. }) => {
                earlier = waiting;
                self.end_worker(key.clone(), worker);
            }
            Some(
                ModelState::Admitting(PendingAdmission { waiting, .. })
                | ModelState::Reserved { waiting, .. }
                | ModelState::Draining(DrainingModel { waiting, .. }),
            ) => earlier = waiting,
            _ => {}
        }
        let mut admitting = PendingAdmission {
            since: Instant::now(),
            waiting: earlier,
            options: self.options(&key),
            reserve: None,
            is_preload: false,
            is_blocked: false,
            is_yielding: false,
            claim: Bytes(0),
            was_refused: refused,
        };
        match wanted {
            LoadReason::Request(waiting) => admitting.waiting.extend(waiting),
            LoadReason::Preload => admitting.is_preload = admitting.waiting.is_empty(),
            LoadReason::SelfTest(options, reply) => {
                admitting.options = options;
                admitting.reserve = Some(reply);
            }
        }
        let options = admitting.options;
        self.states.insert(key.clone(), ModelState::Admitting(admitting));
        self.estimate(key, options);
    }

    /// Returns the options to load `key` with.
    pub(super) fn options(&self, key: &EntryKey) -> EngineOptions {
        let batch_tokens = self.parts.settings.borrow().embedding.batch_tokens;
        let options = EngineOptions { batch_tokens, ..self.parts.options };
        match self.f32_only.contains(key) {
            true => EngineOptions { precision: Precision::F32, ..options },
            false => options,
        }
    }

    pub(super) fn estimate(&mut self, key: EntryKey, options: EngineOptions) {
        let store = Arc::clone(&self.parts.store);
        let gauge = self.parts.sampler.clone();
        let most = self.pass_settings(&key).max_sequence_length;
        // On the blocking pool: the store and the memory counters are read from files.
        self.estimates.spawn_blocking(move || {
            let footprint = load::capped_footprint::<WorkerError>(&store, &key, options, most);
            FootprintEstimate { footprint, sample: gauge.sample(), key }
        });
    }

    pub(super) fn on_estimate(
        &mut self,
        FootprintEstimate { key, footprint, sample }: FootprintEstimate,
    ) {
        // The estimate of a resident model was repeated because settings have changed. Without an
        // estimate, the last one stays.
        if let Some(ModelState::Resident(resident)) = self.states.get_mut(&key) {
            resident.footprint = footprint.unwrap_or(resident.footprint);
            return;
        }
        // A model that was removed in the meantime has no such slot any more.
        let Some(ModelState::Admitting(admitting)) = self.states.get(&key) else { return };
        // While requests are shed, no model is evicted for another.
        let may_evict = !admitting.is_preload && !self.is_shedding();
        let is_tried = admitting.reserve.is_some();
        // Memory that was freed for an earlier request is reserved for it. Otherwise a later
        // request could take it, and the eviction would have been for nothing.
        let claimed = self.claimed_ahead_of(admitting);
        let must_yield = self.must_yield(admitting);
        let footprint = match footprint {
            Ok(footprint) => footprint,
            // The self-test itself will fail with the same error, before it takes memory.
            Err(_no_model) if is_tried => return self.reserve(key, Footprint::default()),
            Err(error) => {
                let waiting = self.take_waiting(&key);
                return self.on_load_failed(key, error, waiting);
            }
        };
        if must_yield {
            return self.set_yielding(&key, true);
        }
        let needed = required_memory(&footprint);
        let headroom = Bytes(self.headroom(&sample).0.saturating_sub(claimed.0));
        let others = self.states.values().filter(|slot| slot.is_in_memory()).count();
        let most = self.parts.settings.borrow().memory.max_loaded_models;
        // The limit on the number of loaded models does not apply to self-tests.
        let has_place = is_tried || others < most;
        if needed <= headroom && has_place {
            return match is_tried {
                true => self.reserve(key, footprint),
                false => self.load(key, footprint),
            };
        }
        if may_evict && let Some(victims) = self.select_evictions(&key, needed, headroom, has_place)
        {
            for victim in victims {
                self.drain(&victim, UnloadReason::Displaced, format!("{key} needs {needed}"));
            }
            // The estimate is repeated when the evicted models are unloaded.
            return self.block(&key, needed);
        }
        // Models that drain already may free enough. Wait for them before refusing.
        if self.states.values().any(ModelState::is_draining) {
            return self.block(&key, Bytes(0));
        }
        self.refuse(key, needed, headroom, &sample);
    }

    /// Makes `key` wait until the draining models are unloaded; `claim` bytes of their memory are
    /// kept for it.
    fn block(&mut self, key: &EntryKey, claim: Bytes) {
        if let Some(ModelState::Admitting(admitting)) = self.states.get_mut(key) {
            admitting.is_blocked = true;
            admitting.claim = admitting.claim.max(claim);
        }
    }

    /// Returns the memory that was freed, or is being freed, for models that get it before `own`.
    fn claimed_ahead_of(&self, own: &PendingAdmission) -> Bytes {
        let ahead = self.admissions().filter(|other| other.is_ahead_of(own));
        Bytes(ahead.map(|other| other.claim.0).fold(0, u64::saturating_add))
    }

    /// Returns whether the load of `own` waits until a more urgent one has started. It does not
    /// wait for longer than [`MAX_YIELD_TIME`] after its request.
    fn must_yield(&self, own: &PendingAdmission) -> bool {
        own.priority() == Priority::Bulk
            && own.since.elapsed() < MAX_YIELD_TIME
            && self.admissions().any(|other| other.priority() == Priority::Interactive)
    }

    fn set_yielding(&mut self, key: &EntryKey, is_yielding: bool) {
        if let Some(ModelState::Admitting(admitting)) = self.states.get_mut(key) {
            admitting.is_yielding = is_yielding;
        }
    }

    /// Repeats the estimates of the loads that need not wait for a more urgent one any more.
    pub(super) fn resume_yielding(&mut self) {
        let resumed = self.states.iter().filter_map(|(key, state)| match state {
            ModelState::Admitting(own) if own.is_yielding && !self.must_yield(own) => {
                Some((key.clone(), own.options))
            }
            _ => None,
        });
        for (key, options) in Vec::from_iter(resumed) {
            self.set_yielding(&key, false);
            self.estimate(key, options);
        }
    }

    /// Returns the models that are being admitted.
    fn admissions(&self) -> impl Iterator<Item = &PendingAdmission> {
        self.states.values().filter_map(|state| match state {
            ModelState::Admitting(admitting) => Some(admitting),
            _ => None,
        })
    }

    /// Grants an installation the right to take the estimated memory of `key` for a self-test.
    fn reserve(&mut self, key: EntryKey, footprint: Footprint) {
        let Some(ModelState::Admitting(PendingAdmission {
            since,
            waiting,
            reserve: Some(reply),
            ..
        })) = self.states.remove(&key)
        else {
            return;
        };
        let (reservation, dropped) = Reservation::new();
        self.states.insert(key.clone(), ModelState::Reserved { since, waiting, footprint });
        self.reserved.spawn(async move {
            // No value is ever sent. The receiver ends when the installation drops its reservation,
            // or at once if the installation was cancelled.
            drop(dropped.await);
            key
        });
        drop(reply.send(Ok(reservation)));
    }

    /// Handles the end of a reservation: an installation has finished the self-test of `key`.
    pub(super) fn on_self_test_done(&mut self, key: &EntryKey) {
        let Some(ModelState::Reserved { .. }) = self.states.get(key) else { return };
        if let Some(ModelState::Reserved { waiting, .. }) = self.states.remove(key) {
            self.answer_waiting(waiting);
        }
        self.readmit();
        // The model may be the default one. When the store reported the change, its reservation
        // looked like a load in progress, so that the load was skipped.
        self.load_default();
    }

    /// Repeats the estimates of the models that wait for others to be unloaded.
    pub(super) fn readmit(&mut self) {
        let mut blocked = Vec::new();
        for (key, slot) in &mut self.states {
            if let ModelState::Admitting(admitting) = slot
                // Clear the flag: a second unload must not start a second estimate of the same
                // model.
                && std::mem::take(&mut admitting.is_blocked)
            {
                blocked.push((key.clone(), admitting.options));
            }
        }
        blocked.into_iter().for_each(|(key, options)| self.estimate(key, options));
    }

    /// Returns the headroom. Loads in progress count with their whole estimate, because the sample
    /// does not show all of their memory yet.
    pub(super) fn headroom(&self, sample: &Sample) -> Bytes {
        let (mut mapped, mut loading) = (0_u64, 0_u64);
        for slot in self.states.values() {
            match slot {
                ModelState::Resident(resident) => {
                    mapped = mapped.saturating_add(resident.ready.mapped_bytes);
                }
                ModelState::Loading { footprint, .. } | ModelState::Reserved { footprint, .. } => {
                    loading = loading.saturating_add(required_memory(footprint).0);
                }
                _ => {}
            }
        }
        Bytes(self.thresholds().headroom(sample, Bytes(mapped)).0.saturating_sub(loading))
    }

    /// Chooses the models to evict for `key`. Returns `None` when they would not free enough.
    fn select_evictions(
        &self,
        key: &EntryKey,
        needed: Bytes,
        headroom: Bytes,
        has_place: bool,
    ) -> Option<Vec<EntryKey>> {
        let missing = Bytes(needed.0.saturating_sub(headroom.0));
        // If only the number of models is exceeded, ask for 1 byte, so that exactly one model is
        // evicted.
        let missing = if has_place { missing } else { missing.max(Bytes(1)) };
        let priority = self.model_settings(key).memory_priority;
        let policy = self.eviction_order();
        let victims = plan::select_evictions(missing, priority, &self.loaded_models(), policy)?;
        (!victims.is_empty()).then_some(victims)
    }

    /// Checks whether a model of `footprint` would fit if every evictable model were evicted.
    pub(super) fn could_fit(
        &self,
        footprint: &Footprint,
        sample: &Sample,
    ) -> Result<(), MemoryRefusal> {
        let refusal =
            self.describe_refusal(required_memory(footprint), self.headroom(sample), sample);
        match refusal.needed <= refusal.max_headroom {
            true => Ok(()),
            false => Err(refusal),
        }
    }

    fn describe_refusal(&self, needed: Bytes, headroom: Bytes, sample: &Sample) -> MemoryRefusal {
        let residents = self.loaded_models();
        let loading = self.states.values().filter_map(|slot| match slot {
            ModelState::Loading { footprint, .. } | ModelState::Reserved { footprint, .. } => {
                Some(footprint.weight_bytes)
            }
            _ => None,
        });
        let could = plan::evictable_bytes(&residents, self.eviction_order()).0;
        // A load in progress becomes evictable later, so that its memory counts here.
        let most = loading.fold(headroom.0.saturating_add(could), u64::saturating_add);
        let could_fit = needed.0 <= most;
        let limit = match sample.tightest() {
            Some(limit) => format!("the {} of {}", limit.bytes, limit.file.display()),
            None => format!("the {} of this machine", sample.machine.total),
        };
        MemoryRefusal {
            needed,
            headroom,
            max_headroom: Bytes(most),
            limit,
            // Models that were loaded just now may be evicted after this time.
            retry_after: could_fit.then_some(plan::MIN_RESIDENCY),
        }
    }

    fn refuse(&mut self, key: EntryKey, needed: Bytes, headroom: Bytes, sample: &Sample) {
        let refusal = Arc::new(self.describe_refusal(needed, headroom, sample));
        if let Some(ModelState::Admitting(admitting)) = self.states.get_mut(&key)
            && let Some(reply) = admitting.reserve.take()
        {
            let waiting = self.take_waiting(&key);
            self.states.remove(&key);
            let name = key.name().to_owned();
            // The installation reports the refusal itself.
            drop(reply.send(Err(ModelError::MemoryLimit { name, refusal })));
            // The requests that arrived in the meantime are decided without the installation.
            return self.answer_waiting(waiting);
        }
        let is_logged =
            matches!(self.states.get(&key), Some(ModelState::Admitting(it)) if it.was_refused);
        let waiting = self.take_waiting(&key);
        if !is_logged {
            tracing::warn!(
                name: Message::ModelDoesNotFit.name(),
                model = %key, bytes = needed.0, headroom_bytes = headroom.0,
                "model not loaded; each request tries again: {refusal}"
            );
            let (model, reason) = (key.name().to_owned(), refusal.to_string());
            self.parts.events.publish(Event::ModelFailed { model, reason });
        }
        let at = std::time::Instant::now();
        self.states.insert(key, ModelState::Refused { refusal: Arc::clone(&refusal), at });
        self.publish_overview();
        for request in waiting {
            let (name, refusal) = (request.name, Arc::clone(&refusal));
            drop(request.reply.send(Err(ModelError::MemoryLimit { name, refusal })));
        }
    }

    /// Takes the requests that wait for `key`, which is being admitted.
    fn take_waiting(&mut self, key: &EntryKey) -> WaitingLeases {
        match self.states.get_mut(key) {
            Some(ModelState::Admitting(admitting)) => std::mem::take(&mut admitting.waiting),
            _ => Vec::new(),
        }
    }

    fn load(&mut self, key: EntryKey, footprint: Footprint) {
        let Some(ModelState::Admitting(PendingAdmission { since, waiting, options, .. })) =
            self.states.remove(&key)
        else {
            return;
        };
        let limits = self.queue_limits();
        let store = Arc::clone(&self.parts.store);
        let metrics = self.parts.metrics.clone();
        let spawned = worker::spawn(store, key.clone(), options, limits, metrics);
        match spawned {
            Ok(Worker { queue, ready, thread }) => {
                tracing::info!(
                    name: Message::ModelLoading.name(),
                    model = %key, bytes = required_memory(&footprint).0,
                    "loading model"
                );
                let id = thread.thread().id();
                let worker = WorkerHandle { queue, thread };
                self.states
                    .insert(key.clone(), ModelState::Loading { since, waiting, worker, footprint });
                self.loads.spawn(async move {
                    (key, id, ready.await.unwrap_or(Err(WorkerError::Ended)))
                });
            }
            Err(error) => self.on_load_failed(key, error, waiting),
        }
    }

    pub(super) fn on_loaded(
        &mut self,
        key: EntryKey,
        thread: ThreadId,
        outcome: Result<ReadyModel, WorkerError>,
    ) {
        // A model that was removed while it was loading has no slot any more, or the slot of
        // another load if it was installed again. The thread identifies the load.
        let slot = self.states.get(&key);
        let is_its = matches!(slot, Some(ModelState::Loading { worker, .. }) if worker.thread.thread().id() == thread);
        let slot = is_its.then(|| self.states.remove(&key)).flatten();
        let Some(ModelState::Loading { waiting, worker, footprint, .. }) = slot else { return };
        let ready = match outcome {
            Ok(ready) => ready,
            Err(error) => {
                self.end_worker(key.clone(), worker);
                // The self-test failed in the precision that `auto` chose. f32 takes more memory,
                // so that the model is admitted again with its new footprint.
                if error.retry_options(&key, self.options(&key)).is_some() {
                    self.f32_only.insert(key.clone());
                    return self.admit(key, LoadReason::Request(waiting));
                }
                self.readmit();
                return self.on_load_failed(key, error, waiting);
            }
        };
        let ReadyModel { weight_bytes, mapped_bytes, report, load_time: took, .. } = &ready;
        let PrecisionReport { precision, isa, reason } = report;
        tracing::info!(
            name: Message::ModelLoaded.name(),
            model = %key,
            bytes = weight_bytes,
            mapped_bytes,
            duration_ms = milliseconds(*took),
            %precision,
            isa,
            reason,
            "model loaded"
        );
        self.parts.usage.record_load(&key, *took, std::time::SystemTime::now());
        self.parts.metrics.count_load(key.name(), *took);
        self.parts.events.publish(Event::ModelLoaded {
            model: key.name().to_owned(),
            bytes: *weight_bytes,
            duration: *took,
        });
        // Passes are short during an episode, also those of a model that was loaded in it. The
        // settings may have changed since the load began.
        let passes = self.pass_settings(&key);
        ready.set_pass_limit(passes.batch_tokens, self.episode.is_some());
        ready.tokenizer.limit_length(passes.max_sequence_length);
        let resident = ResidentModel::new(ready, worker, footprint, passes, Instant::now());
        let served = resident.served();
        self.states.insert(key.clone(), ModelState::Resident(resident));
        // Announce before any client learns of the model from its answer.
        self.publish_overview();
        self.serving.insert(key, served);
        self.answer_waiting(waiting);
        // The footprint was an upper bound. The real use may leave memory for models that wait.
        self.readmit();
        self.parts.sampler.wake();
    }

    fn on_load_failed(&mut self, key: EntryKey, error: WorkerError, waiting: WaitingLeases) {
        let reason = chain(&error);
        let (model, failure) = (key.to_string(), error.failure());
        match failure {
            Some(FailureType::Corrupt) => tracing::error!(
                name: Message::IntegrityFailure.name(),
                model, error = reason,
                "model cannot be loaded"
            ),
            Some(FailureType::SelfTest) => tracing::error!(
                name: Message::SelfTestFailed.name(),
                model, error = reason,
                "model cannot be loaded"
            ),
            _ => tracing::error!(
                name: Message::ModelFailed.name(),
                model, errno = errno(&error), error = reason,
                "model cannot be loaded"
            ),
        }
        self.parts.metrics.count_load_failure(key.name());
        if let Some(failure) = failure {
            self.parts.metrics.count_validation_failure(Some(key.name()), failure);
        }
        self.parts.events.publish(Event::ModelFailed { model: key.name().to_owned(), reason });
        // The store remembers that the entry is corrupt until its package is installed again, and
        // the model must load at once then. So do not start a backoff.
        if matches!(error, WorkerError::Store(StoreError::Corrupt { .. })) {
            self.states.remove(&key);
        } else {
            let error = Arc::new(error);
            self.states
                .insert(key, ModelState::Failed { until: Instant::now() + LOAD_BACKOFF, error });
        }
        self.publish_overview();
        self.answer_waiting(waiting);
    }
}

/// Returns the memory that must be free for a model: its own memory at the peak, and the file pages
/// that it reads in place.
fn required_memory(footprint: &Footprint) -> Bytes {
    Bytes(footprint.peak_bytes().saturating_add(footprint.mapped_bytes))
}
