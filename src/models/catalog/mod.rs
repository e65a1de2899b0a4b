//! Catalog: the meaning of every model name, for the API, the manager and the fallbacks.
//!
//! A [`Catalog`] is an immutable snapshot of the installed entries and of the settings that give
//! names a meaning: aliases, default models, fallbacks and `bundled_only`. Decisions that use one
//! catalog agree with each other.
//!
//! The steps of a resolution, each of which has one place here:
//! 1. A request without a name means the model of its tenant, or else the default model.
//! 2. A tag is converted to a version ([`canonical_name`]), and an alias is replaced by its model or
//!    its canary ([`alias`]).
//! 3. A tenant that is restricted to some models may request only these.
//! 4. [`Entries::resolve`] selects the entry: the version, the revision, the result of a rollback
//!    or of an approval, or the version that answers for a corrupt one.
//! 5. `bundled_only`, the keys and the state of the files decide whether the entry may serve.
//!
//! Pure, apart from the lock of [`CatalogSource`].

mod alias;
pub(super) mod fallback;
mod ignore_case;
mod tenant_models;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

pub use alias::{Alias, RequestTexts, ResolvedModel, implicit_models};
pub use ignore_case::AmbiguousName;
pub use tenant_models::{TenantModels, permits};

use crate::config::{MemorySettings, Settings, TenantSettings};
use crate::models::error::ModelError;
use crate::package::{Entries, EntryKey, InstallStatus, Store, StoreEntry, canonical_name};

/// Facts about a request that decide what its model name means.
#[derive(Clone, Copy, Debug)]
pub struct NameContext<'a> {
    /// Tenant of the request.
    pub tenant: Option<&'a TenantSettings>,
    /// Texts of the request. They decide whether an alias selects its canary.
    pub texts: RequestTexts<'a>,
}

/// Reason why a tenant may not send a request to a model.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The tenant is restricted to other models.
    #[error("the tenant may not request the model \"{0}\"")]
    NotAllowed(String),
    /// The model is not installed. The error lists the models that the tenant may request.
    #[error(transparent)]
    Unknown(ModelError),
}

/// An alias, and the entries that it means now.
#[derive(Clone, Copy, Debug)]
pub struct AliasTargets<'a> {
    /// Name of the alias.
    pub name: &'a str,
    /// Entry of its model, if it is among the entries.
    pub model: Option<&'a EntryKey>,
    /// Entry of its canary, if it has one and it is among the entries.
    pub canary: Option<&'a EntryKey>,
}

/// Snapshot of the installed entries and of the settings that give names a meaning.
#[derive(Debug)]
pub struct Catalog {
    entries: Entries,
    /// The entries that `bundled_only` permits.
    served: Entries,
    settings: Arc<Settings>,
}

impl Catalog {
    /// Creates the catalog of `entries` under these settings.
    pub fn new(entries: Entries, settings: Arc<Settings>) -> Self {
        let served = match settings.memory.model_cache.bundled_only {
            true => entries.filtered(|entry| entry.record.origin.is_bundled()),
            false => entries.clone(),
        };
        Self { entries, served, settings }
    }

    /// Returns all installed entries, whether or not they may serve.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Returns the settings of memory and fallbacks.
    pub(super) fn memory(&self) -> &MemorySettings {
        &self.settings.memory
    }

    /// Resolves the name in a request, or the name that the request means if it has none.
    ///
    /// The result names a model, not an alias. Without a tenant it may be a model that is not
    /// installed: [`find`](Self::find) reports this when the model is leased.
    ///
    /// # Errors
    /// When the tenant may not request the model, or it may and the model that it named is not
    /// installed.
    pub fn resolve(
        &self,
        name: Option<&str>,
        NameContext { tenant, texts }: NameContext<'_>,
    ) -> Result<ResolvedModel, NameError> {
        let own = tenant.and_then(|tenant| tenant.model.as_deref());
        let requested = name.or(own).unwrap_or_else(|| self.settings.default_model());
        let requested = &*canonical_name(requested);
        let resolved = alias::resolve(&self.settings.aliases, requested, texts);
        let Some(allowed) = tenant.and_then(|tenant| tenant.allowed_models.as_ref()) else {
            return Ok(resolved);
        };
        let entry = self.entries.resolve(&resolved.name);
        let is_listed = own == Some(requested) || allowed.iter().any(|name| name == requested);
        if !is_listed && !entry.is_some_and(|entry| tenant_models::is_named(allowed, entry)) {
            return Err(NameError::NotAllowed(requested.to_owned()));
        }
        // Report an unknown model here and not when it is leased: the error lists models, and here
        // it can list only those that the tenant may see.
        if entry.is_none()
            && name.is_some()
            && let Some(models) = self.tenant_models(tenant)
        {
            let visible = self.entries.filtered(|entry| models.allows(entry));
            return Err(NameError::Unknown(ModelError::unknown(resolved.name, &visible)));
        }
        Ok(resolved)
    }

