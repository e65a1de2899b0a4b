//! Decides which models, users and facts about the appliance a client may see.
//!
//! The rule applies to every route that shows something:
//! - An administrator sees everything.
//! - Other users see all models, but nothing of tenants, of the configuration or of refused
//!   packages.
//! - A tenant that is restricted to some models sees only these models and their events. Of the
//!   tenants, it sees only itself. It sees no reason texts that could name another model. The
//!   counters of a visible model include the requests of all users, not only its own.

use std::sync::Arc;

use super::App;
use super::wire::events::Event;
use super::wire::memory::MemoryAction;
use super::wire::{Configuration, QuarantinedPackage, tenants};
use crate::models::catalog::TenantModels;
use crate::models::ingest::intake::Intake;
use crate::package::{Entries, EntryKey};
use crate::service::Tenant;

/// Visibility rules for one client.
#[derive(Debug)]
pub(super) struct Visibility {
    is_admin: bool,
    tenant: Option<Arc<Tenant>>,
    /// Models that are visible; `None` when all are.
    models: Option<TenantModels>,
}

impl Visibility {
    /// Builds the rules for a client whose requests belong to `tenant`.
    pub(super) fn new(app: &App, tenant: Option<Arc<Tenant>>, is_admin: bool) -> Self {
        let held = match is_admin {
            true => None,
            false => {
                let tenant = tenant.as_deref().map(|tenant| &tenant.settings);
                app.handle.catalog().tenant_models(tenant)
            }
        };
        Self { is_admin, tenant, models: held }
    }

    /// Returns whether some models are hidden.
    pub(super) fn is_restricted(&self) -> bool {
        self.models.is_some()
    }

    /// Returns whether the model `key` is visible. It need not be in the store.
    pub(super) fn shows(&self, key: &EntryKey) -> bool {
        self.models.as_ref().is_none_or(|held| held.allows_key(key))
    }

    /// Returns the visible entries.
    pub(super) fn entries(&self, app: &App) -> Entries {
        let entries = app.handle.store().entries();
        match &self.models {
            Some(models) => entries.filtered(|entry| models.allows(entry)),
            None => entries,
        }
    }

    /// Returns the model that a request without a name means; empty when that model is hidden.
    pub(super) fn default_model(&self, app: &App) -> String {
        let tenant = self.tenant.as_deref().map(|tenant| &tenant.settings);
        match tenant.filter(|tenant| tenant.model.is_some() && !self.is_admin) {
            Some(tenant) => app.handle.catalog().default_model(Some(tenant)),
            None => {
                let default = app.handle.default_model();
                let is_shown = self.models.as_ref().is_none_or(|held| held.allows_name(&default));
                if is_shown { default } else { String::new() }
            }
        }
    }

    /// Returns the visible tenants.
    pub(super) fn tenants(&self, app: &App) -> Vec<tenants::Tenant> {
        let own = self.tenant.as_ref().map(|tenant| &tenant.name);
        app.tenants.view(|tenant| self.is_admin || own == Some(&tenant.name))
    }

    /// Returns the visible part of the configuration: all of it or nothing.
    pub(super) fn configuration(&self, app: &App) -> Configuration {
        if self.is_admin { app.configuration.borrow().clone() } else { Configuration::default() }
    }

    /// Returns whether refused packages are visible.
    pub(super) fn shows_refused(&self) -> bool {
        self.is_admin
    }

    /// Returns the visible part of `quarantine`: all of it or nothing.
    pub(super) fn quarantine(
        &self,
        quarantine: Option<Vec<QuarantinedPackage>>,
    ) -> Option<Vec<QuarantinedPackage>> {
        quarantine.filter(|_| self.shows_refused())
    }

    /// Returns the visible part of the packages on their way: all of it or nothing.
    pub(super) fn intake(&self, intake: Arc<Intake>) -> Arc<Intake> {
        if self.shows_refused() { intake } else { Arc::default() }
    }

