//! Models to which a tenant is restricted.

use std::collections::{BTreeMap, BTreeSet};

use super::alias;
use crate::config::{AliasSettings, TenantSettings};
use crate::package::{Entries, EntryKey, StoreEntry};

/// Models to which a tenant is restricted.
#[derive(Debug)]
pub struct TenantModels {
    /// Names in the settings.
    names: Vec<String>,
    /// Keys of the entries to which the names resolve, including aliases and the tenant's own
    /// model.
    resolved: BTreeSet<EntryKey>,
}

impl TenantModels {
    /// Returns the models of `entries` to which `tenant` is restricted; `None` when it may request
    /// all.
    pub(super) fn new(
        entries: &Entries,
        aliases: &BTreeMap<String, AliasSettings>,
        tenant: Option<&TenantSettings>,
    ) -> Option<Self> {
        let TenantSettings { model, allowed_models: Some(allowed), .. } = tenant? else {
            return None;
        };
        let key = |name: &String| {
            let name = alias::resolve_without_canary(aliases, name);
            entries.resolve(&name).map(|entry| entry.key.clone())
        };
        let resolved = allowed.iter().chain(model).filter_map(key).collect();
        Some(Self { names: allowed.clone(), resolved })
    }

    /// Returns whether the tenant may request `entry`.
    pub fn allows(&self, entry: &StoreEntry) -> bool {
        self.resolved.contains(&entry.key) || is_named(&self.names, entry)
    }

    /// Returns whether the tenant may request the model `key`, which may have left the store.
    pub fn allows_key(&self, key: &EntryKey) -> bool {
        let (id, version, revision) = key.parts();
        let names_it = |name: &String| match name.split_once('@') {
            None => name == id,
            // Accept the first 6 or more digits of a revision: shorter prefixes could match two
            // revisions.
            Some((named, rest)) => {
                named == id && (rest == version || rest.len() >= 6 && revision.starts_with(rest))
            }
        };
        self.resolved.contains(key) || self.names.iter().any(names_it)
    }

    /// Returns whether the tenant may request the model with this name: `id`, `id@version`, a key,
    /// or the name in a request.
    pub fn allows_name(&self, name: &str) -> bool {
        let id = name.split('@').next();
        self.resolved.iter().any(|key| key.name() == name || key.to_string() == name)
            || self.names.iter().any(|named| named == name || Some(named.as_str()) == id)
    }

    /// Returns whether an installed model with this id is among the models.
    pub fn has_id(&self, id: &str) -> bool {
        self.resolved.iter().any(|key| key.id() == id)
    }
}

/// Returns whether `tenant` may use `entry`, by the names in its settings alone.
///
/// Aliases do not count here: a fallback answers under its own name.
pub fn permits(tenant: Option<&TenantSettings>, entry: &StoreEntry) -> bool {
    let allowed = tenant.and_then(|tenant| tenant.allowed_models.as_ref());
    allowed.is_none_or(|allowed| is_named(allowed, entry))
}

/// Returns whether one of `names` matches `entry`.
pub(super) fn is_named(names: &[String], entry: &StoreEntry) -> bool {
    names.iter().any(|name| entry.is_named(name))
}
