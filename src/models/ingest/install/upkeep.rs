//! Changes of installed models: rollbacks, approvals, and the removal of superfluous models, with
//! their records and events.

use super::Installer;
use crate::base::errors::{chain, errno};
use crate::package::{
    Approval, ApprovalError, EntryKey, RemovalReason, RemovedModel, RollbackError, RollbackResult,
    RollbackTarget, StoreEntry,
};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;
use crate::telemetry::metrics::StoreEvictionLabel;

impl Installer {
    /// Makes `id` resolve to another of its versions. Requests in progress are answered by the
    /// previous one.
    ///
    /// # Errors
    /// Returns the errors of [`Store::roll_back`](crate::package::Store::roll_back). Returns `None`
    /// if the daemon is stopping.
    pub async fn roll_back(
        &self,
        id: String,
        rollback: RollbackTarget,
    ) -> Option<Result<RollbackResult, RollbackError>> {
        let done = self.run_exclusively(move |store| store.roll_back(&id, &rollback)).await?;
        if let Ok(RollbackResult { from, to }) = &done
            && from.key != to.key
        {
            self.handle().events().publish(version_change(from, to));
        }
        self.handle().notify_store_changed(Vec::new()).await;
        Some(done)
    }

    /// Approves an update: its id resolves to it. Requests in progress are answered by the previous
    /// version.
    ///
    /// # Errors
    /// Returns the errors of [`Store::approve`](crate::package::Store::approve). Returns `None` if
    /// the daemon is stopping.
    pub async fn approve(&self, name: String) -> Option<Result<Approval, ApprovalError>> {
        let done = self.run_exclusively(move |store| store.approve(&name)).await?;
        if let Ok(Approval { approved, .. }) = &done {
            let model = approved.key.name().to_owned();
            self.handle().events().publish(Event::ModelApproved { model });
        }
        self.handle().notify_store_changed(Vec::new()).await;
        Some(done)
    }

    /// Calls [`InstallRules::clean_up`](super::InstallRules::clean_up) if models are superfluous,
    /// logs the removed models, and notifies the manager, which unloads them. Returns whether the
    /// disk permitted all removals.
    pub async fn clean_up(&self) -> bool {
        let rules = self.rules();
        if !rules.needs_clean_up(self.handle().store()) {
            return true;
        }
        let removed = self.run_exclusively(move |store| rules.clean_up(&store)).await;
        let removed = removed.unwrap_or_default();
        let mut gone = Vec::new();
        for RemovedModel { entry, reason, error } in &removed {
            if let Some(error) = error {
                tracing::error!(
                    name: Message::StoreFailed.name(),
                    model = %entry.key, errno = errno(error), error = chain(error),
                    "superfluous model cannot be removed from the store"
                );
            }
            // The directory may be out of the store although it could not be deleted.
            if self.handle().store().entries().get(&entry.key).is_some() {
                continue;
            }
            let (reason, label) = match reason {
                RemovalReason::Excess => {
                    ("the store exceeded its limits".to_owned(), StoreEvictionLabel::Limit)
                }
                RemovalReason::Unused(limit) => {
                    let limit = humantime::format_duration(*limit);
                    (format!("it was not used for {limit}"), StoreEvictionLabel::Unused)
                }
            };
            self.handle().metrics().count_store_eviction(label);
            tracing::info!(
                name: Message::StoreLimit.name(),
                model = %entry.key, reason,
                "model removed from the store"
            );
            let model = entry.key.name().to_owned();
            self.handle().events().publish(Event::StoreLimit { model, reason });
            gone.push(entry.key.clone());
        }
        self.handle().notify_store_changed(gone).await;
        removed.iter().all(|removed| removed.error.is_none())
    }

    /// Logs that the version `key` waits for approval, if it does.
    pub(super) fn report_waiting(&self, key: &EntryKey) {
        let entries = self.handle().store().entries();
        let Some(entry) = entries.get(key).filter(|entry| entries.is_waiting(entry)) else {
            return;
        };
        let current = entries.resolve(key.id()).map(|current| current.key.to_string());
        tracing::info!(
            name: Message::UpdateWaiting.name(),
            model = %entry.key, current = %current.unwrap_or_else(|| "no version".to_owned()),
            "version waits for approval"
        );
        let model = key.name().to_owned();
        self.handle().events().publish(Event::UpdateWaiting { model });
    }

    /// Publishes and counts the entries that were removed for `new`.
    pub(super) fn publish_displaced(&self, new: &EntryKey, removed: &[StoreEntry]) {
        for entry in removed {
            self.handle().metrics().count_store_eviction(if entry.key.name() == new.name() {
                StoreEvictionLabel::Replaced
            } else {
                StoreEvictionLabel::Limit
            });
            self.handle().events().publish(Event::StoreLimit {
                model: entry.key.name().to_owned(),
                reason: "a limit was reached, or other content replaced it".to_owned(),
            });
        }
    }
}

/// Returns the event of an id that resolves to `to` instead of `from`.
pub(in crate::models::ingest) fn version_change(from: &StoreEntry, to: &StoreEntry) -> Event {
    Event::ModelRolledBack {
        model: to.manifest.id.to_string(),
        from: from.manifest.version.to_string(),
        to: to.manifest.version.to_string(),
    }
}
