//! What a client is shown of models, users and the appliance.
//!
//! Owns the rule, for every route that shows something:
//! - An administrator sees everything.
//! - Other users see every model, and nothing of tenants, of the configuration or of packages that were refused.
//! - A tenant that is held to some models sees these models and what happens to them. It sees of the tenants itself
//!   alone, and no reason that could name another model. What it sees of a model is the model's: the counts of one that
//!   others may ask for, too, are those of all who use it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::App;
use super::tenants::Tenant;
use super::wire::events::Event;
use super::wire::memory::MemoryAction;
use super::wire::{Configuration, Quarantined, tenants};
use crate::config::{Settings, TenantSettings};
use crate::models::alias;
use crate::package::{Entry, Key, choose};

/// What one client is shown.
#[derive(Debug)]
pub(super) struct Sight {
    is_admin: bool,
    tenant: Option<Arc<Tenant>>,
    /// `None` where every model is shown.
    held: Option<Held>,
}

/// The models that a tenant is held to.
#[derive(Debug)]
pub(super) struct Held {
    /// As the settings name them.
    names: Vec<String>,
    /// The entries that the names mean, aliases and the tenant's own model among them.
    meant: BTreeSet<Key>,
}

impl Held {
    /// The models of `entries` that `tenant` is held to; `None` where it may ask for all.
    pub(super) fn of(
        settings: &Settings,
        entries: &[Entry],
        tenant: Option<&TenantSettings>,
    ) -> Option<Self> {
        let TenantSettings { model, allowed_models: Some(allowed), .. } = tenant? else {
            return None;
        };
        let key = |name: &String| {
            let name = alias::meant(&settings.aliases, name);
            choose(entries, &name).map(|entry| entry.key.clone())
        };
        let meant = allowed.iter().chain(model).filter_map(key).collect();
        Some(Self { names: allowed.clone(), meant })
    }

    /// Whether the tenant may ask for `entry`.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        self.meant.contains(&entry.key) || self.names.iter().any(|name| entry.is_named(name))
    }

    /// The same of a model that may have left the store.
    fn has_key(&self, key: &Key) -> bool {
        let (id, version, revision) = key.parts();
        let names_it = |name: &String| match name.split_once('@') {
            None => name == id,
            // The words of a configuration are longer than what two revisions begin with alike.
            Some((named, rest)) => {
                named == id && (rest == version || rest.len() >= 6 && revision.starts_with(rest))
            }
        };
        self.meant.contains(key) || self.names.iter().any(names_it)
    }

    /// The same of a name: `id`, `id@version`, a key, or what a request asked for.
    fn has_name(&self, name: &str) -> bool {
        let id = name.split('@').next();
        self.meant.iter().any(|key| key.name() == name || key.to_string() == name)
            || self.names.iter().any(|named| named == name || Some(named.as_str()) == id)
    }
}

impl Sight {
    /// What a client is shown whose requests are those of `tenant`.
    pub(super) fn new(app: &App, tenant: Option<Arc<Tenant>>, is_admin: bool) -> Self {
        let held = match is_admin {
            true => None,
            false => {
                let tenant = tenant.as_deref().map(|tenant| &tenant.settings);
                let settings = app.settings.borrow().clone();
                Held::of(&settings, &app.handle.store().entries(), tenant)
            }
        };
        Self { is_admin, tenant, held }
    }

    /// Whether some models are hidden.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the model `key` is shown, in the store or not.
    pub(super) fn shows(&self, key: &Key) -> bool {
        self.held.as_ref().is_none_or(|held| held.has_key(key))
    }

    /// Returns the entries that are shown.
    pub(super) fn entries(&self, app: &App) -> Vec<Entry> {
        let mut entries = app.handle.store().entries();
        entries.retain(|entry| self.held.as_ref().is_none_or(|held| held.has(entry)));
        entries
    }

    /// Returns the model that a request without a name means.
    pub(super) fn default_model(&self, app: &App) -> String {
        let settings = app.settings.borrow().clone();
        let own = self.tenant.as_deref().and_then(|tenant| tenant.settings.model.as_deref());
        match own.filter(|_| !self.is_admin) {
            Some(own) => alias::meant(&settings.aliases, own),
            None => {
                let default = app.handle.default_model();
                let is_shown = self.held.as_ref().is_none_or(|held| held.has_name(&default));
                if is_shown { default } else { String::new() }
            }
        }
    }

    /// Returns the tenants that are shown.
    pub(super) fn tenants(&self, app: &App) -> Vec<tenants::Tenant> {
        let own = self.tenant.as_ref().map(|tenant| &tenant.name);
        app.tenants.view(|tenant| self.is_admin || own == Some(&tenant.name))
    }

    /// Returns what is shown of the configuration.
    pub(super) fn configuration(&self, app: &App) -> Configuration {
        if self.is_admin { app.configuration.borrow().clone() } else { Configuration::default() }
    }

    /// Whether packages that were refused are shown.
    pub(super) fn shows_refused(&self) -> bool {
        self.is_admin
    }

    /// Returns what is shown of `quarantine`.
    pub(super) fn quarantine(
        &self,
        quarantine: Option<Vec<Quarantined>>,
    ) -> Option<Vec<Quarantined>> {
        quarantine.filter(|_| self.shows_refused())
    }

    /// Returns what is shown of `action`, which was about the model `key` if about one.
    pub(super) fn action(&self, key: Option<&Key>, action: MemoryAction) -> Option<MemoryAction> {
        match &self.held {
            None => Some(action),
            Some(held) if key.is_none_or(|key| held.has_key(key)) => {
                Some(MemoryAction { reason: String::new(), ..action })
            }
            Some(_) => None,
        }
    }

    /// Returns what is shown of `event`; a kind that this does not know is for administrators.
    pub(super) fn event(&self, event: Event) -> Option<Event> {
        if self.is_admin {
            return Some(event);
        }
        let shows = |name: &Option<String>| {
            let held = self.held.as_ref();
            held.is_none_or(|held| name.as_deref().is_some_and(|name| held.has_name(name)))
        };
        let reason = |event: Event| match self.is_held() {
            true => Event { reason: None, ..event },
            false => event,
        };
        match event.kind.as_str() {
            "lagged" => Some(event),
            "pressure_changed" => Some(reason(event)),
            "model_loaded" | "model_failed" | "package_accepted" => {
                shows(&event.model).then_some(event)
            }
            "model_unloaded" | "model_evicted" => shows(&event.model).then(|| reason(event)),
            "fallback" => (shows(&event.model) && shows(&event.answered_by)).then(|| reason(event)),
            _ => None,
        }
    }

    /// Returns what is shown of `metrics` in Prometheus's text form: of a tenant that is held to some models, the series
    /// of these.
    pub(super) fn metrics(&self, metrics: String) -> String {
        let Some(held) = &self.held else { return metrics };
        let is_shown = |line: &&str| {
            line.starts_with('#')
                || line
                    .split_once("model_id=\"")
                    .and_then(|(_, rest)| rest.split_once('"'))
                    .is_some_and(|(id, _)| held.meant.iter().any(|key| key.id() == id))
        };
        metrics.lines().filter(is_shown).fold(String::new(), |shown, line| shown + line + "\n")
    }
}
