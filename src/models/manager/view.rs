//! The manager's state as others see it, and the settings of a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::alias;
use super::super::slot::Slot;
use super::super::worker::WorkerError;
use super::super::{Beat, DefaultState, MemoryView, ModelView, Overview, Residency};
use super::Manager;
use crate::config::ModelSettings;
use crate::package::{EntryKey, StoreEntry, resolve};

impl Manager {
    pub(super) fn residency(&self) -> BTreeMap<EntryKey, Residency> {
        self.slots.iter().map(|(key, slot)| (key.clone(), slot.residency())).collect()
    }

    pub(super) fn beats(&self) -> Vec<Beat> {
        let default = self.parts.settings.borrow().default_model().to_owned();
        let default = self.find(&default).ok().map(|entry| entry.key);
        let asked = self.slots.iter().filter_map(|(key, slot)| {
            let Slot::Resident(resident) = slot else { return None };
            let queue = &resident.worker.queue;
            let is_asked = default.as_ref() == Some(key) || queue.waiting().requests > 0;
            is_asked.then(|| Beat {
                key: key.clone(),
                pulse: Arc::clone(&resident.ready.pulse),
                asked: std::time::Instant::now(),
                answer: queue.prove(),
            })
        });
        asked.collect()
    }

    pub(super) fn memory_view(&mut self) -> MemoryView {
        let now = tokio::time::Instant::now();
        let keys: Vec<EntryKey> = self.slots.keys().cloned().collect();
        let models = keys.into_iter().filter_map(|key| {
            let settings = self.model_settings(&key);
            let pinned = self.is_pinned(&key);
            let slot = self.slots.get_mut(&key)?;
            let residency = slot.residency();
            let (mut idle, mut footprint) = (None, None);
            if let Slot::Resident(resident) = slot {
                idle = Some(resident.idle(now));
                footprint = Some(resident.footprint);
            }
            let need = self.need(&key, now);
            let expires = need.map(|need| need.until.saturating_duration_since(now));
            let priority = settings.memory_priority;
            Some(ModelView { key, residency, footprint, priority, pinned, idle, expires })
        });
        let models = models.collect();
        let reading = self.parts.readings.borrow().clone();
        MemoryView {
            room: self.room(&reading.sample),
            reading,
            configured_limit: self.parts.gauge.limit(),
            shedding: self.is_shedding(),
            models,
            actions: self.actions.iter().cloned().collect(),
        }
    }

    /// Returns the reason why a request for `name` did not get the model in time.
    pub(super) fn loading(&self, name: String) -> super::ModelError {
        let key = match self.find(&name) {
            Ok(entry) => entry.key,
            Err(error) => return error,
        };
        let since = match self.slots.get(&key) {
            Some(Slot::Admitting(admitting)) => admitting.since,
            Some(Slot::Loading { since, .. } | Slot::Reserved { since, .. }) => *since,
            // The model is resident: the deadline had passed before the manager was asked.
            Some(Slot::Resident(_)) => return super::ModelError::Timeout(Duration::ZERO),
            _ => tokio::time::Instant::now(),
        };
        let expected = self.parts.usage.reload_cost(&key);
        super::ModelError::Loading { name, elapsed: since.elapsed(), expected }
    }

    pub(super) fn default_state(&self, entry: &StoreEntry) -> DefaultState {
        match self.slots.get(&entry.key) {
            None => DefaultState::Absent,
            Some(Slot::Admitting(_) | Slot::Loading { .. } | Slot::Reserved { .. }) => {
                DefaultState::Loading
            }
            // The worker panicked.
            Some(Slot::Resident(resident)) if !resident.is_alive() => DefaultState::Absent,
            Some(Slot::Resident(_)) => DefaultState::Ready,
            Some(Slot::Unloaded) => DefaultState::Unloaded,
            Some(Slot::Leaving(leaving)) if !leaving.why.is_eviction() => DefaultState::Unloaded,
            Some(Slot::Leaving(_) | Slot::Away { .. }) => DefaultState::Evicted,
            Some(Slot::Refused { refusal, .. }) => DefaultState::DoesNotFit(refusal.to_string()),
            Some(Slot::Failed { .. }) => DefaultState::Failed,
        }
    }

    pub(super) fn announce(&self) {
        let settings = Arc::clone(&self.parts.settings.borrow());
        let default_model = alias::meant(&settings.aliases, settings.default_model());
        let state = match self.find(&default_model) {
            Ok(entry) => self.default_state(&entry),
            Err(super::ModelError::Corrupt { .. }) => DefaultState::Corrupt,
            Err(super::ModelError::Disabled { .. }) => DefaultState::Disabled,
            Err(_not_served) => DefaultState::NotInstalled,
        };
        let entries = self.parts.store.entries();
        let tested = entries.iter().filter(|entry| entry.record.status.is_tested());
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
        let settings = Arc::clone(&self.parts.settings.borrow());
        let names_it = |name: &String| {
            let meant = alias::meant(&settings.aliases, name);
            match meant.contains('@') {
                true => resolve(&self.parts.store.entries(), &meant)
                    .is_some_and(|entry| entry.key == *key),
                // Any version counts: a version in memory can answer, so that no other one has to
                // be loaded.
                false => meant == key.id(),
            }
        };
        settings.memory.fallback_models.iter().any(names_it)
    }

    pub(super) fn model_settings(&self, key: &EntryKey) -> ModelSettings {
        let (id, version, _) = key.parts();
        self.parts.settings.borrow().model(id, version)
    }
}

impl Slot {
    /// Returns whether the model takes memory, or soon will.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Loading { .. } | Self::Resident(_) | Self::Leaving(_))
    }

    /// Returns whether its last load failed because the store could not read its files.
    pub(super) fn failed_in_store(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if matches!(**error, WorkerError::Store(_)))
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving(_))
    }
}