    /// Returns the visible part of `action`, which concerns the model `key` if there is one.
    pub(super) fn action(
        &self,
        key: Option<&EntryKey>,
        action: MemoryAction,
    ) -> Option<MemoryAction> {
        match &self.models {
            None => Some(action),
            Some(held) if key.is_none_or(|key| held.allows_key(key)) => {
                Some(MemoryAction { reason: String::new(), ..action })
            }
            Some(_) => None,
        }
    }

    /// Returns the visible part of `event`. Only administrators see events of a kind that is
    /// unknown here.
    pub(super) fn event(&self, event: Event) -> Option<Event> {
        if self.is_admin {
            return Some(event);
        }
        let shows = |name: &Option<String>| {
            let held = self.models.as_ref();
            held.is_none_or(|held| name.as_deref().is_some_and(|name| held.allows_name(name)))
        };
        let reason = |event: Event| match self.is_restricted() {
            true => Event { reason: None, ..event },
            false => event,
        };
        match event.kind.as_str() {
            "lagged" => Some(event),
            "pressure_changed" => Some(reason(event)),
            "model_loaded" | "model_rolled_back" | "model_approved" | "update_waiting"
            | "package_accepted" => shows(&event.model).then_some(event),
            "model_unloaded" | "model_evicted" | "model_failed" | "model_corrupt"
            | "package_removed" | "store_limit" => shows(&event.model).then(|| reason(event)),
            // The models may be others' models, and the bytes are those of all.
            "memory_flushed" => (!self.is_restricted()).then_some(event),
            "fallback" => (shows(&event.model) && shows(&event.answered_by)).then(|| reason(event)),
            _ => None,
        }
    }

    /// Returns the visible part of `metrics` in Prometheus's text format. A restricted tenant sees
    /// only the series of its models.
    pub(super) fn metrics(&self, metrics: String) -> String {
        let Some(held) = &self.models else { return metrics };
        let is_shown = |line: &&str| {
            line.starts_with('#')
                || line
                    .split_once("model_id=\"")
                    .and_then(|(_, rest)| rest.split_once('"'))
                    .is_some_and(|(id, _)| held.has_id(id))
        };
        metrics.lines().filter(is_shown).fold(String::new(), |shown, line| shown + line + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, TenantSettings};
    use crate::models::catalog::Catalog;
    use crate::package::fixture::entry;

    /// Returns the rules for a client that may see all models, or only `m`.
    fn rules(is_restricted: bool) -> Visibility {
        let entries = Entries::from_iter(["m", "other"].map(|id| entry(id, "1", 2, id)));
        let allowed_models = is_restricted.then(|| vec!["m".to_owned()]);
        let tenant = TenantSettings { allowed_models, ..TenantSettings::default() };
        let catalog = Catalog::new(entries, Arc::new(Settings::default()));
        Visibility { is_admin: false, tenant: None, models: catalog.tenant_models(Some(&tenant)) }
    }

    fn event(kind: &str, model: &str) -> Event {
        let (kind, model) = (kind.to_owned(), Some(model.to_owned()));
        Event { kind, model, reason: Some("other@1 was removed".to_owned()), ..Event::default() }
    }

    #[test]
    fn restricted_tenant_sees_events_of_its_models_without_reasons() {
        for kind in ["model_failed", "model_evicted", "model_corrupt", "store_limit"] {
            let shown = rules(true).event(event(kind, "m@1")).unwrap();
            assert_eq!((shown.kind.as_str(), shown.reason), (kind, None));
            assert_eq!(rules(true).event(event(kind, "other@1")), None, "{kind}");
            let shown = rules(false).event(event(kind, "other@1")).unwrap();
            assert!(shown.reason.is_some(), "{kind}");
        }
        for kind in ["update_waiting", "model_approved", "model_rolled_back"] {
            assert!(rules(true).event(event(kind, "m")).is_some(), "{kind}");
            assert_eq!(rules(true).event(event(kind, "other")), None, "{kind}");
        }
        assert_eq!(rules(false).event(event("package_refused", "m@1")), None);
    }
}