    /// Returns the name of the model for requests of `tenant` without a model name. Canaries are
    /// ignored.
    pub fn default_model(&self, tenant: Option<&TenantSettings>) -> String {
        let own = tenant.and_then(|tenant| tenant.model.as_deref());
        self.without_alias(own.unwrap_or_else(|| self.settings.default_model()))
    }

    /// Returns the installed entry that `name`, of a model or an alias, means. The entry may be
    /// corrupt, or not permitted by `bundled_only`. Canaries are ignored.
    pub fn lookup(&self, name: &str) -> Option<&StoreEntry> {
        self.lookup_in(&self.entries, name)
    }

    /// Returns the one of `entries` that `name`, of a model or an alias, means. Canaries are
    /// ignored.
    pub fn lookup_in<'a>(&self, entries: &'a Entries, name: &str) -> Option<&'a StoreEntry> {
        entries.resolve(&self.without_alias(name))
    }

    /// Returns the entry that serves requests for `name`, of a model or an alias. Canaries are
    /// ignored.
    ///
    /// # Errors
    /// When the model is not installed, `bundled_only` or the keys do not permit its use, or its
    /// files are corrupt.
    pub fn find(&self, name: &str) -> Result<&StoreEntry, ModelError> {
        let name = self.without_alias(name);
        let Some(entry) = self.served.resolve(&name) else {
            return Err(self.explain_missing(name));
        };
        match &entry.record.status {
            InstallStatus::Corrupt(reason) => {
                Err(ModelError::Corrupt { name, reason: reason.clone() })
            }
            // `Entries::resolve` returns only available entries besides corrupt ones.
            InstallStatus::Untested | InstallStatus::Quarantined(_) | InstallStatus::Available => {
                Ok(entry)
            }
        }
    }

    /// Returns the reason why no entry serves `name`.
    fn explain_missing(&self, name: String) -> ModelError {
        let hidden = self.entries.filtered(|entry| !self.is_served(entry));
        if hidden.resolve(&name).is_some() {
            return ModelError::BundledOnly(name);
        }
        let mut named = self.served.iter().filter(|entry| entry.is_named(&name));
        if let Some(reason) = named.find_map(|entry| entry.disabled.clone()) {
            return ModelError::Disabled { name, reason };
        }
        if !name.contains('@') && self.served.waiting(&name).is_some() {
            return ModelError::NotApproved(name);
        }
        ModelError::unknown(name, &self.served)
    }

    /// Returns whether `bundled_only` permits the use of `entry`.
    pub(super) fn is_served(&self, entry: &StoreEntry) -> bool {
        !self.settings.memory.model_cache.bundled_only || entry.record.origin.is_bundled()
    }

    /// Returns the entries that `tenant` can request.
    pub fn servable(&self, tenant: Option<&TenantSettings>) -> Entries {
        let usable = self.served.filtered(StoreEntry::is_usable);
        match TenantModels::new(&usable, &self.settings.aliases, tenant) {
            Some(models) => usable.filtered(|entry| models.allows(entry)),
            None => usable,
        }
    }

    /// Returns the models to which `tenant` is restricted; `None` when it may request all.
    pub fn tenant_models(&self, tenant: Option<&TenantSettings>) -> Option<TenantModels> {
        TenantModels::new(&self.entries, &self.settings.aliases, tenant)
    }

    /// Returns `error` without the models that `tenant` may not request.
    pub fn hide_models(&self, error: ModelError, tenant: Option<&TenantSettings>) -> ModelError {
        match error {
            ModelError::Unknown { name, mut known } => {
                if let Some(models) = self.tenant_models(tenant) {
                    known.retain(|id| models.has_id(id));
                }
                ModelError::Unknown { name, known }
            }
            error => error,
        }
    }

    /// Returns every alias with the ones of `entries` that it means.
    pub fn aliases<'a>(&'a self, entries: &'a Entries) -> Vec<AliasTargets<'a>> {
        let key = |name: &str| entries.resolve(name).map(|entry| &entry.key);
        let targets = self.settings.aliases.iter().map(|(name, alias)| AliasTargets {
            name,
            model: key(&self.without_alias(name)),
            canary: alias::canary(alias).and_then(|canary| key(&canary)),
        });
        targets.collect()
    }

    /// Returns whether `key` is one of `memory.fallback_models`.
    pub(super) fn is_fallback(&self, key: &EntryKey) -> bool {
        self.settings.memory.fallback_models.iter().any(|name| {
            let name = self.without_alias(name);
            match name.contains('@') {
                true => self.entries.resolve(&name).is_some_and(|entry| entry.key == *key),
                // Any version counts: a version in memory can answer, so that no other one has to
                // be loaded.
                false => name == key.id(),
            }
        })
    }

    /// Returns the models that the settings name for requests: the default model, the reranker, and
    /// those of tenants and aliases.
    pub(super) fn models_with_dependents(&self) -> BTreeSet<EntryKey> {
        let tenants = self.settings.tenants.iter();
        let allowed = tenants.filter_map(|tenant| tenant.allowed_models.as_ref()).flatten();
        let names = implicit_models(&self.settings).into_iter().chain(allowed.cloned());
        names.filter_map(|name| self.lookup(&name).map(|entry| entry.key.clone())).collect()
    }

    /// Returns the entries that `memory.fallback_models` means, in its order; `None` for a name
    /// without an entry.
    pub(super) fn fallback_models(&self) -> Vec<Option<&StoreEntry>> {
        let names = self.settings.memory.fallback_models.iter();
        names.map(|name| self.lookup(name)).collect()
    }

    /// Returns the name of the model that `name`, of a model or an alias, means. Canaries are
    /// ignored.
    fn without_alias(&self, name: &str) -> String {
        alias::resolve_without_canary(&self.settings.aliases, &canonical_name(name))
    }

    /// Returns whether this is the catalog of these entries and settings.
    fn is_of(&self, entries: &Entries, settings: &Arc<Settings>) -> bool {
        self.entries.is_same(entries) && Arc::ptr_eq(&self.settings, settings)
    }
}

