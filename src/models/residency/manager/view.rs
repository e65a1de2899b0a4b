//! The manager's state as others see it, and the settings of a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Manager;
use crate::config::ModelSettings;
use crate::models::residency::model_state::ModelState;
use crate::models::serving::worker::WorkerError;
use crate::models::{DefaultModelState, LivenessProbe, MemoryView, ModelView, Overview, Residency};
use crate::package::EntryKey;

impl Manager {
    pub(super) fn residency(&self) -> BTreeMap<EntryKey, Residency> {
        self.states.iter().map(|(key, state)| (key.clone(), state.residency())).collect()
    }

    pub(super) fn start_probes(&self) -> Vec<LivenessProbe> {
        let default = self.parts.settings.borrow().default_model().to_owned();
        let default = self.find(&default).ok();
        let probes = self.states.iter().filter_map(|(key, state)| {
            let ModelState::Resident(resident) = state else { return None };
            let queue = &resident.worker.queue;
            let is_probed = default.as_ref() == Some(key) || queue.backlog().requests > 0;
            is_probed.then(|| LivenessProbe {
                key: key.clone(),
                tracker: Arc::clone(&resident.ready.pass_tracker),
                requested_at: std::time::Instant::now(),
                reply: queue.probe(),
            })
        });
        probes.collect()
    }

    pub(super) fn memory_view(&self) -> MemoryView {
        let now = tokio::time::Instant::now();
        let models = self.states.iter().map(|(key, state)| {
            let (mut idle, mut footprint) = (None, None);
            if let ModelState::Resident(resident) = state {
                idle = Some(resident.idle(now));
                footprint = Some(resident.footprint);
            }
            let need = self.retention(key, now);
            ModelView {
                key: key.clone(),
                residency: state.residency(),
                footprint,
                priority: self.model_settings(key).memory_priority,
                pinned: self.is_pinned(key),
                idle,
                expires: need.map(|need| need.until.saturating_duration_since(now)),
            }
        });
        let models = models.collect();
        let reading = self.parts.readings.borrow().clone();
        MemoryView {
            headroom: self.headroom(&reading.sample),
            reading,
            configured_limit: self.parts.sampler.limit(),
            is_shedding: self.is_shedding(),
            models,
            actions: self.actions.iter().cloned().collect(),
        }
    }

    /// Returns the reason why a request for `name` did not get the model in time.
    pub(super) fn explain_timeout(&self, name: String) -> super::ModelError {
        let key = match self.find(&name) {
            Ok(key) => key,
            Err(error) => return error,
        };
        let since = match self.states.get(&key) {
            Some(ModelState::Admitting(admitting)) => admitting.since,
            Some(ModelState::Loading { since, .. } | ModelState::Reserved { since, .. }) => *since,
            // The model is resident: the deadline had passed before the manager was asked.
            Some(ModelState::Resident(_)) => return super::ModelError::Timeout(Duration::ZERO),
            _ => tokio::time::Instant::now(),
        };
        let expected = self.parts.usage.reload_cost(&key);
        super::ModelError::Loading { name, elapsed: since.elapsed(), expected }
    }

    pub(super) fn default_state(&self, key: &EntryKey) -> DefaultModelState {
        match self.states.get(key) {
            None => DefaultModelState::Absent,
            Some(
                ModelState::Admitting(_) | ModelState::Loading { .. } | ModelState::Reserved { .. },
            ) => DefaultModelState::Loading,
            // The worker panicked.
            Some(ModelState::Resident(resident)) if !resident.is_alive() => {
                DefaultModelState::Absent
            }
            Some(ModelState::Resident(_)) => DefaultModelState::Ready,
            Some(ModelState::Unloaded) => DefaultModelState::Unloaded,
            Some(ModelState::Draining(draining)) if !draining.reason.is_eviction() => {
                DefaultModelState::Unloaded
            }
            Some(ModelState::Draining(_) | ModelState::CoolingDown { .. }) => {
                DefaultModelState::Evicted
            }
            Some(ModelState::Refused { refusal, .. }) => {
                DefaultModelState::DoesNotFit(refusal.to_string())
            }
            Some(ModelState::Failed { .. }) => DefaultModelState::Failed,
        }
    }

    pub(super) fn publish_overview(&self) {
        let catalog = self.catalog();
        let default_model = catalog.default_model(None);
        let state = match catalog.find(&default_model) {
            Ok(entry) => self.default_state(&entry.key),
            Err(super::ModelError::Corrupt { .. }) => DefaultModelState::Corrupt,
            Err(super::ModelError::Disabled { .. }) => DefaultModelState::Disabled,
            Err(_not_served) => DefaultModelState::NotInstalled,
        };
        let tested = catalog.entries().iter().filter(|entry| entry.record.status.is_tested());
        let reading = self.parts.readings.borrow();
        let overview = Overview {
            default_model,
            state,
            installed: tested.count(),
            level: reading.level,
            source: reading.source.clone(),
            degraded: self.degraded.clone(),
        };
        drop(reading);
        self.overview.send_if_modified(|was| {
            let changed = *was != overview;
            *was = overview;
            changed
        });
    }

    pub(super) fn is_pinned(&self, key: &EntryKey) -> bool {
        self.pins.get(key).copied().unwrap_or_else(|| self.model_settings(key).pinned)
    }

    pub(super) fn is_fallback(&self, key: &EntryKey) -> bool {
        self.catalog().is_fallback(key)
    }

    pub(super) fn model_settings(&self, key: &EntryKey) -> ModelSettings {
        let (id, version, _) = key.parts();
        self.parts.settings.borrow().model(id, version)
    }
}

impl ModelState {
    /// Returns whether the model takes memory, or soon will.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Loading { .. } | Self::Resident(_) | Self::Draining(_))
    }

    /// Returns whether its last load failed because the store could not read its files.
    pub(super) fn failed_in_store(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if matches!(**error, WorkerError::Store(_)))
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self, Self::Draining(_))
    }
}
