//! Applies changed settings to the models that are resident or loading.
//!
//! The other settings need no such step: they are read when they are used.

use std::time::Duration;

use super::Manager;
use crate::config::Settings;
use crate::engine::EngineOptions;
use crate::models::residency::model_state::{ModelState, PassSettings};
use crate::models::serving::queue::QueueLimits;
use crate::package::EntryKey;

/// Most batches of a model that are computed concurrently, unless the settings allow more: with
/// many small batches, each would have only a text or two. One batch more is taken from the queue,
/// so that the first free thread has its next pass at once.
const MAX_CONCURRENT_BATCHES: usize = 4;

impl Manager {
    /// Applies the limits of the queues, of the passes and of the texts.
    pub(super) fn apply_settings(&mut self) {
        let settings = self.parts.settings.borrow().clone();
        let limits = queue_limits(&settings, self.parts.options);
        let is_memory_short = self.episode.is_some();
        let mut outdated = Vec::new();
        for (key, state) in &mut self.states {
            match state {
                ModelState::Loading { worker, .. } => worker.queue.set_limits(limits),
                ModelState::Resident(resident) => {
                    resident.worker.queue.set_limits(limits);
                    let new = pass_settings(&settings, key);
                    resident.ready.set_pass_limit(new.batch_tokens, is_memory_short);
                    resident.ready.tokenizer.limit_length(new.max_sequence_length);
                    if std::mem::replace(&mut resident.pass_settings, new) != new {
                        outdated.push(key.clone());
                    }
                }
                _ => {}
            }
        }
        // Longer passes need more memory.
        for key in outdated {
            let options = self.options(&key);
            self.estimate(key, options);
        }
    }

    /// Returns the limits of the queue of a model.
    pub(super) fn queue_limits(&self) -> QueueLimits {
        queue_limits(&self.parts.settings.borrow(), self.parts.options)
    }

    /// Returns the settings of the passes of `key`.
    pub(super) fn pass_settings(&self, key: &EntryKey) -> PassSettings {
        pass_settings(&self.parts.settings.borrow(), key)
    }
}

fn queue_limits(settings: &Settings, options: EngineOptions) -> QueueLimits {
    let embedding = &settings.embedding;
    let batches = || options.threads.min(MAX_CONCURRENT_BATCHES) + 1;
    QueueLimits {
        requests: embedding.queue_size,
        tokens: embedding.queue_tokens,
        wait: Duration::from_millis(embedding.max_batch_wait_ms as u64),
        batches: embedding.parallel_batches.unwrap_or_else(batches),
    }
}

fn pass_settings(settings: &Settings, key: &EntryKey) -> PassSettings {
    let (id, version, _revision) = key.parts();
    PassSettings {
        batch_tokens: settings.embedding.batch_tokens,
        max_sequence_length: settings.model(id, version).max_sequence_length,
    }
}