/// Source of the current catalog. A new one is built only after a change of the store or of the
/// settings, so that a request pays two comparisons of pointers.
#[derive(Debug)]
pub(super) struct CatalogSource {
    store: Arc<Store>,
    settings: watch::Receiver<Arc<Settings>>,
    last: Mutex<Arc<Catalog>>,
}

impl CatalogSource {
    pub(super) fn new(store: Arc<Store>, settings: watch::Receiver<Arc<Settings>>) -> Self {
        let first = Catalog::new(store.entries(), Arc::clone(&settings.borrow()));
        Self { store, settings, last: Mutex::new(Arc::new(first)) }
    }

    /// Returns the catalog of the present entries and settings.
    pub(super) fn current(&self) -> Arc<Catalog> {
        let entries = self.store.entries();
        let settings = Arc::clone(&self.settings.borrow());
        // A panic while the lock is held leaves the old catalog or the new one.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_of(&entries, &settings) {
            *last = Arc::new(Catalog::new(entries, settings));
        }
        Arc::clone(&last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{AliasSettings, CanarySettings};
    use crate::package::fixture::entry;
    use crate::package::{DisabledReason, Origin};

    fn alias(model: &str, canary: CanarySettings) -> AliasSettings {
        AliasSettings { model: model.to_owned(), canary, ..AliasSettings::default() }
    }

    fn settings() -> Settings {
        let canary = CanarySettings { model: Some("b".to_owned()), revision: None, percent: 100 };
        let mut settings = Settings::default();
        settings.memory.embedding_model = "a".to_owned();
        settings.aliases = BTreeMap::from([
            ("stable".to_owned(), alias("a", CanarySettings::default())),
            ("trial".to_owned(), alias("a", canary)),
        ]);
        settings
    }

    fn catalog(settings: Settings) -> Catalog {
        let bundled = serde_json::from_str("\"\"").unwrap();
        let mut entries = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1"), ("off", "1")]
            .map(|(id, version)| entry(id, version, 2, id));
        entries[0].record.origin = Origin::Bundled { file: "a".to_owned(), fingerprint: bundled };
        entries[3].record.status = InstallStatus::Corrupt("bytes differ".to_owned());
        entries[4].disabled = Some(DisabledReason::Reserved);
        Catalog::new(Entries::from_iter(entries), Arc::new(settings))
    }

    fn tenant(model: Option<&str>, allowed: Option<&[&str]>) -> TenantSettings {
        TenantSettings {
            model: model.map(str::to_owned),
            allowed_models: allowed.map(|names| names.iter().map(ToString::to_string).collect()),
            ..TenantSettings::default()
        }
    }

    /// Returns the resolved name, or the error.
    fn resolved(catalog: &Catalog, name: Option<&str>, tenant: Option<&TenantSettings>) -> String {
        let context = NameContext { tenant, texts: RequestTexts::Plain(&[]) };
        match catalog.resolve(name, context) {
            Ok(resolved) => resolved.name,
            Err(error) => error.to_string(),
        }
    }

    fn names(entries: &Entries) -> Vec<&str> {
        entries.iter().map(|entry| entry.key.name()).collect()
    }

    #[test]
    fn name_tenant_and_default_take_precedence_in_order() {
        let catalog = catalog(settings());
        let own = tenant(Some("stable"), None);
        for (name, tenant, expected) in [
            (None, None, "a"),
            (None, Some(&own), "a"),
            (Some("b"), Some(&own), "b"),
            (Some("trial"), None, "b"),
            (Some("nowhere"), None, "nowhere"),
            (Some("nowhere"), Some(&own), "nowhere"),
        ] {
            assert_eq!(resolved(&catalog, name, tenant), expected, "{name:?}");
        }
        assert_eq!(catalog.default_model(Some(&tenant(Some("trial"), None))), "a");
        assert_eq!(catalog.default_model(None), "a");
    }

    #[test]
    fn tags_are_resolved_like_versions() {
        let catalog = catalog(settings());
        for (name, expected) in [
            ("a:latest", "a"),
            ("a:1", "a@1"),
            ("stable:latest", "a"),
            ("trial:latest", "b"),
            ("stable:1", "stable@1"),
            ("nowhere:latest", "nowhere"),
        ] {
            assert_eq!(resolved(&catalog, Some(name), None), expected, "{name}");
        }
        let found = |name: &str| catalog.lookup(name).map(|entry| entry.key.name());
        assert_eq!(found("stable:latest"), Some("a@2"));
        assert_eq!(found("a:1"), Some("a@1"));
        assert_eq!(catalog.find("a:1").unwrap().key.name(), "a@1");
        // A tag gives a restricted tenant no other rights than the name without it.
        let held = tenant(None, Some(&["b", "stable"]));
        assert_eq!(resolved(&catalog, Some("b:latest"), Some(&held)), "b");
        assert_eq!(resolved(&catalog, Some("stable:latest"), Some(&held)), "a");
        for refused in ["a:latest", "a:2", "c:1"] {
            let error = resolved(&catalog, Some(refused), Some(&held));
            assert!(error.starts_with("the tenant may not request"), "{refused}: {error}");
        }
    }

    #[test]
    fn restricted_tenant_gets_only_its_models() {
        let catalog = catalog(settings());
        let held = tenant(None, Some(&["b", "stable", "nowhere"]));
        for (name, expected) in [
            (Some("b"), "b"),
            (Some("b@1"), "b@1"),
            (Some("stable"), "a"),
            // An alias that means a permitted model is permitted.
            (Some("trial"), "b"),
            (Some("a"), "the tenant may not request the model \"a\""),
            (None, "the tenant may not request the model \"a\""),
            (Some("z"), "the tenant may not request the model \"z\""),
            (Some("nowhere"), "the model \"nowhere\" is not installed; installed: a, b"),
        ] {
            assert_eq!(resolved(&catalog, name, Some(&held)), expected, "{name:?}");
        }
        assert_eq!(names(&catalog.servable(Some(&held))), ["a@2", "b@1"]);
        assert_eq!(names(&catalog.servable(None)), ["a@1", "a@2", "b@1"]);
        let b = catalog.lookup("b").unwrap();
        assert!(permits(Some(&held), b) && permits(None, b));
        assert!(!permits(Some(&held), catalog.lookup("stable").unwrap()));
    }

    #[test]
    fn error_of_missing_own_model_lists_only_models_of_the_tenant() {
        let catalog = catalog(settings());
        let held = tenant(Some("nowhere"), Some(&["b"]));
        assert_eq!(resolved(&catalog, None, Some(&held)), "nowhere");
        let listed = |tenant| {
            let missing = catalog.find("nowhere").unwrap_err();
            catalog.hide_models(missing, tenant).to_string()
        };
        assert!(listed(Some(&held)).ends_with("installed: b"), "{}", listed(Some(&held)));
        assert!(listed(None).ends_with("installed: a, b, c, off"), "{}", listed(None));
        let corrupt = catalog.hide_models(catalog.find("c").unwrap_err(), Some(&held));
        assert!(matches!(corrupt, ModelError::Corrupt { .. }), "{corrupt}");
    }

    #[test]
    fn find_reports_why_a_model_cannot_serve() {
        let found = |catalog: &Catalog, name: &str| match catalog.find(name) {
            Ok(entry) => entry.key.name().to_owned(),
            Err(error) => error.to_string(),
        };
        let all = catalog(settings());
        assert_eq!(found(&all, "stable"), "a@2");
        assert_eq!(found(&all, "trial"), "a@2");
        assert!(matches!(all.find("c"), Err(ModelError::Corrupt { .. })));
        assert!(matches!(all.find("off"), Err(ModelError::Disabled { .. })));
        assert!(found(&all, "z").ends_with("installed: a, b, c, off"), "{}", found(&all, "z"));
        let mut settings = settings();
        settings.memory.model_cache.bundled_only = true;
        let bundled = catalog(settings);
        assert_eq!(found(&bundled, "a"), "a@1");
        assert!(matches!(bundled.find("b"), Err(ModelError::BundledOnly(name)) if name == "b"));
        assert!(found(&bundled, "z").ends_with("installed: a"), "{}", found(&bundled, "z"));
        assert_eq!(names(&bundled.servable(None)), ["a@1"]);
        assert_eq!(bundled.lookup("b").unwrap().key.name(), "b@1");
    }

    #[test]
    fn id_without_approved_version_is_reported() {
        let mut waiting = entry("m", "2", 2, "m");
        waiting.record.awaits_approval = true;
        let catalog = Catalog::new(Entries::from_iter([waiting]), Arc::new(settings()));
        let missing = catalog.find("m").unwrap_err();
        assert!(matches!(&missing, ModelError::NotApproved(name) if name == "m"), "{missing}");
        assert_eq!(catalog.find("m@2").unwrap().key.name(), "m@2");
        assert!(matches!(catalog.find("m@1"), Err(ModelError::Unknown { .. })));
    }

    #[test]
    fn corrupt_version_is_found_as_the_one_that_answers_for_it() {
        let mut all = ["1", "2"].map(|version| entry("m", version, 2, "m"));
        all[1].record.status = InstallStatus::Corrupt("bytes differ".to_owned());
        let catalog = Catalog::new(Entries::from_iter(all), Arc::new(settings()));
        assert_eq!(catalog.find("m").unwrap().key.name(), "m@1");
        assert!(matches!(catalog.find("m@2"), Err(ModelError::Corrupt { .. })));
    }

    #[test]
    fn aliases_and_fallbacks_name_entries() {
        let mut settings = settings();
        settings.memory.fallback_models = ["trial", "b@1", "nowhere"].map(str::to_owned).to_vec();
        let catalog = catalog(settings);
        let aliases = catalog.aliases(catalog.entries());
        let key = |key: Option<&EntryKey>| key.map(|key| key.name().to_owned());
        let shown = aliases.iter().map(|alias| (alias.name, key(alias.model), key(alias.canary)));
        let a = || Some("a@2".to_owned());
        let expected = [("stable", a(), None), ("trial", a(), Some("b@1".to_owned()))];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        let is_fallback = |name| catalog.is_fallback(&catalog.lookup(name).unwrap().key);
        // Without a version, each version is a fallback.
        assert!(is_fallback("a@1") && is_fallback("a@2") && is_fallback("b@1"));
        assert!(!is_fallback("c"));
        let listed = catalog.fallback_models();
        let listed = listed.iter().map(|entry| entry.map(|entry| entry.key.name()));
        assert_eq!(listed.collect::<Vec<_>>(), [Some("a@2"), Some("b@1"), None]);
    }

    #[test]
    fn default_tenant_and_alias_models_have_dependents() {
        let mut settings = settings();
        let found = |settings: &Settings| {
            let keys = catalog(settings.clone()).models_with_dependents().into_iter();
            keys.map(|key| key.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(&settings), ["a@2", "b@1"]);
        settings.aliases.clear();
        assert_eq!(found(&settings), ["a@2"]);
        settings.tenants = vec![tenant(Some("b"), None), tenant(Some("nowhere"), Some(&["a@1"]))];
        assert_eq!(found(&settings), ["a@1", "a@2", "b@1"]);
    }

    #[test]
    fn catalog_is_built_again_only_after_a_change() {
        let place = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::volatile(place.path()).unwrap());
        let (change, settings) = watch::channel(Arc::new(settings()));
        let source = CatalogSource::new(store, settings);
        let first = source.current();
        assert!(Arc::ptr_eq(&first, &source.current()));
        let mut changed = Settings::clone(&change.borrow());
        changed.memory.embedding_model = "b".to_owned();
        change.send(Arc::new(changed)).unwrap();
        let second = source.current();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!(first.default_model(None), "a");
        assert_eq!(second.default_model(None), "b");
    }
}
